//! The CNI's result cache: what a container runtime writes down of each interface that it had made for a pod.
//!
//! containerd and CRI-O do so through libcni, whichever plugin it was: a file `results/NETWORK-CONTAINER-INTERFACE` below
//! `/var/lib/cni`, written when the last plugin has succeeded and removed when the interface is (`cachedInfo` of libcni's
//! api.go, kind `cniCacheV1`). It says whose the interface is (`cniArgs`), what was made (`result.interfaces`: those without
//! a sandbox are the host's) and which addresses it got (`result.ips`; `ip4` and `ip6` before CNI 0.3).
//!
//! What plugins say differs: bridge and ptp name the bridge, the host's veth and the pod's interface; the AWS VPC CNI the
//! host's, the pod's and a dummy in sandbox "0"; Calico only the host's, and no index with an address.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::engine::endpoint::PodRef;

/// The most octets of a file: its configuration and result are a few thousand.
const MAX_OCTETS: u64 = 1 << 20;
/// The most octets of an interface's name (IFNAMSIZ, less its NUL).
const NAME_OCTETS: usize = 15;
/// A file that was written so lately may not be finished: libcni writes it in place.
const UNFINISHED: Duration = Duration::from_secs(1);

/// What one file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cached {
    /// Whose interface it is.
    pub pod: PodRef,
    /// `metadata.uid` of the pod, if the runtime passed it.
    pub uid: Option<String>,
    /// The sandbox: the same for all interfaces of a pod.
    pub container: String,
    /// The interface's name in the pod.
    pub inside: String,
    /// The file of the pod's network namespace: what libcni says if it is new enough, else what the plugin does.
    pub namespace: Option<PathBuf>,
    /// Names of what was made on the host's side: the veth, and with some plugins the bridge.
    pub outside: Vec<String>,
    /// The pod's addresses on it.
    pub addresses: Vec<IpAddr>,
}

