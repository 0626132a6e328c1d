//! Whose certificates are good: DNS servers over TLS and HTTPS.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::{ClientConfig, RootCertStore};

/// How TLS is spoken, read once at start: versions 1.2 and 1.3, the name in the certificate checked.
#[derive(Clone)]
pub struct Trust {
    /// For DNS over TLS.
    pub(super) tls: Arc<ClientConfig>,
    /// For DNS over HTTPS: HTTP/2 is asked for.
    pub(super) https: Arc<ClientConfig>,
}

/// The certificate authorities can't be had.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file can't be read.
    #[error("{}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is no PEM file, or a certificate in it is none.
    #[error("{} holds no certificate of an authority: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Trust {
    /// Trusts the authorities in this PEM file and no others; Mozilla's list unless given.
    ///
    /// # Errors
    /// The file can't be read or holds no certificate.
    pub fn load(ca: Option<&Path>) -> Result<Trust, TrustError> {
        let Some(path) = ca else { return Ok(Trust::default()) };
        let malformed = |why: String| TrustError::Malformed { path: path.to_owned(), why };
        let read = |error| match error {
            pem::Error::Io(source) => TrustError::Unreadable { path: path.to_owned(), source },
            other => malformed(other.to_string()),
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(read)? {
            roots.add(certificate.map_err(read)?).map_err(|error| malformed(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(malformed("there is no BEGIN CERTIFICATE in it".to_owned()));
        }
        Ok(Trust::roots(roots))
    }

    fn roots(roots: RootCertStore) -> Trust {
        let roots = Arc::new(roots);
        let config = |protocols: &[&[u8]]| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("ring speaks TLS 1.2 and 1.3")
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        // RFC 7858 asks for no protocol name, and a server that knows other names only would hang up on one.
        Trust { tls: config(&[]), https: config(&[b"h2"]) }
    }
}

impl Default for Trust {
    /// Trusts Mozilla's list, as of the build.
    fn default() -> Trust {
        Trust::roots(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[track_caller]
    fn refuses(text: &str, why: &str) {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        let error = Trust::load(Some(file.path())).err().expect("refused");
        assert!(matches!(&error, TrustError::Malformed { .. }), "{error:?}");
        let shown = error.to_string();
        assert!(shown.contains(why) && shown.contains(&*file.path().to_string_lossy()), "{shown}");
    }

    #[test]
    fn a_file_of_authorities_must_be_there_and_hold_some() {
        let error = Trust::load(Some(Path::new("/nonexistent/ca.pem"))).err().expect("refused");
        assert!(matches!(&error, TrustError::Unreadable { .. }) && error.to_string() == "/nonexistent/ca.pem");
        refuses("", "no BEGIN CERTIFICATE");
        refuses("no certificate at all\n", "no BEGIN CERTIFICATE");
        refuses("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "");
        refuses("-----BEGIN CERTIFICATE-----\nAAAA\n", "");
    }
}
