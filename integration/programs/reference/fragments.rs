//! Fragments once more, for the model: which first is remembered, and what may follow it.

use std::net::IpAddr;

use namegate::engine::ruleset::{Direction, PeerId};
use namegate::kernel::abi::flag;
use namegate::observe::Reason;

use super::{Kind, Model, OTHERS, Packet, Random, packet, payload};
use crate::bench::{Bench, pod_for};
use crate::frames::{NODE_MAC, POD_MAC, Place, ethernet, ethertype_of, fragment};

/// Which datagram: way, remote, protocol (none in IPv6), number.
pub type Key = (bool, IpAddr, Option<u8>, u16);

/// A first fragment that passed.
#[derive(Clone, Copy, Debug)]
pub struct First {
    generation: u32,
    end: usize,
    arrived: usize,
    total: Option<usize>,
}

/// One random fragment: what the kernel counted, and what the model says.
pub fn step(random: &mut Random, bench: &Bench, model: &mut Model) -> (Reason, Reason) {
    let (packet, id) = draw(random, model);
    let protocol = packet.kind.protocol(packet.remote.is_ipv4());
    let known = packet.remote.is_ipv4().then_some(protocol);
    let key = (packet.direction == Direction::Egress, packet.remote, known, id);
    let end = model.firsts.get(&key).map(|first| first.end);
    let (begin, octets, more) = match random.below(10) {
        0..7 if end.is_none() => (0, 8 * (1 + random.below(6)), true),
        0..3 => (0, 8 * (1 + random.below(6)), true),
        3..9 => {
            let last = random.chance(50);
            let odd = if last { random.below(8) } else { 0 };
            let begin = end.filter(|_| random.chance(50)).unwrap_or_else(|| 8 * (1 + random.below(7)));
            (begin, 8 * (1 + random.below(3)) + odd, !last)
        }
        _ => random.of(&[(0, 28, true), (64, 9, true), (65_528, 24, false), (64, 0, false)]),
    };
    let mut whole = payload(&packet);
    whole.resize(whole.len().max(octets), b'x');
    let place = Place { id, begin, more };
    let pod = pod_for(packet.remote);
    let frame = match packet.direction {
        Direction::Egress => {
            let packet = fragment(pod, packet.remote, protocol, place, &whole[..octets]);
            ethernet(POD_MAC, NODE_MAC, ethertype_of(pod), &packet)
        }
        Direction::Ingress => {
            let packet = fragment(packet.remote, pod, protocol, place, &whole[..octets]);
            ethernet(NODE_MAC, POD_MAC, ethertype_of(pod), &packet)
        }
    };
    let wanted = model.fragment(&packet, key, begin, octets, more);
    (bench.run(packet.direction, &frame), wanted)
}

/// Often of a datagram that is under way, sometimes a query.
fn draw(random: &mut Random, model: &Model) -> (Packet, u16) {
    let mut drawn = packet(random);
    if random.chance(10) && model.flags & flag::STEER != 0 && !model.resolvers.is_empty() {
        let remote = random.of(&model.resolvers);
        drawn = Packet { direction: Direction::Egress, remote, remote_port: 53, kind: Kind::Udp, ..drawn };
        return (drawn, 1000 + random.below(1000) as u16);
    }
    if !random.chance(60) || model.firsts.is_empty() {
        return (drawn, random.below(8) as u16);
    }
    let keys: Vec<Key> = model.firsts.keys().copied().collect();
    let (egress, remote, protocol, id) = random.of(&keys);
    while drawn.remote != remote || protocol.is_some_and(|protocol| drawn.kind.protocol(true) != protocol) {
        drawn = packet(random);
    }
    drawn.direction = if egress { Direction::Egress } else { Direction::Ingress };
    (drawn, id)
}

impl Model {
    fn fragment(&mut self, packet: &Packet, key: Key, begin: usize, octets: usize, more: bool) -> Reason {
        let header = if packet.remote.is_ipv4() { 20 } else { 0 };
        if octets == 0 || more && !octets.is_multiple_of(8) || header + begin + octets > 65_535 {
            return Reason::FragmentMalformed;
        }
        if begin == 0 {
            let needed = match packet.kind {
                Kind::Tcp { .. } => 20,
                Kind::Sctp => 12,
                Kind::Udp | Kind::Icmp { .. } => 8,
            };
            if octets < needed {
                return Reason::FragmentTiny;
            }
            let error = OTHERS[usize::from(!packet.remote.is_ipv4())][2];
            if packet.kind == (Kind::Icmp { number: error }) {
                return Reason::FragmentMalformed;
            }
        }
        if self.places.get(&packet.remote) == Some(&PeerId::STEERING) {
            return Reason::SteeringAddress;
        }
        if begin == 0 {
            return self.first(packet, key, octets);
        }
        let Some(first) = self.firsts.get_mut(&key).filter(|first| first.generation == self.generation) else {
            return Reason::FragmentLone;
        };
        if begin < first.end {
            return Reason::FragmentOverlap;
        }
        first.arrived += octets;
        if !more {
            first.total = Some(begin + octets);
        }
        if first.total.is_some_and(|total| first.arrived >= total) {
            self.firsts.remove(&key);
        }
        Reason::FragmentFollows
    }

    fn first(&mut self, packet: &Packet, key: Key, octets: usize) -> Reason {
        if self.firsts.contains_key(&key) {
            return Reason::FragmentOverlap;
        }
        let reason = match self.verdict(packet) {
            Reason::Steered => Reason::FragmentSteered,
            reason => reason,
        };
        if !reason.passed() {
            return reason;
        }
        if self.firsts.len() >= self.fragment_budget {
            return Reason::FragmentBudget;
        }
        let first = First { generation: self.generation, end: octets, arrived: octets, total: None };
        self.firsts.insert(key, first);
        reason
    }
}
