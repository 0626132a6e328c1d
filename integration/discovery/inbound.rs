//! A CNI that delivers with bpf_redirect_peer: what comes from outside and from other pods never passes the host's side of a
//! pod's interface. `enforcement.inbound = "pod"` judges it on the pod's own.
//!
//! The lab's CNI is a small program behind namegate's, at the node's way in and at the pods' interfaces. Whether something
//! arrived is seen by what the pod's server sends back: that it leaves the pod's own interface means that the server had it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libtest_mimic::Trial;

use super::yard::{BLUE, Cni, LIMIT, NAME, Pod, RED, Yard};
use crate::lab::agent::client::Agent;
use crate::lab::agent::{Question, Reach, Reply, Request};
use crate::lab::frame::{ethernet, ethertype, ip, udp};
use crate::lab::process::inside;
use crate::lab::world::{FAMILIES, Family, NODE_MAC};
use crate::lab::{Daemon, Topology, clock, daemon, programs, snapshot};

const POD: &[&str] = &["--set", "enforcement.inbound=pod"];
/// Ports of the red pod: open to the outside, to blue pods, to nobody; and one that answers whoever pretends to be a resolver.
const OUTSIDE: u16 = 4_001;
const PODS: u16 = 4_003;
const NOBODY: u16 = 4_002;
/// How long what must not arrive is waited for.
const SOON: Duration = Duration::from_millis(500);
/// Longer than between two looks at the pods' side.
const LOOKS: Duration = Duration::from_secs(2);

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, topology, cni) in
        [("routed", Topology::ProxyArp, Cni::Aws), ("bridged", Topology::Bridged, Cni::Flannel)]
    {
        trials.push(Trial::test(format!("discovery::inbound::{name}::it_is_needed"), move || {
            needed(&Yard::new(topology, cni));
            Ok(())
        }));
        let mut play = |what: &str, play: fn(&Yard)| {
            trials.push(Trial::test(format!("discovery::inbound::{name}::{what}"), move || {
                play(&Yard::new(topology, cni));
                Ok(())
            }));
        };
        play("what_comes_past_the_hosts_side_is_judged", judged);
        play("a_resolvers_answer_comes_from_the_proxy_alone", answers);
    }
    let mut once = |what: &str, play: fn(&Yard)| {
        trials.push(Trial::test(format!("discovery::inbound::{what}"), move || {
            play(&Yard::new(Topology::ProxyArp, Cni::Calico));
            Ok(())
        }));
    };
    once("each_packet_counts_once_whichever_way_it_comes", counted);
    once("it_outlives_the_process_and_goes_with_the_setting_and_with_detach", comes_and_goes);
    once("what_somebody_takes_off_or_puts_before_it_is_set_right", repaired);
    once("what_can_not_be_set_right_shuts_the_pod_until_it_can", unrepairable);
    once("a_second_interface_is_judged_as_the_first", second);
    once("a_take_over_lets_nothing_in_and_loses_nothing", taken_over);
    once("another_veth_of_the_pod_that_looks_alike_moves_nothing", lookalike);
    once("an_interface_made_again_is_guarded_again", made_again);
    once("a_pod_whose_namespace_is_not_known_is_shut", unknown);
    once("what_it_can_not_do_is_said_at_the_start", refused);
    trials
}

/// Ingress of red pods, egress of blue ones to them.
fn policies(yard: &Yard) {
    let text = format!(
        "apiVersion: cilium.io/v2\n\
         kind: CiliumNetworkPolicy\n\
         metadata: {{name: red-ingress, namespace: payments}}\n\
         spec:\n  \
           endpointSelector: {{matchLabels: {{app: red}}}}\n  \
           ingress:\n  \
           - fromCIDR: [198.18.255.2/32, \"2001:db8:ff::2/128\"]\n    \
             toPorts: [{{ports: [{{port: \"{OUTSIDE}\", protocol: ANY}}]}}]\n  \
           - fromEndpoints: [{{matchLabels: {{app: blue}}}}]\n    \
             toPorts: [{{ports: [{{port: \"{PODS}\", protocol: ANY}}]}}]\n\
         ---\n\
         apiVersion: cilium.io/v2\n\
         kind: CiliumNetworkPolicy\n\
         metadata: {{name: blue-egress, namespace: payments}}\n\
         spec:\n  \
           endpointSelector: {{matchLabels: {{app: blue}}}}\n  \
           egress: [{{toEndpoints: [{{matchLabels: {{app: red}}}}]}}]\n"
    );
    snapshot::replace(&yard.world.directory.join("snapshot/inbound.yaml"), &text);
}

