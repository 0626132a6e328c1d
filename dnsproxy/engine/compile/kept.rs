//! The compiler from one world to the next: only what a change touches is compiled again.
//!
//! A changed pod changes, in a rule set, its own row of `peers`, and the rows of Services that it is behind: those rows
//! are made anew and the others stay (`patched`). What else a rule set depends on is seldom changed; where it is, or
//! may be, the rule set is compiled as a whole.
//!
//! **Invariant:** a rule set from here equals the one that a [`Compiler`] of the same world makes of it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::base::{Base, Peer};
use super::peers::{Selections, is_any};
use super::services::{self, Front};
use super::{CompileError, Compiler, dns, items, selecting};
use crate::engine::bits::Bits;
use crate::engine::endpoint::PodRef;
use crate::engine::labels::{Labels, Match};
use crate::engine::policy::{BlockOf, Item, Peers, Policy, Port, Ports, Rule};
use crate::engine::ruleset::{Direction, Group, GroupKey, PeerId, RuleSet, ServiceRow};
use crate::engine::world::{Holder, Node, PeerIds, Pod, World, number_of, peer_key};

/// The port of DNS.
const DNS: u16 = 53;

/// See the module.
#[derive(Debug, Default)]
pub struct Kept {
    world: World,
    pub(super) base: Base,
    /// Whom selectors mean in the last world, as far as rule sets asked.
    selections: Selections,
    /// What the last world changed.
    step: Step,
    /// Counts worlds.
    turn: u64,
    /// Rule sets, each of the world in which it was last asked for.
    sets: BTreeMap<PodRef, (u64, Arc<RuleSet>)>,
}

/// What one world has changed against the one before.
#[derive(Debug, Default)]
struct Step {
    /// Something that every rule set may depend on.
    everything: bool,
    /// Pods that are new, gone or different, and all of a namespace that is.
    pods: BTreeSet<PodRef>,
    /// Policies that are new or gone; what changed is both.
    policies: Vec<(Arc<Policy>, Match)>,
    /// Peers that changed, as they were; none: they were not there.
    peers: BTreeMap<PeerId, Option<Peer>>,
    /// Fronts that are new or different, as they are now.
    fronts: Vec<Front>,
    /// Fronts that are gone.
    fronts_gone: Vec<Front>,
    /// Whether any address means another peer now.
    known: bool,
    /// Whether a Service changed, or what is behind one.
    services: bool,
}

impl Kept {
    /// Takes the next world. Gives numbers to peers that have none, and forgets those of who is gone.
    pub fn next(&mut self, world: &World, ids: &mut PeerIds) {
        let old = std::mem::replace(&mut self.world, world.clone());
        self.turn += 1;
        self.selections = Selections::default();
        self.step = self.step_from(&old, ids).unwrap_or_else(|| {
            self.base = Base::new(&self.world, ids);
            Step { everything: true, ..Step::default() }
        });
        // Who was not asked for in the last world is compiled anew when it is.
        let turn = self.turn;
        self.sets.retain(|_, (last, _)| *last + 1 == turn);
    }

    /// The world that was taken last.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The rows of the kernel's `peers` map.
    pub fn peers(&self) -> &Arc<BTreeMap<IpAddr, PeerId>> {
        &self.base.known
    }

    /// Who claims which address.
    pub fn holders(&self) -> &BTreeMap<IpAddr, BTreeSet<Holder>> {
        &self.base.holders
    }

