//! NetworkPolicy of Kubernetes, with Kubernetes' own defaults: an absent `from` or `to` is everyone, absent ports are all.

use std::collections::BTreeSet;

use super::super::selector::{self, Meant};
use super::{EGRESS, INGRESS, Owner, Words, peers, ports};
use crate::cluster::fields::Field;
use crate::cluster::tree::Value;
use crate::engine::labels::Selector;
use crate::engine::policy::{BlockOf, Item, Peers, Port, PortRule, Ports, Rule, Section, Subject};
use crate::engine::port::PortBlock;
use crate::engine::ruleset::{Direction, Protocol};

/// What `policyTypes` may hold.
const TYPES: [&str; 2] = ["Ingress", "Egress"];

/// The rule of an object.
pub(super) fn rule(owner: &Owner, object: &Field<'_>) -> Rule {
    let stray = object.only(&["apiVersion", "kind", "metadata", "spec", "status"]);
    let Some(spec) = object.need("spec").filter(|_| object.all("spec").count() == 1) else { return owner.shut(object) };
    if spec.entries().is_none() {
        return owner.shut(&spec);
    }
    let stray = spec.only(&["podSelector", "policyTypes", "ingress", "egress"]) || stray;
    let subject = match spec.get("podSelector") {
        None => Some(owner.everyone()),
        Some(field) => selector::selector(&field, Meant::KubernetesPods)
            .filter(|_| spec.all("podSelector").count() == 1)
            .map(|selector| Subject { namespace: owner.namespace.clone(), selector }),
    };
    let [shut_egress, shut_ingress] = if stray { [true; 2] } else { isolated(&spec) };
    let section = |words: &'static Words, shut: bool| {
        let read = section(owner, &spec, words);
        // What a policy says of a direction that it is not about has no effect.
        if shut { Section { default_deny: true, allow: read, ..Section::default() } } else { Section::default() }
    };
    Rule {
        at: owner.rule(&spec),
        subject: subject.unwrap_or_else(|| owner.everyone()),
        egress: section(&EGRESS, shut_egress),
        ingress: section(&INGRESS, shut_ingress),
    }
}

/// Which directions the policy is about: egress, ingress. Both, if that can't be read.
fn isolated(spec: &Field<'_>) -> [bool; 2] {
    let Some(types) = spec.get("policyTypes") else {
        // Kubernetes' default: ingress always, egress if the policy has a rule for it.
        let egress = spec.get("egress");
        let rules = egress.as_ref().map(|field| matches!(&field.node.value, Value::List(items) if items.is_empty()));
        return [rules == Some(false), true];
    };
    let Some(list) = types.list() else { return [true; 2] };
    if list.len() == 0 {
        types.fault(format!("no type; {} are allowed, or no policyTypes at all", TYPES.join(", ")));
        return [true; 2];
    }
    if list.len() > TYPES.len() {
        types.fault(format!("{} types; up to {} are allowed: {}", list.len(), TYPES.len(), TYPES.join(", ")));
    }
    let types: Option<Vec<_>> = list.map(|word| word.one_of("type", &TYPES)).collect();
    match types {
        Some(types) => [types.contains(&"Egress"), types.contains(&"Ingress")],
        None => [true; 2],
    }
}

fn section(owner: &Owner, spec: &Field<'_>, words: &'static Words) -> Vec<Item> {
    let list = spec.get(words.allow);
    list.iter().filter_map(Field::list).flatten().flat_map(|field| items(owner, &field, words)).collect()
}

/// The items that a rule comes to: one for each of its peers.
fn items(owner: &Owner, field: &Field<'_>, words: &Words) -> Vec<Item> {
    let peer_key = if words.direction == Direction::Egress { "to" } else { "from" };
    field.only(&[peer_key, "ports"]);
    let ports = ports(owner, field);
    let peers = field.get(peer_key);
    match peers.as_ref().map(Field::list) {
        Some(Some(list)) if list.len() > 0 => list
            .filter_map(|peer| {
                Some(Item { at: owner.rule(&peer), peers: self::peers(owner, &peer)?, ports: ports.clone() })
            })
            .collect(),
        Some(None) => Vec::new(),
        _ => vec![Item { at: owner.rule(field), peers: Peers::Any, ports }],
    }
}

