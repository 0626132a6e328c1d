//! A client's message: what namegate reads, hickory-proto reads alike. Where one is stricter, it is known why.

use hickory_proto::op::{Message, MessageType, OpCode};
use hickory_proto::rr::rdata::opt::EdnsCode;
use namegate::engine::query::{Query, QueryError};

use super::cost::{self, Limit};
use super::naive::{self, HEADER, OPT, outline, word};

/// The name is kept.
const LIMIT: Limit = Limit { held: (2, 512), allocations: (0, 8) };

pub fn check(message: &[u8]) {
    match (cost::within(message.len(), LIMIT, || Query::parse(message)), Message::from_vec(message)) {
        (Ok(ours), Ok(theirs)) => {
            if let Some(places) = outline(message) {
                assert_eq!(places.end, message.len());
            }
            alike(&ours, &theirs);
        }
        // hickory looks into records and options that a query has no use for, and follows the names of their owners.
        (Ok(ours), Err(_)) => {
            let places = outline(message).expect("what was read is whole");
            let neutral = naive::neutral(message, &places, |_| false);
            alike(&ours, &naive::read(&neutral, "a query without foreign records"));
        }
        (Err(ours), Ok(theirs)) => {
            assert!(is_known_to_be_stricter(message, ours, &theirs), "{ours}: {message:02x?}");
        }
        (Err(ours), Err(_)) => assert_eq!(ours == QueryError::Short { octets: message.len() }, message.len() < HEADER),
    }
}

/// Both read the same.
fn alike(ours: &Query<'_>, theirs: &Message) {
    let metadata = &theirs.metadata;
    assert_eq!(ours.id, metadata.id);
    assert_eq!(metadata.message_type, MessageType::Query);
    let flags = [metadata.recursion_desired, metadata.authentic_data, metadata.checking_disabled];
    assert_eq!([0x100, 0x20, 0x10].map(|flag| ours.asked_flags() & flag != 0), flags);
    let [question] = &theirs.queries[..] else { panic!("{} questions", theirs.queries.len()) };
    assert_eq!(ours.name.as_wire(), naive::wire(question.name()));
    assert_eq!(ours.question[..ours.question.len() - 4].to_ascii_lowercase(), ours.name.as_wire());
    assert_eq!(ours.qtype, u16::from(question.query_type()));
    assert_eq!(ours.qclass, u16::from(question.query_class()));
    assert!(theirs.answers.is_empty());
    assert_eq!(ours.edns.is_some(), theirs.edns.is_some());
    let (Some(ours), Some(theirs)) = (ours.edns, &theirs.edns) else { return };
    // hickory raises what is below 512.
    assert_eq!(ours.payload.max(512), theirs.max_payload());
    assert_eq!(ours.version, theirs.version());
    assert_eq!(ours.dnssec_ok, theirs.flags().dnssec_ok);
    assert_eq!(ours.cookie, theirs.option(EdnsCode::Cookie).is_some());
}

/// Why namegate refuses what hickory reads.
fn is_known_to_be_stricter(message: &[u8], ours: QueryError, theirs: &Message) -> bool {
    let count = |at| word(message, at).unwrap_or(0);
    match ours {
        QueryError::Short { .. } => false,
        QueryError::Reply => theirs.metadata.message_type == MessageType::Response,
        QueryError::Opcode { opcode } => {
            theirs.metadata.op_code != OpCode::Query && u8::from(theirs.metadata.op_code) == opcode
        }
        QueryError::Format(_) if count(4) != 1 => true,
        QueryError::Format(_) if count(6) != 0 || count(8) > 1 || count(10) > 2 => true,
        QueryError::Format(_) => match outline(message) {
            // The question's name is compressed: there is nothing before it but the header.
            None => message[HEADER..].iter().any(|octet| *octet >= 0xc0),
            Some(places) => {
                let opt = places.records.iter().find(|record| record.rtype == OPT);
                // Octets behind the last record; an OPT record whose owner is the root by way of a pointer; options that
                // don't fill their record, which hickory ignores all together.
                places.end < message.len()
                    || opt.is_some_and(|opt| {
                        opt.fixed != opt.start + 1 || !naive::options_are_whole(&message[opt.data..opt.end])
                    })
            }
        },
    }
}
