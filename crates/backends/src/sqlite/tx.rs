//! What a call has while it runs: a connection inside a transaction, the time, and randomness.

use std::cell::Cell;

use rusqlite::{CachedStatement, Connection, Params, Row};
use tidings_core::ids::Micros;
use tidings_core::ports::directory::DirectoryError;

use super::fault;

/// One call's view of the database. Statements are cached by their text.
pub(super) struct Tx<'a> {
    connection: &'a Connection,
    /// The call's time.
    pub(super) now: Micros,
    random: &'a dyn Fn() -> u64,
    members: Cell<bool>,
}

impl<'a> Tx<'a> {
    pub(super) fn new(
        connection: &'a Connection,
        now: Micros,
        random: &'a dyn Fn() -> u64,
    ) -> Tx<'a> {
        Tx {
            connection,
            now,
            random,
            members: Cell::new(false),
        }
    }

    /// A fresh id: random, below 2^63, not 0.
    pub(super) fn id(&self) -> u64 {
        ((self.random)() >> 1).max(1)
    }

    /// Says that an outbox row was written.
    pub(super) fn mark_members_changed(&self) {
        self.members.set(true);
    }

    pub(super) fn changed_members(&self) -> bool {
        self.members.get()
    }

    /// Runs a statement; how many rows it changed.
    pub(super) fn execute(&self, sql: &str, params: impl Params) -> Result<usize, DirectoryError> {
        self.prepare(sql)?.execute(params).map_err(fault)
    }

    /// The first row of a query or of a `returning` clause.
    pub(super) fn row<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, DirectoryError> {
        let mut statement = self.prepare(sql)?;
        let mut rows = statement.query(params).map_err(fault)?;
        let first = match rows.next().map_err(fault)? {
            Some(row) => Some(read(row).map_err(fault)?),
            None => None,
        };
        // An `insert … returning` takes effect as a whole only when it is stepped to its end.
        while rows.next().map_err(fault)?.is_some() {}
        Ok(first)
    }

    /// All rows of a query.
    pub(super) fn rows<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, DirectoryError> {
        let mut statement = self.prepare(sql)?;
        let rows = statement.query_map(params, read).map_err(fault)?;
        rows.collect::<Result<Vec<T>, _>>().map_err(fault)
    }

    /// Whether a query has a row.
    pub(super) fn exists(&self, sql: &str, params: impl Params) -> Result<bool, DirectoryError> {
        self.prepare(sql)?.exists(params).map_err(fault)
    }

    fn prepare(&self, sql: &str) -> Result<CachedStatement<'a>, DirectoryError> {
        let statement = self.connection.prepare_cached(sql).map_err(fault)?;
        // SQLite numbers `$1` by first occurrence, PostgreSQL by the digits: they must agree.
        debug_assert!(
            (1..=statement.parameter_count()).all(|i| statement
                .parameter_name(i)
                .is_some_and(|name| name == format!("${i}"))),
            "parameters out of order: {sql}"
        );
        Ok(statement)
    }
}
