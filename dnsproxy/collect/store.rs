//! What is known of the cluster, spread over shards, each of which is a file of the snapshot.
//!
//! An object keeps its place in its file for as long as it is there, and leaves an empty line behind: what stands after it
//! does not move, and the agent sees one change and not many.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::object::{Key, Reduced};
use super::resource::{RESOURCES, Resource};

/// Files that changed: by name what they hold now; `None`: nothing, there is no such file.
pub type Files = BTreeMap<String, Option<Vec<u8>>>;

/// The objects of every kind, in the order of [`RESOURCES`].
#[derive(Debug)]
pub struct Store {
    kinds: Vec<KindStore>,
}

#[derive(Debug)]
struct KindStore {
    resource: &'static Resource,
    /// Whether its first list was read whole.
    listed: bool,
    shards: Vec<Shard>,
    index: HashMap<Key, Slot>,
    octets: usize,
}

#[derive(Clone, Debug, Default)]
struct Shard {
    slots: Vec<Option<Arc<str>>>,
    changed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    shard: u32,
    line: u32,
}

impl Store {
    /// Nothing is known yet.
    pub fn new() -> Store {
        let kinds = RESOURCES.iter().map(|resource| KindStore {
            resource,
            listed: false,
            shards: vec![Shard::default(); resource.shards as usize],
            index: HashMap::new(),
            octets: 0,
        });
        Store { kinds: kinds.collect() }
    }

    /// Whether every kind was listed: before that nothing is written.
    pub fn is_whole(&self) -> bool {
        self.kinds.iter().all(|kind| kind.listed)
    }

    /// How many objects of this kind there are, and how many octets they have.
    pub fn size(&self, resource: usize) -> (usize, usize) {
        (self.kinds[resource].index.len(), self.kinds[resource].octets)
    }

    /// Takes in one object. Whether anything changed.
    pub fn apply(&mut self, resource: usize, key: &Key, text: Option<&str>) -> bool {
        match text {
            Some(text) => self.kinds[resource].put(key, text.into()),
            None => self.remove(resource, key),
        }
    }

    /// Forgets one object. Whether it was there.
    pub fn remove(&mut self, resource: usize, key: &Key) -> bool {
        self.kinds[resource].remove(key)
    }

    /// Takes a whole list in place of everything that was known of the kind. Whether anything changed.
    pub fn replace(&mut self, resource: usize, list: &[(Key, Option<Arc<str>>)]) -> bool {
        let kind = &mut self.kinds[resource];
        let there: HashSet<&Key> = list.iter().filter(|(_, text)| text.is_some()).map(|(key, _)| key).collect();
        let gone: Vec<Key> = kind.index.keys().filter(|key| !there.contains(key)).cloned().collect();
        let mut changed = !kind.listed;
        for key in gone {
            changed |= kind.remove(&key);
        }
        for (key, text) in list {
            changed |= text.as_ref().is_some_and(|text| kind.put(key, text.clone()));
        }
        kind.listed = true;
        changed
    }

    /// The text of a list's object; what is known already is shared, so that a list that says nothing new needs no room.
    pub fn share(&self, resource: usize, reduced: Reduced) -> (Key, Option<Arc<str>>) {
        let kind = &self.kinds[resource];
        let text = reduced.text.map(|text| match kind.get(&reduced.key) {
            Some(known) if **known == *text => known.clone(),
            _ => text.into(),
        });
        (reduced.key, text)
    }

    /// The text of an object.
    pub fn get(&self, resource: usize, key: &Key) -> Option<Arc<str>> {
        self.kinds[resource].get(key).cloned()
    }

    /// The files that changed since this was called last.
    pub fn take_changed(&mut self) -> Files {
        let mut files = Files::new();
        for kind in &mut self.kinds {
            for (number, shard) in (0..).zip(&mut kind.shards) {
                if std::mem::take(&mut shard.changed) {
                    files.insert(kind.resource.file(number), shard.file());
                }
            }
        }
        files
    }
}

impl KindStore {
    fn get(&self, key: &Key) -> Option<&Arc<str>> {
        let slot = self.index.get(key)?;
        self.shards[slot.shard as usize].slots[slot.line as usize].as_ref()
    }

    fn put(&mut self, key: &Key, text: Arc<str>) -> bool {
        if self.get(key).is_some_and(|known| *known == text) {
            return false;
        }
        let slot = match self.index.get(key) {
            Some(slot) => *slot,
            None => {
                let shard = shard_of(key, self.resource.shards);
                let slots = &mut self.shards[shard as usize].slots;
                let line = slots.iter().position(Option::is_none).unwrap_or(slots.len());
                if line == slots.len() {
                    slots.push(None);
                }
                let slot = Slot { shard, line: u32::try_from(line).unwrap_or(u32::MAX) };
                self.index.insert(key.clone(), slot);
                slot
            }
        };
        let shard = &mut self.shards[slot.shard as usize];
        self.octets += text.len();
        if let Some(old) = shard.slots[slot.line as usize].replace(text) {
            self.octets -= old.len();
        }
        shard.changed = true;
        true
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(slot) = self.index.remove(key) else { return false };
        let shard = &mut self.shards[slot.shard as usize];
        if let Some(old) = shard.slots[slot.line as usize].take() {
            self.octets -= old.len();
        }
        while shard.slots.last().is_some_and(Option::is_none) {
            shard.slots.pop();
        }
        shard.changed = true;
        true
    }
}

