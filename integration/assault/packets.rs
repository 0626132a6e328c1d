//! Frames as a workload with CAP_NET_RAW can send them. Where nothing else is said the destination is one that policy
//! allows, so that only the frame's class can stop it.

mod tables;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::bench::{Case, Shown, Side};
use crate::lab::Topology;
use crate::lab::agent::Reach;
use crate::lab::frame::{
    arp, ethernet, ethertype, fragment, icmp, icmpv6, ip, ipv4, ipv6, mac, neighbour, options_header, routing_header,
    tcp, tcp_carrying, udp, v4, v6,
};
use crate::lab::world::{Family, LAN_MAC, PODS};
use crate::model::{ALLOWED, DENIED};
use crate::{answers, message};
use tables::*;

const CLASS: &str = "packets";
/// From whom to whom, and what marks the payload.
pub struct Aim {
    from: IpAddr,
    allowed: IpAddr,
    denied: IpAddr,
    neighbour: IpAddr,
    next_hop: &'static str,
    mark: Vec<u8>,
}

pub fn cases(topology: Topology) -> Vec<Case> {
    let bridged = topology == Topology::Bridged;
    let mut cases = Vec::new();
    let tables = [TAGS, HEADERS, FRAGMENTS, EXTENSIONS, ICMP, CASTS, LINK, SOURCES, PLACES];
    for row in tables.into_iter().flatten().filter(|row| bridged || row.routed) {
        cases.extend(row.families.iter().map(|family| frames(row.name.into(), row.tries, *family, row.frames)));
    }
    if bridged {
        for (number, what) in ETHERTYPES {
            let retyped = move |aim: &Aim| vec![aim.retyped(*number)];
            let tries = "an ethertype that nobody reads carries a payload out";
            cases.push(frames(format!("ethertype {number:#06x}, {what}"), tries, Family::V4, retyped));
        }
    }
    for (number, what) in PROTOCOLS {
        for family in BOTH {
            let tunnel = move |aim: &Aim| vec![aim.tunnel(*number)];
            let tries = "an IP protocol without ports carries a payload, or a packet for somewhere else, out";
            cases.push(frames(format!("protocol {number}, {what}"), tries, *family, tunnel));
        }
    }
    for (flags, what) in TCP_FLAGS {
        for family in BOTH {
            let tries = "a segment that opens nothing is not looked at, and carries a payload to a denied address";
            let segment = move |aim: &Aim| vec![aim.segment(aim.denied, 40_000, 443, 7, *flags)];
            cases.push(frames(format!("tcp {what} without a flow"), tries, *family, segment));
        }
    }
    cases.extend(conversations());
    cases.extend(services());
    cases
}

fn frames(name: String, tries: &'static str, family: Family, build: impl Fn(&Aim) -> Vec<Vec<u8>> + 'static) -> Case {
    let version = family.pick("ipv4", "ipv6");
    Case::new(CLASS, format!("{version}: {name}"), tries, move |side, mark| {
        let aim = Aim::new(side, family, mark);
        let frames = build(&aim);
        side.world.pay.inject("eth0", &frames);
        let marked = frames.iter().filter(|frame| frame.windows(aim.mark.len()).any(|octets| octets == aim.mark));
        Shown::Frames(marked.count())
    })
}

impl Aim {
    fn new(side: &Side, family: Family, mark: &str) -> Aim {
        let pick = |pair: [&str; 2]| family.pick(pair[0], pair[1]).parse().expect("an address");
        Aim {
            from: family.of(&PODS[0]),
            allowed: pick(ALLOWED),
            denied: pick(DENIED),
            neighbour: family.of(&PODS[1]),
            next_hop: side.next_hop(),
            mark: mark.as_bytes().to_vec(),
        }
    }

    fn v4(&self) -> Ipv4Addr {
        v4(self.from)
    }

    fn v6(&self) -> Ipv6Addr {
        v6(self.from)
    }

    fn framed(&self, packet: &[u8]) -> Vec<u8> {
        ethernet(self.next_hop, PODS[0].mac, ethertype(self.from), packet)
    }

