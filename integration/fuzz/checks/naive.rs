//! A message by the letter of RFC 1035, without a thought of speed: where records stand, and what a name says.
//!
//! hickory-proto refuses a message for what stands in any record; namegate reads only what it needs. [`neutral`] bridges
//! that: it makes the records that nobody needs opaque, octet for octet in place, after which both must agree.

use std::net::IpAddr;

use hickory_proto::op::Message;
use hickory_proto::rr::Name;

pub const HEADER: usize = 12;
pub const A: u16 = 1;
pub const CNAME: u16 = 5;
pub const AAAA: u16 = 28;
pub const OPT: u16 = 41;
pub const SVCB: u16 = 64;
pub const HTTPS: u16 = 65;
/// A type for private use (RFC 6895 section 3.1): its data is opaque to everyone.
const OPAQUE: u16 = 65_400;
/// An EDNS option for local use (RFC 6891 section 9).
const OPAQUE_OPTION: u16 = 65_001;

pub struct Outline {
    /// Where the question ends.
    pub question_end: usize,
    pub records: Vec<Record>,
    /// Where the last record ends.
    pub end: usize,
}

#[derive(Clone)]
pub struct Record {
    /// 0 answer, 1 authority, 2 additional.
    pub section: usize,
    pub start: usize,
    /// Where the owner's name ends and the type starts.
    pub fixed: usize,
    /// Whether it ends with a pointer.
    points: bool,
    pub rtype: u16,
    pub class: u16,
    pub ttl: u32,
    pub data: usize,
    pub end: usize,
}

pub fn word(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from(*message.get(at)?) << 8 | u16::from(*message.get(at + 1)?))
}

/// The places of a message with one question, whose name is not compressed; `None` when something is cut off.
pub fn outline(message: &[u8]) -> Option<Outline> {
    let (name, name_end) = name(message, HEADER)?;
    if name.len() != name_end - HEADER || message.len() < name_end + 4 {
        return None;
    }
    let mut at = name_end + 4;
    let mut records = Vec::new();
    for section in 0..3 {
        for _ in 0..word(message, 6 + 2 * section)? {
            let (fixed, points) = skip(message, at)?;
            let ttl = u32::from(word(message, fixed + 4)?) << 16 | u32::from(word(message, fixed + 6)?);
            let data = fixed + 10;
            let end = data + usize::from(word(message, fixed + 8)?);
            if end > message.len() {
                return None;
            }
            let (rtype, class) = (word(message, fixed)?, word(message, fixed + 2)?);
            records.push(Record { section, start: at, fixed, points, rtype, class, ttl, data, end });
            at = end;
        }
    }
    Some(Outline { question_end: name_end + 4, records, end: at })
}

/// Where a name ends in the message, and whether with a pointer.
fn skip(message: &[u8], at: usize) -> Option<(usize, bool)> {
    let mut end = at;
    loop {
        match *message.get(end)? {
            0 => return Some((end + 1, false)),
            length @ 1..=63 => end += 1 + usize::from(length),
            192.. => return message.get(end + 1).map(|_| (end + 2, true)),
            _ => return None,
        }
        // The final zero, or a pointer to at least that, must still fit into 255 octets.
        if end - at > 254 {
            return None;
        }
    }
}

/// A name without compression, and where it ends in the message. Each pointer leads to before the part that it stands
/// in, and what is read there ends before that part.
pub fn name(message: &[u8], at: usize) -> Option<(Vec<u8>, usize)> {
    fn part(message: &[u8], start: usize, limit: usize, name: &mut Vec<u8>) -> Option<usize> {
        let mut at = start;
        loop {
            if at >= limit {
                return None;
            }
            match *message.get(at)? {
                0 => {
                    name.push(0);
                    return Some(at + 1);
                }
                length @ 1..=63 => {
                    let end = at + 1 + usize::from(length);
                    name.extend(message.get(at..end)?);
                    at = end;
                }
                192.. => {
                    let target = usize::from(word(message, at)? & 0x3fff);
                    if target >= start {
                        return None;
                    }
                    part(message, target, start, name)?;
                    return Some(at + 2);
                }
                _ => return None,
            }
        }
    }
    let mut found = Vec::new();
    let end = part(message, at, message.len(), &mut found)?;
    (found.len() <= 255).then_some((found, end))
}

