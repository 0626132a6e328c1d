//! `matchName` and `matchPattern`: which names a rule means, and a trie that asks thousands of them at once.
//!
//! The grammar is Cilium's. A pattern is matched label by label, from the top-level domain down:
//!
//! - text matches itself, without case;
//! - a run of stars inside a label matches any number of `[-a-z0-9_]`, none too, and never a dot;
//! - two or more stars as the first label (`**.`) match one label or several;
//! - stars and nothing else (`*`, `**`, `*.`) match every name: of toFQDNs, names of `[-a-z0-9_]` labels and the root;
//!   of `rules.dns`, whatever octets the name holds, but for labels that are refused always (a dot, a NUL).

use std::collections::HashMap;
use std::fmt;

use foldhash::quality::RandomState;

use super::name::{Labels, Name, is_pattern_octet};
use super::verdict::RuleRef;

/// The most characters of a pattern, as Cilium's schema has it.
pub const PATTERN_CHARS: usize = 255;
/// The most characters of a name without its final dot: 255 octets on the wire. RFC 1035, 3.1.
pub const NAME_CHARS: usize = 253;

/// A `matchName` or `matchPattern`, checked.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern {
    text: Box<str>,
    shape: Shape,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Shape {
    /// Stars and nothing else.
    Bare,
    /// Labels from the left; `several`: one or more labels stand before them.
    Labels { several: bool, labels: Box<[LabelShape]> },
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum LabelShape {
    Text(Box<[u8]>),
    Glob(Glob),
}

/// A label with stars: what stands before, between and after them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Glob {
    first: Box<[u8]>,
    between: Box<[Box<[u8]>]>,
    last: Box<[u8]>,
}

/// Why text is no `matchName` or `matchPattern`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PatternError {
    /// There is nothing.
    #[error("empty {field}; a name as \"example.com\"{} is allowed", if *.field == "matchPattern" { " or a pattern as \"*.example.com\"" } else { "" })]
    Empty {
        /// `matchName` or `matchPattern`.
        field: &'static str,
    },
    /// It is too long.
    #[error("{field} of {chars} characters; the limit is {limit}")]
    Long {
        /// `matchName` or `matchPattern`.
        field: &'static str,
        /// How many it has.
        chars: usize,
        /// How many it may have.
        limit: usize,
    },
    /// It holds a character that no name rule may hold.
    #[error("character {found:?} at {at} of {field} {text:?}; only a-z A-Z 0-9 - _ .{} are allowed", if *.field == "matchPattern" { " *" } else { "" })]
    Character {
        /// `matchName` or `matchPattern`.
        field: &'static str,
        /// All of it.
        text: String,
        /// The character.
        found: char,
        /// Which it is, the first being 1.
        at: usize,
    },
    /// Two dots, a dot at the front, or a dot alone.
    #[error("empty label at {at} of {field} {text:?}; a dot stands between labels or at the end")]
    EmptyLabel {
        /// `matchName` or `matchPattern`.
        field: &'static str,
        /// All of it.
        text: String,
        /// Which character the label would have started at, the first being 1.
        at: usize,
    },
}

impl Pattern {
    /// From a `matchName`: that name and no other.
    ///
    /// # Errors
    /// It is empty, longer than a name can be, holds a character outside `[-a-zA-Z0-9_.]` or an empty label.
    pub fn name(text: &str) -> Result<Pattern, PatternError> {
        check("matchName", text, |found| found != '*')?;
        let chars = text.strip_suffix('.').unwrap_or(text).len();
        if chars > NAME_CHARS {
            return Err(PatternError::Long { field: "matchName", chars, limit: NAME_CHARS });
        }
        Ok(Pattern::of(text))
    }

