//! One slip of the pen in a good policy: it is refused, or allows no more than before.

use super::*;
use crate::cluster::tree::{Node, Value};
use crate::engine::policy::{Block, Item, Peers, Policy, PortRule, Ports, Rule, Section};

/// Policies that use every key of the language between them.
const POLICIES: &str = include_str!("mutation.yaml");

/// A step from a value to one below it: the place in its list or map.
type Path = Vec<usize>;

/// Where a list may be emptied although that opens more: there Cilium or Kubernetes gives the empty list a meaning.
fn has_meaning(keys: &[String]) -> bool {
    let Some(last) = keys.last() else { return false };
    let deny = keys.iter().any(|key| key.ends_with("Deny"));
    let kubernetes = keys[0] == "NetworkPolicy";
    match last.as_str() {
        "toPorts" | "dns" | "except" => true,
        // A direction without an item is left alone, if the other has one.
        "egress" | "ingress" | "egressDeny" | "ingressDeny" => true,
        "from" | "to" | "ports" if kubernetes => true,
        // The peers of a denial: it denies nobody.
        other => deny && (other.starts_with("to") || other.starts_with("from")),
    }
}

fn documents() -> Vec<Node> {
    tree::yaml(POLICIES).unwrap()
}

/// Every value below `node`, with the way to it and the keys on the way.
fn values(node: &Node, path: &Path, keys: &[String], found: &mut Vec<(Path, Vec<String>)>) {
    found.push((path.clone(), keys.to_vec()));
    let below = |index: usize, key: Option<&str>, node: &Node, found: &mut Vec<(Path, Vec<String>)>| {
        let path: Path = path.iter().copied().chain([index]).collect();
        let keys: Vec<String> = keys.iter().cloned().chain(key.map(str::to_owned)).collect();
        values(node, &path, &keys, found);
    };
    match &node.value {
        Value::List(items) => items.iter().enumerate().for_each(|(index, item)| below(index, None, item, found)),
        Value::Map(entries) => {
            entries.iter().enumerate().for_each(|(index, (key, value))| below(index, Some(&key.text), value, found))
        }
        _ => {}
    }
}

fn at<'n>(node: &'n mut Node, path: &[usize]) -> &'n mut Node {
    let Some((first, rest)) = path.split_first() else { return node };
    match &mut node.value {
        Value::List(items) => at(&mut items[*first], rest),
        Value::Map(entries) => at(&mut entries[*first].1, rest),
        other => panic!("{other:?} has nothing below it"),
    }
}

/// The policy, with what stands at `path` changed.
fn changed(document: &Node, path: &[usize], change: impl FnOnce(&mut Node)) -> Node {
    let mut copy = document.clone();
    change(at(&mut copy, path));
    copy
}

/// One edit away from a word.
fn misspelt(word: &str) -> Vec<String> {
    let letters: Vec<char> = word.chars().collect();
    let mut words = vec![format!("{word}s"), word.to_ascii_uppercase()];
    for index in 0..letters.len() {
        let mut without = letters.clone();
        let letter = without.remove(index);
        words.push(without.iter().collect());
        let mut other = letters.clone();
        other[index] =
            if letter.is_ascii_uppercase() { letter.to_ascii_lowercase() } else { letter.to_ascii_uppercase() };
        words.push(other.iter().collect());
        if index > 0 {
            let mut swapped = letters.clone();
            swapped.swap(index - 1, index);
            words.push(swapped.into_iter().collect());
        }
    }
    words.retain(|other| other != word);
    words
}

/// All that a file with this policy says.
fn read_policy(document: &Node) -> Snapshot {
    let text = write_json(document).into_bytes();
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cilium-config, namespace: kube-system}\n\
                  data: {enable-node-selector-labels: \"true\"}\n";
    let files = [
        File { name: "config.yaml".to_owned(), content: Ok(config.as_bytes().to_vec()) },
        File { name: "p.json".to_owned(), content: Ok(text) },
    ];
    assemble(&files, &LastGood::default(), OnInvalid::Refuse)
}

