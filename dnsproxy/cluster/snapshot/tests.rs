//! What a directory says, what is wrong with it, and what stays in force.

mod again;
mod mutation;
mod policies;
mod semantics;
mod tricks;
mod validation;

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::cluster::tree::{self, write_json};
use crate::engine::bits::Bits;
use crate::engine::compile::Compiler;
use crate::engine::endpoint::PodRef;
use crate::engine::name::Name;
use crate::engine::ruleset::{Direction, Protocol, RuleSet};
use crate::engine::world::PeerIds;

/// The repository's folder of that name.
fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Every manifest in integration/invalid says in its first lines what is wrong with it: `# expect 12:9 part of the text`.
#[test]
fn every_invalid_manifest_is_refused_at_its_place_with_its_reason() {
    let mut manifests: Vec<PathBuf> =
        fs::read_dir(folder("integration/invalid")).unwrap().map(|entry| entry.unwrap().path()).collect();
    manifests.sort();
    let mut wrong = Vec::new();
    for path in &manifests {
        let text = fs::read_to_string(path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let expected: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("# expect ")).collect();
        let file = File { name: name.clone(), content: Ok(text.clone().into_bytes()) };
        let snapshot = assemble(&[file], &LastGood::default(), OnInvalid::Refuse);
        let found: Vec<String> = snapshot
            .refusals
            .iter()
            .map(|refusal| format!("{} {}", refusal.place.replace(&format!("{name}:"), ""), refusal.text))
            .collect();
        if found != expected {
            wrong.push(format!("{name}:\n  expected {expected:#?}\n  found {found:#?}"));
        }
    }
    assert!(manifests.len() >= 30, "{} manifests", manifests.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), manifests.len(), wrong.join("\n"));
}

/// What one pod of a generation may do.
struct View {
    rules: RuleSet,
    snapshot: Snapshot,
}

/// The files of one generation after another; each starts from what the one before left behind, through its text.
#[derive(Default)]
struct Story {
    last_good: LastGood,
    on_invalid: OnInvalid,
}

impl Story {
    #[track_caller]
    fn next(&mut self, files: &[(&str, &str)]) -> View {
        let files: Vec<File> = files
            .iter()
            .map(|(name, text)| File { name: (*name).to_owned(), content: Ok(text.as_bytes().to_vec()) })
            .collect();
        let mut snapshot = assemble(&files, &self.last_good, self.on_invalid);
        let text = serde_json::to_string(&snapshot.last_good).unwrap();
        self.last_good = serde_json::from_str(&text).unwrap();
        snapshot.world.own_node = Some("here".to_owned());
        let subject = PodRef { namespace: "shop".to_owned(), name: "web".to_owned() };
        let rules = Compiler::new(&snapshot.world, &mut PeerIds::default()).compile(&subject, &[]).unwrap();
        View { rules, snapshot }
    }
}

impl View {
    #[track_caller]
    fn tcp(&self, direction: Direction, address: &str, port: u16, passes: bool) -> &View {
        let address: IpAddr = address.parse().unwrap();
        let verdict = self.rules.evaluate(direction, address, Protocol::Tcp, port, Bits::NONE);
        assert_eq!(verdict.passes(), passes, "{direction:?} {address} {port}: {verdict:?}");
        self
    }

    #[track_caller]
    fn opens(&self, address: &str, port: u16) -> &View {
        self.tcp(Direction::Egress, address, port, true)
    }

    #[track_caller]
    fn stays_shut(&self, address: &str, port: u16) -> &View {
        self.tcp(Direction::Egress, address, port, false)
    }

    #[track_caller]
    fn refusals(&self, expected: &[&str]) -> &View {
        let found: Vec<String> = self
            .snapshot
            .refusals
            .iter()
            .map(|r| format!("{} {} {}{}", r.object, r.place, r.text, if r.kept { " (kept)" } else { "" }))
            .collect();
        assert!(
            found.len() == expected.len() && found.iter().zip(expected).all(|(found, part)| found.contains(part)),
            "{found:#?}"
        );
        self
    }
}

const CLUSTER: &str = "
apiVersion: v1
kind: PodList
items:
- metadata: {name: web, namespace: shop, labels: {app: web}}
  spec: {nodeName: here}
  status: {podIPs: [{ip: 10.0.0.1}]}
- metadata: {name: db, namespace: shop, labels: {app: db}}
  status: {podIP: 10.0.0.2}
