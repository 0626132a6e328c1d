//! What changes between two small clusters, and between random ones.

use super::*;
use crate::engine::explain::tests::{CLUSTER, KUBE_DNS, REPORTS, demo, surroundings, world};

#[track_caller]
fn between(old: &World, new: &World) -> Diff {
    diff(&Explainer::new(old, surroundings(old)), &Explainer::new(new, surroundings(new)))
}

fn with(reports: &str) -> World {
    world(&[("cluster.yaml", CLUSTER), ("kube-dns.yaml", KUBE_DNS), ("r.yaml", reports)])
}

#[test]
fn the_same_is_no_difference() {
    assert!(between(&demo(), &demo()).is_empty());
    // Another place of the same rule is none either.
    assert!(between(&with(REPORTS), &with(&format!("# moved\n{REPORTS}"))).is_empty());
}

#[test]
fn a_port_more_is_one_change() {
    let found = between(&with(REPORTS), &with(&REPORTS.replace("8080", "8081")));
    let changes: Vec<_> = found.connections.iter().map(|one| (one.ports.join(","), one.allowed)).collect();
    assert_eq!(changes, [("8080/TCP".to_owned(), false), ("8081/TCP".to_owned(), true)]);
    assert_eq!(found.connections[0].peers, ["payments/payment-processor"]);
    assert_eq!(found.connections[0].endpoints, ["payments/reports"]);
    assert_eq!(found.names, []);
}

#[test]
fn a_wider_block_and_a_name_less_are_told() {
    let new = REPORTS
        .replace("203.0.113.0/24", "203.0.112.0/23")
        .replace("dns: [{matchPattern: \"*.example.com\"}]", "dns: [{matchName: a.example.com}]");
    let found = between(&with(REPORTS), &with(&new));
    assert!(found.connections.iter().any(|one| one.allowed && one.peers == ["203.0.112.0/24"]), "{found:#?}");
    let name = &found.names[0];
    assert_eq!((name.pattern.as_str(), name.allowed, name.what.join(",").as_str()), ("*.example.com", false, "query"));
}

#[test]
fn a_pod_that_moved_is_the_same_and_a_new_one_is_told() {
    let moved = CLUSTER.replace("198.51.100.10", "198.51.100.77");
    let new = world(&[("cluster.yaml", &moved), ("kube-dns.yaml", KUBE_DNS), ("r.yaml", REPORTS)]);
    assert!(between(&with(REPORTS), &new).is_empty(), "{:#?}", between(&with(REPORTS), &new));
    let pod =
        "---\napiVersion: v1\nkind: Pod\nmetadata: {name: more, namespace: payments}\nstatus: {podIP: 198.51.100.78}\n";
    let new = world(&[("cluster.yaml", &format!("{CLUSTER}{pod}")), ("kube-dns.yaml", KUBE_DNS), ("r.yaml", REPORTS)]);
    assert_eq!(between(&with(REPORTS), &new).added, ["payments/more"]);
}

/// The policy of reports, with these sections.
fn policy(sections: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: reports, namespace: payments}}\n\
         spec:\n  endpointSelector: {{matchLabels: {{app: reports}}}}\n  {sections}\n"
    )
}

/// What `namegate policy diff` tells of two policies of reports.
#[track_caller]
fn tells(old: &str, new: &str, lines: &[&str]) {
    let found = between(&with(&policy(old)), &with(&policy(new)));
    let line = |one: &Change| {
        assert_eq!(one.endpoints, ["payments/reports"]);
        let word = if one.allowed { '+' } else { '-' };
        format!("{word} {} {} on {}", one.direction, one.peers.join(", "), one.ports.join(", "))
    };
    let told: Vec<String> = found.connections.iter().map(line).collect();
    assert_eq!(told, lines, "{found:#?}");
    assert!(found.names.is_empty() && found.problems.is_empty() && found.is_empty() == lines.is_empty());
}

/// Egress to one block on some ports of TCP.
fn on_ports(ranges: &[(u16, u16)]) -> String {
    let range = |(first, last): &(u16, u16)| format!("{{port: \"{first}\", endPort: {last}, protocol: TCP}}");
    let ranges: Vec<String> = ranges.iter().map(range).collect();
    format!("egress: [{{toCIDR: [203.0.113.0/24], toPorts: [{{ports: [{}]}}]}}]", ranges.join(", "))
}

