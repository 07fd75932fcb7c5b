//! The creation of conversations: a look, then one statement that is version 1.
//!
//! Of several creations at once that mean the same conversation (a pair's, or those under one key)
//! the unique row that they all insert lets one through; the others look again and find it.

use futures_util::future::try_join;
use tidings_core::ids::{ConversationId, UserId};
use tidings_core::membership::{self, Account, Founding, next_version};
use tidings_core::ports::directory::{
    ConversationRecord, DirectId, DirectoryError, Opened, Refusal, What, direct_conversation,
};
use tidings_core::record::RoleChange;
use tokio_postgres::Row;

use super::call::Tx;
use super::conversations::find;
use super::faults::Fault;
use super::sql::{
    account, conversation, conversation_columns, get, ids, number, sql, typed, user_id,
};

pub(super) async fn create_direct(tx: &Tx, by: UserId, other: UserId) -> Result<Opened, Fault> {
    if by == other {
        return Err(DirectoryError::Refused(Refusal::Invalid).into());
    }
    let pair = direct_conversation(by, other);
    let people = [by, other];
    let (accounts, there) = try_join(
        accounts(tx, &people),
        tx.row(
            concat!(
                "select ",
                conversation_columns!(),
                ", c.low, c.high from conversations c where c.id = $1"
            ),
            typed![sql(pair.conversation.0)],
        ),
    )
    .await?;
    accounts[0].must_be_open()?;
    if let Some(row) = there {
        let user =
            |column| Ok::<_, Fault>(get::<Option<i64>>(&row, column)?.map(|id| UserId(id as u64)));
        membership::must_be_pairs(pair, user(6)?, user(7)?)?;
        return Ok(Opened {
            conversation: conversation(&row)?,
            created: false,
        });
    }
    accounts[1].must_be_open()?;
    let (new, founders) = membership::direct(pair, tx.now);
    begin(tx, new, by, founders, Arbiter::Pair(pair)).await
}

pub(super) async fn create(tx: &Tx, founding: &Founding) -> Result<Opened, Fault> {
    let mut people = vec![founding.creator];
    people.extend(&founding.others);
    let earlier = async {
        match &founding.key {
            None => Ok(None),
            Some(key) => tx
                .row(
                    "select conversation, fingerprint from creations where creator = $1 and key = $2",
                    typed![sql(founding.creator.0), key.as_str()],
                )
                .await,
        }
    };
    let (accounts, earlier) = try_join(accounts(tx, &people), earlier).await?;
    let mut accounts = accounts.into_iter();
    let creator = accounts.next().unwrap_or(Account::Unknown);
    creator.must_be_open()?;
    if let Some(row) = earlier {
        founding.must_be_repeat(get(&row, 1)?)?;
        let there = find(tx, ConversationId(number(&row, 0)?)).await?;
        return Ok(Opened {
            conversation: there.ok_or(DirectoryError::NotFound(What::Conversation))?,
            created: false,
        });
    }
    for account in accounts {
        account.must_be_open()?;
    }
    let (new, founders) = founding.begin(ConversationId(tx.id()?), tx.now);
    let arbiter = match &founding.key {
        None => Arbiter::None,
        Some(key) => Arbiter::Key(key, &founding.fingerprint),
    };
    begin(tx, new, founding.creator, founders, arbiter).await
}

/// The state of each of these accounts, in the order asked.
async fn accounts(tx: &Tx, users: &[UserId]) -> Result<Vec<Account>, Fault> {
    let rows = tx
        .rows(
            "select id, disabled from users where id = any($1)",
            typed![ids(users)],
        )
        .await?;
    let known = |row: &Row| Ok::<_, Fault>((user_id(row, 0)?, get::<bool>(row, 1)?));
    let mut known = rows.iter().map(known).collect::<Result<Vec<_>, _>>()?;
    known.sort_unstable();
    let state = |user: &UserId| {
        let at = known.binary_search_by_key(user, |(known, _)| *known);
        account(at.ok().map(|at| known[at].1))
    };
    Ok(users.iter().map(state).collect())
}

/// What lets one of several creations through.
enum Arbiter<'a> {
    /// Nothing needs to: each makes its own.
    None,
    /// The id that the pair's conversation has.
    Pair(DirectId),
    /// An idempotency key, with the request's fingerprint.
    Key(&'a str, &'a [u8; 32]),
}

/// Version 1 in one statement: the conversation, its founders, and what the log is told.
async fn begin(
    tx: &Tx,
    mut new: ConversationRecord,
    by: UserId,
    founders: Vec<RoleChange>,
    arbiter: Arbiter<'_>,
) -> Result<Opened, Fault> {
    let (change, record) = next_version(&new, by, founders);
    let users: Vec<i64> = change
        .changes
        .iter()
        .map(|change| sql(change.user.0))
        .collect();
    let roles: Vec<i64> = change
        .changes
        .iter()
        .map(|change| change.role as i64)
        .collect();
    let (pair, key, fingerprint) = match arbiter {
        Arbiter::None => (None, None, None),
        Arbiter::Pair(pair) => (Some(pair), None, None),
        Arbiter::Key(key, fingerprint) => (None, Some(key), Some(&fingerprint[..])),
    };
    let low: Option<i64> = pair.map(|pair| sql(pair.low.0));
    let high: Option<i64> = pair.map(|pair| sql(pair.high.0));
    let made = tx
        .alone_rows(
            "with first as (
                 insert into creations (creator, key, fingerprint, conversation)
                 select $12, $13, $14, $1 where $13 is not null
                 on conflict (creator, key) do nothing returning conversation),
             made as (
                 insert into conversations (id, kind, title, version, join_role, low, high, created)
                 select $1, $2, $3, $4, $5, $6, $7, $8
                 where $13 is null or exists (select from first)
                 on conflict (id) do nothing returning id),
             founders as (
                 insert into members (conversation, user_id, role, since)
                 select made.id, n.id, n.role, $4
                 from made, unnest($9::bigint[], $10::bigint[]) as n(id, role)),
             queued as (
                 insert into outbox (conversation, version, queued, record)
                 select made.id, $4, $8, $11 from made)
             select id from made",
            typed![
                sql(new.id.0),
                new.kind as i64,
                new.title.as_str(),
                sql(change.version),
                new.join_role as i64,
                low,
                high,
                sql(new.created),
                users,
                roles,
                record,
                sql(by.0),
                key,
                fingerprint,
            ],
        )
        .await?;
    if made.is_empty() {
        return Err(Fault::Again);
    }
    tx.mark_members_changed();
    new.version = change.version;
    Ok(Opened {
        conversation: new,
        created: true,
    })
}