- metadata: {name: other, namespace: else, labels: {app: db}}
  status: {podIP: 10.0.0.3}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: here}, status: {addresses: [{type: InternalIP, address: 10.9.0.1}]}}
- {apiVersion: v1, kind: Node, metadata: {name: there}, status: {addresses: [{type: InternalIP, address: 10.9.0.2}]}}
- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}
- {apiVersion: v1, kind: Namespace, metadata: {name: else, labels: {team: blue}}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: else}}
";

/// A policy with this name and spec, in namespace shop.
fn policy_of(name: &str, spec: &str) -> String {
    let spec: String = spec.trim().lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n{spec}"
    )
}

fn allow(cidr: &str) -> String {
    policy_of("allow", &format!("endpointSelector: {{}}\negress:\n- toCIDR: [{cidr}]"))
}

#[test]
fn a_wrong_object_keeps_its_last_good_version() {
    let mut story = Story::default();
    story.next(&[("cluster.yaml", CLUSTER), ("p.yaml", &allow("192.0.2.0/24"))]).opens("192.0.2.1", 443);
    let wrong = allow("203.0.113.0/24").replace("toCIDR", "toCidr");
    for _ in 0..2 {
        story
            .next(&[("cluster.yaml", CLUSTER), ("p.yaml", &wrong)])
            .refusals(&["CiliumNetworkPolicy shop/allow p.yaml:7:5 spec.egress[0].toCidr: toCidr is no field here"])
            .opens("192.0.2.1", 443)
            .stays_shut("203.0.113.1", 443)
            .stays_shut("198.51.100.1", 443);
    }
    let kept = story.next(&[("cluster.yaml", CLUSTER), ("p.yaml", &wrong)]);
    assert!(kept.snapshot.refusals[0].kept);
    assert_eq!(kept.snapshot.world.policies[0].at.0.place, "p.yaml:1:1");
    // Deleted is deleted, kept or not.
    story.next(&[("cluster.yaml", CLUSTER)]).opens("198.51.100.1", 443);
    story.next(&[("cluster.yaml", CLUSTER), ("p.yaml", &wrong)]).stays_shut("192.0.2.1", 443);
}

#[test]
fn a_wrong_object_without_a_past_shuts_what_it_names() {
    let story = |policy: &str| Story::default().next(&[("cluster.yaml", CLUSTER), ("p.yaml", policy)]);
    let wrong = allow("203.0.113.0/24").replace("toCIDR", "toCidr");
    story(&wrong).stays_shut("203.0.113.1", 443).tcp(Direction::Ingress, "192.0.2.1", 80, true);
    // It selects others only.
    story(&wrong.replace("{}", "{matchLabels: {app: db}}")).opens("203.0.113.1", 443);
    // Its selector can't be read: its namespace.
    let unreadable = wrong.replace("{}", "{matchLabels: {app: 1}}");
    story(&unreadable).stays_shut("203.0.113.1", 443);
    story(&unreadable.replace("shop", "else")).opens("203.0.113.1", 443);
    // A misspelled direction could be either.
    story(&allow("203.0.113.0/24").replace("egress", "egres")).stays_shut("192.0.2.1", 1).tcp(
        Direction::Ingress,
        "192.0.2.1",
        80,
        false,
    );
    // Without a namespace it could be anyone's.
    story(&wrong.replace(", namespace: else", "").replace(", namespace: shop", "")).stays_shut("203.0.113.1", 443);
}

#[test]
fn denials_of_a_refused_policy_stay_in_force() {
    let wrong = policy_of(
        "deny",
        "endpointSelector: {}\nlogs: {value: x}\negress:\n- toEntities: [world]\negressDeny:\n- toCIDR: [192.0.2.0/24]\n\
         - toEndpoints: [{}]\n  toPorts: [{ports: [{port: \"80\", protocol: TLS}]}]",
    );
    let open = policy_of("open", "endpointSelector: {}\negress:\n- toEntities: [all]");
    Story::default()
        .next(&[("cluster.yaml", CLUSTER), ("deny.yaml", &wrong), ("open.yaml", &open)])
        .refusals(&["spec.logs: logs is no field here", "ports[0].protocol: protocol \"TLS\""])
        .stays_shut("192.0.2.1", 443)
        .opens("203.0.113.1", 443)
        // The item denied with a part that is wrong: without it, it denies more.
        .stays_shut("10.0.0.2", 443);
}

