//! The clients' side: sockets, workers, and the two transports.
//!
//! One worker per core, each a thread with its own runtime, its own sockets on the shared port, and its own way
//! upstream. Workers share the directory, the endpoints' tables and the counters of the limits, and nothing else.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::{LocalSet, spawn_local};

use crate::clock;
use crate::serve::Proxy;
use crate::serve::background::{self, Memory};
use crate::upstream::Upstream;
use crate::upstream::health::Registry;

use datagrams::Inbox;
use tls::Tls;

pub mod datagrams;
mod socket;
mod tcp;
pub mod tls;
mod udp;

/// How long queries under way may take to end after a stop: a little more than a resolver has.
pub const DRAIN: Duration = Duration::from_secs(5);
/// How often another port is tried when the kernel's choice for UDP is taken for TCP.
const PORT_TRIES: usize = 16;

/// At which addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum At {
    /// All of this machine, shared by the workers' sockets.
    #[default]
    All,
    /// 127.0.0.1 and ::1, one socket each that is shared with nobody: beside a workload.
    Loopback,
    /// All, those of others too, which FIB rules bring here ([`crate::host::rules`]). Shared with nobody.
    Redirected,
}

/// Where to listen.
#[derive(Clone, Debug)]
pub struct Options {
    /// The port, UDP and TCP, IPv4 and IPv6: 15 353. 0: the kernel's choice.
    pub port: u16,
    /// At which addresses. Where sockets are not shared there is one worker.
    pub at: At,
    /// Threads; 0: one per core.
    pub workers: usize,
    /// The DNS servers that workers ask, and how they fare.
    pub upstreams: Arc<Registry>,
    /// Where to listen for queries over TLS, and what to show there.
    pub tls: Option<Tls>,
}

impl Default for Options {
    fn default() -> Options {
        Options { port: 15_353, at: At::All, workers: 0, upstreams: Arc::default(), tls: None }
    }
}

