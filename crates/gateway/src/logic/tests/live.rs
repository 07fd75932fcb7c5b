//! Events, gaps, receipts, tracking, slow readers, membership, presence.

use tidings_core::ids::{SessionId, UserId};
use tidings_core::ports::log::LogError;
use tidings_core::ports::peers::{Handed, ToGateway, ToRouter};
use tidings_core::ports::registry::{Presence, UserPresence};
use tidings_core::record::Role;
use tidings_core::rows::CursorRow;
use tidings_protocol::wire::{self, command::Command, update::Update};
use tidings_protocol::{CloseCode, Format, message_id};

use super::outside::Input;
use super::world::{World, errors, seqs};
use crate::logic::Slot;

const NONE: [u64; 0] = [];

/// Among what a session was sent since the last look it is told to sync.
fn assert_told_to_sync(world: &mut World, slot: Slot) {
    let updates = world.take(slot);
    let is_told = updates.iter().any(|u| matches!(u, Update::Lagging(_)));
    assert!(is_told, "{updates:?}");
}

#[test]
fn a_message_reaches_every_session_but_the_one_it_came_from() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2, 3]);
    let sender = world.online(1);
    let second = world.login(1, 11);
    world.sync(second, &[]);
    let json = world.login_as(Format::Json, 2, 20);
    world.sync(json, &[]);
    let third = world.online(3);
    world.settle();
    for slot in [sender, second, json] {
        world.take(slot);
    }
    let encoded = world.metric(|m| &m.encoded);
    world.out.to_router.clear();
    world.send(sender, room);
    world.settle();
    assert!(
        matches!(&world.take(sender)[..], [Update::Ack(ack)] if ack.seq == 2 && ack.status() == wire::Status::Sent)
    );
    for slot in [second, json, third] {
        let updates = world.take(slot);
        assert!(
            matches!(&updates[..], [Update::Event(e)] if e.seq == 2 && &e.body[..] == b"message 1"),
            "{updates:?}"
        );
    }
    assert_eq!(
        world.metric(|m| &m.encoded) - encoded,
        2,
        "once for each format"
    );
    assert_eq!(world.metric(|m| &m.accepted), 1);
    let handed = |m: &ToRouter| matches!(m, ToRouter::FannedOut(h) if h == &[Handed { conversation: room, seq: 2 }]);
    assert!(
        world.out.to_router.iter().any(handed),
        "{:?}",
        world.out.to_router
    );
    // Told again by another router: nobody gets it twice, and the router hears that it is handed.
    let row = world.out.rooms[&room].events[1].clone();
    world.out.to_router.clear();
    world.out.inbox.push_back(Input::Router(ToGateway::Event {
        row,
        except: SessionId(0),
        taken: 0,
    }));
    world.settle();
    assert_eq!(seqs(&world.take(third), room), NONE);
    assert!(world.out.to_router.iter().any(handed));
}

#[test]
fn a_resend_is_answered_as_the_first_try_was() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let slot = world.online(1);
    let send = world.next_send(slot, room);
    for r#ref in [7, 8] {
        world.command(slot, r#ref, Command::Send(send.clone()));
        world.settle();
        let updates = world.take_updates(slot);
        let [
            wire::Update {
                r#ref: given,
                update: Some(Update::Ack(ack)),
            },
        ] = &updates[..]
        else {
            panic!("{updates:?}")
        };
        assert_eq!(
            (*given, ack.seq, ack.counter, ack.duplicate),
            (r#ref, 2, 1, r#ref == 8)
        );
    }
    // Another body under the same counter: the first stays, and its id is in the answer.
    world.command(
        slot,
        9,
        Command::Send(wire::Send {
            id: 4711,
            body: b"another"[..].into(),
            ..send.clone()
        }),
    );
    world.settle();
    assert!(
        matches!(&world.take(slot)[..], [Update::Ack(ack)] if ack.duplicate && ack.id == send.id && ack.seq == 2)
    );
    assert_eq!(world.out.rooms[&room].events.len(), 2);
}

