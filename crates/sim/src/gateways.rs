//! The driver of gateways: the outside of [`GatewayCore`], as a worker's host is.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tidings_core::ids::{
    ConversationId, DeviceId, GatewayId, Micros, Partition, Seq, SessionId, UserId,
};
use tidings_core::ports::directory::SignInId;
use tidings_core::ports::log::Append;
use tidings_core::ports::peers::{ToGateway, ToRouter};
use tidings_core::ports::registry::{Mark, Presence, SessionEntry};
use tidings_core::ports::store::StoreError;
use tidings_gateway::logic::{
    AuthFailure, GatewayCore, GatewayMetrics, Outbound, Principal, Settings, Slot,
};
use tidings_gateway::ws::Opcode;
use tidings_protocol::{CloseCode, Format};
use tidings_verify::history::Part;

use crate::Bug;
use crate::net::{Connection, Written};
use crate::registry::{Entered, Fate};
use crate::store::{Call, Reply};
use crate::world::{Asker, Event, GatewayInput, MS, SECOND, START, World};

/// A gateway, up or down.
#[derive(Default)]
pub(crate) struct GatewayNode {
    core: Option<GatewayCore>,
    /// Goes up with each start.
    pub life: u64,
    /// The connection in each slot.
    slots: BTreeMap<Slot, usize>,
    next_slot: Slot,
    /// Whose sessions were entered in the registry.
    devices: BTreeMap<SessionId, u64>,
    /// How far its clock is off.
    skew: i64,
    is_turning: bool,
    is_draining: bool,
}

impl GatewayNode {
    pub fn is_up(&self) -> bool {
        self.core.is_some()
    }
}

/// What a core asked for during one call.
enum Effect {
    Write(usize, Written),
    Input(GatewayInput),
    Append(u64, Vec<Append>),
    ToRouter(Partition, ToRouter),
    Authenticate(SessionId, String),
    LoadUser(UserId),
    Read(u64, Call),
    Session(SessionEntry, bool),
    SessionGone(SessionId),
}

struct Out<'a> {
    now: Micros,
    skew: i64,
    connections: &'a mut [Connection],
    slots: &'a BTreeMap<Slot, usize>,
    queue_max: usize,
    effects: Vec<Effect>,
}

impl Outbound for Out<'_> {
    fn now(&self) -> Micros {
        self.now
    }

    fn send(&mut self, slot: Slot, frame: &Bytes) {
        let Some(&at) = self.slots.get(&slot) else {
            return;
        };
        let connection = &mut self.connections[at];
        if !connection.is_open || connection.is_overflowed {
            return;
        }
        if !connection.is_blocked {
            let written = Written::Frame(frame.clone());
            return self.effects.push(Effect::Write(at, written));
        }
        if connection.queued + frame.len() > self.queue_max {
            connection.queued = 0;
            connection.waiting.clear();
            connection.is_overflowed = true;
            return self
                .effects
                .push(Effect::Input(GatewayInput::Overflow(slot)));
        }
        connection.queued += frame.len();
        connection.waiting.push(frame.clone());
    }

    fn close(&mut self, slot: Slot, code: CloseCode) {
        if let Some(&at) = self.slots.get(&slot) {
            self.effects.push(Effect::Write(at, Written::Close(code)));
            self.effects.push(Effect::Input(GatewayInput::Closed(slot)));
        }
    }

    fn admitted(&mut self, _slot: Slot) {}

    fn queued_bytes(&self, slot: Slot) -> usize {
        let connection = self.slots.get(&slot).map(|&at| &self.connections[at]);
        connection.map_or(0, |connection| connection.queued)
    }

    fn heard(&self, slot: Slot) -> Micros {
        let connection = self.slots.get(&slot).map(|&at| &self.connections[at]);
        connection.map_or(0, |c| c.heard.saturating_add_signed(self.skew))
    }

    fn append(&mut self, batch: u64, records: Vec<Append>) {
        self.effects.push(Effect::Append(batch, records));
    }

    fn to_router(&mut self, partition: Partition, message: ToRouter) {
        self.effects.push(Effect::ToRouter(partition, message));
    }

    fn authenticate(&mut self, session: SessionId, token: String, _device: String) {
        self.effects.push(Effect::Authenticate(session, token));
    }

    fn load_user(&mut self, user: UserId) {
        self.effects.push(Effect::LoadUser(user));
    }

    fn members_changed(&mut self, _users: &mut dyn Iterator<Item = UserId>) {}

    fn read_events(
        &mut self,
        request: u64,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        bytes_max: usize,
    ) {
        let call = Call::ReadRange(conversation, from, to, bytes_max);
        self.effects.push(Effect::Read(request, call));
    }

    fn put_session(&mut self, entry: SessionEntry, is_new: bool) {
        self.effects.push(Effect::Session(entry, is_new));
    }

    fn remove_session(&mut self, _user: UserId, session: SessionId, _at: Micros) {
        self.effects.push(Effect::SessionGone(session));
    }

    fn set_presence(&mut self, _user: UserId, _session: SessionId, _state: Presence) {}

    fn presence(&mut self, request: u64, _watcher: UserId, _users: Vec<UserId>) {
        self.effects
            .push(Effect::Input(GatewayInput::Presence(request)));
    }

    fn watch(&mut self, _users: Vec<UserId>) {}

    fn put_marks(&mut self, _marks: Vec<Mark>) {}
}

