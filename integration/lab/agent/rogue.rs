//! A name server that misbehaves. The first label of the name says how; what stands behind the last octet of its own address
//! is right as 198.19.1.N and wrong as 198.19.66.N.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use super::{Reply, failed, names};

/// Octets of a header.
const HEADER: usize = 12;
const QR: u16 = 0x8000;
const TC: u16 = 0x0200;
/// An answer of a resolver: QR, RD, RA.
const ANSWER: u16 = 0x8180;

/// Where the wrong answers point to.
pub fn wrong(server: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 19, 66, server)
}

/// Where the right ones do.
pub fn right(server: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 19, 1, server)
}

pub fn serve(at: &[SocketAddr]) -> Reply {
    for at in at {
        let sockets = UdpSocket::bind(at).and_then(|udp| Ok((Arc::new(udp), TcpListener::bind(at)?)));
        let (udp, tcp) = match sockets {
            Ok(sockets) => sockets,
            Err(error) => return failed(&at.to_string(), error),
        };
        let at = *at;
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((octets, from)) = udp.recv_from(&mut buffer) {
                let (udp, asked) = (udp.clone(), Asked::read(&buffer[..octets], at));
                std::thread::spawn(move || asked.map(|asked| asked.over_udp(&udp, from)));
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                std::thread::spawn(move || converse(stream, at));
            }
        });
    }
    Reply::Done
}

/// A query, and the server that it reached.
struct Asked {
    id: u16,
    /// Name, type and class, with the asker's letters.
    question: Vec<u8>,
    edns: bool,
    how: String,
    right: Ipv4Addr,
    wrong: Ipv4Addr,
    at: SocketAddr,
}

impl Asked {
    fn read(message: &[u8], at: SocketAddr) -> Option<Asked> {
        let id = u16::from_be_bytes([*message.first()?, *message.get(1)?]);
        let mut end = HEADER;
        let mut name = String::new();
        while let octets @ 1.. = usize::from(*message.get(end)?) {
            name += &String::from_utf8_lossy(message.get(end + 1..end + 1 + octets)?);
            name.push('.');
            end += 1 + octets;
        }
        let question = message.get(HEADER..end + 5)?.to_vec();
        let IpAddr::V4(own) = at.ip() else { return None };
        let [.., last] = own.octets();
        let how = name.split('.').next()?.to_ascii_lowercase();
        let edns = message.get(11) == Some(&1);
        Some(Asked { id, question, edns, how, right: right(last), wrong: wrong(last), at })
    }

    /// A message with the address for the question.
    fn answer(&self, id: u16, flags: u16, question: &[u8], address: Ipv4Addr) -> Vec<u8> {
        let mut message = Vec::new();
        for word in [id, flags, 1, 1, 0, 0] {
            message.extend_from_slice(&word.to_be_bytes());
        }
        message.extend_from_slice(question);
        message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        message.extend_from_slice(&address.octets());
        message
    }

    fn good(&self) -> Vec<u8> {
        self.answer(self.id, ANSWER, &self.question, self.right)
    }

    /// The wrong address in what would be the answer.
    fn bad(&self) -> Vec<u8> {
        self.answer(self.id, ANSWER, &self.question, self.wrong)
    }

    /// The question and a flag that it was too long.
    fn cut(&self) -> Vec<u8> {
        let mut message = self.good();
        message.truncate(HEADER + self.question.len());
        message[2..4].copy_from_slice(&(ANSWER | TC).to_be_bytes());
        message[6..8].fill(0);
        message
    }

    /// Another first letter of the name: another name.
    fn renamed(&self) -> Vec<u8> {
        let mut question = self.question.clone();
        question[1] = b'q';
        self.answer(self.id, ANSWER, &question, self.wrong)
    }

    fn with_flags(&self, flags: u16) -> Vec<u8> {
        self.answer(self.id, flags, &self.question, self.wrong)
    }

