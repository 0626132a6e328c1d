//! The same questions to real servers, with namegate between and without: the replies must be the same.
//!
//! One pod is guarded and one is not; both ask the same server in the same letters. Through namegate each question goes
//! with `dns.cache=off`, and twice with `dns.cache=on`.
//!
//! namegate asks over UDP first, whoever asked over TCP. What a server leaves out of a datagram, though it would not say
//! that it was cut (glue, the names of the zone's servers), may so be missing over TCP: there the reply must be the one
//! that the server gives over TCP, or the one that it gives over UDP to 1232 octets. And of glue that does not fit into a
//! datagram, each server keeps another part: that is not compared where namegate had an answer with more room, which is
//! for askers without EDNS, and from servers over TLS and HTTPS.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use libtest_mimic::Trial;
use namegate::engine::wire::{AD, CD, RD, TC, type_text, u16_at};

use super::compare::{Allowed, Difference, difference};
use super::servers::{self, Servers, addresses};
use super::zone::{self, Question};
use crate::lab::agent::Many;
use crate::lab::agent::client::Agent;
use crate::lab::clock::now;
use crate::lab::world::{Options, World};
use crate::lab::{Daemon, Topology, snapshot};

/// How a question is put.
#[derive(Clone, Copy, Debug)]
struct Way {
    tcp: bool,
    edns: bool,
    dnssec_ok: bool,
    /// The asker wants to hear whether it was validated (RFC 6840 section 5.7).
    authentic_data: bool,
    checking_disabled: bool,
    /// Every so many pairs, one is asked this way.
    each: usize,
}

const UDP: Way =
    Way { tcp: false, edns: true, dnssec_ok: false, authentic_data: false, checking_disabled: false, each: 1 };
const UDP_DO: Way = Way { dnssec_ok: true, ..UDP };
const WAYS: [Way; 8] = [
    UDP,
    Way { each: 2, ..UDP_DO },
    Way { edns: false, each: 2, ..UDP },
    Way { checking_disabled: true, each: 4, ..UDP_DO },
    Way { authentic_data: true, each: 4, ..UDP },
    Way { tcp: true, each: 4, ..UDP },
    Way { tcp: true, edns: false, authentic_data: true, checking_disabled: true, each: 8, ..UDP },
    Way { tcp: true, each: 4, ..UDP_DO },
];

/// Longer than a whole run: so much may a kept answer's TTL have aged.
const AGED: u32 = 120;

/// What is shown of the differences of one kind.
const SHOWN: usize = 5;

pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, play: fn()| {
        Trial::test(format!("peers::answers::{name}"), move || {
            play();
            Ok(())
        })
    };
    vec![
        trial("nsd_says_the_same_through_namegate", || {
            let world = world();
            let mut servers = Servers::new(&world);
            servers.nsd(&world);
            let asked = same_answers(&world, servers::NSD, &zone::questions(), 1, &[]);
            assert!(asked.pairs >= 5000, "only {} names and types", asked.pairs);
        }),
        trial("knot_says_the_same_through_namegate", || {
            let world = world();
            let mut servers = Servers::new(&world);
            servers.knot(&world);
            same_answers(&world, servers::KNOT, &zone::questions(), 4, &[]);
        }),
        trial("unbound_says_the_same_through_namegate", || {
            let world = world();
            let mut servers = Servers::new(&world);
            servers.nsd(&world);
            servers.unbound(&world);
            // unbound 1.17 makes up what is below a DNAME, and not always the same.
            let made_up = |question: &Question| question.name.to_ascii_lowercase().contains(".dn");
            let questions = zone::questions().into_iter().filter(|question| !made_up(question));
            same_answers(&world, servers::UNBOUND, &questions.collect::<Vec<_>>(), 4, &[]);
        }),
        trial("dnsdist_over_tls_says_the_same_through_namegate", || encrypted("tls://203.0.113.63#dns.peers.example")),
        trial("dnsdist_over_https_says_the_same_through_namegate", || {
            encrypted("https://203.0.113.63/dns-query#dns.peers.example");
        }),
    ]
}

