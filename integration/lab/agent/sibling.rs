//! What another container of the pod tries: a process in the same network namespace with a mount namespace, a uid and
//! capabilities of its own.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use super::{Reply, unhex};

/// One thing that it tries.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub enum Attempt {
    /// A raw IP socket.
    RawSocket { v6: bool },
    /// Frames as they stand, past the queueing discipline if `bypass` (PACKET_QDISC_BYPASS).
    Frames { interface: String, frames: Vec<String>, bypass: bool },
    /// A socket on this address, with SO_REUSEADDR and SO_REUSEPORT if `share`; kept. A TCP one listens.
    Bind { at: SocketAddr, tcp: bool, share: bool },
    /// A datagram from this address and port.
    From { from: SocketAddr, to: SocketAddr, freebind: bool },
    /// A datagram with an IPv4 source route (LSRR) or an IPv6 routing header that leads by `via` to `to`.
    Route { via: IpAddr, to: SocketAddr },
    /// A datagram with a destination options header.
    Options { to: SocketAddr },
    /// A TCP connection to here, by the pod's interface.
    ByDevice { interface: String, to: SocketAddr },
    /// Octets from an ordinary socket.
    Send(Sending),
    /// A group joined, of which the kernel tells its neighbours.
    Join { group: IpAddr, interface: String },
    /// A socket mark.
    Mark,
    /// A connection to a Unix socket.
    Unix { path: PathBuf },
}

/// What an ordinary socket sends.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Sending {
    /// As socket(2) has it; TCP and MPTCP connect first.
    pub protocol: i32,
    pub from: Option<SocketAddr>,
    pub to: SocketAddr,
    /// Hexadecimal.
    pub octets: String,
    /// Level, name and value, hexadecimal; set before anything else.
    pub options: Vec<(i32, i32, String)>,
    /// In the SYN itself (RFC 7413, without a cookie).
    pub at_once: bool,
}

static KEPT: Mutex<Vec<Socket>> = Mutex::new(Vec::new());

/// Gives up what root has, but for these capabilities (by their bits), as container runtimes do. The only thread calls it.
pub fn drop_privileges(uid: u32, keep: u64) {
    const LAST: u32 = 63;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let part = |shift: u32| {
        let bits = (keep >> shift) as u32;
        Data { effective: bits, permitted: bits, inheritable: 0 }
    };
    // SAFETY: plain system calls about this process; capset reads a header and two parts, which live during the call.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0);
        for capability in (0..=LAST).filter(|bit| keep >> bit & 1 == 0) {
            libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0);
        }
        assert_eq!(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0), 0);
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setresgid(uid, uid, uid), 0);
        assert_eq!(libc::setresuid(uid, uid, uid), 0);
        let header = Header { version: 0x2008_0522, pid: 0 };
        assert_eq!(libc::syscall(libc::SYS_capset, &raw const header, [part(0), part(32)].as_ptr()), 0);
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL); // the change of uid took it away
    }
}

/// Tries it: 0, or the error's number.
pub fn attempt(attempt: &Attempt) -> Reply {
    let tried = match attempt {
        Attempt::RawSocket { v6 } => raw(if *v6 { Domain::IPV6 } else { Domain::IPV4 }),
        Attempt::Frames { interface, frames, bypass } => frames_of(interface, frames, *bypass),
        Attempt::Bind { at, tcp, share } => bind(*at, *tcp, *share),
        Attempt::From { from, to, freebind } => send_from(*from, *to, *freebind),
        Attempt::Route { via, to } => route(*via, *to),
        Attempt::Options { to } => options(*to),
        Attempt::ByDevice { interface, to } => by_device(interface, *to),
        Attempt::Send(sending) => send(sending),
        Attempt::Join { group, interface } => join(*group, interface),
        Attempt::Mark => Socket::new(Domain::IPV4, Type::DGRAM, None).and_then(|socket| socket.set_mark(1)),
        Attempt::Unix { path } => UnixStream::connect(path).map(drop),
    };
    Reply::Tried(tried.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0))
}

fn raw(domain: Domain) -> io::Result<()> {
    Socket::new(domain, Type::RAW, Some(socket2::Protocol::UDP)).map(drop)
}

