//! What a run has to be allowed, asked first of all: what would fail later names no capability.

use std::path::Path;

use crate::config::Config;
use crate::host::capabilities::{Capability, CapabilityError, is_privileged, require};

use super::sidecar;

/// # Errors
/// Something is missing that this run, on a node or beside one workload, can't do without.
pub(super) fn check(config: &Config, beside: bool) -> Result<(), CapabilityError> {
    let proc = Path::new("/proc");
    let what = if beside { "namegate sidecar" } else { "namegate node" };
    let ports = if beside { [sidecar::DNS_PORT, 0] } else { [config.dns.port, config.dns.tls_port] };
    let privileged = ports.into_iter().any(|port| is_privileged(proc, port));
    let always = [Capability::Bpf, Capability::NetAdmin, Capability::Perfmon];
    let needed: Vec<Capability> = always.into_iter().chain(privileged.then_some(Capability::NetBindService)).collect();
    require(proc, what, &needed)
}
