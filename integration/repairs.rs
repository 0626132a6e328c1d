//! What somebody takes away by hand comes back; two instances; a proxy that is dead for long.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use libtest_mimic::Trial;

use crate::lab::agent::{Reach, Request};
use crate::lab::daemon::Daemon;
use crate::lab::process::{inside, output};
use crate::lab::programs::{DROP_IPV4, PASS, attach_other, detach_link, link_pin, pin_program};
use crate::lab::world::{Family, PODS};
use crate::lab::{Topology, clock, files_below};
use crate::scenes::{ONE, Scene, TWO_ITEMS};

/// How long it may take until what was taken away is back.
const LIMIT: Duration = Duration::from_secs(5);

pub fn trials() -> Vec<Trial> {
    let scene = |name: &str, play: fn()| {
        Trial::test(format!("repair::{name}"), move || {
            play();
            Ok(())
        })
    };
    vec![
        scene("a_link_detached_by_hand_is_back_within_5_s", || {
            comes_back("tcx", "detached", |scene| detach_link(&scene.world, "from_pod"));
        }),
        scene("both_links_detached_by_hand_are_back_within_5_s", || {
            comes_back("tcx", "detached", |scene| {
                detach_link(&scene.world, "from_pod");
                detach_link(&scene.world, "to_pod");
            });
        }),
        scene("an_unlinked_pin_is_back_within_5_s", || {
            comes_back("tcx", "detached", |scene| {
                fs::remove_file(link_pin(&scene.world, "from_pod")).expect("it is there");
            });
        }),
        scene("a_filter_deleted_by_hand_is_back_within_5_s", || {
            comes_back("clsact", "detached", |scene| {
                scene.world.must("node", &format!("tc filter del dev {} ingress pref 1", PODS[0].host));
            });
        }),
        scene("a_qdisc_deleted_by_hand_is_back_within_5_s", || {
            comes_back("clsact", "detached", |scene| {
                scene.world.must("node", &format!("tc qdisc del dev {} clsact", PODS[0].host));
            });
        }),
        scene("a_filter_replaced_by_another_agent_is_back_within_5_s", || {
            comes_back("clsact", "detached", |scene| {
                pin_program(&scene.world, "other", &PASS);
                let path = scene.world.directory.join("bpf/other");
                let line = format!(
                    "tc filter replace dev {} ingress pref 1 handle 1 bpf direct-action object-pinned {}",
                    PODS[0].host,
                    path.display()
                );
                scene.world.must("node", &line);
            });
        }),
        scene("another_agents_program_in_front_is_put_behind_within_5_s", || {
            comes_back("tcx", "displaced", |scene| attach_other(&scene.world, "other", &PASS, true));
        }),
        scene("another_agents_verdict_still_counts_before_and_after_ours", other_agents),
        scene("what_the_pod_receives_is_guarded_again_with_tcx", || {
            inbound_comes_back("tcx", |scene| detach_link(&scene.world, "to_pod"));
        }),
        scene("what_the_pod_receives_is_guarded_again_with_clsact", || {
            inbound_comes_back("clsact", |scene| {
                scene.world.must("node", &format!("tc filter del dev {} egress pref 1", PODS[0].host));
            });
        }),
        scene("pins_of_maps_are_back_and_the_next_start_finds_them", map_pins),
        scene("of_two_instances_the_second_says_so_and_leaves_nothing", two_instances),
        scene("two_with_directories_of_their_own_leave_each_other_alone", two_apart),
        scene("what_another_user_could_change_is_not_used", owned_by_another),
        scene("a_dead_proxys_endpoint_keeps_its_connections_coming", dead_for_long),
    ]
}

/// What is denied to the pod, at an address that is granted on another port.
fn denied() -> SocketAddr {
    SocketAddr::new(Family::V4.outside(ONE.1), 5432)
}

