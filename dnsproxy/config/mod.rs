//! What an operator can set: one struct, each field with its meaning, default and range.
//!
//! A file, `NAMEGATE_*` variables and flags are merged, the later over the earlier; what leaves here is typed and in
//! range. See [`Source`] for where values come from, and `config/namegate.toml` for the same list as a file.

pub mod cilium;
mod read;
mod source;
mod text;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::engine::endpoint::PodRef;
use crate::engine::name::Name;
use crate::engine::pattern::Pattern;
use crate::host::floor::InterfaceNames;
use crate::upstream::address::ServerAddress;

pub use read::{Range, ranges};
pub use source::{ConfigError, ConfigErrors, DEFAULT_PATH, Place, Source};
pub use text::{
    duration as duration_from_text, endpoint_from_text, mac_text, node_name as node_name_from_text,
    pod_ref as pod_from_text,
};

/// Everything that can be set.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// The name of this node's Node object. The host's name unless set; `NODE_NAME` sets it too.
    pub node_name: String,
    /// The cluster's name, as Cilium's `cluster-name` and pods' label `io.cilium.k8s.policy.cluster` have it. `default` unless set.
    pub cluster_name: String,
    /// The directory of Kubernetes objects. `/etc/namegate/snapshot` unless set.
    pub snapshot: PathBuf,
    /// The workloads: a host-side interface and the pod behind it. None unless set.
    pub endpoints: Vec<EndpointSetting>,
    /// What must survive a restart beside the pinned maps. `/var/lib/namegate` unless set.
    pub state_dir: PathBuf,
    /// Where programs and maps are pinned, on a bpffs. `/sys/fs/bpf/namegate` unless set.
    pub pin_dir: PathBuf,
    /// Where the admin socket is. `/run/namegate` unless set.
    pub run_dir: PathBuf,
    /// Whether a clean end takes enforcement away with it. `false` unless set: it stays.
    pub detach: bool,
    /// Whether a start takes the place of a namegate that runs, without losing a query, and waits for SIGTERM once its own place
    /// is taken. `false` unless set: the second of two says so and ends.
    pub take_over: bool,
    /// How pods are found where no endpoint is named.
    pub discovery: Discovery,
    /// The kernel side.
    pub enforcement: Enforcement,
    /// The DNS side.
    pub dns: Dns,
    /// The cache of answers.
    pub cache: Cache,
    /// How policies are read.
    pub policy: PolicySettings,
    /// What is written about it all.
    pub observe: Observe,
    /// `namegate sidecar`.
    pub sidecar: Sidecar,
}

/// A workload as the operator names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSetting {
    /// The host-side interface; 1 to 15 octets.
    pub interface: String,
    /// The pod behind it, whose labels and addresses the snapshot knows.
    pub pod: PodRef,
    /// The pod's own link-layer address; learned from its first good frame unless given.
    pub mac: Option<[u8; 6]>,
}

/// Section `[discovery]`: of use where no endpoint is named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Discovery {
    /// Where container runtimes keep what the CNI gave each pod. `/var/lib/cni` unless set.
    pub cni_cache: PathBuf,
    /// Interfaces that are left as they are, whoever is behind them. None unless set.
    pub leave_alone: Vec<InterfaceNames>,
}

/// How programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Attach {
    /// TCX where the kernel has it (6.6), else clsact.
    #[default]
    Auto,
    /// TCX, or fail.
    Tcx,
    /// A clsact queueing discipline with a direct-action filter.
    Clsact,
    /// As `Auto`, and XDP before it that drops what is refused in any case; or fail.
    Xdp,
}

/// What becomes of connections that were open before the first start on a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Adopt {
    /// They end unless policy allows them by address.
    #[default]
    Cut,
    /// TCP connections that no rule denies go on for so long, 1 s to 24 h, and are told; then as [`Adopt::Cut`].
    Observe(Duration),
}

impl fmt::Display for Adopt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Adopt::Cut => f.write_str("cut"),
            Adopt::Observe(window) => write!(f, "observe {}", text::duration_text(*window)),
        }
    }
}

