//! A reload, stopped between each two steps: never is more open than before or after it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use namegate::clock;
use namegate::cluster::files::File;
use namegate::cluster::snapshot::{LastGood, OnInvalid, assemble};
use namegate::engine::answer::Learned;
use namegate::engine::compile::{compile, transition};
use namegate::engine::endpoint::PodRef;
use namegate::engine::fqdn::{Caps, FqdnTable, Timing};
use namegate::engine::name::Name;
use namegate::engine::ruleset::{Direction, Group, RuleSet};
use namegate::engine::world::PeerIds;
use namegate::kernel::GrantStore;
use namegate::kernel::rules::EndpointRow;

use super::bench::{Bench, ENDPOINT, IFINDEX, pod4};
use super::frames::{SYN, TCP, UDP, from_pod, tcp, udp};
use super::reference::Random;

const PAIRS: usize = 150;
const SEED: u64 = 7;
const NAMES: [&str; 5] = ["a.example", "b.example", "c.example", "d.other.example", "e.other.example"];
const PATTERNS: [&str; 7] =
    ["a.example", "b.example", "c.example", "*.example", "**.example", "*.other.example", "e.*.example"];
const PORTS: [u16; 4] = [80, 443, 5432, 8443];

/// What can be opened: an address, a port, and whether by TCP.
type Open = BTreeSet<(IpAddr, u16, bool)>;

fn address(name: usize) -> IpAddr {
    IpAddr::from([203, 0, 113, 10 + name as u8])
}

/// A pod and a random policy: items of some patterns and some ports, a CIDR now and then, a deny now and then.
fn policy(random: &mut Random) -> String {
    let mut text = String::from(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {app: web}}\n\
         status: {podIPs: [{ip: 198.51.100.10}]}\n---\n\
         apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web, namespace: shop}\n\
         spec:\n  endpointSelector: {matchLabels: {app: web}}\n  egress:\n",
    );
    for _ in 0..1 + random.below(4) {
        let some: Vec<&str> = PATTERNS.iter().copied().filter(|_| random.chance(35)).collect();
        if some.is_empty() {
            text += &format!("  - toCIDR: [203.0.113.{}/32]\n", 10 + random.below(NAMES.len()));
        } else {
            let patterns: Vec<String> = some.iter().map(|pattern| format!("{{matchPattern: \"{pattern}\"}}")).collect();
            text += &format!("  - toFQDNs: [{}]\n", patterns.join(", "));
        }
        let mut ports = Vec::new();
        for port in PORTS.iter().filter(|_| random.chance(40)).collect::<Vec<_>>() {
            ports.push(format!("{{port: \"{port}\", protocol: {}}}", random.of(&["TCP", "UDP", "ANY"])));
        }
        if !ports.is_empty() {
            text += &format!("    toPorts: [{{ports: [{}]}}]\n", ports.join(", "));
        }
    }
    if random.chance(50) {
        text += &format!(
            "  egressDeny:\n  - toCIDR: [203.0.113.{}/32]\n    toPorts: [{{ports: [{{port: \"443\", protocol: TCP}}]}}]\n",
            10 + random.below(NAMES.len())
        );
    }
    text
}

fn rules(text: &str, history: &[Group]) -> RuleSet {
    let file = File { name: "web.yaml".into(), content: Ok(text.as_bytes().to_vec()) };
    let snapshot = assemble(&[file], &LastGood::default(), OnInvalid::Refuse);
    assert!(snapshot.refusals.is_empty(), "{text}\n{:?}", snapshot.refusals);
    let pod = PodRef { namespace: "shop".into(), name: "web".into() };
    compile(&snapshot.world, &pod, &mut PeerIds::default(), history).expect("it compiles")
}

/// Everything that a fresh packet may open now, asked of the program itself; no flow is made.
fn open(bench: &Bench) -> Open {
    let mut open = Open::new();
    for to in (0..NAMES.len()).map(address) {
        for port in PORTS {
            for is_tcp in [true, false] {
                let frame = match is_tcp {
                    true => from_pod(pod4(), to, TCP, &tcp(40000, port, 1, SYN)),
                    false => from_pod(pod4(), to, UDP, &udp(40000, port, 8)),
                };
                if bench.kernel.run(Direction::Egress, &frame, IFINDEX, 1, true).expect("a run").action == -1 {
                    open.insert((to, port, is_tcp));
                }
            }
        }
    }
    open
}