    /// From a `matchPattern`.
    ///
    /// # Errors
    /// It is empty, longer than [`PATTERN_CHARS`], holds a character outside `[-a-zA-Z0-9_.*]` or an empty label.
    #[expect(clippy::self_named_constructors, reason = "name and pattern, after the fields matchName and matchPattern")]
    pub fn pattern(text: &str) -> Result<Pattern, PatternError> {
        check("matchPattern", text, |_| true)?;
        Ok(Pattern::of(text))
    }

    /// `*`: every name.
    pub fn every() -> Pattern {
        Pattern::of("*")
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is made of stars alone.
    pub fn is_bare(&self) -> bool {
        self.shape == Shape::Bare
    }

    /// The name, when the pattern means exactly one.
    pub fn exact(&self) -> Option<Name> {
        match &self.shape {
            Shape::Labels { several: false, labels } if labels.iter().all(|l| matches!(l, LabelShape::Text(_))) => {
                Name::parse(&self.text).ok()
            }
            _ => None,
        }
    }

    /// The grammar without the checks.
    fn of(text: &str) -> Pattern {
        let folded = text.to_ascii_lowercase();
        let body = folded.strip_suffix('.').unwrap_or(&folded);
        let shape = if !body.is_empty() && body.bytes().all(|octet| octet == b'*') {
            Shape::Bare
        } else {
            let mut labels: Vec<&str> = if body.is_empty() { Vec::new() } else { body.split('.').collect() };
            let several = labels.first().is_some_and(|first| first.len() > 1 && first.bytes().all(|o| o == b'*'));
            if several {
                labels.remove(0);
            }
            Shape::Labels { several, labels: labels.into_iter().map(LabelShape::of).collect() }
        };
        Pattern { text: text.into(), shape }
    }
}

impl LabelShape {
    fn of(label: &str) -> LabelShape {
        if !label.contains('*') {
            return LabelShape::Text(label.as_bytes().into());
        }
        let mut parts: Vec<Box<[u8]>> = label.split('*').map(|part| part.as_bytes().into()).collect();
        let last = parts.pop().unwrap_or_default();
        let first = parts.remove(0);
        parts.retain(|part| !part.is_empty());
        LabelShape::Glob(Glob { first, between: parts.into(), last })
    }
}

impl Glob {
    /// Whether any label matches.
    fn is_star(&self) -> bool {
        self.first.is_empty() && self.between.is_empty() && self.last.is_empty()
    }

    fn matches(&self, label: &[u8]) -> bool {
        let Some(rest) = label.strip_prefix(&*self.first) else {
            return false;
        };
        let Some(mut rest) = rest.strip_suffix(&*self.last) else {
            return false;
        };
        // The leftmost place is always good enough: what stands between stars only has to come in this order.
        for part in &self.between {
            let Some(at) = rest.windows(part.len()).position(|window| window == &**part) else {
                return false;
            };
            rest = &rest[at + part.len()..];
        }
        label.iter().copied().all(is_pattern_octet)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

/// What a pattern of stars alone means: the one difference between `toFQDNs` and `rules.dns`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bare {
    /// Names whose labels are `[-a-z0-9_]`, and the root: `toFQDNs`.
    Valid,
    /// Every name but those that are refused always: `rules.dns`.
    Every,
}

/// Many patterns, asked at once: a trie over labels from the right, so that the work is in the labels of the name and
/// not in the number of patterns. No regular expression.
#[derive(Clone)]
pub struct PatternTrie<V> {
    bare: Bare,
    /// In the order they were inserted.
    entries: Vec<Entry<V>>,
    stars: Vec<u32>,
    nodes: Vec<Node>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry<V> {
    pattern: Pattern,
    value: V,
    rule: Option<RuleRef>,
}

#[derive(Clone, Default)]
struct Node {
    texts: HashMap<Box<[u8]>, u32, RandomState>,
    globs: Vec<(Glob, u32)>,
    /// Entries that end here.
    here: Vec<u32>,
    /// Entries that want one label more, or several.
    below: Vec<u32>,
}

/// How a pattern just misses a name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Miss {
    /// It means one name, and this one is below it.
    Below,
    /// It means what is below a name, and this is that name itself.
    Apex,
    /// Its star spans one label, and here are several.
    Deep,
}

/// A pattern that matched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found<'a, V> {
    /// What was inserted with it.
    pub value: &'a V,
    /// The rule it stands in.
    pub rule: Option<&'a RuleRef>,
    /// The pattern.
    pub pattern: &'a Pattern,
}

impl<V> PatternTrie<V> {
    /// Without patterns: matches nothing.
    pub fn new(bare: Bare) -> PatternTrie<V> {
        PatternTrie { bare, entries: Vec::new(), stars: Vec::new(), nodes: vec![Node::default()] }
    }

