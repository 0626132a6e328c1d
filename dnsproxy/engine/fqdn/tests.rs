use std::net::Ipv4Addr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::engine::grant::open_at;
use crate::engine::pattern::{Bare, Pattern, PatternTrie};
use crate::engine::port::PortBlock;
use crate::engine::ruleset::{Direction, GroupKey, Protocol};

const SECOND: u64 = 1_000_000_000;

fn at(seconds: u64) -> MonoNs {
    MonoNs(seconds * SECOND)
}

fn ip(last: u16) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(192, 0, 2, 0)) + u32::from(last)).into()
}

fn rules(selectors: &[(&str, u8)]) -> RuleSet {
    let mut names = PatternTrie::new(Bare::Valid);
    for (pattern, bit) in selectors {
        names.insert(Pattern::pattern(pattern).expect("a pattern"), Bits::of(*bit), None);
    }
    RuleSet { selected: true, deny_egress: true, names: Arc::new(names), ..RuleSet::unselected() }
}

fn learned(name: &str, addresses: &[u16], ttl: u32) -> Learned {
    let addresses = addresses.iter().map(|last| ip(*last)).collect();
    Learned { name: Name::parse(name).expect("a name"), addresses, ttl }
}

/// A table and the kernel's rows, changed together as the proxy does.
struct Bench {
    table: FqdnTable,
    kernel: BTreeMap<IpAddr, [Slot; SLOTS]>,
}

impl Bench {
    fn new(caps: Caps) -> Bench {
        Bench { table: FqdnTable::new(caps), kernel: BTreeMap::new() }
    }

    fn install(&mut self, plan: Plan) -> usize {
        let writes = plan.writes().len();
        for write in plan.writes() {
            match write.deletes() {
                true => self.kernel.remove(&write.address),
                false => self.kernel.insert(write.address, write.slots),
            };
        }
        self.table.record(plan);
        writes
    }

    fn learn(&mut self, answer: &Learned, rules: &RuleSet, now: u64) -> Result<usize, Full> {
        let plan = self.table.plan(answer, rules, at(now), &Timing::default())?;
        Ok(self.install(plan))
    }

    fn sweep(&mut self, now: u64, live: &[u16]) -> usize {
        self.table.set_live(live.iter().map(|last| ip(*last)).collect());
        let plan = self.table.expire(at(now));
        self.install(plan)
    }

    fn open(&self, last: u16, now: u64) -> Bits {
        self.kernel.get(&ip(last)).map_or(Bits::NONE, |slots| open_at(slots, at(now)))
    }

    #[track_caller]
    fn is_open_until(&self, last: u16, bit: u8, until: u64) {
        assert!(self.open(last, until - 1).meets(Bits::of(bit)), "open at {} s", until - 1);
        assert!(!self.open(last, until).meets(Bits::of(bit)), "closed at {until} s");
    }
}

#[test]
fn a_grant_lasts_for_the_ttl_at_least_five_seconds_and_the_grace() {
    let mut bench = Bench::new(Caps::default());
    let rules = rules(&[("*.test", 3)]);
    bench.learn(&learned("a.test", &[1], 0), &rules, 100).expect("room");
    bench.is_open_until(1, 3, 160);
    bench.learn(&learned("b.test", &[2], 300), &rules, 100).expect("room");
    bench.is_open_until(2, 3, 455);
}

#[test]
fn deadlines_are_whole_seconds_so_that_the_same_answer_twice_in_a_second_is_written_once() {
    let mut bench = Bench::new(Caps::default());
    let rules = rules(&[("*.test", 3)]);
    let answer = learned("a.test", &[1], 5);
    let mut learn = |now: u64| {
        let plan = bench.table.plan(&answer, &rules, MonoNs(now), &Timing::default()).expect("room");
        bench.install(plan)
    };
    assert_eq!(learn(100 * SECOND + 1), 1);
    assert_eq!(learn(101 * SECOND), 0);
    assert_eq!(learn(101 * SECOND + 1), 1);
    bench.is_open_until(1, 3, 162);
}

