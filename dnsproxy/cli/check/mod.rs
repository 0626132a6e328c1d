//! `namegate check`: reads policies and the objects they speak of as the node would, says what is wrong with them and what
//! will bite their author, and touches nothing.
//!
//! - `input`: files, directories and standard input as one snapshot
//! - `written`: what only the text shows, as lists that are empty
//! - `text` and `sarif`: how findings are printed

mod input;
mod sarif;
#[cfg(test)]
mod tests;
mod text;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{FAILED, USAGE, complain, print};
use crate::cluster::files::{File, SkippedFor};
use crate::cluster::snapshot::{LastGood, OnInvalid, Snapshot, assemble};
use crate::engine::advice;
use crate::engine::compile::Compiler;
use crate::engine::labels::Match;
use crate::engine::world::PeerIds;

/// What `namegate check` takes.
#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// Files, directories, or - for standard input; all of them are one snapshot
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// How findings are printed.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Output {
    /// A line and its place in the file, for people
    #[default]
    #[value(alias = "table")]
    Text,
    /// JSON, for programs
    Json,
    /// SARIF 2.1.0, for code scanning
    Sarif,
}

/// What was found.
#[derive(Serialize, Debug)]
pub(super) struct Findings {
    findings: Vec<Finding>,
    errors: usize,
    warnings: usize,
    policies: usize,
    pods: usize,
    skipped: usize,
    skipped_files: Vec<SkippedFile>,
}

/// What lies in a directory and isn't read, or a folder with all that it holds.
#[derive(Serialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct SkippedFile {
    file: String,
    why: WhySkipped,
}

/// Why a file isn't read.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "lowercase")]
enum WhySkipped {
    /// Its name begins with a dot.
    Hidden,
    /// Its name ends otherwise than manifests do.
    Ending,
    /// It is a folder below too many others.
    Depth,
}

impl From<SkippedFor> for WhySkipped {
    fn from(why: SkippedFor) -> WhySkipped {
        match why {
            SkippedFor::Hidden => WhySkipped::Hidden,
            SkippedFor::Ending => WhySkipped::Ending,
            SkippedFor::Depth => WhySkipped::Depth,
        }
    }
}

/// One thing that is wrong, or that bites.
#[derive(Serialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Finding {
    file: String,
    /// From 1; none if the file can't be read at all.
    line: Option<u32>,
    /// In characters, from 1.
    column: Option<u32>,
    level: Level,
    rule: &'static str,
    object: String,
    text: String,
}

/// How bad it is.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// It is not in force as it is written.
    Error,
    /// It is, and may do something else than was meant.
    Warning,
}

/// Kinds of errors, as `advice::KINDS` has those of warnings.
const ERRORS: [(&str, &str); 4] = [
    (REFUSED, "an object or a file that is refused: its last good version stays in force, without one it shuts"),
    (NOT_ENFORCED, "a rule that demands what namegate can't enforce yet: it allows nothing"),
    (NO_RULE_SET, "a pod whose policies can't be compiled: it stays closed"),
    (NOTHING, "nothing to check: standard input is empty, or every file is"),
];
const REFUSED: &str = "refused";
const NOT_ENFORCED: &str = "not-enforced";
const NO_RULE_SET: &str = "no-rule-set";
const NOTHING: &str = "nothing-to-check";

impl CheckArgs {
    pub(super) fn run(self) -> ExitCode {
        let (files, skipped_files) = match input::read(&self.paths) {
            Ok(read) => read,
            Err(text) => {
                complain(&text);
                return ExitCode::from(USAGE);
            }
        };
        let findings = Findings { skipped_files, ..Findings::of(&files) };
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let printed = print(
            match self.output {
                Output::Text => findings.text(&files, colour),
                Output::Json => format!("{:#}\n", serde_json::json!(findings)),
                Output::Sarif => format!("{:#}\n", findings.sarif()),
            }
            .as_bytes(),
        );
        if findings.findings.is_empty() { printed } else { ExitCode::from(FAILED) }
    }
}

