//! Frames: a well-formed one of a conversation, most of them changed so that one rule or another must stop them, some of them
//! only octets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use namegate_frames::Skb;

#[path = "../../../programs/frames.rs"]
#[expect(dead_code, reason = "the tests of the kernel use more of it")]
mod build;
mod pieces;

use build::{arp, echo, ethernet, extension, icmp, ip, ip4, ip6_hops, neighbour, sctp, tcp, udp};

use super::checksum;
use super::choices::Choices;
use super::judge::{FlowKey, Judge, PROBE};
use super::reading::{ICMP, ICMPV6, SCTP, TCP, UDP};
use super::world::{Endpoint, NOBODY, PORTS, PROXY, PROXY_TLS, World, remotes};

const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ALIEN_MAC: [u8; 6] = [2, 9, 9, 9, 9, 9];

/// A frame and how the kernel hands it over.
#[derive(Clone, Debug)]
pub struct Frame {
    octets: Vec<u8>,
    linear: usize,
    ifindex: u32,
    inbound: bool,
    mark: u32,
    tagged: bool,
    gso_size: u32,
    unfinished: usize,
}

impl Frame {
    pub fn skb(&self) -> Skb<'_> {
        Skb {
            octets: &self.octets,
            linear: self.linear.min(self.octets.len()),
            ifindex: self.ifindex,
            mark: self.mark,
            tagged: self.tagged,
            gso_size: self.gso_size,
            inbound: self.inbound,
            unfinished: self.unfinished,
        }
    }
}

/// A packet before it is put together.
struct Draft {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: Vec<u8>,
    source_mac: [u8; 6],
}

pub fn frame(c: &mut Choices<'_>, world: &World, judge: &Judge) -> Frame {
    let endpoint = &world.endpoints[c.of(&[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3])];
    let inbound = c.chance(30);
    let draft = draft(c, world, judge, endpoint, inbound, 30);
    let mut frame = Frame {
        octets: Vec::new(),
        linear: usize::MAX,
        ifindex: if c.chance(2) { NOBODY } else { endpoint.ifindex },
        inbound,
        mark: if c.chance(2) { PROBE } else { 0 },
        tagged: false,
        gso_size: if c.chance(3) { 1400 } else { 0 },
        unfinished: 0,
    };
    frame.octets = match c.below(20) {
        0..9 => wrap(&draft),
        9..12 => pieces::fragmented(c, world, judge, endpoint, &mut frame),
        _ => odd(c, world, judge, endpoint, draft, &mut frame),
    };
    match c.below(4) {
        0 | 1 => checksum::mend(&mut frame.octets),
        2 => frame.unfinished = checksum::begin(&mut frame.octets),
        _ => {}
    }
    match c.below(16) {
        0 => frame.linear = c.below(64),
        1 => {
            frame.octets.truncate(c.below(frame.octets.len() + 1));
            frame.unfinished = 0;
        }
        2 => flip(c, &mut frame.octets),
        3 => frame.octets.resize(frame.octets.len() + c.below(200), 0x5a),
        _ => {}
    }
    frame
}

fn wrap(draft: &Draft) -> Vec<u8> {
    let packet = ip(draft.source, draft.destination, draft.protocol, &draft.payload);
    framed(draft, &packet)
}

/// Without padding: a frame may be as short as it likes.
fn framed(draft: &Draft, packet: &[u8]) -> Vec<u8> {
    let ethertype = if draft.source.is_ipv4() { 0x0800 } else { 0x86dd };
    bare(draft.source_mac, ethertype, packet)
}

fn bare(source: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(source, NODE_MAC, ethertype, payload);
    frame.truncate(14 + payload.len());
    frame
}

fn flip(c: &mut Choices<'_>, octets: &mut [u8]) {
    for _ in 0..=c.below(4) {
        if !octets.is_empty() {
            let at = c.below(octets.len().min(120));
            octets[at] = c.octet();
        }
    }
}

