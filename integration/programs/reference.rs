//! The verdict once more, in Rust, without bits in two words, maps or jumps: random rule sets and packets must come to the same
//! reason in the kernel. Seeded; a failure prints its seed and packet number.

mod fragments;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use namegate::engine::bits::Bits;
use namegate::engine::grant::MonoNs;
use namegate::engine::port::PortBlock;
use namegate::engine::ruleset::{Direction, PeerId, PortRow, Protocol, RuleSet, ServiceRow, ServiceVerdict};
use namegate::kernel::abi::flag;
use namegate::kernel::rules::{EndpointRow, FlowLimits};
use namegate::observe::Reason;

use super::bench::*;
use super::frames::*;

const PACKETS: usize = 100_000;
const RULE_SETS: usize = 400;
const SEED: u64 = 20_261_121;
/// What a run can't bring about at will: a full hash, a look-up that can't fail, modes that its model has not (`adopt`, the frames' judge has),
/// what is only beside a workload.
const UNREACHED: [Reason; 5] = [Reason::Internal, Reason::FlowTable, Reason::Audit, Reason::Proxy, Reason::Adopted];

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, the same everywhere.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn bits(&mut self) -> Bits {
        let mut bits = Bits::NONE;
        for _ in 0..self.below(3) {
            bits |= Bits::of(self.of(&[1, 2, 3, 63, 64, 127]));
        }
        bits
    }
}

/// What an address is to the endpoint.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Place {
    World,
    Peer(PeerId),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct FlowKey {
    remote: IpAddr,
    local_port: u16,
    remote_port: u16,
    protocol: u8,
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    opened: Direction,
    generation: u32,
    sequence: u32,
    answered_or_closed: bool,
    revoked: Option<Reason>,
}

/// One world: rules, grants, peers, and the flows as the model believes them to be.
struct Model {
    flags: u32,
    generation: u32,
    rules: RuleSet,
    /// Live bits and expired bits by address.
    grants: HashMap<IpAddr, (Bits, Bits)>,
    places: HashMap<IpAddr, PeerId>,
    resolvers: Vec<IpAddr>,
    budget: usize,
    flows: HashMap<FlowKey, Flow>,
    firsts: BTreeMap<fragments::Key, fragments::First>,
    fragment_budget: usize,
}

/// A packet as the generator meant it.
struct Packet {
    direction: Direction,
    remote: IpAddr,
    local_port: u16,
    remote_port: u16,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Tcp { flags: u8, sequence: u32 },
    Udp,
    Sctp,
    Icmp { number: u8 },
}

impl Kind {
    fn protocol(self, family4: bool) -> u8 {
        match self {
            Kind::Tcp { .. } => TCP,
            Kind::Udp => UDP,
            Kind::Sctp => SCTP,
            Kind::Icmp { .. } if family4 => ICMP,
            Kind::Icmp { .. } => ICMPV6,
        }
    }
}

/// Types of ICMP that ask, each with the type of its answer.
const QUERIES: [&[(u8, u8)]; 2] = [&[(8, 0), (13, 14), (42, 43)], &[(128, 129), (160, 161)]];
/// Types that do neither, by family. The last is an error; here it quotes nothing of ours.
const OTHERS: [[u8; 3]; 2] = [[5, 17, 3], [144, 200, 1]];

/// The type that asks, of one that asks or answers.
fn query_of(family4: bool, number: u8) -> Option<u8> {
    let pairs = QUERIES[usize::from(!family4)].iter();
    pairs.copied().find(|(query, answer)| *query == number || *answer == number).map(|(query, _)| query)
}

