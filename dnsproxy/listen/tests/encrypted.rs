//! Queries over TLS: the same conversation, behind a handshake.

use std::path::{Path, PathBuf};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::transport::{framed, is_closed, receive};
use super::*;
use crate::engine::port::PortBlock;
use crate::engine::ruleset::DnsDeny;

/// The name in the certificate.
const NAME: &str = "dns.test";

/// A certificate of its own making and its key, as files.
struct Files {
    _directory: tempfile::TempDir,
    certificate: PathBuf,
    key: PathBuf,
    root: rcgen::Certificate,
}

fn files() -> Files {
    let directory = tempfile::tempdir().expect("a directory");
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).expect("a certificate");
    let (certificate, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
    std::fs::write(&certificate, made.cert.pem()).expect("a file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    Files { _directory: directory, certificate, key, root: made.cert }
}

/// A world that serves TLS too.
fn world(files: &Files, setup: Setup) -> World {
    let tls = Tls::read(0, &files.certificate, &files.key).expect("a pair");
    World::new(Setup { tls: Some(tls), ..setup }, always(&["@ 60 A 192.0.2.1"]))
}

fn connect(world: &World) -> TcpStream {
    let port = world.listeners.tls_port().expect("TLS is served");
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(3))).expect("the option");
    stream
}

/// A client that offers these protocols.
fn client(world: &World, files: &Files, alpn: &[&[u8]]) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(files.root.der().clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder.expect("versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from(NAME).expect("a name");
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).expect("a client"), connect(world))
}

#[test]
fn queries_over_tls_are_answered_and_grant_as_any_other() {
    let files = files();
    let world = world(&files, Setup { rules: rules(&["*.test"], &["*.test"]), ..Setup::default() });
    for alpn in [&[] as &[&[u8]], &[b"dot"], &[b"h2", b"dot"]] {
        let mut stream = client(&world, &files, alpn);
        stream.write_all(&framed(&query("www.test", 1, None))).expect("sent");
        assert_eq!(understood(&receive(&mut stream)).1, ["192.0.2.1"], "{alpn:?}");
        stream.write_all(&framed(&query("denied.example", 1, Some(1232)))).expect("sent");
        assert_eq!(understood(&receive(&mut stream)).0, 5, "on the same connection");
        assert_eq!(stream.conn.alpn_protocol(), alpn.last().copied());
    }
    assert_eq!(world.kernel.open(1), ["192.0.2.1"]);
    assert!(world.seen.last().tcp);
}

#[test]
fn a_connection_ends_with_a_farewell() {
    let files = files();
    let settings = Settings { tcp_idle: Duration::from_millis(200), ..Settings::default() };
    let world = world(&files, Setup { settings, ..Setup::default() });
    let mut stream = client(&world, &files, &[b"dot"]);
    stream.write_all(&framed(&query("www.test", 1, None))).expect("sent");
    receive(&mut stream);
    assert_eq!(stream.read(&mut [0; 1]).expect("close_notify, not a cut"), 0);
}

#[test]
fn what_is_no_handshake_is_closed_and_counted() {
    let files = files();
    let world = world(&files, Setup::default());
    let mut stream = connect(&world);
    stream.write_all(&framed(&query("www.test", 1, None))).expect("sent");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 12, "an alert at most: {rest:?}");
    let mut other = client(&world, &files, &[b"h2"]);
    assert!(other.write_all(&framed(&query("www.test", 1, None))).and_then(|()| other.read(&mut [0; 1])).is_err());
    let counted = || world.seen.count("tls_handshake");
    (0..100).take_while(|_| counted() < 2).for_each(|_| thread::sleep(Duration::from_millis(10)));
    assert_eq!((counted(), world.server.seen().len()), (2, 0));
}

#[test]
fn handshakes_count_against_the_queries_of_a_second() {
    let files = files();
    let settings = Settings { queries_per_second: 100, ..Settings::default() };
    let world = world(&files, Setup { settings, ..Setup::default() });
    let (_first, _second) = (connect(&world), connect(&world));
    is_closed(&mut connect(&world));
    assert_eq!(world.seen.count("rate"), 1);
}

#[test]
fn a_server_that_a_rule_denies_on_the_port_of_tls_has_no_connection_there() {
    let files = files();
    let mut denied = rules(&["*.test"], &["*"]);
    let deny = |port| DnsDeny {
        rule: denied.dns[0].rule.clone(),
        servers: Servers::Any,
        ports: vec![(Protocol::Tcp, PortBlock::one(port))],
    };
    let (on_443, on_853) = (deny(443), deny(853));
    denied.dns_denied = vec![on_443];
    let open = world(&files, Setup { rules: denied.clone(), ..Setup::default() });
    let mut stream = client(&open, &files, &[]);
    stream.write_all(&framed(&query("www.test", 1, None))).expect("sent");
    receive(&mut stream);
    denied.dns_denied = vec![on_853];
    let shut = world(&files, Setup { rules: denied, ..Setup::default() });
    is_closed(&mut connect(&shut));
    assert_eq!(shut.seen.count("server"), 1);
}

#[test]
fn files_that_are_no_certificate_and_key_are_named() {
    let files = files();
    let read = |certificate: &Path, key: &Path| Tls::read(0, certificate, key).expect_err("no pair").to_string();
    let (certificate, key) = (files.certificate.display(), files.key.display());
    assert_eq!(read(&files.key, &files.key), format!("{key}: no certificate in PEM form"));
    assert_eq!(read(&files.certificate, &files.certificate), format!("{certificate}: no private key in PEM form"));
    let missing = Path::new("missing.pem");
    assert_eq!(read(missing, &files.key), "missing.pem: no certificate in PEM form");
    let stranger = super::encrypted::files();
    let said = read(&files.certificate, &stranger.key);
    assert!(said.contains(&certificate.to_string()) && said.contains("are no pair"), "{said}");
}
