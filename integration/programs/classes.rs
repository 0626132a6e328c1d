//! Every class of I11, by family, allowed and denied: what the programs count for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use namegate::engine::bits::Bits;
use namegate::engine::grant::MonoNs;
use namegate::engine::port::PortBlock;
use namegate::engine::ruleset::{Direction, PeerId, PortRow, Protocol, ServiceRow, ServiceVerdict};
use namegate::kernel::abi::flag;
use namegate::kernel::rules::{EndpointRow, FlowLimits};
use namegate::observe::Reason;

use super::bench::*;
use super::frames::*;

use Direction::{Egress, Ingress};

pub fn granted(family: u8) -> IpAddr {
    if family == 4 { "203.0.113.7".parse().unwrap() } else { "2001:db8:2::7".parse().unwrap() }
}

pub fn other(family: u8) -> IpAddr {
    if family == 4 { "203.0.113.9".parse().unwrap() } else { "2001:db8:2::9".parse().unwrap() }
}

pub fn v4(address: IpAddr) -> Ipv4Addr {
    let IpAddr::V4(address) = address else { panic!("{address} is not IPv4") };
    address
}

pub fn v6(address: IpAddr) -> Ipv6Addr {
    let IpAddr::V6(address) = address else { panic!("{address} is not IPv6") };
    address
}

/// Group 1 may be reached on TCP and UDP 443 and in every protocol by group 2; both families hold one grant of group 1.
pub fn ready() -> Bench {
    let bench = Bench::new();
    let mut rules = no_rules();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        rules.ports.push(port(Egress, protocol, 443, Bits::of(1) | Bits::of(2), Bits::NONE));
    }
    rules.ports.push(port(Egress, Protocol::Any, 0, Bits::of(2), Bits::NONE));
    rules.ports.push(port(Ingress, Protocol::Tcp, 8080, Bits::of(3), Bits::NONE));
    rules.peers.push((A_PEER, Bits::of(3)));
    bench.rules(&rules);
    for family in [4, 6] {
        bench.grant(granted(family), Bits::of(1), later());
    }
    bench
}

#[track_caller]
pub fn counts(bench: &Bench, direction: Direction, frame: &[u8], wanted: Reason) {
    let found = bench.run(direction, frame);
    assert_eq!(found.text(), wanted.text());
}

pub fn a_granted_connection_passes_and_the_next_packet_is_its_flow() {
    for family in [4, 6] {
        let (bench, to) = (ready(), granted(family));
        let syn = from_pod(pod_for(to), to, TCP, &tcp(40000, 443, 1, SYN));
        counts(&bench, Egress, &syn, Reason::Granted);
        counts(&bench, Egress, &syn, Reason::Flow);
        counts(&bench, Ingress, &to_pod(to, pod_for(to), TCP, &tcp(443, 40000, 9, SYN | ACK)), Reason::Flow);
        counts(&bench, Egress, &from_pod(pod_for(to), to, TCP, &tcp(40000, 443, 2, ACK)), Reason::Flow);
    }
}

pub fn what_is_not_granted_is_refused() {
    for family in [4, 6] {
        let bench = ready();
        for (to, port) in [(other(family), 443), (granted(family), 80)] {
            for (protocol, payload) in [(TCP, tcp(40000, port, 1, SYN)), (UDP, udp(40000, port, 20))] {
                counts(&bench, Egress, &from_pod(pod_for(to), to, protocol, &payload), Reason::NoGrant);
            }
        }
    }
}

pub fn an_expired_grant_opens_nothing_new_but_keeps_its_flow() {
    for family in [4, 6] {
        let (bench, to) = (ready(), granted(family));
        counts(&bench, Egress, &from_pod(pod_for(to), to, TCP, &tcp(40000, 443, 1, SYN)), Reason::Granted);
        bench.grant(to, Bits::of(1), MonoNs(1));
        counts(&bench, Egress, &from_pod(pod_for(to), to, TCP, &tcp(40001, 443, 1, SYN)), Reason::Expired);
        counts(&bench, Egress, &from_pod(pod_for(to), to, TCP, &tcp(40000, 443, 2, ACK)), Reason::Flow);
        // A SYN with another sequence number is a new connection on the old ports (I13).
        counts(&bench, Egress, &from_pod(pod_for(to), to, TCP, &tcp(40000, 443, 5, SYN)), Reason::Expired);
    }
}

pub fn a_flow_outlives_its_ttl_over_a_reload_but_not_its_rule() {
    let (mut bench, to) = (ready(), granted(4));
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40000, 443, 1, SYN)), Reason::Granted);
    bench.grant(to, Bits::of(1), MonoNs(1));
    bench.row.generation += 1;
    bench.flip();
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40000, 443, 2, ACK)), Reason::Flow);
    bench.grant(to, Bits::of(9), later());
    bench.row.generation += 1;
    bench.flip();
    counts(&bench, Ingress, &to_pod(to, pod4(), TCP, &tcp(443, 40000, 2, ACK)), Reason::NoGrant);
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40000, 443, 3, ACK)), Reason::NoGrant);
}

pub fn what_comes_back_for_a_revoked_flow_is_refused_even_where_ingress_is_open() {
    let (mut bench, to) = (ready(), granted(4));
    bench.flags(0, flag::DENY_INGRESS);
    let stray = to_pod(to, pod4(), TCP, &tcp(443, 40000, 2, ACK));
    counts(&bench, Ingress, &to_pod(to, pod4(), TCP, &tcp(443, 8080, 2, ACK)), Reason::DefaultAllow);
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40000, 443, 1, SYN)), Reason::Granted);
    counts(&bench, Ingress, &stray, Reason::Flow);
    bench.grant(to, Bits::of(9), later());
    bench.row.generation += 1;
    bench.flip();
    for _ in 0..2 {
        counts(&bench, Ingress, &stray, Reason::NoGrant);
        counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40000, 443, 2, ACK)), Reason::NoGrant);
    }
    // Granted again, the same ports are good for a new connection.
    bench.grant(to, Bits::of(1), later());
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40000, 443, 9, SYN)), Reason::Granted);
    counts(&bench, Ingress, &stray, Reason::Flow);
}

