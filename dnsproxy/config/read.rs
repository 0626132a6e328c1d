//! From merged values to typed settings. Every key is read once, here, and every wrong value is collected.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::config::{Value, ValueKind};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::source::{ConfigError, Origins, Place, describe};
use super::text;
use super::*;

/// The words for a setting's default and range, as the annotated file and the README print them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// The setting.
    pub key: &'static str,
    /// `5s`, or empty when there is no default.
    pub default: String,
    /// `0s to 24h`, or the words that may stand there.
    pub allowed: String,
}

/// Reads everything. The configuration is of use only if there are no errors.
pub(super) fn config(root: &Value, origins: &Origins) -> (Config, Vec<ConfigError>) {
    let mut reader = Reader { root, origins, ranges: Vec::new(), errors: Vec::new() };
    let config = everything(&mut reader);
    (config, reader.errors)
}

/// Default and range of every setting, in the order of the file.
pub fn ranges() -> Vec<Range> {
    let (root, origins) = (Value::new(None, ::config::Map::<String, Value>::new()), Origins::default());
    let mut reader = Reader { root: &root, origins: &origins, ranges: Vec::new(), errors: Vec::new() };
    everything(&mut reader);
    reader.ranges
}

fn everything(r: &mut Reader<'_>) -> Config {
    let config = Config {
        node_name: r.parsed(
            "node_name",
            host_name(),
            "a node's name: dot-separated labels of a-z 0-9 -",
            text::node_name,
        ),
        cluster_name: r.parsed("cluster_name", "default".to_owned(), "at most 32 of a-z 0-9 -", text::cluster_name),
        snapshot: r.path("snapshot", "/etc/namegate/snapshot"),
        endpoints: r.endpoints("endpoint"),
        state_dir: r.path("state_dir", "/var/lib/namegate"),
        pin_dir: r.path("pin_dir", "/sys/fs/bpf/namegate"),
        run_dir: r.path("run_dir", "/run/namegate"),
        detach: r.truth("detach", false),
        take_over: r.truth("take_over", false),
        discovery: Discovery {
            cni_cache: r.path("discovery.cni_cache", "/var/lib/cni"),
            leave_alone: r.list("discovery.leave_alone", INTERFACES, text::interface_names),
        },
        enforcement: Enforcement {
            attach: r.word(
                "enforcement.attach",
                &[("auto", Attach::Auto), ("tcx", Attach::Tcx), ("clsact", Attach::Clsact), ("xdp", Attach::Xdp)],
            ),
            inbound: r.word("enforcement.inbound", &[("host", Inbound::Host), ("pod", Inbound::Pod)]),
            floor: r.truth("enforcement.floor", true),
            floor_interfaces: r.list("enforcement.floor_interfaces", INTERFACES, text::interface_names),
            adopt: r.parsed("enforcement.adopt", Adopt::Cut.to_string(), ADOPT, text::adopt),
            reject: r.truth("enforcement.reject", true),
            events_per_second: r.number("enforcement.events_per_second", EVENTS_PER_SECOND),
            syn_timeout: r.duration("enforcement.syn_timeout", SYN_TIMEOUT),
            established_timeout: r.duration("enforcement.established_timeout", ESTABLISHED_TIMEOUT),
            closed_timeout: r.duration("enforcement.closed_timeout", CLOSED_TIMEOUT),
            udp_timeout: r.duration("enforcement.udp_timeout", UDP_TIMEOUT),
            flows_per_endpoint: r.number("enforcement.flows_per_endpoint", FLOWS_PER_ENDPOINT),
            grants_per_endpoint: r.number("enforcement.grants_per_endpoint", GRANTS_PER_ENDPOINT),
            max_endpoints: r.number("enforcement.max_endpoints", MAX_ENDPOINTS),
            max_flows: r.number("enforcement.max_flows", MAX_FLOWS),
            max_grants: r.number("enforcement.max_grants", MAX_GRANTS),
        },
        dns: Dns {
            port: r.number("dns.port", DNS_PORT),
            local_addresses_v4: r.parsed(
                "dns.local_addresses_v4",
                LOCAL_V4.to_owned(),
                "an IPv4 network of /16 to /30, host bits zero",
                |text| text::network(text)?.parse().ok().filter(|net: &Ipv4Net| (16..=30).contains(&net.prefix_len())),
            ),
            local_addresses_v6: r.parsed(
                "dns.local_addresses_v6",
                LOCAL_V6.to_owned(),
                "an IPv6 network of /64 to /126, host bits zero",
                |text| text::network(text)?.parse().ok().filter(|net: &Ipv6Net| (64..=126).contains(&net.prefix_len())),
            ),
            min_ttl: r.duration("dns.min_ttl", MIN_TTL),
            grace: r.duration("dns.grace", GRACE),
            upstream_timeout: r.duration("dns.upstream_timeout", UPSTREAM_TIMEOUT),
            reject_response_code: r.word(
                "dns.reject_response_code",
                &[("refused", RejectCode::Refused), ("nameError", RejectCode::NameError)],
            ),
            enable_dns_compression: r.truth("dns.enable_dns_compression", true),
            endpoint_max_ip_per_hostname: r.number("dns.endpoint_max_ip_per_hostname", ENDPOINT_MAX_IP_PER_HOSTNAME),
            cluster_domain: r.parsed("dns.cluster_domain", "cluster.local".to_owned(), "a domain name", |text| {
                Name::parse(text).ok().filter(|name| !name.is_root())
            }),
            resolvers: r.list("dns.resolvers", "IP addresses", |text| text.parse().ok()),
            unknown_resolvers: r
                .word("dns.unknown_resolvers", &[("drop", UnknownResolvers::Drop), ("pool", UnknownResolvers::Pool)]),
            upstreams: r.list("dns.upstreams", SERVERS, ServerAddress::parse),
            suffix_upstreams: r.suffixes("dns.suffix_upstreams"),
            upstream_ca: r.optional("dns.upstream_ca", "a file's path", file),
            cache: r.word("dns.cache", &[("on", CacheMode::On), ("off", CacheMode::Off)]),
            prefetch: r.truth("dns.prefetch", true),
            poller: r.truth("dns.poller", false),
            background_queries_per_second: r.number("dns.background_queries_per_second", BACKGROUND_QUERIES_PER_SECOND),
            idle_connection_grace_period: r.duration("dns.idle_connection_grace_period", IDLE_CONNECTION_GRACE_PERIOD),
            max_deferred_connection_deletes: r
                .number("dns.max_deferred_connection_deletes", MAX_DEFERRED_CONNECTION_DELETES),
            queries_per_second: r.number("dns.queries_per_second", QUERIES_PER_SECOND),
            queries_in_flight: r.number("dns.queries_in_flight", QUERIES_IN_FLIGHT),
            tcp_connections: r.number("dns.tcp_connections", TCP_CONNECTIONS),
            tcp_connections_total: r.number("dns.tcp_connections_total", TCP_CONNECTIONS_TOTAL),
            workers: r.number("dns.workers", WORKERS),
            tls_port: r.number("dns.tls_port", Bounded { default: 0, min: 0, max: 65_535 }),
            tls_certificate: r.optional("dns.tls_certificate", "a file's path", file),
            tls_key: r.optional("dns.tls_key", "a file's path", file),
            guard: Guard { allow: r.list("dns.guard.allow", NETWORKS, network), names: r.patterns("dns.guard.names") },
        },
        cache: Cache {
            max_bytes: r.number("cache.max_bytes", CACHE_MAX_BYTES),
            max_ttl: r.duration("cache.max_ttl", CACHE_MAX_TTL),
            max_negative_ttl: r.duration("cache.max_negative_ttl", CACHE_MAX_NEGATIVE_TTL),
            serve_stale: r.duration("cache.serve_stale", CACHE_SERVE_STALE),
        },
        policy: PolicySettings {
            on_invalid: r.word("policy.on_invalid", &[("refuse", OnInvalid::Refuse), ("ignore", OnInvalid::Ignore)]),
            enforcement: r.word(
                "policy.enforcement",
                &[("default", Enforcing::Default), ("always", Enforcing::Always), ("never", Enforcing::Never)],
            ),
            audit: r.truth("policy.audit", false),
            mode_annotation: r.truth("policy.mode_annotation", true),
            cilium_config: r.truth("policy.cilium_config", true),
        },
        observe: Observe {
            verbose: r.truth("observe.verbose", false),
            flows: r.optional("observe.flows", "a file's path, or - for standard output", |text| match text {
                "" => None,
                "-" => Some(Output::Stdout),
                path => Some(Output::File(PathBuf::from(path))),
            }),
            metrics: r.optional("observe.metrics", "an address and port as 127.0.0.1:9090", |text| {
                text.parse::<SocketAddr>().ok()
            }),
            log: r.parsed("observe.log", "info".to_owned(), "a log filter as info or namegate=debug,warn", |text| {
                tracing_subscriber::EnvFilter::try_new(text).is_ok().then(|| text.to_owned())
            }),
            log_format: r.word("observe.log_format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
        },
        sidecar: Sidecar {
            podinfo: r.path("sidecar.podinfo", "/etc/podinfo"),
            interface: r.parsed(
                "sidecar.interface",
                "eth0".to_owned(),
                "an interface's name, 1 to 15 octets",
                |text| match text::interface_names(text)? {
                    InterfaceNames::One(name) => Some(name),
                    InterfaceNames::Prefix(_) => None,
                },
            ),
            addresses: r.list("sidecar.addresses", "IP addresses", |text| text.parse().ok()),
            service_account: r.optional("sidecar.service_account", "a ServiceAccount's name", |text| {
                (!text.is_empty()).then(|| text.to_owned())
            }),
            siblings: r
                .word("sidecar.siblings", &[("unknown", Siblings::Unknown), ("unprivileged", Siblings::Unprivileged)]),
        },
    };
    let limits = &config.enforcement;
    r.at_most("enforcement.flows_per_endpoint", limits.flows_per_endpoint, "enforcement.max_flows", limits.max_flows);
    r.at_most(
        "enforcement.grants_per_endpoint",
        limits.grants_per_endpoint,
        "enforcement.max_grants",
        limits.max_grants,
    );
    r.at_most(
        "dns.tcp_connections",
        config.dns.tcp_connections,
        "dns.tcp_connections_total",
        config.dns.tcp_connections_total,
    );
    config
}

const LOCAL_V4: &str = "169.254.77.0/24";
const LOCAL_V6: &str = "fd6e:616d:6567:6174::/112";
const ADOPT: &str = "cut, or observe and 1s to 24h (observe 10m)";
const SERVERS: &str = "servers as 203.0.113.1, tls://203.0.113.1#NAME or https://203.0.113.1/dns-query#NAME";
const INTERFACES: &str = "names of interfaces, 1 to 15 octets, or what they begin with and * (veth*)";
const NETWORKS: &str = "networks as 10.0.0.0/8, host bits zero";

fn network(text: &str) -> Option<IpNet> {
    text::network(text)?.parse().ok()
}

fn file(text: &str) -> Option<PathBuf> {
    (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text))
}

