//! Selectors, groups, Services, entities and blocks that mean nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::index::Carriers;
use super::ports::NO_SUCH_PORT;
use super::together::Place;
use super::{Advice, Scene};
use crate::engine::endpoint::PodRef;
use crate::engine::explain::words::protocol;
use crate::engine::labels::{Labels, Match, NAMESPACE, NAMESPACE_LABELS, Operator, Requirement, Selector, Source};
use crate::engine::policy::{Block, BlockOf, Entity, Item, Peers, Port, PortRule, Ports, ServicePeer};
use crate::engine::port::holds;
use crate::engine::ruleset::{Direction, Protocol};
use crate::engine::verdict::RuleRef;
use crate::engine::world::{Service, SlicePort, World};

pub(super) const SELECTS_NOTHING: &str = "selects-nothing";
pub(super) const NO_SUCH_OBJECT: &str = "no-such-object";
pub(super) const MEANS_NOBODY: &str = "means-nobody";
pub(super) const BLOCK_OF_CLUSTER: &str = "block-of-cluster";

/// The Service of the API server, by namespace and name.
const APISERVER: (&str, &str) = ("default", "kubernetes");

/// A block at least this long, in bits, was written for what is in it; a wider one only happens to hold it. IPv4, IPv6.
const NARROW: (u8, u8) = (16, 48);
/// The same for a denial: who denies a private range means all that is in it.
const NARROW_DENIED: (u8, u8) = (8, 7);

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
    /// Where it listens, or Service `default/kubernetes` in front of it.
    Apiserver {
        front: bool,
    },
}

