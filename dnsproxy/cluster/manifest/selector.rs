//! Label selectors, with Cilium's sources in their keys.

use std::collections::BTreeSet;

use crate::cluster::fields::Field;
use crate::engine::labels::{NAMESPACE, Operator, Requirement, Selector, Source};

/// Whom a selector may mean.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Meant {
    /// The workloads that a policy is about: pods.
    Subjects,
    /// The other side: pods, and nodes by their reserved labels.
    Peers,
}

/// Reads a selector; `None` when any of it is wrong, for less of a selector selects more.
pub fn selector(field: &Field<'_>, meant: Meant) -> Option<Selector> {
    let before = field.faults();
    field.only(&["matchLabels", "matchExpressions"], &[]);
    let mut requirements = Vec::new();
    if let Some(labels) = field.get("matchLabels") {
        for (key, _) in labels.entries().unwrap_or_default() {
            let Some(value) = labels.get(&key.text) else { continue };
            let Some(text) = value.text() else { continue };
            if let Some((source, key)) = label_key(&value, &key.text, meant) {
                check_value(&value, text);
                if source == Source::Reserved && !text.is_empty() {
                    value.fault(format!("{text:?} as value of a reserved label; \"\" is allowed"));
                }
                let operator = Operator::In(BTreeSet::from([text.to_owned()]));
                requirements.push(Requirement { source, key, operator });
            }
        }
    }
    if let Some(expressions) = field.get("matchExpressions") {
        requirements.extend(expressions.list().into_iter().flatten().filter_map(|item| expression(&item, meant)));
    }
    (field.faults() == before).then_some(Selector { requirements })
}

/// Notes a subject in another namespace than its policy's: Cilium would put the policy's in its place, with a warning.
pub fn check_namespace(field: &Field<'_>, namespace: &str) {
    let Some(labels) = field.get("matchLabels") else { return };
    for source in ["", "k8s:", "any:"] {
        let key = format!("{source}{NAMESPACE}");
        if let Some(named) = labels.get(&key)
            && named.node.as_text().is_some_and(|text| text != namespace)
        {
            let found = named.node.as_text().unwrap_or_default();
            named.fault(format!("namespace {found:?} of the subject; the policy's own, {namespace:?}, is allowed"));
        }
    }
}

fn expression(field: &Field<'_>, meant: Meant) -> Option<Requirement> {
    field.only(&["key", "operator", "values"], &[]);
    let key = field.need("key");
    let key = key.as_ref().and_then(|key| label_key(key, key.text()?, meant));
    let values = field.get_some("values").map(|list| {
        let texts = list.list().into_iter().flatten().filter_map(|value| {
            let text = value.text()?;
            check_value(&value, text);
            Some(text.to_owned())
        });
        texts.collect::<BTreeSet<String>>()
    });
    let values = values.unwrap_or_default();
    let operator = field.need("operator")?;
    let (operator, wants_values) = match operator.text()? {
        "In" => (Operator::In(values.clone()), true),
        "NotIn" => (Operator::NotIn(values.clone()), true),
        "Exists" => (Operator::Exists, false),
        "DoesNotExist" => (Operator::DoesNotExist, false),
        other => {
            operator.fault(format!("operator {other:?}; allowed: In, NotIn, Exists, DoesNotExist"));
            return None;
        }
    };
    if wants_values == values.is_empty() {
        let text = if wants_values { "no values; one or more are needed" } else { "values; none are allowed" };
        field.fault(format!(
            "operator {} with {text}",
            field.get("operator").map_or("", |o| o.node.as_text().unwrap_or(""))
        ));
    }
    let (source, key) = key?;
    if source == Source::Reserved && !matches!(operator, Operator::Exists) {
        field.fault(format!("reserved:{key} with that operator; Exists is allowed"));
    }
    Some(Requirement { source, key, operator })
}

/// The source and the key of `k8s:app`.
fn label_key(field: &Field<'_>, text: &str, meant: Meant) -> Option<(Source, String)> {
    let (source, key) = match text.split_once(':') {
        None => (Source::Any, text),
        Some(("any", key)) => (Source::Any, key),
        Some(("k8s", key)) => (Source::K8s, key),
        Some(("reserved", key)) => (Source::Reserved, key),
        Some((source, _)) => {
            field.fault(format!("label source {source:?}; allowed: any, k8s, reserved"));
            return None;
        }
    };
    if source == Source::Reserved {
        if meant == Meant::Subjects {
            field.fault(format!("reserved:{key} in a subject; labels of pods are allowed"));
            return None;
        }
        if !matches!(key, "host" | "remote-node") {
            field.fault(format!(
                "reserved:{key} is not read by namegate yet; allowed: reserved:host, reserved:remote-node"
            ));
            return None;
        }
    }
    let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
    // Namespace labels carry a prefix of Cilium's, which makes them longer than a label of Kubernetes may be.
    let limit = if key.starts_with("io.cilium.k8s.") || key.starts_with("io.kubernetes.") { 317 } else { 63 };
    if name.len() > limit || !is_label_text(name) || name.is_empty() || key.len() > 600 || !key.is_ascii() {
        field.fault(format!("label key {text:?}; letters, digits, - _ . and one / for a prefix are allowed"));
        return None;
    }
    Some((source, key.to_owned()))
}

fn check_value(field: &Field<'_>, value: &str) {
    if value.len() > 63 || !is_label_text(value) {
        field.fault(format!(
            "label value {value:?}; up to 63 letters, digits, - _ . are allowed, the first and last a letter or digit"
        ));
    }
}

/// Kubernetes' rule for the text of labels: empty is one, too.
fn is_label_text(text: &str) -> bool {
    let edge = |octet: Option<&u8>| octet.is_none_or(u8::is_ascii_alphanumeric);
    let octets = text.as_bytes();
    edge(octets.first())
        && edge(octets.last())
        && octets.iter().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.'))
}
