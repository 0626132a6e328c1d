//! Notices that the snapshot directory changed.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::Instant;

use crate::clock;

/// How long after a change the next one is waited for: a writer of many files causes one reload, not many.
const SETTLE: Duration = Duration::from_millis(5);
/// How long a change waits at most, however many follow it.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the directory is looked at all the same: on file systems that tell nothing.
const POLL: Duration = Duration::from_secs(5);

/// Watches one directory.
pub(super) struct Watch {
    changes: Receiver<()>,
    told: Arc<Mutex<Told>>,
    poll_at: Instant,
    /// A change was heard of and not returned yet: waiting for the next one may be broken off.
    heard: bool,
    /// Held so that it goes on; none when the system could not watch.
    _watcher: Option<RecommendedWatcher>,
}

/// What was told since it was asked for last.
#[derive(Default)]
struct Told {
    names: BTreeSet<String>,
    /// More may have changed than files of these names.
    more: bool,
}

impl Watch {
    /// Watches `directory`. When it can't be watched (not there yet, no inotify watch left), it is polled.
    pub fn start(directory: &Path) -> Watch {
        let (tell, changes) = channel(1);
        let told = Arc::new(Mutex::new(Told::default()));
        let hear = told.clone();
        let of = directory.to_owned();
        let event = move |event: notify::Result<notify::Event>| {
            // Reading the directory is an event too, and none to act on.
            if !matches!(event, Ok(notify::Event { kind: EventKind::Access(_), .. })) {
                hear.lock().unwrap_or_else(PoisonError::into_inner).add(&of, event);
                let _ = tell.try_send(()); // full: one is waiting already
            }
        };
        let watcher = notify::recommended_watcher(event).and_then(|mut watcher| {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "the snapshot can't be watched; it is looked at every 5 s"))
            .ok();
        Watch { changes, told, poll_at: now() + POLL, heard: false, _watcher: watcher }
    }

    /// Returns when something may have changed: files of these names in the directory, or `None`: anything.
    pub async fn changed(&mut self) -> Option<BTreeSet<String>> {
        if !self.heard {
            match tokio::time::timeout_at(self.poll_at, self.changes.recv()).await {
                Ok(Some(())) => self.heard = true,
                Ok(None) => {
                    tokio::time::sleep_until(self.poll_at).await;
                    return self.poll();
                }
                Err(_) => return self.poll(),
            }
        }
        let latest = now() + PATIENCE;
        while now() < latest && matches!(tokio::time::timeout(SETTLE, self.changes.recv()).await, Ok(Some(()))) {}
        self.heard = false;
        let told = std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner));
        if told.more { None } else { Some(told.names) }
    }

    /// Nothing is told at the moment, and it is time to look at everything.
    fn poll(&mut self) -> Option<BTreeSet<String>> {
        self.poll_at = Instant::now() + POLL;
        None
    }
}

fn now() -> Instant {
    Instant::from_std(clock::now())
}

impl Told {
    fn add(&mut self, directory: &Path, event: notify::Result<notify::Event>) {
        let Ok(event) = event else {
            self.more = true;
            return;
        };
        // An overflow of the queue names no path; events that were lost are among those it stands for.
        self.more |= event.need_rescan() || event.paths.is_empty();
        for path in event.paths {
            let name = path.strip_prefix(directory).ok().and_then(Path::to_str).filter(|name| !name.is_empty());
            match name {
                Some(name) => drop(self.names.insert(name.to_owned())),
                None => self.more = true,
            }
        }
    }
}