/// A red pod with servers, and how the CNI delivers to it.
fn red(yard: &Yard) -> Pod {
    let pod = yard.appear(0, RED);
    serve(&pod);
    deliver(yard, &pod, &["wan0"]);
    pod
}

fn serve(pod: &Pod) {
    for port in [OUTSIDE, PODS, NOBODY] {
        let at: SocketAddr = format!("[::]:{port}").parse().expect("an address");
        pod.agent().done(Request::ServeUdp { at });
        pod.agent().done(Request::ServeTcp { at });
        pod.agent().done(Request::ServeTcp { at: ([0, 0, 0, 0], port).into() }); // the other one has no IPv4
    }
}

/// From these interfaces of the node; to where it was plugged in before nothing goes any more.
fn deliver(yard: &Yard, pod: &Pod, from: &[&str]) {
    deliver_as(yard, &delivery_to(pod), (&pod.host, &pod.v4, &pod.v6), from);
}

fn deliver_as(yard: &Yard, name: &str, (host, v4, v6): (&str, &str, &str), from: &[&str]) {
    let (node, bpf) = (yard.world.namespace("node"), yard.world.directory.join("bpf"));
    for pin in from.iter().map(|interface| bpf.join(format!("{name}-{interface}"))).filter(|pin| pin.exists()) {
        programs::detach_pinned(pin.to_str().expect("a path in UTF-8"));
        std::fs::remove_file(pin).expect("it is there");
    }
    let _ = std::fs::remove_file(bpf.join(name));
    let index = programs::ifindex_of(&yard.world, host);
    let program = programs::delivery(v4.parse().expect("IPv4"), v6.parse().expect("IPv6"), index as u32);
    programs::pin_program(&yard.world, name, &program);
    for interface in from {
        programs::attach_in(&yard.world, &node, interface, name, false);
    }
}

fn delivery_to(pod: &Pod) -> String {
    format!("deliver-{}", pod.name)
}

/// Whether the server at a port of the pod answers what `send` sends.
fn arrives(pod: &Pod, port: u16, send: impl FnOnce()) -> bool {
    arrives_over(pod, "eth0", port, send)
}

/// The same over another of its interfaces.
fn arrives_over(pod: &Pod, interface: &str, port: u16, send: impl FnOnce()) -> bool {
    let seen = pod.agent().capture(interface);
    send();
    clock::wait_until(SOON, || seen.frames().iter().any(|frame| frame.outgoing && is_from(port, &frame.octets())))
}

/// Whether a frame of UDP or TCP comes from this port.
fn is_from(port: u16, octets: &[u8]) -> bool {
    let at = match octets.get(12..14) {
        Some([8, 0]) => 14 + 20,
        Some([0x86, 0xdd]) => 14 + 40,
        _ => return false,
    };
    octets.get(at..at + 2) == Some(&port.to_be_bytes())
}

fn datagram_arrives(pod: &Pod, from: &Agent, family: Family, port: u16) -> bool {
    arrives(pod, port, || {
        from.datagram((pod.address(family), port).into());
    })
}

/// Comes to be, within the time that a reload takes on a busy machine.
#[track_caller]
fn comes(what: &str, yard: &Yard, holds: impl FnMut() -> bool) {
    assert!(clock::wait_until(LIMIT, holds), "{what}\n{:#}", yard.status());
}

