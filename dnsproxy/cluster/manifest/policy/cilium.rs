//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy: `spec` and `specs`, their subjects, directions and items.

use super::super::selector::{self, Meant};
use super::{EGRESS, INGRESS, Owner, Side, Words, layer7, peers, ports};
use crate::cluster::fields::{FaultKind, Field};
use crate::engine::policy::{Item, Peers, Ports, Rule, Section, Subject, Unenforced};

/// The most characters of `log.value`, as in Cilium.
const LOG_CHARS: usize = 32;

const RULE: [&str; 10] = [
    "endpointSelector",
    "nodeSelector",
    "egress",
    "egressDeny",
    "ingress",
    "ingressDeny",
    "enableDefaultDeny",
    "labels",
    "description",
    "log",
];

/// The rules of an object: `spec`, then each of `specs`.
pub(super) fn rules(owner: &Owner, object: &Field<'_>) -> Vec<Rule> {
    let mut rules = Vec::new();
    if object.only(&["apiVersion", "kind", "metadata", "spec", "specs", "status"]) {
        rules.push(owner.shut(object));
    }
    for spec in object.all("spec") {
        rules.extend(rule(owner, &spec));
    }
    for specs in object.all("specs") {
        match specs.list() {
            Some(list) if list.len() > 0 => list.for_each(|spec| rules.extend(rule(owner, &spec))),
            Some(_) => {
                specs.fault("no rule; one or more are needed");
                rules.push(owner.shut(&specs));
            }
            None => rules.push(owner.shut(&specs)),
        }
    }
    if object.get("spec").is_none() && object.get("specs").is_none() {
        object.fault("neither spec nor specs; one is needed");
        rules.push(owner.shut(object));
    }
    rules
}

/// One rule; none if it is about nodes.
fn rule(owner: &Owner, spec: &Field<'_>) -> Option<Rule> {
    if spec.entries().is_none() {
        return Some(owner.shut(spec));
    }
    let before = spec.faults();
    let stray = spec.only(&RULE);
    remarks(spec);
    let host = owner.clusterwide() && spec.get("nodeSelector").is_some() && spec.get("endpointSelector").is_none();
    let subject = subject(owner, spec, host);
    let mut egress = section(owner, spec, &EGRESS, host);
    let mut ingress = section(owner, spec, &INGRESS, host);
    let silent = !egress.default_deny && !ingress.default_deny;
    if silent {
        spec.fault("no rule in any direction; one of egress, egressDeny, ingress, ingressDeny with an item is needed");
    }
    let [deny_egress, deny_ingress] = default_deny(spec);
    if silent || stray {
        // A misspelled field could have been either direction.
        egress.default_deny = true;
        ingress.default_deny = true;
    } else if spec.faults() > before {
        egress.default_deny |= deny_egress == Some(true);
        ingress.default_deny |= deny_ingress == Some(true);
    } else {
        egress.default_deny = deny_egress.unwrap_or(egress.default_deny);
        ingress.default_deny = deny_ingress.unwrap_or(ingress.default_deny);
    }
    // It selects no pod, whatever else it says.
    (!host).then(|| Rule {
        at: owner.rule(spec),
        subject: subject.unwrap_or_else(|| owner.everyone()),
        egress,
        ingress,
    })
}

/// Whom the rule is about; `None` if that can't be read.
fn subject(owner: &Owner, spec: &Field<'_>, host: bool) -> Option<Subject> {
    if let Some(nodes) = spec.get("nodeSelector") {
        if host {
            selector::selector(&nodes, Meant::Nodes);
            let text = "not enforced by namegate yet: nodeSelector; the rule selects no pod";
            spec.fault_of("nodeSelector", FaultKind::Unenforced, text);
        } else if !owner.clusterwide() {
            let allowed = "endpointSelector is allowed, nodeSelector in a CiliumClusterwideNetworkPolicy";
            let text = format!("nodeSelector in a {}; {allowed}", owner.kind);
            spec.fault_of("nodeSelector", FaultKind::Wrong, text);
        } else {
            spec.fault("endpointSelector with nodeSelector; one of them is allowed");
        }
        return None;
    }
    let Some(field) = spec.get("endpointSelector") else {
        spec.fault(match owner.clusterwide() {
            false => "no endpointSelector; it is needed, {} selects all pods of the namespace",
            true => "neither endpointSelector nor nodeSelector; one is needed, endpointSelector: {} selects all pods",
        });
        return None;
    };
    let selector = selector::selector(&field, Meant::Subjects);
    if let Some(namespace) = &owner.namespace {
        selector::check_namespace(&field, selector.as_ref(), namespace);
    }
    if spec.all("endpointSelector").count() > 1 {
        return None;
    }
    selector.map(|selector| Subject { namespace: owner.namespace.clone(), selector })
}

