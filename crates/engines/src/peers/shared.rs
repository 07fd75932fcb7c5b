//! What links, connections and callers share: who owns what, which links are up, and which way a
//! message goes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;
use tidings_core::ids::{GatewayId, Micros, Partition, Position};
use tidings_core::in_process::InProcessPeers;
use tidings_core::ports::peers::{Peers, ToGateway, ToRouter};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dial::Standing;
use super::hello::Hello;
use super::incoming::Turns;
use super::item::{Item, To, Workers, worker_of};
use super::link::Link;
use super::metrics::{Metrics, add, sub};
use super::owners::{Claim, Owners, Term};
use super::queue::Queue;
use super::settings::Settings;
use super::tls::Tls;

/// The settings' times.
pub(super) struct Times {
    pub connect: Duration,
    pub ping: Duration,
    pub silence: Duration,
    pub resolve: Duration,
    pub retry_min: Duration,
    pub retry_max: Duration,
}

/// Both under one lock: a link that comes up says what is owned at that moment, and all that
/// changes later.
pub(super) struct State {
    pub owners: Owners,
    pub links: HashMap<u32, Arc<Link>>,
}

impl State {
    /// Says it to all servers; it is about partitions, and so fits always.
    fn announce(&self, item: Item) {
        for link in self.links.values() {
            link.queue.push_always(item.clone());
        }
    }
}

/// Microseconds since 1970.
fn now() -> Micros {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as Micros)
}

pub(super) struct Shared {
    pub local: Arc<InProcessPeers>,
    pub metrics: Arc<Metrics>,
    pub hello: Hello,
    pub tls: Tls,
    pub times: Times,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    pub turns: Turns,
    /// How the addresses of `peers.servers` stand.
    pub standing: Mutex<BTreeMap<SocketAddr, Standing>>,
    queue_messages: usize,
    queue_bytes: usize,
    started: Instant,
    state: RwLock<State>,
}

impl Shared {
    pub fn new(settings: &Settings, hello: Hello, tls: Tls, local: Arc<InProcessPeers>) -> Shared {
        let millis = Duration::from_millis;
        Shared {
            local,
            metrics: Arc::default(),
            tls,
            times: Times {
                connect: millis(settings.connect_timeout_ms),
                ping: millis(settings.ping_interval_ms),
                silence: millis(settings.silence_max_ms),
                resolve: millis(settings.resolve_interval_ms),
                retry_min: millis(settings.retry_min_ms),
                retry_max: millis(settings.retry_max_ms),
            },
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            turns: Turns::default(),
            standing: Mutex::default(),
            queue_messages: settings.queue_messages,
            queue_bytes: settings.queue_bytes,
            started: Instant::now(),
            state: RwLock::new(State {
                owners: Owners::new(hello.server, hello.partitions),
                links: HashMap::new(),
            }),
            hello,
        }
    }

    /// This server's number.
    pub fn me(&self) -> u32 {
        self.hello.server
    }

