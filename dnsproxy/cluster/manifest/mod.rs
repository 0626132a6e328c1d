//! Objects from trees. Whatever is wrong with one is collected; what still holds of it is returned all the same.

mod found;
pub mod objects;
pub mod policy;
pub mod selector;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::fields::{FaultKind, Field, Reader, Source};
use super::tree::{Key, Node, Value};
use crate::engine::endpoint::PodRef;
use crate::engine::policy::Policy;
use crate::engine::world::{CidrGroup, EndpointSlice, Namespace, Node as WorldNode, Pod, Service};
pub use found::{Found, found};

/// The kinds that namegate reads, and the policies that it must not overlook although it can't read them yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// `v1`.
    Pod,
    /// `v1`.
    Namespace,
    /// `v1`.
    Service,
    /// `discovery.k8s.io/v1`.
    EndpointSlice,
    /// `v1`.
    Endpoints,
    /// `v1`.
    Node,
    /// `v1`, of the name `cilium-config`.
    ConfigMap,
    /// `cilium.io/v2`.
    CiliumNetworkPolicy,
    /// `cilium.io/v2`.
    CiliumClusterwideNetworkPolicy,
    /// `cilium.io/v2`, `cilium.io/v2alpha1`.
    CiliumCidrGroup,
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// `policy.networking.k8s.io`: refused, with everyone.
    AdminNetworkPolicy,
    /// `policy.networking.k8s.io`: refused, with everyone.
    BaselineAdminNetworkPolicy,
    /// `policy.networking.k8s.io`: refused, with everyone.
    ClusterNetworkPolicy,
}

/// One object, read as far as it could be. A clone shares it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// A pod.
    Pod(PodRef, Arc<Pod>),
    /// A namespace.
    Namespace(String, Arc<Namespace>),
    /// A Service, by namespace and name.
    Service((String, String), Arc<Service>),
    /// Backends, by namespace and name.
    EndpointSlice((String, String), Arc<EndpointSlice>),
    /// Backends as an Endpoints object has them, by namespace and name.
    Endpoints((String, String), Arc<Vec<EndpointSlice>>),
    /// A node.
    Node(String, Arc<WorldNode>),
    /// Blocks of addresses, by name.
    CidrGroup(String, Arc<CidrGroup>),
    /// Cilium's settings.
    CiliumConfig(Arc<BTreeMap<String, String>>),
    /// A policy; after faults, what still holds of it.
    Policy(Arc<Policy>),
}

impl Kind {
    /// Its name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Pod => "Pod",
            Kind::Namespace => "Namespace",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Endpoints => "Endpoints",
            Kind::Node => "Node",
            Kind::ConfigMap => "ConfigMap",
            Kind::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Kind::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Kind::CiliumCidrGroup => "CiliumCIDRGroup",
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::AdminNetworkPolicy => "AdminNetworkPolicy",
            Kind::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
            Kind::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }

    /// The versions that are read, the newest first.
    fn api_versions(self) -> &'static [&'static str] {
        match self {
            Kind::Pod | Kind::Namespace | Kind::Service | Kind::Endpoints | Kind::Node | Kind::ConfigMap => &["v1"],
            Kind::EndpointSlice => &["discovery.k8s.io/v1"],
            Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => &["cilium.io/v2"],
            Kind::CiliumCidrGroup => &["cilium.io/v2", "cilium.io/v2alpha1"],
            Kind::NetworkPolicy => &["networking.k8s.io/v1"],
            Kind::AdminNetworkPolicy | Kind::BaselineAdminNetworkPolicy => &["policy.networking.k8s.io/v1alpha1"],
            Kind::ClusterNetworkPolicy => &["policy.networking.k8s.io/v1alpha2"],
        }
    }

    /// Whether its objects belong to a namespace.
    pub fn namespaced(self) -> bool {
        match self {
            Kind::Pod
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::Endpoints
            | Kind::ConfigMap
            | Kind::CiliumNetworkPolicy
            | Kind::NetworkPolicy => true,
            Kind::Namespace
            | Kind::Node
            | Kind::CiliumClusterwideNetworkPolicy
            | Kind::CiliumCidrGroup
            | Kind::AdminNetworkPolicy
            | Kind::BaselineAdminNetworkPolicy
            | Kind::ClusterNetworkPolicy => false,
        }
    }

    /// Whether it is a policy.
    pub fn is_policy(self) -> bool {
        match self {
            Kind::CiliumNetworkPolicy
            | Kind::CiliumClusterwideNetworkPolicy
            | Kind::NetworkPolicy
            | Kind::AdminNetworkPolicy
            | Kind::BaselineAdminNetworkPolicy
            | Kind::ClusterNetworkPolicy => true,
            Kind::Pod
            | Kind::Namespace
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::Endpoints
            | Kind::Node
            | Kind::ConfigMap
            | Kind::CiliumCidrGroup => false,
        }
    }

    /// The paths that are read of it; the rest is not kept.
    pub fn paths(self) -> &'static [&'static [&'static str]] {
        match self {
            Kind::Pod => &[
                &["metadata", "uid"],
                &["metadata", "labels"],
                &["metadata", "annotations", objects::MODE],
                &["metadata", "annotations", objects::MIRROR],
                &["spec", "nodeName"],
                &["spec", "hostNetwork"],
                &["spec", "serviceAccountName"],
                &["spec", "dnsPolicy"],
                &["spec", "dnsConfig", "searches"],
                &["spec", "dnsConfig", "nameservers"],
                &["spec", "containers", "ports"],
                &["spec", "initContainers", "ports"],
                &["spec", "initContainers", "restartPolicy"],
                &["status", "phase"],
                &["status", "podIP"],
                &["status", "podIPs"],
            ],
            Kind::Namespace => &[&["metadata", "labels"], &["metadata", "annotations", objects::MODE]],
            Kind::Service => &[
                &["metadata", "labels"],
                &["spec", "selector"],
                &["spec", "clusterIP"],
                &["spec", "clusterIPs"],
                &["spec", "externalIPs"],
                &["spec", "ports"],
                &["status", "loadBalancer", "ingress"],
            ],
            Kind::EndpointSlice => &[
                &["metadata", "labels", objects::SERVICE_NAME],
                &["addressType"],
                &["ports"],
                &["endpoints", "addresses"],
                &["endpoints", "conditions"],
            ],
            Kind::Endpoints => &[&["subsets"]],
            Kind::Node => &[&["metadata", "labels"], &["status", "addresses"]],
            Kind::ConfigMap => &[&["data"]],
            Kind::CiliumCidrGroup => &[&["metadata", "labels"], &["spec"]],
            _ => &[&["spec"], &["specs"]],
        }
    }

    /// The parts of an object that are read, with the kind that an item of `PodList` leaves out.
    pub fn prune(self, node: &Node) -> Node {
        let always: [&[&str]; 4] = [&["apiVersion"], &["kind"], &["metadata", "name"], &["metadata", "namespace"]];
        let paths: Vec<&[&str]> = always.iter().chain(self.paths()).copied().collect();
        let mut pruned = node.only(&paths);
        if let Value::Map(entries) = &mut pruned.value {
            for (key, text) in [("kind", self.name()), ("apiVersion", self.api_versions()[0])] {
                if node.get(key).is_none() {
                    let key = Key { at: node.at, text: key.into(), ambiguous: false };
                    entries.insert(0, (key, Node { at: node.at, value: Value::Text(text.into()) }));
                }
            }
        }
        pruned
    }
}

