//! Queries over HTTPS (RFC 8484): POST on one HTTP/2 connection, opened again when it dies.
//!
//! Why not hickory-net here: it takes a parsed query and parses the answer; the engine wants the octets as they came.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::Mutex;
use tokio::task::spawn_local;

use crate::clock;
use crate::engine::answer::{Match, matches};
use crate::engine::wire::{HEADER, skip_plain_name};

use super::UpstreamError;
use super::doors::Doors;
use super::health::{Health, Registry};
use super::message::set_id;
use super::stream::{open, secured};

/// The type of queries and answers.
const MESSAGE: &str = "application/dns-message";
/// On how many connections a query is tried that end before its answer comes: the server may close whenever it likes.
const TRIES: usize = 3;
/// How often a server that owes answers is asked whether it lives, and how long it may take to say so.
const ALIVE: Duration = Duration::from_secs(2);

/// The way to one server.
pub(super) struct Https {
    address: SocketAddr,
    doors: Option<Arc<Doors>>,
    name: Option<ServerName<'static>>,
    uri: Option<Uri>,
    config: Arc<ClientConfig>,
    health: Arc<Health>,
    connection: Mutex<Connection>,
}

#[derive(Default)]
struct Connection {
    /// Which one it is, so that nobody closes another than that which failed.
    number: u64,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Https {
    pub fn new(socket: SocketAddr, certificate: &str, path: &str, registry: &Registry, health: Arc<Health>) -> Https {
        let host = if certificate.contains(':') { format!("[{certificate}]") } else { certificate.to_owned() };
        let place = if socket.port() == 443 { host } else { format!("{host}:{}", socket.port()) };
        Https {
            address: socket,
            doors: registry.doors(),
            name: ServerName::try_from(certificate.to_owned()).ok(),
            uri: format!("https://{place}{path}").parse().ok(),
            config: registry.trust().https.clone(),
            health,
            connection: Mutex::default(),
        }
    }

    /// Asks and takes the answer, its octets as they came. The caller sets the time.
    pub async fn ask(&self, mut message: Vec<u8>) -> Result<Vec<u8>, UpstreamError> {
        set_id(&mut message, 0); // RFC 8484 section 4.1: for caches on the way
        let question_end = skip_plain_name(&message, HEADER).ok_or(UpstreamError::Busy)? + 4;
        let message = Bytes::from(message);
        for _ in 0..TRIES {
            let (number, sender) = self.sender().await?;
            match self.exchange(sender, message.clone()).await {
                Ok(reply) => {
                    let good = reply.get(..2) == Some(&[0, 0])
                        && matches(&reply, &message[HEADER..question_end]) == Match::Exact;
                    return if good { Ok(reply) } else { Err(self.log("its answer is to another question")) };
                }
                Err(Broken::Said(error)) => return Err(error),
                Err(Broken::Connection(error)) => {
                    let mut connection = self.connection.lock().await;
                    if connection.number == number {
                        connection.sender = None;
                    }
                    tracing::debug!(address = %self.address, %error, "a DNS server over HTTPS hung up");
                }
            }
        }
        Err(UpstreamError::Network(io::ErrorKind::ConnectionAborted))
    }

    /// The connection: its number and its sender.
    async fn sender(&self) -> Result<(u64, SendRequest<Full<Bytes>>), UpstreamError> {
        let mut connection = self.connection.lock().await;
        if let Some(sender) = connection.sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok((connection.number, sender.clone()));
        }
        connection.sender = None;
        let opened = open(self.address, self.doors.as_deref()).await;
        let (stream, announced) = opened.map_err(|error| UpstreamError::Network(error.kind()))?;
        let stream = secured(stream, self.address, self.config.clone(), self.name.clone(), &self.health).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(self.log("it speaks no HTTP/2"));
        }
        let (sender, driver) = http2::Builder::new(Here)
            .timer(TokioTimer::new())
            .keep_alive_interval(ALIVE)
            .keep_alive_timeout(ALIVE)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| UpstreamError::Network(io::ErrorKind::ConnectionAborted))?;
        spawn_local(async move {
            let _announced = announced;
            if let Err(error) = driver.await {
                tracing::debug!(%error, "a connection to a DNS server over HTTPS ended");
            }
        });
        connection.number += 1;
        connection.sender = Some(sender.clone());
        Ok((connection.number, sender))
    }

    async fn exchange(&self, mut sender: SendRequest<Full<Bytes>>, message: Bytes) -> Result<Vec<u8>, Broken> {
        let invalid = Broken::Said(UpstreamError::Network(io::ErrorKind::InvalidInput));
        let Some(uri) = self.uri.clone() else { return Err(invalid) };
        let request = Request::post(uri).header(CONTENT_TYPE, MESSAGE).header(ACCEPT, MESSAGE);
        let Ok(request) = request.body(Full::new(message)) else { return Err(invalid) };
        sender.ready().await.map_err(Broken::Connection)?;
        let response = sender.send_request(request).await.map_err(Broken::Connection)?;
        if response.status() != StatusCode::OK {
            return Err(Broken::Said(self.log(&format!("its answer has status {}", response.status()))));
        }
        if response.headers().get(CONTENT_TYPE).is_none_or(|kind| kind.as_bytes() != MESSAGE.as_bytes()) {
            return Err(Broken::Said(self.log("its answer is no DNS message")));
        }
        match Limited::new(response.into_body(), usize::from(u16::MAX)).collect().await {
            Ok(body) => Ok(body.to_bytes().to_vec()),
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(error) => Err(Broken::Connection(*error)),
                Err(_) => Err(Broken::Said(self.log("its answer is longer than a DNS message can be"))),
            },
        }
    }

    fn log(&self, what: &str) -> UpstreamError {
        if self.health.may_log(clock::now()) {
            tracing::warn!(address = %self.address, "a DNS server over HTTPS can't be used: {what}");
        }
        UpstreamError::Network(io::ErrorKind::InvalidData)
    }
}

/// What went wrong with a request.
enum Broken {
    /// The connection; another one may do.
    Connection(hyper::Error),
    /// The server answered, but not as it should.
    Said(UpstreamError),
}

/// Runs what hyper starts on this worker.
#[derive(Clone)]
struct Here;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}
