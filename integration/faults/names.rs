//! What happens to what it is told: by DNS servers, and by the snapshot.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::Fault;
use super::bench::{Bench, Excused, Size, Tally};
use super::load::{self, FAMILIES};
use crate::lab::agent::{Forgery, Request, Script};
use crate::lab::{clock, snapshot};

pub const FAULTS: [Fault; 7] = [
    ("upstream_dead", |size, tally| upstream(size, tally, Script { silent: true, ..Script::default() })),
    ("upstream_slow", |size, tally| upstream(size, tally, Script { delay_ms: 1500, ..Script::default() })),
    ("upstream_fails", |size, tally| upstream(size, tally, Script { rcode: "SERVFAIL".into(), ..Script::default() })),
    ("upstream_lies", upstream_lies),
    ("snapshot_half_written", half_written),
    ("snapshot_swapped_every_5_ms", swapped),
    ("snapshot_with_a_broken_file_among_1000", broken_among_many),
];

/// The server does `what` for a while, and is back. Names that are kept are answered all the time.
fn upstream(size: Size, tally: &mut Tally, what: Script) {
    let mut bench = Bench::new(&[]);
    let fail = |bench: &Bench, what: Option<Script>| {
        for family in FAMILIES {
            bench.world.outside.done(Request::Fail { at: family.outside(53), script: what.clone() });
        }
    };
    for _ in 0..size.runs(20, 2) {
        tally.runs += 1;
        fail(&bench, Some(what.clone()));
        bench.nap(100);
        let begun = clock::mono_ns();
        sleep(Duration::from_millis(400));
        let kept = bench.first_answer("same", begun, Duration::ZERO);
        tally.demand(kept.is_some(), || "a name whose answer is kept was not answered without the upstream".into());
        let back = clock::mono_ns();
        fail(&bench, None);
        match bench.first_answer("new", back, Duration::from_secs(10)) {
            Some(took) => tally.upstream_back_us.push(took.as_micros() as u64),
            None => tally.violate("a new name is not answered 10 s after the upstream came back"),
        }
        bench.settle(tally, Excused::Nothing);
    }
    bench.finish(tally, Excused::Nothing);
}

/// Each answer is preceded by wrong ones that carry an address that nobody may reach, and has such a record beside the chain.
fn upstream_lies(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    for _ in 0..size.runs(20, 2) {
        tally.runs += 1;
        for family in FAMILIES {
            let (wrong, right) = (family.outside(load::STRANGER), family.outside(load::FRESH).to_string());
            let script = Script {
                records: vec![
                    (String::new(), family.qtype().into(), right),
                    ("beside.example.net.".into(), family.qtype().into(), wrong.to_string()),
                ],
                ttl: 300,
                forged: vec![
                    Forgery::Number(wrong),
                    Forgery::Question(wrong),
                    Forgery::Port(wrong),
                    Forgery::Address(wrong),
                    Forgery::Header,
                ],
                ..Script::default()
            };
            bench.world.outside.say("*.load.example.net", family.qtype(), script);
        }
        let begun = clock::mono_ns();
        sleep(Duration::from_millis(300));
        let answered = bench.first_answer("new", begun, Duration::from_secs(5));
        tally.demand(answered.is_some(), || "the right answer behind the wrong ones did not come within 5 s".into());
        let right = FAMILIES.map(|family| family.outside(load::FRESH));
        bench.world.outside.say_addresses("*.load.example.net", &right, 300);
        bench.settle(tally, Excused::Nothing);
    }
    bench.finish(tally, Excused::Nothing);
}

/// The file is cut at some octet for up to 60 ms while its writer has it open, in place.
fn half_written(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    let text = Bench::policy();
    for _ in 0..size.runs(40, 8) {
        tally.runs += 1;
        let cut = bench.random(text.len() as u64) as usize;
        let mut file = fs::File::create(bench.policy_file()).expect("a file can be written");
        file.write_all(&text.as_bytes()[..cut]).expect("written");
        bench.nap(60);
        file.write_all(&text.as_bytes()[cut..]).expect("written");
        drop(file);
        sleep(Duration::from_millis(60));
        let before = tally.violations;
        bench.settle(tally, Excused::Nothing);
        if tally.violations > before {
            tally.note(format!("run {}: cut after {:?}", tally.runs, text[..cut].lines().last().unwrap_or_default()));
        }
    }
    bench.finish(tally, Excused::Nothing);
}

/// As the kubelet mounts it: generations of all files, and a link that is moved between two of them.
fn swapped(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    let directory = bench.world.directory.join("snapshot");
    let more =
        "  - toFQDNs: [{matchName: two.example.net}]\n    toPorts: [{ports: [{port: \"5432\", protocol: TCP}]}]\n";
    for (generation, text) in [("..1", Bench::policy().to_owned()), ("..2", [Bench::policy(), more].concat())] {
        snapshot::with_policy(&directory.join(generation), &text);
    }
    point(&directory, "..1");
    for entry in fs::read_dir(directory.join("..1")).expect("it was just made").flatten() {
        let beside = directory.join("..link");
        symlink(Path::new("..data").join(entry.file_name()), &beside).expect("a link can be made");
        fs::rename(beside, directory.join(entry.file_name())).expect("a link can be renamed");
    }
    for _ in 0..size.runs(3, 1) {
        tally.runs += 1;
        for swap in 0..size.runs(600, 200) {
            point(&directory, if swap % 2 == 0 { "..2" } else { "..1" });
            sleep(Duration::from_millis(5));
        }
        let over = clock::mono_ns();
        bench.back(over, tally);
        bench.settle(tally, Excused::Nothing);
    }
    tally.note("3 times: each is 600 swaps");
    bench.daemon().wait_ready();
    bench.finish(tally, Excused::Nothing);
}

fn point(directory: &Path, generation: &str) {
    let beside = directory.join("..data_tmp");
    symlink(generation, &beside).expect("a link can be made");
    fs::rename(beside, directory.join("..data")).expect("a link can be renamed");
}

/// One of a thousand is broken, then mended; every other time it is the workload's own, whose last good version stays.
fn broken_among_many(size: Size, tally: &mut Tally) {
    let mut bench = Bench::new(&[]);
    let directory = bench.world.directory.join("snapshot");
    let other = |number: u64| {
        let text = Bench::policy().replace("name: payment-processor", &format!("name: other-{number}"));
        text.replace("app: payment-processor", &format!("app: other-{number}"))
    };
    for number in 0..1000 {
        fs::write(directory.join(format!("other-{number}.yaml")), other(number)).expect("a file can be written");
    }
    bench.daemon().wait_ready();
    for run in 0..size.runs(20, 2) {
        tally.runs += 1;
        let number = bench.random(1000);
        let (path, good) = match run % 2 {
            0 => (bench.policy_file(), Bench::policy().to_owned()),
            _ => (directory.join(format!("other-{number}.yaml")), other(number)),
        };
        let broken = match run % 4 {
            0 | 1 => good.replace("  egress:", "  egress: [\n  unheardOf:"),
            _ => format!("{good}  unheardOf: 1\n"),
        };
        snapshot::replace(&path, &broken);
        sleep(Duration::from_millis(300));
        bench.settle(tally, Excused::Nothing);
        if run % 5 == 0 {
            bench.kill();
            bench.restart(tally);
            bench.settle(tally, Excused::Nothing);
        }
        snapshot::replace(&path, &good);
        sleep(Duration::from_millis(100));
        bench.settle(tally, Excused::Nothing);
    }
    bench.finish(tally, Excused::Nothing);
}
