//! Whom the workload may ask for which names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::services::Front;
use super::{Compiler, is_any, items, networks};
use crate::engine::labels::Match;
use crate::engine::pattern::{Bare, Pattern, PatternTrie};
use crate::engine::policy::{Item, NameRule, Peers, Port, Ports, Rule};
use crate::engine::port::{PortBlock, covers};
use crate::engine::ruleset::{Direction, DnsDeny, DnsRule, Protocol, Servers};
use crate::engine::verdict::RuleRef;

type PortSet = BTreeSet<(Protocol, PortBlock)>;

/// The port of DNS.
const DNS: u16 = 53;

/// The DNS rules of a workload, and the denials that beat them; none unless it has `toFQDNs` or `rules.dns`.
pub(super) fn rules(compiler: &Compiler<'_>, rules: &[(&Rule, Match)]) -> (Vec<DnsRule>, Vec<DnsDeny>) {
    if !are_steered(rules) {
        return (Vec::new(), Vec::new());
    }
    let every = Arc::new(trie([(Pattern::every(), None)]));
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    for (item, deny) in items(rules, Direction::Egress) {
        if deny {
            let ports = item.ports.plain();
            let fronts = front_ports(compiler, item, true, |front, target| {
                covers_one(&ports, front.protocol, [target, front.port])
            });
            for (servers, ports) in servers(compiler, item, &ports, fronts, true) {
                denied.push(DnsDeny { rule: item.at.clone(), servers, ports });
            }
            continue;
        }
        let mut allow = |rule: &RuleRef, patterns: &Arc<PatternTrie<()>>, ports: &PortSet, fronts| {
            for (servers, ports) in servers(compiler, item, ports, fronts, false) {
                allowed.push(DnsRule { rule: rule.clone(), servers, ports, patterns: patterns.clone() });
            }
        };
        if let Ports::These(entries) = &item.ports {
            for entry in entries {
                let Some(names) = &entry.dns else { continue };
                let patterns = names.iter().map(|NameRule { at, pattern }| (pattern.clone(), Some(at.clone())));
                let numbered = entry.ports.iter().filter_map(|(protocol, port)| match port {
                    Port::Block(block) => Some((*protocol, *block)),
                    Port::Named(_) => None,
                });
                let ports: PortSet = numbered.filter(|(protocol, _)| carries_dns(*protocol)).collect();
                let fronts = front_ports(compiler, item, false, |front, target| {
                    covers_one(&ports, front.protocol, [target, front.port])
                });
                allow(&entry.at, &Arc::new(trie(patterns)), &ports, fronts);
            }
        }
        // Without `rules.dns` the server may be asked anything on the port of DNS, as it could past the proxy.
        let plain = item.ports.plain();
        let ports: PortSet = [(Protocol::Udp, PortBlock::one(DNS)), (Protocol::Tcp, PortBlock::one(DNS))]
            .into_iter()
            .filter(|narrow| plain.iter().any(|wide| covers(*wide, *narrow)))
            .collect();
        let fronts = front_ports(compiler, item, false, |front, target| {
            front.port == DNS && covers_one(&plain, front.protocol, [target, DNS])
        });
        allow(&item.at, &every, &ports, fronts);
    }
    (allowed, denied)
}

/// Whether these rules are about names at all.
pub(super) fn are_steered(rules: &[(&Rule, Match)]) -> bool {
    items(rules, Direction::Egress).any(|(item, deny)| !deny && asks_for_steering(item))
}

fn asks_for_steering(item: &Item) -> bool {
    let names = matches!(&item.peers, Peers::Names(names) if !names.is_empty());
    let dns = matches!(&item.ports, Ports::These(entries) if entries.iter().any(|entry| entry.dns.is_some()));
    names || dns
}

/// The servers that an item means directly on `ports`, and the Service addresses in front of them.
fn servers(
    compiler: &Compiler<'_>,
    item: &Item,
    ports: &PortSet,
    fronts: BTreeMap<PortSet, (BTreeSet<IpAddr>, bool)>,
    deny: bool,
) -> Vec<(Servers, Vec<(Protocol, PortBlock)>)> {
    let mut servers = Vec::new();
    let mut push = |meant: Servers, ports: &PortSet| {
        if !ports.is_empty() {
            servers.push((meant, ports.iter().copied().collect()));
        }
    };
    if is_any(&item.peers) {
        push(Servers::Any, ports);
    } else {
        let outside = networks(compiler.world, &item.peers, deny);
        if !outside.is_empty() {
            push(Servers::Networks(outside), ports);
        }
        let inside: BTreeSet<IpAddr> =
            compiler.selected(&item.peers, deny).flat_map(|peer| peer.addresses.iter().copied()).collect();
        if !inside.is_empty() {
            push(exact(inside, matches!(item.peers, Peers::Endpoints(_))), ports);
        }
    }
    for (ports, (addresses, named)) in fronts {
        push(exact(addresses, named), &ports);
    }
    servers
}

fn exact(addresses: BTreeSet<IpAddr>, named: bool) -> Servers {
    let addresses = addresses.into_iter().collect();
    if named { Servers::Addresses(addresses) } else { Servers::Entity(addresses) }
}

/// The Service addresses that an item means: all ready backends for an allowance, one for a denial, where `open` says so
/// of the front and the target port. By port, each with whether the item names its servers.
fn front_ports(
    compiler: &Compiler<'_>,
    item: &Item,
    deny: bool,
    open: impl Fn(&Front, u16) -> bool,
) -> BTreeMap<PortSet, (BTreeSet<IpAddr>, bool)> {
    let mut found: BTreeMap<PortSet, (BTreeSet<IpAddr>, bool)> = BTreeMap::new();
    for front in compiler.base.fronts.iter().filter(|front| carries_dns(front.protocol)) {
        let meant =
            |(backend, target): &(IpAddr, u16)| open(front, *target) && compiler.is_meant(&item.peers, *backend, deny);
        let meant = if deny {
            front.backends.iter().any(meant) || (!front.complete && open(front, front.port))
        } else {
            front.complete && !front.backends.is_empty() && front.backends.iter().all(meant)
        };
        if meant {
            let named = match &item.peers {
                Peers::Endpoints(_) => true,
                Peers::Networks(_) => {
                    let meant = networks(compiler.world, &item.peers, deny);
                    front.backends.iter().all(|(backend, _)| meant.contains(&(*backend).into()))
                }
                Peers::Services(_) => true,
                Peers::Any | Peers::Nodes(_) | Peers::Entities(_) | Peers::Names(_) => false,
            };
            let ports = PortSet::from([(front.protocol, PortBlock::one(front.port))]);
            let (addresses, all_named) = found.entry(ports).or_insert_with(|| (BTreeSet::new(), true));
            addresses.insert(front.address);
            *all_named &= named;
        }
    }
    found
}

fn covers_one(wide: &PortSet, protocol: Protocol, ports: [u16; 2]) -> bool {
    wide.iter().any(|wide| ports.iter().any(|port| covers(*wide, (protocol, PortBlock::one(*port)))))
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
