//! What goes up and what comes back: the query that is built is the one that was asked, and a datagram matches its
//! question only if it repeats it.
//!
//! Octets: flags, how many labels, the name's octets, type, class; then changes to the reply, three octets each: where
//! (two), and what to turn over.

use hickory_proto::op::{Header, MessageType, OpCode, Query as Question};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use namegate::engine::answer::{Match, is_truncated, matches};
use namegate::engine::query::Query;
use namegate::upstream::chance::Chance;
use namegate::upstream::message::{self, Letters};

use super::naive::{self, HEADER, outline};

pub fn check(octets: &[u8]) {
    let Some((&[flags, labels], mut rest)) = octets.split_first_chunk::<2>() else { return };
    let mut asked = vec![0x12, 0x34, flags & 1, flags & 0x30, 0, 1, 0, 0, 0, 0, 0, flags >> 1 & 1];
    for _ in 0..labels & 7 {
        let Some((&length, behind)) = rest.split_first() else { return };
        let length = usize::from(length & 63);
        if length == 0 || behind.len() < length {
            return;
        }
        asked.push(length as u8);
        asked.extend(&behind[..length]);
        rest = &behind[length..];
    }
    asked.push(0);
    let Some((fixed, changes)) = rest.split_first_chunk::<4>() else { return };
    asked.extend(fixed);
    if flags & 2 != 0 {
        asked.extend([0, 0, 41, 4, 208, 0, 0, flags & 0x80, 0, 0, 0]);
    }
    let Ok(query) = Query::parse(&asked) else {
        assert!(asked.len() > 255, "a query by the rules is read: {asked:02x?}");
        return;
    };
    let mut chance = Chance::new();
    let opt = flags & 4 != 0;
    let letters = if flags & 8 != 0 { Letters::Mixed(&mut chance) } else { Letters::Lower };
    let mut built = message::build(&query, letters, opt);
    message::set_id(&mut built, 0xbeef);
    asks_the_same(&query, &built, opt);

    let question = built[HEADER..HEADER + query.question.len()].to_vec();
    let mut reply = built.clone();
    reply[2] |= 0x80;
    assert_eq!(matches(&reply, &question), Match::Exact);
    for length in [0, 1, HEADER, HEADER + question.len() - 1] {
        assert_eq!(matches(&reply[..length], &question), Match::No, "cut at {length}");
    }
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % reply.len();
        reply[at] ^= change[2];
        assert_eq!(matches(&reply, &question), model(&reply, &question), "{reply:02x?} answers {question:02x?}");
        assert_eq!(is_truncated(&reply), reply[2] & 2 != 0);
    }
}

/// What was built is one question: the name but for its case, type, class, flags, and our own OPT record.
fn asks_the_same(query: &Query<'_>, built: &[u8], opt: bool) {
    let places = outline(built).expect("it is whole");
    let theirs = naive::read(&naive::neutral(built, &places, |_| true), "the query that goes up");
    assert_eq!((places.end, theirs.metadata.id), (built.len(), 0xbeef));
    let [question] = &theirs.queries[..] else { panic!("{} questions", theirs.queries.len()) };
    assert_eq!(naive::wire(question.name()), query.name.as_wire());
    assert_eq!((u16::from(question.query_type()), u16::from(question.query_class())), (query.qtype, query.qclass));
    let again = Query::parse(built).expect("a query");
    assert_eq!(again.asked_flags(), query.asked_flags());
    assert_eq!(again.edns.is_some(), opt);
    assert_eq!(again.dnssec_ok(), opt && query.dnssec_ok());
}

/// By hickory's reading of the reply's header and question.
fn model(reply: &[u8], question: &[u8]) -> Match {
    let mut decoder = BinDecoder::new(reply);
    let Ok(header) = Header::read(&mut decoder) else { return Match::No };
    let whole = header.metadata.message_type == MessageType::Response
        && header.metadata.op_code == OpCode::Query
        && header.counts.queries == 1;
    let plain = naive::name(reply, HEADER).is_some_and(|(name, end)| name.len() == end - HEADER);
    let (Ok(theirs), true, true) = (Question::read(&mut decoder), whole, plain) else { return Match::No };
    let ours = Question::read(&mut BinDecoder::new(question)).expect("the question is a question");
    if theirs.query_type() != ours.query_type() || theirs.query_class() != ours.query_class() {
        Match::No
    } else if theirs.name().eq_case(ours.name()) {
        Match::Exact
    } else if theirs.name() == ours.name() {
        Match::Case
    } else {
        Match::No
    }
}
