//! Puts rule sets in force, endpoint by endpoint, and tells the proxy and those who watch.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use super::explain::{Seen, surroundings_with};
use super::node::{Endpoint, Node};
use super::reload::{Change, Way, cluster_dns};
use super::steering;
use crate::clock;
use crate::config::{Config, RejectCode, Servers};
use crate::engine::endpoint::{EndpointId, PodRef};
use crate::engine::explain::Surroundings;
use crate::engine::fqdn::{Caps, FqdnTable, Timing};
use crate::engine::grant::GrantWrite;
use crate::engine::guard::Guard;
use crate::engine::lifetime::Ceilings;
use crate::engine::name::Name;
use crate::engine::ruleset::RuleSet;
use crate::engine::world::{Search, World};
use crate::kernel::{GrantStore, KernelError};
use crate::observe::Known;
use crate::serve::{self, Directory, Resolver, Served, Settings};
use crate::upstream::route::{Route, Routes};

/// What those who watch and the guard make of a world.
pub(super) struct Sight {
    world: Arc<World>,
    /// This machine's addresses.
    own: Vec<IpAddr>,
    numbers: BTreeMap<PodRef, EndpointId>,
    known: Arc<Known>,
    addresses: Arc<HashSet<IpAddr>>,
}

impl Node {
    /// Puts rule sets in force that stand under fresh numbers; the last failure.
    pub(super) fn flip_all(&mut self, change: &Change, mut ways: BTreeMap<String, Way>) -> Option<KernelError> {
        let mut failed = None;
        for (key, rules) in &change.rules {
            let Some(policy_id) = change.fresh_number(rules) else { continue };
            let way = ways.remove(key).unwrap_or_default();
            if let Err(error) = self.flip(key, way, (Some(policy_id), rules), false) {
                failed = Some(error);
            }
        }
        failed
    }

    /// Whether kernel and proxy know an endpoint with these very rules, as it is now.
    pub(super) fn is_in_force(&self, endpoint: &Endpoint, rules: &Arc<RuleSet>) -> bool {
        self.is_written(endpoint) && endpoint.rules.as_ref().is_some_and(|old| Arc::ptr_eq(old, rules))
    }

    /// Whether the kernel has the rows of an endpoint as it is now.
    fn is_written(&self, endpoint: &Endpoint) -> bool {
        let row = |at| endpoint.row(Some(at), self.config.enforcement.reject, &self.steering.servers);
        let known = endpoint.attachment.is_none_or(|at| endpoint.written.as_ref() == Some(&row(at)));
        let of_also = |also| endpoint.row_of(also, self.config.enforcement.reject, &self.steering.servers);
        known && endpoint.also.iter().all(|also| also.written.as_ref() == Some(&of_also(also)))
    }

