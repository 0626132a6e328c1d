//! What `namegate status` tells.

use serde::{Deserialize, Serialize};

use super::AdvisoryStatus;
use crate::cluster::snapshot::{Refusal, Stands};
use crate::host::floor::FloorStatus;
use crate::serve::cache::CacheFigures;
use crate::upstream::health::ServerHealth;

/// The whole state in figures, as the admin socket's /status has it in JSON.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Of namegate.
    pub version: String,
    /// This node's name.
    pub node_name: String,
    /// The process.
    pub pid: u32,
    /// When it started; RFC 3339.
    pub started: String,
    /// Whether there is no reason to the contrary.
    pub ready: bool,
    /// Why it is not ready.
    pub reasons: Vec<String>,
    /// Why enforcement may be got past; empty on a node.
    pub advisory: Vec<AdvisoryStatus>,
    /// Seconds for which connections from before the first start still go on (`enforcement.adopt`).
    pub adopting_seconds: u32,
    /// The policies.
    pub policy: PolicyStatus,
    /// The endpoints, by interface.
    pub endpoints: Vec<EndpointStatus>,
    /// Interfaces whose pod is not known, by name: nothing passes.
    pub unknown: Vec<UnknownStatus>,
    /// Pods on the node's own network that a policy selects (`namespace/name`): nothing enforces it.
    pub unprotected: Vec<String>,
    /// Files of the CNI's cache that can't be read.
    pub cni_refusals: Vec<CniRefusalStatus>,
    /// What drops packets of interfaces that are not guarded yet.
    pub floor: FloorStatus,
    /// The kernel's tables.
    pub maps: Vec<MapStatus>,
    /// The DNS servers that were asked.
    pub upstreams: Vec<ServerHealth>,
    /// The answer cache; none while it is off.
    pub cache: Option<CacheStatus>,
    /// Events that the kernel could not hand over.
    pub events_lost: u64,
}

/// What is in force.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyStatus {
    /// Counts what has been put in force since the start.
    pub generation: u64,
    /// When; RFC 3339.
    pub loaded: String,
    /// Objects that could not be read.
    pub refusals: Vec<RefusalStatus>,
    /// Objects of kinds that are no policy and not used.
    pub skipped: u64,
}

/// An object that could not be read.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusalStatus {
    /// Kind, namespace and name.
    pub object: String,
    /// `file:line:column`.
    pub place: String,
    /// What was found and what is allowed.
    pub text: String,
    /// Whether its last good version is in force.
    pub kept: bool,
    /// What is in force.
    pub stands: Stands,
}

impl From<&Refusal> for RefusalStatus {
    fn from(refusal: &Refusal) -> RefusalStatus {
        RefusalStatus {
            object: refusal.object.clone(),
            place: refusal.place.clone(),
            text: refusal.text.clone(),
            kept: refusal.kept,
            stands: refusal.stands(),
        }
    }
}

/// An interface whose pod is not known.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UnknownStatus {
    /// Its name.
    pub interface: String,
    /// Its number.
    pub ifindex: u32,
    /// Why its pod is not known.
    pub why: String,
}

/// A file of the CNI's cache that can't be read.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CniRefusalStatus {
    /// Its name in the directory `results`.
    pub file: String,
    /// What was found and what is allowed.
    pub text: String,
}

/// An endpoint.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointStatus {
    /// The host-side interface.
    pub interface: String,
    /// Its number; 0 while it is not there.
    pub ifindex: u32,
    /// `namespace/name`.
    pub pod: String,
    /// The number in the kernel's tables.
    pub id: u32,
    /// What is done to its traffic.
    pub state: EndpointState,
    /// How the programs are attached.
    pub attached: AttachedBy,
    /// Whether its queries go through the proxy.
    pub steered: bool,
    /// Addresses it holds grants for.
    pub grants: u32,
    /// Conversations under way.
    pub flows: u32,
    /// Why it is not as it should be; empty if it is.
    pub problem: String,
}

/// What is done to an endpoint's traffic. The default lets nothing pass.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointState {
    /// Nothing passes: no policy yet, or no addresses known.
    #[default]
    Closed,
    /// Its policies are in force.
    Enforced,
    /// Its policies are in force, and what they would drop passes, counted and told.
    Audited,
    /// No policy selects it: what is well formed passes.
    Unenforced,
}

impl EndpointState {
    /// Every state.
    pub const ALL: &[EndpointState] =
        &[EndpointState::Closed, EndpointState::Enforced, EndpointState::Audited, EndpointState::Unenforced];

    /// The word for metrics and tables.
    pub fn text(self) -> &'static str {
        match self {
            EndpointState::Closed => "closed",
            EndpointState::Enforced => "enforced",
            EndpointState::Audited => "audited",
            EndpointState::Unenforced => "unenforced",
        }
    }
}

/// How programs are attached to an interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachedBy {
    /// Not at all.
    #[default]
    Nothing,
    /// TCX.
    Tcx,
    /// A clsact queueing discipline.
    Clsact,
    /// TCX, and XDP before it.
    #[serde(rename = "xdp+tcx")]
    XdpTcx,
    /// A clsact queueing discipline, and XDP before it.
    #[serde(rename = "xdp+clsact")]
    XdpClsact,
}

impl AttachedBy {
    /// The word for tables.
    pub fn text(self) -> &'static str {
        match self {
            AttachedBy::Nothing => "-",
            AttachedBy::Tcx => "tcx",
            AttachedBy::Clsact => "clsact",
            AttachedBy::XdpTcx => "xdp+tcx",
            AttachedBy::XdpClsact => "xdp+clsact",
        }
    }
}

/// How full one of the kernel's tables is.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MapStatus {
    /// Its name.
    pub name: String,
    /// Rows in use.
    pub rows: u64,
    /// Rows it has room for.
    pub max: u64,
}

/// How full the answer cache is, and how often it was of use.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheStatus {
    /// Answers.
    pub entries: u64,
    /// Octets that they take, bookkeeping included.
    pub bytes: u64,
    /// Octets that they may take.
    pub max_bytes: u64,
    /// Answers given from the shared cache.
    pub hits: u64,
    /// Replies that a worker had ready.
    pub hot_hits: u64,
    /// Answers that had to be asked for.
    pub misses: u64,
    /// Answers given beyond their TTL.
    pub stale: u64,
}

impl CacheStatus {
    /// How many of a hundred answers were there already; none before the first.
    pub fn hit_percent(&self) -> Option<f64> {
        let kept = self.hits + self.hot_hits + self.stale;
        let all = kept + self.misses;
        (all > 0).then(|| 100.0 * kept as f64 / all as f64)
    }
}

impl From<CacheFigures> for CacheStatus {
    fn from(figures: CacheFigures) -> CacheStatus {
        let CacheFigures { entries, bytes, max_bytes, hits, hot, misses, stale } = figures;
        CacheStatus { entries, bytes, max_bytes, hits, hot_hits: hot, misses, stale }
    }
}
