//! Records in Hubble's JSON export form: one `{"flow":{…},"node_name":…,"time":…}` a line.
//!
//! Field names and enum texts are those of Cilium's `api/v1/flow/flow.proto` in protojson with `UseProtoNames`, so that
//! `hubble observe --input-file` reads a file of them. Its reader takes lines of up to 64 KiB, refuses an enum text
//! that it doesn't know, and warns of unknown fields: hence the caps below, and only enum texts and fields that Cilium
//! has had since 1.16. What has no field there (namegate's reason, rejected, suppressed) stands in `Summary`.
//!
//! One record tells of a whole query: an answered one as Cilium's response record (source is the DNS server), a refused
//! one as its denied request.

mod message;

use std::net::SocketAddr;

use self::message::*;
use super::text::{clean, rfc3339};
use super::watchers::{Known, Record, Workload};
use super::{Outcome, PacketRecord, QueryRecord, Reason, human};
use crate::engine::ruleset::Direction;
use crate::engine::verdict::RuleRef;

pub use self::message::DropReason;

/// How many addresses, names, labels and policies a record lists at most, so that a line stays under 64 KiB.
const ADDRESSES: usize = 256;
const NAMES: usize = 8;
const LABELS: usize = 32;
const POLICIES: usize = 8;
/// How many characters of a name are kept. One of 255 octets, each escaped, has 1020.
const NAME_CHARS: usize = 1_024;
/// How many characters of a label are kept. Kubernetes allows 253 + 1 + 63 for the key and 63 for the value.
const LABEL_CHARS: usize = 400;

/// Appends the record's line.
pub fn write(record: &Record, known: &Known, node_name: &str, out: &mut Vec<u8>) {
    let (time, flow) = match record {
        Record::Query(time, query) => (rfc3339(*time), of_query(query, known)),
        Record::Packet(packet) => (rfc3339(packet.time), of_packet(packet, known)),
    };
    let flow = Flow { time: time.clone(), node_name: node_name.to_owned(), ..flow };
    let line = Response { flow, node_name, time };
    serde_json::to_writer(&mut *out, &line).expect("a record has no map keys that are no strings");
    out.push(b'\n');
}

fn of_query(query: &QueryRecord, known: &Known) -> Flow {
    let answered = matches!(query.outcome, Outcome::Forwarded | Outcome::Audited | Outcome::Failed);
    let (source, destination) = if answered { (query.server, query.client) } else { (query.client, query.server) };
    let ports = Ports { source_port: source.port().into(), destination_port: destination.port().into() };
    let l4 = if query.tcp { Layer4::Tcp { ports, flags: None } } else { Layer4::Udp(ports) };
    let client = match &query.endpoint {
        Some((id, pod)) => {
            let labels = known.workloads.get(&query.client.ip()).filter(|workload| workload.pod == *pod);
            Endpoint {
                id: id.0,
                identity: 0,
                namespace: short(&pod.namespace),
                labels: labels.map_or_else(Vec::new, |workload| labels_of(workload)),
                pod_name: short(&pod.name),
            }
        }
        None => endpoint_of(query.client, known),
    };
    let server = endpoint_of(query.server, known);
    let service = service_of(query.server, known);
    let by: Vec<_> = query.rule.iter().map(policy).collect();
    let denied = matches!(query.outcome, Outcome::Denied | Outcome::Audited);
    let (allowed_by, denied_by) = if denied { (Vec::new(), by) } else { (by, Vec::new()) };
    let (source_end, destination_end) = if answered { (server, client) } else { (client, server) };
    let (source_service, destination_service) = if answered { (service, None) } else { (None, service) };
    Flow {
        verdict: match query.outcome {
            Outcome::Forwarded => Verdict::Forwarded,
            Outcome::Audited => Verdict::Audit,
            Outcome::Denied | Outcome::Malformed => Verdict::Dropped,
            Outcome::Failed => Verdict::Error,
        },
        drop_reason: denied.then_some(DropReason::PolicyDenied as u32),
        drop_reason_desc: denied.then_some(DropReason::PolicyDenied),
        ip: Some(ip(source, destination)),
        l4: Some(l4),
        source: Some(source_end),
        destination: Some(destination_end),
        kind: FlowType::L7,
        l7: Some(Layer7 {
            kind: if answered { Layer7Type::Response } else { Layer7Type::Request },
            latency_ns: query.upstream.map(|took| took.as_nanos().to_string()),
            dns: dns(query),
        }),
        event_type: EventType { kind: EventType::ACCESS_LOG, sub_type: None },
        source_service,
        destination_service,
        traffic_direction: TrafficDirection::Egress,
        is_reply: Some(answered),
        egress_allowed_by: allowed_by,
        egress_denied_by: denied_by,
        summary: query_summary(query, answered),
        ..Flow::default()
    }
}

