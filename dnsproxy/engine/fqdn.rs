//! The stage "grant": which names one workload has learned, on which addresses, until when.
//!
//! The table plans, the kernel installs, the table records: [`FqdnTable::plan`] and its siblings change nothing; what
//! they return is recorded once the kernel holds it. One lock spans the three steps, or a short answer could overtake a
//! long one.
//!
//! A claim whose deadline is past opens nothing: the kernel admits no new flow by it. It stays while a flow to its address
//! lives, so that the flow keeps its rule and its name ([`FqdnTable::expire`]).

mod adopt;
mod list;
mod plan;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::answer::Learned;
use super::bits::Bits;
use super::grant::{GrantWrite, Held, MonoNs, SLOTS, Slot};
use super::name::Name;
use super::ruleset::{Group, RuleSet};

pub use adopt::{Meaning, Remembered, mark};
pub use list::{Listed, Page};
pub use plan::Plan;
use plan::{Change, Edit, squeeze};

/// How TTLs become deadlines: now + max(TTL, `min_ttl`) + `grace`, up to the next whole second: the same answer twice in a
/// second is written once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// The least TTL that a grant is reckoned with. 5 s unless configured, from 0 to 86 400 s.
    pub min_ttl: Duration,
    /// What comes on top: clients connect some time after they resolve. 55 s unless configured.
    pub grace: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { min_ttl: Duration::from_secs(5), grace: Duration::from_secs(55) }
    }
}

/// How much one workload can hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caps {
    /// Addresses of one name; above that the soonest to end are over. Cilium's `endpoint-max-ip-per-hostname`, 1 000.
    pub addresses_per_name: usize,
    /// Addresses that are over and stay for flows that live. Cilium's `tofqdns-max-deferred-connection-deletes`, 10 000.
    pub deferred: usize,
    /// Rows in the kernel; above that nothing more is granted. 16 384.
    pub grants: usize,
    /// Pairs of name and address. 65 536, about 100 octets each. Above that a name on an address that others hold is
    /// one with them; elsewhere nothing more is granted.
    pub claims: usize,
}

impl Default for Caps {
    fn default() -> Caps {
        Caps { addresses_per_name: 1_000, deferred: 10_000, grants: 16_384, claims: 65_536 }
    }
}

/// The longest TTL that a grant is reckoned with, whatever an answer says: a week (RFC 8767 section 4).
pub const LONGEST_TTL: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Names on one address that are told apart; above that, one whose groups another holds for longer gives way.
pub const CLAIMS_PER_ADDRESS: usize = 512;

/// There is no room for what an answer would grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{found} {what} for this workload; the limit is {limit}")]
pub struct Full {
    /// What there would be too much of.
    pub what: &'static str,
    /// How many there would be.
    pub found: usize,
    /// How many there can be.
    pub limit: usize,
}

/// One name holds one address open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The name that was asked for.
    pub name: Name,
    /// The groups whose selectors select it.
    pub bits: Bits,
    /// Until when.
    pub until: MonoNs,
}

/// What one workload has learned.
#[derive(Debug, Default)]
pub struct FqdnTable {
    caps: Caps,
    addresses: BTreeMap<IpAddr, Holder>,
    /// Addresses of each name, sorted.
    names: BTreeMap<Name, Vec<IpAddr>>,
    claims: usize,
    rewrites: BTreeSet<(MonoNs, IpAddr)>,
    /// Counts what was recorded: a plan is good for the state that it was made from.
    version: u64,
    /// Addresses that flows went on with at the last sweep.
    live: HashSet<IpAddr>,
    /// Addresses that are over and stay for their flows: as many as the last sweep found, and those since.
    deferred: usize,
    /// See [`FqdnTable::epoch`].
    epoch: Arc<AtomicU64>,
}

