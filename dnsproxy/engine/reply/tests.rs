use std::net::IpAddr;

use hickory_proto::op::{Edns as HickoryEdns, Message, MessageType, OpCode, Query as HickoryQuery, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, MX, NS, NULL, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;

use super::rebuild::{Changes, rebuilt};
use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn query_of(qname: &str, qtype: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x0bad, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(HickoryQuery::query(name(qname), qtype));
    if let Some(payload) = edns {
        let mut record = HickoryEdns::new();
        record.set_max_payload(payload);
        message.set_edns(record);
    }
    message.to_vec().expect("octets")
}

/// An answer to `www.example.com A` as a full resolver gives it: chain, authority, glue, OPT.
fn full_answer() -> Message {
    let mut message = Message::new(0x7777, MessageType::Response, OpCode::Query);
    message.metadata.recursion_available = true;
    message.metadata.recursion_desired = true;
    message.add_query(HickoryQuery::query(name("wWw.eXample.com."), RecordType::A));
    message.add_answers([
        Record::from_rdata(name("wWw.eXample.com."), 30, RData::CNAME(CNAME(name("edge.cdn.test.")))),
        Record::from_rdata(name("edge.cdn.test."), 20, RData::A(A::new(192, 0, 2, 1))),
        Record::from_rdata(name("edge.cdn.test."), 20, RData::A(A::new(192, 0, 2, 2))),
        Record::from_rdata(name("edge.cdn.test."), 20, RData::A(A::new(169, 254, 169, 254))),
    ]);
    message.add_authority(Record::from_rdata(name("cdn.test."), 99, RData::NS(NS(name("ns.cdn.test.")))));
    message.add_additional(Record::from_rdata(name("ns.cdn.test."), 99, RData::A(A::new(192, 0, 2, 53))));
    message.set_edns(HickoryEdns::new());
    message
}

const ASKED: &str = "www.EXAMPLE.com.";

/// Gives `answer` back through `make` to a client with or without EDNS and reads the result with hickory.
#[track_caller]
fn replied(answer: &Message, edns: Option<u16>, make: impl Fn(&Query<'_>, &Answer<'_>) -> Vec<u8>) -> Message {
    let (octets, asked) = (answer.to_vec().expect("octets"), query_of(ASKED, RecordType::A, edns));
    let query = Query::parse(&asked).expect("a query");
    let octets = make(&query, &Answer::parse(&octets).expect("an answer"));
    Answer::parse(&octets).expect("a whole reply");
    let reply = Message::from_vec(&octets).expect("a reply");
    assert_eq!(reply.id, 0x0bad);
    assert_eq!(reply.queries[0].name().to_string(), ASKED, "the asker's own case");
    assert_eq!(reply.edns.is_some(), edns.is_some(), "OPT for those who sent one");
    reply
}

fn rebuild_with(keep: fn(IpAddr) -> bool, compress: bool) -> impl Fn(&Query<'_>, &Answer<'_>) -> Vec<u8> {
    move |query, answer| {
        let ede = Ede::new(EdeCode::Filtered, "guard: metadata");
        let changes = Changes { keep: Some(&keep), compress, nothing_left: Some(&ede) };
        rebuilt(query, answer, &changes).expect("rebuilt").message
    }
}

#[test]
fn options_that_are_cut_off_stay_behind() {
    // An option that says it has 251 octets, and has four.
    let mut octets = full_answer().to_vec().expect("octets");
    let length_at = octets.len() - 2;
    octets[length_at..].copy_from_slice(&[0, 8]);
    octets.extend(b"\0\x0f\0\xfbtext");
    let asked = query_of(ASKED, RecordType::A, Some(1232));
    let (query, answer) = (Query::parse(&asked).expect("a query"), Answer::parse(&octets).expect("an answer"));
    let reply = Message::from_vec(&relayed(&query, &answer, Additional::Whole)).expect("a reply");
    assert_eq!(reply.answers.len(), 4);
    assert!(reply.edns.expect("OPT").options().as_ref().is_empty());
}

#[test]
fn an_answer_goes_back_as_it_came_with_the_askers_id_and_case() {
    let reply = replied(&full_answer(), Some(1232), |query, answer| relayed(query, answer, Additional::Whole));
    let sent = full_answer();
    assert_eq!(reply.answers.len(), 4);
    assert_eq!(
        (&reply.answers[1..], &reply.authorities, &reply.additionals),
        (&sent.answers[1..], &sent.authorities, &sent.additionals)
    );
    assert!(reply.recursion_desired && reply.recursion_available);
}

#[test]
fn an_asker_without_edns_gets_no_opt_but_the_rest() {
    let reply = replied(&full_answer(), None, |query, answer| relayed(query, answer, Additional::Whole));
    assert_eq!((reply.answers.len(), reply.additionals.len()), (4, 1));
}

#[test]
fn glue_is_left_out_where_addresses_count() {
    for edns in [None, Some(4096)] {
        let reply = replied(&full_answer(), edns, |query, answer| relayed(query, answer, Additional::OptOnly));
        assert_eq!((reply.answers.len(), reply.authorities.len(), reply.additionals.len()), (4, 1, 0));
    }
}

/// The records by section when `octets` are all that the asker takes.
#[track_caller]
fn sections_within(octets: usize) -> (usize, usize, usize) {
    let reply = replied(&full_answer(), Some(1232), |query, answer| {
        let message = relayed_within(query, answer, Additional::Whole, octets);
        assert!(message.len() <= octets, "{} octets", message.len());
        message
    });
    assert!(!reply.truncation);
    (reply.answers.len(), reply.authorities.len(), reply.additionals.len())
}

#[test]
fn what_is_optional_stays_behind_before_a_reply_is_cut() {
    let sent = full_answer();
    let octets = sent.to_vec().expect("octets").len();
    assert_eq!(sections_within(octets), (4, 1, 1));
    assert_eq!(sections_within(octets - 1), (4, 1, 0));
    assert_eq!(sections_within(octets - 17), (4, 0, 0)); // the glue alone is 16 octets
}

#[test]
fn proofs_and_what_says_that_there_is_none_are_not_optional() {
    let mut none = full_answer();
    none.answers.clear();
    let mut asked = query_of(ASKED, RecordType::A, Some(1232));
    let octets = none.to_vec().expect("octets");
    let answer = Answer::parse(&octets).expect("an answer");
    let left = relayed_within(&Query::parse(&asked).expect("a query"), &answer, Additional::OptOnly, 12);
    assert_eq!(Answer::parse(&left).expect("a reply").counts[1], 1);
    let flags = asked.len() - 4;
    asked[flags] |= 0x80; // DO
    assert_eq!(authority_left(&asked, RecordType::NS), 0);
    assert_eq!(authority_left(&asked, RecordType::Unknown(47)), 1);
    assert_eq!(authority_left(&asked, RecordType::Unknown(50)), 1);
}

/// How many records of the authority section stay when it is too long, if they are of this type.
#[track_caller]
fn authority_left(asked: &[u8], rtype: RecordType) -> u16 {
    let mut sent = full_answer();
    if let RecordType::Unknown(code) = rtype {
        let data = RData::Unknown { code: rtype, rdata: NULL::with(vec![0, 0, 1, code as u8]) };
        sent.authorities = vec![Record::from_rdata(name("www.example.com."), 60, data)];
    }
    let octets = sent.to_vec().expect("octets");
    let answer = Answer::parse(&octets).expect("an answer");
    let left = relayed_within(&Query::parse(asked).expect("a query"), &answer, Additional::OptOnly, 12);
    Answer::parse(&left).expect("a reply").counts[1]
}

#[test]
fn cd_is_what_the_server_said() {
    for said in [false, true] {
        let mut sent = full_answer();
        sent.metadata.checking_disabled = said;
        let reply = replied(&sent, None, |query, answer| relayed(query, answer, Additional::Whole));
        assert_eq!(reply.checking_disabled, said);
    }
}

#[test]
fn an_asker_with_edns_gets_an_opt_even_if_the_resolver_sent_none() {
    let mut plain = full_answer();
    plain.edns = None;
    replied(&plain, Some(512), |query, answer| relayed(query, answer, Additional::Whole));
    replied(&plain, Some(512), |query, answer| relayed(query, answer, Additional::OptOnly));
}

#[test]
fn a_code_that_needs_an_opt_becomes_servfail_without_one() {
    let mut odd = full_answer();
    odd.metadata.response_code = ResponseCode::BADVERS;
    let whole = |query: &Query<'_>, answer: &Answer<'_>| relayed(query, answer, Additional::Whole);
    assert_eq!(replied(&odd, None, whole).response_code, ResponseCode::ServFail);
    assert_eq!(u16::from(replied(&odd, Some(1232), whole).response_code), 16);
}

#[test]
fn a_cut_reply_holds_the_question_alone() {
    for edns in [None, Some(1232)] {
        let reply = replied(&full_answer(), edns, truncated);
        assert!(
            reply.truncation
                && reply.answers.is_empty()
                && reply.authorities.is_empty()
                && reply.additionals.is_empty()
        );
    }
}

#[test]
fn addresses_that_may_not_stay_are_taken_out_everywhere() {
    for compress in [true, false] {
        let keep: fn(IpAddr) -> bool = |address| address.to_string() == "192.0.2.1";
        let reply = replied(&full_answer(), Some(1232), rebuild_with(keep, compress));
        let sent = full_answer();
        assert_eq!(reply.answers[1..], sent.answers[1..2]);
        assert_eq!(reply.answers[0].name.to_string(), ASKED);
        assert_eq!((&reply.authorities, reply.additionals.len()), (&sent.authorities, 0));
        assert!(reply.edns.expect("edns").options().as_ref().is_empty(), "no error: an address is left");
    }
}

#[test]
fn when_no_address_is_left_an_extended_error_says_so() {
    let (octets, asked) = (full_answer().to_vec().expect("octets"), query_of(ASKED, RecordType::A, Some(1232)));
    let query = Query::parse(&asked).expect("a query");
    let octets = rebuild_with(|_| false, true)(&query, &Answer::parse(&octets).expect("an answer"));
    let reply = Message::from_vec(&octets).expect("a reply");
    assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::NoError, 1));
    assert!(octets.windows(17).any(|part| part == b"\0\x11guard: metadata"), "code 17 and the text");
    replied(&full_answer(), None, rebuild_with(|_| false, true));
}

