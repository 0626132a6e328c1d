//! Rules that are pointless: another one denies all that they allow, or nothing shuts what they open.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;

use super::index::{Selectors, is_wider};
use super::together::{Place, Set, Together};
use super::{Advice, Scene, blocks, cover};
use crate::engine::labels::Selector;
use crate::engine::policy::{Block, BlockOf, Entity, Item, Peers, Port, Ports};
use crate::engine::port::{PortBlock, covers};
use crate::engine::ruleset::{Direction, Protocol};
use crate::engine::world::Enforcement;

pub(super) const SHADOWED: &str = "shadowed-by-deny";
pub(super) const WITHOUT_EFFECT: &str = "without-effect";

const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// What shuts, for each bundle; egress, then ingress.
pub(super) struct Shadows<'w> {
    denials: Vec<[Denials<'w>; 2]>,
    /// Whether a rule shuts the direction by default for some pod of the bundle.
    shut: Vec<[bool; 2]>,
}

impl<'w> Shadows<'w> {
    pub(super) fn new(together: &Together<'w>) -> Shadows<'w> {
        let bundles = 0..together.bundles.len();
        let shuts = |bundle: &usize| {
            DIRECTIONS.map(|direction| together.rules(*bundle).any(|(_, rule)| rule.section(direction).default_deny))
        };
        let join = |one: &[bool; 2], other: &[bool; 2]| [one[0] || other[0], one[1] || other[1]];
        let shut: Vec<[bool; 2]> = bundles.clone().map(|bundle| shuts(&bundle)).collect();
        let of_set = |set: &Set| set.bundles.iter().fold([false; 2], |all, bundle| join(&all, &shut[*bundle]));
        Shadows {
            denials: bundles.map(|bundle| DIRECTIONS.map(|way| Denials::new(together, bundle, way))).collect(),
            shut: together.over_sets(of_set, join),
        }
    }
}

pub(super) fn advise(scene: &Scene<'_>, place: &Place<'_>, all: &mut Vec<Advice>) {
    for (way, direction) in DIRECTIONS.into_iter().enumerate() {
        let section = place.rule.section(direction);
        for item in section.allow.iter().filter(|item| means_someone(item)) {
            if let Some((deny, others)) = always_denied(scene, place, way, item) {
                let together = match others {
                    0 => "denies all of it".to_owned(),
                    others => format!("and {others} more deny all of it together"),
                };
                let text = format!(
                    "it never allows anything: {} at {} {together}, and deny beats allow",
                    deny.at.0.path, deny.at.0.place
                );
                all.push(Advice { at: item.at.clone(), kind: SHADOWED, text });
            }
        }
        let shut = scene.world.enforcement == Enforcement::Always || scene.denials.shut[place.bundle][way];
        if !shut && section.allow.iter().any(means_someone) {
            let word = if direction == Direction::Egress { "egress" } else { "ingress" };
            let text = format!("its {word} allows what nothing shuts: enableDefaultDeny is false wherever it holds");
            all.push(Advice { at: place.rule.at.clone(), kind: WITHOUT_EFFECT, text });
        }
    }
}

/// Whether all that an item allows is denied wherever its rule holds.
pub(super) fn is_denied(scene: &Scene<'_>, place: &Place<'_>, direction: Direction, item: &Item) -> bool {
    let way = usize::from(direction == Direction::Ingress);
    always_denied(scene, place, way, item).is_some()
}

/// The denial that covers an item, if one does wherever its rule holds, or several do together: then the first of these, and
/// how many others.
fn always_denied<'s>(scene: &'s Scene<'_>, place: &Place<'_>, way: usize, item: &Item) -> Option<(&'s Item, usize)> {
    let together = &scene.together;
    let first = |bundles: &[usize]| {
        let found = bundles.iter().filter_map(|bundle| scene.denials.denials[*bundle][way].first(item));
        found.min_by_key(|denial| denial.order).map(|denial| (denial.item, 0))
    };
    let by = |set: &usize| {
        let bundles = &together.sets[*set].bundles;
        first(bundles).or_else(|| {
            let denials: Vec<_> = bundles.iter().map(|bundle| &scene.denials.denials[*bundle][way]).collect();
            let found = cover::by_all(&denials, item)?;
            Some((found.first()?.item, found.len() - 1))
        })
    };
    let bundle = &together.bundles[place.bundle];
    let (one, others) = bundle.sets.split_first()?;
    let found = by(one)?;
    let everywhere = || first(&bundle.everywhere).is_some();
    let all = others.is_empty() || everywhere() || others.iter().all(|set| by(set).is_some());
    all.then_some(found)
}

/// The denials of a bundle in a direction, by what they could cover.
pub(super) struct Denials<'w> {
    all: Vec<Denial<'w>>,
    /// Those of classes, with which any item is held.
    wide: Vec<usize>,
    /// Those of addresses, by each of their blocks.
    networks: BTreeMap<IpNet, Vec<usize>>,
    /// How much of all addresses their blocks are, at most; IPv4, then IPv6.
    volumes: [f64; 2],
    /// Those of pods, by each of their selectors.
    selectors: Selectors<'w>,
    of_selector: Vec<Vec<usize>>,
}

/// An item that denies.
pub(super) struct Denial<'w> {
    pub item: &'w Item,
    /// Its rule, and which it is there.
    pub order: (usize, usize),
    /// `None`: all.
    pub ports: Option<BTreeSet<(Protocol, PortBlock)>>,
}

