//! What is checked before the log is used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::context::{Context, LastError};
use super::positions::{bounds, committed, no_position, once_known};
use super::settings::{RETENTION_HOURS_MIN, Settings};
use crate::StartError;

/// How long one question of the start may take.
const QUESTION: Duration = Duration::from_secs(5);

/// How long a topic may be unknown to a broker that is slow to hear of it.
const NEWS: Duration = Duration::from_secs(1);

/// A topic as the cluster has it.
pub(super) struct Topic {
    pub(super) partitions: Vec<u32>,
    /// The fewest replicas of a partition.
    pub(super) replicas: u32,
    /// Whether each partition has a leader.
    pub(super) led: bool,
}

/// The cluster at the start.
pub(super) struct Cluster<'a> {
    pub(super) settings: &'a Settings,
    pub(super) consumer: BaseConsumer<Context>,
    last_error: Arc<LastError>,
}

pub(super) fn wrong(setting: &'static str, reason: impl Into<String>) -> StartError {
    StartError::wrong(setting, reason)
}

impl<'a> Cluster<'a> {
    pub(super) fn connect(settings: &'a Settings) -> Result<Cluster<'a>, StartError> {
        settings.validate()?;
        let last_error = Arc::new(LastError::default());
        let context = Context {
            last_error: Arc::clone(&last_error),
            ..Context::default()
        };
        let consumer =
            BaseConsumer::from_config_and_context(&settings.consumer(&settings.group), context)
                .map_err(|error| of_config(&error))?;
        Ok(Cluster {
            settings,
            consumer,
            last_error,
        })
    }

    /// Why nobody answered, for the operator.
    pub(super) fn away(&self, error: &KafkaError) -> StartError {
        // The errors of connections come a moment later, one by one.
        let until = Instant::now() + Duration::from_millis(300);
        let told = |last: Option<&(RDKafkaErrorCode, String)>| {
            last.is_some_and(|(code, _)| *code != RDKafkaErrorCode::AllBrokersDown)
        };
        while Instant::now() < until && !told(self.last_error.get().as_ref()) {
            _ = self.consumer.poll(Duration::from_millis(20));
        }
        let last = self.last_error.get();
        if let Some((
            RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed,
            reason,
        )) = &last
        {
            return wrong(
                "kafka.password",
                format!("Kafka does not accept kafka.username with it: {reason}"),
            );
        }
        if last.as_ref().map(|(code, _)| *code) == Some(RDKafkaErrorCode::SSL) {
            let reason = last.map(|(_, reason)| reason).unwrap_or_default();
            return wrong(
                "kafka.security_protocol",
                format!("TLS with Kafka failed: {reason}; look at kafka.ca_file, too"),
            );
        }
        let why = last.map_or_else(|| error.to_string(), |(_, reason)| reason);
        StartError::away(
            "kafka.brokers",
            format!(
                "no broker of {} answers ({why}); start Kafka, or correct the addresses",
                self.settings.broker_list()
            ),
        )
    }

    /// How many brokers are alive, and the topic if there is one.
    pub(super) fn look(&self, topic: &str) -> Result<(u32, Option<Topic>), StartError> {
        // A first answer takes a while after errors are known; those are told, not the time-out.
        let metadata = self
            .consumer
            .fetch_metadata(Some(topic), QUESTION)
            .map_err(|error| self.away(&error))?;
        let brokers = metadata.brokers().len() as u32;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let Some(found) = found else {
            return Ok((brokers, None));
        };
        match found.error().map(RDKafkaErrorCode::from) {
            None | Some(RDKafkaErrorCode::LeaderNotAvailable) => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                return Ok((brokers, None));
            }
            Some(code) => {
                return Err(wrong(
                    "kafka.topic",
                    format!("{topic} can't be used: {code}"),
                ));
            }
        }
        let partitions = found.partitions();
        if partitions.is_empty() {
            return Ok((brokers, None));
        }
        Ok((
            brokers,
            Some(Topic {
                partitions: partitions.iter().map(|p| p.id().unsigned_abs()).collect(),
                replicas: partitions
                    .iter()
                    .map(|p| p.replicas().len() as u32)
                    .min()
                    .unwrap_or(0),
                led: partitions.iter().all(|p| p.leader() >= 0),
            }),
        ))
    }