    /// Everything that the policies mean for `subject`; see [`Compiler::compile`]. What has not changed is the same as it
    /// was in the last world.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub fn rules(&mut self, subject: &PodRef, history: &[Group]) -> Result<Arc<RuleSet>, CompileError> {
        let selections = self.selections.clone();
        let compiler = Compiler { world: &self.world, base: Cow::Borrowed(&self.base), selections };
        let old = self.sets.get(subject).map(|(_, set)| set);
        let next = old.filter(|old| old.groups == history).and_then(|old| self.step.next(&compiler, subject, old));
        let set = match next {
            Some(set) => set,
            None => Arc::new(compiler.compile(subject, history).inspect_err(|_| drop(self.sets.remove(subject)))?),
        };
        self.sets.insert(subject.clone(), (self.turn, set.clone()));
        Ok(set)
    }

    /// What changed since `old`, taken over into the base; `None` when all of it is to be made anew.
    fn step_from(&mut self, old: &World, ids: &mut PeerIds) -> Option<Step> {
        let world = self.world.clone();
        let settings = |world: &World| (world.own_node.clone(), world.cluster.clone());
        if self.turn == 1 || settings(&world) != settings(old) || !same_nodes(&world, old) {
            return None;
        }
        let slices_changed = !world.services.changes(&old.services).is_empty()
            || !world.endpoint_slices.changes(&old.endpoint_slices).is_empty()
            || !world.endpoints.changes(&old.endpoints).is_empty();
        let apiserver = world.apiserver();
        if slices_changed && apiserver != old.apiserver() {
            return None;
        }
        let general = |world: &World| (world.enforcement, world.mode, world.own_modes, world.cilium_config.clone());
        let mut step = Step {
            everything: general(&world) != general(old) || world.cidr_groups != old.cidr_groups,
            policies: policies_changed(&world, old),
            ..Step::default()
        };
        let mut addresses = BTreeSet::new();
        self.move_pods(&world, old, &mut step, &mut addresses);
        if addresses.iter().any(|address| apiserver.contains(address)) {
            return None;
        }
        let fronted: BTreeSet<IpAddr> = world.service_addresses().collect();
        let mut turned = self.renumber(&world, &addresses, &mut step, ids);
        if slices_changed {
            let were: BTreeSet<IpAddr> = old.service_addresses().collect();
            let other = fronted.symmetric_difference(&were).filter(|address| !self.base.holders.contains_key(address));
            turned.extend(other.map(|address| (*address, None)));
        }
        let mut moved = BTreeSet::new();
        for (address, id) in turned {
            let id = id.or_else(|| fronted.contains(&address).then_some(PeerId::SERVICE));
            if self.base.known.get(&address).copied() != id {
                moved.insert(address);
                let known = Arc::make_mut(&mut self.base.known);
                match id {
                    Some(id) => drop(known.insert(address, id)),
                    None => drop(known.remove(&address)),
                }
            }
        }
        step.known = !moved.is_empty();
        step.services = slices_changed;
        self.move_fronts(&world, slices_changed, &moved, &mut step);
        Some(step)
    }

    /// Who claims which address now; `addresses`: where that may have changed.
    fn move_pods(&mut self, world: &World, old: &World, step: &mut Step, addresses: &mut BTreeSet<IpAddr>) {
        let namespaces = world.namespaces.changes(&old.namespaces);
        let namespaces: BTreeSet<&String> = namespaces.into_iter().map(|(name, ..)| name).collect();
        for (reference, was, is) in world.pods.changes(&old.pods) {
            if matches!((was, is), (Some(was), Some(is)) if same_pod(was, is)) {
                continue;
            }
            step.pods.insert(reference.clone());
            let holder = Holder::Pod(reference.clone());
            for address in was.filter(|pod| claims(pod)).into_iter().flat_map(|pod| &pod.addresses) {
                if let Some(holders) = self.base.holders.get_mut(address) {
                    holders.remove(&holder);
                    if holders.is_empty() {
                        self.base.holders.remove(address);
                    }
                }
                addresses.insert(*address);
            }
            for address in is.filter(|pod| claims(pod)).into_iter().flat_map(|pod| &pod.addresses) {
                self.base.holders.entry(*address).or_default().insert(holder.clone());
                addresses.insert(*address);
            }
        }
        for namespace in namespaces {
            let first = PodRef { namespace: namespace.clone(), name: String::new() };
            let pods = world.pods.range(first..).take_while(|(reference, _)| reference.namespace == *namespace);
            for (reference, pod) in pods {
                step.pods.insert(reference.clone());
                addresses.extend(pod.addresses.iter().filter(|_| claims(pod)));
            }
        }
    }

    /// Gives the peers behind these addresses their numbers and labels anew; the addresses with their numbers.
    fn renumber(
        &mut self,
        world: &World,
        addresses: &BTreeSet<IpAddr>,
        step: &mut Step,
        ids: &mut PeerIds,
    ) -> BTreeMap<IpAddr, Option<PeerId>> {
        let mut anew: BTreeMap<PeerId, Peer> = BTreeMap::new();
        let mut turned = BTreeMap::new();
        // First out of all, then into all: two that swap their addresses don't meet.
        for address in addresses {
            let Some(id) = self.base.known.get(address).copied() else { continue };
            self.lift(id, step, &mut anew);
            if let Some(peer) = anew.get_mut(&id) {
                peer.addresses.remove(address);
            }
        }
        for address in addresses {
            let Some(holders) = self.base.holders.get(address).cloned() else {
                turned.insert(*address, None);
                continue;
            };
            let id = number_of(&holders, peer_key(*address, &holders).as_deref(), ids);
            turned.insert(*address, Some(id));
            self.lift(id, step, &mut anew);
            let peer = anew.entry(id).or_insert_with(|| {
                step.peers.entry(id).or_insert(None);
                Peer { id, addresses: BTreeSet::new(), holders: Vec::new() }
            });
            peer.addresses.insert(*address);
            peer.holders = holders.into_iter().map(|holder| (holder.clone(), world.labels(&holder))).collect();
        }
        for peer in anew.into_values() {
            if !peer.addresses.is_empty() {
                self.base.insert(peer);
                continue;
            }
            // Where it was tells its family, and so its key.
            let was = step.peers.get(&peer.id).and_then(Option::as_ref).and_then(|was| was.addresses.first());
            let holders = peer.holders.into_iter().map(|(holder, _)| holder).collect();
            if let Some(key) = was.and_then(|address| peer_key(*address, &holders)) {
                ids.forget(&key);
            }
        }
        turned
    }

    /// Takes a peer out of the base to change it, and remembers what it was.
    fn lift(&mut self, id: PeerId, step: &mut Step, anew: &mut BTreeMap<PeerId, Peer>) {
        if let Some(peer) = self.base.remove(id) {
            step.peers.insert(id, Some(peer.clone()));
            anew.insert(id, peer);
        }
    }

    /// Which fronts are others now, or have someone else behind them.
    fn move_fronts(&mut self, world: &World, slices_changed: bool, moved: &BTreeSet<IpAddr>, step: &mut Step) {
        if slices_changed {
            self.base.services = services::backing(world);
            let fronts = services::fronts(world, &self.base.services);
            let key = |front: &Front| (front.address, front.protocol, front.port);
            let find = |fronts: &[Front], front: &Front| fronts.binary_search_by_key(&key(front), key).ok();
            for front in &fronts {
                if find(&self.base.fronts, front).is_none_or(|at| self.base.fronts[at] != *front) {
                    step.fronts.push(front.clone());
                }
            }
            step.fronts_gone =
                self.base.fronts.iter().filter(|front| find(&fronts, front).is_none()).cloned().collect();
            self.base.fronts = fronts;
        }
        let changed = step.peers.iter().flat_map(|(id, was)| {
            let is = self.base.peers.get(id);
            was.iter().chain(is).flat_map(|peer| peer.addresses.iter().copied())
        });
        let touched: BTreeSet<IpAddr> = changed.chain(moved.iter().copied()).collect();
        if touched.is_empty() {
            return;
        }
        for front in &self.base.fronts {
            if front.backends.iter().any(|(backend, _)| touched.contains(backend)) && !step.fronts.contains(front) {
                step.fronts.push(front.clone());
            }
        }
    }
}

