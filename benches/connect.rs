//! A client that connects the moment it has the reply: does the first SYN pass? And what 10 000 and 20 000 names cost in memory.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};

use serde_json::{Value, json};

use super::lab::process::{inside, spawn};
use super::world::{NAMES, World};
use super::{print, proc};

/// Attempts under way at a time, both endpoints together.
const CONCURRENT: u32 = 64;
/// As many of the control: most wait for nothing.
const CONCURRENT_CONTROL: u32 = 512;
/// The aim for resident memory.
const RSS_KIB: u64 = 64 * 1024;

pub fn measure() {
    let mut world = World::new();
    let mut server = Acceptor::start(&world);
    let namegate = world.start_namegate(&["dns.queries_per_second=0"]);
    let memory_at_start = (proc::rss_kib(namegate), proc::map_memory(namegate));

    let control = both(&world, "knock", 0, NAMES, CONCURRENT_CONTROL);
    let accepted_in_control = server.accepted();
    world.let_counters_settle();
    let dropped_in_control = world.dropped();
    let half = NAMES / 2;
    let first = both(&world, "ask", 0, half, CONCURRENT);
    let memory_at_half = (proc::rss_kib(namegate), proc::map_memory(namegate));
    let second = both(&world, "ask", half, half, CONCURRENT);
    world.let_counters_settle();
    let memory_at_end = (proc::rss_kib(namegate), proc::map_memory(namegate));

    let sum = |halves: &[&Value; 4], field: &str| halves.iter().filter_map(|part| part[field].as_u64()).sum::<u64>();
    let asked = [&first[0], &first[1], &second[0], &second[1]];
    let connected = sum(&asked, "connected_first_syn");
    let in_control =
        sum(&[&control[0], &control[1], &Value::Null, &Value::Null], "connected_first_syn") + accepted_in_control;
    print(
        "first_connect",
        "each of 20000 fresh names has an address of its own; two enforced endpoints, 64 attempts at a time, connect() right after the \
         reply, success without a SYN retransmit (TCP_INFO); control: the same addresses before anything was asked",
        Some((json!({"connected": NAMES, "control": 0}), connected == u64::from(NAMES) && in_control == 0)),
        json!({
            "connected": connected,
            "answered": sum(&asked, "answered"),
            "queries_sent_again": sum(&asked, "queries_sent_again"),
            "after_retransmit": sum(&asked, "connected_after_retransmit"),
            "accepted_by_server": server.accepted() - accepted_in_control,
            "control_connected": in_control,
            "endpoints": asked,
            "control": control,
            "packets_dropped": {"after_control": dropped_in_control, "at_end": world.dropped()},
            "syns_dropped_by_server": world.listen_drops(),
        }),
    );
    print(
        "memory",
        "VmRSS of namegate with two endpoints and default settings, and memlock of all its maps (fdinfo)",
        Some((json!({"rss_kib_at_10000_names": RSS_KIB}), memory_at_half.0 <= RSS_KIB)),
        json!({
            "rss_kib": {"start": memory_at_start.0, "names_10000": memory_at_half.0, "names_20000": memory_at_end.0},
            "maps": {"start": memory_at_start.1.1, "names_10000": memory_at_half.1.1, "names_20000": memory_at_end.1.1},
        }),
    );
}

/// Runs a client in both endpoints' namespaces at once, half of the names each; what each saw.
fn both(world: &World, kind: &str, first: u32, count: u32, concurrent: u32) -> [Value; 2] {
    let own = std::env::current_exe().expect("the path of this program");
    let (share, threads) = ((count / 2).to_string(), (concurrent / 2).to_string());
    let clients = [("a", first), ("b", first + count / 2)].map(|(pod, first)| {
        let mut command = inside(&world.namespace(pod), own.to_str().expect("a path in UTF-8"));
        command
            .args(["client", kind, &first.to_string(), &share, &threads])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        spawn(command).expect("a client starts")
    });
    clients.map(|client| {
        let output = client.wait_with_output().expect("a client ends");
        assert!(output.status.success(), "a client failed\n{}", world.log());
        serde_json::from_slice(&output.stdout).expect("a client writes JSON")
    })
}

/// The server outside, on port 443 of every address.
struct Acceptor {
    child: std::process::Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Acceptor {
    fn start(world: &World) -> Acceptor {
        let own = std::env::current_exe().expect("the path of this program");
        let mut command = inside(&world.namespace("out"), own.to_str().expect("a path in UTF-8"));
        command.args(["accept", "443"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = spawn(command).expect("the server starts");
        let (ask, answers) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut server = Acceptor { child, ask, answers: BufReader::new(answers) };
        assert_eq!(server.accepted(), 0);
        server
    }

    /// Connections accepted so far.
    fn accepted(&mut self) -> u64 {
        self.ask.write_all(b"\n").expect("the server reads");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the server answers");
        line.trim().parse().expect("a number")
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
