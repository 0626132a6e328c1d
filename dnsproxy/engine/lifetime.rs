//! How long an answer may be kept, and what its TTLs are by then.

use super::answer::Answer;
use super::name::Name;
use super::query::Query;
use super::wire::{CLASS_IN, NameBuf, rtype, skip_name, u32_at};

/// What the operator allows, seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ceilings {
    /// For answers: 86 400 unless configured.
    pub ttl: u32,
    /// For "there is none": 3 600 unless configured (RFC 2308 section 5).
    pub negative: u32,
}

impl Default for Ceilings {
    fn default() -> Ceilings {
        Ceilings { ttl: 86_400, negative: 3_600 }
    }
}

/// How long the answer may be kept, seconds, above 0; `None`: not at all.
///
/// The least TTL of all its records, at most the ceiling. What says that there is none is kept as its SOA record says
/// (RFC 2308 section 5), and not without one. Failures are not kept: whoever asks meanwhile waits for the same answer.
pub fn lifetime(answer: &Answer<'_>, query: &Query<'_>, ceilings: &Ceilings) -> Option<u32> {
    const NOERROR: u16 = 0;
    const NXDOMAIN: u16 = 3;
    if answer.truncated() || !matches!(answer.rcode(), NOERROR | NXDOMAIN) {
        return None;
    }
    let least = ttl_places(answer).map(|(_, ttl)| ttl).min();
    let asked = |record: super::answer::Record<'_>| record.rtype == query.qtype && record.class == CLASS_IN;
    let seconds = if answer.rcode() == NOERROR && answer.records(0).any(asked) {
        least?.min(ceilings.ttl)
    } else {
        let soa = answer.records(1).find(|record| record.rtype == rtype::SOA && record.class == CLASS_IN)?;
        // Of the zone that the name lies in, or that its alias leads to; another zone's says nothing about it.
        let zone = Name::from_wire(NameBuf::read_folded(answer.message, soa.start)?.as_wire()).ok()?;
        if !query.name.is_in(&zone) && !answer.cnames().any(|target| target.is_in(&zone)) {
            return None;
        }
        let minimum = soa_minimum(answer.message, soa.data, soa.end)?;
        least?.min(minimum).min(ceilings.negative)
    };
    (seconds > 0).then_some(seconds)
}

/// Where each TTL of a message stands, and what it is. OPT has none (RFC 6891 section 6.1.3).
pub fn ttl_places<'a>(answer: &Answer<'a>) -> impl Iterator<Item = (usize, u32)> + use<'a> {
    let records = answer.records(0).chain(answer.records(1)).chain(answer.records(2));
    records.filter(|record| record.rtype != rtype::OPT).map(|record| (record.data - 6, record.ttl))
}

/// Writes the TTLs as they are `age` seconds later, none above `most`.
pub fn age(message: &mut [u8], places: impl IntoIterator<Item = (usize, u32)>, age: u32, most: u32) {
    for (at, ttl) in places {
        put(message, at, ttl.min(most).saturating_sub(age));
    }
}

/// Writes the same TTL everywhere.
pub fn set_ttls(message: &mut [u8], places: impl IntoIterator<Item = (usize, u32)>, ttl: u32) {
    for (at, _) in places {
        put(message, at, ttl);
    }
}

fn put(message: &mut [u8], at: usize, ttl: u32) {
    if let Some(octets) = message.get_mut(at..at + 4) {
        octets.copy_from_slice(&ttl.to_be_bytes());
    }
}

