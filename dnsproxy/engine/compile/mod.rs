//! Policies and labels in, rule sets out: the rows of the kernel's maps and the name rules of the proxy.
//!
//! - `peers`: whom an item means; `ports`: which ports it means at each of them
//! - `groups`: peers with the same ports are one group, one bit; `rows`: port rows, CIDR rows, peer rows
//! - `services`: what a Service's address stands for
//! - `dns`: whom the workload may ask for which names
//! - `base`: what all rule sets of a world share; `kept`: the same from one world to the next
//! - `transition`: the rows between two rule sets; `why`, `behind`: what people ask
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
mod peers;
mod ports;
mod rows;
mod services;
#[cfg(test)]
pub(super) mod tests;
mod transition;
mod why;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::bits::GROUPS;
use super::endpoint::PodRef;
use super::labels::{Labels, Match};
use super::policy::{Item, Rule};
use super::ruleset::{Direction, Group, PeerId, RuleSet};
use super::verdict::RuleRef;
use super::world::{Enforcement, Holder, Mode, PeerIds, World};
pub use behind::Behind;
pub use kept::Kept;
pub use transition::transition;
pub use why::Spoken;

use base::Base;
use groups::Groups;
use peers::Selections;

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
    selections: Selections,
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
        Compiler { world, base: Cow::Owned(Base::new(world, ids)), selections: Selections::default() }
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
        self.compile_among(subject, rules_of(self.world), history)
    }

    /// The same, for who knows that no others than these rules of the world can select the subject: a pass over all
    /// policies for each of many subjects is what takes long. The [`Match`] is the most that a rule may do: `Maybe` if its
    /// policy was refused.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub fn compile_among(
        &self,
        subject: &PodRef,
        rules: impl Iterator<Item = (&'w Rule, Match)>,
        history: &[Group],
    ) -> Result<RuleSet, CompileError> {
        let pod = self.world.pods.get(subject).ok_or_else(|| CompileError::UnknownPod(subject.clone()))?;
        if pod.host_network {
            return Err(CompileError::HostNetwork(subject.clone()));
        }
        let labels = self.world.labels(&Holder::Pod(subject.clone()));
        let rules = selecting_among(self.world, rules, subject, &labels);
        let always = self.world.enforcement == Enforcement::Always;
        if rules.is_empty() && !always {
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
                groups.add(self, subject, direction, item, deny);
            }
        }
        let rows = groups.rows(subject, history)?;
        let (dns, dns_denied) = dns::rules(self, subject, &rules);
        let mut set = RuleSet {
            selected: true,
            audit: self.world.mode_of(subject) == Mode::Audit,
            deny_egress: always || !deny_egress_by.is_empty(),
            deny_ingress: always || !shuts(Direction::Ingress).is_empty(),
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
}

/// Whether a policy may select a pod.
pub fn is_selected(world: &World, subject: &PodRef) -> bool {
    !selecting(world, subject, &world.labels(&Holder::Pod(subject.clone()))).is_empty()
}

/// The rules that select a pod, and whether they surely do: if not, only their denials and their default deny hold.
fn selecting<'w>(world: &'w World, subject: &PodRef, labels: &Labels) -> Vec<(&'w Rule, Match)> {
    selecting_among(world, rules_of(world), subject, labels)
}

/// All rules of a world, and the most that each may do.
fn rules_of(world: &World) -> impl Iterator<Item = (&Rule, Match)> {
    let read = world.policies.iter().map(|policy| (policy, Match::Yes));
    let refused = world.refused.iter().map(|policy| (policy, Match::Maybe));
    read.chain(refused).flat_map(|(policy, most)| policy.rules.iter().map(move |rule| (rule, most)))
}

fn selecting_among<'w>(
    world: &World,
    rules: impl Iterator<Item = (&'w Rule, Match)>,
    subject: &PodRef,
    labels: &Labels,
) -> Vec<(&'w Rule, Match)> {
    if world.enforcement == Enforcement::Never {
        return Vec::new();
    }
    rules
        .filter(|(rule, _)| rule.subject.namespace.as_ref().is_none_or(|namespace| *namespace == subject.namespace))
        .map(|(rule, most)| (rule, rule.subject.selector.matches(labels).min(most)))
        .filter(|(_, found)| *found != Match::No)
        .collect()
}

/// The items in force, each with whether it denies.
fn items<'w>(rules: &[(&'w Rule, Match)], direction: Direction) -> impl Iterator<Item = (&'w Item, bool)> {
    rules.iter().flat_map(move |(rule, found)| {
        let section = rule.section(direction);
        let allow = if *found == Match::Yes { section.allow.as_slice() } else { &[] };
        allow.iter().map(|item| (item, false)).chain(section.deny.iter().map(|item| (item, true)))
    })
}
