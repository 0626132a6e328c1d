//! A node: does one thing at a time for as long as it runs: a reload, a change of an interface, the upkeep
//! of every second. Queries don't come through here; see [`crate::serve`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;

use super::adopt::Adopting;
use super::attachments::Attachment;
use super::checkpoint::{self, Checkpoint};
use super::discovery::{Also, Discovery, Told};
use super::inherit::{read_journal, read_state};
use super::journal::Journal;
use super::lock::Locks;
use super::sidecar::{self, Sidecar};
use super::start::{End, Places, warn_of_others};
use super::state::{self, State};
use super::watch::Watch;
use super::{floor, packets, publish, reload, steering, upkeep};
use crate::clock;
use crate::cluster::snapshot;
use crate::config::cilium::{self, CiliumConfig};
use crate::config::{CacheMode, Config, Inbound, Source, UnknownResolvers};
use crate::engine::compile::Kept;
use crate::engine::endpoint::{EndpointId, PodRef};
use crate::engine::fqdn::FqdnTable;
use crate::engine::grant::MonoNs;
use crate::engine::ruleset::RuleSet;
use crate::engine::world::World;
use crate::host::egress::remove as remove_egress;
use crate::host::floor::{remove_all as remove_floor, table_of};
use crate::host::links::{self, Link, Netlink};
use crate::kernel::attach::detach_all;
use crate::kernel::change::PeerRows;
use crate::kernel::events::Events;
use crate::kernel::load::{Kernel, LoadSettings, Place};
use crate::kernel::proxy::PROXY_PORTS;
use crate::kernel::rules::EndpointRow;
use crate::kernel::sweep::Budgets;
use crate::listen::{self, Listeners};
use crate::observe::Watchers;
use crate::operate::takeover::Successor;
use crate::operate::{self, Readiness, Server, Status, metrics::Metrics};
use crate::serve::cache::Cache;
use crate::serve::{Directory, Proxy, Served};
use crate::upstream::doors::Doors;
use crate::upstream::health::Registry;

/// How often time takes something away, and everything is looked at.
const UPKEEP: Duration = Duration::from_secs(1);
/// How many queries to servers that nothing names wait to be looked at.
const UNNAMED: usize = 64;
/// How long queries under way are waited for when a successor waits. What is not answered by then its client asks again.
const DRAIN_FOR_ANOTHER: Duration = Duration::from_millis(500);
/// How long records may take to be written at the end.
const LAST_RECORDS: Duration = Duration::from_secs(2);

/// A running node.
pub(super) struct Node {
    pub config: Config,
    pub source: Source,
    /// What the cluster's own configuration says.
    pub cluster: CiliumConfig,
    /// The cluster's objects, of which only what changed is read again.
    pub snapshot: snapshot::Source,
    /// The rule sets of the last world, of which only what changed is compiled again.
    pub kept: Kept,
    /// What the kernel's `peers` hold; none: to be read.
    pub held: Option<PeerRows>,
    /// What those who watch and the guard know of it.
    pub seen: Option<publish::Sight>,
    /// Where the last good version of each object is written.
    pub journal: Journal,
    /// The state as it is in its file; none: not known.
    pub written: Option<State>,
    pub proxy: Arc<Proxy>,
    pub kernel: Arc<Kernel>,
    pub budgets: Budgets,
    pub netlink: Netlink,
    /// What happens to interfaces; none: not acted on yet.
    pub link_events: Option<links::Events>,
    /// This machine's addresses, where events tell what becomes of them; none: they are to be listed.
    pub addresses: Option<BTreeSet<(u32, IpAddr, u8)>>,
    pub state: State,
    /// By `namespace/pod`.
    pub endpoints: BTreeMap<String, Endpoint>,
    pub links: BTreeMap<u32, Link>,
    /// Whose interfaces are; none: the operator named the endpoints.
    pub discovery: Option<Discovery>,
    pub ground: floor::Ground,
    /// Whose connections from before the first start go on.
    pub adopting: Adopting,
    /// What is in force; none before the first snapshot was read.
    pub world: Option<Arc<World>>,
    pub steering: steering::Steering,
    /// Servers that nothing names and a workload asked.
    pub pool: steering::Pool,
    pub directory: Arc<ArcSwap<Directory>>,
    pub watchers: Arc<Watchers>,
    pub people: packets::People,
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
    pub status: Arc<Mutex<Status>>,
    pub checkpoint: Checkpoint,
    pub loaded: reload::Loaded,
    pub upkeep: upkeep::Upkeep,
    /// How the DNS servers fare, for status and metrics.
    pub upstreams: Arc<Registry>,
    /// Where it runs beside its one workload.
    pub sidecar: Option<Sidecar>,
}