/// `live`: percent that belong to a flow.
fn draft(c: &mut Choices<'_>, world: &World, judge: &Judge, endpoint: &Endpoint, inbound: bool, live: usize) -> Draft {
    let live = if c.chance(live) { flow_of(c, judge, endpoint) } else { None };
    let (remote, protocol, local_port, remote_port) = match live {
        Some(key) => (key.remote, key.protocol, key.local_port, key.remote_port),
        None => {
            let placed: Vec<_> = remotes().into_iter().filter(|remote| world.places.contains_key(remote)).collect();
            let ports = [PROXY, PROXY_TLS].into_iter().chain(PORTS).collect::<Vec<_>>();
            let (remote, port) = match c.below(14) {
                0 if !world.pairs.is_empty() => (c.of(&world.pairs).1, c.of(&ports)),
                1..4 if !world.pairs.is_empty() => (c.of(&world.pairs).0, c.of(&[53, 53, 53, 853])),
                4 => (c.of(&remotes()), 53),
                5..10 if !placed.is_empty() => (c.of(&placed), c.of(&PORTS)),
                _ => (c.of(&remotes()), c.of(&ports)),
            };
            let icmp = if remote.is_ipv4() { ICMP } else { ICMPV6 };
            (remote, c.of(&[TCP, TCP, TCP, TCP, TCP, TCP, UDP, UDP, SCTP, icmp, icmp]), c.of(&[40000, 8080, 80]), port)
        }
    };
    let own = endpoint.addresses.iter().copied().find(|own| own.is_ipv4() == remote.is_ipv4());
    // An endpoint without an address of the family claims its neighbour's.
    let own = own.unwrap_or(if remote.is_ipv4() {
        Ipv4Addr::new(198, 51, 100, 10).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10).into()
    });
    let (from, to) = if inbound { (remote_port, local_port) } else { (local_port, remote_port) };
    let payload = match protocol {
        TCP => tcp(
            from,
            to,
            1 + c.below(3) as u32,
            c.of(&[2, 2, 2, 2, 2, 18, 16, 16, 16, 16, 16, 16, 16, 17, 4, 20, 1, 0]),
        ),
        UDP => udp(from, to, c.below(40)),
        SCTP => sctp(from, to),
        ICMP => {
            let kind = c.of(&[8, 8, 8, 0, 13, 14, 42, 43, 5, 17]);
            echo(if live.is_some() && c.chance(70) { (remote_port >> 8) as u8 } else { kind }, local_port)
        }
        _ => {
            let kind = c.of(&[128, 128, 128, 129, 160, 161, 144, 200]);
            echo(if live.is_some() && c.chance(70) { (remote_port >> 8) as u8 } else { kind }, local_port)
        }
    };
    let (source, destination) = if inbound { (remote, own) } else { (own, remote) };
    Draft { source, destination, protocol, payload, source_mac: if inbound { NODE_MAC } else { endpoint.mac } }
}

/// One of the endpoint's flows, not always the first.
fn flow_of(c: &mut Choices<'_>, judge: &Judge, endpoint: &Endpoint) -> Option<FlowKey> {
    let skip = c.below(16);
    let mut own = judge.flows.keys().filter(|key| key.endpoint == endpoint.id).take(17);
    own.clone().nth(skip).or_else(|| own.next()).copied()
}

