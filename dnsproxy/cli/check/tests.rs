use super::*;

const README: &str = include_str!("../../../README.md");
const CLUSTER: &str = include_str!("../../../config/demo/cluster.yaml");
const KUBE_DNS: &str = include_str!("../../../config/demo/kube-dns.yaml");

fn files(texts: &[(&str, &str)]) -> Vec<File> {
    let file = |(name, text): &(&str, &str)| File { name: (*name).to_owned(), content: Ok(text.as_bytes().to_vec()) };
    texts.iter().map(file).collect()
}

/// What `namegate check` says of these files, and the demo's cluster.
fn check(texts: &[(&str, &str)]) -> String {
    let files = files(&[texts, &[("cluster.yaml", CLUSTER), ("kube-dns.yaml", KUBE_DNS)]].concat());
    Findings::of(&files).text(&files, false)
}

/// The same without the closing line; the kind and the place of each finding.
#[track_caller]
fn finds(policy: &str, expected: &[&str]) {
    let said = check(&[("p.yaml", policy)]);
    let heads = said.lines().filter(|line| line.starts_with("p.yaml:"));
    let short = |line: &str| {
        let place = line.split(": ").next().unwrap_or_default().to_owned();
        let kind = line.rsplit_once(" [").map_or("", |(_, kind)| kind.trim_end_matches(']'));
        format!("{} {kind}", place.trim_start_matches("p.yaml:"))
    };
    assert_eq!(heads.map(short).collect::<Vec<_>>(), expected, "{said}");
}

/// The policy of the README.
fn first_policy() -> &'static str {
    README.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap()
}

#[test]
fn nothing_is_found_in_the_policy_of_the_readme() {
    let said = check(&[("policy.yaml", first_policy())]);
    assert_eq!(said, "1 policy and 3 pods read, 0 objects of no use, 0 errors, 0 warnings\n");
}

#[test]
fn what_is_refused_is_shown_in_its_file() {
    let broken =
        first_policy().replace("      app: payment-processor", "      app: payment-processor\n  nodeSelectors: {}");
    let said = check(&[("policy.yaml", &broken)]);
    let lines: Vec<&str> = said.lines().collect();
    let head = "policy.yaml:10:3: error: CiliumNetworkPolicy payments/payment-processor: spec.nodeSelectors: ";
    assert!(lines[0].starts_with(head) && lines[0].ends_with(" [refused]"), "{said}");
    assert_eq!(lines[1..3], ["  10 |   nodeSelectors: {}", "     |   ^"]);
    assert!(lines[3].ends_with("1 error, 0 warnings"), "{said}");
}

#[test]
fn rule_sets_that_are_too_large_are_errors() {
    let item = |port: usize| {
        let (address, port) = (port % 250, format!("{{port: \"{port}\", protocol: TCP}}"));
        format!("\n  - toCIDR: [\"192.0.2.{address}/32\"]\n    toPorts: [{{ports: [{port}]}}]")
    };
    let policy = format!("{}\n  egress:{}\n", policy("app: reports"), (1..=200).map(item).collect::<String>());
    let said = check(&[("p.yaml", &policy)]);
    assert!(said.contains("the limit is 127 [no-rule-set]"), "{said}");
}

fn policy(labels: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: payments}}\nspec:\n  \
         endpointSelector: {{matchLabels: {{{labels}}}}}"
    )
}

#[test]
fn lists_that_are_empty_are_told_where_they_mean_something() {
    let rules = "
  egress:
  - toCIDR: [192.0.2.0/24]
    toPorts: []
  - toCIDR: []
  egressDeny:
  - {}
  - toEndpoints: []
  - toEndpoints: [{matchLabels: {}}]
";
    let text = policy("app: reports") + rules;
    finds(
        &text,
        &["8:14 empty-list", "9:13 empty-list", "11:5 denies-nothing", "12:18 empty-list", "13:33 empty-list"],
    );
}

#[test]
fn an_annotation_silences_a_warning_and_no_error() {
    let rules = "
  egress:
  - toCIDR: []
  - toCIDR: [192.0.2.0]
";
    let text = policy("app: reports") + rules;
    finds(&text, &["7:13 empty-list", "8:14 refused"]);
    let allow = |kinds: &str| {
        text.replace("{name: p,", &format!("{{annotations: {{namegate.io/allow: \"{kinds}\"}}, name: p,"))
    };
    finds(&allow("public-suffix, empty-list"), &["8:14 refused"]);
    finds(&allow("empty-list,refused"), &["3:45 unknown-warning", "8:14 refused"]);
}

/// The kind and the file of each finding of some files alone.
#[track_caller]
fn finds_alone(texts: &[(&str, &str)], expected: &[(&str, &str)]) {
    let found = Findings::of(&files(texts)).findings;
    let found: Vec<(&str, &str)> = found.iter().map(|found| (found.file.as_str(), found.rule)).collect();
    assert_eq!(found, expected);
}