/// A workload that the operator named, or a pod that was found.
pub(super) struct Endpoint {
    pub pod: PodRef,
    pub interface: String,
    /// The configuration has named another interface since all were looked at.
    pub elsewhere: bool,
    pub mac: Option<[u8; 6]>,
    pub id: EndpointId,
    pub slot: u32,
    pub policy_id: u32,
    pub generation: u32,
    /// Until when its connections from before the first start go on, as its row has it; 0: they don't.
    pub adopt_until: u32,
    /// Rows under its policy number may be old ones or new ones: the next reload writes them under another.
    pub unsure: bool,
    /// What is in force; none: closed.
    pub rules: Option<Arc<RuleSet>>,
    pub addresses: Vec<IpAddr>,
    /// Those that the CNI gave its interface; empty: not known, those of the Pod object hold.
    pub given: Vec<IpAddr>,
    /// Further interfaces of the pod that was found.
    pub also: Vec<Also>,
    /// `metadata.uid` of the pod that was found.
    pub uid: Option<String>,
    /// Its sandbox, and when that was written down.
    pub sandbox: Option<(String, SystemTime)>,
    /// The file of its network namespace, as the CNI's cache has it.
    pub namespace: Option<PathBuf>,
    /// What the proxy knows of it; kept over reloads, for it holds what was learned.
    pub served: Option<Arc<Served>>,
    pub attachment: Option<Attachment>,
    /// Its row as the kernel has it.
    pub written: Option<EndpointRow>,
    /// What an earlier process left: grants, and their names as far as they are known. Empty once `served` has it.
    pub adopted: FqdnTable,
    /// Why its rules are not what the snapshot says, or why it is closed.
    pub rules_problem: String,
    /// Why its interface is not as it should be.
    pub link_problem: String,
    /// What is wrong with its programs, for as long as it could not be repaired.
    pub damage: String,
    /// When its programs were last seen to be as they should.
    pub looked_at: MonoNs,
}