impl Model {
    fn policy(&self, opened: Direction, key: FlowKey, port: u16, established: bool) -> Reason {
        let (live, expired) = self.grants.get(&key.remote).copied().unwrap_or_default();
        let (granted, stale) = match opened {
            Direction::Ingress => (Bits::NONE, false),
            Direction::Egress if established => (live | expired, false),
            Direction::Egress => (live, !expired.is_empty()),
        };
        let default_deny = match opened {
            Direction::Egress => flag::DENY_EGRESS,
            Direction::Ingress => flag::DENY_INGRESS,
        };
        let denies = self.flags & default_deny != 0;
        // A type of ICMP that asks nothing is open only to a rule that names it.
        let number = (port >> 8) as u8;
        let icmp = matches!(key.protocol, ICMP | ICMPV6);
        let unasked = icmp && query_of(key.remote.is_ipv4(), number) != Some(number);
        let place = self.places.get(&key.remote).map_or(Place::World, |peer| Place::Peer(*peer));
        if place == Place::Peer(PeerId::STEERING) {
            return Reason::SteeringAddress;
        }
        if place == Place::Peer(PeerId::SERVICE) && opened == Direction::Egress {
            let row = self
                .rules
                .services
                .iter()
                .find(|row| row.address == key.remote && row.port == port && row.protocol.number() == key.protocol);
            return match row.map(|row| row.verdict) {
                Some(ServiceVerdict::Allow) => Reason::Service,
                Some(ServiceVerdict::Deny) => Reason::PolicyDeny,
                None if denies || unasked => Reason::NoGrant,
                None => Reason::DefaultAllow,
            };
        }
        let by_place = match place {
            Place::Peer(peer) => self.rules.peers.iter().find(|row| row.0 == peer).map_or(Bits::NONE, |row| row.1),
            Place::World => {
                let covering = self.rules.cidrs.iter().filter(|(net, _)| net.contains(&key.remote));
                covering.max_by_key(|(net, _)| net.prefix_len()).map_or(Bits::NONE, |(_, bits)| *bits)
            }
        };
        let matched = Bits::ANY_PEER | granted | by_place;
        let rows = || self.rules.ports.iter().filter(|row| row.direction == opened);
        let named = rows().filter(|row| row.protocol.number() == key.protocol && row.ports.holds(port));
        let named = named.max_by_key(|row| row.ports.length());
        let row = named.or_else(|| rows().find(|row| row.protocol == Protocol::Any));
        if let Some(row) = row {
            if matched.meets(row.deny) {
                return Reason::PolicyDeny;
            }
            if matched.meets(row.allow) && (named.is_some() || !unasked) {
                return match place {
                    _ if granted.meets(row.allow) => Reason::Granted,
                    Place::Peer(_) if by_place.meets(row.allow) => Reason::Peer,
                    _ => Reason::Cidr,
                };
            }
        }
        if unasked {
            return Reason::NoGrant;
        }
        let host = [Place::Peer(PeerId::HOST), Place::Peer(PeerId::HOST_APISERVER)].contains(&place);
        if opened == Direction::Ingress && host {
            return Reason::Host;
        }
        match (denies, stale) {
            (false, _) => Reason::DefaultAllow,
            (true, true) => Reason::Expired,
            (true, false) => Reason::NoGrant,
        }
    }

    /// ICMP of no flow and no question.
    fn unasked(&self, direction: Direction, key: FlowKey, number: u8, otherwise: Reason) -> Reason {
        match self.policy(direction, key, u16::from(number) << 8, false) {
            Reason::NoGrant => otherwise,
            reason => reason,
        }
    }

