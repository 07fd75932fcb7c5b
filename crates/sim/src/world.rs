//! The world and its scheduler.
//!
//! Everything that happens is an event in one heap, ordered by virtual time; events of one time
//! are ordered by a number drawn from the seed. Handlers draw from the same source in the order
//! of events, so a seed has exactly one history.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use tidings_core::ids::{ConversationId, Micros, UserId};
use tidings_core::path::Router;
use tidings_core::ports::log::{Append, LogError};
use tidings_core::ports::peers::{ToGateway, ToRouter};
use tidings_gateway::logic::{AuthFailure, Principal, Slot};
use tidings_protocol::CloseCode;
use tidings_verify::{Checker, Record};

use crate::devices::Device;
use crate::directory::SimDirectory;
use crate::faults::{Fault, Weather};
use crate::gateways::GatewayNode;
use crate::log::{Report, SimLog};
use crate::net::Connection;
use crate::random::Random;
use crate::registry::{Entered, SimRegistry};
use crate::routers::RouterNode;
use crate::setup::Plan;
use crate::store::{Call, Reply, SimStore};
use crate::{Bug, Options, Outcome};

pub(crate) const MS: Micros = 1_000;
pub(crate) const SECOND: Micros = 1_000_000;
/// When every history begins.
pub(crate) const START: Micros = 1_700_000_000 * SECOND;

/// Whom a store's answer goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asker {
    /// A router's flight, load, or nothing that has a number.
    Router(usize, u64),
    /// A gateway in this life, and its request.
    Gateway(usize, u64, u64),
    /// Nobody: a write that comes once more.
    Nobody,
}

/// An answer to a call of a gateway's core.
#[derive(Debug)]
pub(crate) enum GatewayInput {
    Appended(u64, Result<(), LogError>),
    Authenticated(tidings_core::ids::SessionId, Result<Principal, AuthFailure>),
    UserLoaded(UserId, Option<Vec<ConversationId>>),
    End(tidings_core::ids::SessionId, CloseCode),
    Presence(u64),
    Overflow(Slot),
    Drained(Slot),
    Closed(Slot),
    Turn,
}

/// What happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// A device's attempt reaches a gateway.
    Connect {
        device: usize,
        life: u64,
        attempt: u64,
    },
    /// The next bytes of a client reach the gateway.
    Up(usize),
    /// The next bytes of a gateway reach the client.
    Down(usize),
    /// A slow reader reads again.
    Unblock(usize),
    GatewayTick(usize, u64),
    GatewayBack(usize),
    GatewayEnds(usize),
    Gateway(usize, u64, GatewayInput),
    ToGateway(usize, usize, ToGateway),
    ToRouter(usize, usize, ToRouter),
    RouterTick(usize),
    RouterRead(usize),
    RouterUp(u32),
    ZombieEnds(usize),
    Store {
        asker: Asker,
        call: Box<Call>,
        life: u64,
    },
    StoreReply {
        asker: Asker,
        call: Box<Call>,
        reply: Option<Reply>,
    },
    Append(Vec<Append>, Option<Report>),
    /// Records of a batch that nobody knows of, and of which one.
    AppendLate(Vec<Append>, Report),
    /// A sync of a partition's log in this life of it is done.
    LogSynced(u32, u64),
    Relay,
    RelayDone(ConversationId, u64),
    /// An entry of the registry that comes late.
    SessionEntered(u64, Entered),
    /// The registry is told that a device's session is gone.
    SessionGone(u64, tidings_core::ids::SessionId),
    DeviceTick {
        device: usize,
        life: u64,
    },
    DeviceSync {
        device: usize,
        life: u64,
    },
    DeviceBoot(usize),
    Write,
    Act,
    Fault(Fault),
}

struct Due {
    at: Micros,
    tie: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.number == other.number
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    /// The earliest is the greatest, as the heap gives that first.
    fn cmp(&self, other: &Due) -> Ordering {
        (other.at, other.tie, other.number).cmp(&(self.at, self.tie, self.number))
    }
}

/// Everything.
pub(crate) struct World {
    pub seed: u64,
    pub options: Options,
    pub plan: Plan,
    pub now: Micros,
    pub random: Random,
    heap: BinaryHeap<Due>,
    numbers: u64,
    trace: u64,
    checker: Checker,
    records: Vec<Record>,
    pub notes: Vec<String>,
    pub broken: Vec<String>,
    pub faults: usize,
    /// Whether the faults are over.
    pub healing: bool,
    pub weather: Weather,
    /// The log of each partition.
    pub logs: Vec<SimLog>,
    /// How many partitions' logs haven't reported yet on a batch.
    pub reports: BTreeMap<Report, usize>,
    pub store: SimStore,
    pub store_life: u64,
    pub directory: SimDirectory,
    /// Each device's sessions, and which gateway has them.
    pub registry: SimRegistry,
    /// Planted: routers as they were when they lost a partition, by server.
    pub kept_routers: BTreeMap<(u32, usize), Router>,
    pub gateways: Vec<GatewayNode>,
    /// Every router there ever was; who is gone is `None`.
    pub routers: Vec<Option<RouterNode>>,
    /// The router that owns each partition.
    pub owners: Vec<Option<usize>>,
    /// The partition of each of them.
    pub router_partitions: Vec<u32>,
    pub connections: Vec<Connection>,
    pub devices: Vec<Device>,
    /// When the last message on a way of a conversation arrives.
    pub ways: BTreeMap<(bool, usize, usize, u64), Micros>,
    /// When a gateway's last append reaches the log.
    pub appends: BTreeMap<usize, Micros>,
    pub written: u64,
    /// Messages that got a number: conversation, sender, grant, counter.
    pub numbered: BTreeSet<(u64, u64, u64, u64)>,
    /// What users were told to be hidden: user, conversation, first and last seq.
    pub hidden: Vec<(u64, u64, u64, u64)>,
}

