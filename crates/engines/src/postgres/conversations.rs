//! Conversations, members and the outbox.
//!
//! Every change goes the same way, in two round trips: [`facts`] locks the row and reads, the core's
//! rules judge, and the change is written and committed with its version and the log's record.

use bytes::Bytes;
use futures_util::future::try_join3;
use tidings_core::ids::{ConversationId, UserId};
use tidings_core::membership::{Facts, Place, Request, next_version, outbox_entry, unchanged};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::directory::{
    Answer, BLOCKS_PER_USER_MAX, Change, ConversationRecord, Conversations, DirectoryError, Lists,
    Member, Membership, NewConversation, Opened, OutboxEntry, PAGE_MAX, What,
};
use tidings_core::record::{Role, RoleChange};

use super::call::Tx;
use super::faults::Fault;
use super::sql::{
    account, behind, conversation, conversation_columns, get, ids, number, page, place, role, sql,
    typed, user_id,
};
use super::{PostgresDirectory, answered, founding};

impl PostgresDirectory {
    fn change(
        &self,
        name: &'static str,
        id: ConversationId,
        request: Request,
    ) -> Answer<'_, Change> {
        if let Err(error) = request.check() {
            return answered(Err(error));
        }
        self.calls
            .transaction(name, (id, request), |tx, (id, request)| {
                Box::pin(change(tx, *id, request))
            })
    }
}

impl Conversations for PostgresDirectory {
    fn create_direct(&self, by: UserId, other: UserId) -> Answer<'_, Opened> {
        self.calls
            .call("create_direct", (by, other), |tx, (by, other)| {
                Box::pin(founding::create_direct(tx, *by, *other))
            })
    }

    fn create_conversation(&self, new: NewConversation) -> Answer<'_, Opened> {
        let founding = match tidings_core::membership::Founding::of(new) {
            Ok(founding) => founding,
            Err(error) => return answered(Err(error)),
        };
        self.calls
            .call("create_conversation", founding, |tx, founding| {
                Box::pin(founding::create(tx, founding))
            })
    }

    fn set_title(&self, id: ConversationId, by: UserId, title: String) -> Answer<'_, ()> {
        let changed = self.change("set_title", id, Request::SetTitle { by, title });
        Box::pin(async move { changed.await.map(drop) })
    }

    fn join(&self, id: ConversationId, user: UserId) -> Answer<'_, Change> {
        self.change("join", id, Request::Join { user })
    }

    fn leave(&self, id: ConversationId, user: UserId) -> Answer<'_, Change> {
        self.change("leave", id, Request::Leave { user })
    }

    fn add_members(
        &self,
        id: ConversationId,
        by: UserId,
        users: Vec<UserId>,
        role: Role,
    ) -> Answer<'_, Change> {
        self.change("add_members", id, Request::Add { by, users, role })
    }

    fn remove_member(&self, id: ConversationId, by: UserId, user: UserId) -> Answer<'_, Change> {
        self.change("remove_member", id, Request::Remove { by, user })
    }

    fn set_role(
        &self,
        id: ConversationId,
        by: UserId,
        user: UserId,
        role: Role,
    ) -> Answer<'_, Change> {
        self.change("set_role", id, Request::SetRole { by, user, role })
    }

    fn ban(&self, id: ConversationId, by: UserId, user: UserId) -> Answer<'_, Change> {
        self.change("ban", id, Request::Ban { by, user })
    }

    fn unban(&self, id: ConversationId, by: UserId, user: UserId) -> Answer<'_, ()> {
        let changed = self.change("unban", id, Request::Unban { by, user });
        Box::pin(async move { changed.await.map(drop) })
    }

    fn conversation(&self, id: ConversationId) -> Answer<'_, Option<ConversationRecord>> {
        self.calls
            .call("conversation", id, |tx, id| Box::pin(find(tx, *id)))
    }

    fn lists_of(&self, user: UserId) -> Answer<'_, Lists> {
        self.lists.ask(user)
    }

    fn conversations_of(
        &self,
        user: UserId,
        after: ConversationId,
        limit: usize,
    ) -> Answer<'_, Vec<Membership>> {
        let args = (user, after, limit);
        self.calls.call("conversations_of", args, |tx, (user, after, limit)| {
            Box::pin(async move {
                let rows = tx.rows(
                    concat!(
                        "select ",
                        conversation_columns!(),
                        ", m.role, m.since from members m join conversations c on c.id = m.conversation
                         where m.user_id = $1 and m.conversation > $2 order by m.conversation limit $3"
                    ),
                    typed![sql(user.0), behind(after.0), page(*limit)],
                ).await?;
                rows.iter()
                    .map(|row| {
                        Ok(Membership {
                            conversation: conversation(row)?,
                            role: role(row, 6)?,
                            since: number(row, 7)?,
                        })
                    })
                    .collect()
            })
        })
    }

    fn open_conversations(
        &self,
        after: ConversationId,
        limit: usize,
    ) -> Answer<'_, Vec<ConversationRecord>> {
        self.calls.call("open_conversations", (after, limit), |tx, (after, limit)| {
            Box::pin(async move {
                let rows = tx.rows(
                    concat!(
                        "select ",
                        conversation_columns!(),
                        " from conversations c where c.join_role > 0 and c.id > $1 order by c.id limit $2"
                    ),
                    typed![behind(after.0), page(*limit)],
                ).await?;
                rows.iter().map(conversation).collect()
            })
        })
    }

    fn members(&self, id: ConversationId, after: UserId, limit: usize) -> Answer<'_, Vec<Member>> {
        self.calls.call("members", (id, after, limit), |tx, (id, after, limit)| {
            Box::pin(async move {
                let rows = tx.rows(
                    "select user_id, role, since from members where conversation = $1 and user_id > $2
                     order by user_id limit $3",
                    typed![sql(id.0), behind(after.0), page(*limit)],
                ).await?;
                rows.iter()
                    .map(|row| {
                        Ok(Member {
                            user: user_id(row, 0)?,
                            role: role(row, 1)?,
                            since: number(row, 2)?,
                        })
                    })
                    .collect()
            })
        })
    }

    fn member(&self, id: ConversationId, user: UserId) -> Answer<'_, Option<Member>> {
        self.calls.call("member", (id, user), |tx, (id, user)| {
            Box::pin(async move {
                let row = tx
                    .row(
                        "select role, since from members where conversation = $1 and user_id = $2",
                        typed![sql(id.0), sql(user.0)],
                    )
                    .await?;
                let Some(row) = row else { return Ok(None) };
                Ok(Some(Member {
                    user: *user,
                    role: role(&row, 0)?,
                    since: number(&row, 1)?,
                }))
            })
        })
    }

    fn outbox_pending(&self, limit: usize) -> Answer<'_, Vec<OutboxEntry>> {
        self.calls.call("outbox_pending", limit, |tx, limit| {
            Box::pin(async move {
                let rows = tx
                    .rows(
                        "select record from outbox order by queued, conversation, version limit $1",
                        typed![page(*limit)],
                    )
                    .await?;
                rows.iter()
                    .map(|row| {
                        let payload: &[u8] = get(row, 0)?;
                        Ok(outbox_entry(Bytes::copy_from_slice(payload))?)
                    })
                    .collect()
            })
        })
    }

    fn outbox_done(&self, id: ConversationId, version: u64) -> Answer<'_, ()> {
        self.calls
            .call("outbox_done", (id, version), |tx, (id, version)| {
                Box::pin(async move {
                    let delete = "delete from outbox where conversation = $1 and version <= $2";
                    tx.alone(delete, typed![sql(id.0), behind(*version)])
                        .await?;
                    Ok(())
                })
            })
    }

    fn outbox_wait(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.calls.outbox_wait())
    }
}

