//! The machine's side: interfaces, addresses, what changes about them, and the packet filter's floor under all.

pub mod capabilities;
pub mod cni;
pub mod egress;
pub mod floor;
pub mod links;
pub mod namespace;
mod nftables;
pub mod owner;
pub mod paths;
pub mod rules;
