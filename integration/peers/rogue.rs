//! A DNS server that misbehaves, above namegate: who asks gets the right answer or SERVFAIL in time, and nothing wrong is
//! learned. Each way of misbehaving has a server address of its own, so that the bad name of one is not another's.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libtest_mimic::Trial;

use crate::lab::agent::client::Pending;
use crate::lab::agent::rogue::{right, wrong};
use crate::lab::agent::{Question, Reply, Request};
use crate::lab::world::{Family, Options, World};
use crate::lab::{Daemon, Topology, grants, snapshot};

/// What has to come of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Comes {
    Right,
    ServFail,
}

use Comes::{Right, ServFail};

/// Way of misbehaving, what comes of it, whether the wrong address was on the wire, and whether TCP was used.
#[rustfmt::skip]
const WAYS: [(&str, Comes, bool, bool); 42] = [
    ("honest", Right, false, false),
    ("late", Right, false, false),
    ("too-late", ServFail, false, false),
    ("silent", ServFail, false, false),
    ("number", Right, true, false),
    ("every-number", Right, true, false),
    ("name", Right, true, false),
    ("type", Right, true, false),
    ("class", Right, true, false),
    ("case", Right, true, false),
    ("port", Right, true, false),
    ("address", Right, true, false),
    ("two", Right, true, false),
    ("query", Right, true, false),
    ("opcode", Right, true, false),
    ("no-question", Right, true, false),
    ("two-questions", Right, true, false),
    ("header", Right, false, false),
    ("empty", Right, false, false),
    // Over TCP it does better.
    ("counts", Right, true, true),
    ("half", Right, false, true),
    // Whole as far as it needs to be read, but for a name that points nowhere.
    ("malformed", ServFail, true, false),
    // Longer than what was asked for.
    ("long", ServFail, true, false),
    ("truncated", Right, true, true),
    ("edns", Right, false, false),
    ("servfail", ServFail, false, false),
    ("tcp", Right, false, true),
    ("tcp-late", Right, false, true),
    ("tcp-silent", ServFail, false, true),
    ("tcp-slow", Right, false, true),
    ("tcp-crawling", ServFail, false, true),
    ("tcp-reset", ServFail, false, true),
    ("tcp-closed", ServFail, false, true),
    ("tcp-half", ServFail, false, true),
    ("tcp-reset-half", ServFail, false, true),
    ("tcp-number", Right, true, true),
    ("tcp-name", Right, true, true),
    ("tcp-empty", Right, false, true),
    ("tcp-short", Right, false, true),
    ("tcp-two", Right, true, true),
    ("tcp-truncated", ServFail, true, true),
    ("tcp-64k", Right, false, true),
];

/// A cut answer over TCP.
const MALFORMED_OVER_TCP: (&str, Comes, bool, bool) = ("tcp-malformed", ServFail, false, true);
/// The last number of the first server's address.
const FIRST: u8 = 100;
/// `dns.upstream_timeout`, and what a busy machine adds.
const IN_TIME: Duration = Duration::from_millis(5500);

pub fn trials() -> Vec<Trial> {
    let name = "peers::rogue::an_upstream_that_misbehaves_gives_the_right_answer_or_servfail_and_teaches_nothing_wrong";
    let trial = |how: &str, settings: &'static [&'static str]| {
        Trial::test(format!("{name}_{how}"), move || {
            misbehaves(settings);
            Ok(())
        })
    };
    vec![trial("without_cache", &["--set", "dns.cache=off"]), trial("with_cache", &[])]
}

fn misbehaves(settings: &[&str]) {
    let ways: Vec<_> = WAYS.into_iter().chain([MALFORMED_OVER_TCP]).collect();
    let servers: Vec<(u8, IpAddr)> = (FIRST..).take(ways.len()).map(|last| (last, Family::V4.outside(last))).collect();
    let world = World::new(Options { topology: Topology::Routed });
    let networks: Vec<String> = servers.iter().map(|(_, address)| format!("{address}/32")).collect();
    let rules = format!(
        "  - toCIDR: [{}]\n    toPorts:\n    - ports: [{{port: \"53\", protocol: ANY}}]\n      \
         rules: {{dns: [{{matchPattern: \"*\"}}]}}\n  \
         - toFQDNs: [{{matchPattern: \"*.rogue.example\"}}]\n    toPorts: [{{ports: [{{port: \"443\", protocol: TCP}}]}}]\n",
        networks.join(", ")
    );
    let policy = snapshot::policy("payment-processor", &rules);
    snapshot::with_policy(&world.directory.join("snapshot"), &policy);
    let at = servers.iter().map(|(_, address)| SocketAddr::new(*address, 53)).collect();
    world.outside.done(Request::ServeRogue { at });
    let daemon = Daemon::start(&world, settings);
    let capture = world.outside.capture("eth0");
    let under_way: Vec<Pending> = ways
        .iter()
        .zip(&servers)
        .map(|((how, ..), (_, server))| {
            world.pay.begin(Request::Ask(Question {
                server: SocketAddr::new(*server, 53),
                name: format!("{how}.rogue.example."),
                qtype: "A".into(),
                tcp: false,
                tls: None,
                edns: Some(1232),
                within_ms: 10_000,
            }))
        })
        .collect();
    let replies: Vec<Reply> = under_way.into_iter().map(Pending::wait).collect();
    let frames: Vec<Vec<u8>> = capture.frames().iter().filter(|frame| frame.outgoing).map(|f| f.octets()).collect();
    let asked = world.outside.asked();
    let mut wrongs = Vec::new();
    let mut expected = BTreeSet::new();
    for ((reply, (how, comes, wrong_was_sent, over_tcp)), (last, _)) in replies.iter().zip(&ways).zip(&servers) {
        let Reply::Answered(seen) = reply else { panic!("{how}: {reply:?}") };
        let address = IpAddr::from(right(*last));
        let fine = match comes {
            Right => seen.rcode == "NOERROR" && seen.addresses == [address],
            ServFail => seen.rcode == "SERVFAIL" && seen.addresses.is_empty(),
        };
        if !fine || seen.truncated || Duration::from_micros(seen.micros) > IN_TIME {
            wrongs.push(format!("{how}: {seen:?}"));
        }
        if *comes == Right {
            expected.insert(address);
        }
        // The controls: it did misbehave.
        let sent = |address: [u8; 4]| frames.iter().any(|frame| frame.windows(4).any(|octets| octets == address));
        if sent(wrong(*last).octets()) != *wrong_was_sent {
            wrongs.push(format!("{how}: the wrong address was sent: {}", !wrong_was_sent));
        }
        let tcp = asked.iter().any(|line| *line == format!("{how} over tcp"));
        if !asked.iter().any(|line| *line == format!("{how} over udp")) || tcp != *over_tcp {
            wrongs.push(format!("{how}: asked over tcp: {tcp}"));
        }
    }
    let granted: BTreeSet<IpAddr> =
        grants::read(&world.directory).expect("the map can be read").into_iter().map(|row| row.1).collect();
    if granted != expected {
        let differs: Vec<_> = granted.symmetric_difference(&expected).collect();
        wrongs.push(format!("grants differ in {differs:?}"));
    }
    drop((capture, daemon));
    assert!(wrongs.is_empty(), "{}", wrongs.join("\n"));
}