/// Any change of a conversation that exists.
async fn change(tx: &Tx, id: ConversationId, request: &Request) -> Result<Change, Fault> {
    let facts = facts(tx, id, request).await?;
    let changes = request.judge(&facts)?;
    let id = sql(id.0);
    let effect = async {
        match request {
            Request::SetTitle { title, .. } => {
                let update = "update conversations set title = $1 where id = $2";
                tx.execute(update, typed![title.as_str(), id]).await
            }
            Request::Ban { user, .. } => {
                let insert = "insert into bans (conversation, user_id) values ($1, $2) on conflict do nothing";
                tx.execute(insert, typed![id, sql(user.0)]).await
            }
            Request::Unban { user, .. } => {
                let delete = "delete from bans where conversation = $1 and user_id = $2";
                tx.execute(delete, typed![id, sql(user.0)]).await
            }
            _ => Ok(0),
        }
    };
    let record = record_change(tx, &facts.conversation, request.by(), changes);
    let (_, change, ()) = try_join3(effect, record, tx.commit()).await?;
    Ok(change)
}

/// Takes the conversation's lock and reads behind it what the request's decision needs.
async fn facts(tx: &Tx, id: ConversationId, request: &Request) -> Result<Facts, Fault> {
    let id = sql(id.0);
    let next_in_line = async {
        match request.leaver() {
            None => Ok(None),
            Some(leaver) => {
                tx.row(
                    "select user_id, role from members where conversation = $1 and user_id <> $2
                     order by role desc, since, user_id limit 1",
                    typed![id, sql(leaver.0)],
                )
                .await
            }
        }
    };
    // No key update: rows that refer to the conversation may come meanwhile, other changes may not.
    let (there, places, next_in_line) = try_join3(
        tx.row(
            concat!(
                "select ",
                conversation_columns!(),
                " from conversations c where c.id = $1 for no key update"
            ),
            typed![id],
        ),
        tx.rows(
            "select p.id, coalesce(m.role, 0), u.disabled, b.user_id is not null
             from unnest($2::bigint[]) as p(id)
             left join users u on u.id = p.id
             left join members m on m.conversation = $1 and m.user_id = p.id
             left join bans b on b.conversation = $1 and b.user_id = p.id
             order by p.id",
            typed![id, ids(&request.people())],
        ),
        next_in_line,
    )
    .await?;
    let there = there.ok_or(DirectoryError::NotFound(What::Conversation))?;
    let mut facts = Facts {
        conversation: conversation(&there)?,
        places: Vec::with_capacity(places.len()),
        next_in_line: None,
    };
    for row in &places {
        facts.places.push(Place {
            user: user_id(row, 0)?,
            role: role(row, 1)?,
            account: account(get(row, 2)?),
            banned: get(row, 3)?,
        });
    }
    // An id beyond the signed ones sorts first in SQL; no user has it.
    facts.places.sort_unstable_by_key(|place| place.user);
    if let Some(row) = next_in_line {
        facts.next_in_line = Some((user_id(&row, 0)?, role(&row, 1)?));
    }
    Ok(facts)
}

