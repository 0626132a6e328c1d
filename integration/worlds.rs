//! Random worlds and what can be asked of them: everything that the types of the policy language can say. For the property
//! tests of the compiler and for those of the kernel programs, which include this file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use namegate::engine::endpoint::PodRef;
use namegate::engine::labels::{NAMESPACE, NAMESPACE_LABELS, Operator, Requirement, Selector, Source};
use namegate::engine::name::Name;
use namegate::engine::pattern::Pattern;
use namegate::engine::policy::{
    Block, BlockOf, Entity, Item, NameRule, Peers, Policy, Port, PortRule, Ports, Rule, Section, ServicePeer, Subject,
    Unenforced,
};
use namegate::engine::port::PortBlock;
use namegate::engine::ruleset::{Direction, Protocol};
use namegate::engine::verdict::{RuleRef, RuleText};
use namegate::engine::world::{
    CidrGroup, ContainerPort, EndpointSlice, Enforcement, Mode, Namespace, Node, Pod, Search, Service, ServicePort,
    SlicePort, World,
};
use proptest::prelude::*;
use proptest::sample::{Index, select};

pub const NAMES: [&str; 4] = ["a.example", "b.example", "c.d.example", "e.test"];
/// Addresses that are nobody's, but for the last: the API server may be there.
pub const OUTSIDE: [&str; 7] = [
    "192.0.2.1",
    "192.0.2.200",
    "203.0.113.7",
    "2001:db8:ffff::aa1",
    "2001:db8:fffe::1",
    "198.51.100.250",
    "192.0.2.129",
];
const NETWORKS: [&str; 9] = [
    "0.0.0.0/0",
    "192.0.2.0/24",
    "192.0.2.128/25",
    "192.0.2.1/32",
    "10.0.0.0/8",
    "::/0",
    "2001:db8:ffff::/48",
    "2001:db8:ffff::aa0/124",
    "203.0.113.0/30",
];
const TRANSPORT: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
/// Ports to ask for: of rules, of ranges, and of neither.
const PORTS: [u16; 9] = [80, 8080, 53, 5353, 7, 1023, 1024, 1999, 40_000];
/// Types of ICMP to ask for, by family.
const TYPES: [&[u8]; 2] = [&[8, 0, 13, 3, 5], &[128, 129, 160, 1, 144]];

/// One packet of no flow.
#[derive(Clone, Debug)]
pub struct Question {
    /// Whose rules are asked.
    pub subject: PodRef,
    pub direction: Direction,
    pub address: IpAddr,
    pub protocol: Protocol,
    /// ICMP: type << 8.
    pub port: u16,
}

/// A world, packets to ask of it, and the names that every workload has looked up.
#[derive(Clone, Debug)]
pub struct Case {
    pub world: World,
    pub questions: Vec<Question>,
    pub granted: Vec<Name>,
}

/// Cases with at most so many questions each.
pub fn case(questions: usize) -> impl Strategy<Value = Case> {
    let granted = prop::sample::subsequence(NAMES.to_vec(), 0..3);
    let picks = prop::collection::vec((any::<[Index; 5]>(), any::<bool>()), 1..=questions);
    (world(), picks, granted).prop_map(|(world, picks, granted)| {
        let subjects: Vec<PodRef> = world.pods.keys().cloned().collect();
        let addresses: Vec<IpAddr> = addresses(&world).into_iter().collect();
        let questions = picks.into_iter().map(|([who, whom, protocol, port, number], egress)| {
            let address = *whom.get(&addresses);
            let icmp = if address.is_ipv4() { Protocol::Icmp } else { Protocol::Icmpv6 };
            let protocol = *protocol.get(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp, icmp]);
            let port = match protocol == icmp {
                true => u16::from(*number.get(TYPES[usize::from(address.is_ipv6())])) << 8,
                false => *port.get(&PORTS),
            };
            let direction = if egress { Direction::Egress } else { Direction::Ingress };
            Question { subject: who.get(&subjects).clone(), direction, address, protocol, port }
        });
        let questions = questions.collect();
        let granted = granted.into_iter().map(|name| Name::parse(name).expect("a name")).collect();
        Case { world, questions, granted }
    })
}

