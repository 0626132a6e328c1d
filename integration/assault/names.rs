//! Questions that policy does not allow, or that carry something beside an allowed one. The mark is in the name, or hidden in
//! the message: it must not be seen on the way to any resolver. Names are asked over UDP and over TCP.

use std::net::SocketAddr;

use crate::bench::{Case, Shown, Side};
use crate::lab::agent::{Many, Request, hex};
use crate::message::{A, IN, name, opt, query, record, wire, with_record};
use crate::model::{FOREIGN_RESOLVER, RESOLVER};

const CLASS: &str = "names";
/// How long a reply is waited for; many are dropped.
const WAIT_MS: u64 = 250;
const ID: u16 = 0x4e47;

struct Row {
    name: &'static str,
    tries: &'static str,
    /// The whole message, given the mark.
    message: fn(&[u8]) -> Vec<u8>,
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for row in NAMES.iter().chain(HIDDEN).chain(KINDS) {
        for (how, tcp) in [("udp", false), ("tcp", true)] {
            cases.push(Case::new(CLASS, format!("{how}: {}", row.name), row.tries, move |side, mark| {
                send(side, RESOLVER, tcp, &(row.message)(mark.as_bytes()));
                Shown::Frames(1)
            }));
        }
    }
    let service = ["198.18.0.10:53", "[2001:db8:18::a]:53"];
    for (server, what) in service.into_iter().map(|server| (server, "the cluster's own resolver")) {
        cases.push(Case::new(
            CLASS,
            format!("a denied name to {server}, {what}"),
            "through the Service",
            move |side, mark| {
                send(side, server, false, &question(&[mark.as_bytes(), b"evil", b"example"]));
                Shown::Frames(1)
            },
        ));
    }
    for (how, tcp) in [("udp", false), ("tcp", true)] {
        let tries = "an allowed name to a resolver that no rule names";
        cases.push(Case::new(CLASS, format!("{how}: a foreign resolver"), tries, move |side, mark| {
            send(side, FOREIGN_RESOLVER, tcp, &question(&[mark.as_bytes(), b"good", b"example"]));
            Shown::Frames(1)
        }));
    }
    cases.push(Case::new(
        CLASS,
        "the apex of a pattern",
        "*.apexone.example does not select apexone.example",
        |side, _| {
            side.world.outside.asked();
            send(side, RESOLVER, false, &question(&[b"apexone", b"example"]));
            Shown::Told(side.world.outside.asked().iter().any(|name| name == "apexone.example"))
        },
    ));
    cases.push(Case::new(CLASS, "the suffix of a pattern", "*.apexone.example does not select example", |side, _| {
        side.world.outside.asked();
        send(side, RESOLVER, false, &question(&[b"example"]));
        Shown::Told(side.world.outside.asked().iter().any(|name| name == "example"))
    }));
    cases.push(Case::new(CLASS, "the root", "no name at all", |side, _| {
        side.world.outside.asked();
        send(side, RESOLVER, false, &question(&[]));
        Shown::Told(side.world.outside.asked().iter().any(String::is_empty))
    }));
    let tries = "a denied name rides behind an allowed one on the same connection";
    cases.push(Case::new(CLASS, "tcp: a denied name behind allowed ones", tries, |side, mark| {
        let allowed = question(&[b"fine", b"good", b"example"]);
        let denied = question(&[mark.as_bytes(), b"evil", b"example"]);
        let messages = (0..8).map(|at| hex(if at == 4 { &denied } else { &allowed })).collect();
        let server: SocketAddr = RESOLVER.parse().expect("an address");
        side.world.pay.ask_many(Many { server, tcp: true, messages, at_once: 8, within_ms: 700 });
        Shown::Frames(1)
    }));
    cases
}

