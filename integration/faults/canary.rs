//! The canary: an AF_PACKET socket on the outside's interface that judges every frame of the workload by
//! [`super::load::is_allowed`], which knows the policy by heart and shares nothing with namegate.
//!
//! Asked `take` in words ([`super::helper`]): what came since the last time ([`Came`]).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::{helper, load};
use crate::lab::agent::packets::packet_socket;
use crate::lab::world::PODS;

/// What came since it was asked for last.
#[derive(Serialize, Deserialize, Default, Debug)]
pub struct Came {
    /// Frames of the workload that policy allows.
    pub allowed: u64,
    /// Others, by what they are: `tcp 203.0.113.200:443`.
    pub leaked: BTreeMap<String, u64>,
}

/// How a denied name is called, wherever it goes.
pub const DENIED_NAME: &str = "a query for a denied name";

pub fn serve() {
    let socket = packet_socket("eth0", (libc::ETH_P_ALL as u16).to_be()).expect("root may listen");
    let came: &'static Mutex<Came> = Box::leak(Box::default());
    std::thread::spawn(move || {
        let mut frame = vec![0u8; 70_000];
        loop {
            // SAFETY: pointer and length are of one live buffer.
            let length = unsafe { libc::recv(socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
            if length <= 0 {
                continue;
            }
            let mut came = came.lock().expect("no panic while locked");
            match judge(&frame[..length as usize]) {
                Some(Ok(())) => came.allowed += 1,
                Some(Err(what)) => *came.leaked.entry(what).or_default() += 1,
                None => {}
            }
        }
    });
    helper::serve(|line| {
        assert_eq!(line, "take");
        let came = std::mem::take(&mut *came.lock().expect("no panic while locked"));
        serde_json::to_string(&came).expect("plain data")
    });
}

/// None: not of the workload. `Err`: what came though policy denies it.
pub fn judge(frame: &[u8]) -> Option<Result<(), String>> {
    let label = [&[load::DENIED_LABEL.len() as u8], load::DENIED_LABEL.as_bytes()].concat();
    // Whoever asks it: the node must not either.
    let to_outside = frame.get(12..14)? != [0x08, 0x06];
    if to_outside && frame.windows(label.len()).any(|octets| octets == label) && !is_reply(frame) {
        return Some(Err(DENIED_NAME.to_owned()));
    }
    let (from, to, protocol, rest) = addresses(frame)?;
    let own = |text: &str| text.parse::<IpAddr>().is_ok_and(|own| own == from);
    if !own(PODS[0].v4) && !own(PODS[0].v6) {
        return None;
    }
    let port = || rest.get(2..4).map_or(0, |octets| u16::from_be_bytes([octets[0], octets[1]]));
    Some(match protocol {
        6 if load::is_allowed(to, true, port()) => Ok(()),
        17 if load::is_allowed(to, false, port()) => Ok(()),
        6 => Err(format!("tcp {to} port {}", port())),
        17 => Err(format!("udp {to} port {}", port())),
        // Port unreachable, of the workload's own kernel.
        1 if rest.first() == Some(&3) => Ok(()),
        58 if rest.first() == Some(&1) => Ok(()),
        other => Err(format!("protocol {other} to {to}")),
    })
}

/// Source, destination, protocol and what follows the header; fragments and extension headers count as protocols.
fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    let packet = frame.get(14..)?;
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            let four = |at: usize| <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok().map(Ipv4Addr::from);
            let header = usize::from(packet.first()? & 15) * 4;
            Some((four(12)?.into(), four(16)?.into(), *packet.get(9)?, packet.get(header..)?))
        }
        [0x86, 0xdd] => {
            let sixteen = |at: usize| <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok().map(Ipv6Addr::from);
            Some((sixteen(8)?.into(), sixteen(24)?.into(), *packet.get(6)?, packet.get(40..)?))
        }
        _ => None,
    }
}

/// Whether it comes from the outside itself.
fn is_reply(frame: &[u8]) -> bool {
    addresses(frame).is_some_and(|(from, ..)| {
        [53, 54].iter().any(|last| load::FAMILIES.iter().any(|family| family.outside(*last) == from))
    })
}
