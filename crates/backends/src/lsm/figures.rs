//! What the store counts.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{FULL, Inner};

/// Counters since the opening.
#[derive(Default)]
pub struct Counters {
    pub(super) flushes: AtomicU64,
    pub(super) merges: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) refused: AtomicU64,
    /// Puts that were taken: tells whether the store is in use.
    pub(super) puts: AtomicU64,
}

/// The figures at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Gauge: segment files.
    pub segments: u64,
    /// Gauge: bytes of all segment files.
    pub segment_bytes: u64,
    /// Gauge: bytes of memory that rows take which are not flushed yet.
    pub unflushed_bytes: u64,
    /// Gauge: bytes of the cursors' journal.
    pub cursor_journal_bytes: u64,
    /// Gauge, 0 or 1: the last flush found the disk full.
    pub full: u64,
    /// Counter: flushes done.
    pub flushes: u64,
    /// Counter: merges done.
    pub merges: u64,
    /// Counter: flushes and merges that failed and were or will be tried again, and writes of
    /// the cursors' journal that failed.
    pub failures: u64,
    /// Counter: puts refused because too much waits for the disk.
    pub refused: u64,
}

/// Counts one more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Inner {
    pub(super) fn figures(&self) -> Figures {
        let view = self.view();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            segments: view.segments.len() as u64,
            segment_bytes: view.segments.iter().map(|s| s.len).sum(),
            unflushed_bytes: view.tables().map(|t| t.bytes() as u64).sum(),
            cursor_journal_bytes: self.journal.bytes(),
            full: u64::from(self.health.load(Ordering::Relaxed) == FULL),
            flushes: get(&self.counters.flushes),
            merges: get(&self.counters.merges),
            failures: get(&self.counters.failures),
            refused: get(&self.counters.refused),
        }
    }
}
