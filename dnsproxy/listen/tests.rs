//! From socket to socket on loopback: real listeners, a scripted DNS server, and a model in place of the kernel.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock;
use crate::engine::answer::Answer;
use crate::engine::bits::Bits;
use crate::engine::endpoint::{EndpointId, PodRef};
use crate::engine::fqdn::Caps;
use crate::engine::grant::{GrantWrite, open_at};
use crate::engine::guard::Guard;
use crate::engine::name::Name;
use crate::engine::pattern::{Bare, Pattern, PatternTrie};
use crate::engine::port::PortBlock;
use crate::engine::query::Query;
use crate::engine::ruleset::{DnsRule, Protocol, RuleSet, Servers};
use crate::engine::verdict::{RuleRef, RuleText};
use crate::kernel::GrantStore;
use crate::kernel::KernelError;
use crate::observe::{Counted, Observer, Outcome, QueryRecord};
use crate::serve::Directory;
use crate::serve::cache::Cache;
use crate::serve::{RejectCode, Resolver, Served, Settings};
use crate::upstream::scripted::{Asked, Say, Scripted, answer, name_in, with};

use arc_swap::ArcSwap;

use super::*;

mod encrypted;
mod hostile;
mod policy;
mod transport;

/// The kernel's grants, and a switch that makes it refuse.
#[derive(Default)]
struct Model {
    rows: Mutex<BTreeMap<(EndpointId, IpAddr), GrantWrite>>,
    full: AtomicBool,
    slow: AtomicBool,
}

impl GrantStore for Model {
    fn install(&self, endpoint: EndpointId, writes: &[GrantWrite]) -> Result<(), KernelError> {
        if self.slow.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(30));
        }
        let mut rows = self.rows.lock().expect("the rows");
        for write in writes {
            if write.deletes() {
                rows.remove(&(endpoint, write.address));
            } else if self.full.load(Ordering::Relaxed) {
                return Err(KernelError::Full { map: "grants", rows: 0 });
            } else {
                rows.insert((endpoint, write.address), *write);
            }
        }
        Ok(())
    }
}

impl Model {
    /// The addresses that `endpoint` may reach now.
    fn open(&self, endpoint: u32) -> Vec<String> {
        let rows = self.rows.lock().expect("the rows");
        let mine =
            rows.iter().filter(|((id, _), row)| id.0 == endpoint && open_at(&row.slots, clock::mono()) != Bits::NONE);
        mine.map(|((_, address), _)| address.to_string()).collect()
    }
}

/// Every record, as it came.
#[derive(Default)]
struct Seen(Mutex<Vec<QueryRecord>>);

impl Observer for Seen {
    fn query(&self, _: &Counted, whole: &dyn Fn() -> QueryRecord) {
        self.0.lock().expect("the records").push(whole());
    }

    fn watches(&self) -> bool {
        true
    }
}

impl Seen {
    #[track_caller]
    fn last(&self) -> QueryRecord {
        self.0.lock().expect("the records").last().expect("a record").clone()
    }

    fn count(&self, reason: &str) -> usize {
        self.0.lock().expect("the records").iter().filter(|record| record.reason == reason).count()
    }
}

/// What varies between tests.
struct Setup {
    settings: Settings,
    trusted: bool,
    caps: Caps,
    rules: RuleSet,
    search: Vec<Name>,
    workers: usize,
    tls: Option<Tls>,
    cache: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            settings: Settings { upstream_timeout: Duration::from_millis(800), ..Settings::default() },
            trusted: true,
            caps: Caps::default(),
            rules: rules(&["**.test", "api.corp"], &["*"]),
            search: Vec::new(),
            workers: 1,
            tls: None,
            cache: false,
        }
    }
}

/// toFQDNs of these patterns, and a policy payments/wall whose `rules.dns` are those.
fn rules(names: &[&str], dns: &[&str]) -> RuleSet {
    let wall = RuleRef(Arc::new(RuleText {
        namespace: "payments".to_owned(),
        policy: "wall".to_owned(),
        ..RuleText::default()
    }));
    let mut selectors = PatternTrie::new(Bare::Valid);
    for pattern in names {
        selectors.insert(Pattern::pattern(pattern).expect("a pattern"), Bits::of(3), None);
    }
    let mut patterns = PatternTrie::new(Bare::Every);
    for pattern in dns {
        patterns.insert(Pattern::pattern(pattern).expect("a pattern"), (), None);
    }
    let rule = DnsRule {
        rule: wall.clone(),
        servers: Servers::Any,
        ports: vec![(Protocol::Udp, PortBlock::ANY), (Protocol::Tcp, PortBlock::ANY)],
        patterns: Arc::new(patterns),
        speaks_of_dns: true,
    };
    RuleSet {
        selected: true,
        deny_egress: true,
        deny_egress_by: vec![wall],
        names: Arc::new(selectors),
        dns: vec![rule],
        ..RuleSet::unselected()
    }
}

struct World {
    server: Scripted,
    kernel: Arc<Model>,
    seen: Arc<Seen>,
    directory: Arc<ArcSwap<Directory>>,
    served: Arc<Served>,
    proxy: Arc<Proxy>,
    listeners: Listeners,
}

