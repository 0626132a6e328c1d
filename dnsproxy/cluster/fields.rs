//! Reads a tree field by field and collects everything that is wrong with it, instead of stopping at the first.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::tree::{Key, Node, Place, Value};

/// The most characters of a fault's text, and of its path.
const TEXT_CHARS: usize = 1_000;

/// What is wrong with an object, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Where in the file.
    pub at: Place,
    /// `file:line:column`.
    pub place: String,
    /// The path inside the object, as `spec.egress[0].toPorts`; empty for the object itself.
    pub path: String,
    /// What was found; what is allowed.
    pub text: String,
    /// What it does to the object.
    pub kind: FaultKind,
}

/// What a fault does to its object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultKind {
    /// The object is refused.
    #[default]
    Wrong,
    /// It says what namegate does not see to yet: the item that says it allows nothing, the rest of the object is in force.
    Unenforced,
    /// It is wrong unless the snapshot's `cilium-config` has `enable-node-selector-labels: "true"`.
    NodeLabels,
}

/// Where faults go while one object is read.
#[derive(Debug)]
pub struct Reader<'t> {
    source: Source<'t>,
    faults: RefCell<Vec<Fault>>,
}

/// Where a tree came from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'t> {
    /// This file.
    File(&'t str),
    /// A copy of what once stood at this place: the places in the tree are those of the copy.
    Kept(&'t str),
}

/// A value of a tree, with the way to it.
#[derive(Clone, Copy)]
pub struct Field<'t> {
    /// The value.
    pub node: &'t Node,
    reader: &'t Reader<'t>,
    parent: Option<&'t Field<'t>>,
    step: Step<'t>,
}

#[derive(Clone, Copy)]
enum Step<'t> {
    Object,
    Key(&'t str),
    Index(usize),
}

impl<'t> Reader<'t> {
    /// For one object of `source`.
    pub fn new(source: Source<'t>) -> Reader<'t> {
        Reader { source, faults: RefCell::default() }
    }

    /// The object itself.
    pub fn root(&'t self, node: &'t Node) -> Field<'t> {
        Field { node, reader: self, parent: None, step: Step::Object }
    }

    /// How much was found so far that makes the object wrong.
    pub fn faults(&self) -> usize {
        self.faults.borrow().iter().filter(|fault| fault.kind == FaultKind::Wrong).count()
    }

    /// Everything that was wrong, in the order in which it stands.
    pub fn into_faults(self) -> Vec<Fault> {
        let mut faults = self.faults.into_inner();
        faults.sort_by_key(|fault| fault.at);
        faults.dedup();
        faults
    }
}

impl<'t> Field<'t> {
    /// Notes that the value is wrong.
    pub fn fault(&self, text: impl Into<String>) {
        self.fault_at(self.node.at, self.path(), text.into());
    }

    /// Notes something about the value of a key of a map, at the key.
    pub fn fault_of(&self, key: &str, kind: FaultKind, text: impl Into<String>) {
        let at = match &self.node.value {
            Value::Map(entries) => entries.iter().find(|(known, _)| &*known.text == key).map(|(known, _)| known.at),
            _ => None,
        };
        self.note(at.unwrap_or(self.node.at), self.path_of(key), text.into(), kind);
    }

    fn fault_at(&self, at: Place, path: String, text: String) {
        self.note(at, path, text, FaultKind::Wrong);
    }

    fn note(&self, at: Place, path: String, text: String, kind: FaultKind) {
        let (path, text) = (shortened(path), shortened(text));
        self.reader.faults.borrow_mut().push(Fault { at, place: self.place_of(at), path, text, kind });
    }

    /// `file:line:column`.
    pub fn place(&self) -> String {
        self.place_of(self.node.at)
    }

    fn place_of(&self, at: Place) -> String {
        match self.reader.source {
            Source::File(file) => format!("{file}:{at}"),
            Source::Kept(place) => place.to_owned(),
        }
    }

    /// The path inside the object.
    pub fn path(&self) -> String {
        self.to_string()
    }

    /// How much of the object was found wrong so far: more after reading something than before, and it was wrong.
    pub fn faults(&self) -> usize {
        self.reader.faults()
    }

