//! What a test can't say in one attempt: lives and deaths of the daemon, of its interfaces and of its files.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libtest_mimic::Trial;

use crate::lab::agent::{Reach, Request, Rush};
use crate::lab::daemon::{self, Daemon};
use crate::lab::world::{Family, Options, PODS};
use crate::lab::{Topology, World, clock, files_below, snapshot};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Two names with a server each, on these ports.
pub const ONE: (&str, u8) = ("one.example.net", 101);
const TWO: (&str, u8) = ("two.example.net", 102);
const PORTS: [u16; 2] = [443, 5432];

/// `payment-processor` may reach name one on 443 and name two on 5432.
pub const TWO_ITEMS: &str = "  - toFQDNs: [{matchName: one.example.net}]\n    toPorts: [{ports: [{port: \"443\", protocol: TCP}]}]\n  \
                         - toFQDNs: [{matchName: two.example.net}]\n    toPorts: [{ports: [{port: \"5432\", protocol: TCP}]}]\n";
/// The second item alone, which now stands first.
const SECOND_ITEM: &str =
    "  - toFQDNs: [{matchName: two.example.net}]\n    toPorts: [{ports: [{port: \"5432\", protocol: TCP}]}]\n";

pub fn trials() -> Vec<Trial> {
    let scene = |name: &str, play: fn()| {
        Trial::test(format!("scene::{name}"), move || {
            play();
            Ok(())
        })
    };
    vec![
        scene("each_first_syn_after_a_reply_passes_under_load_routed", || first_syns(Topology::Routed)),
        scene("each_first_syn_after_a_reply_passes_under_load_bridged", || first_syns(Topology::Bridged)),
        scene("items_swapped_while_it_was_dead_open_nothing_at_any_moment", items_swapped_while_dead),
        scene("policy_that_changed_while_it_was_dead_applies_before_the_first_reply", policy_changed_while_dead),
        scene("a_broken_file_keeps_the_last_good_version_across_a_restart", broken_file),
        scene("a_broken_policy_without_a_past_is_default_deny", broken_from_the_start),
        scene("a_plain_write_is_noticed", plain_write),
        scene("a_swap_of_the_data_link_applies_one_generation", data_swap),
        scene("an_interface_that_is_deleted_and_made_again_is_guarded_again", interface_made_again),
        scene("an_interface_that_appears_later_is_guarded", interface_appears_later),
        scene("an_interface_that_the_configuration_names_no_more_is_let_go", interface_named_no_more),
        scene("sigterm_leaves_enforcement_and_the_next_start_adopts_it", sigterm),
        scene("programs_of_another_version_go_when_ours_are_there", other_version),
        scene("the_detach_command_takes_other_versions_away", other_version_detached),
        scene("detach_at_the_end_leaves_nothing", detach_at_end),
        scene("the_detach_command_leaves_nothing", detach_command),
        scene("starting_twice_after_kill_9_changes_nothing", start_after_start),
        scene("a_damaged_checkpoint_is_set_aside_and_the_maps_stay_the_truth", damaged_checkpoint),
        scene("flow_records_after_kill_9_have_their_names", names_after_a_kill),
        scene("only_root_and_its_own_user_may_ask_on_the_admin_socket", admin_socket),
        scene("names_are_listed_with_their_time_and_their_policy", names_listed),
        scene("what_is_in_force_is_explained_and_listed", explained),
        scene("the_page_of_metrics_counts_what_happened", metrics),
    ]
}

/// A world where both names have servers on both ports, and namegate runs.
pub struct Scene {
    pub world: World,
    pub daemon: Option<Daemon>,
}

impl Scene {
    #[track_caller]
    pub fn new(topology: Topology, rules: &str, more: &[&str]) -> Scene {
        let scene = Scene::unstarted(topology, rules);
        let daemon = Some(Daemon::start(&scene.world, more));
        Scene { daemon, ..scene }
    }

