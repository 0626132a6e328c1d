//! Datagrams by the batch: recvmmsg and sendmmsg, with the local address and the interface of each.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::RawFd;
use std::ptr;

/// Datagrams a system call.
pub const BATCH: usize = 64;
/// Octets of the longest datagram that is read whole: what EDNS ever asks for.
pub const DATAGRAM: usize = 4096;
/// Octets of control data: one `in6_pktinfo` and its header need 40.
const CONTROL: usize = 64;

/// Control data, aligned as its headers want it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Room for one batch that comes in.
pub struct Inbox {
    buffers: Vec<u8>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    /// How many are asked for next: twice what came last, so that a quiet socket costs little.
    wanted: usize,
}

/// What [`Inbox::receive`] took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Batch {
    /// How many datagrams.
    pub count: usize,
    /// Whether there was room for more: then the socket was empty.
    pub drained: bool,
}

/// A datagram that came in.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Its octets.
    pub bytes: &'a [u8],
    /// The sender; `None` on a connected socket's batch that did not ask for it.
    pub from: Option<SocketAddr>,
    /// The address it was sent to and the interface it came in on, if the socket tells.
    pub arrived: Option<(IpAddr, u32)>,
    /// Whether it was longer than [`DATAGRAM`].
    pub cut: bool,
}

impl Inbox {
    /// Room for [`BATCH`] datagrams of [`DATAGRAM`] octets.
    pub fn new() -> Inbox {
        // SAFETY: all zero octets are a valid value of these C structs: no name, no control data, null pointers.
        let (name, header) = unsafe { (mem::zeroed::<libc::sockaddr_storage>(), mem::zeroed::<libc::mmsghdr>()) };
        Inbox {
            buffers: vec![0; BATCH * DATAGRAM],
            names: vec![name; BATCH],
            controls: vec![Control([0; CONTROL]); BATCH],
            vectors: vec![libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH],
            headers: vec![header; BATCH],
            wanted: BATCH,
        }
    }

    /// Takes what is there without waiting, at most [`BATCH`].
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there, or what the kernel says.
    pub fn receive(&mut self, socket: RawFd) -> io::Result<Batch> {
        for (at, header) in self.headers[..self.wanted].iter_mut().enumerate() {
            self.vectors[at] =
                libc::iovec { iov_base: self.buffers[at * DATAGRAM..].as_mut_ptr().cast(), iov_len: DATAGRAM };
            let inner = &mut header.msg_hdr;
            inner.msg_name = ptr::from_mut(&mut self.names[at]).cast();
            inner.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            inner.msg_iov = ptr::from_mut(&mut self.vectors[at]);
            inner.msg_iovlen = 1;
            inner.msg_control = self.controls[at].0.as_mut_ptr().cast();
            inner.msg_controllen = CONTROL as _;
            inner.msg_flags = 0;
        }
        // SAFETY: each header points at a name, a vector and control data of the lengths it says, all owned by `self`
        // and distinct, which nothing else touches during the call.
        let count = unsafe {
            libc::recvmmsg(
                socket,
                self.headers.as_mut_ptr(),
                self.wanted as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let batch = Batch { count, drained: count < self.wanted };
        self.wanted = (2 * count).clamp(4, BATCH);
        Ok(batch)
    }

    /// The datagram `at` of the last batch.
    pub fn get(&self, at: usize) -> Datagram<'_> {
        let header = &self.headers[at];
        let length = (header.msg_len as usize).min(DATAGRAM);
        Datagram {
            bytes: &self.buffers[at * DATAGRAM..][..length],
            from: address(&self.names[at], header.msg_hdr.msg_namelen),
            arrived: arrived(&header.msg_hdr),
            cut: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }
    }
}

impl Default for Inbox {
    fn default() -> Inbox {
        Inbox::new()
    }
}

/// A datagram that goes out.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Its octets.
    pub bytes: Vec<u8>,
    /// To whom.
    pub to: SocketAddr,
    /// The local address that it leaves from, and the interface that it leaves by.
    pub from: (IpAddr, u32),
}

