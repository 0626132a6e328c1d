//! Many pods that come and go: none sends before its policy, and none leaves anything behind.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};

use super::yard::{BLUE, Cni, Colour, Pod, RED, Yard};
use crate::lab::agent::{Request, hex};
use crate::lab::frame::{ethernet, ethertype, ip, udp};
use crate::lab::process::ip_batch;
use crate::lab::world::{FAMILIES, Family, LAN_MAC, NODE_MAC};
use crate::lab::{Daemon, Topology, clock, files_below};

/// Pods at a time.
const PLACES: usize = 5;
/// How long pods come and go; seconds.
const SECONDS: u64 = 6;
/// How long one is there at most, and begins to send before it is; milliseconds.
const STAY: u64 = 700;

pub fn trials() -> Vec<Trial> {
    [("routed", Topology::ProxyArp, Cni::Calico), ("bridged", Topology::Bridged, Cni::Flannel)]
        .into_iter()
        .map(|(name, topology, cni)| {
            let name = format!("discovery::churn::{name}_pods_come_and_go_and_leave_nothing_behind");
            Trial::test(name, move || churn(&Yard::new(topology, cni)))
        })
        .chain(super::bursts::trials())
        .collect()
}

fn churn(yard: &Yard) -> Result<(), Failed> {
    let places: Vec<Pod> = (0..PLACES).map(|number| yard.pod(number, RED)).collect();
    let control = Round::play(yard, &places, 0);
    if control.denied == 0 {
        return Err("INVALID: nothing got out that would be denied".into());
    }
    let daemon = yard.start(&[]);
    let first = Round::play(yard, &places, 1);
    assert_eq!(first.denied, 0, "denied datagrams that got out");
    let before = Left::settled(yard, &daemon);
    let start = clock::now();
    let (mut pods, mut silent, mut waited) = (0, 0, [Vec::new(), Vec::new()]);
    for number in 2.. {
        if start.elapsed() > Duration::from_secs(SECONDS) {
            break;
        }
        let round = Round::play(yard, &places, number);
        if round.denied > 0 {
            return Err(format!("round {number}: {} denied datagrams got out", round.denied).into());
        }
        pods += PLACES;
        silent += round.waited.iter().filter(|waited| waited.is_none()).count();
        waited[number as usize % 2].extend(round.waited.into_iter().flatten());
    }
    eprintln!("{pods} pods; {silent} not in time; from the CNI's file to the first datagram:");
    for (waited, when) in waited.iter_mut().zip(["at once", "200 ms after the interface"]) {
        waited.sort_unstable();
        let at = |part: usize| waited.get((waited.len() * part / 100).min(waited.len().saturating_sub(1))).copied();
        eprintln!("  {when}: median {:?}, 99 % {:?}, most {:?}", at(50), at(99), waited.last());
    }
    // Some may have had too little time on a busy machine: most must have come to pass.
    assert!(silent * 10 <= pods, "{silent} of {pods} pods sent nothing that policy allows");
    let after = Left::settled(yard, &daemon);
    assert_eq!(before, after, "what is left of {pods} pods");
    Ok(())
}

/// A pod at each place, once, red and blue in turn.
struct Round {
    denied: u64,
    /// From the CNI's file to the first allowed datagram outside, for each pod.
    waited: Vec<Option<Duration>>,
}

