//! Ports in memory and one router that decides at once: enough to run a hosted worker.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tidings_core::ids::{
    ConversationId, DeviceId, GatewayId, MessageKey, Micros, Partition, Position, Seq, UserId,
};
use tidings_core::in_process::InProcessPeers;
use tidings_core::ports::BoxFuture;
use tidings_core::ports::directory::{self, *};
use tidings_core::ports::log::{Append, AppendReport, Log, LogError};
use tidings_core::ports::peers::{self, ToGateway, ToRouter};
use tidings_core::ports::store::{Store, StoreResult};
use tidings_core::record::{Committed, Content, ConversationKind, Record, Role};
use tidings_core::rows::{
    Before, CursorRow, EventRow, GrantState, HeadState, SenderState, StateKey, StateRow,
};
use tidings_core::sequencer::{self, Verdict};
use tidings_gateway::host::Authenticator;
use tidings_gateway::logic::{AuthFailure, Principal};

/// The one conversation, of users 1 and 2 since its first event.
pub const ROOM: ConversationId = ConversationId(5);

/// Log, store, directory and router of [`ROOM`].
pub struct Outside {
    peers: Arc<InProcessPeers>,
    room: Mutex<Room>,
}

#[derive(Default)]
struct Room {
    events: Vec<Arc<EventRow>>,
    head: HeadState,
    senders: HashMap<u64, SenderState>,
}

impl Outside {
    pub fn new(peers: Arc<InProcessPeers>) -> Self {
        let first = event(1, 1_000, None);
        let head = HeadState {
            seq: 1,
            ts: 1_000,
            version: 1,
            kind: ConversationKind::Group,
            members: 2,
        };
        let room = Room {
            events: vec![Arc::new(first)],
            head,
            senders: HashMap::new(),
        };
        Outside {
            peers,
            room: Mutex::new(room),
        }
    }

    /// Answers what gateways ask of the router, for ever.
    pub async fn route(self: Arc<Self>) {
        let inbox = self
            .peers
            .router_inbox(Partition(0))
            .expect("the only partition");
        let mut messages = Vec::new();
        loop {
            inbox.recv_many(&mut messages).await;
            for (gateway, message) in messages.drain(..) {
                if let ToRouter::Open {
                    request,
                    user,
                    conversations,
                } = message
                {
                    let head = self.room.lock().expect("no panic").head.seq;
                    let states = conversations
                        .into_iter()
                        .map(|c| opened(c, user, head))
                        .collect();
                    self.peers.deliver(
                        gateway,
                        ToGateway::Opened {
                            request,
                            states,
                            later: Vec::new(),
                        },
                    );
                }
            }
        }
    }

    fn decide(&self, payload: &Bytes) {
        let record = Record::decode(payload).expect("a record");
        let Content::Send(send) = record.content else {
            panic!("gateways append sends")
        };
        let mut room = self.room.lock().expect("no panic");
        let grant = grant(record.conversation, send.user);
        let sender = room
            .senders
            .get(&send.sender.0)
            .copied()
            .unwrap_or_default();
        let before = sequencer::Before {
            head: room.head,
            grant,
            sender,
        };
        let answer = sequencer::decide(record.conversation, &before, &send, 2_000);
        let (session, taken) = (send.origin.session, send.taken);
        self.peers.deliver(
            send.origin.gateway,
            ToGateway::Answer {
                session,
                answer,
                taken,
            },
        );
        if answer.verdict == Verdict::Accepted {
            let (head, sender) = sequencer::accept(&before, &send, &answer);
            room.head = head;
            room.senders.insert(send.sender.0, sender);
            let row = Arc::new(event(answer.seq, answer.ts, Some(&send)));
            room.events.push(Arc::clone(&row));
            for gateway in self.peers.gateways() {
                let event = ToGateway::Event {
                    row: Arc::clone(&row),
                    except: session,
                    taken,
                };
                self.peers.deliver(gateway, event);
            }
        }
    }
}

fn grant(conversation: ConversationId, user: UserId) -> GrantState {
    if conversation == ROOM && user.0 <= 2 {
        GrantState {
            grant: 1,
            role: Role::Member,
            visible_from: 1,
            visible_to: 0,
        }
    } else {
        GrantState::default()
    }
}

