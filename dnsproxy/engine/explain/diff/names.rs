//! Names: which may be asked for, and what they open.

use super::*;
use crate::engine::port::holds;

/// Which names a server may be asked for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Asks {
    /// None: it is not open on port 53.
    Nothing,
    /// Any: nobody looks at the queries.
    Anything,
    /// Those that these rules let through, by their places in [`RuleSet::dns`].
    By(Vec<usize>),
}

/// Servers of which the same names may be asked, before and now.
struct Alike {
    protocol: Protocol,
    asks: [Asks; 2],
    /// One of them, before and now.
    at: [IpAddr; 2],
    labels: BTreeSet<String>,
}

/// A name of each pattern of both, and one that none selects: whether it may be asked for, and the ports that it opens
/// `outside`, where no block is. `servers`: whom to ask, before and now.
pub(super) fn names<'w>(
    halves: [&Half<'_, 'w>; 2],
    servers: impl Iterator<Item = (String, [IpAddr; 2])>,
    outside: [[IpAddr; 2]; 2],
    endpoints: &BTreeSet<String>,
    found: &mut Found,
) {
    let [was, is] = halves;
    if !was.rules.steered() && !is.rules.steered() {
        return; // no name in either: that of port 53 is all there is, and it is told as a connection
    }
    let mut patterns: BTreeSet<String> = BTreeSet::new();
    for rules in [was.rules, is.rules] {
        patterns.extend(rules.groups.iter().flat_map(|group| group.names.iter().cloned()));
        let asked = rules.dns.iter().flat_map(|rule| rule.patterns.iter());
        patterns.extend(asked.map(|found| found.pattern.to_string()));
    }
    let other = other(halves);
    let servers = alike(halves, servers);
    let cuts = Cuts::new([was.rules, is.rules], Direction::Egress);
    let mut asked: BTreeMap<[Bits; 2], Vec<(String, bool)>> = BTreeMap::new();
    for pattern in &patterns {
        let Some(example) = example(pattern, other.as_ref()) else { continue };
        let bits = [was, is].map(|half| half.rules.groups_of(&example));
        let ports = asked.entry(bits).or_insert_with(|| {
            let mut list = Listed::default();
            for (v6, at) in [false, true].into_iter().zip(outside) {
                let passes = |port| {
                    let was = was.passes(Direction::Egress, at[0], port, bits[0]);
                    (was, is.passes(Direction::Egress, at[1], port, bits[1]))
                };
                list.note("", v6, &cuts.delta(v6, &BTreeSet::new(), passes));
            }
            let of = |((ports, allowed), families): ((Vec<String>, bool), BTreeSet<String>)| {
                let families: String = families.into_iter().collect();
                ports.into_iter().map(move |port| (format!("{port}{families}"), allowed))
            };
            list.lines().into_iter().flat_map(of).collect()
        });
        let verdicts = verdicts(halves, &servers, &example);
        let asks = [0, 1].map(|at: usize| verdicts.iter().any(|verdict| verdict[at]));
        for allowed in [true, false] {
            let mut what = match asks {
                [true, true] | [false, false] => queries(&servers, &verdicts, allowed),
                [_, is] if is == allowed => vec!["query".to_owned()],
                _ => Vec::new(),
            };
            what.extend(ports.iter().filter(|(_, to)| *to == allowed).map(|(port, _)| port.clone()));
            note((pattern, &example), what, allowed, endpoints, found);
        }
    }
    if let Some(other) = other.filter(|_| !patterns.iter().any(|pattern| is_every(pattern))) {
        let verdicts = verdicts(halves, &servers, &other);
        for allowed in [true, false] {
            note(("*", &other), queries(&servers, &verdicts, allowed), allowed, endpoints, found);
        }
    }
}

fn note(
    (pattern, example): (&str, &Name),
    what: Vec<String>,
    allowed: bool,
    endpoints: &BTreeSet<String>,
    found: &mut Found,
) {
    if !what.is_empty() {
        let (pattern, example) = (pattern.to_owned(), shown(example));
        let change = NameChange { endpoints: Vec::new(), pattern, example, what, allowed };
        found.names.entry(change).or_default().extend(endpoints.iter().cloned());
    }
}

fn shown(name: &Name) -> String {
    name.to_string().trim_end_matches('.').to_owned()
}

/// The servers that may be asked for anything, those that rules don't tell apart together.
fn alike(halves: [&Half<'_, '_>; 2], servers: impl Iterator<Item = (String, [IpAddr; 2])>) -> Vec<Alike> {
    let mut all: BTreeMap<(Protocol, [Asks; 2]), Alike> = BTreeMap::new();
    for (label, at) in servers {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let asks = [0, 1].map(|side: usize| asks(halves[side], at[side], protocol));
            if asks != [Asks::Nothing, Asks::Nothing] {
                let one = || Alike { protocol, asks: asks.clone(), at, labels: BTreeSet::new() };
                all.entry((protocol, asks.clone())).or_insert_with(one).labels.insert(label.clone());
            }
        }
    }
    all.into_values().collect()
}

