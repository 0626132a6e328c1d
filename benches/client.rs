//! This program inside a namespace of the world: a client that asks and connects, and the server that it reaches.

use std::io::{BufRead, Read, Write};
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::lab::clock::now;
use super::{percentile, round, world};

/// How long a reply may take before the query is sent again.
const REPLY: Duration = Duration::from_secs(2);
/// Longer than the first SYN retransmit, so that a lost SYN shows as one.
const CONNECT: Duration = Duration::from_secs(3);
/// For connections that must not come about: an allowed one takes a few milliseconds.
const REFUSED: Duration = Duration::from_millis(500);

/// Serves if the command line asks for it: `client KIND FIRST COUNT THREADS`, `tcp SERVER SECONDS THREADS`, `accept PORT`.
pub fn serve_if_asked(arguments: &[String]) -> bool {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u32>().expect("a number");
    match words[..] {
        ["client", kind, first, count, threads] => {
            println!("{}", client(kind == "ask", number(first), number(count), number(threads)));
            true
        }
        ["tcp", server, seconds, threads] => {
            let server = SocketAddr::new(server.parse().expect("an address"), 53);
            println!(
                "{}",
                one_query_a_connection(server, Duration::from_secs(number(seconds).into()), number(threads))
            );
            true
        }
        ["accept", port] => {
            accept(port.parse().expect("a port"));
            true
        }
        _ => false,
    }
}

/// What came of one name.
#[derive(Default)]
struct Outcome {
    answered: bool,
    asked_again: u32,
    reply_us: f64,
    connected: bool,
    retransmits: u32,
    refused: bool,
    connect_us: f64,
}

