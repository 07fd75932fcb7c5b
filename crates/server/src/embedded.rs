//! The embedded parts: everything durable in one folder. The one place that chooses parts.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use tidings_backends::disk::RealDisk;
use tidings_backends::file_log::{self, FileLog};
use tidings_backends::lsm::{LsmStore, Options};
use tidings_backends::sqlite::{SqliteDirectory, SqliteSettings};
use tidings_core::ids::{Partition, Position};
use tidings_core::in_process::InProcessRegistry;
use tidings_core::ports::log::Log;
use tidings_core::ports::registry::Registry;

use crate::config::Config;
use crate::system;

/// The only partition of the embedded log.
pub const PARTITION: Partition = Partition(0);

/// What a server keeps its data in.
pub struct Storage {
    /// Records.
    pub log: Arc<FileLog>,
    /// Rows.
    pub store: Arc<LsmStore>,
}

/// Opens log and store; both refuse a folder that another process has open.
pub fn storage(config: &Config) -> anyhow::Result<Storage> {
    let dir = &config.data.dir;
    make_private(dir)?;
    let log_dir = dir.join("log");
    let log_disk = Arc::new(
        RealDisk::open(&log_dir).with_context(|| format!("can't open {}", log_dir.display()))?,
    );
    let settings = file_log::Settings {
        segment_bytes: config.log.segment_bytes,
        queue_bytes_max: config.log.queue_bytes,
        ..file_log::Settings::default()
    };
    let parts = file_log::Parts::of_system(log_disk).context("can't start the log")?;
    let log = FileLog::open(parts, settings)
        .with_context(|| format!("can't open the log in {}", log_dir.display()))?;
    let store_dir = dir.join("store");
    let store_disk = Arc::new(
        RealDisk::open(&store_dir)
            .with_context(|| format!("can't open {}", store_dir.display()))?,
    );
    let options = Options {
        flush_bytes: config.store.memtable_bytes,
        cache_bytes: config.store.cache_bytes,
        ..Options::default()
    };
    let store = LsmStore::open(store_disk, options)
        .with_context(|| format!("can't open the store in {}", store_dir.display()))?;
    let (settled, end) = (store.settled(PARTITION), log.end(PARTITION));
    if settled > end || (settled.epoch != end.epoch && settled != Position::default()) {
        bail!(
            "the store in {} has come to {settled:?}, but the log in {} ends at {end:?}: they are not of one server. Put the log back that \
             belongs to the store",
            store_dir.display(),
            log_dir.display()
        );
    }
    Ok(Storage {
        log: Arc::new(log),
        store: Arc::new(store),
    })
}

/// Opens the directory, making or migrating it.
pub fn directory(config: &Config) -> anyhow::Result<Arc<SqliteDirectory>> {
    let dir = config.data.dir.join("directory");
    make_private(&dir)?;
    let clock = Arc::new(system::now);
    let random = Arc::new(system::random);
    let directory = SqliteDirectory::open(&dir, &SqliteSettings::default(), clock, random)
        .with_context(|| format!("can't open the directory in {}", dir.display()))?;
    Ok(Arc::new(directory))
}

/// Who is connected, in memory.
pub fn registry() -> Arc<dyn Registry> {
    Arc::new(InProcessRegistry::new(system::now))
}

/// Makes the folder, for this user only.
pub fn make_private(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.with_context(|| format!("can't make the folder {}", dir.display()))
}
