//! The DNS servers' side: one question up, one answer down, whoever waits for it.
//!
//! Each worker has its own sockets and its own outstanding queries; only how servers fare is shared ([`health`]). A query
//! over UDP costs no task: what is asked in one turn of the worker leaves in one system call, the reader of a socket
//! completes it, one timer per worker sends again and gives up. A datagram is an answer only if it matches server
//! address, port, ID and question, case included (I5), and the cookie of a server that does cookies; anything else is
//! ignored, and the wait goes on.
//!
//! Where a route has several servers the one that answers soonest is asked. Each further copy goes to another one: after
//! a wait that fits the server, or at once when it answers SERVFAIL, NOTIMP or REFUSED; that answer goes back only if
//! nobody has a better one.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::timeout_at;

use crate::clock;
use crate::engine::query::Query;
use crate::listen::datagrams::Inbox;

use chance::Chance;
use health::Registry;
use pending::{Key, Pending};
use route::Route;
use server::{Paths, Server};
use socket::{Burst, Socket};
use timers::{Timer, Wheel};

pub mod address;
mod answers;
mod asking;
pub mod chance;
mod cookie;
pub mod doors;
pub mod health;
mod https;
pub mod message;
mod pending;
pub mod route;
mod server;
mod socket;
mod stream;
mod timers;
pub mod trust;

/// Queries that one worker has outstanding at most, about 600 octets each.
pub const OUTSTANDING: usize = 32_768;

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nothing that matches came in time.
    #[error("no answer in time")]
    Timeout,
    /// The server can't be reached.
    #[error("network: {0}")]
    Network(io::ErrorKind),
    /// The server's certificate is not good, or TLS failed otherwise; the log has the reason.
    #[error("TLS failed")]
    Tls,
    /// The answer is cut even on a connection.
    #[error("the answer is truncated over TCP")]
    Truncated,
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
            UpstreamError::Tls => "tls",
            UpstreamError::Truncated => "truncated_answer",
            UpstreamError::Busy => "busy",
        }
    }
}

/// A server's answer: the octets as they came but for a cookie, its question being the one that was asked but for the
/// case of letters.
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

struct Shared {
    paths: RefCell<Paths>,
    /// By what is asked. Names are the clients' choice, so this one is keyed.
    joinable: RefCell<HashMap<Key, Rc<Pending>>>,
    /// All that have a timer: those and the ones that still listen for a late answer, to know how its server fares.
    outstanding: RefCell<Slab<Rc<Pending>>>,
    serial: Cell<u64>,
    timers: RefCell<Wheel>,
    earlier: Notify,
    wakes_at: Cell<Option<Instant>>,
    /// Sockets with datagrams that leave at the end of the turn.
    unsent: RefCell<Vec<(Rc<Server>, Rc<Socket>)>>,
    filled: Notify,
    /// Servers with counts that the others don't know yet.
    uncounted: RefCell<Vec<Rc<Server>>>,
    chance: RefCell<Chance>,
    inbox: RefCell<Inbox>,
}

impl Upstream {
    /// Starts what sends and what keeps time on this worker. `registry` is shared with the other workers.
    pub fn start(registry: Arc<Registry>) -> Upstream {
        let shared = Rc::new(Shared {
            paths: RefCell::new(Paths::new(registry)),
            joinable: RefCell::default(),
            outstanding: RefCell::default(),
            serial: Cell::new(0),
            timers: RefCell::default(),
            earlier: Notify::new(),
            wakes_at: Cell::new(None),
            unsent: RefCell::default(),
            filled: Notify::new(),
            uncounted: RefCell::default(),
            chance: RefCell::default(),
            inbox: RefCell::default(),
        });
        spawn_local(keep_time(shared.clone()));
        spawn_local(flush(shared.clone()));
        Upstream { shared }
    }

    /// Asks the servers of `route` what `query` asks. The only one is asked again after a quarter and a half of
    /// `within`; of several, see above.
    ///
    /// Joins the same question if it is under way: route, name, type, class, RD, AD, CD and DO.
    ///
    /// # Errors
    /// There is no answer, and why.
    pub async fn resolve(&self, route: &Route, query: &Query<'_>, within: Duration) -> Result<Reply, UpstreamError> {
        let pending = self.shared.ask(route, query, within)?;
        poll_fn(|context| pending.poll(context)).await
    }

