//! The zone that real servers load: every type that hickory-proto knows and most others, chains, wildcards, delegations,
//! sets that fit no datagram. The same text every time.

use std::fmt::Write;

/// The zone's name, without the final dot.
pub const ORIGIN: &str = "peers.example";
/// A small zone beside it that is signed with NSEC3.
pub const HASHED: &str = "hashed.example";
/// Below it nothing stands that a policy would have to change: its names may be selected by `toFQDNs`.
pub const SELECTED: &str = "selected.peers.example";

/// A name and a type to ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// Presentation form, in the letters that are to be used.
    pub name: String,
    pub qtype: u16,
}

/// What is asked for each name, beside its own types.
const ASKED: [u16; 23] = [1, 2, 5, 6, 12, 13, 15, 16, 28, 29, 33, 35, 39, 43, 46, 47, 48, 52, 64, 65, 256, 257, 65_280];

/// One of each of the types that are seldom seen, asked together for one name. All in the form of RFC 3597, which nsd
/// and knot both take whatever they know of the type.
const RARE: [(u16, &str); 30] = [
    (3, "0161 00"),                                                                    // MD
    (4, "0161 00"),                                                                    // MF
    (7, "0161 00"),                                                                    // MB
    (8, "0161 00"),                                                                    // MG
    (9, "0161 00"),                                                                    // MR
    (10, "00ff10"),                                                                    // NULL
    (11, "cb007101 06 000040"),                                                        // WKS
    (14, "0161 00 0162 00"),                                                           // MINFO
    (17, "0161 00 0162 00"),                                                           // RP
    (18, "0001 0161 00"),                                                              // AFSDB
    (19, "09333131303631373030"),                                                      // X25
    (20, "0f313530383632303238303033323137"),                                          // ISDN
    (21, "000a 0161 00"),                                                              // RT
    (22, "47000580005a0000000001e133ffffff00016100"),                                  // NSAP
    (25, "0000 03 08 01020304"),                                                       // KEY
    (26, "000a 0161 00 0162 00"),                                                      // PX
    (29, "00121613892a8c2c8b1ef8c000989680"),                                          // LOC
    (36, "000a 0161 00"),                                                              // KX
    (37, "0001 0001 08 01020304"),                                                     // CERT
    (42, "0001 18 03 cb0071"),                                                         // APL
    (45, "0a 00 02 01020304"),                                                         // IPSECKEY
    (49, "000001c2"),                                                                  // DHCID
    (53, "03 01 01 00112233"),                                                         // SMIMEA
    (55, "04 02 0004 00010203 01020304"),                                              // HIP
    (59, "30390d02 0011223344556677889900112233445566778899001122334455667788990011"), // CDS
    (60, "0101 03 0d 01020304"),                                                       // CDNSKEY
    (61, "99010203"),                                                                  // OPENPGPKEY
    (62, "0000000100 03 0003 000062"),                                                 // CSYNC
    (108, "00005e005301"),                                                             // EUI48
    (65_280, "00112233445566778899aabbccddeeff"),                                      // unknown
];

/// The text of the zone `ORIGIN`, in the form of RFC 1035.
pub fn text() -> String {
    let mut zone = "$ORIGIN peers.example.\n$TTL 300\n\
        @ IN SOA ns1 hostmaster 1 3600 600 86400 60\n@ IN NS ns1\n@ IN NS ns2\n\
        ns1 IN A 203.0.113.60\nns1 IN AAAA 2001:db8:2::60\nns2 IN A 203.0.113.61\nns2 IN AAAA 2001:db8:2::61\n\
        @ IN MX 10 mail\n@ IN TXT \"the apex\"\n@ IN CAA 0 issue \"ca.example\"\n@ IN A 198.19.0.1\n\
        mail IN A 198.19.0.2\nready IN A 198.19.0.3\n"
        .to_owned();
    below(&mut zone, "", true);
    below(&mut zone, ".selected", false);
    odd(&mut zone);
    zone
}

/// The text of the zone `HASHED`.
pub fn hashed_text() -> String {
    let mut zone = "$ORIGIN hashed.example.\n$TTL 60\n@ IN SOA ns1 hostmaster 1 3600 600 86400 30\n@ IN NS ns1\n\
        ns1 IN A 203.0.113.60\n*.w IN A 198.19.9.1\n*.wc IN CNAME a1\nx.ent IN TXT \"x\"\n"
        .to_owned();
    for i in 1..=10 {
        let _ = writeln!(zone, "a{i} IN A 198.19.9.{i}\na{i} IN AAAA 2001:db8:19::9:{i}\nt{i} IN TXT \"text {i}\"");
    }
    zone
}

