//! Appending: one idempotent producer, bounded by bytes, that says within a bound when Kafka takes nothing.
//!
//! A record that Kafka doesn't take stays in its place until it is taken or
//! given up: nothing is ever purged, so nothing can be taken out of order. What ends early is
//! the wait of whoever appended it ([`Settings::refuse_after_ms`]: not known), and the admission of more:
//! a partition that has taken nothing for that long while records waited is shut. Once it gave up all of
//! them, one append is let through as a probe; the first record taken opens it.
//!
//! The client is given [`HANDED_MAX`] records of a partition at once; what comes meanwhile is held here and goes together.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use tidings_core::ports::log::{AppendReport, LogError};

use super::context::{LastError, log_line};
use super::metrics::{Metrics, add};
use super::settings::Settings;

/// How often the thread looks for reports and calls that are late while there are none to be expected.
const TICK: Duration = Duration::from_millis(100);
/// And while there are: reports gather that long, since each look costs a wake-up and nobody hurries for them (that a
/// record is in the log is known by reading it).
const GATHER: Duration = Duration::from_millis(25);
/// While records are held the thread waits in the client for reports, and hands on when they come. The client waits for
/// whole milliseconds and spins through what is left of the last one, so the time is a little more than whole ones.
const HELD_TICK: Duration = Duration::from_micros(50_050);
/// So many polls in a row without a report: there are no more now. One that doesn't wait takes one event.
const QUIET_POLLS: u32 = 8;
/// How many records of a partition the client has at most before it is given more. It takes its limit of five *requests* of
/// an idempotent producer's partition for one of records (rd_kafka_toppar_producer_serve of librdkafka 2.12), and while
/// others wait for that its thread runs in circles: at 1,000 messages a second two thirds of a core on three servers.
const HANDED_MAX: u32 = 5;
/// What is handed on at once when all that was handed before is reported: a request's worth.
const BATCH_RECORDS: usize = 1_000;
const BATCH_BYTES: usize = 900_000;
/// How long a shutdown waits for what was appended.
const FLUSH: Duration = Duration::from_secs(1);
/// What a record takes beside its payload, about.
const OVERHEAD: usize = 128;

/// One record for a topic's partition.
pub(super) struct Piece<'a> {
    pub(super) partition: u32,
    pub(super) key: u64,
    pub(super) payload: &'a [u8],
}

/// A topic to append to: its name and partitions.
pub(super) struct Target {
    pub(super) name: String,
    pub(super) partitions: u32,
}

/// Appends; cheap to share.
pub(super) struct Appender {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    settings: Settings,
    topics: Vec<Topic>,
    metrics: Arc<Metrics>,
    producer: RwLock<Option<BaseProducer<Reports>>>,
    /// All calls that may have no report yet, in the order of their beginning.
    waiting: Mutex<VecDeque<Arc<Call>>>,
    queued: AtomicUsize,
    /// Records that are held in all lanes.
    held: AtomicUsize,
    /// Reports, ever.
    reports: AtomicU64,
    thread: OnceLock<Thread>,
    began: Instant,
    fatal: AtomicBool,
    closed: AtomicBool,
    last_error: LastError,
}

struct Topic {
    name: String,
    lanes: Vec<Lane>,
}

/// How a partition fares.
#[derive(Default)]
struct Lane {
    waiting: AtomicU32,
    /// Milliseconds since the beginning: since when it owes a report.
    since: AtomicU64,
    /// The last report was a failure.
    broken: AtomicBool,
    hands: Mutex<Hands>,
}

/// Which of a partition's records the client has, and which wait for it to get on.
#[derive(Default)]
struct Hands {
    handed: u32,
    held: VecDeque<Held>,
}

/// A record that waits here.
struct Held {
    key: u64,
    payload: Vec<u8>,
    call: Arc<Call>,
}

