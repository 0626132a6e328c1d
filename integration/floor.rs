//! No packet before policy: interfaces that appear while namegate is slow, hangs or is dead, and the floor that shuts them.
//!
//! A pod with CAP_NET_RAW sends from the moment that its interface is there. What policy denies must never be seen outside;
//! what it allows must be, once the interface is guarded. Each trial has a control without the floor, where what is denied
//! gets out: else the trial says INVALID.

use std::process::{Child, Command};
use std::time::Duration;

use libtest_mimic::{Failed, Trial};

use crate::lab::agent::client::{Capture, Pending};
use crate::lab::agent::{Reply, Request, hex};
use crate::lab::daemon;
use crate::lab::frame::{ethernet, ethertype, ip, udp};
use crate::lab::process::spawn;
use crate::lab::world::{Family, LAN_MAC, NODE_MAC, Options, PODS};
use crate::lab::{Daemon, Topology, World, clock, snapshot};

/// What `payment-processor` may reach; that makes it default-deny.
const RULES: &str = "  - toCIDR: [203.0.113.200/32, \"2001:db8:2::200/128\"]\n";
const ALLOWED: u8 = 200;
const DENIED: u8 = 201;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// How often the race is run.
const ROUNDS: u32 = 40;
const NO_FLOOR: &[&str] = &["--set", "enforcement.floor=false"];

/// How an interface comes to be.
struct Making {
    name: &'static str,
    settings: &'static [&'static str],
    /// Whose it is: its name is that of an endpoint.
    endpoints: bool,
    /// In which namespace, and what is run there.
    lines: fn(&Yard) -> Vec<(&'static str, String)>,
}

const MAKINGS: &[Making] = &[
    Making {
        name: "made_up_in_one_message",
        settings: &[],
        endpoints: true,
        lines: |yard| vec![("node", yard.add(PODS[0].host, " up"))],
    },
    Making {
        name: "renamed_to_an_endpoints_name",
        settings: &[],
        endpoints: true,
        lines: |yard| {
            let host = PODS[0].host;
            vec![
                ("node", yard.add("veth-x", "")),
                ("node", format!("ip link set veth-x name {host}")),
                ("node", format!("ip link set {host} up")),
            ]
        },
    },
    Making {
        name: "moved_in_from_another_namespace_with_a_new_number",
        settings: &[],
        endpoints: true,
        lines: |yard| {
            let (host, node) = (PODS[0].host, yard.world.namespace("node"));
            vec![
                ("outside", format!("ip link add {host} index 4711 type veth peer {}", yard.pod_side())),
                ("outside", format!("ip link set {host} netns {node}")),
                ("node", format!("ip link set {host}{} up", yard.node_side())),
            ]
        },
    },
    Making {
        name: "of_a_prefix_and_nobodys",
        settings: &["--set", "enforcement.floor_interfaces=veth-*"],
        endpoints: false,
        lines: |yard| vec![("node", yard.add("veth-new", " up"))],
    },
];

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (shape, topology) in [("routed", Topology::Routed), ("bridged", Topology::Bridged)] {
        for making in MAKINGS {
            let name = format!("floor::{shape}::an_interface_{}_is_shut_while_namegate_hangs", making.name);
            trials.push(Trial::test(name, move || made_while_it_hangs(topology, making)));
        }
        let name = format!("floor::{shape}::forty_interfaces_made_under_load_pass_nothing_before_policy");
        trials.push(Trial::test(name, move || forty_under_load(topology)));
    }
    for method in ["tcx", "clsact"] {
        let name = format!("floor::a_restart_shuts_nobody_out_{method}");
        trials.push(Trial::test(name, move || restart(method)));
    }
    let name = "floor::an_interface_moved_away_and_back_while_namegate_hangs_stays_guarded";
    trials.push(Trial::test(name, away_and_back));
    let name = "floor::a_floor_that_someone_changed_is_as_it_was_within_5_s";
    trials.push(Trial::test(name, changed_by_hand));
    trials
}