/// A frame that breaks a rule, or is none of IP's.
fn odd(
    c: &mut Choices<'_>,
    world: &World,
    judge: &Judge,
    endpoint: &Endpoint,
    mut draft: Draft,
    frame: &mut Frame,
) -> Vec<u8> {
    let packet = ip(draft.source, draft.destination, draft.protocol, &draft.payload);
    let v4 = draft.source.is_ipv4();
    match c.below(25) {
        0 => match c.below(3) {
            0 => frame.tagged = true,
            1 => return bare(draft.source_mac, 0x8100, &[&[0, 0, 8, 0][..], &packet].concat()),
            _ => return bare(draft.source_mac, 0x88a8, &[&[0, 5, 0x81, 0, 0, 6, 8, 0][..], &packet].concat()),
        },
        1 => return bare(draft.source_mac, c.of(&[0x88cc, 0x8863, 0x8847, 0x0026, 0]), &packet),
        2 | 3 => match (draft.source, draft.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let options: &[&[u8]] = &[
                    &[7, 4, 4, 0],
                    &[1, 1, 1, 0],
                    &[131, 7, 4, 203, 0, 113, 9, 0],
                    &[1, 137, 7, 4, 203, 0, 113, 9, 0, 0, 0, 0],
                    &[131, 3, 4, 0],
                    &[7, 0, 0, 0],
                    &[7, 9, 0, 0],
                    &[1, 1, 1, 7],
                    &[0, 131, 3, 4],
                ];
                let options = if c.chance(20) {
                    (0..4 * c.below(11)).map(|_| c.of(&[1, 1, 7, 2, 3, 4, 0, 131, 137])).collect()
                } else {
                    c.of(options).to_vec()
                };
                return framed(&draft, &ip4(source, destination, draft.protocol, 0, &options, &draft.payload));
            }
            _ => {
                let (next, payload) = chain(c, draft.protocol, &draft.payload);
                return framed(&draft, &ip(draft.source, draft.destination, next, &payload));
            }
        },
        4 | 5 => match (draft.source, draft.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let field = c.of(&[0x2000, 0x0001, 0x2010, 0x4000, 0x8000, 0x1fff, 0x2001]);
                return framed(&draft, &ip4(source, destination, draft.protocol, field, &[], &draft.payload));
            }
            _ => {
                let field = c.of(&[[0, 1], [0, 0x50], [0, 0x51], [0, 0], [0xff, 0xf8]]);
                let payload = [extension(draft.protocol, &field), draft.payload.clone()].concat();
                return framed(&draft, &ip(draft.source, draft.destination, 44, &payload));
            }
        },
        6 => draft.protocol = c.of(&[2, 4, 41, 47, 50, 51, 103, 115, 0, 255, ICMP, ICMPV6, 59]),
        7 | 8 => {
            let source = match c.below(4) {
                0 => c.of(&remotes()),
                1 => Ipv6Addr::UNSPECIFIED.into(),
                2 => Ipv4Addr::UNSPECIFIED.into(),
                _ => world.endpoints[c.below(4)].addresses[0],
            };
            if source.is_ipv4() == v4 {
                draft.source = source;
            }
        }
        9 => draft.source_mac = c.of(&[ALIEN_MAC, NODE_MAC, [2, 0, 0, 0, 0, 0x11]]),
        10 => {
            draft.destination = world.endpoints[c.below(4)]
                .addresses
                .iter()
                .copied()
                .find(|own| own.is_ipv4() == v4)
                .unwrap_or(draft.destination)
        }
        11 => {
            draft.destination = match v4 {
                true => c.of(&[Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::BROADCAST, Ipv4Addr::new(239, 9, 9, 9)]).into(),
                false => c
                    .of(&[Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 1, 3)])
                    .into(),
            };
        }
        // An address of IPv4 in a header of IPv6.
        12 if !v4 => {
            let mapped = |address: IpAddr| match address {
                IpAddr::V4(v4) => IpAddr::from(v4.to_ipv6_mapped()),
                IpAddr::V6(_) => address,
            };
            draft.destination = mapped(c.of(&remotes()));
            if c.chance(50) {
                draft.source = mapped(endpoint.addresses[0]);
            }
        }
        12..=14 => return address_resolution(c, endpoint),
        15 | 16 => return neighbours(c, world, endpoint),
        17..=19 => return error_about(c, judge, endpoint, frame.inbound, draft),
        20 => {
            let mut packet = packet;
            let at = if v4 { c.of(&[2, 0, 0, 3, 3]) } else { c.of(&[4, 5, 5, 0]) };
            packet[at] = c.octet();
            return framed(&draft, &packet);
        }
        21..24 if !v4 => {
            let count = 5 + c.below(4);
            let (mut next, mut payload) = (draft.protocol, draft.payload.clone());
            for _ in 0..count {
                payload = [extension(next, &[]), payload].concat();
                next = 60;
            }
            return framed(&draft, &ip(draft.source, draft.destination, next, &payload));
        }
        21..24 => {}
        _ => {
            let length = c.below(200);
            return (0..length).map(|_| c.octet()).collect();
        }
    }
    wrap(&draft)
}

/// Extension headers before the payload, some of them longer than the shortest.
fn chain(c: &mut Choices<'_>, protocol: u8, payload: &[u8]) -> (u8, Vec<u8>) {
    let (mut next, mut whole) = (protocol, payload.to_vec());
    for _ in 0..1 + c.below(8) {
        let kind = c.of(&[0, 60, 60, 60, 43, 44]);
        let segments = u8::from(kind == 43 && c.chance(50));
        let mut header = extension(next, &[0, segments]);
        if c.chance(20) {
            header[1] = c.below(4) as u8;
            header.resize((usize::from(header[1]) + 1) * 8, 0);
        }
        whole = [header, whole].concat();
        next = kind;
    }
    (next, whole)
}

fn address_resolution(c: &mut Choices<'_>, endpoint: &Endpoint) -> Vec<u8> {
    let own = endpoint.addresses.iter().find_map(|own| if let IpAddr::V4(own) = own { Some(*own) } else { None });
    let own = own.unwrap_or(Ipv4Addr::new(198, 51, 100, 10));
    let sender = c.of(&[own, own, Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(203, 0, 113, 9)]);
    let mac = c.of(&[endpoint.mac, endpoint.mac, endpoint.mac, ALIEN_MAC]);
    let sent_from = c.of(&[mac, mac, mac, endpoint.mac]);
    let mut message = arp(c.of(&[1, 1, 2, 3]), mac, sender, own);
    if c.chance(10) {
        message[c.below(6)] = c.octet();
    }
    bare(sent_from, 0x0806, &message)
}

