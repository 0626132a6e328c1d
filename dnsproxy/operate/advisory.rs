//! Why enforcement may be got past by a workload that wants to: said, never hidden.

use serde::{Deserialize, Serialize};

/// A reason.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Advisory {
    /// Nothing is known of the other containers.
    Unseen,
    /// CAP_NET_RAW.
    NetRaw,
    /// CAP_NET_ADMIN.
    NetAdmin,
    /// CAP_SYS_ADMIN.
    SysAdmin,
    /// CAP_BPF.
    Bpf,
    /// Another container's process has our uid.
    SameUid,
    /// The pod has interfaces that are not guarded.
    OtherInterface,
    /// The next process can't take over from this one.
    NoBpffs,
}

impl Advisory {
    /// Every reason.
    pub const ALL: &[Advisory] = &[
        Advisory::Unseen,
        Advisory::NetRaw,
        Advisory::NetAdmin,
        Advisory::SysAdmin,
        Advisory::Bpf,
        Advisory::SameUid,
        Advisory::OtherInterface,
        Advisory::NoBpffs,
    ];

    /// The word for metrics and logs.
    pub fn text(self) -> &'static str {
        match self {
            Advisory::Unseen => "unseen",
            Advisory::NetRaw => "net_raw",
            Advisory::NetAdmin => "net_admin",
            Advisory::SysAdmin => "sys_admin",
            Advisory::Bpf => "bpf",
            Advisory::SameUid => "same_uid",
            Advisory::OtherInterface => "other_interface",
            Advisory::NoBpffs => "no_bpffs",
        }
    }

    /// What it means, for people.
    pub fn words(self) -> &'static str {
        match self {
            Advisory::Unseen => {
                "the capabilities of the pod's other containers can't be seen without a shared PID namespace; \
                 sidecar.siblings = \"unprivileged\" says that they have none"
            }
            Advisory::NetRaw => {
                "another container has CAP_NET_RAW or can get it: its packet sockets go past the programs \
                 (PACKET_QDISC_BYPASS); the floor stops all but ARP and who guesses its mark"
            }
            Advisory::NetAdmin => {
                "another container has CAP_NET_ADMIN or can get it: it can take programs, rules and floor away"
            }
            Advisory::SysAdmin => {
                "another container has CAP_SYS_ADMIN or can get it: it can take programs and pins away"
            }
            Advisory::Bpf => "another container has CAP_BPF or can get it: it can change the programs' tables",
            Advisory::SameUid => "another container has namegate's uid: it can read its memory and end it",
            Advisory::OtherInterface => "the pod has interfaces that are not guarded",
            Advisory::NoBpffs => {
                "pin_dir is on no BPF file system: the programs stay when this container ends, but a new one finds \
                 nothing of what it knew, and connections end then"
            }
        }
    }
}

/// A reason that holds now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AdvisoryStatus {
    /// Which.
    pub reason: Advisory,
    /// What it means here.
    pub text: String,
}
