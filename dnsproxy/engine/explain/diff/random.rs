//! Random policies over random clusters: what changes is told, and what is told changes.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::engine::compile::tests::wanted;
use crate::engine::compile::tests::worlds::{addresses, world};
use crate::engine::explain::tests::surroundings;
use crate::engine::port::{PortBlock, is_unasked};
use crate::engine::world::{Holder, Pod};

/// How many packets each pair of policies is asked for.
const PACKETS: usize = 2_000;

/// A packet of no flow.
type Packet<'p> = (&'p PodRef, Direction, IpAddr, (Protocol, u16));

/// Both worlds, as the pods of one node see them.
struct Both<'w>([Explainer<'w>; 2]);

impl Both<'_> {
    fn passes(&self, (pod, direction, address, at): Packet<'_>) -> [bool; 2] {
        [0, 1].map(|index: usize| {
            let one = &self.0[index];
            one.judge(&one.rules(pod).expect("rules"), direction, address, at, Bits::NONE).passes()
        })
    }

    /// Whether a label of a change means an address.
    fn means(&self, label: &str, address: IpAddr) -> bool {
        let (label, v4) = label.strip_suffix(" (IPv4)").map_or((label, true), |label| (label, address.is_ipv4()));
        let (label, v6) = label.strip_suffix(" (IPv6)").map_or((label, true), |label| (label, address.is_ipv6()));
        let all = |at: &str| at.split(" and ").map(|at| at.parse::<IpAddr>().ok()).collect::<Option<Vec<_>>>();
        let at = label.rsplit_once(" at ").and_then(|(label, at)| Some((label, all(at)?)));
        let (label, here) = at.map_or((label, true), |(label, at)| (label, at.contains(&address)));
        let label = label.strip_suffix(" (for pods elsewhere)").unwrap_or(label);
        if !(v4 && v6 && here) {
            return false;
        }
        let one = &self.0[1];
        let services = one.world().services.iter().filter(|(_, service)| service.addresses.contains(&address));
        let mut services = services.map(|((namespace, name), _)| format!("Service {namespace}/{name}"));
        let holders = one.holders.get(&address);
        let held = services.any(|service| service == label);
        let (whole, except) = label.split_once(" except ").unwrap_or((label, ""));
        let mut except = except.split(" and ").filter(|text| !text.is_empty());
        let mut except = || except.any(|text| text.parse::<IpNet>().expect("a network").contains(&address));
        match (holders, whole.parse::<IpNet>()) {
            (Some(holders), _) => held || label == called(holders),
            (None, Ok(network)) => !held && network.contains(&address) && !is_service(one, address) && !except(),
            (None, Err(_)) => held || (whole == "outside the cluster" && !is_service(one, address) && !except()),
        }
    }
}

fn called(holders: &BTreeSet<Holder>) -> String {
    let label = |holder: &Holder| match holder {
        Holder::Pod(pod) => pod.to_string(),
        other => words::holder(other),
    };
    holders.iter().map(label).collect::<Vec<_>>().join(" and ")
}

fn is_service(one: &Explainer<'_>, address: IpAddr) -> bool {
    one.world().services.values().any(|service| service.addresses.contains(&address))
}

/// The first and the last port that a text means, of each protocol.
fn ports_of(text: &str) -> Vec<(Protocol, u16, u16)> {
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp, Protocol::Icmpv6];
    if text == "every port" {
        let asks = |protocol: Protocol| (0..=u8::MAX).map(move |number| (protocol, u16::from(number) << 8));
        let asks = [Protocol::Icmp, Protocol::Icmpv6].into_iter().flat_map(asks);
        let asks = asks.filter(|(protocol, first)| !is_unasked(*protocol, PortBlock::one(*first)));
        let whole = all.into_iter().take(3).map(|protocol| (protocol, 0, u16::MAX));
        return whole.chain(asks.map(|(protocol, first)| (protocol, first, first | 0xff))).collect();
    }
    let (range, protocol) = text.rsplit_once('/').expect("ports of a protocol");
    let protocol = all.into_iter().find(|one| words::protocol(*one) == protocol).expect("a protocol");
    if range == "every port" {
        return vec![(protocol, 0, u16::MAX)];
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let [first, last] = [first, last].map(|text| text.parse::<u16>().expect("a number"));
    match protocol {
        Protocol::Icmp | Protocol::Icmpv6 => vec![(protocol, first << 8, last << 8 | 0xff)],
        _ => vec![(protocol, first, last)],
    }
}

