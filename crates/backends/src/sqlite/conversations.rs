//! Conversations, members and the outbox in SQL.
//!
//! Every change goes the same way: lock the row, check who may, change the member rows,
//! then [`record_change`] counts the version and queues the log's record.

use bytes::Bytes;
use rusqlite::params;
use sha2::{Digest, Sha256};
use tidings_core::ids::{ConversationId, UserId};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::directory::{
    Answer, Change, ConversationRecord, Conversations, DirectoryError, Member, Membership,
    NewConversation, Opened, OutboxEntry, Refusal, TITLE_BYTES_MAX, What, direct_conversation,
};
use tidings_core::record::{
    self, Content, ConversationKind, MEMBERS_PER_EVENT_MAX, Record, Role, RoleChange,
};

use super::SqliteDirectory;
use super::rows::{behind, conversation, conversation_columns, number, page, role, sql};
use super::tx::Tx;

impl Conversations for SqliteDirectory {
    fn create_direct(&self, by: UserId, other: UserId) -> Answer<'_, Opened> {
        self.threads.write(move |tx| create_direct(tx, by, other))
    }

    fn create_conversation(&self, new: NewConversation) -> Answer<'_, Opened> {
        self.threads.write(move |tx| create(tx, new))
    }

    fn set_title(&self, id: ConversationId, by: UserId, title: String) -> Answer<'_, ()> {
        self.threads.write(move |tx| {
            check_title(&title)?;
            let (_, actor) = lock_as(tx, id, by)?;
            may_touch(actor, Role::None)?;
            tx.execute(
                "update conversations set title = $1 where id = $2",
                params![title, sql(id.0)],
            )?;
            Ok(())
        })
    }

    fn join(&self, id: ConversationId, user: UserId) -> Answer<'_, Change> {
        self.threads.write(move |tx| {
            let there = lock(tx, id)?;
            if role_of(tx, id, user)? != Role::None {
                return Ok(unchanged(&there));
            }
            if there.join_role == Role::None {
                return Err(DirectoryError::NotFound(What::Conversation));
            }
            must_be_welcome(tx, id, user)?;
            record_change(
                tx,
                there.clone(),
                user,
                vec![RoleChange {
                    user,
                    role: there.join_role,
                }],
            )
        })
    }

    fn leave(&self, id: ConversationId, user: UserId) -> Answer<'_, Change> {
        self.threads.write(move |tx| {
            let there = lock(tx, id)?;
            let own = role_of(tx, id, user)?;
            if own == Role::None {
                return Err(DirectoryError::NotFound(What::Conversation));
            }
            must_have_changing_members(&there)?;
            let changes = departure(tx, id, user, own)?;
            record_change(tx, there, user, changes)
        })
    }

    fn add_members(
        &self,
        id: ConversationId,
        by: UserId,
        users: Vec<UserId>,
        given: Role,
    ) -> Answer<'_, Change> {
        self.threads.write(move |tx| {
            if users.len() > MEMBERS_PER_EVENT_MAX {
                return Err(DirectoryError::Refused(Refusal::TooMany(
                    MEMBERS_PER_EVENT_MAX,
                )));
            }
            let (there, actor) = lock_as(tx, id, by)?;
            may_give(actor, given)?;
            let mut changes: Vec<RoleChange> = Vec::new();
            for user in sorted(users) {
                if role_of(tx, id, user)? == Role::None {
                    must_be_welcome(tx, id, user)?;
                    changes.push(RoleChange { user, role: given });
                }
            }
            record_change(tx, there, by, changes)
        })
    }

    fn remove_member(&self, id: ConversationId, by: UserId, user: UserId) -> Answer<'_, Change> {
        self.threads.write(move |tx| {
            let (there, actor) = lock_as(tx, id, by)?;
            let theirs = role_of(tx, id, user)?;
            may_touch(actor, theirs)?;
            let changes = departure(tx, id, user, theirs)?;
            record_change(tx, there, by, changes)
        })
    }

    fn set_role(
        &self,
        id: ConversationId,
        by: UserId,
        user: UserId,
        given: Role,
    ) -> Answer<'_, Change> {
        self.threads.write(move |tx| {
            let (there, actor) = lock_as(tx, id, by)?;
            let theirs = role_of(tx, id, user)?;
            if theirs == Role::None {
                return Err(DirectoryError::NotFound(What::Member));
            }
            let stepping_down = by == user && given <= theirs && given != Role::None;
            if !stepping_down {
                may_touch(actor, theirs)?;
                may_give(actor, given)?;
            }
            if theirs == Role::Owner && given != Role::Owner && !has_other_owner(tx, id, user)? {
                return Err(DirectoryError::Refused(Refusal::LastOwner));
            }
            let changes = if theirs == given {
                vec![]
            } else {
                vec![RoleChange { user, role: given }]
            };
            record_change(tx, there, by, changes)
        })
    }

    fn ban(&self, id: ConversationId, by: UserId, user: UserId) -> Answer<'_, Change> {
        self.threads.write(move |tx| {
            let (there, actor) = lock_as(tx, id, by)?;
            let theirs = role_of(tx, id, user)?;
            may_touch(actor, theirs)?;
            if !tx.exists("select 1 from users where id = $1", [sql(user.0)])? {
                return Err(DirectoryError::NotFound(What::User));
            }
            tx.execute(
                "insert into bans (conversation, user_id) values ($1, $2) on conflict do nothing",
                params![sql(id.0), sql(user.0)],
            )?;
            let changes = departure(tx, id, user, theirs)?;
            record_change(tx, there, by, changes)
        })
    }

    fn unban(&self, id: ConversationId, by: UserId, user: UserId) -> Answer<'_, ()> {
        self.threads.write(move |tx| {
            let (_, actor) = lock_as(tx, id, by)?;
            may_touch(actor, Role::None)?;
            tx.execute(
                "delete from bans where conversation = $1 and user_id = $2",
                params![sql(id.0), sql(user.0)],
            )?;
            Ok(())
        })
    }

    fn conversation(&self, id: ConversationId) -> Answer<'_, Option<ConversationRecord>> {
        self.threads.read(move |tx| find(tx, id))
    }

    fn conversations_of(
        &self,
        user: UserId,
        after: ConversationId,
        limit: usize,
    ) -> Answer<'_, Vec<Membership>> {
        self.threads.read(move |tx| {
            tx.rows(
                concat!(
                    "select ",
                    conversation_columns!(),
                    ", m.role, m.since from members m join conversations c on c.id = m.conversation
                     where m.user_id = $1 and m.conversation > $2 order by m.conversation limit $3"
                ),
                params![sql(user.0), behind(after.0), page(limit)],
                |row| {
                    Ok(Membership {
                        conversation: conversation(row)?,
                        role: role(row, 6)?,
                        since: number(row, 7)?,
                    })
                },
            )
        })
    }

    fn open_conversations(
        &self,
        after: ConversationId,
        limit: usize,
    ) -> Answer<'_, Vec<ConversationRecord>> {
        self.threads.read(move |tx| {
            tx.rows(
                concat!(
                    "select ",
                    conversation_columns!(),
                    " from conversations c where c.join_role > 0 and c.id > $1 order by c.id limit $2"
                ),
                params![behind(after.0), page(limit)],
                conversation,
            )
        })
    }

    fn members(&self, id: ConversationId, after: UserId, limit: usize) -> Answer<'_, Vec<Member>> {
        self.threads.read(move |tx| {
            tx.rows(
                "select user_id, role, since from members where conversation = $1 and user_id > $2
                 order by user_id limit $3",
                params![sql(id.0), behind(after.0), page(limit)],
                |row| {
                    Ok(Member {
                        user: UserId(number(row, 0)?),
                        role: role(row, 1)?,
                        since: number(row, 2)?,
                    })
                },
            )
        })
    }

    fn member(&self, id: ConversationId, user: UserId) -> Answer<'_, Option<Member>> {
        self.threads.read(move |tx| {
            tx.row(
                "select role, since from members where conversation = $1 and user_id = $2",
                params![sql(id.0), sql(user.0)],
                |row| {
                    Ok(Member {
                        user,
                        role: role(row, 0)?,
                        since: number(row, 1)?,
                    })
                },
            )
        })
    }

    fn outbox_pending(&self, limit: usize) -> Answer<'_, Vec<OutboxEntry>> {
        self.threads.read(move |tx| {
            let payloads = tx.rows(
                "select record from outbox order by queued, conversation, version limit $1",
                [page(limit)],
                |row| row.get::<_, Vec<u8>>(0),
            )?;
            payloads
                .into_iter()
                .map(|payload| outbox_entry(Bytes::from(payload)))
                .collect()
        })
    }

    fn outbox_done(&self, id: ConversationId, version: u64) -> Answer<'_, ()> {
        self.threads.write(move |tx| {
            tx.execute(
                "delete from outbox where conversation = $1 and version <= $2",
                params![sql(id.0), behind(version)],
            )?;
            Ok(())
        })
    }

    fn outbox_wait(&self) -> BoxFuture<'_, ()> {
        self.threads.outbox_wait()
    }
}

