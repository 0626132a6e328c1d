//! The proxy's own sockets, where it runs beside the workload: the programs let pass what comes from these, and only that.

use std::ops::RangeInclusive;

use super::KernelError;
use super::abi;
use super::load::Kernel;
use crate::upstream::doors::{Announce, OwnSocket};

/// The local ports of what the proxy asks: above those that the kernel gives out by itself (32768 to 60999 unless
/// `net.ipv4.ip_local_port_range` says otherwise). 65535 is left out, as firewalls often do.
pub const PROXY_PORTS: RangeInclusive<u16> = 61_000..=65_534;

impl Kernel {
    /// Forgets the sockets of an earlier run.
    ///
    /// # Errors
    /// The map can't be read or written.
    pub fn forget_proxy_sockets(&self) -> Result<(), KernelError> {
        self.tables.proxy_sockets.delete_where(|_, _| true).map(drop)
    }
}

impl Announce for Kernel {
    fn announce(&self, own: &OwnSocket) -> std::io::Result<()> {
        let row = abi::proxy_socket { cookie: own.cookie };
        self.tables.proxy_sockets.put(&key(own), &row).map_err(std::io::Error::other)
    }

    fn withdraw(&self, own: &OwnSocket) {
        // Another one may have the port by now.
        if self.tables.proxy_sockets.get(&key(own)).is_some_and(|row| row.cookie == own.cookie) {
            self.tables.proxy_sockets.delete(&key(own));
        }
    }
}

fn key(own: &OwnSocket) -> abi::proxy_socket_key {
    const TCP: u32 = 6;
    const UDP: u32 = 17;
    abi::proxy_socket_key {
        remote: abi::address { octets: abi::mapped(own.remote.ip()) },
        remote_port: own.remote.port().to_be(),
        local_port: own.local_port.to_be(),
        protocol: if own.tcp { TCP } else { UDP },
    }
}
