//! namegate: a DNS-aware egress firewall. A workload may reach only the names its policy allows.

pub mod clock;
pub mod cluster;
pub mod config;
pub mod engine;
pub mod kernel;
pub mod listen;
pub mod observe;
pub mod operate;
pub mod run;
pub mod serve;
pub mod upstream;
pub mod host;
pub mod cli;