/// Every address worth asking for.
pub fn addresses(world: &World) -> BTreeSet<IpAddr> {
    let mut addresses: BTreeSet<IpAddr> = OUTSIDE.iter().map(|text| ip(text)).collect();
    addresses.extend(world.holders().into_keys());
    addresses.extend(world.pods.values().flat_map(|pod| &pod.addresses));
    addresses.extend(world.services.values().flat_map(|service| &service.addresses));
    addresses
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn at(text: &str) -> RuleRef {
    RuleRef(Arc::new(RuleText { policy: text.to_owned(), ..RuleText::default() }))
}

/// A pod with these addresses that is all right.
pub fn plain_pod(addresses: Vec<IpAddr>) -> Pod {
    Pod {
        uid: None,
        labels: BTreeMap::new(),
        service_account: None,
        addresses,
        node: None,
        host_network: false,
        finished: false,
        search: Search::default(),
        nameservers: Vec::new(),
        ports: Vec::new(),
        mode: None,
        readable: true,
        place: String::new(),
    }
}

pub fn world() -> impl Strategy<Value = World> {
    let objects = (
        prop::collection::vec(pod(), 1..7),
        prop::collection::vec(service(), 0..4),
        prop::collection::vec(prop::option::weighted(0.8, labels()), 2),
        prop::collection::vec(labels(), 2),
        prop::collection::btree_map(select(vec!["g0", "g1"]).prop_map(str::to_owned), group(), 0..3),
        prop::option::of(select(vec!["198.51.100.1", "198.51.100.2", "192.0.2.129", "10.0.0.3"]).prop_map(ip)),
    );
    let policies = (prop::collection::vec(policy(), 0..4), prop::collection::vec(policy(), 0..2));
    let modes = (
        prop_oneof![
            14 => Just(Enforcement::Default),
            1 => Just(Enforcement::Always),
            1 => Just(Enforcement::Never)
        ],
        prop_oneof![9 => Just(Mode::Enforce), 1 => Just(Mode::Audit)],
    );
    (objects, policies, modes).prop_map(|(objects, (policies, refused), (enforcement, mode))| {
        let (pods, services, teams, nodes, groups, apiserver) = objects;
        let mut world = World { own_node: Some("here".to_owned()), enforcement, mode, ..World::default() };
        // A refused policy keeps its denials and shuts; what it allowed must not matter.
        world.policies = policies.into_iter().map(Into::into).collect();
        world.refused = refused.into_iter().map(Into::into).collect();
        for ((name, number), labels) in [("here", 1), ("there", 2)].into_iter().zip(nodes) {
            let addresses = vec![ip(&format!("198.51.100.{number}")), ip(&format!("2001:db8:51::{number}"))];
            world.nodes.insert(name.to_owned(), Node { labels, addresses, place: String::new() });
        }
        for (namespace, labels) in ["one", "two"].into_iter().zip(teams) {
            if let Some(labels) = labels {
                let labels = labels.get("app").map(|team| ("team".to_owned(), team.clone())).into_iter().collect();
                let namespace_object = Namespace { labels, mode: None, place: String::new() };
                world.namespaces.insert(namespace.to_owned(), namespace_object);
            }
        }
        for (index, pod) in pods.into_iter().enumerate() {
            let namespace = if index % 3 == 2 { "two" } else { "one" }.to_owned();
            world.pods.insert(PodRef { namespace, name: format!("p{index}") }, pod);
        }
        for (index, (service, slices, as_endpoints)) in services.into_iter().enumerate() {
            let (namespace, name) = [("one", "s"), ("one", "t"), ("two", "s")][index % 3];
            let key = (namespace.to_owned(), name.to_owned());
            world.services.insert(key.clone(), service);
            let ours = |mut slice: EndpointSlice| {
                slice.service = slice.service.map(|_| name.to_owned());
                slice
            };
            let slices: Vec<EndpointSlice> = slices.into_iter().map(ours).collect();
            if as_endpoints {
                let named = |slice| EndpointSlice { service: Some(name.to_owned()), ..slice };
                world.endpoints.insert(key, slices.into_iter().map(named).collect::<Vec<_>>());
            } else {
                for (number, slice) in slices.into_iter().enumerate() {
                    world.endpoint_slices.insert((namespace.to_owned(), format!("{name}-{number}")), slice);
                }
            }
        }
        if let Some(address) = apiserver {
            let slice = EndpointSlice {
                service: Some("kubernetes".to_owned()),
                ports: Vec::new(),
                endpoints: vec![(vec![address], true)],
                readable: true,
                place: String::new(),
            };
            world.endpoint_slices.insert(("default".to_owned(), "kubernetes".to_owned()), slice);
        }
        world.cidr_groups = groups.into_iter().collect();
        world
    })
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(
        select(vec!["app", "tier"]).prop_map(str::to_owned),
        select(vec!["x", "y"]).prop_map(str::to_owned),
        0..3,
    )
}

fn selector(reserved: bool) -> impl Strategy<Value = Selector> {
    let keys = vec!["app".to_owned(), "tier".to_owned(), NAMESPACE.to_owned(), format!("{NAMESPACE_LABELS}team")];
    let values = || prop::collection::btree_set(select(vec!["x", "y", "one"]).prop_map(str::to_owned), 1..3);
    let operator = prop_oneof![
        4 => values().prop_map(Operator::In),
        1 => values().prop_map(Operator::NotIn),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
    ];
    let source = prop_oneof![4 => Just(Source::Any), 1 => Just(Source::K8s)];
    let requirement =
        (source, select(keys), operator).prop_map(|(source, key, operator)| Requirement { source, key, operator });
    let by_reserved = select(vec!["host", "remote-node", "world", "kube-apiserver"]).prop_map(|key| Selector {
        requirements: vec![Requirement { source: Source::Reserved, key: key.to_owned(), operator: Operator::Exists }],
    });
    prop_oneof![
        9 => prop::collection::vec(requirement, 0..3).prop_map(|requirements| Selector { requirements }),
        2 * u32::from(reserved) => by_reserved,
    ]
}

fn names() -> impl Strategy<Value = Vec<NameRule>> {
    let pattern = select(vec!["a.example", "*.example", "**.example", "*", "E.test"]);
    prop::collection::vec(pattern, 0..3).prop_map(|patterns| {
        patterns.iter().map(|p| NameRule { at: at(p), pattern: Pattern::pattern(p).expect("a pattern") }).collect()
    })
}

fn network() -> impl Strategy<Value = ipnet::IpNet> {
    select(NETWORKS.to_vec()).prop_map(|text| text.parse().expect("a network"))
}

fn block() -> impl Strategy<Value = Block> {
    let of = prop_oneof![
        5 => network().prop_map(BlockOf::Here),
        1 => select(vec!["g0", "g1", "gone"]).prop_map(|name| BlockOf::Group(name.to_owned())),
        1 => selector(false).prop_map(BlockOf::Groups),
    ];
    let except = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(network(), 1..3)];
    (of, except).prop_map(|(of, except)| Block { of, except })
}