#[test]
fn the_epoch_changes_with_whatever_is_taken_away_and_with_nothing_else() {
    let mut bench = Bench::new(Caps { addresses_per_name: 2, ..Caps::default() });
    let one = rules(&[("*.test", 3)]);
    let epoch = bench.table.epoch();
    let mut last = 0;
    let mut raised = move || {
        let now = epoch.load(Ordering::Acquire);
        now != std::mem::replace(&mut last, now)
    };
    bench.learn(&learned("a.test", &[1, 2], 5), &one, 100).expect("room");
    bench.learn(&learned("a.test", &[1], 500), &one, 110).expect("room");
    assert!(!raised(), "learned");
    bench.sweep(159, &[]);
    assert!(!raised(), "nothing is over");
    bench.learn(&learned("a.test", &[3], 500), &one, 111).expect("room");
    assert!(raised(), "one gave way");
    let plan = bench.table.shorten(Duration::from_secs(1), at(112));
    bench.install(plan);
    assert!(raised(), "shortened");
    let Regroup { widened, narrowed } = bench.table.regroup(&rules(&[("b.test", 3)]), &[], at(113));
    assert!(raised(), "raised before the kernel hears of it");
    bench.install(widened);
    bench.install(narrowed);
    bench.learn(&learned("b.test", &[1], 5), &rules(&[("b.test", 3)]), 120).expect("room");
    bench.sweep(300, &[]);
    assert!(raised(), "over");
    bench.table.clear();
    assert!(raised(), "cleared");
}

#[test]
fn a_name_that_no_selector_selects_grants_nothing() {
    let mut bench = Bench::new(Caps::default());
    assert_eq!(bench.learn(&learned("a.example", &[1], 60), &rules(&[("*.test", 3)]), 100), Ok(0));
    assert!(bench.kernel.is_empty() && bench.table.names() == 0);
}

#[test]
fn a_shorter_ttl_never_shortens() {
    let mut bench = Bench::new(Caps::default());
    let rules = rules(&[("*.test", 3)]);
    bench.learn(&learned("a.test", &[1], 300), &rules, 100).expect("room");
    assert_eq!(bench.learn(&learned("a.test", &[1], 5), &rules, 110), Ok(0), "nothing new to write");
    bench.is_open_until(1, 3, 455);
}

#[test]
fn several_names_on_one_address_keep_their_own_deadlines() {
    let mut bench = Bench::new(Caps::default());
    let rules = rules(&[("a.test", 3), ("b.test", 4)]);
    bench.learn(&learned("a.test", &[1], 300), &rules, 100).expect("room");
    bench.learn(&learned("b.test", &[1], 5), &rules, 110).expect("room");
    bench.is_open_until(1, 3, 455);
    bench.is_open_until(1, 4, 170);
    assert_eq!(bench.table.names_of(ip(1)).map(ToString::to_string).collect::<Vec<_>>(), ["a.test.", "b.test."]);
}

#[test]
fn an_address_that_an_answer_no_longer_names_stays_until_its_deadline() {
    let mut bench = Bench::new(Caps::default());
    let rules = rules(&[("a.test", 3)]);
    bench.learn(&learned("a.test", &[1], 5), &rules, 100).expect("room");
    bench.learn(&learned("a.test", &[2], 5), &rules, 110).expect("room");
    bench.is_open_until(1, 3, 160);
    bench.is_open_until(2, 3, 170);
}

#[test]
fn a_fifth_deadline_is_stored_early_and_written_again_before_it_passes() {
    let mut bench = Bench::new(Caps::default());
    let rules = rules(&[("a.test", 1), ("b.test", 2), ("c.test", 3), ("d.test", 4), ("e.test", 5)]);
    for (name, ttl) in [("a.test", 500), ("b.test", 400), ("c.test", 300), ("d.test", 200), ("e.test", 100)] {
        bench.learn(&learned(name, &[1], ttl), &rules, 0).expect("room");
    }
    bench.is_open_until(1, 1, 455);
    let now = 452;
    assert!(bench.table.rewrites_due(at(now - 1)).writes().is_empty(), "not due yet");
    let plan = bench.table.rewrites_due(at(now));
    assert_eq!(bench.install(plan), 1);
    bench.is_open_until(1, 1, 555);
    assert!(bench.table.rewrites_due(at(554)).writes().is_empty(), "nothing is shortened any more");
}

#[test]
fn what_is_past_goes_unless_a_flow_goes_on() {
    let mut bench = Bench::new(Caps::default());
    let rules = rules(&[("a.test", 1), ("b.test", 2)]);
    bench.learn(&learned("a.test", &[1, 2], 5), &rules, 100).expect("room");
    bench.learn(&learned("b.test", &[2], 500), &rules, 100).expect("room");
    assert_eq!(bench.sweep(159, &[]), 0);
    assert_eq!(bench.sweep(160, &[1, 2]), 0);
    assert_eq!(bench.sweep(160, &[]), 2);
    assert_eq!(bench.kernel.keys().collect::<Vec<_>>(), [&ip(2)]);
    assert_eq!((bench.table.grants(), bench.table.names()), (1, 1));
    let all = bench.kernel[&ip(2)].iter().fold(Bits::NONE, |bits, slot| bits | slot.bits);
    assert_eq!(all, Bits::of(2), "the past group is gone");
}

