//! Metrics, in base units. Labels come from enums and words of the code, never from names or addresses.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::Advisory;
use super::status::EndpointState;
use crate::clock;
use crate::engine::ruleset::Direction;
use crate::observe::{CacheUse, Counted, Outcome, Reason};
use crate::serve::background::Background;

mod cache;
mod found;
mod upstreams;

macro_rules! tables {
    ($($variant:ident $name:literal $doc:literal;)*) => {
        /// The kernel's tables whose fill is told, named as in bpf/include/maps.h.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Table {
            $(#[doc = $doc] $variant,)*
        }

        impl Table {
            /// Every table.
            pub const ALL: &[Table] = &[$(Table::$variant),*];

            /// Its name in the kernel.
            pub fn text(self) -> &'static str {
                match self { $(Table::$variant => $name,)* }
            }
        }
    };
}

tables! {
    Endpoints "endpoints" "Interfaces and who is behind them.";
    Flows "flows" "Conversations.";
    Grants "grants" "Addresses that endpoints may reach until a moment.";
    Peers "peers" "Addresses of pods, nodes and Services.";
    PeerBits "peer_bits" "What peers are to a rule set.";
    Services "services" "Services that a rule set allows or denies.";
    Cidr4 "cidr4" "IPv4 prefixes of rule sets.";
    Cidr6 "cidr6" "IPv6 prefixes of rule sets.";
    Ports "ports" "Single ports of rule sets.";
    PortBlocks "port_blocks" "Pieces of port ranges and types of ICMP of rule sets.";
    DnsTo "dns_to" "Resolvers and their local addresses.";
    DnsFrom "dns_from" "Local addresses and their resolvers.";
}

/// What can be lost on the way to those who watch. Nothing depends on any of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lost {
    /// A flow event that found no room in the kernel's ring.
    KernelEvent,
    /// A flow event above the endpoint's rate.
    SuppressedEvent,
    /// A JSON record that was not written.
    FlowRecord,
    /// A line for people that was not written.
    VerboseLine,
}

impl Lost {
    fn text(self) -> &'static str {
        match self {
            Lost::KernelEvent => "kernel_event",
            Lost::SuppressedEvent => "suppressed_event",
            Lost::FlowRecord => "flow_record",
            Lost::VerboseLine => "verbose_line",
        }
    }
}

/// How often something was done and how it ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reload {
    /// It is in force.
    Applied,
    /// Nothing had changed.
    Unchanged,
    /// What was there stays in force.
    Failed,
}

impl Reload {
    fn text(self) -> &'static str {
        match self {
            Reload::Applied => "applied",
            Reload::Unchanged => "unchanged",
            Reload::Failed => "failed",
        }
    }
}

/// What somebody had changed in the kernel, and was set right.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Repair {
    /// A program was not on its interface any more.
    Detached,
    /// Another program was before it.
    Displaced,
    /// A pin was gone.
    Pin,
    /// An endpoint's row was not as written.
    Row,
    /// The floor was not as written.
    Floor,
}

impl Repair {
    const ALL: [Repair; 5] = [Repair::Detached, Repair::Displaced, Repair::Pin, Repair::Row, Repair::Floor];

    fn text(self) -> &'static str {
        match self {
            Repair::Detached => "detached",
            Repair::Displaced => "displaced",
            Repair::Pin => "pin",
            Repair::Row => "row",
            Repair::Floor => "floor",
        }
    }
}

