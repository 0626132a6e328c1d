//! The frames, a table a class.

use std::net::Ipv4Addr;

use super::Aim;
use crate::lab::frame::{
    arp, ethernet, ethertype, fragment_header, icmp, ip, ipv4, ipv6, mac, neighbour, options_header, snap, tagged,
    tcp_carrying, udp, v4, v6,
};
use crate::lab::world::{Family, LAN_MAC, NODE_MAC, PODS};

pub const BOTH: &[Family] = &[Family::V4, Family::V6];
const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];
const OTHER_MAC: &str = "02:00:00:00:01:77";
pub const EVERYONE: &str = "ff:ff:ff:ff:ff:ff";

/// A way to get a frame out.
pub struct Row {
    pub name: &'static str,
    pub tries: &'static str,
    pub families: &'static [Family],
    /// Also where the node routes: there an unguarded node forwards it.
    pub routed: bool,
    pub frames: fn(&Aim) -> Vec<Vec<u8>>,
}

#[rustfmt::skip]
pub const TAGS: &[Row] = &[
    Row { name: "a tag", tries: "VLAN 5 leads past the program", families: BOTH, routed: false, frames: |a| vec![tagged(&a.plain(), &[(0x8100, 5)])] },
    Row { name: "a tag with VID 0", tries: "a priority tag is stripped after the program", families: BOTH, routed: true, frames: |a| vec![tagged(&a.plain(), &[(0x8100, 0)])] },
    Row { name: "a tag with VID 0 and a priority", tries: "the same with priority 7", families: BOTH, routed: true, frames: |a| vec![tagged(&a.plain(), &[(0x8100, 0xe000)])] },
    Row { name: "a tag with VID 4095", tries: "the reserved VLAN", families: BOTH, routed: false, frames: |a| vec![tagged(&a.plain(), &[(0x8100, 4095)])] },
    Row { name: "a service tag", tries: "802.1ad instead of 802.1Q", families: BOTH, routed: false, frames: |a| vec![tagged(&a.plain(), &[(0x88a8, 5)])] },
    Row { name: "a service tag with VID 0", tries: "the same, stripped later", families: BOTH, routed: true, frames: |a| vec![tagged(&a.plain(), &[(0x88a8, 0)])] },
    Row { name: "two tags", tries: "the inner tag hides behind the outer", families: BOTH, routed: false, frames: |a| vec![tagged(&a.plain(), &[(0x88a8, 7), (0x8100, 5)])] },
    Row { name: "two tags with VID 0", tries: "both are stripped later", families: BOTH, routed: true, frames: |a| vec![tagged(&a.plain(), &[(0x8100, 0), (0x8100, 0)])] },
    Row { name: "two service tags with VID 0", tries: "both are stripped later", families: BOTH, routed: true, frames: |a| vec![tagged(&a.plain(), &[(0x88a8, 0), (0x88a8, 0)])] },
    Row { name: "three tags with VID 0", tries: "one more than a parser expects", families: BOTH, routed: true, frames: |a| vec![tagged(&a.plain(), &[(0x88a8, 0), (0x8100, 0), (0x8100, 0)])] },
    Row { name: "a tag of the old type 0x9100", tries: "a TPID that the kernel does not strip", families: BOTH, routed: false, frames: |a| vec![tagged(&a.plain(), &[(0x9100, 0)])] },
    Row { name: "a tag of the old type 0x9200", tries: "a TPID that the kernel does not strip", families: BOTH, routed: false, frames: |a| vec![tagged(&a.plain(), &[(0x9200, 0)])] },
    Row { name: "llc with snap", tries: "the ethertype hides behind a length", families: BOTH, routed: false, frames: |a| vec![snap(&a.plain())] },
    Row { name: "llc with snap of another organisation", tries: "a SNAP header of Cisco's", families: V4, routed: false, frames: |a| vec![a.llc(&[0xaa, 0xaa, 3, 0, 0, 0xc, 0x20, 0])] },
    Row { name: "llc of a spanning tree", tries: "an 802.2 frame of a protocol that switches speak", families: V4, routed: false, frames: |a| vec![a.llc(&[0x42, 0x42, 3])] },
    Row { name: "llc with ip's own sap", tries: "SAP 6 is IP", families: V4, routed: false, frames: |a| vec![a.llc(&[6, 6, 3])] },
    Row { name: "raw 802.3", tries: "a length and no LLC header, as IPX had", families: V4, routed: false, frames: |a| vec![a.llc(&[0xff, 0xff])] },
];