fn peers(owner: &Owner, peer: &Field<'_>) -> Option<Peers> {
    peer.only(&["podSelector", "namespaceSelector", "ipBlock"]);
    let pods = peer.get("podSelector");
    let namespaces = peer.get("namespaceSelector");
    if let Some(block) = peer.get("ipBlock") {
        if pods.is_some() || namespaces.is_some() {
            peer.fault("ipBlock with a selector; one of them is allowed");
        }
        block.only(&["cidr", "except"]);
        block.need("cidr");
        let read = peers::block(&block)?;
        let except = block.get("except");
        for (field, exception) in except.iter().filter_map(Field::list).flatten().zip(&read.except) {
            if read.of == BlockOf::Here(*exception) {
                field.fault(format!("{exception} is the whole of cidr; a smaller part of it is allowed"));
            }
        }
        return Some(Peers::Networks(vec![read]));
    }
    if pods.is_none() && namespaces.is_none() {
        if matches!(peer.node.value, Value::Map(_)) {
            peer.fault("neither podSelector nor namespaceSelector nor ipBlock; one is needed");
        }
        return None;
    }
    let pods = match &pods {
        Some(field) => selector::selector(field, Meant::KubernetesPods)?,
        None => Selector::default(),
    };
    let selector = match &namespaces {
        Some(field) => {
            let mut namespaces = selector::selector(field, Meant::KubernetesNamespaces)?;
            namespaces.requirements.extend(pods.requirements);
            namespaces.in_any_namespace()
        }
        None => pods.in_namespace(owner.namespace.as_deref()?),
    };
    Some(Peers::Endpoints(vec![selector]))
}

fn ports(owner: &Owner, field: &Field<'_>) -> Ports {
    let Some(list) = field.get("ports") else { return Ports::All };
    match list.list() {
        Some(ports) if ports.len() > 0 => Ports::These(ports.filter_map(|port| port_rule(owner, &port)).collect()),
        _ => Ports::All,
    }
}

fn port_rule(owner: &Owner, field: &Field<'_>) -> Option<PortRule> {
    field.only(&["port", "endPort", "protocol"]);
    let protocol = match field.get("protocol") {
        Some(protocol) => protocol.one_of("protocol", &["TCP", "UDP", "SCTP"])?,
        None => "TCP",
    };
    let protocol = match protocol {
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => Protocol::Tcp,
    };
    let first = match field.get("port") {
        Some(port) => self::port(&port)?,
        None => Port::Block(PortBlock::ANY),
    };
    let ports = match (field.get("endPort"), &first) {
        (None, _) => vec![first],
        (Some(end), Port::Block(block)) if *block != PortBlock::ANY => {
            let last = end.port()?;
            if last < block.first() {
                end.fault(format!(
                    "endPort {last} below port {}; the last port of the range is allowed",
                    block.first()
                ));
                return None;
            }
            PortBlock::of_range(block.first(), last).into_iter().map(Port::Block).collect()
        }
        (Some(end), _) => {
            end.fault("endPort without a port by number; it is needed");
            return None;
        }
    };
    let ports: BTreeSet<_> = ports.into_iter().map(|port| (protocol, port)).collect();
    Some(PortRule { at: owner.rule(field), ports, service: None, dns: None })
}

fn port(field: &Field<'_>) -> Option<Port> {
    match &field.node.value {
        Value::Text(text) if ports::is_port_name(text) && !text.bytes().any(|octet| octet.is_ascii_uppercase()) => {
            Some(Port::Named(text.to_string()))
        }
        Value::Text(text) => {
            let allowed = "a number without quotes or a name of up to 15 a-z 0-9 - is allowed";
            field.fault(format!("port {text:?}; {allowed}"));
            None
        }
        _ => field.port().map(|port| Port::Block(PortBlock::one(port))),
    }
}
