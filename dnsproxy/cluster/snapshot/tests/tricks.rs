//! What YAML lets people write: it means what `kubectl` takes it for, or is refused with its place. What is huge is refused
//! at its limit; a long token costs what it takes to read it to its end, once.

use super::*;
use crate::cluster::tree::{ANCHORS, DOCUMENTS, OBJECT_VALUES, TEXT_OCTETS};

const HUGE: usize = 10 << 20;

const GOOD: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: p
  namespace: shop
spec:
  endpointSelector: {}
  egress:
  - toCIDR: [192.0.2.0/24]
    toPorts:
    - ports:
      - port: \"443\"
        protocol: TCP
";

fn read_as(name: &str, text: String) -> Snapshot {
    let file = File { name: name.to_owned(), content: Ok(text.into_bytes()) };
    assemble(&[file], &LastGood::default(), OnInvalid::Refuse)
}

/// It says the same as [`GOOD`].
#[track_caller]
fn means_the_same(text: &str) {
    let (found, good) = (read_as("p.yaml", text.to_owned()), read_as("p.yaml", GOOD.to_owned()));
    assert_eq!(found.refusals, []);
    let plain = |snapshot: &Snapshot| {
        let rule = &snapshot.world.policies[0].rules[0];
        let item = &rule.egress.allow[0];
        (rule.subject.clone(), item.peers.clone(), item.ports.plain(), rule.egress.default_deny)
    };
    assert_eq!(plain(&found), plain(&good));
}

/// It is refused with this place and text, and allows nothing.
#[track_caller]
fn is_refused(name: &str, text: String, why: &str) {
    let snapshot = read_as(name, text);
    let found: Vec<String> =
        snapshot.refusals.iter().map(|refusal| format!("{} {}", refusal.place, refusal.text)).collect();
    assert!(found.iter().any(|found| found.contains(why)), "{why}: {found:#?}");
    assert!(found.iter().all(|found| found.len() < 5_000), "a person can read it");
    assert!(snapshot.world.policies.is_empty() && snapshot.world.refused.len() == 1);
}

#[test]
fn what_is_odd_and_means_something_means_that() {
    for text in [
        format!("\u{feff}{GOOD}"),
        GOOD.replace('\n', "\r\n"),
        format!("%YAML 1.1\n---\n{GOOD}...\n"),
        format!("{GOOD}---\n---\n# nothing\n"),
        GOOD.replace("\"443\"", "'443'"),
        GOOD.replace("\"443\"", "!!str 443"),
        GOOD.replace("\"443\"", "|-\n          443"),
        GOOD.replace("[192.0.2.0/24]", "\n    - &net 192.0.2.0/24"),
        GOOD.replace("kind:", "\"kind\":"),
        tree::yaml(GOOD).unwrap().iter().map(write_json).collect(),
    ] {
        means_the_same(&text);
    }
}