/// Namegate hangs, so that whatever is not shut beforehand is open: with the floor nothing passes, without it all does.
fn made_while_it_hangs(topology: Topology, making: &Making) -> Result<(), Failed> {
    let tried = |more: &[&str]| {
        let yard = Yard::new(topology, &[making.settings, more].concat());
        yard.daemon().signal(libc::SIGSTOP);
        yard.delete();
        let burst = yard.burst(&[DENIED], 700, FAST);
        yard.make(making);
        let seen = burst.end();
        assert!(seen.sent > 20, "the pod could not send");
        (yard, seen.denied())
    };
    let (control, escaped) = tried(NO_FLOOR);
    if escaped.contains(&0) {
        return Err(
            format!("INVALID: without the floor {escaped:?} denied datagrams got out over IPv4 and IPv6").into()
        );
    }
    drop(control);
    let (yard, escaped) = tried(&[]);
    if escaped != [0, 0] {
        return Err(format!("{escaped:?} denied datagrams got out over IPv4 and IPv6").into());
    }
    yard.daemon().signal(libc::SIGCONT);
    if making.endpoints {
        assert_eq!(yard.comes_to_pass(), 0, "denied datagrams that got out on the way");
    } else {
        let awake = yard.burst(&[ALLOWED], 2_500, SLOW).end();
        assert_eq!(awake.arrived, [0, 0], "it is nobody's: shut for good");
    }
    let counted = || yard.daemon().metric("namegate_floor_packets_total", &[]) >= 1.0;
    assert!(clock::wait_until(Duration::from_secs(5), counted), "dropped, but not counted");
    Ok(())
}

/// The race as it is: namegate runs, the machine is busy, the pod sends at once.
fn forty_under_load(topology: Topology) -> Result<(), Failed> {
    let without = Yard::new(topology, NO_FLOOR);
    let busy = Busy::loops(4);
    let leaky = (1..=ROUNDS).find(|_| without.round() > 0);
    if leaky.is_none() {
        without.daemon().signal(libc::SIGSTOP);
        if without.sends_at_once() == 0 {
            return Err("INVALID: without the floor nothing got out, not even while namegate hung".into());
        }
    }
    drop((busy, without));
    let yard = Yard::new(topology, &[]);
    let _busy = Busy::loops(4);
    let leaks: Vec<u64> = (1..=ROUNDS).map(|_| yard.round()).collect();
    match leaky {
        Some(round) => eprintln!("without the floor it leaked in round {round}; with it: {leaks:?}"),
        None => eprintln!("without the floor it leaked only while namegate hung; with it: {leaks:?}"),
    }
    if leaks.iter().any(|leaked| *leaked > 0) {
        return Err(format!("denied datagrams that got out, by round: {leaks:?}").into());
    }
    Ok(())
}

/// kill -9 and a new start: no allowed datagram is lost on the way, no denied one gets out.
fn restart(method: &str) -> Result<(), Failed> {
    let attach = format!("enforcement.attach={method}");
    let settings = ["--set", attach.as_str()];
    let mut yard = Yard::new(Topology::Routed, &settings);
    let daemon = yard.daemon.take().expect("it runs");
    let burst = yard.burst(&[ALLOWED, DENIED], 5_000, SLOW);
    std::thread::sleep(Duration::from_millis(200));
    daemon.kill();
    std::thread::sleep(Duration::from_millis(300));
    let daemon = Daemon::start(&yard.world, &settings);
    let seen = burst.end();
    drop(daemon);
    if seen.denied() != [0, 0] {
        return Err(format!("{:?} denied datagrams got out over IPv4 and IPv6", seen.denied()).into());
    }
    // The last round may have been cut short.
    let each = seen.sent / 4;
    if seen.allowed().iter().any(|arrived| arrived.abs_diff(each) > 1) {
        return Err(format!("{:?} of {each} allowed datagrams arrived over IPv4 and IPv6", seen.allowed()).into());
    }
    Ok(())
}

