//! The file of numbers and bits: what was written is read again, what is damaged is refused, and a file with the right
//! checksum, whoever made it, is refused or says the same again.
//!
//! The first eight octets are damage; the rest is a file without its first line, in JSON.

use namegate::cluster::snapshot::LastGood;
use namegate::run::state::{State, parse, text};

use super::cost::{self, Limit};
use super::damage::{Take, crc, flipped};

/// A table's entry is some 50 octets in JSON, and a node of a tree of them is there before it is full.
const LIMIT: Limit = Limit { held: (32, 4_096), allocations: (1, 64) };

pub fn check(octets: &[u8]) {
    let mut rest = Take(octets);
    let (at, bits, cut) = (rest.array(), rest.array(), rest.array());
    let body = rest.0;
    let sum = crc(body);
    let file = |sum: u32| [format!("namegate-state 1 {sum:08x}\n").as_bytes(), body].concat();
    parse(&file(sum ^ 0x8000_0000)).expect_err("another checksum");
    let forged = file(sum);
    let Ok(state) = cost::within(forged.len(), LIMIT, || parse(&forged)) else { return };
    let whole = text(&state).expect("a state can be written");
    let again = parse(&whole).unwrap_or_else(|why| panic!("{why}: {state:?}"));
    assert!(again.is_as(&state), "{again:?}, was {state:?}");
    // Read from a file of an earlier version, never written: it has a file of its own.
    assert_eq!(again, State { last_good: LastGood::default(), ..state });
    if let Some(damaged) = flipped(&whole, u16::from_be_bytes(at), bits) {
        parse(&damaged).expect_err("a damaged file");
    }
    let cut = usize::from(u16::from_be_bytes(cut)) % whole.len();
    parse(&whole[..cut]).expect_err("a file that was cut");
}