#[test]
fn a_policy_of_a_kind_that_is_not_read_shuts_everyone() {
    let policy = "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: base}\n";
    Story::default()
        .next(&[("cluster.yaml", CLUSTER), ("p.yaml", policy)])
        .refusals(&["AdminNetworkPolicy is not read by namegate yet"])
        .stays_shut("192.0.2.1", 1)
        .tcp(Direction::Ingress, "192.0.2.1", 80, false);
}

#[test]
fn a_policy_about_nodes_selects_no_pod() {
    let policy = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: base}\nspec:\n  \
                  nodeSelector: {matchLabels: {node-role.kubernetes.io/control-plane: \"\"}}\n  egress: [{}]\n";
    let view = Story::default().next(&[("cluster.yaml", CLUSTER), ("p.yaml", policy)]);
    view.refusals(&["spec.nodeSelector: not enforced by namegate yet: nodeSelector"]).opens("192.0.2.1", 1);
    assert_eq!(view.snapshot.refusals[0].stands(), Stands::Rest);
}

#[test]
fn what_can_not_be_enforced_allows_nothing_and_the_rest_is_in_force() {
    let policy = policy_of(
        "p",
        "endpointSelector: {}\negress:\n- toCIDR: [192.0.2.0/24]\n- toCIDR: [203.0.113.0/24]\n  toPorts:\n  \
         - ports: [{port: \"80\", protocol: TCP}]\n    rules: {http: [{method: GET}]}\n",
    );
    let mut story = Story::default();
    let view = story.next(&[("cluster.yaml", CLUSTER), ("p.yaml", &policy)]);
    view.refusals(&[
        "spec.egress[1].toPorts[0].rules.http: not enforced by namegate yet: rules.http; the item allows nothing",
    ])
    .opens("192.0.2.1", 80)
    .stays_shut("203.0.113.1", 80);
    assert_eq!(view.snapshot.refusals[0].stands(), Stands::Rest);
    assert_eq!(view.snapshot.world.policies[0].rules[0].egress.unenforced[0].what, "rules.http");
    // It is good enough to be the last good version.
    let broken = policy.replace("toCIDR: [192", "toCidr: [192");
    let view = story.next(&[("cluster.yaml", CLUSTER), ("p.yaml", &broken)]);
    view.refusals(&["toCidr is no field", "not enforced"]).opens("192.0.2.1", 80).stays_shut("203.0.113.1", 80);
    assert!(view.snapshot.refusals.iter().all(|refusal| refusal.stands() == Stands::Kept));
    // Without a past nothing is open.
    let view = Story::default().next(&[("cluster.yaml", CLUSTER), ("p.yaml", &broken)]);
    view.stays_shut("192.0.2.1", 80).stays_shut("203.0.113.1", 80);
}

#[test]
fn a_broken_file_keeps_everything_it_held() {
    let mut story = Story::default();
    let good = format!("{}---\n{}", allow("192.0.2.0/24"), policy_of("more", "endpointSelector: {}\negress: [{}]"));
    story.next(&[("cluster.yaml", CLUSTER), ("p.yaml", &good)]).opens("192.0.2.1", 443);
    let kept = story.next(&[("cluster.yaml", CLUSTER), ("p.yaml", &format!("{good}\n  - [\n"))]);
    kept.refusals(&["file p.yaml p.yaml:"]).opens("192.0.2.1", 443).stays_shut("203.0.113.1", 443);
    assert!(kept.snapshot.refusals[0].kept && kept.snapshot.world.policies.len() == 2);
    // The cluster's own file: pods stay pods.
    let kept = story.next(&[("cluster.yaml", "{"), ("p.yaml", &good)]);
    kept.refusals(&["file cluster.yaml cluster.yaml:"]).stays_shut("10.0.0.2", 443).opens("192.0.2.1", 443);
}

#[test]
fn a_broken_file_without_a_past_shuts_everyone() {
    let mut story = Story::default();
    let view = story.next(&[("cluster.yaml", CLUSTER), ("p.yaml", "{"), ("q.yaml", &allow("192.0.2.0/24"))]);
    view.opens("192.0.2.1", 443).stays_shut("203.0.113.1", 443).tcp(Direction::Ingress, "192.0.2.1", 80, false);
    // A document that is no object may have been a policy.
    let stray = "spec:\n  endpointSelector: {}\n";
    Story::default().next(&[("cluster.yaml", CLUSTER), ("p.yaml", stray)]).stays_shut("192.0.2.1", 443);
}

#[test]
fn the_operators_way_out_ignores_what_is_wrong() {
    let mut story = Story { on_invalid: OnInvalid::Ignore, ..Story::default() };
    story.next(&[("cluster.yaml", CLUSTER), ("p.yaml", &allow("192.0.2.0/24"))]).opens("192.0.2.1", 443);
    let wrong = allow("203.0.113.0/24").replace("toCIDR", "toCidr");
    let view = story.next(&[("cluster.yaml", CLUSTER), ("p.yaml", &wrong), ("q.yaml", "{")]);
    view.refusals(&["file q.yaml", "toCidr"]).opens("198.51.100.1", 443);
}

#[test]
fn an_object_that_stands_twice_is_one_if_both_say_the_same() {
    let once = allow("192.0.2.0/24");
    Story::default()
        .next(&[("a.yaml", &once), ("b.yaml", &once), ("cluster.yaml", CLUSTER)])
        .refusals(&[])
        .opens("192.0.2.1", 443);
    Story::default()
        .next(&[("a.yaml", &once), ("b.yaml", &allow("203.0.113.0/24")), ("cluster.yaml", CLUSTER)])
        .refusals(&[
            "another CiliumNetworkPolicy shop/allow at b.yaml:1:1",
            "another CiliumNetworkPolicy shop/allow at a",
        ])
        .stays_shut("192.0.2.1", 443)
        .stays_shut("203.0.113.1", 443);
}

#[test]
fn a_pod_that_can_not_be_read_is_opened_by_no_label_and_no_block() {
    let wrong = CLUSTER
        .replace("labels: {app: db}}\n  status: {podIP: 10.0.0.2}", "labels: {app: 1}}\n  status: {podIP: 10.0.0.2}");
    let policy = policy_of(
        "p",
        "endpointSelector: {}\negress:\n- toCIDR: [0.0.0.0/0]\n- toEndpoints:\n  - matchExpressions: [{key: app, \
         operator: NotIn, values: [x]}]\n",
    );
    let view = Story::default().next(&[("cluster.yaml", &wrong), ("p.yaml", &policy)]);
    view.refusals(&["Pod shop/db"]).stays_shut("10.0.0.2", 443).opens("192.0.2.1", 443);
}

#[test]
fn a_pods_search_list_is_what_its_dns_settings_say() {
    let said = |spec: &str| {
        let pod = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: shop}}\nspec: {{{spec}}}\n");
        let file = File { name: "pod.yaml".to_owned(), content: Ok(pod.into_bytes()) };
        let snapshot = assemble(&[file], &LastGood::default(), OnInvalid::Refuse);
        assert_eq!(snapshot.refusals.len(), 0, "{spec}");
        let search = snapshot.world.pods.values().next().expect("a pod").search.clone();
        (search.only_own, search.own.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(said(""), (false, String::new()));
    assert_eq!(said("dnsConfig: {searches: [A.example, b.test.]}"), (false, "a.example. b.test.".to_owned()));
    assert_eq!(said("dnsPolicy: None, dnsConfig: {searches: [a.example]}"), (true, "a.example.".to_owned()));
    assert_eq!(said("dnsPolicy: Default"), (true, String::new()));
    assert_eq!(said("hostNetwork: true"), (true, String::new()));
    assert_eq!(said("hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet"), (false, String::new()));
    // What is no name can't be what a query ends in, and is no reason to mistrust the pod.
    assert_eq!(said("dnsConfig: {searches: [., a..b, 7]}"), (false, String::new()));
}

#[test]
fn json_and_json_lines_say_the_same_as_yaml() {
    let yaml = CLUSTER.to_owned() + "---\n" + &allow("192.0.2.0/24");
    let lines: String = tree::yaml(&yaml).unwrap().iter().map(|node| write_json(node) + "\n").collect();
    let from_yaml = Story::default().next(&[("all.yaml", &yaml)]);
    let from_json = Story::default().next(&[("all.json", &lines)]);
    from_json.refusals(&[]).opens("192.0.2.1", 443);
    assert_eq!(from_yaml.rules.ports, from_json.rules.ports);
    let bad = lines.replace("192.0.2.0/24", "192.0.2.0/33");
    let view = Story::default().next(&[("all.json", &bad)]);
    let place = format!("all.json:{}:", lines.lines().count());
    view.refusals(&[&place]).stays_shut("192.0.2.1", 443);
}

#[test]
fn a_mounted_generation_is_read_where_data_points_to() {
    let dir = tempfile::tempdir().unwrap();
    for (generation, cidr) in [("..one", "192.0.2.0/24"), ("..two", "203.0.113.0/24")] {
        fs::create_dir(dir.path().join(generation)).unwrap();
        fs::write(dir.path().join(generation).join("p.yaml"), allow(cidr)).unwrap();
    }
    std::os::unix::fs::symlink("..data/p.yaml", dir.path().join("p.yaml")).unwrap();
    std::os::unix::fs::symlink("..one", dir.path().join("..data")).unwrap();
    let first = read(dir.path(), &LastGood::default(), OnInvalid::Refuse);
    assert_eq!((first.world.policies.len(), first.refusals.len()), (1, 0), "the link beside ..data is not read again");
    std::os::unix::fs::symlink("..two", dir.path().join("..new")).unwrap();
    fs::rename(dir.path().join("..new"), dir.path().join("..data")).unwrap();
    let second = read(dir.path(), &first.last_good, OnInvalid::Refuse);
    assert_ne!(first.generation_hash, second.generation_hash);
    assert_ne!(first.world, second.world);
    assert_eq!(second.generation_hash, read(dir.path(), &second.last_good, OnInvalid::Refuse).generation_hash);
}

#[test]
fn folders_packed_files_and_hidden_ones() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("team/shop")).unwrap();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut packed, allow("192.0.2.0/24").as_bytes()).unwrap();
    fs::write(dir.path().join("team/shop/p.yaml.gz"), packed.finish().unwrap()).unwrap();
    fs::write(dir.path().join(".hidden.yaml"), "{").unwrap();
    fs::write(dir.path().join("notes.txt"), "{").unwrap();
    let snapshot = read(dir.path(), &LastGood::default(), OnInvalid::Refuse);
    assert_eq!(snapshot.refusals, []);
    assert_eq!(snapshot.world.policies[0].at.0.place, "team/shop/p.yaml.gz:1:1");
    fs::write(dir.path().join("cut.yaml.gz"), [0x1f, 0x8b, 8]).unwrap();
    fs::write(dir.path().join("latin.yaml"), b"a: 1\nb: \"\xfc\"\n").unwrap();
    let snapshot = read(dir.path(), &snapshot.last_good, OnInvalid::Refuse);
    let places: Vec<&str> = snapshot.refusals.iter().map(|refusal| refusal.place.as_str()).collect();
    assert_eq!(places, ["cut.yaml.gz", "latin.yaml:2:5"]);
}

