//! Reading: a queue of the client's for each partition, and what was read lately.
//!
//! Whoever reads takes its records out of the client's queue itself: a thread between the two cost as much as all that a
//! router does with a record. What has to wait for the client, beginning elsewhere, is left to a thread
//! ([`Reader::run`]), which also begins anew what is stuck and ends the fetches of a partition that nobody reads.
//!
//! Records leave the client's queue only when a read waits for them, so what is fetched ahead is bounded by
//! the client ([`Settings::read_ahead_bytes`] a partition) and a slow router never holds up another partition.
//! What was read is kept up to [`Settings::keep_bytes`]: a dropped read finds its records again, and readers
//! close to each other share them. A read from elsewhere makes the reader jump there.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use tidings_core::ids::{Micros, Position};
use tidings_core::record::Committed;
use tokio::sync::Notify;

use super::context::Context;
use super::metrics::{Metrics, add};
use super::positions::Ends;
use super::settings::Settings;

/// How often the thread looks around without being called.
const TICK: Duration = Duration::from_millis(100);
/// How long a read has the partition before one from elsewhere may take it away.
const TURN: Duration = Duration::from_millis(100);
/// When nothing came for so long although there is something, the partition is begun anew.
const STUCK: Duration = Duration::from_secs(5);
/// How long a partition rests that could not be read.
const REST: Duration = Duration::from_secs(1);
/// How often those that wait look again without being called.
const CALL: Duration = Duration::from_secs(1);
/// How long a partition is fetched that nobody reads: another server has it, or the store is behind.
const UNREAD_MAX: Duration = Duration::from_secs(2);
/// The most reads that wait on one partition.
const WAITS_MAX: usize = 1000;

/// What the thread is asked for.
pub(super) enum Ask {
    /// Somebody waits for records of this partition that the client isn't at.
    Begin(u32),
    Stop,
}

/// Why a read ended without records.
pub(super) enum ReadError {
    /// Kafka doesn't have the position.
    Gone,
    /// Try again.
    Unavailable(&'static str),
}

pub(super) struct Reader {
    consumer: Arc<BaseConsumer<Context>>,
    settings: Settings,
    ends: Arc<Ends>,
    metrics: Arc<Metrics>,
    lanes: Vec<Lane>,
    asks: Sender<Ask>,
    closed: AtomicBool,
}

/// A partition.
#[derive(Default)]
struct Lane {
    state: Mutex<State>,
    /// Told when there may be something for those who wait.
    came: Arc<Notify>,
}

impl Lane {
    /// A panic while it was locked leaves whole records in it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct State {
    queue: Option<PartitionQueue<Context>>,
    /// The position that Kafka gives next; none: it gives nothing.
    next: Option<u64>,
    /// When it was begun there, and when something came last.
    since: Option<Instant>,
    heard: Option<Instant>,
    /// Not begun anew before then.
    rests_until: Option<Instant>,
    called: Option<Instant>,
    /// When somebody read last.
    read: Option<Instant>,
    recent: VecDeque<Committed>,
    recent_bytes: usize,
    /// Reads that wait: their number, and from where.
    waits: Vec<(u64, u64)>,
    last_wait: u64,
}

/// A read's place among those that wait.
struct Place<'a>(&'a Lane, u64);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.state().waits.retain(|(number, _)| *number != self.1);
    }
}

impl State {
    /// Records from that position on, if they are there.
    fn find(&self, from: u64, bytes_max: usize) -> Option<Vec<Committed>> {
        let first = self.recent.front()?.position.offset;
        let begin = self
            .recent
            .partition_point(|record| record.position.offset < from);
        if from < first || begin == self.recent.len() {
            return None;
        }
        let mut found = Vec::new();
        let mut bytes = 0;
        for record in self.recent.range(begin..) {
            bytes += record.payload.len();
            if !found.is_empty() && bytes > bytes_max {
                break;
            }
            found.push(record.clone());
        }
        Some(found)
    }

    /// Bytes that are there from that position on.
    fn bytes_from(&self, from: u64) -> usize {
        self.recent
            .iter()
            .rev()
            .take_while(|record| record.position.offset >= from)
            .map(|record| record.payload.len())
            .sum()
    }

    fn keep(&mut self, record: Committed) {
        self.recent_bytes += record.payload.len();
        self.recent.push_back(record);
    }

    fn trim(&mut self, bytes: usize) {
        while self.recent_bytes > bytes && self.recent.len() > 1 {
            if let Some(first) = self.recent.pop_front() {
                self.recent_bytes -= first.payload.len();
            }
        }
    }

    fn forget(&mut self) {
        self.recent.clear();
        self.recent_bytes = 0;
    }
}

/// Why the client gives nothing more of a partition.
enum Failure {
    /// Kafka doesn't have the position.
    Gone,
    /// The topic isn't there, or not for us: perhaps a broker doesn't know better yet.
    Away(String),
}

