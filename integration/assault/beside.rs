//! namegate as a sidecar, and another container of its pod: a process of another user in the same network namespace,
//! without capabilities. It has what ordinary sockets can do; what the kernel refuses it anyway is shown beside what
//! root may.
//!
//! It asks what `names` asks, gets the answers of `answers` and the forgeries of `spoofing`, and sends by sockets what
//! `packets` sends as frames.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::bench::{Case, Shown, Way};
use crate::lab::agent::client::Agent;
use crate::lab::agent::sibling::{Attempt, Sending};
use crate::lab::agent::{Reach, Request, hex};
use crate::lab::process::{inside, output};
use crate::lab::world::{FAMILIES, Family, PODS};
use crate::lab::{Topology, World, clock, daemon};
use crate::message::{A, IN, name, query};
use crate::model::{ALLOWED, DENIED, FOREIGN_RESOLVER, RESOLVER};
use crate::{answers, names, spoofing};

const CLASS: &str = "beside";
/// The other container's user.
pub const WORKLOAD: u32 = 1_000;
/// Of the sidecar's own range (README).
const PROXY_PORT: u16 = 61_234;
/// What hears an ordinary connection outside.
const SERVED: u16 = 443;
const INTERFACE: &str = "eth0";
const UDP: i32 = libc::IPPROTO_UDP;
const TCP: i32 = libc::IPPROTO_TCP;

type Options = Vec<(i32, i32, String)>;

/// The pod's own volume, servers, and what container runtimes set in a pod.
pub fn prepare(world: &World) {
    let cluster = world.directory.join("snapshot/cluster.yaml");
    let text = fs::read_to_string(&cluster).expect("it was copied");
    let others: Vec<&str> =
        text.split("---\n").filter(|object| !object.contains(&format!("\n  name: {}\n", PODS[0].name))).collect();
    assert_eq!(others.len() + 1, text.split("---\n").count(), "the pod's object was left out");
    fs::write(&cluster, others.join("---\n")).expect("a file can be written");
    let volume = world.directory.join("podinfo");
    fs::create_dir_all(&volume).expect("a directory can be made");
    let labels = format!("app=\"{}\"\n", PODS[0].name);
    for (name, text) in
        [("name", PODS[0].name), ("namespace", "payments"), ("uid", "b4f1"), ("labels", &labels), ("annotations", "")]
    {
        fs::write(volume.join(name), text).expect("a file can be written");
    }
    for setting in ["net.ipv4.ip_unprivileged_port_start=0", "net.ipv4.ping_group_range=0 2147483647"] {
        let mut command = inside(&world.namespace("pay"), "sysctl");
        command.args(["-qw", setting]);
        let said = output(command).expect("sysctl starts");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }
    for at in [ALLOWED, DENIED].into_iter().flat_map(|pair| FAMILIES.map(|family| pick(family, pair))) {
        world.outside.done(Request::ServeTcp { at: SocketAddr::new(at, SERVED) });
        world.outside.done(Request::ServeUdp { at: SocketAddr::new(at, SERVED) });
    }
}

/// A PID namespace, as the containers of a pod have one with `shareProcessNamespace`.
pub const SHARED_PIDS: &[&str] = &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Every query of the pod goes to the sidecar.
pub fn init(world: &World) {
    let more = ["--init", "--set", "sidecar.interface=eth0"];
    let (fine, said) = daemon::run(&world.namespace("pay"), &world.directory, "sidecar", &more);
    assert!(fine, "{said}");
}

fn pick(family: Family, pair: [&str; 2]) -> IpAddr {
    family.pick(pair[0], pair[1]).parse().expect("an address")
}

/// A packet as an ordinary socket sends it; a SYN with the mark by TCP Fast Open.
pub fn sending(way: Way, to: IpAddr, mark: &str) -> Attempt {
    let (protocol, port, octets, from) = match way {
        Way::Segment(port) => (TCP, port, mark.as_bytes().to_vec(), None),
        Way::Datagram(port) => (UDP, port, mark.as_bytes().to_vec(), None),
        // The kernel puts in the identifier and the checksum.
        Way::Echo => (
            ping(to),
            0,
            [&[if to.is_ipv4() { 8 } else { 128 }, 0, 0, 0, 0, 1, 0, 1][..], mark.as_bytes()].concat(),
            None,
        ),
    };
    let to = SocketAddr::new(to, port);
    Attempt::Send(Sending { protocol, from, to, octets: hex(&octets), options: Vec::new(), at_once: true })
}