/// The last of a SOA's five numbers, behind its two names (RFC 1035 section 3.3.13).
fn soa_minimum(message: &[u8], data: usize, end: usize) -> Option<u32> {
    let numbers = skip_name(message, skip_name(message, data)?)?;
    (numbers + 20 == end).then(|| u32_at(message, numbers + 16)).flatten()
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, MessageType, OpCode, Query as Wanted, ResponseCode};
    use hickory_proto::rr::rdata::{A, CNAME, SOA};
    use hickory_proto::rr::{Name as WireName, RData, Record, RecordType};

    use super::*;
    use crate::engine::name::Name;

    fn name(text: &str) -> WireName {
        WireName::from_ascii(text).expect("a name")
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        soa_of("test.", ttl, minimum)
    }

    fn soa_of(zone: &str, ttl: u32, minimum: u32) -> Record {
        let data = SOA::new(name("ns.test."), name("host.test."), 1, 2, 3, 4, minimum);
        Record::from_rdata(name(zone), ttl, RData::SOA(data))
    }

    fn a(ttl: u32) -> Record {
        Record::from_rdata(name("www.test."), ttl, RData::A(A::new(203, 0, 113, 1)))
    }

    fn alias(ttl: u32) -> Record {
        Record::from_rdata(name("www.test."), ttl, RData::CNAME(CNAME(name("web.test."))))
    }

    fn message(rcode: ResponseCode, answers: Vec<Record>, authority: Vec<Record>) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        message.metadata.response_code = rcode;
        message.add_query(Wanted::query(name("www.test."), RecordType::A));
        message.add_answers(answers);
        message.add_authorities(authority);
        message.to_vec().expect("a message")
    }

    #[track_caller]
    fn lives(octets: &[u8], ceilings: Ceilings, expected: Option<u32>) {
        let answer = Answer::parse(octets).expect("an answer");
        let query = Query::again(Name::parse("www.test").expect("a name"), rtype::A, 0, false);
        assert_eq!(lifetime(&answer, &query, &ceilings), expected);
    }

    use ResponseCode::{NXDomain, NoError, Refused, ServFail};

    #[test]
    fn an_answer_lives_as_long_as_its_shortest_record_and_no_longer_than_the_ceiling() {
        lives(&message(NoError, vec![a(300), a(60)], vec![]), Ceilings::default(), Some(60));
        lives(&message(NoError, vec![a(300)], vec![soa(20, 5)]), Ceilings::default(), Some(20));
        lives(&message(NoError, vec![a(300)], vec![]), Ceilings { ttl: 30, ..Ceilings::default() }, Some(30));
        lives(&message(NoError, vec![a(0)], vec![]), Ceilings::default(), None);
        lives(&message(NoError, vec![a(1 << 31)], vec![]), Ceilings::default(), None);
    }

    #[test]
    fn none_lives_as_its_soa_says_and_not_without_one() {
        for rcode in [NoError, NXDomain] {
            lives(&message(rcode, vec![], vec![soa(600, 40)]), Ceilings::default(), Some(40));
            lives(&message(rcode, vec![], vec![soa(30, 40)]), Ceilings::default(), Some(30));
            lives(&message(rcode, vec![alias(10)], vec![soa(600, 40)]), Ceilings::default(), Some(10));
            lives(
                &message(rcode, vec![], vec![soa(600, 40)]),
                Ceilings { negative: 7, ..Ceilings::default() },
                Some(7),
            );
            lives(&message(rcode, vec![], vec![soa(600, 40)]), Ceilings { negative: 0, ..Ceilings::default() }, None);
            lives(&message(rcode, vec![alias(10)], vec![]), Ceilings::default(), None);
        }
    }

    #[test]
    fn the_soa_of_another_zone_says_nothing() {
        let foreign = soa_of("other.", 600, 40);
        lives(&message(NXDomain, vec![], vec![foreign]), Ceilings::default(), None);
        let root = soa_of(".", 600, 40);
        lives(&message(NXDomain, vec![], vec![root]), Ceilings::default(), Some(40));
        let alias = Record::from_rdata(name("www.test."), 50, RData::CNAME(CNAME(name("gone.other."))));
        let theirs = soa_of("other.", 600, 40);
        lives(&message(NXDomain, vec![alias], vec![theirs]), Ceilings::default(), Some(40));
    }

    #[test]
    fn failures_and_cut_answers_are_not_kept() {
        lives(&message(ServFail, vec![], vec![soa(600, 40)]), Ceilings::default(), None);
        lives(&message(Refused, vec![a(60)], vec![]), Ceilings::default(), None);
        let mut cut = message(NoError, vec![a(60)], vec![]);
        cut[2] |= 2;
        lives(&cut, Ceilings::default(), None);
    }

    #[test]
    fn ttls_age_and_are_never_below_zero() {
        let mut octets = message(NoError, vec![a(300), a(60)], vec![soa(900, 1)]);
        let places: Vec<_> = ttl_places(&Answer::parse(&octets).expect("an answer")).collect();
        let ttls = |octets: &[u8]| ttl_places(&Answer::parse(octets).expect("an answer")).map(|(_, ttl)| ttl).collect();
        let seen: Vec<u32> = ttls(&octets);
        assert_eq!(seen, [300, 60, 900]);
        age(&mut octets, places.clone(), 100, 500);
        let seen: Vec<u32> = ttls(&octets);
        assert_eq!(seen, [200, 0, 400]);
        set_ttls(&mut octets, places, 30);
        let seen: Vec<u32> = ttls(&octets);
        assert_eq!(seen, [30, 30, 30]);
    }
}