/// Room for one batch that goes out.
#[derive(Default)]
pub struct Outbox {
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Outbox {
    /// Sends the first of `queue` without waiting, at most [`BATCH`]; how many went.
    ///
    /// # Errors
    /// What the kernel says about the first one; `WouldBlock` when the socket is full.
    pub fn send(&mut self, socket: RawFd, queue: &mut [Outgoing]) -> io::Result<usize> {
        let count = queue.len().min(BATCH);
        // SAFETY: all zero octets are a valid value of these C structs.
        let (name, header) = unsafe { (mem::zeroed::<libc::sockaddr_storage>(), mem::zeroed::<libc::mmsghdr>()) };
        let empty = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        refill(&mut self.names, count, name);
        refill(&mut self.controls, count, Control([0; CONTROL]));
        refill(&mut self.vectors, count, empty);
        refill(&mut self.headers, count, header);
        for (at, datagram) in queue[..count].iter_mut().enumerate() {
            self.vectors[at] =
                libc::iovec { iov_base: datagram.bytes.as_mut_ptr().cast(), iov_len: datagram.bytes.len() };
            let inner = &mut self.headers[at].msg_hdr;
            inner.msg_namelen = put_address(&mut self.names[at], datagram.to);
            inner.msg_name = ptr::from_mut(&mut self.names[at]).cast();
            inner.msg_iov = ptr::from_mut(&mut self.vectors[at]);
            inner.msg_iovlen = 1;
            inner.msg_control = self.controls[at].0.as_mut_ptr().cast();
            inner.msg_controllen = CONTROL as _;
            put_source(inner, datagram.from);
        }
        // SAFETY: each header points at initialised memory of the lengths it says, which outlives the call; the kernel
        // only reads it, but for `msg_len`.
        let sent = unsafe {
            libc::sendmmsg(socket, self.headers.as_mut_ptr(), count as libc::c_uint, libc::MSG_DONTWAIT as _)
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// `count` times `value`, in the same memory.
fn refill<T: Clone>(list: &mut Vec<T>, count: usize, value: T) {
    list.clear();
    list.resize(count, value);
}

/// The address and interface in the control data of a message that came in.
pub(super) fn arrived(header: &libc::msghdr) -> Option<(IpAddr, u32)> {
    // SAFETY: the header's control data was filled by the kernel with messages of the lengths that it wrote, and the
    // structures are read without assuming their alignment.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = ptr::read_unaligned(data.cast());
                    let address = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
                    return Some((address.into(), info.ipi_ifindex as u32));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = ptr::read_unaligned(data.cast());
                    return Some((Ipv6Addr::from(info.ipi6_addr.s6_addr).into(), info.ipi6_ifindex as u32));
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
    }
    None
}

fn put_source(header: &mut libc::msghdr, (address, interface): (IpAddr, u32)) {
    /// # Safety
    /// `header` points at zeroed control data of at least `CMSG_SPACE(size_of::<T>())` octets.
    unsafe fn put<T>(header: &mut libc::msghdr, level: i32, kind: i32, info: T) {
        let size = mem::size_of::<T>() as libc::c_uint;
        // SAFETY: by the contract above there is room for the message's header and `info` behind it.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(size) as _;
            let message = libc::CMSG_FIRSTHDR(header);
            (*message).cmsg_level = level;
            (*message).cmsg_type = kind;
            (*message).cmsg_len = libc::CMSG_LEN(size) as _;
            ptr::write_unaligned(libc::CMSG_DATA(message).cast(), info);
        }
    }
    match address {
        IpAddr::V4(address) => {
            let source = libc::in_addr { s_addr: u32::from(address).to_be() };
            let info = libc::in_pktinfo {
                ipi_ifindex: interface as i32,
                ipi_spec_dst: source,
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            // SAFETY: the caller gave CONTROL zeroed octets, more than either structure needs.
            unsafe { put(header, libc::IPPROTO_IP, libc::IP_PKTINFO, info) };
        }
        IpAddr::V6(address) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: address.octets() },
                ipi6_ifindex: interface as _,
            };
            // SAFETY: as above.
            unsafe { put(header, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info) };
        }
    }
}

fn address(name: &libc::sockaddr_storage, length: libc::socklen_t) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET if length as usize >= mem::size_of::<libc::sockaddr_in>() => {
            // SAFETY: the kernel wrote a whole sockaddr_in, for which the storage has room and alignment.
            let name = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let address = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
            Some(SocketAddrV4::new(address, u16::from_be(name.sin_port)).into())
        }
        libc::AF_INET6 if length as usize >= mem::size_of::<libc::sockaddr_in6>() => {
            // SAFETY: as above, for a sockaddr_in6.
            let name = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
            let address = Ipv6Addr::from(name.sin6_addr.s6_addr);
            Some(
                SocketAddrV6::new(address, u16::from_be(name.sin6_port), name.sin6_flowinfo, name.sin6_scope_id).into(),
            )
        }
        _ => None,
    }
}

