//! What a node may be set to: rp_filter, src_valid_mark, bridge-nf-call-iptables and the MTU change between rounds while
//! namegate runs, and each round all that is to pass does, in both families, and what is not to doesn't.
//!
//! A red pod is guarded; that a green one, which no policy selects, reaches what the red one may not is the control.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use libtest_mimic::{Failed, Trial};

use super::yard::{BLUE, Cni, GREEN, LIMIT, NAME, Pod, RED, Yard};
use crate::lab::agent::client::Agent;
use crate::lab::agent::{Question, Reach, Reply, Request};
use crate::lab::process::{inside, ip_batch, nft, output};
use crate::lab::world::{FAMILIES, Family};
use crate::lab::{Topology, clock, snapshot};

/// The kernel has this where bridges can hand frames to the packet filter.
const BRIDGE_NF: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
/// What the pods serve: policy opens the first to the world, and the second to nobody.
const OPEN: u16 = 8_080;
const CLOSED: u16 = 8_081;
const MEGABYTE: usize = 1 << 20;
/// Octets of a datagram that one frame holds at the larger MTU, and at the smaller one doesn't.
const LARGE: usize = 8_900;
const JUMBO: u32 = 9_000;

pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, topology: Topology, cni: Cni, bridge_nf: u8| {
        Trial::test(format!("discovery::matrix::{name}"), move || play(topology, cni, bridge_nf))
    };
    let has_bridge_nf = Path::new(BRIDGE_NF).exists();
    if !has_bridge_nf {
        eprintln!("discovery::matrix: this kernel has no {BRIDGE_NF} (br_netfilter): ignored");
    }
    vec![
        trial("routed_pods_are_guarded_whatever_the_node_is_set_to", Topology::ProxyArp, Cni::Calico, 0),
        trial("bridged_pods_are_guarded_whatever_the_node_is_set_to", Topology::Bridged, Cni::Flannel, 0),
        trial("bridged_pods_are_guarded_under_the_packet_filter_too", Topology::Bridged, Cni::Flannel, 1)
            .with_ignored_flag(!has_bridge_nf),
    ]
}

/// What a node is set to; on every interface.
struct Settings {
    rp_filter: u8,
    src_valid_mark: u8,
    bridge_nf: u8,
    mtu: u32,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { rp_filter, src_valid_mark, bridge_nf, mtu } = self;
        write!(f, "rp_filter {rp_filter}, src_valid_mark {src_valid_mark}, bridge-nf {bridge_nf}, MTU {mtu}")
    }
}

/// The Services in front of what red pods may reach, and may not.
fn service(family: Family, open: bool) -> SocketAddr {
    let (v4, v6) = if open { ("198.18.0.80", "2001:db8:18::80") } else { ("198.18.0.81", "2001:db8:18::81") };
    SocketAddr::new(family.pick(v4, v6).parse().expect("an address"), 80)
}

/// A Service with one backend outside, as the API has it, and what kube-proxy makes of it.
fn write_services(yard: &Yard) {
    let (mut objects, mut rules) = (String::new(), String::new());
    for (name, open, last) in [("open", true, RED.0), ("closed", false, BLUE.0)] {
        let [v4, v6] = FAMILIES.map(|family| service(family, open).ip());
        objects += &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: payments}}\nspec:\n  \
             clusterIP: {v4}\n  clusterIPs: [{v4}, \"{v6}\"]\n  \
             ports: [{{name: web, protocol: TCP, port: 80, targetPort: 7}}]\n---\n"
        );
        for family in FAMILIES {
            let (word, backend) = (family.pick("IPv4", "IPv6"), family.outside(last));
            objects += &format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: {name}-{}, namespace: payments, labels: {{kubernetes.io/service-name: {name}}}}}\n\
                 addressType: {word}\nports: [{{name: web, protocol: TCP, port: 7}}]\n\
                 endpoints: [{{addresses: [\"{backend}\"], conditions: {{ready: true}}}}]\n---\n",
                word.to_ascii_lowercase()
            );
            let (at, ip) = (service(family, open).ip(), family.pick("ip", "ip6"));
            let to = SocketAddr::new(backend, 7);
            rules += &format!(
                "table {ip} proxy-{name} {{\n\
                 chain before {{ type nat hook prerouting priority dstnat; {ip} daddr {at} tcp dport 80 dnat to {to}\n}}\n\
                 }}\n"
            );
        }
    }
    std::fs::write(yard.world.directory.join("snapshot/services.yaml"), objects).expect("a file can be written");
    nft(&yard.world.namespace("node"), &rules);
}

