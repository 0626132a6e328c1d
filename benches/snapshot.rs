//! From a changed file to the kernel: a full load of a large cluster, and the change of one pod of it.
//!
//! Two ways. *Stages*: the parts of a reload one after another in this process, with kernel maps of its own, each timed by
//! itself. *Daemon*: `namegate node` in a namespace with 100 endpoints, one of them on an interface; a pod's file is
//! replaced, and a workload tries to connect until it gets through.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use namegate::cluster::snapshot::{LastGood, OnInvalid, Source};
use namegate::engine::compile::Kept;
use namegate::engine::endpoint::PodRef;
use namegate::engine::ruleset::RuleSet;
use namegate::engine::world::PeerIds;
use namegate::kernel::change::{Moves, PeerRows, RowChange};
use namegate::kernel::load::Kernel;
use serde_json::json;

use super::lab::clock::now;
use super::world::World;
use super::{median, percentile, print, round};
use objects::{Cluster, HERE, Layout, NAMESPACES, NODES, PODS, POLICIES, SERVICES};

#[path = "snapshot/objects.rs"]
mod objects;

/// How many pods of the cluster are this node's: those whose policy is put in force here.
const ENDPOINTS: usize = 100;
/// How often one pod is changed.
const CHANGES: usize = 20;
/// After so long a file that is not written any more is not read again.
const SETTLED: Duration = Duration::from_millis(2500);
/// An answer that comes, comes within so long; until then the next try waits.
const PASSED: Duration = Duration::from_millis(2);
/// Who is not answered for so long is shut out, however busy the machine is.
const STOPPED: Duration = Duration::from_millis(100);
/// Aims of issue 5.
const LOAD_MS: f64 = 2000.0;
const CHANGE_MS: f64 = 50.0;

pub fn measure() {
    for layout in [Layout::Single, Layout::Shards, Layout::Whole] {
        stages(layout);
    }
    for layout in [Layout::Single, Layout::Shards] {
        daemon(layout);
    }
}

fn stages(layout: Layout) {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let mut cluster = Cluster::write(directory.path(), layout);
    let kernel = super::kernel::load(directory.path().join("bpf").as_path());
    let mut node = Stages::new(directory.path(), &kernel);
    let full = node.reload(None);
    std::thread::sleep(SETTLED);
    node.reload(None); // what was written just before the first one is read once more
    let mut each: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let mut written = 0;
    for change in 0..CHANGES {
        let name = change_a_pod(&mut cluster, change);
        let times = node.reload(Some(BTreeSet::from([name])));
        written += node.rows;
        times.into_iter().for_each(|(stage, ms)| each.entry(stage).or_default().push(ms));
    }
    assert!(written >= CHANGES, "each change is at least one row");
    let spread = |values: &mut Vec<f64>| {
        let middle = median(values);
        json!({"median": round(middle, 2), "most": round(percentile(values, 1.0), 2)})
    };
    let all = full["all"];
    let middle = median(each.get_mut("all").expect("there is a sum"));
    print(
        "snapshot_load_ms",
        &format!("{}; {}", layout.name(), size()),
        Some((json!(LOAD_MS), all < LOAD_MS)),
        json!({"stages": rounded(&full)}),
    );
    let aimed = (layout != Layout::Whole).then(|| (json!(CHANGE_MS), middle < CHANGE_MS));
    print(
        "snapshot_change_ms",
        &format!("{}; one pod's labels, {CHANGES} times; {}", layout.name(), size()),
        aimed,
        json!({
            "stages": each.iter_mut().map(|(stage, ms)| ((*stage).to_owned(), spread(ms))).collect::<serde_json::Map<_, _>>(),
            "rows_written": round(written as f64 / CHANGES as f64, 1)
        }),
    );
    super::kernel::unload(directory.path().join("bpf").as_path());
}

fn size() -> String {
    format!(
        "{PODS} pods, {POLICIES} policies, {SERVICES} Services, {NAMESPACES} namespaces, {NODES} nodes, {ENDPOINTS} endpoints"
    )
}

fn rounded(times: &BTreeMap<&'static str, f64>) -> BTreeMap<&'static str, f64> {
    times.iter().map(|(stage, ms)| (*stage, round(*ms, 2))).collect()
}

/// Gives a pod that a workload of this node may reach if it has this label the label, or takes it away; its file's name.
fn change_a_pod(cluster: &mut Cluster<'_>, change: usize) -> String {
    let target = HERE + 1 + change / 2 % 4;
    cluster.label(target, "opened", if change.is_multiple_of(2) { "app-0" } else { "nobody" })
}

/// The pods of this node.
fn local() -> Vec<PodRef> {
    let here = (0..PODS).filter(|pod| objects::node_of(*pod) == 0).take(ENDPOINTS);
    here.map(objects::name).map(|(namespace, name)| PodRef { namespace, name }).collect()
}

/// The parts of a reload, as the node has them.
struct Stages<'k> {
    source: Source,
    kept: Kept,
    ids: PeerIds,
    last_good: LastGood,
    sets: BTreeMap<PodRef, Arc<RuleSet>>,
    numbers: BTreeMap<PodRef, u32>,
    last_number: u32,
    held: PeerRows,
    kernel: &'k Kernel,
    local: Vec<PodRef>,
    /// How many rule sets had rows changed in place, or were written anew, in the last reload.
    rows: usize,
}

