//! A server's message: nothing panics; what is learned is what a naive model on hickory-proto's records finds at the end
//! of the CNAME chain; whatever goes out, hickory reads, holds the records that came in, and no address that was not kept.
//!
//! The first octet is the asker's: OPT or not, letters in another case, what is kept and how names are written.

use std::net::IpAddr;

use hickory_proto::op::{Message, OpCode};
use hickory_proto::rr::rdata::svcb::{SvcParamKey, SvcParamValue};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use namegate::engine::answer::{Answer, AnswerError, CHAIN, Learned, Nothing};
use namegate::engine::query::Query;
use namegate::engine::reply::rebuild::{Changes, rebuilt};
use namegate::engine::reply::{self, Additional, Ede, EdeCode, Rcode};

use super::naive::{self, A, AAAA, CNAME, HEADER, OPT, Outline, outline, word};

pub fn check(octets: &[u8]) {
    let Some((&control, message)) = octets.split_first() else { return };
    let answer = match Answer::parse(message) {
        Ok(answer) => answer,
        Err(error) => return refused(message, error),
    };
    let places = outline(message).expect("what was read is whole");
    assert_eq!((answer.message.len(), answer.ends[0]), (places.end, places.question_end));
    let opt = places.records.iter().find(|record| record.rtype == OPT);
    assert_eq!(answer.opt, opt.map(|opt| (opt.start, opt.end)));
    for section in 0..3 {
        let mine = places.records.iter().filter(|record| record.section == section);
        let found = answer.records(section).map(|record| (record.start, record.rtype, record.class, record.end));
        assert!(found.eq(mine.map(|record| (record.start, record.rtype, record.class, record.end))));
    }
    let question = asker(control, answer.question());
    let query = Query::parse(&question).expect("the question makes a query");
    let (expected, theirs) = model(message, &places, &query);
    if !matches!(query.qtype, 64 | 65) {
        assert_eq!(answer.learn(&query), expected);
    }
    assert_eq!(answer.rcode(), u16::from(theirs.metadata.response_code));
    assert_eq!(answer.truncated(), theirs.metadata.truncation);
    let _ = (answer.addresses().count(), answer.cnames().count());
    let seconds = |record: &naive::Record| if record.ttl >> 31 == 1 { 0 } else { record.ttl };
    let in_answer = places.records.iter().filter(|record| record.section == 0);
    assert_eq!(answer.ttl(), in_answer.map(seconds).min().unwrap_or(0));

    // Whether hickory reads every record; if not, what goes out is read as the model is.
    let before = Message::from_vec(message).ok();
    for additional in [Additional::Whole, Additional::OptOnly] {
        let out = reply::relayed(&query, &answer, additional);
        let after = goes_out(&out, &query, &answer, before.is_some());
        assert!(out.len() >= reply::least_octets(&query, &answer) || before.is_none());
        if let Some(before) = &before {
            assert_eq!((&after.answers, &after.authorities), (&before.answers, &before.authorities));
            assert!(after.additionals.is_empty() || additional == Additional::Whole && behind(before, &after));
        }
    }
    let out = reply::truncated(&query, &answer);
    let after = goes_out(&out, &query, &answer, before.is_some());
    assert!(after.metadata.truncation && after.answers.len() + after.authorities.len() + after.additionals.len() == 0);
    let out = reply::failed(&query, Rcode::ServFail, Some(&Ede::new(EdeCode::Other, "a reason".repeat(40))));
    let after = naive::read(&out, "a failure");
    assert_eq!((after.metadata.id, after.edns.is_some()), (query.id, query.edns.is_some()));
    rewritten(control, &query, &answer, before.as_ref());
}

/// What is no answer for namegate is none for hickory either, but for what is listed here.
fn refused(message: &[u8], error: AnswerError) {
    let Ok(theirs) = Message::from_vec(message) else { return };
    let flags = word(message, 2).unwrap_or(0);
    let counts: usize = [6, 8, 10].iter().filter_map(|at| word(message, *at)).map(usize::from).sum();
    let known = flags & 0x8000 == 0
        || theirs.metadata.op_code != OpCode::Query
        || theirs.queries.len() != 1
        || match outline(message) {
            // The question's name is compressed: there is nothing before it but the header.
            None => message[HEADER..].iter().any(|octet| *octet >= 0xc0),
            // An OPT record whose owner is the root by way of a pointer.
            Some(places) => {
                counts * 11 > message.len()
                    || places.records.iter().any(|record| record.rtype == OPT && record.fixed != record.start + 1)
            }
        };
    assert!(known, "{error}: {message:02x?}");
}

