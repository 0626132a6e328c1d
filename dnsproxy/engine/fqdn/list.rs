//! What a workload has learned, for people: page by page, so that no lock is held for long.

use std::net::IpAddr;
use std::ops::Bound;

use super::FqdnTable;
use crate::engine::bits::Bits;
use crate::engine::grant::{MonoNs, Slot};
use crate::engine::name::Name;

/// How many names are looked at before a page ends, whatever was found.
const LOOKED_AT: usize = 10_000;

/// One name and what it holds open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The name.
    pub name: Name,
    /// Its groups.
    pub bits: Bits,
    /// Its addresses, sorted, and until when; past for those that are kept for connections that live.
    pub addresses: Vec<(IpAddr, MonoNs)>,
}

/// A part of the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// By name, in the order of [`Name`].
    pub names: Vec<Listed>,
    /// Where the next page begins: after this name. `None`: there is no more.
    pub next: Option<Name>,
}

impl FqdnTable {
    /// At most `count` of the names after `after` that `pick` picks.
    pub fn list(&self, after: Option<&Name>, count: usize, pick: &dyn Fn(&Name) -> bool) -> Page {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut names = Vec::new();
        let mut rest = self.names.range::<Name, _>((from, Bound::Unbounded));
        let mut last = None;
        for (name, addresses) in rest.by_ref().take(LOOKED_AT) {
            last = Some(name);
            if pick(name) {
                let claims: Vec<_> = addresses.iter().filter_map(|at| Some((*at, self.claim(*at, name)?))).collect();
                let bits = claims.iter().fold(Bits::NONE, |bits, (_, claim)| bits | claim.bits);
                let addresses = claims.into_iter().map(|(address, claim)| (address, claim.until)).collect();
                names.push(Listed { name: name.clone(), bits, addresses });
            }
            if names.len() >= count {
                break;
            }
        }
        Page { names, next: last.filter(|_| rest.next().is_some()).cloned() }
    }

    /// What an earlier process left and no name is known for: sorted by address.
    pub fn unnamed(&self) -> impl Iterator<Item = (IpAddr, &[Slot])> + '_ {
        let unnamed = self.addresses.iter().filter(|(_, holder)| !holder.unnamed.is_empty());
        unnamed.map(|(address, holder)| (*address, &holder.unnamed[..]))
    }
}