fn ping(to: IpAddr) -> i32 {
    if to.is_ipv4() { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 }
}

/// From whom to whom.
struct Aim {
    family: Family,
    own: IpAddr,
    allowed: IpAddr,
    denied: IpAddr,
    neighbour: IpAddr,
    /// Nobody's, of the pods' network.
    stranger: IpAddr,
    mark: Vec<u8>,
}

impl Aim {
    fn new(family: Family, mark: &str) -> Aim {
        Aim {
            family,
            own: family.of(&PODS[0]),
            allowed: pick(family, ALLOWED),
            denied: pick(family, DENIED),
            neighbour: family.of(&PODS[1]),
            stranger: pick(family, ["198.51.100.77", "2001:db8:1::77"]),
            mark: mark.as_bytes().to_vec(),
        }
    }

    /// A level and a name of each version of IP.
    fn ip_option(&self, v4: i32, v6: i32, value: &[u8]) -> Options {
        let (level, option) = if self.family == Family::V4 { (libc::IPPROTO_IP, v4) } else { (libc::IPPROTO_IPV6, v6) };
        vec![(level, option, hex(value))]
    }

    fn send(&self, protocol: i32, from: Option<(IpAddr, u16)>, to: (IpAddr, u16), options: Options) -> Vec<Attempt> {
        vec![Attempt::Send(Sending {
            protocol,
            from: from.map(SocketAddr::from),
            to: to.into(),
            octets: hex(&self.mark),
            options,
            at_once: false,
        })]
    }

    fn datagram(&self, to: IpAddr, port: u16) -> Vec<Attempt> {
        self.send(UDP, None, (to, port), Options::new())
    }

    fn with(&self, options: Options) -> Vec<Attempt> {
        self.send(UDP, None, (self.denied, 9), options)
    }

    fn by_device(&self, protocol: i32, to: (IpAddr, u16)) -> Vec<Attempt> {
        self.send(protocol, None, to, vec![(libc::SOL_SOCKET, libc::SO_BINDTODEVICE, hex(b"eth0\0"))])
    }

    /// Some octets with the mark at their begin, or at their end.
    fn large(&self, octets: usize, at_the_end: bool, options: Options) -> Vec<Attempt> {
        let rest = vec![b'.'; octets - self.mark.len()];
        let whole = if at_the_end { [&rest[..], &self.mark].concat() } else { [&self.mark[..], &rest].concat() };
        let to = SocketAddr::new(self.denied, 9);
        vec![Attempt::Send(Sending { protocol: UDP, from: None, to, octets: hex(&whole), options, at_once: false })]
    }
}

struct Row {
    name: &'static str,
    tries: &'static str,
    families: &'static [Family],
    sends: fn(&Aim) -> Vec<Attempt>,
}

const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];
const BOTH: &[Family] = &FAMILIES;
const ON: [u8; 4] = 1i32.to_ne_bytes();

