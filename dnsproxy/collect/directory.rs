//! The snapshot directory: one generation after the other, each put in place of the last by one rename.
//!
//! ```text
//! pods-0a.jsonl -> ..data/pods-0a.jsonl                      for people
//! ..data -> ..2026_11_21_20_40_00.123456789                  what the agent resolves, once a look
//! ..2026_11_21_20_40_00.123456789/pods-0a.jsonl -> ../..files/pods-0a.jsonl.5f0c…
//! ..files/pods-0a.jsonl.5f0c…                                written once, named after what it holds
//! ..work/                                                    what is being made
//! ```
//!
//! As the kubelet does with a mounted ConfigMap, but that a generation holds links and not copies: to the agent, which goes by
//! device, inode and times, a file that did not change is the same file. Hard links would not do: each changes the inode's
//! time, and everything would be read again.
//!
//! **Invariant:** whoever follows `..data` finds one generation, whole, also after a power cut: files and directories are
//! flushed before the rename.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::store::Files;
use crate::observe::text::rfc3339;

/// The link to the generation in force; the agent and the kubelet know it by this name.
const DATA: &str = "..data";
/// Where files are.
const FILES: &str = "..files";
/// Where a generation is made.
const WORK: &str = "..work";
/// With more new files than this the whole file system is flushed once.
const FEW_FILES: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    /// Held so that nobody else writes here.
    _lock: File,
    /// The generation in force: names of files and what they are called in [`FILES`].
    current: BTreeMap<String, String>,
    /// What has changed since, and was not written yet.
    pending: Files,
    /// Whether a generation was put in force by this process, or what was found is known to be what is wanted.
    written: bool,
}

/// Why the directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process writes to it.
    #[error("another namegate writes to {}; one is allowed", path.display())]
    Taken {
        /// The directory.
        path: PathBuf,
    },
    /// It can't be made or written to.
    #[error("{}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Directory {
    /// Takes the directory, which is made if it is not there. What an earlier run left in it stays in force.
    ///
    /// # Errors
    /// Another process has it, or it can't be made.
    pub fn open(root: &Path) -> Result<Directory, DirectoryError> {
        let failed = |source| DirectoryError::Io { path: root.to_owned(), source };
        let lock = make(root).and_then(|()| File::open(root)).map_err(failed)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => DirectoryError::Taken { path: root.to_owned() },
            TryLockError::Error(source) => failed(source),
        })?;
        let current = generation(&root.join(DATA)).map_err(failed)?;
        let (root, pending) = (root.to_owned(), Files::new());
        let directory = Directory { root, _lock: lock, current, pending, written: false };
        directory.prepare().map_err(failed)?;
        Ok(directory)
    }

    /// The names of the files that are in force.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.current.keys().map(String::as_str)
    }

    /// Puts these changes in force, and those that could not be written before. The first time `files` is everything.
    /// Whether there was a difference.
    ///
    /// # Errors
    /// Something can't be written; the generation before stays in force, and the changes are not lost.
    pub fn write(&mut self, files: Files, now: SystemTime) -> io::Result<bool> {
        self.pending.extend(files);
        let mut next = if self.written { self.current.clone() } else { BTreeMap::new() };
        let mut new: Vec<(&String, String, &Vec<u8>)> = Vec::new();
        for (name, content) in &self.pending {
            match content {
                Some(content) => {
                    let stored = stored_name(name, content);
                    next.insert(name.clone(), stored.clone());
                    new.push((name, stored, content));
                }
                None => drop(next.remove(name)),
            }
        }
        let differs = next != self.current || !self.root.join(DATA).exists();
        if differs {
            self.prepare()?;
            self.store(&new)?;
            self.swap(&next, now)?;
            self.current = next;
            self.tidy();
        }
        self.pending.clear();
        self.written = true;
        Ok(differs)
    }

    fn prepare(&self) -> io::Result<()> {
        make(&self.root.join(FILES))?;
        // What is in there was never in force.
        match fs::remove_dir_all(self.root.join(WORK)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => make(&self.root.join(WORK)),
        }
    }

    /// Writes what is not there yet, flushed.
    fn store(&self, new: &[(&String, String, &Vec<u8>)]) -> io::Result<()> {
        let files = self.root.join(FILES);
        let missing: Vec<_> = new.iter().filter(|(_, stored, _)| !files.join(stored).exists()).collect();
        let made = missing.iter().map(|(_, stored, content)| {
            let path = self.root.join(WORK).join(stored);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path)?;
            file.write_all(content)?;
            if missing.len() <= FEW_FILES {
                file.sync_all()?;
            }
            Ok((path, stored))
        });
        let made = made.collect::<io::Result<Vec<_>>>()?;
        if made.len() > FEW_FILES {
            flush_file_system(&self.root)?;
        }
        // What bears its name is whole: only now does it get it.
        for (path, stored) in &made {
            fs::rename(path, files.join(stored))?;
        }
        if made.is_empty() { Ok(()) } else { File::open(files)?.sync_all() }
    }

    fn swap(&self, next: &BTreeMap<String, String>, now: SystemTime) -> io::Result<()> {
        let name = format!("..{}", rfc3339(now).trim_end_matches('Z').replace(['-', 'T', ':'], "_"));
        let work = self.root.join(WORK);
        let made = work.join(&name);
        DirBuilder::new().mode(0o755).create(&made)?;
        for (file, stored) in next {
            symlink(format!("../{FILES}/{stored}"), made.join(file))?;
        }
        File::open(&made)?.sync_all()?;
        symlink(&name, work.join(DATA))?;
        // One after the other, so that whoever watches the directory is told once.
        fs::rename(&made, self.root.join(&name))?;
        fs::rename(work.join(DATA), self.root.join(DATA))?;
        File::open(&self.root)?.sync_all()
    }

    /// Takes away what is not in force any more, and sees to the links for people. What can't be done now is done next time.
    fn tidy(&self) {
        if let Err(error) = self.try_tidy() {
            tracing::debug!(%error, "the snapshot directory can't be tidied up");
        }
    }

    fn try_tidy(&self) -> io::Result<()> {
        let in_force = fs::read_link(self.root.join(DATA))?;
        let mut seen = BTreeSet::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if entry.file_type()?.is_symlink() && name != DATA {
                if self.current.contains_key(name) {
                    seen.insert(name.to_owned());
                } else if fs::read_link(entry.path())?.starts_with(DATA) {
                    fs::remove_file(entry.path())?;
                }
            } else if is_generation(name) && Path::new(name) != in_force {
                fs::remove_dir_all(entry.path())?;
            }
        }
        for name in self.current.keys().filter(|name| !seen.contains(*name)) {
            symlink(format!("{DATA}/{name}"), self.root.join(name))?;
        }
        let stored: BTreeSet<&str> = self.current.values().map(String::as_str).collect();
        for entry in fs::read_dir(self.root.join(FILES))? {
            let entry = entry?;
            if entry.file_name().to_str().is_none_or(|name| !stored.contains(name)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)
}