    /// Adds a pattern; the same one may be added several times, and then matches as often.
    pub fn insert(&mut self, pattern: Pattern, value: V, rule: Option<RuleRef>) {
        let entry = self.entries.len() as u32;
        match &pattern.shape {
            Shape::Bare => self.stars.push(entry),
            Shape::Labels { several, labels } => {
                let mut at = 0;
                for label in labels.iter().rev() {
                    at = self.child(at, label);
                }
                let node = &mut self.nodes[at as usize];
                if *several { node.below.push(entry) } else { node.here.push(entry) }
            }
        }
        self.entries.push(Entry { pattern, value, rule });
    }

    /// Every pattern that matches the name.
    pub fn matches<'a>(&'a self, name: &'a Name) -> Matches<'a, V> {
        let stars = match self.bare {
            _ if self.stars.is_empty() => false,
            Bare::Valid => name.has_only_pattern_octets(),
            Bare::Every => !name.is_refused_always(),
        };
        self.walk(name.labels(), if stars { &self.stars } else { &[] })
    }

    /// The pattern that comes nearest to a name that none matches, and how it misses; for people who wonder.
    ///
    /// One walk down the trie, like a match: however many patterns there are, a refusal costs no more.
    pub fn nearest(&self, name: &Name) -> Option<(Miss, Found<'_, V>)> {
        // A top-level domain alone says nothing about what was meant.
        const LEAST_LABELS: usize = 2;
        let all = name.labels().len();
        let mut best: Option<(usize, Miss, u32)> = None;
        let mut places = vec![(0, name.labels())];
        while let Some((at, mut labels)) = places.pop() {
            let node = &self.nodes[at as usize];
            let star = node.globs.iter().find(|(glob, _)| glob.is_star());
            let below_star = star.and_then(|(_, child)| self.nodes[*child as usize].here.first());
            let one_name = |entry: &&u32| !self.entries[**entry as usize].pattern.as_str().contains('*');
            let missed = match (labels.len(), below_star) {
                (0, _) => below_star.or(node.below.first()).map(|entry| (Miss::Apex, *entry)),
                (2.., Some(entry)) => Some((Miss::Deep, *entry)),
                _ => node.here.iter().find(one_name).map(|entry| (Miss::Below, *entry)),
            };
            let depth = all - labels.len();
            if let Some((miss, entry)) = missed
                && (depth >= LEAST_LABELS || miss == Miss::Deep && depth > 0)
                && best.is_none_or(|(deepest, known, _)| (deepest, known) < (depth, miss))
            {
                best = Some((depth, miss, entry));
            }
            let Some(label) = labels.next_back() else { continue };
            let children = node.globs.iter().filter(|(glob, _)| glob.matches(label)).map(|(_, child)| child);
            places.extend(children.chain(node.texts.get(label)).map(|child| (*child, labels.clone())));
        }
        best.map(|(_, miss, entry)| {
            let Entry { pattern, value, rule } = &self.entries[entry as usize];
            (miss, Found { value, rule: rule.as_ref(), pattern })
        })
    }

    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many patterns there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// All patterns, in the order they were inserted.
    pub fn iter(&self) -> impl Iterator<Item = Found<'_, V>> {
        self.entries.iter().map(|e| Found { value: &e.value, rule: e.rule.as_ref(), pattern: &e.pattern })
    }