    /// Puts the new rules of one endpoint in force. Without a policy number the rows are as they were, and only what the
    /// proxy knows is new.
    ///
    /// `judge_again`: rows changed in place, and what flows is judged by them.
    pub(super) fn flip(
        &mut self,
        key: &str,
        way: Way,
        new: (Option<u32>, &Arc<RuleSet>),
        judge_again: bool,
    ) -> Result<(), KernelError> {
        let (kernel, reject) = (self.kernel.clone(), self.config.enforcement.reject);
        let Some(endpoint) = self.endpoints.get_mut(key) else { return Ok(()) };
        let (policy_id, rules) = new;
        let servers = &self.steering.servers;
        let served = endpoint.served.clone();
        let mut table = served.as_ref().map(|served| served.table());
        if let Some(adding) = way.adding {
            endpoint.put(adding, &kernel, reject, servers)?;
        }
        let mut narrowed = None;
        let same_names = policy_id.is_none()
            && endpoint.rules.as_ref().is_some_and(|old| (&old.names, &old.groups) == (&rules.names, &rules.groups));
        if let Some(table) = table.as_mut().filter(|_| same_names) {
            table.rules_changed();
        } else if let Some(table) = &mut table {
            let regroup = table.regroup(rules, &self.state.endpoints[key].groups, clock::mono());
            match kernel.install(endpoint.id, regroup.widened.writes()) {
                Ok(()) => table.record(regroup.widened),
                Err(error) => return Err(start_anew(&*kernel, endpoint, table, error)),
            }
            narrowed = Some(regroup.narrowed);
        }
        let last = (policy_id.unwrap_or(endpoint.policy_id), rules.clone());
        if policy_id.is_some() || judge_again {
            endpoint.generation = endpoint.generation.wrapping_add(1);
        }
        if policy_id.is_some() {
            endpoint.unsure = false;
        }
        let cleared_under = way.clearing.unwrap_or_else(|| last.clone());
        let mut once_more = cleared_under.0 != last.0;
        let mut failed = None;
        endpoint.put(cleared_under, &kernel, reject, servers)?;
        if let Some(served) = &served {
            served.rules.store(rules.clone());
        }
        if let (Some(table), Some(narrowed)) = (&mut table, narrowed) {
            once_more |= policy_id.is_some() && !narrowed.writes().is_empty();
            match kernel.install(endpoint.id, narrowed.writes()) {
                Ok(()) => table.record(narrowed),
                // What moved since the flip is judged again all the same, without any grant.
                Err(error) => failed = Some(start_anew(&*kernel, endpoint, table, error)),
            }
        }
        if once_more {
            // A flow that moved since the flip was judged by bits that are gone now: it is judged again.
            endpoint.generation = endpoint.generation.wrapping_add(1);
            endpoint.put(last, &kernel, reject, servers)?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Endpoints whose pod is not in the snapshot, or which have no address: nothing passes.
    pub(super) fn close_the_unknown(&mut self, compiled: &BTreeMap<String, Arc<RuleSet>>) {
        let world = self.world.clone();
        let is_known = |key: &String, endpoint: &Endpoint| {
            let there = world.as_ref().is_some_and(|world| world.pods.contains_key(&endpoint.pod));
            compiled.contains_key(key) || (there && endpoint.rules.is_some())
        };
        let is_closed = |endpoint: &Endpoint| {
            endpoint.rules.is_none() && endpoint.addresses.is_empty() && self.is_written(endpoint)
        };
        let unknown = self.endpoints.iter().filter(|(key, endpoint)| !is_known(key, endpoint) && !is_closed(endpoint));
        for key in unknown.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            let Some(endpoint) = self.endpoints.get_mut(&key) else { continue };
            endpoint.rules = None;
            endpoint.addresses.clear();
            if let Err(error) = endpoint.write_row(&self.kernel, self.config.enforcement.reject, &self.steering.servers)
            {
                tracing::error!(
                    pod = key,
                    error = &error as &dyn std::error::Error,
                    "the endpoint could not be closed"
                );
            }
        }
    }

    /// Lets the proxy and those who watch know who is there.
    pub async fn publish(&mut self) {
        let addresses = self.own_addresses().await.unwrap_or_default();
        self.publish_with(addresses.into_iter().map(|address| address.1).collect());
    }

    /// The same where this machine's addresses are known.
    pub(super) fn publish_with(&mut self, mut own: Vec<IpAddr>) {
        let Some(world) = self.world.clone() else { return };
        let caps = caps(&self.config);
        let (mut people, mut tables, mut searches) = (HashMap::new(), Vec::new(), HashMap::new());
        for endpoint in self.endpoints.values_mut() {
            let (interface, bridge) = endpoint.attachment.map_or((0, None), |at| (at.ifindex, at.bridge));
            let own = world.pods.get(&endpoint.pod).map(|pod| &pod.search).cloned().unwrap_or_default();
            let domain = &self.config.dns.cluster_domain;
            let search = searches
                .entry((endpoint.pod.namespace.clone(), own))
                .or_insert_with_key(|(namespace, own)| search_of(namespace, domain, own));
            let is_as_it_was = |served: &Served| {
                (served.interface, served.bridge) == (interface, bridge)
                    && served.addresses == endpoint.addresses
                    && served.search == *search
            };
            let served = match &endpoint.served {
                Some(served) if is_as_it_was(served) => served.clone(),
                Some(served) => {
                    let (addresses, search) = (endpoint.addresses.clone(), search.clone());
                    Arc::new(Served { addresses, interface, bridge, search, ..(**served).clone() })
                }
                None => {
                    let (id, pod, addresses) = (endpoint.id, endpoint.pod.clone(), endpoint.addresses.clone());
                    let rules = endpoint.rules.clone().unwrap_or_else(|| Arc::new(closed_rules()));
                    let served = Served::new(id, pod, addresses, interface, rules, caps);
                    let names = Arc::new(Mutex::new(std::mem::take(&mut endpoint.adopted)));
                    Arc::new(Served { bridge, search: search.clone(), names, ..served })
                }
            };
            served.table().set_caps(caps);
            tables.push((endpoint.id, served.names.clone()));
            people.insert(endpoint.id, (served.clone(), endpoint.interface.clone()));
            endpoint.served = Some(served);
        }
        self.people.know(people);
        self.checkpoint.know(tables);
        // A gateway's address may be on every pod's interface.
        own.sort_unstable();
        own.dedup();
        let (known, addresses) = self.see(&world, &own);
        self.watchers.know(known);
        let guard = guard_of(&self.config, &world, own, addresses);
        let surroundings = surroundings_with(&self.config, &world, guard.clone());
        let proxied = self.steering.pairs.iter().map(|(resolver, _)| *resolver).collect();
        self.people.see(Seen { world: world.clone(), surroundings: Surroundings { proxied, ..surroundings } });
        let trusted: HashSet<IpAddr> = self.config.dns.resolvers.iter().copied().chain(cluster_dns(&world)).collect();
        let cluster = cluster_dns(&world).into_iter().find(IpAddr::is_ipv4).map(|address| SocketAddr::new(address, 53));
        let resolvers = self.steering.pairs.iter().map(|(resolver, local)| {
            let is_node_local = self.steering.node_cache && *resolver == steering::NODE_LOCAL_DNS;
            let known = Resolver::new(SocketAddr::new(*resolver, 53), is_node_local || trusted.contains(resolver));
            (*local, known.in_stead_of(cluster.filter(|_| is_node_local)))
        });
        let endpoints = self.endpoints.values().filter(|endpoint| endpoint.attachment.is_some());
        let endpoints = endpoints.flat_map(|endpoint| {
            let on_others = endpoint.also.iter().filter_map(|also| {
                let (interface, bridge) = (also.at.ifindex, also.at.bridge);
                let served = endpoint.served.as_deref()?.clone();
                Some(Arc::new(Served { addresses: also.addresses.clone(), interface, bridge, ..served }))
            });
            on_others.chain(endpoint.served.clone())
        });
        let endpoints = endpoints.map(|served| match &self.sidecar {
            Some(sidecar) => sidecar.as_seen_inside(&served),
            None => served,
        });
        let mut directory = Directory::new(settings(&self.config), guard, endpoints, resolvers);
        directory.routes = routes(&self.config);
        self.directory.store(Arc::new(directory));
    }

    /// What is seen of a world: made once, and from that of the world before where little changed.
    fn see(&mut self, world: &Arc<World>, own: &[IpAddr]) -> (Arc<Known>, Arc<HashSet<IpAddr>>) {
        let numbers = self.endpoints.values().map(|endpoint| (endpoint.pod.clone(), endpoint.id));
        let numbers: BTreeMap<PodRef, EndpointId> = numbers.collect();
        let number = |pod: &PodRef| numbers.get(pod).copied();
        let seen = match self.seen.take() {
            Some(seen) if Arc::ptr_eq(&seen.world, world) && seen.own == own && seen.numbers == numbers => seen,
            last => {
                let next = last.as_ref().and_then(|seen| {
                    let is_other = |(pod, id): &(&PodRef, &EndpointId)| {
                        (seen.numbers.get(pod), numbers.get(pod)) != (Some(id), Some(id))
                    };
                    let renumbered = seen.numbers.iter().chain(&numbers).filter(is_other).map(|(pod, _)| pod.clone());
                    seen.known.next((&seen.world, world), self.kept.holders(), &renumbered.collect(), number)
                });
                let mut known = next.unwrap_or_else(|| Known::of_world(world, number));
                let of_world = last.filter(|seen| Arc::ptr_eq(&seen.world, world)).map(|seen| seen.addresses);
                let addresses = of_world.unwrap_or_else(|| Arc::new(addresses(world)));
                if known.own.len() != own.len() || !own.iter().all(|address| known.own.contains(address)) {
                    known.own = Arc::new(own.iter().copied().collect());
                }
                Sight { world: world.clone(), own: own.to_vec(), known: Arc::new(known), addresses, numbers }
            }
        };
        let seen = self.seen.insert(seen);
        (seen.known.clone(), seen.addresses.clone())
    }
}

impl Sight {
    /// Whether it is an address of the cluster or of this machine.
    pub fn is_inside(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || self.own.contains(&address)
    }
}

/// A directory before the first snapshot: nobody is served.
pub(super) fn empty_directory(config: &Config) -> Directory {
    Directory::new(settings(config), Guard::new(Vec::new(), config.dns.cluster_domain.clone()), [], [])
}

/// The kernel did not take a change of grants: all of them go, and names are learned anew. Closed, never open.
fn start_anew(kernel: &impl GrantStore, endpoint: &Endpoint, table: &mut FqdnTable, error: KernelError) -> KernelError {
    let gone = |address| GrantWrite { address, slots: Default::default() };
    let writes: Vec<GrantWrite> = table.rows().map(|row| gone(row.address)).collect();
    if let Err(error) = kernel.install(endpoint.id, &writes) {
        tracing::error!(pod = %endpoint.pod, error = &error as &dyn std::error::Error, "grants stay until their deadlines");
    }
    table.clear();
    error
}

/// What holds for an endpoint without rules: nothing may be asked.
fn closed_rules() -> RuleSet {
    RuleSet { selected: true, deny_egress: true, deny_ingress: true, ..RuleSet::unselected() }
}

/// How much one workload can hold.
pub fn caps(config: &Config) -> Caps {
    Caps {
        addresses_per_name: config.dns.endpoint_max_ip_per_hostname as usize,
        deferred: config.dns.max_deferred_connection_deletes as usize,
        grants: config.enforcement.grants_per_endpoint as usize,
        ..Caps::default()
    }
}

/// What the proxy serves by.
pub fn settings(config: &Config) -> Settings {
    Settings {
        timing: Timing { min_ttl: config.dns.min_ttl, grace: config.dns.grace },
        upstream_timeout: config.dns.upstream_timeout,
        reject: match config.dns.reject_response_code {
            RejectCode::Refused => serve::RejectCode::Refused,
            RejectCode::NameError => serve::RejectCode::NameError,
        },
        compression: config.dns.enable_dns_compression,
        ceilings: Ceilings {
            ttl: config.cache.max_ttl.as_secs() as u32,
            negative: config.cache.max_negative_ttl.as_secs() as u32,
        },
        serve_stale: config.cache.serve_stale,
        prefetch: config.dns.prefetch,
        poller: config.dns.poller,
        background_queries_per_second: config.dns.background_queries_per_second,
        queries_per_second: config.dns.queries_per_second,
        queries_in_flight: config.dns.queries_in_flight,
        tcp_connections: config.dns.tcp_connections,
        tcp_connections_total: config.dns.tcp_connections_total,
        ..Settings::default()
    }
}

/// Whom the operator put in place of the resolvers that workloads ask.
pub fn routes(config: &Config) -> Routes {
    let suffixes = config.dns.suffix_upstreams.iter().map(|(suffix, servers)| {
        let route = match servers {
            Servers::Asked => None,
            Servers::Listed(servers) => Route::among(servers),
        };
        (suffix.clone(), route)
    });
    Routes::new(Route::among(&config.dns.upstreams), suffixes.collect())
}

/// What no name may stand for, by what the operator set and what the cluster has.
pub fn guard(config: &Config, world: &World, own: Vec<IpAddr>) -> Guard {
    guard_of(config, world, own, Arc::new(addresses(world)))
}

fn guard_of(config: &Config, world: &World, mut own: Vec<IpAddr>, cluster: Arc<HashSet<IpAddr>>) -> Guard {
    if let Some(node) = world.nodes.get(&config.node_name) {
        own.extend(&node.addresses);
    }
    let mut guard = Guard::new(own, config.dns.cluster_domain.clone()).with_addresses(cluster);
    for network in &config.dns.guard.allow {
        guard.allow(*network);
    }
    for (pattern, networks) in &config.dns.guard.names {
        for network in networks {
            guard.allow_for(pattern.clone(), *network);
        }
    }
    guard
}

/// Every address of the cluster: its pods', Services' and nodes'.
fn addresses(world: &World) -> HashSet<IpAddr> {
    let pods = world.pods.values().flat_map(|pod| pod.addresses.iter());
    let services = world.services.values().flat_map(|service| service.addresses.iter());
    let nodes = world.nodes.values().flat_map(|node| node.addresses.iter());
    pods.chain(services).chain(nodes).copied().collect()
}

/// What kubelet writes into a pod's resolv.conf, but for what it takes from the node's own.
pub fn search_of(namespace: &str, domain: &Name, own: &Search) -> Vec<Name> {
    let domain = domain.to_string();
    let texts = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain];
    let cluster = texts.iter().filter(|_| !own.only_own).filter_map(|text| Name::parse(text).ok());
    cluster.chain(own.own.iter().cloned()).collect()
}
