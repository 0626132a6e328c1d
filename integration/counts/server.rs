//! The server whose replies are counted: namegate's listeners on loopback, one worker, one endpoint, and a kernel that
//! takes every grant.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use namegate::config::Config;
use namegate::engine::bits::Bits;
use namegate::engine::endpoint::{EndpointId, PodRef};
use namegate::engine::fqdn::Caps;
use namegate::engine::grant::GrantWrite;
use namegate::engine::guard::Guard;
use namegate::engine::name::Name;
use namegate::engine::pattern::{Bare, Pattern, PatternTrie};
use namegate::engine::port::PortBlock;
use namegate::engine::ruleset::{DnsRule, Protocol, RuleSet, Servers};
use namegate::engine::verdict::{RuleRef, RuleText};
use namegate::kernel::{GrantStore, KernelError};
use namegate::listen::{Options, start};
use namegate::observe::{Counted, Observer, QueryRecord, Watchers};
use namegate::operate::metrics::Metrics;
use namegate::serve::cache::Cache;
use namegate::serve::{Directory, Proxy, Resolver, Served, Settings};

use super::{allocations, valgrind};

/// Queries a round.
pub const ROUND: usize = 64;
/// Rounds that are not counted: names are learned, buffers grow to their size.
pub const WARM_UP: usize = 4;
/// The number of the loopback interface in every network namespace.
const LOOPBACK: u32 = 1;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Replies of names that were just answered.
    Hot,
    /// Replies with the cache off.
    Forwarded,
}

impl Kind {
    pub const ALL: [Kind; 2] = [Kind::Hot, Kind::Forwarded];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Hot => "hot",
            Kind::Forwarded => "forwarded",
        }
    }

    pub fn of(name: &str) -> Kind {
        Kind::ALL.into_iter().find(|kind| kind.name() == name).expect("a kind")
    }
}

/// Serves until standard input ends; writes the port to standard output, and then what [`Gate`] says.
pub fn serve(upstream: u16, kind: Kind) -> ! {
    let rule = RuleRef(Arc::new(RuleText {
        namespace: "payments".to_owned(),
        policy: "wall".to_owned(),
        ..RuleText::default()
    }));
    let mut names = PatternTrie::new(Bare::Valid);
    names.insert(Pattern::pattern("*.test").expect("a pattern"), Bits::of(3), None);
    let mut patterns = PatternTrie::new(Bare::Every);
    patterns.insert(Pattern::pattern("*").expect("a pattern"), (), None);
    let dns = DnsRule {
        rule: rule.clone(),
        servers: Servers::Any,
        ports: vec![(Protocol::Udp, PortBlock::ANY), (Protocol::Tcp, PortBlock::ANY)],
        patterns: Arc::new(patterns),
        speaks_of_dns: true,
    };
    let rules = RuleSet {
        selected: true,
        deny_egress: true,
        deny_egress_by: vec![rule],
        names: Arc::new(names),
        dns: vec![dns],
        ..RuleSet::unselected()
    };
    let here = IpAddr::from(Ipv4Addr::LOCALHOST);
    let pod = PodRef { namespace: "payments".to_owned(), name: "asker".to_owned() };
    let served = Served::new(EndpointId(1), pod, vec![here], LOOPBACK, Arc::new(rules), Caps::default());
    let guard = Guard::new(Vec::new(), Name::parse("cluster.local").expect("a name"));
    let resolver = Resolver::new((here, upstream).into(), true);
    let settings = Settings { queries_per_second: 0, ..Settings::default() };
    let directory = Directory::new(settings, guard, [Arc::new(served)], [(here, resolver)]);
    let cache = (kind == Kind::Hot).then(|| Arc::new(Cache::new(1 << 20)));
    let proxy = Proxy::new(Arc::new(ArcSwap::from_pointee(directory)), Arc::new(Open), Arc::new(Gate::new()), cache);
    let options = Options { port: 0, workers: 1, ..Options::default() };
    let listeners = start(&options, Arc::new(proxy)).expect("listeners");
    say(u64::from(listeners.port()));
    loop {
        std::thread::park();
    }
}

/// Takes every grant.
struct Open;

impl GrantStore for Open {
    fn install(&self, _: EndpointId, _: &[GrantWrite]) -> Result<(), KernelError> {
        Ok(())
    }
}

/// What the daemon has, and before it: at the first query of each round, says how much the worker has allocated, and waits
/// for an octet. Without one the process ends.
///
/// Between an octet and the last query of its round valgrind counts, on this thread: nothing that time does meanwhile, and
/// not what the last few replies of a round need to leave.
struct Gate {
    seen: AtomicUsize,
    watchers: Watchers,
}

impl Gate {
    fn new() -> Gate {
        let nobody = Config::default().observe;
        let watchers = Watchers::start(&nobody, "node", Arc::new(Metrics::new())).expect("no file is opened");
        Gate { seen: AtomicUsize::new(0), watchers }
    }
}

impl Observer for Gate {
    fn query(&self, counted: &Counted, whole: &dyn Fn() -> QueryRecord) {
        allocations::count_this_thread();
        let seen = self.seen.fetch_add(1, Ordering::Relaxed);
        if seen.is_multiple_of(ROUND) {
            say(allocations::so_far());
            if !matches!(std::io::stdin().read(&mut [0]), Ok(1)) {
                std::process::exit(0);
            }
            if seen >= WARM_UP * ROUND {
                valgrind::toggle_collect();
            }
        }
        self.watchers.query(counted, whole);
        if (seen + 1).is_multiple_of(ROUND) && seen >= WARM_UP * ROUND {
            valgrind::toggle_collect();
        }
    }

    fn watches(&self) -> bool {
        self.watchers.watches()
    }
}

/// Writes a number for [`super::asker`].
fn say(number: u64) {
    let mut out = std::io::stdout().lock();
    out.write_all(&number.to_le_bytes()).and_then(|()| out.flush()).expect("the asker listens");
}
