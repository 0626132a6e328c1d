//! How many queries a second one endpoint may send: a bucket that holds one second's worth and fills steadily.
//!
//! Kept as one number, the moment at which the bucket will be full again (the "generic cell rate algorithm"): no timer
//! fills it, and a query costs one compare-and-swap. Each endpoint has its own (I7), so one that floods takes nothing
//! from its neighbour.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::grant::MonoNs;

/// Nanoseconds of queries that a bucket holds.
const BUCKET: u64 = 1_000_000_000;

/// The bucket of one endpoint.
#[derive(Debug, Default)]
pub struct Rate {
    /// When it is full again, on the kernel's monotonic clock; in the past: it is full.
    full_at_ns: AtomicU64,
}

impl Rate {
    /// Takes one query at `now` out of a bucket of `per_second`; false when it is empty. 0: there is no limit.
    pub fn take(&self, per_second: u32, now: MonoNs) -> bool {
        self.take_several(1, per_second, now)
    }

    /// The same for what costs as much as so many queries; of a smaller bucket it takes all.
    pub fn take_several(&self, queries: u32, per_second: u32, now: MonoNs) -> bool {
        let Some(cost) = BUCKET.checked_div(u64::from(per_second)) else { return true };
        let cost = cost * u64::from(queries.min(per_second));
        let spend = |full_at: u64| {
            let after = full_at.max(now.0).saturating_add(cost);
            (after - now.0 <= BUCKET).then_some(after)
        };
        // Nothing else is ordered by it.
        self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const SECOND: u64 = BUCKET;
    const START: u64 = 1_000 * SECOND;

    /// How many of `tries` at this moment are let through.
    #[track_caller]
    fn passes(rate: &Rate, per_second: u32, at: u64, tries: usize, expected: usize) {
        let passed = (0..tries).filter(|_| rate.take(per_second, MonoNs(at))).count();
        assert_eq!(passed, expected, "{per_second} a second at {} ms", (at - START) / 1_000_000);
    }

    #[test]
    fn a_second_of_queries_passes_at_once_and_the_next_does_not() {
        let rate = Rate::default();
        passes(&rate, 100, START, 1_000, 100);
        passes(&rate, 100, START + SECOND / 200, 10, 0);
        passes(&rate, 1, START + 10 * SECOND, 5, 1);
    }

    #[test]
    fn the_bucket_fills_steadily_and_never_beyond_a_second() {
        let rate = Rate::default();
        passes(&rate, 100, START, 100, 100);
        passes(&rate, 100, START + SECOND / 100, 10, 1);
        passes(&rate, 100, START + SECOND / 2, 100, 49);
        passes(&rate, 100, START + 3_600 * SECOND, 1_000, 100);
    }

    #[test]
    fn what_is_refused_costs_nothing() {
        let rate = Rate::default();
        passes(&rate, 10, START, 10, 10);
        for step in 1..=9 {
            passes(&rate, 10, START + step * SECOND / 100, 100, 0);
        }
        passes(&rate, 10, START + SECOND / 10, 100, 1);
    }

    #[test]
    fn zero_is_no_limit_and_a_new_limit_counts_at_once() {
        let rate = Rate::default();
        passes(&rate, 0, START, 100_000, 100_000);
        passes(&rate, 5, START, 100, 5);
        passes(&rate, 0, START, 100, 100);
        passes(&rate, 10_000_000, START + 2 * SECOND, 20_000, 20_000);
    }

    #[test]
    fn what_costs_several_takes_several_and_at_most_all() {
        let rate = Rate::default();
        assert!(rate.take_several(50, 100, MonoNs(START)));
        assert!(rate.take_several(50, 100, MonoNs(START)));
        assert!(!rate.take_several(50, 100, MonoNs(START + SECOND / 4)));
        passes(&rate, 100, START + SECOND / 4, 100, 25);
        assert!(rate.take_several(50, 3, MonoNs(START + 9 * SECOND)));
        passes(&rate, 3, START + 9 * SECOND, 1, 0);
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_opens_nothing() {
        let rate = Rate::default();
        passes(&rate, 10, START + SECOND, 10, 10);
        passes(&rate, 10, START, 10, 0);
        passes(&rate, 10, START + SECOND, 10, 0);
    }

    #[test]
    fn workers_that_take_at_once_share_one_bucket() {
        let rate = Arc::new(Rate::default());
        let take = |rate: Arc<Rate>| move || (0..10_000).filter(|_| rate.take(1_000, MonoNs(START))).count();
        let workers: Vec<_> = (0..4).map(|_| thread::spawn(take(rate.clone()))).collect();
        let passed: usize = workers.into_iter().map(|worker| worker.join().expect("no panic")).sum();
        assert_eq!(passed, 1_000);
    }
}
