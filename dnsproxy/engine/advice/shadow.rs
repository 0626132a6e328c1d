//! Rules that are pointless: another one denies all that they allow, or nothing shuts what they open.

use ipnet::IpNet;

use super::{Advice, Place, Scene, blocks, denying, is_wider};
use crate::engine::labels::Selector;
use crate::engine::policy::{Block, BlockOf, Entity, Item, Peers, Port, Ports, Rule};
use crate::engine::port::{PortBlock, covers};
use crate::engine::ruleset::Direction;
use crate::engine::world::Enforcement;

pub(super) const SHADOWED: &str = "shadowed-by-deny";
pub(super) const WITHOUT_EFFECT: &str = "without-effect";

pub(super) fn advise(scene: &Scene<'_>, place: &Place<'_>, all: &mut Vec<Advice>) {
    let together = scene.together(place);
    for direction in [Direction::Egress, Direction::Ingress] {
        let section = place.rule.section(direction);
        for item in section.allow.iter().filter(|item| means_someone(item)) {
            let denial = |rules: &Vec<&Rule>| denying(rules, direction).find(|deny| shadows(deny, item)).cloned();
            let denials: Vec<Option<Item>> = together.iter().map(denial).collect();
            if let (true, Some(Some(deny))) = (denials.iter().all(Option::is_some), denials.first()) {
                let text = format!(
                    "it never allows anything: {} at {} denies all of it, and deny beats allow",
                    deny.at.0.path, deny.at.0.place
                );
                all.push(Advice { at: item.at.clone(), kind: SHADOWED, text });
            }
        }
        let shut = |rules: &Vec<&Rule>| rules.iter().any(|rule| rule.section(direction).default_deny);
        let always = scene.world.enforcement == Enforcement::Always;
        if !always && section.allow.iter().any(means_someone) && !together.iter().any(shut) {
            let word = if direction == Direction::Egress { "egress" } else { "ingress" };
            let text = format!("its {word} allows what nothing shuts: enableDefaultDeny is false wherever it holds");
            all.push(Advice { at: place.rule.at.clone(), kind: WITHOUT_EFFECT, text });
        }
    }
}

fn means_someone(item: &Item) -> bool {
    let someone = match &item.peers {
        Peers::Any => true,
        Peers::Endpoints(list) | Peers::Nodes(list) => !list.is_empty(),
        Peers::Networks(list) => !list.is_empty(),
        Peers::Entities(list) => !list.is_empty(),
        Peers::Services(list) => !list.is_empty(),
        Peers::Names(list) => !list.is_empty(),
    };
    someone && item.ports != Ports::These(Vec::new())
}

/// Whether a denial covers all that an item allows.
fn shadows(deny: &Item, allow: &Item) -> bool {
    peers_cover(&deny.peers, &allow.peers) && ports_cover(&deny.ports, &allow.ports)
}

fn ports_cover(deny: &Ports, allow: &Ports) -> bool {
    let Ports::These(denied) = deny else { return true };
    // A denial at a Service's addresses only is narrower than its ports.
    let denied = denied.iter().filter(|entry| entry.service.is_none());
    let wide = blocks(&Ports::These(denied.cloned().collect()));
    let Ports::These(entries) = allow else {
        return blocks(allow).iter().all(|narrow| wide.iter().any(|wide| covers(*wide, *narrow)));
    };
    let mut ports = entries.iter().flat_map(|entry| &entry.ports).peekable();
    ports.peek().is_some()
        && ports.all(|(protocol, port)| match port {
            Port::Block(block) => wide.iter().any(|wide| covers(*wide, (*protocol, *block))),
            // Whatever number it has, all numbers are denied.
            Port::Named(_) => wide.iter().any(|wide| covers(*wide, (*protocol, PortBlock::ANY))),
        })
}

fn peers_cover(deny: &Peers, allow: &Peers) -> bool {
    let entities = match deny {
        Peers::Any => return true,
        Peers::Entities(entities) if entities.contains(&Entity::All) => return true,
        Peers::Entities(entities) => Some(entities),
        _ => None,
    };
    let denies = |entity: Entity| entities.is_some_and(|entities| entities.contains(&entity));
    let cluster = denies(Entity::Cluster) || denies(Entity::ClusterMesh);
    match allow {
        Peers::Any => false,
        Peers::Names(_) => denies(Entity::World) || everything_outside(deny),
        Peers::Networks(blocks) => {
            denies(Entity::World) || blocks.iter().all(|block| is_within(block, deny)) || everything_outside(deny)
        }
        Peers::Nodes(_) => cluster,
        Peers::Services(_) => cluster && denies(Entity::World),
        Peers::Entities(allowed) => allowed.iter().all(|entity| match entity {
            Entity::World => denies(Entity::World) || everything_outside(deny),
            // The API server may be outside.
            Entity::Host | Entity::ClusterMesh | Entity::Cluster => cluster || denies(*entity),
            other => denies(*other),
        }),
        Peers::Endpoints(selectors) => {
            if cluster && !selectors.iter().any(Selector::names_reserved) {
                return true;
            }
            let Peers::Endpoints(denied) = deny else { return false };
            selectors.iter().all(|narrow| denied.iter().any(|wide| is_wider(wide, narrow)))
        }
    }
}

/// Whether one block of a denial holds all of `block`.
fn is_within(block: &Block, deny: &Peers) -> bool {
    let (Peers::Networks(denied), BlockOf::Here(network)) = (deny, &block.of) else { return false };
    denied.iter().any(|wide| matches!(&wide.of, BlockOf::Here(wide_network) if wide_network.contains(network) && wide.except.is_empty()))
}

fn everything_outside(deny: &Peers) -> bool {
    let Peers::Networks(blocks) = deny else { return false };
    let whole = |all: IpNet| {
        blocks
            .iter()
            .any(|block| matches!(&block.of, BlockOf::Here(network) if *network == all && block.except.is_empty()))
    };
    whole(ipnet::Ipv4Net::default().into()) && whole(ipnet::Ipv6Net::default().into())
}