#[rustfmt::skip]
const NAMES: &[Row] = &[
    Row { name: "a denied name", tries: "plainly", message: |m| question(&[m, b"evil", b"example"]) },
    Row { name: "a denied name in capitals", tries: "folding", message: |m| question(&[&m.to_ascii_uppercase(), b"EVIL", b"EXAMPLE"]) },
    Row { name: "a suffix without its dot", tries: "xgood.example ends in good.example", message: |m| question(&[&[m, b"good"].concat(), b"example"]) },
    Row { name: "an allowed name before a denied one", tries: "good.example.evil.example begins as an allowed one", message: |m| question(&[m, b"good", b"example", b"evil", b"example"]) },
    Row { name: "two labels where one may be", tries: "* is one label", message: |m| question(&[m, b"b", b"good", b"example"]) },
    Row { name: "a dot in a label", tries: "one label reads as two", message: |m| question(&[&[m, b".good"].concat(), b"example"]) },
    Row { name: "the whole name in one label", tries: "one label reads as an allowed name", message: |m| question(&[&[m, b".good.example"].concat()]) },
    Row { name: "a dot at the end of a label", tries: "a label that ends in a dot", message: |m| question(&[m, b"good.", b"example"]) },
    Row { name: "a dot within the allowed label", tries: "a.b before good.example", message: |m| question(&[&[m, b".b"].concat(), b"good", b"example"]) },
    Row { name: "a nul at the end of a label", tries: "text that ends early", message: |m| question(&[&[m, b"\0"].concat(), b"good", b"example"]) },
    Row { name: "a nul before another suffix", tries: "good.example, NUL, evil.example", message: |m| question(&[m, b"good", b"example\0", b"evil", b"example"]) },
    Row { name: "a nul in the suffix", tries: "a suffix that text would cut", message: |m| question(&[m, b"good\0", b"example"]) },
    Row { name: "an escaped dot", tries: "a backslash and a dot in one label", message: |m| question(&[&[m, b"\\.good"].concat(), b"example"]) },
    Row { name: "a dot by number", tries: "\\046 in one label", message: |m| question(&[&[m, b"\\046good"].concat(), b"example"]) },
    Row { name: "a dot in percent", tries: "%2e in one label", message: |m| question(&[&[m, b"%2egood"].concat(), b"example"]) },
    Row { name: "a literal star", tries: "the pattern's own character", message: |m| question(&[b"*", m, b"good", b"example"]) },
    Row { name: "a star beside letters", tries: "a label that is a pattern", message: |m| question(&[&[b"*", m].concat(), b"good", b"example"]) },
    Row { name: "a star as the suffix", tries: "*.example as a name", message: |m| question(&[m, b"*", b"example"]) },
    Row { name: "a kelvin sign", tries: "U+212A folds to k in Unicode", message: |m| question(&[m, "\u{212a}elvin".as_bytes(), b"example"]) },
    Row { name: "a long s", tries: "U+017F folds to s in Unicode", message: |m| question(&[m, "long\u{17f}".as_bytes(), b"example"]) },
    Row { name: "a full-width dot", tries: "U+FF0E is a dot to some resolvers", message: |m| question(&[&[m, "\u{ff0e}good".as_bytes()].concat(), b"example"]) },
    Row { name: "an ideographic full stop", tries: "U+3002 is a dot in IDNA", message: |m| question(&[&[m, "\u{3002}good".as_bytes()].concat(), b"example"]) },
    Row { name: "full-width letters", tries: "letters that IDNA maps", message: |m| question(&[m, "\u{ff47}ood".as_bytes(), b"example"]) },
    Row { name: "a soft hyphen", tries: "U+00AD, which IDNA drops", message: |m| question(&[m, "go\u{ad}od".as_bytes(), b"example"]) },
    Row { name: "a zero-width joiner", tries: "a character that nobody sees", message: |m| question(&[m, "go\u{200d}od".as_bytes(), b"example"]) },
    Row { name: "a cyrillic letter", tries: "an o that is not an o", message: |m| question(&[m, "g\u{43e}od".as_bytes(), b"example"]) },
    Row { name: "a high bit", tries: "g with its eighth bit set", message: |m| question(&[m, &[b'g' | 0x80, b'o', b'o', b'd'], b"example"]) },
    Row { name: "letters folded by one bit", tries: "@ and ` fold into each other if folding is | 0x20", message: |m| question(&[&[m, b"@"].concat(), b"good", b"example"]) },
    Row { name: "a blank", tries: "a label that text would trim", message: |m| question(&[m, b"good ", b"example"]) },
    Row { name: "a line break", tries: "a label of two lines", message: |m| question(&[&[m, b"\n"].concat(), b"good", b"example"]) },
    Row { name: "an at sign", tries: "somebody@somewhere", message: |m| question(&[&[m, b"@b"].concat(), b"good", b"example"]) },
    Row { name: "a slash", tries: "a path", message: |m| question(&[&[m, b"/24"].concat(), b"good", b"example"]) },
    Row { name: "an exact name with more before it", tries: "matchName is the whole name", message: |m| question(&[m, b"api", b"exact", b"example"]) },
    Row { name: "an exact name with more behind it", tries: "matchName is the whole name", message: |m| question(&[b"api", b"exact", b"example", m]) },
    Row { name: "another label under an exact name's parent", tries: "matchName is the whole name", message: |m| question(&[m, b"exact", b"example"]) },
    Row { name: "the search suffix of the cluster", tries: "an allowed name with the search list behind it", message: |m| question(&[m, b"good", b"example", b"svc", b"cluster", b"local"]) },
    Row { name: "a reverse name", tries: "in-addr.arpa as a channel", message: |m| question(&[m, b"113", b"0", b"203", b"in-addr", b"arpa"]) },
    Row { name: "a name of 118 labels", tries: "nearly as many as there may be", message: |m| { let mut labels = vec![&b"a"[..]; 117]; labels.push(m); question(&labels) } },
    Row { name: "a label of 63 octets", tries: "as long as it may be, before a denied name", message: |m| { let mut label = m.to_vec(); label.resize(63, b'x'); question(&[&label, b"evil", b"example"]) } },
    Row { name: "a label of 64 octets", tries: "longer than it may be: its length reads as a type of label", message: |m| { let mut label = m.to_vec(); label.resize(64, b'x'); question(&[&label, b"good", b"example"]) } },
    Row { name: "a name of 256 octets", tries: "longer than it may be", message: |m| { let mut label = m.to_vec(); label.resize(60, b'x'); question(&[&label, &[b'y'; 60], &[b'y'; 60], &[b'y'; 60], b"good", b"example"]) } },
    Row { name: "an empty label in the middle", tries: "a root before the end, an allowed suffix behind", message: |m| query(ID, &[&wire(&[m])[..], &wire(&[b"good", b"example"])].concat(), A, IN) },
    Row { name: "a pointer to itself", tries: "a name that never ends", message: |m| query(ID, &[&[8][..], m, &[0xc0, 12]].concat(), A, IN) },
    Row { name: "a pointer into the header", tries: "a name that begins in the flags", message: |m| query(ID, &[&[8][..], m, &[0xc0, 2]].concat(), A, IN) },
    Row { name: "a pointer behind the question", tries: "the rest of the name stands behind the question", message: |m| [query(ID, &[&[8][..], m, &[0xc0, 27]].concat(), A, IN), name("good.example")].concat() },
    Row { name: "a bit-string label", tries: "a type of label that was taken back (RFC 6891)", message: |m| query(ID, &[&[0x41, 64][..], m, &name("good.example")].concat(), A, IN) },
];

