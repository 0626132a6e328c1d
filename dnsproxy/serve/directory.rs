//! Who may ask, where their questions go, and by which settings: replaced as a whole on every change.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use foldhash::quality::RandomState;

use crate::engine::endpoint::{EndpointId, PodRef};
use crate::engine::fqdn::{Caps, FqdnTable, Plan, Timing};
use crate::engine::guard::Guard;
use crate::engine::lifetime::Ceilings;
use crate::engine::name::Name;
use crate::engine::ruleset::RuleSet;
use crate::kernel::{GrantStore, KernelError};
use crate::upstream::route::{Route, Routes};

use super::rate::Rate;

/// Everything that a query is served by.
pub struct Directory {
    /// What the operator set.
    pub settings: Settings,
    /// Which addresses may be learned.
    pub guard: Guard,
    /// Whom the operator put in place of the resolvers.
    pub routes: Routes,
    endpoints: HashMap<(u32, IpAddr), Arc<Served>, RandomState>,
    by_id: BTreeMap<EndpointId, Arc<Served>>,
    resolvers: BTreeMap<IpAddr, Resolver>,
}

/// An endpoint as the proxy sees it. A clone shares what was learned, the rules and the counters.
#[derive(Clone)]
pub struct Served {
    /// Its number in the kernel maps.
    pub id: EndpointId,
    /// The pod behind it.
    pub pod: PodRef,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its host-side interface.
    pub interface: u32,
    /// The bridge that the interface is a port of: its packets come in by that one.
    pub bridge: Option<u32>,
    /// What it may do. Replaced only under the lock of `names` (see [`crate::engine::fqdn::Regroup`]).
    pub rules: Arc<ArcSwap<RuleSet>>,
    /// What it has learned.
    pub names: Arc<Mutex<FqdnTable>>,
    /// See [`FqdnTable::epoch`].
    pub(crate) epoch: Arc<AtomicU64>,
    /// The suffixes that its resolver library tries: a denied name under one does not exist.
    pub search: Vec<Name>,
    /// Queries that it may still send in this second.
    pub(crate) rate: Arc<Rate>,
    /// Queries under way.
    pub(crate) under_way: Arc<AtomicU32>,
    /// Connections over TCP.
    pub(crate) connections: Arc<AtomicU32>,
}

impl Served {
    /// An endpoint that has learned nothing yet.
    pub fn new(
        id: EndpointId,
        pod: PodRef,
        addresses: Vec<IpAddr>,
        interface: u32,
        rules: Arc<RuleSet>,
        caps: Caps,
    ) -> Served {
        let names = FqdnTable::new(caps);
        Served {
            id,
            pod,
            addresses,
            interface,
            bridge: None,
            rules: Arc::new(ArcSwap::new(rules)),
            epoch: names.epoch(),
            names: Arc::new(Mutex::new(names)),
            search: Vec::new(),
            rate: Arc::default(),
            under_way: Arc::default(),
            connections: Arc::default(),
        }
    }

    /// What it has learned, locked: queries of this endpoint wait.
    pub fn table(&self) -> MutexGuard<'_, FqdnTable> {
        // A panic between plan and record leaves the table as the plan found it.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the kernel hold the plan, and then the table: how many rows were written.
    ///
    /// # Errors
    /// The kernel did not take it. The rows that it may have taken are put back as the table knows them.
    pub fn carry_out(&self, store: &dyn GrantStore, table: &mut FqdnTable, plan: Plan) -> Result<usize, KernelError> {
        let rows = plan.writes().len();
        if rows > 0
            && let Err(error) = store.install(self.id, plan.writes())
        {
            if let Err(error) = store.install(self.id, &table.before(&plan)) {
                tracing::warn!(endpoint = %self.id, %error, "a grant could not be taken back; its deadline ends it");
            }
            return Err(error);
        }
        table.record(plan);
        Ok(rows)
    }
}

/// A DNS server that workloads ask.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolver {
    /// Its address and port, as the workload knows them.
    pub address: SocketAddr,
    /// Whether the operator vouches for it: configured, or the cluster's own. One that a policy names is trusted
    /// anyway, for the endpoints of that policy.
    pub trusted: bool,
    /// The server in whose stead it answers: who may ask that one may ask it, unless a rule denies this one.
    pub stands_for: Option<SocketAddr>,
    route: Route,
}

impl Resolver {
    /// A resolver as workloads know it.
    pub fn new(address: SocketAddr, trusted: bool) -> Resolver {
        Resolver { address, trusted, stands_for: None, route: Route::to(address) }
    }

