//! DNS over TLS and over HTTPS, against servers with certificates made here.

use std::convert::Infallible;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::sync::watch;

use super::*;

/// A certificate authority and the file that says so.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: tempfile::NamedTempFile,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(certificate.pem().as_bytes()).expect("written");
        Authority { issuer: Issuer::new(params, key), file }
    }

    /// A server with a certificate for `name`.
    fn server(&self, name: &str, expired: bool, protocols: &[&[u8]]) -> Arc<ServerConfig> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        if expired {
            (params.not_before, params.not_after) =
                (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a configuration");
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }

    fn registry(&self) -> Arc<Registry> {
        Arc::new(Registry::open(Some(self.file.path())).expect("a registry"))
    }
}

fn route(address: &str) -> Route {
    Route::among(&[ServerAddress::parse(address).expect("an address")]).expect("a server")
}

fn over_tls(server: &Scripted, name: &str) -> Route {
    route(&format!("tls://{}#{name}", server.address))
}

fn over_https(server: &HttpsServer, name: &str) -> Route {
    route(&format!("https://{}/q#{name}", server.address))
}

#[track_caller]
fn gives(registry: Arc<Registry>, route: &Route, expected: Result<&[&str], UpstreamError>) {
    let result = run_with(registry, async |upstream| upstream.resolve(route, &query("www.test", true), WITHIN).await);
    assert_eq!(addresses(result), expected.map(|list| list.iter().map(ToString::to_string).collect()));
}

#[test]
fn queries_over_tls_share_a_connection_and_never_leave_it() {
    let authority = Authority::new();
    let server = Scripted::over_tls(authority.server("dns.example", false, &[]), |asked| vec![Say::Reply(good(asked))]);
    let registry = authority.registry();
    run_with(registry.clone(), async |upstream| {
        let ask = |at: usize| {
            let (upstream, route) = (upstream.clone(), over_tls(&server, "dns.example"));
            let query = query(&format!("n{at}.test"), true);
            spawn_local(async move { upstream.resolve(&route, &query, WITHIN).await })
        };
        for round in 0..3 {
            let tasks: Vec<_> = (0..20).map(|at| ask(20 * round + at)).collect();
            for task in tasks {
                assert_eq!(addresses(task.await.expect("no panic")), Ok(vec!["192.0.2.1".to_owned()]));
            }
        }
    });
    let seen = server.seen();
    assert_eq!((seen.len(), server.count(false)), (60, 0));
    assert!(seen.iter().all(|asked| asked.connection == 1), "one connection");
    let ids: BTreeSet<&[u8]> = seen.iter().map(|asked| &asked.octets[..2]).collect();
    assert!(ids.len() > 55, "numbers are random: {}", ids.len());
    assert_eq!(seen[0].octets[seen[0].octets.len() - 4], 0x80, "DO goes along");
    let health = &registry.snapshot()[0];
    assert_eq!((health.transport.as_str(), health.queries, health.answers), ("tls", 60, 60));
}

#[test]
fn a_certificate_must_bear_the_name_or_the_address_and_be_of_a_known_authority_and_in_time() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = |authority: &Authority, name: &str, expired| {
        let tls = Scripted::over_tls(authority.server(name, expired, &[]), |asked| vec![Say::Reply(good(asked))]);
        let https =
            HttpsServer::start(authority.server(name, expired, &[b"h2"]), |asked| vec![Web::Reply(good(asked))]);
        (tls, https)
    };
    let good: Result<&[&str], _> = Ok(&["192.0.2.1"]);
    let bad = Err(UpstreamError::Tls);
    for (authority, bears, expired, wanted, expected) in [
        (&ours, "dns.example", false, "dns.example", good),
        (&ours, "127.0.0.1", false, "127.0.0.1", good),
        (&ours, "dns.example", false, "other.example", bad),
        (&ours, "dns.example", false, "127.0.0.1", bad),
        (&ours, "dns.example", true, "dns.example", bad),
        (&theirs, "dns.example", false, "dns.example", bad),
    ] {
        let (tls, https) = server(authority, bears, expired);
        gives(ours.registry(), &over_tls(&tls, wanted), expected);
        gives(ours.registry(), &over_https(&https, wanted), expected);
        assert_eq!(tls.count(false), 0, "never in the clear");
        assert_eq!(tls.count(true), usize::from(expected.is_ok()), "nothing is said to a stranger");
    }
    let (tls, _) = server(&ours, "dns.example", false);
    gives(Arc::default(), &over_tls(&tls, "dns.example"), bad);
}