/// A change, read again: the addresses that it means, and the ports.
struct Line<'d> {
    change: &'d Change,
    addresses: BTreeSet<IpAddr>,
    ports: Vec<(Protocol, u16, u16)>,
}

/// The changes of these pods.
fn lines<'d>(both: &Both<'_>, found: &'d Diff, addresses: &[IpAddr], pods: &[&PodRef]) -> Vec<Line<'d>> {
    let ours = |change: &&Change| pods.iter().any(|pod| change.endpoints.contains(&pod.to_string()));
    let line = |change: &'d Change| {
        let meant = |address: &&IpAddr| change.peers.iter().any(|label| both.means(label, **address));
        Line {
            change,
            addresses: addresses.iter().filter(meant).copied().collect(),
            ports: change.ports.iter().flat_map(|text| ports_of(text)).collect(),
        }
    };
    found.connections.iter().filter(ours).map(line).collect()
}

/// Whether the difference lists this as opened, and as closed.
fn listed(lines: &[Line<'_>], (pod, direction, address, (protocol, port)): Packet<'_>) -> [bool; 2] {
    let holds = |(of, first, last): &(Protocol, u16, u16)| *of == protocol && (*first..=*last).contains(&port);
    [true, false].map(|allowed| {
        lines.iter().any(|line| {
            line.change.allowed == allowed
                && line.change.direction == words::direction(direction)
                && line.addresses.contains(&address)
                && line.ports.iter().any(holds)
                && line.change.endpoints.contains(&pod.to_string())
        })
    })
}

fn fits(protocol: Protocol, address: IpAddr) -> bool {
    match protocol {
        Protocol::Icmp => address.is_ipv4(),
        Protocol::Icmpv6 => address.is_ipv6(),
        _ => true,
    }
}

/// Addresses and ports at which rules begin and end, and those next to them.
fn boundaries(worlds: [&World; 2], both: &Both<'_>, pods: &[&PodRef]) -> (Vec<IpAddr>, Vec<(Protocol, u16)>) {
    let mut at: BTreeSet<IpAddr> = addresses(worlds[0]);
    let mut ports: BTreeSet<(Protocol, u16)> = BTreeSet::new();
    let next = |address: IpAddr, up: bool| -> Option<IpAddr> {
        match address {
            IpAddr::V4(v4) if up => v4.to_bits().checked_add(1).map(|bits| std::net::Ipv4Addr::from(bits).into()),
            IpAddr::V4(v4) => v4.to_bits().checked_sub(1).map(|bits| std::net::Ipv4Addr::from(bits).into()),
            IpAddr::V6(v6) if up => v6.to_bits().checked_add(1).map(|bits| std::net::Ipv6Addr::from(bits).into()),
            IpAddr::V6(v6) => v6.to_bits().checked_sub(1).map(|bits| std::net::Ipv6Addr::from(bits).into()),
        }
    };
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        ports.extend([0, 52, 53, 54, 80, 8080, 33_333, u16::MAX].map(|port| (protocol, port)));
    }
    for number in [0, 3, 7, 8, 9, 13, 42, 127, 128, 129, 160] {
        ports.extend([Protocol::Icmp, Protocol::Icmpv6].map(|protocol| (protocol, number << 8)));
    }
    for rules in pods.iter().flat_map(|pod| both.0.iter().map(|one| one.rules(pod).expect("rules"))) {
        for (network, _) in &rules.cidrs {
            let (first, last) = (network.network(), network.broadcast());
            at.extend([Some(first), Some(last), next(first, false), next(last, true)].into_iter().flatten());
        }
        for row in rules.ports.iter().filter(|row| row.protocol != Protocol::Any) {
            let (first, last) = (row.ports.first(), row.ports.last());
            ports.extend(
                [first, last, first.saturating_sub(1), last.saturating_add(1)].map(|port| (row.protocol, port)),
            );
        }
    }
    (at.into_iter().collect(), ports.into_iter().collect())
}

