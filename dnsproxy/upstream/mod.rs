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
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::timeout_at;

use crate::clock;
use crate::engine::answer::{Answer, Match, is_truncated, matches};
use crate::engine::query::Query;
use crate::engine::wire::u16_at;
use crate::listen::datagrams::Inbox;

use chance::Chance;
use cookie::Verdict;
use health::Registry;
use message::Letters;
use pending::{Copy, Key, Pending, Poor};
use route::Route;
use server::{Paths, Server};
use socket::{Burst, Socket};
use timers::{Timer, Wheel};

pub mod address;
pub mod chance;
mod cookie;
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

/// Asking.
impl Shared {
    /// Joins the same query if it is outstanding, or asks.
    fn ask(self: &Rc<Self>, route: &Route, query: &Query<'_>, within: Duration) -> Result<Rc<Pending>, UpstreamError> {
        let path = self.paths.borrow_mut().of(route);
        let key = Key {
            path: path.id,
            name: query.name.clone(),
            qtype: query.qtype,
            qclass: query.qclass,
            flags: query.asked_flags(),
            dnssec_ok: query.dnssec_ok(),
        };
        if let Some(pending) = self.joinable.borrow().get(&key) {
            return Ok(pending.clone());
        }
        let full = self.joinable.borrow().len() >= OUTSTANDING || self.outstanding.borrow().len() >= 2 * OUTSTANDING;
        if full {
            return Err(UpstreamError::Busy);
        }
        let now = clock::now();
        let message = message::build(query, Letters::Mixed(&mut self.chance.borrow_mut()), false);
        let serial = self.serial.get();
        self.serial.set(serial + 1);
        let pending = Rc::new(Pending::new(key.clone(), path, message, serial, now, within));
        self.joinable.borrow_mut().insert(key, pending.clone());
        pending.number.set(self.outstanding.borrow_mut().insert(pending.clone()));
        let probes = self.probes(&pending, now);
        if let Some(at) = pending.choose(now) {
            self.attempt(&pending, at, now);
        }
        for at in probes {
            self.dispatch(&pending, at, now);
        }
        Ok(pending)
    }

    /// Servers that are held down and whose time is over, while another one is in use: they get a copy on trial.
    fn probes(&self, pending: &Pending, now: Instant) -> Vec<usize> {
        let servers = &pending.path.servers;
        if pending.is_alone() || servers.iter().all(|server| server.health.is_held()) {
            return Vec::new();
        }
        (0..servers.len()).filter(|at| servers[*at].health.take_probe(now)).collect()
    }

    /// Sends a copy to server `at`, and sees to it again when that one should have answered.
    fn attempt(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, now: Instant) {
        let wait = pending.asked(at);
        self.schedule(pending, now + wait, now);
        self.dispatch(pending, at, now);
    }

    fn dispatch(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, now: Instant) {
        let datagram = pending.path.servers[at].plain().is_some_and(|plain| !plain.only_tcp(now));
        if datagram && !pending.tried(at).over_stream {
            self.send(pending, at, now);
        } else {
            self.ask_over_stream(pending, at, now);
        }
    }

    /// Puts one copy over UDP among what leaves at the end of this turn.
    fn send(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, now: Instant) {
        let server = &pending.path.servers[at];
        let Some(plain) = server.plain() else { return };
        let socket = match plain.socket(self) {
            Ok(socket) => socket,
            Err(error) => return self.failed(pending, at, UpstreamError::Network(error.kind()), now),
        };
        let Some(id) = socket.register(&mut self.chance.borrow_mut(), pending) else {
            return; // no number is free on it, so it is overloaded: the timer tries again with another one
        };
        pending.add_copy(Copy { socket: socket.clone(), id, at, sent: now, told: false });
        let opt = !pending.tried(at).without_opt;
        let mut cookie = Vec::new();
        if opt {
            plain.cookies.option(&self.chance, now, &mut cookie);
        }
        let first = socket.queue(|out, start| {
            out.extend_from_slice(&pending.message);
            message::set_id(&mut out[start..], id);
            if opt {
                message::put_opt(out, start, pending.key.dnssec_ok, &cookie);
            }
        });
        if first {
            self.unsent.borrow_mut().push((server.clone(), socket));
            self.filled.notify_one();
        }
        server.health.asked(now);
        self.count(server, 1, 0);
    }

    /// Asks on a connection: what is too long for a datagram, a server whose datagrams are in doubt, TLS and HTTPS.
    fn ask_over_stream(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, now: Instant) {
        let tried = pending.tried(at);
        if tried.streaming.is_some() {
            return;
        }
        pending.change(at, |tried| (tried.over_stream, tried.streaming, tried.told) = (true, Some(now), false));
        let message = message::for_stream(&pending.message, !tried.without_opt, pending.key.dnssec_ok);
        let server = pending.path.servers[at].clone();
        server.health.asked(now);
        self.count(&server, 1, 0);
        let (shared, pending) = (self.clone(), pending.clone());
        spawn_local(async move {
            let result = match timeout_at(pending.deadline.into(), server.ask(&shared, message)).await {
                Ok(result) => result,
                Err(_) => Err(UpstreamError::Timeout),
            };
            shared.streamed(&pending, at, result);
            shared.settle();
        });
    }

