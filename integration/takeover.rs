//! A namegate that takes the place of a running one: no query is lost, no connection ends, nothing denied passes.

use std::net::SocketAddr;
use std::time::Duration;

use libtest_mimic::Trial;

use crate::lab::agent::{Pace, Paced, Reach, Reply, Request};
use crate::lab::daemon::Daemon;
use crate::lab::process::output;
use crate::lab::world::Family;
use crate::lab::{Topology, World};
use crate::repairs::second;
use crate::scenes::{ONE, Scene, TWO_ITEMS};

/// Take-overs while questions are asked; this variable asks for more. (One that begins with NAMEGATE_ is a setting.)
const TIMES: u32 = 5;
const MORE: &str = "LAB_TAKE_OVERS";
/// Two thousand a second: what a busy node asks.
const PER_SECOND: u32 = 2000;
/// How long it may take until a predecessor has ended.
const LIMIT: Duration = Duration::from_secs(10);
/// One pod asks what a node's pods ask: what waited while nobody read is under way all at once.
const BURST: [&str; 2] = ["--set", "dns.queries_in_flight=8192"];

pub fn trials() -> Vec<Trial> {
    let scene = |name: &str, play: fn()| {
        Trial::test(format!("take_over::{name}"), move || {
            play();
            Ok(())
        })
    };
    vec![
        scene("loses_no_query_and_no_connection", loses_nothing),
        scene("where_nobody_runs_is_a_plain_start", nobody_runs),
        scene("leaves_one_that_takes_over_waiting_for_sigterm", predecessor_waits),
        scene("to_another_port_serves_there", other_port),
        scene("by_one_of_another_state_changes_nothing", other_state),
        scene("by_one_that_is_killed_changes_nothing_or_is_as_a_crash", killed_meanwhile),
    ]
}

/// With so many questions a second, while `work` is done, and for a moment before and after.
fn under_questions(world: &World, seconds: u32, work: impl FnOnce()) -> Paced {
    let pace = Pace {
        server: Family::V4.kube_dns(),
        same: "one.example.net.".into(),
        fresh: "n{}.fresh.example.org.".into(),
        per_second: PER_SECOND,
        for_ms: u64::from(seconds) * 1000,
    };
    let asking = world.pay.begin(Request::Pace(pace));
    std::thread::sleep(Duration::from_millis(300));
    work();
    match asking.wait() {
        Reply::Paced(paced) => paced,
        other => panic!("{other:?}"),
    }
}

fn start_successor(world: &World, more: &[&str]) -> Daemon {
    let daemon = Daemon::launch(world, &[], &[&["--take-over"], more].concat());
    daemon.wait_for_log("took over from the namegate that ran before");
    daemon.wait_ready();
    daemon
}

#[track_caller]
fn ends_well(mut daemon: Daemon) {
    let ended = daemon.ends_within(LIMIT);
    assert!(ended.is_some_and(|status| status.success()), "it ended so: {ended:?}\n{}", daemon.log().join("\n"));
}

fn loses_nothing() {
    let times: u32 = std::env::var(MORE).ok().and_then(|text| text.parse().ok()).unwrap_or(TIMES);
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &BURST);
    let fresh = [Family::V4, Family::V6].map(|family| family.outside(103));
    scene.world.outside.say_addresses("*.fresh.example.org", &fresh, 300);
    scene.stands();
    let kept = scene.world.pay.open(SocketAddr::new(Family::V4.outside(ONE.1), 443)).expect("it is allowed");
    let before = scene.daemon.take().expect("it runs");
    let control = under_questions(&scene.world, 1, || before.kill());
    assert!(!control.lost.is_empty(), "INVALID: nothing is lost where nobody answers");
    scene.daemon = Some(Daemon::start(&scene.world, &BURST));
    let mut slowest_us = 0;
    for time in 0..times {
        let old = scene.daemon.take().expect("one runs");
        let paced = under_questions(&scene.world, 3, || scene.daemon = Some(start_successor(&scene.world, &BURST)));
        let (lost, some) = (paced.lost.len(), &paced.lost[..paced.lost.len().min(5)]);
        assert_eq!(lost, 0, "take-over {time}: of {} were lost, as: {some:?}", paced.asked);
        assert!(paced.asked > u64::from(PER_SECOND), "INVALID: only {} questions", paced.asked);
        slowest_us = slowest_us.max(paced.slowest_us);
        if time == 0 {
            ends_well(old); // it was not told to take over
        } else {
            assert_eq!(old.terminate().code(), Some(0));
        }
        assert_eq!(scene.world.pay.exchange(kept), Reach::Reached);
        scene.stands();
    }
    println!("{{\"take_overs\":{times},\"lost\":0,\"slowest_ms\":{}}}", slowest_us / 1000);
}

fn nobody_runs() {
    let scene = Scene::unstarted(Topology::Routed, TWO_ITEMS);
    let daemon = Daemon::start(&scene.world, &["--take-over"]);
    let scene = Scene { daemon: Some(daemon), ..scene };
    scene.stands();
    assert!(!scene.daemon().log().iter().any(|line| line.contains("took over")));
}

/// Its supervisor would start it again beside its successor.
fn predecessor_waits() {
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, &["--take-over"]);
    let Scene { world, daemon } = scene;
    let mut old = daemon.expect("it runs");
    let scene = Scene { daemon: Some(start_successor(&world, &[])), world };
    old.wait_for_log("another namegate has taken over; this one waits for SIGTERM");
    scene.stands();
    assert!(old.runs());
    old.reload();
    std::thread::sleep(Duration::from_millis(200));
    assert!(old.runs(), "SIGHUP means nothing to it");
    assert_eq!(old.terminate().code(), Some(0));
    scene.stands();
    assert!(scene.daemon().page("/livez").contains("alive"));
}

fn other_port() {
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    let Scene { world, daemon } = scene;
    let old = daemon.expect("it runs");
    let new = start_successor(&world, &["--set", "dns.port=15999"]);
    ends_well(old);
    let scene = Scene { daemon: Some(new), world };
    scene.stands();
    let ports = scene.world.must("node", "ss -Hlntu");
    assert!(ports.contains(":15999") && !ports.contains(":15353"), "{ports}");
    assert!(ports.contains("127.0.0.1:9090"), "{ports}");
}

fn other_state() {
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    let at = |name: &str| scene.world.directory.join(name).display().to_string();
    let mut command = second(&scene, [&at("run"), &at("other"), &at("bpf/namegate")], "15353");
    let ended = output({
        command.arg("--take-over");
        command
    })
    .expect("it starts");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(1) && said.contains("they must be the same"), "{said}");
    scene.stands();
}

fn killed_meanwhile() {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    let kept = scene.world.pay.open(SocketAddr::new(Family::V4.outside(ONE.1), 443)).expect("it is allowed");
    for step in 0..12 {
        let new = Daemon::launch(&scene.world, &[], &["--take-over"]);
        std::thread::sleep(Duration::from_millis(step * 15));
        new.kill();
        std::thread::sleep(Duration::from_millis(700)); // if it was told to go, it has
        scene.sees(Family::V4, ONE, 5432, Reach::Refused);
        assert_eq!(scene.world.pay.exchange(kept), Reach::Reached);
        if !scene.daemon.as_mut().is_some_and(Daemon::runs) {
            scene.daemon = Some(Daemon::start(&scene.world, &[]));
        }
        scene.stands();
    }
}
