//! Notices what becomes of the files of the CNI's cache: at once, and file by file.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// A file was finished, or is gone.
    File(String),
    /// Anything may have changed.
    Anything,
}

/// Watches one directory.
pub struct CacheWatch {
    directory: PathBuf,
    tell: UnboundedSender<Told>,
    told: UnboundedReceiver<Told>,
    /// Held so that it goes on, with the device and inode that it watches; none when it could not.
    watcher: Option<(RecommendedWatcher, (u64, u64))>,
}

impl CacheWatch {
    /// Watches `directory`, which may not be there yet.
    pub fn start(directory: &Path) -> CacheWatch {
        // What is told has whole paths.
        let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        let (tell, told) = unbounded_channel();
        let mut watch = CacheWatch { directory, tell, told, watcher: None };
        watch.keep();
        watch
    }

    /// What happened next.
    pub async fn next(&mut self) -> Told {
        // Never closed: a sender is held here.
        self.told.recv().await.unwrap_or(Told::Anything)
    }

    /// What has happened already, if anything has.
    pub fn ready(&mut self) -> Option<Told> {
        self.told.try_recv().ok()
    }

    /// Watches what stands there now, if it doesn't yet. Whether it does.
    pub fn keep(&mut self) -> bool {
        let stands = std::fs::metadata(&self.directory).ok().map(|found| (found.dev(), found.ino()));
        if self.watcher.as_ref().map(|(_, watched)| *watched) == stands {
            return stands.is_some();
        }
        self.watcher = None;
        let Some(stands) = stands else { return false };
        match watcher(&self.directory, self.tell.clone()) {
            Ok(watcher) => {
                self.watcher = Some((watcher, stands));
                let _ = self.tell.send(Told::Anything); // what came before
                true
            }
            Err(error) => {
                tracing::debug!(%error, "the CNI's cache can't be watched; it is looked at every second");
                false
            }
        }
    }
}

fn watcher(directory: &Path, tell: UnboundedSender<Told>) -> notify::Result<RecommendedWatcher> {
    let own = directory.to_owned();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        for told in told(&own, event) {
            let _ = tell.send(told);
        }
    })?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

fn told(directory: &Path, event: notify::Result<notify::Event>) -> Vec<Told> {
    let Ok(event) = event else { return vec![Told::Anything] };
    if event.need_rescan() {
        return vec![Told::Anything];
    }
    let finished = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) => true,
        // A hard link is whole when it appears, and nobody closes it.
        EventKind::Create(CreateKind::Other) => true,
        _ => false,
    };
    if !finished {
        return Vec::new();
    }
    let name = |path: &PathBuf| path.strip_prefix(directory).ok().and_then(Path::to_str).map(str::to_owned);
    event
        .paths
        .iter()
        .filter_map(|path| match name(path) {
            // Names that are not UTF-8 are not libcni's.
            None => None,
            Some(name) if name.is_empty() => Some(Told::Anything),
            Some(name) => Some(Told::File(name)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::time::Duration;

    use super::*;

    async fn next(watch: &mut CacheWatch) -> Option<Told> {
        tokio::time::timeout(Duration::from_millis(300), watch.next()).await.ok()
    }

    #[tokio::test]
    async fn a_file_is_told_of_when_it_is_finished_and_when_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = CacheWatch::start(folder.path());
        assert_eq!(next(&mut watch).await, Some(Told::Anything), "what came before");
        let path = folder.path().join("net-0b1c-eth0");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(b"{").unwrap();
        assert_eq!(next(&mut watch).await, None, "its writer has it open");
        drop(file);
        assert_eq!(next(&mut watch).await, Some(Told::File("net-0b1c-eth0".into())));
        fs::rename(&path, folder.path().join("other")).unwrap();
        let mut both = Vec::new();
        while let Some(told) = next(&mut watch).await {
            both.push(told);
        }
        assert!(
            both.contains(&Told::File("net-0b1c-eth0".into())) && both.contains(&Told::File("other".into())),
            "{both:?}"
        );
        fs::remove_file(folder.path().join("other")).unwrap();
        assert_eq!(next(&mut watch).await, Some(Told::File("other".into())));
    }

    #[tokio::test]
    async fn a_directory_that_comes_later_or_takes_the_place_of_another_is_watched() {
        let folder = tempfile::tempdir().unwrap();
        let [at, next_one] = ["results", "next"].map(|name| folder.path().join(name));
        let mut watch = CacheWatch::start(&at);
        assert!(!watch.keep(), "not there");
        fs::create_dir(&at).unwrap();
        assert!(watch.keep());
        assert_eq!(next(&mut watch).await, Some(Told::Anything));
        fs::create_dir(&next_one).unwrap();
        fs::write(next_one.join("a"), "").unwrap();
        fs::remove_dir(&at).unwrap();
        fs::rename(&next_one, &at).unwrap();
        assert!(watch.keep());
        while watch.ready().is_some() {}
        fs::write(at.join("b"), "").unwrap();
        assert_eq!(next(&mut watch).await, Some(Told::File("b".into())));
    }
}
