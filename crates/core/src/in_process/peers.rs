//! Gateways and routers of one process: bounded queues, swapped out whole, one wake a batch.
//!
//! A queue's lock is held for a push or a swap and nothing else. What doesn't fit is dropped and
//! counted: the protocol between gateways and routers is made for that.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Poll, Waker};

use crate::ids::{GatewayId, Partition, Position};
use crate::ports::peers::{Peers, ToGateway, ToRouter};

/// Messages that wait for one receiver. An event is shared, so a full queue holds about as many
/// pointers; a receiver that is so far behind has more to fetch than to wait for.
pub const QUEUE_MAX: usize = 64 << 10;

/// A queue's capacity above this is given back after a burst.
const KEPT: usize = 1 << 10;

/// Messages dropped because their receiver's queue was full, or there was no receiver.
#[derive(Debug, Default)]
pub struct PeerCounts {
    /// On their way to routers.
    pub to_router_dropped: AtomicU64,
    /// On their way to gateways.
    pub to_gateway_dropped: AtomicU64,
}

struct Requests {
    queue: Vec<(GatewayId, ToRouter)>,
    waker: Option<Waker>,
}

struct Gateway {
    id: GatewayId,
    queue: Mutex<Vec<ToGateway>>,
    wake: Box<dyn Fn() + Send + Sync>,
    /// Whether something didn't fit since the last look.
    has_lost: AtomicBool,
}

/// [`Peers`] within one process.
pub struct InProcessPeers {
    routers: Vec<Arc<Mutex<Requests>>>,
    gateways: RwLock<Vec<Arc<Gateway>>>,
    counts: Arc<PeerCounts>,
    queue_max: usize,
}

impl InProcessPeers {
    /// Peers with a router for each of `partitions`.
    pub fn new(partitions: u32) -> Self {
        Self::with_bound(partitions, QUEUE_MAX)
    }

    /// The same with another bound of each queue, in messages.
    pub fn with_bound(partitions: u32, queue_max: usize) -> Self {
        let router = || {
            Arc::new(Mutex::new(Requests {
                queue: Vec::new(),
                waker: None,
            }))
        };
        InProcessPeers {
            routers: (0..partitions).map(|_| router()).collect(),
            gateways: RwLock::default(),
            counts: Arc::default(),
            queue_max,
        }
    }

    /// The queue of the router that owns a partition; none if there is no such partition. Meant
    /// for one receiver.
    pub fn router_inbox(&self, partition: Partition) -> Option<RouterInbox> {
        self.routers
            .get(partition.0 as usize)
            .map(|requests| RouterInbox {
                requests: Arc::clone(requests),
            })
    }

