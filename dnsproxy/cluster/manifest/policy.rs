//! Policies, as far as namegate reads them, and what still holds of those it refuses.
//!
//! Refusing never opens (I10): a refused policy selects whom it selects, or everyone in its namespace (for a clusterwide
//! one everyone at all) if that can't be read. It shuts the directions that it names, or both. Its denials stay; one with a
//! part that can't be read denies without that part, which is more.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::selector::{self, Meant};
use super::{Kind, names};
use crate::cluster::fields::Field;
use crate::cluster::tree::Value;
use crate::engine::labels::Selector;
use crate::engine::pattern::Pattern;
use crate::engine::policy::{
    Block, Entity, Item, NameRule, Peers, Policy, Port, PortRule, Ports, Rule, Section, Subject,
};
use crate::engine::port::PortBlock;
use crate::engine::ruleset::{Direction, Protocol};
use crate::engine::verdict::{RuleRef, RuleText};

/// The most ports in one entry of `toPorts`, as in Cilium.
const PORTS: usize = 40;

/// Whose rule is being read.
struct Owner {
    kind: Kind,
    namespace: Option<String>,
    name: String,
}

/// The names of one direction's fields.
struct Words {
    direction: Direction,
    allow: &'static str,
    deny: &'static str,
    endpoints: &'static str,
    cidr: &'static str,
    entities: &'static str,
    /// Peers that are not read yet.
    later: &'static [&'static str],
}

const EGRESS: Words = Words {
    direction: Direction::Egress,
    allow: "egress",
    deny: "egressDeny",
    endpoints: "toEndpoints",
    cidr: "toCIDR",
    entities: "toEntities",
    later: &["toCIDRSet", "toServices", "toGroups", "toNodes", "toRequires"],
};

const INGRESS: Words = Words {
    direction: Direction::Ingress,
    allow: "ingress",
    deny: "ingressDeny",
    endpoints: "fromEndpoints",
    cidr: "fromCIDR",
    entities: "fromEntities",
    later: &["fromCIDRSet", "fromGroups", "fromNodes", "fromRequires"],
};

/// Reads a policy of any kind. Whether it may be used as a whole, the object's faults say.
pub(super) fn policy(kind: Kind, object: &Field<'_>) -> Policy {
    let (namespace, name) = names(kind, object);
    let owner = Owner { kind, namespace, name: name.unwrap_or_else(|| format!("({})", object.place())) };
    let at = owner.rule(object);
    let rules = match kind {
        Kind::CiliumNetworkPolicy => cilium(&owner, object),
        Kind::CiliumClusterwideNetworkPolicy => {
            object.fault(format!("{kind} is not read by namegate yet; allowed: CiliumNetworkPolicy"));
            cilium(&owner, object)
        }
        Kind::NetworkPolicy => {
            object.fault(format!("{kind} is not read by namegate yet; allowed: CiliumNetworkPolicy"));
            vec![network_policy(&owner, object)]
        }
        Kind::CiliumCidrGroup => {
            object.fault(format!("{kind} is not read by namegate yet; write its blocks into toCIDR or fromCIDR"));
            Vec::new()
        }
        _ => {
            object.fault(format!("{kind} is not read by namegate yet; allowed: CiliumNetworkPolicy"));
            vec![owner.shut(object)]
        }
    };
    Policy { at, rules }
}

/// What stands for something unreadable: it shuts both directions of everyone.
pub fn shut(kind: &str, name: &str, place: &str) -> Policy {
    let text =
        RuleText { kind: kind.to_owned(), policy: name.to_owned(), place: place.to_owned(), ..RuleText::default() };
    let at = RuleRef(Arc::new(text));
    let rule = Rule { at: at.clone(), subject: Subject::default(), egress: Section::shut(), ingress: Section::shut() };
    Policy { at, rules: vec![rule] }
}

impl Owner {
    fn rule(&self, field: &Field<'_>) -> RuleRef {
        RuleRef(Arc::new(RuleText {
            kind: self.kind.name().to_owned(),
            namespace: self.namespace.clone().unwrap_or_default(),
            policy: self.name.clone(),
            place: field.place(),
            path: field.path(),
        }))
    }

    /// Everyone whom the policy could mean.
    fn everyone(&self) -> Subject {
        Subject { namespace: self.namespace.clone(), selector: Selector::default() }
    }

    fn shut(&self, field: &Field<'_>) -> Rule {
        Rule { at: self.rule(field), subject: self.everyone(), egress: Section::shut(), ingress: Section::shut() }
    }

