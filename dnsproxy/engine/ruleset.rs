//! What the policies that select a workload compile to: the rows of the kernel's maps and the name rules of the proxy.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::bits::Bits;
use super::name::Name;
use super::pattern::PatternTrie;
use super::verdict::{Denied, RuleRef};

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
    /// The responder's port, host order; 0 for any. ICMP: type << 8 | code.
    pub port: u16,
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
    /// Sorted, without repeats; `(Any, 0)` for rules without `toPorts`.
    pub ports: Vec<(Protocol, u16)>,
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
    /// UDP, TCP or both, each with the port a query must have been sent to (the port that the workload used).
    pub ports: Vec<(Protocol, u16)>,
    /// Names it lets through.
    pub patterns: Arc<PatternTrie<()>>,
}

/// The servers of a DNS rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Servers {
    /// Any address: learned from only when the operator configured the resolver or it is the cluster's own.
    Any,
    /// Networks: a /32 or /128 makes its address a trusted resolver, a wider one does not.
    Networks(Vec<IpNet>),
    /// Exact addresses (pods, and Services in front of them): trusted.
    Addresses(Vec<IpAddr>),
}

/// Everything that one set of policies means for one set of labels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleSet {
    /// Whether any policy selects the workload.
    pub selected: bool,
    /// Whether egress is default deny.
    pub deny_egress: bool,
    /// Whether ingress is default deny.
    pub deny_ingress: bool,
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
    /// `rules.dns`, and rules that allow port 53 without one (counted as `*`).
    pub dns: Vec<DnsRule>,
}

impl RuleSet {
    /// Whether queries of such a workload go through the proxy: it has `toFQDNs` or `rules.dns`.
    pub fn steered(&self) -> bool {
        self.selected && (!self.names.is_empty() || !self.dns.is_empty())
    }

    /// The groups whose toFQDNs selectors select `name`; none when no selector does.
    pub fn groups_of(&self, name: &Name) -> Bits {
        self.names.matches(name).fold(Bits::NONE, |bits, found| bits | *found.value)
    }

    /// Whether the workload may ask the server at `server` for `name`, and by which rule.
    ///
    /// # Errors
    /// The reason of the refusal, with the policy that came nearest.
    pub fn may_ask(&self, server: IpAddr, protocol: Protocol, port: u16, name: &Name) -> Result<RuleRef, Denied> {
        super::verdict::may_ask(self, server, protocol, port, name)
    }

    /// Whether a rule other than toFQDNs lets the workload open something at `address`.
    pub fn opens_without_name(&self, address: IpAddr) -> bool {
        self.cidrs.iter().any(|(net, bits)| net.contains(&address) && !bits.is_empty())
    }
}
