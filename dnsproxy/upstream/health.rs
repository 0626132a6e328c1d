//! How each DNS server fares, shared by all workers and kept over reloads.
//!
//! A server that left [`UNANSWERED`] queries in a row without an answer is held down: nobody waits for it while another
//! one answers. When its time is over, one query is sent to it beside the good server; an answer brings it back, silence
//! doubles the time. Where all are held down they are asked all the same: holding down chooses, it never refuses.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock;

use super::address::{ServerAddress, Transport};
use super::doors::Doors;
use super::trust::{Trust, TrustError};

/// Unanswered queries in a row after which a server is held down.
pub const UNANSWERED: u32 = 3;
/// How long a server is held down at first; doubled at each further silence.
pub const HOLD: Duration = Duration::from_secs(1);
/// How long a server is held down at most.
pub const LONGEST_HOLD: Duration = Duration::from_secs(60);
/// What a server is reckoned with that has never answered, as in unbound.
const UNKNOWN_US: u32 = 376_000;
/// A round-trip time is never taken to be longer.
const LONGEST_US: u32 = 10_000_000;
/// The least wait before another server is asked: a resolver that has to ask others takes longer than one that knows.
const LEAST_WAIT: Duration = Duration::from_millis(200);
/// In this time without a query a server's round-trip time counts for half, so that a slow one is tried again.
const HALF_LIFE: Duration = Duration::from_secs(8);
/// Between two lines about the same server in the log.
const LOG: Duration = Duration::from_secs(60);
/// Servers that are known at a time before those that nobody asks any more are forgotten.
const KNOWN: usize = 256;

/// Every server that is or was asked. One for the process.
pub struct Registry {
    trust: Trust,
    servers: Mutex<Vec<(ServerAddress, Arc<Health>)>>,
    doors: OnceLock<Arc<Doors>>,
}

/// How a server fares, for people and metrics. Counts are since the server was first asked.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerHealth {
    /// As in the configuration: `203.0.113.1:53`, `tls://203.0.113.1:853#dns.example`.
    pub server: String,
    /// `plain`, `tls` or `https`.
    pub transport: String,
    /// The smoothed round-trip time, microseconds; none before the first answer.
    pub srtt_us: Option<u64>,
    /// Queries sent, copies included.
    pub queries: u64,
    /// Answers that matched their query.
    pub answers: u64,
    /// Copies that had no answer in time, or could not be sent.
    pub timeouts: u64,
    /// Timeouts since the last answer.
    pub unanswered: u32,
    /// Milliseconds until the next probe while it is held down; none while it is in use.
    pub held_ms: Option<u64>,
}

/// How one server fares.
pub struct Health {
    started: Instant,
    /// 0: not known.
    srtt_us: AtomicU32,
    deviation_us: AtomicU32,
    /// When it was last asked; milliseconds from `started`, 0: never.
    asked_ms: AtomicU64,
    /// When an answer last came; as above.
    heard_ms: AtomicU64,
    unanswered: AtomicU32,
    /// 0: in use. Else how often it was held down in a row.
    level: AtomicU32,
    held_until_ms: AtomicU64,
    logged_ms: AtomicU64,
    queries: AtomicU64,
    answers: AtomicU64,
    timeouts: AtomicU64,
}

impl Registry {
    /// Without servers. `ca` is a PEM file with the authorities that certificates of servers are checked against;
    /// Mozilla's list unless given.
    ///
    /// # Errors
    /// The file can't be read or holds no certificate.
    pub fn open(ca: Option<&Path>) -> Result<Registry, TrustError> {
        Ok(Registry { trust: Trust::load(ca)?, servers: Mutex::default(), doors: OnceLock::new() })
    }

    /// By which ports whoever asks is to leave, from before the first question on. Said once.
    pub fn leave_by(&self, doors: Doors) {
        let _ = self.doors.set(Arc::new(doors));
    }

    /// See [`Registry::leave_by`].
    pub(super) fn doors(&self) -> Option<Arc<Doors>> {
        self.doors.get().cloned()
    }

