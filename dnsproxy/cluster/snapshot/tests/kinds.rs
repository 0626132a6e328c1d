//! Where an object begins and of what kind it is: what is misspelt or run together must not be overlooked.

use super::*;

const PLAIN: &str =
    "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\nspec: {replicas: 1}\n";

fn cnp(name: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{endpointSelector: {{}}, egress: [{{}}]}}\n"
    )
}

fn read_as(name: &str, text: &str, last_good: &LastGood) -> Snapshot {
    let file = File { name: name.to_owned(), content: Ok(text.as_bytes().to_vec()) };
    assemble(&[file], last_good, OnInvalid::Refuse)
}

/// It is refused with this place and text; someone is shut, or a group of addresses is marked.
#[track_caller]
fn is_refused(name: &str, text: &str, why: &str) {
    let snapshot = read_as(name, text, &LastGood::default());
    let found: Vec<String> =
        snapshot.refusals.iter().map(|refusal| format!("{} {}", refusal.place, refusal.text)).collect();
    assert!(found.iter().any(|found| found.contains(why)), "{why}: {found:#?}");
    let marked = snapshot.world.cidr_groups.values().any(|group| !group.readable);
    assert!(snapshot.world.policies.is_empty() && (marked || !snapshot.world.refused.is_empty()), "{text}");
}

#[test]
fn two_objects_without_their_separator_are_refused_with_both_places() {
    let twice = "kind a second time in one object, the first at 2:1; --- is missing between two documents";
    for first in [PLAIN, &PLAIN.replace("apps/v1", "v1").replace("Deployment", "ConfigMap"), &cnp("p")] {
        is_refused("p.yaml", &format!("{first}# the next\n{}", cnp("q")), &format!("p.yaml:7:1 {twice}"));
    }
    let without_version = cnp("q").replace("apiVersion: cilium.io/v2\n", "");
    is_refused("p.yaml", &format!("{PLAIN}{without_version}"), "p.yaml:5:1 kind a second time in one object");
    let without_kind = cnp("q").replace("kind: CiliumNetworkPolicy\n", "");
    is_refused("p.yaml", &format!("{PLAIN}{without_kind}"), "p.yaml:5:1 apiVersion a second time in one object");
    is_refused(
        "p.json",
        "{\"apiVersion\":\"v1\",\"kind\":\"Secret\",\"kind\":\"CiliumNetworkPolicy\",\"apiVersion\":\"cilium.io/v2\"}",
        "p.json:1:36 kind a second time in one object, the first at 1:20",
    );
    let items = "apiVersion: v1\nkind: List\nitems:\n";
    let item = "- apiVersion: v1\n  kind: Secret\n  apiVersion: cilium.io/v2\n  kind: CiliumNetworkPolicy\n";
    is_refused("p.yaml", &format!("{items}{item}"), "p.yaml:7:3 kind a second time in one object, the first at 5:3");
    is_refused(
        "p.yaml",
        &format!("{items}- {{apiVersion: v1, kind: Secret}}\nitems: []\n"),
        "p.yaml:5:1 items a second",
    );
}

#[test]
fn a_policy_whose_separator_goes_missing_stays_as_it_was() {
    for first in [PLAIN.to_owned(), cnp("p")] {
        let good = read_as("p.yaml", &format!("{first}---\n{}", cnp("q")), &LastGood::default());
        assert_eq!(good.refusals, []);
        let next = read_as("p.yaml", &format!("{first}{}", cnp("q")), &good.last_good);
        let names = |snapshot: &Snapshot| -> Vec<String> {
            snapshot.world.policies.iter().map(|policy| policy.at.0.policy.clone()).collect()
        };
        assert_eq!(names(&next), names(&good));
        assert_eq!(next.refusals.len(), 1);
        assert!(next.refusals[0].kept && next.world.refused.is_empty());
    }
}

/// A policy of a kind that is misspelt is refused with this.
#[track_caller]
fn is_misspelt(version: &str, kind: &str, why: &str) {
    let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nspec: {{}}\n");
    is_refused("p.yaml", &text, why);
}

