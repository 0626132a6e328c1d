//! By which local ports questions leave. Beside a workload the proxy shares its network namespace, and the kernel must be
//! told which sockets are the proxy's before anything leaves on them; elsewhere the kernel chooses the ports, and nobody
//! is told.
//!
//! There a process of the pod could also answer in a server's place: over IPv6 it may send from any address
//! (IPV6_FREEBIND), and /proc/net/udp6 tells it the ports. So the sockets hear what comes in by the pod's interface, and
//! nothing that comes over loopback.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::clock;

use super::chance::Chance;

/// How many ports are tried: when most of the range is taken, something else is wrong.
const TRIES: usize = 64;
/// How long a connection that was closed is still the proxy's: the kernel takes leave of the server for it.
const LEAVE: Duration = Duration::from_secs(10);
/// How many of these there are at most: the oldest go before their time.
const LEAVING: usize = 2_048;

/// A socket of the proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnSocket {
    /// TCP, else UDP.
    pub tcp: bool,
    /// The server.
    pub remote: SocketAddr,
    /// Its own port.
    pub local_port: u16,
    /// SO_COOKIE: no other socket ever has it.
    pub cookie: u64,
}

/// Who must know the proxy's sockets: the kernel's programs.
pub trait Announce: Send + Sync {
    /// From now on what comes from this socket, and what is for it, passes.
    ///
    /// # Errors
    /// It was not taken note of: the socket is of no use.
    fn announce(&self, own: &OwnSocket) -> io::Result<()>;

    /// No longer.
    fn withdraw(&self, own: &OwnSocket);
}

/// The ports to leave by, and who is told.
pub struct Doors {
    device: String,
    ports: RangeInclusive<u16>,
    chance: Mutex<Chance>,
    known: Arc<Known>,
}

/// Who is told, and of whom he is to be told that they have gone.
struct Known {
    to: Arc<dyn Announce>,
    leaving: Mutex<VecDeque<(Instant, OwnSocket)>>,
}

/// A socket that was announced, until this is dropped.
pub(super) struct Announced {
    own: OwnSocket,
    known: Arc<Known>,
}

impl Doors {
    /// Leaves by this interface and these ports.
    pub fn new(device: &str, ports: RangeInclusive<u16>, to: Arc<dyn Announce>) -> Doors {
        let known = Arc::new(Known { to, leaving: Mutex::default() });
        Doors { device: device.to_owned(), ports, chance: Mutex::new(Chance::new()), known }
    }

    /// Lets `bind` take a port, chosen at random, and tells of the socket. Nothing may have left on it.
    pub(super) fn open<B, S: AsFd>(&self, socket: &S, remote: SocketAddr, tcp: bool, bind: B) -> io::Result<Announced>
    where
        B: Fn(&S, SocketAddr) -> io::Result<()>,
    {
        let any = |port| match remote {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        };
        if !remote.ip().is_loopback() {
            SockRef::from(socket).bind_device(Some(self.device.as_bytes()))?;
        }
        let mut last = None;
        for _ in 0..TRIES {
            let local_port = self.port();
            match bind(socket, any(local_port)) {
                Ok(()) => {
                    let own = OwnSocket { tcp, remote, local_port, cookie: cookie(socket.as_fd())? };
                    self.known.tidy(clock::now());
                    self.known.to.announce(&own)?;
                    return Ok(Announced { own, known: self.known.clone() });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    }

    fn port(&self) -> u16 {
        let count = u32::from(self.ports.end() - self.ports.start()) + 1;
        let chance: [u8; 4] = self.chance.lock().unwrap_or_else(PoisonError::into_inner).octets();
        self.ports.start() + (u32::from_ne_bytes(chance) % count) as u16
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        if self.own.tcp {
            self.known.leaving().push_back((clock::now() + LEAVE, self.own));
        } else {
            self.known.to.withdraw(&self.own);
        }
    }
}

impl Known {
    /// Tells of those whose time is over.
    fn tidy(&self, now: Instant) {
        let mut leaving = self.leaving();
        while leaving.front().is_some_and(|(until, _)| *until <= now) || leaving.len() > LEAVING {
            let Some((_, own)) = leaving.pop_front() else { return };
            self.to.withdraw(&own);
        }
    }

    fn leaving(&self) -> MutexGuard<'_, VecDeque<(Instant, OwnSocket)>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// SO_COOKIE (socket(7), kernel 4.12).
fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes at most eight octets, which `cookie` has.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if failed == 0 && cookie != 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[derive(Default)]
    struct Told(Mutex<Vec<OwnSocket>>);

    impl Announce for Told {
        fn announce(&self, own: &OwnSocket) -> io::Result<()> {
            self.0.lock().unwrap().push(*own);
            Ok(())
        }

        fn withdraw(&self, own: &OwnSocket) {
            self.0.lock().unwrap().retain(|told| told != own);
        }
    }

    #[test]
    fn a_socket_is_told_of_with_its_port_until_it_goes() {
        let told = Arc::new(Told::default());
        let doors = Doors::new("lo", 61_000..=61_003, told.clone());
        let remote = "203.0.113.53:53".parse().unwrap();
        let mut held = Vec::new();
        for _ in 0..4 {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            // Some of these ports may be another's.
            let Ok(announced) = doors.open(&socket, remote, false, |socket, to| socket.bind(&to.into())) else { break };
            let socket = UdpSocket::from(socket);
            let own = *told.0.lock().unwrap().last().unwrap();
            assert_eq!((own.local_port, own.remote), (socket.local_addr().unwrap().port(), remote));
            assert!((61_000..=61_003).contains(&own.local_port));
            held.push((announced, socket, own.cookie));
        }
        assert!(!held.is_empty());
        let mut cookies: Vec<u64> = held.iter().map(|held| held.2).collect();
        cookies.dedup();
        assert_eq!(cookies.len(), held.len());
        drop(held);
        assert!(told.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_connection_is_known_until_it_has_taken_leave() {
        let told = Arc::new(Told::default());
        let doors = Doors::new("lo", 61_010..=61_900, told.clone());
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let remote = "203.0.113.53:53".parse().unwrap();
        drop(doors.open(&socket, remote, true, |socket, to| socket.bind(&to.into())).unwrap());
        let now = clock::now();
        for (after, left) in [(LEAVE / 2, 1), (LEAVE * 2, 0)] {
            doors.known.tidy(now + after);
            assert_eq!(told.0.lock().unwrap().len(), left, "{after:?}");
        }
    }
}
