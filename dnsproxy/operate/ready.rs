//! Whether namegate does what it is there for, and if not, why.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A shared list of reasons why namegate is not ready. Empty: it is.
///
/// Each part of the process keeps its own reasons under its own name, and replaces them as a whole.
#[derive(Clone, Debug)]
pub struct Readiness {
    reasons: Arc<Mutex<BTreeMap<&'static str, Vec<String>>>>,
}

impl Readiness {
    /// Not ready: `part` has not said anything yet. It is ready when `part` and all others have no reason left.
    pub fn waiting_for(part: &'static str) -> Readiness {
        let first = BTreeMap::from([(part, vec![format!("{part}: not done yet")])]);
        Readiness { reasons: Arc::new(Mutex::new(first)) }
    }

    /// Replaces the reasons of `part`; none: as far as it is concerned, all is well.
    pub fn set(&self, part: &'static str, reasons: Vec<String>) {
        if reasons.is_empty() {
            self.lock().remove(part);
        } else {
            self.lock().insert(part, reasons);
        }
    }

    /// Whether nobody has a reason.
    pub fn is_ready(&self) -> bool {
        self.lock().is_empty()
    }

    /// All reasons, by part.
    pub fn reasons(&self) -> Vec<String> {
        self.lock().values().flatten().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Vec<String>>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_no_part_has_a_reason_left() {
        let readiness = Readiness::waiting_for("start");
        assert_eq!(readiness.reasons(), ["start: not done yet"]);
        readiness.set("attach", vec!["veth0: not first in the chain".to_owned()]);
        readiness.set("start", Vec::new());
        assert_eq!(
            (readiness.is_ready(), readiness.reasons()),
            (false, vec!["veth0: not first in the chain".to_owned()])
        );
        readiness.clone().set("attach", Vec::new());
        assert!(readiness.is_ready() && readiness.reasons().is_empty());
    }
}
