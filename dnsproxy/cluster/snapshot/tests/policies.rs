//! What policies mean, read from YAML and asked of the compiled rules: the corner cases of Cilium's semantics.

use super::*;

/// What a pod may do under one policy's spec.
#[track_caller]
fn under(spec: &str) -> View {
    let view = Story::default().next(&[("cluster.yaml", CLUSTER), ("policy.yaml", &policy_of("p", spec))]);
    view.refusals(&[]);
    view
}

#[test]
fn without_a_policy_everything_passes_and_nothing_is_steered() {
    let view = Story::default().next(&[("cluster.yaml", CLUSTER)]);
    view.opens("192.0.2.1", 443).tcp(Direction::Ingress, "192.0.2.1", 80, true);
    assert!(!view.rules.selected && !view.rules.steered());
    assert_eq!(view.snapshot.skipped, 1, "a ConfigMap is no policy");
}

#[test]
fn an_empty_item_allows_nothing_and_shuts_its_direction() {
    under("endpointSelector: {}\negress: [{}]").stays_shut("192.0.2.1", 443).tcp(
        Direction::Ingress,
        "192.0.2.1",
        80,
        true,
    );
    under("endpointSelector: {}\negressDeny: [{}]").stays_shut("192.0.2.1", 443);
    let shut = under("endpointSelector: {}\ningress: [{}]");
    shut.opens("192.0.2.1", 443).tcp(Direction::Ingress, "10.0.0.2", 80, false);
    shut.tcp(Direction::Ingress, "10.9.0.1", 80, true);
}

#[test]
fn an_absent_peer_is_everyone_and_an_empty_list_is_nobody() {
    let ports = "toPorts: [{ports: [{port: \"443\", protocol: TCP}]}]";
    under(&format!("endpointSelector: {{}}\negress:\n- {ports}"))
        .opens("192.0.2.1", 443)
        .opens("10.0.0.3", 443)
        .opens("2001:db8::1", 443)
        .stays_shut("192.0.2.1", 80);
    for peers in ["toEndpoints", "toCIDR", "toEntities", "toFQDNs"] {
        under(&format!("endpointSelector: {{}}\negress:\n- {peers}: []\n  {ports}"))
            .stays_shut("192.0.2.1", 443)
            .stays_shut("10.0.0.2", 443)
            .stays_shut("10.9.0.1", 443);
    }
}

#[test]
fn ports_without_a_port_open_none() {
    for ports in ["toPorts: []", "toPorts: [{}]", "toPorts: [{ports: []}]"] {
        under(&format!("endpointSelector: {{}}\negress:\n- {ports}")).stays_shut("192.0.2.1", 443);
    }
    under("endpointSelector: {}\negress:\n- toCIDR: [192.0.2.0/24]\n  toPorts: []").opens("192.0.2.1", 443);
    under("endpointSelector: {}\negress:\n- toCIDR: [192.0.2.0/24]\n  toPorts: [{}]").stays_shut("192.0.2.1", 443);
}

#[test]
fn any_is_tcp_udp_and_sctp_but_not_icmp() {
    let view = under("endpointSelector: {}\negress:\n- toCIDR: [192.0.2.0/24]\n  toPorts: [{ports: [{port: \"0\"}]}]");
    let address = "192.0.2.1".parse().unwrap();
    for (protocol, passes) in
        [(Protocol::Tcp, true), (Protocol::Udp, true), (Protocol::Sctp, true), (Protocol::Icmp, false)]
    {
        let verdict = view.rules.evaluate(Direction::Egress, address, protocol, 7, Bits::NONE);
        assert_eq!(verdict.passes(), passes, "{protocol:?}");
    }
    let all = under("endpointSelector: {}\negress:\n- toCIDR: [192.0.2.0/24]");
    assert!(all.rules.evaluate(Direction::Egress, address, Protocol::Icmp, 0x800, Bits::NONE).passes());
}

#[test]
fn a_block_never_opens_a_pod_a_node_or_the_host() {
    under("endpointSelector: {}\negress:\n- toCIDR: [0.0.0.0/0]\n- toEntities: [world]")
        .opens("192.0.2.1", 443)
        .opens("2001:db8::1", 443)
        .stays_shut("10.0.0.2", 443)
        .stays_shut("10.9.0.1", 443)
        .stays_shut("10.9.0.2", 443);
}

