//! Questions to small clusters, and the chains that answer them.

use super::answer::Verdict;
use super::question::Asked;
use super::*;
use crate::cluster::files::File;
use crate::cluster::snapshot::{LastGood, OnInvalid, assemble};
use crate::engine::compile::Spoken;

pub(super) const CLUSTER: &str = include_str!("../../../config/demo/cluster.yaml");
pub(super) const KUBE_DNS: &str = include_str!("../../../config/demo/kube-dns.yaml");
const PAYMENTS: &str = include_str!("../../../config/demo/payment-processor.yaml");

/// Reports asks for one name; has a near miss, a peer on one port, a block less one that is denied.
pub(super) const REPORTS: &str = r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: reports, namespace: payments}
spec:
  endpointSelector: {matchLabels: {app: reports}}
  egress:
  - toEndpoints:
    - matchLabels: {k8s:io.kubernetes.pod.namespace: kube-system, k8s:k8s-app: kube-dns}
    toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules:
        dns: [{matchPattern: "*.example.com"}]
  - toFQDNs: [{matchPattern: "*.example.com"}]
    toPorts: [{ports: [{port: "443", protocol: TCP}]}]
  - toEndpoints: [{matchLabels: {app: payment-processor}}]
    toPorts: [{ports: [{port: "8080", protocol: TCP}]}]
  - toCIDR: [203.0.113.0/24]
  egressDeny:
  - toCIDR: [203.0.113.66/32]
"#;

/// The payment processor lets reports in, on one port.
const INGRESS: &str = r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: let-in, namespace: payments}
spec:
  endpointSelector: {matchLabels: {app: payment-processor}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: reports}}]
    toPorts: [{ports: [{port: "8080", protocol: TCP}]}]
"#;

pub(super) fn world(files: &[(&str, &str)]) -> World {
    let file = |(name, text): &(&str, &str)| File { name: (*name).to_owned(), content: Ok(text.as_bytes().to_vec()) };
    let files: Vec<File> = files.iter().map(file).collect();
    let snapshot = assemble(&files, &LastGood::default(), OnInvalid::Refuse);
    assert_eq!(snapshot.refusals, []);
    World { own_node: Some("demo-node".to_owned()), ..snapshot.world }
}

pub(super) fn demo() -> World {
    world(&[
        ("cluster.yaml", CLUSTER),
        ("kube-dns.yaml", KUBE_DNS),
        ("p.yaml", PAYMENTS),
        ("r.yaml", REPORTS),
        ("i.yaml", INGRESS),
    ])
}

pub(super) fn surroundings(world: &World) -> Surroundings {
    let service = world.services.get(&("kube-system".to_owned(), "kube-dns".to_owned()));
    let cluster_dns: Vec<IpAddr> = service.map_or_else(Vec::new, |service| service.addresses.iter().copied().collect());
    Surroundings {
        guard: Guard::new(Vec::new(), Name::parse("cluster.local").expect("a name")),
        trusted: cluster_dns.iter().copied().collect(),
        proxied: cluster_dns.iter().copied().collect(),
        cluster_dns,
        assume_dns: false,
    }
}

#[track_caller]
fn ask(world: &World, from: &str, to: &str, port: &str) -> Answer {
    let port = Some(port.to_owned()).filter(|port| !port.is_empty());
    let asked =
        Asked { id: None, from: question::Asker::Pod(from.into()), to: to.into(), port, qtype: None, resolver: None };
    let question = asked.typed(question::pod(from).expect("a pod")).expect("a question");
    Explainer::new(world, surroundings(world)).explain(&question).expect("an answer")
}

#[track_caller]
fn places(lines: &[Line]) -> Vec<String> {
    lines.iter().map(|line| line.path.clone()).collect()
}

#[test]
fn a_name_that_rules_allow_is_allowed_once_it_resolves() {
    let answer = ask(&demo(), "payments/payment-processor", "api.stripe.com", "443/TCP");
    assert!(answer.allowed && answer.steered, "{answer:#?}");
    assert_eq!(answer.why, "allowed once the name resolves to an address that may be granted");
    assert_eq!(answer.selected_by.len(), 2);
    assert!(
        answer
            .selected_by
            .iter()
            .any(|one| one.egress && one.policy == "CiliumNetworkPolicy payments/payment-processor")
    );
    let query = &answer.queries[0];
    assert!(query.allowed && query.grants && query.reason == "rule", "{query:?}");
    assert_eq!(places(&query.by), ["spec.egress[0].toPorts[0].rules.dns[0]"]);
    assert_eq!(query.by[0].place, "p.yaml:22:11");
    let connection = &answer.connections[0];
    assert_eq!((connection.peer, connection.verdict), (None, Verdict::Allowed));
    assert_eq!(places(&connection.by), ["spec.egress[1]"]);
    assert!(connection.by[0].says.starts_with("allows names api.stripe.com or **.rds.amazonaws.com on "));
}

