//! From one namegate to the next: the listening sockets, over the admin socket, so that no query, scrape or probe is refused
//! while a new version takes the place of an old one.
//!
//! ```text
//!   the new one                              the running one
//!   POST /take-over, Upgrade  ─────────────▶ 101; then its sockets, as descriptors (SCM_RIGHTS, unix(7))
//!   reads the snapshot                       serves as if nobody had asked
//!   "go"                      ─────────────▶ takes no more queries, answers those under way, writes its state down
//!                             ◀───────────── closes the connection: locks and state are free
//!   takes them, and answers what has waited in the sockets
//! ```
//!
//! **Invariant:** at any moment one process at most answers queries and writes grants: a reply of one that the other has
//! succeeded would leave without the other's knowledge of its grant.
//!
//! Either side may die at any point: before "go" the running one goes on; after it, a start of any kind finds what a crash
//! leaves.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::clock;

/// The page of the admin socket.
pub const PAGE: &str = "/take-over";
/// What the connection becomes; the number changes with what is said on it.
const PROTOCOL: &str = "namegate-sockets/1";
/// Descriptors in one message; the kernel takes 253 (SCM_MAX_FD).
const DESCRIPTORS: usize = 200;
/// Octets of one message at most.
const MESSAGE_OCTETS: usize = 64 * 1024;
/// How long either side waits for a step of the other that needs no work.
const STEP: Duration = Duration::from_secs(5);
/// How long the running one waits for "go": the new one reads the snapshot meanwhile.
const PREPARATION: Duration = Duration::from_secs(60);
const GO: &[u8; 3] = b"go\n";

/// What a socket is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Queries over UDP.
    Udp,
    /// Queries over TCP: a listener.
    Tcp,
    /// Queries over TLS: a listener.
    Tls,
    /// /metrics: a listener.
    Metrics,
    /// The admin socket: a listener.
    Admin,
}

/// A socket that changes hands.
pub type Handed = (Role, OwnedFd);

/// What a process and its successor must have in common: they would else not be each other's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Home {
    /// `state_dir`.
    pub state_dir: PathBuf,
    /// `pin_dir`.
    pub pin_dir: PathBuf,
}

/// One message; `descriptors` of these roles come with its first octet.
#[derive(Serialize, Deserialize)]
struct Message {
    home: Home,
    roles: Vec<Role>,
    /// Another one follows.
    more: bool,
}

/// Why nothing was taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// Somebody is there and can't be talked to.
    #[error("asking the running namegate on {} for its sockets", path.display())]
    Talk {
        /// The admin socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It does not hand over: an older version, or a third one takes over already.
    #[error("the running namegate does not hand over its sockets ({said}); stop it first")]
    Refused {
        /// The first line of its answer.
        said: String,
    },
    /// It is not the predecessor of this one.
    #[error("the running namegate has {key} {}, this one {}; they must be the same", theirs.display(), ours.display())]
    OtherHome {
        /// The setting.
        key: &'static str,
        /// Its value there.
        theirs: PathBuf,
        /// Its value here.
        ours: PathBuf,
    },
    /// It did not end.
    #[error("the running namegate did not let go within {} s", patience.as_secs())]
    Slow {
        /// How long we waited.
        patience: Duration,
    },
}

/// The side of the running one. Clones are one.
#[derive(Clone)]
pub struct HandOver {
    held: Arc<Held>,
}

struct Held {
    home: Home,
    sockets: Mutex<Vec<Handed>>,
    /// Somebody takes over already.
    busy: AtomicBool,
    successors: mpsc::UnboundedSender<Successor>,
}

/// A process that waits for the end of this one. It hears of it when this is dropped.
pub struct Successor {
    stream: UnixStream,
    held: Arc<Held>,
}

impl Successor {
    /// Whether it has gone away meanwhile: then this one goes on, and another may ask.
    pub fn is_gone(&self) -> bool {
        let mut octet = [MaybeUninit::uninit()];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let is_gone = match rustix::net::recv(&self.stream, &mut octet, flags) {
            Ok((_, octets)) => octets == 0,
            Err(error) => error != rustix::io::Errno::AGAIN && error != rustix::io::Errno::INTR,
        };
        if is_gone {
            self.held.busy.store(false, Ordering::Release);
        }
        is_gone
    }
}

