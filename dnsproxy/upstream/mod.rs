//! The DNS servers' side: one question up, one answer down, whoever waits for it.
//!
//! Each worker has its own sockets and its own outstanding queries; nothing here is shared between threads. A query
//! costs no task: the reader of a socket completes it, one timer per worker sends again and gives up. A datagram is an
//! answer only if it matches server address, port, ID and question, case included (I5); anything else is ignored, and
//! the wait goes on.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::timeout_at;

use crate::clock;
use crate::engine::answer::{Match, is_truncated, matches};
use crate::engine::name::Name;
use crate::engine::query::Query;
use crate::engine::wire::{HEADER, u16_at};
use crate::listen::datagrams::Inbox;

use chance::Chance;
use message::Letters;
use route::Route;
use server::{Server, Socket};

pub mod address;
pub mod chance;
pub mod message;
pub mod route;
mod server;
mod tcp;

/// Queries that one worker has outstanding at most, about 600 octets each.
pub const OUTSTANDING: usize = 32_768;
/// How late a query may be sent again or given up.
const TICK: Duration = Duration::from_millis(10);
/// How long a server that does not repeat the case of letters is asked over TCP only.
const OVER_TCP: Duration = Duration::from_secs(600);

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nothing that matches came in time.
    #[error("no answer in time")]
    Timeout,
    /// The server can't be reached.
    #[error("network: {0}")]
    Network(io::ErrorKind),
    /// Too much is outstanding already.
    #[error("{OUTSTANDING} queries are outstanding; that is the limit of a worker")]
    Busy,
}

impl UpstreamError {
    /// The word for metrics and flows.
    pub fn reason(self) -> &'static str {
        match self {
            UpstreamError::Timeout => "timeout",
            UpstreamError::Network(_) => "network",
            UpstreamError::Busy => "busy",
        }
    }
}

/// A server's answer: the octets as they came, its question being the one that was asked but for the case of letters.
pub type Reply = Rc<[u8]>;

/// Asks DNS servers: [`Upstream`], or what stands in for it where there are no sockets.
pub trait Resolve {
    /// Asks whom the route names what `query` asks; the reply's question is the one that was asked but for the case of
    /// letters.
    ///
    /// # Errors
    /// There is no answer, and why.
    fn resolve(
        &self,
        route: &Route,
        query: &Query<'_>,
        within: Duration,
    ) -> impl Future<Output = Result<Reply, UpstreamError>>;
}

impl Resolve for Upstream {
    async fn resolve(&self, route: &Route, query: &Query<'_>, within: Duration) -> Result<Reply, UpstreamError> {
        Upstream::resolve(self, route, query, within).await
    }
}

/// One worker's way to the DNS servers. To be used inside of a `LocalSet`.
#[derive(Clone)]
pub struct Upstream {
    shared: Rc<Shared>,
}

/// What makes two queries the same: one goes up, all who asked wait for it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    server: SocketAddr,
    name: Name,
    qtype: u16,
    qclass: u16,
    flags: u16,
    dnssec_ok: bool,
}

struct Shared {
    servers: RefCell<HashMap<SocketAddr, Rc<Server>>>,
    outstanding: RefCell<HashMap<Key, Rc<Pending>>>,
    timers: RefCell<BinaryHeap<Reverse<Timer>>>,
    earlier: Notify,
    wakes_at: Cell<Option<Instant>>,
    chance: RefCell<Chance>,
    inbox: RefCell<Inbox>,
}

/// A query that waits for its answer.
struct Pending {
    key: Key,
    server: Rc<Server>,
    query: Query<'static>,
    /// As it is sent over UDP; each copy gets its own ID.
    message: RefCell<Vec<u8>>,
    /// Where answers may come in: a copy each.
    copies: RefCell<Vec<(Rc<Socket>, u16)>>,
    started: Instant,
    deadline: Instant,
    opt: Cell<bool>,
    over_tcp: Cell<bool>,
    mismatches: Cell<u8>,
    state: RefCell<State>,
}

enum State {
    Waiting(Vec<Waker>),
    Done(Result<Reply, UpstreamError>),
}

struct Timer {
    at: Instant,
    pending: Weak<Pending>,
}

impl Upstream {
    /// Starts the timer of this worker.
    pub fn start() -> Upstream {
        let shared = Rc::new(Shared {
            servers: RefCell::default(),
            outstanding: RefCell::default(),
            timers: RefCell::default(),
            earlier: Notify::new(),
            wakes_at: Cell::new(None),
            chance: RefCell::default(),
            inbox: RefCell::default(),
        });
        spawn_local(keep_time(shared.clone()));
        Upstream { shared }
    }

