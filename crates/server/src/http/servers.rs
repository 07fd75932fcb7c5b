//! What a customer's own backend may do with an API key.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tidings_core::ids::UserId;
use tidings_core::ports::directory::{BULK_USERS_MAX, ExternalSubject, NewUser, RevocationSubject};
use tidings_protocol::to_hex16;

use super::App;
use super::error::{Answer, Problem};
use super::extract::{Body, Hex, Server};
use crate::auth::names;

#[derive(Deserialize)]
pub struct NewUsers {
    users: Vec<One>,
}

/// A user without a password, or the one a token's issuer and subject stand for.
#[derive(Deserialize)]
struct One {
    #[serde(default)]
    display_name: String,
    issuer: Option<String>,
    subject: Option<String>,
}

/// Makes users; those with issuer and subject are made once.
pub async fn create_users(
    State(app): State<Arc<App>>,
    _: Server,
    Body(body): Body<NewUsers>,
) -> Answer<(StatusCode, Json<Value>)> {
    if body.users.len() > BULK_USERS_MAX {
        return Err(Problem::bad(format!(
            "At most {BULK_USERS_MAX} users at once."
        )));
    }
    let mut made: Vec<Option<UserId>> = vec![None; body.users.len()];
    let (mut places, mut plain, mut external) = (Vec::new(), Vec::new(), Vec::new());
    for (place, user) in body.users.into_iter().enumerate() {
        let display_name = names::display_name(&user.display_name).unwrap_or_default();
        match (user.issuer, user.subject) {
            (Some(issuer), Some(subject)) => {
                external.push((place, ExternalSubject { issuer, subject }, display_name))
            }
            (None, None) => {
                places.push(place);
                plain.push(NewUser {
                    login: None,
                    display_name,
                    password: None,
                });
            }
            _ => return Err(Problem::bad("issuer and subject belong together.")),
        }
    }
    for (place, result) in places
        .into_iter()
        .zip(app.directory.create_users(plain).await?)
    {
        made[place] = Some(result?);
    }
    // Queued together, so that the directory commits them together.
    let calls = external.into_iter().map(|(place, subject, name)| {
        let app = app.clone();
        async move {
            app.directory
                .user_of_subject(subject, name)
                .await
                .map(|user| (place, user.id))
        }
    });
    for result in futures_util::future::join_all(calls).await {
        let (place, user) = result?;
        made[place] = Some(user);
    }
    let ids: Vec<String> = made
        .into_iter()
        .flatten()
        .map(|user| to_hex16(user.0))
        .collect();
    Ok((StatusCode::CREATED, Json(json!({ "users": ids }))))
}

#[derive(Deserialize)]
pub struct TokensFor {
    user: Option<Hex>,
    #[serde(default)]
    users: Vec<Hex>,
    #[serde(default)]
    device: String,
}

/// Signs users in without a password: an access token each.
pub async fn tokens(
    State(app): State<Arc<App>>,
    _: Server,
    Body(body): Body<TokensFor>,
) -> Answer<Json<Value>> {
    if body.users.len() > BULK_USERS_MAX {
        return Err(Problem::bad(format!(
            "At most {BULK_USERS_MAX} users at once."
        )));
    }
    let now = (app.clock)();
    let calls = body
        .user
        .iter()
        .chain(&body.users)
        .map(|user| app.auth.sign_in_as(user.user(), &body.device));
    let mut issued = Vec::new();
    for result in futures_util::future::join_all(calls).await {
        let tokens = result?;
        issued.push(json!({
            "user": to_hex16(tokens.user.0),
            "access_token": tokens.access,
            "expires_in": tokens.access_expires.saturating_sub(now) / 1_000_000,
            "refresh_token": tokens.refresh,
        }));
    }
    match body.user {
        Some(_) if body.users.is_empty() => issued.pop().map(Json).ok_or_else(Problem::missing),
        _ => Ok(Json(json!({ "tokens": issued }))),
    }
}

/// Ends all of a user's sign-ins and live sessions.
pub async fn revoke(
    State(app): State<Arc<App>>,
    _: Server,
    Path(user): Path<Hex>,
) -> Answer<StatusCode> {
    app.auth
        .revoke(RevocationSubject::User(user.user()))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Shuts an account.
pub async fn disable(
    State(app): State<Arc<App>>,
    _: Server,
    Path(user): Path<Hex>,
) -> Answer<StatusCode> {
    app.auth.set_disabled(user.user(), true).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Opens a shut account.
pub async fn enable(
    State(app): State<Arc<App>>,
    _: Server,
    Path(user): Path<Hex>,
) -> Answer<StatusCode> {
    app.auth.set_disabled(user.user(), false).await?;
    Ok(StatusCode::NO_CONTENT)
}
