//! The objects of a file, read.

use std::sync::Arc;

use super::last_good::Kept;
use crate::cluster::fields::{Fault, Reader, Source};
use crate::cluster::files::{self, File};
use crate::cluster::manifest::{self, Found, Kind, Object};
use crate::cluster::tree::{self, Node, TreeError, write_json};

/// What a file holds; or where and why it can't be read.
pub(super) type Parsed = Result<Held, (String, String)>;

/// The objects of a file.
#[derive(Debug)]
pub(super) struct Held {
    pub entries: Vec<Entry>,
    /// How many more are of kinds that are not read.
    pub skipped: usize,
}

/// An object as it stands in its file.
#[derive(Debug)]
pub(super) struct Entry {
    pub kind: Option<Kind>,
    pub key: Option<String>,
    /// File, place, and the parts of it that are read, as JSON.
    pub kept: Arc<Kept>,
    pub faults: Vec<Fault>,
    pub object: Option<Object>,
}

/// With fewer octets than this it is not worth starting threads.
const FEW_OCTETS: usize = 1 << 20;

/// What each file holds, read on all processors if it is much.
pub(super) fn parse_all(files: &[File]) -> Vec<Parsed> {
    let octets = |file: &File| file.content.as_ref().map_or(0, Vec::len);
    let all: usize = files.iter().map(octets).sum();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if all < FEW_OCTETS || threads == 1 {
        return files.iter().map(parse).collect();
    }
    // In stretches of about the same size.
    let share = all.div_ceil(threads);
    let mut stretches = Vec::new();
    let (mut rest, mut size, mut end) = (files, 0, 0);
    while end < rest.len() {
        size += octets(&rest[end]);
        end += 1;
        if size >= share || end == rest.len() {
            let (stretch, others) = rest.split_at(end);
            stretches.push(stretch);
            (rest, size, end) = (others, 0, 0);
        }
    }
    std::thread::scope(|scope| {
        let parse = |stretch: &'_ [File]| stretch.iter().map(parse).collect::<Vec<_>>();
        let started: Vec<_> = stretches.iter().map(|stretch| scope.spawn(move || parse(stretch))).collect();
        let ended = started.into_iter().map(std::thread::ScopedJoinHandle::join);
        ended.flat_map(|stretch| stretch.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

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
    let broken = |error: TreeError| (format!("{}:{}", file.name, error.at), error.text);
    let documents = documents.map_err(broken)?;
    let mut held = Held { entries: Vec::new(), skipped: 0 };
    for document in &documents {
        for found in manifest::found(document).map_err(broken)? {
            match found {
                Found::Other => held.skipped += 1,
                Found::Object(kind, node) => held.entries.push(entry(&file.name, Ok(kind), node)),
                Found::Stray(node, why) => held.entries.push(entry(&file.name, Err(why), node)),
            }
        }
    }
    Ok(held)
}

/// An object of a kind, or what is none and why.
fn entry(file: &str, kind: Result<Kind, String>, node: &Node) -> Entry {
    let reader = Reader::new(Source::File(file));
    let kind = kind.map_err(|why| reader.root(node).fault(why)).ok();
    let object = kind.map(|kind| manifest::read(kind, &reader.root(node)));
    let text = kind.map_or_else(|| write_json(node), |kind| write_json(&kind.prune(node)));
    Entry {
        kind,
        key: kind.and_then(|kind| manifest::key(kind, node)),
        kept: Arc::new(Kept { file: file.to_owned(), place: format!("{file}:{}", node.at), text }),
        faults: reader.into_faults(),
        object,
    }
}
