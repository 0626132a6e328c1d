//! Groups as bits.

use std::ops::{BitAnd, BitOr, BitOrAssign, Not};

/// How many groups one rule set can hold, "any peer" included.
pub const GROUPS: u32 = 128;

/// A set of groups: one bit for all the peers that the same ports open.
///
/// Bit 0 is "any peer": the kernel sets it in what every packet matches, so it never appears in a grant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Bits(pub u128);

impl Bits {
    /// No group.
    pub const NONE: Bits = Bits(0);
    /// The group of every address.
    pub const ANY_PEER: Bits = Bits(1);

    /// The set that holds only group `bit`, from 0 to 127.
    pub fn of(bit: u8) -> Bits {
        Bits(1 << bit)
    }

    /// Whether no group is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the two sets share a group.
    pub fn meets(self, other: Bits) -> bool {
        self.0 & other.0 != 0
    }

    /// The kernel's two words, low first.
    pub fn words(self) -> [u64; 2] {
        [self.0 as u64, (self.0 >> 64) as u64]
    }

    /// From the kernel's two words.
    pub fn from_words(words: [u64; 2]) -> Bits {
        Bits(u128::from(words[0]) | u128::from(words[1]) << 64)
    }
}

impl BitOr for Bits {
    type Output = Bits;
    fn bitor(self, other: Bits) -> Bits {
        Bits(self.0 | other.0)
    }
}

impl BitOrAssign for Bits {
    fn bitor_assign(&mut self, other: Bits) {
        self.0 |= other.0;
    }
}

impl BitAnd for Bits {
    type Output = Bits;
    fn bitand(self, other: Bits) -> Bits {
        Bits(self.0 & other.0)
    }
}

impl Not for Bits {
    type Output = Bits;
    fn not(self) -> Bits {
        Bits(!self.0)
    }
}

impl std::fmt::Debug for Bits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries((0..GROUPS).filter(|bit| self.0 >> bit & 1 == 1)).finish()
    }
}