/// The host's name. Read from proc: it is the name of the network node that we are part of, without a libc buffer.
fn host_name() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = read.trim().to_ascii_lowercase();
    text::node_name(&name).unwrap_or_else(|| "localhost".to_owned())
}

struct Reader<'a> {
    root: &'a Value,
    origins: &'a Origins,
    ranges: Vec<Range>,
    errors: Vec<ConfigError>,
}

impl Reader<'_> {
    fn number<T>(&mut self, key: &'static str, range: Bounded<T>) -> T
    where
        T: Copy + PartialOrd + TryFrom<i128> + fmt::Display,
    {
        let allowed = format!("{} to {}", range.min, range.max);
        self.note(key, range.default.to_string(), allowed.clone());
        self.one(key, range.default, &allowed, |value, typed| {
            let number = match &value.kind {
                ValueKind::String(text) if !typed => text.trim().parse().ok()?,
                _ => integer(value)?,
            };
            T::try_from(number).ok().filter(|number| (range.min..=range.max).contains(number))
        })
    }

    fn duration(&mut self, key: &'static str, range: Bounded<Duration>) -> Duration {
        let show = text::duration_text;
        let allowed = format!("{} to {}", show(range.min), show(range.max));
        self.note(key, show(range.default), allowed.clone());
        let words = format!("{allowed}, as 250ms, 5s, 4m, 8h or seconds");
        self.one(key, range.default, &words, |value, _| {
            let found = match &value.kind {
                ValueKind::String(text) => text::duration(text.trim())?,
                _ => Duration::from_secs(u64::try_from(integer(value)?).ok()?),
            };
            (range.min..=range.max).contains(&found).then_some(found)
        })
    }

    fn truth(&mut self, key: &'static str, default: bool) -> bool {
        self.note(key, default.to_string(), "true or false".to_owned());
        self.one(key, default, "true or false", |value, typed| match &value.kind {
            ValueKind::Boolean(value) => Some(*value),
            ValueKind::String(text) if !typed => text.trim().parse().ok(),
            _ => None,
        })
    }

    /// One of `words`; the first is the default.
    fn word<T: Copy>(&mut self, key: &'static str, words: &[(&'static str, T)]) -> T {
        let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let allowed = names.join(" or ");
        self.note(key, names[0].to_owned(), allowed.clone());
        self.one(key, words[0].1, &allowed, |value, _| {
            let ValueKind::String(text) = &value.kind else { return None };
            words.iter().find(|(word, _)| word == text).map(|(_, meaning)| *meaning)
        })
    }

    fn path(&mut self, key: &'static str, default: &str) -> PathBuf {
        self.note(key, default.to_owned(), "a path".to_owned());
        self.one(key, PathBuf::from(default), "a path", |value, _| match &value.kind {
            ValueKind::String(text) if !text.is_empty() && !text.contains('\0') => Some(Path::new(text).to_owned()),
            _ => None,
        })
    }

    fn parsed<T>(&mut self, key: &'static str, default: String, allowed: &str, parse: impl Fn(&str) -> Option<T>) -> T {
        let fallback = parse(&default).expect("a default can be parsed");
        self.note(key, default, allowed.to_owned());
        self.one(key, fallback, allowed, |value, _| match &value.kind {
            ValueKind::String(text) => parse(text),
            _ => None,
        })
    }

    fn optional<T>(&mut self, key: &'static str, allowed: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.note(key, String::new(), allowed.to_owned());
        self.one(key, None, allowed, |value, _| match &value.kind {
            ValueKind::String(text) => parse(text).map(Some),
            _ => None,
        })
    }

    fn list<T>(&mut self, key: &'static str, allowed: &str, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
        self.note(key, "[]".to_owned(), allowed.to_owned());
        match self.find(key) {
            Some(value) => self.items(key, &value, allowed, &[',', ' '], |value| match &value.kind {
                ValueKind::String(text) => parse(text),
                _ => None,
            }),
            None => Vec::new(),
        }
    }

    /// The entries of a table whose keys are free text, by key.
    fn table(&mut self, key: &'static str, allowed: &str) -> Vec<(String, Value)> {
        self.note(key, "{}".to_owned(), allowed.to_owned());
        let Some(value) = self.find(key) else { return Vec::new() };
        let ValueKind::Table(table) = value.kind else {
            self.wrong(key, &value, allowed);
            return Vec::new();
        };
        let mut entries: Vec<(String, Value)> = table.into_iter().collect();
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        entries
    }

    fn patterns(&mut self, key: &'static str) -> Vec<(Pattern, Vec<IpNet>)> {
        let allowed = "name patterns, each with a list of networks";
        let entries = self.table(key, allowed);
        let mut found = Vec::new();
        for (text, value) in &entries {
            let path = format!("{key}.{text}");
            let nets = self.items(&path, value, NETWORKS, &[',', ' '], |value| match &value.kind {
                ValueKind::String(text) => network(text),
                _ => None,
            });
            match Pattern::pattern(text) {
                Ok(pattern) => found.push((pattern, nets)),
                Err(error) => self.errors.push(ConfigError::Value {
                    place: self.origins.place(&path),
                    key: key.to_owned(),
                    found: format!("{text:?}"),
                    allowed: format!("a name pattern ({error})"),
                }),
            }
        }
        found
    }

    fn suffixes(&mut self, key: &'static str) -> Vec<(Name, Servers)> {
        let allowed = "domain names, each with a list of servers or [\"asked\"]";
        let entries = self.table(key, allowed);
        let mut found: Vec<(Name, Servers)> = Vec::new();
        for (text, value) in &entries {
            let path = format!("{key}.{text}");
            let asked = |value: &Value| matches!(&value.kind, ValueKind::String(text) if text == "asked");
            let servers = match &value.kind {
                ValueKind::Array(items) if items.len() == 1 && asked(&items[0]) => Servers::Asked,
                ValueKind::Array(items) if items.is_empty() => {
                    self.wrong(&path, value, "at least one server, or [\"asked\"]");
                    continue;
                }
                _ => Servers::Listed(self.items(&path, value, SERVERS, &[',', ' '], |value| match &value.kind {
                    ValueKind::String(text) => ServerAddress::parse(text),
                    _ => None,
                })),
            };
            match Name::parse(text) {
                Ok(name) if found.iter().any(|(known, _)| *known == name) => {
                    self.error(&path, format!("{text:?} twice"), "each suffix once");
                }
                Ok(name) => found.push((name, servers)),
                Err(error) => self.error(&path, format!("{text:?}"), format!("a domain name ({error})")),
            }
        }
        found
    }

    fn endpoints(&mut self, key: &'static str) -> Vec<EndpointSetting> {
        let allowed = "IFACE=NAMESPACE/POD[,mac=…]";
        self.note(key, "[]".to_owned(), allowed.to_owned());
        let Some(value) = self.find(key) else { return Vec::new() };
        let mut found: Vec<EndpointSetting> = Vec::new();
        for (index, item) in self.split(key, &value, &[';', ' ']).into_iter().enumerate() {
            let path = self.item_path(key, index);
            let parsed = match &item.kind {
                ValueKind::String(text) => {
                    text::endpoint_from_text(text).map_err(|allowed| (path.clone(), describe(&item), allowed))
                }
                ValueKind::Table(table) => {
                    text::endpoint_from_fields(|field| match table.get(field).map(|value| &value.kind) {
                        None => Ok(None),
                        Some(ValueKind::String(text)) => Ok(Some(text.as_str())),
                        Some(_) => Err(describe(&table[field])),
                    })
                    .map_err(|wrong| (format!("{path}{}", wrong.field), wrong.found, wrong.allowed))
                }
                _ => Err((path.clone(), describe(&item), allowed)),
            };
            match parsed {
                Ok(endpoint) if found.iter().any(|other| other.interface == endpoint.interface) => {
                    self.error(
                        &path,
                        format!("a second endpoint on {:?}", endpoint.interface),
                        "one endpoint an interface",
                    );
                }
                Ok(endpoint) => found.push(endpoint),
                Err((path, found, allowed)) => self.error(&path, found, allowed),
            }
        }
        found
    }

    /// The value of `key`, or `default`; a value that `parse` refuses is an error. `parse` is told whether the value
    /// has a type of its own (in the file) or is text whatever it means (elsewhere).
    fn one<T>(&mut self, key: &'static str, default: T, allowed: &str, parse: impl Fn(&Value, bool) -> Option<T>) -> T {
        let Some(value) = self.find(key) else { return default };
        let typed = matches!(self.origins.place(key), Place::File { .. });
        parse(&value, typed).unwrap_or_else(|| {
            self.wrong(key, &value, allowed);
            default
        })
    }

    fn items<T>(
        &mut self,
        path: &str,
        value: &Value,
        allowed: &str,
        separators: &[char],
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Vec<T> {
        let mut found = Vec::new();
        for (index, item) in self.split(path, value, separators).into_iter().enumerate() {
            match parse(&item) {
                Some(item) => found.push(item),
                None => self.error(&self.item_path(path, index), describe(&item), allowed),
            }
        }
        found
    }

    /// The items of a list; outside the file a list may be one text.
    fn split(&mut self, path: &str, value: &Value, separators: &[char]) -> Vec<Value> {
        match &value.kind {
            ValueKind::Array(items) => items.clone(),
            ValueKind::String(text) if !matches!(self.origins.place(path), Place::File { .. }) => {
                text.split(separators).filter(|item| !item.is_empty()).map(Value::from).collect()
            }
            _ => {
                self.error(path, describe(value), "a list");
                Vec::new()
            }
        }
    }

    /// What an item of a list is called in an error.
    fn item_path(&self, path: &str, index: usize) -> String {
        format!("{path}[{index}]")
    }

    fn find(&self, key: &str) -> Option<Value> {
        key.split('.')
            .try_fold(self.root, |value, step| match &value.kind {
                ValueKind::Table(table) => table.get(step),
                _ => None,
            })
            .cloned()
    }

    fn at_most(&mut self, key: &'static str, value: u32, other: &'static str, limit: u32) {
        if value > limit {
            // Blame what was set; with both set, the part.
            let blamed = if self.origins.place(key) == Place::Default { other } else { key };
            self.error(blamed, format!("{key} {value} and {other} {limit}"), "a part that is at most the whole");
        }
    }

    fn wrong(&mut self, key: &str, value: &Value, allowed: &str) {
        self.error(key, describe(value), allowed);
    }

    fn error(&mut self, path: &str, found: String, allowed: impl Into<String>) {
        let place = self.origins.place(path);
        self.errors.push(ConfigError::Value { place, key: path.to_owned(), found, allowed: allowed.into() });
    }

    fn note(&mut self, key: &'static str, default: String, allowed: String) {
        self.ranges.push(Range { key, default, allowed });
    }
}

/// A whole number, whichever way the merging stored it. A float is none, even 5.0.
fn integer(value: &Value) -> Option<i128> {
    match value.kind {
        ValueKind::I64(number) => Some(number.into()),
        ValueKind::I128(number) => Some(number),
        ValueKind::U64(number) => Some(number.into()),
        ValueKind::U128(number) => i128::try_from(number).ok(),
        _ => None,
    }
}