pub fn an_inbound_flow_opens_no_outbound_one() {
    for family in [4, 6] {
        let (bench, from) = (ready(), other(family));
        bench.kernel.set_peers(&[(from, A_PEER)], || Ok(())).unwrap();
        let pod = pod_for(from);
        counts(&bench, Ingress, &to_pod(from, pod, TCP, &tcp(50000, 8080, 1, SYN)), Reason::Peer);
        counts(&bench, Egress, &from_pod(pod, from, TCP, &tcp(8080, 50000, 1, SYN | ACK)), Reason::Flow);
        counts(&bench, Egress, &from_pod(pod, from, TCP, &tcp(8080, 50000, 1, SYN)), Reason::NotAReply);
        counts(&bench, Egress, &from_pod(pod, from, TCP, &tcp(8081, 50000, 1, SYN)), Reason::NoGrant);
    }
}

pub fn an_outbound_flow_opens_no_inbound_one() {
    let (bench, to) = (ready(), granted(4));
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40000, 443, 1, SYN)), Reason::Granted);
    counts(&bench, Ingress, &to_pod(to, pod4(), TCP, &tcp(443, 40000, 1, SYN)), Reason::NotAReply);
    counts(&bench, Ingress, &to_pod(to, pod4(), TCP, &tcp(443, 22, 1, SYN)), Reason::NoGrant);
}

pub fn a_cidr_rule_opens_no_peer_and_no_proxy_address() {
    for family in [4, 6] {
        let mut bench = ready();
        let mut rules = no_rules();
        rules.ports.push(port(Egress, Protocol::Any, 0, Bits::of(2), Bits::NONE));
        rules.cidrs.push((if family == 4 { "0.0.0.0/0" } else { "::/0" }.parse().unwrap(), Bits::of(2)));
        bench.rules(&rules);
        bench.flags(flag::HAS_CIDR, 0);
        let (world, pod, proxy) = (other(family), granted(family), pod_peer(family));
        bench.kernel.set_peers(&[(pod, A_PEER), (proxy, PeerId::STEERING)], || Ok(())).unwrap();
        bench.grant(pod, Bits::NONE, MonoNs(0));
        for (to, wanted) in [(world, Reason::Cidr), (pod, Reason::NoGrant), (proxy, Reason::SteeringAddress)] {
            counts(&bench, Egress, &from_pod(pod_for(to), to, TCP, &tcp(40000, 80, 1, SYN)), wanted);
        }
    }
}

pub fn pod_peer(family: u8) -> IpAddr {
    if family == 4 { "198.18.7.7".parse().unwrap() } else { "2001:db8:7::7".parse().unwrap() }
}

pub fn a_service_is_what_its_row_says() {
    let bench = ready();
    let service = other(4);
    let mut rules = no_rules();
    for (port, verdict) in [(80, ServiceVerdict::Allow), (81, ServiceVerdict::Deny)] {
        rules.services.push(ServiceRow { address: service, protocol: Protocol::Tcp, port, verdict });
    }
    bench.rules(&rules);
    bench.kernel.set_peers(&[(service, PeerId::SERVICE)], || Ok(())).unwrap();
    for (port, wanted) in [(80, Reason::Service), (81, Reason::PolicyDeny), (82, Reason::NoGrant)] {
        counts(&bench, Egress, &from_pod(pod4(), service, TCP, &tcp(40000, port, 1, SYN)), wanted);
    }
}

pub fn a_deny_beats_every_allow() {
    let bench = ready();
    let mut rules = no_rules();
    rules.ports.push(port(Egress, Protocol::Tcp, 443, Bits::of(1), Bits::of(4)));
    bench.rules(&rules);
    let to = granted(4);
    bench.grant(to, Bits::of(1) | Bits::of(4), later());
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40000, 443, 1, SYN)), Reason::PolicyDeny);
}

pub fn options_pass_but_source_routes_do_not() {
    let (bench, to) = (ready(), granted(4));
    let with = |options: &[u8]| {
        ethernet(POD_MAC, NODE_MAC, 0x0800, &ip4(v4(pod4()), v4(to), TCP, 0, options, &tcp(40000, 443, 1, SYN)))
    };
    counts(&bench, Egress, &with(&[7, 4, 4, 0]), Reason::Granted);
    counts(&bench, Egress, &with(&[1, 1, 1, 0]), Reason::Flow);
    counts(&bench, Egress, &with(&[131, 7, 4, 203, 0, 113, 9, 0]), Reason::SourceRoute);
    counts(&bench, Egress, &with(&[1, 1, 137, 7, 4, 203, 0, 113, 9, 0, 0, 0]), Reason::SourceRoute);
    counts(&bench, Egress, &with(&[7, 0, 0, 0]), Reason::Malformed);
    counts(&bench, Egress, &with(&[7, 9, 0, 0]), Reason::Malformed);
}

pub fn extension_headers_are_walked_up_to_a_bound() {
    let (bench, to) = (ready(), granted(6));
    let syn = tcp(40000, 443, 1, SYN);
    let chain = |headers: &[u8]| {
        let mut payload = syn.clone();
        let mut next = TCP;
        for header in headers.iter().rev() {
            payload = [extension(next, &[]), payload].concat();
            next = *header;
        }
        from_pod(pod6(), to, next, &payload)
    };
    counts(&bench, Egress, &chain(&[0, 60]), Reason::Granted);
    counts(&bench, Egress, &chain(&[0, 60, 60, 60, 60, 60]), Reason::Flow);
    counts(&bench, Egress, &chain(&[0, 60, 60, 60, 60, 60, 60]), Reason::ExtensionHeader);
    let routed = [extension(TCP, &[0, 1]), syn.clone()].concat();
    counts(&bench, Egress, &from_pod(pod6(), to, 43, &routed), Reason::SourceRoute);
}