impl Findings {
    /// What is wrong with the objects, with what they come to for pods, and what their authors may not have meant.
    pub(super) fn of(files: &[File]) -> Findings {
        // Without a last good version, and strictly: what is wrong shows, whatever the node's own settings are.
        let snapshot = assemble(files, &LastGood::default(), OnInvalid::Refuse);
        let world = &snapshot.world;
        let mut findings = refused(&snapshot);
        let wrong: BTreeSet<_> = findings.iter().map(|found| (found.file.clone(), found.line, found.column)).collect();
        findings.extend(not_compiled(&snapshot));

        let written = written::read(files, &snapshot.refusals);
        // Whoever pipes what failed into a check must not read that all is well.
        let blank =
            written.blank.iter().filter(|name| name.as_str() == input::STDIN || written.blank.len() == files.len());
        findings.extend(blank.map(|name| {
            let text = "nothing to check: no object is written here";
            Finding::new(Level::Error, NOTHING, name, format!("file {name}"), "", text)
        }));
        let advice = advice::advise(world).into_iter().map(|advice| {
            let rule = &advice.at.0;
            let name = if rule.namespace.is_empty() {
                rule.policy.clone()
            } else {
                format!("{}/{}", rule.namespace, rule.policy)
            };
            Finding::new(
                Level::Warning,
                advice.kind,
                &rule.place,
                format!("{} {name}", rule.kind),
                &rule.path,
                &advice.text,
            )
        });
        let warnings = advice.chain(written.findings).filter(|found| {
            let silenced = written.allowed.get(&found.object).is_some_and(|kinds| kinds.contains(found.rule));
            // What is refused for the same reason is told once.
            !silenced && !wrong.contains(&(found.file.clone(), found.line, found.column))
        });
        findings.extend(warnings);
        findings.sort();
        findings.dedup();
        let errors = findings.iter().filter(|found| found.level == Level::Error).count();
        Findings {
            errors,
            warnings: findings.len() - errors,
            findings,
            policies: world.policies.len(),
            pods: world.pods.len(),
            skipped: snapshot.skipped,
            skipped_files: Vec::new(),
        }
    }
}

impl Finding {
    /// `place` as `file:line:column`, or the file alone.
    fn new(level: Level, rule: &'static str, place: &str, object: String, path: &str, text: &str) -> Finding {
        let mut parts = place.rsplitn(3, ':');
        let (column, line, file) = (parts.next(), parts.next(), parts.next());
        let number = |part: Option<&str>| part.and_then(|part| part.parse::<u32>().ok());
        let text = if path.is_empty() { text.to_owned() } else { format!("{path}: {text}") };
        match (file, number(line), number(column)) {
            (Some(file), Some(line), Some(column)) => {
                let (line, column) = (Some(line), Some(column));
                Finding { file: file.to_owned(), line, column, level, rule, object, text }
            }
            _ => Finding { file: place.to_owned(), line: None, column: None, level, rule, object, text },
        }
    }
}

fn refused(snapshot: &Snapshot) -> Vec<Finding> {
    let refusals = snapshot.refusals.iter().map(|refusal| {
        let rule = if refusal.text.contains("not enforced by namegate yet") { NOT_ENFORCED } else { REFUSED };
        Finding::new(Level::Error, rule, &refusal.place, refusal.object.clone(), "", &refusal.text)
    });
    refusals.collect()
}

/// Compiles once for each set of rules that holds for some pod.
fn not_compiled(snapshot: &Snapshot) -> Vec<Finding> {
    let world = &snapshot.world;
    let mut ids = PeerIds::default();
    let compiler = Compiler::new(world, &mut ids);
    let mut found: BTreeMap<String, Finding> = BTreeMap::new();
    for (pod, rules) in advice::one_of_each(world) {
        let Some(place) = world.pods.get(&pod).map(|pod| pod.place.clone()) else { continue };
        let refused = world.refused.iter().flat_map(|policy| &policy.rules).map(|rule| (rule, Match::Maybe));
        let rules = rules.into_iter().map(|rule| (rule, Match::Yes)).chain(refused);
        if let Err(error) = compiler.compile_among(&pod, rules, &[]) {
            let text = error.to_string();
            let finding = Finding::new(Level::Error, NO_RULE_SET, &place, format!("Pod {pod}"), "", &text);
            found.entry(text).or_insert(finding);
        }
    }
    found.into_values().collect()
}

/// Every kind of finding, with its level and what it is about.
fn kinds() -> impl Iterator<Item = (&'static str, Level, &'static str)> {
    let errors = ERRORS.iter().map(|(id, about)| (*id, Level::Error, *about));
    let warnings = advice::KINDS.iter().chain(written::KINDS).map(|(id, about)| (*id, Level::Warning, *about));
    errors.chain(warnings)
}