/// What becomes of queries to servers that nothing names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UnknownResolvers {
    /// They are dropped.
    #[default]
    Drop,
    /// The server is given a local address when it is first asked, and policy judges its queries.
    Pool,
}

/// Where what pods receive is judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Inbound {
    /// On the host's side of each pod's interface.
    #[default]
    Host,
    /// On the pod's own side, in its network namespace: where a CNI delivers with bpf_redirect_peer, nothing else sees it.
    Pod,
}

/// Section `[enforcement]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Enforcement {
    /// How programs are attached.
    pub attach: Attach,
    /// Where what pods receive is judged.
    pub inbound: Inbound,
    /// Whether nftables drops what comes from an endpoint's interface until programs guard it. `true` unless set.
    pub floor: bool,
    /// Further interfaces that are shut until they are endpoints' and guarded. None unless set.
    pub floor_interfaces: Vec<InterfaceNames>,
    /// What becomes of connections that were open before the first start. [`Adopt::Cut`] unless set.
    pub adopt: Adopt,
    /// Whether refused packets are answered (TCP RST, ICMP) instead of dropped in silence.
    pub reject: bool,
    /// See [`EVENTS_PER_SECOND`].
    pub events_per_second: u32,
    /// See [`SYN_TIMEOUT`].
    pub syn_timeout: Duration,
    /// See [`ESTABLISHED_TIMEOUT`].
    pub established_timeout: Duration,
    /// See [`CLOSED_TIMEOUT`].
    pub closed_timeout: Duration,
    /// See [`UDP_TIMEOUT`].
    pub udp_timeout: Duration,
    /// See [`FLOWS_PER_ENDPOINT`].
    pub flows_per_endpoint: u32,
    /// See [`GRANTS_PER_ENDPOINT`].
    pub grants_per_endpoint: u32,
    /// See [`MAX_ENDPOINTS`].
    pub max_endpoints: u32,
    /// See [`MAX_FLOWS`].
    pub max_flows: u32,
    /// See [`MAX_GRANTS`].
    pub max_grants: u32,
}

/// What a denied query is answered with. Cilium's `tofqdns-dns-reject-response-code`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RejectCode {
    /// REFUSED.
    #[default]
    Refused,
    /// NXDOMAIN: resolvers of old C libraries go on with their search list after it.
    NameError,
}

