//! The engine alone as the subject of a scenario: no kernel, no socket, and a clock that is an argument.
//!
//! The model holds grants as the kernel's map does, and asks [`RuleSet::evaluate`], which makes the same look-ups as the
//! kernel programs. What only sockets can tell (a forged number, port or address) never reaches it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Wanted, ResponseCode};
use hickory_proto::rr::{Name as WireName, RData, Record, RecordType};
use ipnet::IpNet;
use namegate::cluster::files::File;
use namegate::cluster::snapshot::{LastGood, OnInvalid, Refusal, assemble};
use namegate::engine::answer::{self, Answer, Match};
use namegate::engine::bits::Bits;
use namegate::engine::compile::Compiler;
use namegate::engine::endpoint::PodRef;
use namegate::engine::fqdn::{Caps, FqdnTable, Timing};
use namegate::engine::grant::{GrantWrite, MonoNs, SLOTS, Slot, open_at};
use namegate::engine::guard::Guard;
use namegate::engine::name::Name;
use namegate::engine::query::Query;
use namegate::engine::reply::rebuild::{Changes, rebuilt};
use namegate::engine::reply::{self, Additional, Ede, EdeCode, Rcode};
use namegate::engine::ruleset::{Direction, Group, PacketVerdict, Protocol, RuleSet};
use namegate::engine::verdict::Denied;
use namegate::engine::world::{PeerIds, World};

use super::daemon::compare;
use super::language::{Act, Asked, Pod, Scenario, Target};
use super::run::Subject;
use crate::lab::agent::{Answered, Forgery, Script, names, traffic};
use crate::lab::snapshot;

/// When the story begins, nanoseconds: far enough from 0, which marks an unused slot.
const START: u64 = 1_000_000_000_000;

/// How often rows are written again that are due.
const UPKEEP: Duration = Duration::from_secs(1);

/// The engine's parts, put together as the node does.
pub struct Model {
    now: u64,
    settings: Settings,
    zone: HashMap<(String, String), Script>,
    files: BTreeMap<String, String>,
    alive: bool,
    last_good: LastGood,
    refusals: Vec<Refusal>,
    ids: PeerIds,
    guard: Guard,
    pods: BTreeMap<Pod, Endpoint>,
    connections: HashMap<String, (Pod, Target)>,
}

/// What scenarios set, of what the engine is told.
struct Settings {
    timing: Timing,
    caps: Caps,
    upstream_timeout: Duration,
    allow: Vec<IpNet>,
}

/// A pod, and the kernel's rows for it.
struct Endpoint {
    rules: RuleSet,
    history: Vec<Group>,
    closed: bool,
    names: FqdnTable,
    rows: BTreeMap<IpAddr, [Slot; SLOTS]>,
}

