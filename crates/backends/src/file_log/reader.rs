//! What readers see: the committed records, the latest of them in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tidings_core::ids::{Micros, Position};
use tidings_core::ports::disk::DiskFile;
use tidings_core::ports::log::LogError;
use tidings_core::record::Committed;
use tokio::sync::Notify;

use super::format::{FRAME_HEADER_BYTES, FrameHeader, payloads};
use super::metrics::{Metrics, add, set};
use super::recover::Segment;

/// What a record in memory costs beside its payload, about: its `Bytes` and the allocation's own.
const RECORD_OVERHEAD_BYTES: usize = 64;
/// What is read from a file at once, at least.
const CHUNK_BYTES: usize = 64 << 10;

/// A committed batch.
pub(super) struct Batch {
    pub first: u64,
    pub appended: Micros,
    pub payloads: Vec<Bytes>,
}

impl Batch {
    fn end(&self) -> u64 {
        self.first + self.payloads.len() as u64
    }

    fn cost(&self) -> usize {
        self.payloads
            .iter()
            .map(|payload| payload.len() + RECORD_OVERHEAD_BYTES)
            .sum()
    }
}

/// The committed part of the log, shared by the log thread and all readers.
pub(super) struct Published {
    view: Mutex<View>,
    grown: Notify,
    epoch: u32,
    salt: u64,
    ring_bytes_max: usize,
    metrics: Arc<Metrics>,
}

struct View {
    /// Never empty; the last one is written on.
    segments: VecDeque<Segment>,
    /// The latest batches, without a gap up to `end`.
    ring: VecDeque<Arc<Batch>>,
    ring_bytes: usize,
    end: u64,
    /// Why nothing will follow.
    closed: Option<String>,
}

/// A part of a segment file that holds what is asked for.
struct Part {
    file: Arc<dyn DiskFile>,
    from: u64,
    to: u64,
}

enum Found {
    Batches(Vec<Arc<Batch>>),
    Part(Part),
    NotYet,
}

impl Published {
    pub fn new(
        (epoch, salt): (u32, u64),
        segments: VecDeque<Segment>,
        ring_bytes_max: usize,
        metrics: Arc<Metrics>,
    ) -> Published {
        let end = segments.back().map_or(0, |segment| segment.end);
        let view = View {
            segments,
            ring: VecDeque::new(),
            ring_bytes: 0,
            end,
            closed: None,
        };
        view.gauge(&metrics);
        Published {
            view: Mutex::new(view),
            grown: Notify::new(),
            epoch,
            salt,
            ring_bytes_max,
            metrics,
        }
    }

    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    pub fn salt(&self) -> u64 {
        self.salt
    }

    pub fn position(&self, offset: u64) -> Position {
        Position {
            epoch: self.epoch,
            offset,
        }
    }

    /// The offset of the first record there is.
    pub fn first(&self) -> u64 {
        let view = self.lock();
        view.segments
            .front()
            .map_or(view.end, |segment| segment.first)
    }

    /// The offset behind the last committed record.
    pub fn end(&self) -> u64 {
        self.lock().end
    }

    /// The end, the place in the last segment's file where the next frame belongs, and the file.
    pub fn tail(&self) -> Option<(u64, u64, Arc<dyn DiskFile>)> {
        let view = self.lock();
        let last = view.segments.back()?;
        Some((view.end, last.bytes, Arc::clone(&last.file)))
    }

    /// Gives a batch out that is durable in the last segment.
    pub fn publish(&self, batch: Batch, frame_bytes: u64) {
        let mut view = self.lock();
        view.end = batch.end();
        if let Some(segment) = view.segments.back_mut() {
            segment.grow(batch.end(), frame_bytes);
        }
        view.ring_bytes += batch.cost();
        view.ring.push_back(Arc::new(batch));
        while view.ring_bytes > self.ring_bytes_max {
            let Some(oldest) = view.ring.pop_front() else {
                break;
            };
            view.ring_bytes -= oldest.cost();
        }
        view.gauge(&self.metrics);
        drop(view);
        self.grown.notify_waiters();
    }

