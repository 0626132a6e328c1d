//! Notices that the snapshot directory changed.

use std::path::Path;
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{Receiver, channel};

/// How long after a change the next one is waited for: a writer of many files causes one reload, not many.
const SETTLE: Duration = Duration::from_millis(5);
/// How often the directory is looked at all the same: on file systems that tell nothing.
const POLL: Duration = Duration::from_secs(5);

/// Watches one directory.
pub(super) struct Watch {
    changes: Receiver<()>,
    /// Held so that it goes on; none when the system could not watch.
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Watches `directory`. When it can't be watched (not there yet, no inotify watch left), it is polled.
    pub fn start(directory: &Path) -> Watch {
        let (tell, changes) = channel(1);
        let told = move |event: notify::Result<notify::Event>| {
            // Reading the directory is an event too, and none to act on.
            if !matches!(event, Ok(notify::Event { kind: EventKind::Access(_), .. })) {
                let _ = tell.try_send(()); // full: one is waiting already
            }
        };
        let watcher = notify::recommended_watcher(told).and_then(|mut watcher| {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "the snapshot can't be watched; it is looked at every 5 s"))
            .ok();
        Watch { changes, _watcher: watcher }
    }

    /// Returns when something may have changed.
    pub async fn changed(&mut self) {
        match tokio::time::timeout(POLL, self.changes.recv()).await {
            Ok(Some(())) => (),
            Ok(None) => return tokio::time::sleep(POLL).await,
            Err(_) => return,
        }
        while let Ok(Some(())) = tokio::time::timeout(SETTLE, self.changes.recv()).await {}
    }
}
