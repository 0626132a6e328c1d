//! From the snapshot to what is in force, step by step, so that at no moment more is open than before or after.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;

use super::node::{Endpoint, Node};
use super::state::{self, EndpointState};
use super::steering;
use crate::clock;
use crate::cluster::snapshot::{self, Refusal, Snapshot, Stands};
use crate::config::{Config, UnknownResolvers};
use crate::engine::compile::transition;
use crate::engine::endpoint::EndpointId;
use crate::engine::ruleset::{Group, PeerId, RuleSet};
use crate::engine::world::{Mode, World};
use crate::host::links::LOOPBACK;
use crate::kernel::change::{Moves, PeerRows, RowChange};
use crate::kernel::rules::{ADDRESSES, FlowLimits, ProxyPorts};
use crate::operate::metrics::Reload;

/// What was read last, and how it went.
#[derive(Default)]
pub(super) struct Loaded {
    /// Of the snapshot's content.
    pub hash: Option<[u8; 32]>,
    /// Counts what was put in force.
    pub generation: u64,
    /// When.
    pub when: Option<SystemTime>,
    /// What could not be read.
    pub refusals: Vec<Refusal>,
    /// Objects of kinds that are not used.
    pub skipped: u64,
    /// Why the newest snapshot is not in force.
    pub problem: String,
}

/// Rule sets with their policy numbers: in force while bits are added to grants, and while they are cleared.
#[derive(Default)]
pub(super) struct Way {
    pub adding: Option<(u32, Arc<RuleSet>)>,
    pub clearing: Option<(u32, Arc<RuleSet>)>,
}

/// A compiled change, not in force yet.
#[derive(Default)]
pub(super) struct Change {
    pub rules: BTreeMap<String, Arc<RuleSet>>,
    /// The endpoints that it was compiled for.
    compiled: BTreeMap<String, EndpointId>,
    /// Rows of `peers` as they will be, and how they get there.
    peers: PeerRows,
    moves: Moves,
    /// Rows that change under the numbers that their endpoints have, and these endpoints.
    in_place: Vec<RowChange>,
    again: BTreeSet<String>,
    /// Fresh policy numbers and the rule set under each.
    fresh: Vec<(u32, Arc<RuleSet>)>,
    /// Rows that an endpoint goes through on the way (see [`transition`]).
    ways: BTreeMap<String, Way>,
}

impl Node {
    /// Reads the snapshot and puts it in force.
    pub async fn reload(&mut self) {
        self.load(false, None).await;
    }

    /// The same, unless it is what was read last.
    ///
    /// `names`: nothing but files of these names can have changed; `None`: anything.
    pub async fn reload_if_changed(&mut self, names: Option<BTreeSet<String>>) {
        self.load(true, names).await;
    }

    /// The same policy, with what was found of pods and interfaces since.
    pub async fn reload_with_found(&mut self) {
        self.load(false, Some(BTreeSet::new())).await;
    }

    async fn load(&mut self, only_if_changed: bool, names: Option<BTreeSet<String>>) {
        if self.snapshot.path() != self.config.snapshot {
            self.snapshot = snapshot::Source::new(&self.config.snapshot);
        }
        let snapshot =
            self.snapshot.read_at(names.as_ref(), &self.state.last_good, self.config.policy.on_invalid.into());
        if only_if_changed && self.loaded.hash == Some(snapshot.generation_hash) {
            return;
        }
        if let Some(discovery) = &mut self.discovery {
            discovery.reload_at = None; // what was found is in it
        }
        self.report(&snapshot);
        self.follow_cluster(&snapshot.world.cilium_config);
        self.loaded.hash = Some(snapshot.generation_hash);
        match self.put_in_force(snapshot).await {
            Ok(()) => {
                self.loaded.generation += 1;
                self.loaded.when = Some(clock::wall());
                self.loaded.problem.clear();
                self.readiness.set("policy", self.nothing_read());
                self.metrics.policy(self.loaded.generation);
                self.metrics.reload(Reload::Applied);
                tracing::info!(generation = self.loaded.generation, "the snapshot is in force");
            }
            Err(error) => self.not_loaded(format!("{error:#}")),
        }
    }

