//! Health and metrics, on a listener of their own that is bound to loopback unless configured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tidings_backends::{file_log, lsm};
use tidings_core::ports::directory::Directory;
use tidings_gateway::worker::Pool;

use crate::metrics::Scrape;

/// How long readiness waits for one part.
const CHECK_MAX: std::time::Duration = std::time::Duration::from_secs(1);

/// What is asked how it is.
pub struct Health {
    /// Set when the server has begun to drain.
    pub draining: AtomicBool,
    /// Set when routing has ended though nobody asked.
    pub broken: AtomicBool,
    /// Connections, and whether too many of them panic.
    pub pool: Arc<Pool>,
    /// The log.
    pub log: Arc<file_log::Metrics>,
    /// The store.
    pub store: Arc<lsm::LsmStore>,
    /// The directory.
    pub directory: Arc<dyn Directory>,
    /// The figures.
    pub scrape: Scrape,
}

/// Routes of the admin port.
pub fn routes(health: Arc<Health>) -> Router {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health)
}

fn answer(ok: bool, body: Value) -> Response {
    let status = if ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}

/// Whether the process is worth keeping: not when routing has ended or connections panic all the time.
async fn live(State(health): State<Arc<Health>>) -> Response {
    let ok = !health.broken.load(Ordering::Relaxed) && !health.pool.is_unhealthy();
    answer(ok, json!({ "status": if ok { "ok" } else { "down" } }))
}

/// Whether new clients should come here; tells degraded parts from missing ones.
async fn ready(State(health): State<Arc<Health>>) -> Response {
    let began = std::time::Instant::now();
    let asked = tokio::time::timeout(CHECK_MAX, health.directory.outbox_pending(1)).await;
    let directory = matches!(asked, Ok(Ok(_)));
    let store_full = health.store.figures().full != 0;
    let routing = !health.broken.load(Ordering::Relaxed);
    let draining = health.draining.load(Ordering::Relaxed);
    let log = health.log.figures();
    let ok = routing && !draining && !health.pool.is_unhealthy();
    let status = match (ok, directory && !store_full) {
        (true, true) => "ok",
        (true, false) => "degraded",
        (false, _) if draining => "draining",
        (false, _) => "down",
    };
    let state = |up: bool, down: &'static str| if up { "ok" } else { down };
    let body = json!({
        "status": status,
        "parts": {
            "routing": { "status": state(routing, "down") },
            "log": { "status": "ok", "last_sync_ms": log.last_fsync_us as f64 / 1000.0, "queue_records": log.queue_records },
            "store": { "status": state(!store_full, "disk full") },
            "directory": { "status": state(directory, "not answering"), "latency_ms": began.elapsed().as_secs_f64() * 1000.0 },
        },
    });
    answer(ok, body)
}

async fn metrics(State(health): State<Arc<Health>>) -> Response {
    (
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        health.scrape.text(),
    )
        .into_response()
}
