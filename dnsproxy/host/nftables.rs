//! Requests to the kernel's packet filter over netlink (`linux/netfilter/nf_tables.h`): what [`super::floor`] needs of it.
//!
//! Why no crate: one is a wrapper around the program `nft` or a C library, which would have to be on every node; another
//! is under the GPL. Why not `nft` itself: the same.

use std::io;
use std::os::fd::AsRawFd;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

/// A table's family: which of the kernel's paths its chains stand in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4 and IPv6 (NFPROTO_INET).
    Inet = 1,
    /// What a device receives and sends (NFPROTO_NETDEV).
    Netdev = 5,
    /// Every frame that a port hands to its bridge (NFPROTO_BRIDGE).
    Bridge = 7,
}

impl Family {
    /// As `nft` has it.
    pub fn text(self) -> &'static str {
        match self {
            Family::Inet => "inet",
            Family::Netdev => "netdev",
            Family::Bridge => "bridge",
        }
    }
}

/// What a message asks for: NFT_MSG_*.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    NewSet = 9,
    NewElement = 12,
    GetElement = 13,
    DelElement = 14,
}

/// One part of a change.
#[derive(Debug)]
pub struct Request {
    /// What is asked for.
    pub message: Message,
    /// Of what.
    pub attributes: Attributes,
}

/// Numbered values, some of which hold others (netlink(7), struct nlattr).
#[derive(Clone, Default, Debug)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// None yet.
    pub fn new() -> Attributes {
        Attributes::default()
    }

    /// With octets.
    #[must_use]
    pub fn octets(mut self, kind: u16, value: &[u8]) -> Attributes {
        let length = u16::try_from(4 + value.len()).expect("callers keep lists under 64 KiB");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    /// With text, which gets its final NUL.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Attributes {
        self.octets(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// With a number.
    #[must_use]
    pub fn number(self, kind: u16, value: u32) -> Attributes {
        self.octets(kind, &value.to_be_bytes())
    }

    /// With attributes inside.
    #[must_use]
    pub fn nest(self, kind: u16, inner: &Attributes) -> Attributes {
        self.octets(kind | NESTED, &inner.0)
    }
}

/// The attributes that stand in these octets: number and value. What is cut short ends it.
pub fn parts(mut octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = octets.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !(NESTED | NETWORK_ORDER);
        let value = octets.get(4..length)?;
        octets = octets.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a number.
pub fn part(octets: &[u8], kind: u16) -> Option<&[u8]> {
    parts(octets).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Carries all of it out, or nothing.
///
/// # Errors
/// What the kernel said to the first request that it refused.
pub fn change(family: Family, requests: &[Request]) -> io::Result<()> {
    change_each(requests.iter().map(|request| (family, request)))
}

/// The same for tables of several families.
///
/// # Errors
/// As [`change`].
pub fn change_all(requests: &[(Family, Request)]) -> io::Result<()> {
    change_each(requests.iter().map(|(family, request)| (*family, request)))
}

fn change_each<'a>(requests: impl ExactSizeIterator<Item = (Family, &'a Request)>) -> io::Result<()> {
    let mut octets = Vec::new();
    let count = requests.len();
    put(&mut octets, BATCH_BEGIN, 0, 0, 0, SUBSYSTEM, &[]);
    for (number, (family, request)) in requests.enumerate() {
        let mut flags = match request.message {
            Message::NewRule => CREATE | APPEND,
            Message::NewTable | Message::NewChain | Message::NewSet | Message::NewElement => CREATE,
            _ => 0,
        };
        if number + 1 == count {
            flags |= ACK;
        }
        let kind = (SUBSYSTEM << 8) | request.message as u16;
        put(&mut octets, kind, flags, 1 + number as u32, family as u8, 0, &request.attributes.0);
    }
    put(&mut octets, BATCH_END, 0, 1 + count as u32, 0, SUBSYSTEM, &[]);
    let mut confirmed = false;
    exchange(&octets, |header, payload| {
        if header.kind == ERROR {
            error_in(payload)?;
            confirmed |= header.sequence == count as u32;
        }
        Ok(())
    })?;
    // An interrupted system call is not among what can happen: the kernel works a batch off before `send` returns.
    if confirmed { Ok(()) } else { Err(io::Error::other("the kernel did not confirm the change")) }
}

/// Asks for one thing (`all` false) or for all that the attributes describe; the attributes of each.
///
/// # Errors
/// What the kernel said.
pub fn get(family: Family, message: Message, attributes: &Attributes, all: bool) -> io::Result<Vec<Vec<u8>>> {
    let mut octets = Vec::new();
    let kind = (SUBSYSTEM << 8) | message as u16;
    put(&mut octets, kind, if all { DUMP } else { 0 }, 1, family as u8, 0, &attributes.0);
    let mut found = Vec::new();
    exchange(&octets, |header, payload| {
        if header.flags & DUMP_INTERRUPTED != 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match header.kind {
            ERROR | DONE => error_in(payload)?,
            _ => found.push(payload.get(FAMILY_HEADER..).unwrap_or_default().to_vec()),
        }
        Ok(())
    })?;
    Ok(found)
}

const SUBSYSTEM: u16 = 10; // NFNL_SUBSYS_NFTABLES
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const DUMP_INTERRUPTED: u16 = 0x10;
const NESTED: u16 = 0x8000;
const NETWORK_ORDER: u16 = 0x4000;
const ALIGNMENT: usize = 4;
const HEADER: usize = 16; // struct nlmsghdr
const FAMILY_HEADER: usize = 4; // struct nfgenmsg
/// Room for a change of 65 536 interfaces, forty octets each at most, in each of two lists.
static SEND_BUFFER: libc::c_int = 8 << 20;

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

fn put(octets: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, attributes: &[u8]) {
    let length = (HEADER + FAMILY_HEADER + attributes.len()) as u32;
    octets.extend(length.to_ne_bytes());
    octets.extend(kind.to_ne_bytes());
    octets.extend((flags | REQUEST).to_ne_bytes());
    octets.extend(sequence.to_ne_bytes());
    octets.extend(0u32.to_ne_bytes());
    octets.extend([family, 0]);
    octets.extend(resource.to_be_bytes());
    octets.extend(attributes);
}

thread_local! {
    /// What the last exchange of this thread went over. To close such a socket after elements were deleted waits until no
    /// packet is looked at by the old rules any more (an RCU grace period of some 10 ms): so it is kept.
    static KEPT: std::cell::Cell<Option<Socket>> = const { std::cell::Cell::new(None) };
}

/// Sends and reads all answers.
fn exchange(request: &[u8], each: impl FnMut(&Header, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let socket = match KEPT.take() {
        Some(socket) => socket,
        None => open()?,
    };
    let exchanged = exchange_over(&socket, request, each);
    if exchanged.is_ok() {
        KEPT.set(Some(socket)); // of one that failed, answers may be unread: they would be in the way of the next
    }
    exchanged
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    // SAFETY: a descriptor of our own, and one int that lives during the call. Refused: small changes still go.
    unsafe {
        let room = (&raw const SEND_BUFFER).cast();
        let size = size_of::<libc::c_int>() as u32;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room, size);
    }
    socket.set_cap_ack(true)?; // an error without the request that it is about
    Ok(socket)
}

fn exchange_over(
    socket: &Socket,
    request: &[u8],
    mut each: impl FnMut(&Header, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    socket.set_non_blocking(false)?;
    socket.send_to(request, &SocketAddr::new(0, 0), 0)?;
    // The kernel has answered before `send_to` returns, or goes on when its last answer is taken: none means no more.
    socket.set_non_blocking(true)?;
    loop {
        let (received, _) = match socket.recv_from_full() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            received => received?,
        };
        let mut rest = &received[..];
        while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
            let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
            let length = word(0) as usize;
            let Some(payload) = rest.get(HEADER..length) else { break };
            each(&Header { kind: half(4), flags: half(6), sequence: word(8) }, payload)?;
            rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        }
    }
}

