//! Devices of one user, their connections, and everything that can go wrong.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use tidings_client::{AppEvent, ClientCore, Config, LocalId, Mode, Output, Saved};
use tidings_protocol::wire::{
    Ack, ClientFrame, Command, Error, Event, Heads, Hello, Kind, Limits, Ready, Role, ServerFrame,
    Update as Envelope, command, update::Update,
};
use tidings_protocol::{
    Format, decode_client_frame, decode_server_frame, encode_client_frame, encode_server_frame,
};

use super::Random;
use super::server::{CONVERSATION, ME, OTHER, Server, send_of};

/// What may happen in a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Connections end; their sends may be appended later.
    pub cut: bool,
    /// Updates get lost; answers come again, in any order.
    pub answers: bool,
    /// Processes are killed, between any two outputs.
    pub crash: bool,
    /// The user is removed and comes back.
    pub members: bool,
    /// A backup of the device is taken and restored.
    pub restore: bool,
    /// Two copies of the device live at once.
    pub clone: bool,
    /// Gateways refuse, for good or for now.
    pub refuse: bool,
}

struct Connection {
    device: usize,
    /// Commands on their way to the gateway; they arrive also after the connection's end.
    up: VecDeque<Command>,
    down: VecDeque<Envelope>,
    alive: bool,
    ready: bool,
}

/// What a device was told of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Sent,
    Failed,
    Unknown,
}

struct Device {
    core: ClientCore,
    saved: Saved,
    connection: Option<usize>,
    connect_at: Option<u64>,
    /// The app's last seq by conversation.
    seen: BTreeMap<u64, u64>,
}

pub struct World {
    pub server: Server,
    pub now: u64,
    pub copies_noticed: usize,
    random: Random,
    faults: Faults,
    format: Format,
    mode: Mode,
    devices: Vec<Device>,
    connections: Vec<Connection>,
    /// Everything ever answered, by device.
    answers: Vec<(usize, Ack)>,
    backup: Option<Saved>,
    /// By the message's text.
    fates: BTreeMap<String, Vec<Fate>>,
    /// The texts of a device's messages, by local id (a copy shares what was queued before).
    texts: BTreeMap<(usize, u64), String>,
    /// Ids that two live copies of an outbox hold.
    shared: BTreeSet<u64>,
    written: usize,
}

impl World {
    pub fn new(seed: u64, faults: Faults, format: Format, mode: Mode) -> Self {
        let mut world = World {
            server: Server::new(2),
            now: 1_000_000_000,
            copies_noticed: 0,
            random: Random(seed),
            faults,
            format,
            mode,
            devices: Vec::new(),
            connections: Vec::new(),
            answers: Vec::new(),
            backup: None,
            fates: BTreeMap::new(),
            texts: BTreeMap::new(),
            shared: BTreeSet::new(),
            written: 0,
        };
        world.boot(None, Saved::default());
        world
    }

    /// Starts a device (again) from what was saved.
    fn boot(&mut self, place: Option<usize>, saved: Saved) {
        let config = Config {
            format: self.format,
            mode: self.mode,
            in_flight_per_conversation: 5,
            in_flight: 8,
            ..Config::default()
        };
        let mut random = Random(self.random.next());
        let mut core = ClientCore::new(config, saved.clone(), Box::new(move || random.next()));
        core.set_token(self.now, "token".into());
        core.start(self.now);
        let seen = saved.cursors.iter().map(|(&c, k)| (c, k.have)).collect();
        let device = Device {
            core,
            saved,
            connection: None,
            connect_at: None,
            seen,
        };
        let place = match place {
            Some(place) => {
                self.cut(place, false);
                self.devices[place] = device;
                place
            }
            None => {
                self.devices.push(device);
                self.devices.len() - 1
            }
        };
        self.act(place, usize::MAX);
    }

