//! A pod speaks for itself only (I2, I11).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use namegate::engine::ruleset::PeerId;
use namegate::kernel::abi::flag;
use namegate::observe::Reason;
use namegate_frames::Skb;

use super::super::reading::{Packet, is_multicast};
use super::{Judge, Run, mac};

impl Judge {
    /// Given, or that of the first frame with one of the endpoint's addresses.
    pub(super) fn is_own_mac(&mut self, run: &Run<'_>, mac: [u8; 6]) -> bool {
        match self.macs.get(&run.endpoint.ifindex) {
            _ if run.endpoint.is(flag::HAS_MAC) => mac == run.endpoint.mac,
            Some(known) => mac == *known,
            None => {
                if !run.probe {
                    self.macs.insert(run.endpoint.ifindex, mac);
                }
                true
            }
        }
    }

    /// RFC 826; RFC 5227 for probes, which have no sender.
    pub(super) fn arp(&mut self, run: &Run<'_>, skb: &Skb<'_>) -> Reason {
        if skb.octets.len() > 60 {
            return Reason::Malformed; // behind the padding: a message to the whole segment
        }
        let Some(message) = skb.octets.get(14..42).filter(|message| message[..6] == [0, 1, 8, 0, 6, 4]) else {
            return Reason::Malformed;
        };
        let sender = Ipv4Addr::from(<[u8; 4]>::try_from(&message[14..18]).expect("four octets"));
        let hardware: [u8; 6] = message[8..14].try_into().expect("six octets");
        let is_probe = sender.is_unspecified();
        let honest = if is_probe { message[6..8] == [0, 1] } else { run.endpoint.addresses.contains(&sender.into()) };
        match () {
            () if !honest || hardware != mac(skb, 6) => Reason::ArpSpoofed,
            () if !is_probe && !self.is_own_mac(run, hardware) => Reason::SpoofedMac,
            () => Reason::Arp,
        }
    }

    /// RFC 4861 and, for reports of multicast listeners, RFC 3810.
    pub(super) fn neighbour(&mut self, run: &Run<'_>, skb: &Skb<'_>, packet: &Packet) -> Reason {
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else {
            unreachable!("ICMPv6 is in IPv6")
        };
        let hardware = mac(skb, 6);
        let owns = |address: Ipv6Addr| run.endpoint.addresses.contains(&address.into());
        let is_own = |address: Ipv6Addr| owns(address) || is_own_link_local(run, address, hardware);
        if !is_own(source) && !source.is_unspecified() {
            return Reason::SpoofedAddress;
        }
        if owns(source) && !self.is_own_mac(run, hardware) {
            return Reason::SpoofedMac;
        }
        // A report of one group, or of sixteen (RFC 2710, RFC 3810), behind a router alert; the target, one link-layer address
        // and a nonce (RFC 7527). What is longer is a message to the whole segment.
        let most = match packet.kind {
            131 | 132 => 14 + 40 + 8 + 24,
            143 => 14 + 40 + 8 + 8 + 16 * 20,
            _ => 14 + 40 + 24 + 8 + 8,
        };
        if skb.octets.len() > most {
            return Reason::NdSpoofed;
        }
        if matches!(packet.kind, 131 | 132 | 143) {
            return if packet.hops == 1 && is_multicast(packet.destination) { Reason::Nd } else { Reason::NdSpoofed };
        }
        if packet.hops != 255 || packet.at != 54 || packet.code != 0 || !matches!(packet.kind, 133 | 135 | 136) {
            return Reason::NdSpoofed;
        }
        if packet.kind != 133 {
            let Some(target) = skb.octets.get(62..78) else { return Reason::Malformed };
            let target = Ipv6Addr::from(<[u8; 16]>::try_from(target).expect("sixteen octets"));
            if packet.kind == 136 && !is_own(target) {
                return Reason::NdSpoofed;
            }
            if let Some(option) = skb.octets.get(78..86)
                && option[0] <= 2
                && option[2..] != hardware
            {
                return Reason::NdSpoofed;
            }
        }
        // What the node would forward is no neighbour's.
        let peer = run.world.places.get(&IpAddr::V6(destination)).copied();
        let on_link = match destination.octets() {
            [0xff, scope, ..] => scope & 15 == 2,
            _ if destination.is_unicast_link_local() => true,
            _ => peer
                .is_some_and(|peer| peer == PeerId::HOST || (peer >= PeerId::FIRST && run.endpoint.is(flag::BRIDGED))),
        };
        if on_link { Reason::Nd } else { Reason::Protocol }
    }
}

/// On a shared segment it must be made of the MAC (RFC 4291, appendix A).
fn is_own_link_local(run: &Run<'_>, address: Ipv6Addr, mac: [u8; 6]) -> bool {
    let made = [mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]];
    address.is_unicast_link_local() && (!run.endpoint.is(flag::BRIDGED) || address.octets()[8..] == made)
}
