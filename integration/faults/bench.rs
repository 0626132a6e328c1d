//! The bench: a world, the workload with its load, the canary outside, and namegate between them.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use super::canary::{Came, DENIED_NAME};
use super::helper::Helper;
use super::load::{self, FAMILIES, Seen};
use crate::lab::agent::{Request, Script};
use crate::lab::world::Options;
use crate::lab::{Daemon, Topology, World, clock, snapshot};

/// The port of `*.rush.example.net`, whose addresses are in 198.19.0.0/16.
pub const RUSH_PORT: u16 = 8443;
/// A restart that takes longer than this until DNS answers is a violation on any machine, not counting what it waited for a
/// core that others had. What we promise is a quarter of a second; the figures are printed.
const BACK: Duration = Duration::from_secs(2);
/// Within this a control must see everything arrive, and a load must stand.
const STANDS: Duration = Duration::from_secs(10);

/// What the workload may do; [`load::is_allowed`] says the same in other words.
const POLICY: &str = r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: payment-processor, namespace: payments}
spec:
  endpointSelector: {matchLabels: {app: payment-processor}}
  egress:
  - toEndpoints:
    - matchLabels: {k8s:io.kubernetes.pod.namespace: kube-system, k8s:k8s-app: kube-dns}
    toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules: {dns: [{matchPattern: "*.example.net"}, {matchPattern: "*.load.example.net"}, {matchPattern: "*.rush.example.net"}]}
  - toFQDNs: [{matchName: one.example.net}]
    toPorts: [{ports: [{port: "443", protocol: TCP}, {port: "4433", protocol: UDP}]}]
  - toFQDNs: [{matchPattern: "*.load.example.net"}]
    toPorts: [{ports: [{port: "443", protocol: TCP}]}]
  - toFQDNs: [{matchPattern: "*.rush.example.net"}]
    toPorts: [{ports: [{port: "8443", protocol: TCP}]}]
"#;

/// How one fault went.
#[derive(Default)]
pub struct Tally {
    pub runs: u32,
    pub violations: u32,
    /// The first few, in words.
    pub said: Vec<String>,
    /// From a start, or a wake-up, to the first answer; microseconds each.
    pub back_us: Vec<u64>,
    /// The same without what it waited for a core.
    pub back_own_us: Vec<u64>,
    /// The same for a name that has to be asked upstream, after an upstream came back.
    pub upstream_back_us: Vec<u64>,
    pub denied_attempts: u64,
    pub exchanges: u64,
    /// The longest that a connection waited for an echo, milliseconds.
    pub stall_ms: u64,
    /// What a reader should know: a number of runs and why, what was measured beside.
    pub notes: Vec<String>,
}

impl Tally {
    pub fn violate(&mut self, what: impl Into<String>) {
        self.violations += 1;
        if self.said.len() < 8 {
            self.said.push(format!("run {}: {}", self.runs, what.into()));
        }
    }

    /// A violation unless it holds.
    pub fn demand(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.violate(otherwise());
        }
    }

    fn leaks(&mut self, seen: &Seen, came: &Came) {
        for (what, times) in &came.leaked {
            self.violate(format!("{what} arrived outside, {times} times"));
        }
        seen.passed.iter().for_each(|what| self.violate(what.clone()));
    }

    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

/// What a fault takes away by its nature. A leak is never excused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Excused {
    Nothing,
    /// New connections; kept ones go on.
    New,
    /// New and kept connections: the interface, or the state that they are read by, is gone.
    Connections,
}

/// How much of it is done: all of it, or a slice for every test run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    Slice,
    All,
}

impl Size {
    /// So many runs, or so many in a slice.
    pub fn runs(self, all: u32, slice: u32) -> u32 {
        if self == Size::All { all } else { slice }
    }
}

/// Everything that a fault works on. Dropped whole.
pub struct Bench {
    // Before the world: they live in it.
    pub daemon: Option<Daemon>,
    load: Helper,
    canary: Helper,
    pub world: World,
    pub more: Vec<String>,
    random: u64,
}

impl Bench {
    /// Builds it. Before namegate starts, each denied attempt is seen to arrive: otherwise the whole fault is invalid.
    #[track_caller]
    pub fn new(more: &[&str]) -> Bench {
        Bench::prepared(more, |_| ())
    }

