//! What time takes away: flows that are over, and datagrams of which not every fragment came. (Grants: the name table
//! decides, see `engine::fqdn`.)

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libbpf_rs::MapCore;

use super::KernelError;
use super::abi::{self, flow};
use super::load::{Kernel, LoadSettings};
use crate::engine::endpoint::EndpointId;
use crate::engine::grant::MonoNs;
use crate::observe::Reason;

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Flows that were over and are gone.
    pub removed: usize,
    /// Flows that go on.
    pub live: usize,
    /// Connections from before the first start, of those.
    pub adopted: Vec<(EndpointId, Adopted)>,
    /// The peers of each endpoint's flows that go on.
    pub remotes: HashMap<EndpointId, HashSet<IpAddr>>,
}

/// A connection from before the first start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Adopted {
    /// The other side.
    pub remote: IpAddr,
    /// Its port.
    pub remote_port: u16,
    /// The endpoint's own port.
    pub local_port: u16,
}

/// Places in `struct budget`.
const FLOWS: usize = 0;
const FRAGMENTS: usize = 2;

/// `budgets`, mapped: counted with atomics on both sides.
pub struct Budgets {
    rows: *const [AtomicU32; 4],
    len: usize,
}

// SAFETY: shared memory that is only touched through atomics.
unsafe impl Send for Budgets {}
// SAFETY: as above.
unsafe impl Sync for Budgets {}

impl Budgets {
    /// Maps the kernel's `budgets`.
    ///
    /// # Errors
    /// The map can't be mapped.
    pub fn map(kernel: &Kernel) -> Result<Budgets, KernelError> {
        let map = kernel.tables.budgets.map();
        let len = map.max_entries() as usize;
        // SAFETY: a fresh mapping of a map made with BPF_F_MMAPABLE, as large as its rows.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len * size_of::<abi::budget>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(KernelError::last("map budgets into memory".into()));
        }
        Ok(Budgets { rows: at.cast(), len })
    }

    fn row(&self, slot: u32) -> Option<&[AtomicU32; 4]> {
        // SAFETY: within the mapping, which lives as long as `self`; u32 is aligned in 16-octet rows.
        ((slot as usize) < self.len).then(|| unsafe { &*self.rows.add(slot as usize) })
    }

    /// How many flows the slot has in use; slot 0 is the pool that all share.
    pub fn flows(&self, slot: u32) -> u32 {
        self.row(slot).map_or(0, |row| row[FLOWS].load(Ordering::Relaxed))
    }

    /// How many datagrams in fragments the slot has under way; slot 0 is the pool that all share.
    pub fn fragments(&self, slot: u32) -> u32 {
        self.row(slot).map_or(0, |row| row[FRAGMENTS].load(Ordering::Relaxed))
    }

    /// One less of `what`, of the slot, if its endpoint is still there, and, if it was charged to it, of the pool.
    fn release(&self, what: usize, slot: Option<u32>, pooled: bool) {
        for slot in slot.into_iter().chain(pooled.then_some(0)) {
            if let Some(row) = self.row(slot) {
                // The kernel may have counted down to zero for us after a crash between two steps: never wrap.
                let _ = row[what].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
            }
        }
    }

    /// Nobody has the slot any more, and no row is charged to it.
    pub fn clear(&self, slot: u32) {
        self.set(FLOWS, slot, 0);
        self.set(FRAGMENTS, slot, 0);
    }

    /// Sets what a slot has in use: at start, when it is reckoned from the rows themselves.
    fn set(&self, what: usize, slot: u32, count: u32) {
        if let Some(row) = self.row(slot) {
            row[what].store(count, Ordering::Relaxed);
        }
    }
}

impl Drop for Budgets {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, of the same length.
        unsafe { libc::munmap(self.rows.cast_mut().cast(), self.len * size_of::<abi::budget>()) };
    }
}

/// `FLOW_REVOKED`: remembered, but it keeps no grant alive.
const REVOKED: u8 = 7;

/// When a flow in this state is over.
fn timeout(settings: &LoadSettings, state: u8) -> u64 {
    let duration = match state {
        1..=3 => settings.established_timeout,
        4 => settings.closed_timeout,
        5 => settings.datagram_timeout,
        6 | REVOKED => settings.datagram_both_timeout,
        _ => settings.syn_timeout,
    };
    duration.as_nanos() as u64
}