/// Why a file says nothing.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// It can't be read.
    #[error("it can't be read")]
    Read(#[from] io::Error),
    /// It is too long.
    #[error("it has {0} octets; at most {MAX_OCTETS} are read")]
    TooLong(u64),
    /// It is no JSON.
    #[error("it is no JSON")]
    Json(#[from] serde_json::Error),
    /// Something in it is not as it should be.
    #[error("{path} is {found}; allowed is {allowed}")]
    Field {
        /// Where.
        path: String,
        /// What stands there.
        found: String,
        /// What may.
        allowed: &'static str,
    },
}

/// What a file says; none: that of an interface which is no pod's.
///
/// # Errors
/// It is not as libcni writes it.
pub fn parse(text: &[u8]) -> Result<Option<Cached>, CniError> {
    let value: Value = serde_json::from_slice(text)?;
    let top = value.as_object().ok_or_else(|| wrong("the file", Some(&value), "an object"))?;
    if top.get("kind").and_then(Value::as_str) != Some("cniCacheV1") {
        return Err(wrong("kind", top.get("kind"), "\"cniCacheV1\""));
    }
    let container = word(top, "containerId", "a container's name", |text| !text.is_empty())?;
    let inside = word(top, "ifName", "an interface's name", is_interface)?;
    let Some((pod, uid)) = pod(top)? else { return Ok(None) };
    let result = top.get("result").and_then(Value::as_object);
    let result = result.ok_or_else(|| wrong("result", top.get("result"), "an object"))?;
    let (mut outside, made) = interfaces(result)?;
    let namespace = namespace(top, result, &inside);
    outside.retain(|name| *name != inside); // a plugin that leaves the sandbox out does not mean the host's own
    let addresses = addresses(result, made)?;
    Ok(Some(Cached { pod, uid, container, inside, namespace, outside, addresses }))
}

/// `cniArgs` is a list of pairs. A runtime that serves others too passes no pod.
fn pod(top: &Map<String, Value>) -> Result<Option<(PodRef, Option<String>)>, CniError> {
    let mut found: BTreeMap<&str, &str> = BTreeMap::new();
    for (index, pair) in list(top, "cniArgs", "cniArgs")?.iter().enumerate() {
        let both = pair.as_array().map(Vec::as_slice);
        let Some([Value::String(key), Value::String(value)]) = both else {
            return Err(wrong(&format!("cniArgs[{index}]"), Some(pair), "a pair of texts"));
        };
        found.insert(key, value);
    }
    let (namespace, name) = (found.get("K8S_POD_NAMESPACE"), found.get("K8S_POD_NAME"));
    if namespace.is_none() && name.is_none() {
        return Ok(None);
    }
    let checked = |key: &str, value: Option<&&str>| match value {
        Some(text) if is_object(text) => Ok((*text).to_owned()),
        other => {
            let found = other.map(|text| Value::from(*text));
            Err(wrong(&format!("cniArgs {key}"), found.as_ref(), "the name of a Kubernetes object"))
        }
    };
    let pod = PodRef { namespace: checked("K8S_POD_NAMESPACE", namespace)?, name: checked("K8S_POD_NAME", name)? };
    let uid = found.get("K8S_POD_UID").filter(|uid| !uid.is_empty() && uid.len() <= 128);
    Ok(Some((pod, uid.map(|uid| (*uid).to_owned()))))
}

/// The host's interfaces, and how many there are in all.
fn interfaces(result: &Map<String, Value>) -> Result<(Vec<String>, usize), CniError> {
    let all = list(result, "interfaces", "result.interfaces")?;
    let mut outside = Vec::new();
    for (index, interface) in all.iter().enumerate() {
        let path = || format!("result.interfaces[{index}]");
        let fields = interface.as_object().ok_or_else(|| wrong(&path(), Some(interface), "an object"))?;
        let name = fields.get("name").and_then(Value::as_str).filter(|name| is_interface(name));
        let name = name.ok_or_else(|| wrong(&format!("{}.name", path()), fields.get("name"), "an interface's name"))?;
        match fields.get("sandbox") {
            None | Some(Value::Null) => outside.push(name.to_owned()),
            Some(Value::String(sandbox)) if sandbox.is_empty() => outside.push(name.to_owned()),
            Some(Value::String(_)) => (),
            other => return Err(wrong(&format!("{}.sandbox", path()), other, "a text")),
        }
    }
    Ok((outside, all.len()))
}

/// Only whole paths: AWS's plugin has a dummy in sandbox "0".
fn namespace(top: &Map<String, Value>, result: &Map<String, Value>, inside: &str) -> Option<PathBuf> {
    let text = |value: Option<&Value>| value?.as_str().map(PathBuf::from).filter(|path| path.is_absolute());
    let made = result.get("interfaces").and_then(Value::as_array).into_iter().flatten();
    let mut own = made.filter(|interface| interface.get("name").and_then(Value::as_str) == Some(inside));
    text(top.get("netns")).or_else(|| own.find_map(|interface| text(interface.get("sandbox"))))
}

fn addresses(result: &Map<String, Value>, interfaces: usize) -> Result<Vec<IpAddr>, CniError> {
    let mut found = Vec::new();
    for (index, ip) in list(result, "ips", "result.ips")?.iter().enumerate() {
        let path = |field: &str| format!("result.ips[{index}].{field}");
        match ip.get("interface") {
            None | Some(Value::Null) => (),
            Some(at) if at.as_u64().is_some_and(|at| at < interfaces as u64) => (),
            other => return Err(wrong(&path("interface"), other, "the number of one of result.interfaces")),
        }
        found.push(address(&path("address"), ip.get("address"))?);
    }
    for old in ["ip4", "ip6"] {
        if let Some(ip) = result.get(old).filter(|ip| !ip.is_null()) {
            found.push(address(&format!("result.{old}.ip"), ip.get("ip"))?);
        }
    }
    let mut seen = BTreeSet::new();
    found.retain(|address| seen.insert(*address));
    Ok(found)
}

/// An address that a pod can have, with the length of its network or without.
fn address(path: &str, value: Option<&Value>) -> Result<IpAddr, CniError> {
    let text = value.and_then(Value::as_str).unwrap_or_default();
    let parsed = text.parse::<IpNet>().map(|net| net.addr()).or_else(|_| text.parse::<IpAddr>()).ok();
    let fits = |address: &IpAddr| {
        let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || mapped)
    };
    parsed.filter(fits).ok_or_else(|| wrong(path, value, "an address that a pod can have, as 198.51.100.10/32"))
}

