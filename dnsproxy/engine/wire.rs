//! Names and numbers in DNS messages: bounded reads, no allocation, no panic on any octets.

/// Octets of a message's header (RFC 1035 section 4.1.1).
pub const HEADER: usize = 12;
/// Octets that a name can have on the wire (RFC 1035 section 3.1).
pub const NAME_OCTETS: usize = 255;
/// The class of the Internet.
pub const CLASS_IN: u16 = 1;

/// Flag: this is a reply.
pub const QR: u16 = 0x8000;
/// Flag: the message was cut.
pub const TC: u16 = 0x0200;
/// Flag: recursion desired.
pub const RD: u16 = 0x0100;
/// Flag: recursion available.
pub const RA: u16 = 0x0080;
/// Flag: authentic data; in a query: the asker understands it (RFC 6840 section 5.7).
pub const AD: u16 = 0x0020;
/// Flag: checking disabled.
pub const CD: u16 = 0x0010;

/// Types of records, as far as anything here depends on them.
pub mod rtype {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Alias.
    pub const CNAME: u16 = 5;
    /// Start of a zone of authority.
    pub const SOA: u16 = 6;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// EDNS (RFC 6891).
    pub const OPT: u16 = 41;
    /// Next secure name (RFC 4034).
    pub const NSEC: u16 = 47;
    /// Next secure name, hashed (RFC 5155).
    pub const NSEC3: u16 = 50;
    /// Service binding (RFC 9460).
    pub const SVCB: u16 = 64;
    /// Service binding of https (RFC 9460).
    pub const HTTPS: u16 = 65;
}

/// The type as text: `A`, `TYPE65280` (RFC 3597 section 5).
pub fn type_text(rtype: u16) -> String {
    let known = match rtype {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        12 => "PTR",
        13 => "HINFO",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        29 => "LOC",
        33 => "SRV",
        35 => "NAPTR",
        39 => "DNAME",
        41 => "OPT",
        43 => "DS",
        44 => "SSHFP",
        46 => "RRSIG",
        47 => "NSEC",
        48 => "DNSKEY",
        50 => "NSEC3",
        52 => "TLSA",
        64 => "SVCB",
        65 => "HTTPS",
        99 => "SPF",
        251 => "IXFR",
        252 => "AXFR",
        255 => "ANY",
        257 => "CAA",
        other => return format!("TYPE{other}"),
    };
    known.to_owned()
}

/// Two octets at `at`, in network order.
pub fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    let octets = message.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([octets[0], octets[1]]))
}

/// Four octets at `at`, in network order.
pub fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    let octets = message.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes([octets[0], octets[1], octets[2], octets[3]]))
}

/// Where the name that starts at `at` ends in the message: behind its final zero or its pointer.
///
/// Whether a pointer leads anywhere shows when the name is read.
pub fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let length = *message.get(at)?;
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + usize::from(length),
            0xc0..=0xff => return message.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
        if at - start >= NAME_OCTETS {
            return None;
        }
    }
}

/// Where an uncompressed name that starts at `at` ends; `None` for anything else than plain labels of at most 255
/// octets.
pub fn skip_plain_name(message: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let length = *message.get(at)?;
        if length > 63 {
            return None;
        }
        at += 1 + usize::from(length);
        if at - start > NAME_OCTETS {
            return None;
        }
        if length == 0 {
            return Some(at);
        }
    }
}

/// A name read out of a message, without compression.
#[derive(Clone)]
pub struct NameBuf {
    octets: [u8; NAME_OCTETS],
    length: u8,
}

