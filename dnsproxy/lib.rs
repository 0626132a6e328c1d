//! namegate: a DNS-aware egress firewall. A workload may reach only the names its policy allows.
//!
//! # The path of a query
//!
//! ```text
//!  pod ──DNS query──▶ [bpf: steer port 53] ──▶ listen ─▶ query ─▶ endpoint ─▶ verdict ─▶ upstream ─▶ answer
//!                                                                    │ deny: REFUSED + EDE                │
//!  pod ◀──reply────── listen ◀─ reply ◀── record ◀── kernel holds it ◀── grant (endpoint, address, until)─┘
//!  pod ──packet─────▶ [bpf: from_pod] flow? grant? policy? ──▶ pass, or drop/reject + counted reason + flow event
//! ```
//!
//! **Invariant:** a reply leaves only after the kernel holds every grant that it implies.
//!
//! # The rules that code and tests cite
//!
//! - **I1** Fail closed, and count it: no policy yet, no program, no room, not understood: drop, or refuse the query.
//! - **I2** An endpoint is its attachment, never a source address that it can write.
//! - **I3** A reply for a name that `toFQDNs` selects holds only addresses that the kernel has granted or that another rule
//!   opens; other replies pass as they came and grant nothing.
//! - **I4** Write the grant, confirm, release. Never "send anyway after a while".
//! - **I5** Learn only the asked type, at the end of the CNAME chain, from a reply that matches its query in everything.
//! - **I6** Never learn loopback, link-local, metadata or own addresses; private ones only where the operator says so.
//! - **I7** Grants, quotas and limits are per endpoint.
//! - **I8** Grants and flows live in plain hashes with budgets, never LRU.
//! - **I9** A grant carries its deadline; a flow may outlive the TTL, never the policy.
//! - **I10** Deny beats allow, an unknown field refuses its policy, and refusing never opens: the last good version stays.
//! - **I11** Every frame is classified; tags, tunnels, source routes and the unknown are dropped, and fragments follow their
//!   first: a later one passes only if the first, with its whole header, did, and never reaches into it.
//! - **I12** Enforcement outlives the process: programs and maps are pinned and replaced in place.
//! - **I13** A SYN never passes by a flow, and a flow lets the other direction through only as replies.
//!
//! # The rooms, in reading order
//!
//! 1. [`serve`]: one query from packet to reply; the only file that knows the order. Beside it what is kept between queries:
//!    [`serve::cache`] for all workers, ready replies for each, [`serve::background`] for what is asked unasked.
//! 2. [`engine`]: decides. Names, patterns, policies, rule sets, verdicts, answers, grants: no sockets, no clock.
//! 3. [`listen`] and [`upstream`]: the clients' side and the resolvers' side of a query.
//! 4. [`kernel`]: the BPF side; its programs are in `bpf/`, and `bpf/include/abi.h` is what both share.
//! 5. [`cluster`]: the Kubernetes side: a mounted directory of objects becomes the engine's world.
//! 6. `collect`: a process of its own that keeps such a directory fresh from a live API server (cargo feature `collect`).
//! 7. [`run`]: the ways of running; [`run::node`] ties all of it together, [`run::state`] is what survives a restart.
//! 8. [`host`]: the machine's interfaces and addresses, and the floor of nftables under what is not guarded yet.
//! 9. [`observe`]: flow records and lines for those who watch. [`operate`]: metrics, health and the admin socket.
//! 10. [`config`], [`cli`], [`clock`]: settings, the command line, the one place that reads a clock.
//!
//! # What is deliberately absent
//!
//! - A way to send a reply before its grant is written, after a delay or otherwise.
//! - An LRU map: what is full is an error that is counted, not a neighbour's connection that ends.
//! - A Kubernetes client in the agent: it reads a directory, and can be tried without a cluster.
//! - An identity by source address: an endpoint is its interface (I2).

// Tests that are shared with the integration tests call this crate by its name.
#[cfg(test)]
extern crate self as namegate;

pub mod cli;
pub mod clock;
pub mod cluster;
#[cfg(feature = "collect")]
pub mod collect;
pub mod config;
pub mod engine;
pub mod host;
pub mod kernel;
pub mod listen;
pub mod observe;
pub mod operate;
pub mod run;
pub mod serve;
pub mod upstream;
