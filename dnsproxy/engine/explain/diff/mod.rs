//! What changes from one snapshot to another: verdicts of endpoints, by peer and port, and of names.
//!
//! Both rule sets are asked wherever either may say something else than next to it: each address of each peer of the cluster,
//! the own node among them; outside, an address of each region between the blocks of both; the first port of each stretch
//! between the blocks of ports of both, for each protocol; and a name for each pattern. Pods are the same if their namespaces
//! and names are, whatever addresses they have.
//!
//! - `peers`: who is in both, and where pods run; `blocks`: regions outside; `ports`: ranges of ports; `names`: names

mod blocks;
mod names;
mod peers;
mod ports;
#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use self::blocks::{regions, told};
use self::peers::{Nodes, Peer, Seat, node_of, peers, seen_from};
use self::ports::{Cuts, DNS, Delta, Ranges, of_both, text};
use super::overview::endpoints_of;
use super::{Explainer, words};
use crate::engine::bits::Bits;
use crate::engine::endpoint::PodRef;
use crate::engine::name::Name;
use crate::engine::ruleset::{Direction, PeerId, Protocol, RuleSet, Servers};
use crate::engine::wire::CLASS_IN;
use crate::engine::world::World;

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
    /// Endpoints whose rules were in force and are audited now, or the other way round.
    pub modes: Vec<String>,
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
    /// On which ports; `every port` is all of TCP, UDP and SCTP, and the ICMP that asks.
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
    /// What stands in the rules; `*` also for what no pattern selects.
    pub pattern: String,
    /// A name that it matches, for which this holds.
    pub example: String,
    /// `query`, `query over TCP`, `query to SERVER`, or the ports of connections to its addresses.
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

/// Endpoints that have the same rules in both, and run where rules see no difference.
struct Twins {
    old: Arc<RuleSet>,
    new: Arc<RuleSet>,
    pods: Vec<PodRef>,
    /// The nodes that each ran and runs on.
    nodes: Vec<[Option<String>; 2]>,
}

/// Changes without endpoints, each with the endpoints that it is about.
#[derive(Default)]
struct Found {
    connections: BTreeMap<Change, BTreeSet<String>>,
    names: BTreeMap<NameChange, BTreeSet<String>>,
    modes: Vec<String>,
    problems: Vec<String>,
}

/// Compares two worlds.
pub fn diff(old: &Explainer<'_>, new: &Explainer<'_>) -> Diff {
    let before: BTreeSet<&PodRef> = endpoints_of(old.world()).map(|(pod, _)| pod).collect();
    let after: BTreeSet<&PodRef> = endpoints_of(new.world()).map(|(pod, _)| pod).collect();
    let worlds = [old.world(), new.world()];
    let nodes = Nodes::new(worlds);
    let mut by_seat: BTreeMap<[Seat; 2], Vec<&PodRef>> = BTreeMap::new();
    for pod in before.intersection(&after) {
        by_seat.entry(worlds.map(|world| nodes.seat(world, pod))).or_default().push(pod);
    }
    let mut found = Found::default();
    for (seats, pods) in by_seat {
        let [was, is] = [0, 1].map(|at: usize| seen_from(worlds[at], &seats[at]));
        let was = Explainer::new(&was, old.surroundings.clone());
        let is = Explainer::new(&is, new.surroundings.clone());
        let peers = peers(&was, &is, seats[0] == seats[1]);
        for twins in twins(worlds, (&was, &is), &pods, &mut found) {
            compare(&Half::new(&was, &twins.old), &Half::new(&is, &twins.new), &twins, &peers, &mut found);
        }
    }
    let connections = found.connections.into_iter();
    let connections =
        connections.map(|(change, endpoints)| Change { endpoints: endpoints.into_iter().collect(), ..change });
    let names = found.names.into_iter();
    let names = names.map(|(change, endpoints)| NameChange { endpoints: endpoints.into_iter().collect(), ..change });
    let mut diff = Diff {
        connections: connections.collect(),
        names: names.collect(),
        added: after.difference(&before).map(ToString::to_string).collect(),
        removed: before.difference(&after).map(ToString::to_string).collect(),
        modes: found.modes,
        problems: found.problems,
    };
    diff.connections.sort();
    diff.names.sort();
    diff.modes.sort();
    diff.problems.sort();
    diff
}

/// The pods that have rules in both, those of the same rules together. The worlds as they are, and as these pods see them.
fn twins(
    worlds: [&World; 2],
    (was, is): (&Explainer<'_>, &Explainer<'_>),
    pods: &[&PodRef],
    found: &mut Found,
) -> Vec<Twins> {
    let mut all: Vec<Twins> = Vec::new();
    for pod in pods {
        match (was.rules(pod), is.rules(pod)) {
            (Ok(before), Ok(now)) => {
                if before.audit != now.audit {
                    let mode = |audit| if audit { "audited" } else { "enforced" };
                    found.modes.push(format!("{pod}: before: {}; now: {}", mode(before.audit), mode(now.audit)));
                }
                let nodes = worlds.map(|world| node_of(world, pod).cloned());
                match all.iter_mut().find(|twins| *twins.old == *before && *twins.new == *now) {
                    Some(twins) => {
                        twins.pods.push((*pod).clone());
                        twins.nodes.push(nodes);
                    }
                    None => all.push(Twins { old: before, new: now, pods: vec![(*pod).clone()], nodes: vec![nodes] }),
                }
            }
            (Err(before), Err(now)) if before == now => {}
            (before, now) => {
                let why = |set: Result<_, String>| set.err().unwrap_or_else(|| "it has rules".to_owned());
                found.problems.push(format!("{pod}: before: {}; now: {}", why(before), why(now)));
            }
        }
    }
    all
}

