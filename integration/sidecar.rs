//! `namegate sidecar`: beside a workload in its pod's network namespace. What the pod sends is watched on the host's side of
//! its veth, where nobody in the pod can hide it.
//!
//! The other container is a process of another uid without capabilities in the same network namespace. Each thing that it
//! tries is tried before namegate runs too: there it works, else it shows nothing.

mod attacks;
mod init;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::Value;

use crate::lab::agent::client::Agent;
use crate::lab::agent::sibling::Attempt;
use crate::lab::agent::{Frame, Question, Reach, Request};
use crate::lab::process::{inside, output};
use crate::lab::world::{Family, Options, PODS};
use crate::lab::{Daemon, Topology, World, clock, daemon, snapshot};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
pub const ALLOWED: (&str, u8) = ("api.stripe.com", 10);
pub const DENIED: (&str, u8) = ("api.github.com", 20);
/// What policy selects by the label `tier: extra`.
pub const EXTRA: (&str, u8) = ("extra.example.com", 40);
/// A name server that no policy names.
const FOREIGN: u8 = 54;
const PORT: u16 = 443;
const WORKLOAD: u32 = 1_000;
const RULES: &str =
    "  - toFQDNs: [{matchName: api.stripe.com}]\n    toPorts: [{ports: [{port: \"443\", protocol: TCP}]}]\n";
