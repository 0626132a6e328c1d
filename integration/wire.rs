//! Each class of frame that a workload with CAP_NET_RAW can send and that must not get out (I11, I2), as a real frame.
//!
//! Every destination here is one that policy *allows*, so that nothing but the frame's class can stop it. Each trial sends
//! its frames in two worlds. Unguarded they must be captured outside: that is the control. Guarded they must not be, while
//! the plain datagram sent after them is; and the kernel's counter of the expected reason must have moved.
//!
//! With XDP, what it is for must not even come as far as the node's own packet sockets, which stand between XDP and TC.
//!
//! In bridged worlds the outside has a port on the bridge, so that frames which no router would forward arrive as well.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libtest_mimic::Trial;

use crate::lab::frame::{
    arp, ethernet, ethertype, fragment, ip, ipv4, ipv6, mac, neighbour, options_header, routing_header, snap, tagged,
    tcp, udp, v4, v6,
};
use crate::lab::world::{Family, LAN_MAC, NODE_MAC, Options, PODS};
use crate::lab::{Daemon, Topology, World, clock, snapshot};

/// What `payment-processor` may reach here, whole addresses with every port; and that makes it default-deny.
const RULES: &str = "  - toCIDR: [203.0.113.200/32, \"2001:db8:2::200/128\"]\n";
/// What XDP leaves to TC: what depends on packets that TC may still hold, what is steered, what is answered.
const FOR_TC: [&str; 5] =
    ["fragment_lone", "fragment_overlap", "fragment_steered", "unknown_resolver", "steering_address"];
const OTHER_MAC: &str = "02:00:00:00:01:77";

/// A class of frames.
struct Class {
    name: &'static str,
    families: &'static [Family],
    /// Also where the node routes: there an unguarded node forwards them.
    routed: bool,
    /// What the kernel must count them as; any one of these.
    reasons: &'static [&'static str],
    frames: fn(&Sender) -> Vec<Vec<u8>>,
}

const BOTH: &[Family] = &[Family::V4, Family::V6];
const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];

/// From whom to whom, and what marks the payload.
struct Sender {
    from: IpAddr,
    to: IpAddr,
    neighbour: IpAddr,
    next_hop: &'static str,
    mark: Vec<u8>,
}

