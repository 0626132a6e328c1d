//! A node whose pods come and go, with the files that a CNI leaves.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::agent::client::Agent;
use crate::lab::agent::{Reach, Request};
use crate::lab::process::{ip_batch, must, must_inside};
use crate::lab::world::{FAMILIES, Family, NODE_MAC, Options};
use crate::lab::{Daemon, Topology, World, clock, daemon, snapshot};

/// How long something may take on a machine that is busy with other tests.
pub const LIMIT: Duration = Duration::from_secs(10);
/// A name that red pods may learn.
pub const NAME: &str = "api.example.com";

/// What a pod may reach: the last number of an outside address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Colour(pub u8);

pub const RED: Colour = Colour(200);
pub const BLUE: Colour = Colour(201);
/// No policy selects it: it may reach everything.
pub const GREEN: Colour = Colour(202);
/// Of the name.
const NAMED: u8 = 210;

impl Colour {
    pub fn word(self) -> &'static str {
        match self {
            RED => "red",
            BLUE => "blue",
            _ => "green",
        }
    }

    pub fn other(self) -> Colour {
        if self == RED { BLUE } else { RED }
    }
}

/// As which CNI the pods are plugged in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cni {
    Calico,
    Aws,
    Flannel,
}

/// A pod, there or not.
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub container: String,
    pub namespace: String,
    pub host: String,
    /// Its interface's name in its own namespace.
    pub inner: String,
    pub v4: String,
    pub v6: String,
    pub mac: String,
    pub colour: Colour,
    agent: std::rc::Rc<Agent>,
}

/// A second interface of one.
pub struct Second {
    pub host: String,
    pub v4: String,
    pub v6: String,
}

pub struct Yard {
    pub world: World,
    pub cni: Cni,
    /// Counts what must never be twice.
    next: std::cell::Cell<u32>,
}

impl Pod {
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    pub fn address(&self, family: Family) -> IpAddr {
        family.pick(&self.v4, &self.v6).parse().expect("an address")
    }
}

impl Yard {
    #[track_caller]
    pub fn new(topology: Topology, cni: Cni) -> Yard {
        let world = World::new(Options { topology });
        let own = |colour: Colour| {
            let last = colour.0;
            format!("  - toCIDR: [203.0.113.{last}/32, \"2001:db8:2::{last}/128\"]\n")
        };
        let named = format!("  - toFQDNs: [{{matchName: {NAME}}}]\n");
        let red = snapshot::policy("red", &(own(RED) + &named));
        snapshot::with_policy(&world.directory.join("snapshot"), &(red + &snapshot::policy("blue", &own(BLUE))));
        // The demo's own two pods are not here: nobody is to know of their interfaces.
        for host in ["veth-pay", "veth-rep"] {
            world.must("node", &format!("ip link del {host}"));
        }
        let settings = "net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.conf.default.proxy_arp=1 \
                        net.ipv4.neigh.default.proxy_delay=0 net.bridge.bridge-nf-call-iptables=0 \
                        net.bridge.bridge-nf-call-ip6tables=0";
        world.must("node", &format!("sysctl -eqw {settings}"));
        for family in FAMILIES {
            for last in [RED.0, BLUE.0, NAMED] {
                world.outside.done(Request::ServeUdp { at: (family.outside(last), 7).into() });
                world.outside.done(Request::ServeTcp { at: (family.outside(last), 7).into() });
            }
        }
        world.outside.say_addresses(NAME, &FAMILIES.map(|family| family.outside(NAMED)), 300);
        let yard = Yard { world, cni, next: std::cell::Cell::new(0) };
        fs::create_dir_all(yard.cache()).expect("a directory can be made");
        yard
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    pub fn start(&self, more: &[&str]) -> Daemon {
        let daemon = self.launch(&[], more);
        daemon.wait_ready();
        daemon
    }

    /// Starts it by what becomes it, as [`Daemon::launch`] does, and doesn't wait.
    #[track_caller]
    pub fn launch(&self, through: &[&str], more: &[&str]) -> Daemon {
        let cache = format!("discovery.cni_cache={}", self.world.directory.join("cni").display());
        let leave_alone = format!("discovery.leave_alone={}", self.left_alone());
        // Names that pods' interfaces and the machine's own have in common: the floor is to know them apart.
        let mut own = vec!["--set", &cache, "--set", "enforcement.floor_interfaces=wan*,lan*,cali*,eni*,veth*"];
        if !more.iter().any(|word| word.starts_with("discovery.leave_alone")) {
            own.extend(["--set", &leave_alone]);
        }
        Daemon::launch_without_endpoints(&self.world, through, &[&own, more].concat())
    }

    /// The outside's port of the bridge has neither an address nor a route.
    pub fn left_alone(&self) -> &'static str {
        if self.is_bridged() { "lan0" } else { "" }
    }

