//! A rule set as large as the language allows: what it costs to compile, to load into the kernel and to ask.
//!
//! One pod, whose policy has 500 names in one item, 10 000 patterns over the others, 120 groups in all and 5 000 CIDRs, every
//! fourth with an exception; `rules.dns` lists every pattern once more. The maps have their default sizes.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use libc::umount2;
use namegate::engine::bits::Bits;
use namegate::engine::compile::Compiler;
use namegate::engine::endpoint::{EndpointId, PodRef};
use namegate::engine::name::Name;
use namegate::engine::pattern::Pattern;
use namegate::engine::policy::{
    Block, BlockOf, Item, NameRule, Peers, Policy, Port, PortRule, Ports, Rule, Section, Subject,
};
use namegate::engine::port::PortBlock;
use namegate::engine::ruleset::{Direction, Protocol, RuleSet};
use namegate::engine::verdict::RuleRef;
use namegate::engine::world::{PeerIds, Pod, Search, World};
use namegate::kernel::abi::flag;
use namegate::kernel::load::{Kernel, LoadSettings, Place};
use namegate::kernel::rules::{EndpointRow, FlowLimits};
use serde_json::{Value, json};

use super::lab::clock::now;
use super::{median, print, proc, round};
use crate::kernel::frames::{POD_MAC, SYN, TCP, from_pod, tcp};

const NAMES: usize = 500;
const PATTERNS: usize = 10_000;
const GROUPS: usize = 120;
const CIDRS: usize = 5_000;
/// Groups that are opened to names, and those that are opened to networks: together all of them.
const OF_NAMES: usize = 80;
const OF_NETWORKS: usize = GROUPS - OF_NAMES;
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// lo, only for its number.
const IFINDEX: u32 = 1;
/// How often what is quick is done, for a median.
const TIMES: usize = 5;

