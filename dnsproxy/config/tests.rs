use std::fs;

use super::*;

/// The configuration that `toml` makes, without an environment.
#[track_caller]
fn load(toml: &str) -> Result<Config, ConfigErrors> {
    let (_dir, path) = file(toml);
    Source::of_file(path).load()
}

fn file(toml: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("namegate.toml");
    fs::write(&path, toml).unwrap();
    (dir, path)
}

/// Loads `toml` and `source`'s variables and flags, and expects it to be right.
#[track_caller]
fn good(toml: &str, more: impl Fn(Source) -> Source) -> Config {
    let (_dir, path) = file(toml);
    more(Source::of_file(path)).load().unwrap_or_else(|errors| panic!("{errors}"))
}

const ANNOTATED: &str = include_str!("../../config/namegate.toml");
const INVALID: &str = include_str!("../../integration/invalid-settings.tsv");

#[test]
fn every_invalid_setting_is_refused_with_its_place_and_text() {
    let (mut rows, mut wrong) = (0, Vec::new());
    for line in INVALID.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let [kind, set, place, text] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("not four fields: {line}")
        };
        let set = set.replace("\\n", "\n");
        let (_dir, path) = file(if kind == "file" { &set } else { "" });
        let source = Source::of_file(&path);
        let (key, value) = set.split_once('=').unwrap_or_default();
        let source = match kind {
            "file" => source,
            "variable" => source.with_variable(key, value),
            "flag" => source.with_flag(key, &format!("--set {key}"), value),
            "endpoint" => source.with_flags("endpoint", "--endpoint", std::slice::from_ref(&set)),
            other => panic!("kind {other}"),
        };
        let place = if kind == "file" { format!("{}:{place}: ", path.display()) } else { format!("{place}: ") };
        let said = source.load().err().map_or("nothing".to_owned(), |errors| errors.to_string());
        if !said.starts_with(&(place + text)) || said.contains('\n') {
            wrong.push(format!("{line}\n  was refused with: {said}"));
        }
        rows += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rows > 60, "{rows}");
}

#[test]
fn the_annotated_file_has_the_defaults() {
    assert_eq!(good(ANNOTATED, |source| source), Config::default());
}

#[test]
fn the_annotated_file_names_every_setting() {
    let mut seen = std::collections::BTreeSet::new();
    let mut section = String::new();
    for line in ANNOTATED.lines() {
        let line = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
        if let Some(name) = line.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]")) {
            seen.insert(name.to_owned());
            section = format!("{name}.");
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| !key.contains(' ')) {
            seen.insert(format!("{section}{key}"));
        }
    }
    for key in KEYS {
        assert!(seen.remove(key.name), "{} is not in the file", key.name);
    }
    assert_eq!(Vec::from_iter(seen), ["endpoint.interface", "endpoint.mac", "endpoint.pod"]);
}

#[test]
fn the_annotated_file_loads_with_every_comment_sign_taken_away() {
    let text: String = ANNOTATED
        .lines()
        .filter(|line| !matches!(*line, "names = {}" | "suffix_upstreams = {}"))
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned() + "\n")
        .collect();
    let config = good(&text, |source| source);
    assert_eq!(config.endpoints[0].to_string(), "veth-pay=payments/payment-processor,mac=02:00:00:00:00:01");
    assert_eq!(config.dns.guard.names[0].0.as_str(), "**.rds.amazonaws.com");
    let servers = ["203.0.113.9"].map(|text| ServerAddress::parse(text).unwrap()).to_vec();
    let suffixes = [("cluster.local", Servers::Asked), ("corp.example", Servers::Listed(servers))];
    assert_eq!(config.dns.suffix_upstreams, suffixes.map(|(text, servers)| (Name::parse(text).unwrap(), servers)));
}

#[test]
fn the_annotated_file_states_defaults_ranges_and_reloads_as_they_are() {
    let words = |comment: &[&str]| {
        let text: Vec<_> = comment.iter().flat_map(|line| line.trim_start_matches('#').split_whitespace()).collect();
        text.join(" ") + " "
    };
    let mut comment = Vec::new();
    let mut section = String::new();
    let mut checked = 0;
    for line in ANNOTATED.lines() {
        let bare = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ') && !rest.is_empty());
        let set = bare.unwrap_or(line);
        if line.starts_with("# ") || line == "#" {
            comment.push(line);
        } else if let Some(name) = set.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]")) {
            checked += usize::from(states(name, &words(&comment)));
            section = "endpoint.".to_owned();
        } else if let Some(name) = set.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
            comment.clear();
        } else if let Some((key, _)) = set.split_once(" = ") {
            checked += usize::from(states(&format!("{section}{key}"), &words(&comment)));
        } else if line.is_empty() {
            comment.clear();
        }
    }
    assert_eq!(checked, KEYS.len() + 2, "names and suffix_upstreams stand there twice");
}