/// An allowed question, and something with it.
#[rustfmt::skip]
const HIDDEN: &[Row] = &[
    Row { name: "a second question", tries: "a denied name as another question", message: |m| { let mut message = [fine(m), question(&[m, b"evil", b"example"])[12..].to_vec()].concat(); message[5] = 2; message } },
    Row { name: "a denied question before the allowed one", tries: "the last question is the allowed one", message: |m| { let mut message = [question(&[m, b"evil", b"example"]), fine(m)[12..].to_vec()].concat(); message[5] = 2; message } },
    Row { name: "an answer in the question", tries: "a record in a section that a query leaves empty", message: |m| with_record(&fine(m), 0, &text(m)) },
    Row { name: "a record in the authority section", tries: "a record that IXFR would bring", message: |m| with_record(&fine(m), 1, &text(m)) },
    Row { name: "a record in the additional section", tries: "a record that few proxies look at", message: |m| with_record(&fine(m), 2, &text(m)) },
    Row { name: "an owner in the additional section", tries: "the data is a name", message: |m| with_record(&fine(m), 2, &record(&wire(&[m, b"evil", b"example"]), A, IN, 0, &[1, 2, 3, 4])) },
    Row { name: "a signature of the transaction", tries: "TSIG's data", message: |m| with_record(&fine(m), 2, &record(&wire(&[m]), 250, 255, 0, m)) },
    Row { name: "an unknown edns option", tries: "option 65001", message: |m| with_record(&fine(m), 2, &opt(65_001, m)) },
    Row { name: "edns padding", tries: "option 12 with data in it", message: |m| with_record(&fine(m), 2, &opt(12, m)) },
    Row { name: "an edns client subnet", tries: "option 8, an IPv6 address of data", message: |m| with_record(&fine(m), 2, &opt(8, &[&[0, 2, 64, 0][..], m].concat())) },
    Row { name: "an edns cookie", tries: "option 10, the client's part", message: |m| with_record(&fine(m), 2, &opt(10, m)) },
    Row { name: "an edns server identifier", tries: "option 3 with data in it", message: |m| with_record(&fine(m), 2, &opt(3, m)) },
    Row { name: "octets behind the message", tries: "a tail that no count names", message: |m| [fine(m), m.to_vec()].concat() },
    Row { name: "an owner of edns", tries: "an OPT record that has a name", message: |m| with_record(&fine(m), 2, &record(&wire(&[m]), 41, 1232, 0, &[])) },
];