pub fn tags_and_other_ethertypes_are_dropped() {
    let (bench, to) = (ready(), granted(4));
    let packet = ip(pod4(), to, TCP, &tcp(40000, 443, 1, SYN));
    let tagged = [&[0, 0, 8, 0][..], &packet].concat();
    let stacked = [&[0, 5, 0x81, 0, 0, 6, 8, 0][..], &packet].concat();
    counts(&bench, Egress, &ethernet(POD_MAC, NODE_MAC, 0x8100, &tagged), Reason::Tagged);
    counts(&bench, Egress, &ethernet(POD_MAC, NODE_MAC, 0x88a8, &stacked), Reason::Tagged);
    for ethertype in [0x88cc, 0x8863, 0x8847, 0x0026] {
        counts(&bench, Egress, &ethernet(POD_MAC, NODE_MAC, ethertype, &packet), Reason::Ethertype);
    }
}

pub fn other_protocols_and_tunnels_are_dropped() {
    let bench = ready();
    for family in [4, 6] {
        let to = granted(family);
        bench.grant(to, Bits::of(2), later()); // even where every protocol that can pass is allowed
        for protocol in [2, 4, 41, 47, 50, 51, 103, 115] {
            let frame = from_pod(pod_for(to), to, protocol, &[0x45; 40]);
            counts(&bench, Egress, &frame, Reason::Protocol);
        }
    }
}

pub fn malformed_headers_are_dropped() {
    let (bench, to) = (ready(), granted(4));
    let good = ip(pod4(), to, TCP, &tcp(40000, 443, 1, SYN));
    let bad = |at: usize, octet: u8| {
        let mut packet = good.clone();
        packet[at] = octet;
        ethernet(POD_MAC, NODE_MAC, 0x0800, &packet)
    };
    for (at, octet) in [(0, 0x55), (0, 0x44), (0, 0x4f), (2, 0xff), (3, 10), (32, 0x10)] {
        counts(&bench, Egress, &bad(at, octet), Reason::Malformed);
    }
    let good = ip(pod6(), granted(6), TCP, &tcp(40000, 443, 1, SYN));
    for (at, octet) in [(0, 0x40), (4, 0xff)] {
        let mut packet = good.clone();
        packet[at] = octet;
        counts(&bench, Egress, &ethernet(POD_MAC, NODE_MAC, 0x86dd, &packet), Reason::Malformed);
    }
    // The header of the transport is in the packet, not in the padding behind it.
    let bench = ready();
    for family in [4, 6] {
        let to = granted(family);
        bench.grant(to, Bits::of(2), later());
        for (protocol, header) in [(TCP, 20), (UDP, 8), (132, 12), (if family == 4 { ICMP } else { ICMPV6 }, 8)] {
            let whole = [tcp(40000, 443, 1, SYN), vec![0; 20]].concat();
            let padded = |octets| {
                let packet = [ip(pod_for(to), to, protocol, &whole[..octets]), whole.clone()].concat();
                bench.run(Egress, &ethernet(POD_MAC, NODE_MAC, ethertype_of(to), &packet))
            };
            assert_eq!(padded(header - 1).text(), Reason::Malformed.text(), "{protocol} in IPv{family}");
            assert_ne!(padded(header).text(), Reason::Malformed.text(), "{protocol} in IPv{family}");
        }
    }
}

pub fn an_ipv4_address_in_ipv6_is_no_address() {
    let bench = ready();
    let IpAddr::V4(own) = pod4() else { unreachable!("the pod's IPv4 address") };
    let IpAddr::V4(open) = granted(4) else { unreachable!("an IPv4 address") };
    let segment = tcp(40000, 443, 1, SYN);
    let mapped = |address: Ipv4Addr| IpAddr::V6(address.to_ipv6_mapped());
    counts(&bench, Egress, &from_pod(mapped(own), granted(6), TCP, &segment), Reason::Malformed);
    counts(&bench, Egress, &from_pod(pod6(), mapped(open), TCP, &segment), Reason::Malformed);
    counts(&bench, Egress, &from_pod(mapped(own), mapped(open), TCP, &segment), Reason::Malformed);
    counts(&bench, Ingress, &to_pod(mapped(open), mapped(own), TCP, &segment), Reason::Malformed);
}

pub fn foreign_sources_are_spoofed() {
    let bench = ready();
    for family in [4, 6] {
        let (to, neighbour) = (granted(family), other(family));
        let frame = from_pod(neighbour, to, TCP, &tcp(40000, 443, 1, SYN));
        counts(&bench, Egress, &frame, Reason::SpoofedAddress);
        let packet = ip(pod_for(to), to, TCP, &tcp(40000, 443, 1, SYN));
        let frame = ethernet([2, 9, 9, 9, 9, 9], NODE_MAC, ethertype_of(to), &packet);
        counts(&bench, Egress, &frame, Reason::SpoofedMac);
        let frame = to_pod(to, neighbour, TCP, &tcp(443, 40000, 1, ACK));
        counts(&bench, Ingress, &frame, Reason::OtherDestination);
    }
    let unspecified = from_pod("::".parse().unwrap(), granted(6), TCP, &tcp(40000, 443, 1, SYN));
    counts(&bench, Egress, &unspecified, Reason::SpoofedAddress);
}

