//! Which ports an item means, at each of its peers: named ones are looked up, and a `service` holds where it holds.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Compiler;
use super::base::Peer;
use crate::engine::endpoint::PodRef;
use crate::engine::policy::{Item, Peers, Port, PortRule, Ports};
use crate::engine::port::PortBlock;
use crate::engine::ruleset::{Direction, PeerId, Protocol};
use crate::engine::world::{Holder, World};

pub(super) type PortSet = BTreeSet<(Protocol, PortBlock)>;

/// Ports of an item that hold on the same condition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry<'w> {
    /// The same everywhere. Those that go by a name of the subject's own are among them.
    pub numbered: PortSet,
    /// Those that go by a name of the peer's.
    pub named: Vec<(Protocol, &'w str)>,
    /// Where they hold.
    pub held: Held,
}

/// Where an entry holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Held {
    /// At every peer of the item.
    Everywhere,
    /// At these of their addresses: those of a Service.
    At(BTreeSet<IpAddr>),
    /// With peers of these address families, IPv4 and IPv6: the subject's own addresses of it are a Service's.
    Families([bool; 2]),
}

impl Entry<'_> {
    /// Whether it means the same at every peer of its item.
    pub fn is_uniform(&self) -> bool {
        self.held == Held::Everywhere && self.named.is_empty()
    }

    /// The ports at a peer of the cluster. An allowance holds at a peer where it holds at all of its addresses.
    pub fn at(&self, world: &World, peer: &Peer, deny: bool) -> PortSet {
        let holds = |held: &dyn Fn(&IpAddr) -> bool| match deny {
            true => peer.addresses.iter().any(held),
            // This node has addresses that the snapshot doesn't list: an allowance never holds at all of them.
            false => peer.id != PeerId::HOST && peer.addresses.iter().all(held),
        };
        let held = match &self.held {
            Held::Everywhere => true,
            Held::At(addresses) => holds(&|address| addresses.contains(address)),
            Held::Families(open) => holds(&|address| open[usize::from(address.is_ipv6())]),
        };
        if !held {
            return PortSet::new();
        }
        let mut ports = self.numbered.clone();
        if !self.named.is_empty() {
            let each = peer.holders.iter().map(|(holder, _)| match holder {
                Holder::Pod(pod) => resolve(world, pod, &self.named, deny),
                _ => PortSet::new(),
            });
            let all = if deny {
                each.reduce(|all, one| &all | &one) // any of those who claim the address
            } else {
                each.reduce(|all, one| &all & &one)
            };
            ports.extend(all.unwrap_or_default());
        }
        ports
    }

    /// The ports at an address outside the cluster.
    pub fn outside(&self, address: IpAddr) -> Option<&PortSet> {
        let held = match &self.held {
            Held::Everywhere => true,
            Held::At(addresses) => addresses.contains(&address),
            Held::Families(open) => open[usize::from(address.is_ipv6())],
        };
        held.then_some(&self.numbered)
    }
}

impl Compiler<'_> {
    /// The ports of an item that the kernel sees to: without those of `rules.dns`, which the proxy answers for.
    pub(super) fn entries<'p>(
        &self,
        subject: &PodRef,
        direction: Direction,
        item: &'p Item,
        deny: bool,
    ) -> Vec<Entry<'p>> {
        match &item.ports {
            Ports::All => {
                let numbered = PortSet::from([(Protocol::Any, PortBlock::ANY)]);
                vec![Entry { numbered, named: Vec::new(), held: Held::Everywhere }]
            }
            Ports::These(rules) => {
                let plain = rules.iter().filter(|rule| rule.dns.is_none());
                let mut entries: Vec<_> =
                    plain.flat_map(|rule| self.entries_of(subject, direction, rule, deny)).collect();
                if matches!(item.peers, Peers::Names(_)) {
                    // A name stands for who is outside, and who is outside has no containers.
                    entries.retain_mut(|entry| {
                        entry.named.clear();
                        !entry.numbered.is_empty()
                    });
                }
                entries
            }
        }
    }

    /// The ports of these entries at an address.
    pub(super) fn ports_at(&self, entries: &[Entry<'_>], address: IpAddr, deny: bool) -> PortSet {
        let mut ports = PortSet::new();
        for entry in entries {
            match self.peer(address) {
                Some(peer) => ports.extend(entry.at(self.world, peer, deny)),
                // A Service's own address is neither a peer's nor outside.
                None if self.base.known.contains_key(&address) && entry.held != Held::Everywhere => {}
                None => ports.extend(entry.outside(address).into_iter().flatten()),
            }
        }
        ports
    }

    /// One `toPorts`, in as many parts as it has conditions.
    pub(super) fn entries_of<'p>(
        &self,
        subject: &PodRef,
        direction: Direction,
        rule: &'p PortRule,
        deny: bool,
    ) -> Vec<Entry<'p>> {
        let (mut numbered, mut named) = (PortSet::new(), Vec::new());
        for (protocol, port) in &rule.ports {
            match port {
                Port::Block(block) => drop(numbered.insert((*protocol, *block))),
                Port::Named(name) => named.push((*protocol, name.as_str())),
            }
        }
        if direction == Direction::Ingress {
            numbered.extend(resolve(self.world, subject, &named, deny));
            named.clear();
        }
        let held = match &rule.service {
            None => Held::Everywhere,
            Some(service) => self.held(subject, direction, service, deny),
        };
        let mut entries = Vec::new();
        if held == Held::Everywhere && !named.is_empty() {
            let numbered = std::mem::take(&mut numbered);
            entries.push(Entry { numbered, named: Vec::new(), held: Held::Everywhere });
        }
        entries.push(Entry { numbered, named, held });
        entries.retain(|entry| !(entry.numbered.is_empty() && entry.named.is_empty()));
        entries
    }

    /// Where a `service` holds. What is not known of a Service, a denial takes for everywhere and an allowance for nowhere.
    fn held(&self, subject: &PodRef, direction: Direction, service: &(String, String), deny: bool) -> Held {
        let addresses = match self.base.services.get(service) {
            Some(backing) if backing.complete => if deny { &backing.all } else { &backing.ready }.clone(),
            Some(_) if deny => return Held::Everywhere,
            Some(_) | None => BTreeSet::new(),
        };
        if direction == Direction::Egress {
            return Held::At(addresses);
        }
        let own = self.world.pods.get(subject).map_or(&[][..], |pod| &pod.addresses);
        Held::Families([false, true].map(|ipv6| {
            let mut own = own.iter().filter(|address| address.is_ipv6() == ipv6).peekable();
            match deny {
                true => own.any(|address| addresses.contains(address)),
                false => own.peek().is_some() && own.all(|address| addresses.contains(address)),
            }
        }))
    }
}

/// The ports that a pod has under these names. A denial meets a pod that could not be read on every port.
fn resolve(world: &World, pod: &PodRef, named: &[(Protocol, &str)], deny: bool) -> PortSet {
    let Some(pod) = world.pods.get(pod) else { return PortSet::new() };
    if !pod.readable {
        return named.iter().filter(|_| deny).map(|(protocol, _)| (*protocol, PortBlock::ANY)).collect();
    }
    let wanted = |protocol, name: &str| named.contains(&(protocol, name));
    let ports = pod.ports.iter().filter(|port| wanted(port.protocol, &port.name));
    ports.map(|port| (port.protocol, PortBlock::one(port.port))).collect()
}
