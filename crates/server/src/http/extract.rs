//! What handlers take out of a request: who is speaking, ids, JSON bodies.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tidings_core::ids::{ConversationId, DeviceId, UserId};

use super::App;
use super::adopt::Peer;
use super::error::Problem;
use crate::auth::{ApiPrincipal, Principal, Verdict};

/// A signed-in user.
pub struct Caller(pub Principal);

/// A signed-in user, or a server that acts as the operator (`UserId(0)`).
pub struct Actor(pub UserId);

/// A server with an API key.
pub struct Server(#[allow(dead_code)] pub ApiPrincipal);

/// The address the request came from.
pub struct From(pub IpAddr);

fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let value = headers
        .get(header::AUTHORIZATION)
        .ok_or_else(|| Problem::unauthorized("Send Authorization: Bearer and a token."))?;
    value
        .to_str()
        .ok()
        .and_then(|v| v.strip_prefix("Bearer "))
        .ok_or_else(|| Problem::unauthorized("Authorization must be Bearer and a token."))
}

async fn principal(parts: &Parts, app: &App) -> Result<Principal, Problem> {
    let token = bearer(&parts.headers)?;
    Ok(match app.auth.verify(token, "")? {
        Verdict::Known(principal) => principal,
        Verdict::Unknown => app.auth.verify_first(token, "").await?,
    })
}

async fn server(parts: &Parts, app: &App) -> Result<ApiPrincipal, Problem> {
    Ok(app.auth.verify_api_key(bearer(&parts.headers)?).await?)
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        principal(parts, app).await.map(Caller)
    }
}

impl FromRequestParts<Arc<App>> for Server {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        server(parts, app).await.map(Server)
    }
}

impl FromRequestParts<Arc<App>> for Actor {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        if bearer(&parts.headers)?.starts_with("tak_") {
            return server(parts, app).await.map(|_| Actor(UserId(0)));
        }
        principal(parts, app).await.map(|p| Actor(p.user))
    }
}

impl<S: Sync> FromRequestParts<S> for From {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // Always there: every connection is adopted with its peer.
        parts
            .extensions
            .get::<Peer>()
            .map(|peer| From(peer.0.ip()))
            .ok_or_else(|| Problem::bad("The connection has no address."))
    }
}

/// A JSON body. Errors say where; the content type must be JSON, so that a form of another
/// site can't make one.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .is_some_and(|v| v.starts_with("application/json"));
        if !json {
            return Err(Problem::bad("Content-Type must be application/json."));
        }
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|_| Problem::bad("The body can't be read or is too large."))?;
        serde_json::from_slice(&bytes)
            .map(Body)
            .map_err(|error| Problem::bad(format!("The body is not as documented: {error}.")))
    }
}

/// An id in a path, query or body: 16 hexadecimal digits.
#[derive(Clone, Copy)]
pub struct Hex(pub u64);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        tidings_protocol::parse_hex16(&text)
            .map(Hex)
            .ok_or_else(|| serde::de::Error::custom("an id has 16 hexadecimal digits"))
    }
}

impl Hex {
    /// As a user.
    pub fn user(self) -> UserId {
        UserId(self.0)
    }
    /// As a conversation.
    pub fn conversation(self) -> ConversationId {
        ConversationId(self.0)
    }
    /// As a device.
    pub fn device(self) -> DeviceId {
        DeviceId(self.0)
    }
}

/// Ids in a query, separated by commas, at most `max`.
pub fn ids(list: &str, max: usize) -> Result<Vec<u64>, Problem> {
    let ids: Option<Vec<u64>> = list
        .split(',')
        .filter(|t| !t.is_empty())
        .map(tidings_protocol::parse_hex16)
        .collect();
    let ids = ids
        .ok_or_else(|| Problem::bad("ids are 16 hexadecimal digits each, separated by commas."))?;
    if ids.len() > max {
        return Err(Problem::bad(format!("At most {max} ids at once.")));
    }
    Ok(ids)
}