pub fn the_first_good_frame_teaches_the_mac() {
    let (mut bench, to) = (ready(), granted(4));
    bench.row.mac = None;
    bench.flip();
    let packet = ip(pod4(), to, TCP, &tcp(40000, 443, 1, SYN));
    let other_mac = ethernet([2, 9, 9, 9, 9, 9], NODE_MAC, 0x0800, &packet);
    counts(&bench, Egress, &ethernet(POD_MAC, NODE_MAC, 0x0800, &packet), Reason::Granted);
    counts(&bench, Egress, &other_mac, Reason::SpoofedMac);
    bench.kernel.forget_mac(IFINDEX);
    counts(&bench, Egress, &other_mac, Reason::Flow);
}

pub fn arp_is_policed() {
    let bench = ready();
    let (own, stranger, none) = (v4(pod4()), v4(other(4)), Ipv4Addr::UNSPECIFIED);
    let send = |mac, message: &[u8]| ethernet(mac, [0xff; 6], 0x0806, message);
    counts(&bench, Egress, &send(POD_MAC, &arp(1, POD_MAC, own, stranger)), Reason::Arp);
    counts(&bench, Egress, &send(POD_MAC, &arp(2, POD_MAC, own, stranger)), Reason::Arp);
    counts(&bench, Egress, &send(POD_MAC, &arp(1, POD_MAC, none, own)), Reason::Arp);
    counts(&bench, Egress, &send(POD_MAC, &arp(2, POD_MAC, none, own)), Reason::ArpSpoofed);
    counts(&bench, Egress, &send(POD_MAC, &arp(2, POD_MAC, stranger, own)), Reason::ArpSpoofed);
    counts(&bench, Egress, &send(POD_MAC, &arp(1, [2, 9, 9, 9, 9, 9], own, own)), Reason::ArpSpoofed);
    let alien = [2, 9, 9, 9, 9, 9];
    counts(&bench, Egress, &send(alien, &arp(1, alien, own, own)), Reason::SpoofedMac);
    counts(&bench, Ingress, &send(NODE_MAC, &arp(1, NODE_MAC, stranger, own)), Reason::Arp);
    // Filled up to the shortest frame there is, and no further.
    let filled = |octets: usize| [&arp(1, POD_MAC, own, stranger)[..], &vec![7; octets]].concat();
    counts(&bench, Egress, &send(POD_MAC, &filled(18)), Reason::Arp);
    counts(&bench, Egress, &send(POD_MAC, &filled(19)), Reason::Malformed);
}

pub fn neighbour_discovery_is_policed() {
    let mut bench = ready();
    let (own, stranger) = (v6(pod6()), v6(other(6)));
    let node: Ipv6Addr = "2001:db8:1::1".parse().unwrap();
    let neighbour_pod: Ipv6Addr = "2001:db8:1::11".parse().unwrap();
    let link_local: Ipv6Addr = "fe80::ff:fe00:10".parse().unwrap(); // of POD_MAC
    let alien: Ipv6Addr = "fe80::1".parse().unwrap();
    let send = |source: Ipv6Addr, hops: u8, message: &[u8]| {
        ethernet(POD_MAC, NODE_MAC, 0x86dd, &ip6_hops(source, node, ICMPV6, hops, message))
    };
    bench.kernel.set_peers(&[(node.into(), PeerId::HOST), (neighbour_pod.into(), A_PEER)], || Ok(())).unwrap();
    let nd = Reason::Nd;
    counts(&bench, Egress, &send(own, 255, &neighbour(135, stranger, POD_MAC)), nd);
    counts(&bench, Egress, &send(own, 255, &neighbour(136, own, POD_MAC)), nd);
    counts(&bench, Egress, &send(Ipv6Addr::UNSPECIFIED, 255, &icmp(133, 0, &[0; 4])), nd);
    let spoofed = Reason::NdSpoofed;
    counts(&bench, Egress, &send(own, 64, &neighbour(136, own, POD_MAC)), spoofed);
    counts(&bench, Egress, &send(own, 255, &neighbour(136, stranger, POD_MAC)), spoofed);
    counts(&bench, Egress, &send(own, 255, &neighbour(136, own, NODE_MAC)), spoofed);
    counts(&bench, Egress, &send(own, 255, &icmp(134, 0, &[0; 12])), spoofed);
    counts(&bench, Egress, &send(own, 255, &icmp(137, 0, &[0; 36])), spoofed);
    counts(&bench, Egress, &send(stranger, 255, &neighbour(135, own, POD_MAC)), Reason::SpoofedAddress);
    // With a nonce, and with more.
    let solicit =
        |more: usize| [&neighbour(135, stranger, POD_MAC)[..], &[14, (more / 8) as u8], &vec![7; more - 2]].concat();
    counts(&bench, Egress, &send(own, 255, &solicit(8)), nd);
    counts(&bench, Egress, &send(own, 255, &solicit(16)), spoofed);
    // A report of the groups that it listens to with room for a router alert, and one with something more.
    let group: Ipv6Addr = "ff02::1:ff00:10".parse().unwrap();
    let report = |kind: u8, hops: u8, octets: usize| {
        let body = [&[0, 0, 0, 1][..], &group.octets(), &vec![7; octets]].concat();
        ethernet(POD_MAC, NODE_MAC, 0x86dd, &ip6_hops(own, group, ICMPV6, hops, &icmp(kind, 0, &body)))
    };
    for (kind, most) in [(131, 8), (132, 8), (143, 8 + 15 * 20 + 4)] {
        counts(&bench, Egress, &report(kind, 1, most), nd);
        counts(&bench, Egress, &report(kind, 1, most + 1), spoofed);
        counts(&bench, Egress, &report(kind, 64, most), spoofed);
    }
    // On a shared segment a link-local address must be made of the pod's MAC.
    counts(&bench, Egress, &send(alien, 255, &neighbour(136, alien, POD_MAC)), nd);
    bench.flags(flag::BRIDGED, 0);
    counts(&bench, Egress, &send(link_local, 255, &neighbour(136, link_local, POD_MAC)), nd);
    counts(&bench, Egress, &send(alien, 255, &neighbour(136, alien, POD_MAC)), Reason::SpoofedAddress);
    counts(&bench, Egress, &send(own, 255, &neighbour(136, alien, POD_MAC)), spoofed);

    // It stays on its link: what the node would forward is refused, on a bridge other pods are on the link.
    let to = |destination: Ipv6Addr, message: &[u8]| {
        ethernet(POD_MAC, NODE_MAC, 0x86dd, &ip6_hops(own, destination, ICMPV6, 255, message))
    };
    let solicited: Ipv6Addr = "ff02::1:ff00:9".parse().unwrap();
    let site: Ipv6Addr = "ff05::1:3".parse().unwrap();
    counts(&bench, Egress, &to(neighbour_pod, &neighbour(135, neighbour_pod, POD_MAC)), nd);
    bench.flags(0, flag::BRIDGED);
    for (destination, wanted) in [
        (solicited, nd),
        ("fe80::1".parse().unwrap(), nd),
        (node, nd),
        (stranger, Reason::Protocol),
        (neighbour_pod, Reason::Protocol),
        (site, Reason::Protocol),
    ] {
        counts(&bench, Egress, &to(destination, &neighbour(135, destination, POD_MAC)), wanted);
        counts(&bench, Egress, &to(destination, &neighbour(136, own, POD_MAC)), wanted);
        counts(&bench, Egress, &to(destination, &icmp(133, 0, &[0; 4])), wanted);
    }
    let forwarded = ip6_hops(stranger, own, ICMPV6, 254, &neighbour(135, own, NODE_MAC));
    counts(&bench, Ingress, &ethernet(NODE_MAC, POD_MAC, 0x86dd, &forwarded), spoofed);
    let here = ip6_hops(node, own, ICMPV6, 255, &neighbour(135, own, NODE_MAC));
    counts(&bench, Ingress, &ethernet(NODE_MAC, POD_MAC, 0x86dd, &here), nd);
}