#[test]
fn a_server_that_speaks_no_tls_is_not_asked_in_the_clear() {
    let authority = Authority::new();
    let plain = Scripted::start(|asked| vec![Say::Reply(good(asked))]);
    for route in [over_tls(&plain, "dns.example"), route(&format!("https://{}#dns.example", plain.address))] {
        let result = run_with(authority.registry(), async |upstream| {
            upstream.resolve(&route, &query("www.test", false), WITHIN).await
        });
        assert!(result.is_err(), "{result:?}");
    }
    let heard = |asked: &Asked| asked.octets.windows(4).any(|octets| octets.eq_ignore_ascii_case(b"\x04test"));
    assert!(!plain.seen().iter().any(heard));
}

#[test]
fn a_connection_over_tls_is_opened_again_when_the_server_closes_it() {
    let authority = Authority::new();
    let server = Scripted::over_tls(authority.server("dns.example", false, &[]), |asked| match asked.nth {
        2 => vec![Say::Close],
        5 => vec![Say::Reply(good(asked)), Say::Close],
        _ => vec![Say::Reply(good(asked))],
    });
    run_with(authority.registry(), async |upstream| {
        for at in 0..8 {
            let query = query(&format!("n{at}.test"), false);
            let result = upstream.resolve(&over_tls(&server, "dns.example"), &query, WITHIN).await;
            assert_eq!(addresses(result), Ok(vec!["192.0.2.1".to_owned()]), "query {at}");
        }
    });
    let connections: BTreeSet<usize> = server.seen().iter().map(|asked| asked.connection).collect();
    assert_eq!(connections.len(), 3);
}

#[test]
fn over_tls_too_an_answer_must_match_its_query() {
    let authority = Authority::new();
    let server = Scripted::over_tls(authority.server("dns.example", false, &[]), |asked| {
        vec![
            Say::Reply(with(forged(asked), |octets| octets[1] ^= 1)),
            Say::Reply(with(forged(asked), |octets| octets[13] = b'x')),
            Say::Reply(with(forged(asked), |octets| octets[5] = 2)),
            Say::Reply(good(asked)),
        ]
    });
    gives(authority.registry(), &over_tls(&server, "dns.example"), Ok(&["192.0.2.1"]));
}

#[test]
fn an_encrypted_server_that_fails_is_replaced_by_another_one() {
    let authority = Authority::new();
    let wrong =
        Scripted::over_tls(authority.server("other.example", false, &[]), |asked| vec![Say::Reply(forged(asked))]);
    let right =
        HttpsServer::start(authority.server("dns.example", false, &[b"h2"]), |asked| vec![Web::Reply(good(asked))]);
    let servers = [format!("tls://{}#dns.example", wrong.address), format!("https://{}/q#dns.example", right.address)];
    let servers = servers.map(|server| ServerAddress::parse(&server).expect("an address"));
    let route = Route::among(&servers).expect("servers");
    gives(authority.registry(), &route, Ok(&["192.0.2.1"]));
}

