use std::net::Ipv4Addr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::engine::grant::open_at;
use crate::engine::pattern::{Bare, Pattern, PatternTrie};

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
    let plan = bench.table.expire(at(159), &|_| false);
    bench.install(plan);
    assert!(!raised(), "nothing is over");
    bench.learn(&learned("a.test", &[3], 500), &one, 111).expect("room");
    assert!(raised(), "one gave way");
    let plan = bench.table.shorten(Duration::from_secs(1), at(112));
    bench.install(plan);
    assert!(raised(), "shortened");
    let Regroup { widened, narrowed } = bench.table.regroup(&rules(&[("b.test", 3)]), at(113));
    assert!(raised(), "raised before the kernel hears of it");
    bench.install(widened);
    bench.install(narrowed);
    bench.learn(&learned("b.test", &[1], 5), &rules(&[("b.test", 3)]), 120).expect("room");
    let plan = bench.table.expire(at(300), &|_| false);
    bench.install(plan);
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
    let plan = bench.table.expire(at(159), &|_| false);
    assert_eq!(bench.install(plan), 0);
    let plan = bench.table.expire(at(160), &|_| true);
    assert_eq!(bench.install(plan), 0);
    let plan = bench.table.expire(at(160), &|_| false);
    assert_eq!(bench.install(plan), 2);
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

#[test]
fn above_the_cap_of_a_name_the_soonest_to_end_give_way() {
    let mut bench = Bench::new(Caps { addresses_per_name: 3, ..Caps::default() });
    let rules = rules(&[("*.test", 1)]);
    for (last, ttl) in [(1, 300), (2, 100), (3, 200)] {
        bench.learn(&learned("a.test", &[last], ttl), &rules, 100).expect("room");
    }
    bench.learn(&learned("b.test", &[2], 7), &rules, 100).expect("room");
    assert_eq!(bench.learn(&learned("a.test", &[4, 1], 400), &rules, 100), Ok(3));
    bench.is_open_until(2, 1, 162);
    bench.is_open_until(4, 1, 555);
    assert!(bench.learn(&learned("a.test", &[5, 6, 7, 8], 5), &rules, 100).is_err(), "one answer above the cap");
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
    let Regroup { widened, narrowed } = bench.table.regroup(&rules(&[("*.test", 2)]), at(101));
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
                    let plan = bench.table.expire(at(now), &|address| address == ip(live));
                    bench.install(plan);
                }
                Step::Rewrite => {
                    let plan = bench.table.rewrites_due(at(now));
                    bench.install(plan);
                }
                Step::Reload { selectors } => {
                    let selectors: Vec<_> = selectors.iter().map(|&(at, bit)| (SELECTORS[at], bit)).collect();
                    let new = rules(&selectors);
                    let before: Vec<Bits> = (0..5).map(|last| bench.open(last, now)).collect();
                    let Regroup { widened, narrowed } = bench.table.regroup(&new, at(now));
                    bench.install(widened);
                    for last in 0..5u16 {
                        let both = model.iter().filter(|m| m.1 == last && m.2 > at(now)).fold(Bits::NONE, |bits, m| {
                            bits | new.groups_of(&m.0)
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
