//! Pods, namespaces, Services, EndpointSlices and nodes. Fields that namegate doesn't read may hold anything.
//!
//! What can't be read whole is returned with what could be, and marked: an address of the cluster stays one, so that no
//! rule for the outside opens it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Kind, Object, names};
use crate::cluster::fields::Field;
use crate::engine::endpoint::PodRef;
use crate::engine::name::Name;
use crate::engine::ruleset::Protocol;
use crate::engine::world::{EndpointSlice, Namespace, Node, Pod, Search, Service, ServicePort, SlicePort};

/// The label that names a slice's Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Reads a pod.
pub(super) fn pod(object: &Field<'_>) -> Object {
    let (namespace, name) = names(Kind::Pod, object);
    let labels = labels(object);
    let spec = object.get_some("spec");
    let spec = spec.as_ref();
    let spec_text = |key| spec.and_then(|spec| spec.get_some(key)?.text().map(str::to_owned));
    let status = object.get_some("status");
    let status = status.as_ref();
    let mut addresses: Vec<IpAddr> = Vec::new();
    let list = status.and_then(|status| status.get_some("podIPs"));
    for item in list.iter().filter_map(Field::list).flatten() {
        addresses.extend(item.need("ip").and_then(|ip| ip.address()));
    }
    let first = status.and_then(|status| status.get_some("podIP")).and_then(|ip| ip.address());
    if let Some(first) = first.filter(|first| !addresses.contains(first)) {
        addresses.insert(0, first);
    }
    let phase = status.and_then(|status| status.get_some("phase")).and_then(|phase| phase.text());
    let pod = Pod {
        labels,
        service_account: spec_text("serviceAccountName"),
        addresses,
        node: spec_text("nodeName"),
        host_network: spec.and_then(|spec| spec.get_some("hostNetwork")?.boolean()).unwrap_or(false),
        search: spec.map(search).unwrap_or_default(),
        ports: Vec::new(),
        mode: None,
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        readable: object.faults() == 0,
        place: object.place(),
    };
    let (namespace, name) = placed(object, namespace, name);
    Object::Pod(PodRef { namespace, name }, pod.into())
}

/// What a pod's spec says of its search list. A suffix that is no name is left out: it can't be what a query ends in.
fn search(spec: &Field<'_>) -> Search {
    let on_node = spec.get_some("hostNetwork").and_then(|on| on.boolean()).unwrap_or(false);
    let policy = spec.get_some("dnsPolicy");
    let only_own = match policy.as_ref().and_then(|policy| policy.node.as_text()) {
        Some("None" | "Default") => true,
        Some("ClusterFirstWithHostNet") => false,
        _ => on_node,
    };
    let config = spec.get_some("dnsConfig");
    let list = config.as_ref().and_then(|config| config.get_some("searches"));
    let texts = list.iter().filter_map(Field::list).flatten();
    let own = texts.filter_map(|text| Name::parse(text.node.as_text()?).ok()).filter(|name| !name.is_root()).collect();
    Search { only_own, own }
}

/// Reads a namespace.
pub(super) fn namespace(object: &Field<'_>) -> Object {
    let (_, name) = names(Kind::Namespace, object);
    let labels = labels(object);
    let namespace = Namespace { labels, mode: None, place: object.place() };
    Object::Namespace(placed(object, None, name).1, namespace.into())
}

/// Reads a Service.
pub(super) fn service(object: &Field<'_>) -> Object {
    let (namespace, name) = names(Kind::Service, object);
    let mut addresses = BTreeSet::new();
    let mut ports = Vec::new();
    if let Some(spec) = object.get_some("spec") {
        // "None" is a headless Service, "" one that has no address yet.
        let mut add = |field: &Field<'_>| {
            if !matches!(field.node.as_text(), Some("" | "None")) {
                addresses.extend(field.address());
            }
        };
        if let Some(address) = spec.get_some("clusterIP") {
            add(&address);
        }
        for key in ["clusterIPs", "externalIPs"] {
            let list = spec.get_some(key);
            list.iter().filter_map(Field::list).flatten().for_each(|address| add(&address));
        }
        let list = spec.get_some("ports");
        for item in list.iter().filter_map(Field::list).flatten() {
            let port = item.need("port").and_then(|port| port.port());
            if let (Some(protocol), Some(port)) = (protocol(&item), port) {
                ports.push(ServicePort { name: port_name(&item), protocol, port });
            }
        }
    }
    let ingress = object.get_some("status");
    let ingress = ingress.as_ref().and_then(|status| status.get_some("loadBalancer"));
    let ingress = ingress.as_ref().and_then(|balancer| balancer.get_some("ingress"));
    for item in ingress.iter().filter_map(Field::list).flatten() {
        addresses.extend(item.get_some("ip").and_then(|ip| ip.address()));
    }
    let service = Service {
        labels: labels(object),
        selector: BTreeMap::new(),
        addresses,
        ports,
        readable: object.faults() == 0,
        place: object.place(),
    };
    Object::Service(placed(object, namespace, name), service.into())
}

