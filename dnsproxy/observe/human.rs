//! `-v`: a line for people, one a verdict.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use super::text::{clean, time_of_day};
use super::watchers::Record;
use super::{Outcome, PacketRecord, QueryRecord, Reason};
use crate::engine::endpoint::{EndpointId, PodRef};
use crate::engine::ruleset::Direction;

/// Whether standard error is a terminal that wants colours: `NO_COLOR` unset or empty (no-color.org), `TERM` not `dumb`.
pub fn colour_on_stderr() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Appends the record's line.
pub fn write(record: &Record, colour: bool, out: &mut Vec<u8>) {
    let (time, verdict, endpoint, rest) = match record {
        Record::Query(time, query) => (*time, of_query(query.outcome), &query.endpoint, query_text(query)),
        Record::Packet(packet) => (packet.time, of_packet(packet.reason), &packet.endpoint, packet_text(packet)),
    };
    let (word, paint) = verdict;
    let (on, off) = if colour { (paint, "\x1b[0m") } else { ("", "") };
    let _ = writeln!(out, "{} {on}{word:<9}{off} {:<34} {}", time_of_day(time), who(endpoint), rest);
}

const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";

fn of_query(outcome: Outcome) -> (&'static str, &'static str) {
    match outcome {
        Outcome::Forwarded => ("FORWARDED", GREEN),
        Outcome::Denied => ("DENIED", RED),
        Outcome::Audited => ("AUDIT", YELLOW),
        Outcome::Failed => ("FAILED", YELLOW),
        Outcome::Malformed => ("MALFORMED", YELLOW),
    }
}

fn of_packet(reason: Reason) -> (&'static str, &'static str) {
    match reason {
        Reason::Audit => ("AUDIT", YELLOW),
        reason if reason.passed() => ("FORWARDED", GREEN),
        _ => ("DROPPED", RED),
    }
}

fn who(endpoint: &Option<(EndpointId, PodRef)>) -> String {
    endpoint.as_ref().map_or_else(|| "-".to_owned(), |(_, pod)| clean(&pod.to_string()))
}

/// `DNS  api.example.com. A -> 192.0.2.1 ttl 30 granted 1 3.2 ms (allowed by payments/egress)`
fn query_text(query: &QueryRecord) -> String {
    let mut text = format!("DNS  {} {} -> ", clean(&query.qname), clean(&query.qtype));
    match (query.rcode, query.addresses.as_slice()) {
        (None, _) => text.push_str("no reply"),
        (Some(0), []) => text.push_str("no address"),
        (Some(0), addresses) => {
            const SHOWN: usize = 4;
            let shown: Vec<_> = addresses.iter().take(SHOWN).map(ToString::to_string).collect();
            text.push_str(&shown.join(","));
            if addresses.len() > SHOWN {
                let _ = write!(text, " and {} more", addresses.len() - SHOWN);
            }
            let _ = write!(text, " ttl {}", query.ttl);
        }
        (Some(rcode), _) => text.push_str(&rcode_name(rcode)),
    }
    if query.granted > 0 {
        let _ = write!(text, " granted {}", query.granted);
    }
    if let Some(upstream) = query.upstream {
        let _ = write!(text, " {:.1} ms", upstream.as_secs_f64() * 1e3);
    }
    let _ = write!(text, " ({}", query.reason);
    if let Some(rule) = &query.rule {
        let _ = write!(text, " by {}", clean(&rule.to_string()));
    }
    if let Some(hint) = &query.hint {
        let _ = write!(text, ": {}", clean(hint));
    }
    text.push(')');
    text
}

