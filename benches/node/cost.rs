//! What things cost: memory of the kernel's maps and of the process, processor time.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::crowd::{Crowd, Order, Rhythm};
use super::lab::agent::traffic::question;
use super::lab::agent::{Many, Script, hex};
use super::lab::clock::{now, wait_until};
use super::lab::world::{Family, Options};
use super::lab::{Daemon, Topology, World, snapshot};
use super::proc::{map_memory, rss_kib};
use super::round;
use super::yard::{Cni, RED, Yard};

const PODS: usize = 200;
/// As many with one address for all, and with one each.
const NAMES: u32 = 8_000;
/// Pods in the snapshot, on other nodes.
const SNAPSHOTS: [usize; 3] = [0, 1_000, 20_000];
/// In one file, as a collector writes them.
const IN_A_FILE: usize = 100;
/// How long nothing is done before a figure is taken: what has just been written is read once more.
const SETTLED: Duration = Duration::from_secs(8);
/// How long processor time at rest is taken.
const REST: Duration = Duration::from_secs(12);
const CHANGES: u32 = 10;
/// Between two changes.
const APART: Duration = Duration::from_millis(500);
/// Attaching takes its time on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Memory that a process has, and its maps.
#[derive(Clone, Copy)]
struct Memory {
    kernel: u64,
    user: u64,
}

impl Memory {
    fn of(daemon: &Daemon) -> Memory {
        Memory { kernel: map_memory(daemon.pid()).0, user: rss_kib(daemon.pid()) * 1024 }
    }

    /// What each of so many has added.
    fn each(self, before: Memory, count: usize) -> (i64, i64) {
        let grown = |now: u64, before: u64| (now as i64 - before as i64) / count as i64;
        (grown(self.kernel, before.kernel), grown(self.user, before.user))
    }
}

pub fn octets() -> Value {
    let (at_rest, (pod_kernel, pod_user)) = pods();
    let [(name_kernel, name_user), (both_kernel, both_user)] = names();
    json!({
        "at_rest": {"kernel": at_rest.kernel, "user": at_rest.user},
        "per_pod": {"kernel": pod_kernel, "user": pod_user, "pods": PODS},
        "per_name": {"kernel": name_kernel, "user": name_user, "names": NAMES},
        // A name with an address of its own, less a name.
        "per_grant": {"kernel": both_kernel - name_kernel, "user": both_user - name_user, "grants": NAMES},
    })
}

/// Pods of one policy, which are there.
fn pods() -> (Memory, (i64, i64)) {
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    let crowd = Crowd::new(&yard);
    let daemon = yard.start(&[]);
    let mut first = crowd.burst(7, PODS..PODS + 2, |_| RED);
    add(&yard, &crowd, &mut first, 2);
    let before = Memory::of(&daemon);
    let mut burst = crowd.burst(8, 0..PODS, |_| RED);
    add(&yard, &crowd, &mut burst, PODS + 2);
    (before, Memory::of(&daemon).each(before, PODS))
}

/// Waits until so many pods are guarded.
fn add(yard: &Yard, crowd: &Crowd<'_>, burst: &mut super::crowd::Burst, all: usize) {
    crowd.write_pods(burst, true);
    crowd.appear(burst, Order::ResultFirst, 1, Rhythm::Together);
    crowd.is_there(burst);
    let guarded = || {
        let status = yard.status();
        let rows = status["endpoints"].as_array().cloned().unwrap_or_default();
        let enforced = rows.iter().filter(|row| row["state"] == "enforced");
        enforced.filter(|row| row["pod"].as_str().is_some_and(|pod| pod.contains("crowd-"))).count()
    };
    assert!(wait_until(LIMIT, || guarded() == all), "{} of {all} are guarded", guarded());
    std::thread::sleep(SETTLED);
}

