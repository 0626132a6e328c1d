//! What a process takes before it runs: the place of another one, locks, sockets, pages.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;

use super::lock::Locks;
use super::node::{random_mark, run_there};
use super::sidecar::{self, Sidecar};
use super::{names, packets};
use crate::cluster::snapshot::{self, LastGood};
use crate::config::{Config, Source};
use crate::host::owner::written_by_others;
use crate::listen;
use crate::listen::tls::Tls;
use crate::operate::takeover::{self, HandOver, Handed, Home, Offer, Role, Successor};
use crate::operate::{Operator, Readiness, Server, Status, metrics::Metrics};
use crate::upstream::health::Registry;

/// How long a predecessor may take to let go: a reload under way, the queries, the state.
const LETTING_GO: Duration = Duration::from_secs(15);

/// Runs a node until SIGTERM or SIGINT. `source` is what to read the configuration from again on SIGHUP.
///
/// # Errors
/// It could not start.
pub fn node(config: Config, source: Source) -> anyhow::Result<()> {
    start(config, source, false)
}

/// Runs beside one workload, in its pod's network namespace, until SIGTERM or SIGINT.
///
/// # Errors
/// It could not start, or must not where it is.
pub fn sidecar(config: Config, source: Source) -> anyhow::Result<()> {
    start(config, source, true)
}

fn start(config: Config, source: Source, beside: bool) -> anyhow::Result<()> {
    crate::kernel::load::redirect_messages();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(config, source, beside))
}

async fn run(config: Config, source: Source, beside: bool) -> anyhow::Result<()> {
    // First of all, so that a signal during the start is not lost.
    let hangup = signal(SignalKind::hangup())?;
    let terminate = signal(SignalKind::terminate())?;
    let interrupt = signal(SignalKind::interrupt())?;

    warn_of_others(&source);
    super::capabilities::check(&config, beside)?;
    super::inbound::check(&config, beside)?;
    // What another process can have is taken next, before anything is touched.
    let tls = tls(&config)?;
    let sidecar = if beside { Some(Sidecar::start(&config, random_mark()?).await?) } else { None };
    // A pod's sidecar lives as long as the pod: nobody comes after it.
    let nobody = || (snapshot::Source::new(&config.snapshot), Vec::new());
    let upstreams = Arc::new(Registry::open(config.dns.upstream_ca.as_deref()).context("reading dns.upstream_ca")?);
    let (snapshot, handed) = if beside { nobody() } else { succeed(&config)? };
    let mut locks = Locks::take(&config)?;
    let places = take_places(&config, tls, upstreams, handed, sidecar.as_ref());
    let places = match places.and_then(|places| locks.take_pins(&config).map(|()| places)) {
        Ok(places) => places,
        Err(error) => {
            locks.undo();
            return Err(error);
        }
    };
    let waits = config.take_over;
    match run_there(config, source, sidecar, [hangup, terminate, interrupt], places, locks, snapshot).await? {
        End::Over => Ok(()),
        End::Succeeded if waits => wait_for_sigterm().await,
        End::Succeeded => Ok(()),
    }
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// Somebody wanted it.
    Over,
    /// Another process took its place.
    Succeeded,
}

/// Its supervisor, which starts its successor beside it, would start it again.
async fn wait_for_sigterm() -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tracing::info!("another namegate has taken over; this one waits for SIGTERM");
    tokio::select! {
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
    Ok(())
}

/// Who can write the configuration can end enforcement.
pub(super) fn warn_of_others(source: &Source) {
    let Some(path) = source.file() else { return };
    if let Some(who) = path.metadata().ok().and_then(|found| written_by_others(&found)) {
        tracing::warn!(file = %path.display(), "the configuration: {who}");
    }
}

/// Takes the place of a namegate that runs, if that is wanted and one does. The snapshot is read before it ends: that takes
/// longest.
fn succeed(config: &Config) -> anyhow::Result<(snapshot::Source, Vec<Handed>)> {
    let mut snapshot = snapshot::Source::new(&config.snapshot);
    if !config.take_over {
        return Ok((snapshot, Vec::new()));
    }
    let Some(offer) = takeover::ask(&config.admin_socket(), &home(config))? else { return Ok((snapshot, Vec::new())) };
    snapshot.read(&LastGood::default(), config.policy.on_invalid.into());
    let handed = Offer::accept(offer, LETTING_GO)?;
    tracing::info!(sockets = handed.len(), "took over from the namegate that ran before");
    Ok((snapshot, handed))
}

