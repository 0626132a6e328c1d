//! The world of the benches: two enforced workloads, one without namegate, their node, and an outside with nsd.
//!
//! ```text
//!   a, b ── veth-a, veth-b ── node ── wan0 ══ outside: nsd on 203.0.113.53:53, 198.18.0.0/15 is all local
//!   plain ───── veth-plain ───┘ namegate, dnsdist, unbound
//! ```
//!
//! All three veths are alike but for namegate on two of them. No netfilter: pods ask nsd's own address, so that namegate
//! and the others have the same way up.
//!
//! | names under bench.example | addresses |
//! |---|---|
//! | n0 to n19999 | one each |
//! | q0 to q8191 | 4096, two names each |
//! | c0.many to c99999.many | the same 4096; no toFQDNs selects them |
//! | d0 to d99999 | one each |
//! | whatever.w0.new to whatever.w4095.new | the same 4096, TTL 5 |

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::lab::clock::wait_until;
use super::lab::daemon::{program, run};
use super::lab::process::{fresh_prefix, guard, inside, ip_batch, must, output, spawn};

/// A workload, its address, and its namespace's short name.
pub const PODS: [(&str, &str); 3] = [("a", "198.51.100.10"), ("b", "198.51.100.11"), ("plain", "198.51.100.12")];
/// The node's own address.
pub const NODE: &str = "198.51.100.1";
/// nsd, and what the workloads have as their resolver.
pub const RESOLVER: &str = "203.0.113.53";
/// Opened by a CIDR rule, on port 5201.
pub const STREAM: &str = "203.0.113.80";
/// Names `n0.bench.example` and so on, each with the address [`address`].
pub const NAMES: u32 = 20_000;
/// Names `q0.bench.example` and so on, two for each of 4096 addresses of their own.
pub const QUERY_NAMES: u32 = 8192;
/// Addresses that names without one of their own share.
pub const QUERY_ADDRESSES: u32 = 4096;
/// Names `c0.many.bench.example` and so on, on the addresses of the `q` names. One workload may hold 65 536 names on
/// addresses, so that these are not selected by a toFQDNs.
pub const CACHED_NAMES: u32 = 100_000;
/// Names `d0.bench.example` and so on, each with an address of its own.
pub const DISTINCT_NAMES: u32 = 100_000;
/// Where unbound listens, on the node's address.
pub const UNBOUND_PORT: &str = "5301";
/// Connections that may wait to be accepted outside.
pub const BACKLOG: u32 = NAMES;

/// A world that stands. Removed when dropped.
pub struct World {
    pub prefix: String,
    pub directory: PathBuf,
    /// Ended when the world is removed, last started first.
    children: Vec<Child>,
}

impl World {
    /// Namespaces, links, and nsd with its zone.
    pub fn new() -> World {
        let prefix = fresh_prefix();
        let directory = guard::directory(&prefix);
        let mut world = World { prefix, directory, children: Vec::new() };
        for sub in ["bpf", "state", "run", "snapshot", "nsd"] {
            fs::create_dir_all(world.directory.join(sub)).expect("a directory can be made");
        }
        must(&format!("mount -t bpf bpf {}", world.directory.join("bpf").display()));
        for part in ["node", "out", "a", "b", "plain"] {
            must(&format!("ip netns add {}-{part}", world.prefix));
        }
        world.wire();
        world.start_nsd();
        world
    }

    /// The namespace of `node`, `out`, `a`, `b` or `plain`.
    pub fn namespace(&self, part: &str) -> String {
        format!("{}-{part}", self.prefix)
    }

    /// Starts namegate for `a` and `b` with its defaults but for `settings` (KEY=VALUE), waits until it is ready; its
    /// process.
    pub fn start_namegate(&mut self, settings: &[&str]) -> u32 {
        fs::write(self.directory.join("snapshot/cluster.yaml"), snapshot()).expect("a file can be written");
        let endpoints = ["veth-a=bench/client-a", "veth-b=bench/client-b"].map(str::to_owned);
        self.start_node("bench-node", &endpoints, settings)
    }

