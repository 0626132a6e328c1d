//! The stage "query": one question, read where it lies.
//!
//! Why not hickory here: a full parse costs 2 µs, this one a tenth, and nothing of it is thrown away later. A property
//! test holds the two against each other.

use std::borrow::Cow;

use super::name::Name;
use super::reply::Rcode;
use super::wire::{self, HEADER, QR, rtype, skip_name, skip_plain_name, u16_at};

/// A query that asks one question.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// The asker's number for it.
    pub id: u16,
    /// The header's second 16 bits, as sent.
    pub flags: u16,
    /// The question section as sent: name with the asker's case, type, class.
    pub question: Cow<'a, [u8]>,
    /// The name, folded.
    pub name: Name,
    /// The type asked for.
    pub qtype: u16,
    /// The class asked for.
    pub qclass: u16,
    /// What the OPT record says, if there is one.
    pub edns: Option<Edns>,
}

/// What a query's OPT record says (RFC 6891).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edns {
    /// Octets of UDP payload that the asker takes; below 512 counts as 512.
    pub payload: u16,
    /// 0 is the only version there is.
    pub version: u8,
    /// DNSSEC records are wanted.
    pub dnssec_ok: bool,
    /// A COOKIE option is there (RFC 7873). We hold no server secret, so none goes back.
    pub cookie: bool,
}

/// Why a message is no query that can be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueryError {
    /// There is nobody to answer: not even an ID.
    #[error("{octets} octets; a header has {HEADER}")]
    Short {
        /// How many there were.
        octets: usize,
    },
    /// A reply. Answering it would start a loop.
    #[error("a reply, not a query")]
    Reply,
    /// Some other operation.
    #[error("opcode {opcode}; only QUERY (0) is served")]
    Opcode {
        /// The one asked for.
        opcode: u8,
    },
    /// It breaks the format.
    #[error("{0}")]
    Format(&'static str),
}

impl QueryError {
    /// What to answer; `None`: drop.
    pub fn rcode(self) -> Option<Rcode> {
        match self {
            QueryError::Short { .. } | QueryError::Reply => None,
            QueryError::Opcode { .. } => Some(Rcode::NotImp),
            QueryError::Format(_) => Some(Rcode::FormErr),
        }
    }

    /// The word for metrics and flows.
    pub fn reason(self) -> &'static str {
        match self {
            QueryError::Short { .. } => "short",
            QueryError::Reply => "reply",
            QueryError::Opcode { .. } => "opcode",
            QueryError::Format(_) => "format",
        }
    }
}

/// Records that a query may carry behind its question: OPT, and one signature of the transaction.
const MOST_ADDITIONAL: u16 = 2;

/// A query's outline: all of it but the name, which still lies in the message. Costs no allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outline {
    /// The asker's number for it.
    pub id: u16,
    /// The header's second 16 bits, as sent.
    pub flags: u16,
    /// Where the name ends, in the message; it starts behind the header and is plain labels.
    pub name_end: usize,
    /// The type asked for.
    pub qtype: u16,
    /// The class asked for.
    pub qclass: u16,
    /// What the OPT record says, if there is one.
    pub edns: Option<Edns>,
}

impl Outline {
    /// Reads a whole message: exactly one question, nothing behind the last record.
    ///
    /// # Errors
    /// Says whether to drop it or what to answer, see [`QueryError::rcode`].
    pub fn parse(message: &[u8]) -> Result<Outline, QueryError> {
        use QueryError::Format;
        if message.len() < HEADER {
            return Err(QueryError::Short { octets: message.len() });
        }
        let word = |at| u16::from_be_bytes([message[at], message[at + 1]]);
        let (id, flags) = (word(0), word(2));
        if flags & QR != 0 {
            return Err(QueryError::Reply);
        }
        let opcode = (flags >> 11 & 0xf) as u8;
        if opcode != 0 {
            return Err(QueryError::Opcode { opcode });
        }
        let (questions, answers, authority, additional) = (word(4), word(6), word(8), word(10));
        if questions != 1 {
            return Err(Format("a query holds exactly one question"));
        }
        // An IXFR brings the asker's SOA in the authority section; it gets its refusal by type.
        if answers != 0 || authority > 1 || additional > MOST_ADDITIONAL {
            return Err(Format("a query holds no answers, and at most two additional records"));
        }
        let name_end = skip_plain_name(message, HEADER).ok_or(Format("the name asked for is malformed"))?;
        let qtype = u16_at(message, name_end).ok_or(Format("the question is cut off"))?;
        let qclass = u16_at(message, name_end + 2).ok_or(Format("the question is cut off"))?;

        let mut at = name_end + 4;
        let mut edns = None;
        for index in 0..authority + additional {
            let owner = at;
            let fixed = skip_name(message, at).ok_or(Format("a record is cut off"))?;
            let kind = u16_at(message, fixed).ok_or(Format("a record is cut off"))?;
            let length = u16_at(message, fixed + 8).ok_or(Format("a record is cut off"))?;
            let end = fixed + 10 + usize::from(length);
            let rdata = message.get(fixed + 10..end).ok_or(Format("a record is cut off"))?;
            at = end;
            if kind != rtype::OPT {
                continue;
            }
            if index < authority || fixed != owner + 1 || message[owner] != 0 || edns.is_some() {
                return Err(Format("an OPT record is misplaced or there are two"));
            }
            let cookie = options(rdata).ok_or(Format("an EDNS option is cut off"))?;
            edns = Some(Edns {
                payload: u16_at(message, fixed + 2).unwrap_or(0),
                version: message[fixed + 5],
                dnssec_ok: message[fixed + 6] & 0x80 != 0,
                cookie,
            });
        }
        if at != message.len() {
            return Err(Format("octets behind the last record"));
        }
        Ok(Outline { id, flags, name_end, qtype, qclass, edns })
    }