/// The port can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process has it, and may have it all.
    #[error("port {address} is in use; it must be free")]
    InUse {
        /// The address and port.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A socket can't be had.
    #[error("{what} on {address}")]
    Socket {
        /// `UDP`, `TCP` or `TLS`.
        what: &'static str,
        /// The address and port.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A worker can't be started.
    #[error("starting a worker")]
    Worker(#[source] io::Error),
}

/// Running workers. Dropped, they end at once; see [`Listeners::stop`].
pub struct Listeners {
    port: u16,
    tls_port: Option<u16>,
    stop: watch::Sender<Stop>,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    /// Once what is under way is answered, but after so long in any case.
    Drain(Duration),
    Now,
}

/// Sockets that a predecessor has bound, not sorted.
#[derive(Debug, Default)]
pub struct Inherited {
    /// For queries over UDP.
    pub udp: Vec<UdpSocket>,
    /// For queries over TCP.
    pub tcp: Vec<TcpListener>,
    /// For queries over TLS.
    pub tls: Vec<TcpListener>,
}

/// What a thread starts with.
#[derive(Default)]
struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    tls: Vec<TcpListener>,
}

/// What the tasks of a worker share.
struct Worker {
    proxy: Arc<Proxy>,
    upstream: Upstream,
    tls: Option<Tls>,
    memory: RefCell<Memory>,
    inbox: RefCell<Inbox>,
    under_way: Cell<usize>,
    idle: Notify,
}

/// Sockets that nobody reads yet.
pub struct Bound {
    port: u16,
    tls_port: Option<u16>,
    sockets: Vec<Sockets>,
}

/// Takes the ports. What arrives waits until [`Bound::start`].
///
/// # Errors
/// A port is in use by another process, or a socket can't be had.
pub fn bind(options: &Options) -> Result<Bound, ListenError> {
    bind_others(options, bind_all(options.port, options.at, workers(options))?)
}

/// The same where a predecessor has bound the port already, and its sockets hold what came since it stopped reading.
/// Sockets of another port than is wanted now are closed.
///
/// # Errors
/// See [`bind`].
pub fn inherit(options: &Options, mut inherited: Inherited) -> Result<Bound, ListenError> {
    let is_wanted = |at: io::Result<SocketAddr>| at.is_ok_and(|at| at.port() == options.port);
    inherited.udp.retain(|socket| is_wanted(socket.local_addr()));
    inherited.tcp.retain(|listener| is_wanted(listener.local_addr()));
    let tls_port = options.tls.as_ref().map(|tls| tls.port);
    inherited.tls.retain(|listener| listener.local_addr().is_ok_and(|at| Some(at.port()) == tls_port));
    if inherited.udp.is_empty() || inherited.tcp.is_empty() {
        drop(inherited);
        return bind(options);
    }
    // Each socket has its share of the queries, so each of them is read, and none by two workers.
    let most = inherited.udp.len().max(inherited.tcp.len());
    let mut sockets: Vec<Sockets> = Vec::new();
    let count = workers(options).min(most);
    sockets.resize_with(count, Sockets::default);
    deal(inherited.udp, |socket| socket.local_addr(), |at, socket| sockets[at % count].udp.push(socket));
    deal(inherited.tcp, TcpListener::local_addr, |at, listener| sockets[at % count].tcp.push(listener));
    if inherited.tls.is_empty() {
        return bind_others(options, (options.port, sockets));
    }
    deal(inherited.tls, TcpListener::local_addr, |at, listener| sockets[at % count].tls.push(listener));
    Ok(Bound { port: options.port, tls_port, sockets })
}

/// Those of each family in turn, numbered from 0 again.
fn deal<T>(sockets: Vec<T>, at: impl Fn(&T) -> io::Result<SocketAddr>, mut to: impl FnMut(usize, T)) {
    let (mut v4, mut v6) = (0, 0);
    for socket in sockets {
        let next = if at(&socket).is_ok_and(|at| at.is_ipv4()) { &mut v4 } else { &mut v6 };
        *next += 1;
        to(*next - 1, socket);
    }
}

fn workers(options: &Options) -> usize {
    match options.workers {
        _ if options.at != At::All => 1,
        0 => thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

fn bind_others(options: &Options, (port, mut sockets): (u16, Vec<Sockets>)) -> Result<Bound, ListenError> {
    let tls_port = options.tls.as_ref().map(|tls| bind_tls(tls.port, &mut sockets)).transpose()?;
    Ok(Bound { port, tls_port, sockets })
}

/// Starts to serve.
///
/// # Errors
/// The port is in use, also by a process that would share it, or sockets or threads can't be had.
pub fn start(options: &Options, proxy: Arc<Proxy>) -> Result<Listeners, ListenError> {
    bind(options)?.start(options, proxy)
}

impl Bound {
    /// UDP sockets, listeners for TCP, listeners for TLS.
    pub fn descriptors(&self) -> [Vec<BorrowedFd<'_>>; 3] {
        let of = |which: fn(&Sockets) -> Vec<BorrowedFd<'_>>| self.sockets.iter().flat_map(which).collect();
        [
            of(|sockets| sockets.udp.iter().map(AsFd::as_fd).collect()),
            of(|sockets| sockets.tcp.iter().map(AsFd::as_fd).collect()),
            of(|sockets| sockets.tls.iter().map(AsFd::as_fd).collect()),
        ]
    }

    /// Starts the workers. `options` are those that it was bound with.
    ///
    /// # Errors
    /// A thread can't be started.
    pub fn start(self, options: &Options, proxy: Arc<Proxy>) -> Result<Listeners, ListenError> {
        let Bound { port, tls_port, sockets } = self;
        let (stop, stopped) = watch::channel(Stop::No);
        let mut listeners = Listeners { port, tls_port, stop, workers: Vec::new() };
        for (at, sockets) in sockets.into_iter().enumerate() {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ListenError::Worker)?;
            let (proxy, options, stopped) = (proxy.clone(), options.clone(), stopped.clone());
            let worker = thread::Builder::new()
                .name(format!("dns-{at}"))
                .spawn(move || LocalSet::new().block_on(&runtime, work(at, sockets, proxy, options, stopped)))
                .map_err(ListenError::Worker)?;
            listeners.workers.push(worker);
        }
        Ok(listeners)
    }
}

impl Listeners {
    /// The port served.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port served over TLS, if any.
    pub fn tls_port(&self) -> Option<u16> {
        self.tls_port
    }

    /// Takes no new queries, answers those under way, and ends; at most `within`, [`DRAIN`] unless somebody waits. Blocks: from
    /// async code, in `spawn_blocking`.
    pub fn stop(mut self, within: Duration) {
        self.end(Stop::Drain(within));
    }

    fn end(&mut self, how: Stop) {
        self.stop.send_replace(how);
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!("a DNS worker had panicked");
            }
        }
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.end(Stop::Now);
    }
}

/// Sockets for every worker, on one port. A family that the machine does not have is left out, if the other one is
/// there.
fn bind_all(port: u16, at: At, workers: usize) -> Result<(u16, Vec<Sockets>), ListenError> {
    let mut last = None;
    for _ in 0..if port == 0 { PORT_TRIES } else { 1 } {
        match try_bind_all(port, at, workers) {
            Ok(bound) => return Ok(bound),
            Err(error) => last = Some(error),
        }
    }
    Err(last.expect("tried at least once"))
}

