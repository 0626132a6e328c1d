//! The BPF side.

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
