//! Who may be asked for the names that toFQDNs selects: without an answer that namegate sees, they open nothing.

use std::collections::BTreeMap;

use super::{Advice, Place, Scene, allowing, is_on, speak_of_names};
use crate::engine::labels::{Labels, Match};
use crate::engine::name::Name;
use crate::engine::pattern::{Bare, Pattern, PatternTrie};
use crate::engine::policy::{Entity, Item, Peers, Port, PortRule, Ports, Rule};
use crate::engine::port::PortBlock;
use crate::engine::ruleset::{Direction, Protocol};

pub(super) const NO_RESOLVER: &str = "no-resolver";
pub(super) const NAME_NOT_ASKED: &str = "name-not-asked";
pub(super) const WITHOUT_DNS_RULES: &str = "resolver-without-dns-rules";

/// The port of DNS.
const DNS: u16 = 53;
/// What stands for `**.` when a pattern is tried.
const SEVERAL: [&str; 4] = ["zq0-9_zq", "zq0.zq_1", "zq0.zq_1.zq-2", "zq0.zq_1.zq-2.zq3"];
/// What stands for a star: nothing, and text that no pattern has by chance.
const STAR: [&str; 2] = ["", "zq0-9_zq"];

pub(super) fn advise(scene: &Scene<'_>, place: &Place<'_>, all: &mut Vec<Advice>) {
    for item in &place.rule.egress.allow {
        names(scene, place, item, all);
        resolver(scene, place, item, all);
    }
}

/// For the names of one item: may they be asked for, wherever the rule holds?
fn names(scene: &Scene<'_>, place: &Place<'_>, item: &Item, all: &mut Vec<Advice>) {
    let Peers::Names(names) = &item.peers else { return };
    if names.is_empty() {
        return;
    }
    let shut = |rules: &&Vec<&Rule>| rules.iter().any(|rule| rule.egress.default_deny);
    let together = scene.together(place);
    let sets: Vec<Asked> = together.iter().filter(shut).map(|rules| Asked::of(rules)).collect();
    if sets.iter().any(|asked| !asked.anyone) {
        let text =
            "no rule lets its pods ask a DNS server: these names open nothing; add a rule for port 53 of the DNS \
                    server with rules.dns"
                .to_owned();
        all.push(Advice { at: item.at.clone(), kind: NO_RESOLVER, text });
        return;
    }
    for name in names {
        if sets.iter().any(|asked| !asked.covers(&name.pattern)) {
            let text =
                format!("no rules.dns lets its pods ask for all that \"{}\" selects; add it there, too", name.pattern);
            all.push(Advice { at: name.at.clone(), kind: NAME_NOT_ASKED, text });
        }
    }
}

/// Warns of a DNS server that is allowed without `rules.dns` beside rules for names.
fn resolver(scene: &Scene<'_>, place: &Place<'_>, item: &Item, all: &mut Vec<Advice>) {
    let Ports::These(entries) = &item.ports else { return };
    let plain = entries.iter().filter(|entry| entry.dns.is_none() && entry.ports.iter().any(names_dns));
    for entry in plain {
        if may_answer(&item.peers, true) && scene.together(place).iter().any(|rules| speak_of_names(rules)) {
            let text =
                "port 53 without rules.dns: any name may be asked for; Cilium learns no address here, so that toFQDNs \
                        opens nothing, namegate takes it for matchPattern: \"*\"; write rules.dns"
                    .to_owned();
            all.push(Advice { at: entry.at.clone(), kind: WITHOUT_DNS_RULES, text });
        }
    }
}

/// What the rules of one kind of pod let it ask.
struct Asked {
    /// Whether some server may be asked at all.
    anyone: bool,
    /// Whether one may be asked for everything.
    everything: bool,
    patterns: PatternTrie<()>,
    /// As they were written: the same text needs no trying.
    texts: BTreeMap<String, ()>,
}

impl Asked {
    fn of(rules: &[&Rule]) -> Asked {
        let patterns = PatternTrie::new(Bare::Every);
        let mut asked = Asked { anyone: false, everything: false, patterns, texts: BTreeMap::new() };
        for item in allowing(rules, Direction::Egress) {
            match &item.ports {
                Ports::All => asked.plain(item, false),
                Ports::These(entries) => entries.iter().for_each(|entry| asked.entry(item, entry)),
            }
        }
        asked
    }

    fn entry(&mut self, item: &Item, entry: &PortRule) {
        let Some(names) = &entry.dns else {
            let explicit = entry.ports.iter().any(names_dns);
            let ports = Ports::These(vec![entry.clone()]);
            if explicit || is_on(&ports, DNS) {
                self.plain(item, explicit);
            }
            return;
        };
        self.anyone |= may_answer(&item.peers, true) && !names.is_empty();
        for name in names {
            self.patterns.insert(name.pattern.clone(), (), None);
            self.texts.insert(name.pattern.as_str().to_ascii_lowercase(), ());
        }
    }