/// nsd behind dnsdist, which namegate asks over TLS or HTTPS and the other pod in plain.
#[track_caller]
fn encrypted(upstream: &str) {
    let world = world();
    let mut servers = Servers::new(&world);
    servers.nsd(&world);
    let authority = servers.dnsdist(&world);
    let upstream = format!("dns.upstreams={upstream}");
    let authority = format!("dns.upstream_ca={authority}");
    let settings = ["--set", &upstream, "--set", &authority];
    same_answers(&world, servers::DNSDIST, &zone::questions(), 4, &settings);
}

/// `payment-processor` may ask the servers anything; names below one suffix may be reached.
#[track_caller]
fn world() -> World {
    let world = World::new(Options { topology: Topology::Routed });
    let servers = [servers::NSD, servers::KNOT, servers::UNBOUND, servers::DNSDIST].map(|last| {
        let [v4, v6] = addresses(last);
        format!("{v4}/32, \"{v6}/128\"")
    });
    let rules = format!(
        "  - toCIDR: [{}]\n    toPorts:\n    - ports: [{{port: \"53\", protocol: ANY}}]\n      \
         rules: {{dns: [{{matchPattern: \"*\"}}]}}\n  \
         - toFQDNs: [{{matchPattern: \"**.{}\"}}]\n    toPorts: [{{ports: [{{port: \"443\", protocol: TCP}}]}}]\n",
        servers.join(", "),
        zone::SELECTED
    );
    let policy = snapshot::policy("payment-processor", &rules);
    snapshot::with_policy(&world.directory.join("snapshot"), &policy);
    world
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            (self.tcp, "tcp"),
            (self.edns, "edns"),
            (self.dnssec_ok, "DO"),
            (self.authentic_data, "AD"),
            (self.checking_disabled, "CD"),
        ];
        let words: Vec<&str> = words.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
        write!(f, "({})", words.join(" "))
    }
}

/// What came back, in the order of the questions.
type Replies = Vec<Option<Vec<u8>>>;

/// How much was compared.
struct Compared {
    pairs: usize,
}

/// Asks every `share`-th question, and panics with what differs.
#[track_caller]
fn same_answers(world: &World, server: u8, questions: &[Question], share: usize, settings: &[&str]) -> Compared {
    let started = now();
    let resolver = server == servers::UNBOUND;
    let server = SocketAddr::new(addresses(server)[0], 53);
    let questions: Vec<&Question> = questions.iter().step_by(share).collect();
    let batches: Vec<(Way, Vec<(&Question, String)>)> = WAYS
        .into_iter()
        .map(|way| {
            // Each way has its own share, so that together they meet every pair.
            let own = questions.iter().enumerate().filter(|(at, _)| at % way.each == way.each / 2);
            (way, own.map(|(_, question)| (*question, message(question, way))).collect())
        })
        .collect();
    let ask = |who: &Agent| -> Vec<Replies> {
        batches.iter().map(|(way, batch)| ask_all(who, server, *way, batch)).collect()
    };
    // A resolver's first answers may differ from its later ones: it has to look for them.
    if resolver {
        ask(&world.rep);
    }
    let direct = ask(&world.rep);
    let over_udp: Vec<Replies> = batches
        .iter()
        .map(|(way, batch)| match way.tcp {
            true => ask_all(&world.rep, server, Way { tcp: false, ..*way }, &as_datagrams(batch, *way)),
            false => vec![None; batch.len()],
        })
        .collect();
    let more = ["--set", "dns.queries_per_second=0", "--set", "dns.queries_in_flight=4096"];
    let mut differences: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut compared = 0;
    for (cache, passes) in [("off", 1), ("on", 2)] {
        let cache_setting = format!("dns.cache={cache}");
        let daemon = Daemon::start_quiet(world, &[&more[..], settings, &["--set", &cache_setting]].concat());
        for pass in 1..=passes {
            let through = ask(&world.pay);
            for (at, (way, batch)) in batches.iter().enumerate() {
                for (number, (question, _)) in batch.iter().enumerate() {
                    compared += 1;
                    let aged = (!resolver).then_some(if cache == "on" { AGED } else { 0 });
                    let small = !way.tcp && (!way.edns || !settings.is_empty());
                    let allowed = Allowed { aged, glue_may_miss: small || is_selected(&question.name) };
                    let [through, direct, over_udp] =
                        [&through, &direct, &over_udp].map(|replies| replies[at][number].as_deref());
                    if let Some((kind, seen)) = of_either(through, direct, over_udp, allowed) {
                        let Question { name, qtype } = question;
                        let line = format!("cache {cache}, pass {pass}: {name} {} {way}: {seen}", type_text(*qtype));
                        differences.entry(kind).or_default().push(line);
                    }
                }
            }
        }
        // The control: it was the cache that answered, or was not.
        let kept: f64 =
            ["from=\"hit\"", "from=\"hot\""].map(|from| daemon.metric("namegate_answers_total", &[from])).iter().sum();
        let asked: usize = batches.iter().map(|(_, batch)| batch.len()).sum();
        let enough = if cache == "on" { kept > 0.5 * asked as f64 } else { kept == 0.0 };
        assert!(enough, "cache {cache}: {kept} answers were kept ones, of {asked} asked {passes} times");
        drop(daemon);
    }
    let pairs = questions.len();
    let count: usize = differences.values().map(Vec::len).sum();
    eprintln!(
        "{compared} comparisons of {pairs} names and types at {server}, {count} differences, {:.1} s",
        started.elapsed().as_secs_f64()
    );
    let shown = differences
        .iter()
        .map(|(kind, lines)| format!("{} in {kind}\n  {}", lines.len(), lines[..lines.len().min(SHOWN)].join("\n  ")));
    assert!(count == 0, "{}", shown.collect::<Vec<_>>().join("\n"));
    Compared { pairs }
}

