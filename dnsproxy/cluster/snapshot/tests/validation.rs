//! What is valid, what is refused and what can't be enforced yet: the table, and what stands in its place.

use super::*;
use crate::cluster::fields::FaultKind;
use crate::engine::labels::{Operator, Selector, Source};
use crate::engine::policy::{BlockOf, Item, Peers, Port, Ports, Rule, ServicePeer};
use crate::engine::port::PortBlock;
use crate::engine::world::Mode;

/// A policy of a kind (`cnp`, `ccnp`, `knp`) with this spec, on a line of its own; with another namespace or none, if that
/// stands after the kind, as `ccnp@shop`.
fn policy(kind: &str, spec: &str) -> String {
    let (kind, namespace) = match kind.split_once('@') {
        Some((kind, namespace)) => (kind, namespace),
        None => (kind, if kind == "ccnp" { "" } else { "shop" }),
    };
    let (version, kind) = match kind {
        "cnp" => ("cilium.io/v2", "CiliumNetworkPolicy"),
        "ccnp" => ("cilium.io/v2", "CiliumClusterwideNetworkPolicy"),
        "knp" => ("networking.k8s.io/v1", "NetworkPolicy"),
        other => panic!("{other:?} is no kind of the table"),
    };
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n")
}

fn assembled(text: &str) -> Snapshot {
    let file = File { name: "p.yaml".to_owned(), content: Ok(text.as_bytes().to_vec()) };
    assemble(&[file], &LastGood::default(), OnInvalid::Refuse)
}

/// The only rule of a policy that is valid, or not enforced in all.
#[track_caller]
fn rule(kind: &str, spec: &str) -> Rule {
    let snapshot = assembled(&policy(kind, spec));
    let wrong: Vec<_> = snapshot.refusals.iter().filter(|refusal| refusal.kind == FaultKind::Wrong).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    snapshot.world.policies[0].rules[0].clone()
}

/// The only item that allows egress.
#[track_caller]
fn allowed(spec: &str) -> Item {
    rule("cnp", &format!("{{endpointSelector: {{}}, egress: [{spec}]}}")).egress.allow[0].clone()
}

#[test]
fn every_row_of_the_validation_table_holds() {
    let table = include_str!("../../../../integration/conformance/validation.tsv");
    let mut wrong = Vec::new();
    let mut rows = 0;
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let [source, kind, verdict, message, spec] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("a row has five columns: {line:?}");
        };
        rows += 1;
        let snapshot = assembled(&policy(kind, spec));
        let found = match &snapshot.refusals[..] {
            [] => "valid",
            refusals if refusals.iter().all(|refusal| refusal.kind == FaultKind::Unenforced) => "unenforced",
            _ => "refused",
        };
        let said = message.is_empty() || snapshot.refusals.iter().any(|refusal| refusal.text.contains(message));
        // In force or not, as the verdict says.
        let (read, refused) = (snapshot.world.policies.len(), snapshot.world.refused.len());
        let stands = (read, refused) == if verdict == "refused" { (0, 1) } else { (1, 0) };
        if found != verdict || !said || !stands {
            wrong.push(format!(
                "{source} {kind} {spec}\n  expected {verdict} {message:?}, found {found} {:#?}",
                snapshot.refusals
            ));
        }
    }
    assert!(rows > 300, "{rows} rows");
    assert!(wrong.is_empty(), "{} of {rows}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_refused_policy_of_the_table_allows_nothing() {
    let table = include_str!("../../../../integration/conformance/validation.tsv");
    for line in table.lines().filter(|line| line.contains("\trefused\t")) {
        let columns: Vec<&str> = line.split('\t').collect();
        let snapshot = assembled(&policy(columns[1], columns[4]));
        for rule in snapshot.world.refused.iter().flat_map(|policy| &policy.rules) {
            assert!(rule.egress.allow.is_empty() && rule.ingress.allow.is_empty(), "{line}");
            assert!(rule.egress.default_deny || rule.ingress.default_deny, "{line}");
        }
    }
}

