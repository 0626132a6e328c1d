//! What happens to its files: a disk that is full or can't be written, and files that are not what they were.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use super::Fault;
use super::bench::{Bench, Excused, Size, Tally};
use crate::lab::process::must;
use crate::lab::{Daemon, clock};

pub const FAULTS: [Fault; 3] =
    [("disk_full", disk_full), ("state_directory_read_only", read_only), ("state_files_damaged", damaged)];

/// A file system of its own under the state directory.
fn bench_with_a_disk() -> Bench {
    Bench::prepared(&[], |world| {
        let state = world.directory.join("state");
        must(&format!("mount -t tmpfs -o size=512k,mode=700 tmpfs {}", state.display()));
    })
}

/// Full, with reloads that change what must be written; then killed and started while it is full; then there is room.
fn disk_full(size: Size, tally: &mut Tally) {
    let mut bench = bench_with_a_disk();
    let filler = bench.state().join("filler");
    for run in 0..size.runs(20, 2) {
        tally.runs += 1;
        fill(&filler);
        // Another item is a bit that the state has to name before the kernel may use it.
        bench.write_policy(&with_item(run));
        sleep(Duration::from_millis(300));
        bench.settle(tally, Excused::Nothing);
        if run % 2 == 0 {
            // It can't say what a bit means: what was in force stays so, and it waits for room.
            bench.kill();
            bench.start();
            sleep(Duration::from_millis(1000));
            bench.settle(tally, Excused::Nothing);
        }
        fs::remove_file(&filler).expect("the filler is there");
        bench.write_policy(Bench::policy());
        bench.daemon().reload();
        let now = clock::mono_ns();
        bench.back(now, tally);
        bench.settle(tally, Excused::Nothing);
    }
    bench.daemon().wait_ready();
    bench.finish(tally, Excused::Nothing);
}

/// The same, on a file system that nothing can be written to. It can become so only while nothing is open for writing.
fn read_only(size: Size, tally: &mut Tally) {
    let mut bench = bench_with_a_disk();
    let remount = |bench: &Bench, how: &str| must(&format!("mount -o remount,{how} {}", bench.state().display()));
    for run in 0..size.runs(10, 2) {
        tally.runs += 1;
        bench.kill();
        remount(&bench, "ro");
        if run % 2 == 0 {
            bench.write_policy(&with_item(run));
        }
        bench.start();
        sleep(Duration::from_millis(1000));
        bench.settle(tally, Excused::Nothing);
        let waits = bench.daemon.as_mut().is_some_and(Daemon::runs);
        tally.demand(waits, || "it does not wait for its state directory to be writable".into());
        remount(&bench, "rw");
        bench.write_policy(Bench::policy());
        bench.daemon().reload();
        let now = clock::mono_ns();
        bench.back(now, tally);
        bench.settle(tally, Excused::Nothing);
    }
    bench.daemon().wait_ready();
    tally.note("10 times: each takes 2 s");
    bench.finish(tally, Excused::Nothing);
}

/// Does something to a file.
type Damage = fn(&mut Vec<u8>);

/// Each kind of file in each kind of disrepair.
fn damaged(size: Size, tally: &mut Tally) {
    const HOW: [(&str, Damage); 5] = [
        ("an octet flipped", |text| {
            let middle = text.len() / 2;
            text[middle] ^= 1;
        }),
        ("cut in the middle", |text| text.truncate(text.len() / 2)),
        ("empty", |text| text.clear()),
        ("of a newer version", |text| {
            // The number stands in the first line; the rest of the header is left as it was.
            let line = text.iter().position(|octet| *octet == b'\n').unwrap_or(text.len());
            if let Some(at) = text[..line].windows(2).position(|two| two[0] == b' ' && two[1].is_ascii_digit()) {
                text[at + 1] = b'9';
            }
        }),
        ("noise", |text| text.iter_mut().enumerate().for_each(|(at, octet)| *octet = (at * 197) as u8 | 0x80)),
    ];
    let mut bench = Bench::new(&[]);
    for (number, (how, damage)) in HOW.into_iter().enumerate() {
        for what in ["names", "last-good.journal", "state.json", "all"] {
            // A slice takes another kind of damage for each file.
            if size == Size::Slice && number != what.len() % HOW.len() {
                continue;
            }
            tally.runs += 1;
            let state = bench.state();
            let written = clock::wait_until(Duration::from_secs(5), || !files(&state, "names").is_empty());
            tally.demand(written, || "names were not written down within 5 s".into());
            bench.kill();
            let found = files(&state, what);
            tally.demand(!found.is_empty(), || format!("no file {what} below the state directory"));
            for path in found {
                let mut text = fs::read(&path).expect("it is there");
                damage(&mut text);
                fs::write(&path, text).expect("writable");
            }
            bench.restart(tally);
            // Without the state no number in the kernel means anything: all that was open is shut.
            let shut = matches!(what, "state.json" | "all");
            sleep(Duration::from_millis(100));
            let before = tally.violations;
            bench.settle(tally, if shut { Excused::Connections } else { Excused::Nothing });
            if tally.violations > before {
                tally.note(format!("the violations of run {}: {what} was {how}", tally.runs));
            }
            if shut {
                bench.wait_for_load(tally);
            }
        }
    }
    bench.finish(tally, Excused::Nothing);
}

/// The files of one kind that namegate reads at a start; what was set aside is not among them.
fn files(state: &Path, what: &str) -> Vec<PathBuf> {
    let below = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let whole = |path: &PathBuf| path.is_file() && !path.to_string_lossy().contains("damaged");
    match what {
        "all" => ["names", "last-good.journal", "state.json"].iter().flat_map(|what| files(state, what)).collect(),
        "names" => below(state.join("names")).filter(|path| whole(path) && path.extension().is_none()).collect(),
        name => Some(state.join(name)).filter(whole).into_iter().collect(),
    }
}

/// The policy with one more name, so that one more group is in it.
fn with_item(number: u32) -> String {
    let port = 9000 + number;
    let item = format!(
        "  - toFQDNs: [{{matchName: more{number}.example.net}}]\n    toPorts: [{{ports: [{{port: \"{port}\", protocol: TCP}}]}}]\n"
    );
    [Bench::policy(), &item].concat()
}

/// Fills a file system to the last octet.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).expect("a file can be made");
    for chunk in [4096, 1] {
        while file.write(&vec![0; chunk]).is_ok_and(|written| written > 0) {}
    }
}
