//! One query from packet to reply. The only file that knows the order.
//!
//! **Invariant:** a reply leaves only after the kernel holds every grant that it implies (I4). When the kernel can't,
//! the reply is SERVFAIL and holds no address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use arc_swap::ArcSwap;

use crate::clock;
use crate::engine::answer::{Answer, Learned};
use crate::engine::bits::Bits;
use crate::engine::fqdn::{FqdnTable, Full, Plan};
use crate::engine::grant::MonoNs;
use crate::engine::guard::Guarded;
use crate::engine::query::Query;
use crate::engine::reply::rebuild::{Changes, Rebuilt, rebuilt};
use crate::engine::reply::{self, Additional, Ede, EdeCode, Rcode};
use crate::engine::ruleset::{Protocol, RuleSet};
use crate::engine::verdict::{Denied, RuleRef};
use crate::engine::wire::{CLASS_IN, rtype};
use crate::kernel::GrantStore;
use crate::observe::{Observer, Outcome};
use crate::upstream::{Upstream, UpstreamError};

pub mod directory;
pub mod rate;
mod record;

use directory::Taken;
pub use directory::{Directory, RejectCode, Resolver, Served, Settings};
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
    /// Send this, or nothing.
    Reply(Option<Vec<u8>>),
    /// Ask the resolver: [`Proxy::finish`].
    Ask(Box<Ask>),
}

/// A query that may go up.
pub struct Ask {
    query: Query<'static>,
    served: Arc<Served>,
    rules: Arc<RuleSet>,
    resolver: Resolver,
    tcp: bool,
    record: Record,
    /// Counted as under way until it is dropped.
    _slot: Taken,
}

/// Serves queries: shared by all workers.
pub struct Proxy {
    pub(crate) directory: Arc<ArcSwap<Directory>>,
    grants: Arc<dyn GrantStore>,
    observer: Arc<dyn Observer>,
    now: fn() -> MonoNs,
    pub(crate) connections: Arc<AtomicU32>,
}

impl Proxy {
    /// A proxy for the endpoints in `directory`, on the kernel's clock.
    pub fn new(directory: Arc<ArcSwap<Directory>>, grants: Arc<dyn GrantStore>, observer: Arc<dyn Observer>) -> Proxy {
        Proxy { directory, grants, observer, now: clock::mono, connections: Arc::default() }
    }

    /// Whatever can be said without asking anyone: endpoint, query, verdict. A cache would answer here.
    pub fn accept(&self, packet: &Packet<'_>) -> Next {
        let directory = self.directory.load();
        let mut record = Record::new(packet);
        // Nothing is answered to a stranger, not even that it is malformed.
        let Some(served) = directory.endpoint(packet.interface, packet.client.ip()) else {
            return self.dropped(record, "no_endpoint");
        };
        record.endpoint(served);
        let Some(resolver) = directory.resolver(packet.local) else {
            return self.dropped(record, "unknown_resolver");
        };
        record.server(resolver.address);
        let in_time = served.rate.take(directory.settings.queries_per_second, (self.now)());
        let query = match Query::parse(packet.bytes) {
            Ok(query) => query,
            Err(_) if !in_time => return self.dropped(record, "rate"),
            Err(error) => {
                let reply = error.rcode().and_then(|rcode| reply::unreadable(packet.bytes, rcode));
                return self.done(record, Outcome::Malformed, error.reason(), reply);
            }
        };
        record.query(&query);
        if !in_time {
            let ede = Ede::new(EdeCode::Other, "too many queries of this workload in this second");
            let reply = reply::failed(&query, Rcode::Refused, Some(&ede));
            return self.done(record, Outcome::Failed, "rate", Some(reply));
        }
        if query.edns.is_some_and(|edns| edns.version > 0) {
            let reply = reply::failed(&query, Rcode::BadVers, None);
            return self.done(record, Outcome::Malformed, "edns_version", Some(reply));
        }
        let rules = served.rules.load_full();
        match verdict(&rules, resolver, packet.tcp, &query) {
            Ok(rule) => record.rule(rule),
            Err(denied) => {
                let reply = denied_reply(&query, &denied, served, &directory.settings);
                record.rule(first_rule(&denied));
                return self.done(record, Outcome::Denied, denied.reason(), Some(reply));
            }
        }
        let Some(slot) = Taken::take(&served.under_way, directory.settings.queries_in_flight) else {
            let ede = Ede::new(EdeCode::Other, "too many queries of this workload are under way");
            let reply = reply::failed(&query, Rcode::ServFail, Some(&ede));
            return self.done(record, Outcome::Failed, "queries_in_flight", Some(reply));
        };
        Next::Ask(Box::new(Ask {
            query: query.into_owned(),
            served: served.clone(),
            rules,
            resolver: resolver.clone(),
            tcp: packet.tcp,
            record,
            _slot: slot,
        }))
    }

