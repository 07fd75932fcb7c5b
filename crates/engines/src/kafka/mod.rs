//! The log on Kafka.
//!
//! - **Order**: a conversation's slot chooses its partition, explicitly with every record; the number of
//!   partitions is what `tidings migrate` made and never changes. One idempotent producer a process.
//! - **Committed**: a record is read when all replicas in sync have it, at least
//!   [`Settings::min_insync_replicas`]; positions come from records read, never from the producer's reports.
//! - **Where to go on**: the consumer group's committed positions ([`Settings::group`]). A missing one is an error.
//! - **Who**: [`KafkaOwnership`], a member of the group.
//!
//! A call whose records belong to several partitions may get in by some of them; per partition
//! it is all or a prefix.

mod append;
mod commits;
mod context;
mod dead_letters;
mod metrics;
mod migrate;
mod ownership;
mod pending;
mod positions;
mod read;
mod settings;
mod start;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use tidings_core::ids::{Partition, Position};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::log::{Append, AppendReport, Log, LogError};
use tidings_core::record::Committed;

use crate::StartError;
use append::{Appender, Piece, Target};
use commits::Commits;
use context::Context;
use positions::{Ends, Positions, Question, ask};
use read::{Ask, ReadError, Reader};
use start::{Cluster, blocking, of_config};

pub use dead_letters::KafkaDeadLetters;
pub use metrics::Metrics;
pub use migrate::migrate;
pub use ownership::KafkaOwnership;
pub use pending::{Mark, Pending};
pub use settings::Settings;

/// The appender's number of the log's topic.
const MESSAGES: usize = 0;
/// The appender's number of the topic of marks.
const PENDING: usize = 1;
/// The appender's number of the topic of dead letters.
const DEAD_LETTERS: usize = 2;
/// How long [`KafkaLog::check`] waits for an answer.
const CHECK: Duration = Duration::from_millis(900);
/// How long a shutdown waits for the last commits.
const LAST_COMMITS: Duration = Duration::from_secs(1);

