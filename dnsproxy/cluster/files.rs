//! The files of a snapshot directory, as octets.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

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
    name.strip_suffix(".gz").unwrap_or(name).ends_with(".json")
}

/// All manifests below `dir`, by name: `*.yaml`, `*.yml`, `*.json`, also with `.gz`. Hidden files are skipped, links to
/// directories not followed.
///
/// # Errors
/// The directory can't be read. A file that can't be read is no error here.
pub fn read(dir: &Path) -> io::Result<Vec<File>> {
    let mut tries = 0;
    loop {
        tries += 1;
        let root = resolve(dir)?;
        let result = read_resolved(&root);
        // A mounted ConfigMap changes by a rename of `..data`: what was read is whole only if it is still the same.
        if tries == TRIES || resolve(dir).is_ok_and(|now| now == root) {
            return result;
        }
    }
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

fn read_resolved(root: &Path) -> io::Result<Vec<File>> {
    let mut names = Vec::new();
    list(root, String::new(), 0, &mut names)?;
    names.sort();
    let mut left = ALL_OCTETS;
    let files = names.into_iter().map(|name| {
        let content = read_file(&root.join(&name), left.min(FILE_OCTETS));
        left -= content.as_ref().map_or(0, |octets| octets.len() as u64);
        File { name, content }
    });
    Ok(files.collect())
}

fn list(root: &Path, below: String, depth: usize, names: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(&below))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if entry.file_type()?.is_dir() {
            if depth < DEPTH {
                list(root, path, depth + 1, names)?;
            }
        } else if is_manifest(&path) {
            names.push(path);
        }
    }
    Ok(())
}

fn is_manifest(name: &str) -> bool {
    let plain = name.strip_suffix(".gz").unwrap_or(name);
    [".yaml", ".yml", ".json"].iter().any(|ending| plain.ends_with(ending))
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
