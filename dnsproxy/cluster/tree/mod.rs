//! YAML and JSON as a tree in which every key and value knows its line and column.
//!
//! Objects are decoded from it by hand, so that each error can name its place, all errors of an object are found at once,
//! and something can still be read from an object that is wrong elsewhere.

mod json;
mod yaml;

pub use json::{lines as json_lines, parse as json, write as write_json};
pub use yaml::parse as yaml;

use std::fmt;

/// How deep values may be nested.
pub const DEPTH: usize = 100;
/// How many values a file may hold; 20 000 pods in one file are about 4 million.
pub const VALUES: usize = 8_000_000;
/// How many values a document may hold, or an item of a `List`: an API server takes no object of more than some megabytes.
pub const OBJECT_VALUES: usize = 100_000;
/// How many octets a text may have. An API server takes no object of more than some megabytes.
pub const TEXT_OCTETS: usize = 2 << 20;
/// How many documents a YAML file may hold.
pub const DOCUMENTS: usize = 200_000;
/// How many anchors a YAML document may hold.
pub const ANCHORS: usize = 1_000;
/// How many values all aliases of a YAML file may stand for, once written out.
pub const ALIASED_VALUES: usize = 20_000;
/// How many octets of text, keys included, they may stand for.
pub const ALIASED_OCTETS: usize = 256 << 10;

/// A place in a file: line and column in characters, both from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

/// A value and where it starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Where.
    pub at: Place,
    /// What.
    pub value: Value,
}

/// What stands in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Nothing, or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, as written.
    Number(Box<str>),
    /// `y`, `n`, `yes`, `no`, `on`, `off` without quotes: a boolean to YAML 1.1, which Kubernetes' tools read, text to YAML
    /// 1.2. Accepted as neither.
    Ambiguous(Box<str>),
    /// Text.
    Text(Box<str>),
    /// A list.
    List(Vec<Node>),
    /// A map, in the order in which its keys stand; a key may occur twice, which is for the reader to refuse.
    Map(Vec<(Key, Node)>),
}

/// A key of a map and where it starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    /// Where.
    pub at: Place,
    /// What.
    pub text: Box<str>,
    /// See [`Value::Ambiguous`]: `true` or `false` to Kubernetes' tools, whatever stands there.
    pub ambiguous: bool,
}

/// Why a file is no tree: the file as a whole can't be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{at}: {text}")]
pub struct TreeError {
    /// Where reading ended.
    pub at: Place,
    /// What was found and what is allowed.
    pub text: String,
}

impl Node {
    /// The value of a key, the first if there are several.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(known, _)| &*known.text == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text, if it is text.
    pub fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A copy with only these paths, as `metadata.labels`; a list on the way keeps all its elements.
    #[must_use]
    pub fn only(&self, paths: &[&[&str]]) -> Node {
        let value = match &self.value {
            _ if paths.iter().any(|path| path.is_empty()) => self.value.clone(),
            Value::Map(entries) => Value::Map(
                entries
                    .iter()
                    .filter_map(|(key, value)| {
                        let below = paths.iter().filter(|path| path[0] == &*key.text).map(|path| &path[1..]);
                        let below: Vec<&[&str]> = below.collect();
                        (!below.is_empty()).then(|| (key.clone(), value.only(&below)))
                    })
                    .collect(),
            ),
            Value::List(items) => Value::List(items.iter().map(|item| item.only(paths)).collect()),
            other => other.clone(),
        };
        Node { at: self.at, value }
    }
}

impl Value {
    /// What it is, for an error: `number 53`, `a list`.
    pub fn describe(&self) -> String {
        match self {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => format!("boolean {value}"),
            Value::Number(text) => format!("number {text}"),
            Value::Ambiguous(text) => format!("{text} without quotes, a boolean to some readers and text to others"),
            Value::Text(text) => format!("text {text:?}"),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}
