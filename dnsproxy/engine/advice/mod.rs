//! What is allowed to be written, and yet will not do what its author hopes: the warnings of `namegate check`.
//!
//! Each subject has a file. None of them changes what a policy means, and none is told of policies that were refused.
//!
//! - `servers`: who may be asked for the names that toFQDNs selects
//! - `patterns`: patterns that span less, or more, than they seem to
//! - `peers`: selectors, groups, Services, entities and blocks that mean nobody
//! - `ports`: ports that are missing
//! - `bypass`: DNS over HTTPS, which no policy for names sees
//! - `shadow`: rules that another rule makes pointless

mod bypass;
mod patterns;
mod peers;
mod ports;
mod servers;
mod shadow;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::endpoint::PodRef;
use super::labels::{Labels, Match, NAMESPACE, Operator, Requirement, Selector, Source};
use super::policy::{Item, Peers, Port, Ports, Rule};
use super::port::{PortBlock, covers};
use super::ruleset::{Direction, Protocol};
use super::verdict::RuleRef;
use super::world::{Holder, World};

/// One warning.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Advice {
    /// What it is about.
    pub at: RuleRef,
    /// Which kind of warning: an id of [`KINDS`].
    pub kind: &'static str,
    /// What was found, and what helps.
    pub text: String,
}

/// Every kind of warning, by its id, with what it is about in a line.
pub const KINDS: &[(&str, &str)] = &[
    (servers::NO_RESOLVER, "toFQDNs without a rule that reaches a DNS server"),
    (servers::NAME_NOT_ASKED, "a name of toFQDNs that no rules.dns lets its pods ask for"),
    (servers::WITHOUT_DNS_RULES, "a DNS server allowed without rules.dns, beside rules for names"),
    (patterns::ONE_LABEL, "a pattern that spans one label: neither deeper names nor the apex"),
    (patterns::NO_DOT, "a star glued to a name: no name below it, but other people's names that end alike"),
    (patterns::STARS_INSIDE, "two stars inside a pattern: they are one, and cross no dot"),
    (patterns::PUBLIC_SUFFIX, "a pattern under which anyone can register a name"),
    (peers::SELECTS_NOTHING, "a selector that selects no pod, node, group or Service of the snapshot"),
    (peers::NO_SUCH_OBJECT, "a Service or CiliumCIDRGroup that is not in the snapshot"),
    (peers::MEANS_NOBODY, "an entity that means nobody here"),
    (peers::BLOCK_OF_CLUSTER, "a block of addresses that are pods', nodes' or Services': blocks mean none of them"),
    (ports::NAMES_WITHOUT_PORTS, "toFQDNs without toPorts"),
    (ports::NO_SUCH_PORT, "a named port that no container of the side that listens has"),
    (bypass::DOH, "a known DNS over HTTPS or TLS resolver that is allowed"),
    (shadow::SHADOWED, "a rule that allows only what another one denies"),
    (shadow::WITHOUT_EFFECT, "a rule that allows what nothing shuts"),
];

/// The warnings for all policies that were read, sorted.
pub fn advise(world: &World) -> Vec<Advice> {
    let scene = Scene::new(world);
    let mut all = Vec::new();
    for place in &scene.places {
        servers::advise(&scene, place, &mut all);
        patterns::advise(&scene, place, &mut all);
        peers::advise(&scene, place, &mut all);
        ports::advise(&scene, place, &mut all);
        bypass::advise(&scene, place, &mut all);
        shadow::advise(&scene, place, &mut all);
    }
    all.sort();
    all.dedup();
    all
}

/// One pod for each set of rules that select some pods: what the policies come to is the same for all others, but for
/// their own ports and addresses.
pub fn one_of_each(world: &World) -> Vec<PodRef> {
    Scene::new(world).sets.into_iter().map(|(_, pod)| pod).collect()
}

/// The world, with what several subjects ask of it made once.
struct Scene<'w> {
    world: &'w World,
    /// Pods with a network of their own that have not ended, by namespace and name.
    pods: Vec<(&'w PodRef, Labels)>,
    places: Vec<Place<'w>>,
    /// Which rules hold together for some pod, by their numbers in `places`, and one such pod.
    sets: Vec<(Vec<usize>, PodRef)>,
}

/// A rule, and where it holds.
struct Place<'w> {
    rule: &'w Rule,
    /// Which of the scene's sets it is in.
    sets: Vec<usize>,
}

