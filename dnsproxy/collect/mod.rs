//! The snapshot, written from a live API server: lists and watches what policies speak of, and puts each change into the
//! directory that the agent reads. A process of its own, so that the agent needs neither a token nor a connection.
//!
//! **Invariant:** nothing is written before every kind was listed whole, and what is known stays until the server says
//! otherwise: a snapshot may be late, never half.
//!
//! - `resource`: which objects, and into how many files they go
//! - `api`: the API server; the only file that knows `kube`
//! - `follow`: one kind, listed and watched
//! - `object`: what of an object goes into the snapshot
//! - `store`: all of them, by shard
//! - `directory`: the shards as files, a generation at a time
//! - `condition`: what namegate makes of a policy, in the policy's status
//! - `config_maps`: the same as ConfigMaps
//! - `telemetry` and `pages`: metrics and readiness

mod api;
mod condition;
mod config_maps;
mod directory;
mod follow;
mod object;
mod pages;
mod resource;
mod store;
mod telemetry;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::clock;
use api::Api;
use condition::Conditions;
pub use config_maps::ConfigMaps;
use directory::Directory;
use object::{Key, Reduced};
use resource::{RESOURCES, Resource};
use store::Store;
use telemetry::Telemetry;

/// What to collect, and where to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The snapshot directory.
    pub output: PathBuf,
    /// The only node whose pods are wanted whole: of others what a peer needs. All unless set.
    pub node: Option<String>,
    /// How to reach the API server; unless set, as the pod that this runs in does.
    pub kubeconfig: Option<PathBuf>,
    /// Whether policies get a condition.
    pub write_status: bool,
    /// ConfigMaps that get the same; none unless set.
    pub config_maps: Option<ConfigMaps>,
    /// Where /metrics, /readyz and /livez are served; nowhere unless set.
    pub metrics: Option<SocketAddr>,
    /// How long things take.
    pub timing: Timing,
}

/// What a collector that has just begun is measured by: the chart's rules are held against it.
#[cfg(test)]
pub(crate) fn metrics_at_the_start() -> String {
    let telemetry = Telemetry::new(Duration::ZERO);
    (0..RESOURCES.len()).for_each(|index| telemetry.touched(index));
    telemetry.text().unwrap_or_default()
}

/// How long things take. What is here is no setting: tests have no time to lose.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For a page of a list.
    pub list: Duration,
    /// A watch is ended by the server after this or up to a quarter less, so that a server that is stuck is found out.
    pub watch: Duration,
    /// How much longer it may take.
    pub watch_margin: Duration,
    /// After an error; doubled after each further one.
    pub backoff_min: Duration,
    /// At most.
    pub backoff_max: Duration,
    /// How often a kind that the cluster doesn't have is asked for.
    pub absent_recheck: Duration,
    /// How long a kind that the cluster had must be denied before its objects are forgotten.
    pub absent_grace: Duration,
    /// How long after a change the next one is waited for.
    pub settle: Duration,
    /// How long a change waits at most, however many follow it.
    pub patience: Duration,
    /// From one generation to the next at least; longer, up to `patience`, in large clusters: the agent must get to read one.
    pub gap: Duration,
    /// For how long the server may be out of touch before that is a reason not to be ready.
    pub silence: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        let ms = Duration::from_millis;
        let secs = Duration::from_secs;
        Timing {
            list: secs(60),
            watch: secs(180),
            watch_margin: secs(10),
            backoff_min: ms(200),
            backoff_max: secs(30),
            absent_recheck: secs(10),
            absent_grace: secs(30),
            settle: ms(20),
            patience: ms(200),
            gap: ms(50),
            silence: secs(60),
        }
    }
}

/// What all parts of a collector share.
struct Shared {
    api: Api,
    node: Option<String>,
    timing: Timing,
    store: Mutex<Store>,
    changed: Notify,
    /// A generation was put in force.
    written: Notify,
    telemetry: Telemetry,
    conditions: Option<Conditions>,
    /// Names of files that an earlier run left in force.
    inherited: BTreeSet<String>,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the snapshot has objects of a kind since before this process.
    fn is_in_force(&self, resource: &Resource) -> bool {
        self.inherited.iter().any(|file| resource.owns(file))
    }

    /// Something of a kind is another now.
    fn changed(&self, resource: &Resource) {
        self.changed.notify_one();
        if let Some(conditions) = self.conditions.as_ref().filter(|_| resource.only.is_some()) {
            conditions.look_at_all(); // Cilium's settings say what a policy may say
        }
    }

    /// An object was seen: its condition may have to be written.
    fn judge(&self, resource: usize, object: &Reduced) {
        if let Some(conditions) = self.conditions.as_ref().filter(|_| RESOURCES[resource].has_conditions()) {
            conditions.saw(resource, object);
        }
    }

    fn judge_only(&self, resource: usize, list: &[(Key, Option<Arc<str>>)]) {
        if let Some(conditions) = self.conditions.as_ref().filter(|_| RESOURCES[resource].has_conditions()) {
            conditions.retain(resource, &list.iter().map(|(key, _)| key).collect());
        }
    }

    fn forget(&self, resource: usize, key: &Key) {
        if let Some(conditions) = self.conditions.as_ref().filter(|_| RESOURCES[resource].has_conditions()) {
            conditions.forget(resource, key);
        }
    }
}

