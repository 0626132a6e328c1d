//! What happens to an endpoint's grants without a query: the sweep, a reload, a sleep of the machine.
//!
//! Each spans plan, install and record under the table's lock, like a query.

use std::net::IpAddr;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use crate::engine::fqdn::{FqdnTable, Plan, Regroup};
use crate::engine::grant::MonoNs;
use crate::engine::ruleset::RuleSet;
use crate::kernel::{GrantStore, KernelError};

use super::Served;

impl Served {
    /// Forgets grants that are past and on which no flow goes on, and writes again those whose deadline was shortened.
    /// How many rows changed. To be called every second or two.
    ///
    /// # Errors
    /// The kernel did not take it; the next sweep tries again.
    pub fn sweep(
        &self,
        store: &dyn GrantStore,
        now: MonoNs,
        live: &dyn Fn(IpAddr) -> bool,
    ) -> Result<usize, KernelError> {
        let mut table = self.table();
        let plan = table.rewrites_due(now);
        let rewritten = self.carry_out(store, &mut table, plan)?;
        let plan = table.expire(now, live);
        Ok(rewritten + self.carry_out(store, &mut table, plan)?)
    }

    /// Steps 2 to 4 of a reload (DESIGN 4): added groups go into live grants, `flip` makes the kernel read the rows of
    /// the new rule set, removed groups go out of them. The rows must be there already.
    ///
    /// # Errors
    /// The kernel did not take it. Before or in `flip`: the old rules stay in force, and the grants are as they were
    /// but for what can't be taken back. After it: the new rules are in force, and some grant still holds a removed
    /// group, whose bit must not be used again until this was called once more and went well.
    pub fn reload(
        &self,
        store: &dyn GrantStore,
        rules: Arc<RuleSet>,
        now: MonoNs,
        flip: impl FnOnce() -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let mut table = self.table();
        let Regroup { widened, narrowed } = table.regroup(&rules, now);
        self.carry_out(store, &mut table, widened)?;
        if let Err(error) = flip() {
            let back = table.regroup(&self.rules.load(), now);
            table.record(back.widened); // it adds nothing: old and new are there
            let _ = self.carry_out(store, &mut table, back.narrowed);
            return Err(error);
        }
        self.rules.store(rules);
        self.carry_out(store, &mut table, narrowed).map(drop)
    }

    /// Ends every grant earlier by as long as the machine slept: its monotonic clock stood still.
    ///
    /// # Errors
    /// The kernel did not take it.
    pub fn slept(&self, store: &dyn GrantStore, by: Duration, now: MonoNs) -> Result<usize, KernelError> {
        let mut table = self.table();
        let plan = table.shorten(by, now);
        self.carry_out(store, &mut table, plan)
    }

    /// What it has learned, locked: queries of this endpoint wait.
    pub fn table(&self) -> MutexGuard<'_, FqdnTable> {
        // A panic between plan and record leaves the table as the plan found it.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the kernel hold the plan and then the table; how many rows were written. If the kernel refuses, the rows
    /// that it may have taken are put back as the table knows them.
    pub(super) fn carry_out(
        &self,
        store: &dyn GrantStore,
        table: &mut FqdnTable,
        plan: Plan,
    ) -> Result<usize, KernelError> {
        let rows = plan.writes().len();
        if rows > 0
            && let Err(error) = store.install(self.id, plan.writes())
        {
            if let Err(error) = store.install(self.id, &table.before(&plan)) {
                tracing::warn!(endpoint = %self.id, %error, "a grant could not be taken back; its deadline ends it");
            }
            return Err(error);
        }
        table.record(plan);
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicI32, Ordering};

    use super::*;
    use crate::engine::answer::Learned;
    use crate::engine::bits::Bits;
    use crate::engine::endpoint::{EndpointId, PodRef};
    use crate::engine::fqdn::{Caps, Timing};
    use crate::engine::grant::{GrantWrite, open_at};
    use crate::engine::name::Name;
    use crate::engine::pattern::{Bare, Pattern, PatternTrie};

    /// Rows, and how many more calls go well before one fails (-1: all).
    struct Model {
        rows: Mutex<BTreeMap<IpAddr, GrantWrite>>,
        good: AtomicI32,
    }

    impl GrantStore for Model {
        fn install(&self, _: EndpointId, writes: &[GrantWrite]) -> Result<(), KernelError> {
            if self.good.fetch_sub(1, Ordering::Relaxed) == 0 {
                return Err(KernelError::Full { map: "grants", rows: 0 });
            }
            let mut rows = self.rows.lock().expect("the rows");
            for write in writes {
                match write.deletes() {
                    true => rows.remove(&write.address),
                    false => rows.insert(write.address, *write),
                };
            }
            Ok(())
        }
    }

