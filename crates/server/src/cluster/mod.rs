//! The parts of a server of a cluster: engines that it shares with other servers.

mod figures;
mod health;
mod registry;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tidings_core::in_process::InProcessPeers;
use tidings_core::ports::BoxFuture;
use tidings_core::ports::dead_letters::DeadLetters;
use tidings_core::ports::directory::Directory;
use tidings_core::ports::log::Log;
use tidings_engines::StartError;
use tidings_engines::cassandra::{self, CassandraStore};
use tidings_engines::kafka::{self, KafkaDeadLetters, KafkaLog, KafkaOwnership, Pending};
use tidings_engines::peers::{StreamPeers, draw_server_number};
use tidings_engines::postgres::{self, PostgresDirectory};
use tidings_engines::redis::RedisRegistry;
use tidings_engines::s3::{self, S3Blobs};

use crate::config::Config;
use crate::embedded::make_private;
use crate::parts::{Keeper, Parts, Replaying};
use crate::system;

use figures::EngineFigures;
use registry::{CachedMembers, SavedMarks};

/// Connects to all engines; each that can't be used is one line with its setting.
pub async fn parts(config: &Config) -> anyhow::Result<Parts> {
    let keys = keys(config)?;
    let (log, store, directory, registry, blobs) = tokio::try_join!(
        KafkaLog::open(config.kafka.clone()),
        CassandraStore::open(config.cassandra.clone()),
        open_directory(config),
        RedisRegistry::open(config.redis.clone()),
        S3Blobs::open(config.s3.clone()),
    )?;
    let (log, store, registry) = (Arc::new(log), Arc::new(store), Arc::new(registry));
    let blobs = Arc::new(blobs);
    let local = Arc::new(InProcessPeers::new(log.partitions()));
    let server = draw_server_number()?;
    let peers =
        Arc::new(StreamPeers::open(&config.peers, server, log.partitions(), local.clone()).await?);
    let ownership = Arc::new(KafkaOwnership::join(&log)?);
    let pending = Pending::of(&log);
    tokio::spawn(registry::work_off(pending.clone(), registry.clone()));
    Ok(Parts {
        epoch: config.kafka.epoch,
        health: health::parts(&log, &store, &directory, &registry, &blobs, &peers),
        figures: Box::new(EngineFigures {
            log: log.clone(),
            store: store.clone(),
            directory: directory.clone(),
            registry: registry.metrics(),
            blobs: blobs.metrics(),
            peers: peers.metrics(),
        }),
        keeper: Box::new(Engines {
            log: log.clone(),
            ownership: ownership.clone(),
            peers: peers.clone(),
        }),
        dead_letters: Arc::new(KafkaDeadLetters::of(&log)),
        members: Arc::new(CachedMembers {
            cache: registry.membership(),
            directory: directory.clone(),
        }),
        registry: Arc::new(SavedMarks { registry, pending }),
        log,
        ownership,
        store,
        directory,
        peers,
        local,
        server,
        keys,
    })
}

/// The dead letters alone.
pub async fn dead_letters(config: &Config) -> anyhow::Result<Arc<dyn DeadLetters>> {
    let log = KafkaLog::open(config.kafka.clone()).await?;
    Ok(Arc::new(KafkaDeadLetters::of(&log)))
}

/// What dead letters are replayed with. Nothing of it joins the group of routers.
pub async fn replaying(config: &Config) -> anyhow::Result<Replaying> {
    let (log, store) = tokio::try_join!(
        KafkaLog::open(config.kafka.clone()),
        CassandraStore::open(config.cassandra.clone()),
    )?;
    Ok(Replaying {
        dead_letters: Arc::new(KafkaDeadLetters::of(&log)),
        log: Arc::new(log),
        store: Arc::new(store),
        is_routed: true,
    })
}

/// The directory alone, and the folder of the keys.
pub async fn directory(config: &Config) -> anyhow::Result<(Arc<dyn Directory>, PathBuf)> {
    let keys = keys(config)?;
    Ok((open_directory(config).await?, keys))
}

async fn open_directory(config: &Config) -> Result<Arc<PostgresDirectory>, StartError> {
    let directory = PostgresDirectory::open(&config.postgres, Arc::new(system::now)).await?;
    Ok(Arc::new(directory))
}

/// The folder of the keys that sign tokens, which must be the same for all servers.
fn keys(config: &Config) -> anyhow::Result<PathBuf> {
    let keys = &config.auth.keys_dir;
    if keys.as_os_str().is_empty() {
        bail!(
            "auth.keys_dir: a cluster's servers sign tokens with one key: name the folder that has it; `tidings migrate` makes the \
             first one"
        );
    }
    // A server that made one of its own would refuse the tokens of all others.
    if !keys.join("token.key").is_file() {
        bail!(
            "auth.keys_dir: there is no token.key in {}; `tidings migrate` makes the first one",
            keys.display()
        );
    }
    Ok(keys.clone())
}

/// Makes and upgrades what the engines hold; repeatable, and safe beside servers of the version before.
pub async fn migrate(config: &Config) -> anyhow::Result<Vec<String>> {
    let keys = &config.auth.keys_dir;
    if keys.as_os_str().is_empty() {
        bail!("auth.keys_dir: name the folder for the keys that sign tokens");
    }
    make_private(keys)?;
    let mut done = postgres::migrate(&config.postgres).await?;
    done.extend(cassandra::migrate(&config.cassandra).await?);
    done.extend(kafka::migrate(&config.kafka).await?);
    done.extend(s3::migrate(&config.s3).await?);
    crate::auth::make_server_key(keys).context("auth.keys_dir")?;
    done.push(format!("auth: the key in {} signs tokens", keys.display()));
    Ok(done)
}

struct Engines {
    log: Arc<KafkaLog>,
    ownership: Arc<KafkaOwnership>,
    peers: Arc<StreamPeers>,
}

impl Keeper for Engines {
    fn end(&self, within: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let (ownership, log) = (self.ownership.clone(), self.log.clone());
            let leave = tokio::task::spawn_blocking(move || {
                ownership.leave();
                log.shutdown();
            });
            if tokio::time::timeout(within, leave).await.is_err() {
                tracing::warn!("Kafka did not answer in time; its members notice by themselves");
            }
            self.peers.shutdown().await;
        })
    }
}
