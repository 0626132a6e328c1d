//! Whom an item means: among the peers of the cluster, and outside of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::PoisonError;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Behind, Compiler, Places, labels_of_the_world};
use crate::engine::labels::{Labels, Match, NAMESPACE, Operator, Selector, Source};
use crate::engine::policy::{BlockOf, Entity, Peers, ServicePeer};
use crate::engine::ruleset::PeerId;
use crate::engine::world::{Holder, Service, World};

/// Who is behind some addresses of the cluster: one holder, or several that claim the same address.
#[derive(Debug)]
pub(super) struct Peer {
    pub holders: Vec<(Holder, Labels)>,
    /// One an address family; this node has one for both.
    pub numbers: Vec<Number>,
}

/// A number of the `peers` map, and the addresses that have it.
#[derive(Debug)]
pub(super) struct Number {
    pub id: PeerId,
    pub addresses: Vec<IpAddr>,
}

/// Addresses outside the cluster: a network less some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Outside<'w> {
    pub network: IpNet,
    pub except: &'w [IpNet],
}

/// A Service that an item means: its namespace, the object, what is behind it.
type Found<'a, 'w> = (&'w str, &'w Service, Option<&'a Behind>);

/// The peers of a world, in the order of their first addresses.
pub(super) fn of(
    world: &World,
    holders: BTreeMap<IpAddr, BTreeSet<Holder>>,
    known: &BTreeMap<IpAddr, PeerId>,
) -> Vec<Peer> {
    let mut peers: Vec<Peer> = Vec::new();
    let mut at: HashMap<BTreeSet<Holder>, usize> = HashMap::with_capacity(holders.len());
    for (address, holders) in holders {
        let Some(id) = known.get(&address) else { continue };
        let peer = match at.get(&holders) {
            Some(at) => *at,
            None => {
                let labelled = holders.iter().map(|holder| (holder.clone(), world.labels(holder))).collect();
                peers.push(Peer { holders: labelled, numbers: Vec::new() });
                at.insert(holders, peers.len() - 1);
                peers.len() - 1
            }
        };
        let numbers = &mut peers[peer].numbers;
        match numbers.iter_mut().find(|number| number.id == *id) {
            Some(number) => number.addresses.push(address),
            None => numbers.push(Number { id: *id, addresses: vec![address] }),
        }
    }
    peers
}

impl<'w> Compiler<'w> {
    /// Who an item means among the peers of the cluster: places in `peers`, sorted.
    pub(super) fn selected(&self, peers: &'w Peers, deny: bool) -> Places {
        // The world outlives the compiler, so that a place in memory stays one item's.
        let key = (std::ptr::from_ref(peers).addr(), deny);
        let mut known = self.selected.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(key).or_insert_with(|| self.select(peers, deny)).clone()
    }

    fn select(&self, peers: &Peers, deny: bool) -> Places {
        let services = self.services_of(peers, deny);
        let meant = |at: &usize| self.peers[*at].is_meant(self.world, peers, &services, deny);
        let namespaces: Option<BTreeSet<&str>> = match peers {
            Peers::Networks(_) | Peers::Names(_) => Some(BTreeSet::new()),
            Peers::Services(_) => Some(services.iter().map(|(namespace, _, _)| *namespace).collect()),
            Peers::Endpoints(selectors) => {
                selectors.iter().map(namespaces).try_fold(BTreeSet::new(), |mut all, more| {
                    all.extend(more?);
                    Some(all)
                })
            }
            Peers::Any | Peers::Nodes(_) | Peers::Entities(_) => None,
        };
        let Some(namespaces) = namespaces else { return (0..self.peers.len()).filter(meant).collect() };
        let pods = namespaces.iter().filter_map(|namespace| self.of_namespace.get(*namespace)).flatten();
        let candidates: BTreeSet<usize> = pods.copied().collect();
        candidates.into_iter().filter(meant).collect()
    }

    /// The peer that has this address, and which of its numbers.
    pub(super) fn peer(&self, address: IpAddr) -> Option<(&Peer, &Number)> {
        let (peer, number) = self.numbers.get(self.known.get(&address)?)?;
        Some((&self.peers[*peer], &self.peers[*peer].numbers[*number]))
    }

    /// Whether an item means this address, of the cluster or outside. A name means none before it was asked for.
    pub(super) fn is_meant(&self, peers: &'w Peers, address: IpAddr, deny: bool) -> bool {
        if is_any(peers) {
            return true;
        }
        match self.peer(address) {
            Some((peer, _)) => peer.is_meant(self.world, peers, &self.services_of(peers, deny), deny),
            None if self.known.contains_key(&address) => false,
            None => self.outside(peers, deny).iter().any(|outside| outside.holds(address)),
        }
    }

    /// The addresses outside the cluster that an item means.
    pub(super) fn outside(&self, peers: &'w Peers, deny: bool) -> Vec<Outside<'w>> {
        match peers {
            Peers::Networks(blocks) => {
                let mut outside = Vec::new();
                for block in blocks {
                    let mut add = |networks: &[IpNet]| {
                        let networks = networks.iter().map(|network| network.trunc());
                        outside.extend(networks.map(|network| Outside { network, except: &block.except }));
                    };
                    match &block.of {
                        BlockOf::Here(network) => add(std::slice::from_ref(network)),
                        BlockOf::Group(name) => match self.world.cidr_groups.get(name.as_str()) {
                            Some(group) if group.readable => add(&group.networks),
                            Some(_) if deny => add(&everywhere()),
                            Some(_) | None => {}
                        },
                        BlockOf::Groups(selector) => {
                            for group in self.world.cidr_groups.values() {
                                if !group.readable && deny {
                                    add(&everywhere());
                                } else if group.readable
                                    && selector.matches(&Labels::of_object(&group.labels)) == Match::Yes
                                {
                                    add(&group.networks);
                                }
                            }
                        }
                    }
                }
                outside
            }
            Peers::Entities(entities) if entities.contains(&Entity::World) => all_outside(),
            // Cilium's selectors see the world as one more set of labels: one that lacks a label selects it by accident,
            // which a denial keeps and an allowance never had.
            Peers::Endpoints(selectors) => {
                let labels = labels_of_the_world();
                let meant = |selector: &Selector| {
                    (deny || selector.names_reserved()) && selector.matches(&labels) == Match::Yes
                };
                if selectors.iter().any(meant) { all_outside() } else { Vec::new() }
            }
            Peers::Services(_) => {
                let mut outside = Vec::new();
                for (_, service, behind) in self.services_of(peers, deny) {
                    let complete = behind.is_some_and(|behind| behind.complete);
                    if !(service.readable && (complete || !service.selector.is_empty())) {
                        outside.extend(if deny { all_outside() } else { Vec::new() });
                    } else if let (true, Some(behind)) = (service.selector.is_empty(), behind) {
                        let addresses = behind.all.iter().filter(|address| !self.known.contains_key(*address));
                        outside.extend(addresses.map(|address| Outside::one(*address)));
                    }
                }
                outside
            }
            Peers::Any | Peers::Nodes(_) | Peers::Entities(_) | Peers::Names(_) => Vec::new(),
        }
    }

    /// The Services that an item means. One that could not be read may have any labels: a denial takes it for meant.
    fn services_of(&self, peers: &Peers, deny: bool) -> Vec<Found<'_, 'w>> {
        let Peers::Services(wanted) = peers else { return Vec::new() };
        let mut services = Vec::new();
        for wanted in wanted {
            let mut add = |namespace: &'w str, name: &'w str, service| {
                services.push((namespace, service, self.services.get(&(namespace, name))));
            };
            match wanted {
                ServicePeer::Named { namespace, name } => {
                    let key = (namespace.clone(), name.clone());
                    // By range, for the key's own life.
                    for ((namespace, name), service) in self.world.services.range(key.clone()..=key) {
                        add(namespace, name, service);
                    }
                }
                ServicePeer::Selected { namespace, selector } => {
                    for ((there, name), service) in &self.world.services {
                        let matches = || match service.readable {
                            true => selector.matches(&Labels::of_object(&service.labels)) == Match::Yes,
                            false => deny,
                        };
                        if namespace.as_ref().is_none_or(|namespace| namespace == there) && matches() {
                            add(there, name, service);
                        }
                    }
                }
            }
        }
        services
    }
}

impl Peer {
    /// An allowance must mean all who claim the address, a denial one of them.
    fn is_meant(&self, world: &World, peers: &Peers, services: &[Found<'_, '_>], deny: bool) -> bool {
        let meant = |holder: &Holder, labels: &Labels| match peers {
            Peers::Any => true,
            Peers::Endpoints(selectors) => selectors.iter().any(|selector| {
                let found = selector.matches(labels);
                if deny {
                    return found != Match::No;
                }
                // A selector that only lacks a label (`NotIn`, `DoesNotExist`) selects nodes by accident: it opens none.
                found == Match::Yes && (matches!(holder, Holder::Pod(_)) || selector.names_reserved())
            }),
            Peers::Entities(entities) => entities.iter().any(|entity| is_entity(*entity, holder)),
            Peers::Nodes(selectors) => world
                .node_labels(holder)
                .is_some_and(|labels| selectors.iter().any(|selector| selector.matches(&labels) == Match::Yes)),
            Peers::Services(_) => {
                services.iter().any(|(namespace, service, _)| is_behind(world, namespace, service, holder, deny))
            }
            Peers::Networks(_) | Peers::Names(_) => false,
        };
        let mut holders = self.holders.iter();
        if deny {
            holders.any(|(holder, labels)| meant(holder, labels))
        } else {
            holders.all(|(holder, labels)| meant(holder, labels))
        }
    }
}

impl Outside<'_> {
    /// One address.
    pub fn one(address: IpAddr) -> Outside<'static> {
        Outside { network: address.into(), except: &[] }
    }

    /// Whether `address` is one of these.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.network.contains(&address) && !self.except.iter().any(|except| except.contains(&address))
    }
}

