//! Large datagrams over a wire with an MTU of 1500, there and back: those of allowed conversations arrive whole, of others
//! nothing does (I11). Each trial has a control in a world that nobody guards.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libtest_mimic::Trial;

use crate::lab::agent::{Reach, Reply, Request, hex};
use crate::lab::clock::wait_until;
use crate::lab::frame::{echo, ethernet, ethertype, fragments};
use crate::lab::world::{Family, NODE_MAC, Options, PODS};
use crate::lab::{Daemon, Topology, World, snapshot};

/// What `payment-processor` may reach.
const RULES: &str = "  - toCIDR: [203.0.113.200/32, \"2001:db8:2::200/128\"]\n";
const ALLOWED: u8 = 200;
const DENIED: u8 = 201;
const PORT: u16 = 9000;
/// Three fragments.
const OCTETS: usize = 4000;

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (shape, topology) in [("routed", Topology::Routed), ("bridged", Topology::Bridged)] {
        trials.push(trial(shape, "large_datagrams_reach_whom_policy_allows_and_nobody_else", move || {
            datagrams(topology);
        }));
        trials.push(trial(shape, "a_long_echo_is_answered", move || echoes(topology)));
        trials.push(trial(shape, "a_long_query_reaches_no_resolver_past_the_proxy", move || long_queries(topology)));
    }
    trials
}

fn trial(shape: &str, name: &str, play: impl Fn() + Send + 'static) -> Trial {
    Trial::test(format!("fragments::{shape}::{name}"), move || {
        play();
        Ok(())
    })
}

fn world(topology: Topology) -> World {
    let world = World::new(Options { topology });
    snapshot::with_policy(&world.directory.join("snapshot"), &snapshot::policy("payment-processor", RULES));
    for last in [ALLOWED, DENIED] {
        for family in [Family::V4, Family::V6] {
            world.outside.done(Request::ServeUdp { at: SocketAddr::new(family.outside(last), PORT) });
        }
    }
    world
}

/// Whether all of a datagram came back from an outside address, and how many fragments of it were seen there.
fn tries(world: &World, family: Family, last: u8) -> (Reach, usize) {
    let to = family.outside(last);
    let wire = world.outside.capture("eth0");
    let request = Request::Datagram { to: SocketAddr::new(to, PORT), octets: OCTETS, within_ms: 1000 };
    let Reply::Reached { reach, .. } = world.pay.call(request) else { panic!("no attempt") };
    let seen = || wire.frames().iter().filter(|frame| !frame.outgoing && is_to(&frame.octets(), to)).count();
    if reach == Reach::Reached {
        wait_until(Duration::from_secs(2), || seen() >= 3);
    } else {
        // What is seen before a datagram that follows is all there is.
        let follows = family.outside(ALLOWED);
        world.pay.datagram(SocketAddr::new(follows, PORT));
        wire.wait_for("the datagram that follows", |frame| is_to(frame, follows));
    }
    (reach, seen())
}

fn is_to(frame: &[u8], to: IpAddr) -> bool {
    match to {
        IpAddr::V4(to) => frame[12..14] == [8, 0] && frame[30..34] == to.octets(),
        IpAddr::V6(to) => frame[12..14] == [0x86, 0xdd] && frame[38..54] == to.octets(),
    }
}

fn datagrams(topology: Topology) {
    let world = world(topology);
    for family in [Family::V4, Family::V6] {
        for last in [ALLOWED, DENIED] {
            assert_eq!(tries(&world, family, last), (Reach::Reached, 3), "the control, {family:?}");
        }
    }
    let daemon = Daemon::start(&world, &[]);
    for family in [Family::V4, Family::V6] {
        for _ in 0..5 {
            assert_eq!(tries(&world, family, ALLOWED), (Reach::Reached, 3), "{family:?}");
        }
        let (reach, seen) = tries(&world, family, DENIED);
        assert!(reach != Reach::Reached && seen == 0, "{family:?}: {reach:?}, {seen} fragments got out");
    }
    let counted = |reason: &str, direction: &str| {
        let labels = [format!("reason=\"{reason}\""), format!("direction=\"{direction}\"")];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        wait_until(Duration::from_secs(3), || {
            daemon.metric("namegate_packets_total", &labels) >= if reason == "fragment_follows" { 20.0 } else { 4.0 }
        })
    };
    assert!(counted("fragment_follows", "egress") && counted("fragment_follows", "ingress"));
    assert!(counted("fragment_lone", "egress"), "those of the denied datagrams");
}

/// How many octets of the answer to an echo request of [`OCTETS`] come back to the pod.
fn echoed(world: &World, family: Family, id: u16) -> usize {
    let (from, to) = (family.of(&PODS[0]), family.outside(ALLOWED));
    let protocol = if from.is_ipv4() { 1 } else { 58 };
    let pieces = fragments(from, to, protocol, id, &echo(from, to, id, &[b'e'; OCTETS]), 1448);
    let frames: Vec<Vec<u8>> =
        pieces.iter().map(|piece| ethernet(NODE_MAC, PODS[0].mac, ethertype(from), piece)).collect();
    world.pay.datagram(SocketAddr::new(to, PORT)); // its neighbours are known
    let wire = world.pay.capture("eth0");
    world.pay.inject("eth0", &frames);
    let arrived = || {
        let frames = wire.frames();
        let back = frames.iter().map(|frame| frame.octets()).filter(|frame| is_to(frame, from));
        back.map(|frame| frame.iter().filter(|octet| **octet == b'e').count()).sum::<usize>()
    };
    wait_until(Duration::from_secs(2), || arrived() >= OCTETS);
    arrived()
}

fn echoes(topology: Topology) {
    let world = world(topology);
    for (id, family) in [(1, Family::V4), (2, Family::V6)] {
        assert!(echoed(&world, family, id) >= OCTETS, "the control, {family:?}");
    }
    let _daemon = Daemon::start(&world, &[]);
    for (id, family) in [(3, Family::V4), (4, Family::V6)] {
        assert!(echoed(&world, family, id) >= OCTETS, "{family:?}");
    }
}

/// A query that needs three fragments: padded (RFC 7830), for a name that nobody else asks for.
fn long_query() -> String {
    let mut message = vec![0x4e, 0x47, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in ["one", "example", "net", ""] {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 1, 0, 1]); // A, IN
    let padding = 3000u16;
    message.extend([0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0]);
    message.extend((padding + 4).to_be_bytes());
    message.extend([0, 12]);
    message.extend(padding.to_be_bytes());
    message.resize(message.len() + usize::from(padding), 0);
    hex(&message)
}

fn long_queries(topology: Topology) {
    let world = world(topology);
    world.outside.say_addresses("one.example.net", &[Family::V4.outside(101)], 60);
    let ask = |family: Family| {
        let request = Request::AskRaw { server: family.kube_dns(), tcp: false, message: long_query(), within_ms: 1500 };
        let Reply::Bytes(reply) = world.pay.call(request) else { panic!("no answer") };
        (reply.is_some(), world.outside.asked())
    };
    for family in [Family::V4, Family::V6] {
        let (answered, asked) = ask(family);
        assert!(answered && !asked.is_empty(), "the control, {family:?}");
    }
    let _daemon = Daemon::start(&world, &[]);
    for family in [Family::V4, Family::V6] {
        world.outside.asked();
        assert_eq!(ask(family), (false, Vec::new()), "{family:?}");
        let reply = world.pay.ask(family.kube_dns(), "one.example.net", "A");
        assert_eq!(reply.addresses, [Family::V4.outside(101)], "a query in one packet, {family:?}");
    }
}
