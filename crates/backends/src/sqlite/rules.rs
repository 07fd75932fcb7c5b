//! Who may change which members: checked under the conversation's lock, in the change's own transaction.

use rusqlite::params;
use tidings_core::ids::{ConversationId, UserId};
use tidings_core::ports::directory::{ConversationRecord, DirectoryError, Refusal, What};
use tidings_core::record::{ConversationKind, Role, RoleChange};

use super::rows::{conversation, number, role, sql};
use super::tx::Tx;

/// What a user's leaving changes: the user's place, and a successor's if nobody would own the rest.
pub(super) fn departure(
    tx: &Tx<'_>,
    id: ConversationId,
    user: UserId,
    role: Role,
) -> Result<Vec<RoleChange>, DirectoryError> {
    if role == Role::None {
        return Ok(vec![]);
    }
    let mut changes = vec![RoleChange {
        user,
        role: Role::None,
    }];
    if role == Role::Owner && !has_other_owner(tx, id, user)? {
        let params = params![sql(id.0), sql(user.0)];
        let heir = tx.row(
            "select user_id from members where conversation = $1 and role >= 3 and user_id <> $2
             order by since, user_id limit 1",
            params,
            |row| number(row, 0),
        )?;
        let heir = match heir {
            Some(heir) => Some(heir),
            None => tx.row(
                "select user_id from members where conversation = $1 and user_id <> $2
                 order by role desc, since, user_id limit 1",
                params,
                |row| number(row, 0),
            )?,
        };
        changes.extend(heir.map(|heir| RoleChange {
            user: UserId(heir),
            role: Role::Owner,
        }));
    }
    Ok(changes)
}

pub(super) fn has_other_owner(
    tx: &Tx<'_>,
    id: ConversationId,
    user: UserId,
) -> Result<bool, DirectoryError> {
    tx.exists(
        "select 1 from members where conversation = $1 and role >= 3 and role = 4 and user_id <> $2",
        params![sql(id.0), sql(user.0)],
    )
}

/// Takes the conversation's row lock: versions are given out under it.
pub(super) fn lock(tx: &Tx<'_>, id: ConversationId) -> Result<ConversationRecord, DirectoryError> {
    tx.row(
        concat!(
            "update conversations as c set version = version where id = $1 returning ",
            "id, kind, title, version, join_role, created"
        ),
        [sql(id.0)],
        conversation,
    )?
    .ok_or(DirectoryError::NotFound(What::Conversation))
}

/// Who wants to change something. An operator ranks above every owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Actor {
    Member(Role),
    Operator,
}

/// The lock, for somebody who wants to change others: the conversation and who they are in it.
pub(super) fn lock_as(
    tx: &Tx<'_>,
    id: ConversationId,
    by: UserId,
) -> Result<(ConversationRecord, Actor), DirectoryError> {
    let there = lock(tx, id)?;
    let actor = if by == UserId(0) {
        Actor::Operator
    } else {
        Actor::Member(role_of(tx, id, by)?)
    };
    if actor == Actor::Member(Role::None) {
        return Err(DirectoryError::NotFound(What::Conversation));
    }
    must_have_changing_members(&there)?;
    Ok((there, actor))
}

pub(super) fn must_have_changing_members(there: &ConversationRecord) -> Result<(), DirectoryError> {
    if there.kind == ConversationKind::Direct {
        Err(DirectoryError::Refused(Refusal::Direct))
    } else {
        Ok(())
    }
}

/// An admin or above, and above whom it concerns.
pub(super) fn may_touch(actor: Actor, theirs: Role) -> Result<(), DirectoryError> {
    let allowed = actor >= Actor::Member(Role::Admin) && actor > Actor::Member(theirs);
    if allowed {
        Ok(())
    } else {
        Err(DirectoryError::Refused(Refusal::Role))
    }
}

/// A role below the actor's own; owners make owners.
pub(super) fn may_give(actor: Actor, given: Role) -> Result<(), DirectoryError> {
    if given == Role::None {
        return Err(DirectoryError::Refused(Refusal::Invalid));
    }
    let owner = actor >= Actor::Member(Role::Owner);
    let allowed = owner || (actor >= Actor::Member(Role::Admin) && actor > Actor::Member(given));
    if allowed {
        Ok(())
    } else {
        Err(DirectoryError::Refused(Refusal::Role))
    }
}

pub(super) fn must_be_welcome(
    tx: &Tx<'_>,
    id: ConversationId,
    user: UserId,
) -> Result<(), DirectoryError> {
    tx.must_be_active(user)?;
    let banned = tx.exists(
        "select 1 from bans where conversation = $1 and user_id = $2",
        params![sql(id.0), sql(user.0)],
    )?;
    if banned {
        Err(DirectoryError::Refused(Refusal::Banned))
    } else {
        Ok(())
    }
}

pub(super) fn role_of(
    tx: &Tx<'_>,
    id: ConversationId,
    user: UserId,
) -> Result<Role, DirectoryError> {
    let found = tx.row(
        "select role from members where conversation = $1 and user_id = $2",
        params![sql(id.0), sql(user.0)],
        |row| role(row, 0),
    )?;
    Ok(found.unwrap_or(Role::None))
}
