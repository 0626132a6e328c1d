//! What the lab's name server is told to say.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What the lab's name server says for a name and type.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct Script {
    /// `owner type data` each; an empty owner means the asked name.
    pub records: Vec<(String, String, String)>,
    /// Seconds.
    pub ttl: u32,
    /// Empty: NOERROR.
    pub rcode: String,
    pub delay_ms: u64,
    /// Never answers.
    pub silent: bool,
    /// The zone's SOA record comes along, with this TTL and this least one; 0: it doesn't.
    pub soa: u32,
    /// TC=1 over UDP.
    pub truncate: bool,
    /// Only the server at this address says so.
    pub by: Option<IpAddr>,
    /// Over UDP it repeats the name in lower case, as some old servers do.
    pub folds: bool,
    /// How many datagrams of the question are lost before one is heard.
    pub loses: u32,
    /// What else is sent over UDP before the answer, to try the proxy's checks.
    pub forged: Vec<Forgery>,
}

/// A wrong answer that precedes the right one; it carries the address.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forgery {
    /// Another transaction number.
    Number(IpAddr),
    /// Another question.
    Question(IpAddr),
    /// The question in other case.
    Case(IpAddr),
    /// From another port of the server.
    Port(IpAddr),
    /// From another address.
    Address(IpAddr),
    /// Twelve octets of header only.
    Header,
}