#[test]
fn queries_over_https_are_posted_with_number_0_on_one_connection() {
    let authority = Authority::new();
    let server =
        HttpsServer::start(authority.server("dns.example", false, &[b"h2"]), |asked| vec![Web::Reply(good(asked))]);
    let registry = authority.registry();
    run_with(registry.clone(), async |upstream| {
        let tasks: Vec<_> = (0..40)
            .map(|at| {
                let (upstream, route) = (upstream.clone(), over_https(&server, "dns.example"));
                let query = query(&format!("n{at}.test"), true);
                spawn_local(async move { upstream.resolve(&route, &query, WITHIN).await })
            })
            .collect();
        for task in tasks {
            assert_eq!(addresses(task.await.expect("no panic")), Ok(vec!["192.0.2.1".to_owned()]));
        }
    });
    let seen = server.seen();
    assert_eq!((seen.len(), server.connections()), (40, 1));
    assert!(seen.iter().all(|asked| asked.octets[..2] == [0, 0]));
    let heads = server.heads.lock().expect("the list");
    assert_eq!(heads[0], "POST https://dns.example /q application/dns-message application/dns-message");
    assert_eq!(registry.snapshot()[0].transport, "https");
}

#[test]
fn a_connection_over_https_is_opened_again_when_the_server_closes_it() {
    let authority = Authority::new();
    let server = HttpsServer::start(authority.server("dns.example", false, &[b"h2"]), |asked| match asked.nth {
        1 => vec![Web::Reply(good(asked)), Web::Goodbye],
        3 => vec![Web::HangUp],
        _ => vec![Web::Reply(good(asked))],
    });
    run_with(authority.registry(), async |upstream| {
        for at in 0..6 {
            let query = query(&format!("n{at}.test"), false);
            let result = upstream.resolve(&over_https(&server, "dns.example"), &query, WITHIN).await;
            assert_eq!(addresses(result), Ok(vec!["192.0.2.1".to_owned()]), "query {at}");
        }
    });
    assert_eq!((server.seen().len(), server.connections()), (7, 3));
    let always = HttpsServer::start(authority.server("dns.example", false, &[b"h2"]), |_| vec![Web::HangUp]);
    let hung_up = Err(UpstreamError::Network(io::ErrorKind::ConnectionAborted));
    gives(authority.registry(), &over_https(&always, "dns.example"), hung_up);
}

#[test]
fn what_is_no_answer_over_https_is_an_error() {
    let authority = Authority::new();
    let fails = |script: fn(&Asked) -> Vec<Web>| {
        let server = HttpsServer::start(authority.server("dns.example", false, &[b"h2"]), script);
        let invalid = Err(UpstreamError::Network(io::ErrorKind::InvalidData));
        gives(authority.registry(), &over_https(&server, "dns.example"), invalid);
    };
    fails(|asked| vec![Web::Status(500), Web::Reply(forged(asked))]);
    fails(|asked| vec![Web::Status(302), Web::Reply(forged(asked))]);
    fails(|asked| vec![Web::Type("text/html"), Web::Reply(forged(asked))]);
    fails(|asked| vec![Web::Reply(with(forged(asked), |octets| octets[1] = 1))]);
    fails(|asked| vec![Web::Reply(with(forged(asked), |octets| octets[13] = b'x'))]);
    fails(|_| vec![Web::Reply(Vec::new())]);
    fails(|_| vec![Web::Reply(vec![0; 70_000])]);
    let silent = HttpsServer::start(authority.server("dns.example", false, &[b"h2"]), |_| vec![Web::Never]);
    gives(authority.registry(), &over_https(&silent, "dns.example"), Err(UpstreamError::Timeout));
    let old = HttpsServer::start(authority.server("dns.example", false, &[b"http/1.1"]), |_| vec![Web::Never]);
    gives(authority.registry(), &over_https(&old, "dns.example"), Err(UpstreamError::Tls));
}