    /// Acts on the first `most` outputs; the process dies before the others.
    fn act(&mut self, d: usize, most: usize) {
        let outputs = self.devices[d].core.outputs();
        for output in outputs.into_iter().take(most) {
            match output {
                Output::Persist(op) => self.devices[d].saved.apply(&op),
                Output::Frame(frame) => self.carry_up(d, &frame),
                Output::App(event) => self.tell(d, event),
                Output::Connect { after } => {
                    self.devices[d].connect_at = Some(self.now + after);
                }
                Output::Disconnect => self.cut(d, false),
                Output::NeedToken => panic!("the token never ends here"),
                Output::GiveUp { code } => panic!("gave up after {code}"),
            }
        }
        if most == usize::MAX {
            let snapshot = self.devices[d].core.snapshot();
            assert_eq!(
                self.devices[d].saved, snapshot,
                "persisted operations are the state"
            );
        }
    }

    fn carry_up(&mut self, d: usize, frame: &ClientFrame) {
        let mut bytes = Vec::new();
        encode_client_frame(self.format, frame, &mut bytes);
        let frame = decode_client_frame(self.format, &bytes).expect("a frame of our own");
        if let Some(c) = self.devices[d].connection {
            self.connections[c].up.extend(frame.commands);
        }
    }

    fn tell(&mut self, d: usize, event: AppEvent) {
        match event {
            AppEvent::Message(event) | AppEvent::Members(event) => {
                let seen = self.devices[d].seen.entry(event.conversation).or_default();
                if self.mode == Mode::Complete {
                    assert_eq!(event.seq, *seen + 1, "every seq once and in order");
                } else {
                    assert!(event.seq > *seen, "no seq twice, none out of order");
                }
                *seen = event.seq;
                let real = &self.server.conversations[&event.conversation].events;
                let real = &real[event.seq as usize - 1];
                assert_eq!(
                    event, *real,
                    "the event of that seq, also when filled in from an ack"
                );
            }
            AppEvent::Sent {
                conversation,
                local,
                seq,
                ..
            } => {
                let text = self.fate(d, local, Fate::Sent);
                let at = self.accepted(&text);
                assert!(!at.is_empty(), "told sent, but {text} isn't accepted");
                assert!(
                    seq == 0 || at.contains(&(conversation, seq)),
                    "{text} has another seq"
                );
            }
            AppEvent::Failed { local, .. } => {
                let text = self.fate(d, local, Fate::Failed);
                // One copy of an outbox may have failed what the other one got through.
                let shared = self.faults.clone;
                assert!(
                    shared || self.accepted(&text).is_empty(),
                    "told failed, but {text} is accepted"
                );
            }
            AppEvent::Unknown { local, .. } => {
                self.fate(d, local, Fate::Unknown);
            }
            AppEvent::CopyNoticed { .. } => self.copies_noticed += 1,
            _ => {}
        }
    }

    fn fate(&mut self, d: usize, local: LocalId, fate: Fate) -> String {
        let text = self.texts[&(d, local.0)].clone();
        self.fates.entry(text.clone()).or_default().push(fate);
        text
    }

    /// Where this text was accepted.
    fn accepted(&self, text: &str) -> Vec<(u64, u64)> {
        let all = self.server.conversations.iter().flat_map(|(&c, k)| {
            k.events
                .iter()
                .filter(|e| e.body == text.as_bytes())
                .map(move |e| (c, e.seq))
        });
        all.collect()
    }

    fn cut(&mut self, d: usize, tell: bool) {
        if let Some(c) = self.devices[d].connection.take() {
            self.connections[c].alive = false;
            self.connections[c].down.clear();
            if tell {
                self.devices[d].core.disconnected(self.now, None);
                self.act(d, usize::MAX);
            }
        }
    }