fn group() -> impl Strategy<Value = CidrGroup> {
    (labels(), prop::collection::vec(network(), 0..3), prop::bool::weighted(0.9))
        .prop_map(|(labels, networks, readable)| CidrGroup { labels, networks, readable, place: String::new() })
}

fn service_name() -> impl Strategy<Value = (String, String)> {
    select(vec![("one", "s"), ("one", "t"), ("two", "s"), ("one", "gone")])
        .prop_map(|(namespace, name)| (namespace.to_owned(), name.to_owned()))
}

fn service_peer() -> impl Strategy<Value = ServicePeer> {
    let namespace = prop::option::of(select(vec!["one", "two"]).prop_map(str::to_owned));
    prop_oneof![
        2 => service_name().prop_map(|(namespace, name)| ServicePeer::Named { namespace, name }),
        1 => (namespace, selector(false))
            .prop_map(|(namespace, selector)| ServicePeer::Selected { namespace, selector }),
    ]
}

fn peers(egress: bool, deny: bool) -> impl Strategy<Value = Peers> {
    use Entity::*;
    let entities =
        vec![All, World, Cluster, ClusterMesh, Host, RemoteNode, KubeApiserver, Ingress, Init, Health, Unmanaged, None];
    prop_oneof![
        2 => Just(Peers::Any),
        5 => prop::collection::vec(selector(true), 0..3).prop_map(Peers::Endpoints),
        1 => prop::collection::vec(selector(false), 0..3).prop_map(Peers::Nodes),
        4 => prop::collection::vec(block(), 0..3).prop_map(Peers::Networks),
        4 => prop::collection::btree_set(select(entities), 0..3).prop_map(Peers::Entities),
        2 * u32::from(egress) => prop::collection::vec(service_peer(), 0..3).prop_map(Peers::Services),
        3 * u32::from(egress && !deny) => names().prop_map(Peers::Names),
    ]
}

