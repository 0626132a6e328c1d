//! Two replies to one question, held against each other.
//!
//! Names are the same whatever the case of their letters (RFC 4343), but in the question and in the records of the name
//! asked for the asker's letters must stand, if the server itself repeats them there.

use namegate::engine::wire::{self, CLASS_IN, HEADER, NameBuf, TC, rtype, skip_name, u16_at};

/// What may differ between a server's own reply and the one through namegate.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// TTLs may be less by so many seconds; none: they are a resolver's own, which moves them.
    pub aged: Option<u32>,
    /// Glue may be missing.
    pub glue_may_miss: bool,
}

/// A reply, taken apart.
struct Reply {
    /// ID 0; question as it came.
    flags: u16,
    question: Vec<u8>,
    sections: [Vec<Record>; 3],
    opt: Option<Opt>,
}

/// A record with all its names written out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Record {
    /// Of the name asked for; else in lower case.
    owner: Vec<u8>,
    rtype: u16,
    class: u16,
    /// Names in lower case.
    data: Vec<u8>,
    ttl: u32,
}

#[derive(PartialEq, Eq, Debug)]
struct Opt {
    rcode: u8,
    version: u8,
    flags: u16,
    options: Vec<u8>,
}

const AA: u16 = 0x0400;

/// In what two replies differ: a word or two, and what was seen.
pub type Difference = (&'static str, String);

/// In what they differ; `None` if in nothing.
pub fn difference(direct: &[u8], through: &[u8], allowed: Allowed) -> Option<Difference> {
    let Some(direct) = Reply::read(direct) else { return Some(("the server's reply is malformed", String::new())) };
    let Some(through) = Reply::read(through) else { return Some(("malformed", String::new())) };
    if direct.flags != through.flags {
        let kind = match direct.flags ^ through.flags {
            TC => "TC",
            wire::AD => "AD",
            wire::CD => "CD",
            wire::RA => "RA",
            AA => "AA",
            _ => "flags and rcode",
        };
        return Some((kind, format!("{:#06x}, not {:#06x}", through.flags, direct.flags)));
    }
    if direct.question != through.question {
        return Some(("question", format!("{:02x?}, not {:02x?}", through.question, direct.question)));
    }
    if direct.opt != through.opt {
        return Some(("OPT", format!("{:?}, not {:?}", through.opt, direct.opt)));
    }
    if direct.flags & TC != 0 {
        return None; // what a truncated reply holds must not be used (RFC 2181 section 9)
    }
    for (section, name) in ["answer", "authority", "additional"].into_iter().enumerate() {
        let (ours, theirs) = (&through.sections[section], &direct.sections[section]);
        if section == 2 && allowed.glue_may_miss {
            if let Some(extra) = ours.iter().find(|record| !theirs.iter().any(|known| known.same(record))) {
                return Some((name, format!("{extra:?} is new")));
            }
            continue;
        }
        let records = ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| ours.same(theirs));
        if !records {
            return Some((name, format!("{} records, not {}: {}", ours.len(), theirs.len(), missing(ours, theirs))));
        }
        let aged = |ours: &Record, theirs: &Record| {
            allowed
                .aged
                .is_none_or(|aged| ours.ttl <= theirs.ttl && theirs.ttl.min(MAX_TTL) - ours.ttl.min(MAX_TTL) <= aged)
        };
        if let Some((ours, theirs)) = ours.iter().zip(theirs).find(|(ours, theirs)| !aged(ours, theirs)) {
            return Some(("TTL", format!("{name}: {ours:?} had {}", theirs.ttl)));
        }
    }
    None
}

/// The ceiling of kept answers, `cache.max_ttl`.
const MAX_TTL: u32 = 86_400;

impl Record {
    /// But for the TTL.
    fn same(&self, other: &Record) -> bool {
        (&self.owner, self.rtype, self.class, &self.data) == (&other.owner, other.rtype, other.class, &other.data)
    }
}

/// The first record that only one of them has.
fn missing(ours: &[Record], theirs: &[Record]) -> String {
    let only =
        |these: &[Record], those: &[Record]| these.iter().find(|one| !those.iter().any(|o| o.same(one))).cloned();
    match (only(ours, theirs), only(theirs, ours)) {
        (Some(record), _) => format!("{record:?} is new"),
        (None, Some(record)) => format!("{record:?} is missing"),
        (None, None) => "one is there more often".into(),
    }
}

impl Reply {
    fn read(message: &[u8]) -> Option<Reply> {
        let flags = u16_at(message, 2)?;
        let mut at = HEADER;
        for _ in 0..u16_at(message, 4)? {
            at = skip_name(message, at)? + 4;
        }
        let question = message.get(HEADER..at)?.to_vec();
        let asked = NameBuf::read(message, HEADER)?.as_wire().to_vec();
        let mut reply = Reply { flags, question, sections: Default::default(), opt: None };
        for section in 0..3 {
            for _ in 0..u16_at(message, 6 + 2 * section)? {
                let mut owner = NameBuf::read(message, at)?.as_wire().to_vec();
                if !owner.eq_ignore_ascii_case(&asked) {
                    owner.make_ascii_lowercase();
                }
                at = skip_name(message, at)?;
                let (rtype, class) = (u16_at(message, at)?, u16_at(message, at + 2)?);
                let (high, low) = (u16_at(message, at + 4)?, u16_at(message, at + 6)?);
                let (start, end) = (at + 10, at + 10 + usize::from(u16_at(message, at + 8)?));
                let data = message.get(start..end)?;
                at = end;
                if rtype == rtype::OPT {
                    let [rcode, version] = high.to_be_bytes();
                    if reply.opt.replace(Opt { rcode, version, flags: low, options: data.to_vec() }).is_some() {
                        return None;
                    }
                    continue;
                }
                let data = if class == CLASS_IN { whole(message, rtype, start, end)? } else { data.to_vec() };
                let ttl = u32::from(high) << 16 | u32::from(low);
                reply.sections[section].push(Record { owner, rtype, class, data, ttl });
            }
        }
        reply.sections.iter_mut().for_each(|section| section.sort());
        (at == message.len()).then_some(reply)
    }
}

/// A record's data with the names that may be compressed (RFC 3597 section 4) written out in lower case.
fn whole(message: &[u8], rtype: u16, start: usize, end: usize) -> Option<Vec<u8>> {
    let (before, names) = match rtype {
        2..=5 | 7..=9 | 12 => (0, 1),
        6 | 14 | 17 => (0, 2),
        15 | 18 | 21 | 36 => (2, 1),
        26 => (2, 2),
        33 => (6, 1),
        39 => (0, 1),
        _ => return Some(message[start..end].to_vec()),
    };
    let mut at = start + before;
    let mut data = message.get(start..at)?.to_vec();
    for _ in 0..names {
        data.extend_from_slice(&NameBuf::read(message, at)?.as_wire().to_ascii_lowercase());
        at = skip_name(message, at)?;
    }
    data.extend_from_slice(message.get(at..end)?);
    Some(data)
}
