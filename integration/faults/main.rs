//! Faults: namegate under load, while the machine does to it what machines do. Needs root and BPF.
//!
//! A fault is injected so many times; what counts is what gets past and what gets lost: a denied frame outside, a
//! connection that was allowed and ended, DNS that does not come back. Before each fault, without namegate, each denied
//! attempt is seen to arrive.
//!
//! `cargo test --test faults` does a slice in about a minute, `-- all` everything; `-- all NAME` those whose names hold it.
//! A JSON line a fault, and one at the end. With `CI=true` it is a failure when this machine can't; elsewhere that is said.

mod bench;
mod canary;
mod disk;
mod hands;
mod helper;
#[path = "../lab/mod.rs"]
mod lab;
mod load;
mod machine;
mod names;
mod process;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use bench::{Size, Tally};
use lab::clock;
use lab::process::guard;
use serde_json::json;

/// A fault: its name, what it does.
type Fault = (&'static str, fn(Size, &mut Tally));

/// Left out of a slice: another one is much like it.
const ONLY_IN_ALL: [&str; 4] =
    ["upstream_slow", "upstream_fails", "sighup_a_hundred_times_a_second", "started_with_few_descriptors"];

/// What is not done, and why.
const NOT_DONE: [&str; 1] =
    ["steps of CLOCK_REALTIME: a time namespace moves the monotonic and the boot clock only, and \
                             the machine's own is not ours to set"];

fn main() -> ExitCode {
    lab::agent::serve_if_asked();
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("load") => load::serve(),
        Some("canary") => canary::serve(),
        _ => return run(&words),
    }
    ExitCode::SUCCESS
}

fn run(words: &[String]) -> ExitCode {
    // SAFETY: reads a number.
    let root = unsafe { libc::geteuid() } == 0;
    let able = root && ["nsenter", "ip", "nft", "prlimit", "unshare"].into_iter().all(lab::process::has);
    if !able {
        eprintln!("faults need root, nsenter, ip, nft, prlimit, unshare and a bpffs that can be mounted");
        println!("test result: ok. 0 passed; 0 failed; 1 ignored");
        return if std::env::var("CI").is_ok_and(|ci| ci == "true") { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let size = if words.iter().any(|word| word == "all") { Size::All } else { Size::Slice };
    let filter = words.iter().find(|word| *word != "all" && word.parse::<u32>().is_err() && !word.starts_with('-'));
    let wanted = |name: &str| match filter {
        Some(filter) => name.contains(filter.as_str()),
        None => size == Size::All || !ONLY_IN_ALL.contains(&name),
    };
    guard::install();
    // It is told as a violation, in a line; a trace of this program says nothing about namegate.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let start = clock::now();
    let mut total = Tally::default();
    let (mut faults, mut failed) = (0, 0);
    let all =
        process::FAULTS.iter().chain(&disk::FAULTS).chain(&names::FAULTS).chain(&machine::FAULTS).chain(&hands::FAULTS);
    for (name, inject) in all.filter(|(name, _)| wanted(name)) {
        let tally = one(name, *inject, size);
        faults += 1;
        failed += u32::from(tally.violations > 0);
        total.runs += tally.runs;
        total.violations += tally.violations;
        total.back_us.extend(tally.back_us);
        total.back_own_us.extend(tally.back_own_us);
        total.upstream_back_us.extend(tally.upstream_back_us);
        total.denied_attempts += tally.denied_attempts;
        total.exchanges += tally.exchanges;
        total.stall_ms = total.stall_ms.max(tally.stall_ms);
    }
    guard::cleanup();
    if let Some(why) = process::judge(&total) {
        eprintln!("{why}");
        total.violations += 1;
        failed += 1;
        faults += 1;
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {result}. {} passed; {failed} failed; 0 ignored", faults - failed);
    println!(
        "{}",
        json!({
            "faults": faults,
            "runs": total.runs,
            "violations": total.violations,
            "dns_back_ms": spread(&mut total.back_us),
            "dns_back_without_waiting_for_a_core_ms": spread(&mut total.back_own_us),
            "upstream_back_ms": spread(&mut total.upstream_back_us),
            "longest_stall_ms": total.stall_ms,
            "denied_attempts": total.denied_attempts,
            "exchanges": total.exchanges,
            "not_done": NOT_DONE,
            "seconds": start.elapsed().as_secs(),
        })
    );
    if total.violations == 0 && faults > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(name: &str, inject: fn(Size, &mut Tally), size: Size) -> Tally {
    let start = clock::now();
    let mut tally = Tally::default();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| inject(size, &mut tally))) {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
        tally.violate(said.unwrap_or_else(|| "it panicked".into()));
    }
    println!(
        "{}",
        json!({
            "fault": name,
            "runs": tally.runs,
            "violations": tally.violations,
            "said": tally.said,
            "notes": tally.notes,
            "dns_back_ms": spread(&mut tally.back_us.clone()),
            "dns_back_without_waiting_for_a_core_ms": spread(&mut tally.back_own_us.clone()),
            "upstream_back_ms": spread(&mut tally.upstream_back_us.clone()),
            "longest_stall_ms": tally.stall_ms,
            "denied_attempts": tally.denied_attempts,
            "exchanges": tally.exchanges,
            "seconds": start.elapsed().as_secs(),
        })
    );
    tally
}

/// Median, 99th percentile and highest, in milliseconds.
fn spread(us: &mut [u64]) -> serde_json::Value {
    us.sort_unstable();
    let at = |share: f64| us.get(((us.len() as f64 * share).ceil() as usize).max(1) - 1).map(|us| *us as f64 / 1000.0);
    json!({ "count": us.len(), "p50": at(0.5), "p99": at(0.99), "max": at(1.0) })
}
