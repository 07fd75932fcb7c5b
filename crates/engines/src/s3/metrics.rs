//! What is counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Calls made; a part of an upload is one.
    pub calls: AtomicU64,
    /// Calls that failed for want of the service: refused, broken off, no room.
    pub errors: AtomicU64,
    /// Calls without an answer in time.
    pub timeouts: AtomicU64,
    /// Calls answered, the count of the latency.
    pub answered: AtomicU64,
    /// The sum of their latencies in microseconds.
    pub latency_us: AtomicU64,
    /// Bytes stored.
    pub bytes_put: AtomicU64,
    /// Bytes read.
    pub bytes_got: AtomicU64,
    /// Objects refused or removed since they were too large.
    pub too_large: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
