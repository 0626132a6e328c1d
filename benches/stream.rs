//! Throughput of one TCP stream out of a workload, with namegate on its veth and without, in turns.

use serde_json::{Value, json};

use super::world::{STREAM, World};
use super::{median, print, round};

const ROUNDS: usize = 7;
const SECONDS: &str = "2";

pub fn measure() {
    let mut world = World::new();
    world.start_namegate(&["dns.queries_per_second=0"]);
    world.start("out", &["iperf3", "-s", "-B", STREAM]);
    // One short run each to warm up, and to find the server listening.
    super::lab::clock::wait_until(std::time::Duration::from_secs(5), || {
        !world.output("out", &["ss", "-Hltn", "sport = :5201"]).is_empty()
    });
    let (mut with, mut without, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Who goes first alternates: a machine that grows busier during a round favours neither.
        let order = if round % 2 == 0 { ["a", "plain"] } else { ["plain", "a"] };
        let [first, second] = order.map(|pod| gbits(&world, pod));
        let (a, plain) = if round % 2 == 0 { (first, second) } else { (second, first) };
        with.push(a);
        without.push(plain);
        ratios.push(a / plain);
    }
    let ratio = median(&mut ratios);
    print(
        "stream_throughput",
        "iperf3, one TCP stream of 2 s from a workload to outside through the node: a veth with both programs, an open flow, and \
         a veth without namegate, 7 rounds in turns; ratio: median of the rounds' ratios",
        Some((json!({"ratio": 0.95}), ratio >= 0.95)),
        json!({
            "ratio": round(ratio, 3),
            "ratios": ratios.iter().map(|ratio| round(*ratio, 3)).collect::<Vec<_>>(),
            "with_gbit_s": round(median(&mut with), 2),
            "without_gbit_s": round(median(&mut without), 2),
        }),
    );
}

fn gbits(world: &World, pod: &str) -> f64 {
    let text = world.output(pod, &["iperf3", "-c", STREAM, "-t", SECONDS, "-J"]);
    let report: Value = serde_json::from_str(&text).expect("iperf3 writes JSON");
    report["end"]["sum_received"]["bits_per_second"].as_f64().expect("a rate") / 1e9
}