    /// Microseconds since the start.
    pub fn elapsed_micros(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// A panic while it was written leaves whole entries in it, so it may be used on.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn standing(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Standing>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Messages that start here.

    pub fn to_router(&self, from: GatewayId, partition: Partition, message: ToRouter) {
        let state = self.state();
        match state.owners.owner(partition) {
            Some(owner) if owner == self.me() => {
                drop(state);
                self.local.to_router(from, partition, message);
            }
            Some(owner) => {
                // As in process: what is only counted isn't worth a turn of its own.
                let can_wait = matches!(message, ToRouter::FannedOut(_));
                let item = Item::ToRouter {
                    worker: worker_of(from),
                    partition,
                    message,
                };
                self.push(&state, owner, item, can_wait);
            }
            None => add(&self.metrics.unowned_dropped, 1),
        }
    }

    pub fn to_gateway(&self, from: Partition, to: GatewayId, message: ToGateway) {
        let state = self.state();
        if !message.is_of_log() && !state.owners.is_mine(from) {
            add(&self.metrics.stale_dropped, 1);
            return;
        }
        if to.server() == self.me() {
            drop(state);
            return self.local.deliver(to, message);
        }
        let item = Item::ToGateway {
            partition: from,
            to: To::Some(Workers::one(worker_of(to))),
            message,
        };
        self.push(&state, to.server(), item, false);
    }

    pub fn broadcast(&self, from: Partition, message: ToGateway) {
        let state = self.state();
        if !message.is_of_log() && !state.owners.is_mine(from) {
            add(&self.metrics.stale_dropped, 1);
            return;
        }
        for link in state.links.values() {
            let item = Item::ToGateway {
                partition: from,
                to: To::All,
                message: message.clone(),
            };
            self.push_to(link, item, false);
        }
        drop(state);
        self.local.broadcast(from, message);
    }

    pub fn has_others(&self) -> bool {
        !self.state().links.is_empty()
    }

    /// All workers of that server hear it: which one it concerns is in the message.
    pub fn to_other(&self, to: GatewayId, message: ToGateway) {
        let state = self.state();
        self.push(&state, to.server(), Item::Notice { message }, false);
    }

    pub fn to_others(&self, message: &ToGateway) {
        for link in self.state().links.values() {
            let item = Item::Notice {
                message: message.clone(),
            };
            self.push_to(link, item, false);
        }
    }

    fn push(&self, state: &State, server: u32, item: Item, can_wait: bool) {
        match state.links.get(&server) {
            Some(link) => self.push_to(link, item, can_wait),
            None => self.count_dropped(&item),
        }
    }

    fn push_to(&self, link: &Link, item: Item, can_wait: bool) {
        let is_to_gateway = item.is_to_gateway();
        if !link.queue.push(item, can_wait) {
            self.count(is_to_gateway);
        }
    }

    pub fn count_dropped(&self, item: &Item) {
        self.count(item.is_to_gateway());
    }

    fn count(&self, is_to_gateway: bool) {
        let counter = if is_to_gateway {
            &self.metrics.to_gateway_dropped
        } else {
            &self.metrics.to_router_dropped
        };
        add(counter, 1);
    }

    // Partitions of this server's routers.

    pub fn took_over(&self, partition: Partition, end: Position) {
        let claim = {
            let mut state = self.state_mut();
            let (term, claim) = state.owners.take(partition, end, now());
            state.announce(Item::TookOver { partition, term });
            claim
        };
        match claim {
            Claim::New | Claim::Back => self.tell(partition),
            Claim::Nothing => tracing::warn!(
                partition = partition.0,
                "took a partition over that a server has which saw more of the log: this one's router isn't heard while that one is there"
            ),
        }
    }

    pub fn resigned(&self, partition: Partition) {
        let mut state = self.state_mut();
        state.owners.resign(self.me(), partition);
        state.announce(Item::Resigned { partition });
    }

    // Links.

    /// A link to a server, unless there is one.
    pub fn open(&self, theirs: &Hello, address: SocketAddr) -> Option<Arc<Link>> {
        let server = theirs.server;
        let mut state = self.state_mut();
        if state.links.contains_key(&server) {
            return None;
        }
        let link = Arc::new(Link {
            server,
            address,
            version: self.hello.common(theirs),
            queue: Queue::new(self.queue_messages, self.queue_bytes),
            round_trip: Default::default(),
        });
        for (partition, term) in state.owners.mine() {
            link.queue.push_always(Item::TookOver { partition, term });
        }
        state.links.insert(server, Arc::clone(&link));
        add(&self.metrics.links_up, 1);
        add(&self.metrics.connected, 1);
        let reached = state.owners.of(server);
        drop(state);
        // Heard of before there was a way to ask it.
        for partition in reached {
            self.tell(partition);
        }
        Some(link)
    }

    /// The link is down; what waited for it is lost, and the other side knows that by its going down.
    pub fn close(&self, link: &Arc<Link>) {
        let mut state = self.state_mut();
        if state
            .links
            .get(&link.server)
            .is_some_and(|l| Arc::ptr_eq(l, link))
        {
            state.links.remove(&link.server);
            sub(&self.metrics.links_up, 1);
        }
        drop(state);
        let mut left = Vec::new();
        link.queue.take(&mut left);
        for item in &left {
            if !matches!(item, Item::TookOver { .. } | Item::Resigned { .. }) {
                self.count_dropped(item);
            }
        }
    }

    /// Tells this server's gateways that there is another router to talk to.
    fn tell(&self, partition: Partition) {
        self.local
            .broadcast(partition, ToGateway::TookOver { partition });
    }

    // What other servers say.

    pub fn claimed(&self, server: u32, partition: Partition, term: Term) {
        let (claim, is_reached) = {
            let mut state = self.state_mut();
            let claim = state.owners.claim(server, partition, term);
            (claim, state.links.contains_key(&server))
        };
        if claim == Claim::Back {
            // It was out of reach: what its router sent meanwhile is gone.
            self.local.lost();
        }
        // While there is no way to ask it, it isn't worth a word; `open` says it then.
        if claim != Claim::Nothing && is_reached {
            self.tell(partition);
        }
    }

    pub fn resigned_there(&self, server: u32, partition: Partition) {
        let reclaimed = {
            let mut state = self.state_mut();
            state.owners.resign(server, partition);
            let term = state.owners.reclaim(partition, now());
            if let Some(term) = term {
                state.announce(Item::TookOver { partition, term });
            }
            term.is_some()
        };
        if reclaimed {
            self.tell(partition);
        }
    }

    /// A server is out of reach.
    pub fn forget(&self, server: u32) {
        self.state_mut().owners.forget(server);
    }

    pub fn to_router_here(&self, server: u32, worker: u8, partition: Partition, message: ToRouter) {
        if self.state().owners.is_mine(partition) {
            let from = GatewayId::new(server, worker);
            self.local.to_router(from, partition, message);
        } else {
            add(&self.metrics.unowned_dropped, 1);
        }
    }

    pub fn to_gateways_here(
        &self,
        partition: Partition,
        term: Option<Term>,
        to: To,
        message: ToGateway,
    ) {
        let counts = message.is_of_log()
            || term.is_some_and(|term| self.state().owners.is_current(partition, term));
        if !counts {
            add(&self.metrics.stale_dropped, 1);
            return;
        }
        match to {
            To::All => self.local.broadcast(partition, message),
            To::Some(workers) => {
                let mut workers = workers.iter().peekable();
                let mut message = Some(message);
                while let Some(worker) = workers.next() {
                    let this = match workers.peek() {
                        Some(_) => message.clone(),
                        None => message.take(),
                    };
                    if let Some(this) = this {
                        self.local.deliver(GatewayId::new(self.me(), worker), this);
                    }
                }
            }
        }
    }
}
