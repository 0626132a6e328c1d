//! What outlives the process: the kernel's rows do, and a checkpoint says which names they are for.
//!
//! **The rows are the truth.** A name is believed on an address only as far as the kernel's row bears it out; what the row
//! holds beyond that stays open for nobody's name, until its deadline or until the group is not what it was.

use std::net::IpAddr;
use std::ops::Bound;

use super::{Claim, FqdnTable, Holder};
use crate::engine::bits::Bits;
use crate::engine::grant::{GrantWrite, Held, MonoNs, SLOTS, Slot, pack};
use crate::engine::name::Name;
use crate::engine::pattern::{Bare, Pattern, PatternTrie};
use crate::engine::ruleset::Group;

/// The names behind one row, as a checkpoint keeps them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remembered {
    /// The row's address.
    pub address: IpAddr,
    /// [`mark`] of the row that they stand for.
    pub mark: u32,
    /// Each name, and until when it holds the address open.
    pub names: Vec<(Name, MonoNs)>,
}

/// Tells a row from what it was at another time.
pub fn mark(slots: &[Slot; SLOTS]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for slot in slots {
        slot.bits.words().into_iter().chain([slot.until.0]).for_each(|word| hasher.update(&word.to_le_bytes()));
    }
    hasher.finalize()
}

/// What the bits of rows stand for: the groups as they were written down before the kernel used them.
pub struct Meaning(PatternTrie<Bits>);

impl Meaning {
    /// The meaning of bits by these groups.
    pub fn of(groups: &[Group]) -> Meaning {
        let mut names = PatternTrie::new(Bare::Valid);
        for group in groups {
            for pattern in group.names.iter().filter_map(|text| Pattern::pattern(text).ok()) {
                names.insert(pattern, Bits::of(group.bit), None);
            }
        }
        Meaning(names)
    }

    fn bits_of(&self, name: &Name) -> Bits {
        self.0.matches(name).fold(Bits::NONE, |bits, found| bits | *found.value)
    }
}

/// Groups that a row without a name keeps when `new` takes the place of `old`: those that mean what they meant, with
/// every name that the row may have been learned for.
pub(super) fn kept(old: &[Group], new: &[Group]) -> Bits {
    let stays = |old: &&Group| {
        let new = new.iter().find(|group| group.bit == old.bit);
        new.is_some_and(|new| old.key == new.key && old.names.iter().all(|name| new.names.contains(name)))
    };
    old.iter().filter(stays).fold(Bits::NONE, |bits, group| bits | Bits::of(group.bit))
}

impl FqdnTable {
    /// Takes over a row that the kernel holds, with the names that a checkpoint has for its address. Writes nothing.
    pub fn adopt(&mut self, row: &GrantWrite, names: Option<&Remembered>, meaning: &Meaning, now: MonoNs) {
        let open = row.slots.iter().fold(Bits::NONE, |bits, slot| bits | slot.bits);
        // The row that the names were written down for: they may hold it longer than it says (see `pack`).
        let same = names.is_some_and(|names| names.mark == mark(&row.slots));
        let claim = |(name, until): &(Name, MonoNs)| {
            let bits = meaning.bits_of(name) & open;
            let borne_out = row.slots.iter().filter(|slot| slot.bits.meets(bits)).map(|slot| slot.until).min()?;
            Some(Claim { name: name.clone(), bits, until: if same { *until } else { borne_out.min(*until) } })
        };
        let claims: Vec<Claim> = names.iter().flat_map(|names| &names.names).filter_map(claim).collect();
        let unnamed = row.slots.iter().filter_map(|slot| {
            let lasting = claims.iter().filter(|claim| claim.until >= slot.until);
            let bits = slot.bits & !lasting.fold(Bits::NONE, |bits, claim| bits | claim.bits);
            (!bits.is_empty()).then_some(Slot { bits, ..*slot })
        });
        let unnamed: Vec<Slot> = unnamed.collect();
        let mut deadlines: Vec<(MonoNs, Bits)> = claims.iter().map(|claim| (claim.until, claim.bits)).collect();
        deadlines.extend(unnamed.iter().map(|slot| (slot.until, slot.bits)));
        if deadlines.is_empty() {
            return;
        }
        let held = Held { slots: row.slots, rewrite_at: pack(&mut deadlines, now).rewrite_at };
        claims.iter().for_each(|claim| self.link(&claim.name, row.address));
        self.put(row.address, Holder { claims, unnamed, held });
        self.version += 1;
    }

    /// What a checkpoint is to keep of the next `count` rows after `after`, and the last address that was looked at.
    pub fn remember(&self, after: Option<IpAddr>, count: usize) -> (Vec<Remembered>, Option<IpAddr>) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        let mut remembered = Vec::new();
        for (&address, holder) in self.addresses.range((from, Bound::Unbounded)).take(count) {
            last = Some(address);
            if !holder.claims.is_empty() {
                let names = holder.claims.iter().map(|claim| (claim.name.clone(), claim.until)).collect();
                remembered.push(Remembered { address, mark: mark(&holder.held.slots), names });
            }
        }
        (remembered, last)
    }
}
