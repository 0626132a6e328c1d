//! A configuration: the file, and behind NULs variables as `NAME=VALUE` and flags as `--KEY=VALUE`.
//!
//! What is refused says where, and nothing that moves a cursor. What is accepted says the same each time, can be written
//! down again, in a file or as variables, and a reload changes only what may change without a restart.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use namegate::config::{
    Attach, CacheMode, Config, ConfigError, ConfigErrors, Enforcing, Inbound, KEYS, Key, LogFormat, OnInvalid, Output,
    Place, RejectCode, Servers, Siblings, Source, UnknownResolvers,
};

use super::cost::{self, Limit};

/// Variables and flags are tried up to this many.
const OVERRIDES: usize = 16;
/// The list of settings is walked for whatever is written, and words for each wrong value are made: 60 octets for `[]`.
const LIMIT: Limit = Limit { held: (700, 40_000), allocations: (20, 12_000) };

pub fn check(octets: &[u8]) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("namegate.toml");
    let mut parts = octets.split(|octet| *octet == 0);
    let file = parts.next().unwrap_or_default();
    fs::write(&path, file).expect("writable");
    let mut source = Source::of_file(&path);
    let mut names = BTreeSet::new();
    for text in parts.take(OVERRIDES).filter_map(|part| std::str::from_utf8(part).ok()) {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        source = match name.strip_prefix("--") {
            Some(key) => source.with_flag(key, name, value),
            None => source.with_variable(name, value),
        };
        names.insert(name.to_owned());
    }
    match (cost::within(octets.len(), LIMIT, || source.load()), source.load()) {
        (Ok(config), Ok(again)) => {
            assert_eq!(config, again, "the same text, and another configuration");
            accepted(config, directory.path());
        }
        (Err(errors), Err(again)) => {
            assert_eq!(errors.to_string(), again.to_string(), "the same text, and other errors");
            refused(&errors, &path, file, &names);
        }
        (one, other) => panic!("{one:?}, then {other:?}"),
    }
}

fn refused(errors: &ConfigErrors, path: &Path, file: &[u8], names: &BTreeSet<String>) {
    assert!(!errors.0.is_empty(), "refused, and nobody knows why");
    for error in &errors.0 {
        let text = error.to_string();
        assert!(!text.chars().any(char::is_control), "{text:?} is not safe on a terminal");
        let (ConfigError::Syntax { place, .. } | ConfigError::Unknown { place, .. } | ConfigError::Value { place, .. }) =
            error
        else {
            assert!(std::str::from_utf8(file).is_err(), "{error:?}");
            continue;
        };
        match place {
            Place::File { path: of, line, column } => {
                let file = std::str::from_utf8(file).expect("what has places was read");
                let said = file.split('\n').nth(line - 1).map(|line| line.chars().count() + 1);
                assert!(of == path && *column > 0 && said.is_some_and(|end| *column <= end), "{error:?}");
            }
            Place::Variable(name) | Place::Flag(name) => assert!(names.contains(name), "{error:?}"),
            Place::Default => panic!("refused, and nobody set it: {error:?}"),
        }
    }
}

fn accepted(mut config: Config, directory: &Path) {
    let defaults = Config::default();
    let reloaded = defaults.reloaded(&config);
    assert!(reloaded.differences(&config).iter().all(|difference| difference.needs_restart));
    assert!(defaults.differences(&reloaded).iter().all(|difference| !difference.needs_restart));
    assert_eq!(reloaded.reloaded(&config), reloaded);

    in_order(&mut config);
    let settings = written(&config);
    assert!(settings.iter().map(|(key, _)| *key).eq(KEYS.iter().map(|key| key.name)), "a setting is not written");

    let path = directory.join("again.toml");
    let load = |source: Source| {
        let mut config = source.load().unwrap_or_else(|errors| panic!("{errors}"));
        in_order(&mut config);
        config
    };
    fs::write(&path, toml(&settings, |_| true)).expect("writable");
    assert_eq!(load(Source::of_file(&path)), config, "as a file");

    fs::write(&path, toml(&settings, |key| variable(key, &settings).is_none())).expect("writable");
    let mut source = Source::of_file(&path);
    for (name, value) in KEYS.iter().filter_map(|key| variable(key, &settings)) {
        source = source.with_variable(&name, &value);
    }
    assert_eq!(load(source), config, "as variables");
}

/// A table's entries come in the order of the texts that they were written with.
fn in_order(config: &mut Config) {
    config.dns.guard.names.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
    config.dns.suffix_upstreams.sort_by_cached_key(|(name, _)| name.to_string());
}

/// A value as it can be written.
enum Written {
    /// It is not set.
    Nothing,
    /// A number, a truth.
    Bare(String),
    Text(String),
    List(Vec<String>),
    Table(Vec<(String, Vec<String>)>),
}

