//! A world: two pods, their node, and an outside with name servers and what stands behind the names.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::agent::Request;
use super::agent::client::Agent;
use super::process::{fresh_prefix, guard, inside, ip_batch, must, must_inside, nft, output};

/// How pods hang on their node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topology {
    /// A veth a pod, the gateway's address on its host side.
    Routed,
    /// A veth a pod, /32 and a link-local gateway that the host side answers for.
    ProxyArp,
    /// Veths on a bridge that has the node's address, and a port of the outside on it too.
    Bridged,
}

/// What kind of world.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub topology: Topology,
}

/// IPv4 or IPv6: everything in a world exists in both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

/// The pods of a world, by their names in `config/demo`.
pub const PODS: [Pod; 2] = [
    Pod {
        name: "payment-processor",
        host: "veth-pay",
        v4: "198.51.100.10",
        v6: "2001:db8:1::10",
        mac: "02:00:00:00:01:10",
    },
    Pod { name: "reports", host: "veth-rep", v4: "198.51.100.11", v6: "2001:db8:1::11", mac: "02:00:00:00:01:11" },
];

/// A pod's place in the world.
pub struct Pod {
    pub name: &'static str,
    /// The host's side of its interface.
    pub host: &'static str,
    pub v4: &'static str,
    pub v6: &'static str,
    pub mac: &'static str,
}

/// The host side's MAC of a pod's veth; on a bridge it is the bridge's.
pub const NODE_MAC: &str = "02:00:00:00:01:01";
/// The outside's MAC on the bridge's third port (bridged worlds only).
pub const LAN_MAC: &str = "02:00:00:00:01:99";

/// A world that stands. Removed when dropped.
pub struct World {
    pub prefix: String,
    pub options: Options,
    pub directory: PathBuf,
    pub node: Agent,
    pub outside: Agent,
    pub pay: Agent,
    pub rep: Agent,
}

impl World {
    /// Builds it, with agents in every namespace and the name server running.
    #[track_caller]
    pub fn new(options: Options) -> World {
        let prefix = fresh_prefix();
        let directory = guard::directory(&prefix);
        let undo = Undo(prefix.clone());
        for sub in ["bpf", "state", "run", "snapshot"] {
            fs::create_dir_all(directory.join(sub)).expect("a directory can be made");
        }
        must(&format!("mount -t bpf bpf {}", directory.join("bpf").display()));
        for part in ["node", "outside", "pay", "rep"] {
            must(&format!("ip netns add {prefix}-{part}"));
        }
        wire(&prefix, options.topology);
        let agent = |part: &str| Agent::start(&format!("{prefix}-{part}"));
        let (node, outside, pay, rep) = (agent("node"), agent("outside"), agent("pay"), agent("rep"));
        std::mem::forget(undo);
        let world = World { prefix, options, directory, node, outside, pay, rep };
        world.outside.done(Request::ServeNames {
            at: vec![
                "203.0.113.53:5353".parse().expect("an address"),
                "[2001:db8:2::53]:5353".parse().expect("an address"),
            ],
        });
        fs::write(world.directory.join("resolv.conf"), "nameserver 198.18.0.10\noptions timeout:2 attempts:2\n")
            .expect("a file can be written");
        world
    }

    /// The namespace of `node`, `outside`, `pay` or `rep`.
    pub fn namespace(&self, part: &str) -> String {
        format!("{}-{part}", self.prefix)
    }

    /// Runs a program in a pod as a workload would: with the pod's resolv.conf. What it wrote, and whether it succeeded.
    #[track_caller]
    pub fn run_in_pod(&self, part: &str, line: &[&str]) -> (bool, String) {
        let mut command = inside(&self.namespace(part), "unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg("mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"");
        command.arg(self.directory.join("resolv.conf")).args(line);
        let output = output(command).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Runs a command line in a namespace; panics when it fails.
    #[track_caller]
    pub fn must(&self, part: &str, line: &str) -> String {
        must_inside(&self.namespace(part), line)
    }

    /// Makes a pod's interface again after it was deleted.
    #[track_caller]
    pub fn remake_pod_interface(&self, pod: usize) {
        let part = ["pay", "rep"][pod];
        attach_pod(&self.prefix, part, &PODS[pod], self.options.topology);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::env::var_os("NAMEGATE_LAB_KEEP").is_some() {
            eprintln!("kept: {}", self.prefix);
            return;
        }
        guard::remove(&self.prefix);
    }
}

/// Removes a half-built world when building panics.
struct Undo(String);

impl Drop for Undo {
    fn drop(&mut self) {
        guard::remove(&self.0);
    }
}

/// Both.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// The Service address of kube-dns.
    pub fn kube_dns(self) -> SocketAddr {
        self.pick("198.18.0.10:53", "[2001:db8:18::a]:53").parse().expect("an address")
    }