/// Every pair to be asked, in one order. Half of the names are written in mixed case.
pub fn questions() -> Vec<Question> {
    let mut pairs = Vec::new();
    for (number, name) in names().into_iter().enumerate() {
        let name = if number % 2 == 0 { name } else { mixed(&name) };
        let mut types = ASKED.to_vec();
        if name.starts_with("rare") {
            types.extend(RARE.iter().map(|(rtype, _)| *rtype));
        }
        // ANAME, HINFO and the like that few have; once in a while each.
        types.extend(
            [37, 44, 50, 51, 53, 59, 60, 61, 62, 99, 65_305]
                .into_iter()
                .filter(|rtype| (number + usize::from(*rtype)) % 7 == 0),
        );
        types.sort_unstable();
        types.dedup();
        pairs.extend(types.into_iter().map(|qtype| Question { name: name.clone(), qtype }));
    }
    pairs
}

/// Records below the origin, each owner with `suffix`. With `hints`, service bindings have addresses in them.
fn below(zone: &mut String, suffix: &str, hints: bool) {
    let s = suffix;
    let net = if hints { 1 } else { 2 };
    let mut put = |line: String| {
        zone.push_str(&line);
        zone.push('\n');
    };
    for i in 1..=20 {
        for host in 0..=i % 3 {
            put(format!("a{i}{s} {} IN A 198.19.{net}.{}", 60 + i, i * 4 + host));
        }
        if i % 2 == 0 {
            put(format!("a{i}{s} {} IN AAAA 2001:db8:19:{net}::{i}", 60 + i));
        }
    }
    put(format!("aaaa{s} IN AAAA 2001:db8:19:{net}::aaaa"));
    put(format!("ttl0{s} 0 IN A 198.19.{net}.200"));
    put(format!("ttlmax{s} 2147483647 IN A 198.19.{net}.201"));
    // Sets too long for 512 octets, for 1232, and for any datagram.
    for i in 0..60 {
        put(format!("a60{s} IN A 198.19.1{net}.{i}"));
    }
    for i in 0..200 {
        put(format!("a200{s} IN A 198.19.2{net}.{i}"));
    }
    for i in 0..30 {
        put(format!("txt30{s} IN TXT \"{i:032}\""));
    }
    for i in 0..300 {
        put(format!("txt300{s} IN TXT \"{i:0100}\""));
    }
    for i in 0..220 {
        put(format!("txt60k{s} IN TXT \"{i:0250}\""));
    }
    put(format!(
        "txtlong{s} IN TXT \"{}\" \"{}\" \"{}\" \"{}\"",
        "a".repeat(255),
        "b".repeat(255),
        "c".repeat(255),
        "d"
    ));
    put(format!("txtbinary{s} IN TXT \"\\000\\001\\127\\128\\255\\\"\\\\;\" \"\""));
    // Chains.
    put(format!("c1{s} IN CNAME a2{s}"));
    for i in 2..=12 {
        put(format!("c{i}{s} {} IN CNAME c{}{s}", 100 + i, i - 1));
    }
    put(format!("cnone{s} IN CNAME absent{s}"));
    put(format!("cempty{s} IN CNAME txtlong{s}"));
    put(format!("caway{s} IN CNAME www.elsewhere.invalid."));
    put(format!("cwild{s} IN CNAME one.w{s}"));
    put(format!("loop1{s} IN CNAME loop2{s}\nloop2{s} IN CNAME loop1{s}"));
    put(format!("dn{s} IN DNAME target{s}\ndn2{s} IN DNAME dn{s}"));
    for i in 1..=4 {
        put(format!("n{i}.target{s} IN A 198.19.{net}.{}", 210 + i));
    }
    // Wildcards, and what stands between.
    put(format!("*.w{s} IN A 198.19.{net}.220\n*.w{s} IN AAAA 2001:db8:19:{net}::220\n*.w{s} IN TXT \"wild\""));
    put(format!("present.w{s} IN TXT \"not wild\"\nx.gap.w{s} IN TXT \"below a gap\""));
    put(format!("*.wc{s} IN CNAME a4{s}\n*.wm{s} IN MX 10 a6{s}"));
    put(format!("x.ent1.ent2{s} IN TXT \"below two empty names\""));
    // A delegation with glue, and one that is said to be signed.
    put(format!("child{s} IN NS ns.child{s}\nns.child{s} IN A 203.0.113.60\nns.child{s} IN AAAA 2001:db8:2::60"));
    put(format!("safe{s} IN NS ns.child{s}\nsafe{s} IN DS 12345 13 2 {}", "00112233".repeat(8)));
    // Records that name others, whose addresses come along.
    for i in 1..=5 {
        put(format!("mx{s} IN MX {i}0 a{i}{s}"));
        put(format!("_s._tcp.srv{s} IN SRV {i} 10 44{i} a{}{s}", i * 2));
    }
    put(format!("mxnull{s} IN MX 0 ."));
    put(format!("naptr{s} IN NAPTR 10 10 \"s\" \"SIP+D2T\" \"\" _s._tcp.srv{s}"));
    put(format!("naptr{s} IN NAPTR 20 10 \"u\" \"E2U+sip\" \"!^.*$!sip:info@peers.example!\" ."));
    put(format!("_443._tcp.a1{s} IN TLSA 3 1 1 {}", "0123456789abcdef".repeat(4)));
    put(format!("ssh{s} IN SSHFP 4 2 {}", "0123456789abcdef".repeat(4)));
    put(format!("caa{s} IN CAA 0 issue \"ca.example\"\ncaa{s} IN CAA 128 iodef \"mailto:a@b.example\""));
    put(format!("hinfo{s} IN HINFO \"PC\" \"Plan 9\""));
    put(format!("loc{s} IN LOC 52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m"));
    put(format!("uri{s} IN URI 10 1 \"https://a1.peers.example/\""));
    put(format!("1.2.0{s} IN PTR a1{s}\n2.2.0{s} IN PTR a2{s}\n2.2.0{s} IN PTR a3{s}"));
    // Service bindings: alias, service, with everything.
    put(format!("alias{s} IN HTTPS 0 a2{s}\nalias{s} IN SVCB 0 a2{s}"));
    put(format!("svc{s} IN HTTPS 1 . alpn=h2,h3 port=8443\n_dns.svc{s} IN SVCB 1 a2{s} alpn=dot port=853"));
    put(format!("svc{s} IN A 198.19.{net}.230"));
    if hints {
        put(format!(
            "hints{s} IN HTTPS 1 a2{s} mandatory=ipv4hint,alpn alpn=h2 ipv4hint=198.19.{net}.8 ipv6hint=2001:db8:19::8"
        ));
        put(format!("ech{s} IN HTTPS 1 . alpn=h2 ech=AEP+DQA/ ipv4hint=198.19.{net}.9,198.19.{net}.10"));
    }
    for (rtype, data) in RARE {
        let data = data.replace(' ', "");
        put(format!("rare{s} IN TYPE{rtype} \\# {} {data}", data.len() / 2));
    }
    put(format!("rare{s} IN TYPE65305 \\# 3 016100"));
}