    pub fn is_bridged(&self) -> bool {
        self.world.options.topology == Topology::Bridged
    }

    pub fn cache(&self) -> PathBuf {
        self.world.directory.join("cni/results")
    }

    /// What pods of a colour may reach.
    pub fn outside(&self, family: Family, colour: Colour) -> SocketAddr {
        (family.outside(colour.0), 7).into()
    }

    /// What is behind the name.
    pub fn named(&self, family: Family) -> SocketAddr {
        (family.outside(NAMED), 7).into()
    }

    fn count(&self) -> u32 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    /// A pod that is not plugged in yet, in a namespace of its own.
    #[track_caller]
    pub fn pod(&self, number: usize, colour: Colour) -> Pod {
        let namespace = self.world.namespace(&format!("pod{number}"));
        must(&format!("ip netns add {namespace}"));
        must_inside(&namespace, "sysctl -eqw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.accept_ra=0");
        let agent = std::rc::Rc::new(Agent::start(&namespace));
        self.dressed(number, format!("pod-{number}"), namespace, colour, agent)
    }

    fn dressed(
        &self,
        number: usize,
        name: String,
        namespace: String,
        colour: Colour,
        agent: std::rc::Rc<Agent>,
    ) -> Pod {
        let unique = self.count();
        // Calico and AWS make the interface's name of the pod's: the same pod has the same one again.
        let hash = name.bytes().fold(7u64, |hash, c| hash.wrapping_mul(31).wrapping_add(c.into())) & 0xfff_ffff_ffff;
        let host = match self.cni {
            Cni::Calico => format!("cali{hash:011x}"),
            Cni::Aws => format!("eni{hash:011x}"),
            Cni::Flannel => format!("veth{unique:08x}"),
        };
        let (v4, v6) = (format!("198.51.100.{}", 20 + number), format!("2001:db8:1::{}", 20 + number));
        let mac = format!("02:00:00:00:02:{number:02x}");
        let uid = format!("6f0c2f1e-0000-4000-8000-{unique:012}");
        let (container, inner) = (format!("{unique:064x}"), "eth0".to_owned());
        Pod { name, uid, container, namespace, host, inner, v4, v6, mac, colour, agent }
    }

    /// Another pod of this name at the place of one: the same namespace and addresses.
    pub fn renamed(&self, pod: &Pod, name: &str, colour: Colour) -> Pod {
        let number = pod.v4.rsplit('.').next().and_then(|last| last.parse::<usize>().ok()).expect("a number") - 20;
        let fresh = self.dressed(number, name.to_owned(), pod.namespace.clone(), colour, pod.agent.clone());
        Pod { host: if name == pod.name { pod.host.clone() } else { fresh.host.clone() }, ..fresh }
    }

    /// One of very many pods that share a namespace: with an interface and addresses by its number there, below 38 000.
    pub fn one_of_many(&self, number: usize, name: &str, crowd: (&str, &std::rc::Rc<Agent>), colour: Colour) -> Pod {
        let (namespace, agent) = (crowd.0.to_owned(), crowd.1.clone());
        let one = self.dressed(0, name.to_owned(), namespace, colour, agent);
        let (high, low) = (number / 200, number % 200);
        Pod {
            inner: format!("p{number}"),
            v4: format!("198.18.{}.{}", 32 + high % 190, low + 1),
            v6: format!("2001:db8:1::1:{:x}", number + 1),
            mac: format!("02:00:00:03:{high:02x}:{low:02x}"),
            ..one
        }
    }

    /// A pod that is there as it should be: the API, the kernel and the CNI say so.
    #[track_caller]
    pub fn appear(&self, number: usize, colour: Colour) -> Pod {
        let pod = self.pod(number, colour);
        self.write_pod(&pod, true);
        self.plug(&pod);
        self.write_cache(&pod);
        pod
    }

    /// It goes as pods do.
    #[track_caller]
    pub fn vanish(&self, pod: Pod) {
        self.unplug(&pod);
        let _ = fs::remove_file(self.cache_file(&pod, "eth0"));
        self.remove_pod(&pod.name);
    }

