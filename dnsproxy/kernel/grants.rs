//! Grants in the kernel.

use super::abi::{self, grant, grant_key};
use super::load::Kernel;
use super::{GrantStore, KernelError};
use crate::engine::endpoint::EndpointId;
use crate::engine::grant::{GrantWrite, MonoNs, SLOTS, Slot};

impl GrantStore for Kernel {
    fn install(&self, endpoint: EndpointId, writes: &[GrantWrite]) -> Result<(), KernelError> {
        let (gone, kept): (Vec<&GrantWrite>, Vec<&GrantWrite>) = writes.iter().partition(|write| is_empty(write));
        let rows = kept.iter().map(|write| (key(endpoint, write), row(write)));
        match kept.as_slice() {
            [] => (),
            [one] => self.tables.grants.put(&key(endpoint, one), &row(one))?,
            _ => drop(self.tables.grants.put_all(rows)?),
        }
        for write in gone {
            self.tables.grants.delete(&key(endpoint, write));
        }
        Ok(())
    }
}

impl Kernel {
    /// What the kernel holds for every endpoint: after a restart, the only memory there is.
    ///
    /// # Errors
    /// The map can't be read.
    pub fn grants(&self) -> Result<Vec<(EndpointId, GrantWrite)>, KernelError> {
        let rows = self.tables.grants.rows()?;
        Ok(rows
            .iter()
            .map(|(key, value)| {
                let slots = abi::engine_slots(&value.slots);
                (EndpointId(key.endpoint_id), GrantWrite { address: abi::unmapped(key.addr), slots })
            })
            .collect())
    }

    /// Removes every grant: what they mean is not known.
    ///
    /// # Errors
    /// The map can't be read.
    pub fn delete_all_grants(&self) -> Result<usize, KernelError> {
        self.tables.grants.delete_where(|_, _| true)
    }

    /// Removes grants of endpoints that are no more.
    ///
    /// # Errors
    /// The map can't be read.
    pub fn delete_grants_except(&self, known: &[EndpointId]) -> Result<usize, KernelError> {
        self.tables.grants.delete_where(|key, _| !known.contains(&EndpointId(key.endpoint_id)))
    }
}

fn is_empty(write: &GrantWrite) -> bool {
    write.slots.iter().all(|slot| *slot == Slot { bits: slot.bits, until: MonoNs(0) })
}

fn key(endpoint: EndpointId, write: &GrantWrite) -> grant_key {
    grant_key { endpoint_id: endpoint.0, addr: abi::mapped(write.address) }
}

fn row(write: &GrantWrite) -> grant {
    const _: () = assert!(SLOTS == 4, "GRANT_SLOTS in abi.h");
    grant { slots: abi::slots(&write.slots), last_used_ns: 0, generation: 0, pad: 0 }
}
