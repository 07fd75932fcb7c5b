//! The log thread: batch after batch onto the disk.
//!
//! 1. One frame is written and synced before the next one is begun.
//! 2. A frame goes into a segment whose header and name are durable.
//! 3. Readers get a batch after its sync, and reports are called after that.
//! 4. After a failed sync nothing is synced or reported any more.
//! 5. A segment is removed only when the durable committed position lies behind it.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tidings_core::ids::Micros;
use tidings_core::in_process::rest;
use tidings_core::ports::disk::DiskFile;
use tidings_core::ports::log::{AppendReport, LogError};

use super::format::{FrameFacts, encode_frame, segment_name};
use super::metrics::{Metrics, add, set};
use super::position::PositionFile;
use super::queue::{Call, Queue, Turn, refuse};
use super::reader::{Batch, Published};
use super::recover::{CreateError, create_segment};
use super::settings::{Parts, Settings};

/// A last segment of so many bytes, or of a quarter of a full one, makes room when all of it is committed.
const RETIRED_BYTES_MIN: u64 = 64 << 10;

/// A frame buffer larger than this isn't kept for the next batch.
const FRAME_BUFFER_KEPT_BYTES: usize = 8 << 20;

pub(super) struct Writer {
    pub parts: Parts,
    pub settings: Settings,
    pub queue: Arc<Queue>,
    pub published: Arc<Published>,
    pub metrics: Arc<Metrics>,
    pub position: PositionFile,
    /// The append time of the last record.
    pub appended: Micros,
    /// The committed position in the position file.
    pub saved: u64,
    pub frame: Vec<u8>,
}

/// Why a batch wasn't made durable.
enum Failure {
    /// Nothing was appended, and it may go better later.
    Refused(LogError),
    /// The process can't go on.
    Fatal(String),
}

impl Writer {
    /// Runs until the queue is closed and empty, or nothing can go on.
    pub fn run(mut self) {
        let watch = DeathWatch {
            parts: self.parts.clone(),
            queue: Arc::clone(&self.queue),
            published: Arc::clone(&self.published),
            metrics: Arc::clone(&self.metrics),
            told: Cell::new(false),
        };
        let why = loop {
            let turn = self.queue.next(
                self.settings.batch_bytes,
                self.settings.position_interval,
                &self.metrics,
            );
            let result = match turn {
                Turn::Batch { calls, committed } => self
                    .batch(calls, committed)
                    .and_then(|()| self.trim(committed)),
                Turn::SavePosition(committed) => {
                    // Nothing comes at the moment: what served the last records may go.
                    self.frame = Vec::new();
                    self.published.rest(committed);
                    let done = self.come_to_rest(committed);
                    rest();
                    done
                }
                Turn::End(committed) => match self.come_to_rest(committed) {
                    Ok(()) => break None,
                    Err(why) => Err(why),
                },
            };
            if let Err(why) = result {
                break Some(why);
            }
        };
        match why {
            Some(why) => watch.die(&why),
            None => self.published.close("the log was shut down"),
        }
    }

    /// Makes calls durable, gives their records out and reports. An error says why the process must end.
    fn batch(&mut self, calls: Vec<Call>, committed: u64) -> Result<(), String> {
        let mut reports = Vec::with_capacity(calls.len());
        let mut payloads: Vec<Bytes> =
            Vec::with_capacity(calls.iter().map(|call| call.records.len()).sum());
        for call in calls {
            payloads.extend(call.records.into_iter().map(|record| record.payload));
            reports.push(call.report);
        }
        if payloads.is_empty() {
            report_all(reports, &Ok(()));
            return Ok(());
        }
        match self.write(&payloads, committed) {
            Ok(frame_bytes) => {
                let records = payloads.len() as u64;
                let first = self.published.end();
                self.published.publish(
                    Batch {
                        first,
                        appended: self.appended,
                        payloads,
                    },
                    frame_bytes,
                );
                add(&self.metrics.batches, 1);
                add(&self.metrics.records, records);
                add(&self.metrics.bytes, frame_bytes);
                report_all(reports, &Ok(()));
                // The frame carries it, so it is as durable as the records.
                self.queue.saved(committed);
                Ok(())
            }
            Err(Failure::Refused(error)) => {
                // What waits came after: had it success now, a caller's order would break.
                let behind = self.queue.drain(&self.metrics);
                if error == LogError::Full {
                    add(&self.metrics.full, (reports.len() + behind.len()) as u64);
                }
                report_all(reports, &Err(error.clone()));
                refuse(behind, &error);
                Ok(())
            }
            Err(Failure::Fatal(why)) => {
                report_all(reports, &Err(LogError::Unknown(why.clone())));
                Err(why)
            }
        }
    }