    /// Whom to trust over TLS.
    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The health of a server, the same for all who ask.
    pub(super) fn health(&self, address: &ServerAddress) -> Arc<Health> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, health)) = servers.iter().find(|(known, _)| known == address) {
            return health.clone();
        }
        if servers.len() >= KNOWN {
            servers.retain(|(_, health)| Arc::strong_count(health) > 1);
        }
        let health = Arc::new(Health::new(clock::now()));
        servers.push((address.clone(), health.clone()));
        health
    }

    /// How every server fares now, in the order of their addresses.
    pub fn snapshot(&self) -> Vec<ServerHealth> {
        let now = clock::now();
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        servers.sort_by(|(one, _), (other, _)| one.cmp(other));
        servers.iter().map(|(address, health)| health.tell(address, now)).collect()
    }
}

impl Default for Registry {
    /// Trusts Mozilla's list.
    fn default() -> Registry {
        Registry { trust: Trust::default(), servers: Mutex::default(), doors: OnceLock::new() }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registry").field(&self.snapshot()).finish()
    }
}

impl Health {
    fn new(now: Instant) -> Health {
        Health {
            started: now,
            srtt_us: AtomicU32::new(0),
            deviation_us: AtomicU32::new(0),
            asked_ms: AtomicU64::new(0),
            heard_ms: AtomicU64::new(0),
            unanswered: AtomicU32::new(0),
            level: AtomicU32::new(0),
            held_until_ms: AtomicU64::new(0),
            logged_ms: AtomicU64::new(0),
            queries: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
        }
    }

    /// Counts what a worker has done since it last told. Apart from the rest, so that the counters cost one write a
    /// batch.
    pub(super) fn count(&self, queries: u64, answers: u64) {
        if queries > 0 {
            self.queries.fetch_add(queries, Relaxed);
        }
        if answers > 0 {
            self.answers.fetch_add(answers, Relaxed);
        }
    }

    /// A query goes out to it.
    pub(super) fn asked(&self, now: Instant) {
        let now = self.ms(now);
        // Once a millisecond is enough, and the line of memory stays with all workers.
        if self.asked_ms.load(Relaxed) != now {
            self.asked_ms.store(now, Relaxed);
        }
    }

    /// An answer came to a query that was sent at `sent`.
    pub(super) fn heard(&self, sent: Instant, now: Instant) {
        let at = self.ms(now);
        if self.unanswered.load(Relaxed) != 0 {
            self.unanswered.store(0, Relaxed);
        }
        if self.level.load(Relaxed) != 0 {
            self.level.store(0, Relaxed);
        }
        if self.heard_ms.swap_if_new(at) {
            let took = now.saturating_duration_since(sent).as_micros();
            self.sample(u32::try_from(took).unwrap_or(u32::MAX).clamp(1, LONGEST_US));
        }
    }

    /// A query that was sent at `sent` has no answer yet, longer than it is waited for; or it could not be sent.
    pub(super) fn unanswered(&self, sent: Instant, now: Instant) {
        self.timeouts.fetch_add(1, Relaxed);
        if self.heard_ms.load(Relaxed) > self.ms(sent) {
            return; // it lives: one datagram was lost, or that name takes long
        }
        let srtt = self.srtt_us.load(Relaxed);
        if srtt != 0 {
            let waited = u32::try_from(now.saturating_duration_since(sent).as_micros()).unwrap_or(u32::MAX);
            self.srtt_us.store(srtt.saturating_mul(2).min(waited.max(srtt)).min(LONGEST_US), Relaxed);
        }
        let in_row = self.unanswered.fetch_add(1, Relaxed) + 1;
        if in_row >= UNANSWERED && self.level.load(Relaxed) == 0 {
            self.hold(0, now);
        }
    }

    /// Whether nobody should wait for it.
    pub(super) fn is_held(&self) -> bool {
        self.level.load(Relaxed) > 0
    }

    /// Whether it is time to send one query to a server that is held down. Who is told so sends it: nobody else is,
    /// until the next time.
    pub(super) fn take_probe(&self, now: Instant) -> bool {
        let level = self.level.load(Relaxed);
        level > 0 && self.ms(now) >= self.held_until_ms.load(Relaxed) && self.hold(level, now)
    }

