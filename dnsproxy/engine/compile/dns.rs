//! Whom the workload may ask for which names.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::peers::is_any;
use super::ports::{Entry, Held, PortSet};
use super::services::Front;
use super::{Compiler, items};
use crate::engine::endpoint::PodRef;
use crate::engine::labels::{Match, Selector};
use crate::engine::pattern::{Bare, Pattern, PatternTrie};
use crate::engine::policy::{Block, Entity, Item, NameRule, Peers, Port, PortRule, Ports, Rule, ServicePeer};
use crate::engine::port::{PortBlock, covers};
use crate::engine::ruleset::{Direction, DnsBy, DnsDeny, DnsRule, Protocol, Servers};
use crate::engine::verdict::RuleRef;

/// The port of DNS.
const DNS: u16 = 53;

/// The DNS rules of a workload, and the denials that beat them; none unless it has `toFQDNs` or `rules.dns`.
pub(super) fn rules(
    compiler: &Compiler<'_>,
    subject: &PodRef,
    rules: &[(&Rule, Match)],
) -> (Vec<DnsRule>, Vec<DnsDeny>) {
    if !are_steered(rules) {
        return (Vec::new(), Vec::new());
    }
    let every = Arc::new(trie([(Pattern::every(), None)]));
    let nothing = Arc::new(trie([]));
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    let plain = Plain::of(rules);
    let mut merged = HashSet::new();
    for (item, deny) in items(rules, Direction::Egress) {
        let plain_ports = compiler.entries(subject, Direction::Egress, item, deny);
        if deny {
            for (servers, ports) in (Meaning { compiler, item, entries: &plain_ports, of: Of::All, deny }).servers() {
                denied.push(DnsDeny { rule: item.at.clone(), servers, ports });
            }
            continue;
        }
        let mut allow = |by: DnsBy, rule: &RuleRef, patterns: &Arc<PatternTrie<()>>, servers: Vec<Meant>| {
            for (servers, ports) in servers {
                let (rule, patterns) = (rule.clone(), patterns.clone());
                allowed.push(DnsRule { rule, servers, ports, patterns, by });
            }
        };
        if let Ports::These(entries) = &item.ports {
            for entry in entries {
                let Some(names) = &entry.dns else { continue };
                let patterns = names.iter().map(|NameRule { at, pattern }| (pattern.clone(), Some(at.clone())));
                let patterns = Arc::new(trie(patterns));
                let entries = compiler.entries_of(subject, Direction::Egress, entry, deny);
                let meaning = Meaning { compiler, item, entries: &entries, of: Of::Carriers, deny };
                allow(DnsBy::Names, &entry.at, &patterns, meaning.servers());
                allow(DnsBy::Names, &entry.at, &nothing, meaning.doubtful_fronts());
                for (at, item) in plain.merged_with(item, entry, &mut merged) {
                    let entries = compiler.entries(subject, Direction::Egress, &item, deny);
                    let meaning = Meaning { compiler, item: &item, entries: &entries, of: Of::Carriers, deny };
                    allow(DnsBy::Names, at, &every, meaning.servers());
                }
            }
        }
        // Without `rules.dns` the server may be asked anything on the port of DNS, as it could past the proxy.
        let by = if names_port_53(item) { DnsBy::Port } else { DnsBy::EveryPort };
        let meaning = Meaning { compiler, item, entries: &plain_ports, of: Of::Port53, deny };
        allow(by, &item.at, &every, meaning.servers());
    }
    allowed.sort_by_key(|rule| rule.by != DnsBy::Names);
    (allowed, denied)
}

/// Whether these rules are about names at all.
pub(super) fn are_steered(rules: &[(&Rule, Match)]) -> bool {
    items(rules, Direction::Egress).any(|(item, deny)| !deny && asks_for_steering(item))
}

/// Whether 53 stands among an item's ports, by number or by a name.
fn names_port_53(item: &Item) -> bool {
    let Ports::These(entries) = &item.ports else { return false };
    entries.iter().flat_map(|entry| &entry.ports).any(|(_, port)| match port {
        Port::Block(block) => *block == PortBlock::one(DNS),
        Port::Named(_) => true,
    })
}

fn asks_for_steering(item: &Item) -> bool {
    let names = matches!(&item.peers, Peers::Names(names) if !names.is_empty());
    let dns = matches!(&item.ports, Ports::These(entries) if entries.iter().any(|entry| entry.dns.is_some()));
    names || dns
}

