//! What a workload does: connects, sends, asks.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, RData, RecordType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Answered, Question, Reach, Reply, TLS_NAME, failed};
use crate::lab::clock::now;

/// Kept connections, by the number that the test knows them by.
static KEPT_UDP: Mutex<Vec<Option<Arc<UdpSocket>>>> = Mutex::new(Vec::new());
/// The number of the first kept UDP socket.
const UDP: u32 = 1 << 20;
static KEPT: Mutex<Option<HashMap<u32, Arc<TcpStream>>>> = Mutex::new(None);

pub fn connect(to: SocketAddr, within_ms: u64) -> Reply {
    let start = now();
    let reach = match TcpStream::connect_timeout(&to, Duration::from_millis(within_ms)) {
        Ok(_) => Reach::Reached,
        Err(error) => reach_of(&error),
    };
    reached(reach, start)
}

pub fn open(to: SocketAddr, within_ms: u64) -> Reply {
    let start = now();
    match TcpStream::connect_timeout(&to, Duration::from_millis(within_ms)) {
        Ok(stream) => {
            let _ = stream.set_nodelay(true);
            let mut kept = KEPT.lock().expect("no panic while locked");
            let kept = kept.get_or_insert_default();
            let connection = kept.keys().max().map_or(1, |last| last + 1);
            kept.insert(connection, Arc::new(stream));
            Reply::Opened { connection }
        }
        Err(error) => reached(reach_of(&error), start),
    }
}

pub fn open_udp(to: SocketAddr, within_ms: u64) -> Reply {
    let start = now();
    let socket = match connected(to, within_ms) {
        Ok(socket) => socket,
        Err(error) => return reached(reach_of(&error), start),
    };
    match exchange_datagram(&socket, within_ms) {
        Reach::Reached => {
            let mut kept = KEPT_UDP.lock().expect("no panic while locked");
            kept.push(Some(Arc::new(socket)));
            Reply::Opened { connection: UDP + kept.len() as u32 - 1 }
        }
        other => reached(other, start),
    }
}

pub fn exchange(connection: u32, within_ms: u64) -> Reply {
    let start = now();
    if let Some(at) = connection.checked_sub(UDP) {
        let socket = KEPT_UDP.lock().expect("no panic while locked").get(at as usize).cloned().flatten();
        return match socket {
            Some(socket) => reached(exchange_datagram(&socket, within_ms), start),
            None => failed("connection", connection),
        };
    }
    match kept(connection) {
        Some(stream) => reached(exchange_octet(&stream, within_ms), start),
        None => failed("connection", connection),
    }
}

/// Sends an octet every `every_ms`, without waiting for echoes to send the next; reads what comes.
pub fn chatter(connection: u32, every_ms: u64, for_ms: u64) -> Reply {
    let Some(stream) = kept(connection) else { return failed("connection", connection) };
    let start = now();
    let _ = stream.set_read_timeout(Some(Duration::from_millis(1)));
    let mut octets = [0; 256];
    while start.elapsed() < Duration::from_millis(for_ms) {
        if let Err(error) = (&*stream).write_all(b"x") {
            return reached(ended(&error), start);
        }
        match (&*stream).read(&mut octets) {
            Ok(0) => return reached(Reach::Ended, start),
            Err(error) if !is_timeout(&error) => return reached(ended(&error), start),
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(every_ms));
    }
    reached(exchange_octet(&stream, 300), start)
}

pub fn close(connection: u32) -> Reply {
    if let Some(at) = connection.checked_sub(UDP) {
        if let Some(socket) = KEPT_UDP.lock().expect("no panic while locked").get_mut(at as usize) {
            *socket = None;
        }
        return Reply::Done;
    }
    if let Some(kept) = KEPT.lock().expect("no panic while locked").as_mut() {
        kept.remove(&connection);
    }
    Reply::Done
}