fn neighbours(c: &mut Choices<'_>, world: &World, endpoint: &Endpoint) -> Vec<u8> {
    let mac = endpoint.mac;
    let local = |mac: [u8; 6]| {
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]])
    };
    let own = endpoint.addresses.iter().find_map(|own| if let IpAddr::V6(own) = own { Some(*own) } else { None });
    let own = own.unwrap_or(local(mac));
    let stranger = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 3);
    let source = c.of(&[own, own, local(mac), local(ALIEN_MAC), Ipv6Addr::UNSPECIFIED, stranger]);
    let peers = world.places.keys().filter_map(|peer| if let IpAddr::V6(peer) = peer { Some(*peer) } else { None });
    let mut to: Vec<Ipv6Addr> = peers.collect();
    to.extend(
        ["ff02::1", "ff02::1:ff00:9", "ff05::1:3", "fe80::1"].map(|text| text.parse::<Ipv6Addr>().expect("an address")),
    );
    let target = c.of(&[own, own, local(mac), stranger]);
    let option = c.of(&[mac, mac, mac, ALIEN_MAC]);
    let message = match c.below(8) {
        0..=2 => neighbour(135, target, option),
        3..=5 => neighbour(136, target, option),
        6 => icmp(c.of(&[133, 134, 137, 131, 132, 143, 143]), 0, &[0; 325][..c.of(&[4, 20, 20, 24, 28, 324, 325])]),
        _ => icmp(c.of(&[133, 135, 136]), c.of(&[0, 1]), &[&[0; 4][..], &target.octets()].concat()),
    };
    let report = matches!(message[0], 131 | 132 | 143);
    let hops = if report && c.chance(80) { 1 } else { c.of(&[255, 255, 255, 64, 1]) };
    // A router alert (RFC 2711) in front of reports, as a rule.
    let (next, message) = match c.chance(if report { 60 } else { 2 }) {
        true => (0, [extension(ICMPV6, &[5, 2, 0, 0, 1, 0]), message].concat()),
        false => (ICMPV6, message),
    };
    let packet = ip6_hops(source, c.of(&to), next, hops, &message);
    bare(c.of(&[mac, mac, mac, ALIEN_MAC]), 0x86dd, &packet)
}

/// An ICMP error about a packet of a flow, or of none.
fn error_about(c: &mut Choices<'_>, judge: &Judge, endpoint: &Endpoint, inbound: bool, draft: Draft) -> Vec<u8> {
    let live = if c.chance(70) { flow_of(c, judge, endpoint) } else { None };
    let Draft { source: sender, destination: receiver, source_mac, .. } = draft;
    let own =
        endpoint.addresses.iter().copied().find(|own| live.is_none_or(|key| key.remote.is_ipv4() == own.is_ipv4()));
    let (own, remote, quoted, protocol) = match (own, live) {
        (Some(own), Some(key)) => {
            let (from, to) =
                if inbound { (key.local_port, key.remote_port) } else { (key.remote_port, key.local_port) };
            let quoted = match key.protocol {
                TCP => tcp(from, to, 1, 16),
                UDP => udp(from, to, 8),
                SCTP => sctp(from, to),
                _ => echo((key.remote_port >> 8) as u8, key.local_port),
            };
            (own, key.remote, quoted, key.protocol)
        }
        _ if inbound => (receiver, sender, draft.payload, draft.protocol),
        _ => (sender, receiver, draft.payload, draft.protocol),
    };
    let (inner_source, inner_destination) = if inbound { (own, remote) } else { (remote, own) };
    let mut inner = ip(inner_source, inner_destination, protocol, &quoted);
    if c.chance(15) {
        inner.truncate(c.below(inner.len() + 1));
    }
    if c.chance(10) {
        flip(c, &mut inner);
    }
    let v4 = own.is_ipv4();
    let (protocol, kind) = if v4 { (ICMP, c.of(&[3, 3, 11, 12, 4])) } else { (ICMPV6, c.of(&[1, 2, 3, 4])) };
    let message = icmp(kind, c.of(&[0, 1, 4]), &[&[0, 0, 5, 0][..], &inner].concat());
    // A router may have sent what comes in.
    let router = remotes()[if v4 { 2 } else { 8 }];
    let outer = if inbound && c.chance(50) { router } else { remote };
    let (source, destination) = if inbound { (outer, own) } else { (own, if c.chance(20) { router } else { remote }) };
    bare(source_mac, if v4 { 0x0800 } else { 0x86dd }, &ip(source, destination, protocol, &message))
}