#[test]
fn no_more_sends_are_taken_than_may_wait_for_their_answer() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let (one, two) = (world.online(1), world.online(2));
    world.out.sends_max = Some(2);
    world.send(one, room);
    world.send(one, room);
    world.send(two, room);
    assert_eq!(errors(&world.take(two)), ["unavailable"]);
    assert_eq!((world.metric(|m| &m.shed), world.out.sends_waiting), (1, 2));
    world.settle();
    assert_eq!(world.out.sends_waiting, 0, "both are answered");
    // What the log refuses waits for nothing.
    world.out.log_fails = Some(LogError::Unavailable("down".to_owned()));
    world.send(one, room);
    assert_eq!(world.out.sends_waiting, 1);
    world.settle();
    assert_eq!(world.out.sends_waiting, 0);
}

#[test]
fn a_send_whose_answer_is_lost_leaves_its_place_after_a_while() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let slot = world.online(1);
    world.send(slot, room);
    world.out.inbox.clear();
    world.pass(15);
    assert_eq!(world.out.sends_waiting, 1);
    world.pass(1);
    assert_eq!(world.out.sends_waiting, 0);
}

#[test]
fn missing_events_are_fetched_and_later_ones_wait_for_them() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let slot = world.online(1);
    for _ in 0..6 {
        world.send_elsewhere(2, room);
    }
    // 2, 3 and 4 are lost; 6 comes before 5, and 7 not at all.
    let mut events: Vec<Input> = world
        .out
        .inbox
        .drain(..)
        .filter(|i| matches!(i, Input::Router(ToGateway::Event { .. })))
        .collect();
    assert_eq!(events.len(), 6);
    events.truncate(5);
    let (sixth, fifth) = (events.pop().expect("6"), events.pop().expect("5"));
    world.out.inbox.extend([sixth, fifth]);
    world.settle();
    assert_eq!(seqs(&world.take(slot), room), [2, 3, 4, 5, 6]);
    assert_eq!(world.metric(|m| &m.gaps), 1);
    // A lost last one is shown by the digest alone.
    world.out.digest(None);
    world.settle();
    assert_eq!(seqs(&world.take(slot), room), [7]);
}

#[test]
fn what_neither_store_nor_router_has_now_is_asked_again() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let slot = world.online(1);
    world.send_elsewhere(2, room);
    world.send_elsewhere(2, room);
    world
        .out
        .inbox
        .retain(|i| !matches!(i, Input::Router(ToGateway::Event { row, .. }) if row.seq == 2));
    world.out.is_store_down = true;
    world.out.is_router_deaf = true;
    world.settle();
    world.pass(5);
    assert_eq!(seqs(&world.take(slot), room), NONE);
    world.out.is_store_down = false;
    world.pass(10);
    assert_eq!(seqs(&world.take(slot), room), [2, 3]);
}

#[test]
fn a_gap_too_large_to_push_sends_the_sessions_to_sync() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let slot = world.online(1);
    for _ in 0..3_000 {
        world.send_elsewhere(2, room);
    }
    world.out.inbox.clear();
    world.out.digest(None);
    world.settle();
    assert!(matches!(&world.take(slot)[..], [Update::Lagging(_)]));
    world.sync(slot, &[(room, 1)]);
    world.settle();
    assert_eq!(
        seqs(&world.take(slot), room),
        (2902..=3001).collect::<Vec<_>>()
    );
    world.send_elsewhere(2, room);
    world.settle();
    assert_eq!(seqs(&world.take(slot), room), [3002]);
}

#[test]
fn a_missing_digest_makes_the_gateway_ask_everything_again() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let slot = world.online(1);
    world.out.digest(None);
    world.pass(2);
    // A join that this gateway never heard of.
    world
        .out
        .change(tidings_core::ids::ConversationId(6), &[(1, Role::Member)]);
    world.out.inbox.clear();
    world.out.digest(Some(3));
    world.pass(2);
    assert_eq!(world.metric(|m| &m.digest_gaps), 1);
    assert_told_to_sync(&mut world, slot);
    world.sync(slot, &[(room, 1)]);
    world.settle();
    assert_eq!(
        seqs(&world.take(slot), tidings_core::ids::ConversationId(6)),
        [1]
    );
}