/// Everything that is counted. One for the process, shared; no global registry.
pub struct Metrics {
    registry: Registry,
    /// Tells several of this type apart, in tests.
    id: u64,
    queries: IntCounterVec,
    /// By [`CacheUse`], but for none.
    answers: [IntCounter; 4],
    upstream: Histogram,
    grants_total: IntCounter,
    grants: IntGauge,
    grant_write: Histogram,
    packets: IntCounterVec,
    octets: IntCounterVec,
    table_rows: IntGaugeVec,
    table_rows_max: IntGaugeVec,
    policy_generation: IntGauge,
    policy_timestamp: Gauge,
    policy_age: Gauge,
    /// When the policy was loaded; 0: never. Its age is worked out when it is asked for.
    policy_loaded_mono_ns: AtomicU64,
    policies_refused: IntGaugeVec,
    items_unenforced: IntGauge,
    objects_skipped: IntGauge,
    reloads: IntCounterVec,
    lost: IntCounterVec,
    repairs: IntCounterVec,
    endpoints: IntGaugeVec,
    ready: IntGauge,
    advisory: IntGaugeVec,
    floor: IntCounter,
    found: found::Found,
    cache: cache::Cache,
    upstreams: upstreams::Upstreams,
}

impl Metrics {
    /// All at nothing; every label that is known beforehand is there from the start, so that rates work.
    pub fn new() -> Metrics {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let registry = Registry::new();
        let r = &registry;
        let answers = counters(
            r,
            "namegate_answers_total",
            "Answers, by where they came from: asked for (miss), kept (hit, hot), kept beyond their TTL (stale).",
            &["from"],
        );
        let uses = [CacheUse::Miss, CacheUse::Hit, CacheUse::Hot, CacheUse::Stale];
        let metrics = Metrics {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            answers: uses.map(|used| answers.with_label_values(&[used.text()])),
            queries: counters(
                r,
                "namegate_queries_total",
                "DNS queries, by how they ended.",
                &["verdict", "reason", "rcode"],
            ),
            upstream: histogram(
                r,
                "namegate_upstream_duration_seconds",
                "Time that resolvers took to answer.",
                UPSTREAM_BUCKETS,
            ),
            grants_total: counter(
                r,
                "namegate_grants_total",
                "Addresses that the kernel confirmed before a reply left.",
            ),
            grants: gauge(r, "namegate_grants", "Addresses that endpoints hold grants for now."),
            grant_write: histogram(
                r,
                "namegate_grant_write_duration_seconds",
                "Time that the kernel took to hold all grants of one reply.",
                GRANT_BUCKETS,
            ),
            packets: counters(
                r,
                "namegate_packets_total",
                "Packets of endpoints, by what became of them.",
                &["verdict", "reason", "direction"],
            ),
            octets: counters(
                r,
                "namegate_packet_bytes_total",
                "Octets of packets of endpoints, by what became of them.",
                &["verdict", "reason", "direction"],
            ),
            table_rows: gauges(r, "namegate_map_rows", "Rows in use in a kernel table.", &["map"]),
            table_rows_max: gauges(r, "namegate_map_rows_max", "Rows that a kernel table has room for.", &["map"]),
            policy_generation: gauge(
                r,
                "namegate_policy_generation",
                "How many policies have been put in force since the start.",
            ),
            policy_timestamp: float(
                r,
                "namegate_policy_timestamp_seconds",
                "When the policy in force was loaded; seconds since 1970.",
            ),
            policy_age: float(r, "namegate_policy_age_seconds", "How long the policy in force has been so."),
            policy_loaded_mono_ns: AtomicU64::new(0),
            policies_refused: gauges(
                r,
                "namegate_policies_refused",
                "Policies that could not be read; kept: whether the last good version is in force.",
                &["kept"],
            ),
            items_unenforced: gauge(
                r,
                "namegate_policy_items_unenforced",
                "Demands of policies in force that namegate can't enforce yet: their items allow nothing.",
            ),
            objects_skipped: gauge(
                r,
                "namegate_objects_skipped",
                "Objects of the snapshot of kinds that are not used.",
            ),
            reloads: counters(
                r,
                "namegate_reloads_total",
                "Reloads of the snapshot and the configuration.",
                &["result"],
            ),
            lost: counters(
                r,
                "namegate_lost_total",
                "Events and records that nobody saw. No verdict depends on them.",
                &["what"],
            ),
            repairs: counters(
                r,
                "namegate_repairs_total",
                "What somebody had taken off the kernel or changed there, and namegate has set right.",
                &["what"],
            ),
            endpoints: gauges(r, "namegate_endpoints", "Endpoints, by what is done to their traffic.", &["state"]),
            ready: gauge(r, "namegate_ready", "1 if namegate is ready as /readyz has it, else 0."),
            advisory: gauges(
                r,
                "namegate_advisory",
                "1 for each reason for which a workload may get past enforcement, else 0; see `namegate status`.",
                &["reason"],
            ),
            floor: counter(
                r,
                "namegate_floor_packets_total",
                "Packets dropped by the floor: of interfaces that were not guarded yet.",
            ),
            found: found::Found::new(r),
            cache: cache::Cache::new(r),
            upstreams: upstreams::Upstreams::new(r),
            registry: registry.clone(),
        };
        metrics.name_version();
        metrics.name_labels();
        metrics
    }

