//! Results for people, programs and CI servers.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value as Json;

use super::Tested;
use super::judge::Outcome;
use crate::observe::text::clean;

/// One line of JSON.
#[derive(Serialize)]
struct Line<'o> {
    id: &'o Json,
    ok: bool,
    expect: &'o str,
    got: &'o str,
    why: &'o str,
}

/// The cases that differ, and how many there are.
pub(super) fn text(all: &[Tested]) -> String {
    let mut text = String::new();
    for Tested { file, outcomes } in all {
        for outcome in outcomes.iter().filter(|outcome| !outcome.ok) {
            let _ = writeln!(text, "{}: {}: {}", clean(file), name(outcome), said(outcome));
            for line in outcome.chain.lines() {
                let _ = writeln!(text, "  {}", clean(line));
            }
        }
    }
    let (count, wrong) = counts(all.iter().flat_map(|tested| &tested.outcomes));
    let _ = writeln!(text, "{count} cases, {} as expected, {wrong} not", count - wrong);
    text
}

/// A line a case.
pub(super) fn json(all: &[Tested]) -> String {
    let mut text = String::new();
    for Outcome { id, expect, got, ok, why, .. } in all.iter().flat_map(|tested| &tested.outcomes) {
        let line = Line { id, ok: *ok, expect, got, why };
        let line = serde_json::to_string(&line).expect("a line has no map keys that are no strings");
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// JUnit's XML: a suite a file.
pub(super) fn junit(all: &[Tested]) -> String {
    let (count, wrong) = counts(all.iter().flat_map(|tested| &tested.outcomes));
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(text, "<testsuites name=\"namegate test\" tests=\"{count}\" failures=\"{wrong}\">");
    for Tested { file, outcomes } in all {
        let (count, wrong) = counts(outcomes.iter());
        let file = escaped(file);
        let _ = writeln!(text, "  <testsuite name=\"{file}\" tests=\"{count}\" failures=\"{wrong}\">");
        for outcome in outcomes {
            let start = format!("    <testcase classname=\"{file}\" name=\"{}\"", escaped(&name(outcome)));
            if outcome.ok {
                let _ = writeln!(text, "{start}/>");
            } else {
                let (said, chain) = (escaped(&said(outcome)), escaped(&outcome.chain));
                let _ =
                    writeln!(text, "{start}>\n      <failure message=\"{said}\">{chain}</failure>\n    </testcase>");
            }
        }
        let _ = writeln!(text, "  </testsuite>");
    }
    text.push_str("</testsuites>\n");
    text
}

fn name(outcome: &Outcome) -> String {
    match &outcome.id {
        Json::String(text) => clean(text),
        other => other.to_string(),
    }
}

fn said(outcome: &Outcome) -> String {
    match outcome.got {
        "error" => "it can't be judged".to_owned(),
        got if got == outcome.expect => format!("got {got} as expected, but for another reason"),
        got => format!("expected {}, got {got}", outcome.expect),
    }
}

fn counts<'o>(outcomes: impl Iterator<Item = &'o Outcome>) -> (usize, usize) {
    outcomes.fold((0, 0), |(all, wrong), outcome| (all + 1, wrong + usize::from(!outcome.ok)))
}

/// Text as XML has it; what XML 1.0 can't hold at all is spelt out (section 2.2).
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        for c in clean(line).chars() {
            match c {
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '"' => out.push_str("&quot;"),
                '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
                c => out.push(c),
            }
        }
        out.push_str(end);
    }
    out
}