    fn datagram(&self, to: IpAddr, port: u16) -> Vec<u8> {
        udp((self.from, 4000), (to, port), &self.mark)
    }

    /// A datagram of whole words of a fragment.
    fn whole(&self, to: IpAddr) -> Vec<u8> {
        let mut datagram = self.datagram(to, 9);
        datagram.resize(32, 0);
        datagram
    }

    fn to(&self, to: IpAddr, port: u16) -> Vec<u8> {
        self.framed(&ip(self.from, to, 17, &self.datagram(to, port)))
    }

    fn plain(&self) -> Vec<u8> {
        self.to(self.allowed, 9)
    }

    fn to_neighbour(&self, packet: &[u8]) -> Vec<u8> {
        ethernet(PODS[1].mac, PODS[0].mac, ethertype(self.from), packet)
    }

    pub fn segment(&self, to: IpAddr, from: u16, port: u16, sequence: u32, flags: u8) -> Vec<u8> {
        self.framed(&ip(self.from, to, 6, &tcp_carrying((self.from, from), (to, port), sequence, flags, &self.mark)))
    }

    fn retyped(&self, ethertype: u16) -> Vec<u8> {
        let mut frame = self.plain();
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        frame
    }

    /// An 802.3 frame with this behind its length, and the datagram behind that.
    fn llc(&self, header: &[u8]) -> Vec<u8> {
        let frame = self.plain();
        let length = (frame.len() - 14 + header.len()) as u16;
        [&frame[..12], &length.to_be_bytes(), header, &frame[14..]].concat()
    }

    fn with_options(&self, to: IpAddr, options: &[u8]) -> Vec<u8> {
        self.framed(&ipv4(self.v4(), v4(to), 17, options, 0, &self.datagram(to, 9)))
    }

    /// The datagram with one octet of the frame changed.
    fn patched(&self, to: IpAddr, at: usize, octet: u8) -> Vec<u8> {
        let mut frame = self.to(to, 9);
        frame[at] = octet;
        frame
    }

    fn patched_two(&self, to: IpAddr, at: usize, octets: [u8; 2]) -> Vec<u8> {
        let mut frame = self.to(to, 9);
        frame[at..at + 2].copy_from_slice(&octets);
        frame
    }

    /// So many octets of a transport header; what is behind the packet is padding.
    fn cut(&self, octets: usize) -> Vec<u8> {
        let segment = tcp((self.from, 40_010), (self.allowed, 443), 1, 0, 2);
        let protocol = if octets < 8 { 17 } else { 6 };
        [self.framed(&ip(self.from, self.allowed, protocol, &segment[..octets])), self.mark.clone()].concat()
    }

    fn short_offset(&self) -> Vec<u8> {
        let mut segment = tcp_carrying((self.from, 40_011), (self.allowed, 443), 1, 2, &self.mark);
        segment[12] = 0x20;
        self.framed(&ip(self.from, self.allowed, 6, &segment))
    }

    fn overlong(&self) -> Vec<u8> {
        self.patched(self.allowed, if self.from.is_ipv4() { 16 } else { 18 }, 4)
    }

    /// A fragment of UDP that begins `offset` octets into it.
    fn fragment(&self, to: IpAddr, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
        self.fragment_at(17, to, offset, more, payload)
    }

    /// A first fragment with so many octets of the transport header; the mark is padding behind the packet.
    fn fragment_of(&self, protocol: u8, to: IpAddr, octets: usize, more: bool, mark: &[u8]) -> Vec<u8> {
        let segment = tcp((self.from, 40_012), (to, 443), 1, 0, 2);
        [&self.fragment_at(protocol, to, 0, more, &segment[..octets])[..], mark].concat()
    }

    fn fragment_at(&self, protocol: u8, to: IpAddr, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
        self.framed(&fragment(self.from, to, protocol, self.number(), offset, more, payload))
    }

