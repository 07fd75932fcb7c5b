//! A router for each partition that is this server's, as long as it is.
//!
//! They are tasks of the runtime that the store's and the peers' connections live on: in a cluster a message goes from
//! router to store and back and on to other servers, and between threads each of these steps was a wake-up, which
//! costs more than what is done then (decision 0014).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidings_core::ids::{GatewayId, Partition};
use tidings_core::in_process::{InProcessPeers, RouterInbox};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::log::LogError;
use tidings_core::ports::ownership::{Change, Ownership};
use tidings_core::ports::peers::ToRouter;
use tidings_core::router::Counters;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::routing::{self, Gauge, Parts, Requests};

/// How long to wait before a partition that couldn't be begun is tried again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What the routers here show of themselves.
#[derive(Default)]
pub struct Routers {
    gauges: Mutex<BTreeMap<Partition, Arc<Gauge>>>,
    /// Counters of routers that have ended.
    past: Mutex<Counters>,
    /// Set when a router has ended though nobody asked: an operator must look.
    broken: AtomicBool,
}

impl Routers {
    /// What all routers here did since the start.
    pub fn counters(&self) -> Counters {
        let mut sum = *lock(&self.past);
        for gauge in lock(&self.gauges).values() {
            sum.add(&gauge.counters());
        }
        sum
    }

    /// Records committed and not yet stored, of each partition here.
    pub fn backlogs(&self) -> Vec<(Partition, u64)> {
        let gauges = lock(&self.gauges);
        let backlogs = gauges.iter();
        backlogs
            .map(|(&partition, g)| (partition, g.backlog_records.load(Ordering::Relaxed)))
            .collect()
    }

    /// The same of all together.
    pub fn backlog_records(&self) -> u64 {
        self.backlogs().iter().map(|(_, records)| records).sum()
    }

    /// The partitions routed here.
    pub fn partitions(&self) -> Vec<Partition> {
        lock(&self.gauges).keys().copied().collect()
    }

    /// Whether routing has ended though nobody asked.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// The offset behind which everything of a partition here is stored; 0: not known, or not here.
    pub fn settled(&self, partition: Partition) -> u64 {
        let gauges = lock(&self.gauges);
        let gauge = gauges.get(&partition);
        gauge.map_or(0, |g| g.settled.load(Ordering::Relaxed))
    }

    fn began(&self, partition: Partition) -> Arc<Gauge> {
        let gauge = Arc::new(Gauge::default());
        lock(&self.gauges).insert(partition, gauge.clone());
        gauge
    }

    fn ended(&self, partition: Partition) {
        if let Some(gauge) = lock(&self.gauges).remove(&partition) {
            lock(&self.past).add(&gauge.counters());
        }
    }
}

/// A panic while it was locked leaves whole figures.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct FromPeers(RouterInbox);

impl Requests for FromPeers {
    fn receive<'a>(&'a mut self, into: &'a mut Vec<(GatewayId, ToRouter)>) -> BoxFuture<'a, ()> {
        Box::pin(self.0.recv_many(into))
    }
}

/// Begins to route within the current runtime; the task ends when `stopped` says so, once all routers have.
pub fn start(
    parts: Parts,
    ownership: Arc<dyn Ownership>,
    local: Arc<InProcessPeers>,
    stopped: watch::Receiver<bool>,
) -> (JoinHandle<()>, Arc<Routers>) {
    let routers = Arc::new(Routers::default());
    let task = tokio::spawn(follow(parts, ownership, local, routers.clone(), stopped));
    (task, routers)
}

/// Follows the changes of ownership.
async fn follow(
    parts: Parts,
    ownership: Arc<dyn Ownership>,
    local: Arc<InProcessPeers>,
    routers: Arc<Routers>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut running: BTreeMap<Partition, Running> = BTreeMap::new();
    loop {
        let change = tokio::select! {
            change = ownership.next() => change,
            _ = stopped.changed() => break,
        };
        match change {
            Change::Gained(partition) => {
                let Some(inbox) = local.router_inbox(partition) else {
                    tracing::error!(?partition, "the log has no such partition");
                    continue;
                };
                let (stop, stopping) = watch::channel(false);
                let (parts, routers) = (parts.clone(), routers.clone());
                let task =
                    tokio::spawn(route(partition, parts, FromPeers(inbox), routers, stopping));
                running.insert(partition, Running { stop, task });
            }
            Change::Lost(partition) => {
                let Some(one) = running.remove(&partition) else {
                    ownership.released(partition);
                    continue;
                };
                // Others go on while this one ends.
                let ownership = ownership.clone();
                tokio::spawn(async move {
                    one.end().await;
                    ownership.released(partition);
                });
            }
        }
    }
    for one in running.values() {
        one.stop.send_replace(true);
    }
    for (partition, one) in running {
        one.end().await;
        ownership.released(partition);
    }
}

struct Running {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    async fn end(self) {
        self.stop.send_replace(true);
        _ = self.task.await;
    }
}

/// Routes one partition, and begins again when the log was away.
async fn route(
    partition: Partition,
    parts: Parts,
    mut requests: FromPeers,
    routers: Arc<Routers>,
    mut stop: watch::Receiver<bool>,
) {
    while !*stop.borrow() {
        let gauge = routers.began(partition);
        let ended = routing::run(partition, &parts, &mut requests, gauge, stop.clone()).await;
        routers.ended(partition);
        match ended {
            Ok(()) => return,
            Err(LogError::Unavailable(reason) | LogError::Unknown(reason)) => {
                tracing::warn!(?partition, reason, "routing begins again: the log was away");
            }
            Err(error) => {
                tracing::error!(?partition, %error, "routing has ended; an operator must look");
                routers.broken.store(true, Ordering::Relaxed);
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN_AFTER) => {}
            _ = stop.changed() => {}
        }
    }
}