/// The red pod's ingress rules are in force.
#[track_caller]
fn is_judged(yard: &Yard, pod: &Pod) {
    for family in FAMILIES {
        comes("what is allowed arrives", yard, || {
            yard.world.outside.datagram((pod.address(family), OUTSIDE).into()) == Reach::Reached
        });
        assert_eq!(yard.world.outside.connect((pod.address(family), OUTSIDE).into()), Reach::Reached, "{family:?}");
        assert!(!datagram_arrives(pod, &yard.world.outside, family, NOBODY), "{family:?}: denied, and it arrived");
    }
}

/// A frame from the outside, past its own stack, to the node's way in.
fn frame(yard: &Yard, from: SocketAddr, to: (IpAddr, u16)) -> Vec<u8> {
    let line = yard.world.must("node", "ip -o link show dev wan0");
    let (_, mac) = line.split_once("link/ether ").expect("its MAC");
    let packet = ip(from.ip(), to.0, 17, &udp((from.ip(), from.port()), to, b"forged"));
    ethernet(mac.split_whitespace().next().expect("its MAC"), NODE_MAC, ethertype(to.0), &packet)
}

/// With "host" nothing judges what the CNI delivers so.
fn needed(yard: &Yard) {
    policies(yard);
    let _daemon = yard.start(&[]);
    let pod = red(yard);
    yard.is_guarded_as(&pod, RED);
    for family in FAMILIES {
        assert!(
            datagram_arrives(&pod, &yard.world.outside, family, NOBODY),
            "INVALID: {family:?} passes the host's side"
        );
        let forged = frame(yard, family.kube_dns(), (pod.address(family), NOBODY));
        assert!(arrives(&pod, NOBODY, || yard.world.outside.inject("eth0", &[forged])), "INVALID: {family:?}");
    }
}

fn judged(yard: &Yard) {
    policies(yard);
    let _daemon = yard.start(POD);
    let (pod, blue) = (red(yard), yard.appear(1, BLUE));
    deliver(yard, &blue, &["wan0"]);
    yard.is_guarded_as(&pod, RED); // replies come the same way
    yard.is_guarded_as(&blue, BLUE);
    is_judged(yard, &pod);
    let denied = pod.agent().connect(yard.outside(Family::V4, BLUE));
    assert_eq!(denied, Reach::Refused, "namegate's own refusal arrives");
    let node = yard.world.namespace("node");
    for redirected in [false, true] {
        if redirected {
            programs::attach_in(&yard.world, &node, &blue.host, &delivery_to(&pod), false);
        }
        for family in FAMILIES {
            let to = |port| SocketAddr::from((pod.address(family), port));
            // On a bridge one pod reaches the other without the node's routes.
            comes("an allowed pod arrives", yard, || blue.agent().datagram(to(PODS)) == Reach::Reached);
            assert_eq!(blue.agent().connect(to(PODS)), Reach::Reached, "{family:?}, redirected: {redirected}");
            let passed = datagram_arrives(&pod, blue.agent(), family, NOBODY);
            assert!(!passed, "{family:?}, redirected: {redirected}: denied, and it arrived");
            // The node's own come the plain way, as kubelet's probes do.
            assert_eq!(yard.world.node.connect(to(NOBODY)), Reach::Reached, "{family:?}: a probe");
            // In fragments, both ways.
            for from in [&yard.world.outside, &yard.world.node] {
                let whole = from.call(Request::Datagram { to: to(OUTSIDE), octets: 4_000, within_ms: 3_000 });
                assert!(matches!(whole, Reply::Reached { reach: Reach::Reached, .. }), "{family:?}: {whole:?}");
            }
        }
    }
}

