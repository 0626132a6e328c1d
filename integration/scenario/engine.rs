//! The engine alone as the subject of a scenario: no kernel, no socket, and a clock that the story moves.
//!
//! What serves is [`Proxy`] itself, with its cache and its background questions; the model holds grants as the kernel's
//! map does, and asks [`RuleSet::evaluate`], which makes the same look-ups as the kernel programs. What only sockets can
//! tell (a forged number, port or address) never reaches it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Wanted, ResponseCode};
use hickory_proto::rr::{Name as WireName, RData, Record, RecordType};
use namegate::cluster::files::File;
use namegate::cluster::snapshot::{LastGood, OnInvalid, Refusal, assemble};
use namegate::config::{CacheMode, Config, Source};
use namegate::engine::answer::{self, Match};
use namegate::engine::bits::Bits;
use namegate::engine::compile::Compiler;
use namegate::engine::endpoint::{EndpointId, PodRef};
use namegate::engine::fqdn::{Meaning, Remembered};
use namegate::engine::grant::{GrantWrite, MonoNs, SLOTS, Slot, open_at};
use namegate::engine::guard::Guard;
use namegate::engine::query::Query;
use namegate::engine::ruleset::{Direction, Group, PacketVerdict, Protocol, RuleSet};
use namegate::engine::wire::type_text;
use namegate::engine::world::{PeerIds, World};
use namegate::kernel::{GrantStore, KernelError};
use namegate::observe::{Counted, Observer, QueryRecord};
use namegate::run::{caps, cluster_dns, guard, routes, search_of, settings, settle};
use namegate::serve::background::Memory;
use namegate::serve::cache::Cache;
use namegate::serve::{Directory, Next, Packet, Proxy, Resolver, Served};
use namegate::upstream::route::Route;
use namegate::upstream::{Reply, Resolve, UpstreamError};

use super::daemon::{compare, name_of};
use super::language::{Act, Asked, Pod, Scenario, Target};
use super::run::Subject;
use crate::lab::agent::{Answered, Forgery, Script, names, traffic};
use crate::lab::snapshot;

/// When the story begins, nanoseconds: far enough from 0, which marks an unused slot.
const START: u64 = 1_000_000_000_000;
/// How often rows are written again that are due, and background questions asked.
const UPKEEP: Duration = Duration::from_millis(250);
/// How often flows and grants are swept.
const SWEEP: Duration = Duration::from_secs(5);

thread_local! {
    /// The story's clock. Each trial has a thread of its own.
    static NOW: Cell<u64> = const { Cell::new(START) };
}

fn now() -> MonoNs {
    MonoNs(NOW.get())
}

/// The engine's parts, put together as the node does.
pub struct Model {
    config: Config,
    outside: Outside,
    files: BTreeMap<String, String>,
    alive: bool,
    last_good: LastGood,
    refusals: Vec<Refusal>,
    ids: PeerIds,
    kernel: Arc<Rows>,
    directory: Arc<ArcSwap<Directory>>,
    proxy: Proxy,
    memory: Memory,
    pods: BTreeMap<Pod, Endpoint>,
    connections: HashMap<String, (Pod, Target)>,
    /// Connections that were closed, and until when the kernel remembers them.
    closed: Vec<(Pod, IpAddr, u64)>,
    sweep_at: u64,
}

/// A pod, and what the kernel knows of it.
struct Endpoint {
    rules: Arc<RuleSet>,
    history: Vec<Group>,
    closed: bool,
    served: Arc<Served>,
    /// What a dead process had written down.
    checkpoint: Vec<Remembered>,
}

/// The kernel's map of grants.
#[derive(Default)]
struct Rows(Mutex<BTreeMap<(EndpointId, IpAddr), [Slot; SLOTS]>>);

impl GrantStore for Rows {
    fn install(&self, endpoint: EndpointId, writes: &[GrantWrite]) -> Result<(), KernelError> {
        let mut rows = self.0.lock().expect("the rows");
        for write in writes {
            if write.deletes() {
                rows.remove(&(endpoint, write.address));
            } else {
                rows.insert((endpoint, write.address), write.slots);
            }
        }
        Ok(())
    }
}

