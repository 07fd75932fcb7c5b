//! Conversations, members and the outbox in SQL.
//!
//! Every change goes the same way: lock the row, check who may, change the member rows,
//! then [`record_change`] counts the version and queues the log's record.

use bytes::Bytes;
use rusqlite::params;
use tidings_core::ids::{ConversationId, UserId};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::directory::{
    Answer, Change, ConversationRecord, Conversations, DirectoryError, Member, Membership,
    NewConversation, Opened, OutboxEntry, Refusal, TITLE_BYTES_MAX, What,
};
use tidings_core::record::{self, Content, MEMBERS_PER_EVENT_MAX, Record, Role, RoleChange};

use super::SqliteDirectory;
use super::founding::{create, create_direct};
use super::rows::{behind, conversation, conversation_columns, number, page, role, sql};
use super::rules::{
    departure, has_other_owner, lock, lock_as, may_give, may_touch, must_be_welcome,
    must_have_changing_members, role_of,
};
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

/// Counts the version, changes the member rows and queues the record; without changes does nothing.
pub(super) fn record_change(
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

pub(super) fn find(
    tx: &Tx<'_>,
    id: ConversationId,
) -> Result<Option<ConversationRecord>, DirectoryError> {
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

pub(super) fn check_title(title: &str) -> Result<(), DirectoryError> {
    if title.len() > TITLE_BYTES_MAX {
        Err(DirectoryError::Refused(Refusal::Invalid))
    } else {
        Ok(())
    }
}

pub(super) fn sorted(mut users: Vec<UserId>) -> Vec<UserId> {
    users.sort_unstable();
    users.dedup();
    users
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
