//! An explanation as a value: what is printed for people, and what JSON has.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The chain from a question to its verdict.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// What the question was marked with, for whoever asks many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<serde_json::Value>,
    /// Who asks: `namespace/pod`.
    pub from: String,
    /// For what.
    pub to: String,
    /// On which port, `443/TCP`; none: on any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Whether all of it is allowed.
    pub allowed: bool,
    /// The same in a sentence.
    pub why: String,
    /// What policy would drop passes all the same, and is told.
    #[serde(skip_serializing_if = "is_false")]
    pub audit: bool,
    /// Whether queries of the workload go through the proxy.
    pub steered: bool,
    /// The rules that select the workload.
    pub selected_by: Vec<Selecting>,
    /// The query for the name, one for each resolver that it would go to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub queries: Vec<QueryAnswer>,
    /// The connections, one for each address.
    pub connections: Vec<Connection>,
    /// What else there is to know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A rule that selects a workload.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Selecting {
    /// `CiliumNetworkPolicy shop/web`.
    pub policy: String,
    /// `file:line:column`.
    pub place: String,
    /// Where in the object.
    pub path: String,
    /// It makes egress default deny.
    pub egress: bool,
    /// It makes ingress default deny.
    pub ingress: bool,
    /// The object was refused, or labels are not known: it only denies.
    #[serde(skip_serializing_if = "is_false")]
    pub in_doubt: bool,
}

/// A rule, and what it has to do with the verdict.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Line {
    /// `CiliumNetworkPolicy shop/web`.
    pub policy: String,
    /// `file:line:column`.
    pub place: String,
    /// Where in the object.
    pub path: String,
    /// What it says.
    pub says: String,
}

/// Whether a name may be asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct QueryAnswer {
    /// The name.
    pub name: String,
    /// The type of record.
    pub qtype: String,
    /// The server; none: there is none to ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolver: Option<IpAddr>,
    /// `53/UDP`.
    pub port: String,
    /// Whether it may be asked.
    pub allowed: bool,
    /// Why, in a word: `rule`, `unsteered`, or the reason of the refusal.
    pub reason: String,
    /// The rule that lets it, or those that come nearest.
    pub by: Vec<Line>,
    /// What may have been meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether its answer may grant anything.
    pub grants: bool,
}

/// Whether a connection would pass on one side.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Connection {
    /// `egress` or `ingress`.
    pub direction: String,
    /// Whose rules are asked: `namespace/pod`.
    pub of: String,
    /// The other side's address; none: any that the name may come to stand for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
    /// Who that is.
    pub peer_is: String,
    /// `443/TCP`; none: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Whether it passes.
    pub allowed: bool,
    /// In a word.
    pub verdict: Verdict,
    /// The rules that the verdict rests on; for a default, the rules that shut the direction.
    pub by: Vec<Line>,
    /// What would allow it, the nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nearest: Vec<Line>,
    /// Grants that open it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<Grant>,
    /// The backends of a Service's address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<Connection>,
    /// Without a port: those on which it passes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<String>,
    /// What else there is to know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What becomes of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// No rule allows it, and the direction is default deny.
    #[default]
    NotAllowed,
    /// A rule denies it.
    Denied,
    /// It is a query to a server that the proxy doesn't stand in for.
    UnknownResolver,
    /// A rule allows it.
    Allowed,
    /// No rule speaks of it, and the direction is open.
    DefaultAllowed,
    /// The workload's own node opens it.
    Host,
    /// It goes to the proxy, which judges each name.
    Proxied,
}

/// A grant that a workload holds.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Grant {
    /// The name it was learned for; empty when it isn't known any more.
    pub name: String,
    /// How long new connections are let by it.
    pub seconds_left: u64,
    /// Whether connections live.
    pub connections: bool,
}

impl Verdict {
    /// Whether it passes.
    pub fn passes(self) -> bool {
        matches!(self, Verdict::Allowed | Verdict::DefaultAllowed | Verdict::Host | Verdict::Proxied)
    }

    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Verdict::NotAllowed => "denied: no rule allows it",
            Verdict::Denied => "denied by a rule",
            Verdict::UnknownResolver => "denied: queries to this server are dropped",
            Verdict::Allowed => "allowed",
            Verdict::DefaultAllowed => "allowed: this direction is not default deny",
            Verdict::Host => "allowed: the workload's own node may always",
            Verdict::Proxied => "allowed: it goes to the proxy, which judges each name",
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_false(value: &bool) -> bool {
    !value
}