/// A rule set in its world.
struct Half<'e, 'w> {
    explainer: &'e Explainer<'w>,
    rules: &'e RuleSet,
    /// The servers that the proxy stands in for.
    proxied: BTreeSet<IpAddr>,
}

impl<'e, 'w> Half<'e, 'w> {
    fn new(explainer: &'e Explainer<'w>, rules: &'e RuleSet) -> Half<'e, 'w> {
        let named = rules.resolvers().into_iter().filter(|(_, _, ports)| ports.holds(DNS)).map(|(address, ..)| address);
        let proxied = explainer.surroundings.proxied.iter().copied().chain(named).collect();
        Half { explainer, rules, proxied }
    }

    /// Whether something passes: [`Explainer::judge`], without looking for the proxy's servers each time.
    fn passes(&self, direction: Direction, address: IpAddr, (protocol, port): (Protocol, u16), bits: Bits) -> bool {
        let query = direction == Direction::Egress && port == DNS && matches!(protocol, Protocol::Udp | Protocol::Tcp);
        if query && self.rules.steered() && !self.proxied.contains(&address) {
            return false;
        }
        self.explainer.judge(self.rules, direction, address, (protocol, port), bits).passes()
    }

    fn class(&self, direction: Direction, address: IpAddr) -> Class {
        let egress = direction == Direction::Egress;
        let peer = self.rules.known.get(&address).copied();
        let queries = [Protocol::Udp, Protocol::Tcp]
            .map(|protocol| egress && self.passes(direction, address, (protocol, DNS), Bits::NONE));
        Class {
            bits: self.rules.matched(address, Bits::NONE),
            host: !egress && matches!(peer, Some(PeerId::HOST | PeerId::HOST_APISERVER)),
            front: (egress && peer == Some(PeerId::SERVICE)).then_some(address),
            queries,
        }
    }

    /// Blocks of addresses that the rules tell apart.
    fn networks(&self) -> Vec<IpNet> {
        let mut networks: Vec<IpNet> = self.rules.cidrs.iter().map(|(network, _)| *network).collect();
        if self.rules.steered() {
            let servers = self.rules.dns.iter().map(|rule| &rule.servers);
            for servers in servers.chain(self.rules.dns_denied.iter().map(|denial| &denial.servers)) {
                match servers {
                    Servers::Any => {}
                    Servers::Networks(some) => networks.extend(some),
                    Servers::Carved(some) => {
                        networks
                            .extend(some.iter().flat_map(|(network, except)| std::iter::once(network).chain(except)));
                    }
                    Servers::Addresses(some) | Servers::Entity(some) => {
                        networks.extend(some.iter().copied().map(IpNet::from));
                    }
                }
            }
            networks.extend(self.proxied.iter().copied().map(IpNet::from));
        }
        networks
    }
}

/// What tells peers apart for one rule set: those of the same class have the same verdicts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    bits: Bits,
    /// The own node, which passes unless it is denied.
    host: bool,
    /// A Service's address: each has rows of its own.
    front: Option<IpAddr>,
    /// Whether it may be asked over UDP and TCP: a server of rules.dns may be any address.
    queries: [bool; 2],
}

