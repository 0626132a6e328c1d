//! Policies, and what still holds of those that are refused.
//!
//! Refusing never opens (I10): a refused policy selects whom it selects, or everyone in its namespace (for a clusterwide
//! one everyone at all) if that can't be read. It shuts the directions that it names, or both. Its denials stay; one with a
//! part that can't be read denies without that part, which is more.
//!
//! What Cilium's language has and namegate doesn't see to yet is checked as Cilium checks it. The item that says it
//! allows nothing, and the rest of its policy is in force.
//!
//! - `cilium`: objects, rules, items
//! - `peers`: the other side of an item; blocks of addresses
//! - `ports`: ports, ICMP types, the names of `rules.dns`
//! - `layer7`: what is checked and not enforced
//! - `network_policy`: Kubernetes' own kind

mod cilium;
mod layer7;
mod network_policy;
mod peers;
mod ports;

use std::sync::Arc;

use super::{Kind, names};
use crate::cluster::fields::{Fault, FaultKind, Field};
use crate::engine::labels::Selector;
use crate::engine::policy::{Policy, Rule, Section, Subject};
use crate::engine::ruleset::Direction;
use crate::engine::verdict::{RuleRef, RuleText};

/// The setting of `cilium-config` without which `fromNodes` and `toNodes` are refused.
const NODE_LABELS: &str = "enable-node-selector-labels";

/// Reads a policy of any kind. Whether it may be used as a whole, the object's faults say.
pub(super) fn policy(kind: Kind, object: &Field<'_>) -> Policy {
    let (namespace, name) = names(kind, object);
    let owner = Owner { kind, namespace, name: name.unwrap_or_else(|| format!("({})", object.place())) };
    let at = owner.rule(object);
    let rules = match kind {
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => cilium::rules(&owner, object),
        Kind::NetworkPolicy => vec![network_policy::rule(&owner, object)],
        _ => {
            let allowed = [Kind::CiliumNetworkPolicy, Kind::CiliumClusterwideNetworkPolicy, Kind::NetworkPolicy];
            let allowed = allowed.map(Kind::name).join(", ");
            object.fault(format!("{kind} is not read by namegate yet; allowed: {allowed}"));
            vec![owner.shut(object)]
        }
    };
    Policy { at, rules }
}

/// What stands for something unreadable: it shuts both directions of everyone.
pub fn shut(kind: &str, name: &str, place: &str) -> Policy {
    let text =
        RuleText { kind: kind.to_owned(), policy: name.to_owned(), place: place.to_owned(), ..RuleText::default() };
    let at = RuleRef(Arc::new(text));
    let rule = Rule { at: at.clone(), subject: Subject::default(), egress: Section::shut(), ingress: Section::shut() };
    Policy { at, rules: vec![rule] }
}

/// Settles what depends on the cluster's configuration: each such fault is either none or a wrong.
pub fn settle(faults: &mut Vec<Fault>, cilium_config: &std::collections::BTreeMap<String, String>) {
    let node_labels = cilium_config.get(NODE_LABELS).is_some_and(|value| value == "true");
    faults.retain(|fault| fault.kind != FaultKind::NodeLabels || !node_labels);
    for fault in faults.iter_mut().filter(|fault| fault.kind == FaultKind::NodeLabels) {
        fault.kind = FaultKind::Wrong;
    }
}

pub(super) use peers::network;

/// Whose rule is being read.
struct Owner {
    kind: Kind,
    namespace: Option<String>,
    name: String,
}

/// Where an item of Cilium's language stands.
struct Side<'a> {
    owner: &'a Owner,
    words: &'static Words,
    /// Whether it denies.
    deny: bool,
    /// Whether its rule is about nodes.
    host: bool,
}

/// The names of one direction's fields.
struct Words {
    direction: Direction,
    allow: &'static str,
    deny: &'static str,
    endpoints: &'static str,
    requires: &'static str,
    cidr: &'static str,
    cidr_set: &'static str,
    entities: &'static str,
    groups: &'static str,
    nodes: &'static str,
}

const EGRESS: Words = Words {
    direction: Direction::Egress,
    allow: "egress",
    deny: "egressDeny",
    endpoints: "toEndpoints",
    requires: "toRequires",
    cidr: "toCIDR",
    cidr_set: "toCIDRSet",
    entities: "toEntities",
    groups: "toGroups",
    nodes: "toNodes",
};

const INGRESS: Words = Words {
    direction: Direction::Ingress,
    allow: "ingress",
    deny: "ingressDeny",
    endpoints: "fromEndpoints",
    requires: "fromRequires",
    cidr: "fromCIDR",
    cidr_set: "fromCIDRSet",
    entities: "fromEntities",
    groups: "fromGroups",
    nodes: "fromNodes",
};

impl Owner {
    fn rule(&self, field: &Field<'_>) -> RuleRef {
        RuleRef(Arc::new(RuleText {
            kind: self.kind.name().to_owned(),
            namespace: self.namespace.clone().unwrap_or_default(),
            policy: self.name.clone(),
            place: field.place(),
            path: field.path(),
        }))
    }

    /// Everyone whom the policy could mean.
    fn everyone(&self) -> Subject {
        Subject { namespace: self.namespace.clone(), selector: Selector::default() }
    }

    fn shut(&self, field: &Field<'_>) -> Rule {
        Rule { at: self.rule(field), subject: self.everyone(), egress: Section::shut(), ingress: Section::shut() }
    }

    /// A peer selector means pods of the policy's own namespace, unless it names namespaces or what is no pod. In a clusterwide
    /// policy it means pods, whatever it names; a denial is not made narrower. What is said already is not said again: rules of
    /// equal selectors are merged, whichever kind of policy they stand in.
    fn scoped(&self, selector: Selector, deny: bool) -> Selector {
        match &self.namespace {
            _ if selector.names_namespace() && !selector.names_reserved() => selector,
            Some(_) if selector.names_reserved() => selector,
            None if selector.names_reserved() && deny => selector,
            Some(namespace) => selector.in_namespace(namespace),
            None => selector.in_any_namespace(),
        }
    }

    fn clusterwide(&self) -> bool {
        self.kind == Kind::CiliumClusterwideNetworkPolicy
    }
}

impl Side<'_> {
    fn egress(&self) -> bool {
        self.words.direction == Direction::Egress
    }

    /// Notes a demand that namegate doesn't see to yet, at its key.
    fn demand(&self, field: &Field<'_>, key: &str, what: &str, demands: &mut Vec<String>) {
        let so = if self.deny { "the item denies without it" } else { "the item allows nothing" };
        field.fault_of(key, FaultKind::Unenforced, format!("not enforced by namegate yet: {what}; {so}"));
        demands.push(what.to_owned());
    }
}
