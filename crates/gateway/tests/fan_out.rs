//! What a delivery costs in the logic: nothing is allocated for it, and each event is encoded once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tidings_core::ids::{
    ConversationId, DeviceId, GatewayId, MessageKey, Micros, Partition, Position, SenderId, Seq,
    SessionId, UserId,
};
use tidings_core::ports::directory::SignInId;
use tidings_core::ports::log::Append;
use tidings_core::ports::peers::{Opened, ToGateway, ToRouter};
use tidings_core::ports::registry::{Mark, Presence, SessionEntry};
use tidings_core::record::{ConversationKind, Role};
use tidings_core::rows::{Before, CursorRow, EventRow, GrantState};
use tidings_gateway::logic::{GatewayCore, GatewayMetrics, Outbound, Principal, Settings, Slot};
use tidings_gateway::ws::Opcode;
use tidings_protocol::wire::{self, command::Command};
use tidings_protocol::{CloseCode, Format, encode_client_frame};

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROOM: ConversationId = ConversationId(5);
const SESSIONS: u32 = 4_000;

/// An outside in which everybody is a member of [`ROOM`], and frames are counted.
#[derive(Default)]
struct Sink {
    sent: u64,
    authenticate: Vec<SessionId>,
    load: Vec<UserId>,
    open: Vec<(u64, UserId)>,
}

impl Outbound for Sink {
    fn now(&self) -> Micros {
        1_700_000_000_000_000
    }
    fn send(&mut self, _: Slot, frame: &Bytes) {
        self.sent += u64::from(!frame.is_empty());
    }
    fn close(&mut self, slot: Slot, code: CloseCode) {
        panic!("{slot} closed: {code:?}");
    }
    fn admitted(&mut self, _: Slot) {}
    fn queued_bytes(&self, _: Slot) -> usize {
        0
    }
    fn heard(&self, _: Slot) -> Micros {
        self.now()
    }
    fn append(&mut self, _: u64, _: Vec<Append>) {}
    fn to_router(&mut self, _: Partition, message: ToRouter) {
        if let ToRouter::Open { request, user, .. } = message {
            self.open.push((request, user));
        }
    }
    fn authenticate(&mut self, session: SessionId, _: String, _: String) {
        self.authenticate.push(session);
    }
    fn load_user(&mut self, user: UserId) {
        self.load.push(user);
    }
    fn members_changed(&mut self, _: &mut dyn Iterator<Item = UserId>) {}
    fn read_events(&mut self, _: u64, _: ConversationId, _: Seq, _: Seq, _: usize) {}
    fn put_session(&mut self, _: SessionEntry, _: bool) {}
    fn remove_session(&mut self, _: UserId, _: SessionId, _: Micros) {}
    fn set_presence(&mut self, _: UserId, _: SessionId, _: Presence) {}
    fn presence(&mut self, _: u64, _: UserId, _: Vec<UserId>) {}
    fn watch(&mut self, _: Vec<UserId>) {}
    fn put_marks(&mut self, _: Vec<Mark>) {}
}

fn command(core: &mut GatewayCore, out: &mut Sink, slot: Slot, command: Command) {
    let commands = vec![wire::Command {
        r#ref: 0,
        command: Some(command),
    }];
    let mut payload = Vec::new();
    encode_client_frame(Format::Proto, &wire::ClientFrame { commands }, &mut payload);
    core.message(out, slot, Opcode::Binary, &payload);
}

/// A core with all sessions live in [`ROOM`], whose head is 0.
fn everybody(out: &mut Sink) -> GatewayCore {
    let settings = Settings::new(GatewayId(1), 1);
    let mut core = GatewayCore::new(settings, Arc::new(GatewayMetrics::default()));
    for slot in 0..SESSIONS {
        core.opened(out, slot, Format::Proto);
        let auth = wire::Auth {
            token: "t".to_owned(),
            device: String::new(),
            version: 1,
            oldest: 0,
        };
        command(&mut core, out, slot, Command::Auth(auth));
        let user = UserId(u64::from(slot) + 1);
        let principal = Principal {
            user,
            device: DeviceId(user.0),
            sign_in: SignInId(0),
            issued: 0,
            expires: Micros::from(u32::MAX) * 1_000_000,
        };
        let session = out.authenticate.pop().expect("asked");
        core.authenticated(out, session, Ok(principal));
        command(&mut core, out, slot, Command::Sync(wire::Sync::default()));
        core.user_loaded(out, out.load[0], Some(vec![ROOM].into()));
        out.load.clear();
        let (request, user) = out.open.pop().expect("asked");
        let grant = GrantState {
            grant: 1,
            role: Role::Member,
            visible_from: 1,
            visible_to: 0,
        };
        let cursor = CursorRow {
            conversation: ROOM,
            user,
            delivered: 0,
            read: 0,
        };
        let kind = ConversationKind::Group;
        let state = Opened {
            conversation: ROOM,
            head: 0,
            kind,
            grant,
            cursor,
        };
        core.from_router(
            out,
            ToGateway::Opened {
                request,
                states: vec![state],
                later: vec![],
            },
        );
    }
    core.turn_end(out);
    core
}

fn event(seq: Seq) -> ToGateway {
    let row = EventRow {
        conversation: ROOM,
        seq,
        position: Position::default(),
        ts: seq,
        ts_before: seq - 1,
        user: UserId(1),
        sender: SenderId(1),
        grant: 1,
        counter: seq,
        id: MessageKey(seq),
        before: Before::Nothing,
        kind: Default::default(),
        encoding: Default::default(),
        body: Bytes::from_static(&[b'x'; 100]),
        members: None,
    };
    ToGateway::Event {
        row: Arc::new(row),
        except: SessionId(0),
        taken: 0,
    }
}

#[test]
fn a_delivery_allocates_nothing_and_an_event_is_encoded_once() {
    let mut out = Sink::default();
    let mut core = everybody(&mut out);
    let mut deliver = |core: &mut GatewayCore, seq| {
        let event = event(seq);
        let before = (ALLOCATIONS.get(), out.sent);
        core.from_router(&mut out, event);
        core.turn_end(&mut out);
        assert_eq!(out.sent - before.1, u64::from(SESSIONS));
        ALLOCATIONS.get() - before.0
    };
    let first = deliver(&mut core, 1);
    let others: Vec<u64> = (2..=20).map(|seq| deliver(&mut core, seq)).collect();
    assert!(first <= 12, "{first} allocations for the first event");
    assert!(
        others.iter().all(|&n| n <= 8),
        "{others:?} allocations an event of 4,000 deliveries"
    );
    assert_eq!(core.metrics().encoded.load(Ordering::Relaxed), 20);
    // For whoever runs it with `--nocapture`; nothing is asserted of times.
    let started = std::time::Instant::now();
    for seq in 21..=520 {
        deliver(&mut core, seq);
    }
    let each = started.elapsed().as_nanos() as f64 / (500.0 * f64::from(SESSIONS));
    println!("{each:.2} ns a delivery in the logic");
}
