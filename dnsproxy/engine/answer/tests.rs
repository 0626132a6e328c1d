use hickory_proto::op::{Message, MessageType, OpCode, Query as HickoryQuery, ResponseCode};
use hickory_proto::rr::{Name as HickoryName, RData, Record as HickoryRecord, RecordType};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> HickoryName {
    HickoryName::from_ascii(text).expect("a name")
}

/// `owner ttl type data`, as in a zone file.
fn record(line: &str) -> HickoryRecord {
    let words: Vec<&str> = line.splitn(4, ' ').collect();
    let [owner, ttl, kind, data] = words[..] else { panic!("four words, not {line}") };
    let rdata = match kind {
        "A" => RData::A(data.parse().expect("an address")),
        "AAAA" => RData::AAAA(data.parse().expect("an address")),
        "CNAME" => RData::CNAME(hickory_proto::rr::rdata::CNAME(name(data))),
        other => RData::try_from_str(other.parse().expect("a type"), data).expect("data"),
    };
    HickoryRecord::from_rdata(name(owner), ttl.parse().expect("seconds"), rdata)
}

fn message(qname: &str, qtype: RecordType, lines: &[&str]) -> Message {
    let mut message = Message::new(7, MessageType::Response, OpCode::Query);
    message.add_query(HickoryQuery::query(name(qname), qtype));
    message.add_answers(lines.iter().map(|line| record(line)));
    message
}

fn query(qname: &str, qtype: RecordType) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(HickoryQuery::query(name(qname), qtype));
    message.to_vec().expect("octets")
}

fn learn(message: &Message) -> Result<(Vec<String>, u32), Nothing> {
    let asked = query(&message.queries[0].name().to_string(), message.queries[0].query_type());
    let octets = message.to_vec().expect("octets");
    let learned = Answer::parse(&octets).expect("an answer").learn(&Query::parse(&asked).expect("a query"))?;
    Ok((learned.addresses.iter().map(ToString::to_string).collect(), learned.ttl))
}

#[track_caller]
fn teaches(qtype: RecordType, lines: &[&str], addresses: &[&str], ttl: u32) {
    let learned = learn(&message("www.example.com.", qtype, lines)).expect("learned");
    assert_eq!(learned, (addresses.iter().map(ToString::to_string).collect(), ttl));
}

#[track_caller]
fn teaches_nothing(qtype: RecordType, lines: &[&str], why: Nothing) {
    assert_eq!(learn(&message("www.example.com.", qtype, lines)), Err(why));
}

#[test]
fn addresses_of_the_name_are_learned_once_each() {
    let lines =
        ["www.example.com. 60 A 192.0.2.1", "www.example.com. 30 A 192.0.2.2", "www.example.com. 60 A 192.0.2.1"];
    teaches(RecordType::A, &lines, &["192.0.2.1", "192.0.2.2"], 30);
    teaches(RecordType::AAAA, &["www.example.com. 9 AAAA 2001:db8::1"], &["2001:db8::1"], 9);
}

#[test]
fn a_chain_is_followed_in_any_order_and_its_least_ttl_counts() {
    let chain = ["www.example.com. 300 CNAME b.test.", "b.test. 5 CNAME C.test.", "c.TEST. 60 A 192.0.2.1"];
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]] {
        teaches(RecordType::A, &order.map(|at| chain[at]), &["192.0.2.1"], 5);
    }
}

#[test]
fn what_is_not_at_the_end_of_the_chain_teaches_nothing() {
    let stray = ["www.example.com. 9 CNAME b.test.", "b.test. 9 A 192.0.2.1", "evil.test. 9 A 192.0.2.66"];
    teaches(RecordType::A, &stray, &["192.0.2.1"], 9);
    let beside = ["www.example.com. 9 CNAME b.test.", "www.example.com. 9 A 192.0.2.66", "b.test. 9 A 192.0.2.1"];
    teaches(RecordType::A, &beside, &["192.0.2.1"], 9);
    teaches_nothing(RecordType::A, &["evil.test. 9 A 192.0.2.66"], Nothing::Empty);
}

#[test]
fn gaps_loops_and_forks_teach_nothing() {
    teaches_nothing(RecordType::A, &["www.example.com. 9 CNAME b.test.", "c.test. 9 A 192.0.2.1"], Nothing::Empty);
    teaches_nothing(RecordType::A, &["www.example.com. 9 CNAME www.example.com."], Nothing::Chain);
    let circle = ["www.example.com. 9 CNAME b.test.", "b.test. 9 CNAME www.example.com.", "b.test. 9 A 192.0.2.1"];
    teaches_nothing(RecordType::A, &circle, Nothing::Chain);
    let fork = ["www.example.com. 9 CNAME b.test.", "www.example.com. 9 CNAME c.test.", "b.test. 9 A 192.0.2.1"];
    teaches_nothing(RecordType::A, &fork, Nothing::Chain);
}

