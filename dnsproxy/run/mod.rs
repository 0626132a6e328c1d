//! The ways of running: [`node`], every pod of a node, or the endpoints that the operator names, from the host's side;
//! [`sidecar()`], one pod, from inside it.

mod adopt;
mod attachments;
mod capabilities;
pub mod checkpoint;
mod discovery;
mod explain;
mod files;
mod floor;
mod inbound;
mod inherit;
pub mod journal;
mod lock;
mod names;
mod node;
mod packets;
mod publish;
mod reload;
mod repair;
mod sidecar;
mod start;
pub mod state;
mod steering;
mod upkeep;
mod watch;

use std::path::Path;

use anyhow::Context;

use crate::config::Config;
use crate::host::links;
use crate::kernel::attach::detach_all;
use crate::kernel::load::redirect_messages;

pub use explain::surroundings;
pub use sidecar::init as sidecar_init;
pub use start::{node, sidecar};
// Also for the scenarios that play without a kernel.
pub use publish::{caps, guard, routes, search_of, settings};
pub use reload::{cluster_dns, settle};

/// Takes everything away that a node or a sidecar left: programs, pins, filters, the floor, local addresses, routing rules. The
/// state stays: numbers in it must not be given out again.
///
/// # Errors
/// A node still runs, or something could not be removed.
pub fn detach(config: &Config) -> anyhow::Result<()> {
    redirect_messages();
    // A node that runs would put everything back.
    let mut locks = lock::Locks::take(config)?;
    locks.take_pins(config)?;
    drop(locks);
    let found = detach_all(&config.pin_dir).context("removing programs and pins")?;
    let found = crate::host::floor::remove_all(&crate::host::floor::table_of(&config.pin_dir))
        .context("removing the floor")?
        || found;
    let found = crate::host::egress::remove().context("removing the floor under what the pod sends")? || found;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(remove_local_addresses(&config.state_dir)).context("removing local addresses")?;
    let found = runtime.block_on(stop_redirecting()).context("removing routing rules")? || found;
    checkpoint::remove(&config.state_dir);
    let nothing = if found { "" } else { "nothing was attached; " };
    tracing::info!("{nothing}endpoints are not enforced any more");
    Ok(())
}

/// Those of `namegate sidecar --init`, of this network namespace.
async fn stop_redirecting() -> anyhow::Result<bool> {
    let (netlink, _events) = links::open()?;
    Ok(netlink.stop_redirecting().await?)
}

async fn remove_local_addresses(state_dir: &Path) -> anyhow::Result<()> {
    let state::Read::Good(state) = state::read(state_dir)? else { return Ok(()) };
    let (netlink, _events) = links::open()?;
    for local in state.resolvers.values() {
        netlink.remove_local(*local).await?;
    }
    Ok(())
}