fn try_bind_all(port: u16, at: At, workers: usize) -> Result<(u16, Vec<Sockets>), ListenError> {
    let mut families: Vec<IpAddr> = Vec::new();
    let addresses = match at {
        At::All | At::Redirected => [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)],
        At::Loopback => [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)],
    };
    for address in addresses {
        match socket::exclusive((address, port).into()) {
            Ok(()) => families.push(address),
            Err(error) if is_no_family(&error) => {}
            Err(source) => return Err(ListenError::InUse { address: (address, port).into(), source }),
        }
    }
    let mut port = port;
    let mut all = Vec::new();
    for _ in 0..workers {
        let mut sockets = Sockets { udp: Vec::new(), tcp: Vec::new(), tls: Vec::new() };
        for &family in &families {
            let address: SocketAddr = (family, port).into();
            let failed = |what, address| move |source| ListenError::Socket { what, address, source };
            let udp = socket::udp(address, at).map_err(failed("UDP", address))?;
            port = udp.local_addr().map_err(failed("UDP", address))?.port();
            let address = (family, port).into();
            sockets.udp.push(udp);
            sockets.tcp.push(socket::tcp(address, at).map_err(failed("TCP", address))?);
        }
        all.push(sockets);
    }
    Ok((port, all))
}

/// Listeners for TLS beside the others, in the same families.
fn bind_tls(mut port: u16, workers: &mut [Sockets]) -> Result<u16, ListenError> {
    for sockets in workers {
        for at in 0..sockets.tcp.len() {
            let failed = |address| move |source| ListenError::Socket { what: "TLS", address, source };
            let any: SocketAddr = (Ipv4Addr::UNSPECIFIED, port).into();
            let family = sockets.tcp[at].local_addr().map_err(failed(any))?.ip();
            let address = (family, port).into();
            let listener = socket::tcp(address, At::All).map_err(failed(address))?;
            port = listener.local_addr().map_err(failed(address))?.port();
            sockets.tls.push(listener);
        }
    }
    Ok(port)
}

fn is_no_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// The life of a worker.
async fn work(at: usize, sockets: Sockets, proxy: Arc<Proxy>, options: Options, mut stopped: watch::Receiver<Stop>) {
    let worker = Rc::new(Worker {
        proxy,
        upstream: Upstream::start(options.upstreams),
        tls: options.tls,
        memory: RefCell::default(),
        inbox: RefCell::default(),
        under_way: Cell::new(0),
        idle: Notify::new(),
    });
    let mut readers = Vec::new();
    for socket in sockets.udp {
        match udp::Listener::new(socket, options.at) {
            Ok(listener) => {
                let listener = Rc::new(listener);
                let (worker, flushed) = (worker.clone(), listener.clone());
                spawn_local(tireless(move || udp::flush(flushed.clone())));
                readers.push(spawn_local(tireless(move || udp::receive(worker.clone(), listener.clone()))));
            }
            Err(error) => tracing::error!(%error, "a UDP socket can't be watched"),
        }
    }
    let plain = sockets.tcp.into_iter().map(|listener| (listener, false));
    for (listener, tls) in plain.chain(sockets.tls.into_iter().map(|listener| (listener, true))) {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => {
                let (worker, listener) = (worker.clone(), Rc::new(listener));
                readers.push(spawn_local(tireless(move || tcp::accept(worker.clone(), listener.clone(), tls))));
            }
            Err(error) => tracing::error!(%error, "a TCP listener can't be watched"),
        }
    }
    {
        let worker = worker.clone();
        readers.push(spawn_local(tireless(move || ask_unasked(worker.clone(), at == 0))));
    }
    let how = match stopped.wait_for(|stop| *stop != Stop::No).await {
        Ok(how) => *how,
        Err(_) => Stop::Now,
    };
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    if let Stop::Drain(within) = how {
        let drained = async {
            // Until they have ended they may take one more.
            for reader in readers {
                let _ = reader.await;
            }
            while worker.under_way.get() > 0 {
                worker.idle.notified().await;
            }
            // One more turn for what flushes the last replies.
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
        };
        let _ = tokio::time::timeout(within, drained).await;
    }
}

/// Prefetch and poller, for ever.
async fn ask_unasked(worker: Rc<Worker>, polls: bool) {
    let mut every = tokio::time::interval(background::TICK);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let due = worker.proxy.due(&mut worker.memory.borrow_mut(), polls);
        for due in due {
            let worker = worker.clone();
            spawn_local(async move {
                let done = worker.proxy.ask_unasked(due, &worker.upstream).await;
                worker.memory.borrow_mut().learn(&done, clock::mono());
            });
        }
    }
}

/// Runs a task for ever, again after a panic: a worker that hears nothing any more would be worse.
async fn tireless<F: Future<Output = ()> + 'static>(task: impl Fn() -> F) {
    loop {
        let mut running = Aborted(spawn_local(task()));
        match (&mut running.0).await {
            Err(error) if error.is_panic() => tracing::error!("a task of a DNS worker panicked and starts again"),
            _ => return,
        }
    }
}

/// A task that ends with the one that waits for it.
struct Aborted(tokio::task::JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Worker {
    /// Counts one more query under way until the guard is dropped.
    fn begin(self: &Rc<Self>) -> UnderWay {
        self.under_way.set(self.under_way.get() + 1);
        UnderWay(self.clone())
    }
}

struct UnderWay(Rc<Worker>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
        if self.0.under_way.get() == 0 {
            self.0.idle.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
