//! The only place that reads a clock. Everything else takes the time as an argument.
#![expect(clippy::disallowed_methods, reason = "this is the one file that may")]

use std::time::{Instant, SystemTime};

use crate::engine::grant::MonoNs;

/// Now, on the clock that the kernel programs compare deadlines with (`bpf_ktime_get_coarse_ns`).
pub fn mono() -> MonoNs {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec for the kernel to fill.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut now) };
    assert_eq!(failed, 0, "CLOCK_MONOTONIC_COARSE is there since Linux 2.6.32");
    MonoNs(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// How long the machine has slept since boot: boot time less monotonic time.
pub fn slept() -> std::time::Duration {
    let read = |clock| {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` is a valid timespec for the kernel to fill.
        let failed = unsafe { libc::clock_gettime(clock, &mut now) };
        assert_eq!(failed, 0, "both clocks are there since Linux 2.6.39");
        std::time::Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    };
    let awake = read(libc::CLOCK_MONOTONIC);
    read(libc::CLOCK_BOOTTIME).saturating_sub(awake)
}

/// Now, for measuring how long something took.
pub fn now() -> Instant {
    Instant::now()
}

/// The time of day, for people.
pub fn wall() -> SystemTime {
    SystemTime::now()
}
