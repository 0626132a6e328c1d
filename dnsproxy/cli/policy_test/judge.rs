//! Judges cases: those that share their objects share a world, those of the same labels a rule set.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value as Json;

use super::case::{Case, Expect, Objects, Peer, What, Who};
use crate::cli::explain::text;
use crate::cli::offline::settle as settle_world;
use crate::cluster::files::{self, File};
use crate::cluster::snapshot::{LastGood, OnInvalid, Refusal, assemble};
use crate::cluster::tree;
use crate::config::{Config, Source};
use crate::engine::bits::Bits;
use crate::engine::endpoint::PodRef;
use crate::engine::explain::answer::{Connection, Line, Verdict};
use crate::engine::explain::question::Like;
use crate::engine::explain::stand_in::{StandIns, know_namespace};
use crate::engine::explain::{Explainer, Surroundings};
use crate::engine::name::Name;
use crate::engine::policy::Entity;
use crate::engine::ruleset::{Direction, Protocol};
use crate::engine::world::{ContainerPort, World};
use crate::run;

/// How a case went.
#[derive(Debug)]
pub struct Outcome {
    /// What it is called.
    pub id: Json,
    /// What it expects.
    pub expect: &'static str,
    /// What it got: as `expect`, or `error`.
    pub got: &'static str,
    /// Whether that is the same.
    pub ok: bool,
    /// Why, in a line.
    pub why: String,
    /// The chain, for people.
    pub chain: String,
}

/// How many cases share a world: each may add pods to it, which the rule sets of all would be made with.
const CHUNK: usize = 256;

/// What cases of the same objects must have in common to share a world.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key<'c> {
    /// The node of the subject.
    own_node: Option<String>,
    /// Named ports of a pod that is there.
    ports: Option<(&'c PodRef, &'c Vec<ContainerPort>)>,
}

/// A world before cases add to it.
struct Base {
    world: World,
    config: Config,
    refusals: Vec<Refusal>,
}

/// Judges all cases, in their order; those of different objects on all cores.
pub fn judge(cases: &[Case], snapshot: Option<&Path>) -> Vec<Outcome> {
    let mut by_objects: BTreeMap<Option<&Vec<Objects>>, Vec<usize>> = BTreeMap::new();
    for (at, case) in cases.iter().enumerate() {
        by_objects.entry(case.objects.as_ref()).or_default().push(at);
    }
    let groups: Vec<(Option<&Vec<Objects>>, Vec<usize>)> = by_objects.into_iter().collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut outcomes = Vec::new();
        while let Some((objects, members)) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
            outcomes.extend(judge_group(cases, *objects, members, snapshot));
        }
        outcomes
    };
    let workers = thread::available_parallelism().map_or(1, usize::from).min(groups.len());
    let mut all: Vec<(usize, Outcome)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let done =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        done.flatten().collect()
    });
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Judges cases of the same objects; each outcome with its case's place.
fn judge_group(
    cases: &[Case],
    objects: Option<&Vec<Objects>>,
    members: &[usize],
    snapshot: Option<&Path>,
) -> Vec<(usize, Outcome)> {
    let mut outcomes = Vec::with_capacity(members.len());
    let mut base: Option<Base> = None;
    let mut groups: BTreeMap<Key<'_>, Vec<usize>> = BTreeMap::new();
    for &at in members {
        let (subject, ports) = match &cases[at].what {
            What::Manifest { text, message } => {
                outcomes.push((at, manifest(&cases[at], text, message.as_deref())));
                continue;
            }
            What::Query { subject, .. } => (subject, None),
            What::Connection { subject, direction, peer, named_ports, .. } => {
                let listens = match (direction, peer) {
                    (Direction::Ingress, _) => Some(subject),
                    (Direction::Egress, Peer::Pod(who)) => Some(who),
                    (Direction::Egress, _) => None,
                };
                match listens {
                    Some(Who::Pod(pod)) if !named_ports.is_empty() => (subject, Some((pod, named_ports))),
                    _ => (subject, None),
                }
            }
        };
        let base = base.get_or_insert_with(|| self::base(objects, snapshot));
        let own_node = match subject {
            Who::Pod(pod) => base.world.pods.get(pod).and_then(|pod| pod.node.clone()),
            Who::Like(_) => None,
        };
        groups.entry(Key { own_node, ports }).or_default().push(at);
    }
    let Some(base) = base else { return outcomes };
    for (key, members) in &groups {
        for chunk in members.chunks(CHUNK) {
            let judged = judge_chunk(&base, key, chunk.iter().map(|at| &cases[*at]));
            outcomes.extend(chunk.iter().copied().zip(judged));
        }
    }
    outcomes
}

