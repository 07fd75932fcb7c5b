//! What the store counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Requests of one kind, as the store's callers see them: retries and second attempts are part of one.
#[derive(Debug, Default)]
pub struct Requests {
    /// Answered or failed.
    pub requests: AtomicU64,
    /// Failed, timeouts included.
    pub errors: AtomicU64,
    /// Not answered in time.
    pub timeouts: AtomicU64,
    /// The sum of their times; the count is `requests`.
    pub micros: AtomicU64,
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests that read.
    pub reads: Requests,
    /// Requests that write: a batch is one.
    pub writes: Requests,
    /// Rows and cursors written.
    pub rows_written: AtomicU64,
    /// Attempts after one that failed.
    pub retries: AtomicU64,
    /// Requests asked of a second node because the first was slow.
    pub speculative: AtomicU64,
    /// Requests that would have had to wait for the first node, had it been slow, since too many
    /// had been asked twice.
    pub speculative_refused: AtomicU64,
    /// Pages that were answered by somebody else's read of the same page.
    pub coalesced: AtomicU64,
    /// Pages read again because rows were missing in them.
    pub reread: AtomicU64,
}

impl Requests {
    /// Counts one that began then.
    pub(super) fn record(&self, begun: Instant, failed: bool, timed_out: bool) {
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.errors.fetch_add(u64::from(failed), Ordering::Relaxed);
        self.timeouts
            .fetch_add(u64::from(timed_out), Ordering::Relaxed);
    }

    /// The mean time; zero before the first request.
    pub fn mean(&self) -> Duration {
        let micros = self.micros.load(Ordering::Relaxed);
        let requests = self.requests.load(Ordering::Relaxed);
        Duration::from_micros(micros.checked_div(requests).unwrap_or(0))
    }
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
