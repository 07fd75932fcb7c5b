//! The driver of routers: takeovers, zombies, and the calls of log and store around them.

use std::collections::BTreeMap;

use tidings_core::ids::{GatewayId, Micros, Partition};
use tidings_core::path::{Effect, Router};
use tidings_core::ports::log::{Append, LogError};
use tidings_core::ports::peers::{ToGateway, ToRouter};
use tidings_core::ports::store::STORE_DEADLINE;
use tidings_core::rows::{MemberRows, StateKey, StateValue};
use tidings_verify::history::Part;

use crate::Bug;
use crate::log::{Lost, Report};
use crate::store::{Call, Loss, Reply};
use crate::world::{Asker, Event, GatewayInput, MS, SECOND, World};

/// A router, owner or zombie.
pub(crate) struct RouterNode {
    core: Router,
    partition: u32,
    /// On which server it runs.
    pub server: usize,
    /// How far its server's clock is off.
    skew: i64,
    is_reading: bool,
    /// Until when it may settle, if its partition is asked back.
    leaves_until: Option<Micros>,
}

/// How long a router that gives its partition up may take to settle.
const SETTLE_AT_END_MAX: Micros = 2 * SECOND;

impl World {
    /// A router takes a partition over.
    pub fn router_up(&mut self, partition: u32) {
        if self.owners[partition as usize].is_some() {
            return;
        }
        let log = &self.logs[partition as usize];
        let end = log.end();
        let from = match self.options.bug {
            Some(Bug::SkipAfterTakeover) => end,
            _ => log.committed(),
        };
        let server = self.random.below(self.gateways.len() as u64) as usize;
        let core = match self.kept_routers.remove(&(partition, server)) {
            Some(kept) => kept,
            None => Router::new(Partition(partition), from, end, self.plan.router.clone()),
        };
        let skew = self.draw_skew();
        self.routers.push(Some(RouterNode {
            core,
            partition,
            server,
            skew,
            is_reading: false,
            leaves_until: None,
        }));
        self.router_partitions.push(partition);
        let router = self.routers.len() - 1;
        self.owners[partition as usize] = Some(router);
        self.note(|| {
            format!(
                "router {router} takes {partition} over at {from:?}, end {end:?}, server {server}"
            )
        });
        self.after(0, Event::RouterTick(router));
        self.router_wants(router);
        // Not each of them hears it; those find out by its digests.
        for gateway in 0..self.gateways.len() {
            if self.random.permille(800) {
                let partition = Partition(partition);
                self.send_to_gateway(router, gateway, ToGateway::TookOver { partition });
            }
        }
    }

    /// The owner of a partition is gone, or goes on for a while without knowing that another has
    /// taken over.
    pub fn router_down(&mut self, partition: u32, as_zombie: bool) {
        let Some(old) = self.owners[partition as usize].take() else {
            return;
        };
        self.restarted(Part::Router);
        if as_zombie {
            let lives = self.random.between(300 * MS, 6 * SECOND);
            self.after(lives, Event::ZombieEnds(old));
        } else {
            self.router_ends(old);
        }
        let pause = if as_zombie && self.random.permille(500) {
            0
        } else {
            self.random.between(50 * MS, 3 * SECOND)
        };
        self.after(pause, Event::RouterUp(partition));
    }

    /// A router has lost its partition while its server goes on.
    fn router_ends(&mut self, router: usize) {
        let node = self.routers[router].take();
        if let Some(node) = node.filter(|_| self.has(Bug::StateKeptAfterLoss)) {
            let key = (node.partition, node.server);
            self.kept_routers.insert(key, node.core);
        }
    }

    /// A partition is asked back from its owner, which reads no more, settles and resigns.
    pub fn router_leaves(&mut self, partition: u32) {
        let until = self.now + SETTLE_AT_END_MAX;
        let owner = self.owners[partition as usize];
        if let Some(node) = owner.and_then(|owner| self.routers[owner].as_mut()) {
            node.leaves_until.get_or_insert(until);
        }
    }

    /// A leaving router that has settled, or has had the time for it, is gone.
    fn router_resigns(&mut self, router: usize) -> bool {
        let (now, mut is_settled) = (self.now, false);
        let Some(until) = self.routers[router].as_ref().and_then(|n| n.leaves_until) else {
            return false;
        };
        self.with_router(router, |core, now| is_settled = core.leave(now));
        let Some(node) = self.routers[router].as_ref() else {
            return true;
        };
        let partition = node.partition;
        let log = &self.logs[partition as usize];
        let is_committed = is_settled && log.committed() >= node.core.settled_position();
        if now < until && !is_committed {
            return false;
        }
        self.router_ends(router);
        if self.owners[partition as usize] == Some(router) {
            self.restarted(Part::Router);
            self.owners[partition as usize] = None;
            let pause = self.random.below(300 * MS);
            self.after(pause, Event::RouterUp(partition));
        }
        true
    }