impl Step {
    /// The rule set after this step, of what it was before; `None` when it is to be compiled.
    fn next(&self, compiler: &Compiler<'_>, subject: &PodRef, old: &Arc<RuleSet>) -> Option<Arc<RuleSet>> {
        if self.everything || self.pods.contains(subject) {
            return None;
        }
        let nothing = self.peers.is_empty() && !self.known && !self.services;
        if nothing && self.policies.is_empty() {
            return Some(old.clone());
        }
        let labels = compiler.world.labels(&Holder::Pod(subject.clone()));
        let touched = |(policy, most): &(Arc<Policy>, Match)| !selecting_of(policy, *most, subject, &labels).is_empty();
        if self.policies.iter().any(touched) {
            return None;
        }
        if nothing {
            return Some(old.clone());
        }
        let known = compiler.base.known.clone();
        if !old.selected {
            return Some(if self.known { Arc::new(RuleSet { known, ..(**old).clone() }) } else { old.clone() });
        }
        self.patched(compiler, subject, &labels, old)
    }

    /// The rule set with the rows of the peers and fronts that changed made anew.
    fn patched(
        &self,
        compiler: &Compiler<'_>,
        subject: &PodRef,
        labels: &Labels,
        old: &Arc<RuleSet>,
    ) -> Option<Arc<RuleSet>> {
        let rules = selecting(compiler.world, subject, labels);
        let both = || {
            let of = |direction| items(&rules, direction).map(move |(item, deny)| (direction, item, deny));
            of(Direction::Egress).chain(of(Direction::Ingress))
        };
        if !both().all(|(_, item, _)| is_plain(item))
            || (dns::are_steered(&rules) && self.moves_servers(compiler, &rules))
        {
            return None;
        }
        let mut rows: BTreeMap<PeerId, Bits> = BTreeMap::new();
        for (direction, item, deny) in both().filter(|(_, item, _)| !is_any(&item.peers)) {
            let ports = item.ports.plain();
            let mut meant = self.peers.keys().filter_map(|id| compiler.base.peers.get(id)).peekable();
            if ports.is_empty() || meant.peek().is_none() {
                continue;
            }
            let mut meant = meant.filter(|peer| compiler.means(peer, &item.peers, deny)).peekable();
            if meant.peek().is_none() {
                continue;
            }
            let key = GroupKey { direction, deny, ports: ports.into_iter().collect() };
            let bit = Bits::of(old.groups.iter().find(|group| group.key == key)?.bit);
            for peer in meant {
                *rows.entry(peer.id).or_default() |= bit;
            }
        }
        let mut peers = Cow::Borrowed(&old.peers);
        for id in self.peers.keys() {
            let (place, row) = (peers.binary_search_by_key(id, |row| row.0), rows.get(id).copied());
            match (place, row) {
                (Ok(at), Some(bits)) if peers[at].1 != bits => peers.to_mut()[at].1 = bits,
                (Ok(_), Some(_)) | (Err(_), None) => {}
                (Ok(at), None) => drop(peers.to_mut().remove(at)),
                (Err(at), Some(bits)) => peers.to_mut().insert(at, (*id, bits)),
            }
        }
        let same_peers = matches!(peers, Cow::Borrowed(_));
        if same_peers && !self.known && self.fronts.is_empty() && self.fronts_gone.is_empty() {
            return Some(old.clone());
        }
        let known = compiler.base.known.clone();
        let mut set = RuleSet { peers: peers.into_owned(), known, services: Vec::new(), ..(**old).clone() };
        let fronts = || self.fronts.iter().chain(&self.fronts_gone);
        let touched: BTreeSet<_> = fronts().map(|front| (front.address, front.protocol, front.port)).collect();
        let fresh = services::rows(&set, &self.fronts);
        let stay = old.services.iter().filter(|row| !touched.contains(&(row.address, row.protocol, row.port)));
        let mut services: Vec<ServiceRow> = stay.copied().chain(fresh).collect();
        services.sort_unstable();
        if same_peers && !self.known && services == old.services {
            return Some(old.clone());
        }
        set.services = services;
        Some(Arc::new(set))
    }