fn ports() -> impl Strategy<Value = BTreeSet<(Protocol, Port)>> {
    let transport = || select(TRANSPORT.to_vec());
    let block = |block| Port::Block(block);
    let single = (transport(), select(vec![80_u16, 8080, 53, 5353, 0]))
        .prop_map(move |(protocol, port)| vec![(protocol, block(PortBlock::from(port)))]);
    let named = (transport(), select(vec!["web", "dns", "none"]))
        .prop_map(|(protocol, name)| vec![(protocol, Port::Named(name.to_owned()))]);
    let range = (transport(), select(vec![(1000_u16, 1999_u16), (1024, 65_535), (50, 90), (1, 1023)])).prop_map(
        move |(protocol, (first, last))| {
            PortBlock::of_range(first, last).into_iter().map(|range| (protocol, block(range))).collect()
        },
    );
    let icmp = (any::<bool>(), any::<Index>()).prop_map(move |(v6, number)| {
        let protocol = if v6 { Protocol::Icmpv6 } else { Protocol::Icmp };
        vec![(protocol, block(PortBlock::icmp_type(*number.get(TYPES[usize::from(v6)]))))]
    });
    let some = prop_oneof![5 => single, 2 => named, 2 => range, 2 => icmp];
    prop::collection::vec(some, 0..4).prop_map(|all| all.into_iter().flatten().collect())
}

fn port_rule(dns_too: bool) -> impl Strategy<Value = PortRule> {
    let dns = prop_oneof![3 => Just(None), u32::from(dns_too) => names().prop_map(Some)];
    let service = prop::option::weighted(0.2, service_name());
    let usual = [Protocol::Udp, Protocol::Tcp].map(|protocol| (protocol, Port::Block(PortBlock::one(53))));
    (ports(), service, dns, prop::bool::weighted(0.6)).prop_map(move |(ports, service, dns, is_usual)| {
        let ports = if dns.is_some() && is_usual { usual.clone().into() } else { ports };
        PortRule { at: at("ports"), ports, service, dns }
    })
}

fn item(deny: bool, egress: bool) -> impl Strategy<Value = Item> {
    let ports = prop_oneof![
        1 => Just(Ports::All),
        3 => prop::collection::vec(port_rule(!deny && egress), 0..3).prop_map(Ports::These),
    ];
    (peers(egress, deny), ports).prop_map(|(peers, mut ports)| {
        if let (Peers::Names(_), Ports::These(entries)) = (&peers, &mut ports) {
            // The reader refuses a `service` beside toFQDNs.
            entries.iter_mut().for_each(|entry| entry.service = None);
        }
        Item { at: at("item"), peers, ports }
    })
}

fn section(egress: bool) -> impl Strategy<Value = Section> {
    let items = (
        prop::collection::vec(item(false, egress), 0..4),
        prop::collection::vec(item(true, egress), 0..2),
        prop::collection::vec(item(false, egress), 0..2),
    );
    let default_deny = prop::bool::weighted(0.8);
    let twins = prop::option::weighted(0.4, prop::option::of(prop::collection::vec(selector(true), 0..2)));
    let some = (items, default_deny, twins).prop_map(|((mut allow, deny, unenforced), default_deny, twins)| {
        if let Some(more) = twins {
            let plain: Vec<Item> = allow.iter().filter_map(|item| without_dns(item, more.as_deref())).collect();
            allow.splice(0..0, plain);
        }
        Section {
            default_deny: default_deny && !(allow.is_empty() && deny.is_empty() && unenforced.is_empty()),
            allow,
            deny,
            unenforced: unenforced.into_iter().map(|item| Unenforced { item, what: "rules.http".to_owned() }).collect(),
        }
    });
    prop_oneof![8 => some, 1 => Just(Section::default())]
}

/// An item with `rules.dns` once more, without them and with `more` selectors: the two are merged where they have one in
/// common. Or for everyone, where they have none in common.
fn without_dns(item: &Item, more: Option<&[Selector]>) -> Option<Item> {
    let Ports::These(entries) = &item.ports else { return None };
    let dns = entries.iter().filter(|entry| entry.dns.is_some());
    let plain: Vec<PortRule> = dns.map(|entry| PortRule { dns: None, ..entry.clone() }).collect();
    let peers = match (&item.peers, more) {
        (_, None) => Peers::Any,
        (Peers::Endpoints(selectors), Some(more)) => {
            Peers::Endpoints(more.iter().chain(selectors.first()).cloned().collect())
        }
        (Peers::Any, _) => Peers::Entities([Entity::All].into()),
        (other, _) => other.clone(),
    };
    (!plain.is_empty()).then(|| Item { at: at("twin"), peers, ports: Ports::These(plain) })
}

