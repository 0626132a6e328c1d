//! What happens every second: time takes things away, and everything is looked at.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::discovery::Also;
use super::node::{Endpoint, Node, started};
use super::sidecar::Sidecar;
use crate::clock;
use crate::engine::fqdn::{FqdnTable, Plan};
use crate::kernel::attach::Method;
use crate::kernel::change::Moves;
use crate::kernel::load::LoadSettings;
use crate::kernel::rules::is_block;
use crate::observe::text::rfc3339;
use crate::operate::metrics::Table;
use crate::operate::{
    AttachedBy, CniRefusalStatus, EndpointState, EndpointStatus, MapStatus, PolicyStatus, RefusalStatus, Status,
    UnknownStatus,
};
use crate::serve::cache::Cache;

/// How long a datagram without a reply is remembered, at most (RFC 4787, REQ-5, has two minutes for a mapping in use).
pub(super) const UNANSWERED_DATAGRAM: Duration = Duration::from_secs(60);
/// How often flows and grants are swept.
const SWEEP: Duration = Duration::from_secs(5);
/// How often programs are looked at when nothing is heard of them: with every upkeep. What is missing is to be back within
/// 5 s, and to put a program first takes up to 2 s of that, for a copy of it is loaded.
const LOOK: Duration = Duration::from_millis(900);
/// How often the machine's addresses are looked at for the node's own cache of the cluster's DNS.
const NODE_CACHE: Duration = Duration::from_secs(5);
/// How often the kernel's peers are read and held against what was written, and the journal is tidied.
const COMPARE: Duration = Duration::from_secs(60);
/// How long rows of an old policy stay: a packet that is on its way through the program has read the old number.
const OLD_RULES: Duration = Duration::from_secs(1);

/// What is due when.
pub(super) struct Upkeep {
    settings: LoadSettings,
    look_at: Instant,
    sweep_at: Instant,
    compare_at: Instant,
    old_rules_at: Option<Instant>,
    node_cache_at: Instant,
    /// Boot time ahead of monotonic time: how long the machine has slept.
    slept: Duration,
    flows: u64,
}

impl Upkeep {
    pub fn new(settings: LoadSettings) -> Upkeep {
        let now = clock::now();
        Upkeep {
            settings,
            look_at: now,
            sweep_at: now,
            compare_at: now + COMPARE,
            old_rules_at: None,
            node_cache_at: now + NODE_CACHE,
            slept: clock::slept(),
            flows: 0,
        }
    }

    /// Deadlines that were adopted are reckoned with the machine having slept so long since boot; what holds now.
    pub fn slept_before(&mut self, slept: Option<Duration>) -> Duration {
        self.slept = self.slept.min(slept.unwrap_or(self.slept));
        self.slept
    }

    /// Something happened to a program or an interface.
    pub fn look_soon(&mut self) {
        self.look_at = clock::now();
    }

    /// Whether it is time to look whether the node's cache of the cluster's DNS is here.
    pub fn is_node_cache_due(&mut self) -> bool {
        let now = clock::now();
        let is_due = now >= self.node_cache_at;
        if is_due {
            self.node_cache_at = now + NODE_CACHE;
        }
        is_due
    }

    /// Rows of an old policy are there.
    pub fn rules_due(&mut self) {
        self.old_rules_at = Some(clock::now() + OLD_RULES);
    }
}

impl Node {
    /// Whatever is due. `all`: all of it.
    pub async fn upkeep(&mut self, all: bool) {
        let now = clock::now();
        self.beat();
        self.end_adoption();
        self.mind_sleep();
        self.rewrite_grants();
        if all || now >= self.upkeep.sweep_at {
            self.upkeep.sweep_at = now + SWEEP;
            self.sweep();
        }
        if self.upkeep.old_rules_at.is_some_and(|at| now >= at) {
            self.upkeep.old_rules_at = None;
            let live: Vec<u32> = self.endpoints.values().map(|endpoint| endpoint.policy_id).collect();
            if let Err(error) = self.kernel.delete_rules_except(&live) {
                tracing::warn!(error = &error as &dyn std::error::Error, "rows of old rule sets stay");
            }
        }
        if now >= self.upkeep.compare_at {
            self.upkeep.compare_at = now + COMPARE;
            self.compare_peers();
            if let Err(error) = self.journal.tidy() {
                tracing::warn!(%error, "the file of the last good objects was not tidied");
            }
        }
        if all || now >= self.upkeep.look_at {
            self.upkeep.look_at = now + LOOK;
            self.look_at_programs().await;
            self.look_at_floor();
            self.look_beside();
        }
        self.tell();
    }

