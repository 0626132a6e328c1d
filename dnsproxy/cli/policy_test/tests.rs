//! Cases of every form, with what they get.

use super::*;

const OBJECTS: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toEndpoints: [{matchLabels: {app: db}}]
    toPorts: [{ports: [{port: "5432", protocol: TCP}]}]
  - toEndpoints: [{matchLabels: {k8s:io.kubernetes.pod.namespace: kube-system, k8s-app: kube-dns}}]
    toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules: {dns: [{matchPattern: "*.example.com"}]}
  - toFQDNs: [{matchPattern: "*.example.com"}]
    toPorts: [{ports: [{port: "443", protocol: TCP}]}]
  - toEntities: [host]
  ingress:
  - fromEntities: [cluster]
---
apiVersion: v1
kind: Pod
metadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
status: {podIP: 203.0.113.53}
"#;

fn run(cases: &str) -> (Vec<Outcome>, bool) {
    let read = case::read("cases.yaml", cases, Path::new(".")).expect("YAML");
    judged(read, None)
}

/// A case about `app: web` with the objects above.
fn with_objects(case: &str) -> String {
    let objects: String = OBJECTS.lines().map(|line| format!("  {line}\n")).collect();
    format!("objects: |\n{objects}subject: {{namespace: shop, labels: {{app: web}}}}\n{case}\n")
}

#[track_caller]
fn gets(case: &str, got: &str) -> String {
    let (outcomes, _) = run(&with_objects(&format!("{case}\nexpect: {got}")));
    assert!(outcomes.len() == 1 && outcomes[0].ok, "{case}: {outcomes:#?}");
    outcomes[0].why.clone()
}

#[track_caller]
fn egress(peer: &str, port: &str, got: &str) -> String {
    gets(&format!("direction: egress\npeer: {peer}\n{port}"), got)
}

#[test]
fn peers_of_every_form_are_judged() {
    let why = egress("{namespace: shop, labels: {app: db}}", "port: 5432", "allow");
    assert_eq!(
        why,
        "allowed by CiliumNetworkPolicy shop/web spec.egress[0] (objects[0].yaml:8:5): allows endpoints \
         app=db,k8s:io.kubernetes.pod.namespace=shop on 5432/TCP"
    );
    let why = egress("{namespace: other, labels: {app: db}}", "port: 5432", "deny");
    assert!(why.starts_with("denied: no rule allows it; default deny by CiliumNetworkPolicy shop/web spec ("), "{why}");
    let why = egress("{namespace: shop, labels: {app: db}}", "port: 5433", "deny");
    assert!(
        why.contains("nearest: CiliumNetworkPolicy shop/web spec.egress[0]") && why.contains("not this port"),
        "{why}"
    );
    egress("{pod: kube-system/dns}", "port: 53\nprotocol: UDP", "allow");
    egress("{ip: 203.0.113.53}", "port: 53\nprotocol: UDP", "allow");
    egress("{pod: kube-system/dns}", "port: 443", "deny");
    egress("{ip: 198.51.100.1}", "port: 443", "deny");
    egress("{entity: world}", "port: 443", "deny");
    egress("{entity: none}", "port: 443", "deny");
    egress("{entity: host}", "port: 1", "allow");
    egress("{entity: remote-node}", "port: 1", "deny");
    egress("{entity: host}", "protocol: ICMP\nicmp_type: 8", "allow");
    egress("{fqdn: api.example.com, ip: 198.51.100.1}", "port: 443", "allow");
    egress("{fqdn: api.example.com, ip: 198.51.100.1}", "port: 80", "deny");
    egress("{fqdn: a.b.example.com, ip: 198.51.100.1}", "port: 443", "deny");
    let why = egress("{fqdn: api.example.com, ip: 10.0.0.1}", "port: 443", "deny");
    assert!(why.contains("10.0.0.1 is guarded: private"), "{why}");
}

#[test]
fn ingress_asks_the_subjects_own_rules() {
    let ingress = |peer: &str, got| gets(&format!("direction: ingress\npeer: {peer}\nport: 8080"), got);
    ingress("{labels: {any: one}}", "allow");
    ingress("{entity: cluster}", "allow");
    ingress("{entity: none}", "deny");
    ingress("{entity: world}", "deny");
    ingress("{entity: host}", "allow");
    ingress("{ip: 198.51.100.9}", "deny");
}

