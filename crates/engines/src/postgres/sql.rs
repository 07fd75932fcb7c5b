//! Parameters with their types, and rows as Rust values.
//!
//! PgBouncer in transaction mode keeps no prepared statement, so each statement goes in one round
//! trip with its parameters' types named by us ([`typed!`]).

use tidings_core::ids::{ConversationId, UserId};
use tidings_core::membership::Account;
use tidings_core::ports::directory::{ConversationRecord, DirectoryError, PAGE_MAX};
use tidings_core::record::{ConversationKind, Role};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql, Type};

use super::faults::Fault;

/// A parameter as the driver takes it.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// A Rust type whose SQL type is always the same.
pub(super) trait Typed: ToSql + Sync {
    fn sql_type(&self) -> Type;
}

macro_rules! typed_as {
    ($($rust:ty => $sql:ident),* $(,)?) => {
        $(impl Typed for $rust {
            fn sql_type(&self) -> Type {
                Type::$sql
            }
        })*
    };
}

typed_as! {
    i64 => INT8,
    Option<i64> => INT8,
    Vec<i64> => INT8_ARRAY,
    bool => BOOL,
    String => TEXT,
    &str => TEXT,
    Option<&str> => TEXT,
    Vec<&str> => TEXT_ARRAY,
    Vec<Option<&str>> => TEXT_ARRAY,
    &[u8] => BYTEA,
    Vec<u8> => BYTEA,
    Option<&[u8]> => BYTEA,
}

/// The parameters of a statement, in order: `typed![id, name]` for `$1` and `$2`.
macro_rules! typed {
    ($($value:expr),* $(,)?) => {
        &[$((
            &$value as &(dyn tokio_postgres::types::ToSql + Sync),
            $crate::postgres::sql::Typed::sql_type(&$value),
        )),*]
    };
}
pub(super) use typed;

/// An id or a time as the 64-bit signed number SQL has. Ids of the directory are below 2^63; any
/// other turns negative, which no row has, so it is simply not found.
pub(super) fn sql(number: u64) -> i64 {
    number as i64
}

pub(super) fn ids(users: &[UserId]) -> Vec<i64> {
    users.iter().map(|user| sql(user.0)).collect()
}

/// The lower bound of a page: an id beyond all rows gives an empty page.
pub(super) fn behind(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

pub(super) fn page(limit: usize) -> i64 {
    limit.min(PAGE_MAX) as i64
}

/// A text that no row can hold (SQL has no NUL in texts), so that looking for it finds nothing.
pub(super) fn is_impossible(text: &str) -> bool {
    text.contains('\0')
}

/// A column's value; another type than expected is the schema's fault.
pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, Fault> {
    Ok(row.try_get(column)?)
}

pub(super) fn number(row: &Row, column: usize) -> Result<u64, Fault> {
    get::<i64>(row, column).map(|n| n as u64)
}

/// Where the answer to a question of many goes: the row's first column counts them from 1 (`with ordinality`).
pub(super) fn place<'a, T>(answers: &'a mut [T], row: &Row) -> Result<&'a mut T, Fault> {
    let place = number(row, 0)?;
    let answer = answers.get_mut((place as usize).wrapping_sub(1));
    answer.ok_or_else(|| corrupt(format!("no question {place} was asked")))
}

pub(super) fn user_id(row: &Row, column: usize) -> Result<UserId, Fault> {
    number(row, column).map(UserId)
}

pub(super) fn role(row: &Row, column: usize) -> Result<Role, Fault> {
    let n = get::<i64>(row, column)?;
    u8::try_from(n)
        .ok()
        .and_then(Role::from_number)
        .ok_or_else(|| corrupt(format!("no role has number {n}")))
}

/// Of a user's `disabled`, null where there is no such user.
pub(super) fn account(disabled: Option<bool>) -> Account {
    match disabled {
        None => Account::Unknown,
        Some(false) => Account::Open,
        Some(true) => Account::Shut,
    }
}

/// The columns that [`conversation`] reads, of an alias `c`.
macro_rules! conversation_columns {
    () => {
        "c.id, c.kind, c.title, c.version, c.join_role, c.created"
    };
}
pub(super) use conversation_columns;

pub(super) fn conversation(row: &Row) -> Result<ConversationRecord, Fault> {
    let kind = get::<i64>(row, 1)?;
    Ok(ConversationRecord {
        id: ConversationId(number(row, 0)?),
        kind: u8::try_from(kind)
            .ok()
            .and_then(ConversationKind::from_number)
            .ok_or_else(|| corrupt(format!("no kind of conversation has number {kind}")))?,
        title: get(row, 2)?,
        version: number(row, 3)?,
        join_role: role(row, 4)?,
        created: number(row, 5)?,
    })
}

pub(super) fn corrupt(reason: impl Into<String>) -> Fault {
    Fault::Answer(DirectoryError::Corrupt(reason.into()))
}
