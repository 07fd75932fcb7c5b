//! Positions: where partitions end, what is committed, and the thread that asks Kafka for them.
//!
//! Questions block in the client, so they have a thread; those that wait are asked together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Offset, TopicPartitionList};
use tidings_core::ids::{Partition, Position};
use tidings_core::ports::log::LogError;
use tokio::sync::oneshot;

use super::context::Context;
use super::metrics::{Metrics, add};
use super::read::Wait;

/// How long one question may take.
pub(super) const QUESTION: Duration = Duration::from_secs(2);
/// How often the threads look around without being called.
const TICK: Duration = Duration::from_millis(50);
/// How often the ends of all partitions are asked for, for the gauge of what waits.
const REFRESH: Duration = Duration::from_secs(5);
/// A failed commit is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

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

/// The positions given to [`tidings_core::ports::log::Log::commit`], and what Kafka knows of them.
///
/// Commits are made by a thread of their own ([`Commits::run`]): the client tells the result of a commit only to
/// whoever waits for it, some seconds when Kafka is away.
pub(super) struct Commits {
    topic: String,
    lanes: Vec<Mutex<CommitLane>>,
    interval: Duration,
    /// Through whom commits go: while the process is a member of the group Kafka takes them from that member only.
    through: Mutex<Through>,
    /// Whether the thread is to end; and its bell.
    stop: Mutex<bool>,
    bell: Condvar,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Through {
    consumer: Option<Arc<BaseConsumer<Context>>>,
    /// Then only what is owned is committed.
    member: bool,
}

#[derive(Clone, Copy, Default)]
struct CommitLane {
    /// The highest given or found; 0 when none.
    given: u64,
    /// What Kafka is known to have.
    stored: u64,
    /// Not before then.
    rests_until: Option<Instant>,
    owned: bool,
}

impl Commits {
    pub(super) fn new(
        topic: &str,
        partitions: u32,
        interval: Duration,
        metrics: Arc<Metrics>,
    ) -> Commits {
        Commits {
            topic: topic.to_owned(),
            lanes: (0..partitions).map(|_| Mutex::default()).collect(),
            interval,
            through: Mutex::default(),
            stop: Mutex::new(false),
            bell: Condvar::new(),
            metrics,
        }
    }

