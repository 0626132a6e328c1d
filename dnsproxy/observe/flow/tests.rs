use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::samples::{known, packet, query, rule};
use super::*;

fn parsed(record: &Record) -> Value {
    let mut out = Vec::new();
    write(record, &known(), "node-1", &mut out);
    assert_eq!(out.iter().filter(|octet| **octet == b'\n').count(), 1, "one line");
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn an_answered_query_is_cilium_s_response_record() {
    let expected = json!({
        "flow": {
            "time": "2026-11-21T04:27:15.120000000Z",
            "verdict": "FORWARDED",
            "IP": { "source": "198.18.0.10", "destination": "198.51.100.11", "ipVersion": "IPv4" },
            "l4": { "UDP": { "source_port": 53, "destination_port": 40000 } },
            "source": {},
            "destination": {
                "ID": 7, "namespace": "payments", "pod_name": "reports",
                "labels": ["k8s:app=reports", "k8s:io.kubernetes.pod.namespace=payments"]
            },
            "Type": "L7",
            "node_name": "node-1",
            "l7": {
                "type": "RESPONSE", "latency_ns": "3200000",
                "dns": {
                    "query": "api.github.com.", "ips": ["192.0.2.1"], "ttl": 30,
                    "observation_source": "proxy", "qtypes": ["A"], "rrtypes": ["A"]
                }
            },
            "event_type": { "type": 129 },
            "source_service": { "name": "kube-dns", "namespace": "kube-system" },
            "traffic_direction": "EGRESS",
            "is_reply": true,
            "egress_allowed_by": [{
                "name": "egress", "namespace": "payments",
                "labels": [
                    "k8s:io.cilium.k8s.policy.derived-from=CiliumNetworkPolicy",
                    "k8s:io.cilium.k8s.policy.name=egress",
                    "k8s:io.cilium.k8s.policy.namespace=payments"
                ]
            }],
            "Summary": "DNS Answer \"192.0.2.1\" TTL: 30 (Proxy api.github.com. A); allowed"
        },
        "node_name": "node-1",
        "time": "2026-11-21T04:27:15.120000000Z"
    });
    assert_eq!(parsed(&query(|_| ())), expected);
}

#[test]
fn a_refused_query_is_cilium_s_denied_request() {
    let flow = &parsed(&query(|q| {
        (q.outcome, q.reason, q.rcode, q.upstream, q.tcp) = (Outcome::Denied, "name", Some(5), None, true);
        q.addresses.clear();
    }))["flow"];
    assert_eq!((&flow["verdict"], &flow["drop_reason_desc"]), (&json!("DROPPED"), &json!("POLICY_DENIED")));
    assert_eq!((&flow["IP"]["source"], &flow["is_reply"]), (&json!("198.51.100.11"), &json!(false)));
    assert_eq!(flow["l4"], json!({ "TCP": { "source_port": 40000, "destination_port": 53 } }));
    assert_eq!(flow["l7"]["type"], "REQUEST");
    assert_eq!(flow["l7"]["dns"]["rcode"], 5);
    assert_eq!(flow["egress_denied_by"][0]["name"], "egress");
    assert_eq!(flow["destination_service"]["name"], "kube-dns");
    assert_eq!(flow["Summary"], "DNS Query api.github.com. A; name");
}

#[test]
fn a_near_miss_stands_in_the_summary() {
    let flow = &parsed(&query(|q| {
        (q.outcome, q.reason, q.rcode, q.upstream) = (Outcome::Denied, "name", Some(5), None);
        q.hint = Some("\"*.com\" spans one label".to_owned());
        q.addresses.clear();
    }))["flow"];
    assert_eq!(flow["Summary"], "DNS Query api.github.com. A; name; \"*.com\" spans one label");
}

#[test]
fn a_refused_packet_is_a_drop() {
    let expected = json!({
        "time": "2026-11-21T04:27:15.120000000Z",
        "verdict": "DROPPED",
        "drop_reason": 133,
        "IP": { "source": "198.51.100.11", "destination": "192.0.2.9", "ipVersion": "IPv4" },
        "l4": { "TCP": { "source_port": 40000, "destination_port": 443, "flags": { "SYN": true } } },
        "source": {
            "ID": 7, "namespace": "payments", "pod_name": "reports",
            "labels": ["k8s:app=reports", "k8s:io.kubernetes.pod.namespace=payments"]
        },
        "destination": { "identity": 2, "labels": ["reserved:world"] },
        "Type": "L3_L4",
        "node_name": "node-1",
        "destination_names": ["api.stripe.com"],
        "event_type": { "type": 1, "sub_type": 133 },
        "traffic_direction": "EGRESS",
        "drop_reason_desc": "POLICY_DENIED",
        "is_reply": false,
        "interface": { "index": 12, "name": "veth-rep" },
        "Summary": "TCP Flags: SYN; no_grant, rejected, 3 more not shown"
    });
    assert_eq!(parsed(&packet(|_| ()))["flow"], expected);
}

#[test]
fn a_granted_packet_is_a_policy_verdict() {
    let flow = &parsed(&packet(|p| {
        (p.reason, p.rejected, p.suppressed) = (Reason::Granted, false, 0);
        p.policies = vec![rule("payments", "egress")];
    }))["flow"];
    assert_eq!((&flow["verdict"], &flow["event_type"]), (&json!("FORWARDED"), &json!({ "type": 5 })));
    assert_eq!((&flow["policy_match_type"], &flow["egress_allowed_by"][0]["name"]), (&json!(2), &json!("egress")));
    assert_eq!(flow.get("drop_reason_desc"), None);
}

#[test]
fn policies_stand_where_direction_and_verdict_put_them() {
    use Direction::{Egress, Ingress};
    let cases = [
        (Reason::Granted, Egress, false, "egress_allowed_by"),
        (Reason::PolicyDeny, Egress, false, "egress_denied_by"),
        (Reason::Peer, Ingress, false, "ingress_allowed_by"),
        (Reason::PolicyDeny, Ingress, false, "ingress_denied_by"),
        (Reason::Flow, Egress, true, "ingress_allowed_by"),
    ];
    for (reason, direction, reply, field) in cases {
        let record = packet(|p| {
            (p.reason, p.direction, p.reply) = (reason, direction, reply);
            p.policies = vec![rule("payments", "web")];
        });
        let flow = &parsed(&record)["flow"];
        let found: Vec<_> = flow.as_object().unwrap().keys().filter(|key| key.ends_with("ed_by")).collect();
        assert_eq!(found, [field], "{reason:?} {direction:?}");
    }
}

#[test]
fn a_reply_names_the_direction_of_its_connection() {
    let flow = &parsed(&packet(|p| {
        (p.reason, p.direction, p.reply) = (Reason::Flow, Direction::Ingress, true);
        std::mem::swap(&mut p.source, &mut p.destination);
    }))["flow"];
    assert_eq!((&flow["traffic_direction"], &flow["is_reply"]), (&json!("EGRESS"), &json!(true)));
    assert_eq!((&flow["source_names"], &flow["destination"]["ID"]), (&json!(["api.stripe.com"]), &json!(7)));
    assert_eq!(flow["trace_observation_point"], "TO_ENDPOINT");
}

#[test]
fn a_spoofed_packet_is_its_interface_s_not_its_address_s() {
    let flow = &parsed(&packet(|p| {
        (p.reason, p.source) = (Reason::SpoofedAddress, Some("198.51.100.1:1".parse().unwrap()));
    }))["flow"];
    assert_eq!((&flow["source"]["pod_name"], &flow["source"]["ID"]), (&json!("reports"), &json!(7)));
    assert_eq!(flow["source"].get("identity"), None, "not the host's");
    assert_eq!(flow["drop_reason_desc"], "INVALID_SOURCE_IP");
}

#[test]
fn other_protocols_and_frames_that_are_not_ip_have_their_form() {
    let icmp = &parsed(&packet(|p| (p.protocol, p.icmp_type) = (1, 3)))["flow"]["l4"];
    assert_eq!(icmp, &json!({ "ICMPv4": { "type": 3 } }));
    let ping = &parsed(&packet(|p| {
        (p.protocol, p.icmp_type) = (58, 128);
        p.source = Some("[2001:db8:1::11]:0".parse().unwrap());
        p.destination = Some("[2001:db8::9]:0".parse().unwrap());
    }))["flow"];
    assert_eq!((&ping["l4"], &ping["IP"]["ipVersion"]), (&json!({ "ICMPv6": { "type": 128 } }), &json!("IPv6")));
    let frame = &parsed(&packet(|p| (p.source, p.destination, p.reason) = (None, None, Reason::Tagged)))["flow"];
    assert_eq!((frame.get("IP"), frame.get("l4"), &frame["source"]["ID"]), (None, None, &json!(7)));
}

#[test]
fn control_octets_are_spelt_out() {
    let mut out = Vec::new();
    write(&query(|q| q.qname = "a\u{1b}[2J\u{7f}\u{9b}\u{202e}.example.".to_owned()), &known(), "node-1", &mut out);
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains(r"a\\u{1b}[2J\\u{7f}\\u{9b}\\u{202e}.example."), "{text}");
    assert!(text.trim_end().chars().all(|c| !c.is_control()), "{text}");
}