/// Red pods may reach one address and learn one name; the world may reach one port of theirs.
fn write_policy(yard: &Yard) {
    let last = RED.0;
    let rules = format!(
        "  - toCIDR: [203.0.113.{last}/32, \"2001:db8:2::{last}/128\"]\n  - toFQDNs: [{{matchName: {NAME}}}]\n  \
         ingress:\n  - fromCIDR: [198.18.255.2/32, \"2001:db8:ff::2/128\"]\n    \
         toPorts: [{{ports: [{{port: \"{OPEN}\", protocol: TCP}}]}}]\n"
    );
    snapshot::with_policy(&yard.world.directory.join("snapshot"), &snapshot::policy("red", &rules));
}

/// The names of an answer that fits a datagram of the proxy's, and of one that doesn't: how many addresses each has.
fn addresses_of(family: Family, large: bool) -> usize {
    match (family, large) {
        (Family::V4, false) => 70,
        (Family::V6, false) => 40,
        (_, true) => 100,
    }
}

fn write_names(yard: &Yard) {
    for (suffix, large) in [("fits", false), ("large", true)] {
        let addresses: Vec<IpAddr> = FAMILIES
            .into_iter()
            .flat_map(|family| (1..=addresses_of(family, large)).map(move |last| family.outside(last as u8)))
            .collect();
        yard.world.outside.say_addresses(&format!("*.{suffix}.example.net"), &addresses, 300);
    }
}

fn play(topology: Topology, cni: Cni, bridge_nf: u8) -> Result<(), Failed> {
    let yard = Yard::new(topology, cni);
    write_policy(&yard);
    write_services(&yard);
    write_names(&yard);
    let daemon = yard.start(&[]);
    let (red, green) = (yard.appear(0, RED), yard.appear(1, GREEN));
    for pod in [&red, &green] {
        for (port, family) in [OPEN, CLOSED].into_iter().flat_map(|port| FAMILIES.map(|family| (port, family))) {
            pod.agent().done(Request::ServeTcp { at: SocketAddr::new(pod.address(family), port) });
        }
    }
    yard.is_guarded_as(&red, RED);
    let free =
        || FAMILIES.into_iter().all(|family| green.agent().connect(yard.outside(family, BLUE)) == Reach::Reached);
    assert!(clock::wait_until(LIMIT, free), "{:#}", yard.status());
    let kept = FAMILIES.map(|family| {
        assert_eq!(red.agent().ask(family.kube_dns(), NAME, family.qtype()).addresses, [yard.named(family).ip()]);
        red.agent().open(yard.named(family)).unwrap_or_else(|reach| panic!("{family:?}: {reach:?}"))
    });
    let mut round = 0;
    for mtu in [1_500, JUMBO] {
        for (rp_filter, src_valid_mark) in (0..3).flat_map(|filter| [(filter, 0), (filter, 1)]) {
            let settings = Settings { rp_filter, src_valid_mark, bridge_nf, mtu };
            set(&yard, &[&red, &green], &settings);
            for (family, kept) in FAMILIES.into_iter().zip(kept) {
                holds(&yard, &red, &green, family, round, &settings);
                assert_eq!(red.agent().exchange(kept), Reach::Reached, "a connection goes on, {family:?}, {settings}");
            }
            round += 1;
        }
    }
    assert!(daemon.ready().0, "{}", daemon.ready().1);
    Ok(())
}

/// Sets the node, and looks that it is so.
#[track_caller]
fn set(yard: &Yard, pods: &[&Pod], settings: &Settings) {
    let Settings { rp_filter, src_valid_mark, bridge_nf, mtu } = settings;
    let script = format!(
        "cd /proc/sys/net\n\
         for at in ipv4/conf/*; do echo {rp_filter} >$at/rp_filter; echo {src_valid_mark} >$at/src_valid_mark; done\n\
         for at in bridge/bridge-nf-call-iptables bridge/bridge-nf-call-ip6tables; do\n\
         if [ -e $at ]; then echo {bridge_nf} >$at; fi\n\
         done\n\
         cat ipv4/conf/all/rp_filter ipv4/conf/{}/src_valid_mark bridge/bridge-nf-call-iptables 2>/dev/null || echo 0",
        pods[0].host
    );
    let mut command = inside(&yard.world.namespace("node"), "sh");
    command.args(["-ec", &script]);
    let said = output(command).expect("a shell starts");
    let found = String::from_utf8_lossy(&said.stdout).into_owned();
    let wanted = [rp_filter, src_valid_mark, bridge_nf].map(u8::to_string);
    assert!(said.status.success() && found.split_whitespace().eq(&wanted), "{settings}: {found}");
    let line = |name: &str| format!("link set {name} mtu {mtu}\n");
    let (shared, bridge): (&[&str], &[&str]) = if yard.is_bridged() { (&["lan0"], &["br0"]) } else { (&[], &[]) };
    let hosts = pods.iter().map(|pod| pod.host.as_str());
    let node: String = ["wan0"]
        .into_iter()
        .chain(shared.iter().copied())
        .chain(hosts)
        .chain(bridge.iter().copied())
        .map(line)
        .collect();
    ip_batch(&yard.world.namespace("node"), &node);
    let outside: String = ["eth0"].into_iter().chain(shared.iter().copied()).map(line).collect();
    ip_batch(&yard.world.namespace("outside"), &outside);
    for pod in pods {
        ip_batch(&pod.namespace, &line("eth0"));
    }
}