#[rustfmt::skip]
const CLASSES: &[Class] = &[
    Class { name: "an_unknown_ethertype", families: BOTH, routed: false, reasons: &["ethertype"], frames: |s| vec![s.retyped(0x88b5)] },
    Class { name: "mpls", families: BOTH, routed: false, reasons: &["ethertype"], frames: |s| vec![s.retyped(0x8847)] },
    Class { name: "llc_snap", families: BOTH, routed: false, reasons: &["ethertype"], frames: |s| vec![snap(&s.plain())] },
    Class { name: "a_vlan_tag", families: BOTH, routed: false, reasons: &["tagged"], frames: |s| vec![tagged(&s.plain(), &[(0x8100, 5)])] },
    Class { name: "a_vlan_tag_with_vid_0", families: BOTH, routed: true, reasons: &["tagged"], frames: |s| vec![tagged(&s.plain(), &[(0x8100, 0)])] },
    Class { name: "a_service_tag", families: BOTH, routed: false, reasons: &["tagged"], frames: |s| vec![tagged(&s.plain(), &[(0x88a8, 5)])] },
    Class { name: "a_service_tag_with_vid_0", families: BOTH, routed: true, reasons: &["tagged"], frames: |s| vec![tagged(&s.plain(), &[(0x88a8, 0)])] },
    Class { name: "stacked_tags", families: BOTH, routed: false, reasons: &["tagged"], frames: |s| vec![tagged(&s.plain(), &[(0x88a8, 7), (0x8100, 5)])] },
    Class { name: "stacked_tags_with_vid_0", families: BOTH, routed: true, reasons: &["tagged"], frames: |s| vec![tagged(&s.plain(), &[(0x8100, 0), (0x8100, 0)])] },
    Class { name: "a_loose_source_route", families: V4, routed: false, reasons: &["source_route"], frames: |s| vec![s.with_options(&[131, 7, 4, 203, 0, 113, 9])] },
    Class { name: "a_strict_source_route", families: V4, routed: false, reasons: &["source_route"], frames: |s| vec![s.with_options(&[137, 7, 4, 203, 0, 113, 9])] },
    Class { name: "a_source_route_behind_other_options", families: V4, routed: false, reasons: &["source_route"], frames: |s| vec![s.with_options(&[1, 1, 1, 131, 7, 4, 203, 0, 113, 9])] },
    Class { name: "a_later_fragment", families: BOTH, routed: false, reasons: &["fragment_lone"], frames: |s| vec![s.piece(1, 64, false, &s.marked(0))] },
    // No router of Linux that follows connections forwards small ones of IPv6.
    Class { name: "a_tiny_first_fragment", families: V6, routed: false, reasons: &["fragment_lone"], frames: Sender::tiny },
    Class { name: "a_tiny_first_fragment", families: V4, routed: true, reasons: &["fragment_lone"], frames: Sender::tiny },
    Class { name: "an_overlapping_fragment", families: BOTH, routed: false, reasons: &["fragment_overlap"], frames: |s| vec![s.first(3), s.piece(3, 56, false, &s.marked(0))] },
    Class { name: "a_second_first_fragment", families: BOTH, routed: false, reasons: &["fragment_overlap"], frames: |s| vec![s.first(4), s.piece(4, 0, true, &s.marked(0))] },
    Class { name: "a_fragment_of_an_odd_length", families: BOTH, routed: false, reasons: &["fragment_malformed"], frames: |s| vec![s.piece(5, 0, true, &s.marked(4))] },
    Class { name: "a_fragment_beyond_the_end", families: BOTH, routed: false, reasons: &["fragment_malformed"], frames: |s| vec![s.first(6), s.piece(6, 65_528, false, &s.marked(0))] },
    Class { name: "an_atomic_fragment", families: V6, routed: true, reasons: &["fragment_atomic"], frames: |s| vec![s.piece(7, 0, false, &s.marked(0))] },
    Class { name: "a_query_in_fragments", families: BOTH, routed: false, reasons: &["fragment_steered", "fragment_lone"], frames: Sender::query_in_fragments },
    Class { name: "routing_header_0", families: V6, routed: true, reasons: &["source_route"], frames: |s| vec![s.routed(0)] },
    Class { name: "routing_header_2", families: V6, routed: true, reasons: &["source_route"], frames: |s| vec![s.routed(2)] },
    Class { name: "a_segment_routing_header", families: V6, routed: true, reasons: &["source_route"], frames: |s| vec![s.routed(4)] },
    Class { name: "a_long_chain_of_extension_headers", families: V6, routed: true, reasons: &["extension_header"], frames: |s| vec![s.chain(60, 9)] },
    Class { name: "an_unknown_extension_header", families: V6, routed: true, reasons: &["extension_header", "protocol"], frames: |s| vec![s.chain(139, 1)] },
    Class { name: "gre", families: BOTH, routed: true, reasons: &["protocol"], frames: |s| vec![s.tunnel(47)] },
    Class { name: "ip_in_ip", families: BOTH, routed: true, reasons: &["protocol"], frames: |s| vec![s.tunnel(4)] },
    Class { name: "ipv6_in_ip", families: BOTH, routed: true, reasons: &["protocol"], frames: |s| vec![s.tunnel(41)] },
    Class { name: "esp", families: BOTH, routed: true, reasons: &["protocol"], frames: |s| vec![s.tunnel(50)] },
    Class { name: "igmp_and_other_protocols", families: BOTH, routed: true, reasons: &["protocol"], frames: |s| vec![s.tunnel(2), s.tunnel(103), s.tunnel(115)] },
    Class { name: "the_neighbours_source_address", families: BOTH, routed: true, reasons: &["spoofed_address"], frames: |s| vec![s.claiming(s.neighbour)] },
    Class { name: "a_source_address_from_nowhere", families: BOTH, routed: true, reasons: &["spoofed_address"], frames: |s| vec![s.claiming(s.beside())] },
    Class { name: "another_source_mac", families: BOTH, routed: true, reasons: &["spoofed_mac"], frames: |s| vec![s.with_mac(OTHER_MAC)] },
    Class { name: "arp_lies", families: V4, routed: false, reasons: &["arp_spoofed"], frames: Sender::arp_lies },
    Class { name: "advertising_the_neighbours_address", families: V6, routed: false, reasons: &["nd_spoofed"], frames: Sender::advertises_neighbour },
    Class { name: "a_router_advertisement", families: V6, routed: false, reasons: &["nd_spoofed"], frames: Sender::advertises_router },
    Class { name: "the_proxys_own_addresses", families: BOTH, routed: true, reasons: &["steering_address"], frames: |s| vec![s.to_the_proxy()] },
    Class { name: "a_query_to_an_unknown_resolver", families: BOTH, routed: true, reasons: &["unknown_resolver"], frames: |s| vec![s.query()] },
    Class { name: "a_header_longer_than_its_packet", families: BOTH, routed: false, reasons: &["malformed"], frames: |s| vec![s.overlong()] },
];

