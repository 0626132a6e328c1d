//! `namegate check`: reads a snapshot as the node would, and touches nothing.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{FAILED, Output, USAGE, complain, print};
use crate::cluster::snapshot::{LastGood, OnInvalid, Snapshot, read};
use crate::engine::compile::Compiler;
use crate::engine::world::PeerIds;
use crate::observe::text::clean;

/// What `namegate check` takes.
#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// The directory of Kubernetes objects
    #[arg(value_name = "DIRECTORY")]
    dir: PathBuf,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// What was found.
#[derive(Serialize, Debug)]
pub(super) struct Findings {
    refused: Vec<Finding>,
    policies: usize,
    pods: usize,
    skipped: usize,
}

/// One thing that is wrong.
#[derive(Serialize, Debug)]
struct Finding {
    place: String,
    object: String,
    text: String,
}

impl CheckArgs {
    pub(super) fn run(self) -> ExitCode {
        if !self.dir.is_dir() {
            complain(&format!(
                "{}: found no directory; allowed is a directory of Kubernetes objects",
                self.dir.display()
            ));
            return ExitCode::from(USAGE);
        }
        // Without a last good version, and strictly: what is wrong shows, whatever the node's own settings are.
        let findings = Findings::of(&read(&self.dir, &LastGood::default(), OnInvalid::Refuse));
        let printed = print(
            match self.output {
                Output::Table => findings.text(),
                Output::Json => format!("{:#}\n", serde_json::json!(findings)),
            }
            .as_bytes(),
        );
        if findings.refused.is_empty() { printed } else { ExitCode::from(FAILED) }
    }
}

impl Findings {
    /// What is wrong with the objects, and with what they come to for each pod.
    pub(super) fn of(snapshot: &Snapshot) -> Findings {
        let world = &snapshot.world;
        let mut refused: Vec<_> = snapshot
            .refusals
            .iter()
            .map(|refusal| Finding {
                place: refusal.place.clone(),
                object: refusal.object.clone(),
                text: refusal.text.clone(),
            })
            .collect();
        let mut ids = PeerIds::default();
        let compiler = Compiler::new(world, &mut ids);
        let mut seen = BTreeSet::new();
        for (reference, pod) in world.pods.iter().filter(|(_, pod)| !pod.host_network && !pod.finished) {
            if let Err(error) = compiler.compile(reference, &[])
                && seen.insert(error.to_string())
            {
                let (place, object) = (pod.place.clone(), format!("Pod {reference}"));
                refused.push(Finding { place, object, text: error.to_string() });
            }
        }
        Findings { refused, policies: world.policies.len(), pods: world.pods.len(), skipped: snapshot.skipped }
    }

    /// A line for each thing that is wrong, and a closing one.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for found in &self.refused {
            let _ = writeln!(text, "{}: {}: {}", clean(&found.place), clean(&found.object), clean(&found.text));
        }
        let Findings { policies, pods, skipped, .. } = self;
        let _ = writeln!(
            text,
            "{policies} policies and {pods} pods read, {skipped} objects of no use, {} refused",
            self.refused.len()
        );
        text
    }
}
