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

/// All Service addresses and ports of the world. An address that two Services share stands for the backends of both.
pub(super) fn fronts(world: &World) -> Vec<Front> {
    let mut fronts: BTreeMap<(IpAddr, Protocol, u16), Front> = BTreeMap::new();
    let slices = by_service(world);
    // A slice whose Service can't be read may belong to any Service of its namespace, or of all if that is unreadable.
    let unread: BTreeSet<&str> = world
        .endpoint_slices
        .iter()
        .filter(|(_, slice)| !slice.readable && slice.service.is_none())
        .map(|((namespace, _), _)| namespace.as_str())
        .collect();
    for ((namespace, name), service) in &world.services {
        let slices = slices.get(&(namespace.as_str(), name.as_str())).map_or(&[][..], Vec::as_slice);
        let complete = service.readable
            && !unread.contains(namespace.as_str())
            && !unread.contains("")
            && slices.iter().all(|slice| slice.readable);
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
    fronts
        .iter()
        .filter_map(|front| {
            let verdicts = front.backends.iter().map(|(backend, target)| {
                rules.evaluate(Direction::Egress, *backend, front.protocol, *target, Bits::NONE)
            });
            let verdict = if verdicts.clone().any(|verdict| verdict == PacketVerdict::Denied) {
                ServiceVerdict::Deny
            } else if front.complete
                && !front.backends.is_empty()
                && verdicts.clone().all(|verdict| verdict == PacketVerdict::Allowed)
            {
                ServiceVerdict::Allow
            } else {
                return None;
            };
            Some(ServiceRow { address: front.address, protocol: front.protocol, port: front.port, verdict })
        })
        .collect()
}

fn by_service(world: &World) -> BTreeMap<(&str, &str), Vec<&EndpointSlice>> {
    let mut slices: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for ((namespace, _), slice) in &world.endpoint_slices {
        if let Some(service) = &slice.service {
            slices.entry((namespace, service)).or_default().push(slice);
        }
    }
    slices
}
