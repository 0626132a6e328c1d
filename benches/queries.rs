//! Queries through steering, verdict and grants, beside dnsdist and unbound: the same nsd behind all of them, the same kind
//! of veth before them, in turns. Cached, forwarded, asked for the first time.

use std::fs;

use serde_json::{Value, json};

use super::dnsperf::{Subject, Turns, in_turns};
use super::world::{CACHED_NAMES, QUERY_NAMES, World, new_name};
use super::{median, print, round};

const ROUNDS: usize = 3;
/// Seconds of a round.
const SECONDS: &str = "6";
/// Names that every worker has ready, whatever else it has.
const FEW_NAMES: u32 = 1000;
/// Queries a second at which latency is compared: well under what either can do.
const PACE: &str = "5000";
/// Queries a second at which the latency that namegate adds is measured.
const NEW_PACE: &str = "2000";
/// Names of a round of first-time names: three rounds stay below what one workload may hold, 65 536 names on addresses.
const NEW_NAMES: u32 = 20_000;
/// Of a round of paced ones: five seconds.
const NEW_NAMES_PACED: u32 = 10_000;
/// One workload asks as fast as it can, which is what the limit would prevent.
pub const UNLIMITED: &str = "dns.queries_per_second=0";
const SETUP: &str = "dnsperf in a workload's namespace, 100 queries under way, 3 rounds in turns, of 6 s where names come again; \
                     beside it the same kind of veth, same node, same nsd; CPU from /proc/PID/stat, plus BPF run time (the \
                     kernel's own statistics)";

/// Answers from the cache, beside dnsdist's.
pub fn cached() {
    let mut world = World::new();
    let namegate = world.start_namegate(&[UNLIMITED]);
    let dnsdist = world.start_dnsdist(Some(2 * CACHED_NAMES));
    let subjects = [Subject::namegate(namegate), Subject::dnsdist(dnsdist)];
    let names = world.names("names", (0..QUERY_NAMES).map(|i| format!("q{i}")));
    let turns = compare(&world, &subjects, &names, &["-l", SECONDS]);
    report("queries_cached", "8192 names on 4096 addresses, all cached; dnsdist with a packet cache", &turns, 1.0);
    let few = world.names("few-names", (0..FEW_NAMES).map(|i| format!("q{i}")));
    let before = world.cache_uses();
    let turns = compare(&world, &subjects, &few, &["-l", SECONDS]);
    report("queries_cached_1000_names", "1000 names on as many addresses; dnsdist with a packet cache", &turns, 1.0);
    let uses = json!({"8192_names": before, "and_1000_names": world.cache_uses()});
    print("cache_uses", "what namegate counted by the end of each of the two figures before", None, uses);
    let turns = compare(&world, &subjects, &names, &["-l", "3", "-Q", PACE, "-v"]);
    print(
        "queries_cached_paced",
        "the same at 5000 queries a second for 3 s a round, each query's time listed by dnsperf",
        None,
        turns.values(),
    );
    system_calls(&world, &subjects[0], &names);

    let names = world.names("many-names", (0..CACHED_NAMES).map(|i| format!("c{i}.many")));
    let turns = compare(&world, &subjects, &names, &["-l", SECONDS]);
    let about = "100000 names on 4096 addresses, all asked for once before, no toFQDNs selects them; dnsdist with a packet cache for \
                 200000";
    report("queries_cached_100000_names", about, &turns, 1.0);
}

/// Every query goes up, beside dnsdist without a cache.
pub fn forwarded() {
    let mut world = World::new();
    let (namegate, dnsdist) = (world.start_namegate(&[UNLIMITED, "dns.cache=off"]), world.start_dnsdist(None));
    let subjects = [Subject::namegate(namegate), Subject::dnsdist(dnsdist)];
    let names = world.names("names", (0..QUERY_NAMES).map(|i| format!("q{i}")));
    let turns = compare(&world, &subjects, &names, &["-l", SECONDS]);
    report("queries_forwarded", "8192 names on 4096 addresses, dns.cache = off; dnsdist without cache", &turns, 1.2);
    let turns = compare(&world, &subjects, &names, &["-l", "3", "-Q", PACE, "-v"]);
    print(
        "queries_forwarded_paced",
        "the same at 5000 queries a second for 3 s a round, each query's time listed by dnsperf",
        None,
        turns.values(),
    );
}

