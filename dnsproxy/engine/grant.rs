//! Grants: a workload may reach an address until a moment.

use std::net::IpAddr;
use std::time::Duration;

use super::bits::Bits;

/// A moment on the kernel's monotonic clock, nanoseconds since boot without suspend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MonoNs(pub u64);

impl MonoNs {
    /// The moment `later`.
    pub fn after(self, later: Duration) -> MonoNs {
        MonoNs(self.0.saturating_add(u64::try_from(later.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The moment `earlier`, at least 1: 0 marks an unused slot.
    pub fn before(self, earlier: Duration) -> MonoNs {
        MonoNs(self.0.saturating_sub(u64::try_from(earlier.as_nanos()).unwrap_or(u64::MAX)).max(1))
    }

    /// The first whole second that is not before it.
    pub fn second_up(self) -> MonoNs {
        MonoNs(self.0.checked_next_multiple_of(1_000_000_000).unwrap_or(u64::MAX))
    }
}

/// How many deadlines one grant can hold in the kernel.
pub const SLOTS: usize = 4;

/// How long before a shortened deadline passes its row is due to be written again.
///
/// The sweep must run more often than this.
pub const REWRITE_LEAD: Duration = Duration::from_secs(3);

/// Groups that may be reached until a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot {
    /// The groups.
    pub bits: Bits,
    /// Until when; 0 for an unused slot.
    pub until: MonoNs,
}

/// What the kernel is to hold for one (endpoint, address). All slots unused: delete the row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GrantWrite {
    /// The address that may be reached.
    pub address: IpAddr,
    /// Distinct deadlines, the longest first.
    pub slots: [Slot; SLOTS],
}

impl GrantWrite {
    /// Whether it deletes the row.
    pub fn deletes(&self) -> bool {
        self.slots == [Slot::default(); SLOTS]
    }

    /// The groups that may be reached at `now`, as the kernel reckons.
    pub fn open_at(&self, now: MonoNs) -> Bits {
        open_at(&self.slots, now)
    }
}

/// The groups that `slots` open at `now`, as the kernel reckons: a deadline is past at its own moment.
pub fn open_at(slots: &[Slot; SLOTS], now: MonoNs) -> Bits {
    slots.iter().filter(|slot| slot.until > now).fold(Bits::NONE, |bits, slot| bits | slot.bits)
}

/// What one row holds, and when it is due to be written again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// The slots.
    pub slots: [Slot; SLOTS],
    /// Some deadlines did not fit and were shortened: write again at this moment.
    pub rewrite_at: Option<MonoNs>,
}

/// Packs any number of (deadline, groups) into the slots of one row.
///
/// A claim adds a slot only if it adds groups to those that last longer. With more than fit, the longest are stored
/// with the earliest deadline among them. **Invariant:** a row is never broader at any moment than the claims are.
///
/// What is past stays in one slot of its own, for flows that were opened while it was not (I9: a flow survives
/// its TTL, but not its rule).
pub fn pack(claims: &mut [(MonoNs, Bits)], now: MonoNs) -> Held {
    claims.sort_unstable_by_key(|claim| std::cmp::Reverse(*claim));
    let mut open = Bits::NONE;
    let mut steps: Vec<Slot> = Vec::with_capacity(SLOTS);
    let mut past = Slot::default();
    for &(until, bits) in claims.iter() {
        let added = bits & !open;
        if added.is_empty() {
            continue;
        }
        open |= added;
        if until <= now {
            past = Slot { bits: past.bits | added, until: until.max(MonoNs(1)) };
        } else if let Some(last) = steps.last_mut().filter(|last| last.until == until) {
            last.bits |= added;
        } else {
            steps.push(Slot { bits: added, until });
        }
    }
    let room = SLOTS - usize::from(past != Slot::default());
    let mut rewrite_at = None;
    if steps.len() > room {
        let shortened = steps.len() - room;
        let first = Slot {
            bits: steps[..=shortened].iter().fold(Bits::NONE, |bits, step| bits | step.bits),
            until: steps[shortened].until,
        };
        steps.splice(..=shortened, [first]);
        rewrite_at = Some(first.until.before(REWRITE_LEAD));
    }
    if past != Slot::default() {
        steps.push(past);
    }
    let mut slots = [Slot::default(); SLOTS];
    slots[..steps.len()].copy_from_slice(&steps);
    Held { slots, rewrite_at }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claimed(claims: &[(MonoNs, Bits)], at: MonoNs) -> Bits {
        claims.iter().filter(|(until, _)| *until > at).fold(Bits::NONE, |bits, claim| bits | claim.1)
    }

    #[track_caller]
    fn packs(claims: &[(u64, u128)], now: u64, slots: &[(u64, u128)], rewrite_at: Option<u64>) {
        let mut claims: Vec<_> = claims.iter().map(|&(until, bits)| (MonoNs(until), Bits(bits))).collect();
        let held = pack(&mut claims, MonoNs(now));
        let used: Vec<_> =
            held.slots.iter().filter(|slot| slot.until.0 > 0).map(|slot| (slot.until.0, slot.bits.0)).collect();
        assert_eq!((used, held.rewrite_at), (slots.to_vec(), rewrite_at.map(MonoNs)));
    }

    #[test]
    fn a_claim_needs_a_slot_only_if_it_adds_a_group() {
        packs(&[(50, 0b10), (90, 0b10), (70, 0b10)], 10, &[(90, 0b10)], None);
        packs(&[(50, 0b110), (90, 0b10)], 10, &[(90, 0b10), (50, 0b100)], None);
        packs(&[(90, 0b100), (90, 0b10)], 10, &[(90, 0b110)], None);
        packs(&[], 10, &[], None);
    }

    #[test]
    fn what_is_past_stays_for_flows_in_one_slot() {
        packs(&[(5, 0b10), (4, 0b100), (90, 0b1000)], 10, &[(90, 0b1000), (4, 0b110)], None);
        packs(&[(5, 0b10), (90, 0b10)], 10, &[(90, 0b10)], None);
    }

    #[test]
    fn the_longest_are_shortened_when_five_do_not_fit() {
        let second = 1_000_000_000;
        let claims = [(90, 2), (80, 4), (70, 8), (60, 16), (50, 32)].map(|(until, bits)| (until * second, bits));
        let slots = [(80, 6), (70, 8), (60, 16), (50, 32)].map(|(until, bits)| (until * second, bits));
        packs(&claims, second, &slots, Some(77 * second));
    }

    proptest! {
        #[test]
        fn a_row_is_never_broader_than_its_claims_and_exact_when_they_fit(
            mut claims in prop::collection::vec((1u64..40, 0u32..9), 0..12),
            now in 0u64..40,
        ) {
            let mut claims: Vec<_> = claims.drain(..).map(|(until, bit)| (MonoNs(until), Bits(1 << bit))).collect();
            let held = pack(&mut claims, MonoNs(now));
            for at in now..41 {
                let (open, may) = (open_at(&held.slots, MonoNs(at)), claimed(&claims, MonoNs(at)));
                prop_assert_eq!(open & !may, Bits::NONE);
                if held.rewrite_at.is_none() {
                    prop_assert_eq!(open, may);
                }
            }
            prop_assert_eq!(open_at(&held.slots, MonoNs(now)), claimed(&claims, MonoNs(now)), "nothing is missing now");
            let all = held.slots.iter().fold(Bits::NONE, |bits, slot| bits | slot.bits);
            let claimed = claims.iter().fold(Bits::NONE, |bits, claim| bits | claim.1);
            prop_assert_eq!(all, claimed, "flows keep their groups");
            let mut deadlines: Vec<_> = held.slots.iter().map(|slot| slot.until).collect();
            deadlines.retain(|until| *until != MonoNs(0));
            prop_assert!(deadlines.windows(2).all(|pair| pair[0] > pair[1]), "distinct, the longest first");
        }
    }
}