/// Runs in the places that were taken, until somebody wants the end.
pub(super) async fn run_there(
    config: Config,
    source: Source,
    sidecar: Option<Sidecar>,
    [mut hangup, mut terminate, mut interrupt]: [Signal; 3],
    places: Places,
    mut locks: Locks,
    snapshot: snapshot::Source,
) -> anyhow::Result<End> {
    let Places { options, bound, metrics, readiness, status, people, server, mut successors } = places;
    let upstreams = options.upstreams.clone();
    let watchers = Arc::new(
        Watchers::start(&config.observe, &config.node_name, metrics.clone()).context("opening the flow file")?,
    );

    let discovers = config.endpoints.is_empty() && sidecar.is_none();
    let (netlink, link_events) =
        if discovers { links::open_with_paths() } else { links::open() }.context("opening a netlink socket")?;
    let place = match (&sidecar, config.enforcement.inbound) {
        (Some(_), _) => Place::Beside { reject_mark: random_mark()? },
        (None, Inbound::Host) => Place::Host,
        (None, Inbound::Pod) => Place::Both { inbound_mark: random_mark()? },
    };
    let settings = load_settings(&config, place);
    let fresh = !config.pin_dir.exists();
    let kernel =
        Arc::new(Kernel::open(&config.pin_dir, &settings, random_mark()?).context("loading the kernel programs")?);
    if fresh {
        locks.take_pins(&config)?;
    }
    // First of all: from here on the kernel's own sweep keeps out of what is reckoned below.
    let swept = kernel.beat()?;
    tracing::debug!(swept, "flows that were over went by themselves while no namegate ran");
    let (mut state, is_first) = read_state(&config, &kernel)?;
    let journal = read_journal(&config, &mut state)?;
    let budgets = Budgets::map(&kernel)?;
    let directory = Arc::new(ArcSwap::from_pointee(publish::empty_directory(&config)));
    let (tell_unnamed, mut unnamed) = mpsc::channel(UNNAMED);
    let teller = packets::teller(watchers.clone(), people.clone(), tell_unnamed);

    let cache = (config.dns.cache == CacheMode::On).then(|| Arc::new(Cache::new(config.cache.max_bytes)));
    let proxy = Arc::new(Proxy::new(directory.clone(), kernel.clone(), watchers.clone(), cache));
    let mut node = Node {
        proxy: proxy.clone(),
        kernel: kernel.clone(),
        budgets,
        netlink,
        link_events: None,
        addresses: None,
        state,
        endpoints: BTreeMap::new(),
        links: BTreeMap::new(),
        discovery: discovers.then(|| Discovery::new(&config)),
        ground: floor::Ground::new(&config),
        adopting: Adopting::default(),
        world: None,
        steering: steering::Steering::default(),
        pool: steering::Pool::default(),
        directory: directory.clone(),
        watchers: watchers.clone(),
        people,
        metrics,
        readiness: readiness.clone(),
        status,
        checkpoint: Checkpoint::start(&config.state_dir).context("starting the thread that writes names down")?,
        loaded: reload::Loaded::default(),
        upkeep: upkeep::Upkeep::new(settings),
        upstreams,
        snapshot,
        sidecar,
        kept: Kept::default(),
        held: None,
        seen: None,
        journal,
        written: None,
        config,
        source,
        cluster: CiliumConfig::default(),
    };
    if node.config.dns.unknown_resolvers == UnknownResolvers::Pool {
        let known: Vec<_> = node.state.resolvers.keys().copied().collect();
        node.pool.inherit(known.into_iter());
    }
    node.begin_to_adopt(is_first).await.context("looking at interfaces")?;
    node.begin_discovery().await.context("looking at interfaces and routes")?;
    node.name_endpoints();
    node.lay_floor().await;
    node.inherit().context("adopting what an earlier run left")?;
    let mut watch = Watch::start(&node.config.snapshot);
    node.reload().await;
    // What an earlier run left in force stays so until there is something to put in its place, as if nobody had started: a
    // state that can't be written would else shut everyone.
    while node.world.is_none() && node.kernel.adopted {
        node.close_what_is_new().await;
        tokio::select! {
            _ = terminate.recv() => return leave(node, locks).await,
            _ = interrupt.recv() => return leave(node, locks).await,
            Some(successor) = successors.recv() => {
                if !successor.is_gone() {
                    server.leave();
                    return Ok(step_aside(node, None, locks, successor));
                }
            }
            _ = hangup.recv() => {
                node.reload_settings();
                watch = Watch::start(&node.config.snapshot);
                node.reload().await;
            }
            () = tokio::time::sleep(UPKEEP) => node.reload().await,
        }
    }
    if let Some(sidecar) = &node.sidecar {
        node.kernel.forget_proxy_sockets()?;
        options.upstreams.leave_by(Doors::new(&sidecar.endpoint().interface, PROXY_PORTS, node.kernel.clone()));
    }
    node.resume().await;
    // Not before it is known whose queries these are: what has waited in the sockets would be taken for strangers'.
    let listeners = bound.start(&options, proxy).context("listening for queries")?;
    node.kernel.load_programs().context("loading the kernel programs")?;
    node.look_at_links().await;
    node.floor_is_of_this_run();
    // Only now: events that an earlier run left in the ring are of endpoints that are known by now.
    let events = Events::start(node.kernel.clone(), teller)?;
    node.upkeep(true).await;
    readiness.set("start", Vec::new());
    tracing::info!(endpoints = node.endpoints.len(), "namegate is running");

    node.link_events = Some(link_events);
    let mut every_second = tokio::time::interval(UPKEEP);
    every_second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let reload_at = node.discovery.as_ref().and_then(|discovery| discovery.reload_at);
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                node.reload_settings();
                watch = Watch::start(&node.config.snapshot);
                node.reload().await;
                node.look_at_links().await;
            }
            Some(successor) = successors.recv() => {
                if successor.is_gone() {
                    tracing::warn!("another namegate was to take over and is gone; this one goes on");
                } else {
                    tracing::info!("another namegate takes over");
                    server.leave();
                    drop(events);
                    return Ok(step_aside(node, Some(listeners), locks, successor));
                }
            }
            () = sidecar::changed(&mut node.sidecar) => node.read_podinfo().await,
            event = of_links(&mut node.link_events) => match event {
                Some(event) => {
                    node.link_event(event).await;
                    node.catch_up().await;
                    node.publish_what_was_found().await;
                }
                None => anyhow::bail!("the netlink socket was closed"),
            },
            told = of_cache(&mut node.discovery) => {
                node.cache_event(told).await;
                node.drain_cache().await;
                node.publish_what_was_found().await;
            }
            Some(asked) = unnamed.recv() => {
                let more = std::iter::from_fn(|| unnamed.try_recv().ok());
                node.steer_unnamed(std::iter::once(asked).chain(more)).await;
            }
            changed = watch.changed() => node.reload_if_changed(changed).await,
            () = until(reload_at) => node.reload_with_found().await,
            _ = every_second.tick() => {
                node.look_after_discovery().await;
                node.look_for_node_cache().await;
                node.upkeep(false).await;
                node.publish_what_was_found().await;
            }
        }
    }
    end(node, listeners, events, server, locks).await
}

