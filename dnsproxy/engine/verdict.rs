//! May this workload ask this name of this server? A decision is a value that carries its reason.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::name::Name;
use super::ruleset::{Protocol, RuleSet, Servers};

/// The rule behind a verdict, for people: policy, place in its file, what it says.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RuleRef(pub Arc<RuleText>);

/// The words of a [`RuleRef`].
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct RuleText {
    /// `CiliumNetworkPolicy` and so on.
    pub kind: String,
    /// Empty for a clusterwide policy.
    pub namespace: String,
    /// The policy's name.
    pub policy: String,
    /// `file:line:column` of the rule.
    pub place: String,
    /// The path inside the object, as `spec.egress[0].toPorts[0].rules.dns[1]`.
    pub path: String,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.namespace.is_empty() {
            write!(f, "{}/", self.0.namespace)?;
        }
        f.write_str(&self.0.policy)
    }
}

/// Why a query is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Denied {
    /// No rule lets the workload ask this server at all; the policies that make it default deny.
    Server(Vec<RuleRef>),
    /// The server may be asked, but not for this name; the rules that allow other names there.
    Name(Vec<RuleRef>),
    /// A label holds an octet that no pattern matches, or one that is refused always (a dot, a NUL).
    Label,
    /// The type is ANY, AXFR or IXFR.
    Type,
    /// The class is not IN.
    Class,
}

impl Denied {
    /// The word for metrics and flows.
    pub fn reason(&self) -> &'static str {
        match self {
            Denied::Server(_) => "server",
            Denied::Name(_) => "name",
            Denied::Label => "label",
            Denied::Type => "type",
            Denied::Class => "class",
        }
    }
}

/// See [`RuleSet::may_ask`].
pub(super) fn may_ask(
    rules: &RuleSet,
    server: IpAddr,
    protocol: Protocol,
    port: u16,
    name: &Name,
) -> Result<RuleRef, Denied> {
    let _ = (rules, server, protocol, port, name, Servers::Any);
    unimplemented!("helper A")
}
