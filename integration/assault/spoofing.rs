//! Forged replies. The forger sees every question on the wire and sends its reply at once, while the true one comes late;
//! all is right in it but one thing. The control is a stub that believes whoever answers first.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::answers::{asked_name, must_arrive};
use crate::bench::{Case, Shown, Side, Way};
use crate::lab::agent::{Octets, Reply, Request, unhex};
use crate::lab::clock;
use crate::lab::frame::{ethernet, ip, udp};
use crate::lab::world::{LAN_MAC, NODE_MAC, PODS};
use crate::message::{A, IN, address_record, name, octets, query};
use crate::model::RESOLVER;

const CLASS: &str = "spoofing";
/// What the forger says.
const TARGET: &str = "203.0.113.230";
/// What it says where it is the control.
const BELIEVED: &str = "203.0.113.231";
/// The number of the client's own question.
const ID: u16 = 0x4e47;
/// How long the true reply takes; a flood of guesses has longer, and is over by then.
const LATE_MS: u64 = 1000;
const FLOOD_LATE_MS: u64 = 3500;
/// The ports that a Linux machine asks from.
const PORTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;
/// Numbers that are tried, the right one among them.
const NUMBERS: u16 = 16_384;

/// What the forger saw of a question.
#[derive(Clone)]
struct Seen {
    asker: SocketAddr,
    id: u16,
    /// Name, type and class, with the asker's letters.
    question: Vec<u8>,
}

/// What it sends; at first all of it right.
#[derive(Clone)]
struct Forged {
    from: SocketAddr,
    to: SocketAddr,
    id: u16,
    flags: u16,
    questions: u16,
    question: Vec<u8>,
    answer: Vec<u8>,
}

type Falsify = fn(&mut Forged);

#[rustfmt::skip]
const WAYS: &[(&str, &str, Falsify)] = &[
    ("the next number", "an ID one further on", |f| f.id = f.id.wrapping_add(1)),
    ("the number with its octets swapped", "an ID in the other order", |f| f.id = f.id.swap_bytes() ^ u16::from(f.id == f.id.swap_bytes())),
    ("another address of the server", "the right port of somebody else", |f| f.from.set_ip("203.0.113.61".parse().expect("an address"))),
    ("another port of the server", "the right address, port 5353", |f| f.from.set_port(5353)),
    ("the name in other letters", "each letter's case turned over", |f| f.question.iter_mut().for_each(turn)),
    ("another name", "the question is for another name that policy selects", |f| f.question[1] = b'q'),
    ("another type", "the question is for AAAA", |f| { let at = f.question.len() - 3; f.question[at] = 28; }),
    ("another class", "the question is of class chaos", |f| { let at = f.question.len() - 1; f.question[at] = 3; }),
    ("a query", "QR=0", |f| f.flags &= 0x7fff),
    ("another operation", "opcode 4", |f| f.flags |= 0x2000),
    ("no question", "QDCOUNT=0 and the answer at once", |f| { f.questions = 0; f.answer = [&f.question[..f.question.len() - 4], &f.answer[2..]].concat(); f.question.clear(); }),
    ("two questions", "the right one and one more", |f| { f.questions = 2; f.question.extend(f.question.clone()); }),
    ("a cut reply", "TC=1 with an answer in it", |f| f.flags |= 0x0200),
    ("a failure", "SERVFAIL with an answer in it", |f| f.flags |= 2),
    ("an answer of another name", "the owner is another name that policy selects", |f| { let data = f.answer.split_off(2); f.answer = [name("other.good.example"), data].concat(); }),
];

pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = WAYS
        .iter()
        .map(|(what, tries, falsify)| {
            Case::new(CLASS, format!("all right but {what}"), tries, move |side, mark| {
                attempt(side, mark, LATE_MS, |side, forged| {
                    let mut forged = forged.clone();
                    falsify(&mut forged);
                    if side.is_beside() {
                        // The pod's kernel says to a stranger that nobody listens to him.
                        side.is_asked_by(forged.from.ip());
                    }
                    side.world.outside.inject("eth0", &[forged.frame(&side.uplink(), LAN_MAC)]);
                })
            })
        })
        .collect();
    let tries = "nothing is wrong in it: namegate believes it, or what the others hold would prove nothing";
    cases.push(Case::new(CLASS, "all right", tries, |side, mark| {
        let target: IpAddr = BELIEVED.parse().expect("an address");
        attempt(side, mark, LATE_MS, |side, forged| {
            let forged = Forged { answer: address_record(target, 1), ..forged.clone() };
            side.world.outside.inject("eth0", &[forged.frame(&side.uplink(), LAN_MAC)]);
        });
        must_arrive(side, target);
        Shown::Both { control: true, arrived: false }
    }));
    let tries = "the neighbour answers in the resolver's place, with everything right";
    cases.push(Case::new(CLASS, "all right but from the neighbour", tries, |side, mark| {
        attempt(side, mark, LATE_MS, |side, forged| {
            side.world.rep.inject("eth0", &[forged.frame(NODE_MAC, PODS[1].mac)])
        })
    }));
    let tries = "who colludes with the client knows its number, and tries every port that there is a question from: 28 232 guesses";
    let every_port = Case::new(CLASS, "every port with the client's number", tries, |side, mark| {
        attempt(side, mark, FLOOD_LATE_MS, |side, forged| {
            let guess = |port: u16| {
                let mut guess = Forged { id: ID, ..forged.clone() };
                guess.to.set_port(port);
                guess
            };
            flood(side, PORTS.map(guess), &guess(forged.to.port()));
        })
    });
    let tries = "who knows the port tries 16 384 numbers, the right one too, in lower case";
    let every_number = Case::new(CLASS, "many numbers at the right port in lower case", tries, |side, mark| {
        attempt(side, mark, FLOOD_LATE_MS, |side, forged| {
            let lower = Forged { question: forged.question.to_ascii_lowercase(), ..forged.clone() };
            let guess = |number: u16| Forged { id: lower.id ^ number ^ 0x1555, ..lower.clone() };
            flood(side, (0..NUMBERS).map(guess), &lower);
        })
    });
    cases.extend([every_port.long(), every_number.long()]);
    cases
}

