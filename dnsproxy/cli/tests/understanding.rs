//! `explain`, `policy` and `endpoint`: their command lines, what they print, and the batch.

use super::*;
use crate::cli::offline::Offline;
use crate::config::Source;
use crate::engine::explain::answer::Answer;
use crate::engine::explain::diff::{Change, Diff, NameChange};
use crate::engine::explain::question::{Asked, Asker};
use crate::engine::explain::{Explainer, overview};
use crate::operate::explain::Policies;
use std::path::Path;

/// The demo's snapshot.
fn demo() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo")
}

fn asked(from: &str, to: &str, port: &str) -> Asked {
    let port = Some(port.to_owned());
    Asked { id: None, from: Asker::Pod(from.into()), to: to.into(), port, qtype: None, resolver: None }
}

#[track_caller]
fn answer(asked: Asked) -> Answer {
    let offline = Offline::read(&demo(), &Source::nothing()).expect("the demo");
    offline.answer(&[Ok(asked)]).remove(0).expect("an answer")
}

#[test]
fn a_question_of_the_command_line_is_whole() {
    for (line, code) in [
        ("explain --from a/b --to x.test --snapshot /s", None),
        ("explain --labels app=web,tier=x --namespace shop --to 192.0.2.1 --port 443/TCP -o json", None),
        ("explain --batch -", None),
        ("explain --batch - -o json", None),
        ("explain --from a/b", Some(2)),
        ("explain --to x.test", Some(2)),
        ("explain --from a/b --labels app=web --to x.test", Some(2)),
        ("explain --labels app --to x.test", Some(2)),
        ("explain --batch - --to x.test", Some(2)),
        ("policy get -o json", None),
        ("policy diff /old /new --limit 0", None),
        ("policy diff", Some(2)),
        ("endpoint list --snapshot /s", None),
        ("test a.yaml b.jsonl -o junit", None),
        ("test", Some(2)),
    ] {
        assert_eq!(parse(words(line)).err().map(|error| error.exit_code()), code, "{line}");
    }
}

#[test]
fn the_chain_for_people_says_everything() {
    let text = explain::text::text(&answer(asked("payments/reports", "v1.api.github.com", "443/TCP")));
    let expected = "\
payments/reports to v1.api.github.com on 443/TCP: denied
  the query to 198.18.0.10 is refused (name)

selected by
  reports.yaml:8:3  CiliumNetworkPolicy payments/reports spec: egress is default deny

query for v1.api.github.com A to 198.18.0.10 on 53/UDP: refused (name)
  reports.yaml:17:7  CiliumNetworkPolicy payments/reports spec.egress[0].toPorts[0]
  hint: \"api.github.com\" is that name alone; \"**.api.github.com\" is all below it

query for v1.api.github.com A to 2001:db8:18::a on 53/UDP: refused (name)
  reports.yaml:17:7  CiliumNetworkPolicy payments/reports spec.egress[0].toPorts[0]
  hint: \"api.github.com\" is that name alone; \"**.api.github.com\" is all below it

egress of payments/reports to whatever it resolves to on 443/TCP: denied: no rule allows it
  reports.yaml:8:3  CiliumNetworkPolicy payments/reports spec: makes egress default deny
  nearest
    reports.yaml:24:7  CiliumNetworkPolicy payments/reports spec.egress[1].toFQDNs[0]: allows the names api.github.com; \
    \"api.github.com\" is that name alone; \"**.api.github.com\" is all below it
";
    assert_eq!(text, expected);
}

#[test]
fn a_pod_by_labels_need_not_be_there() {
    let like: Asked = serde_json::from_str(
        r#"{"from":{"namespace":"payments","labels":{"app":"reports"}},"to":"api.github.com","port":"443/TCP"}"#,
    )
    .expect("a question");
    let answer = answer(like);
    assert!(answer.allowed && answer.from == "payments/(app=reports)", "{answer:#?}");
}

