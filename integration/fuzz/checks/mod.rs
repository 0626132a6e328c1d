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
//! | [`datagrams`] | datagrams, each behind its length | what was sent over loopback |
//! | [`frames`] | choices of a world and of frames for it | a judge that reads octets, and keeps lists |

pub mod answer;
pub mod datagrams;
pub mod frames;
pub mod manifest;
mod naive;
pub mod pattern;
pub mod query;
pub mod upstream;
