//! Selectors, groups, Services, entities and blocks that mean nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::index::Carriers;
use super::together::Place;
use super::{Advice, Scene};
use crate::engine::endpoint::PodRef;
use crate::engine::labels::{Labels, Match, NAMESPACE, NAMESPACE_LABELS, Operator, Requirement, Selector, Source};
use crate::engine::policy::{Block, BlockOf, Entity, Item, Peers, Ports, ServicePeer};
use crate::engine::ruleset::Direction;
use crate::engine::verdict::RuleRef;
use crate::engine::world::World;

pub(super) const SELECTS_NOTHING: &str = "selects-nothing";
pub(super) const NO_SUCH_OBJECT: &str = "no-such-object";
pub(super) const MEANS_NOBODY: &str = "means-nobody";
pub(super) const BLOCK_OF_CLUSTER: &str = "block-of-cluster";

/// A block at least this long, in bits, was written for what is in it; a wider one only happens to hold it.
const NARROW: (u8, u8) = (16, 48);

/// Nodes, Services and groups by their labels, and whose address is whose.
pub(super) struct Known<'w> {
    nodes: Carriers<()>,
    /// With their namespaces.
    services: Carriers<&'w str>,
    groups: Carriers<()>,
    /// By address.
    addresses: Vec<(IpAddr, Owner<'w>)>,
}