#[test]
fn a_router_that_takes_over_is_told_what_is_wanted_until_it_answers() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let slot = world.online(1);
    world.out.digest(None);
    world.pass(2);
    // The new router knows nothing of this gateway, and something came meanwhile.
    world.out.room_unwanted(room);
    world.send_elsewhere(2, room);
    world.settle();
    assert_eq!(seqs(&world.take(slot), room), [0; 0]);
    world.out.is_router_deaf = true;
    let partition = tidings_core::ids::Partition(0);
    world.out.took_over(partition);
    world.pass(3);
    world.out.is_router_deaf = false;
    world.pass(3);
    assert_eq!(
        seqs(&world.take(slot), room),
        [2],
        "what was missed is read"
    );
    world.send_elsewhere(2, room);
    world.settle();
    assert_eq!(
        seqs(&world.take(slot), room),
        [3],
        "and what comes is pushed"
    );
    world.out.digest(Some(77));
    world.pass(2);
    assert_eq!(
        world.metric(|m| &m.digest_gaps),
        0,
        "its digests have their own numbers"
    );
}

#[test]
fn a_lost_join_is_found_by_the_next_digest_though_none_is_missing() {
    let mut world = World::new();
    world.room(5, &[1, 2]);
    let slot = world.online(1);
    world.out.digest(None);
    world.pass(2);
    world
        .out
        .change(tidings_core::ids::ConversationId(6), &[(1, Role::Member)]);
    world.out.inbox.clear();
    world.out.digest(None);
    world.pass(2);
    assert_eq!(world.metric(|m| &m.digest_gaps), 0);
    assert_told_to_sync(&mut world, slot);
}

#[test]
fn a_lost_join_is_found_though_a_later_one_of_the_conversation_came() {
    let mut world = World::new();
    world.room(5, &[1, 2]);
    let (slot, _other) = (world.online(1), world.online(2));
    world.out.digest(None);
    world.pass(2);
    let room = tidings_core::ids::ConversationId(6);
    world.out.change(room, &[(1, Role::Member)]);
    world.out.inbox.clear();
    // It brings the conversation here, with a head above the lost event.
    world.out.change(room, &[(2, Role::Member)]);
    world.pass(2);
    world.take(slot);
    world.out.digest(None);
    world.pass(2);
    assert_eq!(world.metric(|m| &m.digest_gaps), 0);
    assert_told_to_sync(&mut world, slot);
}

#[test]
fn a_membership_that_is_over_when_it_is_told_late_is_synced() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let slot = world.online(1);
    world.out.change(room, &[(1, Role::None)]);
    world.settle();
    world.take(slot);
    // Invited and removed again unheard; then somebody else brings the conversation here, with a head above that.
    world.out.change(room, &[(1, Role::Member)]);
    world.out.change(room, &[(1, Role::None)]);
    let late: Vec<_> = world.out.inbox.drain(..).collect();
    world.online(2);
    assert_eq!(world.take(slot), []);
    // A router that takes over tells what it applies again.
    world.out.inbox.extend(late);
    world.settle();
    assert_told_to_sync(&mut world, slot);
    world.sync(slot, &[(room, 2)]);
    world.settle();
    assert_eq!(seqs(&world.take(slot), room), [3, 4]);
}

