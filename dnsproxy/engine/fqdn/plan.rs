//! What is to change: made by the table, held by the kernel, then recorded.

use std::net::IpAddr;

use super::{CLAIMS_PER_ADDRESS, Claim, Full, Holder};
use crate::engine::grant::{GrantWrite, Held, MonoNs, Slot, pack};
use crate::engine::name::Name;

/// Changes that the kernel is to hold before the table does.
#[derive(Debug)]
#[must_use = "install its writes, then record it"]
pub struct Plan {
    pub(super) version: u64,
    pub(super) changes: Vec<Change>,
    pub(super) writes: Vec<GrantWrite>,
    /// After a sweep: how many addresses are kept for their flows alone.
    pub(super) deferred: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Change {
    pub address: IpAddr,
    pub edit: Edit,
    pub held: Held,
}

#[derive(Debug)]
pub(super) enum Edit {
    /// Add the claim or put it in place of the one of the same name; another that it outlasts gives way.
    Claim { claim: Claim, gives_way: Option<Name> },
    /// The claim of this name is over now. It stays for flows that live, until [`super::FqdnTable::expire`] finds none.
    Defer(Name, MonoNs),
    /// Take the claim of this name away.
    Forget(Name),
    /// These and no others.
    Replace(Vec<Claim>, Vec<Slot>),
    /// Only the slots are new.
    Repack,
}

impl Plan {
    /// What the kernel is to hold, one row an address. Rows that already hold it are not listed.
    pub fn writes(&self) -> &[GrantWrite] {
        &self.writes
    }

    pub(super) fn of(version: u64) -> Plan {
        Plan { version, changes: Vec::new(), writes: Vec::new(), deferred: None }
    }

    /// Adds a change of one address, and the write that it takes.
    pub(super) fn push(&mut self, address: IpAddr, edit: Edit, holder: Option<&Holder>, now: MonoNs) {
        let (known, unnamed) = holder.map_or((&[][..], &[][..]), |holder| (&holder.claims, &holder.unnamed));
        let mut deadlines = Vec::with_capacity(known.len() + unnamed.len() + 1);
        let of = |claim: &Claim| (claim.until, claim.bits);
        match &edit {
            Edit::Claim { claim, gives_way } => {
                let stays = |known: &&Claim| known.name != claim.name && Some(&known.name) != gives_way.as_ref();
                deadlines.extend(known.iter().filter(stays).map(of));
                deadlines.push(of(claim));
            }
            Edit::Defer(name, at) => {
                let until = |known: &Claim| if known.name == *name { known.until.min(*at) } else { known.until };
                deadlines.extend(known.iter().map(|known| (until(known), known.bits)));
            }
            Edit::Forget(name) => deadlines.extend(known.iter().filter(|known| known.name != *name).map(of)),
            Edit::Replace(claims, _) => deadlines.extend(claims.iter().map(of)),
            Edit::Repack => deadlines.extend(known.iter().map(of)),
        }
        let unnamed = if let Edit::Replace(_, unnamed) = &edit { unnamed } else { unnamed };
        deadlines.extend(unnamed.iter().map(|slot| (slot.until, slot.bits)));
        let held = pack(&mut deadlines, now);
        if holder.is_none_or(|holder| holder.held.slots != held.slots) {
            self.writes.push(GrantWrite { address, slots: held.slots });
        }
        self.changes.push(Change { address, edit, held });
    }
}

impl Edit {
    /// Does it to the holder.
    pub(super) fn apply(self, holder: &mut Holder) {
        match self {
            Edit::Claim { claim, gives_way } => {
                holder.claims.retain(|known| Some(&known.name) != gives_way.as_ref());
                match holder.claims.iter_mut().find(|known| known.name == claim.name) {
                    Some(known) => *known = claim,
                    None => holder.claims.push(claim),
                }
            }
            Edit::Defer(name, at) => {
                let mine = holder.claims.iter_mut().filter(|claim| claim.name == name);
                mine.for_each(|claim| claim.until = claim.until.min(at));
            }
            Edit::Forget(name) => holder.claims.retain(|claim| claim.name != name),
            Edit::Replace(claims, unnamed) => (holder.claims, holder.unnamed) = (claims, unnamed),
            Edit::Repack => {}
        }
    }
}

/// One more name for an address that has as many as are told apart. The kernel's row stays what it should be; only a
/// reload that takes the longer-lasting name's rule away will find the other one missing: closed early, never late.
pub(super) fn squeeze(known: &[Claim], claim: Claim) -> Result<Edit, Full> {
    let covers = |wide: &Claim, narrow: &Claim| (narrow.bits & !wide.bits).is_empty() && wide.until >= narrow.until;
    if known.iter().any(|known| covers(known, &claim)) {
        return Ok(Edit::Repack);
    }
    match known.iter().filter(|known| covers(&claim, known)).min_by_key(|known| known.until) {
        Some(covered) => Ok(Edit::Claim { gives_way: Some(covered.name.clone()), claim }),
        None => Err(Full { what: "names on one address", found: known.len() + 1, limit: CLAIMS_PER_ADDRESS }),
    }
}
