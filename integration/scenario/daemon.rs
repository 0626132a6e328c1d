//! The whole daemon as the subject of a scenario, in a world of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::language::{Act, Asked, Expected, Frame, Kind, Pod, Scenario, Source, Target};
use super::run::Subject;
use crate::lab::agent::client::Agent;
use crate::lab::agent::{Answered, Question, Reach, Reply, Request, TLS_NAME, hex, unhex};
use crate::lab::clock::{now, wait_until};
use crate::lab::world::{NODE_MAC, Options, PODS};
use crate::lab::{Daemon, Topology, World, frame, grants, snapshot};

/// How long a reload or a flow record may take to show.
const SOON: Duration = Duration::from_secs(5);
/// Name servers beside kube-dns, where `dns.upstreams` names any.
const OTHERS: [[u8; 4]; 2] = [[203, 0, 113, 55], [203, 0, 113, 56]];
/// How long a frame is waited for that must not arrive.
const QUIET: Duration = Duration::from_millis(300);

/// What namegate shows over TLS, in the world's directory.
const CERTIFICATE: &str = "tls.crt";

/// A world, and namegate in its node.
pub struct Node {
    stage: Stage,
    /// None while it is dead.
    daemon: Option<Daemon>,
    settings: Vec<String>,
    /// The endpoints' numbers in the kernel's tables.
    ids: BTreeMap<u32, Pod>,
    start: Instant,
}

/// What a scenario's attempts need: the world with something behind every address, and the connections kept open.
struct Stage {
    world: World,
    connections: HashMap<String, Kept>,
}

/// A connection that a pod keeps open.
struct Kept {
    pod: Pod,
    number: u32,
    from: SocketAddr,
    to: SocketAddr,
}