pub fn echo_follows_the_rules_and_errors_follow_flows() {
    for (family, protocol, request, reply) in [(4, ICMP, 8, 0), (6, ICMPV6, 128, 129)] {
        let (bench, to) = (ready(), granted(family));
        let pod = pod_for(to);
        counts(&bench, Egress, &from_pod(pod, to, protocol, &echo(request, 5)), Reason::NoGrant);
        bench.grant(to, Bits::of(2), later());
        counts(&bench, Egress, &from_pod(pod, to, protocol, &echo(request, 5)), Reason::Granted);
        counts(&bench, Ingress, &to_pod(to, pod, protocol, &echo(reply, 5)), Reason::Flow);
        counts(&bench, Ingress, &to_pod(to, pod, protocol, &echo(reply, 6)), Reason::NotAReply);
        counts(&bench, Ingress, &to_pod(to, pod, protocol, &echo(request, 5)), Reason::NotAReply);
        let unknown = if family == 4 { 17 } else { 200 };
        counts(&bench, Egress, &from_pod(pod, to, protocol, &echo(unknown, 5)), Reason::Protocol);

        counts(&bench, Egress, &from_pod(pod, to, TCP, &tcp(40000, 443, 1, SYN)), Reason::Granted);
        let too_big = if family == 4 { (3, 4) } else { (2, 0) };
        let quoting = |port: u16| {
            let quoted = ip(pod, to, TCP, &tcp(port, 443, 1, SYN));
            icmp(too_big.0, too_big.1, &[&[0, 0, 5, 0][..], &quoted].concat())
        };
        let router = other(family);
        counts(&bench, Ingress, &to_pod(router, pod, protocol, &quoting(40000)), Reason::IcmpRelated);
        counts(&bench, Ingress, &to_pod(router, pod, protocol, &quoting(40001)), Reason::IcmpUnrelated);
        counts(&bench, Egress, &from_pod(pod, to, protocol, &quoting(40000)), Reason::IcmpUnrelated);

        // The pod's own errors: about what it received, to whom it received it from, and to nobody else.
        let received = ip(to, pod, TCP, &tcp(443, 40000, 1, ACK));
        let error = icmp(too_big.0, too_big.1, &[&[0, 0, 5, 0][..], &received].concat());
        counts(&bench, Egress, &from_pod(pod, to, protocol, &error), Reason::IcmpRelated);
        counts(&bench, Egress, &from_pod(pod, router, protocol, &error), Reason::IcmpUnrelated);
    }
}

/// Rules of one group, which `family`'s granted address is in.
pub fn with_rows(family: u8, rows: &[(Direction, Protocol, &[PortBlock])]) -> Bench {
    let mut bench = Bench::new();
    let mut rules = no_rules();
    for (direction, protocol, blocks) in rows {
        rules.ports.extend(blocks.iter().map(|ports| PortRow {
            direction: *direction,
            protocol: *protocol,
            ports: *ports,
            allow: Bits::of(2),
            deny: Bits::NONE,
        }));
    }
    rules.peers.push((A_PEER, Bits::of(2)));
    bench.rules(&rules);
    bench.kernel.set_peers(&[(granted(family), A_PEER)], || Ok(())).unwrap();
    bench.flags(EndpointRow::flags_of(&rules), 0);
    bench
}

