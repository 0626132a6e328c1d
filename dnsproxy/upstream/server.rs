//! One DNS server as one worker asks it, and the servers of a route.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::address::{ServerAddress, Transport};
use super::cookie::Cookies;
use super::doors::Doors;
use super::health::{Health, Registry};
use super::https::Https;
use super::route::Route;
use super::socket::Socket;
use super::stream::Streams;
use super::{Shared, UpstreamError};

/// Sockets in use at a time: an attacker must guess which port, of four that change.
const SOCKETS: usize = 4;
/// Queries that one socket sends before another port takes over.
pub(super) const QUERIES: u32 = 1_000;
/// Paths and servers that are known at a time before those that nobody asks any more are forgotten.
const KNOWN: usize = 256;

/// A DNS server.
pub(super) struct Server {
    pub address: ServerAddress,
    pub health: Arc<Health>,
    pub way: Way,
    /// Not yet told to `health`.
    queries: Cell<u64>,
    answers: Cell<u64>,
}

/// How it is asked.
pub(super) enum Way {
    /// UDP; TCP for what is too long, and when its datagrams can't be trusted.
    Plain(Plain),
    Tls(Streams),
    Https(Https),
}

/// The sockets and what is known of a server that is asked over UDP and TCP.
pub(super) struct Plain {
    address: SocketAddr,
    doors: Option<Arc<Doors>>,
    sockets: RefCell<Vec<Rc<Socket>>>,
    turn: Cell<usize>,
    /// The socket for all that is asked in this turn of the worker.
    current: RefCell<Option<Rc<Socket>>>,
    only_tcp_until: Cell<Option<Instant>>,
    pub cookies: Cookies,
    pub tcp: Streams,
}

/// The servers of a route, with a number of their own.
pub(super) struct Path {
    pub id: u32,
    pub servers: Box<[Rc<Server>]>,
}

/// Every path that this worker knows.
pub(super) struct Paths {
    registry: Arc<Registry>,
    /// Most queries go the way of the one before.
    recent: Option<(Route, Rc<Path>)>,
    by_route: HashMap<Route, Rc<Path>>,
    servers: Vec<Rc<Server>>,
    last_id: u32,
}

impl Server {
    fn new(address: &ServerAddress, registry: &Registry) -> Server {
        let health = registry.health(address);
        let socket = address.socket;
        let way = match &address.transport {
            Transport::Plain => Way::Plain(Plain {
                address: socket,
                doors: registry.doors(),
                sockets: RefCell::default(),
                turn: Cell::new(0),
                current: RefCell::default(),
                only_tcp_until: Cell::new(None),
                cookies: Cookies::default(),
                tcp: Streams::tcp(socket, registry.doors()),
            }),
            Transport::Tls { certificate } => Way::Tls(Streams::tls(socket, certificate, registry, health.clone())),
            Transport::Https { certificate, path } => {
                Way::Https(Https::new(socket, certificate, path, registry, health.clone()))
            }
        };
        Server { address: address.clone(), health, way, queries: Cell::new(0), answers: Cell::new(0) }
    }

    /// What matters when it is asked over UDP.
    pub fn plain(&self) -> Option<&Plain> {
        match &self.way {
            Way::Plain(plain) => Some(plain),
            Way::Tls(_) | Way::Https(_) => None,
        }
    }

    /// Asks on a connection. The caller sets the time.
    pub async fn ask(&self, shared: &Shared, message: Vec<u8>) -> Result<Vec<u8>, UpstreamError> {
        match &self.way {
            Way::Plain(plain) => plain.tcp.ask(&shared.chance, message).await,
            Way::Tls(streams) => streams.ask(&shared.chance, message).await,
            Way::Https(https) => https.ask(message).await,
        }
    }

    /// Counts; whether these are the first since [`Server::settle`].
    pub fn count(&self, queries: u64, answers: u64) -> bool {
        let first = self.queries.get() + self.answers.get() == 0;
        self.queries.set(self.queries.get() + queries);
        self.answers.set(self.answers.get() + answers);
        first
    }

    /// Tells the counts to all.
    pub fn settle(&self) {
        self.health.count(self.queries.take(), self.answers.take());
    }
}

impl Plain {
    pub fn only_tcp(&self, now: Instant) -> bool {
        self.only_tcp_until.get().is_some_and(|until| now < until)
    }

    pub fn ask_only_tcp_until(&self, until: Instant) {
        self.only_tcp_until.set(Some(until));
    }

    /// The socket of this turn, or the next one in turn; opened when there are too few or it has done its share.
    pub fn socket(&self, shared: &Rc<Shared>) -> io::Result<Rc<Socket>> {
        if let Some(current) = self.current.borrow().as_ref().filter(|socket| !socket.is_retired()) {
            return Ok(current.clone());
        }
        let mut sockets = self.sockets.borrow_mut();
        sockets.retain(|socket| !socket.is_retired());
        if sockets.len() < SOCKETS {
            sockets.push(Socket::open(shared, self.address, self.doors.as_deref())?);
        }
        let turn = (self.turn.get() + 1) % sockets.len();
        self.turn.set(turn);
        self.current.replace(Some(sockets[turn].clone()));
        Ok(sockets[turn].clone())
    }

    /// The turn is over. A socket that has done its share closes when its last answer has come.
    pub fn end_turn(&self) {
        if let Some(socket) = self.current.take().filter(|socket| socket.sent() >= QUERIES) {
            socket.retire();
        }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.sockets.take().iter().for_each(|socket| socket.retire());
    }
}

impl Paths {
    pub fn new(registry: Arc<Registry>) -> Paths {
        Paths { registry, recent: None, by_route: HashMap::new(), servers: Vec::new(), last_id: 0 }
    }

    /// The path of a route; the same for routes to the same servers.
    pub fn of(&mut self, route: &Route) -> Rc<Path> {
        if let Some((_, path)) = self.recent.as_ref().filter(|(recent, _)| recent.is(route)) {
            return path.clone();
        }
        let path = match self.by_route.get(route) {
            Some(path) => path.clone(),
            None => self.add(route),
        };
        self.recent = Some((route.clone(), path.clone()));
        path
    }

    fn add(&mut self, route: &Route) -> Rc<Path> {
        self.recent = None;
        if self.by_route.len() >= KNOWN {
            self.by_route.retain(|_, path| Rc::strong_count(path) > 1);
            self.servers.retain(|server| Rc::strong_count(server) > 1);
        }
        self.last_id = self.last_id.wrapping_add(1);
        let servers = route.servers().iter().map(|address| self.server(address)).collect();
        let path = Rc::new(Path { id: self.last_id, servers });
        self.by_route.insert(route.clone(), path.clone());
        path
    }

    fn server(&mut self, address: &ServerAddress) -> Rc<Server> {
        if let Some(server) = self.servers.iter().find(|server| server.address == *address) {
            return server.clone();
        }
        let server = Rc::new(Server::new(address, &self.registry));
        self.servers.push(server.clone());
        server
    }
}