#[test]
fn an_uncompressed_reply_holds_no_pointer() {
    let (octets, asked) = (full_answer().to_vec().expect("octets"), query_of(ASKED, RecordType::A, None));
    let query = Query::parse(&asked).expect("a query");
    let answer = Answer::parse(&octets).expect("an answer");
    let plain = rebuild_with(|_| true, false)(&query, &answer);
    let compressed = rebuild_with(|_| true, true)(&query, &answer);
    assert!(plain.len() > compressed.len());
    let reply = Answer::parse(&plain).expect("a reply");
    for record in (0..3).flat_map(|section| reply.records(section)) {
        let name_end = crate::engine::wire::skip_plain_name(&plain, record.start);
        assert_eq!(name_end, Some(record.data - 10));
    }
}

/// `1 . mandatory=alpn,ipv4hint alpn=h2 ipv4hint=192.0.2.1,192.0.2.2 ech=xx ipv6hint=2001:db8::1`
fn some_binding() -> Vec<u8> {
    let mut rdata = b"\0\x01\0\0\0\0\x04\0\x01\0\x04\0\x01\0\x03\x02h2".to_vec();
    rdata.extend(b"\0\x04\0\x08\xc0\0\x02\x01\xc0\0\x02\x02\0\x05\0\x02xx\0\x06\0\x10");
    rdata.extend("2001:db8::1".parse::<std::net::Ipv6Addr>().expect("an address").octets());
    rdata
}

