//! Who may be asked for the names that toFQDNs selects: without an answer that namegate sees, they open nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::shadow::{self, peers_cover};
use super::together::{Place, Set, Together};
use super::{Advice, Scene};
use crate::engine::explain::words::protocol;
use crate::engine::labels::{Labels, Match};
use crate::engine::name::Name;
use crate::engine::pattern::{Bare, Pattern, PatternTrie};
use crate::engine::policy::{Entity, Item, Peers, Port, PortRule, Ports, Rule};
use crate::engine::port::{PortBlock, holds};
use crate::engine::ruleset::{Direction, Protocol};
use crate::engine::verdict::RuleRef;
use crate::engine::world::World;

pub(super) const NO_RESOLVER: &str = "no-resolver";
pub(super) const NAME_NOT_ASKED: &str = "name-not-asked";
pub(super) const WITHOUT_DNS_RULES: &str = "resolver-without-dns-rules";
pub(super) const TWO_MINDS: &str = "resolver-of-two-minds";

/// The port of DNS.
const DNS: u16 = 53;
/// What stands for `**.` when a pattern is tried.
const SEVERAL: [&str; 4] = ["zq0-9_zq", "zq0.zq_1", "zq0.zq_1.zq-2", "zq0.zq_1.zq-2.zq3"];
/// What stands for a star: nothing, and text that no pattern has by chance.
const STAR: [&str; 2] = ["", "zq0-9_zq"];

/// What carries DNS.
const CARRIERS: [Protocol; 2] = [Protocol::Udp, Protocol::Tcp];

/// The ports on which pods ask: that of DNS, and those that a Service in front maps it to.
struct AskedOn {
    ports: BTreeSet<(Protocol, u16)>,
    /// Whether there may be others: no Service has the port of DNS, or one whose backends' ports aren't known.
    others: bool,
}

impl AskedOn {
    fn new(world: &World) -> AskedOn {
        let mut asked = AskedOn { ports: CARRIERS.map(|carrier| (carrier, DNS)).into(), others: true };
        let mut all_known = true;
        for ((namespace, name), service) in &world.services {
            for front in service.ports.iter().filter(|port| port.port == DNS) {
                let ports = world.slices_of(namespace, name).flat_map(|slice| &slice.ports);
                let behind = ports.filter(|port| port.name == front.name && port.protocol == front.protocol);
                let targets: Vec<Option<u16>> = behind.map(|port| port.port).collect();
                asked.ports.extend(targets.iter().flatten().map(|port| (front.protocol, *port)));
                all_known &= service.readable && !targets.is_empty() && targets.iter().all(Option::is_some);
                asked.others = false;
            }
        }
        asked.others |= !all_known;
        asked
    }

    /// Whether a port is one of these alone, by number or by a usual name of DNS.
    fn names(&self, (protocol, port): &(Protocol, Port)) -> bool {
        match port {
            Port::Block(block) => {
                let is = |(carrier, port): &(Protocol, u16)| carrier == protocol && *block == PortBlock::one(*port);
                self.ports.iter().any(is)
            }
            Port::Named(name) => {
                CARRIERS.contains(protocol) && matches!(name.as_str(), "dns" | "dns-tcp" | "dns-udp" | "domain")
            }
        }
    }

    /// Whether a server may be asked over a carrier where this port is open; `unsure`: or who knows.
    fn holds(&self, carrier: Protocol, (protocol, port): &(Protocol, Port), unsure: bool) -> bool {
        match port {
            Port::Block(block) => {
                let holds = |(of, port): &(Protocol, u16)| *of == carrier && holds((*protocol, *block), carrier, *port);
                self.ports.iter().any(holds) || unsure && self.others && *protocol == carrier
            }
            Port::Named(_) => *protocol == carrier && (unsure || self.names(&(*protocol, port.clone()))),
        }
    }

    /// By which carriers a server may be asked on an entry's ports.
    fn carried(&self, entry: &PortRule, unsure: bool) -> Carried {
        CARRIERS.map(|carrier| entry.ports.iter().any(|port| self.holds(carrier, port, unsure)))
    }
}

/// Whether by each of [`CARRIERS`].
type Carried = [bool; 2];