    fn connect(&mut self, d: usize) {
        self.devices[d].connect_at = None;
        let (up, down) = (VecDeque::new(), VecDeque::new());
        self.connections.push(Connection {
            device: d,
            up,
            down,
            alive: true,
            ready: false,
        });
        let c = self.connections.len() - 1;
        self.devices[d].connection = Some(c);
        let limits = Limits {
            commands_per_frame_max: 3,
            page_max: 50,
            ..Limits::default()
        };
        let hello = Hello {
            heartbeat_ms: 25_000,
            limits: Some(limits),
            ..Hello::default()
        };
        self.push(c, 0, Update::Hello(hello));
        self.devices[d].core.connected(self.now);
        self.act(d, usize::MAX);
    }

    fn push(&mut self, c: usize, r#ref: u64, update: Update) {
        if self.connections[c].alive {
            self.connections[c].down.push_back(Envelope {
                r#ref,
                update: Some(update),
            });
        }
    }

    fn fan_out(&mut self, event: &Event, but: Option<usize>) {
        let named = |m: &tidings_protocol::wire::Members| m.changes.iter().any(|k| k.user == ME);
        let member = self.server.conversations[&event.conversation]
            .grants
            .contains_key(&ME);
        if member || event.members.as_ref().is_some_and(named) {
            for c in 0..self.connections.len() {
                if self.connections[c].ready && Some(c) != but {
                    self.push(c, 0, Update::Event(event.clone()));
                }
            }
        }
    }

