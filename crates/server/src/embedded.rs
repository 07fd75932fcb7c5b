//! The embedded parts: everything durable in one folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tidings_backends::dead_letters::FolderDeadLetters;
use tidings_backends::disk::RealDisk;
use tidings_backends::file_log::{self, FileLog};
use tidings_backends::lsm::{LsmStore, Options};
use tidings_backends::sqlite::{SqliteDirectory, SqliteSettings};
use tidings_core::ids::{Partition, Position};
use tidings_core::in_process::{InProcessMembers, InProcessPeers, InProcessRegistry};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::dead_letters::DeadLetters;
use tidings_core::ports::directory::Conversations;
use tidings_core::ports::log::Log;
use tidings_core::ports::ownership::{Change, Ownership};
use tidings_protocol::wire::Feature;

use crate::config::Config;
use crate::metrics::Page;
use crate::parts::{Figures, Keeper, Part, Parts, Replaying};
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

/// All parts.
pub fn parts(config: &Config) -> anyhow::Result<Parts> {
    let storage = storage(config)?;
    let directory = directory(config)?;
    let local = Arc::new(InProcessPeers::new(storage.log.partitions()));
    let health: Vec<Box<dyn Part>> = vec![
        Box::new(LogPart(storage.log.clone(), AtomicU64::new(0))),
        Box::new(StorePart(storage.store.clone())),
        Box::new(DirectoryPart(directory.clone())),
    ];
    Ok(Parts {
        epoch: storage.log.end(PARTITION).epoch,
        ownership: Arc::new(AlwaysOwner::default()),
        dead_letters: dead_letters(config),
        members: Arc::new(InProcessMembers::new(directory.clone())),
        directory,
        registry: Arc::new(InProcessRegistry::new(system::now)),
        peers: local.clone(),
        local,
        server: 0,
        keys: keys(config)?,
        health,
        figures: Box::new(StorageFigures(storage.log.clone(), storage.store.clone())),
        log: storage.log.clone(),
        store: storage.store.clone(),
        keeper: Box::new(storage),
    })
}

/// The dead letters, which may be read while a server sets some aside.
pub fn dead_letters(config: &Config) -> Arc<dyn DeadLetters> {
    Arc::new(FolderDeadLetters::new(
        &config.data.dir.join("dead-letters"),
    ))
}

/// What dead letters are replayed with, while no server runs.
pub fn replaying(config: &Config) -> anyhow::Result<Replaying> {
    let storage = storage(config).context("dead letters are replayed while no server runs")?;
    Ok(Replaying {
        dead_letters: dead_letters(config),
        log: storage.log,
        store: storage.store,
        is_routed: false,
    })
}

/// The folder of the keys that sign tokens.
pub fn keys(config: &Config) -> anyhow::Result<PathBuf> {
    let keys = match &config.auth.keys_dir {
        dir if dir.as_os_str().is_empty() => config.data.dir.join("auth"),
        dir => dir.clone(),
    };
    make_private(&keys)?;
    Ok(keys)
}

/// The only partition is this server's from the start to the end.
#[derive(Default)]
pub struct AlwaysOwner(AtomicBool);

impl Ownership for AlwaysOwner {
    fn next(&self) -> BoxFuture<'_, Change> {
        if self.0.swap(true, Ordering::Relaxed) {
            Box::pin(std::future::pending())
        } else {
            Box::pin(std::future::ready(Change::Gained(PARTITION)))
        }
    }

    fn released(&self, _: Partition) {}
}

impl Keeper for Storage {
    fn end(&self, within: Duration) -> BoxFuture<'_, ()> {
        // A disk that hangs must not keep the process: what isn't flushed is in the log.
        std::thread::spawn(move || {
            std::thread::sleep(within);
            tracing::error!("the disk did not answer in time; the next start goes on from the log");
            std::process::exit(75);
        });
        Box::pin(async {
            if let Err(error) = self.store.flush() {
                tracing::warn!(%error, "the store was not flushed; the next start reads the log");
            }
            let settled = self.store.settled(PARTITION);
            if settled > Position::default() {
                _ = self.log.commit(PARTITION, settled).await;
            }
            self.log.shutdown();
        })
    }
}

/// The log, and how many calls a full disk had refused at the last look.
struct LogPart(Arc<FileLog>, AtomicU64);

impl Part for LogPart {
    fn name(&self) -> &'static str {
        "log"
    }

    fn check(&self) -> BoxFuture<'_, Result<Value, String>> {
        let log = self.0.metrics().figures();
        Box::pin(std::future::ready(Ok(json!({
            "last_sync_ms": log.last_fsync_us as f64 / 1000.0,
            "queue_records": log.queue_records,
        }))))
    }

    fn impairs(&self) -> Vec<Feature> {
        let refused = self.0.metrics().figures().full;
        match self.1.swap(refused, Ordering::Relaxed) == refused {
            true => Vec::new(),
            false => vec![Feature::Delivery],
        }
    }
}

struct StorePart(Arc<LsmStore>);

impl Part for StorePart {
    fn name(&self) -> &'static str {
        "store"
    }

    fn check(&self) -> BoxFuture<'_, Result<Value, String>> {
        let is_full = self.0.figures().full != 0;
        Box::pin(std::future::ready(if is_full {
            Err("disk full".into())
        } else {
            Ok(json!({}))
        }))
    }

    fn impairs(&self) -> Vec<Feature> {
        // The log, which needs room too, says so as soon as it was refused some.
        match self.0.figures().full {
            0 => Vec::new(),
            _ => vec![Feature::Delivery],
        }
    }
}

struct DirectoryPart(Arc<SqliteDirectory>);

impl Part for DirectoryPart {
    fn name(&self) -> &'static str {
        "directory"
    }

    fn check(&self) -> BoxFuture<'_, Result<Value, String>> {
        Box::pin(async {
            match self.0.outbox_pending(1).await {
                Ok(_) => Ok(json!({})),
                Err(_) => Err("not answering".into()),
            }
        })
    }
}

struct StorageFigures(Arc<FileLog>, Arc<LsmStore>);

impl Figures for StorageFigures {
    fn write(&self, page: &mut Page<'_>) -> std::fmt::Result {
        let (log, store) = (self.0.metrics().figures(), self.1.figures());
        page.counter("chat_log_fsyncs", "Syncs of the log.", log.fsyncs)?;
        page.counter("chat_log_records", "Records appended.", log.records)?;
        page.counter(
            "chat_log_appended_bytes",
            "Bytes of records appended.",
            log.bytes,
        )?;
        page.counter(
            "chat_log_refused",
            "Records refused: queue or disk full.",
            log.refused + log.full,
        )?;
        page.gauge(
            "chat_log_queue_records",
            "Records waiting for the disk.",
            log.queue_records as i64,
        )?;
        page.gauge(
            "chat_log_retained_bytes",
            "Bytes of the log's files.",
            log.retained_bytes as i64,
        )?;
        page.gauge(
            "chat_store_files_bytes",
            "Bytes of the store's files.",
            store.segment_bytes as i64,
        )?;
        page.gauge(
            "chat_store_memory_bytes",
            "Bytes of rows gathered in memory.",
            store.unflushed_bytes as i64,
        )
    }
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