#[test]
fn a_line_is_never_longer_than_hubble_reads() {
    let longest = || "\\000".repeat(255) + &"x".repeat(9_000);
    let mut people = known();
    let mut workload = (*people.workloads[&"198.51.100.11".parse::<IpAddr>().unwrap()]).clone();
    workload.labels = (0..1_000).map(|_| longest()).collect();
    people.workloads.insert("198.51.100.11".parse().unwrap(), workload.into());
    let long_rule = RuleRef(
        crate::engine::verdict::RuleText {
            kind: "CiliumClusterwideNetworkPolicy".into(),
            namespace: "n".repeat(63),
            policy: "p".repeat(253),
            ..Default::default()
        }
        .into(),
    );
    for record in [
        query(|q| {
            (q.qname, q.cnames) = (longest(), (0..100).map(|_| longest()).collect());
            q.addresses = (0..4_000).map(|n| std::net::Ipv6Addr::from_bits(u128::MAX - n).into()).collect();
        }),
        packet(|p| {
            p.names = (0..100).map(|_| longest()).collect();
            p.policies = (0..100).map(|_| long_rule.clone()).collect();
        }),
    ] {
        let mut out = Vec::new();
        write(&record, &people, "node-1", &mut out);
        assert!(out.len() < 64 * 1024, "{}", out.len());
    }
}

