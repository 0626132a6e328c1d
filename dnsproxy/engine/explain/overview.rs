//! Policies, selectors and endpoints in lists.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Explainer, words};
use crate::engine::endpoint::PodRef;
use crate::engine::labels::{Labels, Match, Selector};
use crate::engine::policy::{BlockOf, Item, Peers, Policy, Rule, Section, ServicePeer};
use crate::engine::world::{Enforcement, Holder, Pod, World};

/// A policy that is in force, or what still holds of one that was refused.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyRow {
    /// `CiliumNetworkPolicy`.
    pub kind: String,
    /// Empty for a clusterwide one.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `file:line:column`.
    pub place: String,
    /// How many pods it selects.
    pub selects: usize,
    /// Items of egress and of ingress.
    pub egress: Items,
    /// The same for the other way.
    pub ingress: Items,
    /// It was refused: only what it shuts and denies holds.
    pub refused: bool,
}

/// How many items one direction has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Items {
    /// Whether it makes the direction default deny.
    pub default_deny: bool,
    /// Items that allow.
    pub allow: usize,
    /// Items that deny.
    pub deny: usize,
    /// Items that would allow, with a demand that namegate can't enforce: they allow nothing.
    pub unenforced: usize,
}

/// A selector, and whom it selects.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SelectorRow {
    /// As text; `{}` selects everything.
    pub selector: String,
    /// What it is: `subject`, `peer`, `node`, `Service`, `CIDR group`.
    pub of: String,
    /// In this namespace only; none: in all, unless the selector names some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The policies that have it, `namespace/name`.
    pub policies: Vec<String>,
    /// Whom it selects: pods as `namespace/pod`; nodes, Services, CIDR groups.
    pub selects: Vec<String>,
}

/// An endpoint, and what its policies come to.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointRow {
    /// `namespace/pod`.
    pub pod: String,
    /// Where it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its addresses.
    pub addresses: Vec<std::net::IpAddr>,
    /// The policies that select it, `namespace/name`.
    pub policies: Vec<String>,
    /// Whether egress is default deny.
    pub egress_default_deny: bool,
    /// Whether ingress is default deny.
    pub ingress_default_deny: bool,
    /// Whether its queries go through the proxy.
    pub steered: bool,
    /// Groups of its rule set; 127 are possible.
    pub groups: usize,
    /// Different patterns of its toFQDNs.
    pub names: usize,
    /// Addresses it has learned, with those that only stay for their connections; none offline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learned: Option<usize>,
    /// Whether what policy would drop passes all the same.
    pub audit: bool,
    /// What is wrong; empty if nothing is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

/// The policies, those that were refused last.
pub fn policies(world: &World) -> Vec<PolicyRow> {
    let pods = subjects(world);
    let row = |policy: &Policy, refused: bool| PolicyRow {
        kind: policy.at.0.kind.clone(),
        namespace: policy.at.0.namespace.clone(),
        name: policy.at.0.policy.clone(),
        place: policy.at.0.place.clone(),
        selects: selected_by(&pods, &policy.rules.iter().collect::<Vec<_>>()),
        egress: items(policy.rules.iter().map(|rule| &rule.egress)),
        ingress: items(policy.rules.iter().map(|rule| &rule.ingress)),
        refused,
    };
    let read = world.policies.iter().map(|policy| row(policy, false));
    read.chain(world.refused.iter().map(|policy| row(policy, true))).collect()
}

fn items<'a>(sections: impl Iterator<Item = &'a Section>) -> Items {
    sections.fold(Items::default(), |sum, section| Items {
        default_deny: sum.default_deny | section.default_deny,
        allow: sum.allow + section.allow.len(),
        deny: sum.deny + section.deny.len(),
        unenforced: sum.unenforced + section.unenforced.len(),
    })
}

/// Pods that can be endpoints, by namespace.
type Subjects<'w> = BTreeMap<&'w str, Vec<(&'w PodRef, Labels)>>;

fn subjects(world: &World) -> Subjects<'_> {
    let mut pods: Subjects<'_> = BTreeMap::new();
    for (pod, _) in endpoints_of(world) {
        pods.entry(&pod.namespace).or_default().push((pod, world.labels(&Holder::Pod(pod.clone()))));
    }
    pods
}

/// The pods that can be endpoints: with a network of their own, and not ended.
pub fn endpoints_of(world: &World) -> impl Iterator<Item = (&PodRef, &Pod)> {
    world.pods.iter().filter(|(_, pod)| !pod.host_network && !pod.finished)
}

fn meant<'w>(pods: &'w Subjects<'w>, namespace: Option<&str>) -> impl Iterator<Item = &'w (&'w PodRef, Labels)> {
    let (one, all) = match namespace {
        Some(namespace) => (pods.get(namespace), None),
        None => (None, Some(pods.values().flatten())),
    };
    one.into_iter().flatten().chain(all.into_iter().flatten())
}