impl Shard {
    fn file(&self) -> Option<Vec<u8>> {
        if self.slots.is_empty() {
            return None;
        }
        let mut octets = Vec::with_capacity(self.slots.iter().flatten().map(|text| text.len() + 1).sum());
        for slot in &self.slots {
            octets.extend_from_slice(slot.as_deref().unwrap_or_default().as_bytes());
            octets.push(b'\n');
        }
        Some(octets)
    }
}

/// The same in every process and release: a collector that starts again finds its files as it would write them.
fn shard_of(key: &Key, shards: u32) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(key.namespace.as_bytes());
    hash.update(b"/");
    hash.update(key.name.as_bytes());
    hash.finalize() % shards
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "shop".into(), name: name.into() }
    }

    fn resource(plural: &str) -> usize {
        RESOURCES.iter().position(|resource| resource.plural == plural).expect("collected")
    }

    fn list(names: &[(&str, &str)]) -> Vec<(Key, Option<Arc<str>>)> {
        names.iter().map(|(name, text)| (key(name), Some((*text).into()))).collect()
    }

    fn texts(files: &Files) -> BTreeMap<&str, Option<String>> {
        let text = |octets: &Vec<u8>| String::from_utf8(octets.clone()).expect("text");
        files.iter().map(|(name, octets)| (name.as_str(), octets.as_ref().map(text))).collect()
    }

    #[test]
    fn it_is_whole_when_every_kind_was_listed_and_an_empty_list_is_one() {
        let mut store = Store::new();
        for resource in 0..RESOURCES.len() {
            assert!(!store.is_whole());
            assert!(store.replace(resource, &[]));
        }
        assert!(store.is_whole() && store.take_changed().is_empty());
        assert!(!store.replace(0, &[]));
    }

    #[test]
    fn what_stays_does_not_move_when_something_goes_and_an_empty_shard_is_no_file() {
        let mut store = Store::new();
        let config = resource("configmaps"); // one shard
        assert!(store.replace(config, &list(&[("a", "1"), ("b", "2"), ("c", "3")])));
        let file = RESOURCES[config].file(0);
        assert_eq!(texts(&store.take_changed()), BTreeMap::from([(file.as_str(), Some("1\n2\n3\n".to_owned()))]));
        assert!(store.remove(config, &key("b")) && !store.remove(config, &key("b")));
        assert_eq!(texts(&store.take_changed())[file.as_str()], Some("1\n\n3\n".to_owned()));
        assert!(store.apply(config, &key("d"), Some("4")));
        assert!(!store.apply(config, &key("d"), Some("4")));
        assert_eq!(texts(&store.take_changed())[file.as_str()], Some("1\n4\n3\n".to_owned()));
        assert!(store.take_changed().is_empty());
        assert!(store.apply(config, &key("c"), None), "no longer wanted is as good as gone");
        assert_eq!(store.size(config), (2, 2));
        assert!(store.replace(config, &list(&[])));
        assert_eq!(texts(&store.take_changed())[file.as_str()], None);
        assert_eq!(store.size(config), (0, 0));
    }

    #[test]
    fn one_object_that_changes_is_one_file_that_changes() {
        let mut store = Store::new();
        let pods = resource("pods");
        let names: Vec<String> = (0..2000).map(|number| format!("web-{number}")).collect();
        let all: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "old")).collect();
        store.replace(pods, &list(&all));
        assert!(store.take_changed().len() > 250, "spread over all shards");
        assert!(store.apply(pods, &key("web-7"), Some("new")));
        let changed = store.take_changed();
        let changed = texts(&changed);
        assert_eq!(changed.len(), 1);
        let text = changed.values().next().cloned().flatten().expect("a file");
        assert!(text.matches("new").count() == 1 && text.lines().count() < 50, "{text}");
    }

    #[test]
    fn a_list_that_says_nothing_new_shares_what_is_known() {
        let mut store = Store::new();
        let pods = resource("pods");
        store.replace(pods, &list(&[("a", "1"), ("b", "2")]));
        let reduced = |name: &str, text: &str| Reduced {
            key: key(name),
            version: "1".to_owned(),
            text: Some(text.to_owned()),
            api_version: "v1".to_owned(),
            conditions: Vec::new(),
        };
        let same = store.share(pods, reduced("a", "1")).1.expect("text");
        assert!(Arc::ptr_eq(&same, &store.get(pods, &key("a")).expect("known")));
        assert_eq!(&*store.share(pods, reduced("b", "3")).1.expect("text"), "3");
        store.take_changed();
        assert!(!store.replace(pods, &list(&[("b", "2"), ("a", "1")])), "the order of a list says nothing");
    }
}