fn create_direct(tx: &Tx<'_>, by: UserId, other: UserId) -> Result<Opened, DirectoryError> {
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

fn create(tx: &Tx<'_>, new: NewConversation) -> Result<Opened, DirectoryError> {
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

/// Counts the version, changes the member rows and queues the record; without changes does nothing.
fn record_change(
    tx: &Tx<'_>,
    there: ConversationRecord,
    by: UserId,
    changes: Vec<RoleChange>,
) -> Result<Change, DirectoryError> {
    if changes.is_empty() {
        return Ok(unchanged(&there));
    }
    let id = sql(there.id.0);
    let version = there.version + 1;
    tx.execute(
        "update conversations set version = $1 where id = $2",
        params![sql(version), id],
    )?;
    for change in &changes {
        let user = sql(change.user.0);
        if change.role == Role::None {
            tx.execute(
                "delete from members where conversation = $1 and user_id = $2",
                params![id, user],
            )?;
        } else {
            tx.execute(
                "insert into members (conversation, user_id, role, since) values ($1, $2, $3, $4)
                 on conflict (conversation, user_id) do update set role = excluded.role",
                params![id, user, change.role as i64, sql(version)],
            )?;
        }
    }
    // A clock set back must not put this before the same conversation's pending changes.
    let last = tx.row(
        "select queued from outbox where conversation = $1 order by version desc limit 1",
        [id],
        |row| number(row, 0),
    )?;
    let queued = last.map_or(tx.now, |last| tx.now.max(last));
    let content = Content::Membership(record::Membership {
        version,
        by,
        changes: changes.clone(),
        kind: there.kind,
        title: there.title,
    });
    let mut payload = Vec::new();
    Record {
        conversation: there.id,
        content,
    }
    .encode(&mut payload);
    tx.execute(
        "insert into outbox (conversation, version, queued, record) values ($1, $2, $3, $4)",
        params![id, sql(version), sql(queued), payload],
    )?;
    tx.mark_members_changed();
    Ok(Change { version, changes })
}

/// What a user's leaving changes: the user's place, and a successor's if nobody would own the rest.
fn departure(
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

fn has_other_owner(tx: &Tx<'_>, id: ConversationId, user: UserId) -> Result<bool, DirectoryError> {
    tx.exists(
        "select 1 from members where conversation = $1 and role >= 3 and role = 4 and user_id <> $2",
        params![sql(id.0), sql(user.0)],
    )
}

/// Takes the conversation's row lock: versions are given out under it.
fn lock(tx: &Tx<'_>, id: ConversationId) -> Result<ConversationRecord, DirectoryError> {
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
enum Actor {
    Member(Role),
    Operator,
}

/// The lock, for somebody who wants to change others: the conversation and who they are in it.
fn lock_as(
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

fn must_have_changing_members(there: &ConversationRecord) -> Result<(), DirectoryError> {
    if there.kind == ConversationKind::Direct {
        Err(DirectoryError::Refused(Refusal::Direct))
    } else {
        Ok(())
    }
}

/// An admin or above, and above whom it concerns.
fn may_touch(actor: Actor, theirs: Role) -> Result<(), DirectoryError> {
    let allowed = actor >= Actor::Member(Role::Admin) && actor > Actor::Member(theirs);
    if allowed {
        Ok(())
    } else {
        Err(DirectoryError::Refused(Refusal::Role))
    }
}

/// A role below the actor's own; owners make owners.
fn may_give(actor: Actor, given: Role) -> Result<(), DirectoryError> {
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

fn must_be_welcome(tx: &Tx<'_>, id: ConversationId, user: UserId) -> Result<(), DirectoryError> {
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

fn role_of(tx: &Tx<'_>, id: ConversationId, user: UserId) -> Result<Role, DirectoryError> {
    let found = tx.row(
        "select role from members where conversation = $1 and user_id = $2",
        params![sql(id.0), sql(user.0)],
        |row| role(row, 0),
    )?;
    Ok(found.unwrap_or(Role::None))
}

fn find(tx: &Tx<'_>, id: ConversationId) -> Result<Option<ConversationRecord>, DirectoryError> {
    tx.row(
        concat!(
            "select ",
            conversation_columns!(),
            " from conversations c where c.id = $1"
        ),
        [sql(id.0)],
        conversation,
    )
}

fn unchanged(there: &ConversationRecord) -> Change {
    Change {
        version: there.version,
        changes: vec![],
    }
}

fn check_title(title: &str) -> Result<(), DirectoryError> {
    if title.len() > TITLE_BYTES_MAX {
        Err(DirectoryError::Refused(Refusal::Invalid))
    } else {
        Ok(())
    }
}

fn sorted(mut users: Vec<UserId>) -> Vec<UserId> {
    users.sort_unstable();
    users.dedup();
    users
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

fn outbox_entry(payload: Bytes) -> Result<OutboxEntry, DirectoryError> {
    match Record::decode(&payload) {
        Ok(Record {
            conversation,
            content: Content::Membership(change),
        }) => Ok(OutboxEntry {
            conversation,
            change,
        }),
        _ => Err(DirectoryError::Corrupt(
            "an outbox row holds no membership record".into(),
        )),
    }
}
