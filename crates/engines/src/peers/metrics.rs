//! What the links did, for the server to export.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the start, and gauges where the text says so.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Gauge: servers this one sends to.
    pub links_up: AtomicU64,
    /// Gauge: servers this one hears.
    pub heard: AtomicU64,
    /// Links to other servers that came up.
    pub connected: AtomicU64,
    /// Tries to connect that failed.
    pub connect_failed: AtomicU64,
    /// Connections of others that were refused: no certificate of the CA, another cluster or version.
    pub refused: AtomicU64,
    /// Links closed because nothing was heard for `silence_max_ms`.
    pub silent: AtomicU64,
    /// Links closed because of a frame that can't be read.
    pub bad_frames: AtomicU64,
    /// Batches sent; messages per batch tell how well they are gathered.
    pub batches_out: AtomicU64,
    /// Messages sent; one for several workers of a server counts once.
    pub messages_out: AtomicU64,
    /// Bytes sent, before TLS.
    pub bytes_out: AtomicU64,
    /// Batches received.
    pub batches_in: AtomicU64,
    /// Messages received.
    pub messages_in: AtomicU64,
    /// Bytes received in batches.
    pub bytes_in: AtomicU64,
    /// Messages to routers of other servers dropped: the link's queue was full, or it is down.
    pub to_router_dropped: AtomicU64,
    /// Messages to gateways of other servers dropped: the link's queue was full, or it is down.
    pub to_gateway_dropped: AtomicU64,
    /// Messages to routers dropped because nobody here knows, or has, the partition's owner.
    pub unowned_dropped: AtomicU64,
    /// Messages of routers dropped because another has taken over since.
    pub stale_dropped: AtomicU64,
    /// Things that a server of a later release said and this one has no word for: passed over.
    pub unknown_skipped: AtomicU64,
    /// Batches that told the receiver of a loss.
    pub losses_told: AtomicU64,
    /// Batches that told this server of a loss.
    pub losses_heard: AtomicU64,
    /// Gauge: the round trip of the last ping, over whatever link, in microseconds.
    pub round_trip_micros: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub(super) fn sub(gauge: &AtomicU64, n: u64) {
    gauge.fetch_sub(n, Ordering::Relaxed);
}