/// One row of the kernel and the claims behind it.
#[derive(Debug, Default)]
struct Holder {
    claims: Vec<Claim>,
    /// What an earlier process left and no name is known for.
    unnamed: Vec<Slot>,
    held: Held,
}

impl Holder {
    fn is_past(&self, now: MonoNs) -> bool {
        self.claims.iter().any(|claim| claim.until <= now) || self.unnamed.iter().any(|slot| slot.until <= now)
    }
}

/// A reload in two plans: `widened` before the endpoint is flipped to its new policy id, `narrowed` after.
///
/// The table's lock is held from [`FqdnTable::regroup`] until both are recorded, and the workload's rule set is
/// replaced in between, so that no query plans with half of it.
#[derive(Debug)]
pub struct Regroup {
    /// Old and new groups.
    pub widened: Plan,
    /// New groups only. To be recorded after `widened`.
    pub narrowed: Plan,
}

impl FqdnTable {
    /// An empty table.
    pub fn new(caps: Caps) -> FqdnTable {
        FqdnTable { caps, ..FqdnTable::default() }
    }

    /// Other limits from now on. What is there already stays until its deadline.
    pub fn set_caps(&mut self, caps: Caps) {
        self.caps = caps;
    }

    /// Raised before anything that the workload may reach is taken away or ends earlier: a reply that was good in one epoch
    /// may be given again in the same epoch without a look at the table, as long as no deadline behind it passes.
    ///
    /// Read it under the table's lock when the reply is made. It is raised while the plan is made, hence before the kernel
    /// hears of it and under the lock that is held until that is recorded.
    pub fn epoch(&self) -> Arc<AtomicU64> {
        self.epoch.clone()
    }

    /// Forgets everything, as after the kernel's rows were deleted.
    pub fn clear(&mut self) {
        self.raise_epoch();
        *self = FqdnTable { epoch: self.epoch.clone(), version: self.version + 1, ..FqdnTable::new(self.caps) };
    }

    /// What the kernel must hold before an answer that taught `learned` may leave.
    ///
    /// A shorter TTL never shortens what the same name already has. A name that no selector selects grants nothing.
    ///
    /// # Errors
    /// There is no room; nothing of it may be granted.
    pub fn plan(&self, learned: &Learned, rules: &RuleSet, now: MonoNs, timing: &Timing) -> Result<Plan, Full> {
        let mut plan = Plan::of(self.version);
        let bits = rules.groups_of(&learned.name);
        if bits.is_empty() {
            return Ok(plan);
        }
        let ttl = Duration::from_secs(learned.ttl.into()).min(LONGEST_TTL).max(timing.min_ttl);
        let until = now.after(ttl).after(timing.grace).second_up();
        self.make_room(learned, now, &mut plan)?;
        let mut rows = self.addresses.len();
        let mut claims = self.claims;
        for &address in &learned.addresses {
            let holder = self.addresses.get(&address);
            let known = holder.map_or(&[][..], |holder| &holder.claims);
            let mine = known.iter().find(|claim| claim.name == learned.name);
            let until = mine.map_or(until, |claim| claim.until.max(until));
            if mine.is_some_and(|claim| claim.bits == bits && claim.until == until) {
                continue;
            }
            let claim = Claim { name: learned.name.clone(), bits, until };
            rows += usize::from(holder.is_none());
            claims += usize::from(mine.is_none());
            let edit = if mine.is_some() {
                Edit::Claim { claim, gives_way: None }
            } else if known.len() >= CLAIMS_PER_ADDRESS {
                claims -= 1;
                squeeze(known, claim)?
            } else if claims > self.caps.claims
                && let Ok(squeezed) = squeeze(known, claim.clone())
            {
                claims -= 1;
                squeezed
            } else {
                Edit::Claim { claim, gives_way: None }
            };
            plan.push(address, edit, holder, now);
        }
        // What makes room above only ever frees claims, and rows only of the same name.
        let freed = plan.writes.iter().filter(|write| write.deletes()).count();
        within("grants", rows - freed, self.caps.grants)?;
        within("names on addresses", claims, self.caps.claims)?;
        Ok(plan)
    }

