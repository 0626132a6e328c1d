//! `namegate collect`: flags only; it reads no configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::{FAILED, complain};
use crate::collect::{ConfigMaps, Settings, Timing, collect};
use crate::config::{Config, LogFormat, Observe, node_name_from_text, pod_from_text};
use crate::operate::log;

/// What `namegate collect` takes.
#[derive(Args, Debug)]
pub(super) struct CollectArgs {
    /// The snapshot directory to keep fresh: what `namegate node --snapshot` reads
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Keep pods of this node whole, and of others what a peer needs [default: all whole]
    #[arg(long, value_name = "NAME", value_parser = node)]
    node: Option<String>,
    /// How to reach the API server [default: the service account of the pod that this runs in]
    #[arg(long, value_name = "PATH")]
    kubeconfig: Option<PathBuf>,
    /// Write namegate's verdict into the status of Cilium's policies, where no Cilium does
    #[arg(long)]
    write_status: bool,
    /// Write the same into ConfigMaps PREFIX-0 to PREFIX-7, for small clusters whose agents mount them
    #[arg(long, value_name = "NAMESPACE/PREFIX", value_parser = config_maps)]
    config_maps: Option<ConfigMaps>,
    /// Serve /metrics, /readyz and /livez on this address
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// Which log events are written, as info or namegate=debug,warn
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = filter)]
    log: String,
    /// How the log looks
    #[arg(long, value_enum, default_value_t)]
    log_format: Format,
}

/// How the log looks.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Format {
    /// For people
    #[default]
    Text,
    /// A JSON object a line
    Json,
}

impl CollectArgs {
    pub(super) fn run(self) -> ExitCode {
        let log_format = match self.log_format {
            Format::Text => LogFormat::Text,
            Format::Json => LogFormat::Json,
        };
        log::start(&Observe { log: self.log, log_format, ..Config::default().observe });
        let settings = Settings {
            output: self.output,
            node: self.node,
            kubeconfig: self.kubeconfig,
            write_status: self.write_status,
            config_maps: self.config_maps,
            metrics: self.metrics,
            timing: Timing::default(),
        };
        match collect(settings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&format!("{error:#}")); // the whole chain
                ExitCode::from(FAILED)
            }
        }
    }
}

fn filter(text: &str) -> Result<String, String> {
    let read = tracing_subscriber::EnvFilter::try_new(text);
    read.map(|_| text.to_owned()).map_err(|error| format!("{error}; as info or namegate=debug,warn"))
}

fn node(text: &str) -> Result<String, &'static str> {
    node_name_from_text(text).ok_or("a node's name is dot-separated labels of a-z 0-9 -")
}

fn config_maps(text: &str) -> Result<ConfigMaps, &'static str> {
    let read = pod_from_text(text).ok_or("a namespace and a name, as namegate/snapshot; a-z 0-9 - are allowed")?;
    Ok(ConfigMaps { namespace: read.namespace, prefix: read.name })
}