/// Panics when the policy allows more than the one it was made from.
#[track_caller]
fn is_no_broader(document: &Node, before: &Policy, what: &str) {
    let after = read_policy(document);
    if let Some(refused) = after.world.refused.first() {
        let allows = |section: &Section| !section.allow.is_empty();
        assert!(!refused.rules.iter().any(|rule| allows(&rule.egress) || allows(&rule.ingress)), "{what}");
        for old in &before.rules {
            // Whoever was shut is, in the same directions, and denied the same.
            let still = refused.rules.iter().any(|new| {
                let as_shut = |old: &Section, new: &Section| {
                    new.default_deny || !old.default_deny && old.deny.iter().all(|item| is_denied(item, new))
                };
                selects_all_of(new, old) && as_shut(&old.egress, &new.egress) && as_shut(&old.ingress, &new.ingress)
            });
            assert!(still, "{what}: refused, and does not shut what it selected: {refused:#?}");
        }
        return;
    }
    let after = after.world.policies.first().unwrap_or_else(|| panic!("{what}: the policy is gone"));
    assert_eq!(after.rules.len(), before.rules.len(), "{what}");
    for (new, old) in after.rules.iter().zip(&before.rules) {
        assert!(selects_all_of(new, old), "{what}: it selects less");
        for (new, old) in [(&new.egress, &old.egress), (&new.ingress, &old.ingress)] {
            assert!(new.default_deny || !old.default_deny, "{what}: no default deny any more");
            for item in &new.allow {
                assert!(old.allow.iter().any(|old| covers(old, item)), "{what}: allows {item:#?}");
            }
            assert!(old.deny.iter().all(|item| is_denied(item, new)), "{what}: denies less");
        }
    }
}

fn selects_all_of(new: &Rule, old: &Rule) -> bool {
    let namespace = new.subject.namespace.is_none() || new.subject.namespace == old.subject.namespace;
    let fewer = &new.subject.selector.requirements;
    namespace && fewer.iter().all(|one| old.subject.selector.requirements.contains(one))
}

fn is_denied(item: &Item, section: &Section) -> bool {
    section.deny.iter().any(|deny| covers(deny, item))
}

/// Whether `wide` means everything that `narrow` does.
fn covers(wide: &Item, narrow: &Item) -> bool {
    fn all_of<T: PartialEq>(wide: &[T], narrow: &[T]) -> bool {
        narrow.iter().all(|one| wide.contains(one))
    }
    let block = |wide: &Block, narrow: &Block| wide.of == narrow.of && all_of(&narrow.except, &wide.except);
    let peers = match (&wide.peers, &narrow.peers) {
        (Peers::Any, _) => true,
        (Peers::Endpoints(wide), Peers::Endpoints(narrow)) => all_of(wide, narrow),
        (Peers::Nodes(wide), Peers::Nodes(narrow)) => all_of(wide, narrow),
        (Peers::Services(wide), Peers::Services(narrow)) => all_of(wide, narrow),
        (Peers::Entities(wide), Peers::Entities(narrow)) => narrow.is_subset(wide),
        (Peers::Networks(wide), Peers::Networks(narrow)) => {
            narrow.iter().all(|narrow| wide.iter().any(|wide| block(wide, narrow)))
        }
        (Peers::Names(wide), Peers::Names(narrow)) => {
            narrow.iter().all(|narrow| wide.iter().any(|wide| wide.pattern == narrow.pattern))
        }
        // An item without a peer and without ports means nobody.
        (_, Peers::Endpoints(selectors)) => selectors.is_empty(),
        _ => false,
    };
    let entry = |wide: &PortRule, narrow: &PortRule| {
        let names = |rule: &PortRule| rule.dns.iter().flatten().map(|name| name.pattern.clone()).collect::<Vec<_>>();
        let dns = wide.dns.is_none() || narrow.dns.is_some() && all_of(&names(wide), &names(narrow));
        dns && narrow.ports.is_subset(&wide.ports) && (wide.service.is_none() || wide.service == narrow.service)
    };
    let ports = match (&wide.ports, &narrow.ports) {
        (Ports::All, _) => true,
        (Ports::These(wide), Ports::These(narrow)) => {
            narrow.iter().all(|narrow| narrow.ports.is_empty() || wide.iter().any(|wide| entry(wide, narrow)))
        }
        (Ports::These(_), Ports::All) => false,
    };
    peers && ports
}

/// The policies, each with what it says.
fn policies() -> Vec<(Node, Policy)> {
    let read = |document: Node| {
        let snapshot = read_policy(&document);
        assert!(snapshot.world.refused.is_empty(), "{:#?}", snapshot.refusals);
        // The world orders them; here there is one.
        let policy = snapshot.world.policies.first().expect("a policy").as_ref().clone();
        (document, policy)
    };
    documents().into_iter().map(read).collect()
}