/// What the web server does next.
enum Web {
    /// The code, if it is not 200.
    Status(u16),
    /// The content's type, if it is not that of a DNS message.
    Type(&'static str),
    /// The content; ends the response.
    Reply(Vec<u8>),
    /// Closes the connection once the response is out.
    Goodbye,
    /// Closes the connection.
    HangUp,
    /// No response.
    Never,
}

/// A server of DNS over HTTPS that says what a script tells it to.
struct HttpsServer {
    address: SocketAddr,
    state: Arc<State>,
    heads: Arc<Mutex<Vec<String>>>,
    _stop: watch::Sender<()>,
}

type Script = dyn Fn(&Asked) -> Vec<Web> + Send + Sync;

struct State {
    script: Box<Script>,
    seen: Mutex<Vec<Asked>>,
    heads: Arc<Mutex<Vec<String>>>,
    connections: AtomicUsize,
}

/// What a request does to its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    No,
    Gently,
    Now,
}

impl HttpsServer {
    fn start(config: Arc<ServerConfig>, script: impl Fn(&Asked) -> Vec<Web> + Send + Sync + 'static) -> HttpsServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        listener.set_nonblocking(true).expect("the option");
        let address = listener.local_addr().expect("an address");
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let state = Arc::new(State {
            script: Box::new(script),
            seen: Mutex::default(),
            heads: heads.clone(),
            connections: AtomicUsize::new(0),
        });
        let (stop, mut stopped) = watch::channel(());
        let shared = state.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let acceptor = tokio_rustls::TlsAcceptor::from(config);
                loop {
                    let (stream, from) = tokio::select! {
                        accepted = listener.accept() => accepted.expect("accepted"),
                        _ = stopped.changed() => return,
                    };
                    let (acceptor, state) = (acceptor.clone(), shared.clone());
                    tokio::spawn(async move {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            state.connections.fetch_add(1, Ordering::Relaxed);
                            state.serve(stream, from).await;
                        }
                    });
                }
            });
        });
        HttpsServer { address, state, heads, _stop: stop }
    }

    fn seen(&self) -> Vec<Asked> {
        self.state.seen.lock().expect("the list").clone()
    }

    fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }
}

impl State {
    async fn serve(self: Arc<Self>, stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>, from: SocketAddr) {
        let (end, mut ended) = watch::channel(End::No);
        let end = Arc::new(end);
        let service = service_fn(move |request| {
            let (state, end) = (self.clone(), end.clone());
            async move { Ok::<_, Infallible>(state.respond(request, from, &end).await) }
        });
        let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        loop {
            tokio::select! {
                _ = &mut connection => return,
                changed = ended.changed() => match *ended.borrow() {
                    End::Gently => connection.as_mut().graceful_shutdown(),
                    End::Now => return,
                    End::No => assert!(changed.is_ok()),
                },
            }
        }
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        from: SocketAddr,
        end: &watch::Sender<End>,
    ) -> Response<Full<Bytes>> {
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("none");
        let uri = request.uri();
        let place = format!("{}://{}", uri.scheme_str().unwrap_or(""), uri.host().unwrap_or(""));
        let head =
            format!("{} {place} {} {} {}", request.method(), uri.path(), header("content-type"), header("accept"));
        self.heads.lock().expect("the list").push(head);
        let octets = request.into_body().collect().await.expect("a body").to_bytes().to_vec();
        let asked = {
            let mut seen = self.seen.lock().expect("the list");
            let asked = Asked { octets, from, tcp: true, nth: seen.len(), connection: 1 };
            seen.push(asked.clone());
            asked
        };
        let (mut status, mut kind, mut content) = (200, "application/dns-message", Vec::new());
        for say in (self.script)(&asked) {
            match say {
                Web::Status(code) => status = code,
                Web::Type(other) => kind = other,
                Web::Reply(octets) => content = octets,
                Web::Goodbye => drop(end.send(End::Gently)),
                Web::HangUp => drop(end.send(End::Now)),
                Web::Never => std::future::pending().await,
            }
        }
        if *end.borrow() == End::Now {
            return std::future::pending().await;
        }
        let response = Response::builder().status(status).header("content-type", kind);
        response.body(Full::new(Bytes::from(content))).expect("a response")
    }
}
