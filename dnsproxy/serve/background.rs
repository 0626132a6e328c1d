//! Questions that nobody waits for: names in use are asked for again before their answers expire (prefetch), names that
//! policies spell out are asked for without being asked (poller). Their addresses are granted before a client asks.
//!
//! Both are bounded in number and rate, and both stop by themselves while servers don't answer.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::engine::answer::Answer;
use crate::engine::endpoint::EndpointId;
use crate::engine::grant::MonoNs;
use crate::engine::lifetime::lifetime;
use crate::engine::name::Name;
use crate::engine::query::Query;
use crate::engine::ruleset::Protocol;
use crate::engine::wire::{self, rtype};
use crate::observe::Outcome;
use crate::upstream::Resolve;
use crate::upstream::route::Route;

use super::cache::{Cache, Found, Kept, Key, Life, User};
use super::directory::{Directory, Taken};
use super::hot::Hot;
use super::rate::Rate;
use super::record::Record;
use super::{Ask, Packet, Proxy, verdict};

/// How often a worker looks at what is due.
pub const TICK: Duration = Duration::from_millis(100);
/// Answers of one worker that wait to be refreshed.
const LISTED: usize = 16_384;
/// Pairs of endpoint and name that are polled.
pub const POLLED: usize = 10_000;
/// Answers that live shorter are not refreshed: hardly earlier than they are asked for again anyway.
const SHORTEST: u32 = 2;
/// Background questions under way at a time.
const AT_ONCE: u32 = 16;
/// How soon a polled name without addresses is asked for again when its answer does not say.
const NONE_FOUND: u32 = 60;
/// Failures in a row after which all background questions pause.
const FAILURES: u32 = 8;
/// How long they pause first; twice as long each further time.
const PAUSE: Duration = Duration::from_secs(10);
/// How long they pause at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How soon a polled name is asked for again, whatever its TTL, and after a first failure.
const SOONEST: Duration = Duration::from_secs(5);
/// How long a name that fails again and again is left alone at most.
const LATEST: Duration = Duration::from_secs(600);

/// What one worker remembers between queries.
#[derive(Default)]
pub struct Memory {
    pub(super) hot: Hot,
    pub(super) refreshes: Refreshes,
    polls: Polls,
}

/// Answers that are to be refreshed, by when.
#[derive(Default)]
pub(super) struct Refreshes {
    due: BTreeMap<(MonoNs, u64), (Key, Weak<Kept>)>,
    counter: u64,
}

/// What all workers' background questions have in common.
#[derive(Default)]
pub struct Background {
    rate: Rate,
    under_way: Arc<AtomicU32>,
    failures: AtomicU32,
    pauses: AtomicU32,
    paused_until: AtomicU64,
    prefetch: Tally,
    poller: Tally,
}

#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    failed: AtomicU64,
    held_back: AtomicU64,
}

/// What a background question is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Purpose {
    /// A name in use is about to expire.
    Prefetch,
    /// A policy spells the name out.
    Poller,
}

impl Purpose {
    /// Every purpose.
    pub const ALL: [Purpose; 2] = [Purpose::Prefetch, Purpose::Poller];

    /// The word for metrics.
    pub fn text(self) -> &'static str {
        match self {
            Purpose::Prefetch => "prefetch",
            Purpose::Poller => "poller",
        }
    }
}

/// How many background questions there were.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackgroundFigures {
    /// Those that were answered.
    pub answered: u64,
    /// Those that were not.
    pub failed: u64,
    /// Those that were due and not asked: servers don't answer, or there were too many.
    pub held_back: u64,
}

/// One question that is due.
pub struct Due {
    purpose: Purpose,
    key: Key,
    /// Who is granted what it finds.
    users: Vec<User>,
    /// Counted as under way until it is dropped.
    _slot: Taken,
}

/// What came of a question.
pub struct Done {
    users: Vec<User>,
    name: Name,
    qtype: u16,
    /// How long the answer lives, seconds; `None`: there was none.
    lifetime: Option<u32>,
}

