//! What programs of another version of the ABI have left: each version has a directory of pins of its own.
//!
//! Such programs look at maps that nobody writes any more, and drop what their version did not know. So they go, but only
//! once ours are on the interface: nothing passes unguarded in between.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use libbpf_rs::{MapCore, MapHandle};

use super::attach::sever;
use super::load::Kernel;

impl Kernel {
    /// Takes the links of other versions off the interface, which ours guard now or nobody is to guard any more. With its
    /// last link a version's maps go too.
    pub(super) fn retire_others(&self, ifindex: u32) {
        for pins in self.others() {
            let links = pins.join("links");
            for pin in names(&links).filter(|name| interface_of(name) == Some(ifindex)).map(|name| links.join(name)) {
                sever(&pin);
                drop(std::fs::remove_file(pin));
            }
            if !links.exists() || std::fs::remove_dir(links).is_ok() {
                drop(remove_pins(&pins.join("maps")));
                drop(std::fs::remove_dir(&pins));
            }
        }
    }

    /// The interfaces on which other versions may have programs.
    pub(super) fn retirable(&self) -> impl Iterator<Item = u32> {
        self.others().flat_map(|pins| linked(&pins).chain(endpoints(&pins)))
    }

    /// Whether another version has left pins.
    pub fn has_others(&self) -> bool {
        self.others().next().is_some()
    }

    fn others(&self) -> impl Iterator<Item = PathBuf> {
        self.pins.parent().into_iter().flat_map(versions).filter(move |pins| *pins != self.pins)
    }
}

/// Where pins of this and of other versions stand: `v` and a number.
pub(super) fn versions(pin_dir: &Path) -> Vec<PathBuf> {
    let is_version = |name: &OsStr| name.to_str()?.strip_prefix('v')?.parse::<u32>().ok();
    names(pin_dir).filter(|name| is_version(name).is_some()).map(|name| pin_dir.join(name)).collect()
}

/// The interfaces with pinned links, live or severed, as often as they have them.
pub(super) fn linked(pins: &Path) -> impl Iterator<Item = u32> + use<> {
    names(&pins.join("links")).filter_map(|name| interface_of(&name))
}

/// The interfaces that have a row in the pinned map of endpoints; its key is the same in every version.
fn endpoints(pins: &Path) -> impl Iterator<Item = u32> + use<> {
    let map = MapHandle::from_pinned_path(pins.join("maps").join("endpoints")).ok();
    let keys: Vec<Vec<u8>> = map.iter().flat_map(|map| map.keys()).collect();
    keys.into_iter().filter_map(|key| Some(u32::from_ne_bytes(key.try_into().ok()?)))
}

/// Removes a directory of pins; links among them are taken off first.
pub(super) fn remove_pins(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let pin = entry?.path();
        sever(&pin);
        std::fs::remove_file(pin)?;
    }
    std::fs::remove_dir(path)
}

/// Links are named after interface and hook.
fn interface_of(link: &OsStr) -> Option<u32> {
    link.to_str()?.split_once('_')?.0.parse().ok()
}

fn names(directory: &Path) -> impl Iterator<Item = OsString> + use<> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).collect::<Vec<_>>().into_iter()
}
