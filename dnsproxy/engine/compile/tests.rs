//! Random worlds: what is compiled, asked as the kernel asks, must say what the policies say.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::engine::bits::Bits;
use crate::engine::labels::{NAMESPACE, Operator, Requirement, Selector, Source};
use crate::engine::name::Name;
use crate::engine::pattern::{Bare, Pattern, PatternTrie};
use crate::engine::policy::{NameRule, Policy, Port, PortRule, Ports, Section, Subject};
use crate::engine::port::{PortBlock, holds};
use crate::engine::reference::{self, Attempt};
use crate::engine::ruleset::{GroupKey, PacketVerdict, Protocol};
use crate::engine::verdict::RuleText;
use crate::engine::world::{EndpointSlice, Namespace, Node, Pod, Search, Service, ServicePort, SlicePort};

const NAMES: [&str; 4] = ["a.example", "b.example", "c.d.example", "e.test"];
const PORTS: [u16; 5] = [80, 8080, 53, 5353, 7];
const OUTSIDE: [&str; 6] =
    ["192.0.2.1", "192.0.2.200", "203.0.113.7", "2001:db8:ffff::1", "2001:db8:fffe::1", "198.51.100.250"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> RuleRef {
    RuleRef(Arc::new(RuleText { policy: text.to_owned(), ..RuleText::default() }))
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(
        prop::sample::select(vec!["app", "tier"]).prop_map(str::to_owned),
        prop::sample::select(vec!["x", "y"]).prop_map(str::to_owned),
        0..3,
    )
}

fn selector(reserved: bool) -> impl Strategy<Value = Selector> {
    let keys = vec!["app", "tier", NAMESPACE, "io.cilium.k8s.namespace.labels.team"];
    let values =
        || prop::collection::btree_set(prop::sample::select(vec!["x", "y", "one"]).prop_map(str::to_owned), 1..3);
    let operator = prop_oneof![
        4 => values().prop_map(Operator::In),
        1 => values().prop_map(Operator::NotIn),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
    ];
    let requirement = (prop::sample::select(keys), operator).prop_map(|(key, operator)| Requirement {
        source: Source::Any,
        key: key.to_owned(),
        operator,
    });
    let by_reserved = prop::sample::select(vec!["host", "remote-node"]).prop_map(|key| Selector {
        requirements: vec![Requirement { source: Source::Reserved, key: key.to_owned(), operator: Operator::Exists }],
    });
    prop_oneof![
        9 => prop::collection::vec(requirement, 0..3).prop_map(|requirements| Selector { requirements }),
        u32::from(reserved) => by_reserved,
    ]
}

fn names() -> impl Strategy<Value = Vec<NameRule>> {
    let pattern = prop::sample::select(vec!["a.example", "*.example", "**.example", "*", "E.test"]);
    prop::collection::vec(pattern, 0..3).prop_map(|patterns| {
        patterns.iter().map(|p| NameRule { at: at(p), pattern: Pattern::pattern(p).unwrap() }).collect()
    })
}

fn peers(names_too: bool) -> impl Strategy<Value = Peers> {
    let networks = vec!["0.0.0.0/0", "192.0.2.0/24", "192.0.2.128/25", "10.0.0.0/8", "::/0", "2001:db8:ffff::/48"];
    let entities = vec![Entity::All, Entity::World, Entity::Cluster, Entity::Host];
    prop_oneof![
        1 => Just(Peers::Any),
        3 => prop::collection::vec(selector(true), 0..3).prop_map(Peers::Endpoints),
        2 => prop::collection::vec(prop::sample::select(networks).prop_map(|n| n.parse::<ipnet::IpNet>().unwrap().into()), 0..3)
            .prop_map(Peers::Networks),
        2 => prop::collection::btree_set(prop::sample::select(entities), 0..2).prop_map(Peers::Entities),
        2 * u32::from(names_too) => names().prop_map(Peers::Names),
    ]
}

fn port_rule(dns_too: bool) -> impl Strategy<Value = PortRule> {
    let protocols = vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let port = (prop::sample::select(protocols), prop::sample::select(vec![80_u16, 8080, 53, 5353, 0]));
    let dns = prop_oneof![3 => Just(None), u32::from(dns_too) => names().prop_map(Some)];
    (prop::collection::btree_set(port, 0..4), dns).prop_map(|(ports, dns)| {
        let ports = ports.into_iter().map(|(protocol, port)| (protocol, Port::Block(PortBlock::from(port)))).collect();
        PortRule { at: at("ports"), ports, service: None, dns }
    })
}

fn item(deny: bool, egress: bool) -> impl Strategy<Value = Item> {
    let ports = prop_oneof![
        1 => Just(Ports::All),
        3 => prop::collection::vec(port_rule(!deny && egress), 0..3).prop_map(Ports::These),
    ];
    (peers(!deny && egress), ports).prop_map(|(peers, ports)| Item { at: at("item"), peers, ports })
}

fn section(egress: bool) -> impl Strategy<Value = Section> {
    let some = (prop::collection::vec(item(false, egress), 0..4), prop::collection::vec(item(true, egress), 0..2))
        .prop_map(|(allow, deny)| Section {
            default_deny: !(allow.is_empty() && deny.is_empty()),
            allow,
            deny,
            unenforced: vec![],
        });
    // A denial without default deny can't be written yet; the compiler must not care.
    let soft = prop::collection::vec(item(true, egress), 0..2).prop_map(|deny| Section {
        default_deny: false,
        allow: Vec::new(),
        deny,
        unenforced: Vec::new(),
    });
    prop_oneof![8 => some, 1 => soft, 1 => Just(Section::default())]
}

fn policy() -> impl Strategy<Value = Policy> {
    let namespace = prop::sample::select(vec![Some("one"), Some("one"), Some("two"), None]);
    let subject = prop_oneof![2 => Just(Selector::default()), 1 => selector(false)];
    (namespace, subject, section(true), section(false)).prop_map(|(namespace, selector, egress, ingress)| Policy {
        at: at("policy"),
        rules: vec![Rule {
            at: at("rule"),
            subject: Subject { namespace: namespace.map(str::to_owned), selector },
            egress,
            ingress,
        }],
    })
}

fn pod() -> impl Strategy<Value = Pod> {
    // Few addresses for many pods: some collide.
    let flags = prop::collection::vec(prop::bool::weighted(0.1), 3);
    (labels(), prop::collection::btree_set(1..12u8, 1..3), flags).prop_map(|(labels, hosts, flags)| Pod {
        labels,
        service_account: None,
        addresses: hosts
            .into_iter()
            .flat_map(|host| [ip(&format!("10.0.0.{host}")), ip(&format!("2001:db8:ffff::{host}"))])
            .collect(),
        node: None,
        host_network: flags[0],
        finished: flags[1],
        search: Search::default(),
        ports: Vec::new(),
        mode: None,
        readable: !flags[2],
        place: String::new(),
    })
}

fn service() -> impl Strategy<Value = (Service, EndpointSlice)> {
    let backend = prop_oneof![
        4 => (1..12u8).prop_map(|host| ip(&format!("10.0.0.{host}"))),
        1 => prop::sample::select(OUTSIDE.to_vec()).prop_map(ip),
        1 => Just(ip("198.18.0.1")),
    ];
    let flags = prop::collection::vec(prop::bool::weighted(0.05), 3);
    let endpoints = prop::collection::vec((prop::collection::vec(backend, 1..2), prop::bool::weighted(0.8)), 0..3);
    (prop::collection::btree_set(1..4u8, 1..3), endpoints, any::<bool>(), flags).prop_map(
        |(hosts, endpoints, other_ports, flags)| {
            let target = |plain: u16, other: u16| Some(if other_ports { other } else { plain });
            let service = Service {
                labels: BTreeMap::new(),
                selector: BTreeMap::new(),
                addresses: hosts
                    .into_iter()
                    .flat_map(|host| [ip(&format!("198.18.0.{host}")), ip(&format!("2001:db8:18::{host}"))])
                    .collect(),
                ports: vec![
                    ServicePort { name: "web".to_owned(), protocol: Protocol::Tcp, port: 80 },
                    ServicePort { name: "dns".to_owned(), protocol: Protocol::Udp, port: 53 },
                ],
                readable: !flags[0],
                place: String::new(),
            };
            let slice = EndpointSlice {
                service: (!flags[1]).then(|| "s".to_owned()),
                ports: vec![
                    SlicePort { name: "web".to_owned(), protocol: Protocol::Tcp, port: target(80, 8080) },
                    SlicePort { name: "dns".to_owned(), protocol: Protocol::Udp, port: target(53, 5353) },
                ],
                endpoints,
                readable: !flags[2],
                place: String::new(),
            };
            (service, slice)
        },
    )
}

pub(super) fn world() -> impl Strategy<Value = World> {
    let policies = || prop::collection::vec(policy(), 0..4);
    let teams = prop::collection::vec(prop::option::weighted(0.8, labels()), 2);
    (
        prop::collection::vec(pod(), 1..8),
        prop::collection::vec(service(), 0..3),
        policies(),
        prop::collection::vec(policy(), 0..2),
        teams,
    )
        .prop_map(|(pods, services, policies, refused, teams)| {
            let policies = policies.into_iter().map(Into::into).collect();
            let mut world = World { own_node: Some("here".to_owned()), policies, ..World::default() };
            // A refused policy keeps its denials and shuts; what it allowed must not matter.
            world.refused = refused.into_iter().map(Into::into).collect();
            for (name, address) in [("here", "198.51.100.1"), ("there", "198.51.100.2")] {
                world.nodes.insert(
                    name.to_owned(),
                    Node { labels: BTreeMap::new(), addresses: vec![ip(address)], place: String::new() },
                );
            }
            for (namespace, labels) in ["one", "two"].into_iter().zip(teams) {
                if let Some(labels) = labels {
                    let labels = labels.get("app").map(|team| ("team".to_owned(), team.clone())).into_iter().collect();
                    world
                        .namespaces
                        .insert(namespace.to_owned(), Namespace { labels, mode: None, place: String::new() });
                }
            }
            for (index, pod) in pods.into_iter().enumerate() {
                let namespace = if index % 3 == 2 { "two" } else { "one" }.to_owned();
                world.pods.insert(PodRef { namespace, name: format!("p{index}") }, pod);
            }
            for (namespace, (service, slice)) in ["one", "two"].into_iter().zip(services) {
                world.services.insert((namespace.to_owned(), "s".to_owned()), service);
                world.endpoint_slices.insert((namespace.to_owned(), "s-1".to_owned()), slice);
            }
            world
        })
}

/// Every address worth asking for.
fn addresses(world: &World) -> BTreeSet<IpAddr> {
    let mut addresses: BTreeSet<IpAddr> = OUTSIDE.iter().map(|text| ip(text)).collect();
    addresses.extend(world.holders().into_keys());
    addresses.extend(world.pods.values().flat_map(|pod| &pod.addresses));
    addresses.extend(world.services.values().flat_map(|service| &service.addresses));
    addresses
}

#[test]
fn the_compiled_rows_say_what_the_policies_say() {
    let seen: RefCell<BTreeMap<String, u64>> = RefCell::default();
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(150) });
    let grants = prop::sample::subsequence(NAMES.to_vec(), 0..3);
    runner
        .run(&(world(), grants), |(world, granted)| {
            let granted: Vec<Name> = granted.into_iter().map(|name| Name::parse(name).unwrap()).collect();
            let mut ids = PeerIds::default();
            let compiler = Compiler::new(&world, &mut ids);
            for (subject, pod) in &world.pods {
                let compiled = compiler.compile(subject, &[]);
                if pod.host_network {
                    prop_assert_eq!(compiled, Err(CompileError::HostNetwork(subject.clone())));
                    continue;
                }
                let rules = compiled.unwrap();
                let grants = granted.iter().fold(Bits::NONE, |bits, name| bits | rules.groups_of(name));
                for (address, direction) in addresses(&world)
                    .into_iter()
                    .flat_map(|address| [(address, Direction::Egress), (address, Direction::Ingress)])
                {
                    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp] {
                        for port in PORTS {
                            let egress = direction == Direction::Egress;
                            let granted = if egress { granted.as_slice() } else { &[] };
                            let attempt = Attempt { direction, address, protocol, port, granted };
                            let expected = reference::verdict(&world, subject, attempt).unwrap();
                            let grants = if egress { grants } else { Bits::NONE };
                            let verdict = rules.evaluate(direction, address, protocol, port, grants);
                            prop_assert_eq!(verdict, expected, "{} {:?}\n{:?}", subject, attempt, rules);
                            *seen.borrow_mut().entry(format!("{verdict:?}")).or_default() += 1;
                        }
                    }
                }
            }
            Ok(())
        })
        .unwrap();
    let seen = seen.into_inner();
    let all: u64 = seen.values().sum();
    println!("{all} verdicts: {seen:?}");
    for verdict in ["Denied", "NotAllowed", "Allowed", "DefaultAllowed", "Host"] {
        assert!(seen.get(verdict).is_some_and(|count| count * 200 >= all), "{verdict} too seldom: {seen:?}");
    }
}

