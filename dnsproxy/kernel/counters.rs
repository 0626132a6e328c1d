//! What the programs counted: exact, whatever happens to events.

use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::MapCore;

use super::abi::{self, Plain, counter};
use super::load::Kernel;
use crate::engine::ruleset::Direction;
use crate::observe::Reason;

/// Packets and octets since the maps were made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counted {
    /// Why they passed or not.
    pub reason: Reason,
    /// Which way they went.
    pub direction: Direction,
    /// How many.
    pub packets: u64,
    /// How long, with their Ethernet headers.
    pub octets: u64,
}

impl Kernel {
    /// One row for every reason and direction, summed over the CPUs, in one system call; empty if that fails.
    pub fn counted(&self) -> Vec<Counted> {
        let map = &self.tables.counters;
        let rows = map.max_entries() as usize;
        // The kernel writes a value for each CPU that could be. Too small a guess (no /sys here) would be written past its end.
        let Ok(cpus) = libbpf_rs::num_possible_cpus() else { return Vec::new() };
        let mut keys = vec![0u32; rows];
        let mut values = vec![0u8; rows * cpus * size_of::<counter>()];
        let (mut next, mut count) = (0u64, rows as u32);
        // SAFETY: room for `count` keys of four octets, and for each a value a CPU, which is a multiple of eight octets.
        let failed = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                map.as_fd().as_raw_fd(),
                std::ptr::null_mut(),
                (&raw mut next).cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &mut count,
                std::ptr::null(),
            )
        };
        if failed < 0 && failed != -libc::ENOENT {
            return Vec::new();
        }
        let row = |row: usize| {
            let each = values[row * cpus * size_of::<counter>()..].chunks_exact(size_of::<counter>()).take(cpus);
            each.filter_map(counter::from_octets).fold((0, 0), |sum, cpu| (sum.0 + cpu.packets, sum.1 + cpu.octets))
        };
        let directions = [Direction::Egress, Direction::Ingress];
        directions
            .into_iter()
            .flat_map(|direction| Reason::ALL.iter().map(move |reason| (direction, *reason)))
            .map(|(direction, reason)| {
                let (packets, octets) = row(usize::from(reason as u8) | usize::from(abi::direction(direction)) << 6);
                Counted { reason, direction, packets, octets }
            })
            .collect()
    }
}
