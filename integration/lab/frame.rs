//! Frames for the wire, octet by octet: what a workload with CAP_NET_RAW can send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ethernet header and payload.
pub fn ethernet(to: &str, from: &str, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&mac(to)[..], &mac(from)[..], &ethertype.to_be_bytes()[..], payload].concat()
}

/// Puts tags (TPID, TCI) between the addresses and the ethertype, outermost first.
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let tags: Vec<u8> = tags.iter().flat_map(|(tpid, tci)| [tpid.to_be_bytes(), tci.to_be_bytes()].concat()).collect();
    [&frame[..12], &tags[..], &frame[12..]].concat()
}

/// 802.3 with LLC and SNAP: the ethertype hides behind a length.
pub fn snap(frame: &[u8]) -> Vec<u8> {
    let length = (frame.len() - 14 + 8) as u16;
    [&frame[..12], &length.to_be_bytes()[..], &[0xaa, 0xaa, 3, 0, 0, 0][..], &frame[12..]].concat()
}

/// The ethertype of an address family.
pub fn ethertype(address: IpAddr) -> u16 {
    if address.is_ipv4() { 0x0800 } else { 0x86dd }
}

/// An IP packet of either family without options.
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, protocol, &[], 0, payload),
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from, to, protocol, payload),
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// An IPv4 packet with options (padded here) and the raw fragment field (flags and offset in units of 8).
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, options: &[u8], fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut options = options.to_vec();
    options.resize(options.len().next_multiple_of(4), 0);
    let words = 5 + options.len() / 4;
    let total = (words * 4 + payload.len()) as u16;
    let mut header = vec![0x40 | words as u8, 0];
    header.extend(total.to_be_bytes());
    header.extend(0x4e47u16.to_be_bytes());
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    header.extend(options);
    let sum = checksum(&header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(payload);
    header
}

/// An IPv6 packet.
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// An IPv6 extension header of 8 octets: hop-by-hop (0), destination options (60), filled with PadN.
pub fn options_header(next: u8, payload: &[u8]) -> Vec<u8> {
    [&[next, 0, 1, 4, 0, 0, 0, 0], payload].concat()
}

/// The octets of datagram number `id` from `begin` on, which is a multiple of 8.
pub fn fragment(from: IpAddr, to: IpAddr, protocol: u8, id: u16, begin: u16, more: bool, octets: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut packet = ipv4(from, to, protocol, &[], (begin / 8) | (u16::from(more) << 13), octets);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[10..12].fill(0);
            let sum = checksum(&packet[..20], 0);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet
        }
        _ => ip(from, to, 44, &fragment_header(protocol, begin, more, id, octets)),
    }
}

/// An IPv6 fragment header; the offset in octets.
pub fn fragment_header(next: u8, offset: u16, more: bool, id: u16, payload: &[u8]) -> Vec<u8> {
    let field = offset & 0xfff8 | u16::from(more);
    [&[next, 0][..], &field.to_be_bytes(), &u32::from(id).to_be_bytes(), payload].concat()
}

/// All of a datagram in fragments of so many octets each.
pub fn fragments(from: IpAddr, to: IpAddr, protocol: u8, id: u16, octets: &[u8], each: usize) -> Vec<Vec<u8>> {
    let pieces = octets.chunks(each).enumerate();
    pieces
        .map(|(at, piece)| fragment(from, to, protocol, id, (at * each) as u16, (at + 1) * each < octets.len(), piece))
        .collect()
}

/// An echo request.
pub fn echo(from: IpAddr, to: IpAddr, identifier: u16, octets: &[u8]) -> Vec<u8> {
    let body = [&identifier.to_be_bytes()[..], &[0, 1], octets].concat();
    match (from, to) {
        (IpAddr::V6(from), IpAddr::V6(to)) => icmpv6(from, to, 128, &body),
        _ => {
            let mut message = [&[8, 0, 0, 0][..], &body].concat();
            let sum = checksum(&message, 0);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            message
        }
    }
}

/// An IPv6 routing header of a type with one segment left.
pub fn routing_header(next: u8, kind: u8, via: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    [&[next, 2, kind, 1, 0, 0, 0, 0][..], &via.octets(), payload].concat()
}

/// A UDP datagram with its checksum.
pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(from.1.to_be_bytes());
    datagram.extend(to.1.to_be_bytes());
    datagram.extend((8 + payload.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let sum = transport_checksum(from.0, to.0, 17, &datagram);
    datagram[6..8].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    datagram
}

/// A TCP segment without options or payload.
pub fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), sequence: u32, acknowledged: u32, flags: u8) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.1.to_be_bytes());
    segment.extend(to.1.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = transport_checksum(from.0, to.0, 6, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// The same with a payload.
pub fn tcp_carrying(from: (IpAddr, u16), to: (IpAddr, u16), sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = [tcp(from, to, sequence, 0, flags), payload.to_vec()].concat();
    segment[16..18].fill(0);
    let sum = transport_checksum(from.0, to.0, 6, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// An ICMP message with its checksum; what follows the checksum is the body.
pub fn icmp(kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], body].concat();
    let sum = checksum(&message, 0);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// ARP: operation 1 asks, 2 tells.
pub fn arp(operation: u16, sender: (&str, Ipv4Addr), target: (&str, Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.extend(mac(sender.0));
    packet.extend(sender.1.octets());
    packet.extend(mac(target.0));
    packet.extend(target.1.octets());
    packet
}

/// An ICMPv6 message with its checksum.
pub fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0], body].concat();
    let sum = transport_checksum(from.into(), to.into(), 58, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// An IPv6 packet with the hop limit that neighbour discovery demands.
pub fn neighbour(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = ipv6(from, to, 58, &icmpv6(from, to, kind, body));
    packet[7] = 255;
    packet
}

/// Six octets of `02:00:…`.
pub fn mac(text: &str) -> [u8; 6] {
    let mut octets = [0; 6];
    for (octet, digits) in octets.iter_mut().zip(text.split(':')) {
        *octet = u8::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("not a MAC: {text}"));
    }
    octets
}

fn transport_checksum(from: IpAddr, to: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let mut pseudo = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => pseudo.extend(address.octets()),
            IpAddr::V6(address) => pseudo.extend(address.octets()),
        }
    }
    pseudo.extend((bytes.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    checksum(bytes, u32::from(!checksum(&pseudo, 0)))
}

fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = bytes
        .chunks(2)
        .fold(start, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// The IPv4 address that it must be.
pub fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is not IPv4"),
    }
}

/// The IPv6 address that it must be.
pub fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(address) => address,
        IpAddr::V4(address) => panic!("{address} is not IPv6"),
    }
}