/// Section `[dns]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Dns {
    /// See [`DNS_PORT`].
    pub port: u16,
    /// Local addresses that resolvers are mapped to, one each, IPv4: `169.254.77.0/24` unless set; /16 to /30.
    ///
    /// Link-local, because such an address never leaves the node (RFC 3927, 2.6.2), is no pod's, Service's or node's, and
    /// no policy can open it. Clear of 169.254.1.1 (Calico), .20.10 and .25.10 (NodeLocal DNSCache), .169.254 and .170.x (clouds).
    pub local_addresses_v4: Ipv4Net,
    /// The same for IPv6: `fd6e:616d:6567:6174::/112` unless set; /64 to /126. A ULA, because link-local addresses need
    /// a scope that a DNS client doesn't give; never routed off the node, so the same on every node.
    pub local_addresses_v6: Ipv6Net,
    /// See [`MIN_TTL`].
    pub min_ttl: Duration,
    /// See [`GRACE`].
    pub grace: Duration,
    /// See [`UPSTREAM_TIMEOUT`].
    pub upstream_timeout: Duration,
    /// What a denied query is answered with.
    pub reject_response_code: RejectCode,
    /// Whether names in replies that namegate builds are compressed. Cilium's `dns-proxy-enable-…-compression`.
    pub enable_dns_compression: bool,
    /// See [`ENDPOINT_MAX_IP_PER_HOSTNAME`].
    pub endpoint_max_ip_per_hostname: u32,
    /// The cluster's own domain; names under it never grant. `cluster.local` unless set.
    pub cluster_domain: Name,
    /// Resolvers to learn from beside those that policies name. None unless set.
    pub resolvers: Vec<IpAddr>,
    /// What becomes of queries to other servers. [`UnknownResolvers::Drop`] unless set.
    pub unknown_resolvers: UnknownResolvers,
    /// Servers that are asked in place of the resolver that the workload asked. None unless set.
    pub upstreams: Vec<ServerAddress>,
    /// The same for names under a suffix, the longest that fits; see [`Servers`]. None unless set.
    pub suffix_upstreams: Vec<(Name, Servers)>,
    /// Certificate authorities of `tls://` and `https://` servers, a PEM file; Mozilla's list unless set.
    pub upstream_ca: Option<PathBuf>,
    /// Whether answers are kept.
    pub cache: CacheMode,
    /// Whether names in use are asked for again before their answers expire. Needs the cache.
    pub prefetch: bool,
    /// Whether every `matchName` is kept resolved and granted without being asked. Cilium's `tofqdns-enable-poller`.
    pub poller: bool,
    /// See [`BACKGROUND_QUERIES_PER_SECOND`].
    pub background_queries_per_second: u32,
    /// See [`IDLE_CONNECTION_GRACE_PERIOD`].
    pub idle_connection_grace_period: Duration,
    /// See [`MAX_DEFERRED_CONNECTION_DELETES`].
    pub max_deferred_connection_deletes: u32,
    /// See [`QUERIES_PER_SECOND`].
    pub queries_per_second: u32,
    /// See [`QUERIES_IN_FLIGHT`].
    pub queries_in_flight: u32,
    /// See [`TCP_CONNECTIONS`].
    pub tcp_connections: u32,
    /// See [`TCP_CONNECTIONS_TOTAL`].
    pub tcp_connections_total: u32,
    /// See [`WORKERS`].
    pub workers: u32,
    /// The port that steered queries over TLS arrive at; 0: DNS over TLS is not served.
    pub tls_port: u16,
    /// The certificate chain that is shown there, a PEM file.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, a PEM file.
    pub tls_key: Option<PathBuf>,
    /// Which private addresses a name may stand for.
    pub guard: Guard,
}

/// Whether answers are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CacheMode {
    /// They are, as long as their TTL says.
    #[default]
    On,
    /// Each query is forwarded, as Cilium does.
    Off,
}

/// Which servers are asked for the names under a suffix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Servers {
    /// The resolver that the workload asked: `asked`.
    Asked,
    /// These.
    Listed(Vec<ServerAddress>),
}

/// Section `[cache]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cache {
    /// See [`CACHE_MAX_BYTES`].
    pub max_bytes: u64,
    /// See [`CACHE_MAX_TTL`].
    pub max_ttl: Duration,
    /// See [`CACHE_MAX_NEGATIVE_TTL`].
    pub max_negative_ttl: Duration,
    /// See [`CACHE_SERVE_STALE`].
    pub serve_stale: Duration,
}

/// Section `[dns.guard]`: exceptions from the rebinding guard (private and CGNAT ranges, pod and service networks).
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Guard {
    /// Networks that any selected name may stand for.
    pub allow: Vec<IpNet>,
    /// Networks that only names of a pattern may stand for, in the order of the patterns' texts.
    pub names: Vec<(Pattern, Vec<IpNet>)>,
}

/// What happens to a policy that can't be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnInvalid {
    /// Its last good version stays in force; without one, what it selects is default-deny.
    #[default]
    Refuse,
    /// It is as if it were not there. The operator's way out.
    Ignore,
}

impl From<OnInvalid> for crate::cluster::snapshot::OnInvalid {
    fn from(setting: OnInvalid) -> Self {
        match setting {
            OnInvalid::Refuse => Self::Refuse,
            OnInvalid::Ignore => Self::Ignore,
        }
    }
}

