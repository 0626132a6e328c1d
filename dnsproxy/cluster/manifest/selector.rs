//! Label selectors, with Cilium's sources in their keys.

use std::collections::BTreeSet;

use crate::cluster::fields::Field;
use crate::engine::labels::{NAMESPACE, NAMESPACE_LABELS, Operator, Requirement, Selector, Source};

/// The labels of what is no pod, as Cilium has them.
const RESERVED: [&str; 12] = [
    "all",
    "host",
    "remote-node",
    "kube-apiserver",
    "world",
    "world-ipv4",
    "world-ipv6",
    "init",
    "health",
    "ingress",
    "unmanaged",
    "none",
];

/// Whom a selector may mean.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Meant {
    /// The workloads that a policy of Cilium's is about: pods. Reserved labels are allowed, and select none.
    Subjects,
    /// The other side: pods, and what is no pod by its reserved labels.
    Peers,
    /// Nodes, by the labels of their objects.
    Nodes,
    /// Services or CiliumCIDRGroups, by the labels of their objects.
    Objects,
    /// Pods of a NetworkPolicy: keys have no source.
    KubernetesPods,
    /// Namespaces of a NetworkPolicy, by what their pods carry of their labels.
    KubernetesNamespaces,
}

impl Meant {
    /// What may stand before the colon of a key.
    fn sources(self) -> &'static [&'static str] {
        match self {
            Meant::Subjects | Meant::Peers => &["any", "k8s", "reserved"],
            Meant::Nodes => &["any", "node"],
            Meant::Objects => &["any", "k8s"],
            Meant::KubernetesPods | Meant::KubernetesNamespaces => &[],
        }
    }
}

/// Reads a selector; `None` when any of it is wrong, for less of a selector selects more.
pub fn selector(field: &Field<'_>, meant: Meant) -> Option<Selector> {
    let before = field.faults();
    field.only(&["matchLabels", "matchExpressions"]);
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
    if let Some(expressions) = field.get("matchExpressions")
        && let Some(list) = expressions.list()
    {
        if list.len() == 0 {
            // Less of a selector selects more.
            expressions.fault("no expression; one or more are needed, or no matchExpressions at all");
        }
        requirements.extend(list.filter_map(|item| expression(&item, meant)));
    }
    (field.faults() == before).then_some(Selector { requirements })
}

/// Notes a subject in another namespace than its policy's: Cilium would put the policy's in its place, with a warning, or
/// select nobody. `selector`: what was read, if it could be.
pub fn check_namespace(field: &Field<'_>, selector: Option<&Selector>, namespace: &str) {
    let labels = field.get("matchLabels");
    for source in ["", "k8s:", "any:"] {
        let key = format!("{source}{NAMESPACE}");
        if let Some(named) = labels.as_ref().and_then(|labels| labels.get(&key))
            && named.node.as_text().is_some_and(|text| text != namespace)
        {
            let found = named.node.as_text().unwrap_or_default();
            named.fault(format!("namespace {found:?} of the subject; the policy's own, {namespace:?}, is allowed"));
        }
    }
    let expressions = field.get("matchExpressions");
    // Labels come first in what was read, and nothing of it is left out.
    let labels = labels.as_ref().and_then(Field::entries).map_or(0, <[_]>::len);
    let read = selector.iter().flat_map(|selector| &selector.requirements).skip(labels);
    for (item, requirement) in expressions.iter().filter_map(Field::list).flatten().zip(read) {
        let own = match &requirement.operator {
            _ if requirement.key != NAMESPACE || requirement.source == Source::Reserved => true,
            Operator::In(values) => values.contains(namespace),
            Operator::NotIn(values) => !values.contains(namespace),
            Operator::Exists => true,
            Operator::DoesNotExist => false,
        };
        if !own {
            item.fault(format!("a subject outside of the policy's own namespace; {namespace:?} is allowed"));
        }
    }
}

fn expression(field: &Field<'_>, meant: Meant) -> Option<Requirement> {
    field.only(&["key", "operator", "values"]);
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
    Some(Requirement { source, key, operator })
}

/// The source and the key of `k8s:app`.
fn label_key(field: &Field<'_>, text: &str, meant: Meant) -> Option<(Source, String)> {
    let (source, key) = match text.split_once(':') {
        None => (Source::Any, text),
        Some((source, key)) if meant.sources().contains(&source) => match source {
            "k8s" => (Source::K8s, key),
            "reserved" => (Source::Reserved, key),
            _ => (Source::Any, key),
        },
        Some((source, _)) => {
            let allowed = match meant.sources() {
                [] => "none".to_owned(),
                sources => sources.join(", "),
            };
            field.fault(format!("label source {source:?}; allowed: {allowed}"));
            return None;
        }
    };
    if source == Source::Reserved {
        if !RESERVED.contains(&key) {
            field.fault(format!("reserved:{key} is no reserved label; allowed: {}", RESERVED.join(", ")));
            return None;
        }
        return Some((source, key.to_owned()));
    }
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let prefixed = prefix.is_none_or(is_domain);
    // Namespace labels carry a prefix of Cilium's, which makes them longer than a label of Kubernetes may be.
    let limit = if key.starts_with("io.cilium.k8s.") || key.starts_with("io.kubernetes.") { 317 } else { 63 };
    if name.len() > limit || !is_label_text(name) || name.is_empty() || key.len() > 600 || !prefixed {
        field.fault(format!(
            "label key {text:?}; letters, digits, - _ . are allowed, after a prefix of a-z 0-9 - . and one /"
        ));
        return None;
    }
    match meant {
        Meant::KubernetesPods => Some((Source::K8s, key.to_owned())),
        Meant::KubernetesNamespaces => Some((Source::K8s, format!("{NAMESPACE_LABELS}{key}"))),
        _ => Some((source, key.to_owned())),
    }
}

fn check_value(field: &Field<'_>, value: &str) {
    if value.len() > 63 || !is_label_text(value) {
        field.fault(format!(
            "label value {value:?}; up to 63 letters, digits, - _ . are allowed, the first and last a letter or digit"
        ));
    }
}

/// Kubernetes' rule for what names objects, and for what stands before the / of a label's key: labels of a-z 0-9 -.
pub(super) fn is_domain(text: &str) -> bool {
    let plain = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit();
    let good = |label: &str| {
        let octets = label.as_bytes();
        octets.first().copied().is_some_and(plain)
            && octets.last().copied().is_some_and(plain)
            && octets.iter().all(|octet| plain(*octet) || *octet == b'-')
    };
    text.len() <= 253 && text.split('.').all(good)
}

/// Kubernetes' rule for the text of labels: empty is one, too.
fn is_label_text(text: &str) -> bool {
    let edge = |octet: Option<&u8>| octet.is_none_or(u8::is_ascii_alphanumeric);
    let octets = text.as_bytes();
    edge(octets.first())
        && edge(octets.last())
        && octets.iter().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.'))
}
