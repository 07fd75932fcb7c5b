//! What the log on Kafka counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters (from the opening) and gauges; read them at any time.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Counter: records that Kafka took, of all topics.
    pub appended: AtomicU64,
    /// Counter: bytes of those records' payloads, before compression.
    pub appended_bytes: AtomicU64,
    /// Counter: records refused before they were given to Kafka, or by it.
    pub refused: AtomicU64,
    /// Counter: records of which nobody knows whether Kafka took them, at the time they were reported.
    pub unknown: AtomicU64,
    /// Counter: microseconds from append to Kafka's report, summed over `appended`.
    pub produce_us: AtomicU64,
    /// Gauge: bytes that wait for Kafka.
    pub queue_bytes: AtomicU64,
    /// Counter: records read.
    pub read: AtomicU64,
    /// Counter: bytes of payloads read.
    pub read_bytes: AtomicU64,
    /// Counter: reads that made the reader jump to another position.
    pub jumps: AtomicU64,
    /// Counter: positions committed.
    pub commits: AtomicU64,
    /// Counter: commits that failed; each is tried again.
    pub commit_failures: AtomicU64,
    /// Gauge: partitions that this server owns.
    pub owned: AtomicU64,
    /// Counter: times that partitions came or went.
    pub rebalances: AtomicU64,
    /// Counter: partitions that were lost without notice.
    pub lost: AtomicU64,
    /// Counter: producers that had to be made anew after an error of no return.
    pub producers: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