/// `..2026_11_21_20_40_00.123456789`.
fn is_generation(name: &str) -> bool {
    name.strip_prefix("..").is_some_and(|time| time.starts_with(|first: char| first.is_ascii_digit()))
}

/// What a file with this content is called. Two contents of one name are as likely as two equal halves of a SHA-256.
fn stored_name(name: &str, content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    let hash: String = hash.iter().take(16).map(|octet| format!("{octet:02x}")).collect();
    format!("{name}.{hash}")
}

/// The files of the generation that is in force, by name; nothing if there is none, or it is none that was made here.
fn generation(data: &Path) -> io::Result<BTreeMap<String, String>> {
    let entries = match fs::read_dir(data) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut files = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let stored = target.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if let Ok(name) = entry.file_name().into_string() {
            files.insert(name, stored);
        }
    }
    Ok(files)
}

/// syncfs(2): many small files at once.
fn flush_file_system(path: &Path) -> io::Result<()> {
    let directory = File::open(path)?;
    // SAFETY: takes a descriptor that is open.
    match unsafe { libc::syncfs(directory.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::time::Duration;

    use super::*;
    use crate::cluster::files;

    fn files(entries: &[(&str, Option<&str>)]) -> Files {
        entries.iter().map(|(name, text)| ((*name).to_owned(), text.map(|text| text.as_bytes().to_vec()))).collect()
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    /// What the agent reads.
    fn read(root: &Path) -> BTreeMap<String, String> {
        let text = |file: files::File| (file.name, String::from_utf8(file.content.expect("readable")).expect("text"));
        files::read(root).expect("a directory").into_iter().map(text).collect()
    }

    fn owned(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn a_generation_takes_the_place_of_the_last_and_only_what_changed_is_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("deep/snapshot");
        let mut directory = Directory::open(&root).unwrap();
        assert!(directory.write(files(&[("a-00.json", Some("1")), ("b-00.json", Some("2"))]), at(1)).unwrap());
        assert_eq!(read(&root), owned(&[("a-00.json", "1"), ("b-00.json", "2")]));
        assert_eq!(fs::read_link(root.join("..data")).unwrap(), Path::new("..1970_01_01_00_00_01.000000000"));
        let inode = |name: &str| fs::metadata(root.join(name)).map(|metadata| (metadata.ino(), metadata.ctime_nsec()));
        let before = (inode("a-00.json").unwrap(), inode("b-00.json").unwrap());
        let mut agent = files::Directory::new(&root);
        agent.look().unwrap();

        assert!(directory.write(files(&[("a-00.json", Some("3"))]), at(2)).unwrap());
        let after = (inode("a-00.json").unwrap(), inode("b-00.json").unwrap());
        assert!(before.0 != after.0 && before.1 == after.1, "{before:?} {after:?}");
        let changed: Vec<String> = agent.look().unwrap().changed.into_iter().map(|file| file.name).collect();
        assert_eq!(changed, ["a-00.json"]);

        assert!(!directory.write(files(&[("a-00.json", Some("3")), ("c-00.json", None)]), at(3)).unwrap());
        assert!(directory.write(files(&[("b-00.json", None), ("c-00.json", Some("4"))]), at(4)).unwrap());
        assert_eq!(read(&root), owned(&[("a-00.json", "3"), ("c-00.json", "4")]));
        let mut left: Vec<String> =
            fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort_unstable();
        let expected = ["..1970_01_01_00_00_04.000000000", "..data", "..files", "..work", "a-00.json", "c-00.json"];
        assert_eq!(left, expected);
        assert_eq!(fs::read_dir(root.join("..files")).unwrap().count(), 2);
        assert_eq!(fs::read_dir(root.join("..work")).unwrap().count(), 0);
        assert_eq!(fs::metadata(root.join("a-00.json")).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn who_starts_again_leaves_in_force_what_is_there_until_it_knows_everything() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let mut directory = Directory::open(root).unwrap();
        directory.write(files(&[("a-00.json", Some("1")), ("b-00.json", Some("2"))]), at(1)).unwrap();
        assert!(matches!(Directory::open(root), Err(DirectoryError::Taken { .. })));
        drop(directory);
        // It was killed while it made the next one.
        fs::create_dir(root.join("..work/..1970_01_01_00_00_02.000000000")).unwrap();
        fs::write(root.join("..files/b-00.json.half"), "").unwrap();
        let mut directory = Directory::open(root).unwrap();
        assert_eq!(directory.names().collect::<Vec<_>>(), ["a-00.json", "b-00.json"]);
        assert!(!directory.written);
        assert_eq!(read(root), owned(&[("a-00.json", "1"), ("b-00.json", "2")]));
        assert!(!directory.write(files(&[("a-00.json", Some("1")), ("b-00.json", Some("2"))]), at(3)).unwrap());
        assert!(directory.written);
        drop(directory);
        // The first write is everything: what it doesn't name is gone.
        let mut directory = Directory::open(root).unwrap();
        assert!(directory.write(files(&[("a-00.json", Some("1"))]), at(4)).unwrap());
        assert_eq!(read(root), owned(&[("a-00.json", "1")]));
        assert_eq!(fs::read_dir(root.join("..files")).unwrap().count(), 1);
    }

    #[test]
    fn an_empty_cluster_is_a_generation_too() {
        let folder = tempfile::tempdir().unwrap();
        let mut directory = Directory::open(folder.path()).unwrap();
        assert!(directory.write(Files::new(), at(1)).unwrap());
        assert!(folder.path().join("..data").is_dir() && read(folder.path()).is_empty());
    }

    #[test]
    fn what_could_not_be_written_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let mut directory = Directory::open(root).unwrap();
        directory.write(files(&[("a-00.json", Some("1"))]), at(1)).unwrap();
        // In the way, as a full disk would be.
        fs::remove_dir(root.join("..work")).unwrap();
        fs::write(root.join("..work"), "").unwrap();
        directory.write(files(&[("b-00.json", Some("2"))]), at(2)).unwrap_err();
        assert_eq!(read(root), owned(&[("a-00.json", "1")]));
        fs::remove_file(root.join("..work")).unwrap();
        assert!(directory.write(files(&[("c-00.json", Some("3"))]), at(3)).unwrap());
        assert_eq!(read(root), owned(&[("a-00.json", "1"), ("b-00.json", "2"), ("c-00.json", "3")]));
    }
}
