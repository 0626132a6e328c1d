//! `namegate policy`: what is in force, each selector, and what a change would change.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;

use super::node::CommonArgs;
use super::offline::Offline;
use super::table::Table;
use super::{FAILED, Output, USAGE, complain, print, usage};
use crate::cluster::snapshot::Stands;
use crate::config::Config;
use crate::engine::explain::diff::{Diff, diff};
use crate::engine::explain::overview::{Items, PolicyRow, SelectorRow, policies, selectors};
use crate::engine::explain::{Explainer, words};
use crate::observe::text::clean;
use crate::operate::RefusalStatus;
use crate::operate::client;
use crate::operate::explain::{Compared, Policies, PolicyAsked};

/// What `namegate policy` can do.
#[derive(Subcommand, Debug)]
pub(super) enum PolicyCommand {
    /// List the policies that are in force, whom they select and how many items they have; and what was refused
    Get(ListArgs),
    /// List each selector of the policies, and whom it selects
    Selectors(ListArgs),
    /// Say which verdicts change from one snapshot to another; exit with 1 if some do
    Diff(DiffArgs),
}

/// What the lists take.
#[derive(Args, Debug)]
pub(super) struct ListArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Of this directory of Kubernetes objects instead of the running namegate
    #[arg(long, value_name = "DIR")]
    pub snapshot: Option<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// What `namegate policy diff` takes.
#[derive(Args, Debug)]
#[command(after_help = DIFF_HELP)]
pub(super) struct DiffArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// The old snapshot, then the new one; the new one alone: against what the running namegate enforces
    #[arg(value_name = "OLD NEW", required = true, num_args = 1..=2)]
    snapshots: Vec<PathBuf>,
    /// How many changes to print at most; 0 for all
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

const DIFF_HELP: &str = "\
Compared are the verdicts of every endpoint that both snapshots have: on every peer of the cluster and the endpoint's own
node, on every range of addresses and ports that the rules of either tell apart, and on a name for every pattern. \"Every
port\" is all of TCP, UDP and SCTP, and the types of ICMP that ask. What is refused in either snapshot is named first.

Exit codes:
  0  nothing changes
  1  something changes
  2  the command line or the configuration is wrong, or a snapshot can't be read, or an object of the new one is refused";

/// How many of a list stand in a cell.
const IN_A_CELL: usize = 4;

impl PolicyCommand {
    pub(super) fn run(self) -> ExitCode {
        match self {
            PolicyCommand::Get(args) => {
                let offline =
                    |offline: &Offline| Policies { policies: policies(&offline.world), refused: offline.refused() };
                args.show(&PolicyAsked::Policies, offline, policies_text)
            }
            PolicyCommand::Selectors(args) => args.show(
                &PolicyAsked::Selectors,
                |offline: &Offline| selectors(&offline.world),
                |rows: &Vec<SelectorRow>| selectors_text(rows),
            ),
            PolicyCommand::Diff(args) => args.run(),
        }
    }
}

impl ListArgs {
    /// Prints what the snapshot or the running namegate has.
    pub(super) fn show<T: DeserializeOwned + serde::Serialize>(
        self,
        asked: &PolicyAsked,
        offline: impl Fn(&Offline) -> T,
        text: impl Fn(&T) -> String,
    ) -> ExitCode {
        let config = match self.common.source().load() {
            Ok(config) => config,
            Err(errors) => return usage(&errors),
        };
        let (told, code) = match &self.snapshot {
            Some(dir) => (Offline::read(dir, &self.common.source()).map(|read| offline(&read)), USAGE),
            None => (ask(&config, asked), FAILED),
        };
        match told {
            Ok(told) if self.output == Output::Table => print(text(&told).as_bytes()),
            Ok(told) => print(format!("{:#}\n", serde_json::json!(told)).as_bytes()),
            Err(why) => {
                complain(&why);
                ExitCode::from(code)
            }
        }
    }
}

/// Asks the running namegate.
///
/// # Errors
/// It isn't there, or did not like the question.
pub(super) fn ask<T: DeserializeOwned>(config: &Config, asked: &PolicyAsked) -> Result<T, String> {
    let answer = client::get(&config.admin_socket(), &asked.to_page(), Duration::from_secs(60))
        .map_err(|error| format!("{:#}; --snapshot DIR asks a directory", anyhow::Error::new(error)))?;
    if answer.status != 200 {
        return Err(answer.body.trim_end().to_owned());
    }
    serde_json::from_str(&answer.body).map_err(|error| format!("reading namegate's answer: {error}"))
}

impl DiffArgs {
    fn run(self) -> ExitCode {
        let config = match self.common.source().load() {
            Ok(config) => config,
            Err(errors) => return usage(&errors),
        };
        let found = match self.snapshots.as_slice() {
            [new] => match std::fs::canonicalize(new) {
                Ok(new) => ask(&config, &PolicyAsked::Diff(new)),
                Err(error) => Err(format!("{}: {error}", new.display())),
            },
            [old, new] => Offline::read(old, &self.common.source()).and_then(|old| {
                let new = Offline::read(new, &self.common.source())?;
                Ok(compare(&old, &new))
            }),
            _ => Err("one or two snapshots are allowed".to_owned()),
        };
        let found: Compared = match found {
            Ok(found) => found,
            Err(why) => {
                complain(&why);
                return ExitCode::from(USAGE);
            }
        };
        let printed = match self.output {
            Output::Table => {
                let limit = if self.limit == 0 { usize::MAX } else { self.limit };
                print(compared_text(&found, limit).as_bytes())
            }
            Output::Json => print(format!("{:#}\n", serde_json::json!(found)).as_bytes()),
        };
        // What is in force but for an item is compared as it is; what is refused is not what its author wants to know of.
        if found.refused.iter().any(|refusal| refusal.stands != Stands::Rest) {
            return ExitCode::from(USAGE);
        }
        if found.diff.is_empty() { printed } else { ExitCode::from(FAILED) }
    }
}

