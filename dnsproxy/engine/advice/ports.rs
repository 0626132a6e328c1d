//! Ports that are missing: from a rule for names, or from the containers that should have them.

use std::collections::BTreeSet;

use super::{Advice, Place, Scene, is_subject};
use crate::engine::endpoint::PodRef;
use crate::engine::labels::{Labels, Match};
use crate::engine::policy::{Item, Peers, Port, Ports};
use crate::engine::ruleset::Direction;
use crate::engine::world::ContainerPort;

pub(super) const NAMES_WITHOUT_PORTS: &str = "names-without-ports";
pub(super) const NO_SUCH_PORT: &str = "no-such-port";

pub(super) fn advise(scene: &Scene<'_>, place: &Place<'_>, all: &mut Vec<Advice>) {
    for item in &place.rule.egress.allow {
        if item.ports == Ports::All && matches!(&item.peers, Peers::Names(names) if !names.is_empty()) {
            let text =
                "toFQDNs without toPorts opens every port and protocol of whatever these names resolve to; name the \
                        ports"
                    .to_owned();
            all.push(Advice { at: item.at.clone(), kind: NAMES_WITHOUT_PORTS, text });
        }
    }
    for direction in [Direction::Egress, Direction::Ingress] {
        let section = place.rule.section(direction);
        for item in section.allow.iter().chain(&section.deny) {
            named(scene, place, direction, item, all);
        }
    }
}

/// Named ports that none of those who listen has.
fn named(scene: &Scene<'_>, place: &Place<'_>, direction: Direction, item: &Item, all: &mut Vec<Advice>) {
    let Ports::These(entries) = &item.ports else { return };
    let listens = |(pod, labels): &&(&PodRef, Labels)| match (direction, &item.peers) {
        (Direction::Ingress, _) => is_subject(place.rule, pod, labels),
        (Direction::Egress, Peers::Endpoints(selectors)) => {
            selectors.iter().any(|selector| selector.matches(labels) != Match::No)
        }
        (Direction::Egress, _) => true,
    };
    let listeners: Vec<_> =
        scene.pods.iter().filter(listens).filter_map(|(pod, _)| scene.world.pods.get(*pod)).collect();
    if listeners.is_empty() {
        return; // nobody to ask; that it selects nobody is told elsewhere
    }
    for entry in entries {
        // ANY is written out as three protocols; one of them will do.
        let has = |name: &str, own: &ContainerPort| {
            let mut written = entry.ports.iter();
            own.name == name && written.any(|(protocol, port)| *protocol == own.protocol && is_named(port, name))
        };
        let names: BTreeSet<&str> = entry.ports.iter().filter_map(|(_, port)| name_of(port)).collect();
        for name in names {
            if !listeners.iter().any(|pod| pod.ports.iter().any(|own| has(name, own))) {
                let text =
                    format!("no container of the pods that listen has a port named {name:?}, so nothing is meant");
                all.push(Advice { at: entry.at.clone(), kind: NO_SUCH_PORT, text });
            }
        }
    }
}

fn name_of(port: &Port) -> Option<&str> {
    match port {
        Port::Named(name) => Some(name),
        Port::Block(_) => None,
    }
}

fn is_named(port: &Port, name: &str) -> bool {
    name_of(port) == Some(name)
}
