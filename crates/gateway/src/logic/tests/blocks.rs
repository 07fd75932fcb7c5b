//! Blocks: what the blocker's sessions get, and what the blocked one's don't.

use tidings_core::ids::{ConversationId, Seq, UserId};
use tidings_core::ports::peers::{ToGateway, ToRouter};
use tidings_core::ports::registry::{Presence, UserPresence};
use tidings_core::rows::CursorRow;
use tidings_protocol::CloseCode;
use tidings_protocol::Format;
use tidings_protocol::wire::{self, Kind, command::Command, update::Update};

use super::super::Slot;
use super::world::{World, errors, seqs};

/// Seq, kind and author of the events among updates, live or on pages.
fn events(updates: &[Update]) -> Vec<(Seq, Kind, u64)> {
    let mut events = Vec::new();
    let mut see = |event: &wire::Event| {
        let is_blank = event.body.is_empty() && event.sender == 0 && event.id == 0;
        assert_eq!(event.kind() == Kind::Empty, is_blank && event.user == 0);
        assert!(event.ts > 0);
        events.push((event.seq, event.kind(), event.user));
    };
    for update in updates {
        match update {
            Update::Event(event) => see(event),
            Update::SyncPage(page) => page.events.iter().filter(|e| e.seq > 1).for_each(&mut see),
            Update::HistoryPage(page) => {
                page.events.iter().filter(|e| e.seq > 1).for_each(&mut see);
            }
            _ => {}
        }
    }
    events
}

fn typing(world: &mut World, slot: Slot, conversation: ConversationId) {
    let typing = wire::Typing {
        conversation: conversation.0,
        on: true,
    };
    world.command(slot, 0, Command::Typing(typing));
    world.settle();
}

#[test]
fn what_a_blocked_user_writes_comes_as_empty_events_and_is_sent_all_the_same() {
    for format in Format::ALL {
        let mut world = World::new();
        let direct = world.direct(1, 2);
        let group = world.room(7, &[1, 2]);
        let blocker = world.login_as(format, 1, 10);
        world.sync(blocker, &[]);
        let blocked = world.online(2);
        world.settle();
        world.take(blocker);
        world.block(1, 2, true);
        world.send(blocked, direct);
        world.send(blocked, group);
        world.settle();
        assert_eq!(
            events(&world.take(blocker)),
            [(2, Kind::Empty, 0), (2, Kind::Text, 2)]
        );
        let acks = world.take(blocked);
        assert!(
            matches!(&acks[..], [Update::Ack(a), Update::Ack(b)] if a.seq == 2 && b.seq == 2),
            "{acks:?}"
        );
        // The other way round nothing is changed.
        world.send(blocker, direct);
        world.settle();
        assert_eq!(events(&world.take(blocked)), [(3, Kind::Text, 1)]);
        world.take(blocker);
        world.block(1, 2, false);
        world.send(blocked, direct);
        world.settle();
        assert_eq!(events(&world.take(blocker)), [(4, Kind::Text, 2)]);
    }
}

#[test]
fn pages_and_events_sent_again_are_emptied_too() {
    let mut world = World::new();
    let direct = world.direct(1, 2);
    let (writer, blocked) = (world.online(1), world.online(2));
    for slot in [blocked, writer, blocked] {
        world.send(slot, direct);
        world.settle();
    }
    world.hang_up(writer);
    world.out.blocks.push((UserId(1), UserId(2)));
    let seen = [(2, Kind::Empty, 0), (3, Kind::Text, 1), (4, Kind::Empty, 0)];
    let blocker = world.login(1, 11);
    world.sync(blocker, &[]);
    world.settle();
    let updates = world.take(blocker);
    assert_eq!(events(&updates), seen);
    // The change of members is whole: it carries the grant.
    let page = updates.iter().find_map(|update| match update {
        Update::SyncPage(page) => Some(page),
        _ => None,
    });
    assert_eq!(page.expect("a page").events[0].kind(), Kind::Members);
    let ask = wire::History {
        conversation: direct.0,
        after: 1,
        limit: 10,
        ..wire::History::default()
    };
    world.command(blocker, 0, Command::History(ask));
    world.settle();
    assert_eq!(events(&world.take(blocker)), seen);
    // Not confirmed: sent again after 30 s, and in the end the session is given up, of which the
    // blocked user hears nothing.
    world.delivered(blocker, direct, 4);
    world.delivered(blocked, direct, 4);
    world.send(blocked, direct);
    world.settle();
    assert_eq!(events(&world.take(blocker)), [(5, Kind::Empty, 0)]);
    world.take(blocked);
    world.pass(36);
    assert_eq!(events(&world.take(blocker)), [(5, Kind::Empty, 0)]);
    world.pass(110);
    assert_eq!(world.closed(blocker), Some(CloseCode::Heartbeat));
    let told = world.take(blocked);
    assert!(!told.iter().any(|u| matches!(u, Update::Delayed(_))));
    assert_eq!(world.out.marks, []);
}

