//! What several denials cover together, and none of them alone: halves of a block, ports of a range.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::shadow::{Denial, Denials, peers_cover};
use crate::engine::policy::{Block, BlockOf, Entity, Item, Peers, Port, Ports};
use crate::engine::port::{PortBlock, covers};
use crate::engine::ruleset::Protocol;

/// Peers that are denied as one, or that can be halved.
enum Who {
    Block(IpNet),
    Others(Peers),
}

/// How much of something a denial covers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Much {
    None,
    Some,
    All,
}

/// The denials that cover all of an item together, in their order; `None` if they leave something.
pub(super) fn by_all<'s, 'w>(denials: &[&'s Denials<'w>], allow: &Item) -> Option<Vec<&'s Denial<'w>>> {
    if denials.iter().all(|denials| denials.is_empty()) {
        return None;
    }
    let ports = ports_of(&allow.ports);
    let parts = parts_of(&allow.peers);
    if ports.is_empty() || parts.is_empty() {
        return None;
    }
    let mut used = BTreeMap::new();
    for who in &parts {
        let near: Vec<&Denial<'w>> = match who {
            Who::Block(network) => around(denials, *network),
            Who::Others(peers) => denials.iter().flat_map(|denials| denials.near(peers)).collect(),
        };
        if near.is_empty() || !ports.iter().all(|ports| is_covered(who, *ports, &near, &mut used)) {
            return None;
        }
    }
    Some(used.into_values().collect())
}

/// The denials that mean some of a block. Those of smaller blocks only if these could be enough of them.
fn around<'s, 'w>(denials: &[&'s Denials<'w>], network: IpNet) -> Vec<&'s Denial<'w>> {
    let volume: f64 = denials.iter().map(|denials| denials.volume(&network)).sum();
    let inside = volume >= share_of(&network);
    let near = |denials: &&'s Denials<'w>| {
        let block = Peers::Networks(vec![network.into()]);
        let within = if inside { denials.inside(network) } else { Vec::new() };
        denials.near(&block).into_iter().chain(within).collect::<Vec<_>>()
    };
    denials.iter().flat_map(near).collect()
}

/// Which part of all addresses a block is.
pub(super) fn share_of(network: &IpNet) -> f64 {
    0.5_f64.powi(i32::from(network.prefix_len()))
}

fn ports_of(ports: &Ports) -> Vec<(Protocol, PortBlock)> {
    let Ports::These(entries) = ports else { return vec![(Protocol::Any, PortBlock::ANY)] };
    let all = entries.iter().flat_map(|entry| &entry.ports).map(|(protocol, port)| match port {
        Port::Block(block) => (*protocol, *block),
        // Whatever number it has, all numbers must be denied.
        Port::Named(_) => (*protocol, PortBlock::ANY),
    });
    all.collect()
}

fn parts_of(peers: &Peers) -> Vec<Who> {
    let everywhere = || {
        let all: [IpNet; 2] = [ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()];
        all.map(Who::Block)
    };
    match peers {
        Peers::Names(_) => everywhere().into(),
        Peers::Networks(blocks) => {
            let part = |block: &Block| match &block.of {
                BlockOf::Here(network) => Who::Block(network.trunc()),
                BlockOf::Group(_) | BlockOf::Groups(_) => Who::Others(Peers::Networks(vec![block.clone()])),
            };
            blocks.iter().map(part).collect()
        }
        Peers::Entities(entities) => {
            let part = |entity: &Entity| match entity {
                Entity::World => everywhere().into(),
                other => vec![Who::Others(Peers::Entities([*other].into()))],
            };
            entities.iter().flat_map(part).collect()
        }
        Peers::Endpoints(selectors) => {
            selectors.iter().map(|selector| Who::Others(Peers::Endpoints(vec![selector.clone()]))).collect()
        }
        Peers::Any | Peers::Nodes(_) | Peers::Services(_) => vec![Who::Others(peers.clone())],
    }
}

/// Whether all of `who` is denied on all of `ports`: halved, until a denial covers a half or none meets it.
fn is_covered<'s, 'w>(
    who: &Who,
    ports: (Protocol, PortBlock),
    near: &[&'s Denial<'w>],
    used: &mut BTreeMap<(usize, usize), &'s Denial<'w>>,
) -> bool {
    let mut rest = Vec::new();
    let mut halve_block = false;
    for denial in near {
        match (of_peers(denial, who), of_ports(denial, ports)) {
            (Much::All, Much::All) => {
                used.insert(denial.order, denial);
                return true;
            }
            (Much::None, _) | (_, Much::None) => {}
            (peers, _) => {
                halve_block |= peers == Much::Some;
                rest.push(*denial);
            }
        }
    }
    if rest.is_empty() {
        return false;
    }
    if let (Who::Block(network), true) = (who, halve_block) {
        let Ok(mut halves) = network.subnets(network.prefix_len() + 1) else { return false };
        return halves.all(|half| is_covered(&Who::Block(half), ports, &rest, used));
    }
    let (protocol, block) = ports;
    block.halves().is_some_and(|halves| halves.into_iter().all(|half| is_covered(who, (protocol, half), &rest, used)))
}

fn of_peers(denial: &Denial<'_>, who: &Who) -> Much {
    let all = |all: bool| if all { Much::All } else { Much::None };
    match (&denial.item.peers, who) {
        (Peers::Networks(blocks), Who::Block(network)) => {
            let whole = blocks.iter().filter(|block| block.except.is_empty()).filter_map(|block| match &block.of {
                BlockOf::Here(denied) => Some(denied),
                BlockOf::Group(_) | BlockOf::Groups(_) => None,
            });
            let much = whole.map(|denied| match (denied.contains(network), network.contains(denied)) {
                (true, _) => Much::All,
                (false, true) => Much::Some,
                (false, false) => Much::None,
            });
            much.fold(Much::None, |most, one| match (most, one) {
                (Much::All, _) | (_, Much::All) => Much::All,
                (Much::Some, _) | (_, Much::Some) => Much::Some,
                (Much::None, Much::None) => Much::None,
            })
        }
        (Peers::Any, Who::Block(_)) => Much::All,
        (Peers::Entities(denied), Who::Block(_)) => {
            all(denied.contains(&Entity::World) || denied.contains(&Entity::All))
        }
        (_, Who::Block(_)) => Much::None,
        (denied, Who::Others(peers)) => all(peers_cover(denied, peers)),
    }
}

fn of_ports(denial: &Denial<'_>, ports: (Protocol, PortBlock)) -> Much {
    let Some(denied) = &denial.ports else { return Much::All };
    if denied.iter().any(|wide| covers(*wide, ports)) {
        return Much::All;
    }
    let inside = denied.iter().any(|(protocol, block)| *protocol == ports.0 && ports.1.covers(*block));
    if inside { Much::Some } else { Much::None }
}
