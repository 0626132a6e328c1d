//! The proxy on a clock of its own: what is kept, what is hot, and what a reply promises.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;

use super::background::{BackgroundFigures, Purpose};
use super::*;
use crate::engine::endpoint::{EndpointId, PodRef};
use crate::engine::fqdn::{Caps, Timing};
use crate::engine::grant::GrantWrite;
use crate::engine::guard::Guard;
use crate::engine::lifetime::ttl_places;
use crate::engine::name::Name;
use crate::engine::pattern::{Bare, Pattern, PatternTrie};
use crate::engine::port::PortBlock;
use crate::engine::ruleset::{DnsRule, Servers};
use crate::kernel::KernelError;
use crate::observe::{Counted, QueryRecord};
use crate::upstream::Reply;
use crate::upstream::route::Route;
use crate::upstream::scripted::{answer, name_in};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_000 * SECOND;

thread_local!(static NOW: Cell<u64> = const { Cell::new(START) });

fn now() -> MonoNs {
    MonoNs(NOW.get())
}

#[derive(Default)]
struct Kernel(Mutex<BTreeMap<(EndpointId, IpAddr), GrantWrite>>);

impl GrantStore for Kernel {
    fn install(&self, endpoint: EndpointId, writes: &[GrantWrite]) -> Result<(), KernelError> {
        let mut rows = self.0.lock().expect("the rows");
        for write in writes {
            if write.deletes() {
                rows.remove(&(endpoint, write.address));
            } else {
                rows.insert((endpoint, write.address), *write);
            }
        }
        Ok(())
    }
}

/// Keeps what the last query was counted by.
#[derive(Default)]
struct Last(Mutex<Option<Counted>>);

impl Observer for Last {
    fn query(&self, counted: &Counted, _: &dyn Fn() -> QueryRecord) {
        *self.0.lock().expect("the record") = Some(*counted);
    }

    fn watches(&self) -> bool {
        false
    }
}

type Deed = Box<dyn FnOnce()>;

/// What the servers say to each name: records, or nothing at all.
#[derive(Clone, Default)]
struct Outside {
    says: Rc<RefCell<BTreeMap<String, Vec<String>>>>,
    asked: Rc<RefCell<Vec<String>>>,
    /// Done before the answer comes.
    meanwhile: Rc<RefCell<Option<Deed>>>,
}

impl Resolve for Outside {
    async fn resolve(&self, _: &Route, query: &Query<'_>, _: Duration) -> Result<Reply, UpstreamError> {
        let sent = crate::upstream::message::build(query, crate::upstream::message::Letters::Lower, true);
        let name = name_in(&sent);
        self.asked.borrow_mut().push(name.clone());
        if let Some(meanwhile) = self.meanwhile.take() {
            meanwhile();
        }
        let says = self.says.borrow();
        let records: Vec<&str> = says.get(&name).ok_or(UpstreamError::Timeout)?.iter().map(String::as_str).collect();
        let records: Vec<&str> = if query.qtype == 1 { records } else { Vec::new() };
        Ok(Reply::from(&answer(&sent, &records)[..]))
    }
}

struct Bench {
    proxy: Proxy,
    kernel: Arc<Kernel>,
    last: Arc<Last>,
    outside: Outside,
    served: Vec<Arc<Served>>,
    workers: [Memory; 2],
    timing: Timing,
}

/// What came back.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Got {
    rcode: u16,
    addresses: Vec<String>,
    ttl: u32,
    from: CacheUse,
}

fn rules(names: &[&str], dns: &[&str]) -> Arc<RuleSet> {
    let mut selectors = PatternTrie::new(Bare::Valid);
    for pattern in names {
        let pattern = Pattern::name(pattern).or_else(|_| Pattern::pattern(pattern)).expect("a pattern");
        selectors.insert(pattern, Bits::of(3), None);
    }
    let mut patterns = PatternTrie::new(Bare::Every);
    for pattern in dns {
        patterns.insert(Pattern::pattern(pattern).expect("a pattern"), (), None);
    }
    let rule = DnsRule {
        rule: RuleRef(Arc::default()),
        servers: Servers::Any,
        ports: vec![(Protocol::Udp, PortBlock::ANY), (Protocol::Tcp, PortBlock::ANY)],
        patterns: Arc::new(patterns),
        speaks_of_dns: true,
    };
    Arc::new(RuleSet {
        selected: true,
        deny_egress: true,
        names: Arc::new(selectors),
        dns: vec![rule],
        ..RuleSet::unselected()
    })
}

