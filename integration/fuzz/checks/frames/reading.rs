//! What a frame is, from its octets, by the RFCs and I11. Other code than bpf/include/parse.h: slices that are taken apart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use namegate::observe::Reason;
use namegate_frames::Skb;

/// Octets in which every header lies that is walked; what lies behind is read only where it happens to be linear.
const PULL: usize = 192;
/// Extension headers of one packet.
const EXTENSIONS: usize = 6;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// What an IP packet says. Of what was not read, zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub hops: u8,
    /// Where the header of the protocol begins in the frame.
    pub at: usize,
    pub ports: (u16, u16),
    pub sequence: u32,
    pub flags: u8,
    pub kind: u8,
    pub code: u8,
    /// It is a fragment.
    pub piece: Option<Piece>,
}

/// Which octets of its datagram a fragment holds. One that does not begin it has no ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    pub id: u32,
    pub begin: usize,
    pub end: usize,
    pub last: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    Understood,
    Arp,
    /// Neighbour discovery and multicast listeners' reports.
    Nd,
    Refused(Reason),
}

use Class::{Nd, Refused, Understood};

const MALFORMED: Class = Refused(Reason::Malformed);

/// The frame's packet, if it has one whose addresses can be read, and what to make of the frame.
pub fn read(skb: &Skb<'_>) -> (Option<Packet>, Class) {
    let octets = skb.octets;
    if skb.tagged {
        return (None, Refused(Reason::Tagged));
    }
    let Some(ethertype) = word(octets, 12) else { return (None, MALFORMED) };
    match ethertype {
        0x0800 => ipv4(skb),
        0x86dd => ipv6(skb),
        0x0806 => (None, Class::Arp),
        0x8100 | 0x88a8 => (None, Refused(Reason::Tagged)),
        _ => (None, Refused(Reason::Ethertype)),
    }
}

/// Two octets, in network order.
pub fn word(octets: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(octets.get(at..at + 2)?.try_into().ok()?))
}

/// The octets that can be read in place.
fn readable<'a>(skb: &Skb<'a>) -> &'a [u8] {
    &skb.octets[..skb.linear.max(PULL).min(skb.octets.len())]
}

fn ipv4(skb: &Skb<'_>) -> (Option<Packet>, Class) {
    let octets = skb.octets;
    let Some(ip) = octets.get(14..34).filter(|ip| ip[0] >> 4 == 4 && ip[0] & 15 >= 5) else { return (None, MALFORMED) };
    let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).expect("four octets"));
    let mut packet = Packet {
        source: address(12),
        destination: address(16),
        protocol: ip[9],
        hops: ip[8],
        at: 0,
        ports: (0, 0),
        sequence: 0,
        flags: 0,
        kind: 0,
        code: 0,
        piece: None,
    };
    let header = usize::from(ip[0] & 15) * 4;
    let total = match usize::from(u16::from_be_bytes([ip[2], ip[3]])) {
        // More than 64 KiB in one piece: all that is there.
        0 if skb.gso_size > 0 => octets.len() - 14,
        total => total,
    };
    let class = match octets.get(14..14 + total) {
        Some(whole) if total >= header => match options(&whole[20..header]) {
            Understood => {
                let field = u16::from_be_bytes([ip[6], ip[7]]);
                // What does not say how long it is can't say either how far it goes.
                let length = usize::from(u16::from_be_bytes([ip[2], ip[3]])).saturating_sub(header);
                let id = u16::from_be_bytes([ip[4], ip[5]]).into();
                let (begin, more) = ((field & 0x1fff) * 8, field & 0x2000 != 0);
                if begin > 0 || more {
                    packet.piece = piece(id, begin, more, length, header);
                }
                match packet.piece {
                    None if begin > 0 || more => Refused(Reason::FragmentMalformed),
                    Some(Piece { begin: 1.., .. }) => Understood,
                    first => whole_header(first, layer4(skb, 14 + header, 14 + total, &mut packet), &packet),
                }
            }
            refused => refused,
        },
        _ => MALFORMED,
    };
    (Some(packet), class)
}

/// RFC 791, 3.1. A source route leads past the address that is judged.
fn options(mut octets: &[u8]) -> Class {
    loop {
        match octets {
            [] | [0, ..] => return Understood,
            [1, rest @ ..] => octets = rest,
            [131 | 137, ..] => return Refused(Reason::SourceRoute),
            [_, length, ..] if (2..=octets.len()).contains(&usize::from(*length)) => {
                octets = &octets[usize::from(*length)..];
            }
            _ => return MALFORMED,
        }
    }
}

fn ipv6(skb: &Skb<'_>) -> (Option<Packet>, Class) {
    let octets = skb.octets;
    let Some(ip) = octets.get(14..54).filter(|ip| ip[0] >> 4 == 6) else { return (None, MALFORMED) };
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).expect("sixteen octets"));
    let mut packet = Packet {
        source: address(8).into(),
        destination: address(24).into(),
        protocol: ip[6],
        hops: ip[7],
        at: 0,
        ports: (0, 0),
        sequence: 0,
        flags: 0,
        kind: 0,
        code: 0,
        piece: None,
    };
    let length = match usize::from(u16::from_be_bytes([ip[4], ip[5]])) {
        0 if skb.gso_size > 0 => octets.len() - 54,
        length => length,
    };
    // Addresses that stand for IPv4 inside a host are on no wire (RFC 4291, 2.5.5.2).
    let mapped = [address(8), address(24)].iter().any(|address| address.to_ipv4_mapped().is_some());
    if mapped || 54 + length > octets.len() {
        return (Some(packet), MALFORMED);
    }
    let class = extensions(skb, 54 + length, &mut packet);
    (Some(packet), whole_header(packet.piece, class, &packet))
}