impl<'k> Stages<'k> {
    fn new(directory: &Path, kernel: &'k Kernel) -> Stages<'k> {
        Stages {
            source: Source::new(directory),
            kept: Kept::default(),
            ids: PeerIds::default(),
            last_good: LastGood::default(),
            sets: BTreeMap::new(),
            numbers: BTreeMap::new(),
            last_number: 0,
            held: PeerRows::new(),
            kernel,
            local: local(),
            rows: 0,
        }
    }

    /// Reads, compiles and writes; milliseconds by stage, and all of them. `names`: the files that changed, as inotify tells.
    fn reload(&mut self, names: Option<BTreeSet<String>>) -> BTreeMap<&'static str, f64> {
        let mut watch = Watch::default();
        let snapshot = watch.time("read", || self.source.read_at(names.as_ref(), &self.last_good, OnInvalid::Refuse));
        assert_eq!(snapshot.refusals, []);
        let mut world = snapshot.world;
        world.own_node = Some("node-0".into());
        watch.time("last_good", || drop(snapshot.last_good.changes(&self.last_good)));
        self.last_good = snapshot.last_good;
        watch.time("world", || self.kept.next(&world, &mut self.ids));
        let sets: BTreeMap<PodRef, Arc<RuleSet>> = watch.time("rules", || {
            let history = |pod: &PodRef| self.sets.get(pod).map_or(&[][..], |set| &set.groups);
            let mut rules = |pod: &PodRef| self.kept.rules(pod, history(pod)).expect("it compiles");
            self.local.iter().map(|pod| (pod.clone(), rules(pod))).collect()
        });
        self.rows = 0;
        let (moves, changes) = watch.time("difference", || {
            let moves = Moves::between(&self.held, self.kept.peers());
            let mut changes = Vec::new();
            for (pod, new) in &sets {
                let Some(old) = self.sets.get(pod) else { continue };
                if !Arc::ptr_eq(old, new) {
                    changes.push(RowChange::between(self.numbers[pod], old, new, &moves).expect("rows alone changed"));
                }
            }
            (moves, changes)
        });
        watch.time("kernel", || {
            for (pod, set) in sets.iter().filter(|(pod, _)| !self.sets.contains_key(*pod)) {
                self.last_number += 1;
                self.numbers.insert(pod.clone(), self.last_number);
                self.kernel.write_rules(self.last_number, set).expect("rules can be written");
            }
            self.kernel.change_rows(&changes, &moves, || (), || self.rows += 1).expect("rows can be changed");
        });
        self.held = (**self.kept.peers()).clone();
        self.sets = sets;
        let all = watch.times.values().sum();
        watch.times.insert("all", all);
        watch.times
    }
}

/// `namegate node` itself.
fn daemon(layout: Layout) {
    let mut world = World::new();
    let directory = world.directory.join("snapshot");
    let mut cluster = Cluster::write(&directory, layout);
    let endpoints: Vec<String> = local()
        .iter()
        .enumerate()
        .map(|(number, pod)| {
            format!("{}={pod}", if number == 0 { "veth-a".to_owned() } else { format!("none{number}") })
        })
        .collect();
    let start = now();
    world.start_node("node-0", &endpoints, &["enforcement.reject=false"]);
    let started = start.elapsed();
    std::thread::sleep(SETTLED + Duration::from_secs(5)); // the directory is looked at once more
    let namespace = world.namespace("a");
    let cluster = &mut cluster;
    let mut times = std::thread::scope(|scope| {
        let run = move || {
            enter(&namespace);
            let mut times = Vec::new();
            for change in (0..CHANGES).step_by(2) {
                let to: IpAddr = objects::address(HERE + 1 + change / 2 % 4).parse().expect("an address");
                let to = SocketAddr::new(to, 8443);
                assert!(!gets_through(to, PASSED), "{to} is open before its pod has the label");
                change_a_pod(cluster, change);
                let start = now();
                while !gets_through(to, PASSED) {
                    assert!(start.elapsed() < Duration::from_secs(10), "{to} stays shut");
                }
                times.push(start.elapsed().as_secs_f64() * 1000.0);
                change_a_pod(cluster, change + 1);
                let start = now();
                let shut = loop {
                    // Each is a flow, and there are not endless many.
                    std::thread::sleep(Duration::from_millis(1));
                    let at = start.elapsed();
                    assert!(at < Duration::from_secs(10), "{to} stays open");
                    if !gets_through(to, STOPPED) {
                        break at;
                    }
                };
                times.push(shut.as_secs_f64() * 1000.0);
                std::thread::sleep(Duration::from_millis(300));
            }
            times
        };
        scope.spawn(run).join().expect("the workload tries")
    });
    let middle = median(&mut times);
    print(
        "snapshot_daemon_change_ms",
        &format!(
            "{}; from the renamed file to the first packet that passes, or that no longer does; {}",
            layout.name(),
            size()
        ),
        Some((json!(CHANGE_MS), middle < CHANGE_MS)),
        json!({"median": round(middle, 1), "most": round(percentile(&times, 1.0), 1),
            "start_to_ready": round(started.as_secs_f64() * 1000.0, 0)}),
    );
}

/// Whether a connection from here is answered within `patience`, be it with a refusal of the other side.
fn gets_through(to: SocketAddr, patience: Duration) -> bool {
    match TcpStream::connect_timeout(&to, patience) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
    }
}

/// Moves this thread into a network namespace.
fn enter(namespace: &str) {
    let file = std::fs::File::open(Path::new("/run/netns").join(namespace)).expect("the namespace is there");
    // SAFETY: a descriptor that is open, and a flag.
    let failed = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
}

#[derive(Default)]
struct Watch {
    times: BTreeMap<&'static str, f64>,
}

impl Watch {
    fn time<T>(&mut self, what: &'static str, run: impl FnOnce() -> T) -> T {
        let start: Instant = now();
        let result = run();
        self.times.insert(what, start.elapsed().as_secs_f64() * 1000.0);
        result
    }
}
