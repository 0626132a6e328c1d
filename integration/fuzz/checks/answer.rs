//! A server's message: nothing panics; what is learned is what a naive model on hickory-proto's records finds at the end
//! of the CNAME chain; whatever goes out, hickory reads, holds the records that came in, and no address that was not kept.
//!
//! The first octet is the asker's: OPT or not, letters in another case, what is kept and how names are written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Message, OpCode};
use hickory_proto::rr::{DNSClass, RData, Record};
use namegate::engine::answer::{Answer, AnswerError, CHAIN, Learned, Nothing};
use namegate::engine::lifetime::{age, ttl_places};
use namegate::engine::query::Query;
use namegate::engine::reply::rebuild::{Changes, rebuilt};
use namegate::engine::reply::{self, Additional, Ede, EdeCode, Rcode};

use super::cost::{self, Limit};
use super::naive::{self, A, AAAA, CNAME, HEADER, HTTPS, OPT, Outline, SVCB, outline, word};

/// Nothing is kept but where records are.
const PARSED: Limit = Limit { held: (0, 512), allocations: (0, 8) };
/// Names of the chain and addresses: an address of 16 octets is a record of 28.
const LEARNED: Limit = Limit { held: (16, 1_024), allocations: (0, 64) };
/// A name is a pointer of two octets and is written in full where it must not be compressed.
const REBUILT: Limit = Limit { held: (64, 1_024), allocations: (0, 64) };

