//! Who is in both worlds, and where pods run.
//!
//! Which node is the own one is each pod's matter. To rules, all nodes are one as long as no Service, nor the API server, is
//! at their addresses: a stand-in is the own node of every pod on such a node, and rule sets are compiled once for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::engine::endpoint::PodRef;
use crate::engine::explain::stand_in::StandIns;
use crate::engine::explain::{Explainer, words};
use crate::engine::policy::{Item, Peers, Ports};
use crate::engine::world::{Holder, World};

/// A peer, at its addresses before and now.
pub(super) struct Peer {
    pub label: String,
    /// The node that it is.
    pub node: Option<String>,
    pub at: Vec<(IpAddr, IpAddr)>,
    /// Whether nothing but its addresses tells which one it is: an API server out of the cluster.
    pub bare: bool,
}

impl Peer {
    /// The label of all of it.
    pub fn whole(&self, label: String) -> String {
        let at: BTreeSet<String> = self.at.iter().filter(|_| self.bare).map(|(_, is)| is.to_string()).collect();
        if at.is_empty() { label } else { format!("{label} at {}", at.into_iter().collect::<Vec<_>>().join(" and ")) }
    }
}

/// What a label stands for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Pod,
    Node(String),
    Apiserver,
    Other,
}

/// Labels with their addresses.
type Labels = BTreeMap<(String, Kind), BTreeSet<IpAddr>>;

/// The peers of the cluster: each where it was and is; and addresses that only one of the worlds knows, but for pods, as they
/// were before and are now, if pods run at the `same` place in both.
pub(super) fn peers(old: &Explainer<'_>, new: &Explainer<'_>, same: bool) -> Vec<Peer> {
    let (before, after) = (labels(old), labels(new));
    let mut peers = Vec::new();
    let mut alone: BTreeMap<IpAddr, &(String, Kind)> = BTreeMap::new();
    let none = BTreeSet::new();
    for key in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let [was, is] = [&before, &after].map(|labels| labels.get(key).unwrap_or(&none));
        let mut at = Vec::new();
        for v6 in [false, true] {
            let [was, is] = [was, is].map(|all| all.iter().filter(|one| one.is_ipv6() == v6).collect::<BTreeSet<_>>());
            let stayed: Vec<IpAddr> = was.intersection(&is).map(|address| **address).collect();
            at.extend(stayed.iter().map(|address| (*address, *address)));
            match (was.first(), is.first()) {
                (Some(was), Some(is)) if stayed.is_empty() => at.push((**was, **is)),
                _ => alone.extend(was.symmetric_difference(&is).map(|address| (**address, key))),
            }
        }
        if !at.is_empty() {
            peers.push(peer(key, at));
        }
    }
    let mut apart: BTreeMap<&(String, Kind), Vec<(IpAddr, IpAddr)>> = BTreeMap::new();
    for (address, key) in alone.into_iter().filter(|(_, key)| same && key.1 != Kind::Pod) {
        apart.entry(key).or_default().push((address, address));
    }
    peers.extend(apart.into_iter().map(|(key, at)| peer(key, at)));
    peers
}

fn peer((label, kind): &(String, Kind), at: Vec<(IpAddr, IpAddr)>) -> Peer {
    let node = if let Kind::Node(name) = kind { Some(name.clone()) } else { None };
    Peer { label: label.clone(), node, at, bare: *kind == Kind::Apiserver }
}

fn labels(one: &Explainer<'_>) -> Labels {
    let mut labels = Labels::new();
    for (address, holders) in &one.holders {
        let label = |holder: &Holder| match holder {
            Holder::Pod(pod) => pod.to_string(),
            other => words::holder(other),
        };
        let text = holders.iter().map(label).collect::<Vec<_>>().join(" and ");
        let mut all = holders.iter();
        let kind = match (all.next(), all.next()) {
            (Some(Holder::Node(name) | Holder::NodeApiserver(name)), None) => Kind::Node(name.clone()),
            (Some(Holder::Apiserver), None) => Kind::Apiserver,
            _ if holders.iter().any(|holder| matches!(holder, Holder::Pod(_))) => Kind::Pod,
            _ => Kind::Other,
        };
        labels.entry((text, kind)).or_default().insert(*address);
    }
    for ((namespace, name), service) in &one.world().services {
        for address in &service.addresses {
            labels.entry((format!("Service {namespace}/{name}"), Kind::Other)).or_default().insert(*address);
        }
    }
    labels
}

