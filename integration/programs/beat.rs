//! While no proxy gives a sign of life, the kernel sweeps dead flows by itself.

use std::net::IpAddr;
use std::time::Duration;

use namegate::engine::bits::Bits;
use namegate::engine::ruleset::{Direction, Protocol};
use namegate::kernel::rules::FlowLimits;
use namegate::observe::Reason;

use super::bench::*;
use super::frames::*;

/// How many flows the endpoint may have.
const FLOWS: u16 = 12;
/// Longer than the first sweep of a dead proxy takes to come (5 s).
const FIRST_SWEEP: Duration = Duration::from_millis(6500);
/// Longer than the next one takes after that (10 s).
const NEXT_SWEEP: Duration = Duration::from_secs(10);

/// A granted address on 443, and room for a dozen flows.
fn ready() -> Bench {
    let bench = Bench::new();
    let mut rules = no_rules();
    rules.ports.push(port(Direction::Egress, Protocol::Tcp, 443, Bits::of(1), Bits::NONE));
    bench.rules(&rules);
    bench.grant(to(), Bits::of(1), later());
    let limits = FlowLimits {
        limit: FLOWS.into(),
        share: 8,
        pool: 100,
        fragment_share: 8,
        fragment_pool: 100,
        idle_grace: Duration::ZERO,
    };
    bench.kernel.set_limits(limits, 15353).unwrap();
    bench
}

fn to() -> IpAddr {
    "203.0.113.7".parse().unwrap()
}

fn opens(bench: &Bench, source: u16) -> Reason {
    bench.run(Direction::Egress, &from_pod(pod4(), to(), TCP, &tcp(source, 443, 1, SYN)))
}

/// Opens connections until the budget is full; how many there was room for.
#[track_caller]
fn fill(bench: &Bench, first: u16) -> u16 {
    for source in first..=first + FLOWS {
        match opens(bench, source) {
            Reason::Granted => (),
            Reason::FlowBudget => return source - first,
            other => panic!("{}", other.text()),
        }
    }
    panic!("room for more than {FLOWS}")
}

/// An hour passes for every flow but the one of port `living`.
fn age(bench: &Bench, living: u16) {
    for (key, mut flow) in bench.kernel.tables.flows.rows().unwrap() {
        if key.local_port != living.to_be() {
            flow.last_ns = flow.last_ns.saturating_sub(3_600_000_000_000);
            bench.kernel.tables.flows.put(&key, &flow).unwrap();
        }
    }
}

/// Flows, those charged to the endpoint, and those of them charged to the pool.
fn held(bench: &Bench) -> (usize, u32, u32) {
    let flows = |slot: u32| bench.kernel.tables.budgets.get(&slot).unwrap().flows;
    (bench.kernel.tables.flows.rows().unwrap().len(), flows(SLOT), flows(0))
}

pub fn a_dead_proxys_endpoint_does_not_run_into_its_budget() {
    let (bench, control) = (ready(), ready());
    // One process arms the timer, the next takes over with a program of its own, and both are gone.
    for _ in 0..2 {
        bench.successor().beat().unwrap();
    }
    for each in [&bench, &control] {
        assert_eq!(fill(each, 40000), FLOWS);
        age(each, 40000);
    }
    std::thread::sleep(FIRST_SWEEP);
    assert_eq!(held(&control), (12, 12, 4), "the control: nobody armed the timer");
    assert_eq!(opens(&control, 50000).text(), "flow_budget");
    assert_eq!(held(&bench), (1, 1, 0), "the flow that lives stays");
    assert_eq!(fill(&bench, 50000), FLOWS - 1);
    age(&bench, 50001);
    std::thread::sleep(NEXT_SWEEP);
    assert_eq!(held(&bench), (1, 1, 0));
    assert_eq!(bench.kernel.beat().unwrap(), 22, "the next process hears of it");
    assert_eq!(bench.kernel.beat().unwrap(), 0);
}

pub fn nothing_is_swept_while_the_heart_beats() {
    let bench = ready();
    fill(&bench, 40000);
    age(&bench, 40000);
    for _ in 0..8 {
        assert_eq!(bench.kernel.beat().unwrap(), 0);
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(held(&bench), (12, 12, 4));
}

pub fn flows_of_nobody_we_know_are_left_to_the_proxy() {
    let bench = ready();
    fill(&bench, 40000);
    age(&bench, 40000);
    bench.kernel.set_slots(&[]).unwrap();
    bench.kernel.beat().unwrap();
    std::thread::sleep(FIRST_SWEEP);
    assert_eq!(held(&bench), (12, 12, 4));
}
