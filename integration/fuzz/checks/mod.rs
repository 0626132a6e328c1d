//! What must hold for any octets. Each module is the body of a fuzz target, and has one function: `check`, which panics
//! when something does not hold. `make test` runs each over its corpus (integration/corpus.rs).
//!
//! | target | octets | held against |
//! |---|---|---|
//! | [`query`] | a client's message | hickory-proto on the same octets |
//! | [`answer`] | a control octet, a server's message | a model of the CNAME chain on hickory-proto's records |
//! | [`upstream`] | a question, and changes to its reply | hickory-proto's reading of both |
//! | [`pattern`] | a name and patterns, a line each | the grammar, said plainly, with backtracking |
//! | [`manifest`] | a file of Kubernetes objects | what refusing must never do; its own last good version |
//! | [`config`] | a configuration file, variables, flags | what it says, written down again |
//! | [`checkpoint`] | a file of names, or damage and rows | what was written; the checksum by the book |
//! | [`state`] | damage, a file of numbers and bits | the same |
//! | [`journal`] | a journal, or damage and what is said | what was said at any earlier time |
//! | [`admin`] | who asks, and octets on the connection | what HTTP and the pages are, said plainly |
//! | [`question`] | questions about policy, a line each | the same question again, by the admin socket's way |
//! | [`scenario`] | a scenario | its own statements, one by one |
//! | [`datagrams`] | datagrams, each behind its length | what was sent over loopback |
//! | [`frames`] | choices of a world and of frames for it | a judge that reads octets, and keeps lists |

pub mod admin;
pub mod answer;
pub mod checkpoint;
pub mod config;
mod cost;
mod damage;
pub mod datagrams;
pub mod frames;
pub mod journal;
pub mod manifest;
mod naive;
pub mod pattern;
pub mod query;
pub mod question;
pub mod scenario;
pub mod state;
pub mod upstream;
