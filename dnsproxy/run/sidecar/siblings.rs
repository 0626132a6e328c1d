//! What the pod's other containers can do, as far as it can be seen from this one (proc(5), capabilities(7)).
//!
//! With a shared PID namespace their processes are in /proc; without, nothing of them is, and nothing is known. A process
//! of this very container, such as a probe, is none of them: it is known by its mount namespace, which the kernel shows of
//! processes that this one might debug. Whose network namespace is shown and is another one is not in this pod.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::operate::Advisory;

/// What is seen of the others.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Siblings {
    /// Processes of other containers.
    pub count: usize,
    /// What they can do that gets past us.
    pub able: BTreeSet<Advisory>,
}

/// Capabilities with which a process gets past what stands in its own network namespace, by their bits.
const POWERS: [(u32, Advisory); 4] =
    [(12, Advisory::NetAdmin), (13, Advisory::NetRaw), (21, Advisory::SysAdmin), (39, Advisory::Bpf)];

/// Looks at every process below `proc`.
pub(super) fn look(proc: &Path) -> Siblings {
    let mut found = Siblings::default();
    let own = proc.join("self");
    let [own_mount, own_net] = ["ns/mnt", "ns/net"].map(|name| fs::read_link(own.join(name)).ok());
    // SAFETY: reads a number.
    let own_uid = unsafe { libc::geteuid() };
    let self_pid = fs::read_link(&own).unwrap_or_default();
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if Path::new(&name) == self_pid {
            continue;
        }
        let at = entry.path();
        let is = |name: &str, own: &Option<PathBuf>, same: bool| {
            fs::read_link(at.join(name)).is_ok_and(|link| own.as_ref().is_some_and(|own| (*own == link) == same))
        };
        if is("ns/mnt", &own_mount, true) || is("ns/net", &own_net, false) {
            continue;
        }
        let Ok(status) = fs::read_to_string(at.join("status")) else { continue }; // it has ended
        if pid == 1 && status.starts_with("Name:\tpause\n") {
            continue; // what holds the pod's namespaces
        }
        found.count += 1;
        found.able.extend(able(&status, own_uid));
    }
    found
}

/// What a process can do, by its /proc/PID/status.
fn able(status: &str, own_uid: u32) -> BTreeSet<Advisory> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let bits = |name: &str| field(name).and_then(|text| u64::from_str_radix(text, 16).ok());
    // What can't be read may be anything.
    let held = bits("CapEff:").zip(bits("CapPrm:")).map_or(u64::MAX, |(effective, permitted)| effective | permitted);
    // Without no_new_privs, a program with the set-user-ID bit or file capabilities gives it what the bounding set leaves.
    let more = if field("NoNewPrivs:") == Some("1") { 0 } else { bits("CapBnd:").unwrap_or(u64::MAX) };
    let mut able: BTreeSet<Advisory> =
        POWERS.iter().filter(|(bit, _)| (held | more) >> bit & 1 == 1).map(|(_, what)| *what).collect();
    let mut uids = field("Uid:").unwrap_or_default().split_whitespace().filter_map(|text| text.parse().ok());
    if uids.any(|uid: u32| uid == own_uid) {
        able.insert(Advisory::SameUid);
    }
    able
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uid: u32, effective: u64, bounding: u64, no_new_privs: u8) -> String {
        format!(
            "Name:\tapp\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nCapInh:\t0\nCapPrm:\t{effective:016x}\n\
             CapEff:\t{effective:016x}\n\
             CapBnd:\t{bounding:016x}\nNoNewPrivs:\t{no_new_privs}\n"
        )
    }

    #[track_caller]
    fn can(status: &str, expected: &[Advisory]) {
        assert_eq!(Vec::from_iter(able(status, 65_532)), expected);
    }

    #[test]
    fn a_process_can_do_what_it_has_or_could_get() {
        const NET_RAW: u64 = 1 << 13;
        const DEFAULT: u64 = 0xa804_25fb; // what container runtimes leave unless told
        can(&status(1_000, 0, 0, 0), &[]);
        can(&status(1_000, NET_RAW, NET_RAW, 1), &[Advisory::NetRaw]);
        can(&status(1_000, 0, DEFAULT, 0), &[Advisory::NetRaw]);
        can(&status(1_000, 0, DEFAULT, 1), &[]);
        can(&status(0, 1 << 21 | 1 << 12, u64::MAX, 1), &[Advisory::NetAdmin, Advisory::SysAdmin]);
        can(&status(65_532, 0, 0, 1), &[Advisory::SameUid]);
        can("Name:\tapp\n", &[Advisory::NetRaw, Advisory::NetAdmin, Advisory::SysAdmin, Advisory::Bpf]);
    }
}
