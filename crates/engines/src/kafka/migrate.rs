//! What `tidings migrate` makes: topics with the settings that the promises hang on, and first positions.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::positions::{bounds, committed, no_position, once_known};
use super::settings::Settings;
use super::start::{Cluster, admin, blocking, options, wrong};
use crate::StartError;

/// How long a new topic may take until all its partitions have leaders.
const NEW_TOPIC: Duration = Duration::from_secs(15);

impl Cluster<'_> {
    /// Makes what is missing of positions, where nothing can be skipped by it.
    fn first_positions(&self, new: bool) -> Result<Option<String>, StartError> {
        let (topic, group) = (&self.settings.topic, &self.settings.group);
        let all: Vec<u32> = (0..self.settings.partitions).collect();
        let error = |error: KafkaError| self.away(&error);
        let found = once_known(|| committed(&self.consumer, topic, &all)).map_err(error)?;
        let missing: Vec<u32> = found
            .iter()
            .filter_map(|(partition, offset)| offset.is_none().then_some(*partition))
            .collect();
        if missing.is_empty() {
            return Ok(None);
        }
        // A topic of ours that was made, but not finished, has nothing in it: there the first position is right, too.
        let ends =
            once_known(|| bounds(&self.consumer, topic, &missing, Offset::End)).map_err(error)?;
        if !new && ends.iter().any(|(_, end)| *end > 0) {
            return Err(wrong("kafka.group", no_position(topic, group, &missing)));
        }
        let mut list = TopicPartitionList::new();
        for partition in &missing {
            list.add_partition_offset(topic, *partition as i32, Offset::Offset(0))
                .map_err(error)?;
        }
        self.consumer
            .commit(&list, CommitMode::Async)
            .map_err(error)?;
        let until = Instant::now() + NEW_TOPIC;
        loop {
            _ = self.consumer.poll(Duration::from_millis(50));
            let found = once_known(|| committed(&self.consumer, topic, &missing)).map_err(error)?;
            if found.iter().all(|(_, offset)| offset.is_some()) {
                break;
            }
            if Instant::now() > until {
                return Err(StartError::away(
                    "kafka.group",
                    format!("the first positions of {group} were not taken; try again"),
                ));
            }
        }
        Ok(Some(format!(
            "committed the first positions of {} partitions of {topic} for the group {group}",
            missing.len()
        )))
    }

    fn wait_for(&self, topic: &str) -> Result<(), StartError> {
        let (_, found) = self.look_for(topic, NEW_TOPIC, |topic| topic.led)?;
        if found.is_some_and(|topic| topic.led) {
            return Ok(());
        }
        Err(StartError::away(
            "kafka.topic",
            format!("{topic} was made, but has no leaders yet; try again"),
        ))
    }
}

/// Makes the topics and the first positions; what is there already stays as it is.
///
/// # Errors
/// When Kafka doesn't answer, has too few brokers, or has the topics in another shape.
pub async fn migrate(settings: &Settings) -> Result<Vec<String>, StartError> {
    let names = [
        settings.topic.clone(),
        settings.pending_topic.clone(),
        settings.dead_letter_topic.clone(),
    ];
    let asked = names.clone();
    let missing = blocking(settings, move |settings| {
        let cluster = Cluster::connect(settings)?;
        let mut missing = Vec::new();
        for name in asked {
            let (brokers, topic) = cluster.look(&name)?;
            match topic {
                Some(topic) if name == settings.topic => cluster.check_partitions(&topic)?,
                Some(_) => {}
                None if brokers < settings.replication => {
                    return Err(StartError::away(
                        "kafka.replication",
                        format!(
                            "{} replicas need as many brokers, {brokers} are alive; start the others, or lower it",
                            settings.replication
                        ),
                    ));
                }
                None => missing.push(name),
            }
        }
        Ok(missing)
    })
    .await?;
    let mut lines = Vec::new();
    let admin = admin(settings)?;
    for name in &names {
        if missing.contains(name) {
            lines.push(make(&admin, settings, name).await?);
        } else {
            lines.push(format!("the topic {name} is there"));
        }
    }
    let new = missing.contains(&settings.topic);
    let position = blocking(settings, move |settings| {
        let cluster = Cluster::connect(settings)?;
        for name in &missing {
            cluster.wait_for(name)?;
        }
        cluster.first_positions(new)
    })
    .await?;
    lines.extend(position);
    Ok(lines)
}

async fn make(
    admin: &AdminClient<DefaultClientContext>,
    settings: &Settings,
    name: &str,
) -> Result<String, StartError> {
    let retention = (u64::from(settings.retention_hours) * 3_600_000).to_string();
    let insync = settings.min_insync_replicas.to_string();
    let largest = (settings.message_bytes_max + 4096)
        .max(1_048_588)
        .to_string();
    let topic = NewTopic::new(
        name,
        settings.partitions as i32,
        TopicReplication::Fixed(settings.replication as i32),
    )
    .set("min.insync.replicas", &insync)
    .set("message.timestamp.type", "LogAppendTime")
    .set("unclean.leader.election.enable", "false")
    .set("cleanup.policy", "delete")
    .set("retention.ms", &retention)
    .set("retention.bytes", "-1")
    .set("max.message.bytes", &largest)
    // As the producer compressed it; a broker need not do it again.
    .set("compression.type", "producer");
    let refused = |reason: String| {
        wrong(
            "kafka.topic",
            format!("the topic {name} can't be made: {reason}"),
        )
    };
    let made = admin
        .create_topics([&topic], &options())
        .await
        .map_err(|error| refused(error.to_string()))?;
    match made.into_iter().next() {
        Some(Ok(_)) => Ok(format!(
            "made the topic {name}: {} partitions, {} replicas, min.insync.replicas {insync}",
            settings.partitions, settings.replication
        )),
        // Another `migrate` was faster.
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => {
            Ok(format!("the topic {name} is there"))
        }
        Some(Err((_, code))) => Err(refused(code.to_string())),
        None => Err(refused("no answer".to_owned())),
    }
}