#[test]
fn default_deny_is_what_the_rule_says_and_else_what_it_has_items_for() {
    for (spec, egress, ingress) in [
        ("ingress: [{}]", false, true),
        ("ingressDeny: [{}]", false, true),
        ("egress: [{}]", true, false),
        ("egressDeny: [{}]", true, false),
        ("egress: [{}], ingress: [{}]", true, true),
        ("egress: [{}], ingress: []", true, false),
        ("egress: [{}], enableDefaultDeny: {egress: false}", false, false),
        ("egress: [{}], enableDefaultDeny: {ingress: true}", true, true),
        ("egress: [{}], enableDefaultDeny: {}", true, false),
    ] {
        let rule = rule("cnp", &format!("{{endpointSelector: {{}}, {spec}}}"));
        assert_eq!((rule.egress.default_deny, rule.ingress.default_deny), (egress, ingress), "{spec}");
    }
    // A refused one shuts what it has items for, whatever else it says.
    let wrong = "{endpointSelector: {}, egress: [{toCidr: []}], enableDefaultDeny: {egress: false}}";
    assert!(assembled(&policy("cnp", wrong)).world.refused[0].rules[0].egress.default_deny);
}

#[test]
fn ports_are_blocks_and_names() {
    let item = allowed(
        "{toPorts: [{ports: [{port: \"1024\", endPort: 4095, protocol: TCP}, {port: HTTP, protocol: UDP}, {port: \"0\"}, \
         {port: web, endPort: 9, protocol: TCP}]}]}",
    );
    let Ports::These(entries) = &item.ports else { panic!("{item:?}") };
    let block = |first, last| Port::Block(PortBlock::of_range(first, last)[0]);
    let any = Port::Block(PortBlock::ANY);
    let expected = [
        (Protocol::Tcp, any.clone()),
        (Protocol::Tcp, block(1024, 2047)),
        (Protocol::Tcp, block(2048, 4095)),
        (Protocol::Tcp, Port::Named("web".to_owned())),
        (Protocol::Udp, any.clone()),
        (Protocol::Udp, Port::Named("http".to_owned())),
        (Protocol::Sctp, any),
    ];
    assert_eq!(entries[0].ports, expected.into());
    assert_eq!(item.peers, Peers::Any);
}

#[test]
fn icmp_types_are_numbers_and_names_of_their_family() {
    let types = |spec: &str| {
        let Ports::These(entries) = allowed(spec).ports else { panic!("{spec}") };
        entries.into_iter().flat_map(|entry| entry.ports).collect::<Vec<_>>()
    };
    let of = |protocol, number| (protocol, Port::Block(PortBlock::icmp_type(number)));
    assert_eq!(
        types("{icmps: [{fields: [{type: EchoRequest}, {type: \"3\"}, {type: 11, family: IPv4}]}]}"),
        [of(Protocol::Icmp, 3), of(Protocol::Icmp, 8), of(Protocol::Icmp, 11)]
    );
    assert_eq!(types("{icmps: [{fields: [{type: EchoRequest, family: IPv6}]}]}"), [of(Protocol::Icmpv6, 128)]);
    // Nothing is what an empty list allows; a denial by it means every port.
    assert_eq!(types("{toEndpoints: [{}], icmps: []}"), []);
    assert_eq!(types("{icmps: [{}]}"), []);
    let deny = rule("cnp", "{endpointSelector: {}, egressDeny: [{toEndpoints: [{}], icmps: []}]}");
    assert_eq!(deny.egress.deny[0].ports, Ports::All);
}

