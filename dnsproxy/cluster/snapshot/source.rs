//! A directory that is read again and again: only what has changed is read, parsed and put in its place.
//!
//! **Invariant:** what a read returns is what reading everything anew would.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::entries::{Entry, Held, Parsed, parse_all};
use super::generation::{Generation, insert};
use super::last_good::LastGood;
use super::{OnInvalid, Snapshot};
use crate::cluster::files::{Directory, File};
use crate::cluster::manifest::Object;
use crate::engine::verdict::RuleRef;
use crate::engine::world::World;

/// See the module.
#[derive(Debug)]
pub struct Source {
    directory: Directory,
    files: BTreeMap<String, Parsed>,
    /// How many of them can't be read.
    broken: usize,
    /// How often each object stands in them.
    keys: HashMap<String, u32>,
    /// What the last read returned, and by what.
    last: Option<(Snapshot, OnInvalid)>,
    /// Whether the last read could read the directory.
    readable: bool,
}

impl Source {
    /// Nothing is read yet.
    pub fn new(directory: &Path) -> Source {
        Source {
            directory: Directory::new(directory),
            files: BTreeMap::new(),
            broken: 0,
            keys: HashMap::new(),
            last: None,
            readable: true,
        }
    }

    /// Whether the directory could be read the last time.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// What the directory says now. `last_good`: what the read before returned, or what an earlier run left.
    pub fn read(&mut self, last_good: &LastGood, on_invalid: OnInvalid) -> Snapshot {
        self.read_at(None, last_good, on_invalid)
    }

    /// The same, when nothing but files of these names can have changed; `None`: anything.
    pub fn read_at(
        &mut self,
        names: Option<&BTreeSet<String>>,
        last_good: &LastGood,
        on_invalid: OnInvalid,
    ) -> Snapshot {
        let look = match names {
            Some(names) if self.readable => self.directory.look_at(names),
            _ => self.directory.look(),
        };
        let look = match look {
            Ok(look) => look,
            Err(error) => return self.unreadable(&error.to_string(), last_good, on_invalid),
        };
        self.readable = true;
        let last = self.last.take();
        let last = last.filter(|(last, by)| *by == on_invalid && last.last_good == *last_good).map(|(last, _)| last);
        let nothing_new = look.changed.is_empty() && look.gone.is_empty();
        let snapshot = match last {
            Some(last) if nothing_new => last,
            last => {
                let hash = self.directory.generation_hash();
                let was_whole = self.broken == 0;
                let touched = self.replace(&look.changed, look.gone);
                let next = last.filter(|_| was_whole && self.broken == 0).and_then(|last| self.next(last, &touched));
                match next {
                    Some(next) => Snapshot { generation_hash: hash, ..next },
                    None => {
                        let files = self.files.iter().map(|(name, parsed)| (name.as_str(), parsed));
                        Generation::of(files, last_good, on_invalid).into_snapshot(hash)
                    }
                }
            }
        };
        self.last = Some((snapshot.clone(), on_invalid));
        snapshot
    }

    /// Nothing is known: every file that was good is as if it were broken now.
    fn unreadable(&mut self, error: &str, last_good: &LastGood, on_invalid: OnInvalid) -> Snapshot {
        *self = Source { readable: false, ..Source::new(self.directory.path()) };
        let text = format!("{error}; a directory that can be read is needed");
        let names = last_good.files.keys().map(|name| File { name: name.clone(), content: Err(text.clone()) });
        let mut files: Vec<File> = names.collect();
        if files.is_empty() {
            files.push(File { name: "snapshot".to_owned(), content: Err(text) });
        }
        super::assemble(&files, last_good, on_invalid)
    }

    /// Takes in files that changed, and forgets those that are gone; what each of them held before.
    fn replace(&mut self, changed: &[File], gone: Vec<String>) -> Vec<(String, Option<Parsed>)> {
        let mut touched = Vec::with_capacity(changed.len() + gone.len());
        for name in gone {
            let old = self.files.remove(&name);
            touched.push((name, old));
        }
        for (file, parsed) in changed.iter().zip(parse_all(changed)) {
            self.broken += usize::from(parsed.is_err());
            for key in keys(&parsed) {
                match self.keys.get_mut(key) {
                    Some(times) => *times += 1,
                    None => drop(self.keys.insert(key.to_owned(), 1)),
                }
            }
            let old = self.files.insert(file.name.clone(), parsed);
            touched.push((file.name.clone(), old));
        }
        for old in touched.iter().filter_map(|(_, old)| old.as_ref()) {
            self.broken -= usize::from(old.is_err());
            for key in keys(old) {
                if let Some(times) = self.keys.get_mut(key) {
                    *times -= 1;
                    if *times == 0 {
                        self.keys.remove(key);
                    }
                }
            }
        }
        touched
    }

