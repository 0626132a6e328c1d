//! The lab's clocks. The lab measures real time; nothing of it is compiled into the product.
#![expect(clippy::disallowed_methods, reason = "the lab measures real time")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Now, for measuring how long something took.
pub fn now() -> Instant {
    Instant::now()
}

/// Now, nanoseconds since 1970: the clock that the kernel stamps captured frames with.
pub fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_nanos() as u64
}

/// Nanoseconds of the monotonic clock: the same in every process, and nobody steps it.
pub fn mono_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is valid; this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Asks `done` every 5 ms until it says yes; `false` when `limit` has passed.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