impl<'w> Known<'w> {
    pub(super) fn new(world: &'w World) -> Known<'w> {
        let own_network = world.pods.iter().filter(|(_, pod)| !pod.host_network && !pod.finished);
        let pods = own_network.flat_map(|(name, pod)| pod.addresses.iter().map(|one| (*one, Owner::Pod(name))));
        let services = world.services.iter().flat_map(|((namespace, name), service)| {
            let owner = match (namespace.as_str(), name.as_str()) {
                APISERVER => Owner::Apiserver { front: true },
                (namespace, name) => Owner::Service(namespace, name),
            };
            service.addresses.iter().map(move |one| (*one, owner))
        });
        let apiserver = world.apiserver().into_iter().map(|one| (one, Owner::Apiserver { front: false }));
        let nodes = world.nodes.iter();
        let nodes = nodes.flat_map(|(name, node)| node.addresses.iter().map(|one| (*one, Owner::Node(name))));
        let mut addresses: Vec<(IpAddr, Owner<'_>)> = pods.chain(services).chain(nodes).chain(apiserver).collect();
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
        let denied = section.deny.iter().map(|item| (item, true));
        for (item, deny) in section.allow.iter().map(|item| (item, false)).chain(denied) {
            peers(scene, Written { item, direction, deny }, all);
            services(scene, item, all);
        }
    }
}

/// An item, and where it stands.
#[derive(Clone, Copy)]
struct Written<'a> {
    item: &'a Item,
    direction: Direction,
    deny: bool,
}

impl Written<'_> {
    /// How the API server is written in its place.
    fn apiserver(self) -> String {
        let entities = if self.direction == Direction::Egress { "toEntities" } else { "fromEntities" };
        let entity = format!("{entities}: [kube-apiserver]");
        if self.item.at.0.kind == "NetworkPolicy" {
            format!("a NetworkPolicy can't name it, write a CiliumNetworkPolicy with {entity}")
        } else {
            format!("write {entity}")
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

fn peers(scene: &Scene<'_>, written: Written<'_>, all: &mut Vec<Advice>) {
    let (world, item) = (scene.world, written.item);
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
        Peers::Networks(blocks) => blocks.iter().for_each(|block| network(scene, written, block, all)),
        Peers::Entities(entities) => {
            entities.iter().filter_map(|entity| nobody(*entity)).for_each(|text| found(MEANS_NOBODY, text.to_owned()));
        }
        Peers::Services(services) => {
            for service in services.iter().filter(|_| !world.services.is_empty()) {
                match service {
                    ServicePeer::Named { namespace, name } => {
                        if !world.services.contains_key(&(namespace.clone(), name.clone())) {
                            found(NO_SUCH_OBJECT, format!("the snapshot has no Service {namespace}/{name}"));
                        } else if is_of_cluster_alone(scene, namespace, name) {
                            let instead = match (namespace.as_str(), name.as_str()) {
                                APISERVER => written.apiserver(),
                                _ => "name the pods by their labels, nodes and the API server by entities".to_owned(),
                            };
                            let text = format!(
                                "Service {namespace}/{name} has no selector, and all addresses behind it are the \
                                 cluster's own, which such a Service never means; {instead}"
                            );
                            found(BLOCK_OF_CLUSTER, text);
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

/// Whether a Service has no selector, and pods, nodes or the API server behind it and nobody else.
fn is_of_cluster_alone(scene: &Scene<'_>, namespace: &str, name: &str) -> bool {
    let key = (namespace.to_owned(), name.to_owned());
    let Some(service) = scene.world.services.get(&key).filter(|service| service.readable) else { return false };
    let slices = scene.world.slices_of(namespace, name);
    let mut behind = slices.flat_map(|slice| &slice.endpoints).flat_map(|(addresses, _)| addresses).peekable();
    let owned = |address: &IpAddr| scene.peers.addresses.binary_search_by_key(address, |(one, _)| *one).is_ok();
    service.selector.is_empty() && behind.peek().is_some() && behind.all(owned)
}

/// `toPorts[].service`.
fn services(scene: &Scene<'_>, item: &Item, all: &mut Vec<Advice>) {
    let Ports::These(entries) = &item.ports else { return };
    let named = entries.iter().filter_map(|entry| Some((entry, entry.service.as_ref()?)));
    for (entry, (namespace, name)) in named.filter(|_| !scene.world.services.is_empty()) {
        let (kind, text) = match scene.world.services.get(&(namespace.clone(), name.clone())) {
            None => {
                let text = format!("the snapshot has no Service {namespace}/{name}, so no address is one of its");
                (NO_SUCH_OBJECT, text)
            }
            Some(service) if has_none_of(scene.world, (namespace, name), service, entry) => {
                let ports = service.ports.iter().map(|port| format!("{}/{}", port.port, protocol(port.protocol)));
                let text = format!(
                    "neither Service {namespace}/{name} nor what is behind it has one of these ports, so nothing is \
                     meant; its own are {}",
                    ports.collect::<Vec<_>>().join(", ")
                );
                (NO_SUCH_PORT, text)
            }
            Some(_) => continue,
        };
        all.push(Advice { at: entry.at.clone(), kind, text });
    }
}

/// Whether none of an entry's ports is one of a Service, or of what is behind it, as far as both are known.
fn has_none_of(world: &World, (namespace, name): (&str, &str), service: &Service, entry: &PortRule) -> bool {
    let behind: Vec<&SlicePort> = world.slices_of(namespace, name).flat_map(|slice| &slice.ports).collect();
    if !service.readable || behind.is_empty() {
        return false;
    }
    let own = service.ports.iter().map(|port| (port.protocol, Some(port.port)));
    let has: Vec<(Protocol, Option<u16>)> = own.chain(behind.iter().map(|port| (port.protocol, port.port))).collect();
    !entry.ports.is_empty()
        && entry.ports.iter().all(|(protocol, port)| match port {
            Port::Block(block) => {
                has.iter().all(|(of, number)| number.is_some_and(|number| !holds((*protocol, *block), *of, number)))
            }
            Port::Named(_) => false,
        })
}

fn network(scene: &Scene<'_>, written: Written<'_>, block: &Block, all: &mut Vec<Advice>) {
    let at: &RuleRef = &written.item.at;
    let groups = &scene.world.cidr_groups;
    let (kind, text) = match &block.of {
        BlockOf::Group(name) if !groups.contains_key(name) => {
            (NO_SUCH_OBJECT, format!("the snapshot has no CiliumCIDRGroup {name}"))
        }
        BlockOf::Groups(selector) if scene.peers.groups.selected(&unreserved(selector)).next().is_none() => {
            (SELECTS_NOTHING, format!("{} selects no CiliumCIDRGroup of the snapshot", shown(selector)))
        }
        BlockOf::Here(network) if IpNet::aggregate(&block.except).iter().any(|out| out.contains(network)) => {
            (MEANS_NOBODY, format!("{network} less all that it excepts is no address"))
        }
        BlockOf::Here(network) => match of_cluster(scene, written, network, &block.except) {
            Some(text) => (BLOCK_OF_CLUSTER, text),
            None => return,
        },
        BlockOf::Group(_) | BlockOf::Groups(_) => return,
    };
    all.push(Advice { at: at.clone(), kind, text });
}

/// Whose address a narrow block holds, if it is the cluster's.
fn of_cluster(scene: &Scene<'_>, written: Written<'_>, network: &IpNet, except: &[IpNet]) -> Option<String> {
    let least = if written.deny { NARROW_DENIED } else { NARROW };
    let narrow = match network {
        IpNet::V4(network) => network.prefix_len() >= least.0,
        IpNet::V6(network) => network.prefix_len() >= least.1,
    };
    if !narrow {
        return None;
    }
    let holds = |address: &IpAddr| network.contains(address) && !except.iter().any(|out| out.contains(address));
    let all = &scene.peers.addresses;
    let (low, high) = (network.network(), network.broadcast());
    let from = all.partition_point(|(address, _)| *address < low);
    let inside = all[from..].iter().take_while(|(address, _)| *address <= high).filter(|(address, _)| holds(address));
    // A denial does mean an API server out of the cluster.
    let counts = |owner: &Owner<'_>| !written.deny || *owner != Owner::Apiserver { front: false };
    let (mut first, mut last) = (None, None);
    for owner in inside.map(|(_, owner)| *owner).filter(counts) {
        first = Some(first.map_or(owner, |first: Owner<'_>| first.min(owner)));
        last = Some(last.map_or(owner, |last: Owner<'_>| last.max(owner)));
    }
    let text = match first? {
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
        Owner::Apiserver { .. } => {
            return Some(format!(
                "{network} holds an address of the API server; a block never means it; {}",
                written.apiserver()
            ));
        }
    };
    let too = match last {
        Some(Owner::Apiserver { .. }) => format!("; it holds one of the API server, too: {}", written.apiserver()),
        _ => String::new(),
    };
    Some(text + &too)
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