/// Numbers of the registry, and what the frame then pretends to be.
pub const ETHERTYPES: &[(u16, &str)] = &[
    (0x0000, "a length of nothing"),
    (0x05ff, "no length and no type"),
    (0x0842, "wake-on-lan"),
    (0x22f3, "trill"),
    (0x6558, "bridged ethernet"),
    (0x8035, "rarp"),
    (0x809b, "appletalk"),
    (0x8137, "ipx"),
    (0x8847, "mpls"),
    (0x8848, "mpls multicast"),
    (0x8863, "pppoe discovery"),
    (0x8864, "pppoe session"),
    (0x8892, "profinet"),
    (0x88a2, "ata over ethernet"),
    (0x88b5, "an experiment"),
    (0x88b6, "another experiment"),
    (0x88cc, "lldp"),
    (0x88e5, "macsec"),
    (0x88e7, "provider backbone bridging"),
    (0x88f7, "ptp"),
    (0x8906, "fibre channel"),
    (0x8915, "roce"),
    (0x894f, "nsh"),
    (0x9000, "loopback"),
    (0xffff, "the last one"),
    (0x0806, "arp that is ip"),
    (0x86dd, "ipv6 that is ipv4"),
];

pub const PROTOCOLS: &[(u8, &str)] = &[
    (2, "igmp"),
    (4, "ip in ip"),
    (5, "st"),
    (8, "egp"),
    (27, "rdp"),
    (33, "dccp"),
    (41, "6in4"),
    (46, "rsvp"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (55, "minimal encapsulation"),
    (88, "eigrp"),
    (89, "ospf"),
    (94, "ip within ip"),
    (97, "ethernet within ip"),
    (103, "pim"),
    (108, "ip compression"),
    (112, "vrrp"),
    (115, "l2tp"),
    (136, "udp-lite"),
    (137, "mpls in ip"),
    (143, "ethernet"),
    (253, "an experiment"),
    (255, "reserved"),
];

pub const TCP_FLAGS: &[(u8, &str)] = &[
    (0, "without flags"),
    (1, "fin"),
    (2, "syn"),
    (3, "syn and fin"),
    (4, "rst"),
    (6, "syn and rst"),
    (8, "psh"),
    (16, "ack"),
    (17, "fin and ack"),
    (18, "syn and ack"),
    (20, "rst and ack"),
    (24, "psh and ack"),
    (32, "urg"),
    (41, "fin, psh and urg"),
    (0xc2, "syn, ece and cwr"),
    (0xff, "with every flag"),
];

#[rustfmt::skip]
pub const HEADERS: &[Row] = &[
    Row { name: "a loose source route", tries: "an option leads the packet on to somewhere else", families: V4, routed: false, frames: |a| vec![a.with_options(a.allowed, &[131, 7, 4, 203, 0, 113, 201])] },
    Row { name: "a strict source route", tries: "an option leads the packet on to somewhere else", families: V4, routed: false, frames: |a| vec![a.with_options(a.allowed, &[137, 7, 4, 203, 0, 113, 201])] },
    Row { name: "a source route behind other options", tries: "the route hides behind padding and a record", families: V4, routed: false, frames: |a| vec![a.with_options(a.allowed, &[1, 1, 1, 7, 7, 4, 0, 0, 0, 0, 131, 7, 4, 203, 0, 113, 201])] },
    Row { name: "an option of length 0", tries: "a walk over options that never ends", families: V4, routed: false, frames: |a| vec![a.with_options(a.denied, &[68, 0, 5, 0])] },
    Row { name: "an option longer than the header", tries: "a walk that leaves the header", families: V4, routed: false, frames: |a| vec![a.with_options(a.denied, &[68, 40, 5, 0])] },
    Row { name: "forty octets of options to a denied address", tries: "the ports stand where no option-less parser looks", families: V4, routed: false, frames: |a| vec![a.with_options(a.denied, &[1; 40])] },
    Row { name: "recorded routes to a denied address", tries: "an option that routers write", families: V4, routed: true, frames: |a| vec![a.with_options(a.denied, &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0])] },
    Row { name: "timestamps to a denied address", tries: "an option that routers write", families: V4, routed: true, frames: |a| vec![a.with_options(a.denied, &[68, 8, 5, 0, 0, 0, 0, 0])] },
    Row { name: "a router alert to a denied address", tries: "a packet for every router on the way", families: V4, routed: true, frames: |a| vec![a.with_options(a.denied, &[148, 4, 0, 0])] },
    Row { name: "ports of an allowed name in the options", tries: "options that look like the UDP header of something allowed", families: V4, routed: false, frames: |a| vec![a.with_options(a.denied, &[7, 8, 0x0f, 0xa0, 0, 9, 0, 8])] },
    Row { name: "a header of four words", tries: "a header shorter than the shortest", families: V4, routed: false, frames: |a| vec![a.patched(a.denied, 14, 0x44)] },
    Row { name: "version 6 behind the type of version 4", tries: "the version disagrees with the ethertype", families: V4, routed: false, frames: |a| vec![a.patched(a.allowed, 14, 0x65)] },
    Row { name: "version 4 behind the type of version 6", tries: "the version disagrees with the ethertype", families: V6, routed: false, frames: |a| vec![a.patched(a.allowed, 14, 0x45)] },
    Row { name: "a header longer than its packet", tries: "a length that the frame does not have", families: BOTH, routed: false, frames: |a| vec![a.overlong()] },
    Row { name: "a length shorter than the header", tries: "a total length of 10 octets", families: V4, routed: false, frames: |a| vec![a.patched_two(a.allowed, 16, [0, 10])] },
    Row { name: "the reserved flag to a denied address", tries: "the evil bit (RFC 3514)", families: V4, routed: true, frames: |a| vec![a.framed(&ipv4(a.v4(), v4(a.denied), 17, &[], 0x8000, &a.datagram(a.denied, 9)))] },
    Row { name: "half a tcp header", tries: "ports can be read, flags can't", families: BOTH, routed: false, frames: |a| vec![a.cut(8)] },
    Row { name: "a tcp header of two words", tries: "a data offset within the header", families: BOTH, routed: true, frames: |a| vec![a.short_offset()] },
    Row { name: "no transport header at all", tries: "UDP by number, nothing in it but two ports", families: BOTH, routed: false, frames: |a| vec![a.cut(4)] },
    Row { name: "a datagram to a denied address", tries: "plainly", families: BOTH, routed: true, frames: |a| vec![a.framed(&ip(a.from, a.denied, 17, &a.datagram(a.denied, 9)))] },
    Row { name: "a datagram from port 53 to a denied address", tries: "it looks like an answer of DNS", families: BOTH, routed: true, frames: |a| vec![a.framed(&ip(a.from, a.denied, 17, &udp((a.from, 53), (a.denied, 9), &a.mark)))] },
    Row { name: "a datagram to port 0", tries: "port 0 stands for every port in a row of policy", families: BOTH, routed: true, frames: |a| vec![a.framed(&ip(a.from, a.denied, 17, &a.datagram(a.denied, 0)))] },
    Row { name: "sctp to a denied address", tries: "a transport with ports that is neither TCP nor UDP", families: BOTH, routed: true, frames: |a| vec![a.framed(&ip(a.from, a.denied, 132, &[&[0x0f, 0xa0, 1, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0], &a.mark[..]].concat()))] },
];