#[test]
fn above_the_cap_of_grants_nothing_is_granted_and_nothing_is_lost() {
    let mut bench = Bench::new(Caps { grants: 2, ..Caps::default() });
    let rules = rules(&[("*.test", 1)]);
    bench.learn(&learned("a.test", &[1], 5), &rules, 100).expect("room");
    let full = bench.learn(&learned("b.test", &[2, 3], 5), &rules, 100).expect_err("full");
    assert_eq!(full.to_string(), "3 grants for this workload; the limit is 2");
    bench.learn(&learned("b.test", &[2], 5), &rules, 100).expect("room");
    bench.learn(&learned("c.test", &[1, 2], 5), &rules, 100).expect("no new row");
}

/// Every group that the row holds, past ones too: what a flow goes on by.
fn held(bench: &Bench, last: u16) -> Bits {
    bench.kernel.get(&ip(last)).map_or(Bits::NONE, |slots| slots.iter().fold(Bits::NONE, |bits, slot| bits | slot.bits))
}

#[test]
fn above_the_cap_of_a_name_the_soonest_to_end_are_over_and_flows_go_on() {
    let mut bench = Bench::new(Caps { addresses_per_name: 3, ..Caps::default() });
    let rules = rules(&[("a.test", 1), ("b.test", 2)]);
    for (last, ttl) in [(1, 300), (2, 100), (3, 200)] {
        bench.learn(&learned("a.test", &[last], ttl), &rules, 100).expect("room");
    }
    bench.learn(&learned("b.test", &[2], 7), &rules, 100).expect("room");
    assert_eq!(bench.learn(&learned("a.test", &[4, 1], 400), &rules, 100), Ok(3));
    assert_eq!((bench.open(2, 100), held(&bench, 2)), (Bits::of(2), Bits::of(1) | Bits::of(2)));
    bench.is_open_until(2, 2, 162);
    bench.is_open_until(4, 1, 555);
    bench.sweep(105, &[2]);
    assert_eq!(held(&bench, 2), Bits::of(1) | Bits::of(2), "a flow goes on");
    bench.sweep(110, &[]);
    assert_eq!(held(&bench, 2), Bits::of(2), "it is over, and its grant with it");
    assert!(bench.learn(&learned("a.test", &[5, 6, 7, 8], 5), &rules, 100).is_err(), "one answer above the cap");
}

#[test]
fn a_name_that_changes_its_addresses_all_the_time_cuts_no_flow_and_stays_within_its_cap() {
    let mut bench = Bench::new(Caps { addresses_per_name: 100, ..Caps::default() });
    let rules = rules(&[("a.test", 1)]);
    let live: Vec<u16> = (0..2_000).step_by(2).collect();
    for (second, first) in (0..2_000u16).step_by(10).enumerate() {
        let addresses: Vec<u16> = (first..first + 10).collect();
        bench.learn(&learned("a.test", &addresses, 3_600), &rules, 100 + second as u64).expect("room");
        if second % 5 == 4 {
            bench.sweep(100 + second as u64, &live);
        }
    }
    let open = (0..2_000).filter(|last| !bench.open(*last, 300).is_empty()).count();
    assert_eq!(open, 100, "new flows are let to the newest");
    assert!(live.iter().all(|last| held(&bench, *last) == Bits::of(1)), "every flow keeps its rule");
    assert!(bench.table.grants() < 1_000 + 100 + 50, "what nobody uses is gone: {}", bench.table.grants());
    bench.sweep(302, &[]);
    assert_eq!(bench.table.grants(), 100);
}

#[test]
fn of_what_is_over_no_more_stays_than_may_be_deferred() {
    let mut bench = Bench::new(Caps { addresses_per_name: 4, deferred: 2, ..Caps::default() });
    let rules = rules(&[("*.test", 1)]);
    bench.sweep(99, &[1, 2, 3, 4]);
    bench.learn(&learned("a.test", &[1, 2, 3, 4], 5), &rules, 100).expect("room");
    bench.learn(&learned("a.test", &[11, 12, 13, 14], 5), &rules, 101).expect("room");
    assert_eq!((1..5).filter(|last| !held(&bench, *last).is_empty()).count(), 2, "two are deferred, two forgotten");
    bench.learn(&learned("b.test", &[21], 5), &rules, 110).expect("room");
    bench.learn(&learned("c.test", &[22], 5), &rules, 120).expect("room");
    bench.sweep(500, &[11, 21, 22]);
    let stay: Vec<u16> = (0..30).filter(|last| !held(&bench, *last).is_empty()).collect();
    assert_eq!(stay, [21, 22], "the longest past go first");
}

