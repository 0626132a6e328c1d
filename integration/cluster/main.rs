//! The collector against the real API server, kubectl and etcd, which `integration/cluster/build.sh` builds. One after the
//! other, all against one cluster: `make test-cluster`.
//!
//! Without `CLUSTER_PROGRAMS`, the directory that holds the programs, every test is counted as skipped. (A variable that
//! begins with NAMEGATE_ is a setting of the agent's.) The one with an agent needs root, as the lab does.
#![expect(clippy::disallowed_methods, reason = "a test waits for things, and measures how long they take")]

mod cluster;
mod collector;
mod first;
#[path = "../lab/mod.rs"]
mod lab;
mod load;

use std::process::ExitCode;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cluster::Cluster;
use collector::{Collector, eventually};
use lab::process::guard;
use libtest_mimic::{Arguments, Failed, Trial};

/// What is promised, with this machine's other work in it.
const SOON: Duration = Duration::from_secs(1);

/// The one that has an agent, and pods.
const FIRST: &str = "the_first_policy_of_a_new_user_is_enforced_within_two_seconds";

/// A test's name, and what it does.
type Test = (&'static str, fn(&mut Cluster));

static CLUSTER: OnceLock<Mutex<Cluster>> = OnceLock::new();

fn main() -> ExitCode {
    lab::agent::serve_if_asked();
    let arguments = Arguments::from_args();
    let programs = std::env::var_os("CLUSTER_PROGRAMS");
    if programs.is_none() && !arguments.list {
        eprintln!("skipped: no programs of a cluster; `make test-cluster` builds them where Go is installed");
    }
    // SAFETY: reads a number.
    let root = unsafe { libc::geteuid() } == 0;
    if programs.is_some() && root && !arguments.list {
        guard::install();
    }
    let tests: [Test; 8] = [
        ("a_policy_applied_with_kubectl_arrives_though_its_kind_came_later", policies),
        ("a_label_change_arrives_within_a_second", labels),
        ("a_policy_that_is_refused_says_so_to_kubectl", statuses),
        ("an_api_server_that_is_killed_and_comes_back_costs_nothing", killed),
        ("what_happened_before_a_compaction_is_found_by_a_list", compacted),
        ("config_maps_are_made_and_follow", config_maps),
        ("what_the_role_does_not_allow_is_named_and_then_found", forbidden),
        (FIRST, first::first_policy),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        let trial = Trial::test(name, move || {
            let cluster = CLUSTER.get_or_init(|| Mutex::new(Cluster::start()));
            test(&mut cluster.lock().unwrap_or_else(PoisonError::into_inner));
            Ok::<(), Failed>(())
        });
        trial.with_ignored_flag(programs.is_none() || (name == FIRST && !root))
    });
    let arguments = Arguments { test_threads: Some(1), ..arguments };
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if let Some(cluster) = CLUSTER.get() {
        cluster.lock().unwrap_or_else(PoisonError::into_inner).stop();
    }
    if programs.is_some() && root {
        guard::cleanup();
    }
    conclusion.exit_code()
}

const POLICY: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: NAME, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress: [{toFQDNs: [{matchName: api.example.com}]}]
"#;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: web, image: web, env: [{name: PASSWORD, value: hunter2}]}]}
"#;

/// The cluster starts without Cilium's kinds.
fn policies(cluster: &mut Cluster) {
    let collector = Collector::start(cluster, "collector", &[]);
    collector.is_ready();
    assert!(collector.has("Namespace default") && collector.has("Service default/kubernetes"));
    cluster.apply_crds();
    cluster.apply(&POLICY.replace("NAME", "web"));
    let group = "apiVersion: cilium.io/v2alpha1\nkind: CiliumCIDRGroup\nmetadata: {name: offices}\nspec: {externalCIDRs: [203.0.113.0/28]}\n";
    cluster.apply(&group.replace("v2alpha1", &cluster.group_version));
    eventually("the policy", || collector.has("CiliumNetworkPolicy shop/web"));
    eventually("the blocks", || collector.has("CiliumCIDRGroup offices"));
    cluster.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cilium-config, namespace: kube-system}\ndata: {cluster-name: c}\n");
    cluster.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other, namespace: kube-system}\ndata: {a: b}\n");
    eventually("Cilium's settings", || collector.has("ConfigMap kube-system/cilium-config"));
    assert!(!collector.has("ConfigMap kube-system/other"));
    let second = Instant::now();
    cluster.apply(&POLICY.replace("NAME", "second"));
    let applied = second.elapsed();
    eventually("the second policy", || collector.has("CiliumNetworkPolicy shop/second"));
    assert!(second.elapsed() < applied + SOON, "{:?} after kubectl", second.elapsed() - applied);
    assert!(collector.agent_accepts());
}