fn answers(yard: &Yard) {
    policies(yard);
    let daemon = yard.start(POD);
    let pod = red(yard);
    yard.is_guarded_as(&pod, RED);
    for family in FAMILIES {
        let at = yard.named(family);
        assert_eq!(pod.agent().ask(family.kube_dns(), NAME, family.qtype()).addresses, [at.ip()], "{family:?}");
        assert_eq!(pod.agent().datagram(at), Reach::Reached, "{family:?}");
        let over_tcp = pod.agent().ask_as(Question {
            server: family.kube_dns(),
            name: NAME.into(),
            qtype: family.qtype().into(),
            tcp: true,
            tls: None,
            edns: None,
            within_ms: 6_000,
        });
        assert_eq!(over_tcp.addresses, [at.ip()], "{family:?} over TCP");
        // Whoever pretends to be a resolver, or the proxy behind it, at the address that it has for it.
        let own = yard.world.must("node", &format!("ip -o {} address show", family.pick("-4", "-6")));
        let local = own.split_whitespace().find(|word| word.starts_with(family.pick("169.254.", "fd6e:")));
        let local: IpAddr =
            local.and_then(|text| text.split('/').next()?.parse().ok()).expect("the proxy's own address");
        for from in [family.kube_dns(), (local, 15_353).into()] {
            let forged = frame(yard, from, (pod.address(family), NOBODY));
            assert!(!arrives(&pod, NOBODY, || yard.world.outside.inject("eth0", &[forged])), "{from}: it arrived");
        }
    }
    assert!(daemon.metric("namegate_packets_total", &["reason=\"steered\"", "direction=\"ingress\""]) >= 4.0);
}

fn counted(yard: &Yard) {
    const EACH: usize = 5;
    policies(yard);
    let daemon = yard.start(POD);
    let pod = red(yard);
    yard.is_guarded_as(&pod, RED);
    is_judged(yard, &pod);
    let to = SocketAddr::from((pod.address(Family::V4), OUTSIDE));
    for (from, reason) in [(&yard.world.outside, "cidr"), (&yard.world.node, "host")] {
        let count = |reason: &str| {
            let labels = [format!("reason=\"{reason}\""), "direction=\"ingress\"".to_owned()];
            daemon.metric("namegate_packets_total", &[&labels[0], &labels[1]])
        };
        std::thread::sleep(Duration::from_millis(1_200)); // it is told every second
        let before = (count(reason), count("flow"));
        let kept = from.open_udp(to).expect("it is allowed");
        (0..EACH).for_each(|_| assert_eq!(from.exchange(kept), Reach::Reached));
        std::thread::sleep(Duration::from_millis(1_200));
        let after = (count(reason), count("flow"));
        assert_eq!((after.0 - before.0, after.1 - before.1), (1.0, EACH as f64), "{reason}");
    }
}

fn comes_and_goes(yard: &Yard) {
    policies(yard);
    let running = yard.start(POD);
    let pod = red(yard);
    yard.is_guarded_as(&pod, RED);
    is_judged(yard, &pod);
    let to = SocketAddr::from((pod.address(Family::V4), OUTSIDE));
    let kept = yard.world.outside.open_udp(to).expect("it is allowed");
    let is_inside = || yard.pins_on(&pod.host).iter().any(|pin| pin.ends_with("_inside"));
    assert!(is_inside());
    running.kill();
    is_judged(yard, &pod); // by the kernel alone
    let running = yard.start(POD);
    assert_eq!(yard.world.outside.exchange(kept), Reach::Reached, "a conversation goes on");
    is_judged(yard, &pod);
    running.kill();
    let running = yard.start(&[]);
    assert!(!is_inside(), "nobody asked for it");
    for family in FAMILIES {
        assert!(datagram_arrives(&pod, &yard.world.outside, family, NOBODY), "INVALID: something judges there still");
        assert_eq!(yard.world.node.connect((pod.address(family), NOBODY).into()), Reach::Reached, "a probe");
    }
    running.kill();
    let running = yard.start(POD);
    is_judged(yard, &pod);
    assert!(is_inside());
    running.kill();
    let (fine, said) = daemon::run(&yard.world.namespace("node"), &yard.world.directory, "detach", &[]);
    assert!(fine, "{said}");
    assert!(yard.pins_on(&pod.host).is_empty());
    for family in FAMILIES {
        assert_eq!(yard.world.outside.datagram((pod.address(family), NOBODY).into()), Reach::Reached, "nobody guards");
    }
}