    /// Asks whom the route names what `query` asks. Sent again after a quarter and a half of `within`.
    ///
    /// # Errors
    /// There is no answer, and why.
    pub async fn resolve(&self, route: &Route, query: &Query<'_>, within: Duration) -> Result<Reply, UpstreamError> {
        let pending = self.shared.ask(route.servers()[0].socket, query, within)?;
        poll_fn(|context| pending.poll(context)).await
    }

    /// How many different queries are outstanding.
    pub fn outstanding(&self) -> usize {
        self.shared.outstanding.borrow().len()
    }
}

impl Shared {
    /// Joins the same query if it is outstanding, or sends it.
    fn ask(
        self: &Rc<Self>,
        address: SocketAddr,
        query: &Query<'_>,
        within: Duration,
    ) -> Result<Rc<Pending>, UpstreamError> {
        let key = Key {
            server: address,
            name: query.name.clone(),
            qtype: query.qtype,
            qclass: query.qclass,
            flags: query.asked_flags(),
            dnssec_ok: query.dnssec_ok(),
        };
        if let Some(pending) = self.outstanding.borrow().get(&key) {
            return Ok(pending.clone());
        }
        if self.outstanding.borrow().len() >= OUTSTANDING {
            return Err(UpstreamError::Busy);
        }
        let server = self.servers.borrow_mut().entry(address).or_insert_with(|| Rc::new(Server::new(address))).clone();
        let now = clock::now();
        let pending = Rc::new(Pending {
            key: key.clone(),
            server,
            query: query.clone().into_owned(),
            message: RefCell::new(message::build(query, Letters::Mixed(&mut self.chance.borrow_mut()), true)),
            copies: RefCell::default(),
            started: now,
            deadline: now + within,
            opt: Cell::new(true),
            over_tcp: Cell::new(false),
            mismatches: Cell::new(0),
            state: RefCell::new(State::Waiting(Vec::new())),
        });
        self.outstanding.borrow_mut().insert(key, pending.clone());
        self.schedule(now + within / 4, &pending);
        if pending.server.only_tcp(now) {
            self.ask_over_tcp(&pending);
        } else {
            self.send(&pending);
        }
        Ok(pending)
    }

    /// Sends one copy over UDP, from another socket than the last one.
    fn send(self: &Rc<Self>, pending: &Rc<Pending>) {
        let socket = match Server::socket(self, &pending.server) {
            Ok(socket) => socket,
            Err(error) => return self.failed(pending, error),
        };
        let Some(id) = socket.register(&mut self.chance.borrow_mut(), pending) else {
            return; // no number is free on it, so it is overloaded: the timer tries again with another one
        };
        pending.copies.borrow_mut().push((socket.clone(), id));
        let mut message = pending.message.borrow_mut();
        message::set_id(&mut message, id);
        let sent = socket.send(&message);
        drop(message);
        match sent {
            Ok(()) => {}
            // The send buffer is full: like a lost datagram.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.failed(pending, error),
        }
    }

    /// A copy could not be sent: the end, unless another one may still be answered.
    fn failed(&self, pending: &Rc<Pending>, error: io::Error) {
        if pending.copies.borrow().len() <= 1 {
            self.finish(pending, Err(UpstreamError::Network(error.kind())));
        }
    }

    /// A datagram came in on `socket`.
    fn received(self: &Rc<Self>, socket: &Rc<Socket>, datagram: &[u8]) {
        let Some(pending) = u16_at(datagram, 0).and_then(|id| socket.waiting(id)) else { return };
        let question = pending.question();
        match matches(datagram, &question) {
            Match::No => return,
            Match::Case => {
                drop(question);
                return self.case_differs(&pending);
            }
            Match::Exact => drop(question),
        }
        socket.heard();
        let flags = u16_at(datagram, 2).unwrap_or(0);
        if is_truncated(datagram) {
            self.ask_over_tcp(&pending);
        } else if pending.opt.get() && refuses_edns(flags, datagram) && !pending.query.dnssec_ok() {
            // RFC 6891 section 7: a server that knows no EDNS is asked without.
            pending.opt.set(false);
            *pending.message.borrow_mut() =
                message::build(&pending.query, Letters::Mixed(&mut self.chance.borrow_mut()), false);
            pending.forget_copies();
            self.send(&pending);
        } else {
            self.finish(&pending, Ok(Rc::from(datagram)));
        }
    }

    /// The question came back with other letters: a forgery, or a server that does not keep them. The first time it is
    /// asked again, the second time over TCP, and the server from then on.
    fn case_differs(self: &Rc<Self>, pending: &Rc<Pending>) {
        pending.mismatches.set(pending.mismatches.get() + 1);
        match pending.mismatches.get() {
            1 => self.send(pending),
            2 => {
                pending.server.ask_only_tcp_until(clock::now() + OVER_TCP);
                let server = pending.server.address();
                tracing::info!(%server, "answers with other letters; asked over TCP for ten minutes");
                self.ask_over_tcp(pending);
            }
            _ => {}
        }
    }

