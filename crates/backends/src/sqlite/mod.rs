//! The directory on SQLite: one writer, a few readers, group commit.
//!
//! All writes go through one thread with one connection. It takes whatever has queued
//! while the commit before was being synced, runs it in one transaction with a savepoint
//! a call, and answers after the commit: many calls share one fsync, and one call's
//! refusal undoes only that call. Reads run on a small pool of connections beside it
//! (write-ahead log: readers never wait for the writer).
//!
//! The SQL is kept in a shape that PostgreSQL takes too: `$1` parameters whose first
//! occurrences are in order, `returning`, `on conflict`, and an `update` that changes
//! nothing where PostgreSQL needs a row lock.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tidings_core::ids::Micros;
use tidings_core::ports::directory::DirectoryError;

mod accounts;
mod conversations;
mod credentials;
mod founding;
mod rows;
mod rules;
mod threads;
mod tx;

use threads::Threads;

mod schema {
    refinery::embed_migrations!("migrations/directory");
}

/// Where the directory gets the time from, microseconds since 1970.
pub type Clock = Arc<dyn Fn() -> Micros + Send + Sync>;

/// Where the directory gets 64 random bits from.
pub type Random = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What can be set about the directory.
#[derive(Clone, Debug)]
pub struct SqliteSettings {
    /// How long a call may take before it answers `Unavailable`. Default 5 s.
    pub deadline: Duration,
    /// How many calls may wait for the writer, and for the readers. Default 4,096: at
    /// 250 commits a second (performance.md) and 256 calls a commit under 0.1 s of work.
    pub queued_max: usize,
    /// Reading threads, each with a connection. Default 2.
    pub readers: usize,
    /// The most bytes the database file may take; beyond it calls answer `Full`. Default: the disk decides.
    pub bytes_max: Option<u64>,
}

impl Default for SqliteSettings {
    fn default() -> Self {
        SqliteSettings {
            deadline: Duration::from_secs(5),
            queued_max: 4_096,
            readers: 2,
            bytes_max: None,
        }
    }
}

/// The directory in one SQLite file. Its calls need a tokio runtime with timers around them.
///
/// Dropping it finishes the queued writes and closes the file.
pub struct SqliteDirectory {
    threads: Threads,
}

/// Why the directory's file can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file system said no.
    #[error("can't open the directory's file: {0}")]
    Io(#[from] io::Error),
    /// SQLite said no.
    #[error("can't open the directory: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A later release has changed the tables, and this one has changed nothing.
    #[error(
        "{file} has tables of version {found}, this release knows {known}: a later release wrote it; start that one, \
         or restore a backup from before it"
    )]
    Newer {
        /// The database.
        file: PathBuf,
        /// The first of its versions that isn't known.
        found: i64,
        /// The last one that is.
        known: i64,
    },
    /// The tables can't be brought to this version.
    #[error("can't migrate the directory: {0}")]
    Schema(refinery::Error),
}

impl SqliteDirectory {
    /// Opens or creates the directory in `folder` (file `directory.sqlite`, readable by its
    /// owner only), brings its tables to this version, and starts the threads.
    ///
    /// Blocks on disk I/O; called once at start.
    pub fn open(
        folder: &Path,
        settings: &SqliteSettings,
        clock: Clock,
        random: Random,
    ) -> Result<SqliteDirectory, OpenError> {
        fs::create_dir_all(folder)?;
        let file = folder.join("directory.sqlite");
        // SQLite gives its side files the mode of the main file.
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&file)?;
        let mut writer = connect(&file)?;
        if let Some(bytes) = settings.bytes_max {
            let page: u64 = writer
                .query_row("pragma page_size", [], |row| row.get::<_, i64>(0))?
                .unsigned_abs();
            writer.pragma_update(None, "max_page_count", (bytes / page.max(1)).max(1) as i64)?;
        }
        migrate(&mut writer, &file)?;
        // The name of a file just created is durable only with its folder.
        fs::File::open(folder)?.sync_all()?;
        let mut readers = Vec::new();
        for _ in 0..settings.readers.max(1) {
            let reader = connect(&file)?;
            reader.pragma_update(None, "query_only", true)?;
            readers.push(reader);
        }
        let threads = Threads::start(writer, readers, settings, clock, random)?;
        Ok(SqliteDirectory { threads })
    }
}

fn migrate(writer: &mut Connection, file: &Path) -> Result<(), OpenError> {
    let runner = schema::migrations::runner();
    let known = runner.get_migrations().iter().map(|m| m.version().into());
    let known = known.max().unwrap_or(0);
    match runner.run(writer) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            refinery::error::Kind::MissingVersion(theirs) => OpenError::Newer {
                file: file.to_owned(),
                found: theirs.version().into(),
                known,
            },
            _ => OpenError::Schema(error),
        }),
    }
}

/// Pages that a connection keeps in memory: SQLite's own 2 MB would be there for each connection,
/// for good.
const PAGES_KIB: i64 = 256;

fn connect(file: &Path) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // A write-ahead log grown by one large transaction is cut back to this at the next checkpoint.
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    // In KiB; the operating system's cache is behind it, and branches of the trees need less.
    connection.pragma_update(None, "cache_size", -PAGES_KIB)?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(connection)
}

/// Sorts what SQLite says by remedy.
fn fault(error: rusqlite::Error) -> DirectoryError {
    use rusqlite::ErrorCode;
    let Some(code) = error.sqlite_error() else {
        return DirectoryError::Corrupt(error.to_string());
    };
    match code.code {
        ErrorCode::DiskFull => DirectoryError::Full,
        // The shared-memory file can't grow: there is no room for it.
        _ if code.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE => DirectoryError::Full,
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::OutOfMemory => {
            DirectoryError::Unavailable {
                retry_after: Duration::from_secs(1),
            }
        }
        _ => DirectoryError::Corrupt(error.to_string()),
    }
}
