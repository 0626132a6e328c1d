//! The ways of running.

use crate::config::{Config, Source};

/// Runs a node until SIGTERM. `source` is what to read the configuration from again on SIGHUP.
///
/// # Errors
/// It could not start.
pub fn node(config: Config, source: Source) -> anyhow::Result<()> {
    let _ = (config, source);
    anyhow::bail!("node mode is on another branch")
}

/// Takes everything away that a node left: programs, pins, queueing disciplines, addresses.
///
/// # Errors
/// Something could not be removed.
pub fn detach(config: &Config) -> anyhow::Result<()> {
    let _ = config;
    anyhow::bail!("node mode is on another branch")
}
