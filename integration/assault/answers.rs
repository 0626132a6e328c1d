//! What an attacker's own name server can say about a name that it may ask and reach. Then the attacker sends a SYN to the
//! address, whatever the reply was. The control is an ordinary stub: there the reply must hold the address.

use std::net::IpAddr;
use std::time::Duration;

use crate::bench::{Case, Shown, Side, Way};
use crate::lab::Topology;
use crate::lab::agent::{Octets, Reply, Request, hex, unhex};
use crate::lab::world::Family;
use crate::message::{self, A, AAAA, ASKED, IN, address_record, alias, name, octets, record, service};
use crate::model::RESOLVER;

const CLASS: &str = "answers";
/// What no honest answer holds; nobody's policy names it.
const TARGET: &str = "203.0.113.220";
const TARGET_V6: &str = "2001:db8:2::220";
/// What the honest part of a mixed answer holds.
const GOOD: &str = "203.0.113.150";
const GOOD_V6: &str = "2001:db8:2::150";

/// Bits of the flags, the counts, the octets behind the question.
type Said = (u16, [u16; 3], Vec<u8>);

struct Row {
    name: &'static str,
    tries: &'static str,
    qtype: u16,
    /// What is reached for; empty: [`TARGET`].
    target: &'static str,
    /// Given the asked name.
    says: fn(&str) -> Said,
}

/// Those of an attacker who can send anything, or of one who has ordinary sockets: then without addresses that its kernel
/// sends nowhere, or not to where somebody looks.
pub fn cases(topology: Topology, ordinary: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for row in BESIDE {
        let title = format!("{} (type {})", row.name, row.qtype);
        cases.push(Case::new(CLASS, title, row.tries, move |side, mark| {
            let asked = asked_name(mark);
            let (flags, counts, tail) = (row.says)(&asked);
            let target = address(if row.target.is_empty() { TARGET } else { row.target });
            attempt(side, mark, &asked, row.qtype, Octets { flags, counts, tail: hex(&tail), delay_ms: 0 }, target)
        }));
    }
    // A node that routes sends most of these nowhere, guarded or not.
    let guarded = if topology == Topology::Bridged { GUARDED } else { &[] };
    for (guarded, what) in guarded.iter().filter(|(guarded, _)| !ordinary || is_routed(address(guarded))) {
        let tries = "a public name stands for an address that no public name may stand for (I6)";
        cases.push(Case::new(CLASS, format!("a name that is {guarded}, {what}"), tries, move |side, mark| {
            let target = address(guarded);
            let tail = address_record(target, 1);
            let say = Octets { counts: [1, 0, 0], tail: hex(&tail), ..Octets::default() };
            attempt(side, mark, &asked_name(mark), message::qtype_of(target), say, target)
        }));
        let tries = "the same beside an address that is all right, which must arrive (I3, I6)";
        cases.push(Case::new(CLASS, format!("a name that is {guarded} and a good one"), tries, move |side, mark| {
            let target = address(guarded);
            let good = address(if target.is_ipv4() { GOOD } else { GOOD_V6 });
            let tail = [address_record(target, 1), address_record(good, 1)].concat();
            let say = Octets { counts: [2, 0, 0], tail: hex(&tail), ..Octets::default() };
            let shown = attempt(side, mark, &asked_name(mark), message::qtype_of(target), say, target);
            must_arrive(side, good);
            shown
        }));
        let tries = "HTTPS hints instead of addresses (I3, I5, I6)";
        cases.push(Case::new(CLASS, format!("a hint of {guarded}"), tries, move |side, mark| {
            let target = address(guarded);
            let key = if target.is_ipv4() { 4 } else { 6 };
            let say = Octets {
                counts: [1, 0, 0],
                tail: hex(&service(&ASKED, 65, key, &octets(target))),
                ..Octets::default()
            };
            attempt(side, mark, &asked_name(mark), 65, say, target)
        }));
    }
    cases.extend(elsewhere());
    cases
}