/// Names that nobody asked for before: looked up, learned, granted; beside unbound as a forwarder. And what that adds to
/// asking nsd itself.
pub fn first() {
    let mut world = World::new();
    let (namegate, unbound) = (world.start_namegate(&[UNLIMITED]), world.start_unbound());
    let subjects = [Subject::namegate(namegate), Subject::unbound(unbound)];
    let turns = in_turns(&subjects, ROUNDS, |subject, turn| {
        let names = new_names(&world, subject, "f", turn, NEW_NAMES);
        subject.run(&world, &names, &["-n", "1"])
    });
    let about =
        "20000 names a round that nobody has asked for, on 4096 addresses; unbound as a forwarder, no validation";
    report("queries_first_time", about, &turns, 1.0);

    // Of the other workload, which holds nothing yet.
    let subjects = [Subject { pod: "b", ..Subject::namegate(namegate) }, Subject::direct()];
    let turns = in_turns(&subjects, ROUNDS, |subject, turn| {
        let names = new_names(&world, subject, "l", turn, NEW_NAMES_PACED);
        subject.run(&world, &names, &["-n", "1", "-Q", NEW_PACE, "-v"])
    });
    let added = |which: usize| {
        let of = |runs: &[super::dnsperf::Run]| {
            median(&mut runs.iter().map(|run| run.p50_p99_max_ms[which]).collect::<Vec<_>>())
        };
        round((of(&turns.runs[0]) - of(&turns.runs[1])) * 1e3, 0)
    };
    print(
        "latency_added",
        "2000 queries a second for names that nobody has asked for, 3 rounds of 5 s in turns, through namegate (learned and \
         granted) and to nsd directly, over the same kind of veth; medians of the rounds, namegate's less nsd's",
        None,
        json!({"p50_us": added(0), "p99_us": added(1), "servers": turns.values()["servers"]}),
    );
}

/// Runs both once to warm up, and then in turns.
fn compare(world: &World, subjects: &[Subject; 2], names: &str, more: &[&str]) -> Turns {
    for subject in subjects {
        subject.run(world, names, &["-n", "1"]);
    }
    in_turns(subjects, ROUNDS, |subject, _| subject.run(world, names, more))
}

fn report(figure: &str, about: &str, turns: &Turns, aim: f64) {
    print(
        figure,
        &format!("{about}; {SETUP}"),
        Some((json!({"cpu_ratio": aim}), turns.ratio() <= aim)),
        turns.values(),
    );
}

/// A file of names that are new in this turn to this subject.
fn new_names(world: &World, subject: &Subject, kind: &str, turn: usize, count: u32) -> String {
    let round = format!("{kind}{turn}-{}", subject.name);
    world.names("new-names", (0..count).map(|i| new_name(&round, i)))
}

/// System calls of the server, counted by the kernel while dnsperf asks as fast as it can.
fn system_calls(world: &World, subject: &Subject, names: &str) {
    const ALL: &str = "raw_syscalls:sys_enter";
    const CALLS: [&str; 6] = ["recvmmsg", "sendmmsg", "epoll_wait", "futex", "bpf", "write"];
    let events = CALLS.iter().fold(ALL.to_owned(), |events, call| format!("{events},syscalls:sys_enter_{call}"));
    let (report, pid) = (world.directory.join("perf"), subject.pid.to_string());
    let report = report.to_str().expect("a path in UTF-8");
    let perf = ["perf", "stat", "-x", ";", "-o", report, "-e", &events, "-p", &pid, "--"];
    let run = subject.watch(world, &[&perf[..], &subject.line(names, &["-l", "4"])].concat());
    let text = fs::read_to_string(report).expect("perf writes its report");
    let count = |event: &str| {
        let line = text.lines().find(|line| line.split(';').nth(2) == Some(event));
        let count = line.and_then(|line| line.split(';').next()?.parse::<f64>().ok());
        round(count.unwrap_or_else(|| panic!("perf does not count {event}\n{text}")) / run.completed, 4)
    };
    let calls: serde_json::Map<String, Value> =
        CALLS.iter().map(|call| ((*call).to_owned(), count(&format!("syscalls:sys_enter_{call}")).into())).collect();
    print(
        "system_calls",
        "all threads of namegate, perf stat over 4 s of dnsperf with 100 queries under way, 8192 names, cached",
        None,
        json!({"per_query": count(ALL), "of_them": calls, "qps": round(run.qps, 0)}),
    );
}
