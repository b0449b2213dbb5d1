//! The metrics listener: `/metrics` for Prometheus, `/healthz` and `/readyz` for what restarts servers and routes traffic, and
//! a page for people.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::figures::Figures;
use super::readiness::Readiness;
use super::status::Status;
use crate::clock::Now;
use crate::limits::{ACCEPT_RETRY, METRICS_UPKEEP, PAGES_CONNECTION_KEPT, PAGES_CONNECTIONS_MAX, PAGES_REQUEST_WITHIN};
use crate::observe::Metrics;

/// What the pages show.
pub(super) struct Pages {
    pub(super) metrics: Arc<Metrics>,
    pub(super) figures: Figures,
    pub(super) readiness: Arc<Readiness>,
    pub(super) status: Status,
}

/// Serves until the task is aborted. Draining only makes `/readyz` fail, so that the last figures can still be read.
pub(super) async fn serve(listener: TcpListener, pages: Arc<Pages>) {
    let routes = Router::new()
        .route("/", get(status))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .with_state(pages);
    let bounds = Bounds {
        connections: PAGES_CONNECTIONS_MAX,
        request_within: PAGES_REQUEST_WITHIN,
        kept: PAGES_CONNECTION_KEPT,
    };
    answer(listener, routes, bounds).await;
}

/// What a peer may take of the listener.
#[derive(Clone, Copy)]
struct Bounds {
    connections: usize,
    request_within: Duration,
    kept: Duration,
}

/// Answers requests over as many connections as are allowed; further ones wait until one ends.
async fn answer(listener: TcpListener, routes: Router, bounds: Bounds) {
    // Dropped with this future, which ends all of them.
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= bounds.connections {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => _ = connections.spawn(connection(stream, routes.clone(), bounds)),
            Err(error) => {
                tracing::warn!(%error, "accept of the metrics listener failed");
                sleep(ACCEPT_RETRY).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Answers the requests of one connection. It is closed between two of them when it is old enough, and then or not soon after
/// also in the middle of one: the peer may not read the answer.
async fn connection(stream: TcpStream, routes: Router, bounds: Bounds) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(bounds.request_within);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes)));
    // What goes wrong is the peer's: there is nothing to do about it.
    if timeout(bounds.kept, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(bounds.request_within, connection).await;
    }
}

/// Adds a point to the status page from time to time. Reading the figures also folds the histograms' samples into their
/// buckets, which nothing else might do.
pub(super) async fn keep(pages: Arc<Pages>) {
    let mut every = tokio::time::interval(METRICS_UPKEEP);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        pages.status.take(pages.metrics.snapshot());
    }
}

async fn metrics(State(pages): State<Arc<Pages>>) -> impl IntoResponse {
    // The result shows in the metric.
    let _ = pages.readiness.check().await;
    pages.figures.gather().await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], pages.metrics.render())
}

async fn ready(State(pages): State<Arc<Pages>>) -> (StatusCode, String) {
    match pages.readiness.check().await {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn status(State(pages): State<Arc<Pages>>) -> impl IntoResponse {
    let ready = pages.readiness.check().await;
    pages.figures.gather().await;
    let page = pages.status.page(&pages.metrics, &ready, Now::system().unix_ms / 1000);
    // The page loads nothing and runs no script.
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy)], page)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn who_connects_and_says_nothing_or_reads_nothing_keeps_nobody_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let long = "x".repeat(64 * 1024 * 1024);
        let routes = Router::new().route("/", get(|| async { "here" })).route("/long", get(|| async { long }));
        let short = Duration::from_millis(50);
        // One after the other, so that an answer to the last says that the others' connections are over.
        let bounds = Bounds { connections: 1, request_within: short, kept: 2 * short };
        let answering = tokio::spawn(answer(listener, routes, bounds));
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut deaf = TcpStream::connect(address).await.unwrap();
        deaf.write_all(b"GET /long HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut asking = TcpStream::connect(address).await.unwrap();
        asking.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
        // The one was closed without a request, the other in the middle of its answer.
        let mut rest = Vec::new();
        silent.read_to_end(&mut rest).await.unwrap();
        let _ = deaf.read_to_end(&mut rest).await;
        assert!(rest.len() < 64 * 1024 * 1024);
        answering.abort();
    }
}