    /// The same for these endpoints of a snapshot that is there already.
    pub fn start_node(&mut self, name: &str, endpoints: &[String], settings: &[&str]) -> u32 {
        let path = |name: &str| self.directory.join(name).to_str().expect("a path in UTF-8").to_owned();
        let mut command = inside(&self.namespace("node"), program().to_str().expect("a path in UTF-8"));
        command
            .args(["node", "--node-name", name])
            .args(endpoints.iter().flat_map(|endpoint| ["--endpoint", endpoint]))
            .args(["--snapshot", &path("snapshot"), "--state-dir", &path("state"), "--run-dir", &path("run")])
            .args(["--pin-dir", &path("bpf/namegate")])
            .args(settings.iter().flat_map(|setting| ["--set", setting]))
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.directory.join("namegate.log")).expect("a file can be made"));
        let pid = self.keep(spawn(command).expect("namegate starts"));
        let (ready, said) = run(&self.namespace("node"), &self.directory, "ready", &["--wait", "--timeout", "15s"]);
        assert!(ready, "namegate is not ready: {said}\n{}", self.log());
        pid
    }

    /// Starts dnsdist on the node's address, two listeners and two sockets to nsd, with a cache for so many answers or
    /// without one; its process.
    pub fn start_dnsdist(&mut self, cached: Option<u32>) -> u32 {
        let config = self.directory.join("dnsdist.conf");
        let cache = cached.map_or(String::new(), |answers| {
            format!("getPool(''):setCache(newPacketCache({answers}, {{maxTTL=86400}}))\n")
        });
        let text = format!(
            "setLocal('{NODE}:53', {{reusePort=true}})\n\
             addLocal('{NODE}:53', {{reusePort=true}})\n\
             setACL('0.0.0.0/0')\n\
             newServer({{address='{RESOLVER}:53', healthCheckMode='up', sockets=2}})\n\
             setSecurityPollSuffix('')\n\
             {cache}"
        );
        fs::write(&config, text).expect("a file can be written");
        let mut command = inside(&self.namespace("node"), "dnsdist");
        command.args(["--supervised", "--disable-syslog", "-C"]).arg(&config);
        let log = || {
            fs::File::options()
                .create(true)
                .append(true)
                .open(self.directory.join("dnsdist.log"))
                .expect("a file can be made")
        };
        command.stdin(Stdio::null()).stdout(log()).stderr(log());
        let pid = self.keep(spawn(command).expect("dnsdist starts"));
        self.wait_for_dns("plain", NODE);
        pid
    }

    /// Starts unbound on the node's address, port [`UNBOUND_PORT`], as a forwarder to nsd that validates nothing; its
    /// process.
    pub fn start_unbound(&mut self) -> u32 {
        let config = self.directory.join("unbound.conf");
        let text = format!(
            "server:\n  interface: {NODE}@{UNBOUND_PORT}\n  num-threads: 2\n  so-reuseport: yes\n  username: \"\"\n  chroot: \"\"\n  \
             pidfile: \"\"\n  use-syslog: no\n  logfile: {}\n  access-control: 0.0.0.0/0 allow\n  module-config: \"iterator\"\n  \
             minimal-responses: yes\n\
             remote-control:\n  control-enable: no\n\
             forward-zone:\n  name: \".\"\n  forward-addr: {RESOLVER}\n",
            self.directory.join("unbound.log").display()
        );
        fs::write(&config, text).expect("a file can be written");
        let mut command = inside(&self.namespace("node"), "unbound");
        command.args(["-d", "-c"]).arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let pid = self.keep(spawn(command).expect("unbound starts"));
        self.wait_for_dns("plain", &format!("{NODE}#{UNBOUND_PORT}"));
        pid
    }

    /// Starts a program in a namespace that lives as long as the world.
    pub fn start(&mut self, part: &str, line: &[&str]) {
        let mut command = inside(&self.namespace(part), line[0]);
        command.args(&line[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = spawn(command).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        self.keep(child);
    }

    /// Runs a program in a namespace to its end; what it wrote. Panics with its words when it fails.
    pub fn output(&self, part: &str, line: &[&str]) -> String {
        let mut command = inside(&self.namespace(part), line[0]);
        command.args(&line[1..]);
        let output = output(command).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{line:?}: {text}{}\n{}", String::from_utf8_lossy(&output.stderr), self.log());
        text
    }

    /// namegate reads the kernel's counters once a second or so.
    pub fn let_counters_settle(&self) {
        std::thread::sleep(Duration::from_secs(3));
    }

    /// Packets that the kernel programs dropped so far, by direction and reason.
    pub fn dropped(&self) -> Value {
        let socket = self.directory.join("run/admin.sock");
        let text = self.output(
            "node",
            &["curl", "-s", "--unix-socket", socket.to_str().expect("a path in UTF-8"), "http://namegate/metrics"],
        );
        let rows =
            text.lines().filter(|line| line.starts_with("namegate_packets_total{") && line.contains("\"dropped\""));
        let label = |line: &str, name: &str| {
            line.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned)
        };
        rows.filter_map(|line| {
            let count: f64 = line.rsplit(' ').next()?.parse().ok()?;
            (count > 0.0).then_some((format!("{} {}", label(line, "direction")?, label(line, "reason")?), count.into()))
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
    }

    /// How queries were answered so far, by where the answer came from: a worker's ready reply (hot), the cache (hit), or
    /// the resolver (miss).
    pub fn cache_uses(&self) -> Value {
        let socket = self.directory.join("run/admin.sock");
        let text = self.output(
            "node",
            &["curl", "-s", "--unix-socket", socket.to_str().expect("a path in UTF-8"), "http://namegate/metrics"],
        );
        let rows = text.lines().filter_map(|line| line.strip_prefix("namegate_answers_total{"));
        let row = |line: &str| {
            Some((line.split('"').nth(1)?.to_owned(), line.rsplit(' ').next()?.parse::<f64>().ok()?.into()))
        };
        rows.filter_map(row).collect::<serde_json::Map<_, _>>().into()
    }

    /// SYNs that the outside's server could not take, by the kernel's own count: they say nothing about namegate.
    pub fn listen_drops(&self) -> u64 {
        let text = self.output("out", &["nstat", "-asz", "TcpExtListenDrops"]);
        let line = text.lines().find_map(|line| line.strip_prefix("TcpExtListenDrops"));
        line.and_then(|rest| rest.split_whitespace().next()).and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// The last lines that namegate wrote.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.directory.join("namegate.log")).unwrap_or_default();
        text.lines().rev().take(20).collect::<Vec<_>>().join("\n")
    }

    /// A file that dnsperf reads: these names under bench.example, type A, in this order.
    pub fn names(&self, file: &str, names: impl Iterator<Item = String>) -> String {
        let path = self.directory.join(file);
        let text = names.fold(String::new(), |mut text, name| {
            let _ = writeln!(text, "{name}.bench.example A");
            text
        });
        fs::write(&path, text).expect("a file can be written");
        path.to_str().expect("a path in UTF-8").to_owned()
    }

    /// Waits until a name is answered from a namespace; `server` as an address, or address#port.
    fn wait_for_dns(&self, part: &str, server: &str) {
        let (address, port) = server.split_once('#').unwrap_or((server, "53"));
        let answered = wait_until(Duration::from_secs(20), || {
            let line =
                ["dig", "+short", "+tries=1", "+time=1", "-p", port, &format!("@{address}"), "ready.bench.example"];
            let mut command = inside(&self.namespace(part), line[0]);
            command.args(&line[1..]);
            output(command).is_ok_and(|output| output.stdout.starts_with(b"203.0.113.53"))
        });
        assert!(answered, "{server} does not answer {part}");
    }

    fn keep(&mut self, child: Child) -> u32 {
        let pid = child.id();
        self.children.push(child);
        pid
    }

    fn wire(&self) {
        let (node, out) = (self.namespace("node"), self.namespace("out"));
        let mut lines = format!(
            "link set lo up\n\
             address add {NODE}/32 dev lo\n\
             link add wan0 type veth peer name eth0 netns {out}\n\
             link set wan0 up\n\
             address add 203.0.113.1/24 dev wan0\n\
             route add default via {RESOLVER}\n"
        );
        for (pod, address) in PODS {
            let namespace = self.namespace(pod);
            let _ = write!(
                lines,
                "link add veth-{pod} type veth peer name eth0 netns {namespace}\n\
                 link set veth-{pod} up\n\
                 address add {NODE}/32 dev veth-{pod}\n\
                 route add {address}/32 dev veth-{pod} src {NODE}\n"
            );
        }
        // The outside's side must be up for the default route.
        let (before, after) = lines.split_at(lines.find("route add default").expect("it is above"));
        ip_batch(&node, before);
        ip_batch(
            &out,
            &format!(
                "link set lo up\n\
                 link set eth0 up\n\
                 address add {RESOLVER}/24 dev eth0\n\
                 address add {STREAM}/24 dev eth0\n\
                 route add local 198.18.0.0/15 dev lo\n\
                 route add 198.51.100.0/24 via 203.0.113.1\n"
            ),
        );
        ip_batch(&node, after);
        self.output("node", &["sh", "-ec", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        self.output("out", &["sh", "-ec", &format!("echo {BACKLOG} > /proc/sys/net/core/somaxconn")]);
        for (pod, address) in PODS {
            ip_batch(
                &self.namespace(pod),
                &format!(
                    "link set lo up\nlink set eth0 up\naddress add {address}/32 dev eth0\n\
                     route add default via {NODE} dev eth0 onlink\n"
                ),
            );
            // A port for each of thousands of connections to one port.
            self.output(pod, &["sh", "-ec", "echo 1024 65000 > /proc/sys/net/ipv4/ip_local_port_range"]);
        }
    }

    fn start_nsd(&mut self) {
        let directory = self.directory.join("nsd");
        let at = directory.display();
        let config = format!(
            "server:\n  ip-address: {RESOLVER}@53\n  server-count: 1\n  username: \"\"\n  zonesdir: {at}\n  database: \"\"\n  \
             pidfile: {at}/pid\n  xfrdfile: {at}/xfrd\n  xfrdir: {at}\n  zonelistfile: {at}/zones\n  rrl-ratelimit: 0\n\
             remote-control:\n  control-enable: no\n\
             zone:\n  name: bench.example\n  zonefile: zone\n"
        );
        fs::write(directory.join("nsd.conf"), config).expect("a file can be written");
        let mut zone =
            "$TTL 300\n@ IN SOA ns h 1 3600 600 86400 60\n@ IN NS ns\nns IN A 203.0.113.53\nready IN A 203.0.113.53\n"
                .to_owned();
        for i in 0..NAMES {
            let _ = writeln!(zone, "n{i} IN A {}", address(i));
        }
        for i in 0..QUERY_NAMES {
            let _ = writeln!(zone, "q{i} IN A {}", shared_address(i));
        }
        for i in 0..CACHED_NAMES {
            let _ = writeln!(zone, "c{i}.many IN A {}", shared_address(i));
        }
        for i in 0..DISTINCT_NAMES {
            let _ = writeln!(zone, "d{i} IN A {}", address(NAMES + QUERY_ADDRESSES + i));
        }
        for i in 0..QUERY_ADDRESSES {
            let _ = writeln!(zone, "*.w{i}.new 5 IN A {}", shared_address(i));
        }
        fs::write(directory.join("zone"), zone).expect("a file can be written");
        let config = directory.join("nsd.conf");
        self.start("out", &["nsd", "-d", "-c", config.to_str().expect("a path in UTF-8")]);
        self.wait_for_dns("plain", RESOLVER);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for mut child in self.children.drain(..).rev() {
            // nsd ends its own children on SIGTERM; the rest have nothing to lose.
            // SAFETY: the child has not been waited for, so the number is still its own.
            unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
            if !wait_until(Duration::from_secs(2), || !matches!(child.try_wait(), Ok(None))) {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        guard::remove(&self.prefix);
    }
}

/// The address of name `i`; distinct for each.
pub fn address(i: u32) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from_bits(std::net::Ipv4Addr::new(198, 18, 1, 0).to_bits() + i)
}

/// One of the addresses that names without one of their own share.
fn shared_address(i: u32) -> std::net::Ipv4Addr {
    address(NAMES + i % QUERY_ADDRESSES)
}

/// The name `i` of those that nobody has asked for: `round` makes them new.
pub fn new_name(round: &str, i: u32) -> String {
    format!("{round}-{i}.w{}.new", i % QUERY_ADDRESSES)
}

/// One node, two workloads, the cluster's DNS, and a policy: ask anything, reach what is under bench.example on 443.
fn snapshot() -> String {
    let pod = |namespace: &str, name: &str, labels: &str, node: &str, address: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\n\
             spec: {{nodeName: {node}, serviceAccountName: default}}\n\
             status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}\n"
        )
    };
    let namespace = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{kubernetes.io/metadata.name: {name}}}}}\n"
        )
    };
    [
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: bench-node}}\n\
             status: {{addresses: [{{type: InternalIP, address: {NODE}}}]}}\n"
        ),
        namespace("bench"),
        namespace("kube-system"),
        pod("bench", "client-a", "app: client", "bench-node", PODS[0].1),
        pod("bench", "client-b", "app: client", "bench-node", PODS[1].1),
        pod("kube-system", "coredns", "k8s-app: kube-dns", "other-node", RESOLVER),
        format!(
            "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: client, namespace: bench}}\n\
             spec:\n  endpointSelector: {{matchLabels: {{app: client}}}}\n  egress:\n  \
             - toEndpoints:\n    \
               - matchLabels: {{k8s:io.kubernetes.pod.namespace: kube-system, k8s:k8s-app: kube-dns}}\n    \
               toPorts:\n    \
               - ports: [{{port: \"53\", protocol: UDP}}, {{port: \"53\", protocol: TCP}}]\n      \
                 rules: {{dns: [{{matchPattern: \"*\"}}]}}\n  \
             - toFQDNs: [{{matchPattern: \"*.bench.example\"}}, {{matchPattern: \"**.new.bench.example\"}}]\n    \
               toPorts: [{{ports: [{{port: \"443\", protocol: TCP}}]}}]\n  \
             - toCIDR: [{STREAM}/32]\n    \
               toPorts: [{{ports: [{{port: \"5201\", protocol: TCP}}]}}]\n"
        ),
    ]
    .concat()
}
