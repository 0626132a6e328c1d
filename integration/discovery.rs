//! `namegate node` without `--endpoint`: pods come and go, and each is guarded by its own policy from its first packet on.
//!
//! Pods are routed (a /32 and a link-local gateway, as Calico and the AWS VPC CNI have them) or bridged (as flannel), in IPv4
//! and IPv6; what the CNI gave them is written down as libcni does. `red` pods may reach one outside address, `blue` ones
//! another: what the one may is the control of what the other may not.

mod bursts;
mod churn;
mod crowd;
mod inbound;
mod matrix;
pub mod yard;

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};

use crate::lab::agent::{Pace, Reach, Reply, Request};
use crate::lab::process::ip_batch;
use crate::lab::programs::fill_chain;
use crate::lab::world::{FAMILIES, Family};
use crate::lab::{Topology, clock};
use yard::{BLUE, Cni, LIMIT, Pod, RED, Yard};

/// The pods of one node.
const PODS: usize = 20;

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, topology, cni) in [
        ("calico", Topology::ProxyArp, Cni::Calico),
        ("aws", Topology::ProxyArp, Cni::Aws),
        ("flannel", Topology::Bridged, Cni::Flannel),
    ] {
        let mut play = |what: &str, play: fn(&Yard)| {
            trials.push(Trial::test(format!("discovery::{name}::{what}"), move || {
                play(&Yard::new(topology, cni));
                Ok(())
            }));
        };
        if name != "aws" {
            play("an_interface_whose_pod_is_unknown_is_shut_both_ways", unknown);
            play("a_pod_made_anew_with_the_same_address_has_its_own_policy", made_anew);
            play("a_second_interface_is_guarded_as_the_first", second);
            play("a_second_interface_of_which_only_the_hosts_side_is_said_changes_nothing_for_the_first", bare_second);
            play("what_one_pod_learns_opens_nothing_for_another", cross_pod);
            play("after_a_kill_every_pod_is_guarded_as_before", killed);
            play("a_denied_datagram_is_refused_at_once", denied_datagram);
            play("an_interface_waits_for_its_pod_and_a_pod_for_its_interface", either_order);
        }
        play("twenty_pods_are_found_before_the_api_knows_their_addresses", twenty);
    }
    let mut once =
        |what: &str, play: fn() -> Result<(), Failed>| trials.push(Trial::test(format!("discovery::{what}"), play));
    once("a_pod_is_known_by_the_route_to_it_without_a_cache", by_route);
    once("a_pod_known_by_a_route_is_known_again_after_detach", detached_by_route);
    once("where_events_were_lost_a_pod_that_was_made_in_steps_is_guarded", events_lost);
    once("a_pod_that_became_a_port_before_that_is_read_is_taken_for_one", port_at_once);
    once("a_default_route_over_a_pods_interface_opens_nothing_at_a_restart", way_out_at_restart);
    once("what_is_the_machines_own_is_never_touched", own_interfaces);
    once("a_pod_on_the_nodes_network_that_a_policy_selects_is_unprotected", host_network);
    once("with_clsact_pods_are_found_too", clsact);
    once("beside_anothers_ingress_qdisc_clsact_says_so_and_what_the_pod_sends_is_judged", ingress_qdisc);
    once("files_that_are_broken_are_left_out_and_told", broken_files);
    once("what_ends_while_it_is_dead_is_swept_for_a_pod_found_after_the_start", swept_while_dead);
    once("programs_that_cannot_be_put_on_anew_at_a_restart_stay_as_they_were", kept_programs);
    once("a_bridged_pod_is_not_known_by_what_a_bridge_learned", not_by_neighbours);
    once("no_name_stands_for_an_address_that_the_machine_got_meanwhile", own_addresses);
    trials.extend(churn::trials());
    trials.extend(matrix::trials());
    trials.extend(inbound::trials());
    trials
}

