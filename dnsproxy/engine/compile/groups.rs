//! Items with the same ports are one group, one bit. From groups to rows.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{CompileError, Compiler, is_any, networks};
use crate::engine::bits::{Bits, GROUPS};
use crate::engine::endpoint::PodRef;
use crate::engine::pattern::{Bare, PatternTrie};
use crate::engine::policy::{Item, NameRule, Peers};
use crate::engine::port::{PortBlock, covers};
use crate::engine::ruleset::{Direction, Group, GroupKey, PeerId, PortRow, Protocol};
use crate::engine::verdict::RuleRef;

/// The groups of one rule set while it is made.
#[derive(Default)]
pub(super) struct Groups {
    /// Ports of items that mean every peer: bit 0.
    any: BTreeSet<(Direction, bool, (Protocol, PortBlock))>,
    /// In the order in which the rules stand.
    groups: Vec<(GroupKey, Members)>,
}

/// Everyone whom a group's ports are open to, or shut.
struct Members {
    at: RuleRef,
    names: Vec<NameRule>,
    networks: BTreeSet<IpNet>,
    peers: BTreeSet<PeerId>,
}

/// What the groups come to.
pub(super) struct Rows {
    pub groups: Vec<Group>,
    pub ports: Vec<PortRow>,
    pub cidrs: Vec<(IpNet, Bits)>,
    pub peers: Vec<(PeerId, Bits)>,
    pub names: PatternTrie<Bits>,
}

impl Groups {
    /// Adds an item's peers to the group of its ports.
    pub fn add(&mut self, compiler: &Compiler<'_>, direction: Direction, item: &Item, deny: bool) {
        let ports = item.ports.plain();
        if ports.is_empty() {
            return;
        }
        if is_any(&item.peers) {
            self.any.extend(ports.into_iter().map(|port| (direction, deny, port)));
            return;
        }
        let key = GroupKey { direction, deny, ports: ports.into_iter().collect() };
        let at = self.groups.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
            let members =
                Members { at: item.at.clone(), names: Vec::new(), networks: BTreeSet::new(), peers: BTreeSet::new() };
            self.groups.push((key, members));
            self.groups.len() - 1
        });
        let members = &mut self.groups[at].1;
        if let Peers::Names(names) = &item.peers {
            members.names.extend(names.iter().cloned());
        }
        members.networks.extend(networks(compiler.world, &item.peers, deny));
        members.peers.extend(compiler.selected(&item.peers, deny).map(|peer| peer.id));
    }

    /// Gives every group its bit and makes the rows.
    pub fn rows(&self, pod: &PodRef, history: &[Group]) -> Result<Rows, CompileError> {
        let bits = self.bits(pod, history)?;
        let with_bits = || self.groups.iter().zip(&bits).map(|((key, members), bit)| (key, members, *bit));
        let mut groups: Vec<Group> = with_bits()
            .map(|(key, members, bit)| {
                let names: BTreeSet<String> = members.names.iter().map(|name| name.pattern.to_string()).collect();
                Group { bit, key: key.clone(), names: names.into_iter().collect() }
            })
            .collect();
        groups.sort_by_key(|group| group.bit);
        let mut names = PatternTrie::new(Bare::Valid);
        let mut networks: BTreeMap<IpNet, Bits> = BTreeMap::new();
        let mut peers: BTreeMap<PeerId, Bits> = BTreeMap::new();
        for (_, members, bit) in with_bits() {
            for name in &members.names {
                names.insert(name.pattern.clone(), Bits::of(bit), Some(name.at.clone()));
            }
            for network in &members.networks {
                *networks.entry(*network).or_default() |= Bits::of(bit);
            }
            for peer in &members.peers {
                *peers.entry(*peer).or_default() |= Bits::of(bit);
            }
        }
        Ok(Rows { ports: self.ports(&bits), cidrs: unite(networks), peers: peers.into_iter().collect(), groups, names })
    }

    /// A bit for each group: the one it had, else the lowest that history doesn't hold.
    fn bits(&self, pod: &PodRef, history: &[Group]) -> Result<Vec<u8>, CompileError> {
        let held = |key: &GroupKey| history.iter().find(|group| group.key == *key).map(|group| group.bit);
        let mut free = (1..GROUPS as u8).filter(|bit| history.iter().all(|group| group.bit != *bit));
        let mut bits = Vec::with_capacity(self.groups.len());
        for (key, members) in &self.groups {
            let bit = held(key).or_else(|| free.next()).ok_or_else(|| CompileError::TooManyGroups {
                at: Box::new(members.at.clone()),
                pod: pod.clone(),
                groups: bits.len() + 1,
                held: history.iter().filter(|old| self.groups.iter().all(|(key, _)| *key != old.key)).count(),
            })?;
            bits.push(bit);
        }
        Ok(bits)
    }

    /// The port rows, each the union of all that cover it.
    fn ports(&self, bits: &[u8]) -> Vec<PortRow> {
        let mut opened: BTreeMap<(Direction, (Protocol, PortBlock)), [Bits; 2]> = BTreeMap::new();
        for (direction, deny, port) in &self.any {
            opened.entry((*direction, *port)).or_default()[usize::from(*deny)] |= Bits::ANY_PEER;
        }
        for ((key, _), bit) in self.groups.iter().zip(bits) {
            for port in &key.ports {
                opened.entry((key.direction, *port)).or_default()[usize::from(key.deny)] |= Bits::of(*bit);
            }
        }
        opened
            .keys()
            .map(|(direction, narrow)| {
                let mut row = PortRow {
                    direction: *direction,
                    protocol: narrow.0,
                    ports: narrow.1,
                    allow: Bits::NONE,
                    deny: Bits::NONE,
                };
                for (_, [allow, deny]) in
                    opened.iter().filter(|((way, wide), _)| way == direction && covers(*wide, *narrow))
                {
                    row.allow |= *allow;
                    row.deny |= *deny;
                }
                row
            })
            .collect()
    }
}