#[test]
fn nothing_to_check_is_no_success() {
    for text in ["", " \n", "# nothing\n", "---\n---\n", "null\n"] {
        finds_alone(&[("stdin", text)], &[("stdin", NOTHING)]);
    }
    finds_alone(&[("stdin", ""), ("cluster.yaml", CLUSTER)], &[("stdin", NOTHING)]);
    // A placeholder among other files is none.
    finds_alone(&[("a.yaml", ""), ("cluster.yaml", CLUSTER)], &[]);
    finds_alone(&[("a.yaml", ""), ("b.yaml", "")], &[("a.yaml", NOTHING), ("b.yaml", NOTHING)]);
    // That a cluster has no policies is an answer.
    finds_alone(&[("stdin.json", "{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": []}")], &[]);
}

#[test]
fn every_kind_of_finding_has_an_id_of_its_own() {
    let ids: BTreeSet<&str> = kinds().map(|(id, ..)| id).collect();
    assert_eq!(ids.len(), kinds().count());
    assert!(ids.iter().all(|id| id.bytes().all(|octet| octet.is_ascii_lowercase() || octet == b'-')));
}

#[test]
fn the_readme_lists_every_kind_of_finding() {
    let table = README.split("### Checking").nth(1).unwrap().split("\n## ").next().unwrap();
    let row = |(id, level, about): (&str, Level, &str)| {
        let word = if level == Level::Error { "error" } else { "warning" };
        format!("| `{id}` | {word} | {about} |")
    };
    let rows: Vec<String> = kinds().map(row).collect();
    let listed: Vec<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(listed == rows, "the table should be\n{}", rows.join("\n"));
}

#[test]
fn files_that_are_not_read_are_counted_with_the_reason() {
    let skipped = |file: &str, why| SkippedFile { file: file.to_owned(), why };
    let skipped_files = vec![
        skipped("x/.p.yaml", WhySkipped::Hidden),
        skipped("x/a.txt", WhySkipped::Ending),
        skipped("x/b.txt", WhySkipped::Ending),
        skipped("x/c.txt", WhySkipped::Ending),
        skipped("x/d.txt", WhySkipped::Ending),
    ];
    let findings = Findings { skipped_files, ..Findings::of(&files(&[("p.yaml", first_policy())])) };
    let said = findings.text(&[], false);
    let lines: Vec<&str> = said.lines().rev().skip(1).take(2).collect();
    assert_eq!(lines[1], "not read: 1 hidden: x/.p.yaml");
    assert!(lines[0].starts_with("not read: 4 of another ending, *.yaml, *.yml, *.json, *.jsonl"), "{said}");
    assert!(lines[0].ends_with("are read: x/a.txt, x/b.txt, x/c.txt, …"), "{said}");
    let json = serde_json::json!(findings);
    assert_eq!(json["skipped_files"][1], serde_json::json!({"file": "x/a.txt", "why": "ending"}));
}

#[test]
fn json_has_every_part_of_a_finding() {
    let text = policy("app: reports") + "\n  egress: [{toCIDR: []}]\n";
    let findings = Findings::of(&files(&[("p.yaml", &text)]));
    let found = &serde_json::json!(findings)["findings"][0];
    assert_eq!(
        *found,
        serde_json::json!({
            "file": "p.yaml", "line": 6, "column": 21, "level": "warning", "rule": "empty-list",
            "object": "CiliumNetworkPolicy payments/p",
            "text": "spec.egress[0].toCIDR: toCIDR: [] is nobody, so this item allows nothing",
        })
    );
}

/// What is found in an example by itself, as `namegate check config/examples/NAME` finds it.
#[track_caller]
fn example(name: &str, expected: &[&str]) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples").join(name);
    let (files, _) = input::read(&[path]).unwrap();
    let findings = Findings::of(&files).findings;
    let shown = |found: &Finding| {
        let place = |part: Option<u32>| part.map_or_else(String::new, |part| part.to_string());
        format!("{}:{} {}", place(found.line), place(found.column), found.rule)
    };
    assert_eq!(
        findings.iter().map(shown).collect::<Vec<_>>(),
        expected,
        "{}",
        Findings::of(&files).text(&files, false)
    );
}

#[test]
fn examples_are_clean_or_say_what_they_lack() {
    example("1-service-addresses.yaml", &[]);
    example("2-payments-by-address.yaml", &[]);
    example("2-payments-by-name.yaml", &[]);
    example("2-payments-one-star.yaml", &["28:11 pattern-one-label"]);
    example(
        "3-storage-wide.yaml",
        &["24:11 resolver-without-dns-rules", "28:11 pattern-one-label", "29:11 public-suffix"],
    );
    example("3-storage-narrow.yaml", &[]);
    example("4-default-deny.yaml", &[]);
    example("5-http-rules.yaml", &["22:13 not-enforced"]);
}
