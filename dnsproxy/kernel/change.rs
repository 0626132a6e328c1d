//! Rows changed in place, under a policy number that endpoints use: for a rule set in which only peers, Services or networks
//! are others and every bit means what it meant.
//!
//! **Invariant:** after each single row that is written, every address is judged as it was before the change, as it will be
//! after it, or more strictly. The order:
//!
//! 1. Bits of peers. A peer that gains or loses an address in this change has, until 5, only what it may before and after,
//!    and all that it may not; one that has no address yet gets all its bits, one that loses its last keeps them. Service
//!    rows of addresses that are no Service's yet.
//! 2. Addresses that are new in `peers`, or another peer's.
//! 3. Networks: new ones, then changed ones, then those that go. An address finds its longest prefix as it was, or as it
//!    will be. Service rows.
//! 4. Addresses that leave `peers`: only now may a network mean them.
//! 5. Bits as they will be; Service rows of addresses that are no Service's any more.
//!
//! Between 3 and 4 the caller flips the endpoints whose rules are written anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::KernelError;
use super::abi;
use super::load::Kernel;
use super::rules::{cidr4_key, cidr6_key, peer_key, service_key, service_value};
use crate::engine::bits::Bits;
use crate::engine::ruleset::{PeerId, RuleSet, ServiceRow};

/// Every row of `peers`.
pub type PeerRows = BTreeMap<IpAddr, PeerId>;

/// The change of `peers`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Moves {
    /// Addresses with who is behind them from now on; before nobody was, or another.
    pub put: Vec<(IpAddr, PeerId)>,
    /// Addresses behind which nobody is any more.
    pub gone: Vec<IpAddr>,
    /// Peers that gain an address or lose one.
    touched: BTreeSet<PeerId>,
    /// Of these, those that have an address before the change, and those that have one after it.
    reached: [BTreeSet<PeerId>; 2],
    /// Addresses that are a Service's before the change, and those that are after it.
    services: [BTreeSet<IpAddr>; 2],
}

/// The change of the rows under one policy number.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RowChange {
    policy_id: u32,
    /// Bits of peers: step 1 and step 5.
    peers: [Vec<(PeerId, Bits)>; 2],
    /// Step 3, in this order.
    networks: Vec<(IpNet, Bits)>,
    networks_gone: Vec<IpNet>,
    /// Steps 1, 3 and 5; each row is written, or removed.
    services: [Vec<(ServiceRow, bool)>; 3],
}

impl Moves {
    /// From one content of `peers` to the next.
    pub fn between(old: &PeerRows, new: &PeerRows) -> Moves {
        let mut moves = Moves::default();
        let (mut was, mut is) = (old.iter().peekable(), new.iter().peekable());
        loop {
            let order = match (was.peek(), is.peek()) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((gone, _)), Some((fresh, _))) => gone.cmp(fresh),
            };
            let before = if order.is_le() { was.next() } else { None };
            let after = if order.is_ge() { is.next() } else { None };
            if before.map(|row| row.1) == after.map(|row| row.1) {
                continue;
            }
            moves.touched.extend(before.iter().chain(&after).map(|row| *row.1));
            match (before, after) {
                (_, Some((address, id))) => moves.put.push((*address, *id)),
                (Some((address, _)), None) => moves.gone.push(*address),
                (None, None) => {}
            }
        }
        if !moves.touched.is_empty() {
            moves.reached =
                [old, new].map(|rows| rows.values().filter(|id| moves.touched.contains(id)).copied().collect());
            moves.services =
                [old, new].map(|rows| rows.iter().filter(|row| *row.1 == PeerId::SERVICE).map(|row| *row.0).collect());
        }
        moves
    }

    /// Whether nothing moves.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.gone.is_empty()
    }

    /// The addresses that move.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.put.iter().map(|row| row.0).chain(self.gone.iter().copied())
    }
}

impl RowChange {
    /// How the rows under `policy_id` get from `old` to `new`, while addresses move; `None` when more differs than rows that
    /// can be changed in place.
    pub fn between(policy_id: u32, old: &RuleSet, new: &RuleSet, moves: &Moves) -> Option<RowChange> {
        let what = |rules: &RuleSet| {
            (
                rules.selected,
                rules.audit,
                rules.deny_egress,
                rules.deny_ingress,
                rules.steered(),
                rules.cidrs.is_empty(),
            )
        };
        let same =
            what(old) == what(new) && old.groups == new.groups && old.ports == new.ports && old.names == new.names;
        if !same {
            return None;
        }
        let denies = new.ports.iter().fold(Bits::NONE, |bits, row| bits | row.deny);
        let mut change = RowChange { policy_id, ..RowChange::default() };
        for (id, was, is) in differences(&old.peers, &new.peers) {
            let (was, is) = (was.unwrap_or_default(), is.unwrap_or_default());
            let [before, after] = [0, 1].map(|when: usize| moves.reached[when].contains(&id));
            if !moves.touched.contains(&id) || !before {
                change.peers[0].push((id, is));
            } else {
                if after {
                    // Groups open or shut: what opens must open before and after, what shuts shuts if it does in one of them.
                    change.peers[0].push((id, (was & is) | ((was | is) & denies)));
                }
                change.peers[1].push((id, is));
            }
        }
        let service = |row: &ServiceRow| ((row.address, row.protocol, row.port), row.verdict);
        let services = |rules: &RuleSet| rules.services.iter().map(service).collect::<Vec<_>>();
        for ((address, protocol, port), was, is) in differences(&services(old), &services(new)) {
            let Some(verdict) = is.or(was) else { continue };
            // Asked only while the address is a Service's.
            let is_service = |when: usize| moves.is_empty() || moves.services[when].contains(&address);
            let step = match (is_service(0), is_service(1)) {
                (false, _) => 0,
                (true, true) => 1,
                (true, false) => 2,
            };
            change.services[step].push((ServiceRow { address, protocol, port, verdict }, is.is_some()));
        }
        let mut changed = Vec::new();
        for (network, was, is) in differences(&old.cidrs, &new.cidrs) {
            match (was, is) {
                (None, Some(bits)) => change.networks.push((network, bits)),
                (Some(_), Some(bits)) => changed.push((network, bits)),
                (_, None) => change.networks_gone.push(network),
            }
        }
        // A narrow network before a wide one that changes: what it holds must not fall to the wide one's new row.
        change.networks.sort_by_key(|(network, _)| std::cmp::Reverse(network.prefix_len()));
        change.networks_gone.sort_by_key(IpNet::prefix_len);
        change.networks.extend(changed);
        Some(change)
    }