/// The poller's list: who wants which name, and when it is asked for next.
#[derive(Default)]
struct Polls {
    directory: Option<Arc<Directory>>,
    wanted: BTreeMap<(EndpointId, Name, u16), Poll>,
}

#[derive(Clone, Debug)]
struct Poll {
    local: IpAddr,
    route: Route,
    at: MonoNs,
    failures: u32,
}

impl Memory {
    /// Nothing yet.
    pub fn new() -> Memory {
        Memory::default()
    }

    /// Takes note of what came of a question.
    pub fn learn(&mut self, done: &Done, now: MonoNs) {
        let Some(lifetime) = done.lifetime else { return };
        let pause = most_of(lifetime).max(SOONEST);
        for user in &done.users {
            let key = (user.endpoint, done.name.clone(), done.qtype);
            if let Some(poll) = self.polls.wanted.get_mut(&key) {
                (poll.failures, poll.at) = (0, now.after(pause));
            }
        }
    }
}

impl Refreshes {
    /// Remembers to refresh an answer that has been of use a second time, once a tenth of its life is left.
    pub(super) fn list(&mut self, key: &Key, kept: &Arc<Kept>) {
        if kept.life().lifetime < SHORTEST || self.due.len() >= LISTED || kept.listed.swap(true, Ordering::Relaxed) {
            return;
        }
        self.counter += 1;
        self.due.insert((refresh_at(kept.life()), self.counter), (key.clone(), Arc::downgrade(kept)));
    }
}

/// When a tenth of its life is left, at least a second.
fn refresh_at(life: Life) -> MonoNs {
    life.stored.after(most_of(life.lifetime))
}

/// Nine tenths of a lifetime, at least a second less than all of it.
fn most_of(lifetime: u32) -> Duration {
    Duration::from_secs(lifetime.saturating_sub((lifetime / 10).max(1)).into())
}

impl Background {
    /// How many questions there were for a purpose.
    pub fn figures(&self, purpose: Purpose) -> BackgroundFigures {
        let tally = self.tally(purpose);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BackgroundFigures {
            answered: read(&tally.answered),
            failed: read(&tally.failed),
            held_back: read(&tally.held_back),
        }
    }

    fn tally(&self, purpose: Purpose) -> &Tally {
        match purpose {
            Purpose::Prefetch => &self.prefetch,
            Purpose::Poller => &self.poller,
        }
    }

    /// Whether servers have lately left too many questions unanswered.
    fn pauses(&self, now: MonoNs) -> bool {
        now.0 < self.paused_until.load(Ordering::Relaxed)
    }

    /// Takes one of the questions that may be under way, unless that is too many, too soon, or servers don't answer.
    fn may_ask(&self, purpose: Purpose, per_second: u32, now: MonoNs) -> Option<Taken> {
        let slot =
            Taken::take(&self.under_way, AT_ONCE).filter(|_| !self.pauses(now) && self.rate.take(per_second, now));
        if slot.is_none() {
            self.tally(purpose).held_back.fetch_add(1, Ordering::Relaxed);
        }
        slot
    }

    fn ended(&self, purpose: Purpose, answered: bool, now: MonoNs) {
        let tally = self.tally(purpose);
        if answered {
            tally.answered.fetch_add(1, Ordering::Relaxed);
            self.failures.store(0, Ordering::Relaxed);
            self.pauses.store(0, Ordering::Relaxed);
            return;
        }
        tally.failed.fetch_add(1, Ordering::Relaxed);
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 < FAILURES {
            return;
        }
        self.failures.store(0, Ordering::Relaxed);
        let pauses = self.pauses.fetch_add(1, Ordering::Relaxed);
        let pause = PAUSE.saturating_mul(1 << pauses.min(16)).min(LONGEST_PAUSE);
        self.paused_until.store(now.after(pause).0, Ordering::Relaxed);
        tracing::warn!(?pause, "servers don't answer; prefetch and poller pause");
    }
}