    /// Writes one frame and syncs it; gives its length.
    fn write(&mut self, payloads: &[Bytes], committed: u64) -> Result<u64, Failure> {
        let no_segment = || Failure::Fatal("the log has no segment".to_owned());
        let (mut first, mut at, mut file) = self.published.tail().ok_or_else(no_segment)?;
        if at >= self.settings.segment_bytes {
            self.roll(first)?;
            (first, at, file) = self.published.tail().ok_or_else(no_segment)?;
        }
        let appended = (self.parts.clock)().max(self.appended);
        let (epoch, salt) = (self.published.epoch(), self.published.salt());
        encode_frame(
            &mut self.frame,
            FrameFacts {
                epoch,
                salt,
                first,
                appended,
                committed,
            },
            payloads,
        );
        let frame_bytes = self.frame.len() as u64;
        let written = file.write_all_at(&self.frame, at);
        if self.frame.capacity() > FRAME_BUFFER_KEPT_BYTES {
            self.frame = Vec::new();
        }
        match written {
            Ok(()) => {}
            Err(error) if is_full(&error) => {
                file.set_len(at).map_err(|error| {
                    Failure::Fatal(format!("cutting a part written back: {error}"))
                })?;
                return Err(Failure::Refused(LogError::Full));
            }
            Err(error) => return Err(Failure::Fatal(format!("writing: {error}"))),
        }
        let began = Instant::now();
        self.sync(&*file).map_err(Failure::Fatal)?;
        set(
            &self.metrics.last_fsync_us,
            began.elapsed().as_micros() as u64,
        );
        self.appended = appended;
        Ok(frame_bytes)
    }

    fn roll(&mut self, first: u64) -> Result<(), Failure> {
        let facts = (self.published.epoch(), self.published.salt());
        let segment =
            create_segment(&*self.parts.disk, facts, first).map_err(|refusal| match refusal {
                CreateError::Refused(error) if is_full(&error) => Failure::Refused(LogError::Full),
                CreateError::Refused(error) => {
                    Failure::Refused(LogError::Unavailable(format!("a new segment: {error}")))
                }
                CreateError::Sync(error) => {
                    Failure::Fatal(format!("syncing a new segment: {error}"))
                }
            })?;
        add(&self.metrics.fsyncs, 2);
        self.published.add_segment(segment);
        Ok(())
    }

    fn sync(&self, file: &dyn DiskFile) -> Result<(), String> {
        add(&self.metrics.fsyncs, 1);
        file.sync().map_err(|error| format!("syncing: {error}"))
    }

    /// Makes the committed position durable; false when the disk had no room for it.
    fn save(&mut self, committed: u64) -> Result<bool, String> {
        if committed > self.saved {
            match self.position.write(self.published.epoch(), committed) {
                Ok(()) => {}
                Err(error) if is_full(&error) => {
                    // The slots were written before, so only a copying file system comes here.
                    tracing::warn!("the log's position can't be saved: {error}");
                    return Ok(false);
                }
                Err(error) => return Err(format!("writing the position: {error}")),
            }
            add(&self.metrics.fsyncs, 1);
            self.position
                .sync()
                .map_err(|error| format!("syncing the position: {error}"))?;
            self.saved = committed;
        }
        self.queue.saved(committed);
        Ok(true)
    }

    /// Makes the position durable and lets go of all that lies before it, the last segment too: a log
    /// at rest, or one that was shut down, takes no room for what the store has.
    fn come_to_rest(&mut self, committed: u64) -> Result<(), String> {
        if !self.save(committed)? {
            return Ok(());
        }
        let enough = RETIRED_BYTES_MIN.min(self.settings.segment_bytes / 4);
        if let Some((end, bytes, _)) = self.published.tail()
            && committed == end
            && bytes > enough
        {
            match self.roll(end) {
                Ok(()) => {}
                // It stays as it is until the next rest.
                Err(Failure::Refused(error)) => {
                    tracing::warn!("the log's last segment can't be retired: {error}");
                }
                Err(Failure::Fatal(why)) => return Err(why),
            }
        }
        self.trim(committed)
    }

    /// Removes the segments that lie wholly before the committed position.
    fn trim(&mut self, committed: u64) -> Result<(), String> {
        let old = self.published.trimmable(committed);
        if old.is_empty() || !self.save(committed)? {
            return Ok(());
        }
        for first in old {
            let name = segment_name(first);
            self.published.forget_oldest();
            // A file that stays is found and removed at the next opening.
            if let Err(error) = self.parts.disk.remove(&name) {
                tracing::warn!("the log's old segment {name} can't be removed: {error}");
            }
        }
        Ok(())
    }
}

fn report_all(reports: Vec<AppendReport>, result: &Result<(), LogError>) {
    for report in reports {
        report(result.clone());
    }
}

/// Whether an error says that the disk has no room, and so that room may come.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Ends the log when its thread can't go on, by an error or a panic.
struct DeathWatch {
    parts: Parts,
    queue: Arc<Queue>,
    published: Arc<Published>,
    metrics: Arc<Metrics>,
    told: Cell<bool>,
}

impl DeathWatch {
    fn die(&self, why: &str) {
        if self.told.replace(true) {
            return;
        }
        self.queue.close(why);
        self.published.close(why);
        (self.parts.fatal)(why);
        refuse(
            self.queue.drain(&self.metrics),
            &LogError::Unavailable(why.to_owned()),
        );
    }
}

impl Drop for DeathWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.die("the log thread panicked");
        }
    }
}
