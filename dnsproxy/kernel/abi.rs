//! The Rust side of bpf/include/abi.h: the generated types, their sizes asserted, and conversions to the engine's.

use std::mem::size_of;
use std::net::{IpAddr, Ipv6Addr};

use crate::engine::bits::Bits;
use crate::engine::grant::{MonoNs, SLOTS, Slot};
use crate::engine::ruleset::Direction;

#[allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    missing_docs,
    unused,
    dead_code,
    unsafe_op_in_unsafe_fn,
    reason = "generated from the BTF of bpf/include/abi.h"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/from_pod.skel.rs"));
}

pub use generated::types::{
    address, bridge, budget, cidr4_key, cidr6_key, counter, endpoint, first_fragment, flow, flow_event, flow_key,
    fragment_key, grant, grant_key, grant_slot, group_bits, learned_mac, limits, peer_bits_key, port_block_key,
    port_key, port_row, proxy_socket, proxy_socket_key, rodata, service, service_key, steer, steer_key,
};

/// `ABI_VERSION`: part of the pin directory's name.
pub const VERSION: u32 = 4;

/// The object files that the programs are loaded from.
pub const FROM_POD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/from_pod.bpf.o"));
/// See [`FROM_POD`].
pub const TO_POD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/to_pod.bpf.o"));
/// See [`FROM_POD`].
pub const BEAT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/beat.bpf.o"));
/// See [`FROM_POD`].
pub const EARLY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/early.bpf.o"));

/// See [`FROM_POD`].
pub const INSIDE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inside.bpf.o"));

/// `enum endpoint_flag`.
pub mod flag {
    #![expect(missing_docs, reason = "documented in bpf/include/abi.h, where they come from")]
    use super::generated::types::endpoint_flag as f;
    pub const DENY_EGRESS: u32 = f::ENDPOINT_DENY_EGRESS.0;
    pub const DENY_INGRESS: u32 = f::ENDPOINT_DENY_INGRESS.0;
    pub const STEER: u32 = f::ENDPOINT_STEER.0;
    pub const REJECT: u32 = f::ENDPOINT_REJECT.0;
    /// Count what would be dropped, and let it pass.
    pub const AUDIT: u32 = f::ENDPOINT_AUDIT.0;
    pub const BRIDGED: u32 = f::ENDPOINT_BRIDGED.0;
    pub const ENFORCE: u32 = f::ENDPOINT_ENFORCE.0;
    pub const HAS_MAC: u32 = f::ENDPOINT_HAS_MAC.0;
    pub const CLOSED: u32 = f::ENDPOINT_CLOSED.0;
    pub const HAS_CIDR: u32 = f::ENDPOINT_HAS_CIDR.0;
    pub const HAS_PORT_BLOCKS: u32 = f::ENDPOINT_HAS_PORT_BLOCKS.0;
    /// What it receives is judged on its own side.
    pub const INSIDE: u32 = f::ENDPOINT_INSIDE.0;
}

/// A type without padding, every bit pattern of which is a value: it may go to the kernel and come back as octets.
///
/// # Safety
/// The implementor is `repr(C)`, has no padding between or behind its fields, and no invalid bit patterns.
pub unsafe trait Plain: Copy {
    /// Its octets.
    fn octets(&self) -> &[u8] {
        // SAFETY: by the trait's contract every octet of the value is initialised.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// The value that these octets are; `None` if there are too few.
    fn from_octets(octets: &[u8]) -> Option<Self> {
        // SAFETY: long enough, unaligned reads are asked for, and every bit pattern is a value.
        (octets.len() >= size_of::<Self>()).then(|| unsafe { octets.as_ptr().cast::<Self>().read_unaligned() })
    }
}

macro_rules! plain {
    ($($name:ty = $octets:literal),* $(,)?) => { $(
        const _: () = assert!(size_of::<$name>() == $octets);
        // SAFETY: generated from the BTF of abi.h, which asserts the same size with every field explicit.
        unsafe impl Plain for $name {}
    )* };
}

plain! {
    u32 = 4, endpoint = 96, budget = 16, limits = 28, learned_mac = 8, bridge = 8, flow_key = 24, flow = 32,
    grant_key = 20, grant = 112, peer_bits_key = 8, group_bits = 16, service_key = 24, service = 4, cidr4_key = 12,
    cidr6_key = 24, port_key = 8, port_block_key = 12, port_row = 32, steer_key = 20, steer = 20, counter = 16, flow_event = 80, address = 16,
    fragment_key = 48, first_fragment = 32, proxy_socket_key = 24, proxy_socket = 8,
}

/// An address as the maps have it: 16 octets in network order, IPv4 as ::ffff:a.b.c.d.
pub fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address that [`mapped`] made these octets of.
pub fn unmapped(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}

impl From<Bits> for group_bits {
    fn from(bits: Bits) -> group_bits {
        group_bits { words: bits.words() }
    }
}

/// `enum flow_direction`.
pub fn direction(direction: Direction) -> u8 {
    match direction {
        Direction::Egress => 0,
        Direction::Ingress => 1,
    }
}

/// Slots as the kernel holds them.
pub fn slots(slots: &[Slot; SLOTS]) -> [grant_slot; SLOTS] {
    slots.map(|slot| grant_slot { bits: slot.bits.words(), until_mono_ns: slot.until.0 })
}

/// Slots as the engine knows them.
pub fn engine_slots(slots: &[grant_slot; SLOTS]) -> [Slot; SLOTS] {
    slots.map(|slot| Slot { bits: Bits::from_words(slot.bits), until: MonoNs(slot.until_mono_ns) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_and_the_records_know_the_same_reasons() {
        use crate::observe::Reason;
        use generated::types::reason as r;
        assert_eq!(Reason::ALL.len(), r::REASON_COUNT.0 as usize);
        assert_eq!(Reason::from_number(r::REASON_NO_GRANT.0 as u8), Reason::NoGrant);
        assert_eq!(Reason::from_number(r::REASON_LAST_DROP.0 as u8), Reason::Internal);
        assert_eq!(Reason::from_number(r::REASON_AUDIT.0 as u8), Reason::Audit);
        assert!(!Reason::from_number(0).passed(), "zero refuses");
    }

    #[test]
    fn addresses_survive_the_way_to_the_kernel_and_back() {
        for text in ["203.0.113.7", "2001:db8::7"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(unmapped(mapped(address)), address);
        }
    }
}