fn home(config: &Config) -> Home {
    Home { state_dir: config.state_dir.clone(), pin_dir: config.pin_dir.clone() }
}

/// Where this process is found: nobody else can be there while it is.
pub(super) struct Places {
    pub options: listen::Options,
    pub bound: listen::Bound,
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
    pub status: Arc<Mutex<Status>>,
    pub people: packets::People,
    pub server: Server,
    pub successors: UnboundedReceiver<Successor>,
}

fn take_places(
    config: &Config,
    tls: Option<Tls>,
    upstreams: Arc<Registry>,
    handed: Vec<Handed>,
    sidecar: Option<&Sidecar>,
) -> anyhow::Result<Places> {
    let (port, at) = match sidecar {
        Some(sidecar) => (sidecar::DNS_PORT, sidecar.listens_at()),
        None => (config.dns.port, listen::At::All),
    };
    let options = listen::Options { port, at, workers: config.dns.workers as usize, tls, upstreams };
    let (mut inherited, mut pages) = (listen::Inherited::default(), Vec::new());
    for (role, socket) in handed {
        match role {
            Role::Udp => inherited.udp.push(socket.into()),
            Role::Tcp => inherited.tcp.push(socket.into()),
            Role::Tls => inherited.tls.push(socket.into()),
            Role::Metrics | Role::Admin => pages.push((role, socket)),
        }
    }
    // Queries wait here until there is a policy to answer them by.
    let bound = listen::inherit(&options, inherited).context("listening for queries")?;
    let (hand_over, successors) = HandOver::new(home(config));
    for (role, sockets) in [Role::Udp, Role::Tcp, Role::Tls].into_iter().zip(bound.descriptors()) {
        hand_over.keep(role, sockets).context("keeping sockets for a successor")?;
    }
    let metrics = Arc::new(Metrics::new());
    let readiness = Readiness::waiting_for("start");
    let status = Arc::new(Mutex::new(Status::default()));
    let people = packets::People::default();
    let hand_over = sidecar.is_none().then_some(hand_over);
    let server = serve_pages(config, &metrics, &readiness, &status, people.clone(), (hand_over, pages))?;
    Ok(Places { options, bound, metrics, readiness, status, people, server, successors })
}

/// What is shown to those who ask over TLS; read first of all, for without it nothing is to start.
fn tls(config: &Config) -> anyhow::Result<Option<Tls>> {
    if config.dns.tls_port == 0 {
        return Ok(None);
    }
    let needed = |file: &Option<std::path::PathBuf>, key: &str| {
        file.clone().with_context(|| format!("dns.tls_port is {} and {key} is not set", config.dns.tls_port))
    };
    let certificate = needed(&config.dns.tls_certificate, "dns.tls_certificate")?;
    let key = needed(&config.dns.tls_key, "dns.tls_key")?;
    Tls::read(config.dns.tls_port, &certificate, &key).context("serving DNS over TLS").map(Some)
}

fn serve_pages(
    config: &Config,
    metrics: &Arc<Metrics>,
    readiness: &Readiness,
    status: &Arc<Mutex<Status>>,
    people: packets::People,
    (hand_over, handed): (Option<HandOver>, Vec<Handed>),
) -> anyhow::Result<Server> {
    let (held, told, policies) = (status.clone(), people.clone(), status.clone());
    let settings = config.clone();
    let ready = readiness.clone();
    let operator = Operator {
        metrics: metrics.clone(),
        readiness: readiness.clone(),
        status: Box::new(move || {
            let status = held.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
            Status { ready: ready.is_ready(), reasons: ready.reasons(), ..status }
        }),
        names: Box::new(move |asked| names::page(&people, asked)),
        policy: Box::new(move |asked| {
            let status = policies.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
            super::explain::page(&told, &settings, &status, asked)
        }),
        refresh: Box::new(|_| ()), // the upkeep feeds the metrics every second
        hand_over,
    };
    Server::start_with(config.observe.metrics, &config.admin_socket(), Arc::new(operator), handed)
        .context("serving metrics and the admin socket")
}

/// Every TCP connection and upstream socket is a descriptor.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a struct for the kernel to fill, then to read.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
