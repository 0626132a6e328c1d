//! What policies mean, point by point: the table of integration/conformance, read from YAML and asked of the compiled rules.

use super::*;
use crate::engine::reference::{self, Attempt};
use crate::engine::world::{Enforcement, World};

/// The cluster that the table speaks of.
const CLUSTER: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: cilium-config, namespace: kube-system}
data: {enable-node-selector-labels: "true"}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: blue}}
---
apiVersion: v1
kind: Namespace
metadata: {name: other, labels: {team: red}}
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-system}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIPs: [{ip: 10.0.0.1}, {ip: "2001:db8:1::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {containers: [{name: c, ports: [{name: pg, containerPort: 5432}]}]}
status: {podIPs: [{ip: 10.0.0.2}, {ip: "2001:db8:1::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db2, namespace: shop, labels: {app: db}}
spec: {containers: [{name: c, ports: [{name: pg, containerPort: 6432}]}]}
status: {podIPs: [{ip: 10.0.0.3}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: other, labels: {app: web}}
status: {podIPs: [{ip: 10.0.1.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec: {containers: [{name: c, ports: [{name: dns, containerPort: 5353, protocol: UDP}]}]}
status: {podIPs: [{ip: 10.0.2.53}]}
---
apiVersion: v1
kind: Node
metadata: {name: here, labels: {zone: a}}
status: {addresses: [{type: InternalIP, address: 198.51.100.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: there, labels: {zone: a}}
status: {addresses: [{type: InternalIP, address: 198.51.100.2}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
endpoints: [{addresses: [198.51.100.100]}]
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: partners, labels: {kind: partners}}
spec: {externalCIDRs: [192.0.2.64/26]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {selector: {app: db}, clusterIP: 198.18.0.10, ports: [{name: pg, port: 5432, targetPort: pg}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: pg, port: 5432}]
endpoints: [{addresses: [10.0.0.2], conditions: {ready: true}}, {addresses: [10.0.0.3], conditions: {ready: false}}]
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec: {selector: {app: web}, clusterIP: 198.18.0.11, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: front-1, namespace: shop, labels: {kubernetes.io/service-name: front}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]
---
apiVersion: v1
kind: Service
metadata: {name: legacy, namespace: shop, labels: {kind: old}}
spec: {clusterIP: 198.18.0.12, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: legacy-1, namespace: shop, labels: {kubernetes.io/service-name: legacy}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [192.0.2.200]}, {addresses: [10.0.0.2]}]
"#;

/// Whom the table's words mean.
fn address(word: &str) -> IpAddr {
    let text = match word {
        "db" => "10.0.0.2",
        "db6" => "2001:db8:1::2",
        "db2" => "10.0.0.3",
        "other" => "10.0.1.1",
        "dns" => "10.0.2.53",
        "host" => "198.51.100.1",
        "node" => "198.51.100.2",
        "apiserver" => "198.51.100.100",
        "svc" => "198.18.0.10",
        "out" => "192.0.2.10",
        "out6" => "2001:db8:ffff::1",
        "far" => "203.0.113.200",
        "partner" => "192.0.2.65",
        "legacy" => "192.0.2.200",
        other => panic!("{other:?} is nobody in the table"),
    };
    text.parse().unwrap()
}

/// A policy as the table has it: its kind, and its spec on a line of its own.
fn policy(text: &str, number: usize) -> String {
    let (kind, spec) = text.split_once(' ').unwrap();
    let (version, kind, place) = match kind {
        "cnp" => ("cilium.io/v2", "CiliumNetworkPolicy", ", namespace: shop"),
        "ccnp" => ("cilium.io/v2", "CiliumClusterwideNetworkPolicy", ""),
        "knp" => ("networking.k8s.io/v1", "NetworkPolicy", ", namespace: shop"),
        other => panic!("{other:?} is no kind of the table"),
    };
    format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: p{number}{place}}}\nspec: {spec}\n")
}

/// What is wrong with a check of a row, if anything is.
fn checked(snapshot: &Snapshot, rules: &RuleSet, direction: Direction, check: &str) -> Option<String> {
    let (wanted, what) = (check.starts_with('+'), &check[1..]);
    if let Some((name, server)) = what.strip_prefix('?').and_then(|what| what.split_once('@')) {
        let (server, port) =
            server.split_once(':').map_or((server, 53), |(server, port)| (server, port.parse().unwrap()));
        let asked = rules.may_ask(address(server), Protocol::Udp, port, &Name::parse(name).unwrap());
        return (asked.is_ok() != wanted).then(|| format!("{check}: {asked:?}"));
    }
    let [whom, port, protocol] = what.split('/').collect::<Vec<_>>()[..] else { panic!("{check:?} is no check") };
    let (granted, whom) = match whom.split_once('@') {
        Some((name, whom)) => (vec![Name::parse(name).unwrap()], whom),
        None => (Vec::new(), whom),
    };
    let port: u16 = port.parse().unwrap();
    let (protocol, port) = match protocol {
        "TCP" => (Protocol::Tcp, port),
        "UDP" => (Protocol::Udp, port),
        "SCTP" => (Protocol::Sctp, port),
        "ICMP" => (Protocol::Icmp, port << 8),
        "ICMPv6" => (Protocol::Icmpv6, port << 8),
        other => panic!("{other:?} is no protocol of the table"),
    };
    let bits = granted.iter().fold(Bits::NONE, |bits, name| bits | rules.groups_of(name));
    let verdict = rules.evaluate(direction, address(whom), protocol, port, bits);
    let subject = PodRef { namespace: "shop".to_owned(), name: "web".to_owned() };
    let attempt = Attempt { direction, address: address(whom), protocol, port, granted: &granted };
    let plainly = reference::verdict(&snapshot.world, &subject, attempt).unwrap();
    (verdict.passes() != wanted || plainly != verdict).then(|| format!("{check}: {verdict:?}, plainly {plainly:?}"))
}

#[test]
fn every_row_of_the_semantics_table_holds() {
    let table = include_str!("../../../../integration/conformance/semantics.tsv");
    let (mut wrong, mut rows) = (Vec::new(), 0);
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let [point, how, checks, ref policies @ ..] = columns[..] else { panic!("a row has columns: {line:?}") };
        rows += 1;
        let text: String = policies.iter().enumerate().map(|(number, text)| policy(text, number)).collect();
        let file = File { name: "p.yaml".to_owned(), content: Ok(format!("{CLUSTER}{text}").into_bytes()) };
        let mut snapshot = assemble(&[file], &LastGood::default(), OnInvalid::Refuse);
        if snapshot.refusals.iter().any(|refusal| !refusal.text.contains("not enforced")) {
            wrong.push(format!("{point}: {:#?}", snapshot.refusals));
            continue;
        }
        snapshot.world.own_node = Some("here".to_owned());
        let direction = if how.ends_with("ingress") { Direction::Ingress } else { Direction::Egress };
        snapshot.world.enforcement = match how.split(' ').next() {
            Some("always") => Enforcement::Always,
            Some("never") => Enforcement::Never,
            _ => Enforcement::Default,
        };
        let subject = PodRef { namespace: "shop".to_owned(), name: "web".to_owned() };
        let rules = Compiler::new(&snapshot.world, &mut PeerIds::default()).compile(&subject, &[]).unwrap();
        let found = checks.split(' ').filter_map(|check| checked(&snapshot, &rules, direction, check));
        wrong.extend(found.map(|found| format!("{point}: {found}")));
    }
    assert!(rows > 70, "{rows} rows");
    assert!(wrong.is_empty(), "of {rows} rows:\n{}", wrong.join("\n"));
}

fn world_of(text: &str) -> World {
    let file = File { name: "all.yaml".to_owned(), content: Ok(text.as_bytes().to_vec()) };
    assemble(&[file], &LastGood::default(), OnInvalid::Refuse).world
}

/// Whoever may write ConfigMaps in one namespace has no say in what holds for all.
#[test]
fn settings_of_cilium_are_taken_of_its_own_namespace_alone() {
    let config = |namespace: &str| {
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: cilium-config, namespace: {namespace}}}\ndata: {{policy-audit-mode: \"true\"}}\n"
        );
        world_of(&text).cilium_config.len()
    };
    assert_eq!((config("kube-system"), config("payments")), (1, 0));
}

/// Of a Service that has no virtual address kube-proxy redirects nothing, whatever its author lists.
#[test]
fn external_addresses_are_those_of_a_service_with_a_virtual_one_alone() {
    let addresses = |spec: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: tenant}}\nspec: {{{spec}, externalIPs: [203.0.113.80]}}\n"
        );
        world_of(&text).services[&("tenant".to_owned(), "s".to_owned())].addresses.len()
    };
    assert_eq!(addresses("clusterIP: 198.18.0.10, ports: [{port: 80}]"), 2);
    assert_eq!(addresses("clusterIP: None, ports: [{port: 80}]"), 0);
    assert_eq!(addresses("type: ExternalName, externalName: x.example.com"), 0);
}
