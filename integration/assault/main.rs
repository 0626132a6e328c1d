//! The bench of attacks: what a hostile workload can send, ask and exhaust, each attempt in two worlds.
//!
//! Without namegate an attempt must arrive, or it is INVALID: it would prove nothing. With namegate it must not, or it FELL.
//! A canary records every frame that leaves towards the outside or the neighbour, and [`model`], which shares nothing with
//! the engine, says of each whether policy allows it: one outside of that is a **leak**. Between attempts both workloads
//! send what they may; what of it doesn't arrive is a **loss**.
//!
//! The class `beside` has worlds of its own, where namegate is a sidecar and the attacker another container of its pod.
//!
//! `assault [--slice] [--set KEY=VALUE] [FILTER]`: all, or of every class a third (of `beside`, which repeats others, a
//! ninth), or those whose title holds this; with another setting of namegate's. Ends with a line of JSON; fails if anything fell, leaked, was lost, or is invalid.

mod answers;
mod bench;
mod beside;
mod bounds;
mod interfaces;
#[path = "../lab/mod.rs"]
mod lab;
mod local;
mod message;
mod model;
mod names;
mod packets;
mod resources;
mod spoofing;

use std::collections::BTreeMap;
use std::process::ExitCode;

use bench::{Case, Pair, Side, Verdict};
use lab::process::guard;
use lab::{Topology, clock};
use serde_json::json;

fn main() -> ExitCode {
    lab::agent::serve_if_asked();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mut slice, mut filter, mut settings) = (false, String::new(), Vec::new());
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--slice" => slice = true,
            "--set" => settings.extend([argument, rest.next().expect("--set KEY=VALUE")]),
            _ => filter = argument,
        }
    }
    if !is_able() {
        println!("the attacks need root, nsenter, ip, nft and a bpffs that can be mounted: skipped");
        println!("test result: ok. 0 passed; 0 failed; 1 ignored");
        return if std::env::var("CI").is_ok_and(|ci| ci == "true") { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    guard::install();
    let start = clock::now();
    let mut tally = Tally::default();
    for topology in [Topology::Bridged, Topology::Routed] {
        let mut cases = cases(topology);
        if slice {
            cases = thinned(cases, 3);
        }
        cases.retain(|case| case.title(topology).contains(&filter));
        if !cases.is_empty() {
            let mut pair = Pair::new(topology, &settings);
            tally.add(&mut pair, topology, cases);
            if !slice && topology == Topology::Bridged {
                tally.bounds = Some(bounds::measure(&pair.guarded, &Side::new(topology, Some(&settings))));
            }
            tally.find(&pair);
        }
    }
    // What another container of a pod can do where namegate is a sidecar: all shapes are one to it.
    let mut cases = beside::cases();
    if slice {
        cases = thinned(cases, 9);
    }
    cases.retain(|case| case.title(Topology::Bridged).contains(&filter));
    if !cases.is_empty() {
        let mut pair = Pair::beside(Topology::Bridged, &settings);
        tally.add(&mut pair, Topology::Bridged, cases);
        tally.find(&pair);
    }
    guard::cleanup();
    tally.print(start.elapsed().as_secs_f64())
}

fn cases(topology: Topology) -> Vec<Case> {
    let mut cases = packets::cases(topology);
    cases.extend(names::cases());
    cases.extend(answers::cases(topology, false));
    cases.extend(spoofing::cases());
    cases.extend(interfaces::cases());
    if topology == Topology::Bridged {
        cases.extend(local::cases());
        cases.extend(resources::cases());
    }
    cases
}

/// The first of so many of every class, and none that takes long.
fn thinned(cases: Vec<Case>, of: usize) -> Vec<Case> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let quick = cases.into_iter().filter(|case| !case.long);
    quick
        .filter(|case| {
            let seen = seen.entry(case.class).or_default();
            *seen += 1;
            *seen % of == 1
        })
        .collect()
}

#[derive(Default)]
struct Tally {
    held: usize,
    fell: Vec<String>,
    invalid: Vec<String>,
    frames: usize,
    leaks: Vec<String>,
    loss: Vec<String>,
    /// Of the last world that was measured.
    bounds: Option<serde_json::Value>,
}

impl Tally {
    fn add(&mut self, pair: &mut Pair, topology: Topology, cases: Vec<Case>) {
        let mut marked = Vec::new();
        for case in cases {
            let title = case.title(topology);
            let mut id = pair.next_id();
            let mut verdict = pair.attempt(&case, id);
            if let Verdict::Invalid(why) = verdict {
                // A busy machine loses a frame or is late: only a control that fails twice says something of the case.
                println!("again    {title}: {why}");
                id = pair.next_id();
                verdict = pair.attempt(&case, id);
            }
            match verdict {
                Verdict::Held => {
                    println!("held     {title}");
                    // A flood may send much that policy allows.
                    marked.push((if case.class == "resources" { 0 } else { id }, title));
                }
                Verdict::Fell(why) => {
                    println!("FELL     {title}: {} ({why})", case.tries);
                    self.fell.push(title);
                }
                Verdict::Invalid(why) => {
                    println!("INVALID  {title}: {why}");
                    self.invalid.push(title);
                }
            }
        }
        // What was only late.
        pair.guarded.settle();
        for (id, title) in marked {
            if pair.guarded.arrived(id) > 0 {
                println!("FELL     {title}: it arrived later");
                self.fell.push(title);
            } else {
                self.held += 1;
            }
        }
    }

    fn find(&mut self, pair: &Pair) {
        let (frames, leaks, loss) = pair.guarded.findings();
        for leak in &leaks {
            println!("leak     {leak}");
        }
        for lost in &loss {
            println!("loss     {lost}");
        }
        self.frames += frames;
        self.leaks.extend(leaks);
        self.loss.extend(loss);
    }

    fn print(&self, seconds: f64) -> ExitCode {
        let wrong = self.fell.len() + self.invalid.len() + self.leaks.len() + self.loss.len();
        let word = if wrong == 0 && self.held > 0 { "ok" } else { "FAILED" };
        let failed =
            self.fell.len() + self.invalid.len() + usize::from(!self.leaks.is_empty() || !self.loss.is_empty());
        println!("test result: {word}. {} passed; {failed} failed; 0 ignored", self.held);
        let line = json!({
            "attacks": {"held": self.held, "fell": self.fell.len(), "invalid": self.invalid.len()},
            "leaks": self.leaks.len(),
            "loss": self.loss.len(),
            "frames": self.frames,
            "bounds": self.bounds,
            "seconds": (seconds * 10.0).round() / 10.0,
        });
        println!("{line}");
        if word == "ok" { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Whether this machine lets us make worlds.
fn is_able() -> bool {
    // SAFETY: reads a number.
    let root = unsafe { libc::geteuid() } == 0;
    root && ["nsenter", "ip", "nft", "curl", "setpriv"].into_iter().all(lab::process::has)
}
