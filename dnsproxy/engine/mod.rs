//! Decides. No sockets, no clock, no async, no randomness: everything that varies is an argument.

pub mod advice;
pub mod answer;
pub mod bits;
pub mod compile;
pub mod endpoint;
pub mod explain;
pub mod fqdn;
pub mod grant;
pub mod guard;
pub mod labels;
pub mod lifetime;
pub mod name;
pub mod pattern;
pub mod policy;
pub mod port;
pub mod query;
pub mod reference;
pub mod reply;
pub mod ruleset;
pub mod verdict;
pub mod wire;
pub mod world;