fn base(objects: Option<&Vec<Objects>>, snapshot: Option<&Path>) -> Base {
    let files: Vec<File> = match (objects, snapshot) {
        (Some(objects), _) => objects.iter().enumerate().flat_map(|(at, objects)| read_objects(at, objects)).collect(),
        (None, Some(dir)) => read_path(dir),
        (None, None) => Vec::new(),
    };
    let snapshot = assemble(&files, &LastGood::default(), OnInvalid::Refuse);
    let mut world = snapshot.world;
    let namespaces: Vec<String> =
        world.pods.keys().map(|pod| pod.namespace.clone()).chain(world.namespaces.keys().cloned()).collect();
    namespaces.iter().for_each(|namespace| know_namespace(&mut world, namespace));
    // The settings of this machine don't matter to what a policy says.
    let config = settle_world(&mut world, &Source::nothing()).unwrap_or_default();
    Base { world, config, refusals: snapshot.refusals }
}

fn read_objects(at: usize, objects: &Objects) -> Vec<File> {
    match objects {
        Objects::Text(text) => vec![inline(&format!("objects[{at}]"), text)],
        Objects::Path(path) => read_path(path),
    }
}

fn inline(name: &str, text: &str) -> File {
    let json = text.trim_start().starts_with('{') && tree::json(text).is_ok();
    let name = format!("{name}.{}", if json { "json" } else { "yaml" });
    File { name, content: Ok(text.as_bytes().to_vec()) }
}

fn read_path(path: &Path) -> Vec<File> {
    if path.is_dir() {
        return files::read(path)
            .unwrap_or_else(|error| vec![File { name: path.display().to_string(), content: Err(error.to_string()) }]);
    }
    let name = path.file_name().map_or_else(PathBuf::new, PathBuf::from).display().to_string();
    vec![File { name, content: std::fs::read(path).map_err(|error| error.to_string()) }]
}

fn judge_chunk<'c>(base: &Base, key: &Key<'_>, cases: impl Iterator<Item = &'c Case>) -> Vec<Outcome> {
    let mut world = World { own_node: key.own_node.clone(), ..base.world.clone() };
    let mut stand_ins = StandIns::default();
    stand_ins.place(&mut world);
    if let Some((pod, ports)) = key.ports
        && let Some(pod) = world.pods.get_mut(pod)
    {
        let given =
            |port: &ContainerPort| ports.iter().any(|one| (&one.name, one.protocol) == (&port.name, port.protocol));
        pod.ports.retain(|port| !given(port));
        pod.ports.extend(ports.iter().cloned());
    }
    let settled: Vec<Settled<'c>> = cases.map(|case| settle(case, &mut world, &mut stand_ins)).collect();
    let surroundings = Surroundings { assume_dns: true, ..run::surroundings(&base.config, &world, Vec::new()) };
    let explainer = Explainer::new(&world, surroundings);
    settled.into_iter().map(|settled| outcome(&explainer, settled, &base.refusals)).collect()
}

/// A case whose pods are in the world.
struct Settled<'c> {
    case: &'c Case,
    subject: PodRef,
    address: Address<'c>,
}

/// The other side of a settled case.
enum Address<'c> {
    /// None: a query.
    None,
    Known(IpAddr),
    /// Somewhere outside, at an address that nobody has and no rule knows by its block.
    Outside,
    /// Nowhere: nobody is there.
    Nobody,
    Learned(&'c Name, Option<IpAddr>),
    Wrong(String),
}