/// Each network with the bits of all that cover it, so that one look-up of the longest prefix is enough.
fn unite(networks: BTreeMap<IpNet, Bits>) -> Vec<(IpNet, Bits)> {
    // Sorted, a network comes after all that cover it: their chain is a stack.
    let mut chain: Vec<(IpNet, Bits)> = Vec::new();
    let mut rows = Vec::with_capacity(networks.len());
    for (network, own) in networks {
        while chain.last().is_some_and(|(wider, _)| !wider.contains(&network)) {
            chain.pop();
        }
        let bits = chain.last().map_or(Bits::NONE, |(_, bits)| *bits) | own;
        chain.push((network, bits));
        rows.push((network, bits));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_networks_is_the_union_of_all_that_cover_it() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let rows = unite(BTreeMap::from([
            (net("0.0.0.0/0"), Bits::of(1)),
            (net("10.0.0.0/8"), Bits::of(2)),
            (net("10.1.0.0/16"), Bits::of(3)),
            (net("10.2.0.0/16"), Bits::of(1)),
            (net("11.0.0.0/8"), Bits::of(4)),
            (net("::/0"), Bits::of(5)),
        ]));
        let bits = |numbers: &[u8]| numbers.iter().fold(Bits::NONE, |bits, number| bits | Bits::of(*number));
        assert_eq!(
            rows,
            [
                (net("0.0.0.0/0"), bits(&[1])),
                (net("10.0.0.0/8"), bits(&[1, 2])),
                (net("10.1.0.0/16"), bits(&[1, 2, 3])),
                (net("10.2.0.0/16"), bits(&[1, 2])),
                (net("11.0.0.0/8"), bits(&[1, 4])),
                (net("::/0"), bits(&[5])),
            ]
        );
    }
}
