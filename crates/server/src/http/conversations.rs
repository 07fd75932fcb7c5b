//! Conversations and their members. Every change is the directory's transaction; the log makes it an event.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tidings_core::ids::{ConversationId, UserId};
use tidings_core::ports::directory::{
    Change, ConversationRecord, Member, NewConversation, TITLE_BYTES_MAX,
};
use tidings_core::record::{ConversationKind, MEMBERS_PER_EVENT_MAX, Role};
use tidings_protocol::to_hex16;

use super::App;
use super::error::{Answer, Problem};
use super::extract::{Actor, Body, Caller, Hex};

/// Members shown with each conversation of a list; more are asked for by page.
const MEMBERS_SHOWN: usize = 50;

fn kind_name(kind: ConversationKind) -> &'static str {
    match kind {
        ConversationKind::Direct => "direct",
        ConversationKind::Group => "group",
        ConversationKind::Channel => "channel",
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::None => "none",
        Role::Reader => "reader",
        Role::Member => "member",
        Role::Admin => "admin",
        Role::Owner => "owner",
    }
}

fn role_of(name: &str) -> Answer<Role> {
    let roles = [Role::Reader, Role::Member, Role::Admin, Role::Owner];
    roles
        .into_iter()
        .find(|&r| role_name(r) == name)
        .ok_or_else(|| Problem::bad("role is reader, member, admin or owner."))
}

fn shown(record: &ConversationRecord) -> Value {
    let id = to_hex16(record.id.0);
    json!({ "id": id, "conversation": id, "kind": kind_name(record.kind), "title": record.title, "version": record.version, "created": record.created })
}

#[derive(Deserialize)]
pub struct Create {
    kind: String,
    #[serde(default)]
    title: String,
    user: Option<Hex>,
    #[serde(default)]
    members: Vec<Hex>,
    creator: Option<Hex>,
    join_role: Option<String>,
}

/// Makes a conversation; a direct one is made once for each pair.
pub async fn create(
    State(app): State<Arc<App>>,
    Actor(actor): Actor,
    headers: HeaderMap,
    Body(body): Body<Create>,
) -> Answer<(StatusCode, Json<Value>)> {
    app.quotas.join(actor)?;
    let creator = match (actor, body.creator) {
        (UserId(0), Some(creator)) => creator.user(),
        (UserId(0), None) => return Err(Problem::bad("A server names the creator.")),
        (user, _) => user,
    };
    let kind = match body.kind.as_str() {
        "direct" => {
            let other = body
                .user
                .or(body.members.first().copied())
                .ok_or_else(|| Problem::bad("A direct conversation needs a user."))?;
            let opened = app.directory.create_direct(creator, other.user()).await?;
            let status = if opened.created {
                StatusCode::CREATED
            } else {
                StatusCode::OK
            };
            return Ok((status, Json(shown(&opened.conversation))));
        }
        "group" => ConversationKind::Group,
        "channel" => ConversationKind::Channel,
        _ => return Err(Problem::bad("kind is direct, group or channel.")),
    };
    if body.members.len() >= MEMBERS_PER_EVENT_MAX {
        return Err(Problem::bad(format!(
            "At most {} members at first; add the rest later.",
            MEMBERS_PER_EVENT_MAX - 1
        )));
    }
    if body.title.len() > TITLE_BYTES_MAX {
        return Err(Problem::bad(format!(
            "A title has at most {TITLE_BYTES_MAX} bytes."
        )));
    }
    let join_role = match (&body.join_role, kind) {
        (Some(name), _) if name == "none" => Role::None,
        (Some(name), _) => role_of(name)?,
        (None, ConversationKind::Channel) => Role::Reader,
        (None, _) => Role::None,
    };
    let idempotency_key = headers
        .get("idempotency-key")
        .and_then(|v| v.to_str().ok())
        .map(str::to_owned);
    let members = body
        .members
        .iter()
        .map(|m| m.user())
        .filter(|&m| m != creator)
        .collect();
    let new = NewConversation {
        kind,
        title: body.title,
        creator,
        members,
        join_role,
        idempotency_key,
    };
    let opened = app.directory.create_conversation(new).await?;
    let status = if opened.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(shown(&opened.conversation))))
}

#[derive(Deserialize)]
pub struct PageOf {
    after: Option<Hex>,
    limit: Option<usize>,
}

async fn named(app: &App, members: &[Member]) -> Answer<Vec<Value>> {
    let users = app
        .directory
        .users(members.iter().map(|m| m.user).collect())
        .await?;
    let names: HashMap<UserId, String> = users
        .into_iter()
        .map(|u| (u.id, u.login.unwrap_or(u.display_name)))
        .collect();
    let shown = members.iter().map(|m| {
        let name = names.get(&m.user).map_or("", String::as_str);
        json!({ "user": to_hex16(m.user.0), "name": name, "role": role_name(m.role) })
    });
    Ok(shown.collect())
}

/// The caller's conversations, by page.
pub async fn list(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Query(page): Query<PageOf>,
) -> Answer<Json<Value>> {
    let limit = page.limit.unwrap_or(50).clamp(1, 100);
    let after = page.after.map_or(ConversationId(0), |h| h.conversation());
    let memberships = app
        .directory
        .conversations_of(caller.user, after, limit)
        .await?;
    let next = (memberships.len() == limit)
        .then(|| memberships.last().map(|m| to_hex16(m.conversation.id.0)))
        .flatten();
    let mut conversations = Vec::with_capacity(memberships.len());
    for membership in memberships {
        let members = app
            .directory
            .members(membership.conversation.id, UserId(0), MEMBERS_SHOWN)
            .await?;
        let mut value = shown(&membership.conversation);
        value["role"] = json!(role_name(membership.role));
        value["members"] = json!(named(&app, &members).await?);
        conversations.push(value);
    }
    Ok(Json(
        json!({ "conversations": conversations, "next": next }),
    ))
}

