//! A scenario: what is none is refused with its line, what is one says the same when a step of it is read by itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use script::{Forgery, Script};

use super::cost::{self, Limit};

#[expect(dead_code, reason = "a step is compared as a whole, and nobody acts by it")]
#[path = "../../scenario/language.rs"]
mod language;
#[path = "../../lab/agent/script.rs"]
mod script;
#[expect(dead_code, reason = "of the lab's snapshots the language needs but the text of a policy")]
#[path = "../../lab/snapshot.rs"]
mod snapshot;

/// A line of 22 octets may be a thousand steps.
const LIMIT: Limit = Limit { held: (60_000, 10_000), allocations: (500, 500) };
const KUBE_DNS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 10)), 53);

pub fn check(octets: &[u8]) {
    let Ok(text) = std::str::from_utf8(octets) else { return };
    // What files of ours hold is no cost of the scenario.
    let read = || language::parse(text, KUBE_DNS);
    let read = if text.contains(" from ") { read() } else { cost::within(octets.len(), LIMIT, read) };
    let lines: Vec<&str> = text.lines().collect();
    let scenario = match read {
        Ok(scenario) => scenario,
        Err(why) if why == "no step" => return,
        Err(why) => {
            let number = why.strip_prefix("line ").and_then(|rest| rest.split_once(':')?.0.parse::<usize>().ok());
            let line = number.and_then(|number| lines.get(number.checked_sub(1)?));
            return assert!(line.is_some_and(|line| why.ends_with(line)), "{why:?} is not where it says");
        }
    };
    assert!(!scenario.steps.is_empty() && scenario.settings.iter().any(|setting| setting.starts_with("dns.cache=")));
    for step in &scenario.steps {
        assert!((1..=lines.len()).contains(&step.line), "{step:?}");
    }
    // A statement by itself is the same step, unless its text is in the lines below it or stands for more than one.
    for step in scenario.steps.iter().take(16).filter(|step| !step.text.contains(['{', '#'])) {
        if matches!(step.act, language::Act::File { .. }) {
            continue;
        }
        let alone = language::parse(&step.text, KUBE_DNS).unwrap_or_else(|why| panic!("{why}: {step:?}"));
        let [again] = &alone.steps[..] else { panic!("{step:?} alone is {alone:?}") };
        let said = |step: &language::Step| format!("{:?} {:?} {:?}", step.at, step.act, step.changes);
        assert_eq!(said(again), said(step));
    }
}
