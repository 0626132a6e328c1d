//! Sockets with their options set before they are bound.

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;

use socket2::{Domain, Protocol, Socket, Type};

use super::At;
use super::datagrams::arrived;

/// Octets that may wait to be read from one socket, before the kernel doubles them (socket(7)). More would only make everybody
/// wait behind a flood.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 512;

/// A UDP socket; at [`At::All`] it shares its port with those of the other workers.
///
/// Sharing (`SO_REUSEPORT`) is for sockets of the same uid. `SO_REUSEADDR` is never set: with it another uid took 40 of
/// 40 queries. Beside a workload neither is: its processes may have the same uid, and they are nearer to this port.
pub fn udp(address: SocketAddr, at: At) -> io::Result<UdpSocket> {
    let socket = unbound(address, Type::DGRAM)?;
    match at {
        At::All => socket.set_reuse_port(true)?,
        At::Loopback => (),
        At::Redirected => set_transparent(&socket, address)?,
    }
    if force_receive_buffer(&socket).is_err() {
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER); // the system's limit may be lower, which is as good as it gets
    }
    let _ = socket.set_send_buffer_size(RECEIVE_BUFFER);
    tell_arrival(&socket, address.is_ipv6())?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// With CAP_NET_ADMIN, past net.core.rmem_max: while one process takes over from another, nobody reads.
fn force_receive_buffer(socket: &Socket) -> io::Result<()> {
    let octets = RECEIVE_BUFFER as libc::c_int;
    let length = mem::size_of_val(&octets) as libc::socklen_t;
    // SAFETY: the option's value is an int that lives through the call.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            ptr::from_ref(&octets).cast(),
            length,
        )
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A TCP listener; at [`At::All`] it shares its port with those of the other workers.
///
/// Beside a workload it has `SO_REUSEADDR`, which means another thing for TCP: past connections are not in the way of a
/// restart, and nobody else can have the port while it listens, whatever options he sets.
pub fn tcp(address: SocketAddr, at: At) -> io::Result<TcpListener> {
    let socket = unbound(address, Type::STREAM)?;
    match at {
        At::All => socket.set_reuse_port(true)?,
        At::Loopback => socket.set_reuse_address(true)?,
        At::Redirected => {
            socket.set_reuse_address(true)?;
            set_transparent(&socket, address)?;
        }
    }
    tell_arrival(&socket, address.is_ipv6())?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Fails if any other socket is bound to this UDP port, also one that would share it: a second namegate would silently
/// take half of the queries. Only UDP: connections of a killed predecessor in TIME_WAIT would be in the way of a
/// restart.
pub fn exclusive(address: SocketAddr) -> io::Result<()> {
    unbound(address, Type::DGRAM)?.bind(&address.into())
}

fn unbound(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let protocol = if kind == Type::DGRAM { Protocol::UDP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Lets it answer from addresses that are not this machine's (IP_TRANSPARENT of ip(7)); needs CAP_NET_ADMIN.
fn set_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    let (level, option) = match address {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    };
    set(socket, level, option)
}

/// Makes the kernel tell to which address, by which interface, something came.
pub(super) fn tell_arrival(socket: &impl AsRawFd, v6: bool) -> io::Result<()> {
    let (level, option) = match v6 {
        true => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        false => (libc::IPPROTO_IP, libc::IP_PKTINFO),
    };
    set(socket, level, option)
}

fn set(socket: &impl AsRawFd, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = mem::size_of_val(&on) as libc::socklen_t;
    // SAFETY: the option's value is an int that lives through the call.
    let failed = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, ptr::from_ref(&on).cast(), length) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The interface that a TCP connection came in by.
///
/// Linux keeps the one of the first segment and gives it back as packet options, if [`tell_arrival`] was set on the
/// listener.
pub fn interface_of(connection: &impl AsRawFd, local: IpAddr) -> io::Result<u32> {
    #[repr(C, align(8))]
    struct Control([u8; 256]);
    let mut control = Control([0; 256]);
    let mut length = control.0.len() as libc::socklen_t;
    let (level, option) = match local {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTOPTIONS),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_2292PKTOPTIONS),
    };
    // SAFETY: the kernel writes at most `length` octets, which `control` has, and says how many in `length`.
    let failed =
        unsafe { libc::getsockopt(connection.as_raw_fd(), level, option, control.0.as_mut_ptr().cast(), &mut length) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zero octets are a valid msghdr: nothing in it.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = length as _;
    arrived(&header).map(|(_, interface)| interface).ok_or_else(|| io::Error::other("the kernel names no interface"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[track_caller]
    fn comes_in_by_loopback(address: &str) {
        let listener = tcp(address.parse().expect("an address"), At::All).expect("a listener");
        listener.set_nonblocking(false).expect("blocking");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let (server, _) = listener.accept().expect("accepted");
        let local = server.local_addr().expect("an address").ip();
        assert_eq!(interface_of(&server, local).expect("an interface"), 1);
        drop(client);
    }

    #[test]
    fn a_connection_tells_the_interface_it_came_in_by() {
        comes_in_by_loopback("127.0.0.1:0");
        comes_in_by_loopback("[::1]:0");
    }

    #[test]
    fn a_port_in_use_is_noticed_even_if_it_could_be_shared() {
        let first = udp("127.0.0.1:0".parse().expect("an address"), At::All).expect("a socket");
        let address = first.local_addr().expect("an address");
        udp(address, At::All).expect("workers share");
        assert_eq!(exclusive(address).expect_err("in use").kind(), io::ErrorKind::AddrInUse);
        drop(first);
        exclusive(address).expect("free");
    }

    #[test]
    fn beside_a_workload_not_even_the_same_uid_shares_the_port() {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let (first, listener) =
            (udp(any, At::Loopback).expect("a socket"), tcp(any, At::Loopback).expect("a listener"));
        let (datagrams, connections) =
            (first.local_addr().expect("an address"), listener.local_addr().expect("an address"));
        for at in [At::All, At::Loopback] {
            assert_eq!(udp(datagrams, at).expect_err("taken").kind(), io::ErrorKind::AddrInUse, "{at:?}");
            assert_eq!(tcp(connections, at).expect_err("taken").kind(), io::ErrorKind::AddrInUse, "{at:?}");
        }
        for (address, kind) in [(datagrams, Type::DGRAM), (connections, Type::STREAM)] {
            let greedy = unbound(address, kind).expect("a socket");
            greedy.set_reuse_address(true).expect("an option");
            greedy.set_reuse_port(true).expect("an option");
            assert_eq!(greedy.bind(&address.into()).expect_err("taken").kind(), io::ErrorKind::AddrInUse, "{kind:?}");
        }
    }
}
