//! A hundred pods a second that appear, and a hundred that disappear: none sends before its policy, and none leaves anything
//! behind.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use super::churn::Left;
use super::crowd::{Burst, Crowd, Order, Out, Rhythm, sleep_until};
use super::yard::{BLUE, Cni, RED, Yard};
use crate::lab::{Topology, clock};

/// Ten bursts of ten a second.
const AT_ONCE: usize = 10;
const EVERY: Duration = Duration::from_millis(100);
/// So many bursts are there at a time.
const STAY: usize = 10;
/// So many bursts ahead the snapshot knows of pods: a pod is scheduled, and its image pulled, before it is there.
const AHEAD: usize = 5;
/// How long that goes on in every test run, seconds, routed with one way to attach and bridged with the other. This variable
/// asks for so many seconds of all four.
const SECONDS: u64 = 3;
const MORE: &str = "CHURN_SECONDS";
/// How long each pod sends; milliseconds.
const SENDS: u64 = 900;
/// Numbers of pods that are in use: none is used again before its pod is long gone.
const PLACES: usize = AT_ONCE * STAY * 20;

/// One each tenth of what a burst of them takes.
const EVENLY: Rhythm = Rhythm::Every(Duration::from_millis(EVERY.as_millis() as u64 / AT_ONCE as u64));

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, topology, cni) in
        [("routed", Topology::ProxyArp, Cni::Calico), ("bridged", Topology::Bridged, Cni::Flannel)]
    {
        for attach in ["auto", "clsact"] {
            for (manner, rhythm) in [("in_bursts", Rhythm::Together), ("evenly", EVENLY)] {
                let always = rhythm == Rhythm::Together && (name == "routed") == (attach == "auto");
                if always || asked_for().is_some() {
                    let words = format!("{name}, {attach}, {manner}");
                    let title = format!(
                        "discovery::churn::a_hundred_{name}_pods_a_second_{manner}_leave_nothing_behind_with_{attach}"
                    );
                    trials.push(Trial::test(title, move || play(&words, &Yard::new(topology, cni), attach, rhythm)));
                }
            }
        }
    }
    trials
}

fn asked_for() -> Option<u64> {
    std::env::var(MORE).ok()?.parse().ok()
}

fn play(name: &str, yard: &Yard, attach: &str, rhythm: Rhythm) -> Result<(), Failed> {
    let crowd = Crowd::new(yard);
    let control = Churn::run(&crowd, 1_000_000, Duration::from_millis(300), rhythm);
    if control.out.denied.is_empty() || control.waited.values().all(Vec::is_empty) {
        return Err("INVALID: nothing got out though nobody guards".into());
    }
    let daemon = yard.start(&["--set", &format!("enforcement.attach={attach}")]);
    let first = Churn::run(&crowd, 2_000_000, Duration::from_millis(300), rhythm);
    assert!(first.out.denied.is_empty(), "denied datagrams that got out: {:?}", first.out.denied);
    let before = Left::settled(yard, &daemon);
    let churn = Churn::run(&crowd, 3_000_000, Duration::from_secs(asked_for().unwrap_or(SECONDS)), rhythm);
    println!("{}", churn.told(name, &control));
    assert!(churn.out.denied.is_empty(), "denied datagrams that got out: {:?}", churn.out.denied);
    assert!(churn.sent > 0, "INVALID: nothing was sent");
    // How many had their turn in the second that each was there is a figure: TCX takes four grace periods of RCU for each, under
    // the lock of all interfaces. But whoever comes next has it.
    let next = yard.appear(0, RED);
    yard.is_guarded_as(&next, RED);
    yard.vanish(next);
    let after = Left::settled(yard, &daemon);
    assert_eq!(before, after, "what is left of {} pods", churn.pods);
    Ok(())
}

#[derive(Default)]
struct Churn {
    out: Out,
    pods: usize,
    /// Pods of which nothing that policy allows got out.
    silent: usize,
    sent: u64,
    /// By order: from the interface, or the CNI's result, to the first allowed datagram outside.
    waited: BTreeMap<&'static str, Vec<Duration>>,
    took: Duration,
}