#[rustfmt::skip]
const BESIDE: &[Row] = &[
    Row { name: "an address of another owner", tries: "a record outside the chain", qtype: A, target: "", says: |_| one(of("evil.example")) },
    Row { name: "an address of a sibling", tries: "a record of another name that policy selects", qtype: A, target: "", says: |_| one(of("sibling.good.example")) },
    Row { name: "an address of the parent", tries: "a record one label up", qtype: A, target: "", says: |_| one(of("good.example")) },
    Row { name: "an address of a child", tries: "a record one label down", qtype: A, target: "", says: |asked| one(of(&format!("x.{asked}"))) },
    Row { name: "an address of the wildcard", tries: "a record of *.good.example itself", qtype: A, target: "", says: |_| one(of("*.good.example")) },
    Row { name: "an address of the name with more behind it", tries: "the asked name is a prefix of the owner", qtype: A, target: "", says: |asked| one(of(&format!("{asked}.evil.example"))) },
    Row { name: "an address of the root", tries: "a record of the root", qtype: A, target: "", says: |_| one(record(&[0], A, IN, 1, &octets(address(TARGET)))) },
    Row { name: "an alias and an address elsewhere", tries: "the chain ends before the address", qtype: A, target: "", says: |_| some([2, 0, 0], [alias(&ASKED, "a.evil.example"), of("b.evil.example")]) },
    Row { name: "a chain with a gap", tries: "asked to a, b to c, address of c", qtype: A, target: "", says: |_| some([3, 0, 0], [alias(&ASKED, "a.evil.example"), alias(&name("b.evil.example"), "c.evil.example"), of("c.evil.example")]) },
    Row { name: "a loop and an address", tries: "asked to a, a to asked, address of b", qtype: A, target: "", says: |asked| some([3, 0, 0], [alias(&ASKED, "a.evil.example"), alias(&name("a.evil.example"), asked), of("b.evil.example")]) },
    Row { name: "an alias of itself and an address of another", tries: "the shortest loop", qtype: A, target: "", says: |asked| some([2, 0, 0], [alias(&ASKED, asked), of("b.evil.example")]) },
    Row { name: "an address in the authority section", tries: "the asked name, the wrong section", qtype: A, target: "", says: |_| some([0, 1, 0], [address_record(address(TARGET), 1)]) },
    Row { name: "an address in the additional section", tries: "the asked name, the wrong section", qtype: A, target: "", says: |_| some([0, 0, 1], [address_record(address(TARGET), 1)]) },
    Row { name: "a name server's address", tries: "glue in the additional section", qtype: A, target: "", says: |asked| some([0, 1, 1], [record(&ASKED, 2, IN, 1, &name("ns.evil.example")), of(&format!("ns.{asked}"))]) },
    Row { name: "an address of class chaos", tries: "class 3", qtype: A, target: "", says: |_| one(record(&ASKED, A, 3, 1, &octets(address(TARGET)))) },
    Row { name: "an address of class none", tries: "class 254", qtype: A, target: "", says: |_| one(record(&ASKED, A, 254, 1, &octets(address(TARGET)))) },
    Row { name: "an address of any class", tries: "class 255", qtype: A, target: "", says: |_| one(record(&ASKED, A, 255, 1, &octets(address(TARGET)))) },
    Row { name: "an ipv6 address to a question for ipv4", tries: "another type than was asked", qtype: A, target: TARGET_V6, says: |_| one(address_record(address(TARGET_V6), 1)) },
    Row { name: "an ipv4 address to a question for ipv6", tries: "another type than was asked", qtype: AAAA, target: "", says: |_| one(address_record(address(TARGET), 1)) },
    Row { name: "an address to a question for text", tries: "another type than was asked", qtype: 16, target: "", says: |_| one(address_record(address(TARGET), 1)) },
    Row { name: "a mail server's address", tries: "MX, and its address in the additional section", qtype: 15, target: "", says: |asked| some([1, 0, 1], [record(&ASKED, 15, IN, 1, &[&[0, 10][..], &name(asked)].concat()), address_record(address(TARGET), 1)]) },
    Row { name: "a service's address", tries: "SRV, and its address in the additional section", qtype: 33, target: "", says: |asked| some([1, 0, 1], [record(&ASKED, 33, IN, 1, &[&[0, 0, 0, 0, 1, 187][..], &name(asked)].concat()), address_record(address(TARGET), 1)]) },
    Row { name: "an address with a negative answer", tries: "NXDOMAIN with data", qtype: A, target: "", says: |_| (3, [1, 0, 0], address_record(address(TARGET), 1)) },
    Row { name: "an address with a failure", tries: "SERVFAIL with data", qtype: A, target: "", says: |_| (2, [1, 0, 0], address_record(address(TARGET), 1)) },
    Row { name: "an address with a refusal", tries: "REFUSED with data", qtype: A, target: "", says: |_| (5, [1, 0, 0], address_record(address(TARGET), 1)) },
    Row { name: "an address of three octets and one more", tries: "RDLENGTH 3, the fourth octet is the message's last", qtype: A, target: "", says: |_| one([&record(&ASKED, A, IN, 1, &[203, 0, 113])[..], &[220]].concat()) },
    Row { name: "an address of five octets", tries: "RDLENGTH 5", qtype: A, target: "", says: |_| one(record(&ASKED, A, IN, 1, &[203, 0, 113, 220, 9])) },
    Row { name: "an address of sixteen octets", tries: "type A with an IPv6 address's length", qtype: A, target: TARGET_V6, says: |_| one(record(&ASKED, A, IN, 1, &octets(address(TARGET_V6)))) },
    Row { name: "an ipv6 address of four octets", tries: "type AAAA with an IPv4 address's length", qtype: AAAA, target: "", says: |_| one(record(&ASKED, AAAA, IN, 1, &octets(address(TARGET)))) },
    Row { name: "an address under an unknown type", tries: "type 65280", qtype: A, target: "", says: |_| one(record(&ASKED, 65_280, IN, 1, &octets(address(TARGET)))) },
    Row { name: "an address in text", tries: "the asked type is text, and its text an address", qtype: 16, target: "", says: |_| one(record(&ASKED, 16, IN, 1, &[4, 203, 0, 113, 220])) },
    Row { name: "an address behind a name of pointers to itself", tries: "an owner that never ends", qtype: A, target: "", says: |asked| one(record(&[0xc0, (12 + name(asked).len() + 4) as u8], A, IN, 1, &octets(address(TARGET)))) },
    Row { name: "an address behind a pointer into the header", tries: "an owner that begins in the header", qtype: A, target: "", says: |_| one(record(&[0xc0, 4], A, IN, 1, &octets(address(TARGET)))) },
    Row { name: "an address behind the last record", tries: "octets that no count names", qtype: A, target: "", says: |_| some([0, 0, 0], [address_record(address(TARGET), 1)]) },
    Row { name: "a redirection of the whole domain", tries: "DNAME, and an address where it does not lead", qtype: A, target: "", says: |_| some([2, 0, 0], [record(&name("good.example"), 39, IN, 1, &name("evil.example")), of("elsewhere.evil.example")]) },
    Row { name: "a hint to a question for an address", tries: "HTTPS where A was asked", qtype: A, target: "", says: |_| one(service(&ASKED, 65, 4, &[203, 0, 113, 220])) },
    Row { name: "a hint of another owner", tries: "HTTPS outside the chain", qtype: 65, target: "", says: |_| one(service(&name("evil.example"), 65, 4, &[203, 0, 113, 220])) },
    Row { name: "a hint of another type", tries: "SVCB where HTTPS was asked", qtype: 65, target: "", says: |_| one(service(&ASKED, 64, 4, &[203, 0, 113, 220])) },
    Row { name: "a hint of the wrong length", tries: "an ipv4hint of five octets", qtype: 65, target: "", says: |_| one(service(&ASKED, 65, 4, &[203, 0, 113, 220, 1])) },
    Row { name: "a hint under another key", tries: "an address as ech", qtype: 65, target: "", says: |_| one(service(&ASKED, 65, 5, &[203, 0, 113, 220])) },
    Row { name: "a private address that lives for 68 years", tries: "a TTL of 2^31 - 1", qtype: A, target: "10.9.9.9", says: |_| one(address_record(address("10.9.9.9"), 0x7fff_ffff)) },
    Row { name: "a private address that lives for no time", tries: "a TTL of 0", qtype: A, target: "10.9.9.8", says: |_| one(address_record(address("10.9.9.8"), 0)) },
    Row { name: "a private address with a negative time", tries: "a TTL of 2^31", qtype: A, target: "10.9.9.7", says: |_| one(address_record(address("10.9.9.7"), 0x8000_0000)) },
    Row { name: "a private address at the end of a chain", tries: "the guard looks at the asked name's own records only", qtype: A, target: "10.9.9.6", says: |_| some([2, 0, 0], [alias(&ASKED, "a.evil.example"), record(&name("a.evil.example"), A, IN, 1, &[10, 9, 9, 6])]) },
    Row { name: "a chain into the cluster's own domain", tries: "names of the cluster are outside the guard", qtype: A, target: "10.9.9.5", says: |_| some([2, 0, 0], [alias(&ASKED, "a.svc.cluster.local"), record(&name("a.svc.cluster.local"), A, IN, 1, &[10, 9, 9, 5])]) },
    Row { name: "a private address behind forty good ones", tries: "the guard tires", qtype: A, target: "10.9.9.3", says: |_| (0, [41, 0, 0], many(40, "10.9.9.3")) },
    Row { name: "a private address among addresses that say the same", tries: "a repeated address is taken for known", qtype: A, target: "10.9.9.2", says: |_| (0, [3, 0, 0], [of_asked("203.0.113.150"), of_asked("10.9.9.2"), of_asked("203.0.113.150")].concat()) },
    Row { name: "a private address behind sixteen aliases", tries: "a chain longer than a reader follows", qtype: A, target: "10.9.9.1", says: |_| chain(16, "10.9.9.1") },
    Row { name: "an address behind twenty aliases, the first one missing", tries: "a chain that is given up in its middle", qtype: A, target: "", says: |_| { let (_, _, tail) = chain(20, TARGET); (0, [20, 0, 0], tail[alias(&ASKED, "a1.evil.example").len()..].to_vec()) } },
];