/// Asks, lets the forger answer before the server does, and sends a SYN: guarded in any case, else only if the stub believed.
fn attempt(side: &Side, mark: &str, late_ms: u64, forge: impl Fn(&Side, &Forged)) -> Shown {
    let asked = asked_name(mark);
    let target: IpAddr = TARGET.parse().expect("an address");
    let server: SocketAddr = RESOLVER.parse().expect("an address");
    let say = Octets { delay_ms: late_ms, ..Octets::default() };
    side.world.outside.done(Request::SayOctets { name: asked.clone(), say });
    let watch = side.world.outside.capture("eth0");
    let message = crate::lab::agent::hex(&query(ID, &name(&asked), A, IN));
    let under_way = side.world.pay.begin(Request::AskAnyone { server, message, within_ms: 3 * late_ms });
    let mut seen = None;
    clock::wait_until(Duration::from_millis(late_ms * 2 / 3), || {
        seen = watch.frames().iter().find_map(|frame| read(&frame.octets(), &asked));
        seen.is_some()
    });
    let Some(seen) = seen else {
        side.loses(format!("the question for {asked} was never seen"));
        return Shown::Frames(0);
    };
    drop(watch);
    let forged = Forged {
        from: server,
        to: seen.asker,
        id: seen.id,
        flags: 0x8180,
        questions: 1,
        question: seen.question,
        answer: address_record(target, 60),
    };
    forge(side, &forged);
    let reply = match under_way.wait() {
        Reply::Bytes(bytes) => bytes.map(|text| unhex(&text)).unwrap_or_default(),
        other => panic!("{other:?}"),
    };
    let sought = octets(target);
    if !side.is_guarded() && !reply.windows(sought.len()).any(|octets| octets == sought) {
        return Shown::Frames(0);
    }
    side.sends(Way::Segment(443), target, mark);
    Shown::Frames(1)
}

impl Forged {
    fn frame(&self, to: &str, from: &str) -> Vec<u8> {
        let header = [self.id, self.flags, self.questions, 1, 0, 0].map(u16::to_be_bytes).concat();
        let message = [&header[..], &self.question, &self.answer].concat();
        let datagram = udp((self.from.ip(), self.from.port()), (self.to.ip(), self.to.port()), &message);
        ethernet(to, from, 0x0800, &ip(self.from.ip(), self.to.ip(), 17, &datagram))
    }
}

/// All guesses, and the one that a stub believes a few times more: of a burst the machine may lose some.
fn flood(side: &Side, guesses: impl Iterator<Item = Forged>, right: &Forged) {
    let uplink = side.uplink();
    let frames: Vec<Vec<u8>> = guesses.map(|guess| guess.frame(&uplink, LAN_MAC)).collect();
    for chunk in frames.chunks(4096) {
        side.world.outside.inject("eth0", chunk);
    }
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(20));
        side.world.outside.inject("eth0", &[right.frame(&uplink, LAN_MAC)]);
    }
}

/// A question for the name to a server's port 53, if the frame is one.
fn read(frame: &[u8], asked: &str) -> Option<Seen> {
    let packet = frame.get(14..)?;
    if frame[12..14] != [8, 0] || packet.len() < 40 || packet[9] != 17 || packet[22..24] != [0, 53] {
        return None;
    }
    let address = IpAddr::from([packet[12], packet[13], packet[14], packet[15]]);
    let message = &packet[28..];
    let end = name(asked).len() + 4;
    let question = message.get(12..12 + end)?;
    question.to_ascii_lowercase().starts_with(&name(asked)).then(|| Seen {
        asker: SocketAddr::new(address, u16::from_be_bytes([packet[20], packet[21]])),
        id: u16::from_be_bytes([message[0], message[1]]),
        question: question.to_vec(),
    })
}

fn turn(octet: &mut u8) {
    if octet.is_ascii_alphabetic() {
        *octet ^= 0x20;
    }
}
