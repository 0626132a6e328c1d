//! `namegate sidecar --init`: queries to any resolver are answered beside the workload, and what ends that.

use std::net::SocketAddr;
use std::time::Duration;

use super::{ALLOWED, DENIED, FAMILIES, FOREIGN, PORT, Pod, leaked, question};
use crate::lab::agent::sibling::Attempt;
use crate::lab::agent::{Question, Reach};
use crate::lab::world::{Family, PODS};
use crate::lab::{daemon, files_below};

fn init(pod: &Pod, more: &[&str]) -> (bool, String) {
    let interface = ["--init", "--set", "sidecar.interface=eth0"];
    daemon::run(&pod.world.namespace("pay"), &pod.world.directory, "sidecar", &[&interface, more].concat())
}

pub(super) fn redirected() {
    let pod = Pod::new();
    pod.is_open();
    for _ in 0..2 {
        let (fine, said) = init(&pod, &[]); // the second time nothing is left to do
        assert!(fine, "{said}");
    }
    for family in FAMILIES {
        let seen = pod.world.pay.connect(SocketAddr::new(family.outside(DENIED.1), PORT));
        assert_eq!(seen, Reach::Silent, "nothing leaves before there is a sidecar");
    }
    let daemon = pod.start(&[]);
    let wire = pod.world.node.capture(PODS[0].host);
    let sibling = pod.sibling(0);
    for family in FAMILIES {
        for tcp in [false, true] {
            // The pod's resolv.conf is as it was: the cluster's DNS is asked, and the proxy answers in its name.
            let said = sibling.ask_as(Question { tcp, ..question(family.kube_dns(), ALLOWED.0, family) });
            assert_eq!(said.addresses, [family.outside(ALLOWED.1)], "TCP {tcp}: {said:?}");
        }
        pod.sees(family, ALLOWED, Reach::Reached);
        pod.sees(family, DENIED, Reach::Refused);
        pod.asks(family, ALLOWED);
        let foreign = SocketAddr::new(family.outside(FOREIGN), 53);
        let said = sibling.ask_as(question(foreign, ALLOWED.0, family));
        assert!(said.addresses.is_empty(), "nobody allows that server: {said:?}");
        // By a port of the proxy's own a query leaves, and ends at the programs.
        let from = SocketAddr::new(family.of(&PODS[0]), 61_234);
        sibling.tries(Attempt::From { from, to: foreign, freebind: false });
        sibling.tries(Attempt::From { from, to: family.kube_dns(), freebind: false });
        sibling.tries(Attempt::ByDevice { interface: "eth0".into(), to: family.kube_dns() });
    }
    // As a program does that knows nothing of it.
    let (fine, said) = pod.world.run_in_pod("pay", &["getent", "ahostsv4", ALLOWED.0]);
    assert!(fine && said.contains(&Family::V4.outside(ALLOWED.1).to_string()), "{said}");
    std::thread::sleep(Duration::from_millis(300));
    let leaks = leaked(&wire.frames(), &FAMILIES.map(|family| family.outside(ALLOWED.1)));
    assert!(leaks.is_empty(), "{} frames got out: {leaks:#?}", leaks.len());
    drop(wire);
    // A restart finds the rules, and the port.
    daemon.kill();
    let _daemon = pod.start(&[]);
    let said = sibling.ask_as(Question { tcp: true, ..question(Family::V4.kube_dns(), ALLOWED.0, Family::V4) });
    assert_eq!(said.addresses, [Family::V4.outside(ALLOWED.1)]);
}

/// By sysctl, as some clusters set it: the kernel has IPv6, and this network namespace hasn't.
pub(super) fn without_v6() {
    let pod = Pod::new();
    pod.world.must("pay", "sysctl -eqw net.ipv6.conf.all.disable_ipv6=1");
    let (fine, said) = init(&pod, &[]);
    assert!(fine, "{said}");
    let daemon = pod.start(&[]);
    daemon.wait_for_log("every resolver, by FIB rules");
    let said = pod.world.pay.ask(Family::V4.kube_dns(), ALLOWED.0, "A");
    assert_eq!(said.addresses, [Family::V4.outside(ALLOWED.1)], "{said:?}");
    pod.sees(Family::V4, ALLOWED, Reach::Reached);
    pod.sees(Family::V4, DENIED, Reach::Refused);
}

/// Rules and routes by which queries are brought to the sidecar.
fn redirecting(pod: &Pod) -> usize {
    let lines = |line: &str| pod.world.must("pay", line);
    let routes = |family: &str| lines(&format!("ip {family} route show table all"));
    let text = [lines("ip -4 rule"), lines("ip -6 rule"), routes("-4"), routes("-6")].concat();
    text.lines().filter(|line| ["53053", "5301:", "5302:"].iter().any(|part| line.contains(part))).count()
}

/// By the command after SIGTERM, and by SIGTERM where `detach` is set.
pub(super) fn detached() {
    let pod = Pod::new();
    pod.world.must("pay", "ip rule add priority 5301 to 203.0.113.99 lookup main");
    for by_command in [true, false] {
        let (fine, said) = init(&pod, &[]);
        assert!(fine, "{said}");
        let daemon = pod.start(if by_command { &[] } else { &["--set", "detach=true"] });
        // Two rules a protocol and the route, in both families; and the one that is not ours.
        assert_eq!(redirecting(&pod), 11);
        for family in FAMILIES {
            let said = pod.world.pay.ask(family.kube_dns(), ALLOWED.0, family.qtype());
            assert_eq!(said.addresses, [family.outside(ALLOWED.1)], "{said:?}");
            pod.sees(family, DENIED, Reach::Refused);
        }
        assert!(daemon.terminate().success());
        if by_command {
            assert_eq!(redirecting(&pod), 11, "an end by itself takes nothing away");
            pod.sees(Family::V4, DENIED, Reach::Refused);
            let (fine, said) = daemon::run(&pod.world.namespace("pay"), &pod.world.directory, "detach", &[]);
            assert!(fine && !said.contains("nothing was attached"), "{said}");
        }
        let rules = pod.world.must("pay", "ip -4 rule");
        assert_eq!(redirecting(&pod), 1, "{rules}");
        assert!(rules.contains("5301:\tfrom all to 203.0.113.99 lookup main"), "another's rule is gone: {rules}");
        assert!(!pod.world.must("pay", "nft list tables").contains("namegate"));
        let pins = files_below(&pod.world.directory.join("bpf/namegate"));
        assert!(pins.is_empty(), "{pins:?}");
        pod.is_open();
        for family in FAMILIES {
            let said = pod.world.pay.ask(SocketAddr::new(family.outside(FOREIGN), 53), DENIED.0, family.qtype());
            assert_eq!(said.addresses, [family.outside(DENIED.1)], "whoever is asked answers: {said:?}");
        }
    }
}