/// What happens to an interface; where that is not acted on: nothing, ever.
async fn of_links(events: &mut Option<links::Events>) -> Option<links::Event> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

/// What becomes of a file of the CNI's cache; where pods are not looked for: nothing, ever.
async fn of_cache(discovery: &mut Option<Discovery>) -> Told {
    match discovery {
        Some(discovery) => discovery.watch.next().await,
        None => std::future::pending().await,
    }
}

/// That moment; none: never.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

async fn end(node: Node, listeners: Listeners, events: Events, server: Server, locks: Locks) -> anyhow::Result<End> {
    tracing::info!(detach = node.config.detach, "namegate ends");
    node.readiness.set("end", vec!["namegate is ending".into()]);
    listeners.stop(listen::DRAIN);
    drop(events);
    node.watchers.stop(LAST_RECORDS);
    drop(node.checkpoint); // writes once more
    drop(locks); // a file system that is in use can't be unmounted
    if node.config.detach {
        take_all_away(&node.config, &node.state, &node.netlink).await?;
    }
    drop(server);
    Ok(End::Over)
}

/// Ends for another process that has its sockets already and goes on from its state. What is in force stays.
fn step_aside(node: Node, listeners: Option<Listeners>, locks: Locks, successor: Successor) -> End {
    if let Some(listeners) = listeners {
        listeners.stop(DRAIN_FOR_ANOTHER);
    }
    let Node { checkpoint, watchers, .. } = node;
    drop(checkpoint); // writes once more
    drop(locks);
    drop(successor);
    watchers.stop(LAST_RECORDS);
    tracing::info!("another namegate has taken over");
    End::Succeeded
}

/// The end of one that never came to run.
async fn leave(node: Node, locks: Locks) -> anyhow::Result<End> {
    drop(node.checkpoint);
    drop(locks);
    if node.config.detach {
        take_all_away(&node.config, &node.state, &node.netlink).await?;
    }
    Ok(End::Over)
}

async fn take_all_away(config: &Config, state: &State, netlink: &Netlink) -> anyhow::Result<()> {
    checkpoint::remove(&config.state_dir);
    detach_all(&config.pin_dir).context("removing programs and pins")?;
    remove_floor(&table_of(&config.pin_dir)).context("removing the floor")?;
    remove_egress().context("removing the floor under what the pod sends")?;
    for local in state.resolvers.values() {
        netlink.remove_local(*local).await.context("removing a local address")?;
    }
    netlink.stop_redirecting().await.context("removing routing rules")?;
    Ok(())
}

impl Node {
    /// Gives numbers to the endpoints of the configuration, and forgets those that are not in it any more.
    pub fn name_endpoints(&mut self) {
        if self.discovery.is_some() {
            if !self.config.endpoints.is_empty() {
                tracing::warn!("endpoints are named now; until a restart pods are found as before");
            }
            return;
        }
        let mut named = BTreeMap::new();
        let own = self.sidecar.as_ref().map(Sidecar::endpoint);
        for setting in own.map_or_else(|| self.config.endpoints.clone(), |own| vec![own]) {
            let key = setting.pod.to_string();
            let mut endpoint = match self.endpoints.remove(&key) {
                Some(endpoint) => endpoint,
                None => Endpoint::new(&mut self.state, &setting.pod, self.config.enforcement.max_endpoints),
            };
            if endpoint.interface != setting.interface {
                self.let_go(&mut endpoint);
                endpoint.elsewhere |= !endpoint.interface.is_empty();
                endpoint.interface.clone_from(&setting.interface);
            }
            endpoint.mac = setting.mac;
            named.insert(key, endpoint);
        }
        for (key, mut gone) in std::mem::replace(&mut self.endpoints, named) {
            self.let_go(&mut gone);
            self.state.endpoints.remove(&key);
            tracing::info!(pod = key, interface = gone.interface, "no endpoint any more");
        }
        let known: Vec<EndpointId> = self.endpoints.values().map(|endpoint| endpoint.id).collect();
        if let Err(error) = self.kernel.delete_grants_except(&known) {
            tracing::warn!(error = &error as &dyn std::error::Error, "grants of endpoints that are no more stay");
        }
        let slots: Vec<(EndpointId, u32)> = self.endpoints.values().map(|each| (each.id, each.slot)).collect();
        if let Err(error) = self.kernel.set_slots(&slots) {
            tracing::warn!(error = &error as &dyn std::error::Error, "flows that end while namegate is dead will stay");
        }
    }