    /// All routers of a server, zombies too, go with its process; `None`: those of all.
    pub fn routers_die(&mut self, server: Option<usize>) {
        for router in 0..self.routers.len() {
            let node = self.routers[router].as_ref();
            if node.is_none_or(|node| server.is_some_and(|server| server != node.server)) {
                continue;
            }
            self.routers[router] = None;
            let partition = self.router_partitions[router];
            let owner = &mut self.owners[partition as usize];
            if *owner == Some(router) {
                *owner = None;
                let pause = self.random.between(50 * MS, 2 * SECOND);
                self.after(pause, Event::RouterUp(partition));
            }
        }
    }

    /// Whether another router has taken its partition over since, whatever became of that one.
    pub fn is_former(&self, router: usize) -> bool {
        let partition = &self.router_partitions[router];
        self.router_partitions[router + 1..].contains(partition)
    }

    /// The server a router runs on.
    pub fn server_of(&self, router: usize) -> Option<usize> {
        self.routers[router].as_ref().map(|node| node.server)
    }

    /// How far a server's clock is off: mostly not at all, else by up to an hour.
    pub fn draw_skew(&mut self) -> i64 {
        const SKEW_MAX: u64 = 3600 * SECOND;
        match self.random.permille(self.plan.skewed_permille) {
            true => self.random.below(2 * SKEW_MAX) as i64 - SKEW_MAX as i64,
            false => 0,
        }
    }

    fn with_router(&mut self, router: usize, call: impl FnOnce(&mut Router, u64)) {
        let Some(node) = self.routers[router].as_mut() else {
            return;
        };
        call(&mut node.core, self.now.saturating_add_signed(node.skew));
        let effects: Vec<Effect> = node.core.effects().collect();
        for effect in effects {
            self.perform(router, effect);
        }
        self.router_wants(router);
    }

    pub fn router_tick(&mut self, router: usize) {
        if self.routers[router].is_some() && !self.router_resigns(router) {
            self.with_router(router, |core, now| core.tick(now));
            self.after(100 * MS, Event::RouterTick(router));
        }
    }

    pub fn router_heard(&mut self, router: usize, from: usize, message: ToRouter) {
        let gateway = GatewayId(from as u32 + 1);
        let Some(node) = &self.routers[router] else {
            return;
        };
        let end = self.logs[node.partition as usize].end();
        self.with_router(router, |core, now| {
            if core.is_in_doubt() {
                core.log_ends_at(end);
            }
            core.peer(gateway, message, now);
        });
    }

    /// Begins a read of the log if the router has room and there is something to read.
    pub fn router_wants(&mut self, router: usize) {
        let Some(node) = self.routers[router].as_mut() else {
            return;
        };
        let end = self.logs[node.partition as usize].end();
        let stays = node.leaves_until.is_none();
        if stays && !node.is_reading && node.core.wants_records() && node.core.next_position() < end
        {
            node.is_reading = true;
            let delay = self.random.below(2 * MS);
            self.after(delay, Event::RouterRead(router));
        }
    }

    pub fn router_read(&mut self, router: usize) {
        let most = self.random.between(1, self.plan.read_most as u64) as usize;
        let bug = self.options.bug;
        let Some(node) = self.routers[router].as_mut() else {
            return;
        };
        node.is_reading = false;
        let is_owner = self.owners[node.partition as usize] == Some(router);
        if bug == Some(Bug::AnswersOfZombie) && !is_owner {
            return;
        }
        let log = &mut self.logs[node.partition as usize];
        let from = match bug {
            // What others have settled meanwhile isn't read.
            Some(Bug::StateKeptAfterLoss) => node.core.next_position().max(log.committed()),
            _ => node.core.next_position(),
        };
        let mut records = log.read(from, most);
        match (bug, records.last()) {
            (Some(Bug::CommitBeforeStore), Some(last)) => log.commit(last.position.next(), true),
            (Some(Bug::RecordSkippedBetweenReads), _) if records.len() > 10 => {
                records.remove(0);
            }
            (Some(Bug::RoutersClock), _) => {
                let now = self.now.saturating_add_signed(node.skew);
                records.iter_mut().for_each(|record| record.appended = now);
            }
            _ => {}
        }
        if !records.is_empty() {
            self.with_router(router, |core, now| core.records(records, now));
        }
    }