fn repaired(yard: &Yard) {
    policies(yard);
    let running = yard.start(POD);
    let pod = red(yard);
    is_judged(yard, &pod);
    let repairs = |what: &str| running.metric("namegate_repairs_total", &[&format!("what=\"{what}\"")]);
    let pins = yard.pins_on(&pod.host);
    let pin = pins.iter().find(|pin| pin.ends_with("_inside")).expect("it is pinned");
    running.signal(libc::SIGSTOP);
    programs::detach_pinned(pin);
    assert!(datagram_arrives(&pod, &yard.world.outside, Family::V4, NOBODY), "INVALID: something judges there still");
    running.signal(libc::SIGCONT);
    comes("it is back", yard, || repairs("detached") >= 1.0);
    is_judged(yard, &pod);
    programs::pin_program(&yard.world, "other", &programs::PASS);
    programs::attach_in(&yard.world, &pod.namespace, "eth0", "other", true);
    comes("it is first again", yard, || repairs("displaced") >= 1.0);
    is_judged(yard, &pod);
    yard.is_guarded_as(&pod, RED);
    comes("it is ready", yard, || running.ready().0);
    // What is wrong for as long as it can't be repaired is told.
    assert!(running.log().iter().any(|line| line.contains("the pod's side: ")), "{:?}", running.log());
}

/// Its own side has room for no program: nobody judges what it receives, so nothing that it says leaves.
fn unrepairable(yard: &Yard) {
    policies(yard);
    let running = yard.start(POD);
    let pod = red(yard);
    yard.is_guarded_as(&pod, RED);
    is_judged(yard, &pod);
    let pins = yard.pins_on(&pod.host);
    let pin = pins.iter().find(|pin| pin.ends_with("_inside")).expect("it is pinned");
    running.signal(libc::SIGSTOP);
    programs::detach_pinned(pin);
    let full = programs::fill_chain_in(&pod.namespace, "eth0");
    assert!(!full.is_empty());
    assert!(datagram_arrives(&pod, &yard.world.outside, Family::V4, NOBODY), "INVALID: something judges there still");
    let passes = |family: Family| pod.agent().datagram(yard.outside(family, RED)) == Reach::Reached;
    assert!(FAMILIES.into_iter().all(passes), "INVALID: it is shut though nobody looks");
    running.signal(libc::SIGCONT);
    comes("it is shut", yard, || !FAMILIES.into_iter().any(passes));
    comes("it is told", yard, || yard.status().to_string().contains("the pod's side"));
    comes("it is not ready", yard, || !running.ready().0);
    drop(full);
    comes("it is open again", yard, || FAMILIES.into_iter().all(passes));
    is_judged(yard, &pod);
    comes("it is ready", yard, || running.ready().0);
}

fn second(yard: &Yard) {
    policies(yard);
    let running = yard.start(POD);
    let pod = red(yard);
    is_judged(yard, &pod);
    let more = yard.second_interface(&pod);
    yard.plug_second(&pod, &more);
    yard.write_cache_of_second(&pod, &more);
    deliver_as(yard, "deliver-second", (&more.host, &more.v4, &more.v6), &["wan0"]);
    for (to, gateway, own) in
        [("198.18.255.2/32", "169.254.1.1", &more.v4), ("2001:db8:ff::2/128", "fe80::1", &more.v6)]
    {
        yard.inside(&pod, &format!("ip route add {to} via {gateway} dev net1 onlink src {own}"));
    }
    let addresses: [IpAddr; 2] = [more.v4.parse().expect("IPv4"), more.v6.parse().expect("IPv6")];
    let inside = || yard.pins_on(&more.host).iter().any(|pin| pin.ends_with("_inside"));
    comes("its own side has a program too", yard, inside);
    let answered = |port: u16, address: IpAddr| {
        arrives_over(&pod, "net1", port, || {
            yard.world.outside.datagram((address, port).into());
        })
    };
    for address in addresses {
        comes("what is allowed arrives", yard, || {
            yard.world.outside.datagram((address, OUTSIDE).into()) == Reach::Reached
        });
        assert!(!answered(NOBODY, address), "{address}: denied, and it arrived");
    }
    comes("it is ready", yard, || running.ready().0);
    // The control: with "host" nothing judges what is delivered so.
    running.kill();
    let _running = yard.start(&[]);
    assert!(!inside(), "nobody asked for it");
    for address in addresses {
        assert!(answered(NOBODY, address), "INVALID: {address}: something judges there still");
    }
}