impl Bench {
    /// Endpoints 1 and 2 at 198.51.100.1 and .2; names under `test` are selected, everything may be asked.
    fn new(change: impl FnOnce(&mut Settings), caps: Caps) -> Bench {
        NOW.set(START);
        let mut settings = Settings { queries_per_second: 0, ..Settings::default() };
        change(&mut settings);
        let timing = settings.timing;
        let served: Vec<Arc<Served>> = (1..=2u32)
            .map(|id| {
                let pod = PodRef { namespace: "payments".to_owned(), name: format!("pod-{id}") };
                let address = IpAddr::from([198, 51, 100, id as u8]);
                Arc::new(Served::new(EndpointId(id), pod, vec![address], id, rules(&["**.test"], &["*"]), caps))
            })
            .collect();
        let guard = Guard::new(Vec::new(), Name::parse("cluster.local").expect("a name"));
        let resolver = Resolver::new(([198, 51, 100, 53], 53).into(), true);
        let directory = Directory::new(settings, guard, served.clone(), [(LOCAL, resolver)]);
        let (kernel, last) = (Arc::new(Kernel::default()), Arc::new(Last::default()));
        let cache = Arc::new(Cache::new(1 << 20));
        let directory = Arc::new(ArcSwap::from_pointee(directory));
        let proxy = Proxy::at(now, directory, kernel.clone(), last.clone(), Some(cache));
        Bench { proxy, kernel, last, outside: Outside::default(), served, workers: Default::default(), timing }
    }

    fn says(&self, name: &str, records: &[&str]) {
        self.outside.says.borrow_mut().insert(name.to_owned(), records.iter().map(ToString::to_string).collect());
    }

    fn is_silent(&self, name: &str) {
        self.outside.says.borrow_mut().remove(name);
    }

    fn at(&self, seconds: u64) {
        NOW.set(START + seconds * SECOND);
    }

    /// Asks for addresses as the endpoint, of one worker, and holds the reply against the kernel (I4).
    #[track_caller]
    fn ask_of(&mut self, worker: usize, endpoint: usize, name: &str) -> Got {
        let mut packet = Query::again(Name::parse(name).expect("a name"), 1, 0x100, false).question.into_owned();
        packet.splice(..0, *b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0");
        let served = &self.served[endpoint - 1];
        let client = (served.addresses[0], 40_000).into();
        let asked = Packet { bytes: &packet, client, local: LOCAL, interface: served.interface, tcp: false };
        let mut out = Vec::new();
        match self.proxy.accept(&asked, Some(&mut self.workers[worker]), &mut out) {
            Next::Reply => {}
            Next::Nothing => panic!("no reply"),
            Next::Ask(ask) => out = at_once(self.proxy.finish(ask, &self.outside)),
        }
        let reply = Answer::parse(&out).expect("a reply");
        assert_eq!(out[..2], [0x12, 0x34]);
        if served.rules.load().groups_of(&Name::parse(name).expect("a name")) != Bits::NONE {
            for record in reply.records(0) {
                self.holds(served.id, record.address().expect("an address"), record.ttl);
            }
        }
        Got {
            rcode: reply.rcode(),
            addresses: reply.addresses().map(|address| address.to_string()).collect(),
            ttl: reply.ttl(),
            from: self.last.0.lock().expect("the record").expect("a query").cache,
        }
    }

    /// **Invariant:** the kernel holds an address for as long as the reply says, and what comes on top.
    #[track_caller]
    fn holds(&self, endpoint: EndpointId, address: IpAddr, ttl: u32) {
        let rows = self.kernel.0.lock().expect("the rows");
        let row = rows.get(&(endpoint, address)).unwrap_or_else(|| panic!("{address} is not granted"));
        let until = row.slots.iter().map(|slot| slot.until).max().expect("slots");
        let ttl = Duration::from_secs(ttl.into()).max(self.timing.min_ttl);
        assert!(until >= now().after(ttl).after(self.timing.grace), "{address} ends before the reply's {ttl:?}");
    }

    #[track_caller]
    fn gets(&mut self, endpoint: usize, name: &str, address: &str, ttl: u32, from: CacheUse) {
        let got = self.ask_of(0, endpoint, name);
        assert_eq!(got, Got { rcode: 0, addresses: vec![address.to_owned()], ttl, from });
    }

    /// What the node does each second, and each worker ten times a second.
    fn background(&mut self, from: u64, to: u64) {
        for tick in from * 10..=to * 10 {
            NOW.set(START + tick * SECOND / 10);
            for (at, memory) in self.workers.iter_mut().enumerate() {
                for due in self.proxy.due(memory, at == 0) {
                    let done = at_once(self.proxy.ask_unasked(due, &self.outside));
                    memory.learn(&done, now());
                }
            }
        }
    }

    fn granted(&self, endpoint: u32, address: &str) -> bool {
        let key = (EndpointId(endpoint), address.parse().expect("an address"));
        self.kernel.0.lock().expect("the rows").get(&key).is_some_and(|row| row.open_at(now()) != Bits::NONE)
    }
}

const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 77, 1));

fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("nothing here waits"),
    }
}

fn plain() -> Bench {
    Bench::new(|_| (), Caps::default())
}

#[test]
fn an_answer_is_asked_for_once_then_kept_then_hot_until_its_ttl_has_run_down() {
    let mut bench = plain();
    bench.says("www.test", &["@ 60 A 203.0.113.1"]);
    bench.gets(1, "www.test", "203.0.113.1", 60, CacheUse::Miss);
    bench.gets(1, "www.test", "203.0.113.1", 60, CacheUse::Hit);
    bench.gets(1, "www.test", "203.0.113.1", 60, CacheUse::Hot);
    bench.at(55);
    bench.gets(1, "www.test", "203.0.113.1", 5, CacheUse::Hot);
    bench.at(59);
    // The kernel has to hold it for the least TTL and the grace from now on.
    bench.gets(1, "www.test", "203.0.113.1", 1, CacheUse::Hit);
    bench.gets(1, "www.test", "203.0.113.1", 1, CacheUse::Hot);
    bench.says("www.test", &["@ 60 A 203.0.113.2"]);
    bench.at(60);
    bench.gets(1, "www.test", "203.0.113.2", 60, CacheUse::Miss);
    assert_eq!(bench.outside.asked.borrow().len(), 2);
}

#[test]
fn a_kept_answer_opens_nothing_to_anyone_but_the_one_who_asks() {
    let mut bench = plain();
    bench.says("www.test", &["@ 60 A 203.0.113.1"]);
    bench.gets(1, "www.test", "203.0.113.1", 60, CacheUse::Miss);
    assert_eq!((bench.granted(1, "203.0.113.1"), bench.granted(2, "203.0.113.1")), (true, false));
    bench.gets(2, "www.test", "203.0.113.1", 60, CacheUse::Hit);
    assert!(bench.granted(2, "203.0.113.1"));
}

