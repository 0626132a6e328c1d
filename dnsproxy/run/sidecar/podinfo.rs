//! Who the pod is, as the downward API's volume tells: kubelet writes a file a field, and follows changes of labels and
//! annotations within a minute or so.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::engine::endpoint::PodRef;
use crate::engine::world::Mode;

/// The annotation that chooses between enforcing and auditing.
const MODE: &str = "namegate.io/mode";
/// Octets of a file at most: the API server takes 256 KiB of annotations, which quoting makes longer.
const FILE_OCTETS: u64 = 2 << 20;

/// The pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodInfo {
    /// Namespace and name.
    pub pod: PodRef,
    /// `metadata.uid`; empty if there is no such file.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `namegate.io/mode`, among the annotations or the labels.
    pub mode: Option<Mode>,
}

/// The files don't say who the pod is.
#[derive(Debug, thiserror::Error)]
pub enum PodInfoError {
    /// A file can't be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file says something else than the downward API writes.
    #[error("{}:{line}: found {found}; allowed is {allowed}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What stands there.
        found: String,
        /// What may stand there.
        allowed: &'static str,
    },
}

impl PodInfo {
    /// Reads the volume. All files are of one generation: kubelet changes them together, by the link `..data`.
    ///
    /// # Errors
    /// `name`, `namespace` or `labels` can't be read, or a file is not as the downward API writes it.
    pub fn read(directory: &Path) -> Result<PodInfo, PodInfoError> {
        let generation = || fs::canonicalize(directory.join("..data")).unwrap_or_else(|_| directory.to_owned());
        let mut at = generation();
        loop {
            let read = PodInfo::read_at(&at);
            let now = generation();
            if now == at {
                return read;
            }
            at = now; // kubelet changed it meanwhile, and removes the one before
        }
    }

    fn read_at(directory: &Path) -> Result<PodInfo, PodInfoError> {
        let name = word(directory, "name")?;
        let namespace = word(directory, "namespace")?;
        let labels = map(directory, "labels")?;
        let uid = optional(word(directory, "uid"))?;
        let annotations = optional(map(directory, "annotations"))?;
        let mode = match annotations.get(MODE).or_else(|| labels.get(MODE)).map(String::as_str) {
            None => None,
            Some("audit") => Some(Mode::Audit),
            Some("enforce") => Some(Mode::Enforce),
            Some(other) => {
                let path = directory.join("annotations");
                let allowed = "namegate.io/mode: audit or enforce";
                return Err(PodInfoError::Content { path, line: 1, found: format!("{MODE}: {other:?}"), allowed });
            }
        };
        Ok(PodInfo { pod: PodRef { namespace, name }, uid, labels, mode })
    }
}

/// A file that need not be there.
fn optional<T: Default>(read: Result<T, PodInfoError>) -> Result<T, PodInfoError> {
    match read {
        Err(PodInfoError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        read => read,
    }
}

fn read(directory: &Path, name: &str) -> Result<(PathBuf, String), PodInfoError> {
    let path = directory.join(name);
    let read = fs::metadata(&path).and_then(|found| match found.len() {
        octets if octets > FILE_OCTETS => {
            Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{octets} octets; the limit is {FILE_OCTETS}")))
        }
        _ => fs::read_to_string(&path),
    });
    match read {
        Ok(text) => Ok((path, text)),
        Err(source) => Err(PodInfoError::Read { path, source }),
    }
}

/// A file that holds one name.
fn word(directory: &Path, name: &str) -> Result<String, PodInfoError> {
    let (path, text) = read(directory, name)?;
    let text = text.trim_end_matches('\n');
    let good = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || matches!(octet, b'-' | b'.');
    if (1..=253).contains(&text.len()) && text.bytes().all(good) {
        return Ok(text.to_owned());
    }
    let found = format!("{:?}", text.chars().take(64).collect::<String>());
    Err(PodInfoError::Content { path, line: 1, found, allowed: "a name: 1 to 253 of a-z 0-9 - ." })
}

/// A file of lines `key="value"`, the value quoted as Go's %q quotes (fieldpath.FormatMap of Kubernetes).
fn map(directory: &Path, name: &str) -> Result<BTreeMap<String, String>, PodInfoError> {
    let (path, text) = read(directory, name)?;
    let mut found = BTreeMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let pair = line.split_once('=').filter(|(key, _)| !key.is_empty());
        let Some((key, value)) = pair.and_then(|(key, value)| Some((key, unquote(value)?))) else {
            let found = format!("{:?}", line.chars().take(64).collect::<String>());
            return Err(PodInfoError::Content { path, line: number + 1, found, allowed: "key=\"value\"" });
        };
        found.insert(key.to_owned(), value);
    }
    Ok(found)
}