#[test]
fn those_with_a_flow_are_deferred_before_those_without() {
    let mut bench = Bench::new(Caps { addresses_per_name: 3, deferred: 1, ..Caps::default() });
    let rules = rules(&[("*.test", 1)]);
    bench.learn(&learned("a.test", &[1, 2, 3], 5), &rules, 100).expect("room");
    bench.sweep(101, &[2]);
    bench.learn(&learned("a.test", &[4, 5, 6], 5), &rules, 102).expect("room");
    let stay: Vec<u16> = (1..4).filter(|last| !held(&bench, *last).is_empty()).collect();
    assert_eq!(stay, [2]);
}

#[test]
fn a_deferred_address_that_is_learned_again_is_open_again() {
    let mut bench = Bench::new(Caps { addresses_per_name: 1, ..Caps::default() });
    let rules = rules(&[("*.test", 1)]);
    bench.learn(&learned("a.test", &[1], 5), &rules, 100).expect("room");
    bench.learn(&learned("a.test", &[2], 5), &rules, 110).expect("room");
    assert_eq!((bench.open(1, 110), bench.open(2, 110)), (Bits::NONE, Bits::of(1)));
    bench.learn(&learned("a.test", &[1], 5), &rules, 120).expect("room");
    assert_eq!((bench.open(1, 120), bench.open(2, 120)), (Bits::of(1), Bits::NONE));
}

#[test]
fn more_names_on_an_address_than_are_told_apart_keep_it_open() {
    let mut bench = Bench::new(Caps::default());
    let rules = rules(&[("*.test", 1)]);
    for at in 0..CLAIMS_PER_ADDRESS + 50 {
        bench.learn(&learned(&format!("n{at}.test"), &[1], 5 + at as u32), &rules, 100).expect("room");
        bench.is_open_until(1, 1, 160 + at as u64);
    }
    bench.learn(&learned("late.test", &[1], 5), &rules, 100).expect("room");
    assert_eq!(bench.table.claims().count(), CLAIMS_PER_ADDRESS);
    assert_eq!((bench.table.claims, bench.table.names()), (CLAIMS_PER_ADDRESS, CLAIMS_PER_ADDRESS));
}

#[test]
fn a_reload_first_widens_and_then_narrows() {
    let mut bench = Bench::new(Caps::default());
    bench.learn(&learned("a.test", &[1], 5), &rules(&[("a.test", 1)]), 100).expect("room");
    bench.learn(&learned("b.example", &[2], 5), &rules(&[("*.example", 1)]), 100).expect("room");
    let Regroup { widened, narrowed } = bench.table.regroup(&rules(&[("*.test", 2)]), &[], at(101));
    assert_eq!(bench.install(widened), 1);
    assert_eq!((bench.open(1, 102), bench.open(2, 102)), (Bits(0b110), Bits(0b10)));
    assert_eq!(bench.install(narrowed), 2);
    assert_eq!((bench.open(1, 102), bench.open(2, 102)), (Bits(0b100), Bits::NONE));
    assert_eq!((bench.table.grants(), bench.table.names()), (1, 1));
    bench.is_open_until(1, 2, 160);
}

#[test]
fn what_was_before_can_be_put_back() {
    let mut bench = Bench::new(Caps::default());
    let rules = rules(&[("*.test", 1)]);
    bench.learn(&learned("a.test", &[1], 5), &rules, 100).expect("room");
    let plan = bench.table.plan(&learned("a.test", &[1, 2], 50), &rules, at(110), &Timing::default()).expect("room");
    let before = bench.table.before(&plan);
    assert_eq!((before[0].slots, before[1].deletes()), (bench.kernel[&ip(1)], true));
}

#[test]
#[should_panic(expected = "a plan is recorded on the state that it was made from")]
fn a_stale_plan_is_not_recorded() {
    let mut bench = Bench::new(Caps::default());
    let rules = rules(&[("*.test", 1)]);
    let stale = bench.table.plan(&learned("a.test", &[1], 5), &rules, at(100), &Timing::default()).expect("room");
    bench.learn(&learned("a.test", &[1], 5), &rules, 100).expect("room");
    bench.table.record(stale);
}

fn group(bit: u8, port: u16, names: &[&str]) -> Group {
    let key =
        GroupKey { direction: Direction::Egress, deny: false, ports: vec![(Protocol::Tcp, PortBlock::one(port))] };
    Group { bit, key, names: names.iter().map(|name| (*name).to_owned()).collect() }
}

/// A process dies with these names in its table and in its checkpoint, which was written at `checkpoint`; the next one
/// finds the kernel's rows.
struct Restart {
    bench: Bench,
    groups: Vec<Group>,
    checkpoint: Vec<Remembered>,
}

impl Restart {
    fn new() -> Restart {
        let groups = vec![group(1, 443, &["a.test", "b.test"]), group(2, 444, &["c.test"])];
        Restart { bench: Bench::new(Caps::default()), groups, checkpoint: Vec::new() }
    }