#[test]
fn an_empty_peer_selector_is_the_policys_own_namespace() {
    under("endpointSelector: {}\negress:\n- toEndpoints: [{}]")
        .opens("10.0.0.2", 443)
        .stays_shut("10.0.0.3", 443)
        .stays_shut("10.9.0.1", 443)
        .stays_shut("192.0.2.1", 443);
    let other = "matchLabels: {k8s:io.kubernetes.pod.namespace: else, any:app: db}";
    under(&format!("endpointSelector: {{}}\negress:\n- toEndpoints:\n  - {other}"))
        .opens("10.0.0.3", 443)
        .stays_shut("10.0.0.2", 443);
    let blue = "matchLabels: {io.cilium.k8s.namespace.labels.team: blue}";
    under(&format!("endpointSelector: {{}}\negress:\n- toEndpoints:\n  - {blue}"))
        .opens("10.0.0.3", 443)
        .stays_shut("10.0.0.2", 443);
}

#[test]
fn entities_are_classes_of_peers() {
    under("endpointSelector: {}\negress:\n- toEntities: [cluster]")
        .opens("10.0.0.3", 1)
        .opens("10.9.0.1", 1)
        .opens("10.9.0.2", 1)
        .stays_shut("192.0.2.1", 1);
    under("endpointSelector: {}\negress:\n- toEntities: [host]").opens("10.9.0.1", 1).stays_shut("10.9.0.2", 1);
    under("endpointSelector: {}\negress:\n- toEntities: [all]").opens("10.9.0.2", 1).opens("192.0.2.1", 1);
    under("endpointSelector: {}\negress:\n- toEndpoints: [{matchLabels: {reserved:host: \"\"}}]")
        .opens("10.9.0.1", 1)
        .stays_shut("10.9.0.2", 1);
}

#[test]
fn a_denial_beats_every_allowance() {
    under(
        "endpointSelector: {}\negress:\n- toCIDR: [192.0.2.1/32]\n- toEntities: [all]\n\
         egressDeny:\n- toCIDR: [192.0.2.0/24]\n  toPorts: [{ports: [{port: \"443\"}]}]",
    )
    .stays_shut("192.0.2.1", 443)
    .opens("192.0.2.1", 80)
    .opens("192.0.3.1", 443);
}

#[test]
fn a_denial_of_what_lacks_a_label_meets_the_world_too() {
    let lacking = "matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [shop]}]";
    let view = under(&format!(
        "endpointSelector: {{}}\negress:\n- toEntities: [all]\negressDeny:\n- toEndpoints:\n  - {lacking}"
    ));
    view.stays_shut("192.0.2.1", 1).stays_shut("10.0.0.3", 1).stays_shut("10.9.0.1", 1).opens("10.0.0.2", 1);
    let allowed = under(&format!("endpointSelector: {{}}\negress:\n- toEndpoints:\n  - {lacking}"));
    allowed.stays_shut("192.0.2.1", 1).stays_shut("10.9.0.1", 1).opens("10.0.0.3", 1);
}

#[test]
fn a_policy_selects_by_labels_in_its_own_namespace() {
    let spec = "endpointSelector: {matchExpressions: [{key: app, operator: In, values: [web, api]}]}\negress: [{}]";
    under(spec).stays_shut("192.0.2.1", 1);
    under("endpointSelector: {matchLabels: {app: db}}\negress: [{}]").opens("192.0.2.1", 1);
    let elsewhere = policy_of("p", "endpointSelector: {}\negress: [{}]").replace("shop", "else");
    Story::default().next(&[("cluster.yaml", CLUSTER), ("p.yaml", &elsewhere)]).opens("192.0.2.1", 1);
}

/// Two backends of Service shop/dns, as slices name them, and a policy of the pod that asks it.
#[track_caller]
fn asking(spec: &str, endpoints: &str) -> View {
    let dns = format!(
        "apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {{name: dns, namespace: shop}}
  spec:
    clusterIP: 198.18.0.10
    ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: web, port: 80}}]
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {{name: dns-1, namespace: shop, labels: {{kubernetes.io/service-name: dns}}}}
  addressType: IPv4
  ports: [{{name: dns, port: 5353, protocol: UDP}}, {{name: web, port: 8080, protocol: TCP}}]
  endpoints: {endpoints}
"
    );
    Story::default().next(&[("cluster.yaml", CLUSTER), ("dns.yaml", &dns), ("p.yaml", &policy_of("p", spec))])
}

/// Whether the pod may ask the Service for the name.
#[track_caller]
fn answers(view: &View, name: &str, answer: bool) {
    let server = "198.18.0.10".parse().unwrap();
    let verdict = view.rules.may_ask(server, Protocol::Udp, 53, &Name::parse(name).unwrap());
    assert_eq!(verdict.is_ok(), answer, "{name}: {verdict:?}");
}

const DB: &str = "[{addresses: [10.0.0.2]}]";
const DB_AND_OTHER: &str = "[{addresses: [10.0.0.2]}, {addresses: [10.0.0.3]}]";