#[rustfmt::skip]
pub const FRAGMENTS: &[Row] = &[
    Row { name: "a lone later fragment", tries: "a fragment without ports, and no first one", families: BOTH, routed: false, frames: |a| vec![a.fragment(a.allowed, 64, false, &a.mark)] },
    Row { name: "a lone fragment in the middle", tries: "the same with more to come", families: BOTH, routed: false, frames: |a| vec![a.fragment(a.allowed, 64, true, &a.whole(a.allowed))] },
    Row { name: "a first fragment to a denied address", tries: "a first one that nobody completes", families: BOTH, routed: false, frames: |a| vec![a.fragment(a.denied, 0, true, &a.whole(a.denied))] },
    Row { name: "both fragments to a denied address", tries: "a datagram in two pieces", families: BOTH, routed: false, frames: |a| vec![a.fragment(a.denied, 0, true, &a.whole(a.denied)), a.fragment(a.denied, 32, false, &a.mark)] },
    Row { name: "both fragments in the wrong order", tries: "the later one comes first", families: BOTH, routed: false, frames: |a| vec![a.fragment(a.denied, 32, false, &a.mark), a.fragment(a.denied, 0, true, &a.whole(a.denied))] },
    Row { name: "a first fragment without its ports' header", tries: "eight octets of TCP, the flags come later", families: BOTH, routed: false, frames: |a| vec![a.fragment_of(6, a.allowed, 8, true, &a.mark)] },
    Row { name: "a fragment that begins in the header", tries: "offset 8 writes over flags or length", families: BOTH, routed: false, frames: |a| vec![a.fragment(a.allowed, 8, false, &a.mark)] },
    Row { name: "a fragment that ends behind 64 KiB", tries: "the ping of death", families: BOTH, routed: false, frames: |a| vec![a.fragment(a.allowed, 0xfff8, false, &a.whole(a.allowed))] },
    Row { name: "an atomic fragment to a denied address", tries: "a fragment header on a whole packet", families: V6, routed: true, frames: |a| vec![a.fragment(a.denied, 0, false, &a.datagram(a.denied, 9))] },
    Row { name: "a second first fragment", tries: "other ports in place of those that were judged", families: BOTH, routed: false, frames: |a| a.behind_a_first(a.fragment(a.allowed, 0, true, &a.whole(a.denied))) },
    Row { name: "a fragment over the end of an allowed first", tries: "it reaches into what was judged", families: BOTH, routed: false, frames: |a| a.behind_a_first(a.fragment(a.allowed, 24, false, &a.mark)) },
    Row { name: "a fragment over the header of an allowed first", tries: "it begins where the ports end", families: BOTH, routed: false, frames: |a| a.behind_a_first(a.fragment(a.allowed, 8, true, &a.whole(a.allowed))) },
    Row { name: "a later fragment of another datagram", tries: "another number than the allowed first has", families: BOTH, routed: false, frames: |a| a.behind_a_first(a.of_another_datagram()) },
    Row { name: "a later fragment to a denied address", tries: "the number of an allowed first, another address", families: BOTH, routed: false, frames: |a| a.behind_a_first(a.fragment(a.denied, 32, false, &a.mark)) },
    Row { name: "a later fragment that ends behind 64 KiB", tries: "an allowed first, and the end of a ping of death", families: BOTH, routed: false, frames: |a| a.behind_a_first(a.fragment(a.allowed, 0xfff8, false, &a.whole(a.allowed))) },
    Row { name: "two fragment headers", tries: "a fragment of a fragment", families: V6, routed: false, frames: |a| vec![a.framed(&ipv6(a.v6(), v6(a.denied), 44, &fragment_header(44, 0, false, 7, &fragment_header(17, 0, false, 7, &a.datagram(a.denied, 9)))))] },
];