/// The name in lower case.
pub fn folded(message: &[u8], at: usize) -> Option<Vec<u8>> {
    Some(name(message, at)?.0.to_ascii_lowercase())
}

/// A service binding (RFC 9460 section 2.2): priority with TargetName, and its parameters.
pub struct Binding {
    pub head: Vec<u8>,
    pub parameters: Vec<(u16, Vec<u8>)>,
}

/// A service binding whose parameters rise, whose hints are addresses, and whose `mandatory` is a list of numbers.
pub fn binding(message: &[u8], record: &Record) -> Option<Binding> {
    let data = &message[record.data..record.end];
    let (target, end) = name(data, 2)?;
    if target.len() != end - 2 {
        return None;
    }
    let (head, mut rest) = (data[..end].to_vec(), &data[end..]);
    let mut parameters: Vec<(u16, Vec<u8>)> = Vec::new();
    while !rest.is_empty() {
        let (key, length) = (word(rest, 0)?, usize::from(word(rest, 2)?));
        let value = rest.get(4..4 + length)?;
        let unit = [(0, 2), (4, 4), (6, 16)].into_iter().find(|(known, _)| *known == key).map_or(1, |(_, unit)| unit);
        if unit > 1 && value.is_empty()
            || value.len() % unit != 0
            || parameters.last().is_some_and(|last| last.0 >= key)
        {
            return None;
        }
        parameters.push((key, value.to_vec()));
        rest = &rest[4 + length..];
    }
    Some(Binding { head, parameters })
}

impl Binding {
    /// The addresses of its hints, as they stand.
    pub fn hints(&self) -> Vec<IpAddr> {
        self.parameters.iter().flat_map(|(key, value)| addresses(*key, value)).collect()
    }

    /// What is left of it with these hints alone: a hint without addresses goes, and `mandatory` names it no longer.
    pub fn with_hints(&self, keep: impl Fn(IpAddr) -> bool) -> Vec<(u16, Vec<u8>)> {
        let mut left: Vec<(u16, Vec<u8>)> = Vec::new();
        for (key, value) in &self.parameters {
            let value = match key {
                4 | 6 => addresses(*key, value).into_iter().filter(|hint| keep(*hint)).flat_map(octets).collect(),
                _ => value.clone(),
            };
            if !(matches!(key, 4 | 6) && value.is_empty()) {
                left.push((*key, value));
            }
        }
        let there: Vec<u16> = left.iter().map(|(key, _)| *key).collect();
        let gone = |key: u16| self.parameters.iter().any(|(known, _)| *known == key) && !there.contains(&key);
        if let Some((0, mandatory)) = left.first_mut() {
            let keys = mandatory.chunks(2).filter(|key| !gone(u16::from_be_bytes([key[0], key[1]])));
            *mandatory = keys.flatten().copied().collect();
            if mandatory.is_empty() {
                left.remove(0);
            }
        }
        left
    }
}

