//! Notices that the snapshot directory changed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, timeout_at};

use crate::clock;

/// How long after a change the next one is waited for: a writer of many files causes one reload, not many.
const SETTLE: Duration = Duration::from_millis(5);
/// How long a change waits at most, however many follow it.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often everything is looked at all the same: for file systems that tell nothing, for links whose targets lie
/// elsewhere, for folders in the directory.
const POLL: Duration = Duration::from_secs(5);

/// Watches one directory.
pub(super) struct Watch {
    directory: PathBuf,
    told: Arc<Mutex<Told>>,
    tell: Sender<()>,
    changes: Receiver<()>,
    poll_at: Instant,
    /// When a change was heard of that was not returned yet: waiting for the next one may be broken off.
    heard: Option<Instant>,
    /// Held so that it goes on, with the device and inode that it watches; none when the system could not watch.
    watcher: Option<(RecommendedWatcher, (u64, u64))>,
}

/// What was told since it was asked for last.
#[derive(Default)]
struct Told {
    names: BTreeSet<String>,
    /// More may have changed than files of these names.
    more: bool,
    /// The directory went away from its path: another one may stand there.
    moved: bool,
    /// Written to, and not closed since: half of a file can mean more than the whole.
    unfinished: BTreeSet<String>,
}

impl Watch {
    /// Watches `directory`. When it can't be watched (not there yet, no inotify watch left), it is polled.
    pub fn start(directory: &Path) -> Watch {
        let (tell, changes) = channel(1);
        // What is told has whole paths.
        let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        let (told, poll_at) = (Arc::default(), now() + POLL);
        let mut watch = Watch { directory, told, tell, changes, poll_at, heard: None, watcher: None };
        if let Err(error) = watch.watch() {
            let directory = watch.directory.display();
            tracing::warn!(%directory, %error, "the snapshot can't be watched; it is looked at every 5 s");
        }
        watch
    }

    /// Returns when something may have changed: files of these names in the directory, or `None`: anything.
    pub async fn changed(&mut self) -> Option<BTreeSet<String>> {
        let heard = match self.heard {
            Some(heard) => heard,
            // Looked at first: a writer that never pauses does not put off what only a poll finds.
            None if now() >= self.poll_at => return self.poll(),
            None => match timeout_at(self.poll_at, self.changes.recv()).await {
                Ok(_) => *self.heard.insert(now()),
                Err(_) => return self.poll(),
            },
        };
        let latest = heard + PATIENCE;
        while now() < latest {
            let until = if lock(&self.told).unfinished.is_empty() { latest.min(now() + SETTLE) } else { latest };
            if timeout_at(until, self.changes.recv()).await.is_err() {
                break;
            }
        }
        self.heard = None;
        let told = std::mem::take(&mut *lock(&self.told));
        if told.moved {
            self.watch_what_stands_there();
        }
        if told.more || told.moved { None } else { Some(told.names) }
    }

    /// It is time to look at everything.
    fn poll(&mut self) -> Option<BTreeSet<String>> {
        self.poll_at = now() + POLL;
        // Another directory may have been put in its place, or mounted over it.
        if self.watcher.as_ref().map(|(_, watched)| *watched) != identity(&self.directory) {
            self.watch_what_stands_there();
        }
        None
    }

    /// Watches anew; on failure until the next poll nothing is.
    fn watch_what_stands_there(&mut self) {
        self.watcher = None;
        self.watch().unwrap_or_else(|error| tracing::debug!(%error, "the snapshot can't be watched"));
    }

    fn watch(&mut self) -> notify::Result<()> {
        let (told, tell, directory) = (self.told.clone(), self.tell.clone(), self.directory.clone());
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.as_ref().is_ok_and(only_reads) {
                return;
            }
            lock(&told).add(&directory, event);
            let _ = tell.try_send(()); // full: one is waiting already
        })?;
        // Before it is watched: what takes its place in between is found to be another one.
        let watched = identity(&self.directory).ok_or_else(notify::Error::path_not_found)?;
        watcher.watch(&self.directory, RecursiveMode::NonRecursive)?;
        self.watcher = Some((watcher, watched));
        Ok(())
    }
}

