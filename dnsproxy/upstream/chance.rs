//! What an off-path attacker must not guess: random octets from the kernel, a block at a time.

/// Octets taken from the kernel at once.
const BLOCK: usize = 1024;

/// A supply of random bits.
pub struct Chance {
    block: [u8; BLOCK],
    used: usize,
}

impl Chance {
    /// An empty supply, filled at the first use.
    pub fn new() -> Chance {
        Chance { block: [0; BLOCK], used: BLOCK }
    }

    /// A random number, as for the ID of a query.
    pub fn number(&mut self) -> u16 {
        u16::from_be_bytes(self.octets())
    }

    /// Sets the case of each letter in a name on the wire at random ("0x20", draft-vixie-dnsext-dns0x20-00).
    pub fn mix_case(&mut self, name: &mut [u8]) {
        for part in name.chunks_mut(64) {
            let mut bits = u64::from_be_bytes(self.octets());
            // Length octets are at most 63 and so no letters.
            for octet in part.iter_mut().filter(|octet| octet.is_ascii_alphabetic()) {
                *octet = *octet & !0x20 | ((bits & 1) as u8) << 5;
                bits >>= 1;
            }
        }
    }

    /// Random octets.
    pub(super) fn octets<const N: usize>(&mut self) -> [u8; N] {
        if self.used + N > BLOCK {
            self.fill();
        }
        let mut taken = [0; N];
        taken.copy_from_slice(&self.block[self.used..self.used + N]);
        self.used += N;
        taken
    }

    fn fill(&mut self) {
        let mut filled = 0;
        while filled < BLOCK {
            let rest = &mut self.block[filled..];
            // SAFETY: the kernel writes at most `rest.len()` octets at its start.
            let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
            // It fails only when a signal comes before the pool was ever ready; try again.
            filled += usize::try_from(count).unwrap_or(0);
        }
        self.used = 0;
    }
}

impl Default for Chance {
    fn default() -> Chance {
        Chance::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_case_of_letters_varies_and_nothing_else() {
        let name = b"\x07example\x05a-1_b\x03com\0";
        let mut chance = Chance::new();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mut mixed = *name;
            chance.mix_case(&mut mixed);
            assert!(mixed.eq_ignore_ascii_case(name));
            seen.insert(mixed);
        }
        assert!(seen.len() > 150, "{} of 200 differ", seen.len());
    }

    #[test]
    fn numbers_are_spread_over_all_octets() {
        let mut chance = Chance::new();
        let high: std::collections::BTreeSet<u8> = (0..10_000).map(|_| (chance.number() >> 8) as u8).collect();
        assert_eq!(high.len(), 256);
    }
}