/// The judge is replaced for all pods at once; meanwhile each packet has the old one or the new one.
fn taken_over(yard: &Yard) {
    const TIMES: usize = 3;
    policies(yard);
    let mut running = yard.start(POD);
    let pod = red(yard);
    yard.is_guarded_as(&pod, RED);
    is_judged(yard, &pod);
    let from = |family: Family| -> SocketAddr {
        family.pick("198.18.255.2:40000", "[2001:db8:ff::2]:40000").parse().expect("an address")
    };
    let denied = FAMILIES.map(|family| frame(yard, from(family), (pod.address(family), NOBODY)));
    for time in 0..TIMES {
        let seen = pod.agent().capture("eth0");
        let next = yard.launch(&[], &[POD, &["--take-over"]].concat());
        let (mut rounds, mut after) = (0, 0);
        while after < 5 {
            yard.world.outside.inject("eth0", &denied);
            for family in FAMILIES {
                let reach = yard.world.outside.datagram((pod.address(family), OUTSIDE).into());
                assert_eq!(reach, Reach::Reached, "take-over {time}, round {rounds}, {family:?}");
            }
            rounds += 1;
            after += usize::from(next.log().iter().any(|line| line.contains("namegate is running")));
            assert!(rounds < 10_000, "no take-over\n{}", next.log().join("\n"));
        }
        let let_in = seen.frames().iter().filter(|frame| frame.outgoing && is_from(NOBODY, &frame.octets())).count();
        assert_eq!(let_in, 0, "take-over {time}: denied, and it arrived; {rounds} rounds");
        drop(seen);
        next.wait_ready();
        is_judged(yard, &pod);
        yard.is_guarded_as(&pod, RED);
        if time == 0 {
            assert!(running.ends_within(LIMIT).is_some(), "the old one runs still");
        } else {
            assert_eq!(running.terminate().code(), Some(0)); // it has taken over itself, and stays until it is told to go
        }
        running = next;
    }
    // The control: those frames do arrive where nothing judges.
    running.kill();
    let _running = yard.start(&[]);
    assert!(arrives(&pod, NOBODY, || yard.world.outside.inject("eth0", &denied)), "INVALID");
}

/// Whoever may make interfaces in the pod chooses their numbers: here one comes first whose other end has that of the host's side.
fn lookalike(yard: &Yard) {
    policies(yard);
    let running = yard.start(POD);
    let pod = red(yard);
    // As CNIs that make both ends in the node do: then its own has a number of the node's, and lower ones are free.
    yard.unplug(&pod);
    yard.plug_in_steps(&pod);
    deliver(yard, &pod, &["wan0"]);
    yard.is_guarded_as(&pod, RED);
    is_judged(yard, &pod);
    let outside = programs::ifindex_of(&yard.world, &pod.host);
    let own = programs::ifindex_in(&pod.namespace, "eth0");
    assert!(own > 2, "{own}");
    yard.inside(&pod, &format!("ip link add alike index {} type veth peer name other index {outside}", own - 1));
    std::thread::sleep(LOOKS);
    assert!(!datagram_arrives(&pod, &yard.world.outside, Family::V4, NOBODY), "it is judged no more");
    is_judged(yard, &pod);
    comes("it is ready", yard, || running.ready().0);
}

