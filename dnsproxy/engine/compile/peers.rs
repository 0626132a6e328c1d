//! Whom an item means: among the peers of the cluster, and outside of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Compiler;
use super::base::Peer;
use super::services::Backing;
use crate::engine::labels::{Labels, Match, Selector};
use crate::engine::policy::{BlockOf, Entity, Peers, ServicePeer};
use crate::engine::ruleset::PeerId;
use crate::engine::world::{Holder, Service, World};

/// Addresses outside the cluster: a network less some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Outside<'w> {
    pub network: IpNet,
    pub except: &'w [IpNet],
}

/// Whom sets of selectors mean in one world: rules of many workloads share them, and each may mean thousands. A clone is
/// the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Selections(Arc<Mutex<HashMap<Selected, Arc<[PeerId]>>>>);

/// Selectors, and whether they deny.
type Selected = (Vec<Selector>, bool);

/// A Service that an item means: its namespace, the object, what is behind it.
type Found<'a> = (&'a str, &'a Service, Option<&'a Backing>);

/// Whom an item wants, with what is the same for every peer that is asked about.
struct Wanted<'a> {
    peers: &'a Peers,
    services: Vec<Found<'a>>,
    /// Of a denial, which meets the API server there: a name may lead to it as to any address outside.
    outside: Vec<Outside<'a>>,
    deny: bool,
}

impl Compiler<'_> {
    /// Who an item means among the peers of the cluster, by number.
    pub(super) fn selected<'a>(&'a self, peers: &'a Peers, deny: bool) -> impl Iterator<Item = &'a Peer> {
        let wanted = self.wanted(peers, deny);
        self.base.candidates(peers, deny).filter(move |peer| peer.is_meant(self.world, &wanted))
    }

    /// The same, as numbers.
    pub(super) fn selected_ids(&self, peers: &Peers, deny: bool) -> Arc<[PeerId]> {
        let select = || self.selected(peers, deny).map(|peer| peer.id).collect();
        let Peers::Endpoints(selectors) = peers else { return select() };
        let mut known = self.selections.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry((selectors.clone(), deny)).or_insert_with(select).clone()
    }

    /// The same, and everyone for an item that means everyone.
    pub(super) fn selected_of_all<'a>(
        &'a self,
        peers: &'a Peers,
        deny: bool,
    ) -> Box<dyn Iterator<Item = &'a Peer> + 'a> {
        match is_any(peers) {
            true => Box::new(self.base.peers.values()),
            false => Box::new(self.selected(peers, deny)),
        }
    }

    /// Whether an item means this peer.
    pub(super) fn means(&self, peer: &Peer, peers: &Peers, deny: bool) -> bool {
        peer.is_meant(self.world, &self.wanted(peers, deny))
    }

    fn wanted<'a>(&'a self, peers: &'a Peers, deny: bool) -> Wanted<'a> {
        let outside = if deny { self.outside(peers, deny) } else { Vec::new() };
        Wanted { peers, services: self.services_of(peers, deny), outside, deny }
    }

    /// The peer that has this address.
    pub(super) fn peer(&self, address: IpAddr) -> Option<&Peer> {
        self.base.peers.get(self.base.known.get(&address)?)
    }

    /// Whether an item means this address, of the cluster or outside. A name means none before it was asked for.
    pub(super) fn is_meant(&self, peers: &Peers, address: IpAddr, deny: bool) -> bool {
        if is_any(peers) {
            return true;
        }
        match self.peer(address) {
            Some(peer) => self.means(peer, peers, deny),
            None if self.base.known.contains_key(&address) => false,
            None => self.outside(peers, deny).iter().any(|outside| outside.holds(address)),
        }
    }

    /// The addresses outside the cluster that an item means.
    pub(super) fn outside<'p>(&self, peers: &'p Peers, deny: bool) -> Vec<Outside<'p>> {
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
                let labels = Labels::reserved(&["world"]);
                let meant = |selector: &Selector| {
                    (deny || selector.names_reserved()) && selector.matches(&labels) == Match::Yes
                };
                if selectors.iter().any(meant) { all_outside() } else { Vec::new() }
            }
            Peers::Services(_) => {
                let mut outside = Vec::new();
                for (_, service, backing) in self.services_of(peers, deny) {
                    let complete = backing.is_some_and(|backing| backing.complete);
                    if !(service.readable && (complete || !service.selector.is_empty())) {
                        outside.extend(if deny { all_outside() } else { Vec::new() });
                    } else if let (true, Some(backing)) = (service.selector.is_empty(), backing) {
                        let addresses = backing.all.iter().filter(|address| !self.base.known.contains_key(*address));
                        outside.extend(addresses.map(|address| Outside::one(*address)));
                    }
                }
                outside
            }
            Peers::Any | Peers::Nodes(_) | Peers::Entities(_) | Peers::Names(_) => Vec::new(),
        }
    }

    /// The Services that an item means. One that could not be read may have any labels: a denial takes it for meant.
    fn services_of(&self, peers: &Peers, deny: bool) -> Vec<Found<'_>> {
        let Peers::Services(wanted) = peers else { return Vec::new() };
        let mut services = Vec::new();
        for wanted in wanted {
            match wanted {
                ServicePeer::Named { namespace, name } => {
                    let key = (namespace.clone(), name.clone());
                    let there = self.world.services.range(key.clone()..=key);
                    services.extend(there);
                }
                ServicePeer::Selected { namespace, selector } => {
                    let matches = |service: &Service| match service.readable {
                        true => selector.matches(&Labels::of_object(&service.labels)) == Match::Yes,
                        false => deny,
                    };
                    let there = self.world.services.iter();
                    let there = there.filter(|((there, _), _)| namespace.as_ref().is_none_or(|name| name == there));
                    services.extend(there.filter(|(_, service)| matches(service)));
                }
            }
        }
        services.into_iter().map(|(key, service)| (key.0.as_str(), service, self.base.services.get(key))).collect()
    }
}

impl Peer {
    /// An allowance must mean all who claim the address, a denial one of them.
    fn is_meant(&self, world: &World, wanted: &Wanted<'_>) -> bool {
        let Wanted { peers, services, outside, deny } = wanted;
        let deny = *deny;
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
            let is_outside = |holder: &Holder| {
                let holds = |address: &IpAddr| outside.iter().any(|outside| outside.holds(*address));
                *holder == Holder::Apiserver && self.addresses.iter().any(holds)
            };
            holders.any(|(holder, labels)| meant(holder, labels) || is_outside(holder))
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
