//! What the directory counts about itself.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the start, and gauges as of the last look ([`super::PostgresDirectory::metrics`]).
#[derive(Debug, Default)]
pub struct Metrics {
    /// Gauge: open connections.
    pub pool_size: AtomicU64,
    /// Gauge: connections that a call holds.
    pub pool_in_use: AtomicU64,
    /// Gauge: connections that nobody holds.
    pub pool_idle: AtomicU64,
    /// Gauge: calls that wait for a connection, a new one included.
    pub pool_waiters: AtomicU64,
    /// Waits for a connection that ended, with or without one.
    pub pool_waits: AtomicU64,
    /// Counter: connections that a call was given.
    pub pool_handed: AtomicU64,
    /// Their time in all, in microseconds.
    pub pool_wait_us: AtomicU64,
    /// Calls that got no connection in time or found too many waiting.
    pub pool_refused: AtomicU64,
    /// Connections held for longer than `held_warning_ms`.
    pub pool_held_long: AtomicU64,
    /// Calls begun.
    pub calls: AtomicU64,
    /// Calls answered with [`Unavailable`](tidings_core::ports::directory::DirectoryError::Unavailable),
    /// `Full` or `Corrupt`.
    pub errors: AtomicU64,
    /// Repeats of calls that PostgreSQL undid or whose connection had died.
    pub retries: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