fn now() -> Instant {
    Instant::from_std(clock::now())
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What tells one directory from another at the same path.
fn identity(directory: &Path) -> Option<(u64, u64)> {
    fs::metadata(directory).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Reading the directory is an event too, and none to act on. The end of writing is: what is written through a mapping has
/// no other.
fn only_reads(event: &notify::Event) -> bool {
    let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
    matches!(event.kind, EventKind::Access(_)) && event.kind != written
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
            let name = path.strip_prefix(directory).ok().and_then(Path::to_str);
            match name {
                Some("") => {
                    self.more = true;
                    self.moved |= matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
                }
                Some(name) => {
                    match event.kind {
                        EventKind::Modify(ModifyKind::Data(_)) => drop(self.unfinished.insert(name.to_owned())),
                        _ => drop(self.unfinished.remove(name)),
                    }
                    self.names.insert(name.to_owned());
                }
                None => self.more = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use notify::event::{CreateKind, Flag};

    use super::*;

    /// What is told of changes within a second; `None`: anything may have changed.
    async fn told(watch: &mut Watch) -> Option<BTreeSet<String>> {
        tokio::time::timeout(Duration::from_secs(1), watch.changed()).await.expect("something is told")
    }

    fn names(names: &[&str]) -> Option<BTreeSet<String>> {
        Some(names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn write(path: &Path) {
        fs::write(path, "{}").unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_is_told_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = Watch::start(folder.path());
        write(&folder.path().join(".a.new"));
        fs::rename(folder.path().join(".a.new"), folder.path().join("a.json")).unwrap();
        assert_eq!(told(&mut watch).await, names(&[".a.new", "a.json"]));
        let reads = tokio::time::timeout(SETTLE * 10, async {
            fs::read(folder.path().join("a.json")).unwrap();
            watch.changed().await
        });
        assert!(reads.await.is_err(), "reading changes nothing");
    }

    #[tokio::test]
    async fn a_directory_whose_path_is_relative_is_told_of_by_names_too() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let mut watch = Watch::start(Path::new(folder.path().file_name().unwrap()));
        write(&folder.path().join("a.json"));
        assert_eq!(told(&mut watch).await, names(&["a.json"]));
    }

    #[tokio::test]
    async fn a_directory_that_takes_the_place_of_another_is_looked_at_and_watched() {
        let folder = tempfile::tempdir().unwrap();
        let [at, next, old] = ["at", "next", "old"].map(|name| folder.path().join(name));
        fs::create_dir(&at).unwrap();
        fs::create_dir(&next).unwrap();
        let mut watch = Watch::start(&at);
        fs::rename(&at, &old).unwrap();
        fs::rename(&next, &at).unwrap();
        assert_eq!(told(&mut watch).await, None);
        write(&at.join("a.json"));
        assert_eq!(told(&mut watch).await, names(&["a.json"]));
        write(&old.join("b.json"));
        assert!(tokio::time::timeout(SETTLE * 10, watch.changed()).await.is_err());
    }

    #[tokio::test]
    async fn a_directory_that_appears_later_is_watched_from_the_next_poll_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = Watch::start(&folder.path().join("later"));
        fs::create_dir(folder.path().join("later")).unwrap();
        watch.poll_at = now();
        assert_eq!(told(&mut watch).await, None);
        write(&folder.path().join("later/a.json"));
        assert_eq!(told(&mut watch).await, names(&["a.json"]));
    }

    #[tokio::test]
    async fn a_writer_that_never_pauses_puts_off_neither_a_reload_nor_a_poll() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = Watch::start(folder.path());
        let path = folder.path().join("a.json");
        let done = Arc::new(AtomicBool::new(false));
        let writer = std::thread::spawn({
            let done = done.clone();
            move || {
                while !done.load(Ordering::Relaxed) {
                    write(&path);
                    std::thread::sleep(SETTLE / 10);
                }
            }
        });
        for _ in 0..2 {
            assert_eq!(told(&mut watch).await, names(&["a.json"]));
        }
        // Broken off again and again, as by another branch of a `select!`.
        let start = now();
        let told = loop {
            assert!(now() < start + PATIENCE * 3);
            if let Ok(told) = tokio::time::timeout(PATIENCE / 5, watch.changed()).await {
                break told;
            }
        };
        assert_eq!(told, names(&["a.json"]));
        tokio::time::sleep(SETTLE * 2).await;
        watch.poll_at = now();
        assert_eq!(watch.changed().await, None, "the poll comes first");
        done.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    }

    #[tokio::test]
    async fn a_file_that_its_writer_has_open_is_read_when_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = Watch::start(folder.path());
        let mut file = fs::File::create(folder.path().join("a.json")).unwrap();
        std::io::Write::write_all(&mut file, b"half").unwrap();
        let half = tokio::time::timeout(SETTLE * 10, watch.changed()).await;
        assert!(half.is_err(), "told while half of it is there: {half:?}");
        std::io::Write::write_all(&mut file, b" and half").unwrap();
        drop(file);
        let start = now();
        assert_eq!(told(&mut watch).await, names(&["a.json"]));
        assert!(now() < start + PATIENCE / 2, "closed, and still waited for");
        // Who never closes it does not put it off for ever.
        let mut file = fs::File::create(folder.path().join("b.json")).unwrap();
        std::io::Write::write_all(&mut file, b"half").unwrap();
        assert_eq!(told(&mut watch).await, names(&["b.json"]));
    }

    #[track_caller]
    fn adds(event: notify::Event, expected: Option<&[&str]>) {
        let mut told = Told::default();
        told.add(Path::new("/snapshot"), Ok(event));
        assert_eq!((!told.more).then_some(told.names), expected.and_then(names));
    }

    #[test]
    fn what_can_not_be_told_by_names_may_be_anything() {
        let created = || notify::Event::new(EventKind::Create(CreateKind::File));
        let below = |name: &[u8]| Path::new("/snapshot").join(OsStr::from_bytes(name));
        adds(created().add_path(below(b"a.json")), Some(&["a.json"]));
        adds(created().add_path(below(b"a\xff.json")), None);
        adds(created().add_path("/elsewhere/a.json".into()), None);
        adds(notify::Event::new(EventKind::Other).set_flag(Flag::Rescan), None);
        let mut told = Told::default();
        told.add(Path::new("/snapshot"), Err(notify::Error::generic("lost")));
        assert!(told.more);
    }
}
