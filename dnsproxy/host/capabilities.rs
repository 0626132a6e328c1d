//! What this process may do (capabilities(7)): asked before anything is touched, so that what is missing is named and
//! nothing is left half done.

use std::fs;
use std::path::Path;

/// A capability that namegate uses somewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capability {
    /// Listening on a port below `net.ipv4.ip_unprivileged_port_start`.
    NetBindService,
    /// Attaching programs; addresses, rules and the floor of nftables.
    NetAdmin,
    /// Programs with arithmetic on packet pointers.
    Perfmon,
    /// Loading programs, making and pinning maps.
    Bpf,
    /// Entering the pods' network namespaces.
    SysAdmin,
}

/// What this process is not allowed.
#[derive(Debug, thiserror::Error)]
pub enum CapabilityError {
    /// /proc says nothing of it.
    #[error("this process' capabilities can't be read from {path}")]
    Unreadable {
        /// What was read.
        path: String,
        /// Why not, if it is there.
        #[source]
        source: Option<std::io::Error>,
    },
    /// Some are missing.
    #[error("{missing} missing: {what} needs {needed}, as capabilities of its container or of the unit that starts it")]
    Missing {
        /// Those that this process does not have, and "is" or "are".
        missing: String,
        /// What was to be started.
        what: &'static str,
        /// All that it needs.
        needed: String,
    },
}

impl Capability {
    /// Its bit (uapi/linux/capability.h).
    fn bit(self) -> u32 {
        match self {
            Capability::NetBindService => 10,
            Capability::NetAdmin => 12,
            Capability::Perfmon => 38,
            Capability::Bpf => 39,
            Capability::SysAdmin => 21,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Capability::NetBindService => "CAP_NET_BIND_SERVICE",
            Capability::NetAdmin => "CAP_NET_ADMIN",
            Capability::Perfmon => "CAP_PERFMON",
            Capability::Bpf => "CAP_BPF",
            Capability::SysAdmin => "CAP_SYS_ADMIN",
        }
    }

    /// Whether the kernel takes these effective capabilities for it: CAP_SYS_ADMIN stands for what was split off from it
    /// (bpf_capable and perfmon_capable in linux/capability.h).
    fn is_in(self, effective: u64) -> bool {
        let split_off = matches!(self, Capability::Bpf | Capability::Perfmon);
        effective >> self.bit() & 1 == 1 || split_off && effective >> Capability::SysAdmin.bit() & 1 == 1
    }
}

/// Refuses to start `what` without all that it needs; `proc` is /proc.
///
/// # Errors
/// Names what is missing.
pub fn require(proc: &Path, what: &'static str, needed: &[Capability]) -> Result<(), CapabilityError> {
    let path = proc.join("self/status");
    let unreadable = |source| CapabilityError::Unreadable { path: path.display().to_string(), source };
    let status = fs::read_to_string(&path).map_err(|error| unreadable(Some(error)))?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).ok_or_else(|| unreadable(None))?;
    let missing: Vec<Capability> = needed.iter().copied().filter(|needed| !needed.is_in(effective)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let verb = if missing.len() == 1 { "is" } else { "are" };
    Err(CapabilityError::Missing { missing: format!("{} {verb}", listed(&missing)), what, needed: listed(needed) })
}

/// Whether a port may be taken only by who has [`Capability::NetBindService`]; 0 is no port, and may be.
pub fn is_privileged(proc: &Path, port: u16) -> bool {
    /// Where the kernel does not say.
    const USUAL: u16 = 1024;
    let first = fs::read_to_string(proc.join("sys/net/ipv4/ip_unprivileged_port_start"));
    let first = first.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL);
    port != 0 && port < first
}

fn listed(all: &[Capability]) -> String {
    let texts: Vec<&str> = all.iter().map(|each| each.text()).collect();
    match &texts[..] {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [front @ .., last] => format!("{} and {last}", front.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: [Capability; 3] = [Capability::Bpf, Capability::NetAdmin, Capability::Perfmon];

    fn said(status: &str) -> String {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("self")).unwrap();
        fs::write(proc.path().join("self/status"), status).unwrap();
        require(proc.path(), "namegate node", &NEEDED).map_or_else(|error| error.to_string(), |()| "fine".into())
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(said("Name:\tx\nCapEff:\t000000c000001000\n"), "fine");
        assert_eq!(said("CapEff:\t0000000000201000\n"), "fine", "CAP_SYS_ADMIN stands for two of them");
        assert!(
            said("CapEff:\t0000004000001000\n").starts_with("CAP_BPF is missing: namegate node needs CAP_BPF, CAP_")
        );
        assert!(said("CapEff:\t0000000000200000\n").starts_with("CAP_NET_ADMIN is missing: "));
        assert!(said("CapEff:\t0\n").starts_with("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are missing: "));
        assert!(said("CapEff:\tmany\n").contains("can't be read"));
        assert!(said("").contains("can't be read"));
    }

    #[test]
    fn ports_are_privileged_below_what_the_kernel_says() {
        let proc = tempfile::tempdir().unwrap();
        assert!(is_privileged(proc.path(), 53) && !is_privileged(proc.path(), 1024) && !is_privileged(proc.path(), 0));
        fs::create_dir_all(proc.path().join("sys/net/ipv4")).unwrap();
        fs::write(proc.path().join("sys/net/ipv4/ip_unprivileged_port_start"), "53\n").unwrap();
        assert!(is_privileged(proc.path(), 52) && !is_privileged(proc.path(), 53));
    }
}
