//! A server with a small cluster in it, a collector, and a reader that never stops looking.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use namegate::cluster::files;
use namegate::cluster::snapshot::{LastGood, OnInvalid, Snapshot, read};
use namegate::collect::{Collector, Settings, Timing};
use serde_json::{Value, json};

use super::server::Server;

/// A test that waits longer for something has failed. Generous: what takes how long is asserted where it matters.
const PATIENCE: Duration = Duration::from_secs(20);

/// Objects of a generation: by `Kind namespace/name`.
pub type Objects = BTreeMap<String, Value>;

/// See the module.
pub struct World {
    pub server: Server,
    pub root: PathBuf,
    pub kubeconfig: PathBuf,
    collector: Option<Collector>,
    observer: Option<Observer>,
    _folder: tempfile::TempDir,
}

/// What must hold of every generation; the text is what is wrong with one.
pub type Rule = Box<dyn Fn(&Objects) -> Result<(), String> + Send>;

impl World {
    /// A server, and no collector yet.
    pub fn new() -> World {
        let folder = tempfile::tempdir().expect("a directory");
        let server = Server::start();
        let (root, kubeconfig) = (folder.path().join("snapshot"), folder.path().join("kubeconfig"));
        fs::write(&kubeconfig, server.kubeconfig()).expect("written");
        World { server, root, kubeconfig, collector: None, observer: None, _folder: folder }
    }

    /// The same with a little of everything in it.
    pub fn inhabited() -> World {
        let world = World::new();
        for (plural, object) in inhabitants() {
            world.server.put(plural, &object);
        }
        world
    }

    /// Fast enough for a test, else as in earnest.
    pub fn settings(&self) -> Settings {
        let ms = Duration::from_millis;
        Settings {
            output: self.root.clone(),
            node: None,
            kubeconfig: Some(self.kubeconfig.clone()),
            write_status: false,
            config_maps: None,
            metrics: None,
            timing: Timing {
                list: ms(2_000),
                watch: ms(2_000),
                watch_margin: ms(500),
                backoff_min: ms(20),
                backoff_max: ms(200),
                absent_recheck: ms(100),
                absent_grace: ms(1_000),
                silence: ms(1_000),
                ..Timing::default()
            },
        }
    }

    /// Starts a collector, and a reader that checks `rule` on every generation that it gets to see.
    pub async fn start(&mut self, settings: Settings, rule: Rule) {
        self.collector = Some(Collector::start(settings).await.expect("it starts"));
        self.observer = Some(Observer::start(&self.root, rule));
    }

    /// The same with the usual settings and no rule.
    pub async fn start_plainly(&mut self) {
        self.start(self.settings(), Box::new(|_| Ok(()))).await;
    }

    /// Ends the collector; the server goes on.
    pub async fn stop(&mut self) {
        if let Some(collector) = self.collector.take() {
            collector.stop().await;
        }
    }

    pub fn collector(&self) -> &Collector {
        self.collector.as_ref().expect("it was started")
    }

    /// What the snapshot says now; nothing if there is none.
    pub fn objects(&self) -> Option<Objects> {
        generation(&self.root).map(|(_, objects)| objects)
    }

