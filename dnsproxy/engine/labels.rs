//! Labels and the selectors that ask for them, with Cilium's sources.
//!
//! A pod carries, beside its own labels, its namespace, its namespace's labels, its service account and its cluster; a
//! node carries a reserved one. A key may name the source it means (`k8s:app`, `reserved:host`); without one any will do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The label that holds a pod's namespace.
pub const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// What stands before a namespace's own labels.
pub const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// The label that holds a pod's service account.
pub const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";
/// The label that holds a pod's cluster.
pub const CLUSTER: &str = "io.cilium.k8s.policy.cluster";

/// Where a label comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Source {
    /// Any of the others.
    Any,
    /// Kubernetes.
    K8s,
    /// Cilium's own: what is no pod.
    Reserved,
}

/// What is known about an object's labels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// All of them.
    All,
    /// All but those of its namespace, whose object is not there.
    AllButNamespaceLabels,
    /// Its namespace at most: the object could not be read.
    Namespace,
}

/// The labels of a pod, a node, or the world.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Labels {
    k8s: BTreeMap<String, String>,
    reserved: &'static [&'static str],
    known: Known,
}

/// Whether a selector selects. What isn't known must not open anything: who allows wants `Yes`, who denies takes `Maybe`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Match {
    /// It doesn't.
    No,
    /// It depends on labels that are not known.
    Maybe,
    /// It does.
    Yes,
}

/// Requirements that must all hold. None: everything is selected.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Selector {
    /// The requirements.
    pub requirements: Vec<Requirement>,
}

/// One line of a selector.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Requirement {
    /// Where the label must come from.
    pub source: Source,
    /// Its key, without the source.
    pub key: String,
    /// What its value must be.
    pub operator: Operator,
}

/// What a requirement demands.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Operator {
    /// The label is there with one of these values.
    In(BTreeSet<String>),
    /// The label is absent, or has none of these values.
    NotIn(BTreeSet<String>),
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl Labels {
    /// The labels of a pod: its own, and what its place in the cluster adds.
    pub fn of_pod(
        own: &BTreeMap<String, String>,
        namespace: &str,
        namespace_labels: Option<&BTreeMap<String, String>>,
        service_account: Option<&str>,
        cluster: &str,
    ) -> Labels {
        let mut k8s = own.clone();
        for (key, value) in namespace_labels.into_iter().flatten() {
            k8s.insert(format!("{NAMESPACE_LABELS}{key}"), value.clone());
        }
        if let Some(account) = service_account {
            k8s.insert(SERVICE_ACCOUNT.to_owned(), account.to_owned());
        }
        k8s.insert(CLUSTER.to_owned(), cluster.to_owned());
        k8s.insert(NAMESPACE.to_owned(), namespace.to_owned());
        let known = if namespace_labels.is_some() { Known::All } else { Known::AllButNamespaceLabels };
        Labels { k8s, reserved: &[], known }
    }

    /// The labels of an object that is no pod: a Service, a CIDR group.
    pub fn of_object(own: &BTreeMap<String, String>) -> Labels {
        Labels { k8s: own.clone(), reserved: &[], known: Known::All }
    }

    /// The labels of a node's object, with the reserved ones that say what it is to us.
    pub fn of_node(own: &BTreeMap<String, String>, reserved: &'static [&'static str]) -> Labels {
        Labels { reserved, ..Labels::of_object(own) }
    }

    /// The labels of a pod that could not be read, but for its namespace.
    pub fn unreadable(namespace: &str) -> Labels {
        let k8s = BTreeMap::from([(NAMESPACE.to_owned(), namespace.to_owned())]);
        Labels { k8s, reserved: &[], known: Known::Namespace }
    }

    /// The labels of what is no pod: `host`, `remote-node`, `kube-apiserver`, `world`.
    pub fn reserved(names: &'static [&'static str]) -> Labels {
        Labels { k8s: BTreeMap::new(), reserved: names, known: Known::All }
    }

    /// What is known of them.
    pub fn known(&self) -> Known {
        self.known
    }

    /// Those of Kubernetes, by key.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.k8s.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The value of a label; `Err` when it isn't known whether there is one.
    fn get(&self, source: Source, key: &str) -> Result<Option<&str>, ()> {
        // Everything carries `reserved:all`, so that a denial by it denies everyone.
        let all = source == Source::Reserved && key == "all";
        let reserved = (all || source != Source::K8s && self.reserved.contains(&key)).then_some("");
        if reserved.is_some() || source == Source::Reserved {
            return Ok(reserved);
        }
        match self.known {
            Known::Namespace if key != NAMESPACE => Err(()),
            Known::AllButNamespaceLabels if key.starts_with(NAMESPACE_LABELS) => Err(()),
            _ => Ok(self.k8s.get(key).map(String::as_str)),
        }
    }
}

impl Selector {
    /// Whether it selects what carries these labels.
    pub fn matches(&self, labels: &Labels) -> Match {
        self.requirements.iter().map(|requirement| requirement.holds(labels)).min().unwrap_or(Match::Yes)
    }

