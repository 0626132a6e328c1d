//! Domain names as types.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The most octets a name has on the wire, length octets and the final 0 included. RFC 1035, 3.1.
pub const NAME_OCTETS: usize = 255;
/// The most octets a label has. RFC 1035, 3.1.
pub const LABEL_OCTETS: usize = 63;
/// The most labels a name can have, the root's not counted.
pub const LABELS: usize = NAME_OCTETS / 2;

/// A domain name: its wire octets (length-prefixed labels, a final 0), ASCII letters in lower case.
///
/// Only ASCII is folded (RFC 4343): other octets are what they are. Two names are equal when their folded octets are;
/// a clone is a pointer. Borrows as its wire octets, so that a map keyed by names can be asked with a packet's bytes
/// once they are folded.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<[u8]>);

/// Why octets or text are no domain name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// There is nothing.
    #[error("empty name; the root is written \".\"")]
    Empty,
    /// The whole is too long.
    #[error("name of {octets} octets; the limit is {NAME_OCTETS}")]
    LongName {
        /// Its octets on the wire, as far as they were read.
        octets: usize,
    },
    /// One label is too long.
    #[error("label {index} has {octets} octets; the limit is {LABEL_OCTETS}")]
    LongLabel {
        /// Which, the leftmost being 0.
        index: usize,
        /// Its octets.
        octets: usize,
    },
    /// Two dots, or a dot at the front.
    #[error("label {index} is empty; a label has 1 to {LABEL_OCTETS} octets")]
    EmptyLabel {
        /// Which, the leftmost being 0.
        index: usize,
    },
    /// A length octet with its high bits set: compression (RFC 1035, 4.1.4) or an extended label.
    #[error("length octet {octet:#04x} of label {index}; only plain labels up to {LABEL_OCTETS} are allowed")]
    Pointer {
        /// Which, the leftmost being 0.
        index: usize,
        /// The octet.
        octet: u8,
    },
    /// The octets end before the name does.
    #[error("{octets} octets end inside the name; a name ends with the root's 0")]
    Cut {
        /// How many there were.
        octets: usize,
    },
    /// The name ends before the octets do.
    #[error("{octets} octets after the name; none are allowed")]
    Trailing {
        /// How many.
        octets: usize,
    },
    /// A backslash that starts nothing.
    #[error("escape at octet {at} is unfinished or above 255; \\. or \\046 is allowed")]
    Escape {
        /// Where in the text, from 0.
        at: usize,
    },
}

impl Name {
    /// The root.
    pub fn root() -> Name {
        Name(Arc::from([0].as_slice()))
    }

    /// From uncompressed wire octets that hold the name and nothing else.
    ///
    /// # Errors
    /// The octets are not exactly one uncompressed name within the limits of RFC 1035.
    pub fn from_wire(wire: &[u8]) -> Result<Name, NameError> {
        let mut at = 0;
        let mut index = 0;
        loop {
            let length = match wire.get(at) {
                None if wire.is_empty() => return Err(NameError::Empty),
                None => return Err(NameError::Cut { octets: wire.len() }),
                Some(&octet) if usize::from(octet) > LABEL_OCTETS => {
                    return Err(NameError::Pointer { index, octet });
                }
                Some(&octet) => usize::from(octet),
            };
            at += 1 + length;
            if at > NAME_OCTETS {
                return Err(NameError::LongName { octets: at });
            }
            if length == 0 {
                break;
            }
            index += 1;
        }
        if at < wire.len() {
            return Err(NameError::Trailing { octets: wire.len() - at });
        }
        // Length octets are at most 63, so that folding can't touch them.
        Ok(Name(wire.to_ascii_lowercase().into()))
    }