/// Whether the policies let `subject` ask a server that is no Service, item by item.
fn asks(world: &World, subject: &PodRef, server: IpAddr, protocol: Protocol, port: u16, name: &Name) -> bool {
    let labels = world.labels(&Holder::Pod(subject.clone()));
    let rules = selecting(world, subject, &labels);
    // Ports and protocol aside, does the item mean the server? Asked of the reference by a world with that item only.
    let means = |item: &Item, deny: bool| {
        let only = Item { ports: Ports::All, ..item.clone() };
        let section = if deny {
            Section { default_deny: true, allow: vec![], deny: vec![only], unenforced: vec![] }
        } else {
            Section { default_deny: true, allow: vec![only], deny: vec![], unenforced: vec![] }
        };
        let rule = Rule { at: at("only"), subject: Subject::default(), egress: section, ingress: Section::default() };
        let only = World {
            policies: vec![Policy { at: at("only"), rules: vec![rule] }.into()],
            refused: vec![],
            ..world.clone()
        };
        let attempt = Attempt { direction: Direction::Egress, address: server, protocol, port, granted: &[] };
        let verdict = reference::verdict(&only, subject, attempt).unwrap();
        verdict == if deny { PacketVerdict::Denied } else { PacketVerdict::Allowed }
    };
    let matches = |names: &[NameRule]| {
        names.iter().any(|rule| {
            let mut trie = PatternTrie::new(Bare::Every);
            trie.insert(rule.pattern.clone(), (), None);
            trie.matches(name).next().is_some()
        })
    };
    let mut allowed = false;
    for (item, deny) in items(&rules, Direction::Egress) {
        let plain = item.ports.plain().into_iter().any(|wide| holds(wide, protocol, port));
        if deny && plain && means(item, true) {
            return false;
        }
        let by_dns =
            match &item.ports {
                Ports::All => false,
                Ports::These(entries) => entries.iter().any(|entry| {
                    entry.ports.iter().any(
                        |(wide, ports)| matches!(ports, Port::Block(block) if holds((*wide, *block), protocol, port)),
                    ) && entry.dns.as_deref().is_some_and(matches)
                }),
            };
        allowed |= !deny && (by_dns || (plain && port == 53)) && means(item, false);
    }
    allowed
}

