//! The stage "answer": what a reply of a resolver teaches (I5).
//!
//! The records are walked where they lie. Only records of the type asked for (A, AAAA, and the hints of SVCB and HTTPS)
//! at the end of the CNAME chain from the name asked for teach anything; everything else in the message is cargo.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::name::Name;
use super::query::Query;
use super::wire::{self, CLASS_IN, HEADER, NameBuf, QR, TC, rtype, skip_name, skip_plain_name, u16_at, u32_at};

pub mod binding;

/// The longest CNAME chain that teaches anything. Resolvers themselves give up after 8 to 16.
pub const CHAIN: usize = 16;
/// Octets that the shortest record has: the root, type, class, TTL, length.
const SHORTEST_RECORD: usize = 11;

/// A resolver's reply, its sections found and its records whole.
#[derive(Clone, Debug)]
pub struct Answer<'a> {
    /// The octets, without what follows the last record.
    pub message: &'a [u8],
    /// The header's second 16 bits.
    pub flags: u16,
    /// Records of the answer, authority and additional sections.
    pub counts: [u16; 3],
    /// Where the question ends, and each of the three sections.
    pub ends: [usize; 4],
    /// The OPT record, if there is one: from, to.
    pub opt: Option<(usize, usize)>,
}

/// One record, its octets in the message.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    message: &'a [u8],
    /// Where its owner's name starts.
    pub start: usize,
    /// Its type.
    pub rtype: u16,
    /// Its class.
    pub class: u16,
    /// Seconds; one with the top bit set counts as 0 (RFC 2181 section 8).
    pub ttl: u32,
    /// Where its data starts.
    pub data: usize,
    /// Where it ends.
    pub end: usize,
}

/// Why a message is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AnswerError {
    /// It is shorter than its header says.
    #[error("cut off at octet {at} of {octets}")]
    Cut {
        /// Where reading stopped.
        at: usize,
        /// How many there are.
        octets: usize,
    },
    /// It breaks the format in another way.
    #[error("{0}")]
    Format(&'static str),
}

/// What an answer teaches: a name's addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Learned {
    /// The name asked for.
    pub name: Name,
    /// Sorted, without repeats.
    pub addresses: Vec<IpAddr>,
    /// Seconds: the least of the chain and the addresses.
    pub ttl: u32,
}

/// Why an answer teaches nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nothing {
    /// The type asked for holds no addresses.
    Type,
    /// RCODE is not NOERROR.
    Rcode,
    /// It was truncated.
    Truncated,
    /// The chain loops, forks or is longer than [`CHAIN`].
    Chain,
    /// No address at its end.
    Empty,
}

impl<'a> Answer<'a> {
    /// Reads the header, the question and the outline of every record.
    ///
    /// # Errors
    /// The message is not one reply to one question with whole records and at most one OPT.
    pub fn parse(message: &'a [u8]) -> Result<Answer<'a>, AnswerError> {
        use AnswerError::Format;
        let octets = message.len();
        let cut = |at| AnswerError::Cut { at, octets };
        let word = |at| u16_at(message, at).ok_or(cut(octets));
        let flags = word(2)?;
        if flags & QR == 0 || flags >> 11 & 0xf != 0 {
            return Err(Format("not a reply to a query"));
        }
        if word(4)? != 1 {
            return Err(Format("a reply repeats exactly one question"));
        }
        let counts = [word(6)?, word(8)?, word(10)?];
        let total: usize = counts.iter().map(|count| usize::from(*count)).sum();
        if total * SHORTEST_RECORD > octets {
            return Err(Format("more records announced than fit"));
        }
        let name_end = skip_plain_name(message, HEADER).ok_or(Format("the question's name is malformed"))?;
        let mut at = name_end + 4;
        if at > octets {
            return Err(cut(octets));
        }
        let mut answer = Answer { message, flags, counts, ends: [at; 4], opt: None };
        for (section, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let record = Record::read(message, at).ok_or(cut(at))?;
                if record.rtype == rtype::OPT {
                    if section != 2 || answer.opt.is_some() || message[at] != 0 {
                        return Err(Format("an OPT record is misplaced or there are two"));
                    }
                    answer.opt = Some((at, record.end));
                }
                at = record.end;
            }
            answer.ends[section + 1] = at;
        }
        answer.message = &message[..at];
        Ok(answer)
    }

