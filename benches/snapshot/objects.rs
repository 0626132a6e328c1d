//! The objects of a cluster as its API server writes them: 10 000 pods on 100 nodes, in 50 namespaces of 40 applications
//! with five replicas each, a policy for every application, a Service for every fourth.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::world::PODS as PODS_HERE;

pub const NODES: usize = 100;
pub const NAMESPACES: usize = 50;
pub const APPS: usize = 40;
pub const REPLICAS: usize = 5;
pub const PODS: usize = NAMESPACES * APPS * REPLICAS;
pub const POLICIES: usize = NAMESPACES * APPS;
pub const SERVICES: usize = POLICIES / 4;
/// The pod that is the world's first workload: on node 0.
pub const HERE: usize = 0;
/// How many objects a shard holds.
pub const SHARD: usize = 100;

/// How the objects lie in files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// A file an object.
    Single,
    /// JSON lines, [`SHARD`] objects a file.
    Shards,
    /// One `kind: List` of all pods, and one of everything else.
    Whole,
}

impl Layout {
    pub fn name(self) -> &'static str {
        match self {
            Layout::Single => "a file an object",
            Layout::Shards => "100 objects a file",
            Layout::Whole => "one list of all pods",
        }
    }
}

/// A cluster in a directory.
pub struct Cluster<'d> {
    directory: &'d Path,
    layout: Layout,
    pods: Vec<Value>,
    others: Vec<Value>,
}

impl<'d> Cluster<'d> {
    pub fn write(directory: &'d Path, layout: Layout) -> Cluster<'d> {
        let pods = (0..PODS).map(pod).collect();
        let mut others: Vec<Value> = (0..NODES).map(node).collect();
        others.extend((0..NAMESPACES).map(namespace));
        others.extend((0..SERVICES).flat_map(|number| [service(number), slice(number)]));
        others.extend(dns());
        others.extend((0..POLICIES).map(policy));
        let cluster = Cluster { directory, layout, pods, others };
        match layout {
            Layout::Single => {
                for (number, object) in cluster.others.iter().enumerate() {
                    replace(&directory.join(format!("other-{number}.json")), &format!("{object}\n"));
                }
                (0..PODS).for_each(|number| cluster.write_pod(number));
            }
            Layout::Shards => {
                for (number, shard) in cluster.others.chunks(SHARD).enumerate() {
                    replace(&directory.join(format!("other-{number}.json")), &lines(shard));
                }
                (0..PODS).step_by(SHARD).for_each(|number| cluster.write_pod(number));
            }
            Layout::Whole => {
                replace(&directory.join("other.json"), &list(&cluster.others));
                cluster.write_pod(0);
            }
        }
        cluster
    }

    /// Gives a pod another label and writes the file that it is in; the file's name.
    pub fn label(&mut self, number: usize, key: &str, value: &str) -> String {
        self.pods[number]["metadata"]["labels"][key] = value.into();
        self.write_pod(number);
        self.file_of(number)
    }

    fn file_of(&self, number: usize) -> String {
        match self.layout {
            Layout::Single => format!("pod-{number}.json"),
            Layout::Shards => format!("pods-{}.json", number / SHARD),
            Layout::Whole => "pods.json".to_owned(),
        }
    }

    fn write_pod(&self, number: usize) {
        let path = self.directory.join(self.file_of(number));
        match self.layout {
            Layout::Single => replace(&path, &format!("{}\n", self.pods[number])),
            Layout::Shards => {
                let shard = number / SHARD;
                replace(&path, &lines(&self.pods[shard * SHARD..(shard + 1) * SHARD]));
            }
            Layout::Whole => replace(&path, &list(&self.pods)),
        }
    }
}

/// As the collector writes: beside, and renamed over.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).expect("a file can be written");
    fs::rename(beside, path).expect("a file can be renamed");
}

fn lines(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("{object}\n")).collect()
}

