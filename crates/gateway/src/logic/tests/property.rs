//! Whatever happens in whatever order, a client that does what the protocol says ends up with
//! every event it may see, and was never told that it has what it hasn't.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tidings_core::ids::{ConversationId, Seq, UserId};
use tidings_core::ports::peers::ToGateway;
use tidings_core::record::Role;
use tidings_protocol::Format;
use tidings_protocol::wire::{self, command::Command, update::Update};

use super::super::Slot;
use super::outside::Input;
use super::world::World;

const ROOMS: u64 = 3;
const USERS: u64 = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Somebody elsewhere writes.
    Elsewhere(u64),
    /// A user here writes.
    Send(u64, u64),
    Join(u64, u64),
    Leave(u64, u64),
    Connect(u64),
    HangUp(u64),
    Sync(u64),
    Deliver(u64),
    Block(u64),
    Unblock(u64),
    /// So many inputs get through.
    Steps(u8),
    /// The next event from the router is lost, or comes after the one behind it, or twice.
    Lose,
    Swap,
    Repeat,
    /// A router's answer about conversations is overtaken by what it sends next.
    Late,
    /// A row gets into the store between the first look there and the router's answer.
    Store(u64),
    Unstore(u64),
    Digest,
    Pass(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let room = 0..ROOMS;
    let user = 0..USERS;
    prop_oneof![
        6 => room.clone().prop_map(Step::Elsewhere),
        4 => (user.clone(), room.clone()).prop_map(|(u, r)| Step::Send(u, r)),
        2 => (user.clone(), room.clone()).prop_map(|(u, r)| Step::Join(u, r)),
        1 => (user.clone(), room.clone()).prop_map(|(u, r)| Step::Leave(u, r)),
        2 => user.clone().prop_map(Step::Connect),
        1 => user.clone().prop_map(Step::HangUp),
        2 => user.clone().prop_map(Step::Sync),
        2 => user.clone().prop_map(Step::Deliver),
        1 => user.clone().prop_map(Step::Block),
        2 => user.prop_map(Step::Unblock),
        8 => (1u8..12).prop_map(Step::Steps),
        2 => Just(Step::Lose),
        1 => Just(Step::Swap),
        1 => Just(Step::Repeat),
        2 => Just(Step::Late),
        1 => (0..ROOMS).prop_map(Step::Store),
        1 => room.prop_map(Step::Unstore),
        1 => Just(Step::Digest),
        1 => (1u8..4).prop_map(Step::Pass),
    ]
}

/// A device as the protocol wants it: durable events, cursors, sync after `ready` and `lagging`.
#[derive(Default)]
struct Device {
    slot: Option<Slot>,
    events: BTreeMap<u64, BTreeSet<Seq>>,
    is_syncing: bool,
    was_told_done: bool,
}

impl Device {
    fn cursor(&self, world: &mut World, user: u64, room: u64) -> Option<Seq> {
        let events = self.events.get(&room)?;
        let from = world
            .out
            .state(ConversationId(room), UserId(user))
            .grant
            .visible_from
            .max(1);
        let mut cursor = from - 1;
        while events.contains(&(cursor + 1)) {
            cursor += 1;
        }
        Some(cursor)
    }
}

struct Play {
    world: World,
    devices: Vec<Device>,
}

impl Play {
    fn new() -> Self {
        let mut world = World::with(|s| {
            s.sends_per_second = 0;
            s.send_bytes_per_minute = 0;
            s.asks_per_second = 0;
        });
        world.out.queue_max = 1_000;
        world.out.expires_in = 100_000 * super::outside::SECOND;
        for room in 0..ROOMS {
            world.out.change(
                ConversationId(100 + room),
                &[(77, Role::Member), (room + 1, Role::Member)],
            );
        }
        world.settle();
        Play {
            world,
            devices: (0..USERS).map(|_| Device::default()).collect(),
        }
    }