fn compare<'w>(was: &Half<'_, 'w>, is: &Half<'_, 'w>, twins: &Twins, peers: &[Peer], found: &mut Found) {
    if was.rules == is.rules && was.proxied == is.proxied {
        return;
    }
    let endpoints: BTreeSet<String> = twins.pods.iter().map(ToString::to_string).collect();
    let known = |address: &IpAddr| [was, is].iter().any(|half| half.rules.known.contains_key(address));
    let regions = regions([was, is].into_iter().flat_map(Half::networks), known);
    for direction in [Direction::Egress, Direction::Ingress] {
        let cuts = Cuts::new([was.rules, is.rules], direction);
        let mut asked: BTreeMap<(bool, Class, Class), Rc<Delta>> = BTreeMap::new();
        let mut ask = |was_at: IpAddr, is_at: IpAddr| {
            let key = (is_at.is_ipv6(), was.class(direction, was_at), is.class(direction, is_at));
            let delta = asked.entry(key).or_insert_with(|| {
                let rows = [(was, was_at), (is, is_at)].into_iter().flat_map(|(half, at)| {
                    half.rules.services.iter().filter(move |row| direction == Direction::Egress && row.address == at)
                });
                let fronts = rows.map(|row| (row.protocol, row.port)).collect();
                let passes = |at| {
                    let was = was.passes(direction, was_at, at, Bits::NONE);
                    (was, is.passes(direction, is_at, at, Bits::NONE))
                };
                Rc::new(cuts.delta(is_at.is_ipv6(), &fronts, passes))
            });
            delta.clone()
        };
        let mut list = Listed::default();
        for peer in peers {
            let Some(label) = label_for(peer, twins) else { continue };
            let of = |v6: bool| peer.at.iter().filter(move |(_, is)| is.is_ipv6() == v6);
            let deltas = [false, true].map(|v6| of(v6).map(|(was, is)| (*is, ask(*was, *is))).collect::<Vec<_>>());
            let alike = deltas.iter().all(|all| all.windows(2).all(|two| two[0].1 == two[1].1));
            for (at, delta) in deltas.iter().flatten() {
                // Where the addresses of one family differ, each is told by itself.
                let label = if alike { peer.whole(label.clone()) } else { format!("{label} at {at}") };
                list.note(&label, at.is_ipv6(), delta);
            }
        }
        let deltas: Vec<Option<Rc<Delta>>> =
            regions.iter().map(|region| region.sample.map(|sample| ask(sample, sample))).collect();
        for allowed in [true, false] {
            let changes: Vec<Option<&Ranges>> =
                deltas.iter().map(|one| one.as_deref().map(|one| one.of(allowed))).collect();
            for told in told(&regions, &changes) {
                list.add(&told.label, told.v6, allowed, told.ranges);
                if told.outermost {
                    list.families.insert(told.label, [true, true]);
                }
            }
        }
        for ((ports, allowed), peers) in list.lines() {
            let (direction, peers) = (words::direction(direction).to_owned(), peers.into_iter().collect());
            let change = Change { endpoints: Vec::new(), direction, peers, ports, allowed };
            found.connections.entry(change).or_default().extend(endpoints.iter().cloned());
        }
    }
    let outermost = |v6: bool| {
        let mut free = regions.iter().filter(|region| region.is_outermost()).filter_map(|region| region.sample);
        free.find(|sample| sample.is_ipv6() == v6).map(|sample| [sample, sample])
    };
    let outside = [false, true]
        .map(|v6| outermost(v6).unwrap_or_else(|| [was, is].map(|half| half.explainer.outside(half.rules, v6))));
    let of_peers = peers.iter().filter_map(|peer| Some((label_for(peer, twins)?, &peer.at)));
    let of_peers =
        of_peers.flat_map(|(label, at)| at.iter().map(move |(was, is)| (format!("{label} at {is}"), [*was, *is])));
    let of_regions = regions.iter().filter_map(|region| Some((region.label(), [region.sample?; 2])));
    names::names([was, is], of_peers.chain(of_regions), outside, &endpoints, found);
}

/// What a peer is called; `None` if it is the own node of each of these pods.
fn label_for(peer: &Peer, twins: &Twins) -> Option<String> {
    let on_it = |nodes: &&[Option<String>; 2]| peer.node.is_some() && nodes.contains(&peer.node);
    match twins.nodes.iter().filter(on_it).count() {
        0 => Some(peer.label.clone()),
        all if all == twins.nodes.len() => None,
        _ => Some(format!("{} (for pods elsewhere)", peer.label)),
    }
}

/// The changes of one direction.
#[derive(Default)]
struct Listed {
    /// Which families a peer has.
    families: BTreeMap<String, [bool; 2]>,
    /// By label, and whether they are allowed; of each family.
    found: BTreeMap<(String, bool), [Ranges; 2]>,
}

impl Listed {
    fn note(&mut self, label: &str, v6: bool, delta: &Delta) {
        self.families.entry(label.to_owned()).or_default()[usize::from(v6)] = true;
        for allowed in [true, false] {
            self.add(label, v6, allowed, delta.of(allowed));
        }
    }

    fn add(&mut self, label: &str, v6: bool, allowed: bool, ranges: &Ranges) {
        if !ranges.is_empty() {
            self.families.entry(label.to_owned()).or_default()[usize::from(v6)] = true;
            self.found.entry((label.to_owned(), allowed)).or_default()[usize::from(v6)].clone_from(ranges);
        }
    }

    /// By ports, and whether they are allowed: the peers. A peer whose families differ stands there by family.
    fn lines(self) -> BTreeMap<(Vec<String>, bool), BTreeSet<String>> {
        let mut lines: BTreeMap<(Vec<String>, bool), BTreeSet<String>> = BTreeMap::new();
        for ((label, allowed), [v4, v6]) in self.found {
            let families = self.families.get(&label).copied().unwrap_or_default();
            if families != [true, true] || of_both(&v4).eq(of_both(&v6)) {
                let ranges: BTreeSet<_> = v4.into_iter().chain(v6).collect();
                let ports = text(&ranges.into_iter().collect(), families);
                lines.entry((ports, allowed)).or_default().insert(label);
                continue;
            }
            for (ranges, families, word) in [(v4, [true, false], "IPv4"), (v6, [false, true], "IPv6")] {
                if !ranges.is_empty() {
                    lines.entry((text(&ranges, families), allowed)).or_default().insert(format!("{label} ({word})"));
                }
            }
        }
        lines
    }
}