/// Egress to some blocks.
fn to(blocks: &str) -> String {
    format!("egress: [{{toCIDR: [{blocks}]}}]")
}

#[test]
fn a_range_of_ports_is_told_to_the_port() {
    let old = on_ports(&[(100, 200)]);
    tells(&old, &on_ports(&[(100, 201)]), &["+ egress 203.0.113.0/24 on 201/TCP"]);
    tells(&old, &on_ports(&[(100, 149), (151, 200)]), &["- egress 203.0.113.0/24 on 150/TCP"]);
    tells(&old, &on_ports(&[(100, 150)]), &["- egress 203.0.113.0/24 on 151-200/TCP"]);
    tells(&old, &on_ports(&[(100, 150), (151, 200)]), &[]);
    tells(&on_ports(&[(1, 65535)]), &on_ports(&[(1, 65534)]), &["- egress 203.0.113.0/24 on 65535/TCP"]);
}

#[test]
fn a_block_is_told_as_what_is_left_of_it() {
    tells(&to("198.51.0.0/16"), &to("198.51.0.0/17"), &["- egress 198.51.128.0/17 on every port"]);
    tells(&to("198.51.0.0/17"), &to("198.51.0.0/16"), &["+ egress 198.51.128.0/17 on every port"]);
    let two = to("198.51.0.0/17, 198.51.128.0/18");
    tells(&to("198.51.0.0/16"), &two, &["- egress 198.51.192.0/18 on every port"]);
    tells(&to("198.51.0.0/16"), &to("198.51.0.0/17, 198.51.128.0/17"), &[]);
    let deny = |block: &str| {
        let ports = "toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]";
        format!("{}\n  egressDeny: [{{toCIDR: [{block}], {ports}}}]", to("198.51.0.0/16"))
    };
    tells(&deny("198.51.100.0/24"), &deny("198.51.100.0/25"), &["+ egress 198.51.100.128/25 on 80/TCP"]);
}

#[test]
fn all_addresses_of_one_family_are_told_as_that() {
    let world = "egress: [{toEntities: [world]}]";
    tells(world, &to("0.0.0.0/0"), &["- egress outside the cluster (IPv6) on every port"]);
    tells(world, &to("0.0.0.0/0, '::/0'"), &[]);
    tells(world, "egress: [{toEntities: [none]}]", &["- egress outside the cluster on every port"]);
    tells(world, &to("0.0.0.0/1, '::/0'"), &["- egress outside the cluster except 0.0.0.0/1 (IPv4) on every port"]);
}

#[test]
fn every_port_is_said_only_where_icmp_is_meant_too() {
    let db = |ports: &str| format!("egress: [{{toEndpoints: [{{matchLabels: {{app: payment-processor}}}}]{ports}}}]");
    let any = db(", toPorts: [{ports: [{port: \"0\", protocol: ANY}]}]");
    let icmp = "payments/payment-processor on 8/ICMP, 13/ICMP, 42/ICMP, 128/ICMPv6, 160/ICMPv6";
    tells(&db(""), &any, &[&format!("- egress {icmp}")]);
    let others = "payments/payment-processor on every port/TCP, every port/UDP, every port/SCTP";
    let none = "egress: [{toEntities: [none]}]";
    tells(&any, none, &[&format!("- egress {others}")]);
    tells(none, &db(""), &["+ egress payments/payment-processor on every port"]);
    let named = db(", icmps: [{fields: [{family: IPv4, type: 3}]}]");
    tells(none, &named, &["+ egress payments/payment-processor on 3/ICMP"]);
}

/// An item about the cluster's DNS, with these ports and the names that may be asked for; none: any.
fn dns(protocol: &str, names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("{{matchPattern: \"{name}\"}}")).collect();
    let rules = if names.is_empty() { String::new() } else { format!(", rules: {{dns: [{}]}}", names.join(", ")) };
    format!(
        "{{toEndpoints: [{{matchLabels: {{k8s:io.kubernetes.pod.namespace: kube-system, k8s:k8s-app: kube-dns}}}}], \
         toPorts: [{{ports: [{{port: \"53\", protocol: {protocol}}}]{rules}}}]}}"
    )
}

