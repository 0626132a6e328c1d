//! The API server: pages of a list, the events of a watch, a status. The only file in which `kube` appears: it knows
//! kubeconfig, service accounts and TLS.
//!
//! # Why not `kube::runtime::watcher`?
//!
//! After an event that is no JSON it goes on with the same stream: the next event moves its `resourceVersion` past the one
//! that was lost, and a policy may be missing for hours. An HTTP status of 410 at the start of a watch it asks again for ever.
//! And it keeps every object of a page as a tree. Here nothing is passed over, and everything has a bound.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout, timeout_at};
use tower::{BoxError, ServiceBuilder};

use crate::clock;

/// The most octets of a page. More: a smaller page is asked for.
const PAGE_OCTETS: usize = 64 << 20;
/// The most octets of an event. etcd takes objects of 1.5 MiB unless told otherwise, and JSON has room to spare.
const EVENT_OCTETS: usize = 16 << 20;
/// The most octets of an error's text.
const STATUS_OCTETS: usize = 64 << 10;
/// When a connection that says nothing is asked whether it is still there, and how long until it is given up.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A client of one API server. A clone shares it.
#[derive(Clone)]
pub struct Api {
    client: Client,
    server: String,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct ConnectError {
    what: String,
    #[source]
    source: BoxError,
}

/// Why something can't be had from the API server.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApiError {
    /// It says no.
    #[error("{code}{}: {message}", if reason.is_empty() { String::new() } else { format!(" {reason}") })]
    Status {
        /// As of HTTP.
        code: u16,
        /// As of Kubernetes, as `Forbidden`; empty if it did not say.
        reason: String,
        /// For people.
        message: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// It isn't there, or the connection broke.
    #[error("{0}")]
    Unreachable(String),
    /// It said nothing for too long.
    #[error("no {what} within {} s", after.as_secs())]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// What it said is not what it should have said.
    #[error("{0}")]
    Garbage(String),
    /// What it said is too long.
    #[error("{what} of more than {limit} octets; {limit} are allowed")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Octets.
        limit: usize,
    },
}