/// Collects until SIGTERM or SIGINT. What was written stays.
///
/// # Errors
/// It could not start: the directory is another's, the address is in use, there is no way to reach an API server.
pub fn collect(settings: Settings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut collector = Collector::start(settings).await?;
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: the snapshot stays as it is"),
            _ = interrupt.recv() => tracing::info!("SIGINT: the snapshot stays as it is"),
            error = collector.failed() => return Err(error),
        }
        collector.stop().await;
        Ok(())
    });
    // A name that is being looked up is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// A collector that runs.
pub struct Collector {
    tasks: JoinSet<anyhow::Error>,
    shared: Arc<Shared>,
    writer: Arc<tokio::sync::Mutex<Directory>>,
    address: Option<SocketAddr>,
}

impl Collector {
    /// Starts on the current runtime.
    ///
    /// # Errors
    /// As of [`collect`].
    pub async fn start(settings: Settings) -> anyhow::Result<Collector> {
        // The one that is compiled in; kube asks for the process's.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let Settings { output, node, kubeconfig, write_status, config_maps, metrics, timing } = settings;
        let directory = Directory::open(&output).context("using the snapshot directory")?;
        let api = Api::connect(kubeconfig.as_deref()).await?;
        tracing::info!(server = api.server(), output = %output.display(), node, "collecting");
        let shared = Arc::new(Shared {
            api,
            node,
            timing,
            store: Mutex::new(Store::new()),
            changed: Notify::new(),
            written: Notify::new(),
            telemetry: Telemetry::new(timing.silence),
            conditions: write_status.then(Conditions::default),
            inherited: directory.names().map(str::to_owned).collect(),
        });
        let listener = match metrics {
            Some(address) => {
                let listener = tokio::net::TcpListener::bind(address).await;
                Some(listener.with_context(|| format!("listening on {address} for metrics"))?)
            }
            None => None,
        };
        let address = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let writer = Arc::new(tokio::sync::Mutex::new(directory));
        let mut tasks = JoinSet::new();
        for (index, resource) in RESOURCES.iter().enumerate() {
            let shared = shared.clone();
            tasks.spawn(async move {
                follow::follow(index, shared).await;
                anyhow::anyhow!("{resource} is not followed any more")
            });
        }
        let (to_write, from) = (writer.clone(), shared.clone());
        tasks.spawn(async move { write_changes(&from, to_write).await });
        if write_status {
            let shared = shared.clone();
            tasks.spawn(async move {
                condition::write(&shared).await;
                anyhow::anyhow!("conditions are not written any more")
            });
        }
        if let Some(target) = config_maps {
            let shared = shared.clone();
            tasks.spawn(async move {
                config_maps::write(&shared, &target, output).await;
                anyhow::anyhow!("ConfigMaps are not written any more")
            });
        }
        if let Some(listener) = listener {
            let shared = shared.clone();
            tasks.spawn(async move {
                pages::serve(listener, shared).await;
                anyhow::anyhow!("metrics are not served any more")
            });
        }
        Ok(Collector { tasks, shared, writer, address })
    }

    /// Where metrics are served; of interest when port 0 was asked for.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Why it is not ready; nothing: it is.
    pub fn reasons(&self) -> Vec<String> {
        self.shared.telemetry.reasons()
    }

    /// What /metrics says.
    pub fn metrics(&self) -> String {
        self.shared.telemetry.text().unwrap_or_default()
    }

    /// Waits for what must not end.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(error)) => error,
            Some(Err(error)) => error.into(),
            None => anyhow::anyhow!("nothing is done any more"),
        }
    }

    /// Ends it. A generation that is being written is finished.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
        drop(self.writer.lock().await);
    }
}

/// Puts what changes in force.
async fn write_changes(shared: &Shared, directory: Arc<tokio::sync::Mutex<Directory>>) -> anyhow::Error {
    let timing = &shared.timing;
    let now = || Instant::from_std(clock::now());
    let mut retry: Option<Duration> = None;
    loop {
        match retry {
            Some(pause) => tokio::time::sleep(pause).await,
            None => shared.changed.notified().await,
        }
        let latest = now() + timing.patience;
        while now() < latest {
            let until = latest.min(now() + timing.settle);
            if timeout_at(until, shared.changed.notified()).await.is_err() {
                break;
            }
        }
        let files = {
            let mut store = shared.store();
            if !store.is_whole() {
                continue;
            }
            store.take_changed()
        };
        let started = clock::now();
        // The lock goes along: who waits for it waits for the disk.
        let mut directory = directory.clone().lock_owned().await;
        let written = tokio::task::spawn_blocking(move || directory.write(files, clock::wall())).await;
        match written {
            Ok(Ok(differs)) => {
                let took = clock::now().saturating_duration_since(started);
                shared.telemetry.wrote(took, differs);
                shared.written.notify_one();
                retry = None;
                if differs {
                    tokio::time::sleep((took * 8).clamp(timing.gap, timing.patience.max(timing.gap))).await;
                }
            }
            Ok(Err(error)) => {
                shared.telemetry.could_not_write(&error);
                retry = Some(retry.map_or(timing.backoff_min, |pause| (pause * 2).min(timing.backoff_max)));
            }
            Err(error) => return error.into(),
        }
    }
}