    #[track_caller]
    pub fn unstarted(topology: Topology, rules: &str) -> Scene {
        let world = World::new(Options { topology });
        snapshot::with_policy(&world.directory.join("snapshot"), &snapshot::policy("payment-processor", rules));
        for (name, last) in [ONE, TWO] {
            let addresses = FAMILIES.map(|family| family.outside(last));
            world.outside.say_addresses(name, &addresses, 300);
            for address in addresses {
                for port in PORTS {
                    world.outside.done(Request::ServeTcp { at: SocketAddr::new(address, port) });
                }
            }
        }
        Scene { world, daemon: None }
    }

    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it runs")
    }

    #[track_caller]
    pub fn asks(&self, family: Family, name: (&str, u8)) {
        let reply = self.world.pay.ask(family.kube_dns(), name.0, family.qtype());
        assert_eq!(reply.addresses, [family.outside(name.1)], "{reply:?}");
    }

    #[track_caller]
    pub fn sees(&self, family: Family, name: (&str, u8), port: u16, expected: Reach) {
        let seen = self.world.pay.connect(SocketAddr::new(family.outside(name.1), port));
        assert_eq!(seen, expected, "{} port {port} over {family:?}", name.0);
    }

    /// What the two items say, both asked for.
    #[track_caller]
    pub fn stands(&self) {
        for family in FAMILIES {
            self.asks(family, ONE);
            self.asks(family, TWO);
            self.sees(family, ONE, 443, Reach::Reached);
            self.sees(family, ONE, 5432, Reach::Refused);
            self.sees(family, TWO, 5432, Reach::Reached);
            self.sees(family, TWO, 443, Reach::Refused);
        }
    }

    pub fn policy_file(&self) -> std::path::PathBuf {
        self.world.directory.join("snapshot/policy.yaml")
    }

    #[track_caller]
    pub fn write_policy(&self, text: &str) {
        fs::write(self.policy_file(), text).expect("a file can be written");
    }

    /// Waits until a connection attempt ends as expected.
    #[track_caller]
    pub fn comes_to(&self, limit: Duration, name: (&str, u8), port: u16, expected: Reach) {
        let to = SocketAddr::new(Family::V4.outside(name.1), port);
        assert!(
            clock::wait_until(limit, || self.world.pay.connect(to) == expected),
            "{} port {port} was not {expected:?} within {limit:?}",
            name.0
        );
    }

    pub fn kill(&mut self) {
        self.daemon.take().expect("it runs").kill();
    }

    #[track_caller]
    pub fn restart(&mut self) {
        self.daemon = Some(Daemon::start(&self.world, &[]));
    }

    /// Everything that `namegate` pinned.
    pub fn pins(&self) -> Vec<String> {
        files_below(&self.world.directory.join("bpf/namegate"))
    }
}

fn first_syns(topology: Topology) {
    const COUNT: u32 = 500;
    let rules = "  - toFQDNs: [{matchPattern: \"*.rush.example.net\"}]\n    toPorts: [{ports: [{port: \"8443\", protocol: TCP}]}]\n";
    let scene = Scene::new(topology, rules, &[]);
    for family in FAMILIES {
        let base: IpAddr = family.pick("198.19.0.0", "2001:db8:19::").parse().expect("an address");
        let script = crate::lab::agent::Script {
            records: vec![(String::new(), family.qtype().into(), format!("{base}+"))],
            ttl: 60,
            ..Default::default()
        };
        scene.world.outside.say("*.rush.example.net", family.qtype(), script);
        scene.world.outside.done(Request::ServeTcp {
            at: SocketAddr::new(family.pick("0.0.0.0", "::").parse().expect("an address"), 8443),
        });
        let rush = Rush {
            server: family.kube_dns(),
            pattern: "n{}.rush.example.net.".into(),
            first: 1,
            count: COUNT,
            port: 8443,
            at_once: 64,
            unasked_base: None,
            within_ms: 900,
        };
        let control = scene.world.pay.rush(Rush { unasked_base: Some(base), ..rush.clone() });
        assert_eq!(control.connected, 0, "unasked over {family:?}");
        let rushed = scene.world.pay.rush(rush);
        assert_eq!((rushed.answered, rushed.connected), (COUNT, COUNT), "{family:?}: {:?}", rushed.failures);
    }
}