#[test]
fn queries_are_judged_by_name_server_and_type() {
    let why = gets("query: api.example.com", "allow");
    assert!(why.starts_with("may be asked of 203.0.113.53 on 53/UDP (rule) by "), "{why}");
    let why = gets("query: a.b.example.com", "deny");
    assert!(why.ends_with("\"*.example.com\" spans one label; \"**.example.com\" spans several"), "{why}");
    gets("query: api.example.com\nqtype: ANY", "deny");
    gets("query: api.example.com\nresolver: 198.51.100.53", "deny");
    gets("query: other.test\nresolver: 203.0.113.53", "deny");
}

#[test]
fn a_name_that_no_query_can_hold_is_denied_and_told_why() {
    let why = gets("query: a..example.com", "deny");
    assert!(why.starts_with("no message of DNS can ask for it: label 1 "), "{why}");
    let why = gets(&format!("query: {}.example.com", "x".repeat(64)), "deny");
    assert!(why.contains("64 octets; the limit is 63"), "{why}");
}

#[test]
fn a_manifest_is_valid_or_refused_with_its_message() {
    let manifest = |text: &str, rest: &str| {
        let (outcomes, _) = run(&format!("manifest: {}\n{rest}\n", serde_json::json!(text)));
        (outcomes[0].ok, outcomes[0].got, outcomes[0].why.clone())
    };
    assert!(manifest(OBJECTS, "expect: valid").0);
    let wrong = OBJECTS.replace("toFQDNs", "toFqdns");
    let (ok, got, why) = manifest(&wrong, "expect: refused\nmessage: toFqdns is no field here");
    assert!(ok && got == "refused" && why.starts_with("manifest.yaml:14:5: CiliumNetworkPolicy shop/web: "), "{why}");
    assert!(!manifest(&wrong, "expect: refused\nmessage: something else").0);
    assert!(!manifest(&wrong, "expect: valid").0);
    assert!(manifest("kind: Nothing\napiVersion: v7\n", "expect: refused").0);
    assert!(manifest("a: [", "expect: refused").0);
}

#[test]
fn what_is_refused_in_objects_shows_and_the_case_is_judged() {
    let case = with_objects("direction: egress\npeer: {labels: {app: db}, namespace: shop}\nport: 5432\nexpect: deny");
    let (outcomes, wrong) = run(&case.replace("toFQDNs", "toFqdns"));
    assert!(outcomes[0].ok && !wrong, "{outcomes:#?}");
    assert!(outcomes[0].why.contains("refused: objects[0].yaml:14:5: CiliumNetworkPolicy shop/web: "), "{outcomes:#?}");
}

#[test]
fn a_case_that_can_not_be_read_names_the_place_and_the_others_go_on() {
    let good = with_objects("query: api.example.com\nexpect: allow");
    let wrong = [
        ("subjct: {}", "cases.yaml:1:1: subjct: subjct is no field here"),
        ("expect: perhaps", "\"perhaps\"; allowed: allow, deny"),
        ("manifest: x\nport: 1\nexpect: valid", "port in a case about a manifest"),
        ("subject: {}\ndirection: egress\npeer: {entity: nobody}\nport: 1\nexpect: deny", "\"nobody\" is no entity"),
        ("subject: {}\ndirection: egress\npeer: {ip: x}\nport: 1\nexpect: deny", "\"x\" is no address"),
        ("subject: {}\ndirection: egress\npeer: {ip: 192.0.2.1}\nport: http\nexpect: deny", "none of named_ports"),
        ("objects: [none.yaml]\nsubject: {}\nquery: a.b\nexpect: deny", "no such file or directory"),
    ];
    for (text, why) in wrong {
        let (outcomes, unreadable) = run(&format!("{text}\n---\n{good}"));
        assert!(unreadable && outcomes.len() == 2 && outcomes[1].ok, "{text}: {outcomes:#?}");
        assert!(outcomes[0].why.contains(why) && outcomes[0].got == "error", "{text}: {}", outcomes[0].why);
    }
}