fn selected_by(pods: &Subjects<'_>, rules: &[&Rule]) -> usize {
    let mut selected: BTreeSet<&PodRef> = BTreeSet::new();
    for rule in rules {
        let there = meant(pods, rule.subject.namespace.as_deref());
        selected.extend(
            there.filter(|(_, labels)| rule.subject.selector.matches(labels) != Match::No).map(|(pod, _)| *pod),
        );
    }
    selected.len()
}

/// Each selector of policies in force once, with whom it selects.
pub fn selectors(world: &World) -> Vec<SelectorRow> {
    type Key<'w> = (&'static str, Option<&'w str>, &'w Selector);
    let mut found: BTreeMap<Key<'_>, BTreeSet<String>> = BTreeMap::new();
    for policy in &world.policies {
        let name = policy.at.to_string();
        for rule in &policy.rules {
            let subject: Key<'_> = ("subject", rule.subject.namespace.as_deref(), &rule.subject.selector);
            found.entry(subject).or_default().insert(name.clone());
            for item in [&rule.egress, &rule.ingress].into_iter().flat_map(all_items) {
                let keys: Vec<Key<'_>> = match &item.peers {
                    Peers::Endpoints(selectors) => selectors.iter().map(|one| ("peer", None, one)).collect(),
                    Peers::Nodes(selectors) => selectors.iter().map(|one| ("node", None, one)).collect(),
                    Peers::Networks(blocks) => blocks
                        .iter()
                        .filter_map(|block| match &block.of {
                            BlockOf::Groups(selector) => Some(("CIDR group", None, selector)),
                            BlockOf::Here(_) | BlockOf::Group(_) => None,
                        })
                        .collect(),
                    Peers::Services(services) => services
                        .iter()
                        .filter_map(|service| match service {
                            ServicePeer::Selected { namespace, selector } => {
                                Some(("Service", namespace.as_deref(), selector))
                            }
                            ServicePeer::Named { .. } => None,
                        })
                        .collect(),
                    Peers::Any | Peers::Entities(_) | Peers::Names(_) => Vec::new(),
                };
                for key in keys {
                    found.entry(key).or_default().insert(name.clone());
                }
            }
        }
    }
    let pods = subjects(world);
    let row = |((of, namespace, selector), policies): (Key<'_>, BTreeSet<String>)| SelectorRow {
        selector: words::selector(selector),
        of: of.to_owned(),
        namespace: namespace.map(str::to_owned),
        policies: policies.into_iter().collect(),
        selects: selects(world, &pods, of, namespace, selector),
    };
    found.into_iter().map(row).collect()
}

fn selects(world: &World, pods: &Subjects<'_>, of: &str, namespace: Option<&str>, selector: &Selector) -> Vec<String> {
    let plain = |labels: &BTreeMap<String, String>| selector.matches(&Labels::of_object(labels)) == Match::Yes;
    match of {
        "node" => world.nodes.iter().filter(|(_, node)| plain(&node.labels)).map(|(name, _)| name.clone()).collect(),
        "CIDR group" => {
            world.cidr_groups.iter().filter(|(_, group)| plain(&group.labels)).map(|(name, _)| name.clone()).collect()
        }
        "Service" => world
            .services
            .iter()
            .filter(|((there, _), service)| namespace.is_none_or(|own| own == there) && plain(&service.labels))
            .map(|((namespace, name), _)| format!("{namespace}/{name}"))
            .collect(),
        _ => meant(pods, namespace)
            .filter(|(_, labels)| selector.matches(labels) == Match::Yes)
            .map(|(pod, _)| pod.to_string())
            .collect(),
    }
}

fn all_items(section: &Section) -> impl Iterator<Item = &Item> {
    section.allow.iter().chain(&section.deny).chain(section.unenforced.iter().map(|one| &one.item))
}

/// A pod as an endpoint.
pub fn endpoint(explainer: &Explainer<'_>, pod: &PodRef) -> EndpointRow {
    let world = explainer.world();
    let there = world.pods.get(pod);
    let mut row = EndpointRow {
        pod: pod.to_string(),
        node: there.and_then(|pod| pod.node.clone()),
        addresses: there.map_or_else(Vec::new, |pod| pod.addresses.clone()),
        ..EndpointRow::default()
    };
    if there.is_some_and(|pod| pod.addresses.is_empty()) {
        row.problem = "no status.podIPs: nothing passes".to_owned();
    }
    match explainer.rules(pod) {
        Ok(rules) => {
            let mut policies: Vec<String> =
                explainer.compiler.selecting(pod).iter().map(|(at, _)| at.to_string()).collect();
            policies.sort();
            policies.dedup();
            row.policies = if world.enforcement == Enforcement::Never { Vec::new() } else { policies };
            (row.egress_default_deny, row.ingress_default_deny) = (rules.deny_egress, rules.deny_ingress);
            (row.steered, row.groups, row.audit) = (rules.steered(), rules.groups.len(), rules.audit);
            row.names = explainer.patterns(pod).len();
        }
        Err(why) => row.problem = why,
    }
    row.learned = explainer.held.get(pod).map(Vec::len);
    row
}
