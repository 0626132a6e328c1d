//! Queries through steering, verdict and grants, beside dnsdist without a cache: the same nsd behind both, the same kind of veth
//! before both, in turns.

use std::fmt::Write;
use std::fs;

use serde_json::{Value, json};

use super::proc::{self, ProgramStatistics};
use super::world::{NODE, QUERY_NAMES, RESOLVER, World};
use super::{median, percentile, print, round};

const ROUNDS: usize = 3;
/// Seconds of a round.
const SECONDS: u32 = 6;
/// Queries under way, and the sockets that they are spread over.
const OUTSTANDING: [&str; 4] = ["-q", "100", "-c", "8"];
/// Queries a second at which latency is compared: well under what either can do.
const PACE: &str = "5000";

/// A server under test.
struct Subject {
    name: &'static str,
    /// Where dnsperf runs, and whom it asks.
    pod: &'static str,
    server: &'static str,
    pid: u32,
}

/// What one run of dnsperf saw, and what it cost the server.
struct Run {
    qps: f64,
    lost: f64,
    noerror: f64,
    mean_ms: f64,
    cpu_us: f64,
    programs_us: f64,
    packets: f64,
    /// Only when each query was listed.
    p50_p99_max_ms: [f64; 3],
}

pub fn measure() {
    let mut world = World::new();
    let (namegate, dnsdist) = (world.start_namegate(), world.start_dnsdist());
    let subjects = [
        Subject { name: "namegate", pod: "a", server: RESOLVER, pid: namegate },
        Subject { name: "dnsdist", pod: "plain", server: NODE, pid: dnsdist },
    ];
    let names = world.directory.join("names");
    let list = (0..QUERY_NAMES).fold(String::new(), |mut list, i| {
        let _ = writeln!(list, "q{i}.bench.example A");
        list
    });
    fs::write(&names, list).expect("a file can be written");
    let names = names.to_str().expect("a path in UTF-8").to_owned();

    let statistics = ProgramStatistics::on();
    let mut fast: [Vec<Run>; 2] = [Vec::new(), Vec::new()];
    let mut paced: [Vec<Run>; 2] = [Vec::new(), Vec::new()];
    for turn in 0..ROUNDS {
        for place in if turn % 2 == 0 { [0, 1] } else { [1, 0] } {
            let seconds = SECONDS.to_string();
            fast[place].push(subjects[place].run(&world, &names, &["-l", &seconds]));
            paced[place].push(subjects[place].run(&world, &names, &["-l", "3", "-Q", PACE, "-v"]));
        }
    }
    drop(statistics);

    let ratios = |runs: &[Vec<Run>; 2]| -> Vec<f64> {
        let mut ratios: Vec<f64> =
            runs[0].iter().zip(&runs[1]).map(|(a, b)| round(a.whole_us() / b.whole_us(), 2)).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    };
    let (fast_ratios, paced_ratios) = (ratios(&fast), ratios(&paced));
    let fast_ratio = percentile(&fast_ratios, 0.5);
    let values = |runs: &[Vec<Run>; 2]| -> Value {
        subjects
            .iter()
            .zip(runs)
            .map(|(subject, runs)| (subject.name.to_owned(), summary(runs)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    print(
        "queries",
        "dnsperf in a workload's namespace, 8192 names on 4096 addresses, nsd as resolver, 100 queries under way, 3 rounds of 6 s in \
         turns; dnsdist without cache, two listeners, in the same node behind the same kind of veth; CPU from /proc/PID/stat, plus BPF \
         run time (the kernel's own statistics)",
        Some((json!({"cpu_ratio": 1.5}), fast_ratio <= 1.5)),
        json!({"cpu_ratio": fast_ratio, "cpu_ratios": fast_ratios, "servers": values(&fast)}),
    );
    print(
        "query_latency",
        "the same at 5000 queries a second for 3 s a round, each query's time listed by dnsperf",
        None,
        json!({"cpu_ratio": percentile(&paced_ratios, 0.5), "cpu_ratios": paced_ratios, "servers": values(&paced)}),
    );
}

impl Run {
    /// Processor time a query, the process and its programs, µs.
    fn whole_us(&self) -> f64 {
        self.cpu_us + self.programs_us
    }
}

impl Subject {
    fn run(&self, world: &World, names: &str, more: &[&str]) -> Run {
        let before = (proc::cpu_us(self.pid), proc::programs(self.pid));
        let line = [&["dnsperf", "-s", self.server, "-d", names, "-T", "1"][..], &OUTSTANDING, more].concat();
        let text = world.output(self.pod, &line);
        let after = (proc::cpu_us(self.pid), proc::programs(self.pid));
        let completed = number(&text, "Queries completed:");
        let run_ns = (after.1.run_ns - before.1.run_ns) as f64;
        let mut listed: Vec<f64> = text
            .lines()
            .filter_map(|line| line.strip_prefix("> ")?.rsplit(' ').next()?.parse::<f64>().ok())
            .map(|seconds| seconds * 1e3)
            .collect();
        listed.sort_by(f64::total_cmp);
        let run = Run {
            qps: number(&text, "Queries per second:"),
            lost: number(&text, "Queries lost:"),
            noerror: number(&text, "Response codes:       NOERROR") / completed,
            mean_ms: number(&text, "Average Latency (s):") * 1e3,
            cpu_us: (after.0 - before.0) / completed,
            programs_us: run_ns / 1e3 / completed,
            packets: (after.1.runs - before.1.runs) as f64 / completed,
            p50_p99_max_ms: [0.5, 0.99, 1.0].map(|share| percentile(&listed, share)),
        };
        assert!(run.noerror > 0.99, "{} answers: {text}\n{}", self.name, world.log());
        run
    }
}

/// The medians of the rounds.
fn summary(runs: &[Run]) -> Value {
    let of = |value: fn(&Run) -> f64, digits| round(median(&mut runs.iter().map(value).collect::<Vec<_>>()), digits);
    let mut values = json!({
        "qps": of(|run| run.qps, 0),
        "lost": runs.iter().map(|run| run.lost).sum::<f64>(),
        "mean_ms": of(|run| run.mean_ms, 3),
        "cpu_us_per_query": of(|run| run.cpu_us, 2),
        "bpf_us_per_query": of(|run| run.programs_us, 3),
        "bpf_runs_per_query": of(|run| run.packets, 2),
    });
    if runs.iter().any(|run| run.p50_p99_max_ms[1] > 0.0) {
        values["p50_ms"] = of(|run| run.p50_p99_max_ms[0], 3).into();
        values["p99_ms"] = of(|run| run.p50_p99_max_ms[1], 3).into();
        // A datagram that is lost on the way shows here, and nowhere else.
        values["max_ms"] = round(runs.iter().map(|run| run.p50_p99_max_ms[2]).fold(0.0, f64::max), 3).into();
    }
    values
}

/// The number after `label` in dnsperf's report.
fn number(text: &str, label: &str) -> f64 {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(label));
    let word = line.and_then(|rest| rest.split_whitespace().next());
    word.and_then(|word| word.trim_end_matches(',').parse().ok())
        .unwrap_or_else(|| panic!("dnsperf does not say {label}\n{text}"))
}
