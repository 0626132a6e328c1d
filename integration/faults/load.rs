//! The workload: keeps allowed connections going, opens new ones, asks 200 queries a second, and tries all the time what
//! is denied. It runs in the pod, in a process of its own.
//!
//! Asked in words ([`super::helper`]): it begins with what is denied, `pause` ends that, `go` begins all of it; `take` says what
//! happened since the last time ([`Seen`]), `since KIND NS` when a query of that kind was answered first after that moment.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::helper;
use crate::lab::agent::traffic::{connected, reach_of};
use crate::lab::clock::{mono_ns, now};
use crate::lab::world::Family;

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// The last number of the address that `one.example.net` stands for; granted.
pub const ONE: u8 = 101;
/// The same of every `*.load.example.net`.
pub const FRESH: u8 = 102;
/// An address that no name stands for.
pub const STRANGER: u8 = 200;
/// TCP and UDP ports that are allowed.
pub const TCP_PORT: u16 = 443;
pub const UDP_PORT: u16 = 4433;
/// A label that occurs in denied names only.
pub const DENIED_LABEL: &str = "denied";

/// Denied over TCP: an unknown address, a port that no rule has, the resolver beside its Service.
pub const DENIED_TCP: [(u8, u16); 3] = [(STRANGER, TCP_PORT), (ONE, 5432), (53, 5353)];
/// Denied over UDP: an unknown address, the resolver beside its Service, a resolver that no policy names.
pub const DENIED_UDP: [(u8, u16); 3] = [(STRANGER, UDP_PORT), (53, 5353), (54, 53)];

/// Between two octets on a kept connection, two attempts to open one, two queries.
const EXCHANGE: Duration = Duration::from_millis(50);
const OPEN: Duration = Duration::from_millis(40);
const QUERY: Duration = Duration::from_millis(5);
/// Without an echo for so long, a connection is dead.
const DEAD: Duration = Duration::from_secs(5);

/// What happened since it was asked for last.
#[derive(Serialize, Deserialize, Default, Debug)]
pub struct Seen {
    /// Allowed connections that ended.
    pub died: Vec<String>,
    /// New allowed connections that did not come to be.
    pub failed: Vec<String>,
    /// Denied attempts that were answered.
    pub passed: Vec<String>,
    pub opened: u64,
    pub exchanged: u64,
    pub answered: u64,
    pub denied: u64,
    /// The longest time between two echoes of one connection, so far.
    pub stall_ms: u64,
    /// How long the connection that has waited longest waits now.
    pub waiting_ms: u64,
    /// How many connections are kept.
    pub kept: u64,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    go: AtomicBool,
    paused: AtomicBool,
    /// The last echo of each kept connection.
    echoes: Mutex<Vec<Arc<AtomicU64>>>,
    /// When a reply came, of which kind.
    answers: Mutex<Vec<(u64, u16)>>,
}

/// Kinds of queries; in the first bits of their numbers.
const DENIED: u16 = 0;
const SAME: u16 = 1;
const NEW: u16 = 2;

pub fn serve() {
    let shared: &'static Shared = Box::leak(Box::default());
    for family in FAMILIES {
        for target in DENIED_TCP {
            spawn(move || try_denied_tcp(shared, at(family, target)));
        }
        spawn(move || try_denied_udp(shared, DENIED_UDP.map(|target| at(family, target))));
        spawn(move || open_new(shared, at(family, (ONE, TCP_PORT))));
        for _ in 0..2 {
            spawn(move || keep_tcp(shared, at(family, (ONE, TCP_PORT))));
        }
        spawn(move || keep_udp(shared, at(family, (ONE, UDP_PORT))));
        spawn(move || ask(shared, family));
    }
    helper::serve(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["pause"] => {
                shared.paused.store(true, Ordering::Relaxed);
                // Longer than any attempt takes.
                sleep(Duration::from_millis(200));
                "true".into()
            }
            ["go"] => {
                shared.paused.store(false, Ordering::Relaxed);
                shared.go.store(true, Ordering::Relaxed);
                "true".into()
            }
            ["take"] => serde_json::to_string(&take(shared)).expect("plain data"),
            ["since", kind, from] => {
                let from: u64 = from.parse().unwrap_or(u64::MAX);
                let kind = if kind == "new" { NEW } else { SAME };
                let answers = shared.answers.lock().expect("no panic while locked");
                let first = answers.iter().find(|(when, which)| *when > from && *which >= kind).map(|(when, _)| *when);
                serde_json::to_string(&first).expect("plain data")
            }
            _ => panic!("asked {line:?}"),
        }
    });
}