fn egress(items: &[String]) -> String {
    format!("egress: [{}]", items.join(", "))
}

/// What it tells of names, and the same of the way back.
#[track_caller]
fn tells_names(old: &str, new: &str, lines: &[&str]) {
    let told = |old: &str, new: &str, opened: char, shut: char| {
        let found = between(&with(&policy(old)), &with(&policy(new)));
        let line = |one: &NameChange| {
            let word = if one.allowed { opened } else { shut };
            format!("{word} {} ({}): {}", one.pattern, one.example, one.what.join(", "))
        };
        found.names.iter().map(line).collect::<BTreeSet<String>>()
    };
    let lines: BTreeSet<String> = lines.iter().map(ToString::to_string).collect();
    assert_eq!(told(old, new, '+', '-'), lines);
    assert_eq!(told(new, old, '-', '+'), lines);
}

/// All other names than those of rules can't be asked for any more, whatever else changes.
#[track_caller]
fn loses_queries(old: &str, new: &str) {
    let found = between(&with(old), &with(new));
    let queries = found.names.iter().filter(|one| one.what.iter().any(|what| what.starts_with("query")));
    let told: Vec<_> = queries.map(|one| (one.allowed, one.pattern.as_str(), one.what.join(","))).collect();
    assert_eq!(told, [(false, "*", "query".to_owned())], "{found:#?}");
}

#[test]
fn names_are_compared_where_one_side_asks_for_any() {
    let (plain, one) = (egress(&[dns("UDP", &[])]), egress(&[dns("UDP", &["a.example"])]));
    tells_names(&plain, &one, &["- * (any.example): query"]);
    // All of them, whatever is open beside.
    tells_names(&egress(&[dns("UDP", &["**.example"])]), &plain, &["+ * (any.test): query"]);
    tells_names(&egress(&[dns("UDP", &["*"])]), &plain, &[]);
}

#[test]
fn names_are_compared_with_those_of_a_policy_that_denies_by_default() {
    let one = egress(&[dns("UDP", &["a.example"])]);
    let open = format!("enableDefaultDeny: {{egress: false}}\n  {one}");
    for old in [open, egress(&["{toEntities: [cluster, world]}".to_owned()])] {
        loses_queries(&policy(&old), &policy(&one));
    }
}

#[test]
fn names_are_compared_with_those_of_a_network_policy() {
    let old = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: reports, namespace: payments}\n\
               spec: {podSelector: {matchLabels: {app: reports}}, policyTypes: [Egress], \
               egress: [{ports: [{port: 53, protocol: UDP}]}]}\n";
    loses_queries(old, &policy(&egress(&[dns("UDP", &["a.example"])])));
}

#[test]
fn names_are_compared_by_protocol_and_by_server() {
    let over = |tcp: &[&str]| egress(&[dns("UDP", &["a.example", "b.example"]), dns("TCP", tcp)]);
    let told = ["- a.example (a.example): query over TCP", "+ b.example (b.example): query over TCP"];
    tells_names(&over(&["a.example"]), &over(&["b.example"]), &told);
    let there = |names: &str| {
        let ports = "toPorts: [{ports: [{port: \"53\", protocol: ANY}], rules: {dns: ";
        egress(&[dns("ANY", &["a.example"]), format!("{{toCIDR: [203.0.113.8/32], {ports}[{names}]}}}}]}}")])
    };
    let (a, none) = ("{matchName: a.example}", "{matchName: c.example}");
    let told = ["- a.example (a.example): query to 203.0.113.8/32", "+ c.example (c.example): query"];
    tells_names(&there(a), &there(none), &told);
}

#[test]
fn the_own_node_is_a_peer_in_both_directions() {
    let from = "ingress: [{fromEntities: [cluster]}]";
    let own = "ingress the workload's own node on every port";
    tells(from, &format!("{from}\n  ingressDeny: [{{fromEntities: [host]}}]"), &[&format!("- {own}")]);
    // The only other node would be the own one.
    let (host, remote) = ("egress: [{toEntities: [host]}]", "egress: [{toEntities: [remote-node]}]");
    tells(host, remote, &["- egress the workload's own node on every port"]);
}