/// Every field that a record can have, by message, with the field names of flow.proto. Hubble's reader warns of others.
fn fields_of_flow_proto() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("", ["flow", "node_name", "time"].as_slice()),
        (
            "flow",
            &[
                "time",
                "verdict",
                "drop_reason",
                "IP",
                "l4",
                "source",
                "destination",
                "Type",
                "node_name",
                "source_names",
                "destination_names",
                "l7",
                "event_type",
                "source_service",
                "destination_service",
                "traffic_direction",
                "policy_match_type",
                "trace_observation_point",
                "drop_reason_desc",
                "is_reply",
                "interface",
                "egress_allowed_by",
                "ingress_allowed_by",
                "egress_denied_by",
                "ingress_denied_by",
                "Summary",
            ],
        ),
        ("flow.IP", &["source", "destination", "ipVersion"]),
        ("flow.l4", &["TCP", "UDP", "ICMPv4", "ICMPv6", "SCTP"]),
        ("flow.l4.TCP", &["source_port", "destination_port", "flags"]),
        ("flow.l4.TCP.flags", &["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "NS"]),
        ("flow.l4.UDP", &["source_port", "destination_port"]),
        ("flow.l4.SCTP", &["source_port", "destination_port"]),
        ("flow.l4.ICMPv4", &["type", "code"]),
        ("flow.l4.ICMPv6", &["type", "code"]),
        ("flow.source", &["ID", "identity", "namespace", "labels", "pod_name", "workloads"]),
        ("flow.destination", &["ID", "identity", "namespace", "labels", "pod_name", "workloads"]),
        ("flow.l7", &["type", "latency_ns", "dns"]),
        ("flow.l7.dns", &["query", "ips", "ttl", "cnames", "observation_source", "rcode", "qtypes", "rrtypes"]),
        ("flow.event_type", &["type", "sub_type"]),
        ("flow.source_service", &["name", "namespace"]),
        ("flow.destination_service", &["name", "namespace"]),
        ("flow.interface", &["index", "name"]),
        ("flow.egress_allowed_by", &["name", "namespace", "labels", "revision"]),
        ("flow.egress_denied_by", &["name", "namespace", "labels", "revision"]),
        ("flow.ingress_allowed_by", &["name", "namespace", "labels", "revision"]),
        ("flow.ingress_denied_by", &["name", "namespace", "labels", "revision"]),
    ])
}

