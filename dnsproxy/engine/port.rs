//! Ports as rows hold them: a block of ports that share their leading bits, as a prefix of addresses does.
//!
//! One port is a block of 16 bits, every port one of none; 1024-65535 is six. ICMP has its type and code in the place of
//! the port, `type << 8 | code`, so that a type is a block of eight bits.

use std::fmt;

use super::ruleset::Protocol;

/// A block of ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
pub struct PortBlock {
    /// The lowest port of the block.
    first: u16,
    /// How many leading bits are given, 0 to 16.
    length: u8,
}

impl PortBlock {
    /// Every port.
    pub const ANY: PortBlock = PortBlock { first: 0, length: 0 };

    /// One port.
    pub const fn one(port: u16) -> PortBlock {
        PortBlock { first: port, length: 16 }
    }

    /// A type of ICMP with all its codes.
    pub const fn icmp_type(number: u8) -> PortBlock {
        PortBlock { first: (number as u16) << 8, length: 8 }
    }

    /// The blocks that make up `first` to `last`, both included, in order; none if `last` is below `first`.
    pub fn of_range(first: u16, last: u16) -> Vec<PortBlock> {
        let (mut at, end) = (u32::from(first), u32::from(last) + 1);
        let mut blocks = Vec::new();
        while at < end {
            // As large as the alignment of its first port and what is left allow.
            let bits = at.trailing_zeros().min(16).min((end - at).ilog2());
            #[expect(clippy::cast_possible_truncation, reason = "at is below 65 536, bits at most 16")]
            blocks.push(PortBlock { first: at as u16, length: (16 - bits) as u8 });
            at += 1 << bits;
        }
        blocks
    }

    /// The block of this length that `port` is in. `length`: 0 to 16.
    pub const fn around(port: u16, length: u8) -> PortBlock {
        let block = PortBlock { first: port, length };
        PortBlock { first: port & block.mask(), length }
    }

    /// The lowest port of the block; 0 for every port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port of the block.
    pub fn last(self) -> u16 {
        self.first | !self.mask()
    }

    /// How many leading bits are given: 0 for every port, 16 for one.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Whether `port` is in the block.
    pub fn holds(self, port: u16) -> bool {
        port & self.mask() == self.first
    }

    /// Whether all of `narrow` is in the block.
    pub fn covers(self, narrow: PortBlock) -> bool {
        self.length <= narrow.length && self.holds(narrow.first)
    }

    /// The two blocks that it is made of; `None` for one port.
    pub fn halves(self) -> Option<[PortBlock; 2]> {
        let length = self.length + 1;
        (self.length < 16).then(|| [PortBlock::around(self.first, length), PortBlock::around(self.last(), length)])
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
    const fn mask(self) -> u16 {
        (0xffff_0000_u32 >> self.length) as u16
    }
}

/// Whether `wide`, a protocol and its ports, covers `narrow`. [`Protocol::Any`] covers every protocol.
pub fn covers(wide: (Protocol, PortBlock), narrow: (Protocol, PortBlock)) -> bool {
    (wide.0 == narrow.0 || wide.0 == Protocol::Any) && wide.1.covers(narrow.1)
}

/// Whether what is allowed on `wide` is allowed on `narrow`: as [`covers`], but that rules without ports let no ICMP pass
/// that asks nothing (I11). A denial without ports means it too.
pub fn opens(wide: (Protocol, PortBlock), narrow: (Protocol, PortBlock)) -> bool {
    covers(wide, narrow) && (wide.0 == narrow.0 || !is_unasked(narrow.0, narrow.1))
}

/// Whether these are types of ICMP that ask nothing: errors, redirects, answers. They have no flows, and only a rule that
/// names them opens them.
pub fn is_unasked(protocol: Protocol, ports: PortBlock) -> bool {
    match protocol {
        Protocol::Icmp | Protocol::Icmpv6 => {
            !asking_types(protocol).iter().any(|number| PortBlock::icmp_type(*number).covers(ports))
        }
        Protocol::Any | Protocol::Tcp | Protocol::Udp | Protocol::Sctp => false,
    }
}

/// The types of ICMP that ask: echo, timestamp (RFC 792), extended echo (RFC 8335). None of other protocols.
pub fn asking_types(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::Icmp => &[8, 13, 42],
        Protocol::Icmpv6 => &[128, 160],
        Protocol::Any | Protocol::Tcp | Protocol::Udp | Protocol::Sctp => &[],
    }
}

