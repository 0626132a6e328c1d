//! One query from packet to reply. The only file that knows the order.
//!
//! **Invariant:** a reply leaves only after the kernel holds every grant that it implies (I4). When the kernel can't,
//! the reply is SERVFAIL and holds no address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;

use crate::clock;
use crate::engine::answer::{Answer, Learned};
use crate::engine::bits::Bits;
use crate::engine::fqdn::{FqdnTable, Full, Plan};
use crate::engine::grant::MonoNs;
use crate::engine::guard::Guarded;
use crate::engine::query::{Outline, Query};
use crate::engine::reply::rebuild::{Changes, Rebuilt, rebuilt};
use crate::engine::reply::{self, Additional, Ede, EdeCode, Rcode};
use crate::engine::ruleset::{Protocol, RuleSet};
use crate::engine::verdict::{Denied, RuleRef};
use crate::engine::wire::{CLASS_IN, rtype};
use crate::kernel::GrantStore;
use crate::observe::{CacheUse, Observer, Outcome};
use crate::upstream::{Resolve, UpstreamError};

pub mod background;
pub mod cache;
pub mod directory;
mod ending;
mod hot;
pub mod rate;
mod record;

use background::{Background, Memory};
use cache::{Cache, Found, Kept, Key, User};
use directory::Taken;
pub use directory::{Directory, RejectCode, Resolver, Served, Settings};
use ending::{Ending, denied_reply, ede_of, no_room, rcode_of, unnamed_server_reply, unreadable_answer};
use hot::{Asked, Fresh, Now, Promise};
use record::Record;

/// A message as it came in.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Its octets.
    pub bytes: &'a [u8],
    /// Its sender.
    pub client: SocketAddr,
    /// The local address that it was sent to: it stands for the resolver that the workload asked.
    pub local: IpAddr,
    /// The interface that it came in by.
    pub interface: u32,
    /// Whether it came over TCP.
    pub tcp: bool,
}

/// What is to be done with a message.
pub enum Next {
    /// Send the reply that was written.
    Reply,
    /// Send nothing.
    Nothing,
    /// Ask the resolver: [`Proxy::finish`].
    Ask(Box<Ask<'static>>),
}

/// A query that is allowed.
pub struct Ask<'a> {
    query: Query<'a>,
    served: Arc<Served>,
    rules: Arc<RuleSet>,
    resolver: Resolver,
    /// The local address that stands for the resolver.
    local: IpAddr,
    tcp: bool,
    record: Record,
    /// Counted as under way until it is dropped.
    slot: Option<Taken>,
    /// An answer for when no server has one.
    stale: Option<Arc<Kept>>,
}

/// Serves queries: shared by all workers.
pub struct Proxy {
    pub(crate) directory: Arc<ArcSwap<Directory>>,
    grants: Arc<dyn GrantStore>,
    observer: Arc<dyn Observer>,
    cache: Option<Arc<Cache>>,
    background: Background,
    now: fn() -> MonoNs,
    pub(crate) connections: Arc<AtomicU32>,
}

impl Proxy {
    /// A proxy for the endpoints in `directory`, on the kernel's clock. Without a cache every query goes up.
    pub fn new(
        directory: Arc<ArcSwap<Directory>>,
        grants: Arc<dyn GrantStore>,
        observer: Arc<dyn Observer>,
        cache: Option<Arc<Cache>>,
    ) -> Proxy {
        Proxy::at(clock::mono, directory, grants, observer, cache)
    }

    /// The same on another clock.
    pub fn at(
        now: fn() -> MonoNs,
        directory: Arc<ArcSwap<Directory>>,
        grants: Arc<dyn GrantStore>,
        observer: Arc<dyn Observer>,
        cache: Option<Arc<Cache>>,
    ) -> Proxy {
        Proxy {
            directory,
            grants,
            observer,
            cache,
            background: Background::default(),
            now,
            connections: Arc::default(),
        }
    }

