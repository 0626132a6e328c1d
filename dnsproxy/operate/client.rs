//! The other end of the admin socket: what `namegate ready`, `status`, `fqdn`, `explain`, `policy` and `endpoint` ask.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

/// How many octets of an answer are read at most.
const ANSWER_OCTETS: usize = 16 * 1024 * 1024;

/// A page of the admin socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The page.
    pub body: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens, or we may not ask.
    #[error("asking namegate on {}{}", path.display(), where_dead(source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("namegate on {} did not answer within {} ms", path.display(), patience.as_millis())]
    Slow {
        /// The socket.
        path: PathBuf,
        /// How long we waited.
        patience: Duration,
    },
    /// The answer is no HTTP, or too long.
    #[error("reading the answer of namegate on {}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No runtime.
    #[error("starting a runtime")]
    Runtime(#[source] io::Error),
}

/// What a user who is told "connection refused" wants to know.
fn where_dead(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            ", which does not run; what it put in force stays until `namegate detach`"
        }
        _ => "",
    }
}

/// Asks for one page, and waits for it `patience` at most.
///
/// # Errors
/// See [`AskError`]; a page with any HTTP status is an answer.
pub fn get(socket: &Path, page: &str, patience: Duration) -> Result<Answer, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AskError::Runtime)?;
    runtime.block_on(async {
        match tokio::time::timeout(patience, ask(socket, page)).await {
            Ok(answer) => answer,
            Err(_) => Err(AskError::Slow { path: socket.to_owned(), patience }),
        }
    })
}

async fn ask(socket: &Path, page: &str) -> Result<Answer, AskError> {
    let connect = |source| AskError::Connect { path: socket.to_owned(), source };
    let stream = tokio::net::UnixStream::connect(socket).await.map_err(connect)?;
    talk(stream, page).await.map_err(|source| AskError::Answer { path: socket.to_owned(), source })
}

async fn talk(stream: tokio::net::UnixStream, page: &str) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(page).header("host", "namegate").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), ANSWER_OCTETS).collect().await?.to_bytes();
    connection.abort();
    Ok(Answer { status, body: String::from_utf8(body.to_vec())? })
}
