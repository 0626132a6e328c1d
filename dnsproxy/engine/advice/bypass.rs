//! Resolvers over HTTPS and TLS: who reaches one asks it past every rule for names.

use std::net::IpAddr;
use std::sync::LazyLock;

use super::together::{Place, Together};
use super::{Advice, Scene, is_on};
use crate::engine::name::Name;
use crate::engine::pattern::{Bare, PatternTrie};
use crate::engine::policy::{Block, BlockOf, Entity, Item, NameRule, Peers};

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

/// The same, read.
static KNOWN: LazyLock<Vec<IpAddr>> = LazyLock::new(|| ADDRESSES.iter().filter_map(|text| text.parse().ok()).collect());
static KNOWN_NAMES: LazyLock<Vec<(&str, Name)>> =
    LazyLock::new(|| NAMES.iter().filter_map(|text| Some((*text, Name::parse(text).ok()?))).collect());

/// Which of the known resolvers a denial shuts wherever the rules of each bundle hold: a bit for each of [`KNOWN`].
pub(super) struct Denied(Vec<u32>);

impl Denied {
    pub(super) fn new(together: &Together<'_>) -> Denied {
        let of_rules = |bundle| {
            let denials = together.rules(bundle).flat_map(|(_, rule)| &rule.egress.deny);
            denials.map(shut).fold(0, |all, one| all | one)
        };
        let own: Vec<u32> = (0..together.bundles.len()).map(of_rules).collect();
        let of_set = |bundles: &[usize]| bundles.iter().fold(0, |all, bundle| all | own[*bundle]);
        Denied(together.over_sets(|set| of_set(&set.bundles), |one, other| one & other))
    }
}

/// Which of the known resolvers an item of a denial shuts.
fn shut(item: &Item) -> u32 {
    if !PORTS.iter().any(|port| is_on(&item.ports, *port)) {
        return 0;
    }
    let within = |address: &IpAddr| match &item.peers {
        Peers::Networks(blocks) => {
            blocks.iter().any(|block| matches!(&block.of, BlockOf::Here(network) if network.contains(address)))
        }
        _ => is_world(item),
    };
    let numbered = KNOWN.iter().enumerate().filter(|(_, address)| within(address));
    numbered.fold(0, |all, (number, _)| all | 1 << number)
}

pub(super) fn advise(scene: &Scene<'_>, place: &Place<'_>, all: &mut Vec<Advice>) {
    let filters_names = scene.speaks[place.bundle];
    let is_denied = |resolver: usize| scene.resolvers.0[place.bundle] & 1 << resolver != 0;
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
                    if (narrow || filters_names) && !is_denied(resolver) {
                        let text = format!(
                            "this block holds {}, which answers DNS over HTTPS and TLS: its answers pass unseen \
                             by every rule for names; deny it with egressDeny, or leave it out",
                            KNOWN[resolver]
                        );
                        found(item.at.clone(), text);
                    }
                }
            }
            _ if is_world(item) && filters_names && !is_denied(0) => {
                let text =
                    "all addresses outside are open on 443 or 853, resolvers over HTTPS and TLS as well: the rules for \
                            names can be passed by; name the names, or deny the known resolvers"
                        .to_owned();
                found(item.at.clone(), text);
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
    let mut known = KNOWN_NAMES.iter().filter(|(_, name)| trie.matches(name).next().is_some());
    known.next().map(|(text, _)| *text)
}

/// The first known resolver in a block, by its number.
fn inside(block: &Block) -> Option<usize> {
    let BlockOf::Here(network) = &block.of else { return None };
    let holds = |address: &IpAddr| network.contains(address) && !block.except.iter().any(|out| out.contains(address));
    KNOWN.iter().position(holds)
}

fn is_world(item: &Item) -> bool {
    match &item.peers {
        Peers::Any => true,
        Peers::Entities(entities) => entities.contains(&Entity::World) || entities.contains(&Entity::All),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_address_can_be_read() {
        assert_eq!(KNOWN_NAMES.len(), NAMES.len());
        assert_eq!(KNOWN.len(), ADDRESSES.len());
        assert!(KNOWN.len() <= u32::BITS as usize, "each has a bit");
    }
}
