//! Commits: the positions up to which everything is stored, on their way to Kafka.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::context::Context;
use super::metrics::{Metrics, add};

/// How often the thread looks whether commits are due while there are some.
const TICK: Duration = Duration::from_millis(50);
/// And while there are none: the first one rings.
const TICK_IDLE: Duration = Duration::from_secs(1);
/// A failed commit is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

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
        let is_first = self.lane(partition, |lane| {
            let was_behind = lane.given > lane.stored;
            if !member || lane.owned {
                lane.given = lane.given.max(offset);
            }
            !was_behind && lane.given > lane.stored
        });
        if is_first == Some(true) {
            self.bell.notify_one();
        }
    }

    /// The highest position given or found.
    pub(super) fn given(&self, partition: u32) -> u64 {
        self.lane(partition, |lane| lane.given).unwrap_or(0)
    }

    /// Kafka has this position.
    pub(super) fn found(&self, partition: u32, offset: u64) {
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
                let is_behind = (0..self.lanes.len() as u32).any(|p| self.is_behind(p));
                let tick = if is_behind { TICK } else { TICK_IDLE };
                let woken = self.bell.wait_timeout(stop, tick);
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
        let behind = |lane: &CommitLane| lane.given > lane.stored && (!member || lane.owned);
        let now = Instant::now();
        let is_due = |lane: &mut CommitLane| {
            let rests = lane.rests_until.is_some_and(|until| now < until);
            behind(lane) && (all || !rests)
        };
        let partitions = 0..self.lanes.len() as u32;
        if !partitions
            .clone()
            .any(|p| self.lane(p, is_due).unwrap_or(false))
        {
            return;
        }
        // With one that is due go all that are behind: a request costs the same for all of them.
        let mut list = TopicPartitionList::new();
        let mut sent = Vec::new();
        for partition in partitions {
            let given = self.lane(partition, |lane| {
                behind(lane).then(|| {
                    lane.rests_until = Some(now + self.interval);
                    lane.given
                })
            });
            if let Some(given) = given.flatten() {
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