fn items_swapped_while_dead() {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    // Never allowed, before or after; tried all the time.
    let denied = [SocketAddr::new(Family::V4.outside(ONE.1), 5432), SocketAddr::new(Family::V4.outside(TWO.1), 443)];
    let over = AtomicBool::new(false);
    let Scene { world, daemon } = &mut scene;
    let attempts = std::thread::scope(|scope| {
        let prober = scope.spawn(|| {
            let mut attempts = 0;
            while !over.load(Ordering::Relaxed) {
                for to in denied {
                    assert_ne!(world.pay.connect(to), Reach::Reached, "{to} after {attempts} attempts");
                    attempts += 1;
                }
            }
            attempts
        });
        daemon.take().expect("it runs").kill();
        let text = snapshot::policy("payment-processor", SECOND_ITEM);
        fs::write(world.directory.join("snapshot/policy.yaml"), text).expect("a file can be written");
        *daemon = Some(Daemon::start(world, &[]));
        std::thread::sleep(Duration::from_millis(1500)); // longer than any step of a start or a sweep
        over.store(true, Ordering::Relaxed);
        prober.join().expect("nothing denied was reached")
    });
    assert!(attempts > 20, "only {attempts} attempts");
    scene.sees(Family::V4, ONE, 443, Reach::Refused);
    scene.asks(Family::V4, TWO);
    scene.sees(Family::V4, TWO, 5432, Reach::Reached);
}

fn policy_changed_while_dead() {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    let connection = scene.world.pay.open(SocketAddr::new(Family::V4.outside(ONE.1), 443)).expect("it is allowed");
    scene.kill();
    scene.write_policy(&snapshot::policy("payment-processor", SECOND_ITEM));
    assert_eq!(scene.world.pay.exchange(connection), Reach::Reached, "enforcement outlives the process as it was");
    scene.restart();
    assert_eq!(scene.world.pay.exchange(connection), Reach::Ended, "its rule is gone");
    scene.sees(Family::V4, ONE, 443, Reach::Refused);
}

fn broken_file() {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    let broken = snapshot::policy("payment-processor", &format!("{TWO_ITEMS}    unheardOf: 1\n"));
    scene.write_policy(&broken);
    scene.daemon().reload();
    scene.daemon().wait_for_log("policy.yaml:");
    scene.daemon().wait_for_log("unheardOf");
    scene.stands();
    scene.write_policy("{{ not a file of objects\n");
    scene.daemon().reload();
    std::thread::sleep(Duration::from_millis(300));
    scene.stands();
    scene.kill();
    scene.restart();
    scene.stands();
}

fn broken_from_the_start() {
    let scene = Scene::unstarted(Topology::Routed, "");
    scene.sees(Family::V4, ONE, 443, Reach::Reached); // the control: nobody guards yet
    scene.write_policy(&snapshot::policy("payment-processor", "    unheardOf: 1\n"));
    let daemon = Daemon::start(&scene.world, &[]);
    daemon.wait_for_log("unheardOf");
    scene.sees(Family::V4, ONE, 443, Reach::Refused);
    assert!(daemon.metric("namegate_policies_refused", &[]) >= 1.0);
}

fn plain_write() {
    let scene = Scene::new(Topology::Routed, SECOND_ITEM, &[]);
    scene.asks(Family::V4, ONE);
    scene.sees(Family::V4, ONE, 443, Reach::Refused);
    scene.write_policy(&snapshot::policy("payment-processor", TWO_ITEMS));
    let granted = clock::wait_until(Duration::from_secs(3), || {
        scene.asks(Family::V4, ONE);
        scene.world.pay.connect(SocketAddr::new(Family::V4.outside(ONE.1), 443)) == Reach::Reached
    });
    assert!(granted, "the new item was not in force within 3 s");
}

