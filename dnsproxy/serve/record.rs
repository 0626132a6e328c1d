//! The closing event of a query: one record for those who watch, one trace for those who look into it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::engine::answer::Answer;
use crate::engine::query::Query;
use crate::engine::verdict::{Denied, RuleRef};
use crate::engine::wire::type_text;
use crate::observe::{Observer, Outcome, QueryRecord};

use super::{Packet, Served};

/// A record that is filled while the query goes through the stages.
pub(super) struct Record(QueryRecord);

impl Record {
    pub(super) fn new(packet: &Packet<'_>) -> Record {
        Record(QueryRecord {
            endpoint: None,
            client: packet.client,
            // Until the resolver is known: where the packet went.
            server: SocketAddr::new(packet.local, 0),
            tcp: packet.tcp,
            qname: String::new(),
            qtype: String::new(),
            outcome: Outcome::Failed,
            reason: "",
            rule: None,
            hint: None,
            rcode: None,
            addresses: Vec::new(),
            cnames: Vec::new(),
            ttl: 0,
            granted: 0,
            upstream: None,
            install: None,
        })
    }

    pub(super) fn endpoint(&mut self, served: &Served) {
        self.0.endpoint = Some((served.id, served.pod.clone()));
    }

    pub(super) fn server(&mut self, address: SocketAddr) {
        self.0.server = address;
    }

    pub(super) fn query(&mut self, query: &Query<'_>) {
        self.0.qname = query.name.to_string();
        self.0.qtype = type_text(query.qtype);
    }

    pub(super) fn rule(&mut self, rule: Option<RuleRef>) {
        self.0.rule = rule;
    }

    /// Which rule refused it, and what its author may have meant.
    pub(super) fn denied(&mut self, denied: &Denied, query: &Query<'_>) {
        self.0.rule = denied.rules().first().cloned();
        self.0.hint = denied.hint(&query.name);
    }

    pub(super) fn upstream(&mut self, took: Duration) {
        self.0.upstream = Some(took);
    }

    pub(super) fn installed(&mut self, rows: usize, took: Duration) {
        self.0.granted = rows;
        self.0.install = Some(took);
    }

    /// What of the answer goes back: all its addresses, or those that were `kept`.
    pub(super) fn answer(&mut self, answer: &Answer<'_>, kept: Option<Vec<IpAddr>>) {
        self.0.addresses = kept.unwrap_or_else(|| answer.addresses().collect());
        self.0.cnames = answer.cnames().map(|name| name.to_string()).collect();
        self.0.ttl = answer.ttl();
    }

    pub(super) fn close(mut self, observer: &dyn Observer, outcome: Outcome, reason: &'static str, rcode: Option<u16>) {
        self.0.outcome = outcome;
        self.0.reason = reason;
        self.0.rcode = rcode;
        let record = &self.0;
        if tracing::enabled!(tracing::Level::DEBUG) {
            let endpoint = record.endpoint.as_ref().map(|(id, _)| id.0);
            let span = tracing::debug_span!("query", endpoint, qtype = record.qtype);
            let rule = record.rule.as_ref().map(ToString::to_string);
            let upstream_ms = record.upstream.map(|took| took.as_millis() as u64);
            tracing::debug!(
                parent: &span,
                qname = record.qname,
                verdict = ?outcome,
                reason,
                rule,
                hint = record.hint,
                cache = "off",
                upstream_ms,
                granted = record.granted,
                rcode,
                "query"
            );
        }
        observer.query(record);
    }
}
