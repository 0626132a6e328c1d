//! DNS cookies (RFC 7873): what a server must repeat and an off-path forger can't know.
//!
//! A cookie is sent to every server over UDP. One that answers with its own is known to do cookies: from then on a reply
//! without our cookie is not believed. Nothing of it reaches the workload.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::engine::answer::Answer;
use crate::engine::wire::u16_at;

use super::chance::Chance;

/// The option's number.
const COOKIE: u16 = 10;
/// Octets of a client's cookie.
const CLIENT: usize = 8;
/// Octets of a server's cookie: 8 to 32.
const SERVER: std::ops::RangeInclusive<usize> = 8..=32;
/// Octets of an option's number and length.
const OPTION_HEADER: usize = 4;
/// How long a client's cookie is used.
const LIFE: Duration = Duration::from_secs(3_600);
/// How long a server that dislikes cookies gets none.
const OFF: Duration = Duration::from_secs(3_600);

/// Octets of the longest option.
const LONGEST: usize = OPTION_HEADER + CLIENT + 32;

/// A COOKIE option, or nothing.
pub(super) struct OptionOctets {
    octets: [u8; LONGEST],
    length: usize,
}

impl OptionOctets {
    fn put(&mut self, octets: &[u8]) {
        self.octets[self.length..self.length + octets.len()].copy_from_slice(octets);
        self.length += octets.len();
    }
}

impl std::ops::Deref for OptionOctets {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.octets[..self.length]
    }
}

/// What was agreed with one server.
#[derive(Default)]
pub(super) struct Cookies {
    mine: Cell<Option<(Instant, [u8; CLIENT])>>,
    /// Replies to what was sent before a change still count.
    before: Cell<Option<[u8; CLIENT]>>,
    theirs: RefCell<Vec<u8>>,
    off_until: Cell<Option<Instant>>,
}

/// What a reply's cookie says about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Ours came back, or none is to be expected.
    Good,
    /// None came back from a server that does cookies.
    Missing,
    /// Not ours: forged.
    Wrong,
}

impl Cookies {
    /// The option for a query that is sent now; empty when the server gets none.
    pub fn option(&self, chance: &RefCell<Chance>, now: Instant) -> OptionOctets {
        let mut option = OptionOctets { octets: [0; LONGEST], length: 0 };
        if !self.is_on(now) {
            return option;
        }
        let mine = match self.mine.get() {
            Some((made, mine)) if now.saturating_duration_since(made) < LIFE => mine,
            old => {
                let mine = chance.borrow_mut().octets();
                self.before.set(old.map(|(_, mine)| mine));
                self.mine.set(Some((now, mine)));
                // It belongs to the old one (RFC 9018 section 4.2).
                self.theirs.borrow_mut().clear();
                mine
            }
        };
        let theirs = self.theirs.borrow();
        option.put(&COOKIE.to_be_bytes());
        option.put(&((CLIENT + theirs.len()) as u16).to_be_bytes());
        option.put(&mine);
        option.put(&theirs);
        option
    }

    /// Whether the server gets cookies.
    pub fn is_on(&self, now: Instant) -> bool {
        self.off_until.get().is_none_or(|until| now >= until)
    }

    /// Judges the cookie of a reply, and remembers the server's.
    pub fn judge(&self, cookie: Option<&[u8]>) -> Verdict {
        let Some(cookie) = cookie else {
            return if self.theirs.borrow().is_empty() { Verdict::Good } else { Verdict::Missing };
        };
        let Some((mine, theirs)) = cookie.split_at_checked(CLIENT) else { return Verdict::Wrong };
        let current = self.mine.get().is_some_and(|(_, current)| current == *mine);
        if !current && self.before.get().is_none_or(|before| before != *mine) {
            return Verdict::Wrong;
        }
        if current && SERVER.contains(&theirs.len()) {
            let mut known = self.theirs.borrow_mut();
            if *known != theirs {
                known.clear();
                known.extend_from_slice(theirs);
            }
        }
        Verdict::Good
    }

    /// The server does no cookies any more, as it says over TCP.
    pub fn forget(&self) {
        self.theirs.borrow_mut().clear();
    }

    /// The server calls a query with a cookie malformed.
    pub fn stop(&self, now: Instant) {
        self.forget();
        self.off_until.set(Some(now + OFF));
    }
}

/// Where the COOKIE option of an answer stands: number, length and value. `None`: there is none.
pub(super) fn find(answer: &Answer<'_>) -> Option<std::ops::Range<usize>> {
    let (start, end) = answer.opt?;
    let mut at = start + 11;
    while at + OPTION_HEADER <= end {
        let next = at + OPTION_HEADER + usize::from(u16_at(answer.message, at + 2)?);
        if next > end {
            return None;
        }
        if u16_at(answer.message, at) == Some(COOKIE) {
            return Some(at..next);
        }
        at = next;
    }
    None
}