const EXTRA_RULES: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n\
     metadata: {name: extra, namespace: payments}\nspec:\n  endpointSelector: {matchLabels: {tier: extra}}\n  egress:\n  \
     - toFQDNs: [{matchName: extra.example.com}]\n    toPorts: [{ports: [{port: \"443\", protocol: TCP}]}]\n";
pub const LABELS: &str = "app=\"payment-processor\"\n";
/// What is in the datagrams of the other container.
const ATTEMPTS: [&[u8]; 4] = [b"from another", b"another way", b"with options", b"by hand"];
const LIMIT: Duration = Duration::from_secs(5);

pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, play: fn()| {
        Trial::test(format!("sidecar::{name}"), move || {
            play();
            Ok(())
        })
    };
    vec![
        trial("allowed_names_are_reached_and_nothing_else", names),
        trial("a_container_without_capabilities_gets_nothing_past", attacks::attacks),
        trial("every_resolver_is_answered_here_after_init", init::redirected),
        trial("where_ipv6_is_switched_off_init_does_without", init::without_v6),
        trial("detach_leaves_nothing_of_a_sidecar_nor_of_its_init", init::detached),
        trial("a_container_with_net_raw_makes_it_advisory_and_the_floor_stops_its_frames", attacks::net_raw),
        trial("kill_9_and_a_restart_leave_enforcement_in_force", killed),
        trial("a_changed_label_counts", labels),
        trial("it_runs_with_the_capabilities_of_the_readme", capabilities),
        trial("without_a_bpffs_it_says_so", no_bpffs),
        trial("it_refuses_where_it_can_not_or_must_not_enforce", refusals),
    ]
}

/// A pod with its volume and snapshot, and servers outside.
pub struct Pod {
    pub world: World,
}

impl Pod {
    #[track_caller]
    pub fn new() -> Pod {
        let world = World::new(Options { topology: Topology::Routed });
        let snapshot = world.directory.join("snapshot");
        snapshot::with_policy(&snapshot, &(snapshot::policy("payment-processor", RULES) + EXTRA_RULES));
        // The pod's own object is not there: what it is stands in its own volume.
        let cluster = fs::read_to_string(snapshot.join("cluster.yaml")).expect("it was copied");
        let others: Vec<&str> =
            cluster.split("---\n").filter(|object| !object.contains("\n  name: payment-processor\n")).collect();
        assert_eq!(others.len() + 1, cluster.split("---\n").count(), "the pod's object was left out");
        fs::write(snapshot.join("cluster.yaml"), others.join("---\n")).expect("a file can be written");
        for (name, last) in [ALLOWED, DENIED, EXTRA] {
            world.outside.say_addresses(name, &FAMILIES.map(|family| family.outside(last)), 300);
            for family in FAMILIES {
                world.outside.done(Request::ServeTcp { at: SocketAddr::new(family.outside(last), PORT) });
                world.outside.done(Request::ServeUdp { at: SocketAddr::new(family.outside(last), PORT) });
            }
        }
        let foreign = FAMILIES.map(|family| SocketAddr::new(family.outside(FOREIGN), 53));
        world.outside.done(Request::ServeNames { at: foreign.to_vec() });
        let pod = Pod { world };
        pod.write_labels(LABELS);
        pod
    }

    /// As kubelet does: a new directory, and a link that is put in the place of the old one.
    pub fn write_labels(&self, labels: &str) {
        let volume = self.world.directory.join("podinfo");
        let generation = format!("..{}", clock::wall_ns());
        fs::create_dir_all(volume.join(&generation)).expect("a directory can be made");
        let files = [
            ("name", PODS[0].name),
            ("namespace", "payments"),
            ("uid", "b4f1"),
            ("labels", labels),
            ("annotations", ""),
        ];
        for (name, text) in files {
            fs::write(volume.join(&generation).join(name), text).expect("a file can be written");
            let _ = std::os::unix::fs::symlink(format!("..data/{name}"), volume.join(name));
        }
        std::os::unix::fs::symlink(&generation, volume.join("..data_tmp")).expect("a link can be made");
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("a link can be renamed");
    }

    #[track_caller]
    fn start(&self, more: &[&str]) -> Daemon {
        let daemon = Daemon::beside(&self.world, &[], more);
        daemon.wait_ready();
        daemon
    }

    /// The first pod's other container.
    fn sibling(&self, capabilities: u64) -> Agent {
        Agent::sibling(&self.world.namespace("pay"), WORKLOAD, capabilities)
    }

    #[track_caller]
    pub fn asks(&self, family: Family, name: (&str, u8)) {
        let reply = self.world.pay.ask(local(family), name.0, family.qtype());
        assert_eq!(reply.addresses, [family.outside(name.1)], "{} over {family:?}: {reply:?}", name.0);
    }

    #[track_caller]
    pub fn sees(&self, family: Family, name: (&str, u8), expected: Reach) {
        let seen = self.world.pay.connect(SocketAddr::new(family.outside(name.1), PORT));
        assert_eq!(seen, expected, "{} over {family:?}", name.0);
    }

    /// Nothing of namegate's is in force.
    #[track_caller]
    pub fn is_open(&self) {
        for family in FAMILIES {
            self.sees(family, ALLOWED, Reach::Reached);
            self.sees(family, DENIED, Reach::Reached);
        }
    }

    /// What the policy says is so.
    #[track_caller]
    pub fn is_guarded(&self) {
        for family in FAMILIES {
            self.asks(family, ALLOWED);
            self.sees(family, ALLOWED, Reach::Reached);
            self.sees(family, DENIED, Reach::Refused);
        }
    }
}

/// What `dnsConfig.nameservers: [127.0.0.1]` comes to.
fn local(family: Family) -> SocketAddr {
    family.pick("127.0.0.1:53", "[::1]:53").parse().expect("an address")
}

fn status(daemon: &Daemon) -> Value {
    let (fine, said) = daemon.run("status", &["--output", "json"]);
    assert!(fine, "{said}");
    serde_json::from_str(&said).expect("the status is JSON")
}

fn reasons(daemon: &Daemon) -> BTreeSet<String> {
    let status = status(daemon);
    let list = status["advisory"].as_array().cloned().unwrap_or_default();
    list.iter().filter_map(|each| Some(each["reason"].as_str()?.to_owned())).collect()
}

#[track_caller]
fn is_advisory(daemon: &Daemon, expected: &[&str]) {
    let wanted: BTreeSet<String> = expected.iter().map(|text| (*text).to_owned()).collect();
    let found = clock::wait_until(LIMIT, || reasons(daemon) == wanted);
    assert!(found, "advisory: {:?}, not {expected:?}", reasons(daemon));
    for reason in expected {
        assert_eq!(daemon.metric("namegate_advisory", &[&format!("reason=\"{reason}\"")]), 1.0, "{reason}");
        daemon.wait_for_log(&format!("reason=\"{reason}\""));
    }
}

fn names() {
    let pod = Pod::new();
    pod.is_open();
    let daemon = pod.start(&[]);
    for family in FAMILIES {
        pod.sees(family, ALLOWED, Reach::Refused); // nobody has asked
    }
    pod.is_guarded();
    for family in FAMILIES {
        // What may be asked and not reached.
        pod.asks(family, DENIED);
        pod.sees(family, DENIED, Reach::Refused);
        let question = Question { tcp: true, ..question(local(family), ALLOWED.0, family) };
        assert_eq!(pod.world.pay.ask_as(question).addresses, [family.outside(ALLOWED.1)], "over TCP");
        let to = SocketAddr::new(family.outside(ALLOWED.1), PORT);
        assert_ne!(pod.world.pay.datagram(to), Reach::Reached, "another protocol");
    }
    let metadata = pod.world.pay.ask(local(Family::V4), "nonexistent.invalid", "A");
    assert_ne!(metadata.rcode, "", "answered: {metadata:?}");
    let endpoint = &status(&daemon)["endpoints"][0];
    assert_eq!(
        (endpoint["pod"].as_str(), endpoint["state"].as_str()),
        (Some("payments/payment-processor"), Some("enforced"))
    );
    assert_eq!(daemon.page("/readyz").trim(), "ready");
    counts(&daemon, &["reason=\"proxy\"", "direction=\"egress\"", "verdict=\"passed\""]);
    counts(&daemon, &["reason=\"proxy\"", "direction=\"ingress\"", "verdict=\"passed\""]);
    // Inbound: the workload serves, and is reached; its replies pass.
    let at = SocketAddr::new(Family::V4.of(&PODS[0]), 8_080);
    pod.world.pay.done(Request::ServeTcp { at });
    assert_eq!(pod.world.outside.connect(at), Reach::Reached);
    assert!(daemon.terminate().success());
    for family in FAMILIES {
        pod.sees(family, DENIED, Reach::Refused); // it stays in force
    }
    // The operator's own server: no rule opens it to the pod, and the proxy asks it.
    let server = Family::V4.outside(FOREIGN);
    let daemon = pod.start(&["--set", &format!("dns.upstreams={server}"), "--set", "dns.cache=off"]);
    pod.is_guarded();
    let asked = || status(&daemon)["upstreams"].to_string().contains(&server.to_string());
    assert!(clock::wait_until(LIMIT, asked), "{}", status(&daemon));
    let said = pod.world.pay.ask_as(question(SocketAddr::new(server, 53), ALLOWED.0, Family::V4));
    assert!(said.addresses.is_empty(), "{said:?}");
}

/// Waits for the metrics, which follow once a second.
#[track_caller]
fn counts(daemon: &Daemon, labels: &[&str]) {
    let counted = clock::wait_until(LIMIT, || daemon.metric("namegate_packets_total", labels) > 0.0);
    assert!(counted, "{labels:?}");
}

fn question(server: SocketAddr, name: &str, family: Family) -> Question {
    Question {
        server,
        name: name.into(),
        qtype: family.qtype().into(),
        tcp: false,
        tls: None,
        edns: Some(1232),
        within_ms: 1_500,
    }
}

/// The proxy's sockets to its servers: what they queue, their own end, the server's.
fn asking(pod: &Pod) -> Vec<String> {
    let sockets = pod.world.must("pay", "ss --no-header --udp --numeric state connected");
    sockets.lines().map(|line| line.trim().to_owned()).filter(|line| line.ends_with(":53")).collect()
}

/// What the pod sent, as the host's side of its veth has it, but for what policy lets through and the link's own talk.
fn leaked(frames: &[Frame], granted: &[IpAddr]) -> Vec<String> {
    let mut found = Vec::new();
    for frame in frames.iter().filter(|frame| !frame.outgoing) {
        let octets = frame.octets();
        let (Some(kind), Some(body)) = (octets.get(12..14), octets.get(14..)) else { continue };
        let (protocol, from, to, ports): (u8, IpAddr, IpAddr, &[u8]) = match (kind, body.len()) {
            ([8, 0], 20..) => {
                let four = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&body[at..at + 4]).expect("four"));
                let header = usize::from(body[0] & 15) * 4;
                if header > 20 {
                    found.push(format!("IPv4 with options to {}", four(16)));
                    continue;
                }
                (body[9], four(12).into(), four(16).into(), &body[header..])
            }
            ([0x86, 0xdd], 40..) => {
                let sixteen = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&body[at..at + 16]).expect("sixteen"));
                (body[6], sixteen(8).into(), sixteen(24).into(), &body[40..])
            }
            _ => continue, // ARP
        };
        let port = |at: usize| ports.get(at..at + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
        let (icmpv6, of_link) = (58, to.is_multicast() || to == IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1]));
        let neighbours = protocol == icmpv6 && matches!(ports.first(), Some(133..=136 | 143));
        let by_hop = protocol == 0 && of_link; // MLD
        let by_hand = ATTEMPTS.iter().any(|text| ports.windows(text.len()).any(|part| part == *text));
        let query = !by_hand
            && port(2) == 53
            && FAMILIES.iter().any(|family| family.kube_dns().ip() == to)
            && port(0) >= 61_000;
        let allowed = !by_hand && protocol == 6 && port(2) == PORT && granted.contains(&to);
        if !(neighbours || by_hop || query || allowed) {
            found.push(format!("protocol {protocol} from {from}:{} to {to}:{}", port(0), port(2)));
        }
    }
    found
}

