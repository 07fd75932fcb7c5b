//! Conversations, members and the outbox in SQL.
//!
//! Every change goes the same way: [`facts`] locks the row and reads, the core's rules judge, and
//! [`record_change`] counts the version, changes the member rows and queues the log's record.

use bytes::Bytes;
use rusqlite::params;
use tidings_core::ids::{ConversationId, UserId};
use tidings_core::membership::{Request, next_version, outbox_entry, unchanged};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::directory::{
    Answer, Change, ConversationRecord, Conversations, DirectoryError, Lists, Member, Membership,
    NewConversation, Opened, OutboxEntry, PAGE_MAX,
};
use tidings_core::record::{Role, RoleChange};

use super::SqliteDirectory;
use super::founding::{create, create_direct};
use super::rows::{behind, conversation, conversation_columns, number, page, role, sql};
use super::rules::facts;
use super::tx::Tx;

impl Conversations for SqliteDirectory {
    fn create_direct(&self, by: UserId, other: UserId) -> Answer<'_, Opened> {
        self.threads.write(move |tx| create_direct(tx, by, other))
    }

    fn create_conversation(&self, new: NewConversation) -> Answer<'_, Opened> {
        self.threads.write(move |tx| create(tx, new))
    }

    fn set_title(&self, id: ConversationId, by: UserId, title: String) -> Answer<'_, ()> {
        self.threads
            .write(move |tx| change(tx, id, &Request::SetTitle { by, title }).map(drop))
    }

    fn join(&self, id: ConversationId, user: UserId) -> Answer<'_, Change> {
        self.threads
            .write(move |tx| change(tx, id, &Request::Join { user }))
    }

    fn leave(&self, id: ConversationId, user: UserId) -> Answer<'_, Change> {
        self.threads
            .write(move |tx| change(tx, id, &Request::Leave { user }))
    }

    fn add_members(
        &self,
        id: ConversationId,
        by: UserId,
        users: Vec<UserId>,
        role: Role,
    ) -> Answer<'_, Change> {
        self.threads
            .write(move |tx| change(tx, id, &Request::Add { by, users, role }))
    }

    fn remove_member(&self, id: ConversationId, by: UserId, user: UserId) -> Answer<'_, Change> {
        self.threads
            .write(move |tx| change(tx, id, &Request::Remove { by, user }))
    }

    fn set_role(
        &self,
        id: ConversationId,
        by: UserId,
        user: UserId,
        role: Role,
    ) -> Answer<'_, Change> {
        self.threads
            .write(move |tx| change(tx, id, &Request::SetRole { by, user, role }))
    }

    fn ban(&self, id: ConversationId, by: UserId, user: UserId) -> Answer<'_, Change> {
        self.threads
            .write(move |tx| change(tx, id, &Request::Ban { by, user }))
    }

    fn unban(&self, id: ConversationId, by: UserId, user: UserId) -> Answer<'_, ()> {
        self.threads
            .write(move |tx| change(tx, id, &Request::Unban { by, user }).map(drop))
    }

    fn conversation(&self, id: ConversationId) -> Answer<'_, Option<ConversationRecord>> {
        self.threads.read(move |tx| find(tx, id))
    }

    fn lists_of(&self, user: UserId) -> Answer<'_, Lists> {
        self.threads.read(move |tx| {
            let id = sql(user.0);
            Ok(Lists {
                conversations: tx.rows(
                    "select conversation from members where user_id = $1 order by conversation limit $2",
                    params![id, page(PAGE_MAX)],
                    |row| number(row, 0).map(ConversationId),
                )?,
                blocked: tx.rows(
                    "select blocked from blocks where user_id = $1 order by blocked",
                    [id],
                    |row| number(row, 0).map(UserId),
                )?,
            })
        })
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

/// Any change of a conversation, in the steps that the module names.
fn change(tx: &Tx<'_>, id: ConversationId, request: &Request) -> Result<Change, DirectoryError> {
    request.check()?;
    let facts = facts(tx, id, request)?;
    let changes = request.judge(&facts)?;
    match request {
        Request::SetTitle { title, .. } => tx.execute(
            "update conversations set title = $1 where id = $2",
            params![title, sql(id.0)],
        )?,
        Request::Ban { user, .. } => tx.execute(
            "insert into bans (conversation, user_id) values ($1, $2) on conflict do nothing",
            params![sql(id.0), sql(user.0)],
        )?,
        Request::Unban { user, .. } => tx.execute(
            "delete from bans where conversation = $1 and user_id = $2",
            params![sql(id.0), sql(user.0)],
        )?,
        _ => 0,
    };
    record_change(tx, &facts.conversation, request.by(), changes)
}

/// Counts the version, changes the member rows and queues the record; without changes does nothing.
pub(super) fn record_change(
    tx: &Tx<'_>,
    there: &ConversationRecord,
    by: UserId,
    changes: Vec<RoleChange>,
) -> Result<Change, DirectoryError> {
    if changes.is_empty() {
        return Ok(unchanged(there));
    }
    let id = sql(there.id.0);
    let (change, payload) = next_version(there, by, changes);
    let version = sql(change.version);
    tx.execute(
        "update conversations set version = $1 where id = $2",
        params![version, id],
    )?;
    for change in &change.changes {
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
                params![id, user, change.role as i64, version],
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
    tx.execute(
        "insert into outbox (conversation, version, queued, record) values ($1, $2, $3, $4)",
        params![id, version, sql(queued), payload],
    )?;
    tx.mark_members_changed();
    Ok(change)
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
