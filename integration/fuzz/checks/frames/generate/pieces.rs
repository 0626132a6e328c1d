//! Fragments: firsts, what may follow them, and what must not.

use std::net::IpAddr;

use super::super::choices::Choices;
use super::super::judge::{First, FirstKey, Judge};
use super::super::reading::{ICMP, ICMPV6, TCP, UDP};
use super::super::world::{Endpoint, World};
use super::build::{Place, extension, fragment, icmp, neighbour, tcp, udp};
use super::{Draft, Frame, NODE_MAC, draft, framed};

/// Numbers of datagrams: few, so that they come again.
const NUMBERS: usize = 6;

pub fn fragmented(
    c: &mut Choices<'_>,
    world: &World,
    judge: &Judge,
    endpoint: &Endpoint,
    frame: &mut Frame,
) -> Vec<u8> {
    // Most firsts would be refused if they began conversations.
    let mut draft = draft(c, world, judge, endpoint, frame.inbound, 80);
    let under_way: Vec<_> = judge.firsts.iter().take(16).map(|(key, first)| (*key, *first)).collect();
    if under_way.is_empty() || c.chance(45) {
        return alone(c, world, frame.inbound, draft);
    }
    let (key, first) = c.of(&under_way);
    let owner = world.endpoints.iter().find(|endpoint| endpoint.id == key.endpoint).expect("an endpoint of the world");
    (frame.ifindex, frame.inbound) = (owner.ifindex, key.inbound);
    (draft.source, draft.destination) = (key.source, key.destination);
    draft.source_mac = if key.inbound { NODE_MAC } else { owner.mac };
    draft.protocol = key.protocol.unwrap_or(draft.protocol);
    behind(c, key, first, draft)
}

/// What comes for a datagram whose first has passed.
fn behind(c: &mut Choices<'_>, key: FirstKey, first: First, draft: Draft) -> Vec<u8> {
    let mut place = Place { id: key.id as u16, begin: first.end, more: c.chance(60) };
    let mut length = if place.more { 8 + 8 * c.below(4) } else { 1 + c.below(40) };
    match c.below(10) {
        0..3 => {}
        3 => place.begin += 8 * c.below(300),
        4..8 => place.begin = 8 * c.below(first.end / 8),
        8 => place.id = place.id.wrapping_add(c.octet().into()),
        _ => length = c.below(40),
    }
    let octets = vec![0x5a; length];
    framed(&draft, &fragment(draft.source, draft.destination, draft.protocol, place, &octets))
}

/// A first, or what belongs to none.
fn alone(c: &mut Choices<'_>, world: &World, inbound: bool, mut draft: Draft) -> Vec<u8> {
    let v4 = draft.source.is_ipv4();
    let mut place = Place { id: 1 + c.below(NUMBERS) as u16, begin: 0, more: true };
    let whole = |mut octets: Vec<u8>| {
        octets.resize(octets.len().next_multiple_of(8), 0x5a);
        octets
    };
    let octets = match c.below(20) {
        0..9 => whole(draft.payload.clone()),
        9 | 10 => {
            // Behind an extension header there is no room for the other.
            let chained = !v4 && c.chance(40);
            draft.protocol = if chained { 60 } else { TCP };
            let octets = if chained { extension(c.of(&[TCP, UDP, ICMPV6, 60]), &[]) } else { tcp(40000, 443, 1, 2) };
            octets[..octets.len().min(c.of(&[8, 16]))].to_vec()
        }
        11 => {
            place.begin = 8 + 8 * c.below(200);
            place.more = c.chance(50);
            vec![0x5a; 8 * (1 + c.below(4))]
        }
        12 | 13 => {
            draft.protocol = if v4 { ICMP } else { ICMPV6 };
            match c.below(5) {
                0 => whole(icmp(if v4 { 3 } else { 1 }, 1, &[0; 60])),
                1 if !v4 => {
                    let IpAddr::V6(target) = draft.source else { unreachable!("it is not IPv4") };
                    neighbour(c.of(&[135, 136]), target, draft.source_mac)
                }
                2 => Vec::new(),
                3 => {
                    place = Place { begin: 65528, more: false, ..place };
                    vec![0x5a; 1 + c.below(60)]
                }
                _ => vec![0x5a; 8 * c.below(4) + 1 + c.below(7)],
            }
        }
        14..18 if !inbound => {
            let asked = world.pairs.iter().map(|(resolver, _)| *resolver).filter(|asked| asked.is_ipv4() == v4);
            let asked: Vec<IpAddr> = asked.collect();
            if !asked.is_empty() {
                draft.destination = c.of(&asked);
            }
            let tls = c.chance(20);
            draft.protocol = if tls { TCP } else { UDP };
            whole(if tls { tcp(40000, 853, 1, 2) } else { udp(40000, 53, c.below(40)) })
        }
        14..19 => {
            place.more = v4 || c.chance(10);
            draft.payload.clone()
        }
        _ => {
            place = Place { begin: 8 * c.below(8192), more: c.chance(50), ..place };
            vec![0x5a; c.below(80)]
        }
    };
    framed(&draft, &fragment(draft.source, draft.destination, draft.protocol, place, &octets))
}