#[test]
fn a_policy_whose_kind_is_misspelt_is_refused_with_what_may_have_been_meant() {
    for (version, kind, meant) in [
        ("cilium.io/v2", "CiliumNetworkpolicy", "CiliumNetworkPolicy"),
        ("cilium.io/v2", "CiliumNetowrkPolicy", "CiliumNetworkPolicy"),
        ("cilium.io/v2", "ciliumnetworkpolicies", "CiliumNetworkPolicy"),
        ("cilium.io/v2", "CilliumNetworkPolicyy", "CiliumNetworkPolicy"),
        ("cilium.io/v2", "CiliumClusterWideNetworkPolicy", "CiliumClusterwideNetworkPolicy"),
        ("cilium.io/v2", "CiliumClusterNetworkPolicy", "CiliumClusterwideNetworkPolicy"),
        ("cilium.io/v2alpha1", "CiliumCidrGroup", "CiliumCIDRGroup"),
        ("cilum.io/v2", "CiliumNetworkpolicy", "CiliumNetworkPolicy"),
        ("networking.k8s.io/v1", "NetworkPolicyy", "NetworkPolicy"),
        ("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy"),
        ("extensions/v1beta1", "Networkpolicy", "NetworkPolicy"),
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkpolicy", "AdminNetworkPolicy"),
        ("cilium.io/v2", "CNP", "CiliumNetworkPolicy"),
        ("cilium.io/v2", "CiliumPolicy", "CiliumNetworkPolicy"),
        ("cilium.io/v2", "CiliumNetwork", "CiliumNetworkPolicy"),
        ("cilium.io/v2", "ccnp", "CiliumClusterwideNetworkPolicy"),
        ("cilium.io/v2", "CiliumClusterwidePolicy", "CiliumClusterwideNetworkPolicy"),
        ("cilium.io/v2", "CiliumClusterWidePolicies", "CiliumClusterwideNetworkPolicy"),
        ("networking.k8s.io/v1", "NetPol", "NetworkPolicy"),
        ("networking.k8s/v1", "NetPols", "NetworkPolicy"),
    ] {
        is_misspelt(version, kind, &format!("p.yaml:2:7 kind: \"{kind}\" is no kind; did you mean {meant}"));
    }
}

#[test]
fn a_policy_of_a_group_or_version_that_is_not_its_own_is_refused() {
    for version in
        ["cilium/v2", "cilium.io/v1", "cilium.io/v2alpha", "cilum.io/v2", "cilium.io", "v2", "example.com/v1"]
    {
        let why =
            format!("p.yaml:1:13 apiVersion: \"{version}\" of a CiliumNetworkPolicy; \"cilium.io/v2\" is allowed");
        is_misspelt(version, "CiliumNetworkPolicy", &why);
    }
    for version in [
        "networking.k8s.io/v1beta",
        "networking.k8s.io",
        "network.k8s.io/v1",
        "networkng.k8s.io/v1",
        "extension/v1beta1",
        "extensions/v1beta1",
        "apps/v1",
        "v1",
        "cilium.io/v2",
        "networking.k8s/v1",
        "netwroking.k8s/v1",
        "networking.io/v1",
        "k8s.io/v1",
    ] {
        let why = format!("apiVersion: \"{version}\" of a NetworkPolicy; \"networking.k8s.io/v1\" is allowed");
        is_misspelt(version, "NetworkPolicy", &why);
    }
}

/// An object that is no policy is refused with this.
#[track_caller]
fn object_is_misspelt(version: &str, kind: &str, why: &str) {
    let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nspec: {{}}\n");
    let snapshot = read_as("p.yaml", &text, &LastGood::default());
    let found: Vec<String> =
        snapshot.refusals.iter().map(|refusal| format!("{} {}", refusal.place, refusal.text)).collect();
    assert!(found.iter().any(|found| found.contains(why)), "{why}: {found:#?}");
}

#[test]
fn what_policies_speak_of_is_refused_where_it_is_misspelt() {
    for (version, kind, meant) in [
        ("v1", "pod", "Pod"),
        ("v1", "Pods", "Pod"),
        ("v1", "Servce", "Service"),
        ("v1", "Services", "Service"),
        ("v1", "Nodes", "Node"),
        ("v1", "Endpoint", "Endpoints"),
        ("v1", "namespaces", "Namespace"),
        ("discovery.k8s.io/v1", "EndpointSlices", "EndpointSlice"),
    ] {
        object_is_misspelt(version, kind, &format!("p.yaml:2:7 kind: \"{kind}\" is no kind; did you mean {meant}"));
    }
    for (version, kind, allowed) in [
        ("v1", "EndpointSlice", "discovery.k8s.io/v1"),
        ("discovery.k8s/v1", "EndpointSlice", "discovery.k8s.io/v1"),
        ("dicsovery.k8s.io/v1", "EndpointSlice", "discovery.k8s.io/v1"),
        ("core/v1", "Pod", "v1"),
        ("core/v1", "Service", "v1"),
        ("v2", "Pod", "v1"),
    ] {
        let why = format!("p.yaml:1:13 apiVersion: \"{version}\" of a {kind}; \"{allowed}\" is allowed");
        object_is_misspelt(version, kind, &why);
    }
}

