//! The embedded store: rows gathered in memory, flushed as sorted immutable segments.
//!
//! The log is the write-ahead log of events and state, so there is no second fsync for them. Cursors
//! aren't in the log: they have a small [`journal`]. Invariants:
//!
//! 1. **The manifest decides.** What it names is complete and durable; what it doesn't name is
//!    rubbish and is removed at the next start. It also holds the settled positions of just those
//!    segments, so that rows and position can't part.
//! 2. **A row of state never comes to the disk before the event rows of its record and all
//!    earlier ones.** The router puts events before state; a put falls into one memtable as a
//!    whole; memtables are flushed in the order in which they were made.
//! 3. **Rows may be newer than the position** (put, but not yet settled when the table was
//!    frozen): they are written again from the log, and a row written twice is the same row.
//! 4. **The order of segments means nothing.** Of two rows of state the later position wins, of
//!    two cursors the greater numbers, and two event rows of one key are the same: any segments
//!    may be merged in any order.
//!
//! ```text
//! put ─▶ active memtable ─ freeze ─▶ frozen ─ write, sync ─▶ segment ─ manifest renamed ─▶ live
//!                                      │ disk full: stays, is tried again; puts go on         │
//!                                      └ until unflushed_bytes_max ─▶ refused        merge ───┘
//! ```
//!
//! Reads are done in the calling thread, with at most a few block reads each; puts touch no disk
//! there, and those of cursors wait for the thread that writes the journal. Segments are described in [`segment`], their blocks in [`events`] and [`rows`].

mod cache;
mod columns;
mod events;
mod figures;
mod filter;
mod journal;
mod maintain;
mod manifest;
mod memtable;
mod merge;
mod rows;
mod segment;
mod view;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use tidings_core::ids::{ConversationId, Partition, Position, Seq, UserId};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::disk::Disk;
use tidings_core::ports::store::{STORE_DEADLINE, Store, StoreError, StoreResult};
use tidings_core::rows::{CursorRow, EventRow, StateKey, StateRow};

pub use columns::forget_context;
pub use figures::Figures;
pub use segment::Codec;

/// Called when nobody knows any more what is on the disk; the default ends the process.
pub type OnFatal = Arc<dyn Fn(&str) + Send + Sync>;

/// How long nothing is put or read before memory that serves only puts and reads is given back:
/// long beside the pauses of a busy server and beside inflating a block again (40 µs).
pub const QUIET: Duration = Duration::from_secs(5);

/// See [`Options::cursor_journal_bytes`].
pub const JOURNAL_REFUSED_FACTOR: u64 = 16;

/// How the store uses memory and disk. The defaults suit a server on a small machine.
#[derive(Clone)]
pub struct Options {
    /// A memtable is flushed when it takes so many bytes of memory. 16 MiB are about 50,000
    /// short messages.
    pub flush_bytes: usize,
    /// And when something in it is so old: bounds what is read again from the log after a crash.
    pub flush_after: Duration,
    /// And when it takes so many bytes and nothing was put for [`QUIET`]: a server at rest holds no
    /// rows in memory, and reads next to nothing again after a crash.
    pub quiet_flush_bytes: usize,
    /// And when the journal of cursors takes so many bytes of disk: one that moves ever the same
    /// cursors grows, though the memtable doesn't. At [`JOURNAL_REFUSED_FACTOR`] times as many
    /// (flushes fail) puts of cursors are refused.
    pub cursor_journal_bytes: u64,
    /// Puts are refused while rows that couldn't be flushed take so many bytes of memory.
    pub unflushed_bytes_max: usize,
    /// Inflated blocks kept for reading, until they aren't used for [`QUIET`].
    pub cache_bytes: usize,
    /// How blocks are made: `docs/decisions/0002-embedded-store.md` has the table.
    pub codec: Codec,
    /// So many segments of similar size are merged into one.
    pub merge_segments: usize,
    /// Segments above this size are left alone (but not by [`LsmStore::compact_all`]).
    pub merge_bytes_max: u64,
    /// Whether threads flush, merge and write the journal; without, [`Store::settle`] does the
    /// first two when it is time and [`Store::put_cursors`] the third, which makes all that happens on the disk a function of the calls.
    pub threads: bool,
    /// See [`OnFatal`].
    pub on_fatal: OnFatal,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            flush_bytes: 16 << 20,
            flush_after: Duration::from_secs(60),
            quiet_flush_bytes: 512 << 10,
            cursor_journal_bytes: 4 << 20,
            unflushed_bytes_max: 256 << 20,
            cache_bytes: 16 << 20,
            codec: Codec {
                block_bytes: 32 << 10,
                level: 3,
            },
            merge_segments: 4,
            merge_bytes_max: 1 << 30,
            threads: true,
            on_fatal: Arc::new(|why| {
                tracing::error!(why, "the store can't go on: ending the process");
                std::process::abort();
            }),
        }
    }
}