struct Nobody;

impl Observer for Nobody {
    fn query(&self, _: &Counted, _: &dyn Fn() -> QueryRecord) {}

    fn watches(&self) -> bool {
        false
    }
}

/// The name server, without its sockets: what it says to each name and type.
#[derive(Clone, Default)]
struct Outside {
    zone: Rc<RefCell<HashMap<(String, String), Script>>>,
    /// Whether the client asks over TCP.
    tcp: Rc<Cell<bool>>,
}

impl Resolve for Outside {
    async fn resolve(&self, _: &Route, query: &Query<'_>, within: Duration) -> Result<Reply, UpstreamError> {
        let (name, qtype) = (query.name.to_string(), type_text(query.qtype));
        let key = (fold(&name), qtype.clone());
        let script = self.zone.borrow().get(&key).cloned();
        let late = script.as_ref().map_or(Duration::ZERO, |script| Duration::from_millis(script.delay_ms));
        NOW.set(NOW.get() + late.min(within).as_nanos() as u64);
        if late > within || script.as_ref().is_some_and(|script| script.silent) {
            return Err(UpstreamError::Timeout);
        }
        let known = self.zone.borrow().keys().any(|(name, _)| *name == key.0);
        let mut came: Vec<Vec<u8>> = Vec::new();
        if !self.tcp.get() {
            let forgeries = script.iter().flat_map(|script| &script.forged);
            came.extend(forgeries.filter_map(|forgery| forged(*forgery, &name, &qtype)));
            let cut = script.iter().filter(|script| script.truncate);
            came.extend(cut.map(|script| answered(&name, &qtype, Some(script), known, true)));
        }
        came.push(answered(&name, &qtype, script.as_ref(), known, false));
        let exact =
            |octets: &&Vec<u8>| answer::matches(octets, &lower(query)) == Match::Exact && !answer::is_truncated(octets);
        came.iter().find(exact).map(|octets| Reply::from(&octets[..])).ok_or(UpstreamError::Timeout)
    }
}

/// The question as it goes up, but for its letters' case, which only sockets play with.
fn lower(query: &Query<'_>) -> Vec<u8> {
    [query.name.as_wire(), &query.qtype.to_be_bytes(), &query.qclass.to_be_bytes()].concat()
}

/// What needs no socket is ready at once.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("nothing here waits"),
    }
}

impl Model {
    /// The scenario's snapshot, in force.
    pub fn new(scenario: &Scenario) -> Result<Model, String> {
        NOW.set(START);
        let mut source = Source::nothing();
        for word in &scenario.settings {
            let (key, value) = word.split_once('=').ok_or("a setting is key=value")?;
            source = source.with_flag(key, "--set", value);
        }
        let config = source.load().map_err(|errors| errors.to_string())?;
        let mut files = BTreeMap::new();
        for name in ["cluster.yaml", "kube-dns.yaml"] {
            let text = fs::read_to_string(snapshot::demo().join(name)).map_err(|error| format!("{name}: {error}"))?;
            files.insert(name.to_owned(), text);
        }
        files.extend(scenario.files.iter().cloned());
        let empty =
            Directory::new(settings(&config), Guard::new(Vec::new(), config.dns.cluster_domain.clone()), [], []);
        let directory = Arc::new(ArcSwap::from_pointee(empty));
        let kernel = Arc::new(Rows::default());
        let cache = (config.dns.cache == CacheMode::On).then(|| Arc::new(Cache::new(config.cache.max_bytes)));
        let endpoint = |(number, pod): (u32, Pod)| {
            let subject = PodRef { namespace: "payments".into(), name: pod.name().into() };
            let rules = Arc::new(RuleSet::unselected());
            let mut served =
                Served::new(EndpointId(number), subject, vec![pod.address()], number, rules.clone(), caps(&config));
            served.search = search_of("payments", &config.dns.cluster_domain, &Default::default());
            (
                pod,
                Endpoint { rules, history: Vec::new(), closed: true, served: Arc::new(served), checkpoint: Vec::new() },
            )
        };
        let mut model = Model {
            outside: Outside::default(),
            files,
            alive: true,
            last_good: LastGood::default(),
            refusals: Vec::new(),
            ids: PeerIds::default(),
            proxy: Proxy::at(now, directory.clone(), kernel.clone(), Arc::new(Nobody), cache),
            kernel,
            directory,
            memory: Memory::new(),
            pods: [(1, Pod::Pay), (2, Pod::Rep)].into_iter().map(endpoint).collect(),
            connections: HashMap::new(),
            closed: Vec::new(),
            sweep_at: START,
            config,
        };
        model.reload();
        Ok(model)
    }