#[test]
fn a_chain_of_16_teaches_and_one_of_17_does_not() {
    for (length, known) in [(16, true), (17, false)] {
        let mut lines = vec!["www.example.com. 9 CNAME n0.test.".to_owned()];
        lines.extend((1..length).map(|at| format!("n{}.test. 9 CNAME n{at}.test.", at - 1)));
        lines.push(format!("n{}.test. 9 A 192.0.2.1", length - 1));
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(learn(&message("www.example.com.", RecordType::A, &lines)).is_ok(), known, "{length}");
    }
}

#[test]
fn only_the_asked_type_is_learned() {
    let lines = ["www.example.com. 9 A 192.0.2.1", "www.example.com. 9 AAAA 2001:db8::1"];
    teaches(RecordType::A, &lines, &["192.0.2.1"], 9);
    teaches(RecordType::AAAA, &lines, &["2001:db8::1"], 9);
    teaches_nothing(RecordType::MX, &lines, Nothing::Type);
    teaches_nothing(RecordType::HTTPS, &lines, Nothing::Empty);
    let hints = ["www.example.com. 9 HTTPS 1 . ipv4hint=192.0.2.1"];
    teaches_nothing(RecordType::A, &hints, Nothing::Empty);
    teaches_nothing(RecordType::SVCB, &hints, Nothing::Empty);
}

#[test]
fn hints_of_both_families_are_learned_from_every_binding_at_the_end_of_the_chain() {
    let lines = [
        "www.example.com. 300 CNAME b.test.",
        "b.test. 60 HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1",
        "b.test. 30 HTTPS 2 other.test. ipv4hint=192.0.2.3",
        "b.test. 5 HTTPS 3 . alpn=h3",
    ];
    teaches(RecordType::HTTPS, &lines, &["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"], 30);
    teaches(RecordType::SVCB, &["www.example.com. 7 SVCB 1 . ipv4hint=192.0.2.1"], &["192.0.2.1"], 7);
}

#[test]
fn hints_off_the_chain_and_of_an_alias_teach_nothing() {
    let stray = ["www.example.com. 9 CNAME b.test.", "evil.test. 9 HTTPS 1 . ipv4hint=192.0.2.66"];
    teaches_nothing(RecordType::HTTPS, &stray, Nothing::Empty);
    let beside = ["www.example.com. 9 CNAME b.test.", "www.example.com. 9 HTTPS 1 . ipv4hint=192.0.2.66"];
    teaches_nothing(RecordType::HTTPS, &beside, Nothing::Empty);
    teaches_nothing(RecordType::HTTPS, &["www.example.com. 9 HTTPS 0 svc.test."], Nothing::Empty);
    // An alias with a hint, which no zone file can say.
    let octets = b"\0\x07\x80\0\0\x01\0\x01\0\0\0\0\x01w\0\0\x41\0\x01\
        \xc0\x0c\0\x41\0\x01\0\0\0\x3c\0\x0b\0\0\0\0\x04\0\x04\xc0\0\x02\x42";
    let asked = query("w.", RecordType::HTTPS);
    let query = Query::parse(&asked).expect("a query");
    assert_eq!(Answer::parse(octets).expect("an answer").learn(&query), Err(Nothing::Empty));
}

#[test]
fn errors_truncation_and_other_classes_teach_nothing() {
    let good = || message("www.example.com.", RecordType::A, &["www.example.com. 9 A 192.0.2.1"]);
    let mut failed = good();
    failed.metadata.response_code = ResponseCode::NXDomain;
    assert_eq!(learn(&failed), Err(Nothing::Rcode));
    let mut cut = good();
    cut.metadata.truncation = true;
    assert_eq!(learn(&cut), Err(Nothing::Truncated));
    let mut chaos = good();
    chaos.answers[0].dns_class = hickory_proto::rr::DNSClass::CH;
    assert_eq!(learn(&chaos), Err(Nothing::Empty));
}

#[test]
fn a_ttl_with_the_top_bit_counts_as_zero() {
    teaches(RecordType::A, &["www.example.com. 4294967295 A 192.0.2.1"], &["192.0.2.1"], 0);
}