/// What went wrong on the disk, by what has to be done.
#[derive(Debug)]
pub enum Trouble {
    /// No room: try again.
    Full,
    /// Some other error before anything was made durable: try again.
    Io(String),
    /// What was read in a merge can't be right.
    Store(StoreError),
    /// A sync failed: nobody knows what is on the disk, so the process must end.
    Sync(String),
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::StorageFull => Trouble::Full,
            _ => Trouble::Io(e.to_string()),
        }
    }
}

impl From<Trouble> for StoreError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Full => StoreError::Full,
            Trouble::Io(what) | Trouble::Sync(what) => StoreError::Unavailable(what),
            Trouble::Store(error) => error,
        }
    }
}

/// Why flushes fail at the moment, for the answer to refused puts.
const HEALTHY: u8 = 0;
const FULL: u8 = 1;
const FAILING: u8 = 2;
/// A sync failed and the fatal handler returned (in tests): nothing is written any more.
const DEAD: u8 = 3;

struct Inner {
    disk: Arc<dyn Disk>,
    options: Options,
    /// Puts hold the read lock, so that a freeze never cuts one in two.
    view: RwLock<Arc<view::View>>,
    cache: cache::Cache,
    journal: journal::Journal,
    /// The manifest on the disk; locked while one is written.
    manifest: Mutex<manifest::Manifest>,
    /// The settled positions of that manifest, without waiting for a write.
    durable: RwLock<BTreeMap<Partition, Position>>,
    health: AtomicU8,
    /// Held by whoever flushes, and by whoever merges.
    flushing: Mutex<()>,
    merging: Mutex<()>,
    bell: Bell,
    counters: figures::Counters,
}

/// Wakes the threads.
#[derive(Default)]
struct Bell {
    state: Mutex<BellState>,
    rung: Condvar,
    /// A flush was asked for and hasn't begun: saves the lock on the way of a put.
    flush_asked: AtomicBool,
}

#[derive(Default)]
struct BellState {
    flush: bool,
    merge: bool,
    stop: bool,
}

/// Nothing that panics leaves our locked values half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The embedded [`Store`].
///
/// Dropping it stops its threads without a flush, as a crash would: nothing is lost that the log
/// doesn't have. [`LsmStore::close`] flushes first.
pub struct LsmStore {
    inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
}

impl LsmStore {
    /// Opens the store in a folder of its own, or makes one there. Files that a crash left
    /// behind are removed. Fails with [`StoreError::Corrupt`] when the manifest or a segment
    /// that it names is damaged or missing.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> StoreResult<LsmStore> {
        let inner = Arc::new(Inner::open(disk, options)?);
        let threads = if inner.options.threads {
            maintain::spawn(&inner)?
        } else {
            Vec::new()
        };
        Ok(LsmStore { inner, threads })
    }

    /// The position before which all rows of the partition survive a crash; the default when
    /// nothing was ever settled.
    pub fn settled(&self, partition: Partition) -> Position {
        self.inner.durable(partition)
    }

    /// Makes everything put so far durable, and with it the positions settled so far.
    pub fn flush(&self) -> StoreResult<()> {
        Ok(self.inner.flush()?)
    }

    /// Flushes, then merges all segments into one. For tools: needs as much room again.
    pub fn compact_all(&self) -> StoreResult<()> {
        self.inner.flush()?;
        Ok(self.inner.merge_all()?)
    }

    /// The store's counters and gauges now.
    pub fn figures(&self) -> Figures {
        self.inner.figures()
    }

    /// What takes the room: bytes of each column of the event and state blocks, and of indexes,
    /// filters and headers. Reads all segments: for tools.
    pub fn column_bytes(&self) -> StoreResult<Vec<(String, u64)>> {
        let mut sums: Vec<(String, u64)> = Vec::new();
        for segment in &self.inner.view().segments {
            for (name, bytes) in segment.column_bytes()? {
                match sums.iter_mut().find(|(n, _)| *n == name) {
                    Some((_, sum)) => *sum += bytes,
                    None => sums.push((name, bytes)),
                }
            }
        }
        Ok(sums)
    }

    /// Flushes and ends the threads.
    pub fn close(mut self) -> StoreResult<()> {
        self.stop();
        self.flush()
    }

    fn stop(&mut self) {
        self.inner.journal.stop();
        lock(&self.inner.bell.state).stop = true;
        self.inner.bell.rung.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so; there is nothing to add.
            let _ = thread.join();
        }
    }
}