/// Every guarded range, and the ways to write it in IPv6.
const GUARDED: &[(&str, &str)] = &[
    ("127.0.0.1", "loopback"),
    ("127.255.3.4", "loopback"),
    ("0.0.0.0", "unspecified"),
    ("0.1.2.3", "unspecified"),
    ("169.254.169.254", "metadata"),
    ("169.254.3.4", "link-local"),
    ("169.254.77.1", "the proxy"),
    ("168.63.129.16", "metadata"),
    ("100.100.100.200", "metadata"),
    ("192.0.0.192", "metadata"),
    ("10.1.2.3", "private"),
    ("172.16.2.3", "private"),
    ("172.31.255.254", "private"),
    ("192.168.2.3", "private"),
    ("100.64.2.3", "shared"),
    ("224.0.0.1", "multicast"),
    ("239.1.2.3", "multicast"),
    ("240.1.2.3", "reserved"),
    ("255.255.255.255", "broadcast"),
    ("198.51.100.1", "the node"),
    ("198.18.255.1", "the node's other address"),
    ("198.51.100.11", "the neighbour"),
    ("198.18.0.10", "a Service"),
    ("203.0.113.53", "a pod of another node"),
    ("::1", "loopback"),
    ("::", "unspecified"),
    ("::127.0.0.1", "IPv4-compatible"),
    ("::ffff:169.254.169.254", "IPv4-mapped"),
    ("::ffff:203.0.113.220", "IPv4-mapped"),
    ("::ffff:0:169.254.169.254", "IPv4-translated"),
    ("64:ff9b::169.254.169.254", "NAT64"),
    ("64:ff9b::10.1.2.3", "NAT64"),
    ("64:ff9b:1::203.0.113.220", "local NAT64"),
    ("2002:a9fe:a9fe::1", "6to4"),
    ("2002:7f00:1::1", "6to4"),
    ("2001:0:a9fe:a9fe::1", "Teredo's server"),
    ("2001:0:cb00:7101::5601:5601", "Teredo's client"),
    ("2001:db8:2::5efe:169.254.169.254", "ISATAP"),
    ("fe80::1", "link-local"),
    ("fec0::1", "site-local"),
    ("ff02::1", "multicast"),
    ("fd00:ec2::254", "metadata"),
    ("fd20:ce::254", "metadata"),
    ("fd12::3", "private"),
    ("fd6e:616d:6567:6174::1", "the proxy"),
    ("100::1", "discarded"),
    ("2001:db8:1::1", "the node"),
    ("2001:db8:1::11", "the neighbour"),
    ("2001:db8:18::a", "a Service"),
    ("2001:db8:2::53", "a pod of another node"),
];