/// Section `[policy]`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PolicySettings {
    /// What happens to a policy that can't be read.
    pub on_invalid: OnInvalid,
    /// Whom policies shut; Cilium's `enable-policy`. `default` unless set.
    pub enforcement: Enforcing,
    /// Whether what policy would drop passes, is counted and told; Cilium's `policy-audit-mode`. `false` unless set.
    pub audit: bool,
    /// Whether `namegate.io/mode` of a pod or its namespace stands above `audit`. `true` unless set.
    pub mode_annotation: bool,
    /// Whether settings of the snapshot's ConfigMap `cilium-config` hold where none of namegate's own is set. `true` unless set.
    pub cilium_config: bool,
}

/// Whom policies shut.
pub type Enforcing = crate::engine::world::Enforcement;

/// Where flow records go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Standard output; `-`.
    Stdout,
    /// A file, appended to, opened anew when it was renamed away.
    File(PathBuf),
}

/// How the log looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Section `[observe]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Observe {
    /// Whether each verdict is written to standard error as a line for people.
    pub verbose: bool,
    /// Where flow records go, as JSON lines; nowhere unless set.
    pub flows: Option<Output>,
    /// Where /metrics, /readyz and /livez are served; nowhere but the admin socket unless set.
    pub metrics: Option<SocketAddr>,
    /// Which log events are written, as in `RUST_LOG`; `info` unless set.
    pub log: String,
    /// How the log looks.
    pub log_format: LogFormat,
}

/// What the operator knows of the other containers of the pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Siblings {
    /// Nothing: what can't be looked at may be able to get past.
    #[default]
    Unknown,
    /// None has NET_RAW, NET_ADMIN, SYS_ADMIN or BPF, nor namegate's uid. Looked at all the same where that can be.
    Unprivileged,
}

/// Section `[sidecar]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sidecar {
    /// The downward API's volume: files `name`, `namespace`, `labels`, and `uid` and `annotations` if they are there.
    /// `/etc/podinfo` unless set.
    pub podinfo: PathBuf,
    /// The pod's interface; `eth0` unless set.
    pub interface: String,
    /// The pod's addresses; `POD_IPS` sets them too. Those of the interface unless set.
    pub addresses: Vec<IpAddr>,
    /// `spec.serviceAccountName`; `SERVICE_ACCOUNT` sets it too. What the snapshot says unless set.
    pub service_account: Option<String>,
    /// What the operator knows of the other containers.
    pub siblings: Siblings,
}

/// A setting's default and the least and greatest value it may have.
#[derive(Clone, Copy, Debug)]
pub struct Bounded<T> {
    /// What it is when nobody sets it.
    pub default: T,
    /// The least allowed.
    pub min: T,
    /// The greatest allowed.
    pub max: T,
}

/// How many flow events a second one endpoint may cause; further ones are counted, not sent.
pub const EVENTS_PER_SECOND: Bounded<u32> = Bounded { default: 500, min: 1, max: 100_000 };

/// How long a TCP connection without an answer to its SYN is remembered.
pub const SYN_TIMEOUT: Bounded<Duration> = Bounded { default: secs(60), min: secs(1), max: secs(600) };

/// How long an established TCP connection may be idle.
pub const ESTABLISHED_TIMEOUT: Bounded<Duration> = Bounded { default: hours(8), min: secs(60), max: hours(168) };

/// How long a TCP connection is remembered after FIN both ways, or RST: for retransmits.
pub const CLOSED_TIMEOUT: Bounded<Duration> = Bounded { default: secs(10), min: secs(1), max: secs(300) };

/// How long a UDP, QUIC or ICMP exchange may be idle.
pub const UDP_TIMEOUT: Bounded<Duration> = Bounded { default: secs(180), min: secs(10), max: hours(1) };

/// How many flows one endpoint may have at a time. At most `max_flows`.
pub const FLOWS_PER_ENDPOINT: Bounded<u32> = Bounded { default: 16_384, min: 64, max: 8_388_608 };

/// How many addresses one endpoint may hold grants for at a time. At most `max_grants`.
pub const GRANTS_PER_ENDPOINT: Bounded<u32> = Bounded { default: 16_384, min: 64, max: 8_388_608 };