impl Lane {
    /// Nothing panics while it is locked.
    fn hands(&self) -> MutexGuard<'_, Hands> {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shut_for(&self, now: u64, limit: u64) -> Option<u64> {
        let since = now.saturating_sub(self.since.load(Ordering::Relaxed));
        (self.waiting.load(Ordering::Relaxed) > 0 && since > limit).then_some(since)
    }

    fn enter(&self, now: u64) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) == 0 && !self.broken.load(Ordering::Relaxed)
        {
            self.since.store(now, Ordering::Relaxed);
        }
    }

    fn leave(&self, now: u64, taken: bool) {
        if taken {
            self.since.store(now, Ordering::Relaxed);
        }
        self.broken.store(!taken, Ordering::Relaxed);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

const TAKEN: u8 = 1;
const REFUSED: u8 = 2;
const UNKNOWN: u8 = 4;

/// One call of append.
struct Call {
    topic: usize,
    records: u32,
    bytes: usize,
    began: Instant,
    left: AtomicU32,
    /// Which of the three came for its records.
    outcomes: AtomicU8,
    report: Mutex<Option<AppendReport>>,
}

impl Call {
    /// Reports, if nobody did before.
    fn report(&self, metrics: &Metrics, result: Result<(), LogError>) {
        let report = self
            .report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(report) = report {
            match result {
                Err(LogError::Unknown(_)) => add(&metrics.unknown, self.records.into()),
                Err(_) => add(&metrics.refused, self.records.into()),
                Ok(()) => {}
            }
            report(result);
        }
    }
}

/// The producer's context: gets its reports.
struct Reports(Arc<Shared>);

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.last_error.set(&error, reason);
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            tracing::error!(reason, "the producer can't go on; another is made");
            self.0.fatal.store(true, Ordering::Relaxed);
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<Call>;

    fn delivery(&self, result: &DeliveryResult<'_>, call: Arc<Call>) {
        // The report's offset isn't looked at: it may be missing or another's.
        let (message, outcome) = match result {
            Ok(message) => (message, TAKEN),
            Err((error, message)) => {
                self.0.last_error.set(error, &error.to_string());
                (message, outcome_of(error))
            }
        };
        let payload = message.payload_len() as u64;
        self.0.reports.fetch_add(1, Ordering::Relaxed);
        // One that never had a partition is in no lane.
        let partition = u32::try_from(message.partition()).unwrap_or(u32::MAX);
        let lanes = &self.0.topics[call.topic].lanes;
        if let Some(lane) = lanes.get(partition as usize) {
            lane.leave(self.0.now(), outcome == TAKEN);
            self.0.reported(call.topic, partition, outcome == TAKEN);
        }
        if outcome == TAKEN {
            add(&self.0.metrics.appended, 1);
            add(&self.0.metrics.appended_bytes, payload);
            let took = call.began.elapsed().as_micros();
            add(
                &self.0.metrics.produce_us,
                u64::try_from(took).unwrap_or(u64::MAX),
            );
        }
        self.0.finish(&call, 1, outcome);
    }
}