    /// Tells the kernel that the proxy lives, and hears what the kernel did while it took it for dead.
    fn beat(&self) {
        match self.kernel.beat() {
            Ok(0) => (),
            Ok(swept) => tracing::warn!(swept, "no heartbeat for 5 s or more; the kernel swept flows by itself"),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "dead flows will stay if namegate dies now");
            }
        }
    }

    /// Someone else may have changed `peers`: what was written is written again.
    fn compare_peers(&mut self) {
        let Some(held) = &self.held else { return };
        let compared = self.kernel.peer_rows().and_then(|found| {
            let moves = Moves::between(&found, held);
            if !moves.is_empty() {
                tracing::error!(
                    rows = moves.addresses().count(),
                    "peers in the kernel were not as written; they are again"
                );
            }
            self.kernel.change_rows(&[], &moves, || (), || ())
        });
        if let Err(error) = compared {
            tracing::warn!(error = &error as &dyn std::error::Error, "peers in the kernel were not compared");
            self.held = None;
        }
    }

    /// Deadlines are on a clock that stops in suspend: what the machine slept is taken off all of them.
    fn mind_sleep(&mut self) {
        let slept = clock::slept();
        let jump = slept.saturating_sub(self.upkeep.slept);
        if jump < Duration::from_secs(1) {
            return;
        }
        self.upkeep.slept = slept;
        tracing::info!(?jump, "the machine slept; grants end earlier by that, and no answer is kept");
        if let Some(cache) = self.proxy.cache() {
            cache.clear();
        }
        let now = clock::mono();
        self.each_table(|table| table.shorten(jump, now));
        self.checkpoint.slept(slept);
    }

    fn rewrite_grants(&mut self) {
        let now = clock::mono();
        self.each_table(|table| table.rewrites_due(now));
    }

    /// Makes a plan for each table and lets the kernel have it.
    fn each_table(&self, plan: impl Fn(&FqdnTable) -> Plan) {
        for endpoint in self.endpoints.values() {
            let Some(served) = &endpoint.served else { continue };
            let mut table = served.table();
            let plan = plan(&table);
            if let Err(error) = served.carry_out(&*self.kernel, &mut table, plan) {
                tracing::warn!(pod = %endpoint.pod, error = &error as &dyn std::error::Error, "grants stay as they were");
            }
        }
    }

    fn sweep(&mut self) {
        self.sweep_flows();
    }

    /// Whether it was done.
    pub(super) fn sweep_flows(&mut self) -> bool {
        let now = clock::mono();
        let idle_grace = self.config.dns.idle_connection_grace_period;
        let swept = self.kernel.sweep(&self.upkeep.settings, idle_grace, &self.budgets, &self.slot_of(), now);
        let mut remotes = match swept {
            Ok(sweep) => {
                self.upkeep.flows = sweep.live as u64;
                self.tell_adopted(&sweep.adopted);
                sweep.remotes
            }
            // Not known which flows live: nothing is taken away from under them.
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "flows were not swept");
                return false;
            }
        };
        for endpoint in self.endpoints.values() {
            if let Some(served) = &endpoint.served {
                served.table().set_live(remotes.remove(&endpoint.id).unwrap_or_default());
            }
        }
        self.each_table(|table| table.expire(now));
        true
    }

    /// Metrics and status.
    fn tell(&self) {
        let metrics = &self.metrics;
        for counted in self.kernel.counted() {
            metrics.packets(counted.reason, counted.direction, counted.packets, counted.octets);
        }
        let grants: Vec<u64> = self.endpoints.values().map(grants_of).collect();
        metrics.grants(grants.iter().sum());
        metrics.ready(self.readiness.is_ready());
        let mut floor = self.ground.floor.status();
        if let Some(sidecar) = &self.sidecar {
            sidecar.add_floor(&mut floor);
        }
        metrics.floor(floor.dropped);
        let cache = self.proxy.cache().map(Cache::figures);
        metrics.cache(&cache.unwrap_or_default());
        metrics.background(self.proxy.background());
        metrics.upstreams(&self.upstreams.snapshot());
        self.watchers.count_lost();
        let tables = self.tables(grants.iter().sum());
        for (table, rows, max) in &tables {
            metrics.table(*table, *rows, *max);
        }
        let mut endpoints: Vec<EndpointStatus> =
            self.endpoints.values().map(|endpoint| self.endpoint_status(endpoint)).collect();
        for state in EndpointState::ALL {
            metrics.endpoints(*state, endpoints.iter().filter(|endpoint| endpoint.state == *state).count() as u64);
        }
        // Told by themselves, but not counted: they are not endpoints of their own.
        for endpoint in self.endpoints.values() {
            endpoints.extend(endpoint.also.iter().map(|also| self.further_status(endpoint, also)));
        }
        let found = self.found_status();
        metrics.found(found.unknown.len() as u64, found.unprotected.len() as u64, self.refused_files());
        let status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node_name: self.config.node_name.clone(),
            pid: std::process::id(),
            started: rfc3339(started()),
            policy: PolicyStatus {
                generation: self.loaded.generation,
                loaded: self.loaded.when.map(rfc3339).unwrap_or_default(),
                refusals: self.loaded.refusals.iter().map(RefusalStatus::from).collect(),
                skipped: self.loaded.skipped,
            },
            adopting_seconds: self.adopting.left(clock::mono()),
            advisory: self.sidecar.as_ref().map(Sidecar::advisory).unwrap_or_default(),
            endpoints,
            floor,
            maps: tables
                .into_iter()
                .map(|(table, rows, max)| MapStatus { name: table.text().to_owned(), rows, max })
                .collect(),
            upstreams: self.upstreams.snapshot(),
            cache: cache.map(Into::into),
            ..found
        };
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// What of the status is about pods and interfaces that were found.
    fn found_status(&self) -> Status {
        let Some(discovery) = &self.discovery else { return Status::default() };
        let mut unknown: Vec<UnknownStatus> = discovery
            .unknown
            .iter()
            .map(|(index, unknown)| {
                let (interface, why) = (unknown.interface.clone(), unknown.why.clone());
                UnknownStatus { interface, ifindex: *index, why }
            })
            .collect();
        unknown.sort_by(|one, other| one.interface.cmp(&other.interface));
        let refusals = discovery.cache.refusals();
        Status {
            unknown,
            unprotected: discovery.unprotected.iter().map(ToString::to_string).collect(),
            cni_refusals: refusals
                .map(|(file, text)| CniRefusalStatus { file: file.to_owned(), text: text.to_owned() })
                .collect(),
            ..Status::default()
        }
    }

    fn refused_files(&self) -> u64 {
        self.discovery.as_ref().map_or(0, |discovery| discovery.cache.refused())
    }

    /// An endpoint on a further interface.
    fn further_status(&self, endpoint: &Endpoint, also: &Also) -> EndpointStatus {
        let whole = self.endpoint_status(endpoint);
        let problems: Vec<&str> =
            [&also.problem, &also.damage].into_iter().filter(|text| !text.is_empty()).map(String::as_str).collect();
        EndpointStatus {
            interface: also.interface.clone(),
            ifindex: also.at.ifindex,
            state: if also.at.closed { EndpointState::Closed } else { whole.state },
            attached: self.attached_by(Some(also.at.method)),
            problem: problems.join("; "),
            ..whole
        }
    }

    fn attached_by(&self, method: Option<Method>) -> AttachedBy {
        match (method, self.kernel.drops_early()) {
            (None, _) => AttachedBy::Nothing,
            (Some(Method::Tcx), false) => AttachedBy::Tcx,
            (Some(Method::Tcx), true) => AttachedBy::XdpTcx,
            (Some(Method::Clsact), false) => AttachedBy::Clsact,
            (Some(Method::Clsact), true) => AttachedBy::XdpClsact,
        }
    }

    /// How full the kernel's tables are, by what was written to them.
    fn tables(&self, grants: u64) -> Vec<(Table, u64, u64)> {
        let kernel = &self.kernel.tables;
        let mut seen = HashSet::new();
        let rules: Vec<_> = self
            .endpoints
            .values()
            .filter(|endpoint| seen.insert(endpoint.policy_id))
            .filter_map(|endpoint| endpoint.rules.as_ref())
            .collect();
        let sum = |rows: fn(&crate::engine::ruleset::RuleSet) -> usize| rules.iter().map(|set| rows(set) as u64).sum();
        let peers = rules.first().map_or(0, |rules| rules.known.len()) + self.steering.pairs.len();
        let pairs = self.steering.pairs.len() as u64;
        let attached: usize = self.endpoints.values().map(|endpoint| endpoint.interfaces().count()).sum();
        let unknown = self.discovery.as_ref().map_or(0, |discovery| discovery.unknown.len());
        let attached = (attached + unknown) as u64;
        let rows = |table: Table| -> (u64, u32) {
            match table {
                Table::Endpoints => (attached, kernel.endpoints.capacity()),
                Table::Flows => (self.upkeep.flows, kernel.flows.capacity()),
                Table::Grants => (grants, kernel.grants.capacity()),
                Table::Peers => (peers as u64, kernel.peers.capacity()),
                Table::PeerBits => (sum(|set| set.peers.len()), kernel.peer_bits.capacity()),
                Table::Services => (sum(|set| set.services.len()), kernel.services.capacity()),
                Table::Cidr4 => {
                    (sum(|set| set.cidrs.iter().filter(|row| row.0.addr().is_ipv4()).count()), kernel.cidr4.capacity())
                }
                Table::Cidr6 => {
                    (sum(|set| set.cidrs.iter().filter(|row| row.0.addr().is_ipv6()).count()), kernel.cidr6.capacity())
                }
                Table::Ports => {
                    (sum(|set| set.ports.iter().filter(|row| !is_block(row.ports)).count()), kernel.ports.capacity())
                }
                Table::PortBlocks => (
                    sum(|set| set.ports.iter().filter(|row| is_block(row.ports)).count()),
                    kernel.port_blocks.capacity(),
                ),
                Table::DnsTo => (pairs, kernel.dns_to.capacity()),
                Table::DnsFrom => (pairs, kernel.dns_from.capacity()),
            }
        };
        Table::ALL.iter().map(|table| (*table, rows(*table).0, u64::from(rows(*table).1))).collect()
    }

    fn endpoint_status(&self, endpoint: &Endpoint) -> EndpointStatus {
        let rules = endpoint.rules.as_ref();
        let problems = [&endpoint.rules_problem, &endpoint.link_problem, &endpoint.damage];
        let nowhere = "no interface of it was found yet".to_owned();
        let nowhere = Some(&nowhere).filter(|_| self.discovery.is_some() && endpoint.attachment.is_none());
        let problems: Vec<&str> =
            problems.into_iter().chain(nowhere).filter(|text| !text.is_empty()).map(String::as_str).collect();
        EndpointStatus {
            interface: endpoint.interface.clone(),
            ifindex: endpoint.attachment.map_or(0, |at| at.ifindex),
            pod: endpoint.pod.to_string(),
            id: endpoint.id.0,
            state: match rules {
                None => EndpointState::Closed,
                Some(_) if endpoint.addresses.is_empty() || !endpoint.link_problem.is_empty() => EndpointState::Closed,
                Some(rules) if rules.selected && rules.audit => EndpointState::Audited,
                Some(rules) if rules.selected => EndpointState::Enforced,
                Some(_) => EndpointState::Unenforced,
            },
            attached: self.attached_by(endpoint.attachment.map(|at| at.method)),
            steered: rules.is_some_and(|rules| rules.steered()),
            grants: grants_of(endpoint) as u32,
            flows: self.budgets.flows(endpoint.slot),
            problem: problems.join("; "),
        }
    }
}

fn grants_of(endpoint: &Endpoint) -> u64 {
    let count = |served: &std::sync::Arc<crate::serve::Served>| served.table().grants() as u64;
    endpoint.served.as_ref().map_or(0, count)
}
