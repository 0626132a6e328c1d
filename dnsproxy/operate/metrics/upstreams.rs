//! How the DNS servers fare, by the way they are asked. Which one it is stands in `namegate status`: an address is no
//! label.

use prometheus::{IntCounterVec, IntGaugeVec, Registry};

use crate::upstream::health::ServerHealth;

use super::{Metrics, counters, gauges, raise, whole};

/// The ways of asking, as in [`ServerHealth::transport`].
const TRANSPORTS: [&str; 3] = ["plain", "tls", "https"];

/// Sums over servers.
pub(super) struct Upstreams {
    queries: IntCounterVec,
    answers: IntCounterVec,
    timeouts: IntCounterVec,
    servers: IntGaugeVec,
}

impl Upstreams {
    pub fn new(r: &Registry) -> Upstreams {
        Upstreams {
            queries: counters(
                r,
                "namegate_upstream_queries_total",
                "Queries sent to DNS servers, copies and probes included.",
                &["transport"],
            ),
            answers: counters(
                r,
                "namegate_upstream_answers_total",
                "Answers of DNS servers that matched their query.",
                &["transport"],
            ),
            timeouts: counters(
                r,
                "namegate_upstream_timeouts_total",
                "Queries that a DNS server did not answer in time, or that could not be sent.",
                &["transport"],
            ),
            servers: gauges(
                r,
                "namegate_upstream_servers",
                "DNS servers that are or were asked; held: nobody waits for them until a probe is answered.",
                &["transport", "state"],
            ),
        }
    }
}

impl Metrics {
    /// How the DNS servers fare.
    pub fn upstreams(&self, servers: &[ServerHealth]) {
        let of = &self.upstreams;
        for transport in TRANSPORTS {
            let these = || servers.iter().filter(|server| server.transport == transport);
            raise(&of.queries.with_label_values(&[transport]), these().map(|server| server.queries).sum());
            raise(&of.answers.with_label_values(&[transport]), these().map(|server| server.answers).sum());
            raise(&of.timeouts.with_label_values(&[transport]), these().map(|server| server.timeouts).sum());
            let held = these().filter(|server| server.held_ms.is_some()).count() as u64;
            of.servers.with_label_values(&[transport, "held"]).set(whole(held));
            of.servers.with_label_values(&[transport, "used"]).set(whole(these().count() as u64 - held));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_summed_up_by_transport_and_none_is_named() {
        let server = |server: &str, transport: &str, queries, held_ms| ServerHealth {
            server: server.to_owned(),
            transport: transport.to_owned(),
            queries,
            answers: queries - 1,
            timeouts: 1,
            held_ms,
            ..ServerHealth::default()
        };
        let metrics = Metrics::new();
        metrics.upstreams(&[
            server("203.0.113.1:53", "plain", 10, None),
            server("203.0.113.2:53", "plain", 5, Some(900)),
            server("tls://203.0.113.1:853#dns.example", "tls", 3, None),
        ]);
        let text = String::from_utf8(metrics.text()).expect("text");
        for line in [
            r#"namegate_upstream_queries_total{transport="plain"} 15"#,
            r#"namegate_upstream_answers_total{transport="plain"} 13"#,
            r#"namegate_upstream_timeouts_total{transport="tls"} 1"#,
            r#"namegate_upstream_queries_total{transport="https"} 0"#,
            r#"namegate_upstream_servers{state="held",transport="plain"} 1"#,
            r#"namegate_upstream_servers{state="used",transport="plain"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(!text.contains("203.0.113"));
    }
}