impl Proxy {
    /// What this worker should ask now. `polls`: it is the one that does the poller's work.
    pub fn due(&self, memory: &mut Memory, polls: bool) -> Vec<Due> {
        let Some(cache) = self.cache.as_ref() else {
            return if polls { self.polls_due(memory, None) } else { Vec::new() };
        };
        let (now, directory) = ((self.now)(), self.directory.load());
        let mut found = Vec::new();
        while let Some(first) = memory.refreshes.due.first_entry().filter(|first| first.key().0 <= now) {
            let (key, kept) = first.remove();
            // What has expired meanwhile, or had to go, is asked for when it is needed.
            let kept = kept.upgrade().filter(|kept| now < kept.life().ends() && directory.settings.prefetch);
            let Some(kept) = kept else { continue };
            let rate = directory.settings.background_queries_per_second;
            if let Some(slot) = self.background.may_ask(Purpose::Prefetch, rate, now) {
                found.push(Due { purpose: Purpose::Prefetch, key, users: kept.users(), _slot: slot });
            }
        }
        if polls {
            found.extend(self.polls_due(memory, Some(cache)));
        }
        found
    }

    /// Asks one background question and grants what it finds. To be told to [`Memory::learn`].
    pub async fn ask_unasked(&self, due: Due, upstream: &impl Resolve) -> Done {
        let Due { purpose, key, users, _slot } = due;
        let within = self.directory.load().settings.upstream_timeout;
        let query = key.query();
        let resolved = upstream.resolve(&key.route, &query, within).await;
        let now = (self.now)();
        let octets = resolved.as_ref().map_or(&[][..], AsRef::as_ref);
        let answer = Answer::parse(octets).ok().filter(|answer| matches!(answer.rcode(), 0 | 3));
        self.background.ended(purpose, answer.is_some(), now);
        let mut done = Done { users, name: key.name.clone(), qtype: key.qtype, lifetime: None };
        let Some(answer) = answer else { return done };
        let directory = self.directory.load();
        let unsaid = if answer.addresses().next().is_some() { 0 } else { NONE_FOUND };
        done.lifetime = Some(lifetime(&answer, &query, &directory.settings.ceilings).unwrap_or(unsaid));
        for user in &done.users {
            self.grant_unasked(*user, &key, &query, &answer, &directory);
        }
        if let Some(cache) = &self.cache {
            cache.store(key, octets, &directory.settings.ceilings, now);
        }
        done
    }

    /// Lets an endpoint reach what an answer holds, as if it had asked; the reply goes nowhere.
    fn grant_unasked(&self, user: User, key: &Key, query: &Query<'static>, answer: &Answer<'_>, directory: &Directory) {
        let Some(served) = directory.numbered(user.endpoint) else { return };
        let Some(resolver) = directory.resolver(user.local) else { return };
        if *directory.route(&key.name, resolver).0 != key.route {
            return; // the configuration has changed
        }
        let rules = served.rules.load_full();
        if verdict(&rules, resolver, false, query).is_err() {
            return;
        }
        let client = (served.addresses.first().copied().unwrap_or(user.local), 0).into();
        let packet = Packet { bytes: &[], client, local: user.local, interface: served.interface, tcp: true };
        let mut ask = Ask {
            query: query.clone(),
            served: served.clone(),
            rules,
            resolver: resolver.clone(),
            local: user.local,
            // A reply that goes nowhere has no limit.
            tcp: true,
            record: Record::new(&packet),
            slot: None,
            stale: None,
        };
        let ending = self.answered(&mut ask, answer, directory);
        if ending.outcome != Outcome::Forwarded {
            tracing::debug!(endpoint = %served.id, reason = ending.reason, "nothing was granted for a background question");
        }
    }