    fn walk<'a>(&'a self, labels: Labels<'a>, stars: &'a [u32]) -> Matches<'a, V> {
        Matches { trie: self, found: stars.iter(), then: &[], next: Some((0, labels)), later: Vec::new() }
    }

    fn child(&mut self, at: u32, label: &LabelShape) -> u32 {
        let fresh = self.nodes.len() as u32;
        let node = &mut self.nodes[at as usize];
        let child = match label {
            LabelShape::Text(text) => *node.texts.entry(text.clone()).or_insert(fresh),
            LabelShape::Glob(glob) => match node.globs.iter().find(|(known, _)| known == glob) {
                Some((_, child)) => *child,
                None => {
                    node.globs.push((glob.clone(), fresh));
                    fresh
                }
            },
        };
        if child == fresh {
            self.nodes.push(Node::default());
        }
        child
    }
}

/// What [`PatternTrie::matches`] found. Allocates only where a label with a star and another label both match.
pub struct Matches<'a, V> {
    trie: &'a PatternTrie<V>,
    found: std::slice::Iter<'a, u32>,
    then: &'a [u32],
    next: Option<(u32, Labels<'a>)>,
    later: Vec<(u32, Labels<'a>)>,
}

impl<'a, V> Iterator for Matches<'a, V> {
    type Item = Found<'a, V>;

    fn next(&mut self) -> Option<Found<'a, V>> {
        loop {
            if let Some(&entry) = self.found.next() {
                let Entry { pattern, value, rule } = &self.trie.entries[entry as usize];
                return Some(Found { value, rule: rule.as_ref(), pattern });
            }
            if !self.then.is_empty() {
                self.found = std::mem::take(&mut self.then).iter();
                continue;
            }
            let (at, mut labels) = self.next.take().or_else(|| self.later.pop())?;
            let node = &self.trie.nodes[at as usize];
            if labels.len() == 0 {
                self.found = node.here.iter();
                continue;
            }
            if !node.below.is_empty()
                && labels.clone().all(|l| !l.is_empty() && l.iter().copied().all(is_pattern_octet))
            {
                self.then = &node.below;
            }
            let label = labels.next_back().unwrap_or_default();
            for (glob, child) in &node.globs {
                if glob.matches(label) {
                    self.later.push((*child, labels.clone()));
                }
            }
            if let Some(&child) = node.texts.get(label) {
                self.next = Some((child, labels));
            }
        }
    }
}

/// Equal when they hold the same patterns with the same values and rules, in the same order.
impl<V: PartialEq> PartialEq for PatternTrie<V> {
    fn eq(&self, other: &Self) -> bool {
        self.bare == other.bare && self.entries == other.entries
    }
}

impl<V: Eq> Eq for PatternTrie<V> {}

impl<V: fmt::Debug> fmt::Debug for PatternTrie<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.entries.iter().map(|entry| (&entry.pattern, &entry.value))).finish()
    }
}

/// What the schema of Cilium's policies demands of both fields: `^([-a-zA-Z0-9_*]+[.]?)+$`, at most 255 characters.
fn check(field: &'static str, text: &str, allowed: impl Fn(char) -> bool) -> Result<(), PatternError> {
    let chars = text.chars().count();
    if chars == 0 {
        return Err(PatternError::Empty { field });
    }
    if chars > PATTERN_CHARS {
        return Err(PatternError::Long { field, chars, limit: PATTERN_CHARS });
    }
    let mut before = '.';
    for (at, found) in (1..).zip(text.chars()) {
        let known = found.is_ascii_alphanumeric() || matches!(found, '-' | '_' | '.' | '*');
        if !known || !allowed(found) {
            return Err(PatternError::Character { field, text: text.to_owned(), found, at });
        }
        if found == '.' && before == '.' {
            return Err(PatternError::EmptyLabel { field, text: text.to_owned(), at });
        }
        before = found;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
