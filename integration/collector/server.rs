//! An API server that does as it is told: lists in pages, watches, patches of a status, and everything that can go wrong with
//! them. HTTP/1.1 by hand, so that an answer can break off in the middle of an object.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What goes wrong with the next request to a path.
#[derive(Clone, Debug)]
pub enum Fault {
    /// An HTTP status with a `Status` of this reason.
    Status(u16, &'static str),
    /// 200 and this body.
    Body(&'static str),
    /// Nothing is said until the test ends.
    Stuck,
    /// The connection is closed without an answer.
    Hangup,
    /// The answer comes in small pieces.
    Slow,
}

/// What goes wrong in a watch.
#[derive(Clone, Debug)]
pub enum WatchFault {
    /// In place of the next event this line; the event is not sent.
    Line(&'static str),
    /// Half of the next event, then the connection is closed.
    Half,
    /// The watch is ended properly before the next event.
    End,
}

/// A server that runs until it is dropped.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct State {
    version: u64,
    /// By path of the list, then by `namespace/name`.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    events: Vec<(u64, String, &'static str, Value)>,
    /// Watches from before this version are refused.
    compacted: u64,
    /// Whether they are refused with an HTTP status; else with an event.
    by_status: bool,
    /// Lists that were begun before this version can't be continued.
    expired: u64,
    next: BTreeMap<String, VecDeque<Fault>>,
    always: BTreeMap<String, Fault>,
    in_watch: BTreeMap<String, VecDeque<WatchFault>>,
    /// Watches are cut at this many.
    cuts: u64,
    /// Watches of these say nothing and never end.
    stalled: BTreeSet<String>,
    requests: Vec<String>,
    patches: Vec<(String, Value)>,
    bookmarks: bool,
    page: Option<usize>,
}

/// The paths of what is collected, as [`Server::put`] takes them.
pub const PATHS: [(&str, &str); 13] = [
    ("namespaces", "/api/v1/namespaces"),
    ("nodes", "/api/v1/nodes"),
    ("configmaps", "/api/v1/namespaces/kube-system/configmaps"),
    ("pods", "/api/v1/pods"),
    ("services", "/api/v1/services"),
    ("endpointslices", "/apis/discovery.k8s.io/v1/endpointslices"),
    ("networkpolicies", "/apis/networking.k8s.io/v1/networkpolicies"),
    ("ciliumnetworkpolicies", "/apis/cilium.io/v2/ciliumnetworkpolicies"),
    ("ciliumclusterwidenetworkpolicies", "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies"),
    ("ciliumcidrgroups", "/apis/cilium.io/v2/ciliumcidrgroups"),
    ("adminnetworkpolicies", "/apis/policy.networking.k8s.io/v1alpha1/adminnetworkpolicies"),
    ("baselineadminnetworkpolicies", "/apis/policy.networking.k8s.io/v1alpha1/baselineadminnetworkpolicies"),
    ("clusternetworkpolicies", "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"),
];

/// The path of a resource.
#[track_caller]
pub fn path(plural: &str) -> &'static str {
    PATHS.iter().find(|(name, _)| *name == plural).expect("it is collected").1
}

impl Server {
    /// With nothing in it, but for every resource's path.
    pub fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let objects = PATHS.iter().map(|(_, path)| ((*path).to_owned(), BTreeMap::new())).collect();
        let state = State { version: 100, objects, bookmarks: true, ..State::default() };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), stop: AtomicBool::new(false) });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.stop.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), shared) = (stream, accepting.clone()) else { continue };
                std::thread::spawn(move || drop(converse(stream, &shared)));
            }
        });
        Server { address, shared }
    }

    /// A kubeconfig for it.
    pub fn kubeconfig(&self) -> String {
        let server = format!("http://{}", self.address);
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        })
        .to_string()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("no test panics with it")
    }

    fn told(&self) {
        self.shared.changed.notify_all();
    }

    /// Puts an object there, or another in its place; its new version.
    pub fn put(&self, plural: &str, object: &Value) -> u64 {
        let version = self.state().put(path(plural), object);
        self.told();
        version
    }

    /// Puts many there at once: no list and no watch sees some of them.
    pub fn put_all(&self, plural: &str, objects: &[Value]) {
        let mut state = self.state();
        for object in objects {
            state.put(path(plural), object);
        }
        drop(state);
        self.told();
    }

    /// Takes an object away.
    pub fn delete(&self, plural: &str, name: &str) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let mut object = state.objects.get_mut(path(plural)).and_then(|all| all.remove(name)).expect("it is there");
        object["metadata"]["resourceVersion"] = version.to_string().into();
        state.events.push((version, path(plural).to_owned(), "DELETED", object));
        drop(state);
        self.told();
    }

    /// The object as it is now.
    pub fn get(&self, plural: &str, name: &str) -> Value {
        self.state().objects[path(plural)][name].clone()
    }

    /// What goes wrong with the next requests to a path, one after the other.
    pub fn next(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        self.state().next.entry(path.to_owned()).or_default().extend(faults);
    }

    /// What goes wrong with every request to a path; `None`: nothing any more. Watches of it are cut.
    pub fn always(&self, path: &str, fault: Option<Fault>) {
        let mut state = self.state();
        match fault {
            Some(fault) => drop(state.always.insert(path.to_owned(), fault)),
            None => drop(state.always.remove(path)),
        }
        drop(state);
        self.told();
    }

    /// What goes wrong in watches of a resource, at one event after the other.
    pub fn in_watch(&self, plural: &str, faults: impl IntoIterator<Item = WatchFault>) {
        self.state().in_watch.entry(path(plural).to_owned()).or_default().extend(faults);
    }

    /// Whether watches of a resource say nothing any more, and don't end.
    pub fn stall(&self, plural: &str, on: bool) {
        let mut state = self.state();
        if on {
            state.stalled.insert(path(plural).to_owned());
        } else {
            state.stalled.remove(path(plural));
        }
    }

    /// Ends every watch that is open.
    pub fn cut(&self) {
        self.state().cuts += 1;
        self.told();
    }

    /// Forgets what happened up to now: a watch from before is refused, and a list that was begun can't be continued.
    pub fn compact(&self, by_status: bool) {
        let mut state = self.state();
        state.version += 1;
        state.compacted = state.version;
        state.expired = state.version;
        state.by_status = by_status;
    }

    /// Forgets events, without anybody noticing who is up to date.
    pub fn forget(&self) {
        self.state().events.clear();
    }

    /// At most this many objects a page, whatever is asked for.
    pub fn page(&self, page: usize) {
        self.state().page = Some(page);
    }

    /// Whether there are bookmarks.
    pub fn bookmarks(&self, on: bool) {
        self.state().bookmarks = on;
    }

    /// Every request so far: `GET /path?query`.
    pub fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    /// The requests that hold all of these.
    pub fn asked(&self, parts: &[&str]) -> Vec<String> {
        self.requests().into_iter().filter(|request| parts.iter().all(|part| request.contains(part))).collect()
    }

    /// Every patch that was taken: path and body.
    pub fn patches(&self) -> Vec<(String, Value)> {
        self.state().patches.clone()
    }

    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.state().version
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.told();
        let _ = TcpStream::connect(self.address); // wakes who accepts
    }
}

