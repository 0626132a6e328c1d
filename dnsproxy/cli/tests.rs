use std::sync::Arc;

use super::*;
use crate::cluster::snapshot::Stands;
use crate::config::ConfigErrors;
use crate::operate::metrics::Metrics;
use crate::operate::{
    Advisory, AdvisoryStatus, AttachedBy, CacheStatus, CniRefusalStatus, EndpointState, EndpointStatus, MapStatus,
    Operator, PolicyStatus, Readiness, RefusalStatus, Server, Status, UnknownStatus,
};
use crate::upstream::health::ServerHealth;

fn words(line: &str) -> impl Iterator<Item = OsString> {
    std::iter::once("namegate").chain(line.split_whitespace()).map(OsString::from).collect::<Vec<_>>().into_iter()
}

/// The configuration that `namegate node LINE` runs with.
#[track_caller]
fn node(line: &str) -> Result<crate::config::Config, ConfigErrors> {
    match parse(words(&format!("node {line}"))).unwrap().command {
        Command::Node(args) => args.source().load(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn flags_are_settings() {
    let line = "--snapshot /s --endpoint veth-pay=payments/a --endpoint veth-rep=payments/b,mac=02:00:00:00:00:01 \
        --flows - --metrics 127.0.0.1:9090 --state-dir /st --pin-dir /p --run-dir /r --node-name n1 -v --detach \
        --log debug --set dns.min_ttl=7 --set dns.resolvers=192.0.2.1,2001:db8::1";
    let config = node(line).unwrap();
    let endpoints: Vec<_> = config.endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(endpoints, ["veth-pay=payments/a", "veth-rep=payments/b,mac=02:00:00:00:00:01"]);
    assert_eq!(config.observe.flows, Some(crate::config::Output::Stdout));
    assert_eq!(config.observe.metrics, Some("127.0.0.1:9090".parse().unwrap()));
    assert_eq!(config.admin_socket().to_str(), Some("/r/admin.sock"));
    let dirs = [&config.snapshot, &config.state_dir, &config.pin_dir].map(|dir| dir.to_str().unwrap());
    assert_eq!((dirs, config.node_name.as_str()), (["/s", "/st", "/p"], "n1"));
    assert!(config.observe.verbose && config.detach && config.observe.log == "debug");
    assert_eq!((config.dns.min_ttl.as_secs(), config.dns.resolvers.len()), (7, 2));
}

#[test]
fn a_wrong_flag_is_named_as_it_was_typed() {
    let errors = node("--metrics 9090 --endpoint veth0 --set dns.prot=1").unwrap_err().to_string();
    let mut lines: Vec<_> = errors.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "--endpoint: endpoint[0]: found \"veth0\"; allowed is IFACE=NAMESPACE/POD[,mac=…]",
            "--metrics: observe.metrics: found \"9090\"; allowed is an address and port as 127.0.0.1:9090",
            "--set dns.prot: dns.prot: no such setting; did you mean dns.port",
        ]
    );
}

#[test]
fn a_wrong_command_line_exits_with_2_and_help_with_0() {
    for (line, code) in
        [("", 2), ("nodee", 2), ("node --nope", 2), ("ready --timeout 5", 2), ("ready --wait --timeout x", 2)]
    {
        assert_eq!(parse(words(line)).unwrap_err().exit_code(), code, "{line}");
    }
    for line in ["--help", "--version", "node --help", "sidecar --help"] {
        assert_eq!(parse(words(line)).unwrap_err().exit_code(), 0, "{line}");
    }
}

#[test]
fn a_sidecar_takes_what_the_chart_gives_it() {
    let line = "sidecar --snapshot /s --podinfo /p --node-name node-1 --metrics 0.0.0.0:9965";
    let Command::Sidecar(args) = parse(words(line)).unwrap().command else { panic!("{line}") };
    let source = args.source().with_variable("POD_IPS", "198.51.100.10,2001:db8::10");
    let config = source.with_variable("SERVICE_ACCOUNT", "default").load().unwrap();
    assert_eq!(config.sidecar.podinfo, std::path::Path::new("/p"));
    assert_eq!(config.sidecar.addresses.len(), 2);
    assert_eq!(config.sidecar.service_account.as_deref(), Some("default"));
    assert_eq!(config.observe.metrics, "0.0.0.0:9965".parse().ok());
    assert!(!args.init);
}

fn status() -> Status {
    Status {
        version: "0.1.0".to_owned(),
        node_name: "node-1".to_owned(),
        pid: 42,
        started: "2026-11-21T04:27:15Z".to_owned(),
        ready: false,
        reasons: vec!["veth-rep: not first in the chain".to_owned()],
        adopting_seconds: 7,
        advisory: vec![AdvisoryStatus { reason: Advisory::NetRaw, text: "it \u{1b}can".to_owned() }],
        policy: PolicyStatus {
            generation: 3,
            loaded: "2026-11-21T04:27:16Z".to_owned(),
            refusals: vec![RefusalStatus {
                object: "CiliumNetworkPolicy payments/egress".to_owned(),
                place: "p.yaml:7:5".to_owned(),
                text: "no such \u{1b}field".to_owned(),
                kept: true,
                stands: Stands::Kept,
            }],
            skipped: 2,
        },
        endpoints: vec![EndpointStatus {
            interface: "veth-rep".to_owned(),
            ifindex: 12,
            pod: "payments/reports".to_owned(),
            id: 7,
            state: EndpointState::Enforced,
            attached: AttachedBy::Tcx,
            steered: true,
            grants: 5,
            flows: 9,
            problem: String::new(),
        }],
        unknown: vec![UnknownStatus {
            interface: "veth1a2b".to_owned(),
            ifindex: 13,
            why: "nobody says\u{1b} whose it is".to_owned(),
        }],
        unprotected: vec!["kube-system/agent".to_owned()],
        cni_refusals: vec![CniRefusalStatus { file: "net-0b1c-eth0".to_owned(), text: "it is no JSON".to_owned() }],
        floor: crate::host::floor::FloorStatus {
            wanted: true,
            tables: vec!["inet".to_owned()],
            names: vec!["veth-pay".to_owned(), "veth-rep".to_owned()],
            guarded: 1,
            dropped: 3,
            problem: "table bridge namegate can't be written".to_owned(),
        },
        maps: vec![MapStatus { name: "grants".to_owned(), rows: 5, max: 262_144 }],
        upstreams: vec![
            ServerHealth {
                server: "198.51.100.53:53".to_owned(),
                transport: "plain".to_owned(),
                srtt_us: Some(1_250),
                queries: 10,
                answers: 9,
                timeouts: 1,
                unanswered: 0,
                held_ms: None,
            },
            ServerHealth {
                server: "tls://198.51.100.54:853#dns.example".to_owned(),
                transport: "tls".to_owned(),
                queries: 3,
                timeouts: 3,
                unanswered: 3,
                held_ms: Some(1_500),
                ..ServerHealth::default()
            },
        ],
        cache: Some(CacheStatus {
            entries: 40,
            bytes: 3 << 20,
            max_bytes: 64 << 20,
            hits: 20,
            hot_hits: 70,
            misses: 10,
            stale: 0,
        }),
        events_lost: 0,
    }
}

#[test]
fn the_status_for_people_says_everything() {
    assert_eq!(
        status::text(&status()),
        "namegate 0.1.0 on node-1, process 42, since 2026-11-21T04:27:15Z\n\
         not ready: veth-rep: not first in the chain\n\
         advisory: net_raw: it \\u{1b}can\n\
         adopting: for 7 s connections from before the first start go on unless a rule denies them\n\
         policy: generation 3, in force since 2026-11-21T04:27:16Z, 2 objects of no use\n\
         refused: p.yaml:7:5: CiliumNetworkPolicy payments/egress: no such \\u{1b}field (the last good version is in force)\n\
         unknown: veth1a2b: nobody says\\u{1b} whose it is; nothing passes\n\
         unprotected: kube-system/agent: a policy selects it, and it is on the node's own network\n\
         left out: net-0b1c-eth0 of the CNI's cache: it is no JSON\n\
         floor: 1 of 2 interfaces guarded, the rest shut; 3 packets dropped; table bridge namegate can't be written\n\
         \n\
         INTERFACE  POD               ID  STATE     ATTACHED  STEERED  GRANTS  FLOWS  PROBLEM\n\
         veth-rep   payments/reports  7   enforced  tcx       yes      5       9      -\n\
         \n\
         MAP     ROWS  MAX\n\
         grants  5     262144\n\
         \n\
         SERVER                               ROUND TRIP  QUERIES  ANSWERS  TIMEOUTS  STATE\n\
         198.51.100.53:53                     1.2 ms      10       9        1         in use\n\
         tls://198.51.100.54:853#dns.example  -           3        0        3         held down, asked again in 1.5 s\n\
         \n\
         cache: 40 answers, 3.0 of 64.0 MiB; 90.0 % of answers came from it (20 hits, 70 hot, 0 stale, 10 misses)\n"
    );
}

#[test]
fn the_names_for_people_say_how_long_they_stay() {
    use crate::operate::names::{AddressStatus, NameStatus};
    let address = |last: u8, seconds_left, connections| AddressStatus {
        address: [203, 0, 113, last].into(),
        seconds_left,
        connections,
    };
    let name = |name: &str, addresses, policies: &[&str]| NameStatus {
        endpoint: "payments/reports".to_owned(),
        name: name.to_owned(),
        addresses,
        policies: policies.iter().map(|policy| (*policy).to_owned()).collect(),
    };
    let names = vec![
        name("a\u{1b}[2J.test.", vec![address(1, 60, true), address(2, 0, true)], &["payments/egress", "all"]),
        name("", vec![address(3, 0, false)], &[]),
    ];
    assert_eq!(
        fqdn::text(&fqdn::Listing { names, more: true }),
        "ENDPOINT          NAME              ADDRESS      LEFT                        POLICIES\n\
         payments/reports  a\\u{1b}[2J.test.  203.0.113.1  60s                         payments/egress, all\n\
         payments/reports  a\\u{1b}[2J.test.  203.0.113.2  while its connections live  payments/egress, all\n\
         payments/reports  -                 203.0.113.3  over                        -\n\
         2 names are listed and there are more: --limit 0 lists all\n"
    );
}

#[test]
fn ready_waits_until_it_is_and_says_why_not() {
    use std::time::Duration;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let reasons = ready::wait(&socket, Duration::ZERO).unwrap_err();
    assert!(
        reasons[0].starts_with("not ready: asking namegate on ") && reasons[0].ends_with("(os error 2)"),
        "{reasons:?}"
    );

    let readiness = Readiness::waiting_for("start");
    let operator = Operator {
        metrics: Arc::new(Metrics::new()),
        readiness: readiness.clone(),
        status: Box::new(status),
        names: Box::new(|_| Ok(Default::default())),
        policy: Box::new(|_| Ok(Vec::new())),
        refresh: Box::new(|_| ()),
        hand_over: None,
    };
    let _server = Server::start(None, &socket, Arc::new(operator)).unwrap();
    assert_eq!(ready::wait(&socket, Duration::from_millis(150)).unwrap_err(), ["not ready: start: not done yet"]);
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        readiness.set("start", Vec::new());
    });
    assert_eq!(ready::wait(&socket, Duration::from_secs(10)), Ok(()));
    later.join().unwrap();
}

