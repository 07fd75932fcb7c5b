//! What a change of members rests on, read under the conversation's lock. The rules themselves are
//! [`tidings_core::membership`]'s.

use rusqlite::params;
use tidings_core::ids::{ConversationId, UserId};
use tidings_core::membership::{Account, Facts, Place, Request};
use tidings_core::ports::directory::{ConversationRecord, DirectoryError, What};
use tidings_core::record::Role;

use super::rows::{conversation, number, role, sql};
use super::tx::Tx;

/// Takes the conversation's lock and reads what the request's decision needs.
pub(super) fn facts(
    tx: &Tx<'_>,
    id: ConversationId,
    request: &Request,
) -> Result<Facts, DirectoryError> {
    let conversation = lock(tx, id)?;
    let people = request.people();
    let mut places = Vec::with_capacity(people.len());
    for user in people {
        places.push(Place {
            user,
            role: role_of(tx, id, user)?,
            account: account(tx, user)?,
            banned: tx.exists(
                "select 1 from bans where conversation = $1 and user_id = $2",
                params![sql(id.0), sql(user.0)],
            )?,
        });
    }
    let next_in_line = match request.leaver() {
        Some(leaver) => next_in_line(tx, id, leaver)?,
        None => None,
    };
    Ok(Facts {
        conversation,
        places,
        next_in_line,
    })
}

/// Takes the conversation's row lock: versions are given out under it.
fn lock(tx: &Tx<'_>, id: ConversationId) -> Result<ConversationRecord, DirectoryError> {
    tx.row(
        "update conversations set version = version where id = $1
         returning id, kind, title, version, join_role, created",
        [sql(id.0)],
        conversation,
    )?
    .ok_or(DirectoryError::NotFound(What::Conversation))
}

/// Admins and owners first, by their own index: the members of a large conversation aren't read.
fn next_in_line(
    tx: &Tx<'_>,
    id: ConversationId,
    leaver: UserId,
) -> Result<Option<(UserId, Role)>, DirectoryError> {
    let params = params![sql(id.0), sql(leaver.0)];
    let ranked = tx.row(
        "select user_id, role from members where conversation = $1 and role >= 3 and user_id <> $2
         order by role desc, since, user_id limit 1",
        params,
        |row| Ok((UserId(number(row, 0)?), role(row, 1)?)),
    )?;
    if ranked.is_some() {
        return Ok(ranked);
    }
    tx.row(
        "select user_id, role from members where conversation = $1 and user_id <> $2
         order by role desc, since, user_id limit 1",
        params,
        |row| Ok((UserId(number(row, 0)?), role(row, 1)?)),
    )
}

/// The state of a user's account.
pub(super) fn account(tx: &Tx<'_>, user: UserId) -> Result<Account, DirectoryError> {
    let found = tx.row(
        "select disabled from users where id = $1",
        [sql(user.0)],
        |row| row.get::<_, i64>(0),
    )?;
    Ok(match found {
        None => Account::Unknown,
        Some(0) => Account::Open,
        Some(_) => Account::Shut,
    })
}

fn role_of(tx: &Tx<'_>, id: ConversationId, user: UserId) -> Result<Role, DirectoryError> {
    let found = tx.row(
        "select role from members where conversation = $1 and user_id = $2",
        params![sql(id.0), sql(user.0)],
        |row| role(row, 0),
    )?;
    Ok(found.unwrap_or(Role::None))
}