fn own_addresses() -> Result<(), Failed> {
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    let _daemon = yard.start(&["--set", "dns.cache=off"]);
    let pod = yard.appear(0, RED);
    yard.is_guarded_as(&pod, RED);
    let grants = || {
        let status = yard.status();
        let maps = status["maps"].as_array().into_iter().flatten();
        maps.filter(|map| map["name"] == "grants").filter_map(|map| map["rows"].as_u64()).sum::<u64>()
    };
    let opens = |address: IpAddr| {
        yard.world.outside.say_addresses(yard::NAME, &[address], 1);
        let before = grants();
        pod.agent().ask(Family::V4.kube_dns(), yard::NAME, "A");
        clock::wait_until(Duration::from_secs(3), || grants() > before) // counted every second
    };
    assert!(opens(Family::V4.outside(77)), "INVALID: it is somebody else's");
    let own = Family::V4.outside(78);
    yard.world.must("node", &format!("ip address add {own}/32 dev lo"));
    std::thread::sleep(Duration::from_secs(1)); // the kernel tells of it
    assert!(!opens(own), "it is this machine's");
    yard.world.must("node", &format!("ip address del {own}/32 dev lo"));
    assert!(clock::wait_until(LIMIT, || opens(own)), "it is not any more");
    Ok(())
}

/// Ten red and ten blue pods, of which the API knows every other one's addresses.
fn twenty(yard: &Yard) {
    let _daemon = yard.start(&[]);
    // That of AWS is as Calico's, but for its files.
    let count = if yard.cni == Cni::Aws { 4 } else { PODS };
    let pods: Vec<Pod> = (0..count)
        .map(|number| {
            let pod = yard.pod(number, [RED, BLUE][number % 2]);
            yard.write_pod(&pod, number % 4 < 2);
            yard.plug(&pod);
            yard.write_cache(&pod);
            pod
        })
        .collect();
    for pod in &pods {
        yard.is_guarded_as(pod, pod.colour);
    }
    // It is told every second.
    let is_told = |pod: &Pod| {
        let status = yard.status();
        let rows = status["endpoints"].as_array().cloned().unwrap_or_default();
        let row = rows.into_iter().find(|row| row["interface"] == pod.host.as_str()).unwrap_or_default();
        row["state"] == "enforced" && row["problem"] == "" && row["pod"] == format!("payments/{}", pod.name).as_str()
    };
    for pod in &pods {
        assert!(clock::wait_until(LIMIT, || is_told(pod)), "{}: {:#}", pod.host, yard.status());
    }
    yard.are_unknown(&[]);
}

/// Both ways, both families; left alone by the operator, the same packets pass.
fn unknown(yard: &Yard) {
    let stranger = yard.pod(0, RED);
    yard.plug(&stranger);
    stranger.agent().done(Request::ServeUdp { at: "[::]:4000".parse().expect("an address") });
    let passes = |expected: bool| {
        for family in FAMILIES {
            let out = || stranger.agent().datagram(yard.outside(family, RED)) == Reach::Reached;
            let back = || yard.world.outside.datagram((stranger.address(family), 4_000).into()) == Reach::Reached;
            if expected {
                assert!(clock::wait_until(LIMIT, || out() && back()), "{family:?}");
            } else {
                assert!(!out() && !back(), "{family:?}: it passed");
            }
        }
    };
    passes(true); // nobody is there
    let daemon = yard.start(&[]);
    passes(false);
    yard.are_unknown(&[&stranger.host]);
    assert!(daemon.metric("namegate_unknown_interfaces", &[]) >= 1.0);
    let (_, text) = daemon.run("status", &[]);
    assert!(text.contains(&format!("unknown: {}: neither the CNI's cache nor a route", stranger.host)), "{text}");
    drop(daemon);
    let leave_alone = format!("discovery.leave_alone={} {}", stranger.host, yard.left_alone());
    let _daemon = yard.start(&["--set", &leave_alone]);
    passes(true);
    yard.are_unknown(&[]);
    assert!(yard.pins_on(&stranger.host).is_empty(), "programs are on what is to be left alone");
}

