//! `namegate node`: flags are settings, set last.

use std::path::PathBuf;

use clap::Args;

use crate::config::Source;

/// What every command that reads the configuration takes.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct CommonArgs {
    /// The configuration file [default: /etc/namegate/namegate.toml, if there is one]
    #[arg(long, value_name = "PATH", env = "NAMEGATE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// What must survive a restart beside the pinned maps
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Where programs and maps are pinned, on a bpffs
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<String>,
    /// Where the admin socket is
    #[arg(long, value_name = "DIR")]
    run_dir: Option<String>,
    /// Any setting, as dns.min_ttl=10s (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

/// What every way of running takes.
#[derive(Args, Debug)]
pub(super) struct RunArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// The directory of Kubernetes objects: policies, pods, namespaces, services, endpoint slices, nodes
    #[arg(long, value_name = "DIR")]
    snapshot: Option<String>,
    /// The name of this node's Node object [default: the variable NODE_NAME, else the host's name]
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

/// What `namegate node` takes.
#[derive(Args, Debug)]
pub(super) struct NodeArgs {
    #[command(flatten)]
    run: RunArgs,
    /// A workload: host-side interface and pod, as veth0=payments/reports[,mac=02:00:00:00:00:01] (repeatable); without
    /// any, the pods of this node are found
    #[arg(long = "endpoint", value_name = "IFACE=NAMESPACE/POD")]
    endpoints: Vec<String>,
    /// Take the place of the namegate that runs, if one does, without losing a query
    #[arg(long)]
    take_over: bool,
}

impl CommonArgs {
    /// File, environment and these flags.
    pub(super) fn source(&self) -> Source {
        let mut source = Source::of_process(self.config.clone());
        for (key, value) in &self.set {
            source = source.with_flag(key, &format!("--set {key}"), value.as_str());
        }
        set_each(
            source,
            [
                ("state_dir", "--state-dir", &self.state_dir),
                ("pin_dir", "--pin-dir", &self.pin_dir),
                ("run_dir", "--run-dir", &self.run_dir),
            ],
        )
    }
}

impl RunArgs {
    /// File, environment and these flags.
    pub(super) fn source(&self) -> Source {
        let source = set_each(
            self.common.source(),
            [
                ("snapshot", "--snapshot", &self.snapshot),
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

impl NodeArgs {
    /// File, environment and these flags.
    pub(super) fn source(&self) -> Source {
        let mut source = self.run.source();
        if !self.endpoints.is_empty() {
            source = source.with_flags("endpoint", "--endpoint", &self.endpoints);
        }
        if self.take_over {
            source = source.with_flag("take_over", "--take-over", "true");
        }
        source
    }
}

pub(super) fn set_each<const N: usize>(source: Source, flags: [(&str, &str, &Option<String>); N]) -> Source {
    flags.into_iter().fold(source, |source, (key, name, value)| match value {
        Some(value) => source.with_flag(key, name, value.as_str()),
        None => source,
    })
}

fn key_value(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("no = between key and value")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}