#[test]
fn what_is_odd_and_could_mean_two_things_is_refused_with_its_place() {
    let with = |from: &str, to: &str| {
        assert!(GOOD.contains(from));
        GOOD.replace(from, to)
    };
    for (text, why) in [
        (with("\"443\"", "443"), "p.yaml:12:15 spec.egress[0].toPorts[0].ports[0].port: number 443; text is allowed"),
        (with("\"443\"", "0x1bb"), "p.yaml:12:15 spec.egress[0].toPorts[0].ports[0].port: number 0x1bb"),
        (with("\"443\"", "0673"), "p.yaml:12:15 spec.egress[0].toPorts[0].ports[0].port: number 0673"),
        (with("\"443\"", "\"0673\""), "p.yaml:12:15 spec.egress[0].toPorts[0].ports[0].port: \"0673\" starts with 0"),
        (with("name: p", "name: no"), "p.yaml:4:9 metadata.name: no without quotes, a boolean to some readers"),
        (with("name: p", "name: 1e3"), "p.yaml:4:9 metadata.name: number 1e3; text is allowed: \"1e3\""),
        (with("name: p", "name: ~"), "p.yaml:4:3 metadata.name: no name; it is needed"),
        (with("name: p", "name: p\n  name: q"), "p.yaml:5:3 metadata.name: key \"name\" a second time"),
        (with("  egress:", "  egress: []\n  egress:"), "p.yaml:9:3 spec.egress: key \"egress\" a second time"),
        (with("  name: p", "\tname: p"), "p.yaml:4:2 not YAML: tabs disallowed"),
        (with("  name: p", "  <<: {a: b}\n  name: p"), "p.yaml:4:3 merge key <<"),
        (with("name: p", "name: !secret p"), "p.yaml:4:9 tag !secret; no tag but !!str is allowed"),
        (with("name: p", "? {a: b}\n  : c\n  name: p"), "p.yaml:4:5 a list or map as a key"),
        (with("name: p", "name: &x [*x]"), "p.yaml:4:13 an alias inside the value that it names"),
        (with("name: p", "name: *x"), "p.yaml:4:9 not YAML: while parsing node, found unknown anchor"),
        (with("name: p", "name: \"p\u{7}\""), "p.yaml:4:9 metadata.name: \"p\\u{7}\"; up to 253 of a-z 0-9 - . are"),
        (with("name: p", "name:\tp"), "p.yaml:4:9 not YAML: ':' must be followed by a valid YAML whitespace"),
        (with("TCP", "TCP\u{a0}"), "spec.egress[0].toPorts[0].ports[0].protocol: protocol \"TCP\\u{a0}\""),
        (with("192.0.2.0/24", "192.000.002.000/24"), "spec.egress[0].toCIDR[0]: \"192.000.002.000/24\" is no block"),
    ] {
        is_refused("p.yaml", text, why);
    }
    is_refused("p.yaml", "\u{fffe}".to_owned(), "p.yaml:1:1");
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let mut text = GOOD.to_owned() + "  a0: &a0 [x, x, x, x, x, x, x, x, x]\n";
    for level in 1..12 {
        let row = vec![format!("*a{}", level - 1); 9].join(", ");
        text.push_str(&format!("  a{level}: &a{level} [{row}]\n"));
    }
    is_refused("p.yaml", text, "the limit is 20000");
    let anchors: String = (0..=ANCHORS).map(|number| format!("  - &a{number} x\n")).collect();
    is_refused("p.yaml", format!("{GOOD}  x:\n{anchors}"), "more than 1000 anchors in one document");
}

#[test]
fn what_is_huge_and_says_nothing_costs_nothing() {
    let comment = "# a comment that says nothing\n";
    means_the_same(&format!("{GOOD}{}", comment.repeat(HUGE / comment.len())));
    means_the_same(&format!("#{}\n{GOOD}", "x".repeat(HUGE)));
    means_the_same(&format!("{GOOD}{}", "\n".repeat(HUGE)));
}

#[test]
fn what_is_huge_is_refused_at_its_limit() {
    let huge = |piece: &str| piece.repeat(HUGE / piece.len());
    let long = format!("p.yaml:14:16 text of {HUGE} octets; the limit is {TEXT_OCTETS}");
    is_refused("p.yaml", format!("{GOOD}  description: {}\n", huge("x")), &long);
    is_refused("p.yaml", format!("{GOOD}  ? {}\n  : x\n", huge("x")), "the limit is 2097152");
    is_refused("p.yaml", format!("{GOOD}  x: {}", huge("[")), "p.yaml:14:");
    is_refused("p.yaml", format!("{GOOD}  x: {}", huge("{a: ")), "nested deeper than 100 levels");
    is_refused("p.yaml", format!("{GOOD}  x:\n  {}", huge("- ")), "nested deeper than 100 levels");
    is_refused("p.yaml", format!("{GOOD}  x: [{}]\n", huge("a, ")), "more than 100000 values in one object");
    is_refused("p.yaml", format!("a: !{} x\n", huge("t")), "p.yaml:1:4 tag !tttt");
    is_refused("p.yaml", format!("{GOOD}  {}: x\n", "x".repeat(TEXT_OCTETS / 2)), "p.yaml:14:");
    is_refused("p.yaml", "---\n".repeat(DOCUMENTS + 1), "more than 200000 documents in one file");
    is_refused("p.json", format!("{{\"a\": \"{}\"}}", huge("x")), "text of more than 2097152 octets");
    is_refused("p.json", format!("{{\"a\": [{}1]}}", huge("1,")), "more than 100000 values in one object");
    is_refused("p.json", format!("{{\"a\": {}", huge("[")), "p.json:1:107 nested deeper than 100 levels");
}

#[test]
fn a_list_may_hold_more_than_an_object_may() {
    let pod = "{\"metadata\":{\"name\":\"p\",\"namespace\":\"shop\"},\"a\":[1,2,3,4,5,6,7,8,9,10]}";
    let items = OBJECT_VALUES / 10;
    for name in ["p.json", "p.yaml"] {
        let text = format!("{{\"apiVersion\":\"v1\",\"kind\":\"PodList\",\"items\":[{}]}}", vec![pod; items].join(","));
        let snapshot = read_as(name, text);
        assert_eq!(snapshot.refusals, []);
        assert_eq!(snapshot.world.pods.len(), 1, "all the same one");
    }
}
