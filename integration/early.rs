//! The XDP program of `enforcement.attach = "xdp"`: when it is there, and what it must leave to the programs behind it.
//! That frames of the classes of [`crate::wire`] end at it is shown there.

use std::fs;
use std::time::Duration;

use libtest_mimic::Trial;

use crate::lab::agent::Reach;
use crate::lab::frame::{ethernet, ethertype, ip, udp};
use crate::lab::world::{Family, NODE_MAC, PODS};
use crate::lab::{Daemon, Topology, clock, daemon, files_below};
use crate::scenes::{ONE, Scene, TWO_ITEMS};

const XDP: &[&str] = &["--set", "enforcement.attach=xdp"];
const LIMIT: Duration = Duration::from_secs(5);

pub fn trials() -> Vec<Trial> {
    let scene = |name: &str, play: fn()| {
        Trial::test(format!("early::{name}"), move || {
            play();
            Ok(())
        })
    };
    vec![
        scene("it_outlives_the_process_and_goes_with_the_setting_and_with_detach", comes_and_goes),
        scene("taken_away_by_hand_it_is_back_within_5_s", taken_away),
        scene("it_is_on_an_interface_that_is_made_again", made_again),
        scene("what_policy_denies_goes_early_only_where_nobody_is_told", denied),
        scene("an_audited_endpoint_is_let_through", audited),
    ]
}

fn comes_and_goes() {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, XDP);
    scene.stands();
    let first = program(&scene).expect("it is attached");
    let (_, status) = scene.daemon().run("status", &[]);
    assert!(status.contains("xdp+tcx"), "{status}");
    scene.kill();
    assert_eq!(program(&scene), Some(first), "it outlives the process");
    scene.daemon = Some(Daemon::start(&scene.world, XDP));
    scene.stands();
    let second = program(&scene).expect("it is attached");
    assert_ne!(second, first, "the new process has put its own in place");
    scene.kill();
    scene.daemon = Some(Daemon::start(&scene.world, &[]));
    assert_eq!(program(&scene), None, "nobody asked for it");
    scene.stands();
    scene.kill();
    scene.daemon = Some(Daemon::start(&scene.world, XDP));
    assert!(program(&scene).is_some());
    scene.kill();
    let (fine, said) = daemon::run(&scene.world.namespace("node"), &scene.world.directory, "detach", &[]);
    assert!(fine, "{said}");
    assert_eq!(program(&scene), None, "detach removes it");
}

fn taken_away() {
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, XDP);
    let pins = files_below(&scene.world.directory.join("bpf/namegate"));
    let early: Vec<&String> = pins.iter().filter(|pin| pin.ends_with("_early")).collect();
    assert_eq!(early.len(), 2, "{pins:?}");
    scene.daemon().signal(libc::SIGSTOP);
    for pin in early {
        fs::remove_file(pin).expect("it is there");
    }
    let gone = clock::wait_until(Duration::from_secs(2), || program(&scene).is_none());
    assert!(gone, "INVALID: it is held by something else");
    scene.daemon().signal(libc::SIGCONT);
    assert!(clock::wait_until(LIMIT, || program(&scene).is_some()), "it did not come back");
    let counted = || scene.daemon().metric("namegate_repairs_total", &["what=\"detached\""]) >= 1.0;
    assert!(clock::wait_until(LIMIT, counted), "it was not counted");
    scene.daemon().wait_ready();
    scene.stands();
}

fn made_again() {
    let scene = Scene::new(Topology::Bridged, TWO_ITEMS, XDP);
    let first = program(&scene).expect("it is attached");
    scene.world.must("node", &format!("ip link del {}", PODS[0].host));
    scene.world.remake_pod_interface(0);
    assert!(clock::wait_until(LIMIT, || program(&scene) == Some(first)), "it is not on the new interface");
    scene.comes_to(Duration::from_secs(10), ONE, 5432, Reach::Refused);
}

/// What comes past XDP is seen by packet sockets of the node, also when TC then drops it.
fn denied() {
    let seen = |settings: &[&str]| {
        let scene = Scene::new(Topology::Routed, TWO_ITEMS, settings);
        scene.asks(Family::V4, ONE);
        scene.sees(Family::V4, ONE, 443, Reach::Reached);
        sent(&scene, Family::V4) + sent(&scene, Family::V6)
    };
    assert_eq!(seen(&["--set", "enforcement.attach=tcx", "--set", "enforcement.reject=false"]), 2, "INVALID");
    assert_eq!(seen(&["--set", "enforcement.attach=xdp", "--set", "enforcement.reject=false"]), 0);
    assert_eq!(seen(XDP), 2, "TC answers it");
}

fn audited() {
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, &[XDP, &["--set", "enforcement.reject=false"]].concat());
    scene.sees(Family::V4, ONE, 5432, Reach::Silent);
    drop(scene);
    let audit = ["--set", "enforcement.reject=false", "--audit"];
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, &[XDP, &audit].concat());
    for family in [Family::V4, Family::V6] {
        assert_eq!(sent(&scene, family), 1);
        scene.sees(family, ONE, 5432, Reach::Reached);
    }
}

/// How many of one datagram to a denied address come past XDP on the pod's interface.
#[track_caller]
fn sent(scene: &Scene, family: Family) -> usize {
    const MARK: &[u8] = b"[early denied]";
    let (from, to) = (family.of(&PODS[0]), family.outside(201));
    let packet = ip(from, to, 17, &udp((from, 4_000), (to, 9), MARK));
    let capture = scene.world.node.capture(PODS[0].host);
    scene.world.pay.inject("eth0", &[ethernet(NODE_MAC, PODS[0].mac, ethertype(from), &packet)]);
    std::thread::sleep(Duration::from_millis(300));
    let holds = |frame: &[u8]| frame.windows(MARK.len()).any(|window| window == MARK);
    capture.frames().iter().filter(|frame| !frame.outgoing && holds(&frame.octets())).count()
}

/// The number of the XDP program on the first pod's interface.
fn program(scene: &Scene) -> Option<u32> {
    let shown = scene.world.must("node", &format!("ip link show dev {}", PODS[0].host));
    let (_, number) = shown.split_once("prog/xdp id ")?;
    number.split_whitespace().next()?.parse().ok()
}