fn policy() -> impl Strategy<Value = Policy> {
    let namespace = select(vec![Some("one"), Some("one"), Some("two"), None]);
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

fn container_port() -> impl Strategy<Value = ContainerPort> {
    (select(vec!["web", "dns"]), select(TRANSPORT.to_vec()), select(vec![80_u16, 8080, 53, 5353]))
        .prop_map(|(name, protocol, port)| ContainerPort { name: name.to_owned(), protocol, port })
}

fn pod() -> impl Strategy<Value = Pod> {
    // Few addresses for many pods: some collide.
    let flags = prop::collection::vec(prop::bool::weighted(0.1), 3);
    let mode = prop_oneof![8 => Just(None), 1 => Just(Some(Mode::Audit)), 1 => Just(Some(Mode::Enforce))];
    let hosts = prop::collection::btree_set(1..12u8, 1..3);
    let ports = prop::collection::vec(container_port(), 0..3);
    (labels(), hosts, flags, mode, ports).prop_map(|(labels, hosts, flags, mode, ports)| Pod {
        uid: None,
        labels,
        host_network: flags[0],
        finished: flags[1],
        readable: !flags[2],
        mode,
        ports,
        ..plain_pod(hosts.into_iter().flat_map(|host| both("10.0.0.", "2001:db8:ffff::", host)).collect())
    })
}

fn both(v4: &str, v6: &str, host: u8) -> [IpAddr; 2] {
    [ip(&format!("{v4}{host}")), ip(&format!("{v6}{host}"))]
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let backend = prop_oneof![
        6 => (1..12u8, any::<bool>()).prop_map(|(host, v6)| both("10.0.0.", "2001:db8:ffff::", host)[usize::from(v6)]),
        2 => select(OUTSIDE.to_vec()).prop_map(ip),
        1 => select(vec!["198.51.100.1", "198.51.100.2", "2001:db8:51::2"]).prop_map(ip),
        1 => Just(ip("198.18.0.1")),
    ];
    let flags = prop::collection::vec(prop::bool::weighted(0.05), 2);
    let endpoints = prop::collection::vec((prop::collection::vec(backend, 1..2), prop::bool::weighted(0.8)), 0..4);
    let targets = [80_u16, 53].map(|plain| {
        prop_oneof![
            9 => select(vec![Some(plain), Some(if plain == 80 { 8080 } else { 5353 })]),
            1 => Just(None)
        ]
    });
    (endpoints, targets, flags).prop_map(|(endpoints, [web, dns], flags)| EndpointSlice {
        service: (!flags[0]).then(|| "s".to_owned()),
        ports: vec![
            SlicePort { name: "web".to_owned(), protocol: Protocol::Tcp, port: web },
            SlicePort { name: "dns".to_owned(), protocol: Protocol::Udp, port: dns },
        ],
        endpoints,
        readable: !flags[1],
        place: String::new(),
    })
}

/// A Service, its slices, and whether they are those of an Endpoints object.
fn service() -> impl Strategy<Value = (Service, Vec<EndpointSlice>, bool)> {
    let hosts = prop::collection::btree_set(1..4u8, 1..3);
    let selector = prop_oneof![1 => Just(BTreeMap::new()), 2 => labels()];
    let slices = prop::collection::vec(slice(), 0..3);
    let flags = (prop::bool::weighted(0.95), prop::bool::weighted(0.3));
    (labels(), selector, hosts, slices, flags).prop_map(|(labels, selector, hosts, slices, (readable, endpoints))| {
        let service = Service {
            labels,
            selector,
            addresses: hosts.into_iter().flat_map(|host| both("198.18.0.", "2001:db8:18::", host)).collect(),
            ports: vec![
                ServicePort { name: "web".to_owned(), protocol: Protocol::Tcp, port: 80 },
                ServicePort { name: "dns".to_owned(), protocol: Protocol::Udp, port: 53 },
            ],
            readable,
            place: String::new(),
        };
        (service, slices, endpoints)
    })
}