pub fn a_block_of_ports_opens_what_is_in_it_and_no_more() {
    for family in [4, 6] {
        let to = granted(family);
        let bench = with_rows(family, &[(Egress, Protocol::Tcp, &PortBlock::of_range(1000, 1999))]);
        for (port, wanted) in [(999, false), (1000, true), (1023, true), (1024, true), (1999, true), (2000, false)] {
            let wanted = if wanted { Reason::Peer } else { Reason::NoGrant };
            counts(&bench, Egress, &from_pod(pod_for(to), to, TCP, &tcp(40000, port, 1, SYN)), wanted);
            counts(&bench, Egress, &from_pod(pod_for(to), to, UDP, &udp(40000, port, 8)), Reason::NoGrant);
            counts(&bench, Ingress, &to_pod(to, pod_for(to), TCP, &tcp(3, port, 1, SYN)), Reason::NoGrant);
        }
        // Port 0 of a packet is no wildcard, and a row of port 0 opens no other.
        let bench = with_rows(family, &[(Egress, Protocol::Tcp, &[PortBlock::one(0)])]);
        for (port, wanted) in [(0, Reason::Peer), (1, Reason::NoGrant), (443, Reason::NoGrant)] {
            counts(&bench, Egress, &from_pod(pod_for(to), to, TCP, &tcp(40000, port, 1, SYN)), wanted);
        }
    }
}

pub fn sctp_is_judged_by_its_ports() {
    for family in [4, 6] {
        let (to, pod) = (granted(family), pod_for(granted(family)));
        let rows: &[PortBlock] = &[PortBlock::one(3868)];
        let bench = with_rows(family, &[(Egress, Protocol::Sctp, rows)]);
        counts(&bench, Egress, &from_pod(pod, to, SCTP, &sctp(40000, 3868)), Reason::Peer);
        counts(&bench, Ingress, &to_pod(to, pod, SCTP, &sctp(3868, 40000)), Reason::Flow);
        counts(&bench, Ingress, &to_pod(to, pod, SCTP, &sctp(3868, 40001)), Reason::NoGrant);
        counts(&bench, Egress, &from_pod(pod, to, SCTP, &sctp(40000, 3869)), Reason::NoGrant);
        counts(&bench, Egress, &from_pod(pod, to, UDP, &udp(40000, 3868, 8)), Reason::NoGrant);
        if family == 6 {
            // An IPv4 frame this short is padded.
            counts(&bench, Egress, &from_pod(pod, to, SCTP, &sctp(40000, 3868)[..8]), Reason::Malformed);
        }
    }
}

pub fn a_question_over_icmp_is_judged_by_its_own_type_and_answered_by_its_own_answer() {
    for (family, protocol, asked, answer, others) in
        [(4, ICMP, 13, 14, &[8, 42][..]), (4, ICMP, 42, 43, &[8, 13]), (6, ICMPV6, 160, 161, &[128])]
    {
        let (to, pod) = (granted(family), pod_for(granted(family)));
        let rows: &[PortBlock] = &[PortBlock::icmp_type(asked)];
        let named = if family == 4 { Protocol::Icmp } else { Protocol::Icmpv6 };
        let bench = with_rows(family, &[(Egress, named, rows)]);
        for other in others {
            counts(&bench, Egress, &from_pod(pod, to, protocol, &echo(*other, 5)), Reason::NoGrant);
        }
        counts(&bench, Egress, &from_pod(pod, to, protocol, &echo(asked, 5)), Reason::Peer);
        // The answer to another question is none to this.
        let echo_reply = if family == 4 { 0 } else { 129 };
        counts(&bench, Ingress, &to_pod(to, pod, protocol, &echo(echo_reply, 5)), Reason::NotAReply);
        counts(&bench, Ingress, &to_pod(to, pod, protocol, &echo(answer, 5)), Reason::Flow);
        // An error that quotes the question belongs to it.
        let unreachable = if family == 4 { 3 } else { 1 };
        let quoting = |number| {
            let quoted = ip(pod, to, protocol, &echo(number, 5));
            icmp(unreachable, 1, &[&[0; 4][..], &quoted].concat())
        };
        counts(&bench, Ingress, &to_pod(other(family), pod, protocol, &quoting(asked)), Reason::IcmpRelated);
        counts(&bench, Ingress, &to_pod(other(family), pod, protocol, &quoting(others[0])), Reason::IcmpUnrelated);
    }
}

/// I11: rules without ports and open directions let questions pass, and no other type of ICMP.
pub fn a_type_of_icmp_that_asks_nothing_is_open_only_to_a_rule_that_names_it() {
    for (family, protocol, named) in [(4, ICMP, Protocol::Icmp), (6, ICMPV6, Protocol::Icmpv6)] {
        let (to, pod) = (granted(family), pod_for(granted(family)));
        let error = if family == 4 { 3 } else { 1 };
        let quoted = ip(pod, to, TCP, &tcp(1, 2, 1, SYN));
        let unrelated = icmp(error, 1, &[&[0; 4][..], &quoted].concat());
        let (reply, redirect) = if family == 4 { (0, 5) } else { (129, 144) };
        let frames = [
            (unrelated.clone(), Reason::IcmpUnrelated),
            (echo(reply, 5), Reason::NotAReply),
            (echo(redirect, 5), Reason::Protocol),
        ];
        let any: &[PortBlock] = &[PortBlock::ANY];
        let mut bench = with_rows(family, &[(Egress, Protocol::Any, any), (Ingress, Protocol::Any, any)]);
        for off in [0, flag::DENY_EGRESS | flag::DENY_INGRESS] {
            bench.flags(0, off);
            for (payload, wanted) in &frames {
                counts(&bench, Egress, &from_pod(pod, to, protocol, payload), *wanted);
                counts(&bench, Ingress, &to_pod(to, pod, protocol, payload), *wanted);
            }
        }
        let types = [error, reply, redirect].map(PortBlock::icmp_type);
        let bench = with_rows(family, &[(Ingress, named, &types)]);
        for (payload, wanted) in &frames {
            for _ in 0..2 {
                counts(&bench, Ingress, &to_pod(to, pod, protocol, payload), Reason::Peer);
            }
            counts(&bench, Egress, &from_pod(pod, to, protocol, payload), *wanted);
            counts(&bench, Ingress, &to_pod(other(family), pod, protocol, payload), *wanted);
        }
        assert!(bench.kernel.tables.flows.rows().unwrap().is_empty(), "they make no flow");
    }
}

