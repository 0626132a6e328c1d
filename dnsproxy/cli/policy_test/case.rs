//! A case as it is written, and typed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::cluster::fields::{Field, Reader, Source};
use crate::cluster::tree::{self, Node, TreeError, Value, write_json};
use crate::engine::endpoint::PodRef;
use crate::engine::explain::question::{self, Like};
use crate::engine::explain::words;
use crate::engine::name::Name;
use crate::engine::policy::Entity;
use crate::engine::ruleset::{Direction, Protocol};
use crate::engine::world::ContainerPort;

/// One case.
#[derive(Debug)]
pub struct Case {
    /// What it is called.
    pub id: Json,
    /// What is expected.
    pub expect: Expect,
    /// The objects it is about; none: those of the snapshot.
    pub objects: Option<Vec<Objects>>,
    /// What is asked.
    pub what: What,
}

/// A case that can't be read.
#[derive(Debug)]
pub struct Wrong {
    /// What it is called, as far as that can be read.
    pub id: Json,
    /// What is wrong, a line each, with its place.
    pub faults: Vec<String>,
}

/// What a case expects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    Allow,
    Deny,
    Valid,
    Refused,
}

/// Objects of a case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Objects {
    /// Manifests.
    Text(String),
    /// A file, or a directory.
    Path(PathBuf),
}

/// What a case asks.
#[derive(Debug)]
pub enum What {
    Connection {
        subject: Who,
        direction: Direction,
        peer: Peer,
        /// ICMP: type << 8.
        port: (Protocol, u16),
        named_ports: Vec<ContainerPort>,
    },
    Query {
        subject: Who,
        /// What is wrong with it, if it can't be asked for.
        name: Result<Name, String>,
        qtype: u16,
        resolver: Option<IpAddr>,
    },
    Manifest {
        text: String,
        message: Option<String>,
    },
}

/// A pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Who {
    /// That is there.
    Pod(PodRef),
    /// With these labels.
    Like(Like),
}

/// The other side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    Pod(Who),
    Entity(Entity),
    Address(IpAddr),
    Name(Name, Option<IpAddr>),
}

const FIELDS: [&str; 14] = [
    "id",
    "objects",
    "subject",
    "direction",
    "peer",
    "port",
    "protocol",
    "icmp_type",
    "named_ports",
    "expect",
    "query",
    "qtype",
    "resolver",
    "manifest",
];

impl Expect {
    /// As it is written.
    pub fn text(self) -> &'static str {
        match self {
            Expect::Allow => "allow",
            Expect::Deny => "deny",
            Expect::Valid => "valid",
            Expect::Refused => "refused",
        }
    }
}

/// The cases of a file: YAML documents, JSON lines, or lists of cases.
///
/// # Errors
/// The file as a whole is neither YAML nor JSON.
pub fn read(name: &str, text: &str, dir: &Path) -> Result<Vec<Result<Case, Wrong>>, String> {
    let ending = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    let starts = || text.trim_start_matches('\u{feff}').trim_start().starts_with(['{', '[']);
    let sniffed = || starts() && tree::json_lines(text).all(|line| line.is_ok());
    let lines = ending(&[".jsonl", ".ndjson"]);
    let json = lines || ending(&[".json"]) || (!ending(&[".yaml", ".yml"]) && sniffed());
    let fault = |error: TreeError| format!("{name}:{}: {}", error.at, error.text);
    let cases = |document: &Node| -> Vec<_> {
        match &document.value {
            Value::List(cases) => cases.iter().map(|node| one(name, node, dir)).collect(),
            Value::Null => Vec::new(),
            _ => vec![one(name, document, dir)],
        }
    };
    if !json {
        return Ok(tree::yaml(text).map_err(fault)?.iter().flat_map(cases).collect());
    }
    let mut all = Vec::new();
    for document in tree::json_lines(text) {
        match document {
            Ok(document) => all.extend(cases(&document)),
            // A line is a case: the others can be read all the same.
            Err(error) if lines => {
                all.push(Err(Wrong { id: Json::from(format!("{name}:{}", error.at)), faults: vec![fault(error)] }));
            }
            Err(error) => return Err(fault(error)),
        }
    }
    Ok(all)
}

fn one(file: &str, node: &Node, dir: &Path) -> Result<Case, Wrong> {
    let reader = Reader::new(Source::File(file));
    let (id, case) = {
        let root = reader.root(node);
        let id = match node.get("id").map(|id| &id.value) {
            Some(Value::Text(text)) => Json::from(text.as_ref()),
            Some(Value::Number(text)) => serde_json::from_str(text).unwrap_or_else(|_| Json::from(text.as_ref())),
            None => Json::from(root.place()),
            Some(_) => {
                root.get("id").iter().for_each(|id| id.fault("no text; text or a number is allowed"));
                Json::from(root.place())
            }
        };
        let case = case(&root, dir);
        (id, case)
    };
    let faults: Vec<String> = reader.into_faults().iter().map(ToString::to_string).collect();
    match case {
        Some((expect, objects, what)) if faults.is_empty() => Ok(Case { id, expect, objects, what }),
        _ => Err(Wrong { id, faults }),
    }
}

