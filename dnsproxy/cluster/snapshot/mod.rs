//! All files of a directory as one generation of the world.
//!
//! Nothing here can fail: what can't be read is a [`Refusal`], and refusing never opens (I10). A wrong object keeps its last
//! good version, a wrong file all objects that it held; without one, what still holds of the object stands for it, or a
//! policy that shuts everyone.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::fields::{Fault, FaultKind, Reader, Source};
use super::files::{self, File};
use super::manifest::{self, Found, Kind, Object, policy};
use super::tree::{self, Node, write_json};
use crate::engine::policy::Policy;
use crate::engine::world::World;

/// One generation.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What it says. `own_node` and `cluster` are for the caller to fill in.
    pub world: World,
    /// Everything that was wrong, in the order of the files.
    pub refusals: Vec<Refusal>,
    /// How many objects were of a kind that namegate doesn't read.
    pub skipped: usize,
    /// A hash of every file's name and octets: the same hash is the same generation.
    pub generation_hash: [u8; 32],
    /// What to hand to the next read, also after a restart.
    pub last_good: LastGood,
}

/// Something that was wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// `CiliumNetworkPolicy shop/web`; for a file that can't be read `file web.yaml`.
    pub object: String,
    /// Whether it is a policy, or a file that may hold some.
    pub policy: bool,
    /// `file:line:column`; the file alone if it can't be opened.
    pub place: String,
    /// The path in the object, what was found, what is allowed.
    pub text: String,
    /// Whether the last good version stays in force.
    pub kept: bool,
    /// What it does: the object is refused, or in force but for an item that namegate can't enforce yet.
    #[serde(default)]
    pub kind: FaultKind,
}

/// The last good version of every object, for the time when it is wrong. Part of the state that outlives the process.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LastGood {
    /// Files that could be read: what they held is known, though it may be nothing.
    files: BTreeSet<String>,
    /// By kind, namespace and name.
    objects: BTreeMap<String, Kept>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Kept {
    file: String,
    place: String,
    /// The object as JSON, as far as it is read.
    text: String,
}

/// What becomes of a policy that can't be read and has no last good version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnInvalid {
    /// It shuts whom it selects.
    #[default]
    Refuse,
    /// It is as if it weren't there, whatever it was before: the operator's way out.
    Ignore,
}

/// Reads a directory: `..data` in it if there is one (a mounted ConfigMap), resolved once, so that one generation is read
/// and never half of two.
pub fn read(dir: &Path, last_good: &LastGood, on_invalid: OnInvalid) -> Snapshot {
    match files::read(dir) {
        Ok(files) => assemble(&files, last_good, on_invalid),
        Err(error) => {
            // Nothing is known: every file that was good is as if it were broken now.
            let text = format!("{error}; a directory that can be read is needed");
            let names = last_good.files.iter().map(|name| File { name: name.clone(), content: Err(text.clone()) });
            let mut files: Vec<File> = names.collect();
            if files.is_empty() {
                files.push(File { name: "snapshot".to_owned(), content: Err(text) });
            }
            assemble(&files, last_good, on_invalid)
        }
    }
}

/// The hash of a directory's generation, without reading more of it than its octets: whether to read it again.
///
/// `None` when the directory can't be read.
pub fn generation_hash(dir: &Path) -> Option<[u8; 32]> {
    files::read(dir).ok().map(|files| hash(&files))
}

/// What stands in the place of what was refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stands {
    /// What it selects is shut.
    #[default]
    Shut,
    /// The object's last good version.
    Kept,
    /// The object itself, but for the item, which allows nothing (or denies without what can't be enforced).
    Rest,
}

impl Refusal {
    /// What stands in its place.
    pub fn stands(&self) -> Stands {
        match (self.kept, self.kind) {
            (true, _) => Stands::Kept,
            (false, FaultKind::Unenforced) => Stands::Rest,
            (false, _) => Stands::Shut,
        }
    }
}

impl fmt::Display for Stands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stands::Shut => "what it selects is closed",
            Stands::Kept => "the last good version is in force",
            Stands::Rest => "the rest of it is in force",
        })
    }
}