/// Owners as nobody should write them, and as long as they may be.
fn odd(zone: &mut String) {
    for (number, owner) in ODD.iter().enumerate() {
        let _ = writeln!(zone, "{owner} IN A 198.19.3.{number}\n{owner} IN TXT \"odd {number}\"");
    }
    let _ = writeln!(zone, "{} IN A 198.19.3.100", long());
}

const ODD: [&str; 7] =
    ["_under_score", "-dash-", "0", "with\\032blank", "semi\\059colon", "high\\200bit", "back\\\\slash"];

/// The most octets that a name below the origin can have: 255 on the wire.
fn long() -> String {
    let label = |octets: usize| "l".repeat(octets);
    // 15 octets are the origin's with its root, 64 times three are these, and a last one fills up.
    [label(47), label(63), label(63), label(63)].join(".")
}

fn names() -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for suffix in ["peers.example", SELECTED] {
        let mut add = |list: &str| names.extend(list.split_whitespace().map(|name| format!("{name}.{suffix}")));
        for i in 1..=20 {
            add(&format!("a{i}"));
        }
        for i in 1..=12 {
            add(&format!("c{i}"));
        }
        add("aaaa ttl0 ttlmax a60 a200 txt30 txt300 txt60k txtlong txtbinary cnone cempty caway cwild loop1 loop2");
        add("dn n1.dn n2.dn absent.dn n3.dn2 deep.n4.dn target n1.target");
        add("w one.w two.w a.b.w *.w present.w below.present.w gap.w x.gap.w y.gap.w one.wc *.wc wc one.wm wm");
        add("ent2 ent1.ent2 x.ent1.ent2 y.ent1.ent2 child www.child ns.child a.b.child safe www.safe");
        add("mx mxnull _s._tcp.srv _tcp.srv srv naptr _443._tcp.a1 _tcp.a1 ssh caa hinfo loc uri 1.2.0 2.2.0 2.0");
        add("alias svc _dns.svc rare absent absent2 deep.absent3 a1.a1 zzz 000");
    }
    let mut add = |list: &str| names.extend(list.split_whitespace().map(|name| format!("{name}.peers.example")));
    add("hints ech ns1 ns2 mail ready");
    ODD.iter().for_each(|owner| add(owner));
    add(&long());
    names.push("peers.example".into());
    names.push(SELECTED.into());
    names.push("not-ours.example".into());
    for i in 1..=5 {
        names.extend(["a", "t", "no"].map(|kind| format!("{kind}{i}.{HASHED}")));
    }
    names.extend(["w", "one.w", "one.wc", "ent", "x.ent", "y.ent", "ns1"].map(|name| format!("{name}.{HASHED}")));
    names.push(HASHED.into());
    names
}

/// Every other letter in upper case; escapes stay.
fn mixed(name: &str) -> String {
    name.char_indices().map(|(at, c)| if at % 2 == 0 { c.to_ascii_uppercase() } else { c }).collect()
}
