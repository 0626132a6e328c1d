use super::*;
use crate::cluster::files::File;
use crate::cluster::snapshot::{LastGood, OnInvalid, assemble};

const CLUSTER: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-system}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {nodeName: a, containers: [{name: web, ports: [{name: http, containerPort: 8080, protocol: TCP}]}]}
status: {podIPs: [{ip: 198.51.100.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {app: db}}
spec: {nodeName: a}
status: {podIPs: [{ip: 198.51.100.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: coredns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec: {nodeName: a}
status: {podIPs: [{ip: 198.51.100.53}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 198.18.0.1, selector: {app: web}, ports: [{port: 80, protocol: TCP}]}
---
apiVersion: v1
kind: Node
metadata: {name: a}
status: {addresses: [{type: InternalIP, address: 203.0.113.1}]}
";

/// A rule that lets pods ask kube-dns, with or without `rules.dns`.
fn dns(rules: &str) -> String {
    format!(
        "- toEndpoints: [{{matchLabels: {{k8s:io.kubernetes.pod.namespace: kube-system, k8s:k8s-app: kube-dns}}}}]\n    \
         toPorts: [{{ports: [{{port: \"53\", protocol: ANY}}]{rules}}}]"
    )
}

/// A policy for the pods of namespace shop with these labels.
fn policy(name: &str, labels: &str, spec: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         endpointSelector: {{matchLabels: {{{labels}}}}}\n  {spec}\n---\n"
    )
}

/// The kinds and paths of the warnings for some policies in a cluster.
#[track_caller]
fn warned(policies: &[String], cluster: &str, expected: &[&str]) {
    let file = |name: &str, text: &str| File { name: name.to_owned(), content: Ok(text.as_bytes().to_vec()) };
    let text = policies.concat();
    let snapshot = assemble(&[file("p.yaml", &text), file("c.yaml", cluster)], &LastGood::default(), OnInvalid::Refuse);
    assert_eq!(snapshot.refusals, [], "{text}");
    let all = advise(&snapshot.world);
    let found: Vec<String> =
        all.iter().map(|advice| format!("{} {} {}", advice.kind, advice.at, advice.at.0.path)).collect();
    assert_eq!(found, expected, "{all:#?}");
}

/// What is said of a policy in a cluster.
fn said(policy: &str, cluster: &str) -> String {
    let text = policy.to_owned() + cluster.trim_start();
    let file = File { name: "a.yaml".to_owned(), content: Ok(text.into_bytes()) };
    let world = assemble(&[file], &LastGood::default(), OnInvalid::Refuse).world;
    advise(&world).into_iter().map(|advice| advice.text).collect()
}

/// The warnings for one policy of the web pods.
#[track_caller]
fn warns(spec: &str, expected: &[&str]) {
    let expected: Vec<String> = expected.iter().map(|text| text.replacen(' ', " shop/p spec", 1)).collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    warned(&[policy("p", "app: web", spec)], CLUSTER, &expected);
}

const ALL_NAMES: &str = ", rules: {dns: [{matchPattern: \"*\"}]}";
const TO_API: &str =
    "- toFQDNs: [{matchName: api.example.com}]\n    toPorts: [{ports: [{port: \"443\", protocol: TCP}]}]";

#[test]
fn names_need_a_server_that_may_be_asked_for_them() {
    warns(&format!("egress:\n  {}\n  {TO_API}", dns(ALL_NAMES)), &[]);
    warns(&format!("egress:\n  {TO_API}"), &["no-resolver .egress[0]"]);
    let other = dns(", rules: {dns: [{matchName: example.com}]}");
    warns(&format!("egress:\n  {other}\n  {TO_API}"), &["name-not-asked .egress[1].toFQDNs[0]"]);
    warns(&format!("egress:\n  {}\n  {TO_API}", dns("")), &["resolver-without-dns-rules .egress[0].toPorts[0]"]);
    // Without a rule for names, DNS as such is nobody's mistake.
    warns(&format!("egress:\n  {}", dns("")), &[]);
    // A rule for everything in the cluster reaches its DNS, too.
    warns(&format!("egress:\n  - toEntities: [cluster]\n  {TO_API}"), &[]);
    // But what it opens is not what beats rules.dns.
    warns(
        &format!("egress:\n  - toEntities: [cluster]\n  {other}\n  {TO_API}"),
        &["name-not-asked .egress[2].toFQDNs[0]"],
    );
    warns(
        &format!("egress:\n  - toEndpoints: [{{matchLabels: {{app: db}}}}]\n  {TO_API}"),
        &["no-resolver .egress[1]"],
    );
}

#[test]
fn the_server_may_be_another_policys() {
    let names = policy("names", "app: web", &format!("egress:\n  {TO_API}"));
    let server = |labels: &str, rules: &str| policy("server", labels, &format!("egress:\n  {}", dns(rules)));
    warned(&[names.clone(), server("", ALL_NAMES)], CLUSTER, &[]);
    warned(&[names.clone(), server("app: db", ALL_NAMES)], CLUSTER, &["no-resolver shop/names spec.egress[0]"]);
    // Without pods, a policy for all of the namespace counts, and one for others doesn't.
    warned(&[names.clone(), server("", ALL_NAMES)], "", &[]);
    warned(&[names.clone(), server("app: db", ALL_NAMES)], "", &["no-resolver shop/names spec.egress[0]"]);
    let expected = ["resolver-without-dns-rules shop/server spec.egress[0].toPorts[0]"];
    warned(&[names, server("", "")], CLUSTER, &expected);
}

#[test]
fn patterns_are_told_once() {
    let rules = |names: &str, dns_names: &str| {
        let dns = dns(&format!(", rules: {{dns: [{dns_names}]}}"));
        format!(
            "egress:\n  {dns}\n  - toFQDNs: [{names}]\n    toPorts: [{{ports: [{{port: \"443\", protocol: TCP}}]}}]"
        )
    };
    let star = "{matchPattern: \"*.rds.amazonaws.com\"}";
    warns(&rules(star, star), &["pattern-one-label .egress[1].toFQDNs[0]"]);
    let deep = rules("{matchName: a.b.rds.amazonaws.com}", star);
    warns(&deep, &["pattern-one-label .egress[0].toPorts[0].rules.dns[0]", "name-not-asked .egress[1].toFQDNs[0]"]);
    warns(&rules("{matchPattern: \"**.rds.amazonaws.com\"}", "{matchPattern: \"*\"}"), &[]);
    warns(
        &rules("{matchPattern: \"*.s3.amazonaws.com\"}", "{matchPattern: \"*\"}"),
        &["public-suffix .egress[1].toFQDNs[0]"],
    );
}

#[test]
fn one_label_will_do_where_all_names_that_are_wanted_have_one() {
    let names = |name: &str| {
        let ports = "toPorts: [{ports: [{port: \"443\", protocol: TCP}]}]";
        policy("names", "app: web", &format!("egress:\n  - toFQDNs: [{{{name}}}]\n    {ports}"))
    };
    let server =
        |list: &str| policy("server", "", &format!("egress:\n  {}", dns(&format!(", rules: {{dns: [{list}]}}"))));
    let star = "{matchPattern: \"*.a.example.com\"}";
    let told = "pattern-one-label shop/server spec.egress[0].toPorts[0].rules.dns[0]";
    warned(&[names("matchName: x.a.example.com"), server(star)], CLUSTER, &[]);
    warned(&[names("matchName: X.A.example.com."), server(star)], "", &[]);
    warned(&[names("matchPattern: \"api-*.a.example.com\""), server(star)], CLUSTER, &[]);
    // Nobody wants what it means.
    warned(&[server(star)], CLUSTER, &[told]);
    let other = format!("{star}, {{matchName: b.example.com}}");
    warned(&[names("matchName: b.example.com"), server(&other)], CLUSTER, &[told]);
    // Somebody wants what it leaves out.
    let missed = "name-not-asked shop/names spec.egress[0].toFQDNs[0]";
    warned(&[names("matchName: a.example.com"), server(star)], CLUSTER, &[missed, told]);
    warned(&[names("matchName: y.x.a.example.com"), server(star)], CLUSTER, &[missed, told]);
    let both = "matchName: x.a.example.com}, {matchName: y.x.a.example.com";
    let missed = "name-not-asked shop/names spec.egress[0].toFQDNs[1]";
    warned(&[names(both), server(star)], CLUSTER, &[missed, told]);
    warned(&[names(both), server(star)], "", &[missed, told]);
}

#[test]
fn a_server_that_one_rule_allows_for_some_names_and_another_for_all_is_told() {
    let list = dns(", rules: {dns: [{matchName: api.example.com}]}");
    let told = "resolver-of-two-minds .egress[1].toPorts[0]";
    let plain =
        |peers: &str, ports: &str| format!("egress:\n  {list}\n  - {peers}\n    toPorts: [{{ports: [{ports}]}}]");
    let dns_port = "{port: \"53\", protocol: UDP}";
    warns(&format!("egress:\n  {list}\n  {}", dns("")), &[told]);
    warns(&plain("toEntities: [cluster]", dns_port), &[told]);
    let narrower = "toEndpoints: [{matchLabels: {k8s:io.kubernetes.pod.namespace: kube-system}}]";
    warns(&plain(narrower, dns_port), &[told]);
    // Another server, and rules that don't speak of DNS.
    let expected = ["resolver-without-dns-rules .egress[1].toPorts[0]"];
    warns(&plain("toCIDR: [192.0.2.53/32]", dns_port), &expected);
    warns(&plain("toEntities: [cluster]", "{port: \"443\", protocol: TCP}"), &[]);
    // A list that leaves nothing out is of the same mind.
    warns(&format!("egress:\n  {}\n  {}", dns(ALL_NAMES), dns("")), &expected);
    let elsewhere = policy("q", "app: db", &format!("egress:\n  {}", dns("")));
    warned(&[policy("p", "app: web", &format!("egress:\n  {list}")), elsewhere], CLUSTER, &[]);
}

#[test]
fn what_is_said_of_two_minds_depends_on_the_selector_and_the_port() {
    let list = dns(", rules: {dns: [{matchName: api.example.com}]}");
    let text = |plain: &str| said(&policy("p", "app: web", &format!("egress:\n  {list}\n  {plain}")), CLUSTER);
    assert!(text(&dns("")).contains("the list shuts nothing"));
    let wide = "- toEntities: [cluster]\n    toPorts: [{ports: [{port: \"53\", protocol: UDP}]}]";
    assert!(text(wide).contains("this one opens no other name there"));
}

#[test]
fn a_protocol_of_dns_that_a_list_of_names_leaves_open_is_told() {
    let list = dns(", rules: {dns: [{matchName: api.example.com}]}").replace("ANY", "UDP");
    let beside = |plain: &str| format!("egress:\n  {list}\n  {plain}");
    let kube_dns = dns("").lines().next().unwrap_or_default().to_owned();
    for wide in [kube_dns.as_str(), "- toEntities: [cluster]"] {
        warns(&beside(wide), &["resolver-of-two-minds .egress[1]"]);
        let text = said(&policy("p", "app: web", &beside(wide)), CLUSTER);
        assert!(text.contains("53/TCP") && text.contains("protocol: ANY") && !text.contains("53/UDP"), "{text}");
    }
    warns(&beside("- toEntities: [all]"), &["doh-resolver .egress[1]", "resolver-of-two-minds .egress[1]"]);
    let on = |port: &str| format!("{kube_dns}\n    toPorts: [{{ports: [{{port: {port}}}]}}]");
    for open in ["\"53\", protocol: TCP", "\"0\", protocol: TCP", "\"1\", endPort: 1000, protocol: ANY"] {
        warns(&beside(&on(open)), &["resolver-of-two-minds .egress[1].toPorts[0]"]);
        assert!(said(&policy("p", "app: web", &beside(&on(open))), CLUSTER).contains("53/TCP"));
    }
    // Nothing is open besides, or no DNS server.
    let tcp = dns(", rules: {dns: [{matchName: b.example.com}]}").replace("ANY", "TCP");
    let denied = format!("egressDeny:\n  {}", dns("").replace("ANY", "TCP"));
    for shut in [
        "- toEndpoints: [{matchLabels: {app: db}}]".to_owned(),
        "- toCIDR: [192.0.2.0/24]".to_owned(),
        on("\"443\", protocol: TCP"),
        on("\"0\", protocol: UDP"),
        format!("{kube_dns}\n  {tcp}"),
        format!("{kube_dns}\n  {denied}"),
    ] {
        warns(&beside(&shut), &[]);
    }
    let any = list.replace("UDP", "ANY");
    warns(&format!("egress:\n  {any}\n  {kube_dns}"), &[]);
    let all = dns(ALL_NAMES).replace("ANY", "UDP");
    warns(&format!("egress:\n  {all}\n  {kube_dns}"), &[]);
}

#[test]
fn names_are_asked_for_on_port_53_or_on_what_a_service_maps_it_to() {
    let kube_dns = |target: u16, slice: bool| {
        let service = "---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIP: 198.18.0.53, selector: {k8s-app: kube-dns}, ports: [{name: dns, port: 53, protocol: UDP}]}
";
        let slice_text = format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: kube-dns, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}
addressType: IPv4
ports: [{{name: dns, port: {target}, protocol: UDP}}]
endpoints: [{{addresses: [198.51.100.53], conditions: {{ready: true}}}}]
"
        );
        format!("{CLUSTER}{service}{}", if slice { &slice_text } else { "" })
    };
    let on = |port: &str, rules: &str| {
        let server = dns(rules).replace("\"53\", protocol: ANY", port);
        policy("p", "app: web", &format!("egress:\n  {server}\n  {TO_API}"))
    };
    let none: &[&str] = &["no-resolver shop/p spec.egress[1]"];
    for elsewhere in ["\"5353\", protocol: TCP", "\"853\", protocol: TCP"] {
        warned(&[on(elsewhere, ALL_NAMES)], &kube_dns(53, true), none);
        warned(&[on(elsewhere, ALL_NAMES)], &kube_dns(5353, true), none);
    }
    let target = "\"5353\", protocol: UDP";
    for rules in [ALL_NAMES, ""] {
        warned(&[on(target, rules)], &kube_dns(53, true), none);
    }
    warned(&[on(target, ALL_NAMES)], &kube_dns(5353, true), &[]);
    let unlisted = ["resolver-without-dns-rules shop/p spec.egress[0].toPorts[0]"];
    warned(&[on(target, "")], &kube_dns(5353, true), &unlisted);
    for port in [target, "\"53\", protocol: UDP", "dns, protocol: UDP"] {
        // What a named port is, and what is behind the Service, is not known.
        let known: Vec<&str> =
            if port.starts_with("dns") { vec!["no-such-port shop/p spec.egress[0].toPorts[0]"] } else { vec![] };
        warned(&[on(port, ALL_NAMES)], &kube_dns(53, false), &known);
        warned(&[on(port, ALL_NAMES)], "", &[]);
    }
}

#[test]
fn names_without_ports_open_every_port() {
    let spec = format!("egress:\n  {}\n  - toFQDNs: [{{matchName: api.example.com}}]", dns(ALL_NAMES));
    warns(&spec, &["names-without-ports .egress[1]"]);
}

#[test]
fn selectors_that_select_nothing_are_told_where_there_are_pods() {
    let none = policy("p", "app: nobody", "ingress:\n  - fromEndpoints: [{matchLabels: {app: web}}]");
    warned(std::slice::from_ref(&none), CLUSTER, &["selects-nothing shop/p spec"]);
    warned(&[none], "", &[]);
    warns("ingress:\n  - fromEndpoints: [{matchLabels: {app: nobody}}]", &["selects-nothing .ingress[0]"]);
    warns("ingress:\n  - fromEndpoints: [{matchLabels: {k8s-app: kube-dns}}]", &["selects-nothing .ingress[0]"]);
    warns("ingress:\n  - fromEndpoints: [{}]", &[]);
}

#[test]
fn what_is_not_there_is_told() {
    warns("egress:\n  - toServices: [{k8sService: {serviceName: gone}}]", &["no-such-object .egress[0]"]);
    warns("egress:\n  - toServices: [{k8sService: {serviceName: web}}]", &[]);
    warns("egress:\n  - toCIDRSet: [{cidrGroupRef: gone}]", &["no-such-object .egress[0]"]);
    let service = |name: &str| {
        format!("ingress:\n  - toPorts: [{{service: {name}, ports: [{{port: \"8080\", protocol: TCP}}]}}]")
    };
    warns(&service("web"), &[]);
    warns(&service("gone"), &["no-such-object .ingress[0].toPorts[0]"]);
    let port = |name: &str| format!("ingress:\n  - toPorts: [{{ports: [{{port: {name}, protocol: TCP}}]}}]");
    warns(&port("http"), &[]);
    warns(&port("https"), &["no-such-port .ingress[0].toPorts[0]"]);
    warns("ingress:\n  - fromEntities: [health, cluster]", &["means-nobody .ingress[0]"]);
}

#[test]
fn blocks_of_the_clusters_own_addresses_are_told() {
    warns("egress:\n  - toCIDR: [198.51.100.2/32]", &["block-of-cluster .egress[0]"]);
    warns("egress:\n  - toCIDR: [198.18.0.1/32]", &["block-of-cluster .egress[0]"]);
    warns("egress:\n  - toCIDR: [203.0.113.0/24]", &["block-of-cluster .egress[0]"]);
    warns("egress:\n  - toCIDR: [0.0.0.0/0]", &[]);
    warns("egress:\n  - toCIDR: [192.0.2.0/24]", &[]);
}

/// An API server out of the cluster.
const API_SERVER: &str = "---
apiVersion: v1
kind: Service
metadata: {name: kubernetes, namespace: default}
spec: {clusterIP: 198.18.0.2, ports: [{name: https, port: 443, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
ports: [{name: https, port: 6443, protocol: TCP}]
endpoints: [{addresses: [192.0.2.200], conditions: {ready: true}}]
";

#[test]
fn rules_that_never_open_the_api_server_are_told() {
    let cluster = format!("{CLUSTER}{API_SERVER}");
    let warns = |spec: &str, expected: &[&str]| warned(&[policy("p", "app: web", spec)], &cluster, expected);
    for never in [
        "toCIDR: [192.0.2.200/32]",
        "toCIDR: [192.0.2.0/24]",
        "toCIDRSet: [{cidr: 192.0.2.0/24, except: [192.0.2.0/25]}]",
        "toCIDR: [198.18.0.2/32]",
        "toServices: [{k8sService: {serviceName: kubernetes, namespace: default}}]",
    ] {
        warns(&format!("egress:\n  - {never}"), &["block-of-cluster shop/p spec.egress[0]"]);
        let text = said(&policy("p", "app: web", &format!("egress:\n  - {never}")), &cluster);
        assert!(text.contains("toEntities: [kube-apiserver]"), "{text}");
    }
    warns("ingress:\n  - fromCIDR: [192.0.2.200/32]", &["block-of-cluster shop/p spec.ingress[0]"]);
    for other in [
        "toEntities: [kube-apiserver]",
        "toCIDR: [192.0.2.0/25]",
        "toCIDRSet: [{cidr: 192.0.2.0/24, except: [192.0.2.200/32]}]",
        "toServices: [{k8sService: {serviceName: web}}]",
    ] {
        warns(&format!("egress:\n  - {other}"), &[]);
    }
    // A denial meets an API server out of the cluster.
    warns("egress:\n  - toEntities: [kube-apiserver]\n  egressDeny:\n  - toCIDR: [192.0.2.200/32]", &[]);
    // A NetworkPolicy has no entities.
    let to = "egress: [{to: [{ipBlock: {cidr: 192.0.2.200/32}}]}]";
    let text = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\n\
         spec: {{podSelector: {{}}, policyTypes: [Egress], {to}}}\n---\n"
    );
    let text = said(&text, &cluster);
    assert!(text.contains("a CiliumNetworkPolicy with toEntities: [kube-apiserver]"), "{text}");
}

#[test]
fn a_denial_of_blocks_that_hold_pods_is_told_however_wide_it_is() {
    let deny = |block: &str| format!("egress:\n  - toEntities: [world]\n  egressDeny:\n  - toCIDR: [{block}]");
    warns(&deny("198.0.0.0/8"), &["block-of-cluster .egressDeny[0]"]);
    warns(&deny("11.0.0.0/8"), &[]);
    warns("egress:\n  - toCIDR: [198.0.0.0/8]", &[]);
}

#[test]
fn a_block_that_is_excepted_as_a_whole_means_nobody() {
    let set = |except: &str| format!("egress:\n  - toCIDRSet: [{{cidr: 192.0.2.0/24, except: [{except}]}}]");
    warns(&set("192.0.2.0/25, 192.0.2.128/25"), &["means-nobody .egress[0]"]);
    warns(&set("192.0.2.128/25, 192.0.2.0/26, 192.0.2.64/26"), &["means-nobody .egress[0]"]);
    warns(&set("192.0.2.0/25, 192.0.2.128/26"), &[]);
}

#[test]
fn names_of_the_clusters_own_domain_are_told() {
    let names = |name: &str| {
        let ports = "toPorts: [{ports: [{port: \"443\", protocol: TCP}]}]";
        format!("egress:\n  {}\n  - toFQDNs: [{{{name}}}]\n    {ports}", dns(ALL_NAMES))
    };
    let told = &["name-of-cluster .egress[1].toFQDNs[0]"];
    warns(&names("matchPattern: \"**.svc.cluster.local\""), told);
    warns(&names("matchName: web.shop.svc.CLUSTER.local."), told);
    warns(&names("matchPattern: \"web-*.shop.svc.cluster.local\""), told);
    warns(&names("matchName: web.notcluster.local"), &[]);
    // It may be asked for.
    warns(&format!("egress:\n  {}", dns(", rules: {dns: [{matchPattern: \"**.svc.cluster.local\"}]}")), &[]);
}

#[test]
fn a_port_that_the_named_service_has_not_is_told() {
    let slice = "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: \"\", port: 8080, protocol: TCP}]
endpoints: [{addresses: [198.51.100.1], conditions: {ready: true}}]
";
    let cluster = format!("{CLUSTER}{slice}");
    let port = |port: &str| {
        policy("p", "app: web", &format!("ingress:\n  - toPorts: [{{service: web, ports: [{{port: {port}}}]}}]"))
    };
    let told = ["no-such-port shop/p spec.ingress[0].toPorts[0]"];
    warned(&[port("\"9999\", protocol: TCP")], &cluster, &told);
    warned(&[port("\"8080\", protocol: UDP")], &cluster, &told);
    for has in
        ["\"8080\", protocol: TCP", "\"8080\", protocol: ANY", "\"80\", protocol: TCP", "\"8000\", endPort: 8100"]
    {
        warned(&[port(has)], &cluster, &[]);
    }
    // Where its pods listen is not known.
    warned(&[port("\"9999\", protocol: TCP")], CLUSTER, &[]);
}

#[test]
fn resolvers_over_https_are_told() {
    let rules = |peers: &str, port: u16, deny: &str| {
        let ports = format!("toPorts: [{{ports: [{{port: \"{port}\", protocol: TCP}}]}}]");
        format!("egress:\n  {}\n  - {peers}\n    {ports}\n  {deny}", dns(ALL_NAMES))
    };
    warns(&rules("toFQDNs: [{matchName: dns.google}]", 443, ""), &["doh-resolver .egress[1].toFQDNs[0]"]);
    warns(&rules("toFQDNs: [{matchName: dns.google}]", 80, ""), &[]);
    warns(&rules("toCIDR: [1.1.1.1/32]", 853, ""), &["doh-resolver .egress[1]"]);
    warns(&rules("toCIDR: [0.0.0.0/0]", 443, ""), &["doh-resolver .egress[1]"]);
    warns(&rules("toEntities: [world]", 443, ""), &["doh-resolver .egress[1]"]);
    warns(&rules("toEntities: [world]", 80, ""), &[]);
    warns(&rules("toEntities: [world]", 443, "egressDeny:\n  - toCIDR: [8.8.8.8/32]"), &[]);
    // Where names are not filtered there is nothing to pass by.
    warns("egress:\n  - toEntities: [world]", &[]);
}

#[test]
fn what_a_denial_shadows_is_told() {
    let web = "ingress:\n  - fromEndpoints: [{matchLabels: {app: db}}]\n    toPorts: [{ports: [{port: \"8080\", protocol: TCP}]}]";
    let deny = |deny: &str| format!("{web}\n  ingressDeny:\n  - {deny}");
    for all_of_it in [
        "fromEndpoints: [{}]",
        "fromEndpoints: [{matchLabels: {app: db}}]",
        "fromEntities: [cluster]",
        "fromEntities: [all]",
        "fromEndpoints: [{matchLabels: {app: db}}]\n    toPorts: [{ports: [{port: \"0\", protocol: TCP}]}]",
    ] {
        warns(&deny(all_of_it), &["shadowed-by-deny .ingress[0]"]);
    }
    for some_of_it in [
        "fromEndpoints: [{matchLabels: {app: db, tier: back}}]",
        "fromEntities: [world]",
        "fromEndpoints: [{}]\n    toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]",
        "fromEndpoints: [{}]\n    toPorts: [{ports: [{port: \"8080\", protocol: UDP}]}]",
    ] {
        let found: &[&str] = if some_of_it.contains("back") { &["selects-nothing .ingressDeny[0]"] } else { &[] };
        warns(&deny(some_of_it), found);
    }
    let egress = "egress:\n  - toCIDR: [192.0.2.0/24]\n  egressDeny:\n  - toCIDR: [192.0.0.0/16]";
    warns(egress, &["shadowed-by-deny .egress[0]"]);
    warns("egress:\n  - toCIDR: [192.0.2.0/24]\n  egressDeny:\n  - toCIDR: [192.0.2.0/25]", &[]);
    // "cluster" is the nodes and the API server as well.
    let special = "egress:\n  - toEntities: [kube-apiserver, remote-node]\n  egressDeny:\n  - toEntities: [cluster]";
    warns(special, &["shadowed-by-deny .egress[0]"]);
}

#[test]
fn what_several_denials_shadow_together_is_told() {
    let tcp = |first: u16, last: u16| {
        format!("toPorts: [{{ports: [{{port: \"{first}\", endPort: {last}, protocol: TCP}}]}}]")
    };
    let spec = |allow: &str, deny: &[&str]| {
        let deny: String = deny.iter().map(|deny| format!("\n  - {deny}")).collect();
        format!("egress:\n  - {allow}\n  egressDeny:{deny}")
    };
    let told = &["shadowed-by-deny .egress[0]"];
    let net = "toCIDR: [192.0.2.0/24]";
    warns(&spec(net, &["toCIDR: [192.0.2.0/25, 192.0.2.128/25]"]), told);
    warns(&spec(net, &["toCIDR: [192.0.2.128/25]", "toCIDR: [192.0.2.0/26]", "toCIDR: [192.0.2.64/26]"]), told);
    warns(&spec(net, &["toCIDR: [192.0.2.128/25]", "toCIDR: [192.0.2.0/26]"]), &[]);
    let on = |peers: &str, first: u16, last: u16| format!("{peers}\n    {}", tcp(first, last));
    let world = "toEntities: [world]";
    let ports = [on(world, 80, 80), on(world, 81, 81)];
    warns(&spec(&on(world, 80, 81), &[&ports[0], &ports[1]]), told);
    warns(&spec(&on(net, 80, 81), &[&ports[0], &ports[1]]), told);
    warns(&spec(&on(world, 80, 82), &[&ports[0], &ports[1]]), &[]);
    warns(&spec(world, &[&ports[0], &ports[1]]), &[]);
    // A port for each half is the whole of neither.
    let halves = [on("toCIDR: [192.0.2.0/25]", 80, 80), on("toCIDR: [192.0.2.128/25]", 81, 81)];
    warns(&spec(&on(net, 80, 81), &[&halves[0], &halves[1]]), &[]);
    let both = [on("toCIDR: [192.0.2.0/25]", 80, 81), on("toCIDR: [192.0.2.128/25]", 0, 0).replace(", endPort: 0", "")];
    warns(&spec(&on(net, 80, 81), &[&both[0], &both[1]]), told);
    warns(&spec(&on(world, 80, 81), &["toCIDR: [0.0.0.0/1, 128.0.0.0/1]", "toCIDR: [\"::/0\"]"]), told);
    warns(&spec(&on(world, 80, 81), &["toCIDR: [0.0.0.0/1, 128.0.0.0/1]"]), &[]);
    // Of different policies, and in the order in which they stand.
    let allow = policy("p", "app: web", &format!("egress:\n  - {net}"));
    let deny = |name: &str, block: &str| policy(name, "", &format!("egressDeny:\n  - toCIDR: [{block}]"));
    let (one, other) = (deny("q", "192.0.2.0/25"), deny("r", "192.0.2.128/25"));
    warned(&[allow.clone(), one.clone(), other.clone()], CLUSTER, &["shadowed-by-deny shop/p spec.egress[0]"]);
    let text = said(&[allow, one, other].concat(), CLUSTER);
    assert!(text.contains("spec.egressDeny[0] at a.yaml:15:5 and 1 more deny all of it together"), "{text}");
}

#[test]
fn what_nothing_shuts_needs_no_rule() {
    let open = "enableDefaultDeny: {ingress: false}\n  ingress:\n  - fromEndpoints: [{}]";
    warns(open, &["without-effect "]);
    let shut = policy("q", "app: web", "ingress:\n  - {}");
    warned(&[policy("p", "app: web", open), shut], CLUSTER, &[]);
}

#[test]
fn one_pod_stands_for_all_that_the_same_rules_select() {
    let text = policy("p", "app: web", "ingress:\n  - fromEndpoints: [{}]") + CLUSTER.trim_start();
    let file = File { name: "a.yaml".to_owned(), content: Ok(text.into_bytes()) };
    let snapshot = assemble(&[file], &LastGood::default(), OnInvalid::Refuse);
    let pods: Vec<String> =
        one_of_each(&snapshot.world).iter().map(|(pod, rules)| format!("{pod} {}", rules.len())).collect();
    assert_eq!(pods, ["kube-system/coredns 0", "shop/web-0 1"]);
}

#[test]
fn thousands_of_policies_are_as_many_questions_and_not_their_square() {
    let world = |policies: &[String]| {
        let file =
            File { name: "a.yaml".to_owned(), content: Ok((policies.concat() + CLUSTER.trim_start()).into_bytes()) };
        assemble(&[file], &LastGood::default(), OnInvalid::Refuse).world
    };
    let counts = |labels: &dyn Fn(usize) -> String| {
        let each = |number| policy(&format!("p{number}"), &labels(number), &format!("egress:\n  {TO_API}"));
        let world = world(&(0..1000).map(each).collect::<Vec<_>>());
        let together = Together::new(&world);
        let pairs: usize = together.sets.iter().map(|set| set.bundles.len()).sum();
        let wider: usize = together.bundles.iter().map(|bundle| bundle.everywhere.len()).sum();
        (together.bundles.len(), together.sets.len(), pairs, wider)
    };
    // All of them for one pod: one bundle, which holds for it and not for others.
    assert_eq!(counts(&|_| "app: web".to_owned()), (1, 2, 1, 1));
    // One for each of pods that aren't there, in two lines of which they share one.
    assert_eq!(counts(&|number| format!("app: web, pod: w{number}")), (1000, 1001, 1000, 1000));
}