/// For each name: asks it (if `ask`) and connects to its address as soon as the reply is there.
fn client(ask: bool, first: u32, count: u32, threads: u32) -> Value {
    let next = AtomicU32::new(first);
    let start = now();
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let work = || {
            let mut outcomes = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= first + count {
                    return outcomes;
                }
                outcomes.push(attempt(ask, i));
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a client thread ends")).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let how_many = |which: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| which(outcome)).count();
    let spread = |value: fn(&Outcome) -> f64, of: fn(&Outcome) -> bool| {
        let mut values: Vec<f64> = outcomes.iter().filter(|outcome| of(outcome)).map(value).collect();
        values.sort_by(f64::total_cmp);
        [0.5, 0.99, 1.0].map(|share| round(percentile(&values, share), 0))
    };
    json!({
        "attempts": outcomes.len(),
        "answered": how_many(|outcome| outcome.answered),
        "queries_sent_again": outcomes.iter().map(|outcome| outcome.asked_again).sum::<u32>(),
        "connected_first_syn": how_many(|outcome| outcome.connected && outcome.retransmits == 0),
        "connected_after_retransmit": how_many(|outcome| outcome.connected && outcome.retransmits > 0),
        "refused": how_many(|outcome| outcome.refused),
        "reply_us_p50_p99_max": spread(|outcome| outcome.reply_us, |outcome| outcome.answered),
        "connect_us_p50_p99_max": spread(|outcome| outcome.connect_us, |outcome| outcome.connected),
        "seconds": round(seconds, 2),
    })
}

fn attempt(ask: bool, i: u32) -> Outcome {
    let mut outcome = Outcome::default();
    let wanted = world::address(i);
    if ask {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a UDP socket");
        socket.connect((world::RESOLVER, 53)).expect("a route to the resolver");
        socket.set_read_timeout(Some(REPLY)).expect("a timeout can be set");
        let query = query(&format!("n{i}"), i as u16);
        let start = now();
        let found = (0..3).find_map(|turn| {
            outcome.asked_again = turn;
            let _ = socket.send(&query);
            let mut reply = [0; 1232];
            let length = socket.recv(&mut reply).ok()?;
            answer(&reply[..length], i as u16)
        });
        outcome.reply_us = start.elapsed().as_secs_f64() * 1e6;
        outcome.answered = found == Some(wanted);
        if !outcome.answered {
            return outcome;
        }
    }
    let start = now();
    let to = SocketAddr::V4(SocketAddrV4::new(wanted, 443));
    match TcpStream::connect_timeout(&to, if ask { CONNECT } else { REFUSED }) {
        Ok(stream) => {
            outcome.connect_us = start.elapsed().as_secs_f64() * 1e6;
            outcome.connected = true;
            outcome.retransmits = retransmits(&stream);
            reset_on_close(&stream);
        }
        Err(error) => outcome.refused = error.kind() == std::io::ErrorKind::ConnectionRefused,
    }
    outcome
}

/// Connects, asks one name, takes its answer and resets, over and over for a while.
fn one_query_a_connection(server: SocketAddr, time: Duration, threads: u32) -> Value {
    let next = AtomicU32::new(0);
    let start = now();
    let exchange = |i: u32| -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&server, REPLY)?;
        stream.set_read_timeout(Some(REPLY))?;
        reset_on_close(&stream);
        let query = query(&format!("q{}", i % world::QUERY_NAMES), i as u16);
        stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], &query].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply)?;
        Ok(answer(&reply, i as u16).is_some())
    };
    let outcomes: Vec<(bool, f64)> = std::thread::scope(|scope| {
        let work = || {
            let mut outcomes = Vec::new();
            while start.elapsed() < time {
                let began = now();
                let answered = exchange(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(false);
                outcomes.push((answered, began.elapsed().as_secs_f64() * 1e6));
            }
            outcomes
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a client thread ends")).collect()
    });
    let mut times: Vec<f64> = outcomes.iter().filter(|(answered, _)| *answered).map(|(_, us)| *us).collect();
    times.sort_by(f64::total_cmp);
    let spread = [0.5, 0.99, 1.0].map(|share| round(percentile(&times, share), 0));
    json!({
        "answered": times.len(),
        "failed": outcomes.len() - times.len(),
        "qps": round(times.len() as f64 / start.elapsed().as_secs_f64(), 0),
        "us_p50_p99_max": spread,
    })
}

/// A query for the A record of `label`.bench.example.
fn query(label: &str, id: u16) -> Vec<u8> {
    let mut message = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in [label, "bench", "example"] {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The address of the one A record in the answer section, which follows the question.
fn answer(reply: &[u8], id: u16) -> Option<Ipv4Addr> {
    if reply.get(..2)? != id.to_be_bytes() || reply.get(3)? & 15 != 0 || reply.get(6..8)? != [0, 1] {
        return None;
    }
    let question = 12 + reply[12..].iter().position(|octet| *octet == 0)? + 5;
    // Owner (a pointer), type, class, TTL, length.
    let record = reply.get(question..question + 16)?;
    (record[2..4] == [0, 1] && record[10..12] == [0, 4])
        .then(|| Ipv4Addr::new(record[12], record[13], record[14], record[15]))
}

/// How often the kernel sent a segment of this connection again: so far only the SYN can be meant.
fn retransmits(stream: &TcpStream) -> u32 {
    // SAFETY: plain numbers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes at most `length` octets to `info`.
    let failed = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &mut length)
    };
    assert_eq!(failed, 0, "TCP_INFO is there since Linux 2.4");
    info.tcpi_total_retrans
}

/// Ends with RST: no TIME_WAIT of thousands of connections stays behind.
fn reset_on_close(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Accepts on every address; a line on standard input asks how many it has accepted so far.
///
/// What a client has reset stays in the queue until it is accepted, so the queue is long and two threads empty it.
fn accept(port: u16) {
    static ACCEPTED: AtomicU64 = AtomicU64::new(0);
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a TCP socket");
    listener.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).expect("the port is free");
    listener.listen(world::BACKLOG as i32).expect("it can listen");
    for _ in 0..2 {
        let listener = TcpListener::from(listener.try_clone().expect("a descriptor is free"));
        // Closed with FIN; the client's RST removes what is left.
        std::thread::spawn(move || {
            listener.incoming().flatten().for_each(|_| _ = ACCEPTED.fetch_add(1, Ordering::Relaxed));
        });
    }
    for _ in std::io::stdin().lock().lines().map_while(Result::ok) {
        println!("{}", ACCEPTED.load(Ordering::Relaxed));
        let _ = std::io::stdout().flush();
    }
}
