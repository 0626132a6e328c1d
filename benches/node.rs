//! `make bench-node`: what a node pays for namegate, as one JSON line. Needs root; some five minutes.
//!
//! | key | from | to |
//! |---|---|---|
//! | `attach_ms` | an interface appears (`result_first`: its CNI result is there; `link_first`: it is written at once) | its first datagram that policy allows is outside |
//! | `restart_ms` | namegate is started after a kill -9, with 100 pods | a query that was asked meanwhile is answered; `namegate ready` says so |
//! | `take_over` | another namegate takes over, five times, at 2 000 queries a second | queries lost, the longest wait for an answer |
//! | `revoke_ms` | a policy's file is replaced | a new connection is refused; an established one ends |
//! | `octets` | 0, or so many pods, names, grants | memory of kernel maps, resident memory of the process |
//! | `cpu_ms` | 0, 1 000 and 20 000 pods in the snapshot | processor time a minute at rest; of one pod whose labels change |
//!
//! There is no build flag and no mode for this: the daemon runs with its defaults, in network namespaces of a world that is
//! removed at the end, on Ctrl-C too. Shares of one machine carry over to another, absolute figures don't.

#[path = "node/cost.rs"]
mod cost;
#[path = "../integration/discovery/crowd.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod crowd;
#[path = "../integration/lab/mod.rs"]
mod lab;
#[path = "node/life.rs"]
mod life;
#[allow(dead_code, reason = "the other bench uses all of it")]
mod proc;
#[path = "../integration/discovery/yard.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod yard;

use std::process::ExitCode;

use serde_json::{Value, json};

use lab::clock::now;
use lab::process::guard;

/// A figure's key, and what measures it, in a world of its own.
type Figure = (&'static str, fn() -> Value);

const FIGURES: [Figure; 6] = [
    ("attach_ms", life::attach),
    ("restart_ms", life::restart),
    ("take_over", life::take_over),
    ("revoke_ms", life::revoke),
    ("octets", cost::octets),
    ("cpu_ms", cost::cpu),
];

fn main() -> ExitCode {
    lab::agent::serve_if_asked();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let Some(unknown) = arguments.iter().find(|wanted| !FIGURES.iter().any(|(name, _)| name == wanted)) {
        let known: Vec<&str> = FIGURES.iter().map(|(name, _)| *name).collect();
        eprintln!("error: no figure is called {unknown}; there are {}", known.join(", "));
        return ExitCode::FAILURE;
    }
    // SAFETY: reads a number.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("error: the bench makes network namespaces and loads kernel programs; run it as root");
        return ExitCode::FAILURE;
    }
    guard::install();
    let (mut line, start) = (json!({"bench": "node"}), now());
    let mut failed = false;
    for (name, measure) in FIGURES {
        if arguments.is_empty() || arguments.iter().any(|wanted| wanted == name) {
            let begun = now();
            let figure = std::panic::catch_unwind(measure);
            failed |= figure.is_err();
            line[name] = figure.unwrap_or(Value::Null);
            eprintln!("{name}: {:.0} s", begun.elapsed().as_secs_f32());
        }
    }
    guard::cleanup();
    line["seconds"] = start.elapsed().as_secs().into();
    line["machine"] = proc::machine();
    println!("{line}");
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Median, 99th percentile and highest of milliseconds; null of none.
fn spread(mut ms: Vec<f64>) -> Value {
    ms.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = (ms.len() as f64 * share).ceil() as usize;
        ms.get(place.max(1) - 1).map(|ms| round(*ms))
    };
    json!({"count": ms.len(), "p50": at(0.5), "p99": at(0.99), "max": at(1.0)})
}

/// To a hundredth: noise is not worth printing.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
