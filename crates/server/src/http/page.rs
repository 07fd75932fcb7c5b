//! The web page, and the headers that every answer carries.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::App;

/// Nothing but the page's own files, and no script but theirs.
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; object-src 'none'; base-uri 'none'; \
                      form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'";

macro_rules! files {
    ($($path:literal: $file:literal as $kind:literal),* $(,)?) => {
        /// The page's files.
        pub fn routes() -> Router<Arc<App>> {
            Router::new()$(.route($path, get(|| async { file($kind, include_bytes!(concat!("../../web/", $file))) })))*
        }
    };
}

files! {
    "/": "index.html" as "text/html; charset=utf-8",
    "/style.css": "style.css" as "text/css; charset=utf-8",
    "/icon.svg": "icon.svg" as "image/svg+xml",
    "/api.js": "api.js" as "text/javascript; charset=utf-8",
    "/app.js": "app.js" as "text/javascript; charset=utf-8",
    "/chat.js": "chat.js" as "text/javascript; charset=utf-8",
    "/connection.js": "connection.js" as "text/javascript; charset=utf-8",
    "/outbox.js": "outbox.js" as "text/javascript; charset=utf-8",
    "/people.js": "people.js" as "text/javascript; charset=utf-8",
    "/modes.js": "modes.js" as "text/javascript; charset=utf-8",
    "/timeline.js": "timeline.js" as "text/javascript; charset=utf-8",
    "/view.js": "view.js" as "text/javascript; charset=utf-8",
}

fn file(kind: &'static str, bytes: &'static [u8]) -> Response {
    (
        [
            (header::CONTENT_TYPE, kind),
            (header::CACHE_CONTROL, "no-cache"),
        ],
        bytes,
    )
        .into_response()
}

/// Which program answers; no more than its name and the protocol's version.
pub async fn version() -> impl IntoResponse {
    let text = format!(
        "{{\"name\":\"tidings\",\"protocol\":{}}}",
        tidings_protocol::VERSION
    );
    ([(header::CONTENT_TYPE, "application/json")], text)
}

/// Sets the security headers of every answer.
pub async fn headers(request: Request, next: Next) -> Response {
    let is_tls = request
        .extensions()
        .get::<super::adopt::OverTls>()
        .is_some();
    let mut response = next.run(request).await;
    if is_tls {
        response.headers_mut().insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static("max-age=31536000"),
        );
    }
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
        .headers_mut()
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}
