//! What happens to the process: killed, stopped, told, started twice.

use std::thread::sleep;
use std::time::Duration;

use super::Fault;
use super::bench::{Bench, Excused, Size, Tally, tail};
use crate::lab::{Daemon, clock};

pub const FAULTS: [Fault; 6] = [
    ("killed_at_random_moments", |size, tally| killed(size, tally, "auto")),
    ("killed_at_random_moments_with_clsact", |size, tally| killed(size, tally, "clsact")),
    ("killed_while_it_starts", killed_while_it_starts),
    ("stopped_for_a_while", stopped),
    ("sighup_a_hundred_times_a_second", hung_up),
    ("started_twice", started_twice),
];

/// This variable asks for so many kills, of which each of the three faults that kill does its share, and for their promise
/// (see [`judge`]). (One that begins with NAMEGATE_ is a setting.)
const KILLS: &str = "LAB_KILLS";
/// So long DNS is away at most, of a hundred kills ninety-nine times, from the start of the process; of a release build on a
/// machine that does nothing else.
const AWAY: Duration = Duration::from_millis(250);

/// All of what is asked for, or so many in a slice.
fn kills(size: Size, slice: u32) -> u32 {
    match asked_for() {
        Some(all) if size == Size::All => all.div_ceil(3),
        _ => size.runs(20, slice),
    }
}

fn asked_for() -> Option<u32> {
    std::env::var(KILLS).ok()?.parse().ok()
}

/// Where many kills were asked for: what is wrong with how long DNS was away, without what namegate waited for a core that
/// others had.
pub fn judge(tally: &Tally) -> Option<String> {
    asked_for()?;
    let mut away = tally.back_own_us.clone();
    away.sort_unstable();
    let place = (away.len() * 99).div_ceil(100).max(1) - 1;
    let worst = away.get(place).map(|us| Duration::from_micros(*us));
    let kept = worst.is_some_and(|worst| worst <= AWAY);
    (!kept).then(|| format!("DNS was back after {worst:?} (99th percentile of {}); {AWAY:?} is promised", away.len()))
}

fn killed(size: Size, tally: &mut Tally, attach: &str) {
    let mut bench = Bench::new(&["--set", &format!("enforcement.attach={attach}")]);
    for _ in 0..kills(size, if attach == "auto" { 5 } else { 3 }) {
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
    let runs = kills(size, 2);
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
    let runs = size.runs(6, 2);
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
    tally.note("6 times, the last one for 30 s: a stop takes a second");
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

/// The first goes on, the second leaves with an error; of two that start at once one stays.
fn started_twice(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    for _ in 0..size.runs(20, 2) {
        tally.runs += 1;
        let mut second = Daemon::launch(&bench.world, &[], &[]);
        let status = second.ends_within(Duration::from_secs(5));
        tally.demand(status.is_some_and(|status| !status.success()), || {
            format!("the second one did not leave with an error: {status:?}; {}", tail(&second.log()))
        });
        // Its last words may still be on their way when it has ended.
        let says = || second.log().iter().any(|line| line.contains("another namegate"));
        tally.demand(clock::wait_until(Duration::from_secs(1), says), || {
            format!("the second one does not say why it left: {}", tail(&second.log()))
        });
        let now = clock::mono_ns();
        bench.back(now, tally);
        let ready = bench.daemon().ready();
        tally.demand(ready.0, || format!("the first one is not ready any more: {}", ready.1));
        bench.settle(tally, Excused::Nothing);
    }
    for _ in 0..size.runs(10, 1) {
        tally.runs += 1;
        bench.kill();
        let start = bench.start();
        let mut other = Daemon::launch(&bench.world, &[], &[]);
        bench.first_answer("same", start, Duration::from_secs(10));
        if !bench.daemon.as_mut().is_some_and(Daemon::runs) {
            std::mem::swap(bench.daemon.as_mut().expect("it was started"), &mut other);
        }
        bench.back_from(start, Duration::ZERO, tally);
        let first = bench.daemon.as_mut().expect("it was started");
        clock::wait_until(Duration::from_secs(3), || !first.runs() || !other.runs());
        sleep(Duration::from_millis(200));
        match (!first.runs(), !other.runs()) {
            (false, true) => {}
            (true, false) => bench.daemon = Some(other),
            both => {
                tally.violate(format!("of two that started at once, one has to leave; (first, second) left: {both:?}"))
            }
        }
        bench.settle(tally, Excused::Nothing);
    }
    bench.finish(tally, Excused::Nothing);
}
