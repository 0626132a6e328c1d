//! Rows that are changed in place, stopped after each single row: never is more open than before or after.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use namegate::engine::bits::Bits;
use namegate::engine::ruleset::{Direction, PeerId, Protocol, RuleSet, ServiceRow, ServiceVerdict};
use namegate::kernel::change::{Moves, PeerRows, RowChange};
use namegate::kernel::rules::EndpointRow;

use super::bench::{Bench, IFINDEX, no_rules, pod_for, port};
use super::frames::{SYN, TCP, from_pod, tcp, to_pod};
use super::reference::Random;

const CASES: usize = 400;
const SEED: u64 = 11;
const ADDRESSES: [&str; 8] = [
    "203.0.113.8",
    "203.0.113.9",
    "203.0.113.10",
    "203.0.113.12",
    "203.0.113.14",
    "198.18.0.1",
    "2001:db8:9::1",
    "2001:db8:9::2",
];
const NETWORKS: [&str; 9] = [
    "0.0.0.0/0",
    "203.0.113.0/24",
    "203.0.113.8/29",
    "203.0.113.8/30",
    "203.0.113.8/31",
    "203.0.113.9/32",
    "203.0.113.12/30",
    "::/0",
    "2001:db8:9::/64",
];
const PORTS: [u16; 3] = [80, 443, 8080];
const PEERS: [u32; 4] = [16, 17, 18, 19];
/// Groups of the rule sets: three that allow, one that denies.
const BITS: [u8; 4] = [1, 2, 3, 4];

/// What can be opened: which way, an address, a port.
type Open = BTreeSet<(Direction, IpAddr, u16)>;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn bits(random: &mut Random) -> Bits {
    BITS.iter().filter(|_| random.chance(45)).fold(Bits::NONE, |bits, bit| bits | Bits::of(*bit))
}

fn peers(random: &mut Random) -> PeerRows {
    let mut rows = PeerRows::new();
    for text in ADDRESSES {
        match random.below(10) {
            0..3 => {}
            3..5 => drop(rows.insert(address(text), PeerId::SERVICE)),
            _ => drop(rows.insert(address(text), PeerId(random.of(&PEERS)))),
        }
    }
    rows
}

/// Rows of the same groups and ports, and everything else at random.
fn rules(random: &mut Random, known: &PeerRows) -> RuleSet {
    let any = |bits: &[u8]| bits.iter().fold(Bits::NONE, |all, bit| all | Bits::of(*bit));
    let mut rules = RuleSet { known: Arc::new(known.clone()), ..no_rules() };
    rules.ports = vec![
        port(Direction::Egress, Protocol::Tcp, 80, any(&[1, 2]), any(&[4])),
        port(Direction::Egress, Protocol::Tcp, 443, any(&[2]), Bits::NONE),
        port(Direction::Ingress, Protocol::Tcp, 8080, any(&[3]), any(&[4])),
    ];
    let rows = PEERS.iter().map(|id| (PeerId(*id), bits(random))).collect::<Vec<_>>();
    rules.peers = rows.into_iter().filter(|row| !row.1.is_empty()).collect();
    let networks: BTreeMap<IpNet, Bits> = NETWORKS
        .iter()
        .filter(|_| random.chance(50))
        .map(|text| text.parse().expect("a network"))
        .collect::<Vec<IpNet>>()
        .into_iter()
        .map(|network| (network, bits(random)))
        .collect();
    rules.cidrs = networks.into_iter().collect();
    for text in ADDRESSES {
        if random.chance(40) {
            let verdict = random.of(&[ServiceVerdict::Allow, ServiceVerdict::Deny]);
            rules.services.push(ServiceRow { address: address(text), protocol: Protocol::Tcp, port: 80, verdict });
        }
    }
    rules.services.sort_unstable();
    rules
}

