//! The sending side: one link to each other server, over a connection this server made.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use tidings_core::varint::Reader;
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::frame::{self, Connection, Ended, Frames};
use super::item::Item;
use super::metrics::add;
use super::queue::Queue;
use super::shared::Shared;
use super::tls::Stream;
use super::wire::Wire;

/// A write buffer above this is given back after the message that needed it.
const BUFFER_KEPT: usize = 2 * frame::FRAME_FULL;

/// A link that is up.
pub(super) struct Link {
    pub server: u32,
    pub address: SocketAddr,
    /// What both sides speak: nothing that a later version brought goes over this link.
    pub version: u32,
    pub queue: Queue,
    /// Of the last ping, in microseconds; 0: none yet.
    pub round_trip: AtomicU64,
}

impl Link {
    /// Sends what is queued until the connection ends, one way or another.
    pub async fn run(&self, connection: Connection, shared: &Arc<Shared>) -> Ended {
        let Connection { frames, out } = connection;
        tokio::select! {
            ended = self.hear(frames, shared) => ended,
            ended = self.send(out, shared) => ended.map_or_else(Ended::Io, |()| Ended::Draining),
        }
    }

    /// Hears that the other side is there.
    async fn hear(&self, mut frames: Frames, shared: &Shared) -> Ended {
        loop {
            let frame = match timeout(shared.times.silence, frames.next()).await {
                Err(_) => return Ended::Silent,
                Ok(None) => return Ended::Closed,
                Ok(Some(Err(error))) => return Ended::by_reading(error),
                Ok(Some(Ok(frame))) => frame,
            };
            let mut r = Reader::new(&frame, "pong");
            match r.byte() {
                Ok(frame::BEAT) => {}
                Ok(frame::PONG) => {
                    let Ok(sent) = r.fixed64() else {
                        return Ended::Malformed;
                    };
                    let micros = shared.elapsed_micros().saturating_sub(sent).max(1);
                    self.round_trip.store(micros, Ordering::Relaxed);
                    shared
                        .metrics
                        .round_trip_micros
                        .store(micros, Ordering::Relaxed);
                }
                _ => return Ended::Malformed,
            }
        }
    }

    /// Writes whatever has gathered, at once; while a write is under way more gathers. `Ok` when this
    /// server drains and all is written.
    async fn send(&self, mut out: WriteHalf<Stream>, shared: &Shared) -> std::io::Result<()> {
        let mut ping = interval(shared.times.ping);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut items = Vec::new();
        let mut buffer = Vec::new();
        loop {
            let (mut is_last, mut must_ping) = (false, false);
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => is_last = true,
                _ = ping.tick() => must_ping = true,
                () = self.queue.ready() => {}
            }
            buffer.clear();
            if must_ping {
                let start = frame::begin(&mut buffer, frame::PING);
                buffer.extend_from_slice(&shared.elapsed_micros().to_le_bytes());
                frame::finish(&mut buffer, start);
            }
            let has_lost = self.queue.take(&mut items);
            if has_lost || !items.is_empty() {
                self.batches(&mut items, has_lost, &mut buffer, &mut out, shared)
                    .await?;
            }
            out.write_all(&buffer).await?;
            out.flush().await?;
            if is_last {
                return out.shutdown().await;
            }
            buffer.shrink_to(BUFFER_KEPT);
        }
    }

    /// Encodes items into batches behind what `buffer` holds; full ones are written, the last is left
    /// in the buffer.
    async fn batches(
        &self,
        items: &mut Vec<Item>,
        has_lost: bool,
        buffer: &mut Vec<u8>,
        out: &mut WriteHalf<Stream>,
        shared: &Shared,
    ) -> std::io::Result<()> {
        let mut batch = Batch::begin(buffer, has_lost);
        for item in items.drain(..) {
            if !batch.put(buffer, &item) {
                tracing::error!(
                    server = self.server,
                    "a message between servers is too long and was dropped"
                );
                shared.count_dropped(&item);
            }
            if buffer.len() >= frame::FRAME_FULL {
                batch.finish(buffer, shared);
                out.write_all(buffer).await?;
                buffer.clear();
                batch = Batch::begin(buffer, false);
            }
        }
        if batch.is_empty() {
            buffer.truncate(batch.start);
        } else {
            batch.finish(buffer, shared);
        }
        Ok(())
    }
}

/// A batch under way at the end of a buffer.
struct Batch {
    start: usize,
    messages: u64,
    has_lost: bool,
}

impl Batch {
    fn begin(buffer: &mut Vec<u8>, has_lost: bool) -> Batch {
        let start = frame::begin(buffer, frame::BATCH);
        buffer.push(0);
        Batch {
            start,
            messages: 0,
            has_lost,
        }
    }

    /// Whether the item isn't too long. If it is, the batch tells of the loss instead.
    fn put(&mut self, buffer: &mut Vec<u8>, item: &Item) -> bool {
        let before = buffer.len();
        buffer.extend_from_slice(&[0; frame::ITEM_HEAD_BYTES]);
        let start = buffer.len();
        item.put(buffer);
        let length = buffer.len() - start;
        buffer[before..start].copy_from_slice(&(length as u32).to_le_bytes());
        if length > frame::MESSAGE_MAX {
            buffer.truncate(before);
            self.has_lost |= item.is_to_gateway();
            return false;
        }
        self.messages += 1;
        true
    }

    fn is_empty(&self) -> bool {
        self.messages == 0 && !self.has_lost
    }

    fn finish(&self, buffer: &mut [u8], shared: &Shared) {
        let metrics = &shared.metrics;
        if self.has_lost {
            buffer[self.start + frame::FLAGS_AT] |= frame::LOST;
            add(&metrics.losses_told, 1);
        }
        frame::finish(buffer, self.start);
        add(&metrics.batches_out, 1);
        add(&metrics.messages_out, self.messages);
        add(&metrics.bytes_out, (buffer.len() - self.start) as u64);
    }
}
