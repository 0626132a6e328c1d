//! The stage "reply": the octets that go back.
//!
//! What needs no change goes back as the resolver sent it, with the asker's ID, its flags and its question. When
//! something has to be taken out the message is written anew ([`rebuild`]). Failures say why, in an Extended DNS Error
//! (RFC 8914), to those who sent an OPT record.

use super::answer::Answer;
use super::query::{self, Edns, Query};
use super::wire::{self, HEADER, QR, RA, TC, rtype};

pub mod rebuild;

/// Octets of a UDP reply at most, whatever the asker takes: a steered reply of 1473 was lost at an MTU of 1500.
pub const UDP_OCTETS: usize = 1232;
/// Octets of UDP payload that everyone takes (RFC 1035 section 4.2.1).
const UDP_OCTETS_WITHOUT_EDNS: usize = 512;
/// Octets of text in an Extended DNS Error at most, so that a refusal stays small.
const EDE_TEXT: usize = 160;

/// Codes of replies that are made here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rcode {
    /// No error; without records: the name has none of that type.
    NoError = 0,
    /// The query breaks the format.
    FormErr = 1,
    /// It could not be answered.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// The operation is not served.
    NotImp = 4,
    /// Policy.
    Refused = 5,
    /// An EDNS version above 0 (RFC 6891 section 6.1.3).
    BadVers = 16,
}

/// An Extended DNS Error (RFC 8914): why a reply is not what was hoped for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ede {
    /// The registered number.
    pub code: EdeCode,
    /// For people; cut at 160 octets.
    pub text: String,
}

/// The registered numbers that are used here (RFC 8914 section 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EdeCode {
    /// None of the others.
    Other = 0,
    /// The answer's TTL has run down.
    Stale = 3,
    /// The same of an answer that says that there is no such name.
    StaleNxDomain = 19,
    /// The proxy can't serve this yet.
    NotReady = 14,
    /// The name is not allowed.
    Blocked = 15,
    /// Addresses were taken out.
    Filtered = 17,
    /// The asker may not ask this server, or not this type.
    Prohibited = 18,
    /// The resolver did not answer.
    NoReachableAuthority = 22,
    /// The resolver can't be reached.
    NetworkError = 23,
    /// The resolver's answer is malformed.
    InvalidData = 24,
}

impl Ede {
    /// An error with its text.
    pub fn new(code: EdeCode, text: impl Into<String>) -> Ede {
        Ede { code, text: text.into() }
    }
}

/// Octets that a UDP reply to a query with this OPT record may have.
pub fn udp_limit(edns: Option<Edns>) -> usize {
    match edns {
        Some(edns) => usize::from(edns.payload).clamp(UDP_OCTETS_WITHOUT_EDNS, UDP_OCTETS),
        None => UDP_OCTETS_WITHOUT_EDNS,
    }
}

/// What of an answer's additional section goes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Additional {
    /// All of it.
    Whole,
    /// Only the OPT record. It is optional by nature (RFC 1035 section 4.3.2), and its addresses were granted to
    /// nobody.
    OptOnly,
    /// Only the OPT record, and the authority section stays behind as well.
    OptWithoutAuthority,
}

/// The answer as it came, for the one who asked `query`.
///
/// An asker without OPT gets none (RFC 6891 section 6.1.1), one with OPT gets one.
pub fn relayed(query: &Query<'_>, answer: &Answer<'_>, additional: Additional) -> Vec<u8> {
    let [_, _, authority_end, end] = answer.ends;
    let mut out = Vec::with_capacity(answer.message.len() + 16);
    out.extend_from_slice(answer.message);
    let mut authority = answer.counts[1];
    let behind_opt = match answer.opt {
        None => additional == Additional::Whole || answer.counts[2] == 0,
        Some((_, opt_end)) => opt_end == end && (additional == Additional::Whole || answer.counts[2] == 1),
    };
    // The usual case: OPT is last or absent, and nothing before it has to go. Else the whole section does: what stands
    // behind a hole could be pointed at.
    let (cut_at, kept) = match answer.opt {
        _ if additional == Additional::OptWithoutAuthority => {
            authority = 0;
            (answer.ends[1], 0)
        }
        None if behind_opt => (end, answer.counts[2]),
        Some((start, _)) if behind_opt => (start, answer.counts[2] - 1),
        _ => (authority_end, 0),
    };
    out.truncate(cut_at);
    let opt = query.edns.is_some();
    if opt {
        put_opt(&mut out, answer, query, None);
    }
    finish(&mut out, query, answer, [answer.counts[0], authority, kept + u16::from(opt)]);
    out
}

/// The same, without what is optional as far as that is needed for `limit` octets. It may be longer all the same.
pub fn relayed_within(query: &Query<'_>, answer: &Answer<'_>, additional: Additional, limit: usize) -> Vec<u8> {
    let mut message = relayed(query, answer, additional);
    if message.len() > limit && additional == Additional::Whole {
        message = relayed(query, answer, Additional::OptOnly);
    }
    if message.len() > limit && authority_is_optional(query, answer) {
        message = relayed(query, answer, Additional::OptWithoutAuthority);
    }
    message
}

/// Octets that [`relayed_within`] needs at least.
pub fn least_octets(query: &Query<'_>, answer: &Answer<'_>) -> usize {
    const BARE_OPT: usize = 11;
    let opt = answer.opt.map_or(BARE_OPT, |(start, end)| end - start);
    let end = if authority_is_optional(query, answer) { answer.ends[1] } else { answer.ends[2] };
    end + if query.edns.is_some() { opt } else { 0 }
}

