//! The driver of devices: [`ClientCore`], and a disk that may lose what isn't synced.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tidings_client::{AppEvent, ClientCore, Config, Mode, Output, PersistOp, Saved};
use tidings_core::ids::{ConversationId, UserId};
use tidings_protocol::wire::{self, Kind, command, update};
use tidings_protocol::{Format, decode_server_frame, encode_client_frame};
use tidings_verify::history;

use crate::Bug;
use crate::random::Random;
use crate::world::{Event, MS, SECOND, World};

/// What identifies a numbered message: conversation, sender, grant, counter, id.
pub(crate) type Numbered = (u64, u64, u64, u64, u64);

/// A device, on or off.
pub(crate) struct Device {
    pub user: u64,
    pub device: u64,
    pub format: Format,
    pub mode: Mode,
    random: Random,
    pub core: Option<ClientCore>,
    /// What a crash leaves.
    pub disk: Saved,
    pub unsynced: Vec<PersistOp>,
    pub backup: Option<Saved>,
    /// Whether an older state was ever put back: what that life had numbered is forgotten.
    pub was_restored: bool,
    pub connection: Option<usize>,
    pub life: u64,
    /// How far its clock is off, in this life.
    skew: i64,
    attempt: u64,
    /// When the core's next tick is planned.
    tick_at: Option<u64>,
    /// Outputs until the process dies, between any two of them.
    pub dies_after: Option<usize>,
    /// When a sync with this ref was asked. The first of a connection counts from its beginning:
    /// the gateway asks the router for the heads when the device signs in, beside the sync.
    syncs: BTreeMap<u64, u64>,
    connected_at: u64,
    /// The earliest question that was answered with this head.
    pub asked: BTreeMap<(u64, u64), u64>,
    /// Planted: which numbers of which sender were put on a connection.
    put: BTreeSet<(u64, u64, u64)>,
    /// Everything it ever numbered.
    pub sent: Vec<Numbered>,
    /// What it was told to be left out and what of it came.
    pub holes: BTreeMap<u64, Vec<(u64, u64)>>,
}

impl Device {
    pub fn new(user: u64, device: u64, format: Format, mode: Mode, random: Random) -> Device {
        Device {
            user,
            device,
            format,
            mode,
            random,
            core: None,
            disk: Saved::default(),
            unsynced: Vec::new(),
            backup: None,
            was_restored: false,
            connection: None,
            life: 0,
            skew: 0,
            attempt: 0,
            tick_at: None,
            dies_after: None,
            syncs: BTreeMap::new(),
            connected_at: 0,
            asked: BTreeMap::new(),
            put: BTreeSet::new(),
            sent: Vec::new(),
            holes: BTreeMap::new(),
        }
    }

    pub fn is_attempt(&self, life: u64, attempt: u64) -> bool {
        self.life == life && self.attempt == attempt && self.core.is_some()
    }

    /// Whether nothing of its outbox waits to be decided, on disk or on the way there.
    pub fn is_idle(&self) -> bool {
        self.unsynced.is_empty() && (self.disk.lanes.values()).all(|l| l.queue.is_empty())
    }
}

impl World {
    /// A device is switched on, with what its disk holds.
    pub fn boot(&mut self, d: usize) {
        let skew = self.draw_skew();
        let now = self.now.saturating_add_signed(skew);
        let device = &mut self.devices[d];
        if device.core.is_some() {
            return;
        }
        device.life += 1;
        device.skew = skew;
        let config = Config {
            format: device.format,
            mode: device.mode,
            page: [0, 5, 40][device.random.below(3) as usize],
            in_flight_per_conversation: [1, 5, 64][device.random.below(3) as usize],
            in_flight: [8, 256][device.random.below(2) as usize],
            ..Config::default()
        };
        let mut random = device.random.fork();
        let mut core =
            ClientCore::new(config, device.disk.clone(), Box::new(move || random.bits()));
        core.set_token(now, format!("{}/{}", device.user, device.device));
        core.start(now);
        device.core = Some(core);
        device.tick_at = None;
        device.syncs.clear();
        device.asked.clear();
        let (user, id) = (device.user, device.device);
        if device.life > 1 {
            self.record(history::DeviceReset {
                at: now,
                device: id,
            });
        }
        self.resume(d, user, id);
        self.act(d);
    }