/// `harm` lets denied connections through; namegate finds it, says so, counts it, and what was opened meanwhile ends.
fn comes_back(attach: &str, counted: &str, harm: impl FnOnce(&Scene)) {
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, &["--set", &format!("enforcement.attach={attach}")]);
    let (daemon, pay) = (scene.daemon(), &scene.world.pay);
    scene.stands();
    let allowed = pay.open(SocketAddr::new(Family::V4.outside(ONE.1), 443)).expect("it is allowed");
    // Datagrams: of a connection the program on the other way would refuse the answer.
    scene.world.outside.done(Request::ServeUdp { at: denied() });
    daemon.signal(libc::SIGSTOP);
    harm(&scene);
    let open = clock::wait_until(Duration::from_secs(2), || pay.datagram(denied()) == Reach::Reached);
    assert!(open, "INVALID: the harm does not let through what is denied");
    let smuggled = pay.open_udp(denied()).expect("it is open");
    assert_eq!(pay.exchange(smuggled), Reach::Reached);
    daemon.signal(libc::SIGCONT);
    scene.comes_to(LIMIT, ONE, 5432, Reach::Refused);
    assert_ne!(pay.exchange(smuggled), Reach::Reached, "what was opened meanwhile is judged by the rules");
    assert_eq!(pay.exchange(allowed), Reach::Reached);
    repaired(&scene, counted);
    scene.stands();
}

/// It was counted and logged, and all is well.
#[track_caller]
fn repaired(scene: &Scene, counted: &str) {
    let daemon = scene.daemon();
    let label = format!("what=\"{counted}\"");
    let count = || daemon.metric("namegate_repairs_total", &[&label]);
    assert!(clock::wait_until(LIMIT, || count() >= 1.0), "{} repairs", count());
    daemon.wait_for_log("without enforcement");
    daemon.wait_ready();
    let many = count();
    std::thread::sleep(Duration::from_secs(3)); // a look later
    assert!((count() - many).abs() < 0.5, "it is repaired again and again");
}

fn other_agents() {
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, &["--set", "enforcement.attach=tcx"]);
    scene.stands();
    for (name, first) in [("after", false), ("before", true)] {
        attach_other(&scene.world, name, &DROP_IPV4, first);
        if first {
            repaired(&scene, "displaced");
        }
        // Refused by ours, which is first; what ours lets through, the other one drops.
        scene.sees(Family::V4, ONE, 5432, Reach::Refused);
        assert_ne!(scene.world.pay.connect(SocketAddr::new(Family::V4.outside(ONE.1), 443)), Reach::Reached, "{name}");
        scene.sees(Family::V6, ONE, 443, Reach::Reached);
        fs::remove_file(scene.world.directory.join(format!("bpf/{name}-link"))).expect("it is there");
        scene.comes_to(Duration::from_secs(3), ONE, 443, Reach::Reached);
    }
    scene.stands();
}

