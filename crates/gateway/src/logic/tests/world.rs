//! A core in a scripted outside. Messages wait in `inbox` until the test lets them through.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tidings_core::ids::{ConversationId, GatewayId, MessageKey, SenderId, Seq, SessionId, UserId};
use tidings_core::ports::directory::direct_conversation;
use tidings_core::record::{Content, ConversationKind, Encoding, Kind, Record, Role};
use tidings_protocol::wire::{self, command::Command, update::Update};
use tidings_protocol::{CloseCode, Format, decode_server_frame, encode_client_frame};

use super::super::{GatewayCore, GatewayMetrics, Settings, Slot};
use crate::ws::Opcode;

use super::outside::{Input, Outside, SECOND, START, Socket};

/// The core in its outside.
pub struct World {
    pub core: GatewayCore,
    pub out: Outside,
    next_slot: Slot,
    counters: HashMap<(Slot, u64), (u64, u64)>,
}

impl World {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::new(GatewayId(7), 4);
        settings.session_base = 1_000;
        change(&mut settings);
        let out = Outside {
            now: START,
            expires_in: 3600 * SECOND,
            queue_max: 64 << 10,
            ..Outside::default()
        };
        let core = GatewayCore::new(settings, Arc::new(GatewayMetrics::default()));
        World {
            core,
            out,
            next_slot: 0,
            counters: HashMap::new(),
        }
    }

    /// A new connection, not authenticated.
    pub fn connect(&mut self, format: Format) -> Slot {
        let slot = self.next_slot;
        self.next_slot += 1;
        let socket = Socket {
            session: SessionId(0),
            format,
            frames: Vec::new(),
            closed: None,
            heard: self.out.now,
            pings: 0,
            queued: 0,
            is_blocked: false,
            waiting: Vec::new(),
            is_overflowed: false,
        };
        self.out.sockets.insert(slot, socket);
        let session = self.core.opened(&mut self.out, slot, format);
        self.socket(slot).session = session;
        slot
    }

    /// A session of a user's device, authenticated; its conversations opened.
    pub fn login(&mut self, user: u64, device: u64) -> Slot {
        self.login_as(Format::Proto, user, device)
    }

    pub fn login_as(&mut self, format: Format, user: u64, device: u64) -> Slot {
        let slot = self.connect(format);
        self.auth(slot, &format!("{user}/{device}"));
        self.settle();
        slot
    }

    /// A session that has said `auth`; nothing has been answered.
    pub fn connect_and_auth(&mut self, user: u64) -> Slot {
        let slot = self.connect(Format::Proto);
        self.auth(slot, &format!("{user}/{}", user * 10));
        slot
    }

    /// A session that has synced from nothing.
    pub fn online(&mut self, user: u64) -> Slot {
        let slot = self.login(user, user * 10);
        self.sync(slot, &[]);
        self.settle();
        self.take(slot);
        slot
    }

    pub fn auth(&mut self, slot: Slot, token: &str) {
        let auth = wire::Auth {
            token: token.to_owned(),
            device: "test".to_owned(),
            version: tidings_protocol::VERSION,
            oldest: 0,
        };
        self.command(slot, 1, Command::Auth(auth));
    }

    pub fn sync(&mut self, slot: Slot, cursors: &[(ConversationId, Seq)]) {
        let cursors = cursors
            .iter()
            .map(|&(c, seq)| wire::Cursor {
                conversation: c.0,
                seq,
            })
            .collect();
        self.command(
            slot,
            2,
            Command::Sync(wire::Sync {
                epoch: 1,
                cursors,
                page: 0,
            }),
        );
    }

    pub fn delivered(&mut self, slot: Slot, conversation: ConversationId, seq: Seq) {
        self.command(
            slot,
            0,
            Command::Delivered(wire::Delivered {
                conversation: conversation.0,
                seq,
            }),
        );
    }

    pub fn command(&mut self, slot: Slot, r#ref: u64, command: Command) {
        self.commands(
            slot,
            vec![wire::Command {
                r#ref,
                command: Some(command),
            }],
        );
    }

    pub fn commands(&mut self, slot: Slot, commands: Vec<wire::Command>) {
        let format = self.socket(slot).format;
        self.socket(slot).heard = self.out.now;
        let mut payload = Vec::new();
        encode_client_frame(format, &wire::ClientFrame { commands }, &mut payload);
        let opcode = if format == Format::Json {
            Opcode::Text
        } else {
            Opcode::Binary
        };
        self.core.message(&mut self.out, slot, opcode, &payload);
        self.core.turn_end(&mut self.out);
    }

    /// The next send of a session's own outbox, under grant 1.
    pub fn next_send(&mut self, slot: Slot, conversation: ConversationId) -> wire::Send {
        let (counter, previous) = *self
            .counters
            .get(&(slot, conversation.0))
            .unwrap_or(&(0, 0));
        let id = (conversation.0 << 40) + (u64::from(slot) << 20) + counter + 1;
        self.counters
            .insert((slot, conversation.0), (counter + 1, id));
        wire::Send {
            conversation: conversation.0,
            sender: 500 + u64::from(slot),
            grant: 1,
            counter: counter + 1,
            id,
            previous,
            kind: wire::Kind::Text.into(),
            body: format!("message {}", counter + 1).into(),
            encoding: 0,
        }
    }

    pub fn send(&mut self, slot: Slot, conversation: ConversationId) {
        let send = self.next_send(slot, conversation);
        self.command(slot, 0, Command::Send(send));
    }

    /// A message of somebody on another gateway.
    pub fn send_elsewhere(&mut self, user: u64, conversation: ConversationId) {
        let (counter, previous) = *self
            .counters
            .get(&(Slot::MAX, conversation.0))
            .unwrap_or(&(0, 0));
        let id = (conversation.0 << 40) + (1 << 39) + counter + 1;
        self.counters
            .insert((Slot::MAX, conversation.0), (counter + 1, id));
        let send = tidings_core::record::Send {
            user: UserId(user),
            sender: SenderId(9),
            grant: 1,
            counter: counter + 1,
            id: MessageKey(id),
            previous: MessageKey(previous),
            once: false,
            kind: Kind::Text,
            encoding: Encoding::Identity,
            body: Bytes::from_static(b"from afar"),
            origin: tidings_core::record::Origin {
                gateway: GatewayId(99),
                session: SessionId(0),
            },
            taken: 0,
        };
        let mut payload = Vec::new();
        Record {
            conversation,
            content: Content::Send(send),
        }
        .encode(&mut payload);
        self.out.route(&payload.into());
    }

    /// Lets one waiting input through.
    pub fn step(&mut self) -> bool {
        let Some(input) = self.out.inbox.pop_front() else {
            return false;
        };
        let (core, out) = (&mut self.core, &mut self.out);
        match input {
            Input::Router(message) => core.from_router(out, message),
            Input::Appended(batch, result) => core.appended(out, batch, result),
            Input::Loaded(user, list) => core.user_loaded(out, user, list),
            Input::Read(request, conversation, from, to) => {
                let result = if out.is_store_down {
                    Err(tidings_core::ports::store::StoreError::Unavailable(
                        "down".to_owned(),
                    ))
                } else {
                    let room = out.rooms.entry(conversation).or_default();
                    let stored = &room.events[..room.stored];
                    Ok(stored
                        .iter()
                        .filter(|r| r.seq >= from && r.seq <= to)
                        .map(|r| (**r).clone())
                        .collect())
                };
                core.events_read(out, request, result);
            }
            Input::Authenticated(session, result) => core.authenticated(out, session, result),
            Input::Overflow(slot) => {
                out.sockets.get_mut(&slot).expect("a socket").is_overflowed = false;
                core.overflow(out, slot);
            }
            Input::Drained(slot) => core.drained(out, slot),
            Input::Closed(slot) => core.closed(out, slot),
        }
        core.turn_end(out);
        true
    }

    /// Lets everything through until nothing is left.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.step() {
                if !self.core.wants_turn() {
                    return;
                }
                self.core.turn_start(&mut self.out);
                self.core.turn_end(&mut self.out);
            }
        }
        panic!("it never ends");
    }

    /// Seconds pass, each with its tick.
    pub fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.out.now += SECOND;
            self.core.tick(&mut self.out);
            self.settle();
        }
    }

    pub fn hang_up(&mut self, slot: Slot) {
        self.core.closed(&mut self.out, slot);
        self.out.sockets.remove(&slot);
    }

    /// The socket takes what waits, and everything from now on.
    pub fn unblock(&mut self, slot: Slot) {
        let socket = self.socket(slot);
        if std::mem::take(&mut socket.is_blocked) {
            socket.queued = 0;
            let waiting = std::mem::take(&mut socket.waiting);
            socket.frames.extend(waiting);
            self.out.inbox.push_back(Input::Drained(slot));
        }
    }

    pub fn socket(&mut self, slot: Slot) -> &mut Socket {
        self.out.sockets.get_mut(&slot).expect("a socket")
    }

    /// The updates that a socket was sent since the last call.
    pub fn take(&mut self, slot: Slot) -> Vec<Update> {
        self.take_updates(slot)
            .into_iter()
            .filter_map(|u| u.update)
            .collect()
    }

    pub fn take_updates(&mut self, slot: Slot) -> Vec<wire::Update> {
        let socket = self.socket(slot);
        let mut updates = Vec::new();
        for frame in std::mem::take(&mut socket.frames) {
            let mut rest = &frame[..];
            while !rest.is_empty() {
                let (opcode, payload, after) = split_frame(rest);
                rest = after;
                match opcode {
                    9 => socket.pings += 1,
                    1 | 2 => {
                        let frame =
                            decode_server_frame(socket.format, payload).expect("a frame of ours");
                        updates.extend(frame.updates);
                    }
                    other => panic!("opcode {other}"),
                }
            }
        }
        updates
    }

    pub fn closed(&mut self, slot: Slot) -> Option<CloseCode> {
        self.socket(slot).closed
    }

    /// A conversation with these members.
    pub fn room(&mut self, id: u64, members: &[u64]) -> ConversationId {
        let id = ConversationId(id);
        let changes: Vec<(u64, Role)> = members.iter().map(|&user| (user, Role::Member)).collect();
        self.out.change(id, &changes);
        self.settle();
        id
    }

    /// The direct conversation of two users.
    pub fn direct(&mut self, one: u64, other: u64) -> ConversationId {
        let id = direct_conversation(UserId(one), UserId(other)).conversation;
        let changes = [(one, Role::Member), (other, Role::Member)];
        self.out.change_of(ConversationKind::Direct, id, &changes);
        self.settle();
        id
    }

    /// A user blocks another or no longer does: in the directory, and told to the gateway.
    pub fn block(&mut self, user: u64, other: u64, is_blocked: bool) {
        let pair = (UserId(user), UserId(other));
        self.out.blocks.retain(|p| *p != pair);
        if is_blocked {
            self.out.blocks.push(pair);
        }
        self.core
            .block_changed(&mut self.out, pair.0, pair.1, is_blocked);
        self.core.turn_end(&mut self.out);
    }

    pub fn metric(&self, of: impl Fn(&GatewayMetrics) -> &std::sync::atomic::AtomicU64) -> u64 {
        of(self.core.metrics()).load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Opcode, payload and what follows of the first WebSocket frame.
fn split_frame(bytes: &[u8]) -> (u8, &[u8], &[u8]) {
    let (head, len) = match bytes[1] {
        126 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
        127 => (
            10,
            u64::from_be_bytes(bytes[2..10].try_into().expect("8 bytes")) as usize,
        ),
        len => (2, usize::from(len)),
    };
    (
        bytes[0] & 15,
        &bytes[head..head + len],
        &bytes[head + len..],
    )
}

/// The seqs of the events among updates, live or on sync pages, as a client would see them.
pub fn seqs(updates: &[Update], conversation: ConversationId) -> Vec<Seq> {
    let mut seqs = Vec::new();
    for update in updates {
        match update {
            Update::Event(event) if event.conversation == conversation.0 => seqs.push(event.seq),
            Update::SyncPage(page) if page.conversation == conversation.0 => {
                seqs.extend(page.events.iter().map(|e| e.seq));
            }
            _ => {}
        }
    }
    seqs
}

/// The codes of the errors among updates.
pub fn errors(updates: &[Update]) -> Vec<&str> {
    let mut codes = Vec::new();
    for update in updates {
        if let Update::Error(error) = update {
            codes.push(error.code.as_str());
        }
    }
    codes
}