fn list<'v>(fields: &'v Map<String, Value>, key: &str, path: &str) -> Result<&'v [Value], CniError> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        other => Err(wrong(path, other, "a list")),
    }
}

fn word(
    fields: &Map<String, Value>,
    key: &str,
    allowed: &'static str,
    fits: impl Fn(&str) -> bool,
) -> Result<String, CniError> {
    let found = fields.get(key);
    let text = found.and_then(Value::as_str).filter(|text| fits(text));
    text.map(str::to_owned).ok_or_else(|| wrong(key, found, allowed))
}

fn wrong(path: &str, found: Option<&Value>, allowed: &'static str) -> CniError {
    let found = match found {
        None => "missing".to_owned(),
        Some(Value::Array(items)) => format!("a list of {}", items.len()),
        Some(Value::Object(_)) => "an object".to_owned(),
        Some(Value::String(text)) => format!("{:?}", text.chars().take(64).collect::<String>()),
        Some(other) => other.to_string(),
    };
    CniError::Field { path: path.to_owned(), found, allowed }
}

/// As the kernel's `dev_valid_name`.
fn is_interface(name: &str) -> bool {
    (1..=NAME_OCTETS).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(|c| c == b'/' || c == b':' || c == 0 || c.is_ascii_whitespace())
}

/// A DNS subdomain (RFC 1123), which is what namespaces and pods are called.
fn is_object(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.')
}

/// The directory's files as they were last read.
#[derive(Debug, Default)]
pub struct Cache {
    directory: PathBuf,
    files: BTreeMap<String, Known>,
    /// Which files name an interface of the host.
    naming: BTreeMap<String, BTreeSet<String>>,
    /// How many files were refused since the start.
    refused: u64,
}

#[derive(Clone, PartialEq, Debug)]
struct Known {
    written: SystemTime,
    /// Length and inode: with the time, what tells one content from another.
    identity: (u64, u64),
    /// What it says; none: nothing of a pod, or it was refused.
    says: Option<Cached>,
    /// Why it was refused; empty: it was not.
    why: String,
}

impl Cache {
    /// That of a CNI whose directory is `cni_cache`, `/var/lib/cni` as a rule. Nothing has been read yet.
    pub fn new(cni_cache: &Path) -> Cache {
        Cache { directory: cni_cache.join("results"), ..Cache::default() }
    }

    /// Where the files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whose interface that of this name is, by the newest file that says so; none: nobody's, or two that are as new differ.
    /// With when that was written.
    pub fn of(&self, interface: &str) -> Option<(&Cached, SystemTime)> {
        let files = self.naming.get(interface)?;
        let known = files.iter().filter_map(|file| self.files.get(file));
        let newest = known.clone().map(|known| known.written).max()?;
        let mut says = known.filter(|known| known.written == newest).filter_map(|known| known.says.as_ref());
        let first = says.next()?;
        says.all(|other| (&other.pod, &other.uid) == (&first.pod, &first.uid)).then_some((first, newest))
    }

    /// Whether any file says whose an interface is: then the CNI will say so of others too.
    pub fn is_used(&self) -> bool {
        !self.naming.is_empty()
    }

    /// How many files were refused since the start.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Files that are refused, each with the reason.
    pub fn refusals(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .filter(|(_, known)| !known.why.is_empty())
            .map(|(file, known)| (file.as_str(), known.why.as_str()))
    }

