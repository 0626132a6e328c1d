//! Queries on connections (RFC 7766), behind TLS or not: pipelined, answered as answers come, each wait with its
//! deadline.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::clock;
use crate::engine::ruleset::Protocol;
use crate::serve::directory::Taken;
use crate::serve::{Next, Packet};

use super::socket::interface_of;
use super::{UnderWay, Worker};

/// Queries of one connection under way; above that it is not read.
const PIPELINE: usize = 64;
/// Octets of a query at most: a question and an OPT record with room for its options.
const QUERY: usize = 4_096;
/// What a handshake costs of the endpoint's queries a second: about as much of our time as so many queries.
const HANDSHAKE: u32 = 50;
/// The port of DNS over TLS (RFC 7858 section 3.1).
const TLS_PORT: u16 = 853;
/// How long a connection may have been accepted without a query and still hold up a drain.
const NEWCOMER: Duration = Duration::from_millis(200);
/// How long to wait when a connection can't be accepted for want of something.
const PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end, and what he may use.
struct Caller {
    peer: SocketAddr,
    local: IpAddr,
    interface: u32,
    idle: Duration,
    _slots: (Taken, Taken),
}

/// Accepts connections for ever.
pub(super) async fn accept(worker: Rc<Worker>, listener: Rc<TcpListener>, tls: bool) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => match admit(&worker, &stream, peer, tls) {
                Ok(caller) if tls => {
                    spawn_local(converse_behind_tls(worker.clone(), stream, caller, worker.begin()));
                }
                Ok(caller) => {
                    spawn_local(converse(worker.clone(), stream, caller, Some(worker.begin())));
                }
                Err(error) => tracing::debug!(%peer, %error, "a connection is closed"),
            },
            Err(error) => {
                // No descriptor is free, most likely: others have to end first.
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Endpoints only, and within the limits; others are counted.
fn admit(worker: &Worker, stream: &TcpStream, peer: SocketAddr, tls: bool) -> io::Result<Caller> {
    let local = stream.local_addr()?.ip();
    let interface = interface_of(stream, local)?;
    let directory = worker.proxy.directory.load();
    let settings = &directory.settings;
    let refused = |reason: &'static str| {
        worker.proxy.turned_away(&Packet { bytes: &[], client: peer, local, interface, tcp: true }, reason);
        io::Error::other(reason)
    };
    let served = directory.endpoint(interface, peer.ip()).ok_or_else(|| refused("no_endpoint"))?;
    if tls {
        // Queries are judged as over TCP on the port of DNS; the connection itself went to another one.
        let resolver = directory.resolver(local).ok_or_else(|| refused("unknown_resolver"))?;
        if served.rules.load().denies_server(resolver.address.ip(), Protocol::Tcp, TLS_PORT) {
            return Err(refused("server"));
        }
        if !served.rate.take_several(HANDSHAKE, settings.queries_per_second, clock::mono()) {
            return Err(refused("rate"));
        }
    }
    let limit = |counter, limit| Taken::take(counter, limit).ok_or_else(|| refused("tcp_connections"));
    let own = limit(&served.connections, settings.tcp_connections)?;
    let total = limit(&worker.proxy.connections, settings.tcp_connections_total)?;
    stream.set_nodelay(true)?;
    Ok(Caller { peer, local, interface, idle: settings.tcp_idle, _slots: (own, total) })
}

async fn converse_behind_tls(worker: Rc<Worker>, stream: TcpStream, caller: Caller, newcomer: UnderWay) {
    let Some(tls) = &worker.tls else { return };
    let (shaken, newcomer) = soon(Some(newcomer), tls.shake_hands(stream)).await;
    match shaken {
        Ok(stream) => converse(worker, stream, caller, newcomer).await,
        Err(error) => {
            let Caller { peer, local, interface, .. } = caller;
            worker
                .proxy
                .turned_away(&Packet { bytes: &[], client: peer, local, interface, tcp: true }, "tls_handshake");
            tracing::debug!(%peer, %error, "a TLS handshake failed");
        }
    }
}

/// One connection, until the client ends it, waits too long or sends what is no query.
async fn converse(
    worker: Rc<Worker>,
    stream: impl AsyncRead + AsyncWrite + 'static,
    caller: Caller,
    mut newcomer: Option<UnderWay>,
) {
    let (mut reader, writer) = tokio::io::split(stream);
    let (replies, outgoing) = mpsc::channel(PIPELINE);
    let idle = caller.idle;
    let mut writing = spawn_local(write(writer, outgoing, idle));
    let pipeline = Arc::new(Semaphore::new(PIPELINE));
    loop {
        let Ok(slot) = pipeline.clone().acquire_owned().await else { break };
        let reading = soon(newcomer.take(), timeout(idle, read(&mut reader)));
        let (message, _newcomer) = tokio::select! {
            message = reading => message,
            // Replies can't be delivered any more.
            _ = &mut writing => break,
        };
        let Ok(Ok(message)) = message else { break };
        let packet = Packet {
            bytes: &message,
            client: caller.peer,
            local: caller.local,
            interface: caller.interface,
            tcp: true,
        };
        let mut reply = Vec::new();
        match worker.proxy.accept(&packet, None, &mut reply) {
            Next::Reply => {
                if replies.send(reply).await.is_err() {
                    break;
                }
            }
            // Whoever sends such things has nothing to ask.
            Next::Nothing => break,
            Next::Ask(ask) => {
                let (worker, replies) = (worker.clone(), replies.clone());
                let under_way = worker.begin();
                spawn_local(async move {
                    let _slot = slot;
                    let reply = worker.proxy.finish(ask, &worker.upstream).await;
                    let _ = replies.send(reply).await;
                    drop(under_way);
                });
            }
        }
    }
    drop(replies);
    if !writing.is_finished() {
        // What is under way still goes out; the slots are held until then.
        let _ = writing.await;
    }
}

/// A connection that has just been accepted counts as a query under way, but not for long: a drain that ends it would lose
/// what it was made for.
async fn soon<T>(newcomer: Option<UnderWay>, work: impl Future<Output = T>) -> (T, Option<UnderWay>) {
    if newcomer.is_none() {
        return (work.await, None);
    }
    let mut work = std::pin::pin!(work);
    if let Ok(done) = timeout(NEWCOMER, &mut work).await {
        return (done, newcomer);
    }
    drop(newcomer);
    (work.await, None)
}

async fn read(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let octets = usize::from(reader.read_u16().await?);
    if octets > QUERY {
        return Err(io::Error::other(format!("a query of {octets} octets; the limit is {QUERY}")));
    }
    let mut message = vec![0; octets];
    reader.read_exact(&mut message).await?;
    Ok(message)
}

async fn write(mut writer: impl AsyncWrite + Unpin, mut outgoing: mpsc::Receiver<Vec<u8>>, idle: Duration) {
    while let Some(reply) = outgoing.recv().await {
        let Ok(length) = u16::try_from(reply.len()) else { continue };
        let framed = [&length.to_be_bytes(), &reply[..]].concat();
        let written = async {
            writer.write_all(&framed).await?;
            writer.flush().await
        };
        if !matches!(timeout(idle, written).await, Ok(Ok(()))) {
            return;
        }
    }
    // TLS takes its leave, so that the client knows that nothing is missing.
    let _ = timeout(idle, writer.shutdown()).await;
}