#[test]
fn a_directory_that_is_gone_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("p.yaml"), allow("192.0.2.0/24")).unwrap();
    let first = read(dir.path(), &LastGood::default(), OnInvalid::Refuse);
    let gone = dir.path().join("gone");
    let second = read(&gone, &first.last_good, OnInvalid::Refuse);
    assert!(second.refusals[0].kept && second.world.policies.len() == 1 && second.world.refused.is_empty());
    let third = read(&gone, &LastGood::default(), OnInvalid::Refuse);
    assert!(!third.refusals[0].kept && third.world.refused.len() == 1);
}

#[test]
fn a_field_that_is_no_field_or_stands_twice_could_have_been_either_direction() {
    let story = |policy: &str| Story::default().next(&[("cluster.yaml", CLUSTER), ("p.yaml", policy)]);
    for spec in [
        "endpointSelector: {}\negress: [{toEntities: [world]}]\ningres: []",
        "endpointSelector: {}\negress: [{toEntities: [world]}]\negress: []",
    ] {
        story(&policy_of("p", spec)).stays_shut("192.0.2.1", 443).tcp(Direction::Ingress, "192.0.2.1", 80, false);
    }
    // Whom it means can't be told either.
    let two = policy_of("p", "endpointSelector: {matchLabels: {app: db}}\nendpointSelector: {}\negress: [{}]");
    story(&two).stays_shut("192.0.2.1", 443);
    let two = format!(
        "{}spec:\n  endpointSelector: {{matchLabels: {{app: db}}}}\n  ingress: [{{}}]\n",
        allow("192.0.2.0/24")
    );
    story(&two).stays_shut("192.0.2.1", 443);
}

