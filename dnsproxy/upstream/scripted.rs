//! A DNS server for tests that says what a script tells it to, true or forged. On loopback only.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::engine::wire::{HEADER, skip_plain_name};

/// A query as the server got it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub octets: Vec<u8>,
    pub from: SocketAddr,
    pub tcp: bool,
    /// How many came before it, UDP and TCP counted apart.
    pub nth: usize,
    /// On which connection it came, from 1; 0: UDP.
    pub connection: usize,
}

/// What the server does next.
pub enum Say {
    /// Sends this back.
    Reply(Vec<u8>),
    /// Sends it from another port (UDP only).
    Forge(Vec<u8>),
    /// Does nothing for a while; on UDP others wait as well.
    Wait(Duration),
    /// Sends octets on the connection, as they are.
    Octets(Vec<u8>),
    /// Closes the connection, with FIN.
    Close,
    /// Closes the connection, with RST.
    Reset,
}

pub struct Scripted {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Asked>>>,
    ended: Arc<AtomicBool>,
}

impl Scripted {
    /// Over UDP and TCP.
    pub fn start(script: impl Fn(&Asked) -> Vec<Say> + Send + Sync + 'static) -> Scripted {
        Scripted::start_with(None, script)
    }

    /// Over TLS; it hears what is sent to it over UDP as well.
    pub fn over_tls(
        config: Arc<ServerConfig>,
        script: impl Fn(&Asked) -> Vec<Say> + Send + Sync + 'static,
    ) -> Scripted {
        Scripted::start_with(Some(config), script)
    }

    fn start_with(
        tls: Option<Arc<ServerConfig>>,
        script: impl Fn(&Asked) -> Vec<Say> + Send + Sync + 'static,
    ) -> Scripted {
        let (udp, tcp) = (0..16)
            .find_map(|_| {
                let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
                let tcp = TcpListener::bind(udp.local_addr().expect("an address")).ok()?;
                Some((udp, tcp))
            })
            .expect("a port free for UDP and TCP");
        let address = udp.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let script = Arc::new(script);
        udp.set_read_timeout(Some(Duration::from_millis(20))).expect("the option");
        tcp.set_nonblocking(true).expect("the option");
        let hear = {
            let seen = seen.clone();
            move |octets: &[u8], from, connection| {
                let tcp = connection > 0;
                let mut seen = seen.lock().expect("the list");
                let nth = seen.iter().filter(|asked: &&Asked| asked.tcp == tcp).count();
                let asked = Asked { octets: octets.to_vec(), from, tcp, nth, connection };
                seen.push(asked.clone());
                asked
            }
        };
        let (over_tcp, heard, stop) = (script.clone(), hear.clone(), ended.clone());
        thread::spawn(move || {
            let mut connection = 0;
            while !stop.load(Ordering::Relaxed) {
                let Ok((stream, from)) = tcp.accept() else {
                    thread::sleep(Duration::from_millis(2));
                    continue;
                };
                connection += 1;
                let (script, heard) = (over_tcp.clone(), heard.clone());
                let said = move |octets: &[u8]| script(&heard(octets, from, connection));
                stream.set_nonblocking(false).expect("the option");
                let raw = stream.try_clone().expect("a second handle");
                match tls.clone().map(ServerConnection::new) {
                    None => drop(thread::spawn(move || converse(stream, &raw, said))),
                    Some(session) => {
                        let stream = StreamOwned::new(session.expect("a configuration"), stream);
                        thread::spawn(move || converse(stream, &raw, said));
                    }
                }
            }
        });
        let stop = ended.clone();
        thread::spawn(move || {
            let elsewhere = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            let mut buffer = [0; 4096];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = udp.recv_from(&mut buffer) else { continue };
                for say in script(&hear(&buffer[..length], from, 0)) {
                    match say {
                        Say::Reply(reply) => drop(udp.send_to(&reply, from)),
                        Say::Forge(reply) => drop(elsewhere.send_to(&reply, from)),
                        Say::Wait(time) => thread::sleep(time),
                        Say::Octets(_) | Say::Close | Say::Reset => panic!("only on a connection"),
                    }
                }
            }
        });
        Scripted { address, seen, ended }
    }

    /// What was asked so far.
    pub fn seen(&self) -> Vec<Asked> {
        self.seen.lock().expect("the list").clone()
    }

    pub fn count(&self, tcp: bool) -> usize {
        self.seen().iter().filter(|asked| asked.tcp == tcp).count()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Answers on one connection until it ends.
fn converse(mut stream: impl Read + Write, raw: &TcpStream, said: impl Fn(&[u8]) -> Vec<Say>) {
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut octets = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut octets).is_err() {
            return;
        }
        for say in said(&octets) {
            match say {
                Say::Reply(reply) => {
                    let _ = stream.write_all(&[&(reply.len() as u16).to_be_bytes()[..], &reply].concat());
                }
                Say::Forge(_) => panic!("only UDP is forged"),
                Say::Wait(time) => thread::sleep(time),
                Say::Octets(octets) => drop(stream.write_all(&octets)),
                Say::Close => return drop(raw.shutdown(std::net::Shutdown::Both)),
                Say::Reset => {
                    let _ = socket2::SockRef::from(raw).set_linger(Some(Duration::ZERO));
                    return;
                }
            }
            let _ = stream.flush();
        }
    }
}

/// The reply to `query` with these records, each a line `owner ttl type data` (A, AAAA, CNAME); `@` is the name asked
/// for.
pub fn answer(query: &[u8], records: &[&str]) -> Vec<u8> {
    let question_end = skip_plain_name(query, HEADER).expect("a name") + 4;
    let mut reply = query[..question_end].to_vec();
    reply[2] |= 0x80;
    reply[3] |= 0x80;
    reply[4..12].copy_from_slice(&[0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    for line in records {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [owner, ttl, kind, data] = words[..] else { panic!("four words, not {line}") };
        let (rtype, rdata) = match kind {
            "A" => (1u16, data.parse::<std::net::Ipv4Addr>().expect("an address").octets().to_vec()),
            "AAAA" => (28, data.parse::<std::net::Ipv6Addr>().expect("an address").octets().to_vec()),
            "CNAME" => (5, wire(data)),
            "HEX65" => (
                65,
                (0..data.len()).step_by(2).map(|at| u8::from_str_radix(&data[at..at + 2], 16).expect("hex")).collect(),
            ),
            other => panic!("no {other}"),
        };
        reply.extend(if owner == "@" { vec![0xc0, 0x0c] } else { wire(owner) });
        reply.extend(rtype.to_be_bytes());
        reply.extend([0, 1]);
        reply.extend(ttl.parse::<u32>().expect("seconds").to_be_bytes());
        reply.extend((rdata.len() as u16).to_be_bytes());
        reply.extend(rdata);
    }
    reply
}

/// The name in a query, as text in lower case without the final dot.
pub fn name_in(query: &[u8]) -> String {
    let end = skip_plain_name(query, HEADER).expect("a name");
    let name = crate::engine::name::Name::from_wire(&query[HEADER..end]).expect("a name");
    name.to_string().trim_end_matches('.').to_owned()
}

/// `change`, applied to the octets.
pub fn with(mut octets: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut octets);
    octets
}

fn wire(name: &str) -> Vec<u8> {
    crate::engine::name::Name::parse(name).expect("a name").as_wire().to_vec()
}