fn case(root: &Field<'_>, dir: &Path) -> Option<(Expect, Option<Vec<Objects>>, What)> {
    let mut known = FIELDS.to_vec();
    known.push("message");
    root.only(&known);
    let objects = root.get_some("objects").map(|field| objects(&field, dir));
    let manifest = root.get("manifest");
    let allowed: &[Expect] =
        if manifest.is_some() { &[Expect::Valid, Expect::Refused] } else { &[Expect::Allow, Expect::Deny] };
    let expect = root.need("expect").and_then(|field| {
        let text = field.text()?;
        let found = allowed.iter().find(|expect| expect.text() == text).copied();
        if found.is_none() {
            field.fault(format!("{text:?}; allowed: {}, {}", allowed[0].text(), allowed[1].text()));
        }
        found
    });
    let not = |keys: &[&str], of: &str| {
        for key in keys {
            root.get(key).iter().for_each(|field| field.fault(format!("{key} in a case about {of}; leave it out")));
        }
    };
    let connection = ["direction", "peer", "port", "protocol", "icmp_type", "named_ports"];
    let what = if let Some(manifest) = manifest {
        not(&connection, "a manifest");
        not(&["subject", "objects", "query", "qtype", "resolver"], "a manifest");
        let text = match &manifest.node.value {
            Value::Text(text) => text.to_string(),
            Value::Map(_) => write_json(manifest.node),
            other => {
                manifest.fault(format!("{}; text or an object is allowed", other.describe()));
                return None;
            }
        };
        What::Manifest { text, message: root.get("message").and_then(|field| field.text().map(str::to_owned)) }
    } else {
        not(&["message"], "traffic");
        let subject = root.need("subject");
        let subject = subject.and_then(|field| who(&field, &["namespace", "labels", "pod", "service_account"]));
        if let Some(query) = root.get("query") {
            not(&connection, "a query");
            self::query(root, &query, subject)?
        } else {
            not(&["qtype", "resolver"], "a connection");
            self::connection(root, subject)?
        }
    };
    Some((expect?, objects, what))
}

fn query(root: &Field<'_>, query: &Field<'_>, subject: Option<Who>) -> Option<What> {
    let name = query.text().map(|text| Name::parse(text).map_err(|error| error.to_string()));
    let qtype = match root.get_some("qtype") {
        None => Some(1),
        Some(field) => field.text().and_then(|text| noted(&field, question::qtype(text))),
    };
    let resolver = root.get_some("resolver").and_then(|field| field.address());
    Some(What::Query { subject: subject?, name: name?, qtype: qtype?, resolver })
}

fn connection(root: &Field<'_>, subject: Option<Who>) -> Option<What> {
    let direction = root.need("direction").and_then(|field| match field.text()? {
        "egress" => Some(Direction::Egress),
        "ingress" => Some(Direction::Ingress),
        other => {
            field.fault(format!("{other:?}; allowed: egress, ingress"));
            None
        }
    });
    let peer = root.need("peer").and_then(|field| peer(&field, direction));
    let named_ports = root.get_some("named_ports").map_or_else(Vec::new, |field| named_ports(&field));
    let icmp = root.get_some("icmp_type");
    let protocol = match root.get_some("protocol") {
        None => Some(if icmp.is_some() { Protocol::Icmp } else { Protocol::Tcp }),
        Some(field) => field.text().and_then(|text| {
            let found = question::protocol(text);
            if found.is_none() {
                field.fault(format!("{text:?}; allowed: TCP, UDP, SCTP, ICMP, ICMPv6"));
            }
            found
        }),
    };
    let protocol = protocol?;
    let port = if matches!(protocol, Protocol::Icmp | Protocol::Icmpv6) {
        root.get("port").iter().for_each(|field| field.fault("a port of ICMP; icmp_type is allowed"));
        let field = root.need("icmp_type")?;
        number(&field, 255).map(|number| number << 8)
    } else {
        icmp.iter().for_each(|field| field.fault("icmp_type without protocol ICMP or ICMPv6"));
        let field = root.need("port")?;
        match &field.node.value {
            Value::Text(text) if !text.bytes().all(|octet| octet.is_ascii_digit()) => {
                let found = named_ports.iter().find(|port| port.name == **text && port.protocol == protocol);
                if found.is_none() {
                    field.fault(format!("{text:?} is no number and none of named_ports"));
                }
                found.map(|port| port.port)
            }
            _ => number(&field, u16::MAX).filter(|number| {
                if *number == 0 {
                    field.fault("port 0; 1 to 65535 is allowed");
                }
                *number > 0
            }),
        }
    };
    Some(What::Connection {
        subject: subject?,
        direction: direction?,
        peer: peer?,
        port: (protocol, port?),
        named_ports,
    })
}

fn noted<T>(field: &Field<'_>, read: Result<T, String>) -> Option<T> {
    read.map_err(|error| field.fault(error)).ok()
}