#[test]
fn blocks_have_exceptions_and_groups() {
    let Peers::Networks(blocks) = allowed(
        "{toCIDRSet: [{cidr: 10.1.2.3/8, except: [10.1.0.0/16]}, {cidrGroupRef: office, except: [10.0.0.0/8]}, \
         {cidrGroupSelector: {matchLabels: {role: office}}}]}",
    )
    .peers
    else {
        panic!()
    };
    assert_eq!(blocks[0].of, BlockOf::Here("10.0.0.0/8".parse().unwrap()));
    assert_eq!(blocks[0].except, ["10.1.0.0/16".parse().unwrap()]);
    assert_eq!((&blocks[1].of, blocks[1].except.len()), (&BlockOf::Group("office".to_owned()), 1));
    assert!(matches!(&blocks[2].of, BlockOf::Groups(selector) if selector.requirements.len() == 1));
}

#[test]
fn services_are_of_the_policys_namespace_unless_they_say_another() {
    let Peers::Services(services) = allowed(
        "{toServices: [{k8sService: {serviceName: db}}, {k8sService: {serviceName: db, namespace: else}}, \
         {k8sServiceSelector: {selector: {}}}]}",
    )
    .peers
    else {
        panic!()
    };
    let named = |namespace: &str| ServicePeer::Named { namespace: namespace.to_owned(), name: "db".to_owned() };
    let all = ServicePeer::Selected { namespace: None, selector: Selector::default() };
    assert_eq!(services, [named("shop"), named("else"), all]);
    let item = allowed("{toEndpoints: [{}], toPorts: [{service: api, ports: [{port: \"80\", protocol: TCP}]}]}");
    let Ports::These(entries) = item.ports else { panic!() };
    assert_eq!(entries[0].service, Some(("shop".to_owned(), "api".to_owned())));
}

#[test]
fn an_empty_list_of_names_is_no_list() {
    let Ports::These(entries) = allowed("{toPorts: [{ports: [{port: \"53\"}], rules: {dns: []}}]}").ports else {
        panic!()
    };
    assert_eq!(entries[0].dns, None);
}

#[test]
fn nodes_are_peers_where_cilium_is_set_so() {
    let policy = policy("cnp", "{endpointSelector: {}, egress: [{toNodes: [{matchLabels: {\"node:zone\": a}}]}]}");
    let with = |value: &str| {
        let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cilium-config, namespace: kube-system}\n";
        format!("{policy}---\n{config}data: {{enable-node-selector-labels: \"{value}\", other: x}}\n")
    };
    let snapshot = assembled(&with("true"));
    assert_eq!(snapshot.refusals, []);
    assert_eq!(snapshot.world.cilium_config["other"], "x");
    let Peers::Nodes(selectors) = &snapshot.world.policies[0].rules[0].egress.allow[0].peers else { panic!() };
    assert_eq!((selectors[0].requirements[0].source, &*selectors[0].requirements[0].key), (Source::Any, "zone"));
    for text in [&policy, &with("false")] {
        let snapshot = assembled(text);
        assert_eq!(snapshot.refusals[0].stands(), Stands::Shut, "{text}");
    }
}

#[test]
fn the_peers_of_a_network_policy_are_items_with_the_same_ports() {
    let rule = rule(
        "knp",
        "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}, \
         {namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [red]}]}}, \
         {namespaceSelector: {}, podSelector: {matchLabels: {app: api}}}, {ipBlock: {cidr: 10.0.0.0/8}}], \
         ports: [{port: 80}, {port: dns, protocol: UDP}]}]}",
    );
    assert!(rule.ingress.default_deny && !rule.egress.default_deny);
    let shown: Vec<Vec<String>> = rule
        .ingress
        .allow
        .iter()
        .map(|item| match &item.peers {
            Peers::Endpoints(selectors) => selectors[0]
                .requirements
                .iter()
                .map(|one| {
                    let operator = match &one.operator {
                        Operator::In(values) => format!("in {values:?}"),
                        Operator::NotIn(values) => format!("not in {values:?}"),
                        other => format!("{other:?}"),
                    };
                    format!("{}:{} {operator}", one.source, one.key)
                })
                .collect(),
            other => vec![format!("{other:?}")],
        })
        .collect();
    assert_eq!(shown[0], ["k8s:app in {\"web\"}", "k8s:io.kubernetes.pod.namespace in {\"shop\"}"]);
    let team = "k8s:io.cilium.k8s.namespace.labels.team not in {\"red\"}";
    assert_eq!(shown[1], [team, "k8s:io.kubernetes.pod.namespace Exists"]);
    assert_eq!(shown[2], ["k8s:app in {\"api\"}", "k8s:io.kubernetes.pod.namespace Exists"]);
    assert!(shown[3][0].starts_with("Networks"), "{shown:?}");
    assert!(rule.ingress.allow.iter().all(|item| item.ports == rule.ingress.allow[0].ports));
    assert_eq!(rule.ingress.allow[2].at.0.path, "spec.ingress[0].from[2]");
}