/// Lets members, and servers, through; for everybody else the conversation isn't there.
async fn seen_by(app: &App, actor: UserId, id: ConversationId) -> Answer<Option<Member>> {
    if actor.0 == 0 {
        return Ok(None);
    }
    app.directory
        .member(id, actor)
        .await?
        .map(Some)
        .ok_or_else(Problem::missing)
}

/// One conversation.
pub async fn one(
    State(app): State<Arc<App>>,
    Actor(actor): Actor,
    Path(id): Path<Hex>,
) -> Answer<Json<Value>> {
    let member = seen_by(&app, actor, id.conversation()).await?;
    let record = app
        .directory
        .conversation(id.conversation())
        .await?
        .ok_or_else(Problem::missing)?;
    let mut value = shown(&record);
    if let Some(member) = member {
        value["role"] = json!(role_name(member.role));
    }
    let members = app
        .directory
        .members(id.conversation(), UserId(0), MEMBERS_SHOWN)
        .await?;
    value["members"] = json!(named(&app, &members).await?);
    Ok(Json(value))
}

#[derive(Deserialize)]
pub struct Rename {
    title: String,
}

/// Changes the title.
pub async fn rename(
    State(app): State<Arc<App>>,
    Actor(actor): Actor,
    Path(id): Path<Hex>,
    Body(body): Body<Rename>,
) -> Answer<StatusCode> {
    app.directory
        .set_title(id.conversation(), actor, body.title)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Members, by page in the order of their ids.
pub async fn members(
    State(app): State<Arc<App>>,
    Actor(actor): Actor,
    Path(id): Path<Hex>,
    Query(page): Query<PageOf>,
) -> Answer<Json<Value>> {
    seen_by(&app, actor, id.conversation()).await?;
    let limit = page.limit.unwrap_or(100).clamp(1, 1000);
    let after = page.after.map_or(UserId(0), |h| h.user());
    let members = app
        .directory
        .members(id.conversation(), after, limit)
        .await?;
    let next = (members.len() == limit)
        .then(|| members.last().map(|m| to_hex16(m.user.0)))
        .flatten();
    Ok(Json(
        json!({ "members": named(&app, &members).await?, "next": next }),
    ))
}

fn changed(change: Change) -> Json<Value> {
    let changes: Vec<Value> = change
        .changes
        .iter()
        .map(|c| json!({ "user": to_hex16(c.user.0), "role": role_name(c.role) }))
        .collect();
    Json(json!({ "version": change.version, "changes": changes }))
}

/// Joins an open conversation.
pub async fn join(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(id): Path<Hex>,
) -> Answer<Json<Value>> {
    app.quotas.join(caller.user)?;
    Ok(changed(
        app.directory.join(id.conversation(), caller.user).await?,
    ))
}

/// Leaves.
pub async fn leave(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(id): Path<Hex>,
) -> Answer<Json<Value>> {
    Ok(changed(
        app.directory.leave(id.conversation(), caller.user).await?,
    ))
}

#[derive(Deserialize)]
pub struct Add {
    users: Vec<Hex>,
    role: Option<String>,
}

/// Adds up to 1,000 members at once.
pub async fn add(
    State(app): State<Arc<App>>,
    Actor(actor): Actor,
    Path(id): Path<Hex>,
    Body(body): Body<Add>,
) -> Answer<Json<Value>> {
    app.quotas.join(actor)?;
    if body.users.len() > MEMBERS_PER_EVENT_MAX {
        return Err(Problem::bad(format!(
            "At most {MEMBERS_PER_EVENT_MAX} users at once."
        )));
    }
    let role = body.role.as_deref().map_or(Ok(Role::Member), role_of)?;
    let users = body.users.iter().map(|u| u.user()).collect();
    Ok(changed(
        app.directory
            .add_members(id.conversation(), actor, users, role)
            .await?,
    ))
}

/// Removes a member.
pub async fn remove(
    State(app): State<Arc<App>>,
    Actor(actor): Actor,
    Path((id, user)): Path<(Hex, Hex)>,
) -> Answer<Json<Value>> {
    Ok(changed(
        app.directory
            .remove_member(id.conversation(), actor, user.user())
            .await?,
    ))
}

#[derive(Deserialize)]
pub struct NewRole {
    role: String,
}

/// Changes a member's role.
pub async fn set_role(
    State(app): State<Arc<App>>,
    Actor(actor): Actor,
    Path((id, user)): Path<(Hex, Hex)>,
    Body(body): Body<NewRole>,
) -> Answer<Json<Value>> {
    Ok(changed(
        app.directory
            .set_role(id.conversation(), actor, user.user(), role_of(&body.role)?)
            .await?,
    ))
}

/// Bans a user: removed, and kept from joining.
pub async fn ban(
    State(app): State<Arc<App>>,
    Actor(actor): Actor,
    Path((id, user)): Path<(Hex, Hex)>,
) -> Answer<Json<Value>> {
    Ok(changed(
        app.directory
            .ban(id.conversation(), actor, user.user())
            .await?,
    ))
}

/// Lifts a ban.
pub async fn unban(
    State(app): State<Arc<App>>,
    Actor(actor): Actor,
    Path((id, user)): Path<(Hex, Hex)>,
) -> Answer<StatusCode> {
    app.directory
        .unban(id.conversation(), actor, user.user())
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
