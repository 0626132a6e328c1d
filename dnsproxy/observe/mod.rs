//! Those who watch: one record a query, one a packet verdict.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::engine::endpoint::{EndpointId, PodRef};
use crate::engine::verdict::RuleRef;

/// How a query ended, in one word for metrics, flows and logs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Outcome {
    /// Answered as policy allows.
    Forwarded,
    /// Refused by policy.
    Denied,
    /// No answer could be given: upstream, a grant that was not written, a limit.
    Failed,
    /// Not a query that can be served (FORMERR, NOTIMP), or dropped without a reply.
    Malformed,
}

/// The one closing event of a query.
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
}

/// Takes records. Never blocks and never fails: a record may be lost, a reply may not.
pub trait Observer: Send + Sync {
    /// A query is over.
    fn query(&self, record: &QueryRecord);
}