    /// Its object, with `status.podIPs` or before them.
    #[track_caller]
    pub fn write_pod(&self, pod: &Pod, addresses: bool) {
        let ips = if addresses { json!([{"ip": pod.v4}, {"ip": pod.v6}]) } else { json!([]) };
        self.write_object(&pod.name, &pod.uid, pod.colour.word(), json!({"nodeName": "demo-node"}), &ips);
    }

    /// One on the node's own network.
    #[track_caller]
    pub fn write_host_pod(&self, name: &str, app: &str) {
        let spec = json!({"nodeName": "demo-node", "hostNetwork": true});
        self.write_object(name, &format!("uid-of-{name}"), app, spec, &json!([{"ip": "198.51.100.1"}]));
    }

    #[track_caller]
    fn write_object(&self, name: &str, uid: &str, app: &str, spec: Value, ips: &Value) {
        snapshot::replace(&self.object(name), &object(name, uid, app, spec, ips).to_string());
    }

    /// The objects of many, in one file.
    #[track_caller]
    pub fn write_pods(&self, file: &str, pods: &[Pod], addresses: bool) {
        let ips = |pod: &Pod| if addresses { json!([{"ip": pod.v4}, {"ip": pod.v6}]) } else { json!([]) };
        let spec = || json!({"nodeName": "demo-node"});
        let one = |pod: &Pod| object(&pod.name, &pod.uid, pod.colour.word(), spec(), &ips(pod));
        let items: Vec<Value> = pods.iter().map(one).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        snapshot::replace(&self.world.directory.join("snapshot").join(file), &list.to_string());
    }

    /// Its object is deleted.
    #[track_caller]
    pub fn remove_pod(&self, name: &str) {
        fs::remove_file(self.object(name)).expect("it is there");
    }

    fn object(&self, name: &str) -> PathBuf {
        self.world.directory.join(format!("snapshot/pod-{name}.json"))
    }

    /// The lines for `ip` that make its interface, in the node.
    pub fn plugging(&self, pod: &Pod) -> String {
        let Pod { host, inner, mac, namespace, v4, v6, .. } = pod;
        let veth = format!("link add {host} type veth peer name {inner} address {mac} netns {namespace}\n");
        veth + &self.leading(host, [v4, v6])
    }

    /// What leads to a pod over an interface.
    pub fn leading(&self, host: &str, [v4, v6]: [&str; 2]) -> String {
        if self.is_bridged() {
            return format!("link set {host} master br0\nlink set {host} up\n");
        }
        format!(
            "link set {host} address {NODE_MAC}\n\
             link set {host} up\n\
             address add fe80::1/64 dev {host} nodad\n\
             route add {v4}/32 dev {host} src 198.51.100.1\n\
             route add {v6}/128 dev {host} src 2001:db8:1::1\n"
        )
    }

    /// Its interface is made, as a CNI does.
    #[track_caller]
    pub fn plug(&self, pod: &Pod) {
        ip_batch(&self.world.namespace("node"), &self.plugging(pod));
        self.set_up_inside(pod);
    }

    /// The same where both ends are made in the node, and one is moved then.
    #[track_caller]
    pub fn plug_in_steps(&self, pod: &Pod) {
        let Pod { host, inner, mac, namespace, v4, v6, .. } = pod;
        let veth = format!(
            "link add {host} type veth peer name moving address {mac}\n\
             link set {host} up\n\
             link set moving netns {namespace} name {inner}\n"
        );
        ip_batch(&self.world.namespace("node"), &(veth + &self.leading(host, [v4, v6])));
        self.set_up_inside(pod);
    }

    fn set_up_inside(&self, pod: &Pod) {
        let Pod { v4, v6, .. } = pod;
        let (v4_bits, v6_bits, gateways) = match self.is_bridged() {
            true => (24, 64, "route add default via 198.51.100.1\nroute add default via 2001:db8:1::1\n"),
            false => (
                32,
                128,
                "route add 169.254.1.1 dev eth0 scope link\n\
                 route add default via 169.254.1.1 dev eth0\n\
                 route add default via fe80::1 dev eth0\n",
            ),
        };
        ip_batch(
            &pod.namespace,
            &format!(
                "link set lo up\nlink set eth0 up\n\
                 address add {v4}/{v4_bits} dev eth0\naddress add {v6}/{v6_bits} dev eth0 nodad\n{gateways}"
            ),
        );
    }

    /// Its interface is gone.
    #[track_caller]
    pub fn unplug(&self, pod: &Pod) {
        self.world.must("node", &format!("ip link del {}", pod.host));
    }