/// First under another name, then under its own: neither has what the one before had.
fn made_anew(yard: &Yard) {
    let daemon = yard.start(&[]);
    let red = yard.appear(0, RED);
    yard.is_guarded_as(&red, RED);
    let before = yard.id_of(&red);
    let other = yard.renamed(&red, "other", BLUE);
    yard.vanish(red);
    yard.write_pod(&other, true);
    yard.plug(&other);
    yard.write_cache(&other);
    yard.is_guarded_as(&other, BLUE);
    let between = yard.id_of(&other);
    // As a StatefulSet's: the same name, the same interface's name, the same address, another pod.
    let again = yard.renamed(&other, &other.name, RED);
    yard.unplug(&other);
    yard.write_pod(&again, true);
    yard.plug(&again);
    yard.write_cache(&again);
    drop(other);
    yard.is_guarded_as(&again, RED);
    let after = yard.id_of(&again);
    assert!(before < between && between < after, "numbers are new: {before} {between} {after}");
    // The Pod object is replaced while the interface of the one before is still there: it is not the new one's.
    let replaced = yard.renamed(&again, &again.name, BLUE);
    yard.write_pod(&replaced, true);
    yard.are_unknown(&[&again.host]);
    for family in FAMILIES {
        for colour in [RED, BLUE] {
            assert_ne!(again.agent().datagram(yard.outside(family, colour)), Reach::Reached);
        }
    }
    let (_, text) = daemon.run("status", &[]);
    assert!(text.contains("the snapshot has another one with uid"), "{text}");
}

/// Names that were asked for on the one open on the other: they are one pod.
fn second(yard: &Yard) {
    let _daemon = yard.start(&[]);
    let pod = yard.appear(0, RED);
    yard.is_guarded_as(&pod, RED);
    let more = yard.second_interface(&pod);
    yard.plug_second(&pod, &more);
    yard.are_unknown(&[&more.host]);
    yard.write_cache_of_second(&pod, &more);
    let rows = || {
        let status = yard.status();
        let rows = status["endpoints"].as_array().expect("a list").clone();
        rows.into_iter().filter(|row| row["pod"] == format!("payments/{}", pod.name).as_str()).collect::<Vec<_>>()
    };
    assert!(clock::wait_until(LIMIT, || rows().len() == 2), "{:?}", rows());
    assert_eq!(rows()[0]["id"], rows()[1]["id"], "one endpoint");
    yard.route_over_second(&pod, &more);
    yard.is_guarded_as(&pod, RED);
    let seen = yard.world.outside.capture("eth0");
    assert_eq!(pod.agent().datagram(yard.outside(Family::V4, RED)), Reach::Reached);
    let from = more.v4.parse::<std::net::Ipv4Addr>().expect("an address").octets();
    seen.wait_for("a datagram from the second interface", |frame| frame.windows(4).any(|octets| octets == from));
    drop(seen);
    // The first one goes, the second stays guarded.
    yard.unplug(&pod);
    assert!(clock::wait_until(LIMIT, || rows().len() == 1), "{:?}", rows());
    yard.is_guarded_as(&pod, RED);
}