#[test]
fn the_askers_letters_come_back_also_from_a_hot_reply() {
    let mut bench = plain();
    bench.says("www.test", &["@ 60 A 203.0.113.1"]);
    for (name, from) in [("WWW.test", CacheUse::Miss), ("wWw.tEst", CacheUse::Hit), ("www.TEST", CacheUse::Hot)] {
        let mut packet = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
        for label in name.split('.') {
            packet.push(label.len() as u8);
            packet.extend(label.as_bytes());
        }
        packet.extend(b"\0\0\x01\0\x01");
        let client = (IpAddr::from([198, 51, 100, 1]), 40_000).into();
        let asked = Packet { bytes: &packet, client, local: LOCAL, interface: 1, tcp: false };
        let mut out = Vec::new();
        if let Next::Ask(ask) = bench.proxy.accept(&asked, Some(&mut bench.workers[0]), &mut out) {
            out = at_once(bench.proxy.finish(ask, &bench.outside));
        }
        assert_eq!(out[12..packet.len()], packet[12..]);
        assert_eq!(bench.last.0.lock().expect("the record").expect("a query").cache, from);
    }
}

#[test]
fn a_hot_reply_is_another_one_for_another_type_flag_or_edns() {
    let mut bench = plain();
    bench.says("www.test", &["@ 60 A 203.0.113.1"]);
    let mut ask = |qtype: u8, flags: u8, edns: Option<u8>| {
        let mut packet = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x04test\0\0".to_vec();
        packet[3] = flags;
        packet.extend([qtype, 0, 1]);
        if let Some(dnssec_ok) = edns {
            packet[11] = 1;
            packet.extend([0, 0, 41, 4, 208, 0, 0, dnssec_ok, 0, 0, 0]);
        }
        let client = (IpAddr::from([198, 51, 100, 1]), 40_000).into();
        let asked = Packet { bytes: &packet, client, local: LOCAL, interface: 1, tcp: false };
        let mut out = Vec::new();
        if let Next::Ask(ask) = bench.proxy.accept(&asked, Some(&mut bench.workers[0]), &mut out) {
            out = at_once(bench.proxy.finish(ask, &bench.outside));
        }
        let from = bench.last.0.lock().expect("the record").expect("a query").cache;
        (from, Answer::parse(&out).expect("a reply").opt.map(|(start, _)| out[start + 7]))
    };
    let kinds = [(1, 0, None), (28, 0, None), (1, 0x10, None), (1, 0, Some(0)), (1, 0, Some(0x80))];
    let first: Vec<_> = kinds.iter().map(|(qtype, flags, edns)| ask(*qtype, *flags, *edns)).collect();
    use CacheUse::{Hit, Hot, Miss};
    // The empty answer to AAAA has no SOA record and is not kept.
    let told = [None, None, None, Some(0), Some(0x80)];
    assert_eq!(first.iter().map(|(from, _)| *from).collect::<Vec<_>>(), [Miss, Miss, Miss, Hit, Miss]);
    assert_eq!(first.iter().map(|(_, opt)| *opt).collect::<Vec<_>>(), told);
    let _ = kinds.map(|(qtype, flags, edns)| ask(qtype, flags, edns));
    let third = kinds.map(|(qtype, flags, edns)| ask(qtype, flags, edns));
    assert_eq!(third.map(|(from, _)| from), [Hot, Miss, Hot, Hot, Hot]);
    assert_eq!(third.map(|(_, opt)| opt), told);
}

#[test]
fn a_name_that_a_new_policy_forbids_is_refused_however_hot_its_reply() {
    let mut bench = plain();
    bench.says("www.test", &["@ 60 A 203.0.113.1"]);
    for from in [CacheUse::Miss, CacheUse::Hit, CacheUse::Hot] {
        bench.gets(1, "www.test", "203.0.113.1", 60, from);
    }
    bench.served[0].rules.store(rules(&["**.test"], &["other.test"]));
    assert_eq!(bench.ask_of(0, 1, "www.test").rcode, 5);
}