impl ApiError {
    /// The code of HTTP, if it said one.
    pub fn code(&self) -> Option<u16> {
        match self {
            ApiError::Status { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// One page of a list.
#[derive(Debug)]
pub struct Page {
    text: Bytes,
    /// As of when: what a watch goes on from.
    pub version: String,
    /// What the next page is asked for with; `None`: this was the last one.
    pub next: Option<String>,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The path of the list.
    pub path: String,
    /// The name of the only object wanted.
    pub only: Option<&'static str>,
}

/// An event of a watch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// An object is there, or is another now.
    Applied(String),
    /// An object is gone.
    Deleted(String),
    /// Nothing happened up to this version.
    Bookmark(String),
}

/// A watch that is open.
pub struct Watch {
    body: Body,
    received: BytesMut,
    /// How much of it is known to hold no end of a line.
    searched: usize,
    ends: Instant,
    lasts: Duration,
}

impl Api {
    /// A client by this file, else by the service account of the pod that this runs in.
    ///
    /// # Errors
    /// There is no such file, or it is wrong; this is no pod.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Api, ConnectError> {
        let failed = |what: &str, source: BoxError| ConnectError { what: what.to_owned(), source };
        let config = match kubeconfig {
            Some(path) => {
                let what = format!("reading the kubeconfig {}", path.display());
                let read = Kubeconfig::read_from(path).map_err(|error| failed(&what, error.into()))?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(read, &options).await.map_err(|error| failed(&what, error.into()))?
            }
            None => {
                let what = "reading the pod's service account (outside of a pod --kubeconfig is needed)";
                Config::incluster_env().map_err(|error| failed(what, error.into()))?
            }
        };
        Api::of(&config).map_err(|error| failed("making a client of the API server", error))
    }

    fn of(config: &Config) -> Result<Api, BoxError> {
        if let Some(proxy) = &config.proxy_url {
            return Err(
                format!("proxy-url {proxy} in the kubeconfig; none is allowed, the server is asked directly").into()
            );
        }
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(config.connect_timeout);
        connector.set_nodelay(true);
        // A server that is gone without a word is noticed by the kernel, not by the end of the watch minutes later.
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE / 4));
        connector.set_keepalive_retries(Some(3));
        connector.set_tcp_user_timeout(Some(KEEPALIVE * 2));
        let connector = config.rustls_https_connector_with_connector(connector)?;
        let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer()?)
            .layer(config.extra_headers_layer()?)
            .map_err(BoxError::from)
            .service(http);
        let server = config.cluster_url.to_string();
        Ok(Api { client: Client::new(service, config.default_namespace.clone()), server })
    }

    /// The server's URL.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// One page of a list; `next` is what the page before said. Lists are read from etcd's present (no `resourceVersion`).
    ///
    /// # Errors
    /// See [`ApiError`]; 410: the list was begun too long ago.
    pub async fn page(
        &self,
        asked: &Asked,
        limit: u32,
        next: Option<&str>,
        patience: Duration,
    ) -> Result<Page, ApiError> {
        let mut query = format!("limit={limit}");
        if let Some(next) = next {
            query += &format!("&continue={}", utf8_percent_encode(next, NON_ALPHANUMERIC));
        }
        let request = get(&asked.uri(&query))?;
        let text = in_time("list", patience, async {
            let response = self.ask(request).await?;
            read(response, PAGE_OCTETS, "a list").await
        })
        .await?;
        Page::parse(text)
    }

    /// Watches from `version` on, for `lasts` at most, after which the server ends it; what is longer than that by `margin` is
    /// cut off. `patience`: for its beginning.
    ///
    /// # Errors
    /// See [`ApiError`]; 410: the version is too old.
    pub async fn watch(
        &self,
        asked: &Asked,
        version: &str,
        patience: Duration,
        lasts: Duration,
        margin: Duration,
    ) -> Result<Watch, ApiError> {
        let version = utf8_percent_encode(version, NON_ALPHANUMERIC);
        let seconds = lasts.as_secs().max(1);
        let query = format!("watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={seconds}");
        let request = get(&asked.uri(&query))?;
        let response = in_time("watch", patience, self.ask(request)).await?;
        let ends = Instant::from_std(clock::now()) + lasts + margin;
        let (received, body) = (BytesMut::new(), response.into_body());
        Ok(Watch { body, received, searched: 0, ends, lasts: lasts + margin })
    }

    /// Merges a patch (RFC 7396) into an object's status. What it says of the object's version must hold, else: 409.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn merge(&self, path: &str, patch: Vec<u8>, patience: Duration) -> Result<(), ApiError> {
        let request = request(Method::PATCH, &format!("{path}?fieldManager=namegate"))
            .header(CONTENT_TYPE, "application/merge-patch+json");
        self.send(request.body(Body::from(patch)), patience).await
    }

    /// Makes an object, or puts what is said of it in place of what we said of it before (server-side apply).
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn apply(&self, path: &str, object: Vec<u8>, patience: Duration) -> Result<(), ApiError> {
        let request = request(Method::PATCH, &format!("{path}?fieldManager=namegate&force=true"))
            .header(CONTENT_TYPE, "application/apply-patch+yaml"); // JSON is YAML
        self.send(request.body(Body::from(object)), patience).await
    }

    async fn send(&self, request: hyper::http::Result<Request<Body>>, patience: Duration) -> Result<(), ApiError> {
        let request = request.map_err(|error| ApiError::Garbage(error.to_string()))?;
        in_time("answer", patience, async {
            let response = self.ask(request).await?;
            read(response, PAGE_OCTETS, "an object").await.map(drop)
        })
        .await
    }

    /// Sends a request; an answer that is no success is an error.
    async fn ask(&self, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        let response = self.client.send(request).await.map_err(|error| ApiError::Unreachable(chain(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let retry_after = seconds(response.headers());
        let text = read(response, STATUS_OCTETS, "an error").await.unwrap_or_default();
        let status: Status = serde_json::from_slice(&text).unwrap_or_default();
        let said = if status.message.is_empty() { String::from_utf8_lossy(&text).into_owned() } else { status.message };
        Err(ApiError::Status { code, reason: status.reason, message: shortened(&said), retry_after })
    }
}

impl Asked {
    fn uri(&self, query: &str) -> String {
        let only = self.only.map(|name| format!("&fieldSelector=metadata.name%3D{name}")).unwrap_or_default();
        format!("{}?{query}{only}", self.path)
    }
}

impl Page {
    fn parse(text: Bytes) -> Result<Page, ApiError> {
        let list: ListText<'_> =
            serde_json::from_slice(&text).map_err(|error| ApiError::Garbage(format!("no list: {error}")))?;
        if !list.kind.ends_with("List") {
            return Err(ApiError::Garbage(format!("kind {:?}; a list is allowed", list.kind)));
        }
        let ListMetadata { version, next } = list.metadata;
        let next = next.filter(|next| !next.is_empty());
        // An empty answer that someone made up must not be taken for an empty cluster.
        if version.is_empty() {
            return Err(ApiError::Garbage("a list without metadata.resourceVersion, which every list has".to_owned()));
        }
        Ok(Page { text, version, next })
    }

    /// The objects, each as its text.
    ///
    /// # Errors
    /// It is no list; it was one when it was parsed.
    pub fn items(&self) -> Result<Vec<&str>, ApiError> {
        let list: ListText<'_> =
            serde_json::from_slice(&self.text).map_err(|error| ApiError::Garbage(format!("no list: {error}")))?;
        Ok(list.items.unwrap_or_default().into_iter().map(RawValue::get).collect())
    }
}

impl Watch {
    /// The next event; `None`: the server has ended the watch. What is half an event at the end is none.
    ///
    /// # Errors
    /// See [`ApiError`]; the watch is of no use any more: an event may be missing.
    pub async fn next(&mut self) -> Result<Option<Event>, ApiError> {
        loop {
            if let Some(at) = self.received[self.searched..].iter().position(|octet| *octet == b'\n') {
                let line = self.received.split_to(self.searched + at + 1);
                self.searched = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Event::parse(&line).map(Some);
            }
            self.searched = self.received.len();
            if self.received.len() > EVENT_OCTETS {
                return Err(ApiError::TooLarge { what: "an event", limit: EVENT_OCTETS });
            }
            let stuck = |_| ApiError::TimedOut { what: "end of the watch", after: self.lasts };
            match timeout_at(self.ends, self.body.frame()).await.map_err(stuck)? {
                None => return Ok(None),
                Some(Ok(frame)) => self.received.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
                Some(Err(error)) => return Err(ApiError::Unreachable(chain(&error))),
            }
        }
    }
}

impl Event {
    fn parse(line: &[u8]) -> Result<Event, ApiError> {
        let garbage = |error: serde_json::Error| ApiError::Garbage(format!("no event: {error}"));
        let EventText { kind, object } = serde_json::from_slice(line).map_err(garbage)?;
        match &*kind {
            "ADDED" | "MODIFIED" => Ok(Event::Applied(object.get().to_owned())),
            "DELETED" => Ok(Event::Deleted(object.get().to_owned())),
            "BOOKMARK" => {
                let bookmark: BookmarkText = serde_json::from_str(object.get()).map_err(garbage)?;
                match bookmark.metadata.version {
                    version if version.is_empty() => Err(ApiError::Garbage("a bookmark without a version".to_owned())),
                    version => Ok(Event::Bookmark(version)),
                }
            }
            "ERROR" => {
                let Status { code, reason, message } = serde_json::from_str(object.get()).map_err(garbage)?;
                Err(ApiError::Status { code, reason, message: shortened(&message), retry_after: None })
            }
            other => Err(ApiError::Garbage(format!(
                "event {other:?}; ADDED, MODIFIED, DELETED, BOOKMARK, ERROR are allowed"
            ))),
        }
    }
}

#[derive(Deserialize)]
struct ListText<'t> {
    kind: String,
    metadata: ListMetadata,
    /// Null of an empty list in Go; never left out.
    #[serde(borrow, deserialize_with = "present")]
    items: Option<Vec<&'t RawValue>>,
}

#[derive(Deserialize)]
struct ListMetadata {
    #[serde(default, rename = "resourceVersion")]
    version: String,
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct EventText<'t> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    object: &'t RawValue,
}

#[derive(Deserialize)]
struct BookmarkText {
    metadata: ListMetadata,
}

/// `metav1.Status`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    code: u16,
    reason: String,
    message: String,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<&'de RawValue>>, D::Error> {
    Option::deserialize(deserializer)
}