/// Whatever the plugin says of the pod's side, and whether the interface or its result is there first.
fn bare_second(yard: &Yard) {
    let _daemon = yard.start(&[]);
    for (number, result_first) in [false, true].into_iter().enumerate() {
        let pod = yard.appear(number, RED);
        yard.is_guarded_as(&pod, RED);
        let id = yard.id_of(&pod);
        let kept = pod.agent().open(yard.outside(Family::V4, RED)).expect("it is allowed");
        let more = yard.second_interface(&pod);
        if result_first {
            yard.write_bare_cache_of_second(&pod, &more);
            yard.plug_second(&pod, &more);
        } else {
            yard.plug_second(&pod, &more);
            yard.write_bare_cache_of_second(&pod, &more);
        }
        let rows = || {
            let status = yard.status();
            let rows = status["endpoints"].as_array().expect("a list").clone();
            rows.into_iter().filter(|row| row["pod"] == format!("payments/{}", pod.name).as_str()).count()
        };
        assert!(clock::wait_until(LIMIT, || rows() == 2), "{:#}", yard.status());
        assert_eq!(yard.id_of(&pod), id, "it is the endpoint that it was");
        assert_eq!(pod.agent().exchange(kept), Reach::Reached, "a connection over the first goes on");
        yard.is_guarded_as(&pod, RED);
    }
}

fn cross_pod(yard: &Yard) {
    let _daemon = yard.start(&[]);
    let (one, other) = (yard.appear(0, RED), yard.appear(1, RED));
    yard.is_guarded_as(&one, RED);
    yard.is_guarded_as(&other, RED);
    for family in FAMILIES {
        let at = yard.named(family);
        assert_ne!(one.agent().datagram(at), Reach::Reached, "nobody has asked");
        assert_eq!(one.agent().ask(family.kube_dns(), yard::NAME, family.qtype()).addresses, [at.ip()]);
        assert_eq!(one.agent().datagram(at), Reach::Reached, "it has asked");
        assert_ne!(other.agent().datagram(at), Reach::Reached, "the other one has not");
        assert_eq!(other.agent().ask(family.kube_dns(), yard::NAME, family.qtype()).addresses, [at.ip()]);
        assert_eq!(other.agent().datagram(at), Reach::Reached);
    }
}

/// As a denied connection is: its socket hears of it, by an ICMP error ("administratively prohibited").
fn denied_datagram(yard: &Yard) {
    let pod = yard.appear(0, RED);
    let sends = |family: Family, octets: usize| {
        pod.agent().call(Request::Datagram { to: yard.outside(family, BLUE), octets, within_ms: 700 }).reach()
    };
    let are = |what: &str, v4: Reach, v6: Reach| {
        for (octets, family) in [0, 32, 1_400].into_iter().flat_map(|octets| FAMILIES.map(|family| (octets, family))) {
            let expected = if family == Family::V4 { v4 } else { v6 };
            assert_eq!(sends(family, octets), expected, "{what}, {octets} octets, {family:?}");
        }
    };
    are("nobody is there", Reach::Reached, Reach::Reached);
    let daemon = yard.start(&[]);
    yard.is_guarded_as(&pod, RED);
    // What Linux makes of the two (icmp_err_convert, icmpv6_err_convert).
    are("denied", Reach::Unreachable, Reach::Refused);
    drop(daemon);
    let _daemon = yard.start(&["--set", "enforcement.reject=false"]);
    are("denied without a word", Reach::Silent, Reach::Silent);
}

/// Also without the cache, which a machine may have lost: who was behind an interface is so still.
fn killed(yard: &Yard) {
    let daemon = yard.start(&[]);
    let pods = [yard.appear(0, RED), yard.appear(1, BLUE)];
    pods.iter().for_each(|pod| yard.is_guarded_as(pod, pod.colour));
    let at = yard.named(Family::V4);
    assert_eq!(pods[0].agent().ask(Family::V4.kube_dns(), yard::NAME, "A").addresses, [at.ip()]);
    let kept = pods[0].agent().open_udp(at).expect("it is granted");
    let ids = pods.iter().map(|pod| yard.id_of(pod)).collect::<Vec<_>>();
    daemon.kill();
    pods.iter().for_each(|pod| yard.is_guarded_as(pod, pod.colour)); // by the kernel alone
    fs::remove_dir_all(yard.cache()).expect("it is there");
    let daemon = yard.start(&[]);
    assert_eq!(pods[0].agent().exchange(kept), Reach::Reached, "a conversation goes on");
    assert_eq!(pods[0].agent().datagram(at), Reach::Reached, "what was granted is");
    pods.iter().for_each(|pod| yard.is_guarded_as(pod, pod.colour));
    assert_eq!(pods.iter().map(|pod| yard.id_of(pod)).collect::<Vec<_>>(), ids);
    // One that goes while nobody looks is nobody's when it comes again.
    let [gone, _stays] = pods;
    daemon.kill();
    yard.unplug(&gone);
    fs::create_dir_all(yard.cache()).expect("it can be made");
    yard.plug(&gone);
    let _daemon = yard.start(&[]);
    yard.write_cache(&gone);
    yard.is_guarded_as(&gone, RED);
    assert!(yard.id_of(&gone) > ids[1], "a new number");
    assert_ne!(gone.agent().datagram(at), Reach::Reached, "what the one before had learned is gone");
}

