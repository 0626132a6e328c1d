//! How long things take: to attach, to restart, to take over, to revoke.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::crowd::{Crowd, Order, Out, Rhythm};
use super::lab::agent::{Pace, Paced, Question, Reach, Reply, Request};
use super::lab::clock::{now, wait_until};
use super::lab::world::{Family, Options};
use super::lab::{Daemon, Topology, World, snapshot};
use super::yard::{Cni, NAME, RED, Yard};
use super::{round, spread};

/// Interfaces that are attached, one after the other, in each order.
const PODS: u32 = 100;
/// From this number on pods are guarded.
const GUARDED: u32 = 1_000;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(60);
/// How long one sends; milliseconds.
const SENDS: u64 = 2_000;
const RESTARTS: usize = 10;
/// Between two queries that wait for namegate to be back.
const ASKED_EVERY: Duration = Duration::from_millis(5);
/// So long a query waits: one that was lost is no use.
const QUERY: Duration = Duration::from_millis(800);
const TAKE_OVERS: u32 = 5;
const PER_SECOND: u32 = 2_000;
const REVOCATIONS: usize = 10;
/// No figure here is near this.
const LIMIT: Duration = Duration::from_secs(10);

pub fn attach() -> Value {
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    let crowd = Crowd::new(&yard);
    let without = [(Order::ResultFirst, PODS), (Order::LinkFirst, 2 * PODS)]; // 0 is everybody's group
    let without = without.map(|(order, first)| one_by_one(&crowd, first, order, PODS / 4));
    let daemon = yard.start(&[]);
    let [result_first, link_first] = [(Order::ResultFirst, GUARDED), (Order::LinkFirst, GUARDED + PODS)]
        .map(|(order, first)| spread(one_by_one(&crowd, first, order, PODS)));
    drop(daemon);
    let without = spread(without.concat());
    json!({"result_first": result_first, "link_first": link_first, "without_namegate": without})
}

/// Milliseconds from each one's event to its first datagram outside.
fn one_by_one(crowd: &Crowd<'_>, first: u32, order: Order, count: u32) -> Vec<f64> {
    let capture = crowd.capture();
    let mut out = Out::default();
    let mut bursts = Vec::new();
    for number in 0..count {
        let group = first + number;
        let mut burst = crowd.burst(group, std::iter::once(group as usize), |_| RED);
        crowd.write_pods(&burst, true);
        std::thread::sleep(PAUSE); // it is scheduled, and the snapshot has been read
        crowd.appear(&mut burst, order, SENDS, Rhythm::Together);
        bursts.push(burst);
        out.add(&capture.drained(), |_| Some(RED));
    }
    let mut seen = Vec::new();
    for burst in &mut bursts {
        let event = crowd.seen(burst).first().copied().flatten().map(|seen| seen.event_ns);
        seen.push((burst.pods[0].name.clone(), event));
    }
    out.add(&capture.drained(), |_| Some(RED));
    for mut burst in bursts {
        crowd.vanish(&mut burst, Rhythm::Together).join().expect("it goes");
        crowd.remove_pods(&burst);
    }
    assert!(out.denied.is_empty() || first < GUARDED, "denied, and it got out: {:?}", out.denied);
    let waited =
        |(name, event): &(String, Option<u64>)| Some(out.first_ns.get(name)?.saturating_sub((*event)?) as f64 / 1e6);
    let waited: Vec<f64> = seen.iter().filter_map(waited).collect();
    assert!(waited.len() * 10 >= seen.len() * 9, "{} of {} pods sent nothing", seen.len() - waited.len(), seen.len());
    waited
}

pub fn restart() -> Value {
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    let crowd = Crowd::new(&yard);
    let pod = yard.appear(0, RED);
    let mut others = crowd.burst(7, 0..PODS as usize, |_| RED);
    crowd.write_pods(&others, true);
    crowd.appear(&mut others, Order::ResultFirst, 1, Rhythm::Together);
    crowd.is_there(&mut others);
    let mut daemon = Some(yard.start(&[]));
    yard.is_guarded_as(&pod, RED);
    let (mut answered, mut ready) = (Vec::new(), Vec::new());
    let agent = pod.agent();
    let ask = || {
        let question = Question {
            server: Family::V4.kube_dns(),
            name: NAME.into(),
            qtype: "A".into(),
            tcp: false,
            tls: None,
            edns: None,
            within_ms: QUERY.as_millis() as u64,
        };
        agent.ask_as(question).rcode == "NOERROR"
    };
    for _ in 0..RESTARTS {
        assert!(ask(), "it answers");
        if let Some(daemon) = daemon.take() {
            daemon.kill();
        }
        let start = now();
        let next = launch(&yard);
        let first = Mutex::new(None::<Duration>);
        std::thread::scope(|scope| {
            while first.lock().expect("no panic").is_none() && start.elapsed() < LIMIT {
                scope.spawn(|| {
                    if ask() {
                        first.lock().expect("no panic").get_or_insert_with(|| start.elapsed());
                    }
                });
                std::thread::sleep(ASKED_EVERY);
            }
        });
        answered.push(ms(first.into_inner().expect("no panic").expect("DNS comes back")));
        next.wait_ready();
        daemon = Some(next);
        // The queries above kept both cores busy until each had its answer: once more, for readiness alone.
        if let Some(daemon) = daemon.take() {
            daemon.kill();
        }
        let start = now();
        let next = launch(&yard);
        next.wait_ready();
        ready.push(ms(start.elapsed()));
        daemon = Some(next);
    }
    json!({"pods": PODS + 1, "first_answer": spread(answered), "ready": spread(ready)})
}