fn addresses(key: u16, value: &[u8]) -> Vec<IpAddr> {
    match key {
        4 => value.chunks(4).filter_map(|octets| <[u8; 4]>::try_from(octets).ok()).map(IpAddr::from).collect(),
        6 => value.chunks(16).filter_map(|octets| <[u8; 16]>::try_from(octets).ok()).map(IpAddr::from).collect(),
        _ => Vec::new(),
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The address in an A or AAAA record of the right length.
pub fn address(message: &[u8], record: &Record) -> Option<IpAddr> {
    let data = &message[record.data..record.end];
    match record.rtype {
        A => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
        AAAA => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Octets before the names, and how many names, in the data of the types whose names RFC 3597 section 4 lets be compressed
/// and which hickory takes for opaque.
pub fn foreign(rtype: u16) -> Option<(usize, usize)> {
    Some(match rtype {
        3 | 4 | 7..=9 | 23 | 30 | 39 => (0, 1), // MD, MF, MB, MG, MR, NSAP-PTR, NXT, DNAME
        14 => (0, 2),                           // MINFO
        17 => (0, 2),                           // RP
        18 | 21 | 36 => (2, 1),                 // AFSDB, RT, KX
        24 => (18, 1),                          // SIG
        26 => (2, 2),                           // PX
        _ => return None,
    })
}

/// The data of such a record: octets, names in lower case, octets.
#[derive(PartialEq, Eq, Debug)]
pub struct Foreign {
    before: Vec<u8>,
    names: Vec<Vec<u8>>,
    behind: Vec<u8>,
}

/// Reads it; `None`: the names are not whole.
pub fn foreign_data(message: &[u8], record: &Record) -> Option<Foreign> {
    let (before, count) = foreign(record.rtype)?;
    let mut at = record.data + before;
    let before = message[..record.end].get(record.data..at)?.to_vec();
    let mut names = Vec::new();
    for _ in 0..count {
        let (read, end) = name(message, at)?;
        if end > record.end {
            return None;
        }
        names.push(read.to_ascii_lowercase());
        at = end;
    }
    Some(Foreign { before, names, behind: message[at..record.end].to_vec() })
}

/// Whether an OPT record's options fill its data.
pub fn options_are_whole(mut options: &[u8]) -> bool {
    while !options.is_empty() {
        let Some(length) = word(options, 2) else { return false };
        let Some(rest) = options.get(4 + usize::from(length)..) else { return false };
        options = rest;
    }
    true
}

/// The message with every record opaque but OPT and those to `keep`: of a type for private use, its owner the root. In
/// OPT records, the options that hickory looks into (NSID, client subnet) are opaque too.
///
/// A record without data is allowed by hickory only in an UPDATE, so that is what it becomes. Options that don't fill their
/// OPT record are taken out; nothing but opaque records stands behind it.
pub fn neutral(message: &[u8], outline: &Outline, keep: impl Fn(&Record) -> bool) -> Vec<u8> {
    let mut copy = message[..outline.end].to_vec();
    let root = outline.question_end - 5;
    for record in &outline.records {
        if record.rtype == OPT {
            let mut at = record.data;
            while let (Some(code), Some(length)) = (word(&copy[..record.end], at), word(&copy[..record.end], at + 2)) {
                if matches!(code, 3 | 8) {
                    copy[at..at + 2].copy_from_slice(&OPAQUE_OPTION.to_be_bytes());
                }
                at += 4 + usize::from(length);
            }
        } else if !keep(record) {
            if record.points {
                // Wherever its owner's name points to: now it is the root.
                let pointer = 0xc000 | root as u16;
                copy[record.fixed - 2..record.fixed].copy_from_slice(&pointer.to_be_bytes());
            }
            copy[record.fixed..record.fixed + 2].copy_from_slice(&OPAQUE.to_be_bytes());
        }
    }
    let broken = |record: &&Record| record.rtype == OPT && !options_are_whole(&message[record.data..record.end]);
    if let Some(opt) = outline.records.iter().find(broken) {
        copy.drain(opt.data..opt.end);
        copy[opt.data - 2..opt.data].fill(0);
    }
    const UPDATE: u8 = 5;
    if outline.records.iter().any(|record| record.data == record.end && record.rtype != OPT) {
        copy[2] = copy[2] & 0x87 | UPDATE << 3;
    }
    copy
}

/// hickory's reading of a [`neutral`] message, which must succeed.
#[track_caller]
pub fn read(message: &[u8], what: &str) -> Message {
    Message::from_vec(message).unwrap_or_else(|error| panic!("hickory refuses {what}: {error}: {message:02x?}"))
}

/// A name of hickory's as wire octets in lower case.
pub fn wire(name: &Name) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in name.iter() {
        wire.push(label.len() as u8);
        wire.extend(label.to_ascii_lowercase());
    }
    wire.push(0);
    wire
}
