//! What a user wrote, typed: policies with rules, peers, ports and names, each with its place.
//!
//! Two things are already decided here, because they are easy to get wrong later. A list that is absent and a list that
//! is empty are different values. And a policy that could not be read has become what still holds of it: whom it selects,
//! the directions it shuts, the denials that could be read.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::labels::Selector;
use super::pattern::Pattern;
use super::port::PortBlock;
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
    /// Items that would allow if namegate could enforce all that they demand: they allow nothing, and `explain` names them.
    pub unenforced: Vec<Unenforced>,
}

/// An item with a demand that nobody would see to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unenforced {
    /// What it would open, its demand aside.
    pub item: Item,
    /// Its demand: `rules.http`.
    pub what: String,
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
    /// Nodes that one of these selects by the labels of their objects. Empty: nobody.
    Nodes(Vec<Selector>),
    /// Addresses outside the cluster. Empty: nobody.
    Networks(Vec<Block>),
    /// Classes of peers. Empty: nobody.
    Entities(BTreeSet<Entity>),
    /// What is behind these Services: the pods that a Service selects, or the addresses in its slices if it selects none.
    /// Empty: nobody. Egress.
    Services(Vec<ServicePeer>),
    /// Whatever these names resolve to. Empty: nobody. Egress, and never in a denial.
    Names(Vec<NameRule>),
}

/// A block of addresses, less some.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Block {
    /// Which.
    pub of: BlockOf,
    /// Not these. No denial: another item may allow them.
    pub except: Vec<IpNet>,
}

/// Where a block is written.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum BlockOf {
    /// In the policy itself.
    Here(IpNet),
    /// In the CiliumCIDRGroup of this name; one that isn't there has none.
    Group(String),
    /// In every CiliumCIDRGroup that this selects.
    Groups(Selector),
}

impl From<IpNet> for Block {
    fn from(network: IpNet) -> Block {
        Block { of: BlockOf::Here(network), except: Vec::new() }
    }
}

/// A Service, or several.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ServicePeer {
    /// By namespace and name.
    Named {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// By the labels of the Service objects.
    Selected {
        /// In this namespace; `None` in all.
        namespace: Option<String>,
        /// Which.
        selector: Selector,
    },
}

/// A class of peers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Entity {
    /// Everyone.
    All,
    /// Everyone outside the cluster.
    World,
    /// All pods and nodes, and the API server.
    Cluster,
    /// The same for all clusters of a mesh: namegate knows of one.
    ClusterMesh,
    /// The subject's own node.
    Host,
    /// The other nodes, and the API server.
    RemoteNode,
    /// The API server, in the cluster or out of it.
    KubeApiserver,
    /// Cilium's own proxy for Ingress: nobody here.
    Ingress,
    /// Pods that have no labels yet: nobody here, as every pod of a snapshot has them.
    Init,
    /// Cilium's own health checks: nobody here.
    Health,
    /// Pods that Cilium doesn't manage: nobody here.
    Unmanaged,
    /// Nobody.
    None,
}

/// The ports of an item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ports {
    /// No `toPorts`: every port of every protocol.
    All,
    /// Those of the entries; an entry without ports has none.
    These(Vec<PortRule>),
}

/// One entry of `toPorts`, or an item's `icmps`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortRule {
    /// Where it stands.
    pub at: RuleRef,
    /// ANY is written out as TCP, UDP and SCTP.
    pub ports: BTreeSet<(Protocol, Port)>,
    /// namegate's own: the destination must be an address of this Service, by namespace and name.
    pub service: Option<(String, String)>,
    /// `rules.dns`: only these names may be asked for on these ports, through the proxy; nothing else passes there.
    pub dns: Option<Vec<NameRule>>,
}

/// A port as it is written.
#[derive(Clone, PartialEq, Hash, Eq, PartialOrd, Ord, Debug)]
pub enum Port {
    /// One, several (`endPort` written as blocks), or all of them (0). A type of ICMP.
    Block(PortBlock),
    /// The port that a container of the side that listens has under this name; none if it has none.
    Named(String),
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
    pub fn plain(&self) -> BTreeSet<(Protocol, PortBlock)> {
        match self {
            Ports::All => BTreeSet::from([(Protocol::Any, PortBlock::ANY)]),
            Ports::These(entries) => entries
                .iter()
                .filter(|entry| entry.dns.is_none())
                .flat_map(|entry| &entry.ports)
                .filter_map(|(protocol, port)| match port {
                    Port::Block(block) => Some((*protocol, *block)),
                    Port::Named(_) => None,
                })
                .collect(),
        }
    }
}
