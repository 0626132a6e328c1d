//! Peers with the same ports are one group, one bit.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::peers::{Outside, all_outside, is_any};
use super::ports::{Held, PortSet};
use super::rows::{self, Covered, Opened};
use super::{CompileError, Compiler};
use crate::engine::bits::{Bits, GROUPS};
use crate::engine::endpoint::PodRef;
use crate::engine::pattern::{Bare, PatternTrie};
use crate::engine::policy::{Item, NameRule, Peers};
use crate::engine::port::PortBlock;
use crate::engine::ruleset::{Direction, Group, GroupKey, PeerId, PortRow, Protocol};
use crate::engine::verdict::RuleRef;

/// The groups of one rule set while it is made.
#[derive(Default)]
pub(super) struct Groups<'w> {
    /// Ports of items that mean every peer: bit 0.
    any: BTreeSet<(Direction, bool, (Protocol, PortBlock))>,
    /// In the order in which the rules stand.
    groups: Vec<Members<'w>>,
    /// Where a group stands.
    at: BTreeMap<GroupKey, usize>,
}

/// Everyone whom a group's ports are open to, or shut.
struct Members<'w> {
    key: GroupKey,
    at: RuleRef,
    names: Vec<&'w NameRule>,
    networks: Vec<Outside<'w>>,
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

impl<'w> Groups<'w> {
    /// Adds an item's peers to the groups of its ports.
    pub fn add(&mut self, compiler: &Compiler<'_>, subject: &PodRef, direction: Direction, item: &'w Item, deny: bool) {
        let entries = compiler.entries(subject, direction, item, deny);
        let uniform = entries.iter().filter(|entry| entry.is_uniform());
        let ports: PortSet = uniform.flat_map(|entry| entry.numbered.iter().copied()).collect();
        if !ports.is_empty() {
            if is_any(&item.peers) {
                self.any.extend(ports.into_iter().map(|port| (direction, deny, port)));
            } else {
                let networks = compiler.outside(&item.peers, deny);
                let peers = compiler.selected_ids(&item.peers, deny);
                let members = self.members(direction, deny, ports, &item.at);
                if let Peers::Names(names) = &item.peers {
                    members.names.extend(names);
                }
                members.networks.extend(networks);
                members.peers.extend(peers.iter());
            }
        }
        for entry in entries.iter().filter(|entry| !entry.is_uniform()) {
            for peer in compiler.selected_of_all(&item.peers, deny) {
                let ports = entry.at(compiler.world, peer, deny);
                if !ports.is_empty() {
                    self.members(direction, deny, ports, &item.at).peers.insert(peer.id);
                }
            }
            let networks = match &entry.held {
                // Only the ports that go by a name are not uniform, and who is outside has none.
                Held::Everywhere => Vec::new(),
                Held::At(addresses) => {
                    let outside = addresses.iter().filter(|address| !compiler.base.known.contains_key(*address));
                    let meant = outside.filter(|address| compiler.is_meant(&item.peers, **address, deny));
                    meant.map(|address| Outside::one(*address)).collect()
                }
                Held::Families(open) => {
                    let networks =
                        if is_any(&item.peers) { all_outside() } else { compiler.outside(&item.peers, deny) };
                    let open = |outside: &Outside<'_>| open[usize::from(outside.network.addr().is_ipv6())];
                    networks.into_iter().filter(open).collect()
                }
            };
            if !networks.is_empty() && !entry.numbered.is_empty() {
                self.members(direction, deny, entry.numbered.clone(), &item.at).networks.extend(networks);
            }
        }
    }

    fn members(&mut self, direction: Direction, deny: bool, ports: PortSet, at: &RuleRef) -> &mut Members<'w> {
        let key = GroupKey { direction, deny, ports: ports.into_iter().collect() };
        let place = *self.at.entry(key).or_insert_with_key(|key| {
            self.groups.push(Members {
                key: key.clone(),
                at: at.clone(),
                names: Vec::new(),
                networks: Vec::new(),
                peers: BTreeSet::new(),
            });
            self.groups.len() - 1
        });
        &mut self.groups[place]
    }

    /// Gives every group its bit and makes the rows.
    pub fn rows(&self, pod: &PodRef, history: &[Group]) -> Result<Rows, CompileError> {
        let bits = self.bits(pod, history)?;
        let mut groups = Vec::with_capacity(bits.len());
        let mut names = PatternTrie::new(Bare::Valid);
        let mut covered: Vec<Covered<'_>> = Vec::new();
        let mut peers: BTreeMap<PeerId, Bits> = BTreeMap::new();
        let mut opened = Opened::default();
        for (direction, deny, port) in &self.any {
            opened.add(*direction, *deny, *port, Bits::ANY_PEER);
        }
        for (members, bit) in self.groups.iter().zip(bits) {
            let texts: BTreeSet<String> = members.names.iter().map(|name| name.pattern.to_string()).collect();
            groups.push(Group { bit, key: members.key.clone(), names: texts.into_iter().collect() });
            let bits = Bits::of(bit);
            for name in &members.names {
                names.insert(name.pattern.clone(), bits, Some(name.at.clone()));
            }
            let networks = members.networks.iter();
            covered.extend(networks.map(|outside| Covered { network: outside.network, except: outside.except, bits }));
            for peer in &members.peers {
                *peers.entry(*peer).or_default() |= bits;
            }
            for port in &members.key.ports {
                opened.add(members.key.direction, members.key.deny, *port, bits);
            }
        }
        groups.sort_by_key(|group| group.bit);
        Ok(Rows {
            groups,
            ports: opened.rows(),
            cidrs: rows::cidrs(&covered),
            peers: peers.into_iter().collect(),
            names,
        })
    }

    /// A bit for each group: the one it had, else the lowest that history doesn't hold.
    fn bits(&self, pod: &PodRef, history: &[Group]) -> Result<Vec<u8>, CompileError> {
        let held = |key: &GroupKey| history.iter().find(|group| group.key == *key).map(|group| group.bit);
        let mut free = (1..GROUPS as u8).filter(|bit| history.iter().all(|group| group.bit != *bit));
        let mut bits = Vec::with_capacity(self.groups.len());
        for members in &self.groups {
            let bit = held(&members.key).or_else(|| free.next()).ok_or_else(|| CompileError::TooManyGroups {
                at: Box::new(members.at.clone()),
                pod: pod.clone(),
                groups: bits.len() + 1,
                held: history.iter().filter(|old| !self.at.contains_key(&old.key)).count(),
            })?;
            bits.push(bit);
        }
        Ok(bits)
    }
}