    /// Whatever can be said without asking anyone: endpoint, query, verdict, and the reply, if the answer is kept.
    ///
    /// A reply is written to `out`. `memory` is the worker's own; over TCP there is none.
    pub fn accept(&self, packet: &Packet<'_>, mut memory: Option<&mut Memory>, out: &mut Vec<u8>) -> Next {
        let directory = self.directory.load();
        let mut record = Record::new(packet);
        // Nothing is answered to a stranger, not even that it is malformed.
        let Some(served) = directory.endpoint(packet.interface, packet.client.ip()) else {
            return self.dropped(record, "no_endpoint");
        };
        let now = (self.now)();
        let in_time = served.rate.take(directory.settings.queries_per_second, now);
        let outline = Outline::parse(packet.bytes);
        let rules = served.rules.load();
        let mut asked = None;
        if let (Some(memory), Some(cache), Ok(outline), true) = (&mut memory, &self.cache, &outline, in_time) {
            memory.hot.follow(&directory, cache.cleared());
            asked = Asked::new(served.id, packet, outline);
            let epoch = served.epoch.load(Ordering::Acquire);
            let now = Now { at: now, rules: &rules, epoch, timing: &directory.settings.timing };
            let ready = asked.as_ref().and_then(|asked| memory.hot.again(asked, now, packet, outline, out));
            if let Some(ready) = ready {
                ready.close(&*self.observer);
                self.count(CacheUse::Hot);
                return Next::Reply;
            }
        }
        record.endpoint(served);
        let resolver = directory.resolver(packet.local);
        if let Some(resolver) = resolver {
            record.server(resolver.address);
        }
        let query = match outline.and_then(|outline| outline.query(packet.bytes)) {
            Ok(query) => query,
            Err(_) if !in_time => return self.dropped(record, "rate"),
            Err(error) => {
                let reply = error.rcode().and_then(|rcode| reply::unreadable(packet.bytes, rcode));
                let Some(reply) = reply else { return self.dropped(record, error.reason()) };
                return self.done(record, Ending::new(Outcome::Malformed, error.reason(), reply), out);
            }
        };
        record.query(&query);
        if !in_time {
            let ede = Ede::new(EdeCode::Other, "too many queries of this workload in this second");
            let reply = reply::failed(&query, Rcode::Refused, Some(&ede));
            return self.done(record, Ending::new(Outcome::Failed, "rate", reply), out);
        }
        if query.edns.is_some_and(|edns| edns.version > 0) {
            let reply = reply::failed(&query, Rcode::BadVers, None);
            return self.done(record, Ending::new(Outcome::Malformed, "edns_version", reply), out);
        }
        let Some(resolver) = resolver else {
            let reply = unnamed_server_reply(&query, &directory.settings);
            return self.done(record, Ending::new(Outcome::Denied, "unknown_resolver", reply), out);
        };
        match verdict(&rules, resolver, packet.tcp, &query) {
            Ok(rule) => record.rule(rule),
            Err(denied) if rules.audit && denied.is_policy(&query.name) => {
                record.denied(&denied, &query);
                record.audit(denied.reason());
            }
            Err(denied) => {
                let reply = denied_reply(&query, &denied, served, &directory.settings);
                record.denied(&denied, &query);
                return self.done(record, Ending::new(Outcome::Denied, denied.reason(), reply), out);
            }
        }
        let mut ask = Ask {
            query,
            served: served.clone(),
            rules: rules.clone(),
            resolver: resolver.clone(),
            local: packet.local,
            tcp: packet.tcp,
            record,
            slot: None,
            stale: None,
        };
        if let Some(cache) = &self.cache {
            let key = Key::new(directory.route(&ask.query.name, resolver).0, &ask.query);
            match cache.get(&key, now, directory.settings.serve_stale) {
                Found::Fresh(kept) => {
                    let place = memory.zip(asked.as_ref());
                    return self.give_kept(ask, &key, &kept, now, &directory, place, out);
                }
                Found::Stale(kept, true) => {
                    let ending = self.give_stale(&mut ask, &kept, now, &directory);
                    return self.done(ask.record, ending, out);
                }
                Found::Stale(kept, false) => ask.stale = Some(kept),
                Found::Nothing => {}
            }
        }
        ask.slot = Taken::take(&served.under_way, directory.settings.queries_in_flight);
        if ask.slot.is_none() {
            let ede = Ede::new(EdeCode::Other, "too many queries of this workload are under way");
            let reply = reply::failed(&ask.query, Rcode::ServFail, Some(&ede));
            return self.done(ask.record, Ending::new(Outcome::Failed, "queries_in_flight", reply), out);
        }
        Next::Ask(Box::new(ask.into_owned()))
    }

