//! The policies' meaning, said as plainly as possible: no groups, no bits, no rows. What the compiler makes is held
//! against this.

use std::net::IpAddr;

use super::endpoint::PodRef;
use super::labels::{Labels, Match};
use super::name::Name;
use super::pattern::{Bare, PatternTrie};
use super::policy::{BlockOf, Entity, Item, Peers, Rule};
use super::port::holds;
use super::ruleset::{Direction, PacketVerdict, Protocol};
use super::world::{Holder, World};

/// One packet that belongs to no flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attempt<'a> {
    /// Who opens it.
    pub direction: Direction,
    /// The other side.
    pub address: IpAddr,
    /// TCP, UDP, SCTP, ICMP.
    pub protocol: Protocol,
    /// The responder's port.
    pub port: u16,
    /// The names for which the workload was granted this address, still live.
    pub granted: &'a [Name],
}

/// What the policies say, asked one after the other.
///
/// `None`: the world has no such pod.
pub fn verdict(world: &World, subject: &PodRef, attempt: Attempt<'_>) -> Option<PacketVerdict> {
    world.pods.get(subject)?;
    let labels = world.labels(&Holder::Pod(subject.clone()));
    let mut rules: Vec<(&Rule, bool)> = Vec::new();
    for (policies, refused) in [(&world.policies, false), (&world.refused, true)] {
        for rule in policies.iter().flat_map(|policy| &policy.rules) {
            let here = rule.subject.namespace.as_ref().is_none_or(|namespace| *namespace == subject.namespace);
            match rule.subject.selector.matches(&labels) {
                Match::Yes if here => rules.push((rule, !refused)),
                Match::Maybe if here => rules.push((rule, false)),
                _ => {}
            }
        }
    }
    Some(ask(world, &rules, attempt))
}

fn ask(world: &World, rules: &[(&Rule, bool)], attempt: Attempt<'_>) -> PacketVerdict {
    let holders: Vec<Holder> = world.holders().remove(&attempt.address).into_iter().flatten().collect();
    let service = world.services.values().any(|service| service.addresses.contains(&attempt.address));
    let section = |rule: &Rule| rule.section(attempt.direction).clone();
    let default = match rules.iter().any(|(rule, _)| section(rule).default_deny) {
        true => PacketVerdict::NotAllowed,
        false => PacketVerdict::DefaultAllowed,
    };
    let service = service && holders.is_empty();
    if service && attempt.direction == Direction::Egress {
        return ask_service(world, rules, attempt).unwrap_or(default);
    }
    let mut allowed = false;
    for (rule, allows) in rules {
        for item in &section(rule).deny {
            if on_port(item, attempt) && with(item, world, &holders, service, attempt, true) {
                return PacketVerdict::Denied;
            }
        }
        for item in &section(rule).allow {
            allowed |= *allows && on_port(item, attempt) && with(item, world, &holders, service, attempt, false);
        }
    }
    match allowed {
        true => PacketVerdict::Allowed,
        false if attempt.direction == Direction::Ingress && holders == [Holder::Host] => PacketVerdict::Host,
        false => default,
    }
}

/// A Service's address: asked of every ready backend behind that port; `None` where that says nothing.
fn ask_service(world: &World, rules: &[(&Rule, bool)], attempt: Attempt<'_>) -> Option<PacketVerdict> {
    let mut verdicts = Vec::new();
    let mut sure = true;
    for ((namespace, name), service) in &world.services {
        let ports = service.ports.iter().filter(|p| p.port == attempt.port && p.protocol == attempt.protocol);
        for port in ports.filter(|_| service.addresses.contains(&attempt.address)) {
            sure &= service.readable;
            for ((slice_namespace, _), slice) in &world.endpoint_slices {
                let ours = slice_namespace == namespace && slice.service.as_ref() == Some(name);
                let unread = !slice.readable && slice.service.is_none();
                if unread && (slice_namespace == namespace || slice_namespace.is_empty()) || ours && !slice.readable {
                    sure = false;
                }
                for target in slice.ports.iter().filter(|t| ours && t.name == port.name && t.protocol == port.protocol)
                {
                    sure &= target.port.is_some();
                    for (addresses, ready) in &slice.endpoints {
                        for address in addresses.iter().filter(|a| a.is_ipv4() == attempt.address.is_ipv4()) {
                            if let (true, Some(port)) = (ready, target.port) {
                                let backend = Attempt { address: *address, port, granted: &[], ..attempt };
                                verdicts.push(ask_backend(world, rules, backend));
                            }
                        }
                    }
                }
            }
        }
    }
    if verdicts.contains(&PacketVerdict::Denied) {
        return Some(PacketVerdict::Denied);
    }
    let all = sure && !verdicts.is_empty() && verdicts.iter().all(|verdict| *verdict == PacketVerdict::Allowed);
    all.then_some(PacketVerdict::Allowed)
}

/// A backend that is itself a Service's address stands for nothing further.
fn ask_backend(world: &World, rules: &[(&Rule, bool)], attempt: Attempt<'_>) -> PacketVerdict {
    let service = world.services.values().any(|service| service.addresses.contains(&attempt.address));
    if service && !world.holders().contains_key(&attempt.address) {
        return PacketVerdict::NotAllowed;
    }
    ask(world, rules, attempt)
}

fn on_port(item: &Item, attempt: Attempt<'_>) -> bool {
    item.ports.plain().into_iter().any(|wide| holds(wide, attempt.protocol, attempt.port))
}

fn with(item: &Item, world: &World, holders: &[Holder], service: bool, attempt: Attempt<'_>, deny: bool) -> bool {
    let one = |holder: &Holder| {
        let labels = world.labels(holder);
        match &item.peers {
            Peers::Endpoints(selectors) if deny => selectors.iter().any(|s| s.matches(&labels) >= Match::Maybe),
            Peers::Endpoints(selectors) => selectors.iter().any(|selector| {
                selector.matches(&labels) == Match::Yes
                    && (matches!(holder, Holder::Pod(_)) || selector.names_reserved())
            }),
            Peers::Entities(entities) => {
                entities.contains(&Entity::Cluster) || (entities.contains(&Entity::Host) && *holder == Holder::Host)
            }
            Peers::Any | Peers::Nodes(_) | Peers::Services(_) | Peers::Networks(_) | Peers::Names(_) => false,
        }
    };
    let outside = || match &item.peers {
        Peers::Networks(blocks) => blocks.iter().any(|block| match &block.of {
            BlockOf::Here(network) => network.contains(&attempt.address),
            BlockOf::Group(_) | BlockOf::Groups(_) => false,
        }),
        Peers::Entities(entities) => entities.contains(&Entity::World),
        Peers::Endpoints(selectors) => {
            let world = Labels::reserved(&["world"]);
            deny && selectors.iter().any(|selector| selector.matches(&world) == Match::Yes)
        }
        Peers::Any | Peers::Nodes(_) | Peers::Services(_) | Peers::Names(_) => false,
    };
    match &item.peers {
        Peers::Any => true,
        Peers::Entities(entities) if entities.contains(&Entity::All) => true,
        Peers::Names(names) => names.iter().any(|name| {
            let mut trie = PatternTrie::new(Bare::Valid);
            trie.insert(name.pattern.clone(), (), None);
            attempt.granted.iter().any(|granted| trie.matches(granted).next().is_some())
        }),
        // A Service's address is neither a pod's nor outside.
        _ if holders.is_empty() => !service && outside(),
        _ if deny => holders.iter().any(one),
        _ => holders.iter().all(one),
    }
}
