//! What changes from one snapshot to another: verdicts of endpoints, by peer and port, and of names.
//!
//! Compared are the verdicts on what the rules of either tell apart: each peer of the cluster, an address of each block and
//! one outside of all, each port that a rule names and one that none does, a name for each pattern. Pods are the same if
//! their namespaces and names are, whatever addresses they have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::overview::endpoints_of;
use super::{Explainer, outside, side, words};
use crate::engine::bits::Bits;
use crate::engine::endpoint::PodRef;
use crate::engine::name::Name;
use crate::engine::port::PortBlock;
use crate::engine::ruleset::{Direction, PeerId, Protocol, RuleSet};
use crate::engine::wire::CLASS_IN;
use crate::engine::world::Holder;

/// What is different.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Diff {
    /// Connections.
    pub connections: Vec<Change>,
    /// Names.
    pub names: Vec<NameChange>,
    /// Endpoints that only the new one has.
    pub added: Vec<String>,
    /// Endpoints that only the old one has.
    pub removed: Vec<String>,
    /// Endpoints that have no rule set in one of them, and why.
    pub problems: Vec<String>,
}

/// Connections whose verdict is another.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// Whose.
    pub endpoints: Vec<String>,
    /// `egress` or `ingress`.
    pub direction: String,
    /// With whom.
    pub peers: Vec<String>,
    /// On which ports.
    pub ports: Vec<String>,
    /// Whether they are allowed now; they were not before. Or the other way round.
    pub allowed: bool,
}

/// Names whose verdict is another.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NameChange {
    /// Whose.
    pub endpoints: Vec<String>,
    /// What stands in the rules.
    pub pattern: String,
    /// A name that it matches, for which this holds.
    pub example: String,
    /// `query`, or the ports of connections to its addresses.
    pub what: Vec<String>,
    /// Whether they are allowed now; they were not before. Or the other way round.
    pub allowed: bool,
}

impl Diff {
    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        *self == Diff::default()
    }
}

/// Endpoints that have the same rules in both.
struct Twins {
    old: Arc<RuleSet>,
    new: Arc<RuleSet>,
    pods: Vec<PodRef>,
}

/// A peer with its address in the old world and in the new one.
struct Known {
    label: String,
    old: IpAddr,
    new: IpAddr,
}

/// Ports with their protocols.
type PortSet = BTreeSet<(Protocol, PortBlock)>;

/// Compares two worlds.
pub fn diff(old: &Explainer<'_>, new: &Explainer<'_>) -> Diff {
    let mut diff = Diff::default();
    let before: BTreeSet<&PodRef> = endpoints_of(old.world()).map(|(pod, _)| pod).collect();
    let after: BTreeSet<&PodRef> = endpoints_of(new.world()).map(|(pod, _)| pod).collect();
    diff.added = after.difference(&before).map(ToString::to_string).collect();
    diff.removed = before.difference(&after).map(ToString::to_string).collect();
    let mut all: Vec<Twins> = Vec::new();
    for pod in before.intersection(&after) {
        match (old.rules(pod), new.rules(pod)) {
            (Ok(was), Ok(is)) => match all.iter_mut().find(|twins| *twins.old == *was && *twins.new == *is) {
                Some(twins) => twins.pods.push((*pod).clone()),
                None => all.push(Twins { old: was, new: is, pods: vec![(*pod).clone()] }),
            },
            (Err(was), Err(is)) if was == is => {}
            (was, is) => {
                let why = |set: Result<_, String>| set.err().unwrap_or_else(|| "it has rules".to_owned());
                diff.problems.push(format!("{pod}: before: {}; now: {}", why(was), why(is)));
            }
        }
    }
    let peers = peers(old, new);
    for twins in &all {
        connections((old, new), twins, &peers, &mut diff.connections);
        names((old, new), twins, &mut diff.names);
    }
    diff.connections.sort();
    diff.names.sort();
    diff
}

/// Who is in both worlds.
fn peers(old: &Explainer<'_>, new: &Explainer<'_>) -> Vec<Known> {
    let (before, after) = (labels(old), labels(new));
    let both = before.into_iter().filter_map(|(key, old)| {
        let new = *after.get(&key)?;
        Some(Known { label: key.0, old, new })
    });
    both.collect()
}

