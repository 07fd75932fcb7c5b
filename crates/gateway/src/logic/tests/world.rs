//! A scripted outside: sockets that keep what they were sent, and one router with a log in
//! memory. Messages wait in `inbox` until the test lets them through.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tidings_core::ids::{
    ConversationId, DeviceId, GatewayId, MessageKey, Micros, Partition, Position, SenderId, Seq,
    SessionId, UserId,
};
use tidings_core::ports::directory::{SignInId, direct_conversation};
use tidings_core::ports::log::{Append, LogError};
use tidings_core::ports::peers::{Opened, ToGateway, ToRouter};
use tidings_core::ports::registry::{Mark, Presence, SessionEntry};
use tidings_core::record::{
    Content, ConversationKind, Encoding, Kind, Membership, Record, Role, RoleChange,
};
use tidings_core::rows::{
    Before, CursorRow, EventRow, GrantState, HeadState, MemberChange, MembersBody, SenderState,
};
use tidings_core::sequencer::{self, Verdict};
use tidings_protocol::wire::{self, command::Command, update::Update};
use tidings_protocol::{CloseCode, Format, decode_server_frame, encode_client_frame};

use super::super::{
    AuthFailure, GatewayCore, GatewayMetrics, Listed, Outbound, Principal, Settings, Slot,
};
use crate::ws::Opcode;

pub const SECOND: Micros = 1_000_000;
pub const START: Micros = 1_700_000_000 * SECOND;

/// A conversation as its router knows it.
#[derive(Default)]
pub struct Room {
    pub events: Vec<Arc<EventRow>>,
    pub grants: HashMap<UserId, GrantState>,
    senders: HashMap<(UserId, SenderId), SenderState>,
    head: HeadState,
    /// How many of the events the store has.
    pub stored: usize,
    is_wanted: bool,
}

/// One socket.
pub struct Socket {
    pub session: SessionId,
    pub format: Format,
    pub frames: Vec<Bytes>,
    pub closed: Option<CloseCode>,
    pub heard: Micros,
    pub pings: usize,
    pub queued: usize,
    /// The socket takes nothing: frames wait here.
    pub is_blocked: bool,
    waiting: Vec<Bytes>,
    is_overflowed: bool,
}

/// What the core is told next, in order.
pub enum Input {
    Router(ToGateway),
    Appended(u64, Result<(), LogError>),
    Loaded(UserId, Option<Listed>),
    Read(u64, ConversationId, Seq, Seq),
    Authenticated(SessionId, Result<Principal, AuthFailure>),
    Overflow(Slot),
    Drained(Slot),
    Closed(Slot),
}

/// Everything outside of the core.
#[derive(Default)]
pub struct Outside {
    pub now: Micros,
    pub sockets: BTreeMap<Slot, Socket>,
    pub rooms: BTreeMap<ConversationId, Room>,
    pub inbox: VecDeque<Input>,
    pub to_router: Vec<ToRouter>,
    pub appends: Vec<(u64, Vec<Append>)>,
    /// What the log says to the next append.
    pub log_fails: Option<LogError>,
    pub sessions: Vec<SessionEntry>,
    pub removed: Vec<SessionId>,
    pub marks: Vec<Mark>,
    pub watched: Vec<UserId>,
    pub presences: Vec<(u64, Vec<UserId>)>,
    pub is_store_down: bool,
    pub is_directory_down: bool,
    /// Who has blocked whom, as the directory has it.
    pub blocks: Vec<(UserId, UserId)>,
    pub reads: usize,
    pub is_router_deaf: bool,
    pub authentications: usize,
    pub expires_in: Micros,
    pub queue_max: usize,
    digest: u64,
}

impl Outbound for Outside {
    fn now(&self) -> Micros {
        self.now
    }

    fn send(&mut self, slot: Slot, frame: &Bytes) {
        let socket = self
            .sockets
            .get_mut(&slot)
            .expect("frames go to open sessions");
        if socket.closed.is_some() || socket.is_overflowed {
            return;
        }
        if socket.is_blocked {
            if socket.queued + frame.len() > self.queue_max {
                socket.queued = 0;
                socket.waiting.clear();
                socket.is_overflowed = true;
                self.inbox.push_back(Input::Overflow(slot));
                return;
            }
            socket.queued += frame.len();
            return socket.waiting.push(frame.clone());
        }
        socket.frames.push(frame.clone());
    }

    fn close(&mut self, slot: Slot, code: CloseCode) {
        if let Some(socket) = self.sockets.get_mut(&slot) {
            socket.closed.get_or_insert(code);
            self.inbox.push_back(Input::Closed(slot));
        }
    }

    fn admitted(&mut self, _slot: Slot) {}

    fn queued_bytes(&self, slot: Slot) -> usize {
        self.sockets.get(&slot).map_or(0, |s| s.queued)
    }