#[test]
fn a_pod_that_is_not_there_is_an_error_of_its_case() {
    let case = with_objects("direction: egress\npeer: {pod: shop/none}\nport: 1\nexpect: deny");
    let (outcomes, unreadable) = run(&case);
    assert!(!unreadable && outcomes[0].got == "error" && outcomes[0].why.contains("shop/none"), "{outcomes:#?}");
}

#[test]
fn results_come_in_the_order_of_the_cases_as_json_and_as_xml() {
    let cases = format!(
        "id: one\n{}---\nid: <2>\n{}",
        with_objects("query: api.example.com\nexpect: allow"),
        with_objects("query: api.example.com\nexpect: deny")
    );
    let (outcomes, _) = run(&cases);
    let tested = [Tested { file: "cases.yaml".to_owned(), outcomes }];
    let lines: Vec<serde_json::Value> =
        report::json(&tested).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let keys: Vec<_> = lines[0].as_object().expect("an object").keys().cloned().collect();
    assert_eq!(keys, ["expect", "got", "id", "ok", "why"]);
    assert_eq!((&lines[0]["id"], &lines[0]["ok"], &lines[1]["ok"]), (&"one".into(), &true.into(), &false.into()));
    let xml = report::junit(&tested);
    assert!(xml.contains("tests=\"2\" failures=\"1\"") && xml.contains("name=\"&lt;2&gt;\""), "{xml}");
    assert!(xml.contains("<failure message=\"expected deny, got allow\">may be asked"), "{xml}");
    let text = report::text(&tested);
    assert!(
        text.ends_with("2 cases, 1 as expected, 1 not\n") && text.contains("<2>: expected deny, got allow\n  may"),
        "{text}"
    );
}

#[test]
fn json_lines_and_inline_objects_say_the_same() {
    let object: Vec<String> =
        crate::cluster::tree::yaml(OBJECTS).expect("YAML").iter().map(crate::cluster::tree::write_json).collect();
    let case = format!(
        r#"{{"id":7,"objects":[{}],"subject":{{"namespace":"shop","labels":{{"app":"web"}}}},"query":"api.example.com","expect":"allow"}}"#,
        object.join(",")
    );
    let read = case::read("cases.jsonl", &format!("{case}\n{case}\n"), Path::new(".")).expect("JSON");
    let (outcomes, _) = judged(read, None);
    assert!(outcomes.len() == 2 && outcomes.iter().all(|one| one.ok && one.id == 7), "{outcomes:#?}");
}

#[test]
fn the_cases_of_the_readme_get_what_they_expect() {
    let readme = include_str!("../../../README.md");
    let section = readme.split("## Understanding a policy").nth(1).expect("the section");
    let cases = section.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("cases");
    let read = case::read("README.md", cases, Path::new(env!("CARGO_MANIFEST_DIR"))).expect("YAML");
    let (outcomes, unreadable) = judged(read, None);
    assert!(!unreadable && outcomes.len() == 3 && outcomes.iter().all(|outcome| outcome.ok), "{outcomes:#?}");
}

#[test]
fn named_ports_are_those_of_the_side_that_listens() {
    let named = OBJECTS.replace("\"5432\"", "postgres");
    let case = |ports: &str, port: u16, got: &str| {
        let objects: String = named.lines().map(|line| format!("  {line}\n")).collect();
        let text = format!(
            "objects: |\n{objects}subject: {{namespace: shop, labels: {{app: web}}}}\ndirection: egress\n\
             peer: {{namespace: shop, labels: {{app: db}}}}\nport: {port}\nnamed_ports: {ports}\nexpect: {got}\n"
        );
        let (outcomes, _) = run(&text);
        assert!(outcomes[0].ok, "{outcomes:#?}");
    };
    case("{TCP: {postgres: 6000}}", 6000, "allow");
    case("{TCP: {postgres: 6000}}", 5432, "deny");
    case("{UDP: {postgres: 6000}}", 6000, "deny");
    case("{}", 5432, "deny");
}

