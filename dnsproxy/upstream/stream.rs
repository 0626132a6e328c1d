//! Queries on connections, over TCP (RFC 7766) and TLS (RFC 7858): kept, used by many at a time, opened again when they
//! die.
//!
//! A server may close whenever it likes. Who waited on a connection that had answered before, or was there before, asks
//! on another one; a connection that is closed without a word is an error.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::clock;
use crate::engine::answer::{Match, matches};
use crate::engine::wire::{HEADER, skip_plain_name, u16_at};

use super::UpstreamError;
use super::chance::Chance;
use super::doors::{Announced, Doors};
use super::health::{Health, Registry};
use super::message::set_id;

/// How long a connection is kept on which nothing is asked.
const IDLE: Duration = Duration::from_secs(30);
/// How long it may take until a connection can be used.
const OPENING: Duration = Duration::from_secs(10);
/// On how many connections a query is tried that are closed before its answer comes.
const TRIES: usize = 4;
/// Queries on one connection at most: an unused number is found at once.
const WAITING: usize = 8_192;
/// Octets that a read makes room for at least.
const READ: usize = 4_096;

/// The connections to one server.
pub(super) struct Streams {
    address: SocketAddr,
    doors: Option<Arc<Doors>>,
    tls: Option<Tls>,
    /// Queries that wait on a connection when another one is opened, unless there are `most`.
    busy: usize,
    most: usize,
    connections: RefCell<Vec<Rc<Connection>>>,
}

#[derive(Clone)]
struct Tls {
    config: Arc<ClientConfig>,
    /// None: it is neither a host name nor an address.
    name: Option<ServerName<'static>>,
    health: Arc<Health>,
}

struct Connection {
    waiting: RefCell<HashMap<u16, Waiting>>,
    outgoing: RefCell<Vec<u8>>,
    filled: Notify,
    /// Answers that came on it.
    answered: Cell<u64>,
    heard_at: Cell<Option<Instant>>,
    ended: Cell<Option<UpstreamError>>,
    driver: RefCell<Option<AbortHandle>>,
}

struct Waiting {
    question: Vec<u8>,
    answer: oneshot::Sender<Vec<u8>>,
}

impl Streams {
    /// Over TCP: servers that answer one after the other are many, so each query gets a connection of its own while
    /// there is one to be had.
    pub fn tcp(address: SocketAddr, doors: Option<Arc<Doors>>) -> Streams {
        Streams { address, doors, tls: None, busy: 1, most: 64, connections: RefCell::default() }
    }

    /// Over TLS: opening is dear.
    pub fn tls(address: SocketAddr, certificate: &str, registry: &Registry, health: Arc<Health>) -> Streams {
        let name = ServerName::try_from(certificate.to_owned()).ok();
        let tls = Tls { config: registry.trust().tls.clone(), name, health };
        Streams { address, doors: registry.doors(), tls: Some(tls), busy: 32, most: 4, connections: RefCell::default() }
    }

    /// Asks and takes the answer, its octets as they came. The caller sets the time.
    pub async fn ask(&self, chance: &RefCell<Chance>, mut message: Vec<u8>) -> Result<Vec<u8>, UpstreamError> {
        let mut error = UpstreamError::Busy;
        for _ in 0..TRIES {
            let connection = self.connection();
            let known = connection.answered.get() > 0;
            let Some((id, answer)) = connection.send(chance, &mut message) else { return Err(UpstreamError::Busy) };
            let mut asked = Asked { connection: &connection, id, since: clock::now(), over: false };
            let answer = answer.await;
            asked.over = true;
            drop(asked);
            if let Ok(answer) = answer {
                return Ok(answer);
            }
            error = connection.ended.get().unwrap_or(UpstreamError::Network(io::ErrorKind::UnexpectedEof));
            if !known && connection.answered.get() == 0 {
                break;
            }
        }
        Err(error)
    }

    /// The connection on which the fewest wait, or a new one.
    fn connection(&self) -> Rc<Connection> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| connection.ended.get().is_none());
        let waiting = |connection: &Rc<Connection>| connection.waiting.borrow().len();
        if let Some(idlest) = connections.iter().min_by_key(|connection| waiting(connection))
            && (waiting(idlest) < self.busy || connections.len() >= self.most)
        {
            return idlest.clone();
        }
        let connection = Rc::new(Connection {
            waiting: RefCell::default(),
            outgoing: RefCell::default(),
            filled: Notify::new(),
            answered: Cell::new(0),
            heard_at: Cell::new(None),
            ended: Cell::new(None),
            driver: RefCell::default(),
        });
        let driver = spawn_local(drive(self.address, self.doors.clone(), self.tls.clone(), connection.clone()));
        connection.driver.replace(Some(driver.abort_handle()));
        connections.push(connection.clone());
        connection
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        let ended = UpstreamError::Network(io::ErrorKind::ConnectionAborted);
        self.connections.take().iter().for_each(|connection| connection.end(ended));
    }
}

