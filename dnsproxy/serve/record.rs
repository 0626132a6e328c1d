//! The closing event of a query: one record for those who watch, one trace for those who look into it.
//!
//! It is carried through the stages of every query, so it holds what is at hand and makes text of it only at the end,
//! and only if someone reads it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::answer::Answer;
use crate::engine::name::Name;
use crate::engine::query::Query;
use crate::engine::verdict::{Denied, RuleRef};
use crate::engine::wire::type_text;
use crate::observe::{CacheUse, Counted, Observer, Outcome, QueryRecord};

use super::{Packet, Served};

/// A record that is filled while the query goes through the stages.
#[derive(Clone)]
pub(super) struct Record {
    endpoint: Option<Arc<Served>>,
    client: SocketAddr,
    server: SocketAddr,
    tcp: bool,
    asked: Option<(Name, u16)>,
    rule: Option<RuleRef>,
    /// Why it would have been refused, had its workload not been only audited.
    audited: Option<&'static str>,
    hint: Option<String>,
    addresses: Vec<IpAddr>,
    cnames: Vec<Name>,
    ttl: u32,
    counted: Counted,
}

impl Record {
    pub(super) fn new(packet: &Packet<'_>) -> Record {
        Record {
            endpoint: None,
            client: packet.client,
            // Until the resolver is known: where the packet went.
            server: SocketAddr::new(packet.local, 0),
            tcp: packet.tcp,
            asked: None,
            rule: None,
            audited: None,
            hint: None,
            addresses: Vec::new(),
            cnames: Vec::new(),
            ttl: 0,
            counted: Counted {
                outcome: Outcome::Failed,
                reason: "",
                rcode: None,
                cache: CacheUse::None,
                granted: 0,
                upstream: None,
                install: None,
            },
        }
    }

    pub(super) fn endpoint(&mut self, served: &Arc<Served>) {
        self.endpoint = Some(served.clone());
    }

    pub(super) fn server(&mut self, address: SocketAddr) {
        self.server = address;
    }

    pub(super) fn query(&mut self, query: &Query<'_>) {
        self.asked = Some((query.name.clone(), query.qtype));
    }

    pub(super) fn rule(&mut self, rule: Option<RuleRef>) {
        self.rule = rule;
    }

    /// Which rule refused it, and what its author may have meant.
    pub(super) fn denied(&mut self, denied: &Denied, query: &Query<'_>) {
        self.rule = denied.rules().first().cloned();
        self.hint = denied.hint(&query.name);
    }

    /// It would have ended for this reason, and goes on.
    pub(super) fn audit(&mut self, reason: &'static str) {
        self.audited.get_or_insert(reason);
    }

    pub(super) fn is_audited(&self) -> bool {
        self.audited.is_some()
    }

    pub(super) fn cache(&mut self, used: CacheUse) {
        self.counted.cache = used;
    }

    pub(super) fn upstream(&mut self, took: Duration) {
        self.counted.upstream = Some(took);
    }

    pub(super) fn installed(&mut self, rows: usize, took: Duration) {
        self.counted.granted = rows;
        self.counted.install = Some(took);
    }

    /// What of the answer goes back: all its addresses, or those that were `kept`.
    pub(super) fn answer(&mut self, answer: &Answer<'_>, kept: Option<Vec<IpAddr>>) {
        self.addresses = kept.unwrap_or_else(|| answer.addresses().collect());
        self.cnames = answer.cnames().collect();
        self.ttl = answer.ttl();
    }

    /// The same reply once more, to another packet.
    pub(super) fn again(&mut self, packet: &Packet<'_>, ttl: u32) {
        self.client = packet.client;
        self.ttl = ttl;
        self.counted = Counted { cache: CacheUse::Hot, granted: 0, upstream: None, install: None, ..self.counted };
    }

    pub(super) fn end(&mut self, outcome: Outcome, reason: &'static str, rcode: Option<u16>) {
        let (outcome, reason) = match (outcome, self.audited) {
            (Outcome::Forwarded, Some(reason)) => (Outcome::Audited, reason),
            _ => (outcome, reason),
        };
        self.counted = Counted { outcome, reason, rcode, ..self.counted };
    }

    pub(super) fn close(&self, observer: &dyn Observer) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            self.trace();
        }
        observer.query(&self.counted, &|| self.whole());
    }

    fn trace(&self) {
        let record = self.whole();
        let endpoint = record.endpoint.as_ref().map(|(id, _)| id.0);
        let span = tracing::debug_span!("query", endpoint, qtype = record.qtype);
        let rule = record.rule.as_ref().map(ToString::to_string);
        let upstream_ms = record.upstream.map(|took| took.as_millis() as u64);
        tracing::debug!(
            parent: &span,
            qname = record.qname,
            verdict = ?record.outcome,
            reason = record.reason,
            rule,
            hint = record.hint,
            cache = record.cache.text(),
            upstream_ms,
            granted = record.granted,
            rcode = record.rcode,
            "query"
        );
    }

    fn whole(&self) -> QueryRecord {
        let Counted { outcome, reason, rcode, cache, granted, upstream, install } = self.counted;
        let (qname, qtype) = match &self.asked {
            Some((name, qtype)) => (name.to_string(), type_text(*qtype)),
            None => (String::new(), String::new()),
        };
        QueryRecord {
            endpoint: self.endpoint.as_ref().map(|served| (served.id, served.pod.clone())),
            client: self.client,
            server: self.server,
            tcp: self.tcp,
            qname,
            qtype,
            outcome,
            reason,
            rule: self.rule.clone(),
            hint: self.hint.clone(),
            rcode,
            addresses: self.addresses.clone(),
            cnames: self.cnames.iter().map(ToString::to_string).collect(),
            ttl: self.ttl,
            granted,
            upstream,
            install,
            cache,
        }
    }
}
