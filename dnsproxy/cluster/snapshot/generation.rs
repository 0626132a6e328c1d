//! All objects of all files as one generation, and what stands for those that are wrong.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::entries::{Entry, Parsed};
use super::last_good::LastGood;
use super::{OnInvalid, Refusal, Snapshot};
use crate::cluster::fields::{Fault, FaultKind};
use crate::cluster::files::FileHash;
use crate::cluster::manifest::{self, Kind, Object, policy};
use crate::engine::policy::Policy;
use crate::engine::world::World;

/// A generation while it is put together.
pub(super) struct Generation<'a> {
    world: World,
    refusals: Vec<Refusal>,
    skipped: usize,
    next: LastGood,
    last_good: &'a LastGood,
    on_invalid: OnInvalid,
}

/// An entry among all others.
struct Placed<'e> {
    entry: &'e Entry,
    /// The same object stands elsewhere, word for word.
    repeated: bool,
    /// Where another of the same name stands that says something else.
    others: Vec<&'e Entry>,
}

impl<'a> Generation<'a> {
    /// Everything that these files say, by name.
    pub fn of<'f>(
        files: impl Iterator<Item = (&'f str, &'f Parsed)> + Clone,
        last_good: &'a LastGood,
        on_invalid: OnInvalid,
    ) -> Generation<'a> {
        let (world, refusals, next) = (World::default(), Vec::new(), LastGood::default());
        let mut generation = Generation { world, refusals, skipped: 0, next, last_good, on_invalid };
        let held = || files.clone().filter_map(|(_, parsed)| parsed.as_ref().ok());
        generation.skipped = held().map(|held| held.skipped).sum();
        let placed = place(held().flat_map(|held| &held.entries));
        let any_broken = files.clone().any(|(_, parsed)| parsed.is_err());
        let keys = placed.iter().filter(|_| any_broken).filter_map(|placed| placed.entry.key.as_deref());
        let present: BTreeSet<&str> = keys.collect();
        for (file, parsed) in files {
            match parsed {
                Ok(_) => drop(generation.next.files.insert(file.to_owned(), ())),
                Err((at, text)) => generation.broken_file(file, at, text, &present),
            }
        }
        // What a policy may say depends on Cilium's settings.
        let is_settings = |placed: &&Placed<'_>| placed.entry.kind == Some(Kind::ConfigMap);
        placed.iter().filter(is_settings).for_each(|placed| generation.add(placed));
        placed.iter().filter(|placed| !is_settings(placed)).for_each(|placed| generation.add(placed));
        generation
    }

    /// The generation as a snapshot with this hash.
    pub fn into_snapshot(self, generation_hash: FileHash) -> Snapshot {
        let Generation { mut world, refusals, skipped, next, .. } = self;
        world.policies.sort_by(|a, b| a.at.cmp(&b.at));
        world.refused.sort_by(|a, b| a.at.cmp(&b.at));
        Snapshot { world, refusals, skipped, generation_hash, last_good: next }
    }
}

/// An object that stands twice is one if both say the same, and wrong twice if not: nobody can tell which is meant.
fn place<'e>(entries: impl Iterator<Item = &'e Entry>) -> Vec<Placed<'e>> {
    let mut placed: Vec<Placed<'e>> = Vec::new();
    let mut first: HashMap<&str, usize> = HashMap::new();
    for entry in entries {
        let index = placed.len();
        placed.push(Placed { entry, repeated: false, others: Vec::new() });
        let Some(key) = entry.key.as_deref() else { continue };
        let Some(&other) = first.get(key) else {
            first.insert(key, index);
            continue;
        };
        if entry.kept.text == placed[other].entry.kept.text {
            placed[index].repeated = true;
        } else {
            let other_entry = placed[other].entry;
            placed[index].others.push(other_entry);
            placed[other].others.push(entry);
        }
    }
    placed
}