    /// The same; `prepare` does something to the world before namegate starts.
    #[track_caller]
    pub fn prepared(more: &[&str], prepare: impl FnOnce(&World)) -> Bench {
        let world = World::new(Options { topology: Topology::Routed });
        snapshot::with_policy(&world.directory.join("snapshot"), POLICY);
        serve_names(&world);
        let mut canary = Helper::start(&world.namespace("outside"), "canary");
        let mut load = Helper::start(&world.namespace("pay"), "load");
        control(&mut canary);
        // A connection that was half open when namegate came would be answered by its server a second later, and the
        // workload would answer that.
        let _: bool = load.ask("pause");
        prepare(&world);
        let more = more.iter().map(|word| (*word).to_owned()).collect();
        let mut bench = Bench { daemon: None, load, canary, world, more, random: clock::mono_ns() | 1 };
        bench.start();
        bench.daemon().wait_ready();
        bench.take();
        let _: bool = bench.load.ask("go");
        let mut coming_up = Tally::default();
        bench.wait_for_load(&mut coming_up);
        assert_eq!(coming_up.said, Vec::<String>::new(), "while the load was coming up");
        bench
    }

    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it runs")
    }

    /// Starts namegate and doesn't wait; the moment of the start.
    #[track_caller]
    pub fn start(&mut self) -> u64 {
        self.start_through(&[])
    }

    /// The same through another program ([`Daemon::launch`]).
    #[track_caller]
    pub fn start_through(&mut self, through: &[&str]) -> u64 {
        let more: Vec<&str> = self.more.iter().map(String::as_str).collect();
        let start = clock::mono_ns();
        self.daemon = Some(Daemon::launch(&self.world, through, &more));
        start
    }

    /// SIGKILL; nothing of it runs any more.
    pub fn kill(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    /// Starts it and measures how long DNS takes to be back.
    #[track_caller]
    pub fn restart(&mut self, tally: &mut Tally) {
        let start = self.start();
        self.back_from(start, Duration::ZERO, tally);
    }

    /// Waits for the first answer after `start`, which is now, and notes how long it took.
    pub fn back(&mut self, start: u64, tally: &mut Tally) {
        let before = self.waited_for_a_core();
        self.back_from(start, before, tally);
    }

    /// The same; at `start` it had waited for a core so long.
    pub fn back_from(&mut self, start: u64, before: Duration, tally: &mut Tally) {
        match self.first_answer("same", start, Duration::from_secs(10)) {
            Some(took) => {
                let own = took.saturating_sub(self.waited_for_a_core().saturating_sub(before));
                tally.demand(own <= BACK, || format!("DNS was back after {own:?} ({took:?}); {BACK:?} is allowed"));
                tally.back_us.push(took.as_micros() as u64);
                tally.back_own_us.push(own.as_micros() as u64);
            }
            None => {
                let log = self.daemon.as_ref().map_or_else(Vec::new, Daemon::log);
                tally.violate(format!("DNS is not back after 10 s; the log ends: {}", tail(&log)));
            }
        }
    }

    /// How long its main thread, which does all of a start, was ready to run and did not, since it began.
    fn waited_for_a_core(&self) -> Duration {
        let Some(daemon) = &self.daemon else { return Duration::ZERO };
        let text = fs::read_to_string(format!("/proc/{}/schedstat", daemon.pid())).unwrap_or_default();
        text.split(' ').nth(1).and_then(|ns| ns.parse().ok()).map_or(Duration::ZERO, Duration::from_nanos)
    }

    /// How long after `start` a query was answered: `new` for a name that nobody asked before, `same` for any.
    pub fn first_answer(&mut self, kind: &str, start: u64, limit: Duration) -> Option<Duration> {
        let mut first = None;
        clock::wait_until(limit, || {
            first = self.load.ask::<Option<u64>>(&format!("since {kind} {start}"));
            first.is_some()
        });
        first.map(|at| Duration::from_nanos(at - start))
    }

    /// Adds what happened since the last time to the tally.
    pub fn settle(&mut self, tally: &mut Tally, excused: Excused) {
        let (seen, came) = self.take();
        tally.leaks(&seen, &came);
        Bench::add(seen, tally, excused);
    }

    /// The same, but what was denied and passed is no violation: how many times that was.
    pub fn settle_but_leaks(&mut self, tally: &mut Tally, excused: Excused) -> u64 {
        let (seen, came) = self.take();
        let passed = seen.passed.len() as u64 + came.leaked.values().sum::<u64>();
        Bench::add(seen, tally, excused);
        passed
    }

    fn take(&mut self) -> (Seen, Came) {
        (self.load.ask("take"), self.canary.ask("take"))
    }

    fn add(seen: Seen, tally: &mut Tally, excused: Excused) {
        let died = seen.died.iter().filter(|_| excused != Excused::Connections);
        let failed = seen.failed.iter().filter(|_| excused == Excused::Nothing);
        for what in died.chain(failed) {
            tally.violate(what.clone());
        }
        if excused != Excused::Connections {
            tally.stall_ms = tally.stall_ms.max(seen.stall_ms);
        }
        tally.denied_attempts += seen.denied;
        tally.exchanges += seen.exchanged;
    }

    /// After the last run: everything must stand again, and stay so.
    pub fn finish(&mut self, tally: &mut Tally, excused: Excused) {
        self.settle(tally, excused);
        self.wait_for_load(tally);
        self.settle(tally, excused);
        let before = (tally.denied_attempts, tally.exchanges);
        sleep(Duration::from_millis(300));
        self.settle(tally, Excused::Nothing);
        let idle = before.0 == tally.denied_attempts || before.1 == tally.exchanges;
        tally.demand(!idle, || "the load does nothing any more: what was counted counts for nothing".into());
    }

    /// Waits until all connections are there and echo, and new ones come to be.
    #[track_caller]
    pub fn wait_for_load(&mut self, tally: &mut Tally) {
        let mut last = Seen::default();
        let stands = clock::wait_until(STANDS, || {
            sleep(Duration::from_millis(120));
            last = self.load.ask("take");
            let came: Came = self.canary.ask("take");
            // Leaks while it waits are no less leaks.
            tally.leaks(&last, &came);
            last.kept == 6 && last.waiting_ms < 100 && last.answered > 0 && last.opened > 0 && last.failed.is_empty()
        });
        let log = self.daemon.as_ref().map_or_else(Vec::new, Daemon::log);
        assert!(stands, "the load does not stand after {STANDS:?}: {last:?}; the log ends: {}", tail(&log));
    }

    /// A random number below `limit`.
    pub fn random(&mut self, limit: u64) -> u64 {
        // xorshift64: nothing depends on its quality.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    /// Sleeps for a random time, milliseconds at most.
    pub fn nap(&mut self, at_most_ms: u64) {
        let ms = self.random(at_most_ms);
        sleep(Duration::from_millis(ms));
    }

    pub fn policy_file(&self) -> PathBuf {
        self.world.directory.join("snapshot/policy.yaml")
    }

    pub fn state(&self) -> PathBuf {
        self.world.directory.join("state")
    }

    /// The policy as it is at the start.
    pub fn policy() -> &'static str {
        POLICY
    }

    /// Writes the policy and lets it be read.
    #[track_caller]
    pub fn write_policy(&self, text: &str) {
        fs::write(self.policy_file(), text).expect("a file can be written");
    }
}

