//! What all rule sets of a world share: who is behind each address, and what is behind each Service.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::services::{self, Backing, Front};
use crate::engine::labels::{Known, Labels, NAMESPACE_LABELS, Operator, Requirement, Selector, Source};
use crate::engine::policy::Peers;
use crate::engine::ruleset::PeerId;
use crate::engine::world::{Holder, PeerIds, World};

/// See the module.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Base {
    /// Who claims which address.
    pub holders: BTreeMap<IpAddr, BTreeSet<Holder>>,
    /// The rows of `peers`.
    pub known: Arc<BTreeMap<IpAddr, PeerId>>,
    /// By number.
    pub peers: BTreeMap<PeerId, Peer>,
    /// Service addresses and ports, by these.
    pub fronts: Vec<Front>,
    /// What is behind each Service, by namespace and name.
    pub services: BTreeMap<(String, String), Backing>,
    index: Index,
}

/// One number of the `peers` map and who is behind it: one holder, or several that claim the same address. A number has
/// addresses of one family; that of this node, of both.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Peer {
    pub id: PeerId,
    pub addresses: BTreeSet<IpAddr>,
    pub holders: Vec<(Holder, Labels)>,
}

/// Peers by their labels: which of them a selector may mean, without asking all.
#[derive(Clone, PartialEq, Debug, Default)]
struct Index {
    /// By key and value of a label.
    labels: HashMap<String, HashMap<String, BTreeSet<PeerId>>>,
    /// Those whose namespace's labels are not known: a requirement about these may hold.
    homeless: BTreeSet<PeerId>,
    /// Nodes, and pods that could not be read: every requirement may hold.
    odd: BTreeSet<PeerId>,
}

impl Base {
    /// Numbers the peers and reads the Services.
    pub fn new(world: &World, ids: &mut PeerIds) -> Base {
        let holders = world.holders();
        let known = Arc::new(world.number(&holders, ids));
        let services = services::backing(world);
        let fronts = services::fronts(world, &services);
        let mut base = Base { holders, known, fronts, services, ..Base::default() };
        let mut addresses: BTreeMap<PeerId, Vec<IpAddr>> = BTreeMap::new();
        for address in base.holders.keys() {
            if let Some(id) = base.known.get(address) {
                addresses.entry(*id).or_default().push(*address);
            }
        }
        for (id, addresses) in addresses {
            let holders = &base.holders[&addresses[0]];
            let holders = holders.iter().map(|holder| (holder.clone(), world.labels(holder))).collect();
            base.insert(Peer { id, addresses: addresses.into_iter().collect(), holders });
        }
        base
    }

    /// Puts a peer in, in place of the one with its number.
    pub fn insert(&mut self, peer: Peer) {
        self.remove(peer.id);
        self.index.add(&peer);
        self.peers.insert(peer.id, peer);
    }

    /// Takes a peer out.
    pub fn remove(&mut self, id: PeerId) -> Option<Peer> {
        let peer = self.peers.remove(&id)?;
        self.index.remove(&peer);
        Some(peer)
    }

    /// Every peer that `peers` may mean, and perhaps some that it doesn't; by number.
    pub fn candidates<'a>(&'a self, peers: &Peers, deny: bool) -> Box<dyn Iterator<Item = &'a Peer> + 'a> {
        let found = match peers {
            Peers::Endpoints(selectors) => self.index.candidates(selectors),
            Peers::Names(_) => Some(BTreeSet::new()),
            Peers::Networks(_) if !deny => Some(BTreeSet::new()),
            Peers::Nodes(_) | Peers::Networks(_) => Some(self.index.odd.clone()),
            Peers::Any | Peers::Entities(_) | Peers::Services(_) => None,
        };
        match found {
            Some(ids) => Box::new(ids.into_iter().filter_map(|id| self.peers.get(&id))),
            None => Box::new(self.peers.values()),
        }
    }
}

impl Index {
    fn add(&mut self, peer: &Peer) {
        for (key, value) in pairs(peer) {
            if !self.labels.contains_key(key) {
                self.labels.insert(key.to_owned(), HashMap::new());
            }
            let Some(values) = self.labels.get_mut(key) else { continue };
            match values.get_mut(value) {
                Some(ids) => drop(ids.insert(peer.id)),
                None => drop(values.insert(value.to_owned(), BTreeSet::from([peer.id]))),
            }
        }
        if is_homeless(peer) {
            self.homeless.insert(peer.id);
        }
        if is_odd(peer) {
            self.odd.insert(peer.id);
        }
    }

    fn remove(&mut self, peer: &Peer) {
        for (key, value) in pairs(peer) {
            let Some(values) = self.labels.get_mut(key) else { continue };
            if let Some(ids) = values.get_mut(value) {
                ids.remove(&peer.id);
                if ids.is_empty() {
                    values.remove(value);
                }
            }
            if values.is_empty() {
                self.labels.remove(key);
            }
        }
        self.homeless.remove(&peer.id);
        self.odd.remove(&peer.id);
    }

    /// Who may be selected by one of these; `None`: anyone.
    fn candidates(&self, selectors: &[Selector]) -> Option<BTreeSet<PeerId>> {
        let mut all = BTreeSet::new();
        for selector in selectors {
            let (requirement, values) = selector
                .requirements
                .iter()
                .filter_map(|requirement| Some((requirement, values_of(requirement)?)))
                .min_by_key(|(requirement, values)| {
                    self.holding(requirement, values).map(BTreeSet::len).sum::<usize>()
                })?;
            all.extend(self.holding(requirement, values).flatten());
            if requirement.key.starts_with(NAMESPACE_LABELS) {
                all.extend(&self.homeless);
            }
        }
        if !selectors.is_empty() {
            all.extend(&self.odd);
        }
        Some(all)
    }

    fn holding<'a>(
        &'a self,
        requirement: &Requirement,
        values: &'a BTreeSet<String>,
    ) -> impl Iterator<Item = &'a BTreeSet<PeerId>> {
        let held = self.labels.get(&requirement.key);
        values.iter().filter_map(move |value| held?.get(value))
    }
}

/// The values of which a label must have one, if the requirement is such.
fn values_of(requirement: &Requirement) -> Option<&BTreeSet<String>> {
    match &requirement.operator {
        Operator::In(values) if requirement.source != Source::Reserved => Some(values),
        Operator::In(_) | Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
    }
}

fn pairs(peer: &Peer) -> impl Iterator<Item = (&str, &str)> {
    peer.holders.iter().flat_map(|(_, labels)| labels.pairs())
}

fn is_homeless(peer: &Peer) -> bool {
    peer.holders.iter().any(|(_, labels)| labels.known() == Known::AllButNamespaceLabels)
}

fn is_odd(peer: &Peer) -> bool {
    peer.holders.iter().any(|(holder, labels)| !matches!(holder, Holder::Pod(_)) || labels.known() == Known::Namespace)
}
