//! A kernel map as a table of typed rows.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};

use super::KernelError;
use super::abi::Plain;

/// Rows of `V` by `K`.
pub struct Table<K, V> {
    map: MapHandle,
    name: &'static str,
    rows: PhantomData<fn(K) -> V>,
}

/// How many rows one batch call carries.
const BATCH: usize = 4096;

impl<K: Plain, V: Plain> Table<K, V> {
    /// The map `map`, whose key and value sizes must be those of the types.
    ///
    /// # Errors
    /// The sizes differ: the program was built from another abi.h.
    pub fn new(map: MapHandle, name: &'static str) -> Result<Table<K, V>, KernelError> {
        if map.key_size() as usize != size_of::<K>() || map.value_size() as usize != size_of::<V>() {
            return Err(KernelError::Layout {
                map: name,
                found: (map.key_size(), map.value_size()),
                wanted: (size_of::<K>() as u32, size_of::<V>() as u32),
            });
        }
        Ok(Table { map, name, rows: PhantomData })
    }

    /// The row of `key`.
    pub fn get(&self, key: &K) -> Option<V> {
        self.map.lookup(key.octets(), MapFlags::ANY).ok().flatten().and_then(|value| V::from_octets(&value))
    }

    /// Writes one row.
    ///
    /// # Errors
    /// The map is full, or the call failed.
    pub fn put(&self, key: &K, value: &V) -> Result<(), KernelError> {
        self.map.update(key.octets(), value.octets(), MapFlags::ANY).map_err(|error| self.refused(error))
    }

    /// Writes a row that must be there; whether it was.
    ///
    /// # Errors
    /// The call failed.
    pub fn replace(&self, key: &K, value: &V) -> Result<bool, KernelError> {
        match self.map.update(key.octets(), value.octets(), MapFlags::EXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.refused(error)),
        }
    }

    /// Writes many rows; fewer system calls than rows. Rows before the one that failed are written.
    ///
    /// # Errors
    /// As [`Table::put`].
    pub fn put_all(&self, rows: impl IntoIterator<Item = (K, V)>) -> Result<usize, KernelError> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut written = 0;
        for (key, value) in rows {
            keys.extend_from_slice(key.octets());
            values.extend_from_slice(value.octets());
            written += 1;
            if written % BATCH == 0 {
                self.put_batch(&keys, &values)?;
                keys.clear();
                values.clear();
            }
        }
        self.put_batch(&keys, &values)?;
        Ok(written)
    }

    fn put_batch(&self, keys: &[u8], values: &[u8]) -> Result<(), KernelError> {
        let count = keys.len() / size_of::<K>();
        if count == 0 {
            return Ok(());
        }
        self.map
            .update_batch(keys, values, count as u32, MapFlags::ANY, MapFlags::ANY)
            .map_err(|error| self.refused(error))
    }

    /// Removes one row; whether there was one.
    pub fn delete(&self, key: &K) -> bool {
        self.map.delete(key.octets()).is_ok()
    }

    /// Removes one row and returns what it held, in one step: of two that try, one gets it.
    pub fn take(&self, key: &K) -> Option<V> {
        self.map.lookup_and_delete(key.octets()).ok().flatten().and_then(|value| V::from_octets(&value))
    }

    /// All rows, as they stood at some moment during the call. Rows that come or go meanwhile may be missed.
    ///
    /// libbpf-rs' own `lookup_batch` stops at the first short batch; this goes on until the kernel says that is all.
    ///
    /// # Errors
    /// The call failed.
    pub fn rows(&self) -> Result<Vec<(K, V)>, KernelError> {
        let mut rows = Vec::new();
        let mut keys = vec![0u8; BATCH * size_of::<K>()];
        let mut values = vec![0u8; BATCH * size_of::<V>()];
        // Hashes hand out a bucket number, tries a key: room for either.
        let mut position = [0u8; 64];
        let mut begun = false;
        loop {
            let mut count = (keys.len() / size_of::<K>()) as u32;
            let from = if begun { position.as_mut_ptr().cast::<c_void>() } else { std::ptr::null_mut() };
            let mut next = [0u8; 64];
            // SAFETY: the buffers hold `count` keys and values of the map's sizes, which `new` has checked.
            let failed = unsafe {
                libbpf_sys::bpf_map_lookup_batch(
                    self.map.as_fd().as_raw_fd(),
                    from,
                    next.as_mut_ptr().cast(),
                    keys.as_mut_ptr().cast(),
                    values.as_mut_ptr().cast(),
                    &mut count,
                    std::ptr::null(),
                )
            };
            let end = failed == -libc::ENOENT;
            if failed < 0 && !end {
                if failed == -libc::ENOSPC && keys.len() < 64 * BATCH * size_of::<K>() {
                    // One bucket holds more rows than fit.
                    keys.resize(keys.len() * 2, 0);
                    values.resize(values.len() * 2, 0);
                    continue;
                }
                return Err(self.failed("read rows", std::io::Error::from_raw_os_error(-failed)));
            }
            for at in 0..count as usize {
                let key = K::from_octets(&keys[at * size_of::<K>()..]);
                let value = V::from_octets(&values[at * size_of::<V>()..]);
                rows.extend(key.zip(value));
            }
            if end {
                return Ok(rows);
            }
            position = next;
            begun = true;
        }
    }

    /// Removes every row that `unwanted` names; how many there were.
    ///
    /// # Errors
    /// The rows could not be read.
    pub fn delete_where(&self, unwanted: impl Fn(&K, &V) -> bool) -> Result<usize, KernelError> {
        let rows = self.rows()?;
        Ok(rows.iter().filter(|(key, value)| unwanted(key, value)).filter(|(key, _)| self.delete(key)).count())
    }

    /// How many rows fit.
    pub fn capacity(&self) -> u32 {
        self.map.max_entries()
    }

    /// The map behind the table.
    pub fn map(&self) -> &MapHandle {
        &self.map
    }

    /// The map's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn refused(&self, error: libbpf_rs::Error) -> KernelError {
        match error.kind() {
            ErrorKind::TooBig => KernelError::Full { map: self.name, rows: self.capacity() },
            _ => self.failed("write a row", std::io::Error::other(error)),
        }
    }

    fn failed(&self, what: &str, source: std::io::Error) -> KernelError {
        KernelError::Call { what: format!("map {}: {what}", self.name), source }
    }
}
