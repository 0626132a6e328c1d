//! Queries over TLS (RFC 7858): a handshake in front of the same conversation as over TCP.
//!
//! # Why not hickory-server here?
//!
//! It hides the local address that a query came to, which stands for the resolver that was asked, and it takes a reply as
//! records, not as octets: what needs no change could not go back unchanged.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The protocol's name in the handshake (RFC 7301, IANA's registry). A client that offers none is served all the same.
const DOT: &[u8] = b"dot";

/// Where queries over TLS arrive, and what is shown there.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The port; 0: the kernel's choice.
    pub port: u16,
    config: Arc<ServerConfig>,
}

/// Queries over TLS can't be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read, or holds nothing of the kind.
    #[error("{path}: no {what} in PEM form")]
    File {
        /// What is looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// They do not belong together, or the key is of no known kind.
    #[error("the certificate in {certificate} and the key in {key} are no pair")]
    Pair {
        /// The certificates' file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

impl Tls {
    /// Reads a chain of certificates, the server's own first, and its private key.
    ///
    /// # Errors
    /// A file can't be read or holds nothing of the kind, or the two are no pair.
    pub fn read(port: u16, certificate: &Path, key: &Path) -> Result<Tls, TlsError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::File { what, path, source }
        };
        let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) });
        let chain = chain.map_err(failed("certificate", certificate))?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(failed("private key", key))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret));
        let mut config =
            config.map_err(|source| TlsError::Pair { certificate: certificate.into(), key: key.into(), source })?;
        config.alpn_protocols = vec![DOT.to_vec()];
        Ok(Tls { port, config: Arc::new(config) })
    }

    /// Shakes hands with a client.
    pub(super) async fn shake_hands(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        timeout(HANDSHAKE, TlsAcceptor::from(self.config.clone()).accept(stream)).await?
    }
}
