//! What becomes of a file on a disk, and the checksum by the book: the other reader of what state files say.

/// CRC-32 as IEEE 802.3 has it, bit by bit.
pub fn crc(octets: &[u8]) -> u32 {
    !octets.iter().fold(u32::MAX, |sum, octet| {
        (0..8).fold(sum ^ u32::from(*octet), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

/// The text with up to four octets in a row changed, all in its first line or all behind it; `None`: nothing changed.
///
/// So little is what a checksum of 32 bits notices for certain.
pub fn flipped(text: &[u8], at: u16, bits: [u8; 4]) -> Option<Vec<u8>> {
    let header = text.iter().position(|octet| *octet == b'\n').map_or(text.len(), |end| end + 1);
    let at = usize::from(at) % text.len();
    let end = if at < header { header } else { text.len() };
    let mut text = text.to_vec();
    text[at..end].iter_mut().zip(bits).for_each(|(octet, bits)| *octet ^= bits);
    (bits[0] != 0).then_some(text)
}

/// Takes numbers from the front of octets; what is not there is 0.
pub struct Take<'a>(pub &'a [u8]);

impl<'a> Take<'a> {
    /// The next so many octets, or what is left.
    pub fn some(&mut self, count: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        first
    }

    /// The next octets.
    pub fn array<const COUNT: usize>(&mut self) -> [u8; COUNT] {
        let some = self.some(COUNT);
        std::array::from_fn(|at| some.get(at).copied().unwrap_or(0))
    }

    /// The next octet.
    pub fn octet(&mut self) -> u8 {
        self.array::<1>()[0]
    }
}