/// Its number stays, and so do TCX programs on it.
fn away_and_back() -> Result<(), Failed> {
    let tried = |guarded: bool| {
        let mut yard = Yard::new(Topology::Routed, &["--set", "enforcement.attach=tcx"]);
        if guarded {
            yard.daemon().signal(libc::SIGSTOP);
        } else {
            yard.daemon.take().expect("it runs").kill();
            let (fine, said) = daemon::run(&yard.world.namespace("node"), &yard.world.directory, "detach", &[]);
            assert!(fine, "{said}");
        }
        let (host, outside, node) = (PODS[0].host, yard.world.namespace("outside"), yard.world.namespace("node"));
        yard.world.must("node", &format!("ip link set {host} netns {outside}"));
        yard.world.must("outside", &format!("ip link set {host} netns {node}"));
        yard.world.must("node", &format!("ip link set {host} up"));
        yard.burst(&[DENIED], 400, FAST).end().denied()
    };
    let escaped = tried(false);
    if escaped.contains(&0) {
        return Err(format!("INVALID: unguarded, {escaped:?} got out").into());
    }
    let escaped = tried(true);
    if escaped == [0, 0] { Ok(()) } else { Err(format!("{escaped:?} denied datagrams got out").into()) }
}

fn changed_by_hand() -> Result<(), Failed> {
    let yard = Yard::new(Topology::Routed, &[]);
    let list = |what: &str| yard.world.must("node", &format!("nft list {what}"));
    let others = list("table ip services");
    for family in ["inet", "bridge"] {
        let own = namegate::host::floor::table_of(&yard.world.directory.join("bpf/namegate"));
        let table = format!("table {family} {own}");
        let whole = || without_counts(&list(&table));
        let before = whole();
        assert!(before.contains("iif @guarded accept") && before.contains(PODS[1].host), "{before}");
        for change in [
            format!("nft delete {table}"),
            format!("nft flush chain {family} {own} floor"),
            format!("nft insert rule {family} {own} floor accept"),
            format!("nft delete element {family} {own} names {{ {} }}", PODS[0].host),
            format!("nft add element {family} {own} guarded {{ wan0 }}"),
            format!("nft add table {family} {own} {{ flags dormant ; }}"),
        ] {
            yard.world.must("node", &change);
            let again = || list("tables").contains(&table) && whole() == before;
            assert!(clock::wait_until(Duration::from_secs(5), again), "after {change}: {}", list("ruleset"));
        }
    }
    yard.daemon().wait_for_log("someone else changed or removed the floor");
    assert_eq!(list("table ip services"), others, "tables of others are as they were");
    let (_, status) = yard.daemon().run("status", &[]);
    assert!(status.contains("floor: 2 of 2 interfaces guarded"), "{status}");
    yard.comes_to_pass();
    Ok(())
}

fn without_counts(table: &str) -> String {
    let words: Vec<&str> = table.split_whitespace().filter(|word| !word.bytes().all(|c| c.is_ascii_digit())).collect();
    words.join(" ")
}

/// Pauses between two frames, microseconds.
const FAST: u64 = 200;
const SLOW: u64 = 2_000;

/// A world in which `payment-processor` sends what it likes, and the outside sees what arrives.
struct Yard {
    daemon: Option<Daemon>,
    world: World,
}

impl Yard {
    #[track_caller]
    fn new(topology: Topology, more: &[&str]) -> Yard {
        let world = World::new(Options { topology });
        snapshot::with_policy(&world.directory.join("snapshot"), &snapshot::policy("payment-processor", RULES));
        let bridges = "net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0";
        let routes = "net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0";
        world.must("node", &format!("sysctl -eqw {bridges} {routes}"));
        let yard = Yard { daemon: Some(Daemon::start(&world, more)), world };
        yard.comes_to_pass(); // every neighbour on the way is known from now on
        yard
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it runs")
    }

    fn is_bridged(&self) -> bool {
        self.world.options.topology == Topology::Bridged
    }

    #[track_caller]
    fn delete(&self) {
        self.world.must("node", &format!("ip link del {}", PODS[0].host));
    }

    #[track_caller]
    fn make(&self, making: &Making) {
        for (part, line) in (making.lines)(self) {
            self.world.must(part, &line);
        }
    }

    /// What makes a pod's interface, in one message. The pod sets its own side up: the kernel refuses that in this message.
    fn add(&self, host: &str, up: &str) -> String {
        format!("ip link add {host}{}{up} type veth peer {}", self.node_side(), self.pod_side())
    }

    fn node_side(&self) -> String {
        if self.is_bridged() { " master br0".to_owned() } else { format!(" address {NODE_MAC}") }
    }

    fn pod_side(&self) -> String {
        format!("name eth0 address {} netns {}", PODS[0].mac, self.world.namespace("pay"))
    }