    /// A query is over.
    pub fn query(&self, record: &Counted) {
        self.count_query(record);
        if let Some(counter) = (record.cache as usize).checked_sub(1).and_then(|at| self.answers.get(at)) {
            counter.inc();
        }
        if let Some(took) = record.upstream {
            self.upstream.observe(took.as_secs_f64());
        }
        if let Some(took) = record.install {
            self.grant_write.observe(took.as_secs_f64());
        }
        self.grants_total.inc_by(record.granted as u64);
    }

    /// Looking a counter up by its labels costs more than all the rest of a hot reply: each thread keeps those it used.
    fn count_query(&self, record: &Counted) {
        const KEPT: usize = 64;
        type Known = (u64, Outcome, *const str, Option<u16>, IntCounter);
        thread_local!(static LATELY: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) });
        LATELY.with_borrow_mut(|lately| {
            let key = (self.id, record.outcome, std::ptr::from_ref(record.reason), record.rcode);
            let known = lately.iter().find(|(id, outcome, reason, rcode, _)| {
                (*id, *outcome, *rcode) == (key.0, key.1, key.3) && std::ptr::eq(*reason, key.2)
            });
            if let Some((.., counter)) = known {
                return counter.inc();
            }
            let labels = [record.outcome.text(), record.reason, rcode_label(record.rcode)];
            let counter = self.queries.with_label_values(&labels);
            counter.inc();
            if lately.len() >= KEPT {
                lately.clear();
            }
            lately.push((key.0, key.1, key.2, key.3, counter));
        });
    }

    /// How many packets and octets the kernel has counted so far, for one reason and direction.
    pub fn packets(&self, reason: Reason, direction: Direction, packets: u64, octets: u64) {
        let labels = packet_labels(reason, direction);
        raise(&self.packets.with_label_values(&labels), packets);
        raise(&self.octets.with_label_values(&labels), octets);
    }

    /// How many grants there are now.
    pub fn grants(&self, count: u64) {
        self.grants.set(whole(count));
    }

    /// How full a kernel table is.
    pub fn table(&self, table: Table, rows: u64, max: u64) {
        self.table_rows.with_label_values(&[table.text()]).set(whole(rows));
        self.table_rows_max.with_label_values(&[table.text()]).set(whole(max));
    }

    /// A policy is in force, as of now.
    pub fn policy(&self, generation: u64) {
        self.policy_generation.set(whole(generation));
        let since = clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.policy_timestamp.set(since.as_secs_f64());
        self.policy_loaded_mono_ns.store(clock::mono().0, Ordering::Relaxed);
    }

    /// How many policies could not be read: those whose last good version is in force, and those without one. And how many
    /// demands of others can't be enforced.
    pub fn refused(&self, kept: u64, closed: u64, unenforced: u64) {
        self.items_unenforced.set(whole(unenforced));
        self.policies_refused.with_label_values(&["yes"]).set(whole(kept));
        self.policies_refused.with_label_values(&["no"]).set(whole(closed));
    }

    /// How many objects were of no use.
    pub fn skipped(&self, objects: u64) {
        self.objects_skipped.set(whole(objects));
    }

    /// A reload is over.
    pub fn reload(&self, result: Reload) {
        self.reloads.with_label_values(&[result.text()]).inc();
    }

    /// How much has been lost so far.
    pub fn lost(&self, what: Lost, count: u64) {
        raise(&self.lost.with_label_values(&[what.text()]), count);
    }

    /// Something was set right.
    pub fn repaired(&self, what: Repair) {
        self.repairs.with_label_values(&[what.text()]).inc();
    }

    /// How many endpoints are in a state.
    pub fn endpoints(&self, state: EndpointState, count: u64) {
        self.endpoints.with_label_values(&[state.text()]).set(whole(count));
    }

    /// Whether namegate is ready.
    pub fn ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    /// Whether a reason holds for which enforcement may be got past.
    pub fn advisory(&self, reason: Advisory, holds: bool) {
        self.advisory.with_label_values(&[reason.text()]).set(i64::from(holds));
    }

    /// How many packets the floor has dropped since the start.
    pub fn floor(&self, packets: u64) {
        raise(&self.floor, packets);
    }

    /// All of it in Prometheus' text form.
    pub fn text(&self) -> Vec<u8> {
        let loaded = self.policy_loaded_mono_ns.load(Ordering::Relaxed);
        if loaded > 0 {
            self.policy_age.set(Duration::from_nanos(clock::mono().0.saturating_sub(loaded)).as_secs_f64());
        }
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out).expect("a vector takes everything");
        out
    }

    fn name_version(&self) {
        let version = gauges(&self.registry, "namegate_build_info", "Always 1.", &["version"]);
        version.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    }

    fn name_labels(&self) {
        for reason in Reason::ALL {
            for direction in [Direction::Egress, Direction::Ingress] {
                self.packets(*reason, direction, 0, 0);
            }
        }
        for what in [Lost::KernelEvent, Lost::SuppressedEvent, Lost::FlowRecord, Lost::VerboseLine] {
            self.lost(what, 0);
        }
        for what in Repair::ALL {
            self.repairs.with_label_values(&[what.text()]);
        }
        for result in [Reload::Applied, Reload::Unchanged, Reload::Failed] {
            self.reloads.with_label_values(&[result.text()]);
        }
        self.upstreams(&[]);
        self.background(&Background::default());
        EndpointState::ALL.iter().for_each(|state| self.endpoints(*state, 0));
        self.refused(0, 0, 0);
        Advisory::ALL.iter().for_each(|reason| self.advisory(*reason, false));
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

/// From a resolver on the same machine to the greatest upstream timeout.
const UPSTREAM_BUCKETS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// One grant takes about a microsecond.
const GRANT_BUCKETS: &[f64] =
    &[0.000_001, 0.000_002_5, 0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.001, 0.01, 0.1];

fn packet_labels(reason: Reason, direction: Direction) -> [&'static str; 3] {
    let verdict = if reason.passed() { "passed" } else { "dropped" };
    let direction = match direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    };
    [verdict, reason.text(), direction]
}

