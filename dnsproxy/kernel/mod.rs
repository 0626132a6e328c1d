//! The BPF side: loads the programs, attaches them, writes their maps, reads what they count and tell.
//!
//! In reading order: [`abi`] (the types both sides share), [`table`] (a map as typed rows), [`load`] (bpffs, pins, both
//! programs), [`attach`] (TCX links and clsact filters), `early` (XDP before them), [`inside`] (the pods' own sides), `versions`
//! (what an upgrade finds),
//! [`rules`] (endpoints and what a rule set compiles to), [`grants`], [`sweep`] (what time takes away), [`beat`] (who does
//! so while the proxy is dead), [`proxy`] (what it sends itself, beside a workload), [`probe`] (is it really in force?),
//! [`repair`] (it is again), [`events`] and [`counters`].

pub mod abi;
pub mod attach;
pub mod beat;
pub mod change;
pub mod counters;
mod early;
pub mod events;
pub mod grants;
pub mod inside;
pub mod load;
pub mod probe;
pub mod proxy;
pub mod repair;
pub mod rules;
pub mod sweep;
pub mod table;
mod versions;

use crate::engine::endpoint::EndpointId;
use crate::engine::grant::GrantWrite;

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A map has no room for another row.
    #[error("map {map} is full at {rows} rows")]
    Full {
        /// The map's name.
        map: &'static str,
        /// How many rows it can hold, for this endpoint or as a whole.
        rows: u32,
    },
    /// A pinned map, or the object file, was built from another abi.h.
    #[error("map {map} has keys and values of {found:?} octets; this build has {wanted:?}")]
    Layout {
        /// The map's name.
        map: &'static str,
        /// Key and value octets found.
        found: (u32, u32),
        /// Key and value octets of this build.
        wanted: (u32, u32),
    },
    /// A system call failed.
    #[error("{what}")]
    Call {
        /// What was tried.
        what: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// Where grants go. The kernel in production, a model in the engine's tests.
pub trait GrantStore: Send + Sync {
    /// Makes the kernel hold exactly these slots for these addresses of `endpoint`. All unused slots: no row.
    ///
    /// One batch, a microsecond a row. When it returns `Ok`, every packet sees them.
    ///
    /// # Errors
    /// Something was not written: the caller must not release what depends on it.
    fn install(&self, endpoint: EndpointId, writes: &[GrantWrite]) -> Result<(), KernelError>;
}