fn list(objects: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

pub fn namespace_of(app: usize) -> String {
    format!("team-{}", app / APPS)
}

pub fn app_name(app: usize) -> String {
    format!("app-{}", app % APPS)
}

/// The address of a pod.
pub fn address(pod: usize) -> String {
    if pod == HERE {
        return PODS_HERE[0].1.to_owned();
    }
    format!("198.18.{}.{}", pod / 200, 10 + pod % 200)
}

/// Under which namespace and name a pod goes. Those on node 0 are every hundredth.
pub fn name(pod: usize) -> (String, String) {
    let app = pod / REPLICAS;
    (namespace_of(app), format!("{}-7d9c8b6f5d-{pod:05}", app_name(app)))
}

/// The node of a pod: its replicas are spread.
pub fn node_of(pod: usize) -> usize {
    pod * 7 % NODES
}

fn pod(number: usize) -> Value {
    let app = number / REPLICAS;
    let (namespace, name) = name(number);
    let app_name = app_name(app);
    let image = format!("registry.example/{namespace}/{app_name}:1.{}.0", number % 9);
    let digest = format!("{number:064x}");
    let time = "2026-11-20T08:15:30Z";
    let condition =
        |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": time});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "generateName": format!("{app_name}-7d9c8b6f5d-"), "namespace": namespace,
            "uid": format!("0f7c1b52-6a3e-4c1d-9b1e-{number:012x}"), "resourceVersion": format!("{}", 500_000 + number),
            "creationTimestamp": time,
            "labels": {
                "app": app_name, "app.kubernetes.io/name": app_name, "app.kubernetes.io/part-of": namespace,
                "app.kubernetes.io/version": format!("1.{}.0", number % 9), "pod-template-hash": "7d9c8b6f5d",
                "tier": (["front", "middle", "data"][app % 3])
            },
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9090", "checksum/config": digest},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app_name}-7d9c8b6f5d"),
                "uid": format!("9d1f0a36-55e2-4f6b-8f0b-{app:012x}"), "controller": true, "blockOwnerDeletion": true}]
        },
        "spec": {
            "volumes": [
                {"name": "config", "configMap": {"name": format!("{app_name}-config"), "defaultMode": 420}},
                {"name": "kube-api-access-x7k2p", "projected": {"sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}],
                    "defaultMode": 420}}],
            "containers": [{
                "name": app_name, "image": image, "args": ["--listen=:8080", "--metrics=:9090"],
                "ports": [
                    {"name": "http", "containerPort": 8080, "protocol": "TCP"},
                    {"name": "metrics", "containerPort": 9090, "protocol": "TCP"}],
                "env": [
                    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                    {"name": "LOG_LEVEL", "value": "info"}, {"name": "REGION", "value": "eu-central-1"}],
                "resources": {"limits": {"cpu": "500m", "memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
                "volumeMounts": [
                    {"name": "config", "mountPath": "/etc/app", "readOnly": true},
                    {"name": "kube-api-access-x7k2p", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http", "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "imagePullPolicy": "IfNotPresent",
                "securityContext": {"runAsNonRoot": true, "allowPrivilegeEscalation": false}
            }],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "serviceAccountName": app_name, "serviceAccount": app_name, "nodeName": format!("node-{}", node_of(number)),
            "securityContext": {}, "schedulerName": "default-scheduler",
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "priority": 0, "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority"
        },
        "status": {
            "phase": "Running",
            "conditions": [condition("PodReadyToStartContainers"), condition("Initialized"), condition("Ready"),
                condition("ContainersReady"), condition("PodScheduled")],
            "hostIP": format!("203.0.113.{}", 1 + node_of(number)), "podIP": address(number), "podIPs": [{"ip": address(number)}],
            "startTime": time, "qosClass": "Burstable",
            "containerStatuses": [{"name": app_name, "state": {"running": {"startedAt": time}}, "lastState": {}, "ready": true,
                "restartCount": 0, "image": image, "imageID": format!("registry.example/app@sha256:{digest}"),
                "containerID": format!("containerd://{digest}"), "started": true}]
        }
    })
}

fn node(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": format!("node-{number}"), "labels": {
            "kubernetes.io/hostname": format!("node-{number}"), "topology.kubernetes.io/zone": format!("zone-{}", number % 3)}},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("203.0.113.{}", 1 + number)},
            {"type": "Hostname", "address": format!("node-{number}")}]}
    })
}

fn namespace(number: usize) -> Value {
    let name = format!("team-{number}");
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name,
        "labels": {"kubernetes.io/metadata.name": name, "area": (["shop", "data"][number % 2])}}, "status": {"phase": "Active"}})
}

