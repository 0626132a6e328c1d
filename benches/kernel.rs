//! Nanoseconds a packet, by BPF_PROG_TEST_RUN: nothing is attached and no traffic flows.
//!
//! Two ways, because each has a bias. *Repeated*: one frame many times, the kernel reports the average; caches are hot. A new
//! flow is new only once, so there these runs are dry: the whole policy path without the row that it would make. *Once*:
//! frames that differ in address and port run one time each, median; the row is made, caches are cold, and the harness's own
//! share (compare `flow_hit` both ways) is in it. `interface_without_endpoint` is the floor: the harness, one look-up that
//! finds nothing, one count.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use libc::umount2;
use namegate::engine::bits::Bits;
use namegate::engine::endpoint::EndpointId;
use namegate::engine::grant::{GrantWrite, MonoNs, SLOTS, Slot};
use namegate::engine::port::PortBlock;
use namegate::engine::ruleset::{Direction, PortRow, Protocol, RuleSet};
use namegate::kernel::GrantStore;
use namegate::kernel::abi::flag;
use namegate::kernel::load::{Kernel, LoadSettings, Place};
use namegate::kernel::rules::{EndpointRow, FlowLimits};
use namegate::observe::Reason;
use serde_json::{Value, json};

use super::{median, print, round};
use frames::{ACK, POD_MAC, SYN, TCP, from_pod, tcp, to_pod};

#[path = "../integration/programs/frames.rs"]
#[expect(dead_code, reason = "frames of the tests; few are needed here")]
pub mod frames;

/// lo, only for its number.
const IFINDEX: u32 = 1;
const ENDPOINT: EndpointId = EndpointId(7);
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
/// Frames of a class that are repeated, each on its own.
const FRAMES: u32 = 64;
const REPEAT: u32 = 50_000;
/// Frames that run once, after as many for warming up as `FRAMES`.
const ONCE: u32 = 4000;

pub fn measure() {
    let rows: Vec<Value> = [1_000, 100_000].into_iter().map(at).collect();
    let hits = rows.iter().filter_map(|row| row["flow_hit"]["repeated_ns"].as_f64());
    let met = hits.fold(0.0, f64::max) <= 55.0;
    print(
        "kernel_ns_per_packet",
        "BPF_PROG_TEST_RUN of both TC programs; repeated: average of 50000 runs a frame, median of 64 frames; once: median of 4000 \
         different frames; new flows repeated are dry runs; refusals in silence",
        Some((json!({"flow_hit_ns": 55}), met)),
        rows.into(),
    );
}

fn at(grants: u32) -> Value {
    let lab = Lab::with_grants(grants);
    // Spread over all grants, so that rows come from all over the table.
    let step = grants / FRAMES.min(grants);
    let spread = |i: u32, first: u32| remote((first + i) * step % grants);
    let syn = |i: u32, to: IpAddr, port: u16| from_pod(POD, to, TCP, &tcp(20_000 + (i % 40_000) as u16, port, 1, SYN));

    let open = |i: u32| {
        let to = spread(i, 0);
        let port = 20_000 + i as u16;
        lab.run(Direction::Egress, &syn(i, to, 443), 1, false);
        lab.run(Direction::Ingress, &to_pod(to, POD, TCP, &tcp(443, port, 9, SYN | ACK)), 1, false);
        let sent = from_pod(POD, to, TCP, &tcp(port, 443, 2, ACK));
        let received = to_pod(to, POD, TCP, &tcp(443, port, 10, ACK));
        (sent, received)
    };
    let (sent, received): (Vec<_>, Vec<_>) = (0..FRAMES).map(open).unzip();
    let denied: Vec<_> = (0..ONCE).map(|i| syn(i, nobody(i), 443)).collect();
    let fresh: Vec<_> =
        (0..ONCE + FRAMES).map(|i| syn(1000 + i, spread(i % FRAMES * 61 + i / FRAMES, 1), 443)).collect();

    let (warm, fresh) = fresh.split_at(FRAMES as usize);
    let dry = lab.repeated(Direction::Egress, warm, true);
    lab.once(warm);
    let before = lab.counted(Reason::Granted);
    let new = lab.once(fresh);
    assert_eq!(
        lab.counted(Reason::Granted) - before,
        u64::from(ONCE),
        "each frame is a new flow that a grant lets through"
    );
    let again: Vec<_> = sent.iter().cycle().take(ONCE as usize).cloned().collect();
    let before = (lab.counted(Reason::Flow), lab.counted(Reason::NoGrant));
    let hit = (lab.repeated(Direction::Egress, &sent, false), lab.once(&again));
    let hit_to_pod = lab.repeated(Direction::Ingress, &received, false);
    let refused = (lab.repeated(Direction::Egress, &denied[..FRAMES as usize], false), lab.once(&denied));
    lab.kernel.delete_endpoint(IFINDEX);
    let floor = lab.repeated(Direction::Egress, &sent[..8], false);
    let runs = u64::from(FRAMES) * u64::from(REPEAT);
    assert_eq!(lab.counted(Reason::Flow) - before.0, 2 * runs + u64::from(ONCE), "each packet of a flow passes by it");
    assert_eq!(
        lab.counted(Reason::NoGrant) - before.1,
        runs + u64::from(ONCE),
        "each packet without a grant is refused"
    );
    json!({
        "grants": grants,
        "interface_without_endpoint": {"repeated_ns": floor},
        "flow_hit": {"repeated_ns": hit.0, "once_ns": hit.1},
        "flow_hit_to_pod": {"repeated_ns": hit_to_pod},
        "new_flow_granted": {"repeated_dry_ns": dry, "once_ns": new},
        "denied": {"repeated_ns": refused.0, "once_ns": refused.1},
    })
}

