//! Which objects are collected, where the API server has them, and into how many files they go.

use std::fmt;

use crate::cluster::manifest::Kind;

/// One kind of object.
#[derive(Clone, Copy, Debug)]
pub struct Resource {
    /// The kind, and with it what of its objects is read.
    pub kind: Kind,
    /// Its name in the API's paths, and the first part of its files' names.
    pub plural: &'static str,
    /// Groups and versions, the preferred first; the first that the server has is used.
    pub versions: &'static [&'static str],
    /// The only object of the kind that is wanted: namespace and name.
    pub only: Option<(&'static str, &'static str)>,
    /// How many files its objects are spread over: what changes rewrites one, and the agent reads that one again.
    pub shards: u32,
    /// How many objects are asked for at a time.
    pub page: u32,
    /// Whether a cluster may be without it: what a CustomResourceDefinition defines.
    pub may_be_absent: bool,
}

/// Everything that is collected. The order is that of metrics and reasons.
pub const RESOURCES: [Resource; 13] = [
    Resource { shards: 16, ..core(Kind::Namespace, "namespaces") },
    Resource { shards: 16, ..core(Kind::Node, "nodes") },
    Resource { only: Some(("kube-system", "cilium-config")), shards: 1, ..core(Kind::ConfigMap, "configmaps") },
    Resource { shards: 256, ..core(Kind::Pod, "pods") },
    core(Kind::Service, "services"),
    Resource { versions: &["discovery.k8s.io/v1"], ..core(Kind::EndpointSlice, "endpointslices") },
    Resource { versions: &["networking.k8s.io/v1"], page: 100, ..core(Kind::NetworkPolicy, "networkpolicies") },
    custom(Kind::CiliumNetworkPolicy, "ciliumnetworkpolicies", &["cilium.io/v2"]),
    custom(Kind::CiliumClusterwideNetworkPolicy, "ciliumclusterwidenetworkpolicies", &["cilium.io/v2"]),
    custom(Kind::CiliumCidrGroup, "ciliumcidrgroups", &["cilium.io/v2", "cilium.io/v2alpha1"]),
    // Not enforced yet, and refused by the agent: left out here, they would be overlooked.
    custom(Kind::AdminNetworkPolicy, "adminnetworkpolicies", &["policy.networking.k8s.io/v1alpha1"]),
    custom(Kind::BaselineAdminNetworkPolicy, "baselineadminnetworkpolicies", &["policy.networking.k8s.io/v1alpha1"]),
    custom(Kind::ClusterNetworkPolicy, "clusternetworkpolicies", &["policy.networking.k8s.io/v1alpha2"]),
];

const fn core(kind: Kind, plural: &'static str) -> Resource {
    Resource { kind, plural, versions: &["v1"], only: None, shards: 64, page: 500, may_be_absent: false }
}

/// Objects of these can have 1.5 MiB each, so fewer are asked for at a time.
const fn custom(kind: Kind, plural: &'static str, versions: &'static [&'static str]) -> Resource {
    Resource { kind, plural, versions, only: None, shards: 64, page: 100, may_be_absent: true }
}

impl Resource {
    /// The path of all its objects.
    pub fn path(&self, version: &str) -> String {
        let namespace = self.only.map(|(namespace, _)| format!("namespaces/{namespace}/")).unwrap_or_default();
        format!("{}/{namespace}{}", base(version), self.plural)
    }

    /// The path of the status of one object.
    pub fn status_path(&self, version: &str, namespace: &str, name: &str) -> String {
        let namespace = if self.kind.namespaced() { format!("namespaces/{namespace}/") } else { String::new() };
        format!("{}/{namespace}{}/{name}/status", base(version), self.plural)
    }

    /// The name of a file of its objects: policies are spread over lines, so that `file:line` says where in one.
    pub fn file(&self, shard: u32) -> String {
        let ending = if self.kind.is_policy() { "json" } else { "jsonl" };
        format!("{}-{shard:02x}.{ending}", self.plural)
    }

    /// Whether a file of this name holds its objects.
    pub fn owns(&self, file: &str) -> bool {
        file.strip_prefix(self.plural).is_some_and(|rest| rest.starts_with('-'))
    }

    /// Whether Cilium's language has a status to write to.
    pub fn has_conditions(&self) -> bool {
        matches!(self.kind, Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy)
    }
}

fn base(version: &str) -> String {
    if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_files_are_those_of_the_kind() {
        let of = |plural: &str| RESOURCES.iter().find(|resource| resource.plural == plural).expect("collected");
        assert_eq!(of("pods").path("v1"), "/api/v1/pods");
        assert_eq!(of("configmaps").path("v1"), "/api/v1/namespaces/kube-system/configmaps");
        assert_eq!(of("endpointslices").path("discovery.k8s.io/v1"), "/apis/discovery.k8s.io/v1/endpointslices");
        let policies = of("ciliumnetworkpolicies");
        let path = "/apis/cilium.io/v2/namespaces/shop/ciliumnetworkpolicies/web/status";
        assert_eq!(policies.status_path("cilium.io/v2", "shop", "web"), path);
        assert_eq!(
            (of("pods").file(10), policies.file(3)),
            ("pods-0a.jsonl".into(), "ciliumnetworkpolicies-03.json".into())
        );
        assert!(of("pods").owns("pods-0a.jsonl") && !of("pods").owns("podsets-0a.jsonl"));
        let files = RESOURCES.iter().map(|resource| resource.plural).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(files.len(), RESOURCES.len(), "no two kinds in one file");
    }
}
