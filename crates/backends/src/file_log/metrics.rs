//! What the log counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters and gauges of one log; read them at any time.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(super) fsyncs: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) full: AtomicU64,
    pub(super) queue_records: AtomicU64,
    pub(super) queue_bytes: AtomicU64,
    pub(super) last_fsync_us: AtomicU64,
    pub(super) segments: AtomicU64,
    pub(super) retained_bytes: AtomicU64,
    pub(super) read_from_files: AtomicU64,
}

/// The figures at one moment; counters count from the opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Counter: syncs of files and of names.
    pub fsyncs: u64,
    /// Counter: batches made durable.
    pub batches: u64,
    /// Counter: records made durable.
    pub records: u64,
    /// Counter: bytes of frames made durable.
    pub bytes: u64,
    /// Counter: calls refused because the queue was full.
    pub refused: u64,
    /// Counter: calls refused because the disk was full.
    pub full: u64,
    /// Gauge: records waiting for the disk.
    pub queue_records: u64,
    /// Gauge: bytes of payload waiting for the disk.
    pub queue_bytes: u64,
    /// Gauge: how long the last batch's sync took, in microseconds.
    pub last_fsync_us: u64,
    /// Gauge: segment files.
    pub segments: u64,
    /// Gauge: bytes of all segment files.
    pub retained_bytes: u64,
    /// Counter: reads served from files instead of memory.
    pub read_from_files: u64,
}

impl Metrics {
    /// The figures now; not of one instant.
    pub fn figures(&self) -> Figures {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            fsyncs: get(&self.fsyncs),
            batches: get(&self.batches),
            records: get(&self.records),
            bytes: get(&self.bytes),
            refused: get(&self.refused),
            full: get(&self.full),
            queue_records: get(&self.queue_records),
            queue_bytes: get(&self.queue_bytes),
            last_fsync_us: get(&self.last_fsync_us),
            segments: get(&self.segments),
            retained_bytes: get(&self.retained_bytes),
            read_from_files: get(&self.read_from_files),
        }
    }
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub(super) fn set(gauge: &AtomicU64, n: u64) {
    gauge.store(n, Ordering::Relaxed);
}