/// Whether an item means every address there is.
pub(super) fn is_any(peers: &Peers) -> bool {
    match peers {
        Peers::Any => true,
        Peers::Entities(entities) => entities.contains(&Entity::All),
        Peers::Endpoints(_) | Peers::Nodes(_) | Peers::Networks(_) | Peers::Services(_) | Peers::Names(_) => false,
    }
}

/// Every address outside the cluster.
pub(super) fn all_outside() -> Vec<Outside<'static>> {
    everywhere().into_iter().map(|network| Outside { network, except: &[] }).collect()
}

fn everywhere() -> [IpNet; 2] {
    [Ipv4Net::default().into(), Ipv6Net::default().into()]
}

/// Whether who is behind an address of the cluster belongs to a class.
fn is_entity(entity: Entity, holder: &Holder) -> bool {
    match entity {
        Entity::All | Entity::Cluster | Entity::ClusterMesh => true,
        Entity::Host => matches!(holder, Holder::Host | Holder::HostApiserver),
        Entity::RemoteNode => matches!(holder, Holder::Node(_) | Holder::NodeApiserver(_) | Holder::Apiserver),
        Entity::KubeApiserver => {
            matches!(holder, Holder::HostApiserver | Holder::NodeApiserver(_) | Holder::Apiserver)
        }
        Entity::World | Entity::Ingress | Entity::Init | Entity::Health | Entity::Unmanaged | Entity::None => false,
    }
}

/// Whether a Service selects who is behind an address: a pod of its namespace that carries all of its labels.
fn is_behind(world: &World, namespace: &str, service: &Service, holder: &Holder, deny: bool) -> bool {
    let Holder::Pod(reference) = holder else { return false };
    if reference.namespace != namespace {
        return false;
    }
    match world.pods.get(reference) {
        Some(pod) if service.readable && pod.readable => {
            let carries = |(key, value)| pod.labels.get(key) == Some(value);
            !service.selector.is_empty() && service.selector.iter().all(carries)
        }
        // Its selector, or what the pod carries, is not known.
        _ => deny && !(service.readable && service.selector.is_empty()),
    }
}

/// The only namespaces whose pods a selector can mean, if it says which.
fn namespaces(selector: &Selector) -> Option<BTreeSet<&str>> {
    selector.requirements.iter().find_map(|requirement| match &requirement.operator {
        Operator::In(values) if requirement.key == NAMESPACE && requirement.source != Source::Reserved => {
            Some(values.iter().map(String::as_str).collect())
        }
        _ => None,
    })
}