#[test]
fn hints_that_may_not_stay_are_taken_out_of_service_bindings_and_the_rest_stays() {
    let rdata = some_binding();
    let kept = |keep: &[&str]| held(&rdata, Some(&|address: IpAddr| keep.contains(&address.to_string().as_str())));
    let v6 = &rdata[rdata.len() - 20..];
    assert_eq!(kept(&[]), (Some(b"\0\x01\0\0\0\0\x02\0\x01\0\x01\0\x03\x02h2\0\x05\0\x02xx".to_vec()), 3));
    let one = b"\0\x01\0\0\0\0\x04\0\x01\0\x04\0\x01\0\x03\x02h2\0\x04\0\x04\xc0\0\x02\x02\0\x05\0\x02xx";
    assert_eq!(kept(&["192.0.2.2"]), (Some(one.to_vec()), 2));
    assert_eq!(kept(&["192.0.2.2", "2001:db8::1"]), (Some([&one[..], v6].concat()), 1));
    assert_eq!(kept(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]), (Some(rdata.clone()), 0));
}

#[test]
fn a_list_of_mandatory_parameters_that_is_left_empty_goes_too() {
    let nothing: &dyn Fn(IpAddr) -> bool = &|_| false;
    let only = b"\0\x01\x03svc\0\0\0\0\x02\0\x04\0\x04\0\x04\xc0\0\x02\x01";
    assert_eq!(held(only, Some(nothing)), (Some(b"\0\x01\x03svc\0".to_vec()), 1));
}

