//! Every attempt of the demo as a test: routed, proxy ARP and bridged, IPv4 and IPv6, TCX; XDP without proxy ARP, clsact once. And the control:
//! what is denied there passes when nobody guards.

use libtest_mimic::Trial;

use crate::lab::Topology;
use crate::lab::world::Family;
use crate::story::{ATTEMPTS, Attempt, Stage};

const TOPOLOGIES: [(&str, Topology); 3] =
    [("routed", Topology::Routed), ("proxy_arp", Topology::ProxyArp), ("bridged", Topology::Bridged)];
const FAMILIES: [(&str, Family); 2] = [("ipv4", Family::V4), ("ipv6", Family::V6)];

/// What the attempts that are denied show in an unguarded world.
const CONTROLS: [(&str, &str); 5] = [
    ("before_any_query_nothing_is_reached", "works, works"),
    ("another_port_of_a_granted_address_is_refused", "works"),
    ("a_name_that_may_be_asked_but_not_reached_is_refused", "resolves, connection works"),
    ("a_grant_is_the_endpoints_own", "works"),
    ("a_refused_query_names_the_policy", "NOERROR, dig shows no policy"),
];

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (shape, topology) in TOPOLOGIES {
        for (version, family) in FAMILIES {
            for attempt in &ATTEMPTS {
                trials.push(guarded(&format!("{shape}::{version}::tcx"), attempt, topology, family, "tcx"));
            }
            for (name, expected) in CONTROLS {
                let attempt = ATTEMPTS.iter().find(|attempt| attempt.name == name).expect("a name from the story");
                trials.push(Trial::test(format!("{shape}::{version}::control::{name}"), move || {
                    let seen = (attempt.seen)(&mut Stage::unguarded(topology, family));
                    same(&seen, expected)
                }));
            }
        }
    }
    for (shape, topology) in [("routed", Topology::Routed), ("bridged", Topology::Bridged)] {
        for (version, family) in FAMILIES {
            for attempt in &ATTEMPTS {
                trials.push(guarded(&format!("{shape}::{version}::xdp"), attempt, topology, family, "xdp"));
            }
        }
    }
    for attempt in &ATTEMPTS {
        trials.push(guarded("routed::ipv4::clsact", attempt, Topology::Routed, Family::V4, "clsact"));
    }
    trials
}

fn guarded(place: &str, attempt: &'static Attempt, topology: Topology, family: Family, attach: &'static str) -> Trial {
    Trial::test(format!("{place}::{}", attempt.name), move || {
        let setting = format!("enforcement.attach={attach}");
        let seen = (attempt.seen)(&mut Stage::new(topology, family, &["--set", &setting]));
        same(&seen, attempt.expected)
    })
}

fn same(seen: &str, expected: &str) -> Result<(), libtest_mimic::Failed> {
    if seen == expected { Ok(()) } else { Err(format!("expected: {expected}\n    seen: {seen}").into()) }
}
