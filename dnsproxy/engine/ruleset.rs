//! What the policies that select a workload compile to: the rows of the kernel's maps and the name rules of the proxy.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::bits::Bits;
use super::name::Name;
use super::pattern::{Bare, PatternTrie};
use super::port::{PortBlock, holds, is_unasked};
use super::verdict::{Allowance, Denied, RuleRef};

/// Which way a connection is opened, seen from the workload.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
pub enum Direction {
    /// The workload opens it.
    Egress,
    /// The peer opens it.
    Ingress,
}

/// A protocol as a port row names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
pub enum Protocol {
    /// Every protocol that can pass at all: of rules without `toPorts`.
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP for IPv4.
    Icmp,
    /// ICMP for IPv6.
    Icmpv6,
}

impl Protocol {
    /// The number in the IP header; 0 for any.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Any => 0,
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
            Protocol::Icmp => 1,
            Protocol::Icmpv6 => 58,
        }
    }
}

/// One row of the kernel's `ports` map: already the union of all rules that cover it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortRow {
    /// Which way.
    pub direction: Direction,
    /// Which protocol.
    pub protocol: Protocol,
    /// The responder's ports. ICMP: type << 8 | code.
    pub ports: PortBlock,
    /// Groups that may.
    pub allow: Bits,
    /// Groups that may not, whatever else allows them.
    pub deny: Bits,
}

/// A peer's number in the kernel's `peers` map.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
pub struct PeerId(pub u32);

impl PeerId {
    /// This node.
    pub const HOST: PeerId = PeerId(1);
    /// The address of a Service: only a row of `services` opens it.
    pub const SERVICE: PeerId = PeerId(2);
    /// A local address of the proxy: never opened.
    pub const STEERING: PeerId = PeerId(3);
    /// This node, at an address at which the API server listens.
    pub const HOST_APISERVER: PeerId = PeerId(4);
    /// The first number of pods and other nodes.
    pub const FIRST: PeerId = PeerId(16);
}

/// What a Service's address and port stand for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ServiceVerdict {
    /// The rule set allows every ready backend at its target port.
    Allow,
    /// The rule set denies one of them.
    Deny,
}

/// One row of the kernel's `services` map.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServiceRow {
    /// The Service's address.
    pub address: IpAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The Service's port.
    pub port: u16,
    /// What its backends' verdicts come to.
    pub verdict: ServiceVerdict,
}

/// A group's meaning: the direction, whether it denies, and every (protocol, port) it opens or shuts. The key that a
/// bit belongs to, so that the bit stays the same across reloads.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
pub struct GroupKey {
    /// Which way.
    pub direction: Direction,
    /// Whether it is a deny.
    pub deny: bool,
    /// Sorted, without repeats; `(Any, *)` for rules without `toPorts`.
    pub ports: Vec<(Protocol, PortBlock)>,
}

/// A group of one rule set.
#[derive(Clone, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct Group {
    /// From 1 to 127. Bit 0 belongs to all peers and has no group.
    pub bit: u8,
    /// What it opens.
    pub key: GroupKey,
    /// The texts of its toFQDNs selectors, sorted: what a grant with this bit was learned for.
    pub names: Vec<String>,
}

/// Who a DNS rule lets a workload ask: servers by address and port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsRule {
    /// The rule that a verdict by this one names.
    pub rule: RuleRef,
    /// Addresses of the servers, or every address.
    pub servers: Servers,
    /// UDP, TCP or both, each with the port a query must have been sent to (the port that the workload used). Sorted.
    pub ports: Vec<(Protocol, PortBlock)>,
    /// Names it lets through.
    pub patterns: Arc<PatternTrie<()>>,
    /// How it speaks of DNS.
    pub by: DnsBy,
}

/// How a rule speaks of DNS, the strongest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DnsBy {
    /// With `rules.dns`, or as Cilium merges a rule with one that has them: at a server that such a rule means, rules of the
    /// other ways don't count (cilium.md 3.7, points 10 and 11).
    Names,
    /// 53 stands among its ports.
    Port,
    /// It opens every port, and makes no resolver of everyone whom it means.
    EveryPort,
}