fn opened(conversation: ConversationId, user: UserId, head: Seq) -> peers::Opened {
    let cursor = CursorRow {
        conversation,
        user,
        delivered: 0,
        read: 0,
    };
    peers::Opened {
        conversation,
        head,
        kind: ConversationKind::Group,
        grant: grant(conversation, user),
        cursor,
    }
}

fn event(seq: Seq, ts: Micros, send: Option<&tidings_core::record::Send>) -> EventRow {
    EventRow {
        conversation: ROOM,
        seq,
        position: Position::default(),
        ts,
        ts_before: 0,
        user: send.map_or(UserId(0), |s| s.user),
        sender: send.map_or_else(Default::default, |s| s.sender),
        grant: send.map_or(0, |s| s.grant),
        counter: send.map_or(0, |s| s.counter),
        id: send.map_or(MessageKey(0), |s| s.id),
        before: Before::Nothing,
        kind: Default::default(),
        encoding: Default::default(),
        body: send.map_or_else(|| Bytes::from_static(b"first"), |s| s.body.clone()),
        members: None,
    }
}

impl Log for Outside {
    fn partitions(&self) -> u32 {
        1
    }

    fn append(&self, records: Vec<Append>, report: AppendReport) {
        report(Ok(()));
        for record in &records {
            self.decide(&record.payload);
        }
    }

    fn read(
        &self,
        _: Partition,
        _: Position,
        _: usize,
    ) -> BoxFuture<'_, Result<Vec<Committed>, LogError>> {
        unreachable!("gateways read no log")
    }

    fn committed(&self, _: Partition) -> BoxFuture<'_, Result<Position, LogError>> {
        unreachable!("gateways read no log")
    }

    fn commit(&self, _: Partition, _: Position) -> BoxFuture<'_, Result<(), LogError>> {
        unreachable!("gateways commit nothing")
    }

    fn end(&self, _: Partition) -> Position {
        Position::default()
    }
}

impl Store for Outside {
    fn read_events(
        &self,
        _: ConversationId,
        from: Seq,
        to: Seq,
        _: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<EventRow>>> {
        // Not ready at once: the answer comes through the worker's inbox.
        Box::pin(async move {
            tokio::task::yield_now().await;
            let room = self.room.lock().expect("no panic");
            Ok(room
                .events
                .iter()
                .filter(|e| e.seq >= from && e.seq <= to)
                .map(|e| (**e).clone())
                .collect())
        })
    }

    fn put_events(&self, _: Partition, _: Vec<EventRow>) -> BoxFuture<'_, StoreResult<()>> {
        unreachable!("gateways store nothing")
    }

    fn put_state(&self, _: Partition, _: Vec<StateRow>) -> BoxFuture<'_, StoreResult<()>> {
        unreachable!("gateways store nothing")
    }

    fn put_cursors(&self, _: Partition, _: Vec<CursorRow>) -> BoxFuture<'_, StoreResult<()>> {
        unreachable!("gateways store nothing")
    }

    fn settle(&self, _: Partition, _: Position) -> BoxFuture<'_, StoreResult<Position>> {
        unreachable!("gateways store nothing")
    }

    fn read_events_since(
        &self,
        _: ConversationId,
        _: Position,
    ) -> BoxFuture<'_, StoreResult<Vec<EventRow>>> {
        unreachable!("gateways decide nothing")
    }

    fn read_state(
        &self,
        _: ConversationId,
        _: Vec<StateKey>,
    ) -> BoxFuture<'_, StoreResult<Vec<Option<StateRow>>>> {
        unreachable!("gateways decide nothing")
    }

    fn read_cursors(
        &self,
        _: ConversationId,
        _: Vec<UserId>,
    ) -> BoxFuture<'_, StoreResult<Vec<CursorRow>>> {
        unreachable!("routers read cursors")
    }
}

/// Takes `user/device` for a token; user 2's can't be told at once, and user 3's take a while.
pub struct Tokens;

impl Authenticator for Tokens {
    fn verify_now(&self, token: &str, _: &str) -> Option<Result<Principal, AuthFailure>> {
        (!token.starts_with(['2', '3'])).then(|| principal(token))
    }

    fn verify(&self, token: String, _: String) -> BoxFuture<'_, Result<Principal, AuthFailure>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            if token.starts_with('3') {
                tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            }
            principal(&token)
        })
    }

    fn revoked(&self, _: &Revocation) {}
}