/// Policies of `app: web` in shop with these items of egress; nodes; and what the case asks.
#[track_caller]
fn with_nodes(items: &str, nodes: &[&str], case: &str) -> String {
    let nodes: String = nodes
        .iter()
        .map(|address| {
            format!(
                "  ---\n  apiVersion: v1\n  kind: Node\n  metadata: {{name: node-{address}}}\n  \
                 status: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n"
            )
        })
        .collect();
    let (outcomes, _) = run(&format!(
        "objects: |\n  apiVersion: cilium.io/v2\n  kind: CiliumNetworkPolicy\n  metadata: {{name: web, namespace: shop}}\n  \
         spec: {{endpointSelector: {{}}, egress: [{items}]}}\n{nodes}subject: {{namespace: shop}}\n{case}\n"
    ));
    assert!(outcomes.len() == 1 && outcomes[0].ok, "{case}: {outcomes:#?}");
    outcomes[0].why.clone()
}

#[test]
fn a_rule_for_a_class_makes_a_resolver_of_nobody_as_explain_says() {
    let items = "{toFQDNs: [{matchName: a.example}], toPorts: [{ports: [{port: \"443\"}]}]}, \
                 {toEntities: [remote-node], toPorts: [{ports: [{port: \"53\", protocol: UDP}]}]}";
    let nodes = ["198.51.100.1", "198.51.100.2"];
    let gets = |case: &str| with_nodes(items, &nodes, case);
    let why = gets("direction: egress\npeer: {ip: 198.51.100.2}\nport: 53\nprotocol: UDP\nexpect: deny");
    assert!(why.contains("queries to this server are dropped"), "{why}");
    gets("direction: egress\npeer: {entity: remote-node}\nport: 53\nprotocol: UDP\nexpect: deny");
    let why = gets("query: a.example\nresolver: 198.51.100.2\nexpect: deny");
    assert!(why.contains("unknown resolver"), "{why}");
    // The DNS of the cluster is not among the objects: it may be one of those.
    gets("query: a.example\nexpect: allow");
    // Nobody looks at queries without names in policies.
    let plain = "{toEntities: [remote-node], toPorts: [{ports: [{port: \"53\", protocol: UDP}]}]}";
    with_nodes(plain, &nodes, "query: a.example\nresolver: 198.51.100.2\nexpect: allow");
    with_nodes(plain, &nodes, "direction: egress\npeer: {ip: 198.51.100.2}\nport: 53\nprotocol: UDP\nexpect: allow");
}

#[test]
fn the_entity_world_is_nobody_of_the_cluster() {
    let cluster = "{toEntities: [cluster]}";
    let port = |family: &str| format!("direction: egress\npeer: {{entity: world}}\n{family}\nexpect: deny");
    for nodes in [&["192.0.2.1"][..], &["192.0.2.1", "198.51.100.1", "203.0.113.1", "192.0.2.2"], &["2001:db8::1"]] {
        with_nodes(cluster, nodes, &port("port: 443"));
        with_nodes(cluster, nodes, &port("protocol: ICMPv6\nicmp_type: 128"));
    }
    // Nor does a block mean it, or else the node next to one.
    with_nodes("{toCIDR: [192.0.2.0/24]}, {toEntities: [cluster]}", &["192.0.3.0"], &port("port: 443"));
}

#[test]
fn json_lines_of_any_number_of_values_are_judged_and_a_wrong_line_is_one_case() {
    let case = r#"{"id":7,"objects":[],"subject":{},"query":"a.example","expect":"allow"}"#;
    let many = "null\n".repeat(crate::cluster::tree::VALUES);
    let (outcomes, wrong) =
        judged(case::read("cases.jsonl", &format!("{many}{case}\n"), Path::new(".")).expect("JSON"), None);
    assert!(!wrong && outcomes.len() == 1 && outcomes[0].ok, "{outcomes:#?}");
    let lines = format!("{case}\n{{\"id\": 8,\n{case}\n{case} x\n{case}\n");
    let (outcomes, wrong) = judged(case::read("cases.jsonl", &lines, Path::new(".")).expect("JSON"), None);
    let got: Vec<&str> = outcomes.iter().map(|outcome| outcome.got).collect();
    assert!(wrong && got == ["allow", "error", "allow", "allow", "error", "allow"], "{outcomes:#?}");
    assert!(outcomes[1].why.starts_with("cases.jsonl:3:1: "), "{outcomes:#?}");
}
