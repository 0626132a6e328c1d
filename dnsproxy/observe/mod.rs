//! Those who watch: one record a query, one a packet verdict.
//!
//! [`Watchers`] takes records from the proxy's threads and the kernel's ring, counts them, and hands them to a writer
//! thread for each output ([`sink`]): Hubble's JSON form ([`flow`]) and lines for people ([`human`]).

pub mod flow;
pub mod human;
mod reason;
#[cfg(test)]
pub(crate) mod samples;
pub mod sink;
pub mod text;
mod watchers;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use crate::engine::endpoint::{EndpointId, PodRef};
use crate::engine::ruleset::Direction;
use crate::engine::verdict::RuleRef;

pub use reason::Reason;
pub use watchers::{Known, Record, Watchers, Workload};

/// How a query ended, in one word for metrics, flows and logs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Outcome {
    /// Answered as policy allows.
    Forwarded,
    /// Refused by policy.
    Denied,
    /// Policy refuses it, and the workload is only audited: it was answered as if it were allowed.
    Audited,
    /// No answer could be given: upstream, a grant that was not written, a limit.
    Failed,
    /// Not a query that can be served (FORMERR, NOTIMP), or dropped without a reply.
    Malformed,
}

/// What a query is counted by. Cheap: it is made for every query, whoever watches.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Counted {
    /// How it ended.
    pub outcome: Outcome,
    /// Why, in a word from a closed set.
    pub reason: &'static str,
    /// The RCODE sent; `None` when nothing was.
    pub rcode: Option<u16>,
    /// Where the answer came from.
    pub cache: CacheUse,
    /// How many grants the kernel confirmed before the reply left.
    pub granted: usize,
    /// How long the upstream took; `None` when it was not asked.
    pub upstream: Option<Duration>,
    /// How long the kernel took to hold the grants; `None` when there were none.
    pub install: Option<Duration>,
}

/// Where an answer came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CacheUse {
    /// No answer was looked for: the cache is off, or the query ended before.
    #[default]
    None,
    /// It had to be asked for.
    Miss,
    /// It was kept.
    Hit,
    /// The worker that serves it had the whole reply ready.
    Hot,
    /// It was kept for longer than its TTL, and no server answered (RFC 8767).
    Stale,
}

impl CacheUse {
    /// The word for metrics and logs.
    pub fn text(self) -> &'static str {
        match self {
            CacheUse::None => "none",
            CacheUse::Miss => "miss",
            CacheUse::Hit => "hit",
            CacheUse::Hot => "hot",
            CacheUse::Stale => "stale",
        }
    }
}

/// The one closing event of a query, for those who watch.
#[derive(Clone, Debug)]
pub struct QueryRecord {
    /// Who asked; `None` for a sender that is no endpoint.
    pub endpoint: Option<(EndpointId, PodRef)>,
    /// Where it came from.
    pub client: SocketAddr,
    /// The server that the workload asked (not the local address it was steered to).
    pub server: SocketAddr,
    /// Whether it came over TCP.
    pub tcp: bool,
    /// The name in presentation form, control octets escaped; empty when unreadable.
    pub qname: String,
    /// The type as text: `A`, `TYPE65280`.
    pub qtype: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, in a word from a closed set: `allowed`, `name`, `server`, `guard`, `timeout`, `grant_write`, …
    pub reason: &'static str,
    /// The rule that decided.
    pub rule: Option<RuleRef>,
    /// What the author of a rule that just misses the name may have meant; text for people.
    pub hint: Option<String>,
    /// The RCODE sent; `None` when nothing was.
    pub rcode: Option<u16>,
    /// Addresses in the reply.
    pub addresses: Vec<IpAddr>,
    /// CNAME targets in the reply, presentation form.
    pub cnames: Vec<String>,
    /// The least TTL in the reply, seconds.
    pub ttl: u32,
    /// How many grants the kernel confirmed before the reply left.
    pub granted: usize,
    /// How long the upstream took; `None` when it was not asked.
    pub upstream: Option<Duration>,
    /// How long the kernel took to hold the grants; `None` when there were none.
    pub install: Option<Duration>,
    /// Where the answer came from.
    pub cache: CacheUse,
}

impl QueryRecord {
    /// What it is counted by.
    pub fn counted(&self) -> Counted {
        Counted {
            outcome: self.outcome,
            reason: self.reason,
            rcode: self.rcode,
            cache: self.cache,
            granted: self.granted,
            upstream: self.upstream,
            install: self.install,
        }
    }
}

/// A verdict of the kernel on one packet.
#[derive(Clone, Debug)]
pub struct PacketRecord {
    /// When, by the clock on the wall.
    pub time: SystemTime,
    /// Whose packet it is; `None` when the interface has no endpoint.
    pub endpoint: Option<(EndpointId, PodRef)>,
    /// The host-side interface.
    pub ifindex: u32,
    /// Its name; empty when unknown.
    pub interface: String,
    /// Where the packet came from; `None` for what is not IP. Port 0 for what has none.
    pub source: Option<SocketAddr>,
    /// Where it went.
    pub destination: Option<SocketAddr>,
    /// The protocol's number in the IP header.
    pub protocol: u8,
    /// The flags octet of a TCP header, CWR first.
    pub tcp_flags: u8,
    /// The type of an ICMP message.
    pub icmp_type: u8,
    /// Which way the packet went, seen from the workload.
    pub direction: Direction,
    /// Why it passed or not.
    pub reason: Reason,
    /// With [`Reason::Audit`]: what it would have been dropped for.
    pub audited: Option<Reason>,
    /// Whether it was answered with a RST or an ICMP error.
    pub rejected: bool,
    /// Whether it is a reply of its flow.
    pub reply: bool,
    /// Its length, octets.
    pub octets: u32,
    /// The rows that decided.
    pub policy_id: u32,
    /// The endpoint's generation.
    pub generation: u32,
    /// How many events of this endpoint were not sent since the last one.
    pub suppressed: u32,
    /// The names that the workload knows the other side by, presentation form.
    pub names: Vec<String>,
    /// The policies that decided, where they are known.
    pub policies: Vec<RuleRef>,
}

impl PacketRecord {
    /// Which way the connection was opened: a reply goes the other way.
    pub fn opened(&self) -> Direction {
        match (self.direction, self.reply) {
            (Direction::Egress, false) | (Direction::Ingress, true) => Direction::Egress,
            (Direction::Ingress, false) | (Direction::Egress, true) => Direction::Ingress,
        }
    }

    /// The other side's address and port.
    pub fn remote(&self) -> Option<SocketAddr> {
        match self.direction {
            Direction::Egress => self.destination,
            Direction::Ingress => self.source,
        }
    }
}

impl Outcome {
    /// Every outcome.
    pub const ALL: &[Outcome] =
        &[Outcome::Forwarded, Outcome::Denied, Outcome::Audited, Outcome::Failed, Outcome::Malformed];

    /// The word for metrics.
    pub fn text(self) -> &'static str {
        match self {
            Outcome::Forwarded => "forwarded",
            Outcome::Denied => "denied",
            Outcome::Audited => "audited",
            Outcome::Failed => "failed",
            Outcome::Malformed => "malformed",
        }
    }
}

/// Takes records. Never blocks and never fails: a record may be lost, a reply may not.
pub trait Observer: Send + Sync {
    /// A query is over. `whole` makes the record, at some cost: called only if someone watches.
    fn query(&self, counted: &Counted, whole: &dyn Fn() -> QueryRecord);

    /// Whether anyone watches: else names and addresses of a reply need not be collected.
    fn watches(&self) -> bool;
}