#[test]
fn a_denial_with_peers_that_can_not_be_read_denies_everyone() {
    let open = policy_of("open", "endpointSelector: {}\negress:\n- toEntities: [all]");
    for peers in [
        "toEndpoints: [{matchLabels: {app: 1}}]",
        "toCIDRSet: [{cidr: 203.0.113.0/24, except: [10.0.0.0/8]}]",
        "toServices: [{}]",
        "toGroups: [{aws: {region: x}}]",
        "toFQDNs: [{matchName: example.com}]",
        "toEntities: [moon]",
        "toCIDR: [203.0.113.0/24]\n  toEndpoints: []",
        "toCIDR: [203.0.113.0/24]\n  toCIDR: []",
    ] {
        let deny = policy_of(
            "deny",
            &format!("endpointSelector: {{}}\negressDeny:\n- {peers}\n  toPorts: [{{ports: [{{port: \"443\"}}]}}]"),
        );
        let view = Story::default().next(&[("cluster.yaml", CLUSTER), ("deny.yaml", &deny), ("open.yaml", &open)]);
        assert!(!view.snapshot.refusals.is_empty(), "{peers}");
        view.stays_shut("192.0.2.1", 443).stays_shut("10.0.0.2", 443);
    }
}

#[test]
fn a_pod_that_stands_twice_in_two_ways_is_opened_by_neither() {
    let again = "apiVersion: v1\nkind: Pod\nmetadata: {name: db, namespace: shop, labels: {app: cache}}\n\
                 status: {podIP: 10.0.0.2}\n";
    let policy = policy_of(
        "p",
        "endpointSelector: {}\negress:\n- toEndpoints: [{matchLabels: {app: cache}}, {matchLabels: {app: db}}]",
    );
    Story::default()
        .next(&[("again.yaml", again), ("cluster.yaml", CLUSTER), ("p.yaml", &policy)])
        .refusals(&["another Pod shop/db at cluster.yaml:8:3", "another Pod shop/db at again.yaml:1:1"])
        .stays_shut("10.0.0.2", 443);
}

