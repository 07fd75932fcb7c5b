//! Positions: where partitions end, and the thread that asks Kafka for them and for what is committed.
//!
//! Questions block in the client, so they have a thread; those that wait are asked together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Offset, TopicPartitionList};
use tidings_core::ids::{Partition, Position};
use tidings_core::ports::log::LogError;
use tokio::sync::oneshot;

use super::commits::Commits;
use super::context::Context;

/// How long one question may take.
pub(super) const QUESTION: Duration = Duration::from_secs(2);
/// Within this all brokers know of a new topic.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// How often the thread looks around without being called.
const TICK: Duration = Duration::from_secs(1);
/// How often the ends of all partitions are asked for, for the gauge of what waits.
const REFRESH: Duration = Duration::from_secs(5);

/// The end of each partition, as far as it was seen.
pub(super) struct Ends(Vec<AtomicU64>);

impl Ends {
    pub(super) fn new(partitions: u32) -> Ends {
        Ends((0..partitions).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn get(&self, partition: u32) -> u64 {
        self.0
            .get(partition as usize)
            .map_or(0, |end| end.load(Ordering::Acquire))
    }

    /// An end never goes back: what was committed stays so, whatever a new leader knows by now.
    pub(super) fn seen(&self, partition: u32, end: u64) {
        if let Some(known) = self.0.get(partition as usize) {
            known.fetch_max(end, Ordering::AcqRel);
        }
    }
}

/// A question to the thread.
pub(super) enum Question {
    /// The committed position of a partition; asks for its end as well.
    Committed(u32, oneshot::Sender<Result<Position, LogError>>),
    /// Where a partition begins and ends.
    Bounds(u32, oneshot::Sender<Result<(u64, u64), LogError>>),
    /// The end.
    Stop,
}

/// What the thread works with.
pub(super) struct Positions {
    pub(super) consumer: Arc<BaseConsumer<Context>>,
    pub(super) topic: String,
    pub(super) group: String,
    pub(super) epoch: u32,
    pub(super) ends: Arc<Ends>,
    pub(super) commits: Arc<Commits>,
}

/// The error when a position is missing.
pub(super) fn no_position(topic: &str, group: &str, partitions: &[u32]) -> String {
    format!(
        "the group {group} has no committed position for partitions {partitions:?} of the topic {topic}, so nobody knows \
         what is stored. If nothing of the topic was trimmed, set it back to the beginning, which loses nothing: \
         kafka-consumer-groups.sh --group {group} --topic {topic} --reset-offsets --to-earliest --execute"
    )
}

/// Asks again for a while when the answer is that brokers don't know yet who leads or coordinates: of
/// a topic or group just made each hears at its own time.
pub(super) fn once_known<T>(question: impl Fn() -> KafkaResult<T>) -> KafkaResult<T> {
    use rdkafka::error::RDKafkaErrorCode as Code;
    let until = Instant::now() + KNOWN_WITHIN;
    loop {
        let answer = question();
        let code = answer
            .as_ref()
            .err()
            .and_then(KafkaError::rdkafka_error_code);
        let is_early = matches!(
            code,
            Some(
                Code::UnknownTopicOrPartition
                    | Code::UnknownTopic
                    | Code::UnknownPartition
                    | Code::LeaderNotAvailable
                    | Code::NotLeaderForPartition
                    | Code::CoordinatorLoadInProgress
                    | Code::CoordinatorNotAvailable
                    | Code::NotCoordinator
            )
        );
        if !is_early || Instant::now() >= until {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The committed positions of some partitions; `None`: there is none.
pub(super) fn committed(
    consumer: &BaseConsumer<Context>,
    topic: &str,
    partitions: &[u32],
) -> KafkaResult<Vec<(u32, Option<u64>)>> {
    let list = list_of(topic, partitions, None)?;
    let found = consumer.committed_offsets(list, QUESTION)?;
    found
        .elements()
        .iter()
        .map(|element| {
            element.error()?;
            let offset = match element.offset() {
                Offset::Offset(offset) => u64::try_from(offset).ok(),
                _ => None,
            };
            Ok((element.partition().unsigned_abs(), offset))
        })
        .collect()
}

/// The first positions ([`Offset::Beginning`]) or those behind the last committed records ([`Offset::End`]).
pub(super) fn bounds(
    consumer: &BaseConsumer<Context>,
    topic: &str,
    partitions: &[u32],
    which: Offset,
) -> KafkaResult<Vec<(u32, u64)>> {
    let list = list_of(topic, partitions, Some(which))?;
    let found = consumer.offsets_for_times(list, QUESTION)?;
    found
        .elements()
        .iter()
        .map(|element| {
            element.error()?;
            match element.offset() {
                Offset::Offset(offset) if offset >= 0 => {
                    Ok((element.partition().unsigned_abs(), offset.unsigned_abs()))
                }
                _ => Err(KafkaError::NoMessageReceived),
            }
        })
        .collect()
}

fn list_of(
    topic: &str,
    partitions: &[u32],
    offset: Option<Offset>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        let mut element = list.add_partition(topic, *partition as i32);
        if let Some(offset) = offset {
            element.set_offset(offset)?;
        }
    }
    Ok(list)
}

impl Positions {
    /// Answers until told to stop.
    pub(super) fn run(self, questions: &Receiver<Question>) {
        let all: Vec<u32> = (0..self.ends.0.len() as u32).collect();
        let mut refreshed = Instant::now();
        loop {
            let mut asked = Vec::new();
            let mut next = match questions.recv_timeout(TICK) {
                Ok(question) => Some(question),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut stop = false;
            while let Some(question) = next {
                match question {
                    Question::Committed(partition, answer) => asked.push((partition, answer)),
                    // Whoever asked may have gone.
                    Question::Bounds(partition, answer) => _ = answer.send(self.bounds(partition)),
                    Question::Stop => stop = true,
                }
                next = questions.try_recv().ok();
            }
            if stop {
                break;
            }
            if !asked.is_empty() {
                self.answer(asked);
            }
            if refreshed.elapsed() > REFRESH {
                refreshed = Instant::now();
                self.refresh(&all).unwrap_or_else(|error| {
                    tracing::debug!(%error, "the ends of the partitions are not known now");
                });
            }
            // Serves log lines and errors; no messages come without an assignment.
            while self.consumer.poll(Duration::ZERO).is_some() {}
        }
    }

    fn refresh(&self, partitions: &[u32]) -> KafkaResult<()> {
        for (partition, end) in bounds(&self.consumer, &self.topic, partitions, Offset::End)? {
            self.ends.seen(partition, end);
        }
        Ok(())
    }

    fn answer(&self, asked: Vec<(u32, oneshot::Sender<Result<Position, LogError>>)>) {
        let mut partitions: Vec<u32> = asked.iter().map(|(partition, _)| *partition).collect();
        partitions.sort_unstable();
        partitions.dedup();
        let found = self
            .refresh(&partitions)
            .and_then(|()| committed(&self.consumer, &self.topic, &partitions));
        if let Ok(found) = &found {
            for (partition, offset) in found {
                if let Some(offset) = offset {
                    self.commits.found(*partition, *offset);
                }
            }
        }
        for (partition, answer) in asked {
            let given = self.commits.given(partition);
            let result = match &found {
                Err(error) => Err(LogError::Unavailable(format!(
                    "Kafka does not say what is committed: {error}"
                ))),
                Ok(found) => match found.iter().find(|(p, _)| *p == partition) {
                    Some((_, None)) | None if given == 0 => Err(LogError::Unavailable(
                        no_position(&self.topic, &self.group, &[partition]),
                    )),
                    _ => Ok(Position {
                        epoch: self.epoch,
                        offset: given,
                    }),
                },
            };
            // Whoever asked may have gone.
            _ = answer.send(result);
        }
    }

    fn bounds(&self, partition: u32) -> Result<(u64, u64), LogError> {
        let ask = |which| {
            let found = bounds(&self.consumer, &self.topic, &[partition], which)?;
            let first = found.first().map(|(_, offset)| *offset);
            first.ok_or(KafkaError::NoMessageReceived)
        };
        let found = ask(Offset::Beginning).and_then(|first| Ok((first, ask(Offset::End)?)));
        let (first, end) = found.map_err(|error| {
            LogError::Unavailable(format!(
                "Kafka does not say where {:?} begins and ends: {error}",
                Partition(partition)
            ))
        })?;
        self.ends.seen(partition, end);
        Ok((first, end))
    }
}

/// Asks the thread; `Unavailable` when it is gone.
pub(super) async fn ask<T>(
    questions: &Sender<Question>,
    question: impl FnOnce(oneshot::Sender<Result<T, LogError>>) -> Question,
) -> Result<T, LogError> {
    let (answer, answered) = oneshot::channel();
    let down = || LogError::Unavailable("the log was shut down".to_owned());
    questions.send(question(answer)).map_err(|_| down())?;
    answered.await.map_err(|_| down())?
}