fn holds(yard: &Yard, red: &Pod, green: &Pod, family: Family, round: usize, settings: &Settings) {
    let is = |what: &str, seen: Reach, expected: Reach| assert_eq!(seen, expected, "{what}, {family:?}, {settings}");
    let passes = |what: &str, seen: Reach| is(what, seen, Reach::Reached);
    let (guarded, free) = (red.agent(), green.agent());

    // DNS by the Service's address. The names are new each time: the proxy asks outside.
    for tcp in [false, true] {
        for large in [false, true] {
            let name = format!("n{round}{}.{}.example.net", u8::from(tcp), if large { "large" } else { "fits" });
            let qtype = family.qtype().to_owned();
            let server = family.kube_dns();
            let question = Question { server, name, qtype, tcp, tls: None, edns: Some(4_096), within_ms: 3_000 };
            let said = guarded.ask_as(question);
            let found = (said.rcode.as_str(), said.truncated, said.addresses.len());
            // A datagram of more than 1 232 octets is not sent (README): whoever wants all asks over TCP.
            let cut = large && !tcp;
            let wanted = ("NOERROR", cut, if cut { said.addresses.len() } else { addresses_of(family, large) });
            assert_eq!(found, wanted, "DNS over TCP {tcp}, large {large}, {family:?}, {settings}");
            assert!(!cut || said.addresses.len() < addresses_of(family, large));
        }
    }

    // What may leave: much of it, and in large frames.
    passes("a megabyte", bulk(guarded, yard.outside(family, RED)));
    let seen = yard.world.outside.capture("eth0");
    passes("a large datagram", datagram(guarded, yard.outside(family, RED), LARGE));
    if settings.mtu == JUMBO {
        seen.wait_for("the datagram in one frame", |frame| frame.len() > LARGE);
    }
    drop(seen);
    passes("by a Service", guarded.connect(service(family, true)));

    // What may not, with its control.
    is("a denied connection", guarded.connect(yard.outside(family, BLUE)), Reach::Refused);
    passes("control: the same of another pod", free.connect(yard.outside(family, BLUE)));
    is("a denied Service", guarded.connect(service(family, false)), Reach::Refused);
    passes("control: the same of another pod", free.connect(service(family, false)));
    let refused = if family == Family::V4 { Reach::Unreachable } else { Reach::Refused }; // as Linux reads the ICMP error
    is("a denied datagram", guarded.datagram(yard.outside(family, BLUE)), refused);
    passes("control: the same of another pod", free.datagram(yard.outside(family, BLUE)));

    // What comes in: the node's probes always, the world's where policy says so; replies leave by their flow alone.
    let of = |pod: &Pod, port: u16| SocketAddr::new(pod.address(family), port);
    for port in [OPEN, CLOSED] {
        passes("kubelet's probe", yard.world.node.connect(of(red, port)));
    }
    passes("from outside", bulk(&yard.world.outside, of(red, OPEN)));
    let denied = yard.world.outside.call(Request::Connect { to: of(red, CLOSED), within_ms: 100 });
    assert!(
        !matches!(denied, Reply::Reached { reach: Reach::Reached, .. }),
        "denied from outside, {family:?}, {settings}"
    );
    passes("control: the same to another pod", yard.world.outside.connect(of(green, CLOSED)));
}

fn bulk(agent: &Agent, to: SocketAddr) -> Reach {
    agent.call(Request::Bulk { to, octets: MEGABYTE, within_ms: 5_000 }).reach()
}

fn datagram(agent: &Agent, to: SocketAddr, octets: usize) -> Reach {
    agent.call(Request::Datagram { to, octets, within_ms: 2_000 }).reach()
}
