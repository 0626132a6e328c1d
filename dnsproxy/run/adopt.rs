//! Connections that were open before the first start on a node (`enforcement.adopt`). The kernel ends the window by itself; here
//! is who has one, and what was seen.

use std::collections::{BTreeMap, BTreeSet};

use super::node::Node;
use crate::clock;
use crate::config::Adopt;
use crate::engine::endpoint::EndpointId;
use crate::engine::grant::MonoNs;
use crate::kernel::KernelError;
use crate::kernel::sweep::Adopted;

/// Connections that are logged one by one, of each endpoint; further ones are flows with reason `adopted` only.
const LOGGED: usize = 200;

/// Interfaces that were there at the first start.
#[derive(Default)]
pub(super) struct Adopting {
    /// Seconds of the monotonic clock; 0: nothing is adopted.
    until: u32,
    interfaces: BTreeSet<u32>,
    /// By `namespace/pod`.
    seen: BTreeMap<String, BTreeSet<Adopted>>,
}

impl Adopting {
    /// Until when connections on the interface go on, as the kernel's row has it.
    pub fn until(&self, ifindex: u32) -> u32 {
        if self.interfaces.contains(&ifindex) { self.until } else { 0 }
    }

    /// Whole seconds that are left.
    pub fn left(&self, now: MonoNs) -> u32 {
        self.until.saturating_sub(seconds(now))
    }
}

fn seconds(at: MonoNs) -> u32 {
    u32::try_from(at.0 / 1_000_000_000).unwrap_or(u32::MAX)
}

impl Node {
    /// At the first start on this node (`is_first`) the window begins; one that an earlier run began goes on.
    ///
    /// # Errors
    /// Interfaces or the kernel's rows can't be read.
    pub(super) async fn begin_to_adopt(&mut self, is_first: bool) -> anyhow::Result<()> {
        let now = clock::mono();
        let Adopt::Observe(window) = self.config.enforcement.adopt else { return Ok(()) };
        if is_first {
            self.adopting.until = seconds(now).saturating_add(u32::try_from(window.as_secs()).unwrap_or(u32::MAX));
            self.adopting.interfaces = self.netlink.links().await?.iter().map(|link| link.index).collect();
        } else {
            self.continue_to_adopt(now)?;
        }
        let left = self.adopting.left(now);
        if left > 0 {
            tracing::warn!("for {left} s TCP connections from before the first start go on unless a rule denies them");
        }
        Ok(())
    }

    fn continue_to_adopt(&mut self, now: MonoNs) -> Result<(), KernelError> {
        let rows = self.kernel.adopting()?;
        self.adopting.until = rows.iter().map(|row| row.1).max().filter(|until| *until > seconds(now)).unwrap_or(0);
        self.adopting.interfaces = rows.into_iter().map(|row| row.0).collect();
        Ok(())
    }

    /// What a sweep found of such connections; those that it finds after the window have ended, or do with their next packet.
    pub(super) fn tell_adopted(&mut self, found: &[(EndpointId, Adopted)]) {
        if self.adopting.until == 0 {
            return;
        }
        for (id, adopted) in found {
            let Some(pod) = self.endpoints.iter().find(|(_, endpoint)| endpoint.id == *id).map(|found| found.0) else {
                continue;
            };
            let seen = self.adopting.seen.entry(pod.clone()).or_default();
            if seen.len() < LOGGED && seen.insert(*adopted) {
                let Adopted { remote, remote_port, local_port } = adopted;
                tracing::info!(pod, %remote, remote_port, local_port, "a connection from before the first start goes on");
            }
        }
    }

    /// The window is over: what policy does not allow has ended, or does with its next packet.
    pub(super) fn end_adoption(&mut self) {
        if self.adopting.until == 0 || self.adopting.left(clock::mono()) > 0 {
            return;
        }
        self.sweep_flows(); // a last look
        let seen = std::mem::take(&mut self.adopting).seen;
        let connections: usize = seen.values().map(BTreeSet::len).sum();
        tracing::info!(
            connections,
            pods = seen.len(),
            "connections from before the first start end now where policy does not allow them"
        );
    }
}