    /// Deleted and made again while the pod sends; then it must be guarded again. How much got out that is denied.
    #[track_caller]
    fn round(&self) -> u64 {
        self.sends_at_once() + self.comes_to_pass()
    }

    #[track_caller]
    fn sends_at_once(&self) -> u64 {
        self.delete();
        let burst = self.burst(&[DENIED], 250, FAST);
        self.make(&MAKINGS[0]);
        burst.end().denied().iter().sum()
    }

    /// Within 10 s what policy allows arrives over both families. How much got out meanwhile that it denies.
    #[track_caller]
    fn comes_to_pass(&self) -> u64 {
        let (mut arrived, mut denied) = ([0, 0], 0);
        let fine = clock::wait_until(Duration::from_secs(10), || {
            let seen = self.burst(&[ALLOWED, DENIED], 60, SLOW).end();
            denied += seen.denied().iter().sum::<u64>();
            arrived = [arrived[0] + seen.allowed()[0], arrived[1] + seen.allowed()[1]];
            !arrived.contains(&0)
        });
        assert!(fine, "what is allowed did not arrive within 10 s: {arrived:?}");
        denied
    }

    /// The pod begins to send to these outside addresses, in turn, both families, as soon as it has an interface.
    #[track_caller]
    fn burst(&self, to: &'static [u8], for_ms: u64, pause_us: u64) -> Burst<'_> {
        let capture = self.world.outside.capture(if self.is_bridged() { "lan0" } else { "eth0" });
        let each = to.iter().flat_map(|last| FAMILIES.map(|family| (family, *last)));
        let frames = each.map(|(family, last)| hex(&self.frame(family, last))).collect();
        let hammer = Request::Hammer { interface: "eth0".into(), frames, for_ms, pause_us };
        Burst { capture, sending: self.world.pay.begin(hammer), to }
    }

    fn frame(&self, family: Family, last: u8) -> Vec<u8> {
        let (from, to) = (family.of(&PODS[0]), family.outside(last));
        let packet = ip(from, to, 17, &udp((from, 4_000), (to, 9), mark(family, last).as_bytes()));
        let next_hop = if self.is_bridged() { LAN_MAC } else { NODE_MAC };
        ethernet(next_hop, PODS[0].mac, ethertype(from), &packet)
    }
}

/// What a datagram to this address carries.
fn mark(family: Family, last: u8) -> String {
    format!("[floor {} {last}]", family.pick("four", "six"))
}

/// Datagrams under way.
struct Burst<'a> {
    capture: Capture<'a>,
    sending: Pending,
    to: &'static [u8],
}

/// How many datagrams the pod sent, and how many were seen outside: for each address, over IPv4 and IPv6.
struct Seen {
    sent: u64,
    to: &'static [u8],
    arrived: Vec<u64>,
}

impl Burst<'_> {
    #[track_caller]
    fn end(self) -> Seen {
        let Reply::Sent(sent) = self.sending.wait() else { panic!("no number of frames") };
        std::thread::sleep(Duration::from_millis(30)); // the last ones are still on their way
        // The outside's own ICMP errors quote what they are about: they go out.
        let frames = self.capture.frames();
        let frames: Vec<Vec<u8>> = frames.iter().filter(|frame| !frame.outgoing).map(|frame| frame.octets()).collect();
        let count = |mark: String| {
            let holds = |frame: &&Vec<u8>| frame.windows(mark.len()).any(|window| window == mark.as_bytes());
            frames.iter().filter(holds).count() as u64
        };
        let arrived = self.to.iter().flat_map(|last| FAMILIES.map(|family| count(mark(family, *last)))).collect();
        Seen { sent, to: self.to, arrived }
    }
}

impl Seen {
    fn of(&self, last: u8) -> [u64; 2] {
        let at = self.to.iter().position(|each| *each == last).expect("it was sent there");
        [self.arrived[2 * at], self.arrived[2 * at + 1]]
    }

    fn allowed(&self) -> [u64; 2] {
        self.of(ALLOWED)
    }

    fn denied(&self) -> [u64; 2] {
        self.of(DENIED)
    }
}

/// Processes that keep every core busy.
struct Busy(Vec<Child>);

impl Busy {
    fn loops(count: usize) -> Busy {
        let one = || {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]);
            spawn(command).expect("a shell starts")
        };
        Busy((0..count).map(|_| one()).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
