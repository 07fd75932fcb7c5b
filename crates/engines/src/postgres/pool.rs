//! The pool: bounded in connections, in waiters and in time, and it tells who holds what.
//!
//! A connection on which something was left unfinished (a call past its deadline) is closed, never
//! given to the next call: its transaction ends with it, and nobody reads another one's answer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, QueueMode, RecyclingMethod,
    Runtime, TimeoutType, Timeouts,
};
use hashbrown::HashMap;
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

use super::connect::{Way, config, tls};
use super::metrics::{Metrics, add};
use super::settings::Settings;
use crate::StartError;
use crate::breaker::Breaker;

/// How often the pool is looked after.
const TICK: Duration = Duration::from_secs(1);

/// Calls that have waited for a connection without a break for so long mean that more would too.
const EXHAUSTED_MAX: Duration = Duration::from_secs(5);

/// A connection used this recently is not asked again whether it lives.
const FRESH: Duration = Duration::from_millis(500);

/// Why a call has no connection.
#[derive(Debug)]
pub(super) enum NoConnection {
    /// Too many wait already, or none became free in time.
    Busy(&'static str),
    /// A new one couldn't be made.
    Failed(String),
}

/// Who holds a connection since when.
struct Held {
    call: &'static str,
    since: Instant,
    told: bool,
}

type Holders = Arc<Mutex<HashMap<u64, Held>>>;

pub(super) struct Connections {
    pool: Pool,
    timeouts: Timeouts,
    waiters_max: u64,
    holders: Holders,
    metrics: Arc<Metrics>,
    breaker: Arc<Breaker>,
    keeper: JoinHandle<()>,
}

impl Connections {
    /// Makes the pool, and opens the connections that it always has in the background.
    pub(super) fn new(
        settings: &Settings,
        metrics: Arc<Metrics>,
    ) -> Result<Connections, StartError> {
        let ms = Duration::from_millis;
        let how = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let config = config(settings, Way::Pooled);
        let manager = match tls(settings)? {
            None => Manager::from_config(config, NoTls, how),
            Some(tls) => Manager::from_config(config, tls, how),
        };
        let timeouts = Timeouts {
            wait: Some(ms(settings.acquire_timeout_ms)),
            create: Some(ms(settings.connect_timeout_ms)),
            recycle: Some(ms(settings.validation_timeout_ms)),
        };
        let pool = Pool::builder(manager)
            .max_size(settings.pool_max)
            .timeouts(timeouts)
            .runtime(Runtime::Tokio1)
            // The one used last first: those not needed grow idle and are closed.
            .queue_mode(QueueMode::Lifo)
            .pre_recycle(validate(
                ms(settings.validation_timeout_ms),
                ms(settings.max_lifetime_ms),
            ))
            .build()
            .map_err(|error| StartError::wrong("postgres.pool_max", error.to_string()))?;
        let holders = Holders::default();
        let breaker = Arc::new(Breaker::new(
            "postgres",
            // Many callers at once wait for each other, and are slow without anything being wrong.
            ms(settings.call_timeout_ms),
        ));
        let keeper = tokio::spawn(keep(
            pool.clone(),
            settings.clone(),
            holders.clone(),
            metrics.clone(),
            breaker.clone(),
        ));
        Ok(Connections {
            pool,
            timeouts,
            waiters_max: settings.pool_waiters_max as u64,
            holders,
            metrics,
            breaker,
            keeper,
        })
    }

    /// A connection for a call of this name, within `acquire_timeout_ms`.
    pub(super) async fn take(&self, call: &'static str) -> Result<Lease, NoConnection> {
        let waiter = Waiter::begin(&self.metrics);
        if waiter.before >= self.waiters_max {
            add(&self.metrics.pool_refused, 1);
            return Err(NoConnection::Busy("too many calls wait for a connection"));
        }
        let object = match self.pool.timeout_get(&self.timeouts).await {
            Ok(object) => object,
            Err(PoolError::Timeout(TimeoutType::Wait)) => {
                add(&self.metrics.pool_refused, 1);
                return Err(NoConnection::Busy("no connection became free in time"));
            }
            Err(error) => {
                return Err(NoConnection::Failed(super::connect::in_full(&error)));
            }
        };
        drop(waiter);
        add(&self.metrics.pool_handed, 1);
        Ok(Lease::new(object, call, self.holders.clone()))
    }

    /// Opens when calls fail or are slow, and when the pool has given no connection away for 5 s though calls
    /// wait for one.
    pub(super) fn breaker(&self) -> Arc<Breaker> {
        self.breaker.clone()
    }

    /// Brings the gauges up to now.
    pub(super) fn measure(&self) {
        let status = self.pool.status();
        let held = lock(&self.holders).len() as u64;
        let size = status.size as u64;
        self.metrics.pool_size.store(size, Ordering::Relaxed);
        self.metrics.pool_in_use.store(held, Ordering::Relaxed);
        let idle = size.saturating_sub(held);
        self.metrics.pool_idle.store(idle, Ordering::Relaxed);
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.keeper.abort();
        self.pool.close();
    }
}

fn lock(holders: &Holders) -> MutexGuard<'_, HashMap<u64, Held>> {
    holders.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a wait, however it ends.
struct Waiter<'a> {
    metrics: &'a Metrics,
    since: Instant,
    before: u64,
}