#[test]
fn every_field_and_enum_text_is_one_of_flow_proto() {
    let fields = fields_of_flow_proto();
    let mut records = Vec::new();
    for reason in Reason::ALL {
        for direction in [Direction::Egress, Direction::Ingress] {
            for protocol in [6, 17, 1, 58, 132, 99] {
                records.push(packet(|p| {
                    (p.reason, p.direction, p.protocol, p.tcp_flags) = (*reason, direction, protocol, 0xff);
                    p.policies = vec![rule("payments", "egress")];
                }));
            }
        }
    }
    for outcome in Outcome::ALL {
        records.push(query(|q| (q.outcome, q.cnames) = (*outcome, vec!["c.example.".into()])));
    }
    for record in &records {
        let value = parsed(record);
        check("", &value, &fields);
        let flow = &value["flow"];
        one_of(&flow["verdict"], &["FORWARDED", "DROPPED", "ERROR", "AUDIT", "REDIRECTED"]);
        one_of(&flow["Type"], &["L3_L4", "L7"]);
        one_of(&flow["traffic_direction"], &["INGRESS", "EGRESS"]);
        let dropped = flow["verdict"] == "DROPPED" && flow["Type"] == "L3_L4";
        assert_eq!(flow["drop_reason_desc"].is_string() && flow["l7"].is_null(), dropped);
        if dropped {
            let drop = flow["drop_reason_desc"].as_str().unwrap();
            let number = flow["drop_reason"].as_u64().unwrap();
            assert_eq!(DROP_REASONS.iter().find(|(name, _)| *name == drop), Some(&(drop, number)));
            assert_eq!(flow["event_type"]["sub_type"], number);
        }
    }
}

/// Of flow.proto: every drop reason that is used here.
const DROP_REASONS: [(&str, u64); 18] = [
    ("INVALID_SOURCE_MAC", 130),
    ("INVALID_SOURCE_IP", 132),
    ("POLICY_DENIED", 133),
    ("INVALID_PACKET_DROPPED", 134),
    ("UNKNOWN_L4_PROTOCOL", 142),
    ("UNKNOWN_L3_TARGET_ADDRESS", 150),
    ("NO_MATCHING_LOCAL_CONTAINER_FOUND", 152),
    ("CT_MAP_INSERTION_FAILED", 155),
    ("INVALID_IPV6_EXTENSION_HEADER", 156),
    ("IP_FRAGMENTATION_NOT_SUPPORTED", 157),
    ("UNKNOWN_CONNECTION_TRACKING_STATE", 163),
    ("NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION", 165),
    ("UNSUPPORTED_L2_PROTOCOL", 166),
    ("FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND", 175),
    ("FORBIDDEN_ICMPV6_MESSAGE", 176),
    ("POLICY_DENY", 181),
    ("VLAN_FILTERED", 182),
    ("CT_NO_MAP_FOUND", 190),
];

#[track_caller]
fn one_of(value: &Value, texts: &[&str]) {
    assert!(texts.contains(&value.as_str().unwrap_or_default()), "{value}");
}

#[track_caller]
fn check(path: &str, value: &Value, fields: &BTreeMap<&str, &[&str]>) {
    match value {
        Value::Object(object) => {
            let known = fields.get(path).unwrap_or_else(|| panic!("{path} is no message"));
            for (name, value) in object {
                assert!(known.contains(&name.as_str()), "{path} has no {name}");
                check(&if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, value, fields);
            }
        }
        Value::Array(items) => items.iter().filter(|item| item.is_object()).for_each(|item| check(path, item, fields)),
        _ => (),
    }
}
