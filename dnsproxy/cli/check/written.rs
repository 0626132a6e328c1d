//! What only the text of a policy shows: lists and maps that are empty and mean something all the same, and the warnings
//! that its author does not want to hear.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Level, kinds};
use crate::cluster::files::{self, File};
use crate::cluster::manifest::{self, Found, Kind};
use crate::cluster::snapshot::Refusal;
use crate::cluster::tree::{self, Node, Place, Value};

const EMPTY: &str = "empty-list";
const DENIES_NOTHING: &str = "denies-nothing";
const UNKNOWN_KIND: &str = "unknown-warning";

/// Kinds of warnings, as `advice::KINDS`.
pub(super) const KINDS: &[(&str, &str)] = &[
    (EMPTY, "a list or a map that is empty, and means something"),
    (DENIES_NOTHING, "an item of egressDeny or ingressDeny that denies nothing"),
    (UNKNOWN_KIND, "the annotation namegate.io/allow names no warning"),
];

/// The annotation of a policy that silences warnings about it: their ids, separated by commas.
const ALLOW: &str = "namegate.io/allow";

/// Peers of Cilium's policies.
const PEERS: [&str; 14] = [
    "fromEndpoints",
    "toEndpoints",
    "fromEntities",
    "toEntities",
    "fromCIDR",
    "toCIDR",
    "fromCIDRSet",
    "toCIDRSet",
    "fromNodes",
    "toNodes",
    "fromGroups",
    "toGroups",
    "toServices",
    "toFQDNs",
];

/// What the files' texts show.
#[derive(Default)]
pub(super) struct Written {
    pub findings: Vec<Finding>,
    /// Kinds of warnings that each policy allows, by `Kind namespace/name`.
    pub allowed: BTreeMap<String, BTreeSet<String>>,
    /// Names of files in which nothing is written.
    pub blank: BTreeSet<String>,
}

/// Reads the texts of all policies. Files that can't be read are told elsewhere, and are not read to their end once more.
pub(super) fn read(files: &[File], refusals: &[Refusal]) -> Written {
    let mut written = Written::default();
    let broken: BTreeSet<&str> = refusals.iter().filter_map(|refusal| refusal.object.strip_prefix("file ")).collect();
    for file in files.iter().filter(|file| !broken.contains(file.name.as_str())) {
        let Ok(text) = file.content.as_deref().map(std::str::from_utf8) else { continue };
        let Ok(text) = text else { continue };
        let documents = if files::is_json(&file.name) { tree::json(text) } else { tree::yaml(text) };
        if documents.as_ref().is_ok_and(|all| all.iter().all(|document| document.value == Value::Null)) {
            written.blank.insert(file.name.clone());
        }
        for found in documents.iter().flatten().filter_map(|document| manifest::found(document).ok()).flatten() {
            if let Found::Object(kind, node) = found
                && let Some(object) = manifest::key(kind, node)
            {
                policy(&mut written, &file.name, kind, object, node);
            }
        }
    }
    written
}

fn policy(written: &mut Written, file: &str, kind: Kind, object: String, node: &Node) {
    let mut found: Vec<(Place, &'static str, String, String)> = Vec::new();
    match kind {
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => {
            let rules = node.get("specs").map(items).unwrap_or_default().iter().enumerate();
            let rules = rules.map(|(index, rule)| (rule, format!("specs[{index}]")));
            for (rule, path) in node.get("spec").map(|rule| (rule, "spec".to_owned())).into_iter().chain(rules) {
                walk(rule, &path, &mut |key, node, path| cilium(key, node, path, &mut found));
            }
        }
        Kind::NetworkPolicy => {
            if let Some(spec) = node.get("spec") {
                walk(spec, "spec", &mut |key, node, path| kubernetes(key, node, path, &mut found));
            }
        }
        _ => return,
    }
    if let Some(allow) = node.get("metadata").and_then(|m| m.get("annotations")).and_then(|a| a.get(ALLOW)) {
        let kinds: BTreeSet<&str> =
            kinds().filter(|(_, level, _)| *level == Level::Warning).map(|(id, ..)| id).collect();
        let words = allow.as_text().unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty());
        let words: BTreeSet<String> = words.map(str::to_owned).collect();
        for word in words.iter().filter(|word| !kinds.contains(word.as_str())) {
            let known: Vec<&str> = kinds.iter().copied().collect();
            let text = format!("{word:?} is no warning; allowed: {}", known.join(", "));
            found.push((allow.at, UNKNOWN_KIND, format!("metadata.annotations.{ALLOW}"), text));
        }
        written.allowed.insert(object.clone(), words);
    }
    written.findings.extend(found.into_iter().map(|(at, kind, path, text)| {
        Finding::new(Level::Warning, kind, &format!("{file}:{at}"), object.clone(), &path, &text)
    }));
}

