//! A scripted outside: sockets that keep what they were sent, and one router with a log in
//! memory.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tidings_core::ids::{
    ConversationId, DeviceId, Micros, Partition, Position, SenderId, Seq, SessionId, UserId,
};
use tidings_core::ports::directory::{SignInId, direct_conversation};
use tidings_core::ports::log::{Append, LogError};
use tidings_core::ports::peers::{Opened, ToGateway, ToRouter};
use tidings_core::ports::registry::{Mark, Presence, SessionEntry};
use tidings_core::record::{Content, ConversationKind, Kind, Membership, Record, Role, RoleChange};
use tidings_core::rows::{
    Before, CursorRow, EventRow, GrantState, HeadState, MemberChange, MembersBody, SenderState,
};
use tidings_core::sequencer::{self, Verdict};
use tidings_protocol::{CloseCode, Format};

use super::super::{AuthFailure, Listed, Outbound, Principal, Slot};

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
    pub is_wanted: bool,
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
    pub waiting: Vec<Bytes>,
    pub is_overflowed: bool,
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
    /// Memberships that the directory has and the log hasn't heard of.
    pub unheard: Vec<(UserId, ConversationId)>,
    /// Sends that wait for their answer, and how many may.
    pub sends_waiting: u64,
    pub sends_max: Option<u64>,
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
    pub digest: u64,
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

    fn take_send(&mut self) -> bool {
        let is_taken = self.sends_max.is_none_or(|max| self.sends_waiting < max);
        self.sends_waiting += u64::from(is_taken);
        is_taken
    }

    fn sends_ended(&mut self, count: u64) {
        self.sends_waiting -= count;
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
            ToRouter::Interest {
                request,
                conversations,
            } => {
                let mut heads = Vec::new();
                for id in conversations {
                    let room = self.rooms.entry(id).or_default();
                    room.is_wanted = true;
                    heads.push((id, room.head.seq));
                }
                self.digest = 76;
                ToGateway::Interested {
                    request,
                    digest: 76,
                    heads: heads.into(),
                }
            }
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
        let list = list.map(|(&id, _)| id);
        let unheard = self.unheard.iter().filter(|(of, _)| *of == user);
        let blocks = self.blocks.iter().filter(|(blocker, _)| *blocker == user);
        let listed = Listed {
            conversations: list.chain(unheard.map(|&(_, id)| id)).collect(),
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

    pub fn change_of(
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
            kind: Kind::Members,
            members: Some(Box::new(members)),
            ..EventRow::empty(conversation, seq, Position::default(), room.head.ts, 0)
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

    pub fn room_unwanted(&mut self, room: ConversationId) {
        self.rooms.entry(room).or_default().is_wanted = false;
    }

    pub fn took_over(&mut self, partition: Partition) {
        self.inbox
            .push_back(Input::Router(ToGateway::TookOver { partition }));
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
            partition: Partition(0),
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
