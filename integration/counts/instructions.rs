//! Instructions a reply, by callgrind, compared with benches/instructions.json.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::server::{Kind, ROUND};
use super::{asker, valgrind};

/// More than the file says by this share fails.
const WORSE: f64 = 0.05;
/// Rounds that are counted.
const ROUNDS: usize = 50;
/// Runs at most. The least counts: what a busy machine adds (a timer that fires within a round) is no cost of a reply.
const RUNS: usize = 4;

/// Why the figures of this build can't be compared with the file's.
pub fn not_comparable() -> Option<String> {
    let (here, file) = (compiler(), file());
    if !valgrind::KNOWN {
        return Some("how to talk to valgrind on this machine is not known here".to_owned());
    }
    if cfg!(debug_assertions) {
        return Some("this is no release build (cargo test --release --test counts)".to_owned());
    }
    (file["compiler"] != *here).then(|| {
        format!("the file is of {}, this is {here}; cargo test --release --test counts -- refresh", file["compiler"])
    })
}

/// Whether a reply costs at most what the file says, and a little.
pub fn compare(kind: Kind) -> Result<(), String> {
    let allowed = file()[kind.name()].as_f64().ok_or("benches/instructions.json does not say")?;
    let most = allowed * (1.0 + WORSE);
    let mut counted = f64::INFINITY;
    for _ in 0..RUNS {
        counted = counted.min(count(kind));
        if counted <= most {
            break;
        }
    }
    println!("{{\"figure\":\"instructions_{}\",\"counted\":{counted:.0},\"file\":{allowed}}}", kind.name());
    if counted > most {
        return Err(format!(
            "{counted:.0} instructions; benches/instructions.json says {allowed}, and 5 % more are allowed. If that is as it \
             must be: cargo test --release --test counts -- refresh"
        ));
    }
    Ok(())
}

/// Writes the file; whether it could: only a release build counts.
pub fn refresh() -> bool {
    if cfg!(debug_assertions) {
        eprintln!("error: this is no release build; cargo test --release --test counts -- refresh");
        return false;
    }
    let mut figures = json!({"compiler": compiler()});
    for kind in Kind::ALL {
        let least = (0..RUNS).map(|_| count(kind)).fold(f64::INFINITY, f64::min);
        figures[kind.name()] = least.round().into();
    }
    let text = serde_json::to_string_pretty(&figures).expect("JSON") + "\n";
    fs::write(path(), &text).expect("the file can be written");
    println!("{text}");
    true
}

/// Prints where the instructions go: by function, without what it calls.
pub fn profile(kind: Kind) {
    let directory = tempfile::tempdir().expect("a directory");
    let out = directory.path().join("callgrind");
    println!("{:.0} instructions a {} reply, of {} rounds of {ROUND}", run(kind, &out), kind.name(), ROUNDS);
    let annotate = Command::new("callgrind_annotate").arg("--auto=no").arg(&out).status();
    assert!(annotate.expect("callgrind_annotate comes with valgrind").success());
}

/// Instructions a reply.
fn count(kind: Kind) -> f64 {
    let directory = tempfile::tempdir().expect("a directory");
    run(kind, &directory.path().join("callgrind"))
}

/// The same; callgrind's file stays.
fn run(kind: Kind, out: &Path) -> f64 {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--collect-atstart=no", "--quiet", "--log-file=/dev/null"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().expect("the path of this program"));
    asker::play(command, kind, ROUNDS);
    let text = fs::read_to_string(out).expect("callgrind writes its file");
    let total = text.lines().rev().find_map(|line| line.strip_prefix("totals: ")).expect("callgrind writes totals");
    total.trim().parse::<f64>().expect("a number") / (ROUNDS * ROUND) as f64
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.json")
}

fn file() -> Value {
    let text = fs::read_to_string(path()).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// The compiler that builds here.
fn compiler() -> String {
    let version = Command::new("rustc").arg("--version").current_dir(env!("CARGO_MANIFEST_DIR")).output();
    String::from_utf8_lossy(&version.expect("rustc is there").stdout).trim().to_owned()
}