    /// Reads the snapshot and puts it in force, in the order of DESIGN 4.
    fn reload(&mut self) {
        if !self.alive {
            return;
        }
        let file =
            |(name, text): (&String, &String)| File { name: name.clone(), content: Ok(text.clone().into_bytes()) };
        let files: Vec<File> = self.files.iter().map(file).collect();
        let snapshot = assemble(&files, &self.last_good, OnInvalid::Refuse);
        self.last_good = snapshot.last_good;
        self.refusals = snapshot.refusals;
        let mut world = snapshot.world;
        settle(&mut world, &self.config);
        world.own_node = Some("demo-node".into());
        let compiler = Compiler::new(&world, &mut self.ids);
        for endpoint in self.pods.values_mut() {
            let served = &endpoint.served;
            let addresses = world.pods.get(&served.pod).map_or(0, |found| found.addresses.len());
            let Ok(rules) = compiler.compile(&served.pod, &endpoint.history) else {
                endpoint.closed = true;
                continue;
            };
            endpoint.closed = addresses == 0;
            let mut table = served.table();
            let regroup = table.regroup(&rules, &endpoint.history, now());
            served.carry_out(&*self.kernel, &mut table, regroup.widened).expect("a model takes all");
            for group in &rules.groups {
                if !endpoint.history.contains(group) {
                    endpoint.history.retain(|old| old.bit != group.bit);
                    endpoint.history.push(group.clone());
                }
            }
            endpoint.rules = Arc::new(rules);
            served.rules.store(endpoint.rules.clone());
            served.carry_out(&*self.kernel, &mut table, regroup.narrowed).expect("a model takes all");
        }
        self.publish(&world);
    }

    /// Lets the proxy know who is there and whom they ask: each resolver is its own local address.
    fn publish(&self, world: &World) {
        let own = world.nodes.get("demo-node").map(|node| node.addresses.clone()).unwrap_or_default();
        let guard = guard(&self.config, world, own);
        let cluster: BTreeSet<IpAddr> =
            cluster_dns(world).into_iter().chain(self.config.dns.resolvers.iter().copied()).collect();
        let named = self.pods.values().flat_map(|endpoint| endpoint.rules.resolvers()).map(|(address, ..)| address);
        let all: BTreeSet<IpAddr> = named.chain(cluster.iter().copied()).collect();
        let resolvers =
            all.into_iter().map(|address| (address, Resolver::new((address, 53).into(), cluster.contains(&address))));
        let open = self.pods.values().filter(|endpoint| !endpoint.closed).map(|endpoint| endpoint.served.clone());
        let mut directory = Directory::new(settings(&self.config), guard, open, resolvers);
        directory.routes = routes(&self.config);
        self.directory.store(Arc::new(directory));
    }

    fn rows(&self, pod: Pod) -> BTreeMap<IpAddr, [Slot; SLOTS]> {
        let Some(endpoint) = self.pods.get(&pod) else { return BTreeMap::new() };
        let rows = self.kernel.0.lock().expect("the rows");
        let mine = rows.iter().filter(|((id, _), _)| *id == endpoint.served.id);
        mine.map(|((_, address), slots)| (*address, *slots)).collect()
    }