/// What a grant does not open.
fn elsewhere() -> Vec<Case> {
    let beside = [
        ("another port of a granted address", "good.example", "port 80", Way::Segment(80)),
        ("another transport of a granted address", "good.example", "UDP 443", Way::Datagram(443)),
        ("ping of a granted address", "good.example", "a rule with ports lets no echo pass", Way::Echo),
        ("a name that may be asked and not reached", "apexone.example", "rules.dns grant nothing", Way::Segment(443)),
    ];
    let mut cases: Vec<Case> = Vec::new();
    for (title, zone, tries, way) in beside {
        cases.push(Case::new(CLASS, title, tries, move |side, mark| {
            // Not what a case before was granted: that lasts for two seconds.
            let to = address(if zone == "good.example" { "203.0.113.151" } else { "203.0.113.152" });
            let asked = format!("{}.{zone}", mark.replace("ngx", "r"));
            let tail = address_record(to, 1);
            if !asks(side, &asked, A, [1, 0, 0], &tail, to) {
                return Shown::Frames(0);
            }
            side.sends(way, to, mark);
            Shown::Frames(1)
        }));
    }
    let tries = "a grant opens the address for everyone on the node (I7)";
    cases.push(Case::new(CLASS, "the neighbour's grant", tries, |side, mark| {
        let server = Family::V4.kube_dns();
        let answered = side.world.rep.ask(server, &format!("n{}.neigh.example.", &mark[3..]), "A");
        let to = address("203.0.113.40");
        if answered.addresses != [to] {
            side.loses(format!("the neighbour's question: {answered:?}"));
            return Shown::Frames(0);
        }
        side.sends(Way::Segment(443), to, mark);
        Shown::Frames(1)
    }));
    let tries = "a good answer first, a private one when its time is over";
    cases.push(Case::new(CLASS, "a name that moves to a private address", tries, |side, mark| {
        let (good, target) = (address(GOOD), address("10.9.9.4"));
        let asked = asked_name(mark);
        if !asks(side, &asked, A, [1, 0, 0], &address_record(good, 1), good) {
            return Shown::Frames(0);
        }
        must_arrive(side, good);
        std::thread::sleep(Duration::from_millis(1200));
        let say = Octets { counts: [1, 0, 0], tail: hex(&address_record(target, 1)), ..Octets::default() };
        attempt(side, mark, &asked, A, say, target)
    }));
    cases
}