fn killed() {
    let pod = Pod::new();
    let daemon = Daemon::beside(&pod.world, SHARED_PIDS, &[]);
    daemon.wait_ready();
    is_advisory(&daemon, &["unseen"]);
    pod.is_guarded();
    let open = FAMILIES.map(|family| {
        let to = SocketAddr::new(family.outside(ALLOWED.1), PORT);
        pod.world.pay.open(to).unwrap_or_else(|reach| panic!("{family:?}: {reach:?}"))
    });
    let port_of = |line: &String| line.split_whitespace().nth_back(1)?.rsplit(':').next()?.parse::<u16>().ok();
    let ports: Vec<u16> = asking(&pod).iter().filter_map(port_of).collect();
    assert!(!ports.is_empty());
    let sibling = pod.sibling(0);
    let wire = pod.world.node.capture(PODS[0].host);
    daemon.kill();
    // The ports of a dead proxy are anyone's, and it could not take its rows away.
    for port in ports {
        for family in FAMILIES {
            let from = SocketAddr::new(family.of(&PODS[0]), port);
            let attempt = Attempt::From { from, to: family.kube_dns(), freebind: false };
            // What is killed in namegate's place ends before namegate does.
            assert!(clock::wait_until(LIMIT, || sibling.tries(attempt.clone()) == 0), "{from}");
        }
    }
    let holds = |when: &str| {
        for (family, connection) in FAMILIES.into_iter().zip(open) {
            assert_eq!(pod.world.pay.exchange(connection), Reach::Reached, "{when}: a connection goes on");
            pod.sees(family, ALLOWED, Reach::Reached);
            pod.sees(family, DENIED, Reach::Refused);
            let foreign = SocketAddr::new(family.outside(FOREIGN), 53);
            assert!(pod.world.pay.ask_as(question(foreign, DENIED.0, family)).addresses.is_empty(), "{when}");
        }
    };
    holds("dead");
    let daemon = Daemon::beside(&pod.world, SHARED_PIDS, &["--set", "sidecar.siblings=unprivileged"]);
    daemon.wait_ready();
    holds("again");
    pod.is_guarded();
    is_advisory(&daemon, &[]);
    let leaks = leaked(&wire.frames(), &FAMILIES.map(|family| family.outside(ALLOWED.1)));
    assert!(leaks.is_empty(), "{leaks:#?}");
    // A further interface is not guarded, and that is said.
    pod.world.must("pay", "ip link add second type bridge");
    pod.world.must("pay", "ip link set second up");
    is_advisory(&daemon, &["other_interface"]);
    pod.world.must("pay", "ip link delete second");
    is_advisory(&daemon, &[]);
}

