//! The agent: this binary again, inside a namespace, doing what it is asked on its standard input.
//!
//! One JSON line a request, one a reply, matched by number; every request runs on a thread of its own, so a slow one
//! (a connection that waits for its timeout) holds up nobody. When its input ends, the agent ends.

pub mod client;
mod many;
pub mod names;
mod octets;
mod pace;
pub mod packets;
pub mod rogue;
mod rush;
mod script;
pub mod servers;
pub mod sibling;
mod spray;
pub mod traffic;

use std::io::{BufRead, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

pub use script::{Forgery, Script};

/// What can be asked of an agent. Times are milliseconds.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub enum Request {
    /// Connects over TCP and closes again.
    Connect { to: SocketAddr, within_ms: u64 },
    /// Connects over TCP and keeps the connection for [`Request::Exchange`].
    Open { to: SocketAddr, within_ms: u64 },
    /// Makes a UDP socket with this one peer and keeps it for [`Request::Exchange`], once a datagram came back.
    OpenUdp { to: SocketAddr, within_ms: u64 },
    /// Sends an octet on a kept connection and waits for its echo.
    Exchange { connection: u32, within_ms: u64 },
    /// Sends octets on a kept connection until its other end or `for_ms` is reached; for revocation tests.
    Chatter { connection: u32, every_ms: u64, for_ms: u64 },
    /// Closes a kept connection.
    Close { connection: u32 },
    /// Sends so many octets over a connection of its own and compares their echo.
    Bulk { to: SocketAddr, octets: usize, within_ms: u64 },
    /// Sends a datagram and waits for its echo.
    Datagram { to: SocketAddr, octets: usize, within_ms: u64 },
    /// Asks a name server one question.
    Ask(Question),
    /// Sends these octets as a DNS message and returns what came back, hexadecimal.
    AskRaw { server: SocketAddr, tcp: bool, message: String, within_ms: u64 },
    /// Sends frames as they stand, past the whole network stack; hexadecimal.
    Inject { interface: String, frames: Vec<String> },
    /// Sends frames as they stand, in turn, from the moment that the interface is there until the time is over.
    Hammer { interface: String, frames: Vec<String>, for_ms: u64, pause_us: u64 },
    /// Records every frame on an interface until [`Request::Captured`].
    Capture { interface: String },
    /// What has been recorded so far.
    Captured { capture: u32, end: bool },
    /// What has been recorded since the last time, and forgets it.
    Drain { capture: u32 },
    /// An echo server: TCP.
    ServeTcp { at: SocketAddr },
    /// An echo server: UDP.
    ServeUdp { at: SocketAddr },
    /// An HTTPS server with a certificate for `names`, signed by an authority that is written to `authority`.
    ServeTls { at: SocketAddr, names: Vec<String>, authority: String },
    /// A name server on UDP and TCP.
    ServeNames { at: Vec<SocketAddr> },
    /// A name server that misbehaves, on UDP and TCP.
    ServeRogue { at: Vec<SocketAddr> },
    /// A name server that says octets as they are given, on UDP and TCP.
    ServeOctets { at: Vec<SocketAddr> },
    /// What that one says to a name from now on.
    SayOctets { name: String, say: Octets },
    /// Sends these octets as a DNS message from a socket without a peer, and returns the first datagram that comes back from
    /// anyone, hexadecimal.
    AskAnyone { server: SocketAddr, message: String, within_ms: u64 },
    /// What the name server says from now on.
    Say { name: String, qtype: String, script: Script },
    /// What the name server at an address does to every question from now on; none: it answers.
    Fail { at: IpAddr, script: Option<Script> },
    /// What it has been asked, and forgets.
    Asked,
    /// Asks fresh names and connects to each address at once, `at_once` at a time.
    Rush(Rush),
    /// Asks these questions, `at_once` at a time.
    AskMany(Many),
    /// Asks at a steady rate, each question once.
    Pace(Pace),
    /// Sends frames as they stand from many interfaces, from the moment that each is there.
    Spray(Spray),
    /// What another container of a pod tries.
    Try(sibling::Attempt),
}