/// Each sends one frame with the mark. From a foreign address only in IPv6: in IPv4 the kernel routes nothing from one
/// without IP_TRANSPARENT.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { name: "a datagram", tries: "plainly", families: BOTH, sends: |aim| aim.datagram(aim.denied, 9) },
    Row { name: "a datagram to a served port", tries: "port 443", families: BOTH, sends: |aim| aim.datagram(aim.denied, SERVED) },
    Row { name: "a datagram to port 53", tries: "DNS that is none", families: BOTH, sends: |aim| aim.datagram(aim.denied, 53) },
    Row { name: "a datagram to port 853", tries: "DNS over QUIC", families: BOTH, sends: |aim| aim.datagram(aim.denied, 853) },
    Row { name: "a datagram to the allowed address's port 53", tries: "a rule without ports opens no DNS", families: BOTH, sends: |aim| aim.datagram(aim.allowed, 53) },
    Row { name: "a datagram to the neighbour", tries: "a pod on the same bridge", families: BOTH, sends: |aim| aim.datagram(aim.neighbour, 9_999) },
    Row { name: "a datagram to the neighbour without a route", tries: "SO_DONTROUTE", families: BOTH, sends: |aim| aim.send(UDP, None, (aim.neighbour, 9_999), vec![(libc::SOL_SOCKET, libc::SO_DONTROUTE, hex(&ON))]) },
    Row { name: "a datagram from a low port", tries: "as a DHCP client asks", families: BOTH, sends: |aim| aim.send(UDP, Some((aim.own, 68)), (aim.denied, 67), Options::new()) },
    Row { name: "a datagram from a flow's port", tries: "the ports of a conversation that is allowed, to somebody else", families: BOTH, sends: |aim| [Aim::new(aim.family, "a flow").send(UDP, Some((aim.own, 4_100)), (aim.allowed, 9), Options::new()), aim.send(UDP, Some((aim.own, 4_100)), (aim.denied, 9), Options::new())].concat() },
    Row { name: "a datagram from a port of the proxy's", tries: "the proxy's range, to a denied address", families: BOTH, sends: |aim| aim.send(UDP, Some((aim.own, PROXY_PORT)), (aim.denied, 9), Options::new()) },
    Row { name: "DNS to a denied address from a port of the proxy's", tries: "past the routing rules", families: BOTH, sends: |aim| aim.send(UDP, Some((aim.own, PROXY_PORT)), (aim.denied, 53), Options::new()) },
    Row { name: "DNS to an allowed address from a port of the proxy's", tries: "past the routing rules", families: BOTH, sends: |aim| aim.send(UDP, Some((aim.own, PROXY_PORT + 1)), (aim.allowed, 53), Options::new()) },
    Row { name: "DNS to the resolver from a port of the proxy's", tries: "as the proxy itself asks", families: V4, sends: |aim| aim.send(UDP, Some((aim.own, PROXY_PORT + 2)), (resolver(RESOLVER), 53), Options::new()) },
    Row { name: "DNS to the resolver from the last port", tries: "65534 is the proxy's, 65535 is not", families: V4, sends: |aim| aim.send(UDP, Some((aim.own, 65_535)), (resolver(RESOLVER), 53), Options::new()) },
    Row { name: "DNS to a foreign resolver from a port of the proxy's", tries: "past the routing rules", families: V4, sends: |aim| aim.send(UDP, Some((aim.own, PROXY_PORT + 3)), (resolver(FOREIGN_RESOLVER), 53), Options::new()) },
    Row { name: "DNS to the cluster's resolver from a port of the proxy's", tries: "past the routing rules, by the Service", families: BOTH, sends: |aim| aim.send(UDP, Some((aim.own, PROXY_PORT + 4)), (aim.family.kube_dns().ip(), 53), Options::new()) },
    Row { name: "DNS to the resolver by the device", tries: "SO_BINDTODEVICE, past the routing rules", families: V4, sends: |aim| aim.by_device(UDP, (resolver(RESOLVER), 53)) },
    Row { name: "DNS to a foreign resolver by the device", tries: "SO_BINDTODEVICE, past the routing rules", families: V4, sends: |aim| aim.by_device(UDP, (resolver(FOREIGN_RESOLVER), 53)) },
    Row { name: "DNS over TCP by the device", tries: "SO_BINDTODEVICE, past the routing rules", families: V4, sends: |aim| aim.by_device(TCP, (resolver(FOREIGN_RESOLVER), 53)) },
    Row { name: "a datagram by the device", tries: "SO_BINDTODEVICE", families: BOTH, sends: |aim| aim.by_device(UDP, (aim.denied, 9)) },
    Row { name: "a connection", tries: "plainly", families: BOTH, sends: |aim| aim.send(TCP, None, (aim.denied, SERVED), Options::new()) },
    Row { name: "a connection by the device", tries: "SO_BINDTODEVICE", families: BOTH, sends: |aim| aim.by_device(TCP, (aim.denied, SERVED)) },
    Row { name: "a connection from a port of the proxy's", tries: "the proxy's range", families: BOTH, sends: |aim| aim.send(TCP, Some((aim.own, PROXY_PORT + 6)), (aim.denied, SERVED), Options::new()) },
    Row { name: "a connection of several paths", tries: "MPTCP", families: BOTH, sends: |aim| aim.send(libc::IPPROTO_MPTCP, None, (aim.denied, SERVED), Options::new()) },
    Row { name: "a connection to the neighbour", tries: "a pod on the same bridge", families: BOTH, sends: |aim| aim.send(TCP, None, (aim.neighbour, 9_999), Options::new()) },
    Row { name: "a SYN with data", tries: "TCP Fast Open", families: BOTH, sends: |aim| vec![sending(Way::Segment(SERVED), aim.denied, text(&aim.mark))] },
    Row { name: "a ping", tries: "a socket for echo requests, which runtimes give to all", families: BOTH, sends: |aim| vec![sending(Way::Echo, aim.denied, text(&aim.mark))] },
    Row { name: "a ping of the neighbour", tries: "a socket for echo requests", families: BOTH, sends: |aim| vec![sending(Way::Echo, aim.neighbour, text(&aim.mark))] },
    Row { name: "an address that is nobody's", tries: "IPV6_FREEBIND, to what the pod may reach", families: V6, sends: |aim| aim.send(UDP, Some((aim.stranger, 4_200)), (aim.allowed, 9), aim.ip_option(libc::IP_FREEBIND, libc::IPV6_FREEBIND, &ON)) },
    Row { name: "the neighbour's address", tries: "IPV6_FREEBIND, another's policy", families: V6, sends: |aim| aim.send(UDP, Some((aim.neighbour, 4_200)), (aim.denied, 9), aim.ip_option(libc::IP_FREEBIND, libc::IPV6_FREEBIND, &ON)) },
    Row { name: "an outside address as its own", tries: "IPV6_FREEBIND, as the server of a reply", families: V6, sends: |aim| aim.send(UDP, Some((aim.denied, 53)), (aim.neighbour, 9_999), aim.ip_option(libc::IP_FREEBIND, libc::IPV6_FREEBIND, &ON)) },
    Row { name: "a recorded route", tries: "an option in front of the ports", families: V4, sends: |aim| aim.with(aim.ip_option(libc::IP_OPTIONS, 0, &[7, 7, 4, 0, 0, 0, 0, 0])) },
    Row { name: "a time stamp", tries: "an option in front of the ports", families: V4, sends: |aim| aim.with(aim.ip_option(libc::IP_OPTIONS, 0, &[68, 8, 5, 0, 0, 0, 0, 0])) },
    Row { name: "a segment route", tries: "a routing header by the allowed address (RFC 8754)", families: V6, sends: |aim| { let IpAddr::V6(via) = aim.allowed else { return Vec::new() }; aim.with(aim.ip_option(0, libc::IPV6_RTHDR, &[&[0, 4, 4, 1, 1, 0, 0, 0][..], &[0; 16], &via.octets()].concat())) } },
    Row { name: "a flow label", tries: "octets that no look-up reads", families: V6, sends: |aim| aim.with(aim.ip_option(0, libc::IPV6_TCLASS, &0xb8i32.to_ne_bytes())) },
    Row { name: "a priority", tries: "octets that no look-up reads", families: V4, sends: |aim| aim.with([aim.ip_option(libc::IP_TOS, 0, &0xb8i32.to_ne_bytes()), vec![(libc::SOL_SOCKET, libc::SO_PRIORITY, hex(&6i32.to_ne_bytes()))]].concat()) },
    Row { name: "a large datagram", tries: "the kernel cuts it up, the first piece says what it is", families: BOTH, sends: |aim| aim.large(4_000, false, Options::new()) },
    Row { name: "a large datagram's last piece", tries: "a piece without ports", families: BOTH, sends: |aim| aim.large(4_000, true, Options::new()) },
    Row { name: "datagrams in one piece", tries: "UDP_SEGMENT: the programs see one", families: BOTH, sends: |aim| aim.large(4_000, true, vec![(UDP, libc::UDP_SEGMENT, hex(&1_000i32.to_ne_bytes()))]) },
    Row { name: "an address of IPv4 in IPv6", tries: "a socket of the other family", families: V4, sends: |aim| { let IpAddr::V4(to) = aim.denied else { return Vec::new() }; aim.datagram(to.to_ipv6_mapped().into(), 9) } },
    Row { name: "multicast", tries: "who is near hears it", families: V4, sends: |aim| aim.datagram(IpAddr::from([239, 1, 2, 3]), 9) },
    Row { name: "multicast DNS", tries: "names of the link", families: V4, sends: |aim| aim.datagram(IpAddr::from([224, 0, 0, 251]), 5_353) },
    Row { name: "multicast of the link", tries: "who is near hears it", families: V6, sends: |aim| aim.by_device(UDP, ("ff02::fb".parse().expect("an address"), 5_353)) },
    Row { name: "multicast of the site", tries: "who is near hears it", families: V6, sends: |aim| aim.by_device(UDP, ("ff05::2".parse().expect("an address"), 9)) },
    Row { name: "the neighbour's address of the link", tries: "fe80::, made of its MAC", families: V6, sends: |aim| aim.by_device(UDP, ("fe80::ff:fe00:111".parse().expect("an address"), 9_999)) },
    Row { name: "a broadcast", tries: "who is near hears it", families: V4, sends: |aim| [(libc::SO_BROADCAST, ON.to_vec())].into_iter().flat_map(|(option, value)| aim.send(UDP, None, (IpAddr::from([255, 255, 255, 255]), 67), vec![(libc::SOL_SOCKET, option, hex(&value)), (libc::SOL_SOCKET, libc::SO_BINDTODEVICE, hex(b"eth0\0"))])).collect() },
    Row { name: "a broadcast to the network", tries: "who is near hears it", families: V4, sends: |aim| aim.send(UDP, None, (IpAddr::from([198, 51, 100, 255]), 9), vec![(libc::SOL_SOCKET, libc::SO_BROADCAST, hex(&ON))]) },
];