    fn verdict(&mut self, packet: &Packet) -> Reason {
        let protocol = packet.kind.protocol(packet.remote.is_ipv4());
        let number = if let Kind::Icmp { number } = packet.kind { Some(number) } else { None };
        let query = number.and_then(|number| query_of(packet.remote.is_ipv4(), number));
        let echo = number.is_some();
        let key = FlowKey {
            remote: packet.remote,
            local_port: packet.local_port,
            remote_port: if echo { u16::from(query.unwrap_or_default()) << 8 } else { packet.remote_port },
            protocol,
        };
        if let (Some(number), None) = (number, query) {
            let error = number == OTHERS[usize::from(!packet.remote.is_ipv4())][2];
            let otherwise = if error { Reason::IcmpUnrelated } else { Reason::Protocol };
            return self.unasked(packet.direction, key, number, otherwise);
        }
        let steered =
            matches!(protocol, TCP | UDP) && packet.direction == Direction::Egress && packet.remote_port == 53;
        if self.flags & flag::STEER != 0 && steered {
            match self.resolvers.contains(&packet.remote) {
                true => return Reason::Steered,
                false if self.flags & flag::DENY_EGRESS != 0 => return Reason::UnknownResolver,
                false => {}
            }
        }
        let port = |opened| match opened {
            _ if echo => key.remote_port,
            Direction::Egress => packet.remote_port,
            Direction::Ingress => packet.local_port,
        };
        let opens = match packet.kind {
            Kind::Tcp { flags, .. } => flags & (SYN | ACK) == SYN,
            Kind::Udp | Kind::Sctp => false,
            Kind::Icmp { number } => query == Some(number),
        };
        let sequence = if let Kind::Tcp { sequence, .. } = packet.kind { sequence } else { 0 };
        let mut replaces = false;
        let mut is_reply = false;
        if let Some(flow) = self.flows.get(&key).copied() {
            is_reply = flow.opened != packet.direction;
            let again = match flow.generation == self.generation {
                true => None,
                false => Some(self.policy(flow.opened, key, port(flow.opened), true)),
            };
            let stored = self.flows.get_mut(&key).expect("it was there a moment ago");
            stored.generation = self.generation;
            match again {
                Some(again) if !again.passed() => {
                    stored.revoked = Some(again);
                    return again;
                }
                // Taken away and given back: as if it had been answered.
                Some(_) if stored.revoked.take().is_some() => stored.answered_or_closed = true,
                _ => (),
            }
            match stored.revoked {
                Some(why) if is_reply && !opens => return why,
                Some(_) => (),
                None if !opens || (echo && !is_reply) => {
                    if let Kind::Tcp { flags, .. } = packet.kind {
                        stored.answered_or_closed |= is_reply || flags & (RST | FIN) != 0;
                    }
                    return Reason::Flow;
                }
                None if !echo && !is_reply && !stored.answered_or_closed && stored.sequence == sequence => {
                    return Reason::Flow;
                }
                None => (),
            }
            replaces = true;
        }
        if let Some(number) = number.filter(|_| !opens) {
            return self.unasked(packet.direction, key, number, Reason::NotAReply);
        }
        let mut opened = packet.direction;
        let mut reason = self.policy(opened, key, port(opened), false);
        let is_stray = reason == Reason::DefaultAllow && opened == Direction::Ingress;
        // It may be the pod's own connection that nobody saw begin.
        if is_stray && !replaces && protocol == TCP && !opens && packet.local_port >= 32_768 {
            opened = Direction::Egress;
            reason = self.policy(opened, key, port(opened), false);
        }
        if !reason.passed() {
            return if replaces && is_reply && reason == Reason::NoGrant { Reason::NotAReply } else { reason };
        }
        self.flows.remove(&key);
        if self.flows.len() >= self.budget {
            return Reason::FlowBudget;
        }
        let closed = matches!(packet.kind, Kind::Tcp { flags, .. } if flags & RST != 0);
        let isn = if opens { sequence } else { 0 };
        let flow =
            Flow { opened, generation: self.generation, sequence: isn, answered_or_closed: closed, revoked: None };
        self.flows.insert(key, flow);
        reason
    }
}

fn addresses() -> Vec<IpAddr> {
    let v4 = (1..=7).map(|n| IpAddr::from([203, 0, 113, n]));
    let v6 = (1..=7).map(|n| IpAddr::from([0x2001, 0xdb8, 2, 0, 0, 0, 0, n]));
    v4.chain(v6).collect()
}

const PORTS: [u16; 5] = [53, 80, 443, 8080, 0];

/// Ports that rows may have: single ones, blocks around them, all of them; port 0 by itself is no wildcard.
fn blocks(protocol: Protocol) -> Vec<PortBlock> {
    let number = match protocol {
        Protocol::Any => return vec![PortBlock::ANY],
        Protocol::Icmp => 0,
        Protocol::Icmpv6 => 1,
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp => {
            let single = PORTS.map(PortBlock::one);
            let ranges = [(0, 0x7fff), (64, 127), (80, 81), (0x1f00, 0x1fff), (440, 447)];
            let ranges = ranges.into_iter().flat_map(|(first, last)| PortBlock::of_range(first, last));
            return ranges.chain(single).chain([PortBlock::ANY]).collect();
        }
    };
    let asked = QUERIES[number].iter().flat_map(|(query, answer)| [*query, *answer]);
    asked.chain(OTHERS[number]).map(PortBlock::icmp_type).collect()
}

