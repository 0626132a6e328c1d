//! The journal of what was last good: what was said last is read again; cut anywhere it says what was said at an earlier
//! time or is refused, and so it does with octets changed; it never says what nobody said.
//!
//! The first octet chooses. 0 to 127: the rest is lines of a journal, in JSON, without their checksums. Else: damage, then
//! what is said, a generation a line: `KEY=TEXT` is an object, `KEY` one that is gone, `FILE=` and
//! `-FILE` the same of files.

use namegate::cluster::snapshot::{Change, LastGood};
use namegate::run::journal::{HEADER, line, parse};
use serde_json::json;

use super::cost::{self, Limit};
use super::damage::{Take, crc, flipped};

/// A change is an enum that has room for an object; a file's name and an object's place are kept beside the text.
const LIMIT: Limit = Limit { held: (48, 2_048), allocations: (1, 64) };
/// Generations are said up to this many.
const GENERATIONS: usize = 32;

pub fn check(octets: &[u8]) {
    let mut rest = Take(octets);
    match rest.octet() {
        0..128 => forged(rest.0),
        _ => damaged(&mut rest),
    }
}

fn forged(lines: &[u8]) {
    let mut text = HEADER.as_bytes().to_vec();
    for line in lines.split(|octet| *octet == b'\n') {
        text.extend(format!("{:08x} ", crc(line)).as_bytes());
        text.extend(line);
        text.push(b'\n');
    }
    let Ok((said, _, length)) = cost::within(text.len(), LIMIT, || parse(&text)) else { return };
    assert_eq!(length, text.len() as u64);
    let again = [HEADER, &line(&said.changes(&LastGood::default())).expect("changes can be written")].concat();
    let (again, _, _) = parse(again.as_bytes()).unwrap_or_else(|why| panic!("{why}: {said:?}"));
    assert_eq!(again, said);
    assert!(again.changes(&said).is_empty());
}

fn damaged(rest: &mut Take<'_>) {
    let (at, bits, cut) = (rest.array(), rest.array(), rest.array());
    // What was said, by where it ends.
    let mut said = vec![(HEADER.len(), LastGood::default())];
    let (mut text, mut count) = (HEADER.to_owned(), 0);
    for generation in rest.0.split(|octet| *octet == b'\n').take(GENERATIONS) {
        let mut now = said[said.len() - 1].1.clone();
        let generation = String::from_utf8_lossy(generation);
        generation.split(' ').filter(|word| !word.is_empty()).for_each(|word| now.apply(change(word)));
        let changes = now.changes(&said[said.len() - 1].1);
        count += changes.len();
        text.push_str(&line(&changes).expect("changes can be written"));
        said.push((text.len(), now));
    }
    let text = text.into_bytes();
    let (end, last) = &said[said.len() - 1];
    assert_eq!(parse(&text), Ok((last.clone(), count, *end as u64)));

    let cut = usize::from(u16::from_be_bytes(cut)) % text.len();
    match parse(&text[..cut]) {
        Ok((found, _, length)) => {
            let (end, before) = said.iter().rfind(|(end, _)| *end <= cut).expect("the first line is whole");
            assert_eq!((found, length), (before.clone(), *end as u64), "cut at {cut}");
        }
        Err(_) => assert!(cut < HEADER.len(), "cut at {cut}: an unfinished line is no damage"),
    }
    if let Some(damaged) = flipped(&text, u16::from_be_bytes(at), bits)
        && let Ok((found, _, length)) = parse(&damaged)
    {
        assert!(said.iter().any(|(end, before)| *end as u64 == length && *before == found), "nobody said {found:?}");
    }
}

fn change(word: &str) -> Change {
    let change = match word.split_once('=') {
        Some((file, "")) => json!({ "file": file }),
        Some((key, text)) => json!({ "object": [key, { "file": key, "place": "a.yaml:1:1", "text": text }] }),
        None if word.starts_with('-') => json!({ "file_gone": &word[1..] }),
        None => json!({ "object_gone": word }),
    };
    serde_json::from_value(change).expect("a change")
}
