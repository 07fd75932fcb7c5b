//! The writer thread with its group commit, and the reader pool.
//!
//! Invariants:
//! 1. A write's answer leaves only after the commit that holds it, or with the reason why there was none.
//! 2. A call that was refused leaves nothing behind in its batch's transaction.
//! 3. After a failed sync nothing is written any more: what the operating system then
//!    holds of the file is unknown, and only opening it again finds out.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tidings_core::ports::BoxFuture;
use tidings_core::ports::directory::{Answer, DirectoryError};
use tokio::sync::{Notify, mpsc, oneshot};

use super::tx::Tx;
use super::{Clock, Random, SqliteSettings, fault};

/// The most calls that share a transaction: bounds how long the first of them waits for the last.
const BATCH_MAX: usize = 256;

/// Delivers a call's answer once its batch is committed, or the reason why it isn't.
type Finish = Box<dyn FnOnce(Result<(), DirectoryError>) + Send>;

/// How a call went inside the transaction.
struct Ran {
    /// `Err`: its changes must be undone.
    outcome: Result<(), DirectoryError>,
    finish: Finish,
}

struct Job {
    run: Box<dyn FnOnce(&Tx<'_>) -> Ran + Send>,
    /// Nobody waits for the answer after this.
    deadline: Instant,
}

pub(super) struct Threads {
    writes: Option<mpsc::Sender<Job>>,
    reads: Option<mpsc::Sender<Job>>,
    outbox: Arc<Notify>,
    deadline: Duration,
    joins: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(super) fn start(
        writer: Connection,
        readers: Vec<Connection>,
        settings: &SqliteSettings,
        clock: Clock,
        random: Random,
    ) -> io::Result<Threads> {
        let (writes, write_jobs) = mpsc::channel(settings.queued_max.max(1));
        let (reads, read_jobs) = mpsc::channel(settings.queued_max.max(1));
        let outbox = Arc::new(Notify::new());
        let mut joins = Vec::new();
        let (w_outbox, w_clock, w_random) = (outbox.clone(), clock.clone(), random.clone());
        joins.push(
            std::thread::Builder::new()
                .name("directory-write".into())
                .spawn(move || {
                    Writer {
                        connection: writer,
                        clock: w_clock,
                        random: w_random,
                        outbox: w_outbox,
                        broken: false,
                    }
                    .run(write_jobs);
                })?,
        );
        let read_jobs = Arc::new(Mutex::new(read_jobs));
        for reader in readers {
            let (jobs, clock, random) = (read_jobs.clone(), clock.clone(), random.clone());
            joins.push(
                std::thread::Builder::new()
                    .name("directory-read".into())
                    .spawn(move || run_reader(&reader, &jobs, &clock, &random))?,
            );
        }
        Ok(Threads {
            writes: Some(writes),
            reads: Some(reads),
            outbox,
            deadline: settings.deadline,
            joins,
        })
    }

    /// Runs a call in the writer's next transaction.
    pub(super) fn write<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Tx<'_>) -> Result<T, DirectoryError> + Send + 'static,
    ) -> Answer<'_, T> {
        self.ask(self.writes.as_ref(), call)
    }

    /// Runs a call on a reading connection, which sees all that has been answered.
    pub(super) fn read<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Tx<'_>) -> Result<T, DirectoryError> + Send + 'static,
    ) -> Answer<'_, T> {
        self.ask(self.reads.as_ref(), call)
    }

    pub(super) fn outbox_wait(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.outbox.notified())
    }

    fn ask<'a, T: Send + 'static>(
        &'a self,
        queue: Option<&'a mpsc::Sender<Job>>,
        call: impl FnOnce(&Tx<'_>) -> Result<T, DirectoryError> + Send + 'static,
    ) -> Answer<'a, T> {
        let deadline = self.deadline;
        Box::pin(async move {
            let unavailable = DirectoryError::Unavailable {
                retry_after: Duration::from_secs(1),
            };
            let Some(queue) = queue else {
                return Err(unavailable);
            };
            let (answer, answered) = oneshot::channel();
            let run = Box::new(move |tx: &Tx<'_>| {
                let result = call(tx);
                let outcome = result.as_ref().map(|_| ()).map_err(Clone::clone);
                let finish: Finish = Box::new(move |committed| {
                    let _ = answer.send(committed.and(result));
                });
                Ran { outcome, finish }
            });
            let job = Job {
                run,
                deadline: Instant::now() + deadline,
            };
            let wait = async {
                queue.send(job).await.ok()?;
                answered.await.ok()
            };
            match tokio::time::timeout(deadline, wait).await {
                Ok(Some(result)) => result,
                Ok(None) | Err(_) => Err(unavailable),
            }
        })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Closing the queues ends the threads behind what has queued.
        self.writes = None;
        self.reads = None;
        for join in self.joins.drain(..) {
            if join.join().is_err() {
                tracing::error!("a thread of the directory panicked");
            }
        }
    }
}

