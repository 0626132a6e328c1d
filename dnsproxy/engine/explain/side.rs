//! One side of a connection: the verdict of one workload's rules, the items that it rests on, and those that come near.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::answer::{Connection, Line, Verdict};
use super::{Explainer, words};
use crate::engine::bits::Bits;
use crate::engine::compile::Spoken;
use crate::engine::endpoint::PodRef;
use crate::engine::name::Name;
use crate::engine::port::{PortBlock, covers, holds};
use crate::engine::ruleset::{Direction, PacketVerdict, PeerId, Protocol, RuleSet};

/// The port of DNS.
const DNS: u16 = 53;
/// How many items that come near are named.
const NEAREST: usize = 5;

impl Explainer<'_> {
    /// What `of`'s rules say of a connection with `address`; `names`, with their groups: what it holds for that address.
    pub fn side(
        &self,
        (of, rules): (&PodRef, &RuleSet),
        direction: Direction,
        address: IpAddr,
        port: Option<(Protocol, u16)>,
        (names, bits): (&[Name], Bits),
    ) -> Connection {
        let mut side = Connection {
            direction: words::direction(direction).to_owned(),
            of: of.to_string(),
            peer: Some(address),
            peer_is: self.who(address),
            port: port.map(|(protocol, port)| words::port(protocol, port)),
            ..Connection::default()
        };
        let spoken = |at: (Protocol, u16)| self.compiler.spoken(of, direction, address, at, names);
        match port {
            Some(at) => {
                side.verdict = self.judge(rules, direction, address, at, bits);
                let is_service = rules.known.get(&address) == Some(&PeerId::SERVICE) && direction == Direction::Egress;
                let spoken = if is_service { Vec::new() } else { spoken(at) };
                side.by = self.by((of, rules), direction, (address, at), side.verdict, &spoken);
                if !side.verdict.passes() && side.verdict != Verdict::Denied {
                    side.nearest = self.nearest(&spoken);
                }
            }
            None => {
                let open = |at: (Protocol, u16)| self.judge(rules, direction, address, at, bits).passes();
                side.open = self.open_ports(rules, direction, address, open);
                let spoken = spoken((Protocol::Any, 0));
                let every = self.judge(rules, direction, address, (Protocol::Any, 0), bits);
                side.verdict = match side.open.is_empty() {
                    true if every.passes() => Verdict::NotAllowed, // only what it denies is known
                    true => every,
                    false if every.passes() => every,
                    false => Verdict::Allowed,
                };
                let speaks = |said: &&Spoken| said.peers && said.unenforced.is_none() && (said.deny || !said.in_doubt);
                let by = spoken.iter().filter(speaks);
                side.by = by.map(|said| self.said(said)).collect();
                if side.open.is_empty() {
                    side.by.extend(self.shut_by(of, direction));
                    side.nearest = self.nearest(&spoken);
                }
            }
        }
        side.allowed = side.verdict.passes();
        side
    }

    /// The verdict as the kernel reaches it: queries of a steered workload go to the proxy, all else is looked up.
    pub(super) fn judge(
        &self,
        rules: &RuleSet,
        direction: Direction,
        address: IpAddr,
        (protocol, port): (Protocol, u16),
        bits: Bits,
    ) -> Verdict {
        let query = direction == Direction::Egress && port == DNS && matches!(protocol, Protocol::Udp | Protocol::Tcp);
        if query && rules.steered() {
            if !self.is_proxied(rules, address) {
                return Verdict::UnknownResolver;
            }
            let mut asked = rules.dns.iter().filter(|rule| rule.ports.iter().any(|wide| holds(*wide, protocol, port)));
            return if rules.denies_server(address, protocol, port) {
                Verdict::Denied
            } else if asked.any(|rule| rule.servers.hold(address, &rules.known)) {
                Verdict::Proxied
            } else if rules.deny_egress {
                Verdict::NotAllowed
            } else {
                Verdict::DefaultAllowed
            };
        }
        match rules.evaluate(direction, address, protocol, port, bits) {
            PacketVerdict::Denied => Verdict::Denied,
            PacketVerdict::NotAllowed => Verdict::NotAllowed,
            PacketVerdict::Allowed => Verdict::Allowed,
            PacketVerdict::DefaultAllowed => Verdict::DefaultAllowed,
            PacketVerdict::Host => Verdict::Host,
        }
    }

    /// Whether the proxy stands in for a server.
    pub(super) fn is_proxied(&self, rules: &RuleSet, server: IpAddr) -> bool {
        let named = || rules.resolvers().iter().any(|(address, _, ports)| *address == server && ports.holds(DNS));
        self.surroundings.proxied.contains(&server) || named()
    }

    /// What a verdict rests on.
    fn by(
        &self,
        (of, rules): (&PodRef, &RuleSet),
        direction: Direction,
        (address, (protocol, port)): (IpAddr, (Protocol, u16)),
        verdict: Verdict,
        spoken: &[Spoken],
    ) -> Vec<Line> {
        let decide = |deny: bool| spoken.iter().filter(move |said| said.decides() && said.deny == deny);
        match verdict {
            Verdict::Denied => decide(true).map(|said| self.said(said)).collect(),
            Verdict::Allowed => decide(false).map(|said| self.said(said)).collect(),
            Verdict::Proxied => {
                let asked = rules.dns.iter().filter(|rule| {
                    rule.ports.iter().any(|wide| holds(*wide, protocol, port))
                        && rule.servers.hold(address, &rules.known)
                });
                let lines: BTreeSet<Line> =
                    asked.map(|rule| self.line(&rule.rule, "lets some names be asked here".to_owned())).collect();
                lines.into_iter().collect()
            }
            Verdict::NotAllowed | Verdict::UnknownResolver => self.shut_by(of, direction),
            Verdict::DefaultAllowed | Verdict::Host => Vec::new(),
        }
    }

    /// The rules that make a direction default deny.
    pub(super) fn shut_by(&self, of: &PodRef, direction: Direction) -> Vec<Line> {
        let selecting = self.compiler.selecting(of);
        let rules = selecting.iter().filter_map(|(at, _)| self.written().rules.get(at));
        let shut = rules.filter(|rule| rule.section(direction).default_deny);
        shut.map(|rule| self.line(&rule.at, format!("makes {} default deny", words::direction(direction)))).collect()
    }

    fn said(&self, said: &Spoken) -> Line {
        self.line(
            &said.at,
            self.written().items.get(&said.at).map_or_else(String::new, |item| words::item(item, said.deny)),
        )
    }

    /// Items that would allow it but for one thing, the nearest first.
    pub(super) fn nearest(&self, spoken: &[Spoken]) -> Vec<Line> {
        let mut near: Vec<(u8, Line)> = spoken
            .iter()
            .filter(|said| !said.deny && !said.decides())
            .filter_map(|said| {
                let (rank, why) = match (&said.unenforced, said.peers, said.ports) {
                    (Some(what), true, true) => {
                        (0, format!("would allow it, but demands {what}, which is not enforced by namegate yet"))
                    }
                    (Some(what), ..) => (3, format!("demands {what}, which is not enforced by namegate yet")),
                    (None, true, true) => {
                        (1, "may not select the workload: not all of its labels are known".to_owned())
                    }
                    (None, true, false) => (1, "means this peer, but not this port".to_owned()),
                    (None, false, true) => (2, "means this port, but not this peer".to_owned()),
                    (None, false, false) => return None,
                };
                let line = self.said(said);
                Some((rank, Line { says: format!("{}; it {why}", line.says), ..line }))
            })
            .collect();
        near.sort_by_key(|(rank, _)| *rank);
        near.dedup();
        near.into_iter().map(|(_, line)| line).take(NEAREST).collect()
    }

    /// The ports on which something passes; `not …` what is shut inside a wider one that is open.
    fn open_ports(
        &self,
        rules: &RuleSet,
        direction: Direction,
        address: IpAddr,
        open: impl Fn((Protocol, u16)) -> bool,
    ) -> Vec<String> {
        if rules.known.get(&address) == Some(&PeerId::SERVICE) && direction == Direction::Egress {
            let ports = self.compiler.service_ports(address).into_iter().filter(|at| open(*at));
            return ports.map(|(protocol, port)| words::port(protocol, port)).collect();
        }
        let candidates = candidates(rules, direction);
        let (open, shut): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|(protocol, block)| open((*protocol, block.first())));
        let inside = |wide: &[(Protocol, PortBlock)], narrow: (Protocol, PortBlock)| {
            wide.iter().any(|wide| *wide != narrow && covers(*wide, narrow))
        };
        let own: Vec<_> = open.iter().copied().filter(|at| !inside(&open, *at)).collect();
        let shut: Vec<_> = shut.into_iter().filter(|at| inside(&own, *at)).collect();
        let not = words::blocks(shut).into_iter().map(|text| format!("not {text}"));
        words::blocks(own).into_iter().chain(not).collect()
    }
}

/// The ports that rules tell apart in a direction.
pub(super) fn candidates(rules: &RuleSet, direction: Direction) -> BTreeSet<(Protocol, PortBlock)> {
    let rows = rules.ports.iter().filter(|row| row.direction == direction).map(|row| (row.protocol, row.ports));
    let mut candidates: BTreeSet<_> = rows.chain([(Protocol::Any, PortBlock::ANY)]).collect();
    if direction == Direction::Egress && rules.steered() {
        candidates.extend([(Protocol::Udp, PortBlock::one(DNS)), (Protocol::Tcp, PortBlock::one(DNS))]);
    }
    candidates
}