/// What a Service can serve by.
const SERVED: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// A random rule set with everything around it, in the model and in the kernel.
fn build(random: &mut Random, bench: &mut Bench, policy_id: u32) -> Model {
    let mut rules = no_rules();
    for direction in [Direction::Egress, Direction::Ingress] {
        let protocols = [Protocol::Any, Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp, Protocol::Icmpv6];
        for protocol in protocols {
            for ports in blocks(protocol) {
                if random.chance(65) {
                    continue;
                }
                let any = if random.chance(10) { Bits::ANY_PEER } else { Bits::NONE };
                let deny = if random.chance(15) { random.bits() } else { Bits::NONE };
                rules.ports.push(PortRow { direction, protocol, ports, allow: random.bits() | any, deny });
            }
        }
    }
    let addresses = addresses();
    let mut places = HashMap::new();
    let mut grants = HashMap::new();
    for address in &addresses {
        if random.chance(45) {
            let peer = random.of(&[
                PeerId::HOST,
                PeerId::HOST_APISERVER,
                PeerId::SERVICE,
                PeerId::STEERING,
                A_PEER,
                PeerId(21),
            ]);
            places.insert(*address, peer);
            if peer == PeerId::SERVICE {
                for port in PORTS {
                    let verdict = random.of(&[ServiceVerdict::Allow, ServiceVerdict::Deny]);
                    for protocol in SERVED.into_iter().filter(|_| random.chance(80)) {
                        rules.services.push(ServiceRow { address: *address, protocol, port, verdict });
                    }
                }
            }
        }
        if random.chance(60) {
            grants.insert(*address, (random.bits(), if random.chance(50) { random.bits() } else { Bits::NONE }));
        }
    }
    for peer in [PeerId::HOST, PeerId::HOST_APISERVER, A_PEER, PeerId(21)] {
        rules.peers.push((peer, random.bits()));
    }
    for net in ["0.0.0.0/0", "203.0.113.0/30", "203.0.113.6/32", "::/0", "2001:db8:2::4/126"] {
        if random.chance(50) {
            rules.cidrs.push((net.parse().expect("a prefix"), random.bits()));
        }
    }
    let mut flags = EndpointRow::flags_of(&rules) & !(flag::DENY_EGRESS | flag::DENY_INGRESS);
    for (flag, percent) in [(flag::DENY_EGRESS, 75), (flag::DENY_INGRESS, 75), (flag::STEER, 50)] {
        flags |= if random.chance(percent) { flag } else { 0 };
    }
    let resolvers: Vec<IpAddr> = addresses.iter().copied().filter(|_| random.chance(40)).collect();
    let budget = if random.chance(20) { 3 } else { 2000 };
    let fragment_budget = if random.chance(60) { 1 } else { 2000 };

    bench.forget_flows();
    bench.row.policy_id = policy_id;
    bench.row.generation += 1;
    bench.row.flags = flags;
    bench.rules(&rules);
    bench.kernel.delete_all_grants().expect("grants are deleted");
    for (address, (live, expired)) in &grants {
        let mut slots = [namegate::engine::grant::Slot::default(); 4];
        slots[0] = namegate::engine::grant::Slot { bits: *live, until: later() };
        slots[1] = namegate::engine::grant::Slot { bits: *expired, until: MonoNs(u64::from(!expired.is_empty())) };
        let write = namegate::engine::grant::GrantWrite { address: *address, slots };
        namegate::kernel::GrantStore::install(&bench.kernel, ENDPOINT, &[write]).expect("a grant is written");
    }
    let peers: Vec<(IpAddr, PeerId)> = places.iter().map(|(address, peer)| (*address, *peer)).collect();
    bench.kernel.set_peers(&peers, || Ok(())).expect("peers are written");
    let pairs: Vec<(IpAddr, IpAddr)> =
        resolvers.iter().enumerate().map(|(n, resolver)| (*resolver, local(n, resolver))).collect();
    bench.kernel.set_steering(&pairs, 15353).expect("steering is written");
    bench
        .kernel
        .set_limits(
            FlowLimits {
                share: budget as u32,
                pool: 0,
                fragment_share: fragment_budget as u32,
                fragment_pool: 0,
                ..limits()
            },
            15353,
        )
        .expect("limits are written");
    bench.flip();
    bench.kernel.delete_rules_except(&[policy_id]).expect("old rows are removed");
    let generation = bench.row.generation;
    let (flows, firsts) = (HashMap::new(), BTreeMap::new());
    Model { flags, generation, rules, grants, places, resolvers, budget, flows, firsts, fragment_budget }
}

fn local(n: usize, resolver: &IpAddr) -> IpAddr {
    match resolver {
        IpAddr::V4(_) => IpAddr::from([198, 18, 0, n as u8]),
        IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 0x18, 0, 0, 0, 0, n as u16]),
    }
}