fn toml(settings: &[(&str, Written)], wanted: impl Fn(&Key) -> bool) -> String {
    let quoted = |text: &str| {
        let mut quoted = String::from("\"");
        for letter in text.chars() {
            let _ = match letter {
                '"' | '\\' => write!(quoted, "\\{letter}"),
                letter if letter.is_control() => write!(quoted, "\\u{:04x}", u32::from(letter)),
                letter => write!(quoted, "{letter}"),
            };
        }
        quoted + "\""
    };
    let list = |items: &[String]| format!("[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "));
    let mut text = String::new();
    for ((name, value), _) in settings.iter().zip(KEYS).filter(|(_, key)| wanted(key)) {
        let _ = match value {
            Written::Nothing => Ok(()),
            Written::Bare(value) => writeln!(text, "{name} = {value}"),
            Written::Text(value) => writeln!(text, "{name} = {}", quoted(value)),
            Written::List(items) => writeln!(text, "{name} = {}", list(items)),
            Written::Table(entries) => {
                entries.iter().try_for_each(|(key, items)| writeln!(text, "{name}.{} = {}", quoted(key), list(items)))
            }
        };
    }
    text
}

/// The variable that says this setting, if one can.
fn variable(key: &Key, settings: &[(&str, Written)]) -> Option<(String, String)> {
    let (_, value) = settings.iter().find(|(name, _)| *name == key.name)?;
    let value = match value {
        Written::Bare(value) => value.clone(),
        // What begins so is taken for a Service's address, which Kubernetes puts there.
        Written::Text(value) if ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme)) => {
            return None;
        }
        Written::Text(value) => value.clone(),
        Written::List(items) if items.iter().any(|item| item.contains([' ', ';'])) => return None,
        Written::List(items) if key.name == "endpoint" => items.join(";"),
        Written::List(items) if items.iter().any(|item| item.contains(',')) => return None,
        Written::List(items) => items.join(","),
        Written::Nothing | Written::Table(_) => return None,
    };
    Some((key.variable()?, value))
}