fn request(method: Method, uri: &str) -> hyper::http::request::Builder {
    let agent = concat!("namegate/", env!("CARGO_PKG_VERSION"), " collect");
    Request::builder().method(method).uri(uri).header(USER_AGENT, agent).header(ACCEPT, "application/json")
}

fn get(uri: &str) -> Result<Request<Body>, ApiError> {
    request(Method::GET, uri).body(Body::empty()).map_err(|error| ApiError::Garbage(error.to_string()))
}

async fn in_time<T>(
    what: &'static str,
    after: Duration,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    timeout(after, work).await.unwrap_or(Err(ApiError::TimedOut { what, after }))
}

async fn read(response: Response<Body>, limit: usize, what: &'static str) -> Result<Bytes, ApiError> {
    let collected = Limited::new(response.into_body(), limit).collect().await;
    collected.map(http_body_util::Collected::to_bytes).map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => ApiError::TooLarge { what, limit },
        None => ApiError::Unreachable(chain(&*error)),
    })
}

/// `Retry-After` in seconds (RFC 9110, 10.2.3); a date is not read.
fn seconds(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// An error with its causes, for people.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text += &format!(": {said}");
        }
        cause = error.source();
    }
    shortened(&text)
}

/// As much of a text as a log line bears.
fn shortened(text: &str) -> String {
    const CHARS: usize = 500;
    let text = text.trim();
    match text.char_indices().nth(CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("server", &self.server).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn page(text: &str) -> Result<(String, Option<String>, Vec<String>), String> {
        let page = Page::parse(Bytes::copy_from_slice(text.as_bytes())).map_err(|error| error.to_string())?;
        let items = page.items().expect("it was one").into_iter().map(str::to_owned).collect();
        Ok((page.version, page.next, items))
    }

    #[test]
    fn a_page_is_its_items_or_an_error_and_never_an_empty_list_by_mistake() {
        let list = r#"{"kind":"PodList","metadata":{"resourceVersion":"7","continue":"x"},"items":[{"a":1}, [2]]}"#;
        assert_eq!(page(list), Ok(("7".into(), Some("x".into()), vec![r#"{"a":1}"#.into(), "[2]".into()])));
        let empty = r#"{"kind":"PodList","metadata":{"resourceVersion":"7","continue":""},"items":null}"#;
        assert_eq!(page(empty), Ok(("7".into(), None, Vec::new())));
        for (text, why) in [
            ("", "no list"),
            ("{}", "no list: missing field `kind`"),
            (r#"{"kind":"PodList","metadata":{"resourceVersion":"7"}}"#, "missing field `items`"),
            (r#"{"kind":"PodList","metadata":{},"items":[]}"#, "resourceVersion"),
            (r#"{"kind":"Status","metadata":{"resourceVersion":"7"},"items":[]}"#, "kind \"Status\""),
            (r#"{"kind":"PodList","metadata":{"resourceVersion":"7"},"items":{}}"#, "no list"),
        ] {
            let error = page(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn an_event_is_read_or_an_error() {
        let event = |text: &str| Event::parse(text.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(event(r#"{"type":"ADDED","object":{"a": 1}}"#), Ok(Event::Applied(r#"{"a": 1}"#.into())));
        assert_eq!(event(r#"{"type":"DELETED","object":{}}"#), Ok(Event::Deleted("{}".into())));
        let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"9"}}}"#;
        assert_eq!(event(bookmark), Ok(Event::Bookmark("9".into())));
        let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#;
        assert_eq!(event(gone), Err("410 Expired: too old".into()));
        for text in
            ["nonsense", "{}", r#"{"type":"BOOKMARK","object":{"metadata":{}}}"#, r#"{"type":"NEW","object":{}}"#]
        {
            event(text).expect_err(text);
        }
    }
}