    /// The gateway takes the next command of a connection, living or dead.
    fn serve(&mut self, c: usize, refuse: bool) {
        let Some(command) = self.connections[c].up.pop_front() else {
            return;
        };
        self.server.now = self.now;
        let device = self.connections[c].device;
        if let Some(send) = send_of(&command) {
            if refuse {
                let for_good = self.random.below(2) == 0 && send.kind != i32::from(Kind::Empty);
                let (code, after) = if for_good {
                    ("refused", 0)
                } else {
                    ("rate_limited", 500)
                };
                let error = Error {
                    code: code.into(),
                    retry_after_ms: after,
                    conversation: send.conversation,
                    sender: send.sender,
                    counter: send.counter,
                    ..Error::default()
                };
                self.push(c, command.r#ref, Update::Error(error));
                return;
            }
            let (ack, event) = self.server.append(ME, send);
            self.answers.push((device, ack));
            self.push(c, 0, Update::Ack(ack));
            if let Some(event) = event {
                self.fan_out(&event, Some(c));
            }
            return;
        }
        if !self.connections[c].alive {
            return;
        }
        match command.command {
            Some(command::Command::Auth(_)) => {
                self.connections[c].ready = true;
                let ready = Ready {
                    user: ME,
                    device: 1,
                    session: 1,
                    epoch: 1,
                    ..Ready::default()
                };
                self.push(c, command.r#ref, Update::Ready(ready));
            }
            Some(command::Command::Sync(sync)) => {
                for update in self.server.sync(ME, &sync) {
                    self.push(c, command.r#ref, update);
                }
            }
            Some(command::Command::History(ask)) => {
                let page = self.server.history(ME, &ask);
                self.push(c, command.r#ref, Update::HistoryPage(page));
            }
            Some(command::Command::Ping(_)) => {
                let heads = Heads {
                    heads: self.server.heads(ME),
                };
                self.push(c, command.r#ref, Update::Heads(heads));
            }
            _ => {}
        }
    }

    fn deliver(&mut self, c: usize, most: usize) {
        let Some(update) = self.connections[c].down.pop_front() else {
            return;
        };
        let frame = ServerFrame {
            updates: vec![update],
        };
        let mut bytes = Vec::new();
        encode_server_frame(self.format, &frame, &mut bytes);
        let frame = decode_server_frame(self.format, &bytes).expect("a frame of the server");
        let d = self.connections[c].device;
        self.devices[d].core.frame(self.now, frame);
        self.act(d, most);
    }

    fn write(&mut self, d: usize) {
        self.written += 1;
        let text = format!("text {} of device {d}", self.written);
        let conversation = CONVERSATION + self.random.below(2);
        let body = Bytes::from(text.clone().into_bytes());
        let local = self.devices[d]
            .core
            .send(self.now, conversation, Kind::Text, body);
        let local = local.expect("room in the outbox");
        self.texts.insert((d, local.0), text);
        self.act(d, usize::MAX);
    }

    fn forget_texts(&mut self, d: usize) {
        // A restored device numbers its messages anew from where the backup was.
        let last = self.devices[d].saved.last_local;
        self.texts
            .retain(|&(device, local), _| device != d || local <= last);
    }

    fn tick(&mut self, d: usize) {
        if let Some(at) = self.devices[d].connect_at {
            self.now = self.now.max(at);
            self.connect(d);
        } else if let Some(at) = self.devices[d].core.next_tick() {
            self.now = self.now.max(at);
            self.devices[d].core.tick(self.now);
            self.act(d, usize::MAX);
        }
    }

    /// One step of a run with faults.
    pub fn step(&mut self) {
        let d = self.random.below(self.devices.len() as u64) as usize;
        let f = self.faults;
        match self.random.below(100) {
            0..8 if self.written < 24 => self.write(d),
            0..34 => {
                let open: Vec<usize> = (0..self.connections.len())
                    .filter(|&c| !self.connections[c].up.is_empty())
                    .collect();
                if !open.is_empty() {
                    let c = open[self.random.below(open.len() as u64) as usize];
                    let refuse = f.refuse && self.random.below(12) == 0;
                    self.serve(c, refuse);
                }
            }
            34..60 => {
                if let Some(c) = self.devices[d].connection {
                    if f.answers && self.random.below(10) == 0 {
                        self.connections[c].down.pop_front();
                    } else {
                        self.deliver(c, usize::MAX);
                    }
                }
            }
            60..72 => self.tick(d),
            72..76 => {
                let conversation = CONVERSATION + self.random.below(2);
                self.other_writes(conversation);
            }
            76..80 if f.cut => self.cut(d, true),
            80..86 if f.answers => {
                let mine: Vec<Ack> = self
                    .answers
                    .iter()
                    .filter(|a| a.0 == d)
                    .map(|a| a.1)
                    .collect();
                if let (Some(c), 1..) = (self.devices[d].connection, mine.len()) {
                    let ack = mine[self.random.below(mine.len() as u64) as usize];
                    self.push(c, 0, Update::Ack(ack));
                }
            }
            86..89 if f.members => {
                let conversation = CONVERSATION + self.random.below(2);
                let in_it = self.server.conversations[&conversation]
                    .grants
                    .contains_key(&ME);
                let role = if in_it { Role::None } else { Role::Member };
                if let Some(event) = self.server.members(conversation, &[(ME, role)]) {
                    self.fan_out(&event, None);
                }
            }
            89..92 if f.crash => {
                if let Some(c) = self.devices[d].connection {
                    let most = self.random.below(4) as usize;
                    self.deliver(c, most);
                }
                let saved = self.devices[d].saved.clone();
                self.boot(Some(d), saved);
            }
            92..94 if f.restore => match self.backup.take() {
                None => self.backup = Some(self.devices[0].saved.clone()),
                Some(saved) => {
                    // What the later life was told of a message that the backup still holds
                    // undecided was told to an app that isn't there any more.
                    for message in saved.lanes.values().flat_map(|l| &l.queue) {
                        let text = &self.texts[&(0, message.local)];
                        self.fates.remove(text);
                    }
                    self.boot(Some(0), saved);
                    self.forget_texts(0);
                }
            },
            94..95 if f.clone && self.devices.len() < 2 => {
                let saved = self.devices[0].saved.clone();
                for lane in saved.lanes.values() {
                    self.shared.extend(lane.queue.iter().map(|m| m.id));
                }
                let known: Vec<(u64, String)> = (self.texts.iter())
                    .filter(|(k, _)| k.0 == 0)
                    .map(|(k, text)| (k.1, text.clone()))
                    .collect();
                let new = self.devices.len();
                for (local, text) in known {
                    self.texts.insert((new, local), text);
                }
                self.boot(None, saved);
            }
            _ => self.now += self.random.below(400_000),
        }
    }

    fn other_writes(&mut self, conversation: u64) {
        let c = &self.server.conversations[&conversation];
        let grant = c.grants[&OTHER];
        let row = c.senders.get(&(OTHER, 7)).copied().unwrap_or_default();
        let send = tidings_protocol::wire::Send {
            conversation,
            sender: 7,
            grant,
            counter: row.1 + 1,
            id: self.random.next(),
            previous: row.2,
            body: Bytes::from_static(b"hello"),
            ..Default::default()
        };
        let (_, event) = self.server.append(OTHER, &send);
        let event = event.expect("the other one's messages are in order");
        self.fan_out(&event, None);
    }

    /// Faults end: the user is a member, everything on its way arrives, time goes on.
    pub fn settle(&mut self) {
        let ids: Vec<u64> = self.server.conversations.keys().copied().collect();
        for id in ids {
            if let Some(event) = self.server.members(id, &[(ME, Role::Member)]) {
                self.fan_out(&event, None);
            }
        }
        for _ in 0..2_000 {
            for c in 0..self.connections.len() {
                while !self.connections[c].up.is_empty() {
                    self.serve(c, false);
                }
                while !self.connections[c].down.is_empty() {
                    self.deliver(c, usize::MAX);
                }
            }
            let quiet = self
                .connections
                .iter()
                .all(|c| c.up.is_empty() && c.down.is_empty());
            if quiet && self.settled() {
                return;
            }
            let next = |d: &usize| {
                let device = &self.devices[*d];
                device
                    .connect_at
                    .or(device.core.next_tick())
                    .unwrap_or(u64::MAX)
            };
            if let Some(d) = (0..self.devices.len()).min_by_key(next) {
                self.tick(d);
            }
        }
        panic!(
            "stuck: {:?}",
            self.devices
                .iter()
                .map(|d| d.core.snapshot().lanes)
                .collect::<Vec<_>>()
        );
    }

    fn settled(&self) -> bool {
        self.devices.iter().all(|d| {
            let all = |(&id, c): (&u64, &super::Conversation)| {
                d.seen.get(&id).copied() == Some(c.events.len() as u64)
            };
            d.core.outbox_len() == 0
                && d.core.snapshot().lanes.values().all(|l| l.queue.is_empty())
                && self.server.conversations.iter().all(all)
        })
    }

    /// What must hold of the whole run.
    pub fn judge(&self) {
        let mut ids = BTreeMap::new();
        for (&c, conversation) in &self.server.conversations {
            for event in conversation.events.iter().filter(|e| e.user == ME) {
                let text = String::from_utf8_lossy(&event.body).into_owned();
                let before = ids.insert(event.id, (c, event.seq));
                assert!(
                    before.is_none() || self.shared.contains(&event.id),
                    "{text} under two seqs, {before:?} and {:?}",
                    (c, event.seq)
                );
            }
        }
        for (text, fates) in &self.fates {
            let there = !self.accepted(text).is_empty();
            for fate in fates {
                match fate {
                    Fate::Sent => assert!(there, "told sent, but {text} isn't accepted"),
                    // One copy of an outbox may have failed what the other one got through.
                    Fate::Failed if self.faults.clone => {}
                    Fate::Failed => assert!(!there, "told failed, but {text} is accepted"),
                    Fate::Unknown => panic!("nothing is hidden here, so {text} can be known"),
                }
            }
        }
        for text in self.texts.values() {
            assert!(self.fates.contains_key(text), "{text} was never decided");
        }
    }
}
