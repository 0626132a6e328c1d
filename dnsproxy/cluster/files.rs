//! The files of a snapshot directory, as octets: all of them, or what changed since the last look.
//!
//! A file is not read again while its device, inode, size and times are as they were. Two writes within one tick of the
//! file system's clock look like one, so a file that changed shortly before a look is read at the next look too. What a
//! file says is told from what it said by a hash.
//!
//! What is fast: a file an object, or files of up to some hundred objects (as JSON lines or a `List`), replaced by a
//! rename. One file of everything is read and parsed as a whole at each change.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

use crate::clock;

/// The most octets of one file, unpacked.
pub const FILE_OCTETS: u64 = 256 << 20;
/// The most octets of all files, unpacked.
pub const ALL_OCTETS: u64 = 1 << 30;
/// How deep folders may be nested.
const DEPTH: usize = 8;
/// How often reading starts again when the directory changes underneath.
const TRIES: usize = 5;

/// One file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct File {
    /// Its path below the directory.
    pub name: String,
    /// What it holds, unpacked; or why it can't be read.
    pub content: Result<Vec<u8>, String>,
}

/// Whether a file is JSON by its name; otherwise it is YAML.
pub fn is_json(name: &str) -> bool {
    let plain = name.strip_suffix(".gz").unwrap_or(name);
    plain.rsplit_once('.').is_some_and(|(_, ending)| ending.eq_ignore_ascii_case("json"))
}

/// All manifests below `dir`, by name; see [`Directory`].
///
/// # Errors
/// The directory can't be read. A file that can't be read is no error here.
pub fn read(dir: &Path) -> io::Result<Vec<File>> {
    Directory::new(dir).look().map(|look| look.changed)
}

/// A hash of what a file holds.
pub type FileHash = [u8; 32];

/// A directory that is looked at again and again. Of its files `*.yaml`, `*.yml`, `*.json`, also with `.gz`; hidden ones are
/// skipped, links to directories not followed.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    known: BTreeMap<String, Known>,
}

/// What is new in a directory.
#[derive(Debug)]
pub struct Look {
    /// Files that are new, or say something else than at the last look; by name.
    pub changed: Vec<File>,
    /// Files that are not there any more; by name.
    pub gone: Vec<String>,
}

/// A file as it was read.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// None: to be read again.
    stamp: Option<Stamp>,
    hash: FileHash,
    octets: u64,
}

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

/// How old a change must be for the next one to be sure to have another time. Ticks have 10 ms at most, but network file
/// systems may know seconds only.
const SETTLED: Duration = Duration::from_secs(2);

impl Directory {
    /// Nothing is read yet.
    pub fn new(path: &Path) -> Directory {
        Directory { path: path.to_owned(), known: BTreeMap::new() }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What changed since the last look; at the first everything. `..data` in it is resolved once (a mounted ConfigMap), so
    /// that one generation is read and never half of two.
    ///
    /// # Errors
    /// The directory can't be read; the last look stands. A file that can't be read is no error here.
    pub fn look(&mut self) -> io::Result<Look> {
        let mut tries = 0;
        loop {
            tries += 1;
            let root = resolve(&self.path)?;
            let result = self.look_below(&root);
            // A mounted ConfigMap changes by a rename of `..data`: what was read is whole only if it is still the same.
            if tries == TRIES || resolve(&self.path).is_ok_and(|now| now == root) {
                let (known, look) = result?;
                self.known = known;
                return Ok(look);
            }
        }
    }

    fn look_below(&self, root: &Path) -> io::Result<(BTreeMap<String, Known>, Look)> {
        let now = clock::wall();
        let mut names = Vec::new();
        list(root, String::new(), 0, &mut names)?;
        names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut left = ALL_OCTETS;
        let mut known = BTreeMap::new();
        let mut changed = Vec::new();
        for (name, stamp) in names {
            let old = self.known.get(&name);
            if let Some(old) = old.filter(|old| stamp.is_some() && old.stamp == stamp && old.octets <= left) {
                left -= old.octets;
                known.insert(name, *old);
                continue;
            }
            let content = read_file(&root.join(&name), left.min(FILE_OCTETS));
            let octets = content.as_ref().map_or(0, |octets| octets.len() as u64);
            left -= octets;
            let hash = hash(&content);
            let stamp = stamp.filter(|stamp| content.is_ok() && stamp.is_settled(now));
            known.insert(name.clone(), Known { stamp, hash, octets });
            if old.is_none_or(|old| old.hash != hash) {
                changed.push(File { name, content });
            }
        }
        let gone = self.known.keys().filter(|name| !known.contains_key(*name)).cloned().collect();
        Ok((known, Look { changed, gone }))
    }

    /// A hash of all names and contents: the same hash is the same generation.
    pub fn generation_hash(&self) -> FileHash {
        generation_hash(self.known.iter().map(|(name, known)| (name.as_str(), known.hash)))
    }

    /// As if nothing had been read.
    pub fn forget(&mut self) {
        self.known.clear();
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a write after `now` is sure to leave another stamp. A time that is still to come never is.
    fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.modified.max(self.changed);
        let last = Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanoseconds).unwrap_or(0));
        now.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|now| last + SETTLED < now)
    }
}

/// What a file's content is told from another's by.
pub fn hash(content: &Result<Vec<u8>, String>) -> FileHash {
    let mut hash = Sha256::new();
    match content {
        Ok(octets) => hash.update(octets),
        Err(text) => hash.update(format!("unreadable\0{text}")),
    }
    hash.finalize().into()
}