fn made_again(yard: &Yard) {
    policies(yard);
    let running = yard.start(POD);
    let pod = red(yard);
    is_judged(yard, &pod);
    yard.unplug(&pod);
    comes("its pins are gone", yard, || {
        !crate::lab::files_below(&yard.world.directory.join("bpf/namegate")).iter().any(|pin| pin.ends_with("_inside"))
    });
    yard.plug(&pod);
    deliver(yard, &pod, &["wan0"]);
    yard.is_guarded_as(&pod, RED);
    is_judged(yard, &pod);
    comes("it is ready", yard, || running.ready().0);
}

fn unknown(yard: &Yard) {
    policies(yard);
    let running = yard.start(POD);
    let pod = yard.pod(0, RED);
    yard.write_pod(&pod, true);
    yard.plug(&pod);
    serve(&pod);
    deliver(yard, &pod, &["wan0"]);
    yard.write_cache(&pod);
    let file = yard.cache_file(&pod, "eth0");
    let text = std::fs::read_to_string(&file).expect("it is there");
    let good: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let with = |namespace: Option<&str>| {
        let mut changed = good.clone();
        let fields = changed.as_object_mut().expect("an object");
        match namespace {
            Some(path) => drop(fields.insert("netns".to_owned(), path.into())),
            None => drop(fields.remove("netns")),
        }
        yard.write_cache_text(&pod, &changed.to_string());
    };
    is_judged(yard, &pod);
    yard.unplug(&pod);
    for (namespace, why) in [
        (None, "the CNI's cache does not say in which network namespace it is"),
        (Some("/proc/self/status"), "is no network namespace"),
        (Some("/proc/self/ns/net"), "is the node's own network namespace"),
        (Some("/nowhere"), "open /nowhere"),
        (Some(format!("/run/netns/{}", yard.world.namespace("outside")).as_str()), "has no veth whose other end is"),
    ] {
        with(namespace);
        std::thread::sleep(Duration::from_secs(1)); // until it has been read: what it said before was true
        yard.plug(&pod);
        deliver(yard, &pod, &["wan0"]);
        comes(why, yard, || running.run("status", &[]).1.contains(why) && !running.ready().0);
        for family in FAMILIES {
            assert_ne!(pod.agent().datagram(yard.outside(family, RED)), Reach::Reached, "{why}: it is shut");
            let answered = yard.world.outside.datagram((pod.address(family), OUTSIDE).into());
            assert_ne!(answered, Reach::Reached, "{why}: it is shut");
        }
        yard.unplug(&pod);
    }
    yard.write_cache_text(&pod, &text);
    yard.plug(&pod);
    deliver(yard, &pod, &["wan0"]);
    yard.is_guarded_as(&pod, RED);
    is_judged(yard, &pod);
    comes("it is ready", yard, || running.ready().0);
}

fn refused(yard: &Yard) {
    let node = yard.world.namespace("node");
    let program = daemon::program();
    let said = |through: &[&str], more: &[&str]| {
        let words = [through, &[program.to_str().expect("a path in UTF-8")]].concat();
        let mut command = inside(&node, words[0]);
        command.args(&words[1..]).arg("node");
        for (flag, path) in [("--state-dir", "state"), ("--pin-dir", "bpf/namegate"), ("--run-dir", "run")] {
            command.arg(flag).arg(yard.world.directory.join(path));
        }
        command.arg("--snapshot").arg(yard.world.directory.join("snapshot"));
        command.args(["--node-name", "demo-node", "--metrics", "127.0.0.1:9090"]).args(POD).args(more);
        let output = crate::lab::process::output(command).expect("it starts");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = said(&["setpriv", "--bounding-set=-sys_admin", "--"], &[]);
    assert!(text.contains("CAP_SYS_ADMIN is missing: enforcement.inbound"), "{text}");
    let text = said(&[], &["--endpoint", "veth1=payments/reports"]);
    assert!(text.contains("enforcement.inbound is pod, and endpoints are named"), "{text}");
    let text = said(&[], &["--set", "enforcement.attach=clsact"]);
    assert!(text.contains("allowed is auto, tcx or xdp"), "{text}");
    // The control: nothing of that, and it runs.
    let running: Daemon = yard.start(POD);
    assert!(running.ready().0);
}
