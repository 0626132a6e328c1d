//! What must become of a frame, by I1 to I13: lists instead of maps, addresses that know their family, no bits in words. It
//! keeps what the programs keep (flows, budgets, learned MACs) and is asked frame by frame.

mod fragments;
mod police;
mod policy;

use std::collections::BTreeMap;
use std::net::IpAddr;

use namegate::engine::ruleset::Direction;
use namegate::kernel::abi::flag;
use namegate::observe::Reason;
use namegate_frames::Skb;

pub use fragments::{First, FirstKey};

use super::reading::{ACK, Class, FIN, Packet, RST, SYN, TCP, UDP, is_icmp_error, is_multicast, query_of, read, word};
use super::world::{Endpoint, PROXY, PROXY_TLS, SECOND, World};

/// The mark of frames that leave no trace.
pub const PROBE: u32 = 0x6e61_6d65;
/// What an endpoint may say and send in a second.
pub const EVENTS: u32 = 100;
pub const REJECTS: u32 = 40;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FlowKey {
    pub endpoint: u32,
    pub remote: IpAddr,
    pub local_port: u16,
    /// Of ICMP the type that asks, in the upper octet.
    pub remote_port: u16,
    pub protocol: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Syn,
    Established,
    Fin(Side),
    Closed,
    Datagram,
    DatagramBoth,
    Revoked(Reason),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Pod,
    Remote,
}

#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub opened: Direction,
    pub state: State,
    pub generation: u32,
    /// Nobody saw it begin, and no rule lets it through.
    adopted: bool,
    last: u64,
    sequence: u32,
    pooled: bool,
}

/// Where a query or its reply goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Steered {
    pub address: IpAddr,
    pub port: u16,
}

/// What must become of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ruling {
    pub reason: Reason,
    /// With [`Reason::Audit`]: what it would have been dropped for.
    pub audited: Option<Reason>,
    pub packet: Option<Packet>,
    /// The packet is a reply of its flow.
    pub reply: bool,
    pub steered: Option<Steered>,
    /// It is answered, or would be if it were not too short or long.
    pub rejected: bool,
    /// An event is sent.
    pub told: bool,
}

#[derive(Default)]
struct Bucket {
    second: u64,
    events: u32,
    rejects: u32,
}

/// Flows, and datagrams in fragments.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Used {
    pub flows: u32,
    pub fragments: u32,
}

/// One run, with all that the judge knows of it.
struct Run<'a> {
    world: &'a World,
    endpoint: &'a Endpoint,
    direction: Direction,
    probe: bool,
    now: u64,
}

#[derive(Default)]
pub struct Judge {
    pub flows: BTreeMap<FlowKey, Flow>,
    pub firsts: BTreeMap<FirstKey, First>,
    macs: BTreeMap<u32, [u8; 6]>,
    /// By slot.
    pub used: BTreeMap<u32, Used>,
    pub pooled: Used,
    buckets: BTreeMap<u32, Bucket>,
}