#[test]
fn a_malformed_service_binding_goes_from_a_selected_name_and_stays_otherwise() {
    let malformed = b"\0\x01\0\0\x04\0\x09\xc0";
    assert_eq!(held(malformed, Some(&|_| true)), (None, 1));
    assert_eq!(held(malformed, None), (Some(malformed.to_vec()), 0));
    assert_eq!(held(&some_binding(), None), (Some(some_binding()), 0));
}

#[test]
fn what_lost_an_address_is_not_called_authentic_any_more() {
    let mut signed = full_answer();
    signed.metadata.authentic_data = true;
    for (keep, authentic) in [(true, true), (false, false)] {
        let keep: fn(IpAddr) -> bool = if keep { |_| true } else { |_| false };
        assert_eq!(replied(&signed, Some(1232), rebuild_with(keep, true)).authentic_data, authentic);
    }
}

/// What is left of an HTTPS record, and how much was taken out.
fn held(rdata: &[u8], keep: Option<&dyn Fn(IpAddr) -> bool>) -> (Option<Vec<u8>>, usize) {
    let mut octets = b"\0\x07\x80\0\0\x01\0\x01\0\0\0\0\x03www\x07example\x03com\0\0\x41\0\x01".to_vec();
    octets.extend(b"\xc0\x0c\0\x41\0\x01\0\0\0\x3c");
    octets.extend((rdata.len() as u16).to_be_bytes());
    octets.extend(rdata);
    let asked = query_of(ASKED, RecordType::HTTPS, None);
    let answer = Answer::parse(&octets).expect("an answer");
    let changes = Changes { keep, compress: true, nothing_left: None };
    let rebuilt = rebuilt(&Query::parse(&asked).expect("a query"), &answer, &changes).expect("rebuilt");
    let reply = Answer::parse(&rebuilt.message).expect("a reply");
    (reply.records(0).next().map(|record| record.rdata().to_vec()), rebuilt.taken)
}

#[test]
fn refusals_carry_code_and_text_to_those_with_edns() {
    let ede = Ede::new(EdeCode::Blocked, "payments/reports");
    for edns in [None, Some(1232)] {
        let asked = query_of(ASKED, RecordType::A, edns);
        let octets = failed(&Query::parse(&asked).expect("a query"), Rcode::Refused, Some(&ede));
        let reply = Message::from_vec(&octets).expect("a reply");
        assert_eq!((reply.id, reply.response_code), (0x0bad, ResponseCode::Refused));
        assert!(reply.recursion_desired && reply.message_type == MessageType::Response);
        assert_eq!(octets.ends_with(b"\0\x0f\0\x12\0\x0fpayments/reports"), edns.is_some());
    }
}

#[test]
fn what_could_not_be_read_gets_a_header() {
    let reply = unreadable(b"\x12\x34\x2d\x80\0\x01\0\0\0\0\0\0garbage", Rcode::NotImp).expect("a reply");
    assert_eq!(reply, b"\x12\x34\xa9\x84\0\0\0\0\0\0\0\0");
    assert_eq!(unreadable(b"\x12\x34", Rcode::FormErr), None);
}

#[test]
fn the_udp_limit_is_between_512_and_1232() {
    for (edns, limit) in [(None, 512), (Some(512), 512), (Some(900), 900), (Some(4096), 1232)] {
        let asked = query_of(ASKED, RecordType::A, edns);
        assert_eq!(udp_limit(Query::parse(&asked).expect("a query").edns), limit);
    }
}