#[test]
fn an_address_that_gave_way_to_others_is_granted_anew_before_a_kept_reply_tells_it() {
    let mut bench = Bench::new(|_| (), Caps { addresses_per_name: 1, ..Caps::default() });
    bench.says("www.test", &["@ 60 A 203.0.113.1"]);
    for from in [CacheUse::Miss, CacheUse::Hit, CacheUse::Hot] {
        bench.gets(1, "www.test", "203.0.113.1", 60, from);
    }
    // Over TCP with CD set the same name has another answer, whose address takes the place of the first.
    bench.says("www.test", &["@ 60 A 203.0.113.2"]);
    let query = b"\x12\x34\x01\x10\0\x01\0\0\0\0\0\0\x03www\x04test\0\0\x01\0\x01";
    let client = (IpAddr::from([198, 51, 100, 1]), 40_000).into();
    let asked = Packet { bytes: query, client, local: LOCAL, interface: 1, tcp: true };
    let Next::Ask(ask) = bench.proxy.accept(&asked, None, &mut Vec::new()) else { panic!("another question") };
    at_once(bench.proxy.finish(ask, &bench.outside));
    assert!(!bench.granted(1, "203.0.113.1"));
    bench.gets(1, "www.test", "203.0.113.1", 60, CacheUse::Hit); // and held, see ask_of
}

#[test]
fn failures_are_not_kept_and_a_stale_answer_is_given_only_if_configured() {
    let mut bench = plain();
    bench.says("www.test", &["@ 10 A 203.0.113.1"]);
    bench.gets(1, "www.test", "203.0.113.1", 10, CacheUse::Miss);
    bench.is_silent("www.test");
    bench.at(11);
    assert_eq!(bench.ask_of(0, 1, "www.test").rcode, 2);

    let mut bench = Bench::new(|settings| settings.serve_stale = Duration::from_secs(100), Caps::default());
    bench.says("www.test", &["@ 10 A 203.0.113.1"]);
    bench.gets(1, "www.test", "203.0.113.1", 10, CacheUse::Miss);
    bench.is_silent("www.test");
    bench.at(11);
    bench.gets(1, "www.test", "203.0.113.1", 30, CacheUse::Stale);
    bench.at(12);
    bench.gets(1, "www.test", "203.0.113.1", 30, CacheUse::Stale);
    assert_eq!(bench.outside.asked.borrow().len(), 2, "servers that don't answer are left alone for 30 s");
    bench.says("www.test", &["@ 10 A 203.0.113.2"]);
    bench.at(42);
    bench.gets(1, "www.test", "203.0.113.2", 10, CacheUse::Miss);
    bench.is_silent("www.test");
    bench.at(160);
    assert_eq!(bench.ask_of(0, 1, "www.test").rcode, 2, "older than a stale answer may be");
}

#[test]
fn a_name_in_use_is_refreshed_and_its_new_address_granted_before_anyone_asks() {
    let mut bench = plain();
    bench.says("www.test", &["@ 60 A 203.0.113.1"]);
    bench.says("once.test", &["@ 60 A 203.0.113.9"]);
    bench.gets(1, "www.test", "203.0.113.1", 60, CacheUse::Miss);
    bench.gets(1, "www.test", "203.0.113.1", 60, CacheUse::Hit);
    bench.gets(2, "www.test", "203.0.113.1", 60, CacheUse::Hit);
    bench.gets(1, "once.test", "203.0.113.9", 60, CacheUse::Miss);
    bench.says("www.test", &["@ 60 A 203.0.113.2"]);
    bench.background(0, 53);
    assert_eq!(bench.outside.asked.borrow().len(), 2);
    bench.background(54, 55);
    assert_eq!(bench.outside.asked.borrow().last().map(String::as_str), Some("www.test"));
    assert!(bench.granted(1, "203.0.113.2") && bench.granted(2, "203.0.113.2"));
    bench.at(61);
    assert_eq!(bench.ask_of(1, 1, "www.test").from, CacheUse::Hit, "nobody waits");
    bench.background(61, 200);
    let names = bench.outside.asked.borrow().clone();
    assert_eq!(names.iter().filter(|name| *name == "once.test").count(), 1, "{names:?}");
    assert_eq!(names.iter().filter(|name| *name == "www.test").count(), 3, "used once more, refreshed once more");
}