#[test]
fn a_network_policy_is_about_the_directions_that_kubernetes_says() {
    for (spec, egress, ingress) in [
        ("podSelector: {}", false, true),
        ("podSelector: {}, egress: [{}]", true, true),
        ("podSelector: {}, egress: []", false, true),
        ("podSelector: {}, policyTypes: [Egress]", true, false),
        ("podSelector: {}, policyTypes: [Ingress]", false, true),
        ("podSelector: {}, policyTypes: [Egress], ingress: [{}]", true, false),
    ] {
        let rule = rule("knp", &format!("{{{spec}}}"));
        assert_eq!((rule.egress.default_deny, rule.ingress.default_deny), (egress, ingress), "{spec}");
    }
    // Everyone, on every port; and what says nothing of its direction allows nothing there.
    let open = rule("knp", "{podSelector: {}, policyTypes: [Egress], egress: [{}], ingress: [{}]}");
    assert_eq!((&open.egress.allow[0].peers, &open.egress.allow[0].ports), (&Peers::Any, &Ports::All));
    assert!(open.ingress.allow.is_empty());
}

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  labels: {app: web}
  annotations: {namegate.io/mode: audit, other: x}
spec:
  dnsPolicy: None
  dnsConfig: {searches: [a.example], nameservers: [192.0.2.1]}
  containers:
  - name: a
    image: x
    ports: [{name: http, containerPort: 8080}, {containerPort: 1}, {name: dns, containerPort: 5353, protocol: UDP}]
  initContainers:
  - name: once
    ports: [{name: gone, containerPort: 9}]
  - name: beside
    restartPolicy: Always
    ports: [{name: metrics, containerPort: 9090}]
status: {podIP: 10.0.0.1, phase: Running}
";

#[test]
fn a_pods_ports_mode_and_dns_settings_are_kept_with_its_last_good_version() {
    let mut story = Story::default();
    let view = story.next(&[("pod.yaml", POD)]);
    view.refusals(&[]);
    let read = |view: &View| {
        let pod = view.snapshot.world.pods.values().next().unwrap().clone();
        let ports: Vec<String> = pod.ports.iter().map(|port| format!("{} {}", port.name, port.port)).collect();
        (ports, pod.mode, pod.search.only_own, pod.search.own.len(), pod.readable)
    };
    let expected =
        (["dns 5353", "http 8080", "metrics 9090"].map(str::to_owned).to_vec(), Some(Mode::Audit), true, 1, true);
    assert_eq!(read(&view), expected);
    let view = story.next(&[("pod.yaml", &POD.replace("podIP: 10.0.0.1", "podIP: 10.0.0.256"))]);
    view.refusals(&["\"10.0.0.256\" is no address"]);
    assert!(view.snapshot.refusals[0].kept);
    assert_eq!(read(&view), expected);
}

