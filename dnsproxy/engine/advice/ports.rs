//! Ports that are missing: from a rule for names, or from the containers that should have them.

use std::collections::BTreeSet;

use super::index::Carriers;
use super::together::Place;
use super::{Advice, Scene};
use crate::engine::endpoint::PodRef;
use crate::engine::policy::{Item, Peers, Port, Ports};
use crate::engine::ruleset::{Direction, Protocol};
use crate::engine::world::World;

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

/// The named ports that some pod listens on.
pub(super) struct Named<'w>(BTreeSet<(Protocol, &'w str)>);

impl<'w> Named<'w> {
    pub(super) fn new(world: &'w World, pods: &Carriers<&'w PodRef>) -> Named<'w> {
        Named(pods.all().iter().flat_map(|(pod, _)| of_pod(world, pod)).collect())
    }
}

fn of_pod<'w>(world: &'w World, pod: &PodRef) -> impl Iterator<Item = (Protocol, &'w str)> {
    world.pods.get(pod).into_iter().flat_map(|pod| &pod.ports).map(|own| (own.protocol, own.name.as_str()))
}

/// Named ports that none of those who listen has.
fn named(scene: &Scene<'_>, place: &Place<'_>, direction: Direction, item: &Item, all: &mut Vec<Advice>) {
    let Ports::These(entries) = &item.ports else { return };
    let entries = entries.iter().map(|entry| {
        let named = entry.ports.iter().filter_map(|(protocol, port)| match port {
            Port::Named(name) => Some((*protocol, name.as_str())),
            Port::Block(_) => None,
        });
        (&entry.at, named.collect::<BTreeSet<_>>())
    });
    let subject = &place.rule.subject;
    for (at, ports) in entries.filter(|(_, ports)| !ports.is_empty()) {
        // ANY is written out as three protocols; one of them will do.
        let mut missing: BTreeSet<&str> = ports.iter().map(|(_, name)| *name).collect();
        let mut anyone = false;
        let mut see = |has: &mut dyn Iterator<Item = (Protocol, &str)>| {
            anyone = true;
            for (_, name) in has.filter(|port| ports.contains(port)) {
                missing.remove(name);
            }
            missing.is_empty()
        };
        match (direction, &item.peers) {
            (Direction::Egress, Peers::Endpoints(selectors)) => {
                let mut listeners = selectors.iter().flat_map(|selector| scene.pods.selected(selector));
                listeners.any(|(pod, _)| see(&mut of_pod(scene.world, pod)));
            }
            (Direction::Egress, _) if scene.pods.all().is_empty() => {}
            (Direction::Egress, _) => {
                see(&mut scene.ports.0.iter().copied());
            }
            (Direction::Ingress, _) => {
                let here =
                    |pod: &PodRef| subject.namespace.as_ref().is_none_or(|namespace| *namespace == pod.namespace);
                let mut listeners = scene.pods.selected(&subject.selector).filter(|(pod, _)| here(pod));
                listeners.any(|(pod, _)| see(&mut of_pod(scene.world, pod)));
            }
        }
        // If nobody listens, that it selects nobody is told elsewhere.
        for name in missing.iter().filter(|_| anyone) {
            let text = format!("no container of the pods that listen has a port named {name:?}, so nothing is meant");
            all.push(Advice { at: at.clone(), kind: NO_SUCH_PORT, text });
        }
    }
}