    fn heard(&self, slot: Slot) -> Micros {
        self.sockets.get(&slot).map_or(0, |s| s.heard)
    }

    fn append(&mut self, batch: u64, records: Vec<Append>) {
        self.appends.push((batch, records.clone()));
        if let Some(error) = self.log_fails.take() {
            return self.inbox.push_back(Input::Appended(batch, Err(error)));
        }
        self.inbox.push_back(Input::Appended(batch, Ok(())));
        for record in records {
            self.route(&record.payload);
        }
    }

    fn to_router(&mut self, _partition: Partition, message: ToRouter) {
        self.to_router.push(message.clone());
        if self.is_router_deaf {
            return;
        }
        let answer = match message {
            ToRouter::Open {
                request,
                user,
                conversations,
            } => {
                let states = conversations.iter().map(|&c| self.state(c, user)).collect();
                ToGateway::Opened {
                    request,
                    states,
                    later: Vec::new(),
                }
            }
            ToRouter::Close(conversations) => {
                for conversation in conversations {
                    self.rooms.entry(conversation).or_default().is_wanted = false;
                }
                return;
            }
            ToRouter::Tail {
                request,
                conversation,
                from,
            } => {
                // A router keeps what the store doesn't have, and nothing else for sure.
                let room = self.rooms.entry(conversation).or_default();
                let unstored = room.events[room.stored..].iter();
                let rows = unstored.filter(|row| row.seq >= from).cloned().collect();
                ToGateway::Tail { request, rows }
            }
            ToRouter::Typing {
                conversation,
                user,
                on,
            } => ToGateway::Typing {
                conversation,
                user,
                on,
            },
            ToRouter::Cursors(_) | ToRouter::FannedOut(_) => return,
            #[allow(unreachable_patterns)]
            _ => return,
        };
        self.inbox.push_back(Input::Router(answer));
    }

    fn authenticate(&mut self, session: SessionId, token: String, _device: String) {
        self.authentications += 1;
        // "user/device", or a word that fails.
        let principal = |(user, device): (&str, &str)| Principal {
            user: UserId(user.parse().expect("a number")),
            device: DeviceId(device.parse().expect("a number")),
            sign_in: SignInId(0),
            issued: self.now,
            expires: self.now + self.expires_in,
        };
        let result = match token.as_str() {
            "expired" => Err(AuthFailure::Expired),
            "revoked" => Err(AuthFailure::Revoked),
            token => token
                .split_once('/')
                .map(principal)
                .ok_or(AuthFailure::Invalid),
        };
        self.inbox.push_back(Input::Authenticated(session, result));
    }

    fn load_user(&mut self, user: UserId) {
        let is_member = |room: &Room| room.grants.get(&user).is_some_and(|g| g.role != Role::None);
        let list = self.rooms.iter().filter(|(_, room)| is_member(room));
        let blocks = self.blocks.iter().filter(|(blocker, _)| *blocker == user);
        let listed = Listed {
            conversations: list.map(|(&id, _)| id).collect(),
            blocked: blocks
                .map(|&(user, other)| direct_conversation(user, other).conversation)
                .collect(),
        };
        self.inbox.push_back(Input::Loaded(
            user,
            (!self.is_directory_down).then_some(listed),
        ));
    }

    fn members_changed(&mut self, _users: &mut dyn Iterator<Item = UserId>) {}

    fn read_events(
        &mut self,
        request: u64,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        _bytes_max: usize,
    ) {
        self.reads += 1;
        self.inbox
            .push_back(Input::Read(request, conversation, from, to));
    }

    fn put_session(&mut self, entry: SessionEntry, is_new: bool) {
        if is_new {
            self.sessions.push(entry);
        }
    }

    fn remove_session(&mut self, _user: UserId, session: SessionId, _at: Micros) {
        self.removed.push(session);
    }

    fn set_presence(&mut self, _user: UserId, _session: SessionId, _state: Presence) {}

    fn presence(&mut self, request: u64, _watcher: UserId, users: Vec<UserId>) {
        self.presences.push((request, users));
    }

    fn watch(&mut self, users: Vec<UserId>) {
        self.watched = users;
    }

    fn put_marks(&mut self, marks: Vec<Mark>) {
        self.marks.extend(marks);
    }

    fn cursors_moved(&mut self, cursors: &[CursorRow]) {
        self.marks.retain(|mark| {
            !cursors.iter().any(|c| {
                (c.user, c.conversation) == (mark.user, mark.conversation)
                    && c.delivered >= mark.seq
            })
        });
    }
}

impl Outside {
    pub fn state(&mut self, conversation: ConversationId, user: UserId) -> Opened {
        let room = self.rooms.entry(conversation).or_default();
        let grant = room.grants.get(&user).copied().unwrap_or_default();
        room.is_wanted |= grant.role != Role::None;
        let cursor = CursorRow {
            conversation,
            user,
            delivered: 0,
            read: 0,
        };
        Opened {
            conversation,
            head: room.head.seq,
            kind: room.head.kind,
            grant,
            cursor,
        }
    }