    /// What this CNI's runtime writes down when the interface is there.
    #[track_caller]
    pub fn write_cache(&self, pod: &Pod) {
        let (file, text) = self.cache_entry(pod);
        fs::write(file, text).expect("a file can be written"); // in place, as libcni does
    }

    /// The file for it and its text.
    pub fn cache_entry(&self, pod: &Pod) -> (PathBuf, String) {
        (self.cache_file(pod, "eth0"), self.result_text(pod, "eth0", &self.result(pod)))
    }

    fn result(&self, pod: &Pod) -> Value {
        let sandbox = format!("/var/run/netns/{}", pod.namespace);
        let (host, v4, v6) = (&pod.host, &pod.v4, &pod.v6);
        match self.cni {
            Cni::Calico => json!({
                "cniVersion": "0.3.1", "dns": {}, "interfaces": [{"name": host}],
                "ips": [{"address": format!("{v4}/32"), "version": "4"}, {"address": format!("{v6}/128"), "version": "6"}],
            }),
            Cni::Aws => json!({
                "cniVersion": "0.4.0", "dns": {},
                "interfaces": [
                    {"name": host}, {"name": "eth0", "sandbox": sandbox},
                    {"name": format!("dummy{}", &host[3..12]), "mac": "0", "sandbox": "0"},
                ],
                "ips": [
                    {"address": format!("{v4}/32"), "interface": 1, "version": "4"},
                    {"address": format!("{v6}/128"), "interface": 1, "version": "6"},
                ],
            }),
            Cni::Flannel => json!({
                "cniVersion": "1.0.0", "dns": {},
                "interfaces": [
                    {"name": "br0", "mac": NODE_MAC}, {"name": host, "mac": "02:00:00:00:03:01"},
                    {"name": "eth0", "mac": pod.mac, "sandbox": sandbox},
                ],
                "ips": [
                    {"address": format!("{v4}/24"), "gateway": "198.51.100.1", "interface": 2},
                    {"address": format!("{v6}/64"), "gateway": "2001:db8:1::1", "interface": 2},
                ],
                "routes": [{"dst": "0.0.0.0/0"}],
            }),
        }
    }

    #[track_caller]
    fn write_result(&self, pod: &Pod, interface: &str, result: &Value) {
        let text = self.result_text(pod, interface, result);
        fs::write(self.cache_file(pod, interface), text).expect("a file can be written"); // as above
    }