#[test]
fn every_kind_is_kept_with_all_that_is_read_of_it() {
    let objects = "
{apiVersion: v1, kind: Service, metadata: {name: api, namespace: shop, labels: {a: b}}, spec: {selector: {app: api}, clusterIP: 198.18.0.1, ports: [{name: web, port: 80}]}}
---
{apiVersion: v1, kind: Endpoints, metadata: {name: old, namespace: shop}, subsets: [{addresses: [{ip: 10.0.0.2}], notReadyAddresses: [{ip: 10.0.0.3}], ports: [{port: 80, name: web}]}, {addresses: [{ip: 10.0.0.4}]}]}
---
{apiVersion: v1, kind: Node, metadata: {name: here, labels: {zone: a}}, status: {addresses: [{type: InternalIP, address: 10.9.0.1}]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: blue, namegate.io/mode: enforce}}}
---
{apiVersion: cilium.io/v2alpha1, kind: CiliumCIDRGroup, metadata: {name: office, labels: {role: office}}, spec: {externalCIDRs: [192.0.2.0/24, \"2001:db8::/32\"]}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: cilium-config, namespace: kube-system}, data: {tofqdns-min-ttl: \"60\"}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: shop}, spec: {podSelector: {}}}
---
{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: p}, specs: [{endpointSelector: {}, egress: [{}]}]}
";
    let mut story = Story::default();
    let file = |text: &str| File { name: "all.yaml".to_owned(), content: Ok(text.as_bytes().to_vec()) };
    let first = assemble(&[file(objects)], &story.last_good, OnInvalid::Refuse);
    assert_eq!(first.refusals, []);
    let world = &first.world;
    assert_eq!(world.services.values().next().unwrap().selector["app"], "api");
    let slices = world.endpoints.values().next().unwrap();
    assert_eq!(slices[0].endpoints.iter().map(|(_, ready)| *ready).collect::<Vec<_>>(), [true, false]);
    assert_eq!((slices.len(), slices[0].service.as_deref(), slices[0].ports[0].port), (2, Some("old"), Some(80)));
    assert_eq!(world.nodes.values().next().unwrap().labels["zone"], "a");
    let namespace = world.namespaces.values().next().unwrap();
    assert_eq!((namespace.mode, &*namespace.labels["kubernetes.io/metadata.name"]), (Some(Mode::Enforce), "shop"));
    let group = world.cidr_groups.values().next().unwrap();
    assert_eq!((group.networks.len(), &*group.labels["role"], group.readable), (2, "office", true));
    assert_eq!((world.cilium_config["tofqdns-min-ttl"].as_str(), world.policies.len()), ("60", 2));
    // Through its text, and then kept: the same world, but for the columns.
    story.last_good = serde_json::from_str(&serde_json::to_string(&first.last_good).unwrap()).unwrap();
    let second = assemble(&[file("{")], &story.last_good, OnInvalid::Refuse);
    assert_eq!(without_places(&second.world), without_places(&first.world));
    assert_eq!(second.last_good, first.last_good);
}

/// A world as text. A copy knows the place of its object, and none within it.
fn without_places(world: &World) -> String {
    let text = format!("{world:?}");
    let mut parts = text.split("all.yaml:");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept.push_str(part.trim_start_matches(|found: char| found.is_ascii_digit() || found == ':'));
    }
    kept
}

#[test]
fn what_can_not_be_read_of_a_group_or_an_endpoints_object_marks_it() {
    let objects = "
{apiVersion: v1, kind: Endpoints, metadata: {name: old, namespace: shop}, subsets: [{addresses: [{ip: 10.0.0.2}, {ip: x}]}]}
---
{apiVersion: cilium.io/v2, kind: CiliumCIDRGroup, metadata: {name: office}, spec: {externalCIDRs: [192.0.2.0/24, 10.0.0.1]}}
";
    let snapshot = assembled(objects);
    assert_eq!(snapshot.refusals.len(), 2);
    assert!(!snapshot.world.endpoints.values().next().unwrap()[0].readable);
    let group = snapshot.world.cidr_groups.values().next().unwrap();
    assert_eq!((group.networks.len(), group.readable), (1, false));
}
