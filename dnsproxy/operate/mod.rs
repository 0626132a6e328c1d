//! For those who run it: metrics, health, status, the admin socket, the log.

mod advisory;
pub mod client;
pub mod explain;
pub mod http;
pub mod log;
pub mod metrics;
pub mod names;
mod ready;
mod status;
pub mod takeover;

pub use advisory::{Advisory, AdvisoryStatus};
pub use http::{Operator, Server};
pub use ready::Readiness;
pub use status::{
    AttachedBy, CacheStatus, CniRefusalStatus, EndpointState, EndpointStatus, MapStatus, PolicyStatus, RefusalStatus,
    Status, UnknownStatus,
};