    /// Adds a gateway. `wake` is called, from any thread, when something comes into its empty
    /// queue. The gateway is gone when the inbox is dropped.
    pub fn add_gateway(
        self: &Arc<Self>,
        id: GatewayId,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> GatewayInbox {
        let gateway = Arc::new(Gateway {
            id,
            queue: Mutex::default(),
            wake,
            has_lost: AtomicBool::new(false),
        });
        let mut gateways = self
            .gateways
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        gateways.retain(|g| g.id != id);
        gateways.push(Arc::clone(&gateway));
        GatewayInbox {
            gateway,
            peers: Arc::clone(self),
        }
    }

    /// What was dropped.
    pub fn counts(&self) -> Arc<PeerCounts> {
        Arc::clone(&self.counts)
    }
}

impl Peers for InProcessPeers {
    fn to_router(&self, from: GatewayId, partition: Partition, message: ToRouter) {
        let Some(requests) = self.routers.get(partition.0 as usize) else {
            self.counts
                .to_router_dropped
                .fetch_add(1, Ordering::Relaxed);
            return;
        };
        let waker = {
            let mut requests = lock(requests);
            if requests.queue.len() >= self.queue_max {
                self.counts
                    .to_router_dropped
                    .fetch_add(1, Ordering::Relaxed);
                return;
            }
            // What is only counted waits for the router's next turn, its next tick at the latest: a
            // wake for it would be one more for every batch.
            let can_wait = matches!(message, ToRouter::FannedOut(_)) && requests.queue.len() < KEPT;
            requests.queue.push((from, message));
            if can_wait {
                None
            } else {
                requests.waker.take()
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn to_gateway(&self, _from: Partition, to: GatewayId, message: ToGateway) {
        self.deliver(to, message);
    }

    fn broadcast(&self, _from: Partition, message: ToGateway) {
        self.deliver_to_all(&message);
    }

    fn took_over(&self, partition: Partition, _end: Position) {
        self.broadcast(partition, ToGateway::TookOver { partition });
    }

    fn resigned(&self, _partition: Partition) {}

    fn has_others(&self) -> bool {
        false
    }

    fn to_other(&self, _to: GatewayId, _message: ToGateway) {}

    fn to_others(&self, _message: ToGateway) {}
}

impl InProcessPeers {
    /// The gateways there are now.
    pub fn gateways(&self) -> Vec<GatewayId> {
        let gateways = self.gateways.read().unwrap_or_else(PoisonError::into_inner);
        gateways.iter().map(|g| g.id).collect()
    }

    /// Puts a message into every gateway's queue, whoever sent it.
    pub fn deliver_to_all(&self, message: &ToGateway) {
        for to in self.gateways() {
            self.deliver(to, message.clone());
        }
    }

    /// Puts a message into a gateway's queue, whoever sent it.
    pub fn deliver(&self, to: GatewayId, message: ToGateway) {
        let gateways = self.gateways.read().unwrap_or_else(PoisonError::into_inner);
        let Some(gateway) = gateways.iter().find(|g| g.id == to) else {
            self.counts
                .to_gateway_dropped
                .fetch_add(1, Ordering::Relaxed);
            return;
        };
        let was_empty = {
            let mut queue = lock(&gateway.queue);
            if queue.len() >= self.queue_max {
                self.counts
                    .to_gateway_dropped
                    .fetch_add(1, Ordering::Relaxed);
                gateway.has_lost.store(true, Ordering::Relaxed);
                return;
            }
            queue.push(message);
            queue.len() == 1
        };
        if was_empty {
            (gateway.wake)();
        }
    }

    /// Says to all gateways that some of what was for them is lost.
    pub fn lost(&self) {
        for gateway in self
            .gateways
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            gateway.has_lost.store(true, Ordering::Relaxed);
            (gateway.wake)();
        }
    }
}

/// Where a router takes its messages from.
pub struct RouterInbox {
    requests: Arc<Mutex<Requests>>,
}

impl RouterInbox {
    /// Waits until there is a message, then moves all into `into`. Dropping the future loses
    /// nothing.
    pub async fn recv_many(&self, into: &mut Vec<(GatewayId, ToRouter)>) {
        poll_fn(|cx| {
            let mut requests = lock(&self.requests);
            if requests.queue.is_empty() {
                requests.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            swap_out(&mut requests.queue, into);
            Poll::Ready(())
        })
        .await;
    }
}

/// Where a gateway takes its messages from.
pub struct GatewayInbox {
    gateway: Arc<Gateway>,
    peers: Arc<InProcessPeers>,
}

impl GatewayInbox {
    /// Moves all that came into `into`; whether something was dropped since the last call.
    pub fn take(&self, into: &mut Vec<ToGateway>) -> bool {
        swap_out(&mut lock(&self.gateway.queue), into);
        self.gateway.has_lost.swap(false, Ordering::Relaxed)
    }
}

impl Drop for GatewayInbox {
    fn drop(&mut self) {
        let mut gateways = self
            .peers
            .gateways
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        gateways.retain(|g| !Arc::ptr_eq(g, &self.gateway));
    }
}

/// A panic while a queue was locked leaves whole messages in it, so it may be used on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn swap_out<T>(queue: &mut Vec<T>, into: &mut Vec<T>) {
    if into.is_empty() {
        into.shrink_to(KEPT);
        std::mem::swap(queue, into);
    } else {
        into.append(queue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ConversationId, UserId};
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Wake};

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn typing(user: u64) -> ToGateway {
        ToGateway::Typing {
            conversation: ConversationId(1),
            user: UserId(user),
            on: true,
        }
    }

    fn close(conversation: u64) -> ToRouter {
        ToRouter::Close(vec![ConversationId(conversation)])
    }

    #[test]
    fn a_gateway_is_woken_once_a_batch_and_gets_all_in_order() {
        let peers = Arc::new(InProcessPeers::with_bound(1, 3));
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&wakes);
        let wake = Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let inbox = peers.add_gateway(GatewayId(4), wake);
        assert_eq!(peers.gateways(), [GatewayId(4)]);
        for user in 0..5 {
            peers.deliver(GatewayId(4), typing(user));
        }
        peers.deliver(GatewayId(9), typing(9));
        let mut taken = Vec::new();
        assert!(inbox.take(&mut taken));
        assert_eq!(
            taken,
            [typing(0), typing(1), typing(2)],
            "what doesn't fit is dropped"
        );
        assert_eq!(peers.counts().to_gateway_dropped.load(Ordering::Relaxed), 3);
        taken.clear();
        peers.deliver(GatewayId(4), typing(7));
        assert!(!inbox.take(&mut taken));
        assert_eq!((taken.len(), wakes.load(Ordering::Relaxed)), (1, 2));
        drop(inbox);
        assert_eq!(peers.gateways(), []);
    }

    #[test]
    fn a_router_waits_for_its_messages_and_a_dropped_wait_loses_none() {
        let peers = InProcessPeers::with_bound(2, 2);
        let inbox = peers.router_inbox(Partition(1)).expect("a partition");
        assert!(peers.router_inbox(Partition(2)).is_none());
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let mut taken = Vec::new();
        {
            let mut waiting = Box::pin(inbox.recv_many(&mut taken));
            assert!(waiting.as_mut().poll(&mut cx).is_pending());
        }
        for conversation in 0..3 {
            peers.to_router(GatewayId(1), Partition(1), close(conversation));
        }
        peers.to_router(GatewayId(1), Partition(0), close(9));
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "one wake a batch");
        let mut waiting = Box::pin(inbox.recv_many(&mut taken));
        assert!(waiting.as_mut().poll(&mut cx).is_ready());
        drop(waiting);
        assert_eq!(taken, [(GatewayId(1), close(0)), (GatewayId(1), close(1))]);
        assert_eq!(peers.counts().to_router_dropped.load(Ordering::Relaxed), 1);
    }
}
