//! What another container of the pod tries, with capabilities and without.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::{
    ALLOWED, DENIED, FAMILIES, FOREIGN, LIMIT, PORT, Pod, SHARED_PIDS, WORKLOAD, asking, counts, is_advisory, leaked,
    local, question,
};
use crate::lab::agent::client::Agent;
use crate::lab::agent::sibling::Attempt;
use crate::lab::agent::{Question, Reach, hex};
use crate::lab::frame::{arp, ethernet, ethertype, ip, udp};
use crate::lab::world::{Family, NODE_MAC, PODS};
use crate::lab::{Daemon, clock};

/// What the kernel itself says to what a container without capabilities may not do.
const BY_THE_KERNEL: [i32; 4] = [libc::EPERM, libc::ENETUNREACH, libc::EADDRNOTAVAIL, libc::EINVAL];
const NET_RAW: u64 = 1 << 13;
/// What the kernel says to a frame from a packet socket: taken, or taken and dropped on the way (packet(7)).
const HAND_OVER: [i32; 2] = [0, libc::ENOBUFS];
/// A port on which nobody echoes.
const NOBODY: u16 = 4_444;

/// What a container without capabilities tries; each with what comes of it while nobody guards: something that is seen on
/// the wire, or 0.
fn tries() -> Vec<(&'static str, Attempt)> {
    let mut tries = Vec::new();
    for family in FAMILIES {
        let at = |last: u8, port: u16| SocketAddr::new(family.outside(last), port);
        let own = |port: u16| SocketAddr::new(family.of(&PODS[0]), port);
        let another =
            SocketAddr::new(family.pick("198.51.100.77", "2001:db8:1::77").parse().expect("an address"), 4_000);
        tries.extend([
            ("a datagram", Attempt::From { from: own(40_001), to: at(DENIED.1, PORT), freebind: false }),
            (
                "a datagram to the granted address",
                Attempt::From { from: own(40_002), to: at(ALLOWED.1, PORT), freebind: false },
            ),
            (
                "a query from a port of the proxy's",
                Attempt::From { from: own(61_234), to: at(FOREIGN, 53), freebind: false },
            ),
            (
                "a query to the resolver, from a port of the proxy's",
                Attempt::From { from: own(62_345), to: family.kube_dns(), freebind: false },
            ),
            ("a foreign source", Attempt::From { from: another, to: at(DENIED.1, PORT), freebind: true }),
            (
                "a foreign source, to the granted address",
                Attempt::From { from: another, to: at(ALLOWED.1, PORT), freebind: true },
            ),
            ("a way by the granted address", Attempt::Route { via: at(ALLOWED.1, 0).ip(), to: at(DENIED.1, PORT) }),
            ("a connection by the device", Attempt::ByDevice { interface: "eth0".into(), to: at(DENIED.1, PORT) }),
            (
                "DNS over TCP to a foreign server, by the device",
                Attempt::ByDevice { interface: "eth0".into(), to: at(FOREIGN, 53) },
            ),
        ]);
    }
    tries.push(("an extension header", Attempt::Options { to: SocketAddr::new(Family::V6.outside(DENIED.1), PORT) }));
    tries
}