#[test]
fn whom_a_workload_may_ask_is_what_the_policies_say() {
    let seen: RefCell<BTreeMap<bool, u64>> = RefCell::default();
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(300) });
    runner
        .run(&world(), |world| {
            let compiler = Compiler::new(&world, &mut PeerIds::default());
            let names: Vec<Name> = NAMES.iter().map(|name| Name::parse(name).unwrap()).collect();
            for (subject, _) in world.pods.iter().filter(|(_, pod)| !pod.host_network) {
                // All labels known and all policies read, or an allowance would have to be taken back here.
                let certain = World { namespaces: world.namespaces.clone(), ..world.clone() };
                let rules = compiler.compile(subject, &[]).unwrap();
                let surely = selecting(&certain, subject, &certain.labels(&Holder::Pod(subject.clone())))
                    .iter()
                    .all(|(_, found)| *found == Match::Yes);
                if !rules.steered() || !surely {
                    continue;
                }
                for server in addresses(&world) {
                    if rules.known.get(&server) == Some(&PeerId::SERVICE) {
                        continue;
                    }
                    for (protocol, port) in [(Protocol::Udp, 53), (Protocol::Tcp, 53), (Protocol::Udp, 5353)] {
                        for name in &names {
                            let expected = asks(&world, subject, server, protocol, port, name);
                            let answer = rules.may_ask(server, protocol, port, name);
                            prop_assert_eq!(answer.is_ok(), expected, "{} {} {} {:?}", subject, server, name, rules);
                            *seen.borrow_mut().entry(expected).or_default() += 1;
                        }
                    }
                }
            }
            Ok(())
        })
        .unwrap();
    let seen = seen.into_inner();
    assert!(seen.len() == 2 && seen.values().all(|count| *count > 500), "{seen:?}");
}