    /// Counts a connection that is closed before anything was asked.
    pub fn turned_away(&self, packet: &Packet<'_>, reason: &'static str) {
        let mut record = Record::new(packet);
        if let Some(served) = self.directory.load().endpoint(packet.interface, packet.client.ip()) {
            record.endpoint(served);
        }
        self.dropped(record, reason);
    }

    /// Asks the resolver, lets the kernel hold what the answer grants, and says what goes back.
    pub async fn finish(&self, mut ask: Box<Ask<'static>>, upstream: &impl Resolve) -> Vec<u8> {
        let directory = self.directory.load_full();
        let mut within = directory.settings.upstream_timeout;
        if ask.stale.is_some() {
            within = within.min(STALE_PATIENCE);
        }
        let key = Key::new(directory.route(&ask.query.name, &ask.resolver).0, &ask.query);
        let started = clock::now();
        let resolved = upstream.resolve(&key.route, &ask.query, within).await;
        ask.record.upstream(clock::now().saturating_duration_since(started));
        let directory = self.directory.load();
        let ending = self.resolved(&mut ask, key, resolved, &directory);
        let mut reply = Vec::new();
        self.done(ask.record, ending, &mut reply);
        reply
    }

    /// The stage "answer": what came of asking.
    fn resolved(
        &self,
        ask: &mut Ask<'_>,
        key: Key,
        resolved: Result<impl AsRef<[u8]>, UpstreamError>,
        directory: &Directory,
    ) -> Ending {
        let now = (self.now)();
        let unanswered = match &resolved {
            Ok(octets) => octets.as_ref().get(3).is_none_or(|flags| flags & 0xf == Rcode::ServFail as u8),
            Err(_) => true,
        };
        if unanswered && let Some(kept) = ask.stale.take() {
            if let Some(cache) = &self.cache {
                cache.leave_alone(&kept, now);
            }
            return self.give_stale(ask, &kept, now, directory);
        }
        let route = &key.route;
        if directory.route(&ask.query.name, &ask.resolver).0 != route {
            // Whether to believe an answer was decided for whoever is asked now.
            let ede = Ede::new(EdeCode::Other, "the DNS servers were changed meanwhile");
            return Ending::failed("servers_changed", &ask.query, &ede);
        }
        let octets = match &resolved {
            Ok(octets) => octets.as_ref(),
            Err(error) => {
                let ede = Ede::new(ede_of(*error), format!("{route}: {error}"));
                return Ending::failed(error.reason(), &ask.query, &ede);
            }
        };
        let answer = match Answer::parse(octets) {
            Ok(answer) => answer,
            Err(error) => return unreadable_answer(&ask.query, &error),
        };
        if let Some(cache) = &self.cache {
            ask.record.cache(CacheUse::Miss);
            self.count(CacheUse::Miss);
            if let Some(kept) = cache.store(key, octets, &directory.settings.ceilings, now) {
                kept.used_by(User { endpoint: ask.served.id, local: ask.local });
            }
        }
        self.answered(ask, &answer, directory)
    }

    /// A reply from a kept answer; the worker keeps it ready for the next time.
    #[expect(clippy::too_many_arguments, reason = "all that the stage before has found, once")]
    fn give_kept(
        &self,
        mut ask: Ask<'_>,
        key: &Key,
        kept: &Arc<Kept>,
        now: MonoNs,
        directory: &Directory,
        place: Option<(&mut Memory, &Asked)>,
        out: &mut Vec<u8>,
    ) -> Next {
        self.count(CacheUse::Hit);
        ask.record.cache(CacheUse::Hit);
        kept.used_by(User { endpoint: ask.served.id, local: ask.local });
        let octets = kept.aged(now);
        let ending = match Answer::parse(&octets) {
            Ok(answer) => self.answered(&mut ask, &answer, directory),
            Err(error) => unreadable_answer(&ask.query, &error),
        };
        let mut record = ask.record;
        record.end(ending.outcome, ending.reason, rcode_of(&ending));
        record.close(&*self.observer);
        if let Some((memory, asked)) = place {
            if directory.settings.prefetch {
                memory.refreshes.list(key, kept);
            }
            if ending.outcome == Outcome::Forwarded && !record.is_audited() {
                let (promise, message) = (ending.promise, &ending.reply[..]);
                let fresh = Fresh { now, rules: ask.rules, life: kept.life(), promise, message, record };
                memory.hot.keep(asked, fresh);
            }
        }
        *out = ending.reply;
        Next::Reply
    }