/// `TCP  -> 192.0.2.1:443 api.example.com. (no_grant, rejected)`
fn packet_text(packet: &PacketRecord) -> String {
    let arrow = match packet.direction {
        Direction::Egress => "->",
        Direction::Ingress => "<-",
    };
    let mut text = format!("{:<4} {arrow} ", protocol_name(packet.protocol));
    match packet.remote() {
        Some(remote) if remote.port() == 0 => text.push_str(&remote.ip().to_string()),
        Some(remote) => text.push_str(&remote.to_string()),
        None => text.push_str("(not IP)"),
    }
    if let Some(name) = packet.names.first() {
        let _ = write!(text, " {}", clean(name));
    }
    match packet.audited {
        Some(reason) => drop(write!(text, " (would drop: {}", reason.text())),
        None => drop(write!(text, " ({}", packet.reason.text())),
    }
    if packet.rejected {
        text.push_str(", rejected");
    }
    if let Some(policy) = packet.policies.first() {
        let _ = write!(text, ", by {}", clean(&policy.to_string()));
    }
    if packet.suppressed > 0 {
        let _ = write!(text, ", {} more not shown", packet.suppressed);
    }
    text.push(')');
    text
}

/// The mnemonic of RFC 1035, 2136, 6895 for a response code.
pub(super) fn rcode_name(rcode: u16) -> String {
    const NAMES: [&str; 11] = [
        "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH",
        "NOTZONE",
    ];
    NAMES.get(usize::from(rcode)).map_or_else(|| format!("RCODE{rcode}"), |name| (*name).to_owned())
}

fn protocol_name(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMP6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{packet, query, rule};
    use super::*;

    #[track_caller]
    fn line(record: Record, expected: &str) {
        let mut out = Vec::new();
        write(&record, false, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
    }

    #[test]
    fn a_query_is_one_line() {
        line(
            query(|_| ()),
            "04:27:15.120 FORWARDED payments/reports                   DNS  api.github.com. A -> 192.0.2.1 ttl 30 granted 1 3.2 ms (allowed by payments/egress)",
        );
        line(
            query(|q| {
                (q.outcome, q.reason, q.rcode, q.upstream, q.granted) = (Outcome::Denied, "name", Some(5), None, 0);
                q.addresses.clear();
            }),
            "04:27:15.120 DENIED    payments/reports                   DNS  api.github.com. A -> REFUSED (name by payments/egress)",
        );
        line(
            query(|q| {
                (q.outcome, q.reason, q.rcode, q.upstream, q.granted) = (Outcome::Denied, "name", Some(5), None, 0);
                q.hint = Some("\"*.com\" spans one label".to_owned());
                q.addresses.clear();
            }),
            "04:27:15.120 DENIED    payments/reports                   DNS  api.github.com. A -> REFUSED (name by payments/egress: \"*.com\" spans one label)",
        );
    }

    #[test]
    fn a_packet_is_one_line() {
        line(
            packet(|p| p.policies = vec![rule("payments", "egress")]),
            "04:27:15.120 DROPPED   payments/reports                   TCP  -> 192.0.2.9:443 api.stripe.com. (no_grant, rejected, by payments/egress, 3 more not shown)",
        );
        line(
            packet(|p| {
                (p.direction, p.reason, p.rejected, p.suppressed) = (Direction::Ingress, Reason::Flow, false, 0)
            }),
            "04:27:15.120 FORWARDED payments/reports                   TCP  <- 198.51.100.11:40000 api.stripe.com. (flow)",
        );
        line(
            packet(|p| (p.endpoint, p.source, p.destination, p.reason) = (None, None, None, Reason::Ethertype)),
            "04:27:15.120 DROPPED   -                                  TCP  -> (not IP) api.stripe.com. (ethertype, rejected, 3 more not shown)",
        );
    }

    #[test]
    fn no_control_octet_of_a_name_reaches_the_terminal() {
        let mut out = Vec::new();
        write(&query(|q| q.qname = "a\u{1b}[2J\r\n\u{9b}.example.".to_owned()), false, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.trim_end_matches('\n').chars().all(|c| !c.is_control()), "{text:?}");
    }

    #[test]
    fn colours_are_around_the_verdict_only() {
        let mut out = Vec::new();
        write(&packet(|_| ()), true, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains(" \x1b[31mDROPPED  \x1b[0m payments/reports"), "{text:?}");
        assert_eq!(text.matches('\x1b').count(), 2);
    }
}