impl<'a> Waiter<'a> {
    fn begin(metrics: &'a Metrics) -> Waiter<'a> {
        Waiter {
            metrics,
            since: Instant::now(),
            before: metrics.pool_waiters.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.metrics.pool_waiters.fetch_sub(1, Ordering::Relaxed);
        add(&self.metrics.pool_waits, 1);
        add(
            &self.metrics.pool_wait_us,
            self.since.elapsed().as_micros() as u64,
        );
    }
}

/// A connection in a call's hands.
pub(super) struct Lease {
    object: Option<Object>,
    holders: Holders,
    id: u64,
    /// Whether something was begun that isn't ended: then the connection goes with the lease.
    unfinished: AtomicBool,
}

impl Lease {
    fn new(object: Object, call: &'static str, holders: Holders) -> Lease {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        let held = Held {
            call,
            since: Instant::now(),
            told: false,
        };
        lock(&holders).insert(id, held);
        Lease {
            object: Some(object),
            holders,
            id,
            unfinished: AtomicBool::new(false),
        }
    }

    pub(super) fn client(&self) -> &tokio_postgres::Client {
        let object = self.object.as_ref();
        object.expect("only dropping a lease takes its connection")
    }

    /// Says whether the connection may be given to somebody else as it is.
    pub(super) fn set_unfinished(&self, unfinished: bool) {
        self.unfinished.store(unfinished, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.holders).remove(&self.id);
        if let Some(object) = self.object.take()
            && self.unfinished.load(Ordering::Relaxed)
        {
            drop(Object::take(object));
        }
    }
}

/// Lets a connection go that is too old, or that has been idle and doesn't answer.
fn validate(limit: Duration, lifetime: Duration) -> Hook {
    Hook::async_fn(move |client, metrics| {
        let (age, idle) = (metrics.age(), metrics.last_used());
        Box::pin(async move {
            if age > lifetime {
                return Err(HookError::message("too old"));
            }
            if idle < FRESH {
                return Ok(());
            }
            match tokio::time::timeout(limit, client.batch_execute("")).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(HookError::Backend(error)),
                Err(_) => Err(HookError::message("no answer")),
            }
        })
    })
}

/// Closes what is idle or old, keeps `pool_min_idle` at hand, and tells of connections held too long.
async fn keep(
    pool: Pool,
    settings: Settings,
    holders: Holders,
    metrics: Arc<Metrics>,
    breaker: Arc<Breaker>,
) {
    let ms = Duration::from_millis;
    let (idle_max, lifetime) = (ms(settings.idle_timeout_ms), ms(settings.max_lifetime_ms));
    let held_max = ms(settings.held_warning_ms);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut exhausted_since, mut handed_before) = (None, 0);
    loop {
        ticks.tick().await;
        let status = pool.status();
        // A pool from whose connections each call waits for its turn is busy; one that gives none away is exhausted.
        let handed = metrics.pool_handed.load(Ordering::Relaxed);
        if status.waiting == 0 || status.available > 0 || handed != handed_before {
            (exhausted_since, handed_before) = (None, handed);
        } else if exhausted_since.get_or_insert_with(Instant::now).elapsed() >= EXHAUSTED_MAX {
            breaker.trip();
        }
        let mut spare = pool.status().available;
        drop(pool.retain(|_, metrics| {
            let goes = metrics.age() > lifetime
                || (metrics.last_used() > idle_max && spare > settings.pool_min_idle);
            spare -= usize::from(goes && spare > 0);
            !goes
        }));
        refill(&pool, settings.pool_min_idle).await;
        tell(&holders, held_max, &metrics);
    }
}

/// Opens connections until enough are idle. There is no other way to open one than to take those
/// that are idle first, so they are held for the few milliseconds it takes.
async fn refill(pool: &Pool, min_idle: usize) {
    let status = pool.status();
    let missing = min_idle
        .min(status.max_size)
        .saturating_sub(status.available)
        .min(status.max_size.saturating_sub(status.size));
    if missing == 0 || status.waiting > 0 {
        return;
    }
    let at_once = Timeouts {
        wait: Some(Duration::ZERO),
        ..pool.timeouts()
    };
    let takes = (0..status.available + missing).map(|_| pool.timeout_get(&at_once));
    for taken in futures_util::future::join_all(takes).await {
        if let Err(error) = taken {
            tracing::debug!(%error, "the directory's pool isn't full");
        }
    }
}

fn tell(holders: &Holders, held_max: Duration, metrics: &Metrics) {
    for held in lock(holders).values_mut() {
        let time = held.since.elapsed();
        if time > held_max && !held.told {
            held.told = true;
            add(&metrics.pool_held_long, 1);
            tracing::warn!(
                call = held.call,
                held_ms = time.as_millis() as u64,
                "a connection to the directory's database is held for long"
            );
        }
    }
}
