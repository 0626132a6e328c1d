//! Answers that are kept, for all workers: as the servers gave them, before any policy.
//!
//! What an endpoint gets of a kept answer is decided anew each time, by its own rules and grants (I3, I7). In front of
//! this each worker has replies that are ready to leave, see [`super::hot`].

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;

use crate::engine::answer::Answer;
use crate::engine::endpoint::EndpointId;
use crate::engine::grant::MonoNs;
use crate::engine::lifetime::{Ceilings, age, lifetime, set_ttls, ttl_places};
use crate::engine::name::Name;
use crate::engine::query::Query;
use crate::upstream::route::Route;

/// Octets that an entry costs beside its message: key, places of TTLs, moka's own bookkeeping.
const OVERHEAD: usize = 400;
/// The TTL of a stale answer, seconds (RFC 8767 section 4).
const STALE_TTL: u32 = 30;
/// How long servers that did not answer are left alone while there is a stale answer (RFC 8767 section 5).
const RETRY: Duration = Duration::from_secs(30);
/// Endpoints of one answer that are told of its successor.
const USERS: usize = 64;

/// What makes two questions have the same answer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    /// Who was asked.
    pub route: Route,
    /// For what.
    pub name: Name,
    /// The type.
    pub qtype: u16,
    /// RD, AD and CD.
    pub flags: u16,
    /// Whether DNSSEC records were wanted.
    pub dnssec_ok: bool,
}

impl Key {
    /// The key of a query that goes to `route`.
    pub fn new(route: &Route, query: &Query<'_>) -> Key {
        Key {
            route: route.clone(),
            name: query.name.clone(),
            qtype: query.qtype,
            flags: query.asked_flags(),
            dnssec_ok: query.dnssec_ok(),
        }
    }

    /// The same question, of our own.
    pub fn query(&self) -> Query<'static> {
        Query::again(self.name.clone(), self.qtype, self.flags, self.dnssec_ok)
    }
}

/// When an answer was stored and how long it lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Life {
    /// When it was stored.
    pub stored: MonoNs,
    /// Its least TTL then, seconds.
    pub lifetime: u32,
    /// No TTL above this is given, seconds.
    pub ceiling: u32,
}

impl Life {
    /// When its first TTL has run down.
    pub fn ends(&self) -> MonoNs {
        self.stored.after(Duration::from_secs(self.lifetime.into()))
    }

    /// Whole seconds since it was stored.
    pub fn age(&self, now: MonoNs) -> u32 {
        u32::try_from(now.0.saturating_sub(self.stored.0) / 1_000_000_000).unwrap_or(u32::MAX)
    }
}

/// An answer that is kept.
#[derive(Debug)]
pub struct Kept {
    message: Box<[u8]>,
    /// Where its TTLs stand, and what they were.
    places: Box<[(usize, u32)]>,
    life: Life,
    /// Until when no server is asked although it is stale.
    left_alone_until: AtomicU64,
    /// A refresh of it is on some worker's list.
    pub(super) listed: AtomicBool,
    users: Mutex<Vec<User>>,
}

/// Who was given an answer: its successor's addresses are granted to them before they ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct User {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The local address that stands for the resolver that it asked.
    pub local: IpAddr,
}

impl Kept {
    /// When it was stored and how long it lives.
    pub fn life(&self) -> Life {
        self.life
    }

    /// The message as it is now; what is stale has 30 seconds.
    pub fn aged(&self, now: MonoNs) -> Vec<u8> {
        let mut message = self.message.to_vec();
        if now < self.life.ends() {
            age(&mut message, self.places.iter().copied(), self.life.age(now), self.life.ceiling);
        } else {
            set_ttls(&mut message, self.places.iter().copied(), STALE_TTL);
        }
        message
    }

    /// Remembers who was given it.
    pub fn used_by(&self, user: User) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.len() < USERS && !users.contains(&user) {
            users.push(user);
        }
    }

    /// Who was given it.
    pub fn users(&self) -> Vec<User> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn weight(&self) -> usize {
        self.message.len() + self.places.len() * size_of::<(usize, u32)>() + OVERHEAD
    }
}

/// What the cache has.
#[derive(Clone, Debug)]
pub enum Found {
    /// An answer whose TTLs have not run down.
    Fresh(Arc<Kept>),
    /// One whose TTLs have; to be given only if no server answers. True: the servers were asked in vain a moment ago.
    Stale(Arc<Kept>, bool),
    /// Nothing.
    Nothing,
}