fn web_of_db(port: &str) -> String {
    format!(
        "endpointSelector: {{}}\negress:\n- toEndpoints: [{{matchLabels: {{app: db}}}}]\n  \
         toPorts: [{{ports: [{{port: \"{port}\", protocol: TCP}}]}}]"
    )
}

#[test]
fn a_services_address_stands_for_all_its_ready_backends() {
    let target = web_of_db("8080");
    asking(&target, DB).refusals(&[]).opens("198.18.0.10", 80).stays_shut("198.18.0.10", 8080);
    asking(&web_of_db("80"), DB).stays_shut("198.18.0.10", 80);
    asking(&target, DB_AND_OTHER).stays_shut("198.18.0.10", 80);
    asking(&target, "[{addresses: [10.0.0.2]}, {addresses: [10.0.0.3], conditions: {ready: false}}]")
        .opens("198.18.0.10", 80);
    asking(&target, "[{addresses: [10.0.0.2], conditions: {ready: false}}]").stays_shut("198.18.0.10", 80);
    asking(&target, "[]").stays_shut("198.18.0.10", 80);
    // Everyone on that port, and outside blocks: backends outside the cluster, too.
    asking("endpointSelector: {}\negress:\n- toEntities: [all]", DB_AND_OTHER).opens("198.18.0.10", 80);
    let world = "endpointSelector: {}\negress:\n- toCIDR: [0.0.0.0/0]";
    asking(world, DB).stays_shut("198.18.0.10", 80);
    asking(world, "[{addresses: [192.0.2.1]}]").opens("198.18.0.10", 80);
}

#[test]
fn a_services_address_is_denied_with_one_of_its_backends() {
    let deny = "endpointSelector: {}\negress:\n- toEntities: [all]\negressDeny:\n- toEndpoints:\n  \
                - matchLabels: {io.kubernetes.pod.namespace: else}";
    asking(deny, DB).opens("198.18.0.10", 80);
    asking(deny, DB_AND_OTHER).stays_shut("198.18.0.10", 80);
}

#[test]
fn a_service_with_backends_that_can_not_be_read_is_not_opened() {
    asking(&web_of_db("8080"), "[{addresses: [10.0.0.2]}, {addresses: [10.0.0.256]}]")
        .refusals(&["endpoints[1].addresses[0]: \"10.0.0.256\" is no address"])
        .stays_shut("198.18.0.10", 80);
}

/// Asks of a Service whose number the rule may name by its own port or by the target's.
fn dns_of_db(port: &str, rest: &str) -> String {
    format!(
        "endpointSelector: {{}}\negress:\n- toEndpoints: [{{matchLabels: {{app: db}}}}]\n  toPorts:\n  \
         - ports: [{{port: \"{port}\", protocol: UDP}}]\n    rules: {{dns: [{{matchName: a.example}}]}}\n{rest}"
    )
}

#[test]
fn a_rule_may_name_the_port_of_a_dns_service_or_of_its_backends() {
    for port in ["53", "5353"] {
        let view = asking(&dns_of_db(port, ""), DB);
        answers(&view, "a.example", true);
        answers(&view, "b.example", false);
        assert!(view.rules.trusts("198.18.0.10".parse().unwrap(), Protocol::Udp, 53));
    }
    answers(&asking(&dns_of_db("54", ""), DB), "a.example", false);
    answers(&asking(&dns_of_db("53", ""), DB_AND_OTHER), "a.example", false);
    answers(&asking(&dns_of_db("53", ""), "[]"), "a.example", false);
}

#[test]
fn a_denied_backend_is_not_asked() {
    let deny = "egressDeny:\n- toEndpoints: [{matchLabels: {app: db}}]\n  toPorts: [{ports: [{port: \"53\"}]}]";
    for port in ["\"53\"", "\"5353\""] {
        answers(&asking(&dns_of_db("53", &deny.replace("\"53\"", port)), DB), "a.example", false);
    }
    let elsewhere = deny.replace("\"53\"", "\"80\"");
    answers(&asking(&dns_of_db("53", &elsewhere), DB), "a.example", true);
}

#[test]
fn a_resolver_allowed_without_names_may_be_asked_anything_by_who_is_steered() {
    let plain = "endpointSelector: {}\negress:\n- toEndpoints: [{matchLabels: {app: db}}]\n";
    let view = asking(&format!("{plain}- toFQDNs: [{{matchName: a.example}}]"), DB);
    answers(&view, "b.example", true);
    assert!(view.rules.steered());
    let unsteered = asking(plain, DB);
    assert!(!unsteered.rules.steered() && unsteered.rules.dns.is_empty());
    // The cluster as a whole is no resolver that anyone named.
    let cluster =
        asking("endpointSelector: {}\negress:\n- toEntities: [cluster]\n- toFQDNs: [{matchName: a.example}]", DB);
    answers(&cluster, "b.example", true);
    assert!(!cluster.rules.trusts("198.18.0.10".parse().unwrap(), Protocol::Udp, 53));
}

