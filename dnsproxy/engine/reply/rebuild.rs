//! An answer written anew, without what was taken out of it.
//!
//! Why not hickory: it would refuse records whose data it can't read and write others in its own way; here every record
//! that stays keeps its octets, but for the compression of names. Its parser checks the result in the tests.

use std::net::IpAddr;

use super::{Ede, finish, put_opt};
use crate::engine::answer::binding::{Binding, IPV4HINT, IPV6HINT, MANDATORY, hints_in};
use crate::engine::answer::{Answer, Record};
use crate::engine::query::Query;
use crate::engine::wire::{AD, HEADER, NameBuf, rtype, skip_name};

/// What is to be changed.
pub struct Changes<'a> {
    /// Which addresses stay, hints of service bindings (RFC 9460 section 7.3) among them. `None`: everything stays as it
    /// came, also what is malformed.
    pub keep: Option<&'a dyn Fn(IpAddr) -> bool>,
    /// Whether names are compressed.
    pub compress: bool,
    /// What to say when addresses were taken out and none is left.
    pub nothing_left: Option<&'a Ede>,
}

/// The new message.
#[derive(Debug)]
pub struct Rebuilt {
    /// Its octets.
    pub message: Vec<u8>,
    /// The addresses that stayed in the answer section, hints not among them.
    pub kept: Vec<IpAddr>,
    /// How many addresses went, with their record or out of it, and malformed records; glue is not counted.
    pub taken: usize,
}

/// A record's data could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("record of type {rtype} is malformed")]
pub struct Malformed {
    /// Its type.
    pub rtype: u16,
}

/// Writes `answer` anew for the one who asked `query`. What lost addresses is no longer authentic, and says so (AD).
///
/// # Errors
/// A record that holds names is malformed.
pub fn rebuilt(query: &Query<'_>, answer: &Answer<'_>, changes: &Changes<'_>) -> Result<Rebuilt, Malformed> {
    let mut source = answer.message.to_vec();
    // In the asker's case before anything is compared with it: ours was random.
    source[HEADER..answer.ends[0]].copy_from_slice(&query.question);
    let mut writer = Writer::new(&source, answer.ends[0], changes.compress);
    let mut counts = [0u16; 3];
    let (mut kept, mut left, mut taken) = (Vec::new(), 0, 0);
    for (section, count) in counts.iter_mut().enumerate() {
        for record in answer.records(section).filter(|record| record.rtype != rtype::OPT) {
            let fate = changes.keep.map_or(Fate::Whole, |keep| fate(&record, keep));
            if section == 0 {
                kept.extend(record.address().filter(|_| matches!(fate, Fate::Whole)));
                left += fate.left(&record);
            }
            if section < 2 {
                taken += fate.taken(); // glue is optional, and no part of what AD speaks of (RFC 6840 section 5.8)
            }
            if matches!(fate, Fate::Gone) {
                // Of a message that can't be read nothing is handed on, not even that there is none.
                NameBuf::read(&source, record.start).ok_or(Malformed { rtype: record.rtype })?;
            } else {
                writer.record(&record, &fate)?;
                *count += 1;
            }
        }
    }
    let mut message = writer.out;
    if query.edns.is_some() {
        let ede = changes.nothing_left.filter(|_| taken > 0 && left == 0);
        put_opt(&mut message, answer, query, ede);
        counts[2] += 1;
    }
    finish(&mut message, query, answer, counts);
    if taken > 0 {
        message[3] &= !(AD as u8);
    }
    Ok(Rebuilt { message, kept, taken })
}

/// What becomes of a record.
enum Fate<'a> {
    /// It stays.
    Whole,
    /// It stays, with a part of its hints.
    Hints { binding: Binding<'a>, keep: &'a dyn Fn(IpAddr) -> bool },
    /// It goes.
    Gone,
}

fn fate<'a>(record: &Record<'a>, keep: &'a dyn Fn(IpAddr) -> bool) -> Fate<'a> {
    if record.leads_only_where(keep) {
        return Fate::Whole;
    }
    record.binding().map_or(Fate::Gone, |binding| Fate::Hints { binding, keep })
}

impl Fate<'_> {
    /// How many addresses `record` gives still.
    fn left(&self, record: &Record<'_>) -> usize {
        match self {
            Fate::Whole => record.address().iter().count() + record.binding().map_or(0, |it| it.hints().count()),
            Fate::Hints { binding, keep } => binding.hints().filter(|hint| keep(*hint)).count(),
            Fate::Gone => 0,
        }
    }

    /// How many addresses went, or records that nobody can read.
    fn taken(&self) -> usize {
        match self {
            Fate::Whole => 0,
            Fate::Hints { binding, keep } => binding.hints().filter(|hint| !keep(*hint)).count(),
            Fate::Gone => 1,
        }
    }
}

/// Writes records, and remembers where names stand.
struct Writer<'a> {
    source: &'a [u8],
    out: Vec<u8>,
    /// Where labels start that later names may point at.
    labels: Vec<u16>,
    compress: bool,
    comparisons: u32,
}

/// How many places later names are compared with.
const PLACES: usize = 64;
/// How often a name is compared in all: enough for any usual answer, and a bound on the work for a hostile one, whose
/// later names are written out.
const COMPARISONS: u32 = 4_000;