#[test]
fn every_setting_is_listed_once() {
    let rows = settings::rows();
    assert_eq!(rows.len(), crate::config::KEYS.len());
    let expected = ["dns.min_ttl", "5s", "0s to 24h", "NAMEGATE_DNS_MIN_TTL", "reload"].map(str::to_owned);
    assert!(rows.contains(&expected));
}

#[test]
fn completions_know_the_commands() {
    for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "namegate", &mut script);
        assert!(String::from_utf8(script).unwrap().contains("endpoint"), "{shell}");
    }
}

mod understanding;

const README: &str = include_str!("../../README.md");

#[test]
fn the_readme_lists_every_setting_as_it_is() {
    let rows: Vec<_> = settings::rows()
        .iter()
        .map(|[setting, default, allowed, _, takes]| format!("| `{setting}` | {default} | {allowed} | {takes} |"))
        .collect();
    let table = README.split("## Settings").nth(1).unwrap().split("\n## ").next().unwrap();
    let listed: Vec<_> = table.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(listed == rows, "the table should be\n{}", rows.join("\n"));
}

#[test]
fn the_readme_lists_every_metric_and_no_other() {
    let metrics = Metrics::new();
    metrics.table(crate::operate::metrics::Table::Grants, 0, 1);
    let crate::observe::Record::Query(_, record) = crate::observe::samples::query(|_| ()) else { unreachable!() };
    metrics.query(&record.counted());
    let text = String::from_utf8(metrics.text()).unwrap();
    let mut ours: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let table = README.split("### Metrics").nth(1).unwrap().split("\n###").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let names =
        rows.flat_map(|line| line.split('|').nth(1).unwrap().split('`')).filter(|cell| cell.starts_with("namegate"));
    let mut listed: Vec<_> = names.collect();
    ours.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, ours);
}