    /// Holds it down for the next time, if it is still at `level`.
    fn hold(&self, level: u32, now: Instant) -> bool {
        let time = HOLD.saturating_mul(1 << level.min(10)).min(LONGEST_HOLD);
        let until = self.ms(now + time);
        if self.level.compare_exchange(level, level + 1, Relaxed, Relaxed).is_err() {
            return false;
        }
        self.held_until_ms.store(until, Relaxed);
        true
    }

    /// How attractive it is, microseconds: the smoothed round-trip time, less and less the longer it was not asked.
    /// 0 for one that was never asked.
    pub(super) fn cost(&self, now: Instant) -> f32 {
        let asked = self.asked_ms.load(Relaxed);
        if asked == 0 {
            return 0.0;
        }
        let idle = self.ms(now).saturating_sub(asked) as f32 / HALF_LIFE.as_millis() as f32;
        self.known_us() as f32 * (-idle).exp2()
    }

    /// How long to wait for it before another one is asked (RFC 6298, as far as it fits).
    pub(super) fn wait(&self) -> Duration {
        let wait = self.known_us().saturating_add(self.deviation_us.load(Relaxed).saturating_mul(4));
        Duration::from_micros(u64::from(wait)).max(LEAST_WAIT)
    }

    /// Whether a line about it may be logged now; once a minute.
    pub(super) fn may_log(&self, now: Instant) -> bool {
        let (now, last) = (self.ms(now), self.logged_ms.load(Relaxed));
        (last == 0 || now - last.min(now) >= LOG.as_millis() as u64)
            && self.logged_ms.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
    }

    fn known_us(&self) -> u32 {
        match self.srtt_us.load(Relaxed) {
            0 => UNKNOWN_US,
            known => known,
        }
    }

    /// RFC 6298 section 2. Two workers at once may lose a sample, and nothing else.
    fn sample(&self, took: u32) {
        let srtt = self.srtt_us.load(Relaxed);
        if srtt == 0 {
            self.srtt_us.store(took, Relaxed);
            self.deviation_us.store(took / 2, Relaxed);
            return;
        }
        let deviation = self.deviation_us.load(Relaxed);
        self.deviation_us.store((deviation - deviation / 4).saturating_add(srtt.abs_diff(took) / 4), Relaxed);
        self.srtt_us.store(srtt - srtt / 8 + took / 8, Relaxed);
    }

    /// Milliseconds since the beginning, never 0.
    fn ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_millis() as u64 + 1
    }

    fn tell(&self, address: &ServerAddress, now: Instant) -> ServerHealth {
        let srtt = self.srtt_us.load(Relaxed);
        let held = self.held_until_ms.load(Relaxed).saturating_sub(self.ms(now));
        ServerHealth {
            server: address.to_string(),
            transport: address.transport.text().to_owned(),
            srtt_us: (srtt != 0).then_some(u64::from(srtt)),
            queries: self.queries.load(Relaxed),
            answers: self.answers.load(Relaxed),
            timeouts: self.timeouts.load(Relaxed),
            unanswered: self.unanswered.load(Relaxed),
            held_ms: self.is_held().then_some(held),
        }
    }
}

impl Transport {
    /// The word for metrics and status.
    pub fn text(&self) -> &'static str {
        match self {
            Transport::Plain => "plain",
            Transport::Tls { .. } => "tls",
            Transport::Https { .. } => "https",
        }
    }
}

/// Writes shared memory only when there is something new.
trait SwapIfNew {
    fn swap_if_new(&self, value: u64) -> bool;
}