    /// The same where it answers in another's stead.
    pub fn in_stead_of(self, other: Option<SocketAddr>) -> Resolver {
        Resolver { stands_for: other, ..self }
    }
}

/// What a denied query is answered with. Cilium's `tofqdns-dns-reject-response-code`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RejectCode {
    /// REFUSED.
    #[default]
    Refused,
    /// NXDOMAIN.
    NameError,
}

/// What the operator set, of what is needed here.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How TTLs become deadlines: 5 s at least (0 to 86 400 s), and 55 s on top.
    pub timing: Timing,
    /// How long a resolver has to answer, retries included: 4 s.
    pub upstream_timeout: Duration,
    /// What a denied query is answered with: REFUSED.
    pub reject: RejectCode,
    /// Whether names in replies are compressed: yes. Without, every reply is written anew.
    pub compression: bool,
    /// How long answers are kept at most.
    pub ceilings: Ceilings,
    /// How long an expired answer may still be given when no server answers: not at all.
    pub serve_stale: Duration,
    /// Whether names in use are asked for again before their answers expire: yes.
    pub prefetch: bool,
    /// Whether every `matchName` is kept resolved and granted without being asked: no.
    pub poller: bool,
    /// How many queries a second prefetch and poller may send together: 50.
    pub background_queries_per_second: u32,
    /// Queries of one endpoint a second: 10 000; 0: no limit. Above that: REFUSED.
    pub queries_per_second: u32,
    /// Queries of one endpoint under way: 512. Above that: SERVFAIL.
    pub queries_in_flight: u32,
    /// Connections over TCP of one endpoint: 64. Above that they are closed.
    pub tcp_connections: u32,
    /// Connections over TCP in all: 1 024.
    pub tcp_connections_total: u32,
    /// How long a connection may be without a whole query, or a reply unread: 10 s (RFC 7766 section 6.2.3).
    pub tcp_idle: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            timing: Timing::default(),
            upstream_timeout: Duration::from_secs(4),
            reject: RejectCode::Refused,
            compression: true,
            ceilings: Ceilings::default(),
            serve_stale: Duration::ZERO,
            prefetch: true,
            poller: false,
            background_queries_per_second: 50,
            queries_per_second: 10_000,
            queries_in_flight: 512,
            tcp_connections: 64,
            tcp_connections_total: 1_024,
            tcp_idle: Duration::from_secs(10),
        }
    }
}

impl Directory {
    /// A directory of these endpoints, and of the resolvers by the local address that stands for each.
    pub fn new(
        settings: Settings,
        guard: Guard,
        endpoints: impl IntoIterator<Item = Arc<Served>>,
        resolvers: impl IntoIterator<Item = (IpAddr, Resolver)>,
    ) -> Directory {
        let (mut by_place, mut by_id) = (HashMap::default(), BTreeMap::new());
        for served in endpoints {
            by_id.insert(served.id, served.clone());
            let interface = served.bridge.unwrap_or(served.interface);
            for address in &served.addresses {
                by_place.insert((interface, *address), served.clone());
            }
        }
        let resolvers = resolvers.into_iter().collect();
        Directory { settings, guard, routes: Routes::default(), endpoints: by_place, by_id, resolvers }
    }

    /// Whom to ask for `name`, and whether that one is trusted by the operator's choice.
    pub fn route<'a>(&'a self, name: &Name, asked: &'a Resolver) -> (&'a Route, bool) {
        match self.routes.of(name) {
            Some(route) => (route, true),
            None => (&asked.route, asked.trusted),
        }
    }

    /// The endpoint behind `interface` with this source address (I2).
    ///
    /// The interface says who it is; the kernel has dropped what came with an address that is not the endpoint's. On a
    /// bridge several share the interface, and the address, checked by the kernel on the port, tells them apart.
    pub fn endpoint(&self, interface: u32, source: IpAddr) -> Option<&Arc<Served>> {
        self.endpoints.get(&(interface, source))
    }

    /// The endpoint of this number.
    pub fn numbered(&self, id: EndpointId) -> Option<&Arc<Served>> {
        self.by_id.get(&id)
    }

    /// Every endpoint, by number.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.by_id.values()
    }

    /// Every resolver, by the local address that stands for it.
    pub fn resolvers(&self) -> impl Iterator<Item = (IpAddr, &Resolver)> {
        self.resolvers.iter().map(|(local, resolver)| (*local, resolver))
    }

    /// The resolver that the workload asked, by the local address that its query was steered to.
    pub fn resolver(&self, local: IpAddr) -> Option<&Resolver> {
        self.resolvers.get(&local)
    }
}