fn settle<'c>(case: &'c Case, world: &mut World, stand_ins: &mut StandIns) -> Settled<'c> {
    let settle_who = |world: &mut World, stand_ins: &mut StandIns, who: &Who, ports: &[ContainerPort]| match who {
        Who::Pod(pod) => pod.clone(),
        Who::Like(like) => stand_ins.pod(world, like, ports),
    };
    match &case.what {
        What::Query { subject, .. } => {
            let subject = settle_who(world, stand_ins, subject, &[]);
            Settled { case, subject, address: Address::None }
        }
        What::Connection { subject, direction, peer, port, named_ports } => {
            let own: &[ContainerPort] = if *direction == Direction::Ingress { named_ports } else { &[] };
            let subject = settle_who(world, stand_ins, subject, own);
            let of_peer: &[ContainerPort] = if *direction == Direction::Egress { named_ports } else { &[] };
            let address = match peer {
                Peer::Address(address) => Address::Known(*address),
                Peer::Name(name, address) => Address::Learned(name, *address),
                Peer::Entity(entity) => match entity {
                    Entity::All | Entity::World => Address::Outside,
                    Entity::None => Address::Nobody,
                    Entity::Host => Address::Known(stand_ins.own_node(world)),
                    Entity::RemoteNode => Address::Known(stand_ins.other_node(world)),
                    Entity::KubeApiserver => Address::Known(stand_ins.apiserver(world)),
                    // Nobody here, or any pod at all: a pod that no label tells anything of.
                    Entity::Cluster
                    | Entity::ClusterMesh
                    | Entity::Ingress
                    | Entity::Init
                    | Entity::Health
                    | Entity::Unmanaged => {
                        let namespace = "(any)".to_owned();
                        let like = Like { namespace, labels: BTreeMap::new(), service_account: None };
                        let pod = stand_ins.pod(world, &like, of_peer);
                        Address::Known(world.pods[&pod].addresses[0])
                    }
                },
                Peer::Pod(who) => {
                    let pod = settle_who(world, stand_ins, who, of_peer);
                    let addresses = world.pods.get(&pod).map_or(&[][..], |pod| &pod.addresses);
                    let v6 = port.0 == Protocol::Icmpv6;
                    match addresses.iter().find(|address| address.is_ipv6() == v6).or(addresses.first()) {
                        Some(address) => Address::Known(*address),
                        None => Address::Wrong(format!("pod {pod} is not there, or has no address")),
                    }
                }
            };
            Settled { case, subject, address }
        }
        What::Manifest { .. } => unreachable!("a manifest is judged by itself"),
    }
}

fn outcome(explainer: &Explainer<'_>, settled: Settled<'_>, refusals: &[Refusal]) -> Outcome {
    let Settled { case, subject, address } = settled;
    let (got, mut why, mut chain) = match verdict(explainer, case, &subject, address) {
        Ok((allowed, why, chain)) => (if allowed { Expect::Allow } else { Expect::Deny }.text(), why, chain),
        Err(why) => ("error", why, String::new()),
    };
    for refusal in refusals {
        let _ = write!(why, "; refused: {}: {}: {}", refusal.place, refusal.object, refusal.text);
        let _ = writeln!(chain, "refused: {}: {}: {}", refusal.place, refusal.object, refusal.text);
    }
    let expect = case.expect.text();
    Outcome { id: case.id.clone(), expect, got, ok: got == expect, why, chain }
}

/// Whether it is allowed, why, and the chain; or why it can't be judged.
type Judged = Result<(bool, String, String), String>;