    pub fn add_segment(&self, segment: Segment) {
        let mut view = self.lock();
        view.segments.push_back(segment);
        view.gauge(&self.metrics);
    }

    /// The first offsets of the segments that lie wholly before `committed`.
    pub fn trimmable(&self, committed: u64) -> Vec<u64> {
        let view = self.lock();
        let follower = view.segments.iter().skip(1);
        view.segments
            .iter()
            .zip(follower)
            .take_while(|(_, next)| next.first <= committed)
            .map(|(segment, _)| segment.first)
            .collect()
    }

    /// Forgets the oldest segment, of which the caller removes the file.
    pub fn forget_oldest(&self) {
        let mut view = self.lock();
        view.segments.pop_front();
        let first = view
            .segments
            .front()
            .map_or(view.end, |segment| segment.first);
        while view.ring.front().is_some_and(|batch| batch.first < first) {
            let Some(oldest) = view.ring.pop_front() else {
                break;
            };
            view.ring_bytes -= oldest.cost();
        }
        view.gauge(&self.metrics);
    }

    /// Takes records out of memory that nobody is expected to read again; whoever does is given
    /// them from the files.
    pub fn rest(&self, committed: u64) {
        let mut view = self.lock();
        let kept = view.ring.partition_point(|batch| batch.end() <= committed);
        let cost: usize = view.ring.drain(..kept).map(|batch| batch.cost()).sum();
        view.ring_bytes -= cost;
        view.ring.shrink_to_fit();
    }

    /// Nothing will follow; readers that wait are told.
    pub fn close(&self, why: &str) {
        self.lock().closed.get_or_insert_with(|| why.to_owned());
        self.grown.notify_waiters();
    }

    /// See [`tidings_core::ports::log::Log::read`]. Reads files on the calling thread when
    /// the records are no longer in memory.
    pub async fn read(&self, from: Position, bytes_max: usize) -> Result<Vec<Committed>, LogError> {
        loop {
            let grown = self.grown.notified();
            let mut grown = std::pin::pin!(grown);
            // Registered before looking, so that a batch published in between isn't missed.
            grown.as_mut().enable();
            match self.find(from, bytes_max)? {
                Found::Batches(batches) => return Ok(self.pick(&batches, from.offset, bytes_max)),
                Found::Part(part) => {
                    add(&self.metrics.read_from_files, 1);
                    return self
                        .read_part(&part, from.offset, bytes_max)
                        .map_err(LogError::Unavailable);
                }
                Found::NotYet => grown.await,
            }
        }
    }

    fn find(&self, from: Position, bytes_max: usize) -> Result<Found, LogError> {
        let view = self.lock();
        let first = view
            .segments
            .front()
            .map_or(view.end, |segment| segment.first);
        if from.epoch != self.epoch || from.offset < first || from.offset > view.end {
            return Err(LogError::Gone {
                asked: from,
                first: self.position(first),
                end: self.position(view.end),
            });
        }
        if from.offset == view.end {
            return match &view.closed {
                Some(why) => Err(LogError::Unavailable(why.clone())),
                None => Ok(Found::NotYet),
            };
        }
        if view
            .ring
            .front()
            .is_some_and(|batch| batch.first <= from.offset)
        {
            let start = view
                .ring
                .partition_point(|batch| batch.end() <= from.offset);
            let mut bytes = 0;
            let mut batches = Vec::new();
            for batch in view.ring.range(start..) {
                batches.push(Arc::clone(batch));
                let skipped = from.offset.saturating_sub(batch.first) as usize;
                bytes += batch.payloads[skipped..]
                    .iter()
                    .map(Bytes::len)
                    .sum::<usize>();
                if bytes >= bytes_max {
                    break;
                }
            }
            return Ok(Found::Batches(batches));
        }
        let holder = view
            .segments
            .partition_point(|segment| segment.end <= from.offset);
        let segment = &view.segments[holder];
        let entry = segment
            .index
            .partition_point(|(first, _)| *first <= from.offset);
        let (_, at) = segment.index[entry.saturating_sub(1)];
        Ok(Found::Part(Part {
            file: Arc::clone(&segment.file),
            from: at,
            to: segment.bytes,
        }))
    }