fn dns(query: &QueryRecord) -> Dns {
    let mut rrtypes = Vec::new();
    let types = [
        ("CNAME", !query.cnames.is_empty()),
        ("A", query.addresses.iter().any(|address| address.is_ipv4())),
        ("AAAA", query.addresses.iter().any(|address| address.is_ipv6())),
    ];
    rrtypes.extend(types.into_iter().filter(|(_, there)| *there).map(|(name, _)| name));
    Dns {
        query: short(&query.qname),
        ips: query.addresses.iter().take(ADDRESSES).map(ToString::to_string).collect(),
        ttl: query.ttl,
        cnames: all_short(&query.cnames, NAMES),
        observation_source: "proxy",
        rcode: query.rcode.unwrap_or(0).into(),
        qtypes: vec![short(&query.qtype)],
        rrtypes,
    }
}

/// As Hubble sums up a DNS record, with namegate's reason after it.
fn query_summary(query: &QueryRecord, answered: bool) -> String {
    let (qname, qtype) = (short(&query.qname), short(&query.qtype));
    if !answered {
        let hint = query.hint.as_ref().map_or_else(String::new, |hint| format!("; {}", cut(hint, NAME_CHARS)));
        return format!("DNS Query {qname} {qtype}; {}{hint}", query.reason);
    }
    let mut parts = Vec::new();
    match query.rcode {
        None => parts.push("no reply".to_owned()),
        Some(0) => {
            const SHOWN: usize = 8;
            if !query.addresses.is_empty() {
                let shown: Vec<_> = query.addresses.iter().take(SHOWN).map(ToString::to_string).collect();
                parts.push(format!("\"{}\"", shown.join(",")));
            }
            if !query.cnames.is_empty() {
                parts.push(format!("CNAMEs: \"{}\"", all_short(&query.cnames, NAMES).join(",")));
            }
        }
        Some(rcode) => parts.push(format!("RCode: {}", human::rcode_name(rcode))),
    }
    format!("DNS Answer {} TTL: {} (Proxy {qname} {qtype}); {}", parts.join(" "), query.ttl, query.reason)
}

fn of_packet(packet: &PacketRecord, known: &Known) -> Flow {
    let reason = packet.reason;
    // An audited packet passed; its reason is the one for which it would not have.
    let dropped = packet.audited.unwrap_or(reason).drop_reason();
    let verdict = match reason {
        Reason::Audit => Verdict::Audit,
        Reason::Steered => Verdict::Redirected,
        _ if dropped.is_some() => Verdict::Dropped,
        _ => Verdict::Forwarded,
    };
    let (event_type, policy_match_type, point) = event_of(packet);
    let by: Vec<_> = packet.policies.iter().take(POLICIES).map(policy).collect();
    let names = all_short(&packet.names, NAMES).iter().map(|name| name.trim_end_matches('.').to_owned()).collect();
    let (source_names, destination_names) = match packet.direction {
        Direction::Egress => (Vec::new(), names),
        Direction::Ingress => (names, Vec::new()),
    };
    let mut flow = Flow {
        verdict,
        drop_reason: dropped.map(|reason| reason as u32),
        drop_reason_desc: dropped,
        kind: FlowType::L3L4,
        source_names,
        destination_names,
        event_type,
        traffic_direction: match packet.opened() {
            Direction::Egress => TrafficDirection::Egress,
            Direction::Ingress => TrafficDirection::Ingress,
        },
        policy_match_type,
        trace_observation_point: point,
        is_reply: Some(packet.reply),
        interface: Some(Interface { index: packet.ifindex, name: clean(&packet.interface) }),
        summary: packet_summary(packet),
        ..Flow::default()
    };
    match (packet.opened(), dropped.is_some()) {
        (Direction::Egress, false) => flow.egress_allowed_by = by,
        (Direction::Egress, true) => flow.egress_denied_by = by,
        (Direction::Ingress, false) => flow.ingress_allowed_by = by,
        (Direction::Ingress, true) => flow.ingress_denied_by = by,
    }
    if let (Some(source), Some(destination)) = (packet.source, packet.destination) {
        flow.ip = Some(ip(source, destination));
        flow.l4 = layer4(packet, source, destination);
        flow.source = Some(endpoint_of(source, known));
        flow.destination = Some(endpoint_of(destination, known));
        flow.source_service = service_of(source, known);
        flow.destination_service = service_of(destination, known);
    }
    // The interface says whose packet it is, whatever address stands in it.
    if let Some((id, pod)) = &packet.endpoint {
        let own = match packet.direction {
            Direction::Egress => &mut flow.source,
            Direction::Ingress => &mut flow.destination,
        };
        let own = own.get_or_insert_default();
        if own.pod_name != pod.name || own.namespace != pod.namespace {
            *own = Endpoint { namespace: short(&pod.namespace), pod_name: short(&pod.name), ..Endpoint::default() };
        }
        own.id = id.0;
    }
    flow
}

