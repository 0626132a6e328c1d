//! Timers of outstanding queries: a wheel of ticks. Almost none of them ever matters, so setting one must cost nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How late a timer may go off.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// Which outstanding query: its place, and what tells it from an earlier one there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Timer {
    pub number: usize,
    pub serial: u64,
}

/// Timers by the tick at which they go off.
#[derive(Default)]
pub(super) struct Wheel {
    /// When the first slot is due; none while there is no slot.
    first: Option<Instant>,
    slots: VecDeque<Vec<Timer>>,
    spare: Vec<Vec<Timer>>,
}

impl Wheel {
    /// Sets a timer; it goes off at `at` or up to two ticks later. Returns when.
    pub fn set(&mut self, at: Instant, timer: Timer, now: Instant) -> Instant {
        if self.slots.is_empty() {
            self.first = Some(now + TICK);
        }
        let first = self.first.unwrap_or(now);
        let after = at.saturating_duration_since(first).as_nanos().div_ceil(TICK.as_nanos()) as usize;
        while self.slots.len() <= after {
            self.slots.push_back(self.spare.pop().unwrap_or_default());
        }
        self.slots[after].push(timer);
        first + TICK * after as u32
    }

    /// The next timers that are due; to be given back when they are seen to. `None`: nothing is due.
    pub fn take(&mut self, now: Instant) -> Option<Vec<Timer>> {
        while let Some(first) = self.first.filter(|first| *first <= now) {
            let slot = self.slots.pop_front();
            self.first = (!self.slots.is_empty()).then_some(first + TICK);
            match slot {
                Some(slot) if slot.is_empty() => self.give_back(slot),
                slot => return slot,
            }
        }
        None
    }

    /// Keeps the memory of what [`Wheel::take`] gave.
    pub fn give_back(&mut self, mut slot: Vec<Timer>) {
        const SPARE: usize = 64;
        slot.clear();
        if self.spare.len() < SPARE {
            self.spare.push(slot);
        }
    }

    /// When the next timer goes off.
    pub fn next(&self) -> Option<Instant> {
        let empty = self.slots.iter().position(|slot| !slot.is_empty())?;
        Some(self.first? + TICK * empty as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn timers_go_off_in_order_never_early_and_at_most_two_ticks_late() {
        let (mut wheel, begin) = (Wheel::default(), clock::now());
        let ms = Duration::from_millis;
        let mut set: Vec<u64> = (0..200).map(|at| at * 7919 % 1_000).collect();
        for (number, at) in set.iter().enumerate() {
            wheel.set(begin + ms(*at), Timer { number, serial: 0 }, begin);
        }
        let mut seen = Vec::new();
        while let Some(next) = wheel.next() {
            assert!(wheel.take(next - ms(1)).is_none(), "not before");
            let due = wheel.take(next).expect("what is due");
            for timer in &due {
                let at = begin + ms(set[timer.number]);
                assert!(next >= at && next - at <= TICK * 2, "{:?}", next - at);
                seen.push(set[timer.number] / 10);
            }
            wheel.give_back(due);
        }
        set.sort_unstable();
        assert!(seen.is_sorted());
        assert_eq!(seen.len(), set.len());
        let later = begin + ms(60_000);
        assert_eq!(wheel.set(later, Timer { number: 1, serial: 1 }, later), later + TICK);
        assert_eq!(wheel.slots.len(), 1, "time without timers leaves no slots");
    }
}
