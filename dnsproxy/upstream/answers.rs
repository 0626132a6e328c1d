//! The stage "answer" coming down: is it one, is it to be believed, may another server have a better one.

use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::clock;
use crate::engine::answer::{Answer, Match, is_truncated, matches};
use crate::engine::wire::u16_at;

use super::cookie::{self, Verdict};
use super::pending::{Pending, Poor};
use super::socket::Socket;
use super::{Reply, Shared, UpstreamError, is_at};

/// How long a server that does not repeat the case of letters is asked over TCP only.
const OVER_TCP: Duration = Duration::from_secs(600);
/// The codes that mean something here.
mod rcode {
    pub const FORMERR: u16 = 1;
    pub const SERVFAIL: u16 = 2;
    pub const NOTIMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const BADCOOKIE: u16 = 23;
}

impl Shared {
    /// A datagram came in on `socket`.
    pub(super) fn received(self: &Rc<Self>, socket: &Rc<Socket>, datagram: &[u8], now: Instant) {
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
        let said = answer.as_ref().map(Answer::rcode);
        if !tried.without_opt && !pending.key.dnssec_ok && refuses_edns(datagram) {
            // RFC 6891 section 7: a server that knows no EDNS is asked without.
            pending.change(at, |tried| tried.without_opt = true);
            self.ask_anew(&pending, at, now);
        } else if said == Some(rcode::FORMERR) && plain.cookies.is_on(now) && value.is_none() {
            // It may be the cookie that it dislikes.
            plain.cookies.stop(now);
            self.ask_anew(&pending, at, now);
        } else if said == Some(rcode::BADCOOKIE) {
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
    pub(super) fn streamed(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, result: Result<Vec<u8>, UpstreamError>) {
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
    pub(super) fn answered(
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
            rcode::SERVFAIL => Poor::ServerFailed,
            rcode::NOTIMP => Poor::NotImplemented,
            rcode::REFUSED => Poor::Refused,
            _ => return self.finish(pending, Some(at), Ok(reply), now),
        };
        match pending.is_alone() {
            true => self.finish(pending, Some(at), Ok(reply), now),
            false => self.answered_badly(pending, at, poor, reply, now),
        }
    }

    /// An answer that another server may better.
    pub(super) fn answered_badly(
        self: &Rc<Self>,
        pending: &Rc<Pending>,
        at: usize,
        poor: Poor,
        reply: Reply,
        now: Instant,
    ) {
        pending.keep(poor, reply);
        pending.change(at, |tried| tried.spoilt = true);
        pending.forget_copies(|copy| copy.at == at);
        self.ask_another(pending, now);
    }

    /// A server is out of the game, unless a copy to it may still be answered.
    pub(super) fn failed(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, error: UpstreamError, now: Instant) {
        pending.set_error(error);
        pending.change(at, |tried| tried.spoilt = true);
        self.ask_another(pending, now);
    }

    /// At once, not when the timer says so.
    pub(super) fn ask_another(self: &Rc<Self>, pending: &Rc<Pending>, now: Instant) {
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
    pub(super) fn give_up(self: &Rc<Self>, pending: &Rc<Pending>, now: Instant) {
        let error = if pending.is_awaited() { None } else { pending.error() };
        let result = pending.kept().ok_or(error.unwrap_or(UpstreamError::Timeout));
        self.finish(pending, None, result, now);
    }

    /// Asks the same server again at once; the copies so far count no more.
    pub(super) fn ask_anew(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, now: Instant) {
        pending.forget_copies(|copy| copy.at == at);
        self.send(pending, at, now);
    }

    /// The question came back with other letters: a forgery, or a server that does not keep them. The first time it is
    /// asked again, the second time over TCP, and the server from then on.
    pub(super) fn case_differs(self: &Rc<Self>, pending: &Rc<Pending>, at: usize, now: Instant) {
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
    pub(super) fn heard(&self, pending: &Pending, at: usize, socket: &Socket, sent: Instant, now: Instant) {
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
    pub(super) fn finish(
        &self,
        pending: &Rc<Pending>,
        by: Option<usize>,
        result: Result<Reply, UpstreamError>,
        now: Instant,
    ) {
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
    pub(super) fn let_go(&self, pending: &Pending) {
        let mut outstanding = self.outstanding.borrow_mut();
        let number = pending.number.get();
        if pending.is_done() && pending.copies() == 0 && is_at(&outstanding, number, pending.serial) {
            outstanding.remove(number);
        }
    }
}

/// FORMERR or NOTIMP without an OPT record (RFC 6891 section 7).
fn refuses_edns(message: &[u8]) -> bool {
    let flags = u16_at(message, 2).unwrap_or(0);
    matches!(flags & 0xf, rcode::FORMERR | rcode::NOTIMP) && u16_at(message, 10) == Some(0)
}