impl Churn {
    /// `first` is the number of the first burst: no two runs have pods of the same name.
    #[track_caller]
    fn run(crowd: &Crowd<'_>, first: u32, length: Duration, rhythm: Rhythm) -> Churn {
        let make = |number: usize| {
            let numbers = (0..AT_ONCE).map(|place| (number * AT_ONCE + place) % PLACES);
            crowd.burst(first + number as u32, numbers, |pod| if pod.is_multiple_of(2) { RED } else { BLUE })
        };
        let mut out = Out::default();
        let (mut known, mut there) = (VecDeque::<(usize, Burst)>::new(), VecDeque::<(usize, Burst)>::new());
        let (mut colours, mut seen, mut going) = (BTreeMap::new(), Vec::new(), Vec::new());
        let bursts = (length.as_millis() / EVERY.as_millis()) as usize;
        let capture = crowd.capture();
        let start = clock::now();
        for step in 0..bursts + AHEAD + STAY {
            sleep_until(start, EVERY * step as u32);
            if step < bursts {
                let burst = make(step);
                colours.extend(burst.pods.iter().map(|pod| (pod.name.clone(), pod.colour)));
                crowd.write_pods(&burst, step.is_multiple_of(3));
                known.push_back((step, burst));
            }
            if step >= AHEAD
                && let Some((number, mut burst)) = known.pop_front()
            {
                crowd.appear(&mut burst, order(number), SENDS, rhythm);
                there.push_back((number, burst));
            }
            if step >= AHEAD + STAY
                && let Some((number, mut burst)) = there.pop_front()
            {
                let names = burst.pods.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>();
                let each = crowd.seen(&mut burst);
                seen.extend(names.into_iter().zip(each).map(|(name, seen)| (number, name, seen)));
                going.push(crowd.vanish(&mut burst, rhythm));
                crowd.remove_pods(&burst);
            }
            out.add(&capture.drained(), |name| colours.get(name).copied());
        }
        let took = start.elapsed();
        going.into_iter().for_each(|gone| gone.join().expect("they go"));
        let mut churn = Churn { out, pods: seen.len(), took, ..Churn::default() };
        for (number, name, seen) in seen {
            churn.sent += seen.map_or(0, |seen| seen.sent);
            let first = churn.out.first_ns.get(&name);
            let Some((seen, first)) = seen.zip(first) else {
                churn.silent += 1;
                continue;
            };
            let word = if order(number) == Order::ResultFirst { "result_first" } else { "link_first" };
            let waited = Duration::from_nanos(first.saturating_sub(seen.event_ns));
            churn.waited.entry(word).or_default().push(waited);
        }
        churn.waited.values_mut().for_each(|waited| waited.sort_unstable());
        churn
    }

    fn told(&self, name: &str, control: &Churn) -> Value {
        json!({
            "churn": name,
            "pods": self.pods,
            "pods_per_second": (self.pods as f64 / self.took.saturating_sub(EVERY * (AHEAD + STAY) as u32).as_secs_f64()).round(),
            "denied_frames_out": self.out.denied.len(),
            "frames_sent": self.sent,
            "silent": self.silent,
            "event_to_first_datagram_ms": self.spread(),
            "without_namegate_ms": control.spread(),
        })
    }

    fn spread(&self) -> Value {
        let ms = |waited: &[Duration], share: f64| {
            let place = (waited.len() as f64 * share).ceil() as usize;
            waited.get(place.max(1) - 1).map(|waited| waited.as_micros() as f64 / 1000.0)
        };
        let of =
            |waited: &Vec<Duration>| json!({"p50": ms(waited, 0.5), "p99": ms(waited, 0.99), "max": ms(waited, 1.0)});
        self.waited
            .iter()
            .map(|(order, waited)| ((*order).to_owned(), of(waited)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

fn order(number: usize) -> Order {
    if number.is_multiple_of(2) { Order::ResultFirst } else { Order::LinkFirst }
}
