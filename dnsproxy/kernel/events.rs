//! What the programs tell: one event a new conversation or refused frame. May be lost; nothing depends on one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libbpf_rs::RingBufferBuilder;

use super::KernelError;
use super::abi::{Plain, flow_event};
use super::load::Kernel;

/// How long an event may lie in the ring. The programs never wake us: a wake-up cost 7.7 µs, a poll 24 ns.
const POLL: Duration = Duration::from_millis(20);

/// A thread that reads the ring until it is dropped.
pub struct Events {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Events {
    /// Reads events of `kernel` and hands each to `take`.
    ///
    /// # Errors
    /// The ring can't be opened.
    pub fn start(
        kernel: Arc<Kernel>,
        mut take: impl FnMut(&flow_event) + Send + 'static,
    ) -> Result<Events, KernelError> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (opened, open) = std::sync::mpsc::channel();
        let read = move || {
            let mut builder = RingBufferBuilder::new();
            let each = move |octets: &[u8]| {
                if let Some(event) = flow_event::from_octets(octets) {
                    take(&event);
                }
                0
            };
            let added = builder.add(&kernel.tables.events, each).map(drop);
            let ring = match added.and_then(|()| builder.build()) {
                Ok(ring) => {
                    drop(opened.send(Ok(())));
                    ring
                }
                Err(error) => {
                    drop(opened.send(Err(error)));
                    return;
                }
            };
            while !stopped.load(Ordering::Relaxed) {
                ring.consume_raw();
                std::thread::park_timeout(POLL);
            }
            ring.consume_raw();
        };
        let failed = |error| KernelError::call("read the events ring".into(), error);
        let thread = std::thread::Builder::new().name("events".into()).spawn(read).map_err(failed)?;
        match open.recv() {
            Ok(Ok(())) => Ok(Events { stop, thread: Some(thread) }),
            Ok(Err(error)) => Err(failed(std::io::Error::other(error))),
            Err(error) => Err(failed(std::io::Error::other(error))),
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            drop(thread.join());
        }
    }
}
