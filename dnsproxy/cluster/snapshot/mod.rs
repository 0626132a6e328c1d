//! All files of a directory as one generation of the world.
//!
//! Nothing here can fail: what can't be read is a [`Refusal`], and refusing never opens (I10). A wrong object keeps its last
//! good version, a wrong file all objects that it held; without one, what still holds of the object stands for it, or a
//! policy that shuts everyone.
//!
//! - `entries`: the objects of a file, read
//! - `generation`: all of them together, and what stands for those that are wrong
//! - `source`: a directory that is read again and again; what has not changed is not read again
//! - `last_good`: the last good version of everything

mod entries;
mod generation;
mod last_good;
mod source;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::fields::FaultKind;
use super::files::{self, File, FileHash};
use crate::engine::world::World;
pub use last_good::{Change, LastGood};
pub use source::Source;

use entries::parse_all;
use generation::Generation;

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
    pub generation_hash: FileHash,
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
/// and never half of two. Who reads it again and again keeps a [`Source`].
pub fn read(dir: &Path, last_good: &LastGood, on_invalid: OnInvalid) -> Snapshot {
    Source::new(dir).read(last_good, on_invalid)
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
    let hashes = files.iter().map(|file| (file.name.as_str(), files::hash(&file.content)));
    let hash = files::generation_hash(hashes);
    let parsed = parse_all(files);
    let files = files.iter().map(|file| file.name.as_str()).zip(&parsed);
    Generation::of(files, last_good, on_invalid).into_snapshot(hash)
}