/// Whether `comment` says what is true of `name`; false for what is no setting.
#[track_caller]
fn states(name: &str, comment: &str) -> bool {
    let Some(key) = KEYS.iter().find(|key| key.name == name) else { return false };
    let range = read::ranges().into_iter().find(|range| range.key == name).unwrap();
    if !range.default.is_empty() && name != "node_name" {
        let default = format!("Default: {}", range.default);
        let stated = comment.split(&default).nth(1).is_some_and(|rest| rest.starts_with([' ', '.']));
        assert!(stated, "{name}: {default} is not in {comment:?}");
    }
    if range.allowed != "a path" {
        assert!(
            comment.contains(&format!("Allowed: {}", range.allowed)),
            "{name}: {} is not in {comment:?}",
            range.allowed
        );
    }
    assert_eq!(comment.contains("On SIGHUP."), key.takes == Takes::Reload, "{name}: {comment:?}");
    true
}

#[test]
fn every_setting_is_read_and_every_read_key_is_a_setting() {
    let mut read: Vec<_> = read::ranges().iter().map(|range| range.key).collect();
    let mut keys: Vec<_> = KEYS.iter().map(|key| key.name).collect();
    read.sort_unstable();
    keys.sort_unstable();
    assert_eq!(read, keys);
}

#[test]
fn a_flag_counts_more_than_a_variable_and_a_variable_more_than_the_file() {
    let file = "[dns]\nport = 1001\nworkers = 1\ngrace = 1\n";
    let config = good(file, |source| {
        source.with_variable("NAMEGATE_DNS_PORT", "1002").with_variable("NAMEGATE_DNS_WORKERS", "2").with_flag(
            "dns.port",
            "--set dns.port",
            "1003",
        )
    });
    assert_eq!((config.dns.port, config.dns.workers, config.dns.grace), (1003, 2, secs(1)));
}

#[test]
fn a_list_is_replaced_as_a_whole() {
    let file = "[dns]\nresolvers = [\"192.0.2.1\", \"192.0.2.2\"]\n";
    let config = good(file, |source| source.with_variable("NAMEGATE_DNS_RESOLVERS", "2001:db8::1, 192.0.2.3"));
    assert_eq!(config.dns.resolvers, ["2001:db8::1", "192.0.2.3"].map(|text| text.parse::<IpAddr>().unwrap()));
}

#[test]
fn a_wrong_item_is_blamed_on_the_source_that_counts() {
    let (_dir, path) = file("[dns]\nresolvers = [\"192.0.2.1\", \"192.0.2.2\"]\n");
    let source = Source::of_file(path).with_variable("NAMEGATE_DNS_RESOLVERS", "192.0.2.1,x");
    let said = source.load().unwrap_err().to_string();
    assert!(said.starts_with("NAMEGATE_DNS_RESOLVERS: dns.resolvers[1]: found \"x\""), "{said}");
}

#[test]
fn endpoints_are_the_same_from_file_variable_and_flag() {
    let of_file =
        good("[[endpoint]]\ninterface = \"veth0\"\npod = \"a/b\"\nmac = \"02:00:00:00:00:0a\"\n", |source| source);
    let text = "veth0=a/b,mac=02:00:00:00:00:0a";
    let of_variable = good("", |source| source.with_variable("NAMEGATE_ENDPOINTS", text));
    let of_flag = good("", |source| source.with_flags("endpoint", "--endpoint", &[text.to_owned()]));
    assert_eq!(of_file.endpoints, of_variable.endpoints);
    assert_eq!(of_file.endpoints, of_flag.endpoints);
    assert_eq!(of_file.endpoints[0].to_string(), text);
}

#[test]
fn the_node_name_comes_from_the_downward_api_unless_namegate_is_told_another() {
    let node = |source: Source| source.with_variable("NODE_NAME", "from-kubernetes");
    assert_eq!(good("node_name = \"from-file\"", node).node_name, "from-kubernetes");
    let both = |source: Source| node(source).with_variable("NAMEGATE_NODE_NAME", "from-variable");
    assert_eq!(good("", both).node_name, "from-variable");
}

#[test]
fn variables_of_kubernetes_services_are_no_settings() {
    let config = good("", |source| {
        source
            .with_variable("NAMEGATE_SERVICE_HOST", "192.0.2.1")
            .with_variable("NAMEGATE_SERVICE_PORT", "9090")
            .with_variable("NAMEGATE_SERVICE_PORT_METRICS", "9090")
            .with_variable("NAMEGATE_PORT", "tcp://192.0.2.1:9090")
            .with_variable("NAMEGATE_PORT_9090_TCP", "tcp://192.0.2.1:9090")
            .with_variable("NAMEGATE_PORT_9090_TCP_PROTO", "tcp")
            .with_variable("NAMEGATE_PORT_9090_TCP_ADDR", "192.0.2.1")
            .with_variable("NAMEGATE_DNS_PORT", "tcp://192.0.2.1:53")
    });
    assert_eq!(config, Config::default());
}

