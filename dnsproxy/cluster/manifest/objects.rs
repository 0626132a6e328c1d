//! Everything that is no policy. Fields that namegate doesn't read may hold anything.
//!
//! What can't be read whole is returned with what could be, and marked: an address of the cluster stays one, so that no
//! rule for the outside opens it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::policy::network;
use super::{Kind, Object, names};
use crate::cluster::fields::Field;
use crate::cluster::tree::Node as TreeNode;
use crate::engine::endpoint::PodRef;
use crate::engine::name::Name;
use crate::engine::ruleset::Protocol;
use crate::engine::world::{
    CidrGroup, ContainerPort, EndpointSlice, Mode, Namespace, Node, Pod, Search, Service, ServicePort, SlicePort,
};

/// The label that names a slice's Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The annotation or label that says what becomes of what policy would drop: audit or enforce.
pub const MODE: &str = "namegate.io/mode";
/// The annotation of a static pod's mirror in the API: the uid that the kubelet gave the pod itself, and the CNI knows.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// The label that Kubernetes gives to every namespace: its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// `dnsConfig.nameservers` of one pod, as the API server allows (resolv.conf(5), MAXNS).
const NAMESERVERS: usize = 3;
/// The namespace of Cilium's ConfigMap.
const CILIUM_NAMESPACE: &str = "kube-system";
/// Its name.
const CILIUM_CONFIG: &str = "cilium-config";

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
        uid: object.get_some("metadata").and_then(uid),
        labels,
        service_account: spec_text("serviceAccountName"),
        addresses,
        node: spec_text("nodeName"),
        host_network: spec.and_then(|spec| spec.get_some("hostNetwork")?.boolean()).unwrap_or(false),
        search: spec.map(search).unwrap_or_default(),
        nameservers: spec.map(nameservers).unwrap_or_default(),
        ports: spec.map(container_ports).unwrap_or_default(),
        mode: mode(object),
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

/// The servers that a pod's spec adds to those of the cluster. What is no address is left out: no query goes there.
fn nameservers(spec: &Field<'_>) -> Vec<IpAddr> {
    let config = spec.get_some("dnsConfig");
    let list = config.as_ref().and_then(|config| config.get_some("nameservers"));
    let texts = list.iter().filter_map(Field::list).flatten();
    texts.filter_map(|text| text.node.as_text()?.parse().ok()).take(NAMESERVERS).collect()
}

/// The named ports of containers that run as long as the pod does.
fn container_ports(spec: &Field<'_>) -> Vec<ContainerPort> {
    let mut ports = BTreeSet::new();
    for key in ["containers", "initContainers"] {
        let list = spec.get_some(key);
        for container in list.iter().filter_map(Field::list).flatten() {
            let restarts = container.get_some("restartPolicy");
            if key == "initContainers" && restarts.as_ref().and_then(|policy| policy.node.as_text()) != Some("Always") {
                continue;
            }
            let list = container.get_some("ports");
            for item in list.iter().filter_map(Field::list).flatten() {
                let (name, protocol) = (port_name(&item), protocol(&item));
                let port = item.need("containerPort").and_then(|port| port.port());
                if let (Some(protocol), Some(port), false) = (protocol, port, name.is_empty()) {
                    ports.insert(ContainerPort { name, protocol, port });
                }
            }
        }
    }
    ports.into_iter().collect()
}

/// By which the node's own programs know the pod.
fn uid(metadata: Field<'_>) -> Option<String> {
    let mirrored = metadata.get_some("annotations").and_then(|annotations| {
        let uid = annotations.get_some(MIRROR)?;
        uid.text().map(str::to_owned)
    });
    mirrored.or_else(|| {
        let uid = metadata.get_some("uid")?;
        uid.text().map(str::to_owned)
    })
}

/// What the object says of what policy would drop, as an annotation or as a label.
fn mode(object: &Field<'_>) -> Option<Mode> {
    let metadata = object.get_some("metadata")?;
    let said = |key: &str| {
        let map = metadata.get_some(key)?;
        let value = map.get(MODE)?;
        match value.one_of(MODE, &["audit", "enforce"])? {
            "audit" => Some(Mode::Audit),
            _ => Some(Mode::Enforce),
        }
    };
    let (annotation, label) = (said("annotations"), said("labels"));
    if let (Some(annotation), Some(label)) = (annotation, label)
        && annotation != label
    {
        metadata.fault(format!("{MODE} as an annotation and as a label, with different values; one is enough"));
        return None;
    }
    annotation.or(label)
}

