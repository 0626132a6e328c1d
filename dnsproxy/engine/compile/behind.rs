//! What a Service's address stands for, for people.

use std::net::IpAddr;

use super::Compiler;
use crate::engine::ruleset::Protocol;

/// What is behind a Service's address and port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Behind {
    /// The ready backends, each with its target port, sorted.
    pub backends: Vec<(IpAddr, u16)>,
    /// Whether all backends are known; if not, nothing opens the Service.
    pub complete: bool,
}

impl Compiler<'_> {
    /// What is behind a Service's address and port; `None` if no Service has them.
    pub fn behind(&self, address: IpAddr, protocol: Protocol, port: u16) -> Option<Behind> {
        let mut fronts = self.base.fronts.iter();
        let front = fronts.find(|front| (front.address, front.protocol, front.port) == (address, protocol, port))?;
        Some(Behind { backends: front.backends.iter().copied().collect(), complete: front.complete })
    }

    /// The ports of the Services that have this address, sorted.
    pub fn service_ports(&self, address: IpAddr) -> Vec<(Protocol, u16)> {
        let fronts = self.base.fronts.iter().filter(|front| front.address == address);
        fronts.map(|front| (front.protocol, front.port)).collect()
    }
}
