//! Queries in datagrams: read by the batch, answered by the batch.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::rc::Rc;

use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::serve::{Next, Packet};

use super::Worker;
use super::datagrams::{Outbox, Outgoing};

/// Replies that wait for a socket that takes no more; above that they are lost, as datagrams may be.
const QUEUE: usize = 4_096;

/// A socket and the replies that leave it next.
pub(super) struct Listener {
    socket: AsyncFd<UdpSocket>,
    queue: RefCell<Vec<Outgoing>>,
    filled: Notify,
}

impl Listener {
    pub(super) fn new(socket: UdpSocket) -> io::Result<Listener> {
        // SAFETY: a UdpSocket owns its descriptor, which stays the same and open until it is dropped.
        let socket = unsafe { AsyncFd::register(socket)? };
        Ok(Listener { socket, queue: RefCell::default(), filled: Notify::new() })
    }

    /// Replies of one turn leave together: the flusher runs after all who were woken with the one that calls this.
    fn reply(&self, bytes: Vec<u8>, to: SocketAddr, from: (IpAddr, u32)) {
        let mut queue = self.queue.borrow_mut();
        if queue.len() < QUEUE {
            queue.push(Outgoing { bytes, to, from });
        }
        if queue.len() == 1 {
            self.filled.notify_one();
        }
    }
}

/// Reads queries for ever.
pub(super) async fn receive(worker: Rc<Worker>, listener: Rc<Listener>) {
    loop {
        let Ok(mut ready) = listener.socket.readable().await else { return };
        let received = {
            let mut inbox = worker.inbox.borrow_mut();
            ready.try_io(|socket| inbox.receive(socket.as_raw_fd()))
        };
        let batch = match received {
            Ok(Ok(batch)) => batch,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a datagram could not be read");
                continue;
            }
            Err(_would_block) => continue,
        };
        if batch.drained {
            ready.clear_ready();
        }
        drop(ready);
        for at in 0..batch.count {
            take(&worker, &listener, at);
        }
        if !batch.drained {
            // Those who were answered meanwhile come first.
            tokio::task::yield_now().await;
        }
    }
}

/// Serves one datagram of the batch: at once if nobody has to be asked.
fn take(worker: &Rc<Worker>, listener: &Rc<Listener>, at: usize) {
    let inbox = worker.inbox.borrow();
    let datagram = inbox.get(at);
    let (Some(client), Some(from)) = (datagram.from, datagram.arrived) else { return };
    let packet = Packet { bytes: datagram.bytes, client, local: from.0, interface: from.1, tcp: false };
    match worker.proxy.accept(&packet) {
        Next::Reply(None) => {}
        Next::Reply(Some(reply)) => listener.reply(reply, client, from),
        Next::Ask(ask) => {
            let (worker, listener) = (worker.clone(), listener.clone());
            spawn_local(async move {
                let _under_way = worker.begin();
                if let Some(reply) = worker.proxy.finish(ask, &worker.upstream).await {
                    listener.reply(reply, client, from);
                }
            });
        }
    }
}

/// Sends replies for ever.
pub(super) async fn flush(listener: Rc<Listener>) {
    let mut outbox = Outbox::default();
    let socket = listener.socket.as_raw_fd();
    loop {
        listener.filled.notified().await;
        let mut queue = listener.queue.take();
        let mut rest = &mut queue[..];
        while !rest.is_empty() {
            match outbox.send(socket, rest) {
                Ok(sent) => rest = &mut rest[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let Ok(mut ready) = listener.socket.writable().await else { return };
                    // Look again: if it is still full, the next edge is waited for.
                    if let Err(error) = outbox.send(socket, &mut rest[..1]) {
                        if error.kind() == io::ErrorKind::WouldBlock {
                            ready.clear_ready();
                            continue;
                        }
                        tracing::debug!(%error, to = %rest[0].to, "a reply could not be sent");
                    }
                    rest = &mut rest[1..];
                }
                // Its receiver can't be reached; the others can.
                Err(error) => {
                    tracing::debug!(%error, to = %rest[0].to, "a reply could not be sent");
                    rest = &mut rest[1..];
                }
            }
        }
    }
}
