//! What the rules say to a conversation.

use std::net::IpAddr;

use namegate::engine::bits::Bits;
use namegate::engine::ruleset::{Direction, PeerId, Protocol, RuleSet, ServiceVerdict};
use namegate::kernel::abi::flag;
use namegate::observe::Reason;

use super::super::reading::query_of;
use super::Run;

/// The policy's word on a conversation with `remote`, opened in that direction, at the responder's `port`.
/// `established`: it has been open for a while, and may have outlived its grant's time.
pub fn word_of(run: &Run<'_>, protocol: u8, remote: IpAddr, opened: Direction, port: u16, established: bool) -> Reason {
    let rules = &run.world.rules[run.endpoint.policy as usize];
    let outward = opened == Direction::Egress;
    let denies = run.endpoint.is(if outward { flag::DENY_EGRESS } else { flag::DENY_INGRESS });
    // A type of ICMP that asks nothing is open only to a rule that names it.
    let kind = (port >> 8) as u8;
    let unasked = matches!(protocol, 1 | 58) && query_of(protocol, kind) != Some(kind);

    let slots = run.world.grants.get(&(run.endpoint.id, remote)).map_or(&[][..], Vec::as_slice);
    let used = slots.iter().filter(|(_, until)| outward && *until > 0);
    let (live, stale): (Vec<_>, Vec<_>) = used.partition(|(_, until)| established || run.now < *until);
    let granted = live.iter().fold(Bits::NONE, |bits, (more, _)| bits | *more);

    let place = run.world.places.get(&remote).copied();
    if place == Some(PeerId::STEERING) {
        return Reason::SteeringAddress;
    }
    if place == Some(PeerId::SERVICE) && outward {
        let mut services = rules.services.iter();
        let row = services.find(|row| row.address == remote && row.port == port && row.protocol.number() == protocol);
        return match row.map(|row| row.verdict) {
            Some(ServiceVerdict::Allow) => Reason::Service,
            Some(ServiceVerdict::Deny) => Reason::PolicyDeny,
            None if denies || unasked => Reason::NoGrant,
            None => Reason::DefaultAllow,
        };
    }
    let by_place = match place {
        Some(peer) => rules.peers.iter().find(|row| row.0 == peer).map_or(Bits::NONE, |row| row.1),
        None => {
            let covering = rules.cidrs.iter().filter(|(net, _)| net.contains(&remote));
            covering.max_by_key(|(net, _)| net.prefix_len()).map_or(Bits::NONE, |(_, bits)| *bits)
        }
    };
    if let Some(reason) = by_rows(rules, protocol, opened, port, unasked, (granted, by_place, place.is_some())) {
        return reason;
    }
    let host = [Some(PeerId::HOST), Some(PeerId::HOST_APISERVER)].contains(&place);
    match () {
        () if unasked => Reason::NoGrant,
        () if !outward && host => Reason::Host,
        () if !denies => Reason::DefaultAllow,
        () if !stale.is_empty() => Reason::Expired,
        () => Reason::NoGrant,
    }
}

/// The narrowest row that names the port, else the one of every protocol.
fn by_rows(
    rules: &RuleSet,
    protocol: u8,
    opened: Direction,
    port: u16,
    unasked: bool,
    (granted, by_place, is_peer): (Bits, Bits, bool),
) -> Option<Reason> {
    let matched = Bits::ANY_PEER | granted | by_place;
    let rows = || rules.ports.iter().filter(|row| row.direction == opened);
    let named = rows().filter(|row| row.protocol.number() == protocol && row.ports.holds(port));
    let named = named.max_by_key(|row| row.ports.length());
    let row = named.or_else(|| rows().find(|row| row.protocol == Protocol::Any))?;
    if matched.meets(row.deny) {
        return Some(Reason::PolicyDeny);
    }
    if !matched.meets(row.allow) || (unasked && named.is_none()) {
        return None;
    }
    Some(match () {
        () if granted.meets(row.allow) => Reason::Granted,
        () if is_peer && by_place.meets(row.allow) => Reason::Peer,
        () => Reason::Cidr,
    })
}