    /// RCODE with the bits that an OPT record adds (RFC 6891 section 6.1.3).
    pub fn rcode(&self) -> u16 {
        let high = self.opt.map_or(0, |(start, _)| u16::from(self.message[start + 5]));
        high << 4 | self.flags & 0xf
    }

    /// Whether it says of itself that it was cut.
    pub fn truncated(&self) -> bool {
        self.flags & TC != 0
    }

    /// The question as it came back: name, type, class.
    pub fn question(&self) -> &'a [u8] {
        &self.message[HEADER..self.ends[0]]
    }

    /// The records of section 0 (answer), 1 (authority) or 2 (additional).
    pub fn records(&self, section: usize) -> impl Iterator<Item = Record<'a>> + use<'a> {
        let message = self.message;
        let mut at = self.ends[section];
        (0..self.counts[section]).map_while(move |_| {
            let record = Record::read(message, at)?;
            at = record.end;
            Some(record)
        })
    }

    /// The addresses in the answer section, wherever they belong, for records of the event.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<'a> {
        self.records(0).filter_map(|record| record.address())
    }

    /// The targets of the CNAMEs in the answer section, the first [`CHAIN`].
    pub fn cnames(&self) -> impl Iterator<Item = Name> + use<'a> {
        let message = self.message;
        self.records(0)
            .filter(|record| record.rtype == rtype::CNAME)
            .take(CHAIN)
            .filter_map(move |record| Name::from_wire(NameBuf::read(message, record.data)?.as_wire()).ok())
    }

    /// The least TTL in the answer section, seconds; 0 when it is empty.
    pub fn ttl(&self) -> u32 {
        self.records(0).map(|record| record.ttl).min().unwrap_or(0)
    }

    /// What it teaches about the name that `query` asked for.
    ///
    /// # Errors
    /// Why it teaches nothing.
    pub fn learn(&self, query: &Query<'_>) -> Result<Learned, Nothing> {
        if !matches!(query.qtype, rtype::A | rtype::AAAA | rtype::SVCB | rtype::HTTPS) || query.qclass != CLASS_IN {
            return Err(Nothing::Type);
        }
        if self.rcode() != 0 {
            return Err(Nothing::Rcode);
        }
        if self.truncated() {
            return Err(Nothing::Truncated);
        }
        // More could not be one chain; and following them would be work without bound.
        if self.records(0).filter(|record| record.rtype == rtype::CNAME).count() > CHAIN {
            return Err(Nothing::Chain);
        }
        let mut owner = NameBuf::of_wire(query.name.as_wire()).ok_or(Nothing::Chain)?;
        let mut ttl = u32::MAX;
        let mut steps = 0;
        while let Some((target, seconds)) = self.alias_of(&owner)? {
            steps += 1;
            if steps > CHAIN {
                return Err(Nothing::Chain);
            }
            ttl = ttl.min(seconds);
            owner = target;
        }
        let mut addresses = Vec::new();
        for record in self.records(0) {
            if record.rtype != query.qtype || record.class != CLASS_IN || !self.owned_by(&record, &owner) {
                continue;
            }
            // A malformed record teaches nothing; it is cargo, and is taken out of selected names.
            let known = addresses.len();
            addresses.extend(record.address());
            addresses.extend(record.binding().filter(|it| it.describes()).iter().flat_map(|binding| binding.hints()));
            if addresses.len() > known {
                ttl = ttl.min(record.ttl);
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(Nothing::Empty);
        }
        Ok(Learned { name: query.name.clone(), addresses, ttl })
    }

    /// Where `owner`'s CNAME leads, and its TTL. Two that differ are a fork: nobody could say which one counts.
    fn alias_of(&self, owner: &NameBuf) -> Result<Option<(NameBuf, u32)>, Nothing> {
        let mut found: Option<(NameBuf, u32)> = None;
        for record in self.records(0) {
            if record.rtype != rtype::CNAME || record.class != CLASS_IN || !self.owned_by(&record, owner) {
                continue;
            }
            let whole = skip_name(self.message, record.data) == Some(record.end);
            let target = NameBuf::read_folded(self.message, record.data).filter(|_| whole).ok_or(Nothing::Chain)?;
            found = match found {
                None => Some((target, record.ttl)),
                Some((known, ttl)) if known == target => Some((known, ttl.min(record.ttl))),
                Some(_) => return Err(Nothing::Chain),
            };
        }
        Ok(found)
    }

    fn owned_by(&self, record: &Record<'_>, owner: &NameBuf) -> bool {
        NameBuf::read_folded(self.message, record.start).is_some_and(|name| name == *owner)
    }
}

