//! Recording a live run: cheap, thread-safe, bounded.

use crate::checker::{Checker, Options};
use crate::history::Record;
use crate::report::Report;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Bytes gathered before a write to the file.
const BUFFER_BYTES: usize = 1 << 20;

/// Why a recording is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file couldn't be written; records are missing from it.
    #[error("cannot write the history: {0}")]
    Io(#[from] io::Error),
    /// More records than the memory limit; the rest was dropped.
    #[error("the history has more than {0} records: raise the limit or record into a file")]
    Full(usize),
    /// The recorder is of another kind than asked for.
    #[error("this recorder doesn't keep what was asked for")]
    OtherKind,
}

enum Sink {
    File {
        writer: BufWriter<File>,
        failure: Option<io::Error>,
    },
    Memory {
        records: Vec<Record>,
        limit: usize,
        full: bool,
    },
    Check(Option<Box<Checker>>),
}

/// Takes records from any thread. Clones share one history.
///
/// Records of one device must come from one thread at a time, since their order is judged.
#[derive(Clone)]
pub struct Recorder {
    sink: Arc<Mutex<Sink>>,
    /// The system's time when the recorder was made, and a clock that never steps from there.
    start_us: u64,
    start: Instant,
}

impl Recorder {
    /// Records into a file, which is replaced. At most 1 MiB waits in memory; a slow disk slows
    /// the recording threads.
    ///
    /// # Errors
    /// If the file can't be made.
    pub fn to_file(path: impl AsRef<Path>) -> io::Result<Recorder> {
        let writer = BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?);
        Ok(Recorder::new(Sink::File {
            writer,
            failure: None,
        }))
    }

    /// Records into memory, at most `limit` records.
    pub fn in_memory(limit: usize) -> Recorder {
        Recorder::new(Sink::Memory {
            records: Vec::new(),
            limit,
            full: false,
        })
    }

    /// Checks while it records and keeps no history: for runs of more deliveries than fit a disk.
    pub fn checking(options: Options) -> Recorder {
        Recorder::new(Sink::Check(Some(Box::new(Checker::new(options)))))
    }

    fn new(sink: Sink) -> Recorder {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Recorder {
            sink: Arc::new(Mutex::new(sink)),
            start_us: u64::try_from(since.as_micros()).unwrap_or(0),
            start: Instant::now(),
        }
    }

    /// The time for `at` in live runs: microseconds since 1970, never stepping back in this
    /// process and close to that of other processes of the machine.
    pub fn now_us(&self) -> u64 {
        self.start_us + u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX / 2)
    }

    /// Appends a record. Failures show in [`flush`](Self::flush) and [`take`](Self::take).
    pub fn record(&self, record: impl Into<Record>) {
        let record = record.into();
        let mut sink = self.lock();
        match &mut *sink {
            Sink::File { writer, failure } => {
                if failure.is_some() {
                    return;
                }
                let written = serde_json::to_writer(&mut *writer, &record)
                    .map_err(io::Error::from)
                    .and_then(|()| writer.write_all(b"\n"));
                *failure = written.err();
            }
            Sink::Memory {
                records,
                limit,
                full,
            } => {
                if records.len() < *limit {
                    records.push(record);
                } else {
                    *full = true;
                }
            }
            Sink::Check(Some(checker)) => checker.push(&record),
            Sink::Check(None) => {}
        }
    }

    /// Hands buffered records to the operating system, so that they outlive a kill of this process.
    ///
    /// # Errors
    /// The first failure of the recording.
    pub fn flush(&self) -> Result<(), RecordError> {
        match &mut *self.lock() {
            Sink::File { writer, failure } => match failure.take() {
                Some(error) => {
                    // Kept as a failure: what was lost stays lost.
                    *failure = Some(io::Error::new(error.kind(), error.to_string()));
                    Err(error.into())
                }
                None => Ok(writer.flush()?),
            },
            Sink::Memory {
                limit, full: true, ..
            } => Err(RecordError::Full(*limit)),
            _ => Ok(()),
        }
    }

    /// The records so far, of a recorder in memory, which is empty afterwards.
    ///
    /// # Errors
    /// If records were dropped for the limit, or the recorder is of another kind.
    pub fn take(&self) -> Result<Vec<Record>, RecordError> {
        match &mut *self.lock() {
            Sink::Memory {
                limit, full: true, ..
            } => Err(RecordError::Full(*limit)),
            Sink::Memory { records, .. } => Ok(std::mem::take(records)),
            _ => Err(RecordError::OtherKind),
        }
    }

    /// Ends a recorder made by [`checking`](Self::checking): later records are ignored.
    ///
    /// # Errors
    /// If the recorder is of another kind or has ended.
    pub fn finish(&self) -> Result<Report, RecordError> {
        match &mut *self.lock() {
            Sink::Check(checker) => Ok(checker.take().ok_or(RecordError::OtherKind)?.finish()),
            _ => Err(RecordError::OtherKind),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sink> {
        // A panic of another recording thread leaves at worst one record half written.
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