impl Sender {
    /// The datagram that may pass.
    fn plain(&self) -> Vec<u8> {
        self.framed(&ip(self.from, self.to, 17, &self.datagram(self.from, self.to, 9)))
    }

    fn datagram(&self, from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
        udp((from, 4000), (to, port), &self.mark)
    }

    fn framed(&self, packet: &[u8]) -> Vec<u8> {
        ethernet(self.next_hop, PODS[0].mac, ethertype(self.from), packet)
    }

    fn retyped(&self, ethertype: u16) -> Vec<u8> {
        let mut frame = self.plain();
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        frame
    }

    fn with_options(&self, options: &[u8]) -> Vec<u8> {
        let (from, to) = (v4(self.from), v4(self.to));
        self.framed(&ipv4(from, to, 17, options, 0, &self.datagram(self.from, self.to, 9)))
    }

    /// A fragment of the datagram number `id`.
    fn piece(&self, id: u16, begin: u16, more: bool, octets: &[u8]) -> Vec<u8> {
        self.framed(&fragment(self.from, self.to, 17, id, begin, more, octets))
    }

    /// The datagram with its mark, padded to a multiple of 8 and so many octets.
    fn marked(&self, more: usize) -> Vec<u8> {
        let mut datagram = self.datagram(self.from, self.to, 9);
        datagram.resize(datagram.len().next_multiple_of(8) + more, 0);
        datagram
    }

    /// A first fragment of 64 octets that may pass.
    fn first(&self, id: u16) -> Vec<u8> {
        self.piece(id, 0, true, &udp((self.from, 4000), (self.to, 9), &[b'x'; 56]))
    }

    /// The ports in one piece, the flags in the next. A router may cut them anew: the octets behind keep the mark whole.
    fn tiny(&self) -> Vec<Vec<u8>> {
        let segment = [tcp((self.from, 4000), (self.to, 9), 1, 0, 2), self.mark.clone(), vec![0; 160]].concat();
        let piece = |begin: usize, end, more| {
            self.framed(&fragment(self.from, self.to, 6, 2, begin as u16, more, &segment[begin..end]))
        };
        vec![piece(0, 8, true), piece(8, segment.len(), false)]
    }

    /// To a resolver that is known, because policy allows its port 53: whole queries to it go to the proxy.
    fn query_in_fragments(&self) -> Vec<Vec<u8>> {
        let mut query = self.datagram(self.from, self.to, 53);
        query.resize(query.len().next_multiple_of(8), 0);
        vec![self.piece(8, 0, true, &query), self.piece(8, query.len() as u16, false, &self.mark)]
    }

    fn routed(&self, kind: u8) -> Vec<u8> {
        let via = "2001:db8:2::9".parse().expect("an address");
        let payload = routing_header(17, kind, via, &self.datagram(self.from, self.to, 9));
        self.framed(&ipv6(v6(self.from), v6(self.to), 43, &payload))
    }

    /// `count` headers of one kind before the datagram.
    fn chain(&self, kind: u8, count: usize) -> Vec<u8> {
        let mut payload = self.datagram(self.from, self.to, 9);
        let mut next = 17;
        for _ in 0..count {
            payload = options_header(next, &payload);
            next = kind;
        }
        self.framed(&ipv6(v6(self.from), v6(self.to), next, &payload))
    }

