//! Questions at a steady rate, each sent once: what is not answered is lost.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Pace, Paced, Question, Reply, traffic};
use crate::lab::clock::now;

/// Each with its port, so that every worker of a server has its share.
const SOCKETS: usize = 16;
/// How long a reply is waited for; a stub resolver waits 5 s before it asks again.
const PATIENCE: Duration = Duration::from_secs(4);
/// Between two questions over TCP, each on a connection of its own.
const TCP_PAUSE: Duration = Duration::from_millis(20);

pub fn run(pace: &Pace) -> Reply {
    let end = now() + Duration::from_millis(pace.for_ms);
    let paced = std::thread::scope(|scope| {
        let tcp = scope.spawn(|| over_tcp(pace, end));
        let mut paced = over_udp(pace, end)
            .unwrap_or_else(|error| Paced { lost: vec![format!("the sockets: {error}")], ..Paced::default() });
        let (asked, lost) = tcp.join().expect("no panic in a lane");
        paced.asked += asked;
        paced.lost.extend(lost);
        paced
    });
    Reply::Paced(paced)
}

/// A question of its own each eighth time, else the one that everybody asks: a second's worth of them is less than one
/// endpoint may have under way, and than the name server of this lab takes at once.
fn name(pace: &Pace, number: u64) -> String {
    if number.is_multiple_of(8) { pace.fresh.replace("{}", &number.to_string()) } else { pace.same.clone() }
}

fn over_udp(pace: &Pace, end: Instant) -> std::io::Result<Paced> {
    let sockets: Vec<UdpSocket> = (0..SOCKETS)
        .map(|_| {
            let socket = traffic::connected(pace.server, 1)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<std::io::Result<_>>()?;
    let start = now();
    let between = Duration::from_secs(1) / pace.per_second.max(1);
    let mut under_way: BTreeMap<(usize, u16), (u64, Instant)> = BTreeMap::new();
    let mut paced = Paced::default();
    let mut buffer = [0; 4096];
    loop {
        while now() < end && start + between * paced.asked as u32 <= now() {
            let (number, at) = (paced.asked, paced.asked as usize % SOCKETS);
            let id = (number / SOCKETS as u64) as u16;
            let sent = sockets[at].send(&traffic::question(id, &name(pace, number), pace.server.is_ipv4()));
            if let Err(error) = sent {
                paced.lost.push(format!("question {number} was not sent: {error}"));
            }
            under_way.insert((at, id), (number, now()));
            paced.asked += 1;
        }
        for (at, socket) in sockets.iter().enumerate() {
            while let Ok(length) = socket.recv(&mut buffer) {
                let Some(id) = buffer[..length].first_chunk().map(|id| u16::from_be_bytes(*id)) else { continue };
                let Some((number, sent)) = under_way.remove(&(at, id)) else { continue };
                paced.slowest_us = paced.slowest_us.max(sent.elapsed().as_micros() as u64);
                let code = buffer[3] & 15;
                if code != 0 {
                    paced.lost.push(format!("question {number} was answered with code {code}"));
                }
            }
        }
        under_way.retain(|_, (number, sent)| {
            let waits = sent.elapsed() < PATIENCE;
            if !waits {
                paced.lost.push(format!("question {number} was not answered"));
            }
            waits
        });
        if now() >= end && under_way.is_empty() {
            return Ok(paced);
        }
        sleep(Duration::from_micros(200));
    }
}

fn over_tcp(pace: &Pace, end: Instant) -> (u64, Vec<String>) {
    let (mut asked, mut lost) = (0, Vec::new());
    while now() < end {
        let answered = traffic::ask(&Question {
            server: pace.server,
            name: name(pace, asked),
            qtype: if pace.server.is_ipv4() { "A".into() } else { "AAAA".into() },
            tcp: true,
            tls: None,
            edns: None,
            within_ms: PATIENCE.as_millis() as u64,
        });
        if answered.rcode != "NOERROR" {
            lost.push(format!("question {asked} over TCP: {:?}", answered.rcode));
        }
        asked += 1;
        sleep(TCP_PAUSE);
    }
    (asked, lost)
}
