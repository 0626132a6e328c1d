//! What Cilium's proxies see to and namegate does not yet: checked as Cilium checks it, so that the text is right on the
//! day it is enforced.

use super::Side;
use super::ports::Entry;
use crate::cluster::fields::Field;
use crate::engine::pattern::Pattern;

/// The kinds of rules in `rules`, by what shows them.
const RULES: [&str; 4] = ["http", "dns", "kafka", "l7proto"];

/// The most characters of a Kafka topic, as in Cilium.
const TOPIC_CHARS: usize = 255;

/// Kafka's requests, as Cilium knows them.
const KAFKA_KEYS: [&str; 34] = [
    "produce",
    "fetch",
    "offsets",
    "metadata",
    "leaderandisr",
    "stopreplica",
    "updatemetadata",
    "controlledshutdown",
    "offsetcommit",
    "offsetfetch",
    "findcoordinator",
    "joingroup",
    "heartbeat",
    "leavegroup",
    "syncgroup",
    "describegroups",
    "listgroups",
    "saslhandshake",
    "apiversions",
    "createtopics",
    "deletetopics",
    "deleterecords",
    "initproducerid",
    "offsetforleaderepoch",
    "addpartitionstotxn",
    "addoffsetstotxn",
    "endtxn",
    "writetxnmarkers",
    "txnoffsetcommit",
    "describeacls",
    "createacls",
    "deleteacls",
    "describeconfigs",
    "alterconfigs",
];

/// An item's `authentication`.
pub(super) fn authentication(side: &Side<'_>, item: &Field<'_>, demands: &mut Vec<String>) {
    let Some(field) = item.get("authentication") else { return };
    field.only(&["mode"]);
    let mode = field.need("mode").and_then(|mode| mode.one_of("mode", &["disabled", "required", "test-always-fail"]));
    if mode.is_some_and(|mode| mode != "disabled") {
        side.demand(item, "authentication", "authentication", demands);
    }
}

/// All of an entry of `toPorts` but its ports and the names of `rules.dns`.
pub(super) fn port_rule(side: &Side<'_>, entry: &Field<'_>, ports: &[Entry], demands: &mut Vec<String>) {
    let rules = entry.get("rules");
    if let Some(rules) = &rules {
        self::rules(side, rules, ports, demands);
    }
    for key in ["terminatingTLS", "originatingTLS"] {
        if let Some(field) = entry.get(key) {
            tls(&field);
            side.demand(entry, key, key, demands);
        }
    }
    if let Some(names) = entry.get("serverNames") {
        server_names(&names);
        if rules.is_some() && entry.get("terminatingTLS").is_none() {
            names.fault("serverNames with rules and without terminatingTLS; it is needed to see both");
        }
        side.demand(entry, "serverNames", "serverNames", demands);
    }
    if let Some(field) = entry.get("listener") {
        listener(side, &field);
        if rules.is_some() {
            field.fault("listener with rules; one of them is allowed");
        }
        side.demand(entry, "listener", "listener", demands);
    }
}