#[test]
fn the_readme_shows_lines_as_they_are_written() {
    use crate::observe::{Outcome, Reason, human, samples};
    let records = [
        samples::query(|_| ()),
        samples::packet(|p| {
            (p.reason, p.rejected, p.suppressed) = (Reason::Granted, false, 0);
            (p.destination, p.names) = (Some("192.0.2.1:443".parse().unwrap()), vec!["api.github.com.".to_owned()]);
        }),
        samples::query(|q| {
            (q.outcome, q.reason, q.rcode, q.upstream, q.granted) = (Outcome::Denied, "name", Some(5), None, 0);
            q.qname = "api.stripe.com.".to_owned();
            q.addresses.clear();
        }),
        samples::packet(|p| (p.suppressed, p.names) = (0, Vec::new())),
    ];
    for record in records {
        let mut line = Vec::new();
        human::write(&record, false, &mut line);
        let line = String::from_utf8(line).unwrap();
        let (_, said) = line.trim_end().split_once(' ').unwrap(); // the time differs
        assert!(README.lines().any(|shown| shown.ends_with(said)), "not shown: {said}");
    }
}

/// The cases of Kubernetes' and Cilium's documentation: a folder a subject, each with its objects and `cases.yaml`.
#[test]
fn the_documented_examples_give_the_verdicts_that_their_text_promises() {
    let documented = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/conformance/documented");
    let folders = |of: std::path::PathBuf| std::fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = folders(documented).flat_map(folders).map(|subject| subject.join("cases.yaml")).collect();
    files.sort();
    assert!(files.len() >= 24, "{files:?}");
    let words = ["namegate", "test"].map(OsString::from).into_iter();
    let tested = parse(words.chain(files.into_iter().map(OsString::from))).unwrap().run();
    assert_eq!(tested, ExitCode::SUCCESS, "what differs is printed above");
}
