//! The file of an endpoint's names: what was written is read again, what is damaged is refused, and what is in a file with
//! the right checksum, whoever made it, says no address and no deadline that does not stand there.
//!
//! The first octet chooses. 0 to 127: the rest is a file without its first line. Else: damage, then rows to write.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use namegate::engine::fqdn::Remembered;
use namegate::engine::grant::MonoNs;
use namegate::engine::name::Name;
use namegate::run::checkpoint::{Names, Text, parse};

use super::cost::{self, Limit};
use super::damage::{Take, crc, flipped};

const BOOT: &str = "boot-1";
/// A row of 11 octets, as of an address without names, is an entry of a table that doubles.
const LIMIT: Limit = Limit { held: (64, 2_048), allocations: (2, 64) };

pub fn check(octets: &[u8]) {
    let mut rest = Take(octets);
    match rest.octet() {
        0..128 => forged(rest.0),
        _ => damaged(&mut rest),
    }
}

fn forged(body: &[u8]) {
    let sum = crc(body);
    let file = |sum: u32| [format!("namegate-names 1 {sum:08x}\n").as_bytes(), body].concat();
    parse(&file(sum ^ 1), BOOT).expect_err("another checksum");
    let text = file(sum);
    let Ok(Some(names)) = cost::within(text.len(), LIMIT, || parse(&text, BOOT)) else { return };
    let body = std::str::from_utf8(body).expect("what was read is text");
    let words: BTreeSet<&str> = body.split([' ', '\n']).collect();
    let addresses: BTreeSet<IpAddr> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let numbers: BTreeSet<u64> = words.iter().filter_map(|word| word.parse().ok()).collect();
    for (address, row) in &names.rows {
        assert!(row.address == *address && addresses.contains(address), "{row:?}");
        assert!(row.names.iter().all(|(_, until)| numbers.contains(&until.0)), "{row:?}");
    }
    assert_eq!(read(&written(&names)), names);
}

fn damaged(rest: &mut Take<'_>) {
    let (at, bits, cut) = (rest.array(), rest.array(), rest.array());
    let names = names(rest);
    let whole = written(&names);
    assert_eq!(read(&whole), names);
    assert_eq!(parse(&whole, "boot-2"), Ok(None), "deadlines of another boot");
    if let Some(damaged) = flipped(&whole, u16::from_be_bytes(at), bits) {
        parse(&damaged, BOOT).expect_err("a damaged file");
    }
    let cut = usize::from(u16::from_be_bytes(cut)) % whole.len();
    parse(&whole[..cut], BOOT).expect_err("a file that was cut");
}

#[track_caller]
fn read(text: &[u8]) -> Names {
    match parse(text, BOOT) {
        Ok(Some(names)) => names,
        other => panic!("{other:?}"),
    }
}

fn written(names: &Names) -> Vec<u8> {
    let mut text = Text::new(BOOT, names.slept);
    names.rows.values().for_each(|row| text.row(row));
    let (header, body) = text.parts();
    [header.as_bytes(), body.as_bytes()].concat()
}

/// Rows of whatever octets there are, of any address, deadline and name.
fn names(rest: &mut Take<'_>) -> Names {
    let mut names = Names { slept: Duration::from_nanos(u64::from_be_bytes(rest.array())), rows: HashMap::new() };
    while !rest.0.is_empty() {
        let kind = rest.octet();
        let address: IpAddr = if kind & 1 == 0 { rest.array::<4>().into() } else { rest.array::<16>().into() };
        let mut row = Remembered { address, mark: u32::from_be_bytes(rest.array()), names: Vec::new() };
        for _ in 0..kind >> 1 & 7 {
            let length = rest.octet() % 64;
            let label = rest.some(length.into());
            let Ok(length) = u8::try_from(label.len()) else { continue };
            let wire = if length == 0 { vec![0] } else { [&[length], label, &[4], b"test", &[0]].concat() };
            let until = MonoNs(u64::from_be_bytes(rest.array()));
            row.names.push((Name::from_wire(&wire).expect("a label"), until));
        }
        names.rows.insert(address, row);
    }
    names
}