/// A packet that is understood.
fn packet(random: &mut Random) -> Packet {
    let remote = random.of(&addresses());
    let kind = match random.below(14) {
        0..6 => {
            let flags = random.of(&[SYN, SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST]);
            Kind::Tcp { flags, sequence: random.below(3) as u32 + 1 }
        }
        6..9 => Kind::Udp,
        9 => Kind::Sctp,
        10..13 => {
            let (query, answer) = random.of(QUERIES[usize::from(remote.is_ipv6())]);
            Kind::Icmp { number: random.of(&[query, query, answer]) }
        }
        _ => Kind::Icmp { number: random.of(&OTHERS[usize::from(remote.is_ipv6())]) },
    };
    Packet {
        direction: random.of(&[Direction::Egress, Direction::Egress, Direction::Ingress]),
        remote,
        local_port: random.of(&[40000, 8080]),
        remote_port: random.of(&PORTS),
        kind,
    }
}

fn frame(packet: &Packet) -> Vec<u8> {
    let (pod, protocol) = (pod_for(packet.remote), packet.kind.protocol(packet.remote.is_ipv4()));
    match packet.direction {
        Direction::Egress => from_pod(pod, packet.remote, protocol, &payload(packet)),
        Direction::Ingress => to_pod(packet.remote, pod, protocol, &payload(packet)),
    }
}

fn payload(packet: &Packet) -> Vec<u8> {
    let (pod, family4) = (pod_for(packet.remote), packet.remote.is_ipv4());
    let (source, destination) = match packet.direction {
        Direction::Egress => (packet.local_port, packet.remote_port),
        Direction::Ingress => (packet.remote_port, packet.local_port),
    };
    match packet.kind {
        Kind::Tcp { flags, sequence } => tcp(source, destination, sequence, flags),
        Kind::Udp => udp(source, destination, 12),
        Kind::Sctp => sctp(source, destination),
        Kind::Icmp { number } if number == OTHERS[usize::from(!family4)][2] => {
            icmp(number, 0, &[&[0; 4][..], &ip(pod, packet.remote, TCP, &tcp(1, 2, 1, SYN))].concat())
        }
        Kind::Icmp { number } => echo(number, packet.local_port),
    }
}

