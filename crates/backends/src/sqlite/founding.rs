//! The creation of conversations: one transaction that is version 1.

use rusqlite::params;
use sha2::{Digest, Sha256};
use tidings_core::ids::{ConversationId, UserId};
use tidings_core::ports::directory::{
    ConversationRecord, DirectoryError, NewConversation, Opened, Refusal, What, direct_conversation,
};
use tidings_core::record::{ConversationKind, MEMBERS_PER_EVENT_MAX, Role, RoleChange};

use super::conversations::{check_title, find, record_change, sorted};
use super::rows::{conversation, conversation_columns, number, sql};
use super::tx::Tx;

pub(super) fn create_direct(
    tx: &Tx<'_>,
    by: UserId,
    other: UserId,
) -> Result<Opened, DirectoryError> {
    if by == other {
        return Err(DirectoryError::Refused(Refusal::Invalid));
    }
    let pair = direct_conversation(by, other);
    tx.must_be_active(by)?;
    let there = tx.row(
        concat!(
            "select ",
            conversation_columns!(),
            ", c.low, c.high from conversations c where c.id = $1"
        ),
        [sql(pair.conversation.0)],
        |row| {
            Ok((
                conversation(row)?,
                row.get::<_, Option<i64>>(6)?,
                row.get::<_, Option<i64>>(7)?,
            ))
        },
    )?;
    if let Some((there, low, high)) = there {
        if (low, high) != (Some(sql(pair.low.0)), Some(sql(pair.high.0))) {
            return Err(DirectoryError::Conflict(What::DirectId));
        }
        return Ok(Opened {
            conversation: there,
            created: false,
        });
    }
    tx.must_be_active(other)?;
    let new = ConversationRecord {
        id: pair.conversation,
        kind: ConversationKind::Direct,
        title: String::new(),
        version: 0,
        join_role: Role::None,
        created: tx.now,
    };
    insert_conversation(tx, &new, Some((pair.low, pair.high)))?;
    let founders = [pair.low, pair.high].map(|user| RoleChange {
        user,
        role: Role::Member,
    });
    found_with(tx, new, by, founders.to_vec())
}

pub(super) fn create(tx: &Tx<'_>, new: NewConversation) -> Result<Opened, DirectoryError> {
    check_title(&new.title)?;
    let key_is_long = new
        .idempotency_key
        .as_ref()
        .is_some_and(|key| key.len() > 128);
    if new.kind == ConversationKind::Direct || new.join_role >= Role::Admin || key_is_long {
        return Err(DirectoryError::Refused(Refusal::Invalid));
    }
    let mut others = sorted(new.members);
    others.retain(|user| *user != new.creator);
    if others.len() >= MEMBERS_PER_EVENT_MAX {
        return Err(DirectoryError::Refused(Refusal::TooMany(
            MEMBERS_PER_EVENT_MAX,
        )));
    }
    tx.must_be_active(new.creator)?;
    let fingerprint = fingerprint(new.kind, &new.title, new.join_role, &others);
    if let Some(key) = &new.idempotency_key {
        let earlier = tx.row(
            "select conversation, fingerprint from creations where creator = $1 and key = $2",
            params![sql(new.creator.0), key],
            |row| Ok((ConversationId(number(row, 0)?), row.get::<_, Vec<u8>>(1)?)),
        )?;
        if let Some((id, of)) = earlier {
            if of != fingerprint {
                return Err(DirectoryError::Conflict(What::IdempotencyKey));
            }
            let conversation = find(tx, id)?.ok_or(DirectoryError::NotFound(What::Conversation))?;
            return Ok(Opened {
                conversation,
                created: false,
            });
        }
    }
    let mut founders = vec![RoleChange {
        user: new.creator,
        role: Role::Owner,
    }];
    for user in others {
        tx.must_be_active(user)?;
        founders.push(RoleChange {
            user,
            role: Role::Member,
        });
    }
    let record = ConversationRecord {
        id: ConversationId(tx.id()),
        kind: new.kind,
        title: new.title,
        version: 0,
        join_role: new.join_role,
        created: tx.now,
    };
    insert_conversation(tx, &record, None)?;
    if let Some(key) = new.idempotency_key {
        tx.execute(
            "insert into creations (creator, key, fingerprint, conversation) values ($1, $2, $3, $4)",
            params![sql(new.creator.0), key, fingerprint, sql(record.id.0)],
        )?;
    }
    found_with(tx, record, new.creator, founders)
}

/// Version 1: the founders become members, and the log is told.
fn found_with(
    tx: &Tx<'_>,
    mut record: ConversationRecord,
    by: UserId,
    founders: Vec<RoleChange>,
) -> Result<Opened, DirectoryError> {
    record.version = record_change(tx, record.clone(), by, founders)?.version;
    Ok(Opened {
        conversation: record,
        created: true,
    })
}

fn insert_conversation(
    tx: &Tx<'_>,
    new: &ConversationRecord,
    pair: Option<(UserId, UserId)>,
) -> Result<(), DirectoryError> {
    tx.execute(
        "insert into conversations (id, kind, title, version, join_role, low, high, created)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
        params![
            sql(new.id.0),
            new.kind as i64,
            new.title,
            sql(new.version),
            new.join_role as i64,
            pair.map(|(low, _)| sql(low.0)),
            pair.map(|(_, high)| sql(high.0)),
            sql(new.created),
        ],
    )?;
    Ok(())
}

/// What makes two creations the same request.
fn fingerprint(kind: ConversationKind, title: &str, join_role: Role, others: &[UserId]) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update([kind as u8, join_role as u8]);
    hash.update((title.len() as u64).to_be_bytes());
    hash.update(title.as_bytes());
    for user in others {
        hash.update(user.0.to_be_bytes());
    }
    hash.finalize().to_vec()
}
