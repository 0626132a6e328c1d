//! What a Service's address stands for: its ready backends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::engine::bits::Bits;
use crate::engine::ruleset::{Direction, PacketVerdict, Protocol, RuleSet, ServiceRow, ServiceVerdict};
use crate::engine::world::{EndpointSlice, World};

/// A Service's address and port, with everything behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Front {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
    /// Ready ones: address and target port.
    pub backends: BTreeSet<(IpAddr, u16)>,
    /// Whether all backends are known; if not, nothing opens it.
    pub complete: bool,
}

/// The addresses in a Service's slices.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Backing {
    /// Whether the Service and all of its slices could be read.
    pub complete: bool,
    /// Of its backends that are ready.
    pub ready: BTreeSet<IpAddr>,
    /// Of all of them.
    pub all: BTreeSet<IpAddr>,
}

/// What is behind every Service there is, by namespace and name.
pub(super) fn backing(world: &World) -> BTreeMap<(String, String), Backing> {
    let slices = by_service(world);
    // A slice whose Service can't be read may belong to any Service of its namespace, or of all if that is unreadable.
    let unread: BTreeSet<&str> = world
        .endpoint_slices
        .iter()
        .filter(|(_, slice)| !slice.readable && slice.service.is_none())
        .map(|((namespace, _), _)| namespace.as_str())
        .collect();
    let mut found = BTreeMap::new();
    for ((namespace, name), service) in &world.services {
        let slices = slices.get(&(namespace.as_str(), name.as_str())).map_or(&[][..], Vec::as_slice);
        let mut backing = Backing {
            complete: service.readable
                && !unread.contains(namespace.as_str())
                && !unread.contains("")
                && slices.iter().all(|slice| slice.readable),
            ..Backing::default()
        };
        for (addresses, ready) in slices.iter().flat_map(|slice| &slice.endpoints) {
            backing.all.extend(addresses);
            backing.ready.extend(addresses.iter().filter(|_| *ready));
        }
        found.insert((namespace.clone(), name.clone()), backing);
    }
    found
}

/// All Service addresses and ports of the world. An address that two Services share stands for the backends of both.
pub(super) fn fronts(world: &World, backing: &BTreeMap<(String, String), Backing>) -> Vec<Front> {
    let mut fronts: BTreeMap<(IpAddr, Protocol, u16), Front> = BTreeMap::new();
    let slices = by_service(world);
    for (key, service) in &world.services {
        let slices = slices.get(&(key.0.as_str(), key.1.as_str())).map_or(&[][..], Vec::as_slice);
        let complete = backing.get(key).is_some_and(|backing| backing.complete);
        for address in &service.addresses {
            for port in &service.ports {
                let key = (*address, port.protocol, port.port);
                let front = fronts.entry(key).or_insert_with(|| Front {
                    address: *address,
                    protocol: port.protocol,
                    port: port.port,
                    backends: BTreeSet::new(),
                    complete: true,
                });
                front.complete &= complete;
                for slice in slices {
                    for target in slice.ports.iter().filter(|t| t.name == port.name && t.protocol == port.protocol) {
                        let Some(target) = target.port else {
                            front.complete = false;
                            continue;
                        };
                        let ready = slice.endpoints.iter().filter(|(_, ready)| *ready);
                        let addresses = ready.flat_map(|(addresses, _)| addresses);
                        let same_family = addresses.filter(|backend| backend.is_ipv4() == address.is_ipv4());
                        front.backends.extend(same_family.map(|backend| (*backend, target)));
                    }
                }
            }
        }
    }
    fronts.into_values().collect()
}

/// The rows of a rule set, sorted: nothing where no backend is ready or one is neither allowed nor denied.
pub(super) fn rows(rules: &RuleSet, fronts: &[Front]) -> Vec<ServiceRow> {
    let verdict_of = |front: &Front| {
        let (mut denied, mut all) = (false, front.complete && !front.backends.is_empty());
        for (backend, target) in &front.backends {
            let verdict = rules.evaluate(Direction::Egress, *backend, front.protocol, *target, Bits::NONE);
            denied |= verdict == PacketVerdict::Denied;
            all &= verdict == PacketVerdict::Allowed;
        }
        match (denied, all) {
            (true, _) => Some(ServiceVerdict::Deny),
            (false, true) => Some(ServiceVerdict::Allow),
            (false, false) => None,
        }
    };
    if rules.ports.iter().all(|row| row.direction != Direction::Egress) {
        return Vec::new();
    }
    let rows = fronts.iter().filter_map(|front| {
        let verdict = verdict_of(front)?;
        Some(ServiceRow { address: front.address, protocol: front.protocol, port: front.port, verdict })
    });
    rows.collect()
}

/// The slices of each Service, or what its Endpoints object says if it has none ([`World::slices_of`], for all at once).
fn by_service(world: &World) -> BTreeMap<(&str, &str), Vec<&EndpointSlice>> {
    let mut slices: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for ((namespace, _), slice) in &world.endpoint_slices {
        if let Some(service) = &slice.service {
            slices.entry((namespace, service)).or_default().push(slice);
        }
    }
    for ((namespace, name), endpoints) in &world.endpoints {
        slices.entry((namespace, name)).or_insert_with(|| endpoints.iter().collect());
    }
    slices
}