/// An allowed name, and a question of another kind.
#[rustfmt::skip]
const KINDS: &[Row] = &[
    Row { name: "everything of an allowed name", tries: "type ANY", message: |m| asks(m, 255, IN) },
    Row { name: "a zone transfer", tries: "type AXFR", message: |m| asks(m, 252, IN) },
    Row { name: "an incremental zone transfer", tries: "type IXFR", message: |m| asks(m, 251, IN) },
    Row { name: "mail agents", tries: "type MAILA", message: |m| asks(m, 254, IN) },
    Row { name: "class chaos", tries: "class 3", message: |m| asks(m, A, 3) },
    Row { name: "class hesiod", tries: "class 4", message: |m| asks(m, A, 4) },
    Row { name: "class none", tries: "class 254", message: |m| asks(m, A, 254) },
    Row { name: "any class", tries: "class 255", message: |m| asks(m, A, 255) },
    Row { name: "class 0", tries: "no class", message: |m| asks(m, A, 0) },
    Row { name: "an inverse query", tries: "opcode 1", message: |m| opcode(m, 1) },
    Row { name: "a status request", tries: "opcode 2", message: |m| opcode(m, 2) },
    Row { name: "a notification", tries: "opcode 4", message: |m| opcode(m, 4) },
    Row { name: "an update", tries: "opcode 5", message: |m| opcode(m, 5) },
    Row { name: "a stateful operation", tries: "opcode 6", message: |m| opcode(m, 6) },
    Row { name: "an unknown operation", tries: "opcode 15", message: |m| opcode(m, 15) },
    Row { name: "a reply", tries: "QR=1: an answer instead of a question", message: |m| opcode(m, 16) },
];

fn send(side: &Side, server: &str, tcp: bool, message: &[u8]) {
    let server = server.parse().expect("an address");
    side.world.pay.call(Request::AskRaw { server, tcp, message: hex(message), within_ms: WAIT_MS });
}

fn question(labels: &[&[u8]]) -> Vec<u8> {
    query(ID, &wire(labels), A, IN)
}

/// A question that may be asked, a name of its own for every case: no answer is kept.
fn fine(m: &[u8]) -> Vec<u8> {
    question(&[&[b"r", &m[3..]].concat(), b"good", b"example"])
}

fn text(mark: &[u8]) -> Vec<u8> {
    record(&name("fine.good.example"), 16, IN, 0, &[&[mark.len() as u8], mark].concat())
}

fn asks(mark: &[u8], qtype: u16, class: u16) -> Vec<u8> {
    query(ID, &wire(&[mark, b"good", b"example"]), qtype, class)
}

fn opcode(mark: &[u8], opcode: u8) -> Vec<u8> {
    let mut message = asks(mark, A, IN);
    message[2] |= opcode << 3;
    message
}
