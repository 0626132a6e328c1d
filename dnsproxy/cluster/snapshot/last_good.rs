//! The last good version of every object and file, for the time when it is wrong. Part of what outlives the process.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::engine::world::Objects;

/// See the module. A clone shares everything.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct LastGood {
    /// Files that could be read: what they held is known, though it may be nothing.
    pub(super) files: Objects<String, ()>,
    /// By kind, namespace and name.
    pub(super) objects: Objects<String, Kept>,
}

/// An object as it was when it was good.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Kept {
    pub(super) file: String,
    pub(super) place: String,
    /// The object as JSON, as far as it is read.
    pub(super) text: String,
}

/// One step from a [`LastGood`] to the next, to be written down.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// This file could be read.
    File(String),
    /// This file is no more.
    FileGone(String),
    /// This object is good, and this is what it says.
    Object(String, Kept),
    /// This object is no more.
    ObjectGone(String),
}

/// All of it as one text.
#[derive(Serialize, Deserialize)]
struct Written {
    files: BTreeSet<String>,
    objects: BTreeMap<String, Kept>,
}

impl LastGood {
    /// The steps from `older` to this. What both share is not compared.
    pub fn changes(&self, older: &LastGood) -> Vec<Change> {
        let files = self.files.changes(&older.files).into_iter().map(|(name, _, is)| match is {
            Some(()) => Change::File(name.clone()),
            None => Change::FileGone(name.clone()),
        });
        let objects = self.objects.changes(&older.objects).into_iter().map(|(key, _, is)| match is {
            Some(kept) => Change::Object(key.clone(), kept.clone()),
            None => Change::ObjectGone(key.clone()),
        });
        files.chain(objects).collect()
    }

    /// Takes a step.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::File(name) => drop(self.files.insert(name, ())),
            Change::FileGone(name) => drop(self.files.remove(&name)),
            Change::Object(key, kept) => drop(self.objects.insert(key, kept)),
            Change::ObjectGone(key) => drop(self.objects.remove(&key)),
        }
    }

    /// How many files and objects it knows.
    pub fn len(&self) -> usize {
        self.files.len() + self.objects.len()
    }

    /// Whether it knows nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Written> for LastGood {
    fn from(written: Written) -> LastGood {
        LastGood {
            files: written.files.into_iter().map(|name| (name, ())).collect(),
            objects: written.objects.into_iter().collect(),
        }
    }
}

impl From<LastGood> for Written {
    fn from(last_good: LastGood) -> Written {
        Written {
            files: last_good.files.keys().cloned().collect(),
            objects: last_good.objects.iter().map(|(key, kept)| (key.clone(), kept.clone())).collect(),
        }
    }
}
