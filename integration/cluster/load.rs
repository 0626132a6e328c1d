//! How loaded the machine is: what a limit of time is worth.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long it computes, and how long it pauses then.
const TURN: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(90)];

/// A thread that computes a little, often, and sees how long that takes.
pub struct Load {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<f64>,
}

impl Load {
    /// Begins to look.
    pub fn measure() -> Load {
        let ended: Arc<AtomicBool> = Arc::default();
        let seen = ended.clone();
        let thread = std::thread::spawn(move || {
            let (mut computed, mut passed) = (Duration::ZERO, Duration::ZERO);
            while !seen.load(Ordering::Relaxed) {
                let (began, start) = (computed_so_far(), Instant::now());
                while computed_so_far() - began < TURN[0] {
                    std::hint::spin_loop();
                }
                computed += computed_so_far() - began;
                passed += start.elapsed();
                std::thread::sleep(TURN[1]);
            }
            passed.as_secs_f64() / computed.as_secs_f64()
        });
        Load { ended, thread }
    }

    /// How many times as long as on an idle machine things took since then: 1 where nobody else computes.
    pub fn factor(self) -> f64 {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().expect("it only computes").max(1.0)
    }
}

/// Processor time of this thread.
fn computed_so_far() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is valid; this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