fn frames_of(interface: &str, frames: &[String], bypass: bool) -> io::Result<()> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: a plain system call; the descriptor is owned at once.
    let descriptor = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    set(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &i32::from(bypass).to_ne_bytes())?;
    for frame in frames {
        let frame = unhex(frame);
        // SAFETY: the name ends in NUL; address and frame live during the call and are of the sizes given.
        let sent = unsafe {
            let mut to: libc::sockaddr_ll = zeroed();
            to.sll_family = libc::AF_PACKET as u16;
            to.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            let size = size_of::<libc::sockaddr_ll>() as u32;
            libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), size)
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn bind(at: SocketAddr, tcp: bool, share: bool) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(at), if tcp { Type::STREAM } else { Type::DGRAM }, None)?;
    if share {
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
    }
    socket.bind(&at.into())?;
    if tcp {
        socket.listen(8)?;
    }
    KEPT.lock().expect("no panic while locked").push(socket);
    Ok(())
}

fn send_from(from: SocketAddr, to: SocketAddr, freebind: bool) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
    if freebind {
        let (level, option) = match to {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_FREEBIND),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
        };
        set(&socket, level, option, &1i32.to_ne_bytes())?;
    }
    socket.bind(&from.into())?;
    socket.send_to(b"from another", &to.into()).map(drop)
}

fn send(sending: &Sending) -> io::Result<()> {
    /// How long a connection is waited for.
    const PATIENCE: Duration = Duration::from_millis(500);
    let Sending { protocol, from, to, options, at_once, .. } = sending;
    let stream = matches!(*protocol, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP);
    let kind = if stream { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(*to), kind, Some((*protocol).into()))?;
    for (level, name, value) in options {
        set(&socket, *level, *name, &unhex(value))?;
    }
    if let Some(from) = from {
        socket.bind(&(*from).into())?;
    }
    let octets = unhex(&sending.octets);
    if !stream {
        return socket.send_to(&octets, &(*to).into()).map(drop);
    }
    if !at_once {
        socket.connect_timeout(&(*to).into(), PATIENCE)?;
        return socket.send(&octets).map(drop);
    }
    set(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_NO_COOKIE, &1i32.to_ne_bytes())?;
    socket.set_nonblocking(true)?;
    match socket.send_to_with_flags(&octets, &(*to).into(), libc::MSG_FASTOPEN) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => {
            // The SYN may have to wait for its neighbour, and goes with its socket.
            KEPT.lock().expect("no panic while locked").push(socket);
            Ok(())
        }
    }
}

fn join(group: IpAddr, interface: &str) -> io::Result<()> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: the name ends in NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let socket = Socket::new(if group.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 }, Type::DGRAM, None)?;
    match group {
        IpAddr::V4(group) => socket.join_multicast_v4_n(&group, &socket2::InterfaceIndexOrAddress::Index(index))?,
        IpAddr::V6(group) => socket.join_multicast_v6(&group, index)?,
    }
    KEPT.lock().expect("no panic while locked").push(socket);
    Ok(())
}

fn route(via: IpAddr, to: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
    match via {
        IpAddr::V4(via) => {
            let [a, b, c, d] = via.octets();
            set(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[131, 7, 4, a, b, c, d, 0])?;
        }
        IpAddr::V6(via) => {
            // RFC 8754: next, length, type 4, segments left, last entry, flags, tag, two segments.
            let mut header = vec![0, 4, 4, 1, 1, 0, 0, 0];
            header.extend([0; 16]);
            header.extend(via.octets());
            set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &header)?;
        }
    }
    socket.send_to(b"another way", &to.into()).map(drop)
}

fn options(to: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
    set(&socket, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &[0, 0, 1, 4, 0, 0, 0, 0])?;
    socket.send_to(b"with options", &to.into()).map(drop)
}

fn by_device(interface: &str, to: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.connect_timeout(&to.into(), Duration::from_millis(700))
}

fn set(socket: &impl AsRawFd, level: i32, option: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length are of one live buffer.
    let failed = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), value.len() as libc::socklen_t)
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