    /// Counts a connection that is closed before anything was asked.
    pub fn turned_away(&self, packet: &Packet<'_>, reason: &'static str) {
        let mut record = Record::new(packet);
        let directory = self.directory.load();
        if let Some(served) = directory.endpoint(packet.interface, packet.client.ip()) {
            record.endpoint(served);
        }
        record.close(&*self.observer, Outcome::Malformed, reason, None);
    }

    /// Asks the resolver, lets the kernel hold what the answer grants, and says what goes back.
    pub async fn finish(&self, ask: Box<Ask>, upstream: &Upstream) -> Option<Vec<u8>> {
        let mut ask = *ask;
        let directory = self.directory.load_full();
        let within = directory.settings.upstream_timeout;
        let (route, _) = directory.route(&ask.query.name, &ask.resolver);
        let started = clock::now();
        let resolved = upstream.resolve(route, &ask.query, within).await;
        ask.record.upstream(clock::now().saturating_duration_since(started));
        let directory = self.directory.load();
        let (outcome, reason, reply) = match resolved {
            Ok(octets) => match Answer::parse(&octets) {
                Ok(answer) => self.answered(&mut ask, &answer, &directory),
                Err(error) => {
                    let ede = Ede::new(EdeCode::InvalidData, error.to_string());
                    (Outcome::Failed, "answer", reply::failed(&ask.query, Rcode::ServFail, Some(&ede)))
                }
            },
            Err(error) => {
                let ede = Ede::new(ede_of(error), format!("{}: {error}", ask.resolver.address));
                (Outcome::Failed, error.reason(), reply::failed(&ask.query, Rcode::ServFail, Some(&ede)))
            }
        };
        match self.done(ask.record, outcome, reason, Some(reply)) {
            Next::Reply(reply) => reply,
            Next::Ask(_) => None,
        }
    }

    /// The stages answer, grant and reply. No await: the table stays locked from the plan until it is recorded.
    fn answered(&self, ask: &mut Ask, answer: &Answer<'_>, directory: &Directory) -> Ending {
        let limit = if ask.tcp { usize::from(u16::MAX) } else { reply::udp_limit(&ask.query) };
        let served = ask.served.clone();
        let mut table = served.table();
        // The policy may have changed while the resolver thought.
        let rules = ask.served.rules.load_full();
        if !Arc::ptr_eq(&rules, &ask.rules) {
            match verdict(&rules, &ask.resolver, ask.tcp, &ask.query) {
                Ok(rule) => ask.record.rule(rule),
                Err(denied) => {
                    ask.record.rule(first_rule(&denied));
                    let reply = denied_reply(&ask.query, &denied, &ask.served, &directory.settings);
                    return (Outcome::Denied, denied.reason(), reply);
                }
            }
        }
        let outside = directory.guard.is_cluster_name(&ask.query.name);
        if outside || rules.groups_of(&ask.query.name) == Bits::NONE {
            drop(table);
            return relay(ask, answer, limit, &directory.settings);
        }
        if reply::least_octets(&ask.query, answer) > limit {
            // What is not handed on teaches nothing (I6); over TCP it will.
            return (Outcome::Forwarded, "truncated", reply::truncated(&ask.query, answer));
        }
        let (mut learned, mut withheld) = learn(ask, answer, &rules, directory);
        if let Some(found) = &learned {
            match table.plan(found, &rules, (self.now)(), &directory.settings.timing) {
                Ok(plan) => {
                    if let Err(reply) = self.install(ask, &mut table, plan) {
                        return reply;
                    }
                }
                // A hint is a help that a client can do without: it asks for the addresses next.
                Err(full) if matches!(ask.query.qtype, rtype::SVCB | rtype::HTTPS) => {
                    (learned, withheld) = (None, Some(Withheld::Room(full)));
                }
                Err(full) => return no_room(ask, full),
            }
        }
        drop(table);
        let granted = learned.map(|learned| learned.addresses).unwrap_or_default();
        filtered(ask, answer, &Findings { rules: &rules, granted, withheld, limit, settings: &directory.settings })
    }