#[test]
fn a_direct_conversation_made_by_somebody_blocked_is_empty_from_its_start() {
    let mut world = World::new();
    world.out.blocks.push((UserId(1), UserId(2)));
    let (blocker, blocked) = (world.online(1), world.online(2));
    let direct = world.direct(1, 2);
    world.take(blocker);
    world.send(blocked, direct);
    world.settle();
    assert_eq!(events(&world.take(blocker)), [(2, Kind::Empty, 0)]);
}

#[test]
fn neither_typing_nor_receipts_pass_a_block() {
    let mut world = World::new();
    let direct = world.direct(1, 2);
    let (blocker, blocked) = (world.online(1), world.online(2));
    world.block(1, 2, true);
    world.send(blocked, direct);
    world.settle();
    world.out.to_router.clear();
    world.take(blocker);
    world.take(blocked);
    typing(&mut world, blocked, direct);
    typing(&mut world, blocker, direct);
    world.delivered(blocker, direct, 2);
    let read = wire::Read {
        conversation: direct.0,
        seq: 2,
        message_id: Default::default(),
    };
    world.command(blocker, 0, Command::Read(read));
    let cursors = [CursorRow {
        conversation: direct,
        user: UserId(2),
        delivered: 2,
        read: 2,
    }];
    let receipts = ToGateway::Receipts {
        conversation: direct,
        cursors: cursors.to_vec().into(),
    };
    world.core.from_router(&mut world.out, receipts);
    world.pass(2);
    let told = |update: &Update| matches!(update, Update::Typing(_) | Update::Receipts(_));
    assert!(!world.take(blocker).iter().any(told));
    assert!(
        !world
            .take(blocked)
            .iter()
            .any(|u| matches!(u, Update::Typing(_)))
    );
    let of_blocker = |message: &ToRouter| match message {
        ToRouter::Cursors(rows) => rows.iter().any(|row| row.user == UserId(1)),
        ToRouter::Typing { user, .. } => *user == UserId(1),
        _ => false,
    };
    assert!(!world.out.to_router.iter().any(of_blocker));
    // It was confirmed: nothing is sent again.
    world.pass(40);
    assert!(seqs(&world.take(blocker), direct).is_empty());
    world.block(1, 2, false);
    typing(&mut world, blocked, direct);
    assert!(world.take(blocker).iter().any(told));
    world.delivered(blocker, direct, 2);
    world.pass(2);
    assert!(world.out.to_router.iter().any(of_blocker));
}