    const NOW: MonoNs = MonoNs(1_000_000_000_000);

    fn rules(selectors: &[(&str, u8)]) -> Arc<RuleSet> {
        let mut names = PatternTrie::new(Bare::Valid);
        for (pattern, bit) in selectors {
            names.insert(Pattern::pattern(pattern).expect("a pattern"), Bits::of(*bit), None);
        }
        Arc::new(RuleSet { selected: true, deny_egress: true, names: Arc::new(names), ..RuleSet::unselected() })
    }

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// An endpoint that has learned a.test at .1 (group 1) and b.test at .2 (group 2).
    fn setup() -> (Served, Model) {
        let model = Model { rows: Mutex::default(), good: AtomicI32::new(-1) };
        let pod = PodRef { namespace: "payments".to_owned(), name: "pod".to_owned() };
        let old = rules(&[("a.test", 1), ("b.test", 2)]);
        let served = Served::new(EndpointId(1), pod, Vec::new(), 1, old.clone(), Caps::default());
        for (name, last) in [("a.test", 1), ("b.test", 2)] {
            let name = Name::parse(name).expect("a name");
            let learned = Learned { name, addresses: vec![address(last)], ttl: 5 };
            let plan = served.table().plan(&learned, &old, NOW, &Timing::default()).expect("room");
            served.carry_out(&model, &mut served.table(), plan).expect("installed");
        }
        (served, model)
    }

    fn open(model: &Model, last: u8) -> Bits {
        model.rows.lock().expect("the rows").get(&address(last)).map_or(Bits::NONE, |row| open_at(&row.slots, NOW))
    }

    #[track_caller]
    fn opens(model: &Model, first: u128, second: u128) {
        assert_eq!((open(model, 1), open(model, 2)), (Bits(first), Bits(second)));
    }

    #[test]
    fn at_the_flip_old_and_new_groups_are_open_and_after_it_only_new_ones() {
        let (served, model) = setup();
        let flipped = Cell::new(false);
        let new = rules(&[("a.test", 3)]);
        served
            .reload(&model, new.clone(), NOW, || {
                opens(&model, 0b1010, 0b100);
                flipped.set(true);
                Ok(())
            })
            .expect("reloaded");
        assert!(flipped.get() && Arc::ptr_eq(&served.rules.load(), &new));
        opens(&model, 0b1000, 0);
        assert_eq!(served.table().grants(), 1);
    }

    #[test]
    fn a_reload_that_fails_before_or_in_the_flip_changes_nothing() {
        for good in [0, -1] {
            let (served, model) = setup();
            model.good.store(good, Ordering::Relaxed);
            let full = || Err(KernelError::Full { map: "endpoints", rows: 0 });
            served.reload(&model, rules(&[("a.test", 3)]), NOW, full).expect_err("failed");
            opens(&model, 0b10, 0b100);
            assert_eq!(served.rules.load().groups_of(&Name::parse("b.test").expect("a name")), Bits::of(2));
        }
    }

    #[test]
    fn a_reload_that_fails_after_the_flip_is_completed_by_the_next() {
        let (served, model) = setup();
        model.good.store(1, Ordering::Relaxed);
        let new = rules(&[("a.test", 3)]);
        served.reload(&model, new.clone(), NOW, || Ok(())).expect_err("failed");
        assert!(Arc::ptr_eq(&served.rules.load(), &new));
        opens(&model, 0b1010, 0b100);
        served.reload(&model, new, NOW, || Ok(())).expect("completed");
        opens(&model, 0b1000, 0);
    }

    #[test]
    fn a_sweep_takes_what_is_past_and_tries_again_when_the_kernel_refuses() {
        let (served, model) = setup();
        let later = NOW.after(Duration::from_secs(60));
        assert_eq!(served.sweep(&model, NOW, &|_| false).expect("swept"), 0);
        assert_eq!(served.sweep(&model, later, &|found| found == address(1)).expect("swept"), 1);
        model.good.store(0, Ordering::Relaxed);
        served.sweep(&model, later, &|_| false).expect_err("refused");
        assert_eq!(served.sweep(&model, later, &|_| false).expect("swept"), 1);
        assert_eq!((served.table().grants(), model.rows.lock().expect("the rows").len()), (0, 0));
    }

    #[test]
    fn after_a_sleep_deadlines_are_earlier() {
        let (served, model) = setup();
        served.slept(&model, Duration::from_secs(40), NOW).expect("shortened");
        let rows = model.rows.lock().expect("the rows");
        assert_eq!(rows[&address(1)].slots[0].until, NOW.after(Duration::from_secs(20)));
    }
}
