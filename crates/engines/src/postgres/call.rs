//! How a call runs: on a task of its own, on a connection of the pool, within the deadline, repeated
//! where that is safe.
//!
//! Invariants:
//! 1. A call runs to its end or its deadline, whether anybody waits for it or not.
//! 2. An attempt is repeated only if it changed nothing: PostgreSQL undid it, or the connection was
//!    lost before its commit was sent. Else a loss is `Unavailable`.
//! 3. A connection goes back to the pool only outside a transaction.
//!
//! **Round trips.** The driver sends a statement when its future is first polled, so statements that
//! are joined go together, in their order, each with a snapshot of its own (read committed). A
//! transaction is two round trips: begin, lock and read; then write and commit. The lock is taken by
//! the first statement, so the reads behind it see what its holder before has committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join;
use tidings_core::ids::Micros;
use tidings_core::ports::BoxFuture;
use tidings_core::ports::directory::{Answer, DirectoryError};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_postgres::Row;

use super::Clock;
use super::faults::{Fault, unavailable};
use super::metrics::{Metrics, add};
use super::pool::{Connections, Lease, NoConnection};
use super::settings::Settings;
use super::sql::{Param, corrupt};
use crate::breaker::Breaker;

/// What an attempt has: a connection, the time, and ids.
pub(super) struct Tx {
    lease: Lease,
    /// The attempt's time.
    pub(super) now: Micros,
    /// The commit has been sent, or a statement that is its own transaction.
    committing: AtomicBool,
    /// An outbox row was written.
    members: AtomicBool,
}

impl Tx {
    /// A fresh id: random, below 2^63, not 0.
    pub(super) fn id(&self) -> Result<u64, Fault> {
        let random =
            getrandom::u64().map_err(|error| corrupt(format!("no randomness: {error}")))?;
        Ok((random >> 1).max(1))
    }

    /// Says that an outbox row was written.
    pub(super) fn mark_members_changed(&self) {
        self.members.store(true, Ordering::Relaxed);
    }