#[test]
fn a_join_that_was_lost_with_its_router_is_found_when_another_takes_over() {
    let mut world = World::new();
    let known = world.room(5, &[1, 2]);
    let slot = world.online(1);
    world.out.digest(None);
    world.pass(2);
    let room = tidings_core::ids::ConversationId(6);
    world.out.change(room, &[(1, Role::Member)]);
    world.out.inbox.clear();
    let opened = |world: &World| {
        let is_open = |m: &&ToRouter| matches!(m, ToRouter::Open { .. });
        world.out.to_router.iter().filter(is_open).count()
    };
    let before = opened(&world);
    world.out.took_over(tidings_core::ids::Partition(0));
    world.pass(2);
    assert_eq!(opened(&world), before + 1, "only what differs is opened");
    assert_told_to_sync(&mut world, slot);
    world.sync(slot, &[(known, 1)]);
    world.settle();
    assert_eq!(seqs(&world.take(slot), room), [1]);
}

#[test]
fn who_was_a_member_for_a_moment_that_was_lost_is_told() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let slot = world.online(1);
    world.out.digest(None);
    world.out.change(room, &[(1, Role::None)]);
    world.pass(2);
    assert_eq!(seqs(&world.take(slot), room), [2]);
    world.out.change(room, &[(1, Role::Member)]);
    world.send_elsewhere(2, room);
    world.out.change(room, &[(1, Role::None)]);
    world.out.inbox.clear();
    world.out.digest(None);
    world.pass(2);
    assert_told_to_sync(&mut world, slot);
    world.sync(slot, &[(room, 2)]);
    world.settle();
    assert_eq!(seqs(&world.take(slot), room), [3, 4, 5]);
}

#[test]
fn who_joins_gets_events_from_the_join_on_and_who_leaves_up_to_the_leave() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let (old, new) = (world.online(1), world.online(3));
    world.send_elsewhere(2, room);
    world.settle();
    assert_eq!(seqs(&world.take(new), room), NONE);
    world.out.change(room, &[(3, Role::Member)]);
    world.send_elsewhere(2, room);
    world.settle();
    assert_eq!(seqs(&world.take(new), room), [3, 4]);
    world.out.change(room, &[(1, Role::None)]);
    world.send_elsewhere(2, room);
    world.settle();
    assert_eq!(seqs(&world.take(old), room), [2, 3, 4, 5]);
    assert_eq!(seqs(&world.take(new), room), [5, 6]);
    world.delivered(old, room, 5);
    assert!(matches!(&world.take(old)[..], [Update::Error(e)] if e.code == "forbidden"));
    // A conversation in which nobody here was before.
    let other = world.room(6, &[2]);
    world.out.change(other, &[(3, Role::Member)]);
    world.send_elsewhere(2, other);
    world.settle();
    assert_eq!(seqs(&world.take(new), other), [2, 3]);
}

#[test]
fn the_router_is_told_when_nobody_here_wants_a_conversation() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let (a, b) = (world.online(1), world.online(2));
    world.hang_up(a);
    world.pass(2);
    let is_close = |m: &ToRouter| matches!(m, ToRouter::Close(c) if c == &[room]);
    assert!(!world.out.to_router.iter().any(is_close));
    world.hang_up(b);
    world.pass(1);
    assert!(world.out.to_router.iter().any(is_close));
}

#[test]
fn cursors_go_to_the_router_whichever_way_they_are_named() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let slot = world.online(1);
    for _ in 0..4 {
        world.send_elsewhere(2, room);
    }
    world.settle();
    world.out.to_router.clear();
    world.delivered(slot, room, 3);
    world.delivered(slot, room, 5);
    world.delivered(slot, room, 4);
    let event = world.out.rooms[&room].events[3].clone();
    let id = message_id(room.0, event.sender.0, event.grant, event.counter);
    world.command(
        slot,
        0,
        Command::Read(wire::Read {
            conversation: room.0,
            seq: 0,
            message_id: id.to_vec().into(),
        }),
    );
    world.settle();
    world.pass(1);
    let rows: Vec<CursorRow> = world
        .out
        .to_router
        .iter()
        .flat_map(|m| {
            if let ToRouter::Cursors(rows) = m {
                rows.clone()
            } else {
                vec![]
            }
        })
        .collect();
    let delivered = rows.iter().map(|r| r.delivered).max();
    let read = rows.iter().map(|r| r.read).max();
    assert_eq!((delivered, read), (Some(5), Some(4)), "{rows:?}");
    world.command(
        slot,
        9,
        Command::Read(wire::Read {
            conversation: room.0,
            seq: 0,
            message_id: vec![9; 16].into(),
        }),
    );
    world.settle();
    assert!(
        world
            .take(slot)
            .iter()
            .any(|u| matches!(u, Update::Error(e) if e.code == "bad_cursor"))
    );
}