    /// A peer selector means pods of the policy's own namespace, unless it names namespaces or what is no pod.
    fn scoped(&self, selector: Selector) -> Selector {
        if selector.names_reserved() || selector.names_namespace() {
            return selector;
        }
        match &self.namespace {
            Some(namespace) => selector.in_namespace(namespace),
            None => selector.in_any_namespace(),
        }
    }
}

fn cilium(owner: &Owner, object: &Field<'_>) -> Vec<Rule> {
    let mut rules = Vec::new();
    if object.only(&["apiVersion", "kind", "metadata", "spec", "specs", "status"], &[]) {
        rules.push(owner.shut(object));
    }
    for spec in object.all("spec") {
        rules.extend(rule(owner, &spec));
    }
    for specs in object.all("specs") {
        match specs.list() {
            Some(list) => list.for_each(|spec| rules.extend(rule(owner, &spec))),
            None => rules.push(owner.shut(&specs)),
        }
    }
    if object.get("spec").is_none() && object.get("specs").is_none() {
        object.fault("neither spec nor specs; one is needed");
        rules.push(owner.shut(object));
    }
    rules
}

fn rule(owner: &Owner, spec: &Field<'_>) -> Option<Rule> {
    if spec.entries().is_none() {
        return Some(owner.shut(spec));
    }
    let known = ["endpointSelector", "egress", "egressDeny", "ingress", "ingressDeny", "description"];
    let stray = spec.only(&known, &["nodeSelector", "enableDefaultDeny", "labels", "log"]);
    if let Some(description) = spec.get("description") {
        description.text();
    }
    let subject = match spec.get("endpointSelector") {
        Some(_) if spec.all("endpointSelector").count() > 1 => None,
        Some(field) => {
            let selector = selector::selector(&field, Meant::Subjects);
            if let Some(namespace) = &owner.namespace {
                selector::check_namespace(&field, namespace);
            }
            let namespace = owner.namespace.clone();
            selector.map(|selector| Subject { namespace, selector })
        }
        // A host policy: it selects no pod, whatever else it says.
        None if owner.kind == Kind::CiliumClusterwideNetworkPolicy && spec.get("nodeSelector").is_some() => {
            return None;
        }
        None => {
            spec.fault("no endpointSelector; it is needed, {} selects all pods of the namespace");
            None
        }
    };
    let mut egress = section(owner, spec, &EGRESS);
    let mut ingress = section(owner, spec, &INGRESS);
    let silent = !egress.default_deny && !ingress.default_deny;
    if silent {
        spec.fault("no rule in any direction; one of egress, egressDeny, ingress, ingressDeny with an item is needed");
    }
    if silent || stray {
        // A misspelled field could have been either direction.
        egress.default_deny = true;
        ingress.default_deny = true;
    }
    Some(Rule { at: owner.rule(spec), subject: subject.unwrap_or_else(|| owner.everyone()), egress, ingress })
}

fn section(owner: &Owner, spec: &Field<'_>, words: &Words) -> Section {
    let mut section = Section::default();
    for (key, deny) in [(words.allow, false), (words.deny, true)] {
        for field in spec.all(key) {
            let Some(list) = field.list() else {
                section.default_deny = true;
                if deny {
                    section.deny.push(Item { at: owner.rule(&field), peers: Peers::Any, ports: Ports::All });
                }
                continue;
            };
            section.default_deny |= list.len() > 0;
            let items = list.map(|field| item(owner, &field, words, deny));
            if deny { section.deny.extend(items) } else { section.allow.extend(items) }
        }
    }
    section
}

fn item(owner: &Owner, field: &Field<'_>, words: &Words, deny: bool) -> Item {
    let at = owner.rule(field);
    if field.entries().is_none() {
        return Item { at, peers: Peers::Any, ports: Ports::All };
    }
    let mut known = vec![words.endpoints, words.cidr, words.entities, "toPorts"];
    if !deny && words.direction == Direction::Egress {
        known.push("toFQDNs");
    }
    let later: Vec<&str> = words.later.iter().copied().chain(["icmps", "authentication"]).collect();
    let stray = field.only(&known, &later);
    let has = |key: &str| field.get(key).is_some();

    let before = field.faults();
    let ports = ports(owner, field, words, deny);
    let ports_wrong = stray || has("icmps") || field.faults() > before;

    let before = field.faults();
    let some_ports = !matches!(&ports, Ports::All) || ports_wrong;
    let peers = peers(owner, field, words, deny, some_ports);
    let peers_wrong = stray || words.later.iter().any(|key| has(key)) || field.faults() > before;

    if deny {
        let peers = if peers_wrong { Peers::Any } else { peers };
        let ports = if ports_wrong { Ports::All } else { ports };
        return Item { at, peers, ports };
    }
    if matches!(peers, Peers::Names(_))
        && let Ports::These(entries) = &ports
        && entries.iter().any(|entry| entry.dns.is_some())
    {
        field.fault("rules.dns with toFQDNs; the DNS server is named by toEndpoints, toCIDR or toEntities");
    }
    Item { at, peers, ports }
}