/// The demo's policy for payments with a piece of it replaced.
fn damaged() -> impl Strategy<Value = String> {
    let text = fs::read_to_string(folder("config/demo/payment-processor.yaml")).unwrap();
    let pieces = prop_oneof![
        Just(String::new()),
        "[a-z0-9:{}\\[\\]*&!\"'#, \n-]{1,6}",
        prop::sample::select(vec![
            "null",
            "[]",
            "{}",
            "\n  - ",
            "egressDeny",
            "\"*\"",
            "0",
            "yes",
            "\u{0}",
            "\t",
            "- {}\n"
        ])
        .prop_map(str::to_owned),
    ];
    (0..text.len(), 0..30usize, pieces).prop_map(move |(from, octets, piece)| {
        let to = (from + octets).min(text.len());
        format!("{}{piece}{}", &text[..from], &text[to..])
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn a_damaged_policy_changes_nothing_or_is_a_policy(damaged in damaged()) {
        let cluster = ["cluster.yaml", "kube-dns.yaml"]
            .map(|name| (name, fs::read_to_string(folder("config/demo").join(name)).unwrap()));
        let generation = |policy: String, last_good: &LastGood| {
            let files: Vec<File> = cluster
                .iter()
                .map(|(name, text)| (*name, text.clone()))
                .chain([("policy.yaml", policy)])
                .map(|(name, text)| File { name: name.to_owned(), content: Ok(text.into_bytes()) })
                .collect();
            assemble(&files, last_good, OnInvalid::Refuse)
        };
        let good = fs::read_to_string(folder("config/demo/payment-processor.yaml")).unwrap();
        let before = generation(good, &LastGood::default());
        let after = generation(damaged, &before.last_good);
        let subject = PodRef { namespace: "payments".to_owned(), name: "payment-processor".to_owned() };
        let rules = |snapshot: &Snapshot| {
            let mut ids = PeerIds::default();
            Compiler::new(&snapshot.world, &mut ids).compile(&subject, &[]).unwrap()
        };
        let (old, new) = (rules(&before), rules(&after));
        let kept = after.refusals.iter().any(|refusal| refusal.kept);
        if kept {
            // Places are those of the kept text; what it means is the same.
            prop_assert_eq!((&new.ports, &new.groups, &new.peers), (&old.ports, &old.groups, &old.peers));
        } else if !after.refusals.is_empty() {
            // Another policy now, and refused: it opens nothing.
            prop_assert!(new.ports.iter().all(|row| row.allow.is_empty()) && new.names.is_empty() && new.dns.is_empty());
        }
    }
}