    /// What a device has after a start.
    fn resume(&mut self, d: usize, user: u64, device: u64) {
        for founding in self.plan.conversations.clone() {
            let conversation = founding.id.0;
            let cursor = self.devices[d].disk.cursors.get(&conversation).cloned();
            let cursor = cursor.unwrap_or_default();
            self.devices[d]
                .holes
                .insert(conversation, cursor.holes.clone());
            self.record(history::Resumed {
                at: self.now,
                user,
                device,
                conversation,
                kept: cursor.have,
            });
            for (from, to) in cursor.holes {
                self.record_later(d, conversation, from, to);
            }
        }
    }

    /// A copy of a profile holds the history without having been shown it: nobody expects that.
    pub fn show_history(&mut self, d: usize) {
        let (at, user, device) = (self.now, self.devices[d].user, self.devices[d].device);
        for (conversation, cursor) in self.devices[d].disk.cursors.clone() {
            if cursor.have > 0 {
                self.record(history::Hidden {
                    at,
                    user,
                    device,
                    conversation,
                    from: 1,
                    to: cursor.have,
                });
            }
        }
    }

    pub fn record_later(&mut self, d: usize, conversation: u64, from: u64, to: u64) {
        let (user, device) = (self.devices[d].user, self.devices[d].device);
        self.record(history::Later {
            at: self.now,
            user,
            device,
            conversation,
            from,
            to,
        });
    }

    /// A device loses power: of what isn't synced a part from its beginning is left.
    pub fn device_dies(&mut self, d: usize) {
        let device = &mut self.devices[d];
        if device.core.take().is_none() {
            return;
        }
        device.dies_after = None;
        let left = device.random.below(device.unsynced.len() as u64 + 1) as usize;
        device.unsynced.truncate(left);
        self.restarted(history::Part::Client);
        self.sync_disk(d);
        if let Some(connection) = self.devices[d].connection {
            self.cut(connection, false);
        }
        let pause = self.random.between(10 * MS, 4 * SECOND);
        self.after(pause, Event::DeviceBoot(d));
    }

    /// Calls a device's core and does what comes of it.
    pub fn with_device<T>(
        &mut self,
        d: usize,
        call: impl FnOnce(&mut ClientCore, u64) -> T,
    ) -> Option<T> {
        let now = self.now.saturating_add_signed(self.devices[d].skew);
        let result = call(self.devices[d].core.as_mut()?, now);
        self.act(d);
        Some(result)
    }

    fn act(&mut self, d: usize) {
        let Some(core) = self.devices[d].core.as_mut() else {
            return;
        };
        let outputs = core.outputs();
        let life = self.devices[d].life;
        for output in outputs {
            if let Output::App(AppEvent::Message(event)) = &output
                && self.has(Bug::SavedBeforeShown)
            {
                let cursors = &mut self.devices[d].disk.cursors;
                cursors.entry(event.conversation).or_default().have = event.seq;
            }
            match &mut self.devices[d].dies_after {
                Some(0) => return self.device_dies(d),
                Some(left) => *left -= 1,
                None => {}
            }
            match output {
                Output::Persist(op) => {
                    let device = &mut self.devices[d];
                    if device.unsynced.is_empty() {
                        let delay = device.random.between(MS, 40 * MS);
                        self.after(delay, Event::DeviceSync { device: d, life });
                    }
                    self.devices[d].unsynced.push(op);
                    continue;
                }
                Output::Frame(_) if self.has(Bug::SentBeforeSaved) => {}
                // Everything before it must be on disk.
                _ => self.sync_disk(d),
            }
            self.do_output(d, output);
            if self.devices[d].life != life || self.devices[d].core.is_none() {
                return;
            }
        }
        let Some(next) = self.devices[d]
            .core
            .as_ref()
            .and_then(ClientCore::next_tick)
        else {
            return;
        };
        let next = next.saturating_add_signed(-self.devices[d].skew);
        if self.devices[d].tick_at.is_none_or(|at| next < at) {
            self.devices[d].tick_at = Some(next);
            self.at(next, Event::DeviceTick { device: d, life });
        }
    }