fn data_swap() {
    let scene = Scene::unstarted(Topology::Routed, TWO_ITEMS);
    let directory = scene.world.directory.join("snapshot");
    mount(&directory, "1", &snapshot::policy("payment-processor", TWO_ITEMS));
    let daemon = Daemon::start(&scene.world, &[]);
    scene.stands();
    let connection = scene.world.pay.open(SocketAddr::new(Family::V4.outside(ONE.1), 443)).expect("it is allowed");
    mount(&directory, "2", &snapshot::policy("payment-processor", SECOND_ITEM));
    std::thread::sleep(Duration::from_millis(100));
    assert_ne!(scene.world.pay.exchange(connection), Reach::Reached, "100 ms after the rename");
    scene.sees(Family::V4, ONE, 443, Reach::Refused);
    scene.sees(Family::V4, TWO, 5432, Reach::Reached);
    assert!(daemon.ready().0);
}

/// Lays a snapshot out as the kubelet does: files are links into `..data`, which is a link to a generation.
fn mount(directory: &Path, generation: &str, policy: &str) {
    let real = directory.join(format!("..{generation}"));
    snapshot::with_policy(&real, policy);
    for entry in fs::read_dir(&real).expect("it was just made").flatten() {
        let link = directory.join(entry.file_name());
        if !link.is_symlink() {
            drop(fs::remove_file(&link));
            symlink(Path::new("..data").join(entry.file_name()), link).expect("a link can be made");
        }
    }
    let beside = directory.join("..data_tmp");
    symlink(format!("..{generation}"), &beside).expect("a link can be made");
    fs::rename(beside, directory.join("..data")).expect("a link can be renamed");
}

fn interface_made_again() {
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    scene.world.must("node", &format!("ip link del {}", PODS[0].host));
    std::thread::sleep(Duration::from_millis(200));
    scene.world.remake_pod_interface(0);
    scene.daemon().wait_ready();
    scene.comes_to(Duration::from_secs(3), ONE, 5432, Reach::Refused);
    scene.stands();
}

fn interface_appears_later() {
    let mut scene = Scene::unstarted(Topology::Routed, TWO_ITEMS);
    scene.world.must("node", &format!("ip link del {}", PODS[0].host));
    scene.daemon = Some(Daemon::start_unready(&scene.world, &[]));
    std::thread::sleep(Duration::from_millis(700));
    scene.world.remake_pod_interface(0);
    scene.daemon().wait_ready();
    scene.stands();
}

fn interface_named_no_more() {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    scene.kill();
    let elsewhere = format!("exec \"$0\" $(echo \"$@\" | sed s/{}=/veth-else=/)", PODS[0].host);
    scene.daemon = Some(Daemon::launch(&scene.world, &["sh", "-c", &elsewhere], &[]));
    scene.comes_to(Duration::from_secs(5), ONE, 5432, Reach::Reached);
}

fn sigterm() {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    let connection = scene.world.pay.open(SocketAddr::new(Family::V4.outside(ONE.1), 443)).expect("it is allowed");
    let status = scene.daemon.take().expect("it runs").terminate();
    assert!(status.success(), "{status}");
    assert_eq!(scene.world.pay.exchange(connection), Reach::Reached);
    scene.sees(Family::V4, ONE, 5432, Reach::Refused);
    let pins = scene.pins();
    scene.restart();
    assert_eq!(scene.world.pay.exchange(connection), Reach::Reached);
    assert_eq!(scene.pins(), pins, "adopted, not made again");
    scene.stands();
}

/// An upgrade over a change of the ABI: the old pins are in a directory of another number, their programs on the interfaces.
#[track_caller]
fn left_by_another_version() -> (Scene, [std::path::PathBuf; 2]) {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    scene.kill();
    let bpf = scene.world.directory.join("bpf/namegate");
    let (own, other) = (bpf.join(format!("v{}", namegate::kernel::abi::VERSION)), bpf.join("v1"));
    fs::rename(&own, &other).expect("pins can be renamed");
    scene.sees(Family::V4, ONE, 5432, Reach::Refused);
    (scene, [own, other])
}

/// Also of an interface that was made again meanwhile: nothing of it is guarded any more.
fn other_version() {
    let (mut scene, [own, other]) = left_by_another_version();
    scene.world.must("node", &format!("ip link del {}", PODS[1].host));
    scene.world.remake_pod_interface(1);
    scene.restart();
    scene.stands();
    assert!(own.exists() && !other.exists(), "{:?}", scene.pins());
}

