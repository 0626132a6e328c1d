//! /metrics, /readyz and /livez over TCP, and the same, /status, /names and questions about policy on the admin socket.
//!
//! On a thread of its own, so that a slow reader never holds up a query, and a busy resolver never holds up a probe.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};

use super::explain::PolicyAsked;
use super::metrics::Metrics;
use super::names::{AskedError, NamesAsked, NamesPage};
use super::ready::Readiness;
use super::status::Status;
use super::takeover::{self, HandOver, Handed, Role};
use crate::observe::text::clean;

/// How many connections may be open at a time, on each of the two listeners. Further ones are closed at once.
const CONNECTIONS: usize = 64;
/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may be open, whatever it does.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How many octets of request line and headers are read at most.
const REQUEST_OCTETS: usize = 16 * 1024;

/// What the pages are made of.
pub struct Operator {
    /// For /metrics.
    pub metrics: Arc<Metrics>,
    /// For /readyz.
    pub readiness: Readiness,
    /// For /status: makes it anew. Called on the server's thread.
    pub status: Box<dyn Fn() -> Status + Send + Sync>,
    /// For /names. Called on the server's thread.
    pub names: Box<TellNames>,
    /// For /explain, /policy, /selectors, /endpoints and /diff. Called on the server's thread.
    pub policy: Box<TellPolicy>,
    /// Called before /metrics is written: the place to read the kernel's counters.
    pub refresh: Box<dyn Fn(&Metrics) + Send + Sync>,
    /// What a successor gets that asks for it on the admin socket; none: nothing.
    pub hand_over: Option<HandOver>,
}

/// Makes one page of names.
pub type TellNames = dyn Fn(&NamesAsked) -> Result<NamesPage, AskedError> + Send + Sync;

/// Answers a question about policy, in JSON.
pub type TellPolicy = dyn Fn(&PolicyAsked) -> Result<Vec<u8>, String> + Send + Sync;