pub fn check(octets: &[u8]) {
    let Some((&control, message)) = octets.split_first() else { return };
    let answer = match cost::within(message.len(), PARSED, || Answer::parse(message)) {
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
    let (mut expected, theirs) = model(message, &places, &query);
    let aliases = places.records.iter().filter(|record| record.section == 0 && record.rtype == CNAME).count();
    if aliases > CHAIN && !matches!(expected, Err(Nothing::Type | Nothing::Rcode | Nothing::Truncated)) {
        expected = Err(Nothing::Chain);
    }
    assert_eq!(cost::within(message.len(), LEARNED, || answer.learn(&query)), expected);
    assert_eq!(answer.rcode(), u16::from(theirs.metadata.response_code));
    assert_eq!(answer.truncated(), theirs.metadata.truncation);
    let _ = (answer.addresses().count(), answer.cnames().count());
    let seconds = |record: &naive::Record| if record.ttl >> 31 == 1 { 0 } else { record.ttl };
    let in_answer = places.records.iter().filter(|record| record.section == 0);
    assert_eq!(answer.ttl(), in_answer.map(seconds).min().unwrap_or(0));

    // Whether hickory reads every record; if not, what goes out is read as the model is.
    // A name that leads through the header says something else in any other message.
    let header = message[places.question_end..].windows(2).any(|two| two[0] == 0xc0 && usize::from(two[1]) < HEADER);
    let before = Message::from_vec(message).ok().filter(|_| !header);
    for additional in [Additional::Whole, Additional::OptOnly] {
        let out = reply::relayed(&query, &answer, additional);
        let after = goes_out(&out, &query, &answer, before.is_some());
        // Options that are cut off are counted, though they stay behind.
        let cut = answer.opt.is_some_and(|(start, end)| !naive::options_are_whole(&message[start + 11..end]));
        assert!(out.len() >= reply::least_octets(&query, &answer) || cut);
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
    aged(&answer);
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

/// A record in the answer section that may teach: name and data in lower case.
#[derive(PartialEq, Eq, Debug)]
struct Lesson {
    owner: Vec<u8>,
    rtype: u16,
    class: u16,
    seconds: u32,
    data: Data,
}

#[derive(PartialEq, Eq, Debug)]
enum Data {
    Alias(Vec<u8>),
    Addresses(Vec<IpAddr>),
    /// An alias that can't be read ends the chain that comes to it; other records that can't teach nothing.
    Broken,
}

/// What an answer teaches, by RFC 1035 and rule I5. Its records are read by the letter, and so that hickory agrees.
fn model(message: &[u8], places: &Outline, query: &Query<'_>) -> (Result<Learned, Nothing>, Message) {
    let lessons: Vec<(&naive::Record, Lesson)> =
        places.records.iter().filter_map(|record| Some((record, lesson(message, record)?))).collect();
    let is_good = |record: &naive::Record| {
        matches!(record.rtype, A | AAAA | CNAME)
            && lessons.iter().any(|(place, lesson)| place.start == record.start && lesson.data != Data::Broken)
    };
    let copy = naive::neutral(message, places, is_good);
    let good: Vec<&Lesson> = lessons.iter().filter(|(place, _)| is_good(place)).map(|(_, lesson)| lesson).collect();
    // A name may lead through what was made opaque; then it says something else there.
    let intact = lessons
        .iter()
        .filter(|(place, _)| is_good(place))
        .all(|(place, found)| lesson(&copy, place).as_ref() == Some(found));
    let theirs = if intact {
        let theirs = naive::read(&copy, "the records that teach");
        let read: Vec<Lesson> = theirs.answers.iter().filter_map(read_by_hickory).collect();
        assert!(read.iter().eq(good), "{read:?}");
        theirs
    } else {
        naive::read(&naive::neutral(message, places, |_| false), "a message of opaque records")
    };
    let lessons: Vec<Lesson> = lessons.into_iter().map(|(_, lesson)| lesson).collect();
    (learned(&lessons, &theirs, query), theirs)
}

/// What a record of the answer section says, if its owner can be read.
fn lesson(message: &[u8], record: &naive::Record) -> Option<Lesson> {
    let data = match record.rtype {
        A | AAAA => naive::address(message, record).map_or(Data::Broken, |address| Data::Addresses(vec![address])),
        CNAME => match naive::name(message, record.data) {
            Some((target, end)) if end == record.end => Data::Alias(target.to_ascii_lowercase()),
            _ => Data::Broken,
        },
        // An alias of its own kind (priority 0) teaches nothing.
        SVCB | HTTPS => match naive::binding(message, record) {
            Some(binding) if binding.head[..2] != [0, 0] => Data::Addresses(binding.hints()),
            _ => Data::Broken,
        },
        _ => return None,
    };
    let owner = naive::folded(message, record.start).filter(|_| record.section == 0)?;
    Some(Lesson { owner, rtype: record.rtype, class: record.class, seconds: seconds(record.ttl), data })
}

fn read_by_hickory(record: &Record) -> Option<Lesson> {
    let data = match &record.data {
        RData::A(address) => Data::Addresses(vec![address.0.into()]),
        RData::AAAA(address) => Data::Addresses(vec![address.0.into()]),
        RData::CNAME(target) => Data::Alias(naive::wire(&target.0)),
        _ => return None,
    };
    let (rtype, class) = (u16::from(record.record_type()), u16::from(record.dns_class));
    Some(Lesson { owner: naive::wire(&record.name), rtype, class, seconds: seconds(record.ttl), data })
}

/// RFC 2181 section 8.
fn seconds(ttl: u32) -> u32 {
    if ttl >> 31 == 1 { 0 } else { ttl }
}

fn learned(lessons: &[Lesson], theirs: &Message, query: &Query<'_>) -> Result<Learned, Nothing> {
    let (asked, class) = (u16::from(theirs.queries[0].query_type()), theirs.queries[0].query_class());
    if !matches!(asked, A | AAAA | SVCB | HTTPS) || class != DNSClass::IN {
        return Err(Nothing::Type);
    }
    if u16::from(theirs.metadata.response_code) != 0 {
        return Err(Nothing::Rcode);
    }
    if theirs.metadata.truncation {
        return Err(Nothing::Truncated);
    }
    let mut owner = naive::wire(theirs.queries[0].name());
    let mut ttl = u32::MAX;
    // One alias more than there may be means a loop.
    for step in 0.. {
        let aliases = lessons.iter().filter(|it| it.rtype == CNAME && it.class == 1 && it.owner == owner);
        let mut targets: Vec<&Vec<u8>> = Vec::new();
        let mut least = u32::MAX;
        for alias in aliases {
            let Data::Alias(target) = &alias.data else { return Err(Nothing::Chain) };
            least = least.min(alias.seconds);
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        if targets.len() > 1 || step > CHAIN {
            return Err(Nothing::Chain);
        }
        let Some(target) = targets.pop() else { break };
        ttl = ttl.min(least);
        owner.clone_from(target);
    }
    let mut addresses = Vec::new();
    for lesson in lessons.iter().filter(|it| it.rtype == asked && it.class == 1 && it.owner == owner) {
        if let Data::Addresses(found) = &lesson.data
            && !found.is_empty()
        {
            addresses.extend(found);
            ttl = ttl.min(lesson.seconds);
        }
    }
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(Nothing::Empty);
    }
    Ok(Learned { name: query.name.clone(), addresses, ttl })
}

/// What goes out is one whole message for the asker; hickory's reading of it.
#[track_caller]
fn goes_out(out: &[u8], query: &Query<'_>, answer: &Answer<'_>, read_before: bool) -> Message {
    let places = outline(out).unwrap_or_else(|| panic!("a reply is cut off: {out:02x?}"));
    assert_eq!(places.end, out.len(), "octets behind the last record");
    assert_eq!(out[HEADER..places.question_end], query.question[..]);
    let flags = word(out, 2).expect("a header");
    assert_eq!(
        (flags & 0x8000, flags & 0x110),
        (0x8000, query.flags & 0x100 | answer.flags & 0x10),
        "QR; RD as asked, CD as answered"
    );
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

/// The message written anew: as it came, or with some addresses taken out.
fn rewritten(control: u8, query: &Query<'_>, answer: &Answer<'_>, before: Option<&Message>) {
    let last = |address| match address {
        IpAddr::V4(address) => Ipv4Addr::octets(&address)[3],
        IpAddr::V6(address) => Ipv6Addr::octets(&address)[15],
    };
    let keep = |address: IpAddr| control & 4 != 0 || (last(address) ^ control >> 5) & 1 == 0;
    let everything = control & 8 != 0;
    let nothing_left = Ede::new(EdeCode::Filtered, "taken out");
    let changes = Changes {
        keep: (!everything).then_some(&keep),
        compress: control & 0x40 == 0,
        nothing_left: Some(&nothing_left),
    };
    let done = match cost::within(answer.message.len(), REBUILT, || rebuilt(query, answer, &changes)) {
        Ok(done) => done,
        Err(error) => {
            let was = outline(answer.message).expect("whole");
            let known = was.records.iter().any(|record| {
                naive::foreign(record.rtype).is_some()
                    && record.rtype == error.rtype
                    && naive::foreign_data(answer.message, record).is_none()
            });
            return assert!(before.is_none() || known, "{error}, but hickory reads it: {:02x?}", answer.message);
        }
    };
    let after = goes_out(&done.message, query, answer, before.is_some());
    let (was, is) = (outline(answer.message).expect("whole"), outline(&done.message).expect("whole"));
    let mut left = is.records.iter().filter(|record| record.rtype != OPT);
    let (mut taken, mut kept) = (0, Vec::new());
    for old in was.records.iter().filter(|record| record.rtype != OPT) {
        let address = naive::address(answer.message, old);
        let binding = naive::binding(answer.message, old).filter(|_| matches!(old.rtype, SVCB | HTTPS));
        let gone = match old.rtype {
            A | AAAA => !address.is_some_and(keep),
            SVCB | HTTPS => binding.is_none(),
            _ => false,
        };
        // Glue is optional, and no part of what AD speaks of (RFC 6840 section 5.8).
        let counts = usize::from(old.section < 2);
        if gone && !everything {
            taken += counts;
            continue;
        }
        let new = left.next().expect("a record that stays");
        assert_eq!((old.section, old.rtype, old.class, old.ttl), (new.section, new.rtype, new.class, new.ttl));
        // The name asked for is now in the asker's case, and so are the owners that point at it.
        assert_eq!(naive::folded(answer.message, old.start), naive::folded(&done.message, new.start));
        kept.extend(address.filter(|_| old.section == 0));
        if let Some(binding) = binding.filter(|_| !everything) {
            let now = naive::binding(&done.message, new).expect("it stays a binding");
            assert_eq!((&now.head, &now.parameters), (&binding.head, &binding.with_hints(keep)));
            taken += counts * binding.hints().iter().filter(|hint| !keep(**hint)).count();
        } else if naive::foreign(old.rtype).is_some() {
            assert_eq!(naive::foreign_data(answer.message, old), naive::foreign_data(&done.message, new));
        } else if matches!(old.rtype, A | AAAA | SVCB | HTTPS) {
            assert_eq!(answer.message[old.data..old.end], done.message[new.data..new.end]);
        }
    }
    assert!(left.next().is_none(), "nothing is added");
    assert_eq!((done.taken, &done.kept), (taken, &kept));
    assert_eq!(after.metadata.authentic_data, answer.flags & 0x20 != 0 && taken == 0);
    // Data with names in it may be written in another way; hickory sees whether it says the same.
    let Some(before) = before else { return };
    let same = |was: &Record| {
        let rtype = u16::from(was.record_type());
        !matches!(rtype, A | AAAA | SVCB | HTTPS) && naive::foreign(rtype).is_none()
    };
    for (was, is) in [
        (&before.answers, &after.answers),
        (&before.authorities, &after.authorities),
        (&before.additionals, &after.additionals),
    ] {
        assert!(was.iter().filter(|record| same(record)).eq(is.iter().filter(|record| same(record))));
    }
}

/// An answer that is kept for a while is the same to the octet but for its TTLs, which have run down.
fn aged(answer: &Answer<'_>) {
    const SECONDS: u32 = 100;
    const MOST: u32 = 3600;
    let mut later = answer.message.to_vec();
    age(&mut later, ttl_places(answer), SECONDS, MOST);
    let places = outline(answer.message).expect("whole");
    let mut expected = answer.message.to_vec();
    for record in places.records.iter().filter(|record| record.rtype != OPT) {
        let ttl = if record.ttl >> 31 == 1 { 0 } else { record.ttl };
        expected[record.data - 6..record.data - 2]
            .copy_from_slice(&ttl.min(MOST).saturating_sub(SECONDS).to_be_bytes());
    }
    assert_eq!(later, expected);
    let again = Answer::parse(&later).expect("it stays an answer");
    assert_eq!((again.counts, again.ends, again.opt), (answer.counts, answer.ends, answer.opt));
}
