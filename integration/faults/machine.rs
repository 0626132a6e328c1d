//! What happens to the machine: descriptors, memory and tables run out, interfaces come and go, the machine sleeps.

use std::fs;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use super::Fault;
use super::bench::{Bench, Excused, RUSH_PORT, Size, Tally};
use super::load::FAMILIES;
use crate::lab::agent::Rush;
use crate::lab::clock;
use crate::lab::process::{guard, ip_batch};
use crate::lab::world::PODS;

pub const FAULTS: [Fault; 10] = [
    ("descriptors_run_out", descriptors_run_out),
    ("started_with_few_descriptors", few_descriptors),
    ("started_with_little_memory", little_memory),
    ("tables_full", tables_full),
    ("slept_an_hour_while_it_was_dead", slept),
    ("interface_renamed", interface_renamed),
    ("interface_renamed_and_replaced", interface_renamed_and_replaced),
    ("interfaces_exchange_names", interfaces_exchange_names),
    ("interface_moved_to_another_namespace", interface_moved),
    ("interface_deleted_and_made_again", interface_made_again),
];

fn descriptors_run_out(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    for _ in 0..size.runs(20, 2) {
        tally.runs += 1;
        let pid = bench.daemon().pid();
        // It has more than three, so not one more can be opened.
        let before = limit_descriptors(pid, None);
        limit_descriptors(pid, Some(libc::rlimit { rlim_cur: 3, ..before }));
        sleep(Duration::from_millis(500));
        let over = clock::mono_ns();
        limit_descriptors(pid, Some(before));
        bench.back(over, tally);
        match bench.first_answer("new", over, Duration::from_secs(10)) {
            Some(took) => tally.upstream_back_us.push(took.as_micros() as u64),
            None => tally.violate("a new name is not answered 10 s after there were descriptors again"),
        }
        bench.settle(tally, Excused::Nothing);
    }
    bench.daemon().wait_ready();
    bench.finish(tally, Excused::Nothing);
}

/// Sets the limit of a child of ours, if one is given; what it was.
fn limit_descriptors(pid: u32, limit: Option<libc::rlimit>) -> libc::rlimit {
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let new = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both structures are valid for the call, or null.
    let done = unsafe { libc::prlimit(pid as i32, libc::RLIMIT_NOFILE, new, &mut before) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    before
}

/// With so few it may leave with an error, or run; it may not open anything or cut anyone.
fn few_descriptors(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    for run in 0..size.runs(20, 2) {
        tally.runs += 1;
        bench.kill();
        let limit = 4 + u64::from(run) * 4 + bench.random(4);
        bench.start_through(&["prlimit", &format!("--nofile={limit}:{limit}")]);
        bench.daemon.as_mut().expect("it was started").ends_within(Duration::from_millis(400));
        bench.kill();
        bench.restart(tally);
        bench.settle(tally, Excused::Nothing);
    }
    bench.finish(tally, Excused::Nothing);
}

/// The kernel kills it at some point of its start, or a little later.
fn little_memory(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    let group = guard::memory_group(&bench.world.prefix);
    if let Err(error) = fs::create_dir(&group) {
        tally.note(format!("not done: no memory controller of cgroup v1 here ({error})"));
        return;
    }
    let into = format!("echo $$ > {}/tasks && exec \"$0\" \"$@\"", group.display());
    let mut ended = 0;
    for run in 0..size.runs(20, 2) {
        tally.runs += 1;
        bench.kill();
        let limit = (2 << 20) + (u64::from(run) << 20) + bench.random(1 << 20);
        fs::write(group.join("memory.limit_in_bytes"), limit.to_string()).expect("a limit can be set");
        bench.start_through(&["sh", "-c", &into]);
        let daemon = bench.daemon.as_mut().expect("it was started");
        ended += u32::from(daemon.ends_within(Duration::from_millis(600)).is_some());
        bench.kill();
        bench.restart(tally);
        bench.settle(tally, Excused::Nothing);
    }
    tally.note(format!("{ended} of {} ended for want of memory", tally.runs));
    tally.demand(ended > 0, || "INVALID: none ended for want of memory".into());
    bench.finish(tally, Excused::Nothing);
    bench.kill();
    fs::remove_dir(&group).expect("nobody is in the group any more");
}

/// Names and connections past the budgets: what there was before goes on.
fn tables_full(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[
        "--set",
        "enforcement.grants_per_endpoint=64",
        "--set",
        "enforcement.flows_per_endpoint=1024",
        "--set",
        "enforcement.max_flows=1024",
        "--set",
        "enforcement.max_grants=1024",
        "--set",
        "enforcement.closed_timeout=1s",
    ]);
    for run in 0..size.runs(3, 1) {
        tally.runs += 1;
        for (number, family) in FAMILIES.into_iter().enumerate() {
            let rush = Rush {
                server: family.kube_dns(),
                pattern: "n{}.rush.example.net.".into(),
                first: 1 + run * 1000,
                count: 200,
                port: RUSH_PORT,
                at_once: 32,
                unasked_base: None,
                within_ms: 300,
            };
            let rushed = bench.world.pay.rush(rush);
            tally.demand(rushed.connected < 100, || format!("{} names were granted; 64 are allowed", rushed.connected));
            if (run, number) == (0, 0) {
                tally
                    .demand(rushed.connected > 10, || format!("INVALID: only {} names were granted", rushed.connected));
            }
        }
        // More connections to what is granted than there is room for.
        let to: Vec<SocketAddr> = (1..=20).map(|last| SocketAddr::from(([198, 19, 0, last], RUSH_PORT))).collect();
        let mut held = Vec::new();
        for round in 0..70 {
            let opened: Vec<u32> = to.iter().filter_map(|to| bench.world.pay.open(*to).ok()).collect();
            if opened.is_empty() && round > 10 {
                break;
            }
            held.extend(opened);
        }
        tally.note(format!("{} connections were held", held.len()));
        tally.demand(held.len() < 1024, || format!("{} connections are open; 1024 flows are allowed", held.len()));
        bench.settle(tally, Excused::New);
        for connection in held {
            bench.world.pay.done(crate::lab::agent::Request::Close { connection });
        }
        bench.wait_for_load(tally);
    }
    tally.note("3 times: each fills the tables and waits until they are swept");
    bench.finish(tally, Excused::New);
}