fn labels(cluster: &mut Cluster) {
    cluster.prepare(&POLICY.replace("NAME", "web"));
    let collector = Collector::start(cluster, "collector", &["--node", "n1"]);
    cluster.apply(POD);
    collector.is_ready();
    eventually("the pod", || collector.has("Pod shop/web-0"));
    let status = r#"{"status":{"phase":"Running","podIP":"198.18.0.7","podIPs":[{"ip":"198.18.0.7"}]}}"#;
    cluster.kubectl(&["patch", "pod", "web-0", "-n", "shop", "--subresource=status", "--type=merge", "-p", status]);
    eventually("the address", || collector.text("Pod shop/web-0").contains("198.18.0.7"));
    assert!(!collector.text("Pod shop/web-0").contains("hunter2"), "what nobody reads is not kept");
    let mut took = Vec::new();
    for number in 0..10 {
        let label = format!("number=n{number}");
        cluster.kubectl(&["label", "pod", "web-0", "-n", "shop", "--overwrite", &label]);
        let start = Instant::now();
        let wanted = format!(r#""number":"n{number}""#);
        eventually("the label", || collector.text("Pod shop/web-0").contains(&wanted));
        took.push(start.elapsed());
    }
    took.sort_unstable();
    eprintln!("a label reaches the snapshot after kubectl: median {:?}, most {:?}", took[5], took[9]);
    assert!(took[9] < SOON, "{took:?}");
    assert!(collector.agent_accepts());
}

fn statuses(cluster: &mut Cluster) {
    cluster.prepare(&POLICY.replace("NAME", "web"));
    let collector = Collector::start(cluster, "collector", &["--write-status"]);
    collector.is_ready();
    // No schema can tell: it depends on Cilium's settings.
    let nodes = POLICY.replace("toFQDNs: [{matchName: api.example.com}]", "toNodes: [{matchLabels: {a: b}}]");
    cluster.apply(&nodes.replace("NAME", "refused"));
    let valid = |name: &str, part: &str| {
        let path = format!("jsonpath={{.status.conditions[?(@.type==\"Valid\")].{part}}}");
        cluster.kubectl(&["get", "cnp", name, "-n", "shop", "-o", &path])
    };
    eventually("the refusal", || valid("refused", "status") == "False");
    eventually("the acceptance", || valid("web", "status") == "True");
    let message = valid("refused", "message");
    assert!(message.contains("enable-node-selector-labels"), "{message}");
    let version =
        || cluster.kubectl(&["get", "cnp", "refused", "-n", "shop", "-o", "jsonpath={.metadata.resourceVersion}"]);
    let before = version();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(version(), before, "written once");
    cluster.apply(&POLICY.replace("NAME", "refused"));
    eventually("the correction", || valid("refused", "status") == "True");
}

fn killed(cluster: &mut Cluster) {
    cluster.prepare(&POLICY.replace("NAME", "web"));
    let collector = Collector::start(cluster, "collector", &[]);
    collector.is_ready();
    let before = collector.generation();
    cluster.kill_api_server();
    eventually("it is noticed", || collector.metric("namegate_collect_errors_total", "unreachable") > 0.0);
    assert_eq!(collector.generation(), before);
    assert!(collector.has("CiliumNetworkPolicy shop/web"));
    cluster.start_api_server();
    cluster.apply(&POLICY.replace("NAME", "after"));
    eventually("what came after", || collector.has("CiliumNetworkPolicy shop/after"));
    collector.is_ready();
    assert!(collector.has("CiliumNetworkPolicy shop/web") && collector.agent_accepts());
}

fn compacted(cluster: &mut Cluster) {
    cluster.prepare(&POLICY.replace("NAME", "web"));
    let collector = Collector::start(cluster, "collector", &[]);
    collector.is_ready();
    cluster.apply(&POLICY.replace("NAME", "goes"));
    eventually("the policy", || collector.has("CiliumNetworkPolicy shop/goes"));
    // It sleeps while things happen, and the server forgets how. First its connections are cut: what is in them would be read.
    collector.pause(true);
    cluster.kill_api_server();
    cluster.start_api_server();
    cluster.kubectl(&["delete", "cnp", "goes", "-n", "shop"]);
    for number in 0..5 {
        cluster.apply(&POLICY.replace("NAME", &format!("new-{number}")));
    }
    cluster.compact();
    cluster.kill_api_server();
    cluster.start_api_server();
    collector.pause(false);
    eventually("what happened", || {
        !collector.has("CiliumNetworkPolicy shop/goes")
            && (0..5).all(|number| collector.has(&format!("CiliumNetworkPolicy shop/new-{number}")))
    });
    assert!(collector.metric("namegate_collect_relists_total", "ciliumnetworkpolicies") >= 1.0);
    assert!(collector.metric("namegate_collect_errors_total", "gone") >= 1.0, "a 410 it was");
    collector.is_ready();
}

const MAY_WRITE: &str = r"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: namegate-config-maps, namespace: shop}
rules: [{apiGroups: [''], resources: [configmaps], verbs: [create, patch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: namegate-config-maps, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: namegate-config-maps}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: collector}]
";

fn config_maps(cluster: &mut Cluster) {
    cluster.prepare(&POLICY.replace("NAME", "web"));
    let collector = Collector::start(cluster, "collector", &["--config-maps", "shop/snapshot"]);
    eventually("a reason", || collector.page("/readyz").contains("config maps: shop/snapshot-0: 403 Forbidden"));
    cluster.apply(MAY_WRITE);
    collector.is_ready();
    let data = || {
        let names: Vec<String> = (0..8).map(|number| format!("snapshot-{number}")).collect();
        let arguments = ["get", "cm", "-n", "shop", "-o", "jsonpath={.items[*].data}"];
        let arguments: Vec<&str> = arguments.into_iter().chain(names.iter().map(String::as_str)).collect();
        cluster.kubectl(&arguments)
    };
    assert!(data().contains("api.example.com"));
    cluster.apply(&POLICY.replace("NAME", "mapped").replace("api.example.com", "mapped.example.com"));
    eventually("the change", || data().contains("mapped.example.com"));
    cluster.kubectl(&["delete", "cnp", "mapped", "-n", "shop"]);
    eventually("its end", || !data().contains("mapped.example.com"));
}

fn forbidden(cluster: &mut Cluster) {
    cluster.prepare(&POLICY.replace("NAME", "web"));
    let without = include_str!("role.yaml")
        .replace("ciliumnetworkpolicies, ", "")
        .replace("namegate-collect", "namegate-without")
        .replace("name: collector}", "name: without}");
    cluster.apply(&without);
    let collector = Collector::start(cluster, "without", &[]);
    eventually("a reason", || collector.page("/readyz").contains("ciliumnetworkpolicies: 403 Forbidden"));
    let said = collector.page("/readyz");
    assert!(said.contains("list and watch") && said.contains("snapshot: not written yet"), "{said}");
    assert!(collector.metric("namegate_collect_errors_total", "forbidden") > 0.0);
    assert!(!collector.is_written());
    cluster.apply(
        &include_str!("role.yaml")
            .replace("namegate-collect", "namegate-without")
            .replace("name: collector}", "name: without}"),
    );
    collector.is_ready();
    assert!(collector.has("CiliumNetworkPolicy shop/web"));
}