/// Counts the version, changes the member rows and queues the record; without changes does nothing.
async fn record_change(
    tx: &Tx,
    there: &ConversationRecord,
    by: UserId,
    changes: Vec<RoleChange>,
) -> Result<Change, Fault> {
    if changes.is_empty() {
        return Ok(unchanged(there));
    }
    let (change, record) = next_version(there, by, changes);
    let (gone, here): (Vec<RoleChange>, Vec<RoleChange>) = change
        .changes
        .iter()
        .copied()
        .partition(|change| change.role == Role::None);
    let users = |changes: &[RoleChange]| -> Vec<i64> {
        changes.iter().map(|change| sql(change.user.0)).collect()
    };
    let roles: Vec<i64> = here.iter().map(|change| change.role as i64).collect();
    // A clock behind another server's must not put this before the conversation's pending changes.
    tx.execute(
        "with gone as (
             delete from members where conversation = $1 and user_id = any($3)),
         here as (
             insert into members (conversation, user_id, role, since)
             select $1, n.id, n.role, $2 from unnest($4::bigint[], $5::bigint[]) as n(id, role)
             on conflict (conversation, user_id) do update set role = excluded.role),
         queued as (
             insert into outbox (conversation, version, queued, record)
             select $1, $2, greatest($6, (select queued from outbox where conversation = $1
                                          order by version desc limit 1)), $7)
         update conversations set version = $2 where id = $1",
        typed![
            sql(there.id.0),
            sql(change.version),
            users(&gone),
            users(&here),
            roles,
            sql(tx.now),
            record,
        ],
    )
    .await?;
    tx.mark_members_changed();
    Ok(change)
}

/// Each user's conversations and blocks.
pub(super) async fn lists(tx: &Tx, users: &[UserId]) -> Result<Vec<Lists>, Fault> {
    let rows = tx
        .rows(
            "with asked as (select * from unnest($1::bigint[]) with ordinality as a(id, place))
         select place, conversation, true from asked cross join lateral (
             select conversation from members where user_id = asked.id order by conversation limit $2) c
         union all
         select place, blocked, false from asked cross join lateral (
             select blocked from blocks where user_id = asked.id order by blocked limit $3) b",
            typed![ids(users), page(PAGE_MAX), page(BLOCKS_PER_USER_MAX)],
        )
        .await?;
    let mut lists = vec![Lists::default(); users.len()];
    for row in &rows {
        let lists = place(&mut lists, row)?;
        match get(row, 2)? {
            true => lists.conversations.push(ConversationId(number(row, 1)?)),
            false => lists.blocked.push(UserId(number(row, 1)?)),
        }
    }
    for lists in &mut lists {
        // The order of rows of different kinds and users isn't promised.
        lists.conversations.sort_unstable();
        lists.blocked.sort_unstable();
    }
    Ok(lists)
}

pub(super) async fn find(tx: &Tx, id: ConversationId) -> Result<Option<ConversationRecord>, Fault> {
    let row = tx
        .row(
            concat!(
                "select ",
                conversation_columns!(),
                " from conversations c where c.id = $1"
            ),
            typed![sql(id.0)],
        )
        .await?;
    row.as_ref().map(conversation).transpose()
}