    fn pick(&self, batches: &[Arc<Batch>], from: u64, bytes_max: usize) -> Vec<Committed> {
        let mut taken = Taken::new(self, bytes_max);
        for batch in batches {
            let skipped = from.saturating_sub(batch.first);
            let rest = batch.payloads[skipped as usize..].iter().cloned();
            if !taken.add(batch.first + skipped, batch.appended, rest) {
                break;
            }
        }
        taken.records
    }

    fn read_part(
        &self,
        part: &Part,
        from: u64,
        bytes_max: usize,
    ) -> Result<Vec<Committed>, String> {
        let mut taken = Taken::new(self, bytes_max);
        let mut at = part.from;
        let mut wanted = bytes_max.clamp(CHUNK_BYTES, 16 * CHUNK_BYTES);
        while at < part.to {
            let count = wanted.min((part.to - at) as usize);
            let mut chunk = vec![0; count];
            part.file
                .read_exact_at(&mut chunk, at)
                .map_err(|error| format!("reading the log: {error}"))?;
            let chunk = Bytes::from(chunk);
            let mut used = 0;
            loop {
                let rest = chunk.slice(used..);
                if rest.len() < FRAME_HEADER_BYTES {
                    wanted = CHUNK_BYTES;
                    break;
                }
                let header = FrameHeader::decode(&rest, self.salt).map_err(|bad| {
                    format!("the log's frame at byte {}: {bad:?}", at + used as u64)
                })?;
                if rest.len() < header.frame_bytes() {
                    wanted = header.frame_bytes().max(CHUNK_BYTES);
                    break;
                }
                used += header.frame_bytes();
                if header.end() <= from {
                    continue;
                }
                let body = rest.slice(FRAME_HEADER_BYTES..header.frame_bytes());
                if !header.fits(&body, self.salt) {
                    return Err(format!(
                        "the log's records from {} on are damaged",
                        header.first
                    ));
                }
                let skipped = from.saturating_sub(header.first);
                let rest = payloads(body).skip(skipped as usize);
                if !taken.add(header.first + skipped, header.appended, rest) {
                    return Ok(taken.records);
                }
            }
            if !taken.records.is_empty() {
                break;
            }
            at += used as u64;
        }
        if taken.records.is_empty() {
            return Err(format!("the log's index has no record {from}"));
        }
        Ok(taken.records)
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View {
    fn gauge(&self, metrics: &Metrics) {
        set(&metrics.segments, self.segments.len() as u64);
        set(
            &metrics.retained_bytes,
            self.segments.iter().map(|segment| segment.bytes).sum(),
        );
    }
}

/// Records being gathered for one read.
struct Taken<'a> {
    published: &'a Published,
    records: Vec<Committed>,
    bytes_left: usize,
}

impl Taken<'_> {
    fn new(published: &Published, bytes_max: usize) -> Taken<'_> {
        Taken {
            published,
            records: Vec::new(),
            bytes_left: bytes_max,
        }
    }

    /// Adds a run of records; false when there was no room for all.
    fn add(&mut self, first: u64, appended: Micros, payloads: impl Iterator<Item = Bytes>) -> bool {
        for (offset, payload) in (first..).zip(payloads) {
            if payload.len() > self.bytes_left && !self.records.is_empty() {
                return false;
            }
            self.bytes_left = self.bytes_left.saturating_sub(payload.len());
            let position = self.published.position(offset);
            self.records.push(Committed {
                position,
                appended,
                payload,
            });
        }
        true
    }
}
