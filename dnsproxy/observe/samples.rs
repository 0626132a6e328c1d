//! Records for tests.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::watchers::{Known, Record, Workload};
use super::{CacheUse, Outcome, PacketRecord, QueryRecord, Reason};
use crate::engine::endpoint::{EndpointId, PodRef};
use crate::engine::ruleset::Direction;
use crate::engine::verdict::{RuleRef, RuleText};

/// 2026-11-21 04:27:15.12 UTC.
fn time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(1_795_235_235, 120_000_000)
}

pub(crate) fn pod(name: &str) -> PodRef {
    PodRef { namespace: "payments".to_owned(), name: name.to_owned() }
}

pub(crate) fn rule(namespace: &str, policy: &str) -> RuleRef {
    RuleRef(Arc::new(RuleText {
        kind: "CiliumNetworkPolicy".to_owned(),
        namespace: namespace.to_owned(),
        policy: policy.to_owned(),
        ..RuleText::default()
    }))
}

/// A query that was answered, changed by `change`.
pub(crate) fn query(change: impl FnOnce(&mut QueryRecord)) -> Record {
    let mut record = QueryRecord {
        endpoint: Some((EndpointId(7), pod("reports"))),
        client: "198.51.100.11:40000".parse().unwrap(),
        server: "198.18.0.10:53".parse().unwrap(),
        tcp: false,
        qname: "api.github.com.".to_owned(),
        qtype: "A".to_owned(),
        outcome: Outcome::Forwarded,
        reason: "allowed",
        rule: Some(rule("payments", "egress")),
        hint: None,
        rcode: Some(0),
        addresses: vec!["192.0.2.1".parse().unwrap()],
        cnames: Vec::new(),
        ttl: 30,
        granted: 1,
        upstream: Some(Duration::from_micros(3_200)),
        install: Some(Duration::from_micros(2)),
        cache: CacheUse::Miss,
    };
    change(&mut record);
    Record::Query(time(), record)
}

/// A connection that was refused, changed by `change`.
pub(crate) fn packet(change: impl FnOnce(&mut PacketRecord)) -> Record {
    let mut record = PacketRecord {
        time: time(),
        endpoint: Some((EndpointId(7), pod("reports"))),
        ifindex: 12,
        interface: "veth-rep".to_owned(),
        source: Some("198.51.100.11:40000".parse().unwrap()),
        destination: Some("192.0.2.9:443".parse().unwrap()),
        protocol: 6,
        tcp_flags: 2,
        icmp_type: 0,
        audited: None,
        direction: Direction::Egress,
        reason: Reason::NoGrant,
        rejected: true,
        reply: false,
        octets: 60,
        policy_id: 1,
        generation: 1,
        suppressed: 3,
        names: vec!["api.stripe.com.".to_owned()],
        policies: Vec::new(),
    };
    change(&mut record);
    Record::Packet(record)
}

/// The pod `reports`, the Service kube-dns and the node.
pub(crate) fn known() -> Known {
    let workload = Workload {
        endpoint: Some(EndpointId(7)),
        pod: pod("reports"),
        labels: vec!["k8s:app=reports".to_owned(), "k8s:io.kubernetes.pod.namespace=payments".to_owned()],
    };
    let kube_dns = PodRef { namespace: "kube-system".to_owned(), name: "kube-dns".to_owned() };
    Known {
        workloads: [("198.51.100.11".parse().unwrap(), Arc::new(workload))].into(),
        services: [("198.18.0.10".parse().unwrap(), kube_dns)].into(),
        host: ["198.51.100.1".parse().unwrap()].into(),
        own: Arc::default(),
        nodes: ["198.51.100.2".parse().unwrap()].into(),
    }
}
