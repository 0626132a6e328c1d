//! Endpoints, rules, grants and peers: chosen, kept for the judge as lists, written into the programs' maps.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use namegate::engine::bits::Bits;
use namegate::engine::port::PortBlock;
use namegate::engine::ruleset::{Direction, PeerId, PortRow, Protocol, RuleSet, ServiceRow, ServiceVerdict};
use namegate::kernel::abi::{self, Plain, flag};
use namegate::kernel::rules::{EndpointRow, is_block};
use namegate_frames::Machine;

use super::choices::Choices;

pub const SECOND: u64 = 1_000_000_000;
/// Where time begins.
pub const START: u64 = 1_000 * SECOND;
/// Where the proxy listens.
pub const PROXY: u16 = 15353;
pub const PROXY_TLS: u16 = 15853;
pub const PORTS: [u16; 6] = [53, 443, 853, 80, 8080, 0];
pub const PROTOCOLS: [Protocol; 6] =
    [Protocol::Any, Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp, Protocol::Icmpv6];
/// The bridge that bridged endpoints are on.
pub const BRIDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0xb, 0xb];
/// The interface that has no endpoint.
pub const NOBODY: u32 = 9;

pub struct Endpoint {
    pub ifindex: u32,
    pub id: u32,
    pub slot: u32,
    pub policy: u32,
    pub generation: u32,
    pub flags: u32,
    /// What it sends from.
    pub mac: [u8; 6],
    pub addresses: Vec<IpAddr>,
    /// The bridge's MAC is known.
    pub has_bridge: bool,
    /// Seconds: until then connections that nobody saw begin go on.
    pub adopt_until: u32,
}

impl Endpoint {
    pub fn is(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

pub struct World {
    pub endpoints: Vec<Endpoint>,
    /// Policy n is `rules[n]`.
    pub rules: Vec<RuleSet>,
    /// By endpoint id and address: groups, each until its deadline.
    pub grants: BTreeMap<(u32, IpAddr), Vec<(Bits, u64)>>,
    pub places: BTreeMap<IpAddr, PeerId>,
    /// Resolver and local address of the proxy.
    pub pairs: Vec<(IpAddr, IpAddr)>,
    pub tls: bool,
    pub limit: u32,
    pub share: u32,
    pub pool: u32,
    pub grace: u32,
    /// Flows that the table holds.
    pub table: u32,
    pub fragment_share: u32,
    pub fragment_pool: u32,
    pub fragment_table: u32,
}

/// The others: names' addresses, peers, resolvers.
pub fn remotes() -> Vec<IpAddr> {
    let v4 = (1..=6).map(|n| IpAddr::from([203, 0, 113, n]));
    let v6 = (1..=6).map(|n| IpAddr::from([0x2001, 0xdb8, 2, 0, 0, 0, 0, n]));
    v4.chain(v6).collect()
}

fn own(n: u16) -> Vec<IpAddr> {
    vec![
        IpAddr::from([198, 51, 100, 10 + n as u8]),
        IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10 + n]),
        IpAddr::from([198, 51, 100, 110 + n as u8]),
        IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 1, 0x10 + n]),
    ]
}

impl World {
    pub fn choose(c: &mut Choices<'_>) -> World {
        let remotes = remotes();
        let mut places = BTreeMap::new();
        for address in &remotes {
            if c.chance(50) {
                let (host, service) = (PeerId::HOST, PeerId::SERVICE);
                let others = [PeerId::HOST_APISERVER, PeerId::STEERING, PeerId(20), PeerId(21)];
                places
                    .insert(*address, c.of(&[&[host, host, service, service, service, service][..], &others].concat()));
            }
        }
        let rules: Vec<RuleSet> = (0..3).map(|_| rules(c, &places)).collect();
        let mut grants = BTreeMap::new();
        let mut endpoints = Vec::new();
        for n in 0..4u32 {
            let policy = c.below(3) as u32;
            let mut flags = EndpointRow::flags_of(&rules[policy as usize]) & !(flag::DENY_EGRESS | flag::DENY_INGRESS);
            for (flag, percent) in [
                (flag::DENY_EGRESS, 75),
                (flag::DENY_INGRESS, 75),
                (flag::STEER, 60),
                (flag::REJECT, 40),
                (flag::BRIDGED, 50),
                (flag::HAS_MAC, 60),
            ] {
                flags = if c.chance(percent) { flags | flag } else { flags & !flag };
            }
            flags |= if n == 2 && c.chance(50) { flag::AUDIT } else { 0 };
            flags &= if n == 2 && c.chance(40) { !flag::ENFORCE } else { !0 };
            flags |= if n == 3 { flag::CLOSED } else { 0 };
            let id = 7 + n * 0x1_0001;
            for address in &remotes {
                if c.chance(85) {
                    let until = [
                        0,
                        1,
                        START + 2 * SECOND,
                        START + 3600 * SECOND,
                        START + 1_000_000 * SECOND,
                        START + 1_000_000 * SECOND,
                    ];
                    let slots = (0..=c.below(3)).map(|_| (bits(c), c.of(&until))).collect();
                    grants.insert((id, *address), slots);
                }
            }
            endpoints.push(Endpoint {
                ifindex: n + 1,
                id,
                slot: n + 1,
                policy,
                generation: 1,
                flags,
                mac: [2, 0, 0, 0, 0, 0x10 + n as u8],
                addresses: own(n as u16)[..1 + c.below(4)].to_vec(),
                has_bridge: c.chance(30),
                adopt_until: c.of(&[0, (START / SECOND) as u32 + 10, u32::MAX, u32::MAX, u32::MAX, u32::MAX, u32::MAX]),
            });
        }
        let resolvers = remotes.iter().copied().filter(|_| c.chance(35)).enumerate();
        let pairs: Vec<_> = resolvers.map(|(n, resolver)| (resolver, local(n, resolver))).collect();
        places.extend(pairs.iter().map(|(_, local)| (*local, PeerId::STEERING)));
        let (fragment_share, fragment_pool) = c.of(&[(0, 0), (1, 0), (2, 1), (8, 4), (50, 50)]);
        let (share, pool) = c.of(&[(2, 1), (1, 0), (50, 10), (2000, 2000), (2000, 2000)]);
        World {
            endpoints,
            rules,
            grants,
            places,
            pairs,
            tls: c.chance(50),
            limit: c.of(&[3, 5000, 5000]),
            share,
            pool,
            grace: c.of(&[0, 0, 600]),
            table: c.of(&[2, 4, 4096, 4096]),
            fragment_share,
            fragment_pool,
            fragment_table: c.of(&[4, 4096, 4096]),
        }
    }

