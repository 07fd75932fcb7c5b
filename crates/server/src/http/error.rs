//! Errors as problem details: a stable code, a safe sentence, and when to try again.

use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tidings_core::ports::directory::{DirectoryError, Refusal, What};

use crate::auth::AuthError;
use crate::routed::RoutedError;

/// An answer that says no.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retry_after: Option<Duration>,
}

/// What handlers return.
pub type Answer<T> = Result<T, Problem>;

impl Problem {
    /// A problem with this status and code.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Problem {
        Problem {
            status,
            code,
            detail: detail.into(),
            retry_after: None,
        }
    }

    /// The request is not as documented.
    pub fn bad(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    }

    /// There is no such thing, or the caller may not know of it: both look the same.
    pub fn missing() -> Problem {
        Problem::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "There is no such thing, or you may not see it.",
        )
    }

    /// No valid token or key.
    pub fn unauthorized(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    /// Known, but not allowed.
    pub fn forbidden(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// Too much: try again after this time.
    pub fn limited(retry_after: Duration) -> Problem {
        let problem = Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limited",
            "Too many requests.",
        );
        Problem {
            retry_after: Some(retry_after),
            ..problem
        }
    }

    /// Not now: try again after this time.
    pub fn unavailable(retry_after: Duration) -> Problem {
        let problem = Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "Not possible right now.",
        );
        Problem {
            retry_after: Some(retry_after),
            ..problem
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
        });
        if let Some(after) = self.retry_after {
            body["retry_after_ms"] = json!(after.as_millis() as u64);
        }
        let mut response = (
            self.status,
            [(header::CONTENT_TYPE, "application/problem+json")],
            body.to_string(),
        )
            .into_response();
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(
                header::RETRY_AFTER,
                (after.as_millis().div_ceil(1000).max(1) as u64).into(),
            );
        }
        response
    }
}

/// The answer to a path that isn't there.
pub async fn not_found() -> Problem {
    Problem::missing()
}

impl From<DirectoryError> for Problem {
    fn from(error: DirectoryError) -> Problem {
        match error {
            DirectoryError::NotFound(_) => Problem::missing(),
            DirectoryError::Conflict(what) => Problem::new(
                StatusCode::CONFLICT,
                conflict(what),
                format!("{what} already taken."),
            ),
            DirectoryError::Refused(Refusal::Role | Refusal::Banned | Refusal::Disabled) => {
                Problem::forbidden(error.to_string())
            }
            DirectoryError::Refused(_) => Problem::bad(error.to_string()),
            DirectoryError::Unavailable { retry_after } => Problem::unavailable(retry_after),
            DirectoryError::Full => {
                tracing::error!("the directory's disk is full");
                Problem {
                    code: "storage_full",
                    ..Problem::unavailable(Duration::from_secs(10))
                }
            }
            DirectoryError::Corrupt(what) => {
                tracing::error!(what, "the directory is damaged");
                Problem::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "internal",
                    "Something is broken here.",
                )
            }
        }
    }
}

fn conflict(what: What) -> &'static str {
    match what {
        What::LoginName => "name_taken",
        What::IdempotencyKey => "idempotency_key_reused",
        _ => "conflict",
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Problem {
        match error {
            AuthError::Invalid
            | AuthError::Expired
            | AuthError::Revoked
            | AuthError::Credentials => Problem::unauthorized(sentence(&error)),
            AuthError::Disabled => Problem::forbidden(sentence(&error)),
            AuthError::Throttled { retry_after } | AuthError::TooBusy { retry_after } => {
                Problem::limited(retry_after)
            }
            AuthError::Name | AuthError::PasswordLength | AuthError::PasswordCommon => {
                Problem::bad(sentence(&error))
            }
            AuthError::NameTaken => {
                Problem::new(StatusCode::CONFLICT, "name_taken", sentence(&error))
            }
            AuthError::Directory(error) => error.into(),
        }
    }
}

/// An error's text with a capital and a full stop.
fn sentence(error: &AuthError) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| {
        format!("{}{}.", first.to_uppercase(), letters.as_str())
    })
}

impl From<RoutedError> for Problem {
    fn from(error: RoutedError) -> Problem {
        match error {
            RoutedError::Forbidden => Problem::missing(),
            RoutedError::Refused => Problem::new(
                StatusCode::CONFLICT,
                "conflict",
                "The message was not accepted; send it under another Idempotency-Key.",
            ),
            RoutedError::Full => Problem {
                code: "storage_full",
                ..Problem::unavailable(Duration::from_secs(10))
            },
            RoutedError::Unavailable => Problem::unavailable(Duration::from_secs(1)),
        }
    }
}