    /// The slot of an endpoint's budget.
    pub fn slot_of(&self) -> impl Fn(EndpointId) -> Option<u32> + use<> {
        let slots: BTreeMap<EndpointId, u32> = self.endpoints.values().map(|each| (each.id, each.slot)).collect();
        move |id| slots.get(&id).copied()
    }

    /// This machine's addresses, with their interface's number and prefix length.
    pub async fn own_addresses(&self) -> std::io::Result<Vec<(u32, IpAddr, u8)>> {
        match &self.addresses {
            Some(known) => Ok(known.iter().copied().collect()),
            None => self.netlink.addresses().await,
        }
    }

    /// NodeLocal DNSCache has come to this node, or left it.
    async fn look_for_node_cache(&mut self) {
        if self.sidecar.is_some() || self.world.is_none() || !self.upkeep.is_node_cache_due() {
            return;
        }
        let Ok(addresses) = self.own_addresses().await else { return };
        let is_here = addresses.iter().any(|address| address.1 == steering::NODE_LOCAL_DNS);
        if is_here != self.steering.node_cache {
            self.reload_with_found().await;
        }
    }

    /// Workloads asked servers that nothing names: from the next query on policy judges what they ask there, if that is wanted.
    async fn steer_unnamed(&mut self, asked: impl Iterator<Item = packets::Unnamed>) {
        if self.config.dns.unknown_resolvers == UnknownResolvers::Drop {
            return asked.for_each(drop);
        }
        let mut is_new = false;
        for (id, server) in asked {
            let is_there = self.endpoints.values().any(|endpoint| endpoint.id == id);
            // It would be asked from the node, whom pods and nodes let in.
            let is_inside = self.seen.as_ref().is_some_and(|seen| seen.is_inside(server));
            is_new |= is_there && !is_inside && self.pool.take(server, id);
        }
        if is_new {
            self.reload_with_found().await;
        }
    }

    /// The cluster's own configuration has changed: it holds where nothing else says what it says.
    pub(super) fn follow_cluster(&mut self, data: &BTreeMap<String, String>) {
        let found = if self.config.policy.cilium_config { cilium::read(data) } else { CiliumConfig::default() };
        if found == self.cluster {
            return;
        }
        for wrong in &found.wrong {
            tracing::warn!("cilium-config: {wrong}; it is left out");
        }
        if !found.without_setting.is_empty() {
            let keys = found.without_setting.join(", ");
            tracing::info!("cilium-config: namegate has no such setting, these mean nothing: {keys}");
        }
        for (setting, value) in &found.settings {
            tracing::info!("cilium-config: {setting} is {value} unless namegate's own configuration sets it");
        }
        self.cluster = found;
        self.reload_settings();
    }

    /// SIGHUP: the configuration first, then the snapshot.
    fn reload_settings(&mut self) {
        warn_of_others(&self.source);
        let new = match self.source.clone().with_cluster(self.cluster.settings.clone()).load() {
            Ok(new) => new,
            Err(error) => {
                tracing::warn!("the configuration is wrong, the old one stays in force:\n{error}");
                return;
            }
        };
        let differences = self.config.differences(&new);
        for difference in differences.iter().filter(|difference| difference.needs_restart) {
            tracing::warn!(setting = difference.key, "this change needs a restart; the old value stays in force");
        }
        self.config = self.config.reloaded(&new);
        if differences.iter().any(|difference| difference.key == "observe.log") {
            operate::log::set_filter(&self.config.observe.log);
        }
        self.name_endpoints();
        self.keep_floor();
    }
}

