//! The files of a snapshot directory, as octets: all of them, or what changed since the last look.
//!
//! A file is not read again while its device, inode, size and times are as they were. Two writes within one tick of the
//! file system's clock look like one, so a file that changed shortly before a look is read at the next look too. What a
//! file says is told from what it said by a hash.
//!
//! What is fast: a file an object, or files of up to some hundred objects (as JSON lines or a `List`), replaced by a
//! rename. One file of everything is read and parsed as a whole at each change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
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

/// The endings of files that are read, for people.
pub const ENDINGS: &str = "*.yaml, *.yml, *.json, *.jsonl and *.ndjson, also with .gz";
/// Those of YAML.
const YAML: [&str; 2] = ["yaml", "yml"];
/// Those of JSON: one value or several after each other.
const JSON: [&str; 3] = ["json", "jsonl", "ndjson"];

/// Whether a file is JSON by its name; otherwise it is YAML.
pub fn is_json(name: &str) -> bool {
    has_ending(name, &JSON)
}

/// What a look passes over.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Skipped {
    /// Its path below the directory.
    pub name: String,
    /// Why it isn't read.
    pub why: SkippedFor,
}

/// Why something isn't read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SkippedFor {
    /// Its name begins with a dot; a folder is passed over with all that it holds.
    Hidden,
    /// Its name ends in none of [`ENDINGS`].
    Ending,
    /// A folder below too many others.
    Depth,
}

/// What [`read`] passes over, by name. What a mounted ConfigMap consists of (`..data`) is not among it.
///
/// # Errors
/// The directory can't be read.
pub fn skipped(dir: &Path) -> io::Result<Vec<Skipped>> {
    let mut skipped = Vec::new();
    list(&Root::of(dir)?.path, String::new(), 0, &mut Vec::new(), &mut skipped)?;
    skipped.sort_unstable();
    Ok(skipped)
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

/// A directory that is looked at again and again. Of its files those of [`ENDINGS`]; hidden ones are skipped, links to
/// directories not followed.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Where the generation was that was read last.
    root: Option<Root>,
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

/// The directory that holds one generation.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Root {
    path: PathBuf,
    /// Another directory may be put in its place.
    device: u64,
    inode: u64,
}

/// A file that was come across.
struct Found {
    name: String,
    /// If it is a file that can be looked at.
    stamp: Option<Stamp>,
    /// Why it isn't read.
    fault: Option<&'static str>,
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
        Directory { path: path.to_owned(), root: None, known: BTreeMap::new() }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What changed since the last look; at the first everything. `..data` in it is resolved once (a mounted ConfigMap), so
    /// that one generation is read and never half of two.
    ///
    /// # Errors
    /// The directory can't be read, or is another one each time that it was; the last look stands. A file that can't be read
    /// is no error here.
    pub fn look(&mut self) -> io::Result<Look> {
        for _ in 0..TRIES {
            let root = Root::of(&self.path)?;
            let result = self.look_below(&root.path);
            // A mounted ConfigMap changes by a rename of `..data`: what was read is whole only if it is still the same.
            if Root::of(&self.path).is_ok_and(|now| now == root) {
                let (known, look) = result?;
                self.known = known;
                self.root = Some(root);
                return Ok(look);
            }
        }
        Err(io::Error::other(format!(
            "replaced while it was read, {TRIES} times; it must rest for as long as that takes"
        )))
    }

    /// The same, when nothing but these names directly in the directory can have changed: of the others not even the stamp is
    /// looked at. Where that can't be told, everything is.
    ///
    /// # Errors
    /// As [`Directory::look`].
    pub fn look_at(&mut self, names: &BTreeSet<String>) -> io::Result<Look> {
        let root = Root::of(&self.path)?;
        let is_folder = |name: &String| {
            let first = format!("{name}/");
            root.path.join(name).is_dir()
                || self.known.range(first.clone()..).next().is_some_and(|(at, _)| at.starts_with(&first))
        };
        let plain = |name: &String| !name.starts_with("..") && !name.contains('/') && !is_folder(name);
        if self.root.as_ref() != Some(&root) || !names.iter().all(plain) {
            return self.look();
        }
        let now = clock::wall();
        let mut look = Look { changed: Vec::new(), gone: Vec::new() };
        let mut known = Vec::new();
        let mut left = ALL_OCTETS.saturating_sub(self.known.values().map(|known| known.octets).sum());
        for name in names.iter().filter(|name| !name.starts_with('.') && is_manifest(name)) {
            let path = root.path.join(name);
            let old = self.known.get(name).copied();
            left += old.map_or(0, |old| old.octets);
            if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                look.gone.extend(old.map(|_| name.clone()));
                continue;
            }
            let (met, content) = meet(Stamp::at(&path), old, left, now, |limit| read_file(&path, limit));
            left -= met.octets;
            known.push((name.clone(), met));
            look.changed.extend(content.map(|content| File { name: name.clone(), content }));
        }
        if !Root::of(&self.path).is_ok_and(|now| now == root) {
            return self.look();
        }
        for name in &look.gone {
            self.known.remove(name);
        }
        self.known.extend(known);
        Ok(look)
    }

    fn look_below(&self, root: &Path) -> io::Result<(BTreeMap<String, Known>, Look)> {
        let now = clock::wall();
        let mut found = Vec::new();
        list(root, String::new(), 0, &mut found, &mut Vec::new())?;
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let mut left = ALL_OCTETS;
        let mut changed = Vec::new();
        let mut known = Vec::with_capacity(found.len());
        for Found { name, stamp, fault } in found {
            let read = |limit| fault.map_or_else(|| read_file(&root.join(&name), limit), |fault| Err(fault.to_owned()));
            let (met, content) = meet(stamp, self.known.get(&name).copied(), left, now, read);
            left -= met.octets;
            changed.extend(content.map(|content| File { name: name.clone(), content }));
            known.push((name, met));
        }
        // Sorted already: this is the fast way to make a map.
        let known: BTreeMap<String, Known> = known.into_iter().collect();
        let gone = self.known.keys().filter(|name| !known.contains_key(*name)).cloned().collect();
        Ok((known, Look { changed, gone }))
    }

    /// A hash of all names and contents: the same hash is the same generation.
    pub fn generation_hash(&self) -> FileHash {
        generation_hash(self.known.iter().map(|(name, known)| (name.as_str(), known.hash)))
    }
}

