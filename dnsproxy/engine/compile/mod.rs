//! Policies and labels in, rule sets out: the rows of the kernel's maps and the name rules of the proxy.
//!
//! - `peers`: whom an item means; `ports`: which ports it means at each of them
//! - `groups`: peers with the same ports are one group, one bit; `rows`: port rows, CIDR rows, peer rows
//! - `services`: what a Service's address stands for
//! - `dns`: whom the workload may ask for which names
//! - `transition`: the rows between two rule sets; `why`: which item said so
//!
//! The semantics are Cilium's; `engine::reference` says them once more without bits and rows, and a property test
//! holds the two against each other.

mod dns;
mod groups;
mod peers;
mod ports;
mod rows;
mod services;
#[cfg(test)]
mod tests;
mod transition;
mod why;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use super::bits::GROUPS;
use super::endpoint::PodRef;
use super::labels::{Labels, Match};
use super::policy::{Item, Rule};
use super::ruleset::{Direction, Group, PeerId, RuleSet};
use super::verdict::RuleRef;
use super::world::{Enforcement, Holder, Mode, PeerIds, World};
pub use transition::transition;
pub use why::Spoken;

use groups::Groups;
use peers::Peer;
use services::{Behind, Front};

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

/// Compiles rule sets of one world: what all of them share is made once.
#[derive(Debug)]
pub struct Compiler<'w> {
    world: &'w World,
    known: Arc<BTreeMap<IpAddr, PeerId>>,
    peers: Vec<Peer>,
    /// Where a number stands: in `peers`, and there in `numbers`.
    numbers: HashMap<PeerId, (usize, usize)>,
    /// Peers that are pods of a namespace.
    of_namespace: HashMap<String, Vec<usize>>,
    /// Rules by the namespace that they are about, each with its place among all and how surely it selects.
    rules: HashMap<Option<&'w str>, Vec<(usize, &'w Rule, Match)>>,
    services: BTreeMap<(&'w str, &'w str), Behind>,
    fronts: Vec<Front>,
    /// Whom an item means, by its peers' place in memory and whether it denies: the same for every rule set.
    selected: Mutex<HashMap<(usize, bool), Places>>,
}

/// Places in `peers`, sorted.
type Places = Arc<[usize]>;

/// Compiles one rule set; see [`Compiler::compile`].
///
/// # Errors
/// As [`Compiler::compile`].
pub fn compile(world: &World, subject: &PodRef, ids: &mut PeerIds, history: &[Group]) -> Result<RuleSet, CompileError> {
    Compiler::new(world, ids).compile(subject, history)
}

impl<'w> Compiler<'w> {
    /// Numbers the peers, reads the Services and sorts the rules: once for all rule sets.
    pub fn new(world: &'w World, ids: &mut PeerIds) -> Compiler<'w> {
        let holders = world.holders();
        let known = world.number(&holders, ids);
        let peers = peers::of(world, holders, &known);
        let mut numbers = HashMap::new();
        let mut of_namespace: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, peer) in peers.iter().enumerate() {
            numbers.extend(peer.numbers.iter().enumerate().map(|(place, number)| (number.id, (at, place))));
            for (holder, _) in &peer.holders {
                if let Holder::Pod(pod) = holder {
                    let pods = of_namespace.entry(pod.namespace.clone()).or_default();
                    if pods.last() != Some(&at) {
                        pods.push(at);
                    }
                }
            }
        }
        let services = services::behind(world);
        let fronts = services::fronts(world, &services, &known);
        Compiler {
            world,
            known: Arc::new(known),
            peers,
            numbers,
            of_namespace,
            rules: rules(world),
            services,
            fronts,
            selected: Mutex::default(),
        }
    }

    /// The rows of the kernel's `peers` map, shared by all rule sets of this world.
    pub fn peers(&self) -> &Arc<BTreeMap<IpAddr, PeerId>> {
        &self.known
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
        let rules = self.rules_of(subject);
        let always = self.world.enforcement == Enforcement::Always;
        if rules.is_empty() && !always {
            return Ok(RuleSet { known: self.known.clone(), ..RuleSet::unselected() });
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
            known: self.known.clone(),
        };
        set.services = services::rows(&set, &self.fronts);
        Ok(set)
    }

    /// The rules that select a pod, and whether they surely do: if not, only their denials and their default deny hold.
    fn rules_of(&self, subject: &PodRef) -> Vec<(&'w Rule, Match)> {
        if self.world.enforcement == Enforcement::Never {
            return Vec::new();
        }
        let labels = self.world.labels(&Holder::Pod(subject.clone()));
        let about = |namespace| self.rules.get(&namespace).map_or(&[][..], Vec::as_slice);
        let mut rules: Vec<_> = about(None).iter().chain(about(Some(subject.namespace.as_str()))).collect();
        rules.sort_unstable_by_key(|(place, _, _)| *place);
        rules
            .into_iter()
            .map(|(_, rule, most)| (*rule, rule.subject.selector.matches(&labels).min(*most)))
            .filter(|(_, found)| *found != Match::No)
            .collect()
    }
}

/// All rules in the order in which they stand, those that could not be read at the end.
fn rules(world: &World) -> HashMap<Option<&str>, Vec<(usize, &Rule, Match)>> {
    let read = world.policies.iter().map(|policy| (policy, Match::Yes));
    let refused = world.refused.iter().map(|policy| (policy, Match::Maybe));
    let all = read.chain(refused).flat_map(|(policy, most)| policy.rules.iter().map(move |rule| (rule, most)));
    let mut rules: HashMap<Option<&str>, Vec<(usize, &Rule, Match)>> = HashMap::new();
    for (place, (rule, most)) in all.enumerate() {
        rules.entry(rule.subject.namespace.as_deref()).or_default().push((place, rule, most));
    }
    rules
}

/// The items in force, each with whether it denies.
fn items<'w>(rules: &[(&'w Rule, Match)], direction: Direction) -> impl Iterator<Item = (&'w Item, bool)> {
    rules.iter().flat_map(move |(rule, found)| {
        let section = rule.section(direction);
        let allow = if *found == Match::Yes { section.allow.as_slice() } else { &[] };
        allow.iter().map(|item| (item, false)).chain(section.deny.iter().map(|item| (item, true)))
    })
}

/// The labels of the world, as Cilium's selectors see it.
fn labels_of_the_world() -> Labels {
    Labels::reserved(&["world"])
}