    /// Until when the kernel holds all of it, once its plan was recorded; `None` when another name stands in for it.
    pub fn held_until(&self, learned: &Learned) -> Option<MonoNs> {
        let mut least = MonoNs(u64::MAX);
        for address in &learned.addresses {
            least = least.min(self.claim(*address, &learned.name)?.until);
        }
        Some(least)
    }

    /// Changes the table as the kernel was changed.
    ///
    /// # Panics
    /// Something was recorded since the plan was made: the lock was not held.
    pub fn record(&mut self, plan: Plan) {
        assert_eq!(plan.version, self.version, "a plan is recorded on the state that it was made from");
        self.deferred = plan.deferred.unwrap_or(self.deferred);
        if plan.changes.is_empty() {
            return;
        }
        self.version += 1;
        for change in plan.changes {
            self.apply(change);
        }
    }

    /// What the kernel held for the plan's addresses before it, to put back when installing failed half-way.
    pub fn before(&self, plan: &Plan) -> Vec<GrantWrite> {
        let row = |write: &GrantWrite| GrantWrite {
            address: write.address,
            slots: self.addresses.get(&write.address).map_or([Slot::default(); SLOTS], |holder| holder.held.slots),
        };
        plan.writes.iter().map(row).collect()
    }

    /// Rows whose shortened deadline passes soon, packed anew. To be asked more often than
    /// [`super::grant::REWRITE_LEAD`] is long.
    pub fn rewrites_due(&self, now: MonoNs) -> Plan {
        let mut plan = Plan::of(self.version);
        for &(_, address) in self.rewrites.range(..=(now, IpAddr::from([0xff; 16]))) {
            let holder = &self.addresses[&address];
            plan.push(address, Edit::Repack, Some(holder), now);
        }
        plan
    }

    /// The addresses that flows went on with a moment ago. Before [`FqdnTable::expire`].
    pub fn set_live(&mut self, live: HashSet<IpAddr>) {
        self.live = live;
    }

    /// Forgets what was past at `now` when no flow to the address lives, and of the rest the longest past above the cap.
    ///
    /// `now` is no later than the moment that [`FqdnTable::set_live`] speaks of: what was past by then admits no new flow.
    pub fn expire(&self, now: MonoNs) -> Plan {
        let mut plan = Plan::of(self.version);
        let past = || self.addresses.iter().filter(|(_, holder)| holder.is_past(now));
        let since = |holder: &Holder| {
            let claims = holder.claims.iter().map(|claim| claim.until);
            claims.chain(holder.unnamed.iter().map(|slot| slot.until)).filter(|until| *until <= now).max()
        };
        let mut deferred: Vec<(Option<MonoNs>, IpAddr)> = past()
            .filter(|(address, _)| self.live.contains(*address))
            .map(|(address, holder)| (since(holder), *address))
            .collect();
        deferred.sort_unstable();
        let excess = deferred.len().saturating_sub(self.caps.deferred);
        let mut kept: Vec<IpAddr> = deferred.split_off(excess).into_iter().map(|(_, address)| address).collect();
        kept.sort_unstable();
        for (&address, holder) in past().filter(|(address, _)| kept.binary_search(address).is_err()) {
            let claims = holder.claims.iter().filter(|claim| claim.until > now).cloned().collect();
            let unnamed = holder.unnamed.iter().filter(|slot| slot.until > now).copied().collect();
            plan.push(address, Edit::Replace(claims, unnamed), Some(holder), now);
        }
        if !plan.changes.is_empty() {
            self.raise_epoch();
        }
        plan.deferred = Some(kept.len());
        plan
    }

    /// The rule set changed, and no name means other groups now: verdicts on names without a grant may be others.
    pub fn rules_changed(&self) {
        self.raise_epoch();
    }

