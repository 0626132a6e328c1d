//! What the kernel holds, read from the pinned map.

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use libbpf_rs::{MapCore, MapFlags, MapHandle};

/// Endpoint number, address, and the last deadline of a group that is open; it may have passed.
pub fn read(directory: &Path) -> Result<Vec<(u32, IpAddr, u64)>, String> {
    let mut found = Vec::new();
    for version in std::fs::read_dir(directory.join("bpf/namegate")).into_iter().flatten().flatten() {
        let map = MapHandle::from_pinned_path(version.path().join("maps/grants")).map_err(|e| e.to_string())?;
        for key in map.keys() {
            let Ok(Some(row)) = map.lookup(&key, MapFlags::ANY) else { continue };
            let id = u32::from_ne_bytes(key[..4].try_into().map_err(|_| "a short key")?);
            let octets: [u8; 16] = key[4..20].try_into().map_err(|_| "a short key")?;
            found.push((id, Ipv6Addr::from(octets).to_canonical(), deadline(&row)));
        }
    }
    Ok(found)
}

/// The last deadline of a row of `grants` that opens any group; `struct grant` of bpf/include/abi.h.
fn deadline(row: &[u8]) -> u64 {
    let word = |at: usize| u64::from_ne_bytes(row[at..at + 8].try_into().expect("eight octets"));
    let slots = (0..4).map(|slot| slot * 24);
    slots.filter(|at| word(*at) != 0 || word(at + 8) != 0).map(|at| word(at + 16)).max().unwrap_or(0)
}