/// In what a reply differs from the server's own, and from what it says over UDP if that is given and whole.
fn of_either(
    through: Option<&[u8]>,
    direct: Option<&[u8]>,
    over_udp: Option<&[u8]>,
    allowed: Allowed,
) -> Option<Difference> {
    let Some(direct) = direct else { return Some(("no reply of the server itself", String::new())) };
    let Some(through) = through else { return Some(("no reply", String::new())) };
    let why = difference(direct, through, allowed)?;
    let as_datagram = over_udp.filter(|reply| u16_at(reply, 2).is_some_and(|flags| flags & TC == 0));
    as_datagram.is_none_or(|reply| difference(reply, through, allowed).is_some()).then_some(why)
}

/// The same questions as namegate asks them.
fn as_datagrams<'a>(batch: &[(&'a Question, String)], way: Way) -> Vec<(&'a Question, String)> {
    batch.iter().map(|(question, _)| (*question, message(question, Way { edns: true, ..way }))).collect()
}

fn ask_all(who: &Agent, server: SocketAddr, way: Way, batch: &[(&Question, String)]) -> Replies {
    let messages = batch.iter().map(|(_, message)| message.clone()).collect();
    who.ask_many(Many { server, tcp: way.tcp, messages, at_once: 100, within_ms: 60_000 })
}

fn is_selected(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(&format!(".{}", zone::SELECTED))
}

/// The question as octets, hexadecimal.
fn message(question: &Question, way: Way) -> String {
    let flags = RD | if way.authentic_data { AD } else { 0 } | if way.checking_disabled { CD } else { 0 };
    let mut octets = Vec::new();
    for word in [0, flags, 1, 0, 0, u16::from(way.edns)] {
        octets.extend_from_slice(&word.to_be_bytes());
    }
    octets.extend_from_slice(&wire(&question.name));
    octets.extend_from_slice(&question.qtype.to_be_bytes());
    octets.extend_from_slice(&[0, 1]);
    if way.edns {
        octets.extend_from_slice(&[0, 0, 41, 0x04, 0xd0, 0, 0, u8::from(way.dnssec_ok) << 7, 0, 0, 0]);
    }
    crate::lab::agent::hex(&octets)
}

/// A name's labels. Not hickory's: it refuses some that servers have.
fn wire(name: &str) -> Vec<u8> {
    let mut labels = vec![Vec::new()];
    let mut octets = name.bytes();
    while let Some(octet) = octets.next() {
        let label = labels.last_mut().expect("never empty");
        match octet {
            b'.' => labels.push(Vec::new()),
            b'\\' => match octets.next().expect("something is escaped") {
                digit @ b'0'..=b'9' => {
                    let value = |digit: u8| u16::from(digit - b'0');
                    let rest = octets.by_ref().take(2).fold(value(digit), |sum, digit| sum * 10 + value(digit));
                    label.push(rest as u8);
                }
                plain => label.push(plain),
            },
            plain => label.push(plain),
        }
    }
    labels.push(Vec::new());
    labels.iter().flat_map(|label| [&[label.len() as u8], &label[..]].concat()).collect()
}