    /// What a new rule set makes of every grant: the groups of each name are asked for again. Without a name, a grant keeps
    /// the groups that mean what they meant in `before`.
    pub fn regroup(&self, rules: &RuleSet, before: &[Group], now: MonoNs) -> Regroup {
        self.raise_epoch(); // names without a grant have new verdicts, too
        let (mut widened, mut narrowed) = (Plan::of(self.version), Plan::of(self.version));
        let groups: BTreeMap<&Name, Bits> = self.names.keys().map(|name| (name, rules.groups_of(name))).collect();
        let kept = adopt::kept(before, &rules.groups);
        for (&address, holder) in &self.addresses {
            let unnamed = holder.unnamed.iter().map(|slot| Slot { bits: slot.bits & kept, ..*slot });
            let unnamed: Vec<Slot> = unnamed.filter(|slot| !slot.bits.is_empty()).collect();
            if unnamed == holder.unnamed && holder.claims.iter().all(|claim| groups[&claim.name] == claim.bits) {
                continue;
            }
            let with = |bits: &dyn Fn(&Claim) -> Bits| -> Edit {
                let claims = holder.claims.iter().map(|claim| Claim { bits: bits(claim), ..claim.clone() });
                Edit::Replace(claims.filter(|claim| !claim.bits.is_empty()).collect(), unnamed.clone())
            };
            widened.push(address, with(&|claim| claim.bits | groups[&claim.name]), Some(holder), now);
            narrowed.push(address, with(&|claim| groups[&claim.name]), Some(holder), now);
            let wide = widened.changes.last().map(|change| change.held.slots);
            let narrow = narrowed.changes.last().map(|change| change.held.slots);
            // What it is to be afterwards is held against what it is in between.
            narrowed.writes.retain(|write| write.address != address);
            if let Some(slots) = narrow.filter(|_| narrow != wide) {
                narrowed.writes.push(GrantWrite { address, slots });
            }
        }
        if !widened.changes.is_empty() {
            narrowed.version += 1;
        }
        Regroup { widened, narrowed }
    }

    /// Every deadline earlier by `by`: the machine slept, and its monotonic clock with it.
    pub fn shorten(&self, by: Duration, now: MonoNs) -> Plan {
        self.raise_epoch();
        let mut plan = Plan::of(self.version);
        for (&address, holder) in &self.addresses {
            let claims = holder.claims.iter().map(|claim| Claim { until: claim.until.before(by), ..claim.clone() });
            let unnamed = holder.unnamed.iter().map(|slot| Slot { until: slot.until.before(by), ..*slot });
            plan.push(address, Edit::Replace(claims.collect(), unnamed.collect()), Some(holder), now);
        }
        plan
    }

