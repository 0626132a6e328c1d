//! Where the generator's choices come from: a fuzzer's octets, or a seed.

/// A source of choices.
pub enum Choices<'a> {
    /// An octet a choice; zero when there are no more.
    Octets(&'a [u8]),
    /// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, the same everywhere.
    Seeded(u64),
}

impl Choices<'_> {
    /// No choice is left that some input made.
    pub fn is_over(&self) -> bool {
        matches!(self, Choices::Octets([]))
    }

    /// Any octet.
    pub fn octet(&mut self) -> u8 {
        match self {
            Choices::Octets(octets) => octets.split_off_first().copied().unwrap_or_default(),
            Choices::Seeded(state) => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                (z ^ z >> 31) as u8
            }
        }
    }

    /// Any two octets.
    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.octet(), self.octet()])
    }

    /// Below `end`, which is at most 65 536.
    pub fn below(&mut self, end: usize) -> usize {
        match end {
            0..=1 => 0,
            2..=32 => usize::from(self.octet()) % end,
            _ => usize::from(self.word()) % end,
        }
    }

    /// True in so many of a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        usize::from(self.octet()) * 100 / 256 >= 100 - percent
    }

    /// One of them.
    pub fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}
