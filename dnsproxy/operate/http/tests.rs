use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::client::{self, AskError};
use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

struct Running {
    server: Server,
    readiness: Readiness,
    socket: PathBuf,
    scrapes: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

fn start() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/admin.sock");
    let readiness = Readiness::waiting_for("start");
    let scrapes = Arc::new(AtomicU64::new(0));
    let server = Server::start(Some("127.0.0.1:0".parse().unwrap()), &socket, operator(&readiness, &scrapes)).unwrap();
    Running { server, readiness, socket, scrapes, _dir: dir }
}

fn operator(readiness: &Readiness, scrapes: &Arc<AtomicU64>) -> Arc<Operator> {
    let scrapes = Arc::clone(scrapes);
    let refresh = move |metrics: &Metrics| metrics.grants(scrapes.fetch_add(1, Ordering::Relaxed) + 1);
    Arc::new(Operator { refresh: Box::new(refresh), ..unrefreshed(readiness) })
}

fn unrefreshed(readiness: &Readiness) -> Operator {
    Operator {
        metrics: Arc::new(Metrics::new()),
        readiness: readiness.clone(),
        status: Box::new(|| Status { node_name: "node-1".to_owned(), ..Status::default() }),
        names: Box::new(|asked| Ok(NamesPage { names: vec![Default::default(); asked.count], next: None })),
        policy: Box::new(|asked| Ok(format!("{asked:?}").into_bytes())),
        refresh: Box::new(|_| ()),
        hand_over: None,
    }
}

/// One that hands over, or doesn't.
pub(in crate::operate) fn operator_with(readiness: &Readiness, hand_over: Option<HandOver>) -> Arc<Operator> {
    Arc::new(Operator { hand_over, ..unrefreshed(readiness) })
}

impl Running {
    /// Sends `request` over TCP and reads until the other side closes.
    fn tcp(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.server.metrics_address().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[track_caller]
    fn get(&self, page: &str, status: u16, body: &str) {
        let answer = self.tcp(&format!("GET {page} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains(body), "{answer}");
    }

    #[track_caller]
    fn ask(&self, page: &str, status: u16, body: &str) {
        let answer = client::get(&self.socket, page, PATIENCE).unwrap();
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.body.contains(body), "{answer:?}");
    }
}

#[test]
fn readyz_says_why_not_until_there_is_no_reason_left() {
    let running = start();
    running.get("/readyz", 503, "start: not done yet\n");
    running.ask("/readyz", 503, "start: not done yet\n");
    running.get("/livez", 200, "alive");
    running.readiness.set("start", Vec::new());
    running.readiness.set("attach", vec!["veth\u{1b}0: detached".to_owned()]);
    running.get("/readyz", 503, "veth\\u{1b}0: detached\n");
    running.readiness.set("attach", Vec::new());
    running.get("/readyz", 200, "ready\n");
    running.ask("/readyz", 200, "ready\n");
}

#[test]
fn metrics_are_refreshed_before_each_scrape() {
    let running = start();
    running.get("/metrics", 200, "\nnamegate_grants 1\n");
    running.get("/metrics", 200, "\nnamegate_ready 0\n");
    running.readiness.set("start", Vec::new());
    running.get("/metrics", 200, "\nnamegate_ready 1\n");
    running.ask("/metrics", 200, "\nnamegate_grants 4\n");
    assert_eq!(running.scrapes.load(Ordering::Relaxed), 4);
}

#[test]
fn status_is_for_the_admin_socket_only() {
    let running = start();
    running.ask("/status", 200, r#""node_name":"node-1""#);
    running.get("/status", 404, "no such page");
    running.get("/", 404, "no such page");
}

#[test]
fn only_reading_is_allowed() {
    let answer = start().tcp("POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD"), "{answer}");
    let answer = start().tcp("HEAD /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("alive"), "{answer}");
}

#[test]
fn a_client_that_sends_too_much_or_nothing_at_all_is_cut_off() {
    let running = start();
    let answer = running.tcp(&format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(REQUEST_OCTETS)));
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    running.get("/livez", 200, "alive");
}

#[test]
fn connections_above_the_limit_are_closed_and_the_admin_socket_answers_still() {
    let running = start();
    let address = running.server.metrics_address().unwrap();
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        // A request without its end: the connection is taken, not answered.
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\n").unwrap();
        held.push(stream);
    }
    let mut one_more = TcpStream::connect(address).unwrap();
    one_more.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = one_more.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let _ = one_more.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{answer:?}");
    running.ask("/livez", 200, "alive");
}

#[test]
fn the_admin_socket_is_for_its_owner_alone() {
    let running = start();
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&running.socket), 0o600);
    assert_eq!(mode(running.socket.parent().unwrap()), 0o700);
    let left: Vec<_> = fs::read_dir(running.socket.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing but the socket: {left:?}");
}

#[test]
fn a_second_process_is_refused_and_a_stale_socket_is_replaced() {
    let running = start();
    let second = || Server::start(None, &running.socket, operator(&running.readiness, &running.scrapes));
    let error = second().err().unwrap();
    assert!(matches!(error, ServeError::Taken { .. }), "{error}");
    running.ask("/livez", 200, "alive");

    // As kill -9 leaves it: the file is there, nobody listens.
    let stale = running.socket.with_file_name("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    let server = Server::start(None, &stale, operator(&running.readiness, &running.scrapes)).unwrap();
    assert_eq!(client::get(&stale, "/livez", PATIENCE).unwrap().status, 200);
    drop(server);
    assert!(!stale.exists(), "a clean end takes its socket away");
}

#[test]
fn a_second_process_is_told_of_the_first_rather_than_of_its_port() {
    let running = start();
    let taken = running.server.metrics_address();
    let second =
        |admin: &Path| Server::start(taken, admin, operator(&running.readiness, &running.scrapes)).err().unwrap();
    let error = second(&running.socket);
    assert!(matches!(error, ServeError::Taken { .. }), "{error}");
    // Somebody else's port: nothing is left of the attempt.
    let other = running.socket.with_file_name("other.sock");
    let error = second(&other);
    assert!(matches!(error, ServeError::Metrics { .. }), "{error}");
    assert!(!other.exists(), "a failed start takes its socket away");
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    fs::write(&path, "precious").unwrap();
    let error = Server::start(None, &path, operator(&Readiness::waiting_for("start"), &Arc::default())).err().unwrap();
    assert!(matches!(error, ServeError::NoSocket { .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn asking_where_nobody_is_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let error = client::get(&dir.path().join("admin.sock"), "/readyz", PATIENCE).unwrap_err();
    assert!(matches!(&error, AskError::Connect { source, .. } if source.kind() == io::ErrorKind::NotFound), "{error}");
    let silent = dir.path().join("silent.sock");
    let _listener = UnixListener::bind(&silent).unwrap();
    let error = client::get(&silent, "/readyz", Duration::from_millis(50)).unwrap_err();
    assert!(error.to_string().ends_with("did not answer within 50 ms"), "{error}");
}