    /// What [`Cluster::look`] says once there is such a topic, or after this time.
    pub(super) fn look_for(
        &self,
        topic: &str,
        within: Duration,
        is_so: impl Fn(&Topic) -> bool,
    ) -> Result<(u32, Option<Topic>), StartError> {
        let until = Instant::now() + within;
        loop {
            let seen = self.look(topic)?;
            if seen.1.as_ref().is_some_and(&is_so) || Instant::now() >= until {
                return Ok(seen);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The shape of the topic: partitions, replicas, brokers.
    pub(super) fn check_shape(&self) -> Result<(), StartError> {
        let settings = self.settings;
        // The broker that answers may be the last to hear of a topic just made.
        let (brokers, topic) = self.look_for(&settings.topic, NEWS, |_| true)?;
        let Some(topic) = topic else {
            return Err(wrong(
                "kafka.topic",
                format!(
                    "{} does not exist on {}; run `tidings migrate`",
                    settings.topic,
                    settings.broker_list()
                ),
            ));
        };
        self.check_partitions(&topic)?;
        if topic.replicas < settings.replication {
            return Err(wrong(
                "kafka.replication",
                format!(
                    "the topic {} has {} replicas, {} are wanted (brokers alive: {brokers}); give it more with \
                     kafka-reassign-partitions.sh, or lower the setting and the promise",
                    settings.topic, topic.replicas, settings.replication
                ),
            ));
        }
        if brokers < settings.min_insync_replicas {
            return Err(StartError::away(
                "kafka.min_insync_replicas",
                format!(
                    "{} brokers must have each record and {brokers} are alive; start the others",
                    settings.min_insync_replicas
                ),
            ));
        }
        if brokers < settings.replication {
            tracing::warn!(
                brokers,
                "kafka.replication: {} replicas are wanted, fewer brokers are alive; one more lost and nothing is taken",
                settings.replication
            );
        }
        if !topic.led {
            return Err(StartError::away(
                "kafka.topic",
                format!(
                    "some partitions of {} have no leader; start the brokers that hold them",
                    settings.topic
                ),
            ));
        }
        Ok(())
    }

    pub(super) fn check_partitions(&self, topic: &Topic) -> Result<(), StartError> {
        let (has, wanted) = (topic.partitions.len(), self.settings.partitions);
        if has == wanted as usize {
            return Ok(());
        }
        Err(wrong(
            "kafka.partitions",
            format!(
                "the topic {} has {has} partitions, the setting says {wanted}: with another number conversations would \
                 lose their order. Set it to what `tidings migrate` made; a topic is never given more",
                self.settings.topic
            ),
        ))
    }

    /// Each partition has a committed position that is still in the log.
    pub(super) fn check_positions(&self) -> Result<(), StartError> {
        let (topic, group) = (&self.settings.topic, &self.settings.group);
        let all: Vec<u32> = (0..self.settings.partitions).collect();
        let away = |error: KafkaError| self.away(&error);
        let found = once_known(|| committed(&self.consumer, topic, &all)).map_err(away)?;
        let first: BTreeMap<u32, u64> =
            once_known(|| bounds(&self.consumer, topic, &all, Offset::Beginning))
                .map_err(away)?
                .into_iter()
                .collect();
        let missing: Vec<u32> = found
            .iter()
            .filter_map(|(partition, offset)| offset.is_none().then_some(*partition))
            .collect();
        if !missing.is_empty() {
            return Err(wrong("kafka.group", no_position(topic, group, &missing)));
        }
        for (partition, offset) in found {
            let first = first.get(&partition).copied().unwrap_or(0);
            if let Some(offset) = offset.filter(|offset| *offset < first) {
                return Err(wrong(
                    "kafka.group",
                    format!(
                        "{group} has stored partition {partition} of {topic} up to {offset}, but the log begins at {first}: \
                         what lies between was trimmed before it was stored. Restore it from a backup, or accept the loss \
                         with kafka-consumer-groups.sh --reset-offsets --to-earliest"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// What is wrong with the settings, when a client can't be made of them.
pub(super) fn of_config(error: &KafkaError) -> StartError {
    let setting = match error {
        KafkaError::ClientConfig(_, _, key, _) => match key.as_str() {
            "security.protocol" => "kafka.security_protocol",
            "sasl.mechanism" => "kafka.sasl_mechanism",
            "ssl.ca.location" => "kafka.ca_file",
            "compression.type" => "kafka.compression",
            _ => "kafka",
        },
        // Values that don't go together are told when the client is made; those of security do not.
        _ => "kafka.security_protocol",
    };
    // The description names the value, which is one of those with a fixed choice: any password is valid.
    let reason = match error {
        KafkaError::ClientConfig(_, description, key, _) => format!("{description} ({key})"),
        other => other.to_string(),
    };
    wrong(setting, reason)
}

pub(super) fn admin(settings: &Settings) -> Result<AdminClient<DefaultClientContext>, StartError> {
    AdminClient::from_config_and_context(&settings.client(), DefaultClientContext)
        .map_err(|error| of_config(&error))
}

pub(super) fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(QUESTION))
        .operation_timeout(Some(QUESTION))
}

/// The settings of the topic that the promises hang on.
pub(super) async fn check_topic_settings(settings: &Settings) -> Result<(), StartError> {
    let admin = admin(settings)?;
    let topic = &settings.topic;
    let away = |error: &dyn std::fmt::Display| {
        StartError::away(
            "kafka.brokers",
            format!("the settings of the topic {topic} can't be read: {error}"),
        )
    };
    let found = admin
        .describe_configs([&ResourceSpecifier::Topic(topic)], &options())
        .await
        .map_err(|error| away(&error))?;
    let resource = found
        .into_iter()
        .next()
        .ok_or_else(|| away(&"no answer"))?
        .map_err(|error| away(&error))?;
    let value = |name: &str| resource.get(name).and_then(|entry| entry.value.as_deref());
    let number = |name: &str| value(name).and_then(|value| value.parse::<i64>().ok());

    // Kafka takes a record with all replicas there are, if the setting asks for more: look at both numbers.
    let insync = number("min.insync.replicas").unwrap_or(1);
    if insync < i64::from(settings.min_insync_replicas) {
        return Err(wrong(
            "kafka.min_insync_replicas",
            format!(
                "the topic {topic} has min.insync.replicas={insync}, so an acknowledged message may be on {insync} broker(s) \
                 only, {} are wanted; raise it with kafka-configs.sh --alter --topic {topic} --add-config \
                 min.insync.replicas={}, or lower the setting and the promise",
                settings.min_insync_replicas, settings.min_insync_replicas
            ),
        ));
    }
    if settings.min_insync_replicas < 2 || settings.replication < 3 {
        tracing::warn!(
            "kafka.min_insync_replicas: {} of {} replicas must have a message before it is acknowledged: one broker lost \
             may lose acknowledged messages or stop the service. Right for a laptop; elsewhere use 2 of 3",
            settings.min_insync_replicas,
            settings.replication
        );
    }
    let must = |name: &'static str, wanted: &str, why: &str| match value(name) {
        Some(has) if has == wanted => Ok(()),
        has => Err(wrong(
            "kafka.topic",
            format!(
                "the topic {topic} has {name}={}, it must be {wanted}: {why}; change it with kafka-configs.sh --alter \
                 --topic {topic} --add-config {name}={wanted}",
                has.unwrap_or("?")
            ),
        )),
    };
    must(
        "message.timestamp.type",
        "LogAppendTime",
        "a sender's clock decides nothing",
    )?;
    must(
        "unclean.leader.election.enable",
        "false",
        "a broker that missed messages would become the leader",
    )?;
    must(
        "cleanup.policy",
        "delete",
        "compaction would remove messages",
    )?;
    must(
        "retention.bytes",
        "-1",
        "messages would be trimmed before they are stored",
    )?;
    let retention = number("retention.ms").unwrap_or(0);
    let least = i64::from(RETENTION_HOURS_MIN) * 3_600_000;
    if retention >= 0 && retention < least {
        must(
            "retention.ms",
            &least.to_string(),
            "the log must outlast a store that is away for days",
        )?;
    }
    let largest = number("max.message.bytes").unwrap_or(0);
    if largest < settings.message_bytes_max as i64 {
        return Err(wrong(
            "kafka.message_bytes_max",
            format!(
                "is {}, but the topic {topic} takes messages of {largest} bytes only (max.message.bytes); change one of them",
                settings.message_bytes_max
            ),
        ));
    }
    Ok(())
}

/// Runs what blocks on a thread for it.
pub(super) async fn blocking<T: Send + 'static>(
    settings: &Settings,
    work: impl FnOnce(&Settings) -> Result<T, StartError> + Send + 'static,
) -> Result<T, StartError> {
    let settings = settings.clone();
    tokio::task::spawn_blocking(move || work(&settings))
        .await
        .map_err(|error| wrong("kafka", format!("a check failed: {error}")))?
}
