//! Frames from many pods of one namespace, from the first moment of their interfaces on.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::super::clock::{now, wall_ns};
use super::{Reply, Spray, Sprayed, failed, packets, unhex};

/// Between two rounds while an interface is waited for or is new.
const PAUSE: Duration = Duration::from_millis(1);
/// Between two rounds afterwards.
const CALM: Duration = Duration::from_millis(20);
/// So long an interface is new: what is allowed is sent in each round, to see when the first one passes.
const EAGER: Duration = Duration::from_millis(60);
/// So long all rounds follow each other quickly.
const NEW: Duration = Duration::from_millis(200);

struct Target {
    name: CString,
    /// The interface's number, once it is there.
    index: i32,
    appeared: Option<(u64, Instant)>,
    sent: u64,
    denied: Vec<Vec<u8>>,
    allowed: Vec<Vec<u8>>,
}

pub fn run(spray: &Spray) -> Reply {
    // SAFETY: a plain system call; the descriptor is owned at once.
    let descriptor = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if descriptor < 0 {
        return failed("socket", std::io::Error::last_os_error());
    }
    // SAFETY: a descriptor that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let frames = |texts: &[String]| texts.iter().map(|text| unhex(text)).collect();
    let mut targets: Vec<Target> = Vec::new();
    for source in &spray.from {
        let Ok(name) = CString::new(source.interface.as_str()) else {
            return failed(&source.interface, "a NUL in its name");
        };
        let (denied, allowed) = (frames(&source.denied), frames(&source.allowed));
        targets.push(Target { name, index: 0, appeared: None, sent: 0, denied, allowed });
    }
    let length = Duration::from_millis(spray.for_ms);
    // A thread each: to set one up may have to wait for what others do to theirs.
    std::thread::scope(|scope| {
        for target in &mut targets {
            scope.spawn(|| {
                let start = now();
                for round in 0.. {
                    if start.elapsed() >= length {
                        break;
                    }
                    target.play(&socket, round);
                    std::thread::sleep(target.pause());
                }
            });
        }
    });
    let seen = |target: &Target| Sprayed { appeared_ns: target.appeared.map(|(wall, _)| wall), sent: target.sent };
    Reply::Sprayed(targets.iter().map(seen).collect())
}

impl Target {
    fn pause(&self) -> Duration {
        if self.appeared.is_some_and(|(_, at)| at.elapsed() > NEW) { CALM } else { PAUSE }
    }

    fn play(&mut self, socket: &OwnedFd, round: usize) {
        if self.index == 0 {
            // SAFETY: the name ends in NUL.
            self.index = unsafe { libc::if_nametoindex(self.name.as_ptr()) } as i32;
            if self.index == 0 {
                return;
            }
            self.appeared = Some((wall_ns(), now()));
            packets::set_up(socket, &self.name);
        }
        let eager = self.appeared.is_some_and(|(_, at)| at.elapsed() < EAGER) || round.is_multiple_of(16);
        let pick = |frames: &[Vec<u8>]| frames.get(round % frames.len().max(1)).cloned();
        for frame in [pick(&self.denied), pick(&self.allowed).filter(|_| eager)].into_iter().flatten() {
            // SAFETY: address and frame live during the call and are of the sizes given.
            let passed = unsafe {
                let mut to: libc::sockaddr_ll = std::mem::zeroed();
                to.sll_family = libc::AF_PACKET as u16;
                to.sll_ifindex = self.index;
                let size = size_of::<libc::sockaddr_ll>() as u32;
                libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), size)
            };
            self.sent += u64::from(passed == frame.len() as isize);
        }
    }
}
