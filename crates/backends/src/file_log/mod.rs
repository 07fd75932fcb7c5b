//! The embedded log: group commit onto one disk, one partition.
//!
//! One thread writes. A batch is whatever queued while the one before was being synced:
//! no timer, so a single record waits for one sync and ten thousand share one.
//!
//! ```text
//! append ─▶ queue (bounded) ─▶ log thread: frame, write, sync ─▶ readers ─▶ reports
//! ```
//!
//! [`format`] describes the stored bytes, [`recover`] what is believed of them at opening,
//! [`writer`] the thread, [`reader`] what readers see.

mod format;
mod metrics;
mod position;
mod queue;
mod reader;
mod recover;
mod settings;
mod window;
mod writer;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tidings_core::ids::{Partition, Position};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::log::{Append, AppendReport, Log, LogError};
use tidings_core::record::Committed;

pub use metrics::{Figures, Metrics};
pub use recover::OpenError;
pub use settings::{Clock, Fatal, Parts, Settings};

use metrics::add;
use queue::Queue;
use reader::Published;
use writer::Writer;

/// The embedded [`Log`].
///
/// Reports are called by the log thread, refusals for a full queue by the caller's. A call
/// larger than the whole queue is never taken. Reading what is no longer in memory
/// reads files on the thread that polls the future.
///
/// Dropping it is [`FileLog::shutdown`].
pub struct FileLog {
    queue: Arc<Queue>,
    published: Arc<Published>,
    metrics: Arc<Metrics>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl FileLog {
    /// Opens the log or makes a new one, whose epoch is 1.
    ///
    /// Everything found is checked, from the committed position's segment on, and made durable before
    /// this returns; a write torn by a crash is cut off.
    pub fn open(parts: Parts, settings: Settings) -> Result<FileLog, OpenError> {
        let found = recover::recover(&*parts.disk, parts.salt)?;
        let metrics = Arc::new(Metrics::default());
        let queue = Arc::new(Queue::new(
            settings.queue_bytes_max,
            settings.queue_records_max,
            found.committed,
        ));
        let facts = (found.epoch, found.salt);
        let published = Arc::new(Published::new(
            facts,
            found.segments,
            settings.ring_bytes,
            Arc::clone(&metrics),
        ));
        let writer = Writer {
            parts,
            settings,
            queue: Arc::clone(&queue),
            published: Arc::clone(&published),
            metrics: Arc::clone(&metrics),
            position: found.position,
            appended: found.appended,
            saved: found.committed,
            frame: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| OpenError::disk("thread", source))?;
        Ok(FileLog {
            queue,
            published,
            metrics,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// What it counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Refuses appends from now on, makes what waits and the committed position durable, and
    /// ends the thread. Blocks until then; a second call does nothing.
    ///
    /// Committed records stay readable; a read that waits for more gets `Unavailable`.
    pub fn shutdown(&self) {
        self.queue.close("the log is shutting down");
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // A report may have held the last reference: then this is the log thread itself.
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the log thread panicked");
        }
    }

    fn offset_of(&self, position: Position) -> Result<u64, LogError> {
        let end = self.published.end();
        if position.epoch != self.published.epoch() || position.offset > end {
            let first = self.published.position(self.published.first());
            return Err(LogError::Gone {
                asked: position,
                first,
                end: self.published.position(end),
            });
        }
        Ok(position.offset)
    }
}

impl Drop for FileLog {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Log for FileLog {
    fn partitions(&self) -> u32 {
        1
    }

    fn append(&self, records: Vec<Append>, report: AppendReport) {
        if let Err((report, why)) = self.queue.push(records, report, &self.metrics) {
            add(&self.metrics.refused, 1);
            report(Err(LogError::Unavailable(why)));
        }
    }

    fn read(
        &self,
        _partition: Partition,
        from: Position,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Vec<Committed>, LogError>> {
        Box::pin(self.published.read(from, bytes_max))
    }

    fn committed(&self, _partition: Partition) -> BoxFuture<'_, Result<Position, LogError>> {
        Box::pin(std::future::ready(Ok(self
            .published
            .position(self.queue.committed()))))
    }

    fn commit(
        &self,
        _partition: Partition,
        position: Position,
    ) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(std::future::ready(
            self.offset_of(position)
                .map(|offset| self.queue.commit(offset)),
        ))
    }

    fn end(&self, _partition: Partition) -> Position {
        self.published.position(self.published.end())
    }
}