fn labels() {
    let pod = Pod::new();
    let daemon = pod.start(&[]);
    pod.is_guarded();
    for family in FAMILIES {
        pod.asks(family, EXTRA);
        pod.sees(family, EXTRA, Reach::Refused);
    }
    pod.write_labels(&format!("{LABELS}tier=\"extra\"\n"));
    daemon.wait_for_log("labels or annotations have changed");
    for family in FAMILIES {
        let reached = clock::wait_until(LIMIT, || {
            pod.asks(family, EXTRA);
            pod.world.pay.connect(SocketAddr::new(family.outside(EXTRA.1), PORT)) == Reach::Reached
        });
        assert!(reached, "{family:?}");
    }
    // What can't be read changes nothing, and is said.
    pod.write_labels("tier=extra\n");
    let refused = clock::wait_until(LIMIT, || !daemon.ready().0);
    let (_, said) = daemon.ready();
    assert!(refused && said.contains("labels:1: found"), "{said}");
    for family in FAMILIES {
        pod.sees(family, EXTRA, Reach::Reached);
    }
    pod.write_labels(LABELS);
    assert!(clock::wait_until(LIMIT, || daemon.ready().0));
    for family in FAMILIES {
        pod.sees(family, EXTRA, Reach::Refused);
        pod.asks(family, ALLOWED);
        pod.sees(family, ALLOWED, Reach::Reached);
    }
    // Nobody selects it any more: it is open, and asks as before.
    pod.write_labels("app=\"nobody\"\n");
    for family in FAMILIES {
        let denied = SocketAddr::new(family.outside(DENIED.1), PORT);
        assert!(clock::wait_until(LIMIT, || pod.world.pay.connect(denied) == Reach::Reached));
        pod.asks(family, DENIED);
    }
}

