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
    let table = include_str!("../../../integration/conformance/match.tsv");
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

#[track_caller]
fn nearly(patterns: &[&str], name: &str, expected: Option<(Miss, &str)>) {
    let mut trie = PatternTrie::new(Bare::Every);
    patterns.iter().for_each(|text| trie.insert(Pattern::of(text), (), None));
    let name = Name::parse(name).unwrap();
    assert_eq!(trie.matches(&name).count(), 0, "a near miss is a miss");
    assert_eq!(trie.nearest(&name).map(|(miss, found)| (miss, found.pattern.as_str())), expected);
}

#[test]
fn a_near_miss_is_seen() {
    nearly(&["*.cilium.io"], "a.b.cilium.io", Some((Miss::Deep, "*.cilium.io")));
    nearly(&["*.cilium.io"], "a.b.c.CILIUM.io", Some((Miss::Deep, "*.cilium.io")));
    nearly(&["*.io"], "cilium.example.io", Some((Miss::Deep, "*.io")));
    nearly(&["*.*.cilium.io"], "a.b.c.cilium.io", Some((Miss::Deep, "*.*.cilium.io")));
    nearly(&["*.cilium.io"], "cilium.io", Some((Miss::Apex, "*.cilium.io")));
    nearly(&["**.cilium.io"], "cilium.io", Some((Miss::Apex, "**.cilium.io")));
    nearly(&["cilium.io"], "a.cilium.io", Some((Miss::Below, "cilium.io")));
    nearly(&["cilium.io"], "a.b.cilium.io", Some((Miss::Below, "cilium.io")));
    nearly(&["a*z.cilium.io"], "b.cilium.io", None);
}

#[test]
fn what_is_far_is_no_near_miss() {
    nearly(&["*.cilium.org", "cilium.org", "io"], "a.b.cilium.io", None);
    nearly(&["*cilium.io"], "b.example", None);
    nearly(&["*.io"], "io", None);
    nearly(&[], "a.example", None);
}

#[test]
fn the_pattern_that_shares_most_labels_is_the_nearest() {
    nearly(&["*.io", "*.cilium.io", "*.b.org"], "a.b.cilium.io", Some((Miss::Deep, "*.cilium.io")));
    nearly(&["b.cilium.io", "*.cilium.io"], "a.b.cilium.io", Some((Miss::Below, "b.cilium.io")));
    nearly(&["cilium.io", "*.cilium.io"], "a.b.cilium.io", Some((Miss::Deep, "*.cilium.io")));
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
                glob(rest, label) || label.split_first().is_some_and(|(o, l)| is_pattern_octet(*o) && glob(pattern, l))
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