    /// Lets the kernel hold the plan, and then the table. Otherwise: how the query ends.
    fn install(&self, ask: &mut Ask, table: &mut FqdnTable, plan: Plan) -> Result<(), Ending> {
        let started = clock::now();
        match ask.served.carry_out(&*self.grants, table, plan) {
            Ok(0) => Ok(()),
            Ok(rows) => {
                ask.record.installed(rows, clock::now().saturating_duration_since(started));
                Ok(())
            }
            Err(error) => {
                tracing::warn!(endpoint = %ask.served.id, %error, "the kernel did not take a grant");
                let ede = Ede::new(EdeCode::Other, "the kernel did not take the grant");
                Err((Outcome::Failed, "grant_write", reply::failed(&ask.query, Rcode::ServFail, Some(&ede))))
            }
        }
    }

    fn dropped(&self, record: Record, reason: &'static str) -> Next {
        self.done(record, Outcome::Malformed, reason, None)
    }

    /// The closing event of every message.
    fn done(&self, record: Record, outcome: Outcome, reason: &'static str, reply: Option<Vec<u8>>) -> Next {
        let rcode = reply.as_ref().map(|octets| match reason {
            "edns_version" => Rcode::BadVers as u16,
            _ => u16::from(octets[3] & 0xf),
        });
        record.close(&*self.observer, outcome, reason, rcode);
        Next::Reply(reply)
    }
}