#[rustfmt::skip]
pub const EXTENSIONS: &[Row] = &[
    Row { name: "hop-by-hop options to a denied address", tries: "the ports stand one header further on", families: V6, routed: true, frames: |a| vec![a.behind(0, a.denied)] },
    Row { name: "destination options to a denied address", tries: "the ports stand one header further on", families: V6, routed: true, frames: |a| vec![a.behind(60, a.denied)] },
    Row { name: "nine extension headers", tries: "a chain longer than a parser walks", families: V6, routed: true, frames: |a| vec![a.chain(60, 9)] },
    Row { name: "forty extension headers", tries: "ports behind 320 octets of options", families: V6, routed: true, frames: |a| vec![a.chain(60, 40)] },
    Row { name: "one long extension header", tries: "ports behind 2 KiB in one header", families: V6, routed: false, frames: |a| vec![a.long_extension(127)] },
    Row { name: "routing header 0", tries: "a route through somewhere else (RFC 5095)", families: V6, routed: true, frames: |a| vec![a.routed(0)] },
    Row { name: "routing header 2", tries: "the mobile one", families: V6, routed: true, frames: |a| vec![a.routed(2)] },
    Row { name: "routing header 3", tries: "RPL's one", families: V6, routed: true, frames: |a| vec![a.routed(3)] },
    Row { name: "routing header 4", tries: "segment routing", families: V6, routed: true, frames: |a| vec![a.routed(4)] },
    Row { name: "routing header 253", tries: "an experimental one", families: V6, routed: true, frames: |a| vec![a.routed(253)] },
    Row { name: "a mobility header", tries: "an extension that few parsers know", families: V6, routed: true, frames: |a| vec![a.chain(135, 1)] },
    Row { name: "a hip header", tries: "an extension that few parsers know", families: V6, routed: true, frames: |a| vec![a.chain(139, 1)] },
    Row { name: "a shim6 header", tries: "an extension that few parsers know", families: V6, routed: true, frames: |a| vec![a.chain(140, 1)] },
    Row { name: "an authentication header before the ports", tries: "AH counts its length differently", families: V6, routed: true, frames: |a| vec![a.chain(51, 1)] },
    Row { name: "nothing behind the header", tries: "next header 59 with a payload all the same", families: V6, routed: true, frames: |a| vec![a.framed(&ipv6(a.v6(), v6(a.allowed), 59, &a.mark))] },
    Row { name: "tcp behind options to a denied address", tries: "a SYN one header further on", families: V6, routed: true, frames: |a| vec![a.framed(&ipv6(a.v6(), v6(a.denied), 60, &options_header(6, &tcp_carrying((a.from, 40_001), (a.denied, 443), 1, 2, &a.mark))))] },
    Row { name: "icmp of the other family", tries: "ICMPv4 in IPv6", families: V6, routed: true, frames: |a| vec![a.framed(&ipv6(a.v6(), v6(a.allowed), 1, &icmp(8, 0, &a.mark)))] },
    Row { name: "icmp of the other family", tries: "ICMPv6 in IPv4", families: V4, routed: true, frames: |a| vec![a.framed(&ipv4(a.v4(), v4(a.allowed), 58, &[], 0, &icmp(128, 0, &a.mark)))] },
];

