//! What a hand or another agent does to our programs, pins and tables.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use super::Fault;
use super::bench::{Bench, Excused, Size, Tally};
use crate::lab::programs::{PASS, attach_other, detach_link, link_pin, pin_program};
use crate::lab::world::PODS;
use crate::lab::{clock, files_below};

pub const FAULTS: [Fault; 3] = [
    ("programs_pins_and_floor_removed_by_hand", removed),
    ("filters_removed_by_hand_with_clsact", filters_removed),
    ("another_agents_programs_before_and_after", other_agents),
];

/// How long it may take until what was taken away is back.
const LIMIT: Duration = Duration::from_secs(5);
/// What was let through before the repair is answered, or lost, after so long.
const OVER: Duration = Duration::from_millis(250);

/// The programs each time, in three ways; the pins of the maps every second time, the floor every third.
fn removed(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&["--set", "enforcement.attach=tcx"]);
    let mut windows = Windows::default();
    for run in 0..size.runs(20, 2) {
        let mut counted = vec!["detached"];
        windows.of(&mut bench, tally, |bench| {
            let world = &bench.world;
            if run % 2 == 1 {
                counted.push("pin");
                let pins = files_below(&world.directory.join("bpf/namegate"));
                pins.iter().filter(|pin| pin.contains("/maps/")).for_each(|pin| remove(pin.as_ref()));
            }
            if run % 3 == 1 {
                counted.push("floor");
                for table in world.must("node", "nft list tables").lines().filter(|line| line.contains("namegate_")) {
                    world.must("node", &format!("nft delete {table}"));
                }
            }
            match run % 3 {
                0 => detach_link(world, "from_pod"),
                1 => {
                    detach_link(world, "from_pod");
                    detach_link(world, "to_pod");
                }
                _ => remove(&link_pin(world, "from_pod")),
            }
            counted
        });
    }
    windows.note(tally);
    bench.finish(tally, Excused::Nothing);
}

fn filters_removed(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&["--set", "enforcement.attach=clsact"]);
    pin_program(&bench.world, "other", &PASS);
    let other = bench.world.directory.join("bpf/other").display().to_string();
    let host = PODS[0].host;
    let ways = [
        format!("tc filter del dev {host} ingress pref 1"),
        format!("tc qdisc del dev {host} clsact"),
        format!("tc filter replace dev {host} ingress pref 1 handle 1 bpf direct-action object-pinned {other}"),
    ];
    let mut windows = Windows::default();
    for run in 0..size.runs(20, 2) {
        windows.of(&mut bench, tally, |bench| {
            bench.world.must("node", &ways[run as usize % ways.len()]);
            vec!["detached"]
        });
    }
    windows.note(tally);
    bench.finish(tally, Excused::Nothing);
}

/// Behind ours, another one's program changes nothing; in front and passing everything, it is put behind.
fn other_agents(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&["--set", "enforcement.attach=tcx"]);
    let mut windows = Windows::default();
    for run in 0..size.runs(20, 2) {
        let name = format!("other{run}");
        attach_other(&bench.world, &name, &PASS, false);
        sleep(Duration::from_millis(100));
        bench.settle(tally, Excused::Nothing);
        let before = format!("before{run}");
        windows.of(&mut bench, tally, |bench| {
            attach_other(&bench.world, &before, &PASS, true);
            vec!["displaced"]
        });
        for name in [name, before] {
            for pin in [format!("bpf/{name}-link"), format!("bpf/{name}")] {
                remove(&bench.world.directory.join(pin));
            }
        }
    }
    windows.note(tally);
    bench.finish(tally, Excused::Nothing);
}

fn remove(path: &std::path::Path) {
    fs::remove_file(path).expect("it is there");
}

/// The times in which what is denied could pass: from the harm to its repair.
#[derive(Default)]
struct Windows {
    ms: Vec<u64>,
    /// In so many of them, something did.
    open: u32,
}

impl Windows {
    /// A run: harm, what it is counted as when it is mended, and from then on nothing passes.
    fn of<'a>(&mut self, bench: &mut Bench, tally: &mut Tally, harm: impl FnOnce(&Bench) -> Vec<&'a str>) {
        tally.runs += 1;
        let repairs = |bench: &Bench, what: &str| {
            bench.daemon().metric("namegate_repairs_total", &[&format!("what=\"{what}\"")]) as u64
        };
        let all = ["detached", "displaced", "pin", "floor"];
        let before = all.map(|what| repairs(bench, what));
        let start = clock::now();
        let counted = harm(bench);
        let missing = |bench: &Bench| {
            let left = all
                .iter()
                .zip(before)
                .filter(|(what, before)| counted.contains(what) && repairs(bench, what) <= *before);
            left.map(|(what, _)| *what).collect::<Vec<_>>()
        };
        let mended = clock::wait_until(LIMIT, || missing(bench).is_empty());
        tally.demand(mended, || format!("after {LIMIT:?} not repaired: {:?}", missing(bench)));
        self.ms.push(start.elapsed().as_millis() as u64);
        sleep(OVER);
        // While it is mended the interface is shut: a SYN then comes again after a second, which may be the next time.
        self.open += u32::from(bench.settle_but_leaks(tally, Excused::New) > 0);
        sleep(OVER);
        bench.settle(tally, Excused::New);
    }

    fn note(&mut self, tally: &mut Tally) {
        tally.demand(self.open > 0, || "INVALID: nothing ever passed before a repair".into());
        self.ms.sort_unstable();
        tally.note(format!(
            "in {} of {} something denied passed before the repair; repaired after {} ms (median), {} ms at most",
            self.open,
            self.ms.len(),
            self.ms[self.ms.len() / 2],
            self.ms[self.ms.len() - 1],
        ));
    }
}