/// Answers by their keys, bounded in octets. The least used go first.
pub struct Cache {
    answers: moka::sync::Cache<Key, Arc<Kept>, RandomState>,
    max_bytes: u64,
    uses: Uses,
    cleared: AtomicU64,
}

/// How often the cache was of use.
#[derive(Default)]
struct Uses {
    hits: AtomicU64,
    hot: AtomicU64,
    misses: AtomicU64,
    stale: AtomicU64,
}

/// How full the cache is and how often it was of use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheFigures {
    /// Answers.
    pub entries: u64,
    /// Octets that they take, bookkeeping included.
    pub bytes: u64,
    /// Octets that they may take.
    pub max_bytes: u64,
    /// Answers given from the shared cache.
    pub hits: u64,
    /// Replies that a worker had ready.
    pub hot: u64,
    /// Answers that had to be asked for.
    pub misses: u64,
    /// Answers given beyond their TTL.
    pub stale: u64,
}

impl Cache {
    /// An empty cache of at most `max_bytes` octets, bookkeeping included.
    pub fn new(max_bytes: u64) -> Cache {
        let weigh = |key: &Key, kept: &Arc<Kept>| (kept.weight() + key.name.as_wire().len()) as u32;
        let answers = moka::sync::Cache::builder()
            .max_capacity(max_bytes)
            .weigher(weigh)
            .build_with_hasher(RandomState::default());
        Cache { answers, max_bytes, uses: Uses::default(), cleared: AtomicU64::new(0) }
    }

    /// What there is for `key`; stale answers for as long as `serve_stale` says.
    pub fn get(&self, key: &Key, now: MonoNs, serve_stale: Duration) -> Found {
        match self.answers.get(key) {
            Some(kept) if now < kept.life.ends() => Found::Fresh(kept),
            Some(kept) if now < kept.life.ends().after(serve_stale) => {
                let left_alone = now.0 < kept.left_alone_until.load(Ordering::Relaxed);
                Found::Stale(kept, left_alone)
            }
            Some(_) => {
                self.answers.invalidate(key);
                Found::Nothing
            }
            None => Found::Nothing,
        }
    }

    /// Keeps what a server has just answered, if it may be kept.
    pub fn store(&self, key: Key, octets: &[u8], ceilings: &Ceilings, now: MonoNs) -> Option<Arc<Kept>> {
        let answer = Answer::parse(octets).ok()?;
        let lifetime = lifetime(&answer, &key.query(), ceilings)?;
        let kept = Arc::new(Kept {
            message: answer.message.into(),
            places: ttl_places(&answer).collect(),
            life: Life { stored: now, lifetime, ceiling: ceilings.ttl },
            left_alone_until: AtomicU64::new(0),
            listed: AtomicBool::new(false),
            users: Mutex::default(),
        });
        self.answers.insert(key, kept.clone());
        Some(kept)
    }

    /// The servers were asked in vain: while it may be given stale, they are left alone for half a minute.
    pub fn leave_alone(&self, kept: &Kept, now: MonoNs) {
        kept.left_alone_until.store(now.after(RETRY).0, Ordering::Relaxed);
    }

    /// Forgets everything: the machine slept, and TTLs did not.
    pub fn clear(&self) {
        self.answers.invalidate_all();
        self.cleared.fetch_add(1, Ordering::Release);
    }

    /// How often it was cleared.
    pub fn cleared(&self) -> u64 {
        self.cleared.load(Ordering::Acquire)
    }