/// Every entry of every map below, with the path to its value.
fn walk<'n>(node: &'n Node, path: &str, see: &mut impl FnMut(&'n str, &'n Node, &str)) {
    match &node.value {
        Value::Map(entries) => {
            for (key, value) in entries {
                let path = format!("{path}.{}", key.text);
                see(&key.text, value, &path);
                walk(value, &path, see);
            }
        }
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                walk(item, &format!("{path}[{index}]"), see);
            }
        }
        _ => {}
    }
}

fn cilium(key: &str, node: &Node, path: &str, found: &mut Vec<(Place, &'static str, String, String)>) {
    let denies = path.contains("egressDeny") || path.contains("ingressDeny");
    let nothing = if denies { "denies nothing" } else { "allows nothing" };
    let mut say = |at: &Node, kind, text: String| found.push((at.at, kind, path.to_owned(), text));
    if matches!(key, "egressDeny" | "ingressDeny") {
        let allow = key.trim_end_matches("Deny");
        for item in items(node).iter().filter(|item| is_empty(item)) {
            let text = format!(
                "an empty item denies nothing, it only shuts {allow} by default; what is denied has to be said"
            );
            say(item, DENIES_NOTHING, text);
        }
    }
    if key == "toPorts" {
        items(node).iter().filter(|item| is_empty(item)).for_each(|item| {
            say(item, EMPTY, format!("an entry without ports has no port, so it {nothing}"));
        });
    }
    if !is_empty(node) {
        return;
    }
    let text = match key {
        "toPorts" => "toPorts: [] is every port of every protocol; leave it out if that is meant".to_owned(),
        "ports" => format!("ports: [] is no port, so this {nothing}"),
        "dns" => "rules.dns: [] is every name, as matchPattern: \"*\"; write that if it is meant".to_owned(),
        "fields" => format!("fields: [] is no type of ICMP, so this {nothing}"),
        "except" => "except: [] takes nothing out; leave it out".to_owned(),
        "matchLabels" => "matchLabels: {} demands nothing, so everything is selected; {} says the same".to_owned(),
        "matchExpressions" => "matchExpressions: [] demands nothing; leave it out".to_owned(),
        "egress" | "ingress" => {
            format!("{key}: [] says nothing about {key}, which stays as it is; {key}: [{{}}] shuts it")
        }
        "egressDeny" | "ingressDeny" => format!("{key}: [] denies nothing; leave it out"),
        _ if PEERS.contains(&key) => format!("{key}: [] is nobody, so this item {nothing}"),
        _ => return,
    };
    say(node, EMPTY, text);
}

fn kubernetes(key: &str, node: &Node, path: &str, found: &mut Vec<(Place, &'static str, String, String)>) {
    if !is_empty(node) {
        return;
    }
    let text = match key {
        "from" | "to" => format!("{key}: [] is everyone; leave it out if that is meant"),
        "ports" => "ports: [] is every port; leave it out if that is meant".to_owned(),
        "except" => "except: [] takes nothing out; leave it out".to_owned(),
        "matchLabels" => "matchLabels: {} demands nothing, so everything is selected; {} says the same".to_owned(),
        "matchExpressions" => "matchExpressions: [] demands nothing; leave it out".to_owned(),
        _ => return,
    };
    found.push((node.at, EMPTY, path.to_owned(), text));
}

fn items(node: &Node) -> &[Node] {
    match &node.value {
        Value::List(items) => items,
        _ => &[],
    }
}

fn is_empty(node: &Node) -> bool {
    match &node.value {
        Value::List(items) => items.is_empty(),
        Value::Map(entries) => entries.is_empty(),
        _ => false,
    }
}
