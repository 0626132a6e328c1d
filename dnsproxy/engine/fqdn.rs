//! The stage "grant": which names one workload has learned, on which addresses, until when.
//!
//! The table plans, the kernel installs, the table records: [`FqdnTable::plan`] and its siblings change nothing; what
//! they return is recorded once the kernel holds it. One lock spans the three steps, or a short answer could overtake a
//! long one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::answer::Learned;
use super::bits::Bits;
use super::grant::{GrantWrite, Held, MonoNs, SLOTS, Slot, pack};
use super::name::Name;
use super::ruleset::RuleSet;

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
    /// Addresses of one name; above that the soonest to end give way. Cilium's `endpoint-max-ip-per-hostname`, 1 000.
    pub addresses_per_name: usize,
    /// Rows in the kernel; above that nothing more is granted. 16 384.
    pub grants: usize,
    /// Pairs of name and address. 65 536, about 100 octets each.
    pub claims: usize,
}

impl Default for Caps {
    fn default() -> Caps {
        Caps { addresses_per_name: 1_000, grants: 16_384, claims: 65_536 }
    }
}

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
    /// See [`FqdnTable::epoch`].
    epoch: Arc<AtomicU64>,
}

/// One row of the kernel and the claims behind it.
#[derive(Debug, Default)]
struct Holder {
    claims: Vec<Claim>,
    held: Held,
}

/// Changes that the kernel is to hold before the table does.
#[derive(Debug)]
#[must_use = "install its writes, then record it"]
pub struct Plan {
    version: u64,
    changes: Vec<Change>,
    writes: Vec<GrantWrite>,
}

#[derive(Debug)]
struct Change {
    address: IpAddr,
    edit: Edit,
    held: Held,
}

#[derive(Debug)]
enum Edit {
    /// Add the claim or put it in place of the one of the same name; another that it outlasts gives way.
    Claim { claim: Claim, gives_way: Option<Name> },
    /// Take the claim of this name away.
    Forget(Name),
    /// These claims and no others.
    Replace(Vec<Claim>),
    /// Only the slots are new.
    Repack,
}

impl Plan {
    /// What the kernel is to hold, one row an address. Rows that already hold it are not listed.
    pub fn writes(&self) -> &[GrantWrite] {
        &self.writes
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
        let mut plan = self.empty_plan(0);
        let bits = rules.groups_of(&learned.name);
        if bits.is_empty() {
            return Ok(plan);
        }
        let ttl = Duration::from_secs(learned.ttl.into()).max(timing.min_ttl);
        let until = now.after(ttl).after(timing.grace).second_up();
        self.make_room(learned, now, &mut plan)?;
        let mut rows = self.addresses.len();
        let mut claims = self.claims;
        for &address in &learned.addresses {
            let holder = self.addresses.get(&address);
            let known = holder.map_or(&[][..], |holder| &holder.claims);
            let mine = known.iter().find(|claim| claim.name == learned.name);
            let until = mine.map_or(until, |claim| claim.until.max(until));
            let claim = Claim { name: learned.name.clone(), bits, until };
            rows += usize::from(holder.is_none());
            claims += usize::from(mine.is_none());
            let edit = if mine.is_none() && known.len() >= CLAIMS_PER_ADDRESS {
                claims -= 1;
                squeeze(known, claim)?
            } else {
                Edit::Claim { claim, gives_way: None }
            };
            plan.push(address, edit, known, holder, now);
        }
        // What makes room above only ever frees claims, and rows only of the same name.
        let freed = plan.writes.iter().filter(|write| write.deletes()).count();
        within("grants", rows - freed, self.caps.grants)?;
        within("names on addresses", claims, self.caps.claims)?;
        Ok(plan)
    }

    /// Changes the table as the kernel was changed.
    ///
    /// # Panics
    /// Something was recorded since the plan was made: the lock was not held.
    pub fn record(&mut self, plan: Plan) {
        assert_eq!(plan.version, self.version, "a plan is recorded on the state that it was made from");
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
        let mut plan = self.empty_plan(0);
        for &(_, address) in self.rewrites.range(..=(now, IpAddr::from([0xff; 16]))) {
            let holder = &self.addresses[&address];
            plan.push(address, Edit::Repack, &holder.claims, Some(holder), now);
        }
        plan
    }

    /// Forgets what is past, unless `live` says that a flow to the address goes on.
    pub fn expire(&self, now: MonoNs, live: &dyn Fn(IpAddr) -> bool) -> Plan {
        let mut plan = self.empty_plan(0);
        for (&address, holder) in &self.addresses {
            if holder.claims.iter().all(|claim| claim.until > now) || live(address) {
                continue;
            }
            let left: Vec<Claim> = holder.claims.iter().filter(|claim| claim.until > now).cloned().collect();
            plan.push(address, Edit::Replace(left), &[], Some(holder), now);
        }
        if !plan.changes.is_empty() {
            self.raise_epoch();
        }
        plan
    }

    /// What a new rule set makes of every grant: the groups of each name are asked for again.
    pub fn regroup(&self, rules: &RuleSet, now: MonoNs) -> Regroup {
        self.raise_epoch(); // names without a grant have new verdicts, too
        let (mut widened, mut narrowed) = (self.empty_plan(0), self.empty_plan(1));
        let groups: BTreeMap<&Name, Bits> = self.names.keys().map(|name| (name, rules.groups_of(name))).collect();
        for (&address, holder) in &self.addresses {
            if holder.claims.iter().all(|claim| groups[&claim.name] == claim.bits) {
                continue;
            }
            let with = |bits: &dyn Fn(&Claim) -> Bits| -> Vec<Claim> {
                let claims = holder.claims.iter().map(|claim| Claim { bits: bits(claim), ..claim.clone() });
                claims.filter(|claim| !claim.bits.is_empty()).collect()
            };
            let wide = with(&|claim| claim.bits | groups[&claim.name]);
            let wide_held = held(&wide, now);
            if wide_held.slots != holder.held.slots {
                widened.writes.push(GrantWrite { address, slots: wide_held.slots });
            }
            widened.changes.push(Change { address, edit: Edit::Replace(wide), held: wide_held });
            let narrow = with(&|claim| groups[&claim.name]);
            let narrow_held = held(&narrow, now);
            if narrow_held.slots != wide_held.slots {
                narrowed.writes.push(GrantWrite { address, slots: narrow_held.slots });
            }
            narrowed.changes.push(Change { address, edit: Edit::Replace(narrow), held: narrow_held });
        }
        Regroup { widened, narrowed }
    }