#[test]
fn a_bit_keeps_its_meaning_across_reloads() {
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(200) });
    runner
        .run(&(world(), world()), |(before, after)| {
            let subject = PodRef { namespace: "one".to_owned(), name: "p0".to_owned() };
            let mut ids = PeerIds::default();
            let Ok(old) = compile(&before, &subject, &mut ids, &[]) else { return Ok(()) };
            let Ok(new) = compile(&after, &subject, &mut ids, &old.groups) else { return Ok(()) };
            for group in &new.groups {
                for other in &old.groups {
                    prop_assert_eq!(group.key == other.key, group.bit == other.bit);
                }
            }
            let again = compile(&after, &subject, &mut ids, &old.groups);
            prop_assert_eq!(again, Ok(new), "the same input gives the same rule set");
            Ok(())
        })
        .unwrap();
}

/// A world of one pod whose policy allows `ports` one by one, each to a network of its own.
fn many_groups(ports: u16) -> World {
    let allow = (1..=ports).map(|port| Item {
        at: RuleRef(Arc::new(RuleText {
            place: format!("policy.yaml:{port}:5"),
            path: format!("spec.egress[{}]", port - 1),
            ..RuleText::default()
        })),
        peers: Peers::Networks(vec!["192.0.2.0/24".parse::<ipnet::IpNet>().unwrap().into()]),
        ports: Ports::These(vec![PortRule {
            at: at("ports"),
            ports: [(Protocol::Tcp, Port::Block(PortBlock::one(port)))].into(),
            service: None,
            dns: None,
        }]),
    });
    let egress = Section { default_deny: true, allow: allow.collect(), ..Section::default() };
    let rule = Rule { at: at("r"), subject: Subject::default(), egress, ingress: Section::default() };
    let mut world = World { policies: vec![Policy { at: at("p"), rules: vec![rule] }.into()], ..World::default() };
    world.pods.insert(
        PodRef { namespace: "one".to_owned(), name: "p".to_owned() },
        Pod {
            labels: BTreeMap::new(),
            service_account: None,
            addresses: vec![ip("10.0.0.1")],
            node: None,
            host_network: false,
            finished: false,
            search: Search::default(),
            ports: Vec::new(),
            mode: None,
            readable: true,
            place: String::new(),
        },
    );
    world
}