fn either_order(yard: &Yard) {
    let daemon = yard.start(&[]);
    let pod = yard.pod(0, RED);
    yard.plug(&pod);
    yard.write_cache(&pod);
    yard.are_unknown(&[&pod.host]);
    assert_ne!(pod.agent().datagram(yard.outside(Family::V4, RED)), Reach::Reached, "its pod is not in the snapshot");
    let (_, text) = daemon.run("status", &[]);
    assert!(text.contains("which is no pod of this node in the snapshot"), "{text}");
    yard.write_pod(&pod, false);
    yard.is_guarded_as(&pod, RED);
    let later = yard.pod(1, BLUE);
    yard.write_pod(&later, true);
    let waits = || daemon.run("status", &[]).1.contains("no interface of it was found yet");
    assert!(clock::wait_until(LIMIT, waits), "{}", daemon.run("status", &[]).1);
    yard.write_cache(&later);
    yard.plug(&later);
    yard.is_guarded_as(&later, BLUE);
}

fn by_route() -> Result<(), Failed> {
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    let _daemon = yard.start(&[]);
    let (red, unlisted) = (yard.pod(0, RED), yard.pod(1, BLUE));
    for (pod, listed) in [(&red, true), (&unlisted, false)] {
        yard.write_pod(pod, listed);
        yard.plug(pod);
    }
    yard.is_guarded_as(&red, RED);
    yard.are_unknown(&[&unlisted.host]);
    assert_ne!(unlisted.agent().datagram(yard.outside(Family::V4, BLUE)), Reach::Reached);
    yard.write_pod(&unlisted, true);
    yard.is_guarded_as(&unlisted, BLUE);
    Ok(())
}

/// Its state is known still, and its interface has never been away.
fn detached_by_route() -> Result<(), Failed> {
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    let daemon = yard.start(&[]);
    let pod = yard.pod(0, RED);
    yard.write_pod(&pod, true);
    yard.plug(&pod);
    yard.is_guarded_as(&pod, RED);
    daemon.kill();
    let (fine, said) = crate::lab::daemon::run(&yard.world.namespace("node"), &yard.world.directory, "detach", &[]);
    assert!(fine, "{said}");
    assert_eq!(pod.agent().datagram(yard.outside(Family::V4, BLUE)), Reach::Reached, "INVALID: nobody guards");
    let _daemon = yard.start(&[]);
    yard.is_guarded_as(&pod, RED);
    Ok(())
}

/// Who is behind an interface is so until it is gone, whatever routes say by now.
fn way_out_at_restart() -> Result<(), Failed> {
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    let daemon = yard.start(&[]);
    let pod = yard.appear(0, RED);
    yard.is_guarded_as(&pod, RED);
    yard.world.must("node", &format!("ip route add default dev {} table 77", pod.host));
    yard.is_guarded_as(&pod, RED);
    daemon.kill();
    let _daemon = yard.start(&[]);
    yard.is_guarded_as(&pod, RED);
    std::thread::sleep(Duration::from_secs(6)); // longer than from one look at everything to the next
    yard.is_guarded_as(&pod, RED);
    assert!(!yard.pins_on(&pod.host).is_empty());
    Ok(())
}