/// The text of a Go string literal in double quotes.
fn unquote(text: &str) -> Option<String> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let mut octets = Vec::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(character) = rest.next() {
        let mut put = |character: char| octets.extend(character.encode_utf8(&mut [0; 4]).as_bytes());
        match character {
            '"' => return None,
            '\\' => {
                let escaped = rest.next()?;
                let mut number = |digits: usize| {
                    let text: String = rest.by_ref().take(digits).collect();
                    let hex = text.len() == digits && text.bytes().all(|digit| digit.is_ascii_hexdigit());
                    hex.then(|| u32::from_str_radix(&text, 16).ok()).flatten()
                };
                match escaped {
                    'a' => put('\u{7}'),
                    'b' => put('\u{8}'),
                    'f' => put('\u{c}'),
                    'n' => put('\n'),
                    'r' => put('\r'),
                    't' => put('\t'),
                    'v' => put('\u{b}'),
                    '\\' | '"' | '\'' => put(escaped),
                    'x' => octets.push(u8::try_from(number(2)?).ok()?),
                    'u' => put(char::from_u32(number(4)?)?),
                    'U' => put(char::from_u32(number(8)?)?),
                    _ => return None,
                }
            }
            character => put(character),
        }
    }
    String::from_utf8(octets).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn volume(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    #[test]
    fn a_pod_is_read_as_kubelet_writes_it() {
        let labels = "app=\"payment-processor\"\npod-template-hash=\"5d8c\"\nempty=\"\"";
        let annotations = "namegate.io/mode=\"audit\"\nnote=\"two\\nlines, a \\\"quote\\\", \\u00e9 and \\x01 a=b\"\n";
        let files = [("name", "reports-7"), ("namespace", "payments"), ("uid", "0a-1"), ("labels", labels)];
        let directory = volume(&[&files[..], &[("annotations", annotations)]].concat());
        let info = PodInfo::read(directory.path()).unwrap();
        assert_eq!((info.pod.to_string().as_str(), info.uid.as_str()), ("payments/reports-7", "0a-1"));
        assert_eq!(info.labels["app"], "payment-processor");
        assert_eq!(info.labels["empty"], "");
        assert_eq!(info.mode, Some(Mode::Audit));
        let quoted = "\"two\\nlines, a \\\"quote\\\", \\u00e9 and \\x01 a=b\"";
        assert_eq!(unquote(quoted).unwrap(), "two\nlines, a \"quote\", é and \u{1} a=b");
        let without = volume(&files[..3]);
        assert!(PodInfo::read(without.path()).unwrap_err().to_string().ends_with("labels"));
        let least = volume(&[files[0], files[1], ("labels", "")]);
        assert_eq!(PodInfo::read(least.path()).unwrap().mode, None);
    }

    #[test]
    fn all_files_are_of_the_generation_that_the_link_leads_to() {
        let directory = tempfile::tempdir().unwrap();
        let generation = directory.path().join("..2026");
        fs::create_dir(&generation).unwrap();
        for (name, text) in [("name", "a"), ("namespace", "b"), ("labels", "k=\"new\"")] {
            fs::write(generation.join(name), text).unwrap();
            fs::write(directory.path().join(name), "k=\"old\"").unwrap();
        }
        std::os::unix::fs::symlink("..2026", directory.path().join("..data")).unwrap();
        assert_eq!(PodInfo::read(directory.path()).unwrap().labels["k"], "new");
    }

    /// The reader waits at a pipe in the middle of the old generation, until the new one is in its place.
    #[test]
    fn a_volume_that_is_changed_while_it_is_read_is_read_again_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let [old, new] = ["..1", "..2"].map(|name| directory.path().join(name));
        for (generation, uid) in [(&old, "old"), (&new, "new")] {
            fs::create_dir(generation).unwrap();
            for (name, text) in [("name", "a"), ("namespace", "b"), ("uid", uid), ("labels", "k=\"new\"")] {
                fs::write(generation.join(name), text).unwrap();
            }
        }
        let pipe = old.join("labels");
        fs::remove_file(&pipe).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let [data, fresh] = ["..data", "..data_tmp"].map(|name| directory.path().join(name));
        std::os::unix::fs::symlink("..1", &data).unwrap();
        let change = std::thread::spawn(move || {
            let mut labels = fs::File::options().write(true).open(&pipe).unwrap(); // the reader is there
            std::os::unix::fs::symlink("..2", &fresh).unwrap();
            fs::rename(&fresh, &data).unwrap();
            fs::remove_dir_all(&old).unwrap();
            std::io::Write::write_all(&mut labels, b"k=\"old\"\n").unwrap();
        });
        let info = PodInfo::read(directory.path()).unwrap();
        change.join().unwrap();
        assert_eq!((info.uid.as_str(), info.labels["k"].as_str()), ("new", "new"));
    }

    #[test]
    fn what_the_downward_api_does_not_write_is_refused_with_its_place() {
        let files = |labels| volume(&[("name", "a"), ("namespace", "b"), ("labels", labels)]);
        for (labels, line) in [
            ("app=payments", 1),
            ("a=\"b\"\nno sign", 2),
            ("=\"x\"", 1),
            ("a=\"b\" c", 1),
            ("a=\"\\q\"", 1),
            ("a=\"\\x4\"", 1),
            ("a=\"\\xff\"", 1),
            ("a=\"b\"c\"", 1),
            ("a=\"", 1),
            ("a=\"\\\"", 1),
            ("namegate.io/mode=\"open\"", 1),
        ] {
            let said = PodInfo::read(files(labels).path()).unwrap_err().to_string();
            assert!(said.contains(&format!(":{line}: found ")) && said.contains("allowed is"), "{labels}: {said}");
        }
        for name in ["", "Upper", "a b", "a\nb"] {
            let directory = volume(&[("name", name), ("namespace", "b"), ("labels", "")]);
            assert!(PodInfo::read(directory.path()).unwrap_err().to_string().contains("name:1: found"), "{name:?}");
        }
    }
}