    /// A reply from an answer whose TTLs have run down: no server has a better one (RFC 8767).
    fn give_stale(&self, ask: &mut Ask<'_>, kept: &Kept, now: MonoNs, directory: &Directory) -> Ending {
        self.count(CacheUse::Stale);
        ask.record.cache(CacheUse::Stale);
        let octets = kept.aged(now);
        let answer = match Answer::parse(&octets) {
            Ok(answer) => answer,
            Err(error) => return unreadable_answer(&ask.query, &error),
        };
        let code = if answer.rcode() == Rcode::NxDomain as u16 { EdeCode::StaleNxDomain } else { EdeCode::Stale };
        let mut ending = self.answered(ask, &answer, directory);
        let ede = Ede::new(code, "no server answers; this is what one said before");
        reply::explain(&mut ending.reply, &ede, ask.limit());
        ending
    }

    /// The stages answer, grant and reply. No await: the table stays locked from the plan until it is recorded.
    fn answered(&self, ask: &mut Ask<'_>, answer: &Answer<'_>, directory: &Directory) -> Ending {
        let limit = ask.limit();
        let served = ask.served.clone();
        let mut table = served.table();
        // The policy may have changed while the resolver thought.
        let rules = ask.served.rules.load_full();
        if !Arc::ptr_eq(&rules, &ask.rules) {
            match verdict(&rules, &ask.resolver, ask.tcp, &ask.query) {
                Ok(rule) => ask.record.rule(rule),
                Err(denied) if rules.audit && denied.is_policy(&ask.query.name) => {
                    ask.record.denied(&denied, &ask.query);
                    ask.record.audit(denied.reason());
                }
                Err(denied) => {
                    ask.record.denied(&denied, &ask.query);
                    let reply = denied_reply(&ask.query, &denied, &ask.served, &directory.settings);
                    return Ending::new(Outcome::Denied, denied.reason(), reply);
                }
            }
            ask.rules = rules.clone();
        }
        let outside = directory.guard.is_cluster_name(&ask.query.name);
        if outside || rules.groups_of(&ask.query.name) == Bits::NONE {
            drop(table);
            return self.relay(ask, answer, limit, &directory.settings);
        }
        if reply::least_octets(&ask.query, answer) > limit {
            // What is not handed on teaches nothing (I6); over TCP it will.
            return Ending::new(Outcome::Forwarded, "truncated", reply::truncated(&ask.query, answer));
        }
        let (mut learned, mut withheld) = learn(ask, answer, &rules, directory);
        let mut promise = Promise::Nothing;
        if let Some(found) = &learned {
            match table.plan(found, &rules, (self.now)(), &directory.settings.timing) {
                Ok(plan) => {
                    if let Err(ending) = self.install(ask, &mut table, plan) {
                        return ending;
                    }
                    let epoch = served.epoch.load(Ordering::Acquire);
                    promise = match table.held_until(found) {
                        Some(until) => Promise::Held { until, epoch, ttl: found.ttl },
                        None => Promise::Once,
                    };
                }
                // A hint is a help that a client can do without: it asks for the addresses next.
                Err(full) if rules.audit || matches!(ask.query.qtype, rtype::SVCB | rtype::HTTPS) => {
                    (learned, withheld, promise) = (None, Some(Withheld::Room(full)), Promise::Once);
                }
                Err(full) => return no_room(&ask.query, full),
            }
        }
        drop(table);
        let granted = learned.map(|learned| learned.addresses).unwrap_or_default();
        let findings = Findings { rules: &rules, granted, withheld, limit, settings: &directory.settings };
        Ending { promise, ..self.filtered(ask, answer, &findings) }
    }