/// Tries everything that the scenario says is stopped in a world without namegate: it must arrive.
pub fn control(scenario: &Scenario) -> Result<(), String> {
    if !scenario.steps.iter().any(|step| matches!(step.act, Act::Stopped { .. } | Act::Sends { arrives: Err(_), .. })) {
        return Ok(());
    }
    let mut stage = Stage::new(scenario)?;
    let mut done = BTreeSet::new();
    for step in &scenario.steps {
        let fault = |why: String| format!("line {}: {}: {why}", step.line, step.text);
        match &step.act {
            Act::Stopped { who, to, .. } if done.insert((*who, *to)) => {
                // A fresh world's neighbours may need a second to find each other.
                let reached = wait_until(Duration::from_secs(3), || stage.reach(*who, *to) == Reach::Reached);
                if !reached {
                    return Err(fault("nobody guards, and yet it is not reached".into()));
                }
            }
            Act::Opens { who, connection, to } => {
                let from = SocketAddr::new(who.address(), 40_001);
                stage.connections.insert(connection.clone(), Kept { pod: *who, number: 0, from, to: to.at });
            }
            Act::Sends { pod, frame, arrives: Err(_) } if !stage.send(*pod, frame).map_err(fault)? => {
                return Err(fault("nobody guards, and yet the frame does not arrive".into()));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Node {
    /// The scenario's world, with namegate ready in it.
    pub fn new(scenario: &Scenario) -> Result<Node, String> {
        let stage = Stage::new(scenario)?;
        let directory = stage.world.directory.join("snapshot");
        snapshot::with_policy(&directory, "");
        let _ = fs::remove_file(directory.join("policy.yaml"));
        for (name, text) in &scenario.files {
            fs::write(directory.join(name), text).map_err(|error| format!("{name}: {error}"))?;
        }
        let mut settings: Vec<String> = scenario.settings.clone();
        if settings.iter().any(|setting| setting.starts_with("dns.tls_port=")) {
            settings.extend(certificate(&stage.world.directory)?);
        }
        let settings = settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]).collect();
        let mut node = Node { stage, daemon: None, settings, ids: BTreeMap::new(), start: now() };
        node.begin();
        node.start = now();
        Ok(node)
    }

    fn begin(&mut self) {
        let more: Vec<&str> = self.settings.iter().map(String::as_str).collect();
        self.daemon = Some(Daemon::start(&self.stage.world, &more));
        for endpoint in self.status().and_then(|status| status["endpoints"].as_array().cloned()).unwrap_or_default() {
            if let (Some(id), Some(pod)) = (endpoint["id"].as_u64(), pod_of(&endpoint)) {
                self.ids.insert(id as u32, pod);
            }
        }
    }

    fn status(&self) -> Option<Value> {
        let (fine, text) = self.daemon.as_ref()?.run("status", &["-o", "json"]);
        serde_json::from_str(&text).ok().filter(|_| fine)
    }

    fn generation(&self) -> u64 {
        self.status().and_then(|status| status["policy"]["generation"].as_u64()).unwrap_or(0)
    }

    /// Does something that makes namegate read its snapshot, and waits until that is in force and it rests.
    fn reload(&self, cause: impl FnOnce()) -> Result<(), String> {
        let before = self.generation();
        cause();
        if self.daemon.is_none() {
            return Ok(());
        }
        let mut last = (before, now());
        let rests = wait_until(SOON, || {
            let generation = self.generation();
            if generation != last.0 {
                last = (generation, now());
            }
            generation > before && last.1.elapsed() > Duration::from_millis(150)
        });
        if rests { Ok(()) } else { Err(format!("the snapshot was not read again: generation {before} stays")) }
    }

    fn daemon(&self) -> Result<&Daemon, String> {
        self.daemon.as_ref().ok_or_else(|| "namegate is not running".into())
    }

    /// Waits for the flow record of an attempt.
    fn flow(&self, seen: usize, to: SocketAddr, verdict: &str, why: &str) -> Result<(), String> {
        self.daemon()?;
        let mut last = Vec::new();
        let found = wait_until(Duration::from_secs(2), || {
            let flows = crate::lab::daemon::flows(&self.stage.world.directory);
            last = flows.iter().skip(seen).filter_map(|record| reason_of(record, to, verdict)).collect();
            last.iter().any(|reason| reason == why)
        });
        if found { Ok(()) } else { Err(format!("the flow records that say {verdict} say {last:?}")) }
    }

    /// The names that `namegate fqdn list` has for an address.
    fn names_of(&self, pod: Pod, address: IpAddr) -> Result<Vec<String>, String> {
        let endpoint = format!("payments/{}", pod.name());
        let (fine, said) = self.daemon()?.run("fqdn list", &["-o", "json", "--limit", "0", "--endpoint", &endpoint]);
        let listing: Value = serde_json::from_str(&said).ok().filter(|_| fine).ok_or(said)?;
        let holds = |one: &&Value| {
            let addresses = one["addresses"].as_array().into_iter().flatten();
            addresses.into_iter().any(|at| at["address"].as_str() == Some(&address.to_string()))
        };
        let names = listing["names"].as_array().into_iter().flatten().filter(holds);
        let mut names: Vec<String> = names.filter_map(|one| Some(name_of(one["name"].as_str()?))).collect();
        names.sort();
        Ok(names)
    }

    fn flows_seen(&self) -> usize {
        crate::lab::daemon::flows(&self.stage.world.directory).len()
    }
}

impl Subject for Node {
    fn wait_until(&mut self, at: Duration) {
        std::thread::sleep(at.saturating_sub(self.start.elapsed()));
    }

    fn now(&self) -> u64 {
        mono_ns()
    }

    fn act(&mut self, act: &Act) -> Result<(), String> {
        let seen = self.flows_seen();
        match act {
            Act::Says { name, qtype, script } => self.stage.world.outside.say(name, qtype, script.clone()),
            Act::Fails { server, script } => {
                self.stage.world.outside.done(Request::Fail { at: *server, script: script.clone() });
            }
            Act::Asks { pod, question, script, reply } => {
                if let Some(script) = script {
                    self.stage.world.outside.say(&question.name, &question.qtype, script.clone());
                }
                return compare(&self.stage.ask(*pod, question, reply.is_none()), reply.as_ref());
            }
            Act::AsksRaw { pod, message, tcp, reply } => {
                return self.stage.ask_raw(*pod, message, *tcp, reply.as_ref());
            }
            Act::Reaches { who, to, noted } => match self.stage.reach(*who, *to) {
                Reach::Reached => {
                    if let Some(why) = noted {
                        return self.flow(seen, to.at, "AUDIT", why);
                    }
                }
                other => return Err(format!("{other:?}")),
            },
            Act::Stopped { who, to, why } => match (self.stage.reach(*who, *to), why) {
                (Reach::Reached, _) => return Err("it is reached".into()),
                (_, Some(why)) => return self.flow(seen, to.at, "DROPPED", why),
                (_, None) => {}
            },
            Act::Opens { who, connection, to } => return self.stage.open(*who, connection, *to),
            Act::GoesOn { connection } => match self.stage.exchange(connection)? {
                Reach::Reached => {}
                other => return Err(format!("{other:?}")),
            },
            Act::Closes { connection } => return self.stage.close(connection),
            Act::Knows { pod, address, names } => {
                let mut last = Ok(Vec::new());
                // A sweep comes every 5 s.
                let right = wait_until(Duration::from_secs(8), || {
                    last = self.names_of(*pod, *address);
                    last.as_ref() == Ok(names)
                });
                if !right {
                    return Err(format!("{:?}", last?));
                }
            }
            Act::Ends { connection } => {
                if self.stage.exchange(connection)? == Reach::Reached {
                    return Err("it goes on".into());
                }
            }
            Act::Sends { pod, frame, arrives } => match (self.stage.send(*pod, frame)?, arrives) {
                (true, Ok(())) | (false, Err(None)) => {}
                (false, Err(Some(why))) => return self.flow(seen, self.stage.ends_of(*pod, frame)?.1, "DROPPED", why),
                (true, Err(_)) => return Err("it arrives".into()),
                (false, Ok(())) => return Err("it does not arrive".into()),
            },
            Act::File { name, text } => {
                let path = self.stage.world.directory.join("snapshot").join(name);
                return self.reload(|| match text {
                    Some(text) => snapshot::replace(&path, text),
                    None => drop(fs::remove_file(&path)),
                });
            }
            Act::Kill => self.daemon.take().ok_or("namegate is not running")?.kill(),
            Act::Start => self.begin(),
            Act::Hangup => {
                let daemon = self.daemon()?;
                return self.reload(|| daemon.reload());
            }
            Act::Terminate => {
                let status = self.daemon.take().ok_or("namegate is not running")?.terminate();
                if !status.success() {
                    return Err(format!("it ended with {status}"));
                }
            }
            Act::Nothing => {}
        }
        Ok(())
    }

    fn grants(&mut self) -> Result<Vec<(Pod, IpAddr, u64)>, String> {
        let known = |id: u32, address: IpAddr| {
            self.ids.get(&id).ok_or_else(|| format!("a grant of an unknown endpoint {id}: {address}"))
        };
        let rows = grants::read(&self.stage.world.directory)?;
        rows.into_iter().map(|(id, address, until)| Ok((*known(id, address)?, address, until))).collect()
    }

    fn refusals(&mut self) -> Option<Vec<String>> {
        let status = self.status()?;
        let text = |refusal: &Value, key: &str| refusal[key].as_str().unwrap_or_default().to_owned();
        let refusals = status["policy"]["refusals"].as_array()?;
        Some(
            refusals.iter().map(|one| [text(one, "object"), text(one, "place"), text(one, "text")].join(" ")).collect(),
        )
    }

    fn closed(&mut self) -> Option<BTreeSet<Pod>> {
        let status = self.status()?;
        Some(status["endpoints"].as_array()?.iter().filter(|one| one["state"] == "closed").filter_map(pod_of).collect())
    }

    fn log(&self) -> String {
        let log = self.daemon.as_ref().map(Daemon::log).unwrap_or_default();
        log[log.len().saturating_sub(30)..].join("\n")
    }
}

impl Stage {
    fn new(scenario: &Scenario) -> Result<Stage, String> {
        let world = World::new(Options { topology: Topology::Routed });
        let stage = Stage { world, connections: HashMap::new() };
        if scenario.settings.iter().any(|setting| setting.contains("dns.upstreams=")) {
            let at = OTHERS.map(|server| SocketAddr::new(server.into(), 53)).to_vec();
            stage.world.outside.done(Request::ServeNames { at });
        }
        let mut served = BTreeSet::new();
        let mut settled = false;
        for step in &scenario.steps {
            let (Act::Reaches { to, .. } | Act::Stopped { to, .. } | Act::Opens { to, .. }) = step.act else {
                continue;
            };
            if to.at.is_ipv6() && !settled {
                // Until duplicate address detection is over, nobody answers.
                let tentative = |part: &&str| stage.world.must(part, "ip -6 address show tentative").contains("inet6");
                settled = wait_until(SOON, || !["node", "outside", "pay", "rep"].iter().any(tentative));
            }
            // The name server and Services have something behind them already.
            let there = matches!(to.at.port(), 53 | 5353) || to.at.ip().to_string().starts_with("198.18.");
            if there || !served.insert(to) {
                continue;
            }
            let host = match to.at.ip() {
                address if address == Pod::Pay.address() => Pod::Pay,
                address if address == Pod::Rep.address() => Pod::Rep,
                _ => Pod::Out,
            };
            let request = if to.udp { Request::ServeUdp { at: to.at } } else { Request::ServeTcp { at: to.at } };
            stage.agent(host).done(request);
        }
        Ok(stage)
    }

    fn agent(&self, pod: Pod) -> &Agent {
        match pod {
            Pod::Pay => &self.world.pay,
            Pod::Rep => &self.world.rep,
            Pod::Out => &self.world.outside,
        }
    }

    fn reach(&self, who: Pod, to: Target) -> Reach {
        if to.udp { self.agent(who).datagram(to.at) } else { self.agent(who).connect(to.at) }
    }

    fn open(&mut self, who: Pod, connection: &str, to: Target) -> Result<(), String> {
        if to.udp {
            let number = self.agent(who).open_udp(to.at).map_err(|reach| format!("{reach:?}"))?;
            let from = SocketAddr::new(who.address(), 0);
            self.connections.insert(connection.to_owned(), Kept { pod: who, number, from, to: to.at });
            return Ok(());
        }
        let before = self.local_ends(who, to.at);
        let number = self.agent(who).open(to.at).map_err(|reach| format!("{reach:?}"))?;
        let mut ends = self.local_ends(who, to.at);
        ends.retain(|end| !before.contains(end));
        let from = ends.pop().ok_or("the connection is not in ss")?;
        self.connections.insert(connection.to_owned(), Kept { pod: who, number, from, to: to.at });
        Ok(())
    }

    /// The pod's ends of its connections to an address.
    fn local_ends(&self, who: Pod, to: SocketAddr) -> Vec<SocketAddr> {
        let part = if who == Pod::Out { "outside" } else { who.word() };
        let lines = self.world.must(part, "ss -Htn state established");
        let ends = lines.lines().filter_map(|line| {
            let mut words = line.split_whitespace().skip(2);
            let (from, peer) = (words.next()?, words.next()?);
            (peer == to.to_string()).then(|| from.parse().ok()).flatten()
        });
        ends.collect()
    }

    fn close(&self, connection: &str) -> Result<(), String> {
        let kept = self.connections.get(connection).ok_or_else(|| format!("{connection} was never opened"))?;
        self.agent(kept.pod).done(Request::Close { connection: kept.number });
        Ok(())
    }

    fn exchange(&self, connection: &str) -> Result<Reach, String> {
        let kept = self.connections.get(connection).ok_or_else(|| format!("{connection} was never opened"))?;
        Ok(self.agent(kept.pod).exchange(kept.number))
    }

    fn ask(&self, pod: Pod, question: &Asked, patiently: bool) -> Answered {
        self.agent(pod).ask_as(Question {
            server: if question.tls { (question.server.ip(), 853).into() } else { question.server },
            name: question.name.clone(),
            qtype: question.qtype.clone(),
            tcp: question.tcp,
            tls: question.tls.then(|| self.world.directory.join(CERTIFICATE).display().to_string()),
            edns: question.edns,
            within_ms: if patiently { 1000 } else { 6000 },
        })
    }

    fn ask_raw(&self, pod: Pod, message: &str, tcp: bool, expected: Option<&Expected>) -> Result<(), String> {
        let server = crate::lab::world::Family::V4.kube_dns();
        let within_ms = if expected.is_some() { 3000 } else { 1000 };
        let message = message.to_owned();
        match (self.agent(pod).call(Request::AskRaw { server, tcp, message, within_ms }), expected) {
            (Reply::Bytes(None), None) => Ok(()),
            (Reply::Bytes(Some(bytes)), Some(expected)) => {
                let rcode = unhex(&bytes).get(3).map_or(255, |octet| octet & 15);
                let names = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
                let seen = names.get(usize::from(rcode)).copied().unwrap_or("another");
                if seen == expected.rcode { Ok(()) } else { Err(format!("reply {seen}: {bytes}")) }
            }
            (other, _) => Err(format!("{other:?}")),
        }
    }

    /// Where a frame comes from and goes to.
    fn ends_of(&self, pod: Pod, frame: &Frame) -> Result<(SocketAddr, SocketAddr), String> {
        match (&frame.from, frame.to) {
            (Source::Address(from), Some(to)) => Ok((*from, to)),
            (Source::Connection(name), _) => {
                let kept = self.connections.get(name).ok_or_else(|| format!("{name} was never opened"))?;
                if kept.pod == pod { Ok((kept.from, kept.to)) } else { Ok((kept.to, kept.from)) }
            }
            (Source::Address(_), None) => Err("a frame goes somewhere".into()),
        }
    }

    /// Sends a frame past the pod's stack; whether it arrives.
    fn send(&self, pod: Pod, sent: &Frame) -> Result<bool, String> {
        const SYN: u8 = 2;
        const ACK: u8 = 16;
        // Marks this frame among others of the same connection.
        let sequence = 0x4e47_0000 | u32::from(sent.kind == Kind::Ack);
        let (from, to) = self.ends_of(pod, sent)?;
        let (source, destination) = ((from.ip(), from.port()), (to.ip(), to.port()));
        let (protocol, payload) = match sent.kind {
            Kind::Syn => (6, frame::tcp(source, destination, sequence, 0, SYN)),
            Kind::Ack => (6, frame::tcp(source, destination, sequence, 1, ACK)),
            Kind::Udp => (17, frame::udp(source, destination, b"namegate")),
            Kind::Cut => (17, frame::udp(source, destination, b"")[..4].to_vec()),
            Kind::Protocol(number) => (number, b"namegate".to_vec()),
        };
        let packet = frame::ip(from.ip(), to.ip(), protocol, &payload);
        let own = PODS.iter().find(|one| one.name == pod.name()).ok_or("only pods send frames")?;
        let ethernet = frame::ethernet(NODE_MAC, own.mac, frame::ethertype(to.ip()), &packet);
        let receiver = match to.ip() {
            address if address == Pod::Pay.address() => Pod::Pay,
            address if address == Pod::Rep.address() => Pod::Rep,
            _ => Pod::Out,
        };
        let capture = self.agent(receiver).capture("eth0");
        self.agent(pod).inject("eth0", &[ethernet]);
        // Behind the IP header it arrives as it left, and that header begins with the addresses after the checksum.
        let addresses = packet.len() - payload.len() - if to.is_ipv4() { 8 } else { 32 };
        let tail = hex(&packet[addresses..]);
        Ok(wait_until(QUIET, || capture.frames().iter().any(|seen| !seen.outgoing && seen.bytes.contains(&tail))))
    }
}

/// A certificate for namegate and its key, as files, and the settings that name them.
fn certificate(directory: &Path) -> Result<[String; 2], String> {
    let made = rcgen::generate_simple_self_signed(vec![TLS_NAME.to_owned()]).map_err(|error| error.to_string())?;
    let (certificate, key) = (directory.join(CERTIFICATE), directory.join("tls.key"));
    fs::write(&certificate, made.cert.pem()).map_err(|error| error.to_string())?;
    fs::write(&key, made.signing_key.serialize_pem()).map_err(|error| error.to_string())?;
    Ok([format!("dns.tls_certificate={}", certificate.display()), format!("dns.tls_key={}", key.display())])
}

/// Holds a reply against what must be in it.
pub fn compare(seen: &Answered, expected: Option<&Expected>) -> Result<(), String> {
    let Some(expected) = expected else {
        return if seen.rcode.is_empty() { Ok(()) } else { Err(format!("a reply: {seen:?}")) };
    };
    let mut addresses = seen.addresses.clone();
    addresses.sort();
    let record = |text: &String| seen.records.iter().any(|record| record.contains(text));
    let fine = seen.rcode == expected.rcode
        && addresses == expected.addresses
        && seen.truncated == expected.truncated
        && expected.ttl.is_none_or(|ttl| seen.ttl == ttl)
        && expected.ede.is_none_or(|ede| seen.errors.iter().any(|error| error.0 == ede))
        && expected.saying.iter().all(|text| seen.errors.iter().any(|error| error.1.contains(text)))
        && expected.with.iter().all(record)
        && !expected.without.iter().any(record);
    if fine { Ok(()) } else { Err(format!("{seen:?}")) }
}

/// Why a flow record's packet to this address was dropped. Frames of a closed endpoint are not looked into, so their
/// records have no address.
fn reason_of(record: &Value, to: SocketAddr, verdict: &str) -> Option<String> {
    let flow = record.get("flow")?;
    let summary = flow["Summary"].as_str()?;
    let port = flow.get("l4").and_then(|l4| l4.as_object()?.values().next()?["destination_port"].as_u64());
    let there = flow["IP"]["destination"].as_str() == Some(&to.ip().to_string());
    let ours = summary.starts_with("not IP") || there && port.is_none_or(|port| port == u64::from(to.port()));
    let meant = flow["verdict"] == verdict && flow["Type"] == "L3_L4";
    let reason = summary.split("; ").nth(1)?.split(',').next()?;
    (ours && meant).then(|| reason.to_owned())
}

/// A name as scenarios write it; `?` for none.
pub fn name_of(text: &str) -> String {
    if text.is_empty() { "?".to_owned() } else { text.trim_end_matches('.').to_owned() }
}

fn pod_of(endpoint: &Value) -> Option<Pod> {
    let name = endpoint["pod"].as_str()?;
    [Pod::Pay, Pod::Rep].into_iter().find(|pod| name.ends_with(pod.name()))
}

/// The kernel programs' clock.
fn mono_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