#[test]
fn a_list_without_items_is_refused_and_an_empty_one_is_not() {
    for (version, kind) in [("v1", "List"), ("cilium.io/v2", "CiliumNetworkPolicyList"), ("v1", "PodList")] {
        let list = |items: &str| format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{}}\n{items}");
        let item = "item:\n- {apiVersion: v1, kind: Secret}\n";
        is_refused("p.yaml", &list(item), &format!("p.yaml:1:1 \"item\" of a {kind}; did you mean items"));
        is_refused(
            "p.yaml",
            &list(""),
            &format!("p.yaml:1:1 a {kind} without items; items are needed, [] if it has none"),
        );
        for empty in ["items: []\n", "items:\n"] {
            assert_eq!(read_as("p.yaml", &list(empty), &LastGood::default()).refusals, []);
        }
    }
}

#[test]
fn a_list_whose_kind_is_misspelt_is_refused() {
    for (version, kind, meant) in [
        ("v1", "list", "List of v1"),
        ("v1", "Lists", "List of v1"),
        ("cilium.io/v2", "CiliumNetworkpolicyList", "CiliumNetworkPolicyList of cilium.io/v2"),
        ("cilium.io/v2", "CiliumNetworkPolicylist", "CiliumNetworkPolicyList of cilium.io/v2"),
        ("cilium/v2", "CiliumNetworkPolicyList", "CiliumNetworkPolicyList of cilium.io/v2"),
        ("networking.k8s.io/v1beta1", "NetworkPolicyList", "NetworkPolicyList of networking.k8s.io/v1"),
    ] {
        let text = format!(
            "apiVersion: {version}\nkind: {kind}\nitems:\n- metadata: {{name: p, namespace: shop}}\n  spec: {{}}\n"
        );
        is_refused(
            "p.yaml",
            &text,
            &format!("p.yaml:1:1 \"{kind}\" of \"{version}\" is no list; did you mean {meant}"),
        );
    }
}

#[test]
fn what_other_engines_own_is_of_no_use_and_no_error() {
    let kinds = [
        ("projectcalico.org/v3", "NetworkPolicy NetworkPolicyList GlobalNetworkPolicy StagedNetworkPolicy"),
        ("crd.projectcalico.org/v1", "NetworkPolicy GlobalNetworkPolicy"),
        ("crd.antrea.io/v1beta1", "NetworkPolicy ClusterNetworkPolicy"),
        ("k8s.cni.cncf.io/v1beta1", "MultiNetworkPolicy"),
        ("networking.k8s.io/v1", "Ingress IngressClass IPAddress ServiceCIDR"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute BackendTLSPolicy"),
        ("extensions/v1beta1", "Ingress Deployment PodSecurityPolicy"),
        (
            "cilium.io/v2",
            "CiliumEndpoint CiliumIdentity CiliumNode CiliumNodeConfig CiliumEgressGatewayPolicy \
             CiliumLocalRedirectPolicy CiliumEnvoyConfig CiliumClusterwideEnvoyConfig CiliumExternalWorkload \
             CiliumBGPClusterConfig CiliumBGPPeerConfig CiliumBGPAdvertisement CiliumBGPNodeConfig \
             CiliumLoadBalancerIPPool CiliumEndpointList",
        ),
        (
            "cilium.io/v2alpha1",
            "CiliumBGPPeeringPolicy CiliumL2AnnouncementPolicy CiliumEndpointSlice CiliumPodIPPool \
             CiliumGatewayClassConfig CiliumLoadBalancerIPPool CiliumEgressNATPolicy",
        ),
        ("v1", "Secret ServiceAccount Event PodTemplate PodTemplateList ReplicationController"),
        ("policy/v1", "PodDisruptionBudget"),
        ("batch/v1", "Job CronJob"),
        ("serving.knative.dev/v1", "Service"),
        ("longhorn.io/v1beta2", "Node"),
        ("config.karmada.io/v1", "Node"),
        ("metrics.k8s.io/v1beta1", "PodMetrics NodeMetrics PodMetricsList"),
        ("networking.gke.io/v1", "FQDNNetworkPolicy NetworkPolicy"),
        ("networking.k8s.aws/v1", "ClusterNetworkPolicy NetworkPolicy"),
        ("networking.istio.io/v1", "ServiceEntry"),
        ("example.com/v1", "AllowList"),
    ];
    for (version, kinds) in kinds {
        for kind in kinds.split_whitespace() {
            let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p}}\nitems: [{{}}]\n");
            let snapshot = read_as("p.yaml", &text, &LastGood::default());
            assert_eq!((&snapshot.refusals[..], snapshot.skipped), (&[][..], 1), "{version} {kind}");
        }
    }
}