impl HandOver {
    /// And where a successor is announced that wants to go on.
    pub fn new(home: Home) -> (HandOver, mpsc::UnboundedReceiver<Successor>) {
        let (successors, announced) = mpsc::unbounded_channel();
        let held = Held { home, sockets: Mutex::default(), busy: AtomicBool::new(false), successors };
        (HandOver { held: Arc::new(held) }, announced)
    }

    /// Keeps a second descriptor of each socket, for a successor.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn keep<'a>(&self, role: Role, sockets: impl IntoIterator<Item = BorrowedFd<'a>>) -> io::Result<()> {
        let copies: Vec<Handed> =
            sockets.into_iter().map(|socket| Ok((role, socket.try_clone_to_owned()?))).collect::<io::Result<_>>()?;
        self.held.sockets.lock().unwrap_or_else(PoisonError::into_inner).extend(copies);
        Ok(())
    }

    /// Answers who asks on the admin socket, and goes on with it on a thread.
    pub(super) fn answer(&self, request: &mut Request<Incoming>) -> Response<Full<Bytes>> {
        let says = |status, text: &'static str| {
            let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
            *response.status_mut() = status;
            response
        };
        if request.method() != Method::POST || request.headers().get(UPGRADE).is_none_or(|it| it != PROTOCOL) {
            return says(StatusCode::UPGRADE_REQUIRED, "only `namegate node --take-over` of this version may ask\n");
        }
        if self.held.busy.swap(true, Ordering::AcqRel) {
            return says(StatusCode::CONFLICT, "another one takes over already\n");
        }
        let (hand_over, upgrade) = (self.clone(), hyper::upgrade::on(request));
        tokio::spawn(async move {
            let done = hand_over.serve(upgrade).await;
            if let Err(error) = done {
                tracing::warn!(%error, "a successor went away; this one goes on");
                hand_over.held.busy.store(false, Ordering::Release);
            }
        });
        let mut response = says(StatusCode::SWITCHING_PROTOCOLS, "");
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
        response
    }

    async fn serve(&self, upgrade: OnUpgrade) -> io::Result<()> {
        let upgraded = upgrade.await.map_err(io::Error::other)?;
        let parts = upgraded.downcast::<TokioIo<tokio::net::UnixStream>>();
        let parts = parts.map_err(|_| io::Error::other("not over the admin socket"))?;
        let stream = parts.io.into_inner().into_std()?;
        let hand_over = self.clone();
        tokio::task::spawn_blocking(move || hand_over.give(stream)).await.map_err(io::Error::other)?
    }

    /// Sends what is held, waits for "go" and announces the successor.
    fn give(&self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(STEP))?;
        stream.set_read_timeout(Some(PREPARATION))?;
        {
            let sockets = self.held.sockets.lock().unwrap_or_else(PoisonError::into_inner);
            let mut parts = sockets.chunks(DESCRIPTORS).peekable();
            while let Some(part) = parts.next() {
                send(&stream, &self.held.home, part, parts.peek().is_some())?;
            }
        }
        let mut word = [0; GO.len()];
        (&stream).read_exact(&mut word)?;
        if word != *GO {
            return Err(io::Error::other("it said something else than go"));
        }
        let successor = Successor { stream, held: self.held.clone() };
        self.held.successors.send(successor).map_err(|_| io::Error::other("this one is ending"))
    }
}

