//! `namegate sidecar`: flags are settings, set last.

use clap::Args;

use super::node::{CommonArgs, set_each};
use crate::config::Source;

/// What `namegate sidecar` takes.
#[derive(Args, Debug)]
pub(super) struct SidecarArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Only bring every query in this pod to the sidecar that will run in it, by routing rules, and end: for an init container
    #[arg(long)]
    pub(super) init: bool,
    /// The directory of Kubernetes objects: policies, pods, namespaces, services, endpoint slices, nodes
    #[arg(long, value_name = "DIR")]
    snapshot: Option<String>,
    /// The downward API's volume: files name, namespace, labels, annotations and uid
    #[arg(long, value_name = "DIR")]
    podinfo: Option<String>,
    /// The name of this node's Node object [default: the host's name]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Write a JSON line each verdict, in Hubble's form, to a file or to standard output (-)
    #[arg(long, value_name = "FILE|-")]
    flows: Option<String>,
    /// Serve /metrics, /readyz and /livez on this address
    #[arg(long, value_name = "ADDR")]
    metrics: Option<String>,
    /// Which log events are written, as info or namegate=debug,warn
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Let pass what policy would drop, counted and shown as AUDIT
    #[arg(long)]
    audit: bool,
    /// Write a line each verdict to standard error
    #[arg(short, long)]
    verbose: bool,
    /// Take enforcement away at the end
    #[arg(long)]
    detach: bool,
}

impl SidecarArgs {
    /// File, environment and these flags.
    pub(super) fn source(&self) -> Source {
        let source = set_each(
            self.common.source(),
            [
                ("snapshot", "--snapshot", &self.snapshot),
                ("sidecar.podinfo", "--podinfo", &self.podinfo),
                ("node_name", "--node-name", &self.node_name),
                ("observe.flows", "--flows", &self.flows),
                ("observe.metrics", "--metrics", &self.metrics),
                ("observe.log", "--log", &self.log),
            ],
        );
        let truths = [
            ("policy.audit", "--audit", self.audit),
            ("observe.verbose", "--verbose", self.verbose),
            ("detach", "--detach", self.detach),
        ];
        truths
            .into_iter()
            .filter(|(_, _, set)| *set)
            .fold(source, |source, (key, name, _)| source.with_flag(key, name, "true"))
    }
}
