//! What a worker's logic counts. The server gives these their names.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use tidings_core::ids::Micros;
use tidings_protocol::{CloseCode, ErrorCode};

/// Upper bounds of the latency buckets in microseconds; fine between 50 and 500 ms, where the
/// goals lie. What is above the last one falls into a bucket of its own.
pub const LATENCY_BOUNDS: [Micros; 27] = [
    1_000, 2_000, 5_000, 10_000, 20_000, 35_000, 50_000, 75_000, 100_000, 125_000, 150_000,
    175_000, 200_000, 250_000, 300_000, 350_000, 400_000, 500_000, 750_000, 1_000_000, 1_500_000,
    2_000_000, 2_500_000, 3_000_000, 4_000_000, 6_000_000, 10_000_000,
];

/// A histogram over [`LATENCY_BOUNDS`].
#[derive(Debug, Default)]
pub struct Latency {
    /// Observations per bucket, not cumulative; the last one has no bound.
    pub buckets: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    /// The sum of all observations in microseconds.
    pub sum: AtomicU64,
}

impl Latency {
    fn observe(&self, took: Micros) {
        let bucket = LATENCY_BOUNDS.partition_point(|&bound| bound < took);
        add(&self.buckets[bucket], 1);
        add(&self.sum, took);
    }
}

/// Counters and gauges of one worker, written by its thread alone and read by anybody.
#[derive(Debug, Default)]
pub struct GatewayMetrics {
    /// Sessions open now, authenticated or not (`chat_connections_active`).
    pub connections: AtomicI64,
    /// Upgrades that came through (`chat_connection_attempts_total`).
    pub attempts: AtomicU64,
    /// Connections that were refused, closed or left while signing in (`chat_connection_failures_total`).
    pub failures: AtomicU64,
    /// Authenticated sessions open now (`chat_sessions_active`).
    pub sessions: AtomicI64,
    /// Sessions found silent for too long (`chat_sessions_stale`).
    pub stale: AtomicU64,
    /// Sends taken, by kind: text, json, empty (`chat_messages_sent_total{type}` counts those
    /// accepted; a resend is taken again).
    pub taken: [AtomicU64; 3],
    /// Sends answered as accepted for the first time.
    pub accepted: AtomicU64,
    /// Sends answered as accepted before.
    pub duplicates: AtomicU64,
    /// Sends whose message before is not the one known.
    pub forks: AtomicU64,
    /// Sends refused for good, here or by the router (`chat_messages_failed_total`).
    pub failed: AtomicU64,
    /// Sends whose append failed; the client tries again.
    pub append_failures: AtomicU64,
    /// Sends refused because the server was overloaded (`chat_sends_shed_total`).
    pub shed: AtomicU64,
    /// From taking a send to its answer (`chat_message_latency`, in seconds there).
    pub latency: Latency,
    /// Events put on a socket, one for each recipient (`chat_deliveries_total`).
    pub deliveries: AtomicU64,
    /// Events handed to all sessions that want them.
    pub fanned_out: AtomicU64,
    /// Events encoded: at most one for each format and event.
    pub encoded: AtomicU64,
    /// Conversations and sessions with something pushed and not confirmed, and marks put
    /// (`chat_pending_messages`).
    pub pending: AtomicI64,
    /// Events sent again because nobody confirmed them.
    pub resent: AtomicU64,
    /// Sessions given up because they confirmed nothing.
    pub dead: AtomicU64,
    /// Sessions told to come back later, as too many wanted to sign in.
    pub sent_away: AtomicU64,
    /// Queues dropped because a client read too slowly.
    pub lagging: AtomicU64,
    /// Holes in the events that came from the router.
    pub gaps: AtomicU64,
    /// Numbers missing in the routers' digests.
    pub digest_gaps: AtomicU64,
    /// Syncs answered.
    pub syncs: AtomicU64,
    /// Syncs that couldn't be answered whole.
    pub syncs_incomplete: AtomicU64,
    /// Reads answered by another read under way.
    pub reads_shared: AtomicU64,
    /// Reads of events that were here lately.
    pub reads_recent: AtomicU64,
    /// Requests to a router or the host that weren't answered in time.
    pub requests_lost: AtomicU64,
    refusals: [AtomicU64; ErrorCode::ALL.len()],
    closes: [AtomicU64; CloseCode::ALL.len()],
}

impl GatewayMetrics {
    /// How many commands were refused with `code`.
    pub fn refusals(&self, code: ErrorCode) -> u64 {
        let place = ErrorCode::ALL.iter().position(|&c| c == code).unwrap_or(0);
        self.refusals[place].load(Ordering::Relaxed)
    }

    /// How many sessions were closed with `code`.
    pub fn closes(&self, code: CloseCode) -> u64 {
        let place = CloseCode::ALL.iter().position(|&c| c == code).unwrap_or(0);
        self.closes[place].load(Ordering::Relaxed)
    }

    pub(super) fn refused(&self, code: ErrorCode) {
        if let Some(place) = ErrorCode::ALL.iter().position(|&c| c == code) {
            add(&self.refusals[place], 1);
        }
    }

    pub(super) fn closed(&self, code: CloseCode) {
        if let Some(place) = CloseCode::ALL.iter().position(|&c| c == code) {
            add(&self.closes[place], 1);
        }
    }

    pub(super) fn answered(&self, took: Micros) {
        self.latency.observe(took);
    }
}

/// Adds to a counter that this thread alone writes: no locked instruction on a message's way.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

/// Moves a gauge that this thread alone writes.
pub(super) fn shift(gauge: &AtomicI64, n: i64) {
    gauge.store(gauge.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}