/// What a name costs that shares its address with all others, and one that has its own.
fn names() -> [(i64, i64); 2] {
    let world = World::new(Options { topology: Topology::Routed });
    let rules = "  - toFQDNs: [{matchPattern: \"*.same.example.net\"}, {matchPattern: \"*.own.example.net\"}]\n";
    let policy = snapshot::policy("payment-processor", rules);
    snapshot::with_policy(&world.directory.join("snapshot"), &policy);
    world.outside.say_addresses("*.same.example.net", &[Family::V4.outside(101)], 3_600);
    let records = vec![(String::new(), "A".into(), "198.19.0.0+".into())];
    world.outside.say("*.own.example.net", "A", Script { records, ttl: 3_600, ..Script::default() });
    let daemon = Daemon::start_quiet(&world, &[]);
    let ask = |first: u32, count: u32, under: &str| {
        let message = |number| hex(&question(0, &format!("n{number}.{under}.example.net."), true));
        let messages: Vec<String> = (first..first + count).map(message).collect();
        let server = Family::V4.kube_dns();
        let replies = world.pay.ask_many(Many { server, tcp: false, messages, at_once: 64, within_ms: 30_000 });
        let answered = replies.iter().flatten().filter(|reply| reply.len() > 7 && reply[3] & 15 == 0 && reply[7] > 0);
        assert_eq!(answered.count(), count as usize, "all names of {under} are answered");
        std::thread::sleep(Duration::from_secs(3)); // the checkpoint is written
    };
    ["same", "own"].map(|under| {
        ask(0, 64, under); // what is made once is there
        let before = Memory::of(&daemon);
        ask(100, NAMES, under);
        Memory::of(&daemon).each(before, NAMES as usize)
    })
}

pub fn cpu() -> Value {
    let row = |pods: &usize| {
        let (rest, change) = with_snapshot(*pods);
        json!({"pods_in_snapshot": pods, "a_minute_at_rest": round(rest), "one_changed_pod": round(change)})
    };
    SNAPSHOTS.iter().map(row).collect()
}

/// Milliseconds of processor time a minute at rest, and for one changed pod.
fn with_snapshot(pods: usize) -> (f64, f64) {
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    let directory = yard.world.directory.join("snapshot");
    let rules = "  - toCIDR: [203.0.113.200/32]\n  - toEndpoints: [{matchLabels: {tier: open}}]\n";
    snapshot::replace(&directory.join("policy.yaml"), &snapshot::policy("red", rules));
    for first in (0..pods.max(1)).step_by(IN_A_FILE) {
        write_file(&directory, first, pods.max(1), "closed");
    }
    let daemon = yard.start(&[]);
    let pod = yard.appear(0, RED);
    std::thread::sleep(SETTLED);
    let (before, start) = (cpu_ms(daemon.pid()), now());
    std::thread::sleep(REST);
    let rest = (cpu_ms(daemon.pid()) - before) / start.elapsed().as_secs_f64();
    let generations = |daemon: &Daemon| daemon.log().iter().filter(|line| line.contains("is in force")).count();
    let (before, start) = (cpu_ms(daemon.pid()), now());
    for change in 0..CHANGES {
        let reloads = generations(&daemon);
        write_file(&directory, 0, pods.max(1), if change.is_multiple_of(2) { "open" } else { "closed" });
        assert!(wait_until(LIMIT, || generations(&daemon) > reloads), "change {change} is never in force");
        std::thread::sleep(APART);
    }
    std::thread::sleep(Duration::from_secs(3)); // what was just written is read once more
    let spent = cpu_ms(daemon.pid()) - before - rest * start.elapsed().as_secs_f64();
    drop(pod);
    (rest * 60.0, spent / f64::from(CHANGES))
}

/// A file of pods of other nodes. Of the first file, the first pod is of `tier`, which decides whether it may be reached.
fn write_file(directory: &Path, first: usize, all: usize, tier: &str) {
    let pod = |number: usize| {
        let address = format!("198.18.{}.{}", 32 + number / 200 % 190, number % 200 + 1);
        let (namespace, tier) = if number == 0 { ("payments", tier) } else { ("bulk", "closed") };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("bulk-{number}"), "namespace": namespace, "uid": format!("uid-of-{number}"),
                "labels": {"app": format!("app-{}", number % 50), "tier": tier},
            },
            "spec": {"nodeName": format!("node-{}", number % 200)},
            "status": {"phase": "Running", "podIPs": [{"ip": address}]},
        })
    };
    let items: Vec<Value> = (first..(first + IN_A_FILE).min(all)).map(pod).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    snapshot::replace(&directory.join(format!("bulk-{first}.json")), &list.to_string());
}

/// Processor time of all threads so far, milliseconds; to the nanosecond, where /proc/PID/stat counts hundredths of a second.
fn cpu_ms(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    let of_task = |path: &Path| {
        let text = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or_default()
    };
    tasks.flatten().map(|task| of_task(&task.path())).sum::<f64>() / 1e6
}
