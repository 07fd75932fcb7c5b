//! The directory on PostgreSQL, through PgBouncer in transaction mode.
//!
//! The same rules ([`tidings_core::membership`]) and the same answers as the embedded directory's, for
//! many servers over one database. What keeps them apart is PostgreSQL's row locks: who changes a
//! conversation holds its row, so versions have no hole; who creates what others may create too is
//! let through by a unique row. What keeps them fast is the count of round trips ([`call`]): reads and
//! creations take one or two, changes two.
//!
//! PgBouncer lends a connection for one transaction: nothing here rests on a session (no prepared
//! statement, no `set` but `set local`, no listening), but for [`migrate`], which goes past it.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use tidings_core::ids::{Micros, UserId};
use tidings_core::ports::directory::{
    Answer, Device, DirectoryError, ExternalSubject, Lists, User,
};

use crate::StartError;
use crate::breaker::BreakerMetrics;

mod accounts;
mod call;
mod connect;
mod conversations;
mod credentials;
mod devices;
mod faults;
mod founding;
mod metrics;
mod pool;
mod schema;
mod settings;
mod sql;
mod together;

pub use metrics::Metrics;
pub use schema::migrate;
pub use settings::{Settings, Tls};

use call::Calls;
use pool::Connections;
use together::Together;

/// How long [`PostgresDirectory::check`] waits.
const CHECK: Duration = Duration::from_secs(1);

/// Where the directory gets the time from, microseconds since 1970. The clocks of all servers should
/// agree to within seconds; versions and revisions don't rest on them.
pub type Clock = Arc<dyn Fn() -> Micros + Send + Sync>;

/// The directory in one PostgreSQL database, shared by all servers.
///
/// Its calls run on the runtime that it was opened on. Dropping it closes its connections; calls
/// under way are finished first.
pub struct PostgresDirectory {
    calls: Arc<Calls>,
    /// What every sign-in asks.
    lists: Arc<Together<UserId, Lists>>,
    subjects: Arc<Together<SubjectOnDevice, Option<(User, Device)>>>,
}

/// Somebody whom a customer's backend knows, and the name of the device.
type SubjectOnDevice = (ExternalSubject, String);

impl PostgresDirectory {
    /// Checks settings, database and tables, and opens the pool.
    pub async fn open(settings: &Settings, clock: Clock) -> Result<PostgresDirectory, StartError> {
        if settings.pool_max == 0 {
            let reason = "must be at least 1";
            return Err(StartError::wrong("postgres.pool_max", reason));
        }
        schema::check(settings).await?;
        let metrics = Arc::new(Metrics::default());
        let pool = Connections::new(settings, metrics.clone())?;
        let calls = Arc::new(Calls::new(settings, pool, metrics, clock));
        Ok(PostgresDirectory {
            lists: Together::new(&calls, "lists_of", |tx, users| {
                Box::pin(conversations::lists(tx, users))
            }),
            subjects: Together::new(&calls, "subject_on_device", |tx, asked| {
                Box::pin(devices::of_subjects(tx, asked))
            }),
            calls,
        })
    }

    /// Whether the database answers, within a second.
    pub async fn check(&self) -> Result<(), String> {
        let asked = self.calls.call("check", (), |tx, ()| {
            Box::pin(async move { tx.rows("select 1::bigint", &[]).await.map(drop) })
        });
        match tokio::time::timeout(CHECK, asked).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} ms", CHECK.as_millis())),
        }
    }

    /// The breaker's figures.
    pub fn breaker(&self) -> Arc<BreakerMetrics> {
        Arc::clone(self.calls.breaker.metrics())
    }

    /// Counters, and gauges as of now.
    pub fn metrics(&self) -> &Metrics {
        self.calls.pool.measure();
        &self.calls.metrics
    }
}

/// An answer that needs no database.
fn answered<T: Send + 'static>(answer: Result<T, DirectoryError>) -> Answer<'static, T> {
    Box::pin(ready(answer))
}