#[test]
fn every_mistake_is_reported_not_only_the_first() {
    let errors = load("[dns]\nport = 0\nworkers = 999\n[enforcement]\nreject = 3\n").unwrap_err();
    assert_eq!(errors.to_string().lines().count(), 3, "{errors}");
    let errors = load("[dns]\na = 0\nb = 9\n").unwrap_err();
    assert_eq!(errors.to_string().lines().count(), 2, "{errors}");
}

#[test]
fn a_file_that_was_asked_for_must_be_there_and_the_usual_one_may_be_absent() {
    let errors = Source::of_file("/nonexistent/namegate.toml").load().unwrap_err().to_string();
    assert!(errors.starts_with("/nonexistent/namegate.toml: reading the configuration: No such file"), "{errors}");
    assert_eq!(Source::of_file_if_there("/nonexistent/namegate.toml").load().unwrap(), Config::default());
}

#[test]
fn a_reload_applies_what_it_can_and_names_what_it_can_not() {
    let old = Config::default();
    let new =
        good("state_dir = \"/elsewhere\"\n[dns]\nport = 999\nmin_ttl = 77\n[observe]\nlog = \"debug\"\n", |source| {
            source
        });
    let differences = old.differences(&new);
    let expected = [("state_dir", true), ("dns.port", true), ("dns.min_ttl", false), ("observe.log", false)];
    assert_eq!(differences, expected.map(|(key, needs_restart)| Difference { key, needs_restart }));
    let merged = old.reloaded(&new);
    assert_eq!((merged.dns.min_ttl, merged.observe.log.as_str()), (secs(77), "debug"));
    assert_eq!((merged.dns.port, &merged.state_dir), (old.dns.port, &old.state_dir));
    assert_eq!(merged.differences(&new).len(), 2, "what was applied no longer differs");
    assert!(old.differences(&old).is_empty());
}

#[test]
fn durations_are_read_as_they_are_written() {
    for (written, read) in
        [("0s", 0), ("250ms", 250), ("5s", 5_000), ("90s", 90_000), ("4m", 240_000), ("8h", 28_800_000)]
    {
        assert_eq!(text::duration(written), Some(millis(read)), "{written}");
        assert_eq!(text::duration(&text::duration_text(millis(read))), Some(millis(read)), "{written}");
    }
    assert_eq!(text::duration("7"), Some(secs(7)));
    for wrong in ["", "s", "5 s", "-5s", "5d", "1.5s", "99999999999999999999s", "9999999999999999999h", "٣s"] {
        assert_eq!(text::duration(wrong), None, "{wrong}");
    }
}

/// What follows from the chart, and so is none of its values.
const SET_BY_THE_CHART: [&str; 7] =
    ["node_name", "snapshot", "endpoint", "state_dir", "run_dir", "take_over", "observe.metrics"];

/// The settings of the chart's values, by their names.
fn chart_settings<'s>(
    schema: &'s serde_json::Value,
    section: &str,
    found: &mut std::collections::BTreeMap<String, &'s serde_json::Value>,
) {
    for (key, property) in schema["properties"].as_object().unwrap() {
        let name = format!("{section}{key}");
        match property["properties"].is_object() {
            true => {
                assert_eq!(property["additionalProperties"], false, "{name} takes any key");
                chart_settings(property, &format!("{name}."), found);
            }
            false => assert!(found.insert(name, property).is_none()),
        }
    }
}

#[test]
fn the_values_of_the_chart_have_each_setting_with_its_range_and_no_other() {
    let schema = include_str!("../../helm/namegate/values.schema.json");
    let schema: serde_json::Value = serde_json::from_str(schema).unwrap();
    let mut found = std::collections::BTreeMap::new();
    chart_settings(&schema["properties"]["config"], "", &mut found);
    // The chart's configuration is the agent's: a sidecar has variables.
    let of_agent = |key: &str| !SET_BY_THE_CHART.contains(&key) && !key.starts_with("sidecar.");
    for range in ranges().iter().filter(|range| of_agent(range.key)) {
        let (key, allowed) = (range.key, range.allowed.as_str());
        let property =
            found.remove(key).unwrap_or_else(|| panic!("{key} ({allowed}) is missing in values.schema.json"));
        assert_eq!(property["description"], allowed, "{key}");
        let numbers = allowed.split_once(" to ").map(|(least, most)| (least.parse::<u64>(), most.parse::<u64>()));
        let words: Vec<&str> = allowed.split(" or ").collect();
        if allowed == "true or false" {
            assert_eq!(property["type"], "boolean", "{key}");
        } else if let Some((Ok(least), Ok(most))) = numbers {
            let range = (&property["type"], property["minimum"].as_u64(), property["maximum"].as_u64());
            assert_eq!(range, (&"integer".into(), Some(least), Some(most)), "{key}");
        } else if words.len() > 1 && words.iter().all(|word| !word.contains(' ')) {
            assert_eq!(property["enum"], serde_json::json!(words), "{key}");
        }
    }
    assert!(found.is_empty(), "no settings, or not for the chart's user to set: {:?}", found.keys());
}
