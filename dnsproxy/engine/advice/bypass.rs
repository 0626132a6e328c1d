//! Resolvers over HTTPS and TLS: who reaches one asks it past every rule for names.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Advice, Place, Scene, denying, is_on, speak_of_names};
use crate::engine::name::Name;
use crate::engine::pattern::{Bare, PatternTrie};
use crate::engine::policy::{Block, BlockOf, Entity, Item, NameRule, Peers, Rule};
use crate::engine::ruleset::Direction;

pub(super) const DOH: &str = "doh-resolver";

/// Ports of DNS over HTTPS and over TLS.
const PORTS: [u16; 2] = [443, 853];

/// Names of public resolvers, as their operators publish them.
const NAMES: [&str; 26] = [
    "dns.google",
    "dns64.dns.google",
    "8888.google",
    "cloudflare-dns.com",
    "security.cloudflare-dns.com",
    "family.cloudflare-dns.com",
    "mozilla.cloudflare-dns.com",
    "chrome.cloudflare-dns.com",
    "1dot1dot1dot1.cloudflare-dns.com",
    "one.one.one.one",
    "dns.quad9.net",
    "dns9.quad9.net",
    "dns10.quad9.net",
    "dns11.quad9.net",
    "doh.opendns.com",
    "dns.opendns.com",
    "doh.familyshield.opendns.com",
    "dns.adguard-dns.com",
    "unfiltered.adguard-dns.com",
    "dns.nextdns.io",
    "doh.cleanbrowsing.org",
    "dns.mullvad.net",
    "dns.alidns.com",
    "doh.pub",
    "doh.dns.sb",
    "freedns.controld.com",
];

/// Addresses of public resolvers, as their operators publish them.
const ADDRESSES: [&str; 22] = [
    "8.8.8.8",
    "8.8.4.4",
    "2001:4860:4860::8888",
    "2001:4860:4860::8844",
    "1.1.1.1",
    "1.0.0.1",
    "1.1.1.2",
    "1.1.1.3",
    "2606:4700:4700::1111",
    "2606:4700:4700::1001",
    "9.9.9.9",
    "149.112.112.112",
    "2620:fe::fe",
    "2620:fe::9",
    "208.67.222.222",
    "208.67.220.220",
    "94.140.14.14",
    "94.140.15.15",
    "45.90.28.0",
    "194.242.2.2",
    "223.5.5.5",
    "185.228.168.9",
];

pub(super) fn advise(scene: &Scene<'_>, place: &Place<'_>, all: &mut Vec<Advice>) {
    for item in &place.rule.egress.allow {
        if !PORTS.iter().any(|port| is_on(&item.ports, *port)) {
            continue;
        }
        let mut found = |at, text| all.push(Advice { at, kind: DOH, text });
        match &item.peers {
            Peers::Names(names) => {
                for (name, resolver) in names.iter().filter_map(|name| Some((name, resolver_of(name)?))) {
                    let text = format!(
                        "\"{}\" opens {resolver}, which answers DNS over HTTPS: its answers pass unseen by every rule for names",
                        name.pattern
                    );
                    found(name.at.clone(), text);
                }
            }
            Peers::Networks(blocks) => {
                for (block, resolver) in blocks.iter().filter_map(|block| Some((block, inside(block)?))) {
                    let narrow = matches!(&block.of, BlockOf::Here(network) if network.prefix_len() >= 24);
                    if (narrow || filters_names(scene, place)) && !is_denied(scene, place, resolver) {
                        let text = format!(
                            "this block holds {resolver}, which answers DNS over HTTPS and TLS: its answers pass unseen \
                             by every rule for names; deny it with egressDeny, or leave it out"
                        );
                        found(item.at.clone(), text);
                    }
                }
            }
            _ if is_world(item) && filters_names(scene, place) => {
                let first: IpAddr = ADDRESSES[0].parse().unwrap_or(IpAddr::from([0, 0, 0, 0]));
                if !is_denied(scene, place, first) {
                    let text =
                        "all addresses outside are open on 443 or 853, resolvers over HTTPS and TLS as well: the \
                                rules for names can be passed by; name the names, or deny the known resolvers"
                            .to_owned();
                    found(item.at.clone(), text);
                }
            }
            _ => {}
        }
    }
}

/// The resolver that a pattern means. Those that mean everything, or all of a top-level domain, are told otherwise.
fn resolver_of(rule: &NameRule) -> Option<&'static str> {
    let labels = rule.pattern.as_str().trim_end_matches('.').split('.').filter(|label| !label.contains('*')).count();
    if rule.pattern.is_bare() || (labels < 2 && rule.pattern.exact().is_none()) {
        return None;
    }
    let mut trie = PatternTrie::new(Bare::Valid);
    trie.insert(rule.pattern.clone(), (), None);
    let selects = |text: &&&str| Name::parse(text).is_ok_and(|name| trie.matches(&name).next().is_some());
    NAMES.iter().find(selects).copied()
}

/// The first known resolver in a block.
fn inside(block: &Block) -> Option<IpAddr> {
    let BlockOf::Here(network) = &block.of else { return None };
    let holds = |address: &IpAddr| network.contains(address) && !block.except.iter().any(|out| out.contains(address));
    known().find(holds)
}

fn known() -> impl Iterator<Item = IpAddr> {
    ADDRESSES.iter().filter_map(|text| text.parse().ok())
}

fn is_world(item: &Item) -> bool {
    match &item.peers {
        Peers::Any => true,
        Peers::Entities(entities) => entities.contains(&Entity::World) || entities.contains(&Entity::All),
        _ => false,
    }
}

/// Whether names are filtered wherever the rule holds: else there is nothing to pass by.
fn filters_names(scene: &Scene<'_>, place: &Place<'_>) -> bool {
    scene.together(place).iter().any(|rules| speak_of_names(rules))
}

/// Whether a denial beside the rule shuts a resolver.
fn is_denied(scene: &Scene<'_>, place: &Place<'_>, resolver: IpAddr) -> bool {
    let holds = |network: &IpNet| network.contains(&resolver);
    let denies = |item: &Item| {
        PORTS.iter().any(|port| is_on(&item.ports, *port))
            && match &item.peers {
                Peers::Networks(blocks) => {
                    blocks.iter().any(|block| matches!(&block.of, BlockOf::Here(network) if holds(network)))
                }
                _ => is_world(item),
            }
    };
    let denied = |rules: &Vec<&Rule>| denying(rules, Direction::Egress).any(denies);
    scene.together(place).iter().all(denied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_address_can_be_read() {
        assert!(NAMES.iter().all(|name| Name::parse(name).is_ok()));
        assert_eq!(known().count(), ADDRESSES.len());
    }
}