/// What comes back has to be what was sent.
pub fn bulk(to: SocketAddr, octets: usize, within_ms: u64) -> Reply {
    let start = now();
    let limit = Duration::from_millis(within_ms);
    let payload: Vec<u8> = (0..octets).map(|at| (at % 251) as u8).collect();
    let attempt = || -> std::io::Result<Reach> {
        let stream = TcpStream::connect_timeout(&to, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let mut back = vec![0; octets];
        std::thread::scope(|scope| {
            let sends = scope.spawn(|| (&stream).write_all(&payload));
            let read = (&stream).read_exact(&mut back);
            let sent = sends.join().expect("it only writes");
            sent.and(read)
        })?;
        Ok(if back == payload { Reach::Reached } else { Reach::Ended })
    };
    reached(attempt().unwrap_or_else(|error| reach_of(&error)), start)
}

pub fn datagram(to: SocketAddr, octets: usize, within_ms: u64) -> Reply {
    let start = now();
    let payload = vec![b'u'; octets];
    let attempt = || -> std::io::Result<Reach> {
        let socket = connected(to, within_ms)?;
        socket.send(&payload)?;
        let mut reply = vec![0; octets + 1];
        let length = socket.recv(&mut reply)?;
        Ok(if reply[..length] == payload { Reach::Reached } else { Reach::Silent })
    };
    reached(attempt().unwrap_or_else(|error| reach_of(&error)), start)
}

pub fn ask(question: &Question) -> Answered {
    let start = now();
    let Ok(name) = Name::from_str(&question.name) else {
        return Answered { rcode: format!("not a name: {}", question.name), ..Answered::default() };
    };
    let Ok(qtype) = RecordType::from_str(&question.qtype) else {
        return Answered { rcode: format!("not a type: {}", question.qtype), ..Answered::default() };
    };
    let mut message = Message::new(rand_id(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, qtype));
    if let Some(size) = question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size).set_version(0);
        message.set_edns(edns);
    }
    let bytes = message.to_vec().expect("a question can be written");
    let reply = match &question.tls {
        Some(authority) => ask_over_tls(question.server, authority, &bytes, question.within_ms).ok(),
        None => ask_raw(question.server, question.tcp, &bytes, question.within_ms),
    };
    let micros = start.elapsed().as_micros() as u64;
    match reply.map(|bytes| Message::from_vec(&bytes)) {
        None => Answered { micros, ..Answered::default() },
        Some(Err(error)) => Answered { rcode: format!("unreadable: {error}"), micros, ..Answered::default() },
        Some(Ok(reply)) => describe(&reply, micros),
    }
}

/// A question for addresses with RD and nothing else.
pub fn question(id: u16, name: &str, v4: bool) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let qtype = if v4 { RecordType::A } else { RecordType::AAAA };
    message.add_query(Query::query(Name::from_str(name).expect("a name"), qtype));
    message.to_vec().expect("a question can be written")
}

/// One message there, one back; UDP is asked again each second, as stubs do.
pub fn ask_raw(server: SocketAddr, tcp: bool, message: &[u8], within_ms: u64) -> Option<Vec<u8>> {
    let limit = Duration::from_millis(within_ms);
    if tcp {
        let stream = TcpStream::connect_timeout(&server, limit).ok()?;
        stream.set_read_timeout(Some(limit)).ok()?;
        return converse(stream, message).ok();
    }
    let start = now();
    let socket = connected(server, within_ms).ok()?;
    socket.send(message).ok()?;
    let mut reply = vec![0; 65_535];
    loop {
        match socket.recv(&mut reply) {
            Ok(length) if length >= 2 && reply[..2] == message[..2] => {
                reply.truncate(length);
                return Some(reply);
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return None,
            Err(_) => {}
        }
        if start.elapsed() >= limit {
            return None;
        }
    }
}

/// The same over TLS, with the server's name checked.
fn ask_over_tls(
    server: SocketAddr,
    authority: &str,
    message: &[u8],
    within_ms: u64,
) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let limit = Duration::from_millis(within_ms);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority)?)?;
    let mut config = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"dot".to_vec()];
    let client = rustls::ClientConnection::new(Arc::new(config), TLS_NAME.try_into()?)?;
    let stream = TcpStream::connect_timeout(&server, limit)?;
    stream.set_read_timeout(Some(limit))?;
    Ok(converse(rustls::StreamOwned::new(client, stream), message)?)
}

