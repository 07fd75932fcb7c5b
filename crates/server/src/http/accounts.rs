//! Accounts: sign-up, sign-in, tokens, devices, other users.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tidings_core::ids::UserId;
use tidings_core::ports::directory::{PAGE_MAX, User};
use tidings_core::ports::registry::Presence;
use tidings_protocol::to_hex16;

use super::App;
use super::error::{Answer, Problem};
use super::extract::{Body, Caller, From, Hex, ids};
use crate::auth::{Tokens, names};
use crate::config::SignUp;

#[derive(Deserialize)]
pub struct SignIn {
    name: String,
    password: String,
    #[serde(default)]
    device: String,
}

fn tokens(app: &App, name: &str, tokens: Tokens) -> Value {
    let now = (app.clock)();
    json!({
        "user": to_hex16(tokens.user.0),
        "device": to_hex16(tokens.device.0),
        "name": name,
        "access_token": tokens.access,
        "expires_in": tokens.access_expires.saturating_sub(now) / 1_000_000,
        "refresh_token": tokens.refresh,
        "refresh_expires_in": tokens.refresh_expires.saturating_sub(now) / 1_000_000,
    })
}

/// Makes an account and signs in.
pub async fn register(
    State(app): State<Arc<App>>,
    From(address): From,
    Body(body): Body<SignIn>,
) -> Answer<(StatusCode, Json<Value>)> {
    match app.sign_up {
        SignUp::Open => {}
        SignUp::Loopback if address.is_loopback() => {}
        SignUp::Loopback => {
            return Err(Problem::forbidden(
                "Signing up is open to this machine only.",
            ));
        }
        SignUp::Closed => return Err(Problem::forbidden("Signing up is closed.")),
    }
    app.auth.sign_up(&body.name, &body.password, None).await?;
    let signed_in = app
        .auth
        .sign_in(address, &body.name, &body.password, None, &body.device)
        .await?;
    Ok((
        StatusCode::CREATED,
        Json(tokens(&app, &body.name, signed_in)),
    ))
}

/// Signs in with name and password.
pub async fn login(
    State(app): State<Arc<App>>,
    From(address): From,
    Body(body): Body<SignIn>,
) -> Answer<Json<Value>> {
    let signed_in = app
        .auth
        .sign_in(address, &body.name, &body.password, None, &body.device)
        .await?;
    Ok(Json(tokens(&app, &body.name, signed_in)))
}

#[derive(Deserialize)]
pub struct Refresh {
    refresh_token: String,
}

/// Gives fresh tokens for a refresh token, which is used up.
pub async fn refresh(
    State(app): State<Arc<App>>,
    Body(body): Body<Refresh>,
) -> Answer<Json<Value>> {
    let fresh = app.auth.refresh(&body.refresh_token).await?;
    let name = name_of(&app, fresh.user).await?;
    Ok(Json(tokens(&app, &name, fresh)))
}

async fn name_of(app: &App, user: UserId) -> Answer<String> {
    Ok(app
        .directory
        .users(vec![user])
        .await?
        .into_iter()
        .next()
        .map(|u| u.login.unwrap_or(u.display_name))
        .unwrap_or_default())
}

