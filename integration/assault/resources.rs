//! Floods. What one workload exhausts is its own: meanwhile and afterwards its neighbour's questions are answered, over UDP
//! and TCP, and its datagrams come back.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::bench::{Case, Shown, Side};
use crate::lab::agent::{Many, Question, Reach, Request, hex};
use crate::lab::frame::{arp, ethernet, icmp, ip, tcp_carrying, udp};
use crate::lab::world::{Family, PODS};
use crate::lab::{self, World};
use crate::message::{A, AAAA, IN, name, query, record, with_record};
use crate::model::{ALLOWED, DENIED, RESOLVER};

const CLASS: &str = "resources";
/// More than an endpoint's budget of flows, 16 384.
const MANY: u32 = 20_000;
/// Frames that go out in one piece.
const PIECE: u32 = 2_000;
/// A stub's patience with one question, and how often it asks.
const STUB_MS: u64 = 1000;
const STUB_TIMES: u32 = 3;
/// Where the neighbour's datagrams come back from.
const ECHO: &str = "203.0.113.202:9998";

/// What the neighbour's answers grant.
const PAGE: &str = "203.0.113.40:443";
/// No name of the neighbour's is asked twice: no cache answers.
static FRESH: AtomicU32 = AtomicU32::new(0);

type Build = fn(u32, &str) -> Vec<u8>;

#[rustfmt::skip]
const FLOODS: &[(&str, &str, Build)] = &[
    ("conversations over udp", "20 000 flows to an allowed address", |n, mark| datagram(port(n), (ALLOWED[0], 9), mark.as_bytes())),
    ("conversations over tcp", "20 000 SYNs to an allowed address", |n, mark| syn(port(n), (ALLOWED[0], 443), mark)),
    ("pings", "20 000 echo requests, an identifier each", |n, mark| packet(ALLOWED[0], 1, &icmp(8, 0, &[&(n as u16).to_be_bytes()[..], &[0, 1], mark.as_bytes()].concat()))),
    ("denied datagrams", "20 000 refusals, an event each", |n, mark| datagram(port(n), (DENIED[0], 9), mark.as_bytes())),
    ("denied segments", "20 000 refusals, an RST each", |n, mark| syn(port(n), (DENIED[0], 443), mark)),
    ("refused frames", "20 000 frames of no known type", |_, mark| ethernet(crate::lab::world::LAN_MAC, PODS[0].mac, 0x88b5, mark.as_bytes())),
    ("questions of one name", "20 000 times the same", |n, mark| question(n, &format!("{mark}.good.example"))),
    ("questions of ever-new names", "20 000 names that policy selects, an upstream query each", |n, mark| question(n, &format!("{mark}n{n}.good.example"))),
    ("questions of denied names", "20 000 names that policy refuses", |n, mark| question(n, &format!("{mark}n{n}.evil.example"))),
    ("questions that are none", "20 000 malformed messages", |n, mark| datagram(port(n), ("203.0.113.60", 53), &[&[0x4e, 0x47, 1, 0, 0, 9, 0, 9, 0, 9, 0, 9, 0xc0, 12][..], mark.as_bytes()].concat())),
    ("a hundred thousand random messages", "questions with octets changed, cut, doubled and swapped", |n, mark| datagram(port(n), ("203.0.113.60", 53), &garbled(n, mark))),
    ("half-open connections to the resolver", "20 000 SYNs whose handshake never ends", |n, mark| syn(port(n), ("203.0.113.60", 53), mark)),
    ("arp", "20 000 questions for addresses of the segment", |n, mark| {
        let target = ("00:00:00:00:00:00", std::net::Ipv4Addr::from(0xc633_6400 + n % 250));
        let own = Family::V4.of(&PODS[0]);
        let std::net::IpAddr::V4(own) = own else { unreachable!("the family is IPv4") };
        [ethernet("ff:ff:ff:ff:ff:ff", PODS[0].mac, 0x0806, &arp(1, (PODS[0].mac, own), target)), mark.as_bytes().to_vec()].concat()
    }),
];

pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = FLOODS
        .iter()
        .map(|(what, tries, build)| {
            Case::new(CLASS, format!("a flood of {what}"), tries, move |side, mark| {
                let load = |world: &World| {
                    let many = if what.contains("hundred thousand") { 5 * MANY } else { MANY };
                    for first in (0..many).step_by(PIECE as usize) {
                        let frames: Vec<Vec<u8>> = (first..first + PIECE).map(|n| build(n, mark)).collect();
                        world.pay.inject("eth0", &frames);
                    }
                };
                endured(side, mark, load)
            })
            .long()
        })
        .collect();
    let tries = "200 connections to the resolver that ask nothing; an endpoint may have 64";
    cases.push(Case::new(CLASS, "idle connections to the resolver", tries, |side, _| {
        let server: SocketAddr = RESOLVER.parse().expect("an address");
        let open = |world: &World| {
            let kept: Vec<u32> = (0..200).filter_map(|_| world.pay.open(server).ok()).collect();
            std::thread::sleep(Duration::from_millis(500));
            for connection in &kept {
                world.pay.done(Request::Close { connection: *connection });
            }
            kept.len()
        };
        let mut opened = 0;
        let lost = beside(&side.world, |world| opened = open(world), side.is_guarded());
        Shown::Endured { load: opened == 200, lost }
    }));
    let tries = "450 names of 40 addresses each: more grants than the 16 384 that an endpoint may have";
    cases.push(Case::new(CLASS, "grants", tries, |side, _| only_the_neighbour_counts(side, full_of_grants)).long());
    let tries = "500 connections to the admin socket that say nothing";
    cases.push(Case::new(CLASS, "idle connections to the admin socket", tries, |side, _| {
        only_the_neighbour_counts(side, |world| {
            let socket = world.directory.join("run/admin.sock");
            let kept: Vec<_> = (0..500).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
            std::thread::sleep(Duration::from_secs(1));
            !kept.is_empty()
        })
    }));
    cases
}

/// What only a world with namegate has. Its control is that the load was there.
fn only_the_neighbour_counts(side: &Side, load: impl FnOnce(&World) -> bool + Send) -> Shown {
    let Some(daemon) = &side.daemon else { return Shown::Both { control: true, arrived: false } };
    let mut control = false;
    let mut lost = beside(&side.world, |world| control = load(world), true);
    let (ready, why) = daemon.ready();
    if !ready {
        lost.push(format!("namegate is not ready: {why}"));
    }
    let fell = !lost.is_empty();
    lost.into_iter().for_each(|lost| side.loses(lost));
    Shown::Both { control, arrived: fell }
}

/// Whether the attacker's grants came near its budget.
fn full_of_grants(world: &World) -> bool {
    ask_for_many_addresses(world, 0..450);
    let grants = lab::grants::read(&world.directory).expect("the map of grants");
    grants.len() > 15_000
}

/// Names of the attacker with forty addresses each, 50 at a time.
pub fn ask_for_many_addresses(world: &World, names: std::ops::Range<u32>) {
    let opt = record(&[0], 41, 1232, 0, &[]);
    let ask = |n: u32| hex(&with_record(&query(n as u16, &name(&format!("wide{n}.good.example")), AAAA, IN), 2, &opt));
    let server = RESOLVER.parse().expect("an address");
    for first in names.clone().step_by(50) {
        let messages = (first..names.end.min(first + 50)).map(ask).collect();
        world.pay.ask_many(Many { server, tcp: false, messages, at_once: 16, within_ms: 3000 });
    }
}

/// The flood, the neighbour beside it, and whether the flood was one.
fn endured(side: &Side, mark: &str, load: impl FnOnce(&World) + Send) -> Shown {
    let lost = beside(&side.world, load, side.is_guarded());
    side.settle();
    let id = mark[3..].parse().expect("a number");
    Shown::Endured { load: side.arrived(id) >= MANY as usize / 2, lost }
}