/// Why the pages can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address can't be listened on.
    #[error("listening on {address} for metrics")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Someone answers on the admin socket.
    #[error("another namegate answers on {}; one process a run_dir is allowed", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// What stands there is no socket.
    #[error("{} is no socket; it is left alone", path.display())]
    NoSocket {
        /// What stands there.
        path: PathBuf,
    },
    /// The admin socket can't be made.
    #[error("making the admin socket {}", path.display())]
    Admin {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No thread or runtime.
    #[error("starting the metrics and admin server")]
    Thread(#[source] io::Error),
}

/// The running server. Stops when it is dropped.
pub struct Server {
    stop: watch::Sender<()>,
    thread: Option<JoinHandle<()>>,
    metrics_address: Option<SocketAddr>,
    socket: AdminSocket,
}

impl Server {
    /// Listens, then serves on a thread.
    ///
    /// # Errors
    /// An address is in use, or another namegate answers on the admin socket. A stale socket is replaced.
    pub fn start(metrics: Option<SocketAddr>, admin: &Path, operator: Arc<Operator>) -> Result<Server, ServeError> {
        Server::start_with(metrics, admin, operator, Vec::new())
    }

    /// The same with what a predecessor has handed over, as far as it is what is to be served.
    ///
    /// # Errors
    /// See [`Server::start`].
    pub fn start_with(
        metrics: Option<SocketAddr>,
        admin: &Path,
        operator: Arc<Operator>,
        handed: Vec<Handed>,
    ) -> Result<Server, ServeError> {
        let thread = ServeError::Thread;
        let (mut unix, mut tcp) = (None, None);
        for (role, socket) in handed {
            match role {
                Role::Admin => unix = Some(UnixListener::from(socket)),
                Role::Metrics => tcp = Some(TcpListener::from(socket)),
                Role::Udp | Role::Tcp | Role::Tls => (),
            }
        }
        // First: it says that another namegate is here; an address in use may be anyone's.
        let (socket, unix) = match unix.and_then(|unix| Some((AdminSocket::of(admin)?, unix))) {
            Some(inherited) => inherited,
            None => AdminSocket::bind(admin)?,
        };
        let tcp = tcp.filter(|tcp| tcp.local_addr().ok().is_some_and(|at| Some(at) == metrics));
        let tcp = match tcp.map(Ok).or_else(|| {
            metrics.map(|address| listen(address).map_err(|source| ServeError::Metrics { address, source }))
        }) {
            Some(Ok(listener)) => Some(listener),
            Some(Err(error)) => {
                socket.remove();
                return Err(error);
            }
            None => None,
        };
        if let Some(hand_over) = &operator.hand_over {
            hand_over.keep(Role::Admin, [unix.as_fd()]).map_err(thread)?;
            hand_over.keep(Role::Metrics, tcp.iter().map(AsFd::as_fd)).map_err(thread)?;
        }
        let metrics_address = tcp.as_ref().and_then(|listener| listener.local_addr().ok());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ServeError::Thread)?;
        let (stop, stopped) = watch::channel(());
        let serve = move || {
            runtime.block_on(async move {
                let admin = unix_loop(unix, Arc::clone(&operator));
                let metrics = tcp_loop(tcp, operator);
                let mut stopped = stopped;
                tokio::select! {
                    _ = stopped.changed() => (),
                    error = admin => tracing::error!(?error, "the admin socket is out of service"),
                    error = metrics => tracing::error!(?error, "metrics are out of service"),
                }
            });
        };
        let thread = std::thread::Builder::new().name("operate".to_owned()).spawn(serve).map_err(ServeError::Thread)?;
        Ok(Server { stop, thread: Some(thread), metrics_address, socket })
    }

    /// Where metrics are served; of interest when port 0 was asked for.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Stops, and leaves the admin socket where it is: a successor answers there.
    pub fn leave(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.socket.remove();
        }
        self.end();
    }
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asker {
    /// Anyone who reaches the metrics' address.
    Anyone,
    /// Root, or the user that namegate runs as, on the admin socket.
    Admin,
    /// Another user, on the admin socket: whatever the file's mode says, nothing is told.
    Stranger,
}

impl Asker {
    /// Who is at the other end of the admin socket, by what the kernel says of it (SO_PEERCRED, unix(7)).
    fn of(stream: &tokio::net::UnixStream) -> Asker {
        // SAFETY: reads a number.
        let own = unsafe { libc::geteuid() };
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == 0 || peer.uid() == own => Asker::Admin,
            _ => Asker::Stranger,
        }
    }
}

