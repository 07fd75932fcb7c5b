//! What is counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters, and gauges where it says so.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Calls made.
    pub calls: AtomicU64,
    /// Calls refused by Redis or lost with its connection.
    pub errors: AtomicU64,
    /// Calls without an answer in time.
    pub timeouts: AtomicU64,
    /// Calls that failed at once, since there is no connection.
    pub disconnected: AtomicU64,
    /// Calls answered, the count of the latency.
    pub answered: AtomicU64,
    /// The sum of their latencies in microseconds.
    pub latency_us: AtomicU64,
    /// Connections made (to a primary or a cluster).
    pub connects: AtomicU64,
    /// Gauge: whether there is a connection, 0 or 1.
    pub connected: AtomicU64,
    /// Subscriptions made; each one but the first followed a lost one.
    pub subscriptions: AtomicU64,
    /// Gauge: whether changes of other servers are heard of, 0 or 1.
    pub subscribed: AtomicU64,
    /// Questions for a user's sessions answered from the cache.
    pub session_cache_hits: AtomicU64,
    /// Those for which Redis was asked.
    pub session_cache_misses: AtomicU64,
    /// Gauge: users watched.
    pub watched: AtomicU64,
    /// Users not watched for want of room.
    pub watch_refused: AtomicU64,
    /// Changes of presence told to gateways.
    pub presence_told: AtomicU64,
    /// Lists of members found in the server.
    pub members_hits: AtomicU64,
    /// Lists found in Redis.
    pub members_redis_hits: AtomicU64,
    /// Lists for which the directory was asked.
    pub members_misses: AtomicU64,
}

impl Metrics {
    pub(super) fn answered_in(&self, time: Duration) {
        add(&self.answered, 1);
        add(&self.latency_us, time.as_micros() as u64);
    }
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub(super) fn set(gauge: &AtomicU64, value: u64) {
    gauge.store(value, Ordering::Relaxed);
}