    fn perform(&mut self, router: usize, effect: Effect) {
        let (number, call) = match effect {
            Effect::Send { to, message } => {
                return self.tell_gateway(router, to.0 as usize - 1, message);
            }
            Effect::Broadcast(message) => {
                for gateway in 0..self.gateways.len() {
                    self.tell_gateway(router, gateway, message.clone());
                }
                return;
            }
            // Marks of what waits are hints; no promise rests on them.
            Effect::FannedOut { .. } => return,
            Effect::DeadLetter { position, .. } => {
                return self.broken.push(format!("a dead letter at {position:?}"));
            }
            Effect::Relayed {
                conversation,
                version,
            } => {
                if self.healing || !self.random.permille(100) {
                    self.after(MS, Event::RelayDone(conversation, version));
                }
                return;
            }
            Effect::PutEvents { flight, rows } => (flight, Call::PutEvents(rows)),
            Effect::PutState { flight, rows } => (flight, Call::PutState(rows)),
            Effect::PutCursors { rows, check } => (0, Call::PutCursors { rows, check }),
            Effect::Settle(position) => (0, Call::Settle(position)),
            Effect::ReadState {
                load,
                conversation,
                keys,
            } => (load, Call::ReadState(conversation, keys)),
            Effect::ReadMembers { load, conversation } => (load, Call::ReadMembers(conversation)),
            Effect::ReadSince {
                load,
                conversation,
                from,
            } => (load, Call::ReadSince(conversation, from)),
            Effect::ReadEvents {
                load,
                conversation,
                seqs,
            } => (load, Call::ReadEvents(conversation, seqs)),
            Effect::ReadCursors {
                load,
                conversation,
                users,
            } => (load, Call::ReadCursors(conversation, users)),
        };
        if let Call::PutEvents(rows) = &call {
            for row in rows {
                let (id, seq, at) = (row.conversation, row.seq, row.position.offset);
                self.note(|| format!("router {router}: {id} {seq} is the record at {at}"));
            }
        }
        self.ask_store(Asker::Router(router, number), call);
    }

    fn tell_gateway(&mut self, router: usize, gateway: usize, mut message: ToGateway) {
        if let (Some(Bug::HeadToldFromStore), ToGateway::Opened { states, .. }) =
            (self.options.bug, &mut message)
        {
            for state in states {
                let call = Call::ReadState(state.conversation, vec![StateKey::Head]);
                if let Reply::State(rows) = self.store.execute(&call, &mut self.random)
                    && let Some(Some(row)) = rows.first()
                    && let StateValue::Head(head) = row.value
                {
                    state.head = head.seq;
                }
            }
        }
        self.send_to_gateway(router, gateway, message);
    }

    /// A call on its way to the store.
    pub fn ask_store(&mut self, asker: Asker, call: Call) {
        let delay = self.store_delay();
        let life = self.store_life;
        let call = Box::new(call);
        self.after(delay, Event::Store { asker, call, life });
    }

    fn store_delay(&mut self) -> u64 {
        let slow = self.now < self.weather.store_slow;
        let most = if slow {
            3 * SECOND
        } else {
            self.plan.store_delay
        };
        self.random.between(most / 10, most)
    }

    /// The call reaches the store.
    pub fn store_works(&mut self, asker: Asker, call: Box<Call>, life: u64) {
        if life != self.store_life && self.store.gathers {
            return; // It was on its way within the process that is gone.
        }
        let deadline = STORE_DEADLINE.as_micros() as u64;
        let roll = if self.healing {
            1000
        } else if self.now < self.weather.store_down {
            0
        } else if self.now < self.weather.store_failing {
            self.random.below(400)
        } else {
            self.random.below(4000)
        };
        let (reply, delay) = match roll {
            0..80 => {
                let (loss, within) = match roll {
                    0..30 => (Loss::Part, deadline),
                    30..45 => (Loss::Whole, deadline),
                    45..60 => (Loss::Late, deadline),
                    _ => (Loss::Never, 50 * MS),
                };
                let delay = self.random.below(within);
                if let Some(call) = self.store.lose(&call, loss, &mut self.random) {
                    let late = delay + self.random.below(4 * SECOND);
                    let (asker, call) = (Asker::Nobody, Box::new(call));
                    self.after(late, Event::Store { asker, call, life });
                }
                let is_write = matches!(*call, Call::PutEvents(_) | Call::PutState(_));
                let is_told = loss == Loss::Part && is_write && self.has(Bug::PartIsDone);
                (is_told.then_some(Reply::Done), delay)
            }
            roll => {
                let reply = self.store.execute(&call, &mut self.random);
                if roll < 110 {
                    // It comes once more, late.
                    let delay = self.random.below(4 * SECOND);
                    self.after(
                        delay,
                        Event::Store {
                            asker: Asker::Nobody,
                            call: call.clone(),
                            life,
                        },
                    );
                }
                (Some(reply), self.store_delay())
            }
        };
        if !matches!(asker, Asker::Nobody) {
            self.after(delay, Event::StoreReply { asker, call, reply });
        }
    }