impl State {
    fn put(&mut self, path: &str, object: &Value) -> u64 {
        self.version += 1;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let name = [&object["metadata"]["namespace"], &object["metadata"]["name"]];
        let name = name.iter().filter_map(|part| part.as_str()).collect::<Vec<_>>().join("/");
        let all = self.objects.get_mut(path).expect("a resource of ours");
        let kind = if all.insert(name, object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        self.events.push((self.version, path.to_owned(), kind, object));
        self.version
    }

    fn fault(&mut self, path: &str) -> Option<Fault> {
        let next = self.next.get_mut(path).and_then(VecDeque::pop_front);
        next.or_else(|| self.always.get(path).cloned())
    }
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn converse(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(request) = read_request(&mut reader)? {
        let fault = {
            let mut state = shared.state.lock().expect("no test panics with it");
            let query = request.query.iter().map(|(key, value)| format!("{key}={value}"));
            let line = format!("{} {}?{}", request.method, request.path, query.collect::<Vec<_>>().join("&"));
            state.requests.push(line);
            state.fault(&request.path)
        };
        let slow = matches!(fault, Some(Fault::Slow));
        match fault {
            Some(Fault::Status(code, reason)) => respond(&mut stream, code, &status(code, reason).to_string(), false)?,
            Some(Fault::Body(body)) => respond(&mut stream, 200, body, false)?,
            Some(Fault::Hangup) => return Ok(()),
            Some(Fault::Stuck) => {
                let mut state = shared.state.lock().expect("no test panics with it");
                // Until the test ends, or has enough of it.
                while !shared.stop.load(Ordering::Relaxed)
                    && matches!(state.always.get(&request.path), Some(Fault::Stuck))
                {
                    state = shared.changed.wait_timeout(state, Duration::from_millis(50)).expect("no panic").0;
                }
                return Ok(());
            }
            _ if request.method == "PATCH" => patch(&mut stream, shared, &request)?,
            _ if request.query.contains_key("watch") => return watch(&mut stream, shared, &request),
            _ => list(&mut stream, shared, &request, slow)?,
        }
    }
    Ok(())
}

fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let query =
        query.split('&').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.to_owned(), decode(value)));
    let (path, query) = (path.to_owned(), query.collect());
    let mut length = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 {
            return Ok(None);
        }
        let header = header.trim();
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Request { method, path, query, body }))
}

