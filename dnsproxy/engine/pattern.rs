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

    /// Whether it spans one label where `**.` would span several: what people expect `*.` to do.
    pub fn would_match_with_two_stars(&self, name: &Name) -> bool {
        let Some(rest) = self.text.strip_prefix("*.") else {
            return false;
        };
        let mut trie = PatternTrie::new(Bare::Valid);
        trie.insert(Pattern::of(&format!("**.{rest}")), (), None);
        trie.matches(name).next().is_some()
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
    texts: HashMap<Box<[u8]>, u32>,
    globs: Vec<(Glob, u32)>,
    /// Entries that end here.
    here: Vec<u32>,
    /// Entries that want one label more, or several.
    below: Vec<u32>,
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whether `pattern` selects `name`, asked of a trie that holds other patterns too.
    #[track_caller]
    fn selects(bare: Bare, pattern: &str, name: &Name) -> bool {
        let mut trie = PatternTrie::new(bare);
        for other in ["other.example", "*.cilium.example", "**.ubuntu.example"] {
            trie.insert(Pattern::of(other), 0, None);
        }
        trie.insert(Pattern::of(pattern), 1, None);
        trie.matches(name).any(|found| *found.value == 1)
    }

    #[track_caller]
    fn refused(pattern: Result<Pattern, PatternError>, why: &str) {
        assert_eq!(pattern.unwrap_err().to_string(), why);
    }

    #[test]
    fn every_row_of_the_conformance_table_holds() {
        let table = include_str!("../../integration/conformance/match.tsv");
        let mut rows = 0;
        for line in table.lines().filter(|line| !line.starts_with('#')) {
            let [pattern, name, matches, source] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("a row has four columns: {line:?}");
            };
            rows += 1;
            // The schema refuses the pattern `.` alone; its rows hold for the grammar.
            assert_eq!(Pattern::pattern(pattern).is_err(), pattern == ".", "{pattern}");
            let Ok(parsed) = Name::parse(name) else {
                // A name with an empty label can't arrive on the wire: rows that say `yes` are moot, all others hold.
                assert!(name.starts_with('.') || name.contains(".."), "{name}");
                let labels: Vec<&[u8]> = name.trim_end_matches('.').split('.').map(str::as_bytes).collect();
                assert_eq!(naive(Bare::Valid, pattern, &labels), matches == "yes", "{line}");
                continue;
            };
            assert_eq!(selects(Bare::Valid, pattern, &parsed), matches == "yes", "toFQDNs {pattern} {name} ({source})");
            let bare = Pattern::of(pattern).is_bare();
            assert_eq!(selects(Bare::Every, pattern, &parsed), matches == "yes" || bare, "rules.dns {pattern} {name}");
            let labels: Vec<&[u8]> = parsed.labels().collect();
            assert_eq!(naive(Bare::Valid, pattern, &labels), matches == "yes", "the naive matcher: {line}");
        }
        assert!(rows >= 140, "{rows} rows");
    }

    #[test]
    fn a_bare_star_of_rules_dns_lets_through_octets_that_no_selector_selects() {
        let space = Name::parse("a b.example").unwrap();
        for pattern in ["*", "**", "*.", "***."] {
            assert!(selects(Bare::Every, pattern, &space));
            assert!(!selects(Bare::Valid, pattern, &space));
        }
        for pattern in ["*.example", "**.example", "a*b.example"] {
            assert!(!selects(Bare::Every, pattern, &space), "{pattern}");
        }
    }

    #[test]
    fn nothing_matches_a_label_with_a_dot_or_a_nul() {
        for wire in [b"\x03a.b\x07example\0".as_slice(), b"\x02a\0\x07example\0"] {
            let name = Name::from_wire(wire).unwrap();
            for pattern in ["*", "*.example", "**.example", "a.b.example", "*.b.example"] {
                assert!(!selects(Bare::Every, pattern, &name), "{pattern}");
                assert!(!selects(Bare::Valid, pattern, &name), "{pattern}");
            }
        }
    }

    #[test]
    fn a_near_miss_of_one_star_is_seen() {
        let deep = Name::parse("a.b.cilium.io").unwrap();
        assert!(Pattern::pattern("*.cilium.io").unwrap().would_match_with_two_stars(&deep));
        assert!(!Pattern::pattern("*.cilium.org").unwrap().would_match_with_two_stars(&deep));
        assert!(!Pattern::pattern("*cilium.io").unwrap().would_match_with_two_stars(&deep));
    }

    #[test]
    fn an_exact_pattern_knows_its_name() {
        assert_eq!(Pattern::pattern("A.example.").unwrap().exact(), Name::parse("a.example").ok());
        assert_eq!(Pattern::pattern("*.example").unwrap().exact(), None);
        assert_eq!(Pattern::pattern("**.example").unwrap().exact(), None);
        assert_eq!(Pattern::every().exact(), None);
    }

    #[test]
    fn what_the_schema_refuses_is_refused_with_its_place() {
        refused(Pattern::name(""), "empty matchName; a name as \"example.com\" is allowed");
        refused(
            Pattern::pattern(""),
            "empty matchPattern; a name as \"example.com\" or a pattern as \"*.example.com\" is allowed",
        );
        refused(
            Pattern::name("*.cilium.io"),
            "character '*' at 1 of matchName \"*.cilium.io\"; only a-z A-Z 0-9 - _ . are allowed",
        );
        refused(
            Pattern::pattern("[a-z]*.cilium.io."),
            "character '[' at 1 of matchPattern \"[a-z]*.cilium.io.\"; only a-z A-Z 0-9 - _ . * are allowed",
        );
        refused(
            Pattern::name("foo..com"),
            "empty label at 5 of matchName \"foo..com\"; a dot stands between labels or at the end",
        );
        refused(Pattern::pattern(&"*".repeat(256)), "matchPattern of 256 characters; the limit is 255");
        refused(Pattern::name(&"x".repeat(255)), "matchName of 255 characters; the limit is 253");
        let bad = "a{1,2}.cilium.io.|cilium io|foo.com |\tfoo.com|cilium.io/|http://cilium.io|foo:53|cilium,io|\
                   *.ci+lium.io|m\u{fc}nchen.de|foo@bar.com|(a\\|b).com|^foo.com$|foo?.com|a\\.com|%41.com|1.2.3.4/32|\
                   ::1|-invalid-pattern(|foo..com|.foo.com|.|..|*..com";
        for text in bad.split('|') {
            assert!(Pattern::pattern(text).is_err() && Pattern::name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_the_schema_accepts_is_accepted() {
        for name in "cilium.io. get-cilium.io. foo.cilium.io. cilium.io _cilium.io -foo.com foo-.com _ \
                     xn--bcher-kva.de 1.2.3.4"
            .split_whitespace()
        {
            assert!(Pattern::name(name).is_ok() && Pattern::pattern(name).is_ok(), "{name}");
        }
        for pattern in ["*.cilium.io", "*._cilium.io", "*cilium.io", "*.", "**", &"*".repeat(255)] {
            assert!(Pattern::pattern(pattern).is_ok(), "{pattern}");
        }
    }

    #[test]
    fn tries_are_equal_when_their_entries_are() {
        let trie = |texts: &[&str]| {
            let mut trie = PatternTrie::new(Bare::Valid);
            texts.iter().for_each(|text| trie.insert(Pattern::of(text), (), None));
            trie
        };
        assert_eq!(trie(&["a.example", "*.b"]), trie(&["a.example", "*.b"]));
        assert_ne!(trie(&["a.example"]), trie(&["*.example"]));
        assert_eq!(format!("{:?}", trie(&["*.b"])), "{\"*.b\": ()}");
    }

    /// The grammar once more, as plainly as it can be said: no trie, backtracking.
    fn naive(bare: Bare, pattern: &str, labels: &[&[u8]]) -> bool {
        fn glob(pattern: &[u8], label: &[u8]) -> bool {
            match (pattern.split_first(), label.split_first()) {
                (None, None) => true,
                (Some((b'*', rest)), _) => {
                    glob(rest, label)
                        || label.split_first().is_some_and(|(o, l)| is_pattern_octet(*o) && glob(pattern, l))
                }
                (Some((p, rest)), Some((o, l))) => p == o && glob(rest, l),
                _ => false,
            }
        }
        let valid = |label: &&[u8]| !label.is_empty() && label.iter().all(|octet| is_pattern_octet(*octet));
        let text = pattern.to_ascii_lowercase();
        let body = text.strip_suffix('.').unwrap_or(&text);
        if !body.is_empty() && body.chars().all(|c| c == '*') {
            return match bare {
                Bare::Valid => labels.iter().all(valid),
                Bare::Every => !labels.iter().any(|label| label.contains(&b'.') || label.contains(&0)),
            };
        }
        let wanted: Vec<&str> = if body.is_empty() { vec![] } else { body.split('.').collect() };
        if wanted.first().is_some_and(|first| first.len() > 1 && first.chars().all(|c| c == '*')) {
            let rest = &wanted[1..];
            let Some(extra) = labels.len().checked_sub(rest.len()).filter(|extra| *extra > 0) else {
                return false;
            };
            return labels[..extra].iter().all(valid)
                && rest.iter().zip(&labels[extra..]).all(|(p, label)| glob(p.as_bytes(), label));
        }
        wanted.len() == labels.len() && wanted.iter().zip(labels).all(|(p, label)| glob(p.as_bytes(), label))
    }

    fn pattern_text() -> impl Strategy<Value = String> {
        prop::collection::vec("[ab*]{1,4}", 1..5).prop_map(|labels| labels.join("."))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_trie_agrees_with_a_naive_matcher(
            patterns in prop::collection::vec(pattern_text(), 1..12),
            labels in prop::collection::vec("[abAB ]{1,4}", 0..5),
            every in any::<bool>(),
        ) {
            let bare = if every { Bare::Every } else { Bare::Valid };
            let name = Name::parse(&if labels.is_empty() { ".".to_owned() } else { labels.join(".") }).unwrap();
            let mut trie = PatternTrie::new(bare);
            for (index, pattern) in patterns.iter().enumerate() {
                trie.insert(Pattern::pattern(pattern).unwrap(), index, None);
            }
            let mut found: Vec<usize> = trie.matches(&name).map(|found| *found.value).collect();
            found.sort_unstable();
            let folded: Vec<&[u8]> = name.labels().collect();
            let expected: Vec<usize> =
                (0..patterns.len()).filter(|index| naive(bare, &patterns[*index], &folded)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