/// What some bundles let their pods ask.
struct Servers {
    asked: Vec<Asked>,
    /// By set: whether egress is shut by default there, so that only what is allowed may be asked.
    shut: Vec<bool>,
    /// By set: whether a rule has `rules.dns`, which beats one that opens the server's port among others.
    ruled: Vec<bool>,
    /// Whether the pods of each bundle may ask some server, wherever egress is shut.
    anyone: Vec<bool>,
}

impl Servers {
    fn new(together: &Together<'_>, on: &AskedOn) -> Servers {
        let of_bundle = |bundle| Asked::of(together.rules(bundle).map(|(_, rule)| rule), on);
        let asked: Vec<Asked> = (0..together.bundles.len()).map(of_bundle).collect();
        let is_shut = |set: &Set| set.bundles.iter().any(|bundle| asked[*bundle].shut);
        let may_ask = |set: &Set| !is_shut(set) || set.bundles.iter().any(|bundle| asked[*bundle].anyone);
        Servers {
            shut: together.sets.iter().map(is_shut).collect(),
            ruled: together.sets.iter().map(|set| set.bundles.iter().any(|bundle| asked[*bundle].ruled)).collect(),
            anyone: together.over_sets(may_ask, |one, other| *one && *other),
            asked,
        }
    }

    /// Whether all that a pattern selects may be asked for, wherever the rules of a bundle hold and egress is shut.
    fn cover(&self, together: &Together<'_>, bundle: usize, pattern: &Pattern) -> bool {
        let wanted = Wanted::of(pattern);
        let share = |bundles: &[usize], have: u32, wide: bool| {
            bundles.iter().fold(have, |all, bundle| all | self.asked[*bundle].share(&wanted, wide))
        };
        let bundle = &together.bundles[bundle];
        let everywhere = [false, true].map(|wide| share(&bundle.everywhere, 0, wide));
        let covers = |set: usize| {
            let wide = !self.ruled[set];
            share(&together.sets[set].bundles, everywhere[usize::from(wide)], wide) == wanted.all()
        };
        everywhere[0] == wanted.all() || bundle.sets.iter().all(|set| !self.shut[*set] || covers(*set))
    }
}

/// Warns, and tells of each bundle whether all names that its pods' toFQDNs select may be asked for.
pub(super) fn advise(scene: &Scene<'_>, all: &mut Vec<Advice>) -> Vec<bool> {
    let together = &scene.together;
    let on = AskedOn::new(scene.world);
    let servers = Servers::new(together, &on);
    let lists = Lists::new(together, &on);
    let mut asked = vec![true; together.bundles.len()];
    for place in &together.places {
        for item in &place.rule.egress.allow {
            asked[place.bundle] &= names(together, &servers, place, item, all);
            resolver(scene, &on, &lists, place, item, all);
            left_open(scene, &on, &lists, place, item, all);
        }
    }
    // Pods that aren't there are the wider bundle's as well.
    for bundle in 0..asked.len() {
        if !asked[bundle] {
            together.bundles[bundle].everywhere.iter().for_each(|wider| asked[*wider] = false);
        }
    }
    together.over_sets(|set| set.bundles.iter().all(|bundle| asked[*bundle]), |one, other| *one && *other)
}

/// Whether the names of one item may be asked for, wherever the rule holds.
fn names(together: &Together<'_>, servers: &Servers, place: &Place<'_>, item: &Item, all: &mut Vec<Advice>) -> bool {
    let Peers::Names(names) = &item.peers else { return true };
    if names.is_empty() {
        return true;
    }
    if !servers.anyone[place.bundle] {
        let text =
            "no rule lets its pods ask a DNS server: these names open nothing; add a rule for port 53 of the DNS \
                    server with rules.dns"
                .to_owned();
        all.push(Advice { at: item.at.clone(), kind: NO_RESOLVER, text });
        return false;
    }
    let before = all.len();
    for name in names.iter().filter(|name| !servers.cover(together, place.bundle, &name.pattern)) {
        let text =
            format!("no rules.dns lets its pods ask for all that \"{}\" selects; add it there, too", name.pattern);
        all.push(Advice { at: name.at.clone(), kind: NAME_NOT_ASKED, text });
    }
    all.len() == before
}