/// Reads an object; faults go to the reader.
pub fn read(kind: Kind, object: &Field<'_>) -> Object {
    if let Some(name) = object.get("kind")
        && let Some(text) = name.text()
        && text != kind.name()
    {
        name.fault(format!("{text:?} is no kind; did you mean {kind}"));
    }
    if let Some(version) = object.get("apiVersion")
        && let Some(text) = version.text()
        && !kind.api_versions().contains(&text)
    {
        let allowed: Vec<String> = kind.api_versions().iter().map(|version| format!("{version:?}")).collect();
        version.fault(format!("{text:?} of a {kind}; {} is allowed", allowed.join(" or ")));
    }
    match kind {
        Kind::Pod => objects::pod(object),
        Kind::Namespace => objects::namespace(object),
        Kind::Service => objects::service(object),
        Kind::EndpointSlice => objects::endpoint_slice(object),
        Kind::Endpoints => objects::endpoints(object),
        Kind::Node => objects::node(object),
        Kind::ConfigMap => objects::cilium_config(object),
        Kind::CiliumCidrGroup => objects::cidr_group(object),
        _ => Object::Policy(policy::policy(kind, object).into()),
    }
}

/// Reads a copy of an object that was good once; `None` if it isn't any more.
pub fn read_kept(text: &str, place: &str) -> Option<Object> {
    let documents = super::tree::json(text).ok()?;
    let [document] = documents.as_slice() else { return None };
    let Found::Object(kind, node) = found(document).ok()?.pop()? else { return None };
    let reader = Reader::new(Source::Kept(place));
    let object = read(kind, &reader.root(node));
    reader.into_faults().iter().all(|fault| fault.kind != FaultKind::Wrong).then_some(object)
}

/// Namespace and name as far as they can be read. What is missing is noted.
fn names(kind: Kind, object: &Field<'_>) -> (Option<String>, Option<String>) {
    let Some(metadata) = object.need("metadata") else { return (None, None) };
    if metadata.entries().is_none() || object.all("metadata").count() > 1 {
        return (None, None);
    }
    let text = |key| {
        let field = metadata.need(key)?;
        let text = field.text()?;
        // A namespace that can't exist would be one without pods: the policy would shut nobody.
        let (most, allowed) = if key == "namespace" { (63, "a-z 0-9 -") } else { (253, "a-z 0-9 - .") };
        if !selector::is_domain(text) || text.len() > most || key == "namespace" && text.contains('.') {
            field.fault(format!("{text:?}; up to {most} of {allowed} are allowed"));
            return None;
        }
        Some(text.to_owned())
    };
    if let Some(namespace) = metadata.get_some("namespace").filter(|_| kind.is_policy() && !kind.namespaced()) {
        // Whoever wrote it meant that namespace, and not everyone.
        namespace.fault(format!("a namespace of a {kind}, which has none and is about all; no namespace is allowed"));
    }
    let namespace = if kind.namespaced() { text("namespace") } else { None };
    (namespace, text("name"))
}

/// The key of an object across generations, `Pod shop/web-0`; `None` without a name.
pub fn key(kind: Kind, node: &Node) -> Option<String> {
    let text = |key| node.get("metadata")?.get(key)?.as_text().filter(|text| !text.is_empty());
    let name = text("name")?;
    if kind.namespaced() {
        Some(format!("{kind} {}/{name}", text("namespace")?))
    } else {
        Some(format!("{kind} {name}"))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
