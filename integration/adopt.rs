//! Connections that were open before the first start, with `enforcement.adopt` and without.

use std::net::SocketAddr;
use std::time::Duration;

use libtest_mimic::Trial;

use crate::lab::Topology;
use crate::lab::agent::Reach;
use crate::lab::clock::wait_until;
use crate::lab::daemon::Daemon;
use crate::lab::world::Family;
use crate::scenes::{ONE, Scene, TWO_ITEMS};

/// Long enough for a restart and what is tried in it.
const WINDOW: Duration = Duration::from_secs(12);
/// Longer than between two sweeps of flows.
const SWEPT: Duration = Duration::from_secs(6);
const OBSERVE: [&str; 2] = ["--set", "enforcement.adopt=observe 12s"];

pub fn trials() -> Vec<Trial> {
    let scene = |name: &str, play: fn()| {
        Trial::test(format!("adopt::{name}"), move || {
            play();
            Ok(())
        })
    };
    vec![
        scene("what_was_open_goes_on_for_a_while_and_then_as_policy_says", observed),
        scene("what_was_open_ends_unless_it_is_to_be_observed", cut),
        scene("only_the_first_start_on_a_node_adopts", later_start),
    ]
}

/// Opened while nobody guards: one by a name that policy allows, one on a port that it doesn't.
fn open_both(scene: &Scene) -> [u32; 2] {
    [443, 5432].map(|port| {
        let to = SocketAddr::new(Family::V4.outside(ONE.1), port);
        scene.world.pay.open(to).expect("nobody guards")
    })
}

fn observed() {
    let mut scene = Scene::unstarted(Topology::Routed, TWO_ITEMS);
    let [allowed, denied] = open_both(&scene);
    let [_, idle] = open_both(&scene);
    scene.daemon = Some(Daemon::start(&scene.world, &OBSERVE));
    scene.daemon().wait_for_log("TCP connections from before the first start go on");
    let said = scene.daemon().run("status", &[]).1;
    assert!(said.contains("adopting: for "), "{said}");
    for connection in [allowed, denied, idle] {
        assert_eq!(scene.world.pay.exchange(connection), Reach::Reached);
    }
    scene.sees(Family::V4, ONE, 443, Reach::Refused); // nothing new: the name was not asked for
    let told = |scene: &Scene| scene.daemon().flows().iter().any(|flow| flow.to_string().contains("adopted"));
    assert!(wait_until(Duration::from_secs(5), || told(&scene)), "no flow says that it is adopted");
    scene.kill();
    scene.daemon = Some(Daemon::start(&scene.world, &OBSERVE));
    assert_eq!(scene.world.pay.exchange(denied), Reach::Reached, "a restart is none of its business");
    scene.stands();
    let over = || scene.daemon().log().iter().any(|line| line.contains("end now where policy does not allow them"));
    assert!(wait_until(WINDOW * 2, over), "{:?}", scene.daemon().log());
    assert_ne!(scene.world.pay.exchange(denied), Reach::Reached);
    let forgotten = || !scene.daemon().run("status", &[]).1.contains("adopting");
    assert!(wait_until(Duration::from_secs(5), forgotten));
    assert_eq!(scene.world.pay.exchange(allowed), Reach::Reached, "its name was asked for meanwhile");
    // What the kernel still has of one that says nothing is swept later, and is not told as if it went on.
    std::thread::sleep(SWEPT);
    let log = scene.daemon().log();
    let after = log.iter().skip_while(|line| !line.contains("end now where policy does not allow them"));
    let told: Vec<&String> = after.filter(|line| line.contains("goes on")).collect();
    assert!(told.is_empty(), "{told:?}");
    assert_ne!(scene.world.pay.exchange(idle), Reach::Reached);
}

fn cut() {
    let mut scene = Scene::unstarted(Topology::Routed, TWO_ITEMS);
    let [allowed, denied] = open_both(&scene);
    assert_eq!(scene.world.pay.exchange(denied), Reach::Reached);
    scene.daemon = Some(Daemon::start(&scene.world, &[]));
    assert_ne!(scene.world.pay.exchange(denied), Reach::Reached);
    assert_ne!(scene.world.pay.exchange(allowed), Reach::Reached, "nobody knows its name");
}

/// After `namegate detach`, or with the pins gone in a reboot, the state tells that a node is not new.
fn later_start() {
    let mut scene = Scene::unstarted(Topology::Routed, TWO_ITEMS);
    let daemon = Daemon::start(&scene.world, &["--detach"]);
    assert_eq!(daemon.terminate().code(), Some(0));
    let [_, denied] = open_both(&scene);
    scene.daemon = Some(Daemon::start(&scene.world, &OBSERVE));
    assert_ne!(scene.world.pay.exchange(denied), Reach::Reached);
}