/// The way out is a veth to another namespace too, as a node of kind has it.
fn own_interfaces() -> Result<(), Failed> {
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    yard.world.must("node", "ip link add pair0 type veth peer name pair1");
    yard.world.must("node", "ip link add bond7 type bridge");
    let pod = yard.appear(0, RED);
    let daemon = yard.start(&[]);
    yard.is_guarded_as(&pod, RED);
    for own in ["wan0", "lo", "pair0", "pair1", "bond7"] {
        assert!(yard.pins_on(own).is_empty(), "programs are on {own}");
    }
    assert!(!yard.pins_on(&pod.host).is_empty(), "the way in which it was looked for finds nothing");
    yard.are_unknown(&[]);
    // The other end of a pair that moves away is somebody's.
    yard.world.must("node", &format!("ip link set pair1 netns {}", yard.world.namespace("outside")));
    yard.are_unknown(&["pair0"]);
    // One that gets an address with a network around it is the machine's.
    yard.world.must("node", "ip address add 198.18.77.1/24 dev pair0");
    yard.are_unknown(&[]);
    assert!(yard.pins_on("pair0").is_empty());
    drop(daemon);
    Ok(())
}

fn clsact() -> Result<(), Failed> {
    let yard = Yard::new(Topology::Bridged, Cni::Flannel);
    let daemon = yard.start(&["--set", "enforcement.attach=clsact"]);
    let (red, stranger) = (yard.appear(0, RED), yard.pod(1, RED));
    yard.plug(&stranger);
    yard.is_guarded_as(&red, RED);
    yard.are_unknown(&[&stranger.host]);
    // What somebody takes off is back, on both.
    for host in [&red.host, &stranger.host] {
        yard.world.must("node", &format!("tc qdisc del dev {host} clsact"));
    }
    daemon.wait_for_log("not shut: ");
    assert_ne!(stranger.agent().datagram(yard.outside(Family::V4, RED)), Reach::Reached);
    assert!(clock::wait_until(LIMIT, || daemon.ready().0), "{}", daemon.ready().1);
    yard.is_guarded_as(&red, RED);
    Ok(())
}

/// That of the CNI's bandwidth plugin: it has no egress side, and what is put there stands in its one chain.
fn ingress_qdisc() -> Result<(), Failed> {
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    let pod = yard.pod(0, RED);
    yard.write_pod(&pod, true);
    yard.plug(&pod);
    yard.world.must("node", &format!("tc qdisc add dev {} ingress", pod.host));
    yard.write_cache(&pod);
    for family in FAMILIES {
        assert_eq!(pod.agent().datagram(yard.outside(family, BLUE)), Reach::Reached, "INVALID: nobody guards");
    }
    let daemon = yard.launch(&[], &["--set", "enforcement.attach=clsact", "--set", "enforcement.floor=false"]);
    let told = || daemon.ready().1.contains("it has a qdisc of kind ingress");
    assert!(clock::wait_until(LIMIT, told), "{}", daemon.ready().1);
    yard.is_guarded_as(&pod, RED); // what it sends
    // Once it is gone both programs have their places.
    yard.world.must("node", &format!("tc qdisc del dev {} ingress", pod.host));
    assert!(clock::wait_until(LIMIT, || daemon.ready().0), "{}", daemon.ready().1);
    yard.is_guarded_as(&pod, RED);
    Ok(())
}

fn host_network() -> Result<(), Failed> {
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    let daemon = yard.start(&[]);
    yard.write_host_pod("selected", "red");
    yard.write_host_pod("unselected", "green");
    assert!(clock::wait_until(LIMIT, || yard.status()["unprotected"] == serde_json::json!(["payments/selected"])));
    assert!(clock::wait_until(LIMIT, || daemon.metric("namegate_unprotected_pods", &[]) == 1.0));
    let (_, text) = daemon.run("status", &[]);
    assert!(text.contains("unprotected: payments/selected: a policy selects it"), "{text}");
    assert!(!text.contains("payments/unselected"), "it is no endpoint: {text}");
    yard.remove_pod("selected");
    assert!(clock::wait_until(LIMIT, || yard.status()["unprotected"] == serde_json::json!([])));
    Ok(())
}

