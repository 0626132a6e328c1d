//! Policies and labels in, rule sets out: the rows of the kernel's maps and the name rules of the proxy.
//!
//! - `groups`: items with the same ports are one group, one bit; port rows, CIDR rows, peer rows
//! - `services`: what a Service's address stands for
//! - `dns`: whom the workload may ask for which names
//! - `base`: what all rule sets of a world share; `kept`: the same from one world to the next
//!
//! The semantics are Cilium's; `engine::reference` says them once more without bits and rows, and a property test
//! holds the two against each other.

mod base;
mod behind;
mod dns;
mod groups;
mod kept;
#[cfg(test)]
mod kept_tests;
mod services;
#[cfg(test)]
mod tests;
mod transition;
mod why;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::bits::GROUPS;
use super::endpoint::PodRef;
use super::labels::{Labels, Match};
use super::policy::{BlockOf, Entity, Item, Peers, Rule};
use super::ruleset::{Direction, Group, PeerId, RuleSet};
use super::verdict::RuleRef;
use super::world::{Holder, Mode, PeerIds, World};
pub use behind::Behind;
pub use kept::Kept;
pub use transition::transition;
pub use why::Spoken;

use base::{Base, Peer};
use groups::Groups;

/// Why no rule set could be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CompileError {
    /// The snapshot has no such pod.
    #[error("pod {0} is not in the snapshot; a Pod object of that namespace and name is needed")]
    UnknownPod(PodRef),
    /// The pod is its node, as far as policies go.
    #[error("pod {0} uses its node's network; only a pod with a network of its own can be an endpoint")]
    HostNetwork(PodRef),
    /// There are more sets of ports than bits.
    #[error(
        "{}: {}: group {groups} of the rules that select {pod}, {held} more held by live grants; the limit is {}",
        at.0.place, at.0.path, GROUPS - 1
    )]
    TooManyGroups {
        /// The first rule without a bit.
        at: Box<RuleRef>,
        /// For which workload.
        pod: PodRef,
        /// How many groups there are up to and with this one.
        groups: usize,
        /// How many bits belong to groups that are gone, but may still stand in grants.
        held: usize,
    },
}

/// Compiles rule sets of one world: what all of them share is made once. For one world after another there is [`Kept`].
#[derive(Debug)]
pub struct Compiler<'w> {
    world: &'w World,
    base: Cow<'w, Base>,
}

/// Compiles one rule set; see [`Compiler::compile`].
///
/// # Errors
/// As [`Compiler::compile`].
pub fn compile(world: &World, subject: &PodRef, ids: &mut PeerIds, history: &[Group]) -> Result<RuleSet, CompileError> {
    Compiler::new(world, ids).compile(subject, history)
}