/// Whether `wide` covers one port.
pub fn holds(wide: (Protocol, PortBlock), protocol: Protocol, port: u16) -> bool {
    covers(wide, (protocol, PortBlock::one(port)))
}

/// A port as `toPorts` writes it: 0 is every port.
impl From<u16> for PortBlock {
    fn from(port: u16) -> PortBlock {
        if port == 0 { PortBlock::ANY } else { PortBlock::one(port) }
    }
}

/// `443`, `1024-2047`, `*`.
impl fmt::Display for PortBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.length {
            0 => f.write_str("*"),
            16 => write!(f, "{}", self.first),
            _ => write!(f, "{}-{}", self.first, self.last()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is(first: u16, last: u16, texts: &[&str]) {
        let blocks = PortBlock::of_range(first, last);
        assert_eq!(blocks.iter().map(PortBlock::to_string).collect::<Vec<_>>(), texts);
        for port in 0..=u16::MAX {
            assert_eq!(blocks.iter().any(|block| block.holds(port)), (first..=last).contains(&port), "{port}");
        }
    }

    #[test]
    fn a_range_is_its_blocks_and_nothing_else() {
        is(443, 443, &["443"]);
        is(0, 65535, &["*"]);
        is(1024, 65535, &["1024-2047", "2048-4095", "4096-8191", "8192-16383", "16384-32767", "32768-65535"]);
        is(1, 4, &["1", "2-3", "4"]);
        is(65534, 65535, &["65534-65535"]);
        is(5, 4, &[]);
    }

    #[test]
    fn a_block_covers_what_is_in_it() {
        let block = PortBlock::of_range(1024, 2047)[0];
        assert!(PortBlock::ANY.covers(block) && block.covers(PortBlock::one(1500)) && block.covers(block));
        assert!(!block.covers(PortBlock::ANY) && !block.covers(PortBlock::one(2048)));
        assert!(covers((Protocol::Any, PortBlock::ANY), (Protocol::Udp, block)));
        assert!(!covers((Protocol::Tcp, PortBlock::ANY), (Protocol::Udp, block)));
        assert!(holds((Protocol::Icmp, PortBlock::icmp_type(8)), Protocol::Icmp, 8 << 8));
        assert!(!holds((Protocol::Icmp, PortBlock::icmp_type(8)), Protocol::Icmp, 9 << 8));
        assert_eq!(PortBlock::around(1500, 6), block);
        assert_eq!((PortBlock::around(7, 16), PortBlock::around(7, 0)), (PortBlock::one(7), PortBlock::ANY));
    }

    #[test]
    fn without_ports_a_rule_opens_the_questions_of_icmp() {
        let any = (Protocol::Any, PortBlock::ANY);
        for (protocol, number, asks) in [
            (Protocol::Icmp, 8, true),
            (Protocol::Icmp, 13, true),
            (Protocol::Icmp, 0, false),
            (Protocol::Icmp, 3, false),
            (Protocol::Icmpv6, 128, true),
            (Protocol::Icmpv6, 8, false),
        ] {
            let named = (protocol, PortBlock::icmp_type(number));
            assert_eq!(opens(any, named), asks, "{named:?}");
            assert!(covers(any, named) && opens(named, named));
        }
        assert!(opens(any, (Protocol::Tcp, PortBlock::one(0))));
    }
}