fn status(code: u16, reason: &str) -> Value {
    let message = format!("scripted: {reason}");
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
}

fn respond(stream: &mut TcpStream, code: u16, body: &str, slow: bool) -> io::Result<()> {
    let length = body.len();
    write!(stream, "HTTP/1.1 {code} x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n")?;
    if slow {
        for piece in body.as_bytes().chunks((length / 40).max(1)) {
            stream.write_all(piece)?;
            std::thread::sleep(Duration::from_millis(10));
        }
        return Ok(());
    }
    stream.write_all(body.as_bytes())
}

/// A page; the token is the version of the list and the name that the next page starts at.
fn list(stream: &mut TcpStream, shared: &Shared, request: &Request, slow: bool) -> io::Result<()> {
    let (code, body) = {
        let state = shared.state.lock().expect("no test panics with it");
        list_text(&state, request)
    };
    respond(stream, code, &body, slow)
}

fn list_text(state: &State, request: &Request) -> (u16, String) {
    let Some(all) = state.objects.get(&request.path) else { return (404, "404 page not found\n".to_owned()) };
    let limit: usize = request.query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let limit = limit.min(state.page.unwrap_or(usize::MAX));
    let token = request.query.get("continue").and_then(|token| token.split_once('|'));
    let begun: u64 = token.map_or(state.version, |(version, _)| version.parse().expect("a token of ours"));
    if token.is_some() && begun < state.expired {
        return (410, status(410, "Expired").to_string());
    }
    let from = token.map(|(_, name)| name.to_owned()).unwrap_or_default();
    let only = request.query.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="));
    let wanted = |object: &&Value| only.is_none_or(|name| object["metadata"]["name"] == name);
    let mut names = all.range(from..);
    let items: Vec<&Value> = names.by_ref().take(limit).map(|(_, object)| object).filter(wanted).collect();
    let next = names.next().map(|(name, _)| format!("{begun}|{name}")).unwrap_or_default();
    let metadata = json!({"resourceVersion": begun.to_string(), "continue": next});
    (200, json!({"kind": "SomeList", "apiVersion": "v1", "metadata": metadata, "items": items}).to_string())
}

fn chunk(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    write!(stream, "{:x}\r\n{text}\r\n", text.len())
}