    /// The store's answer, or the deadline.
    pub fn store_replies(&mut self, asker: Asker, call: Call, reply: Option<Reply>) {
        let (router, number) = match asker {
            Asker::Router(router, number) => (router, number),
            Asker::Gateway(gateway, life, request) => {
                return self.gateway_read(gateway, life, request, reply);
            }
            Asker::Nobody => return,
        };
        if let (Call::Settle(_), Some(Reply::Settled(position))) = (&call, &reply) {
            if let Some(node) = &self.routers[router] {
                let is_former = self.is_former(router);
                let log = &mut self.logs[node.partition as usize];
                if is_former {
                    log.commit_of_former(*position, &mut self.random);
                } else {
                    let is_kept = self.random.permille(500);
                    log.commit(*position, is_kept);
                }
            }
            return;
        }
        let forgets_cursors = self.has(Bug::ReceiptGoingBack);
        let forgets_senders = self.has(Bug::SendersForgotten);
        let is_done = reply.is_some() || self.has(Bug::ErrorIsDone);
        self.with_router(router, |core, now| match (call, reply) {
            (Call::PutEvents(_), _) => core.events_stored(number, is_done, now),
            (Call::PutState(_), _) => core.state_stored(number, is_done, now),
            (Call::PutCursors { rows, .. }, Some(Reply::Cursors(stored))) => {
                core.cursors_stored(rows, &stored, now);
            }
            (Call::PutCursors { rows, .. }, _) => core.cursors_refused(rows, now),
            (Call::ReadState(_, keys), Some(Reply::State(mut rows))) => {
                if forgets_senders {
                    for (key, row) in keys.iter().zip(&mut rows) {
                        *row = row.filter(|_| !matches!(key, StateKey::Sender(..)));
                    }
                }
                core.state_read(number, Some(rows), now)
            }
            (Call::ReadState(..), _) => core.state_read(number, None, now),
            (Call::ReadMembers(_), Some(Reply::Members(found))) => {
                let found = found.map(|found| match forgets_cursors {
                    true => MemberRows {
                        cursors: Vec::new(),
                        ..found
                    },
                    false => found,
                });
                core.members_read(number, Some(found), now);
            }
            (Call::ReadMembers(_), _) => core.members_read(number, None, now),
            (Call::ReadSince(..), Some(Reply::Events(rows))) => {
                core.since_read(number, Some(rows), now)
            }
            (Call::ReadSince(..), _) => core.since_read(number, None, now),
            (Call::ReadEvents(..), Some(Reply::Events(rows))) => {
                core.events_read(number, Some(rows), now)
            }
            (Call::ReadEvents(..), _) => core.events_read(number, None, now),
            (Call::ReadCursors(..), Some(Reply::Cursors(rows))) => {
                let rows = if forgets_cursors { Vec::new() } else { rows };
                core.cursors_read(number, Some(rows), now)
            }
            (Call::ReadCursors(..), _) => core.cursors_read(number, None, now),
            _ => {}
        });
    }

    /// Whether an owner has not yet stored all that is in its log.
    pub fn router_behind(&self) -> bool {
        self.owners.iter().zip(&self.logs).any(|(owner, log)| {
            let node = owner.and_then(|owner| self.routers[owner].as_ref());
            node.is_none_or(|node| node.core.settled_position() < log.end())
        })
    }

    // The log's side.