/// The last lines of a log as one.
pub fn tail(log: &[String]) -> String {
    log[log.len().saturating_sub(4)..].join(" | ")
}

fn serve_names(world: &World) {
    let outside = &world.outside;
    outside.say_addresses("one.example.net", &FAMILIES.map(|family| family.outside(load::ONE)), 300);
    outside.say_addresses("*.load.example.net", &FAMILIES.map(|family| family.outside(load::FRESH)), 300);
    outside.say_addresses("denied.example.org", &FAMILIES.map(|family| family.outside(load::STRANGER)), 300);
    for family in FAMILIES {
        let base = family.pick("198.19.0.0", "2001:db8:19::");
        let records = vec![(String::new(), family.qtype().into(), format!("{base}+"))];
        outside.say("*.rush.example.net", family.qtype(), Script { records, ttl: 300, ..Script::default() });
        let any = family.pick("0.0.0.0", "::").parse().expect("an address");
        outside.done(Request::ServeTcp { at: SocketAddr::new(any, RUSH_PORT) });
        let at = |last: u8, port: u16| SocketAddr::new(family.outside(last), port);
        for (last, port) in [(load::ONE, load::TCP_PORT), (load::ONE, 5432), (load::STRANGER, load::TCP_PORT)] {
            outside.done(Request::ServeTcp { at: at(last, port) });
        }
        outside.done(Request::ServeUdp { at: at(load::ONE, load::UDP_PORT) });
        outside.done(Request::ServeUdp { at: at(load::STRANGER, load::UDP_PORT) });
    }
}

/// The control: nobody guards yet, so everything that is denied later arrives.
#[track_caller]
fn control(canary: &mut Helper) {
    let mut missing: Vec<String> = vec![DENIED_NAME.to_owned()];
    for family in FAMILIES {
        let at = |what: &str, (last, port): (u8, u16)| format!("{what} {} port {port}", family.outside(last));
        missing.extend(load::DENIED_TCP.map(|target| at("tcp", target)));
        missing.extend(load::DENIED_UDP.map(|target| at("udp", target)));
    }
    let came = clock::wait_until(STANDS, || {
        let came: Came = canary.ask("take");
        missing.retain(|what| !came.leaked.contains_key(what));
        missing.is_empty()
    });
    assert!(came, "INVALID: did not arrive though nobody guards: {missing:?}");
}
