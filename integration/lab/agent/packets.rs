//! Frames as they stand: sent and recorded through AF_PACKET.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::clock::now;
use super::{Frame, Reply, failed, hex, unhex};

struct Recording {
    frames: Mutex<Vec<Frame>>,
    over: AtomicBool,
}

static RECORDINGS: Mutex<Option<HashMap<u32, Arc<Recording>>>> = Mutex::new(None);

pub fn inject(interface: &str, frames: &[String]) -> Reply {
    let socket = match packet_socket(interface, 0) {
        Ok(socket) => socket,
        Err(error) => return failed(interface, error),
    };
    for frame in frames {
        let bytes = unhex(frame);
        // SAFETY: pointer and length are of one live buffer.
        let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent != bytes.len() as isize {
            return failed("send", std::io::Error::last_os_error());
        }
    }
    Reply::Done
}

/// Waits for the interface without a pause: the first frames are to leave while nobody guards it yet.
pub fn hammer(interface: &str, frames: &[String], for_ms: u64, pause_us: u64) -> Reply {
    let Ok(name) = std::ffi::CString::new(interface) else { return failed(interface, "a NUL in its name") };
    let frames: Vec<Vec<u8>> = frames.iter().map(|frame| unhex(frame)).collect();
    // SAFETY: a plain system call; the descriptor is owned at once.
    let descriptor = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if descriptor < 0 {
        return failed("socket", std::io::Error::last_os_error());
    }
    // SAFETY: a descriptor that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let (start, mut sent) = (now(), 0);
    while start.elapsed() < Duration::from_millis(for_ms) {
        let frame = &frames[sent as usize % frames.len()];
        // SAFETY: the name ends in NUL; address and frame live during the call and are of the sizes given.
        let passed = unsafe {
            let mut to: libc::sockaddr_ll = std::mem::zeroed();
            to.sll_family = libc::AF_PACKET as u16;
            to.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            let size = size_of::<libc::sockaddr_ll>() as u32;
            to.sll_ifindex > 0
                && libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), size)
                    == frame.len() as isize
        };
        if passed {
            sent += 1;
            std::thread::sleep(Duration::from_micros(pause_us));
        } else {
            set_up(&socket, &name);
        }
    }
    Reply::Sent(sent)
}

/// Sets an interface up, if it is there.
pub fn set_up(socket: &OwnedFd, name: &std::ffi::CStr) {
    // SAFETY: an ioctl that reads and writes one ifreq, of which zero is a value; its name keeps a final NUL.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.to_bytes()) {
            *to = *from as libc::c_char;
        }
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) == 0 {
            request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
            libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request);
        }
    }
}

pub fn capture(interface: &str) -> Reply {
    let socket = match packet_socket(interface, (libc::ETH_P_ALL as u16).to_be()) {
        Ok(socket) => socket,
        Err(error) => return failed(interface, error),
    };
    let recording = Arc::new(Recording { frames: Mutex::default(), over: AtomicBool::new(false) });
    let mut recordings = RECORDINGS.lock().expect("no panic while locked");
    let recordings = recordings.get_or_insert_default();
    let capture = recordings.keys().max().map_or(1, |last| last + 1);
    recordings.insert(capture, recording.clone());
    std::thread::spawn(move || record(&socket, &recording));
    Reply::Capturing { capture }
}

pub fn captured(capture: u32, end: bool) -> Reply {
    let mut recordings = RECORDINGS.lock().expect("no panic while locked");
    let recordings = recordings.get_or_insert_default();
    let Some(recording) = recordings.get(&capture).cloned() else { return failed("capture", capture) };
    if end {
        recording.over.store(true, Ordering::Relaxed);
        recordings.remove(&capture);
    }
    let frames = recording.frames.lock().expect("no panic while locked");
    Reply::Frames(frames.clone())
}

pub fn drain(capture: u32) -> Reply {
    let mut recordings = RECORDINGS.lock().expect("no panic while locked");
    let recordings = recordings.get_or_insert_default();
    let Some(recording) = recordings.get(&capture) else { return failed("capture", capture) };
    Reply::Frames(std::mem::take(&mut *recording.frames.lock().expect("no panic while locked")))
}

/// A packet socket on one interface. Protocol 0 receives nothing.
pub fn packet_socket(interface: &str, protocol: u16) -> std::io::Result<OwnedFd> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: plain system calls; the descriptor is owned at once, the structures are valid and of the sizes given.
    unsafe {
        let descriptor = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol));
        if descriptor < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(descriptor);
        let index = libc::if_nametoindex(name.as_ptr());
        if index == 0 {
            return Err(std::io::Error::last_os_error());
        }
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        let size = size_of::<libc::sockaddr_ll>() as u32;
        if libc::bind(descriptor, (&raw const address).cast(), size) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let mut promiscuous: libc::packet_mreq = std::mem::zeroed();
        promiscuous.mr_ifindex = index as i32;
        promiscuous.mr_type = libc::PACKET_MR_PROMISC as u16;
        set(descriptor, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &promiscuous);
        set(descriptor, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1i32);
        set(descriptor, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1i32);
        set(descriptor, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(16i32 << 20));
        set(descriptor, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &libc::timeval { tv_sec: 0, tv_usec: 100_000 });
        Ok(socket)
    }
}

/// Sets a socket option; the lab can do without each of them.
fn set<T>(descriptor: i32, level: i32, option: i32, value: &T) {
    // SAFETY: pointer and size are of one live value.
    unsafe { libc::setsockopt(descriptor, level, option, (&raw const *value).cast(), size_of::<T>() as u32) };
}

fn record(socket: &OwnedFd, recording: &Recording) {
    let mut buffer = vec![0u8; 70_000];
    let mut control = [0u64; 32];
    while !recording.over.load(Ordering::Relaxed) {
        // SAFETY: all pointers are of live buffers, with their lengths; control messages are walked by libc's own macros.
        let frame = unsafe {
            let mut from: libc::sockaddr_ll = std::mem::zeroed();
            let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_name = (&raw mut from).cast();
            message.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
            message.msg_iov = &mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control) as _;
            let length = libc::recvmsg(socket.as_raw_fd(), &mut message, 0);
            if length < 0 {
                continue;
            }
            let mut bytes = buffer[..length as usize].to_vec();
            let mut wall_ns = 0;
            let mut header = libc::CMSG_FIRSTHDR(&message);
            while !header.is_null() {
                let data = libc::CMSG_DATA(header);
                match ((*header).cmsg_level, (*header).cmsg_type) {
                    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS) => {
                        let time = data.cast::<libc::timespec>().read_unaligned();
                        wall_ns = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
                    }
                    (libc::SOL_PACKET, libc::PACKET_AUXDATA) => {
                        let aux = data.cast::<libc::tpacket_auxdata>().read_unaligned();
                        if aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0 && bytes.len() >= 12 {
                            let tpid = if aux.tp_vlan_tpid == 0 { 0x8100 } else { aux.tp_vlan_tpid };
                            let tag = [tpid.to_be_bytes(), aux.tp_vlan_tci.to_be_bytes()].concat();
                            bytes.splice(12..12, tag);
                        }
                    }
                    _ => {}
                }
                header = libc::CMSG_NXTHDR(&message, header);
            }
            Frame { wall_ns, outgoing: from.sll_pkttype == libc::PACKET_OUTGOING, bytes: hex(&bytes) }
        };
        recording.frames.lock().expect("no panic while locked").push(frame);
    }
}
