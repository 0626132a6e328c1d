//! One endpoint behind interface 1 (lo, only for its number: nothing is attached and no traffic flows) in kernel maps of its
//! own, and frames run through the programs by BPF_PROG_TEST_RUN.

use std::net::IpAddr;
use std::time::Duration;

use namegate::engine::bits::Bits;
use namegate::engine::endpoint::EndpointId;
use namegate::engine::grant::{GrantWrite, MonoNs, SLOTS, Slot};
use namegate::engine::port::PortBlock;
use namegate::engine::ruleset::{Direction, PeerId, PortRow, Protocol, RuleSet};
use namegate::kernel::GrantStore;
use namegate::kernel::abi::flag;
use namegate::kernel::load::{Kernel, LoadSettings, Place};
use namegate::kernel::rules::{EndpointRow, FlowLimits};
use namegate::observe::Reason;

use super::frames::POD_MAC;

pub const IFINDEX: u32 = 1;
pub const ENDPOINT: EndpointId = EndpointId(7);
pub const SLOT: u32 = 1;

pub struct Bench {
    pub kernel: Kernel,
    pub row: EndpointRow,
    directory: tempfile::TempDir,
}

pub fn settings() -> LoadSettings {
    LoadSettings {
        max_endpoints: 16,
        max_flows: 4096,
        max_grants: 131_072,
        syn_timeout: Duration::from_secs(60),
        established_timeout: Duration::from_secs(8 * 3600),
        closed_timeout: Duration::from_secs(10),
        datagram_timeout: Duration::from_secs(60),
        datagram_both_timeout: Duration::from_secs(180),
        events_per_second: 1_000_000,
        rejects_per_second: 1_000_000,
        place: Place::Host,
    }
}

/// What endpoints may have unless a case says otherwise.
pub fn limits() -> FlowLimits {
    FlowLimits {
        limit: 5000,
        share: 1000,
        pool: 1000,
        fragment_share: 1000,
        fragment_pool: 1000,
        idle_grace: Duration::ZERO,
    }
}

pub fn pod4() -> IpAddr {
    "198.51.100.10".parse().unwrap()
}

pub fn pod6() -> IpAddr {
    "2001:db8:1::10".parse().unwrap()
}

/// A pod's address of the same family as `remote`.
pub fn pod_for(remote: IpAddr) -> IpAddr {
    if remote.is_ipv4() { pod4() } else { pod6() }
}

impl Bench {
    /// Programs and empty maps; the endpoint is enforced and default deny both ways, without rules.
    pub fn new() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let kernel = Kernel::load(directory.path(), &settings(), 0x6e61_6d65).unwrap();
        kernel.set_limits(limits(), 15353).unwrap();
        let row = EndpointRow {
            id: ENDPOINT,
            slot: SLOT,
            policy_id: 1,
            generation: 1,
            addresses: vec![pod4(), pod6()],
            mac: Some(POD_MAC),
            flags: flag::ENFORCE | flag::DENY_EGRESS | flag::DENY_INGRESS,
            adopt_until: 0,
        };
        kernel.set_slots(&[(ENDPOINT, SLOT)]).unwrap();
        let bench = Bench { kernel, row, directory };
        bench.flip();
        bench
    }

    /// Another process that adopts the same maps.
    pub fn successor(&self) -> Kernel {
        Kernel::load(self.directory.path(), &settings(), 0x6e61_6d65).unwrap()
    }

    /// Puts the endpoint's row in force as it stands.
    pub fn flip(&self) {
        self.kernel.set_endpoint(IFINDEX, &self.row).unwrap();
    }

    /// Changes the endpoint's flags.
    pub fn flags(&mut self, on: u32, off: u32) -> &mut Bench {
        self.row.flags = self.row.flags & !off | on;
        self.flip();
        self
    }

    /// Runs one frame; the reason that was counted.
    #[track_caller]
    pub fn run(&self, direction: Direction, frame: &[u8]) -> Reason {
        self.run_whole(direction, frame).0
    }

    /// Runs one frame; the reason that was counted, the action and the frame afterwards.
    #[track_caller]
    pub fn run_whole(&self, direction: Direction, frame: &[u8]) -> (Reason, i32, Vec<u8>) {
        let before = self.kernel.counted();
        let run = self.kernel.run(direction, frame, IFINDEX, 1, false).unwrap();
        let after = self.kernel.counted();
        let moved: Vec<_> =
            after.iter().zip(&before).filter(|(after, before)| after.packets != before.packets).collect();
        let [(counted, _)] = moved.as_slice() else { panic!("one frame was counted {} times", moved.len()) };
        assert_eq!(counted.direction, direction);
        assert_eq!(counted.reason.passed(), run.action == -1, "{}: action {}", counted.reason.text(), run.action);
        (counted.reason, run.action, run.frame)
    }

    /// Opens `port` for the groups in `allow`, shuts it for those in `deny`, under the endpoint's policy.
    pub fn rules(&self, rules: &RuleSet) {
        self.kernel.write_rules(self.row.policy_id, rules).unwrap();
    }

    pub fn grant(&self, address: IpAddr, bits: Bits, until: MonoNs) {
        let mut slots = [Slot::default(); SLOTS];
        slots[0] = Slot { bits, until };
        self.kernel.install(ENDPOINT, &[GrantWrite { address, slots }]).unwrap();
    }

    pub fn forget_flows(&self) {
        self.kernel.delete_all_flows().unwrap();
        for slot in [0, SLOT] {
            let zero = namegate::kernel::abi::budget { flows: 0, grants: 0, fragments: 0, pad: 0 };
            self.kernel.tables.budgets.put(&slot, &zero).unwrap();
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let path = std::ffi::CString::new(self.directory.path().as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: a string that ends in NUL. The file system was mounted there by Kernel::load; its pins go with it.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

/// An empty rule set that denies by default.
pub fn no_rules() -> RuleSet {
    RuleSet { selected: true, deny_egress: true, deny_ingress: true, ..RuleSet::unselected() }
}

/// A port row.
pub fn port(direction: Direction, protocol: Protocol, port: u16, allow: Bits, deny: Bits) -> PortRow {
    PortRow { direction, protocol, ports: PortBlock::from(port), allow, deny }
}

/// A peer number of pods.
pub const A_PEER: PeerId = PeerId(20);

/// A deadline that this test does not live to see.
pub fn later() -> MonoNs {
    MonoNs(namegate::clock::mono().0 + 3_600_000_000_000)
}