    /// Of the datagram: every attempt has one of its own, for a first fragment is remembered.
    fn number(&self) -> u16 {
        let digits = std::str::from_utf8(&self.mark[3..]).expect("digits");
        digits.parse::<u32>().expect("a number") as u16
    }

    /// A first fragment of 32 octets that may pass, and one that must not come behind it.
    fn behind_a_first(&self, second: Vec<u8>) -> Vec<Vec<u8>> {
        let mut datagram = udp((self.from, 4000), (self.allowed, 9), &[]);
        datagram.resize(32, 0);
        vec![self.fragment(self.allowed, 0, true, &datagram), second]
    }

    /// What could follow a first fragment, but for its number.
    fn of_another_datagram(&self) -> Vec<u8> {
        self.framed(&fragment(self.from, self.allowed, 17, self.number() ^ 0x8000, 32, false, &self.mark))
    }

    fn behind(&self, header: u8, to: IpAddr) -> Vec<u8> {
        self.framed(&ipv6(self.v6(), v6(to), header, &options_header(17, &self.datagram(to, 9))))
    }

    /// `count` headers of one kind before the datagram.
    fn chain(&self, kind: u8, count: usize) -> Vec<u8> {
        let mut payload = self.datagram(self.allowed, 9);
        let mut next = 17;
        for _ in 0..count {
            payload = options_header(next, &payload);
            next = kind;
        }
        self.framed(&ipv6(self.v6(), v6(self.allowed), next, &payload))
    }

    /// One header of destination options, `words` times 8 octets and 8 more.
    fn long_extension(&self, words: u8) -> Vec<u8> {
        let header = [&[17, words][..], &vec![0; usize::from(words) * 8 + 6]].concat();
        let payload = [header, self.datagram(self.allowed, 9)].concat();
        self.framed(&ipv6(self.v6(), v6(self.allowed), 60, &payload))
    }

    fn routed(&self, kind: u8) -> Vec<u8> {
        let payload = routing_header(17, kind, v6(self.denied), &self.datagram(self.allowed, 9));
        self.framed(&ipv6(self.v6(), v6(self.allowed), 43, &payload))
    }

    /// A protocol number, and inside what looks like a packet to somewhere else.
    fn tunnel(&self, protocol: u8) -> Vec<u8> {
        let inner = ip(self.from, self.denied, 17, &self.datagram(self.denied, 9));
        self.framed(&ip(self.from, self.allowed, protocol, &inner))
    }