/// What an agent answers.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub enum Reply {
    Done,
    Reached {
        reach: Reach,
        micros: u64,
    },
    Opened {
        connection: u32,
    },
    Answered(Answered),
    Bytes(Option<String>),
    Capturing {
        capture: u32,
    },
    Frames(Vec<Frame>),
    /// How many frames.
    Sent(u64),
    Names(Vec<String>),
    Rushed(Rushed),
    Paced(Paced),
    /// In the order of what was asked.
    Sprayed(Vec<Sprayed>),
    /// Hexadecimal, their numbers 0.
    Many(Vec<Option<String>>),
    /// 0, or an error's number.
    Tried(i32),
    Failed(String),
}

/// How an attempt to reach something ended.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// It answered.
    Reached,
    /// RST, or ICMP "administratively prohibited" or "port unreachable".
    Refused,
    /// ICMP "no route" or "host unreachable".
    Unreachable,
    /// Nothing came back.
    Silent,
    /// An established connection ended.
    Ended,
}

/// The name in namegate's own certificate.
pub const TLS_NAME: &str = "dns.test";

/// A question to a name server.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Question {
    pub server: SocketAddr,
    pub name: String,
    pub qtype: String,
    pub tcp: bool,
    /// Over TLS, with a certificate for [`TLS_NAME`] that this file's authority vouches for.
    pub tls: Option<String>,
    /// The EDNS payload size; none: no OPT record.
    pub edns: Option<u16>,
    pub within_ms: u64,
}

/// What the name server said, or nothing.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct Answered {
    /// `NOERROR`, `REFUSED`, …; empty: no reply within the time.
    pub rcode: String,
    pub addresses: Vec<IpAddr>,
    /// All records of the answer section as text: `type data`.
    pub records: Vec<String>,
    /// The least TTL of the answer section, seconds.
    pub ttl: u32,
    pub truncated: bool,
    /// RFC 8914: code and text.
    pub errors: Vec<(u16, String)>,
    pub micros: u64,
}

/// See [`Request::Rush`].
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Rush {
    pub server: SocketAddr,
    /// `{}` becomes the number.
    pub pattern: String,
    pub first: u32,
    pub count: u32,
    pub port: u16,
    pub at_once: u32,
    /// Connect to `addresses` (base + number) without asking: the control.
    pub unasked_base: Option<IpAddr>,
    pub within_ms: u64,
}

/// How a rush went.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct Rushed {
    pub answered: u32,
    pub connected: u32,
    /// The first few failures in words.
    pub failures: Vec<String>,
    pub micros: u64,
}

/// See [`Request::AskMany`].
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Many {
    pub server: SocketAddr,
    pub tcp: bool,
    /// Whole messages, hexadecimal; their numbers don't matter.
    pub messages: Vec<String>,
    pub at_once: usize,
    pub within_ms: u64,
}

/// See [`Request::Pace`].
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Pace {
    pub server: SocketAddr,
    /// What most questions ask.
    pub same: String,
    /// What the others ask; `{}` becomes a number that is new each time.
    pub fresh: String,
    /// Over UDP; a few more over TCP.
    pub per_second: u32,
    pub for_ms: u64,
}

/// How that went.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct Paced {
    pub asked: u64,
    /// In words, those that were not answered with an address.
    pub lost: Vec<String>,
    /// The longest wait for an answer over UDP, microseconds.
    pub slowest_us: u64,
}

/// See [`Request::Spray`].
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Spray {
    pub from: Vec<SprayFrom>,
    pub for_ms: u64,
}

/// One interface, and what is sent from it in turn, hexadecimal.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct SprayFrom {
    pub interface: String,
    pub denied: Vec<String>,
    pub allowed: Vec<String>,
}

/// How that went for one interface.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Sprayed {
    /// When it was first seen, nanoseconds since 1970; none: never.
    pub appeared_ns: Option<u64>,
    /// Frames that its end of the pair took.
    pub sent: u64,
}

/// See [`Request::SayOctets`].
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct Octets {
    /// Bits of the header's flags beside QR, RD and RA: a code, TC.
    pub flags: u16,
    /// Records of the answer, authority and additional sections.
    pub counts: [u16; 3],
    /// What follows the question, hexadecimal.
    pub tail: String,
    pub delay_ms: u64,
}

/// A recorded frame.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Frame {
    /// When the kernel saw it; nanoseconds since 1970.
    pub wall_ns: u64,
    pub outgoing: bool,
    /// The frame with its tag put back where the kernel had stripped it; hexadecimal.
    pub bytes: String,
}

