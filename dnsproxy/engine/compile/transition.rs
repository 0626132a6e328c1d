//! The rows between two rule sets, for the moments in which grants carry the bits of both.
//!
//! While bits of the new rule set are already in grants, or those of the old one still are, an address may match a group
//! that it has left, or has not joined yet. A group opens the same ports in both rule sets, so what it lets through is
//! open in one of them: unless a deny shuts it there, and the rows in force have no such deny. So the denies of both hold
//! from before bits are added until after they are cleared.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::engine::bits::Bits;
use crate::engine::port::{PortBlock, is_unasked};
use crate::engine::ruleset::{Direction, PortRow, Protocol, RuleSet, ServiceRow, ServiceVerdict};

/// What `base` allows less what `base` or `other` denies; `None` if `other` denies nothing, so that `base` itself will do.
pub fn transition(base: &RuleSet, other: &RuleSet) -> Option<RuleSet> {
    let denied = |row: &PortRow| row.direction == Direction::Egress && !row.deny.is_empty();
    if !other.ports.iter().any(denied) || !base.selected {
        return None;
    }
    let deny_bits = other.ports.iter().fold(Bits::NONE, |bits, row| bits | row.deny);
    let keys: BTreeSet<(Direction, Protocol, PortBlock)> =
        other.ports.iter().chain(&base.ports).map(|row| (row.direction, row.protocol, row.ports)).collect();
    let ports = keys.into_iter().map(|(direction, protocol, ports)| {
        let (was, is) = (ports_of(other, direction, protocol, ports), ports_of(base, direction, protocol, ports));
        PortRow { direction, protocol, ports, allow: is.0, deny: is.1 | was.1 }
    });
    let nets: BTreeSet<IpNet> = other.cidrs.iter().chain(&base.cidrs).map(|row| row.0).collect();
    let cidrs = nets.into_iter().map(|net| (net, base.longest(net) | other.longest(net) & deny_bits));
    let ids: BTreeSet<_> = other.peers.iter().chain(&base.peers).map(|row| row.0).collect();
    let bits_of = |set: &RuleSet, id| set.bits_of(id);
    let peers = ids.into_iter().map(|id| (id, bits_of(base, id) | bits_of(other, id) & deny_bits));
    Some(RuleSet {
        ports: ports.collect(),
        cidrs: cidrs.collect(), // empty ones too: exceptions

        peers: peers.filter(|row| !row.1.is_empty()).collect(),
        services: services(other, base),
        ..base.clone()
    })
}

/// What holds for all of these ports: the narrowest row that covers them. A row without ports opens no ICMP that asks
/// nothing.
fn ports_of(set: &RuleSet, direction: Direction, protocol: Protocol, ports: PortBlock) -> (Bits, Bits) {
    let Some(row) = set.port_row(direction, protocol, ports) else { return (Bits::NONE, Bits::NONE) };
    let open = row.protocol == protocol || !is_unasked(protocol, ports);
    (if open { row.allow } else { Bits::NONE }, row.deny)
}

fn services(other: &RuleSet, base: &RuleSet) -> Vec<ServiceRow> {
    let key = |row: &ServiceRow| -> (IpAddr, Protocol, u16) { (row.address, row.protocol, row.port) };
    let shut: BTreeSet<_> = other.services.iter().filter(|row| row.verdict == ServiceVerdict::Deny).map(key).collect();
    let open = base.services.iter().filter(|row| !shut.contains(&key(row))).copied();
    let denied = shut.iter().map(|(address, protocol, port)| ServiceRow {
        address: *address,
        protocol: *protocol,
        port: *port,
        verdict: ServiceVerdict::Deny,
    });
    let mut rows: Vec<ServiceRow> = open.chain(denied).collect();
    rows.sort_unstable();
    rows
}