    fn run(&mut self, step: Step) {
        let world = &mut self.world;
        let event_at = |world: &World| {
            world.out.inbox.iter().position(|i| matches!(i, Input::Router(ToGateway::Event { row, .. }) if row.members.is_none()))
        };
        match step {
            Step::Elsewhere(room) => world.send_elsewhere(77, ConversationId(100 + room)),
            Step::Send(user, room) => {
                if let Some(slot) = self.devices[user as usize].slot {
                    world.send(slot, ConversationId(100 + room));
                }
            }
            Step::Join(user, room) => {
                let (id, user) = (ConversationId(100 + room), user + 1);
                if world.out.state(id, UserId(user)).grant.role == Role::None {
                    world.out.change(id, &[(user, Role::Member)]);
                }
            }
            Step::Leave(user, room) => {
                let (id, user) = (ConversationId(100 + room), user + 1);
                if world.out.state(id, UserId(user)).grant.role != Role::None {
                    world.out.change(id, &[(user, Role::None)]);
                    // What lies before another join is hidden again; this test has one stay each.
                    self.devices[user as usize - 1].events.remove(&id.0);
                }
            }
            Step::Connect(user) => self.connect(user),
            Step::HangUp(user) => {
                if let Some(slot) = self.devices[user as usize].slot.take() {
                    self.read(user, slot);
                    self.world.hang_up(slot);
                    // Inputs about a socket that is gone.
                    self.world.out.inbox.retain(
                        |i| !matches!(i, Input::Overflow(s) | Input::Drained(s) if *s == slot),
                    );
                }
            }
            Step::Sync(user) => self.sync(user),
            Step::Deliver(user) => {
                let Some(slot) = self.devices[user as usize].slot else {
                    return;
                };
                self.read(user, slot);
                for room in 100..100 + ROOMS {
                    let cursor =
                        self.devices[user as usize].cursor(&mut self.world, user + 1, room);
                    if let Some(cursor) = cursor.filter(|&c| c > 0) {
                        self.world.delivered(slot, ConversationId(room), cursor);
                    }
                }
            }
            Step::Block(user) => {
                if let Some(slot) = self.devices[user as usize].slot {
                    world.socket(slot).is_blocked = true;
                }
            }
            Step::Unblock(user) => {
                if let Some(slot) = self.devices[user as usize].slot {
                    world.unblock(slot);
                }
            }
            Step::Steps(n) => {
                for _ in 0..n {
                    if !world.step() {
                        world.core.turn_start(&mut world.out);
                    }
                }
            }
            Step::Lose => {
                if let Some(at) = event_at(world) {
                    world.out.inbox.remove(at);
                }
            }
            Step::Swap => {
                if let Some(at) = event_at(world)
                    && let Some(event) = world.out.inbox.remove(at)
                {
                    world.out.inbox.push_back(event);
                }
            }
            Step::Repeat => {
                if let Some(at) = event_at(world)
                    && let Some(Input::Router(message)) = world.out.inbox.get(at)
                {
                    let message = message.clone();
                    world.out.inbox.push_back(Input::Router(message));
                }
            }
            Step::Late => {
                let is_opened = |i: &Input| matches!(i, Input::Router(ToGateway::Opened { .. }));
                if let Some(at) = world.out.inbox.iter().position(is_opened)
                    && let Some(opened) = world.out.inbox.remove(at)
                {
                    world.out.inbox.push_back(opened);
                }
            }
            Step::Store(room) => {
                let room = world
                    .out
                    .rooms
                    .get_mut(&ConversationId(100 + room))
                    .expect("a room");
                room.stored = room.events.len();
            }
            Step::Unstore(room) => {
                let room = world
                    .out
                    .rooms
                    .get_mut(&ConversationId(100 + room))
                    .expect("a room");
                room.stored = room.stored.saturating_sub(3);
            }
            Step::Digest => world.out.digest(None),
            Step::Pass(seconds) => world.pass(u64::from(seconds)),
        }
        for user in 0..USERS {
            self.react(user);
        }
    }

    fn connect(&mut self, user: u64) {
        if self.devices[user as usize].slot.is_none() {
            let format = if user == 1 {
                Format::Json
            } else {
                Format::Proto
            };
            let slot = self.world.connect(format);
            self.world.auth(slot, &format!("{}/{}", user + 1, user + 1));
            let device = &mut self.devices[user as usize];
            device.slot = Some(slot);
            device.is_syncing = false;
            device.was_told_done = false;
        }
    }

    fn sync(&mut self, user: u64) {
        let Some(slot) = self.devices[user as usize].slot else {
            return;
        };
        let cursors: Vec<(ConversationId, Seq)> = (100..100 + ROOMS)
            .filter_map(|room| {
                Some((
                    ConversationId(room),
                    self.devices[user as usize].cursor(&mut self.world, user + 1, room)?,
                ))
            })
            .collect();
        let cursors = cursors
            .into_iter()
            .map(|(c, seq)| wire::Cursor {
                conversation: c.0,
                seq,
            })
            .collect();
        if !self.is_ready(slot) {
            return;
        }
        self.world.command(
            slot,
            2,
            Command::Sync(wire::Sync {
                epoch: 1,
                cursors,
                page: 500,
            }),
        );
        self.devices[user as usize].is_syncing = true;
    }