impl Frame {
    /// The frame's octets.
    pub fn octets(&self) -> Vec<u8> {
        unhex(&self.bytes)
    }
}

#[derive(Serialize, Deserialize)]
struct Numbered<T> {
    number: u64,
    body: T,
}

/// If this process was started as an agent, serves until its input ends and doesn't return.
pub fn serve_if_asked() {
    if std::env::args().nth(1).as_deref() == Some("agent") {
        // `agent UID CAPABILITIES`: as another container of the pod.
        let number = |at: usize| std::env::args().nth(at).and_then(|text| text.parse::<u64>().ok());
        if let (Some(uid), Some(keep)) = (number(2), number(3)) {
            sibling::drop_privileges(uid as u32, keep);
        }
        serve();
        std::process::exit(0);
    }
}

fn serve() {
    let out = std::sync::Arc::new(Mutex::new(std::io::stdout()));
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let Ok(Numbered { number, body }) = serde_json::from_str::<Numbered<Request>>(&line) else {
            eprintln!("agent: not a request: {line}");
            continue;
        };
        let out = out.clone();
        std::thread::spawn(move || {
            let body = answer(body);
            let line = serde_json::to_string(&Numbered { number, body }).expect("replies are plain data");
            let mut out = out.lock().expect("no panic while locked");
            let _ = writeln!(out, "{line}");
            let _ = out.flush();
        });
    }
}

fn answer(request: Request) -> Reply {
    match request {
        Request::Connect { to, within_ms } => traffic::connect(to, within_ms),
        Request::Open { to, within_ms } => traffic::open(to, within_ms),
        Request::OpenUdp { to, within_ms } => traffic::open_udp(to, within_ms),
        Request::Exchange { connection, within_ms } => traffic::exchange(connection, within_ms),
        Request::Chatter { connection, every_ms, for_ms } => traffic::chatter(connection, every_ms, for_ms),
        Request::Close { connection } => traffic::close(connection),
        Request::Bulk { to, octets, within_ms } => traffic::bulk(to, octets, within_ms),
        Request::Datagram { to, octets, within_ms } => traffic::datagram(to, octets, within_ms),
        Request::Ask(question) => Reply::Answered(traffic::ask(&question)),
        Request::AskRaw { server, tcp, message, within_ms } => {
            Reply::Bytes(traffic::ask_raw(server, tcp, &unhex(&message), within_ms).map(|bytes| hex(&bytes)))
        }
        Request::Inject { interface, frames } => packets::inject(&interface, &frames),
        Request::Hammer { interface, frames, for_ms, pause_us } => {
            packets::hammer(&interface, &frames, for_ms, pause_us)
        }
        Request::Capture { interface } => packets::capture(&interface),
        Request::Captured { capture, end } => packets::captured(capture, end),
        Request::Drain { capture } => packets::drain(capture),
        Request::ServeTcp { at } => servers::tcp(at),
        Request::ServeUdp { at } => servers::udp(at),
        Request::ServeTls { at, names, authority } => servers::tls(at, names, &authority),
        Request::ServeNames { at } => names::serve(&at),
        Request::ServeRogue { at } => rogue::serve(&at),
        Request::ServeOctets { at } => octets::serve(&at),
        Request::SayOctets { name, say } => octets::say(name, say),
        Request::AskAnyone { server, message, within_ms } => octets::ask_anyone(server, &unhex(&message), within_ms),
        Request::Say { name, qtype, script } => names::say(&name, &qtype, script),
        Request::Fail { at, script } => names::fail(at, script),
        Request::Asked => names::asked(),
        Request::Rush(rush) => rush::run(&rush),
        Request::AskMany(many) => many::run(&many),
        Request::Pace(pace) => pace::run(&pace),
        Request::Spray(spray) => spray::run(&spray),
        Request::Try(attempt) => sibling::attempt(&attempt),
    }
}

fn failed(what: &str, error: impl std::fmt::Display) -> Reply {
    Reply::Failed(format!("{what}: {error}"))
}

/// Octets as hexadecimal text.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|half| char::from(DIGITS[usize::from(half)]));
    bytes.iter().flat_map(digits).collect()
}

/// The octets of hexadecimal text; blanks are skipped.
pub fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|digit| Some(digit.to_digit(16)? as u8)).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
