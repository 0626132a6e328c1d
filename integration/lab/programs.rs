//! What another agent, or a hand, does to the programs on a pod's interface.

use std::ffi::CString;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::files_below;
use super::world::{PODS, World};

/// The pin of a program's link on the first pod's interface.
pub fn link_pin(world: &World, program: &str) -> PathBuf {
    let pins = files_below(&world.directory.join("bpf/namegate"));
    let wanted = format!("/links/{}_{program}", ifindex(world));
    pins.into_iter().find(|pin| pin.ends_with(&wanted)).map(PathBuf::from).expect("it is pinned")
}

/// The number of the first pod's interface.
pub fn ifindex(world: &World) -> i32 {
    ifindex_of(world, PODS[0].host)
}

/// The number of an interface of the node.
pub fn ifindex_of(world: &World, interface: &str) -> i32 {
    ifindex_in(&world.namespace("node"), interface)
}

/// As `bpftool link detach pinned` does.
pub fn detach_link(world: &World, program: &str) {
    detach_pinned(link_pin(world, program).to_str().expect("a path in UTF-8"));
}

/// A TC program, as the octets of its instructions.
pub type Program = [u64];
/// `return 0`: TCX_PASS and TC_ACT_OK, with which no further program runs.
pub const PASS: [u64; 2] = [0x0000_0000_0000_00b7, 0x95];
/// Drops (2) IPv4 and passes everything else on (-1). Loads `protocol`, at 16 of `struct __sk_buff`.
pub const DROP_IPV4: [u64; 6] = [
    0x0000_0000_0010_1061, // r0 = *(u32 *)(r1 + 16)
    0x0000_0008_0002_0015, // if r0 == htons(0x0800) goto +2
    0xffff_ffff_0000_00b7, // r0 = -1
    0x95,
    0x0000_0002_0000_00b7, // r0 = 2
    0x95,
];

/// `return -1`: TCX_NEXT, whoever comes next decides.
pub const NEXT: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];

/// Loads another agent's program.
fn load(program: &Program) -> OwnedFd {
    // SAFETY: as many instructions as are said, and strings that end in NUL; the descriptor is nobody else's.
    unsafe {
        let fd = libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
            c"other".as_ptr(),
            c"GPL".as_ptr(),
            program.as_ptr().cast(),
            program.len() as _,
            std::ptr::null_mut(),
        );
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    }
}

/// Loads another agent's program and pins it beside ours.
pub fn pin_program(world: &World, name: &str, program: &Program) {
    let path = world.directory.join("bpf").join(name);
    let path = CString::new(path.as_os_str().as_encoded_bytes()).expect("no NUL");
    // SAFETY: a descriptor of our own and a string that ends in NUL.
    let pinned = unsafe { libbpf_sys::bpf_obj_pin(load(program).as_raw_fd(), path.as_ptr()) };
    assert_eq!(pinned, 0, "{}", std::io::Error::last_os_error());
}

/// Attaches another agent's program to what the first pod sends, with TCX, `first` or last in the chain.
pub fn attach_other(world: &World, name: &str, program: &Program, first: bool) {
    pin_program(world, name, program);
    attach(world, (&world.namespace("node"), ifindex(world)), name, "link", first);
}

/// Attaches programs that decide nothing to what comes in by an interface of the node, with TCX, until the kernel takes no
/// more (64 a chain, BPF_MPROG_MAX). They are off when what this returns is dropped.
pub fn fill_chain(world: &World, interface: &str) -> Vec<OwnedFd> {
    fill_chain_in(&world.namespace("node"), interface)
}

/// The same in another namespace.
#[track_caller]
pub fn fill_chain_in(namespace: &str, interface: &str) -> Vec<OwnedFd> {
    let ifindex = ifindex_in(namespace, interface);
    let namespace = fs::File::open(format!("/run/netns/{namespace}")).expect("it is there");
    let fill = move || {
        let mut links = Vec::new();
        // SAFETY: descriptors of our own, and plain data of which zero is a value. The thread that changes its network namespace
        // ends with this.
        unsafe {
            assert_eq!(libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET), 0);
            let mut options: libbpf_sys::bpf_link_create_opts = std::mem::zeroed();
            options.sz = size_of_val(&options) as _;
            loop {
                let program = load(&NEXT); // no chain has one twice
                let hook = libbpf_sys::BPF_TCX_INGRESS;
                let link = libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex, hook, &options);
                if link < 0 {
                    assert_eq!(-link, libc::ERANGE, "{}", std::io::Error::from_raw_os_error(-link));
                    return links;
                }
                links.push(OwnedFd::from_raw_fd(link));
            }
        }
    };
    std::thread::spawn(fill).join().expect("it is full")
}