/// The Service of every fourth application.
fn service(number: usize) -> Value {
    let app = number * 4;
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": app_name(app), "namespace": namespace_of(app), "labels": {"app": app_name(app)}},
        "spec": {"clusterIP": format!("198.19.{}.{}", number / 200, 10 + number % 200),
            "clusterIPs": [format!("198.19.{}.{}", number / 200, 10 + number % 200)],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            "selector": {"app": app_name(app)}, "type": "ClusterIP"}
    })
}

fn slice(number: usize) -> Value {
    let app = number * 4;
    let endpoints: Vec<Value> = (app * REPLICAS..(app + 1) * REPLICAS)
        .map(|pod| {
            json!({"addresses": [address(pod)], "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{}", node_of(pod)),
            "targetRef": {"kind": "Pod", "name": name(pod).1, "namespace": name(pod).0}})
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{}-x{number}", app_name(app)), "namespace": namespace_of(app),
            "labels": {"kubernetes.io/service-name": app_name(app)}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints
    })
}

/// The cluster's resolver: two pods and their Service.
fn dns() -> Vec<Value> {
    let labels = json!({"k8s-app": "kube-dns"});
    let pods = [1, 2].map(|number| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("coredns-{number}"), "namespace": "kube-system", "labels": labels},
            "spec": {"nodeName": format!("node-{number}")},
            "status": {"phase": "Running", "podIPs": [{"ip": format!("198.18.255.{number}")}]}})
    });
    let ports =
        json!([{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]);
    let mut objects = pods.to_vec();
    objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system",
        "labels": {"kubernetes.io/metadata.name": "kube-system"}}}));
    objects.push(
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {"clusterIP": "198.19.255.53", "ports": ports, "selector": labels}}),
    );
    objects.push(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "kube-dns-x", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "ports": ports, "endpoints": [{"addresses": ["198.18.255.1"], "conditions": {"ready": true}},
            {"addresses": ["198.18.255.2"], "conditions": {"ready": true}}]}));
    objects
}

/// Each application is reached by the one before it and by everyone's metrics, and reaches the next two, names, and a
/// partner's network.
fn policy(app: usize) -> Value {
    let (namespace, name) = (namespace_of(app), app_name(app));
    let other = |step: usize| app_name(app / APPS * APPS + (app + step) % APPS);
    let far = (app + 5 * APPS) % POLICIES;
    let tcp = |port: u16| json!([{"ports": [{"port": port.to_string(), "protocol": "TCP"}]}]);
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": name}},
            "ingress": [
                {"fromEndpoints": [{"matchLabels": {"app": other(APPS - 1)}}], "toPorts": tcp(8080)},
                {"fromEndpoints": [{"matchLabels": {"monitors": "everyone"}}], "toPorts": tcp(9090)}],
            "egress": [
                {"toEndpoints": [{"matchLabels": {"io.kubernetes.pod.namespace": "kube-system", "k8s-app": "kube-dns"}}],
                    "toPorts": [{"ports": [{"port": "53", "protocol": "ANY"}], "rules": {"dns": [{"matchPattern": "*"}]}}]},
                {"toEndpoints": [{"matchLabels": {"app": other(1)}}, {"matchLabels": {"app": other(2)}}], "toPorts": tcp(8080)},
                {"toEndpoints": [{"matchLabels": {"io.kubernetes.pod.namespace": namespace_of(far), "app": app_name(far)}}],
                    "toPorts": tcp(8080)},
                {"toEndpoints": [{"matchLabels": {"opened": name}}], "toPorts": tcp(8443)},
                {"toEndpoints": [{"matchExpressions": [{"key": "tier", "operator": "In", "values": ["data"]},
                    {"key": "io.cilium.k8s.namespace.labels.area", "operator": "In", "values": ["shop"]}]}],
                    "toPorts": tcp(5432)},
                {"toFQDNs": [{"matchName": format!("api-{app}.partner.example")},
                    {"matchPattern": format!("*.store-{}.example", app % 97)}], "toPorts": tcp(443)},
                {"toCIDR": [format!("203.0.113.{}/32", 128 + app % 64), "2001:db8:5::/48"], "toPorts": tcp(443)}]
        }
    })
}