#[test]
fn who_is_blocked_sees_the_blocker_offline() {
    let mut world = World::new();
    let slot = world.online(2);
    let is = |user, state| UserPresence {
        user: UserId(user),
        state,
        last_seen: 7,
    };
    let states = |world: &mut World| -> Vec<(u64, i32, u64)> {
        let mut states = Vec::new();
        for update in world.take(slot) {
            if let Update::Presence(p) = update {
                states.extend(p.users.iter().map(|u| (u.user, u.state, u.last_seen)));
            }
        }
        states
    };
    let (offline, online) = (
        i32::from(wire::Presence::Offline),
        i32::from(wire::Presence::Online),
    );
    let watch = wire::Watch { users: vec![1, 3] };
    world.command(slot, 6, Command::Watch(watch));
    let (request, _) = world.out.presences.pop().expect("asked");
    // Before it is known who may be seen nobody is, and if it can't be said it is asked again.
    let changes = [is(1, Presence::Online), is(3, Presence::Online)];
    world.core.presence_changed(&mut world.out, &changes);
    assert_eq!(states(&mut world), []);
    world
        .core
        .presence_answered(&mut world.out, request, &[], None);
    world.core.presence_changed(&mut world.out, &changes);
    assert_eq!(states(&mut world), []);
    world.pass(1);
    let (request, users) = world.out.presences.pop().expect("asked again");
    assert_eq!(users, [UserId(1), UserId(3)]);
    let blockers = [UserId(1)];
    world
        .core
        .presence_answered(&mut world.out, request, &changes[1..], Some(&blockers));
    assert_eq!(states(&mut world), [(3, online, 7), (1, offline, 0)]);
    world.core.presence_changed(&mut world.out, &changes);
    assert_eq!(states(&mut world), [(3, online, 7)]);
    // Another blocks, and an answer that is older than that doesn't show it.
    world.out.presences.clear();
    world.block(3, 2, true);
    assert_eq!(states(&mut world), [(3, offline, 0)]);
    world.core.presence_changed(&mut world.out, &changes);
    assert_eq!(states(&mut world), []);
    // Unblocked, it is asked anew.
    world.block(1, 2, false);
    let (request, _) = world.out.presences.pop().expect("asked anew");
    world
        .core
        .presence_answered(&mut world.out, request, &changes[..1], Some(&[UserId(3)]));
    assert_eq!(states(&mut world), [(1, online, 7), (3, offline, 0)]);
    world.core.presence_changed(&mut world.out, &changes);
    assert_eq!(states(&mut world), [(1, online, 7)]);
}

#[test]
fn direct_conversations_wait_until_it_is_known_whom_the_user_blocks() {
    let mut world = World::new();
    let direct = world.direct(1, 2);
    let group = world.room(7, &[1, 2]);
    let blocked = world.online(2);
    world.send(blocked, direct);
    world.send(blocked, group);
    world.settle();
    world.out.blocks.push((UserId(1), UserId(2)));
    world.out.is_directory_down = true;
    let slot = world.login(1, 10);
    let cursors = [(direct, 1), (group, 1)];
    world.sync(slot, &cursors);
    world.settle();
    world.pass(30);
    let updates = world.take(slot);
    assert_eq!(seqs(&updates, group), [2]);
    assert!(seqs(&updates, direct).is_empty());
    assert!(errors(&updates).contains(&"unavailable"), "{updates:?}");
    let is_partial = |u: &Update| matches!(u, Update::SyncDone(done) if !done.complete);
    assert!(updates.iter().any(is_partial));
    // Live events neither.
    world.send(blocked, direct);
    world.settle();
    assert!(seqs(&world.take(slot), direct).is_empty());
    world.out.is_directory_down = false;
    world.sync(slot, &cursors);
    world.settle();
    // What this session knows holds for the user's others, whatever the directory says then.
    world.out.is_directory_down = true;
    let other = world.login(1, 11);
    world.sync(other, &cursors);
    world.settle();
    world.pass(30);
    let blank = |e: &(Seq, Kind, u64)| e.1 == Kind::Empty;
    assert_eq!(
        events(&world.take(other))
            .iter()
            .filter(|e| blank(e))
            .count(),
        2
    );
    world.settle();
    let kinds: Vec<_> = events(&world.take(slot));
    assert_eq!(
        kinds
            .iter()
            .filter(|e| e.1 == Kind::Empty)
            .map(|e| e.0)
            .collect::<Vec<_>>(),
        [2, 3]
    );
}

#[test]
fn a_block_heard_of_while_the_list_is_read_counts() {
    let mut world = World::new();
    let direct = world.direct(1, 2);
    let blocked = world.online(2);
    let slot = world.connect_and_auth(1);
    // The token is checked; the list has been read, and its answer is on its way.
    world.step();
    let pair = (UserId(1), UserId(2));
    world
        .core
        .block_changed(&mut world.out, pair.0, pair.1, true);
    world.sync(slot, &[]);
    world.settle();
    world.take(slot);
    world.send(blocked, direct);
    world.settle();
    assert_eq!(events(&world.take(slot)), [(2, Kind::Empty, 0)]);
    // With the last session the list goes.
    assert_eq!(world.core.blocks.len(), 1);
    world.hang_up(slot);
    assert!(world.core.blocks.is_empty());
}
