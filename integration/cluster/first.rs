//! The first policy of a new user, from `kubectl apply` to the first packet that is refused.
//!
//! The chart is rendered by helm and applied; what the kubelet would start is started here, with the accounts, the settings
//! and the arguments that the API server has of it. The API server, etcd and the collectors use the machine's loopback; the
//! agent and the pods live in namespaces of the lab, and the agent reads files only.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cluster::Cluster;
use super::collector::{Collector, eventually};
use super::lab::agent::{Question, Reach, Request};
use super::lab::world::{FAMILIES, Family, Options, PODS};
use super::lab::{Daemon, Topology, World};
use super::load::Load;

const ALLOWED: (&str, u8) = ("api.stripe.com", 10);
const DENIED: (&str, u8) = ("api.github.com", 20);
const PORT: u16 = 443;
/// What is promised on a machine that does nothing else: from the end of kubectl to what the policy says.
const ENFORCED: Duration = Duration::from_secs(2);
/// The same of a label.
const RELABELLED: Duration = Duration::from_secs(1);
const RELEASE: &str = "namegate";

const POLICY: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: payment-processor, namespace: payments}
spec:
  endpointSelector: {matchLabels: {app: payment-processor}}
  egress:
    - toEndpoints: [{matchLabels: {k8s:io.kubernetes.pod.namespace: kube-system, k8s:k8s-app: kube-dns}}]
      toPorts:
        - ports: [{port: "53", protocol: ANY}]
          rules: {dns: [{matchName: api.stripe.com}]}
    - toFQDNs: [{matchName: api.stripe.com}]
      toPorts: [{ports: [{port: "443", protocol: TCP}]}]
"#;

/// No schema can tell: it depends on Cilium's settings.
const REFUSED: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: reports, namespace: payments}
spec:
  endpointSelector: {matchLabels: {app: reports}}
  egress: [{toNodes: [{matchLabels: {a: b}}]}]
";

/// A pod of the lab, where it is, and the API server that tells of it.
struct Install<'a> {
    cluster: &'a Cluster,
    world: World,
    daemon: Daemon,
    _collectors: [Collector; 2],
}

/// As `make test-cluster` runs it, last.
pub fn first_policy(cluster: &mut Cluster) {
    if !cluster.is_running() {
        cluster.start_api_server();
    }
    cluster.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {RELEASE}}}\n"));
    cluster.apply(&chart());
    cluster.are_served();
    let cluster = &*cluster;
    let install = Install::new(cluster);
    let world = &install.world;
    for family in FAMILIES {
        for pod in [&world.pay, &world.rep] {
            assert_eq!(pod.connect(at(family, DENIED)), Reach::Reached, "INVALID: no policy yet");
            assert_eq!(pod.ask(family.kube_dns(), DENIED.0, family.qtype()).addresses, [family.outside(DENIED.1)]);
        }
    }

    let load = Load::measure();
    let [packet, query] = install.enforced_after(|| cluster.apply(POLICY));
    let factor = load.factor();
    println!(
        "{}",
        json!({"what": "the first policy", "from": "the end of kubectl apply", "load": rounded(factor),
               "packet_refused_ms": ms(packet), "query_refused_ms": ms(query)})
    );
    assert!(packet.max(query) < ENFORCED.mul_f64(factor), "packet {packet:?}, query {query:?}, load {factor}");
    for family in FAMILIES {
        assert_eq!(world.pay.connect(at(family, ALLOWED)), Reach::Refused, "nobody has asked");
        let said = world.pay.ask(family.kube_dns(), ALLOWED.0, family.qtype());
        assert_eq!(said.addresses, [family.outside(ALLOWED.1)], "{said:?}");
        assert_eq!(world.pay.connect(at(family, ALLOWED)), Reach::Reached, "the allowed name, over {family:?}");
        assert_eq!(world.pay.connect(at(family, DENIED)), Reach::Refused);
        assert_eq!(world.pay.ask(family.kube_dns(), DENIED.0, family.qtype()).rcode, "REFUSED");
        assert_eq!(world.rep.connect(at(family, DENIED)), Reach::Reached, "no policy selects the other one");
    }
    install.shows("payment-processor", "True", "");

    // Refused, and no version before it: what it selects is shut, and kubectl says why.
    cluster.apply(REFUSED);
    eventually("a refused policy shuts", || world.rep.connect(at(Family::V4, DENIED)) == Reach::Refused);
    install.shows("reports", "False", "enable-node-selector-labels");
    cluster.kubectl(&["delete", "cnp", "-n", "payments", "reports"]);
    eventually("its end opens again", || world.rep.connect(at(Family::V4, DENIED)) == Reach::Reached);

    labels(&install);
    cluster.kubectl(&["delete", "cnp", "-n", "payments", "payment-processor"]);
    eventually("its end opens again", || world.pay.connect(at(Family::V4, DENIED)) == Reach::Reached);
    assert!(install.daemon.terminate().success());
}

