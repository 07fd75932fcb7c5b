//! `pending-messages`: marks for users who are away, keyed by recipient.
//!
//! A mark is written when nobody could be told, and worked off by one of the servers: into the inbox, later
//! into a push. Marks are idempotent: one may come twice, never be lost.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::KafkaResult;
use rdkafka::message::{BorrowedMessage, Message};
use tidings_core::ids::{ConversationId, Seq, UserId};
use tidings_core::ports::log::AppendReport;

use super::append::{Appender, Piece};
use super::context::Context;
use super::settings::Settings;
use super::{KafkaLog, PENDING};
use crate::StartError;

/// The most marks in one batch.
const BATCH: usize = 500;
/// How long brokers hold a fetch, how long a member may be silent and how often it says that it lives. A second
/// less than a request's timeout, as what is asked behind a held fetch waits for it.
const FETCH_WAIT_MS: &str = "1000";
const SESSION_TIMEOUT_MS: &str = "30000";
const HEARTBEAT_MS: &str = "3000";
/// How long after a failure a batch is given again.
const RETRY: Duration = Duration::from_secs(1);

/// A user has something waiting in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    /// Who was away.
    pub recipient: UserId,
    /// Where.
    pub conversation: ConversationId,
    /// Up to which event.
    pub seq: Seq,
}

impl Mark {
    fn encode(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.recipient.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.conversation.0.to_be_bytes());
        bytes[16..].copy_from_slice(&self.seq.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Mark> {
        let (fields, []) = bytes.as_chunks::<8>() else {
            return None;
        };
        let [recipient, conversation, seq] = fields else {
            return None;
        };
        Some(Mark {
            recipient: UserId(u64::from_be_bytes(*recipient)),
            conversation: ConversationId(u64::from_be_bytes(*conversation)),
            seq: u64::from_be_bytes(*seq),
        })
    }
}

/// Writes and works off marks.
#[derive(Clone)]
pub struct Pending {
    appender: Arc<Appender>,
    settings: Settings,
}

impl Pending {
    /// The marks beside a log; they share its producer, and its bounds.
    pub fn of(log: &KafkaLog) -> Pending {
        Pending {
            appender: Arc::clone(log.appender()),
            settings: log.settings().clone(),
        }
    }

    /// Queues marks; returns at once and reports as [`tidings_core::ports::log::Log::append`] does.
    /// Marks of one recipient keep their order.
    pub fn put(&self, marks: &[Mark], report: AppendReport) {
        let partitions = self.appender.partitions(PENDING);
        let encoded: Vec<[u8; 24]> = marks.iter().map(|mark| mark.encode()).collect();
        let pieces: Vec<Piece<'_>> = marks
            .iter()
            .zip(&encoded)
            .map(|(mark, payload)| Piece {
                // A user's slot is found as a conversation's: spread evenly, whatever ids look like.
                partition: ConversationId(mark.recipient.0).slot() % partitions,
                key: mark.recipient.0,
                payload,
            })
            .collect();
        self.appender.append(PENDING, &pieces, report);
    }

    /// Gives marks to `work`, batch by batch, as a member of `kafka.pending_group`; runs until dropped. A batch counts
    /// when `work` said so; refused, it comes again after a second. `work` must be bounded in time.
    ///
    /// # Errors
    /// When the group can't be joined.
    pub async fn run<F, W>(&self, mut work: F) -> Result<(), StartError>
    where
        F: FnMut(Vec<Mark>) -> W,
        W: Future<Output = Result<(), String>>,
    {
        let wrong = |error: &dyn std::fmt::Display| {
            StartError::wrong(
                "kafka.pending_group",
                format!("the group can't be joined: {error}"),
            )
        };
        let mut config = self.settings.member(&self.settings.pending_group);
        // Nearly always there is nothing, and nobody waits for it: it should cost nothing.
        config
            .set("fetch.wait.max.ms", FETCH_WAIT_MS)
            .set("session.timeout.ms", SESSION_TIMEOUT_MS)
            .set("heartbeat.interval.ms", HEARTBEAT_MS);
        // Nobody was here yet: from the beginning.
        config.set("auto.offset.reset", "earliest");
        let consumer: StreamConsumer<Context> =
            StreamConsumer::from_config_and_context(&config, Context::default())
                .map_err(|error| wrong(&error))?;
        consumer
            .subscribe(&[&self.settings.pending_topic])
            .map_err(|error| wrong(&error))?;
        loop {
            let mut marks = Vec::new();
            let mut next = Some(consumer.recv().await);
            while let Some(received) = next {
                match received {
                    Ok(message) => {
                        marks.extend(mark_of(&message));
                        // The position goes with the next commit, which comes when the work was done.
                        note(&consumer, &message);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "pending marks");
                        break;
                    }
                }
                if marks.len() >= BATCH {
                    break;
                }
                next = consumer.recv().now_or_never();
            }
            if marks.is_empty() {
                continue;
            }
            while let Err(error) = work(marks.clone()).await {
                tracing::warn!(%error, marks = marks.len(), "marks were not worked off; they come again");
                tokio::time::sleep(RETRY).await;
            }
            if let Err(error) = commit(&consumer) {
                tracing::warn!(%error, "the position of the marks was not committed; some come again");
            }
        }
    }
}

fn mark_of(message: &BorrowedMessage<'_>) -> Option<Mark> {
    let mark = Mark::decode(message.payload().unwrap_or_default());
    if mark.is_none() {
        tracing::warn!(
            partition = message.partition(),
            offset = message.offset(),
            "a pending mark can't be read; it is left out"
        );
    }
    mark
}

fn note(consumer: &StreamConsumer<Context>, message: &BorrowedMessage<'_>) {
    if let Err(error) = consumer.store_offset_from_message(message) {
        // The partition went to another member, who gets the mark again.
        tracing::debug!(%error, "pending marks");
    }
}

fn commit(consumer: &StreamConsumer<Context>) -> KafkaResult<()> {
    consumer.commit_consumer_state(CommitMode::Async)
}