#[rustfmt::skip]
pub const ICMP: &[Row] = &[
    Row { name: "echo to a denied address", tries: "ping as a channel", families: BOTH, routed: true, frames: |a| vec![a.icmp(a.denied, 8, 128, &[0, 1, 0, 1])] },
    Row { name: "an echo reply that answers nothing", tries: "an answer carries data where no question was", families: BOTH, routed: true, frames: |a| vec![a.icmp(a.denied, 0, 129, &[0, 1, 0, 1])] },
    Row { name: "an echo reply to an allowed address", tries: "the same where a question would be allowed", families: BOTH, routed: true, frames: |a| vec![a.icmp(a.allowed, 0, 129, &[0x77, 1, 0, 1])] },
    Row { name: "an error that quotes nothing", tries: "unreachable, with data where the quotation should be", families: BOTH, routed: true, frames: |a| vec![a.icmp(a.allowed, 3, 1, &[0; 4])] },
    Row { name: "an error that quotes a packet that never was", tries: "a quotation with ports, of no flow", families: BOTH, routed: true, frames: |a| vec![a.error_about(a.denied, a.denied)] },
    Row { name: "an error about an allowed address to a denied one", tries: "the quotation is of something allowed, the packet goes elsewhere", families: BOTH, routed: true, frames: |a| vec![a.error_about(a.denied, a.allowed)] },
    Row { name: "time exceeded that quotes nothing", tries: "another error", families: BOTH, routed: true, frames: |a| vec![a.icmp(a.allowed, 11, 3, &[0; 4])] },
    Row { name: "a parameter problem that quotes nothing", tries: "another error", families: BOTH, routed: true, frames: |a| vec![a.icmp(a.allowed, 12, 4, &[0; 4])] },
    Row { name: "packet too big that quotes nothing", tries: "another error", families: V6, routed: true, frames: |a| vec![a.icmp(a.allowed, 0, 2, &[0, 0, 5, 0])] },
    Row { name: "a source quench", tries: "a type that nobody uses any more", families: V4, routed: true, frames: |a| vec![a.icmp(a.allowed, 4, 0, &[0; 4])] },
    Row { name: "a redirect", tries: "another way for somebody's packets", families: V4, routed: true, frames: |a| vec![a.icmp(a.allowed, 5, 0, &[203, 0, 113, 201])] },
    Row { name: "a router advertisement over icmp", tries: "RFC 1256", families: V4, routed: true, frames: |a| vec![a.icmp(a.allowed, 9, 0, &[1, 2, 0, 60])] },
    Row { name: "an information request", tries: "a type that nobody uses any more", families: V4, routed: true, frames: |a| vec![a.icmp(a.allowed, 15, 0, &[0, 1, 0, 1])] },
    Row { name: "an address mask request", tries: "a type that nobody uses any more", families: V4, routed: true, frames: |a| vec![a.icmp(a.allowed, 17, 0, &[0, 1, 0, 1])] },
    Row { name: "a timestamp to a denied address", tries: "a question of another type", families: V4, routed: true, frames: |a| vec![a.icmp(a.denied, 13, 0, &[0, 1, 0, 1])] },
    Row { name: "an unknown type", tries: "type 200", families: BOTH, routed: true, frames: |a| vec![a.icmp(a.allowed, 200, 200, &[0; 4])] },
    Row { name: "a node information query", tries: "type 139", families: V6, routed: true, frames: |a| vec![a.icmp(a.allowed, 0, 139, &[0; 4])] },
    Row { name: "router renumbering", tries: "type 138", families: V6, routed: true, frames: |a| vec![a.icmp(a.allowed, 0, 138, &[0; 4])] },
    Row { name: "half an icmp header", tries: "type and code, and no more", families: V4, routed: false, frames: |a| vec![[a.framed(&ip(a.from, a.denied, 1, &[8, 0])), a.mark.clone()].concat()] },
];