/// What is known of a file now; its content if that is new. `left`: how many octets it may have at most.
fn meet(
    stamp: Option<Stamp>,
    old: Option<Known>,
    left: u64,
    now: SystemTime,
    read: impl FnOnce(u64) -> Result<Vec<u8>, String>,
) -> (Known, Option<Result<Vec<u8>, String>>) {
    if let Some(old) = old.filter(|old| stamp.is_some() && old.stamp == stamp && old.octets <= left) {
        return (old, None);
    }
    let content = read(left.min(FILE_OCTETS));
    let octets = content.as_ref().map_or(0, |octets| octets.len() as u64);
    let hash = hash(&content);
    let stamp = stamp.filter(|stamp| content.is_ok() && stamp.is_settled(now));
    (Known { stamp, hash, octets }, Some(content).filter(|_| old.is_none_or(|old| old.hash != hash)))
}

impl Stamp {
    /// That of a file; `None` if there is none that can be read.
    fn at(path: &Path) -> Option<Stamp> {
        fs::metadata(path).ok().filter(Metadata::is_file).map(|metadata| Stamp::of(&metadata))
    }

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

impl Root {
    /// Where `..data` points to, else the directory itself.
    fn of(dir: &Path) -> io::Result<Root> {
        let data = dir.join("..data");
        let path = match fs::symlink_metadata(&data) {
            Ok(_) => fs::canonicalize(data)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::canonicalize(dir)?,
            Err(error) => return Err(error),
        };
        let metadata = fs::metadata(&path)?;
        Ok(Root { path, device: metadata.dev(), inode: metadata.ino() })
    }
}

/// What lies below `root`.
fn list(
    root: &Path,
    below: String,
    depth: usize,
    found: &mut Vec<Found>,
    skipped: &mut Vec<Skipped>,
) -> io::Result<()> {
    for entry in fs::read_dir(root.join(&below))? {
        let entry = entry?;
        let name = entry.file_name();
        let (name, fault) = match name.to_str() {
            Some(name) => (name.to_owned(), None),
            None => (name.as_bytes().escape_ascii().to_string(), Some("its name is not UTF-8; the names of files are")),
        };
        let (hidden, of_mount) = (name.starts_with('.'), name.starts_with(".."));
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if hidden {
            skipped.extend((!of_mount).then_some(Skipped { name: path, why: SkippedFor::Hidden }));
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() && fault.is_none() {
            if depth < DEPTH {
                list(root, path, depth + 1, found, skipped)?;
            } else {
                skipped.push(Skipped { name: path, why: SkippedFor::Depth });
            }
        } else if kind.is_dir() {
            let fault = Some("its name is not UTF-8; the names of folders are");
            found.push(Found { name: path, stamp: None, fault });
        } else if is_manifest(&path) {
            let metadata = if kind.is_symlink() { fs::metadata(entry.path()) } else { entry.metadata() };
            let stamp = metadata.ok().filter(|metadata| metadata.is_file() && fault.is_none());
            found.push(Found { name: path, stamp: stamp.map(|metadata| Stamp::of(&metadata)), fault });
        } else {
            skipped.push(Skipped { name: path, why: SkippedFor::Ending });
        }
    }
    Ok(())
}

fn is_manifest(name: &str) -> bool {
    has_ending(name, &YAML) || has_ending(name, &JSON)
}

fn has_ending(name: &str, endings: &[&str]) -> bool {
    let plain = name.strip_suffix(".gz").unwrap_or(name);
    let ending = plain.rsplit_once('.').map_or("", |(_, ending)| ending);
    endings.iter().any(|known| ending.eq_ignore_ascii_case(known))
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
mod tests;
