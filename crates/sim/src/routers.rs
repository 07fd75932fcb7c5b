//! The driver of routers: takeovers, zombies, and the calls of log and store around them.

use tidings_core::ids::{GatewayId, Partition};
use tidings_core::path::{Effect, Router};
use tidings_core::ports::log::{Append, LogError};
use tidings_core::ports::peers::{ToGateway, ToRouter};
use tidings_core::ports::store::STORE_DEADLINE;
use tidings_core::rows::{StateKey, StateValue};
use tidings_verify::history::Part;

use crate::Bug;
use crate::log::Report;
use crate::store::{Call, Reply};
use crate::world::{Asker, Event, GatewayInput, MS, SECOND, World};

/// A router, owner or zombie.
pub(crate) struct RouterNode {
    core: Router,
    is_reading: bool,
}

impl World {
    /// A router takes over.
    pub fn router_up(&mut self) {
        if self.owner.is_some() {
            return;
        }
        let end = self.log.end();
        let from = match self.options.bug {
            Some(Bug::SkipAfterTakeover) => end,
            _ => self.log.committed(),
        };
        let core = Router::new(Partition(0), from, end, self.plan.router.clone());
        self.routers.push(Some(RouterNode {
            core,
            is_reading: false,
        }));
        let router = self.routers.len() - 1;
        self.owner = Some(router);
        self.note(|| format!("router {router} takes over at {from:?}, end {end:?}"));
        self.after(0, Event::RouterTick(router));
        self.router_wants(router);
        // Not each of them hears it; those find out by its digests.
        for gateway in 0..self.gateways.len() {
            if self.random.permille(800) {
                let partition = Partition(0);
                self.send_to_gateway(router, gateway, ToGateway::TookOver { partition });
            }
        }
    }

    /// The owner is gone, or goes on for a while without knowing that another has taken over.
    pub fn router_down(&mut self, as_zombie: bool) {
        let Some(old) = self.owner.take() else {
            return;
        };
        self.restarted(Part::Router);
        if as_zombie {
            let lives = self.random.between(300 * MS, 6 * SECOND);
            self.after(lives, Event::ZombieEnds(old));
        } else {
            self.routers[old] = None;
        }
        let pause = if as_zombie && self.random.permille(500) {
            0
        } else {
            self.random.between(50 * MS, 3 * SECOND)
        };
        self.after(pause, Event::RouterUp);
    }

    /// All routers, zombies too, go with the process.
    pub fn routers_die(&mut self) {
        for router in &mut self.routers {
            *router = None;
        }
        if self.owner.take().is_some() {
            let pause = self.random.between(50 * MS, 2 * SECOND);
            self.after(pause, Event::RouterUp);
        }
    }

    fn with_router(&mut self, router: usize, call: impl FnOnce(&mut Router, u64)) {
        let Some(node) = self.routers[router].as_mut() else {
            return;
        };
        call(&mut node.core, self.now);
        let effects: Vec<Effect> = node.core.effects().collect();
        for effect in effects {
            self.perform(router, effect);
        }
        self.router_wants(router);
    }

    pub fn router_tick(&mut self, router: usize) {
        if self.routers[router].is_some() {
            self.with_router(router, |core, now| core.tick(now));
            self.after(100 * MS, Event::RouterTick(router));
        }
    }

    pub fn router_heard(&mut self, router: usize, from: usize, message: ToRouter) {
        let gateway = GatewayId(from as u32 + 1);
        self.with_router(router, |core, now| core.peer(gateway, message, now));
    }

    /// Begins a read of the log if the router has room and there is something to read.
    pub fn router_wants(&mut self, router: usize) {
        let end = self.log.end();
        let Some(node) = self.routers[router].as_mut() else {
            return;
        };
        if !node.is_reading && node.core.wants_records() && node.core.next_position() < end {
            node.is_reading = true;
            let delay = self.random.below(2 * MS);
            self.after(delay, Event::RouterRead(router));
        }
    }

