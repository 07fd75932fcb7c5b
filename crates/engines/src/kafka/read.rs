//! Reading: one thread, a queue of the client's for each partition, and what was read lately.
//!
//! Records leave the client's queue only when a read waits for them, so what is fetched ahead is bounded by
//! the client ([`Settings::read_ahead_bytes`] a partition) and a slow router never holds up another partition.
//! What was read is kept up to [`Settings::keep_bytes`]: a dropped read finds its records again, and readers
//! close to each other share them. A read from elsewhere makes the reader jump there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use tidings_core::ids::{Micros, Position};
use tidings_core::ports::log::LogError;
use tidings_core::record::Committed;
use tokio::sync::oneshot;

use super::context::Context;
use super::metrics::{Metrics, add};
use super::positions::{Ends, Question};
use super::settings::Settings;

/// How often the thread looks around without being called.
const TICK: Duration = Duration::from_millis(100);
/// How long a read has the partition before one from elsewhere may take it away.
const TURN: Duration = Duration::from_millis(100);
/// When nothing came for so long although there is something, the partition is begun anew.
const STUCK: Duration = Duration::from_secs(5);
/// How long a partition rests that could not be read.
const REST: Duration = Duration::from_secs(1);
/// The most reads that wait on one partition.
const WAITS_MAX: usize = 1000;

/// A read that waits.
pub(super) struct Wait {
    pub(super) partition: u32,
    pub(super) from: u64,
    pub(super) bytes_max: usize,
    pub(super) answer: oneshot::Sender<Result<Vec<Committed>, LogError>>,
}

impl Wait {
    pub(super) fn answer(self, result: Result<Vec<Committed>, LogError>) {
        // A dropped read loses nothing: the next one finds the records again.
        _ = self.answer.send(result);
    }

    /// What to say when Kafka has no such position but these.
    pub(super) fn gone_or_later(&self, epoch: u32, first: u64, end: u64) -> LogError {
        if (first..=end).contains(&self.from) {
            return LogError::Unavailable("the position is there again; read once more".to_owned());
        }
        let at = |offset| Position { epoch, offset };
        LogError::Gone {
            asked: at(self.from),
            first: at(first),
            end: at(end),
        }
    }
}

/// What the thread is asked for.
pub(super) enum Ask {
    Read(Wait),
    /// Something came for a partition.
    Ready(u32),
    Stop,
}

pub(super) struct Reader {
    pub(super) consumer: Arc<BaseConsumer<Context>>,
    pub(super) settings: Settings,
    pub(super) ends: Arc<Ends>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) questions: Sender<Question>,
    /// For the queues' calls.
    pub(super) asks: Sender<Ask>,
}