fn other_version_detached() {
    let (scene, _) = left_by_another_version();
    let (fine, said) = daemon::run(&scene.world.namespace("node"), &scene.world.directory, "detach", &[]);
    assert!(fine, "{said}");
    leaves_nothing(&scene);
}

fn detach_at_end() {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &["--detach"]);
    scene.stands();
    let status = scene.daemon.take().expect("it runs").terminate();
    assert!(status.success(), "{status}");
    leaves_nothing(&scene);
}

fn detach_command() {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    scene.kill();
    scene.sees(Family::V4, ONE, 5432, Reach::Refused);
    let (fine, said) = daemon::run(&scene.world.namespace("node"), &scene.world.directory, "detach", &[]);
    assert!(fine, "{said}");
    leaves_nothing(&scene);
}

/// No pin, no filter, no address; and the pod reaches what was denied.
#[track_caller]
fn leaves_nothing(scene: &Scene) {
    assert_eq!(scene.pins(), Vec::<String>::new());
    scene.comes_to(Duration::from_secs(2), ONE, 5432, Reach::Reached);
    for family in FAMILIES {
        scene.sees(family, ONE, 5432, Reach::Reached);
        scene.asks(family, ONE); // of the cluster's own resolver
    }
    let tables = scene.world.must("node", "nft list tables");
    assert!(!tables.contains("namegate") && tables.contains("table ip services"), "{tables}");
    let addresses = scene.world.must("node", "ip address");
    assert!(!addresses.contains("169.254.77.") && !addresses.contains("fd6e:616d"), "{addresses}");
    for pod in &PODS {
        let queues = scene.world.must("node", &format!("tc qdisc show dev {}", pod.host));
        assert!(!queues.contains("clsact"), "{queues}");
    }
}

fn start_after_start() {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    let pins = scene.pins();
    for _ in 0..3 {
        scene.kill();
        scene.restart();
        assert_eq!(scene.pins(), pins);
        scene.stands();
    }
}

/// The files that names are written down in.
fn checkpoints(scene: &Scene) -> Vec<std::path::PathBuf> {
    let found = files_below(&scene.world.directory.join("state/names"));
    found.into_iter().map(Into::into).collect()
}

/// Waits until the names of both servers are written down.
#[track_caller]
fn written_down(scene: &Scene) {
    let written = || {
        let whole = checkpoints(scene).into_iter().filter(|path| path.extension().is_none());
        let texts = whole.filter_map(|path| fs::read_to_string(path).ok());
        texts.filter(|text| text.contains(ONE.0) && text.contains(TWO.0)).count() == 1
    };
    assert!(clock::wait_until(Duration::from_secs(4), written), "{:?}", checkpoints(scene));
}

fn damaged_checkpoint() {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    written_down(&scene);
    let connection = scene.world.pay.open(SocketAddr::new(Family::V4.outside(ONE.1), 443)).expect("it is allowed");
    scene.kill();
    for path in checkpoints(&scene) {
        let mut octets = fs::read(&path).expect("it is there");
        let middle = octets.len() / 2;
        octets[middle] ^= 1;
        fs::write(&path, octets).expect("writable");
    }
    scene.restart();
    scene.daemon().wait_for_log("was damaged (");
    assert!(checkpoints(&scene).iter().any(|path| path.extension().is_some_and(|end| end == "damaged")));
    assert_eq!(scene.world.pay.exchange(connection), Reach::Reached, "what is open stays so");
    for family in FAMILIES {
        scene.sees(family, ONE, 443, Reach::Reached);
        scene.sees(family, ONE, 5432, Reach::Refused);
        scene.sees(family, TWO, 5432, Reach::Reached);
    }
    let (fine, said) = scene.daemon().run("fqdn list", &[]);
    assert!(fine && said.contains("payments/payment-processor  -  "), "{said}");
    scene.stands();
}