fn verdict(explainer: &Explainer<'_>, case: &Case, subject: &PodRef, address: Address<'_>) -> Judged {
    let rules = explainer.rules(subject)?;
    let (direction, (protocol, port)) = match &case.what {
        What::Query { name, qtype, resolver, .. } => return query(explainer, subject, (name, *qtype), *resolver),
        What::Connection { direction, port, .. } => (*direction, *port),
        What::Manifest { .. } => return Err("a manifest has no verdict".to_owned()),
    };
    let mut names: &[Name] = &[];
    let (mut bits, mut note) = (Bits::NONE, None);
    let v6 = protocol == Protocol::Icmpv6;
    let address = match address {
        Address::None => return Err("there is no peer".to_owned()),
        Address::Wrong(why) => return Err(why),
        Address::Nobody => {
            let why = "denied: entity none is nobody, whatever is allowed".to_owned();
            return Ok((false, why.clone(), format!("{why}\n")));
        }
        Address::Known(address) => address,
        Address::Outside => explainer.outside(&rules, v6),
        Address::Learned(name, address) => {
            let address = address.unwrap_or_else(|| explainer.outside(&rules, v6));
            match explainer.grants(&rules, name, address) {
                Ok(granted) => (bits, names) = (granted, std::slice::from_ref(name)),
                Err(why) => note = Some(why),
            }
            address
        }
    };
    let protocol = match protocol {
        Protocol::Icmp if address.is_ipv6() => Protocol::Icmpv6,
        Protocol::Icmpv6 if address.is_ipv4() => Protocol::Icmp,
        other => other,
    };
    let mut side = explainer.side((subject, &rules), direction, address, Some((protocol, port)), (names, bits));
    side.notes.extend(note);
    let mut chain = String::new();
    let selecting = explainer.selected_by(subject);
    let policies: Vec<String> = selecting.iter().map(|rule| format!("{} ({})", rule.policy, rule.place)).collect();
    let _ =
        writeln!(chain, "selected by {}", if policies.is_empty() { "nothing".to_owned() } else { policies.join(", ") });
    text::connection(&side, 0, &mut chain);
    Ok((side.allowed, sentence(&side), chain))
}

fn query(
    explainer: &Explainer<'_>,
    subject: &PodRef,
    (name, qtype): (&Result<Name, String>, u16),
    resolver: Option<IpAddr>,
) -> Judged {
    let rules = explainer.rules(subject)?;
    let name = match name {
        Ok(name) => name,
        Err(why) => {
            let why = format!("no message of DNS can ask for it: {why}");
            let chain = format!("{why}\n");
            return Ok((false, why, chain));
        }
    };
    let answers = explainer.queries(subject, &rules, (name, qtype), resolver);
    let answer = answers.iter().find(|answer| answer.allowed).or(answers.first()).ok_or("there is no server to ask")?;
    let at = answer.resolver.map_or_else(|| "no server".to_owned(), |server| format!("{server} on {}", answer.port));
    let verdict = if answer.allowed { "may be asked" } else { "may not be asked" };
    let hint = answer.hint.as_ref().map_or_else(String::new, |hint| format!("; {hint}"));
    let why = format!("{verdict} of {at} ({}){}{hint}", answer.reason, first(&answer.by, " by "));
    let chain = format!("{why}\n");
    Ok((answer.allowed, why, chain))
}

fn sentence(side: &Connection) -> String {
    let before = match side.verdict {
        Verdict::NotAllowed | Verdict::UnknownResolver => "; default deny by ",
        _ => " by ",
    };
    let mut why = format!("{}{}", side.verdict.text(), first(&side.by, before));
    why.push_str(&first(&side.nearest, "; nearest: "));
    for note in &side.notes {
        let _ = write!(why, "; {note}");
    }
    why
}

fn first(lines: &[Line], before: &str) -> String {
    let Some(line) = lines.first() else { return String::new() };
    let says = if line.says.is_empty() { String::new() } else { format!(": {}", line.says) };
    format!("{before}{} {} ({}){says}", line.policy, line.path, line.place)
}

/// Whether a manifest would be refused.
fn manifest(case: &Case, text: &str, message: Option<&str>) -> Outcome {
    let file = inline("manifest", text);
    let snapshot = assemble(&[file], &LastGood::default(), OnInvalid::Refuse);
    let mut faults: Vec<String> =
        snapshot.refusals.iter().map(|one| format!("{}: {}: {}", one.place, one.object, one.text)).collect();
    if faults.is_empty() && snapshot.world == World::default() {
        faults.push("nothing in it is an object of a kind that namegate reads".to_owned());
    }
    let got = if faults.is_empty() { Expect::Valid } else { Expect::Refused };
    let mut why = if faults.is_empty() { "nothing is wrong with it".to_owned() } else { faults.join("; ") };
    let mut ok = got == case.expect;
    if let Some(message) = message
        && got == Expect::Refused
        && !faults.iter().any(|fault| fault.contains(message))
    {
        ok = false;
        let _ = write!(why, "; the message {message:?} is not in that");
    }
    let chain = format!("{}\n", why.replace("; ", "\n"));
    Outcome { id: case.id.clone(), expect: case.expect.text(), got: got.text(), ok, why, chain }
}