    /// Why there is no policy at all, if the snapshot as a whole could not be read and nothing of an earlier one is known.
    fn nothing_read(&self) -> Vec<String> {
        let nothing = self.world.as_ref().is_some_and(|world| world.pods.is_empty());
        if nothing && !self.snapshot.is_readable() {
            return vec![format!("snapshot: {} can't be read: nothing passes", self.config.snapshot.display())];
        }
        Vec::new()
    }

    /// What was in force stays so.
    fn not_loaded(&mut self, why: String) {
        if self.loaded.problem != why {
            tracing::error!("the snapshot is not in force, the last good one is: {why}");
        }
        self.metrics.reload(Reload::Failed);
        self.readiness.set("policy", vec![format!("snapshot: {why}")]);
        self.loaded.problem = why;
        self.loaded.hash = None;
    }

    fn report(&mut self, snapshot: &Snapshot) {
        for refusal in &snapshot.refusals {
            let Refusal { object, place, text, .. } = refusal;
            tracing::warn!("{object}: refused: {place}: {text}; {}", refusal.stands());
        }
        let count =
            |stands: Stands| snapshot.refusals.iter().filter(|refusal| refusal.stands() == stands).count() as u64;
        self.metrics.refused(count(Stands::Kept), count(Stands::Shut), count(Stands::Rest));
        self.metrics.skipped(snapshot.skipped as u64);
        self.loaded.refusals.clone_from(&snapshot.refusals);
        self.loaded.skipped = snapshot.skipped as u64;
    }