/// A frame that is refused, or let through, before any policy is asked: with the reason that must be counted.
fn oddity(random: &mut Random, bench: &mut Bench, model: &Model) -> (Direction, Vec<u8>, Reason) {
    let remote = random.of(&addresses());
    let pod = pod_for(remote);
    let syn = tcp(40000, 443, 1, SYN);
    let good = ip(pod, remote, TCP, &syn);
    let ethertype = ethertype_of(remote);
    let wrap = |ethertype, packet: &[u8]| ethernet(POD_MAC, NODE_MAC, ethertype, packet);
    let own4 = if let IpAddr::V4(own) = pod4() { own } else { unreachable!("pod4 is IPv4") };
    let own6 = if let IpAddr::V6(own) = pod6() { own } else { unreachable!("pod6 is IPv6") };
    let all_nodes = "ff02::1".parse().expect("an address");
    let egress = |frame, reason| (Direction::Egress, frame, reason);
    match random.below(19) {
        0 => egress(wrap(0x8100, &[&[0, 0, 8, 0][..], &good].concat()), Reason::Tagged),
        1 => egress(wrap(0x88cc, &good), Reason::Ethertype),
        2 => egress(wrap(ethertype, &good[..30]), Reason::Malformed),
        3 => {
            let options = [131, 3, 4, 0];
            egress(wrap(0x0800, &ip4(own4, own4, TCP, 0, &options, &syn)), Reason::SourceRoute)
        }
        4 => {
            let headers: Vec<u8> = (0..6).flat_map(|_| extension(60, &[])).chain(extension(TCP, &[])).collect();
            egress(wrap(0x86dd, &ip6(own6, own6, 0, &[headers, syn].concat())), Reason::ExtensionHeader)
        }
        5 => egress(wrap(0x86dd, &ip6(own6, own6, 44, &[extension(TCP, &[]), syn].concat())), Reason::FragmentAtomic),
        6 => egress(from_pod(pod, remote, 47, &[0; 24]), Reason::Protocol),
        7 => egress(from_pod(remote, pod, TCP, &syn), Reason::SpoofedAddress),
        8 => egress(ethernet(NODE_MAC, NODE_MAC, ethertype, &good), Reason::SpoofedMac),
        9 => (Direction::Ingress, to_pod(remote, remote, TCP, &syn), Reason::OtherDestination),
        10 => egress(wrap(0x0806, &arp(2, POD_MAC, [9, 9, 9, 9].into(), own4)), Reason::ArpSpoofed),
        11 => egress(
            wrap(0x86dd, &ip6_hops(own6, all_nodes, ICMPV6, 64, &neighbour(136, own6, POD_MAC))),
            Reason::NdSpoofed,
        ),
        12 => egress(wrap(0x0806, &arp(1, POD_MAC, own4, own4)), Reason::Arp),
        13 => egress(wrap(0x86dd, &ip6_hops(own6, all_nodes, ICMPV6, 255, &neighbour(135, own6, POD_MAC))), Reason::Nd),
        14 => {
            let quoted = ip(pod, remote, TCP, &tcp(1, 2, 1, SYN));
            let (protocol, kind) = if remote.is_ipv4() { (ICMP, 3) } else { (ICMPV6, 1) };
            let payload = icmp(kind, 1, &[&[0; 4][..], &quoted].concat());
            let key = FlowKey { remote, local_port: 0, remote_port: 0, protocol };
            let wanted = model.unasked(Direction::Ingress, key, kind, Reason::IcmpUnrelated);
            (Direction::Ingress, to_pod(remote, pod, protocol, &payload), wanted)
        }
        15 => {
            match model.flows.iter().find(|(key, flow)| {
                key.protocol != TCP && flow.generation == model.generation && flow.revoked.is_none()
            }) {
                Some((key, _)) => {
                    let pod = pod_for(key.remote);
                    // What the pod sent: a question, or an answer to one.
                    let sent = match key.protocol {
                        UDP => udp(key.local_port, key.remote_port, 8),
                        SCTP => sctp(key.local_port, key.remote_port),
                        _ => echo((key.remote_port >> 8) as u8, key.local_port),
                    };
                    let quoted = ip(pod, key.remote, key.protocol, &sent);
                    let (protocol, kind) = if pod.is_ipv4() { (ICMP, 3) } else { (ICMPV6, 1) };
                    let payload = icmp(kind, 1, &[&[0; 4][..], &quoted].concat());
                    (Direction::Ingress, to_pod(key.remote, pod, protocol, &payload), Reason::IcmpRelated)
                }
                None => egress(wrap(0x0806, &arp(1, POD_MAC, own4, own4)), Reason::Arp),
            }
        }
        16 => {
            bench.flags(flag::CLOSED, 0);
            egress(wrap(ethertype, &good), Reason::EndpointClosed)
        }
        17 => {
            bench.flags(0, flag::ENFORCE);
            egress(wrap(ethertype, &good), Reason::Unenforced)
        }
        _ => {
            bench.kernel.delete_endpoint(IFINDEX);
            egress(wrap(ethertype, &good), Reason::NoEndpoint)
        }
    }
}

pub fn the_programs_agree_with_a_model_on_random_rules_and_packets() {
    let mut random = Random(SEED);
    let mut bench = Bench::new();
    let mut seen: HashMap<Reason, usize> = HashMap::new();
    for set in 0..RULE_SETS {
        let mut model = build(&mut random, &mut bench, 100 + set as u32);
        for number in 0..PACKETS / RULE_SETS {
            let place = format!("seed {SEED}, rule set {set}, packet {number}");
            let (found, wanted) = if random.chance(20) {
                fragments::step(&mut random, &bench, &mut model)
            } else if random.chance(30) {
                let flags = bench.row.flags;
                let (direction, frame, wanted) = oddity(&mut random, &mut bench, &model);
                let found = bench.run(direction, &frame);
                bench.row.flags = flags;
                bench.flip();
                (found, wanted)
            } else {
                if random.chance(3) {
                    // A reload that changes nothing: flows are judged anew.
                    bench.row.generation += 1;
                    bench.flip();
                    model.generation = bench.row.generation;
                }
                let packet = packet(&mut random);
                let found = bench.run(packet.direction, &frame(&packet));
                (found, model.verdict(&packet))
            };
            assert_eq!(found.text(), wanted.text(), "{place}");
            *seen.entry(found).or_default() += 1;
        }
    }
    let mut rare = Vec::new();
    for reason in Reason::ALL.iter().filter(|reason| !UNREACHED.contains(reason)) {
        let share = seen.get(reason).copied().unwrap_or(0) as f64 / PACKETS as f64 * 100.0;
        println!("{:20} {share:6.2} %", reason.text());
        if share < 0.5 {
            rare.push(reason.text());
        }
    }
    assert!(rare.is_empty(), "each reason must come at least at 0.5 %: {rare:?}");
}