fn rules(side: &Side<'_>, rules: &Field<'_>, ports: &[Entry], demands: &mut Vec<String>) {
    rules.only(&["dns", "http", "kafka", "l7proto", "l7"]);
    if rules.get("l7").is_some() && rules.get("l7proto").is_none() {
        rules.fault("l7 without l7proto; the protocol's name is needed");
    }
    let present: Vec<&str> = RULES.into_iter().filter(|kind| rules.get(kind).is_some()).collect();
    if let [first, second, ..] = present.as_slice() {
        rules.fault(format!("{first} with {second}; one kind of rules is allowed"));
    }
    if present.is_empty() && rules.get("l7").is_none() {
        rules.fault("no rules; dns or http is needed, or no rules at all");
    }
    for kind in present.into_iter().filter(|kind| *kind != "dns") {
        if let Some(field) = rules.get(kind) {
            over_tcp(side, kind, &field, ports);
        }
        side.demand(rules, kind, &format!("rules.{kind}"), demands);
    }
    for (key, read) in [("http", http as fn(&Field<'_>)), ("kafka", kafka), ("l7", pairs)] {
        let list = rules.get(key);
        list.iter().filter_map(Field::list).flatten().for_each(|rule| read(&rule));
    }
    if let Some(protocol) = rules.get("l7proto")
        && protocol.text() == Some("")
    {
        protocol.fault("\"\" as l7proto; the protocol's name is needed");
    }
}

/// Rules other than those for DNS are for connections, and not for nodes.
fn over_tcp(side: &Side<'_>, kind: &str, field: &Field<'_>, ports: &[Entry]) {
    if side.host {
        field.fault(format!("rules.{kind} for nodes; rules.dns is allowed"));
    }
    if let Some(port) = ports.iter().find(|port| !port.tcp) {
        field.fault(format!("rules.{kind} on {}; protocol TCP is allowed", port.text));
    }
    if ports.iter().any(|port| port.every) {
        field.fault(format!("rules.{kind} on port 0; single ports are allowed"));
    }
}

fn http(rule: &Field<'_>) {
    rule.only(&["path", "method", "host", "headers", "headerMatches"]);
    for key in ["path", "method", "host"] {
        if let Some(field) = rule.get(key) {
            expression(&field);
        }
    }
    let headers = rule.get("headers");
    for header in headers.iter().filter_map(Field::list).flatten() {
        header.text();
    }
    let matches = rule.get("headerMatches");
    for header in matches.iter().filter_map(Field::list).flatten() {
        header.only(&["name", "value", "secret", "mismatch"]);
        not_empty(&header, "name");
        header.get("value").and_then(|value| value.text());
        if let Some(secret) = header.get("secret") {
            self::secret(&secret);
        }
        header.get("mismatch").and_then(|what| what.one_of("mismatch", &["LOG", "ADD", "DELETE", "REPLACE"]));
    }
}

/// A regular expression. RE2's syntax, for Cilium; what this parser takes and RE2 doesn't is refused nowhere in Rust.
fn expression(field: &Field<'_>) {
    let Some(text) = field.text() else { return };
    if let Err(error) = regex_syntax::Parser::new().parse(text) {
        let why = match error {
            regex_syntax::Error::Parse(error) => error.kind().to_string(),
            regex_syntax::Error::Translate(error) => error.kind().to_string(),
            _ => "it can't be read".to_owned(),
        };
        field.fault(format!("{text:?} is no regular expression: {why}; RE2's syntax is allowed"));
    }
}

fn kafka(rule: &Field<'_>) {
    rule.only(&["role", "apiKey", "apiVersion", "clientID", "topic"]);
    let text = |key| text_of(rule, key);
    let (role, key, version) = (text("role"), text("apiKey"), text("apiVersion"));
    text("clientID");
    if role.as_ref().zip(key.as_ref()).is_some_and(|((role, _), (key, _))| !role.is_empty() && !key.is_empty()) {
        rule.fault("role with apiKey; one of them is allowed");
    }
    if let Some((text, field)) = role
        && !["", "produce", "consume"].iter().any(|known| known.eq_ignore_ascii_case(text))
    {
        field.fault(format!("role {text:?}; allowed: produce, consume"));
    }
    if let Some((text, field)) = key
        && !text.is_empty()
        && !KAFKA_KEYS.iter().any(|known| known.eq_ignore_ascii_case(text))
    {
        field.fault(format!("apiKey {text:?}; allowed: {}", KAFKA_KEYS.join(", ")));
    }
    if let Some((text, field)) = version
        && !text.is_empty()
        && text.parse::<i16>().ok().is_none_or(|version| version < 0)
    {
        field.fault(format!("apiVersion {text:?}; a number from 0 to 32767 as text is allowed"));
    }
    let plain = |octet: u8| octet.is_ascii_alphanumeric() || b"._-".contains(&octet);
    if let Some((text, field)) = text("topic")
        && (text.len() > TOPIC_CHARS || !text.bytes().all(plain))
    {
        field.fault(format!("topic {text:?}; up to {TOPIC_CHARS} of a-z A-Z 0-9 . _ - are allowed"));
    }
}

/// A rule of `l7`: keys and values of the protocol's own.
fn pairs(rule: &Field<'_>) {
    for (key, _) in rule.entries().unwrap_or_default() {
        rule.get(&key.text).and_then(|value| value.text());
    }
}

fn tls(field: &Field<'_>) {
    field.only(&["secret", "trustedCA", "certificate", "privateKey"]);
    if let Some(secret) = field.need("secret") {
        self::secret(&secret);
    }
    for key in ["trustedCA", "certificate", "privateKey"] {
        field.get(key).and_then(|file| file.text());
    }
}

fn secret(field: &Field<'_>) {
    field.only(&["name", "namespace"]);
    not_empty(field, "name");
    field.get("namespace").and_then(|namespace| namespace.text());
}

fn server_names(field: &Field<'_>) {
    let Some(list) = field.list() else { return };
    if list.len() == 0 {
        field.fault("no name; one or more are needed");
    }
    for name in list {
        let Some(text) = name.text() else { continue };
        if Pattern::pattern(text).is_err() {
            name.fault(format!(
                "{text:?} is no server name; up to 255 of a-z A-Z 0-9 - _ * are allowed, with a . between labels"
            ));
        }
    }
}

fn listener(side: &Side<'_>, field: &Field<'_>) {
    field.only(&["envoyConfig", "name", "priority"]);
    if !side.egress() {
        field.fault("listener in ingress; only egress has one");
    }
    not_empty(field, "name");
    field.get("priority").and_then(|priority| priority.whole(1..=100));
    let Some(config) = field.need("envoyConfig") else { return };
    config.only(&["kind", "name"]);
    not_empty(&config, "name");
    let Some(kind) = config.get("kind") else { return };
    let found = kind.one_of("kind", &["CiliumEnvoyConfig", "CiliumClusterwideEnvoyConfig"]);
    if side.owner.clusterwide() && found == Some("CiliumEnvoyConfig") {
        kind.fault("CiliumEnvoyConfig of a clusterwide policy; CiliumClusterwideEnvoyConfig is allowed");
    }
}

fn not_empty(field: &Field<'_>, key: &str) {
    if let Some(value) = field.need(key)
        && value.text() == Some("")
    {
        value.fault(format!("\"\" as {key}; a name is needed"));
    }
}

fn text_of<'s>(field: &'s Field<'_>, key: &'s str) -> Option<(&'s str, Field<'s>)> {
    let value = field.get(key)?;
    Some((value.text()?, value))
}