    /// The entries of a map, each key once and text to every reader.
    pub fn entries(&self) -> Option<&'t [(Key, Node)]> {
        let Value::Map(entries) = &self.node.value else {
            self.fault(format!("{}; a map is allowed", self.node.value.describe()));
            return None;
        };
        let mut seen = BTreeSet::new();
        for (key, _) in entries {
            if key.ambiguous {
                let found = Value::Ambiguous(key.text.clone()).describe();
                self.fault_at(key.at, self.path_of(&key.text), format!("{found}; text is allowed: {:?}", key.text));
            }
            if !seen.insert(&key.text) {
                self.fault_at(
                    key.at,
                    self.path_of(&key.text),
                    format!("key {:?} a second time; once is allowed", key.text),
                );
            }
        }
        Some(entries)
    }

    /// Notes every key that is not `known`. Whether there was one, or one stands twice: then nobody can tell what was meant.
    pub fn only(&self, known: &[&str]) -> bool {
        let before = self.faults();
        self.entries();
        for (key, _) in self.entries_unchecked() {
            if !known.contains(&&*key.text) {
                let text = format!("{} is no field here; allowed: {}", shown(&key.text), known.join(", "));
                self.fault_at(key.at, self.path_of(&key.text), text);
            }
        }
        self.faults() > before
    }

    fn entries_unchecked(&self) -> &'t [(Key, Node)] {
        match &self.node.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The value of a key of a map.
    pub fn get<'s>(&'s self, key: &'s str) -> Option<Field<'s>> {
        let node = self.node.get(key)?;
        Some(Field { node, reader: self.reader, parent: Some(self), step: Step::Key(key) })
    }

    /// The values of a key, should it stand several times.
    pub fn all<'s>(&'s self, key: &'s str) -> impl Iterator<Item = Field<'s>> + use<'s, 't> {
        let values = self.entries_unchecked().iter().filter(move |(known, _)| &*known.text == key);
        values.map(move |(_, node)| Field { node, reader: self.reader, parent: Some(self), step: Step::Key(key) })
    }

    /// The value of a key, unless it is null, as objects that come from a server never have it.
    pub fn get_some<'s>(&'s self, key: &'s str) -> Option<Field<'s>> {
        self.get(key).filter(|field| field.node.value != Value::Null)
    }

    /// The elements of a list.
    pub fn list<'s>(&'s self) -> Option<impl ExactSizeIterator<Item = Field<'s>> + use<'s, 't>> {
        let Value::List(items) = &self.node.value else {
            self.fault(format!("{}; a list is allowed", self.node.value.describe()));
            return None;
        };
        Some(items.iter().enumerate().map(move |(index, node)| Field {
            node,
            reader: self.reader,
            parent: Some(self),
            step: Step::Index(index),
        }))
    }

    /// Text.
    pub fn text(&self) -> Option<&'t str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Number(text) | Value::Ambiguous(text) => {
                self.fault(format!("{}; text is allowed: {text:?}", self.node.value.describe()));
                None
            }
            Value::Bool(value) => {
                self.fault(format!("boolean {value}; text is allowed: \"{value}\""));
                None
            }
            other => {
                self.fault(format!("{}; text is allowed", other.describe()));
                None
            }
        }
    }

    /// A boolean.
    pub fn boolean(&self) -> Option<bool> {
        match &self.node.value {
            Value::Bool(value) => Some(*value),
            other => {
                self.fault(format!("{}; true or false is allowed", other.describe()));
                None
            }
        }
    }

    /// A number without sign, fraction or exponent. What starts with 0 is octal to some readers, and no number here.
    pub fn whole(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let found = match &self.node.value {
            // Digits alone: these are numbers to JSON too, in which last good versions are kept.
            Value::Number(text)
                if text.bytes().all(|octet| octet.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0')) =>
            {
                text.parse().ok().filter(|number| range.contains(number))
            }
            _ => None,
        };
        if found.is_none() {
            let (from, to) = range.into_inner();
            let octal = matches!(&self.node.value, Value::Number(text) if text.len() > 1 && text.starts_with('0'));
            let why = if octal { ", which starts with 0 and is octal to some readers" } else { "" };
            self.fault(format!("{}{why}; a number from {from} to {to} is allowed", self.node.value.describe()));
        }
        found
    }

    /// A port from 1 to 65535, written as a number.
    pub fn port(&self) -> Option<u16> {
        self.whole(1..=65535).and_then(|port| port.try_into().ok())
    }

    /// One of these texts.
    pub fn one_of(&self, what: &str, allowed: &[&'static str]) -> Option<&'static str> {
        let text = self.text()?;
        let found = allowed.iter().find(|known| **known == text).copied();
        if found.is_none() {
            self.fault(format!("{what} {text:?}; allowed: {}", allowed.join(", ")));
        }
        found
    }

    /// An address of either family.
    pub fn address(&self) -> Option<IpAddr> {
        let text = self.text()?;
        let address = text.parse::<IpAddr>().ok();
        if address.is_none() {
            self.fault(format!("{text:?} is no address; IPv4 as \"192.0.2.1\" or IPv6 as \"2001:db8::1\" is allowed"));
        }
        address.map(|address| address.to_canonical())
    }

    /// The value of a key that must be there.
    pub fn need<'s>(&'s self, key: &'s str) -> Option<Field<'s>> {
        let found = self.get_some(key);
        if found.is_none() && matches!(self.node.value, Value::Map(_)) {
            self.fault_at(self.node.at, self.path_of(key), format!("no {key}; it is needed"));
        }
        found
    }

    fn path_of(&self, key: &str) -> String {
        let path = self.path();
        if path.is_empty() { shown(key) } else { format!("{path}.{}", shown(key)) }
    }
}

/// The path inside the object.
impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            fmt::Display::fmt(parent, f)?;
        }
        match self.step {
            Step::Object => Ok(()),
            Step::Key(key) if self.parent.is_none_or(|parent| matches!(parent.step, Step::Object)) => {
                f.write_str(&shown(key))
            }
            Step::Key(key) => write!(f, ".{}", shown(key)),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.text)
    }
}

