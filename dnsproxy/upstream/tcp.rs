//! One query over TCP: what was too long for a datagram, and servers that do not repeat the case of letters.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::engine::answer::{Match, matches};
use crate::engine::wire::{HEADER, skip_plain_name};

use super::server::Server;

/// Sends `message` on a connection of its own and takes the answer. The caller sets the time.
pub(super) async fn ask(server: &Server, message: &[u8]) -> io::Result<Vec<u8>> {
    let _slot = server.connections.acquire().await.map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(server.address()).await?;
    stream.set_nodelay(true)?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await?;
    let question_end = skip_plain_name(message, HEADER).map_or(message.len(), |end| end + 4);
    loop {
        let octets = usize::from(stream.read_u16().await?);
        let mut reply = vec![0; octets];
        stream.read_exact(&mut reply).await?;
        if reply.get(..2) == Some(&message[..2]) && matches(&reply, &message[HEADER..question_end]) == Match::Exact {
            return Ok(reply);
        }
    }
}