fn asks(half: &Half<'_, '_>, server: IpAddr, protocol: Protocol) -> Asks {
    if !half.passes(Direction::Egress, server, (protocol, DNS), Bits::NONE) {
        return Asks::Nothing;
    }
    if !half.rules.steered() {
        return Asks::Anything;
    }
    let meant = half.rules.dns.iter().enumerate().filter(|(_, rule)| {
        rule.ports.iter().any(|wide| holds(*wide, protocol, DNS)) && rule.servers.hold(server, &half.rules.known)
    });
    Asks::By(meant.map(|(at, _)| at).collect())
}

/// Whether each of these servers may be asked for a name, before and now.
fn verdicts(halves: [&Half<'_, '_>; 2], servers: &[Alike], name: &Name) -> Vec<[bool; 2]> {
    let one = |server: &Alike| {
        [0, 1].map(|side: usize| match server.asks[side] {
            Asks::Nothing => false,
            Asks::Anything => true,
            Asks::By(_) => {
                let at = SocketAddr::new(server.at[side], DNS);
                halves[side].rules.judge(at, server.protocol, (name, 1, CLASS_IN)).is_ok()
            }
        })
    };
    servers.iter().map(one).collect()
}

/// Queries whose verdict is another now, at servers that are open both before and now: of the others it is the connection
/// that is told.
fn queries(servers: &[Alike], verdicts: &[[bool; 2]], allowed: bool) -> Vec<String> {
    let mut all: BTreeMap<Protocol, BTreeSet<&String>> = BTreeMap::new();
    let mut changed: BTreeMap<Protocol, BTreeSet<&String>> = BTreeMap::new();
    for (server, verdict) in servers.iter().zip(verdicts).filter(|(server, _)| !server.asks.contains(&Asks::Nothing)) {
        all.entry(server.protocol).or_default().extend(&server.labels);
        if *verdict == [!allowed, allowed] {
            changed.entry(server.protocol).or_default().extend(&server.labels);
        }
    }
    if changed == all {
        return all.iter().take(1).map(|_| "query".to_owned()).collect();
    }
    let to = |labels: &BTreeSet<&String>| {
        let labels: Vec<String> = labels.iter().map(ToString::to_string).collect();
        format!("query to {}", words::some(&labels, " or ", ""))
    };
    let over = |(protocol, labels): (&Protocol, &BTreeSet<&String>)| {
        let query = if all[protocol] == *labels { "query".to_owned() } else { to(labels) };
        format!("{query} over {}", words::protocol(*protocol))
    };
    match (changed.get(&Protocol::Udp), changed.get(&Protocol::Tcp)) {
        (Some(udp), Some(tcp)) if udp == tcp => vec![to(udp)],
        _ => changed.iter().map(over).collect(),
    }
}

/// Whether a pattern selects every name.
fn is_every(pattern: &str) -> bool {
    let text = pattern.trim_end_matches('.');
    !text.is_empty() && text.bytes().all(|octet| octet == b'*')
}

/// A name that no pattern selects, but those that select every one.
fn other(halves: [&Half<'_, '_>; 2]) -> Option<Name> {
    let is_free = |name: &Name| {
        halves.iter().all(|half| {
            let (names, dns) = (half.rules.names.matches(name), &half.rules.dns);
            names.map(|found| found.pattern.as_str()).all(is_every)
                && dns.iter().all(|rule| rule.patterns.matches(name).all(|found| is_every(found.pattern.as_str())))
        })
    };
    let more = (0..64).map(|number| format!("any-{number}.other-{number}"));
    let all = ["any.example", "any.test", "any.invalid"].map(str::to_owned).into_iter().chain(more);
    all.filter_map(|text| Name::parse(&text).ok()).find(is_free)
}

/// A name that a pattern matches: `other` if it is one of every name.
fn example(pattern: &str, other: Option<&Name>) -> Option<Name> {
    let text = pattern.trim_end_matches('.');
    if is_every(pattern) {
        return other.cloned().or_else(|| Name::parse("any.example").ok());
    }
    let labels: Vec<String> = text
        .split('.')
        .enumerate()
        .map(|(at, label)| match label {
            label if at == 0 && label.len() > 1 && label.bytes().all(|octet| octet == b'*') => "some.any".to_owned(),
            label if label.bytes().all(|octet| octet == b'*') => "any".to_owned(),
            label => label.replace('*', "x"),
        })
        .collect();
    Name::parse(&labels.join(".")).ok()
}