fn put_address(name: &mut libc::sockaddr_storage, to: SocketAddr) -> libc::socklen_t {
    match to {
        SocketAddr::V4(to) => {
            // SAFETY: the storage has room and alignment for a sockaddr_in, and is zeroed.
            let name = unsafe { &mut *ptr::from_mut(name).cast::<libc::sockaddr_in>() };
            name.sin_family = libc::AF_INET as libc::sa_family_t;
            name.sin_port = to.port().to_be();
            name.sin_addr.s_addr = u32::from(*to.ip()).to_be();
            mem::size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(to) => {
            // SAFETY: as above, for a sockaddr_in6.
            let name = unsafe { &mut *ptr::from_mut(name).cast::<libc::sockaddr_in6>() };
            name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            name.sin6_port = to.port().to_be();
            name.sin6_addr.s6_addr = to.ip().octets();
            name.sin6_scope_id = to.scope_id();
            mem::size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    use super::*;

    #[track_caller]
    fn there_and_back(wildcard: &str, via: &str) {
        let server = UdpSocket::bind(wildcard).expect("a socket");
        super::super::socket::tell_arrival(&server, server.local_addr().expect("an address").is_ipv6())
            .expect("the option");
        let port = server.local_addr().expect("an address").port();
        let via: IpAddr = via.parse().expect("an address");
        let client = UdpSocket::bind((if via.is_ipv4() { "127.0.0.1" } else { "::1" }, 0)).expect("a socket");
        client.connect((via, port)).expect("connected: only replies from this address are taken");
        for at in 0..3u8 {
            client.send(&[at; 5]).expect("sent");
        }
        let mut inbox = Inbox::new();
        assert_eq!(inbox.receive(server.as_raw_fd()).expect("a batch"), Batch { count: 3, drained: true });
        let mut queue = Vec::new();
        for at in 0..3 {
            let datagram = inbox.get(at);
            assert_eq!((datagram.bytes, datagram.cut), (&[at as u8; 5][..], false));
            assert_eq!(datagram.from, Some(client.local_addr().expect("an address")));
            let arrived = datagram.arrived.expect("the kernel tells");
            assert_eq!((arrived.0, arrived.1 > 0), (via, true));
            queue.push(Outgoing { bytes: vec![at as u8; 7], to: datagram.from.expect("a sender"), from: arrived });
        }
        assert_eq!(inbox.receive(server.as_raw_fd()).expect_err("nothing left").kind(), io::ErrorKind::WouldBlock);
        assert_eq!(Outbox::default().send(server.as_raw_fd(), &mut queue).expect("sent"), 3);
        let mut buffer = [0; 16];
        for at in 0..3 {
            assert_eq!(client.recv(&mut buffer).expect("a reply"), 7);
            assert_eq!(buffer[0], at);
        }
    }

    #[test]
    fn a_reply_leaves_from_the_address_that_was_asked() {
        there_and_back("0.0.0.0:0", "127.0.0.1");
        there_and_back("0.0.0.0:0", "127.0.0.77");
        there_and_back("[::]:0", "::1");
    }

    #[test]
    fn a_batch_grows_with_what_comes() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let mut inbox = Inbox::new();
        for (sent, takes) in [(1, [1].as_slice()), (100, &[4, 8, 16, 32, 40]), (70, &[64, 6])] {
            for at in 0..sent {
                client.send_to(&[at], server.local_addr().expect("an address")).expect("sent");
            }
            let mut next = 0;
            for (at, &expected) in takes.iter().enumerate() {
                let batch = inbox.receive(server.as_raw_fd()).expect("a batch");
                assert_eq!(batch, Batch { count: expected, drained: at + 1 == takes.len() });
                for at in 0..expected {
                    assert_eq!(inbox.get(at).bytes, [next]);
                    next += 1;
                }
            }
        }
    }

    #[test]
    fn a_datagram_that_is_too_long_is_marked() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        client.send_to(&[1; DATAGRAM + 1], server.local_addr().expect("an address")).expect("sent");
        let mut inbox = Inbox::new();
        assert_eq!(inbox.receive(server.as_raw_fd()).expect("a batch").count, 1);
        assert!(inbox.get(0).cut);
    }
}