/// Warns of a DNS server that is allowed without `rules.dns` beside rules for names.
fn resolver(scene: &Scene<'_>, on: &AskedOn, lists: &Lists<'_>, place: &Place<'_>, item: &Item, all: &mut Vec<Advice>) {
    let Ports::These(entries) = &item.ports else { return };
    let names_dns = |entry: &&PortRule| entry.ports.iter().any(|port| on.names(port));
    let plain = entries.iter().filter(|entry| entry.dns.is_none()).filter(names_dns);
    for entry in plain.filter(|_| may_answer(&item.peers, true)) {
        let same = lists.beside(place, item, entry);
        if !same.is_some_and(|(_, same)| same) && !lists.open(scene, place, item, on.carried(entry, false)).is_empty() {
            continue; // told by `left_open`
        }
        let (kind, text) = if let Some((list, same)) = same {
            let (path, at) = (&list.entry.at.0.path, &list.entry.at.0.place);
            let text = if same {
                format!(
                    "{path} at {at} lists the names that this server may be asked for, and this rule allows the same \
                     peers and port without rules.dns, which adds matchPattern: \"*\": the list shuts nothing; write \
                     rules.dns here, too, or leave this rule out"
                )
            } else {
                format!(
                    "{path} at {at} lists the names that a server of this rule may be asked for, and rules.dns beats a \
                     rule without it: this one opens no other name there; say in one rule what may be asked"
                )
            };
            (TWO_MINDS, text)
        } else if scene.speaks[place.bundle] {
            let text =
                "port 53 without rules.dns: any name may be asked for; Cilium learns no address here, so that toFQDNs \
                        opens nothing, namegate takes it for matchPattern: \"*\"; write rules.dns"
                    .to_owned();
            (WITHOUT_DNS_RULES, text)
        } else {
            continue;
        };
        all.push(Advice { at: entry.at.clone(), kind, text });
    }
}

/// Warns where a list of names is for one of the protocols that carry DNS, and another rule opens the server for the other:
/// `rules.dns` win only on the ports that they name.
fn left_open(
    scene: &Scene<'_>,
    on: &AskedOn,
    lists: &Lists<'_>,
    place: &Place<'_>,
    item: &Item,
    all: &mut Vec<Advice>,
) {
    let mut see = |at: &RuleRef, carried: Carried| {
        let open = lists.open(scene, place, item, carried);
        let Some((list, _)) = open.first() else { return };
        let shown = |(_, carrier): &(List<'_>, Protocol)| format!("{DNS}/{}", protocol(*carrier));
        let text = format!(
            "{} at {} lists the names that a server of this rule may be asked for, but rules.dns win only on the ports \
             that they name: here {} is open, for every name; write protocol: ANY there",
            list.entry.at.0.path,
            list.entry.at.0.place,
            open.iter().map(shown).collect::<Vec<_>>().join(" and "),
        );
        all.push(Advice { at: at.clone(), kind: TWO_MINDS, text });
    };
    match &item.ports {
        Ports::All => see(&item.at, [true; 2]),
        Ports::These(entries) => {
            for entry in entries.iter().filter(|entry| entry.dns.is_none() && entry.service.is_none()) {
                // The same peers and port are told otherwise.
                if !lists.beside(place, item, entry).is_some_and(|(_, same)| same) {
                    see(&entry.at, on.carried(entry, false));
                }
            }
        }
    }
}

/// The `rules.dns` that leave names out, for each bundle those of its pods; of several for equal peers the first.
struct Lists<'w>(Vec<Vec<List<'w>>>);

/// A `rules.dns`.
#[derive(Clone, Copy)]
struct List<'w> {
    item: &'w Item,
    entry: &'w PortRule,
    /// Whether it, or another one for equal peers, leaves nothing out.
    everything: bool,
    /// On which ports it, or another one for equal peers, may be asked.
    carried: Carried,
}