/// Where a packet is steered to, or why it is not; `None`: it is no query and no reply.
type Steer = fn(&Run<'_>, &Packet, &mut Notes) -> Option<Reason>;

/// What is found out on the way to a reason.
#[derive(Default)]
struct Notes {
    packet: Option<Packet>,
    audited: Option<Reason>,
    reply: bool,
    steered: Option<Steered>,
}

impl Judge {
    pub fn rule(&mut self, world: &World, skb: &Skb<'_>, now: u64) -> Ruling {
        let direction = if skb.inbound { Direction::Ingress } else { Direction::Egress };
        let mut notes = Notes::default();
        let Some(endpoint) = world.at(skb.ifindex) else {
            return self.carry_out(skb, None, now, (Reason::NoEndpoint, notes));
        };
        let run = Run { world, endpoint, direction, probe: skb.mark == PROBE, now };
        if endpoint.is(flag::CLOSED) {
            return self.carry_out(skb, Some(endpoint), now, (Reason::EndpointClosed, notes));
        }
        let mut reason = match direction {
            Direction::Egress => self.outward(&run, skb, &mut notes),
            Direction::Ingress => self.inward(&run, skb, &mut notes),
        };
        // As itself, and not straight to the proxy: that holds whatever policy says.
        let posing = [Reason::SpoofedAddress, Reason::SpoofedMac, Reason::ArpSpoofed, Reason::NdSpoofed];
        if !reason.passed() && !endpoint.is(flag::ENFORCE) && !posing.contains(&reason) {
            reason = Reason::Unenforced;
        }
        let always = [Reason::SteeringAddress, Reason::OtherDestination];
        if !reason.passed()
            && endpoint.is(flag::AUDIT)
            && endpoint.is(flag::ENFORCE)
            && !posing.contains(&reason)
            && !always.contains(&reason)
        {
            notes.audited = Some(reason);
            reason = Reason::Audit;
        }
        self.carry_out(skb, Some(endpoint), now, (reason, notes))
    }

    fn outward(&mut self, run: &Run<'_>, skb: &Skb<'_>, notes: &mut Notes) -> Reason {
        let (packet, class) = read(skb);
        notes.packet = packet;
        match (packet, class) {
            (_, Class::Arp) => return self.arp(run, skb),
            (Some(packet), Class::Nd) => return self.neighbour(run, skb, &packet),
            (Some(packet), _) => {
                // An own IPv4 address in IPv6 is its own, and malformed.
                if !run.endpoint.addresses.contains(&packet.source.to_canonical()) {
                    return Reason::SpoofedAddress;
                }
                if !self.is_own_mac(run, mac(skb, 6)) {
                    return Reason::SpoofedMac;
                }
            }
            (None, _) => {}
        }
        let packet = match (packet, class) {
            (_, Class::Refused(reason)) => return reason,
            (Some(packet), _) => packet,
            (None, _) => unreachable!("what is understood has a packet"),
        };
        if !run.endpoint.is(flag::ENFORCE) {
            return Reason::Unenforced;
        }
        self.judge(run, skb, &packet, notes, Judge::steer_query)
    }

    /// Steering and policy; a fragment comes first, or after one that passed them.
    fn judge(&mut self, run: &Run<'_>, skb: &Skb<'_>, packet: &Packet, notes: &mut Notes, steer: Steer) -> Reason {
        if let Some(piece) = &packet.piece
            && let Some(reason) = self.follow(run, packet, piece)
        {
            return reason;
        }
        let reason = match steer(run, packet, notes) {
            Some(reason) => reason,
            None => self.decide(run, skb, packet, notes),
        };
        match &packet.piece {
            Some(piece) => self.lead(run, packet, piece, reason),
            None => reason,
        }
    }

    fn inward(&mut self, run: &Run<'_>, skb: &Skb<'_>, notes: &mut Notes) -> Reason {
        if !run.endpoint.is(flag::ENFORCE) {
            return Reason::Unenforced;
        }
        let (packet, class) = read(skb);
        notes.packet = packet;
        let packet = match (packet, class) {
            (_, Class::Refused(reason)) => return reason,
            // Policed where they come from; but what was forwarded is not from this link (RFC 4861, 7.1).
            (Some(packet), Class::Nd) => {
                let forwarded = packet.hops != 255 && !is_multicast(packet.destination);
                return if forwarded { Reason::NdSpoofed } else { Reason::Nd };
            }
            (Some(packet), Class::Understood) => packet,
            (_, Class::Arp) => return Reason::Arp,
            (None, _) => unreachable!("what is understood has a packet"),
        };
        if !is_multicast(packet.destination) && !run.endpoint.addresses.contains(&packet.destination) {
            return Reason::OtherDestination;
        }
        self.judge(run, skb, &packet, notes, Judge::steer_reply)
    }

    fn steer_reply(run: &Run<'_>, packet: &Packet, notes: &mut Notes) -> Option<Reason> {
        let World { pairs, tls, .. } = run.world;
        let from = pairs.iter().find(|(_, local)| *local == packet.source);
        let (resolver, _) = from.filter(|_| run.endpoint.is(flag::STEER))?;
        let port = match (packet.protocol, packet.ports.0) {
            (TCP | UDP, PROXY) => 53,
            (TCP, PROXY_TLS) if *tls => 853,
            _ => return None,
        };
        notes.steered = Some(Steered { address: *resolver, port });
        Some(Reason::Steered)
    }

    fn steer_query(run: &Run<'_>, packet: &Packet, notes: &mut Notes) -> Option<Reason> {
        let port = match (packet.protocol, packet.ports.1) {
            (TCP | UDP, 53) => PROXY,
            (TCP, 853) => PROXY_TLS,
            _ => return None,
        };
        if !run.endpoint.is(flag::STEER) {
            return None;
        }
        let to = run.world.pairs.iter().find(|(resolver, _)| *resolver == packet.destination);
        let Some((_, local)) = to.filter(|_| port == PROXY || run.world.tls) else {
            let asks_elsewhere = port == PROXY && run.endpoint.is(flag::DENY_EGRESS);
            return asks_elsewhere.then_some(Reason::UnknownResolver);
        };
        if packet.piece.is_some() {
            return Some(Reason::FragmentSteered); // the proxy gets whole packets only
        }
        if run.endpoint.is(flag::BRIDGED) && !run.endpoint.has_bridge && !run.probe {
            return Some(Reason::Internal);
        }
        notes.steered = Some(Steered { address: *local, port });
        Some(Reason::Steered)
    }

    fn decide(&mut self, run: &Run<'_>, skb: &Skb<'_>, packet: &Packet, notes: &mut Notes) -> Reason {
        if !is_icmp(packet) || query_of(packet.protocol, packet.kind).is_some() {
            return self.converse(run, packet, notes);
        }
        if !is_icmp_error(packet.protocol, packet.kind) {
            return unasked(run, packet, Reason::Protocol);
        }
        match self.relate(run, skb, packet) {
            Reason::IcmpUnrelated => unasked(run, packet, Reason::IcmpUnrelated),
            reason => reason,
        }
    }

    fn converse(&mut self, run: &Run<'_>, packet: &Packet, notes: &mut Notes) -> Reason {
        let key = key_of(run, packet);
        let opening = opens(packet);
        if let Some(flow) = self.flows.get(&key).copied().filter(|flow| is_over(run, flow)) {
            if run.probe {
                return self.open(run, packet, key, None, notes);
            }
            self.forget(run, key, flow);
        }
        let Some(mut flow) = self.flows.get(&key).copied() else { return self.open(run, packet, key, None, notes) };
        let put_anew = flow.generation != run.endpoint.generation || (flow.adopted && !adopts(run));
        let anew = put_anew.then(|| judge_anew(run, packet, key, &mut flow));
        notes.reply = flow.opened != run.direction;
        let mut put = |flow: Flow| {
            if !run.probe {
                self.flows.insert(key, flow);
            }
        };
        if let Some(reason) = anew {
            flow.generation = run.endpoint.generation;
            if !reason.passed() && !run.endpoint.is(flag::AUDIT) {
                put(Flow { state: State::Revoked(reason), adopted: false, last: run.now, ..flow });
                return reason;
            }
            if let State::Revoked(_) = flow.state
                && !run.probe
            {
                flow.state = if packet.protocol == TCP { State::Established } else { State::DatagramBoth };
            }
            put(flow);
        }
        match flow.state {
            State::Revoked(reason) if notes.reply && !opening => {
                put(Flow { last: run.now, ..flow });
                return reason;
            }
            State::Revoked(_) => {}
            _ if !opening || (is_icmp(packet) && !notes.reply) => {
                let state = moved(&flow, packet, run.direction, notes.reply);
                if state != flow.state || run.now - flow.last >= SECOND {
                    put(Flow { state, last: run.now, ..flow });
                }
                return Reason::Flow;
            }
            State::Syn if !is_icmp(packet) && !notes.reply && flow.sequence == packet.sequence => return Reason::Flow,
            _ => {}
        }
        self.open(run, packet, key, Some(flow), notes)
    }

    /// Policy is asked for a new conversation; `old`: what has its ports now.
    fn open(&mut self, run: &Run<'_>, packet: &Packet, key: FlowKey, old: Option<Flow>, notes: &mut Notes) -> Reason {
        if is_icmp(packet) && !opens(packet) {
            notes.reply = false;
            return unasked(run, packet, Reason::NotAReply);
        }
        let port = responder(packet, key, run.direction);
        let mut reason = policy::word_of(run, packet.protocol, key.remote, run.direction, port, false);
        if notes.reply && reason == Reason::NoGrant {
            reason = Reason::NotAReply;
        }
        let mut opened = run.direction;
        if old.is_none() && packet.protocol == TCP && !opens(packet) {
            (reason, opened) = midst(run, packet, key, reason);
        }
        if !reason.passed() {
            if !run.endpoint.is(flag::AUDIT) {
                return reason;
            }
            notes.audited = Some(reason);
            reason = Reason::Audit;
        }
        notes.reply = opened != run.direction;
        if run.probe {
            return reason;
        }
        if let Some(old) = old {
            self.forget(run, key, old);
        }
        let Some(pooled) = self.charge(run) else { return Reason::FlowBudget };
        let flow = Flow {
            opened,
            state: match packet.protocol {
                TCP if packet.flags & RST != 0 => State::Closed,
                TCP => State::Syn,
                _ => State::Datagram,
            },
            generation: run.endpoint.generation,
            adopted: reason == Reason::Adopted,
            last: run.now,
            sequence: if opens(packet) { packet.sequence } else { 0 },
            pooled,
        };
        if self.flows.len() as u32 >= run.world.table {
            self.discharge(run, pooled);
            return Reason::FlowTable;
        }
        self.flows.insert(key, flow);
        reason
    }

    /// An ICMP error follows the live flow that it quotes (RFC 1122, 3.2.2).
    fn relate(&self, run: &Run<'_>, skb: &Skb<'_>, packet: &Packet) -> Reason {
        let quoted = skb.octets.get(packet.at + 8..).unwrap_or_default();
        let v4 = packet.source.is_ipv4();
        let Some(header) = quoted.get(..if v4 { 20 } else { 40 }) else { return Reason::Malformed };
        if header[0] >> 4 != if v4 { 4 } else { 6 } || (v4 && header[0] & 15 < 5) {
            return Reason::Malformed;
        }
        let address = |at: usize| match v4 {
            true => IpAddr::from(<[u8; 4]>::try_from(&header[at..at + 4]).expect("four octets")),
            false => IpAddr::from(<[u8; 16]>::try_from(&header[at..at + 16]).expect("sixteen octets")),
        };
        let (source, destination) = if v4 { (address(12), address(16)) } else { (address(8), address(24)) };
        let (mut protocol, mut at) = if v4 { (header[9], usize::from(header[0] & 15) * 4) } else { (header[6], 40) };
        if v4 && u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0 {
            return Reason::IcmpUnrelated; // a later fragment has no ports
        }
        if [source, destination].iter().any(|address| address.to_canonical().is_ipv4() != v4) {
            return Reason::IcmpUnrelated;
        }
        if !v4 && protocol == 44 {
            let Some(fragment) = quoted.get(40..48) else { return Reason::Malformed };
            if u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff8 != 0 {
                return Reason::IcmpUnrelated;
            }
            (protocol, at) = (fragment[0], 48);
        }
        let (Some(first), Some(second)) = (word(quoted, at), word(quoted, at + 2)) else { return Reason::Malformed };
        // To the pod it quotes what the pod sent, from the pod what it received.
        let inbound = run.direction == Direction::Ingress;
        let (own, remote) = if inbound { (source, destination) } else { (destination, source) };
        let (mut local_port, mut remote_port) = if inbound { (first, second) } else { (second, first) };
        if matches!(protocol, 1 | 58) {
            let Some(query) = query_of(protocol, (first >> 8) as u8) else { return Reason::IcmpUnrelated };
            let Some(identifier) = word(quoted, at + 4) else { return Reason::Malformed };
            (local_port, remote_port) = (identifier, u16::from(query) << 8);
        }
        if !run.endpoint.addresses.contains(&own) || (!inbound && packet.destination != remote) {
            return Reason::IcmpUnrelated;
        }
        let key = FlowKey { endpoint: run.endpoint.id, remote, local_port, remote_port, protocol };
        let alive = self.flows.get(&key).is_some_and(|flow| {
            flow.generation == run.endpoint.generation
                && !matches!(flow.state, State::Revoked(_))
                && !is_over(run, flow)
        });
        if alive { Reason::IcmpRelated } else { Reason::IcmpUnrelated }
    }

    fn forget(&mut self, run: &Run<'_>, key: FlowKey, flow: Flow) {
        self.flows.remove(&key);
        self.discharge(run, flow.pooled);
    }

    /// One more flow: of the endpoint's own share (false), or of the pool (true).
    fn charge(&mut self, run: &Run<'_>) -> Option<bool> {
        let World { limit, share, pool, .. } = *run.world;
        let used = &mut self.used.entry(run.endpoint.slot).or_default().flows;
        if *used >= limit || (*used >= share && self.pooled.flows >= pool) {
            return None;
        }
        let pooled = *used >= share;
        *used += 1;
        self.pooled.flows += u32::from(pooled);
        Some(pooled)
    }

    fn discharge(&mut self, run: &Run<'_>, pooled: bool) {
        self.used.entry(run.endpoint.slot).or_default().flows -= 1;
        self.pooled.flows -= u32::from(pooled);
    }

    fn carry_out(
        &mut self,
        skb: &Skb<'_>,
        endpoint: Option<&Endpoint>,
        now: u64,
        (reason, notes): (Reason, Notes),
    ) -> Ruling {
        let Notes { packet, audited, reply, steered } = notes;
        let mut ruling = Ruling { reason, audited, packet, reply, steered, rejected: false, told: false };
        let opened = Reason::Granted..=if skb.inbound { Reason::Host } else { Reason::DefaultAllow };
        let news = opened.contains(&reason) || matches!(reason, Reason::Audit | Reason::Adopted);
        if skb.mark == PROBE || (reason.passed() && !news) {
            return ruling;
        }
        // Whoever is behind unknown interfaces shares a row.
        let bucket = self.buckets.entry(endpoint.map_or(0, |endpoint| endpoint.slot)).or_default();
        if bucket.second != now / SECOND {
            *bucket = Bucket { second: now / SECOND, ..Bucket::default() };
        }
        let may_be_answered = packet.is_some_and(|packet| {
            // Nor is a fragment that does not begin its datagram answered (RFC 1122, 3.2.2).
            !is_multicast(packet.destination)
                && packet.piece.is_none_or(|piece| piece.begin == 0)
                && packet.flags & RST == 0
                && (!is_icmp(&packet) || query_of(packet.protocol, packet.kind).is_some())
        });
        let worth_it = !reason.passed() && reason >= Reason::UnknownResolver && reason != Reason::IcmpUnrelated;
        let asked_to = !skb.inbound && endpoint.is_some_and(|endpoint| endpoint.is(flag::REJECT));
        if asked_to && worth_it && may_be_answered && bucket.rejects < REJECTS {
            bucket.rejects += 1;
            ruling.rejected = true;
        }
        if bucket.events < EVENTS {
            bucket.events += 1;
            ruling.told = true;
        }
        ruling
    }
}

pub fn mac(skb: &Skb<'_>, at: usize) -> [u8; 6] {
    skb.octets[at..at + 6].try_into().expect("a frame with an IP header has an Ethernet header")
}

fn is_icmp(packet: &Packet) -> bool {
    matches!(packet.protocol, 1 | 58)
}

/// Whether what was open before the first start still goes on.
fn adopts(run: &Run<'_>) -> bool {
    run.now < u64::from(run.endpoint.adopt_until) * SECOND
}

fn is_wanting(reason: Reason) -> bool {
    matches!(reason, Reason::NoGrant | Reason::Expired)
}

/// Policy's word on a segment of no flow that begins none, and who is taken to have opened its connection: what comes in to
/// 32 768 or above may be an answer.
fn midst(run: &Run<'_>, packet: &Packet, key: FlowKey, reason: Reason) -> (Reason, Direction) {
    let goes_on = adopts(run) && packet.flags & (SYN | RST) == 0 && !run.endpoint.is(flag::AUDIT);
    let adopted = |reason| if goes_on && is_wanting(reason) { Reason::Adopted } else { reason };
    if run.direction == Direction::Egress || key.local_port < 32_768 {
        return (adopted(reason), run.direction);
    }
    let as_own = || {
        let port = responder(packet, key, Direction::Egress);
        policy::word_of(run, TCP, key.remote, Direction::Egress, port, false)
    };
    match reason {
        Reason::DefaultAllow => (adopted(as_own()), Direction::Egress),
        Reason::NoGrant | Reason::Expired if goes_on => match as_own() {
            Reason::DefaultAllow => (Reason::Adopted, Direction::Ingress),
            own => (adopted(own), Direction::Egress),
        },
        other => (other, Direction::Ingress),
    }
}

/// Policy's word on a flow.
fn judge_anew(run: &Run<'_>, packet: &Packet, key: FlowKey, flow: &mut Flow) -> Reason {
    let port = responder(packet, key, flow.opened);
    let reason = policy::word_of(run, packet.protocol, key.remote, flow.opened, port, true);
    if flow.adopted && is_wanting(reason) && adopts(run) {
        return Reason::Adopted;
    }
    flow.adopted &= run.probe || !reason.passed();
    reason
}

fn key_of(run: &Run<'_>, packet: &Packet) -> FlowKey {
    let (endpoint, protocol) = (run.endpoint.id, packet.protocol);
    let (remote, local_port, remote_port) = match run.direction {
        Direction::Egress => (packet.destination, packet.ports.0, packet.ports.1),
        Direction::Ingress => (packet.source, packet.ports.1, packet.ports.0),
    };
    match query_of(packet.protocol, packet.kind).filter(|_| is_icmp(packet)) {
        Some(query) => {
            FlowKey { endpoint, remote, local_port: packet.ports.0, remote_port: u16::from(query) << 8, protocol }
        }
        None => FlowKey { endpoint, remote, local_port, remote_port, protocol },
    }
}

/// The port that rules name: the responder's, or the type of ICMP.
fn responder(packet: &Packet, key: FlowKey, opened: Direction) -> u16 {
    if is_icmp(packet) || opened == Direction::Egress { key.remote_port } else { key.local_port }
}

/// It asks for a new conversation (I13).
fn opens(packet: &Packet) -> bool {
    match packet.protocol {
        TCP => packet.flags & (SYN | ACK) == SYN,
        _ => is_icmp(packet) && query_of(packet.protocol, packet.kind) == Some(packet.kind),
    }
}

fn is_over(run: &Run<'_>, flow: &Flow) -> bool {
    let (seconds, resumable) = match flow.state {
        State::Syn => (60, false),
        State::Established | State::Fin(_) => (8 * 3600, true),
        State::Closed => (10, false),
        State::Datagram => (60, false),
        State::DatagramBoth => (180, true),
        State::Revoked(_) => (180, false),
    };
    let grace = if resumable { u64::from(run.world.grace) } else { 0 };
    run.now.saturating_sub(flow.last) > (seconds + grace) * SECOND
}

fn moved(flow: &Flow, packet: &Packet, direction: Direction, reply: bool) -> State {
    let (mine, other) = match direction {
        Direction::Egress => (Side::Pod, Side::Remote),
        Direction::Ingress => (Side::Remote, Side::Pod),
    };
    match flow.state {
        state if packet.protocol != TCP => {
            if state == State::Datagram && reply {
                State::DatagramBoth
            } else {
                state
            }
        }
        _ if packet.flags & RST != 0 => State::Closed,
        state if packet.flags & FIN != 0 => {
            if state == State::Closed || state == State::Fin(other) {
                State::Closed
            } else {
                State::Fin(mine)
            }
        }
        State::Syn if reply => State::Established,
        state => state,
    }
}

/// ICMP that asks nothing and belongs to no flow passes where a rule names its type.
fn unasked(run: &Run<'_>, packet: &Packet, otherwise: Reason) -> Reason {
    let remote = if run.direction == Direction::Egress { packet.destination } else { packet.source };
    match policy::word_of(run, packet.protocol, remote, run.direction, u16::from(packet.kind) << 8, false) {
        Reason::NoGrant => otherwise,
        reason => reason,
    }
}