impl Round {
    #[track_caller]
    fn play(yard: &Yard, places: &[Pod], number: u32) -> Round {
        let colour = |place: usize| if (place + number as usize).is_multiple_of(2) { RED } else { BLUE };
        let pods: Vec<Pod> = places
            .iter()
            .enumerate()
            .map(|(place, pod)| yard.renamed(pod, &format!("pod-{place}-{number}"), colour(place)))
            .collect();
        pods.iter().for_each(|pod| yard.write_pod(pod, number.is_multiple_of(3)));
        std::thread::sleep(Duration::from_millis(50)); // scheduled, and its image is there
        let capture = yard.world.outside.capture(if yard.is_bridged() { "lan0" } else { "eth0" });
        let sending: Vec<_> = pods.iter().map(|pod| pod.agent().begin(hammer(yard, pod))).collect();
        std::thread::sleep(Duration::from_millis(20));
        let plugging: String = pods.iter().map(|pod| yard.plugging(pod)).collect();
        ip_batch(&yard.world.namespace("node"), &plugging);
        // A CNI writes its result down when all its plugins have done: at once, or some time after the interface is there.
        std::thread::sleep(Duration::from_millis(if number.is_multiple_of(2) { 0 } else { 200 }));
        let written: Vec<u64> = pods
            .iter()
            .map(|pod| {
                yard.write_cache(pod);
                clock::wall_ns()
            })
            .collect();
        sending.into_iter().for_each(|pending| drop(pending.wait()));
        let frames = capture.frames();
        let unplugging: String = pods.iter().map(|pod| format!("link del {}\n", pod.host)).collect();
        ip_batch(&yard.world.namespace("node"), &unplugging);
        for pod in &pods {
            fs::remove_file(yard.cache_file(pod, "eth0")).expect("it is there");
            yard.remove_pod(&pod.name);
        }
        let mut round = Round { denied: 0, waited: vec![None; pods.len()] };
        for frame in frames.iter().filter(|frame| !frame.outgoing) {
            let octets = frame.octets();
            let holds = |mark: &str| octets.windows(mark.len()).any(|window| window == mark.as_bytes());
            for ((pod, written), waited) in pods.iter().zip(&written).zip(&mut round.waited) {
                if holds(&mark(pod, pod.colour.other())) {
                    round.denied += 1;
                } else if waited.is_none() && holds(&mark(pod, pod.colour)) {
                    *waited = Some(Duration::from_nanos(frame.wall_ns.saturating_sub(*written)));
                }
            }
        }
        round
    }
}

/// What a pod's datagrams carry.
fn mark(pod: &Pod, to: Colour) -> String {
    format!("[{} to {}]", pod.name, to.word())
}

/// A pod that sends to both addresses, over both families, from its interface's first moment on.
fn hammer(yard: &Yard, pod: &Pod) -> Request {
    let next_hop = if yard.is_bridged() { LAN_MAC } else { NODE_MAC };
    let frame = |family: Family, colour: Colour| {
        let (from, to) = (pod.address(family), family.outside(colour.0));
        let packet = ip(from, to, 17, &udp((from, 4_000), (to, 9), mark(pod, colour).as_bytes()));
        hex(&ethernet(next_hop, &pod.mac, ethertype(from), &packet))
    };
    let frames = [RED, BLUE].into_iter().flat_map(|colour| FAMILIES.map(|family| frame(family, colour))).collect();
    Request::Hammer { interface: "eth0".into(), frames, for_ms: STAY, pause_us: 1_000 }
}

/// Everything that could be left of a pod.
#[derive(PartialEq, Debug)]
pub struct Left {
    pins: usize,
    /// Rows of the kernel's tables, but for flows, which the kernel counts by itself.
    rows: BTreeMap<String, u64>,
    endpoints: usize,
    unknown: usize,
    guarded: u64,
    /// Endpoints in the state, and files of names.
    state: usize,
    names: usize,
    descriptors: usize,
}

impl Left {
    /// What is there once everything has had its time.
    pub fn settled(yard: &Yard, daemon: &Daemon) -> Left {
        let mut last = Left::now(yard, daemon);
        for _ in 0..30 {
            std::thread::sleep(Duration::from_secs(2));
            let now = Left::now(yard, daemon);
            // Files of names are removed by a thread that is at rest most of the time, more so on a slow disk.
            if now == last && now.names <= now.state {
                break;
            }
            last = now;
        }
        last
    }

    fn now(yard: &Yard, daemon: &Daemon) -> Left {
        let status = yard.status();
        let rows = status["maps"].as_array().into_iter().flatten();
        let state = fs::read_to_string(yard.world.directory.join("state/state.json")).unwrap_or_default();
        let state: serde_json::Value =
            serde_json::from_str(state.split_once('\n').map_or("", |(_, body)| body)).unwrap_or_default();
        Left {
            pins: files_below(&yard.world.directory.join("bpf/namegate")).len(),
            rows: rows.filter_map(|row| Some((row["name"].as_str()?.to_owned(), row["rows"].as_u64()?))).collect(),
            endpoints: status["endpoints"].as_array().map_or(0, Vec::len),
            unknown: status["unknown"].as_array().map_or(0, Vec::len),
            guarded: status["floor"]["guarded"].as_u64().unwrap_or_default(),
            state: state["endpoints"].as_object().map_or(usize::MAX, serde_json::Map::len),
            names: files_below(&yard.world.directory.join("state/names")).len(),
            descriptors: fs::read_dir(format!("/proc/{}/fd", daemon.pid())).map_or(0, Iterator::count),
        }
    }
}