/// Which of Cilium's events a verdict is: a drop, a policy verdict, or a trace.
fn event_of(packet: &PacketRecord) -> (EventType, u32, Option<TracePoint>) {
    // PolicyMatchL3L4 and PolicyMatchAll of pkg/monitor/api.
    const L3_L4: u32 = 2;
    const ALL: u32 = 4;
    let verdict = EventType { kind: EventType::POLICY_VERDICT, sub_type: None };
    let trace = |sub_type, point| (EventType { kind: EventType::TRACE, sub_type: Some(sub_type) }, 0, Some(point));
    match (packet.reason, packet.reason.drop_reason()) {
        (_, Some(drop)) => (EventType { kind: EventType::DROP, sub_type: Some(drop as i32) }, 0, None),
        (Reason::Granted | Reason::Cidr | Reason::Peer | Reason::Service, _) => (verdict, L3_L4, None),
        (Reason::DefaultAllow | Reason::Unenforced, _) => (verdict, ALL, None),
        (Reason::Audit, _) => (verdict, 0, None),
        (Reason::Steered, _) => trace(1, TracePoint::ToProxy),
        _ => match packet.direction {
            Direction::Egress => trace(5, TracePoint::FromEndpoint),
            Direction::Ingress => trace(0, TracePoint::ToEndpoint),
        },
    }
}

fn layer4(packet: &PacketRecord, source: SocketAddr, destination: SocketAddr) -> Option<Layer4> {
    let ports = Ports { source_port: source.port().into(), destination_port: destination.port().into() };
    let icmp = IcmpType { number: packet.icmp_type.into() };
    Some(match packet.protocol {
        6 => Layer4::Tcp { ports, flags: Some(TcpFlags::of(packet.tcp_flags)) },
        17 => Layer4::Udp(ports),
        132 => Layer4::Sctp(ports),
        1 => Layer4::ICMPv4(icmp),
        58 => Layer4::ICMPv6(icmp),
        _ => return None,
    })
}

/// As Hubble sums up a packet, with what it has no field for after it.
fn packet_summary(packet: &PacketRecord) -> String {
    let mut text = match packet.protocol {
        _ if packet.source.is_none() => "not IP".to_owned(),
        6 => format!("TCP Flags: {}", TcpFlags::text(packet.tcp_flags)),
        17 => "UDP".to_owned(),
        132 => "SCTP".to_owned(),
        1 => format!("ICMPv4 type {}", packet.icmp_type),
        58 => format!("ICMPv6 type {}", packet.icmp_type),
        other => format!("protocol {other}"),
    };
    text.push_str("; ");
    text.push_str(packet.audited.unwrap_or(packet.reason).text());
    if packet.rejected {
        text.push_str(", rejected");
    }
    if packet.suppressed > 0 {
        text.push_str(&format!(", {} more not shown", packet.suppressed));
    }
    text
}

fn ip(source: SocketAddr, destination: SocketAddr) -> Ip {
    let version = if source.is_ipv4() { IpVersion::IPv4 } else { IpVersion::IPv6 };
    Ip { source: source.ip().to_string(), destination: destination.ip().to_string(), version }
}

/// Who has this address. An address that nobody is known by is the world's, as the kernel takes it too.
fn endpoint_of(address: SocketAddr, known: &Known) -> Endpoint {
    // Cilium's reserved identities.
    const HOST: u32 = 1;
    const WORLD: u32 = 2;
    const REMOTE_NODE: u32 = 6;
    let reserved = |identity, label: &str| Endpoint { identity, labels: vec![label.to_owned()], ..Endpoint::default() };
    if let Some(workload) = known.workloads.get(&address.ip()) {
        Endpoint {
            id: workload.endpoint.map_or(0, |id| id.0),
            identity: 0,
            namespace: short(&workload.pod.namespace),
            labels: labels_of(workload),
            pod_name: short(&workload.pod.name),
        }
    } else if known.host.contains(&address.ip()) || known.own.contains(&address.ip()) {
        reserved(HOST, "reserved:host")
    } else if known.nodes.contains(&address.ip()) {
        reserved(REMOTE_NODE, "reserved:remote-node")
    } else if known.services.contains_key(&address.ip()) {
        Endpoint::default()
    } else {
        reserved(WORLD, "reserved:world")
    }
}

fn service_of(address: SocketAddr, known: &Known) -> Option<Service> {
    let service = known.services.get(&address.ip())?;
    Some(Service { name: short(&service.name), namespace: short(&service.namespace) })
}

/// The labels are those that Cilium derives from a policy object.
fn policy(rule: &RuleRef) -> Policy {
    let (name, namespace) = (short(&rule.0.policy), short(&rule.0.namespace));
    let mut labels = vec![
        format!("k8s:io.cilium.k8s.policy.derived-from={}", short(&rule.0.kind)),
        format!("k8s:io.cilium.k8s.policy.name={name}"),
    ];
    if !namespace.is_empty() {
        labels.push(format!("k8s:io.cilium.k8s.policy.namespace={namespace}"));
    }
    Policy { name, namespace, labels }
}

fn labels_of(workload: &Workload) -> Vec<String> {
    workload.labels.iter().take(LABELS).map(|label| cut(label, LABEL_CHARS)).collect()
}

fn all_short(names: &[String], limit: usize) -> Vec<String> {
    names.iter().take(limit).map(|name| short(name)).collect()
}

fn short(name: &str) -> String {
    cut(name, NAME_CHARS)
}

/// Without control characters, and at most `limit` characters of it.
fn cut(text: &str, limit: usize) -> String {
    let mut text = clean(text);
    if let Some((end, _)) = text.char_indices().nth(limit) {
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests;
