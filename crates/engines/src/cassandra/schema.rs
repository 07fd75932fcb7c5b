//! The tables, and what makes and changes them.

use std::time::Duration;

use scylla::client::session::Session;
use scylla::statement::unprepared::Statement;

use super::connect::{connect, copies, local_datacenter, nodes};
use super::settings::Settings;
use crate::StartError;

/// Rows of a conversation's history that share a partition, so that partitions stay bounded: the
/// bucket of a seq is `seq / BUCKET`. Fixed for ever.
pub const BUCKET: u64 = 5_000;

/// What this program writes.
pub const SCHEMA: i32 = 1;

/// The oldest schema whose program may go on beside [`SCHEMA`], as during a rolling restart.
const COMPATIBLE_FROM: i32 = 1;

/// How long a change of the schema may take: all nodes have to agree on it.
const CHANGE: Duration = Duration::from_secs(30);

/// About so many files stay on disk with a TTL: one for each window of time.
const WINDOWS: u32 = 30;

/// Chosen by measurement (`examples/cassandra_bytes.rs`: 100,000 messages of 54.5 bytes of text, bytes
/// a message of one copy, indexes included): none 121, LZ4 79, Zstd level 1 68, level 3 66.5, level 9
/// 65; blocks of 64 KiB would save 4 more, but each read of one row takes a whole block apart. JSON
/// rows with Snappy for each message: 331. The nodes' CPU for writing, compacting and reading differs
/// by less than it does from run to run.
const COMPRESSION: &str =
    "{'class': 'ZstdCompressor', 'compression_level': 3, 'chunk_length_in_kb': 16}";

/// Makes the keyspace and its tables, or brings them up to what this program needs, and tells what
/// was done. Repeatable, and safe while the previous version runs; not twice at the same time
/// (Cassandra may make a table twice then).
pub async fn migrate(settings: &Settings) -> Result<Vec<String>, StartError> {
    let session = connect(settings).await?;
    let datacenter = local_datacenter(&session, settings)?;
    let mut done = Vec::new();
    let keyspace = &settings.keyspace;
    match copies(&session, keyspace, &datacenter) {
        Some(have) => check_copies(have, settings, &datacenter)?,
        None => {
            let copies = settings.replication_factor;
            let (known, _) = nodes(&session, &datacenter);
            if known < copies as usize {
                return Err(StartError::wrong(
                    "cassandra.replication_factor",
                    format!(
                        "{copies} copies need as many nodes, but {datacenter} has {known}: add nodes or lower it"
                    ),
                ));
            }
            run(
                &session,
                format!(
                    "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = \
                     {{'class': 'NetworkTopologyStrategy', '{datacenter}': {copies}}}"
                ),
            )
            .await?;
            done.push(format!(
                "keyspace {keyspace} made, {copies} copies in {datacenter}"
            ));
        }
    }
    for (table, statement) in tables(settings) {
        if !has_table(&session, keyspace, table) {
            run(&session, statement).await?;
            done.push(format!("table {keyspace}.{table} made"));
        }
    }
    let ttl = settings.events_ttl();
    if stored_ttl(&session, keyspace).await? != i64::from(ttl) {
        let change = format!(
            "ALTER TABLE {keyspace}.events WITH default_time_to_live = {ttl} AND compaction = {}",
            events_compaction(settings)
        );
        run(&session, change).await?;
        done.push(format!(
            "events expire after {} days from now on (0: never); older ones as they were written",
            settings.events_ttl_days
        ));
    }
    match stored_version(&session, settings).await? {
        Some((version, _)) if version >= SCHEMA => {}
        _ => {
            let insert = Statement::new(format!(
                "INSERT INTO {keyspace}.schema_version (id, version, compatible_from) VALUES (0, ?, ?)"
            ));
            session
                .query_unpaged(insert, (SCHEMA, COMPATIBLE_FROM))
                .await
                .map_err(|error| failed(&error))?;
            done.push(format!("schema is of version {SCHEMA}"));
        }
    }
    Ok(done)
}

fn has_table(session: &Session, keyspace: &str, table: &str) -> bool {
    let state = session.get_cluster_state();
    state
        .get_keyspace(keyspace)
        .is_some_and(|keyspace| keyspace.tables.contains_key(table))
}