    async fn put_in_force(&mut self, snapshot: Snapshot) -> anyhow::Result<()> {
        let mut world = snapshot.world;
        settle(&mut world, &self.config);
        if let Some(sidecar) = &self.sidecar {
            sidecar.place(&mut world, &self.config);
        }
        self.follow_pods(&mut world).await;
        // Between its parts: whoever came meanwhile does not wait for the rest as well.
        if self.discovery.is_some() {
            self.catch_up().await;
            self.publish_what_was_found().await;
        }
        let mut change = self.compile(&world);
        if self.discovery.is_some() {
            self.catch_up().await;
            self.compile_rest(&mut change);
        }
        self.state.last_good = snapshot.last_good;
        self.place_endpoints(&world);
        let mut own = self.own_addresses().await.context("listing addresses")?;
        if self.steer(&change, &world, &own).await? {
            own = self.netlink.addresses().await.context("listing addresses")?;
            // Of an address that we added no event comes to us.
            if self.addresses.is_some() {
                self.has_addresses(own.iter().copied().collect());
            }
        }
        self.add_own_addresses(&mut change, &own);
        let held = match self.held.take() {
            Some(held) => held,
            None => self.kernel.peer_rows()?,
        };
        change.moves = Moves::between(&held, &change.peers);
        self.number(&mut change);
        // Before the kernel uses a number or a bit: old and new meanings, for both may stand in it.
        self.remember(&change, true)?;
        let kernel = self.kernel.clone();
        let limit = self.config.enforcement.flows_per_endpoint;
        let idle_grace = self.config.dns.idle_connection_grace_period;
        let (max_flows, max_fragments) = (self.config.enforcement.max_flows, kernel.tables.fragments.capacity());
        let flows = FlowLimits::new(max_flows, max_fragments, self.endpoints.len(), limit, idle_grace);
        kernel.set_limits(flows, proxy_ports(&self.config))?;
        let on_the_way = change.ways.values().flat_map(|way| way.adding.iter().chain(&way.clearing));
        for (policy_id, rules) in change.fresh.iter().chain(on_the_way) {
            kernel.write_rules(*policy_id, rules).context("writing a rule set")?;
        }
        self.world = Some(Arc::new(world));
        let own: Vec<IpAddr> = own.into_iter().map(|address| address.1).collect();
        self.publish_with(own.clone());
        let mut failed = None;
        let ways = std::mem::take(&mut change.ways);
        let changed =
            kernel.change_rows(&change.in_place, &change.moves, || failed = self.flip_all(&change, ways), || ());
        if let Err(error) = changed {
            // Each of their rows is as it was or as it will be: the next reload writes them under a new number.
            for key in &change.again {
                self.endpoints.entry(key.clone()).and_modify(|endpoint| endpoint.unsure = true);
            }
            return Err(error).context("changing rows in place");
        }
        for (key, rules) in &change.rules {
            if change.fresh_number(rules).is_some() {
                continue;
            }
            let judge_again = change.again.contains(key) || self.is_moved(key, rules, &change, &held);
            if !judge_again && self.endpoints.get(key).is_some_and(|endpoint| self.is_in_force(endpoint, rules)) {
                continue;
            }
            if let Err(error) = self.flip(key, Way::default(), (None, rules), judge_again) {
                failed = Some(error);
            }
        }
        self.close_the_unknown(&change.rules);
        kernel.set_steering(self.steered_pairs(), proxy_ports(&self.config))?;
        self.remember(&change, false)?;
        if !change.fresh.is_empty() {
            self.upkeep.rules_due();
        }
        self.held = Some(std::mem::take(&mut change.peers));
        self.publish_with(own);
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Whether an address that moved means something else to an endpoint now, though none of its own rows changed.
    fn is_moved(&self, key: &str, rules: &Arc<RuleSet>, change: &Change, held: &PeerRows) -> bool {
        let Some(old) = self.endpoints.get(key).and_then(|endpoint| endpoint.rules.as_ref()) else { return false };
        let peer = |rows: &PeerRows, address| rows.get(&address).copied();
        rules.selected
            && change
                .moves
                .addresses()
                .any(|address| !rules.mean_the_same(old, address, peer(&change.peers, address), peer(held, address)))
    }

    /// Every address of this machine is the host's, whatever its Node object lists: a CIDR rule opens none. The proxy's
    /// local addresses are nobody's.
    fn add_own_addresses(&self, change: &mut Change, own: &[(u32, IpAddr, u8)]) {
        let peers = &mut change.peers;
        if let Some(hosts) = self.hosts() {
            for address in hosts {
                peers.entry(*address).or_insert(PeerId::HOST);
            }
            return;
        }
        for (_, address, _) in own {
            let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            if !address.is_loopback() && !link_local {
                peers.entry(*address).or_insert(PeerId::HOST);
            }
        }
        peers.extend(self.steering.pairs.iter().map(|(_, local)| (*local, PeerId::STEERING)));
    }

    /// Rule sets for every endpoint that can have one; problems stay with the endpoint, which keeps its old rules.
    fn compile(&mut self, world: &World) -> Change {
        self.kept.next(world, &mut self.state.peers);
        let mut change = Change { peers: (**self.kept.peers()).clone(), ..Change::default() };
        self.compile_rest(&mut change);
        change
    }

    /// What endpoints have become meanwhile: rule sets for those that are new, none of those that are no more.
    fn compile_rest(&mut self, change: &mut Change) {
        let is_there =
            |key: &String, id: &EndpointId| self.endpoints.get(key).is_some_and(|endpoint| endpoint.id == *id);
        change.compiled.retain(|key, id| is_there(key, id));
        change.rules.retain(|key, _| change.compiled.contains_key(key));
        for (key, endpoint) in &mut self.endpoints {
            if change.compiled.contains_key(key) {
                continue;
            }
            change.compiled.insert(key.clone(), endpoint.id);
            let history = self.state.endpoints.get(key).map_or(&[][..], |state| &state.groups);
            match self.kept.rules(&endpoint.pod, history) {
                Ok(rules) => {
                    endpoint.rules_problem.clear();
                    change.rules.insert(key.clone(), rules);
                }
                Err(error) => {
                    let problem = error.to_string();
                    if endpoint.rules_problem != problem {
                        tracing::error!(pod = key, "{problem}");
                        endpoint.rules_problem = problem;
                    }
                }
            }
        }
    }

    /// Decides under which number each rule set stands: under that of its endpoint, if its rows are the same or can be
    /// changed in place, else under a fresh one.
    fn number(&mut self, change: &mut Change) {
        let mut users: BTreeMap<u32, Vec<(&String, &Endpoint)>> = BTreeMap::new();
        for (key, endpoint) in &self.endpoints {
            if endpoint.rules.is_some() {
                users.entry(endpoint.policy_id).or_default().push((key, endpoint));
            }
        }
        let mut stay: BTreeSet<&String> = BTreeSet::new();
        for (policy_id, users) in users {
            // From what is in force to what will be; none where that is not known.
            let ways: Vec<Option<(&Arc<RuleSet>, &Arc<RuleSet>)>> = users
                .iter()
                .map(|(key, endpoint)| endpoint.rules.as_ref().filter(|_| !endpoint.unsure).zip(change.rules.get(*key)))
                .collect();
            let same = |way: Option<(&Arc<RuleSet>, &Arc<RuleSet>)>| way.is_some_and(|(old, new)| same_rows(old, new));
            let changed = ways.iter().any(|way| !same(*way));
            let alike = |one: (&Arc<RuleSet>, &Arc<RuleSet>)| {
                ways.iter().all(|way| way.is_some_and(|(old, new)| same_rows(old, one.0) && same_rows(new, one.1)))
            };
            if changed
                && let Some(Some(one)) = ways.first().copied()
                && alike(one)
                && let Some(rows) = RowChange::between(policy_id, one.0, one.1, &change.moves)
            {
                change.in_place.push(rows);
                change.again.extend(users.iter().map(|(key, _)| (*key).clone()));
                stay.extend(users.iter().map(|(key, _)| *key));
            } else {
                stay.extend(users.iter().zip(&ways).filter(|(_, way)| same(**way)).map(|((key, _), _)| *key));
            }
        }
        let rest: Vec<String> = change.rules.keys().filter(|key| !stay.contains(key)).cloned().collect();
        for key in rest {
            let rules = change.rules[&key].clone();
            let twin = change.fresh.iter().find(|(_, fresh)| same_rows(fresh, &rules)).map(|fresh| fresh.1.clone());
            let rules = match twin {
                Some(twin) => twin,
                None => {
                    // A set of its own: another endpoint may have the same one under an old number.
                    let own = Arc::new((*rules).clone());
                    self.state.last_policy_id += 1;
                    change.fresh.push((self.state.last_policy_id, own.clone()));
                    own
                }
            };
            if let Some(old) = self.endpoints.get(&key).and_then(|endpoint| endpoint.rules.clone()) {
                let mut numbered = |rules: RuleSet| {
                    self.state.last_policy_id += 1;
                    (self.state.last_policy_id, Arc::new(rules))
                };
                let adding = transition(&old, &rules).map(&mut numbered);
                let clearing = transition(&rules, &old).map(&mut numbered);
                change.ways.insert(key.clone(), Way { adding, clearing });
            }
            change.rules.insert(key, rules);
        }
    }

    /// Where each endpoint is, as its Pod object says.
    fn place_endpoints(&mut self, world: &World) {
        for endpoint in self.endpoints.values_mut() {
            let Some(pod) = world.pods.get(&endpoint.pod) else { continue };
            endpoint.addresses.clone_from(if endpoint.given.is_empty() { &pod.addresses } else { &endpoint.given });
            let differs = |address: &IpAddr| !endpoint.also.iter().any(|also| also.addresses.contains(address));
            let other = pod.addresses.iter().find(|address| !endpoint.given.contains(address) && differs(address));
            if let Some(other) = other.filter(|_| !endpoint.given.is_empty()) {
                endpoint.rules_problem = format!(
                    "status.podIPs of pod {} has {other}, which the CNI's cache has not: it is not let through",
                    endpoint.pod
                );
            } else if endpoint.addresses.is_empty() {
                endpoint.rules_problem = format!("pod {} has no status.podIPs: nothing passes", endpoint.pod);
            } else if endpoint.addresses.len() > ADDRESSES {
                endpoint.rules_problem = format!(
                    "pod {} has {} addresses; the first {ADDRESSES} are let through",
                    endpoint.pod,
                    endpoint.addresses.len()
                );
                endpoint.addresses.truncate(ADDRESSES);
            }
        }
    }

    /// Gives every resolver that a rule names a local address, before any rule steers to it. `own`: this machine's addresses.
    /// Whether it has others now.
    async fn steer(&mut self, change: &Change, world: &World, own: &[(u32, IpAddr, u8)]) -> anyhow::Result<bool> {
        let named = change.rules.values().filter(|rules| rules.steered());
        let asked = named.flat_map(|rules| rules.resolvers()).filter(|(_, _, ports)| ports.holds(53));
        let of_pods = change.rules.iter().filter(|(_, rules)| rules.steered()).filter_map(|(key, _)| {
            let pod = &self.endpoints.get(key)?.pod;
            Some(world.pods.get(pod)?.nameservers.iter().copied())
        });
        let there: BTreeSet<EndpointId> = self.endpoints.values().map(|endpoint| endpoint.id).collect();
        let pool = match self.config.dns.unknown_resolvers {
            UnknownResolvers::Pool => self.pool.servers(|id| there.contains(&id)).collect(),
            UnknownResolvers::Drop => Vec::new(),
        };
        let can_be = |address: &IpAddr| steering::can_be_resolver(*address);
        let mut resolvers: BTreeSet<IpAddr> = asked
            .map(|(address, _, _)| address)
            .chain(self.config.dns.resolvers.iter().copied())
            .chain(cluster_dns(world))
            .filter(can_be)
            .collect();
        let others: BTreeSet<IpAddr> = of_pods.flatten().chain(pool).filter(can_be).collect();
        if self.sidecar.is_some() {
            self.answer_locally(&resolvers, change.rules.values().next().map(|rules| &**rules), world);
            return Ok(false);
        }
        let ours: BTreeSet<IpAddr> = self.state.resolvers.values().copied().collect();
        let node_cache = own.iter().any(|address| address.1 == steering::NODE_LOCAL_DNS);
        if node_cache {
            resolvers.insert(steering::NODE_LOCAL_DNS);
        }
        let taken = own.iter().map(|address| address.1).filter(|address| !ours.contains(address)).collect();
        let mut steering = steering::assign(&resolvers, &others, &mut self.state.resolvers, &taken, &self.config.dns);
        steering.node_cache = node_cache;
        let behind = world.slices_of("kube-system", "kube-dns").flat_map(|slice| &slice.endpoints);
        steering.servers = behind.flat_map(|(addresses, _)| addresses.iter().copied()).collect();
        steering.servers.extend(self.config.dns.resolvers.iter().copied());
        for problem in &steering.problems {
            tracing::warn!("{problem}");
        }
        let is_there = |local: &IpAddr| own.iter().any(|(index, address, _)| (index, address) == (&LOOPBACK, local));
        let added: Vec<IpAddr> =
            steering.pairs.iter().map(|(_, local)| *local).filter(|local| !is_there(local)).collect();
        for local in &added {
            self.netlink.add_local(*local).await.with_context(|| format!("adding {local} to lo"))?;
        }
        let old = std::mem::replace(&mut self.steering, steering);
        // Old and new pairs together until the flip is over.
        let mut both: Vec<(IpAddr, IpAddr)> = self.steering.pairs.clone();
        both.extend(old.pairs.into_iter().filter(|pair| !self.steering.pairs.contains(pair)));
        self.kernel.set_steering(&both, proxy_ports(&self.config))?;
        Ok(!added.is_empty())
    }

    /// What the kernel's programs steer: nothing beside a workload.
    fn steered_pairs(&self) -> &[(IpAddr, IpAddr)] {
        if self.sidecar.is_some() { &[] } else { &self.steering.pairs }
    }

    /// Writes the state. `both`: a bit may stand for what it was and for what it will be.
    fn remember(&mut self, change: &Change, both: bool) -> anyhow::Result<()> {
        for (key, rules) in &change.rules {
            let Some(endpoint) = self.endpoints.get(key) else { continue };
            let Endpoint { id, slot, policy_id, generation, .. } = *endpoint;
            let interface = &endpoint.interface;
            let new =
                || EndpointState { id, interface: interface.clone(), slot, policy_id, generation, groups: Vec::new() };
            if !self.state.endpoints.contains_key(key) {
                self.state.endpoints.insert(key.clone(), new());
            }
            let Some(entry) = self.state.endpoints.get_mut(key) else { continue };
            (entry.id, entry.slot, entry.policy_id, entry.generation) = (id, slot, policy_id, generation);
            if entry.interface != *interface {
                entry.interface.clone_from(interface);
            }
            if entry.groups != rules.groups {
                let old = std::mem::take(&mut entry.groups);
                entry.groups = if both { merged(old, &rules.groups) } else { rules.groups.clone() };
            }
        }
        let unwritten = || format!("writing the state to {}", self.config.state_dir.display());
        self.journal.say(&self.state.last_good).with_context(unwritten)?;
        if self.written.as_ref().is_some_and(|written| self.state.is_as(written)) {
            return Ok(());
        }
        self.written = None;
        state::write(&self.config.state_dir, &self.state).with_context(unwritten)?;
        self.written = Some(self.state.clone());
        Ok(())
    }
}

/// What the operator says of the world, beside the snapshot.
pub fn settle(world: &mut World, config: &Config) {
    world.own_node = Some(config.node_name.clone());
    world.cluster.clone_from(&config.cluster_name);
    world.enforcement = config.policy.enforcement;
    world.mode = if config.policy.audit { Mode::Audit } else { Mode::Enforce };
    world.own_modes = config.policy.mode_annotation;
}

impl Change {
    /// The fresh number of a rule set, if it has one.
    pub(super) fn fresh_number(&self, rules: &Arc<RuleSet>) -> Option<u32> {
        self.fresh.iter().find(|(_, fresh)| Arc::ptr_eq(fresh, rules)).map(|fresh| fresh.0)
    }
}

/// The kernel holds the same for both.
fn same_rows(old: &Arc<RuleSet>, new: &Arc<RuleSet>) -> bool {
    if Arc::ptr_eq(old, new) {
        return true;
    }
    let RuleSet { peers, services, cidrs, ports, groups, names, dns, dns_denied, deny_egress_by, known: _, .. } =
        &**old;
    let flags = |set: &RuleSet| (set.selected, set.audit, set.deny_egress, set.deny_ingress);
    flags(old) == flags(new)
        && (peers, services, cidrs) == (&new.peers, &new.services, &new.cidrs)
        && (ports, groups, names) == (&new.ports, &new.groups, &new.names)
        && (dns, dns_denied, deny_egress_by) == (&new.dns, &new.dns_denied, &new.deny_egress_by)
}

/// Each bit with every name that it may have been learned for.
fn merged(old: Vec<Group>, new: &[Group]) -> Vec<Group> {
    let mut groups: BTreeMap<u8, Group> = old.into_iter().map(|group| (group.bit, group)).collect();
    for group in new {
        match groups.get_mut(&group.bit) {
            Some(there) if there.key == group.key => {
                let names: BTreeSet<String> = there.names.iter().chain(&group.names).cloned().collect();
                there.names = names.into_iter().collect();
            }
            _ => drop(groups.insert(group.bit, group.clone())),
        }
    }
    groups.into_values().collect()
}

fn proxy_ports(config: &Config) -> ProxyPorts {
    ProxyPorts { dns: config.dns.port, tls: config.dns.tls_port }
}

/// The addresses of the cluster's own resolver: the Service that every distribution calls kube-dns.
pub fn cluster_dns(world: &World) -> Vec<IpAddr> {
    let service = world.services.get(&("kube-system".to_owned(), "kube-dns".to_owned()));
    service.map_or_else(Vec::new, |service| service.addresses.iter().copied().collect())
}
