//! Names: which may be asked for, and what they open.

use super::*;

/// A name of each pattern of both: whether it may be asked for, and the ports that it opens `outside`, where no block is.
pub(super) fn names<'w>(
    halves: [&Half<'_, 'w>; 2],
    outside: [[IpAddr; 2]; 2],
    endpoints: &BTreeSet<String>,
    found: &mut Found,
) {
    let [was, is] = halves;
    let mut patterns: BTreeSet<String> = BTreeSet::new();
    for rules in [was.rules, is.rules] {
        patterns.extend(rules.groups.iter().flat_map(|group| group.names.iter().cloned()));
        let asked = rules.dns.iter().flat_map(|rule| rule.patterns.iter());
        patterns.extend(asked.map(|found| found.pattern.to_string()));
    }
    let cuts = Cuts::new([was.rules, is.rules], Direction::Egress);
    let mut asked: BTreeMap<[Bits; 2], Vec<(String, bool)>> = BTreeMap::new();
    for pattern in patterns {
        let Some(example) = example(&pattern) else { continue };
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
        let asks = [was, is].map(|half| may_ask(half, &example));
        for allowed in [true, false] {
            let mut what: Vec<String> = Vec::new();
            if asks == [!allowed, allowed] {
                what.push("query".to_owned());
            }
            what.extend(ports.iter().filter(|(_, to)| *to == allowed).map(|(port, _)| port.clone()));
            if !what.is_empty() {
                let (pattern, example) = (pattern.clone(), shown(&example));
                let change = NameChange { endpoints: Vec::new(), pattern, example, what, allowed };
                found.names.entry(change).or_default().extend(endpoints.iter().cloned());
            }
        }
    }
}

fn shown(name: &Name) -> String {
    name.to_string().trim_end_matches('.').to_owned()
}

/// Whether the name may be asked for of any server that the rules speak of.
fn may_ask(half: &Half<'_, '_>, name: &Name) -> bool {
    let (one, rules) = (half.explainer, half.rules);
    let named = rules.resolvers().into_iter().filter(|(_, _, ports)| ports.holds(53)).map(|(address, ..)| address);
    let servers: BTreeSet<IpAddr> = one
        .surroundings
        .proxied
        .iter()
        .copied()
        .chain(named)
        .chain([crate::engine::explain::outside(rules, false)])
        .collect();
    servers.into_iter().any(|server| {
        [Protocol::Udp, Protocol::Tcp].into_iter().any(|protocol| match rules.steered() {
            true => rules.judge(SocketAddr::new(server, 53), protocol, (name, 1, CLASS_IN)).is_ok(),
            false => rules.evaluate(Direction::Egress, server, protocol, 53, Bits::NONE).passes(),
        })
    })
}

/// A name that a pattern matches.
fn example(pattern: &str) -> Option<Name> {
    let text = pattern.trim_end_matches('.');
    if text.bytes().all(|octet| octet == b'*') {
        return Name::parse("any.example").ok();
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