/// The events after a version, until the time is up.
fn watch(stream: &mut TcpStream, shared: &Shared, request: &Request) -> io::Result<()> {
    let number = |key: &str| request.query.get(key).and_then(|text| text.parse::<u64>().ok());
    let ends = Instant::now() + Duration::from_secs(number("timeoutSeconds").expect("every watch has one"));
    let mut reached = number("resourceVersion").expect("every watch has one");
    let path = &request.path;
    let mut state = shared.state.lock().expect("no test panics with it");
    if !state.objects.contains_key(path) {
        return respond(stream, 404, "404 page not found\n", false);
    }
    if reached < state.compacted {
        let gone = status(410, "Expired");
        if state.by_status {
            return respond(stream, 410, &gone.to_string(), false);
        }
        drop(state);
        head(stream)?;
        chunk(stream, &format!("{}\n", json!({"type": "ERROR", "object": gone})))?;
        return chunk(stream, "");
    }
    head(stream)?;
    let cuts = state.cuts;
    loop {
        if shared.stop.load(Ordering::Relaxed) || state.cuts != cuts || state.always.contains_key(path) {
            return Ok(()); // no last chunk: the connection broke
        }
        // What is meant to go wrong must go wrong for somebody.
        if is_closed(stream)? {
            return Ok(());
        }
        if state.stalled.contains(path) {
            state = shared.changed.wait_timeout(state, Duration::from_millis(50)).expect("no panic").0;
            continue;
        }
        let next = state.events.iter().find(|(version, of, ..)| *version > reached && of == path).cloned();
        if let Some((version, _, kind, object)) = next {
            let fault = state.in_watch.get_mut(path).and_then(VecDeque::pop_front);
            drop(state);
            let line = format!("{}\n", json!({"type": kind, "object": object}));
            match fault {
                None => chunk(stream, &line)?,
                Some(WatchFault::Line(line)) => chunk(stream, &format!("{line}\n"))?,
                Some(WatchFault::Half) => return chunk(stream, &line[..line.len() / 2]),
                Some(WatchFault::End) => return chunk(stream, ""),
            }
            reached = version;
            state = shared.state.lock().expect("no test panics with it");
            continue;
        }
        if Instant::now() >= ends {
            drop(state);
            return chunk(stream, "");
        }
        if state.bookmarks && state.version > reached {
            reached = state.version;
            drop(state);
            let bookmark = json!({"kind": "Some", "metadata": {"resourceVersion": reached.to_string()}});
            chunk(stream, &format!("{}\n", json!({"type": "BOOKMARK", "object": bookmark})))?;
            state = shared.state.lock().expect("no test panics with it");
            continue;
        }
        state = shared.changed.wait_timeout(state, Duration::from_millis(50)).expect("no panic").0;
    }
}

/// Whether the other side has hung up.
fn is_closed(stream: &TcpStream) -> io::Result<bool> {
    stream.set_nonblocking(true)?;
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false)?;
    match peeked {
        Ok(octets) => Ok(octets == 0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

fn head(stream: &mut TcpStream) -> io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
}

/// A merge patch of a status, with the version that it is for.
fn patch(stream: &mut TcpStream, shared: &Shared, request: &Request) -> io::Result<()> {
    let body: Value = serde_json::from_slice(&request.body)?;
    if request.path.contains("/configmaps/") {
        // Server-side apply: what was there of ours is replaced as a whole.
        shared.state.lock().expect("no test panics with it").patches.push((request.path.clone(), body.clone()));
        return respond(stream, 201, &body.to_string(), false);
    }
    let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    let (list, name) = match parts.as_slice() {
        ["apis", group, version, "namespaces", namespace, plural, name, "status"] => {
            (format!("/apis/{group}/{version}/{plural}"), format!("{namespace}/{name}"))
        }
        ["apis", group, version, plural, name, "status"] => {
            (format!("/apis/{group}/{version}/{plural}"), (*name).to_owned())
        }
        _ => return respond(stream, 404, "404 page not found\n", false),
    };
    let mut state = shared.state.lock().expect("no test panics with it");
    let Some(object) = state.objects.get(&list).and_then(|all| all.get(&name)).cloned() else {
        return respond(stream, 404, &status(404, "NotFound").to_string(), false);
    };
    if body["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
        return respond(stream, 409, &status(409, "Conflict").to_string(), false);
    }
    let mut object = object;
    object["status"]["conditions"] = body["status"]["conditions"].clone();
    state.put(&list, &object);
    state.patches.push((request.path.clone(), body));
    drop(state);
    shared.changed.notify_all();
    respond(stream, 200, &object.to_string(), false)
}
