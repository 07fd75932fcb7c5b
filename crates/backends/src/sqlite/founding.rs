//! The creation of conversations: one transaction that is version 1.

use rusqlite::params;
use tidings_core::ids::{ConversationId, UserId};
use tidings_core::membership::{self, Founding};
use tidings_core::ports::directory::{
    ConversationRecord, DirectoryError, NewConversation, Opened, Refusal, What, direct_conversation,
};
use tidings_core::record::RoleChange;

use super::conversations::{find, record_change};
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
            let user = |column| {
                let id = row.get::<_, Option<i64>>(column)?;
                Ok::<_, rusqlite::Error>(id.map(|id| UserId(id as u64)))
            };
            Ok((conversation(row)?, user(6)?, user(7)?))
        },
    )?;
    if let Some((there, low, high)) = there {
        membership::must_be_pairs(pair, low, high)?;
        return Ok(Opened {
            conversation: there,
            created: false,
        });
    }
    tx.must_be_active(other)?;
    let (new, founders) = membership::direct(pair, tx.now);
    insert_conversation(tx, &new, Some((pair.low, pair.high)))?;
    found_with(tx, new, by, founders)
}

pub(super) fn create(tx: &Tx<'_>, new: NewConversation) -> Result<Opened, DirectoryError> {
    let founding = Founding::of(new)?;
    tx.must_be_active(founding.creator)?;
    if let Some(key) = &founding.key {
        let earlier = tx.row(
            "select conversation, fingerprint from creations where creator = $1 and key = $2",
            params![sql(founding.creator.0), key],
            |row| Ok((ConversationId(number(row, 0)?), row.get::<_, Vec<u8>>(1)?)),
        )?;
        if let Some((id, fingerprint)) = earlier {
            founding.must_be_repeat(&fingerprint)?;
            let conversation = find(tx, id)?.ok_or(DirectoryError::NotFound(What::Conversation))?;
            return Ok(Opened {
                conversation,
                created: false,
            });
        }
    }
    for user in &founding.others {
        tx.must_be_active(*user)?;
    }
    let (record, founders) = founding.begin(ConversationId(tx.id()), tx.now);
    insert_conversation(tx, &record, None)?;
    if let Some(key) = &founding.key {
        tx.execute(
            "insert into creations (creator, key, fingerprint, conversation) values ($1, $2, $3, $4)",
            params![sql(founding.creator.0), key, founding.fingerprint, sql(record.id.0)],
        )?;
    }
    found_with(tx, record, founding.creator, founders)
}

/// Version 1: the founders become members, and the log is told.
fn found_with(
    tx: &Tx<'_>,
    mut record: ConversationRecord,
    by: UserId,
    founders: Vec<RoleChange>,
) -> Result<Opened, DirectoryError> {
    record.version = record_change(tx, &record, by, founders)?.version;
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
