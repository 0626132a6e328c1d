//! Thousands of questions to one server, as they stand, pipelined.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::{Many, Reply, hex, traffic, unhex};
use crate::lab::clock::now;

/// Sockets in use at a time, each on a thread of its own.
const LANES: usize = 4;
/// How long a datagram is waited for before the question is sent again.
const AGAIN: Duration = Duration::from_secs(1);

/// What came back to each, in the order of the questions.
pub fn run(many: &Many) -> Reply {
    let messages: Vec<Vec<u8>> = many.messages.iter().map(|text| unhex(text)).collect();
    let window = (many.at_once / LANES).max(1);
    let deadline = now() + Duration::from_millis(many.within_ms);
    let lanes: Vec<Vec<(usize, Option<Vec<u8>>)>> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES)
            .map(|lane| {
                let own: Vec<(usize, &Vec<u8>)> = messages.iter().enumerate().skip(lane).step_by(LANES).collect();
                scope.spawn(move || {
                    let mut lane = Lane { own, window, deadline, replies: BTreeMap::new() };
                    // What is missing at the end is reported as missing.
                    let _ = if many.tcp { lane.over_tcp(many.server) } else { lane.over_udp(many.server) };
                    lane.own.iter().enumerate().map(|(at, (index, _))| (*index, lane.replies.remove(&at))).collect()
                })
            })
            .collect();
        lanes.into_iter().map(|lane| lane.join().expect("no panic in a lane")).collect()
    });
    let mut replies = vec![None; messages.len()];
    for (index, reply) in lanes.into_iter().flatten() {
        replies[index] = reply.map(|octets| hex(&octets));
    }
    Reply::Many(replies)
}

/// A share of the questions; the place in it is the message's number on the wire.
struct Lane<'a> {
    own: Vec<(usize, &'a Vec<u8>)>,
    window: usize,
    deadline: Instant,
    replies: BTreeMap<usize, Vec<u8>>,
}

impl Lane<'_> {
    fn over_udp(&mut self, server: SocketAddr) -> std::io::Result<()> {
        let socket: UdpSocket = traffic::connected(server, 50)?;
        let mut under_way: BTreeMap<usize, Instant> = BTreeMap::new();
        let mut next = 0;
        let mut buffer = vec![0; 65_535];
        while self.replies.len() < self.own.len() && now() < self.deadline {
            while under_way.len() < self.window && next < self.own.len() {
                socket.send(&self.numbered(next))?;
                under_way.insert(next, now());
                next += 1;
            }
            if let Ok(octets) = socket.recv(&mut buffer)
                && let Some(at) = self.take(&buffer[..octets])
            {
                under_way.remove(&at);
                continue;
            }
            for (at, sent) in under_way.iter_mut().filter(|(_, sent)| sent.elapsed() > AGAIN) {
                socket.send(&self.numbered(*at))?;
                *sent = now();
            }
        }
        Ok(())
    }

    /// On one connection; a new one when the server ends it.
    fn over_tcp(&mut self, server: SocketAddr) -> std::io::Result<()> {
        while self.replies.len() < self.own.len() && now() < self.deadline {
            let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(2))?;
            stream.set_nodelay(true)?;
            let before = self.replies.len();
            if self.on_connection(&mut stream).is_err() && self.replies.len() == before {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn on_connection(&mut self, stream: &mut TcpStream) -> std::io::Result<()> {
        let wanted: Vec<usize> = (0..self.own.len()).filter(|at| !self.replies.contains_key(at)).collect();
        let mut wanted = wanted.into_iter();
        let mut under_way = 0;
        loop {
            let mut out = Vec::new();
            for at in wanted.by_ref().take(self.window - under_way) {
                let message = self.numbered(at);
                out.extend_from_slice(&(message.len() as u16).to_be_bytes());
                out.extend_from_slice(&message);
                under_way += 1;
            }
            stream.write_all(&out)?;
            if under_way == 0 {
                return Ok(());
            }
            let left = self.deadline.saturating_duration_since(now()).max(Duration::from_millis(1));
            stream.set_read_timeout(Some(left))?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut reply)?;
            if self.take(&reply).is_some() {
                under_way -= 1;
            }
        }
    }

    fn numbered(&self, at: usize) -> Vec<u8> {
        let mut message = self.own[at].1.clone();
        message[..2].copy_from_slice(&(at as u16).to_be_bytes());
        message
    }

    /// Keeps a reply that was waited for, with number 0.
    fn take(&mut self, reply: &[u8]) -> Option<usize> {
        let at = usize::from(u16::from_be_bytes([*reply.first()?, *reply.get(1)?]));
        if at >= self.own.len() || self.replies.contains_key(&at) {
            return None;
        }
        let mut reply = reply.to_vec();
        reply[..2].fill(0);
        self.replies.insert(at, reply);
        Some(at)
    }
}