    /// What the kernel would make of an attempt; `ever`: counting grants that are over, as for a flow.
    fn verdict(&self, who: Pod, to: Target, ever: bool) -> PacketVerdict {
        let protocol = if to.udp { Protocol::Udp } else { Protocol::Tcp };
        let inside = [Pod::Pay, Pod::Rep].into_iter().find(|pod| pod.address() == to.at.ip());
        let way = |pod: Pod, direction, address: IpAddr| {
            let endpoint = self.pods.get(&pod).filter(|endpoint| !endpoint.closed)?;
            let slots = self.rows(pod).get(&address).copied().unwrap_or_default();
            let bits = if ever {
                slots.iter().fold(Bits::NONE, |bits, slot| bits | slot.bits)
            } else {
                open_at(&slots, now())
            };
            Some(endpoint.rules.evaluate(direction, address, protocol, to.at.port(), bits))
        };
        let out = if who == Pod::Out { Some(PacketVerdict::Allowed) } else { way(who, Direction::Egress, to.at.ip()) };
        match (out, inside) {
            (None, _) => PacketVerdict::NotAllowed,
            (Some(verdict), Some(pod)) if verdict.passes() => {
                way(pod, Direction::Ingress, who.address()).unwrap_or(PacketVerdict::NotAllowed)
            }
            (Some(verdict), _) => verdict,
        }
    }

    fn is_audited(&self, who: Pod) -> bool {
        self.pods.get(&who).is_some_and(|pod| pod.served.rules.load().audit)
    }

    /// The word of the flow record for what is stopped.
    fn why(&self, who: Pod, to: Target) -> &'static str {
        match self.verdict(who, to, false) {
            PacketVerdict::Denied => "policy_deny",
            _ if self.verdict(who, to, true).passes() => "expired",
            _ => "no_grant",
        }
    }

    /// One query from its octets to the reply's.
    fn ask(&mut self, pod: Pod, asked: &Asked) -> Result<Option<Answered>, String> {
        if !self.alive {
            return Ok(None);
        }
        let octets = question(asked)?;
        let client = (pod.address(), 40_000).into();
        let interface = self.pods.get(&pod).ok_or("not a pod")?.served.interface;
        let packet = Packet { bytes: &octets, client, local: asked.server.ip(), interface, tcp: asked.tcp };
        self.outside.tcp.set(asked.tcp);
        let mut reply = Vec::new();
        match self.proxy.accept(&packet, (!asked.tcp).then_some(&mut self.memory), &mut reply) {
            Next::Reply => {}
            Next::Nothing => return Ok(None),
            Next::Ask(ask) => reply = at_once(self.proxy.finish(ask, &self.outside)),
        }
        let message = Message::from_vec(&reply).map_err(|error| error.to_string())?;
        Ok(Some(traffic::describe(&message, 0)))
    }

    /// A start finds what is in the kernel.
    fn adopt(&mut self) {
        for pod in [Pod::Pay, Pod::Rep] {
            let rows = self.rows(pod);
            let Some(endpoint) = self.pods.get_mut(&pod) else { continue };
            let meaning = Meaning::of(&endpoint.history);
            let checkpoint = std::mem::take(&mut endpoint.checkpoint);
            for (address, slots) in rows {
                let names = checkpoint.iter().find(|names| names.address == address);
                endpoint.served.table().adopt(&GrantWrite { address, slots }, names, &meaning, now());
            }
        }
    }

    /// What time brings: rows to be written again, background questions.
    fn upkeep(&mut self) {
        if !self.alive {
            return;
        }
        for endpoint in self.pods.values() {
            let mut table = endpoint.served.table();
            let due = table.rewrites_due(now());
            endpoint.served.carry_out(&*self.kernel, &mut table, due).expect("a model takes all");
        }
        if NOW.get() >= self.sweep_at {
            self.sweep();
        }
        self.outside.tcp.set(false);
        for due in self.proxy.due(&mut self.memory, true) {
            let done = at_once(self.proxy.ask_unasked(due, &self.outside));
            self.memory.learn(&done, now());
        }
    }
}

