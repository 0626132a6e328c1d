//! Whom pods ask beside the cluster's DNS: the node's own cache of it, servers of a pod's dnsConfig, servers that nothing names.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use libtest_mimic::Trial;

use crate::lab::Topology;
use crate::lab::agent::{Answered, Question, Reach, Request};
use crate::lab::clock::wait_until;
use crate::lab::daemon::Daemon;
use crate::lab::world::Family;
use crate::scenes::{ONE, Scene, TWO_ITEMS};

const NODE_LOCAL: &str = "169.254.20.10:53";
/// A server outside that no rule names by itself.
const OWN: &str = "203.0.113.54:53";
/// Whoever is outside may be asked for one name; another rule lets its address be reached by name.
const WIDE: &str = "  - toCIDR: [203.0.113.0/25]\n    toPorts:\n    - ports: [{port: \"53\", protocol: ANY}]\n      \
                    rules: {dns: [{matchName: one.example.net}]}\n  \
                    - toFQDNs: [{matchName: one.example.net}]\n    toPorts: [{ports: [{port: \"443\", protocol: TCP}]}]\n";

pub fn trials() -> Vec<Trial> {
    let scene = |name: &str, play: fn()| {
        Trial::test(format!("resolvers::{name}"), move || {
            play();
            Ok(())
        })
    };
    vec![
        scene("the_nodes_own_cache_is_asked_in_the_stead_of_the_clusters_dns", node_local),
        scene("a_server_of_dns_config_is_judged_by_policy", dns_config),
        scene("a_server_that_nothing_names_is_judged_once_it_has_a_local_address", pool),
    ]
}

fn server(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// One query without patience.
#[track_caller]
fn asks(scene: &Scene, at: &str, name: &str, tcp: bool) -> Answered {
    let (qtype, name) = ("A".into(), name.into());
    scene.world.pay.ask_as(Question {
        server: server(at),
        name,
        qtype,
        tcp,
        tls: None,
        edns: Some(1232),
        within_ms: 1500,
    })
}

fn node_local() {
    let mut scene = Scene::unstarted(Topology::Routed, TWO_ITEMS);
    let listens = |scene: &Scene| {
        scene.world.must("node", "ip address add 169.254.20.10/32 dev lo");
        scene.world.node.say_addresses(ONE.0, &[Family::V4.outside(ONE.1)], 300);
        scene.world.node.done(Request::ServeNames { at: vec![server(NODE_LOCAL)] });
    };
    scene.daemon = Some(Daemon::start(&scene.world, &[]));
    assert_eq!(asks(&scene, NODE_LOCAL, ONE.0, false).rcode, "", "the control: no node cache, nobody's address");
    listens(&scene);
    let answers = || asks(&scene, NODE_LOCAL, ONE.0, false).rcode == "NOERROR";
    assert!(wait_until(Duration::from_secs(15), answers), "it came after namegate");
    for tcp in [false, true] {
        let answered = asks(&scene, NODE_LOCAL, ONE.0, tcp);
        assert_eq!(answered.addresses, [Family::V4.outside(ONE.1)], "{answered:?}");
    }
    scene.sees(Family::V4, ONE, 443, Reach::Reached);
    scene.sees(Family::V4, ONE, 5432, Reach::Refused);
    // A rule that denies the cache itself stands.
    let policy = fs::read_to_string(scene.policy_file()).expect("it was written");
    let policy =
        policy.replace("spec:\n", "spec:\n  egressDeny: [{toCIDR: [169.254.20.10/32]}, {toEntities: [host]}]\n");
    scene.write_policy(&policy);
    scene.daemon().reload();
    let denied = || asks(&scene, NODE_LOCAL, ONE.0, false).rcode == "REFUSED";
    assert!(wait_until(Duration::from_secs(5), denied));
}

fn dns_config() {
    let mut scene = Scene::unstarted(Topology::Routed, WIDE);
    scene.world.outside.done(Request::ServeNames { at: vec![server(OWN)] });
    scene.daemon = Some(Daemon::start(&scene.world, &[]));
    assert_eq!(asks(&scene, OWN, ONE.0, false).rcode, "", "the control: nothing names it");
    let file = scene.world.directory.join("snapshot/cluster.yaml");
    let text = fs::read_to_string(&file).expect("it is there");
    let spec = "spec:\n  nodeName: demo-node\n";
    let with = format!("{spec}  dnsConfig: {{nameservers: [203.0.113.54]}}\n");
    fs::write(&file, text.replacen(spec, &with, 1)).expect("a file can be written");
    scene.kill();
    scene.restart();
    judged(&scene);
}

fn pool() {
    let mut scene = Scene::unstarted(Topology::Routed, WIDE);
    scene.world.outside.done(Request::ServeNames { at: vec![server(OWN)] });
    let pool = ["--set", "dns.unknown_resolvers=pool"];
    scene.daemon = Some(Daemon::start(&scene.world, &pool));
    let answered = |scene: &Scene| asks(scene, OWN, ONE.0, false).rcode == "NOERROR";
    assert!(wait_until(Duration::from_secs(5), || answered(&scene)));
    judged(&scene);
    // The pool is kept in memory: after a restart it fills again with what is asked.
    scene.kill();
    scene.daemon = Some(Daemon::start(&scene.world, &pool));
    assert!(wait_until(Duration::from_secs(5), || answered(&scene)));
    assert_eq!(asks(&scene, OWN, "two.example.net", false).rcode, "REFUSED");
}

/// What policy lets be asked is answered and teaches nothing, for nobody vouches for the server; the rest is refused.
#[track_caller]
fn judged(scene: &Scene) {
    let answered = asks(scene, OWN, ONE.0, false);
    assert_eq!((answered.rcode.as_str(), answered.addresses.len()), ("NOERROR", 0), "{answered:?}");
    assert_eq!(asks(scene, OWN, "two.example.net", false).rcode, "REFUSED");
    scene.sees(Family::V4, ONE, 443, Reach::Refused);
    scene.asks(Family::V4, ONE);
    scene.sees(Family::V4, ONE, 443, Reach::Reached);
}
