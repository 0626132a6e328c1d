//! Runs what the fuzz targets check over their corpus: what a fuzzer once found stays found, without one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use namegate::observe::Reason;

#[path = "fuzz/checks/mod.rs"]
mod checks;

/// Of the frames, each reason must come at least so often; percent.
const LEAST: f64 = 0.5;

#[track_caller]
fn holds(target: &str, check: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(&directory).expect("a corpus") {
        let path = entry.expect("a directory entry").path();
        let octets = fs::read(&path).expect("a file");
        let held = std::panic::catch_unwind(|| check(&octets));
        assert!(held.is_ok(), "{}", path.display());
        inputs += 1;
    }
    assert!(inputs >= 10, "{inputs} inputs for {target}");
}

#[test]
fn queries_are_read_as_hickory_reads_them() {
    holds("query", checks::query::check);
}

#[test]
fn answers_teach_what_the_model_says_and_go_out_whole() {
    holds("answer", checks::answer::check);
}

#[test]
fn replies_match_their_question_as_hickory_reads_both() {
    holds("upstream", checks::upstream::check);
}

#[test]
fn patterns_match_as_the_grammar_says() {
    holds("pattern", checks::pattern::check);
}

#[test]
fn manifests_are_read_and_refusing_opens_nothing() {
    holds("manifest", checks::manifest::check);
}

#[test]
fn datagrams_go_there_and_back() {
    holds("datagrams", checks::datagrams::check);
}

#[test]
fn configurations_are_refused_with_their_place_or_can_be_written_again() {
    holds("config", checks::config::check);
}

#[test]
fn damaged_checkpoints_are_refused_and_say_nothing_new() {
    holds("checkpoint", checks::checkpoint::check);
}

#[test]
fn damaged_states_are_refused() {
    holds("state", checks::state::check);
}

#[test]
fn damaged_journals_say_what_was_said_before_or_nothing() {
    holds("journal", checks::journal::check);
}

#[test]
fn whoever_asks_the_admin_socket_gets_whole_replies_and_leaves_nothing() {
    holds("admin", checks::admin::check);
}

#[test]
fn questions_about_policy_have_one_answer() {
    holds("question", checks::question::check);
}

#[test]
fn scenarios_are_refused_with_their_line_or_say_one_thing() {
    holds("scenario", checks::scenario::check);
}

#[test]
fn frames_fare_as_the_judge_says() {
    holds("frames", checks::frames::check);
}

/// NAMEGATE_FRAMES: how many, for the long run; NAMEGATE_SEED: which. Prints a JSON line.
#[test]
fn the_programs_do_with_any_frame_what_the_judge_says() {
    let frames = setting("NAMEGATE_FRAMES").unwrap_or(300_000);
    let seed = setting("NAMEGATE_SEED").unwrap_or(20_261_121);
    let began = namegate::clock::now();
    let seen = checks::frames::differences(seed, frames);
    let share =
        |reason: &Reason| seen.by_reason.get(reason).copied().unwrap_or_default() as f64 * 100.0 / seen.frames as f64;
    let shares: BTreeMap<&str, f64> =
        Reason::ALL.iter().map(|reason| (reason.text(), (share(reason) * 100.0).round() / 100.0)).collect();
    let line = serde_json::json!({
        "test": "the_programs_do_with_any_frame_what_the_judge_says",
        "seed": seed,
        "frames": seen.frames,
        "differences": seen.differences,
        "steered": seen.steered,
        "rejected": seen.rejected,
        "early": seen.early,
        "seconds": began.elapsed().as_secs_f64(),
        "shares": shares,
    });
    println!("{line}");
    assert_eq!(seen.differences, 0, "worlds in which program and judge differ");
    // The judge knows the host's side, where the proxy sends nothing by the pod's interface.
    let here = Reason::ALL.iter().filter(|reason| **reason != Reason::Proxy);
    let rare: Vec<_> = here.filter(|reason| share(reason) < LEAST).map(|reason| reason.text()).collect();
    assert!(rare.is_empty(), "each reason must come at least at {LEAST} %: {rare:?}");
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number is wanted")))
}