    /// The router's part for one record: decide, answer, fan out.
    pub fn route(&mut self, payload: &Bytes) {
        let record = Record::decode(payload).expect("what the core appends is whole");
        let conversation = record.conversation;
        let room = self.rooms.entry(conversation).or_default();
        match record.content {
            Content::Send(send) => {
                let key = (send.user, send.sender);
                let before = sequencer::Before {
                    head: room.head,
                    grant: room.grants.get(&send.user).copied().unwrap_or_default(),
                    sender: room.senders.get(&key).copied().unwrap_or_default(),
                };
                let answer = sequencer::decide(conversation, &before, &send, self.now);
                let (session, taken) = (send.origin.session, send.taken);
                if answer.verdict != Verdict::Accepted {
                    return self.inbox.push_back(Input::Router(ToGateway::Answer {
                        session,
                        answer,
                        taken,
                    }));
                }
                let (head, sender) = sequencer::accept(&before, &send, &answer);
                room.head = head;
                room.senders.insert(key, sender);
                let row = Arc::new(message_row(conversation, answer.seq, answer.ts, &send));
                room.events.push(Arc::clone(&row));
                self.inbox.push_back(Input::Router(ToGateway::Answer {
                    session,
                    answer,
                    taken,
                }));
                self.fan_out(row, session);
            }
            Content::Membership(_) => {
                unreachable!("the directory's records don't come from a gateway")
            }
        }
    }

    /// A change of members, decided and fanned out.
    pub fn change(&mut self, conversation: ConversationId, changes: &[(u64, Role)]) {
        self.change_of(ConversationKind::Group, conversation, changes);
    }

    fn change_of(
        &mut self,
        kind: ConversationKind,
        conversation: ConversationId,
        changes: &[(u64, Role)],
    ) {
        let now = self.now;
        let room = self.rooms.entry(conversation).or_default();
        let seq = room.head.seq + 1;
        let change = Membership {
            version: room.head.version + 1,
            by: UserId(0),
            changes: changes
                .iter()
                .map(|&(user, role)| RoleChange {
                    user: UserId(user),
                    role,
                })
                .collect(),
            kind,
            title: "a room".to_owned(),
        };
        room.head = sequencer::accept_membership(&room.head, &change, now, 0, 0);
        let mut rows = Vec::new();
        for &RoleChange { user, role } in &change.changes {
            let before = room.grants.get(&user).copied().unwrap_or_default();
            room.grants
                .insert(user, sequencer::grant_after(&before, &change, role, seq));
            rows.push(MemberChange { user, role, before });
        }
        let members = MembersBody {
            version: change.version,
            kind: change.kind,
            title: change.title,
            changes: rows,
        };
        let row = Arc::new(EventRow {
            conversation,
            seq,
            position: Position::default(),
            ts: room.head.ts,
            ts_before: 0,
            user: UserId(0),
            sender: SenderId(0),
            grant: 0,
            counter: 0,
            id: MessageKey(0),
            before: Before::Nothing,
            kind: Kind::Members,
            encoding: Encoding::Identity,
            body: Bytes::new(),
            members: Some(Box::new(members)),
        });
        room.events.push(Arc::clone(&row));
        self.fan_out(row, SessionId(0));
    }

    fn fan_out(&mut self, row: Arc<EventRow>, except: SessionId) {
        let room = self.rooms.entry(row.conversation).or_default();
        room.stored = room.events.len();
        if room.is_wanted || row.members.is_some() {
            self.inbox.push_back(Input::Router(ToGateway::Event {
                row,
                except,
                taken: 0,
            }));
        }
    }

    pub fn digest(&mut self, number: Option<u64>) {
        self.digest = number.unwrap_or(self.digest + 1);
        let heads = self
            .rooms
            .iter()
            .map(|(&id, room)| (id, room.head.seq))
            .collect();
        let events = self.rooms.values().flat_map(|room| &room.events);
        let changes = events
            .filter(|row| row.members.is_some())
            .map(|row| (row.conversation, row.seq))
            .collect();
        self.inbox.push_back(Input::Router(ToGateway::Digest {
            number: self.digest,
            heads,
            changes,
        }));
    }
}

fn message_row(
    conversation: ConversationId,
    seq: Seq,
    ts: Micros,
    send: &tidings_core::record::Send,
) -> EventRow {
    EventRow {
        conversation,
        seq,
        position: Position::default(),
        ts,
        ts_before: 0,
        user: send.user,
        sender: send.sender,
        grant: send.grant,
        counter: send.counter,
        id: send.id,
        before: Before::Nothing,
        kind: send.kind,
        encoding: send.encoding,
        body: send.body.clone(),
        members: None,
    }
}

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
