//! One request to Cassandra: bounded in number and time, counted, its errors sorted.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scylla::client::session::Session;
use scylla::errors::{DbError, ExecutionError, PrepareError, RequestAttemptError};
use scylla::response::query_result::{QueryResult, QueryRowsResult};
use scylla::serialize::batch::BatchValues;
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::Batch;
use scylla::statement::prepared::PreparedStatement;
use tidings_core::ports::store::{StoreError, StoreResult};
use tokio::sync::Semaphore;

use crate::breaker::Breaker;

use super::flight::Flights;
use super::hedge::Hedge;
use super::metrics::{Metrics, Requests, count};
use super::read::Reads;
use super::settings::Settings;
use super::write::Writes;

/// A session with the statements prepared.
pub struct Client {
    pub(super) session: Session,
    pub(super) settings: Settings,
    pub(super) metrics: Arc<Metrics>,
    pub(super) flights: Flights,
    pub(super) reads: Reads,
    pub(super) writes: Writes,
    /// One for each request under way.
    permits: Semaphore,
    pub(super) breakers: Breakers,
}

/// One for reads, one for writes: a store that is full or behind still reads.
pub(super) struct Breakers {
    pub(super) reads: Breaker,
    pub(super) writes: Breaker,
}

/// Reads that take longer count as failed for the breaker. A page takes a few milliseconds.
const SLOW_READ: Duration = Duration::from_millis(500);
/// Writes too. Nobody's answer waits for them, and a backlog that drains makes them slow by itself.
const SLOW_WRITE: Duration = Duration::from_secs(2);

impl Client {
    /// Prepares the statements on a keyspace that is there.
    pub(super) async fn new(
        session: Session,
        settings: Settings,
        nodes: usize,
    ) -> Result<Client, PrepareError> {
        let metrics = Arc::new(Metrics::default());
        let millis = Duration::from_millis;
        let prepare = Preparer {
            session: &session,
            settings: &settings,
            reads: Hedge::new(millis(settings.speculative_read_ms), Arc::clone(&metrics)),
            writes: Hedge::new(millis(settings.speculative_write_ms), Arc::clone(&metrics)),
        };
        let reads = Reads::prepare(&prepare).await?;
        let writes = Writes::prepare(&prepare).await?;
        let permits = settings
            .max_requests_per_connection
            .saturating_mul(settings.connections_local)
            .saturating_mul(nodes.max(1))
            .min(Semaphore::MAX_PERMITS);
        Ok(Client {
            session,
            settings,
            metrics,
            flights: Flights::default(),
            reads,
            writes,
            permits: Semaphore::new(permits),
            breakers: Breakers {
                reads: Breaker::new("cassandra_reads", SLOW_READ),
                writes: Breaker::new("cassandra_writes", SLOW_WRITE),
            },
        })
    }

    /// A call that reads ends in time.
    pub(super) async fn bounded_read<T>(
        &self,
        call: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        self.bounded(&self.metrics.reads, &self.breakers.reads, call)
            .await
    }

    /// A call that writes ends in time.
    pub(super) async fn bounded_write<T>(
        &self,
        call: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        self.bounded(&self.metrics.writes, &self.breakers.writes, call)
            .await
    }

    async fn bounded<T>(
        &self,
        requests: &Requests,
        breaker: &Breaker,
        call: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        let pass = breaker
            .enter()
            .map_err(|open| StoreError::Unavailable(open.to_string()))?;
        let deadline = self.settings.deadline();
        let result = match tokio::time::timeout(deadline, call).await {
            Ok(result) => result,
            Err(_) => {
                count(&requests.errors);
                count(&requests.timeouts);
                Err(StoreError::Unavailable(format!(
                    "not done within {} ms",
                    deadline.as_millis()
                )))
            }
        };
        pass.done();
        result
    }

