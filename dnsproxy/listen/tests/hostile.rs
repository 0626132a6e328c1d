//! Octets that nobody sends by accident.

use super::*;
use crate::upstream::chance::Chance;

/// 100 000 datagrams: random ones, and queries with random damage. The proxy goes on serving.
#[test]
fn a_hundred_thousand_random_datagrams_do_no_harm() {
    let settings = Settings { queries_per_second: 0, ..Settings::default() };
    let world = World::new(Setup { workers: 2, settings, ..Setup::default() }, always(&["@ 60 A 192.0.2.1"]));
    let client = world.client("127.0.0.1", "127.0.0.1");
    client.set_nonblocking(true).expect("the option");
    let mut chance = Chance::new();
    let mut buffer = [0; 4096];
    for at in 0..100_000u32 {
        let mut octets = match at % 4 {
            0 => vec![0; usize::from(chance.number() % 600)],
            1 => query("www.test", chance.number(), Some(chance.number())),
            _ => query("www.test", 1, Some(1232)),
        };
        let damage = if at % 4 == 0 { octets.len() } else { usize::from(chance.number() % 4) };
        for _ in 0..damage {
            let place = usize::from(chance.number()) % octets.len().max(1);
            if let Some(octet) = octets.get_mut(place) {
                *octet = chance.number() as u8;
            }
        }
        if at % 4 == 3 {
            octets.truncate(usize::from(chance.number()) % (octets.len() + 1));
        }
        let _ = client.send(&octets);
        while client.recv(&mut buffer).is_ok() {}
    }
    // Let the queue run dry, then see that all is well.
    let looked_at = || world.seen.0.lock().expect("the records").len();
    let mut before = 0;
    while before != looked_at() {
        before = looked_at();
        thread::sleep(Duration::from_millis(300));
    }
    world.resolves("www.test", &["192.0.2.1"]);
    assert!(world.seen.0.lock().expect("the records").len() > 10_000, "they were looked at");
    assert!(world.kernel.open(1).iter().all(|address| address == "192.0.2.1"));
}

/// Replies with random damage behind the part that must match: no panic, and no grant but for what a whole answer says.
#[test]
fn damaged_answers_grant_no_address_that_is_not_the_names_own() {
    let chance = Mutex::new(Chance::new());
    let world = World::new(Setup::default(), move |asked| {
        let mut reply = answer(&asked.octets, &["@ 60 CNAME b.cdn", "b.cdn 60 A 192.0.2.1", "c.cdn 60 A 198.51.100.9"]);
        let mut chance = chance.lock().expect("chance");
        let question_end = asked.octets.len() - 11;
        for _ in 0..1 + chance.number() % 3 {
            let place = question_end + usize::from(chance.number()) % (reply.len() - question_end);
            reply[place] = chance.number() as u8;
        }
        vec![Say::Reply(reply)]
    });
    let client = world.client("127.0.0.1", "127.0.0.1");
    let mut buffer = [0; 4096];
    for at in 0..3_000 {
        client.send(&query(&format!("n{at}.test"), 1, Some(1232))).expect("sent");
        let length = client.recv(&mut buffer).expect("a reply");
        let open = world.kernel.open(1);
        for address in understood(&buffer[..length]).1 {
            assert!(open.contains(&address), "{address} was handed on and is not open");
        }
    }
}

#[test]
fn malformed_queries_get_their_code_and_are_counted() {
    let world = World::new(Setup::default(), always(&[]));
    let broken = with(query("www.test", 1, None), |octets| octets[5] = 2);
    assert_eq!(world.exchange(&broken), b"\x12\x34\x81\x81\0\0\0\0\0\0\0\0");
    let notify = with(query("www.test", 1, None), |octets| octets[2] |= 0x20);
    assert_eq!(world.exchange(&notify), b"\x12\x34\xa1\x84\0\0\0\0\0\0\0\0");
    let version = with(query("www.test", 1, Some(1232)), |octets| {
        let at = octets.len() - 5;
        octets[at] = 1;
    });
    assert_eq!(understood(&world.exchange(&version)).0, 16);
    assert_eq!(world.seen.last().rcode, Some(16));
    world.is_ignored(&with(query("www.test", 1, None), |octets| octets[2] |= 0x80), "127.0.0.1", "127.0.0.1");
    world.is_ignored(b"\x12\x34\x01", "127.0.0.1", "127.0.0.1");
    for reason in ["format", "opcode", "edns_version", "reply", "short"] {
        assert_eq!(world.seen.count(reason), 1, "{reason}");
    }
    assert_eq!(world.server.seen().len(), 0);
}