/// A query for this question, as the control octet has it.
fn asker(control: u8, question: &[u8]) -> Vec<u8> {
    let mut query = vec![0xab, 0xcd, 1, control & 0x10, 0, 1, 0, 0, 0, 0, 0, control & 1];
    query.extend(question);
    if control & 2 != 0 {
        // Another case than the one that came back, which was ours.
        let name = HEADER..query.len() - 4;
        query[name].iter_mut().filter(|octet| octet.is_ascii_alphabetic()).for_each(|octet| *octet ^= 0x20);
    }
    if control & 1 != 0 {
        query.extend([0, 0, 41, 4, 208, 0, 0, control & 0x80, 0, 0, 0]);
    }
    query
}

/// What an answer teaches, by RFC 1035 and rule I5, on hickory's records.
fn model(message: &[u8], places: &Outline, query: &Query<'_>) -> (Result<Learned, Nothing>, Message) {
    // Records that can't be read teach nothing; an alias that can't be read ends the chain that comes to it.
    let mut broken: Vec<Vec<u8>> = Vec::new();
    let good = |record: &naive::Record| {
        let owner = naive::folded(message, record.start);
        let data = match record.rtype {
            A => record.end - record.data == 4,
            AAAA => record.end - record.data == 16,
            CNAME => naive::name(message, record.data).is_some_and(|(_, end)| end == record.end),
            _ => return false,
        };
        record.section == 0 && owner.is_some() && data
    };
    for record in
        places.records.iter().filter(|record| record.section == 0 && record.rtype == CNAME && record.class == 1)
    {
        broken.extend(naive::folded(message, record.start).filter(|_| !good(record)));
    }
    let theirs = naive::read(&naive::neutral(message, places, good), "the records that teach");
    let aliases = places.records.iter().filter(|record| record.section == 0 && record.rtype == CNAME).count();
    (learned(&theirs, query, &broken, aliases), theirs)
}

fn learned(theirs: &Message, query: &Query<'_>, broken: &[Vec<u8>], aliases: usize) -> Result<Learned, Nothing> {
    let asked = theirs.queries[0].query_type();
    if !matches!(asked, RecordType::A | RecordType::AAAA) || theirs.queries[0].query_class() != DNSClass::IN {
        return Err(Nothing::Type);
    }
    if u16::from(theirs.metadata.response_code) != 0 {
        return Err(Nothing::Rcode);
    }
    if theirs.metadata.truncation {
        return Err(Nothing::Truncated);
    }
    if aliases > CHAIN {
        return Err(Nothing::Chain);
    }
    let seconds = |record: &Record| if record.ttl >> 31 == 1 { 0 } else { record.ttl };
    let here = |owner: &Name, record: &&Record| record.dns_class == DNSClass::IN && record.name == *owner;
    let mut owner = theirs.queries[0].name().clone();
    let mut ttl = u32::MAX;
    // One alias more than there are means a loop.
    for step in 0.. {
        let mut targets: Vec<Name> = Vec::new();
        let mut least = u32::MAX;
        for record in theirs.answers.iter().filter(|record| here(&owner, record)) {
            if let RData::CNAME(target) = &record.data {
                least = least.min(seconds(record));
                if !targets.contains(&target.0) {
                    targets.push(target.0.clone());
                }
            }
        }
        if targets.len() > 1 || broken.contains(&naive::wire(&owner)) || step > CHAIN {
            return Err(Nothing::Chain);
        }
        let Some(target) = targets.pop() else { break };
        ttl = ttl.min(least);
        owner = target;
    }
    let mut addresses = Vec::new();
    for record in theirs.answers.iter().filter(|record| here(&owner, record) && record.record_type() == asked) {
        addresses.extend(address(record));
        ttl = ttl.min(seconds(record));
    }
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(Nothing::Empty);
    }
    Ok(Learned { name: query.name.clone(), addresses, ttl })
}

fn address(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    }
}