impl<'w> Denials<'w> {
    fn new(together: &Together<'w>, bundle: usize, direction: Direction) -> Denials<'w> {
        let mut all: Vec<Denial<'w>> = Vec::new();
        let (mut wide, mut networks) = (Vec::new(), BTreeMap::<IpNet, Vec<usize>>::new());
        let (mut selectors, mut of_selector) = (Vec::new(), Vec::<Vec<usize>>::new());
        let mut known: HashMap<&Selector, usize> = HashMap::new();
        let items = together.rules(bundle).flat_map(|(rule, found)| {
            found.section(direction).deny.iter().enumerate().map(move |(index, item)| ((rule, index), item))
        });
        for (order, item) in items {
            let number = all.len();
            let denial = Denial { item, order, ports: denied(&item.ports) };
            match &item.peers {
                Peers::Networks(blocks) => {
                    for block in blocks {
                        if let BlockOf::Here(network) = &block.of {
                            networks.entry(network.trunc()).or_default().push(number);
                        }
                    }
                }
                Peers::Endpoints(list) => {
                    for selector in list {
                        let selector = *known.entry(selector).or_insert_with(|| {
                            selectors.push((None, selector));
                            of_selector.push(Vec::new());
                            selectors.len() - 1
                        });
                        of_selector[selector].push(number);
                    }
                }
                Peers::Any | Peers::Entities(_) => {
                    // What denies the same later is never the first.
                    let same =
                        |other: &usize| all[*other].item.peers == item.peers && all[*other].ports == denial.ports;
                    if wide.iter().any(same) {
                        continue;
                    }
                    wide.push(number);
                }
                Peers::Nodes(_) | Peers::Services(_) | Peers::Names(_) => continue, // cover nothing
            }
            all.push(denial);
        }
        let volume = |v4: bool| {
            networks.keys().filter(|network| network.addr().is_ipv4() == v4).map(cover::share_of).sum::<f64>()
        };
        let volumes = [true, false].map(volume);
        Denials { all, wide, networks, volumes, selectors: Selectors::new(selectors), of_selector }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How much of all addresses the blocks of a family are, at most.
    pub(super) fn volume(&self, network: &IpNet) -> f64 {
        self.volumes[usize::from(!network.addr().is_ipv4())]
    }

    /// Those of blocks inside a block.
    pub(super) fn inside(&self, network: IpNet) -> Vec<&Denial<'w>> {
        let from = self.networks.range(network..);
        let inside = from.take_while(|(block, _)| network.contains(*block)).flat_map(|(_, numbers)| numbers);
        inside.map(|number| &self.all[*number]).collect()
    }

    /// The first one that covers all that an item allows.
    fn first(&self, allow: &Item) -> Option<&Denial<'w>> {
        self.near(&allow.peers).into_iter().find(|denial| denial.covers(allow))
    }

    /// Those that may cover these peers, in order.
    pub(super) fn near(&self, peers: &Peers) -> Vec<&Denial<'w>> {
        if self.all.is_empty() {
            return Vec::new();
        }
        let mut near = self.wide.clone();
        let mut around = |network: IpNet| {
            let supernets = std::iter::successors(Some(network), IpNet::supernet);
            near.extend(supernets.filter_map(|network| self.networks.get(&network.trunc())).flatten());
        };
        match peers {
            // All blocks must be covered; the first one is as good as any.
            Peers::Networks(blocks) => match blocks.first() {
                Some(Block { of: BlockOf::Here(network), .. }) => around(*network),
                _ => around(ipnet::Ipv4Net::default().into()),
            },
            // Blocks of all addresses there are cover these.
            Peers::Names(_) | Peers::Entities(_) => around(ipnet::Ipv4Net::default().into()),
            Peers::Endpoints(selectors) => {
                if let Some(narrow) = selectors.first() {
                    let wider = self.selectors.wider(None, narrow);
                    near.extend(wider.into_iter().flat_map(|selector| &self.of_selector[selector]));
                }
            }
            Peers::Any | Peers::Nodes(_) | Peers::Services(_) => {}
        }
        near.sort_unstable();
        near.dedup();
        near.into_iter().map(|number| &self.all[number]).collect()
    }
}

impl Denial<'_> {
    /// Whether it covers all that an item allows.
    fn covers(&self, allow: &Item) -> bool {
        peers_cover(&self.item.peers, &allow.peers)
            && self.ports.as_ref().is_none_or(|denied| ports_cover(denied, &allow.ports))
    }
}

/// What a denial denies by number; `None`: everything.
fn denied(ports: &Ports) -> Option<BTreeSet<(Protocol, PortBlock)>> {
    let Ports::These(entries) = ports else { return None };
    // A denial at a Service's addresses only is narrower than its ports.
    Some(blocks(&Ports::These(entries.iter().filter(|entry| entry.service.is_none()).cloned().collect())))
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

fn ports_cover(wide: &BTreeSet<(Protocol, PortBlock)>, allow: &Ports) -> bool {
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

/// Whether whoever is among the peers of an item is among those of another one, `deny`, as well.
pub(super) fn peers_cover(deny: &Peers, allow: &Peers) -> bool {
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
            Entity::Host | Entity::RemoteNode | Entity::KubeApiserver | Entity::ClusterMesh | Entity::Cluster => {
                cluster || denies(*entity)
            }
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