    /// Lets the kernel hold the plan, and then the table. Otherwise: how the query ends.
    fn install(&self, ask: &mut Ask<'_>, table: &mut FqdnTable, plan: Plan) -> Result<(), Ending> {
        let started = (!plan.writes().is_empty()).then(clock::now);
        match ask.served.carry_out(&*self.grants, table, plan) {
            Ok(rows) => {
                if let Some(started) = started {
                    ask.record.installed(rows, clock::now().saturating_duration_since(started));
                }
                Ok(())
            }
            Err(error) => {
                tracing::warn!(endpoint = %ask.served.id, %error, "the kernel did not take a grant");
                let ede = Ede::new(EdeCode::Other, "the kernel did not take the grant");
                Err(Ending::failed("grant_write", &ask.query, &ede))
            }
        }
    }

    /// The answer to a name that no toFQDNs selects: as it came.
    fn relay(&self, ask: &mut Ask<'_>, answer: &Answer<'_>, limit: usize, settings: &Settings) -> Ending {
        let message = if settings.compression {
            reply::relayed_within(&ask.query, answer, Additional::Whole, limit)
        } else {
            let changes = Changes { keep: None, compress: false, nothing_left: None };
            match rebuilt(&ask.query, answer, &changes) {
                Ok(rebuilt) => rebuilt.message,
                Err(malformed) => return unreadable_answer(&ask.query, &malformed),
            }
        };
        self.fit(ask, answer, message, None, limit, "allowed")
    }

    /// The answer to a selected name: only with addresses that were granted now or that need no name.
    fn filtered(&self, ask: &mut Ask<'_>, answer: &Answer<'_>, findings: &Findings<'_>) -> Ending {
        let Findings { rules, granted, withheld, limit, settings } = findings;
        let granted_now = |address| granted.binary_search(&address).is_ok();
        let clean = answer
            .records(0)
            .chain(answer.records(1))
            .filter(|record| record.leads_somewhere())
            .all(|record| record.class == CLASS_IN && record.leads_only_where(granted_now));
        if clean && settings.compression {
            // Glue was granted to nobody, so it stays behind; it tells only what the workload can ask for.
            let message = reply::relayed_within(&ask.query, answer, Additional::OptOnly, *limit);
            return self.fit(ask, answer, message, None, *limit, "allowed");
        }
        let reason = match withheld {
            Some(Withheld::Guard(_)) => "guard",
            Some(Withheld::Resolver) => "untrusted_resolver",
            Some(Withheld::Room(_)) => "grants_full",
            None => "off_chain",
        };
        if rules.audit {
            ask.record.audit(reason);
            return self.relay(ask, answer, *limit, settings);
        }
        let why = match withheld {
            Some(Withheld::Guard(guarded)) => format!("the address is guarded: {}", guarded.reason()),
            Some(Withheld::Resolver) => format!("no policy names the resolver {}", ask.resolver.address.ip()),
            Some(Withheld::Room(full)) => full.to_string(),
            None => "the addresses do not belong to the name asked for".to_owned(),
        };
        let keep = |address| granted_now(address) || rules.opens_without_name(address);
        let nothing_left = Ede::new(EdeCode::Filtered, why);
        let changes = Changes { keep: Some(&keep), compress: settings.compression, nothing_left: Some(&nothing_left) };
        match rebuilt(&ask.query, answer, &changes) {
            Ok(Rebuilt { message, kept, taken }) => {
                let reason = if taken == 0 { "allowed" } else { reason };
                self.fit(ask, answer, message, Some(kept), *limit, reason)
            }
            Err(malformed) => unreadable_answer(&ask.query, &malformed),
        }
    }

    /// `message`, or the question alone if it is too long for a datagram to this asker.
    fn fit(
        &self,
        ask: &mut Ask<'_>,
        answer: &Answer<'_>,
        message: Vec<u8>,
        kept: Option<Vec<IpAddr>>,
        limit: usize,
        reason: &'static str,
    ) -> Ending {
        if message.len() > limit {
            return Ending::new(Outcome::Forwarded, "truncated", reply::truncated(&ask.query, answer));
        }
        if self.observer.watches() || tracing::enabled!(tracing::Level::DEBUG) {
            ask.record.answer(answer, kept);
        }
        Ending { promise: Promise::Nothing, ..Ending::new(Outcome::Forwarded, reason, message) }
    }