    /// One of two texts.
    pub fn pick<'a>(self, v4: &'a str, v6: &'a str) -> &'a str {
        match self {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// An outside address by its last number: 203.0.113.N or 2001:db8:2::N (the digits as they stand).
    pub fn outside(self, last: u8) -> IpAddr {
        match self {
            Family::V4 => IpAddr::from([203, 0, 113, last]),
            Family::V6 => format!("2001:db8:2::{last}").parse().expect("an address"),
        }
    }

    /// `A` or `AAAA`.
    pub fn qtype(self) -> &'static str {
        self.pick("A", "AAAA")
    }

    /// A pod's address.
    pub fn of(self, pod: &Pod) -> IpAddr {
        self.pick(pod.v4, pod.v6).parse().expect("an address")
    }
}

/// Interfaces, addresses, routes and the Service's DNAT.
fn wire(prefix: &str, topology: Topology) {
    let (node, outside) = (format!("{prefix}-node"), format!("{prefix}-outside"));
    // Before there is an interface: a link-local address on probation answers nobody for a second.
    let settings = [("net/ipv6/conf/default/accept_dad", "0"), ("net/ipv6/conf/default/accept_ra", "0")];
    sysctl(&outside, &settings);
    sysctl(
        &node,
        &[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            settings[0],
            settings[1],
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv6/icmp/ratelimit", "0"),
        ],
    );
    ip_batch(
        &node,
        &format!(
            "link set lo up\n\
             link add wan0 type veth peer name eth0 netns {outside}\n\
             link set wan0 up\n\
             address add 198.18.255.1/30 dev wan0\n\
             address add 2001:db8:ff::1/64 dev wan0 nodad\n\
             address add 198.51.100.1/32 dev lo\n\
             address add 2001:db8:1::1/128 dev lo nodad\n"
        ),
    );
    ip_batch(
        &outside,
        "link set lo up\n\
         link set eth0 up\n\
         address add 198.18.255.2/30 dev eth0\n\
         address add 2001:db8:ff::2/64 dev eth0 nodad\n\
         address add 203.0.113.53/32 dev lo\n\
         address add 203.0.113.54/32 dev lo\n\
         address add 2001:db8:2::53/128 dev lo nodad\n\
         address add 2001:db8:2::54/128 dev lo nodad\n\
         route add local 203.0.113.0/24 dev lo\n\
         route add local 198.19.0.0/16 dev lo\n\
         route add local 2001:db8:2::/64 dev lo\n\
         route add local 2001:db8:19::/64 dev lo\n\
         route add 198.51.100.0/24 via 198.18.255.1\n\
         route add 2001:db8:1::/64 via 2001:db8:ff::1\n",
    );
    sysctl(
        &outside,
        &[("net/ipv4/ip_nonlocal_bind", "1"), ("net/ipv6/ip_nonlocal_bind", "1"), ("net/ipv4/ipfrag_time", "2")],
    );
    ip_batch(&node, "route add default via 198.18.255.2\nroute add default via 2001:db8:ff::2\n");
    if topology == Topology::Bridged {
        ip_batch(
            &node,
            &format!(
                "link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
                 link set br0 address {NODE_MAC}\n\
                 link set br0 up\n\
                 address add 198.51.100.1/24 dev br0\n\
                 address add 2001:db8:1::1/64 dev br0 nodad\n\
                 link add lan0 type veth peer name lan0 netns {outside} address {LAN_MAC}\n\
                 link set lan0 master br0\n\
                 link set lan0 up\n"
            ),
        );
        ip_batch(&outside, "link set lan0 up\n");
    }
    for (part, pod) in ["pay", "rep"].into_iter().zip(&PODS) {
        attach_pod(prefix, part, pod, topology);
    }
    nft(
        &node,
        "table ip services {\n\
           chain before { type nat hook prerouting priority dstnat; jump translate; }\n\
           chain own { type nat hook output priority -100; jump translate; }\n\
           chain translate {\n\
             ip daddr 198.18.0.10 udp dport 53 dnat to 203.0.113.53:5353\n\
             ip daddr 198.18.0.10 tcp dport 53 dnat to 203.0.113.53:5353\n\
           }\n\
         }\n\
         table ip6 services {\n\
           chain before { type nat hook prerouting priority dstnat; jump translate; }\n\
           chain own { type nat hook output priority -100; jump translate; }\n\
           chain translate {\n\
             ip6 daddr 2001:db8:18::a udp dport 53 dnat to [2001:db8:2::53]:5353\n\
             ip6 daddr 2001:db8:18::a tcp dport 53 dnat to [2001:db8:2::53]:5353\n\
           }\n\
         }\n",
    );
}

/// The veth of a pod, both ends, with addresses and routes.
fn attach_pod(prefix: &str, part: &str, pod: &Pod, topology: Topology) {
    let (node, namespace) = (format!("{prefix}-node"), format!("{prefix}-{part}"));
    let Pod { host, v4, v6, mac, .. } = pod;
    sysctl(&namespace, &[("net/ipv6/conf/default/accept_dad", "0"), ("net/ipv6/conf/default/accept_ra", "0")]);
    let host_mac =
        if topology == Topology::Bridged { String::new() } else { format!("link set {host} address {NODE_MAC}\n") };
    ip_batch(&node, &format!("link add {host} type veth peer name eth0 netns {namespace} address {mac}\n{host_mac}"));
    match topology {
        Topology::Routed => {
            ip_batch(
                &node,
                &format!(
                    "link set {host} up\n\
                     address add 198.51.100.1/32 dev {host}\n\
                     address add 2001:db8:1::1/128 dev {host} nodad\n\
                     route add {v4}/32 dev {host} src 198.51.100.1\n\
                     route add {v6}/128 dev {host} src 2001:db8:1::1\n"
                ),
            );
            ip_batch(
                &namespace,
                &format!(
                    "link set lo up\nlink set eth0 up\n\
                     address add {v4}/32 dev eth0\naddress add {v6}/128 dev eth0 nodad\n\
                     route add default via 198.51.100.1 dev eth0 onlink\n\
                     route add default via 2001:db8:1::1 dev eth0 onlink\n"
                ),
            );
        }
        Topology::ProxyArp => {
            sysctl(
                &node,
                &[
                    (&format!("net/ipv4/conf/{host}/proxy_arp"), "1"),
                    (&format!("net/ipv4/neigh/{host}/proxy_delay"), "0"),
                ],
            );
            ip_batch(
                &node,
                &format!(
                    "link set {host} up\n\
                     address add fe80::1/64 dev {host} nodad\n\
                     route add {v4}/32 dev {host} src 198.51.100.1\n\
                     route add {v6}/128 dev {host} src 2001:db8:1::1\n"
                ),
            );
            ip_batch(
                &namespace,
                &format!(
                    "link set lo up\nlink set eth0 up\n\
                     address add {v4}/32 dev eth0\naddress add {v6}/128 dev eth0 nodad\n\
                     route add 169.254.1.1 dev eth0 scope link\n\
                     route add default via 169.254.1.1 dev eth0\n\
                     route add default via fe80::1 dev eth0\n"
                ),
            );
        }
        Topology::Bridged => {
            ip_batch(&node, &format!("link set {host} master br0\nlink set {host} up\n"));
            ip_batch(
                &namespace,
                &format!(
                    "link set lo up\nlink set eth0 up\n\
                     address add {v4}/24 dev eth0\naddress add {v6}/64 dev eth0 nodad\n\
                     route add default via 198.51.100.1 dev eth0\n\
                     route add default via 2001:db8:1::1 dev eth0\n"
                ),
            );
        }
    }
}

/// Settings of a namespace, written in one child that is inside it.
fn sysctl(namespace: &str, settings: &[(&str, &str)]) {
    let script: String = settings.iter().map(|(path, value)| format!("echo {value} > /proc/sys/{path}\n")).collect();
    let mut command = inside(namespace, "sh");
    command.args(["-ec", &script]);
    let output = output(command).expect("a shell starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
