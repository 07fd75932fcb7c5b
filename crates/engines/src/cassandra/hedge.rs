//! Second attempts: when a slow request is asked of another node too, and how often at most.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use scylla::errors::{RequestAttemptError, RequestError};
use scylla::observability::history::{AttemptId, HistoryListener, RequestId, SpeculativeId};
use scylla::policies::retry::RetryDecision;
use scylla::policies::speculative_execution::{Context, SpeculativeExecutionPolicy};

use super::metrics::{Metrics, count};

/// Requests that earn one second attempt.
const PRICE: i64 = 10;
/// Second attempts that may be saved up: a node that hangs holds a third of the requests of the
/// moment, which are asked again at once.
const SAVED_MAX: i64 = 1_000 * PRICE;

/// Decides on second attempts, and counts them and retries. One for reads, one for writes.
///
/// At most one request in ten is asked twice over time: when the whole cluster is slow, asking
/// everything twice would keep it so.
#[derive(Debug)]
pub struct Hedge {
    after: Duration,
    saved: AtomicI64,
    metrics: Arc<Metrics>,
}

impl Hedge {
    /// Second attempts after this time; zero: none.
    pub fn new(after: Duration, metrics: Arc<Metrics>) -> Arc<Hedge> {
        Arc::new(Hedge {
            after,
            saved: AtomicI64::new(SAVED_MAX / 10),
            metrics,
        })
    }
}

impl SpeculativeExecutionPolicy for Hedge {
    /// Asked once at the beginning of each request.
    fn max_retry_count(&self, _: &Context) -> usize {
        if self.after.is_zero() {
            return 0;
        }
        // Racing requests may save a little more than the limit, which does no harm.
        let saved = self.saved.load(Ordering::Relaxed);
        if saved < SAVED_MAX {
            self.saved.fetch_add(1, Ordering::Relaxed);
        }
        if saved < PRICE {
            count(&self.metrics.speculative_refused);
            return 0;
        }
        1
    }

    fn retry_interval(&self, _: &Context) -> Duration {
        // Without second attempts the driver still sets a timer, which must not be due at once.
        if self.after.is_zero() {
            Duration::from_secs(3600)
        } else {
            self.after
        }
    }
}

impl HistoryListener for Hedge {
    fn log_request_start(&self) -> RequestId {
        RequestId(0)
    }

    fn log_request_success(&self, _: RequestId) {}

    fn log_request_error(&self, _: RequestId, _: &RequestError) {}

    fn log_new_speculative_fiber(&self, _: RequestId) -> SpeculativeId {
        self.saved.fetch_sub(PRICE, Ordering::Relaxed);
        count(&self.metrics.speculative);
        SpeculativeId(0)
    }

    fn log_attempt_start(
        &self,
        _: RequestId,
        _: Option<SpeculativeId>,
        _: SocketAddr,
    ) -> AttemptId {
        AttemptId(0)
    }

    fn log_attempt_success(&self, _: AttemptId) {}

    fn log_attempt_error(&self, _: AttemptId, _: &RequestAttemptError, decision: &RetryDecision) {
        if let RetryDecision::RetrySameTarget(_) | RetryDecision::RetryNextTarget(_) = decision {
            count(&self.metrics.retries);
        }
    }
}