/// What the running one offers; it serves until [`Offer::accept`], and goes on if this is dropped.
pub struct Offer {
    stream: UnixStream,
    sockets: Vec<Handed>,
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

/// Asks whoever runs with this admin socket; none: nobody does.
///
/// # Errors
/// See [`TakeOverError`]; the running one goes on then.
pub fn ask(admin: &Path, home: &Home) -> Result<Option<Offer>, TakeOverError> {
    let talk = |source| TakeOverError::Talk { path: admin.to_owned(), source };
    let stream = match UnixStream::connect(admin) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(talk(error)),
    };
    stream.set_read_timeout(Some(STEP)).map_err(talk)?;
    stream.set_write_timeout(Some(STEP)).map_err(talk)?;
    let request =
        format!("POST {PAGE} HTTP/1.1\r\nhost: namegate\r\nconnection: upgrade\r\nupgrade: {PROTOCOL}\r\n\r\n");
    (&stream).write_all(request.as_bytes()).map_err(talk)?;
    let said = head(&stream).map_err(talk)?;
    if !said.starts_with("HTTP/1.1 101 ") {
        let said = said.lines().next().unwrap_or_default().to_owned();
        return Err(TakeOverError::Refused { said });
    }
    let mut sockets = Vec::new();
    loop {
        let (message, handed) = receive(&stream).map_err(talk)?;
        same("state_dir", &message.home.state_dir, &home.state_dir)?;
        same("pin_dir", &message.home.pin_dir, &home.pin_dir)?;
        sockets.extend(handed);
        if !message.more {
            return Ok(Some(Offer { stream, sockets }));
        }
    }
}

fn same(key: &'static str, theirs: &Path, ours: &Path) -> Result<(), TakeOverError> {
    if theirs == ours {
        return Ok(());
    }
    Err(TakeOverError::OtherHome { key, theirs: theirs.to_owned(), ours: ours.to_owned() })
}

impl Offer {
    /// Lets the other one end, and waits for that.
    ///
    /// # Errors
    /// It did not let go within `patience`. It may have ended all the same a moment later.
    pub fn accept(self, patience: Duration) -> Result<Vec<Handed>, TakeOverError> {
        let slow = |_| TakeOverError::Slow { patience };
        let until = clock::now() + patience;
        (&self.stream).write_all(GO).map_err(slow)?;
        loop {
            let left = until.saturating_duration_since(clock::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).map_err(slow)?;
            match (&self.stream).read(&mut [0]) {
                Ok(0) => return Ok(self.sockets),
                // Killed meanwhile: as good as ended.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(self.sockets),
                // A signal, which is acted on later.
                Err(error) if error.kind() == io::ErrorKind::Interrupted && clock::now() < until => (),
                Ok(_) => return Err(TakeOverError::Slow { patience }),
                Err(error) => return Err(slow(error)),
            }
        }
    }
}

/// The head of an HTTP answer, octet by octet: descriptors come with what follows.
fn head(stream: &UnixStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut octet = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > MESSAGE_OCTETS {
            return Err(io::Error::other("its answer is too long"));
        }
        let mut stream = stream;
        stream.read_exact(&mut octet)?;
        head.extend_from_slice(&octet);
    }
    String::from_utf8(head).map_err(io::Error::other)
}

fn send(stream: &UnixStream, home: &Home, sockets: &[Handed], more: bool) -> io::Result<()> {
    let roles = sockets.iter().map(|(role, _)| *role).collect();
    let text = serde_json::to_vec(&Message { home: home.clone(), roles, more })?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?.to_be_bytes();
    let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
    let mut room = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(&descriptors).size()];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for the descriptors"));
    }
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL)?;
    let mut stream = stream;
    stream.write_all(&length[sent..])?;
    stream.write_all(&text)
}

fn receive(stream: &UnixStream) -> io::Result<(Message, Vec<Handed>)> {
    let mut length = [0; 4];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let received =
        rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut length)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(handed) = message {
            descriptors.extend(handed);
        }
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut stream = stream;
    stream.read_exact(&mut length[received.bytes..])?;
    let octets = u32::from_be_bytes(length) as usize;
    if octets > MESSAGE_OCTETS {
        return Err(io::Error::other(format!("a message of {octets} octets; {MESSAGE_OCTETS} are allowed")));
    }
    let mut text = vec![0; octets];
    stream.read_exact(&mut text)?;
    let message: Message = serde_json::from_slice(&text)?;
    if message.roles.len() != descriptors.len() {
        return Err(io::Error::other(format!("{} of {} sockets came", descriptors.len(), message.roles.len())));
    }
    let handed = message.roles.iter().copied().zip(descriptors).collect();
    Ok((message, handed))
}

#[cfg(test)]
mod tests;
