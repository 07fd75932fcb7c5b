//! Ownership of partitions: membership of the routers' group.
//!
//! The member's consumer holds membership and commits, nothing else: what it is assigned is paused, records are
//! read beside the group. Its thread does nothing that may wait, so a slow store never costs membership.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaRespErr;
use tidings_core::ids::Partition;
use tidings_core::ports::BoxFuture;
use tidings_core::ports::ownership::{Change, Ownership};
use tokio::sync::Notify;

use super::KafkaLog;
use super::commits::Commits;
use super::context::Context;
use super::metrics::{Metrics, add};
use crate::StartError;

/// How long the thread waits for events at most: how soon it sees that it is to leave.
const TICK: Duration = Duration::from_millis(100);
/// The same while partitions are to go: how soon it sees that they were released.
const TICK_GOING: Duration = Duration::from_millis(20);
/// How long the last commits of a partition that goes may take.
const FLUSH: Duration = Duration::from_secs(1);
/// How long the router has for letting go when the server ends.
const LEAVE: Duration = Duration::from_millis(600);
/// How long the end of membership takes at most, all in all.
const LEAVE_ALL: Duration = Duration::from_millis(1_500);

/// What is known of the partitions, shared by the member's thread and whoever takes the changes.
pub(super) struct Membership {
    topic: String,
    state: Mutex<State>,
    changed: Notify,
    commits: Arc<Commits>,
    metrics: Arc<Metrics>,
    release: Duration,
    leaving: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Changes that nobody took yet: at most `Lost`, `Gained` for each partition.
    changes: VecDeque<Change>,
    owned: BTreeSet<u32>,
    /// How many `Lost` of each partition wait for `released`.
    unanswered: Vec<u32>,
    /// What the group takes away, and its answer when it is let go.
    going: Option<Going>,
}

struct Going {
    partitions: Vec<u32>,
    list: TopicPartitionList,
    until: Instant,
    /// Since when the last commits are on their way.
    flushing: Option<Instant>,
}

impl Membership {
    fn state<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The group gave or takes partitions; called on the member's thread.
    pub(super) fn rebalance(
        &self,
        consumer: &BaseConsumer<Context>,
        change: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let partitions: Vec<u32> = list
            .elements_for_topic(&self.topic)
            .iter()
            .filter_map(|element| u32::try_from(element.partition()).ok())
            .collect();
        add(&self.metrics.rebalances, u64::from(!partitions.is_empty()));
        if change == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            // Nothing is read through this consumer, so from where doesn't matter; a stored position would be asked for.
            let assigned = list
                .set_all_offsets(Offset::End)
                .and_then(|()| consumer.incremental_assign(list))
                .and_then(|()| consumer.pause(list));
            if let Err(error) = assigned {
                tracing::error!(%error, ?partitions, "partitions given by the group were not taken");
            }
            tracing::info!(?partitions, "gained");
            self.gain(&partitions);
            return;
        }
        let lost = consumer.assignment_lost();
        if lost {
            add(&self.metrics.lost, partitions.len() as u64);
        }
        tracing::info!(?partitions, lost, "the group takes partitions");
        self.lose(&partitions);
        if lost || self.leaving.load(Ordering::Acquire) || partitions.is_empty() {
            self.let_go(consumer, &partitions, list);
            return;
        }
        let until = Instant::now() + self.release;
        self.state(|state| {
            state.going = Some(Going {
                partitions,
                list: list.clone(),
                until,
                flushing: None,
            });
        });
    }

    fn gain(&self, partitions: &[u32]) {
        self.state(|state| {
            for partition in partitions {
                state.owned.insert(*partition);
                self.commits.own(*partition, true);
                state
                    .changes
                    .push_back(Change::Gained(Partition(*partition)));
            }
            self.gauge(state);
        });
        self.changed.notify_one();
    }

    /// Tells that partitions go. What nobody knew of yet isn't told at all.
    fn lose(&self, partitions: &[u32]) {
        self.state(|state| {
            for partition in partitions {
                if !state.owned.remove(partition) {
                    continue;
                }
                let gained = Change::Gained(Partition(*partition));
                if let Some(place) = state.changes.iter().position(|change| *change == gained) {
                    state.changes.remove(place);
                    continue;
                }
                state.changes.push_back(Change::Lost(Partition(*partition)));
                if let Some(count) = state.unanswered.get_mut(*partition as usize) {
                    *count += 1;
                }
            }
            self.gauge(state);
        });
        self.changed.notify_one();
    }

    fn gauge(&self, state: &State) {
        let owned = state.owned.len() as u64;
        self.metrics.owned.store(owned, Ordering::Relaxed);
    }

    /// Gives partitions back to the group.
    fn let_go(
        &self,
        consumer: &BaseConsumer<Context>,
        partitions: &[u32],
        list: &TopicPartitionList,
    ) {
        for partition in partitions {
            self.commits.own(*partition, false);
        }
        if let Err(error) = consumer.incremental_unassign(list) {
            tracing::warn!(%error, ?partitions, "partitions were not given back");
        }
    }

    fn all_released(&self, state: &State, partitions: &[u32]) -> bool {
        partitions
            .iter()
            .all(|partition| state.unanswered.get(*partition as usize) == Some(&0))
    }

    /// Lets go what was released, or took too long, once its commits are with Kafka.
    fn go_on(&self, consumer: &BaseConsumer<Context>) {
        let Some(mut going) = self.state(|state| state.going.take()) else {
            return;
        };
        let now = Instant::now();
        let lost = consumer.assignment_lost();
        let released = self.state(|state| self.all_released(state, &going.partitions));
        if !lost && going.flushing.is_none() && (released || now >= going.until) {
            if !released {
                tracing::warn!(partitions = ?going.partitions, "the router did not let go in time");
            }
            self.commits.hurry(&going.partitions);
            going.flushing = Some(now);
        }
        let flushed = going.flushing.is_some_and(|since| {
            now - since > FLUSH || !going.partitions.iter().any(|p| self.commits.is_behind(*p))
        });
        if lost || flushed {
            self.let_go(consumer, &going.partitions, &going.list);
        } else {
            self.state(|state| state.going = Some(going));
        }
    }

    /// Membership until told to leave, then the end of it.
    fn run(&self, consumer: Arc<BaseConsumer<Context>>) {
        while !self.leaving.load(Ordering::Acquire) {
            // What comes in spite of the pause is read elsewhere.
            let tick = match self.state(|state| state.going.is_some()) {
                true => TICK_GOING,
                false => TICK,
            };
            if let Some(Err(error)) = consumer.poll(tick) {
                tracing::debug!(%error, "the group's member");
            }
            self.go_on(&consumer);
        }
        let owned: Vec<u32> = self.state(|state| state.owned.iter().copied().collect());
        let mut all = owned.clone();
        if let Some(going) = self.state(|state| state.going.take()) {
            all.extend(&going.partitions);
            self.lose(&owned);
            self.wait_and_flush(&consumer, &all);
            self.let_go(&consumer, &going.partitions, &going.list);
        } else {
            self.lose(&owned);
            self.wait_and_flush(&consumer, &all);
        }
        self.commits.go_through(None, true);
        // Leaves the group; the last rebalance is answered from here.
        drop(consumer);
        for partition in all {
            self.commits.own(partition, false);
        }
    }

    fn wait_and_flush(&self, consumer: &BaseConsumer<Context>, partitions: &[u32]) {
        let until = Instant::now() + LEAVE;
        while Instant::now() < until && !self.state(|state| self.all_released(state, partitions)) {
            _ = consumer.poll(TICK_GOING);
        }
        let until = Instant::now() + LEAVE / 2;
        while Instant::now() < until && partitions.iter().any(|p| self.commits.is_behind(*p)) {
            self.commits.hurry(partitions);
            _ = consumer.poll(TICK_GOING);
        }
    }
}

