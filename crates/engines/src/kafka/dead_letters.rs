//! `dead-letters`: records that can't be read, in a topic of their own.
//!
//! A letter goes to the topic's partition of the log's number and is kept for the topic's retention. A record
//! set aside twice stands there twice; whoever reads takes the first. The topic is read from its beginning for
//! each question: operators ask, and letters are few.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::dead_letters::{
    DeadLetter, DeadLetterError, DeadLetters, Key, Page, READ_DEADLINE, Smallest,
};
use tidings_core::ports::log::LogError;
use tokio::sync::oneshot;

use super::append::{Appender, Piece};
use super::context::Context;
use super::positions::QUESTION;
use super::settings::Settings;
use super::{DEAD_LETTERS, KafkaLog};

/// How long one look for more letters waits.
const POLL: Duration = Duration::from_millis(100);
/// How long nothing may come although there is something.
const STUCK: Duration = Duration::from_secs(15);

type Answer<T> = Result<T, DeadLetterError>;

/// Dead letters in a topic.
#[derive(Clone)]
pub struct KafkaDeadLetters {
    appender: Arc<Appender>,
    settings: Settings,
}

impl KafkaDeadLetters {
    /// The letters beside a log; they share its producer, and its bounds.
    pub fn of(log: &KafkaLog) -> KafkaDeadLetters {
        KafkaDeadLetters {
            appender: Arc::clone(log.appender()),
            settings: log.settings().clone(),
        }
    }

    /// Runs questions, which block in the client.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Topic) -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        let settings = self.settings.clone();
        let blocking = move || work(&Topic::open(settings)?);
        tokio::task::spawn_blocking(blocking)
            .await
            .map_err(|error| away(&error))?
    }
}

impl DeadLetters for KafkaDeadLetters {
    fn put(&self, letter: DeadLetter) -> BoxFuture<'_, Answer<()>> {
        let (partition, position) = letter.heading.key();
        let encoded = letter.encode();
        let largest = self.settings.message_bytes_max;
        Box::pin(async move {
            if partition.0 >= self.settings.partitions || encoded.len() > largest {
                // No later try is better.
                return Err(DeadLetterError::Full(format!(
                    "a letter of {} bytes for partition {} of {} (kafka.message_bytes_max is {largest})",
                    encoded.len(),
                    partition.0,
                    self.settings.partitions
                )));
            }
            let (report, reported) = oneshot::channel();
            let piece = Piece {
                partition: partition.0,
                key: position.offset,
                payload: &encoded,
            };
            // Whoever waited for it may have gone.
            let report = Box::new(move |result: Result<(), LogError>| _ = report.send(result));
            self.appender.append(DEAD_LETTERS, &[piece], report);
            match reported.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(LogError::Unavailable(why) | LogError::Unknown(why))) => Err(away(&why)),
                Ok(Err(error)) => Err(away(&error)),
                Err(_) => Err(away(&"the log was shut down")),
            }
        })
    }

    fn list(&self, after: Option<Key>, limit: usize) -> BoxFuture<'_, Answer<Page>> {
        Box::pin(self.run(move |topic| {
            let mut smallest = Smallest::new(after, limit);
            let first = after.map_or(0, |(partition, _)| partition.0);
            for partition in first..topic.settings.partitions {
                topic.scan(partition, |letter| {
                    smallest.offer(letter.heading);
                    ControlFlow::Continue(())
                })?;
                if smallest.is_full() {
                    break;
                }
            }
            Ok(smallest.page())
        }))
    }

    fn get(&self, key: Key) -> BoxFuture<'_, Answer<Option<DeadLetter>>> {
        Box::pin(self.run(move |topic| {
            let mut found = None;
            if key.0.0 < topic.settings.partitions {
                topic.scan(key.0.0, |letter| {
                    if letter.heading.key() != key {
                        return ControlFlow::Continue(());
                    }
                    found = Some(letter);
                    ControlFlow::Break(())
                })?;
            }
            Ok(found)
        }))
    }
}

/// The topic, read from the beginning.
struct Topic {
    settings: Settings,
    consumer: BaseConsumer<Context>,
    until: Instant,
}

impl Topic {
    fn open(settings: Settings) -> Answer<Topic> {
        // Partitions are assigned by hand and nothing is committed, so the group's other members don't notice.
        let mut config = settings.consumer(&settings.group);
        config.set("enable.partition.eof", "true");
        let consumer = BaseConsumer::from_config_and_context(&config, Context::default())
            .map_err(|error| away(&error))?;
        Ok(Topic {
            settings,
            consumer,
            until: Instant::now() + READ_DEADLINE,
        })
    }

    /// Gives each letter of a partition that is there now to `visit`, in the order they were put.
    fn scan(
        &self,
        partition: u32,
        mut visit: impl FnMut(DeadLetter) -> ControlFlow<()>,
    ) -> Answer<()> {
        let name = &self.settings.dead_letter_topic;
        let number = i32::try_from(partition).unwrap_or(i32::MAX);
        let explain =
            |error: KafkaError| away(&format!("partition {partition} of {name}: {error}"));
        let (low, high) = self
            .consumer
            .fetch_watermarks(name, number, QUESTION)
            .map_err(explain)?;
        if low >= high {
            return Ok(());
        }
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(name, number, Offset::Offset(low))
            .map_err(explain)?;
        self.consumer.assign(&list).map_err(explain)?;
        let mut heard = Instant::now();
        loop {
            let late = Instant::now() > self.until || heard.elapsed() > STUCK;
            match self.consumer.poll(POLL) {
                None if late => {
                    return Err(away(&format!(
                        "partition {partition} of {name} was not read to its end in time"
                    )));
                }
                None => {}
                // One of a partition before may come late.
                Some(Err(KafkaError::PartitionEOF(of))) if of != number => {}
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                Some(Err(error)) if late => return Err(explain(error)),
                // The client tries again by itself.
                Some(Err(error)) => tracing::debug!(%error, partition, "reading dead letters"),
                Some(Ok(message)) => {
                    if message.partition() != number {
                        // Fetched before the assignment changed.
                        continue;
                    }
                    heard = Instant::now();
                    let payload = message.payload().unwrap_or_default();
                    let offset = message.offset();
                    match DeadLetter::decode(payload) {
                        Ok(letter) if letter.heading.partition.0 == partition => {
                            if visit(letter).is_break() {
                                return Ok(());
                            }
                        }
                        Ok(_) => {
                            tracing::warn!(partition, offset, "a dead letter of another partition")
                        }
                        Err(error) => {
                            tracing::warn!(%error, partition, offset, "a record of {name} is no dead letter");
                        }
                    }
                    if offset + 1 >= high {
                        return Ok(());
                    }
                    if Instant::now() > self.until {
                        return Err(away(&format!(
                            "partition {partition} of {name} holds more than can be read in time"
                        )));
                    }
                }
            }
        }
    }
}

fn away(error: &dyn std::fmt::Display) -> DeadLetterError {
    DeadLetterError::Unavailable(error.to_string())
}
