//! One question that is under way: who has been asked, what came back, who waits.

use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::engine::name::Name;
use crate::engine::wire::HEADER;

use super::server::Path;
use super::socket::Socket;
use super::{Reply, UpstreamError};

/// Copies of a question to the only server there is.
const COPIES: u32 = 3;
/// Copies of a question at most, however many servers there are.
const MOST_COPIES: u32 = 8;

/// What makes two queries the same: one goes up, all who asked wait for it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The number of the path.
    pub path: u32,
    pub name: Name,
    pub qtype: u16,
    pub qclass: u16,
    pub flags: u16,
    pub dnssec_ok: bool,
}

/// A question that waits for its answer.
pub(super) struct Pending {
    pub key: Key,
    pub path: Rc<Path>,
    /// Header and question as they go over UDP, without ID and OPT.
    pub message: Vec<u8>,
    pub deadline: Instant,
    /// Its place among the outstanding ones.
    pub number: Cell<usize>,
    pub serial: u64,
    /// The timer that counts; earlier ones are stale.
    pub due: Cell<Instant>,
    within: Duration,
    attempts: Cell<u32>,
    tried: RefCell<Vec<Tried>>,
    copies: RefCell<Vec<Copy>>,
    poor: RefCell<Option<(Poor, Reply)>>,
    error: Cell<Option<UpstreamError>>,
    state: RefCell<State>,
}

/// How far one server has got with a question.
#[derive(Clone, Copy, Default)]
pub(super) struct Tried {
    /// Copies sent to it, probes left out.
    pub asked: u32,
    /// It has answered badly or failed: no further copy.
    pub spoilt: bool,
    /// It is asked over a connection, or was.
    pub over_stream: bool,
    /// When it was asked on a connection that has not answered yet.
    pub streaming: Option<Instant>,
    /// It refused EDNS.
    pub without_opt: bool,
    /// Answers with other letters.
    pub mismatches: u8,
    /// Answers of BADCOOKIE.
    pub bad_cookies: u8,
    /// Its silence on the connection is counted.
    pub told: bool,
}

/// A copy over UDP that may still be answered.
pub(super) struct Copy {
    pub socket: Rc<Socket>,
    pub id: u16,
    /// Which server of the path.
    pub at: usize,
    pub sent: Instant,
    /// Its silence is counted.
    pub told: bool,
}

/// Answers that are given back only when none is better, the best last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Poor {
    /// It can't be read.
    Malformed,
    Refused,
    NotImplemented,
    ServerFailed,
}

enum State {
    Waiting(Vec<Waker>),
    Done(Result<Reply, UpstreamError>),
}

impl Pending {
    pub fn new(key: Key, path: Rc<Path>, message: Vec<u8>, serial: u64, now: Instant, within: Duration) -> Pending {
        let tried = vec![Tried::default(); path.servers.len()];
        Pending {
            key,
            path,
            message,
            deadline: now + within,
            number: Cell::new(0),
            serial,
            due: Cell::new(now),
            within,
            attempts: Cell::new(0),
            tried: RefCell::new(tried),
            copies: RefCell::default(),
            poor: RefCell::default(),
            error: Cell::default(),
            state: RefCell::new(State::Waiting(Vec::new())),
        }
    }