pub fn a_query_is_steered_to_the_proxy_and_its_reply_back() {
    for family in [4, 6] {
        let mut bench = ready();
        let (resolver, local) = (other(family), pod_peer(family));
        bench.kernel.set_steering(&[(resolver, local)], 15353).unwrap();
        let pod = pod_for(resolver);
        let query = |to, port| from_pod(pod, to, UDP, &udp(40000, port, 30));
        counts(&bench, Egress, &query(resolver, 53), Reason::NoGrant);
        bench.flags(flag::STEER, 0);
        let (reason, _, steered) = bench.run_whole(Egress, &query(resolver, 53));
        assert_eq!(reason, Reason::Steered);
        assert_eq!(addresses_and_ports(&steered), (pod, local, 40000, 15353));
        counts(&bench, Egress, &query(granted(family), 53), Reason::UnknownResolver);
        counts(&bench, Egress, &query(resolver, 443), Reason::NoGrant);
        let reply = to_pod(local, pod, UDP, &udp(15353, 40000, 30));
        let (reason, _, steered) = bench.run_whole(Ingress, &reply);
        assert_eq!(reason, Reason::Steered);
        assert_eq!(addresses_and_ports(&steered), (resolver, pod, 53, 40000));
        let forged = to_pod(resolver, pod, UDP, &udp(53, 40000, 30));
        counts(&bench, Ingress, &forged, Reason::NoGrant);
    }
}

pub fn dns_over_tls_is_steered_only_where_the_proxy_serves_it() {
    use namegate::kernel::rules::ProxyPorts;
    for family in [4, 6] {
        let mut bench = ready();
        let (resolver, local) = (other(family), pod_peer(family));
        let pod = pod_for(resolver);
        bench.flags(flag::STEER, 0);
        let hello = |to, port| from_pod(pod, to, TCP, &tcp(40000, port, 1, SYN));
        let back = |port| to_pod(local, pod, TCP, &tcp(port, 40000, 1, SYN | ACK));
        let serve = |tls: u16| {
            let ports = ProxyPorts { dns: 15353, tls };
            bench.kernel.set_steering(&[(resolver, local)], ports).unwrap();
            bench.kernel.set_limits(limits(), ports).unwrap();
        };

        // Off: a port as any other, here one that no rule opens.
        serve(0);
        counts(&bench, Egress, &hello(resolver, 853), Reason::NoGrant);
        counts(&bench, Ingress, &back(15853), Reason::NoGrant);
        counts(&bench, Ingress, &back(0), Reason::NoGrant);

        serve(15853);
        let (reason, _, steered) = bench.run_whole(Egress, &hello(resolver, 853));
        assert_eq!((reason, addresses_and_ports(&steered)), (Reason::Steered, (pod, local, 40000, 15853)));
        let (reason, _, steered) = bench.run_whole(Ingress, &back(15853));
        assert_eq!((reason, addresses_and_ports(&steered)), (Reason::Steered, (resolver, pod, 853, 40000)));
        let (reason, _, steered) = bench.run_whole(Egress, &hello(resolver, 53));
        assert_eq!((reason, addresses_and_ports(&steered)), (Reason::Steered, (pod, local, 40000, 15353)));
        // Another server, and UDP: as any other port.
        counts(&bench, Egress, &hello(granted(family), 853), Reason::NoGrant);
        counts(&bench, Egress, &from_pod(pod, resolver, UDP, &udp(40000, 853, 30)), Reason::NoGrant);

        // Off again: nothing is left of it.
        serve(0);
        counts(&bench, Egress, &hello(resolver, 853), Reason::NoGrant);
        counts(&bench, Ingress, &back(15853), Reason::NoGrant);
    }
}

fn addresses_and_ports(frame: &[u8]) -> (IpAddr, IpAddr, u16, u16) {
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    if frame[12] == 8 {
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
        return (address(26), address(30), port(34), port(36));
    }
    let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
    (address(22), address(38), port(54), port(56))
}

pub fn a_refusal_is_answered_when_asked_to() {
    for family in [4, 6] {
        let mut bench = ready();
        bench.flags(flag::REJECT, 0);
        let to = other(family);
        let pod = pod_for(to);
        let (_, action, frame) = bench.run_whole(Egress, &from_pod(pod, to, TCP, &tcp(40000, 443, 77, SYN)));
        assert_eq!(action, 7, "TC_ACT_REDIRECT");
        assert_eq!(addresses_and_ports(&frame), (to, pod, 443, 40000));
        let l4 = if family == 4 { 34 } else { 54 };
        assert_eq!(frame[l4 + 13], RST | ACK);
        assert_eq!(frame[l4 + 8..l4 + 12], 78u32.to_be_bytes(), "it acknowledges the SYN");
        let (_, action, frame) = bench.run_whole(Egress, &from_pod(pod, to, UDP, &udp(40000, 443, 20)));
        assert_eq!(action, 7);
        let wanted = if family == 4 { [3, 13] } else { [1, 1] };
        assert_eq!(frame[l4..l4 + 2], wanted, "administratively prohibited");
        // Never for a reset, nor for what was not understood.
        let (_, action, _) = bench.run_whole(Egress, &from_pod(pod, to, TCP, &tcp(40000, 443, 1, RST)));
        assert_eq!(action, 2);
        let (_, action, _) = bench.run_whole(Egress, &from_pod(pod, to, 47, &[0; 20]));
        assert_eq!(action, 2);
    }
}