impl World {
    /// Endpoint 1 at 127.0.0.1 and ::1, endpoint 2 at 127.0.0.2, and nobody at 127.0.0.3; all ask `server`.
    fn new(setup: Setup, script: impl Fn(&Asked) -> Vec<Say> + Send + Sync + 'static) -> World {
        let server = Scripted::start(script);
        let (kernel, seen) = (Arc::new(Model::default()), Arc::new(Seen::default()));
        let rules = Arc::new(setup.rules);
        let endpoint = |id: u32, addresses: &[&str]| {
            let pod = PodRef { namespace: "payments".to_owned(), name: format!("pod-{id}") };
            let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
            let served = Served::new(EndpointId(id), pod, addresses, 1, rules.clone(), setup.caps);
            Arc::new(Served { search: setup.search.clone(), ..served })
        };
        let served = endpoint(1, &["127.0.0.1", "::1"]);
        let guard =
            Guard::new(vec!["203.0.113.1".parse().expect("an address")], Name::parse("cluster.local").expect("a name"));
        let resolver = Resolver::new(server.address, setup.trusted);
        let directory = Arc::new(ArcSwap::from_pointee(Directory::new(
            setup.settings,
            guard,
            [served.clone(), endpoint(2, &["127.0.0.2"])],
            ["127.0.0.1", "::1"].map(|local| (local.parse().expect("an address"), resolver.clone())),
        )));
        let options = Options { port: 0, workers: setup.workers, tls: setup.tls, ..Options::default() };
        let cache = setup.cache.then(|| Arc::new(Cache::new(1 << 20)));
        let proxy = Arc::new(Proxy::new(directory.clone(), kernel.clone(), seen.clone(), cache));
        let listeners = start(&options, proxy.clone()).expect("listeners");
        World { server, kernel, seen, directory, served, proxy, listeners }
    }

    /// A socket of the endpoint at `address`, connected to the proxy at `local`.
    fn client(&self, address: &str, local: &str) -> UdpSocket {
        let client = UdpSocket::bind((address, 0)).expect("a socket");
        client.connect((local, self.listeners.port())).expect("connected");
        client.set_read_timeout(Some(Duration::from_secs(3))).expect("the option");
        client
    }

    /// Sends a message as endpoint 1 and takes the reply.
    #[track_caller]
    fn exchange(&self, message: &[u8]) -> Vec<u8> {
        let client = self.client("127.0.0.1", "127.0.0.1");
        client.send(message).expect("sent");
        let mut buffer = vec![0; 4096];
        let length = client.recv(&mut buffer).expect("a reply");
        buffer.truncate(length);
        buffer
    }

    /// Sends a message that gets no reply.
    #[track_caller]
    fn is_ignored(&self, message: &[u8], from: &str, local: &str) {
        let client = self.client(from, local);
        client.set_read_timeout(Some(Duration::from_millis(150))).expect("the option");
        client.send(message).expect("sent");
        assert!(client.recv(&mut [0; 4096]).is_err(), "no reply to {from} at {local}");
    }

    /// Asks as endpoint 1 with EDNS; the code, the addresses in the answer, and the extended error.
    #[track_caller]
    fn asks(&self, name: &str, qtype: u16) -> (u16, Vec<String>, Option<(u16, String)>) {
        understood(&self.exchange(&query(name, qtype, Some(1232))))
    }

    /// Asks for addresses and expects these, with no error.
    #[track_caller]
    fn resolves(&self, name: &str, addresses: &[&str]) {
        let (rcode, found, _) = self.asks(name, 1);
        assert_eq!((rcode, found), (0, addresses.iter().map(ToString::to_string).collect()), "{name}");
    }

    /// Asks for addresses and expects none, with this code and extended error.
    #[track_caller]
    fn fails(&self, name: &str, rcode: u16, ede: u16, text: &str) {
        let (found, addresses, error) = self.asks(name, 1);
        assert_eq!((found, addresses.len()), (rcode, 0), "{name}: {error:?}");
        let (code, said) = error.expect("an extended error");
        assert_eq!(code, ede, "{said}");
        assert!(said.contains(text), "{said:?} tells {text:?}");
    }
}

/// A query, with RD set.
fn query(name: &str, qtype: u16, edns: Option<u16>) -> Vec<u8> {
    let mut octets = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    octets.extend(Name::parse(name).expect("a name").as_wire());
    octets.extend(qtype.to_be_bytes());
    octets.extend([0, 1]);
    if let Some(payload) = edns {
        octets[11] = 1;
        octets.extend(b"\0\0\x29");
        octets.extend(payload.to_be_bytes());
        octets.extend([0; 6]);
    }
    octets
}

/// A reply's code, the addresses in its answer section, and its extended error.
#[track_caller]
fn understood(reply: &[u8]) -> (u16, Vec<String>, Option<(u16, String)>) {
    let answer = Answer::parse(reply).expect("a reply");
    assert_eq!(reply[..2], [0x12, 0x34]);
    let mut options = answer.opt.map_or(&[][..], |(start, end)| &reply[start + 11..end]);
    let mut ede = None;
    while let [high, low, first, second, rest @ ..] = options {
        let (value, behind) = rest.split_at(usize::from(u16::from_be_bytes([*first, *second])));
        if u16::from_be_bytes([*high, *low]) == 15 {
            ede = Some((u16::from_be_bytes([value[0], value[1]]), String::from_utf8_lossy(&value[2..]).into_owned()));
        }
        options = behind;
    }
    (answer.rcode(), answer.addresses().map(|address| address.to_string()).collect(), ede)
}

/// Says this to everything.
fn always(records: &'static [&'static str]) -> impl Fn(&Asked) -> Vec<Say> {
    move |asked| vec![Say::Reply(answer(&asked.octets, records))]
}