    pub fn at(&self, ifindex: u32) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.ifindex == ifindex)
    }

    /// Writes everything into maps that are empty.
    pub fn install(&self, machine: &mut Machine) {
        machine.resize("flows", self.table);
        machine.resize("fragments", self.fragment_table);
        let mut limits = abi::limits::from_octets(&[0; 64]).expect("enough octets");
        limits.flow_limit = self.limit;
        limits.flow_share = self.share;
        limits.flow_pool = self.pool;
        limits.fragment_share = self.fragment_share;
        limits.fragment_pool = self.fragment_pool;
        limits.idle_grace_seconds = self.grace;
        limits.steer_port = PROXY.to_be();
        limits.steer_tls_port = if self.tls { PROXY_TLS.to_be() } else { 0 };
        assert!(machine.put("limits", 0u32.octets(), limits.octets()));
        for endpoint in &self.endpoints {
            put_endpoint(machine, endpoint);
            if endpoint.has_bridge {
                let bridge = abi::bridge { mac: BRIDGE_MAC, pad: [0; 2] };
                assert!(machine.put("bridges", endpoint.ifindex.octets(), bridge.octets()));
            }
        }
        for (policy, rules) in self.rules.iter().enumerate() {
            put_rules(machine, policy as u32, rules);
        }
        for ((id, address), slots) in &self.grants {
            let key = abi::grant_key { endpoint_id: *id, addr: abi::mapped(*address) };
            let empty = abi::grant_slot { bits: [0; 2], until_mono_ns: 0 };
            let mut row = abi::grant { slots: [empty; 4], last_used_ns: 0, generation: 0, pad: 0 };
            for (place, (bits, until)) in row.slots.iter_mut().zip(slots) {
                *place = abi::grant_slot { bits: bits.words(), until_mono_ns: *until };
            }
            assert!(machine.put("grants", key.octets(), row.octets()));
        }
        for (address, peer) in &self.places {
            assert!(machine.put("peers", &abi::mapped(*address), peer.0.octets()));
        }
        for (resolver, local) in &self.pairs {
            for (theirs, own) in [(53, PROXY), (853, PROXY_TLS)].into_iter().take(1 + usize::from(self.tls)) {
                let key = |address: IpAddr, port: u16| abi::steer_key {
                    addr: abi::mapped(address),
                    port: port.to_be(),
                    family: if address.is_ipv4() { 4 } else { 6 },
                };
                let to = |address: IpAddr, port: u16| abi::steer {
                    addr: abi::mapped(address),
                    port: port.to_be(),
                    pad: [0; 2],
                };
                assert!(machine.put("dns_to", key(*resolver, theirs).octets(), to(*local, own).octets()));
                assert!(machine.put("dns_from", key(*local, own).octets(), to(*resolver, theirs).octets()));
            }
        }
    }
}

/// Puts the endpoint's row in force as it stands.
pub fn put_endpoint(machine: &mut Machine, endpoint: &Endpoint) {
    let mut addresses = [abi::address { octets: [0; 16] }; 4];
    for (place, address) in addresses.iter_mut().zip(&endpoint.addresses) {
        place.octets = abi::mapped(*address);
    }
    let row = abi::endpoint {
        id: endpoint.id,
        slot: endpoint.slot,
        policy_id: endpoint.policy,
        generation: endpoint.generation,
        flags: endpoint.flags,
        mac: if endpoint.is(flag::HAS_MAC) { endpoint.mac } else { [0; 6] },
        pad: [0; 2],
        adopt_until_s: endpoint.adopt_until,
        addresses,
    };
    assert!(machine.put("endpoints", endpoint.ifindex.octets(), row.octets()));
}