impl Endpoint {
    fn new(state: &mut State, pod: &PodRef, max_endpoints: u32) -> Endpoint {
        if let Some(known) = Endpoint::known(state, pod) {
            return known;
        }
        state.last_endpoint_id += 1;
        let taken: Vec<u32> = state.endpoints.values().map(|endpoint| endpoint.slot).collect();
        let slot = (1..=max_endpoints).find(|slot| !taken.contains(slot)).unwrap_or(max_endpoints);
        let id = EndpointId(state.last_endpoint_id);
        Endpoint::numbered(state, pod, id, slot)
    }

    /// A new one under this number, with this row of `budgets`.
    pub fn numbered(state: &mut State, pod: &PodRef, id: EndpointId, slot: u32) -> Endpoint {
        let (interface, groups) = (String::new(), Vec::new());
        let fresh = state::EndpointState { id, interface, slot, policy_id: 0, generation: 0, groups };
        state.endpoints.insert(pod.to_string(), fresh.clone());
        Endpoint::of(pod, fresh)
    }

    /// The one that an earlier run had for the pod.
    pub fn known(state: &State, pod: &PodRef) -> Option<Endpoint> {
        state.endpoints.get(&pod.to_string()).map(|known| Endpoint::of(pod, known.clone()))
    }

    /// Its interfaces: by number, with their names.
    pub fn interfaces(&self) -> impl Iterator<Item = (u32, &str)> {
        let first = self.attachment.map(|at| (at.ifindex, self.interface.as_str()));
        first.into_iter().chain(self.also.iter().map(|also| (also.at.ifindex, also.interface.as_str())))
    }

    /// The file of the network namespace that the other end of an interface of it is in, if that is known.
    pub fn namespace_of(&self, ifindex: u32) -> Option<&Path> {
        let also = self.also.iter().find(|also| also.at.ifindex == ifindex);
        also.map_or(&self.namespace, |also| &also.namespace).as_deref()
    }

    /// Whether an interface is its.
    pub fn is_on(&self, ifindex: u32) -> bool {
        self.interfaces().any(|(index, _)| index == ifindex)
    }

    fn of(pod: &PodRef, known: state::EndpointState) -> Endpoint {
        Endpoint {
            pod: pod.clone(),
            interface: known.interface,
            elsewhere: false,
            mac: None,
            id: known.id,
            slot: known.slot,
            policy_id: known.policy_id,
            generation: known.generation,
            adopt_until: 0,
            unsure: false,
            rules: None,
            addresses: Vec::new(),
            given: Vec::new(),
            also: Vec::new(),
            uid: None,
            sandbox: None,
            namespace: None,
            served: None,
            attachment: None,
            written: None,
            adopted: FqdnTable::default(),
            rules_problem: String::new(),
            link_problem: String::new(),
            damage: String::new(),
            looked_at: MonoNs::default(),
        }
    }
}

fn load_settings(config: &Config, place: Place) -> LoadSettings {
    let enforcement = &config.enforcement;
    LoadSettings {
        max_endpoints: enforcement.max_endpoints,
        max_flows: enforcement.max_flows,
        max_grants: enforcement.max_grants,
        syn_timeout: enforcement.syn_timeout,
        established_timeout: enforcement.established_timeout,
        closed_timeout: enforcement.closed_timeout,
        datagram_timeout: enforcement.udp_timeout.min(upkeep::UNANSWERED_DATAGRAM),
        datagram_both_timeout: enforcement.udp_timeout,
        events_per_second: enforcement.events_per_second,
        rejects_per_second: enforcement.events_per_second,
        place,
    }
}

/// A mark that nobody can guess: a test run with it leaves no trace, for one.
pub(super) fn random_mark() -> anyhow::Result<u32> {
    let mut octets = [0u8; 4];
    // SAFETY: four octets to fill.
    let filled = unsafe { libc::getrandom(octets.as_mut_ptr().cast(), octets.len(), 0) };
    anyhow::ensure!(filled == 4, "no random octets: {}", std::io::Error::last_os_error());
    Ok(u32::from_ne_bytes(octets).max(1))
}

/// When this process started, for status.
pub(super) fn started() -> SystemTime {
    static STARTED: std::sync::OnceLock<SystemTime> = std::sync::OnceLock::new();
    *STARTED.get_or_init(clock::wall)
}