fn compare(old: &Offline, new: &Offline) -> Compared {
    let (before, after) = (old.surroundings(), new.surroundings());
    Compared {
        diff: diff(&Explainer::new(&old.world, before), &Explainer::new(&new.world, after)),
        refused: new.refused(),
        refused_before: old.refused(),
    }
}

/// The policies for people.
pub(super) fn policies_text(all: &Policies) -> String {
    let mut table = Table::new(&["KIND", "POLICY", "SELECTS", "EGRESS", "INGRESS", "STATE", "PLACE"]);
    for row in &all.policies {
        let PolicyRow { kind, namespace, name, place, selects, egress, ingress, refused } = row;
        let name = if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") };
        let state = if *refused { "refused" } else { "in force" };
        table.row([
            kind.clone(),
            name,
            format!("{selects} pods"),
            items(egress),
            items(ingress),
            state.to_owned(),
            place.clone(),
        ]);
    }
    let mut text = if table.is_empty() { "no policies\n".to_owned() } else { table.text() };
    text.extend(all.refused.iter().map(|refused| refusal_text("refused", refused)));
    text
}

fn refusal_text(word: &str, refused: &RefusalStatus) -> String {
    let stands = refused.stands;
    let (place, object) = (clean(&refused.place), clean(&refused.object));
    format!("{word}: {place}: {object}: {} ({stands})\n", clean(&refused.text))
}

fn items(items: &Items) -> String {
    let Items { default_deny, allow, deny, unenforced } = *items;
    let counts = [(allow, "allow"), (deny, "deny"), (unenforced, "not enforced")];
    let mut texts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    if default_deny {
        texts.push("default deny".to_owned());
    }
    texts.join(", ")
}

/// The selectors for people.
pub(super) fn selectors_text(rows: &[SelectorRow]) -> String {
    let mut table = Table::new(&["SELECTOR", "OF", "NAMESPACE", "POLICIES", "COUNT", "SELECTS"]);
    for row in rows {
        table.row([
            row.selector.clone(),
            row.of.clone(),
            row.namespace.clone().unwrap_or_default(),
            few(&row.policies),
            row.selects.len().to_string(),
            few(&row.selects),
        ]);
    }
    if table.is_empty() { "no selectors\n".to_owned() } else { table.text() }
}

fn few(texts: &[String]) -> String {
    match texts.len() {
        count if count > IN_A_CELL => format!("{}, {} more", texts[..IN_A_CELL].join(", "), count - IN_A_CELL),
        _ => texts.join(", "),
    }
}

/// What was refused, and the changes, for people.
fn compared_text(found: &Compared, limit: usize) -> String {
    let before = found.refused_before.iter().map(|refused| refusal_text("refused in the old snapshot", refused));
    let now = found.refused.iter().map(|refused| refusal_text("refused in the new snapshot", refused));
    before.chain(now).chain([diff_text(&found.diff, limit)]).collect()
}

/// The changes for people.
pub(super) fn diff_text(found: &Diff, limit: usize) -> String {
    if found.is_empty() {
        return "no verdict changes\n".to_owned();
    }
    let mut lines: Vec<String> = Vec::new();
    for (endpoints, word) in [(&found.added, "new endpoint"), (&found.removed, "endpoint that is gone")] {
        lines.extend(endpoints.iter().map(|endpoint| format!("{word}: {endpoint}")));
    }
    lines.extend(found.modes.iter().map(|mode| format!("mode: {mode}")));
    lines.extend(found.problems.iter().map(|problem| format!("no rules: {problem}")));
    let word = |allowed: bool| if allowed { "+ allowed" } else { "- denied" };
    for change in &found.connections {
        let way = if change.direction == "ingress" { "from" } else { "to" };
        let (endpoints, peers) = (words::some(&change.endpoints, ", ", ""), words::some(&change.peers, ", ", ""));
        let ports = words::some(&change.ports, ", ", "");
        lines.push(format!("{}: {} of {endpoints} {way} {peers} on {ports}", word(change.allowed), change.direction));
    }
    for change in &found.names {
        let (endpoints, what) = (words::some(&change.endpoints, ", ", ""), words::some(&change.what, ", ", ""));
        let example =
            if change.example == change.pattern { String::new() } else { format!(" (as {})", change.example) };
        lines.push(format!("{}: {endpoints} for the names {}{example}: {what}", word(change.allowed), change.pattern));
    }
    let more = lines.len().saturating_sub(limit);
    let mut text: String = lines.iter().take(limit).map(|line| clean(line) + "\n").collect();
    if more > 0 {
        text.push_str(&format!("{more} more changes; --limit 0 lists all\n"));
    }
    text
}