fn text(mark: &[u8]) -> &str {
    std::str::from_utf8(mark).expect("letters and digits")
}

fn resolver(text: &str) -> IpAddr {
    text.parse::<SocketAddr>().expect("an address").ip()
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for row in ROWS {
        for family in row.families {
            cases.push(Case::new(
                CLASS,
                format!("{}: {}", family.pick("ipv4", "ipv6"), row.name),
                row.tries,
                move |side, mark| {
                    for attempt in (row.sends)(&Aim::new(*family, mark)) {
                        side.world.pay.tries(attempt);
                    }
                    Shown::Frames(1)
                },
            ));
        }
    }
    cases.extend(told());
    let others = names::cases().into_iter().chain(answers::cases(Topology::Bridged, true)).chain(spoofing::cases());
    // Nobody guards the neighbour here: what it sends is no finding, and it has no grants.
    let of_the_pod = |case: &Case| !case.long && !case.name.contains("neighbour");
    cases.extend(others.filter(of_the_pod).map(|case| case.of(CLASS)));
    cases
}

/// Which knows itself whether it worked.
fn told() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        let version = family.pick("ipv4", "ipv6");
        for (how, tcp) in [("udp", false), ("tcp", true)] {
            let tries = "the node's own services are closed to pods";
            cases.push(Case::new(CLASS, format!("{version}: {how}: the node"), tries, move |side, _| {
                let to = SocketAddr::new(pick(family, ["198.51.100.1", "2001:db8:1::1"]), 9_999);
                let reach = if tcp { side.world.pay.connect(to) } else { side.world.pay.datagram(to) };
                Shown::Told(reach == Reach::Reached)
            }));
            for share in [false, true] {
                let tries = "the other container gets the queries in the proxy's place";
                let at = SocketAddr::new(pick(family, ["127.0.0.1", "::1"]), 53);
                let title = format!("{version}: {how}: the proxy's port, shared {share}");
                cases.push(Case::new(CLASS, title, tries, move |side, _| {
                    // In a process of its own: what it got it keeps as long as it lives.
                    let another = Agent::sibling(&side.world.namespace("pay"), WORKLOAD, 0);
                    Shown::Told(another.tries(Attempt::Bind { at, tcp, share }) == 0)
                }));
            }
        }
        let tries = "the kernel tells the link of it (IGMP, MLD), a channel of 2^28 words";
        // MLD is neighbours' talk in IPv6, without which nothing is found: policed, not dropped.
        if family == Family::V4 {
            cases.push(Case::new(CLASS, format!("{version}: a group joined"), tries, move |side, _| {
                let seen = side.world.node.capture(PODS[0].host);
                side.world
                    .pay
                    .tries(Attempt::Join { group: IpAddr::from([239, 77, 1, 2]), interface: INTERFACE.into() });
                let igmp = |octets: &[u8]| octets.get(12..14) == Some(&[8, 0]) && octets.get(23) == Some(&2);
                let left = || seen.frames().iter().any(|frame| !frame.outgoing && igmp(&frame.octets()));
                Shown::Told(clock::wait_until(Duration::from_millis(500), left))
            }));
        }
        for (what, attempt) in by_root(family) {
            let tries = "the kernel gives it to who has the capability only";
            cases.push(Case::new(CLASS, format!("{version}: {what}"), tries, move |side, _| {
                let root = Agent::start(&side.world.namespace("pay"));
                Shown::Both {
                    control: root.tries(attempt.clone()) == 0,
                    arrived: side.world.pay.tries(attempt.clone()) == 0,
                }
            }));
        }
    }
    let tries = "namegate's own socket, as another user";
    cases.push(Case::new(CLASS, "the admin socket", tries, |side, _| {
        let Some(_) = &side.daemon else { return Shown::Told(true) };
        let path = side.world.directory.join("run/admin.sock");
        let root = Agent::start(&side.world.namespace("pay"));
        let attempt = Attempt::Unix { path };
        Shown::Both { control: root.tries(attempt.clone()) == 0, arrived: side.world.pay.tries(attempt) == 0 }
    }));
    let tries = "as the proxy itself asks: the routing rules leave its ports out";
    cases.push(Case::new(CLASS, "ipv4: DNS over TCP from a port of the proxy's", tries, |side, mark| {
        // A port of its own each time: the last connection's is kept for a minute.
        let port = PROXY_PORT + 100 + mark[3..].parse::<u16>().expect("a number") * 2 + u16::from(side.is_guarded());
        let own = Some((Family::V4.of(&PODS[0]), port));
        let attempts = Aim::new(Family::V4, mark).send(TCP, own, (resolver(RESOLVER), 53), Options::new());
        Shown::Told(attempts.into_iter().all(|attempt| side.world.pay.tries(attempt) == 0))
    }));
    let tries = "packet sockets go past the programs: namegate says so before the first packet";
    cases.push(Case::new(CLASS, "a container with NET_RAW", tries, |side, _| {
        const NET_RAW: u64 = 1 << 13;
        let Some(daemon) = &side.daemon else { return Shown::Both { control: true, arrived: false } };
        let log = daemon.log();
        let place = |what: &str| log.iter().position(|line| line.contains(what));
        // It can't know who comes, and says so before it guards.
        let early = place("reason=\"unseen\"").zip(place("attached")).is_some_and(|(said, attached)| said < attached);
        let able = Agent::sibling_of(daemon.only_child(), WORKLOAD, NET_RAW);
        let told = || daemon.run("status", &[]).1.contains("advisory: net_raw: ");
        let told = clock::wait_until(Duration::from_secs(5), told);
        let frames = Attempt::Frames { interface: INTERFACE.into(), frames: Vec::new(), bypass: true };
        Shown::Both { control: able.tries(frames) == 0, arrived: !(early && told) }
    }));
    let tries = "an allowed question from a port of the proxy's: the reply comes past the proxy, and opens nothing";
    cases.push(Case::new(CLASS, "a question past the proxy", tries, |side, mark| {
        let server: SocketAddr = RESOLVER.parse().expect("an address");
        let asked = answers::asked_name(mark);
        let from = SocketAddr::new(Family::V4.of(&PODS[0]), PROXY_PORT + 7);
        side.world.outside.asked();
        let octets = hex(&query(0x4e47, &name(&asked), A, IN));
        let sending =
            Sending { protocol: UDP, from: Some(from), to: server, octets, options: Options::new(), at_once: false };
        side.world.pay.tries(Attempt::Send(sending));
        let heard = || side.world.outside.asked().contains(&asked);
        Shown::Told(clock::wait_until(Duration::from_millis(500), heard))
    }));
    cases
}