impl World {
    pub fn new(seed: u64, options: &Options) -> World {
        let mut random = Random::new(seed ^ 0x7469_6469_6e67_7321);
        let plan = Plan::draw(&mut random);
        let mut world = World {
            seed,
            options: *options,
            now: START,
            heap: BinaryHeap::new(),
            numbers: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            checker: Checker::new(tidings_verify::Options::default()),
            records: Vec::new(),
            notes: Vec::new(),
            broken: Vec::new(),
            faults: 0,
            healing: false,
            weather: Weather::default(),
            logs: (0..plan.partitions).map(|_| SimLog::default()).collect(),
            reports: BTreeMap::new(),
            store: SimStore::new(plan.store_gathers),
            store_life: 0,
            directory: SimDirectory::default(),
            registry: SimRegistry::default(),
            kept_routers: BTreeMap::new(),
            gateways: Vec::new(),
            routers: Vec::new(),
            owners: vec![None; plan.partitions as usize],
            router_partitions: Vec::new(),
            connections: Vec::new(),
            devices: Vec::new(),
            ways: BTreeMap::new(),
            appends: BTreeMap::new(),
            written: 0,
            numbered: BTreeSet::new(),
            hidden: Vec::new(),
            random,
            plan,
        };
        world.set_up();
        world
    }

    /// Has something happen after a while.
    pub fn after(&mut self, delay: Micros, event: Event) {
        self.at(self.now + delay, event);
    }

    /// Has something happen at a time.
    pub fn at(&mut self, at: Micros, event: Event) {
        self.numbers += 1;
        let (tie, number) = (self.random.bits(), self.numbers);
        self.heap.push(Due {
            at: at.max(self.now),
            tie,
            number,
            event,
        });
    }

    /// Lets the next thing happen, if there is one before `until`.
    pub fn step(&mut self, until: Micros) -> bool {
        if self.heap.peek().is_none_or(|due| due.at > until) {
            self.now = until;
            return false;
        }
        let due = self.heap.pop().expect("just seen");
        self.now = due.at;
        self.mix(due.at);
        self.mix(due.number);
        self.happen(due.event);
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Connect {
                device,
                life,
                attempt,
            } => self.connect(device, life, attempt),
            Event::Up(connection) => self.up(connection),
            Event::Down(connection) => self.down(connection),
            Event::Unblock(connection) => self.unblock(connection),
            Event::GatewayTick(gateway, life) => self.gateway_tick(gateway, life),
            Event::GatewayEnds(gateway) => self.gateway_ends(gateway),
            Event::GatewayBack(gateway) => self.gateway_back(gateway),
            Event::Gateway(gateway, life, input) => self.gateway_input(gateway, life, input),
            Event::ToGateway(router, gateway, message) => {
                self.gateway_heard(router, gateway, message);
            }
            Event::ToRouter(router, from, message) => self.router_heard(router, from, message),
            Event::RouterTick(router) => self.router_tick(router),
            Event::RouterRead(router) => self.router_read(router),
            Event::RouterUp(partition) => self.router_up(partition),
            Event::ZombieEnds(router) => self.routers[router] = None,
            Event::Store { asker, call, life } => self.store_works(asker, call, life),
            Event::StoreReply { asker, call, reply } => self.store_replies(asker, *call, reply),
            Event::Append(records, report) => self.log_takes(records, report),
            Event::AppendLate(records, of) => self.log_takes_late(records, of),
            Event::LogSynced(partition, life) => self.log_synced(partition, life),
            Event::Relay => self.relay(),
            Event::SessionEntered(device, entered) => self.session_entered(device, entered),
            Event::SessionGone(device, session) => self.session_gone(device, session),
            Event::RelayDone(conversation, version) => self.directory.done(conversation, version),
            Event::DeviceTick { device, life } => self.device_tick(device, life),
            Event::DeviceSync { device, life } => self.device_syncs_disk(device, life),
            Event::DeviceBoot(device) => self.boot(device),
            Event::Write => self.write(),
            Event::Act => self.act_as_user(),
            Event::Fault(fault) => self.fault(fault),
        }
    }

    /// Whether this mistake is planted.
    pub fn has(&self, bug: Bug) -> bool {
        self.options.bug == Some(bug)
    }

    /// The partition of a conversation.
    pub fn partition_of(&self, conversation: ConversationId) -> u32 {
        conversation.slot() % self.plan.partitions
    }

    /// Adds to the trace.
    pub fn mix(&mut self, value: u64) {
        self.trace = (self.trace ^ value)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23);
    }

    /// Adds bytes to the trace.
    pub fn mix_bytes(&mut self, bytes: &[u8]) {
        self.mix(tidings_verify::body_hash(bytes));
    }

    /// Records what a client did or saw.
    pub fn record(&mut self, record: impl Into<Record>) {
        let record = record.into();
        self.checker.push(&record);
        if self.options.keeps_records {
            self.records.push(record);
        }
    }

    /// Says what is injected, for whoever reads a failing history.
    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if self.options.keeps_records {
            let at = (self.now - START) as f64 / 1e6;
            self.notes.push(format!("{at:10.6} {}", text()));
        }
    }

    /// The judgement.
    pub fn judge(self) -> Outcome {
        Outcome {
            seed: self.seed,
            trace: self.trace,
            report: self.checker.finish(),
            broken: self.broken,
            faults: self.faults,
            conversations: self.plan.conversations.len(),
            time: self.now - START,
            records: self.records,
            log: self.notes,
        }
    }
}
