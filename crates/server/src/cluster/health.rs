//! How the engines are, for `/health/ready`, the metrics and the clients.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tidings_core::ports::BoxFuture;
use tidings_engines::breaker::{BreakerMetrics, State};
use tidings_engines::cassandra::CassandraStore;
use tidings_engines::kafka::KafkaLog;
use tidings_engines::peers::StreamPeers;
use tidings_engines::postgres::PostgresDirectory;
use tidings_engines::redis::RedisRegistry;
use tidings_engines::s3::S3Blobs;
use tidings_protocol::wire::Feature;

use crate::parts::{Breaker, Part};

/// What a part needs of an engine.
trait Checked: Send + Sync {
    const NAME: &'static str;

    fn ask(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Breakers, and what clients get less of while each isn't closed.
    fn watched(&self) -> Vec<(&'static str, Arc<BreakerMetrics>, Option<Feature>)> {
        Vec::new()
    }

    fn impairs(&self) -> Vec<Feature> {
        let watched = self.watched().into_iter();
        watched
            .filter(|(_, metrics, _)| metrics.state() != State::Closed)
            .filter_map(|(_, _, feature)| feature)
            .collect()
    }
}

impl Checked for KafkaLog {
    const NAME: &'static str = "kafka";

    fn ask(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.check())
    }

    /// A partition that takes nothing is a breaker of its own: one broker leads a part of them.
    fn impairs(&self) -> Vec<Feature> {
        match self.shut_partitions() {
            0 => Vec::new(),
            _ => vec![Feature::Delivery],
        }
    }
}

impl Checked for CassandraStore {
    const NAME: &'static str = "cassandra";

    fn ask(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.check())
    }

    fn watched(&self) -> Vec<(&'static str, Arc<BreakerMetrics>, Option<Feature>)> {
        let [reads, writes] = self.breakers();
        vec![
            ("cassandra_reads", reads, Some(Feature::History)),
            ("cassandra_writes", writes, Some(Feature::Receipts)),
        ]
    }
}

impl Checked for PostgresDirectory {
    const NAME: &'static str = "postgres";

    fn ask(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.check())
    }

    fn watched(&self) -> Vec<(&'static str, Arc<BreakerMetrics>, Option<Feature>)> {
        // Who has signed in goes on as before.
        vec![("postgres", self.breaker(), None)]
    }
}

impl Checked for RedisRegistry {
    const NAME: &'static str = "redis";

    fn ask(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.check())
    }

    fn watched(&self) -> Vec<(&'static str, Arc<BreakerMetrics>, Option<Feature>)> {
        vec![("redis", self.breaker(), Some(Feature::Presence))]
    }

    /// Without a connection calls fail at once, too few on a quiet server to open the breaker.
    fn impairs(&self) -> Vec<Feature> {
        let is_connected = self.metrics().connected.load(Ordering::Relaxed) != 0;
        match is_connected && self.breaker().state() == State::Closed {
            true => Vec::new(),
            false => vec![Feature::Presence],
        }
    }
}

impl Checked for S3Blobs {
    const NAME: &'static str = "s3";

    fn ask(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.check())
    }

    fn watched(&self) -> Vec<(&'static str, Arc<BreakerMetrics>, Option<Feature>)> {
        vec![("s3", self.breaker(), None)]
    }
}

impl Checked for StreamPeers {
    const NAME: &'static str = "peers";

    fn ask(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.check())
    }
}

struct Engine<T>(Arc<T>);

impl<T: Checked> Part for Engine<T> {
    fn name(&self) -> &'static str {
        T::NAME
    }

    fn impairs(&self) -> Vec<Feature> {
        self.0.impairs()
    }

    fn breakers(&self) -> Vec<Breaker> {
        let watched = self.0.watched().into_iter();
        watched
            .map(|(name, metrics, _)| Breaker {
                name,
                state: metrics.state() as u8,
                opened: metrics.opened.load(Ordering::Relaxed),
                rejected: metrics.rejected.load(Ordering::Relaxed),
            })
            .collect()
    }

    fn check(&self) -> BoxFuture<'_, Result<Value, String>> {
        Box::pin(async move { self.0.ask().await.map(|()| json!({})) })
    }
}

/// All of them. None is needed to be ready: without Kafka sends wait in the clients' outboxes and all that
/// was sent can be read; without another one less is missing. A balancer that took every server out, and cut
/// its sessions, because Kafka is short of brokers would make an outage of a pause.
pub fn parts(
    log: &Arc<KafkaLog>,
    store: &Arc<CassandraStore>,
    directory: &Arc<PostgresDirectory>,
    registry: &Arc<RedisRegistry>,
    blobs: &Arc<S3Blobs>,
    peers: &Arc<StreamPeers>,
) -> Vec<Box<dyn Part>> {
    vec![
        Box::new(Engine(log.clone())),
        Box::new(Engine(store.clone())),
        Box::new(Engine(directory.clone())),
        Box::new(Engine(registry.clone())),
        Box::new(Engine(blobs.clone())),
        Box::new(Engine(peers.clone())),
    ]
}