    /// All rows of a statement.
    pub(super) async fn rows(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Fault> {
        Ok(self.lease.client().query_typed(sql, params).await?)
    }

    /// The first row of a statement.
    pub(super) async fn row(&self, sql: &str, params: &[Param<'_>]) -> Result<Option<Row>, Fault> {
        Ok(self.rows(sql, params).await?.into_iter().next())
    }

    /// Runs a statement; how many rows it changed.
    pub(super) async fn execute(&self, sql: &str, params: &[Param<'_>]) -> Result<u64, Fault> {
        Ok(self.lease.client().execute_typed(sql, params).await?)
    }

    /// Rows of a statement that changes something and is its own transaction.
    pub(super) async fn alone_rows(
        &self,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Fault> {
        self.committing.store(true, Ordering::Relaxed);
        self.rows(sql, params).await
    }

    /// Runs a statement that changes something and is its own transaction; how many rows it changed.
    pub(super) async fn alone(&self, sql: &str, params: &[Param<'_>]) -> Result<u64, Fault> {
        self.committing.store(true, Ordering::Relaxed);
        self.execute(sql, params).await
    }

    /// Ends the transaction. Joined behind its last statement it costs no round trip of its own: if
    /// that statement fails, PostgreSQL takes the commit for a rollback.
    pub(super) async fn commit(&self) -> Result<(), Fault> {
        self.committing.store(true, Ordering::Relaxed);
        Ok(self.lease.client().batch_execute("commit").await?)
    }

    fn has_sent_commit(&self) -> bool {
        self.committing.load(Ordering::Relaxed)
    }
}

/// What all calls share.
pub(super) struct Calls {
    pub(super) pool: Connections,
    pub(super) metrics: Arc<Metrics>,
    clock: Clock,
    outbox: Notify,
    deadline: Duration,
    retries_max: u32,
    /// Begins a transaction that ends on the server's side too when this server hangs or is gone.
    begin: String,
    runtime: Handle,
    pub(super) breaker: Arc<Breaker>,
}

/// One attempt of a call.
pub(super) type Attempt<A, T> = for<'a> fn(&'a Tx, &'a A) -> BoxFuture<'a, Result<T, Fault>>;

impl Calls {
    pub(super) fn new(
        settings: &Settings,
        pool: Connections,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Calls {
        let ms = settings.call_timeout_ms.max(1);
        Calls {
            breaker: pool.breaker(),
            pool,
            metrics,
            clock,
            outbox: Notify::new(),
            deadline: Duration::from_millis(ms),
            retries_max: settings.retries_max,
            begin: format!(
                "begin; set local statement_timeout = {ms}; set local idle_in_transaction_session_timeout = {ms}"
            ),
            runtime: Handle::current(),
        }
    }

    /// A call that only reads, or changes something by one statement ([`Tx::alone`]).
    pub(super) fn call<A, T>(
        self: &Arc<Self>,
        name: &'static str,
        args: A,
        attempt: Attempt<A, T>,
    ) -> Answer<'static, T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
    {
        self.start(false, name, args, attempt)
    }

    /// A call that is one transaction; what isn't committed by the attempt is committed behind it.
    pub(super) fn transaction<A, T>(
        self: &Arc<Self>,
        name: &'static str,
        args: A,
        attempt: Attempt<A, T>,
    ) -> Answer<'static, T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
    {
        self.start(true, name, args, attempt)
    }

    pub(super) async fn outbox_wait(&self) {
        self.outbox.notified().await;
    }

    fn start<A, T>(
        self: &Arc<Self>,
        transaction: bool,
        name: &'static str,
        args: A,
        attempt: Attempt<A, T>,
    ) -> Answer<'static, T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
    {
        let calls = self.clone();
        Box::pin(async move {
            let runtime = calls.runtime.clone();
            let task =
                runtime.spawn(async move { calls.run(transaction, name, args, attempt).await });
            // A task is only lost with its runtime.
            task.await.unwrap_or_else(|_| Err(unavailable()))
        })
    }

    /// Begins a task on the runtime that calls run on.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(task));
    }

    /// A call within this task; whoever calls sees to it that it isn't dropped.
    pub(super) async fn run<A, T>(
        &self,
        transaction: bool,
        name: &'static str,
        args: A,
        attempt: Attempt<A, T>,
    ) -> Result<T, DirectoryError>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
    {
        add(&self.metrics.calls, 1);
        let Ok(pass) = self.breaker.enter() else {
            add(&self.metrics.errors, 1);
            return Err(unavailable());
        };
        let repeated = self.repeat(transaction, name, &args, attempt);
        let answer = match tokio::time::timeout(self.deadline, repeated).await {
            Ok(answer) => answer,
            Err(_) => {
                tracing::warn!(call = name, "a call of the directory passed its deadline");
                Err(unavailable())
            }
        };
        if let Err(
            error @ (DirectoryError::Unavailable { .. }
            | DirectoryError::Full
            | DirectoryError::Corrupt(_)),
        ) = &answer
        {
            add(&self.metrics.errors, 1);
            tracing::debug!(call = name, %error, "a call of the directory failed");
        }
        pass.end(!matches!(answer, Err(DirectoryError::Unavailable { .. })));
        answer
    }

    async fn repeat<A, T>(
        &self,
        transaction: bool,
        name: &'static str,
        args: &A,
        attempt: Attempt<A, T>,
    ) -> Result<T, DirectoryError> {
        let began = Instant::now();
        let mut tries = 0;
        loop {
            let lease = match self.pool.take(name).await {
                Ok(lease) => lease,
                Err(NoConnection::Busy(reason)) => {
                    tracing::debug!(
                        call = name,
                        reason,
                        "no connection to the directory's database"
                    );
                    return Err(unavailable());
                }
                Err(NoConnection::Failed(reason)) => {
                    tracing::warn!(
                        call = name,
                        reason,
                        "can't connect to the directory's database"
                    );
                    return Err(unavailable());
                }
            };
            let tx = Tx {
                lease,
                now: (self.clock)(),
                committing: AtomicBool::new(false),
                members: AtomicBool::new(false),
            };
            let fault = match self.attempt(transaction, &tx, args, attempt).await {
                Ok(answer) => {
                    if tx.members.load(Ordering::Relaxed) {
                        self.outbox.notify_one();
                    }
                    return Ok(answer);
                }
                Err(fault) => fault,
            };
            let changed_nothing = fault.was_undone() || (fault.is_loss() && !tx.has_sent_commit());
            drop(tx);
            if !changed_nothing || tries >= self.retries_max || began.elapsed() >= self.deadline {
                if let Fault::Sql(error) = &fault {
                    tracing::warn!(
                        call = name,
                        tries,
                        error = super::connect::in_full(error),
                        "the directory's database refuses"
                    );
                }
                return Err(fault.answer());
            }
            tries += 1;
            add(&self.metrics.retries, 1);
            tokio::time::sleep(pause(tries)).await;
        }
    }

    /// Runs one attempt and leaves the connection as invariant 3 says.
    async fn attempt<A, T>(
        &self,
        transaction: bool,
        tx: &Tx,
        args: &A,
        attempt: Attempt<A, T>,
    ) -> Result<T, Fault> {
        tx.lease.set_unfinished(true);
        let result = if transaction {
            let begin = async { Ok(tx.lease.client().batch_execute(&self.begin).await?) };
            match try_join(begin, attempt(tx, args)).await {
                Ok(((), answer)) if tx.has_sent_commit() => Ok(answer),
                Ok(((), answer)) => tx.commit().await.map(|()| answer),
                Err(fault) => {
                    // Also waits until everything sent before it has been answered.
                    let rollback = tx.lease.client().batch_execute("rollback").await;
                    tx.lease.set_unfinished(rollback.is_err());
                    return Err(fault);
                }
            }
        } else {
            attempt(tx, args).await
        };
        let is_whole = match &result {
            Ok(_) => true,
            Err(fault) => {
                !fault.is_loss() && !matches!(fault, Fault::Sql(error) if error.code().is_none())
            }
        };
        tx.lease.set_unfinished(!is_whole);
        result
    }
}

/// 5 to 15 ms, then more with each try: those who met take different ways.
fn pause(tries: u32) -> Duration {
    let spread = getrandom::u64().unwrap_or_default() % 10_000;
    Duration::from_micros(u64::from(tries) * (5_000 + spread))
}