/// An address of everyone in each family.
fn labels(one: &Explainer<'_>) -> BTreeMap<(String, bool), IpAddr> {
    let mut labels: BTreeMap<(String, bool), IpAddr> = BTreeMap::new();
    for (address, holders) in &one.holders {
        let label = |holder: &Holder| match holder {
            Holder::Pod(pod) => pod.to_string(),
            other => words::holder(other),
        };
        let text = holders.iter().map(label).collect::<Vec<_>>().join(" and ");
        labels.entry((text, address.is_ipv4())).or_insert(*address);
    }
    for ((namespace, name), service) in &one.world().services {
        for address in &service.addresses {
            labels.entry((format!("Service {namespace}/{name}"), address.is_ipv4())).or_insert(*address);
        }
    }
    labels
}

fn connections((old, new): (&Explainer<'_>, &Explainer<'_>), twins: &Twins, known: &[Known], all: &mut Vec<Change>) {
    let blocks = [&twins.old, &twins.new].into_iter().flat_map(|rules| &rules.cidrs).map(|(network, _)| *network);
    let blocks: BTreeSet<_> = blocks.collect();
    let mut peers: Vec<(String, IpAddr, IpAddr)> =
        known.iter().map(|peer| (peer.label.clone(), peer.old, peer.new)).collect();
    for network in blocks {
        // An address that no narrower block has, as far as it is easily found.
        let sample = network.hosts().take(64).chain([network.addr()]).find(|address| {
            [&twins.old, &twins.new]
                .into_iter()
                .all(|rules| !rules.known.contains_key(address) && in_own(rules, network, *address))
        });
        if let Some(address) = sample {
            peers.push((network.to_string(), address, address));
        }
    }
    for v6 in [false, true] {
        peers.push(("outside the cluster".to_owned(), outside(&twins.old, v6), outside(&twins.new, v6)));
    }
    for direction in [Direction::Egress, Direction::Ingress] {
        let mut ports = side::candidates(&twins.old, direction);
        ports.extend(side::candidates(&twins.new, direction));
        // Peers with the same groups have the same verdicts.
        let mut seen: BTreeMap<(Class, Class), (PortSet, PortSet)> = BTreeMap::new();
        let mut changes: BTreeMap<(Vec<String>, bool), BTreeSet<String>> = BTreeMap::new();
        for (label, was_at, is_at) in &peers {
            let key = (class(&twins.old, direction, *was_at), class(&twins.new, direction, *is_at));
            let (opened, shut) = seen.entry(key).or_insert_with(|| {
                let mut ports = ports.clone();
                for rules in [&twins.old, &twins.new] {
                    let rows = rules.services.iter().filter(|row| row.address == *was_at || row.address == *is_at);
                    ports.extend(rows.map(|row| (row.protocol, PortBlock::one(row.port))));
                }
                let (mut opened, mut shut) = (BTreeSet::new(), BTreeSet::new());
                for (protocol, block) in ports {
                    let at = (protocol, block.first());
                    let was = old.judge(&twins.old, direction, *was_at, at, Bits::NONE).passes();
                    let is = new.judge(&twins.new, direction, *is_at, at, Bits::NONE).passes();
                    match (was, is) {
                        (false, true) => drop(opened.insert((protocol, block))),
                        (true, false) => drop(shut.insert((protocol, block))),
                        _ => {}
                    }
                }
                (opened, shut)
            });
            for (ports, allowed) in [(&*opened, true), (&*shut, false)] {
                if !ports.is_empty() {
                    let ports = words::blocks(ports.iter().copied());
                    changes.entry((ports, allowed)).or_default().insert(label.clone());
                }
            }
        }
        all.extend(changes.into_iter().map(|((ports, allowed), peers)| Change {
            endpoints: twins.pods.iter().map(ToString::to_string).collect(),
            direction: words::direction(direction).to_owned(),
            peers: peers.into_iter().collect(),
            ports,
            allowed,
        }));
    }
}

/// What tells peers apart for one rule set.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Groups(Bits),
    Host(Bits),
    /// Each has rows of its own.
    Service(IpAddr),
    /// A server of rules.dns may be any address.
    Server(IpAddr),
}

fn class(rules: &RuleSet, direction: Direction, address: IpAddr) -> Class {
    match rules.known.get(&address) {
        Some(&PeerId::SERVICE) if direction == Direction::Egress => Class::Service(address),
        Some(&PeerId::HOST | &PeerId::HOST_APISERVER) => Class::Host(rules.matched(address, Bits::NONE)),
        _ if direction == Direction::Egress && rules.steered() => Class::Server(address),
        _ => Class::Groups(rules.matched(address, Bits::NONE)),
    }
}

