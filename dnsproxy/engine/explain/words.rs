//! Rules in words: selectors, peers and ports as short text.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::labels::{Operator, Selector, Source};
use crate::engine::policy::{BlockOf, Entity, Item, Peers, Port, PortRule, Ports, ServicePeer};
use crate::engine::port::PortBlock;
use crate::engine::ruleset::{Direction, Protocol};
use crate::engine::verdict::RuleRef;
use crate::engine::world::Holder;

/// How many of a long list are named.
const NAMED: usize = 6;

/// `CiliumNetworkPolicy shop/web`.
pub fn policy(rule: &RuleRef) -> String {
    if rule.0.kind.is_empty() { rule.to_string() } else { format!("{} {rule}", rule.0.kind) }
}

/// `egress` or `ingress`.
pub fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    }
}

/// `TCP`; a dash for every protocol.
pub fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Any => "-",
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
        Protocol::Icmp => "ICMP",
        Protocol::Icmpv6 => "ICMPv6",
    }
}

/// `443/TCP`, `8/ICMP`: one port, or a type of ICMP.
pub fn port(protocol: Protocol, port: u16) -> String {
    let number = if is_icmp(protocol) { port >> 8 } else { port };
    format!("{number}/{}", self::protocol(protocol))
}

/// Blocks of ports, adjacent ones as one: `every port`, `443/TCP`, `1024-65535/UDP`.
pub fn blocks(blocks: impl IntoIterator<Item = (Protocol, PortBlock)>) -> Vec<String> {
    let whole: Vec<_> = blocks.into_iter().map(|(protocol, block)| (protocol, block.first(), block.last())).collect();
    ranges(&whole)
}

/// The same of ranges: protocol, first and last port.
pub fn ranges(all: &[(Protocol, u16, u16)]) -> Vec<String> {
    let mut by_protocol: BTreeMap<Protocol, BTreeSet<(u16, u16)>> = BTreeMap::new();
    for (protocol, first, last) in all {
        by_protocol.entry(*protocol).or_default().insert((*first, *last));
    }
    let mut texts = Vec::new();
    for (protocol, ranges) in by_protocol {
        let mut whole: Vec<(u16, u16)> = Vec::new();
        for (first, last) in ranges {
            match whole.last_mut().filter(|before| u32::from(first) <= u32::from(before.1) + 1) {
                Some(before) => before.1 = before.1.max(last),
                None => whole.push((first, last)),
            }
        }
        texts.extend(whole.into_iter().map(|range| range_text(protocol, range)));
    }
    texts
}

fn range_text(protocol: Protocol, (first, last): (u16, u16)) -> String {
    let word = self::protocol(protocol);
    match (protocol, first, last) {
        (Protocol::Any, 0, u16::MAX) => "every port".to_owned(),
        (_, 0, u16::MAX) => format!("every port/{word}"),
        _ if is_icmp(protocol) && first >> 8 == last >> 8 => format!("{}/{word}", first >> 8),
        _ if is_icmp(protocol) => format!("{}-{}/{word}", first >> 8, last >> 8),
        _ if first == last => format!("{first}/{word}"),
        _ => format!("{first}-{last}/{word}"),
    }
}

fn is_icmp(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Icmp | Protocol::Icmpv6)
}

/// An item: `allows endpoints app=db on 5432/TCP`.
pub fn item(item: &Item, deny: bool) -> String {
    let verb = if deny { "denies" } else { "allows" };
    format!("{verb} {} on {}", peers(&item.peers), ports(&item.ports))
}

/// The ports of an item.
pub fn ports(ports: &Ports) -> String {
    match ports {
        Ports::All => "every port".to_owned(),
        Ports::These(entries) => {
            let texts: Vec<String> = entries.iter().map(port_rule).collect();
            some(&texts, "; ", "no port")
        }
    }
}

fn port_rule(entry: &PortRule) -> String {
    let numbered = entry.ports.iter().filter_map(|(protocol, port)| match port {
        Port::Block(block) => Some((*protocol, *block)),
        Port::Named(_) => None,
    });
    let mut texts = blocks(numbered);
    texts.extend(entry.ports.iter().filter_map(|(protocol, port)| match port {
        Port::Named(name) => Some(format!("{name}/{}", self::protocol(*protocol))),
        Port::Block(_) => None,
    }));
    let mut text = some(&texts, ", ", "no port");
    if let Some(names) = &entry.dns {
        let names: Vec<String> = names.iter().map(|name| name.pattern.to_string()).collect();
        text.push_str(&format!(" for the names {}", some(&names, ", ", "(none)")));
    }
    if let Some((namespace, name)) = &entry.service {
        text.push_str(&format!(" at Service {namespace}/{name}"));
    }
    text
}