/// A PID namespace, as the containers of a pod have one with `shareProcessNamespace`; it ends with namegate, and namegate
/// with what is killed in its place.
const SHARED_PIDS: &[&str] = &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Those of README's pod spec, and no others.
const ONLY: &[&str] = &[
    "setpriv",
    "--bounding-set=-all,+bpf,+net_admin,+perfmon,+net_bind_service",
    "--inh-caps=-all,+bpf,+net_admin,+perfmon,+net_bind_service",
    "--no-new-privs",
];

fn capabilities() {
    let pod = Pod::new();
    let mut command = inside(&pod.world.namespace("pay"), "setpriv");
    command.args(["--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin", "--no-new-privs"]);
    command
        .arg(daemon::program())
        .args(["sidecar", "--init", "--pin-dir"])
        .arg(pod.world.directory.join("bpf/namegate"));
    let said = output(command).expect("namegate starts");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    for family in FAMILIES {
        pod.sees(family, ALLOWED, Reach::Silent); // shut, until there is a sidecar
    }
    let daemon = Daemon::beside(&pod.world, ONLY, &[]);
    daemon.wait_ready();
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("it runs");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).map(str::trim);
    // net_bind_service 10, net_admin 12, perfmon 38, bpf 39
    assert_eq!(effective, Some("000000c000001400"));
    pod.is_guarded();
    daemon.kill();
    let daemon = Daemon::beside(&pod.world, ONLY, &[]);
    daemon.wait_ready();
    pod.is_guarded();
    assert!(daemon.terminate().success());
}