impl Model {
    /// The scenario's snapshot, in force.
    pub fn new(scenario: &Scenario) -> Result<Model, String> {
        let settings = Settings::read(&scenario.settings)?;
        let mut files = BTreeMap::new();
        for name in ["cluster.yaml", "kube-dns.yaml"] {
            let text = fs::read_to_string(snapshot::demo().join(name)).map_err(|error| format!("{name}: {error}"))?;
            files.insert(name.to_owned(), text);
        }
        files.extend(scenario.files.iter().cloned());
        let caps = settings.caps;
        let endpoint = || Endpoint {
            rules: RuleSet::unselected(),
            history: Vec::new(),
            closed: true,
            names: FqdnTable::new(caps),
            rows: BTreeMap::new(),
        };
        let mut model = Model {
            now: START,
            settings,
            zone: HashMap::new(),
            files,
            alive: true,
            last_good: LastGood::default(),
            refusals: Vec::new(),
            ids: PeerIds::default(),
            guard: Guard::new(Vec::new(), name("cluster.local")),
            pods: [Pod::Pay, Pod::Rep].into_iter().map(|pod| (pod, endpoint())).collect(),
            connections: HashMap::new(),
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
        world.own_node = Some("demo-node".into());
        world.cluster = "default".into();
        self.guard = guard(&world, &self.settings.allow);
        let compiler = Compiler::new(&world, &mut self.ids);
        for (pod, endpoint) in &mut self.pods {
            let subject = PodRef { namespace: "payments".into(), name: pod.name().into() };
            let addresses = world.pods.get(&subject).map_or(0, |found| found.addresses.len());
            let Ok(rules) = compiler.compile(&subject, &endpoint.history) else {
                endpoint.closed = true;
                continue;
            };
            endpoint.closed = addresses == 0;
            let regroup = endpoint.names.regroup(&rules, MonoNs(self.now));
            install(&mut endpoint.rows, regroup.widened.writes());
            endpoint.names.record(regroup.widened);
            for group in &rules.groups {
                if !endpoint.history.contains(group) {
                    endpoint.history.retain(|old| old.bit != group.bit);
                    endpoint.history.push(group.clone());
                }
            }
            endpoint.rules = rules;
            install(&mut endpoint.rows, regroup.narrowed.writes());
            endpoint.names.record(regroup.narrowed);
        }
    }

    /// What the kernel would make of an attempt; `ever`: counting grants that are over, as for a flow.
    fn verdict(&self, who: Pod, to: Target, ever: bool) -> PacketVerdict {
        let protocol = if to.udp { Protocol::Udp } else { Protocol::Tcp };
        let inside = [Pod::Pay, Pod::Rep].into_iter().find(|pod| pod.address() == to.at.ip());
        let way = |pod: Pod, direction, address: IpAddr| {
            let endpoint = self.pods.get(&pod).filter(|endpoint| !endpoint.closed)?;
            let slots = endpoint.rows.get(&address).copied().unwrap_or_default();
            let bits = if ever {
                slots.iter().fold(Bits::NONE, |bits, slot| bits | slot.bits)
            } else {
                open_at(&slots, MonoNs(self.now))
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

    /// The word of the flow record for what is stopped.
    fn why(&self, who: Pod, to: Target) -> &'static str {
        match self.verdict(who, to, false) {
            PacketVerdict::Denied => "policy_deny",
            _ if self.verdict(who, to, true).passes() => "expired",
            _ => "no_grant",
        }
    }

    /// One query from its octets to the reply's, as `serve` orders the stages.
    fn ask(&mut self, pod: Pod, asked: &Asked) -> Result<Option<Answered>, String> {
        if !self.alive {
            return Ok(None);
        }
        let octets = question(asked)?;
        let query = Query::parse(&octets).map_err(|error| error.to_string())?.into_owned();
        let reply = self.reply(pod, asked, &query);
        let message = Message::from_vec(&reply).map_err(|error| error.to_string())?;
        Ok(Some(traffic::describe(&message, 0)))
    }

    fn reply(&mut self, pod: Pod, asked: &Asked, query: &Query<'_>) -> Vec<u8> {
        let protocol = if asked.tcp { Protocol::Tcp } else { Protocol::Udp };
        let rules = self.pods[&pod].rules.clone();
        let refused = |code, text: &str| reply::failed(query, Rcode::Refused, Some(&Ede::new(code, text)));
        if matches!(query.qtype, 0 | 41 | 128..=255) {
            return refused(EdeCode::Prohibited, "type");
        }
        if rules.steered() {
            match rules.may_ask(asked.server.ip(), protocol, asked.server.port(), &query.name) {
                Ok(_) => {}
                Err(Denied::Name(by)) => {
                    return refused(
                        EdeCode::Blocked,
                        &by.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                    );
                }
                Err(_) => return refused(EdeCode::Prohibited, "server"),
            }
        }
        let Some(octets) = self.upstream(asked, query) else { return reply::failed(query, Rcode::ServFail, None) };
        let Ok(answer) = Answer::parse(&octets) else { return reply::failed(query, Rcode::ServFail, None) };
        let limit = if asked.tcp { usize::from(u16::MAX) } else { reply::udp_limit(query) };
        if self.guard.is_cluster_name(&query.name) || rules.groups_of(&query.name).is_empty() {
            let message = reply::relayed(query, &answer, Additional::Whole);
            return if message.len() > limit { reply::truncated(query, &answer) } else { message };
        }
        let granted = match self.grant(pod, asked, query, &answer) {
            Ok(granted) => granted,
            Err(why) => return reply::failed(query, Rcode::ServFail, Some(&Ede::new(EdeCode::Other, why))),
        };
        let keep = |address| granted.contains(&address) || rules.opens_without_name(address);
        let nothing_left = Ede::new(EdeCode::Filtered, "nothing is left");
        let changes = Changes { keep: Some(&keep), compress: true, nothing_left: Some(&nothing_left) };
        match rebuilt(query, &answer, &changes) {
            Ok(rebuilt) => rebuilt.message,
            Err(_) => reply::failed(query, Rcode::ServFail, None),
        }
    }

    /// What the answer teaches, held by the model's kernel and then by the table.
    fn grant(
        &mut self,
        pod: Pod,
        asked: &Asked,
        query: &Query<'_>,
        answer: &Answer<'_>,
    ) -> Result<Vec<IpAddr>, String> {
        let Ok(mut learned) = answer.learn(query) else { return Ok(Vec::new()) };
        let endpoint = self.pods.get_mut(&pod).ok_or("not a pod")?;
        let protocol = if asked.tcp { Protocol::Tcp } else { Protocol::Udp };
        if !endpoint.rules.trusts(asked.server.ip(), protocol, asked.server.port()) {
            return Ok(Vec::new());
        }
        learned.addresses.retain(|address| self.guard.admit(&learned.name, *address).is_ok());
        if learned.addresses.is_empty() {
            return Ok(Vec::new());
        }
        let plan = endpoint.names.plan(&learned, &endpoint.rules, MonoNs(self.now), &self.settings.timing);
        let plan = plan.map_err(|full| full.to_string())?;
        install(&mut endpoint.rows, plan.writes());
        endpoint.names.record(plan);
        Ok(learned.addresses)
    }

    /// What the name server says, of what belongs to the question; `None` when it comes too late.
    fn upstream(&mut self, asked: &Asked, query: &Query<'_>) -> Option<Vec<u8>> {
        let key = (asked.name.to_ascii_lowercase(), asked.qtype.clone());
        let script = self.zone.get(&key).cloned();
        let late = script.as_ref().map_or(Duration::ZERO, |script| Duration::from_millis(script.delay_ms));
        let timeout = self.settings.upstream_timeout;
        self.now += late.min(timeout).as_nanos() as u64;
        if late > timeout || script.as_ref().is_some_and(|script| script.silent) {
            return None;
        }
        let known = self.zone.keys().any(|(name, _)| *name == key.0);
        let mut came: Vec<Vec<u8>> = Vec::new();
        if !asked.tcp {
            came.extend(script.iter().flat_map(|script| &script.forged).filter_map(|forgery| forged(*forgery, asked)));
            came.extend(
                script.iter().filter(|script| script.truncate).map(|script| answered(asked, Some(script), known, true)),
            );
        }
        came.push(answered(asked, script.as_ref(), known, false));
        came.into_iter()
            .find(|octets| answer::matches(octets, &query.question) == Match::Exact && !answer::is_truncated(octets))
    }
}

impl Subject for Model {
    fn wait_until(&mut self, at: Duration) {
        let end = self.now.max(START + at.as_nanos() as u64);
        while self.now < end {
            self.now = end.min(self.now + UPKEEP.as_nanos() as u64);
            for endpoint in self.pods.values_mut() {
                let due = endpoint.names.rewrites_due(MonoNs(self.now));
                install(&mut endpoint.rows, due.writes());
                endpoint.names.record(due);
            }
        }
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn act(&mut self, act: &Act) -> Result<(), String> {
        match act {
            Act::Says { name, qtype, script } => {
                self.zone.insert((name.to_ascii_lowercase(), qtype.clone()), script.clone());
            }
            Act::Asks { pod, question, script, reply } => {
                if let Some(script) = script {
                    self.zone.insert((question.name.to_ascii_lowercase(), question.qtype.clone()), script.clone());
                }
                let seen = self.ask(*pod, question)?.unwrap_or_default();
                return compare(&seen, reply.as_ref());
            }
            Act::Reaches { who, to } => match self.verdict(*who, *to, false) {
                verdict if verdict.passes() => {}
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
                self.act(&Act::Reaches { who: *who, to: *to })?;
                self.connections.insert(connection.clone(), (*who, *to));
            }
            Act::GoesOn { connection } | Act::Ends { connection } => {
                let (who, to) = *self.connections.get(connection).ok_or("it was never opened")?;
                let verdict = self.verdict(who, to, true);
                if verdict.passes() != matches!(act, Act::GoesOn { .. }) {
                    return Err(format!("{verdict:?}"));
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
                for endpoint in self.pods.values_mut() {
                    endpoint.names = FqdnTable::new(self.settings.caps);
                }
            }
            Act::Start | Act::Hangup => {
                self.alive = true;
                self.reload();
            }
            Act::Nothing => {}
            Act::AsksRaw { .. } | Act::Sends { .. } => return Err("this step needs the daemon".into()),
        }
        Ok(())
    }

    fn grants(&mut self) -> Result<Vec<(Pod, IpAddr, u64)>, String> {
        let last =
            |slots: &[Slot; SLOTS]| slots.iter().filter(|slot| !slot.bits.is_empty()).map(|slot| slot.until.0).max();
        let rows = self.pods.iter().flat_map(|(pod, endpoint)| {
            endpoint.rows.iter().filter_map(move |(address, slots)| Some((*pod, *address, last(slots)?)))
        });
        Ok(rows.collect())
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

impl Settings {
    fn read(words: &[String]) -> Result<Settings, String> {
        let mut settings = Settings {
            timing: Timing::default(),
            caps: Caps::default(),
            upstream_timeout: Duration::from_secs(4),
            allow: Vec::new(),
        };
        for word in words {
            let (key, value) = word.split_once('=').ok_or("a setting is key=value")?;
            let seconds = || value.trim_end_matches('s').parse().map(Duration::from_secs).map_err(|_| word.clone());
            match key {
                "dns.min_ttl" => settings.timing.min_ttl = seconds()?,
                "dns.grace" => settings.timing.grace = seconds()?,
                "dns.upstream_timeout" => settings.upstream_timeout = seconds()?,
                "dns.guard.allow" => settings.allow.push(value.parse().map_err(|_| word.clone())?),
                "enforcement.grants_per_endpoint" => settings.caps.grants = value.parse().map_err(|_| word.clone())?,
                _ => return Err(format!("{key} means nothing to the engine alone")),
            }
        }
        Ok(settings)
    }
}

/// The kernel's map takes rows as they are.
fn install(rows: &mut BTreeMap<IpAddr, [Slot; SLOTS]>, writes: &[GrantWrite]) {
    for write in writes {
        if write.deletes() {
            rows.remove(&write.address);
        } else {
            rows.insert(write.address, write.slots);
        }
    }
}

/// As the node makes it from the world.
fn guard(world: &World, allow: &[IpNet]) -> Guard {
    let own = world.nodes.get("demo-node").map(|node| node.addresses.clone()).unwrap_or_default();
    let pods = world.pods.values().flat_map(|pod| &pod.addresses);
    let services = world.services.values().flat_map(|service| &service.addresses);
    let cluster = pods.chain(services).map(|address| IpNet::from(*address)).collect();
    let mut guard = Guard::new(own, name("cluster.local")).with_cluster(cluster);
    allow.iter().for_each(|network| guard.allow(*network));
    guard
}

fn question(asked: &Asked) -> Result<Vec<u8>, String> {
    let qtype: RecordType = asked.qtype.parse().map_err(|_| format!("not a type: {}", asked.qtype))?;
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Wanted::query(wire_name(&asked.name), qtype));
    if asked.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(1232).set_version(0);
        message.set_edns(edns);
    }
    message.to_vec().map_err(|error| error.to_string())
}

/// The lab's name server, without its sockets.
fn answered(asked: &Asked, script: Option<&Script>, known: bool, cut: bool) -> Vec<u8> {
    let mut message = response(&asked.name, &asked.qtype);
    message.metadata.truncation = cut;
    message.metadata.response_code = match script {
        Some(script) => names::rcode(&script.rcode),
        None if known => ResponseCode::NoError,
        None => ResponseCode::NXDomain,
    };
    if let (Some(script), false) = (script, cut) {
        message.add_answers(names::records(script, &wire_name(&asked.name)));
    }
    message.to_vec().expect("an answer can be written")
}

/// Another question, or the same in other letters; the rest is for sockets to tell.
fn forged(forgery: Forgery, asked: &Asked) -> Option<Vec<u8>> {
    let (name, address) = match forgery {
        Forgery::Question(address) => ("other.example".to_owned(), address),
        Forgery::Case(address) => (asked.name.to_ascii_uppercase(), address),
        Forgery::Header => return Some(vec![0, 7, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        Forgery::Number(_) | Forgery::Port(_) | Forgery::Address(_) => return None,
    };
    let mut message = response(&name, &asked.qtype);
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

fn name(text: &str) -> Name {
    Name::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}