/// What rules without `rules.dns` allow, one selector and one port at a time. Where a rule with `rules.dns` has the same
/// selector and the same port, Cilium merges the two, and every name may be asked for (cilium.md 3.7, points 10 and 11).
struct Plain<'p>(HashMap<Single<'p>, &'p RuleRef>);

/// One selector, one port, and the Service that an entry asks for.
type Single<'p> = (One<'p>, &'p (Protocol, Port), Option<&'p (String, String)>);

/// One selector of an item.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum One<'p> {
    Any,
    Endpoint(&'p Selector),
    Node(&'p Selector),
    Network(&'p Block),
    Entity(Entity),
    Service(&'p ServicePeer),
}

impl<'p> Plain<'p> {
    fn of(rules: &[(&'p Rule, Match)]) -> Plain<'p> {
        let mut plain = HashMap::new();
        for (item, _) in items(rules, Direction::Egress).filter(|(_, deny)| !deny) {
            let Ports::These(entries) = &item.ports else { continue };
            for entry in entries.iter().filter(|entry| entry.dns.is_none()) {
                for (one, port) in singles(item, entry) {
                    plain.entry((one, port, entry.service.as_ref())).or_insert(&entry.at);
                }
            }
        }
        Plain(plain)
    }

    /// What these have in common with an entry that has `rules.dns`, as items with their places; what is in `done` is not said
    /// again.
    fn merged_with(
        &self,
        item: &'p Item,
        entry: &'p PortRule,
        done: &mut HashSet<Single<'p>>,
    ) -> Vec<(&'p RuleRef, Item)> {
        let mut found = Vec::new();
        for (one, port) in singles(item, entry) {
            let single = (one, port, entry.service.as_ref());
            let Some(at) = self.0.get(&single).filter(|_| done.insert(single)) else { continue };
            let ports = [port.clone()].into();
            let entry = PortRule { at: (*at).clone(), ports, service: entry.service.clone(), dns: None };
            let ports = Ports::These(vec![entry]);
            found.push((*at, Item { at: (*at).clone(), peers: one.peers(), ports }));
        }
        found
    }
}

/// The selectors of an item with the ports of one of its entries that carry DNS.
fn singles<'p>(item: &'p Item, entry: &'p PortRule) -> impl Iterator<Item = (One<'p>, &'p (Protocol, Port))> {
    let ports = entry.ports.iter().filter(|(protocol, _)| carries_dns(*protocol));
    ports.flat_map(|port| One::of(&item.peers).into_iter().map(move |one| (one, port)))
}

impl<'p> One<'p> {
    fn of(peers: &'p Peers) -> Vec<One<'p>> {
        match peers {
            Peers::Any => vec![One::Any],
            Peers::Endpoints(selectors) => selectors.iter().map(One::Endpoint).collect(),
            Peers::Nodes(selectors) => selectors.iter().map(One::Node).collect(),
            Peers::Networks(blocks) => blocks.iter().map(One::Network).collect(),
            Peers::Services(services) => services.iter().map(One::Service).collect(),
            // No peer is the selector of `all`, in Cilium, too.
            Peers::Entities(entities) => entities
                .iter()
                .map(|entity| if *entity == Entity::All { One::Any } else { One::Entity(*entity) })
                .collect(),
            Peers::Names(_) => Vec::new(),
        }
    }

    fn peers(self) -> Peers {
        match self {
            One::Any => Peers::Any,
            One::Endpoint(selector) => Peers::Endpoints(vec![selector.clone()]),
            One::Node(selector) => Peers::Nodes(vec![selector.clone()]),
            One::Network(block) => Peers::Networks(vec![block.clone()]),
            One::Entity(entity) => Peers::Entities([entity].into()),
            One::Service(service) => Peers::Services(vec![service.clone()]),
        }
    }
}

/// Servers, and the ports on which they are meant.
type Meant = (Servers, Vec<(Protocol, PortBlock)>);

/// Which servers some entries of an item mean.
struct Meaning<'a> {
    compiler: &'a Compiler<'a>,
    item: &'a Item,
    entries: &'a [Entry<'a>],
    of: Of,
    deny: bool,
}

/// Which of an entry's ports count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// All: of a denial.
    All,
    /// Those of protocols that carry DNS: of `rules.dns`.
    Carriers,
    /// 53: of a rule without `rules.dns`.
    Port53,
}

/// How many of what is behind a Service an item must mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backends {
    /// All that are ready, and all are known: for an allowance.
    All,
    /// One, or one that is not known: for a denial.
    Some,
}

/// Exact servers, and whether the item names them or means a class of peers.
type Exact = (BTreeSet<IpAddr>, bool);

impl Meaning<'_> {
    /// The servers that are meant directly, and the Service addresses in front of them, each with its ports.
    fn servers(&self) -> Vec<Meant> {
        let mut servers = Vec::new();
        let mut push = |meant: Servers, ports: PortSet| {
            let ports: Vec<_> = ports.into_iter().collect();
            if !ports.is_empty() {
                servers.push((meant, ports));
            }
        };
        let uniform = self.entries.iter().filter(|entry| entry.is_uniform());
        let uniform = self.counted(uniform.flat_map(|entry| entry.numbered.iter().copied()).collect());
        if is_any(&self.item.peers) {
            push(Servers::Any, uniform);
        } else if !uniform.is_empty() {
            let (mut whole, mut carved) = (Vec::new(), Vec::new());
            for outside in self.compiler.outside(&self.item.peers, self.deny) {
                match outside.except {
                    [] => whole.push(outside.network),
                    except => carved.push((outside.network, except.to_vec())),
                }
            }
            if !whole.is_empty() {
                push(Servers::Networks(whole), uniform.clone());
            }
            if !carved.is_empty() {
                push(Servers::Carved(carved), uniform);
            }
        }
        for (ports, (addresses, named)) in self.exact() {
            push(exact(addresses, named), ports);
        }
        for (ports, (addresses, named)) in self.fronts(if self.deny { Backends::Some } else { Backends::All }) {
            push(exact(addresses, named), ports);
        }
        servers
    }

    /// Service addresses that stand for servers meant and others, or for who knows whom: nobody knows whose rules hold.
    fn doubtful_fronts(&self) -> Vec<Meant> {
        let sure = self.fronts(Backends::All);
        let mut doubtful = self.fronts(Backends::Some);
        for (ports, (addresses, _)) in &mut doubtful {
            if let Some((all, _)) = sure.get(ports) {
                addresses.retain(|address| !all.contains(address));
            }
        }
        doubtful.retain(|_, (addresses, _)| !addresses.is_empty());
        doubtful
            .into_iter()
            .map(|(ports, (addresses, named))| (exact(addresses, named), ports.into_iter().collect()))
            .collect()
    }

    /// Servers of the cluster, and outside those that only a Service names.
    fn exact(&self) -> BTreeMap<PortSet, Exact> {
        let named = matches!(self.item.peers, Peers::Endpoints(_) | Peers::Services(_));
        let mut found: BTreeMap<PortSet, Exact> = BTreeMap::new();
        let mut add = |ports, addresses: &BTreeSet<IpAddr>, named| {
            let (known, all_named) = found.entry(ports).or_insert_with(|| (BTreeSet::new(), true));
            known.extend(addresses);
            *all_named &= named;
        };
        let peers = &self.item.peers;
        let only_special = is_any(peers);
        let entries: Vec<&Entry<'_>> =
            self.entries.iter().filter(|entry| !only_special || !entry.is_uniform()).collect();
        // Most items are about other ports, of however many peers.
        let counts = |entry: &&Entry<'_>| !entry.named.is_empty() || !self.counted(entry.numbered.clone()).is_empty();
        if !entries.iter().any(counts) {
            return found;
        }
        for peer in self.compiler.selected_of_all(peers, self.deny) {
            let at = |entry: &&Entry<'_>| entry.at(self.compiler.world, peer, self.deny);
            let ports = self.counted(entries.iter().flat_map(at).collect());
            if !ports.is_empty() {
                let by_service = entries.iter().all(|entry| matches!(entry.held, Held::At(_)));
                add(ports, &peer.addresses, named || by_service);
            }
        }
        for entry in entries {
            if let Held::At(addresses) = &entry.held {
                let outside = addresses.iter().filter(|address| !self.compiler.base.known.contains_key(*address));
                for address in outside.filter(|address| self.compiler.is_meant(peers, **address, self.deny)) {
                    let ports = self.counted(entry.numbered.clone());
                    if !ports.is_empty() {
                        add(ports, &BTreeSet::from([*address]), true);
                    }
                }
            }
        }
        found
    }

    /// The Service addresses of which so many ready backends are meant.
    fn fronts(&self, backends: Backends) -> BTreeMap<PortSet, Exact> {
        let mut found: BTreeMap<PortSet, Exact> = BTreeMap::new();
        let by_number = |entry: &Entry<'_>, front: &Front| entry.numbered.iter().any(|wide| wide.0 == front.protocol);
        let may_be = |front: &&Front| {
            let any = |entry: &Entry<'_>| {
                !entry.named.is_empty()
                    || by_number(entry, front)
                    || entry.numbered.iter().any(|wide| wide.0 == Protocol::Any)
            };
            carries_dns(front.protocol) && (self.of != Of::Port53 || front.port == DNS) && self.entries.iter().any(any)
        };
        for front in self.compiler.base.fronts.iter().filter(may_be) {
            let meant = |(backend, target): &(IpAddr, u16)| {
                let ports = self.compiler.ports_at(self.entries, *backend, self.deny);
                self.opens(&ports, front, *target) && self.compiler.is_meant(&self.item.peers, *backend, self.deny)
            };
            let meant = if backends == Backends::Some {
                let unknown = || {
                    let ports = self.entries.iter().flat_map(|entry| entry.numbered.iter().copied()).collect();
                    !front.complete && self.opens(&ports, front, front.port)
                };
                front.backends.iter().any(meant) || unknown()
            } else {
                front.complete && !front.backends.is_empty() && front.backends.iter().all(meant)
            };
            if meant {
                let by_service = self.entries.iter().all(|entry| matches!(entry.held, Held::At(_)));
                let ports = PortSet::from([(front.protocol, PortBlock::one(front.port))]);
                let (addresses, all_named) = found.entry(ports).or_insert_with(|| (BTreeSet::new(), true));
                addresses.insert(front.address);
                *all_named &= by_service || self.names(front);
            }
        }
        found
    }

    /// Whether the item names what is behind this Service, so that its answers may be learned.
    fn names(&self, front: &Front) -> bool {
        match &self.item.peers {
            Peers::Endpoints(_) | Peers::Services(_) => true,
            Peers::Networks(_) => {
                let outside = self.compiler.outside(&self.item.peers, self.deny);
                let one = |(backend, _): &(IpAddr, u16)| {
                    outside.iter().any(|outside| outside.network == IpNet::from(*backend) && outside.holds(*backend))
                };
                front.backends.iter().all(one)
            }
            Peers::Any | Peers::Nodes(_) | Peers::Entities(_) | Peers::Names(_) => false,
        }
    }

    /// Whether a backend that has these ports open is open for what is sent to the front: by its own port, or by the
    /// front's, which is what the workload sees.
    fn opens(&self, ports: &PortSet, front: &Front, target: u16) -> bool {
        let seen = if self.of == Of::Port53 { DNS } else { front.port };
        let one = |port| (front.protocol, PortBlock::one(port));
        ports.iter().any(|wide| covers(*wide, one(target)) || covers(*wide, one(seen)))
    }

    /// Those of an entry's ports that count.
    fn counted(&self, ports: PortSet) -> PortSet {
        match self.of {
            Of::All => ports,
            Of::Carriers => ports.into_iter().filter(|(protocol, _)| carries_dns(*protocol)).collect(),
            Of::Port53 => [(Protocol::Udp, PortBlock::one(DNS)), (Protocol::Tcp, PortBlock::one(DNS))]
                .into_iter()
                .filter(|narrow| ports.iter().any(|wide| covers(*wide, *narrow)))
                .collect(),
        }
    }
}

fn exact(addresses: BTreeSet<IpAddr>, named: bool) -> Servers {
    let addresses = addresses.into_iter().collect();
    if named { Servers::Addresses(addresses) } else { Servers::Entity(addresses) }
}

fn carries_dns(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Udp | Protocol::Tcp)
}

fn trie(patterns: impl IntoIterator<Item = (Pattern, Option<RuleRef>)>) -> PatternTrie<()> {
    let mut trie = PatternTrie::new(Bare::Every);
    for (pattern, rule) in patterns {
        trie.insert(pattern, (), rule);
    }
    trie
}
