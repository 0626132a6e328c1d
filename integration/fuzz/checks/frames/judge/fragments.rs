//! Fragments follow their first (I11): a list of the firsts that passed, each until its datagram is whole, 30 s are over, or
//! the endpoint's policy has changed.

use std::net::IpAddr;

use namegate::engine::ruleset::{Direction, PeerId};
use namegate::observe::Reason;

use super::super::reading::{Packet, Piece};
use super::super::world::SECOND;
use super::{Judge, Run};

const LIFE: u64 = 30 * SECOND;

/// What receivers put datagrams together by: RFC 791 with the protocol, RFC 8200 without.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FirstKey {
    pub endpoint: u32,
    pub inbound: bool,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub id: u32,
    pub protocol: Option<u8>,
}

#[derive(Clone, Copy, Debug)]
pub struct First {
    /// Octets of the datagram up to which it goes.
    pub end: usize,
    arrived: usize,
    total: Option<usize>,
    generation: u32,
    until: u64,
    pooled: bool,
}

impl FirstKey {
    fn of(run: &Run<'_>, packet: &Packet, piece: &Piece) -> FirstKey {
        FirstKey {
            endpoint: run.endpoint.id,
            inbound: run.direction == Direction::Ingress,
            source: packet.source,
            destination: packet.destination,
            id: piece.id,
            protocol: packet.source.is_ipv4().then_some(packet.protocol),
        }
    }
}

impl Judge {
    /// Before a fragment is judged; `None`: it is a first one, and judged as any packet.
    pub(super) fn follow(&mut self, run: &Run<'_>, packet: &Packet, piece: &Piece) -> Option<Reason> {
        let remote = if run.direction == Direction::Egress { packet.destination } else { packet.source };
        if run.world.places.get(&remote) == Some(&PeerId::STEERING) {
            return Some(Reason::SteeringAddress);
        }
        let key = FirstKey::of(run, packet, piece);
        let mut first = self.firsts.get(&key).copied();
        if let Some(over) = first.filter(|first| run.now >= first.until) {
            if !run.probe {
                self.forget_first(run, key, over);
            }
            first = None;
        }
        if piece.begin == 0 {
            return first.map(|_| Reason::FragmentOverlap);
        }
        let Some(mut first) = first.filter(|first| first.generation == run.endpoint.generation) else {
            return Some(Reason::FragmentLone);
        };
        if piece.begin < first.end {
            return Some(Reason::FragmentOverlap);
        }
        if !run.probe {
            first.total = if piece.last { Some(piece.end) } else { first.total };
            first.arrived += piece.end - piece.begin;
            if first.total.is_some_and(|total| first.arrived >= total) {
                self.forget_first(run, key, first);
            } else {
                self.firsts.insert(key, first);
            }
        }
        Some(Reason::FragmentFollows)
    }

    /// After a first fragment was judged: what passed is remembered, or does not pass.
    pub(super) fn lead(&mut self, run: &Run<'_>, packet: &Packet, piece: &Piece, reason: Reason) -> Reason {
        if !reason.passed() || run.probe {
            return reason;
        }
        let used = self.used.entry(run.endpoint.slot).or_default();
        let pooled = used.fragments >= run.world.fragment_share;
        let full = pooled && self.pooled.fragments >= run.world.fragment_pool;
        if full || self.firsts.len() as u32 >= run.world.fragment_table {
            return Reason::FragmentBudget;
        }
        used.fragments += 1;
        self.pooled.fragments += u32::from(pooled);
        let (end, generation, until) = (piece.end, run.endpoint.generation, run.now + LIFE);
        let first = First { end, arrived: end, total: None, generation, until, pooled };
        self.firsts.insert(FirstKey::of(run, packet, piece), first);
        reason
    }

    fn forget_first(&mut self, run: &Run<'_>, key: FirstKey, first: First) {
        self.firsts.remove(&key);
        self.used.entry(run.endpoint.slot).or_default().fragments -= 1;
        self.pooled.fragments -= u32::from(first.pooled);
    }
}
