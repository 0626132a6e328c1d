//! Connections that were open before the first start: what the row's window lets go on, and what ends with it.

use std::net::IpAddr;

use namegate::clock;
use namegate::engine::bits::Bits;
use namegate::engine::ruleset::{Direction, Protocol};
use namegate::kernel::abi::flag;
use namegate::observe::Reason;

use super::bench::*;
use super::classes::{counts, granted, other, ready};
use super::frames::*;

use Direction::{Egress, Ingress};

/// The row's window is open for `seconds` more; less than none: over.
fn window(bench: &mut Bench, seconds: i64) {
    let now = i64::try_from(clock::mono().0 / 1_000_000_000).unwrap();
    bench.row.adopt_until = u32::try_from(now + seconds).unwrap();
    bench.flip();
}

fn out(to: IpAddr, from_port: u16, to_port: u16, flags: u8) -> Vec<u8> {
    from_pod(pod_for(to), to, TCP, &tcp(from_port, to_port, 7, flags))
}

fn back(from: IpAddr, from_port: u16, to_port: u16, flags: u8) -> Vec<u8> {
    to_pod(from, pod_for(from), TCP, &tcp(from_port, to_port, 7, flags))
}

pub fn what_was_open_goes_on_until_the_window_is_over() {
    for family in [4, 6] {
        let (mut bench, to) = (ready(), other(family));
        counts(&bench, Egress, &out(to, 40000, 443, ACK), Reason::NoGrant); // the control
        window(&mut bench, 600);
        counts(&bench, Egress, &out(to, 40000, 443, ACK), Reason::Adopted);
        counts(&bench, Egress, &out(to, 40000, 443, ACK), Reason::Flow);
        counts(&bench, Ingress, &back(to, 443, 40000, ACK), Reason::Flow);
        bench.row.generation += 1;
        bench.flip();
        counts(&bench, Ingress, &back(to, 443, 40000, ACK), Reason::Flow);
        window(&mut bench, -1);
        counts(&bench, Ingress, &back(to, 443, 40000, ACK), Reason::NoGrant);
        counts(&bench, Egress, &out(to, 40000, 443, ACK), Reason::NoGrant);
    }
}

pub fn nothing_new_begins_in_the_window() {
    for family in [4, 6] {
        let (mut bench, to) = (ready(), other(family));
        window(&mut bench, 600);
        for flags in [SYN, SYN | ACK, RST, RST | ACK] {
            counts(&bench, Egress, &out(to, 40000, 443, flags), Reason::NoGrant);
            counts(&bench, Ingress, &back(to, 443, 40000, flags), Reason::NoGrant);
        }
        counts(&bench, Egress, &from_pod(pod_for(to), to, UDP, &udp(40000, 443, 8)), Reason::NoGrant);
        counts(&bench, Egress, &out(to, 40000, 443, ACK), Reason::Adopted);
        counts(&bench, Egress, &out(to, 40000, 443, SYN), Reason::NoGrant);
    }
}

pub fn what_policy_allows_outlives_the_window_whoever_was_seen_first() {
    for family in [4, 6] {
        let (mut bench, to) = (ready(), other(family));
        window(&mut bench, 600);
        counts(&bench, Ingress, &back(to, 443, 40000, ACK), Reason::Adopted);
        counts(&bench, Egress, &out(to, 40000, 443, ACK), Reason::Flow);
        bench.grant(to, Bits::of(1), later()); // its name was asked for meanwhile
        window(&mut bench, -1);
        counts(&bench, Ingress, &back(to, 443, 40000, ACK), Reason::Flow);
        counts(&bench, Egress, &out(to, 40000, 443, ACK), Reason::Flow);
        // It is the pod's now: the other side opens nothing by it.
        counts(&bench, Ingress, &back(to, 443, 40000, SYN), Reason::NotAReply);
    }
}

pub fn who_opened_it_is_not_guessed_in_favour_of_what_is_open() {
    for family in [4, 6] {
        // What a pod sends from a server's port may be an answer; that ingress is open says nothing of it.
        let (mut bench, to) = (ready(), other(family));
        bench.flags(0, flag::DENY_INGRESS);
        window(&mut bench, 600);
        counts(&bench, Egress, &out(to, 8080, 443, ACK), Reason::Adopted);
        counts(&bench, Ingress, &back(to, 443, 8080, ACK), Reason::Flow);
        window(&mut bench, -1);
        counts(&bench, Egress, &out(to, 8080, 443, ACK), Reason::NoGrant);
        counts(&bench, Ingress, &back(to, 443, 8080, ACK), Reason::NoGrant);
        // And of what comes to a client's port, that egress is.
        let mut bench = ready();
        bench.flags(flag::DENY_INGRESS, flag::DENY_EGRESS);
        window(&mut bench, 600);
        counts(&bench, Ingress, &back(to, 443, 40000, ACK), Reason::Adopted);
        window(&mut bench, -1);
        counts(&bench, Ingress, &back(to, 443, 40000, ACK), Reason::NoGrant);
    }
}

pub fn what_a_rule_denies_is_not_adopted() {
    let to = other(4);
    for first in [Egress, Ingress] {
        let mut bench = ready();
        let mut rules = no_rules();
        rules.ports.push(port(Egress, Protocol::Tcp, 443, Bits::NONE, Bits::of(5)));
        bench.row.policy_id = 2;
        bench.rules(&rules);
        bench.grant(to, Bits::of(5), later());
        window(&mut bench, 600);
        match first {
            Egress => counts(&bench, Egress, &out(to, 40000, 443, ACK), Reason::PolicyDeny),
            Ingress => counts(&bench, Ingress, &back(to, 443, 40000, ACK), Reason::PolicyDeny),
        }
        counts(&bench, Egress, &out(to, 40000, 8443, ACK), Reason::Adopted); // the control
    }
}

pub fn where_ingress_is_open_a_server_that_speaks_first_brings_nothing_back() {
    for family in [4, 6] {
        let (mut bench, from) = (ready(), other(family));
        bench.flags(0, flag::DENY_INGRESS);
        counts(&bench, Ingress, &back(from, 443, 40000, ACK), Reason::NoGrant);
        counts(&bench, Egress, &out(from, 40000, 443, ACK), Reason::NoGrant);
        // Of what is granted it may speak first.
        counts(&bench, Ingress, &back(granted(family), 443, 40000, ACK), Reason::Granted);
        counts(&bench, Egress, &out(granted(family), 40000, 443, ACK), Reason::Flow);
        // What comes in to a server's port is inbound, and goes on.
        counts(&bench, Ingress, &back(from, 50000, 8080, ACK), Reason::DefaultAllow);
        counts(&bench, Egress, &out(from, 8080, 50000, ACK), Reason::Flow);
        // Whoever begins a connection is judged as before, at whatever port.
        counts(&bench, Ingress, &back(from, 50000, 40000, SYN), Reason::DefaultAllow);
    }
}

pub fn an_audited_endpoint_is_audited_as_ever() {
    let mut bench = ready();
    bench.flags(flag::AUDIT, 0);
    window(&mut bench, 600);
    counts(&bench, Egress, &out(other(4), 40000, 443, ACK), Reason::Audit);
}
