//! `make bench`: the figures of namegate as users run it, one JSON line each: what was measured, against what, on how busy a
//! machine. Needs root. `cargo bench --bench figures -- kernel cached` measures only those.
//!
//! | figure | module |
//! |---|---|
//! | nanoseconds a packet | [`kernel`] |
//! | a rule set as large as the language allows: time, memory | [`rules`] |
//! | a full load of a large cluster, and the change of one pod | [`snapshot`] |
//! | connections that succeed right after the reply, memory | [`connect`] |
//! | throughput of a workload's TCP stream | [`stream`] |
//! | CPU a query and latency: cached, forwarded, first-time, beside dnsdist and unbound; system calls | [`queries`] |
//! | the same over TCP | [`tcp`] |
//! | memory under ever-new names, a neighbour's peace | [`long`], only when named |
//!
//! There is no build flag and no mode for this: the daemon runs with its defaults, in network namespaces of a [`world`] that
//! is removed at the end, on Ctrl-C too. Shares of one machine carry over to another, absolute figures don't.

#[path = "../integration/lab/mod.rs"]
mod lab;

mod client;
mod connect;
mod dnsperf;
mod kernel;
mod long;
mod proc;
mod queries;
mod rules;
mod snapshot;
mod stream;
mod tcp;
mod world;

use std::process::ExitCode;

use serde_json::{Value, json};

use lab::clock::now;
use lab::process::guard;

/// A figure's name, and what measures it. Each makes the world that it needs and prints its lines.
const FIGURES: [(&str, fn()); 10] = [
    ("kernel", kernel::measure),
    ("rules", rules::measure),
    ("snapshot", snapshot::measure),
    ("connect", connect::measure),
    ("stream", stream::measure),
    ("cached", queries::cached),
    ("forwarded", queries::forwarded),
    ("first", queries::first),
    ("tcp", tcp::measure),
    (LONG, long::measure),
];
/// Takes minutes, and is measured only when it is named.
const LONG: &str = "long";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if client::serve_if_asked(&arguments) {
        return ExitCode::SUCCESS;
    }
    if let Some(unknown) = arguments.iter().find(|wanted| !FIGURES.iter().any(|(name, _)| name == wanted)) {
        let known: Vec<&str> = FIGURES.iter().map(|(name, _)| *name).collect();
        eprintln!("error: no figure is called {unknown}; there are {}", known.join(", "));
        return ExitCode::FAILURE;
    }
    // SAFETY: reads a number.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("error: the benches make network namespaces and load kernel programs; run them as root");
        return ExitCode::FAILURE;
    }
    guard::install();
    let mut failed = 0;
    for (name, measure) in FIGURES {
        if arguments.iter().any(|wanted| wanted == name) || arguments.is_empty() && name != LONG {
            let start = now();
            let ended = std::panic::catch_unwind(measure);
            failed += usize::from(ended.is_err());
            eprintln!("{name}: {:.0} s", start.elapsed().as_secs_f32());
        }
    }
    guard::cleanup();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints a figure: `against` says what it was measured against, `aim` what DESIGN.md and the issue ask for.
pub fn print(figure: &str, against: &str, aim: Option<(Value, bool)>, values: Value) {
    let mut line = json!({"figure": figure, "values": values, "against": against, "machine": proc::machine()});
    if let Some((aim, met)) = aim {
        line["aim"] = aim;
        line["met"] = met.into();
    }
    println!("{line}");
}

/// The value that `share` (0 to 1) of the sorted values do not exceed; 0 of none.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

/// The median, sorting the values.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    percentile(values, 0.5)
}

/// Rounded to `digits` after the point: noise is not worth printing.
pub fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}