/// How a query ends: for the record, and what goes back.
type Ending = (Outcome, &'static str, Vec<u8>);

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
    ask: &Ask,
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

/// The answer to a name that no toFQDNs selects: as it came.
fn relay(ask: &mut Ask, answer: &Answer<'_>, limit: usize, settings: &Settings) -> Ending {
    let message = if settings.compression {
        reply::relayed_within(&ask.query, answer, Additional::Whole, limit)
    } else {
        let changes = Changes { keep: None, compress: false, nothing_left: None };
        match rebuilt(&ask.query, answer, &changes) {
            Ok(rebuilt) => rebuilt.message,
            Err(malformed) => return unreadable_answer(ask, &malformed),
        }
    };
    fit(ask, answer, message, None, limit, "allowed")
}

/// The answer to a selected name: only with addresses that were granted now or that need no name.
fn filtered(ask: &mut Ask, answer: &Answer<'_>, findings: &Findings<'_>) -> Ending {
    let Findings { rules, granted, withheld, limit, settings } = findings;
    let clean = answer.records(0).chain(answer.records(1)).filter(|record| record.leads_somewhere()).all(|record| {
        record.class == CLASS_IN && record.leads_only_where(|address| granted.binary_search(&address).is_ok())
    });
    if clean && settings.compression {
        // Glue was granted to nobody, so it stays behind; it tells only what the workload can ask for.
        let message = reply::relayed_within(&ask.query, answer, Additional::OptOnly, *limit);
        return fit(ask, answer, message, None, *limit, "allowed");
    }
    let why = match withheld {
        Some(Withheld::Guard(guarded)) => format!("the address is guarded: {}", guarded.reason()),
        Some(Withheld::Resolver) => format!("no policy names the resolver {}", ask.resolver.address.ip()),
        Some(Withheld::Room(full)) => full.to_string(),
        None => "the addresses do not belong to the name asked for".to_owned(),
    };
    let keep = |address| granted.binary_search(&address).is_ok() || rules.opens_without_name(address);
    let nothing_left = Ede::new(EdeCode::Filtered, why);
    let changes = Changes { keep: Some(&keep), compress: settings.compression, nothing_left: Some(&nothing_left) };
    match rebuilt(&ask.query, answer, &changes) {
        Ok(Rebuilt { message, kept, taken }) => {
            let reason = match withheld {
                _ if taken == 0 => "allowed",
                Some(Withheld::Guard(_)) => "guard",
                Some(Withheld::Resolver) => "untrusted_resolver",
                Some(Withheld::Room(_)) => "grants_full",
                None => "off_chain",
            };
            fit(ask, answer, message, Some(kept), *limit, reason)
        }
        Err(malformed) => unreadable_answer(ask, &malformed),
    }
}

/// `message`, or the question alone if it is too long for a datagram to this asker.
fn fit(
    ask: &mut Ask,
    answer: &Answer<'_>,
    message: Vec<u8>,
    kept: Option<Vec<IpAddr>>,
    limit: usize,
    reason: &'static str,
) -> Ending {
    if message.len() > limit {
        return (Outcome::Forwarded, "truncated", reply::truncated(&ask.query, answer));
    }
    ask.record.answer(answer, kept);
    (Outcome::Forwarded, reason, message)
}

/// Whether the workload may ask, and by which rule. Without any rule only where egress is open and nothing is steered:
/// a policy that was just taken away.
fn verdict(rules: &RuleSet, resolver: &Resolver, tcp: bool, query: &Query<'_>) -> Result<Option<RuleRef>, Denied> {
    if query.qclass != CLASS_IN {
        return Err(Denied::Class);
    }
    // 128 to 255 are questions and meta types (RFC 6895 section 3.1): ANY, AXFR and IXFR among them. So is OPT.
    if matches!(query.qtype, 0 | 41 | 128..=255) {
        return Err(Denied::Type);
    }
    if query.name.is_refused_always() {
        return Err(Denied::Label);
    }
    if !rules.steered() && !rules.deny_egress {
        return Ok(None);
    }
    let server = resolver.address;
    rules.may_ask(server.ip(), protocol(tcp), server.port(), &query.name).map(Some)
}

fn protocol(tcp: bool) -> Protocol {
    if tcp { Protocol::Tcp } else { Protocol::Udp }
}

fn first_rule(denied: &Denied) -> Option<RuleRef> {
    match denied {
        Denied::Server(rules) | Denied::Name(rules) => rules.first().cloned(),
        Denied::Label | Denied::Type | Denied::Class => None,
    }
}

fn denied_reply(query: &Query<'_>, denied: &Denied, served: &Served, settings: &Settings) -> Vec<u8> {
    let policies = |rules: &[RuleRef]| {
        let mut names: Vec<String> = rules.iter().map(ToString::to_string).collect();
        names.dedup();
        names.join(", ")
    };
    let (code, text) = match denied {
        Denied::Server(rules) => (EdeCode::Prohibited, format!("{}: this server may not be asked", policies(rules))),
        Denied::Name(rules) => (EdeCode::Blocked, format!("{}: the name is not allowed", policies(rules))),
        Denied::Label => (EdeCode::Blocked, "no pattern matches a label of this name".to_owned()),
        Denied::Type => (EdeCode::Prohibited, "this type may not be asked for".to_owned()),
        Denied::Class => (EdeCode::Prohibited, "only class IN may be asked for".to_owned()),
    };
    // After REFUSED glibc and musl give up the search list, and never come to the name that is meant.
    let searched = matches!(denied, Denied::Name(_) | Denied::Label)
        && served.search.iter().any(|suffix| query.name != *suffix && query.name.ends_with(suffix));
    let rcode = match settings.reject {
        RejectCode::Refused if !searched => Rcode::Refused,
        RejectCode::Refused | RejectCode::NameError => Rcode::NxDomain,
    };
    reply::failed(query, rcode, Some(&Ede::new(code, text)))
}

fn no_room(ask: &Ask, full: Full) -> Ending {
    let ede = Ede::new(EdeCode::Other, full.to_string());
    (Outcome::Failed, "grants_full", reply::failed(&ask.query, Rcode::ServFail, Some(&ede)))
}

fn unreadable_answer(ask: &Ask, error: &dyn std::error::Error) -> Ending {
    let ede = Ede::new(EdeCode::InvalidData, error.to_string());
    (Outcome::Failed, "answer", reply::failed(&ask.query, Rcode::ServFail, Some(&ede)))
}

fn ede_of(error: UpstreamError) -> EdeCode {
    match error {
        UpstreamError::Timeout => EdeCode::NoReachableAuthority,
        UpstreamError::Network(_) => EdeCode::NetworkError,
        UpstreamError::Busy => EdeCode::Other,
    }
}
