//! The query that goes up: ours, not the workload's. Nothing of what a client adds reaches the resolver.

use crate::engine::query::Query;
use crate::engine::reply::UDP_OCTETS;
use crate::engine::wire::{HEADER, rtype};

use super::chance::Chance;

/// How the letters of the name are written.
pub enum Letters<'a> {
    /// At random: a reply must repeat them.
    Mixed(&'a mut Chance),
    /// In lower case: over TCP, to a server that does not repeat them.
    Lower,
}

/// A query for what `query` asks, with its ID still to be set: name, type, class, and RD, AD and CD as the client set
/// them.
///
/// With OPT it takes 1232 octets over UDP and says DO if the client did.
pub fn build(query: &Query<'_>, letters: Letters<'_>, opt: bool) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + query.question.len() + 11);
    for word in [0, query.asked_flags(), 1, 0, 0, 0] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    message.extend_from_slice(query.name.as_wire());
    if let Letters::Mixed(chance) = letters {
        chance.mix_case(&mut message[HEADER..]);
    }
    message.extend_from_slice(&query.qtype.to_be_bytes());
    message.extend_from_slice(&query.qclass.to_be_bytes());
    if opt {
        put_opt(&mut message, 0, query.dnssec_ok(), &[]);
    }
    message
}

/// Writes the ID of a built query.
pub fn set_id(message: &mut [u8], id: u16) {
    message[..2].copy_from_slice(&id.to_be_bytes());
}

/// Adds the OPT record to the query that was built without and starts at `start` of `out`; `options` are its options.
pub(super) fn put_opt(out: &mut Vec<u8>, start: usize, dnssec_ok: bool, options: &[u8]) {
    out[start + 11] = 1;
    out.push(0);
    out.extend_from_slice(&rtype::OPT.to_be_bytes());
    out.extend_from_slice(&(UDP_OCTETS as u16).to_be_bytes());
    out.extend_from_slice(&[0, 0, u8::from(dnssec_ok) << 7, 0]);
    out.extend_from_slice(&(options.len() as u16).to_be_bytes());
    out.extend_from_slice(options);
}

/// The same query for a connection: letters in lower case, for no one can forge there, and no options.
pub(super) fn for_stream(built: &[u8], opt: bool, dnssec_ok: bool) -> Vec<u8> {
    let mut message = Vec::with_capacity(built.len() + 11);
    message.extend_from_slice(built);
    let name_end = built.len() - 4;
    message[HEADER..name_end].make_ascii_lowercase();
    if opt {
        put_opt(&mut message, 0, dnssec_ok, &[]);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: &[u8] = b"\x12\x34\x01\x30\0\x01\0\0\0\0\0\x01\x03wWw\x07example\x03com\0\0\x1c\0\x01\
        \0\0\x29\x10\0\0\0\x80\0\0\x0c\0\x0a\0\x08abcdefgh";

    #[test]
    fn what_goes_up_asks_the_same_and_carries_no_option_of_the_client() {
        let query = Query::parse(ASKED).expect("a query");
        let mut chance = Chance::new();
        let mut built = build(&query, Letters::Mixed(&mut chance), true);
        set_id(&mut built, 77);
        let up = Query::parse(&built).expect("a query");
        assert_eq!((up.id, &up.name, up.qtype, up.qclass), (77, &query.name, query.qtype, query.qclass));
        assert_eq!(up.flags, 0x0130, "RD, AD and CD");
        let edns = up.edns.expect("edns");
        assert_eq!((edns.payload, edns.dnssec_ok, edns.cookie), (1232, true, false));
    }

    #[test]
    fn without_opt_it_is_the_question_alone() {
        let query = Query::parse(ASKED).expect("a query");
        let built = build(&query, Letters::Lower, false);
        assert_eq!(built, b"\0\0\x01\x30\0\x01\0\0\0\0\0\0\x03www\x07example\x03com\0\0\x1c\0\x01");
    }

    #[test]
    fn over_a_connection_the_letters_are_small_and_nothing_else_differs() {
        let query = Query::parse(ASKED).expect("a query");
        let built = build(&query, Letters::Mixed(&mut Chance::new()), false);
        assert_eq!(for_stream(&built, true, true), build(&query, Letters::Lower, true));
        assert_eq!(for_stream(&built, false, true), build(&query, Letters::Lower, false));
    }
}
