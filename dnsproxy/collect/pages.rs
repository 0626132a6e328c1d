//! /metrics, /readyz and /livez over TCP.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::Shared;
use crate::observe::text::clean;

/// How many connections may be open at a time. Further ones are closed at once.
const CONNECTIONS: usize = 64;
/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may be open, whatever it does.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How many octets of request line and headers are read at most.
const REQUEST_OCTETS: usize = 16 * 1024;

/// Answers for ever.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: the listener stays readable, so don't spin.
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                std::future::ready(Ok::<_, Infallible>(answer(&shared, request.method(), request.uri().path())))
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIMEOUT)
                .max_buf_size(REQUEST_OCTETS)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
            drop(slot);
        });
    }
}

fn answer(shared: &Shared, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        let mut response = page(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD are allowed\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/livez" => page(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let reasons = shared.telemetry.reasons();
            if reasons.is_empty() {
                return page(StatusCode::OK, "ok\n");
            }
            let text: String = reasons.iter().map(|reason| clean(reason) + "\n").collect();
            page(StatusCode::SERVICE_UNAVAILABLE, text)
        }
        "/metrics" => match shared.telemetry.text() {
            Ok(text) => page(StatusCode::OK, text),
            Err(error) => page(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        _ => page(StatusCode::NOT_FOUND, "/metrics, /readyz and /livez are here\n"),
    }
}

fn page(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    // Prometheus' text format is plain text too.
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