    fn over_udp(&self, socket: &UdpSocket, to: SocketAddr) {
        names::note(format!("{} over udp", self.how));
        let send = |message: &[u8]| drop(socket.send_to(message, to));
        let first = |message: Vec<u8>| {
            send(&message);
            send(&self.good());
        };
        let end = self.question.len() - 4;
        match self.how.as_str() {
            "late" => {
                std::thread::sleep(Duration::from_millis(1500));
                send(&self.good());
            }
            "too-late" => {
                std::thread::sleep(Duration::from_secs(7));
                send(&self.good());
            }
            "silent" => {}
            "number" => first(self.answer(self.id.wrapping_add(1), ANSWER, &self.question, self.wrong)),
            "every-number" => {
                // A guesser that does not know the number tries some. The right one is not among them.
                for guess in 1..=200 {
                    send(&self.answer(self.id.wrapping_add(guess), ANSWER, &self.question, self.wrong));
                }
                send(&self.good());
            }
            "name" => first(self.renamed()),
            "type" => {
                let mut question = self.question.clone();
                question[end + 1] = 28;
                first(self.answer(self.id, ANSWER, &question, self.wrong));
            }
            "class" => {
                let mut question = self.question.clone();
                question[end + 3] = 3;
                first(self.answer(self.id, ANSWER, &question, self.wrong));
            }
            "case" => {
                let flip = |octet: &u8| if octet.is_ascii_alphabetic() { octet ^ 0x20 } else { *octet };
                let question: Vec<u8> = self.question[..end].iter().map(flip).collect();
                first(self.answer(self.id, ANSWER, &[&question, &self.question[end..]].concat(), self.wrong));
            }
            "port" | "address" => {
                let from = match self.how.as_str() {
                    "port" => (self.at.ip(), 0).into(),
                    _ => SocketAddr::new(Ipv4Addr::new(203, 0, 113, 54).into(), self.at.port()),
                };
                if let Ok(other) = UdpSocket::bind(from) {
                    let _ = other.send_to(&self.bad(), to);
                }
                send(&self.good());
            }
            "two" => {
                send(&self.good());
                send(&self.bad());
                std::thread::sleep(Duration::from_millis(200));
                send(&self.bad());
            }
            "query" => first(self.with_flags(ANSWER & !QR)),
            "opcode" => first(self.with_flags(ANSWER | 0x2000)),
            "no-question" => {
                let mut message = self.bad();
                message.drain(HEADER..HEADER + self.question.len());
                message[4..6].fill(0);
                first(message);
            }
            "two-questions" => {
                let mut message = self.bad();
                message[5] = 2;
                message.splice(HEADER..HEADER, self.question.clone());
                first(message);
            }
            "header" => first(self.bad()[..HEADER].to_vec()),
            "empty" => first(Vec::new()),
            "malformed" => {
                let mut message = self.bad();
                let pointer = HEADER + self.question.len();
                message[pointer] = 0xff; // to behind the end
                message[pointer + 1] = 0xff;
                first(message);
            }
            "counts" => {
                let mut message = self.bad();
                message[6..12].fill(0xff);
                first(message);
            }
            "half" => send(&self.bad()[..HEADER + self.question.len() + 7]),
            "long" => {
                let mut message = self.bad();
                message.resize(60_000, 0);
                send(&message);
            }
            "truncated" => send(&self.with_flags(ANSWER | TC)),
            "edns" if self.edns => {
                let mut message = self.cut();
                message[2..4].copy_from_slice(&(ANSWER | 1).to_be_bytes()); // FORMERR
                send(&message);
            }
            "servfail" => {
                let mut message = self.cut();
                message[2..4].copy_from_slice(&(ANSWER | 2).to_be_bytes());
                send(&message);
            }
            how if how.starts_with("tcp") => send(&self.cut()),
            _ => send(&self.good()),
        }
    }

    /// Afterwards the connection ends.
    fn over_tcp(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        names::note(format!("{} over tcp", self.how));
        let framed = |message: &[u8]| [&(message.len() as u16).to_be_bytes(), message].concat();
        let slowly = |stream: &mut TcpStream, pause: u64| {
            framed(&self.good()).into_iter().try_for_each(|octet| {
                std::thread::sleep(Duration::from_millis(pause));
                stream.write_all(&[octet])
            })
        };
        match self.how.as_str() {
            "tcp-truncated" => stream.write_all(&framed(&self.with_flags(ANSWER | TC))),
            "tcp-late" => {
                std::thread::sleep(Duration::from_millis(1500));
                stream.write_all(&framed(&self.good()))
            }
            "tcp-silent" => {
                std::thread::sleep(Duration::from_secs(7));
                Ok(())
            }
            "tcp-slow" => slowly(stream, 20),
            "tcp-crawling" => slowly(stream, 150),
            "tcp-reset" => socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO)),
            "tcp-closed" => Ok(()),
            "tcp-half" => stream.write_all(&framed(&self.bad())[..20]),
            "tcp-reset-half" => {
                stream.write_all(&framed(&self.bad())[..20])?;
                socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO))
            }
            "tcp-number" => {
                let other = self.answer(self.id.wrapping_add(1), ANSWER, &self.question, self.wrong);
                stream.write_all(&[framed(&other), framed(&self.good())].concat())
            }
            "tcp-name" => stream.write_all(&[framed(&self.renamed()), framed(&self.good())].concat()),
            "tcp-empty" => stream.write_all(&[vec![0, 0], framed(&self.good())].concat()),
            "tcp-short" => stream.write_all(&[framed(&self.bad()[..5]), framed(&self.good())].concat()),
            "tcp-two" => stream.write_all(&[framed(&self.good()), framed(&self.bad())].concat()),
            "tcp-malformed" => stream.write_all(&framed(&self.bad()[..HEADER + self.question.len() + 7])),
            "tcp-64k" => stream.write_all(&framed(&self.filled())),
            _ => stream.write_all(&framed(&self.good())),
        }
    }

    /// The answer, and TXT records of nobody's name until it has 65 535 octets.
    fn filled(&self) -> Vec<u8> {
        let mut message = self.good();
        let mut records = 0_u16;
        while message.len() < 65_535 {
            // 11 octets before the data, 2 at least of it; the last one fills up.
            let left = 65_535 - message.len() - 11;
            let octets = if left < 512 { left.min(256) } else { 256 };
            let octets = if left - octets < 13 && left != octets { left - 13 } else { octets };
            message.extend_from_slice(&[0, 0, 16, 0, 1, 0, 0, 0, 60]);
            message.extend_from_slice(&(octets as u16).to_be_bytes());
            message.push((octets - 1) as u8);
            message.resize(message.len() + octets - 1, b'x');
            records += 1;
        }
        message[10..12].copy_from_slice(&records.to_be_bytes());
        message
    }
}

fn converse(mut stream: TcpStream, at: SocketAddr) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut query)?;
    Asked::read(&query, at).map_or(Ok(()), |asked| asked.over_tcp(&mut stream))
}
