//! Queries in datagrams: read by the batch, answered by the batch.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::serve::{Next, Packet};

use super::datagrams::{Outbox, Outgoing};
use super::{At, Worker};

/// Replies that wait for a socket that takes no more; above that they are lost, as datagrams may be.
const QUEUE: usize = 4_096;

/// How long a full socket is left alone. Not watched for room: each datagram that leaves would wake the worker for nothing.
const FULL: Duration = Duration::from_millis(1);
/// Buffers kept for further replies.
const SPARE: usize = 256;

/// A socket and the replies that leave it next.
pub(super) struct Listener {
    socket: AsyncFd<UdpSocket>,
    at: At,
    queue: RefCell<Vec<Outgoing>>,
    /// Buffers of replies that have left: a hot reply needs no new one.
    spare: RefCell<Vec<Vec<u8>>>,
    outbox: RefCell<Outbox>,
    filled: Notify,
}

impl Listener {
    pub(super) fn new(socket: UdpSocket, at: At) -> io::Result<Listener> {
        // SAFETY: a UdpSocket owns its descriptor, which stays the same and open until it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        Ok(Listener {
            socket,
            at,
            queue: RefCell::default(),
            spare: RefCell::default(),
            outbox: RefCell::default(),
            filled: Notify::new(),
        })
    }

    fn buffer(&self) -> Vec<u8> {
        self.spare.borrow_mut().pop().unwrap_or_default()
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE {
            spare.push(buffer);
        }
    }

    /// Replies of one turn leave together, see [`Listener::send`].
    fn reply(&self, bytes: Vec<u8>, to: SocketAddr, from: (IpAddr, u32)) {
        // Among local sockets the kernel finds the way, which is by another interface than it says where the client has the
        // pod's own address.
        let from = if self.at == At::All { from } else { (from.0, 0) };
        let mut queue = self.queue.borrow_mut();
        if queue.len() < QUEUE {
            queue.push(Outgoing { bytes, to, from });
        }
    }

    /// The flusher runs after all who were woken with the one that calls this.
    fn send_later(&self) {
        self.filled.notify_one();
    }

    /// Sends what is queued, as far as the socket takes it; the flusher does the rest.
    fn send(&self) {
        let mut queue = self.queue.borrow_mut();
        let mut outbox = self.outbox.borrow_mut();
        let mut gone = 0;
        while gone < queue.len() {
            match outbox.send(self.socket.as_raw_fd(), &mut queue[gone..]) {
                Ok(sent) => gone += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.send_later();
                    break;
                }
                // Its receiver can't be reached; the others can.
                Err(error) => {
                    tracing::debug!(%error, to = %queue[gone].to, "a reply could not be sent");
                    gone += 1;
                }
            }
        }
        queue.drain(..gone).for_each(|sent| self.give_back(sent.bytes));
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
        listener.send();
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
    let mut reply = listener.buffer();
    match worker.proxy.accept(&packet, Some(&mut worker.memory.borrow_mut()), &mut reply) {
        Next::Reply => listener.reply(reply, client, from),
        Next::Nothing => listener.give_back(reply),
        Next::Ask(ask) => {
            listener.give_back(reply);
            let (worker, listener) = (worker.clone(), listener.clone());
            let under_way = worker.begin(); // before the task's first turn, which a drain may come before
            spawn_local(async move {
                listener.reply(worker.proxy.finish(ask, &worker.upstream).await, client, from);
                listener.send_later();
                drop(under_way);
            });
        }
    }
}

/// Sends for ever what does not leave at once.
pub(super) async fn flush(listener: Rc<Listener>) {
    loop {
        listener.filled.notified().await;
        listener.send();
        while !listener.queue.borrow().is_empty() {
            tokio::time::sleep(FULL).await;
            listener.send();
        }
    }
}