    /// A protocol number, and inside what looks like a packet to somewhere else.
    fn tunnel(&self, protocol: u8) -> Vec<u8> {
        let inner = ip(self.from, self.beside(), 17, &self.datagram(self.from, self.beside(), 9));
        self.framed(&ip(self.from, self.to, protocol, &inner))
    }

    fn claiming(&self, from: IpAddr) -> Vec<u8> {
        self.framed(&ip(from, self.to, 17, &self.datagram(from, self.to, 9)))
    }

    fn with_mac(&self, other: &str) -> Vec<u8> {
        let mut frame = self.plain();
        frame[6..12].copy_from_slice(&mac(other));
        frame
    }

    /// "The neighbour's address is at my MAC", as question and as answer; padding, of which there may be 18 octets, carries the mark.
    fn arp_lies(&self) -> Vec<Vec<u8>> {
        let (own, neighbour) = (PODS[0].mac, v4(self.neighbour));
        [1, 2]
            .into_iter()
            .map(|operation| {
                let packet = [arp(operation, (own, neighbour), (LAN_MAC, v4(self.to))), self.mark.clone()].concat();
                ethernet(LAN_MAC, own, 0x0806, &packet)
            })
            .collect()
    }

    /// A neighbour advertisement, override flag set, target link-layer address the pod's.
    fn advertises_neighbour(&self) -> Vec<Vec<u8>> {
        let body = [&[0x20, 0, 0, 0][..], &v6(self.neighbour).octets(), &[2, 1], &mac(PODS[0].mac)].concat();
        vec![[self.framed(&neighbour(v6(self.from), v6(self.to), 136, &body)), self.mark.clone()].concat()]
    }

    fn advertises_router(&self) -> Vec<Vec<u8>> {
        let body = [64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        vec![[self.framed(&neighbour(v6(self.from), v6(self.to), 134, &body)), self.mark.clone()].concat()]
    }

    /// Straight to where steered queries go, without being steered; also a route for the control to be forwarded by.
    fn to_the_proxy(&self) -> Vec<u8> {
        let to =
            if self.from.is_ipv4() { "169.254.77.1" } else { "fd6e:616d:6567:6174::1" }.parse().expect("an address");
        self.framed(&ip(self.from, to, 17, &self.datagram(self.from, to, 15353)))
    }

    /// A query to where no resolver is known. (An allowed /32 that may be reached on port 53 is a known one.)
    fn query(&self) -> Vec<u8> {
        self.framed(&ip(self.from, self.beside(), 17, &self.datagram(self.from, self.beside(), 53)))
    }

    fn overlong(&self) -> Vec<u8> {
        let mut frame = self.plain();
        let at = if self.from.is_ipv4() { 16 } else { 18 };
        frame[at] += 4; // the length field's high octet
        frame
    }

    /// An outside address that policy does not allow.
    fn beside(&self) -> IpAddr {
        if self.from.is_ipv4() { "203.0.113.201" } else { "2001:db8:2::201" }.parse().expect("an address")
    }
}

/// Two worlds of one shape, one of them guarded.
struct Pair {
    guarded: World,
    unguarded: World,
    daemon: Daemon,
}

impl Pair {
    fn new(topology: Topology, attach: &str) -> Pair {
        let unguarded = World::new(Options { topology });
        let guarded = World::new(Options { topology });
        snapshot::with_policy(&guarded.directory.join("snapshot"), &snapshot::policy("payment-processor", RULES));
        for world in [&guarded, &unguarded] {
            if topology == Topology::Bridged {
                // Else the bridge itself would put fragments together and trim padding.
                world.must(
                    "node",
                    "sysctl -eqw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
                );
            }
        }
        let daemon = Daemon::start(&guarded, &["--set", &format!("enforcement.attach={attach}")]);
        Pair { guarded, unguarded, daemon }
    }
}

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    let shapes = [("bridged", Topology::Bridged), ("routed", Topology::Routed)];
    for (shape, topology, attach) in shapes.into_iter().flat_map(|(s, t)| ["tcx", "xdp"].map(|attach| (s, t, attach))) {
        // The worlds of a shape are made by its first trial and removed with its last.
        let pair: Arc<Mutex<Option<Pair>>> = Arc::default();
        for class in CLASSES.iter().filter(|class| topology == Topology::Bridged || class.routed) {
            for &family in class.families {
                let pair = pair.clone();
                let version = if family == Family::V4 { "ipv4" } else { "ipv6" };
                trials.push(Trial::test(
                    format!("wire::{shape}::{version}::{attach}::{}_is_dropped", class.name),
                    move || {
                        let mut pair = pair.lock().unwrap_or_else(PoisonError::into_inner);
                        try_class(
                            class,
                            family,
                            topology,
                            attach,
                            pair.get_or_insert_with(|| Pair::new(topology, attach)),
                        )
                    },
                ));
            }
        }
    }
    trials
}

