//! A name, then patterns, a line each: the trie finds what the grammar says, asked pattern by pattern.

use namegate::engine::name::Name;
use namegate::engine::pattern::{Bare, Pattern, PatternTrie};

use super::cost::{self, Limit};

/// Patterns are tried up to this many.
const PATTERNS: usize = 32;
/// The text as it was written and in lower case, label by label.
const READ: Limit = Limit { held: (256, 2_048), allocations: (4, 32) };
/// The trie grows by as much as it has; of all patterns' octets.
const INSERTED: Limit = Limit { held: (256, 4_096), allocations: (4, 32) };
/// What is found, and nothing for what is tried.
const MATCHED: Limit = Limit { held: (16, 4_096), allocations: (1, 64) };

pub fn check(octets: &[u8]) {
    let mut lines = octets.split(|octet| *octet == b'\n');
    let first = lines.next().unwrap_or_default();
    names(first);
    let Ok(name) = Name::parse(&String::from_utf8_lossy(first)) else { return };
    let labels: Vec<&[u8]> = name.labels().collect();
    for bare in [Bare::Valid, Bare::Every] {
        let mut trie = PatternTrie::new(bare);
        let mut expected = Vec::new();
        for (at, line) in lines.clone().take(PATTERNS).enumerate() {
            let Ok(text) = std::str::from_utf8(line) else { continue };
            let Ok(pattern) = cost::within(text.len(), READ, || Pattern::pattern(text)) else { continue };
            if naive(bare, text, &labels) {
                expected.push(at);
            }
            if let Some(exact) = pattern.exact() {
                assert_eq!(naive(bare, text, &labels), exact == name && name.has_only_pattern_octets(), "{text}");
            }
            cost::within(octets.len(), INSERTED, || trie.insert(pattern, at, None));
        }
        let find = || trie.matches(&name).map(|found| *found.value).collect::<Vec<usize>>();
        let mut found = cost::within(octets.len(), MATCHED, find);
        found.sort_unstable();
        assert_eq!(found, expected, "{name} by {bare:?}");
    }
}

/// Octets are a name or are not, and what is written of it is the same name again.
fn names(octets: &[u8]) {
    for name in [Name::from_wire(octets), Name::parse(&String::from_utf8_lossy(octets))].into_iter().flatten() {
        assert_eq!(Name::from_wire(name.as_wire()).as_ref(), Ok(&name));
        let text = name.to_string();
        assert!(text.bytes().all(|octet| octet.is_ascii_graphic()), "{text:?} is safe on a terminal");
        assert_eq!(Name::parse(&text).as_ref(), Ok(&name), "{text}");
        assert!(name.ends_with(&name) && name.ends_with(&Name::root()));
    }
}

/// The grammar of patterns as plainly as it can be said.
fn naive(bare: Bare, pattern: &str, labels: &[&[u8]]) -> bool {
    fn is_valid(octet: u8) -> bool {
        matches!(octet, b'-' | b'_' | b'a'..=b'z' | b'0'..=b'9')
    }
    /// Which ends of `label` the pattern can stand for, place by place: no backtracking, so that no label takes long.
    fn glob(pattern: &[u8], label: &[u8]) -> bool {
        let mut reached = vec![false; label.len() + 1];
        reached[0] = true;
        for &wanted in pattern {
            let mut next = vec![false; label.len() + 1];
            for at in 0..=label.len() {
                match wanted {
                    b'*' => next[at] = reached[at] || at > 0 && next[at - 1] && is_valid(label[at - 1]),
                    octet => next[at] = at > 0 && reached[at - 1] && label[at - 1] == octet,
                }
            }
            reached = next;
        }
        reached[label.len()]
    }
    let valid = |label: &&[u8]| !label.is_empty() && label.iter().all(|octet| is_valid(*octet));
    let text = pattern.to_ascii_lowercase();
    let body = text.strip_suffix('.').unwrap_or(&text);
    if !body.is_empty() && body.bytes().all(|octet| octet == b'*') {
        return match bare {
            Bare::Valid => labels.iter().all(valid),
            Bare::Every => !labels.iter().any(|label| label.contains(&b'.') || label.contains(&0)),
        };
    }
    let wanted: Vec<&str> = if body.is_empty() { vec![] } else { body.split('.').collect() };
    if wanted.first().is_some_and(|first| first.len() > 1 && first.bytes().all(|octet| octet == b'*')) {
        let rest = &wanted[1..];
        let Some(extra) = labels.len().checked_sub(rest.len()).filter(|extra| *extra > 0) else { return false };
        return labels[..extra].iter().all(valid)
            && rest.iter().zip(&labels[extra..]).all(|(wanted, label)| glob(wanted.as_bytes(), label));
    }
    wanted.len() == labels.len() && wanted.iter().zip(labels).all(|(wanted, label)| glob(wanted.as_bytes(), label))
}