/// A text that a person can read: what was found may be megabytes.
fn shortened(text: String) -> String {
    match text.char_indices().nth(TEXT_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A key for people: as it stands if it is plain, else quoted and escaped.
fn shown(key: &str) -> String {
    let plain = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.' | b'/' | b':');
    if !key.is_empty() && key.bytes().all(plain) { key.to_owned() } else { format!("{key:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tree;

    #[track_caller]
    fn faults(yaml: &str, read: impl Fn(&Field<'_>)) -> Vec<String> {
        let documents = tree::yaml(yaml).unwrap();
        let reader = Reader::new(Source::File("a.yaml"));
        read(&reader.root(&documents[0]));
        reader.into_faults().iter().map(Fault::to_string).collect()
    }

    #[test]
    fn a_fault_names_place_path_what_was_found_and_what_is_allowed() {
        let found = faults("spec:\n  list:\n  - a: 1\n  - a: x\n", |object| {
            let spec = object.get("spec").unwrap();
            for item in spec.get("list").unwrap().list().unwrap() {
                item.need("a").unwrap().text();
                item.need("b");
            }
        });
        assert_eq!(
            found,
            [
                "a.yaml:3:5: spec.list[0].b: no b; it is needed",
                "a.yaml:3:8: spec.list[0].a: number 1; text is allowed: \"1\"",
                "a.yaml:4:5: spec.list[1].b: no b; it is needed",
            ]
        );
    }

    #[test]
    fn unknown_and_repeated_keys_are_faults() {
        let found = faults("a: 1\nb: 2\nc: 3\na: 4\n\"x\\u001by\": 5\n", |object| {
            assert!(object.only(&["a", "b"]));
        });
        assert_eq!(
            found,
            [
                "a.yaml:3:1: c: c is no field here; allowed: a, b",
                "a.yaml:4:1: a: key \"a\" a second time; once is allowed",
                "a.yaml:5:1: \"x\\u{1b}y\": \"x\\u{1b}y\" is no field here; allowed: a, b",
            ]
        );
    }

    #[test]
    fn numbers_are_plain_and_in_their_range() {
        for (text, number) in [
            ("1", Some(1)),
            ("0", None),
            ("80", Some(80)),
            ("81", None),
            ("010", None),
            ("+1", None),
            ("1_0", None),
            ("1e1", None),
            ("\"1\"", None),
        ] {
            faults(&format!("a: {text}\n"), |object| {
                assert_eq!(object.get("a").unwrap().whole(1..=80), number, "{text}");
            });
        }
    }

    #[test]
    fn what_is_not_enforced_is_noted_at_its_key_and_is_not_wrong() {
        let found = faults("a:\n  b:\n  - 1\n", |object| {
            object.get("a").unwrap().fault_of("b", FaultKind::Unenforced, "not enforced");
            assert_eq!(object.faults(), 0);
        });
        assert_eq!(found, ["a.yaml:2:3: a.b: not enforced"]);
    }

    #[test]
    fn what_was_kept_has_the_place_where_it_once_stood() {
        let documents = tree::yaml("a: 1\n").unwrap();
        let reader = Reader::new(Source::Kept("b.yaml:7:1"));
        reader.root(&documents[0]).get("a").unwrap().text();
        assert_eq!(reader.into_faults()[0].to_string(), "b.yaml:7:1: a: number 1; text is allowed: \"1\"");
    }
}