    pub fn router_read(&mut self, router: usize) {
        let most = self.random.between(1, self.plan.read_most as u64) as usize;
        let Some(node) = self.routers[router].as_mut() else {
            return;
        };
        node.is_reading = false;
        let records = self.log.read(node.core.next_position(), most);
        if let (Some(Bug::CommitBeforeStore), Some(last)) = (self.options.bug, records.last()) {
            self.log.commit(last.position.next(), true);
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
        if self.options.bug == Some(Bug::LostLastMessage) {
            match &mut message {
                ToGateway::Digest { .. } => return,
                ToGateway::Opened { states, .. } => {
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
                _ => {}
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
            0..30 => {
                self.store.execute_part(&call, &mut self.random);
                (None, self.random.below(deadline))
            }
            // Failed, and done; or done, and the answer lost.
            30..60 => {
                self.store.execute(&call, &mut self.random);
                (None, self.random.below(deadline))
            }
            60..80 => (None, self.random.below(50 * MS)),
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
            if self.routers[router].is_some() {
                let is_kept = self.random.permille(500);
                self.log.commit(*position, is_kept);
            }
            return;
        }
        let forgets_cursors = self.options.bug == Some(Bug::ReceiptGoingBack);
        self.with_router(router, |core, now| match (call, reply) {
            (Call::PutEvents(_), reply) => core.events_stored(number, reply.is_some(), now),
            (Call::PutState(_), reply) => core.state_stored(number, reply.is_some(), now),
            (Call::PutCursors { rows, .. }, Some(Reply::Cursors(stored))) => {
                core.cursors_stored(rows, &stored, now);
            }
            (Call::PutCursors { rows, .. }, _) => core.cursors_refused(rows, now),
            (Call::ReadState(..), Some(Reply::State(rows))) => {
                core.state_read(number, Some(rows), now)
            }
            (Call::ReadState(..), _) => core.state_read(number, None, now),
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

    /// Whether the owner has not yet stored all that is in the log.
    pub fn router_behind(&self) -> bool {
        let node = self.owner.and_then(|owner| self.routers[owner].as_ref());
        node.is_none_or(|node| node.core.settled_position() < self.log.end())
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
                // Nobody knows: a part of it is appended, or all.
                let part = self.random.below(records.len() as u64 + 1) as usize;
                self.log_queues(&records[..part], None);
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
            return self.log_queues(&records, report);
        };
        if let Some((gateway, life, batch)) = report {
            let delay = self.random.below(20 * MS);
            let input = GatewayInput::Appended(batch, Err(refusal));
            self.after(delay, Event::Gateway(gateway, life, input));
        }
    }

    fn log_queues(&mut self, records: &[Append], report: Option<Report>) {
        if !records.is_empty() {
            self.log.append(records, report, self.now, &mut self.random);
            if self.log.reads_unsynced {
                self.routers_want();
            }
        }
        self.sync_log();
    }

    fn sync_log(&mut self) {
        if self.log.begin_sync() {
            let most = if self.now < self.weather.log_slow {
                2 * SECOND
            } else {
                self.plan.sync_delay
            };
            let delay = self.random.between(most / 10, most);
            self.after(delay, Event::LogSynced(self.log.life));
        }
    }

    /// A sync of the log's disk is done.
    pub fn log_synced(&mut self, life: u64) {
        if life != self.log.life {
            return;
        }
        for (gateway, life, batch) in self.log.synced() {
            if self.healing || !self.random.permille(50) {
                let delay = self.random.below(10 * MS);
                let input = GatewayInput::Appended(batch, Ok(()));
                self.after(delay, Event::Gateway(gateway, life, input));
            }
        }
        self.sync_log();
        self.routers_want();
    }

    pub fn routers_want(&mut self) {
        for router in 0..self.routers.len() {
            self.router_wants(router);
        }
    }

    /// The log's machine loses power.
    pub fn log_crashes(&mut self) {
        self.restarted(Part::Log);
        for (gateway, life, batch) in self.log.crash(&mut self.random) {
            if self.random.permille(500) {
                let unknown = LogError::Unknown("the log is gone".to_owned());
                let input = GatewayInput::Appended(batch, Err(unknown));
                self.after(50 * MS, Event::Gateway(gateway, life, input));
            }
        }
        self.weather.log_down = self.now + self.random.between(50 * MS, 2 * SECOND);
        self.routers_want();
    }
}