/// How many endpoints the kernel's tables have room for.
pub const MAX_ENDPOINTS: Bounded<u32> = Bounded { default: 4_096, min: 1, max: 65_536 };

/// How many flows of all endpoints the kernel's table has room for; its memory is taken at start.
pub const MAX_FLOWS: Bounded<u32> = Bounded { default: 131_072, min: 1_024, max: 8_388_608 };

/// How many grants of all endpoints the kernel's table has room for; memory is taken as they come.
pub const MAX_GRANTS: Bounded<u32> = Bounded { default: 262_144, min: 1_024, max: 8_388_608 };

/// The port that steered queries arrive at, on the local addresses.
pub const DNS_PORT: Bounded<u16> = Bounded { default: 15_353, min: 1, max: 65_535 };

/// The least TTL that a grant is reckoned with; the grace comes on top. Cilium's `tofqdns-min-ttl`.
///
/// Clients connect some time after they resolve: at a TTL of 0 the door would close first.
pub const MIN_TTL: Bounded<Duration> = Bounded { default: secs(5), min: secs(0), max: hours(24) };

/// How long a grant outlives the TTL that it was learned with.
pub const GRACE: Bounded<Duration> = Bounded { default: secs(55), min: secs(0), max: hours(24) };

/// How long a resolver may take, retransmits and the change to TCP included.
pub const UPSTREAM_TIMEOUT: Bounded<Duration> = Bounded { default: secs(4), min: millis(100), max: secs(30) };

/// How many addresses one name may stand for, for one endpoint. Cilium's `tofqdns-endpoint-max-ip-per-hostname`.
pub const ENDPOINT_MAX_IP_PER_HOSTNAME: Bounded<u32> = Bounded { default: 1_000, min: 1, max: 16_384 };

/// How many queries a second poller and prefetch together may send.
pub const BACKGROUND_QUERIES_PER_SECOND: Bounded<u32> = Bounded { default: 50, min: 1, max: 10_000 };
/// How much longer than its timeout a connection may be idle and still count as alive: it goes on, and an address whose
/// grant is over stays for it. It lets no new connection in. Cilium's `tofqdns-idle-connection-grace-period`.
pub const IDLE_CONNECTION_GRACE_PERIOD: Bounded<Duration> = Bounded { default: secs(0), min: secs(0), max: hours(24) };
/// How many expired addresses of one endpoint are kept because connections to them live. Cilium's
/// `tofqdns-max-deferred-connection-deletes`.
pub const MAX_DEFERRED_CONNECTION_DELETES: Bounded<u32> = Bounded { default: 10_000, min: 0, max: 8_388_608 };
/// How many queries a second one endpoint may send, a second's worth at once; further ones get REFUSED. 0: no limit.
pub const QUERIES_PER_SECOND: Bounded<u32> = Bounded { default: 10_000, min: 0, max: 10_000_000 };
/// How many octets kept answers may take, bookkeeping included.
pub const CACHE_MAX_BYTES: Bounded<u64> = Bounded { default: 64 << 20, min: 1 << 20, max: 64 << 30 };
/// How long an answer is kept at most, whatever its TTL says; the reply's TTL is cut to it (RFC 8767 section 4).
pub const CACHE_MAX_TTL: Bounded<Duration> = Bounded { default: hours(24), min: secs(1), max: hours(168) };
/// How long "there is none" is kept at most (RFC 2308 section 5 suggests one to three hours).
pub const CACHE_MAX_NEGATIVE_TTL: Bounded<Duration> = Bounded { default: hours(1), min: secs(0), max: hours(24) };
/// How long an expired answer may still be given when no server answers (RFC 8767). 0: not at all.
pub const CACHE_SERVE_STALE: Bounded<Duration> = Bounded { default: secs(0), min: secs(0), max: hours(168) };
/// How many queries one endpoint may have under way; further ones get SERVFAIL.
pub const QUERIES_IN_FLIGHT: Bounded<u32> = Bounded { default: 512, min: 1, max: 65_535 };