impl Connection {
    /// Queues the message under a number of its own.
    fn send(&self, chance: &RefCell<Chance>, message: &mut [u8]) -> Option<(u16, oneshot::Receiver<Vec<u8>>)> {
        let mut waiting = self.waiting.borrow_mut();
        let question_end = skip_plain_name(message, HEADER)? + 4;
        if waiting.len() >= WAITING {
            return None;
        }
        let id = loop {
            let id = chance.borrow_mut().number();
            if !waiting.contains_key(&id) {
                break id;
            }
        };
        set_id(message, id);
        let (answer, receiver) = oneshot::channel();
        waiting.insert(id, Waiting { question: message[HEADER..question_end].to_vec(), answer });
        let mut outgoing = self.outgoing.borrow_mut();
        outgoing.extend_from_slice(&(message.len() as u16).to_be_bytes());
        outgoing.extend_from_slice(message);
        self.filled.notify_one();
        Some((id, receiver))
    }

    /// A whole message came: an answer if it matches, else nothing.
    fn received(&self, message: &[u8]) {
        self.heard_at.set(Some(clock::now()));
        let Some(id) = u16_at(message, 0) else { return };
        let mut waiting = self.waiting.borrow_mut();
        if waiting.get(&id).is_some_and(|waiting| matches(message, &waiting.question) == Match::Exact)
            && let Some(Waiting { answer, .. }) = waiting.remove(&id)
        {
            self.answered.set(self.answered.get() + 1);
            let _ = answer.send(message.to_vec()); // who asked may be gone
        }
    }

    /// It is of no more use; who waits on it is told.
    fn end(&self, why: UpstreamError) {
        if self.ended.get().is_none() {
            self.ended.set(Some(why));
        }
        self.waiting.take();
        if let Some(driver) = self.driver.take() {
            driver.abort();
        }
    }
}

/// A query that waits on a connection.
struct Asked<'a> {
    connection: &'a Connection,
    id: u16,
    since: Instant,
    over: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // Its time is up. A connection on which nothing came meanwhile is dead.
        self.connection.waiting.borrow_mut().remove(&self.id);
        if self.connection.heard_at.get().is_none_or(|heard| heard < self.since) {
            self.connection.end(UpstreamError::Timeout);
        }
    }
}

/// The life of a connection.
async fn drive(address: SocketAddr, doors: Option<Arc<Doors>>, tls: Option<Tls>, connection: Rc<Connection>) {
    let why = match timeout(OPENING, open(address, doors.as_deref())).await {
        Err(_) => UpstreamError::Timeout,
        Ok(Err(error)) => UpstreamError::Network(error.kind()),
        Ok(Ok((stream, _announced))) => match tls {
            None => exchange(stream, &connection).await,
            Some(tls) => match secured(stream, address, tls.config, tls.name, &tls.health).await {
                Ok(stream) => exchange(stream, &connection).await,
                Err(error) => error,
            },
        },
    };
    connection.driver.take(); // it is this very task
    connection.end(why);
}

/// A TCP connection, which was announced if that is asked for.
pub(super) async fn open(address: SocketAddr, doors: Option<&Doors>) -> io::Result<(TcpStream, Option<Announced>)> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    let announced = match doors {
        Some(doors) => Some(doors.open(&socket, address, true, TcpSocket::bind)?),
        None => None,
    };
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok((stream, announced))
}

/// TLS over `stream`, with the server whose certificate bears `name` and no other.
pub(super) async fn secured(
    stream: TcpStream,
    address: SocketAddr,
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
    health: &Health,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, UpstreamError> {
    let Some(name) = name else { return Err(UpstreamError::Tls) };
    let error = match timeout(OPENING, TlsConnector::from(config).connect(name.clone(), stream)).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(error)) => error,
        Err(_) => return Err(UpstreamError::Timeout),
    };
    let tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    if health.may_log(clock::now()) {
        let name = name.to_str();
        tracing::warn!(%address, %name, %error, "no TLS with a DNS server, so it is not asked");
    }
    Err(if tls { UpstreamError::Tls } else { UpstreamError::Network(error.kind()) })
}

/// Writes what is queued and reads what comes, until either ends.
async fn exchange(stream: impl AsyncRead + AsyncWrite, connection: &Connection) -> UpstreamError {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        loop {
            let octets = connection.outgoing.take();
            if octets.is_empty() {
                connection.filled.notified().await;
                continue;
            }
            writer.write_all(&octets).await?;
            writer.flush().await?;
        }
    };
    let read = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ);
            match timeout(IDLE, reader.read_buf(&mut buffer)).await {
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => drop(read?),
                Err(_) => return Err(io::Error::from(io::ErrorKind::TimedOut)),
            }
            while let Some(length) = u16_at(&buffer, 0).map(usize::from) {
                let Some(message) = buffer.get(2..2 + length) else { break };
                connection.received(message);
                buffer.advance(2 + length);
            }
        }
    };
    let ended: Result<(), io::Error> = tokio::select! {
        ended = write => ended,
        ended = read => ended,
    };
    UpstreamError::Network(ended.err().map_or(io::ErrorKind::UnexpectedEof, |error| error.kind()))
}