    /// The answer in a datagram is not to be had or not to be believed: TCP.
    fn turn_to_tcp(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, now: Instant) {
        pending.forget_copies(|copy| copy.at == at);
        self.ask_over_stream(pending, at, now);
    }
}

/// Answers.
impl Shared {
    /// A datagram came in on `socket`.
    fn received(self: &Rc<Self>, socket: &Rc<Socket>, datagram: &[u8], now: Instant) {
        let Some(id) = u16_at(datagram, 0) else { return };
        let Some(pending) = socket.waiting(id) else { return };
        let Some((at, sent)) = pending.copy(socket, id) else { return };
        let server = &pending.path.servers[at];
        let Some(plain) = server.plain() else { return };
        match matches(datagram, pending.question()) {
            Match::No => return,
            Match::Case => return self.case_differs(&pending, at, now),
            Match::Exact => {}
        }
        if is_truncated(datagram) {
            self.heard(&pending, at, socket, sent, now);
            return if pending.is_done() { self.let_go(&pending) } else { self.turn_to_tcp(&pending, at, now) };
        }
        let answer = Answer::parse(datagram).ok();
        let found = answer.as_ref().and_then(cookie::find);
        let value = answer.as_ref().zip(found.as_ref()).map(|(answer, place)| cookie::value(answer, place));
        let tried = pending.tried(at);
        match plain.cookies.judge(value) {
            Verdict::Good => {}
            Verdict::Wrong => return,
            // Nobody forges over TCP. If none comes there either, the server has stopped doing cookies.
            Verdict::Missing if !tried.without_opt => {
                plain.cookies.forget();
                return if pending.is_done() { self.let_go(&pending) } else { self.turn_to_tcp(&pending, at, now) };
            }
            Verdict::Missing => {}
        }
        self.heard(&pending, at, socket, sent, now);
        if pending.is_done() {
            return self.let_go(&pending);
        }
        const FORMERR: u16 = 1;
        const BADCOOKIE: u16 = 23;
        let rcode = answer.as_ref().map(Answer::rcode);
        if !tried.without_opt && !pending.key.dnssec_ok && refuses_edns(datagram) {
            // RFC 6891 section 7: a server that knows no EDNS is asked without.
            pending.change(at, |tried| tried.without_opt = true);
            self.ask_anew(&pending, at, now);
        } else if rcode == Some(FORMERR) && plain.cookies.is_on(now) && value.is_none() {
            // It may be the cookie that it dislikes.
            plain.cookies.stop(now);
            self.ask_anew(&pending, at, now);
        } else if rcode == Some(BADCOOKIE) {
            // RFC 7873 section 5.3: again with the cookie that came along, then over TCP.
            pending.change(at, |tried| tried.bad_cookies += 1);
            match tried.bad_cookies {
                0 => self.ask_anew(&pending, at, now),
                _ => self.turn_to_tcp(&pending, at, now),
            }
        } else {
            match answer {
                Some(answer) => self.answered(&pending, at, datagram, &answer, found.is_some(), now),
                None => {
                    // Whoever sent it: on a connection it would be the server. The right datagram may still come.
                    pending.keep(Poor::Malformed, Rc::from(datagram));
                    self.ask_over_stream(&pending, at, now);
                }
            }
        }
    }

    /// What a connection gave.
    fn streamed(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, result: Result<Vec<u8>, UpstreamError>) {
        let now = clock::now();
        let server = &pending.path.servers[at];
        let Some(sent) = pending.tried(at).streaming else { return };
        let told = pending.tried(at).told;
        pending.change(at, |tried| tried.streaming = None);
        let octets = match result {
            Ok(octets) => octets,
            Err(error) => {
                if !told && error != UpstreamError::Busy {
                    server.health.unanswered(sent, now);
                }
                return if pending.is_done() { self.let_go(pending) } else { self.failed(pending, at, error, now) };
            }
        };
        server.health.heard(sent, now);
        self.count(server, 0, 1);
        if pending.is_done() {
            return self.let_go(pending);
        }
        let tried = pending.tried(at);
        if !tried.without_opt && !pending.key.dnssec_ok && refuses_edns(&octets) {
            pending.change(at, |tried| tried.without_opt = true);
            return self.ask_over_stream(pending, at, now);
        }
        match Answer::parse(&octets) {
            Ok(answer) if answer.truncated() => self.failed(pending, at, UpstreamError::Truncated, now),
            Ok(answer) => {
                let cookie = cookie::find(&answer).is_some();
                self.answered(pending, at, &octets, &answer, cookie, now);
            }
            Err(_) => self.answered_badly(pending, at, Poor::Malformed, Rc::from(octets), now),
        }
    }