    /// Every row as the kernel should hold it, by address: to compare with, or to write again.
    pub fn rows(&self) -> impl Iterator<Item = GrantWrite> + '_ {
        self.addresses.iter().map(|(&address, holder)| GrantWrite { address, slots: holder.held.slots })
    }

    /// Every claim, by address.
    pub fn claims(&self) -> impl Iterator<Item = (IpAddr, &Claim)> + '_ {
        self.addresses.iter().flat_map(|(&address, holder)| holder.claims.iter().map(move |claim| (address, claim)))
    }

    /// The names that hold `address`, in the order they were learned.
    pub fn names_of(&self, address: IpAddr) -> impl Iterator<Item = &Name> + '_ {
        self.addresses.get(&address).into_iter().flat_map(|holder| holder.claims.iter().map(|claim| &claim.name))
    }

    /// How many rows the kernel holds for this workload.
    pub fn grants(&self) -> usize {
        self.addresses.len()
    }

    /// Changes whenever something is recorded that changes it.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether flows to the address went on at the last sweep.
    pub fn is_live(&self, address: IpAddr) -> bool {
        self.live.contains(&address)
    }

    /// How many names are known.
    pub fn names(&self) -> usize {
        self.names.len()
    }

    fn raise_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// The soonest to end of the name's old addresses are over when there would be too many. What a flow may go on with is
    /// not forgotten, as long as there is room for it: those first that had one at the last sweep.
    fn make_room(&self, learned: &Learned, now: MonoNs, plan: &mut Plan) -> Result<(), Full> {
        let limit = self.caps.addresses_per_name;
        within("addresses in one answer", learned.addresses.len(), limit)?;
        let known = self.names.get(&learned.name).map_or(&[][..], Vec::as_slice);
        if known.len() + learned.addresses.len() <= limit {
            return Ok(());
        }
        let mut old: Vec<(MonoNs, IpAddr)> = known
            .iter()
            .filter(|address| learned.addresses.binary_search(address).is_err())
            .filter_map(|&address| Some((self.claim(address, &learned.name)?.until, address)))
            .filter(|(until, _)| *until > now)
            .collect();
        let excess = (old.len() + learned.addresses.len()).saturating_sub(limit);
        if excess == 0 {
            return Ok(());
        }
        self.raise_epoch();
        old.sort_unstable();
        old.truncate(excess);
        old.sort_by_key(|(_, address)| !self.live.contains(address));
        let room = self.caps.deferred.saturating_sub(self.deferred);
        for (at, &(_, address)) in old.iter().enumerate() {
            let name = learned.name.clone();
            let edit = if at < room { Edit::Defer(name, now.max(MonoNs(1))) } else { Edit::Forget(name) };
            plan.push(address, edit, self.addresses.get(&address), now);
        }
        plan.deferred = Some(self.deferred + excess.min(room));
        Ok(())
    }

    fn claim(&self, address: IpAddr, name: &Name) -> Option<&Claim> {
        self.addresses.get(&address)?.claims.iter().find(|claim| claim.name == *name)
    }

    fn apply(&mut self, change: Change) {
        let Change { address, edit, held } = change;
        let mut holder = self.addresses.remove(&address).unwrap_or_default();
        if let Some(at) = holder.held.rewrite_at {
            self.rewrites.remove(&(at, address));
        }
        self.claims -= holder.claims.len();
        match &edit {
            Edit::Claim { claim, gives_way } => {
                self.link(&claim.name, address);
                gives_way.iter().for_each(|name| self.unlink(name, address));
            }
            Edit::Forget(name) => self.unlink(name, address),
            Edit::Replace(claims, _) => {
                let gone = holder.claims.iter().filter(|gone| claims.iter().all(|claim| claim.name != gone.name));
                gone.for_each(|gone| self.unlink(&gone.name, address));
            }
            Edit::Defer(..) | Edit::Repack => {}
        }
        edit.apply(&mut holder);
        if !holder.claims.is_empty() || !holder.unnamed.is_empty() {
            self.put(address, Holder { held, ..holder });
        }
    }

    fn put(&mut self, address: IpAddr, holder: Holder) {
        self.claims += holder.claims.len();
        if let Some(at) = holder.held.rewrite_at {
            self.rewrites.insert((at, address));
        }
        self.addresses.insert(address, holder);
    }

    fn link(&mut self, name: &Name, address: IpAddr) {
        let Some(addresses) = self.names.get_mut(name) else {
            return drop(self.names.insert(name.clone(), vec![address]));
        };
        if let Err(at) = addresses.binary_search(&address) {
            addresses.insert(at, address);
        }
    }

    fn unlink(&mut self, name: &Name, address: IpAddr) {
        if let Some(addresses) = self.names.get_mut(name) {
            if let Ok(at) = addresses.binary_search(&address) {
                addresses.remove(at);
            }
            if addresses.is_empty() {
                self.names.remove(name);
            }
        }
    }
}

fn within(what: &'static str, found: usize, limit: usize) -> Result<(), Full> {
    if found > limit { Err(Full { what, found, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
