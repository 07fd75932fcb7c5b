//! What a worker counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one worker, written by it alone and read by anybody.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections refused at a limit, before any work.
    pub refused: AtomicU64,
    /// Accepts that failed, mostly for want of file descriptors.
    pub accept_errors: AtomicU64,
    /// Connections whose request head was refused or didn't come in time.
    pub handshake_failures: AtomicU64,
    /// Connections given to HTTP.
    pub handed_over: AtomicU64,
    /// Sessions opened.
    pub opened: AtomicU64,
    /// Sessions closed.
    pub closed: AtomicU64,
    /// Messages received whole.
    pub messages_in: AtomicU64,
    /// Bytes received.
    pub bytes_in: AtomicU64,
    /// Frames that sessions were to be sent.
    pub frames_out: AtomicU64,
    /// Calls that wrote to a socket.
    pub writes: AtomicU64,
    /// Bytes that sockets took.
    pub bytes_out: AtomicU64,
    /// Queues dropped at their bound.
    pub overflows: AtomicU64,
    /// Sessions closed for reading too slowly.
    pub closed_slow: AtomicU64,
    /// Sessions closed for sending too many frames.
    pub closed_rate: AtomicU64,
    /// Panics caught.
    pub panics: AtomicU64,
}

/// Adds to a counter that this thread alone writes: no locked instruction on a message's way.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}