/// Where a pod runs, as far as rules tell it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Seat {
    /// On a node like any other, or nobody knows where.
    Plain,
    /// On a node at whose address something listens that rules speak of.
    At(String),
}

/// The nodes that are not like any other.
pub(super) struct Nodes(BTreeSet<String>);

impl Nodes {
    /// Those of either world.
    pub fn new(worlds: [&World; 2]) -> Nodes {
        Nodes(worlds.into_iter().flat_map(special).collect())
    }

    /// Where a pod runs.
    pub fn seat(&self, world: &World, pod: &PodRef) -> Seat {
        let has_address = |node: &String| world.nodes.get(node).is_some_and(|node| !node.addresses.is_empty());
        match node_of(world, pod).filter(|node| self.0.contains(*node) && has_address(node)) {
            Some(node) => Seat::At(node.clone()),
            None => Seat::Plain,
        }
    }
}

/// The node of a pod; that of the running namegate if its object doesn't say.
pub(super) fn node_of<'w>(world: &'w World, pod: &PodRef) -> Option<&'w String> {
    world.pods.get(pod)?.node.as_ref().or(world.own_node.as_ref())
}

/// The world as pods there see it.
pub(super) fn seen_from(world: &World, seat: &Seat) -> World {
    let mut world = World { own_node: None, ..world.clone() };
    match seat {
        Seat::At(node) => world.own_node = Some(node.clone()),
        Seat::Plain => drop(StandIns::beside(&world).own_node(&mut world)),
    }
    world
}

fn special(world: &World) -> BTreeSet<String> {
    // Behind a Service without an address a node matters only where rules speak of Services.
    let all = speaks_of_services(world);
    let counts = |namespace: &str, service: &str| {
        let found = world.services.get(&(namespace.to_owned(), service.to_owned()));
        all || found.is_some_and(|service| !service.addresses.is_empty())
    };
    let sliced = world
        .endpoint_slices
        .iter()
        .filter(|((namespace, _), slice)| slice.service.as_ref().is_some_and(|service| counts(namespace, service)));
    let listed = world.endpoints.iter().filter(|((namespace, name), _)| counts(namespace, name));
    let slices = sliced.map(|(_, slice)| slice).chain(listed.flat_map(|(_, slices)| slices));
    let mut behind: BTreeSet<IpAddr> = world.apiserver();
    behind.extend(slices.flat_map(|slice| &slice.endpoints).flat_map(|(addresses, _)| addresses).copied());
    // One of another's addresses is not like any other either.
    behind.extend(world.pods.values().filter(|pod| !pod.host_network).flat_map(|pod| &pod.addresses).copied());
    behind.extend(world.services.values().flat_map(|service| &service.addresses).copied());
    let special = world.nodes.iter().filter(|(_, node)| node.addresses.iter().any(|one| behind.contains(one)));
    special.map(|(name, _)| name.clone()).collect()
}

fn speaks_of_services(world: &World) -> bool {
    let speaks = |item: &Item| {
        let held = matches!(&item.ports, Ports::These(entries) if entries.iter().any(|entry| entry.service.is_some()));
        held || matches!(item.peers, Peers::Services(_))
    };
    let policies = world.policies.iter().chain(&world.refused).flat_map(|policy| &policy.rules);
    let mut items =
        policies.flat_map(|rule| [&rule.egress, &rule.ingress]).flat_map(|one| one.allow.iter().chain(&one.deny));
    items.any(speaks)
}
