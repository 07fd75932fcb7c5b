//! Health and metrics, on a listener of their own that is bound to loopback unless configured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::future::join_all;
use serde_json::{Map, Value, json};
use tidings_gateway::worker::Pool;
use tidings_protocol::Named;
use tidings_protocol::wire::FeatureState;

use crate::metrics::Scrape;
use crate::modes::{FEATURES, Modes};
use crate::parts::Part;
use crate::routers::Routers;
use crate::system;

/// How long readiness waits for one part.
const CHECK_MAX: std::time::Duration = std::time::Duration::from_secs(1);

/// What is asked how it is.
pub struct Health {
    /// Set when the server has begun to drain.
    pub draining: AtomicBool,
    /// The routers here.
    pub routers: Arc<Routers>,
    /// Connections, and whether too many of them panic.
    pub pool: Arc<Pool>,
    /// Log, store and so on.
    pub parts: Arc<[Box<dyn Part>]>,
    /// How the features are.
    pub modes: Arc<Modes>,
    /// When readiness was asked last, which asks all parts; microseconds since 1970.
    pub asked: AtomicU64,
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
    let ok = !health.routers.is_broken() && !health.pool.is_unhealthy();
    answer(ok, json!({ "status": if ok { "ok" } else { "down" } }))
}

/// Whether new clients should come here; tells degraded parts from missing ones.
async fn ready(State(health): State<Arc<Health>>) -> Response {
    health.asked.store(system::now(), Ordering::Relaxed);
    let asked = health.parts.iter().map(|part| async move {
        let began = std::time::Instant::now();
        let answer = tokio::time::timeout(CHECK_MAX, part.check()).await;
        let latency_ms = (began.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        let answer = answer.unwrap_or_else(|_| Err("not answering".into()));
        (part, answer, latency_ms)
    });
    let mut degraded = false;
    let mut parts = Map::new();
    for (part, answer, latency_ms) in join_all(asked).await {
        let mut shown = match answer {
            Ok(Value::Object(details)) => {
                let mut shown = Map::new();
                shown.insert("status".into(), "ok".into());
                shown.extend(details);
                shown
            }
            Ok(_) => Map::from_iter([("status".to_owned(), "ok".into())]),
            Err(reason) => {
                degraded = true;
                Map::from_iter([("status".to_owned(), reason.into())])
            }
        };
        shown.insert("latency_ms".into(), latency_ms.into());
        for breaker in part.breakers() {
            degraded |= breaker.state != 0;
            let state = ["closed", "half open", "open"][usize::from(breaker.state.min(2))];
            let breakers = shown.entry("breakers").or_insert_with(|| json!({}));
            breakers[breaker.name] = state.into();
        }
        parts.insert(part.name().into(), shown.into());
    }
    let routing = !health.routers.is_broken();
    parts.insert(
        "routing".into(),
        json!({
            "status": if routing { "ok" } else { "down" },
            "partitions": health.routers.partitions().len(),
            "backlog_records": health.routers.backlog_records(),
        }),
    );
    let draining = health.draining.load(Ordering::Relaxed);
    let ok = routing && !draining && !health.pool.is_unhealthy();
    let status = match (ok, degraded) {
        (true, false) => "ok",
        (true, true) => "degraded",
        (false, _) if draining => "draining",
        (false, _) => "down",
    };
    let modes = FEATURES.iter().map(|&feature| {
        let state = FeatureState::try_from(i32::from(health.modes.state(feature)));
        let state = state.unwrap_or_default().name();
        (feature.name().to_owned(), Value::from(state))
    });
    let modes: Map<String, Value> = modes.collect();
    let body = json!({ "status": status, "parts": parts, "modes": modes });
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