    /// How many different queries are outstanding.
    pub fn outstanding(&self) -> usize {
        self.shared.joinable.borrow().len()
    }
}

impl Shared {
    /// The timer of `pending` went off.
    fn tick(self: &Rc<Self>, pending: &Rc<Pending>, now: Instant) {
        if now < pending.due.get() {
            return; // another one was set since
        }
        pending.unanswered(now);
        if pending.is_done() {
            if now >= pending.deadline {
                pending.forget_copies(|_| true);
            }
            return self.let_go(pending);
        }
        if now >= pending.deadline {
            return self.give_up(pending, now);
        }
        match pending.choose(now).filter(|_| pending.may_ask_again()) {
            Some(at) => self.attempt(pending, at, now),
            // All have had their time, and one has said something.
            None if pending.kept().is_some() && !pending.is_alone() => self.give_up(pending, now),
            None => self.schedule(pending, pending.deadline, now),
        }
    }

    /// Looks at `pending` at `at`, and not before.
    fn schedule(&self, pending: &Pending, at: Instant, now: Instant) {
        let at = at.min(pending.deadline);
        pending.due.set(at);
        let timer = Timer { number: pending.number.get(), serial: pending.serial };
        let at = self.timers.borrow_mut().set(at, timer, now);
        if self.wakes_at.get().is_none_or(|wakes_at| at < wakes_at) {
            self.wakes_at.set(Some(at));
            self.earlier.notify_one();
        }
    }

    fn count(&self, server: &Rc<Server>, queries: u64, answers: u64) {
        if server.count(queries, answers) {
            self.uncounted.borrow_mut().push(server.clone());
        }
    }

    /// Tells the others what was counted in this turn.
    fn settle(&self) {
        self.uncounted.borrow_mut().drain(..).for_each(|server| server.settle());
    }

    /// Sends what the turn has queued.
    fn send_all(self: &Rc<Self>, burst: &mut Burst) {
        let unsent = self.unsent.take();
        for (server, socket) in unsent {
            if let Some(plain) = server.plain() {
                plain.end_turn();
            }
            for (id, error) in socket.flush(burst) {
                let Some(pending) = socket.waiting(id) else { continue };
                let Some((at, sent)) = pending.copy(&socket, id) else { continue };
                let now = clock::now();
                tracing::debug!(server = %server.address, %error, "a query could not be sent");
                server.health.unanswered(sent, now);
                pending.forget_copies(|copy| copy.id == id && Rc::ptr_eq(&copy.socket, &socket));
                if pending.is_done() {
                    self.let_go(&pending);
                } else {
                    self.failed(&pending, at, UpstreamError::Network(error.kind()), now);
                }
            }
        }
        self.settle();
    }
}

fn is_at(outstanding: &Slab<Rc<Pending>>, number: usize, serial: u64) -> bool {
    outstanding.get(number).is_some_and(|pending| pending.serial == serial)
}

/// Sends at the end of each turn in which something was asked: it was woken first and so runs after all who ask with
/// the one that woke it.
async fn flush(shared: Rc<Shared>) {
    let mut burst = Burst::default();
    loop {
        shared.filled.notified().await;
        shared.send_all(&mut burst);
    }
}

/// Fires timers until the worker ends.
async fn keep_time(shared: Rc<Shared>) {
    loop {
        let now = clock::now();
        while let Some(due) = { shared.timers.borrow_mut().take(now) } {
            for timer in &due {
                let pending = shared.outstanding.borrow().get(timer.number).cloned();
                if let Some(pending) = pending.filter(|pending| pending.serial == timer.serial) {
                    shared.tick(&pending, now);
                }
            }
            shared.timers.borrow_mut().give_back(due);
        }
        shared.settle();
        let next = shared.timers.borrow().next();
        shared.wakes_at.set(next);
        match next {
            // Either way the timers are looked at again.
            Some(at) => drop(timeout_at(at.into(), shared.earlier.notified()).await),
            None => shared.earlier.notified().await,
        }
    }
}

#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;
