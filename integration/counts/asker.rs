//! Asks a server in rounds, and answers what it forwards.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::server::{Kind, ROUND, WARM_UP};

/// Different names a round: less than a worker keeps at hand.
const NAMES: usize = 32;

/// Heap allocations of the worker in so many rounds.
pub fn allocations(kind: Kind, rounds: usize) -> u64 {
    let own = std::env::current_exe().expect("the path of this program");
    let (mut asker, mut counts) = (Asker::start(Command::new(own), kind), Vec::new());
    for _ in 0..WARM_UP + rounds + 1 {
        counts.push(asker.round());
    }
    asker.end();
    counts[WARM_UP + rounds] - counts[WARM_UP]
}

/// Runs the server in `command` (its arguments are added) for so many rounds.
pub fn play(command: Command, kind: Kind, rounds: usize) {
    let mut asker = Asker::start(command, kind);
    for _ in 0..WARM_UP + rounds {
        asker.round();
    }
    asker.end();
}

struct Asker {
    server: Child,
    gate: Option<ChildStdin>,
    said: ChildStdout,
    client: UdpSocket,
}

impl Asker {
    fn start(mut command: Command, kind: Kind) -> Asker {
        let upstream = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let port = upstream.local_addr().expect("an address").port();
        std::thread::spawn(move || answer(&upstream));
        command.args(["serve", &port.to_string(), kind.name()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = command.spawn().expect("the server starts");
        let (gate, mut said) = (server.stdin.take(), server.stdout.take().expect("piped"));
        let port = heard(&mut said);
        let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        client.connect(("127.0.0.1", u16::try_from(port).expect("a port"))).expect("connected");
        client.set_read_timeout(Some(Duration::from_secs(60))).expect("the option");
        Asker { server, gate, said, client }
    }

    /// One round; what the server had allocated when it began.
    fn round(&mut self) -> u64 {
        self.client.send(&query(0)).expect("sent");
        let allocated = heard(&mut self.said);
        for at in 1..ROUND {
            self.client.send(&query(at)).expect("sent");
        }
        self.gate.as_mut().expect("open").write_all(&[1]).expect("the server waits");
        let mut reply = [0; 512];
        let mut missing: Vec<usize> = (0..ROUND).collect();
        while !missing.is_empty() {
            let length = self.client.recv(&mut reply).expect("a reply");
            let reply = &reply[..length];
            // ID; QR, NOERROR; one question, one answer.
            assert_eq!((reply[2] & 0x80, reply[3] & 15, &reply[4..8]), (0x80, 0, &[0, 1, 0, 1][..]), "{reply:?}");
            let id = usize::from(u16::from_be_bytes([reply[0], reply[1]]));
            missing.retain(|at| *at != id);
        }
        allocated
    }

    fn end(mut self) {
        // The server waits at the gate of a round that never comes.
        self.client.send(&query(0)).expect("sent");
        heard(&mut self.said);
        drop(self.gate.take());
        assert!(self.server.wait().expect("the server ends").success());
    }
}

fn heard(said: &mut ChildStdout) -> u64 {
    let mut number = [0; 8];
    said.read_exact(&mut number).expect("the server says a number");
    u64::from_le_bytes(number)
}

/// The query `at` of a round, which is its ID.
fn query(at: usize) -> Vec<u8> {
    let label = format!("name-{}", at % NAMES);
    let mut message = [&(at as u16).to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]].concat();
    message.push(label.len() as u8);
    message.extend(label.as_bytes());
    message.extend(b"\x04test\0\0\x01\0\x01");
    message.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    message
}

/// Answers every query with one address.
fn answer(upstream: &UdpSocket) {
    let mut buffer = [0; 512];
    while let Ok((length, from)) = upstream.recv_from(&mut buffer) {
        let end = 12 + buffer[12..length].iter().position(|octet| *octet == 0).expect("a name") + 5;
        let mut reply = buffer[..end].to_vec();
        reply[2] |= 0x80;
        reply[3] = 0x80;
        reply[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
        reply.extend(b"\xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\xcb\0\x71");
        // The number of the name is the last octet of its address.
        reply.push(buffer[12 + usize::from(buffer[12])]);
        let _ = upstream.send_to(&reply, from);
    }
}
