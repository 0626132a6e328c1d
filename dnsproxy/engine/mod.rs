//! Decides. No sockets, no clock, no async, no randomness: everything that varies is an argument.

pub mod bits;
pub mod compile;
pub mod endpoint;
pub mod grant;
pub mod labels;
pub mod name;
pub mod pattern;
pub mod policy;
pub mod reference;
pub mod ruleset;
pub mod verdict;
pub mod world;