impl World {
    /// A gateway starts.
    pub fn gateway_back(&mut self, gateway: usize) {
        let mut settings = Settings::new(GatewayId(gateway as u32 + 1), self.plan.partitions);
        settings.session_base = self.random.bits() >> 24;
        settings.hash_seed = self.random.bits();
        if !self.healing && self.random.permille(200) {
            // Another's limit: it refuses for good what has a number already.
            settings.text_bytes_max = 1_000;
        }
        let skew = self.draw_skew();
        settings.sends_per_second = 0;
        settings.send_bytes_per_minute = 0;
        let node = &mut self.gateways[gateway];
        if node.core.is_some() {
            return;
        }
        let metrics = Arc::new(GatewayMetrics::default());
        node.core = Some(GatewayCore::new(settings, metrics));
        node.life += 1;
        node.skew = skew;
        let life = node.life;
        let first = self.random.between(1, SECOND);
        self.after(first, Event::GatewayTick(gateway, life));
    }

    /// A gateway is gone, and its connections with it.
    pub fn gateway_dies(&mut self, gateway: usize) {
        if self.gateways[gateway].core.take().is_none() {
            return;
        }
        self.restarted(Part::Gateway);
        let slots = std::mem::take(&mut self.gateways[gateway].slots);
        self.gateways[gateway].devices.clear();
        self.gateways[gateway].is_turning = false;
        self.gateways[gateway].is_draining = false;
        for connection in slots.into_values() {
            self.connections[connection].is_open = false;
            self.cut(connection, true);
        }
        let pause = self.random.between(50 * MS, 3 * SECOND);
        self.after(pause, Event::GatewayBack(gateway));
    }

    /// The process of a gateway that has drained ends.
    pub fn gateway_ends(&mut self, gateway: usize) {
        if self.gateways[gateway].is_draining {
            self.gateway_dies(gateway);
        }
    }