/// One generation from its files.
pub fn assemble(files: &[File], last_good: &LastGood, on_invalid: OnInvalid) -> Snapshot {
    let parsed: Vec<Parsed> = files.iter().map(parse).collect();
    let mut generation =
        Generation { world: World::default(), refusals: Vec::new(), next: LastGood::default(), last_good, on_invalid };
    let (mut entries, skipped) = entries(files, &parsed);
    let keys: Vec<String> = entries.iter().filter_map(|entry| entry.key.clone()).collect();
    let present: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
    for (file, result) in files.iter().zip(&parsed) {
        match result {
            Ok(_) => {
                generation.next.files.insert(file.name.clone());
            }
            Err((place, text)) => generation.broken_file(&file.name, place, text, &present),
        }
    }
    // What a policy may say depends on Cilium's settings.
    for entry in entries.iter().filter(|entry| entry.kind == Some(Kind::ConfigMap)) {
        generation.add(entry);
    }
    for entry in entries.iter_mut().filter(|entry| entry.kind != Some(Kind::ConfigMap)) {
        policy::settle(&mut entry.faults, &generation.world.cilium_config);
        generation.add(entry);
    }
    let Generation { mut world, refusals, next, .. } = generation;
    world.policies.sort_by(|a, b| a.at.cmp(&b.at));
    world.refused.sort_by(|a, b| a.at.cmp(&b.at));
    Snapshot { world, refusals, skipped, generation_hash: hash(files), last_good: next }
}

/// An object of this generation.
struct Entry<'t> {
    kind: Option<Kind>,
    key: Option<String>,
    file: &'t str,
    place: String,
    /// The parts of it that are read.
    node: Node,
    faults: Vec<Fault>,
    object: Option<Object>,
    /// The same object stands elsewhere, word for word.
    repeated: bool,
}

struct Generation<'a> {
    world: World,
    refusals: Vec<Refusal>,
    next: LastGood,
    last_good: &'a LastGood,
    on_invalid: OnInvalid,
}

fn hash(files: &[File]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for file in files {
        let octets = file.content.as_deref().unwrap_or_default();
        hash.update(format!("{}\0{}\0", file.name, octets.len()));
        hash.update(octets);
    }
    hash.finalize().into()
}

type Parsed = Result<Vec<Node>, (String, String)>;

fn parse(file: &File) -> Parsed {
    let octets = file.content.as_ref().map_err(|text| (file.name.clone(), text.clone()))?;
    let text = std::str::from_utf8(octets).map_err(|error| {
        let before = &octets[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|octet| **octet == b'\n').count();
        let start = before.iter().rposition(|octet| *octet == b'\n').map_or(0, |at| at + 1);
        let column = 1 + before[start..].iter().filter(|octet| **octet & 0xc0 != 0x80).count();
        (format!("{}:{line}:{column}", file.name), "octets that are not UTF-8; UTF-8 is allowed".to_owned())
    })?;
    let documents = if files::is_json(&file.name) { tree::json(text) } else { tree::yaml(text) };
    documents.map_err(|error| (format!("{}:{}", file.name, error.at), error.text))
}

/// All objects of all files, and how many are of kinds that are not read.
fn entries<'t>(files: &'t [File], parsed: &[Parsed]) -> (Vec<Entry<'t>>, usize) {
    let mut entries: Vec<Entry<'t>> = Vec::new();
    let mut skipped = 0;
    for (file, documents) in files.iter().zip(parsed) {
        for found in documents.iter().flatten().flat_map(manifest::found) {
            let (kind, node) = match found {
                Found::Other => {
                    skipped += 1;
                    continue;
                }
                Found::Object(kind, node) => (Some(kind), node),
                Found::Stray(node) => (None, node),
            };
            let reader = Reader::new(Source::File(&file.name));
            let object = kind.map(|kind| manifest::read(kind, &reader.root(node)));
            if kind.is_none() {
                reader.root(node).fault("no object; apiVersion and kind are needed, as text");
            }
            entries.push(Entry {
                kind,
                key: kind.and_then(|kind| manifest::key(kind, node)),
                file: &file.name,
                place: format!("{}:{}", file.name, node.at),
                node: kind.map_or_else(|| node.clone(), |kind| kind.prune(node)),
                faults: reader.into_faults(),
                object,
                repeated: false,
            });
        }
    }
    mark_repeated(&mut entries);
    (entries, skipped)
}