    /// A batch reaches the log.
    pub fn log_takes(&mut self, records: Vec<Append>, report: Option<Report>) {
        let down = self.now < self.weather.log_down;
        let roll = match self.healing {
            true => 1000,
            false if self.now < self.weather.log_failing => self.random.below(300),
            false => self.random.below(3000),
        };
        let refusal = match roll {
            _ if down => Some(LogError::Unavailable("down".to_owned())),
            0..15 => Some(LogError::Unavailable("busy".to_owned())),
            15..25 => Some(LogError::Full),
            25..60 => {
                // Nobody knows: a part of it is appended, or all, now or when the caller was told so.
                let lost = Lost::draw(records.len(), &mut self.random);
                let part = records[..lost.part].to_vec();
                match report {
                    Some(of) if lost.is_late => {
                        let late = self.random.below(4 * SECOND);
                        self.after(late, Event::AppendLate(part, of));
                    }
                    _ => {
                        self.log_queues(&part, None);
                        self.log_took(&part, report);
                    }
                }
                Some(LogError::Unknown("no answer".to_owned()))
            }
            _ => None,
        };
        let Some(refusal) = refusal else {
            if (60..70).contains(&roll) {
                // A producer that tries again by itself.
                let delay = self.random.below(SECOND);
                self.after(delay, Event::Append(records.clone(), None));
            }
            self.log_queues(&records, report);
            return self.log_took(&records, report);
        };
        if let Some((gateway, life, batch)) = report {
            let delay = self.random.below(20 * MS);
            let input = GatewayInput::Appended(batch, Err(refusal));
            self.after(delay, Event::Gateway(gateway, life, input));
        }
    }

    fn log_took(&mut self, records: &[Append], report: Option<Report>) {
        for record in records {
            let partition = self.partition_of(record.conversation);
            if let Some(report) = report {
                self.logs[partition as usize].takes(report);
            }
        }
    }

    /// What was held up on its way to the log is there, unless a later one was before it.
    pub fn log_takes_late(&mut self, records: Vec<Append>, of: Report) {
        if self.now < self.weather.log_down {
            return;
        }
        let counts = |record: &Append| {
            let partition = self.partition_of(record.conversation);
            self.logs[partition as usize].still_takes(of)
        };
        let left: Vec<Append> = records.into_iter().filter(counts).collect();
        self.log_queues(&left, None);
        self.log_took(&left, Some(of));
    }

    /// Each partition gets its own records of a batch; the report comes when all have them.
    fn log_queues(&mut self, records: &[Append], report: Option<Report>) {
        let mut parts: BTreeMap<u32, Vec<Append>> = BTreeMap::new();
        for record in records {
            let partition = self.partition_of(record.conversation);
            parts.entry(partition).or_default().push(record.clone());
        }
        if let Some(report) = report {
            self.reports.insert(report, parts.len());
        }
        for (partition, records) in parts {
            let log = &mut self.logs[partition as usize];
            log.append(&records, report, self.now, &mut self.random);
            if log.reads_unsynced {
                self.routers_want();
            }
            self.sync_log(partition);
        }
    }

    fn sync_log(&mut self, partition: u32) {
        let log = &mut self.logs[partition as usize];
        if log.begin_sync() {
            let life = log.life;
            let most = if self.now < self.weather.log_slow {
                2 * SECOND
            } else {
                self.plan.sync_delay
            };
            let delay = self.random.between(most / 10, most);
            self.after(delay, Event::LogSynced(partition, life));
        }
    }

    /// A sync of the log's disk is done.
    pub fn log_synced(&mut self, partition: u32, life: u64) {
        let log = &mut self.logs[partition as usize];
        if life != log.life {
            return;
        }
        for report in log.synced() {
            let Some(left) = self.reports.get_mut(&report) else {
                continue; // Another partition's part of the batch is lost: that was told.
            };
            *left -= 1;
            if *left > 0 {
                continue;
            }
            self.reports.remove(&report);
            if self.healing || !self.random.permille(50) {
                let (gateway, life, batch) = report;
                let delay = self.random.below(10 * MS);
                let input = GatewayInput::Appended(batch, Ok(()));
                self.after(delay, Event::Gateway(gateway, life, input));
            }
        }
        self.sync_log(partition);
        self.routers_want();
    }

    pub fn routers_want(&mut self) {
        for router in 0..self.routers.len() {
            self.router_wants(router);
        }
    }

    /// The machines of all partitions' logs lose power, or those of one.
    pub fn logs_crash(&mut self, partition: Option<u32>) {
        self.restarted(Part::Log);
        for at in 0..self.plan.partitions {
            if partition.is_some_and(|one| one != at) {
                continue;
            }
            for report in self.logs[at as usize].crash(&mut self.random) {
                let is_first = self.reports.remove(&report).is_some();
                if is_first && self.random.permille(500) {
                    let (gateway, life, batch) = report;
                    let unknown = LogError::Unknown("the log is gone".to_owned());
                    let input = GatewayInput::Appended(batch, Err(unknown));
                    self.after(50 * MS, Event::Gateway(gateway, life, input));
                }
            }
            // Another leader, with a clock of its own; one disk's clock doesn't run back.
            if !self.store.gathers {
                self.logs[at as usize].skew = self.draw_skew();
            }
        }
        self.weather.log_down = self.now + self.random.between(50 * MS, 2 * SECOND);
        self.routers_want();
    }
}
