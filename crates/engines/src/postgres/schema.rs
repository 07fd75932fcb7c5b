//! The tables' version: brought up by `tidings migrate`, checked at every start.
//!
//! Versions only go forward. A version says which servers its tables still serve (the counter
//! `oldest_schema`), so that a server of the version before runs, and starts again, during an upgrade.

use std::time::Duration;

use refinery::Runner;
use refinery::error::Kind;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connect::{Way, connect, in_full};
use super::settings::Settings;
use crate::StartError;

mod embedded {
    refinery::embed_migrations!("src/postgres/migrations");
}

/// Where the versions that were applied are written down.
const HISTORY: &str = "tidings_schema";

/// The advisory lock under which one migrator works while another waits: an arbitrary number, for good.
const LOCK: i64 = 0x7469_6469_6e67_7301;

/// How long a migrator waits for another one.
const LOCK_WAIT: Duration = Duration::from_secs(60);

fn runner() -> Runner {
    let mut runner = embedded::migrations::runner();
    runner.set_migration_table_name(HISTORY);
    runner
}

/// The schema version of this program.
fn newest() -> i64 {
    runner()
        .get_migrations()
        .iter()
        .map(|migration| i64::from(migration.version()))
        .max()
        .unwrap_or(0)
}

/// Brings the tables to this program's version, over the direct connection; says what was done.
///
/// Repeatable; several at once are harmless. Servers of the version before may run on.
pub async fn migrate(settings: &Settings) -> Result<Vec<String>, StartError> {
    let mut client = connect(settings, Way::Direct).await?;
    let failed = |error: tokio_postgres::Error| {
        StartError::away(
            "postgres.direct_port",
            format!("can't migrate: {}", in_full(&error)),
        )
    };
    // A session's settings and locks: this is the direct connection, and its own.
    let begin = format!(
        "set statement_timeout = 0; set lock_timeout = {}; select pg_advisory_lock({LOCK})",
        LOCK_WAIT.as_millis()
    );
    if let Err(error) = client.batch_execute(&begin).await {
        return Err(match error.code() {
            Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE => StartError::away(
                "postgres.database",
                format!(
                    "another migration has held its lock for {} s",
                    LOCK_WAIT.as_secs()
                ),
            ),
            _ => failed(error),
        });
    }
    let report = runner().run_async(&mut client).await;
    let version = version(&client).await;
    // Closing the connection would do it too, some time later.
    client
        .batch_execute(&format!("select pg_advisory_unlock({LOCK})"))
        .await
        .map_err(failed)?;
    let database = &settings.database;
    let report = report.map_err(|error| match error.kind() {
        Kind::MissingVersion(theirs) => StartError::wrong(
            "postgres.database",
            format!("{database} has schema {}, newer than this program's {}: nothing to migrate",
                theirs.version(), newest()),
        ),
        Kind::DivergentVersion(theirs, _) => StartError::wrong(
            "postgres.database",
            format!("{database}'s schema {theirs} isn't the one of this program: another program's tables?"),
        ),
        _ => StartError::wrong("postgres.database", format!("can't migrate: {}", in_full(&error))),
    })?;
    let mut lines: Vec<String> = report
        .applied_migrations()
        .iter()
        .map(|applied| format!("postgres: {database}: applied {applied}"))
        .collect();
    if lines.is_empty() {
        let version = version.map_err(failed)?.map_or(0, |found| found.0);
        lines.push(format!(
            "postgres: {database}: schema {version} is up to date"
        ));
    }
    Ok(lines)
}

/// The version of the tables and the oldest one that they still serve; none: there are no tables.
async fn version(client: &Client) -> Result<Option<(i64, i64)>, tokio_postgres::Error> {
    let sql = "select (select max(version)::bigint from tidings_schema),
                      (select value from counters where name = 'oldest_schema')";
    match client.query_typed(sql, &[]).await {
        Ok(rows) => {
            let Some(row) = rows.first() else {
                return Ok(None);
            };
            let (version, oldest): (Option<i64>, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
            Ok(version.zip(oldest))
        }
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Checks before the first call that the tables are there, and that the database keeps what it answers.
pub(super) async fn check(settings: &Settings) -> Result<(), StartError> {
    let client = connect(settings, Way::Pooled).await?;
    let limit = Duration::from_millis(settings.call_timeout_ms);
    match tokio::time::timeout(limit, look(&client, settings)).await {
        Ok(checked) => checked,
        Err(_) => Err(StartError::away(
            "postgres.host",
            format!(
                "the database doesn't answer within {} ms",
                limit.as_millis()
            ),
        )),
    }
}

async fn look(client: &Client, settings: &Settings) -> Result<(), StartError> {
    let database = &settings.database;
    let away = |error: tokio_postgres::Error| super::connect::advice(&error, settings, Way::Pooled);
    let sql = "select current_setting('synchronous_commit'), current_setting('fsync'), pg_is_in_recovery()";
    let rows = client.query_typed(sql, &[]).await.map_err(away)?;
    if let Some(row) = rows.first() {
        let commit: String = row.try_get(0).map_err(away)?;
        let fsync: String = row.try_get(1).map_err(away)?;
        let standby: bool = row.try_get(2).map_err(away)?;
        if standby {
            return Err(StartError::away(
                "postgres.host",
                "leads to a standby, which takes no changes: name the primary",
            ));
        }
        if commit == "off" || fsync == "off" {
            return Err(StartError::wrong(
                "postgres.host",
                format!(
                    "PostgreSQL may lose what it has answered (synchronous_commit = {commit}, fsync = {fsync}): set both on"
                ),
            ));
        }
    }
    let Some((version, oldest)) = version(client).await.map_err(away)? else {
        return Err(StartError::wrong(
            "postgres.database",
            format!("{database} has no tables yet: run `tidings migrate`"),
        ));
    };
    let own = newest();
    if version < own {
        Err(StartError::wrong(
            "postgres.database",
            format!(
                "{database} has schema {version}, this program needs {own}: run `tidings migrate`"
            ),
        ))
    } else if own < oldest {
        Err(StartError::wrong(
            "postgres.database",
            format!(
                "{database} has schema {version}, too new for this program's {own} (at least {oldest}): run the newer program"
            ),
        ))
    } else {
        Ok(())
    }
}
