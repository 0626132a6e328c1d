//! What is allowed to be written, and yet will not do what its author hopes: the warnings of `namegate check`.
//!
//! Each subject has a file. None of them changes what a policy means, and none is told of policies that were refused.
//!
//! - `servers`: who may be asked for the names that toFQDNs selects
//! - `patterns`: patterns that span less, or more, than they seem to
//! - `peers`: selectors, groups, Services, entities and blocks that mean nobody
//! - `ports`: ports that are missing
//! - `bypass`: DNS over HTTPS, which no policy for names sees
//! - `shadow`: rules that another rule makes pointless; `cover`: or several together
//!
//! Each rule is held against all others of the same pods, and there may be thousands of both: `together` asks once for
//! all rules and pods that are alike, `index` finds selectors and what they select without trying all.

mod bypass;
mod cover;
mod index;
mod patterns;
mod peers;
mod ports;
mod servers;
mod shadow;
#[cfg(test)]
mod tests;
mod together;

use std::collections::BTreeSet;

use super::endpoint::PodRef;
use super::policy::{Item, Peers, Port, Ports, Rule};
use super::port::{PortBlock, covers};
use super::ruleset::Protocol;
use super::verdict::RuleRef;
use super::world::World;
use index::Carriers;
use together::{Set, Together};

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
    (servers::TWO_MINDS, "a DNS server that one rule allows for some names and another without rules.dns"),
    (patterns::ONE_LABEL, "a pattern that spans one label: neither deeper names nor the apex"),
    (patterns::NO_DOT, "a star glued to a name: no name below it, but other people's names that end alike"),
    (patterns::STARS_INSIDE, "two stars inside a pattern: they are one, and cross no dot"),
    (patterns::PUBLIC_SUFFIX, "a pattern under which anyone can register a name"),
    (patterns::NAME_OF_CLUSTER, "a name of the cluster's own domain in toFQDNs: it opens nothing"),
    (peers::SELECTS_NOTHING, "a selector that selects no pod, node, group or Service of the snapshot"),
    (peers::NO_SUCH_OBJECT, "a Service or CiliumCIDRGroup that is not in the snapshot"),
    (peers::MEANS_NOBODY, "an entity, or a block less what it excepts, that means nobody here"),
    (
        peers::BLOCK_OF_CLUSTER,
        "a block, or a Service without selector, of addresses that are pods', nodes', Services' or the API server's: it means none of them",
    ),
    (ports::NAMES_WITHOUT_PORTS, "toFQDNs without toPorts"),
    (
        ports::NO_SUCH_PORT,
        "a port by name that no container of the side that listens has, or one that toPorts[].service lacks",
    ),
    (bypass::DOH, "a known DNS over HTTPS or TLS resolver that is allowed"),
    (shadow::SHADOWED, "a rule that allows only what another one denies"),
    (shadow::WITHOUT_EFFECT, "a rule that allows what nothing shuts"),
];

/// The warnings for all policies that were read, sorted.
pub fn advise(world: &World) -> Vec<Advice> {
    let scene = Scene::new(world);
    let mut all = Vec::new();
    let asked = servers::advise(&scene, &mut all);
    for place in &scene.together.places {
        patterns::advise(&scene, &asked, place, &mut all);
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
/// their own ports and addresses. With each the rules of policies that were read which select it, or may.
pub fn one_of_each(world: &World) -> Vec<(PodRef, Vec<&Rule>)> {
    let together = Together::new(world);
    let rules = |set: &Set| {
        let mut rules: Vec<(usize, &Rule)> = set.bundles.iter().flat_map(|one| together.rules(*one)).collect();
        rules.sort_unstable_by_key(|(number, _)| *number);
        rules.into_iter().map(|(_, rule)| rule).collect()
    };
    together.sets.iter().filter_map(|set| Some((set.pod.clone()?, rules(set)))).collect()
}

/// The world, with what several subjects ask of it made once, so that the work grows with the policies and not with their
/// pairs.
struct Scene<'w> {
    world: &'w World,
    together: Together<'w>,
    pods: Carriers<&'w PodRef>,
    /// Whether rules for names hold for some pod of each bundle.
    speaks: Vec<bool>,
    names: patterns::Opened,
    peers: peers::Known<'w>,
    ports: ports::Named<'w>,
    resolvers: bypass::Denied,
    denials: shadow::Shadows<'w>,
}

impl<'w> Scene<'w> {
    fn new(world: &'w World) -> Scene<'w> {
        let mut together = Together::new(world);
        let pods = Carriers::new(std::mem::take(&mut together.pods).into_iter());
        let bundles = 0..together.bundles.len();
        let speaks: Vec<bool> =
            bundles.map(|bundle| speak_of_names(together.rules(bundle).map(|(_, rule)| rule))).collect();
        let in_set = |set: &Set| set.bundles.iter().any(|bundle| speaks[*bundle]);
        Scene {
            world,
            speaks: together.over_sets(in_set, |one, other| *one || *other),
            names: patterns::Opened::new(&together),
            peers: peers::Known::new(world),
            ports: ports::Named::new(world, &pods),
            resolvers: bypass::Denied::new(&together),
            denials: shadow::Shadows::new(&together),
            pods,
            together,
        }
    }
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

/// Whether one of some rules is for names: toFQDNs that select any, or rules.dns.
fn speak_of_names<'r>(mut rules: impl Iterator<Item = &'r Rule>) -> bool {
    let speaks = |item: &Item| {
        matches!(&item.peers, Peers::Names(names) if !names.is_empty())
            || matches!(&item.ports, Ports::These(entries) if entries.iter().any(|entry| entry.dns.is_some()))
    };
    rules.any(|rule| rule.egress.allow.iter().any(speaks))
}