/// Deadlines are on a clock that stops in suspend. A child whose boot clock is an hour ahead finds what a machine finds that
/// slept: all grants are over. What is connected stays so.
fn slept(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    for _ in 0..size.runs(10, 1) {
        tally.runs += 1;
        bench.kill();
        let start = bench.start_through(&["unshare", "--time", "--boottime", "3600"]);
        bench.back(start, tally);
        bench.daemon().wait_ready();
        bench.settle(tally, Excused::New);
        bench.kill();
        bench.restart(tally);
        bench.settle(tally, Excused::New);
    }
    tally.note("10 times: each is two starts");
    bench.finish(tally, Excused::New);
}

/// While it runs, its workload goes on as before; when it starts and finds another name, the workload is shut.
fn interface_renamed(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    let host = PODS[0].host;
    for run in 0..size.runs(20, 2) {
        tally.runs += 1;
        let dead = run % 2 == 1;
        if dead {
            bench.kill();
        }
        bench.world.must("node", &format!("ip link set {host} name veth-else"));
        if dead {
            bench.start();
            bench.daemon().wait_for_log("its interface is called veth-else now: shut");
        }
        sleep(Duration::from_millis(300));
        bench.settle(tally, if dead { Excused::Connections } else { Excused::Nothing });
        bench.world.must("node", &format!("ip link set veth-else name {host}"));
        bench.wait_for_load(tally);
        bench.settle(tally, if dead { Excused::Connections } else { Excused::Nothing });
    }
    bench.finish(tally, Excused::Nothing);
}

/// Another interface has its name now: the workload is shut, whether namegate saw that or found it, and stays so when all
/// interfaces are looked at again.
fn interface_renamed_and_replaced(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    let host = PODS[0].host;
    for run in 0..size.runs(10, 2) {
        tally.runs += 1;
        let dead = run % 2 == 1;
        if dead {
            bench.kill();
        }
        let node = bench.world.namespace("node");
        ip_batch(&node, &format!("link set {host} name veth-else\nlink add {host} type veth peer name veth-none\n"));
        if dead {
            bench.start();
            bench.daemon().wait_ready();
        }
        bench.nap(200);
        bench.daemon().reload();
        bench.nap(300);
        bench.settle(tally, Excused::Connections);
        ip_batch(&node, &format!("link del {host}\nlink set veth-else name {host}\n"));
        bench.wait_for_load(tally);
        bench.settle(tally, Excused::Connections);
    }
    tally.note("10 times: each takes 1.5 s");
    bench.finish(tally, Excused::Connections);
}

/// Whoever has the name is the workload: the other one's policy holds for it, and the other one's address. It is cut off until
/// it has its own name again, whether namegate saw the exchange or found it.
fn interfaces_exchange_names(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    let [one, other] = [PODS[0].host, PODS[1].host];
    let exchange =
        format!("link set {one} name veth-else\nlink set {other} name {one}\nlink set veth-else name {other}\n");
    for run in 0..size.runs(10, 2) {
        tally.runs += 1;
        let dead = run % 2 == 1;
        if dead {
            bench.kill();
        }
        ip_batch(&bench.world.namespace("node"), &exchange);
        if dead {
            bench.start();
            bench.daemon().wait_ready();
        }
        bench.nap(300);
        bench.settle(tally, Excused::Connections);
        ip_batch(&bench.world.namespace("node"), &exchange);
        bench.wait_for_load(tally);
        bench.settle(tally, Excused::Connections);
    }
    tally.note("10 times: each takes 1.5 s");
    bench.finish(tally, Excused::Connections);
}

fn interface_moved(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    let host = PODS[0].host;
    let (node, other) = (bench.world.namespace("node"), bench.world.namespace("rep"));
    for _ in 0..size.runs(20, 2) {
        tally.runs += 1;
        ip_batch(&node, &format!("link set {host} netns {other}\n"));
        bench.nap(200);
        bench.settle(tally, Excused::Connections);
        ip_batch(&other, &format!("link set {host} netns {node}\n"));
        bench.nap(20);
        ip_batch(
            &node,
            &format!(
                "link set {host} up\n\
                 address add 198.51.100.1/32 dev {host}\n\
                 address add 2001:db8:1::1/128 dev {host} nodad\n\
                 route add {}/32 dev {host} src 198.51.100.1\n\
                 route add {}/128 dev {host} src 2001:db8:1::1\n",
                PODS[0].v4, PODS[0].v6
            ),
        );
        bench.wait_for_load(tally);
        bench.settle(tally, Excused::Connections);
    }
    bench.finish(tally, Excused::Connections);
}

fn interface_made_again(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    for _ in 0..size.runs(20, 2) {
        tally.runs += 1;
        bench.world.must("node", &format!("ip link del {}", PODS[0].host));
        bench.nap(200);
        bench.settle(tally, Excused::Connections);
        bench.world.remake_pod_interface(0);
        bench.wait_for_load(tally);
        bench.settle(tally, Excused::Connections);
    }
    bench.finish(tally, Excused::Connections);
}