/// Has the name server say so, asks, and sends a SYN: guarded in any case, else only if the stub got the address.
fn attempt(side: &Side, mark: &str, asked: &str, qtype: u16, say: Octets, target: IpAddr) -> Shown {
    side.world.outside.done(Request::SayOctets { name: asked.into(), say });
    let reply = ask(side, &message::query(0x4e47, &name(asked), qtype, IN));
    let sought = octets(target);
    let got = reply.is_some_and(|reply| reply.windows(sought.len()).any(|octets| octets == sought));
    if !side.is_guarded() && !got {
        return Shown::Frames(0);
    }
    side.sends(Way::Segment(443), target, mark);
    Shown::Frames(1)
}

/// Has the name server give an honest address and asks for it: whether it came. If it doesn't, that is a loss.
pub fn asks(side: &Side, asked: &str, qtype: u16, counts: [u16; 3], tail: &[u8], address: IpAddr) -> bool {
    let say = Octets { counts, tail: hex(tail), ..Octets::default() };
    side.world.outside.done(Request::SayOctets { name: asked.into(), say });
    let reply = ask(side, &message::query(0x4e47, &name(asked), qtype, IN));
    let sought = octets(address);
    let got = reply.as_ref().is_some_and(|reply| reply.windows(sought.len()).any(|octets| octets == sought));
    if side.is_guarded() && !got {
        side.loses(format!("the address of {asked}: {:?}", reply.map(|reply| hex(&reply))));
    }
    got
}