fn names_after_a_kill() {
    let mut scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    written_down(&scene);
    scene.kill();
    scene.write_policy(&snapshot::policy("payment-processor", SECOND_ITEM));
    scene.restart();
    let before = scene.daemon().flows().len();
    scene.sees(Family::V4, ONE, 443, Reach::Refused);
    scene.sees(Family::V4, TWO, 5432, Reach::Reached);
    let address = Family::V4.outside(TWO.1).to_string();
    let named = clock::wait_until(Duration::from_secs(3), || {
        let flows = scene.daemon().flows();
        flows.iter().skip(before).any(|record| {
            let flow = &record["flow"];
            flow["IP"]["destination"].as_str() == Some(&address)
                && flow["verdict"] == "FORWARDED"
                && flow["destination_names"][0].as_str().is_some_and(|name| name.trim_end_matches('.') == TWO.0)
        })
    });
    assert!(
        named,
        "no flow record names it: {:?}",
        scene.daemon().flows().into_iter().skip(before).collect::<Vec<_>>()
    );
}

fn admin_socket() {
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    let socket = scene.world.directory.join("run/admin.sock");
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    let ask = |user: &str| {
        let mut command = crate::lab::process::inside(&scene.world.namespace("node"), "setpriv");
        command.args(["--reuid", user, "--regid", user, "--clear-groups", "curl", "--silent", "--max-time", "3"]);
        command.args(["--output", "/dev/null", "--write-out", "%{http_code}", "--unix-socket"]);
        command.arg(&socket).arg("http://namegate/status");
        let output = crate::lab::process::output(command).expect("setpriv and curl start");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!((ask("0").as_str(), ask("65534").as_str()), ("200", "000"), "the file's mode");
    // Someone opens it to all, on the whole way.
    for path in socket.ancestors().take_while(|path| path.parent().is_some()) {
        let open = fs::Permissions::from_mode(mode(path) | 0o777);
        fs::set_permissions(path, open).expect("root may");
        if path == scene.world.directory {
            break;
        }
    }
    assert_eq!((ask("0").as_str(), ask("65534").as_str()), ("200", "403"), "the kernel's word for who asks");
}

fn explained() {
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    let asks = |more: &[&str]| -> (bool, serde_json::Value) {
        let from = ["--from", "payments/payment-processor", "-o", "json"];
        let (fine, said) = scene.daemon().run("explain", &[&from, more].concat());
        (fine, serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}")))
    };
    // The name was learned: its addresses with their time.
    let (fine, one) = asks(&["--to", ONE.0, "--port", "443/TCP"]);
    let connection = &one["connections"][0];
    assert!(fine && one["queries"][0]["allowed"] == true, "{one}");
    assert!(connection["grants"][0]["seconds_left"].as_u64().is_some_and(|left| (300..=356).contains(&left)), "{one}");
    assert_eq!(connection["by"][0]["path"], "spec.egress[1]");
    // What the kernel does with the other port, it says.
    let (fine, other) = asks(&["--to", ONE.0, "--port", "5432/TCP"]);
    let to = SocketAddr::new(Family::V4.outside(ONE.1), 5432);
    assert!(!fine && scene.world.pay.connect(to) != Reach::Reached, "{other}");
    assert_eq!(other["connections"][0]["verdict"], "not-allowed");
    // An address that was not learned, and one that was.
    assert!(!asks(&["--to", "203.0.113.200", "--port", "443/TCP"]).0);
    assert!(asks(&["--to", &Family::V4.outside(ONE.1).to_string(), "--port", "443/TCP"]).0);
    let (fine, said) = scene.daemon().run("explain", &["--labels", "app=none", "--to", "192.0.2.1"]);
    assert!(fine && said.contains("no policy selects default/(app=none)"), "{said}");
    let (fine, said) = scene.daemon().run("explain", &["--from", "payments/nobody", "--to", "192.0.2.1"]);
    assert!(!fine && said.contains("payments/nobody"), "{said}");

    let (fine, said) = scene.daemon().run("policy get", &[]);
    assert!(fine && said.contains("payments/payment-processor") && said.contains("in force"), "{said}");
    let (fine, said) = scene.daemon().run("policy selectors", &["-o", "json"]);
    assert!(fine && said.contains("app=payment-processor"), "{said}");
    let (fine, said) = scene.daemon().run("endpoint list", &["-o", "json"]);
    let rows: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert!(fine && rows[0]["pod"] == "payments/payment-processor" && rows[0]["steered"] == true, "{said}");
    assert!(rows[0]["learned"].as_u64().is_some_and(|learned| learned > 0), "{said}");
    // Nothing would change with what it reads already; something would without the second item.
    let directory = scene.world.directory.join("snapshot");
    let same = directory.to_str().expect("a path in UTF-8");
    let (fine, said) = scene.daemon().run("policy diff", &[same]);
    assert!(fine && said == "no verdict changes\n", "{said}");
    let new = scene.world.directory.join("new");
    snapshot::with_policy(&new, &snapshot::policy("payment-processor", SECOND_ITEM));
    let (fine, said) = scene.daemon().run("policy diff", &[new.to_str().expect("a path in UTF-8")]);
    assert!(
        !fine && said.contains("- denied: payments/payment-processor for the names one.example.net: 443/TCP"),
        "{said}"
    );
}

fn names_listed() {
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    let list = |more: &[&str]| -> serde_json::Value {
        let (fine, said) = scene.daemon().run("fqdn list", &[&["-o", "json"], more].concat());
        assert!(fine, "{said}");
        serde_json::from_str(&said).expect("JSON")
    };
    let all = list(&[]);
    assert_eq!((all["names"].as_array().map(Vec::len), &all["more"]), (Some(2), &false.into()), "{all}");
    let one = list(&["--name", "one.*.net", "--endpoint", "payments/payment-processor"]);
    let name = &one["names"][0];
    assert_eq!(
        (&name["name"], &name["policies"][0]),
        (&"one.example.net.".into(), &"payments/payment-processor".into())
    );
    assert_eq!(name["addresses"].as_array().map(Vec::len), Some(2), "both families: {one}");
    assert!(name["addresses"][0]["seconds_left"].as_u64().is_some_and(|left| (340..=356).contains(&left)), "{one}");
    assert_eq!(list(&["--limit", "1"])["more"], true);
    assert_eq!(list(&["--endpoint", "payments/reports"])["names"].as_array().map(Vec::len), Some(0));
    let (fine, said) = scene.daemon().run("fqdn list", &["--endpoint", "payments/nobody"]);
    assert!(!fine && said.contains("payments/nobody"), "{said}");
    let (fine, said) = scene.daemon().run("fqdn list", &[]);
    assert!(fine && said.starts_with("ENDPOINT ") && said.contains("two.example.net."), "{said}");
    let (fine, said) = scene.daemon().run("status", &[]);
    assert!(fine && said.contains("\ncache: "), "{said}");
}

fn metrics() {
    let scene = Scene::new(Topology::Routed, TWO_ITEMS, &[]);
    scene.stands();
    let daemon = scene.daemon();
    let grown = |name: &str, labels: &[&str], least: f64| {
        let found = clock::wait_until(Duration::from_secs(3), || daemon.metric(name, labels) >= least);
        assert!(found, "{name}{labels:?} is {}, not {least}", daemon.metric(name, labels));
    };
    grown("namegate_queries_total", &["verdict=\"forwarded\"", "rcode=\"NOERROR\""], 4.0);
    grown("namegate_grants_total", &[], 4.0);
    grown("namegate_grants", &[], 4.0);
    grown("namegate_packets_total", &["reason=\"granted\"", "direction=\"egress\""], 4.0);
    grown("namegate_packets_total", &["reason=\"no_grant\"", "direction=\"egress\""], 4.0);
    grown("namegate_upstream_duration_seconds_count", &[], 4.0);
    grown("namegate_grant_write_duration_seconds_count", &[], 4.0);
    grown("namegate_map_rows", &["map=\"grants\""], 4.0);
    grown("namegate_policy_generation", &[], 1.0);
    let page = daemon.page("/metrics");
    for private in ["example.net", "203.0.113", "2001:db8", "payment"] {
        assert!(!page.contains(private), "a label holds {private}");
    }
}