/// Whether the answer is whole without its authority section (RFC 2181 section 9): it has records, and the section no
/// proofs for an asker who wants them. Servers leave it out themselves before they say TC; ours may have been asked with
/// more room.
fn authority_is_optional(query: &Query<'_>, answer: &Answer<'_>) -> bool {
    let proofs = || answer.records(1).any(|record| matches!(record.rtype, rtype::NSEC | rtype::NSEC3));
    answer.rcode() == Rcode::NoError as u16 && answer.counts[0] > 0 && !(query.dnssec_ok() && proofs())
}

/// Nothing but the question, marked as cut: the asker comes back over TCP.
pub fn truncated(query: &Query<'_>, answer: &Answer<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + query.question.len() + 11);
    out.extend_from_slice(&answer.message[..answer.ends[0]]);
    let opt = query.edns.is_some();
    if opt {
        put_opt(&mut out, answer, query, None);
    }
    finish(&mut out, query, answer, [0, 0, u16::from(opt)]);
    out[2] |= (TC >> 8) as u8;
    out
}

/// A reply without records: a refusal, a failure, or no data.
pub fn failed(query: &Query<'_>, rcode: Rcode, ede: Option<&Ede>) -> Vec<u8> {
    let rcode = rcode as u16;
    let flags = QR | RA | query.flags & (wire::RD | wire::CD) | rcode & 0xf;
    let mut out = Vec::with_capacity(HEADER + query.question.len() + 16 + EDE_TEXT);
    for word in [query.id, flags, 1, 0, 0, u16::from(query.edns.is_some())] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(&query.question);
    if let Some(edns) = query.edns {
        put_opt_with(&mut out, rcode, edns.dnssec_ok, &[], ede);
    }
    out
}

/// Adds an Extended DNS Error to a finished reply that ends with an OPT record and stays within `limit`.
pub fn explain(reply: &mut Vec<u8>, ede: &Ede, limit: usize) {
    let opt = Answer::parse(reply).ok().and_then(|answer| answer.opt).filter(|(_, end)| *end == reply.len());
    let Some((start, end)) = opt else { return };
    put_ede(reply, ede);
    if reply.len() > limit {
        return reply.truncate(end);
    }
    let length = (reply.len() - start - 11) as u16;
    reply[start + 9..start + 11].copy_from_slice(&length.to_be_bytes());
}

/// The reply to what could not be read as a query: a header and nothing else. `None` when there is no header.
pub fn unreadable(message: &[u8], rcode: Rcode) -> Option<Vec<u8>> {
    let mut out = message.get(..HEADER)?.to_vec();
    out[2] = out[2] & 0b0111_1001 | (QR >> 8) as u8;
    out[3] = RA as u8 | rcode as u8;
    out[4..].fill(0);
    Some(out)
}

/// Writes header and question for `query` over those of the answer that `out` starts with.
fn finish(out: &mut [u8], query: &Query<'_>, answer: &Answer<'_>, counts: [u16; 3]) {
    // CD is the server's: one that does not validate need not repeat it. It was asked with the asker's.
    let mut flags = answer.flags & !wire::RD | query.flags & wire::RD;
    if query.edns.is_none() && answer.rcode() > 0xf {
        // The code does not fit without OPT; its low bits alone would mean something else.
        flags = flags & !0xf | Rcode::ServFail as u16;
    }
    for (at, word) in [query.id, flags, 1, counts[0], counts[1], counts[2]].into_iter().enumerate() {
        out[2 * at..2 * at + 2].copy_from_slice(&word.to_be_bytes());
    }
    out[HEADER..HEADER + query.question.len()].copy_from_slice(&query.question);
}

/// Our OPT record in place of the resolver's: its options and its half of the code go along. Options that are cut off stay
/// behind: an asker could not read them, nor what we add.
fn put_opt(out: &mut Vec<u8>, answer: &Answer<'_>, query: &Query<'_>, ede: Option<&Ede>) {
    let theirs = answer.opt.map_or(&[][..], |(start, end)| &answer.message[start + 11..end]);
    let options = if query::options(theirs).is_some() { theirs } else { &[] };
    put_opt_with(out, answer.rcode(), query.dnssec_ok(), options, ede);
}

fn put_opt_with(out: &mut Vec<u8>, rcode: u16, dnssec_ok: bool, options: &[u8], ede: Option<&Ede>) {
    out.push(0);
    out.extend_from_slice(&rtype::OPT.to_be_bytes());
    out.extend_from_slice(&(UDP_OCTETS as u16).to_be_bytes());
    out.extend_from_slice(&[(rcode >> 4) as u8, 0, u8::from(dnssec_ok) << 7, 0]);
    let length_at = out.len();
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(options);
    if let Some(ede) = ede {
        put_ede(out, ede);
    }
    let length = (out.len() - length_at - 2) as u16;
    out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
}

fn put_ede(out: &mut Vec<u8>, ede: &Ede) {
    const EDE: u16 = 15;
    let text = cut(&ede.text, EDE_TEXT);
    for word in [EDE, 2 + text.len() as u16, ede.code as u16] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(text.as_bytes());
}

/// At most `octets` octets of `text`, cut between characters.
fn cut(text: &str, octets: usize) -> &str {
    let end = (0..=octets.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests;