/// The mnemonic of a response code. An upstream chooses the code, so those that are not common are one label.
fn rcode_label(rcode: Option<u16>) -> &'static str {
    match rcode {
        None => "none",
        Some(0) => "NOERROR",
        Some(1) => "FORMERR",
        Some(2) => "SERVFAIL",
        Some(3) => "NXDOMAIN",
        Some(4) => "NOTIMP",
        Some(5) => "REFUSED",
        Some(_) => "other",
    }
}

/// Raises a counter to what the kernel has counted. Less than before means that the kernel began anew.
fn raise(counter: &IntCounter, value: u64) {
    let before = counter.get();
    if value < before {
        counter.reset();
        counter.inc_by(value);
    } else {
        counter.inc_by(value - before);
    }
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(name, help))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn float(registry: &Registry, name: &str, help: &str) -> Gauge {
    register(registry, Gauge::new(name, help))
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
}

fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    let metric = metric.expect("names and labels of metrics are literals and valid");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{Outcome, QueryRecord, Record, samples};

    #[track_caller]
    fn has(metrics: &Metrics, line: &str) {
        let text = String::from_utf8(metrics.text()).unwrap();
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }

    fn query(change: impl FnOnce(&mut QueryRecord)) -> Counted {
        let Record::Query(_, record) = samples::query(change) else { unreachable!() };
        record.counted()
    }

    #[test]
    fn queries_are_counted_by_verdict_reason_and_rcode() {
        let metrics = Metrics::new();
        metrics.query(&query(|q| q.granted = 3));
        metrics.query(&query(|q| (q.outcome, q.reason, q.rcode) = (Outcome::Denied, "name", Some(5))));
        metrics.query(&query(|q| (q.outcome, q.reason, q.rcode) = (Outcome::Forwarded, "allowed", Some(3_841))));
        has(&metrics, r#"namegate_queries_total{rcode="NOERROR",reason="allowed",verdict="forwarded"} 1"#);
        has(&metrics, r#"namegate_queries_total{rcode="REFUSED",reason="name",verdict="denied"} 1"#);
        has(&metrics, r#"namegate_queries_total{rcode="other",reason="allowed",verdict="forwarded"} 1"#);
        has(&metrics, r#"namegate_answers_total{from="miss"} 3"#);
        has(&metrics, "namegate_grants_total 5");
        has(&metrics, "namegate_upstream_duration_seconds_count 3");
        has(&metrics, r#"namegate_upstream_duration_seconds_bucket{le="0.0025"} 0"#);
        has(&metrics, r#"namegate_upstream_duration_seconds_bucket{le="0.005"} 3"#);
        has(&metrics, r#"namegate_grant_write_duration_seconds_bucket{le="0.0000025"} 3"#);
    }

    #[test]
    fn what_the_kernel_counted_is_taken_over_also_when_it_begins_anew() {
        let metrics = Metrics::new();
        let line = |count| {
            format!(r#"namegate_packets_total{{direction="egress",reason="no_grant",verdict="dropped"}} {count}"#)
        };
        has(&metrics, &line(0));
        for (counted, told) in [(5, 5), (9, 9), (9, 9), (2, 2)] {
            metrics.packets(Reason::NoGrant, Direction::Egress, counted, counted * 60);
            has(&metrics, &line(told));
        }
        has(&metrics, r#"namegate_packet_bytes_total{direction="egress",reason="no_grant",verdict="dropped"} 120"#);
        has(&metrics, r#"namegate_packets_total{direction="ingress",reason="flow",verdict="passed"} 0"#);
    }

    #[test]
    fn gauges_have_the_last_value() {
        let metrics = Metrics::new();
        metrics.table(Table::Grants, 7, 262_144);
        metrics.endpoints(EndpointState::Enforced, 2);
        metrics.refused(1, 2, 3);
        metrics.ready(true);
        metrics.policy(4);
        has(&metrics, r#"namegate_map_rows{map="grants"} 7"#);
        has(&metrics, r#"namegate_map_rows_max{map="grants"} 262144"#);
        has(&metrics, r#"namegate_endpoints{state="enforced"} 2"#);
        has(&metrics, r#"namegate_endpoints{state="closed"} 0"#);
        has(&metrics, r#"namegate_policies_refused{kept="yes"} 1"#);
        has(&metrics, r#"namegate_policies_refused{kept="no"} 2"#);
        has(&metrics, "namegate_policy_items_unenforced 3");
        has(&metrics, "namegate_ready 1");
        has(&metrics, "namegate_policy_generation 4");
    }

    #[test]
    fn no_name_and_no_address_stands_in_a_label() {
        let metrics = Metrics::new();
        for outcome in Outcome::ALL {
            metrics.query(&query(|q| {
                (q.outcome, q.qname, q.qtype) = (*outcome, "secret.example.".to_owned(), "TYPE64999".to_owned());
                q.cnames = vec!["secret.example.".to_owned()];
            }));
        }
        for table in Table::ALL {
            metrics.table(*table, 1, 2);
        }
        metrics.reload(Reload::Applied);
        let text = String::from_utf8(metrics.text()).unwrap();
        let mut words: Vec<&str> = Vec::new();
        words.extend(Reason::ALL.iter().map(|reason| reason.text()));
        words.extend(Outcome::ALL.iter().map(|outcome| outcome.text()));
        words.extend(Table::ALL.iter().map(|table| table.text()));
        words.extend(EndpointState::ALL.iter().map(|state| state.text()));
        words.extend(Repair::ALL.map(Repair::text));
        words.extend(Advisory::ALL.iter().map(|reason| reason.text()));
        words.extend(["plain", "tls", "https", "held", "used"]);
        words.extend(["passed", "dropped", "egress", "ingress", "yes", "no", "applied", "unchanged", "failed"]);
        words.extend(["kernel_event", "suppressed_event", "flow_record", "verbose_line", env!("CARGO_PKG_VERSION")]);
        words.extend([CacheUse::Miss, CacheUse::Hit, CacheUse::Hot, CacheUse::Stale].map(CacheUse::text));
        words.extend(["prefetch", "poller", "answered", "held_back"]);
        words.extend(["allowed", "NOERROR"]); // the sample's reason and code
        let values = text.lines().filter(|line| !line.starts_with('#')).flat_map(|line| {
            let labels = line.split_once('{').map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
            labels.split(',').filter_map(|label| label.split_once('='))
        });
        let mut seen = 0;
        for (name, value) in values.filter(|(name, _)| *name != "le") {
            assert!(words.contains(&value.trim_matches('"')), "{name}={value}");
            seen += 1;
        }
        assert!(seen > 100, "{seen}");
    }

    #[test]
    fn every_metric_is_ours_has_help_and_a_base_unit() {
        let metrics = Metrics::new();
        metrics.query(&query(|_| ()));
        metrics.table(Table::Flows, 0, 1);
        let text = String::from_utf8(metrics.text()).unwrap();
        for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
            let [_, _, name, kind] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            assert!(name.starts_with("namegate_"), "{name}");
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
            assert!(!["_ms", "_us", "_ns", "_kib", "_mib"].iter().any(|unit| name.ends_with(unit)), "{name}");
        }
    }

    /// What the other container of the chart's pods is asked for.
    fn of_the_collector() -> String {
        #[cfg(feature = "collect")]
        return crate::collect::metrics_at_the_start();
        #[cfg(not(feature = "collect"))]
        String::new()
    }

    #[test]
    fn the_charts_rules_and_dashboard_use_metrics_and_labels_that_exist() {
        let metrics = Metrics::new();
        for outcome in Outcome::ALL {
            metrics.query(&query(|q| q.outcome = *outcome));
        }
        metrics.table(Table::Flows, 0, 1);
        let text = String::from_utf8(metrics.text()).unwrap() + &of_the_collector();
        for (file, uses) in [
            ("rules.yaml", include_str!("../../helm/namegate/files/rules.yaml")),
            ("dashboard.json", include_str!("../../helm/namegate/files/dashboard.json")),
        ] {
            let words = uses.split(|found: char| !found.is_ascii_alphanumeric() && found != '_');
            let mut seen = 0;
            let known = |word: &&str| cfg!(feature = "collect") || !word.starts_with("namegate_collect_");
            for used in words.filter(|word| word.starts_with("namegate_")).filter(known) {
                let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| used.strip_suffix(end));
                let exists = match of_histogram {
                    Some(name) => text.contains(&format!("# TYPE {name} histogram\n")),
                    None => text.contains(&format!("# TYPE {used} ")),
                };
                assert!(exists, "{file} uses {used}");
                seen += 1;
            }
            assert!(seen > 10, "{file}: {seen}");
            // verdict="dropped", in JSON verdict=\"dropped\"
            let plain = uses.replace("\\\"", "\"");
            for (before, after) in plain.match_indices("=\"").map(|(at, _)| plain.split_at(at)) {
                let label = before.rsplit(|found: char| !found.is_ascii_alphabetic()).next().unwrap();
                let value = after[2..].split('"').next().unwrap();
                assert!(text.contains(&format!("{label}=\"{value}\"")), "{file} asks for {label}={value}");
            }
        }
    }
}