/// What the neighbour loses while `load` runs and for a second after.
fn beside(world: &World, load: impl FnOnce(&World) + Send, guarded: bool) -> Vec<String> {
    if !guarded {
        load(world);
        return Vec::new();
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let (mut lost, mut turns) = (Vec::new(), 0u32);
            while !over.load(Ordering::Relaxed) || turns < 3 {
                turns += 1;
                lost.extend(missing(world, turns));
            }
            lost
        });
        load(world);
        std::thread::sleep(Duration::from_secs(1));
        over.store(true, Ordering::Relaxed);
        neighbour.join().expect("no panic beside the flood")
    })
}

/// One turn of a well-behaved workload.
fn missing(world: &World, turn: u32) -> Vec<String> {
    let mut lost = Vec::new();
    for tcp in [false, true] {
        let answered = (0..STUB_TIMES).any(|_| {
            let fresh = FRESH.fetch_add(1, Ordering::Relaxed);
            let question = Question {
                server: Family::V4.kube_dns(),
                name: format!("t{fresh}.neigh.example."),
                qtype: "A".into(),
                tcp,
                tls: None,
                edns: Some(1232),
                within_ms: STUB_MS,
            };
            world.rep.ask_as(question).addresses == [Family::V4.outside(40)]
        });
        if !answered {
            lost.push(format!("the neighbour's question over {}, turn {turn}", if tcp { "TCP" } else { "UDP" }));
        }
    }
    if world.rep.datagram(ECHO.parse().expect("an address")) != Reach::Reached {
        lost.push(format!("the neighbour's datagram, turn {turn}"));
    }
    if world.rep.connect(PAGE.parse().expect("an address")) != Reach::Reached {
        lost.push(format!("the neighbour's connection, turn {turn}"));
    }
    lost
}

/// What a world needs for the above.
pub fn prepare(world: &World) {
    world.outside.done(Request::ServeUdp { at: ECHO.parse().expect("an address") });
    world.outside.done(Request::ServeTcp { at: PAGE.parse().expect("an address") });
    // Else the attacker's own kernel would end the half-open connections.
    let rules = "table inet quiet {\nchain out {\ntype filter hook output priority 0\ntcp flags rst drop\n}\n}\n";
    crate::lab::process::nft(&world.namespace("pay"), rules);
}

fn port(n: u32) -> u16 {
    20_000 + (n % 40_000) as u16
}

fn packet(to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (Family::V4.of(&PODS[0]), to.parse().expect("an address"));
    ethernet(crate::lab::world::LAN_MAC, PODS[0].mac, 0x0800, &ip(from, to, protocol, payload))
}

fn datagram(from: u16, to: (&str, u16), payload: &[u8]) -> Vec<u8> {
    let whole = (to.0.parse().expect("an address"), to.1);
    packet(to.0, 17, &udp((Family::V4.of(&PODS[0]), from), whole, payload))
}

fn syn(from: u16, to: (&str, u16), mark: &str) -> Vec<u8> {
    let whole = (to.0.parse().expect("an address"), to.1);
    packet(to.0, 6, &tcp_carrying((Family::V4.of(&PODS[0]), from), whole, 1, 2, mark.as_bytes()))
}

fn question(n: u32, asked: &str) -> Vec<u8> {
    datagram(port(n), ("203.0.113.60", 53), &query(n as u16, &name(asked), A, IN))
}

/// A question in which anything may be wrong; the same number makes the same one. The mark stands behind it.
fn garbled(n: u32, mark: &str) -> Vec<u8> {
    let mut state = u64::from(n) + 1;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    let opt = record(&[0], 41, 1232, 0, &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    let mut message = with_record(&query(n as u16, &name(&format!("r{n}.good.example")), A, IN), 2, &opt);
    for _ in 0..=random(6) {
        let at = random(message.len());
        match random(5) {
            0 => message.truncate(at),
            1 => message.insert(at, random(256) as u8),
            2 => message.extend_from_within(at..),
            3 => message.swap(at, 0),
            _ => message[at] = random(256) as u8,
        }
        if message.is_empty() {
            break;
        }
    }
    message.extend(mark.as_bytes());
    message
}