/// The other side of an item.
pub fn peers(peers: &Peers) -> String {
    let list = |texts: Vec<String>| some(&texts, " or ", "nobody");
    match peers {
        Peers::Any => "every peer".to_owned(),
        Peers::Endpoints(selectors) => format!("endpoints {}", list(selectors.iter().map(selector).collect())),
        Peers::Nodes(selectors) => format!("nodes {}", list(selectors.iter().map(selector).collect())),
        Peers::Networks(blocks) => {
            let text = |block: &crate::engine::policy::Block| {
                let of = match &block.of {
                    BlockOf::Here(network) => network.to_string(),
                    BlockOf::Group(name) => format!("CIDR group {name}"),
                    BlockOf::Groups(labels) => format!("CIDR groups {}", selector(labels)),
                };
                let except: Vec<String> = block.except.iter().map(ToString::to_string).collect();
                if except.is_empty() { of } else { format!("{of} except {}", some(&except, ", ", "")) }
            };
            list(blocks.iter().map(text).collect())
        }
        Peers::Entities(entities) => {
            format!("entity {}", list(entities.iter().map(|entity| self::entity(*entity).to_owned()).collect()))
        }
        Peers::Services(services) => {
            let text = |service: &ServicePeer| match service {
                ServicePeer::Named { namespace, name } => format!("{namespace}/{name}"),
                ServicePeer::Selected { namespace, selector: labels } => match namespace {
                    Some(namespace) => format!("{} in {namespace}", selector(labels)),
                    None => selector(labels),
                },
            };
            format!("Services {}", list(services.iter().map(text).collect()))
        }
        Peers::Names(names) => format!("names {}", list(names.iter().map(|name| name.pattern.to_string()).collect())),
    }
}

/// An entity as policies write it.
pub fn entity(entity: Entity) -> &'static str {
    match entity {
        Entity::All => "all",
        Entity::World => "world",
        Entity::Cluster => "cluster",
        Entity::ClusterMesh => "cluster-mesh",
        Entity::Host => "host",
        Entity::RemoteNode => "remote-node",
        Entity::KubeApiserver => "kube-apiserver",
        Entity::Ingress => "ingress",
        Entity::Init => "init",
        Entity::Health => "health",
        Entity::Unmanaged => "unmanaged",
        Entity::None => "none",
    }
}

/// A selector: `app=web,tier in (a, b),!old`; `{}` selects everything.
pub fn selector(selector: &Selector) -> String {
    if selector.requirements.is_empty() {
        return "{}".to_owned();
    }
    let texts: Vec<String> = selector
        .requirements
        .iter()
        .map(|requirement| {
            let key = match requirement.source {
                Source::Any => requirement.key.clone(),
                source => format!("{source}:{}", requirement.key),
            };
            let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(", ");
            match &requirement.operator {
                Operator::In(values) if values.len() == 1 => format!("{key}={}", list(values)),
                Operator::In(values) => format!("{key} in ({})", list(values)),
                Operator::NotIn(values) => format!("{key} notin ({})", list(values)),
                Operator::Exists => key,
                Operator::DoesNotExist => format!("!{key}"),
            }
        })
        .collect();
    texts.join(",")
}

/// Who is behind an address.
pub fn holder(holder: &Holder) -> String {
    match holder {
        Holder::Host => "the workload's own node".to_owned(),
        Holder::HostApiserver => "the workload's own node, at the API server's address".to_owned(),
        Holder::Node(name) => format!("node {name}"),
        Holder::NodeApiserver(name) => format!("node {name}, at the API server's address"),
        Holder::Apiserver => "the API server".to_owned(),
        Holder::Pod(pod) => format!("pod {pod}"),
    }
}

/// The first few of a list, and how many more there are.
pub fn some(texts: &[String], between: &str, none: &str) -> String {
    match texts.len() {
        0 => none.to_owned(),
        count if count > NAMED => format!("{} and {} more", texts[..NAMED].join(between), count - NAMED),
        _ => texts.join(between),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_blocks_are_one_range() {
        let ports = PortBlock::of_range(1024, 65535).into_iter().map(|block| (Protocol::Udp, block));
        assert_eq!(blocks(ports.chain([(Protocol::Tcp, PortBlock::one(443))])), ["443/TCP", "1024-65535/UDP"]);
        assert_eq!(blocks([(Protocol::Any, PortBlock::ANY)]), ["every port"]);
        assert_eq!(blocks([(Protocol::Tcp, PortBlock::ANY)]), ["every port/TCP"]);
        assert_eq!(blocks([(Protocol::Icmp, PortBlock::icmp_type(8))]), ["8/ICMP"]);
        assert_eq!(port(Protocol::Icmpv6, 128 << 8), "128/ICMPv6");
    }

    #[test]
    fn a_long_list_is_cut() {
        let texts: Vec<String> = (0..9).map(|number| number.to_string()).collect();
        assert_eq!(some(&texts, ", ", "none"), "0, 1, 2, 3, 4, 5 and 3 more");
        assert_eq!(some(&[], ", ", "none"), "none");
    }
}