/// The number at the front of NLMSG_ERROR and NLMSG_DONE: 0, or a negative errno.
fn error_in(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk::<4>().map(|octets| i32::from_ne_bytes(*octets)) {
        Some(0) | None => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inner = Attributes::new().number(1, 0x0102_0304).text(2, "abc");
        let written = Attributes::new().octets(7, &[9]).nest(4, &inner).0;
        assert_eq!(written.len() % ALIGNMENT, 0);
        let read: Vec<_> = parts(&written).collect();
        assert_eq!(read[0], (7, &[9][..]));
        assert_eq!(read[1].0, 4);
        assert_eq!(part(read[1].1, 1), Some(&[1, 2, 3, 4][..]));
        assert_eq!(part(read[1].1, 2), Some(&b"abc\0"[..]));
        assert_eq!(part(read[1].1, 3), None);
    }

    #[test]
    fn attributes_that_are_cut_short_end_the_list() {
        let written = Attributes::new().number(1, 1).number(2, 2).0;
        for length in 0..written.len() {
            assert!(parts(&written[..length]).count() <= 1, "{length}");
        }
        assert_eq!(parts(&[0, 0, 1, 0, 0, 0, 0, 0]).count(), 0, "a length of nothing is no endless list");
        assert_eq!(parts(&[2, 0, 1, 0]).count(), 0);
    }
}