/// The log on Kafka. Its threads end when it is dropped.
pub struct KafkaLog {
    settings: Settings,
    appender: Arc<Appender>,
    ends: Arc<Ends>,
    commits: Arc<Commits>,
    metrics: Arc<Metrics>,
    reader: Arc<Reader>,
    asks: Sender<Ask>,
    questions: Sender<Question>,
    /// Questions' client, for [`KafkaLog::check`], which must not wait behind them.
    probe: Arc<BaseConsumer<Context>>,
    down: AtomicBool,
    /// Told when the last commits were made.
    committed: Mutex<Receiver<()>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl KafkaLog {
    /// Opens the log that `tidings migrate` made, after looking at everything that the promises hang on. Needs a tokio
    /// runtime; the log itself doesn't, but for [`KafkaLog::check`] and [`Pending::run`].
    ///
    /// # Errors
    /// One line for the operator: Kafka away, no topic, another number of partitions, too few replicas or too weak
    /// settings for the promise, no committed positions.
    pub async fn open(settings: Settings) -> Result<KafkaLog, StartError> {
        blocking(&settings, |settings| {
            Cluster::connect(settings)?.check_shape()
        })
        .await?;
        start::check_topic_settings(&settings).await?;
        blocking(&settings, |settings| {
            Cluster::connect(settings)?.check_positions()
        })
        .await?;
        blocking(&settings, |settings| KafkaLog::begin(settings.clone())).await
    }

    fn begin(settings: Settings) -> Result<KafkaLog, StartError> {
        let wrong = |error: &dyn std::fmt::Display| {
            StartError::wrong("kafka", format!("no client: {error}"))
        };
        let partitions = settings.partitions;
        let metrics = Arc::new(Metrics::default());
        let ends = Arc::new(Ends::new(partitions));
        let commits = Arc::new(Commits::new(
            &settings.topic,
            partitions,
            Duration::from_millis(settings.commit_interval_ms.into()),
            Arc::clone(&metrics),
        ));
        let target = |name: &str| Target {
            name: name.to_owned(),
            partitions,
        };
        let topics = vec![
            target(&settings.topic),
            target(&settings.pending_topic),
            target(&settings.dead_letter_topic),
        ];
        let consumer = |context: Context| -> Result<BaseConsumer<Context>, KafkaError> {
            settings
                .consumer(&settings.group)
                .create_with_context(context)
        };
        let asking = Arc::new(consumer(Context::default()).map_err(|error| of_config(&error))?);
        let probe = Arc::clone(&asking);
        commits.go_through(Some(Arc::clone(&asking)), false);
        let all: Vec<u32> = (0..partitions).collect();
        let found = positions::once_known(|| {
            positions::bounds(&asking, &settings.topic, &all, Offset::End)
        })
        .map_err(|error| StartError::away("kafka.brokers", error.to_string()))?;
        for (partition, end) in found {
            ends.seen(partition, end);
        }
        let appender = Appender::start(&settings, topics, Arc::clone(&metrics))
            .map_err(|error| of_config(&error))?;
        let (questions, asked) = channel();
        let (asks, reads) = channel();
        let positions = Positions {
            consumer: asking,
            topic: settings.topic.clone(),
            group: settings.group.clone(),
            epoch: settings.epoch,
            ends: Arc::clone(&ends),
            commits: Arc::clone(&commits),
        };
        let reader = Arc::new(Reader::new(
            Arc::new(consumer(Context::default()).map_err(|error| wrong(&error))?),
            &settings,
            Arc::clone(&ends),
            Arc::clone(&metrics),
            asks.clone(),
        ));
        let reading = Arc::clone(&reader);
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let (ending, committed) = channel();
        let committing = Arc::clone(&commits);
        named("kafka-commit")
            .spawn(move || {
                committing.run();
                committing.go_through(None, true);
                // Whoever waited for it may have given up.
                _ = ending.send(());
            })
            .map_err(|error| wrong(&error))?;
        let threads = vec![
            named("kafka-positions")
                .spawn(move || positions.run(&asked))
                .map_err(|error| wrong(&error))?,
            named("kafka-read")
                .spawn(move || reading.run(&reads))
                .map_err(|error| wrong(&error))?,
        ];
        Ok(KafkaLog {
            settings,
            appender: Arc::new(appender),
            ends,
            commits,
            metrics,
            reader,
            asks,
            questions,
            probe,
            down: AtomicBool::new(false),
            committed: Mutex::new(committed),
            threads: Mutex::new(threads),
        })
    }

    /// What it was opened with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Counters and gauges.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// How many records of a partition lie behind its committed position, as far as its end is known (it is
    /// asked for every 5 s); right on the partition's owner.
    pub fn lag(&self, partition: Partition) -> u64 {
        self.ends
            .get(partition.0)
            .saturating_sub(self.commits.given(partition.0))
    }

    /// How many partitions take no messages now: they refuse at once, but for a probe.
    pub fn shut_partitions(&self) -> usize {
        self.appender.shut()
    }

    /// Whether every partition has a leader and enough replicas in sync, within a second.
    ///
    /// # Errors
    /// What is wrong, in one line.
    pub async fn check(&self) -> Result<(), String> {
        let probe = Arc::clone(&self.probe);
        let topic = self.settings.topic.clone();
        let insync = self.settings.min_insync_replicas as usize;
        let look = move || {
            let metadata = probe
                .fetch_metadata(Some(&topic), CHECK)
                .map_err(|error| format!("no broker answers: {error}"))?;
            let found = metadata
                .topics()
                .iter()
                .find(|found| found.name() == topic)
                .filter(|found| !found.partitions().is_empty())
                .ok_or_else(|| format!("the topic {topic} is not there"))?;
            let weak: Vec<i32> = found
                .partitions()
                .iter()
                .filter(|partition| partition.leader() < 0 || partition.isr().len() < insync)
                .map(|partition| partition.id())
                .collect();
            if weak.is_empty() {
                Ok(())
            } else {
                Err(format!(
                    "partitions {weak:?} have fewer than {insync} replicas in sync"
                ))
            }
        };
        tokio::task::spawn_blocking(look)
            .await
            .map_err(|error| error.to_string())?
    }

    /// Ends appends (those made before are waited for, a second at most), reads and commits. Leave the group first.
    pub fn shutdown(&self) {
        if self.down.swap(true, Ordering::AcqRel) {
            return;
        }
        self.appender.shutdown();
        self.commits.stop();
        let committed = self
            .committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if committed.recv_timeout(LAST_COMMITS).is_err() {
            tracing::warn!("Kafka did not take the last positions; some records are applied again");
        }
        // The threads may have ended already.
        _ = self.asks.send(Ask::Stop);
        _ = self.questions.send(Question::Stop);
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                tracing::error!(name, "a thread panicked");
            }
        }
    }

    fn at(&self, offset: u64) -> Position {
        Position {
            epoch: self.settings.epoch,
            offset,
        }
    }

    fn appender(&self) -> &Arc<Appender> {
        &self.appender
    }

    fn commits(&self) -> &Arc<Commits> {
        &self.commits
    }

    fn metrics_shared(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The error for a position of another log, or of none.
    fn gone(&self, partition: Partition, asked: Position) -> LogError {
        LogError::Gone {
            asked,
            first: self.at(0),
            end: self.end(partition),
        }
    }
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Log for KafkaLog {
    fn partitions(&self) -> u32 {
        self.settings.partitions
    }

    fn append(&self, records: Vec<Append>, report: AppendReport) {
        let pieces: Vec<Piece<'_>> = records
            .iter()
            .map(|record| Piece {
                partition: self.partition_of(record.conversation).0,
                key: record.conversation.0,
                payload: &record.payload,
            })
            .collect();
        self.appender.append(MESSAGES, &pieces, report);
    }

    fn read(
        &self,
        partition: Partition,
        from: Position,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Vec<Committed>, LogError>> {
        Box::pin(async move {
            if from.epoch != self.settings.epoch || partition.0 >= self.settings.partitions {
                return Err(self.gone(partition, from));
            }
            match self.reader.read(partition.0, from.offset, bytes_max).await {
                Ok(found) => Ok(found),
                Err(ReadError::Unavailable(why)) => Err(LogError::Unavailable(why.to_owned())),
                Err(ReadError::Gone) => {
                    let bounds = |answer| Question::Bounds(partition.0, answer);
                    let (first, end) = ask(&self.questions, bounds).await?;
                    if (first..=end).contains(&from.offset) {
                        let why = "the position is there again; read once more";
                        return Err(LogError::Unavailable(why.to_owned()));
                    }
                    Err(LogError::Gone {
                        asked: from,
                        first: self.at(first),
                        end: self.at(end),
                    })
                }
            }
        })
    }

    fn committed(&self, partition: Partition) -> BoxFuture<'_, Result<Position, LogError>> {
        Box::pin(async move {
            ask(&self.questions, |answer| {
                Question::Committed(partition.0, answer)
            })
            .await
        })
    }

    fn commit(
        &self,
        partition: Partition,
        position: Position,
    ) -> BoxFuture<'_, Result<(), LogError>> {
        let result = if position.epoch == self.settings.epoch && position <= self.end(partition) {
            self.commits.give(partition.0, position.offset);
            Ok(())
        } else {
            Err(self.gone(partition, position))
        };
        Box::pin(std::future::ready(result))
    }

    fn end(&self, partition: Partition) -> Position {
        self.at(self.ends.get(partition.0))
    }
}