#[test]
fn a_question_that_came_back_otherwise_is_told_apart() {
    let asked = query("wWw.example.com.", RecordType::A);
    let question = &asked[HEADER..];
    let reply = |qname, qtype| message(qname, qtype, &[]).to_vec().expect("octets");
    assert_eq!(matches(&reply("wWw.example.com.", RecordType::A), question), Match::Exact);
    assert_eq!(matches(&reply("www.example.com.", RecordType::A), question), Match::Case);
    assert_eq!(matches(&reply("wWw.example.com.", RecordType::AAAA), question), Match::No);
    assert_eq!(matches(&reply("wWw.example.org.", RecordType::A), question), Match::No);
    assert_eq!(matches(&asked, question), Match::No);
    assert_eq!(matches(&[0; 20], question), Match::No);
}

#[test]
fn records_that_do_not_fit_are_refused_before_they_are_read() {
    let mut octets = message("www.example.com.", RecordType::A, &[]).to_vec().expect("octets");
    octets[6..12].fill(0xff);
    assert!(matches!(Answer::parse(&octets), Err(AnswerError::Format(_))));
}

proptest! {
    #[test]
    fn any_octets_are_read_or_refused_and_never_panic(octets in prop::collection::vec(any::<u8>(), 0..600)) {
        walk(&octets);
    }

    #[test]
    fn a_damaged_answer_never_panics(changes in prop::collection::vec((0usize..200, any::<u8>()), 0..8)) {
        let lines = ["www.example.com. 300 CNAME b.test.", "b.test. 5 CNAME c.test.", "c.test. 60 A 192.0.2.1"];
        let mut octets = message("www.example.com.", RecordType::A, &lines).to_vec().unwrap();
        for (at, octet) in changes {
            if let Some(place) = octets.get_mut(at) {
                *place = octet;
            }
        }
        walk(&octets);
    }

    #[test]
    fn the_walk_sees_what_hickory_sees(
        lines in prop::collection::vec((0usize..6, 0u32..100_000, 0usize..3, 0usize..6, any::<u32>()), 0..12),
    ) {
        const NAMES: [&str; 6] = ["www.example.com.", "b.example.com.", "c.test.", "d.test.", ".", "*.e.test."];
        let lines: Vec<String> = lines
            .iter()
            .map(|&(owner, ttl, kind, target, address)| match kind {
                0 => format!("{} {ttl} A {}", NAMES[owner], Ipv4Addr::from(address)),
                1 => format!("{} {ttl} AAAA {}", NAMES[owner], Ipv6Addr::from(u128::from(address) << 96 | 1)),
                _ => format!("{} {ttl} CNAME {}", NAMES[owner], NAMES[target]),
            })
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let theirs = message("www.example.com.", RecordType::A, &lines);
        let octets = theirs.to_vec().unwrap();
        let ours = Answer::parse(&octets).unwrap();
        let seen: Vec<_> = ours
            .records(0)
            .map(|record| {
                let owner = NameBuf::read(&octets, record.start).unwrap();
                (Name::from_wire(owner.as_wire()).unwrap().to_string(), record.rtype, record.ttl, record.address())
            })
            .collect();
        let expected: Vec<_> = theirs
            .answers
            .iter()
            .map(|r| (r.name.to_string().to_ascii_lowercase(), u16::from(r.record_type()), r.ttl, r.data.ip_addr()))
            .collect();
        prop_assert_eq!(seen, expected);
        let learned = learn(&theirs).map(|(addresses, _)| addresses).unwrap_or_default();
        prop_assert_eq!(learned, naive(&theirs));
    }
}

/// The rule once more, on hickory's records: follow the only CNAME until there is none.
fn naive(message: &Message) -> Vec<String> {
    let mut owner = message.queries[0].name().to_lowercase();
    let mut seen = vec![owner.clone()];
    loop {
        let mut targets: Vec<HickoryName> = Vec::new();
        for record in message.answers.iter().filter(|record| record.name.to_lowercase() == owner) {
            if let RData::CNAME(target) = &record.data {
                targets.push(target.0.to_lowercase());
            }
        }
        targets.sort();
        targets.dedup();
        match targets.len() {
            0 => break,
            1 if !seen.contains(&targets[0]) => owner = targets.remove(0),
            _ => return Vec::new(),
        }
        seen.push(owner.clone());
    }
    let mut found = std::collections::BTreeSet::new();
    for record in message.answers.iter().filter(|record| record.name.to_lowercase() == owner) {
        if let RData::A(address) = &record.data {
            found.insert(address.0);
        }
    }
    found.iter().map(ToString::to_string).collect()
}

fn walk(octets: &[u8]) {
    if let Ok(answer) = Answer::parse(octets) {
        for section in 0..3 {
            assert_eq!(answer.records(section).count(), usize::from(answer.counts[section]));
        }
        answer.cnames().count();
        answer.addresses().count();
        answer.rcode();
        let asked = query("www.example.com.", RecordType::A);
        let _ = answer.learn(&Query::parse(&asked).expect("a query"));
    }
}
