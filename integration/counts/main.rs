//! What a reply costs, as counts: heap allocations, and instructions, of a worker from recvmmsg to sendmmsg. Counts, unlike
//! times, are the same on a busy machine.
//!
//! A server (namegate's own listeners, [`server`]) runs in a process of its own; [`asker`] asks it in rounds of
//! [`server::ROUND`] queries, and at the start of each the server waits until the rest of the round lies in its socket: so
//! batches are the same every time. Instructions are counted by valgrind's callgrind.
//!
//! `cargo test --release --test counts` compares with benches/instructions.json; with `-- refresh` it writes that file, with
//! `-- profile hot` (or `forwarded`) it says where the instructions go.

mod allocations;
mod asker;
mod instructions;
mod server;
mod valgrind;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", upstream, kind] => server::serve(upstream.parse().expect("a port"), server::Kind::of(kind)),
        ["profile", kind] => {
            instructions::profile(server::Kind::of(kind));
            ExitCode::SUCCESS
        }
        ["refresh"] if instructions::refresh() => ExitCode::SUCCESS,
        ["refresh"] => ExitCode::FAILURE,
        _ => {
            // One after the other: they would disturb each other.
            let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
            libtest_mimic::run(&arguments, trials()).exit_code()
        }
    }
}

fn trials() -> Vec<Trial> {
    let mut trials = vec![
        Trial::test("a_hot_reply_allocates_nothing", allocates_nothing),
        Trial::test("what_counts_allocations_sees_those_of_a_forwarded_query", allocations_are_seen),
    ];
    let reason = instructions::not_comparable();
    if let Some(reason) = &reason {
        eprintln!("\n*** instructions are NOT compared: {reason} ***\n");
    }
    for kind in server::Kind::ALL {
        let name = format!("a_{}_reply_costs_no_more_instructions_than_the_file_says", kind.name());
        let compare = move || instructions::compare(kind).map_err(Failed::from);
        trials.push(Trial::test(name, compare).with_ignored_flag(reason.is_some()));
    }
    trials
}

fn allocates_nothing() -> Result<(), Failed> {
    let allocated = asker::allocations(server::Kind::Hot, 20);
    if allocated > 0 {
        return Err(format!(
            "{allocated} heap allocations in 20 rounds of {} hot replies; there may be none",
            server::ROUND
        )
        .into());
    }
    Ok(())
}

/// Otherwise the test above might count nothing at all.
fn allocations_are_seen() -> Result<(), Failed> {
    let queries = 10 * server::ROUND as u64;
    let allocated = asker::allocations(server::Kind::Forwarded, 10);
    println!("{:.1} heap allocations a forwarded query", allocated as f64 / queries as f64);
    if allocated < queries {
        return Err(
            format!("{allocated} heap allocations in {queries} forwarded queries; each needs one at least").into()
        );
    }
    Ok(())
}
