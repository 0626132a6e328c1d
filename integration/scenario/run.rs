//! Plays a scenario's steps, and holds what changes against what is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::language::{Act, Change, Pod, Scenario, Step};

/// How far a deadline may stray between two looks: the same answer a moment later may end a whole second later.
const DRIFT: Duration = Duration::from_millis(1_200);
/// What a step's own time adds to the deadline it grants.
const SLACK: Duration = Duration::from_millis(300);
/// Deadlines are the next whole second.
const ROUNDING: Duration = Duration::from_secs(1);

/// What a scenario is played against.
pub trait Subject {
    /// Waits until so long after the start.
    fn wait_until(&mut self, at: Duration);
    /// Nanoseconds of the clock that grants are reckoned by.
    fn now(&self) -> u64;
    /// Does it; the error says what was seen instead.
    fn act(&mut self, act: &Act) -> Result<(), String>;
    /// What the kernel (or its model) lets the pods reach by name, with deadlines that may have passed.
    fn grants(&mut self) -> Result<Vec<(Pod, IpAddr, u64)>, String>;
    /// What is refused, in one line each; `None` while nobody can tell.
    fn refusals(&mut self) -> Option<Vec<String>>;
    /// Pods that nothing passes for; `None` while nobody can tell.
    fn closed(&mut self) -> Option<BTreeSet<Pod>>;
    /// For a failure: what it said of itself.
    fn log(&self) -> String;
}

/// Plays it.
pub fn run(scenario: &Scenario, mut subject: impl Subject) -> Result<(), String> {
    let mut ledger = Ledger::default();
    for step in &scenario.steps {
        if let Some(at) = step.at {
            subject.wait_until(at);
        }
        let before = subject.now();
        subject
            .act(&step.act)
            .and_then(|()| ledger.check(step, before, &mut subject))
            .map_err(|why| format!("line {}: {}\n  seen: {why}\n--- log\n{}", step.line, step.text, subject.log()))?;
    }
    Ok(())
}

/// What is in force as far as the scenario has told.
#[derive(Default)]
struct Ledger {
    grants: BTreeMap<(Pod, IpAddr), u64>,
    refused: Vec<String>,
    closed: BTreeSet<Pod>,
}

impl Ledger {
    fn check(&mut self, step: &Step, before: u64, subject: &mut impl Subject) -> Result<(), String> {
        let rows = subject.grants()?;
        let now = subject.now();
        let live: BTreeMap<(Pod, IpAddr), u64> =
            rows.into_iter().filter(|row| row.2 > now).map(|(pod, address, until)| ((pod, address), until)).collect();
        for change in &step.changes {
            match change {
                Change::Granted { pod, address, left } => {
                    let until =
                        live.get(&(*pod, *address)).ok_or_else(|| format!("no grant {} {address}", pod.word()))?;
                    let (low, high) =
                        (after(before, *left) - nanos(SLACK), after(now, *left + ROUNDING) + nanos(SLACK));
                    if !(low..=high).contains(until) {
                        return Err(format!("the grant {} {address} has {} left", pod.word(), seconds(*until, before)));
                    }
                    self.grants.insert((*pod, *address), *until);
                }
                Change::Revoked { pod, address } => {
                    if self.grants.remove(&(*pod, *address)).is_none() {
                        return Err(format!("{} {address} was not granted before", pod.word()));
                    }
                }
                Change::Refused(text) => self.refused.push(text.clone()),
                Change::Accepted(text) => self.refused.retain(|known| known != text),
                Change::Closed(pod) => drop(self.closed.insert(*pod)),
                Change::Opened(pod) => drop(self.closed.remove(pod)),
            }
        }
        self.grants.retain(|_, until| *until > now);
        for ((pod, address), until) in &live {
            match self.grants.get(&(*pod, *address)) {
                None => {
                    return Err(format!("unlisted: + grant {} {address} {}", pod.word(), seconds(*until, now)));
                }
                Some(known) if known.abs_diff(*until) > nanos(DRIFT) => {
                    return Err(format!(
                        "unlisted: the deadline of {} {address} was {} and is {}",
                        pod.word(),
                        seconds(*known, now),
                        seconds(*until, now)
                    ));
                }
                Some(_) => {}
            }
        }
        if let Some(((pod, address), _)) =
            self.grants.iter().find(|(key, until)| !live.contains_key(*key) && **until > now + nanos(DRIFT))
        {
            return Err(format!("unlisted: - grant {} {address}", pod.word()));
        }
        self.check_refusals(subject)?;
        match subject.closed() {
            Some(closed) if closed != self.closed => Err(format!("closed are {closed:?}, listed {:?}", self.closed)),
            _ => Ok(()),
        }
    }

    fn check_refusals(&self, subject: &mut impl Subject) -> Result<(), String> {
        let Some(seen) = subject.refusals() else { return Ok(()) };
        if let Some(missing) = self.refused.iter().find(|text| !seen.iter().any(|line| line.contains(*text))) {
            return Err(format!("not refused: {missing}; refused: {seen:?}"));
        }
        match seen.iter().find(|line| !self.refused.iter().any(|text| line.contains(text))) {
            Some(line) => Err(format!("unlisted: + refused {line}")),
            None => Ok(()),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

fn after(moment: u64, later: Duration) -> u64 {
    moment + nanos(later)
}

fn seconds(until: u64, now: u64) -> String {
    format!("{:.2}s", (until as f64 - now as f64) / 1e9)
}