    /// Reads what is new in the directory, and forgets what is gone: the host's interfaces of which something else is said
    /// now. What is broken and was written just before `now` is left for the next time.
    ///
    /// # Errors
    /// The directory can't be listed. Not there: nothing is in it.
    pub fn read_all(&mut self, now: SystemTime) -> io::Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        match fs::read_dir(&self.directory) {
            Ok(entries) => {
                for entry in entries {
                    found.extend(entry?.file_name().into_string().ok());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(error),
        }
        let gone: Vec<String> = self.files.keys().filter(|file| !found.contains(*file)).cloned().collect();
        let mut changed = BTreeSet::new();
        for file in found.iter().chain(&gone) {
            changed.extend(self.read_unless(file, |known| {
                !known.why.is_empty() && now.duration_since(known.written).unwrap_or_default() < UNFINISHED
            }));
        }
        Ok(changed)
    }

    /// Reads one file, whose writer has closed it, or which is gone: the host's interfaces of which something else is said
    /// now.
    pub fn read(&mut self, file: &str) -> BTreeSet<String> {
        self.read_unless(file, |_| false)
    }

    fn read_unless(&mut self, file: &str, unfinished: impl Fn(&Known) -> bool) -> BTreeSet<String> {
        let path = self.directory.join(file);
        let identity = fs::metadata(&path).ok().map(|found| (found.modified().ok(), (found.len(), found.ino())));
        let same = |known: &&Known| identity == Some((Some(known.written), known.identity));
        if identity.is_some() && self.files.get(file).as_ref().is_some_and(same) {
            return BTreeSet::new();
        }
        let now = read(&path).filter(|known| !unfinished(known));
        let mut changed = BTreeSet::new();
        let before = self.files.remove(file);
        let says = |known: &Option<Known>| known.as_ref().and_then(|known| known.says.clone());
        let (said, says) = (says(&before), says(&now));
        for name in said.iter().flat_map(|said| &said.outside) {
            if let Some(files) = self.naming.get_mut(name) {
                files.remove(file);
                if files.is_empty() {
                    self.naming.remove(name);
                }
            }
        }
        for name in says.iter().flat_map(|says| &says.outside) {
            self.naming.entry(name.clone()).or_default().insert(file.to_owned());
        }
        if said != says {
            changed.extend(said.into_iter().chain(says).flat_map(|cached| cached.outside));
        }
        if let Some(now) = now {
            if !now.why.is_empty() {
                self.refused += 1;
                tracing::warn!(file = %path.display(), "the CNI's result is left out: {}", now.why);
            }
            self.files.insert(file.to_owned(), now);
        }
        changed
    }
}

/// None: it is gone, or no file.
fn read(path: &Path) -> Option<Known> {
    // What is a pipe by mistake must not hold us up.
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Known::refused(SystemTime::UNIX_EPOCH, (0, 0), &error.into())),
    };
    let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
    let (written, identity) = (metadata.modified().ok()?, (metadata.len(), metadata.ino()));
    let parsed = contents(file, metadata.len()).and_then(|text| parse(&text));
    Some(match parsed {
        Ok(says) => Known { written, identity, says, why: String::new() },
        Err(error) => Known::refused(written, identity, &error),
    })
}

fn contents(file: File, octets: u64) -> Result<Vec<u8>, CniError> {
    if octets > MAX_OCTETS {
        return Err(CniError::TooLong(octets));
    }
    let mut text = Vec::new();
    file.take(MAX_OCTETS + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_OCTETS { Err(CniError::TooLong(text.len() as u64)) } else { Ok(text) }
}

impl Known {
    fn refused(written: SystemTime, identity: (u64, u64), error: &CniError) -> Known {
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        Known { written, identity, says: None, why: format!("{error}{source}") }
    }
}

#[cfg(test)]
mod tests;