    /// What the poller should ask now.
    fn polls_due(&self, memory: &mut Memory, cache: Option<&Arc<Cache>>) -> Vec<Due> {
        let (now, directory) = ((self.now)(), self.directory.load());
        if !directory.settings.poller {
            memory.polls = Polls::default();
            return Vec::new();
        }
        memory.polls.follow(&directory, now);
        let mut found: Vec<Due> = Vec::new();
        let rate = directory.settings.background_queries_per_second;
        for ((endpoint, name, qtype), poll) in &mut memory.polls.wanted {
            if now < poll.at {
                continue;
            }
            let query = Query::again(name.clone(), *qtype, wire::RD, false);
            let key = Key::new(&poll.route, &query);
            let user = User { endpoint: *endpoint, local: poll.local };
            if let Some(due) = found.iter_mut().find(|due| due.key == key) {
                due.users.push(user);
            } else if let Some(kept) = cache.and_then(|cache| lasting(cache, &key, now)) {
                let octets = kept.aged(now);
                if let Ok(answer) = Answer::parse(&octets) {
                    self.grant_unasked(user, &key, &query, &answer, &directory);
                }
                (poll.failures, poll.at) = (0, refresh_at(kept.life()).max(now.after(SOONEST)));
                continue;
            } else if let Some(slot) = self.background.may_ask(Purpose::Poller, rate, now) {
                found.push(Due { purpose: Purpose::Poller, key, users: vec![user], _slot: slot });
            } else {
                break; // it stays due, and so does what comes behind it
            }
            // Until it is answered it counts as a failure.
            poll.failures += 1;
            poll.at = now.after(backoff(poll.failures, endpoint.0, name));
        }
        found
    }
}

/// An answer that is not about to be refreshed.
fn lasting(cache: &Cache, key: &Key, now: MonoNs) -> Option<Arc<Kept>> {
    match cache.get(key, now, Duration::ZERO) {
        Found::Fresh(kept) if now < refresh_at(kept.life()) => Some(kept),
        _ => None,
    }
}

/// Twice as long each time, up to ten minutes; a tenth of it depends on who asks for what, so that they spread.
fn backoff(failures: u32, endpoint: u32, name: &Name) -> Duration {
    let pause = SOONEST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LATEST);
    let mut hasher = DefaultHasher::new();
    (endpoint, name).hash(&mut hasher);
    pause + pause.mul_f64((hasher.finish() % 100) as f64 / 1_000.0)
}

impl Polls {
    /// Takes over what policies spell out, if they have changed. What was there stays due when it was.
    fn follow(&mut self, directory: &Arc<Directory>, now: MonoNs) {
        if self.directory.as_ref().is_some_and(|known| Arc::ptr_eq(known, directory)) {
            return;
        }
        self.directory = Some(directory.clone());
        let mut before = std::mem::take(&mut self.wanted);
        let mut left_out = 0usize;
        for served in directory.endpoints() {
            let rules = served.rules.load_full();
            let names: BTreeSet<Name> = rules.names.iter().filter_map(|found| found.pattern.exact()).collect();
            for name in names {
                let trusted = |(_, resolver): &(IpAddr, &super::Resolver)| {
                    let server = resolver.address;
                    let known =
                        directory.route(&name, resolver).1 || rules.trusts(server.ip(), Protocol::Udp, server.port());
                    let query = Query::again(name.clone(), rtype::A, wire::RD, false);
                    known && verdict(&rules, resolver, false, &query).is_ok()
                };
                let Some((local, resolver)) = directory.resolvers().find(trusted) else { continue };
                for qtype in [rtype::A, rtype::AAAA] {
                    if self.wanted.len() >= POLLED {
                        left_out += 1;
                        continue;
                    }
                    let key = (served.id, name.clone(), qtype);
                    let route = directory.route(&name, resolver).0.clone();
                    let poll = match before.remove(&key) {
                        Some(poll) => Poll { local, route, ..poll },
                        None => Poll { local, route, at: now, failures: 0 },
                    };
                    self.wanted.insert(key, poll);
                }
            }
        }
        if left_out > 0 {
            tracing::warn!(left_out, limit = POLLED, "too many names to poll; the rest is asked for by workloads only");
        }
    }
}