/// Membership of the group `kafka.group`; dropping it leaves the group and hands over at once.
pub struct KafkaOwnership {
    membership: Arc<Membership>,
    ended: Mutex<Receiver<()>>,
}

impl KafkaOwnership {
    /// Joins the group for a log's topic. From here on the log commits what it owns, and nothing else.
    ///
    /// # Errors
    /// When the client can't be made of the settings, or the thread not started.
    pub fn join(log: &KafkaLog) -> Result<KafkaOwnership, StartError> {
        let settings = log.settings();
        let membership = Arc::new(Membership {
            topic: settings.topic.clone(),
            state: Mutex::new(State {
                unanswered: vec![0; settings.partitions as usize],
                ..State::default()
            }),
            changed: Notify::new(),
            commits: Arc::clone(log.commits()),
            metrics: Arc::clone(log.metrics_shared()),
            release: Duration::from_millis(settings.release_timeout_ms.into()),
            leaving: AtomicBool::new(false),
        });
        let wrong = |error: &dyn std::fmt::Display| {
            StartError::wrong("kafka.group", format!("the group can't be joined: {error}"))
        };
        let context = Context {
            membership: Some(Arc::clone(&membership)),
            ..Context::default()
        };
        let consumer: Arc<BaseConsumer<Context>> = settings
            .member(&settings.group)
            .create_with_context(context)
            .map(Arc::new)
            .map_err(|error| wrong(&error))?;
        consumer
            .subscribe(&[&settings.topic])
            .map_err(|error| wrong(&error))?;
        log.commits().go_through(Some(Arc::clone(&consumer)), true);
        let (ending, ended) = channel();
        let running = Arc::clone(&membership);
        std::thread::Builder::new()
            .name("kafka-member".to_owned())
            .spawn(move || {
                running.run(consumer);
                // Whoever waited for it may have given up.
                _ = ending.send(());
            })
            .map_err(|error| wrong(&error))?;
        Ok(KafkaOwnership {
            membership,
            ended: Mutex::new(ended),
        })
    }

    /// Leaves the group: every partition is told [`Change::Lost`], released ones are handed over at once,
    /// all of them within 1.5 s. Blocks that long at most, so the changes must be taken elsewhere.
    pub fn leave(&self) {
        if self.membership.leaving.swap(true, Ordering::AcqRel) {
            return;
        }
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(LEAVE_ALL).is_err() {
            tracing::warn!(
                "Kafka was not told that this server leaves; its partitions move when its session ends"
            );
        }
    }

    /// The partitions owned now.
    pub fn owned(&self) -> Vec<Partition> {
        self.membership
            .state(|state| state.owned.iter().copied().map(Partition).collect())
    }
}

impl Drop for KafkaOwnership {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Ownership for KafkaOwnership {
    fn next(&self) -> BoxFuture<'_, Change> {
        Box::pin(async move {
            loop {
                let changed = self.membership.changed.notified();
                if let Some(change) = self.membership.state(|state| state.changes.pop_front()) {
                    return change;
                }
                changed.await;
            }
        })
    }

    fn released(&self, partition: Partition) {
        self.membership.state(|state| {
            if let Some(count) = state.unanswered.get_mut(partition.0 as usize) {
                *count = count.saturating_sub(1);
            }
        });
    }
}