fn broken_files() -> Result<(), Failed> {
    let yard = Yard::new(Topology::Bridged, Cni::Flannel);
    let daemon = yard.start(&[]);
    let pod = yard.pod(0, RED);
    yard.write_pod(&pod, true);
    yard.plug(&pod);
    yard.write_cache_text(&pod, "{\"kind\":\"cniCacheV1\",");
    daemon.wait_for_log("the CNI's result is left out: it is no JSON");
    assert!(clock::wait_until(LIMIT, || daemon.metric("namegate_cni_files_refused_total", &[]) >= 1.0));
    assert_ne!(pod.agent().datagram(yard.outside(Family::V4, RED)), Reach::Reached);
    let (_, text) = daemon.run("status", &[]);
    assert!(text.contains("of the CNI's cache: it is no JSON"), "{text}");
    yard.write_cache(&pod);
    yard.is_guarded_as(&pod, RED);
    Ok(())
}

/// A red pod that nobody knows says with its frames that it is another one: it gets neither policy.
fn not_by_neighbours() -> Result<(), Failed> {
    let yard = Yard::new(Topology::Bridged, Cni::Flannel);
    let (stranger, claimed) = (yard.pod(0, RED), yard.pod(1, RED));
    yard.write_pod(&claimed, true);
    yard.plug(&stranger);
    let address = format!("ip address add {}/24 dev eth0", claimed.v4);
    yard.inside(&stranger, &address);
    let from_there = || {
        let line = format!("ip route replace 203.0.113.0/24 via 198.51.100.1 src {}", claimed.v4);
        yard.inside(&stranger, &line);
        stranger.agent().datagram(yard.outside(Family::V4, RED))
    };
    assert_eq!(from_there(), Reach::Reached, "nobody is there yet, and every neighbour knows it");
    let _daemon = yard.start(&[]);
    assert_ne!(from_there(), Reach::Reached);
    std::thread::sleep(Duration::from_secs(6)); // everything has been looked at once more
    yard.are_unknown(&[&stranger.host]);
    assert_ne!(from_there(), Reach::Reached);
    Ok(())
}

/// The kernel is told in which row of `budgets` a pod's flows count, also of one that comes later.
fn swept_while_dead() -> Result<(), Failed> {
    let limit = 64;
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    let flows = format!("enforcement.flows_per_endpoint={limit}");
    let times =
        ["closed_timeout=1s", "syn_timeout=1s", "established_timeout=1m"].map(|set| format!("enforcement.{set}"));
    let flags: Vec<&str> = times.iter().chain([&flows]).flat_map(|flag| ["--set", flag.as_str()]).collect();
    let daemon = yard.start(&flags);
    let pod = yard.appear(0, RED);
    yard.is_guarded_as(&pod, RED);
    daemon.kill();
    let reaches = || pod.agent().connect(yard.outside(Family::V4, RED)) == Reach::Reached;
    let passed = (0..2 * limit).take_while(|_| reaches()).count();
    assert!(passed < 2 * limit, "INVALID: the budget of {limit} is never full");
    // 5 s after the last beat, then every 10 s.
    assert!(clock::wait_until(Duration::from_secs(13), reaches), "nothing passes 13 s after the budget was full");
    assert_ne!(pod.agent().connect(yard.outside(Family::V4, BLUE)), Reach::Reached);
    Ok(())
}

