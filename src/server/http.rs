//! The metrics listener: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever restarts and routes.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::session::Services;
use crate::store::Store;

#[derive(Clone)]
struct Health {
    services: Arc<Services>,
    store: Arc<dyn Store>,
    draining: CancellationToken,
}

/// Serves until the task is aborted; draining only turns `/readyz` red, so that the last figures can be read.
pub(super) async fn serve(
    listener: TcpListener,
    services: Arc<Services>,
    store: Arc<dyn Store>,
    draining: CancellationToken,
) {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .with_state(Health { services, store, draining });
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "the metrics listener stopped");
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    let text = health.services.metrics.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// Ready: the store takes writes, and the server is not draining.
async fn ready(State(health): State<Health>) -> (StatusCode, String) {
    if health.draining.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
    }
    match health.store.check().await {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}