    fn with_gateway(
        &mut self,
        gateway: usize,
        life: u64,
        call: impl FnOnce(&mut GatewayCore, &mut Out<'_>),
    ) {
        let node = &mut self.gateways[gateway];
        if node.life != life {
            return;
        }
        let Some(core) = node.core.as_mut() else {
            return;
        };
        let mut out = Out {
            now: self.now.saturating_add_signed(node.skew),
            skew: node.skew,
            connections: &mut self.connections,
            slots: &node.slots,
            queue_max: self.plan.queue_max,
            effects: Vec::new(),
        };
        call(core, &mut out);
        core.turn_end(&mut out);
        let effects = out.effects;
        let turns = core.wants_turn() && !std::mem::replace(&mut node.is_turning, true);
        if turns {
            let turn = Event::Gateway(gateway, life, GatewayInput::Turn);
            self.after(MS / 10, turn);
        }
        for effect in effects {
            self.gateway_does(gateway, life, effect);
        }
    }

    fn gateway_does(&mut self, gateway: usize, life: u64, effect: Effect) {
        match effect {
            Effect::Write(connection, written) => self.write_down(connection, written),
            Effect::Input(input) => self.after(MS / 10, Event::Gateway(gateway, life, input)),
            Effect::Append(batch, records) => {
                // The calls of one thread keep their order.
                let delay = self.random.between(20, 2 * MS);
                let last = self.appends.get(&gateway).copied().unwrap_or(0);
                let at = (self.now + delay).max(last + 1);
                self.appends.insert(gateway, at);
                self.at(at, Event::Append(records, Some((gateway, life, batch))));
            }
            Effect::ToRouter(partition, message) => {
                self.send_to_router(gateway, partition, message);
            }
            Effect::Authenticate(session, token) => {
                let result = if !self.healing && self.random.permille(10) {
                    Err(AuthFailure::Unavailable)
                } else {
                    principal(&token, self.now)
                };
                let delay = self.random.below(5 * MS);
                let input = GatewayInput::Authenticated(session, result);
                self.after(delay, Event::Gateway(gateway, life, input));
            }
            Effect::LoadUser(user) => {
                let is_down = self.now < self.weather.directory_down;
                let list = (!is_down).then(|| self.directory.conversations_of(user));
                let delay = self.random.below(10 * MS);
                let input = GatewayInput::UserLoaded(user, list);
                self.after(delay, Event::Gateway(gateway, life, input));
            }
            Effect::Read(request, call) => {
                self.ask_store(Asker::Gateway(gateway, life, request), call);
            }
            Effect::Session(entry, is_new) => self.session_comes(gateway, entry, is_new),
            Effect::SessionGone(session) => {
                let device = self.gateways[gateway].devices.remove(&session);
                // Now and then it is never told: the entry stays.
                let is_lost = !self.healing && self.random.permille(30);
                if let Some(device) = device.filter(|_| !is_lost) {
                    let delay = self.random.below(4 * SECOND);
                    self.after(delay, Event::SessionGone(device, session));
                }
            }
        }
    }

    /// A session is entered in the registry, or gives a sign of life, which enters it again where it is
    /// missing. A new one whose call is answered ends those of its device that came before it.
    fn session_comes(&mut self, gateway: usize, entry: SessionEntry, is_new: bool) {
        let (device, entered) = (entry.device.0, (gateway, entry.session));
        let devices = &mut self.gateways[gateway].devices;
        devices.insert(entry.session, device);
        if !self.healing && self.random.permille(30) {
            self.registry.missed(entry.session, self.now);
            match Fate::draw(&mut self.random) {
                Fate::AtOnce => self.session_entered(device, entered),
                Fate::Late => {
                    let delay = self.random.below(2 * SECOND);
                    self.after(delay, Event::SessionEntered(device, entered));
                }
                Fate::Never => {}
            }
            return;
        }
        for (old, session) in self.registry.put(device, entered) {
            if is_new {
                let life = self.gateways[old].life;
                let input = GatewayInput::End(session, CloseCode::Replaced);
                self.after(5 * MS, Event::Gateway(old, life, input));
            }
        }
    }

    /// An entry whose caller has no answer.
    pub fn session_entered(&mut self, device: u64, entered: Entered) {
        self.registry.put(device, entered);
    }

    /// The registry hears that a session is gone, maybe after it has heard of the device's next one.
    pub fn session_gone(&mut self, device: u64, session: SessionId) {
        self.registry.remove(device, session);
    }

    /// A connection reaches a gateway.
    pub fn gateway_opens(&mut self, gateway: usize, connection: usize) {
        let node = &mut self.gateways[gateway];
        let (slot, life) = (node.next_slot, node.life);
        node.next_slot += 1;
        node.slots.insert(slot, connection);
        self.connections[connection].slot = slot;
        let format = self.connections[connection].format;
        let mut session = SessionId(0);
        self.with_gateway(gateway, life, |core, out| {
            session = core.opened(out, slot, format);
        });
        self.connections[connection].session = session;
    }

    /// A client's bytes are a whole message.
    pub fn gateway_message(&mut self, connection: usize, payload: &[u8]) {
        let c = &self.connections[connection];
        let (gateway, life, slot) = (c.gateway, c.gateway_life, c.slot);
        let opcode = match c.format {
            Format::Json => Opcode::Text,
            Format::Proto => Opcode::Binary,
        };
        self.with_gateway(gateway, life, |core, out| {
            core.message(out, slot, opcode, payload);
        });
    }

    /// A router's message arrives. What it says by itself counts only until another has taken over; peers
    /// have to see to that. Else a zombie's old head would call a client complete that isn't. What it
    /// says by the log is true, and taken. It stays so when the other one is gone as well: peers keep the
    /// greatest term.
    pub fn gateway_heard(&mut self, router: usize, gateway: usize, message: ToGateway) {
        if self.is_former(router) && !message.is_of_log() && !self.has(Bug::AnswersOfZombie) {
            return;
        }
        let life = self.gateways[gateway].life;
        self.with_gateway(gateway, life, |core, out| core.from_router(out, message));
    }

    pub fn gateway_tick(&mut self, gateway: usize, life: u64) {
        let node = &self.gateways[gateway];
        if node.life == life && node.is_up() {
            self.with_gateway(gateway, life, |core, out| core.tick(out));
            self.after(SECOND, Event::GatewayTick(gateway, life));
        }
    }

    /// The store has answered a gateway's read, or not.
    pub fn gateway_read(&mut self, gateway: usize, life: u64, request: u64, reply: Option<Reply>) {
        let result = match reply {
            Some(Reply::Events(rows)) => Ok(rows),
            _ => Err(StoreError::Unavailable("no answer".to_owned())),
        };
        self.with_gateway(gateway, life, |core, out| {
            core.events_read(out, request, result);
        });
    }

    pub fn gateway_input(&mut self, gateway: usize, life: u64, input: GatewayInput) {
        if self.gateways[gateway].life != life {
            return;
        }
        if let GatewayInput::Closed(slot)
        | GatewayInput::Overflow(slot)
        | GatewayInput::Drained(slot) = input
            && !self.gateways[gateway].slots.contains_key(&slot)
        {
            return;
        }
        let mut closed = None;
        match input {
            GatewayInput::Turn => self.gateways[gateway].is_turning = false,
            GatewayInput::Closed(slot) => closed = Some(slot),
            // Only what comes after the core knows of it is dropped or kept anew.
            GatewayInput::Overflow(slot) => {
                let at = self.gateways[gateway].slots[&slot];
                self.connections[at].is_overflowed = false;
            }
            _ => {}
        }
        self.with_gateway(gateway, life, |core, out| match input {
            GatewayInput::Appended(batch, result) => core.appended(out, batch, result),
            GatewayInput::Authenticated(session, result) => {
                core.authenticated(out, session, result)
            }
            GatewayInput::UserLoaded(user, list) => {
                core.user_loaded(out, user, list.map(Into::into));
            }
            GatewayInput::End(session, code) => core.end_session(out, session, code),
            GatewayInput::Presence(request) => {
                core.presence_answered(out, request, &[], Some(&[]));
            }
            GatewayInput::Overflow(slot) => core.overflow(out, slot),
            GatewayInput::Drained(slot) => core.drained(out, slot),
            GatewayInput::Closed(slot) => core.closed(out, slot),
            GatewayInput::Turn => core.turn_start(out),
        });
        if let Some(slot) = closed
            && let Some(at) = self.gateways[gateway].slots.remove(&slot)
        {
            self.connections[at].is_open = false;
        }
    }

    /// A gateway tells its clients to go elsewhere and closes; its process ends later.
    pub fn gateway_drains(&mut self, gateway: usize) {
        self.gateways[gateway].is_draining = true;
        self.after(4 * SECOND, Event::GatewayEnds(gateway));
        let life = self.gateways[gateway].life;
        let in_turn = self.random.permille(500);
        self.with_gateway(gateway, life, |core, out| {
            core.drain_begin(out, in_turn);
        });
    }
}

/// "user/device" is a token here.
fn principal(token: &str, now: Micros) -> Result<Principal, AuthFailure> {
    let (user, device) = token.split_once('/').ok_or(AuthFailure::Invalid)?;
    let number = |text: &str| text.parse().map_err(|_| AuthFailure::Invalid);
    Ok(Principal {
        user: UserId(number(user)?),
        device: DeviceId(number(device)?),
        sign_in: SignInId(0),
        issued: START,
        // No gateway's clock is that far off.
        expires: now + 24 * 3600 * SECOND,
    })
}