#[test]
fn a_rule_for_the_whole_cluster_makes_a_resolver_of_nobody() {
    let steered = "- toFQDNs: [{matchName: a.example}]\n  toPorts: [{ports: [{port: \"443\"}]}]";
    let resolvers =
        |rule: &str| asking(&format!("endpointSelector: {{}}\negress:\n{rule}\n{steered}"), DB).rules.resolvers();
    assert_eq!(resolvers("- toEntities: [cluster]"), []);
    assert_eq!(resolvers("- toEntities: [cluster]\n  toPorts: [{ports: [{port: \"53\"}]}]"), []);
    assert!(!resolvers("- toEndpoints: [{}]\n  toPorts: [{ports: [{port: \"53\"}]}]").is_empty());
    // Every port of a few is said of each of them; of many it is not.
    let blocks = |count: u8| {
        let blocks: Vec<String> = (1..=count).map(|host| format!("192.0.2.{host}/32")).collect();
        resolvers(&format!("- toCIDR: [{}]", blocks.join(", "))).len()
    };
    assert_eq!((blocks(16), blocks(17)), (32, 0), "two protocols each");
}

#[test]
fn ports_with_names_open_nothing_past_the_proxy() {
    let view = asking(&dns_of_db("5353", ""), DB);
    let address = "10.0.0.2".parse().unwrap();
    assert!(!view.rules.evaluate(Direction::Egress, address, Protocol::Udp, 5353, Bits::NONE).passes());
}

#[test]
fn the_demo_says_what_its_issue_says() {
    let mut snapshot = read(&folder("config/demo"), &LastGood::default(), OnInvalid::Refuse);
    assert_eq!(snapshot.refusals, []);
    snapshot.world.own_node = Some("demo-node".to_owned());
    let mut ids = PeerIds::default();
    let compiler = Compiler::new(&snapshot.world, &mut ids);
    let pod = |name: &str| PodRef { namespace: "payments".to_owned(), name: name.to_owned() };
    let payment = compiler.compile(&pod("payment-processor"), &[]).unwrap();
    let reports = compiler.compile(&pod("reports"), &[]).unwrap();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let asks = |rules: &RuleSet, server: &str, name: &str| {
        let answer = |protocol| rules.may_ask(ip(server), protocol, 53, &Name::parse(name).unwrap()).is_ok();
        assert_eq!(answer(Protocol::Udp), answer(Protocol::Tcp));
        answer(Protocol::Udp)
    };
    let database = "prod-db.cxyz.us-east-1.rds.amazonaws.com";
    for server in ["198.18.0.10", "2001:db8:18::a", "203.0.113.53", "2001:db8:2::53"] {
        assert!(["api.stripe.com", database, "api.github.com"].iter().all(|name| asks(&payment, server, name)));
        assert!(asks(&reports, server, "api.github.com") && !asks(&reports, server, "api.stripe.com"), "{server}");
        assert!(payment.trusts(ip(server), Protocol::Udp, 53) && reports.trusts(ip(server), Protocol::Tcp, 53));
    }
    assert!(!asks(&payment, "192.0.2.53", "api.stripe.com"));
    let reaches = |rules: &RuleSet, name: &str, port| {
        let grants = rules.groups_of(&Name::parse(name).unwrap());
        rules.evaluate(Direction::Egress, ip("192.0.2.1"), Protocol::Tcp, port, grants).passes()
    };
    for (name, port, payments, report) in [
        ("api.stripe.com", 443, true, false),
        ("api.stripe.com", 5432, true, false),
        ("api.stripe.com", 80, false, false),
        (database, 5432, true, false),
        ("rds.amazonaws.com", 5432, false, false),
        ("api.github.com", 443, false, true),
    ] {
        assert_eq!((reaches(&payment, name, port), reaches(&reports, name, port)), (payments, report), "{name} {port}");
    }
    assert!(payment.steered() && reports.steered() && payment.deny_egress && !payment.deny_ingress);
    // Past the proxy nothing passes, not to the resolver either.
    for server in ["198.18.0.10", "203.0.113.53"] {
        assert!(!payment.evaluate(Direction::Egress, ip(server), Protocol::Udp, 53, Bits::NONE).passes());
    }
    assert_eq!(payment.resolvers().len(), 8, "four addresses, two protocols: {:?}", payment.resolvers());
}