/// What an error means; `None`: the client tries again by itself.
fn failure_of(error: &KafkaError) -> Option<Failure> {
    match error.rdkafka_error_code()? {
        RDKafkaErrorCode::AutoOffsetReset
        | RDKafkaErrorCode::OffsetOutOfRange
        | RDKafkaErrorCode::LogTruncation => Some(Failure::Gone),
        RDKafkaErrorCode::UnknownTopicOrPartition
        | RDKafkaErrorCode::UnknownTopic
        | RDKafkaErrorCode::UnknownPartition
        | RDKafkaErrorCode::TopicAuthorizationFailed => Some(Failure::Away(error.to_string())),
        _ => None,
    }
}

impl Reader {
    pub(super) fn new(
        consumer: Arc<BaseConsumer<Context>>,
        settings: &Settings,
        ends: Arc<Ends>,
        metrics: Arc<Metrics>,
        asks: Sender<Ask>,
    ) -> Reader {
        Reader {
            consumer,
            settings: settings.clone(),
            ends,
            metrics,
            lanes: (0..settings.partitions).map(|_| Lane::default()).collect(),
            asks,
            closed: AtomicBool::new(false),
        }
    }

    /// Records of a partition from that position on, one at least; waits until there are some. Dropping it loses nothing.
    pub(super) async fn read(
        &self,
        partition: u32,
        from: u64,
        bytes_max: usize,
    ) -> Result<Vec<Committed>, ReadError> {
        let lane = self
            .lanes
            .get(partition as usize)
            .ok_or(ReadError::Unavailable("the log has no such partition"))?;
        // What is here already is given without waiting, and who reads again and again would keep others from their turn.
        tokio::task::coop::consume_budget().await;
        let mut place = None;
        loop {
            // Before the look, so that what comes after it isn't missed.
            let mut came = pin!(lane.came.notified());
            came.as_mut().enable();
            if self.closed.load(Ordering::Acquire) {
                return Err(ReadError::Unavailable("the log was shut down"));
            }
            {
                let mut state = lane.state();
                state.read = Some(Instant::now());
                if let Some(found) = self.look(lane, partition, &mut state, from, bytes_max)? {
                    return Ok(found);
                }
                if place.is_none() {
                    if state.waits.len() >= WAITS_MAX {
                        return Err(ReadError::Unavailable("too many reads wait"));
                    }
                    state.last_wait += 1;
                    let number = state.last_wait;
                    state.waits.push((number, from));
                    place = Some(Place(lane, number));
                }
                if state.next != Some(from) {
                    // The thread is there as long as the log isn't shut down.
                    _ = self.asks.send(Ask::Begin(partition));
                }
            }
            came.await;
        }
    }

    /// What is there for a read, taken from the client if need be.
    fn look(
        &self,
        lane: &Lane,
        partition: u32,
        state: &mut State,
        from: u64,
        bytes_max: usize,
    ) -> Result<Option<Vec<Committed>>, ReadError> {
        let is_there = |next: u64| from == next || state.find(from, 0).is_some();
        if state.next.is_some_and(is_there)
            && let Some(failure) = self.take(lane, partition, state, from, bytes_max)
        {
            let at = state.next.take();
            match failure {
                Failure::Gone if at == Some(from) => return Err(ReadError::Gone),
                // Who waits there hears it when it is begun again.
                Failure::Gone => {}
                Failure::Away(why) => {
                    tracing::warn!(why, "the topic can't be read; it is tried again");
                    state.rests_until = Some(Instant::now() + REST);
                }
            }
        }
        let found = state.find(from, bytes_max);
        state.trim(self.settings.keep_bytes);
        Ok(found)
    }