fn principal(token: &str) -> Result<Principal, AuthFailure> {
    let (user, device) = token.split_once('/').ok_or(AuthFailure::Invalid)?;
    let number = |text: &str| text.parse().map_err(|_| AuthFailure::Invalid);
    let now = crate::clock();
    Ok(Principal {
        user: UserId(number(user)?),
        device: DeviceId(number(device)?),
        sign_in: SignInId(0),
        issued: now,
        expires: now + 3_600_000_000,
    })
}

/// What of the directory a gateway never asks.
macro_rules! unasked {
    ($($name:ident($($arg:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&self, $(_: $arg),*) -> Answer<'_, $answer> {
            unreachable!("gateways ask for lists only")
        })*
    };
}

impl Accounts for Outside {
    fn create_users(&self, _: Vec<NewUser>) -> Answer<'_, Vec<Result<UserId, DirectoryError>>> {
        unreachable!("gateways ask for lists only")
    }

    unasked! {
        user_of_subject(ExternalSubject, String) -> User;
        users(Vec<UserId>) -> Vec<User>;
        user_by_login(String) -> Option<User>;
        password_of(String) -> Option<StoredPassword>;
        set_password(UserId, PasswordHash) -> Revocation;
        set_display_name(UserId, String) -> ();
        set_disabled(UserId, bool) -> Option<Revocation>;
        add_device(UserId, String) -> Device;
        device_named(UserId, String) -> Device;
        devices(UserId) -> Vec<Device>;
        devices_seen(Vec<(DeviceId, Micros)>) -> ();
        remove_device(UserId, DeviceId) -> Revocation;
        set_block(UserId, UserId, bool) -> ();
        has_blocked(UserId, UserId) -> bool;
    }

    fn blockers_among(&self, _: UserId, _: Vec<UserId>) -> Answer<'_, Vec<UserId>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

impl Credentials for Outside {
    unasked! {
        sign_in(NewSignIn) -> SignIn;
        rotate(SecretHash, SecretHash, Micros) -> Rotation;
        end_sign_in(UserId, SignInId) -> Revocation;
        revoke(RevocationSubject) -> Revocation;
        revocations_after(u64, usize) -> Vec<Revocation>;
        forget_expired(Micros, Micros) -> usize;
        create_api_key(NewApiKey) -> ApiKey;
        api_key(ApiKeyId) -> Option<ApiKey>;
        api_keys() -> Vec<ApiKey>;
        remove_api_key(ApiKeyId) -> ();
    }
}

impl Conversations for Outside {
    fn lists_of(&self, user: UserId) -> Answer<'_, Lists> {
        let is_listed = user.0 <= 2;
        Box::pin(async move {
            Ok(Lists {
                conversations: is_listed.then_some(ROOM).into_iter().collect(),
                blocked: Vec::new(),
            })
        })
    }

    fn outbox_wait(&self) -> BoxFuture<'_, ()> {
        unreachable!("gateways ask for lists only")
    }

    unasked! {
        conversations_of(UserId, ConversationId, usize) -> Vec<Membership>;
        create_direct(UserId, UserId) -> directory::Opened;
        create_conversation(NewConversation) -> directory::Opened;
        set_title(ConversationId, UserId, String) -> ();
        join(ConversationId, UserId) -> Change;
        leave(ConversationId, UserId) -> Change;
        add_members(ConversationId, UserId, Vec<UserId>, Role) -> Change;
        remove_member(ConversationId, UserId, UserId) -> Change;
        set_role(ConversationId, UserId, UserId, Role) -> Change;
        ban(ConversationId, UserId, UserId) -> Change;
        unban(ConversationId, UserId, UserId) -> ();
        conversation(ConversationId) -> Option<ConversationRecord>;
        open_conversations(ConversationId, usize) -> Vec<ConversationRecord>;
        members(ConversationId, UserId, usize) -> Vec<Member>;
        member(ConversationId, UserId) -> Option<Member>;
        outbox_pending(usize) -> Vec<OutboxEntry>;
        outbox_done(ConversationId, u64) -> ();
    }
}

/// The gateway's id in these tests.
pub fn gateway(n: u32) -> GatewayId {
    GatewayId(n)
}
