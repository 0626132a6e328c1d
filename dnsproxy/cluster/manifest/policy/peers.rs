//! The other side of an item.

use ipnet::IpNet;

use super::super::selector::{self, Meant};
use super::{Side, ports};
use crate::cluster::fields::{FaultKind, Field};
use crate::cluster::tree::Value;
use crate::engine::policy::{Block, BlockOf, Entity, Peers, ServicePeer};

const ENTITIES: [(&str, Entity); 12] = [
    ("all", Entity::All),
    ("world", Entity::World),
    ("cluster", Entity::Cluster),
    ("cluster-mesh", Entity::ClusterMesh),
    ("host", Entity::Host),
    ("remote-node", Entity::RemoteNode),
    ("kube-apiserver", Entity::KubeApiserver),
    ("ingress", Entity::Ingress),
    ("init", Entity::Init),
    ("health", Entity::Health),
    ("unmanaged", Entity::Unmanaged),
    ("none", Entity::None),
];

/// Whom an item means. `some_ports`: whether it names ports.
pub(super) fn peers(side: &Side<'_>, item: &Field<'_>, some_ports: bool, demands: &mut Vec<String>) -> Peers {
    let words = side.words;
    if let Some(requires) = item.get(words.requires)
        && requires.list().is_some_and(|list| list.len() > 0)
    {
        requires.fault(format!("{} is gone from Cilium; write its labels into {}", words.requires, words.endpoints));
    }
    let mut kinds = vec![words.endpoints, words.cidr, words.cidr_set, words.entities, words.groups, words.nodes];
    if side.egress() {
        kinds.push("toServices");
        if !side.deny {
            kinds.push("toFQDNs");
        }
    }
    let present: Vec<&str> = kinds.into_iter().filter(|kind| item.get(kind).is_some()).collect();
    let kind = match present.as_slice() {
        // Ports without a peer mean everyone, nothing at all means nobody.
        [] if some_ports => return Peers::Any,
        [] => return Peers::Endpoints(Vec::new()),
        [kind] => *kind,
        [first, second, ..] => {
            item.fault(format!("{first} with {second}; one kind of peer an item is allowed"));
            return Peers::Any;
        }
    };
    let field = item.get(kind);
    let Some(list) = field.as_ref().and_then(Field::list) else { return Peers::Any };
    if kind == words.endpoints {
        let selectors = list.filter_map(|field| selector::selector(&field, Meant::Peers));
        Peers::Endpoints(selectors.map(|selector| side.owner.scoped(selector, side.deny)).collect())
    } else if kind == words.cidr {
        Peers::Networks(list.filter_map(|field| network(&field)).map(Block::from).collect())
    } else if kind == words.cidr_set {
        Peers::Networks(list.filter_map(|field| cidr_set(&field)).collect())
    } else if kind == words.entities {
        Peers::Entities(list.filter_map(|field| entity(&field)).collect())
    } else if kind == words.groups {
        list.for_each(|field| group(&field));
        side.demand(item, kind, kind, demands);
        Peers::Any
    } else if kind == words.nodes {
        if list.len() > 0 {
            let text = format!(
                "{kind} only when {} is set in cilium-config; {} is allowed",
                super::NODE_LABELS,
                words.entities
            );
            item.fault_of(kind, FaultKind::NodeLabels, text);
        }
        Peers::Nodes(list.filter_map(|field| selector::selector(&field, Meant::Nodes)).collect())
    } else if kind == "toServices" {
        Peers::Services(list.flat_map(|field| services(side, &field)).collect())
    } else {
        Peers::Names(list.filter_map(|field| ports::name_rule(side.owner, &field)).collect())
    }
}