/// Each table with the statement that makes it.
fn tables(settings: &Settings) -> [(&'static str, String); 4] {
    let keyspace = &settings.keyspace;
    let state_options = format!(
        "compression = {COMPRESSION} AND compaction = {{'class': 'LeveledCompactionStrategy'}}"
    );
    [
        (
            "events",
            // The body has a cell of its own, so that a redaction can overwrite it later.
            format!(
                "CREATE TABLE IF NOT EXISTS {keyspace}.events \
                 (conversation bigint, bucket bigint, seq bigint, meta blob, body blob, \
                 PRIMARY KEY ((conversation, bucket), seq)) \
                 WITH compression = {COMPRESSION} AND compaction = {} AND default_time_to_live = {}",
                events_compaction(settings),
                settings.events_ttl()
            ),
        ),
        (
            "state",
            format!(
                "CREATE TABLE IF NOT EXISTS {keyspace}.state \
                 (conversation bigint, key blob, value blob, PRIMARY KEY (conversation, key)) \
                 WITH {state_options}"
            ),
        ),
        (
            "cursors",
            format!(
                "CREATE TABLE IF NOT EXISTS {keyspace}.cursors \
                 (conversation bigint, user bigint, delivered bigint, read bigint, \
                 PRIMARY KEY (conversation, user)) WITH {state_options}"
            ),
        ),
        (
            "schema_version",
            format!(
                "CREATE TABLE IF NOT EXISTS {keyspace}.schema_version \
                 (id int PRIMARY KEY, version int, compatible_from int)"
            ),
        ),
    ]
}

/// A file for each window of event time: files of one window expire together, and a page is read
/// from one or two.
fn events_compaction(settings: &Settings) -> String {
    let days = match settings.events_ttl_days {
        0 => WINDOWS,
        ttl => ttl.div_ceil(WINDOWS),
    };
    format!(
        "{{'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'DAYS', \
         'compaction_window_size': {days}}}"
    )
}

/// Version and the oldest compatible one; `None` before the first migration.
pub(super) async fn stored_version(
    session: &Session,
    settings: &Settings,
) -> Result<Option<(i32, i32)>, StartError> {
    if !has_table(session, &settings.keyspace, "schema_version") {
        return Ok(None);
    }
    let select = format!(
        "SELECT version, compatible_from FROM {}.schema_version WHERE id = 0",
        settings.keyspace
    );
    let found = session
        .query_unpaged(select, ())
        .await
        .map_err(|error| failed(&error))?
        .into_rows_result()
        .map_err(|error| failed(&error))?;
    found
        .maybe_first_row::<(i32, i32)>()
        .map_err(|error| failed(&error))
}

/// Seconds after which event rows expire, by the table.
async fn stored_ttl(session: &Session, keyspace: &str) -> Result<i64, StartError> {
    let select = "SELECT default_time_to_live FROM system_schema.tables \
                  WHERE keyspace_name = ? AND table_name = 'events'";
    let found = session
        .query_unpaged(select, (keyspace,))
        .await
        .map_err(|error| failed(&error))?
        .into_rows_result()
        .map_err(|error| failed(&error))?;
    let (ttl,) = found
        .first_row::<(i32,)>()
        .map_err(|error| failed(&error))?;
    Ok(i64::from(ttl))
}

/// Whether there are as many copies as the settings want.
pub(super) fn check_copies(
    have: usize,
    settings: &Settings,
    datacenter: &str,
) -> Result<(), StartError> {
    let want = settings.replication_factor;
    if have >= want as usize {
        return Ok(());
    }
    Err(StartError::wrong(
        "cassandra.replication_factor",
        format!(
            "keyspace {} has {have} copies in {datacenter}, {want} are wanted: ALTER KEYSPACE and repair, or lower it",
            settings.keyspace
        ),
    ))
}

async fn run(session: &Session, statement: String) -> Result<(), StartError> {
    let mut statement = Statement::new(statement);
    statement.set_request_timeout(Some(CHANGE));
    session
        .query_unpaged(statement, ())
        .await
        .map_err(|error| failed(&error))?;
    Ok(())
}

/// A request for the schema that failed.
pub(super) fn failed(error: &dyn std::fmt::Display) -> StartError {
    StartError::away(
        "cassandra.keyspace",
        format!("Cassandra can't be asked about it: {error}"),
    )
}