/// Who has an address of the cluster. Of several the first one is told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Owner<'w> {
    Pod(&'w PodRef),
    /// By namespace and name.
    Service(&'w str, &'w str),
    Node(&'w str),
}

impl<'w> Known<'w> {
    pub(super) fn new(world: &'w World) -> Known<'w> {
        let own_network = world.pods.iter().filter(|(_, pod)| !pod.host_network && !pod.finished);
        let pods = own_network.flat_map(|(name, pod)| pod.addresses.iter().map(|one| (*one, Owner::Pod(name))));
        let services = world.services.iter().flat_map(|((namespace, name), service)| {
            service.addresses.iter().map(|one| (*one, Owner::Service(namespace, name)))
        });
        let nodes = world.nodes.iter();
        let nodes = nodes.flat_map(|(name, node)| node.addresses.iter().map(|one| (*one, Owner::Node(name))));
        let mut addresses: Vec<(IpAddr, Owner<'_>)> = pods.chain(services).chain(nodes).collect();
        addresses.sort_unstable();
        Known {
            nodes: Carriers::new(world.nodes.values().map(|node| ((), plain(&node.labels)))),
            services: Carriers::new(
                world.services.iter().map(|((namespace, _), service)| (namespace.as_str(), plain(&service.labels))),
            ),
            groups: Carriers::new(world.cidr_groups.values().map(|group| ((), plain(&group.labels)))),
            addresses,
        }
    }
}

pub(super) fn advise(scene: &Scene<'_>, place: &Place<'_>, all: &mut Vec<Advice>) {
    subject(scene, place, all);
    for direction in [Direction::Egress, Direction::Ingress] {
        let section = place.rule.section(direction);
        for item in section.allow.iter().chain(&section.deny) {
            peers(scene, item, all);
            services(scene, item, all);
        }
    }
}

fn subject(scene: &Scene<'_>, place: &Place<'_>, all: &mut Vec<Advice>) {
    if scene.pods.all().is_empty() || scene.together.bundles[place.bundle].has_pods {
        return;
    }
    let subject = &place.rule.subject;
    let elsewhere = first(scene, &subject.selector);
    let text = match (elsewhere, &subject.namespace) {
        (Some(pod), Some(namespace)) if !subject.selector.requirements.is_empty() => format!(
            "its endpointSelector selects no pod of namespace {namespace}, but pod {pod} has these labels; a policy is \
             for its own namespace"
        ),
        _ => "its endpointSelector selects no pod of the snapshot, so it does nothing".to_owned(),
    };
    all.push(Advice { at: place.rule.at.clone(), kind: SELECTS_NOTHING, text });
}

fn peers(scene: &Scene<'_>, item: &Item, all: &mut Vec<Advice>) {
    let world = scene.world;
    let mut found = |kind, text: String| all.push(Advice { at: item.at.clone(), kind, text });
    match &item.peers {
        Peers::Any | Peers::Names(_) => {}
        Peers::Endpoints(selectors) => {
            for selector in selectors.iter().filter(|selector| !selector.names_reserved()) {
                if scene.pods.all().is_empty() || scene.pods.selected(selector).next().is_some() {
                    continue;
                }
                let elsewhere = without_namespace(selector).and_then(|selector| first(scene, &selector));
                let hint = elsewhere.map_or_else(String::new, |pod| {
                    format!(", but pod {pod} has these labels; name its namespace by io.kubernetes.pod.namespace")
                });
                found(SELECTS_NOTHING, format!("{} selects no pod of the snapshot{hint}", shown(selector)));
            }
        }
        Peers::Nodes(selectors) => {
            for selector in selectors.iter().filter(|_| !world.nodes.is_empty()) {
                if scene.peers.nodes.selected(&unreserved(selector)).next().is_none() {
                    found(SELECTS_NOTHING, format!("{} selects no node of the snapshot", shown(selector)));
                }
            }
        }
        Peers::Networks(blocks) => blocks.iter().for_each(|block| network(scene, item, block, all)),
        Peers::Entities(entities) => {
            entities.iter().filter_map(|entity| nobody(*entity)).for_each(|text| found(MEANS_NOBODY, text.to_owned()));
        }
        Peers::Services(services) => {
            for service in services.iter().filter(|_| !world.services.is_empty()) {
                match service {
                    ServicePeer::Named { namespace, name } => {
                        if !world.services.contains_key(&(namespace.clone(), name.clone())) {
                            found(NO_SUCH_OBJECT, format!("the snapshot has no Service {namespace}/{name}"));
                        }
                    }
                    ServicePeer::Selected { namespace, selector } => {
                        let here = |other: &str| namespace.as_ref().is_none_or(|namespace| namespace == other);
                        let meant = unreserved(selector);
                        if !scene.peers.services.selected(&meant).any(|(other, _)| here(other)) {
                            found(SELECTS_NOTHING, format!("{} selects no Service of the snapshot", shown(selector)));
                        }
                    }
                }
            }
        }
    }
}

/// `toPorts[].service`.
fn services(scene: &Scene<'_>, item: &Item, all: &mut Vec<Advice>) {
    let Ports::These(entries) = &item.ports else { return };
    let named = entries.iter().filter_map(|entry| Some((&entry.at, entry.service.as_ref()?)));
    for (at, (namespace, name)) in named.filter(|_| !scene.world.services.is_empty()) {
        if !scene.world.services.contains_key(&(namespace.clone(), name.clone())) {
            let text = format!("the snapshot has no Service {namespace}/{name}, so no address is one of its");
            all.push(Advice { at: at.clone(), kind: NO_SUCH_OBJECT, text });
        }
    }
}

fn network(scene: &Scene<'_>, item: &Item, block: &Block, all: &mut Vec<Advice>) {
    let at: &RuleRef = &item.at;
    let groups = &scene.world.cidr_groups;
    let (kind, text) = match &block.of {
        BlockOf::Group(name) if !groups.contains_key(name) => {
            (NO_SUCH_OBJECT, format!("the snapshot has no CiliumCIDRGroup {name}"))
        }
        BlockOf::Groups(selector) if scene.peers.groups.selected(&unreserved(selector)).next().is_none() => {
            (SELECTS_NOTHING, format!("{} selects no CiliumCIDRGroup of the snapshot", shown(selector)))
        }
        BlockOf::Here(network) => match of_cluster(scene, network, &block.except) {
            Some(text) => (BLOCK_OF_CLUSTER, text),
            None => return,
        },
        BlockOf::Group(_) | BlockOf::Groups(_) => return,
    };
    all.push(Advice { at: at.clone(), kind, text });
}

/// Whose address a narrow block holds, if it is the cluster's.
fn of_cluster(scene: &Scene<'_>, network: &IpNet, except: &[IpNet]) -> Option<String> {
    let narrow = match network {
        IpNet::V4(network) => network.prefix_len() >= NARROW.0,
        IpNet::V6(network) => network.prefix_len() >= NARROW.1,
    };
    if !narrow {
        return None;
    }
    let holds = |address: &IpAddr| network.contains(address) && !except.iter().any(|out| out.contains(address));
    let all = &scene.peers.addresses;
    let (low, high) = (network.network(), network.broadcast());
    let from = all.partition_point(|(address, _)| *address < low);
    let inside = all[from..].iter().take_while(|(address, _)| *address <= high).filter(|(address, _)| holds(address));
    Some(match inside.map(|(_, owner)| *owner).min()? {
        Owner::Pod(pod) => {
            format!("{network} holds the address of pod {pod}; a block never means pods, name it by its labels")
        }
        Owner::Service(namespace, name) => format!(
            "{network} holds an address of Service {namespace}/{name}; a block never means Services, name the pods \
             behind it, or the Service"
        ),
        Owner::Node(name) => format!(
            "{network} holds the address of node {name}; a block never means nodes, name them by the entities host and \
             remote-node"
        ),
    })
}

/// The first pod that a selector surely selects.
fn first<'w>(scene: &Scene<'w>, selector: &Selector) -> Option<&'w PodRef> {
    let mut selected = scene.pods.selected(selector);
    selected.find(|(_, labels)| selector.matches(labels) == Match::Yes).map(|(pod, _)| *pod)
}

/// Why an entity means nobody.
fn nobody(entity: Entity) -> Option<&'static str> {
    match entity {
        Entity::Ingress => Some("entity ingress is Cilium's own proxy: nobody here"),
        Entity::Init => Some("entity init is pods without labels: nobody here, for every pod of a snapshot has them"),
        Entity::Health => Some("entity health is Cilium's own health checks: nobody here"),
        Entity::Unmanaged => Some("entity unmanaged is pods that Cilium doesn't manage: nobody here"),
        Entity::None => Some("entity none is nobody, everywhere"),
        Entity::All
        | Entity::World
        | Entity::Cluster
        | Entity::ClusterMesh
        | Entity::Host
        | Entity::RemoteNode
        | Entity::KubeApiserver => None,
    }
}