    fn icmp(&self, to: IpAddr, kind: u8, kind_v6: u8, body: &[u8]) -> Vec<u8> {
        let body = [body, &self.mark].concat();
        self.framed(&match (self.from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, 1, &[], 0, &icmp(kind, 0, &body)),
            _ => ipv6(self.v6(), v6(to), 58, &icmpv6(self.v6(), v6(to), kind_v6, &body)),
        })
    }

    /// "Port unreachable", about a datagram from `about` to the pod that never was.
    fn error_about(&self, to: IpAddr, about: IpAddr) -> Vec<u8> {
        let quoted = ip(about, self.from, 17, &udp((about, 9), (self.from, 4000), &self.mark));
        self.icmp(to, 3, 1, &[&[0; 4][..], &quoted].concat())
    }

    fn cast(&self, to: &str, mac: &str, port: u16) -> Vec<u8> {
        let to = to.parse().expect("an address");
        ethernet(mac, PODS[0].mac, ethertype(to), &ip(self.from, to, 17, &self.datagram(to, port)))
    }

    /// The mark is padding.
    fn arp(&self, operation: u16, sender: (&str, Ipv4Addr), mac: &str) -> Vec<u8> {
        let packet = [arp(operation, sender, (LAN_MAC, v4(self.allowed))), self.mark.clone()].concat();
        ethernet(LAN_MAC, mac, 0x0806, &packet)
    }

    fn honest_arp(&self) -> Vec<u8> {
        let target = ("00:00:00:00:00:00", Ipv4Addr::new(198, 51, 100, 99));
        ethernet(EVERYONE, PODS[0].mac, 0x0806, &arp(1, (PODS[0].mac, self.v4()), target))
    }

    fn advert(&self, target: IpAddr, kind: u8) -> Vec<u8> {
        let body = [&[0x20, 0, 0, 0][..], &v6(target).octets(), &[2, 1], &mac(PODS[0].mac)].concat();
        self.neighbourly(v6(self.neighbour), kind, &body)
    }

    /// Neighbour discovery to the segment; the mark is padding.
    fn neighbourly(&self, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
        [self.framed(&neighbour(self.v6(), to, kind, body)), self.mark.clone()].concat()
    }

    fn solicit_carrying(&self) -> Vec<u8> {
        let target = "2001:db8:1::99".parse::<Ipv6Addr>().expect("an address");
        let to = "ff02::1:ff00:99".parse().expect("an address");
        let mut option = [&[1, 1][..], &mac(PODS[0].mac), &[14, 50]].concat();
        option.extend(&self.mark);
        option.resize(8 + 50 * 8, 0);
        let body = [&[0; 4][..], &target.octets(), &option].concat();
        ethernet("33:33:ff:00:00:99", PODS[0].mac, 0x86dd, &neighbour(self.v6(), to, 135, &body))
    }

    /// A listener report of an honest group, 480 octets longer than it is.
    fn report(&self, kind: u8, record: &[u8]) -> Vec<u8> {
        let group: Ipv6Addr = "ff02::1:ff00:10".parse().expect("an address");
        let mut body = [&[0, 0, 0, 1], record, &group.octets(), &self.mark].concat();
        body.resize(body.len() + 480 - self.mark.len(), 0);
        let mut packet = neighbour(self.v6(), group, kind, &body);
        packet[7] = 1;
        ethernet("33:33:ff:00:00:10", PODS[0].mac, 0x86dd, &packet)
    }

    /// The same, the 480 octets in padding before it.
    fn padded_report(&self) -> Vec<u8> {
        let group: Ipv6Addr = "ff02::1:ff00:10".parse().expect("an address");
        // A router alert (RFC 2711), then two options that say nothing (RFC 8200, 4.2).
        let mut options = [&[58, 60, 5, 2, 0, 0, 1, 238][..], &self.mark].concat();
        options.resize(8 + 238, 0);
        options.extend([1, 240]);
        options.resize(8 * 61, 0);
        let report = icmpv6(self.v6(), group, 131, &[&[0; 4][..], &group.octets()].concat());
        let mut packet = ipv6(self.v6(), group, 0, &[options, report].concat());
        packet[7] = 1;
        ethernet("33:33:ff:00:00:10", PODS[0].mac, 0x86dd, &packet)
    }

    fn claiming(&self, from: IpAddr) -> Vec<u8> {
        self.framed(&ip(from, self.allowed, 17, &udp((from, 4000), (self.allowed, 9), &self.mark)))
    }

    fn with_mac(&self, other: &str) -> Vec<u8> {
        let mut frame = self.plain();
        frame[6..12].copy_from_slice(&mac(other));
        frame
    }

    fn steering(&self) -> IpAddr {
        if self.from.is_ipv4() { "169.254.77.1" } else { "fd6e:616d:6567:6174::1" }.parse().expect("an address")
    }
}

