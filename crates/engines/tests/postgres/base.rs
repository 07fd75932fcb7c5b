//! A database for a test, and directories over it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use tidings_core::ids::Micros;
use tidings_engines::Secret;
use tidings_engines::postgres::{Clock, PostgresDirectory, Settings, migrate};
use tokio_postgres::{Client, NoTls};

const PGBOUNCER: u16 = 6433;
const DIRECT: u16 = 5433;

/// The stack's settings for a database, with a pool so small that many tests share PostgreSQL's connections.
pub fn settings(database: &str) -> Settings {
    Settings {
        port: PGBOUNCER,
        direct_port: DIRECT,
        database: database.into(),
        password: Secret("tidings".into()),
        pool_max: 6,
        pool_min_idle: 1,
        ..Settings::default()
    }
}

/// Runs a test with a new database of the newest schema, and removes it, however the test ends.
pub async fn with_database<F: Future<Output = ()>>(what: &str, test: impl FnOnce(Settings) -> F) {
    with_empty_database(what, |settings| async move {
        migrate(&settings).await.expect("migrated");
        test(settings).await;
    })
    .await;
}

/// Runs a test with a new database without tables.
pub async fn with_empty_database<F: Future<Output = ()>>(
    what: &str,
    test: impl FnOnce(Settings) -> F,
) {
    if !crate::stack::runs("PgBouncer", &format!("127.0.0.1:{PGBOUNCER}")) {
        return;
    }
    let name = format!("test_{what}_{:08x}", getrandom::u32().unwrap());
    let operator = direct(&settings("tidings")).await;
    let create = format!("create database {name}");
    operator
        .batch_execute(&create)
        .await
        .expect("a database can be made");
    let result = AssertUnwindSafe(test(settings(&name))).catch_unwind().await;
    let remove = format!("drop database {name} with (force)");
    operator.batch_execute(&remove).await.expect("and removed");
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// A connection to PostgreSQL itself, for what no directory does.
pub async fn direct(settings: &Settings) -> Client {
    let (client, connection) = tokio_postgres::Config::new()
        .host(&settings.host)
        .port(DIRECT)
        .user(&settings.user)
        .password(&settings.password.0)
        .dbname(&settings.database)
        .connect(NoTls)
        .await
        .expect("PostgreSQL answers");
    tokio::spawn(connection);
    client
}

pub async fn open(settings: &Settings) -> PostgresDirectory {
    PostgresDirectory::open(settings, clock())
        .await
        .expect("the directory opens")
}

pub fn clock() -> Clock {
    Arc::new(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| now.as_micros() as Micros)
    })
}