fn at(family: Family, (last, port): (u8, u16)) -> SocketAddr {
    SocketAddr::new(family.outside(last), port)
}

fn take(shared: &Shared) -> Seen {
    let mut seen = shared.seen.lock().expect("no panic while locked");
    let taken = Seen { stall_ms: seen.stall_ms, ..Seen::default() };
    let mut taken = std::mem::replace(&mut *seen, taken);
    let echoes = shared.echoes.lock().expect("no panic while locked");
    taken.kept = echoes.len() as u64;
    let oldest = echoes.iter().map(|echo| echo.load(Ordering::Relaxed)).min();
    taken.waiting_ms = oldest.map_or(0, |oldest| mono_ns().saturating_sub(oldest) / 1_000_000);
    taken
}

impl Shared {
    fn note(&self, write: impl FnOnce(&mut Seen)) {
        write(&mut self.seen.lock().expect("no panic while locked"));
    }

    fn wait_while_paused(&self) {
        while self.paused.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(5));
        }
    }

    fn wait_to_go(&self) {
        while !self.go.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(5));
        }
    }
}

fn try_denied_tcp(shared: &Shared, to: SocketAddr) {
    loop {
        shared.wait_while_paused();
        // Refused ones hear at once; the others must not wait for long.
        let reached = TcpStream::connect_timeout(&to, Duration::from_millis(60)).map(close).is_ok();
        shared.note(|seen| {
            seen.denied += 1;
            if reached {
                seen.passed.push(format!("a denied connection to {to} was accepted"));
            }
        });
        sleep(Duration::from_millis(20));
    }
}

fn try_denied_udp(shared: &Shared, targets: [SocketAddr; 3]) {
    loop {
        for to in targets {
            shared.wait_while_paused();
            let payload = question(SAME << 14, "one.example.net", to.is_ipv4());
            if let Ok(socket) = connected(to, 1) {
                let _ = socket.send(&payload);
            }
            shared.note(|seen| seen.denied += 1);
            sleep(Duration::from_millis(8));
        }
    }
}

fn open_new(shared: &Shared, to: SocketAddr) {
    shared.wait_to_go();
    loop {
        let start = now();
        let opened = TcpStream::connect_timeout(&to, Duration::from_secs(2)).map(close);
        shared.note(|seen| match opened {
            Ok(()) => seen.opened += 1,
            Err(error) => {
                let took = start.elapsed();
                seen.failed.push(format!("no new connection to {to}: {:?} after {took:?}", reach_of(&error)));
            }
        });
        sleep(OPEN);
    }
}

