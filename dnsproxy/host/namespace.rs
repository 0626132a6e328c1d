//! The pod's side of an interface: another network namespace, which a thread of its own enters and never leaves.
//!
//! Entering takes CAP_SYS_ADMIN (setns(2)). A namespace is known by the file that a container runtime keeps it by, as the
//! CNI's cache names it; it is opened for each look and not held: whoever holds one keeps its interfaces alive.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Why a pod's side can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// A system call failed.
    #[error("{what}")]
    Call {
        /// What was tried.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is no network namespace", path.display())]
    Other {
        /// The file.
        path: PathBuf,
    },
    /// The file is that of the namespace that we are in.
    #[error("{} is the node's own network namespace", path.display())]
    Own {
        /// The file.
        path: PathBuf,
    },
    /// It is not that pod's.
    #[error("{} has no veth whose other end is interface {outside} here", path.display())]
    NoInterface {
        /// The file.
        path: PathBuf,
        /// The host's side.
        outside: u32,
    },
}

/// Runs `work` in the network namespace of `path`, with the number there of the veth whose other end is `outside` here.
///
/// # Errors
/// The namespace can't be entered, or no interface of it is that one.
pub fn across<T: Send>(path: &Path, outside: u32, work: impl FnOnce(u32) -> T + Send) -> Result<T, NamespaceError> {
    let namespace = open(path)?;
    let nowhere = || NamespaceError::NoInterface { path: path.to_owned(), outside };
    // Said by the host's side, where the pod changes nothing: inside it may make others that look alike.
    let inside = peer_of(outside).map_err(|source| call(format!("look at interface {outside}"), source))?;
    let inside = inside.ok_or_else(nowhere)?;
    let enter = || {
        // SAFETY: a descriptor of our own. The thread that changes its namespace ends with this.
        if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(last(format!("enter {} (needs CAP_SYS_ADMIN)", path.display())));
        }
        let found = own_side(inside, outside)
            .map_err(|source| call(format!("look at interfaces in {}", path.display()), source))?;
        found.map(work).ok_or_else(nowhere)
    };
    std::thread::scope(|scope| scope.spawn(enter).join())
        .unwrap_or_else(|_| Err(call(format!("work in {}", path.display()), io::Error::other("the thread panicked"))))
}

/// First by O_PATH, which does nothing to whatever stands there, and for use only once it is known what it is.
fn open(path: &Path) -> Result<File, NamespaceError> {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    let failed = || format!("open {}", path.display());
    let text = CString::new(path.as_os_str().as_bytes()).map_err(|error| call(failed(), io::Error::other(error)))?;
    // SAFETY: a string that ends in NUL.
    let found = unsafe { libc::open(text.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    if found < 0 {
        return Err(last(failed()));
    }
    // SAFETY: the call has just handed this descriptor to us.
    let found = unsafe { OwnedFd::from_raw_fd(found) };
    // SAFETY: statfs is plain data; zero is a value of it.
    let mut on: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a descriptor of our own and a struct that the kernel fills.
    if unsafe { libc::fstatfs(found.as_raw_fd(), &mut on) } != 0 {
        return Err(last(failed()));
    }
    if on.f_type != NSFS_MAGIC {
        return Err(NamespaceError::Other { path: path.to_owned() });
    }
    let opened = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(|error| call(failed(), error))?;
    // SAFETY: a request without an argument.
    if unsafe { libc::ioctl(opened.as_raw_fd(), NS_GET_NSTYPE) } != libc::CLONE_NEWNET {
        return Err(NamespaceError::Other { path: path.to_owned() });
    }
    let is = |file: &std::fs::Metadata| (file.dev(), file.ino());
    let own = std::fs::metadata("/proc/thread-self/ns/net").map_err(|error| call(failed(), error))?;
    if is(&own) == is(&opened.metadata().map_err(|error| call(failed(), error))?) {
        return Err(NamespaceError::Own { path: path.to_owned() });
    }
    Ok(opened)
}

/// The veth of this thread's namespace with the number `inside`, if its other end has the number `outside`: by what the kernel
/// says of both ends, not by its name, which the pod may change.
fn own_side(inside: u32, outside: u32) -> io::Result<Option<u32>> {
    Ok((peer_of(inside)? == Some(outside)).then_some(inside))
}

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    others: [u8; 4 * 32 + 12],
    flags: u32,
    statistics: u32,
    lengths: [u32; 3],
}
const _: () = assert!(size_of::<DriverInfo>() == 196);

/// The number that the other end of a veth of this thread's namespace has in its own, which is the first of its statistics
/// (drivers/net/veth.c, `peer_ifindex`); none: there is no such veth.
fn peer_of(index: u32) -> io::Result<Option<u32>> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: as much room as the call asks for; what it writes ends in NUL.
    let named = unsafe { libc::if_indextoname(index, name.as_mut_ptr()) };
    if named.is_null() {
        return Ok(None);
    }
    // SAFETY: numbers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just handed this descriptor to us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: the name that the call has written.
    let peer = peer_by_name(&socket, unsafe { CStr::from_ptr(name.as_ptr()) });
    Ok(peer.and_then(|peer| u32::try_from(peer).ok()))
}

fn peer_by_name(socket: &OwnedFd, name: &CStr) -> Option<u64> {
    const ETHTOOL_GDRVINFO: u32 = 3;
    const ETHTOOL_GSTATS: u32 = 0x1d;
    // SAFETY: plain data, of which zero is a value.
    let mut info: DriverInfo = unsafe { std::mem::zeroed() };
    info.command = ETHTOOL_GDRVINFO;
    ask(socket, name, (&raw mut info).cast())?;
    if !info.driver.starts_with(b"veth\0") || info.statistics == 0 {
        return None;
    }
    // struct ethtool_stats: command and how many, then as many numbers. A word more than asked for, should they become more.
    let mut statistics = vec![0u64; info.statistics as usize + 2];
    let (command, count) = (u64::from(ETHTOOL_GSTATS), u64::from(info.statistics));
    statistics[0] = if cfg!(target_endian = "little") { command | count << 32 } else { command << 32 | count };
    ask(socket, name, statistics.as_mut_ptr().cast())?;
    Some(statistics[1])
}

/// SIOCETHTOOL, netdevice(7).
fn ask(socket: &OwnedFd, name: &CStr, about: *mut libc::c_char) -> Option<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    // SAFETY: plain data, of which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let octets = name.to_bytes();
    if octets.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(octets) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = about;
    // SAFETY: what `about` points to has the size that its command means, and outlives the call.
    (unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } == 0).then_some(())
}

fn call(what: String, source: io::Error) -> NamespaceError {
    NamespaceError::Call { what, source }
}

fn last(what: String) -> NamespaceError {
    call(what, io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(path: &str, why: &str) {
        let error = across(Path::new(path), 1, |_| ()).expect_err("nothing to enter");
        assert!(error.to_string().contains(why), "{error}");
    }

    #[test]
    fn what_is_no_other_network_namespace_is_not_entered() {
        refused("/proc/self/ns/net", "the node's own");
        refused("/proc/self/ns/mnt", "no network namespace");
        refused("/proc/self/status", "no network namespace");
        refused("/dev/null", "no network namespace");
        refused("/nowhere/at/all", "open /nowhere/at/all");
    }
}