/// Reads an EndpointSlice.
pub(super) fn endpoint_slice(object: &Field<'_>) -> Object {
    let (namespace, name) = names(Kind::EndpointSlice, object);
    let service = labels(object).remove(SERVICE_NAME);
    // Backends by name stand for no address.
    let by_name = object.get_some("addressType").and_then(|kind| kind.text()) == Some("FQDN");
    let mut ports = Vec::new();
    let list = object.get_some("ports");
    for item in list.iter().filter_map(Field::list).flatten() {
        let port = item.get_some("port");
        let number = port.as_ref().and_then(Field::port);
        if let (Some(protocol), true) = (protocol(&item), port.is_none() || number.is_some()) {
            ports.push(SlicePort { name: port_name(&item), protocol, port: number });
        }
    }
    let mut endpoints = Vec::new();
    let list = object.get_some("endpoints");
    for item in list.iter().filter_map(Field::list).flatten().filter(|_| !by_name) {
        let list = item.need("addresses");
        let addresses = list.iter().filter_map(Field::list).flatten().filter_map(|address| address.address()).collect();
        let conditions = item.get_some("conditions");
        let ready = conditions.as_ref().and_then(|conditions| conditions.get_some("ready"));
        // The API: unknown is to be taken as ready.
        endpoints.push((addresses, ready.is_none_or(|ready| ready.boolean() == Some(true))));
    }
    let slice = EndpointSlice { service, ports, endpoints, readable: object.faults() == 0, place: object.place() };
    Object::EndpointSlice(placed(object, namespace, name), slice.into())
}

/// Reads a node.
pub(super) fn node(object: &Field<'_>) -> Object {
    let (_, name) = names(Kind::Node, object);
    let status = object.get_some("status");
    let list = status.as_ref().and_then(|status| status.get_some("addresses"));
    let mut addresses = Vec::new();
    for item in list.iter().filter_map(Field::list).flatten() {
        let kind = item.need("type").and_then(|kind| kind.text());
        if matches!(kind, Some("InternalIP" | "ExternalIP")) {
            addresses.extend(item.need("address").and_then(|address| address.address()));
        }
    }
    let node = Node { labels: labels(object), addresses, place: object.place() };
    Object::Node(placed(object, None, name).1, node.into())
}

fn labels(object: &Field<'_>) -> BTreeMap<String, String> {
    let Some(metadata) = object.get_some("metadata") else { return BTreeMap::new() };
    let Some(labels) = metadata.get_some("labels") else { return BTreeMap::new() };
    let entries = labels.entries().unwrap_or_default();
    let read = entries.iter().filter_map(|(key, _)| {
        let value = labels.get(&key.text)?.text()?;
        Some((key.text.to_string(), value.to_owned()))
    });
    read.collect()
}

fn protocol(item: &Field<'_>) -> Option<Protocol> {
    let Some(field) = item.get_some("protocol") else { return Some(Protocol::Tcp) };
    match field.text()? {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        other => {
            field.fault(format!("protocol {other:?}; allowed: TCP, UDP, SCTP"));
            None
        }
    }
}

fn port_name(item: &Field<'_>) -> String {
    item.get_some("name").and_then(|name| name.text()).unwrap_or_default().to_owned()
}

/// Under which namespace and name the object goes. Without a name of its own it has that of its place, which no other
/// object has and no rule can name; without a namespace that is "".
fn placed(object: &Field<'_>, namespace: Option<String>, name: Option<String>) -> (String, String) {
    (namespace.unwrap_or_default(), name.unwrap_or_else(|| format!("({})", object.place())))
}
