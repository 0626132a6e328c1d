//! `namegate test`: unit tests of policies.

mod case;
mod judge;
mod report;
#[cfg(test)]
mod tests;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::{FAILED, USAGE, complain, print};
use case::Case;
use judge::Outcome;

/// What `namegate test` takes.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct TestArgs {
    /// Files of cases: YAML documents or JSON lines; - for standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The directory of Kubernetes objects that cases without objects are about
    #[arg(long, value_name = "DIR")]
    snapshot: Option<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: TestOutput,
}

/// How results are printed.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum TestOutput {
    /// Cases that differ, each with its chain, for people
    #[default]
    Text,
    /// A line of JSON a case: id, ok, expect, got, why
    Json,
    /// XML, as CI servers read it
    Junit,
}

const AFTER_HELP: &str = "\
A case asks for one verdict:

  id: web-reaches-db            # optional, as all that follows says
  objects: [policies/, pod.yaml, {apiVersion: …}]   # paths, manifests; default: --snapshot
  subject: {namespace: shop, labels: {app: web}}    # or {pod: shop/web-0}; service_account
  direction: egress             # or ingress
  peer: {labels: {app: db}}     # namespace, labels | pod | entity | ip | fqdn, ip
  port: 5432
  protocol: TCP                 # default; UDP, SCTP; ICMP, ICMPv6 with icmp_type instead of port
  named_ports: {TCP: {http: 8080}}                  # of the side that listens
  expect: allow                 # or deny

  {subject: …, query: api.example.com, qtype: A, resolver: 198.18.0.10, expect: deny}

  {manifest: \"TEXT\", expect: refused, message: \"part of why\"}   # or valid

Exit codes:
  0  every case got what it expects
  1  one did not
  2  the command line is wrong, or a case can't be read; the others are judged all the same";

/// A file's results.
struct Tested {
    file: String,
    outcomes: Vec<Outcome>,
}

impl TestArgs {
    pub(super) fn run(self) -> ExitCode {
        if let Some(dir) = self.snapshot.as_ref().filter(|dir| !dir.is_dir()) {
            complain(&format!("{}: found no directory; allowed is a directory of Kubernetes objects", dir.display()));
            return ExitCode::from(USAGE);
        }
        let (mut tested, mut unreadable) = (Vec::new(), false);
        for file in &self.files {
            match test(file, self.snapshot.as_deref()) {
                Ok((outcomes, wrong)) => {
                    unreadable |= wrong;
                    tested.push(Tested { file: file.display().to_string(), outcomes });
                }
                Err(why) => {
                    complain(&why);
                    unreadable = true;
                }
            }
        }
        let printed = print(
            match self.output {
                TestOutput::Text => report::text(&tested),
                TestOutput::Json => report::json(&tested),
                TestOutput::Junit => report::junit(&tested),
            }
            .as_bytes(),
        );
        if unreadable {
            ExitCode::from(USAGE)
        } else if tested.iter().flat_map(|tested| &tested.outcomes).all(|outcome| outcome.ok) {
            printed
        } else {
            ExitCode::from(FAILED)
        }
    }
}

/// Judges the cases of a file; and whether one can't be read.
///
/// # Errors
/// The file can't be read at all.
fn test(file: &Path, snapshot: Option<&Path>) -> Result<(Vec<Outcome>, bool), String> {
    let mut octets = Vec::new();
    let stdin = file == Path::new("-");
    let read = if stdin {
        std::io::stdin().read_to_end(&mut octets).map(drop)
    } else {
        std::fs::read(file).map(|read| octets = read)
    };
    read.map_err(|error| format!("{}: {error}", file.display()))?;
    let name = if stdin { "(standard input)".to_owned() } else { file.display().to_string() };
    let text = String::from_utf8(octets).map_err(|_| format!("{name}: octets that are not UTF-8; UTF-8 is allowed"))?;
    let dir = file.parent().filter(|_| !stdin).unwrap_or(Path::new("."));
    Ok(judged(case::read(&name, &text, dir)?, snapshot))
}

fn judged(read: Vec<Result<Case, case::Wrong>>, snapshot: Option<&Path>) -> (Vec<Outcome>, bool) {
    let mut cases = Vec::new();
    // Where each that can't be read stands, so that all come out in their order.
    let mut order: Vec<Option<case::Wrong>> = Vec::with_capacity(read.len());
    for one in read {
        match one {
            Ok(case) => {
                cases.push(case);
                order.push(None);
            }
            Err(wrong) => order.push(Some(wrong)),
        }
    }
    let unreadable = order.iter().any(Option::is_some);
    let mut outcomes = judge::judge(&cases, snapshot).into_iter();
    let all = order.into_iter().filter_map(|wrong| match wrong {
        None => outcomes.next(),
        Some(wrong) => {
            let (why, chain) = (wrong.faults.join("; "), wrong.faults.join("\n") + "\n");
            Some(Outcome { id: wrong.id, expect: "", got: "error", ok: false, why, chain })
        }
    });
    (all.collect(), unreadable)
}
