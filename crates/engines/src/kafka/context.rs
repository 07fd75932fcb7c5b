//! What all clients tell us by themselves: log lines, errors, rebalances.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, TopicPartitionList};

use super::ownership::Membership;

/// The last error of a client, for messages to operators.
#[derive(Debug, Default)]
pub(super) struct LastError(Mutex<Option<(RDKafkaErrorCode, String)>>);

impl LastError {
    pub(super) fn set(&self, error: &KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        // That all are down says less than why one of them is.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if code != RDKafkaErrorCode::AllBrokersDown || last.is_none() {
            *last = Some((code, reason.to_owned()));
        }
    }

    pub(super) fn get(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A client's log lines, among ours. Lost connections are what it is made for, so they are no errors.
pub(super) fn log_line(level: RDKafkaLogLevel, facility: &str, line: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(facility, "kafka: {line}");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            tracing::warn!(facility, "kafka: {line}");
        }
        _ => tracing::debug!(facility, "kafka: {line}"),
    }
}

/// The context of consumers and of the start's client.
#[derive(Default)]
pub(super) struct Context {
    pub(super) last_error: Arc<LastError>,
    /// Told of partitions that come and go.
    pub(super) membership: Option<Arc<Membership>>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.last_error.set(&error, reason);
        tracing::debug!(%error, reason, "kafka");
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Context>,
        change: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        if let Some(membership) = &self.membership {
            membership.rebalance(consumer, change, partitions);
            return;
        }
        // All our groups are cooperative.
        let given = change == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let answered = if given {
            consumer.incremental_assign(partitions)
        } else {
            consumer.incremental_unassign(partitions)
        };
        if let Err(error) = answered {
            tracing::warn!(%error, given, "a rebalance was not answered");
        }
    }
}