    fn dropped(&self, mut record: Record, reason: &'static str) -> Next {
        record.end(Outcome::Malformed, reason, None);
        record.close(&*self.observer);
        Next::Nothing
    }

    /// The closing event of every query that gets a reply.
    fn done(&self, mut record: Record, ending: Ending, out: &mut Vec<u8>) -> Next {
        record.end(ending.outcome, ending.reason, rcode_of(&ending));
        record.close(&*self.observer);
        *out = ending.reply;
        Next::Reply
    }

    /// The cache, if there is one.
    pub fn cache(&self) -> Option<&Cache> {
        self.cache.as_deref()
    }

    /// What prefetch and poller have done.
    pub fn background(&self) -> &Background {
        &self.background
    }

    fn count(&self, used: CacheUse) {
        if let Some(cache) = &self.cache {
            cache.count(used);
        }
    }
}

/// How long servers may take when there is a stale answer (RFC 8767 section 5: clients wait for about two seconds).
const STALE_PATIENCE: std::time::Duration = std::time::Duration::from_millis(1_800);

impl Ask<'_> {
    /// Octets that the reply may have.
    fn limit(&self) -> usize {
        if self.tcp { usize::from(u16::MAX) } else { reply::udp_limit(self.query.edns) }
    }

    /// The same, so that it outlives the packet.
    fn into_owned(self) -> Ask<'static> {
        let Ask { query, served, rules, resolver, local, tcp, record, slot, stale } = self;
        Ask { query: query.into_owned(), served, rules, resolver, local, tcp, record, slot, stale }
    }
}

/// What the stages found out about an answer to a selected name.
struct Findings<'a> {
    rules: &'a RuleSet,
    /// Sorted.
    granted: Vec<IpAddr>,
    withheld: Option<Withheld>,
    limit: usize,
    settings: &'a Settings,
}

/// Why an address of a selected name is taken out.
#[derive(Clone, Copy)]
enum Withheld {
    Guard(Guarded),
    Resolver,
    Room(Full),
}

/// What of the answer may be learned, and why not the rest: nothing from a resolver that nobody vouches for, and
/// nothing that is guarded.
fn learn(
    ask: &Ask<'_>,
    answer: &Answer<'_>,
    rules: &RuleSet,
    directory: &Directory,
) -> (Option<Learned>, Option<Withheld>) {
    let Ok(mut learned) = answer.learn(&ask.query) else { return (None, None) };
    let server = ask.resolver.address;
    let (_, trusted) = directory.route(&ask.query.name, &ask.resolver);
    if !trusted && !rules.trusts(server.ip(), protocol(ask.tcp), server.port()) {
        return (None, Some(Withheld::Resolver));
    }
    let mut withheld = None;
    learned.addresses.retain(|address| {
        let admitted = directory.guard.admit(&learned.name, *address);
        withheld = admitted.err().map(Withheld::Guard).or(withheld);
        admitted.is_ok()
    });
    (Some(learned).filter(|learned| !learned.addresses.is_empty()), withheld)
}

/// Whether the workload may ask, and by which rule.
fn verdict(rules: &RuleSet, resolver: &Resolver, tcp: bool, query: &Query<'_>) -> Result<Option<RuleRef>, Denied> {
    let asked = (&query.name, query.qtype, query.qclass);
    let (own, protocol) = (resolver.address, protocol(tcp));
    let verdict = rules.judge(own, protocol, asked);
    match (&verdict, resolver.stands_for) {
        (Err(Denied::Server(_)), Some(other)) if !rules.denies_server(own.ip(), protocol, own.port()) => {
            rules.judge(other, protocol, asked)
        }
        _ => verdict,
    }
}

fn protocol(tcp: bool) -> Protocol {
    if tcp { Protocol::Tcp } else { Protocol::Udp }
}

#[cfg(test)]
mod tests;