    fn lane<R>(&self, partition: u32, f: impl FnOnce(&mut CommitLane) -> R) -> Option<R> {
        let lane = self.lanes.get(partition as usize)?;
        Some(f(&mut lane.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn through(&self) -> MutexGuard<'_, Through> {
        self.through.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on commits go through this consumer, as a member of the group or as nobody in particular.
    pub(super) fn go_through(&self, consumer: Option<Arc<BaseConsumer<Context>>>, member: bool) {
        *self.through() = Through { consumer, member };
    }

    /// Takes a position to commit. One for a partition that is another's now changes nothing: the
    /// new owner's counts, and Kafka would take a lower one after it.
    pub(super) fn give(&self, partition: u32, offset: u64) {
        let member = self.through().member;
        self.lane(partition, |lane| {
            if !member || lane.owned {
                lane.given = lane.given.max(offset);
            }
        });
    }

    /// The highest position given or found.
    pub(super) fn given(&self, partition: u32) -> u64 {
        self.lane(partition, |lane| lane.given).unwrap_or(0)
    }

    /// Kafka has this position.
    fn found(&self, partition: u32, offset: u64) {
        self.lane(partition, |lane| {
            lane.given = lane.given.max(offset);
            lane.stored = lane.stored.max(offset);
        });
    }

    /// From now on the partition's commits count, or don't.
    pub(super) fn own(&self, partition: u32, owned: bool) {
        self.lane(partition, |lane| lane.owned = owned);
    }

    /// Whether something of a partition isn't with Kafka yet.
    pub(super) fn is_behind(&self, partition: u32) -> bool {
        self.lane(partition, |lane| lane.given > lane.stored)
            .unwrap_or(false)
    }

    /// Commits these at once.
    pub(super) fn hurry(&self, partitions: &[u32]) {
        for partition in partitions {
            self.lane(*partition, |lane| lane.rests_until = None);
        }
        self.bell.notify_one();
    }

    /// Commits what is due; ends when told to, after a last look.
    pub(super) fn run(&self) {
        loop {
            let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
            let last = if *stop {
                true
            } else {
                // A bell that is missed rings again with the tick.
                let woken = self.bell.wait_timeout(stop, TICK);
                *woken.unwrap_or_else(PoisonError::into_inner).0
            };
            self.send(last);
            if last {
                return;
            }
        }
    }

    /// Makes [`Commits::run`] commit what is left, and end.
    pub(super) fn stop(&self) {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.notify_one();
    }

    fn send(&self, all: bool) {
        let (consumer, member) = {
            let through = self.through();
            match &through.consumer {
                Some(consumer) => (Arc::clone(consumer), through.member),
                None => return,
            }
        };
        let mut list = TopicPartitionList::new();
        let mut sent = Vec::new();
        for partition in 0..self.lanes.len() as u32 {
            let due = self.lane(partition, |lane| {
                let rests = lane.rests_until.is_some_and(|until| Instant::now() < until);
                let counts = !member || lane.owned;
                let due = lane.given > lane.stored && counts && (all || !rests);
                due.then(|| {
                    lane.rests_until = Some(Instant::now() + self.interval);
                    lane.given
                })
            });
            if let Some(given) = due.flatten() {
                let offset = Offset::Offset(i64::try_from(given).unwrap_or(i64::MAX));
                match list.add_partition_offset(&self.topic, partition as i32, offset) {
                    Ok(()) => sent.push((partition, given)),
                    Err(error) => tracing::error!(%error, partition, "not a position"),
                }
            }
        }
        if sent.is_empty() {
            return;
        }
        let result = consumer.commit(&list, CommitMode::Sync);
        for (partition, given) in &sent {
            self.lane(*partition, |lane| match &result {
                Ok(()) => lane.stored = lane.stored.max(*given),
                Err(_) => lane.rests_until = Some(Instant::now() + RETRY),
            });
        }
        let count = sent.len() as u64;
        match result {
            Ok(()) => add(&self.metrics.commits, count),
            Err(error) => {
                add(&self.metrics.commit_failures, count);
                tracing::warn!(%error, "positions were not committed; they are tried again");
            }
        }
    }
}

/// A question to the thread.
pub(super) enum Question {
    /// The committed position of a partition; asks for its end as well.
    Committed(u32, oneshot::Sender<Result<Position, LogError>>),
    /// A read whose position Kafka doesn't have: why.
    Gone(Wait),
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
            let mut gone = Vec::new();
            let mut next = match questions.recv_timeout(TICK) {
                Ok(question) => Some(question),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut stop = false;
            while let Some(question) = next {
                match question {
                    Question::Committed(partition, answer) => asked.push((partition, answer)),
                    Question::Gone(wait) => gone.push(wait),
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
            if !gone.is_empty() {
                self.explain(gone);
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

    /// Tells reads what the log holds instead of what they asked for.
    fn explain(&self, waits: Vec<Wait>) {
        for wait in waits {
            let partitions = [wait.partition];
            let ask = |which| {
                let found = bounds(&self.consumer, &self.topic, &partitions, which)?;
                found
                    .first()
                    .map(|(_, offset)| *offset)
                    .ok_or(KafkaError::NoMessageReceived)
            };
            let error =
                match ask(Offset::Beginning).and_then(|first| Ok((first, ask(Offset::End)?))) {
                    Ok((first, end)) => {
                        self.ends.seen(wait.partition, end);
                        wait.gone_or_later(self.epoch, first, end)
                    }
                    Err(error) => LogError::Unavailable(format!(
                        "Kafka has no position {} of {:?} and does not say what it has: {error}",
                        wait.from,
                        Partition(wait.partition)
                    )),
                };
            wait.answer(Err(error));
        }
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