    /// Takes records from the client until the read has what it asked for or nothing is left.
    fn take(
        &self,
        lane: &Lane,
        partition: u32,
        state: &mut State,
        from: u64,
        bytes_max: usize,
    ) -> Option<Failure> {
        let queue = state.queue.take()?;
        let mut failure = None;
        let mut bytes = state.bytes_from(from);
        let mut count = 0;
        while bytes < bytes_max.max(1) {
            match queue.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => {
                    let Some(record) = self.record(&message) else {
                        continue;
                    };
                    let offset = record.position.offset;
                    if state.next.is_none_or(|next| offset < next) {
                        continue;
                    }
                    bytes += record.payload.len();
                    count += 1;
                    state.next = Some(offset + 1);
                    add(&self.metrics.read_bytes, record.payload.len() as u64);
                    state.keep(record);
                }
                Some(Err(error)) => {
                    failure = failure_of(&error);
                    if failure.is_some() {
                        break;
                    }
                    // It goes on by itself.
                    tracing::debug!(%error, partition, "reading");
                }
            }
        }
        if count > 0 {
            state.heard = Some(Instant::now());
            add(&self.metrics.read, count);
            if let Some(next) = state.next {
                self.ends.seen(partition, next);
            }
            // They wait for the client, and this one was quicker.
            if !state.waits.is_empty() {
                lane.came.notify_waiters();
            }
        }
        state.queue = Some(queue);
        failure
    }

    fn record(&self, message: &BorrowedMessage<'_>) -> Option<Committed> {
        let millis = message.timestamp().to_millis().unwrap_or(0);
        Some(Committed {
            position: Position {
                epoch: self.settings.epoch,
                offset: u64::try_from(message.offset()).ok()?,
            },
            appended: Micros::try_from(millis).unwrap_or(0).saturating_mul(1000),
            payload: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
        })
    }

    /// The thread's work, until it is told to stop.
    pub(super) fn run(&self, asks: &Receiver<Ask>) {
        let mut looked = Instant::now();
        loop {
            match asks.recv_timeout(TICK) {
                Ok(Ask::Begin(partition)) => {
                    if let Some(lane) = self.lanes.get(partition as usize) {
                        self.begin(partition, lane, &mut lane.state());
                    }
                }
                Ok(Ask::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                self.look_around();
            }
        }
        self.closed.store(true, Ordering::Release);
        for lane in &self.lanes {
            // The client is closed with the last of its queues.
            lane.state().queue = None;
            lane.came.notify_waiters();
        }
    }

    fn look_around(&self) {
        // Serves log lines and errors. Records come through the partitions' queues alone.
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            if let Ok(message) = event {
                let partition = message.partition().unsigned_abs();
                tracing::warn!(partition, "a record came beside its queue; reading anew");
                if let Some(lane) = self.lanes.get(partition as usize) {
                    lane.state().next = None;
                }
            }
        }
        for (partition, lane) in self.lanes.iter().enumerate() {
            let (partition, mut state) = (partition as u32, lane.state());
            if state.waits.is_empty() {
                self.end_unread(partition, &mut state);
                continue;
            }
            let stuck = state.heard.is_some_and(|heard| heard.elapsed() > STUCK)
                && state
                    .next
                    .is_some_and(|next| next < self.ends.get(partition));
            if stuck {
                tracing::debug!(partition, "nothing comes; reading anew");
                state.next = None;
            }
            self.begin(partition, lane, &mut state);
            // A call of the client's that came while the queue wasn't empty is none.
            if state.called.is_none_or(|called| called.elapsed() > CALL) {
                state.called = Some(Instant::now());
                lane.came.notify_waiters();
            }
        }
    }

    /// What nobody reads isn't fetched for long.
    fn end_unread(&self, partition: u32, state: &mut State) {
        let is_read = state.read.is_some_and(|read| read.elapsed() < UNREAD_MAX);
        if state.queue.is_none() || is_read {
            return;
        }
        state.next = None;
        state.queue = None;
        let list = self.place(partition, 0);
        if let Err(error) = list.and_then(|list| self.consumer.incremental_unassign(&list)) {
            tracing::warn!(%error, partition, "what nobody reads is still fetched");
        }
    }

    /// Sees to it that the client goes where somebody waits, if it isn't another's turn.
    fn begin(&self, partition: u32, lane: &Lane, state: &mut State) {
        let elsewhere = state
            .waits
            .iter()
            .find(|(_, from)| Some(*from) != state.next);
        let Some(&(_, from)) = elsewhere else {
            return;
        };
        let in_turn = state
            .waits
            .iter()
            .any(|(_, from)| Some(*from) == state.next)
            && state.since.is_some_and(|since| since.elapsed() < TURN);
        let rests = state
            .rests_until
            .is_some_and(|until| Instant::now() < until);
        if in_turn || rests {
            return;
        }
        if let Err(error) = self.jump(partition, lane, state, from) {
            tracing::warn!(%error, partition, from, "reading could not begin; it is tried again");
            state.next = None;
            state.rests_until = Some(Instant::now() + REST);
        }
    }

    /// Begins reading elsewhere. Records fetched for the former position never come: the client drops them.
    fn jump(&self, partition: u32, lane: &Lane, state: &mut State, from: u64) -> KafkaResult<()> {
        add(&self.metrics.jumps, 1);
        state.forget();
        state.since = Some(Instant::now());
        state.heard = state.since;
        let list = self.place(partition, from)?;
        if state.queue.take().is_some() {
            self.consumer.incremental_unassign(&list)?;
        }
        // The queue is split off before anything is fetched, so that nothing goes past it.
        let mut queue = self
            .consumer
            .split_partition_queue(&self.settings.topic, partition as i32)
            .ok_or(KafkaError::NoMessageReceived)?;
        // The client calls for the first record in an empty queue: what is left of the former position goes first.
        while queue.poll(Duration::ZERO).is_some() {}
        let came = Arc::clone(&lane.came);
        queue.set_nonempty_callback(move || came.notify_waiters());
        self.consumer.incremental_assign(&list)?;
        state.queue = Some(queue);
        state.next = Some(from);
        Ok(())
    }

    fn place(&self, partition: u32, from: u64) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(1);
        let offset = Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX));
        list.add_partition_offset(&self.settings.topic, partition as i32, offset)?;
        Ok(list)
    }
}