#[test]
fn receipts_and_typing_are_told_to_the_others() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let (a, b) = (world.online(1), world.online(2));
    let cursors: Vec<CursorRow> = (1..=300)
        .map(|u| CursorRow {
            conversation: room,
            user: UserId(u),
            delivered: 1,
            read: 1,
        })
        .collect();
    let receipts = ToGateway::Receipts {
        conversation: room,
        cursors: cursors.into(),
    };
    world.out.inbox.push_back(Input::Router(receipts));
    world.command(
        a,
        0,
        Command::Typing(wire::Typing {
            conversation: room.0,
            on: true,
        }),
    );
    world.settle();
    let counts: Vec<usize> = world
        .take(b)
        .iter()
        .filter_map(|u| {
            if let Update::Receipts(r) = u {
                Some(r.receipts.len())
            } else {
                None
            }
        })
        .collect();
    assert_eq!(counts, [256, 44]);
    assert!(
        !world.take(a).iter().any(|u| matches!(u, Update::Typing(_))),
        "not to the one who types"
    );
    world.command(
        b,
        0,
        Command::Typing(wire::Typing {
            conversation: room.0,
            on: false,
        }),
    );
    world.settle();
    assert!(matches!(&world.take(a)[..], [Update::Typing(t)] if t.user == 2 && !t.on));
}

#[test]
fn what_is_not_confirmed_is_sent_again_and_then_the_session_is_given_up() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2, 3]);
    let (deaf, good, author) = (world.online(1), world.online(3), world.online(2));
    world.send(author, room);
    world.settle();
    world.delivered(good, room, 2);
    world.take(deaf);
    world.pass(10);
    assert_eq!(
        world
            .core
            .metrics()
            .pending
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
    for again in 1..=3u64 {
        world.pass(37);
        let resent: Vec<u64> = seqs(&world.take(deaf), room);
        assert_eq!(resent, [2], "resend {again}");
    }
    world.pass(37);
    assert_eq!(world.closed(deaf), Some(CloseCode::Heartbeat));
    assert_eq!(world.closed(good), None);
    let told = world.take(author);
    assert!(
        told.iter()
            .any(|u| matches!(u, Update::Delayed(d) if d.seq == 2)),
        "{told:?}"
    );
    let marked = |world: &World| {
        let mut marks = world.out.marks.iter();
        marks.any(|m| m.user == UserId(1) && m.conversation == room && m.seq == 2)
    };
    assert!(marked(&world));
    assert_eq!(seqs(&world.take(good), room), [2]);
    let back = world.online(1);
    world.pass(10);
    assert!(marked(&world), "nothing is confirmed yet");
    world.delivered(back, room, 2);
    world.pass(10);
    assert!(
        !marked(&world),
        "the mark is cleared with what it stood for"
    );
}

#[test]
fn a_client_that_lacks_older_pages_is_not_given_up() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    for _ in 0..300 {
        world.send_elsewhere(2, room);
    }
    let slot = world.login(1, 10);
    world.sync(slot, &[(room, 1)]);
    world.settle();
    world.send_elsewhere(2, room);
    for _ in 0..10 {
        world.pass(20);
        world.socket(slot).heard = world.out.now;
    }
    assert_eq!(world.closed(slot), None);
    assert_eq!(world.metric(|m| &m.resent), 0);
    world.delivered(slot, room, 302);
    world.send_elsewhere(2, room);
    world.settle();
    world.pass(40);
    assert_eq!(
        world.metric(|m| &m.resent),
        1,
        "from here on it has confirmed everything before"
    );
}

