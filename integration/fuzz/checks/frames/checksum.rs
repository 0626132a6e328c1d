//! Checksums, as RFC 1071 says them: what the programs mend must stay right.

use super::reading::{ICMP, ICMPV6, TCP, UDP, word};

/// The sum over the octets, without the complement.
fn sum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Where the parts of a frame lie that checksums go over.
struct Layout {
    v4: bool,
    protocol: u8,
    at: usize,
    end: usize,
}

/// Of a frame without extension headers.
fn layout(octets: &[u8]) -> Option<Layout> {
    let (v4, at, protocol, end) = match word(octets, 12)? {
        0x0800 => {
            let ip = octets.get(14..34)?;
            let total = usize::from(word(ip, 2)?);
            (true, 14 + usize::from(ip[0] & 15) * 4, ip[9], 14 + total)
        }
        0x86dd => (false, 54, *octets.get(20)?, 54 + usize::from(word(octets, 18)?)),
        _ => return None,
    };
    (at >= 34 && at + 8 <= end && end <= octets.len()).then_some(Layout { v4, protocol, at, end })
}

fn layer4(octets: &[u8], layout: &Layout) -> u16 {
    sum([&pseudo(octets, layout).to_be_bytes()[..], &octets[layout.at..layout.end]])
}

/// Of the pseudo header alone.
fn pseudo(octets: &[u8], layout: &Layout) -> u16 {
    let Layout { v4, protocol, at, end } = *layout;
    let addresses = if v4 { &octets[26..34] } else { &octets[22..54] };
    let rest = [0, protocol, ((end - at) >> 8) as u8, (end - at) as u8];
    if v4 && protocol == ICMP { 0 } else { sum([addresses, &rest]) }
}

fn place(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        ICMP | ICMPV6 => Some(2),
        _ => None,
    }
}

/// Whether the checksums of the frame's packet are right; `None`: it has none that this can tell. UDP over IPv4 may go without.
pub fn is_right(octets: &[u8]) -> Option<bool> {
    let layout = layout(octets)?;
    let place = layout.at + place(layout.protocol)?;
    if place + 2 > layout.end {
        return None;
    }
    let header = !layout.v4 || sum([&octets[14..layout.at]]) == 0xffff;
    let without = layout.protocol == UDP && word(octets, place) == Some(0);
    Some(header && (without || layer4(octets, &layout) == 0xffff))
}

/// Whether the frame's checksums are right, with that of TCP or UDP left to a card: the sum of the pseudo header stands in its
/// place (Linux: CHECKSUM_PARTIAL).
pub fn is_begun(octets: &[u8]) -> Option<bool> {
    let layout = layout(octets).filter(|layout| matches!(layout.protocol, TCP | UDP))?;
    let place = layout.at + place(layout.protocol)?;
    let header = !layout.v4 || sum([&octets[14..layout.at]]) == 0xffff;
    let found = word(octets.get(..layout.end)?, place)?;
    // Zero has two forms.
    Some(header && found % 0xffff == pseudo(octets, &layout) % 0xffff)
}

/// Makes them right so; where the sum ends that is left to a card. 0: the frame has none such.
pub fn begin(octets: &mut [u8]) -> usize {
    let Some(layout) = layout(octets).filter(|layout| matches!(layout.protocol, TCP | UDP)) else { return 0 };
    let Some(place) = place(layout.protocol).map(|place| layout.at + place).filter(|place| place + 2 <= layout.end)
    else {
        return 0;
    };
    mend(octets);
    let sum = pseudo(octets, &layout);
    octets[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    place + 2
}

/// Makes them right.
pub fn mend(octets: &mut [u8]) {
    let Some(layout) = layout(octets) else { return };
    if layout.v4 {
        octets[24..26].fill(0);
        let sum = !sum([&octets[14..layout.at]]);
        octets[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    let Some(place) = place(layout.protocol).map(|place| layout.at + place).filter(|place| place + 2 <= layout.end)
    else {
        return;
    };
    octets[place..place + 2].fill(0);
    let sum = match !layer4(octets, &layout) {
        0 if layout.protocol == UDP => 0xffff,
        sum => sum,
    };
    octets[place..place + 2].copy_from_slice(&sum.to_be_bytes());
}