    /// Whether a peer or front that changed may be one of the servers of the DNS rules.
    fn moves_servers(&self, compiler: &Compiler<'_>, rules: &[(&Rule, Match)]) -> bool {
        items(rules, Direction::Egress).any(|(item, deny)| {
            if !deny && !may_ask(item) {
                return false;
            }
            let peers = self.peers.iter().flat_map(|(id, was)| was.iter().chain(compiler.base.peers.get(id)));
            let direct = peers.into_iter().any(|peer| compiler.means(peer, &item.peers, deny));
            let fronts = self.fronts.iter().chain(&self.fronts_gone);
            let fronted = fronts.into_iter().any(|front| {
                let ports = || front.backends.iter().map(|(_, target)| *target).chain([front.port]);
                deny || ports().any(|port| port == DNS) || ports().any(|port| asks_on(item, port))
            });
            (direct && !is_any(&item.peers)) || fronted
        })
    }
}

/// Whether a pod has its addresses for itself.
fn claims(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}

/// Whether a pod is the same to policies, wherever its object stands: in one long list all that follow a change move.
fn same_pod(was: &Pod, is: &Pod) -> bool {
    let Pod {
        uid: _,
        labels,
        service_account,
        addresses,
        node,
        host_network,
        finished,
        search,
        nameservers,
        ports,
        mode,
        readable,
        place: _,
    } = was;
    (labels, service_account, addresses, node) == (&is.labels, &is.service_account, &is.addresses, &is.node)
        && (host_network, finished) == (&is.host_network, &is.finished)
        && (search, nameservers) == (&is.search, &is.nameservers)
        && (ports, mode, readable) == (&is.ports, &is.mode, &is.readable)
}