    fn rules(&self) -> RuleSet {
        let selectors = self.groups.iter().flat_map(|group| group.names.iter().map(|name| (name.as_str(), group.bit)));
        RuleSet { groups: self.groups.clone(), ..rules(&selectors.collect::<Vec<_>>()) }
    }

    fn learn(&mut self, name: &str, addresses: &[u16], ttl: u32, now: u64) {
        let rules = self.rules();
        self.bench.learn(&learned(name, addresses, ttl), &rules, now).expect("room");
    }

    fn write(&mut self) {
        self.checkpoint = self.bench.table.remember(None, 100).0;
    }

    /// The next process, under new groups.
    fn restarted(mut self, now: u64, groups: Vec<Group>) -> Bench {
        self.bench.table = FqdnTable::new(Caps::default());
        let meaning = Meaning::of(&self.groups);
        for (address, slots) in self.bench.kernel.clone() {
            let names = self.checkpoint.iter().find(|names| names.address == address);
            self.bench.table.adopt(&GrantWrite { address, slots }, names, &meaning, at(now));
        }
        let rows: BTreeMap<_, _> = self.bench.table.rows().map(|row| (row.address, row.slots)).collect();
        assert_eq!(rows, self.bench.kernel, "the rows are the truth");
        let before = std::mem::replace(&mut self.groups, groups);
        let Regroup { widened, narrowed } = self.bench.table.regroup(&self.rules(), &before, at(now));
        self.bench.install(widened);
        self.bench.install(narrowed);
        self.bench
    }
}

fn names_of(bench: &Bench, last: u16) -> Vec<String> {
    bench.table.names_of(ip(last)).map(ToString::to_string).collect()
}

#[test]
fn names_and_deadlines_outlive_a_restart() {
    let mut restart = Restart::new();
    restart.learn("a.test", &[1, 2], 300, 100);
    restart.learn("c.test", &[2], 600, 100);
    restart.write();
    let groups = restart.groups.clone();
    let bench = restart.restarted(200, groups);
    assert_eq!(
        (names_of(&bench, 1), names_of(&bench, 2)),
        (vec!["a.test.".into()], vec!["a.test.".into(), "c.test.".into()])
    );
    bench.is_open_until(1, 1, 455);
    bench.is_open_until(2, 1, 455);
    bench.is_open_until(2, 2, 755);
    assert_eq!(bench.table.unnamed().count(), 0);
}

#[test]
fn a_name_that_the_policy_lost_meanwhile_is_closed_and_its_groups_others_stay() {
    let mut restart = Restart::new();
    restart.learn("a.test", &[1, 3], 300, 100);
    restart.learn("b.test", &[2, 3], 300, 100);
    restart.write();
    let bench = restart.restarted(200, vec![group(1, 443, &["a.test"])]);
    assert_eq!((bench.open(1, 200), bench.open(2, 200), bench.open(3, 200)), (Bits::of(1), Bits::NONE, Bits::of(1)));
    assert_eq!((names_of(&bench, 3), held(&bench, 2)), (vec!["a.test.".into()], Bits::NONE));
}

#[test]
fn without_a_checkpoint_rows_stay_only_while_their_group_means_what_it_meant() {
    let mut restart = Restart::new();
    restart.learn("a.test", &[1], 300, 100);
    restart.learn("c.test", &[2], 300, 100);
    let bench = restart.restarted(200, vec![group(1, 443, &["a.test"]), group(2, 444, &["c.test", "d.test"])]);
    assert_eq!((bench.open(1, 200), bench.open(2, 200)), (Bits::NONE, Bits::of(2)));
    assert!(names_of(&bench, 2).is_empty());
    bench.is_open_until(2, 2, 455);
}

#[test]
fn a_checkpoint_opens_nothing_that_the_kernel_does_not_hold() {
    let mut restart = Restart::new();
    restart.learn("a.test", &[1, 2, 3], 300, 100);
    restart.write();
    // What happened after it: one row is gone, one ends earlier, one was given another group.
    restart.bench.kernel.remove(&ip(1));
    let slots = |bit, until| {
        [Slot { bits: Bits::of(bit), until: at(until) }, Slot::default(), Slot::default(), Slot::default()]
    };
    restart.bench.kernel.insert(ip(2), slots(1, 250));
    restart.bench.kernel.insert(ip(3), slots(2, 455));
    let groups = restart.groups.clone();
    let mut bench = restart.restarted(200, groups);
    assert_eq!((bench.open(1, 200), bench.open(3, 200)), (Bits::NONE, Bits::of(2)));
    assert_eq!((names_of(&bench, 2), names_of(&bench, 3)), (vec!["a.test.".into()], vec![]));
    bench.is_open_until(2, 1, 250);
    bench.sweep(251, &[]);
    assert_eq!(
        bench.kernel.keys().collect::<Vec<_>>(),
        [&ip(3)],
        "nothing stays open without a name after its deadline"
    );
    bench.sweep(456, &[]);
    assert!(bench.kernel.is_empty());
}