impl<'w> Lists<'w> {
    fn new(together: &Together<'w>, on: &AskedOn) -> Lists<'w> {
        let of_rules = |bundle| {
            let mut all: Vec<List<'w>> = Vec::new();
            for item in together.rules(bundle).flat_map(|(_, rule)| &rule.egress.allow) {
                let Ports::These(entries) = &item.ports else { continue };
                for entry in entries {
                    let Some(names) = entry.dns.as_ref().filter(|names| !names.is_empty()) else { continue };
                    let everything = names.iter().any(|name| name.pattern.is_bare());
                    let carried = on.carried(entry, true);
                    add(&mut all, List { item, entry, everything, carried });
                }
            }
            all
        };
        let own: Vec<Vec<List<'w>>> = (0..together.bundles.len()).map(of_rules).collect();
        let merged = together.bundles.iter().map(|bundle| {
            let mut all = Vec::new();
            let mut seen = HashSet::new();
            for other in bundle.sets.iter().flat_map(|set| &together.sets[*set].bundles) {
                if seen.insert(*other) {
                    own[*other].iter().for_each(|list| add(&mut all, *list));
                }
            }
            all.retain(|list| !list.everything);
            all
        });
        Lists(merged.collect())
    }

    /// A list for a server that an entry of another item allows, too, and whether it is for the same peers and port.
    fn beside(&self, place: &Place<'_>, item: &Item, entry: &PortRule) -> Option<(List<'w>, bool)> {
        let others = self.0[place.bundle].iter().filter(|list| list.item.at != item.at);
        let same = |list: &List<'_>| shares(&list.item.peers, &item.peers) && on_one_port(list.entry, entry);
        let meets = |list: &List<'_>| {
            let (one, other) = (&list.item.peers, &item.peers);
            shares(one, other) || peers_cover(one, other) || peers_cover(other, one)
        };
        let (mut same_here, mut met) = (others.clone().filter(|list| same(list)), others.filter(|list| meets(list)));
        same_here.next().map(|list| (*list, true)).or_else(|| met.next().map(|list| (*list, false)))
    }

    /// The carriers by which a server of some list may be asked for every name if these are open to an item's peers, each
    /// with that list.
    fn open(&self, scene: &Scene<'_>, place: &Place<'_>, item: &Item, carried: Carried) -> Vec<(List<'w>, Protocol)> {
        let has_server = |list: &&List<'_>| {
            let (listed, peers) = (&list.item.peers, &item.peers);
            let narrower = || matches!(peers, Peers::Endpoints(_)) && may_answer(peers, false);
            list.carried.contains(&true)
                && (shares(listed, peers) || peers_cover(peers, listed) || narrower() && peers_cover(listed, peers))
        };
        let met: Vec<&List<'_>> = self.0[place.bundle].iter().filter(has_server).collect();
        let Some(first) = met.first() else { return Vec::new() };
        let is_denied = |carrier: Protocol| {
            let at = item.at.clone();
            let ports = [(carrier, Port::Block(PortBlock::one(DNS)))].into();
            let ports = Ports::These(vec![PortRule { at: at.clone(), ports, service: None, dns: None }]);
            shadow::is_denied(scene, place, Direction::Egress, &Item { at, peers: first.item.peers.clone(), ports })
        };
        let left = CARRIERS.into_iter().enumerate().filter(|(number, carrier)| {
            carried[*number] && !met.iter().any(|list| list.carried[*number]) && !is_denied(*carrier)
        });
        left.map(|(_, carrier)| (**first, carrier)).collect()
    }
}

fn add<'w>(all: &mut Vec<List<'w>>, list: List<'w>) {
    match all.iter_mut().find(|known| known.item.peers == list.item.peers) {
        Some(known) => {
            known.everything |= list.everything;
            known.carried = [0, 1].map(|carrier| known.carried[carrier] || list.carried[carrier]);
        }
        None => all.push(list),
    }
}

/// Whether two items name the same peers, or some of them.
fn shares(one: &Peers, other: &Peers) -> bool {
    match (one, other) {
        (Peers::Endpoints(one), Peers::Endpoints(other)) | (Peers::Nodes(one), Peers::Nodes(other)) => {
            one.iter().any(|selector| other.contains(selector))
        }
        (Peers::Networks(one), Peers::Networks(other)) => one.iter().any(|block| other.contains(block)),
        (Peers::Entities(one), Peers::Entities(other)) => !one.is_disjoint(other),
        (Peers::Services(one), Peers::Services(other)) => one.iter().any(|service| other.contains(service)),
        (one, other) => one == other,
    }
}