/// What is answered to a request.
fn answer(operator: &Operator, method: &Method, path: &str, query: &str, asker: Asker) -> Response<Full<Bytes>> {
    if asker == Asker::Stranger {
        return page(StatusCode::FORBIDDEN, TEXT, "only root and the user that namegate runs as may ask here\n");
    }
    let admin = asker == Asker::Admin;
    if method != Method::GET && method != Method::HEAD {
        let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD are allowed\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if admin && let Some(asked) = PolicyAsked::from_page(path, query) {
        let told = asked.map_err(|error| error.to_string()).and_then(|asked| (operator.policy)(&asked));
        return match told {
            Ok(told) => page(StatusCode::OK, "application/json", told),
            Err(error) => page(StatusCode::BAD_REQUEST, TEXT, format!("{error}\n")),
        };
    }
    match path {
        "/metrics" => {
            (operator.refresh)(&operator.metrics);
            operator.metrics.ready(operator.readiness.is_ready());
            page(StatusCode::OK, PROMETHEUS, operator.metrics.text())
        }
        "/readyz" => match operator.readiness.reasons().as_slice() {
            [] => page(StatusCode::OK, TEXT, "ready\n"),
            reasons => {
                let lines: String = reasons.iter().map(|reason| clean(reason) + "\n").collect();
                page(StatusCode::SERVICE_UNAVAILABLE, TEXT, lines)
            }
        },
        "/livez" => page(StatusCode::OK, TEXT, "alive\n"),
        "/status" if admin => {
            let status =
                serde_json::to_vec(&(operator.status)()).expect("a status has no map keys that are no strings");
            page(StatusCode::OK, "application/json", status)
        }
        "/names" if admin => match NamesAsked::from_query(query).and_then(|asked| (operator.names)(&asked)) {
            Ok(names) => {
                let names = serde_json::to_vec(&names).expect("a page has no map keys that are no strings");
                page(StatusCode::OK, "application/json", names)
            }
            Err(error) => page(StatusCode::BAD_REQUEST, TEXT, format!("{error}\n")),
        },
        _ => page(StatusCode::NOT_FOUND, TEXT, "no such page; there are /metrics, /readyz and /livez\n"),
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

fn page(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn tcp_loop(listener: Option<TcpListener>, operator: Arc<Operator>) -> io::Error {
    let Some(listener) = listener else { return std::future::pending().await };
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connection(stream, &slots, &operator, Asker::Anyone),
            Err(error) => pause(&error).await,
        }
    }
}

async fn unix_loop(listener: UnixListener, operator: Arc<Operator>) -> io::Error {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let asker = Asker::of(&stream);
                connection(stream, &slots, &operator, asker);
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// Out of file descriptors, most likely: the listener stays readable, so don't spin.
async fn pause(error: &io::Error) {
    tracing::debug!(%error, "a connection could not be accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn connection<S>(stream: S, slots: &Arc<Semaphore>, operator: &Arc<Operator>, asker: Asker)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok(slot) = Arc::clone(slots).try_acquire_owned() else { return };
    let operator = Arc::clone(operator);
    tokio::spawn(async move {
        converse(stream, &operator, asker).await;
        drop(slot);
    });
}

/// Answers the requests of one connection until it is closed, sends what is none, or was open for too long.
pub async fn converse<S>(stream: S, operator: &Operator, asker: Asker)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let response = match &operator.hand_over {
            Some(hand_over) if path == takeover::PAGE && asker == Asker::Admin => hand_over.answer(&mut request),
            _ => answer(operator, request.method(), path, query, asker),
        };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .half_close(true) // who says all at once and shuts its side gets its answer
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(REQUEST_OCTETS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_TIMEOUT, served).await {
        tracing::debug!(%error, "a connection of an operator ended");
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The admin socket's place in the file system.
struct AdminSocket {
    path: PathBuf,
    /// Device and inode: what another process puts there is not ours to remove.
    ours: (u64, u64),
}

impl AdminSocket {
    /// Binds beside the place and renames, so that nobody ever sees a socket that is open to others or not listening.
    fn bind(path: &Path) -> Result<(AdminSocket, UnixListener), ServeError> {
        let admin = |source| ServeError::Admin { path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(admin)?;
        }
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(admin(error)),
            Ok(found) if !found.file_type().is_socket() => return Err(ServeError::NoSocket { path: path.to_owned() }),
            Ok(_) => match UnixStream::connect(path) {
                Ok(_) => return Err(ServeError::Taken { path: path.to_owned() }),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => (), // stale
                Err(error) => return Err(admin(error)),
            },
        }
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let bind = || {
            let _ = fs::remove_file(&new);
            let listener = UnixListener::bind(&new)?;
            listener.set_nonblocking(true)?;
            fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
            let found = fs::symlink_metadata(&new)?;
            fs::rename(&new, path)?;
            Ok((AdminSocket { path: path.to_owned(), ours: (found.dev(), found.ino()) }, listener))
        };
        bind().map_err(admin)
    }

    /// One that a predecessor has bound and handed over; none: it is not there any more.
    fn of(path: &Path) -> Option<AdminSocket> {
        let found = fs::symlink_metadata(path).ok().filter(|found| found.file_type().is_socket())?;
        Some(AdminSocket { path: path.to_owned(), ours: (found.dev(), found.ino()) })
    }

    fn remove(&self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