    fn is_ready(&self, slot: Slot) -> bool {
        self.world
            .core
            .sessions
            .get(slot)
            .is_some_and(|s| s.is(super::super::session::READY))
    }

    /// What the client does by itself: read, sync when told to.
    fn react(&mut self, user: u64) {
        let Some(slot) = self.devices[user as usize].slot else {
            return;
        };
        if self.read(user, slot) {
            self.sync(user);
        }
        if self.world.socket(slot).closed.is_some() {
            self.devices[user as usize].slot = None;
        }
    }

    /// Takes what came; whether a sync is wanted.
    fn read(&mut self, user: u64, slot: Slot) -> bool {
        let updates = self.world.take(slot);
        let device = &mut self.devices[user as usize];
        let mut wants_sync = false;
        for update in &updates {
            match update {
                Update::Ready(_) | Update::Lagging(_) => wants_sync = true,
                Update::SyncDone(done) => {
                    device.is_syncing = false;
                    device.was_told_done = done.complete;
                }
                Update::Ack(ack) if ack.seq > 0 => {
                    device
                        .events
                        .entry(ack.conversation)
                        .or_default()
                        .insert(ack.seq);
                }
                Update::Event(event) => {
                    let room = ConversationId(event.conversation);
                    let grant = self.world.out.state(room, UserId(user + 1)).grant;
                    let known = device.events.entry(event.conversation).or_default();
                    if grant.role != Role::None {
                        let lacks: Vec<Seq> = (grant.visible_from..event.seq)
                            .filter(|s| !known.contains(s))
                            .collect();
                        assert!(
                            lacks.is_empty(),
                            "given {} of {room} before {lacks:?}",
                            event.seq
                        );
                    }
                    known.insert(event.seq);
                }
                Update::SyncPage(page) => {
                    let seqs: Vec<Seq> = page.events.iter().map(|e| e.seq).collect();
                    assert!(
                        seqs.windows(2).all(|w| w[0] + 1 == w[1]),
                        "a page without a hole: {seqs:?}"
                    );
                    assert_eq!(page.missing_from, 0, "pages are large enough here");
                    let known = device.events.entry(page.conversation).or_default();
                    known.extend(seqs);
                }
                _ => {}
            }
        }
        wants_sync
    }

    /// Everything calms down; then every device has everything it may see.
    fn finish(&mut self) {
        for user in 0..USERS {
            self.connect(user);
            if let Some(slot) = self.devices[user as usize].slot {
                self.world.unblock(slot);
            }
        }
        for round in 0..60 {
            self.world.settle();
            for user in 0..USERS {
                self.connect(user);
                self.react(user);
                if let Some(slot) = self.devices[user as usize].slot {
                    let is_done = self.devices[user as usize].was_told_done
                        || self.devices[user as usize].is_syncing;
                    if !is_done && round > 20 && self.is_ready(slot) {
                        self.sync(user);
                    }
                    self.run_quietly(Step::Deliver(user));
                }
            }
            self.world.out.digest(None);
            self.world.pass(1);
        }
        for user in 0..USERS {
            for room in 100..100 + ROOMS {
                let state = self.world.out.state(ConversationId(room), UserId(user + 1));
                if state.grant.role == Role::None {
                    continue;
                }
                let had = self.devices[user as usize]
                    .events
                    .get(&room)
                    .cloned()
                    .unwrap_or_default();
                let missing: Vec<Seq> = (state.grant.visible_from..=state.head)
                    .filter(|s| !had.contains(s))
                    .collect();
                assert!(
                    missing.is_empty(),
                    "user {} lacks {missing:?} of {room} (head {})",
                    user + 1,
                    state.head
                );
            }
        }
        assert!(self.world.core.reading.is_empty() && self.world.core.loads.is_empty());
    }

    fn run_quietly(&mut self, step: Step) {
        if let Step::Deliver(user) = step
            && let Some(slot) = self.devices[user as usize].slot
        {
            for room in 100..100 + ROOMS {
                let cursor = self.devices[user as usize].cursor(&mut self.world, user + 1, room);
                if let Some(cursor) = cursor.filter(|&c| c > 0) {
                    self.world.delivered(slot, ConversationId(room), cursor);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn every_session_ends_up_with_everything(steps in prop::collection::vec(step(), 1..120)) {
        let mut play = Play::new();
        for step in steps {
            play.run(step);
        }
        play.finish();
    }
}