    /// Counts an answer that was given from here.
    pub(super) fn count(&self, used: crate::observe::CacheUse) {
        use crate::observe::CacheUse;
        let counter = match used {
            CacheUse::None => return,
            CacheUse::Miss => &self.uses.misses,
            CacheUse::Hit => &self.uses.hits,
            CacheUse::Hot => &self.uses.hot,
            CacheUse::Stale => &self.uses.stale,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// For status and metrics; does what moka has put off.
    pub fn figures(&self) -> CacheFigures {
        self.answers.run_pending_tasks();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheFigures {
            entries: self.answers.entry_count(),
            bytes: self.answers.weighted_size(),
            max_bytes: self.max_bytes,
            hits: read(&self.uses.hits),
            hot: read(&self.uses.hot),
            misses: read(&self.uses.misses),
            stale: read(&self.uses.stale),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::message;

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: u64) -> MonoNs {
        MonoNs(1_000 * SECOND + seconds * SECOND)
    }

    fn key(name: &str, server: &str) -> Key {
        let route = Route::to(server.parse().expect("an address"));
        Key::new(&route, &Query::again(Name::parse(name).expect("a name"), 1, 0x100, false))
    }

    /// An answer of one address record.
    fn octets(key: &Key, ttl: u32, padding: usize) -> Vec<u8> {
        let mut octets = b"\0\0\x81\x80\0\x01\0\x01\0\0\0\0".to_vec();
        octets.extend(&key.query().question[..]);
        octets.extend(b"\xc0\x0c\0\x01\0\x01");
        octets.extend(ttl.to_be_bytes());
        octets.extend(b"\0\x04\xcb\0\x71\x01");
        if padding > 0 {
            octets[7] = 2;
            octets.extend(b"\xc0\x0c\0\x10\0\x01");
            octets.extend(ttl.to_be_bytes());
            octets.extend((padding as u16).to_be_bytes());
            octets.extend(vec![b'x'; padding]);
        }
        octets
    }

    fn ttl(found: &Found, now: MonoNs) -> Option<u32> {
        let (Found::Fresh(kept) | Found::Stale(kept, _)) = found else { return None };
        Some(Answer::parse(&kept.aged(now)).expect("an answer").ttl())
    }

    #[test]
    fn an_answer_ages_and_ends_with_its_ttl() {
        let (cache, key) = (Cache::new(1 << 20), key("www.test", "203.0.113.1:53"));
        cache.store(key.clone(), &octets(&key, 60, 0), &Ceilings::default(), at(0)).expect("kept");
        for (second, expected) in [(0, Some(60)), (1, Some(59)), (59, Some(1)), (60, None), (61, None)] {
            let found = cache.get(&key, at(second), Duration::ZERO);
            assert_eq!(ttl(&found, at(second)), expected, "after {second} s");
        }
    }

    #[test]
    fn a_stale_answer_is_found_only_as_long_as_configured_and_has_thirty_seconds() {
        let (cache, key) = (Cache::new(1 << 20), key("www.test", "203.0.113.1:53"));
        let kept = cache.store(key.clone(), &octets(&key, 60, 0), &Ceilings::default(), at(0)).expect("kept");
        let stale = Duration::from_secs(100);
        let found = cache.get(&key, at(60), stale);
        assert!(matches!(found, Found::Stale(_, false)));
        assert_eq!(ttl(&found, at(60)), Some(30));
        cache.leave_alone(&kept, at(60));
        assert!(matches!(cache.get(&key, at(89), stale), Found::Stale(_, true)));
        assert!(matches!(cache.get(&key, at(90), stale), Found::Stale(_, false)));
        assert!(matches!(cache.get(&key, at(160), stale), Found::Nothing));
    }

    #[test]
    fn another_server_type_flag_or_do_bit_is_another_question() {
        let cache = Cache::new(1 << 20);
        let kept = key("www.test", "203.0.113.1:53");
        cache.store(kept.clone(), &octets(&kept, 60, 0), &Ceilings::default(), at(0)).expect("kept");
        let others = [
            key("www.test", "203.0.113.2:53"),
            key("web.test", "203.0.113.1:53"),
            Key { qtype: 28, ..kept.clone() },
            Key { flags: 0x110, ..kept.clone() },
            Key { dnssec_ok: true, ..kept },
        ];
        for other in others {
            assert!(matches!(cache.get(&other, at(1), Duration::ZERO), Found::Nothing), "{other:?}");
        }
    }

    #[test]
    fn the_cache_stays_below_its_octets() {
        let cache = Cache::new(1 << 20);
        for number in 0..3_000 {
            let key = key(&format!("n{number}.test"), "203.0.113.1:53");
            cache.store(key.clone(), &octets(&key, 60, 1_000), &Ceilings::default(), at(0));
        }
        let figures = cache.figures();
        assert!(figures.bytes <= 1 << 20, "{figures:?}");
        assert!(figures.entries > 300, "{figures:?}");
    }

    #[test]
    fn the_question_of_a_key_is_what_was_asked() {
        let query = Query::again(Name::parse("www.test").expect("a name"), 65, 0x110, true);
        let again = Key::new(&Route::to("203.0.113.1:53".parse().expect("an address")), &query).query();
        assert_eq!((again.asked_flags(), again.dnssec_ok(), again.qtype), (0x110, true, 65));
        let sent = message::build(&again, message::Letters::Lower, true);
        assert_eq!(sent, message::build(&query, message::Letters::Lower, true));
    }
}
