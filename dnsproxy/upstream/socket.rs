//! The UDP sockets on which a server is asked: what is asked in one turn of the worker leaves in one system call.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, spawn_local};

use crate::clock;
use crate::listen::datagrams::BATCH;

use super::Shared;
use super::chance::Chance;
use super::doors::{Announced, Doors};
use super::pending::Pending;

/// Queries that may wait on one socket: an unused number is found at once as long as most of 65 536 are.
const WAITING: usize = 8_192;
/// A socket on which a copy was lost is left, unless an answer came in on it in this time.
const TRUST: Duration = Duration::from_secs(1);
/// Octets of answers that may wait to be read, at best: a burst of some thousand.
const RECEIVE_BUFFER: usize = 2 << 20;

/// A socket connected to one server, on a port of its own.
pub(super) struct Socket {
    /// Goes before the socket does.
    _announced: Option<Announced>,
    inner: AsyncFd<UdpSocket>,
    waiting: RefCell<HashMap<u16, Rc<Pending>, BuildHasherDefault<Spread>>>,
    queue: RefCell<Queue>,
    sent: Cell<u32>,
    retired: Cell<bool>,
    heard_at: Cell<Option<Instant>>,
    reader: RefCell<Option<AbortHandle>>,
}

/// Datagrams that leave at the end of the turn.
#[derive(Default)]
struct Queue {
    octets: Vec<u8>,
    ends: Vec<usize>,
}

impl Socket {
    pub fn open(shared: &Rc<Shared>, server: SocketAddr, doors: Option<&Doors>) -> io::Result<Rc<Socket>> {
        let socket = socket2::Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDP))?;
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER); // the kernel's limit may be lower, which is as good as it gets
        // The kernel chooses the port at random in its range.
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let bind = |socket: &socket2::Socket, to: SocketAddr| socket.bind(&to.into());
        let announced = match doors {
            Some(doors) => Some(doors.open(&socket, server, false, bind)?),
            None => bind(&socket, any).map(|()| None)?,
        };
        socket.connect(&server.into())?;
        socket.set_nonblocking(true)?;
        // SAFETY: a UdpSocket owns its descriptor, which stays the same and open until it is dropped.
        // Watched for answers only: each query that leaves would wake the worker for nothing.
        let inner = unsafe { AsyncFd::register_with_interest(UdpSocket::from(socket), Interest::READABLE)? };
        let socket = Rc::new(Socket {
            _announced: announced,
            inner,
            waiting: RefCell::default(),
            queue: RefCell::default(),
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
    pub fn register(&self, chance: &mut Chance, pending: &Rc<Pending>) -> Option<u16> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= WAITING {
            return None;
        }
        loop {
            let id = chance.number();
            if let Entry::Vacant(free) = waiting.entry(id) {
                free.insert(pending.clone());
                return Some(id);
            }
        }
    }

    /// Who waits for an answer with this number.
    pub fn waiting(&self, id: u16) -> Option<Rc<Pending>> {
        self.waiting.borrow().get(&id).cloned()
    }

    pub fn forget(&self, id: u16) {
        self.waiting.borrow_mut().remove(&id);
        self.close_if_done();
    }

    /// An answer came in.
    pub fn heard(&self, now: Instant) {
        self.heard_at.set(Some(now));
    }

    /// Puts what `write` appends into the queue as one datagram; it is told where that starts. Whether it is the first
    /// of its turn.
    pub fn queue(&self, write: impl FnOnce(&mut Vec<u8>, usize)) -> bool {
        let mut queue = self.queue.borrow_mut();
        let first = queue.ends.is_empty();
        let start = queue.octets.len();
        write(&mut queue.octets, start);
        let end = queue.octets.len();
        queue.ends.push(end);
        self.sent.set(self.sent.get() + 1);
        first
    }

    /// Sends what is queued. Gives the numbers of what could not be sent, and why.
    pub fn flush(&self, burst: &mut Burst) -> Vec<(u16, io::Error)> {
        let mut queue = self.queue.take();
        let mut failed = Vec::new();
        let mut next = 0;
        let mut refused = false;
        while next < queue.ends.len() {
            match burst.send(self.inner.as_raw_fd(), &queue, next) {
                Ok(sent) => {
                    refused = false;
                    next += sent.max(1);
                }
                // The server's word on an earlier datagram (ICMP), given now; this one has not been sent.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && !refused => refused = true,
                // The send buffer is full: like lost datagrams.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    let id = queue.datagram(next);
                    failed.push((u16::from_be_bytes([id[0], id[1]]), error));
                    next += 1;
                }
            }
        }
        queue.octets.clear();
        queue.ends.clear();
        self.queue.replace(queue);
        failed
    }

    /// How many queries it has sent.
    pub fn sent(&self) -> u32 {
        self.sent.get()
    }

    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// No query goes out on it any more; it closes when the last answer has come in or is given up.
    pub fn retire(&self) {
        self.retired.set(true);
        self.close_if_done();
    }

    /// A copy was lost on it: what swallowed it may swallow the next, so its port is left, and the path it stands for.
    pub fn suspect(&self, now: Instant) {
        if self.heard_at.get().is_none_or(|heard| now.saturating_duration_since(heard) > TRUST) {
            self.retire();
        }
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

impl Queue {
    fn datagram(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.octets[start..self.ends[at]]
    }
}

/// Room for one batch that goes out on a connected socket.
#[derive(Default)]
pub(super) struct Burst {
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Burst {
    /// Sends datagrams of the queue from `first` on without waiting, at most [`BATCH`]; how many went.
    fn send(&mut self, socket: RawFd, queue: &Queue, first: usize) -> io::Result<usize> {
        let count = (queue.ends.len() - first).min(BATCH);
        if count == 1 {
            let datagram = queue.datagram(first);
            // SAFETY: the kernel reads `len` octets, all of the slice.
            let sent = unsafe { libc::send(socket, datagram.as_ptr().cast(), datagram.len(), libc::MSG_DONTWAIT) };
            return usize::try_from(sent).map(|_| 1).map_err(|_| io::Error::last_os_error());
        }
        self.vectors.clear();
        self.headers.clear();
        self.vectors.extend((first..first + count).map(|at| {
            let datagram = queue.datagram(at);
            libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() }
        }));
        for vector in &mut self.vectors {
            // SAFETY: all zero octets are a valid header: no name, for the socket is connected, and no control data.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_iov = ptr::from_mut(vector);
            header.msg_hdr.msg_iovlen = 1;
            self.headers.push(header);
        }
        // SAFETY: each header points at a vector and each vector at octets of the queue, which outlive the call; the
        // kernel only reads them, but for `msg_len`.
        let sent = unsafe {
            libc::sendmmsg(socket, self.headers.as_mut_ptr(), count as libc::c_uint, libc::MSG_DONTWAIT as _)
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// Spreads numbers that are random already: nobody else chooses them, so no key is needed.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, octets: &[u8]) {
        octets.iter().for_each(|octet| self.write_u16(u16::from(*octet)));
    }

    fn write_u16(&mut self, number: u16) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
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
                let now = clock::now();
                // Whatever is done with it, no one else receives before the loop ends: there is no await in it.
                let inbox = shared.inbox.borrow();
                for at in 0..batch.count {
                    let datagram = inbox.get(at);
                    if !datagram.cut {
                        shared.received(&socket, datagram.bytes, now);
                    }
                }
                drop(inbox);
                shared.settle();
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