#[test]
fn another_port_of_an_allowed_name_says_which_one_is_open() {
    let answer = ask(&demo(), "payments/payment-processor", "api.stripe.com", "80/TCP");
    let connection = &answer.connections[0];
    assert!(!answer.allowed && answer.queries[0].allowed);
    assert_eq!(connection.verdict, Verdict::NotAllowed);
    assert_eq!(places(&connection.nearest), ["spec.egress[1]"]);
    assert!(
        connection.nearest[0].says.ends_with("443/TCP, 5432/TCP; it means this peer, but not this port"),
        "{connection:?}"
    );
    let any = ask(&demo(), "payments/payment-processor", "api.stripe.com", "");
    assert!(any.allowed);
    assert_eq!(any.connections[0].open, ["443/TCP", "5432/TCP"]);
}

#[test]
fn a_name_too_deep_for_its_pattern_is_told_so_at_both_stages() {
    let answer = ask(&demo(), "payments/reports", "a.b.example.com", "443/TCP");
    let hint = "\"*.example.com\" spans one label; \"**.example.com\" spans several";
    assert!(!answer.allowed);
    let dns = surroundings(&demo()).cluster_dns[0];
    assert_eq!(answer.why, format!("the query to {dns} is refused (name)"));
    assert_eq!(answer.queries[0].hint.as_deref(), Some(hint));
    let nearest = &answer.connections[0].nearest[0];
    assert_eq!(
        (nearest.path.as_str(), nearest.says.ends_with(hint)),
        ("spec.egress[1].toFQDNs[0]", true),
        "{nearest:?}"
    );
}

#[test]
fn a_denial_is_named_and_beats_what_allows() {
    let world = demo();
    let allowed = ask(&world, "payments/reports", "203.0.113.7", "80/TCP");
    assert!(allowed.allowed && places(&allowed.connections[0].by) == ["spec.egress[3]"]);
    let denied = ask(&world, "payments/reports", "203.0.113.66", "80/TCP");
    assert_eq!(denied.connections[0].verdict, Verdict::Denied);
    assert_eq!(places(&denied.connections[0].by), ["spec.egressDeny[0]"]);
    let any = ask(&world, "payments/reports", "203.0.113.66", "");
    assert!(!any.allowed && any.connections[0].open.is_empty());
}

#[test]
fn a_pod_needs_both_sides() {
    let world = demo();
    let both = ask(&world, "payments/reports", "payments/payment-processor", "8080/TCP");
    assert!(both.allowed, "{both:#?}");
    let sides: Vec<_> = both.connections.iter().map(|one| (one.direction.as_str(), one.of.as_str())).collect();
    let expected = [("egress", "payments/reports"), ("ingress", "payments/payment-processor")];
    assert_eq!(sides, [expected, expected].concat(), "both families");
    // Out it may, in it may not.
    let world = self::world(&[("cluster.yaml", CLUSTER), ("i.yaml", &INGRESS.replace("8080", "9090"))]);
    let inside = ask(&world, "payments/reports", "payments/payment-processor", "8080/TCP");
    assert_eq!(inside.connections[0].verdict, Verdict::DefaultAllowed);
    assert_eq!(inside.connections[1].verdict, Verdict::NotAllowed);
    assert_eq!(inside.why, "ingress of payments/payment-processor: denied: no rule allows it");
    assert_eq!(places(&inside.connections[1].nearest), ["spec.ingress[0]"]);
}

#[test]
fn without_a_port_both_sides_must_open_the_same_one() {
    assert!(ask(&demo(), "payments/reports", "payments/payment-processor", "").allowed);
    let ingress = INGRESS.replace("8080", "9090");
    let files = [("cluster.yaml", CLUSTER), ("kube-dns.yaml", KUBE_DNS), ("r.yaml", REPORTS), ("i.yaml", &ingress)];
    let answer = ask(&world(&files), "payments/reports", "payments/payment-processor", "");
    let sides: Vec<_> = answer.connections.iter().map(|one| (one.allowed, one.open.join(","))).collect();
    let expected = [(true, "8080/TCP".to_owned()), (false, "9090/TCP".to_owned())];
    assert_eq!(sides, [expected.clone(), expected].concat());
    assert!(!answer.allowed && answer.connections[1].notes[0].contains("no port"));
}

