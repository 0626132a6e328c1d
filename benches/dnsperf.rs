//! dnsperf against one server, what it saw and what it cost; and two servers in turns.

use serde_json::{Value, json};

use super::proc::{self, ProgramStatistics};
use super::world::{NODE, RESOLVER, UNBOUND_PORT, World};
use super::{median, percentile, round};

/// Queries under way, and the sockets that they are spread over.
const OUTSTANDING: [&str; 4] = ["-q", "100", "-c", "8"];

/// A server under test.
pub struct Subject {
    pub name: &'static str,
    /// Where dnsperf runs, and whom it asks.
    pub pod: &'static str,
    pub server: &'static str,
    pub port: &'static str,
    pub pid: u32,
}

impl Subject {
    pub fn namegate(pid: u32) -> Subject {
        Subject { name: "namegate", pod: "a", server: RESOLVER, port: "53", pid }
    }

    pub fn dnsdist(pid: u32) -> Subject {
        Subject { name: "dnsdist", pod: "plain", server: NODE, port: "53", pid }
    }

    pub fn unbound(pid: u32) -> Subject {
        Subject { name: "unbound", pod: "plain", server: NODE, port: UNBOUND_PORT, pid }
    }

    /// nsd itself, past everything; its cost is not counted.
    pub fn direct() -> Subject {
        Subject { name: "direct", pod: "plain", server: RESOLVER, port: "53", pid: std::process::id() }
    }

    /// The words that run dnsperf over the names in a file.
    pub fn line<'a>(&'a self, names: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["dnsperf", "-s", self.server, "-p", self.port, "-d", names, "-T", "1"][..], &OUTSTANDING, more].concat()
    }

    /// Runs dnsperf; every answer must be NOERROR.
    pub fn run(&self, world: &World, names: &str, more: &[&str]) -> Run {
        let run = self.watch(world, &self.line(names, more));
        assert!(run.noerror > 0.99, "{} answers NOERROR to {}\n{}", self.name, run.noerror, world.log());
        run
    }

    /// Runs a line with dnsperf in it.
    pub fn watch(&self, world: &World, line: &[&str]) -> Run {
        let before = (proc::cpu_us(self.pid), proc::programs(self.pid));
        let text = world.output(self.pod, line);
        let after = (proc::cpu_us(self.pid), proc::programs(self.pid));
        Run::of(&text, after.0 - before.0, after.1.run_ns - before.1.run_ns, after.1.runs - before.1.runs)
    }
}

/// What one run of dnsperf saw, and what it cost the server.
pub struct Run {
    pub completed: f64,
    pub qps: f64,
    pub lost: f64,
    /// Shares of what was completed.
    pub noerror: f64,
    pub servfail: f64,
    mean_ms: f64,
    cpu_us: f64,
    programs_us: f64,
    packets: f64,
    /// Only when each query was listed.
    pub p50_p99_max_ms: [f64; 3],
}

impl Run {
    fn of(text: &str, cpu_us: f64, run_ns: u64, runs: u64) -> Run {
        let completed = number(text, "Queries completed:");
        let mut listed: Vec<f64> = text
            .lines()
            .filter_map(|line| line.strip_prefix("> ")?.rsplit(' ').next()?.parse::<f64>().ok())
            .map(|seconds| seconds * 1e3)
            .collect();
        listed.sort_by(f64::total_cmp);
        Run {
            completed,
            qps: number(text, "Queries per second:"),
            lost: number(text, "Queries lost:"),
            noerror: code(text, "NOERROR") / completed,
            servfail: code(text, "SERVFAIL") / completed,
            mean_ms: number(text, "Average Latency (s):") * 1e3,
            cpu_us: cpu_us / completed,
            programs_us: run_ns as f64 / 1e3 / completed,
            packets: runs as f64 / completed,
            p50_p99_max_ms: [0.5, 0.99, 1.0].map(|share| percentile(&listed, share)),
        }
    }

    /// Processor time a query, the process and its programs, µs.
    pub fn whole_us(&self) -> f64 {
        self.cpu_us + self.programs_us
    }
}

/// Runs two servers in turns: `play` runs one of them in a round.
pub fn in_turns(subjects: &[Subject; 2], rounds: usize, mut play: impl FnMut(&Subject, usize) -> Run) -> Turns {
    let _statistics = ProgramStatistics::on();
    let mut runs: [Vec<Run>; 2] = [Vec::new(), Vec::new()];
    for turn in 0..rounds {
        for place in if turn % 2 == 0 { [0, 1] } else { [1, 0] } {
            runs[place].push(play(&subjects[place], turn));
        }
    }
    let mut ratios: Vec<f64> =
        runs[0].iter().zip(&runs[1]).map(|(a, b)| round(a.whole_us() / b.whole_us(), 2)).collect();
    ratios.sort_by(f64::total_cmp);
    Turns { names: [subjects[0].name, subjects[1].name], runs, ratios }
}

/// What two servers did in turns.
pub struct Turns {
    names: [&'static str; 2],
    pub runs: [Vec<Run>; 2],
    /// Processor time a query of the first by that of the second, a round each, sorted.
    ratios: Vec<f64>,
}

impl Turns {
    /// The median of the rounds' ratios.
    pub fn ratio(&self) -> f64 {
        percentile(&self.ratios, 0.5)
    }

    /// For a figure: the ratio, its spread, and the medians of each server.
    pub fn values(&self) -> Value {
        let servers: serde_json::Map<_, _> =
            self.names.iter().zip(&self.runs).map(|(name, runs)| ((*name).to_owned(), summary(runs))).collect();
        json!({"cpu_ratio": self.ratio(), "cpu_ratios": self.ratios, "rounds": self.ratios.len(), "servers": servers})
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

/// How many replies had this code.
fn code(text: &str, code: &str) -> f64 {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("Response codes:")).unwrap_or_default();
    let mut words = line.split_whitespace();
    words.find(|word| *word == code).and_then(|_| words.next()?.parse().ok()).unwrap_or(0.0)
}