    fn do_output(&mut self, d: usize, output: Output) {
        let life = self.devices[d].life;
        match output {
            Output::Persist(_) => {}
            Output::Frame(mut frame) => {
                self.mistake_sends(d, &mut frame);
                let (now, device) = (self.now, &mut self.devices[d]);
                for command in &frame.commands {
                    if let Some(command::Command::Sync(_)) = &command.command {
                        let asked = match device.syncs.is_empty() {
                            true => device.connected_at,
                            false => now,
                        };
                        device.syncs.insert(command.r#ref, asked);
                    }
                }
                if let Some(connection) = device.connection {
                    let mut bytes = Vec::new();
                    encode_client_frame(device.format, &frame, &mut bytes);
                    self.write_up(connection, bytes);
                }
            }
            Output::App(event) => self.tell(d, event),
            Output::Connect { after } => {
                let device = &mut self.devices[d];
                device.attempt += 1;
                let attempt = device.attempt;
                self.after(
                    after + MS,
                    Event::Connect {
                        device: d,
                        life,
                        attempt,
                    },
                );
            }
            Output::Disconnect => {
                if let Some(connection) = self.devices[d].connection {
                    self.cut(connection, false);
                }
            }
            Output::NeedToken => {
                let token = format!("{}/{}", self.devices[d].user, self.devices[d].device);
                self.with_device(d, |core, now| core.set_token(now, token));
            }
            Output::GiveUp { .. } => {
                // The user wishes to go on: the app is started again a little later.
                self.device_dies(d);
            }
        }
    }

    /// Planted mistakes in what a device sends and keeps.
    fn mistake_sends(&mut self, d: usize, frame: &mut wire::ClientFrame) {
        let bug = self.options.bug;
        let again = matches!(bug, Some(Bug::NewIdEachTime | Bug::NeverSentAgain));
        if !again && bug != Some(Bug::ForgottenWhenSent) {
            return;
        }
        let device = &mut self.devices[d];
        frame.commands.retain_mut(|command| {
            let Some(command::Command::Send(send)) = &mut command.command else {
                return true;
            };
            let (conversation, counter, id) = (send.conversation, send.counter, send.id);
            if bug == Some(Bug::ForgottenWhenSent) {
                device.disk.apply(&PersistOp::Acked {
                    conversation,
                    counter,
                    id,
                    seq: 0,
                    at: 0,
                });
                return true;
            }
            let is_first = device.put.insert((conversation, send.sender, counter));
            if !is_first {
                send.id = id.wrapping_add(1);
            }
            is_first || bug == Some(Bug::NewIdEachTime)
        });
    }

    pub fn device_tick(&mut self, d: usize, life: u64) {
        if self.devices[d].life == life {
            self.devices[d].tick_at = None;
            self.with_device(d, |core, now| core.tick(now));
        }
    }

    pub fn device_syncs_disk(&mut self, d: usize, life: u64) {
        if self.devices[d].life == life {
            self.sync_disk(d);
        }
    }

    pub fn device_connected(&mut self, d: usize, connection: usize) {
        self.devices[d].connection = Some(connection);
        self.devices[d].syncs.clear();
        self.devices[d].connected_at = self.now;
        self.with_device(d, |core, now| core.connected(now));
    }

    pub fn device_disconnected(&mut self, d: usize, code: Option<u16>) {
        self.devices[d].connection = None;
        self.with_device(d, |core, now| core.disconnected(now, code));
    }

    /// A frame reaches a device.
    pub fn device_frame(&mut self, connection: usize, payload: &[u8]) {
        let d = self.connections[connection].device;
        if self.devices[d].connection != Some(connection) {
            return;
        }
        let frame = match decode_server_frame(self.devices[d].format, payload) {
            Ok(frame) => frame,
            Err(error) => {
                return self
                    .broken
                    .push(format!("a frame can't be read: {error:?}"));
            }
        };
        for update in &frame.updates {
            match &update.update {
                Some(update::Update::Ack(ack)) => self.record_ack(d, ack),
                Some(update::Update::Event(event)) if self.has(Bug::ShownAsTheyArrive) => {
                    self.record_event(d, event);
                }
                Some(update::Update::SyncPage(page)) => {
                    let have = self.devices[d]
                        .core
                        .as_ref()
                        .map_or(0, |c| c.have(page.conversation));
                    let to = page.visible_from.min(page.head + 1).saturating_sub(1);
                    if have < to {
                        self.record_hidden(d, page.conversation, have + 1, to);
                    }
                    let device = &mut self.devices[d];
                    if let Some(&asked) = device.syncs.get(&update.r#ref) {
                        let known = device.asked.entry((page.conversation, page.head));
                        known.or_insert(asked);
                    }
                }
                Some(update::Update::HistoryPage(page)) => {
                    let mut next = page.from;
                    for event in &page.events {
                        if next < event.seq {
                            self.record_hidden(d, page.conversation, next, event.seq - 1);
                        }
                        next = event.seq + 1;
                    }
                    if next <= page.to {
                        self.record_hidden(d, page.conversation, next, page.to);
                    }
                }
                _ => {}
            }
        }
        self.with_device(d, |core, now| core.frame(now, frame));
    }

    // What a user does.

    /// Every device writes wherever it may.
    pub fn write_everywhere(&mut self) {
        for d in 0..self.devices.len() {
            for founding in self.plan.conversations.clone() {
                let user = UserId(self.devices[d].user);
                if self.directory.role(founding.id, user).may_write() {
                    self.write_to(d, founding.id);
                }
            }
        }
    }

    fn write_to(&mut self, d: usize, id: ConversationId) {
        self.written += 1;
        let long = self.random.permille(40);
        let text = format!("message {} ", self.written).repeat(if long { 120 } else { 1 });
        let body = Bytes::from(text);
        self.with_device(d, |core, now| core.send(now, id.0, Kind::Text, body));
    }

    /// Somebody writes where they may.
    pub fn write(&mut self) {
        let on: Vec<usize> = (0..self.devices.len())
            .filter(|&d| self.devices[d].core.is_some())
            .collect();
        for _ in 0..20 {
            let Some(d) = self.random.pick(&on) else {
                break;
            };
            let room = self.random.below(self.plan.conversations.len() as u64) as usize;
            let founding = &self.plan.conversations[room];
            let (id, is_quiet) = (founding.id, self.now >= founding.quiet_from);
            let user = UserId(self.devices[d].user);
            if is_quiet && !self.healing {
                continue;
            }
            if self.directory.role(id, user).may_write() {
                return self.write_to(d, id);
            }
        }
        // Nobody is there who may: later.
        if self.now < crate::world::START + 2 * crate::setup::FAULTS_FOR {
            self.after(SECOND, Event::Write);
        }
    }

    /// Somebody reads, types, or looks at older messages.
    pub fn act_as_user(&mut self) {
        let d = self.random.below(self.devices.len() as u64) as usize;
        let room = self.random.below(self.plan.conversations.len() as u64) as usize;
        let id = self.plan.conversations[room].id;
        let what = self.random.below(10);
        match what {
            0 => _ = self.with_device(d, |core, now| core.typing(now, id.0, true)),
            1..3 => self.fetch_older(d, id),
            _ => {
                self.with_device(d, |core, now| {
                    let have = core.have(id.0);
                    core.mark_read(now, id.0, have);
                });
            }
        }
    }

    /// Asks for the newest part of what was left out.
    pub fn fetch_older(&mut self, d: usize, conversation: ConversationId) {
        let holes = self.devices[d].holes.get(&conversation.0);
        if let Some(&(_, to)) = holes.and_then(|holes| holes.last()) {
            self.with_device(d, |core, now| core.fetch_older(now, conversation.0, to + 1));
        }
    }
}