/// A label that the policy selects by comes and goes.
fn labels(install: &Install) {
    let load = Load::measure();
    let (mut shut, mut opened) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        opened.push(install.relabelled("free", Reach::Reached));
        shut.push(install.relabelled("payment-processor", Reach::Refused));
    }
    let factor = load.factor();
    let most = shut.iter().chain(&opened).copied().max().unwrap_or_default();
    println!(
        "{}",
        json!({"what": "a label", "from": "the end of kubectl label", "load": rounded(factor),
               "shut_ms": shut.iter().copied().map(ms).collect::<Vec<_>>(),
               "opened_ms": opened.iter().copied().map(ms).collect::<Vec<_>>()})
    );
    assert!(most < RELABELLED.mul_f64(factor), "shut {shut:?}, opened {opened:?}, load {factor}");
}

impl<'a> Install<'a> {
    /// Starts what the chart describes, and waits until both pods are known and open.
    #[track_caller]
    fn new(cluster: &'a Cluster) -> Install<'a> {
        cluster.apply(include_str!("first.yaml"));
        let world = World::new(Options { topology: Topology::ProxyArp });
        for (name, last) in [ALLOWED, DENIED] {
            world.outside.say_addresses(name, &FAMILIES.map(|family| family.outside(last)), 300);
            for family in FAMILIES {
                world.outside.done(Request::ServeTcp { at: at(family, (name, last)) });
            }
        }
        // What a kubelet tells.
        for pod in &PODS {
            is_running(cluster, "payments", pod.name, [pod.v4, pod.v6]);
        }
        is_running(cluster, "kube-system", "coredns", ["203.0.113.53", "2001:db8:2::53"]);
        let addresses = ["198.51.100.1", "2001:db8:1::1"].map(|ip| json!({"type": "InternalIP", "address": ip}));
        patch_status(cluster, &["node", "demo-node"], &json!({"addresses": addresses}));

        let collectors = [
            collector(cluster, "daemonset/namegate", &world.directory.join("snapshot")),
            collector(cluster, "deployment/namegate-status", &world.directory.join("snapshot-of-status")),
        ];
        for collector in &collectors {
            collector.is_ready();
        }
        let install = Install { daemon: agent(cluster, &world), cluster, world, _collectors: collectors };
        install.daemon.wait_ready();
        eventually("both pods", || {
            let (fine, said) = install.daemon.run("status", &["--output", "json"]);
            let status: Value = serde_json::from_str(&said).unwrap_or_default();
            let rows = status["endpoints"].as_array().cloned().unwrap_or_default();
            let found = |pod: &str| rows.iter().any(|row| row["pod"] == format!("payments/{pod}").as_str());
            fine && PODS.iter().all(|pod| found(pod.name))
        });
        install
    }

    /// How long after the end of `apply` the first packet and the first query are refused; both are tried all the time.
    fn enforced_after(&self, apply: impl FnOnce()) -> [Duration; 2] {
        let packet = || self.world.pay.connect(at(Family::V4, DENIED)) == Reach::Refused;
        let question = Question {
            server: Family::V4.kube_dns(),
            name: DENIED.0.into(),
            qtype: "A".into(),
            tcp: false,
            tls: None,
            edns: Some(1232),
            within_ms: 200,
        };
        let query = || self.world.pay.ask_as(question.clone()).rcode == "REFUSED";
        std::thread::scope(|scope| {
            let [packet, query] = [scope.spawn(|| first_time(packet)), scope.spawn(|| first_time(query))];
            apply();
            let applied = Instant::now();
            [packet, query].map(|thread| thread.join().expect("it came").saturating_duration_since(applied))
        })
    }

    /// How long after kubectl has labelled the pod a connection ends like this.
    fn relabelled(&self, app: &str, wanted: Reach) -> Duration {
        let reach = || self.world.pay.connect(at(Family::V4, DENIED));
        assert_ne!(reach(), wanted, "INVALID: before app={app}");
        std::thread::scope(|scope| {
            let seen = scope.spawn(|| first_time(|| reach() == wanted));
            let label = format!("app={app}");
            self.cluster.kubectl(&["label", "pod", "-n", "payments", PODS[0].name, "--overwrite", &label]);
            let applied = Instant::now();
            seen.join().expect("it came").saturating_duration_since(applied)
        })
    }

    /// `kubectl get cnp` shows it, as a user asks.
    #[track_caller]
    fn shows(&self, policy: &str, valid: &str, reason: &str) {
        let mut said = String::new();
        eventually("a status", || {
            said = self.cluster.kubectl(&["get", "cnp", "-n", "payments", policy, "-o", "wide", "--no-headers"]);
            said.split_whitespace().any(|word| word == valid)
        });
        println!("kubectl get cnp: {said}");
        assert!(said.contains(reason), "{said}");
    }
}

/// What helm makes of the chart, for a cluster without Cilium.
#[track_caller]
fn chart() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/namegate");
    let mut helm = Command::new("helm");
    helm.args(["template", RELEASE]).arg(folder).args(["--namespace", RELEASE]);
    for set in ["crds.install=true", "writeStatus.enabled=true", "image.repository=registry.example/namegate"] {
        helm.args(["--set", set]);
    }
    let output =
        helm.output().expect("helm starts; `make tools` installs it, and `make test-cluster` has it in its path");
    assert!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The collector of one of the chart's workloads: its arguments and its account, with a directory and port of the test's.
#[track_caller]
fn collector(cluster: &Cluster, workload: &str, output: &Path) -> Collector {
    let of = |path: &str| {
        let path = format!("jsonpath={{.spec.template.spec.{path}}}");
        cluster.kubectl(&["get", workload, "-n", RELEASE, "-o", &path])
    };
    let account = of("serviceAccountName");
    let token = cluster.kubectl(&["create", "token", "-n", RELEASE, &account]);
    let written = of("containers[?(@.name==\"collector\")].args");
    let words: Vec<String> = serde_json::from_str(&written).expect("a list of words");
    assert_eq!(words.first().map(String::as_str), Some("collect"), "{workload}: {written}");
    let mut arguments = Vec::new();
    let mut rest = words[1..].iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "--output" | "--metrics" => drop(rest.next()),
            "$(NODE_NAME)" => arguments.push("demo-node"),
            word => arguments.push(word),
        }
    }
    Collector::start_at(&cluster.kubeconfig_of(&account, &token), output, &arguments)
}

