//! What must survive a restart, because the pinned maps are read by it: who has which number, which group
//! has which bit, which local address stands for which resolver, the last good text of each object.
//!
//! **Invariant:** it is written before the kernel uses a number or a bit. Without it no pinned grant means anything: the
//! caller deletes them all before it serves. It has to outlive this process and not the machine, which takes the kernel's
//! maps with it: so nothing waits for a disk, and no pod's interface for a slow one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files;
use crate::cluster::snapshot::LastGood;
use crate::engine::endpoint::EndpointId;
use crate::engine::ruleset::Group;
use crate::engine::world::PeerIds;

/// The format of the file. Another one is set aside like a damaged file.
const VERSION: u32 = 1;

/// See the module.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The highest endpoint number given out.
    pub last_endpoint_id: u32,
    /// The highest policy number given out.
    pub last_policy_id: u32,
    /// By `namespace/pod`.
    pub endpoints: BTreeMap<String, EndpointState>,
    /// Numbers of peers.
    pub peers: PeerIds,
    /// Local addresses of resolvers.
    pub resolvers: BTreeMap<IpAddr, IpAddr>,
    /// The last good version of each object. On disk it has a file of its own, [`super::journal`].
    #[serde(default, skip_serializing)]
    pub last_good: LastGood,
}

/// What the kernel's rows of one endpoint are read by.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EndpointState {
    /// Its number.
    pub id: EndpointId,
    /// The name of its interface; empty: not known. Where the kernel has its row on one of another name, somebody renamed that.
    #[serde(default)]
    pub interface: String,
    /// Its row in `budgets`.
    pub slot: u32,
    /// Its rules' number.
    pub policy_id: u32,
    /// How often its policy has changed.
    pub generation: u32,
    /// What each bit of its grants means.
    pub groups: Vec<Group>,
}

impl State {
    /// Whether, once `written`, this needs not be written: all that the kernel's rows are read by is the same. Generations
    /// are not among it: after a restart they go on from those in the kernel.
    pub fn is_as(&self, written: &State) -> bool {
        let same = |(a, b): ((&String, &EndpointState), (&String, &EndpointState))| {
            a.0 == b.0
                && (a.1.policy_id, a.1.id, a.1.slot) == (b.1.policy_id, b.1.id, b.1.slot)
                && a.1.groups == b.1.groups
                && a.1.interface == b.1.interface
        };
        (self.last_endpoint_id, self.last_policy_id) == (written.last_endpoint_id, written.last_policy_id)
            && self.resolvers == written.resolvers
            && self.peers == written.peers
            && self.endpoints.len() == written.endpoints.len()
            && self.endpoints.iter().zip(&written.endpoints).all(same)
    }
}

/// How reading went.
#[derive(Debug)]
pub enum Read {
    /// The file was good.
    Good(State),
    /// There is none: a first start.
    Missing,
    /// It was damaged, or of another version; it has been renamed to this path.
    Damaged(PathBuf, String),
}

fn path(directory: &Path) -> PathBuf {
    directory.join("state.json")
}

/// Reads the state; a file that is not good is set aside.
///
/// # Errors
/// The file is there and can't be read, or can't be set aside.
pub fn read(directory: &Path) -> io::Result<Read> {
    let path = path(directory);
    let Some(text) = files::read(&path)? else { return Ok(Read::Missing) };
    match text.and_then(|text| parse(&text)) {
        Ok(state) => Ok(Read::Good(state)),
        Err(why) => {
            let aside = path.with_extension("json.damaged");
            files::set_aside(&path, &aside)?;
            Ok(Read::Damaged(aside, why))
        }
    }
}

/// What a file says.
///
/// # Errors
/// It is not as it was written, and why.
pub fn parse(text: &[u8]) -> Result<State, String> {
    let split = text.iter().position(|octet| *octet == b'\n').ok_or("no header line")?;
    let (header, body) = (&text[..split], &text[split + 1..]);
    let header = std::str::from_utf8(header).map_err(|error| error.to_string())?;
    let wanted = format!("namegate-state {VERSION} {:08x}", crc32fast::hash(body));
    if header != wanted {
        return Err(format!("the header is {header:?}, the body asks for {wanted:?}"));
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// The state as a file says it; [`parse`] reads it again.
///
/// # Errors
/// None that a state can cause; JSON has them for other types.
pub fn text(state: &State) -> serde_json::Result<Vec<u8>> {
    let body = serde_json::to_vec(state)?;
    Ok([format!("namegate-state {VERSION} {:08x}\n", crc32fast::hash(&body)).as_bytes(), &body].concat())
}

/// Writes the state: to a file beside, renamed over the old one.
///
/// # Errors
/// It is not written: the kernel must not use what is new in it.
pub fn write(directory: &Path, state: &State) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let path = path(directory);
    let beside = path.with_extension("json.new");
    let mut file = files::create(&beside)?;
    file.write_all(&text(state)?)?;
    fs::rename(&beside, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_state() -> State {
        State { last_endpoint_id: 7, last_policy_id: 9, ..State::default() }
    }

    #[test]
    fn what_was_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &some_state()).unwrap();
        assert!(matches!(read(directory.path()).unwrap(), Read::Good(state) if state == some_state()));
    }

    #[test]
    fn a_first_start_has_no_state() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(read(directory.path()).unwrap(), Read::Missing));
    }

    #[test]
    fn every_damaged_octet_is_noticed_and_the_file_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &some_state()).unwrap();
        let good = fs::read(path(directory.path())).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(path(directory.path()), &bad).unwrap();
            match read(directory.path()).unwrap() {
                Read::Damaged(aside, _) => assert_eq!(fs::read(aside).unwrap(), bad),
                other => panic!("octet {at}: {other:?}"),
            }
            assert!(!path(directory.path()).exists());
        }
    }

    #[test]
    fn a_truncated_file_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &some_state()).unwrap();
        let good = fs::read(path(directory.path())).unwrap();
        for len in 0..good.len() {
            fs::write(path(directory.path()), &good[..len]).unwrap();
            assert!(matches!(read(directory.path()).unwrap(), Read::Damaged(..)), "at {len}");
        }
    }
}