/// `before`: octets in front of the piece that count in the length of the whole, as the header of IPv4 does (RFC 791) and
/// that of IPv6 does not (RFC 8200). `None`: no datagram has such a piece.
fn piece(id: u32, begin: u16, more: bool, length: usize, before: usize) -> Option<Piece> {
    let begin = usize::from(begin);
    let end = begin + length;
    let holds = length > 0 && (!more || length.is_multiple_of(8)) && before + end <= 65535;
    holds.then_some(Piece { id, begin, end, last: !more })
}

/// A first fragment holds its whole header (RFC 1858, RFC 7112); errors and neighbour discovery are never in fragments (RFC
/// 1812, 4.3.2.3; RFC 6980).
fn whole_header(piece: Option<Piece>, class: Class, packet: &Packet) -> Class {
    match class {
        class if piece.is_none_or(|piece| piece.begin > 0) => class,
        MALFORMED => Refused(Reason::FragmentTiny),
        Nd => Refused(Reason::FragmentMalformed),
        Understood if is_icmp_error(packet.protocol, packet.kind) => Refused(Reason::FragmentMalformed),
        class => class,
    }
}

fn extensions(skb: &Skb<'_>, end: usize, packet: &mut Packet) -> Class {
    let (mut at, mut seen) = (54, 0);
    loop {
        match packet.protocol {
            0 | 60 | 43 | 44 => {}
            _ => return layer4(skb, at, end, packet),
        }
        if seen == EXTENSIONS || at > PULL - 16 {
            return Refused(Reason::ExtensionHeader);
        }
        let Some(header) = readable(skb).get(at..at + 8) else { return MALFORMED };
        if packet.protocol == 43 && header[3] != 0 {
            return Refused(Reason::SourceRoute);
        }
        if packet.protocol == 44 {
            let (field, id) = (u16::from_be_bytes([header[2], header[3]]), &header[4..8]);
            let (begin, more) = (field & 0xfff8, field & 1 != 0);
            let id = u32::from_be_bytes(id.try_into().expect("four octets"));
            if packet.piece.is_some() {
                return Refused(Reason::ExtensionHeader); // a fragment of a fragment
            }
            if begin == 0 && !more {
                return Refused(Reason::FragmentAtomic);
            }
            packet.protocol = header[0];
            packet.piece = piece(id, begin, more, end.saturating_sub(at + 8), at - 54);
            match packet.piece {
                None => return Refused(Reason::FragmentMalformed),
                Some(Piece { begin: 1.., .. }) => return Understood,
                Some(_) => {}
            }
            at += 8;
            seen += 1;
            continue;
        }
        packet.protocol = header[0];
        at += (usize::from(header[1]) + 1) * 8;
        seen += 1;
        if at > PULL - 8 {
            return Refused(Reason::ExtensionHeader);
        }
    }
}

/// The header must lie within the IP packet: padding behind it reaches nobody.
fn layer4(skb: &Skb<'_>, at: usize, end: usize, packet: &mut Packet) -> Class {
    packet.at = at;
    let readable = readable(skb);
    let within = &readable[..end.min(readable.len())];
    let rest = within.get(at..).unwrap_or_default();
    match packet.protocol {
        TCP => {
            let Some(tcp) = rest.get(..20) else { return MALFORMED };
            let header = usize::from(tcp[12] >> 4) * 4;
            if header < 20 || at + header > end {
                return MALFORMED;
            }
            packet.ports = (u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]]));
            packet.sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            packet.flags = tcp[13];
        }
        UDP | SCTP => {
            let Some(header) = rest.get(..if packet.protocol == UDP { 8 } else { 12 }) else { return MALFORMED };
            packet.ports = (u16::from_be_bytes([header[0], header[1]]), u16::from_be_bytes([header[2], header[3]]));
        }
        ICMP | ICMPV6 if (packet.protocol == ICMP) == packet.source.is_ipv4() => {
            let Some(icmp) = rest.get(..8) else { return MALFORMED };
            (packet.kind, packet.code) = (icmp[0], icmp[1]);
            packet.ports = (u16::from_be_bytes([icmp[4], icmp[5]]), 0);
            if packet.protocol == ICMPV6 && matches!(packet.kind, 131..=137 | 143) {
                return Nd;
            }
        }
        _ => return Refused(Reason::Protocol),
    }
    Understood
}

/// The type that asks, of one that asks or answers by an identifier.
pub fn query_of(protocol: u8, kind: u8) -> Option<u8> {
    Some(match (protocol, kind) {
        (ICMP, 8 | 0) => 8,
        (ICMP, 13 | 14) => 13,
        (ICMP, 42 | 43) => 42,
        (ICMPV6, 128 | 129) => 128,
        (ICMPV6, 160 | 161) => 160,
        _ => return None,
    })
}

pub fn is_icmp_error(protocol: u8, kind: u8) -> bool {
    matches!((protocol, kind), (ICMP, 3 | 11 | 12) | (ICMPV6, 1..=4))
}

pub fn is_multicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4 == Ipv4Addr::BROADCAST,
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}