impl NameBuf {
    /// Reads the name at `at`, as it stands.
    ///
    /// Pointers must lead backwards, each further than the one before, so reading ends; and what stands there must end
    /// before the part that led there, so that no octet is read twice, as label and as pointer.
    pub fn read(message: &[u8], at: usize) -> Option<NameBuf> {
        let mut name = NameBuf { octets: [0; NAME_OCTETS], length: 0 };
        let mut filled = 0;
        let mut at = at;
        // Where the part that is being read starts, and where it must have ended.
        let (mut floor, mut ceiling) = (at, message.len());
        loop {
            let length = *message[..ceiling].get(at)?;
            match length {
                0..=63 => {
                    let label = message.get(at..at + 1 + usize::from(length))?;
                    name.octets.get_mut(filled..filled + label.len())?.copy_from_slice(label);
                    filled += label.len();
                    if length == 0 {
                        name.length = filled as u8;
                        return Some(name);
                    }
                    at += label.len();
                }
                0xc0..=0xff => {
                    let target = usize::from(u16_at(message, at)? & 0x3fff);
                    if target >= floor {
                        return None;
                    }
                    ceiling = floor;
                    floor = target;
                    at = target;
                }
                _ => return None,
            }
        }
    }

    /// Reads the name at `at` with ASCII letters in lower case.
    pub fn read_folded(message: &[u8], at: usize) -> Option<NameBuf> {
        let mut name = NameBuf::read(message, at)?;
        name.fold();
        Some(name)
    }

    /// A copy of an uncompressed name, which must be complete and at most 255 octets.
    pub fn of_wire(wire: &[u8]) -> Option<NameBuf> {
        (skip_plain_name(wire, 0)? == wire.len()).then(|| NameBuf::read(wire, 0))?
    }

    /// Length octets are at most 63, so folding the whole buffer touches only letters of labels.
    fn fold(&mut self) {
        self.octets[..usize::from(self.length)].make_ascii_lowercase();
    }

    /// Length-prefixed labels and the final zero.
    pub fn as_wire(&self) -> &[u8] {
        &self.octets[..usize::from(self.length)]
    }
}

impl PartialEq for NameBuf {
    fn eq(&self, other: &NameBuf) -> bool {
        self.as_wire() == other.as_wire()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(message: &[u8], at: usize, expected: Option<&[u8]>) {
        assert_eq!(NameBuf::read(message, at).as_ref().map(NameBuf::as_wire), expected);
    }

    #[test]
    fn a_name_is_read_through_its_pointers() {
        let message = b"\x03com\0\x07example\xc0\x00\x03www\xc0\x05";
        reads(message, 5, Some(b"\x07example\x03com\0"));
        reads(message, 15, Some(b"\x03www\x07example\x03com\0"));
        assert_eq!(skip_name(message, 15), Some(21));
    }

    #[test]
    fn a_pointer_that_does_not_lead_backwards_ends_the_reading() {
        reads(b"\xc0\x00", 0, None);
        reads(b"\x01a\xc0\x00", 0, None);
        reads(b"\xc0\x02\xc0\x00", 2, None);
        reads(b"\x01a\xc0\x06\x01b\xc0\x00", 4, None);
    }

    #[test]
    fn a_name_is_not_read_over_the_pointer_that_led_to_it() {
        // A label of three octets, the first two of which are the pointer to it.
        let message = b"\x01a\x03\xc0\x02x\0";
        reads(message, 3, None);
        reads(message, 2, Some(b"\x03\xc0\x02x\0"));
    }

    #[test]
    fn a_name_longer_than_255_octets_is_none() {
        let label = [&[63u8][..], &[b'a'; 63]].concat();
        let longest = [label.repeat(3), [&[61u8][..], &[b'a'; 61]].concat(), vec![0]].concat();
        assert_eq!(longest.len(), 255);
        reads(&longest, 0, Some(&longest));
        assert_eq!(skip_plain_name(&longest, 0), Some(255));
        let longer = [label.repeat(3), [&[62u8][..], &[b'a'; 62]].concat(), vec![0]].concat();
        reads(&longer, 0, None);
        assert_eq!(skip_plain_name(&longer, 0), None);
    }

    #[test]
    fn the_other_label_types_are_refused() {
        reads(b"\x40a\0", 0, None);
        reads(b"\x80a\0", 0, None);
        assert_eq!(skip_name(b"\x40a\0", 0), None);
    }
}