impl Model {
    /// What is over goes, but for connections that live; one that is closed is remembered for a while.
    fn sweep(&mut self) {
        self.sweep_at = NOW.get() + SWEEP.as_nanos() as u64;
        self.closed.retain(|(_, _, until)| *until > NOW.get());
        for (pod, endpoint) in &self.pods {
            let open = self.connections.values().filter(|(who, _)| who == pod).map(|(_, to)| to.at.ip());
            let closed = self.closed.iter().filter(|(who, ..)| who == pod).map(|(_, address, _)| *address);
            let mut table = endpoint.served.table();
            table.set_live(open.chain(closed).collect());
            let over = table.expire(now());
            endpoint.served.carry_out(&*self.kernel, &mut table, over).expect("a model takes all");
        }
    }

    fn closes(&mut self, who: Pod, to: Target) {
        let until = now().after(self.config.enforcement.closed_timeout);
        self.closed.push((who, to.at.ip(), until.0));
    }
}

impl Subject for Model {
    fn wait_until(&mut self, at: Duration) {
        let end = NOW.get().max(START + at.as_nanos() as u64);
        while NOW.get() < end {
            NOW.set(end.min(NOW.get() + UPKEEP.as_nanos() as u64));
            self.upkeep();
        }
    }

    fn now(&self) -> u64 {
        NOW.get()
    }

    fn act(&mut self, act: &Act) -> Result<(), String> {
        match act {
            Act::Says { name, qtype, script } => {
                self.outside.says(name, qtype, script);
            }
            Act::Asks { pod, question, script, reply } => {
                if let Some(script) = script {
                    self.outside.says(&question.name, &question.qtype, script);
                }
                let seen = self.ask(*pod, question)?.unwrap_or_default();
                return compare(&seen, reply.as_ref());
            }
            Act::Reaches { who, to, noted } => match self.verdict(*who, *to, false) {
                verdict if verdict.passes() && noted.is_none() => self.closes(*who, *to),
                verdict if !verdict.passes() && self.is_audited(*who) => {
                    let seen = self.why(*who, *to);
                    if noted.as_ref().is_none_or(|why| why != seen) {
                        return Err(format!("noted: {seen}"));
                    }
                }
                other => return Err(format!("{other:?}")),
            },
            Act::Stopped { who, to, why } => match self.verdict(*who, *to, false) {
                verdict if verdict.passes() => return Err(format!("{verdict:?}")),
                _ => {
                    let seen = self.why(*who, *to);
                    if why.as_ref().is_some_and(|why| why != seen) {
                        return Err(format!("stopped: {seen}"));
                    }
                }
            },
            Act::Opens { who, connection, to } => {
                self.act(&Act::Reaches { who: *who, to: *to, noted: None })?;
                self.connections.insert(connection.clone(), (*who, *to));
            }
            Act::GoesOn { connection } | Act::Ends { connection } => {
                let (who, to) = *self.connections.get(connection).ok_or("it was never opened")?;
                let verdict = self.verdict(who, to, true);
                if verdict.passes() != matches!(act, Act::GoesOn { .. }) {
                    return Err(format!("{verdict:?}"));
                }
            }
            Act::Closes { connection } => {
                let (who, to) = self.connections.remove(connection).ok_or("it was never opened")?;
                self.closes(who, to);
            }
            Act::Knows { pod, address, names } => {
                self.closed.clear(); // the daemon is given some seconds
                self.sweep();
                let table = self.pods.get(pod).ok_or("not a pod")?.served.table();
                let mut seen: Vec<String> = table.names_of(*address).map(|name| name_of(&name.to_string())).collect();
                seen.extend(table.unnamed().filter(|(at, _)| at == address).map(|_| name_of("")));
                seen.sort();
                if seen != *names {
                    return Err(format!("{seen:?}"));
                }
            }
            Act::File { name, text } => {
                match text {
                    Some(text) => drop(self.files.insert(name.clone(), text.clone())),
                    None => drop(self.files.remove(name)),
                }
                self.reload();
            }
            Act::Kill | Act::Terminate => {
                self.alive = false;
                // The kernel's rows stay; of the names, what is written down.
                for endpoint in self.pods.values_mut() {
                    endpoint.checkpoint = endpoint.served.table().remember(None, usize::MAX).0;
                    endpoint.served.table().clear();
                }
                self.memory = Memory::new();
                if let Some(cache) = self.proxy.cache() {
                    cache.clear();
                }
            }
            Act::Start | Act::Hangup => {
                if !self.alive {
                    self.adopt();
                }
                self.alive = true;
                self.reload();
            }
            Act::Nothing => {}
            Act::AsksRaw { .. } | Act::Sends { .. } | Act::Fails { .. } => {
                return Err("this step needs the daemon".into());
            }
        }
        Ok(())
    }