    /// Runs a SELECT.
    pub(super) async fn select(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> StoreResult<QueryRowsResult> {
        let requests = (&self.metrics.reads, &self.breakers.reads);
        let result = self
            .request(requests, self.session.execute_unpaged(statement, values))
            .await?;
        result
            .into_rows_result()
            .map_err(|error| StoreError::Corrupt(error.to_string()))
    }

    /// Runs one statement that writes.
    pub(super) async fn execute(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> StoreResult<()> {
        let requests = (&self.metrics.writes, &self.breakers.writes);
        self.request(requests, self.session.execute_unpaged(statement, values))
            .await?;
        Ok(())
    }

    /// Runs statements of one partition.
    pub(super) async fn batch(&self, batch: &Batch, values: impl BatchValues) -> StoreResult<()> {
        let requests = (&self.metrics.writes, &self.breakers.writes);
        self.request(requests, self.session.batch(batch, values))
            .await?;
        Ok(())
    }

    async fn request(
        &self,
        (requests, breaker): (&Requests, &Breaker),
        request: impl Future<Output = Result<QueryResult, ExecutionError>>,
    ) -> StoreResult<QueryResult> {
        let pass = breaker.part();
        let _permit = self
            .permits
            .acquire()
            .await
            .map_err(|_| StoreError::Unavailable("closed".into()))?;
        let begun = Instant::now();
        let result = request.await;
        let timed_out = result.as_ref().is_err_and(is_timeout);
        requests.record(begun, result.is_err(), timed_out);
        let result = result.map_err(|error| store_error(&error));
        pass.end(!matches!(result, Err(StoreError::Unavailable(_))));
        result
    }
}

/// Prepares statements that have what all of ours have.
pub(super) struct Preparer<'a> {
    session: &'a Session,
    settings: &'a Settings,
    reads: Arc<Hedge>,
    writes: Arc<Hedge>,
}

impl Preparer<'_> {
    /// A statement that reads; `{ks}` stands for the keyspace.
    pub(super) async fn read(&self, text: &str) -> Result<PreparedStatement, PrepareError> {
        let mut statement = self.prepare(text, &self.reads).await?;
        // The columns are named and never change, so the answers needn't say them again.
        statement.set_use_cached_result_metadata(true);
        Ok(statement)
    }

    /// A statement that writes; `{ks}` stands for the keyspace.
    pub(super) async fn write(&self, text: &str) -> Result<PreparedStatement, PrepareError> {
        self.prepare(text, &self.writes).await
    }

    async fn prepare(
        &self,
        text: &str,
        hedge: &Arc<Hedge>,
    ) -> Result<PreparedStatement, PrepareError> {
        let text = text.replace("{ks}", &self.settings.keyspace);
        let mut statement = self.session.prepare(text).await?;
        statement.set_is_idempotent(true);
        statement.set_history_listener(Arc::clone(hedge) as _);
        statement.set_execution_profile_handle(Some(self.profile(hedge)));
        Ok(statement)
    }

    /// What a batch of statements that write needs: it doesn't take it from them.
    pub(super) fn batch_options(&self) -> BatchOptions {
        BatchOptions {
            hedge: Arc::clone(&self.writes),
            profile: self.profile(&self.writes),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        self.settings
    }

    fn profile(
        &self,
        hedge: &Arc<Hedge>,
    ) -> scylla::client::execution_profile::ExecutionProfileHandle {
        self.session
            .get_default_execution_profile_handle()
            .pointee_to_builder()
            // Before the call's own deadline, so that the driver still says what happened.
            .request_timeout(Some(self.settings.deadline() * 9 / 10))
            .speculative_execution_policy(Some(Arc::clone(hedge) as _))
            .build()
            .into_handle()
    }
}

/// What makes a batch repeatable, and asked twice when slow.
pub(super) struct BatchOptions {
    hedge: Arc<Hedge>,
    profile: scylla::client::execution_profile::ExecutionProfileHandle,
}

impl BatchOptions {
    pub(super) fn apply(&self, batch: &mut Batch) {
        batch.set_is_idempotent(true);
        batch.set_history_listener(Arc::clone(&self.hedge) as _);
        batch.set_execution_profile_handle(Some(self.profile.clone()));
    }
}

fn is_timeout(error: &ExecutionError) -> bool {
    matches!(
        error,
        ExecutionError::RequestTimeout(_)
            | ExecutionError::LastAttemptError(RequestAttemptError::DbError(
                DbError::ReadTimeout { .. } | DbError::WriteTimeout { .. },
                _
            ))
    )
}

/// Sorted by remedy: nearly everything may be better after a while.
fn store_error(error: &ExecutionError) -> StoreError {
    match error {
        // A limit that operators can set refuses writes before the disk is full.
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(
            DbError::Invalid,
            reason,
        )) if reason.contains("disk usage") => StoreError::Full,
        ExecutionError::LastAttemptError(
            RequestAttemptError::CqlResultParseError(_)
            | RequestAttemptError::CqlErrorParseError(_)
            | RequestAttemptError::BodyExtensionsParseError(_),
        ) => StoreError::Corrupt(error.to_string()),
        other => StoreError::Unavailable(other.to_string()),
    }
}