    pub fn poll(&self, context: &mut Context<'_>) -> Poll<Result<Reply, UpstreamError>> {
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

    pub fn is_done(&self) -> bool {
        matches!(*self.state.borrow(), State::Done(_))
    }

    /// Ends it; gives whom to wake. `None`: it has ended before.
    pub fn done(&self, result: Result<Reply, UpstreamError>) -> Option<Vec<Waker>> {
        let before = self.state.replace(State::Done(result));
        match before {
            State::Waiting(waiting) => Some(waiting),
            State::Done(_) => {
                self.state.replace(before);
                None
            }
        }
    }

    /// The question of the copies over UDP: name with its letters, type, class.
    pub fn question(&self) -> &[u8] {
        &self.message[HEADER..]
    }

    /// Whom to ask next; none while every server has failed, or is asked on a connection.
    ///
    /// The one with the fewest copies, so that the second goes to another server; one that is held down comes as late as
    /// if it had two already. Among equals the one that answers soonest.
    pub fn choose(&self, now: Instant) -> Option<usize> {
        let tried = self.tried.borrow();
        let free = |tried: &Tried| !tried.spoilt && tried.streaming.is_none();
        if let [only] = &tried[..] {
            return free(only).then_some(0);
        }
        let rank = |at: usize| {
            let health = &self.path.servers[at].health;
            (tried[at].asked + if health.is_held() { 2 } else { 0 }, health.cost(now))
        };
        let candidates = (0..tried.len()).filter(|at| free(&tried[*at])).map(|at| (rank(at), at));
        let best =
            candidates.min_by(|((one, cheap), _), ((other, cost), _)| one.cmp(other).then(cheap.total_cmp(cost)));
        best.map(|(_, at)| at)
    }

    /// Counts a copy to server `at`; how long to wait before the next.
    pub fn asked(&self, at: usize) -> Duration {
        self.attempts.set(self.attempts.get() + 1);
        let before = self.tried(at).asked;
        self.change(at, |tried| tried.asked += 1);
        let most = self.within / 4;
        match self.is_alone() {
            true => most,
            false => (self.path.servers[at].health.wait() * (1 << before.min(4))).min(most),
        }
    }

    /// Whether another copy may be sent.
    pub fn may_ask_again(&self) -> bool {
        let servers = self.path.servers.len() as u32;
        self.attempts.get() < if servers == 1 { COPIES } else { (servers + 2).min(MOST_COPIES) }
    }

    /// Whether there is only one server.
    pub fn is_alone(&self) -> bool {
        self.path.servers.len() == 1
    }

    pub fn tried(&self, at: usize) -> Tried {
        self.tried.borrow()[at]
    }

    pub fn change(&self, at: usize, change: impl FnOnce(&mut Tried)) {
        change(&mut self.tried.borrow_mut()[at]);
    }

    /// Whether an answer may still come.
    pub fn is_awaited(&self) -> bool {
        !self.copies.borrow().is_empty() || self.tried.borrow().iter().any(|tried| tried.streaming.is_some())
    }

    pub fn add_copy(&self, copy: Copy) {
        self.copies.borrow_mut().push(copy);
    }

    /// The copy with this number on this socket: to which server, when, and whether its silence is counted.
    pub fn copy(&self, socket: &Rc<Socket>, id: u16) -> Option<(usize, Instant)> {
        let copies = self.copies.borrow();
        let copy = copies.iter().find(|copy| copy.id == id && Rc::ptr_eq(&copy.socket, socket))?;
        Some((copy.at, copy.sent))
    }

    /// Leaves the sockets on which copies were lost, unless they are heard of otherwise, and says of each server once
    /// that it is silent.
    pub fn unanswered(&self, now: Instant) {
        let late = |at: usize, sent: Instant| {
            let wait = self.path.servers[at].health.wait().min(self.within / 4);
            now.saturating_duration_since(sent) >= wait
        };
        for copy in self.copies.borrow_mut().iter_mut().filter(|copy| !copy.told && late(copy.at, copy.sent)) {
            copy.told = true;
            copy.socket.suspect(now);
            self.path.servers[copy.at].health.unanswered(copy.sent, now);
        }
        for (at, tried) in self.tried.borrow_mut().iter_mut().enumerate() {
            if let Some(sent) = tried.streaming.filter(|sent| !tried.told && late(at, *sent)) {
                tried.told = true;
                self.path.servers[at].health.unanswered(sent, now);
            }
        }
    }

    /// Waits no longer for copies for which `which` holds.
    pub fn forget_copies(&self, which: impl Fn(&Copy) -> bool) {
        let (gone, kept) = self.copies.take().into_iter().partition(|copy| which(copy));
        self.copies.replace(kept);
        let gone: Vec<Copy> = gone;
        for copy in gone {
            copy.socket.forget(copy.id);
        }
    }

    /// How many copies may still be answered.
    pub fn copies(&self) -> usize {
        self.copies.borrow().len()
    }

    /// Keeps an answer for want of a better one.
    pub fn keep(&self, poor: Poor, reply: Reply) {
        let mut kept = self.poor.borrow_mut();
        if kept.as_ref().is_none_or(|(best, _)| *best < poor) {
            *kept = Some((poor, reply));
        }
    }

    /// The best of the bad answers.
    pub fn kept(&self) -> Option<Reply> {
        let kept: Ref<'_, _> = self.poor.borrow();
        kept.as_ref().map(|(_, reply)| reply.clone())
    }

    /// Why a server failed; the last one counts.
    pub fn set_error(&self, error: UpstreamError) {
        self.error.set(Some(error));
    }

    pub fn error(&self) -> Option<UpstreamError> {
        self.error.get()
    }
}