    /// The query, with its name; `message` is what the outline was read from.
    ///
    /// # Errors
    /// The name is no name.
    pub fn query<'a>(&self, message: &'a [u8]) -> Result<Query<'a>, QueryError> {
        let name = message.get(HEADER..self.name_end).and_then(|wire| Name::from_wire(wire).ok());
        let name = name.ok_or(QueryError::Format("the name asked for is malformed"))?;
        let Outline { id, flags, name_end, qtype, qclass, edns } = *self;
        Ok(Query { id, flags, question: Cow::Borrowed(&message[HEADER..name_end + 4]), name, qtype, qclass, edns })
    }
}

impl<'a> Query<'a> {
    /// Reads a whole message, see [`Outline::parse`].
    ///
    /// # Errors
    /// Says whether to drop it or what to answer, see [`QueryError::rcode`].
    pub fn parse(message: &'a [u8]) -> Result<Query<'a>, QueryError> {
        Outline::parse(message)?.query(message)
    }

    /// A query of our own for what a client asked: same name, type and flags, no number.
    pub fn again(name: Name, qtype: u16, flags: u16, dnssec_ok: bool) -> Query<'static> {
        let question = [name.as_wire(), &qtype.to_be_bytes(), &wire::CLASS_IN.to_be_bytes()].concat();
        let edns = dnssec_ok.then_some(Edns { payload: 1232, version: 0, dnssec_ok, cookie: false });
        Query { id: 0, flags, question: Cow::Owned(question), name, qtype, qclass: wire::CLASS_IN, edns }
    }

    /// The same query with its octets copied, so that it outlives the packet.
    pub fn into_owned(self) -> Query<'static> {
        Query {
            id: self.id,
            flags: self.flags,
            question: Cow::Owned(self.question.into_owned()),
            name: self.name,
            qtype: self.qtype,
            qclass: self.qclass,
            edns: self.edns,
        }
    }

    /// RD, AD and CD: the flags that change what a resolver answers.
    pub fn asked_flags(&self) -> u16 {
        self.flags & (wire::RD | wire::AD | wire::CD)
    }

    /// Whether DNSSEC records are wanted.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }
}