/// The labels of an object that is no pod.
fn plain(labels: &BTreeMap<String, String>) -> Labels {
    Labels::of_pod(labels, "", None, None, "")
}

/// What a selector asks of an object that is no pod.
fn unreserved(selector: &Selector) -> Selector {
    let own = selector.requirements.iter().filter(|requirement| requirement.source != Source::Reserved);
    Selector { requirements: own.cloned().collect() }
}

/// What a selector asks for besides the namespace; `None` if that is nothing.
fn without_namespace(selector: &Selector) -> Option<Selector> {
    let of_namespace =
        |requirement: &&Requirement| requirement.key == NAMESPACE || requirement.key.starts_with(NAMESPACE_LABELS);
    let rest: Vec<Requirement> =
        selector.requirements.iter().filter(|requirement| !of_namespace(requirement)).cloned().collect();
    (!rest.is_empty()).then_some(Selector { requirements: rest })
}

/// A selector in a line: `{app=web, !tier}`.
fn shown(selector: &Selector) -> String {
    let key = |requirement: &Requirement| match requirement.source {
        Source::Any => requirement.key.clone(),
        source => format!("{source}:{}", requirement.key),
    };
    let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join("|");
    let requirement = |requirement: &Requirement| match &requirement.operator {
        Operator::In(values) => format!("{}={}", key(requirement), list(values)),
        Operator::NotIn(values) => format!("{}!={}", key(requirement), list(values)),
        Operator::Exists => key(requirement),
        Operator::DoesNotExist => format!("!{}", key(requirement)),
    };
    format!("{{{}}}", selector.requirements.iter().map(requirement).collect::<Vec<_>>().join(", "))
}
