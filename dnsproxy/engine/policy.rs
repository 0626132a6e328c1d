//! What a user wrote, typed: policies with rules, peers, ports and names, each with its place.
//!
//! Two things are already decided here, because they are easy to get wrong later. A list that is absent and a list that
//! is empty are different values. And a policy that could not be read has become what still holds of it: whom it selects,
//! the directions it shuts, the denials that could be read.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::labels::Selector;
use super::pattern::Pattern;
use super::ruleset::{Direction, Protocol};
use super::verdict::RuleRef;

/// One policy object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// The object.
    pub at: RuleRef,
    /// `spec`, then each of `specs`.
    pub rules: Vec<Rule>,
}

/// One `spec`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Where it stands.
    pub at: RuleRef,
    /// Whom it selects.
    pub subject: Subject,
    /// What its subjects may open.
    pub egress: Section,
    /// Who may reach its subjects.
    pub ingress: Section,
}

/// Whom a rule is about.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Subject {
    /// Pods of this namespace only; `None` for all namespaces.
    pub namespace: Option<String>,
    /// Which of them.
    pub selector: Selector,
}

/// One direction of a rule.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Section {
    /// Whether what no rule allows is denied: the rule has an item in this direction, or was refused.
    pub default_deny: bool,
    /// Items that allow.
    pub allow: Vec<Item>,
    /// Items that deny, whatever allows.
    pub deny: Vec<Item>,
}

/// One item: these peers on these ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    /// Where it stands.
    pub at: RuleRef,
    /// With whom.
    pub peers: Peers,
    /// On which ports.
    pub ports: Ports,
}

/// The other side of an item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peers {
    /// Everyone: the item names ports and no peer.
    Any,
    /// Pods that one of these selects, the policy's namespace already added. Empty: nobody.
    Endpoints(Vec<Selector>),
    /// Addresses outside the cluster. Empty: nobody.
    Networks(Vec<IpNet>),
    /// Classes of peers. Empty: nobody.
    Entities(BTreeSet<Entity>),
    /// Whatever these names resolve to. Empty: nobody. Egress, and never in a denial.
    Names(Vec<NameRule>),
}

/// A class of peers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Entity {
    /// Everyone.
    All,
    /// Everyone outside the cluster.
    World,
    /// All pods and nodes.
    Cluster,
    /// The subject's own node.
    Host,
}

/// The ports of an item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ports {
    /// No `toPorts`: every port of every protocol.
    All,
    /// Those of the entries; an entry without ports has none.
    These(Vec<PortRule>),
}

/// One entry of `toPorts`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortRule {
    /// Where it stands.
    pub at: RuleRef,
    /// ANY is written out as TCP, UDP and SCTP; port 0 is every port of its protocol.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// `rules.dns`: only these names may be asked for on these ports, through the proxy; nothing else passes there.
    pub dns: Option<Vec<NameRule>>,
}

/// A `matchName` or `matchPattern`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameRule {
    /// Where it stands.
    pub at: RuleRef,
    /// What it selects.
    pub pattern: Pattern,
}

impl Rule {
    /// The rule's side for a direction.
    pub fn section(&self, direction: Direction) -> &Section {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }
}

impl Section {
    /// A direction that only shuts.
    pub fn shut() -> Section {
        Section { default_deny: true, ..Section::default() }
    }
}

impl Ports {
    /// The ports that the item opens in the kernel: without those of `rules.dns`, which the proxy answers for.
    pub fn plain(&self) -> BTreeSet<(Protocol, u16)> {
        match self {
            Ports::All => BTreeSet::from([(Protocol::Any, 0)]),
            Ports::These(entries) => entries
                .iter()
                .filter(|entry| entry.dns.is_none())
                .flat_map(|entry| entry.ports.iter().copied())
                .collect(),
        }
    }
}

/// Whether `wide`, a protocol and port with their wildcards, covers `narrow`.
pub fn covers(wide: (Protocol, u16), narrow: (Protocol, u16)) -> bool {
    wide == narrow || wide == (Protocol::Any, 0) || (wide.1 == 0 && wide.0 == narrow.0)
}