#[test]
fn background_questions_pause_when_servers_dont_answer_and_go_on_when_they_do() {
    let mut bench = Bench::new(|settings| settings.poller = true, Caps::default());
    let names: Vec<String> = (0..40).map(|at| format!("n{at}.test")).collect();
    let texts: Vec<&str> = names.iter().map(String::as_str).collect();
    bench.served[0].rules.store(rules(&texts, &["*"]));
    bench.background(0, 9);
    let asked = bench.outside.asked.borrow().len();
    assert!((8..=20).contains(&asked), "{asked}");
    assert!(bench.proxy.background().figures(Purpose::Poller).held_back > 0);
    for name in &texts {
        bench.says(name, &["@ 60 A 203.0.113.1"]);
    }
    bench.background(10, 30);
    assert!(bench.granted(1, "203.0.113.1"));
}

#[test]
fn the_poller_asks_for_both_families_of_every_name_and_keeps_them_granted() {
    let mut bench = Bench::new(|settings| settings.poller = true, Caps::default());
    bench.served[0].rules.store(rules(&["a.test", "b.test", "*.pattern.test"], &["*"]));
    bench.says("a.test", &["@ 20 A 203.0.113.1"]);
    bench.says("b.test", &["@ 20 A 203.0.113.2"]);
    bench.background(0, 1);
    let mut asked = bench.outside.asked.borrow().clone();
    asked.sort();
    assert_eq!(asked, ["a.test", "a.test", "b.test", "b.test"]);
    assert!(bench.granted(1, "203.0.113.1") && bench.granted(1, "203.0.113.2"));
    assert!(!bench.granted(2, "203.0.113.1"), "its policy spells no name out");
    bench.says("a.test", &["@ 20 A 203.0.113.3"]);
    bench.background(1, 25);
    assert!(bench.granted(1, "203.0.113.3"));
    let figures = bench.proxy.background().figures(Purpose::Poller);
    assert_eq!(figures.failed, 0);
    assert!((6..=16).contains(&figures.answered), "{figures:?}");
    assert_eq!(bench.proxy.background().figures(Purpose::Prefetch), BackgroundFigures::default());
}

#[test]
fn background_questions_keep_to_their_rate() {
    let settings = |settings: &mut Settings| (settings.poller, settings.background_queries_per_second) = (true, 5);
    let mut bench = Bench::new(settings, Caps::default());
    let names: Vec<String> = (0..100).map(|at| format!("n{at}.test")).collect();
    let texts: Vec<&str> = names.iter().map(String::as_str).collect();
    bench.served[0].rules.store(rules(&texts, &["*"]));
    for name in &texts {
        bench.says(name, &["@ 600 A 203.0.113.1"]);
    }
    bench.background(0, 10);
    let asked = bench.outside.asked.borrow().len();
    assert!((50..=56).contains(&asked), "{asked}");
    bench.background(10, 50);
    assert_eq!(bench.outside.asked.borrow().len(), 200, "each name once in each family, then all is fresh");
}

#[derive(Clone, Debug)]
enum Step {
    Ask { worker: usize, endpoint: usize, name: usize },
    Later { millis: u64 },
    Says { name: usize, addresses: Vec<u8>, ttl: u32 },
    Sweep,
    Shorten { seconds: u64 },
    Reload { wide: bool },
    Background,
}