#[test]
fn a_slow_reader_is_told_to_catch_up_when_it_has_drained() {
    let mut world = World::new();
    world.out.queue_max = 2_000;
    let room = world.room(5, &[1, 2, 3]);
    let (slow, other) = (world.online(1), world.online(3));
    world.socket(slow).is_blocked = true;
    for _ in 0..200 {
        world.send_elsewhere(2, room);
    }
    world.settle();
    assert_eq!(world.metric(|m| &m.lagging), 1);
    assert_eq!(seqs(&world.take(other), room).len(), 200);
    assert_eq!(world.socket(slow).queued, 0);
    world.unblock(slow);
    world.settle();
    assert!(matches!(&world.take(slow)[..], [Update::Lagging(_)]));
    world.sync(slow, &[(room, 1)]);
    world.settle();
    assert_eq!(
        seqs(&world.take(slow), room),
        (102..=201).collect::<Vec<_>>()
    );
    world.send_elsewhere(2, room);
    world.settle();
    assert_eq!(seqs(&world.take(slow), room), [202]);
}

#[test]
fn a_reader_that_never_drains_is_closed() {
    let mut world = World::new();
    world.out.queue_max = 500;
    let room = world.room(5, &[1, 2]);
    let slow = world.online(1);
    world.socket(slow).is_blocked = true;
    for _ in 0..20 {
        world.send_elsewhere(2, room);
    }
    world.settle();
    world.pass(28);
    assert_eq!(world.closed(slow), None);
    world.pass(4);
    assert_eq!(world.closed(slow), Some(CloseCode::TooSlow));
}

#[test]
fn heads_are_told_by_the_heartbeat_where_something_moved_and_is_not_confirmed() {
    let mut world = World::new();
    let (a, b) = (world.room(5, &[1, 2]), world.room(6, &[1, 2]));
    let slot = world.online(1);
    world.send_elsewhere(2, a);
    world.send_elsewhere(2, b);
    world.settle();
    world.delivered(slot, b, 2);
    world.pass(31);
    let heads: Vec<wire::Heads> = world
        .take(slot)
        .into_iter()
        .filter_map(|u| {
            if let Update::Heads(h) = u {
                Some(h)
            } else {
                None
            }
        })
        .collect();
    let wanted = vec![wire::Cursor {
        conversation: a.0,
        seq: 2,
    }];
    assert!(heads.iter().any(|h| h.heads == wanted), "{heads:?}");
}

#[test]
fn watched_users_are_heard_of() {
    let mut world = World::new();
    let (slot, other) = (world.online(1), world.online(2));
    world.command(slot, 6, Command::Watch(wire::Watch { users: vec![2, 3] }));
    let (request, users) = world.out.presences.pop().expect("asked at once");
    assert_eq!(users, [UserId(2), UserId(3)]);
    let online = UserPresence {
        user: UserId(2),
        state: Presence::Online,
        last_seen: 0,
    };
    world
        .core
        .presence_answered(&mut world.out, request, &[online], Some(&[]));
    let updates = world.take_updates(slot);
    assert!(
        matches!(&updates[..], [wire::Update { r#ref: 6, update: Some(Update::Presence(p)) }] if p.users.len() == 1)
    );
    world.pass(1);
    assert_eq!(world.out.watched, [UserId(2), UserId(3)]);
    let away = UserPresence {
        user: UserId(3),
        state: Presence::Away,
        last_seen: 5,
    };
    world.core.presence_changed(&mut world.out, &[away]);
    assert!(
        matches!(&world.take(slot)[..], [Update::Presence(p)] if p.users[0].user == 3 && p.users[0].last_seen == 5)
    );
    assert!(world.take(other).is_empty());
    world.hang_up(slot);
    world.pass(1);
    assert_eq!(world.out.watched, []);
    let too_many = wire::Watch {
        users: (1..=1001).collect(),
    };
    world.command(other, 0, Command::Watch(too_many));
    assert!(matches!(&world.take(other)[..], [Update::Error(e)] if e.code == "too_long"));
}
