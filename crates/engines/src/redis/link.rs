//! The connection: kept up in the background, and every call over it within its deadline.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use redis::{Client, ErrorKind, RedisError, RedisResult, ServerErrorKind};
use tidings_core::ports::registry::RegistryError;
use tokio::sync::{Notify, watch};

use super::connect::{Conn, Connected, Connector, said};
use super::metrics::{Metrics, add, set};
use super::settings::{Mode, Settings};
use crate::StartError;
use crate::breaker::Breaker;

/// After so many calls without an answer, and none with one for [`SILENCE`], the connection is given up:
/// from then on calls fail at once instead of after their deadline.
const TIMEOUTS_MAX: u32 = 3;
const SILENCE: Duration = Duration::from_millis(300);

/// How often the Sentinels are asked while all seems well: a primary that is cut off from them goes on answering.
const SENTINEL_POLL: Duration = Duration::from_secs(1);

/// Waits between tries to connect: doubling between these, by up to half longer at random.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Where subscribers connect, and the number of the connection that it came with.
#[derive(Clone, Default)]
pub(super) struct Up {
    pub generation: u64,
    pub subscribe_at: Vec<Client>,
}

pub(super) struct Link {
    connector: Connector,
    settings: Settings,
    metrics: Arc<Metrics>,
    current: RwLock<Option<(u64, Conn)>>,
    /// Tells the keeper that the connection is no good.
    lost: Notify,
    up: watch::Sender<Up>,
    timeouts: AtomicU32,
    answered: Mutex<Instant>,
    trouble: Mutex<String>,
    pub(super) breaker: Breaker,
}

impl Link {
    pub fn new(settings: &Settings, metrics: Arc<Metrics>) -> Result<Link, StartError> {
        Ok(Link {
            connector: Connector::new(settings)?,
            settings: settings.clone(),
            metrics,
            current: RwLock::new(None),
            lost: Notify::new(),
            up: watch::Sender::new(Up::default()),
            timeouts: AtomicU32::new(0),
            answered: Mutex::new(Instant::now()),
            trouble: Mutex::new("not connected yet".to_owned()),
            breaker: Breaker::new("redis", settings.timeout()),
        })
    }

    /// Connects once, for the start.
    pub async fn connect(&self) -> Result<Option<String>, StartError> {
        let connected = self.connector.connect().await?;
        Ok(self.install(connected))
    }

    /// Changes with every connection.
    pub fn up(&self) -> watch::Receiver<Up> {
        self.up.subscribe()
    }

    fn install(&self, connected: Connected) -> Option<String> {
        let generation = self.up.borrow().generation + 1;
        self.timeouts.store(0, Ordering::Relaxed);
        *lock(&self.answered) = Instant::now();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) =
            Some((generation, connected.conn));
        add(&self.metrics.connects, 1);
        set(&self.metrics.connected, 1);
        self.up.send_replace(Up {
            generation,
            subscribe_at: connected.subscribe_at,
        });
        connected.address
    }

    fn give_up(&self, generation: u64, why: &str) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|(of, _)| *of == generation) {
            *current = None;
            set(&self.metrics.connected, 0);
            *lock(&self.trouble) = why.to_owned();
            self.lost.notify_one();
            tracing::warn!(why, "redis: connection given up");
        }
    }

    /// Keeps a connection for ever. `address` is the primary that the start connected to.
    pub async fn keep(&self, mut address: Option<String>) {
        let mut wait = BACKOFF.0;
        loop {
            if self.is_connected() {
                wait = BACKOFF.0;
                tokio::select! {
                    () = self.lost.notified() => {}
                    () = tokio::time::sleep(SENTINEL_POLL) => self.follow(address.as_deref()).await,
                }
                continue;
            }
            match self.connector.connect().await {
                Ok(connected) => {
                    address = self.install(connected);
                    tracing::info!(address = address.as_deref(), "redis: connected");
                }
                Err(error) => {
                    let said = error.to_string();
                    let before = std::mem::replace(&mut *lock(&self.trouble), said.clone());
                    if before != said {
                        tracing::warn!(error = said, "redis: no connection");
                    }
                    let more = getrandom::u32().map_or(0.5, |r| f64::from(r) / f64::from(u32::MAX));
                    tokio::time::sleep(wait.mul_f64(1.0 + more / 2.0)).await;
                    wait = (wait * 2).min(BACKOFF.1);
                }
            }
        }
    }

    /// Leaves a primary that the Sentinels have replaced.
    async fn follow(&self, address: Option<&str>) {
        if self.settings.mode != Mode::Sentinel {
            return;
        }
        if let Ok(named) = self.connector.primary().await
            && address.is_some_and(|address| address != named)
        {
            let generation = self.up.borrow().generation;
            self.give_up(
                generation,
                &format!("the Sentinels name {named} as primary"),
            );
        }
    }

    fn is_connected(&self) -> bool {
        self.conn().is_some()
    }

    fn conn(&self) -> Option<(u64, Conn)> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Makes a call within the deadline. Without a connection, or while the breaker is open, it fails at once.
    pub async fn call<T, F>(&self, work: impl FnOnce(Conn) -> F) -> Result<T, RegistryError>
    where
        F: Future<Output = RedisResult<T>>,
    {
        add(&self.metrics.calls, 1);
        let pass = self
            .breaker
            .enter()
            .map_err(|open| RegistryError(open.to_string()))?;
        let result = self.connected_call(work).await;
        pass.end(result.is_ok());
        result
    }

    async fn connected_call<T, F>(&self, work: impl FnOnce(Conn) -> F) -> Result<T, RegistryError>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let Some((generation, conn)) = self.conn() else {
            add(&self.metrics.disconnected, 1);
            return Err(RegistryError(format!(
                "not connected: {}",
                lock(&self.trouble)
            )));
        };
        let begun = Instant::now();
        let timeout = self.settings.timeout();
        match tokio::time::timeout(timeout, work(conn)).await {
            Ok(Ok(value)) => {
                self.metrics.answered_in(begun.elapsed());
                self.timeouts.store(0, Ordering::Relaxed);
                *lock(&self.answered) = Instant::now();
                Ok(value)
            }
            Ok(Err(error)) => {
                add(&self.metrics.errors, 1);
                let what = said(&error);
                if is_of_the_connection(&error) {
                    self.give_up(generation, &what);
                }
                Err(RegistryError(what))
            }
            Err(_) => {
                add(&self.metrics.timeouts, 1);
                let in_a_row = self.timeouts.fetch_add(1, Ordering::Relaxed) + 1;
                if in_a_row >= TIMEOUTS_MAX && lock(&self.answered).elapsed() > SILENCE {
                    self.give_up(generation, "it doesn't answer any more");
                }
                Err(RegistryError(format!(
                    "no answer in {} ms",
                    timeout.as_millis()
                )))
            }
        }
    }
}

/// Whether a new connection may help: this one broke, or leads to a server that isn't the primary.
fn is_of_the_connection(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_connection_dropped()
        || matches!(
            error.kind(),
            ErrorKind::AuthenticationFailed
                | ErrorKind::ClusterConnectionNotFound
                | ErrorKind::Server(
                    ServerErrorKind::ReadOnly
                        | ServerErrorKind::MasterDown
                        | ServerErrorKind::BusyLoading
                )
        )
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