    /// An answer that is to be believed.
    fn answered(
        self: &Rc<Self>,
        pending: &Rc<Pending>,
        at: usize,
        octets: &[u8],
        answer: &Answer<'_>,
        cookie: bool,
        now: Instant,
    ) {
        let reply: Reply = if cookie { Rc::from(cookie::stripped(answer)) } else { Rc::from(octets) };
        let poor = match answer.rcode() {
            2 => Poor::ServerFailed,
            4 => Poor::NotImplemented,
            5 => Poor::Refused,
            _ => return self.finish(pending, Some(at), Ok(reply), now),
        };
        match pending.is_alone() {
            true => self.finish(pending, Some(at), Ok(reply), now),
            false => self.answered_badly(pending, at, poor, reply, now),
        }
    }

    /// An answer that another server may better.
    fn answered_badly(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, poor: Poor, reply: Reply, now: Instant) {
        pending.keep(poor, reply);
        pending.change(at, |tried| tried.spoilt = true);
        pending.forget_copies(|copy| copy.at == at);
        self.ask_another(pending, now);
    }

    /// A server is out of the game, unless a copy to it may still be answered.
    fn failed(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, error: UpstreamError, now: Instant) {
        pending.set_error(error);
        pending.change(at, |tried| tried.spoilt = true);
        self.ask_another(pending, now);
    }

    /// At once, not when the timer says so.
    fn ask_another(self: &Rc<Self>, pending: &Rc<Pending>, now: Instant) {
        if pending.is_done() {
            return;
        }
        match pending.choose(now).filter(|_| pending.may_ask_again()) {
            Some(at) => self.attempt(pending, at, now),
            None if pending.is_awaited() => {}
            None => self.give_up(pending, now),
        }
    }

    /// Nobody will answer any more, or not in time.
    fn give_up(self: &Rc<Self>, pending: &Rc<Pending>, now: Instant) {
        let error = if pending.is_awaited() { None } else { pending.error() };
        let result = pending.kept().ok_or(error.unwrap_or(UpstreamError::Timeout));
        self.finish(pending, None, result, now);
    }

    /// Asks the same server again at once; the copies so far count no more.
    fn ask_anew(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, now: Instant) {
        pending.forget_copies(|copy| copy.at == at);
        self.send(pending, at, now);
    }

    /// The question came back with other letters: a forgery, or a server that does not keep them. The first time it is
    /// asked again, the second time over TCP, and the server from then on.
    fn case_differs(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, now: Instant) {
        let server = &pending.path.servers[at];
        let Some(plain) = server.plain().filter(|_| !pending.is_done()) else { return };
        pending.change(at, |tried| tried.mismatches = tried.mismatches.saturating_add(1));
        match pending.tried(at).mismatches {
            1 => self.send(pending, at, now),
            2 => {
                plain.ask_only_tcp_until(now + OVER_TCP);
                let server = &server.address;
                tracing::info!(%server, "answers with other letters; asked over TCP for ten minutes");
                self.turn_to_tcp(pending, at, now);
            }
            _ => {}
        }
    }

    /// A datagram was an answer.
    fn heard(&self, pending: &Pending, at: usize, socket: &Socket, sent: Instant, now: Instant) {
        socket.heard(now);
        let server = &pending.path.servers[at];
        server.health.heard(sent, now);
        self.count(server, 0, 1);
        if pending.is_done() {
            pending.forget_copies(|copy| copy.at == at);
        }
    }

    /// The end, for those who wait. Copies to other servers are listened for until the deadline: whether they come says
    /// how those fare.
    fn finish(&self, pending: &Rc<Pending>, by: Option<usize>, result: Result<Reply, UpstreamError>, now: Instant) {
        let Some(waiting) = pending.done(result) else { return };
        self.joinable.borrow_mut().remove(&pending.key);
        waiting.into_iter().for_each(Waker::wake);
        pending.forget_copies(|copy| now >= pending.deadline || by == Some(copy.at));
        if pending.copies() > 0 {
            self.schedule(pending, pending.deadline, now);
        }
        self.let_go(pending);
    }

    /// Forgets it if nothing is listened for any more.
    fn let_go(&self, pending: &Pending) {
        let mut outstanding = self.outstanding.borrow_mut();
        let number = pending.number.get();
        if pending.is_done() && pending.copies() == 0 && is_at(&outstanding, number, pending.serial) {
            outstanding.remove(number);
        }
    }
}

/// Time and the end of a turn.
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

/// FORMERR or NOTIMP without an OPT record (RFC 6891 section 7).
fn refuses_edns(message: &[u8]) -> bool {
    let flags = u16_at(message, 2).unwrap_or(0);
    matches!(flags & 0xf, 1 | 4) && u16_at(message, 10) == Some(0)
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
