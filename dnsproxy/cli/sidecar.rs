//! `namegate sidecar`: flags are settings, set last.

use clap::Args;

use super::node::{RunArgs, set_each};
use crate::config::Source;

/// What `namegate sidecar` takes.
#[derive(Args, Debug)]
pub(super) struct SidecarArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Only bring every query in this pod to the sidecar that will run in it, by routing rules, and end: for an init container
    #[arg(long)]
    pub(super) init: bool,
    /// The downward API's volume: files name, namespace, labels, annotations and uid
    #[arg(long, value_name = "DIR")]
    podinfo: Option<String>,
}

impl SidecarArgs {
    /// File, environment and these flags.
    pub(super) fn source(&self) -> Source {
        set_each(self.run.source(), [("sidecar.podinfo", "--podinfo", &self.podinfo)])
    }
}