    /// The generation after `last`, when it is plain: all files can be read, and what changed is good and stands once, now
    /// as before. Whatever is wrong elsewhere stays as it was.
    fn next(&self, last: Snapshot, touched: &[(String, Option<Parsed>)]) -> Option<Snapshot> {
        let mut was: BTreeMap<&str, &Entry> = BTreeMap::new();
        let mut is: BTreeMap<&str, &Entry> = BTreeMap::new();
        let (mut skipped_then, mut skipped_now) = (0, 0);
        for (name, old) in touched {
            for (held, entries, skipped) in [
                (held(old.as_ref()), &mut was, &mut skipped_then),
                (held(self.files.get(name)), &mut is, &mut skipped_now),
            ] {
                let Some(Held { entries: all, skipped: more }) = held else { continue };
                *skipped += more;
                for entry in all {
                    let key = entry.key.as_deref().filter(|_| entry.faults.is_empty() && is_plain(entry))?;
                    if entries.insert(key, entry).is_some() {
                        return None;
                    }
                }
            }
        }
        // Once in what changed, and nowhere else; a key that is gone is nowhere at all.
        let once = |key: &&str| self.keys.get(*key).copied().unwrap_or(0) == u32::from(is.contains_key(key));
        if !was.keys().chain(is.keys()).all(once) {
            return None;
        }
        let Snapshot { mut world, refusals, skipped, generation_hash, mut last_good } = last;
        for (name, old) in touched {
            match (old.is_some(), self.files.contains_key(name)) {
                (true, false) => drop(last_good.files.remove(name)),
                (false, true) => drop(last_good.files.insert(name.clone(), ())),
                _ => {}
            }
        }
        // By name and place: what stands there unchanged in a file that was read again is another copy.
        let mut policies: BTreeSet<RuleRef> = BTreeSet::new();
        for (key, entry) in &was {
            if is.get(key).is_some_and(|new| new.kept == entry.kept) {
                continue;
            }
            match entry.object.as_ref()? {
                Object::Policy(policy) => drop(policies.insert(policy.at.clone())),
                object => remove(&mut world, object),
            }
            if !is.contains_key(key) {
                last_good.objects.remove(*key);
            }
        }
        if !policies.is_empty() {
            world.policies.retain(|policy| !policies.contains(&policy.at));
        }
        for (key, entry) in &is {
            if was.get(key).is_some_and(|old| old.kept == entry.kept) {
                continue;
            }
            insert(&mut world, entry.object.clone()?, true);
            last_good.objects.insert((*key).to_owned(), entry.kept.clone());
        }
        world.policies.sort_by(|a, b| a.at.cmp(&b.at));
        let skipped = skipped - skipped_then + skipped_now;
        Some(Snapshot { world, refusals, skipped, generation_hash, last_good })
    }
}

fn held(parsed: Option<&Parsed>) -> Option<&Held> {
    parsed.and_then(|parsed| parsed.as_ref().ok())
}

fn keys(parsed: &Parsed) -> impl Iterator<Item = &str> {
    parsed.iter().flat_map(|held| &held.entries).filter_map(|entry| entry.key.as_deref())
}

/// Whether an object's place in the world is its own, so that it can be taken out again.
fn is_plain(entry: &Entry) -> bool {
    match &entry.object {
        Some(
            Object::Pod(..)
            | Object::Namespace(..)
            | Object::Service(..)
            | Object::EndpointSlice(..)
            | Object::Endpoints(..)
            | Object::Node(..)
            | Object::CidrGroup(..)
            | Object::Policy(_),
        ) => true,
        // What policies mean may depend on it.
        Some(Object::CiliumConfig(_)) | None => false,
    }
}

fn remove(world: &mut World, object: &Object) {
    match object {
        Object::Pod(key, _) => drop(world.pods.remove(key)),
        Object::Namespace(name, _) => drop(world.namespaces.remove(name)),
        Object::Service(key, _) => drop(world.services.remove(key)),
        Object::EndpointSlice(key, _) => drop(world.endpoint_slices.remove(key)),
        Object::Endpoints(key, _) => drop(world.endpoints.remove(key)),
        Object::Node(name, _) => drop(world.nodes.remove(name)),
        Object::CidrGroup(name, _) => drop(world.cidr_groups.remove(name)),
        Object::CiliumConfig(_) | Object::Policy(_) => {}
    }
}