    fn ask_over_tcp(self: &Rc<Self>, pending: &Rc<Pending>) {
        if pending.over_tcp.replace(true) {
            return;
        }
        pending.forget_copies();
        let mut message = message::build(&pending.query, Letters::Lower, pending.opt.get());
        message::set_id(&mut message, self.chance.borrow_mut().number());
        let (shared, pending) = (self.clone(), pending.clone());
        spawn_local(async move {
            let asked = tcp::ask(&pending.server, &message);
            let result = match timeout_at(pending.deadline.into(), asked).await {
                Ok(Ok(reply)) => Ok(reply.into()),
                Ok(Err(error)) => Err(UpstreamError::Network(error.kind())),
                Err(_) => Err(UpstreamError::Timeout),
            };
            shared.finish(&pending, result);
        });
    }

    /// The timer of `pending` went off.
    fn tick(self: &Rc<Self>, pending: &Rc<Pending>, now: Instant) {
        if pending.is_done() {
            return;
        }
        if now >= pending.deadline {
            return self.finish(pending, Err(UpstreamError::Timeout));
        }
        let within = pending.deadline - pending.started;
        if now < pending.started + within / 2 {
            self.schedule(pending.started + within / 2, pending);
        } else {
            self.schedule(pending.deadline, pending);
        }
        if !pending.over_tcp.get() {
            // What swallowed the first copy may swallow the next: leave its port, and the path that it stands for.
            if let Some((socket, _)) = pending.copies.borrow().last() {
                pending.server.suspect(socket, now);
            }
            self.send(pending);
        }
    }

    fn finish(&self, pending: &Rc<Pending>, result: Result<Reply, UpstreamError>) {
        let before = pending.state.replace(State::Done(result));
        let State::Waiting(waiting) = before else {
            pending.state.replace(before);
            return;
        };
        pending.forget_copies();
        self.outstanding.borrow_mut().remove(&pending.key);
        waiting.into_iter().for_each(Waker::wake);
    }

    fn schedule(&self, at: Instant, pending: &Rc<Pending>) {
        self.timers.borrow_mut().push(Reverse(Timer { at, pending: Rc::downgrade(pending) }));
        if self.wakes_at.get().is_none_or(|wakes_at| at < wakes_at) {
            self.wakes_at.set(Some(at));
            self.earlier.notify_one();
        }
    }
}

impl Pending {
    fn poll(&self, context: &mut Context<'_>) -> Poll<Result<Reply, UpstreamError>> {
        match &mut *self.state.borrow_mut() {
            State::Done(result) => Poll::Ready(result.clone()),
            State::Waiting(waiting) => {
                if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                    waiting.push(context.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    fn is_done(&self) -> bool {
        matches!(*self.state.borrow(), State::Done(_))
    }

    /// The question of the copies over UDP: name with its letters, type, class.
    fn question(&self) -> std::cell::Ref<'_, [u8]> {
        let octets = self.key.name.as_wire().len() + 4;
        std::cell::Ref::map(self.message.borrow(), |message| &message[HEADER..HEADER + octets])
    }

    fn forget_copies(&self) {
        for (socket, id) in self.copies.take() {
            socket.forget(id);
        }
    }
}

/// FORMERR or NOTIMP without an OPT record (RFC 6891 section 7).
fn refuses_edns(flags: u16, datagram: &[u8]) -> bool {
    matches!(flags & 0xf, 1 | 4) && u16_at(datagram, 10) == Some(0)
}

impl PartialEq for Timer {
    fn eq(&self, other: &Timer) -> bool {
        self.at == other.at
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Timer) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Timer) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

/// Fires timers until the worker ends.
async fn keep_time(shared: Rc<Shared>) {
    loop {
        let now = clock::now();
        loop {
            let due = match shared.timers.borrow_mut().peek_mut() {
                Some(first) if first.0.at <= now => std::collections::binary_heap::PeekMut::pop(first).0,
                _ => break,
            };
            if let Some(pending) = due.pending.upgrade() {
                shared.tick(&pending, now);
            }
        }
        // Most timers are of queries that were answered long ago: no wake-up for each.
        let next = shared.timers.borrow().peek().map(|first| first.0.at.max(now + TICK));
        shared.wakes_at.set(next);
        match next {
            // Either way the heap is looked at again.
            Some(at) => drop(timeout_at(at.into(), shared.earlier.notified()).await),
            None => shared.earlier.notified().await,
        }
    }
}

#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;
