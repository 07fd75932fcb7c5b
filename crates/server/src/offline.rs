//! Commands on a data folder whose server doesn't run: API keys, and making it small.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tidings_core::in_process::InProcessRegistry;
use tokio::runtime::Runtime;

use crate::auth::Auth;
use crate::config::{Config, Mode};
use crate::{embedded, parts, routers, serve, system};

/// How long routing what the log still holds may take.
const DRAIN_MAX: Duration = Duration::from_secs(600);

/// Makes an API key; it is shown this once.
pub fn create_api_key(config: &Config, name: &str) -> anyhow::Result<String> {
    let runtime = runtime()?;
    let _entered = runtime.enter();
    runtime.block_on(async {
        let (directory, keys) = parts::directory(config).await?;
        let auth = Auth::open(
            &keys,
            directory,
            // No ticket is redeemed here.
            Arc::new(InProcessRegistry::new(system::now)),
            serve::auth_settings(config)?,
            Arc::new(system::now),
        )
        .await?;
        let (_, secret) = auth.create_api_key(name, vec!["server".into()]).await?;
        Ok(secret)
    })
}

/// Makes and upgrades what a cluster's engines hold; a line for each thing done.
pub fn migrate(config: &Config, wait: Duration) -> anyhow::Result<Vec<String>> {
    let runtime = runtime()?;
    runtime.block_on(parts::waiting(wait, || parts::migrate(config)))
}

pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")
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
    if config.server.mode != Mode::Embedded {
        bail!("server.mode: in a cluster the engines do this by themselves");
    }
    let runtime = runtime()?;
    let _entered = runtime.enter();
    let parts = embedded::parts(config)?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (routing, routers) = routers::start(
        serve::routing_parts(&parts, Default::default()),
        parts.ownership.clone(),
        parts.local.clone(),
        stopped,
    );
    let began = Instant::now();
    let end = parts.log.end(embedded::PARTITION).offset;
    while routers.settled(embedded::PARTITION) < end {
        if began.elapsed() > DRAIN_MAX || routers.is_broken() {
            bail!("the log's records could not all be stored");
        }
        runtime.block_on(tokio::time::sleep(Duration::from_millis(20)));
    }
    stop.send_replace(true);
    runtime.block_on(routing).context("routing failed")?;
    runtime.block_on(parts.keeper.end(DRAIN_MAX));
    drop(parts);
    let store = embedded::storage(config)?;
    store.store.compact_all()?;
    store.log.shutdown();
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