    /// A rule that lets DNS pass without speaking of it.
    fn plain(&mut self, item: &Item, explicit: bool) {
        let reaches = may_answer(&item.peers, explicit);
        self.anyone |= reaches;
        self.everything |= reaches;
    }

    /// Whether all that a pattern selects may be asked for.
    fn covers(&self, pattern: &Pattern) -> bool {
        self.everything
            || self.texts.contains_key(&pattern.as_str().to_ascii_lowercase())
            || examples(pattern).iter().all(|name| self.patterns.matches(name).next().is_some())
    }
}

/// Names that a pattern selects, such that patterns that select all of them select all that it does.
fn examples(pattern: &Pattern) -> Vec<Name> {
    if let Some(name) = pattern.exact() {
        return vec![name];
    }
    let folded = pattern.as_str().to_ascii_lowercase();
    let body = folded.strip_suffix('.').unwrap_or(&folded);
    if pattern.is_bare() {
        return SEVERAL.iter().filter_map(|text| Name::parse(text).ok()).collect();
    }
    let mut texts = Vec::new();
    let (first, rest) = body.split_once('.').unwrap_or((body, ""));
    let heads: Vec<String> = if first.len() > 1 && first.bytes().all(|octet| octet == b'*') {
        SEVERAL.iter().map(|text| format!("{text}.{rest}")).collect()
    } else {
        vec![body.to_owned()]
    };
    for head in heads {
        texts.extend(STAR.iter().map(|star| head.replace('*', star)));
    }
    texts.iter().filter_map(|text| Name::parse(text).ok()).collect()
}

/// Whether a port is that of DNS alone, by number or by one of its usual names.
fn names_dns((protocol, port): &(Protocol, Port)) -> bool {
    let carries = matches!(protocol, Protocol::Udp | Protocol::Tcp | Protocol::Any);
    carries
        && match port {
            Port::Block(block) => *block == PortBlock::one(DNS),
            Port::Named(name) => matches!(name.as_str(), "dns" | "dns-tcp" | "dns-udp" | "domain"),
        }
}

/// Whether a DNS server could be among the peers; `explicit`: the rule names its port, so its author meant one.
fn may_answer(peers: &Peers, explicit: bool) -> bool {
    match peers {
        Peers::Any => true,
        Peers::Names(_) => false,
        Peers::Endpoints(selectors) if explicit => !selectors.is_empty(),
        // The cluster's DNS, as every cluster labels it.
        Peers::Endpoints(selectors) => {
            let own = BTreeMap::from([("k8s-app".to_owned(), "kube-dns".to_owned())]);
            let labels = Labels::of_pod(&own, "kube-system", None, None, "default");
            selectors.iter().any(|selector| selector.matches(&labels) != Match::No)
        }
        Peers::Entities(entities) => entities.iter().any(|entity| {
            matches!(
                entity,
                Entity::All | Entity::World | Entity::Cluster | Entity::ClusterMesh | Entity::Host | Entity::RemoteNode
            )
        }),
        Peers::Networks(blocks) => !blocks.is_empty(),
        Peers::Nodes(selectors) => !selectors.is_empty(),
        Peers::Services(services) => !services.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn covered(pattern: &str, by: &[&str], expected: bool) {
        let mut asked = Asked::of(&[]);
        for text in by {
            asked.patterns.insert(Pattern::pattern(text).unwrap(), (), None);
        }
        assert_eq!(asked.covers(&Pattern::pattern(pattern).unwrap()), expected, "{pattern} by {by:?}");
    }

    #[test]
    fn a_pattern_is_covered_when_all_its_names_may_be_asked_for() {
        covered("api.example.com", &["*"], true);
        covered("api.example.com", &["*.example.com"], true);
        covered("api.example.com.", &["API.example.com"], true);
        covered("a.b.example.com", &["*.example.com"], false);
        covered("*.example.com", &["*.example.com"], true);
        covered("*.example.com", &["*.*.com"], true);
        covered("*.example.com", &["api.example.com"], false);
        covered("*.example.com", &["a*.example.com"], false);
        covered("**.example.com", &["*.example.com"], false);
        covered("**.example.com", &["*.example.com", "*.*.*.example.com"], false);
        covered("**.example.com", &["**.com"], true);
        covered("*.example.com", &["**.example.com"], true);
        covered("*example.com", &["*.com"], true);
        covered("*example.com", &["*.example.com", "example.com"], false);
        covered("a*b.example.com", &["a*.example.com"], true);
        covered("*", &["*.example.com"], false);
        covered("*", &["**"], true);
    }
}