/// Some of the old rows and some of the new.
fn mixed(random: &mut Random, old: &RuleSet, new: RuleSet) -> RuleSet {
    let mut mixed = new;
    if random.chance(40) {
        mixed.cidrs.clone_from(&old.cidrs);
    }
    if random.chance(40) {
        mixed.services.clone_from(&old.services);
    }
    if random.chance(30) {
        mixed.peers.clone_from(&old.peers);
    }
    mixed
}

/// Everything that a fresh packet may open now, asked of the programs themselves; no flow is made.
fn open(bench: &Bench) -> Open {
    let mut open = Open::new();
    for remote in ADDRESSES.map(address) {
        let pod = pod_for(remote);
        for port in PORTS {
            for direction in [Direction::Egress, Direction::Ingress] {
                let frame = match direction {
                    Direction::Egress => from_pod(pod, remote, TCP, &tcp(40000, port, 1, SYN)),
                    Direction::Ingress => to_pod(remote, pod, TCP, &tcp(40000, port, 1, SYN)),
                };
                if bench.kernel.run(direction, &frame, IFINDEX, 1, true).expect("a run").action == -1 {
                    open.insert((direction, remote, port));
                }
            }
        }
    }
    open
}

/// What the rule set says, without the kernel.
fn wanted(rules: &RuleSet) -> Open {
    let mut open = Open::new();
    for remote in ADDRESSES.map(address) {
        for port in PORTS {
            for direction in [Direction::Egress, Direction::Ingress] {
                if rules.evaluate(direction, remote, Protocol::Tcp, port, Bits::NONE).passes() {
                    open.insert((direction, remote, port));
                }
            }
        }
    }
    open
}

pub fn no_row_that_is_changed_in_place_opens_more_than_before_or_after() {
    let mut random = Random(SEED);
    let mut bench = Bench::new();
    let (mut rows, mut between) = (0, 0);
    let mut before_peers = PeerRows::new();
    for case in 0..CASES {
        let id = 1000 + case as u32;
        let old_peers = peers(&mut random);
        let old = rules(&mut random, &old_peers);
        // Now and then most addresses stay where they are: then single rows are looked at.
        let new_peers = if random.chance(40) { old_peers.clone() } else { peers(&mut random) };
        let new = rules(&mut random, &new_peers);
        let new = mixed(&mut random, &old, new);
        let new = RuleSet { known: Arc::new(new_peers.clone()), ..new };

        bench.kernel.write_rules(id, &old).expect("old rows");
        bench.row.policy_id = id;
        bench.row.flags = EndpointRow::flags_of(&old);
        bench.flip();
        let moves = Moves::between(&before_peers, &old_peers);
        bench.kernel.change_rows(&[], &moves, || (), || ()).expect("addresses move");
        let before = open(&bench);
        assert_eq!(before, wanted(&old), "case {case}");

        let moves = Moves::between(&old_peers, &new_peers);
        if old.cidrs.is_empty() != new.cidrs.is_empty() {
            assert_eq!(RowChange::between(id, &old, &new, &moves), None, "the endpoint's row would be another");
            before_peers = old_peers;
            continue;
        }
        let change = RowChange::between(id, &old, &new, &moves).expect("only rows that can be changed in place differ");
        let either: Open = before.union(&wanted(&new)).copied().collect();
        bench
            .kernel
            .change_rows(
                &[change],
                &moves,
                || (),
                || {
                    let seen = open(&bench);
                    let beyond: Vec<_> = seen.difference(&either).collect();
                    assert!(beyond.is_empty(), "case {case}: {beyond:?}\n{old:#?}\n{new:#?}");
                    rows += 1;
                    between += usize::from(seen != before && seen != wanted(&new));
                },
            )
            .expect("rows are changed");
        assert_eq!(open(&bench), wanted(&new), "case {case}");
        bench.kernel.delete_rules_except(&[]).expect("old rows go");
        before_peers = new_peers;
    }
    println!("{rows} rows were changed in place; after {between} of them things were neither as before nor as after");
    assert!(between > 100, "a test of nothing: {rows} rows, {between} between");
}