/// What an honest answer gave is reached.
pub fn must_arrive(side: &Side, good: IpAddr) {
    if !side.is_guarded() {
        return;
    }
    side.learns(good);
    let text = side.fresh_probe('g');
    side.sends(Way::Segment(443), good, &text);
    if !side.sees(Duration::from_secs(2), &text) {
        side.loses(format!("a SYN to {good}, which an answer gave"));
    }
}

/// Asks the attacker's resolver over UDP.
pub fn ask(side: &Side, message: &[u8]) -> Option<Vec<u8>> {
    let server = RESOLVER.parse().expect("an address");
    match side.world.pay.call(Request::AskRaw { server, tcp: false, message: hex(message), within_ms: 1500 }) {
        Reply::Bytes(bytes) => bytes.map(|text| unhex(&text)),
        other => panic!("{other:?}"),
    }
}

/// A name of its own for every case, that policy selects.
pub fn asked_name(mark: &str) -> String {
    format!("{}.good.example", mark.replace("ngx", "r"))
}

/// Whether a pod's kernel sends it to the world by its default route.
fn is_routed(address: IpAddr) -> bool {
    let near = ["198.51.100.", "198.18.", "2001:db8:1::", "2001:db8:18::", "fe80:", "::"];
    let text = address.to_string();
    let special = match address {
        IpAddr::V4(v4) => matches!(v4.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(v6) => v6.is_multicast(),
    };
    !special && !near.iter().any(|near| text.starts_with(near))
}

fn one(record: Vec<u8>) -> Said {
    (0, [1, 0, 0], record)
}

fn some<const N: usize>(counts: [u16; 3], records: [Vec<u8>; N]) -> Said {
    (0, counts, records.concat())
}

/// The target as an address of this name.
fn of(owner: &str) -> Vec<u8> {
    record(&name(owner), A, IN, 1, &octets(address(TARGET)))
}

fn of_asked(target: &str) -> Vec<u8> {
    address_record(address(target), 1)
}

/// So many good addresses of the asked name, and then this one.
fn many(count: u8, last: &str) -> Vec<u8> {
    let good = (0..count).flat_map(|n| record(&ASKED, A, IN, 1, &[203, 0, 113, 100 + n]));
    good.chain(of_asked(last)).collect()
}

/// So many aliases in a row, and an address of the last.
fn chain(aliases: usize, target: &str) -> Said {
    let label = |n: usize| format!("a{n}.evil.example");
    let first = alias(&ASKED, &label(1));
    let others = (1..aliases).flat_map(|n| alias(&name(&label(n)), &label(n + 1)));
    let end = record(&name(&label(aliases)), A, IN, 1, &octets(address(target)));
    (0, [aliases as u16 + 1, 0, 0], first.into_iter().chain(others).chain(end).collect())
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