    /// Adds that the object is in `namespace`.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Selector {
        let operator = Operator::In(BTreeSet::from([namespace.to_owned()]));
        self.requirements.push(Requirement { source: Source::K8s, key: NAMESPACE.to_owned(), operator });
        self
    }

    /// Adds that the object is in some namespace: that it is a pod.
    #[must_use]
    pub fn in_any_namespace(mut self) -> Selector {
        let operator = Operator::Exists;
        self.requirements.push(Requirement { source: Source::K8s, key: NAMESPACE.to_owned(), operator });
        self
    }

    /// Whether it asks for a reserved label: only then can it allow what is no pod.
    pub fn names_reserved(&self) -> bool {
        self.requirements.iter().any(|requirement| requirement.source == Source::Reserved)
    }

    /// Whether it says itself which namespaces it means, by name or by their labels.
    pub fn names_namespace(&self) -> bool {
        self.requirements.iter().any(|requirement| {
            requirement.source != Source::Reserved
                && (requirement.key == NAMESPACE || requirement.key.starts_with(NAMESPACE_LABELS))
        })
    }
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> Match {
        let Ok(value) = labels.get(self.source, &self.key) else { return Match::Maybe };
        let holds = match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        };
        if holds { Match::Yes } else { Match::No }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Any => "any",
            Source::K8s => "k8s",
            Source::Reserved => "reserved",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn pod() -> Labels {
        let own = map(&[("app", "web"), ("tier", "front")]);
        Labels::of_pod(&own, "shop", Some(&map(&[("team", "blue")])), Some("runner"), "default")
    }

    #[track_caller]
    fn answers(labels: &Labels, source: Source, key: &str, operator: Operator, answer: Match) {
        let selector = Selector { requirements: vec![Requirement { source, key: key.to_owned(), operator }] };
        assert_eq!(selector.matches(labels), answer, "{selector:?}");
    }

    fn one(value: &str) -> BTreeSet<String> {
        BTreeSet::from([value.to_owned()])
    }

    #[test]
    fn a_pod_carries_what_its_place_adds() {
        for (key, value) in [
            ("app", "web"),
            (NAMESPACE, "shop"),
            ("io.cilium.k8s.namespace.labels.team", "blue"),
            (SERVICE_ACCOUNT, "runner"),
            (CLUSTER, "default"),
        ] {
            answers(&pod(), Source::Any, key, Operator::In(one(value)), Match::Yes);
            answers(&pod(), Source::K8s, key, Operator::In(one(value)), Match::Yes);
            answers(&pod(), Source::Reserved, key, Operator::Exists, Match::No);
        }
    }

    #[test]
    fn operators_mean_what_kubernetes_says() {
        answers(&pod(), Source::Any, "app", Operator::In(one("db")), Match::No);
        answers(&pod(), Source::Any, "app", Operator::NotIn(one("db")), Match::Yes);
        answers(&pod(), Source::Any, "app", Operator::NotIn(one("web")), Match::No);
        answers(&pod(), Source::Any, "absent", Operator::NotIn(one("x")), Match::Yes);
        answers(&pod(), Source::Any, "absent", Operator::Exists, Match::No);
        answers(&pod(), Source::Any, "absent", Operator::DoesNotExist, Match::Yes);
        answers(&pod(), Source::Any, "app", Operator::DoesNotExist, Match::No);
    }

    #[test]
    fn an_empty_selector_selects_everything() {
        assert_eq!(Selector::default().matches(&pod()), Match::Yes);
        assert_eq!(Selector::default().in_namespace("other").matches(&pod()), Match::No);
        assert_eq!(Selector::default().in_any_namespace().matches(&Labels::reserved(&["host"])), Match::No);
    }

    #[test]
    fn a_node_is_selected_by_its_reserved_label_only() {
        let host = Labels::reserved(&["host"]);
        answers(&host, Source::Reserved, "host", Operator::Exists, Match::Yes);
        answers(&host, Source::Reserved, "host", Operator::In(one("")), Match::Yes);
        answers(&host, Source::Any, "host", Operator::Exists, Match::Yes);
        answers(&host, Source::K8s, "host", Operator::Exists, Match::No);
        answers(&host, Source::Reserved, "remote-node", Operator::Exists, Match::No);
    }

    #[test]
    fn everything_is_all() {
        for labels in [pod(), Labels::reserved(&["host"]), Labels::reserved(&["world"]), Labels::unreadable("shop")] {
            answers(&labels, Source::Reserved, "all", Operator::Exists, Match::Yes);
        }
    }

    #[test]
    fn what_is_not_known_is_maybe() {
        let labels = Labels::of_pod(&map(&[("app", "web")]), "shop", None, None, "default");
        answers(&labels, Source::Any, "io.cilium.k8s.namespace.labels.team", Operator::DoesNotExist, Match::Maybe);
        answers(&labels, Source::Any, "app", Operator::Exists, Match::Yes);
        let unreadable = Labels::unreadable("shop");
        answers(&unreadable, Source::Any, "app", Operator::NotIn(one("web")), Match::Maybe);
        answers(&unreadable, Source::Any, NAMESPACE, Operator::In(one("shop")), Match::Yes);
        answers(&unreadable, Source::Any, NAMESPACE, Operator::In(one("other")), Match::No);
        let both = Selector { requirements: vec![] }.in_namespace("other");
        assert_eq!(both.matches(&unreadable), Match::No);
    }
}
