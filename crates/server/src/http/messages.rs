//! Messages without a session: for bots, and for reading history.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tidings_core::ids::{ConversationId, UserId};
use tidings_core::record::{Kind, Role};
use tidings_protocol::body::check_body;
use tidings_protocol::{ErrorCode, limits, message_id, to_hex16, to_hex32, wire};

use super::App;
use super::error::{Answer, Problem};
use super::extract::{Body, Caller, Hex};
use crate::routed::{Message, RoutedError};

#[derive(Deserialize)]
pub struct New {
    #[serde(default)]
    kind: Option<String>,
    body: Box<RawValue>,
}

/// Sends one message; a repeat with the same `Idempotency-Key` within 7 days is the same message.
pub async fn send(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(conversation): Path<Hex>,
    headers: HeaderMap,
    Body(new): Body<New>,
) -> Answer<Response> {
    let (kind, body) = match new.kind.as_deref() {
        None | Some("text") => {
            let text: String = serde_json::from_str(new.body.get())
                .map_err(|_| Problem::bad("A text's body is a string."))?;
            (Kind::Text, Bytes::from(text))
        }
        Some("json") => (
            Kind::Json,
            Bytes::copy_from_slice(new.body.get().as_bytes()),
        ),
        Some(_) => return Err(Problem::bad("kind is text or json.")),
    };
    let named = match kind {
        Kind::Json => wire::Kind::Json,
        _ => wire::Kind::Text,
    };
    if let Err(error) = check_body(
        named,
        wire::Encoding::Identity,
        &body,
        limits::TEXT_BYTES_MAX,
    ) {
        return Err(match error.code() {
            ErrorCode::TooLong => {
                let detail = format!("A body has at most {} bytes.", limits::TEXT_BYTES_MAX);
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_long", detail)
            }
            _ => Problem::bad("The body is not what its kind says."),
        });
    }
    app.quotas.send(caller.user)?;
    let key = match headers.get("idempotency-key") {
        None => None,
        Some(value) if value.len() <= 255 => Some(value.as_bytes().to_vec()),
        Some(_) => return Err(Problem::bad("An Idempotency-Key has at most 255 bytes.")),
    };
    let message = Message {
        user: caller.user,
        conversation: conversation.conversation(),
        kind,
        body,
    };
    let (user, id) = (caller.user, message.conversation);
    let sent = caught_up(&app, user, id, Role::may_write, || {
        app.routed.send(message.clone(), key.as_deref())
    })
    .await?;
    let id = message_id(sent.conversation.0, sent.sender.0, sent.grant, sent.counter);
    let duplicate = sent.verdict == tidings_core::sequencer::Verdict::Duplicate;
    let answer = json!({
        "status": "sent", "conversation": to_hex16(sent.conversation.0), "message_id": to_hex32(&id),
        "seq": sent.seq, "ts": sent.ts, "duplicate": duplicate,
    });
    Ok((
        if duplicate {
            StatusCode::OK
        } else {
            StatusCode::CREATED
        },
        Json(answer),
    )
        .into_response())
}

/// How long the log may take to hear of a change of members that the directory has.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// Asks again while the directory knows more of a member than the log does: whoever has just made
/// or joined a conversation is not told that there is none.
async fn caught_up<T, F: Future<Output = Result<T, RoutedError>>>(
    app: &App,
    user: UserId,
    conversation: ConversationId,
    enough: impl Fn(Role) -> bool,
    ask: impl Fn() -> F,
) -> Answer<T> {
    let until = tokio::time::Instant::now() + HEARD_WITHIN;
    loop {
        match ask().await {
            Err(RoutedError::Forbidden) => {}
            answer => return Ok(answer?),
        }
        let member = app.directory.member(conversation, user).await?;
        let refused = !member.is_some_and(|m| enough(m.role));
        if refused || tokio::time::Instant::now() > until {
            return Err(RoutedError::Forbidden.into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[derive(Deserialize)]
pub struct Range {
    #[serde(default)]
    before: u64,
    #[serde(default)]
    after: u64,
    limit: Option<u64>,
}

/// Events of a conversation: the newest, those below `before`, or those above `after`; shown as on a WebSocket.
pub async fn list(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(conversation): Path<Hex>,
    Query(range): Query<Range>,
) -> Answer<Response> {
    let limit = range.limit.unwrap_or(50).clamp(1, limits::PAGE_MAX as u64);
    let (user, id) = (caller.user, conversation.conversation());
    let page = caught_up(
        &app,
        user,
        id,
        |role| role != Role::None,
        || app.routed.page(user, id, range.before, range.after, limit),
    )
    .await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], page).into_response())
}