pub fn without_a_policy_the_pod_does_what_it_likes_as_itself() {
    let mut bench = ready();
    bench.flags(0, flag::ENFORCE);
    let to = other(4);
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40000, 80, 1, SYN)), Reason::Unenforced);
    counts(&bench, Egress, &from_pod(pod4(), to, 47, &[0; 20]), Reason::Unenforced);
    counts(&bench, Ingress, &to_pod(to, pod4(), TCP, &tcp(40000, 80, 1, SYN)), Reason::Unenforced);
    counts(&bench, Egress, &from_pod(other(4), to, TCP, &tcp(1, 80, 1, SYN)), Reason::SpoofedAddress);
}

pub fn an_audited_endpoint_is_told_of_and_let_through_once_a_conversation() {
    let (mut bench, to) = (ready(), other(4));
    bench.flags(flag::AUDIT, 0);
    let syn = from_pod(pod4(), to, TCP, &tcp(40000, 80, 1, SYN));
    counts(&bench, Egress, &syn, Reason::Audit);
    counts(&bench, Ingress, &to_pod(to, pod4(), TCP, &tcp(80, 40000, 9, SYN | ACK)), Reason::Flow);
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40000, 80, 2, ACK)), Reason::Flow);
    counts(&bench, Ingress, &to_pod(to, pod4(), TCP, &tcp(40001, 81, 1, SYN)), Reason::Audit);
    counts(&bench, Egress, &from_pod(pod4(), to, 47, &[0; 20]), Reason::Audit);
    counts(&bench, Egress, &from_pod(pod4(), granted(4), TCP, &tcp(40000, 443, 1, SYN)), Reason::Granted);
    // It can't be another, all the same.
    counts(&bench, Egress, &from_pod(other(4), to, TCP, &tcp(1, 80, 1, SYN)), Reason::SpoofedAddress);
    counts(&bench, Ingress, &to_pod(to, other(4), TCP, &tcp(443, 40000, 1, ACK)), Reason::OtherDestination);
}

pub fn the_end_of_an_audit_ends_what_policy_does_not_allow() {
    let (mut bench, to) = (ready(), other(4));
    bench.flags(flag::AUDIT, 0);
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40000, 80, 1, SYN)), Reason::Audit);
    // A reload in audit leaves it alone.
    bench.row.generation += 1;
    bench.flip();
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40000, 80, 2, ACK)), Reason::Flow);
    bench.row.generation += 1;
    bench.flags(0, flag::AUDIT);
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40000, 80, 3, ACK)), Reason::NoGrant);
    counts(&bench, Ingress, &to_pod(to, pod4(), TCP, &tcp(80, 40000, 9, ACK)), Reason::NoGrant);
}

pub fn a_closed_endpoint_and_an_unknown_interface_pass_nothing() {
    let mut bench = ready();
    bench.flags(flag::CLOSED, 0);
    let syn = from_pod(pod4(), granted(4), TCP, &tcp(40000, 443, 1, SYN));
    counts(&bench, Egress, &syn, Reason::EndpointClosed);
    counts(&bench, Ingress, &syn, Reason::EndpointClosed);
    bench.kernel.delete_endpoint(IFINDEX);
    counts(&bench, Egress, &syn, Reason::NoEndpoint);
    counts(&bench, Ingress, &syn, Reason::NoEndpoint);
}

pub fn flows_beyond_the_budget_are_refused_until_one_ends() {
    let (bench, to) = (ready(), granted(4));
    bench.kernel.set_limits(FlowLimits { limit: 9, share: 2, pool: 1, ..limits() }, 15353).unwrap();
    for port in 0..3 {
        counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40000 + port, 443, 1, SYN)), Reason::Granted);
    }
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40003, 443, 1, SYN)), Reason::FlowBudget);
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40002, 443, 2, ACK)), Reason::Flow);
    bench.forget_flows();
    counts(&bench, Egress, &from_pod(pod4(), to, TCP, &tcp(40003, 443, 1, SYN)), Reason::Granted);
}

pub fn a_dry_run_leaves_no_trace() {
    let bench = ready();
    let syn = from_pod(pod4(), granted(4), TCP, &tcp(40000, 443, 1, SYN));
    let before = bench.kernel.counted();
    assert_eq!(bench.kernel.run(Egress, &syn, IFINDEX, 1, true).unwrap().action, -1);
    assert_eq!(bench.kernel.counted(), before);
    assert!(bench.kernel.tables.flows.rows().unwrap().is_empty());
    bench.kernel.probe(IFINDEX, false, true).unwrap();
    assert_eq!(bench.kernel.counted(), before);
    // The control: without the mark the same frame leaves both.
    bench.run(Egress, &syn);
    assert_eq!(bench.kernel.tables.flows.rows().unwrap().len(), 1);
}

pub fn the_probe_notices_an_endpoint_that_lets_everything_through() {
    let mut bench = ready();
    bench.kernel.probe(IFINDEX, false, true).unwrap();
    bench.flags(flag::CLOSED, 0);
    assert!(bench.kernel.probe(IFINDEX, false, true).is_err());
    bench.kernel.probe(IFINDEX, true, true).unwrap();
}

pub fn many_rows_are_written_and_read_in_batches() {
    let bench = ready();
    let addresses = (0..10_000u32).map(|n| IpAddr::from(Ipv4Addr::from(0xcb00_7100 + n)));
    let writes: Vec<_> = addresses
        .map(|address| {
            let mut slots = [namegate::engine::grant::Slot::default(); 4];
            slots[0] = namegate::engine::grant::Slot { bits: Bits::of(1), until: later() };
            namegate::engine::grant::GrantWrite { address, slots }
        })
        .collect();
    namegate::kernel::GrantStore::install(&bench.kernel, ENDPOINT, &writes).unwrap();
    assert_eq!(bench.kernel.grants().unwrap().len(), 10_000 + 1, "one granted IPv4 address is among them");
    assert_eq!(bench.kernel.delete_grants_except(&[]).unwrap(), 10_001);
}