/// How many servers a rule that opens every port may name one by one.
const FEW_SERVERS: usize = 16;
/// So many networks are sooner looked through than looked up by each length of prefix.
const FEW: usize = 32;

/// Servers that a rule denies, whatever allows them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsDeny {
    /// The rule that a verdict by this one names.
    pub rule: RuleRef,
    /// Addresses of the servers.
    pub servers: Servers,
    /// As in [`DnsRule`]; protocol `Any` is every protocol.
    pub ports: Vec<(Protocol, PortBlock)>,
}

/// The servers of a DNS rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Servers {
    /// Any address: learned from only when the operator configured the resolver or it is the cluster's own.
    Any,
    /// Networks outside the cluster: a /32 or /128 makes its address a trusted resolver, a wider one does not.
    Networks(Vec<IpNet>),
    /// The same, each less some: not trusted.
    Carved(Vec<(IpNet, Vec<IpNet>)>),
    /// Exact addresses (pods, and Services in front of them), sorted: trusted.
    Addresses(Vec<IpAddr>),
    /// Exact addresses of a whole class of peers (`cluster`, `host`), sorted: not trusted, nobody named them.
    Entity(Vec<IpAddr>),
}

impl Servers {
    /// Whether `server` is one of them. `known`: the addresses that belong to the cluster, which networks never mean.
    pub fn hold(&self, server: IpAddr, known: &BTreeMap<IpAddr, PeerId>) -> bool {
        match self {
            Servers::Any => true,
            Servers::Networks(networks) => {
                !known.contains_key(&server) && networks.iter().any(|network| network.contains(&server))
            }
            Servers::Carved(networks) => {
                let holds = |(network, except): &(IpNet, Vec<IpNet>)| {
                    network.contains(&server) && !except.iter().any(|except| except.contains(&server))
                };
                !known.contains_key(&server) && networks.iter().any(holds)
            }
            Servers::Addresses(addresses) | Servers::Entity(addresses) => addresses.binary_search(&server).is_ok(),
        }
    }

    /// Whether the rule names exactly this server, so that what it answers may be learned.
    pub fn name(&self, server: IpAddr, known: &BTreeMap<IpAddr, PeerId>) -> bool {
        match self {
            Servers::Any | Servers::Carved(_) | Servers::Entity(_) => false,
            Servers::Networks(networks) => !known.contains_key(&server) && networks.contains(&IpNet::from(server)),
            Servers::Addresses(addresses) => addresses.binary_search(&server).is_ok(),
        }
    }
}

/// Everything that one set of policies means for one set of labels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleSet {
    /// Whether any policy selects the workload.
    pub selected: bool,
    /// Whether what the rules would drop passes all the same, counted and told.
    pub audit: bool,
    /// Whether egress is default deny.
    pub deny_egress: bool,
    /// Whether ingress is default deny.
    pub deny_ingress: bool,
    /// The rules that make egress default deny: what a refusal names when no rule comes nearer.
    pub deny_egress_by: Vec<RuleRef>,
    /// The groups, by bit.
    pub groups: Vec<Group>,
    /// Rows of `ports`, sorted.
    pub ports: Vec<PortRow>,
    /// Rows of `cidr4` and `cidr6`, sorted: each the union of all that cover it, exceptions taken out.
    pub cidrs: Vec<(IpNet, Bits)>,
    /// Rows of `peer_bits`, sorted; a peer without bits has no row.
    pub peers: Vec<(PeerId, Bits)>,
    /// Rows of `services`, sorted.
    pub services: Vec<ServiceRow>,
    /// toFQDNs: patterns to the groups that they belong to, and the rule to name.
    pub names: Arc<PatternTrie<Bits>>,
    /// `rules.dns`, and after them rules that allow port 53 without one (counted as `*`). Empty unless the workload is steered.
    pub dns: Vec<DnsRule>,
    /// Servers that may not be asked, whatever `dns` says.
    pub dns_denied: Vec<DnsDeny>,
    /// The rows of `peers`: addresses that belong to the cluster. Shared by all rule sets of a generation.
    pub known: Arc<BTreeMap<IpAddr, PeerId>>,
}

