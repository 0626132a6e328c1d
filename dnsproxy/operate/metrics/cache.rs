//! How full the answer cache is, and what is asked for without being asked.

use prometheus::{IntCounterVec, IntGauge, Registry};

use crate::serve::background::{Background, Purpose};
use crate::serve::cache::CacheFigures;

use super::{Metrics, counters, gauge, raise, whole};

/// What a background question came to, as its label has it.
const RESULTS: [&str; 3] = ["answered", "failed", "held_back"];

/// The cache and the background questions.
pub(super) struct Cache {
    entries: IntGauge,
    bytes: IntGauge,
    background: IntCounterVec,
}

impl Cache {
    pub fn new(r: &Registry) -> Cache {
        Cache {
            entries: gauge(r, "namegate_cache_entries", "Answers that are kept."),
            bytes: gauge(r, "namegate_cache_bytes", "Octets that kept answers take, bookkeeping included."),
            background: counters(
                r,
                "namegate_background_queries_total",
                "Names asked for without being asked; held_back: due, but too many, or servers don't answer.",
                &["purpose", "result"],
            ),
        }
    }
}

impl Metrics {
    /// How full the cache is.
    pub fn cache(&self, figures: &CacheFigures) {
        self.cache.entries.set(whole(figures.entries));
        self.cache.bytes.set(whole(figures.bytes));
    }

    /// What prefetch and poller have done so far.
    pub fn background(&self, background: &Background) {
        for purpose in Purpose::ALL {
            let figures = background.figures(purpose);
            for (result, count) in RESULTS.into_iter().zip([figures.answered, figures.failed, figures.held_back]) {
                raise(&self.cache.background.with_label_values(&[purpose.text(), result]), count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_purpose_and_result_is_there_from_the_start_and_the_cache_is_shown_as_it_is() {
        let metrics = Metrics::new();
        metrics.cache(&CacheFigures { entries: 7, bytes: 4_096, ..CacheFigures::default() });
        let text = String::from_utf8(metrics.text()).expect("text");
        let lines = text.lines().filter(|line| line.starts_with("namegate_background_queries_total{")).count();
        assert_eq!(lines, 6, "{text}");
        assert!(
            text.contains("\nnamegate_cache_entries 7\n") && text.contains("\nnamegate_cache_bytes 4096\n"),
            "{text}"
        );
    }
}