    fn grants(&mut self) -> Result<Vec<(Pod, IpAddr, u64)>, String> {
        let last =
            |slots: &[Slot; SLOTS]| slots.iter().filter(|slot| !slot.bits.is_empty()).map(|slot| slot.until.0).max();
        let rows = self.pods.keys().flat_map(|pod| self.rows(*pod).into_iter().map(|row| (*pod, row)));
        Ok(rows.filter_map(|(pod, (address, slots))| Some((pod, address, last(&slots)?))).collect())
    }

    fn refusals(&mut self) -> Option<Vec<String>> {
        let line = |one: &Refusal| [one.object.as_str(), &one.place, &one.text].join(" ");
        self.alive.then(|| self.refusals.iter().map(line).collect())
    }

    fn closed(&mut self) -> Option<BTreeSet<Pod>> {
        self.alive.then(|| self.pods.iter().filter(|(_, endpoint)| endpoint.closed).map(|(pod, _)| *pod).collect())
    }

    fn log(&self) -> String {
        format!("{:?}", self.refusals)
    }
}

impl Outside {
    fn says(&self, name: &str, qtype: &str, script: &Script) {
        self.zone.borrow_mut().insert((fold(name), qtype.to_owned()), script.clone());
    }
}

fn fold(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn question(asked: &Asked) -> Result<Vec<u8>, String> {
    let qtype: RecordType = asked.qtype.parse().map_err(|_| format!("not a type: {}", asked.qtype))?;
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Wanted::query(wire_name(&asked.name), qtype));
    if let Some(octets) = asked.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(octets).set_version(0);
        message.set_edns(edns);
    }
    message.to_vec().map_err(|error| error.to_string())
}

/// The lab's name server, without its sockets.
fn answered(name: &str, qtype: &str, script: Option<&Script>, known: bool, cut: bool) -> Vec<u8> {
    let mut message = response(name, qtype);
    message.metadata.truncation = cut;
    message.metadata.response_code = match script {
        Some(script) => names::rcode(&script.rcode),
        None if known => ResponseCode::NoError,
        None => ResponseCode::NXDomain,
    };
    if let (Some(script), false) = (script, cut) {
        message.add_answers(names::records(script, &wire_name(name)));
        message.add_authorities(names::soa(script, &wire_name(name)));
    }
    message.to_vec().expect("an answer can be written")
}

/// Another question, or the same in other letters; the rest is for sockets to tell.
fn forged(forgery: Forgery, asked: &str, qtype: &str) -> Option<Vec<u8>> {
    let (name, address) = match forgery {
        Forgery::Question(address) => ("other.example".to_owned(), address),
        Forgery::Case(address) => (asked.to_ascii_uppercase(), address),
        Forgery::Header => return Some(vec![0, 7, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        Forgery::Number(_) | Forgery::Port(_) | Forgery::Address(_) => return None,
    };
    let mut message = response(&name, qtype);
    let data = match address {
        IpAddr::V4(address) => RData::A(address.into()),
        IpAddr::V6(address) => RData::AAAA(address.into()),
    };
    message.add_answer(Record::from_rdata(wire_name(&name), 60, data));
    message.to_vec().ok()
}

fn response(name: &str, qtype: &str) -> Message {
    let mut message = Message::new(7, MessageType::Response, OpCode::Query);
    message.metadata.recursion_available = true;
    message.add_query(Wanted::query(wire_name(name), qtype.parse().expect("a type")));
    message
}

fn wire_name(text: &str) -> WireName {
    let mut name = WireName::from_ascii(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    name.set_fqdn(true);
    name
}