/// Walks the options of an OPT record; whether a COOKIE is among them. `None`: they don't fill the record.
pub(super) fn options(mut rdata: &[u8]) -> Option<bool> {
    const COOKIE: u16 = 10;
    let mut cookie = false;
    while !rdata.is_empty() {
        let code = u16_at(rdata, 0)?;
        let length = usize::from(u16_at(rdata, 2)?);
        rdata = rdata.get(4 + length..)?;
        cookie |= code == COOKIE;
    }
    Some(cookie)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Edns as HickoryEdns, Message, MessageType, OpCode, Query as HickoryQuery};
    use hickory_proto::rr::{Name as HickoryName, RecordType};
    use proptest::prelude::*;

    use super::*;

    const PLAIN: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03wWw\x07example\x03com\0\0\x01\0\x01";

    fn with(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut message = PLAIN.to_vec();
        change(&mut message);
        message
    }

    #[track_caller]
    fn refuses(message: &[u8], rcode: Option<Rcode>) {
        let error = Query::parse(message).expect_err("no query");
        assert_eq!(error.rcode(), rcode, "{error}");
    }

    #[test]
    fn a_question_keeps_its_case_and_its_name_is_folded() {
        let query = Query::parse(PLAIN).expect("a query");
        assert_eq!((query.id, query.qtype, query.qclass, query.edns), (0x1234, 1, 1, None));
        assert_eq!(&query.question[..], &PLAIN[12..]);
        assert_eq!(query.name.to_string(), "www.example.com.");
        assert_eq!(query.asked_flags(), wire::RD);
    }

    #[test]
    fn what_has_no_header_or_is_a_reply_is_dropped() {
        for length in 0..12 {
            refuses(&PLAIN[..length], None);
        }
        refuses(&with(|message| message[2] |= 0x80), None);
    }

    #[test]
    fn other_operations_are_not_implemented() {
        for opcode in 1..16u8 {
            refuses(&with(|message| message[2] |= opcode << 3), Some(Rcode::NotImp));
        }
    }

    #[test]
    fn every_cut_of_a_query_is_a_format_error() {
        for length in 12..PLAIN.len() {
            refuses(&PLAIN[..length], Some(Rcode::FormErr));
        }
    }

    #[test]
    fn counts_pointers_and_trailing_octets_are_format_errors() {
        refuses(&with(|message| message[5] = 0), Some(Rcode::FormErr));
        refuses(&with(|message| message[5] = 2), Some(Rcode::FormErr));
        refuses(&with(|message| message[7] = 1), Some(Rcode::FormErr));
        refuses(&with(|message| message[9] = 2), Some(Rcode::FormErr));
        refuses(&with(|message| message[11] = 3), Some(Rcode::FormErr));
        refuses(&with(|message| message[10] = 0xff), Some(Rcode::FormErr));
        refuses(&with(|message| message.push(0)), Some(Rcode::FormErr));
        refuses(b"\0\0\0\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01", Some(Rcode::FormErr));
    }

    #[test]
    fn an_opt_record_says_size_version_do_and_cookie() {
        let query = with(|message| {
            message[11] = 1;
            message.extend(b"\0\0\x29\x04\xd0\0\0\x80\0\0\x0c\0\x0a\0\x08abcdefgh");
        });
        let edns = Query::parse(&query).expect("a query").edns.expect("edns");
        assert_eq!(edns, Edns { payload: 1232, version: 0, dnssec_ok: true, cookie: true });
    }

    #[test]
    fn a_misplaced_second_or_cut_opt_record_is_a_format_error() {
        const OPT: &[u8] = b"\0\0\x29\x04\xd0\0\0\0\0\0\0";
        refuses(&with(|m| (m[11] = 2, m.extend(OPT.repeat(2))).0), Some(Rcode::FormErr));
        refuses(&with(|m| (m[9] = 1, m.extend(OPT)).0), Some(Rcode::FormErr));
        refuses(&with(|m| (m[11] = 1, m.extend(b"\x01a\0\0\x29\x04\xd0\0\0\0\0\0\0")).0), Some(Rcode::FormErr));
        refuses(
            &with(|m| (m[11] = 1, m.extend(b"\0\0\x29\x04\xd0\0\0\0\0\0\x04\0\x0a\0\x08")).0),
            Some(Rcode::FormErr),
        );
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_refused_and_never_panic(octets in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Query::parse(&octets);
        }

        #[test]
        fn a_damaged_query_is_read_as_hickory_reads_it_or_refused(
            changes in prop::collection::vec((12usize..52, any::<u8>()), 0..4),
        ) {
            let mut message = with(|message| {
                message[11] = 1;
                message.extend(b"\0\0\x29\x04\xd0\0\0\x80\0\0\0");
            });
            for (at, octet) in changes {
                if let Some(place) = message.get_mut(at) {
                    *place = octet;
                }
            }
            if let Ok(ours) = Query::parse(&message) {
                // We are the stricter one, so what we read hickory reads too. (It knows EDNS options, and so may refuse
                // one.)
                if let Ok(theirs) = Message::from_vec(&message) {
                    prop_assert_eq!(theirs.queries.len(), 1);
                    prop_assert_eq!(u16::from(theirs.queries[0].query_type()), ours.qtype);
                    prop_assert_eq!(u16::from(theirs.queries[0].query_class()), ours.qclass);
                    let dnssec_ok = theirs.edns.map(|edns| edns.flags().dnssec_ok);
                    prop_assert_eq!(dnssec_ok, ours.edns.map(|edns| edns.dnssec_ok));
                }
            }
        }

        #[test]
        fn what_hickory_builds_is_read_alike(
            id in any::<u16>(),
            labels in prop::collection::vec("[a-zA-Z0-9_][a-zA-Z0-9_-]{0,19}", 0..8),
            qtype in 1u16..300,
            rd in any::<bool>(),
            edns in prop::option::of((0u16..4096, any::<bool>())),
        ) {
            let text = format!("{}.", labels.join("."));
            let mut message = Message::new(id, MessageType::Query, OpCode::Query);
            message.metadata.recursion_desired = rd;
            message.add_query(HickoryQuery::query(HickoryName::from_ascii(&text).unwrap(), RecordType::from(qtype)));
            if let Some((payload, dnssec_ok)) = edns {
                let mut record = HickoryEdns::new();
                record.set_max_payload(payload).set_dnssec_ok(dnssec_ok);
                message.set_edns(record);
            }
            let octets = message.to_vec().unwrap();
            let query = Query::parse(&octets).unwrap();
            prop_assert_eq!(query.id, id);
            prop_assert_eq!(query.qtype, qtype);
            prop_assert_eq!(query.name.to_string(), text.to_ascii_lowercase());
            prop_assert_eq!(query.asked_flags() & wire::RD != 0, rd);
            // hickory raises a payload below 512 when it builds one.
            prop_assert_eq!(query.edns.map(|e| (e.payload, e.dnssec_ok)), edns.map(|(p, d)| (p.max(512), d)));
        }
    }
}