/// The agent, with the chart's settings, in the lab's node.
#[track_caller]
fn agent(cluster: &Cluster, world: &World) -> Daemon {
    let settings =
        cluster.kubectl(&["get", "configmap", "-n", RELEASE, RELEASE, "-o", r"jsonpath={.data.namegate\.toml}"]);
    let file = world.directory.join("namegate.toml");
    fs::write(&file, settings).expect("a file can be written");
    let cache = format!("discovery.cni_cache={}", world.directory.join("cni").display());
    Daemon::launch_without_endpoints(world, &[], &["--config", file.to_str().expect("text"), "--set", &cache])
}

#[track_caller]
fn is_running(cluster: &Cluster, namespace: &str, pod: &str, addresses: [&str; 2]) {
    let ips = addresses.map(|ip| json!({"ip": ip}));
    let status = json!({"phase": "Running", "podIP": addresses[0], "podIPs": ips});
    patch_status(cluster, &["pod", "-n", namespace, pod], &status);
}

#[track_caller]
fn patch_status(cluster: &Cluster, object: &[&str], status: &Value) {
    let patch = json!({"status": status}).to_string();
    cluster.kubectl(&[&["patch", "--subresource=status", "--type=merge", "-p", &patch], object].concat());
}

/// When it first was so.
fn first_time(wanted: impl Fn() -> bool) -> Instant {
    eventually("change", wanted);
    Instant::now()
}

fn at(family: Family, (_, last): (&str, u8)) -> SocketAddr {
    SocketAddr::new(family.outside(last), PORT)
}

fn ms(time: Duration) -> u128 {
    time.as_millis()
}

fn rounded(factor: f64) -> f64 {
    (factor * 100.0).round() / 100.0
}