    /// From presentation form: labels between dots, the final dot optional, `\.` and `\046` as in RFC 1035, 5.1.
    ///
    /// # Errors
    /// The text is empty, has an empty or too long label, is too long, or holds half an escape.
    pub fn parse(text: &str) -> Result<Name, NameError> {
        if text == "." {
            return Ok(Name::root());
        }
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let mut wire = vec![0u8];
        let (mut start, mut index) = (0, 0);
        let mut octets = text.bytes().enumerate();
        while let Some((at, octet)) = octets.next() {
            let octet = match octet {
                b'.' => {
                    close_label(&mut wire, start, index)?;
                    (start, index) = (wire.len(), index + 1);
                    wire.push(0);
                    continue;
                }
                b'\\' => unescape(at, &mut octets)?,
                octet => octet.to_ascii_lowercase(),
            };
            wire.push(octet);
        }
        if wire.len() > start + 1 {
            close_label(&mut wire, start, index)?;
            wire.push(0);
        }
        if wire.len() > NAME_OCTETS {
            return Err(NameError::LongName { octets: wire.len() });
        }
        Ok(Name(wire.into()))
    }

    /// The wire octets: length-prefixed labels in lower case, and a final 0.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    /// The labels, the leftmost first, without the root's; walk them backwards from the top-level domain.
    pub fn labels(&self) -> Labels<'_> {
        Labels::new(&self.0)
    }

    /// Whether some label holds a dot or a NUL: text in which such a name stands is ambiguous to who reads it later.
    pub fn is_refused_always(&self) -> bool {
        // The usual name holds neither; length octets may be as high as a dot.
        let rare = self.0[..self.0.len() - 1].iter().any(|octet| matches!(octet, b'.' | 0));
        rare && self.labels().any(|label| label.iter().any(|octet| matches!(octet, b'.' | 0)))
    }

    /// Whether every octet of every label is one that patterns can match: `[-a-z0-9_]`.
    pub fn has_only_pattern_octets(&self) -> bool {
        self.labels().all(|label| label.iter().copied().all(is_pattern_octet))
    }

    /// Whether it is the name of the zone or a name below it; everything is below the root.
    pub fn is_in(&self, zone: &Name) -> bool {
        zone.is_root() || self.ends_with(zone)
    }

    /// Whether it is `ancestor` or a name below it.
    pub fn ends_with(&self, ancestor: &Name) -> bool {
        let Some(cut) = self.0.len().checked_sub(ancestor.0.len()) else {
            return false;
        };
        // The tail must also start where a label does: `3exa` could end in the octets of another name.
        self.0[cut..] == *ancestor.0 && self.labels().wire_offsets().any(|at| at == cut)
    }
}

/// Whether patterns can match the octet of a folded name: `[-a-z0-9_]`.
pub fn is_pattern_octet(octet: u8) -> bool {
    matches!(octet, b'-' | b'_' | b'a'..=b'z' | b'0'..=b'9')
}

/// The labels of a [`Name`], from both ends.
#[derive(Clone)]
pub struct Labels<'a> {
    wire: &'a [u8],
    starts: [u8; LABELS],
    front: usize,
    back: usize,
}

impl<'a> Labels<'a> {
    fn new(wire: &'a [u8]) -> Labels<'a> {
        let mut starts = [0; LABELS];
        let (mut at, mut back) = (0, 0);
        while wire[at] != 0 {
            starts[back] = at as u8;
            back += 1;
            at += 1 + usize::from(wire[at]);
        }
        Labels { wire, starts, front: 0, back }
    }

    fn label(&self, index: usize) -> &'a [u8] {
        let start = usize::from(self.starts[index]);
        &self.wire[start + 1..start + 1 + usize::from(self.wire[start])]
    }

    /// Where the labels start on the wire, and where the root does.
    fn wire_offsets(&self) -> impl Iterator<Item = usize> + '_ {
        let labels = self.starts[self.front..self.back].iter().map(|&start| usize::from(start));
        labels.chain([self.wire.len() - 1])
    }
}

impl<'a> Iterator for Labels<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        (self.front < self.back).then(|| {
            self.front += 1;
            self.label(self.front - 1)
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.back - self.front, Some(self.back - self.front))
    }
}

impl DoubleEndedIterator for Labels<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        (self.front < self.back).then(|| {
            self.back -= 1;
            self.label(self.back)
        })
    }
}

impl ExactSizeIterator for Labels<'_> {}

