//! Rows as Rust values: what several subjects read.

use rusqlite::Row;
use tidings_core::ids::{ConversationId, UserId};
use tidings_core::ports::directory::{ConversationRecord, DirectoryError, PAGE_MAX};
use tidings_core::record::{ConversationKind, Role};

use super::rules::account;
use super::tx::Tx;

/// An id or a time as the 64-bit signed number SQL has. Ids of the directory are below 2^63; any
/// other turns negative, which no row has, so it is simply not found.
pub(super) fn sql(number: u64) -> i64 {
    number as i64
}

/// The lower bound of a page: an id beyond all rows gives an empty page.
pub(super) fn behind(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

pub(super) fn page(limit: usize) -> i64 {
    limit.min(PAGE_MAX) as i64
}

pub(super) fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(|n| n as u64)
}

fn out_of_range(column: usize, n: i64) -> rusqlite::Error {
    rusqlite::Error::IntegralValueOutOfRange(column, n)
}

pub(super) fn role(row: &Row<'_>, column: usize) -> rusqlite::Result<Role> {
    let n = row.get::<_, i64>(column)?;
    u8::try_from(n)
        .ok()
        .and_then(Role::from_number)
        .ok_or_else(|| out_of_range(column, n))
}

/// The columns that [`conversation`] reads, of a table or alias `c`.
macro_rules! conversation_columns {
    () => {
        "c.id, c.kind, c.title, c.version, c.join_role, c.created"
    };
}
pub(super) use conversation_columns;

pub(super) fn conversation(row: &Row<'_>) -> rusqlite::Result<ConversationRecord> {
    let kind = row.get::<_, i64>(1)?;
    Ok(ConversationRecord {
        id: ConversationId(number(row, 0)?),
        kind: u8::try_from(kind)
            .ok()
            .and_then(ConversationKind::from_number)
            .ok_or_else(|| out_of_range(1, kind))?,
        title: row.get(2)?,
        version: number(row, 3)?,
        join_role: role(row, 4)?,
        created: number(row, 5)?,
    })
}

impl Tx<'_> {
    /// Passes users who exist and aren't shut.
    pub(super) fn must_be_active(&self, user: UserId) -> Result<(), DirectoryError> {
        account(self, user)?.must_be_open()
    }
}
