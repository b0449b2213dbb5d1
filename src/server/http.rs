//! The metrics listener: `/metrics` for Prometheus, `/healthz` and `/readyz` for what restarts servers and routes traffic, and
//! a page for people.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use super::figures::Figures;
use super::readiness::Readiness;
use super::status::Status;
use crate::clock::Now;
use crate::limits::METRICS_UPKEEP;
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
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "the metrics listener stopped");
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