#[test]
fn a_group_too_many_is_refused_with_its_place() {
    let subject = PodRef { namespace: "one".to_owned(), name: "p".to_owned() };
    let rules = compile(&many_groups(127), &subject, &mut PeerIds::default(), &[]).unwrap();
    assert_eq!(rules.groups.iter().map(|group| group.bit).collect::<Vec<_>>(), (1..=127).collect::<Vec<_>>());
    let error = compile(&many_groups(128), &subject, &mut PeerIds::default(), &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "policy.yaml:128:5: spec.egress[127]: group 128 of the rules that select one/p, 0 more held by live grants; \
         the limit is 127"
    );
}

#[test]
fn a_bit_that_history_holds_is_not_given_to_another_group() {
    let subject = PodRef { namespace: "one".to_owned(), name: "p".to_owned() };
    let gone = |bit, port| Group {
        bit,
        key: GroupKey { direction: Direction::Egress, deny: false, ports: vec![(Protocol::Tcp, PortBlock::one(port))] },
        names: vec!["a.example".to_owned()],
    };
    let history = [gone(1, 4443), gone(3, 2)];
    let rules = compile(&many_groups(3), &subject, &mut PeerIds::default(), &history).unwrap();
    let bits: Vec<(u8, u16)> = rules.groups.iter().map(|group| (group.bit, group.key.ports[0].1.first())).collect();
    assert_eq!(bits, [(2, 1), (3, 2), (4, 3)]);
    let full: Vec<Group> = (1..=127).map(|bit| gone(bit, 10_000 + u16::from(bit))).collect();
    let error = compile(&many_groups(1), &subject, &mut PeerIds::default(), &full).unwrap_err();
    assert!(error.to_string().contains("group 1 of the rules that select one/p, 127 more held"), "{error}");
}

#[test]
fn a_pod_that_is_not_there_has_no_rule_set() {
    let subject = PodRef { namespace: "one".to_owned(), name: "q".to_owned() };
    let error = compile(&many_groups(1), &subject, &mut PeerIds::default(), &[]).unwrap_err();
    assert_eq!(error, CompileError::UnknownPod(subject));
}