/// An object that stands twice is one if both say the same, and wrong twice if not: nobody can tell which is meant.
fn mark_repeated(entries: &mut [Entry<'_>]) {
    let mut first: BTreeMap<String, usize> = BTreeMap::new();
    for index in 0..entries.len() {
        let Some(key) = entries[index].key.clone() else { continue };
        let Some(&other) = first.get(&key) else {
            first.insert(key, index);
            continue;
        };
        if write_json(&entries[index].node) == write_json(&entries[other].node) {
            entries[index].repeated = true;
            continue;
        }
        for (this, that) in [(index, other), (other, index)] {
            let text = format!("another {key} at {}; once is allowed", entries[that].place);
            let place = entries[this].place.clone();
            let at = entries[this].node.at;
            entries[this].faults.push(Fault { at, place, path: String::new(), text, kind: FaultKind::Wrong });
        }
    }
}

impl Generation<'_> {
    fn add(&mut self, entry: &Entry<'_>) {
        if entry.repeated {
            return;
        }
        let is_policy = entry.kind.is_none_or(Kind::is_policy);
        let wrong = entry.faults.iter().any(|fault| fault.kind == FaultKind::Wrong);
        let ignored = is_policy && self.on_invalid == OnInvalid::Ignore;
        let kept = wrong && !ignored && entry.key.as_ref().is_some_and(|key| self.keep(key));
        let kind = entry.kind.map_or("object", Kind::name);
        let object = entry.key.clone().unwrap_or_else(|| format!("{kind} ({})", entry.place));
        for Fault { place, path, text, kind, .. } in &entry.faults {
            let text = if path.is_empty() { text.clone() } else { format!("{path}: {text}") };
            let (object, place, kind) = (object.clone(), place.clone(), *kind);
            self.refusals.push(Refusal { object, policy: is_policy, place, text, kept, kind });
        }
        if !wrong {
            if let (Some(key), Some(object)) = (&entry.key, entry.object.clone()) {
                let kept =
                    Kept { file: entry.file.to_owned(), place: entry.place.clone(), text: write_json(&entry.node) };
                self.next.objects.insert(key.clone(), kept);
                self.insert(object, true);
            }
            return;
        }
        if kept || ignored {
            return;
        }
        match &entry.object {
            Some(object) => self.insert(marked(object.clone()), false),
            None => self.world.refused.push(policy::shut("File", entry.file, &entry.place).into()),
        }
    }

    /// Keeps everything that a file held which can't be read now.
    fn broken_file(&mut self, file: &str, place: &str, text: &str, present: &BTreeSet<&str>) {
        let kept = self.last_good.files.contains(file) && self.on_invalid == OnInvalid::Refuse;
        let held = self.last_good.objects.iter().filter(|(key, object)| {
            let policy = key.split(' ').next().is_some_and(|kind| kind.ends_with("Policy"));
            object.file == file && !present.contains(key.as_str()) && (kept || !policy)
        });
        for key in held.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.keep(&key);
        }
        if kept {
            self.next.files.insert(file.to_owned());
        } else if self.on_invalid == OnInvalid::Refuse {
            self.world.refused.push(policy::shut("File", file, place).into());
        }
        let (object, place, text) = (format!("file {file}"), place.to_owned(), text.to_owned());
        self.refusals.push(Refusal { object, policy: true, place, text, kept, kind: FaultKind::Wrong });
    }

    /// Puts an object's last good version in force, if there is one.
    fn keep(&mut self, key: &str) -> bool {
        if self.next.objects.contains_key(key) {
            return true;
        }
        let Some(kept) = self.last_good.objects.get(key) else { return false };
        let Some(object) = manifest::read_kept(&kept.text, &kept.place) else { return false };
        self.next.objects.insert(key.to_owned(), kept.clone());
        self.insert(object, true);
        true
    }

    fn insert(&mut self, object: Object, good: bool) {
        let world = &mut self.world;
        match object {
            Object::Pod(key, pod) => drop(world.pods.insert(key, pod)),
            Object::Service(key, service) => drop(world.services.insert(key, service)),
            Object::EndpointSlice(key, slice) => drop(world.endpoint_slices.insert(key, slice)),
            Object::Endpoints(key, slices) => drop(world.endpoints.insert(key, slices)),
            Object::Node(name, node) => drop(world.nodes.insert(name, node)),
            Object::CidrGroup(name, group) => drop(world.cidr_groups.insert(name, group)),
            Object::CiliumConfig(data) => world.cilium_config.extend(data),
            // Labels that could not be read whole are as good as unknown.
            Object::Namespace(name, namespace) if good => drop(world.namespaces.insert(name, namespace)),
            Object::Namespace(..) => {}
            Object::Policy(policy) if good => world.policies.push(policy.into()),
            Object::Policy(policy) => world.refused.push(without_allowances(policy).into()),
        }
    }
}

/// Marks an object as not fully known, whatever its own faults were: it may stand twice.
fn marked(mut object: Object) -> Object {
    match &mut object {
        Object::Pod(_, pod) => pod.readable = false,
        Object::Service(_, service) => service.readable = false,
        Object::EndpointSlice(_, slice) => slice.readable = false,
        Object::Endpoints(_, slices) => slices.iter_mut().for_each(|slice| slice.readable = false),
        Object::CidrGroup(_, group) => group.readable = false,
        Object::Namespace(..) | Object::Node(..) | Object::CiliumConfig(_) | Object::Policy(_) => {}
    }
    object
}

/// What still holds of a policy that is refused: its denials, and that it shuts every direction in which it has an item.
fn without_allowances(mut policy: Policy) -> Policy {
    for section in policy.rules.iter_mut().flat_map(|rule| [&mut rule.egress, &mut rule.ingress]) {
        let items = section.allow.len() + section.deny.len() + section.unenforced.len();
        section.default_deny |= items > 0;
        section.allow.clear();
        section.unenforced.clear();
    }
    policy
}