pub fn measure() {
    let before = proc::rss_kib(std::process::id());
    let world = world();
    let written = proc::rss_kib(std::process::id());
    let subject = world.pods.keys().next().expect("the world has a pod").clone();
    let mut compiled = None;
    let mut compile: Vec<f64> = (0..TIMES)
        .map(|_| {
            let start = now();
            compiled =
                Some(Compiler::new(&world, &mut PeerIds::default()).compile(&subject, &[]).expect("it compiles"));
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    let rules = compiled.expect("it was compiled");
    let after = proc::rss_kib(std::process::id());
    assert_eq!(rules.groups.len(), GROUPS);
    assert_eq!(rules.names.len(), NAMES + PATTERNS);

    let lab = Lab::new();
    let (empty, _) = proc::map_memory(std::process::id());
    let start = now();
    lab.kernel.write_rules(2, &rules).expect("the rules fit into the default sizes");
    lab.enforce(&rules, 2);
    let load = start.elapsed().as_secs_f64() * 1e3;
    let (full, _) = proc::map_memory(std::process::id());
    let enforced = enforced(&lab, &rules);
    let start = now();
    lab.kernel.delete_rules_except(&[]).expect("the rules are removed");
    let remove = start.elapsed().as_secs_f64() * 1e3;

    let (compile, in_compile, in_load) = (median(&mut compile), 250.0, 250.0);
    print(
        "large_rule_set",
        &format!(
            "{NAMES} names, {PATTERNS} patterns (twice: toFQDNs and rules.dns), {GROUPS} groups, {CIDRS} CIDRs, every fourth with \
             an exception; maps of their default sizes; compile: median of {TIMES}"
        ),
        Some((json!({"compile_ms": in_compile, "load_ms": in_load}), compile <= in_compile && load <= in_load)),
        json!({
            "compile_ms": round(compile, 1),
            "load_ms": round(load, 1),
            "remove_ms": round(remove, 1),
            "rows": {"ports": rules.ports.len(), "cidrs": rules.cidrs.len(), "peer_bits": rules.peers.len()},
            "kernel_bytes": full.saturating_sub(empty),
            "policy_kib": written.saturating_sub(before),
            "rule_set_kib": after.saturating_sub(written),
            "ask": ask(&rules),
            "enforced": enforced,
        }),
    );
}

/// What the kernel makes of packets to the first and the last network of each group: all that is written is in force.
fn enforced(lab: &Lab, rules: &RuleSet) -> Value {
    let mut passed = 0;
    let mut stopped = 0;
    for number in 0..CIDRS {
        let network = network(number);
        let group = OF_NAMES + number % OF_NETWORKS;
        let last = IpAddr::V4(network.broadcast());
        let carved = number % 4 == 0;
        let open = lab.passes(last, port(group));
        assert_eq!(open, !carved, "{network} on its own port");
        assert!(!lab.passes(IpAddr::V4(network.network()), port(group) + 1), "{network} on another's port");
        assert!(lab.passes(IpAddr::V4(network.network()), port(group)), "{network} but for its exception");
        let by_rows = rules.evaluate(Direction::Egress, last, Protocol::Tcp, port(group), Bits::NONE);
        assert_eq!(by_rows.passes(), open, "{network}: the rows and the kernel");
        passed += usize::from(open);
        stopped += usize::from(!open);
    }
    json!({"networks_open": passed, "exceptions_stopped": stopped})
}

/// Nanoseconds to ask the tries, per name.
fn ask(rules: &RuleSet) -> Value {
    let names: Vec<Name> =
        (0..1000).map(|n| Name::parse(&format!("a.z{}.p.example", n * 10)).expect("a name")).collect();
    let strange: Vec<Name> = (0..1000).map(|n| Name::parse(&format!("x{n}.other.test")).expect("a name")).collect();
    let time = |names: &[Name], wanted: bool| {
        let mut each: Vec<f64> = (0..TIMES * 4)
            .map(|_| {
                let start = now();
                let found = names.iter().filter(|name| rules.groups_of(name) != Bits::NONE).count();
                assert_eq!(found, if wanted { names.len() } else { 0 });
                start.elapsed().as_nanos() as f64 / names.len() as f64
            })
            .collect();
        round(median(&mut each), 0)
    };
    json!({"selected_ns": time(&names, true), "unknown_ns": time(&strange, false)})
}

/// The port that a group is about; its neighbour is nobody's.
fn port(group: usize) -> u16 {
    10_000 + 2 * group as u16
}

fn network(number: usize) -> Ipv4Net {
    let first = Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + 16 * number as u32);
    Ipv4Net::new(first, 28).expect("a prefix")
}

fn world() -> World {
    let tcp = |group: usize| {
        Ports::These(vec![PortRule {
            at: at(),
            ports: [(Protocol::Tcp, Port::Block(PortBlock::one(port(group))))].into(),
            service: None,
            dns: None,
        }])
    };
    let pattern = |number: usize| NameRule {
        at: at(),
        pattern: Pattern::pattern(&format!("*.z{number}.p.example")).expect("a pattern"),
    };
    let mut allow = Vec::new();
    for group in 0..OF_NAMES {
        let mut names: Vec<NameRule> = (0..PATTERNS).filter(|n| n % OF_NAMES == group).map(pattern).collect();
        if group == 0 {
            names.extend((0..NAMES).map(|number| NameRule {
                at: at(),
                pattern: Pattern::name(&format!("n{number}.names.example")).expect("a name"),
            }));
        }
        allow.push(Item { at: at(), peers: Peers::Names(names), ports: tcp(group) });
    }
    for group in 0..OF_NETWORKS {
        let blocks = (0..CIDRS).filter(|number| number % OF_NETWORKS == group).map(|number| Block {
            of: BlockOf::Here(IpNet::V4(network(number))),
            except: (number % 4 == 0)
                .then(|| IpNet::from(IpAddr::V4(network(number).broadcast())))
                .into_iter()
                .collect(),
        });
        allow.push(Item { at: at(), peers: Peers::Networks(blocks.collect()), ports: tcp(OF_NAMES + group) });
    }
    allow.push(Item {
        at: at(),
        peers: Peers::Networks(vec![IpNet::from(IpAddr::from([192, 0, 2, 53])).into()]),
        ports: Ports::These(vec![PortRule {
            at: at(),
            ports: [(Protocol::Udp, Port::Block(PortBlock::one(53)))].into(),
            service: None,
            dns: Some((0..PATTERNS).map(pattern).collect()),
        }]),
    });
    let egress = Section { default_deny: true, allow, ..Section::default() };
    let rule = Rule { at: at(), subject: Subject::default(), egress, ingress: Section::default() };
    let mut world = World { policies: vec![Arc::new(Policy { at: at(), rules: vec![rule] })], ..World::default() };
    let pod = Pod {
        uid: None,
        labels: Default::default(),
        service_account: None,
        addresses: vec![POD],
        node: None,
        host_network: false,
        finished: false,
        search: Search::default(),
        nameservers: Vec::new(),
        ports: Vec::new(),
        mode: None,
        readable: true,
        place: String::new(),
    };
    world.pods.insert(PodRef { namespace: "bench".to_owned(), name: "pod".to_owned() }, pod);
    world
}

fn at() -> RuleRef {
    RuleRef(Arc::default())
}

/// One endpoint in kernel maps of its own, of the default sizes.
struct Lab {
    kernel: Kernel,
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Lab {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let seconds = Duration::from_secs;
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
        let kernel = Kernel::load(directory.path(), &settings, 0x6e61_6d65).expect("the programs load");
        let limits = FlowLimits::new(131_072, 4096, 16, 16_384, Duration::ZERO);
        kernel.set_limits(limits, 15_353).expect("limits can be set");
        Lab { kernel, directory }
    }

    fn enforce(&self, rules: &RuleSet, policy_id: u32) {
        let row = EndpointRow {
            id: EndpointId(7),
            slot: 1,
            policy_id,
            generation: 1,
            addresses: vec![POD],
            mac: Some(POD_MAC),
            flags: EndpointRow::flags_of(rules) & !flag::STEER,
            adopt_until: 0,
        };
        self.kernel.set_endpoint(IFINDEX, &row).expect("an endpoint can be set");
    }

    /// Whether a new connection may be opened; none is.
    fn passes(&self, to: IpAddr, port: u16) -> bool {
        let frame = from_pod(POD, to, TCP, &tcp(40_000, port, 1, SYN));
        self.kernel.run(Direction::Egress, &frame, IFINDEX, 1, true).expect("a frame can be run").action == -1
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let path =
            std::ffi::CString::new(self.directory.path().as_os_str().as_encoded_bytes()).expect("no NUL in a path");
        // SAFETY: a string that ends in NUL. The file system was mounted there by Kernel::load; its pins go with it.
        unsafe { umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}
