//! A name server that says octets as they are given: what no library would write. And an asker that believes anyone.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Octets, Reply, failed, hex, names, unhex};

/// Octets of a header.
const HEADER: usize = 12;

/// By the name in lower case, without the final dot.
static SAID: Mutex<BTreeMap<String, Octets>> = Mutex::new(BTreeMap::new());

pub fn say(name: String, say: Octets) -> Reply {
    SAID.lock().expect("no panic while locked").insert(name, say);
    Reply::Done
}

/// Whom nobody told what to say has nothing to say of the name: NOERROR without a record.
pub fn serve(at: &[SocketAddr]) -> Reply {
    for at in at {
        let (socket, listener) = match UdpSocket::bind(at).and_then(|udp| Ok((udp, TcpListener::bind(at)?))) {
            Ok((socket, listener)) => (Arc::new(socket), listener),
            Err(error) => return failed(&at.to_string(), error),
        };
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let Some((reply, delay_ms)) = answer(&buffer[..length]) else { continue };
                if delay_ms == 0 {
                    let _ = socket.send_to(&reply, from);
                    continue;
                }
                let socket = socket.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(delay_ms));
                    let _ = socket.send_to(&reply, from);
                });
            }
        });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || converse(stream));
            }
        });
    }
    Reply::Done
}

/// Every question of the connection, until one is none.
fn converse(mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query)?;
        let Some((reply, delay_ms)) = answer(&query) else { return Ok(()) };
        std::thread::sleep(Duration::from_millis(delay_ms));
        stream.write_all(&[&(reply.len() as u16).to_be_bytes()[..], &reply].concat())?;
    }
}

/// The reply, and when.
fn answer(query: &[u8]) -> Option<(Vec<u8>, u64)> {
    let (name, end) = question(query)?;
    let said = SAID.lock().expect("no panic while locked").get(&name).cloned();
    let said = said.or_else(|| wide(&name)).unwrap_or_default();
    names::note(name);
    let reply = [
        &query[..2],
        &(0x8180 | said.flags).to_be_bytes(),
        &[0, 1],
        &said.counts.map(u16::to_be_bytes).concat(),
        &query[HEADER..end],
        &unhex(&said.tail),
    ]
    .concat();
    Some((reply, said.delay_ms))
}

/// Of a name whose first label is "wide" and a number, unasked: forty IPv6 addresses that no other name has, for 20 seconds.
fn wide(name: &str) -> Option<Octets> {
    let number: u16 = name.split('.').next()?.strip_prefix("wide")?.parse().ok()?;
    let record = |n: u16| {
        let address = Ipv6Addr::new(0x2001, 0xdb8, 2, number.wrapping_add(1), 0, 0, 0, n + 1);
        [&[0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 20, 0, 16][..], &address.octets()].concat()
    };
    Some(Octets { counts: [40, 0, 0], tail: hex(&(0..40).flat_map(record).collect::<Vec<u8>>()), ..Octets::default() })
}

/// As the most gullible of stubs would: no port, address, number or question of the reply is looked at.
pub fn ask_anyone(server: SocketAddr, message: &[u8], within_ms: u64) -> Reply {
    let attempt = || -> std::io::Result<Vec<u8>> {
        let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.set_read_timeout(Some(Duration::from_millis(within_ms.max(1))))?;
        socket.send_to(message, server)?;
        let mut reply = vec![0; 65_535];
        let (length, _) = socket.recv_from(&mut reply)?;
        reply.truncate(length);
        Ok(reply)
    };
    Reply::Bytes(attempt().ok().map(|octets| hex(&octets)))
}

/// The name asked for, and where the question ends.
fn question(message: &[u8]) -> Option<(String, usize)> {
    let mut at = HEADER;
    let mut labels = Vec::new();
    while let octets @ 1..=63 = usize::from(*message.get(at)?) {
        labels.push(String::from_utf8_lossy(message.get(at + 1..at + 1 + octets)?).to_ascii_lowercase());
        at += 1 + octets;
    }
    message.get(at..at + 5)?;
    Some((labels.join("."), at + 5))
}
