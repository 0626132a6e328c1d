//! The stage "query" going up: who is asked, over what, and when another one is.

use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::spawn_local;
use tokio::time::timeout_at;

use crate::clock;
use crate::engine::query::Query;

use super::message::{self, Letters};
use super::pending::{Copy, Key, Pending};
use super::route::Route;
use super::{OUTSTANDING, Shared, UpstreamError};

impl Shared {
    /// Joins the same query if it is outstanding, or asks.
    pub(super) fn ask(
        self: &Rc<Self>,
        route: &Route,
        query: &Query<'_>,
        within: Duration,
    ) -> Result<Rc<Pending>, UpstreamError> {
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
    pub(super) fn probes(&self, pending: &Pending, now: Instant) -> Vec<usize> {
        let servers = &pending.path.servers;
        if pending.is_alone() || servers.iter().all(|server| server.health.is_held()) {
            return Vec::new();
        }
        (0..servers.len()).filter(|at| servers[*at].health.take_probe(now)).collect()
    }

    /// Sends a copy to server `at`, and sees to it again when that one should have answered.
    pub(super) fn attempt(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, now: Instant) {
        let wait = pending.asked(at);
        self.schedule(pending, now + wait, now);
        self.dispatch(pending, at, now);
    }

    pub(super) fn dispatch(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, now: Instant) {
        let datagram = pending.path.servers[at].plain().is_some_and(|plain| !plain.only_tcp(now));
        if datagram && !pending.tried(at).over_stream {
            self.send(pending, at, now);
        } else {
            self.ask_over_stream(pending, at, now);
        }
    }

    /// Puts one copy over UDP among what leaves at the end of this turn.
    pub(super) fn send(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, now: Instant) {
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
        let cookie = plain.cookies.option(&self.chance, now);
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
    pub(super) fn ask_over_stream(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, now: Instant) {
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
    pub(super) fn turn_to_tcp(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, now: Instant) {
        pending.forget_copies(|copy| copy.at == at);
        self.ask_over_stream(pending, at, now);
    }
}