/// Reads a namespace.
pub(super) fn namespace(object: &Field<'_>) -> Object {
    let (_, name) = names(Kind::Namespace, object);
    let mut labels = labels(object);
    if let Some(name) = &name {
        // Kubernetes sees to it; what someone wrote by hand may lack it.
        labels.entry(NAMESPACE_NAME.to_owned()).or_insert_with(|| name.clone());
    }
    let mode = mode(object);
    let namespace = Namespace { labels, mode, place: object.place() };
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
        let text = |key: &str| spec.get_some(key).and_then(|field| field.text().map(str::to_owned));
        // Of such a Service kube-proxy does nothing with the others, so they are not its own: whoever wrote it may have made
        // them those of somebody else.
        let is_virtual =
            text("type").as_deref() != Some("ExternalName") && text("clusterIP").as_deref() != Some("None");
        if let Some(address) = spec.get_some("clusterIP") {
            add(&address);
        }
        for key in if is_virtual { &["clusterIPs", "externalIPs"][..] } else { &["clusterIPs"] } {
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
        selector: object.get_some("spec").map(|spec| texts(&spec, "selector")).unwrap_or_default(),
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

/// Reads an Endpoints object: a slice for each of its subsets.
pub(super) fn endpoints(object: &Field<'_>) -> Object {
    let (namespace, name) = names(Kind::Endpoints, object);
    let mut slices = Vec::new();
    let list = object.get_some("subsets");
    for subset in list.iter().filter_map(Field::list).flatten() {
        let mut ports = Vec::new();
        let list = subset.get_some("ports");
        for item in list.iter().filter_map(Field::list).flatten() {
            let port = item.need("port").and_then(|port| port.port());
            if let (Some(protocol), Some(port)) = (protocol(&item), port) {
                ports.push(SlicePort { name: port_name(&item), protocol, port: Some(port) });
            }
        }
        let mut endpoints = Vec::new();
        for (key, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            let list = subset.get_some(key);
            for item in list.iter().filter_map(Field::list).flatten() {
                let address = item.need("ip").and_then(|ip| ip.address());
                endpoints.extend(address.map(|address| (vec![address], ready)));
            }
        }
        slices.push(EndpointSlice { service: name.clone(), ports, endpoints, readable: true, place: subset.place() });
    }
    for slice in &mut slices {
        slice.readable = object.faults() == 0;
    }
    Object::Endpoints(placed(object, namespace, name), slices.into())
}

/// Reads a CiliumCIDRGroup.
pub(super) fn cidr_group(object: &Field<'_>) -> Object {
    let (_, name) = names(Kind::CiliumCidrGroup, object);
    object.only(&["apiVersion", "kind", "metadata", "spec"]);
    let mut networks = Vec::new();
    if let Some(spec) = object.need("spec") {
        spec.only(&["externalCIDRs"]);
        let list = spec.need("externalCIDRs");
        networks.extend(list.iter().filter_map(Field::list).flatten().filter_map(|field| network(&field)));
    }
    let labels = labels(object);
    let group = CidrGroup { labels, networks, readable: object.faults() == 0, place: object.place() };
    Object::CidrGroup(placed(object, None, name).1, group.into())
}

/// Whether a ConfigMap is Cilium's: the one of `kube-system`, for whoever may write ConfigMaps in another namespace has no say
/// in what holds for all.
pub(super) fn is_cilium_config(node: &TreeNode) -> bool {
    let text = |key: &str| node.get("metadata").and_then(|metadata| metadata.get(key)).and_then(TreeNode::as_text);
    (text("namespace"), text("name")) == (Some(CILIUM_NAMESPACE), Some(CILIUM_CONFIG))
}

/// Reads Cilium's ConfigMap.
pub(super) fn cilium_config(object: &Field<'_>) -> Object {
    names(Kind::ConfigMap, object);
    Object::CiliumConfig(texts(object, "data").into())
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
    object.get_some("metadata").map(|metadata| texts(&metadata, "labels")).unwrap_or_default()
}

/// A map of texts.
fn texts(field: &Field<'_>, key: &str) -> BTreeMap<String, String> {
    let Some(map) = field.get_some(key) else { return BTreeMap::new() };
    let entries = map.entries().unwrap_or_default();
    let read = entries.iter().filter_map(|(key, _)| {
        let value = map.get(&key.text)?.text()?;
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