#[test]
fn what_was_learned_after_the_checkpoint_ends_neither_early_nor_late() {
    let mut restart = Restart::new();
    restart.learn("a.test", &[1], 60, 100);
    restart.write();
    restart.learn("a.test", &[1], 300, 110);
    restart.learn("c.test", &[1], 400, 110);
    let groups = restart.groups.clone();
    let mut bench = restart.restarted(120, groups);
    assert_eq!(names_of(&bench, 1), ["a.test."]);
    bench.is_open_until(1, 1, 465);
    bench.is_open_until(1, 2, 565);
    // Another name on the same address takes nothing away.
    let set = rules(&[("a.test", 1), ("c.test", 2)]);
    bench.learn(&learned("c.test", &[1], 5), &set, 130).expect("room");
    bench.is_open_until(1, 1, 465);
    bench.is_open_until(1, 2, 565);
}

#[test]
fn deadlines_that_did_not_fit_outlive_a_restart() {
    let mut restart = Restart::new();
    restart.groups = (1..6)
        .map(|bit| {
            group(
                bit,
                440 + u16::from(bit),
                &[["a.test", "b.test", "c.test", "d.test", "e.test"][usize::from(bit) - 1]],
            )
        })
        .collect();
    for (name, ttl) in [("a.test", 500), ("b.test", 400), ("c.test", 300), ("d.test", 200), ("e.test", 100)] {
        restart.learn(name, &[1], ttl, 0);
    }
    restart.write();
    let groups = restart.groups.clone();
    let mut bench = restart.restarted(10, groups);
    bench.is_open_until(1, 1, 455);
    let plan = bench.table.rewrites_due(at(452));
    assert_eq!(bench.install(plan), 1);
    bench.is_open_until(1, 1, 555);
}

#[test]
fn a_flow_that_outlived_its_grant_keeps_rule_and_name_over_a_restart() {
    let mut restart = Restart::new();
    restart.learn("a.test", &[1], 5, 100);
    restart.bench.sweep(165, &[1]);
    restart.write();
    let groups = restart.groups.clone();
    let mut bench = restart.restarted(170, groups);
    assert_eq!((bench.open(1, 170), held(&bench, 1)), (Bits::NONE, Bits::of(1)));
    bench.sweep(175, &[1]);
    assert_eq!(names_of(&bench, 1), ["a.test."]);
    bench.sweep(180, &[]);
    assert!(bench.kernel.is_empty());
}

#[test]
fn a_checkpoint_is_taken_in_parts() {
    let mut restart = Restart::new();
    restart.learn("a.test", &[1, 2, 3], 300, 100);
    let (first, next) = restart.bench.table.remember(None, 2);
    let (second, last) = restart.bench.table.remember(next, 2);
    assert_eq!((first.len(), second.len(), last), (2, 1, Some(ip(3))));
    assert_eq!(restart.bench.table.remember(last, 2), (Vec::new(), None));
}

#[test]
fn the_list_comes_in_pages() {
    let mut bench = Bench::new(Caps::default());
    let rules = rules(&[("*.test", 1)]);
    for name in ["a.test", "b.test", "c.test", "d.test"] {
        bench.learn(&learned(name, &[1, 2], 5), &rules, 100).expect("room");
    }
    let all = |_: &Name| true;
    let first = bench.table.list(None, 3, &all);
    assert_eq!(
        first.names.iter().map(|listed| listed.name.to_string()).collect::<Vec<_>>(),
        ["a.test.", "b.test.", "c.test."]
    );
    assert_eq!(first.names[0].addresses, [(ip(1), at(160)), (ip(2), at(160))]);
    let second = bench.table.list(first.next.as_ref(), 3, &all);
    assert_eq!((second.names.len(), second.next), (1, None));
    let picked = bench.table.list(None, 3, &|name| name.to_string() == "c.test.");
    assert_eq!((picked.names.len(), picked.next), (1, None));
}