/// What only root may.
fn by_root(family: Family) -> Vec<(&'static str, Attempt)> {
    let frames = |bypass: bool| Attempt::Frames { interface: INTERFACE.into(), frames: Vec::new(), bypass };
    let aim = Aim::new(family, "ngx00000");
    let transparent = aim.ip_option(libc::IP_TRANSPARENT, libc::IPV6_TRANSPARENT, &ON);
    // To nobody: only the option counts.
    let to = SocketAddr::new(pick(family, ["127.0.0.1", "::1"]), 9);
    let with = |options: Options| {
        Attempt::Send(Sending { protocol: UDP, from: None, to, octets: String::new(), options, at_once: false })
    };
    let mut only_root = vec![
        ("a raw socket", Attempt::RawSocket { v6: family == Family::V6 }),
        ("a packet socket", frames(false)),
        ("a packet socket past the queueing discipline", frames(true)),
        ("IP_TRANSPARENT", with(transparent)),
        ("a high priority", with(vec![(libc::SOL_SOCKET, libc::SO_PRIORITY, hex(&7i32.to_ne_bytes()))])),
        ("a mark", Attempt::Mark),
    ];
    if family == Family::V4 {
        only_root.push((
            "a source route",
            Attempt::Route { via: pick(family, ALLOWED), to: SocketAddr::new(pick(family, DENIED), 9) },
        ));
    } else {
        only_root.push(("destination options", Attempt::Options { to }));
        only_root.push(("hop-by-hop options", with(aim.ip_option(0, libc::IPV6_HOPOPTS, &[0, 0, 1, 4, 0, 0, 0, 0]))));
    }
    only_root
}