fn written(config: &Config) -> Vec<(&'static str, Written)> {
    let bare = |value: &dyn ToString| Written::Bare(value.to_string());
    let text = |value: &dyn ToString| Written::Text(value.to_string());
    let word = |word: &str| Written::Text(word.to_owned());
    let path = |path: &Path| Written::Text(path.to_str().expect("it came from text").to_owned());
    let may = |value: Option<Written>| value.unwrap_or(Written::Nothing);
    let time = |time: std::time::Duration| Written::Text(format!("{}ms", time.as_millis()));
    fn texts<T: ToString>(items: &[T]) -> Vec<String> {
        items.iter().map(ToString::to_string).collect()
    }
    let (kernel, dns, cache, policy, observe) =
        (&config.enforcement, &config.dns, &config.cache, &config.policy, &config.observe);
    let sidecar = &config.sidecar;
    let siblings = match sidecar.siblings {
        Siblings::Unknown => "unknown",
        Siblings::Unprivileged => "unprivileged",
    };
    let attach = match kernel.attach {
        Attach::Auto => "auto",
        Attach::Tcx => "tcx",
        Attach::Clsact => "clsact",
        Attach::Xdp => "xdp",
    };
    let inbound = match kernel.inbound {
        Inbound::Host => "host",
        Inbound::Pod => "pod",
    };
    let reject = match dns.reject_response_code {
        RejectCode::Refused => "refused",
        RejectCode::NameError => "nameError",
    };
    let servers = |servers: &Servers| match servers {
        Servers::Asked => vec!["asked".to_owned()],
        Servers::Listed(servers) => texts(servers),
    };
    let suffixes = dns.suffix_upstreams.iter().map(|(name, listed)| (name.to_string(), servers(listed)));
    let exceptions = dns.guard.names.iter().map(|(pattern, nets)| (pattern.as_str().to_owned(), texts(nets)));
    let enforcing = match policy.enforcement {
        Enforcing::Default => "default",
        Enforcing::Always => "always",
        Enforcing::Never => "never",
    };
    let flows = observe.flows.as_ref().map(|flows| match flows {
        Output::Stdout => word("-"),
        Output::File(file) => path(file),
    });
    vec![
        ("node_name", text(&config.node_name)),
        ("cluster_name", text(&config.cluster_name)),
        ("snapshot", path(&config.snapshot)),
        ("endpoint", Written::List(texts(&config.endpoints))),
        ("state_dir", path(&config.state_dir)),
        ("pin_dir", path(&config.pin_dir)),
        ("run_dir", path(&config.run_dir)),
        ("detach", bare(&config.detach)),
        ("take_over", bare(&config.take_over)),
        ("discovery.cni_cache", path(&config.discovery.cni_cache)),
        ("discovery.leave_alone", Written::List(texts(&config.discovery.leave_alone))),
        ("enforcement.attach", word(attach)),
        ("enforcement.inbound", word(inbound)),
        ("enforcement.floor", bare(&kernel.floor)),
        ("enforcement.floor_interfaces", Written::List(texts(&kernel.floor_interfaces))),
        ("enforcement.adopt", text(&kernel.adopt)),
        ("enforcement.reject", bare(&kernel.reject)),
        ("enforcement.events_per_second", bare(&kernel.events_per_second)),
        ("enforcement.syn_timeout", time(kernel.syn_timeout)),
        ("enforcement.established_timeout", time(kernel.established_timeout)),
        ("enforcement.closed_timeout", time(kernel.closed_timeout)),
        ("enforcement.udp_timeout", time(kernel.udp_timeout)),
        ("enforcement.flows_per_endpoint", bare(&kernel.flows_per_endpoint)),
        ("enforcement.grants_per_endpoint", bare(&kernel.grants_per_endpoint)),
        ("enforcement.max_endpoints", bare(&kernel.max_endpoints)),
        ("enforcement.max_flows", bare(&kernel.max_flows)),
        ("enforcement.max_grants", bare(&kernel.max_grants)),
        ("dns.port", bare(&dns.port)),
        ("dns.local_addresses_v4", text(&dns.local_addresses_v4)),
        ("dns.local_addresses_v6", text(&dns.local_addresses_v6)),
        ("dns.min_ttl", time(dns.min_ttl)),
        ("dns.grace", time(dns.grace)),
        ("dns.upstream_timeout", time(dns.upstream_timeout)),
        ("dns.reject_response_code", word(reject)),
        ("dns.enable_dns_compression", bare(&dns.enable_dns_compression)),
        ("dns.endpoint_max_ip_per_hostname", bare(&dns.endpoint_max_ip_per_hostname)),
        ("dns.cluster_domain", text(&dns.cluster_domain)),
        ("dns.resolvers", Written::List(texts(&dns.resolvers))),
        ("dns.unknown_resolvers", word(if dns.unknown_resolvers == UnknownResolvers::Drop { "drop" } else { "pool" })),
        ("dns.upstreams", Written::List(texts(&dns.upstreams))),
        ("dns.suffix_upstreams", Written::Table(suffixes.collect())),
        ("dns.upstream_ca", may(dns.upstream_ca.as_deref().map(path))),
        ("dns.cache", word(if dns.cache == CacheMode::On { "on" } else { "off" })),
        ("dns.prefetch", bare(&dns.prefetch)),
        ("dns.poller", bare(&dns.poller)),
        ("dns.background_queries_per_second", bare(&dns.background_queries_per_second)),
        ("dns.idle_connection_grace_period", time(dns.idle_connection_grace_period)),
        ("dns.max_deferred_connection_deletes", bare(&dns.max_deferred_connection_deletes)),
        ("dns.queries_per_second", bare(&dns.queries_per_second)),
        ("dns.queries_in_flight", bare(&dns.queries_in_flight)),
        ("dns.tcp_connections", bare(&dns.tcp_connections)),
        ("dns.tcp_connections_total", bare(&dns.tcp_connections_total)),
        ("dns.workers", bare(&dns.workers)),
        ("dns.tls_port", bare(&dns.tls_port)),
        ("dns.tls_certificate", may(dns.tls_certificate.as_deref().map(path))),
        ("dns.tls_key", may(dns.tls_key.as_deref().map(path))),
        ("dns.guard.allow", Written::List(texts(&dns.guard.allow))),
        ("dns.guard.names", Written::Table(exceptions.collect())),
        ("cache.max_bytes", bare(&cache.max_bytes)),
        ("cache.max_ttl", time(cache.max_ttl)),
        ("cache.max_negative_ttl", time(cache.max_negative_ttl)),
        ("cache.serve_stale", time(cache.serve_stale)),
        ("policy.on_invalid", word(if policy.on_invalid == OnInvalid::Refuse { "refuse" } else { "ignore" })),
        ("policy.enforcement", word(enforcing)),
        ("policy.audit", bare(&policy.audit)),
        ("policy.mode_annotation", bare(&policy.mode_annotation)),
        ("policy.cilium_config", bare(&policy.cilium_config)),
        ("observe.verbose", bare(&observe.verbose)),
        ("observe.flows", may(flows)),
        ("observe.metrics", may(observe.metrics.as_ref().map(|at| text(at)))),
        ("observe.log", text(&observe.log)),
        ("observe.log_format", word(if observe.log_format == LogFormat::Text { "text" } else { "json" })),
        ("sidecar.podinfo", path(&sidecar.podinfo)),
        ("sidecar.interface", text(&sidecar.interface)),
        ("sidecar.addresses", Written::List(texts(&sidecar.addresses))),
        ("sidecar.service_account", may(sidecar.service_account.as_ref().map(|name| text(name)))),
        ("sidecar.siblings", word(siblings)),
    ]
}