#[derive(Clone, Debug)]
enum Step {
    Learn { name: usize, addresses: Vec<u16>, ttl: u32 },
    Sweep { live: u16 },
    Rewrite,
    Reload { selectors: Vec<(usize, u8)> },
    Sleep { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..NAMES.len(), prop::collection::vec(0u16..5, 1..4), 0u32..120)
            .prop_map(|(name, addresses, ttl)| Step::Learn { name, addresses, ttl }),
        2 => (0u16..8).prop_map(|live| Step::Sweep { live }),
        1 => Just(Step::Rewrite),
        1 => prop::collection::vec((0..SELECTORS.len(), 1u8..7), 0..6).prop_map(|selectors| Step::Reload { selectors }),
        1 => (1u64..30).prop_map(|seconds| Step::Sleep { seconds }),
    ]
}

const NAMES: [&str; 6] = ["a.test", "b.test", "c.test", "d.example", "e.example", "f.example"];
const SELECTORS: [&str; 8] =
    ["a.test", "b.test", "c.test", "d.example", "e.example", "f.example", "*.test", "*.example"];

proptest! {
    /// The model is the list of everything that was ever learned; what the kernel opens is held against it each second.
    #[test]
    fn the_kernel_opens_what_was_learned_and_nothing_else(
        steps in prop::collection::vec((step(), 0u64..20), 1..40),
    ) {
        let mut bench = Bench::new(Caps::default());
        let mut model: Vec<(Name, u16, MonoNs)> = Vec::new();
        let mut set = rules(&(1..).zip(NAMES).map(|(bit, name)| (name, bit)).collect::<Vec<_>>());
        let mut now = 1_000;
        for (step, pause) in steps {
            match step {
                Step::Learn { name, mut addresses, ttl } => {
                    addresses.sort_unstable();
                    addresses.dedup();
                    let answer = learned(NAMES[name], &addresses, ttl);
                    bench.learn(&answer, &set, now).unwrap();
                    if !set.groups_of(&answer.name).is_empty() {
                        let until = at(now + u64::from(ttl.max(5)) + 55);
                        model.extend(addresses.iter().map(|last| (answer.name.clone(), *last, until)));
                    }
                }
                Step::Sweep { live } => {
                    bench.sweep(now, &[live]);
                }
                Step::Rewrite => {
                    let plan = bench.table.rewrites_due(at(now));
                    bench.install(plan);
                }
                Step::Reload { selectors } => {
                    let selectors: Vec<_> = selectors.iter().map(|&(at, bit)| (SELECTORS[at], bit)).collect();
                    let new = rules(&selectors);
                    let before: Vec<Bits> = (0..5).map(|last| bench.open(last, now)).collect();
                    let Regroup { widened, narrowed } = bench.table.regroup(&new, &[], at(now));
                    bench.install(widened);
                    for last in 0..5u16 {
                        // What was owed, too: a row that waits to be written again holds less.
                        let both = model.iter().filter(|m| m.1 == last && m.2 > at(now)).fold(Bits::NONE, |bits, m| {
                            bits | set.groups_of(&m.0) | new.groups_of(&m.0)
                        });
                        let open = bench.open(last, now);
                        let either = before[usize::from(last)] | both;
                        prop_assert_eq!(open & !either, Bits::NONE, "never broader than old and new");
                        prop_assert_eq!(before[usize::from(last)] & !open, Bits::NONE, "never narrower than old");
                    }
                    bench.install(narrowed);
                    set = new;
                    // A name that lost its last selector is forgotten, and has to be asked for again.
                    model.retain(|m| !set.groups_of(&m.0).is_empty());
                }
                Step::Sleep { seconds } => {
                    let plan = bench.table.shorten(Duration::from_secs(seconds), at(now));
                    bench.install(plan);
                    model.iter_mut().for_each(|m| m.2 = m.2.before(Duration::from_secs(seconds)));
                }
            }
            for second in now..now + pause.max(1) {
                for last in 0..5u16 {
                    let may = model.iter().filter(|m| m.1 == last && m.2 > at(second)).fold(Bits::NONE, |bits, m| {
                        bits | set.groups_of(&m.0)
                    });
                    let open = bench.open(last, second);
                    prop_assert_eq!(open & !may, Bits::NONE, "never late, at {} s", second);
                    // Else the row waits to be written again, which only some histories here do in time.
                    let holder = bench.table.addresses.get(&ip(last));
                    let exact = holder.is_none_or(|holder| holder.held.rewrite_at.is_none());
                    if exact {
                        prop_assert_eq!(open, may, "nothing missing at {} s", second);
                    }
                }
            }
            now += pause;
            prop_assert_eq!(bench.table.claims, bench.table.claims().count());
            let rows: BTreeMap<_, _> = bench.table.rows().map(|row| (row.address, row.slots)).collect();
            prop_assert_eq!(&rows, &bench.kernel);
            let linked: usize = bench.table.names.values().map(Vec::len).sum();
            prop_assert_eq!(linked, bench.table.claims);
        }
    }
}

