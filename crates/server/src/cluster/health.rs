//! How the engines are, for `/health/ready`.

use std::sync::Arc;

use serde_json::{Value, json};
use tidings_core::ports::BoxFuture;
use tidings_engines::cassandra::CassandraStore;
use tidings_engines::kafka::KafkaLog;
use tidings_engines::peers::StreamPeers;
use tidings_engines::postgres::PostgresDirectory;
use tidings_engines::redis::RedisRegistry;
use tidings_engines::s3::S3Blobs;

use crate::parts::Part;

type Checked<'a> = BoxFuture<'a, Result<(), String>>;

struct Engine<T> {
    name: &'static str,
    engine: Arc<T>,
    check: fn(&T) -> Checked<'_>,
}

impl<T: Send + Sync> Part for Engine<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn check(&self) -> BoxFuture<'_, Result<Value, String>> {
        let check = (self.check)(&self.engine);
        Box::pin(async move { check.await.map(|()| json!({})) })
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
        Box::new(Engine {
            name: "kafka",
            engine: log.clone(),
            check: |log| Box::pin(log.check()),
        }),
        Box::new(Engine {
            name: "cassandra",
            engine: store.clone(),
            check: |store| Box::pin(store.check()),
        }),
        Box::new(Engine {
            name: "postgres",
            engine: directory.clone(),
            check: |directory| Box::pin(directory.check()),
        }),
        Box::new(Engine {
            name: "redis",
            engine: registry.clone(),
            check: |registry| Box::pin(registry.check()),
        }),
        Box::new(Engine {
            name: "s3",
            engine: blobs.clone(),
            check: |blobs| Box::pin(blobs.check()),
        }),
        Box::new(Engine {
            name: "peers",
            engine: peers.clone(),
            check: |peers| Box::pin(peers.check()),
        }),
    ]
}