/// What the kernel makes of a packet that belongs to no flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PacketVerdict {
    /// A rule denies it.
    Denied,
    /// No rule allows it, and the direction is default deny.
    NotAllowed,
    /// A rule allows it.
    Allowed,
    /// No rule speaks of it, and the direction isn't default deny.
    DefaultAllowed,
    /// The workload's own node opens it, and no rule denies it: a kubelet's probes.
    Host,
}

impl PacketVerdict {
    /// Whether it passes.
    pub fn passes(self) -> bool {
        match self {
            PacketVerdict::Denied | PacketVerdict::NotAllowed => false,
            PacketVerdict::Allowed | PacketVerdict::DefaultAllowed | PacketVerdict::Host => true,
        }
    }
}

impl RuleSet {
    /// That of a workload that no policy selects: everything passes, nothing is steered.
    pub fn unselected() -> RuleSet {
        RuleSet {
            selected: false,
            audit: false,
            deny_egress: false,
            deny_ingress: false,
            deny_egress_by: Vec::new(),
            groups: Vec::new(),
            ports: Vec::new(),
            cidrs: Vec::new(),
            peers: Vec::new(),
            services: Vec::new(),
            names: Arc::new(PatternTrie::new(Bare::Valid)),
            dns: Vec::new(),
            dns_denied: Vec::new(),
            known: Arc::default(),
        }
    }

    /// Whether queries of such a workload go through the proxy: it has `toFQDNs` or `rules.dns`.
    pub fn steered(&self) -> bool {
        self.selected && (!self.names.is_empty() || !self.dns.is_empty())
    }

    /// The groups whose toFQDNs selectors select `name`; none when no selector does.
    pub fn groups_of(&self, name: &Name) -> Bits {
        self.names.matches(name).fold(Bits::NONE, |bits, found| bits | *found.value)
    }

    /// Whether the workload may ask the server at `server` for `name`, and by which rule; where egress is not default
    /// deny, what no rule denies may be asked by none.
    ///
    /// # Errors
    /// The reason of the refusal, with the policy that came nearest.
    pub fn may_ask(&self, server: IpAddr, protocol: Protocol, port: u16, name: &Name) -> Result<Allowance, Denied> {
        super::verdict::may_ask(self, server, protocol, port, name)
    }

    /// Whether the workload may ask this question of the server at `server`, and by which rule; `None`: without one, as
    /// nothing keeps it from asking.
    ///
    /// # Errors
    /// As [`RuleSet::may_ask`]; and for classes and types that are never passed on.
    pub fn judge(
        &self,
        server: SocketAddr,
        protocol: Protocol,
        (name, qtype, qclass): (&Name, u16, u16),
    ) -> Result<Option<RuleRef>, Denied> {
        super::verdict::judge(self, server, protocol, (name, qtype, qclass))
    }

    /// Whether a rule denies this server on this port, whatever allows it.
    pub fn denies_server(&self, server: IpAddr, protocol: Protocol, port: u16) -> bool {
        super::verdict::denial_of(self, server, protocol, port).is_some()
    }

    /// Whether a rule names this very server (by endpoint, Service, /32 or /128), so that its answers may be learned.
    pub fn trusts(&self, server: IpAddr, protocol: Protocol, port: u16) -> bool {
        self.dns.iter().any(|rule| {
            rule.ports.iter().any(|wide| holds(*wide, protocol, port)) && rule.servers.name(server, &self.known)
        })
    }