/// Presentation form with a final dot; whatever isn't plain printable ASCII is escaped, so that it can go to a terminal.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        if self.is_root() {
            return f.write_char('.');
        }
        for label in self.labels() {
            for &octet in label {
                match octet {
                    b'.' | b'\\' | b'"' | b'(' | b')' | b';' | b'@' | b'$' => {
                        f.write_char('\\')?;
                        f.write_char(char::from(octet))?;
                    }
                    b'!'..=b'~' => f.write_char(char::from(octet))?,
                    _ => write!(f, "\\{octet:03}")?,
                }
            }
            f.write_char('.')?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        Name::parse(text)
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// Writes the length of the label whose length octet is at `start`.
fn close_label(wire: &mut [u8], start: usize, index: usize) -> Result<(), NameError> {
    match wire.len() - start - 1 {
        0 => Err(NameError::EmptyLabel { index }),
        octets if octets > LABEL_OCTETS => Err(NameError::LongLabel { index, octets }),
        octets => {
            wire[start] = octets as u8;
            Ok(())
        }
    }
}

/// The octet that the escape at `at` stands for.
fn unescape(at: usize, rest: &mut impl Iterator<Item = (usize, u8)>) -> Result<u8, NameError> {
    let mut next = || rest.next().map(|(_, octet)| octet).ok_or(NameError::Escape { at });
    let first = next()?;
    if !first.is_ascii_digit() {
        return Ok(first.to_ascii_lowercase());
    }
    let mut value = u16::from(first - b'0');
    for _ in 0..2 {
        match next()? {
            digit @ b'0'..=b'9' => value = value * 10 + u16::from(digit - b'0'),
            _ => return Err(NameError::Escape { at }),
        }
    }
    u8::try_from(value).map(|octet| octet.to_ascii_lowercase()).map_err(|_| NameError::Escape { at })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn shown(text: &str, as_text: &str) {
        assert_eq!(Name::parse(text).unwrap().to_string(), as_text);
    }

    #[track_caller]
    fn refused(text: &str, why: &str) {
        assert_eq!(Name::parse(text).unwrap_err().to_string(), why);
    }

    #[track_caller]
    fn refused_wire(wire: &[u8], why: &str) {
        assert_eq!(Name::from_wire(wire).unwrap_err().to_string(), why);
    }

    #[test]
    fn letters_are_folded_and_the_final_dot_is_added() {
        shown("API.Stripe.COM", "api.stripe.com.");
        shown("api.stripe.com.", "api.stripe.com.");
        shown(".", ".");
        assert_eq!(Name::from_wire(b"\x03COM\0").unwrap(), Name::parse("com").unwrap());
    }

    #[test]
    fn only_ascii_is_folded() {
        // U+212A is the kelvin sign: Unicode folding would make it a `k`.
        assert_ne!(Name::parse("\u{212a}").unwrap(), Name::parse("k").unwrap());
    }

    #[test]
    fn control_octets_are_never_shown_raw() {
        shown("a\\000b\\.c\\\\d\\027.x", "a\\000b\\.c\\\\d\\027.x.");
        assert_eq!(Name::from_wire(b"\x02\x1b[\0").unwrap().to_string(), "\\027[.");
        assert_eq!(Name::from_wire(b"\x02\xc3\xbc\0").unwrap().to_string(), "\\195\\188.");
    }

    #[test]
    fn a_label_with_a_dot_or_a_nul_is_refused_always() {
        assert!(Name::from_wire(b"\x03a.b\0").unwrap().is_refused_always());
        assert!(Name::from_wire(b"\x01\0\0").unwrap().is_refused_always());
        assert!(!Name::parse("a b").unwrap().is_refused_always());
        assert!(!Name::root().is_refused_always());
    }

    #[test]
    fn pattern_octets_are_letters_digits_hyphen_and_underscore() {
        assert!(Name::parse("_x-1.Example").unwrap().has_only_pattern_octets());
        assert!(Name::root().has_only_pattern_octets());
        for octet in 0..=255 {
            let name = Name::from_wire(&[1, octet, 0]).unwrap();
            let allowed = octet.is_ascii_alphanumeric() || octet == b'-' || octet == b'_';
            assert_eq!(name.has_only_pattern_octets(), allowed, "{octet}");
        }
    }

    #[test]
    fn ends_with_holds_on_label_boundaries_only() {
        let name = Name::parse("api.stripe.com").unwrap();
        for (ancestor, ends) in [("stripe.com", true), ("com", true), (".", true), ("api.stripe.com", true)]
            .into_iter()
            .chain([("tripe.com", false), ("x.api.stripe.com", false), ("stripe.org", false)])
        {
            assert_eq!(name.ends_with(&Name::parse(ancestor).unwrap()), ends, "{ancestor}");
        }
        // "\x01\x01a" ends in the octets of "\x01a".
        let inside = Name::from_wire(b"\x03b\x01a\0").unwrap();
        assert!(!inside.ends_with(&Name::parse("a").unwrap()));
    }

    #[test]
    fn labels_come_from_both_ends() {
        let name = Name::parse("a.bc.def").unwrap();
        assert_eq!(name.labels().collect::<Vec<_>>(), [b"a".as_slice(), b"bc", b"def"]);
        assert_eq!(name.labels().rev().collect::<Vec<_>>(), [b"def".as_slice(), b"bc", b"a"]);
        let mut both = name.labels();
        assert_eq!((both.next_back(), both.next(), both.len()), (Some(b"def".as_slice()), Some(b"a".as_slice()), 1));
    }

    #[test]
    fn limits_are_named_with_what_was_found() {
        refused("", "empty name; the root is written \".\"");
        refused("a..b", "label 1 is empty; a label has 1 to 63 octets");
        refused(".a", "label 0 is empty; a label has 1 to 63 octets");
        refused("..", "label 0 is empty; a label has 1 to 63 octets");
        refused(&"x".repeat(64), "label 0 has 64 octets; the limit is 63");
        refused(&vec!["x".repeat(63); 4].join("."), "name of 257 octets; the limit is 255");
        refused("a\\", "escape at octet 1 is unfinished or above 255; \\. or \\046 is allowed");
        refused("\\256", "escape at octet 0 is unfinished or above 255; \\. or \\046 is allowed");
        let longest =
            [&"x".repeat(63), &"x".repeat(63), &"x".repeat(63), &"x".repeat(61)].map(String::as_str).join(".");
        assert_eq!(Name::parse(&longest).unwrap().as_wire().len(), NAME_OCTETS);
    }

    #[test]
    fn wire_octets_must_be_exactly_one_plain_name() {
        refused_wire(b"", "empty name; the root is written \".\"");
        refused_wire(b"\x03com", "4 octets end inside the name; a name ends with the root's 0");
        refused_wire(b"\x03co", "3 octets end inside the name; a name ends with the root's 0");
        refused_wire(b"\0\0", "1 octets after the name; none are allowed");
        refused_wire(b"\xc0\x0c", "length octet 0xc0 of label 0; only plain labels up to 63 are allowed");
        refused_wire(b"\x01a\x40", "length octet 0x40 of label 1; only plain labels up to 63 are allowed");
        refused_wire(&[1; 300], "name of 256 octets; the limit is 255");
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_to_the_same_name(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..9)) {
            let mut wire = Vec::new();
            for label in &labels {
                wire.push(label.len() as u8);
                wire.extend(label);
            }
            wire.push(0);
            let name = Name::from_wire(&wire).unwrap();
            prop_assert_eq!(&Name::parse(&name.to_string()).unwrap(), &name);
            prop_assert!(name.to_string().bytes().all(|octet| octet.is_ascii_graphic()));
        }

        #[test]
        fn no_octets_panic(wire in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,80}") {
            if let Ok(name) = Name::from_wire(&wire) {
                prop_assert!(name.as_wire().len() <= NAME_OCTETS && name.labels().count() <= LABELS);
            }
            if let Ok(name) = Name::parse(&text) {
                prop_assert_eq!(Name::from_wire(name.as_wire()).unwrap(), name);
            }
        }
    }
}