#[derive(Default)]
struct State {
    queue: Option<PartitionQueue<Context>>,
    /// The position that Kafka gives next; none: it gives nothing.
    next: Option<u64>,
    /// When it was begun there, and when something came last.
    since: Option<Instant>,
    /// Not begun anew before then.
    rests_until: Option<Instant>,
    heard: Option<Instant>,
    called: Arc<AtomicBool>,
    recent: VecDeque<Committed>,
    recent_bytes: usize,
    waits: VecDeque<Wait>,
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
    pub(super) fn run(self, partitions: u32, asks: &Receiver<Ask>) {
        let mut states: Vec<State> = (0..partitions).map(|_| State::default()).collect();
        let mut looked = Instant::now();
        loop {
            match asks.recv_timeout(TICK) {
                Ok(Ask::Read(wait)) => {
                    let (partition, Some(state)) =
                        (wait.partition, states.get_mut(wait.partition as usize))
                    else {
                        continue;
                    };
                    state.waits.retain(|wait| !wait.answer.is_closed());
                    if state.waits.len() >= WAITS_MAX {
                        wait.answer(Err(LogError::Unavailable("too many reads wait".to_owned())));
                        continue;
                    }
                    state.waits.push_back(wait);
                    self.serve(partition, state);
                }
                Ok(Ask::Ready(partition)) => {
                    if let Some(state) = states.get_mut(partition as usize) {
                        state.called.store(false, Ordering::Release);
                        self.serve(partition, state);
                    }
                }
                Ok(Ask::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                self.look_around(&mut states);
            }
        }
        for state in &mut states {
            for wait in state.waits.drain(..) {
                wait.answer(Err(LogError::Unavailable(
                    "the log was shut down".to_owned(),
                )));
            }
        }
    }

    fn look_around(&self, states: &mut [State]) {
        // Serves log lines and errors. Records come through the partitions' queues alone.
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            if let Ok(message) = event {
                let partition = message.partition().unsigned_abs();
                tracing::warn!(partition, "a record came beside its queue; reading anew");
                if let Some(state) = states.get_mut(partition as usize) {
                    state.next = None;
                }
            }
        }
        for (partition, state) in states.iter_mut().enumerate() {
            let partition = partition as u32;
            if state.waits.is_empty() {
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
            self.serve(partition, state);
        }
    }

    /// Answers what can be answered, and sees to it that the rest comes.
    fn serve(&self, partition: u32, state: &mut State) {
        state.waits.retain(|wait| !wait.answer.is_closed());
        let mut kept = VecDeque::new();
        while let Some(wait) = state.waits.pop_front() {
            // Takes from the client what the read may have and isn't here.
            let mut failure = None;
            if state
                .next
                .is_some_and(|next| wait.from == next || state.find(wait.from, 0).is_some())
            {
                failure = self.take(partition, state, &wait);
            }
            match state.find(wait.from, wait.bytes_max) {
                Some(found) => wait.answer(Ok(found)),
                None => kept.push_back(wait),
            }
            if let Some(failure) = failure {
                kept.append(&mut state.waits);
                state.waits = self.failed(state, kept, failure);
                return;
            }
        }
        state.trim(self.settings.keep_bytes);
        state.waits = kept;
        let Some(other) = state
            .waits
            .iter()
            .position(|wait| Some(wait.from) != state.next)
        else {
            return;
        };
        let in_turn = state.waits.iter().any(|wait| Some(wait.from) == state.next)
            && state.since.is_some_and(|since| since.elapsed() < TURN);
        let rests = state
            .rests_until
            .is_some_and(|until| Instant::now() < until);
        if in_turn || rests {
            return;
        }
        let from = state.waits[other].from;
        if let Err(error) = self.jump(partition, state, from) {
            tracing::warn!(%error, partition, from, "reading could not begin; it is tried again");
            state.next = None;
            state.rests_until = Some(Instant::now() + REST);
        }
    }

    /// Begins reading elsewhere. Records fetched for the former position never come: the client drops them.
    fn jump(&self, partition: u32, state: &mut State, from: u64) -> KafkaResult<()> {
        add(&self.metrics.jumps, 1);
        state.forget();
        state.since = Some(Instant::now());
        state.heard = state.since;
        let topic = &self.settings.topic;
        let mut list = TopicPartitionList::with_capacity(1);
        let offset = Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX));
        list.add_partition_offset(topic, partition as i32, offset)?;
        if state.queue.take().is_some() {
            self.consumer.incremental_unassign(&list)?;
        }
        // The queue is split off before anything is fetched, so that nothing goes past it.
        let mut queue = self
            .consumer
            .split_partition_queue(topic, partition as i32)
            .ok_or(KafkaError::NoMessageReceived)?;
        let (asks, called) = (self.asks.clone(), Arc::clone(&state.called));
        queue.set_nonempty_callback(move || {
            if !called.swap(true, Ordering::AcqRel) {
                // The thread may have gone already.
                _ = asks.send(Ask::Ready(partition));
            }
        });
        self.consumer.incremental_assign(&list)?;
        state.queue = Some(queue);
        state.next = Some(from);
        Ok(())
    }

    /// Takes records from the client until the read has what it asked for or nothing is left.
    fn take(&self, partition: u32, state: &mut State, wait: &Wait) -> Option<Failure> {
        let queue = state.queue.take()?;
        let mut failure = None;
        let mut bytes = state.bytes_from(wait.from);
        let mut count = 0;
        while bytes < wait.bytes_max.max(1) {
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
                    state.heard = Some(Instant::now());
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
        add(&self.metrics.read, count);
        if let Some(next) = state.next.filter(|_| count > 0) {
            self.ends.seen(partition, next);
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

    /// The client can't go on with the partition: tells those that wait for it, gives back the others.
    fn failed(&self, state: &mut State, waits: VecDeque<Wait>, failure: Failure) -> VecDeque<Wait> {
        let at = state.next.take();
        match failure {
            Failure::Gone => {
                let (gone, rest) = waits.into_iter().partition(|wait| Some(wait.from) == at);
                self.gone(gone);
                rest
            }
            Failure::Away(why) => {
                tracing::warn!(why, "the topic can't be read; it is tried again");
                state.rests_until = Some(Instant::now() + REST);
                waits
            }
        }
    }

    fn gone(&self, waits: VecDeque<Wait>) {
        for wait in waits {
            if let Err(unsent) = self.questions.send(Question::Gone(wait))
                && let Question::Gone(wait) = unsent.0
            {
                wait.answer(Err(LogError::Unavailable(
                    "the log was shut down".to_owned(),
                )));
            }
        }
    }
}