/// Whether a record that failed so is surely not in the log.
fn outcome_of(error: &KafkaError) -> u8 {
    match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::QueueFull
            | RDKafkaErrorCode::PurgeQueue
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::PolicyViolation
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::UnknownTopic,
        ) => REFUSED,
        _ => UNKNOWN,
    }
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn make(self: &Arc<Shared>) -> KafkaResult<BaseProducer<Reports>> {
        self.settings
            .producer()
            .create_with_context(Reports(Arc::clone(self)))
    }

    fn reserve(&self, bytes: usize) -> bool {
        let limit = self.settings.queue_bytes;
        let fits = |queued: usize| queued.checked_add(bytes).filter(|sum| *sum <= limit);
        let reserved = self
            .queued
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_ok();
        if reserved {
            add(&self.metrics.queue_bytes, bytes as u64);
        }
        reserved
    }

    fn release(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
        self.metrics
            .queue_bytes
            .fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// `count` records of a call came to an end.
    fn finish(&self, call: &Call, count: u32, outcome: u8) {
        call.outcomes.fetch_or(outcome, Ordering::AcqRel);
        if call.left.fetch_sub(count, Ordering::AcqRel) != count {
            return;
        }
        self.release(call.bytes);
        let result = match call.outcomes.load(Ordering::Acquire) {
            TAKEN => Ok(()),
            REFUSED => Err(LogError::Unavailable(self.why("Kafka refused"))),
            _ => Err(LogError::Unknown(self.why("Kafka gave no answer"))),
        };
        call.report(&self.metrics, result);
    }

    fn why(&self, what: &str) -> String {
        match self.last_error.get() {
            Some((_, reason)) => format!("{what}; its last error: {reason}"),
            None => what.to_owned(),
        }
    }

    /// Partitions of the first topic that take nothing.
    fn shut(&self) -> usize {
        let (now, limit) = (self.now(), u64::from(self.settings.refuse_after_ms));
        let lanes = self.topics.first().map_or(&[][..], |topic| &topic.lanes);
        let shut = |lane: &&Lane| {
            lane.shut_for(now, limit).is_some() || lane.broken.load(Ordering::Relaxed)
        };
        lanes.iter().filter(shut).count()
    }

    /// What is wrong with a call, if something is.
    fn refusal(&self, topic: &Topic, pieces: &[Piece<'_>]) -> Option<String> {
        let largest = pieces.iter().map(|piece| piece.payload.len()).max()?;
        if largest > self.settings.message_bytes_max {
            return Some(format!(
                "a record of {largest} bytes is above kafka.message_bytes_max"
            ));
        }
        let (now, limit) = (self.now(), u64::from(self.settings.refuse_after_ms));
        pieces.iter().find_map(|piece| {
            let shut = topic.lanes[piece.partition as usize].shut_for(now, limit)?;
            Some(self.why(&format!(
                "partition {} of {} has taken nothing for {} ms, try again later",
                piece.partition, topic.name, shut
            )))
        })
    }

    fn append(self: &Arc<Shared>, to: usize, pieces: &[Piece<'_>], report: AppendReport) {
        if pieces.is_empty() {
            return report(Ok(()));
        }
        let topic = &self.topics[to];
        let records = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        let bytes = pieces
            .iter()
            .map(|piece| piece.payload.len() + OVERHEAD)
            .sum();
        let call = Arc::new(Call {
            topic: to,
            records,
            bytes,
            began: Instant::now(),
            left: AtomicU32::new(records),
            outcomes: AtomicU8::new(0),
            report: Mutex::new(Some(report)),
        });
        let refuse = |why: String| call.report(&self.metrics, Err(LogError::Unavailable(why)));
        if let Some(why) = self.refusal(topic, pieces) {
            return refuse(why);
        }
        if !self.reserve(bytes) {
            return refuse(format!(
                "{} bytes wait for Kafka already",
                self.queued.load(Ordering::Relaxed)
            ));
        }
        let producer = self.producer.read().unwrap_or_else(PoisonError::into_inner);
        let Some(producer) = producer
            .as_ref()
            .filter(|_| !self.closed.load(Ordering::Relaxed))
        else {
            self.release(bytes);
            return refuse("the log was shut down".to_owned());
        };
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(Arc::clone(&call));
        let now = self.now();
        for (sent, piece) in pieces.iter().enumerate() {
            let lane = &topic.lanes[piece.partition as usize];
            lane.enter(now);
            let mut hands = lane.hands();
            if hands.handed >= HANDED_MAX || !hands.held.is_empty() {
                hands.held.push_back(Held {
                    key: piece.key,
                    payload: piece.payload.to_vec(),
                    call: Arc::clone(&call),
                });
                let is_first = self.held.fetch_add(1, Ordering::Relaxed) == 0;
                if let Some(thread) = self.thread.get().filter(|_| is_first) {
                    thread.unpark();
                }
                continue;
            }
            match hand(producer, topic, piece, &call) {
                Ok(()) => hands.handed += 1,
                Err(error) => {
                    drop(hands);
                    // What was sent of the call decides with the rest whether anything may be in the log.
                    lane.leave(now, false);
                    self.last_error.set(&error, &error.to_string());
                    self.finish(&call, records - sent as u32, REFUSED);
                    return;
                }
            }
        }
    }

    /// The client has one record less of a partition; when it has none, those that are held have their turn. What
    /// is held behind a record that wasn't taken is refused: it must not get in without that one.
    fn reported(&self, topic: usize, partition: u32, taken: bool) {
        let lane = &self.topics[topic].lanes[partition as usize];
        let mut hands = lane.hands();
        hands.handed = hands.handed.saturating_sub(1);
        if hands.held.is_empty() {
            return;
        }
        if !taken {
            return self.refuse_held(lane, hands);
        }
        if hands.handed > 0 {
            return;
        }
        let producer = self.producer.read().unwrap_or_else(PoisonError::into_inner);
        let Some(producer) = &*producer else {
            return self.refuse_held(lane, hands);
        };
        let (mut records, mut bytes) = (0, 0);
        while let Some(next) = hands.held.front() {
            bytes += next.payload.len();
            if records == BATCH_RECORDS || (records > 0 && bytes > BATCH_BYTES) {
                return;
            }
            let piece = Piece {
                partition,
                key: next.key,
                payload: &next.payload,
            };
            if let Err(error) = hand(producer, &self.topics[topic], &piece, &next.call) {
                self.last_error.set(&error, &error.to_string());
                return self.refuse_held(lane, hands);
            }
            hands.held.pop_front();
            self.held.fetch_sub(1, Ordering::Relaxed);
            hands.handed += 1;
            records += 1;
        }
    }

    fn refuse_held(&self, lane: &Lane, mut hands: MutexGuard<'_, Hands>) {
        let held = std::mem::take(&mut hands.held);
        drop(hands);
        self.held.fetch_sub(held.len(), Ordering::Relaxed);
        for record in held {
            lane.leave(self.now(), false);
            self.finish(&record.call, 1, REFUSED);
        }
    }

    /// Reports what waits for too long, forgets what was reported; whether something waits.
    fn look(&self) -> bool {
        let limit = Duration::from_millis(self.settings.refuse_after_ms.into());
        loop {
            let late = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(first) = waiting.front() else {
                    return false;
                };
                let done = first.left.load(Ordering::Acquire) == 0;
                if !done && first.began.elapsed() < limit {
                    return true;
                }
                waiting.pop_front().filter(|_| !done)
            };
            if let Some(call) = late {
                let why = self.why("Kafka has not answered in time");
                call.report(&self.metrics, Err(LogError::Unknown(why)));
            }
        }
    }

    /// Makes another producer after an error of no return. What the old one had is reported as not known.
    fn replace(self: &Arc<Shared>) {
        match self.make() {
            Ok(producer) => {
                self.fatal.store(false, Ordering::Relaxed);
                add(&self.metrics.producers, 1);
                let mut place = self
                    .producer
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                let old = place.replace(producer);
                drop(place);
                drop(old);
                // It reports what it had when it goes; if not all, nothing waits for the rest.
                for lane in self.topics.iter().flat_map(|topic| &topic.lanes) {
                    let mut hands = lane.hands();
                    hands.handed = 0;
                    self.refuse_held(lane, hands);
                }
            }
            Err(error) => tracing::error!(%error, "no other producer could be made"),
        }
    }

    /// Takes the reports that are there, or those that come within a while if records wait for them.
    fn poll(&self, held: bool) {
        let producer = self.producer.read().unwrap_or_else(PoisonError::into_inner);
        let Some(producer) = &*producer else {
            return;
        };
        if held {
            return producer.poll(HELD_TICK);
        }
        let mut quiet = 0;
        while quiet < QUIET_POLLS {
            let before = self.reports.load(Ordering::Relaxed);
            producer.poll(Duration::ZERO);
            quiet = match self.reports.load(Ordering::Relaxed) == before {
                true => quiet + 1,
                false => 0,
            };
        }
    }

    fn run(self: &Arc<Shared>) {
        _ = self.thread.set(std::thread::current());
        let is_held = || self.held.load(Ordering::Relaxed) > 0;
        while !self.closed.load(Ordering::Relaxed) {
            let held = is_held();
            self.poll(held);
            let is_waiting = self.look();
            if self.fatal.load(Ordering::Relaxed) {
                self.replace();
            }
            if !held {
                std::thread::park_timeout(if is_waiting { GATHER } else { TICK });
            }
        }
        let until = Instant::now() + FLUSH;
        while is_held() && Instant::now() < until {
            self.poll(true);
        }
        let producer = self
            .producer
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(producer) = producer
            && producer.flush(FLUSH).is_err()
        {
            tracing::warn!("Kafka did not take all records before the end");
        }
        // Dropped with the producer, what is left was reported as not known; a report made late is none.
        self.look();
    }
}

/// Gives the client a record.
fn hand(
    producer: &BaseProducer<Reports>,
    topic: &Topic,
    piece: &Piece<'_>,
    call: &Arc<Call>,
) -> KafkaResult<()> {
    let key = piece.key.to_be_bytes();
    let record = BaseRecord::with_opaque_to(&topic.name, Arc::clone(call))
        .partition(i32::try_from(piece.partition).unwrap_or(i32::MAX))
        .key(&key)
        .payload(piece.payload);
    producer.send(record).map_err(|(error, _)| error)
}

impl Appender {
    pub(super) fn start(
        settings: &Settings,
        topics: Vec<Target>,
        metrics: Arc<Metrics>,
    ) -> KafkaResult<Appender> {
        let lanes = |count: u32| (0..count).map(|_| Lane::default()).collect();
        let shared = Arc::new(Shared {
            settings: settings.clone(),
            topics: topics
                .into_iter()
                .map(|topic| Topic {
                    name: topic.name,
                    lanes: lanes(topic.partitions),
                })
                .collect(),
            metrics,
            producer: RwLock::new(None),
            waiting: Mutex::default(),
            queued: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            reports: AtomicU64::new(0),
            thread: OnceLock::new(),
            began: Instant::now(),
            fatal: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            last_error: LastError::default(),
        });
        let producer = shared.make()?;
        *shared
            .producer
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(producer);
        let running = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("kafka-append".to_owned())
            .spawn(move || running.run())
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(Appender {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Appends to the topic of that number; the partitions exist.
    pub(super) fn append(&self, topic: usize, pieces: &[Piece<'_>], report: AppendReport) {
        self.shared.append(topic, pieces, report);
    }

    /// How many partitions of the first topic take nothing now.
    pub(super) fn shut(&self) -> usize {
        self.shared.shut()
    }

    /// How many partitions the topic of that number has.
    pub(super) fn partitions(&self, topic: usize) -> u32 {
        self.shared.topics[topic].lanes.len() as u32
    }

    /// Waits a bounded time for what was appended; refuses what comes later.
    pub(super) fn shutdown(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the appending thread panicked");
        }
    }
}