impl Drop for LsmStore {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn view(&self) -> Arc<view::View> {
        self.view
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn durable(&self, partition: Partition) -> Position {
        let durable = self.durable.read().unwrap_or_else(PoisonError::into_inner);
        durable.get(&partition).copied().unwrap_or_default()
    }

    /// Runs a put on the active memtable, or refuses it.
    fn put(&self, put: impl FnOnce(&memtable::Memtable)) -> StoreResult<()> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let unflushed: usize = view.tables().map(memtable::Memtable::bytes).sum();
        let health = self.health.load(Ordering::Relaxed);
        if unflushed > self.options.unflushed_bytes_max || health == DEAD {
            return Err(self.refuse());
        }
        put(&view.active);
        figures::count(&self.counters.puts);
        let active = view.active.bytes();
        drop(view);
        if active > self.options.flush_bytes {
            self.ask_for_flush();
        }
        Ok(())
    }

    /// Counts a refused put and says why.
    fn refuse(&self) -> StoreError {
        figures::count(&self.counters.refused);
        match self.health.load(Ordering::Relaxed) {
            FULL => StoreError::Full,
            DEAD => StoreError::Unavailable("a sync of the store's disk failed".into()),
            _ => StoreError::Unavailable("rows come faster than the disk takes them".into()),
        }
    }

    /// Into the memtable first: whatever is written to a journal file after it was closed for a
    /// freeze can then only be too much, never too little.
    async fn put_cursors(&self, rows: Vec<CursorRow>) -> StoreResult<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let bytes_max = self.options.cursor_journal_bytes;
        if self.journal.bytes() > bytes_max.saturating_mul(JOURNAL_REFUSED_FACTOR) {
            return Err(self.refuse());
        }
        self.put(|table| table.put_cursors(rows.clone()))?;
        if !self.options.threads {
            return self.write_cursors(&rows);
        }
        let answered = self.journal.queue(rows).ok_or_else(|| self.refuse())?;
        match tokio::time::timeout(STORE_DEADLINE, answered).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(StoreError::Unavailable("the store is closing".into())),
            Err(_) => Err(StoreError::Unavailable(
                "the disk didn't take the cursors in time".into(),
            )),
        }
    }

    /// Never refused: it takes no memory, and a store that can't flush answers with a position
    /// that stands still.
    fn settle(&self, partition: Partition, position: Position) -> Position {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        view.active.settle(partition, position);
        let active = view.active.bytes();
        drop(view);
        let due = active > self.options.flush_bytes || self.journal_is_long();
        if !self.options.threads && due {
            self.flush_and_merge_here();
        }
        self.durable(partition).min(position)
    }
}

impl Store for LsmStore {
    fn put_events(&self, _: Partition, rows: Vec<EventRow>) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(async move { self.inner.put(|table| table.put_events(rows)) })
    }

    fn put_state(&self, _: Partition, rows: Vec<StateRow>) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(async move { self.inner.put(|table| table.put_state(rows)) })
    }

    fn put_cursors(&self, _: Partition, rows: Vec<CursorRow>) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.inner.put_cursors(rows))
    }

    fn settle(
        &self,
        partition: Partition,
        position: Position,
    ) -> BoxFuture<'_, StoreResult<Position>> {
        Box::pin(async move { Ok(self.inner.settle(partition, position)) })
    }

    fn read_events(
        &self,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        bytes_max: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<EventRow>>> {
        Box::pin(async move {
            self.inner
                .view()
                .read_events(conversation, from, to, bytes_max, &self.inner.cache)
        })
    }

    fn read_events_since(
        &self,
        conversation: ConversationId,
        from: Position,
    ) -> BoxFuture<'_, StoreResult<Vec<EventRow>>> {
        Box::pin(async move {
            self.inner
                .view()
                .read_events_since(conversation, from, &self.inner.cache)
        })
    }

    fn read_state(
        &self,
        conversation: ConversationId,
        keys: Vec<StateKey>,
    ) -> BoxFuture<'_, StoreResult<Vec<Option<StateRow>>>> {
        Box::pin(async move {
            let view = self.inner.view();
            keys.into_iter()
                .map(|key| view.state(conversation, key, &self.inner.cache))
                .collect()
        })
    }

    fn read_cursors(
        &self,
        conversation: ConversationId,
        users: Vec<UserId>,
    ) -> BoxFuture<'_, StoreResult<Vec<CursorRow>>> {
        Box::pin(async move {
            let view = self.inner.view();
            let found = users
                .into_iter()
                .map(|user| view.cursor(conversation, user, &self.inner.cache));
            found.filter_map(Result::transpose).collect()
        })
    }
}