/// What needs more than frames in a row.
fn conversations() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in BOTH {
        let version = family.pick("ipv4", "ipv6");
        let name = format!("{version}: an inbound syn opens no outbound one");
        let tries = "who is connected to connects back from the same port (I13)";
        cases.push(Case::new(CLASS, name, tries, |side, mark| {
            let aim = Aim::new(side, *family, mark);
            inbound(side, &aim, 6, &tcp((aim.denied, 443), (aim.from, 40_020), 1, 0, 2));
            side.world.pay.inject("eth0", &[aim.segment(aim.denied, 40_020, 443, 9, 2)]);
            Shown::Frames(1)
        }));
        let name = format!("{version}: an inbound datagram opens no other port");
        let tries = "who is asked answers another port of the asker";
        cases.push(Case::new(CLASS, name, tries, |side, mark| {
            let aim = Aim::new(side, *family, mark);
            inbound(side, &aim, 17, &udp((aim.denied, 700), (aim.from, 4000), b"hello"));
            side.world.pay.inject("eth0", &[aim.to(aim.denied, 701)]);
            Shown::Frames(1)
        }));
    }
    for (name, flags, sequence) in [
        ("the same ports again when the grant has gone", 2, 0x7000_0000),
        ("the same ports with every flag of an opening when the grant has gone", 0xc2, 0x7000_0001),
        ("the same syn once more when the grant has gone", 2, 1),
    ] {
        let tries = "a SYN passes as a part of the flow that its ports once were (I13)";
        cases.push(Case::new(CLASS, format!("ipv4: {name}"), tries, move |side, mark| {
            let aim = Aim::new(side, Family::V4, mark);
            let name = format!("old{}.good.example", side.fresh_probe('o'));
            let to: IpAddr = "203.0.113.210".parse().expect("an address");
            let tail = message::address_record(to, 1);
            if !answers::asks(side, &name, message::qtype_of(to), [1, 0, 0], &tail, to) {
                return Shown::Frames(0);
            }
            side.learns(to);
            // The flow: its SYN may pass, and the outside answers that nobody listens.
            let opens = tcp((aim.from, 40_030), (to, 443), 1, 0, 2);
            side.world.pay.inject("eth0", &[aim.framed(&ip(aim.from, to, 6, &opens))]);
            side.settle();
            std::thread::sleep(Duration::from_millis(3200)); // TTL 1, grace 1, and a second of a coarse clock
            side.forgets(to);
            side.world.pay.inject("eth0", &[aim.segment(to, 40_030, 443, sequence, flags)]);
            Shown::Frames(1)
        }));
    }
    cases
}

/// A packet from the world for the attacker.
fn inbound(side: &Side, aim: &Aim, protocol: u8, payload: &[u8]) {
    let packet = ip(aim.denied, aim.from, protocol, payload);
    let (interface, to) = match side.world.options.topology {
        Topology::Bridged => ("lan0", PODS[0].mac.to_owned()),
        _ => ("eth0", side.uplink()),
    };
    side.is_asked_by(aim.denied);
    side.world.outside.inject(interface, &[ethernet(&to, LAN_MAC, ethertype(aim.from), &packet)]);
    std::thread::sleep(Duration::from_millis(20));
}

/// The node and the neighbour, asked as programs ask them.
fn services() -> Vec<Case> {
    let mut cases = Vec::new();
    let targets = [
        ("the node's own address", ["198.51.100.1", "2001:db8:1::1"]),
        ("the node's address outside", ["198.18.255.1", "2001:db8:ff::1"]),
        ("the neighbour", [PODS[1].v4, PODS[1].v6]),
    ];
    for (what, addresses) in targets {
        for address in addresses {
            let to = SocketAddr::new(address.parse().expect("an address"), 9999);
            let tries = "a service that no rule names answers";
            cases.push(Case::new(CLASS, format!("a tcp service of {what}, {address}"), tries, move |side, _| {
                Shown::Told(side.world.pay.connect(to) == Reach::Reached)
            }));
            cases.push(Case::new(CLASS, format!("a udp service of {what}, {address}"), tries, move |side, _| {
                Shown::Told(side.world.pay.datagram(to) == Reach::Reached)
            }));
        }
    }
    cases
}

pub fn syn(side: &Side, to: IpAddr, port: u16, mark: &str) -> Vec<u8> {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    Aim::new(side, family, mark).segment(to, 40_100, port, 1, 2)
}

pub fn datagram(side: &Side, to: IpAddr, port: u16, mark: &str) -> Vec<u8> {
    Aim::new(side, Family::V4, mark).to(to, port)
}

pub fn echo(side: &Side, to: IpAddr, mark: &str) -> Vec<u8> {
    Aim::new(side, Family::V4, mark).icmp(to, 8, 128, &[0, 1, 0, 1])
}
