//! The snapshot as ConfigMaps, for small clusters whose agents mount them: a fixed number of them, so that a pod can name all
//! in one projected volume, and a file never moves from one to another, in which it would be missing for a moment.
//!
//! Each holds 1 MiB at most (that is Kubernetes' limit), and the kubelet takes up to a minute to bring a change to a pod.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::Shared;
use super::api::ApiError;
use crate::cluster::files::{self, FileHash};

/// How many there are: `PREFIX-0` to `PREFIX-7`.
const MAPS: usize = 8;
/// The most octets of names and contents of one. Kubernetes' own limit.
const OCTETS: usize = 1 << 20;
/// How long writing one may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// From one round to the next at least: the kubelet takes a minute in any case.
const GAP: Duration = Duration::from_secs(1);

/// Where they go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigMaps {
    /// Their namespace.
    pub namespace: String,
    /// The first part of their names.
    pub prefix: String,
}

/// How often everything is written all the same.
const AGAIN: Duration = Duration::from_secs(300);

type Map = BTreeMap<String, String>;

/// Writes what is in force in `root` for ever.
pub(super) async fn write(shared: &Shared, target: &ConfigMaps, root: PathBuf) {
    let mut written: [Option<FileHash>; MAPS] = [None; MAPS];
    let mut pause = Duration::ZERO;
    loop {
        if pause.is_zero() {
            if tokio::time::timeout(AGAIN, shared.written.notified()).await.is_err() {
                written = [None; MAPS]; // someone may have changed them
            }
        } else {
            tokio::time::sleep(pause).await;
        }
        if !shared.telemetry.has_written() {
            continue; // what an earlier run left is no news
        }
        let directory = root.clone();
        // Some thousand small files at most.
        let read = tokio::task::spawn_blocking(move || files::read(&directory)).await;
        let maps = match read {
            Ok(Ok(files)) => pack(files),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let result = match maps {
            Ok(maps) => apply(shared, target, &maps, &mut written).await,
            Err(text) => Err(text),
        };
        match result {
            Ok(()) => {
                shared.telemetry.set_other("config maps", None);
                tokio::time::sleep(GAP).await;
                pause = Duration::ZERO;
            }
            Err(text) => {
                tracing::warn!(error = text, "ConfigMaps can't be written; they stay as they were");
                shared.telemetry.set_other("config maps", Some(text));
                pause = (pause * 2).clamp(shared.timing.backoff_min, shared.timing.backoff_max);
            }
        }
    }
}

/// Which file goes into which; or why they don't fit.
fn pack(files: Vec<files::File>) -> Result<[Map; MAPS], String> {
    let mut maps: [Map; MAPS] = Default::default();
    for file in files {
        let octets = file.content.map_err(|why| format!("{}: {why}", file.name))?;
        let text = String::from_utf8(octets).map_err(|error| format!("{}: {error}", file.name))?;
        maps[crc32fast::hash(file.name.as_bytes()) as usize % MAPS].insert(file.name, text);
    }
    for (number, map) in maps.iter().enumerate() {
        let octets: usize = map.iter().map(|(name, text)| name.len() + text.len()).sum();
        if octets > OCTETS {
            return Err(format!(
                "ConfigMap {number} of {MAPS} would have {octets} octets; {OCTETS} are allowed: this cluster is too large \
                 for ConfigMaps, run a collector beside each agent"
            ));
        }
    }
    Ok(maps)
}

async fn apply(
    shared: &Shared,
    target: &ConfigMaps,
    maps: &[Map; MAPS],
    written: &mut [Option<FileHash>; MAPS],
) -> Result<(), String> {
    let ConfigMaps { namespace, prefix } = target;
    for (number, map) in maps.iter().enumerate() {
        let name = format!("{prefix}-{number}");
        let labels = json!({"app.kubernetes.io/managed-by": "namegate-collect"});
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "data": map,
        });
        let text = object.to_string().into_bytes();
        let hash = files::hash(&Ok(text.clone()));
        if written[number] == Some(hash) {
            continue;
        }
        let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}");
        shared.api.apply(&path, text, PATIENCE).await.map_err(|error| named(namespace, &name, &error))?;
        written[number] = Some(hash);
    }
    Ok(())
}

fn named(namespace: &str, name: &str, error: &ApiError) -> String {
    let verbs = if error.code() == Some(403) { "; the role needs the verbs create and patch for it" } else { "" };
    format!("{namespace}/{name}: {error}{verbs}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, octets: usize) -> files::File {
        files::File { name: name.to_owned(), content: Ok(vec![b'x'; octets]) }
    }

    #[test]
    fn files_stay_where_they_are_and_what_does_not_fit_is_an_error() {
        let names: Vec<String> = (0..256).map(|number| format!("pods-{number:02x}.jsonl")).collect();
        let all = pack(names.iter().map(|name| file(name, 3)).collect()).expect("they fit");
        assert!(all.iter().all(|map| !map.is_empty()), "spread over all");
        assert_eq!(all.iter().map(BTreeMap::len).sum::<usize>(), 256);
        let some = pack(names.iter().take(20).map(|name| file(name, 5)).collect()).expect("they fit");
        for (some, all) in some.iter().zip(&all) {
            assert!(some.keys().all(|name| all.contains_key(name)), "in the same one as before");
        }
        let error = pack(vec![file("pods-00.jsonl", OCTETS)]).expect_err("one octet of it is too much");
        assert!(error.contains("1048576 are allowed"), "{error}");
    }
}