#[test]
fn queries_go_to_the_proxy_or_nowhere() {
    let world = demo();
    let dns = surroundings(&world).cluster_dns[0].to_string();
    let proxied = ask(&world, "payments/reports", &dns, "53/UDP");
    assert!(proxied.allowed && proxied.connections[0].verdict == Verdict::Proxied, "{proxied:#?}");
    // A block allows it, and yet nothing answers there.
    let elsewhere = ask(&world, "payments/reports", "203.0.113.9", "53/UDP");
    assert_eq!(elsewhere.connections[0].verdict, Verdict::UnknownResolver);
}

#[test]
fn a_services_address_is_explained_by_its_backends() {
    let policy =
        PAYMENTS.replace("      rules:\n        dns:\n        - matchPattern: \"*\"\n", "").replace("53\"", "5353\"");
    let policy = policy.split("  - toFQDNs").next().expect("a first part");
    let world = world(&[("cluster.yaml", CLUSTER), ("kube-dns.yaml", KUBE_DNS), ("p.yaml", policy)]);
    let answer = ask(&world, "payments/payment-processor", "198.18.0.10", "53/UDP");
    let front = &answer.connections[0];
    assert!(answer.allowed && !answer.steered, "{answer:#?}");
    assert_eq!((front.verdict, front.peer_is.as_str()), (Verdict::Allowed, "Service kube-system/kube-dns"));
    assert_eq!(front.behind[0].peer_is, "pod kube-system/coredns");
    assert_eq!(places(&front.behind[0].by), ["spec.egress[0]"]);
    let by_name = ask(&world, "payments/payment-processor", "kube-dns.kube-system.svc.cluster.local", "53/UDP");
    assert!(by_name.allowed && by_name.connections.len() == 2, "{by_name:#?}");
    let other = ask(&world, "payments/payment-processor", "198.18.0.10", "80/TCP");
    assert!(!other.allowed && other.connections[0].notes[0].contains("53/UDP"), "{other:#?}");
}

#[test]
fn a_pod_that_nothing_selects_may_everything() {
    let world = world(&[("cluster.yaml", CLUSTER), ("kube-dns.yaml", KUBE_DNS)]);
    for (to, port) in [("anything.example", "443/TCP"), ("192.0.2.1", ""), ("payments/payment-processor", "1/UDP")] {
        let answer = ask(&world, "payments/reports", to, port);
        assert!(answer.allowed && answer.selected_by.is_empty(), "{answer:#?}");
    }
}

#[test]
fn a_pod_that_is_not_there_is_no_question() {
    let world = demo();
    let question = Question {
        from: question::pod("payments/none").expect("a pod"),
        to: Target::Address([192, 0, 2, 1].into()),
        port: None,
        qtype: 1,
        resolver: None,
    };
    let error = Explainer::new(&world, surroundings(&world)).explain(&question).expect_err("no such pod");
    assert!(error.contains("payments/none"), "{error}");
}

#[test]
fn what_was_learned_opens_its_address_for_as_long_as_it_lasts() {
    let world = demo();
    let mut explainer = Explainer::new(&world, surroundings(&world));
    let pod = question::pod("payments/payment-processor").expect("a pod");
    let rules = explainer.rules(&pod).expect("rules");
    let name = Name::parse("api.stripe.com").expect("a name");
    let bits = rules.groups_of(&name);
    let held = |last, seconds_left| Held {
        name: Some(name.clone()),
        address: [192, 0, 2, last].into(),
        bits,
        seconds_left,
        connections: true,
    };
    explainer.running(pod.clone(), rules, vec![held(1, 50), held(2, 0)]);
    let ask = |to| {
        let question = Question { from: pod.clone(), to, port: Some((Protocol::Tcp, 443)), qtype: 1, resolver: None };
        explainer.explain(&question).expect("an answer")
    };
    let live = ask(Target::Address([192, 0, 2, 1].into()));
    assert!(live.allowed && live.connections[0].grants[0].seconds_left == 50, "{live:#?}");
    assert_eq!(places(&live.connections[0].by), ["spec.egress[1]"]);
    let over = ask(Target::Address([192, 0, 2, 2].into()));
    assert!(!over.allowed && over.connections[0].grants.len() == 1);
    let by_name = ask(Target::Name(name.clone()));
    assert_eq!(by_name.connections.iter().map(|one| one.allowed).collect::<Vec<_>>(), [true, false]);
}

