//! Commands on a data folder whose server doesn't run: API keys, and making it small.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tidings_core::in_process::InProcessPeers;
use tidings_core::ports::directory::Directory;
use tidings_core::ports::log::Log;
use tidings_core::ports::store::Store;

use crate::auth::Auth;
use crate::config::Config;
use crate::{embedded, serve, system};

/// How long routing what the log still holds may take.
const DRAIN_MAX: Duration = Duration::from_secs(600);

/// Makes an API key; it is shown this once.
pub fn create_api_key(config: &Config, name: &str) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let _entered = runtime.enter();
    let directory: Arc<dyn Directory> = embedded::directory(config)?;
    let dir = config.data.dir.join("auth");
    embedded::make_private(&dir)?;
    runtime.block_on(async {
        let auth = Auth::open(
            &dir,
            directory,
            serve::auth_settings(config)?,
            Arc::new(system::now),
        )
        .await?;
        let (_, secret) = auth.create_api_key(name, vec!["server".into()]).await?;
        Ok(secret)
    })
}

/// Bytes of each part of a data folder, after everything was stored and merged.
pub struct Sizes {
    /// The log's files, trimmed.
    pub log: u64,
    /// The store's files, merged.
    pub store: u64,
    /// The directory, shown beside.
    pub directory: u64,
    /// The blobs, shown beside.
    pub blobs: u64,
}

/// Routes what the log still holds, flushes, trims the log and merges the store.
pub fn compact(config: &Config) -> anyhow::Result<Sizes> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let _entered = runtime.enter();
    let storage = embedded::storage(config)?;
    let directory: Arc<dyn Directory> = embedded::directory(config)?;
    let partition = embedded::PARTITION;
    let (log, store): (Arc<dyn Log>, Arc<dyn Store>) = (storage.log.clone(), storage.store.clone());
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let peers = Arc::new(InProcessPeers::new(1));
    let (router, gauge) = serve::route_offline(&log, &store, &directory, &peers, stopped)?;
    let began = Instant::now();
    let end = log.end(partition).offset;
    while gauge.settled.load(std::sync::atomic::Ordering::Relaxed) < end {
        if began.elapsed() > DRAIN_MAX || router.is_finished() {
            bail!("the log's records could not all be stored");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    stop.send_replace(true);
    router.join().ok().context("routing failed")?;
    storage.store.flush()?;
    storage.store.compact_all()?;
    let settled = storage.store.settled(partition);
    runtime.block_on(log.commit(partition, settled))?;
    drop(log);
    storage.log.shutdown();
    let dir = &config.data.dir;
    Ok(Sizes {
        log: bytes_in(&dir.join("log"))?,
        store: bytes_in(&dir.join("store"))?,
        directory: bytes_in(&dir.join("directory"))?,
        blobs: bytes_in(&dir.join("blobs"))?,
    })
}

fn bytes_in(dir: &Path) -> anyhow::Result<u64> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error).with_context(|| format!("can't read {}", dir.display())),
    };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() {
            bytes_in(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(bytes)
}