/// What a CNI does that delivers past the host's side: sends packets to these addresses to the other end of an interface with
/// bpf_redirect_peer, and passes everything else on.
pub fn delivery(v4: Ipv4Addr, v6: Ipv6Addr, ifindex: u32) -> Vec<u64> {
    const JUMP_UNLESS_32: u8 = 0x56;
    const REDIRECT_PEER: u32 = 155;
    let one = |code: u8, to: u8, from: u8, offset: i16, value: u32| {
        u64::from(code) | u64::from(to | from << 4) << 8 | u64::from(offset as u16) << 16 | u64::from(value) << 32
    };
    // r1 = ifindex; r2 = 0; return bpf_redirect_peer(r1, r2)
    let deliver =
        [one(0xb7, 1, 0, 0, ifindex), one(0xb7, 2, 0, 0, 0), one(0x85, 0, 0, 0, REDIRECT_PEER), one(0x95, 0, 0, 0, 0)];
    // Each word: r0 = ntohl(the frame's word there); if it is not this one, on to what follows.
    let matches = |ethertype: u16, first: u32, words: &[u32]| {
        let length = words.len() * 2 + deliver.len();
        let mut block = vec![one(JUMP_UNLESS_32, 7, 0, length as i16, ethertype.to_be().into())];
        for (number, word) in words.iter().enumerate() {
            block.push(one(0x20, 0, 0, 0, first + 4 * number as u32));
            block.push(one(JUMP_UNLESS_32, 0, 0, (length - number * 2 - 2) as i16, *word));
        }
        block.extend(deliver);
        block
    };
    let words: Vec<u32> = v6.octets().chunks(4).map(|word| u32::from_be_bytes(word.try_into().expect("4"))).collect();
    // r6 = the context, which loads of words want there; r7 = its protocol.
    let mut program = vec![one(0xbf, 6, 1, 0, 0), one(0x61, 7, 1, 16, 0)];
    program.extend(matches(0x0800, 30, &[u32::from(v4)]));
    program.extend(matches(0x86dd, 38, &words));
    program.extend([one(0xb7, 0, 0, 0, u32::MAX), one(0x95, 0, 0, 0, 0)]);
    program
}

/// Attaches a program that is pinned beside ours with TCX to what comes in on an interface of a namespace, `first` or last,
/// and pins the link.
#[track_caller]
pub fn attach_in(world: &World, namespace: &str, interface: &str, name: &str, first: bool) {
    attach(world, (namespace, ifindex_in(namespace, interface)), name, interface, first);
}

/// The number of an interface of a namespace.
#[track_caller]
pub fn ifindex_in(namespace: &str, interface: &str) -> i32 {
    let line = super::process::must_inside(namespace, &format!("ip -oneline link show dev {interface}"));
    line.split(':').next().and_then(|text| text.trim().parse().ok()).expect("a number")
}

/// The link is pinned as the program with `pin` behind its name.
fn attach(world: &World, (namespace, ifindex): (&str, i32), name: &str, pin: &str, first: bool) {
    let entered = fs::File::open(format!("/run/netns/{namespace}")).expect("it is there");
    let bpf = world.directory.join("bpf");
    let path = |name: String| CString::new(bpf.join(name).as_os_str().as_encoded_bytes()).expect("no NUL");
    let (program, pin) = (path(name.to_owned()), path(format!("{name}-{pin}")));
    let attach = move || {
        // SAFETY: descriptors of our own, strings that end in NUL, and plain data of which zero is a value. The thread
        // that changes its network namespace ends with this.
        unsafe {
            assert_eq!(libc::setns(entered.as_raw_fd(), libc::CLONE_NEWNET), 0);
            let fd = libbpf_sys::bpf_obj_get(program.as_ptr());
            let mut options: libbpf_sys::bpf_link_create_opts = std::mem::zeroed();
            options.sz = size_of_val(&options) as _;
            options.flags = if first { libbpf_sys::BPF_F_BEFORE } else { libbpf_sys::BPF_F_AFTER };
            let link = libbpf_sys::bpf_link_create(fd, ifindex, libbpf_sys::BPF_TCX_INGRESS, &options);
            assert!(link >= 0, "{}", std::io::Error::from_raw_os_error(-link));
            assert_eq!(libbpf_sys::bpf_obj_pin(link, pin.as_ptr()), 0);
            libc::close(link);
            libc::close(fd);
        }
    };
    std::thread::spawn(attach).join().expect("it is attached");
}

/// As `bpftool link detach pinned` does.
#[track_caller]
pub fn detach_pinned(pin: &str) {
    let path = CString::new(pin).expect("no NUL");
    // SAFETY: a string that ends in NUL; the descriptor is closed below.
    let detached = unsafe {
        let link = libbpf_sys::bpf_obj_get(path.as_ptr());
        let detached = libbpf_sys::bpf_link_detach(link);
        libc::close(link);
        detached
    };
    assert_eq!(detached, 0, "{}", std::io::Error::last_os_error());
}