/// The verdict that the spoken items come to must be the rule set's own, for everyone and every port.
#[test]
fn what_is_said_and_what_is_done_agree() {
    let world = demo();
    let explainer = Explainer::new(&world, surroundings(&world));
    let mut compared = 0;
    for pod in world.pods.keys() {
        let Ok(rules) = explainer.rules(pod) else { continue };
        let outside = ["192.0.2.1", "203.0.113.7", "203.0.113.66", "2001:db8:ffff::1"]
            .map(|text| text.parse().expect("an address"));
        let own = rules.known.iter().filter(|(_, id)| **id != PeerId::SERVICE).map(|(address, _)| *address);
        for address in own.chain(outside) {
            for direction in [Direction::Egress, Direction::Ingress] {
                for (protocol, port) in [
                    (Protocol::Tcp, 443),
                    (Protocol::Tcp, 8080),
                    (Protocol::Udp, 5353),
                    (Protocol::Sctp, 7),
                    (Protocol::Icmp, 8 << 8),
                ] {
                    let spoken = explainer.compiler.spoken(pod, direction, address, (protocol, port), &[]);
                    let decides = |deny| spoken.iter().any(|said: &Spoken| said.decides() && said.deny == deny);
                    let shut = !explainer.shut_by(pod, direction).is_empty();
                    let host = rules.known.get(&address) == Some(&PeerId::HOST) && direction == Direction::Ingress;
                    let said = !decides(true) && (decides(false) || host || !shut);
                    let done = rules.evaluate(direction, address, protocol, port, Bits::NONE).passes();
                    assert_eq!(said, done, "{pod} {direction:?} {address} {protocol:?} {port}: {spoken:?}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 100);
}

#[test]
fn an_address_outside_is_in_no_block() {
    let world = demo();
    let explainer = Explainer::new(&world, surroundings(&world));
    let rules = explainer.rules(&question::pod("payments/reports").expect("a pod")).expect("rules");
    let mut full = (*rules).clone();
    full.cidrs.insert(0, ("192.0.2.0/24".parse().expect("a network"), Bits::of(1)));
    assert_eq!(explainer.outside(&full, false).to_string(), "192.0.3.0");
    assert_eq!(explainer.outside(&full, true).to_string(), "2001:db8::1");
}

mod overviews {
    use super::super::overview::{endpoint, policies, selectors};
    use super::*;

    #[test]
    fn policies_say_whom_they_select_and_how_many_items_they_have() {
        let rows = policies(&demo());
        let row = rows.iter().find(|row| row.name == "reports").expect("it is there");
        assert_eq!((row.selects, row.egress.allow, row.egress.deny, row.ingress.default_deny), (1, 4, 1, false));
        assert_eq!(rows.len(), 3);
    }

    #[test]
    fn each_selector_stands_once_with_its_pods() {
        let rows = selectors(&demo());
        let dns = rows.iter().find(|row| row.selector.contains("k8s-app=kube-dns")).expect("it is there");
        assert_eq!(dns.policies, ["payments/payment-processor", "payments/reports"]);
        assert_eq!(dns.selects, ["kube-system/coredns"]);
        let subject =
            rows.iter().find(|row| row.of == "subject" && row.selector == "app=reports").expect("it is there");
        assert_eq!(
            (subject.namespace.as_deref(), subject.selects.join(",")),
            (Some("payments"), "payments/reports".to_owned())
        );
    }

    #[test]
    fn an_endpoint_is_told_with_what_its_policies_come_to() {
        let world = demo();
        let explainer = Explainer::new(&world, surroundings(&world));
        let row = endpoint(&explainer, &question::pod("payments/payment-processor").expect("a pod"));
        assert_eq!(row.policies, ["payments/let-in", "payments/payment-processor"]);
        assert!(row.egress_default_deny && row.ingress_default_deny && row.steered && !row.audit);
        assert_eq!((row.names, row.problem.as_str()), (2, ""));
        let none = endpoint(&explainer, &question::pod("kube-system/coredns").expect("a pod"));
        assert!(none.policies.is_empty() && !none.egress_default_deny);
    }
}