#[rustfmt::skip]
pub const CASTS: &[Row] = &[
    Row { name: "to everyone", tries: "a limited broadcast", families: V4, routed: false, frames: |a| vec![a.cast("255.255.255.255", EVERYONE, 9)] },
    Row { name: "to everyone on the subnet", tries: "a directed broadcast", families: V4, routed: false, frames: |a| vec![a.cast("198.51.100.255", EVERYONE, 9)] },
    Row { name: "to an allowed address in a broadcast frame", tries: "one packet for all of the segment", families: V4, routed: false, frames: |a| vec![a.cast("203.0.113.201", EVERYONE, 9)] },
    Row { name: "to all hosts", tries: "224.0.0.1", families: V4, routed: false, frames: |a| vec![a.cast("224.0.0.1", "01:00:5e:00:00:01", 9)] },
    Row { name: "mdns", tries: "names for the whole segment", families: V4, routed: false, frames: |a| vec![a.cast("224.0.0.251", "01:00:5e:00:00:fb", 5353)] },
    Row { name: "llmnr", tries: "names for the whole segment", families: V4, routed: false, frames: |a| vec![a.cast("224.0.0.252", "01:00:5e:00:00:fc", 5355)] },
    Row { name: "ssdp", tries: "services for the whole segment", families: V4, routed: false, frames: |a| vec![a.cast("239.255.255.250", "01:00:5e:7f:ff:fa", 1900)] },
    Row { name: "multicast in a unicast frame", tries: "the frame goes to one, the packet to all", families: V4, routed: false, frames: |a| vec![a.cast("239.1.1.1", a.next_hop, 9)] },
    Row { name: "to all nodes", tries: "ff02::1", families: V6, routed: false, frames: |a| vec![a.cast("ff02::1", "33:33:00:00:00:01", 9)] },
    Row { name: "mdns", tries: "names for the whole segment", families: V6, routed: false, frames: |a| vec![a.cast("ff02::fb", "33:33:00:00:00:fb", 5353)] },
    Row { name: "to the site", tries: "ff05::1:3, which routers forward", families: V6, routed: false, frames: |a| vec![a.cast("ff05::1:3", "33:33:00:01:00:03", 547)] },
    Row { name: "dhcp", tries: "a search for a server from no address", families: V4, routed: false, frames: |a| vec![ethernet(EVERYONE, PODS[0].mac, 0x0800, &ip("0.0.0.0".parse().expect("an address"), "255.255.255.255".parse().expect("an address"), 17, &udp(("0.0.0.0".parse().expect("an address"), 68), ("255.255.255.255".parse().expect("an address"), 67), &a.mark)))] },
];

#[rustfmt::skip]
pub const LINK: &[Row] = &[
    Row { name: "arp asks for the neighbour", tries: "a question whose sender is the neighbour", families: V4, routed: false, frames: |a| vec![a.arp(1, (PODS[0].mac, v4(a.neighbour)), PODS[0].mac)] },
    Row { name: "arp answers for the neighbour", tries: "\"the neighbour is at my MAC\"", families: V4, routed: false, frames: |a| vec![a.arp(2, (PODS[0].mac, v4(a.neighbour)), PODS[0].mac)] },
    Row { name: "arp answers for the gateway", tries: "\"the gateway is at my MAC\"", families: V4, routed: false, frames: |a| vec![a.arp(2, (PODS[0].mac, Ipv4Addr::new(198, 51, 100, 1)), PODS[0].mac)] },
    Row { name: "arp announces the neighbour to itself", tries: "gratuitous, to everyone", families: V4, routed: false, frames: |a| vec![[ethernet(EVERYONE, PODS[0].mac, 0x0806, &arp(1, (PODS[0].mac, v4(a.neighbour)), (EVERYONE, v4(a.neighbour)))), a.mark.clone()].concat()] },
    Row { name: "arp says another mac than its frame", tries: "the sender inside differs from the sender outside", families: V4, routed: false, frames: |a| vec![a.arp(2, (OTHER_MAC, v4(a.from)), PODS[0].mac)] },
    Row { name: "arp from another mac", tries: "a second identity", families: V4, routed: false, frames: |a| vec![a.arp(2, (OTHER_MAC, v4(a.from)), OTHER_MAC)] },
    Row { name: "arp answers for no address", tries: "0.0.0.0 is at my MAC", families: V4, routed: false, frames: |a| vec![a.arp(2, (PODS[0].mac, Ipv4Addr::UNSPECIFIED), PODS[0].mac)] },
    Row { name: "arp of another kind of hardware", tries: "an ARP that says Token Ring", families: V4, routed: false, frames: |a| { let mut frame = a.arp(1, (PODS[0].mac, v4(a.neighbour)), PODS[0].mac); frame[15] = 6; vec![frame] } },
    Row { name: "reverse arp", tries: "operation 3", families: V4, routed: false, frames: |a| vec![a.arp(3, (PODS[0].mac, v4(a.neighbour)), PODS[0].mac)] },
    Row { name: "an honest arp with a payload behind it", tries: "a truthful question carries a payload to the segment in its padding", families: V4, routed: false, frames: |a| vec![[a.honest_arp(), vec![0; 400], a.mark.clone()].concat()] },
    Row { name: "advertising the neighbour", tries: "\"the neighbour is at my MAC\", override", families: V6, routed: false, frames: |a| vec![a.advert(a.neighbour, 136)] },
    Row { name: "advertising the gateway", tries: "\"the gateway is at my MAC\", override", families: V6, routed: false, frames: |a| vec![a.advert("2001:db8:1::1".parse().expect("an address"), 136)] },
    Row { name: "a router advertisement", tries: "\"I am the router\"", families: V6, routed: false, frames: |a| vec![a.neighbourly(v6(a.allowed), 134, &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0])] },
    Row { name: "a redirect", tries: "\"the way is through me\"", families: V6, routed: false, frames: |a| vec![a.neighbourly(v6(a.neighbour), 137, &[&[0; 4][..], &a.v6().octets(), &v6(a.denied).octets()].concat())] },
    Row { name: "a solicitation from the neighbour", tries: "a question whose sender is the neighbour", families: V6, routed: false, frames: |a| vec![[ethernet(LAN_MAC, PODS[0].mac, 0x86dd, &neighbour(v6(a.neighbour), v6(a.allowed), 135, &[&[0; 4][..], &v6(a.allowed).octets()].concat())), a.mark.clone()].concat()] },
    Row { name: "a solicitation with another mac inside", tries: "the option says another link-layer address", families: V6, routed: false, frames: |a| vec![a.neighbourly(v6(a.neighbour), 135, &[&[0; 4][..], &v6(a.neighbour).octets(), &[1, 1], &mac(OTHER_MAC)].concat())] },
    Row { name: "a solicitation to somewhere else", tries: "neighbour discovery as a packet to the world", families: V6, routed: true, frames: |a| vec![a.neighbourly(v6(a.denied), 135, &[&[0; 4][..], &v6(a.denied).octets(), &a.mark].concat())] },
    Row { name: "an honest solicitation with a payload behind it", tries: "a truthful question carries a payload to the segment in an option", families: V6, routed: false, frames: |a| vec![a.solicit_carrying()] },
    Row { name: "a listener report with a payload behind it", tries: "a truthful report carries a payload to the segment", families: V6, routed: false, frames: |a| vec![a.report(131, &[])] },
    Row { name: "a listener's goodbye with a payload behind it", tries: "a truthful report carries a payload to the segment", families: V6, routed: false, frames: |a| vec![a.report(132, &[])] },
    Row { name: "a listener report with a payload in its records", tries: "auxiliary data that nobody reads (RFC 3810)", families: V6, routed: false, frames: |a| vec![a.report(143, &[4, 120, 0, 0])] },
    Row { name: "a listener report behind a payload", tries: "a truthful report behind an option that nobody reads", families: V6, routed: false, frames: |a| vec![a.padded_report()] },
    Row { name: "a listener report that crosses routers", tries: "a report with 64 hops to somewhere else", families: V6, routed: true, frames: |a| vec![a.icmp(a.denied, 0, 131, &[0; 4])] },
];