/// An address with its prefix.
pub(in super::super) fn network(field: &Field<'_>) -> Option<IpNet> {
    let text = field.text()?;
    let Some(network) = parse_network(text) else {
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

/// As Go reads it: no number starts with 0, which is octal to some.
fn parse_network(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let plain = length.bytes().all(|octet| octet.is_ascii_digit()) && (length.len() == 1 || !length.starts_with('0'));
    let length = length.parse().ok().filter(|_| plain)?;
    IpNet::new(address.parse().ok()?, length).ok()
}

/// A block with the blocks that are left out of it; `None` if any of it is wrong, for fewer exceptions are more addresses.
pub(super) fn block(field: &Field<'_>) -> Option<Block> {
    let before = field.faults();
    let network = field.get("cidr").and_then(|cidr| network(&cidr));
    let except = exceptions(field, network);
    let network = network.filter(|_| field.faults() == before)?;
    Some(Block { of: BlockOf::Here(network), except })
}

fn exceptions(field: &Field<'_>, network: Option<IpNet>) -> Vec<IpNet> {
    let mut except = Vec::new();
    let list = field.get("except");
    for item in list.iter().filter_map(Field::list).flatten() {
        let Some(exception) = self::network(&item) else { continue };
        if let Some(network) = network
            && !network.contains(&exception)
        {
            item.fault(format!("{exception} is not in {network}; a part of it is allowed"));
        }
        except.push(exception);
    }
    except
}

/// An entry of `toCIDRSet`.
fn cidr_set(field: &Field<'_>) -> Option<Block> {
    let kinds = ["cidr", "cidrGroupRef", "cidrGroupSelector"];
    field.only(&[kinds[0], kinds[1], kinds[2], "except"]);
    let present: Vec<&str> = kinds.into_iter().filter(|kind| field.get(kind).is_some()).collect();
    let kind = match present.as_slice() {
        [kind] => *kind,
        [] => {
            if matches!(field.node.value, Value::Map(_)) {
                field.fault("neither cidr nor cidrGroupRef nor cidrGroupSelector; one is needed");
            }
            return None;
        }
        [first, second, ..] => {
            field.fault(format!("{first} with {second}; one of them is allowed"));
            return None;
        }
    };
    if kind == "cidr" {
        return block(field);
    }
    let before = field.faults();
    let value = field.get(kind)?;
    let of = if kind == "cidrGroupRef" {
        BlockOf::Group(object_name(&value)?)
    } else {
        BlockOf::Groups(selector::selector(&value, Meant::Objects)?)
    };
    let except = exceptions(field, None);
    (field.faults() == before).then_some(Block { of, except })
}

fn entity(field: &Field<'_>) -> Option<Entity> {
    let text = field.text()?;
    let found = ENTITIES.into_iter().find(|(name, _)| *name == text).map(|(_, entity)| entity);
    if found.is_none() {
        field.fault(format!("{text:?} is no entity; allowed: {}", ENTITIES.map(|(name, _)| name).join(", ")));
    }
    found
}

/// An entry of `toGroups`.
fn group(field: &Field<'_>) {
    field.only(&["aws"]);
    let Some(aws) = field.get("aws") else { return };
    aws.only(&["labels", "region", "securityGroupsIds", "securityGroupsNames"]);
    if let Some(labels) = aws.get("labels") {
        for (key, _) in labels.entries().unwrap_or_default() {
            labels.get(&key.text).and_then(|value| value.text());
        }
    }
    aws.get("region").and_then(|region| region.text());
    for key in ["securityGroupsIds", "securityGroupsNames"] {
        let list = aws.get(key);
        for item in list.iter().filter_map(Field::list).flatten() {
            item.text();
        }
    }
}

/// An entry of `toServices`.
fn services(side: &Side<'_>, field: &Field<'_>) -> Vec<ServicePeer> {
    field.only(&["k8sService", "k8sServiceSelector"]);
    let mut services = Vec::new();
    if let Some(service) = field.get("k8sService") {
        service.only(&["serviceName", "namespace"]);
        let name = service.need("serviceName").and_then(|name| object_name(&name));
        let namespace = match service.get("namespace") {
            Some(namespace) => object_name(&namespace),
            None if side.owner.clusterwide() => {
                service.fault("no namespace; a clusterwide policy has none of its own, so it is needed");
                None
            }
            None => side.owner.namespace.clone(),
        };
        if let (Some(namespace), Some(name)) = (namespace, name) {
            services.push(ServicePeer::Named { namespace, name });
        }
    }
    if let Some(service) = field.get("k8sServiceSelector") {
        service.only(&["selector", "namespace"]);
        let selector = service.need("selector").and_then(|field| selector::selector(&field, Meant::Objects));
        let before = field.faults();
        let namespace = service.get("namespace").and_then(|namespace| object_name(&namespace));
        if let Some(selector) = selector.filter(|_| field.faults() == before) {
            services.push(ServicePeer::Selected { namespace, selector });
        }
    }
    if matches!(field.node.value, Value::Map(_))
        && field.get("k8sService").or(field.get("k8sServiceSelector")).is_none()
    {
        field.fault("neither k8sService nor k8sServiceSelector; one is needed");
    }
    services
}

/// The name of a namespaced or clusterwide object, or of a namespace.
pub(super) fn object_name(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if !selector::is_domain(text) {
        field.fault(format!("{text:?} is no name of an object; up to 253 of a-z 0-9 - . are allowed"));
        return None;
    }
    Some(text.to_owned())
}