/// How many DNS connections over TCP one endpoint may have open. At most `tcp_connections_total`.
pub const TCP_CONNECTIONS: Bounded<u32> = Bounded { default: 64, min: 1, max: 65_535 };

/// How many DNS connections over TCP all endpoints together may have open.
pub const TCP_CONNECTIONS_TOTAL: Bounded<u32> = Bounded { default: 1_024, min: 1, max: 65_535 };

/// How many threads serve DNS; 0 for one a core.
pub const WORKERS: Bounded<u32> = Bounded { default: 0, min: 0, max: 256 };

/// When a changed setting takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Takes {
    /// On SIGHUP.
    Reload,
    /// At the next start.
    Restart,
}

/// A setting's name and when a change of it takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// As in the file: `dns.min_ttl`.
    pub name: &'static str,
    /// When a change takes effect.
    pub takes: Takes,
}

impl Key {
    /// The variable that sets it: `NAMEGATE_DNS_MIN_TTL`; none for the settings whose keys are free text.
    pub fn variable(&self) -> Option<String> {
        let upper = |name: &str| name.to_ascii_uppercase().replace('.', "_");
        match self.name {
            "dns.guard.names" | "dns.suffix_upstreams" => None,
            "endpoint" => Some("NAMEGATE_ENDPOINTS".to_owned()),
            name => Some(format!("NAMEGATE_{}", upper(name))),
        }
    }
}

/// A setting that differs between two configurations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Its name.
    pub key: &'static str,
    /// Whether the new value has to wait for the next start.
    pub needs_restart: bool,
}

/// The one list of settings: name, field, when a change takes effect.
macro_rules! settings {
    ($($name:literal $($field:ident).+ $takes:ident;)*) => {
        /// Every setting, in the order of the file.
        pub const KEYS: &[Key] = &[$(Key { name: $name, takes: Takes::$takes }),*];

        impl Config {
            /// What differs in `new`, in the order of the file.
            pub fn differences(&self, new: &Config) -> Vec<Difference> {
                let mut found = Vec::new();
                $(if self.$($field).+ != new.$($field).+ {
                    found.push(Difference { key: $name, needs_restart: matches!(Takes::$takes, Takes::Restart) });
                })*
                found
            }

            /// What is in force after a reload: `new`, but with this one's value wherever a change needs a restart.
            pub fn reloaded(&self, new: &Config) -> Config {
                let mut merged = new.clone();
                $(if matches!(Takes::$takes, Takes::Restart) {
                    merged.$($field).+ = self.$($field).+.clone();
                })*
                merged
            }
        }
    };
}

