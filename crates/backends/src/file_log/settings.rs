//! What the log is told: settings, which are numbers, and parts, which are code.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidings_core::ids::Micros;
use tidings_core::ports::disk::Disk;

/// The log's bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of payload that may wait for the disk; above it appends are refused.
    pub queue_bytes_max: usize,
    /// Records that may wait for the disk; above it appends are refused.
    pub queue_records_max: usize,
    /// Bytes of payload after which a batch takes no further call. One frame holds a batch,
    /// so a reader of the files holds about as much.
    pub batch_bytes: usize,
    /// Bytes after which the next batch goes into a new segment file.
    pub segment_bytes: u64,
    /// Bytes of the latest records kept in memory for readers.
    pub ring_bytes: usize,
    /// How long the committed position may be away from the disk while nothing is appended
    /// (each batch carries it).
    pub position_interval: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            queue_bytes_max: 64 << 20,
            queue_records_max: 100_000,
            batch_bytes: 4 << 20,
            segment_bytes: 64 << 20,
            ring_bytes: 32 << 20,
            position_interval: Duration::from_secs(1),
        }
    }
}

/// The clock: microseconds since 1970. It may step; the log's times don't run back.
pub type Clock = Arc<dyn Fn() -> Micros + Send + Sync>;

/// Told why the process can't go on. The real one ends it and doesn't return; if it
/// returns, as in tests, the log refuses everything from there on.
pub type Fatal = Arc<dyn Fn(&str) + Send + Sync>;

/// What the log works with.
#[derive(Clone)]
pub struct Parts {
    /// The folder of its files, all named `log-…`; others may be beside them.
    pub disk: Arc<dyn Disk>,
    /// Append times come from here.
    pub clock: Clock,
    /// Called at most once.
    pub fatal: Fatal,
    /// A random number, used if the log is new.
    pub salt: u64,
}

impl Parts {
    /// The system's clock and random numbers, and an end of the process when it can't go on.
    pub fn of_system(disk: Arc<dyn Disk>) -> Result<Parts, getrandom::Error> {
        Ok(Parts {
            disk,
            clock: Arc::new(|| {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                since.map_or(0, |since| since.as_micros() as Micros)
            }),
            fatal: Arc::new(|why| {
                tracing::error!("the log can't go on: {why}");
                std::process::abort();
            }),
            salt: getrandom::u64()?,
        })
    }
}