pub fn no_step_of_a_reload_opens_more_than_before_or_after() {
    let mut random = Random(SEED);
    let mut bench = Bench::new();
    let mut moved = BTreeMap::new();
    for pair in 0..PAIRS {
        let (old_text, new_text) = (policy(&mut random), policy(&mut random));
        let old = Arc::new(rules(&old_text, &[]));
        let new = Arc::new(rules(&new_text, &old.groups));
        let (old_id, new_id) = (1000 + 2 * pair as u32, 1001 + 2 * pair as u32);

        // Before: every name was looked up under the old rules.
        bench.kernel.delete_all_grants().expect("no grants");
        let mut table = FqdnTable::new(Caps::default());
        for (index, name) in NAMES.iter().enumerate() {
            let learned = Learned {
                name: Name::parse(name).expect("a name"),
                addresses: vec![address(index)],
                ttl: 60 + index as u32,
            };
            let plan = table.plan(&learned, &old, clock::mono(), &Timing::default()).expect("room");
            bench.kernel.install(ENDPOINT, plan.writes()).expect("grants");
            table.record(plan);
        }
        let flip = |bench: &mut Bench, rules: &RuleSet, id: u32| {
            bench.row.policy_id = id;
            bench.row.generation += 1;
            bench.row.flags = EndpointRow::flags_of(rules) & !namegate::kernel::abi::flag::STEER;
            bench.flip();
        };
        bench.kernel.write_rules(old_id, &old).expect("old rows");
        flip(&mut bench, &old, old_id);
        let before = open(&bench);

        let mut steps = Vec::new();
        bench.kernel.write_rules(new_id, &new).expect("new rows");
        steps.push(("new rows", open(&bench)));
        let (adding, clearing) = (transition(&old, &new), transition(&new, &old));
        let (adding_id, clearing_id) = (new_id + 100_000, new_id + 200_000);
        if let Some(adding) = &adding {
            bench.kernel.write_rules(adding_id, adding).expect("rows while bits are added");
            flip(&mut bench, adding, adding_id);
            steps.push(("new denies", open(&bench)));
        }
        let regroup = table.regroup(&new, &[], clock::mono());
        bench.kernel.install(ENDPOINT, regroup.widened.writes()).expect("widened");
        table.record(regroup.widened);
        steps.push(("bits added", open(&bench)));
        match &clearing {
            Some(clearing) => {
                bench.kernel.write_rules(clearing_id, clearing).expect("rows while bits are cleared");
                flip(&mut bench, clearing, clearing_id);
            }
            None => flip(&mut bench, &new, new_id),
        }
        steps.push(("flipped", open(&bench)));
        bench.kernel.install(ENDPOINT, regroup.narrowed.writes()).expect("narrowed");
        table.record(regroup.narrowed);
        if clearing.is_some() {
            steps.push(("bits cleared", open(&bench)));
            flip(&mut bench, &new, new_id);
        }
        let after = open(&bench);
        bench.kernel.delete_rules_except(&[new_id]).expect("old rows go");
        assert_eq!(open(&bench), after, "old rows meant something");

        let either: Open = before.union(&after).copied().collect();
        for (step, seen) in &steps {
            let beyond: Vec<_> = seen.difference(&either).collect();
            assert!(beyond.is_empty(), "pair {pair}, after {step}: {beyond:?}\n{old_text}\n{new_text}");
            *moved.entry(*step).or_insert(0) += usize::from(*seen != before && *seen != after);
        }
        let kept: Open = before.intersection(&after).copied().collect();
        for (step, seen) in &steps {
            let lost: Vec<_> = kept.difference(seen).collect();
            assert!(lost.is_empty(), "pair {pair}, after {step}: shut for a moment: {lost:?}");
        }
        // The control: what is open is what the new policy opens to someone who has learned what the old one let learn.
        assert_eq!(after, wanted(&new, &old), "pair {pair}\n{old_text}\n{new_text}");
    }
    println!("steps that were neither before nor after: {moved:?}");
}

/// What the rule set says of every combination, without the kernel. Names that no selector of `old` selects were never
/// learned.
fn wanted(rules: &RuleSet, old: &RuleSet) -> Open {
    use namegate::engine::ruleset::Protocol;
    let mut open = Open::new();
    for (index, name) in NAMES.iter().enumerate() {
        let name = Name::parse(name).expect("a name");
        let learned = !old.groups_of(&name).is_empty();
        let groups = if learned { rules.groups_of(&name) } else { namegate::engine::bits::Bits::NONE };
        for port in PORTS {
            for (protocol, is_tcp) in [(Protocol::Tcp, true), (Protocol::Udp, false)] {
                if rules.evaluate(Direction::Egress, address(index), protocol, port, groups).passes() {
                    open.insert((address(index), port, is_tcp));
                }
            }
        }
    }
    open
}