/// The hash of a generation from those of its files, by name.
pub fn generation_hash<'n>(files: impl Iterator<Item = (&'n str, FileHash)>) -> FileHash {
    let mut hash = Sha256::new();
    for (name, file) in files {
        hash.update(format!("{name}\0"));
        hash.update(file);
    }
    hash.finalize().into()
}

/// The directory that holds the generation: where `..data` points to, else the directory itself.
fn resolve(dir: &Path) -> io::Result<PathBuf> {
    let data = dir.join("..data");
    match fs::symlink_metadata(&data) {
        Ok(_) => fs::canonicalize(data),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::canonicalize(dir),
        Err(error) => Err(error),
    }
}

/// Names below `root`, each with its stamp if it is a file that can be looked at.
fn list(root: &Path, below: String, depth: usize, names: &mut Vec<(String, Option<Stamp>)>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(&below))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if depth < DEPTH {
                list(root, path, depth + 1, names)?;
            }
        } else if is_manifest(&path) {
            let metadata = if kind.is_symlink() { fs::metadata(entry.path()) } else { entry.metadata() };
            names.push((path, metadata.ok().filter(Metadata::is_file).map(|metadata| Stamp::of(&metadata))));
        }
    }
    Ok(())
}

fn is_manifest(name: &str) -> bool {
    let plain = name.strip_suffix(".gz").unwrap_or(name);
    let ending = plain.rsplit_once('.').map_or("", |(_, ending)| ending);
    ["yaml", "yml", "json"].iter().any(|known| ending.eq_ignore_ascii_case(known))
}

fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    // Opening a pipe would wait for its writer.
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("no regular file; only regular files are read".to_owned());
    }
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let mut octets = Vec::new();
    let packed = path.extension().is_some_and(|extension| extension == "gz");
    let result = if packed {
        MultiGzDecoder::new(file).take(limit + 1).read_to_end(&mut octets)
    } else {
        file.take(limit + 1).read_to_end(&mut octets)
    };
    result.map_err(|error| error.to_string())?;
    if octets.len() as u64 > limit {
        return Err(format!("more than {limit} octets; a file may hold {FILE_OCTETS} and all files {ALL_OCTETS}"));
    }
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a change that is long over: nothing but its stamp can tell it from what was there.
    fn write_long_ago(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).unwrap();
    }

    fn looked(directory: &mut Directory) -> (Vec<String>, Vec<String>) {
        let look = directory.look().unwrap();
        (look.changed.into_iter().map(|file| file.name).collect(), look.gone)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_look_finds_what_is_new_what_says_something_else_and_what_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut directory = Directory::new(folder.path());
        for name in ["a.json", "b.yaml", "c.yml.gz"] {
            fs::write(at(name), "{}").unwrap();
        }
        assert_eq!(looked(&mut directory), (names(&["a.json", "b.yaml", "c.yml.gz"]), names(&[])));
        let first = directory.generation_hash();
        assert_eq!(looked(&mut directory), (names(&[]), names(&[])));
        assert_eq!(directory.generation_hash(), first);
        // Another file, the same words.
        fs::write(at("new"), "{}").unwrap();
        fs::rename(at("new"), at("a.json")).unwrap();
        assert_eq!(looked(&mut directory), (names(&[]), names(&[])));
        fs::write(at("b.yaml"), "[]").unwrap();
        fs::remove_file(at("a.json")).unwrap();
        assert_eq!(looked(&mut directory), (names(&["b.yaml"]), names(&["a.json"])));
        assert_ne!(directory.generation_hash(), first);
    }

    #[test]
    fn a_second_write_in_the_same_tick_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut directory = Directory::new(folder.path());
        for round in 0..200 {
            fs::write(folder.path().join("a.json"), format!("[{}]", round % 10)).unwrap();
            assert_eq!(looked(&mut directory).0, names(&["a.json"]), "write {round}");
        }
    }

    #[test]
    fn what_is_settled_is_not_read_again_until_its_stamp_changes() {
        let stamp = |changed: i64| Stamp { device: 1, inode: 1, size: 1, modified: (1, 0), changed: (changed, 0) };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert!(stamp(990).is_settled(now));
        assert!(!stamp(999).is_settled(now) && !stamp(2000).is_settled(now));
        // A modification time of long ago does not settle a file whose inode changed just now.
        let folder = tempfile::tempdir().unwrap();
        write_long_ago(&folder.path().join("a.json"), "[1]");
        let mut directory = Directory::new(folder.path());
        looked(&mut directory);
        write_long_ago(&folder.path().join("a.json"), "[2]");
        assert_eq!(looked(&mut directory).0, names(&["a.json"]));
    }

    #[test]
    fn a_file_that_can_not_be_read_is_new_when_it_can() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("a.json")).unwrap();
        let mut directory = Directory::new(folder.path());
        assert!(directory.look().unwrap().changed[0].content.is_err());
        assert_eq!(looked(&mut directory), (names(&[]), names(&[])), "the same error again");
        fs::write(folder.path().join("nowhere"), "{}").unwrap();
        assert_eq!(looked(&mut directory).0, names(&["a.json"]));
    }

    #[test]
    fn a_directory_that_can_not_be_read_is_an_error_and_what_was_known_stays_known() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("a.json"), "{}").unwrap();
        let mut directory = Directory::new(&inner);
        looked(&mut directory);
        fs::rename(&inner, folder.path().join("away")).unwrap();
        assert!(directory.look().is_err());
        fs::rename(folder.path().join("away"), &inner).unwrap();
        assert_eq!(looked(&mut directory), (names(&[]), names(&[])));
    }
}
