//! The section `[kafka]`, and what it makes of the client's own settings.

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use serde::{Deserialize, Serialize};

use crate::{Secret, StartError};

/// How the log uses Kafka. The defaults are those for production, measured against broker deaths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Some of the brokers, `host:port` each; the others are learnt from them.
    pub brokers: Vec<String>,
    /// The topic of all events.
    pub topic: String,
    /// How many partitions `migrate` gives the topics. Never changed afterwards: a conversation's
    /// partition, and so its one order, hangs on it.
    pub partitions: u32,
    /// The consumer group that routers own partitions by; its committed positions are the log's.
    pub group: String,
    /// Which log this is: the epoch of all positions. Raised by an operator only when a log was lost.
    pub epoch: u32,
    /// Replicas of the topics. Below 3 an acknowledged message may be lost with one machine.
    pub replication: u32,
    /// How many replicas must have a record before it counts as appended, the leader included.
    pub min_insync_replicas: u32,
    /// The topic of marks for users who are away.
    pub pending_topic: String,
    /// The consumer group that works the marks off.
    pub pending_group: String,
    /// The topic for records that can't be read (`tidings dead-letters`).
    pub dead_letter_topic: String,
    /// How long `migrate` lets the topics keep records, in hours; less than 168 (7 days) is refused.
    pub retention_hours: u32,
    /// `plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`; all but the first need the feature `kafka-tls`.
    pub security_protocol: String,
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`; used with `sasl_…`.
    pub sasl_mechanism: String,
    /// The user name for SASL.
    pub username: String,
    /// The password for SASL.
    pub password: Secret,
    /// A file with the certificates (PEM) that brokers' certificates are judged by; empty: the system's.
    pub ca_file: String,
    /// How long a record waits for others to go with it, in milliseconds.
    pub linger_ms: u32,
    /// How many produce requests may be on their way to one broker, 1 to 5 (as idempotence wants it). Each holds one
    /// partition's batch; what comes meanwhile goes together with the next. So fewer make a broker that is slow, or
    /// shares its cores, do less for each record; more keep many partitions from waiting for each other.
    pub requests_in_flight: u32,
    /// How batches are compressed: `zstd`, `lz4`, `gzip`, `snappy` or `none`. Batches are small: zstd clears its tables
    /// for each, 7 % of the servers' CPU at 200 messages a second.
    pub compression: String,
    /// Bytes of records that may wait for Kafka; above it appends are refused.
    pub queue_bytes: usize,
    /// The largest record; a larger one is refused. The topic's `max.message.bytes` must allow it.
    pub message_bytes_max: usize,
    /// How long a broker may take to answer before another way is tried, in milliseconds. With 4,000 a broker that hangs
    /// was noticed after 14 s (one late answer after the other), with 2,000 after 5.
    pub request_timeout_ms: u32,
    /// How long a record is tried before it is given up, in milliseconds. Whoever appended it was told
    /// after `refuse_after_ms`.
    pub delivery_timeout_ms: u32,
    /// After how long without any record taken by a partition further ones are refused, and those that
    /// wait reported as not known, in milliseconds.
    pub refuse_after_ms: u32,
    /// How long a broker holds a fetch while there is nothing new, in milliseconds. It also bounds how
    /// long a partition waits to be taken into the next fetch.
    pub fetch_wait_ms: u32,
    /// The most that one fetch brings for one partition, in bytes.
    pub fetch_bytes: u32,
    /// What is fetched ahead of the router for one partition, in bytes.
    pub read_ahead_bytes: u32,
    /// What was read is kept for other readers of the partition, up to so many bytes.
    pub keep_bytes: usize,
    /// How long a server may be silent before its partitions go to others, in milliseconds.
    pub session_timeout_ms: u32,
    /// How often a server says that it lives, and how soon it hears of changes, in milliseconds.
    pub heartbeat_ms: u32,
    /// How long the router may take to let a partition go that another server is to have, in milliseconds.
    pub release_timeout_ms: u32,
    /// How often a partition's position is committed at most, in milliseconds.
    pub commit_interval_ms: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            brokers: vec!["127.0.0.1:9092".to_owned()],
            topic: "messages".to_owned(),
            partitions: 12,
            group: "routers".to_owned(),
            epoch: 1,
            replication: 3,
            min_insync_replicas: 2,
            pending_topic: "pending-messages".to_owned(),
            pending_group: "pending".to_owned(),
            dead_letter_topic: "dead-letters".to_owned(),
            retention_hours: 168,
            security_protocol: "plaintext".to_owned(),
            sasl_mechanism: "SCRAM-SHA-512".to_owned(),
            username: String::new(),
            password: Secret::default(),
            ca_file: String::new(),
            linger_ms: 5,
            requests_in_flight: 5,
            compression: "lz4".to_owned(),
            queue_bytes: 64 << 20,
            message_bytes_max: 1_000_000,
            request_timeout_ms: 2_000,
            delivery_timeout_ms: 20_000,
            refuse_after_ms: 1_800,
            fetch_wait_ms: 300,
            fetch_bytes: 1 << 20,
            read_ahead_bytes: 2 << 20,
            keep_bytes: 1 << 20,
            session_timeout_ms: 6_000,
            heartbeat_ms: 500,
            release_timeout_ms: 3_000,
            commit_interval_ms: 200,
        }
    }
}

impl Settings {
    /// The brokers in one string, as errors name them.
    pub(super) fn broker_list(&self) -> String {
        self.brokers.join(",")
    }

    /// What is wrong whatever Kafka says.
    pub(super) fn validate(&self) -> Result<(), StartError> {
        if self.brokers.is_empty() {
            return Err(StartError::wrong(
                "kafka.brokers",
                "names no broker; give at least one, host:port",
            ));
        }
        if !(1..=tidings_core::ids::SLOTS).contains(&self.partitions) {
            return Err(StartError::wrong("kafka.partitions", "must be 1 to 4096"));
        }
        if self.replication == 0 || self.min_insync_replicas == 0 {
            return Err(StartError::wrong(
                "kafka.replication",
                "replicas are counted from 1",
            ));
        }
        if self.min_insync_replicas > self.replication {
            return Err(StartError::wrong(
                "kafka.min_insync_replicas",
                format!(
                    "is {} of {} replicas: Kafka would silently take records with fewer; lower it or raise kafka.replication",
                    self.min_insync_replicas, self.replication
                ),
            ));
        }
        if self.retention_hours < RETENTION_HOURS_MIN {
            return Err(StartError::wrong(
                "kafka.retention_hours",
                format!(
                    "is {}: the log must outlast a store that is away; give {RETENTION_HOURS_MIN} or more",
                    self.retention_hours
                ),
            ));
        }
        if !(1..=5).contains(&self.requests_in_flight) {
            return Err(StartError::wrong(
                "kafka.requests_in_flight",
                "must be 1 to 5: with more an idempotent producer doesn't keep the order",
            ));
        }
        if self.heartbeat_ms * 3 > self.session_timeout_ms {
            return Err(StartError::wrong(
                "kafka.heartbeat_ms",
                "must be a third of kafka.session_timeout_ms or less",
            ));
        }
        if self.security_protocol != "plaintext" && !cfg!(feature = "kafka-tls") {
            return Err(StartError::wrong(
                "kafka.security_protocol",
                format!(
                    "is {}, which this program was built without; build it with the feature kafka-tls, or use plaintext",
                    self.security_protocol
                ),
            ));
        }
        Ok(())
    }

    /// What all clients have in common.
    pub(super) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set_log_level(RDKafkaLogLevel::Info)
            .set("bootstrap.servers", self.broker_list())
            .set("client.id", "tidings")
            .set("security.protocol", &self.security_protocol)
            // A hung broker is given up after this; librdkafka's default is a minute.
            .set("socket.timeout.ms", self.request_timeout_ms.to_string())
            .set("socket.nagle.disable", "true")
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set("topic.metadata.refresh.interval.ms", "30000");
        if self.security_protocol.starts_with("sasl") {
            config
                .set("sasl.mechanism", &self.sasl_mechanism)
                .set("sasl.username", &self.username)
                .set("sasl.password", &self.password.0);
        }
        if !self.ca_file.is_empty() {
            config.set("ssl.ca.location", &self.ca_file);
        }
        config
    }

    pub(super) fn producer(&self) -> ClientConfig {
        let mut config = self.client();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("compression.type", &self.compression)
            .set("linger.ms", self.linger_ms.to_string())
            .set(
                "max.in.flight.requests.per.connection",
                self.requests_in_flight.to_string(),
            )
            .set("request.timeout.ms", self.request_timeout_ms.to_string())
            .set("delivery.timeout.ms", self.delivery_timeout_ms.to_string())
            .set(
                "message.max.bytes",
                (self.message_bytes_max + 1024).to_string(),
            )
            .set("retry.backoff.ms", "50")
            .set("retry.backoff.max.ms", "500")
            // The bound is ours, over whole calls, so that none is taken by half.
            .set("queue.buffering.max.messages", "0")
            .set("queue.buffering.max.kbytes", "2147483647");
        config
    }

    /// A consumer of `group` that never commits or resets by itself.
    pub(super) fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // A position that isn't there is an error, never a skip to one that is.
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", self.fetch_wait_ms.to_string())
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.error.backoff.ms", "100")
            .set("fetch.message.max.bytes", self.fetch_bytes.to_string())
            .set(
                "fetch.max.bytes",
                (8 * self.fetch_bytes).max(1 << 20).to_string(),
            )
            .set("queued.min.messages", "10000")
            .set(
                "queued.max.messages.kbytes",
                (self.read_ahead_bytes / 1024).max(1).to_string(),
            );
        config
    }

    /// [`Settings::consumer`] of a group whose members share the partitions of a topic.
    pub(super) fn member(&self, group: &str) -> ClientConfig {
        let mut config = self.consumer(group);
        config
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", self.session_timeout_ms.to_string())
            .set("heartbeat.interval.ms", self.heartbeat_ms.to_string());
        config
    }
}

/// The least retention: half of it is what a store may be away.
pub(super) const RETENTION_HOURS_MIN: u32 = 168;