/// Ends the sign-in: its tokens and live sessions.
pub async fn logout(State(app): State<Arc<App>>, Caller(caller): Caller) -> Answer<StatusCode> {
    app.auth.sign_out(&caller).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
pub struct NewPassword {
    old: String,
    new: String,
}

/// Changes the password; every sign-in before it ends.
pub async fn change_password(
    State(app): State<Arc<App>>,
    From(address): From,
    Caller(caller): Caller,
    Body(body): Body<NewPassword>,
) -> Answer<StatusCode> {
    app.auth
        .change_password(address, caller.user, &body.old, &body.new)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A ticket for one connection in the next 30 s.
pub async fn ticket(State(app): State<Arc<App>>, Caller(caller): Caller) -> Answer<Json<Value>> {
    Ok(Json(json!({ "ticket": app.auth.issue_ticket(&caller)? })))
}

fn shown(user: &User) -> Value {
    let name = user.login.as_ref().unwrap_or(&user.display_name);
    json!({ "id": to_hex16(user.id.0), "name": name, "display_name": user.display_name })
}

/// The caller.
pub async fn me(State(app): State<Arc<App>>, Caller(caller): Caller) -> Answer<Json<Value>> {
    let user = app
        .directory
        .users(vec![caller.user])
        .await?
        .into_iter()
        .next()
        .ok_or_else(Problem::missing)?;
    let mut value = shown(&user);
    value["device"] = json!(to_hex16(caller.device.0));
    Ok(Json(value))
}

#[derive(Deserialize)]
pub struct Rename {
    display_name: String,
}

/// Changes the name shown to others.
pub async fn rename(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Body(body): Body<Rename>,
) -> Answer<StatusCode> {
    let name = names::display_name(&body.display_name)
        .ok_or_else(|| Problem::bad("The name can't be used."))?;
    app.directory.set_display_name(caller.user, name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The caller's devices.
pub async fn devices(State(app): State<Arc<App>>, Caller(caller): Caller) -> Answer<Json<Value>> {
    let devices: Vec<Value> = (app.directory.devices(caller.user).await?.iter())
        .map(|d| json!({ "id": to_hex16(d.id.0), "name": d.name, "created": d.created, "last_seen": d.last_seen }))
        .collect();
    Ok(Json(json!({ "devices": devices })))
}

/// Removes a device: its tokens and live sessions end.
pub async fn remove_device(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(device): Path<Hex>,
) -> Answer<StatusCode> {
    app.auth.remove_device(caller.user, device.device()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Blocks a user.
pub async fn block(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(user): Path<Hex>,
) -> Answer<StatusCode> {
    set_block(app, caller.user, user.user(), true).await
}

/// Unblocks a user.
pub async fn unblock(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(user): Path<Hex>,
) -> Answer<StatusCode> {
    set_block(app, caller.user, user.user(), false).await
}

/// A task of its own: a caller who hangs up may not come between the directory and the workers.
async fn set_block(
    app: Arc<App>,
    user: UserId,
    other: UserId,
    is_blocked: bool,
) -> Answer<StatusCode> {
    let done = tokio::spawn(async move {
        // One at a time, so that the workers hear of changes in the order of their commits.
        let _in_order = app.blocking.lock().await;
        app.directory.set_block(user, other, is_blocked).await?;
        app.gateways.block_changed(user, other, is_blocked);
        Ok(StatusCode::NO_CONTENT)
    });
    done.await
        .unwrap_or_else(|_| Err(Problem::unavailable(Duration::from_secs(1))))
}

#[derive(Deserialize)]
pub struct Ids {
    ids: String,
}

/// Names of users whose ids one has.
pub async fn users(
    State(app): State<Arc<App>>,
    Caller(_): Caller,
    Query(query): Query<Ids>,
) -> Answer<Json<Value>> {
    let wanted = ids(&query.ids, 100)?.into_iter().map(UserId).collect();
    let users: Vec<Value> = app
        .directory
        .users(wanted)
        .await?
        .iter()
        .map(shown)
        .collect();
    Ok(Json(json!({ "users": users })))
}

#[derive(Deserialize)]
pub struct Search {
    name: String,
}

/// A user by exact sign-in name; bounded by the hour, so that names can't be tried out.
pub async fn search(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Body(body): Body<Search>,
) -> Answer<Json<Value>> {
    app.quotas.look_up(caller.user)?;
    let found = match names::login_name(&body.name) {
        Some(name) => app
            .directory
            .user_by_login(name.key)
            .await?
            .filter(|u| !u.disabled),
        None => None,
    };
    Ok(Json(
        json!({ "users": found.iter().map(shown).collect::<Vec<_>>() }),
    ))
}

/// Who is there, of users one shares a conversation with or knows the id of.
pub async fn presence(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Query(query): Query<Ids>,
) -> Answer<Json<Value>> {
    let mut wanted: Vec<UserId> = ids(&query.ids, PAGE_MAX.min(100))?
        .into_iter()
        .map(UserId)
        .collect();
    // Whoever is blocked sees the blocker as offline.
    let hidden = app
        .directory
        .blockers_among(caller.user, wanted.clone())
        .await?;
    wanted.retain(|user| !hidden.contains(user));
    let known = app.registry.presence(wanted).await.unwrap_or_default();
    let state = |state| match state {
        Presence::Online => "online",
        Presence::Away => "away",
        Presence::Offline => "offline",
    };
    let mut users: Vec<Value> =
        known.iter().map(|p| json!({ "user": to_hex16(p.user.0), "state": state(p.state), "last_seen": p.last_seen })).collect();
    users.extend(
        hidden
            .iter()
            .map(|user| json!({ "user": to_hex16(user.0), "state": "offline", "last_seen": 0 })),
    );
    Ok(Json(json!({ "users": users })))
}