struct Writer {
    connection: Connection,
    clock: Clock,
    random: Random,
    outbox: Arc<Notify>,
    broken: bool,
}

impl Writer {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = jobs.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX {
                match jobs.try_recv() {
                    Ok(job) => batch.push(job),
                    Err(_) => break,
                }
            }
            let now = Instant::now();
            batch.retain(|job| job.deadline > now);
            if self.broken {
                // Dropping the jobs answers their callers `Unavailable`.
                continue;
            }
            let mut finishes = Vec::with_capacity(batch.len());
            let mut relay = false;
            let committed = self.transact(batch, &mut finishes, &mut relay);
            if let Err(error) = &committed {
                tracing::error!(%error, calls = finishes.len(), "the directory can't commit");
            }
            for finish in finishes {
                finish(committed.clone());
            }
            if committed.is_ok() && relay {
                self.outbox.notify_one();
            }
        }
    }

    fn transact(
        &mut self,
        batch: Vec<Job>,
        finishes: &mut Vec<Finish>,
        relay: &mut bool,
    ) -> Result<(), DirectoryError> {
        let connection = &self.connection;
        let result = (|| {
            connection.execute_batch("begin immediate")?;
            for job in batch {
                connection.execute_batch("savepoint call")?;
                let tx = Tx::new(connection, (self.clock)(), &*self.random);
                let ran = (job.run)(&tx);
                finishes.push(ran.finish);
                if connection.is_autocommit() {
                    // SQLite undid the whole transaction (no room, for instance): nothing of the batch stands.
                    return Ok(ran.outcome);
                }
                match ran.outcome {
                    Ok(()) => *relay |= tx.changed_members(),
                    Err(error @ DirectoryError::Full) => {
                        return Ok(Err(error));
                    }
                    Err(_) => connection.execute_batch("rollback to call")?,
                }
                connection.execute_batch("release call")?;
            }
            connection.execute_batch("commit")?;
            Ok(Ok(()))
        })();
        let result = match result {
            Ok(outcome) => outcome,
            Err(error) => {
                self.broken = sync_failed(&error);
                if self.broken {
                    tracing::error!(%error, "the directory's disk failed to sync: no more writes until a restart");
                }
                Err(fault(error))
            }
        };
        if result.is_err() && !connection.is_autocommit() {
            // Nothing to do about a failed rollback: the next `begin` then fails, and says so.
            let _ = connection.execute_batch("rollback");
        }
        result
    }
}

fn sync_failed(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi;
    error.sqlite_error().is_some_and(|e| {
        matches!(
            e.extended_code,
            ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC
        )
    })
}

fn run_reader(
    connection: &Connection,
    jobs: &Mutex<mpsc::Receiver<Job>>,
    clock: &Clock,
    random: &Random,
) {
    loop {
        // The thread that waits holds the lock; the others wait for the lock instead of the queue.
        let job = jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .blocking_recv();
        let Some(job) = job else { return };
        if job.deadline <= Instant::now() {
            continue;
        }
        // One transaction, so that a call of several statements reads one state.
        let begun = connection.execute_batch("begin");
        let ran = (job.run)(&Tx::new(connection, clock(), &**random));
        if begun.is_ok() && !connection.is_autocommit() {
            let _ = connection.execute_batch("commit");
        }
        (ran.finish)(begun.map_err(fault));
    }
}
