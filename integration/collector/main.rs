//! The collector against an API server that is told what to do wrong, and a reader that looks at the snapshot all the time.
//! Needs neither root nor a cluster; `make test-cluster` has the real thing.
#![expect(clippy::disallowed_methods, reason = "a test waits for things, and measures how long they take")]

mod faults;
mod lists;
mod program;
mod server;
mod statuses;
mod watches;
mod world;
