//! The lab: small worlds in network namespaces, in which namegate meets real pods, real resolvers and real packets.
//!
//! ```text
//!   pod-a ─ eth0 ═ veth-pay ┐                        ┌ name server 203.0.113.53:5353
//!                           ├ node ─ wan0 ═ eth0 ─ outside: TLS, TCP and UDP servers on 203.0.113.0/24, 198.19.0.0/16
//!   pod-b ─ eth0 ═ veth-rep ┘   └ nftables: kube-dns 198.18.0.10:53 → 203.0.113.53:5353
//! ```
//!
//! A test process never enters a namespace. Whatever must run in one is a child: a program under `nsenter`, or this same
//! binary as an [`agent`], which takes requests as JSON lines on its standard input. Nothing of the machine itself is
//! touched: the node is a namespace too, and each world has a bpffs, a state directory and a snapshot of its own.
//!
//! Names begin with `ng-<pid>-<counter>`. A world removes everything when it is dropped, on panic too; [`guard`] does so on
//! Ctrl-C, and sweeps what a killed run left behind.

// The demo, the tests and the benches each use their part of the lab.
#![allow(
    dead_code,
    unused_imports,
    reason = "compiled into three programs, each uses its part; fields speak for themselves"
)]

pub mod agent;
pub mod clock;
pub mod daemon;
pub mod frame;
pub mod grants;
pub mod process;
pub mod programs;
pub mod snapshot;
pub mod world;

pub use daemon::Daemon;
pub use world::{Topology, World};

/// The paths of the files below a directory, sorted.
pub fn files_below(directory: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.push(entry.path().display().to_string());
        }
    }
    found.sort();
    found
}