#[rustfmt::skip]
pub const SOURCES: &[Row] = &[
    Row { name: "the neighbour's source address", tries: "another's policy", families: BOTH, routed: true, frames: |a| vec![a.claiming(a.neighbour)] },
    Row { name: "a source address from nowhere", tries: "no policy at all", families: BOTH, routed: true, frames: |a| vec![a.claiming(if a.from.is_ipv4() { "198.51.100.77" } else { "2001:db8:1::77" }.parse().expect("an address"))] },
    Row { name: "the node's source address", tries: "the node itself", families: BOTH, routed: false, frames: |a| vec![a.claiming(if a.from.is_ipv4() { "198.51.100.1" } else { "2001:db8:1::1" }.parse().expect("an address"))] },
    Row { name: "the resolver's source address", tries: "an answer that looks like the resolver's", families: V4, routed: true, frames: |a| vec![a.claiming("203.0.113.60".parse().expect("an address"))] },
    Row { name: "loopback as source", tries: "127.0.0.1 and ::1", families: BOTH, routed: false, frames: |a| vec![a.claiming(if a.from.is_ipv4() { "127.0.0.1" } else { "::1" }.parse().expect("an address"))] },
    Row { name: "no source address", tries: "0.0.0.0 and ::", families: BOTH, routed: false, frames: |a| vec![a.claiming(if a.from.is_ipv4() { "0.0.0.0" } else { "::" }.parse().expect("an address"))] },
    Row { name: "a group as source", tries: "multicast as sender", families: BOTH, routed: false, frames: |a| vec![a.claiming(if a.from.is_ipv4() { "224.0.0.5" } else { "ff02::5" }.parse().expect("an address"))] },
    Row { name: "a link-local source", tries: "an address that needs no permission on the link", families: BOTH, routed: false, frames: |a| vec![a.claiming(if a.from.is_ipv4() { "169.254.3.4" } else { "fe80::3:4" }.parse().expect("an address"))] },
    Row { name: "its own ipv4 address mapped into ipv6", tries: "::ffff: and the own address", families: V6, routed: false, frames: |a| vec![a.claiming("::ffff:198.51.100.10".parse().expect("an address"))] },
    Row { name: "to an ipv4 address mapped into ipv6", tries: "::ffff: and an allowed address", families: V6, routed: false, frames: |a| vec![a.to("::ffff:203.0.113.200".parse().expect("an address"), 9)] },
    Row { name: "another source mac", tries: "a second identity on the segment", families: BOTH, routed: false, frames: |a| vec![a.with_mac(OTHER_MAC)] },
    Row { name: "the neighbour's source mac", tries: "the bridge learns the neighbour at the attacker's port", families: BOTH, routed: false, frames: |a| vec![a.with_mac(PODS[1].mac)] },
];