    /// Every deadline earlier by `by`: the machine slept, and its monotonic clock with it.
    pub fn shorten(&self, by: Duration, now: MonoNs) -> Plan {
        self.raise_epoch();
        let mut plan = self.empty_plan(0);
        for (&address, holder) in &self.addresses {
            let claims = holder.claims.iter().map(|claim| Claim { until: claim.until.before(by), ..claim.clone() });
            plan.push(address, Edit::Replace(claims.collect()), &[], Some(holder), now);
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

    /// How many names are known.
    pub fn names(&self) -> usize {
        self.names.len()
    }

    fn raise_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    fn empty_plan(&self, later: u64) -> Plan {
        Plan { version: self.version + later, changes: Vec::new(), writes: Vec::new() }
    }

    /// Lets the soonest to end of the name's old addresses go when there would be too many.
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
            .collect();
        let excess = (old.len() + learned.addresses.len()).saturating_sub(limit);
        if excess == 0 {
            return Ok(());
        }
        old.sort_unstable();
        self.raise_epoch();
        for &(_, address) in &old[..excess] {
            let holder = &self.addresses[&address];
            plan.push(address, Edit::Forget(learned.name.clone()), &holder.claims, Some(holder), now);
        }
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
        match edit {
            Edit::Claim { claim, gives_way } => {
                if let Some(name) = gives_way {
                    holder.claims.retain(|claim| claim.name != name);
                    self.unlink(&name, address);
                }
                match holder.claims.iter_mut().find(|known| known.name == claim.name) {
                    Some(known) => *known = claim,
                    None => {
                        let addresses = self.names.entry(claim.name.clone()).or_default();
                        if let Err(at) = addresses.binary_search(&address) {
                            addresses.insert(at, address);
                        }
                        holder.claims.push(claim);
                    }
                }
            }
            Edit::Forget(name) => {
                holder.claims.retain(|claim| claim.name != name);
                self.unlink(&name, address);
            }
            Edit::Replace(claims) => {
                for gone in &holder.claims {
                    if claims.iter().all(|claim| claim.name != gone.name) {
                        self.unlink(&gone.name, address);
                    }
                }
                holder.claims = claims;
            }
            Edit::Repack => {}
        }
        if holder.claims.is_empty() {
            return;
        }
        self.claims += holder.claims.len();
        holder.held = held;
        if let Some(at) = held.rewrite_at {
            self.rewrites.insert((at, address));
        }
        self.addresses.insert(address, holder);
    }

    fn unlink(&mut self, name: &Name, address: IpAddr) {
        if let Some(addresses) = self.names.get_mut(name) {
            addresses.retain(|known| *known != address);
            if addresses.is_empty() {
                self.names.remove(name);
            }
        }
    }
}

impl Plan {
    fn push(&mut self, address: IpAddr, edit: Edit, known: &[Claim], holder: Option<&Holder>, now: MonoNs) {
        let (kept, added): (Vec<&Claim>, &[Claim]) = match &edit {
            Edit::Claim { claim, gives_way } => {
                let stays = |known: &&Claim| known.name != claim.name && Some(&known.name) != gives_way.as_ref();
                (known.iter().filter(stays).collect(), std::slice::from_ref(claim))
            }
            Edit::Forget(name) => (known.iter().filter(|known| known.name != *name).collect(), &[]),
            Edit::Replace(claims) => (Vec::new(), claims),
            Edit::Repack => (known.iter().collect(), &[]),
        };
        let mut deadlines: Vec<_> = kept.into_iter().chain(added).map(|claim| (claim.until, claim.bits)).collect();
        let held = pack(&mut deadlines, now);
        if holder.is_none_or(|holder| holder.held.slots != held.slots) {
            self.writes.push(GrantWrite { address, slots: held.slots });
        }
        self.changes.push(Change { address, edit, held });
    }
}

fn held(claims: &[Claim], now: MonoNs) -> Held {
    pack(&mut claims.iter().map(|claim| (claim.until, claim.bits)).collect::<Vec<_>>(), now)
}

/// One more name for an address that has as many as are told apart. The kernel's row stays what it should be; only a
/// reload that takes the longer-lasting name's rule away will find the other one missing: closed early, never late.
fn squeeze(known: &[Claim], claim: Claim) -> Result<Edit, Full> {
    let covers = |wide: &Claim, narrow: &Claim| (narrow.bits & !wide.bits).is_empty() && wide.until >= narrow.until;
    if known.iter().any(|known| covers(known, &claim)) {
        return Ok(Edit::Repack);
    }
    match known.iter().filter(|known| covers(&claim, known)).min_by_key(|known| known.until) {
        Some(covered) => Ok(Edit::Claim { gives_way: Some(covered.name.clone()), claim }),
        None => Err(Full { what: "names on one address", found: known.len() + 1, limit: CLAIMS_PER_ADDRESS }),
    }
}

fn within(what: &'static str, found: usize, limit: usize) -> Result<(), Full> {
    if found > limit { Err(Full { what, found, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