/// As [`Yard::start`], without waiting.
fn launch(yard: &Yard) -> Daemon {
    yard.launch(&[], &[])
}

/// A world of two pods, one of which may learn a name.
fn named(rules: &str) -> World {
    let world = World::new(Options { topology: Topology::Routed });
    let policy = snapshot::policy("payment-processor", rules);
    snapshot::with_policy(&world.directory.join("snapshot"), &policy);
    world
}

pub fn take_over() -> Value {
    let world = named("  - toFQDNs: [{matchName: one.example.net}]\n");
    for (name, last) in [("one.example.net", 101), ("*.fresh.example.org", 103)] {
        world.outside.say_addresses(name, &[Family::V4.outside(last), Family::V6.outside(last)], 300);
    }
    let burst = ["--set", "dns.queries_in_flight=8192"];
    let mut daemon = Daemon::start_quiet(&world, &burst);
    let (mut asked, mut lost, mut slowest) = (0, 0, Vec::new());
    for _ in 0..TAKE_OVERS {
        let pace = Pace {
            server: Family::V4.kube_dns(),
            same: "one.example.net.".into(),
            fresh: "n{}.fresh.example.org.".into(),
            per_second: PER_SECOND,
            for_ms: 3_000,
        };
        let asking = world.pay.begin(Request::Pace(pace));
        std::thread::sleep(Duration::from_millis(300));
        let next = Daemon::launch(&world, &[], &[&["--take-over"], &burst[..]].concat());
        next.wait_for_log("took over from the namegate that ran before");
        next.wait_ready();
        let old = std::mem::replace(&mut daemon, next);
        let paced = match asking.wait() {
            Reply::Paced(paced) => paced,
            other => panic!("{other:?}"),
        };
        drop(old);
        let Paced { asked: more, lost: gone, slowest_us } = paced;
        asked += more;
        lost += gone.len();
        slowest.push(slowest_us as f64 / 1000.0);
    }
    json!({"times": TAKE_OVERS, "asked": asked, "lost": lost, "slowest_answer_ms": spread(slowest)})
}

pub fn revoke() -> Value {
    const OPEN: &str = "  - toCIDR: [203.0.113.101/32]\n";
    const SHUT: &str = "  - toCIDR: [203.0.113.102/32]\n";
    let world = named(OPEN);
    let to = SocketAddr::new(Family::V4.outside(101), 443);
    world.outside.done(Request::ServeTcp { at: to });
    let _daemon = Daemon::start_quiet(&world, &[]);
    let put = |rules: &str| {
        let text = snapshot::policy("payment-processor", rules);
        snapshot::replace(&world.directory.join("snapshot/policy.yaml"), &text);
        now()
    };
    let connect = || match world.pay.call(Request::Connect { to, within_ms: 1_000 }) {
        Reply::Reached { reach, .. } => reach,
        other => panic!("{other:?}"),
    };
    let (mut refused, mut cut, mut opened) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..REVOCATIONS {
        let kept = world.pay.open(to).expect("it is allowed");
        let ended: Mutex<Option<Instant>> = Mutex::new(None);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let chatter = Request::Chatter { connection: kept, every_ms: 1, for_ms: LIMIT.as_millis() as u64 };
                if matches!(world.pay.call(chatter), Reply::Reached { reach: Reach::Refused | Reach::Ended, .. }) {
                    *ended.lock().expect("no panic") = Some(now());
                }
                over.store(true, Ordering::Relaxed);
            });
            std::thread::sleep(Duration::from_millis(200));
            assert!(!over.load(Ordering::Relaxed), "INVALID: it ended before");
            let start = put(SHUT);
            assert!(wait_for(|| connect() != Reach::Reached), "it stays open");
            refused.push(ms(start.elapsed()));
            assert!(wait_until(LIMIT, || over.load(Ordering::Relaxed)), "it goes on");
            let at = ended.lock().expect("no panic").expect("it ended with an error");
            cut.push(ms(at.saturating_duration_since(start)));
        });
        let start = put(OPEN);
        assert!(wait_for(|| connect() == Reach::Reached), "it stays shut");
        opened.push(ms(start.elapsed()));
        std::thread::sleep(Duration::from_millis(300));
    }
    json!({"new_connection_refused": spread(refused), "established_cut": spread(cut), "opened_again": spread(opened)})
}

/// Asks without a pause.
fn wait_for(done: impl Fn() -> bool) -> bool {
    let start = now();
    while start.elapsed() < LIMIT {
        if done() {
            return true;
        }
    }
    false
}

fn ms(time: Duration) -> f64 {
    round(time.as_secs_f64() * 1000.0)
}