#[test]
fn what_changes_is_told_and_what_is_told_changes() {
    let config = Config { failure_persistence: None, max_shrink_iters: 100, ..Config::with_cases(wanted() / 200) };
    let counts = std::cell::Cell::new([0usize; 3]);
    let strategy = (world(), world(), any::<u64>(), any::<bool>());
    let ran = TestRunner::new(config).run(&strategy, |(mut old, other, seed, apart)| {
        let first = old.pods.iter().next().map(|(pod, first)| (pod.clone(), first.clone()));
        if let Some((pod, first)) = first.filter(|_| apart) {
            old.pods.insert(pod, Pod { node: Some("there".to_owned()), ..first });
        }
        // The same peers, other policies.
        let new = World { policies: other.policies, refused: other.refused, mode: other.mode, ..old.clone() };
        let found = diff(&Explainer::new(&old, surroundings(&old)), &Explainer::new(&new, surroundings(&new)));
        let nodes: BTreeSet<String> = ["here", "there"].map(str::to_owned).into();
        let seen = |world: &World, node: &String| World { own_node: Some(node.clone()), ..world.clone() };
        for node in &nodes {
            let worlds = [seen(&old, node), seen(&new, node)];
            let both = Both([&worlds[0], &worlds[1]].map(|world| Explainer::new(world, surroundings(world))));
            let pods: Vec<&PodRef> = endpoints_of(&old).map(|(pod, _)| pod).collect();
            let pods: Vec<&PodRef> = pods.into_iter().filter(|pod| node_of(&old, pod) == Some(node)).collect();
            if pods.is_empty() {
                continue;
            }
            let (addresses, ports) = boundaries([&old, &new], &both, &pods);
            let lines = lines(&both, &found, &addresses, &pods);
            let judge = |packet: Packet<'_>| -> Result<(), TestCaseError> {
                let [was, is] = both.passes(packet);
                let expected = [!was && is, was && !is];
                prop_assert_eq!(listed(&lines, packet), expected, "{:?}\n{:#?}", packet, found);
                let [same, opened, shut] = counts.get();
                let [open, close] = expected.map(usize::from);
                counts.set([same + 1 - open - close, opened + open, shut + close]);
                Ok(())
            };
            let mut state = seed;
            let mut pick = |below: usize| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                usize::try_from(state >> 33).expect("31 bits") % below
            };
            for _ in 0..PACKETS {
                let direction = [Direction::Egress, Direction::Ingress][pick(2)];
                let (address, at) = (addresses[pick(addresses.len())], ports[pick(ports.len())]);
                if fits(at.0, address) {
                    judge((pods[pick(pods.len())], direction, address, at))?;
                }
            }
            // Everything that is told, at the first and the last port.
            for Line { change, addresses, ports } in &lines {
                let Some(pod) = pods.iter().find(|pod| change.endpoints.contains(&pod.to_string())) else { continue };
                let direction = if change.direction == "egress" { Direction::Egress } else { Direction::Ingress };
                for address in addresses {
                    for (protocol, first, last) in ports.iter().filter(|(protocol, ..)| fits(*protocol, *address)) {
                        judge((pod, direction, *address, (*protocol, *first)))?;
                        judge((pod, direction, *address, (*protocol, *last)))?;
                    }
                }
            }
        }
        Ok(())
    });
    if let Err(failed) = ran {
        panic!("{failed}");
    }
    // Else it would be a test of nothing.
    let [same, opened, shut] = counts.get();
    let all = same + opened + shut;
    assert!(opened * 20 > all && shut * 20 > all, "{opened} of {all} opened, {shut} closed");
}
