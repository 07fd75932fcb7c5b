//! The rest of a request whose answer is ready before its body was read.
//!
//! Whoever is still writing may never read an answer: the connection is closed with bytes unread in it, and the
//! kernel then throws the answer away, a balancer too. So the rest is read first, within bounds.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::StreamExt;
use hyper::body::{Frame, SizeHint};

/// What is read of a refused body at most, and for how long; behind it the connection is closed.
const REST_BYTES_MAX: usize = 4 << 20;
const REST_TIME_MAX: Duration = Duration::from_secs(2);

type Rest = Arc<Mutex<Option<Body>>>;

/// A body that is given back when it is dropped before its end.
struct Returning {
    body: Body,
    rest: Rest,
}

impl HttpBody for Returning {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Returning {
    fn drop(&mut self) {
        if !self.body.is_end_stream() {
            let body = std::mem::replace(&mut self.body, Body::empty());
            *self.rest.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

/// Reads what the handlers left of the body, then gives the answer.
pub async fn read(request: Request, next: Next) -> Response {
    // Who asks before it sends sends nothing when it is refused.
    if request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    let rest = Rest::default();
    let returned = rest.clone();
    let request = request.map(|body| Body::new(Returning { body, rest }));
    let response = next.run(request).await;
    let left = returned
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(body) = left {
        let mut pieces = body.into_data_stream();
        let all = async {
            let mut bytes = 0;
            while let Some(Ok(piece)) = pieces.next().await {
                bytes += piece.len();
                if bytes > REST_BYTES_MAX {
                    break;
                }
            }
        };
        // Late or too long: it is closed as it is.
        _ = tokio::time::timeout(REST_TIME_MAX, all).await;
    }
    response
}