fn number(field: &Field<'_>, most: u16) -> Option<u16> {
    let found = match &field.node.value {
        Value::Number(text) | Value::Text(text) => text.parse::<u16>().ok().filter(|number| *number <= most),
        _ => None,
    };
    if found.is_none() {
        field.fault(format!("{}; a number up to {most} is allowed", field.node.value.describe()));
    }
    found
}

fn named_ports(field: &Field<'_>) -> Vec<ContainerPort> {
    let mut ports = Vec::new();
    for (word, _) in field.entries().unwrap_or_default() {
        let Some(of) = field.get(&word.text) else { continue };
        let Some(protocol) = question::protocol(&word.text) else {
            of.fault(format!("protocol {:?}; allowed: TCP, UDP, SCTP", word.text));
            continue;
        };
        for (name, _) in of.entries().unwrap_or_default() {
            let port = of.get(&name.text).and_then(|port| number(&port, u16::MAX));
            ports.extend(port.map(|port| ContainerPort { name: name.text.to_string(), protocol, port }));
        }
    }
    ports.sort();
    ports
}

/// A pod by name or labels.
fn who(field: &Field<'_>, known: &[&str]) -> Option<Who> {
    field.entries()?;
    field.only(known);
    let text = |key| field.get_some(key).and_then(|field| field.text().map(str::to_owned));
    let namespace = text("namespace");
    if let Some(pod) = field.get_some("pod") {
        for key in ["labels", "service_account"] {
            field.get(key).iter().for_each(|field| field.fault(format!("{key} beside pod; its object has them")));
        }
        let named = pod.text()?;
        let whole = if named.contains('/') {
            named.to_owned()
        } else {
            format!("{}/{named}", namespace.as_deref().unwrap_or("default"))
        };
        return noted(&pod, question::pod(&whole)).map(Who::Pod);
    }
    let labels = field.get_some("labels").map_or_else(BTreeMap::new, |labels| {
        let entries = labels.entries().unwrap_or_default();
        let read = entries.iter().filter_map(|(key, _)| {
            let value = labels.get(&key.text)?;
            if key.text.starts_with("reserved:") {
                value.fault(format!("{} is no label of a pod; entity says who is no pod", key.text));
            }
            let plain = ["k8s:", "any:"].iter().find_map(|source| key.text.strip_prefix(source)).unwrap_or(&key.text);
            Some((plain.to_owned(), value.text()?.to_owned()))
        });
        read.collect()
    });
    let namespace = namespace.unwrap_or_else(|| "default".to_owned());
    Some(Who::Like(Like { namespace, labels, service_account: text("service_account") }))
}

fn peer(field: &Field<'_>, direction: Option<Direction>) -> Option<Peer> {
    field.entries()?;
    if let Some(entity) = field.get("entity") {
        field.only(&["entity"]);
        let text = entity.text()?;
        let all = [
            Entity::All,
            Entity::World,
            Entity::Cluster,
            Entity::ClusterMesh,
            Entity::Host,
            Entity::RemoteNode,
            Entity::KubeApiserver,
            Entity::Ingress,
            Entity::Init,
            Entity::Health,
            Entity::Unmanaged,
            Entity::None,
        ];
        let found = all.into_iter().find(|entity| words::entity(*entity) == text);
        if found.is_none() {
            let all: Vec<&str> = all.into_iter().map(words::entity).collect();
            entity.fault(format!("{text:?} is no entity; allowed: {}", all.join(", ")));
        }
        return found.map(Peer::Entity);
    }
    if let Some(fqdn) = field.get("fqdn") {
        field.only(&["fqdn", "ip"]);
        if direction == Some(Direction::Ingress) {
            fqdn.fault("a name as peer of ingress; names are of egress");
        }
        let name = fqdn.text().and_then(|text| noted(&fqdn, Name::parse(text).map_err(|error| error.to_string())));
        let address = match field.get_some("ip") {
            Some(ip) => Some(ip.address()?),
            None => None,
        };
        return Some(Peer::Name(name?, address));
    }
    if let Some(ip) = field.get("ip") {
        field.only(&["ip"]);
        return ip.address().map(Peer::Address);
    }
    who(field, &["namespace", "labels", "pod", "service_account", "entity", "ip", "fqdn"]).map(Peer::Pod)
}

/// Manifests, and paths from the case's own directory.
fn objects(field: &Field<'_>, dir: &Path) -> Vec<Objects> {
    let one = |field: &Field<'_>| match &field.node.value {
        Value::Map(_) => Some(Objects::Text(write_json(field.node))),
        Value::Text(text) if text.contains('\n') || text.trim_start().starts_with('{') => {
            Some(Objects::Text(text.to_string()))
        }
        Value::Text(text) => {
            let path = dir.join(&**text);
            if !path.exists() {
                field.fault(format!("{text:?}: no such file or directory beside the case; manifests are allowed too"));
            }
            Some(Objects::Path(path))
        }
        other => {
            field.fault(format!("{}; an object, the text of manifests or a path is allowed", other.describe()));
            None
        }
    };
    match &field.node.value {
        Value::List(_) => field.list().into_iter().flatten().filter_map(|item| one(&item)).collect(),
        _ => one(field).into_iter().collect(),
    }
}
