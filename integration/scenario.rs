//! Scenarios: stories that span stages, as files, each run against the whole daemon in namespaces, and those that need no
//! kernel against the engine alone. What a scenario doesn't list must not happen: a grant more or less fails it.
//!
//! A file (`scenarios/SUBJECT/*.scn`) is statements. One begins at the left margin; lines that are indented belong to
//! it. Two blanks or a line's end separate its clauses. `#` begins a comment. `{1..9}` repeats the statement with the
//! numbers. `pay` and `rep` are the pods payment-processor and reports, 198.51.100.10 and .11; `out` is the outside.
//!
//! ```text
//! also against the engine                      the steps need no kernel and no socket: a second trial plays them without
//! setting dns.min_ttl=1s dns.grace=2s          settings of namegate, before the first step; dns.cache is off unless set
//! file orders.yaml:                            a file of the snapshot; the text is what is indented, less two blanks
//!   apiVersion: cilium.io/v2 …
//! file orders.yaml from config/examples/X.yaml  the same with the text of a file of ours
//! policy pay:                                  the file pay.yaml: it may ask kube-dns anything, and egress has
//!   - toFQDNs: [{matchName: api.example.com}]  these rules
//! ```
//!
//! Before all steps these make the snapshot (with config/demo's cluster); after the first step they change it. Steps:
//!
//! ```text
//! at 3s                                        first clause of any step: not before this time
//! pay asks NAME TYPE [over tcp|tls] [of ADDRESS] [without edns | taking OCTETS]
//!   upstream says WHAT                         what the name server says to it from now on
//!   reply RCODE [ADDRESS…] [ttl N] [ede N] [saying TEXT] [with TEXT] [without TEXT] [truncated]
//!   reply none                                 the addresses are all that the reply holds, in any order; TEXT is in
//!                                              the EDE's text (saying) or in a record (with, without), one word
//! pay sends raw HEX [over tcp]  reply …        octets as a DNS message to kube-dns
//! NAME TYPE says WHAT                          the name server's words for a name that nobody asks right now
//! server ADDRESS says WHAT                     that name server, to every question: silent, rcode R or late 3s
//! server ADDRESS answers                       as it did before
//! pay reaches ADDRESS:PORT[/udp]               connects, or gets a datagram's echo; `rep:80` is the other pod
//! pay reaches ADDRESS:PORT[/udp] though WHY    it is only audited: the flow record says AUDIT and WHY it would be stopped
//! pay is stopped at ADDRESS:PORT[/udp][: WHY]  doesn't; WHY is namegate's reason in the flow record
//! pay opens c1 to ADDRESS:PORT                 a connection that stays, by a name of the scenario's
//! pay opens u1 to ADDRESS:PORT/udp             a socket that stays, after a datagram there and back
//! c1 goes on      c1 ends      c1 closes       an octet there and back; or it is over; or the pod closes it
//! pay knows ADDRESS as NAME… | nothing         `namegate fqdn list` has these names for it, within some seconds; `?` for
//!                                              a grant of an earlier run whose name is not known
//! pay sends KIND from ADDRESS:PORT to ADDRESS:PORT  arrives | is stopped[: WHY]
//!                                              a frame past pay's own stack: syn, ack, udp, cut (half a UDP header),
//!                                              protocol N; `from c1` bears the ends of a connection, whoever opened it
//! kill -9     start     SIGHUP     SIGTERM     the daemon's life; start and SIGHUP wait until it is done
//! file NAME is removed
//! nothing                                      only looks whether something changed
//!   + grant pay ADDRESS 60s                    this step grants it, until so long from now; deadlines are whole seconds of
//!                                              the kernel's clock, so what must be over is tried a second later
//!   - grant pay ADDRESS                        this step takes it back (a deadline that passes needs no word)
//!   + refused TEXT     - refused TEXT          namegate names a refused object: `OBJECT PLACE TEXT` holds the word TEXT
//!   + closed pay       - closed pay            the state of the endpoint is `closed` from now on, or no more
//! ```
//!
//! The name servers are kube-dns' and, for `dns.upstreams`, 203.0.113.55 and 203.0.113.56. `by ADDRESS` in WHAT: only that
//! one says so.
//!
//! WHAT: `ADDRESS…`, `[OWNER TYPE DATA]…` (no owner: the name asked for), `ttl N` (60 if not said), `rcode R`, `soa N` (in the
//! authority section, its TTL and least TTL), `tc`, `silent`,
//! `late 300ms`, `lost N` (datagrams of the question), `folded` (over UDP the name comes back in lower case), and before all that over UDP `forged number|question|case|port|address ADDRESS` or `forged header`.
//!
//! **The control:** before the daemon starts, everything that the file says is stopped is tried in the same world, and
//! must arrive; else the scenario is INVALID, for it would pass whatever namegate does.

use std::fs;
use std::path::{Path, PathBuf};

use libtest_mimic::{Failed, Trial};

mod daemon;
mod engine;
mod faults;
mod language;
mod run;

use crate::lab::agent::{Forgery, Script};
use crate::lab::snapshot;
use crate::lab::world::Family;
use language::Scenario;

/// One trial a file, and a second against the engine for those that say so.
pub fn trials() -> Vec<Trial> {
    let mut files = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/scenarios"), &mut files);
    files.sort();
    let mut trials = faults::trials();
    for (name, path) in files {
        match read(&path) {
            Ok(scenario) if scenario.engine => {
                trials.push(Trial::test(format!("scenario::engine::{name}"), move || in_engine(&scenario)));
            }
            _ => {}
        }
        trials.push(Trial::test(format!("scenario::{name}"), move || in_world(&path)));
    }
    trials
}

fn in_world(path: &Path) -> Result<(), Failed> {
    let scenario = read(path)?;
    daemon::control(&scenario).map_err(|why| format!("INVALID: {why}"))?;
    run::run(&scenario, daemon::Node::new(&scenario)?)?;
    Ok(())
}

fn in_engine(scenario: &Scenario) -> Result<(), Failed> {
    run::run(scenario, engine::Model::new(scenario)?)?;
    Ok(())
}

fn read(path: &Path) -> Result<Scenario, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Scenario, String> {
    language::parse(text, Family::V4.kube_dns())
}

/// `SUBJECT::NAME` and path of every scenario under a directory.
fn collect(directory: &Path, into: &mut Vec<(String, PathBuf)>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "scn") {
            let subject = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            into.push((format!("{subject}::{name}"), path));
        }
    }
}