/// Every value of every policy: the policy, the way to it, the keys on the way, the kind first.
fn each(mut what: impl FnMut(&Node, &Policy, &Path, &[String])) {
    for (document, policy) in policies() {
        let kind = document.get("kind").and_then(Node::as_text).unwrap_or_default().to_owned();
        let mut found = Vec::new();
        values(&document, &Vec::new(), &[kind], &mut found);
        for (path, keys) in found.iter().filter(|(path, _)| !path.is_empty()) {
            what(&document, &policy, path, keys);
        }
    }
}

/// Whether the keys below are anyone's own: labels, and the pairs of `l7`.
fn is_free(keys: &[String]) -> bool {
    keys.iter().rev().skip(1).any(|key| matches!(key.as_str(), "matchLabels" | "l7" | "annotations"))
        || keys.ends_with(&["aws".to_owned(), "labels".to_owned()])
}

#[test]
fn the_policies_use_every_key() {
    let mut used = std::collections::BTreeSet::new();
    each(|_, _, _, keys| used.extend(keys.iter().cloned()));
    let all = "apiVersion kind metadata name namespace spec specs description endpointSelector nodeSelector egress egressDeny \
               ingress ingressDeny enableDefaultDeny labels log value key source matchLabels matchExpressions operator values \
               toEndpoints fromEndpoints toCIDR fromCIDR toCIDRSet fromCIDRSet cidr except cidrGroupRef cidrGroupSelector \
               toEntities fromEntities toServices k8sService serviceName k8sServiceSelector selector toFQDNs matchName \
               matchPattern toGroups fromGroups aws region securityGroupsIds securityGroupsNames toNodes fromNodes toPorts \
               ports port endPort protocol rules dns service icmps fields family type authentication mode http path method \
               host headers headerMatches secret mismatch kafka role apiKey topic clientID l7proto l7 serverNames listener \
               envoyConfig priority terminatingTLS originatingTLS trustedCA certificate privateKey podSelector policyTypes \
               from to namespaceSelector ipBlock";
    let missing: Vec<&str> = all.split_whitespace().filter(|key| !used.contains(*key)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_misspelt_key_never_opens_more() {
    let mut tried = 0;
    each(|document, policy, path, keys| {
        let (Some(key), Some((index, parent))) = (keys.last(), path.split_last()) else { return };
        if is_free(keys) || !matches!(&at(&mut document.clone(), parent).value, Value::Map(_)) {
            return;
        }
        for word in misspelt(key) {
            let changed = changed(document, parent, |node| {
                let Value::Map(entries) = &mut node.value else { panic!("a map") };
                entries[*index].0.text = word.as_str().into();
            });
            is_no_broader(&changed, policy, &format!("{} as {word:?}", keys.join(".")));
            tried += 1;
        }
    });
    assert!(tried > 3000, "{tried} words");
}

#[test]
fn an_emptied_list_never_opens_more_unless_cilium_gives_it_a_meaning() {
    let mut tried = 0;
    each(|document, policy, path, keys| {
        let mut copy = document.clone();
        if !matches!(&at(&mut copy, path).value, Value::List(_)) || has_meaning(keys) {
            return;
        }
        let changed = changed(document, path, |node| node.value = Value::List(Vec::new()));
        is_no_broader(&changed, policy, &format!("{} emptied", keys.join(".")));
        tried += 1;
    });
    assert!(tried > 50, "{tried} lists");
}

#[test]
fn a_null_never_opens_more() {
    let mut tried = 0;
    each(|document, policy, path, keys| {
        let changed = changed(document, path, |node| node.value = Value::Null);
        is_no_broader(&changed, policy, &format!("{} null", keys.join(".")));
        tried += 1;
    });
    assert!(tried > 400, "{tried} values");
}

#[test]
fn a_list_that_cilium_gives_a_meaning_has_that_meaning() {
    let mut tried = 0;
    each(|document, _, path, keys| {
        let mut copy = document.clone();
        if !matches!(&at(&mut copy, path).value, Value::List(_)) || !has_meaning(keys) {
            return;
        }
        let last = keys.last().map(String::as_str);
        if matches!(last, Some("egress" | "ingress" | "egressDeny" | "ingressDeny")) {
            return; // nothing may be left
        }
        let after = read_policy(&changed(document, path, |node| node.value = Value::List(Vec::new())));
        let wrong: Vec<_> = after.refusals.iter().filter(|refusal| refusal.stands() == Stands::Shut).collect();
        assert!(wrong.is_empty(), "{}: {wrong:#?}", keys.join("."));
        tried += 1;
    });
    assert!(tried > 10, "{tried} lists");
}
