//! What does not end: names that are ever new. Does memory stay where it is, and does a workload that takes all it can get
//! harm its neighbour? Minutes long, so it runs only when it is named: `make bench-long`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::dnsperf::Subject;
use super::lab::clock::now;
use super::queries::UNLIMITED;
use super::world::{DISTINCT_NAMES, QUERY_NAMES, RESOLVER, World, new_name};
use super::{print, proc, round};

/// Queries a second.
const PACE: u32 = 2000;
/// Seconds of ever-new names on shared addresses.
const SECONDS: u32 = 300;
/// Seconds of names with an address each: some six times what the workload may hold.
const SECONDS_DISTINCT: u32 = 120;
/// When memory should have reached its size.
const SETTLED: usize = 60;
/// What it may grow after that, as a share.
const FLAT: f64 = 0.02;

pub fn measure() {
    ever_new();
    distinct();
}

fn ever_new() {
    let mut world = World::new();
    let namegate = Subject::namegate(world.start_namegate(&[UNLIMITED]));
    let names = world.names("names", (0..PACE * SECONDS).map(|i| new_name("e", i)));
    let pace = PACE.to_string();
    let (run, rss) =
        sampled(namegate.pid, || namegate.watch(&world, &namegate.line(&names, &["-n", "1", "-Q", &pace, "-t", "2"])));
    let growth = growth(&rss, SETTLED);
    print(
        "memory_ever_new_names",
        "2000 names a second that nobody has asked for, for 300 s, on 4096 addresses, TTL 5; VmRSS each second; growth: the most \
         after the first minute by what it was then",
        Some((json!({"growth": FLAT, "noerror": 1.0}), growth <= FLAT && run.noerror > 0.999)),
        json!({
            "growth": round(growth, 4),
            "rss_kib_each_20s": rss.iter().step_by(20).collect::<Vec<_>>(),
            "noerror": round(run.noerror, 4),
            "servfail": round(run.servfail, 4),
            "qps": round(run.qps, 0),
            "seconds": rss.len(),
        }),
    );
}

fn distinct() {
    let mut world = World::new();
    let namegate = Subject::namegate(world.start_namegate(&[UNLIMITED]));
    let neighbour = Subject { pod: "b", ..Subject::namegate(namegate.pid) };
    let names = world.names("names", (0..DISTINCT_NAMES).map(|i| format!("d{i}")));
    let others = world.names("others", (0..QUERY_NAMES).map(|i| format!("q{i}")));
    let (pace, seconds) = (PACE.to_string(), SECONDS_DISTINCT.to_string());
    let before = neighbour.run(&world, &others, &["-l", "10", "-Q", "200", "-v"]);
    let ((run, beside), rss) = sampled(namegate.pid, || {
        std::thread::scope(|scope| {
            let greedy = scope
                .spawn(|| namegate.watch(&world, &namegate.line(&names, &["-l", &seconds, "-Q", &pace, "-t", "2"])));
            let beside = neighbour.watch(&world, &neighbour.line(&others, &["-l", &seconds, "-Q", "200", "-v"]));
            (greedy.join().expect("a client ends"), beside)
        })
    });
    let last = format!("d{}.bench.example", DISTINCT_NAMES - 1);
    let said = world.output("a", &["dig", &format!("@{RESOLVER}"), "+tries=1", &last]);
    let ede = said.lines().find(|line| line.contains("EDE")).unwrap_or_default().trim_start_matches("; ").to_owned();
    let growth = growth(&rss, SETTLED);
    let unharmed = beside.noerror > 0.999 && beside.lost == 0.0;
    print(
        "memory_distinct_addresses",
        "one workload asks 2000 names a second for 120 s, 100000 with an address each, over and over; it may hold 16384; its \
         neighbour asks 200 a second; growth: the most after the first minute by what it was then (all names are cached once by then)",
        Some((
            json!({"growth": FLAT, "neighbour_noerror": 1.0, "ede": "named"}),
            growth <= FLAT && unharmed && said.contains("SERVFAIL") && !ede.is_empty(),
        )),
        json!({
            "growth": round(growth, 4),
            "rss_kib_each_10s": rss.iter().step_by(10).collect::<Vec<_>>(),
            "noerror": round(run.noerror, 4),
            "servfail": round(run.servfail, 4),
            "ede": ede,
            "neighbour": {
                "noerror": round(beside.noerror, 4),
                "lost": beside.lost,
                "p50_p99_max_ms": beside.p50_p99_max_ms.map(|ms| round(ms, 3)),
                "p50_p99_max_ms_before": before.p50_p99_max_ms.map(|ms| round(ms, 3)),
            },
        }),
    );
}

/// What `work` returns, and the resident memory of a process, KiB, each second until then.
fn sampled<T: Send>(pid: u32, work: impl FnOnce() -> T + Send) -> (T, Vec<u64>) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let (start, mut rss) = (now(), Vec::new());
            while !done.load(Ordering::Relaxed) {
                rss.push(proc::rss_kib(pid));
                let next = Duration::from_secs(rss.len() as u64);
                std::thread::sleep(next.saturating_sub(start.elapsed()));
            }
            rss
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        (worked, sampler.join().expect("the sampler ends"))
    })
}

/// How much more it was at most after the first `settled` seconds, as a share.
fn growth(rss: &[u64], settled: usize) -> f64 {
    let (Some(then), Some(most)) = (rss.get(settled), rss.iter().skip(settled).max()) else { return f64::INFINITY };
    *most as f64 / *then as f64 - 1.0
}