    /// Whether no row changes.
    pub fn is_empty(&self) -> bool {
        let peers = self.peers.iter().all(Vec::is_empty);
        peers && self.services.iter().all(Vec::is_empty) && self.networks.is_empty() && self.networks_gone.is_empty()
    }
}

impl Kernel {
    /// Every row of `peers`, as the kernel has it.
    ///
    /// # Errors
    /// The map can't be read.
    pub fn peer_rows(&self) -> Result<PeerRows, KernelError> {
        let rows = self.tables.peers.rows()?;
        Ok(rows.into_iter().map(|(address, peer)| (abi::unmapped(address.octets), PeerId(peer))).collect())
    }

    /// Carries out changes in place, in the order that the module tells of; `flip` between steps 3 and 4, `seen` after each row
    /// that was written.
    ///
    /// # Errors
    /// A map is full. Some rows are as they were and some as they will be: the caller writes these rule sets anew.
    pub fn change_rows(
        &self,
        changes: &[RowChange],
        moves: &Moves,
        flip: impl FnOnce(),
        mut seen: impl FnMut(),
    ) -> Result<(), KernelError> {
        let tables = &self.tables;
        for change in changes {
            self.put_bits(change, 0, &mut seen)?;
            self.put_services(change, 0, &mut seen)?;
        }
        for (address, id) in &moves.put {
            tables.peers.put(&abi::address { octets: abi::mapped(*address) }, &id.0)?;
            seen();
        }
        for change in changes {
            for (network, bits) in &change.networks {
                match network {
                    IpNet::V4(net) => tables.cidr4.put(&cidr4_key(change.policy_id, *net), &(*bits).into())?,
                    IpNet::V6(net) => tables.cidr6.put(&cidr6_key(change.policy_id, *net), &(*bits).into())?,
                }
                seen();
            }
            for network in &change.networks_gone {
                match network {
                    IpNet::V4(net) => tables.cidr4.delete(&cidr4_key(change.policy_id, *net)),
                    IpNet::V6(net) => tables.cidr6.delete(&cidr6_key(change.policy_id, *net)),
                };
                seen();
            }
            self.put_services(change, 1, &mut seen)?;
        }
        flip();
        for address in &moves.gone {
            tables.peers.delete(&abi::address { octets: abi::mapped(*address) });
            seen();
        }
        for change in changes {
            self.put_bits(change, 1, &mut seen)?;
            self.put_services(change, 2, &mut seen)?;
        }
        Ok(())
    }

    fn put_bits(&self, change: &RowChange, step: usize, seen: &mut impl FnMut()) -> Result<(), KernelError> {
        for (id, bits) in &change.peers[step] {
            let key = peer_key(change.policy_id, *id);
            // A row of no bits says the same as none, and needs no room.
            if bits.is_empty() {
                self.tables.peer_bits.delete(&key);
            } else {
                self.tables.peer_bits.put(&key, &(*bits).into())?;
            }
            seen();
        }
        Ok(())
    }

    fn put_services(&self, change: &RowChange, step: usize, seen: &mut impl FnMut()) -> Result<(), KernelError> {
        for (row, put) in &change.services[step] {
            let key = service_key(change.policy_id, row);
            if *put {
                self.tables.services.put(&key, &service_value(row))?;
            } else {
                self.tables.services.delete(&key);
            }
            seen();
        }
        Ok(())
    }
}

/// Every key under which two sorted lists differ, with what was and what is there.
fn differences<K: Ord + Copy, V: PartialEq + Copy>(old: &[(K, V)], new: &[(K, V)]) -> Vec<(K, Option<V>, Option<V>)> {
    let (mut was, mut is) = (old.iter().peekable(), new.iter().peekable());
    let mut found = Vec::new();
    loop {
        let order = match (was.peek(), is.peek()) {
            (None, None) => return found,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((gone, _)), Some((fresh, _))) => gone.cmp(fresh),
        };
        let before = if order.is_le() { was.next() } else { None };
        let after = if order.is_ge() { is.next() } else { None };
        let (before, after) = (before.copied(), after.copied());
        if let Some(key) = before.or(after).map(|row| row.0)
            && before.map(|row| row.1) != after.map(|row| row.1)
        {
            found.push((key, before.map(|row| row.1), after.map(|row| row.1)));
        }
    }
}
