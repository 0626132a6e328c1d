//! What was found of pods and interfaces where no endpoint is named.

use prometheus::{IntCounter, IntGauge, Registry};

use super::{Metrics, counter, gauge, raise, whole};

pub(super) struct Found {
    unknown: IntGauge,
    unprotected: IntGauge,
    refused: IntCounter,
}

impl Found {
    pub(super) fn new(r: &Registry) -> Found {
        Found {
            unknown: gauge(r, "namegate_unknown_interfaces", "Interfaces whose pod is not known: nothing passes."),
            unprotected: gauge(
                r,
                "namegate_unprotected_pods",
                "Pods on the node's own network that a policy selects: nothing enforces it.",
            ),
            refused: counter(
                r,
                "namegate_cni_files_refused_total",
                "Files of the CNI's cache that are not as a container runtime writes them.",
            ),
        }
    }
}

impl Metrics {
    /// How many interfaces are unknown, how many pods unprotected, and how many files of the CNI's cache were refused so far.
    pub fn found(&self, unknown: u64, unprotected: u64, refused: u64) {
        self.found.unknown.set(whole(unknown));
        self.found.unprotected.set(whole(unprotected));
        raise(&self.found.refused, refused);
    }
}