/// Whether what no rule allows is denied, egress and ingress, as far as the rule says so itself.
fn default_deny(spec: &Field<'_>) -> [Option<bool>; 2] {
    let Some(field) = spec.get("enableDefaultDeny") else { return [None; 2] };
    field.only(&["egress", "ingress"]);
    ["egress", "ingress"].map(|key| field.get(key).and_then(|value| value.boolean()))
}

/// Fields that are for people.
fn remarks(spec: &Field<'_>) {
    if let Some(description) = spec.get("description") {
        description.text();
    }
    let labels = spec.get("labels");
    for label in labels.iter().filter_map(Field::list).flatten() {
        label.only(&["key", "value", "source"]);
        label.need("key").and_then(|key| key.text());
        for key in ["value", "source"] {
            label.get(key).and_then(|value| value.text());
        }
    }
    let Some(log) = spec.get("log") else { return };
    log.only(&["value"]);
    if let Some(value) = log.get("value")
        && let Some(text) = value.text()
        && (text.chars().count() > LOG_CHARS || text.chars().any(char::is_control))
    {
        value.fault(format!("{text:?}; up to {LOG_CHARS} printable characters are allowed"));
    }
}

fn section(owner: &Owner, spec: &Field<'_>, words: &'static Words, host: bool) -> Section {
    let mut section = Section::default();
    for (key, deny) in [(words.allow, false), (words.deny, true)] {
        let side = Side { owner, words, deny, host };
        for field in spec.all(key) {
            let Some(list) = field.list() else {
                section.default_deny = true;
                if deny {
                    section.deny.push(Item { at: owner.rule(&field), peers: Peers::Any, ports: Ports::All });
                }
                continue;
            };
            section.default_deny |= list.len() > 0;
            for field in list {
                let (item, demands) = item(&side, &field);
                match (deny, demands.is_empty()) {
                    (true, _) => section.deny.push(item),
                    (false, true) => section.allow.push(item),
                    (false, false) => section.unenforced.push(Unenforced { item, what: demands.join(", ") }),
                }
            }
        }
    }
    section
}

/// One item, and what it demands that namegate doesn't see to yet.
fn item(side: &Side<'_>, field: &Field<'_>) -> (Item, Vec<String>) {
    let at = side.owner.rule(field);
    if field.entries().is_none() {
        return (Item { at, peers: Peers::Any, ports: Ports::All }, Vec::new());
    }
    let words = side.words;
    let mut known = vec![words.endpoints, words.cidr, words.cidr_set, words.entities];
    if side.egress() {
        known.push("toServices");
    }
    if side.egress() && !side.deny {
        known.push("toFQDNs");
    }
    known.extend([words.groups, words.nodes, "toPorts", "icmps"]);
    if !side.deny {
        known.push("authentication");
    }
    if field.get(words.requires).is_some() {
        // Cilium's schema still has it, for no items: nobody needs to hear of it.
        known.push(words.requires);
    }
    let stray = field.only(&known);

    let before = field.faults();
    let mut demands = Vec::new();
    let ports = ports::ports(side, field, &mut demands);
    let ports_wrong = stray || field.faults() > before || !demands.is_empty();

    let before = field.faults();
    let of_ports = demands.len();
    let some_ports = !matches!(&ports, Ports::All) || ports_wrong;
    let peers = peers::peers(side, field, some_ports, &mut demands);
    let peers_wrong = stray || field.faults() > before || demands.len() > of_ports;

    if side.deny {
        let peers = if peers_wrong { Peers::Any } else { peers };
        let ports = if ports_wrong { Ports::All } else { ports };
        return (Item { at, peers, ports }, demands);
    }
    layer7::authentication(side, field, &mut demands);
    if let (Peers::Names(_), Ports::These(entries)) = (&peers, &ports) {
        if entries.iter().any(|entry| entry.dns.is_some()) {
            field.fault("rules.dns with toFQDNs; the DNS server is named by toEndpoints, toCIDR or toEntities");
        }
        if entries.iter().any(|entry| entry.service.is_some()) {
            field.fault("service with toFQDNs; a Service is in the cluster, and a name never means that");
        }
    }
    (Item { at, peers, ports }, demands)
}