fn some_data(kind: usize, target: Name) -> RData {
    match kind {
        0 => RData::A(A::new(192, 0, 2, 1)),
        1 => RData::CNAME(CNAME(target)),
        2 => RData::MX(MX::new(10, target)),
        3 => RData::SOA(SOA::new(target, name("root.test."), 1, 2, 3, 4, 5)),
        4 => RData::SRV(SRV::new(1, 2, 3, target)),
        _ => RData::TXT(hickory_proto::rr::rdata::TXT::new(vec!["text".to_owned()])),
    }
}

#[test]
fn names_are_written_out_after_so_many_comparisons_and_stay_the_same() {
    // Many owners of many labels, all alike at first sight: after so many comparisons names are written out.
    let mut message = Message::new(1, MessageType::Response, OpCode::Query);
    message.add_query(HickoryQuery::query(name(ASKED), RecordType::A));
    for at in 0..900 {
        let owner = format!("{}{at}.test.", "a.".repeat(20));
        message.add_answer(Record::from_rdata(name(&owner), 60, RData::A(A::new(192, 0, 2, 1))));
    }
    let (octets, asked) = (message.to_vec().expect("octets"), query_of(ASKED, RecordType::A, None));
    let (query, answer) = (Query::parse(&asked).expect("a query"), Answer::parse(&octets).expect("an answer"));
    let changes = Changes { keep: Some(&|_| true), compress: true, nothing_left: None };
    let result = rebuilt(&query, &answer, &changes).expect("rebuilt");
    assert_eq!(Message::from_vec(&result.message).expect("a reply").answers, message.answers);
}

proptest! {
    #[test]
    fn a_rebuilt_answer_reads_as_the_original_without_what_went(
        records in prop::collection::vec((0usize..3, 0usize..5, 0usize..6, 0usize..5), 0..20),
        keep in any::<bool>(),
        compress in any::<bool>(),
        edns in prop::option::of(Just(1232u16)),
    ) {
        const NAMES: [&str; 5] = ["www.EXAMPLE.com.", "a.example.com.", "b.a.example.com.", "other.test.", "."];
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.add_query(HickoryQuery::query(name(ASKED), RecordType::A));
        for (section, owner, kind, target) in records {
            let record = Record::from_rdata(name(NAMES[owner]), 60, some_data(kind, name(NAMES[target])));
            match section {
                0 => message.add_answer(record),
                1 => message.add_authority(record),
                _ => message.add_additional(record),
            };
        }
        let (octets, asked) = (message.to_vec().unwrap(), query_of(ASKED, RecordType::A, edns));
        let (query, answer) = (Query::parse(&asked).unwrap(), Answer::parse(&octets).unwrap());
        let changes = Changes { keep: Some(&|_| keep), compress, nothing_left: None };
        let result = rebuilt(&query, &answer, &changes).unwrap();
        let reply = Message::from_vec(&result.message).unwrap();
        let stays = |records: &[Record]| -> Vec<String> {
            records.iter().filter(|r| keep || r.record_type() != RecordType::A).map(ToString::to_string).collect()
        };
        let all = |records: &[Record]| -> Vec<String> { records.iter().map(ToString::to_string).collect() };
        prop_assert_eq!(all(&reply.answers), stays(&message.answers));
        prop_assert_eq!(all(&reply.authorities), stays(&message.authorities));
        prop_assert_eq!(all(&reply.additionals), stays(&message.additionals));
    }

    #[test]
    fn no_reply_to_a_damaged_answer_panics(changes in prop::collection::vec((2usize..220, any::<u8>()), 0..10)) {
        let mut octets = full_answer().to_vec().unwrap();
        for (at, octet) in changes {
            if let Some(place) = octets.get_mut(at) {
                *place = octet;
            }
        }
        let asked = query_of(ASKED, RecordType::A, Some(1232));
        let query = Query::parse(&asked).unwrap();
        if let Ok(answer) = Answer::parse(&octets) && answer.question().len() == query.question.len() {
            relayed(&query, &answer, Additional::Whole);
            relayed(&query, &answer, Additional::OptOnly);
            truncated(&query, &answer);
            let changes = Changes { keep: Some(&|_| false), compress: true, nothing_left: None };
            let _ = rebuilt(&query, &answer, &changes);
        }
    }
}
