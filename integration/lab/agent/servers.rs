//! What stands behind the names: echo servers and an HTTPS server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::PrivateKeyDer;

use super::{Reply, failed};

pub fn tcp(at: SocketAddr) -> Reply {
    each_connection(at, echo)
}

pub fn udp(at: SocketAddr) -> Reply {
    let socket = match UdpSocket::bind(at) {
        Ok(socket) => socket,
        Err(error) => return failed(&at.to_string(), error),
    };
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_535];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    Reply::Done
}

pub fn tls(at: SocketAddr, names: Vec<String>, authority: &str) -> Reply {
    let configuration = match certificate(names).and_then(|made| {
        std::fs::write(authority, made.authority)?;
        let leaf = made.leaf.der().clone();
        let key = PrivateKeyDer::try_from(made.key.serialize_der())?;
        let configuration =
            rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_single_cert(vec![leaf], key)?;
        Ok(Arc::new(configuration))
    }) {
        Ok(configuration) => configuration,
        Err(error) => return failed("certificate", error),
    };
    each_connection(at, move |stream| {
        if let Ok(session) = rustls::ServerConnection::new(configuration.clone()) {
            let at = stream.local_addr().map_or(String::new(), |at| at.to_string());
            page(rustls::StreamOwned::new(session, stream), &at);
        }
    })
}

/// A thread a connection: the lab has few.
fn each_connection(at: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Reply {
    let listener = match listener(at) {
        Ok(listener) => listener,
        Err(error) => return failed(&at.to_string(), error),
    };
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            let _ = std::thread::Builder::new().stack_size(256 << 10).spawn(move || serve(stream));
        }
    });
    Reply::Done
}

/// Two listeners may share a port when one has an address and the other has none; and many connect at once.
fn listener(at: SocketAddr) -> std::io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(at);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&at.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// One page a connection; a kept connection gets its octets back, as from the echo server.
fn page(mut stream: impl Read + Write, at: &str) {
    let mut request = Vec::new();
    let mut octet = [0; 1];
    while !request.ends_with(b"\r\n\r\n") && request.len() < 8192 {
        match stream.read(&mut octet) {
            Ok(1) => request.push(octet[0]),
            _ => return,
        }
    }
    let body = format!("hello from {at}\n");
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.flush();
}

/// A certificate, its key, and the authority that signed it (PEM).
pub struct Certificate {
    pub authority: String,
    pub leaf: rcgen::Certificate,
    pub key: KeyPair,
}

/// An authority of its own for every server, and a certificate for the names.
pub fn certificate(names: Vec<String>) -> Result<Certificate, Box<dyn std::error::Error>> {
    let mut params = CertificateParams::new(Vec::default())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "namegate lab");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate()?;
    let root = params.self_signed(&key)?;
    let issuer = Issuer::new(params, key);
    let leaf_key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(names)?;
    leaf.distinguished_name.push(DnType::CommonName, "namegate lab server");
    leaf.use_authority_key_identifier_extension = true;
    let leaf = leaf.signed_by(&leaf_key, &issuer)?;
    Ok(Certificate { authority: root.pem(), leaf, key: leaf_key })
}
