//! Frames, built octet by octet. Valid unless a field says otherwise; checksums are left zero, the programs don't read them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x10];
pub const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// A frame with this Ethernet header.
pub fn ethernet(source: [u8; 6], destination: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&destination[..], &source, &ethertype.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

pub fn tcp(source: u16, destination: u16, sequence: u32, flags: u8) -> Vec<u8> {
    let mut segment = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0x50, flags, 0x10, 0, 0, 0, 0, 0]);
    segment
}

pub fn udp(source: u16, destination: u16, payload: usize) -> Vec<u8> {
    let length = 8 + payload as u16;
    let mut datagram = [source.to_be_bytes(), destination.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    datagram.resize(8 + payload, b'x');
    datagram
}

/// An INIT chunk behind the common header (RFC 9260).
pub fn sctp(source: u16, destination: u16) -> Vec<u8> {
    let mut packet = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    packet.extend([0; 16]);
    packet
}

pub fn icmp(kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    [&[kind, code, 0, 0], rest].concat()
}

pub fn echo(kind: u8, identifier: u16) -> Vec<u8> {
    icmp(kind, 0, &[&identifier.to_be_bytes()[..], &[0, 1, 1, 2, 3, 4]].concat())
}

/// An IP packet around `payload`, of the family of the addresses, which must be the same.
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ip4(source, destination, protocol, 0, &[], payload),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ip6(source, destination, protocol, payload),
        _ => panic!("{source} and {destination} are of two families"),
    }
}

pub fn ip4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    fragment: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0, "options fill words");
    let header = 20 + options.len();
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(((header + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 7]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(options);
    packet.extend(payload);
    packet
}

pub fn ip6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    ip6_hops(source, destination, next, 64, payload)
}

pub fn ip6_hops(source: Ipv6Addr, destination: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// A place in a datagram: its number, the octets before the piece, and whether more follow.
#[derive(Clone, Copy)]
pub struct Place {
    pub id: u16,
    pub begin: usize,
    pub more: bool,
}

/// A fragment that holds `octets` of a datagram.
pub fn fragment(source: IpAddr, destination: IpAddr, protocol: u8, place: Place, octets: &[u8]) -> Vec<u8> {
    let Place { id, begin, more } = place;
    let (units, begin) = ((begin / 8) as u16, begin as u16);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = ip4(source, destination, protocol, units | u16::from(more) << 13, &[], octets);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet
        }
        _ => {
            let field = begin | u16::from(more);
            let header = [&[protocol, 0][..], &field.to_be_bytes(), &u32::from(id).to_be_bytes()].concat();
            ip(source, destination, 44, &[header, octets.to_vec()].concat())
        }
    }
}

/// An extension header of 8 octets that names `next`; `body` is its first octets after the length.
pub fn extension(next: u8, body: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend(body);
    header.resize(8, 0);
    header
}

pub fn ethertype_of(address: IpAddr) -> u16 {
    if address.is_ipv4() { 0x0800 } else { 0x86dd }
}

/// A packet that the pod sends.
pub fn from_pod(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(POD_MAC, NODE_MAC, ethertype_of(source), &ip(source, destination, protocol, payload))
}

/// A packet that the pod receives.
pub fn to_pod(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(NODE_MAC, POD_MAC, ethertype_of(source), &ip(source, destination, protocol, payload))
}

/// An ARP message.
pub fn arp(operation: u16, sender_mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4];
    message.extend(operation.to_be_bytes());
    message.extend(sender_mac);
    message.extend(sender.octets());
    message.extend([0; 6]);
    message.extend(target.octets());
    message
}

/// A neighbour solicitation (135) or advertisement (136) with one link-layer address option.
pub fn neighbour(kind: u8, target: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut message = icmp(kind, 0, &[0; 4]);
    message.extend(target.octets());
    message.extend([if kind == 135 { 1 } else { 2 }, 1]);
    message.extend(mac);
    message
}