/// What the pod receives is shut but for one port; `harm` opens it.
fn inbound_comes_back(attach: &str, harm: impl FnOnce(&Scene)) {
    let policy = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: inbound, namespace: payments}\n\
                  spec:\n  endpointSelector: {matchLabels: {app: payment-processor}}\n  ingress:\n  \
                  - fromEntities: [all]\n    toPorts: [{ports: [{port: \"8080\", protocol: TCP}]}]\n";
    let mut scene = Scene::unstarted(Topology::Routed, "");
    fs::write(scene.policy_file(), policy).expect("a file can be written");
    let at = |port: u16| SocketAddr::new(Family::V4.of(&PODS[0]), port);
    for port in [8080, 8081] {
        scene.world.pay.done(Request::ServeTcp { at: at(port) });
    }
    scene.daemon = Some(Daemon::start(&scene.world, &["--set", &format!("enforcement.attach={attach}")]));
    let outside = &scene.world.outside;
    assert_eq!((outside.connect(at(8080)), outside.connect(at(8081))), (Reach::Reached, Reach::Silent));
    let allowed = outside.open(at(8080)).expect("it is allowed");
    scene.daemon().signal(libc::SIGSTOP);
    harm(&scene);
    let open = clock::wait_until(Duration::from_secs(2), || outside.connect(at(8081)) == Reach::Reached);
    assert!(open, "INVALID: the harm does not let through what is denied");
    let smuggled = outside.open(at(8081)).expect("it is open");
    scene.daemon().signal(libc::SIGCONT);
    let shut = clock::wait_until(LIMIT, || outside.connect(at(8081)) == Reach::Silent);
    assert!(shut, "still open after {LIMIT:?}");
    assert_ne!(outside.exchange(smuggled), Reach::Reached, "what was opened meanwhile is judged by the rules");
    assert_eq!(outside.exchange(allowed), Reach::Reached);
    repaired(&scene, "detached");
}

fn map_pins() {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    let connection = scene.world.pay.open(SocketAddr::new(Family::V4.outside(ONE.1), 443)).expect("it is allowed");
    let pins = scene.pins();
    let maps: Vec<&String> = pins.iter().filter(|pin| pin.contains("/maps/")).collect();
    assert!(maps.len() > 15, "{pins:?}");
    maps.iter().for_each(|pin| fs::remove_file(pin).expect("it is there"));
    assert!(clock::wait_until(LIMIT, || scene.pins() == pins), "{:?}", scene.pins());
    assert!(scene.daemon().metric("namegate_repairs_total", &["what=\"pin\""]) >= 1.0);
    scene.kill();
    scene.restart();
    assert_eq!(scene.world.pay.exchange(connection), Reach::Reached, "adopted, not made anew");
    scene.sees(Family::V4, ONE, 443, Reach::Reached);
    scene.sees(Family::V4, ONE, 5432, Reach::Refused);
}

/// The command of a second node, of another interface than the first one's, with these directories and this port.
pub fn second(scene: &Scene, [run, state, pins]: [&str; 3], port: &str) -> std::process::Command {
    let program = crate::lab::daemon::program();
    let mut command = inside(&scene.world.namespace("node"), program.to_str().expect("a path in UTF-8"));
    command.args(["node", "--run-dir", run, "--state-dir", state, "--pin-dir", pins]);
    command.args(["--set", &format!("dns.port={port}"), "--node-name", "demo-node", "--snapshot"]);
    command.arg(scene.world.directory.join("snapshot"));
    command
}

/// Each has a floor of its own: nobody finds it changed, and the end of one leaves the other's.
fn two_apart() {
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    let own = |name: &str| scene.world.directory.join("second").join(name).display().to_string();
    let pins = scene.world.directory.join("bpf/second").display().to_string();
    let mut command = second(&scene, [&own("run"), &own("state"), &pins], "15354");
    command.args([
        "--set",
        "dns.local_addresses_v4=198.18.200.0/24",
        "--set",
        "dns.local_addresses_v6=2001:db8:5::/120",
    ]);
    command.args(["--detach", "--endpoint", "veth-none=payments/none"]);
    command.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut other = crate::lab::process::spawn(command).expect("it starts");
    let tables = || scene.world.must("node", "nft list tables").matches("namegate_").count();
    assert!(clock::wait_until(LIMIT, || tables() == 4), "two floors of two families: {}", tables());
    std::thread::sleep(Duration::from_secs(3));
    let repaired = scene.daemon().metric("namegate_repairs_total", &["what=\"floor\""]);
    assert!(repaired == 0.0, "the floor was written {repaired} times");
    // SAFETY: a signal to a child of ours that has not been waited for.
    unsafe { libc::kill(other.id() as i32, libc::SIGTERM) };
    assert!(other.wait().expect("a child").success());
    assert_eq!(tables(), 2, "its floor goes with it");
    scene.stands();
}

fn owned_by_another() {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    scene.kill();
    let at = |name: &str| scene.world.directory.join(name);
    let version = format!("bpf/namegate/v{}", namegate::kernel::abi::VERSION);
    for directory in ["run", "state", &version, &format!("{version}/links"), &format!("{version}/maps")] {
        let chown = |user| std::os::unix::fs::chown(at(directory), Some(user), None).expect("root may");
        chown(65_534);
        let [run, state, pins] = ["run", "state", "bpf/namegate"].map(|name| at(name).display().to_string());
        let ended = output(second(&scene, [&run, &state, &pins], "15353")).expect("it starts");
        chown(0);
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(1) && said.contains("it belongs to user 65534"), "{directory}: {said}");
    }
    scene.sees(Family::V4, ONE, 5432, Reach::Refused);
    scene.restart();
    scene.stands();
}

fn two_instances() {
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    let bpf = files_below(&scene.world.directory.join("bpf"));
    let addresses = scene.world.must("node", "ip address show dev lo");
    let own = |name: &str| scene.world.directory.join(name).display().to_string();
    let (run, state, pins) = (own("run"), own("state"), own("bpf/namegate"));
    let (run2, state2, pins2) = (own("second/run"), own("second/state"), own("bpf/second"));
    let cases = [
        ([&run, &state, &pins], "15353", "another namegate runs with run_dir"),
        ([&run2, &state, &pins2], "15354", "another namegate runs with state_dir"),
        ([&run2, &state2, &pins], "15354", "another namegate runs with pin_dir"),
        ([&run2, &state2, &pins2], "15353", "15353 is in use; it must be free"),
    ];
    for ([run, state, pins], port, said) in cases {
        let mut command = second(&scene, [run, state, pins], port);
        command.arg("--endpoint").arg(format!("{}=payments/{}", PODS[0].host, PODS[0].name));
        let ended = output(command).expect("it starts");
        let text = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(1) && text.contains(said), "{:?}: {text}", ended.status);
        let left = files_below(&scene.world.directory.join("bpf"));
        assert_eq!(left, bpf, "{said}");
        assert!(!scene.world.directory.join("second").exists(), "{said}");
        assert!(!scene.world.directory.join("bpf/second").exists(), "{said}");
        assert_eq!(scene.world.must("node", "ip address show dev lo"), addresses, "{said}");
        scene.stands();
    }
    let (fine, said) = scene.daemon().run("detach", &[]);
    assert!(!fine && said.contains("another namegate runs with run_dir"), "{said}");
    scene.stands();
}

/// Connections that end at once fill the budget of an endpoint whose proxy is dead, until the kernel sweeps by itself.
fn dead_for_long() {
    let limit = 64;
    let settings = [
        ("flows_per_endpoint", limit.to_string()),
        ("closed_timeout", "1s".into()),
        ("syn_timeout", "1s".into()),
        ("established_timeout", "1m".into()),
    ];
    let flags: Vec<String> = settings.iter().map(|(key, value)| format!("enforcement.{key}={value}")).collect();
    let flags: Vec<&str> = flags.iter().flat_map(|flag| ["--set", flag.as_str()]).collect();
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &flags);
    scene.stands();
    scene.kill();
    let to = SocketAddr::new(Family::V4.outside(ONE.1), 443);
    let pay = &scene.world.pay;
    for round in 0..2 {
        let passed = (0..2 * limit).take_while(|_| pay.connect(to) == Reach::Reached).count();
        assert!(passed < 2 * limit, "INVALID: the budget of {limit} is never full");
        // 5 s after the last beat, then every 10 s.
        let again = clock::wait_until(Duration::from_secs(13), || pay.connect(to) == Reach::Reached);
        assert!(again, "round {round}: nothing passes 13 s after the budget was full");
    }
    scene.sees(Family::V4, ONE, 5432, Reach::Refused);
    scene.restart();
    scene.stands();
}