/// One of a limited number, given back on drop.
pub(crate) struct Taken(Arc<AtomicU32>);

impl Taken {
    /// Takes one more of `counter` unless `limit` are taken.
    pub(crate) fn take(counter: &Arc<AtomicU32>, limit: u32) -> Option<Taken> {
        counter
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| (taken < limit).then_some(taken + 1))
            .ok()
            .map(|_| Taken(counter.clone()))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::answer::Learned;
    use crate::engine::bits::Bits;
    use crate::engine::grant::{GrantWrite, MonoNs};
    use crate::engine::pattern::{Bare, Pattern, PatternTrie};

    fn served(id: u32, address: &str, interface: u32, bridge: Option<u32>) -> Arc<Served> {
        let pod = PodRef { namespace: "payments".to_owned(), name: format!("pod-{id}") };
        let addresses = vec![address.parse().expect("an address")];
        let rules = Arc::new(RuleSet::unselected());
        Arc::new(Served { bridge, ..Served::new(EndpointId(id), pod, addresses, interface, rules, Caps::default()) })
    }

    #[track_caller]
    fn finds(directory: &Directory, interface: u32, source: &str, id: Option<u32>) {
        let found = directory.endpoint(interface, source.parse().expect("an address"));
        assert_eq!(found.map(|served| served.id.0), id, "{source} by {interface}");
    }

    #[test]
    fn an_endpoint_is_known_by_its_interface_and_never_by_its_address_alone() {
        let guard = Guard::new(Vec::new(), Name::parse("cluster.local").expect("a name"));
        let endpoints =
            [served(1, "192.0.2.1", 7, None), served(2, "192.0.2.2", 8, Some(5)), served(3, "192.0.2.3", 9, Some(5))];
        let directory = Directory::new(Settings::default(), guard, endpoints, []);
        finds(&directory, 7, "192.0.2.1", Some(1));
        finds(&directory, 8, "192.0.2.1", None);
        finds(&directory, 7, "192.0.2.2", None);
        finds(&directory, 5, "192.0.2.2", Some(2));
        finds(&directory, 5, "192.0.2.3", Some(3));
        finds(&directory, 8, "192.0.2.2", None);
        finds(&directory, 5, "192.0.2.1", None);
    }

    /// Takes rows until there are `room`, one by one, as a map that runs full does.
    struct Narrow {
        rows: Mutex<BTreeMap<IpAddr, GrantWrite>>,
        room: usize,
    }

    impl GrantStore for Narrow {
        fn install(&self, _: EndpointId, writes: &[GrantWrite]) -> Result<(), KernelError> {
            let mut rows = self.rows.lock().expect("the rows");
            for write in writes {
                if write.deletes() {
                    rows.remove(&write.address);
                } else if rows.len() < self.room || rows.contains_key(&write.address) {
                    rows.insert(write.address, *write);
                } else {
                    return Err(KernelError::Full { map: "grants", rows: self.room as u32 });
                }
            }
            Ok(())
        }
    }

    #[test]
    fn rows_of_a_plan_that_the_kernel_took_half_of_are_put_back() {
        let mut names = PatternTrie::new(Bare::Valid);
        names.insert(Pattern::pattern("*.test").expect("a pattern"), Bits::of(1), None);
        let rules = RuleSet { selected: true, names: Arc::new(names), ..RuleSet::unselected() };
        let served = served(1, "192.0.2.1", 7, None);
        let store = Narrow { rows: Mutex::default(), room: 2 };
        let learn = |addresses: &[&str], ttl| {
            let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
            let learned = Learned { name: Name::parse("a.test").expect("a name"), addresses, ttl };
            let mut table = served.table();
            let plan = table.plan(&learned, &rules, MonoNs(1), &Timing::default()).expect("room");
            served.carry_out(&store, &mut table, plan)
        };
        assert_eq!(learn(&["203.0.113.1"], 60).expect("taken"), 1);
        let before = store.rows.lock().expect("the rows").clone();
        learn(&["203.0.113.1", "203.0.113.2", "203.0.113.3"], 600).expect_err("full");
        assert_eq!(*store.rows.lock().expect("the rows"), before);
        assert_eq!(served.table().rows().collect::<Vec<_>>(), before.into_values().collect::<Vec<_>>());
    }

    #[test]
    fn a_slot_is_given_back() {
        let counter = Arc::new(AtomicU32::new(0));
        let first = Taken::take(&counter, 1).expect("free");
        assert!(Taken::take(&counter, 1).is_none());
        drop(first);
        assert!(Taken::take(&counter, 1).is_some());
    }
}