pub(super) fn attacks() {
    let pod = Pod::new();
    let sibling = pod.sibling(0);
    let granted = FAMILIES.map(|family| family.outside(ALLOWED.1));
    // The control: while nobody guards, these are seen on the wire or answered.
    let mut valid = Vec::new();
    for (what, attempt) in tries() {
        let wire = pod.world.node.capture(PODS[0].host);
        let number = sibling.tries(attempt.clone());
        if BY_THE_KERNEL.contains(&number) {
            continue; // it does not let a container without capabilities do that
        }
        assert_eq!(number, 0, "control: {what}: {attempt:?}");
        let seen = clock::wait_until(LIMIT, || !leaked(&wire.frames(), &[]).is_empty());
        assert!(seen, "control: {what} was not seen on the wire: {attempt:?}");
        valid.push(what);
    }
    for what in
        ["a foreign source", "a way by the granted address", "a query to the resolver, from a port of the proxy's"]
    {
        assert!(valid.contains(&what), "control: {what}: the kernel refuses it in both families");
    }
    assert!(valid.len() >= 14, "{valid:?}");
    for family in FAMILIES {
        let foreign = SocketAddr::new(family.outside(FOREIGN), 53);
        for tcp in [false, true] {
            let said = sibling.ask_as(Question { tcp, ..question(foreign, DENIED.0, family) });
            assert_eq!(said.addresses, [family.outside(DENIED.1)], "control: a foreign server, TCP {tcp}");
        }
    }

    let daemon = pod.start(&[]);
    pod.is_guarded();
    let wire = pod.world.node.capture(PODS[0].host);
    for (what, attempt) in tries() {
        assert_ne!((what, sibling.tries(attempt.clone())), ("a connection by the device", 0), "{attempt:?}");
    }
    for family in FAMILIES {
        let foreign = SocketAddr::new(family.outside(FOREIGN), 53);
        for server in [foreign, family.kube_dns()] {
            for tcp in [false, true] {
                let said = sibling.ask_as(Question { tcp, ..question(server, ALLOWED.0, family) });
                assert!(said.addresses.is_empty(), "{server} was asked past the proxy, TCP {tcp}: {said:?}");
            }
        }
        let denied = SocketAddr::new(family.outside(DENIED.1), PORT);
        assert_eq!(sibling.connect(denied), Reach::Refused);
        assert_ne!(sibling.datagram(denied), Reach::Reached);
        // It may ask the proxy as any process of the pod.
        assert_eq!(sibling.ask(local(family), ALLOWED.0, family.qtype()).addresses, [family.outside(ALLOWED.1)]);
        assert_eq!(sibling.connect(SocketAddr::new(family.outside(ALLOWED.1), PORT)), Reach::Reached);
    }
    for v6 in [false, true] {
        assert_eq!(sibling.tries(Attempt::RawSocket { v6 }), libc::EPERM);
    }
    let frames = |interface: &str| Attempt::Frames { interface: interface.into(), frames: Vec::new(), bypass: true };
    assert_eq!(sibling.tries(frames("eth0")), libc::EPERM);
    assert_eq!(sibling.tries(Attempt::Mark), libc::EPERM);
    let socket = pod.world.directory.join("run/admin.sock");
    assert!(socket.exists());
    assert_eq!(sibling.tries(Attempt::Unix { path: socket }), libc::EACCES);

    // Its queries: nobody else gets them, also where ports below 1024 are everyone's, as container runtimes set it.
    pod.world.must("pay", "sysctl -q -w net.ipv4.ip_unprivileged_port_start=0");
    for at in ["127.0.0.1:53", "[::1]:53", "0.0.0.0:53", "[::]:53"] {
        let at: SocketAddr = at.parse().expect("an address");
        for (tcp, share) in [(false, false), (false, true), (true, false), (true, true)] {
            let number = sibling.tries(Attempt::Bind { at, tcp, share });
            assert_eq!(number, libc::EADDRINUSE, "{at} TCP {tcp}, shared {share}");
        }
    }
    // Nor can anyone answer in a server's place over loopback, from an address that is not his own: the proxy does not
    // listen there for that.
    let asking = asking(&pod);
    assert!(!asking.is_empty() && asking.iter().all(|line| line.contains("%eth0:")), "{asking:?}");
    for family in FAMILIES {
        for _ in 0..20 {
            assert_eq!(pod.world.pay.ask(local(family), ALLOWED.0, family.qtype()).addresses.len(), 1);
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    let leaks = leaked(&wire.frames(), &granted);
    assert!(leaks.is_empty(), "{} frames got out: {leaks:#?}", leaks.len());
    counts(&daemon, &["verdict=\"dropped\"", "reason=\"unknown_resolver\""]);
    counts(&daemon, &["verdict=\"dropped\"", "reason=\"spoofed_address\""]);
    counts(&daemon, &["verdict=\"dropped\"", "reason=\"source_route\""]);
}

/// A datagram to an address outside, whole, with a number that is found again.
fn datagram(family: Family, last: u8, from_port: u16) -> String {
    let (from, to) = ((family.of(&PODS[0]), from_port), (family.outside(last), NOBODY));
    let packet = ip(from.0, to.0, 17, &udp(from, to, b"by hand"));
    hex(&ethernet(NODE_MAC, PODS[0].mac, ethertype(to.0), &packet))
}

pub(super) fn net_raw() {
    let pod = Pod::new();
    let able = pod.sibling(NET_RAW);
    let hand = |bypass: bool| {
        let frames = FAMILIES.map(|family| datagram(family, DENIED.1, 40_000 + u16::from(bypass))).to_vec();
        Attempt::Frames { interface: "eth0".into(), frames, bypass }
    };
    for bypass in [false, true] {
        let wire = pod.world.node.capture(PODS[0].host);
        assert_eq!(able.tries(hand(bypass)), 0);
        let seen = clock::wait_until(LIMIT, || leaked(&wire.frames(), &[]).len() == 2);
        assert!(seen, "control: frames by hand get out, bypass {bypass}");
    }
    drop(able);
    let daemon = Daemon::beside(&pod.world, SHARED_PIDS, &[]);
    // Said before it is ready, and so before a workload starts: nothing is known of what is not there yet.
    daemon.wait_ready();
    let log = daemon.log();
    let said = log.iter().position(|line| line.contains("advisory") && line.contains("unseen"));
    let attached = log.iter().position(|line| line.contains("attached"));
    assert!(said.is_some() && said < attached, "{log:#?}");
    is_advisory(&daemon, &["unseen"]);
    let able = Agent::sibling_of(daemon.only_child(), WORKLOAD, NET_RAW);
    is_advisory(&daemon, &["net_raw"]);
    let (_, text) = daemon.run("status", &[]);
    assert!(text.contains("advisory: net_raw: "), "{text}");

    pod.is_guarded();
    let wire = pod.world.node.capture(PODS[0].host);
    for bypass in [false, true] {
        assert!(HAND_OVER.contains(&able.tries(hand(bypass))), "the frame can be sent, bypass {bypass}");
    }
    std::thread::sleep(Duration::from_millis(500));
    let leaks = leaked(&wire.frames(), &[]);
    assert!(leaks.is_empty(), "{leaks:#?}");
    drop(wire);
    // And what the floor does not stop, as the README says: ARP for another.
    let v4 = |text: &str| text.parse::<Ipv4Addr>().expect("an address");
    let question = arp(1, (PODS[0].mac, v4("198.51.100.77")), ("00:00:00:00:00:00", v4("198.51.100.1")));
    let frame = hex(&ethernet("ff:ff:ff:ff:ff:ff", PODS[0].mac, 0x0806, &question));
    for (bypass, passes) in [(false, false), (true, true)] {
        let wire = pod.world.node.capture(PODS[0].host);
        let frames = vec![frame.clone()];
        assert!(HAND_OVER.contains(&able.tries(Attempt::Frames { interface: "eth0".into(), frames, bypass })));
        let forged = |octets: &[u8]| octets.get(28..32) == Some(&[198, 51, 100, 77]);
        let seen = clock::wait_until(Duration::from_millis(700), || {
            wire.frames().iter().any(|frame| !frame.outgoing && forged(&frame.octets()))
        });
        assert_eq!(seen, passes, "forged ARP, bypass {bypass}");
    }
    // Once it is gone, and one without capabilities is there, there is no reason left.
    let fine = Agent::sibling_of(daemon.only_child(), WORKLOAD, 0);
    drop(able);
    is_advisory(&daemon, &[]);
    drop(fine);
    daemon.kill();

    // Without the floor it is as DESIGN measured: what goes past the queueing discipline goes past the programs.
    let _daemon = pod.start(&["--set", "enforcement.floor=false"]);
    let able = pod.sibling(NET_RAW);
    for (bypass, passes) in [(false, 0), (true, 2)] {
        let wire = pod.world.node.capture(PODS[0].host);
        assert!(HAND_OVER.contains(&able.tries(hand(bypass))));
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(leaked(&wire.frames(), &[]).len(), passes, "no floor, bypass {bypass}");
    }
}