fn peers(owner: &Owner, item: &Field<'_>, words: &Words, deny: bool, some_ports: bool) -> Peers {
    let kinds = [words.endpoints, words.cidr, words.entities, "toFQDNs"];
    let present: Vec<&str> = kinds.into_iter().filter(|kind| item.get(kind).is_some()).collect();
    let field = match present.as_slice() {
        // Ports without a peer mean everyone, nothing at all means nobody.
        [] if some_ports => return Peers::Any,
        [] => return Peers::Endpoints(Vec::new()),
        [kind] => item.get(kind),
        [first, second, ..] => {
            item.fault(format!("{first} with {second}; one kind of peer an item is allowed"));
            return Peers::Any;
        }
    };
    let Some(list) = field.as_ref().and_then(Field::list) else { return Peers::Any };
    if item.get(words.endpoints).is_some() {
        let selectors = list.filter_map(|field| selector::selector(&field, Meant::Peers));
        return Peers::Endpoints(selectors.map(|selector| owner.scoped(selector)).collect());
    }
    if item.get(words.cidr).is_some() {
        return Peers::Networks(list.filter_map(|field| network(&field)).map(Block::from).collect());
    }
    if item.get(words.entities).is_some() {
        return Peers::Entities(list.filter_map(|field| entity(&field)).collect());
    }
    if deny || words.direction == Direction::Ingress {
        // Noted as an unknown field already.
        return Peers::Any;
    }
    Peers::Names(list.filter_map(|field| name_rule(owner, &field)).collect())
}

fn network(field: &Field<'_>) -> Option<IpNet> {
    let text = field.text()?;
    let network = text.parse::<IpNet>().ok().filter(|_| text.contains('/'));
    let Some(network) = network else {
        field.fault(format!("{text:?} is no block; an address with its prefix as \"192.0.2.0/24\" is allowed"));
        return None;
    };
    if let IpNet::V6(network) = network
        && network.addr().to_ipv4_mapped().is_some()
    {
        field.fault(format!("{text:?} is IPv4 inside IPv6; write it as IPv4"));
        return None;
    }
    Some(network.trunc())
}

fn entity(field: &Field<'_>) -> Option<Entity> {
    match field.text()? {
        "all" => Some(Entity::All),
        "world" => Some(Entity::World),
        "cluster" => Some(Entity::Cluster),
        "host" => Some(Entity::Host),
        other => {
            let later =
                ["remote-node", "kube-apiserver", "cluster-mesh", "ingress", "init", "health", "unmanaged", "none"];
            let what = if later.contains(&other) { "is not read by namegate yet" } else { "is no entity" };
            field.fault(format!("{other:?} {what}; allowed: all, world, cluster, host"));
            None
        }
    }
}

fn ports(owner: &Owner, item: &Field<'_>, words: &Words, deny: bool) -> Ports {
    let Some(field) = item.get("toPorts") else { return Ports::All };
    let Some(list) = field.list() else { return Ports::All };
    if list.len() == 0 {
        return Ports::All;
    }
    Ports::These(list.map(|entry| port_rule(owner, &entry, words, deny)).collect())
}

fn port_rule(owner: &Owner, entry: &Field<'_>, words: &Words, deny: bool) -> PortRule {
    let at = owner.rule(entry);
    let mut rule = PortRule { at, ports: BTreeSet::new(), service: None, dns: None };
    let known: &[&str] = if deny { &["ports"] } else { &["ports", "rules"] };
    entry.only(known, if deny { &[] } else { &["terminatingTLS", "originatingTLS", "serverNames", "listener"] });
    let mut numbers = Vec::new();
    if let Some(field) = entry.get("ports")
        && let Some(list) = field.list()
    {
        if list.len() > PORTS {
            field.fault(format!("{} ports; up to {PORTS} are allowed", list.len()));
        }
        numbers = list.filter_map(|field| port(&field)).collect();
        let each = |(protocols, port): &(&'static [Protocol], u16)| {
            let port = Port::Block(PortBlock::from(*port));
            protocols.iter().map(move |protocol| (*protocol, port.clone()))
        };
        rule.ports = numbers.iter().flat_map(each).collect();
    }
    if deny {
        return rule;
    }
    let Some(rules) = entry.get("rules") else { return rule };
    rules.only(&["dns"], &["http", "kafka", "l7", "l7proto"]);
    let Some(dns) = rules.get("dns") else { return rule };
    if words.direction == Direction::Ingress {
        dns.fault("rules.dns in ingress; only egress asks for names");
    }
    if rule.ports.is_empty() {
        dns.fault("rules.dns without ports; the port of the DNS server is needed, mostly \"53\"");
    }
    if numbers.iter().any(|(_, port)| *port == 0) {
        dns.fault("rules.dns on port 0; the port of the DNS server is needed, mostly \"53\"");
    }
    if numbers.iter().any(|(protocols, _)| *protocols == [Protocol::Sctp]) {
        dns.fault("rules.dns over SCTP; allowed: UDP, TCP, ANY");
    }
    let list = dns.list();
    if list.as_ref().is_some_and(|list| list.len() == 0) {
        dns.fault("rules.dns without a name; write matchPattern: \"*\" for every name, or leave it out");
    }
    rule.dns = Some(list.into_iter().flatten().filter_map(|field| name_rule(owner, &field)).collect());
    rule
}