/// What may happen between two looks at a table whose process dies once and at one whose process doesn't.
#[derive(Clone, Debug)]
enum Event {
    Learn { name: usize, addresses: Vec<u16>, ttl: u32 },
    Sweep { live: u16 },
    Rewrite,
    Write,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..NAMES.len(), prop::collection::vec(0u16..4, 1..4), 0u32..60)
            .prop_map(|(name, addresses, ttl)| Event::Learn { name, addresses, ttl }),
        1 => (0u16..8).prop_map(|live| Event::Sweep { live }),
        1 => Just(Event::Rewrite),
        2 => Just(Event::Write),
    ]
}

proptest! {
    /// kill -9 at any moment, with a checkpoint of any age: afterwards the kernel opens what it would have opened.
    #[test]
    fn a_restart_opens_nothing_and_closes_nothing(
        before in prop::collection::vec((event(), 0u64..20), 1..25),
        after in prop::collection::vec((event(), 0u64..20), 0..15),
    ) {
        let groups: Vec<Group> = (1..).zip(NAMES).map(|(bit, name)| group(bit, 440 + u16::from(bit), &[name])).collect();
        let set = RuleSet { groups: groups.clone(), ..rules(&(1..).zip(NAMES).map(|(bit, name)| (name, bit)).collect::<Vec<_>>()) };
        let mut lives = Bench::new(Caps::default());
        let mut dies = Restart { bench: Bench::new(Caps::default()), groups: groups.clone(), checkpoint: Vec::new() };
        let mut now = 1_000;
        let play = |bench: &mut Bench, event: &Event, now| match event {
            Event::Learn { name, addresses, ttl } => {
                let mut addresses = addresses.clone();
                addresses.sort_unstable();
                addresses.dedup();
                bench.learn(&learned(NAMES[*name], &addresses, *ttl), &set, now).map(drop).expect("room");
            }
            Event::Sweep { live } => drop(bench.sweep(now, &[*live])),
            Event::Rewrite => {
                let plan = bench.table.rewrites_due(at(now));
                bench.install(plan);
            }
            Event::Write => {}
        };
        for (event, pause) in &before {
            play(&mut lives, event, now);
            play(&mut dies.bench, event, now);
            if matches!(event, Event::Write) {
                dies.write();
            }
            now += pause;
        }
        // With more deadlines than fit, an old checkpoint can't tell what is owed beyond them: closed early, never late.
        let shortened: Vec<IpAddr> = dies.bench.table.rewrites.iter().map(|(_, address)| *address).collect();
        let mut died = dies.restarted(now, groups);
        for (event, pause) in &after {
            play(&mut lives, event, now);
            play(&mut died, event, now);
            for second in now..now + pause.max(&1) {
                for last in 0..4u16 {
                    let (lives_on, died_once) = (lives.open(last, second), died.open(last, second));
                    let waits = |bench: &Bench| bench.table.rewrites.iter().any(|(_, address)| *address == ip(last));
                    if !shortened.contains(&ip(last)) && !waits(&lives) && !waits(&died) {
                        prop_assert_eq!(died_once, lives_on, "at {} s", second);
                    } else {
                        let ever = lives.table.claims().filter(|(address, claim)| *address == ip(last) && claim.until > at(second));
                        let may = ever.fold(Bits::NONE, |bits, (_, claim)| bits | claim.bits);
                        prop_assert_eq!(died_once & !may, Bits::NONE, "never late, at {} s", second);
                    }
                }
            }
            now += pause;
        }
        died.sweep(now + 10_000, &[]);
        prop_assert!(died.kernel.is_empty() && died.table.claims == 0 && died.table.names.is_empty(), "nothing stays for ever");
    }
}

#[test]
fn ever_new_names_on_known_addresses_are_granted_also_when_the_table_is_full() {
    let mut bench = Bench::new(Caps { claims: 8, ..Caps::default() });
    let rules = rules(&[("*.test", 3)]);
    for at in 0..100u64 {
        let answer = learned(&format!("n{at}.test"), &[(at % 4) as u16 + 1], 60);
        bench.learn(&answer, &rules, 100 + at).expect("room");
        bench.is_open_until((at % 4) as u16 + 1, 3, 100 + at + 115);
    }
    assert!(bench.table.claims().count() <= 8);
    bench.learn(&learned("other.test", &[9], 60), &rules, 200).expect_err("a new address needs room of its own");
}

#[test]
fn no_answer_opens_an_address_for_more_than_a_week_and_the_grace() {
    let mut bench = Bench::new(Caps::default());
    bench.learn(&learned("a.test", &[1], u32::MAX >> 1), &rules(&[("*.test", 3)]), 100).expect("room");
    bench.is_open_until(1, 3, 100 + 7 * 24 * 3_600 + 55);
}