settings! {
    "node_name" node_name Restart;
    "cluster_name" cluster_name Reload;
    "snapshot" snapshot Restart;
    "endpoint" endpoints Reload;
    "state_dir" state_dir Restart;
    "pin_dir" pin_dir Restart;
    "run_dir" run_dir Restart;
    "detach" detach Reload;
    "take_over" take_over Reload;
    "discovery.cni_cache" discovery.cni_cache Restart;
    "discovery.leave_alone" discovery.leave_alone Reload;
    "enforcement.attach" enforcement.attach Restart;
    "enforcement.inbound" enforcement.inbound Restart;
    "enforcement.floor" enforcement.floor Reload;
    "enforcement.floor_interfaces" enforcement.floor_interfaces Reload;
    "enforcement.adopt" enforcement.adopt Restart;
    "enforcement.reject" enforcement.reject Reload;
    "enforcement.events_per_second" enforcement.events_per_second Restart;
    "enforcement.syn_timeout" enforcement.syn_timeout Restart;
    "enforcement.established_timeout" enforcement.established_timeout Restart;
    "enforcement.closed_timeout" enforcement.closed_timeout Restart;
    "enforcement.udp_timeout" enforcement.udp_timeout Restart;
    "enforcement.flows_per_endpoint" enforcement.flows_per_endpoint Restart;
    "enforcement.grants_per_endpoint" enforcement.grants_per_endpoint Restart;
    "enforcement.max_endpoints" enforcement.max_endpoints Restart;
    "enforcement.max_flows" enforcement.max_flows Restart;
    "enforcement.max_grants" enforcement.max_grants Restart;
    "dns.port" dns.port Restart;
    "dns.local_addresses_v4" dns.local_addresses_v4 Restart;
    "dns.local_addresses_v6" dns.local_addresses_v6 Restart;
    "dns.min_ttl" dns.min_ttl Reload;
    "dns.grace" dns.grace Reload;
    "dns.upstream_timeout" dns.upstream_timeout Reload;
    "dns.reject_response_code" dns.reject_response_code Reload;
    "dns.enable_dns_compression" dns.enable_dns_compression Reload;
    "dns.endpoint_max_ip_per_hostname" dns.endpoint_max_ip_per_hostname Reload;
    "dns.cluster_domain" dns.cluster_domain Reload;
    "dns.resolvers" dns.resolvers Reload;
    "dns.unknown_resolvers" dns.unknown_resolvers Reload;
    "dns.upstreams" dns.upstreams Reload;
    "dns.suffix_upstreams" dns.suffix_upstreams Reload;
    "dns.upstream_ca" dns.upstream_ca Restart;
    "dns.cache" dns.cache Restart;
    "dns.prefetch" dns.prefetch Reload;
    "dns.poller" dns.poller Reload;
    "dns.background_queries_per_second" dns.background_queries_per_second Reload;
    "dns.idle_connection_grace_period" dns.idle_connection_grace_period Reload;
    "dns.max_deferred_connection_deletes" dns.max_deferred_connection_deletes Reload;
    "dns.queries_per_second" dns.queries_per_second Reload;
    "dns.queries_in_flight" dns.queries_in_flight Reload;
    "dns.tcp_connections" dns.tcp_connections Reload;
    "dns.tcp_connections_total" dns.tcp_connections_total Reload;
    "dns.workers" dns.workers Restart;
    "dns.tls_port" dns.tls_port Restart;
    "dns.tls_certificate" dns.tls_certificate Restart;
    "dns.tls_key" dns.tls_key Restart;
    "dns.guard.allow" dns.guard.allow Reload;
    "dns.guard.names" dns.guard.names Reload;
    "cache.max_bytes" cache.max_bytes Restart;
    "cache.max_ttl" cache.max_ttl Reload;
    "cache.max_negative_ttl" cache.max_negative_ttl Reload;
    "cache.serve_stale" cache.serve_stale Reload;
    "policy.on_invalid" policy.on_invalid Reload;
    "policy.enforcement" policy.enforcement Reload;
    "policy.audit" policy.audit Reload;
    "policy.mode_annotation" policy.mode_annotation Reload;
    "policy.cilium_config" policy.cilium_config Reload;
    "observe.verbose" observe.verbose Restart;
    "observe.flows" observe.flows Restart;
    "observe.metrics" observe.metrics Restart;
    "observe.log" observe.log Reload;
    "observe.log_format" observe.log_format Restart;
    "sidecar.podinfo" sidecar.podinfo Restart;
    "sidecar.interface" sidecar.interface Restart;
    "sidecar.addresses" sidecar.addresses Restart;
    "sidecar.service_account" sidecar.service_account Restart;
    "sidecar.siblings" sidecar.siblings Reload;
}

impl Config {
    /// The admin socket's place.
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir.join("admin.sock")
    }
}

impl Default for Config {
    /// What holds when nothing is set anywhere; the node's name is the host's.
    fn default() -> Config {
        Source::nothing().load().expect("no value can be wrong when none is set")
    }
}

impl fmt::Display for EndpointSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.interface, self.pod)?;
        match self.mac {
            Some(mac) => write!(f, ",mac={}", mac_text(mac)),
            None => Ok(()),
        }
    }
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

const fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

const fn hours(count: u64) -> Duration {
    Duration::from_secs(count * 3600)
}

#[cfg(test)]
mod tests;