/// One port with its protocols.
fn port(field: &Field<'_>) -> Option<(&'static [Protocol], u16)> {
    field.only(&["port", "protocol"], &["endPort"]);
    let protocols = match field.get("protocol") {
        None => Some([Protocol::Tcp, Protocol::Udp, Protocol::Sctp].as_slice()),
        Some(protocol) => protocol.text().and_then(|text| match text {
            "ANY" => Some([Protocol::Tcp, Protocol::Udp, Protocol::Sctp].as_slice()),
            "TCP" => Some(&[Protocol::Tcp]),
            "UDP" => Some(&[Protocol::Udp]),
            "SCTP" => Some(&[Protocol::Sctp]),
            other => {
                protocol.fault(format!("protocol {other:?}; allowed: TCP, UDP, SCTP, ANY"));
                None
            }
        }),
    };
    let number = field.need("port")?;
    let text = number.text()?;
    let digits = !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit());
    if !digits {
        let found = if text.is_empty() { "an empty port".to_owned() } else { format!("named port {text:?}") };
        number.fault(format!("{found}; a number from 0 to 65535 is allowed, 0 for every port"));
        return None;
    }
    if text.len() > 1 && text.starts_with('0') {
        let text = format!("{text:?} starts with 0, which Cilium reads as octal; write the number without it");
        number.fault(text);
        return None;
    }
    let Ok(port) = text.parse::<u16>() else {
        number.fault(format!("port {text}; a number from 0 to 65535 is allowed, 0 for every port"));
        return None;
    };
    Some((protocols?, port))
}

fn name_rule(owner: &Owner, field: &Field<'_>) -> Option<NameRule> {
    field.only(&["matchName", "matchPattern"], &[]);
    let pattern = match (field.get("matchName"), field.get("matchPattern")) {
        (Some(name), None) => (Pattern::name(name.text()?), name),
        (None, Some(pattern)) => (Pattern::pattern(pattern.text()?), pattern),
        (Some(_), Some(_)) => {
            field.fault("matchName with matchPattern; one of them is allowed");
            return None;
        }
        (None, None) => {
            if matches!(field.node.value, Value::Map(_)) {
                field.fault("neither matchName nor matchPattern; one is needed");
            }
            return None;
        }
    };
    match pattern {
        (Ok(pattern), _) => Some(NameRule { at: owner.rule(field), pattern }),
        (Err(error), at) => {
            at.fault(error.to_string());
            None
        }
    }
}

/// What a NetworkPolicy of Kubernetes shuts: its selector and its directions are all that is read.
fn network_policy(owner: &Owner, object: &Field<'_>) -> Rule {
    let Some(spec) = object.get("spec") else { return owner.shut(object) };
    let subject = match spec.get_some("podSelector") {
        None => Some(owner.everyone()),
        Some(field) => selector::selector(&field, Meant::Subjects)
            .map(|selector| Subject { namespace: owner.namespace.clone(), selector }),
    };
    let named = match spec.get("policyTypes") {
        // Kubernetes' default: ingress always, egress if the policy speaks of it.
        None => [spec.get("egress").is_some(), true],
        Some(types) => {
            let types: Option<Vec<&str>> = types.list().map(|list| list.filter_map(|word| word.text()).collect());
            let known = |word: &&str| matches!(*word, "Egress" | "Ingress");
            match types {
                Some(types) if !types.is_empty() && types.iter().all(known) => {
                    [types.contains(&"Egress"), types.contains(&"Ingress")]
                }
                _ => [true, true],
            }
        }
    };
    let section = |shut: bool| if shut { Section::shut() } else { Section::default() };
    Rule {
        at: owner.rule(&spec),
        subject: subject.unwrap_or_else(|| owner.everyone()),
        egress: section(named[0]),
        ingress: section(named[1]),
    }
}