/// Whether the nodes are the same to policies, wherever their objects stand.
fn same_nodes(world: &World, old: &World) -> bool {
    let same = |was: &Node, is: &Node| (&was.labels, &was.addresses) == (&is.labels, &is.addresses);
    world
        .nodes
        .changes(&old.nodes)
        .iter()
        .all(|(_, was, is)| matches!((was, is), (Some(was), Some(is)) if same(was, is)))
}

/// Policies of which only one world has that version, each with how sure it is that it selects.
fn policies_changed(world: &World, old: &World) -> Vec<(Arc<Policy>, Match)> {
    let mut changed = Vec::new();
    for (is, was, most) in [(&world.policies, &old.policies, Match::Yes), (&world.refused, &old.refused, Match::Maybe)]
    {
        let pointers = |policies: &[Arc<Policy>]| policies.iter().map(Arc::as_ptr).collect::<BTreeSet<_>>();
        let (in_is, in_was) = (pointers(is), pointers(was));
        changed.extend(is.iter().filter(|policy| !in_was.contains(&Arc::as_ptr(policy))).map(|it| (it.clone(), most)));
        changed.extend(was.iter().filter(|policy| !in_is.contains(&Arc::as_ptr(policy))).map(|it| (it.clone(), most)));
    }
    changed
}

/// Whether a policy has a rule that may select the subject.
fn selecting_of<'p>(policy: &'p Arc<Policy>, most: Match, subject: &PodRef, labels: &Labels) -> Vec<&'p Rule> {
    let of_namespace = |rule: &&Rule| rule.subject.namespace.as_ref().is_none_or(|name| *name == subject.namespace);
    let may = |rule: &&Rule| rule.subject.selector.matches(labels).min(most) != Match::No;
    policy.rules.iter().filter(of_namespace).filter(may).collect()
}

/// Whether all that an item means are rows of their own, so that a changed peer changes nothing but its own.
fn is_plain(item: &Item) -> bool {
    let peers = match &item.peers {
        Peers::Any | Peers::Endpoints(_) | Peers::Entities(_) | Peers::Names(_) => true,
        Peers::Networks(blocks) => blocks.iter().all(|block| matches!(block.of, BlockOf::Here(_))),
        Peers::Nodes(_) | Peers::Services(_) => false,
    };
    let ports = match &item.ports {
        Ports::All => true,
        Ports::These(entries) => entries
            .iter()
            .all(|entry| entry.service.is_none() && entry.ports.iter().all(|(_, port)| matches!(port, Port::Block(_)))),
    };
    peers && ports
}

/// Whether an item lets queries through to those that it means.
fn may_ask(item: &Item) -> bool {
    match &item.ports {
        Ports::All => true,
        Ports::These(entries) => entries.iter().any(|entry| entry.dns.is_some()) || asks_on(item, DNS),
    }
}

/// Whether an item speaks of this port of any protocol.
fn asks_on(item: &Item, port: u16) -> bool {
    match &item.ports {
        Ports::All => port == DNS,
        Ports::These(entries) => entries.iter().any(|entry| {
            entry.ports.iter().any(|(_, wide)| matches!(wide, Port::Block(block) if block.holds(port)))
                && (entry.dns.is_some() || port == DNS)
        }),
    }
}