fn try_class(
    class: &Class,
    family: Family,
    topology: Topology,
    attach: &str,
    pair: &Pair,
) -> Result<(), libtest_mimic::Failed> {
    let sender = |mark: &str| Sender {
        from: family.of(&PODS[0]),
        to: family.pick("203.0.113.200", "2001:db8:2::200").parse().expect("an address"),
        neighbour: family.of(&PODS[1]),
        next_hop: if topology == Topology::Bridged { LAN_MAC } else { NODE_MAC },
        mark: format!("[{mark} {}]", class.name).into_bytes(),
    };
    let frames = (class.frames)(&sender("tried"));
    let plain = sender("plain").plain();
    let marked = |frame: &&Vec<u8>| holds(frame, &sender("tried").mark);
    let count = frames.iter().filter(marked).count();
    let control = escaped(&pair.unguarded, topology, &frames, &plain, &sender("tried").mark, &sender("plain").mark);
    if control != count {
        return Err(format!("the control failed: {control} of {count} frames got out of the unguarded world").into());
    }
    let counted = || -> f64 {
        let labels = class.reasons.iter().map(|reason| format!("reason=\"{reason}\""));
        labels.map(|label| pair.daemon.metric("namegate_packets_total", &[&label, "direction=\"egress\""])).sum()
    };
    let before = counted();
    let behind_xdp = pair.guarded.node.capture(PODS[0].host);
    let leaked = escaped(&pair.guarded, topology, &frames, &plain, &sender("tried").mark, &sender("plain").mark);
    if leaked > 0 {
        return Err(format!("{leaked} of {count} frames got out").into());
    }
    let came = || {
        let frames: Vec<Vec<u8>> =
            behind_xdp.frames().iter().filter(|frame| !frame.outgoing).map(|frame| frame.octets()).collect();
        ["tried", "plain"].map(|mark| frames.iter().filter(|frame| holds(frame, &sender(mark).mark)).count())
    };
    clock::wait_until(Duration::from_secs(3), || came()[1] == 2); // the one after too
    let [came, _] = came();
    let is_early = attach == "xdp" && !class.reasons.iter().any(|each| FOR_TC.contains(each));
    if came != if is_early { 0 } else { count } {
        return Err(format!("{came} of {count} frames came past XDP").into());
    }
    let moved = clock::wait_until(Duration::from_secs(3), || counted() >= before + count as f64);
    if moved { Ok(()) } else { Err(format!("dropped, but not counted as {:?}", class.reasons).into()) }
}

/// How many of the marked frames are seen outside before the plain one that follows them.
fn escaped(world: &World, topology: Topology, frames: &[Vec<u8>], plain: &[u8], tried: &[u8], follows: &[u8]) -> usize {
    let wire = world.outside.capture(if topology == Topology::Bridged { "lan0" } else { "eth0" });
    world.pay.inject("eth0", &[plain.to_vec()]); // its MAC is learned, and every neighbour on the way
    wire.wait_for("the plain datagram before", |frame| holds(frame, follows));
    world.pay.inject("eth0", frames);
    let before = wire.frames().iter().filter(|frame| holds(&frame.octets(), follows)).count();
    world.pay.inject("eth0", &[plain.to_vec()]);
    let followed = clock::wait_until(Duration::from_secs(3), || {
        wire.frames().iter().filter(|frame| holds(&frame.octets(), follows)).count() > before
    });
    assert!(followed, "the plain datagram after was never captured");
    wire.frames().iter().filter(|frame| !frame.outgoing && holds(&frame.octets(), tried)).count()
}

fn holds(frame: &[u8], mark: &[u8]) -> bool {
    frame.windows(mark.len()).any(|window| window == mark)
}