impl SwapIfNew for AtomicU64 {
    fn swap_if_new(&self, value: u64) -> bool {
        let new = self.load(Relaxed) != value;
        if new {
            self.store(value, Relaxed);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn health() -> (Health, Instant) {
        let now = clock::now();
        (Health::new(now), now)
    }

    /// Asks at `now` and is not answered for `wait`.
    fn silent(health: &Health, now: Instant, wait: Duration) -> Instant {
        health.asked(now);
        health.unanswered(now, now + wait);
        now + wait
    }

    #[test]
    fn three_silences_in_a_row_hold_a_server_down_and_an_answer_in_between_does_not() {
        let (health, mut now) = health();
        for _ in 0..2 {
            now = silent(&health, now, 200 * MS);
        }
        health.heard(now, now + 5 * MS);
        now += 5 * MS;
        for _ in 0..2 {
            now = silent(&health, now, 200 * MS);
        }
        assert!(!health.is_held());
        silent(&health, now, 200 * MS);
        assert!(health.is_held());
    }

    #[test]
    fn a_silence_does_not_count_when_another_query_was_answered_meanwhile() {
        let (health, now) = health();
        for _ in 0..10 {
            health.heard(now + 50 * MS, now + 60 * MS);
            health.unanswered(now, now + 200 * MS);
        }
        assert!(!health.is_held());
    }

    #[test]
    fn one_probe_at_a_time_and_each_silence_doubles_the_wait_up_to_a_minute() {
        let (health, mut now) = health();
        for _ in 0..3 {
            now = silent(&health, now, 200 * MS);
        }
        let mut waits = Vec::new();
        for _ in 0..9 {
            let from = now;
            let taken = (0..1_000).map(|step| from + step * 100 * MS).find(|now| health.take_probe(*now));
            now = taken.expect("a probe within two minutes");
            assert!(!health.take_probe(now), "one is enough");
            silent(&health, now, 200 * MS);
            waits.push((now - from).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        health.heard(now, now + MS);
        assert!(!health.is_held() && !health.take_probe(now + LONGEST_HOLD));
    }

    #[test]
    fn the_round_trip_time_is_smoothed_and_sets_the_wait() {
        let (health, mut now) = health();
        assert_eq!(health.wait(), Duration::from_micros(376_000), "nothing is known");
        for _ in 0..100 {
            health.heard(now, now + 300 * MS);
            now += 300 * MS;
        }
        assert_eq!(health.tell(&address(), now).srtt_us, Some(300_000));
        assert!(health.wait() >= 300 * MS && health.wait() < 310 * MS, "{:?}", health.wait());
        for _ in 0..100 {
            health.heard(now, now + 2 * MS);
            now += 2 * MS;
        }
        assert_eq!(health.wait(), LEAST_WAIT);
    }

    #[test]
    fn a_slow_server_grows_attractive_again_when_it_is_not_asked() {
        let (fast, now) = health();
        let (slow, _) = health();
        assert_eq!(fast.cost(now), 0.0, "never asked: tried first");
        for (server, took) in [(&fast, 2 * MS), (&slow, 64 * MS)] {
            server.asked(now);
            server.heard(now, now + took);
        }
        let cheaper = |later: Duration| {
            fast.asked(now + later);
            slow.cost(now + later) < fast.cost(now + later)
        };
        assert!(!cheaper(HALF_LIFE * 4));
        assert!(cheaper(HALF_LIFE * 6));
        slow.asked(now + HALF_LIFE * 6);
        assert!(!cheaper(HALF_LIFE * 6 + MS), "one query is enough");
    }

    #[test]
    fn a_server_is_written_about_once_a_minute() {
        let (health, now) = health();
        let lines = (0..120).filter(|second| health.may_log(now + Duration::from_secs(*second))).count();
        assert_eq!(lines, 2);
    }

    #[test]
    fn the_registry_gives_the_same_health_to_all_and_forgets_whom_nobody_asks() {
        let registry = Registry::default();
        let kept = registry.health(&address());
        assert!(Arc::ptr_eq(&kept, &registry.health(&address())));
        for port in 1..1_000 {
            registry.health(&ServerAddress::plain(([203, 0, 113, 2], port).into()));
        }
        assert!(registry.snapshot().len() <= KNOWN);
        assert!(Arc::ptr_eq(&kept, &registry.health(&address())));
    }

    fn address() -> ServerAddress {
        ServerAddress::parse("203.0.113.1").expect("an address")
    }
}