/// Thousands of connections in TIME_WAIT would exhaust the ports.
fn close(stream: TcpStream) {
    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

fn keep_tcp(shared: &Shared, to: SocketAddr) {
    shared.wait_to_go();
    loop {
        let Ok(stream) = TcpStream::connect_timeout(&to, Duration::from_secs(1)) else {
            sleep(EXCHANGE);
            continue;
        };
        let (_, _) = (stream.set_nodelay(true), stream.set_read_timeout(Some(DEAD)));
        keep(shared, &format!("the TCP connection to {to}"), || {
            (&stream).write_all(b"e").map_err(|error| error.to_string())?;
            let mut octet = [0; 16];
            match (&stream).read(&mut octet) {
                Ok(0) => Err("its other end closed it".into()),
                Ok(_) => Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Err(format!("no echo for {DEAD:?}")),
                Err(error) => Err(error.to_string()),
            }
        });
    }
}

fn keep_udp(shared: &Shared, to: SocketAddr) {
    shared.wait_to_go();
    loop {
        let Ok(socket) = connected(to, 100) else {
            sleep(EXCHANGE);
            continue;
        };
        let mut octet = [0; 16];
        if socket.send(b"e").and_then(|_| socket.recv(&mut octet)).is_err() {
            sleep(EXCHANGE);
            continue;
        }
        keep(shared, &format!("the UDP flow to {to}"), || {
            let start = now();
            // Datagrams may be lost; a refusal is heard at once and may be of the last one.
            while start.elapsed() < DEAD {
                if socket.send(b"e").and_then(|_| socket.recv(&mut octet)).is_ok() {
                    return Ok(());
                }
                sleep(Duration::from_millis(5));
            }
            Err(format!("no echo for {DEAD:?}"))
        });
    }
}

/// Exchanges until it dies.
fn keep(shared: &Shared, what: &str, mut exchange: impl FnMut() -> Result<(), String>) {
    let echo = Arc::new(AtomicU64::new(mono_ns()));
    shared.echoes.lock().expect("no panic while locked").push(echo.clone());
    loop {
        let result = exchange();
        let (before, after) = (echo.load(Ordering::Relaxed), mono_ns());
        match result {
            Ok(()) => {
                echo.store(after, Ordering::Relaxed);
                let gap = (after - before) / 1_000_000;
                shared.note(|seen| {
                    seen.exchanged += 1;
                    seen.stall_ms = seen.stall_ms.max(gap);
                });
            }
            Err(why) => {
                shared.echoes.lock().expect("no panic while locked").retain(|other| !Arc::ptr_eq(other, &echo));
                shared.note(|seen| seen.died.push(format!("{what} died: {why}")));
                return;
            }
        }
        sleep(EXCHANGE);
    }
}

/// Half of the queries: every other one for a name that is asked all the time, the rest for new ones and denied ones.
fn ask(shared: &'static Shared, family: Family) {
    let socket = UdpSocket::bind(if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" }).expect("a socket");
    // Not connected: a query that nobody hears must not make the next one fail.
    let hears = socket.try_clone().expect("a descriptor can be copied");
    spawn(move || {
        let mut octets = [0; 1500];
        loop {
            match hears.recv(&mut octets) {
                Ok(length) if length >= 12 => heard(shared, &octets[..length]),
                _ => sleep(Duration::from_millis(1)),
            }
        }
    });
    // Names of this run and family alone.
    let own = format!("{}{}", std::process::id(), family.pick("a", "b"));
    for number in 0u32.. {
        let sequence = (number & 0x3fff) as u16;
        let message = match number % 4 {
            0 if shared.paused.load(Ordering::Relaxed) => None,
            0 => Some(question(DENIED << 14 | sequence, &format!("{DENIED_LABEL}.example.org"), family == Family::V4)),
            _ if !shared.go.load(Ordering::Relaxed) => None,
            2 => {
                let name = format!("n{own}{number}.load.example.net");
                Some(question(NEW << 14 | sequence, &name, family == Family::V4))
            }
            _ => Some(question(SAME << 14 | sequence, "one.example.net", family == Family::V4)),
        };
        if let Some(message) = message {
            let _ = socket.send_to(&message, family.kube_dns());
        }
        sleep(QUERY * 2); // two families
    }
}

fn heard(shared: &Shared, reply: &[u8]) {
    let kind = u16::from_be_bytes([reply[0], reply[1]]) >> 14;
    let records = u16::from_be_bytes([reply[6], reply[7]]);
    if reply[3] & 15 != 0 || records == 0 {
        return;
    }
    if kind == DENIED {
        shared.note(|seen| seen.passed.push("a denied name was answered".into()));
    } else {
        shared.note(|seen| seen.answered += 1);
        shared.answers.lock().expect("no panic while locked").push((mono_ns(), kind));
    }
}

fn question(number: u16, name: &str, v4: bool) -> Vec<u8> {
    let mut message = number.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, if v4 { 1 } else { 28 }, 0, 1]);
    message
}

/// Whether the policy lets the workload send this.
pub fn is_allowed(to: IpAddr, tcp: bool, port: u16) -> bool {
    let is = |last: u8| FAMILIES.iter().any(|family| family.outside(last) == to);
    match (tcp, port) {
        (true, TCP_PORT) => is(ONE) || is(FRESH),
        (false, UDP_PORT) => is(ONE),
        (true, super::bench::RUSH_PORT) => match to {
            IpAddr::V4(to) => to.octets()[..2] == [198, 19],
            IpAddr::V6(to) => to.segments()[..4] == [0x2001, 0xdb8, 0x19, 0],
        },
        _ => false,
    }
}
