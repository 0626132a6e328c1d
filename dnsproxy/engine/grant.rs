//! Grants: a workload may reach an address until a moment.

use std::net::IpAddr;

use super::bits::Bits;

/// A moment on the kernel's monotonic clock, nanoseconds since boot without suspend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MonoNs(pub u64);

/// How many deadlines one grant can hold in the kernel.
pub const SLOTS: usize = 4;

/// Groups that may be reached until a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot {
    /// The groups.
    pub bits: Bits,
    /// Until when; 0 for an unused slot.
    pub until: MonoNs,
}

/// What the kernel is to hold for one (endpoint, address). All slots unused: delete the row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GrantWrite {
    /// The address that may be reached.
    pub address: IpAddr,
    /// Distinct deadlines, the longest first.
    pub slots: [Slot; SLOTS],
}