    /// The servers that rules name exactly, with the ports on which they may be asked: who is steered to the proxy, beside the
    /// cluster's own. A class of peers names nobody, nor does a rule without ports that means many.
    pub fn resolvers(&self) -> Vec<(IpAddr, Protocol, PortBlock)> {
        let mut resolvers = Vec::new();
        for rule in &self.dns {
            let addresses: Vec<IpAddr> = match &rule.servers {
                Servers::Addresses(addresses) => addresses.clone(),
                Servers::Networks(networks) => {
                    networks.iter().filter(|n| n.prefix_len() == n.max_prefix_len()).map(IpNet::addr).collect()
                }
                Servers::Any | Servers::Carved(_) | Servers::Entity(_) => Vec::new(),
            };
            if rule.by == DnsBy::EveryPort && addresses.len() > FEW_SERVERS {
                continue;
            }
            for address in addresses {
                resolvers.extend(rule.ports.iter().map(|(protocol, port)| (address, *protocol, *port)));
            }
        }
        resolvers.sort_unstable();
        resolvers.dedup();
        resolvers
    }

    /// Whether a rule other than toFQDNs lets the workload open something at `address`.
    pub fn opens_without_name(&self, address: IpAddr) -> bool {
        if !self.deny_egress {
            return true;
        }
        if self.known.get(&address) == Some(&PeerId::SERVICE) {
            return self.services.iter().any(|row| row.address == address && row.verdict == ServiceVerdict::Allow);
        }
        let matched = self.matched(address, Bits::NONE);
        self.ports
            .iter()
            .any(|row| row.direction == Direction::Egress && row.allow.meets(matched) && !row.deny.meets(matched))
    }

    /// The verdict on a packet that belongs to no flow: the same look-ups as the kernel's, in the same order.
    ///
    /// `port` is the responder's; ICMP: type << 8. `grants`: the groups of live grants for this workload and address.
    /// ICMP that asks nothing is [`PacketVerdict::NotAllowed`] unless a rule names its type, default deny or not (I11).
    pub fn evaluate(
        &self,
        direction: Direction,
        address: IpAddr,
        protocol: Protocol,
        port: u16,
        grants: Bits,
    ) -> PacketVerdict {
        if !self.selected {
            return PacketVerdict::DefaultAllowed;
        }
        let unasked = is_unasked(protocol, PortBlock::one(port));
        let default = match direction {
            _ if unasked => PacketVerdict::NotAllowed,
            Direction::Egress if self.deny_egress => PacketVerdict::NotAllowed,
            Direction::Ingress if self.deny_ingress => PacketVerdict::NotAllowed,
            Direction::Egress | Direction::Ingress => PacketVerdict::DefaultAllowed,
        };
        let peer = self.known.get(&address).copied();
        if peer == Some(PeerId::SERVICE) && direction == Direction::Egress {
            return match self.service(address, protocol, port) {
                Some(ServiceVerdict::Allow) => PacketVerdict::Allowed,
                Some(ServiceVerdict::Deny) => PacketVerdict::Denied,
                None => default,
            };
        }
        let matched = self.matched_by(address, peer, grants);
        match self.port_row(direction, protocol, PortBlock::one(port)) {
            Some(row) if row.deny.meets(matched) => PacketVerdict::Denied,
            Some(row) if row.allow.meets(matched) && (row.protocol == protocol || !unasked) => PacketVerdict::Allowed,
            _ if unasked => default,
            _ if direction == Direction::Ingress && matches!(peer, Some(PeerId::HOST | PeerId::HOST_APISERVER)) => {
                PacketVerdict::Host
            }
            _ => default,
        }
    }

    /// Whether an address is to these rules what it was to others of the same groups; `peer` and `was`: who is behind it,
    /// and who was.
    pub fn mean_the_same(&self, others: &RuleSet, address: IpAddr, peer: Option<PeerId>, was: Option<PeerId>) -> bool {
        let own = |peer: Option<PeerId>| peer.filter(|id| *id < PeerId::FIRST);
        own(peer) == own(was)
            && self.matched_by(address, peer, Bits::NONE) == others.matched_by(address, was, Bits::NONE)
    }

