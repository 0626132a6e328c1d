//! Runs what the fuzz targets check over their corpus: what a fuzzer once found stays found, without one.

use std::fs;
use std::path::Path;

#[path = "fuzz/checks/mod.rs"]
mod checks;

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