#[test]
fn each_pod_has_its_own_node() {
    let more = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n2}\nstatus: {addresses: [{type: InternalIP, \
                address: 198.51.100.2}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: twin, namespace: payments, \
                labels: {app: reports}}\nspec: {nodeName: n2}\nstatus: {podIP: 198.51.100.78}\n";
    let cluster = format!("{CLUSTER}{more}");
    let with = |entity: &str| {
        let policy = policy(&format!("egress: [{{toEntities: [{entity}]}}]"));
        world(&[("cluster.yaml", &cluster), ("kube-dns.yaml", KUBE_DNS), ("r.yaml", &policy)])
    };
    let found = between(&with("host"), &with("remote-node"));
    let told: Vec<_> =
        found.connections.iter().map(|one| (one.allowed, one.peers.join("; "), &one.endpoints)).collect();
    let both = vec!["payments/reports".to_owned(), "payments/twin".to_owned()];
    let elsewhere = "node demo-node (for pods elsewhere); node n2 (for pods elsewhere)".to_owned();
    assert_eq!(told, [(true, elsewhere, &both), (false, "the workload's own node".to_owned(), &both)]);
}

#[test]
fn a_node_that_something_listens_at_is_told_by_its_own_pods() {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: kubernetes, namespace: default, \
                 labels: {kubernetes.io/service-name: kubernetes}}\naddressType: IPv4\nports: [{name: https, port: 6443, \
                 protocol: TCP}]\nendpoints: [{addresses: [198.51.100.1], conditions: {ready: true}}]\n";
    let cluster = format!("{CLUSTER}{slice}");
    let with = |entity: &str| {
        let policy = policy(&format!("egress: [{{toEntities: [{entity}]}}]"));
        world(&[("cluster.yaml", &cluster), ("kube-dns.yaml", KUBE_DNS), ("r.yaml", &policy)])
    };
    let found = between(&with("host"), &with("kube-apiserver"));
    let told: Vec<_> = found.connections.iter().map(|one| (one.allowed, one.peers.join("; "))).collect();
    assert_eq!(told, [(false, "the workload's own node".to_owned())], "{found:#?}");
}

#[test]
fn an_api_server_out_of_the_cluster_is_told_with_its_addresses() {
    let with = |addresses: &str, entity: &str| {
        let slice = format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: kubernetes, namespace: default, \
             labels: {{kubernetes.io/service-name: kubernetes}}}}\naddressType: IPv4\nports: [{{name: https, port: 6443, \
             protocol: TCP}}]\nendpoints: [{{addresses: [{addresses}], conditions: {{ready: true}}}}]\n"
        );
        let policy = policy(&format!("egress: [{{toEntities: [{entity}]}}]"));
        world(&[("cluster.yaml", &format!("{CLUSTER}{slice}")), ("kube-dns.yaml", KUBE_DNS), ("r.yaml", &policy)])
    };
    let told = |addresses: &str| {
        let found = between(&with(addresses, "kube-apiserver"), &with(addresses, "none"));
        found.connections.iter().map(|one| one.peers.join("; ")).collect::<Vec<_>>()
    };
    assert_eq!(told("203.0.113.200"), ["the API server at 203.0.113.200"]);
    assert_eq!(told("203.0.113.200, 203.0.113.201"), ["the API server at 203.0.113.200 and 203.0.113.201"]);
    let moved = between(&with("203.0.113.200", "kube-apiserver"), &with("203.0.113.201", "none"));
    assert_eq!(moved.connections[0].peers, ["the API server at 203.0.113.201"], "{moved:#?}");
}

#[test]
fn a_mode_is_told() {
    let old = with(REPORTS);
    let new = World { mode: crate::engine::world::Mode::Audit, ..with(REPORTS) };
    let found = between(&old, &new);
    assert_eq!(found.modes, ["payments/reports: before: enforced; now: audited"], "{found:#?}");
}