impl<'a> Record<'a> {
    /// The record at `at`, if it is whole.
    pub fn read(message: &'a [u8], at: usize) -> Option<Record<'a>> {
        let fixed = skip_name(message, at)?;
        let ttl = u32_at(message, fixed + 4)?;
        let end = fixed + 10 + usize::from(u16_at(message, fixed + 8)?);
        (end <= message.len()).then_some(Record {
            message,
            start: at,
            rtype: u16_at(message, fixed)?,
            class: u16_at(message, fixed + 2)?,
            ttl: if ttl >> 31 == 1 { 0 } else { ttl },
            data: fixed + 10,
            end,
        })
    }

    /// Its data.
    pub fn rdata(&self) -> &'a [u8] {
        &self.message[self.data..self.end]
    }

    /// The address in an A or AAAA record.
    pub fn address(&self) -> Option<IpAddr> {
        match self.rtype {
            rtype::A => <[u8; 4]>::try_from(self.rdata()).ok().map(|octets| Ipv4Addr::from(octets).into()),
            rtype::AAAA => <[u8; 16]>::try_from(self.rdata()).ok().map(|octets| Ipv6Addr::from(octets).into()),
            _ => None,
        }
    }

    /// Whether a client may take an address from it: A, AAAA, or a service binding with its hints.
    pub fn leads_somewhere(&self) -> bool {
        matches!(self.rtype, rtype::A | rtype::AAAA | rtype::SVCB | rtype::HTTPS)
    }

    /// Whether `may` holds for every address that a client may take from it. Not so for a malformed one: who knows what
    /// a client makes of that.
    pub fn leads_only_where(&self, may: impl Fn(IpAddr) -> bool) -> bool {
        match self.rtype {
            rtype::A | rtype::AAAA => self.address().is_some_and(may),
            rtype::SVCB | rtype::HTTPS => self.binding().is_some_and(|binding| binding.hints().all(may)),
            _ => true,
        }
    }
}

/// Whether the question that came back is the one that was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Match {
    /// To the octet.
    Exact,
    /// But for the case of letters.
    Case,
    /// Another one, or no reply to one question at all.
    No,
}

/// Holds a datagram against the question that was sent: name with its case, type, class.
pub fn matches(message: &[u8], question: &[u8]) -> Match {
    let Some(back) = message.get(HEADER..HEADER + question.len()) else { return Match::No };
    let flags = u16_at(message, 2).unwrap_or(0);
    if flags & QR == 0 || flags >> 11 & 0xf != 0 || u16_at(message, 4) != Some(1) {
        return Match::No;
    }
    if back == question {
        return Match::Exact;
    }
    let (name, fixed) = question.split_at(question.len() - 4);
    if back[name.len()..] == *fixed && back[..name.len()].eq_ignore_ascii_case(name) { Match::Case } else { Match::No }
}

/// Whether a reply's flags say that it was cut; for those who have not parsed it.
pub fn is_truncated(message: &[u8]) -> bool {
    u16_at(message, 2).is_some_and(|flags| flags & wire::TC != 0)
}

#[cfg(test)]
mod tests;