/// One endpoint in kernel maps of its own, with the defaults of namegate.toml.
struct Lab {
    kernel: Kernel,
    directory: tempfile::TempDir,
}

impl Lab {
    fn with_grants(grants: u32) -> Lab {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let kernel = load(directory.path());
        kernel
            .set_limits(FlowLimits::new(131_072, 4096, 16, 16_384, std::time::Duration::ZERO), 15_353)
            .expect("limits can be set");
        let rules = RuleSet {
            selected: true,
            deny_egress: true,
            deny_ingress: true,
            ports: vec![PortRow {
                direction: Direction::Egress,
                protocol: Protocol::Tcp,
                ports: PortBlock::one(443),
                allow: Bits::of(1),
                deny: Bits::NONE,
            }],
            ..RuleSet::unselected()
        };
        kernel.write_rules(1, &rules).expect("rules can be written");
        let row = EndpointRow {
            id: ENDPOINT,
            slot: 1,
            policy_id: 1,
            generation: 1,
            addresses: vec![POD],
            mac: Some(POD_MAC),
            flags: flag::ENFORCE | flag::DENY_EGRESS | flag::DENY_INGRESS,
            adopt_until: 0,
        };
        kernel.set_endpoint(IFINDEX, &row).expect("an endpoint can be set");
        let until = MonoNs(namegate::clock::mono().0 + 3_600_000_000_000);
        let mut slots = [Slot::default(); SLOTS];
        slots[0] = Slot { bits: Bits::of(1), until };
        let writes: Vec<_> = (0..grants).map(|i| GrantWrite { address: remote(i), slots }).collect();
        for chunk in writes.chunks(1000) {
            kernel.install(ENDPOINT, chunk).expect("grants can be written");
        }
        Lab { kernel, directory }
    }

    /// Median over frames of the average of many runs, ns.
    fn repeated(&self, direction: Direction, frames: &[Vec<u8>], dry: bool) -> f64 {
        let mut each: Vec<f64> = frames.iter().map(|frame| self.run(direction, frame, REPEAT, dry)).collect();
        round(median(&mut each), 1)
    }

    /// Median of one run a frame from the pod, ns.
    fn once(&self, frames: &[Vec<u8>]) -> f64 {
        let mut each: Vec<f64> = frames.iter().map(|frame| self.run(Direction::Egress, frame, 1, false)).collect();
        median(&mut each)
    }

    /// Packets counted for `reason` so far, both directions.
    fn counted(&self, reason: Reason) -> u64 {
        let counted = self.kernel.counted();
        counted.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum()
    }

    /// Nanoseconds of a run, the average of `repeat`.
    fn run(&self, direction: Direction, frame: &[u8], repeat: u32, dry: bool) -> f64 {
        let run = self.kernel.run(direction, frame, IFINDEX, repeat, dry).expect("a frame can be run");
        run.duration.as_nanos() as f64
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        unload(self.directory.path());
    }
}

/// The programs with maps of their own, with the defaults of namegate.toml.
pub fn load(directory: &Path) -> Kernel {
    let seconds = std::time::Duration::from_secs;
    let settings = LoadSettings {
        max_endpoints: 4096,
        max_flows: 131_072,
        max_grants: 262_144,
        syn_timeout: seconds(60),
        established_timeout: seconds(8 * 3600),
        closed_timeout: seconds(10),
        datagram_timeout: seconds(60),
        datagram_both_timeout: seconds(180),
        events_per_second: 500,
        rejects_per_second: 100,
        place: Place::Host,
    };
    Kernel::load(directory, &settings, 0x6e61_6d65).expect("the programs load")
}

/// Removes what [`load`] has mounted, and its pins with it.
pub fn unload(directory: &Path) {
    let path = std::ffi::CString::new(directory.as_os_str().as_encoded_bytes()).expect("no NUL in a path");
    // SAFETY: a string that ends in NUL. The file system was mounted there by Kernel::load.
    unsafe { umount2(path.as_ptr(), libc::MNT_DETACH) };
}

/// The address of grant `i`.
fn remote(i: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + i).into()
}

/// An address that nothing grants.
fn nobody(i: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 19, 192, 0).to_bits() + i).into()
}