fn no_bpffs() {
    let pod = Pod::new();
    let nowhere = pod.world.directory.join("state/pins");
    let more = ["--pin-dir", nowhere.to_str().expect("a path in UTF-8")];
    // Nobody who can mount one.
    let daemon = Daemon::beside(&pod.world, ONLY, &more);
    daemon.wait_ready();
    pod.is_guarded();
    let found = reasons(&daemon);
    assert!(found.contains("no_bpffs"), "{found:?}");
    let wire = pod.world.node.capture(PODS[0].host);
    daemon.kill();
    let stays = |when: &str| {
        for family in FAMILIES {
            let seen = pod.world.pay.connect(SocketAddr::new(family.outside(DENIED.1), PORT));
            assert_eq!(seen, Reach::Refused, "{when}: the filters hold the programs");
        }
    };
    stays("dead");
    let daemon = Daemon::beside(&pod.world, ONLY, &more);
    daemon.wait_ready();
    stays("again");
    pod.is_guarded();
    let leaks = leaked(&wire.frames(), &FAMILIES.map(|family| family.outside(ALLOWED.1)));
    assert!(leaks.is_empty(), "{leaks:#?}");
    drop((wire, daemon));
    let said = Daemon::beside(&pod.world, ONLY, &[&more[..], &["--set", "enforcement.attach=tcx"]].concat());
    assert!(
        clock::wait_until(LIMIT, || said.ready().1.contains("pin_dir is on no BPF file system")),
        "{:?}",
        said.ready()
    );
}

fn refusals() {
    let pod = Pod::new();
    let said = |part: &str, through: &[&str], more: &[&str]| {
        let program = daemon::program();
        let program = program.to_str().expect("a path in UTF-8");
        let words = [through, &[program]].concat();
        let mut command: Command = inside(&pod.world.namespace(part), words[0]);
        command.args(&words[1..]).arg("sidecar");
        let path = |name: &str| pod.world.directory.join(name).to_str().expect("a path in UTF-8").to_owned();
        let places = [
            ("--state-dir", "state"),
            ("--pin-dir", "bpf/namegate"),
            ("--run-dir", "run"),
            ("--snapshot", "snapshot"),
            ("--podinfo", "podinfo"),
        ];
        for (flag, name) in places.into_iter().filter(|(flag, _)| !more.contains(flag)) {
            command.args([flag.to_owned(), path(name)]);
        }
        command.args(more);
        let output = output(command).expect("namegate starts");
        let text = [output.stdout, output.stderr].concat();
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&text));
        String::from_utf8_lossy(&text).into_owned()
    };
    let text = said("pay", &["unshare", "--user", "--map-root-user"], &[]);
    assert!(text.contains("hostUsers: false"), "{text}");
    let text = said("node", &[], &["--set", "sidecar.interface=veth-pay", "--set", "sidecar.addresses=198.51.100.1"]);
    assert!(text.contains("hostNetwork") && text.contains("demo-node"), "{text}");
    let text = said("pay", &[], &["--set", "sidecar.interface=eth7"]);
    assert!(text.contains("sidecar.interface is eth7") && text.contains("eth0"), "{text}");
    let text = said("pay", &[], &["--podinfo", "/nowhere"]);
    assert!(text.contains("/nowhere/name"), "{text}");
    let text = said("pay", &[], &["--set", "enforcement.attach=xdp"]);
    assert!(text.contains("enforcement.attach is xdp"), "{text}");
    assert!(!Path::new(&pod.world.directory.join("bpf/namegate")).exists(), "nothing was touched");
    pod.is_open();
}