    /// Every group that the address belongs to: M in the kernel's words.
    pub(super) fn matched(&self, address: IpAddr, grants: Bits) -> Bits {
        self.matched_by(address, self.known.get(&address).copied(), grants)
    }

    fn matched_by(&self, address: IpAddr, peer: Option<PeerId>, grants: Bits) -> Bits {
        let own = match peer {
            Some(id) => self.bits_of(id),
            None => self.longest(IpNet::from(address)),
        };
        Bits::ANY_PEER | grants | own
    }

    /// The row of a peer.
    pub(super) fn bits_of(&self, peer: PeerId) -> Bits {
        let found = self.peers.binary_search_by_key(&peer, |(id, _)| *id);
        found.map_or(Bits::NONE, |at| self.peers[at].1)
    }

    /// The row of the longest prefix that covers the network.
    pub(super) fn longest(&self, network: IpNet) -> Bits {
        if self.cidrs.len() <= FEW {
            let covers = self.cidrs.iter().filter(|(net, _)| net.contains(&network));
            return covers.max_by_key(|(net, _)| net.prefix_len()).map_or(Bits::NONE, |(_, bits)| *bits);
        }
        (0..=network.prefix_len())
            .rev()
            .filter_map(|length| IpNet::new(network.addr(), length).ok())
            .find_map(|net| {
                let at = self.cidrs.binary_search_by_key(&net.trunc(), |(net, _)| *net).ok()?;
                Some(self.cidrs[at].1)
            })
            .unwrap_or(Bits::NONE)
    }

    /// The row of the narrowest block that covers these ports: it is the union of all that do. The kernel's look-ups: the
    /// ports themselves, wider and wider blocks, at last every protocol.
    pub(super) fn port_row(&self, direction: Direction, protocol: Protocol, ports: PortBlock) -> Option<&PortRow> {
        let named = (0..=ports.length()).rev().map(|length| (protocol, PortBlock::around(ports.first(), length)));
        named.chain([(Protocol::Any, PortBlock::ANY)]).find_map(|(protocol, ports)| {
            let key = (direction, protocol, ports);
            let at = self.ports.binary_search_by_key(&key, |row| (row.direction, row.protocol, row.ports)).ok()?;
            Some(&self.ports[at])
        })
    }

    fn service(&self, address: IpAddr, protocol: Protocol, port: u16) -> Option<ServiceVerdict> {
        let key = (address, protocol, port);
        let at = self.services.binary_search_by_key(&key, |row| (row.address, row.protocol, row.port)).ok()?;
        Some(self.services[at].verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_is_the_same_whether_few_or_many_are_looked_at() {
        let networks = ["0.0.0.0/0", "203.0.112.0/20", "203.0.113.0/24", "203.0.113.7/32", "::/0", "2001:db8::/32"];
        let mut cidrs: Vec<(IpNet, Bits)> =
            networks.iter().zip(1..).map(|(text, bit)| (text.parse().unwrap(), Bits::of(bit))).collect();
        cidrs.sort_unstable_by_key(|(network, _)| *network);
        let few = RuleSet { cidrs: cidrs.clone(), ..RuleSet::unselected() };
        let others = (0..=FEW as u8).map(|last| (IpNet::from(IpAddr::from([198, 51, 100, last])), Bits::of(9)));
        cidrs.extend(others);
        cidrs.sort_unstable_by_key(|(network, _)| *network);
        let many = RuleSet { cidrs, ..RuleSet::unselected() };
        assert!(few.cidrs.len() <= FEW && many.cidrs.len() > FEW);
        for (address, bit) in
            [("203.0.113.7", 4), ("203.0.113.8", 3), ("203.0.112.1", 2), ("1.1.1.1", 1), ("2001:db8::1", 6), ("::1", 5)]
        {
            let network = IpNet::from(address.parse::<IpAddr>().unwrap());
            assert_eq!(few.longest(network), Bits::of(bit), "{address}");
            assert_eq!(many.longest(network), Bits::of(bit), "{address}");
        }
    }
}