/// The cookie in an option that [`find`] found.
pub(super) fn value<'a>(answer: &Answer<'a>, place: &std::ops::Range<usize>) -> &'a [u8] {
    &answer.message[place.start + OPTION_HEADER..place.end]
}

/// The answer without any COOKIE option: it is between us and the server.
///
/// OPT stands last nearly always. Where it does not, what stands behind it in the additional section goes too: names in it
/// may be pointed at.
pub(super) fn stripped(answer: &Answer<'_>) -> Vec<u8> {
    let mut out = answer.message.to_vec();
    let Some((start, end)) = answer.opt else { return out };
    if end != out.len() {
        let behind = answer.records(2).skip_while(|record| record.start != start).count() as u16 - 1;
        out.truncate(end);
        out[10..12].copy_from_slice(&(answer.counts[2] - behind).to_be_bytes());
    }
    // A server may have sent the option twice.
    while let Some(place) = Answer::parse(&out).ok().and_then(|left| find(&left)) {
        let options = out.len() - start - 11 - place.len();
        out[start + 9..start + 11].copy_from_slice(&(options as u16).to_be_bytes());
        out.drain(place);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    /// A reply whose OPT record holds these options, with an address record behind it if asked for.
    fn reply(options: &[u8], behind: bool) -> Vec<u8> {
        let mut reply = b"\0\x01\x81\x80\0\x01\0\0\0\0\0\x01\x01a\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0".to_vec();
        reply.extend((options.len() as u16).to_be_bytes());
        reply.extend(options);
        if behind {
            reply[11] = 2;
            reply.extend(b"\x01b\0\0\x01\0\x01\0\0\0\0\0\x04\xc0\0\x02\x01");
        }
        reply
    }

    const EDE: &[u8] = b"\0\x0f\0\x02\0\x09";
    const BOTH: &[u8] = b"\0\x0a\0\x10abcdefghABCDEFGH";

    #[track_caller]
    fn strips(options: &[&[u8]], behind: bool, left: &[&[u8]]) {
        let reply_with = reply(&options.concat(), behind);
        let answer = Answer::parse(&reply_with).expect("an answer");
        assert_eq!(find(&answer).map(|place| value(&answer, &place)), Some(&b"abcdefghABCDEFGH"[..]));
        assert_eq!(stripped(&answer), reply(&left.concat(), false));
    }

    #[test]
    fn the_cookie_is_found_and_taken_out_and_nothing_else() {
        strips(&[BOTH], false, &[]);
        strips(&[EDE, BOTH], false, &[EDE]);
        strips(&[BOTH, EDE], false, &[EDE]);
        strips(&[BOTH, EDE, BOTH], false, &[EDE]);
        strips(&[BOTH, EDE], true, &[EDE]);
        let without = reply(EDE, false);
        assert_eq!(find(&Answer::parse(&without).expect("an answer")), None);
    }

    #[test]
    fn only_our_cookie_is_good_once_a_server_is_known_to_repeat_it() {
        let (cookies, chance, now) = (Cookies::default(), RefCell::new(Chance::new()), clock::now());
        let option = cookies.option(&chance, now);
        assert_eq!((option.len(), &option[..4]), (12, &b"\0\x0a\0\x08"[..]));
        let mine = option[4..].to_vec();
        assert_eq!(cookies.judge(None), Verdict::Good, "it may do none");
        assert_eq!(cookies.judge(Some(b"12345678ABCDEFGH")), Verdict::Wrong);
        assert_eq!(cookies.judge(Some(b"1234567")), Verdict::Wrong);
        assert_eq!(cookies.judge(Some(&[&mine[..], b"ABCDEFGH"].concat())), Verdict::Good);
        assert_eq!(cookies.judge(None), Verdict::Missing);
        let option = cookies.option(&chance, now);
        assert_eq!(option[4..], [&mine[..], b"ABCDEFGH"].concat(), "the server's goes back to it");

        let option = cookies.option(&chance, now + LIFE);
        assert_eq!(option.len(), 12);
        assert_ne!(option[4..], mine, "another one after an hour");
        assert_eq!(cookies.judge(Some(&[&mine[..], b"ABCDEFGH"].concat())), Verdict::Good, "an answer to the last");
        cookies.stop(now);
        let option = cookies.option(&chance, now);
        assert!(option.is_empty());
        assert!(!cookies.option(&chance, now + OFF).is_empty());
    }
}