/// One message with its length there, one back.
fn converse(mut stream: impl Read + Write, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut framed = (message.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

/// A socket that hears ICMP errors about its one peer.
pub fn connected(to: SocketAddr, within_ms: u64) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(within_ms.max(1))))?;
    Ok(socket)
}

/// How an error reads to a workload.
pub fn reach_of(error: &std::io::Error) -> Reach {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::EACCES | libc::EPERM | libc::ECONNRESET) => Reach::Refused,
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH) => Reach::Unreachable,
        _ => Reach::Silent,
    }
}

fn exchange_datagram(socket: &UdpSocket, within_ms: u64) -> Reach {
    let _ = socket.set_read_timeout(Some(Duration::from_millis(within_ms.max(1))));
    let mut octets = [0; 16];
    match socket.send(b"e").and_then(|_| socket.recv(&mut octets)) {
        Ok(_) => Reach::Reached,
        Err(error) => reach_of(&error),
    }
}

fn exchange_octet(stream: &TcpStream, within_ms: u64) -> Reach {
    let _ = stream.set_read_timeout(Some(Duration::from_millis(within_ms.max(1))));
    let mut stream = stream;
    if let Err(error) = stream.write_all(b"e") {
        return ended(&error);
    }
    loop {
        let mut octets = [0; 256];
        match stream.read(&mut octets) {
            Ok(0) => return Reach::Ended,
            Ok(length) if octets[..length].contains(&b'e') => return Reach::Reached,
            Ok(_) => {}
            Err(error) => return ended(&error),
        }
    }
}

fn ended(error: &std::io::Error) -> Reach {
    if is_timeout(error) { Reach::Silent } else { Reach::Ended }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
        && error.raw_os_error() != Some(libc::ETIMEDOUT)
}

fn kept(connection: u32) -> Option<Arc<TcpStream>> {
    KEPT.lock().expect("no panic while locked").as_ref()?.get(&connection).cloned()
}

fn reached(reach: Reach, start: Instant) -> Reply {
    Reply::Reached { reach, micros: start.elapsed().as_micros() as u64 }
}

/// What a reply says, for tests.
pub fn describe(reply: &Message, micros: u64) -> Answered {
    let errors = reply
        .edns
        .iter()
        .flat_map(|edns| edns.options().as_ref().iter())
        .filter_map(|(code, option)| match option {
            EdnsOption::Unknown(15, data) if data.len() >= 2 => {
                let _ = code;
                Some((u16::from_be_bytes([data[0], data[1]]), String::from_utf8_lossy(&data[2..]).into_owned()))
            }
            _ => None,
        })
        .collect();
    Answered {
        rcode: rcode_text(u16::from(reply.metadata.response_code)),
        addresses: reply.answers.iter().filter_map(|record| record.data.ip_addr()).collect(),
        records: reply
            .answers
            .iter()
            .map(|record| format!("{} {}", record.record_type(), text(&record.data)))
            .collect(),
        ttl: reply.answers.iter().map(|record| record.ttl).min().unwrap_or(0),
        truncated: reply.metadata.truncation,
        errors,
        micros,
    }
}

fn text(data: &RData) -> String {
    data.to_string()
}

/// The mnemonic of IANA's registry, as dig prints it.
fn rcode_text(rcode: u16) -> String {
    match rcode {
        0 => "NOERROR".into(),
        1 => "FORMERR".into(),
        2 => "SERVFAIL".into(),
        3 => "NXDOMAIN".into(),
        4 => "NOTIMP".into(),
        5 => "REFUSED".into(),
        other => format!("RCODE{other}"),
    }
}

/// A fresh transaction number; unpredictability is not needed here.
fn rand_id() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) ^ (std::process::id() as u16)
}