/// As `is_over` of bpf/include/lifetime.h.
fn is_over(settings: &LoadSettings, idle_grace: Duration, flow: &flow, now: MonoNs) -> bool {
    let grace =
        if matches!(flow.state, 1..=3 | 6) { Duration::from_secs(idle_grace.as_secs()) } else { Duration::ZERO };
    now.0.saturating_sub(flow.last_ns) > timeout(settings, flow.state) + grace.as_nanos() as u64
}

impl Kernel {
    /// Removes flows and first fragments that are over, and those of endpoints that are no more.
    ///
    /// `idle_grace` is that of [`super::rules::FlowLimits`]. A quarter of a microsecond a flow. A flow that moves while it is removed is judged anew with its next packet.
    ///
    /// # Errors
    /// The map can't be read.
    pub fn sweep(
        &self,
        settings: &LoadSettings,
        idle_grace: Duration,
        budgets: &Budgets,
        slot_of: &dyn Fn(EndpointId) -> Option<u32>,
        now: MonoNs,
    ) -> Result<Sweep, KernelError> {
        let mut sweep = Sweep::default();
        for (key, flow) in self.tables.flows.rows()? {
            let endpoint = EndpointId(key.endpoint_and_protocol >> 8);
            let slot = slot_of(endpoint);
            if slot.is_some() && !is_over(settings, idle_grace, &flow, now) {
                sweep.live += 1;
                if flow.rule == Reason::Adopted as u32 {
                    let [local_port, remote_port] = [key.local_port, key.remote_port].map(u16::from_be);
                    let remote = abi::unmapped(key.remote.octets);
                    sweep.adopted.push((endpoint, Adopted { remote, remote_port, local_port }));
                }
                if flow.state != REVOKED {
                    sweep.remotes.entry(endpoint).or_default().insert(abi::unmapped(key.remote.octets));
                }
                continue;
            }
            if let Some(taken) = self.tables.flows.take(&key) {
                sweep.removed += 1;
                budgets.release(FLOWS, slot, taken.pooled != 0);
            }
        }
        self.sweep_fragments(budgets, slot_of, now)?;
        Ok(sweep)
    }

    fn sweep_fragments(
        &self,
        budgets: &Budgets,
        slot_of: &dyn Fn(EndpointId) -> Option<u32>,
        now: MonoNs,
    ) -> Result<(), KernelError> {
        for (key, first) in self.tables.fragments.rows()? {
            let slot = slot_of(EndpointId(key.endpoint_id));
            if slot.is_some() && now.0 < first.until_mono_ns {
                continue;
            }
            if let Some(taken) = self.tables.fragments.take(&key) {
                budgets.release(FRAGMENTS, slot, taken.pooled != 0);
            }
        }
        Ok(())
    }

    /// Removes every flow and every first fragment: what they belong to is not known.
    ///
    /// # Errors
    /// A map can't be read.
    pub fn delete_all_flows(&self) -> Result<usize, KernelError> {
        self.tables.fragments.delete_where(|_, _| true)?;
        self.tables.flows.delete_where(|_, _| true)
    }

    /// Reckons every budget from the rows that are there: after a crash, counts and rows may not agree.
    ///
    /// # Errors
    /// A map can't be read.
    pub fn recount(&self, budgets: &Budgets, slot_of: &dyn Fn(EndpointId) -> Option<u32>) -> Result<(), KernelError> {
        let flows = self.tables.flows.rows()?;
        let flows = flows.iter().map(|(key, flow)| (key.endpoint_and_protocol >> 8, flow.pooled));
        let fragments = self.tables.fragments.rows()?;
        let fragments = fragments.iter().map(|(key, first)| (key.endpoint_id, first.pooled));
        let rows = flows.map(|row| (FLOWS, row)).chain(fragments.map(|row| (FRAGMENTS, row)));
        let mut counts = [FLOWS, FRAGMENTS].map(|what| (what, vec![0u32; budgets.len]));
        for (what, (endpoint, pooled)) in rows {
            let slot = slot_of(EndpointId(endpoint));
            let counts = &mut counts[usize::from(what == FRAGMENTS)].1;
            for slot in slot.into_iter().chain((pooled != 0).then_some(0)) {
                counts[slot as usize] += 1;
            }
        }
        for (what, counts) in counts {
            for (slot, count) in counts.into_iter().enumerate() {
                budgets.set(what, slot as u32, count);
            }
        }
        Ok(())
    }
}
