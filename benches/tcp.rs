//! Queries over TCP beside dnsdist: many on one connection, and one query a connection. All cached.

use serde_json::{Value, json};

use super::dnsperf::{Subject, in_turns};
use super::lab::process::inside;
use super::lab::process::output;
use super::proc::{self, ProgramStatistics};
use super::queries::UNLIMITED;
use super::world::{NODE, QUERY_NAMES, RESOLVER, World};
use super::{percentile, print, round};

const ROUNDS: usize = 3;
const SECONDS: &str = "5";
/// Connections at a time when each has one query: under namegate's limit for a workload.
const THREADS: &str = "16";

pub fn measure() {
    let mut world = World::new();
    let namegate = world.start_namegate(&[UNLIMITED]);
    let dnsdist = world.start_dnsdist(Some(2 * QUERY_NAMES));
    let subjects = [Subject::namegate(namegate), Subject::dnsdist(dnsdist)];
    let names = world.names("names", (0..QUERY_NAMES).map(|i| format!("q{i}")));
    for subject in &subjects {
        subject.run(&world, &names, &["-n", "1"]);
    }
    let turns = in_turns(&subjects, ROUNDS, |subject, _| subject.run(&world, &names, &["-m", "tcp", "-l", SECONDS]));
    print(
        "queries_tcp_pipelined",
        "dnsperf -m tcp, 8 connections, 100 queries under way, 8192 names, cached, 3 rounds of 5 s in turns; dnsdist with a \
         packet cache",
        Some((json!({"cpu_ratio": 1.0}), turns.ratio() <= 1.0)),
        turns.values(),
    );
    one_query_a_connection(&world, &subjects);
}

fn one_query_a_connection(world: &World, subjects: &[Subject; 2]) {
    let _statistics = ProgramStatistics::on();
    let mut runs: [Vec<(f64, Value)>; 2] = [Vec::new(), Vec::new()];
    for turn in 0..ROUNDS {
        for place in if turn % 2 == 0 { [0, 1] } else { [1, 0] } {
            runs[place].push(ask(world, &subjects[place], [RESOLVER, NODE][place]));
        }
    }
    let mut ratios: Vec<f64> = runs[0].iter().zip(&runs[1]).map(|(a, b)| round(a.0 / b.0, 2)).collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = percentile(&ratios, 0.5);
    print(
        "queries_tcp_one_a_connection",
        "16 threads that connect, ask one cached name, take the answer and reset, 3 rounds of 5 s in turns; dnsdist with a packet \
         cache",
        Some((json!({"cpu_ratio": 1.0}), ratio <= 1.0)),
        json!({
            "cpu_ratio": ratio,
            "cpu_ratios": ratios,
            "rounds": ROUNDS,
            "servers": {"namegate": runs[0].iter().map(|run| &run.1).collect::<Vec<_>>(),
                        "dnsdist": runs[1].iter().map(|run| &run.1).collect::<Vec<_>>()},
        }),
    );
}

/// One round against one server: processor time a query, and what the client saw.
fn ask(world: &World, subject: &Subject, server: &str) -> (f64, Value) {
    let own = std::env::current_exe().expect("the path of this program");
    let mut command = inside(&world.namespace(subject.pod), own.to_str().expect("a path in UTF-8"));
    command.args(["tcp", server, SECONDS, THREADS]);
    let before = (proc::cpu_us(subject.pid), proc::programs(subject.pid).run_ns);
    let said = output(command).expect("a client starts");
    let after = (proc::cpu_us(subject.pid), proc::programs(subject.pid).run_ns);
    assert!(said.status.success(), "a client failed\n{}", world.log());
    let mut seen: Value = serde_json::from_slice(&said.stdout).expect("a client writes JSON");
    let answered = seen["answered"].as_f64().unwrap_or_default();
    assert!(answered > 0.0, "nothing is answered: {seen}\n{}", world.log());
    let cost = (after.0 - before.0 + (after.1 - before.1) as f64 / 1e3) / answered;
    seen["cpu_us_per_query"] = round(cost, 2).into();
    (cost, seen)
}
