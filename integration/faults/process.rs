//! What happens to the process: killed, stopped, told, started twice.

use std::thread::sleep;
use std::time::Duration;

use super::Fault;
use super::bench::{Bench, Excused, Size, Tally};
use crate::lab::clock;

pub const FAULTS: [Fault; 5] = [
    ("killed_at_random_moments", |size, tally| killed(size, tally, "auto")),
    ("killed_at_random_moments_with_clsact", |size, tally| killed(size, tally, "clsact")),
    ("killed_while_it_starts", killed_while_it_starts),
    ("stopped_for_a_while", stopped),
    ("sighup_a_hundred_times_a_second", hung_up),
];

fn killed(size: Size, tally: &mut Tally, attach: &str) {
    let mut bench = Bench::new(&["--set", &format!("enforcement.attach={attach}")]);
    for _ in 0..size.runs(20, 2) {
        tally.runs += 1;
        bench.nap(400);
        bench.kill();
        bench.nap(400);
        bench.restart(tally);
        bench.settle(tally, Excused::Nothing);
    }
    bench.finish(tally, Excused::Nothing);
}

/// A start is a row of steps, and it may end between any two of them.
fn killed_while_it_starts(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    let runs = size.runs(20, 2);
    for run in 0..runs {
        tally.runs += 1;
        bench.kill();
        bench.start();
        // Spread over a start, with some noise.
        let noise = bench.random(10);
        sleep(Duration::from_millis(u64::from(run) * 240 / u64::from(runs) + noise));
        bench.kill();
        bench.restart(tally);
        bench.settle(tally, Excused::Nothing);
    }
    bench.finish(tally, Excused::Nothing);
}

fn stopped(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    let runs = size.runs(10, 2);
    for run in 0..runs {
        tally.runs += 1;
        bench.daemon().signal(libc::SIGSTOP);
        let last = run + 1 == runs;
        sleep(match (size, last) {
            (Size::All, true) => Duration::from_secs(30),
            _ => Duration::from_millis(1000),
        });
        let woken = clock::mono_ns();
        bench.daemon().signal(libc::SIGCONT);
        bench.back(woken, tally);
        bench.settle(tally, Excused::Nothing);
    }
    tally.note("10 times, the last one for 30 s: a stop takes a second");
    bench.finish(tally, Excused::Nothing);
}

fn hung_up(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    for _ in 0..size.runs(3, 1) {
        tally.runs += 1;
        for _ in 0..size.runs(300, 100) {
            bench.daemon().reload();
            sleep(Duration::from_millis(10));
        }
        let over = clock::mono_ns();
        bench.back(over, tally);
        bench.daemon().wait_ready();
        bench.settle(tally, Excused::Nothing);
    }
    tally.note("3 times: each takes 3 s");
    bench.finish(tally, Excused::Nothing);
}