#[rustfmt::skip]
pub const PLACES: &[Row] = &[
    Row { name: "the steering address", tries: "the proxy's own address, not steered", families: BOTH, routed: false, frames: |a| vec![a.to(a.steering(), 15_353)] },
    Row { name: "the steering address on port 53", tries: "the proxy's own address as a resolver", families: BOTH, routed: false, frames: |a| vec![a.to(a.steering(), 53)] },
    Row { name: "the steering address by tcp", tries: "a SYN to the proxy's port", families: BOTH, routed: false, frames: |a| vec![a.segment(a.steering(), 40_002, 15_353, 1, 2)] },
    Row { name: "the metadata service", tries: "169.254.169.254 and fd00:ec2::254", families: BOTH, routed: false, frames: |a| vec![a.segment(if a.from.is_ipv4() { "169.254.169.254" } else { "fd00:ec2::254" }.parse().expect("an address"), 40_003, 80, 1, 2)] },
    Row { name: "a private address", tries: "10.1.2.3 and fd12::3", families: BOTH, routed: true, frames: |a| vec![a.segment(if a.from.is_ipv4() { "10.1.2.3" } else { "fd12::3" }.parse().expect("an address"), 40_004, 443, 1, 2)] },
    Row { name: "another private address", tries: "172.16.2.3 and fec0::3", families: BOTH, routed: true, frames: |a| vec![a.segment(if a.from.is_ipv4() { "172.16.2.3" } else { "fec0::3" }.parse().expect("an address"), 40_005, 443, 1, 2)] },
    Row { name: "a third private address", tries: "192.168.2.3 and a NAT64 form of it", families: BOTH, routed: true, frames: |a| vec![a.segment(if a.from.is_ipv4() { "192.168.2.3" } else { "64:ff9b::c0a8:203" }.parse().expect("an address"), 40_006, 443, 1, 2)] },
    Row { name: "a foreign resolver", tries: "a question that is not steered, by address", families: BOTH, routed: true, frames: |a| vec![a.to(a.denied, 53)] },
    Row { name: "a foreign resolver by tcp", tries: "the same by TCP", families: BOTH, routed: true, frames: |a| vec![a.segment(a.denied, 40_007, 53, 1, 2)] },
    Row { name: "a resolver over tls", tries: "port 853, which is not steered", families: BOTH, routed: true, frames: |a| vec![a.segment(a.denied, 40_008, 853, 1, 2)] },
    Row { name: "quic to a denied address", tries: "UDP 443", families: BOTH, routed: true, frames: |a| vec![a.to(a.denied, 443)] },
    Row { name: "vxlan to a denied address", tries: "a tunnel in UDP", families: BOTH, routed: true, frames: |a| vec![a.to(a.denied, 4789)] },
    Row { name: "the pod behind the resolver's service", tries: "past the Service, on a port that no rule names", families: V4, routed: true, frames: |a| vec![a.to("203.0.113.53".parse().expect("an address"), 5353)] },
    Row { name: "a datagram to the neighbour", tries: "straight to its MAC and address", families: BOTH, routed: false, frames: |a| vec![a.to_neighbour(&ip(a.from, a.neighbour, 17, &a.datagram(a.neighbour, 9999)))] },
    Row { name: "a syn to the neighbour", tries: "straight to its MAC and address", families: BOTH, routed: false, frames: |a| vec![a.to_neighbour(&ip(a.from, a.neighbour, 6, &tcp_carrying((a.from, 40_009), (a.neighbour, 9999), 1, 2, &a.mark)))] },
    Row { name: "a datagram to the neighbour through the node", tries: "the gateway turns it round", families: BOTH, routed: true, frames: |a| vec![ethernet(NODE_MAC, PODS[0].mac, ethertype(a.from), &ip(a.from, a.neighbour, 17, &a.datagram(a.neighbour, 9999)))] },
    Row { name: "an allowed address at the neighbour's mac", tries: "a packet that may leave, in a frame for the neighbour", families: BOTH, routed: false, frames: |a| vec![a.to_neighbour(&ip(a.from, a.allowed, 17, &a.datagram(a.allowed, 9)))] },
    Row { name: "an unknown type to the neighbour", tries: "an experiment straight to its MAC", families: V4, routed: false, frames: |a| vec![ethernet(PODS[1].mac, PODS[0].mac, 0x88b5, &a.mark)] },
];
