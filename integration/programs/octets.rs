//! What frames of any octets taught (integration/fuzz/checks/frames): each was let through, or answered wrongly, once.

use std::net::{IpAddr, Ipv6Addr};

use namegate::engine::bits::Bits;
use namegate::engine::ruleset::{Direction, Protocol};
use namegate::kernel::abi::flag;
use namegate::observe::Reason;

use super::bench::*;
use super::frames::*;

use Direction::{Egress, Ingress};

/// Group 1 may be reached on every port; one address of each family is granted.
fn ready() -> Bench {
    let bench = Bench::new();
    let mut rules = no_rules();
    rules.ports.push(port(Egress, Protocol::Any, 0, Bits::of(1), Bits::NONE));
    bench.rules(&rules);
    for family in [4, 6] {
        bench.grant(granted(family), Bits::of(1), later());
    }
    bench
}

fn granted(family: u8) -> IpAddr {
    if family == 4 { "203.0.113.7".parse().unwrap() } else { "2001:db8:2::7".parse().unwrap() }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    let IpAddr::V4(address) = address else { panic!("{address} is not IPv4") };
    address.to_ipv6_mapped()
}

#[track_caller]
fn counts(bench: &Bench, direction: Direction, frame: &[u8], wanted: Reason) {
    assert_eq!(bench.run(direction, frame).text(), wanted.text());
}

pub fn what_is_open_in_ipv4_is_not_open_in_ipv6() {
    let bench = ready();
    let (to, syn) = (granted(4), tcp(40000, 443, 1, SYN));
    // The control: what the addresses stand for is open.
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &syn), Reason::Granted);
    for source in [pod6(), mapped(pod4()).into()] {
        counts(&bench, Egress, &from_pod(source, mapped(to).into(), TCP, &syn), Reason::Malformed);
        counts(&bench, Egress, &from_pod(source, mapped(to).into(), TCP, &tcp(40000, 443, 2, ACK)), Reason::Malformed);
    }
    counts(&bench, Egress, &from_pod(mapped(pod4()).into(), granted(6), TCP, &syn), Reason::Malformed);
    let back = to_pod(mapped(to).into(), mapped(pod4()).into(), TCP, &tcp(443, 40000, 9, SYN | ACK));
    counts(&bench, Ingress, &back, Reason::Malformed);
    // Nor does an error of IPv6 belong to a flow of IPv4.
    let quoting = |from: IpAddr, to: IpAddr| icmp(1, 1, &[&[0; 4][..], &ip(from, to, TCP, &syn)].concat());
    let error = to_pod(granted(6), pod6(), ICMPV6, &quoting(mapped(pod4()).into(), mapped(to).into()));
    counts(&bench, Ingress, &error, Reason::IcmpUnrelated);
    counts(&bench, Egress, &from_pod(pod6(), granted(6), TCP, &syn), Reason::Granted);
    let error = to_pod(granted(6), pod6(), ICMPV6, &quoting(pod6(), granted(6)));
    counts(&bench, Ingress, &error, Reason::IcmpRelated);
}

pub fn a_header_behind_the_end_of_its_packet_is_malformed() {
    let bench = ready();
    for family in [4, 6] {
        let (to, pod) = (granted(family), pod_for(granted(family)));
        let icmp = if family == 4 { (ICMP, 8) } else { (ICMPV6, 128) };
        for (protocol, payload, header) in [
            (TCP, tcp(40000, 443, 1, SYN), 20),
            (UDP, udp(40000, 443, 0), 8),
            (SCTP, sctp(40000, 3868)[..12].to_vec(), 12),
            (icmp.0, echo(icmp.1, 5)[..8].to_vec(), 8),
        ] {
            // Padding makes up for what is not in the packet.
            let saying = |octets: u16| {
                let mut packet = ip(pod, to, protocol, &payload);
                let (at, length) = if family == 4 { (2, 20 + octets) } else { (4, octets) };
                packet[at..at + 2].copy_from_slice(&length.to_be_bytes());
                packet.resize(packet.len() + 40, 0);
                ethernet(POD_MAC, NODE_MAC, ethertype_of(to), &packet)
            };
            counts(&bench, Egress, &saying(header), Reason::Granted);
            for short in [0, 4, header - 1] {
                counts(&bench, Egress, &saying(short), Reason::Malformed);
            }
        }
        let mut options = tcp(40000, 443, 1, SYN);
        options[12] = 0x60; // says 24 octets and has 20
        counts(&bench, Egress, &from_pod(pod, to, TCP, &options), Reason::Malformed);
    }
}

pub fn a_query_that_can_not_be_steered_is_refused_as_it_was_sent() {
    for family in [4, 6] {
        let mut bench = ready();
        let (resolver, pod) = (granted(family), pod_for(granted(family)));
        let local: IpAddr = if family == 4 { "198.18.7.7" } else { "2001:db8:7::7" }.parse().unwrap();
        bench.kernel.set_steering(&[(resolver, local)], 15353).unwrap();
        bench.flags(flag::STEER | flag::BRIDGED | flag::REJECT, 0); // and nobody knows the bridge
        let query = from_pod(pod, resolver, UDP, &udp(40000, 53, 12));
        let (reason, action, answer) = bench.run_whole(Egress, &query);
        assert_eq!((reason, action), (Reason::Internal, 7));
        let (header, octets) = if family == 4 { (20, 4) } else { (40, 16) };
        let source = 14 + header - 2 * octets;
        let sender: Vec<u8> = match resolver {
            IpAddr::V4(resolver) => resolver.octets().to_vec(),
            IpAddr::V6(resolver) => resolver.octets().to_vec(),
        };
        assert_eq!(answer[source..source + octets], sender, "the answer comes from whom the pod asked");
        assert_eq!(answer[14 + header + 8..], query[14..14 + header + 8], "and quotes what the pod sent");
    }
}