fn put_rules(machine: &mut Machine, policy_id: u32, rules: &RuleSet) {
    for row in &rules.ports {
        let value = abi::port_row { allow: row.allow.into(), deny: row.deny.into() };
        let (protocol, direction, port) =
            (row.protocol.number(), abi::direction(row.direction), row.ports.first().to_be());
        if is_block(row.ports) {
            let prefix_len = 48 + u32::from(row.ports.length());
            let key = abi::port_block_key { prefix_len, policy_id: policy_id.to_be(), direction, protocol, port };
            assert!(machine.put("port_blocks", key.octets(), value.octets()));
        } else {
            let key = abi::port_key { policy_id, port, protocol, direction };
            assert!(machine.put("ports", key.octets(), value.octets()));
        }
    }
    for (peer, bits) in &rules.peers {
        let value: abi::group_bits = (*bits).into();
        assert!(machine.put("peer_bits", abi::peer_bits_key { policy_id, peer_id: peer.0 }.octets(), value.octets()));
    }
    for row in &rules.services {
        let verdict = if row.verdict == ServiceVerdict::Allow { 1 } else { 2 };
        let (addr, port, protocol) = (abi::mapped(row.address), row.port.to_be(), row.protocol.number());
        let key = abi::service_key { policy_id, addr, port, protocol, pad: 0 };
        assert!(machine.put("services", key.octets(), abi::service { verdict }.octets()));
    }
    for (net, bits) in &rules.cidrs {
        let value: abi::group_bits = (*bits).into();
        let (prefix_len, policy_id) = (32 + u32::from(net.prefix_len()), policy_id.to_be());
        match net.network() {
            IpAddr::V4(network) => {
                let key = abi::cidr4_key { prefix_len, policy_id, addr: network.octets() };
                assert!(machine.put("cidr4", key.octets(), value.octets()));
            }
            IpAddr::V6(network) => {
                let key = abi::cidr6_key { prefix_len, policy_id, addr: network.octets() };
                assert!(machine.put("cidr6", key.octets(), value.octets()));
            }
        }
    }
}

fn local(n: usize, resolver: IpAddr) -> IpAddr {
    match resolver {
        IpAddr::V4(_) => IpAddr::from([198, 18, 0, 1 + n as u8]),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 1 + n as u16)),
    }
}

fn bits(c: &mut Choices<'_>) -> Bits {
    (0..c.of(&[0, 1, 2, 3])).fold(Bits::NONE, |bits, _| bits | Bits::of(c.of(&[1, 2, 3, 63, 64, 127])))
}

/// Ports that rows may have: single ones, blocks around them, all of them; types of ICMP.
fn blocks(protocol: Protocol) -> Vec<PortBlock> {
    let types: &[u8] = match protocol {
        Protocol::Any => return vec![PortBlock::ANY],
        Protocol::Icmp => &[8, 0, 13, 14, 42, 43, 5, 17, 3],
        Protocol::Icmpv6 => &[128, 129, 160, 161, 144, 200, 1],
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp => {
            let ranges = [(0, 0x7fff), (64, 127), (80, 81), (0x1f00, 0x1fff)];
            let ranges = ranges.into_iter().flat_map(|(first, last)| PortBlock::of_range(first, last));
            return ranges.chain(PORTS.map(PortBlock::one)).chain([PortBlock::ANY]).collect();
        }
    };
    types.iter().map(|number| PortBlock::icmp_type(*number)).chain([PortBlock::ANY]).collect()
}

fn rules(c: &mut Choices<'_>, places: &BTreeMap<IpAddr, PeerId>) -> RuleSet {
    let mut rules = RuleSet { selected: true, deny_egress: true, deny_ingress: true, ..RuleSet::unselected() };
    for direction in [Direction::Egress, Direction::Ingress] {
        for protocol in PROTOCOLS {
            for ports in blocks(protocol) {
                if !c.chance(35) {
                    continue;
                }
                let any = if c.chance(10) { Bits::ANY_PEER } else { Bits::NONE };
                let deny = if c.chance(15) { bits(c) } else { Bits::NONE };
                rules.ports.push(PortRow { direction, protocol, ports, allow: bits(c) | any, deny });
            }
        }
    }
    for peer in [PeerId::HOST, PeerId::HOST_APISERVER, PeerId(20), PeerId(21)] {
        rules.peers.push((peer, bits(c)));
    }
    for (address, _) in places.iter().filter(|(_, peer)| **peer == PeerId::SERVICE) {
        for port in PORTS {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                if c.chance(80) {
                    let verdict = c.of(&[ServiceVerdict::Allow, ServiceVerdict::Deny]);
                    rules.services.push(ServiceRow { address: *address, protocol, port, verdict });
                }
            }
        }
    }
    for net in ["0.0.0.0/0", "203.0.113.0/30", "203.0.113.6/32", "::/0", "2001:db8:2::4/126"] {
        if c.chance(50) {
            rules.cidrs.push((net.parse().expect("a prefix"), bits(c)));
        }
    }
    rules
}