/// Whether no block of the rule set that is narrower than `network` has the address.
fn in_own(rules: &RuleSet, network: ipnet::IpNet, address: IpAddr) -> bool {
    let narrower =
        rules.cidrs.iter().map(|(other, _)| other).filter(|other| network.contains(*other) && **other != network);
    network.prefix_len() == network.max_prefix_len() || !narrower.into_iter().any(|other| other.contains(&address))
}

fn names((old, new): (&Explainer<'_>, &Explainer<'_>), twins: &Twins, all: &mut Vec<NameChange>) {
    let mut patterns: BTreeSet<String> = BTreeSet::new();
    for rules in [&twins.old, &twins.new] {
        patterns.extend(rules.groups.iter().flat_map(|group| group.names.iter().cloned()));
        let asked = rules.dns.iter().flat_map(|rule| rule.patterns.iter());
        patterns.extend(asked.map(|found| found.pattern.to_string()));
    }
    let endpoints: Vec<String> = twins.pods.iter().map(ToString::to_string).collect();
    let mut ports = side::candidates(&twins.old, Direction::Egress);
    ports.extend(side::candidates(&twins.new, Direction::Egress));
    for pattern in patterns {
        let Some(example) = example(&pattern) else { continue };
        let (mut opened, mut shut) = (Vec::new(), Vec::new());
        match (may_ask(old, &twins.old, &example), may_ask(new, &twins.new, &example)) {
            (false, true) => opened.push("query".to_owned()),
            (true, false) => shut.push("query".to_owned()),
            _ => {}
        }
        let passes = |one: &Explainer<'_>, rules: &RuleSet, at| {
            let bits = rules.groups_of(&example);
            one.judge(rules, Direction::Egress, outside(rules, false), at, bits).passes()
        };
        let (mut opens, mut shuts) = (Vec::new(), Vec::new());
        for (protocol, block) in &ports {
            let at = (*protocol, block.first());
            match (passes(old, &twins.old, at), passes(new, &twins.new, at)) {
                (false, true) => opens.push((*protocol, *block)),
                (true, false) => shuts.push((*protocol, *block)),
                _ => {}
            }
        }
        opened.extend(words::blocks(opens));
        shut.extend(words::blocks(shuts));
        for (what, allowed) in [(opened, true), (shut, false)] {
            if !what.is_empty() {
                let (endpoints, pattern) = (endpoints.clone(), pattern.clone());
                all.push(NameChange { endpoints, pattern, example: shown(&example), what, allowed });
            }
        }
    }
}

fn shown(name: &Name) -> String {
    name.to_string().trim_end_matches('.').to_owned()
}

/// Whether the name may be asked for of any server that the rules speak of.
fn may_ask(one: &Explainer<'_>, rules: &RuleSet, name: &Name) -> bool {
    let named = rules.resolvers().into_iter().filter(|(_, _, ports)| ports.holds(53)).map(|(address, ..)| address);
    let servers: BTreeSet<IpAddr> =
        one.surroundings.proxied.iter().copied().chain(named).chain([outside(rules, false)]).collect();
    servers.into_iter().any(|server| {
        [Protocol::Udp, Protocol::Tcp].into_iter().any(|protocol| match rules.steered() {
            true => rules.judge(SocketAddr::new(server, 53), protocol, (name, 1, CLASS_IN)).is_ok(),
            false => rules.evaluate(Direction::Egress, server, protocol, 53, Bits::NONE).passes(),
        })
    })
}

/// A name that a pattern matches.
fn example(pattern: &str) -> Option<Name> {
    let text = pattern.trim_end_matches('.');
    if text.bytes().all(|octet| octet == b'*') {
        return Name::parse("any.example").ok();
    }
    let labels: Vec<String> = text
        .split('.')
        .enumerate()
        .map(|(at, label)| match label {
            label if at == 0 && label.len() > 1 && label.bytes().all(|octet| octet == b'*') => "some.any".to_owned(),
            label if label.bytes().all(|octet| octet == b'*') => "any".to_owned(),
            label => label.replace('*', "x"),
        })
        .collect();
    Name::parse(&labels.join(".")).ok()
}
