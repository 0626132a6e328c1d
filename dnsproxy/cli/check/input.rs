//! Files, directories and standard input as the files of one snapshot, named as the command line names them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::SkippedFile;
use crate::cluster::files::{self, ENDINGS, FILE_OCTETS, File, Skipped};

/// What standard input is called.
pub(super) const STDIN: &str = "stdin";

/// All files that `paths` mean, each once, and what lies in directories and isn't read.
///
/// # Errors
/// A path is not there, or there is nothing to read in any.
pub(super) fn read(paths: &[PathBuf]) -> Result<(Vec<File>, Vec<SkippedFile>), String> {
    let mut all: Vec<File> = Vec::new();
    let mut skipped = Vec::new();
    let mut known = BTreeSet::new();
    for path in paths {
        let found = if path.as_os_str() == "-" {
            vec![standard_input()?]
        } else if path.is_dir() {
            skipped.extend(passed_over(path)?);
            directory(path)?
        } else if path.exists() {
            vec![File { name: shown(path), content: file(path) }]
        } else {
            return Err(format!("{}: nothing is there; files, directories and - are allowed", path.display()));
        };
        for file in found {
            if known.insert(file.name.clone()) {
                all.push(file);
            }
        }
    }
    if all.is_empty() {
        let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        return Err(format!("{}: no file to check; {ENDINGS} are read", names.join(", ")));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    skipped.sort_unstable();
    skipped.dedup();
    skipped.retain(|skipped| !known.contains(&skipped.file));
    Ok((all, skipped))
}

fn passed_over(path: &Path) -> Result<Vec<SkippedFile>, String> {
    let found = files::skipped(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let named = |Skipped { name, why }| SkippedFile { file: shown(&path.join(name)), why: why.into() };
    Ok(found.into_iter().map(named).collect())
}

fn directory(path: &Path) -> Result<Vec<File>, String> {
    let found = files::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(found.into_iter().map(|file| File { name: shown(&path.join(&file.name)), ..file }).collect())
}

/// A file that is named is read whatever its ending is, a pipe too: `namegate check <(kustomize build .)`.
fn file(path: &Path) -> Result<Vec<u8>, String> {
    let stream = fs::File::open(path).map_err(|error| error.to_string())?;
    if path.extension().is_some_and(|ending| ending == "gz") {
        limited(MultiGzDecoder::new(stream))
    } else {
        limited(stream)
    }
}

/// JSON is told from YAML by its first character: there is no name to tell by.
fn standard_input() -> Result<File, String> {
    let octets = limited(io::stdin().lock()).map_err(|error| format!("standard input: {error}"))?;
    let json = octets.iter().find(|octet| !octet.is_ascii_whitespace()) == Some(&b'{');
    let name = if json { format!("{STDIN}.json") } else { STDIN.to_owned() };
    Ok(File { name, content: Ok(octets) })
}

fn limited(stream: impl Read) -> Result<Vec<u8>, String> {
    let mut octets = Vec::new();
    stream.take(FILE_OCTETS + 1).read_to_end(&mut octets).map_err(|error| error.to_string())?;
    if octets.len() as u64 > FILE_OCTETS {
        return Err(format!("more than {FILE_OCTETS} octets; a file may hold that many"));
    }
    Ok(octets)
}

/// A path as findings name it: without a leading `./`.
fn shown(path: &Path) -> String {
    path.strip_prefix(".").unwrap_or(path).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_directories_are_one_snapshot_and_each_file_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("below")).unwrap();
        for name in ["b.YAML", "a.json", "notes.txt", "below/c.Yml"] {
            fs::write(at(name), name).unwrap();
        }
        fs::write(at("more.txt"), "").unwrap();
        let (files, skipped) = read(&[at("notes.txt"), dir.path().to_owned(), at("b.YAML")]).unwrap();
        let names: Vec<&Path> = files.iter().map(|file| Path::new(&file.name)).collect();
        let below = |path: &Path| path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned();
        assert_eq!(
            names.iter().map(|name| below(name)).collect::<Vec<_>>(),
            ["a.json", "b.YAML", "below/c.Yml", "notes.txt"]
        );
        assert_eq!(files[3].content.as_deref(), Ok(&b"notes.txt"[..]));
        // What is named is read, and not passed over.
        let skipped: Vec<String> = skipped.iter().map(|skipped| below(Path::new(&skipped.file))).collect();
        assert_eq!(skipped, ["more.txt"]);
    }

    #[test]
    fn what_is_not_there_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&[dir.path().join("x")]).unwrap_err().contains("nothing is there"));
        assert!(read(&[dir.path().to_owned()]).unwrap_err().contains("no file to check"));
    }
}