/// Whether a port stands in both, written alike: only then the two are merged.
fn on_one_port(one: &PortRule, other: &PortRule) -> bool {
    !one.ports.is_disjoint(&other.ports)
}

/// What the rules of a bundle let its pods ask.
struct Asked {
    /// Whether one of them shuts egress by default.
    shut: bool,
    /// Whether some server may be asked at all.
    anyone: bool,
    /// Whether one may be asked for everything, by a rule that names its port.
    everything: bool,
    /// The same, by a rule that opens its port among others.
    wide: bool,
    /// Whether one has `rules.dns`.
    ruled: bool,
    patterns: PatternTrie<()>,
    /// As they were written: the same text needs no trying.
    texts: HashSet<String>,
}

impl Asked {
    fn of<'r>(rules: impl Iterator<Item = &'r Rule>, on: &AskedOn) -> Asked {
        let patterns = PatternTrie::new(Bare::Every);
        let texts = HashSet::new();
        let mut asked =
            Asked { shut: false, anyone: false, everything: false, wide: false, ruled: false, patterns, texts };
        for rule in rules {
            asked.shut |= rule.egress.default_deny;
            rule.egress.allow.iter().for_each(|item| asked.item(item, on));
        }
        asked
    }

    fn item(&mut self, item: &Item, on: &AskedOn) {
        match &item.ports {
            Ports::All => self.plain(item, false),
            Ports::These(entries) => entries.iter().for_each(|entry| self.entry(item, entry, on)),
        }
    }

    fn entry(&mut self, item: &Item, entry: &PortRule, on: &AskedOn) {
        let Some(names) = &entry.dns else {
            let explicit = entry.ports.iter().any(|port| on.names(port));
            if explicit || on.carried(entry, false).contains(&true) {
                self.plain(item, explicit);
            }
            return;
        };
        if !on.carried(entry, true).contains(&true) {
            return; // nobody asks there
        }
        self.ruled |= may_answer(&item.peers, true) && !names.is_empty();
        self.anyone |= self.ruled;
        for name in names {
            self.patterns.insert(name.pattern.clone(), (), None);
            self.texts.insert(name.pattern.as_str().to_ascii_lowercase());
        }
    }

    /// A rule that lets DNS pass without speaking of it.
    fn plain(&mut self, item: &Item, explicit: bool) {
        let reaches = may_answer(&item.peers, explicit);
        self.anyone |= reaches;
        *(if explicit { &mut self.everything } else { &mut self.wide }) |= reaches;
    }

    /// Which of the names that stand for a pattern may be asked for: a bit for each. `wide`: rules that open the port among
    /// others count.
    fn share(&self, wanted: &Wanted, wide: bool) -> u32 {
        if self.everything || wide && self.wide || self.texts.contains(&wanted.text) {
            return wanted.all();
        }
        let may_ask = |name: &Name| self.patterns.matches(name).next().is_some();
        let numbered = wanted.names.iter().enumerate().filter(|(_, name)| may_ask(name));
        numbered.fold(0, |all, (number, _)| all | 1 << number)
    }
}

/// A pattern, as it is looked for in `rules.dns`.
struct Wanted {
    text: String,
    names: Vec<Name>,
}

impl Wanted {
    fn of(pattern: &Pattern) -> Wanted {
        Wanted { text: pattern.as_str().to_ascii_lowercase(), names: examples(pattern) }
    }

    /// A bit for each name.
    fn all(&self) -> u32 {
        (1 << self.names.len()) - 1
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
        let mut asked = Asked::of([].into_iter(), &AskedOn::new(&World::default()));
        for text in by {
            asked.patterns.insert(Pattern::pattern(text).unwrap(), (), None);
        }
        let wanted = Wanted::of(&Pattern::pattern(pattern).unwrap());
        assert_eq!(asked.share(&wanted, true) == wanted.all(), expected, "{pattern} by {by:?}");
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
