//! The integration tests: namegate in a real kernel, in worlds of network namespaces. Needs root and BPF.
//!
//! With `CI=true` their absence is a failure; elsewhere the tests are counted as skipped.

mod adopt;
mod attempts;
mod capabilities;
mod discovery;
mod early;
mod floor;
mod fragments;
#[path = "lab/mod.rs"]
mod lab;
mod peers;
mod repairs;
mod resolvers;
mod scenario;
mod scenes;
mod sidecar;
mod story;
mod takeover;
mod wire;

use std::process::ExitCode;

use lab::process::guard;
use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    lab::agent::serve_if_asked();
    let arguments = Arguments::from_args();
    let able = is_able();
    if !able && std::env::var("CI").is_ok_and(|ci| ci == "true") {
        eprintln!("error: the integration tests need root, nsenter, ip, nft and a bpffs that can be mounted");
        return ExitCode::FAILURE;
    }
    if able && !arguments.list {
        guard::install();
    }
    let trials: Vec<Trial> = attempts::trials()
        .into_iter()
        .chain(adopt::trials())
        .chain(scenario::trials())
        .chain(peers::trials())
        .chain(scenes::trials())
        .chain(repairs::trials())
        .chain(resolvers::trials())
        .chain(takeover::trials())
        .chain(wire::trials())
        .chain(early::trials())
        .chain(floor::trials())
        .chain(discovery::trials())
        .chain(fragments::trials())
        .chain(sidecar::trials())
        .chain(capabilities::trials())
        .map(|trial| if able { trial } else { trial.with_ignored_flag(true) })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if able && !arguments.list {
        guard::cleanup();
    }
    conclusion.exit_code()
}

/// Whether this machine lets us make worlds.
fn is_able() -> bool {
    // SAFETY: reads a number.
    let root = unsafe { libc::geteuid() } == 0;
    root && ["nsenter", "ip", "nft", "curl", "dig"].into_iter().all(lab::process::has)
}
