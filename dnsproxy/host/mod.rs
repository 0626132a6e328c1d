//! The machine's side: interfaces, addresses, and what changes about them.

pub mod links;