fn step() -> impl Strategy<Value = Step> {
    let says = (0..4usize, prop::collection::vec(1..12u8, 1..4), prop::sample::select(vec![0u32, 1, 2, 7, 30]));
    prop_oneof![
        6 => (0..2usize, 1..3usize, 0..4usize)
            .prop_map(|(worker, endpoint, name)| Step::Ask { worker, endpoint, name }),
        3 => (0..4_000u64).prop_map(|millis| Step::Later { millis }),
        2 => says.prop_map(|(name, addresses, ttl)| Step::Says { name, addresses, ttl }),
        1 => Just(Step::Sweep),
        1 => (1..20u64).prop_map(|seconds| Step::Shorten { seconds }),
        1 => any::<bool>().prop_map(|wide| Step::Reload { wide }),
        1 => Just(Step::Background),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_the_kernel_holds_what_a_reply_tells_and_for_as_long(
        steps in prop::collection::vec(step(), 1..120),
        min_ttl in 0..6u64,
        grace in 0..3u64,
    ) {
        let timing = Timing { min_ttl: Duration::from_secs(min_ttl), grace: Duration::from_secs(grace) };
        let caps = Caps { addresses_per_name: 3, ..Caps::default() };
        let mut bench = Bench::new(|settings| settings.timing = timing, caps);
        let names = ["a.test", "b.test", "c.test", "d.other"];
        for (at, name) in names.iter().enumerate() {
            bench.says(name, &[&format!("@ 5 A 203.0.113.{at}")]);
        }
        for step in steps {
            match step {
                Step::Ask { worker, endpoint, name } => drop(bench.ask_of(worker, endpoint, names[name])),
                Step::Later { millis } => NOW.set(NOW.get() + millis * 1_000_000),
                Step::Says { name, addresses, ttl } => {
                    let records: Vec<_> = addresses.iter().map(|last| format!("@ {ttl} A 203.0.113.{last}")).collect();
                    bench.says(names[name], &records.iter().map(String::as_str).collect::<Vec<_>>());
                }
                Step::Sweep => for served in &bench.served {
                    let mut table = served.table();
                    let plan = table.expire(now());
                    served.carry_out(&*bench.kernel, &mut table, plan).expect("a model takes all");
                },
                Step::Shorten { seconds } => for served in &bench.served {
                    let mut table = served.table();
                    let plan = table.shorten(Duration::from_secs(seconds), now());
                    served.carry_out(&*bench.kernel, &mut table, plan).expect("a model takes all");
                },
                Step::Reload { wide } => {
                    let served = &bench.served[0];
                    let new = rules(&[if wide { "**.test" } else { "a.test" }], &["*"]);
                    let mut table = served.table();
                    let regroup = table.regroup(&new, &[], now());
                    served.carry_out(&*bench.kernel, &mut table, regroup.widened).expect("a model takes all");
                    served.rules.store(new.clone());
                    served.carry_out(&*bench.kernel, &mut table, regroup.narrowed).expect("a model takes all");
                }
                Step::Background => {
                    let second = (NOW.get() - START) / SECOND;
                    bench.background(second, second + 1);
                }
            }
        }
    }
}

#[test]
fn an_answer_of_servers_that_were_changed_meanwhile_is_not_believed() {
    let mut bench = plain();
    bench.says("www.test", &["@ 60 A 203.0.113.1"]);
    // The resolver asked was nobody's choice; now the operator has others, and trusts those.
    let resolver = |trusted| [(LOCAL, Resolver::new(([198, 51, 100, 53], 53).into(), trusted))];
    let guard = || Guard::new(Vec::new(), Name::parse("cluster.local").expect("a name"));
    let settings = Settings { queries_per_second: 0, ..Settings::default() };
    let before = Directory::new(settings.clone(), guard(), bench.served.clone(), resolver(false));
    let mut after = Directory::new(settings, guard(), bench.served.clone(), resolver(false));
    after.routes.everywhere = Some(Route::to(([203, 0, 113, 9], 53).into()));
    bench.proxy.directory.store(Arc::new(before));
    let directory = bench.proxy.directory.clone();
    *bench.outside.meanwhile.borrow_mut() = Some(Box::new(move || directory.store(Arc::new(after))));
    assert_eq!(bench.ask_of(0, 1, "www.test").rcode, 2);
    assert!(!bench.granted(1, "203.0.113.1"));
    bench.gets(1, "www.test", "203.0.113.1", 60, CacheUse::Miss); // and so it is asked again, of those trusted now
}

#[test]
fn places_of_ttls_are_found_in_what_is_kept_and_in_what_leaves() {
    let sent = answer(b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x04test\0\0\x01\0\x01", &["@ 60 A 203.0.113.1"]);
    let places: Vec<_> = ttl_places(&Answer::parse(&sent).expect("an answer")).collect();
    assert_eq!(places, [(sent.len() - 10, 60)]);
}