impl<'a> Writer<'a> {
    fn new(source: &'a [u8], question_end: usize, compress: bool) -> Writer<'a> {
        let mut out = Vec::with_capacity(source.len() + 16);
        out.extend_from_slice(&source[..question_end]);
        let mut labels = Vec::new();
        let mut at = HEADER;
        while out[at] != 0 {
            labels.push(at as u16);
            at += 1 + usize::from(out[at]);
        }
        Writer { source, out, labels, compress, comparisons: 0 }
    }

    fn record(&mut self, record: &Record<'_>, fate: &Fate<'_>) -> Result<(), Malformed> {
        let malformed = Malformed { rtype: record.rtype };
        let owner = NameBuf::read(self.source, record.start).ok_or(malformed)?;
        self.name(owner.as_wire(), true);
        // Type, class and TTL stand before the length and the data.
        self.out.extend_from_slice(&self.source[record.data - 10..record.data - 2]);
        let length_at = self.out.len();
        self.out.extend_from_slice(&[0, 0]);
        match fate {
            Fate::Hints { binding, keep } => self.binding(binding, keep),
            Fate::Whole | Fate::Gone => self.data(record).ok_or(malformed)?,
        }
        let length = u16::try_from(self.out.len() - length_at - 2).map_err(|_| malformed)?;
        self.out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    fn data(&mut self, record: &Record<'_>) -> Option<()> {
        // Octets before the names, how many names, and whether they may be compressed again (RFC 3597 section 4).
        let (before, names, compress) = match record.rtype {
            2..=5 | 7..=9 | 12 => (0, 1, true), // NS, MD, MF, CNAME, MB, MG, MR, PTR
            6 | 14 => (0, 2, true),             // SOA, MINFO
            15 => (2, 1, true),                 // MX
            17 => (0, 2, false),                // RP
            18 | 21 | 36 => (2, 1, false),      // AFSDB, RT, KX
            23 | 30 | 39 => (0, 1, false),      // NSAP-PTR, NXT, DNAME
            24 => (18, 1, false),               // SIG
            26 => (2, 2, false),                // PX
            33 => (6, 1, false),                // SRV
            35 => (naptr_fixed(record.rdata())?, 1, false),
            _ => (0, 0, false),
        };
        let mut at = record.data + before;
        self.out.extend_from_slice(self.source.get(record.data..at).filter(|_| at <= record.end)?);
        for _ in 0..names {
            let name = NameBuf::read(self.source, at)?;
            at = skip_name(self.source, at).filter(|end| *end <= record.end)?;
            self.name(name.as_wire(), compress);
        }
        self.out.extend_from_slice(&self.source[at..record.end]);
        Some(())
    }

    /// A service binding with the hints that stay. A parameter that is left without a value goes, and `mandatory` no
    /// longer names it.
    fn binding(&mut self, binding: &Binding<'_>, keep: &dyn Fn(IpAddr) -> bool) {
        let gone = |key: u16, value: &[u8]| matches!(key, IPV4HINT | IPV6HINT) && !hints_in(key, value).any(keep);
        let without: Vec<u16> = binding.params().filter(|(key, value)| gone(*key, value)).map(|(key, _)| key).collect();
        self.out.extend_from_slice(binding.head());
        for (key, value) in binding.params().filter(|(key, _)| !without.contains(key)) {
            let stays = |part: &&[u8]| match key {
                MANDATORY => !without.contains(&u16::from_be_bytes([part[0], part[1]])),
                _ => hints_in(key, part).all(keep),
            };
            let unit = match key {
                MANDATORY => 2,
                IPV4HINT => 4,
                IPV6HINT => 16,
                _ => value.len().max(1),
            };
            let value = value.chunks(unit).filter(stays).collect::<Vec<_>>().concat();
            if key == MANDATORY && value.is_empty() {
                continue;
            }
            self.out.extend_from_slice(&key.to_be_bytes());
            self.out.extend_from_slice(&(value.len() as u16).to_be_bytes());
            self.out.extend_from_slice(&value);
        }
    }

    /// Writes an uncompressed name, with a pointer for the longest end of it that stands in the message already, in the
    /// same case.
    fn name(&mut self, wire: &[u8], compress: bool) {
        let mut at = 0;
        while wire[at] != 0 {
            if compress && let Some(place) = self.place_of(&wire[at..]) {
                self.out.extend_from_slice(&(0xc000 | place).to_be_bytes());
                return;
            }
            if self.labels.len() < PLACES && self.out.len() < 0x4000 {
                self.labels.push(self.out.len() as u16);
            }
            let next = at + 1 + usize::from(wire[at]);
            self.out.extend_from_slice(&wire[at..next]);
            at = next;
        }
        self.out.push(0);
    }

    /// Where this name stands already.
    fn place_of(&mut self, wire: &[u8]) -> Option<u16> {
        let label = &wire[..=usize::from(wire[0])];
        for place in self.labels.iter().filter(|_| self.compress) {
            if self.comparisons == COMPARISONS {
                return None;
            }
            self.comparisons += 1;
            let at = usize::from(*place);
            let stands = |name: NameBuf| name.as_wire() == wire;
            if self.out[at..].starts_with(label) && NameBuf::read(&self.out, at).is_some_and(stands) {
                return Some(*place);
            }
        }
        None
    }
}

/// Octets of a NAPTR record before its name: order, preference and three strings (RFC 3403 section 4.1).
fn naptr_fixed(rdata: &[u8]) -> Option<usize> {
    let mut at = 4;
    for _ in 0..3 {
        at += 1 + usize::from(*rdata.get(at)?);
    }
    Some(at)
}