#[test]
fn a_batch_answers_each_line_in_its_order_also_those_that_are_wrong() {
    let line = |text: &str| serde_json::from_str::<Asked>(text).map_err(|error| error.to_string());
    let lines = [
        line(r#"{"id":1,"from":"payments/reports","to":"api.github.com","port":"443"}"#),
        line(r#"{"id":2,"from":"payments/reports","to":"api.github.com","prot":"443"}"#),
        line(r#"{"id":3,"from":"payments/none","to":"api.github.com"}"#),
        line(r#"{"id":4,"from":"payments/reports","to":"198.51.100.1","port":"443"}"#),
    ];
    let answers = Offline::read(&demo(), &Source::nothing()).expect("the demo").answer(&lines);
    assert!(answers[0].as_ref().is_ok_and(|answer| answer.allowed && answer.id == Some(1.into())));
    assert!(answers[1].as_ref().is_err_and(|error| error.contains("prot")));
    assert!(answers[2].as_ref().is_err_and(|error| error.contains("payments/none")));
    let node = answers[3].as_ref().expect("an answer");
    assert!(!node.allowed && node.connections[0].peer_is == "the workload's own node", "{node:#?}");
}

#[test]
fn the_lists_for_people_say_everything() {
    let offline = Offline::read(&demo(), &Source::nothing()).expect("the demo");
    let all = Policies { policies: overview::policies(&offline.world), refused: offline.refused() };
    assert_eq!(
        policy::policies_text(&all),
        "KIND                 POLICY                      SELECTS  EGRESS                 INGRESS  STATE     PLACE\n\
         CiliumNetworkPolicy  payments/payment-processor  1 pods   2 allow, default deny  -        in force  payment-processor.yaml:2:1\n\
         CiliumNetworkPolicy  payments/reports            1 pods   2 allow, default deny  -        in force  reports.yaml:2:1\n"
    );
    let text = policy::selectors_text(&overview::selectors(&offline.world));
    assert!(text.contains("app=reports") && text.contains("payments/payment-processor, payments/reports"), "{text}");
    let explainer = Explainer::new(&offline.world, offline.surroundings());
    let rows: Vec<_> = offline.endpoints().iter().map(|pod| overview::endpoint(&explainer, pod)).collect();
    let text = endpoint::text(&rows);
    let row = text.lines().find(|line| line.starts_with("payments/reports ")).expect("a row");
    let cells: Vec<&str> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    assert_eq!(cells[1..6], ["demo-node", "default deny", "open", "yes", "enforce"], "{text}");
}

/// Runs `namegate policy diff` on two snapshots of one file each: what it exits with.
#[track_caller]
fn exits(old: &str, new: &str) -> ExitCode {
    let [old, new] = [old, new].map(|text| {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("all.yaml"), text).expect("a file");
        dir
    });
    let line = format!("policy diff {} {}", old.path().display(), new.path().display());
    parse(words(&line)).expect("a command line").run()
}

#[test]
fn a_snapshot_that_holds_a_refused_object_is_no_clean_difference() {
    let policy = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: shop}\n\
                  spec: {endpointSelector: {}, egress: [{toEntities: [world]}]}\n";
    let (refused, typo) = (policy.replace("[world]", "[wurld]"), policy.replace("egress", "egres"));
    assert_eq!(exits(policy, policy), ExitCode::SUCCESS);
    assert_eq!(exits(policy, &refused), ExitCode::from(2));
    assert_eq!(exits(policy, &typo), ExitCode::from(2));
    assert_eq!(exits(&typo, policy), ExitCode::SUCCESS, "what is repaired is told, and no fault of the new one");
    let http =
        policy.replace("[world]", "[world], toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{}]}}]");
    assert_eq!(exits(policy, &http), ExitCode::SUCCESS, "no pod is there, and the object is in force but for the item");
}

#[test]
fn the_changes_for_people_are_cut_at_the_limit() {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let found = Diff {
        connections: vec![Change {
            endpoints: texts(&["shop/web"]),
            direction: "egress".to_owned(),
            peers: texts(&["shop/db", "shop/\u{1b}x"]),
            ports: texts(&["443/TCP"]),
            allowed: true,
        }],
        names: vec![NameChange {
            endpoints: texts(&["shop/web"]),
            pattern: "*.test".to_owned(),
            example: "any.test".to_owned(),
            what: texts(&["query"]),
            allowed: false,
        }],
        added: texts(&["shop/new"]),
        ..Diff::default()
    };
    assert_eq!(
        policy::diff_text(&found, 100),
        "new endpoint: shop/new\n\
         + allowed: egress of shop/web to shop/db, shop/\\u{1b}x on 443/TCP\n\
         - denied: shop/web for the names *.test (as any.test): query\n"
    );
    assert!(policy::diff_text(&found, 1).ends_with("shop/new\n2 more changes; --limit 0 lists all\n"));
    assert_eq!(policy::diff_text(&Diff::default(), 1), "no verdict changes\n");
}