impl<'w> Compiler<'w> {
    /// Numbers the peers and reads the Services.
    pub fn new(world: &'w World, ids: &mut PeerIds) -> Compiler<'w> {
        Compiler { world, base: Cow::Owned(Base::new(world, ids)) }
    }

    /// The rows of the kernel's `peers` map, shared by all rule sets of this world.
    pub fn peers(&self) -> &Arc<BTreeMap<IpAddr, PeerId>> {
        &self.base.known
    }

    /// Everything that the policies mean for `subject`.
    ///
    /// A group that `history` knows keeps its bit; a new one takes a bit that `history` does not use. So `history` holds
    /// every group whose bit may still stand in a live grant, also those that are gone. The same input gives equal
    /// rule sets.
    ///
    /// # Errors
    /// The pod is unknown or has no network of its own, or there are more groups than bits.
    pub fn compile(&self, subject: &PodRef, history: &[Group]) -> Result<RuleSet, CompileError> {
        let pod = self.world.pods.get(subject).ok_or_else(|| CompileError::UnknownPod(subject.clone()))?;
        if pod.host_network {
            return Err(CompileError::HostNetwork(subject.clone()));
        }
        let labels = self.world.labels(&Holder::Pod(subject.clone()));
        let rules = selecting(self.world, subject, &labels);
        if rules.is_empty() {
            return Ok(RuleSet { known: self.base.known.clone(), ..RuleSet::unselected() });
        }
        let shuts = |direction| {
            let shut = rules.iter().filter(|(rule, _)| rule.section(direction).default_deny);
            shut.map(|(rule, _)| rule.at.clone()).collect::<Vec<_>>()
        };
        let deny_egress_by = shuts(Direction::Egress);
        let mut groups = Groups::default();
        for direction in [Direction::Egress, Direction::Ingress] {
            for (item, deny) in items(&rules, direction) {
                groups.add(self, direction, item, deny);
            }
        }
        let rows = groups.rows(subject, history)?;
        let (dns, dns_denied) = dns::rules(self, &rules);
        let mut set = RuleSet {
            selected: true,
            audit: self.world.mode_of(subject) == Mode::Audit,
            deny_egress: !deny_egress_by.is_empty(),
            deny_ingress: !shuts(Direction::Ingress).is_empty(),
            deny_egress_by,
            groups: rows.groups,
            ports: rows.ports,
            cidrs: rows.cidrs,
            peers: rows.peers,
            services: Vec::new(),
            names: Arc::new(rows.names),
            dns,
            dns_denied,
            known: self.base.known.clone(),
        };
        set.services = services::rows(&set, &self.base.fronts);
        Ok(set)
    }

    /// Who an item means among the peers of the cluster.
    fn selected<'a>(&'a self, peers: &'a Peers, deny: bool) -> impl Iterator<Item = &'a Peer> {
        self.base.candidates(peers).filter(move |peer| peer.is_meant(self.world, peers, deny))
    }

    fn peer(&self, address: IpAddr) -> Option<&Peer> {
        self.base.peers.get(self.base.known.get(&address)?)
    }

    /// Whether an item means this address, of the cluster or outside. A name means none before it was asked for.
    fn is_meant(&self, peers: &Peers, address: IpAddr, deny: bool) -> bool {
        if is_any(peers) {
            return true;
        }
        match self.peer(address) {
            Some(peer) => peer.is_meant(self.world, peers, deny),
            None if self.base.known.contains_key(&address) => false,
            None => networks(self.world, peers, deny).iter().any(|network| network.contains(&address)),
        }
    }
}

impl Peer {
    /// An allowance must mean all who claim the address, a denial one of them.
    fn is_meant(&self, world: &World, peers: &Peers, deny: bool) -> bool {
        let mut holders = self.holders.iter();
        if deny {
            holders.any(|(holder, labels)| is_holder_meant(world, peers, holder, labels, deny))
        } else {
            holders.all(|(holder, labels)| is_holder_meant(world, peers, holder, labels, deny))
        }
    }
}

fn is_holder_meant(world: &World, peers: &Peers, holder: &Holder, labels: &Labels, deny: bool) -> bool {
    match peers {
        Peers::Any => true,
        Peers::Endpoints(selectors) => selectors.iter().any(|selector| {
            let found = selector.matches(labels);
            if deny {
                return found != Match::No;
            }
            // A selector that only lacks a label (`NotIn`, `DoesNotExist`) selects nodes by accident: it opens none.
            found == Match::Yes && (matches!(holder, Holder::Pod(_)) || selector.names_reserved())
        }),
        Peers::Entities(entities) => entities.iter().any(|entity| is_entity(*entity, holder)),
        Peers::Nodes(_) | Peers::Services(_) => {
            let _ = world;
            false
        }
        Peers::Networks(_) | Peers::Names(_) => false,
    }
}

/// Whether who is behind an address of the cluster belongs to a class.
fn is_entity(entity: Entity, holder: &Holder) -> bool {
    match entity {
        Entity::All | Entity::Cluster | Entity::ClusterMesh => true,
        Entity::Host => matches!(holder, Holder::Host | Holder::HostApiserver),
        Entity::RemoteNode => matches!(holder, Holder::Node(_) | Holder::NodeApiserver(_) | Holder::Apiserver),
        Entity::KubeApiserver => {
            matches!(holder, Holder::HostApiserver | Holder::NodeApiserver(_) | Holder::Apiserver)
        }
        Entity::World | Entity::Ingress | Entity::Init | Entity::Health | Entity::Unmanaged | Entity::None => false,
    }
}

/// Whether an item means every address there is.
fn is_any(peers: &Peers) -> bool {
    match peers {
        Peers::Any => true,
        Peers::Entities(entities) => entities.contains(&Entity::All),
        Peers::Endpoints(_) | Peers::Nodes(_) | Peers::Networks(_) | Peers::Services(_) | Peers::Names(_) => false,
    }
}

/// The addresses outside the cluster that an item means.
fn networks(_world: &World, peers: &Peers, deny: bool) -> Vec<ipnet::IpNet> {
    let world = || vec![ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()];
    match peers {
        Peers::Networks(blocks) => blocks
            .iter()
            .filter_map(|block| match &block.of {
                BlockOf::Here(network) => Some(*network),
                BlockOf::Group(_) | BlockOf::Groups(_) => None,
            })
            .collect(),
        Peers::Entities(entities) if entities.contains(&Entity::World) => world(),
        // Cilium's selectors see the world as one more set of labels; a denial keeps that, an allowance never had it.
        Peers::Endpoints(selectors) if deny => {
            let labels = Labels::reserved(&["world"]);
            if selectors.iter().any(|selector| selector.matches(&labels) == Match::Yes) { world() } else { Vec::new() }
        }
        Peers::Any
        | Peers::Endpoints(_)
        | Peers::Nodes(_)
        | Peers::Entities(_)
        | Peers::Services(_)
        | Peers::Names(_) => Vec::new(),
    }
}

/// The rules that select a pod, and whether they surely do: if not, only their denials and their default deny hold.
fn selecting<'w>(world: &'w World, subject: &PodRef, labels: &Labels) -> Vec<(&'w Rule, Match)> {
    let read = world.policies.iter().map(|policy| (policy, Match::Yes));
    let refused = world.refused.iter().map(|policy| (policy, Match::Maybe));
    read.chain(refused)
        .flat_map(|(policy, most)| policy.rules.iter().map(move |rule| (rule, most)))
        .filter(|(rule, _)| rule.subject.namespace.as_ref().is_none_or(|namespace| *namespace == subject.namespace))
        .map(|(rule, most)| (rule, rule.subject.selector.matches(labels).min(most)))
        .filter(|(_, found)| *found != Match::No)
        .collect()
}

/// The items in force, each with whether it denies.
fn items<'a>(rules: &'a [(&'a Rule, Match)], direction: Direction) -> impl Iterator<Item = (&'a Item, bool)> {
    rules.iter().flat_map(move |(rule, found)| {
        let section = rule.section(direction);
        let allow = if *found == Match::Yes { section.allow.as_slice() } else { &[] };
        allow.iter().map(|item| (item, false)).chain(section.deny.iter().map(|item| (item, true)))
    })
}