    /// Waits for a snapshot of which `wanted` is true; how long that took.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Objects) -> bool) -> Duration {
        let start = Instant::now();
        self.wait(what, || self.objects().is_some_and(|objects| wanted(&objects))).await;
        start.elapsed()
    }

    /// Waits for anything.
    pub async fn wait(&self, what: &str, wanted: impl Fn() -> bool) {
        let start = Instant::now();
        while !wanted() {
            if start.elapsed() > PATIENCE {
                let reasons = self.collector.as_ref().map(Collector::reasons);
                let objects = self.objects().map(|objects| objects.keys().cloned().collect::<Vec<_>>());
                panic!("no {what} within {PATIENCE:?}; {reasons:?}; {objects:?}; asked: {:#?}", self.server.requests());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until nobody has a reason not to be ready.
    pub async fn ready(&self) {
        self.wait("readiness", || self.collector().reasons().is_empty()).await;
    }

    /// The value of a metric with these labels.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.collector().metrics();
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        let value = line.and_then(|line| line.rsplit(' ').next());
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{text}"))
    }

    /// What the agent makes of the snapshot.
    pub fn agent(&self) -> Snapshot {
        read(&self.root, &LastGood::default(), OnInvalid::Refuse)
    }

    /// Ends the reader; how many generations it saw.
    #[track_caller]
    pub fn seen(&mut self) -> usize {
        self.observer.take().expect("it was started").end()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let Some(observer) = self.observer.take() else { return };
        if std::thread::panicking() {
            observer.stop.store(true, Ordering::Relaxed);
            let _ = observer.thread.join();
        } else {
            observer.end();
        }
    }
}

/// Looks at the directory all the time.
struct Observer {
    stop: Arc<AtomicBool>,
    wrong: Arc<Mutex<Option<String>>>,
    thread: JoinHandle<usize>,
}

impl Observer {
    fn start(root: &Path, rule: Rule) -> Observer {
        let (stop, wrong) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let (root, stopped, found) = (root.to_owned(), stop.clone(), wrong.clone());
        let thread = std::thread::spawn(move || {
            let mut seen = std::collections::BTreeSet::new();
            // Once more after the end: what is there then counts too.
            let mut last = false;
            while !last {
                last = stopped.load(Ordering::Relaxed);
                match generation(&root) {
                    Some((name, objects)) => {
                        if seen.insert(name.clone())
                            && let Err(text) = rule(&objects)
                        {
                            *found.lock().expect("nobody panics with it") = Some(format!("{}: {text}", name.display()));
                        }
                    }
                    // Once there is one, there always is.
                    None if !seen.is_empty() => {
                        *found.lock().expect("nobody panics with it") = Some("the snapshot is gone".to_owned());
                    }
                    None => {}
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            seen.len()
        });
        Observer { stop, wrong, thread }
    }

    #[track_caller]
    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("it only reads");
        if let Some(wrong) = self.wrong.lock().expect("nobody panics with it").take() {
            panic!("half a state: {wrong}");
        }
        seen
    }
}

/// The generation in force, read through `..data` as the agent does: whole, or it was replaced meanwhile and is read again.
fn generation(root: &Path) -> Option<(PathBuf, Objects)> {
    loop {
        let name = fs::read_link(root.join("..data")).ok()?;
        let read = read_generation(&root.join(&name));
        if fs::read_link(root.join("..data")).ok().as_ref() == Some(&name) {
            return Some((name, read.expect("what is in force can be read")));
        }
    }
}

fn read_generation(directory: &Path) -> Result<Objects, String> {
    let mut objects = Objects::new();
    for entry in fs::read_dir(directory).map_err(|error| error.to_string())? {
        let path = entry.map_err(|error| error.to_string())?.path();
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        for object in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
            let object = object.map_err(|error| format!("{}: {error}", path.display()))?;
            let metadata = &object["metadata"];
            let namespace = metadata["namespace"].as_str().map(|namespace| format!("{namespace}/")).unwrap_or_default();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let key = format!("{} {namespace}{}", text(&object["kind"]), text(&metadata["name"]));
            if objects.insert(key.clone(), object).is_some() {
                return Err(format!("{key} twice"));
            }
        }
    }
    Ok(objects)
}

/// What an agent that looks again reads again.
pub fn changed(agent: &mut files::Directory) -> Vec<String> {
    agent.look().expect("a directory").changed.into_iter().map(|file| file.name).collect()
}

/// An object of a kind that the server doesn't name in its lists.
pub fn object(namespace: Option<&str>, name: &str, rest: Value) -> Value {
    let mut object = json!({"metadata": {"name": name}});
    if let Some(namespace) = namespace {
        object["metadata"]["namespace"] = namespace.into();
    }
    merge(&mut object, rest);
    object
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// A pod that runs.
pub fn pod(name: &str, labels: Value) -> Value {
    let number = name.bytes().fold(7_u32, |hash, octet| hash.wrapping_mul(31).wrapping_add(octet.into())) % 60_000;
    let address = format!("198.{}.{}.{}", 18, number / 250, number % 250);
    let spec = json!({"nodeName": "n1", "serviceAccountName": "default", "containers": [{"name": "a", "image": "i"}]});
    let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
    object(Some("shop"), name, json!({"metadata": {"labels": labels}, "spec": spec, "status": status}))
}

/// A policy that allows a name.
pub fn policy(name: &str, allowed: &str) -> Value {
    let spec =
        json!({"endpointSelector": {"matchLabels": {"app": "web"}}, "egress": [{"toFQDNs": [{"matchName": allowed}]}]});
    let rest = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "spec": spec});
    object(Some("shop"), name, rest)
}

/// A little of everything.
fn inhabitants() -> Vec<(&'static str, Value)> {
    let selector = json!({"app": "web"});
    let cilium = |kind: &str, name: &str, spec: Value| {
        object(None, name, json!({"apiVersion": "cilium.io/v2", "kind": kind, "spec": spec}))
    };
    vec![
        ("namespaces", object(None, "shop", json!({"metadata": {"labels": {"team": "a"}}}))),
        (
            "nodes",
            object(None, "n1", json!({"status": {"addresses": [{"type": "InternalIP", "address": "203.0.113.1"}]}})),
        ),
        ("configmaps", object(Some("kube-system"), "cilium-config", json!({"data": {"cluster-name": "c"}}))),
        ("configmaps", object(Some("kube-system"), "other", json!({"data": {"secret": "s"}}))),
        ("pods", pod("web-0", json!({"app": "web"}))),
        ("pods", pod("db-0", json!({"app": "db"}))),
        (
            "services",
            object(
                Some("shop"),
                "web",
                json!({"spec": {"selector": selector, "clusterIP": "198.51.100.10", "ports": [{"port": 80}]}}),
            ),
        ),
        (
            "endpointslices",
            object(
                Some("shop"),
                "web-x",
                json!({"metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
                    "ports": [{"port": 8080}], "endpoints": [{"addresses": ["198.18.0.1"]}]}),
            ),
        ),
        (
            "networkpolicies",
            object(Some("shop"), "plain", json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}})),
        ),
        ("ciliumnetworkpolicies", policy("web", "api.example.com")),
        (
            "ciliumclusterwidenetworkpolicies",
            cilium("CiliumClusterwideNetworkPolicy", "all", json!({"endpointSelector": {}, "egress": [{}]})),
        ),
        ("ciliumcidrgroups", cilium("CiliumCIDRGroup", "offices", json!({"externalCIDRs": ["203.0.113.0/28"]}))),
    ]
}
