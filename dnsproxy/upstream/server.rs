//! One DNS server and the sockets on which it is asked.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, spawn_local};

use crate::clock;

use super::chance::Chance;
use super::{Pending, Shared};

/// Sockets in use at a time: an attacker must guess which port, of four that change.
const SOCKETS: usize = 4;
/// Queries that one socket sends before another port takes over.
pub(super) const QUERIES: u32 = 1_000;
/// Queries that may wait on one socket: an unused number is found at once as long as most of 65 536 are.
const WAITING: usize = 8_192;
/// A socket on which a copy was lost is left, unless an answer came in on it in this time.
const TRUST: Duration = Duration::from_secs(1);
/// Connections over TCP at a time.
const CONNECTIONS: usize = 64;

/// A DNS server.
pub(super) struct Server {
    address: SocketAddr,
    sockets: RefCell<Vec<Rc<Socket>>>,
    turn: Cell<usize>,
    only_tcp_until: Cell<Option<Instant>>,
    pub(super) connections: Semaphore,
}

/// A socket connected to one server, on a port of its own.
pub(super) struct Socket {
    inner: AsyncFd<UdpSocket>,
    waiting: RefCell<HashMap<u16, Rc<Pending>>>,
    sent: Cell<u32>,
    retired: Cell<bool>,
    heard_at: Cell<Option<Instant>>,
    reader: RefCell<Option<AbortHandle>>,
}

impl Server {
    pub(super) fn new(address: SocketAddr) -> Server {
        Server {
            address,
            sockets: RefCell::default(),
            turn: Cell::new(0),
            only_tcp_until: Cell::new(None),
            connections: Semaphore::new(CONNECTIONS),
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn only_tcp(&self, now: Instant) -> bool {
        self.only_tcp_until.get().is_some_and(|until| now < until)
    }

    pub(super) fn ask_only_tcp_until(&self, until: Instant) {
        self.only_tcp_until.set(Some(until));
    }

    /// The next socket in turn; opened when there are too few or it has done its share.
    pub(super) fn socket(shared: &Rc<Shared>, server: &Rc<Server>) -> io::Result<Rc<Socket>> {
        let mut sockets = server.sockets.borrow_mut();
        sockets.retain(|socket| !socket.retired.get());
        if sockets.len() < SOCKETS {
            sockets.push(Socket::open(shared, server.address)?);
        }
        let turn = (server.turn.get() + 1) % sockets.len();
        server.turn.set(turn);
        let socket = sockets[turn].clone();
        socket.sent.set(socket.sent.get() + 1);
        if socket.sent.get() >= QUERIES {
            // Not closed yet: this last query is about to wait on it.
            socket.retired.set(true);
        }
        Ok(socket)
    }

    /// Leaves a socket on which nothing came back.
    pub(super) fn suspect(&self, socket: &Socket, now: Instant) {
        if socket.heard_at.get().is_none_or(|heard| now.saturating_duration_since(heard) > TRUST) {
            socket.retire();
        }
    }
}

impl Socket {
    fn open(shared: &Rc<Shared>, server: SocketAddr) -> io::Result<Rc<Socket>> {
        // The kernel chooses the port at random in its range.
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        socket.set_nonblocking(true)?;
        // SAFETY: a UdpSocket owns its descriptor, which stays the same and open until it is dropped.
        let inner = unsafe { AsyncFd::register(socket)? };
        let socket = Rc::new(Socket {
            inner,
            waiting: RefCell::default(),
            sent: Cell::new(0),
            retired: Cell::new(false),
            heard_at: Cell::new(None),
            reader: RefCell::default(),
        });
        let reader = spawn_local(read(shared.clone(), socket.clone()));
        socket.reader.replace(Some(reader.abort_handle()));
        Ok(socket)
    }

    /// Takes an unused number for `pending`; `None` when too many are in use.
    pub(super) fn register(&self, chance: &mut Chance, pending: &Rc<Pending>) -> Option<u16> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= WAITING {
            return None;
        }
        loop {
            let id = chance.number();
            if let std::collections::hash_map::Entry::Vacant(free) = waiting.entry(id) {
                free.insert(pending.clone());
                return Some(id);
            }
        }
    }

    pub(super) fn waiting(&self, id: u16) -> Option<Rc<Pending>> {
        self.waiting.borrow().get(&id).cloned()
    }

    pub(super) fn forget(&self, id: u16) {
        self.waiting.borrow_mut().remove(&id);
        self.close_if_done();
    }

    /// An answer came in.
    pub(super) fn heard(&self) {
        self.heard_at.set(Some(clock::now()));
    }

    pub(super) fn send(&self, message: &[u8]) -> io::Result<()> {
        let send = || self.inner.get_ref().send(message).map(drop);
        match send() {
            // The server's word on an earlier datagram (ICMP), given now; this one has not been sent.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => send(),
            result => result,
        }
    }

    /// No query goes out on it any more; it closes when the last answer has come in or is given up.
    fn retire(&self) {
        self.retired.set(true);
        self.close_if_done();
    }

    fn close_if_done(&self) {
        if self.retired.get()
            && self.waiting.borrow().is_empty()
            && let Some(reader) = self.reader.take()
        {
            reader.abort();
        }
    }
}

/// Reads what comes in until the socket is done.
async fn read(shared: Rc<Shared>, socket: Rc<Socket>) {
    loop {
        let Ok(mut ready) = socket.inner.readable().await else { return };
        let mut inbox = shared.inbox.borrow_mut();
        let received = ready.try_io(|inner| inbox.receive(inner.as_raw_fd()));
        drop(inbox);
        match received {
            Ok(Ok(batch)) => {
                if batch.drained {
                    ready.clear_ready();
                }
                for at in 0..batch.count {
                    // Whatever is done with it, no one else receives before the loop ends: there is no await in it.
                    let inbox = shared.inbox.borrow();
                    let datagram = inbox.get(at);
                    if !datagram.cut {
                        shared.received(&socket, datagram.bytes);
                    }
                }
            }
            // ICMP says the port is closed. It may be forged, and the next copy may fare better.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "a socket to a DNS server is given up");
                socket.retire();
                return;
            }
            Err(_would_block) => {}
        }
    }
}