/// What goes out is one whole message for the asker; hickory's reading of it.
#[track_caller]
fn goes_out(out: &[u8], query: &Query<'_>, answer: &Answer<'_>, read_before: bool) -> Message {
    let places = outline(out).unwrap_or_else(|| panic!("a reply is cut off: {out:02x?}"));
    assert_eq!(places.end, out.len(), "octets behind the last record");
    assert_eq!(out[HEADER..places.question_end], query.question[..]);
    let flags = word(out, 2).expect("a header");
    assert_eq!((flags & 0x8000, flags & 0x100), (0x8000, query.flags & 0x100), "QR; RD as asked");
    assert_eq!(places.records.iter().filter(|record| record.rtype == OPT).count(), usize::from(query.edns.is_some()));
    let theirs = match read_before {
        true => naive::read(out, "what goes out"),
        false => naive::read(&naive::neutral(out, &places, |_| false), "what goes out, as far as it read what came in"),
    };
    assert_eq!(theirs.metadata.id, query.id);
    let fits = answer.rcode() < 16 || query.edns.is_some();
    assert_eq!(u16::from(theirs.metadata.response_code), if fits { answer.rcode() } else { 2 });
    theirs
}

/// Whether what is left of the additional section is its beginning.
fn behind(before: &Message, after: &Message) -> bool {
    before.additionals.starts_with(&after.additionals)
}

/// The message written anew, with some addresses taken out.
fn rewritten(control: u8, query: &Query<'_>, answer: &Answer<'_>, before: Option<&Message>) {
    let keep = |address: IpAddr| {
        let last = match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        control & 4 != 0 || (last ^ control >> 5) & 1 == 0
    };
    let nothing_left = Ede::new(EdeCode::Filtered, "taken out");
    let every = control & 8 != 0;
    let keep = |address| every || keep(address);
    let compress = control & 0x40 == 0;
    let filter: &dyn Fn(IpAddr) -> bool = &keep;
    let changes = Changes { keep: (!every).then_some(filter), compress, nothing_left: Some(&nothing_left) };
    let done = match rebuilt(query, answer, &changes) {
        Ok(done) => done,
        Err(error) => return assert!(before.is_none(), "{error}, but hickory reads it: {:02x?}", answer.message),
    };
    let after = goes_out(&done.message, query, answer, before.is_some());
    // Also where hickory reads not all: by type and length alone.
    let places = outline(&done.message).expect("it is whole");
    let mut kept = Vec::new();
    for record in &places.records {
        let data = &done.message[record.data..record.end];
        let address = match record.rtype {
            A => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
            AAAA => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
            _ => continue,
        };
        let address = address.expect("an address record that is none does not go out");
        assert!(keep(address), "{address} was not kept");
        if record.section == 0 {
            kept.push(address);
        }
    }
    assert_eq!(kept, done.kept);
    let Some(before) = before else { return };
    let stays = |record: &&Record| address(record).is_none_or(keep) && !is_empty_address(record);
    for (was, is) in [
        (&before.answers, &after.answers),
        (&before.authorities, &after.authorities),
        (&before.additionals, &after.additionals),
    ] {
        let was: Vec<&Record> = was.iter().filter(stays).collect();
        assert_eq!(was.len(), is.len());
        for (was, is) in was.into_iter().zip(is) {
            assert_eq!((&was.name, was.ttl, was.dns_class), (&is.name, is.ttl, is.dns_class));
            match &is.data {
                RData::SVCB(binding) if !every => assert!(hints(&binding.svc_params).into_iter().all(keep), "{is}"),
                RData::HTTPS(binding) if !every => assert!(hints(&binding.0.svc_params).into_iter().all(keep), "{is}"),
                data => assert_eq!(&was.data, data),
            }
        }
    }
}

/// hickory reads an address record without data in no reply; only what it does not read holds one.
fn is_empty_address(record: &Record) -> bool {
    matches!(record.data, RData::Update0(RecordType::A | RecordType::AAAA))
}

fn hints(parameters: &[(SvcParamKey, SvcParamValue)]) -> Vec<IpAddr> {
    let of = |value: &SvcParamValue| -> Vec<IpAddr> {
        match value {
            SvcParamValue::Ipv4Hint(hint) => hint.0.iter().map(|address| address.0.into()).collect(),
            SvcParamValue::Ipv6Hint(hint) => hint.0.iter().map(|address| address.0.into()).collect(),
            _ => Vec::new(),
        }
    };
    parameters.iter().flat_map(|(_, value)| of(value)).collect()
}