    fn result_text(&self, pod: &Pod, interface: &str, result: &Value) -> String {
        let text = json!({
            "kind": "cniCacheV1", "containerId": pod.container, "config": "e30=", "ifName": interface,
            "networkName": "k8s-pod-network", "netns": format!("/var/run/netns/{}", pod.namespace),
            "cniArgs": [
                ["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "payments"], ["K8S_POD_NAME", pod.name],
                ["K8S_POD_INFRA_CONTAINER_ID", pod.container], ["K8S_POD_UID", pod.uid],
            ],
            "capabilityArgs": {"dns": {}}, "result": result,
        });
        text.to_string()
    }

    /// Something else in its place.
    #[track_caller]
    pub fn write_cache_text(&self, pod: &Pod, text: &str) {
        fs::write(self.cache_file(pod, "eth0"), text).expect("a file can be written");
    }

    pub fn cache_file(&self, pod: &Pod, interface: &str) -> PathBuf {
        self.cache().join(format!("k8s-pod-network-{}-{interface}", pod.container))
    }

    /// A second interface that a pod is to get.
    pub fn second_interface(&self, pod: &Pod) -> Second {
        let last = pod.v4.rsplit('.').next().expect("a number");
        let (v4, v6) = (format!("198.51.100.1{last}"), format!("2001:db8:1::1{last}"));
        Second { host: format!("veth{:08x}", self.count()), v4, v6 }
    }

    #[track_caller]
    pub fn plug_second(&self, pod: &Pod, more: &Second) {
        let Second { host, v4, v6 } = more;
        let veth = format!("link add {host} type veth peer name net1 netns {}\n", pod.namespace);
        ip_batch(&self.world.namespace("node"), &(veth + &self.leading(host, [v4, v6])));
        let lines = format!("link set net1 up\naddress add {v4}/32 dev net1\naddress add {v6}/128 dev net1 nodad\n");
        ip_batch(&pod.namespace, &lines);
    }

    #[track_caller]
    pub fn write_cache_of_second(&self, pod: &Pod, more: &Second) {
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": more.host}, {"name": "net1", "sandbox": "/var/run/netns/x"}],
            "ips": [{"address": format!("{}/32", more.v4), "interface": 1}, {"address": format!("{}/128", more.v6), "interface": 1}],
        });
        self.write_result(pod, "net1", &result);
    }

    /// As a plugin that says nothing of the pod's side writes it.
    #[track_caller]
    pub fn write_bare_cache_of_second(&self, pod: &Pod, more: &Second) {
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": more.host}],
            "ips": [{"address": format!("{}/32", more.v4)}, {"address": format!("{}/128", more.v6)}],
        });
        self.write_result(pod, "net1", &result);
    }

    /// The pod reaches the outside over its second interface, and from the address there.
    #[track_caller]
    pub fn route_over_second(&self, pod: &Pod, more: &Second) {
        let [v4, v6] = if self.is_bridged() { ["198.51.100.1", "2001:db8:1::1"] } else { ["169.254.1.1", "fe80::1"] };
        if self.is_bridged() {
            // IPv6 takes no gateway that another interface leads to.
            must_inside(&pod.namespace, &format!("ip route add {v6}/128 dev net1"));
        }
        let lines = format!(
            "route replace 203.0.113.0/24 via {v4} dev net1 onlink src {}\n\
             route replace 2001:db8:2::/64 via {v6} dev net1 onlink src {}\n",
            more.v4, more.v6
        );
        ip_batch(&pod.namespace, &lines);
    }

    /// Runs a command line in a pod's namespace.
    #[track_caller]
    pub fn inside(&self, pod: &Pod, line: &str) {
        must_inside(&pod.namespace, line);
    }

    /// It reaches what its colour may, and not what the other may, in both families.
    #[track_caller]
    pub fn is_guarded_as(&self, pod: &Pod, colour: Colour) {
        for family in FAMILIES {
            let mut reach = Reach::Silent;
            let fine = clock::wait_until(LIMIT, || {
                reach = pod.agent().connect(self.outside(family, colour));
                reach == Reach::Reached
            });
            assert!(fine, "{} as {colour:?}, {family:?}: {reach:?}\n{:#}", pod.name, self.status());
            let other = pod.agent().connect(self.outside(family, colour.other()));
            assert_ne!(other, Reach::Reached, "{} as {colour:?}, {family:?}: denied, and it passed", pod.name);
        }
    }

    /// What `namegate status` tells; null while nobody does.
    pub fn status(&self) -> Value {
        let (fine, text) = daemon::run(&self.world.namespace("node"), &self.world.directory, "status", &["-o", "json"]);
        if fine { serde_json::from_str(&text).expect("JSON") } else { Value::Null }
    }

    /// Names of interfaces that are shut because nobody knows whose they are.
    pub fn unknown(&self) -> Vec<String> {
        let status = self.status();
        let list = status["unknown"].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|row| Some(row["interface"].as_str()?.to_owned())).collect()
    }

    /// These are unknown, and no others; it is told every second.
    #[track_caller]
    pub fn are_unknown(&self, expected: &[&str]) {
        assert!(clock::wait_until(LIMIT, || self.unknown() == expected), "{expected:?}: {:#}", self.status());
    }

    /// The number of a pod's endpoint.
    #[track_caller]
    pub fn id_of(&self, pod: &Pod) -> u64 {
        std::thread::sleep(Duration::from_millis(1_200)); // it is told every second
        let status = self.status();
        let rows = status["endpoints"].as_array().expect("a list");
        let row = rows.iter().find(|row| row["pod"] == format!("payments/{}", pod.name).as_str());
        row.and_then(|row| row["id"].as_u64()).unwrap_or_else(|| panic!("{} is not there: {status:#}", pod.name))
    }

    /// Pins of links on an interface of the node.
    #[track_caller]
    pub fn pins_on(&self, interface: &str) -> Vec<String> {
        let line = self.world.must("node", &format!("ip -o link show dev {interface}"));
        let index = line.split(':').next().expect("a number");
        let all = crate::lab::files_below(&self.world.directory.join("bpf/namegate"));
        all.into_iter().filter(|path| path.contains(&format!("/links/{index}_"))).collect()
    }
}

fn object(name: &str, uid: &str, app: &str, spec: Value, ips: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "payments", "uid": uid, "labels": {"app": app}},
        "spec": spec, "status": {"phase": "Running", "podIPs": ips},
    })
}