impl<'w> Scene<'w> {
    fn new(world: &'w World) -> Scene<'w> {
        let rules = world.policies.iter().flat_map(|policy| &policy.rules);
        let mut places: Vec<Place<'w>> = rules.map(|rule| Place { rule, sets: Vec::new() }).collect();
        let mut of_namespace: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
        for (number, place) in places.iter().enumerate() {
            of_namespace.entry(place.rule.subject.namespace.as_deref()).or_default().push(number);
        }
        let own_network = world.pods.iter().filter(|(_, pod)| !pod.host_network && !pod.finished);
        let pods: Vec<(&PodRef, Labels)> =
            own_network.map(|(pod, _)| (pod, world.labels(&Holder::Pod(pod.clone())))).collect();
        let mut sets: BTreeMap<Vec<usize>, PodRef> = BTreeMap::new();
        for (pod, labels) in &pods {
            let here = [None, Some(pod.namespace.as_str())];
            let near = here.iter().filter_map(|namespace| of_namespace.get(namespace)).flatten().copied();
            let mut set: Vec<usize> = near.filter(|number| is_subject(places[*number].rule, pod, labels)).collect();
            set.sort_unstable();
            sets.entry(set).or_insert_with(|| (*pod).clone());
        }
        let sets: Vec<(Vec<usize>, PodRef)> = sets.into_iter().collect();
        for (index, (set, _)) in sets.iter().enumerate() {
            set.iter().for_each(|number| places[*number].sets.push(index));
        }
        Scene { world, pods, places, sets }
    }

    /// The rules that hold where this one does, once for each kind of pod that it selects. Where the snapshot has no such
    /// pod, those whose subjects take in this one's.
    fn together(&self, place: &Place<'w>) -> Vec<Vec<&'w Rule>> {
        if place.sets.is_empty() {
            let wider = self.places.iter().filter(|other| takes_in(other.rule, place.rule));
            return vec![wider.map(|other| other.rule).collect()];
        }
        let rules = |index: &usize| self.sets[*index].0.iter().map(|number| self.places[*number].rule).collect();
        place.sets.iter().map(rules).collect()
    }

    /// Whether a pod of the snapshot is selected.
    fn has_pod(&self, selector: &Selector) -> bool {
        let selected = |(_, labels): &(&PodRef, Labels)| selector.matches(labels) != Match::No;
        let own = |requirement: &&Requirement| requirement.source != Source::Reserved && requirement.key == NAMESPACE;
        match selector.requirements.iter().find(own).map(|requirement| &requirement.operator) {
            Some(Operator::In(namespaces)) => namespaces.iter().any(|name| self.pods_of(name).iter().any(selected)),
            _ => self.pods.iter().any(selected),
        }
    }

    fn pods_of(&self, namespace: &str) -> &[(&'w PodRef, Labels)] {
        let first = self.pods.partition_point(|(pod, _)| pod.namespace.as_str() < namespace);
        let count = self.pods[first..].partition_point(|(pod, _)| pod.namespace == namespace);
        &self.pods[first..first + count]
    }
}

fn is_subject(rule: &Rule, pod: &PodRef, labels: &Labels) -> bool {
    let here = rule.subject.namespace.as_ref().is_none_or(|namespace| *namespace == pod.namespace);
    here && rule.subject.selector.matches(labels) != Match::No
}

/// Whether every pod that `narrow` selects is one that `wide` selects.
fn takes_in(wide: &Rule, narrow: &Rule) -> bool {
    let namespaces = wide.subject.namespace.is_none() || wide.subject.namespace == narrow.subject.namespace;
    namespaces && is_wider(&wide.subject.selector, &narrow.subject.selector)
}

/// Whether `wide` demands nothing that `narrow` doesn't.
fn is_wider(wide: &Selector, narrow: &Selector) -> bool {
    wide.requirements.iter().all(|requirement| narrow.requirements.contains(requirement))
}

/// The items of some rules that allow in a direction.
fn allowing<'r>(rules: &'r [&'r Rule], direction: Direction) -> impl Iterator<Item = &'r Item> {
    rules.iter().flat_map(move |rule| &rule.section(direction).allow)
}

/// The items of some rules that deny in a direction.
fn denying<'r>(rules: &'r [&'r Rule], direction: Direction) -> impl Iterator<Item = &'r Item> {
    rules.iter().flat_map(move |rule| &rule.section(direction).deny)
}

/// All ports of an item, those for names too; named ones left out.
fn blocks(ports: &Ports) -> BTreeSet<(Protocol, PortBlock)> {
    let Ports::These(entries) = ports else { return BTreeSet::from([(Protocol::Any, PortBlock::ANY)]) };
    let all = entries.iter().flat_map(|entry| &entry.ports);
    all.filter_map(|(protocol, port)| match port {
        Port::Block(block) => Some((*protocol, *block)),
        Port::Named(_) => None,
    })
    .collect()
}

/// Whether an item is on this port of TCP or UDP.
fn is_on(ports: &Ports, port: u16) -> bool {
    let narrow = [Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, PortBlock::one(port)));
    blocks(ports).iter().any(|wide| narrow.iter().any(|narrow| covers(*wide, *narrow)))
}

/// Whether rules for names hold among these: toFQDNs that select any, or rules.dns.
fn speak_of_names(rules: &[&Rule]) -> bool {
    allowing(rules, Direction::Egress).any(|item| {
        matches!(&item.peers, Peers::Names(names) if !names.is_empty())
            || matches!(&item.ports, Ports::These(entries) if entries.iter().any(|entry| entry.dns.is_some()))
    })
}