impl Generation<'_> {
    fn add(&mut self, placed: &Placed<'_>) {
        let entry = placed.entry;
        if placed.repeated {
            return;
        }
        let is_policy = entry.kind.is_none_or(Kind::is_policy);
        let mut faults = entry.faults.clone();
        policy::settle(&mut faults, &self.world.cilium_config);
        let twice = placed.others.iter().map(|other| {
            let key = other.key.as_deref().unwrap_or_default();
            let text = format!("another {key} at {}; once is allowed", other.kept.place);
            (entry.kept.place.clone(), text, FaultKind::Wrong)
        });
        let faults: Vec<(String, String, FaultKind)> = faults
            .into_iter()
            .map(|Fault { place, path, text, kind, .. }| {
                (place, if path.is_empty() { text } else { format!("{path}: {text}") }, kind)
            })
            .chain(twice)
            .collect();
        let wrong = faults.iter().any(|(_, _, kind)| *kind == FaultKind::Wrong);
        let ignored = is_policy && self.on_invalid == OnInvalid::Ignore;
        let kept = wrong && !ignored && entry.key.as_ref().is_some_and(|key| self.keep(key));
        let kind = entry.kind.map_or("object", Kind::name);
        let object = entry.key.clone().unwrap_or_else(|| format!("{kind} ({})", entry.kept.place));
        for (place, text, kind) in faults {
            let object = object.clone();
            self.refusals.push(Refusal { object, policy: is_policy, place, text, kept, kind });
        }
        if !wrong {
            if let (Some(key), Some(object)) = (&entry.key, entry.object.clone()) {
                self.next.objects.insert(key.clone(), entry.kept.clone());
                insert(&mut self.world, object, true);
            }
            return;
        }
        if kept || ignored {
            return;
        }
        match &entry.object {
            Some(object) => insert(&mut self.world, marked(object.clone()), false),
            None => self.world.refused.push(policy::shut("File", &entry.kept.file, &entry.kept.place).into()),
        }
    }

    /// Keeps everything that a file held which can't be read now.
    fn broken_file(&mut self, file: &str, place: &str, text: &str, present: &BTreeSet<&str>) {
        let kept = self.last_good.files.contains_key(file) && self.on_invalid == OnInvalid::Refuse;
        let held = self.last_good.objects.iter().filter(|(key, object)| {
            let policy = key.split(' ').next().is_some_and(|kind| kind.ends_with("Policy"));
            object.file == file && !present.contains(key.as_str()) && (kept || !policy)
        });
        for key in held.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.keep(&key);
        }
        if kept {
            self.next.files.insert(file.to_owned(), ());
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
        insert(&mut self.world, object, true);
        true
    }
}

/// Puts an object into the world; one that is not `good` is what still holds of it.
pub(super) fn insert(world: &mut World, object: Object, good: bool) {
    match object {
        Object::Pod(key, pod) => drop(world.pods.insert(key, pod)),
        Object::Service(key, service) => drop(world.services.insert(key, service)),
        Object::EndpointSlice(key, slice) => drop(world.endpoint_slices.insert(key, slice)),
        Object::Endpoints(key, slices) => drop(world.endpoints.insert(key, slices)),
        Object::Node(name, node) => drop(world.nodes.insert(name, node)),
        Object::CidrGroup(name, group) => drop(world.cidr_groups.insert(name, group)),
        Object::CiliumConfig(data) => world.cilium_config.extend(Arc::unwrap_or_clone(data)),
        // Labels that could not be read whole are as good as unknown.
        Object::Namespace(name, namespace) if good => drop(world.namespaces.insert(name, namespace)),
        Object::Namespace(..) => {}
        Object::Policy(policy) if good => world.policies.push(policy),
        Object::Policy(policy) => world.refused.push(without_allowances(policy)),
    }
}

/// Marks an object as not fully known, whatever its own faults were: it may stand twice.
fn marked(mut object: Object) -> Object {
    match &mut object {
        Object::Pod(_, pod) => Arc::make_mut(pod).readable = false,
        Object::Service(_, service) => Arc::make_mut(service).readable = false,
        Object::EndpointSlice(_, slice) => Arc::make_mut(slice).readable = false,
        Object::Endpoints(_, slices) => Arc::make_mut(slices).iter_mut().for_each(|slice| slice.readable = false),
        Object::CidrGroup(_, group) => Arc::make_mut(group).readable = false,
        Object::Namespace(..) | Object::Node(..) | Object::CiliumConfig(_) | Object::Policy(_) => {}
    }
    object
}

/// What still holds of a policy that is refused: its denials, and that it shuts every direction in which it has an item.
fn without_allowances(mut policy: Arc<Policy>) -> Arc<Policy> {
    for section in Arc::make_mut(&mut policy).rules.iter_mut().flat_map(|rule| [&mut rule.egress, &mut rule.ingress]) {
        let items = section.allow.len() + section.deny.len() + section.unenforced.len();
        section.default_deny |= items > 0;
        section.allow.clear();
        section.unenforced.clear();
    }
    policy
}