/// Another agent has filled the chain; filters of the run before are there still. (Where there is a floor, it shuts such an
/// interface.)
fn kept_programs() -> Result<(), Failed> {
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    let no_floor = ["--set", "enforcement.floor=false", "--set"];
    let daemon = yard.start(&[&no_floor[..], &["enforcement.attach=clsact"]].concat());
    let pod = yard.appear(0, RED);
    yard.is_guarded_as(&pod, RED);
    daemon.kill();
    let full = fill_chain(&yard.world, &pod.host);
    let daemon = yard.launch(&[], &[&no_floor[..], &["enforcement.attach=tcx"]].concat());
    let problem = || daemon.ready().1.contains(&format!("{}: attach from_pod", pod.host));
    assert!(clock::wait_until(LIMIT, problem), "{}", daemon.ready().1);
    std::thread::sleep(Duration::from_secs(6)); // longer than from one look at everything to the next
    yard.is_guarded_as(&pod, RED);
    // Once there is room, its own take their place.
    drop(full);
    assert!(clock::wait_until(LIMIT, || daemon.ready().0), "{}", daemon.ready().1);
    yard.is_guarded_as(&pod, RED);
    assert!(!yard.pins_on(&pod.host).is_empty());
    Ok(())
}

/// The CNI's result is read first, then that the interface is there, and only then that it is a port: as one that is none, its
/// queries would be sent on to the bridge, with the proxy's address for their destination.
fn port_at_once() -> Result<(), Failed> {
    const PORT: [u8; 2] = 15_353u16.to_be_bytes();
    let yard = Yard::new(Topology::Bridged, Cni::Flannel);
    let daemon = yard.start(&[]);
    let pod = yard.pod(0, RED);
    yard.write_pod(&pod, true);
    daemon.wait_for_log("generation=2"); // it is known before it is there
    daemon.signal(libc::SIGSTOP);
    yard.plug(&pod);
    yard.write_cache(&pod);
    let seen = yard.world.outside.capture("lan0");
    let (same, fresh) = (yard::NAME.to_owned(), yard::NAME.to_owned());
    let asking = pod.agent().begin(Request::Pace(Pace {
        server: Family::V4.kube_dns(),
        same,
        fresh,
        per_second: 300,
        for_ms: 1_500,
    }));
    daemon.signal(libc::SIGCONT);
    let Reply::Paced(paced) = asking.wait() else { panic!("it asks") };
    assert!(paced.asked > 100 && paced.lost.len() < paced.asked as usize, "INVALID: {paced:?}");
    let astray = seen.frames().iter().filter(|frame| frame.octets().get(36..38) == Some(&PORT)).count();
    assert_eq!(astray, 0, "queries that were rewritten and sent on to the bridge; of {}", paced.asked);
    yard.is_guarded_as(&pod, RED);
    let attached = daemon.log().iter().filter(|line| line.contains("attached") && line.contains(&pod.host)).count();
    assert_eq!(attached, 1, "it was attached as another one in between: {:#?}", daemon.log());
    Ok(())
}

/// Its other end was in the node still when the first events of it were queued, as some CNIs make them.
fn events_lost() -> Result<(), Failed> {
    const LOST: &str = "the kernel's events were too many";
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    let daemon = yard.start(&[]);
    let pod = yard.pod(0, RED);
    yard.write_pod(&pod, true);
    yard.write_cache(&pod);
    daemon.signal(libc::SIGSTOP);
    yard.plug_in_steps(&pod);
    // Each line is an event; what the socket holds is bounded.
    let lines: String = (0..20_000).map(|at| format!("link set {} mtu {}\n", pod.host, 1400 + at % 2)).collect();
    ip_batch(&yard.world.namespace("node"), &lines);
    daemon.signal(libc::SIGCONT);
    daemon.wait_for_log(LOST);
    yard.is_guarded_as(&pod, RED);
    let attached = daemon.log().iter().filter(|line| line.contains("attached") && line.contains(&pod.host)).count();
    assert_eq!(attached, 1, "it was taken off in between: {:#?}", daemon.log());
    Ok(())
}
