//! Sync and history.

use tidings_core::ids::{ConversationId, Seq, UserId};
use tidings_core::ports::peers::{ToGateway, ToRouter};
use tidings_core::record::Role;
use tidings_protocol::wire::{self, command::Command, update::Update};
use tidings_protocol::{Format, limits};

use super::super::outbound::Slot;
use super::outside::Input;
use super::world::{World, errors, seqs};

fn done(updates: &[Update]) -> &wire::SyncDone {
    let Some(Update::SyncDone(done)) = updates.last() else {
        panic!("no sync_done at the end: {updates:?}")
    };
    done
}

fn page(updates: &[Update], conversation: ConversationId) -> &wire::SyncPage {
    for update in updates {
        match update {
            Update::SyncPage(page) if page.conversation == conversation.0 => return page,
            _ => {}
        }
    }
    panic!("no page of {conversation}")
}

#[test]
fn a_device_gets_what_it_missed_in_every_conversation_and_then_what_is_new() {
    for format in Format::ALL {
        let mut world = World::new();
        let (a, b, quiet) = (
            world.room(5, &[1, 2]),
            world.room(6, &[1, 2]),
            world.room(7, &[1, 2]),
        );
        for _ in 0..9 {
            world.send_elsewhere(2, a);
        }
        world.send_elsewhere(2, b);
        let slot = world.login_as(format, 1, 10);
        world.sync(slot, &[(a, 4), (quiet, 1)]);
        world.settle();
        let updates = world.take(slot);
        assert_eq!(seqs(&updates, a), [5, 6, 7, 8, 9, 10]);
        assert_eq!(
            seqs(&updates, b),
            [1, 2],
            "a conversation the client didn't know"
        );
        assert_eq!(seqs(&updates, quiet), [] as [Seq; 0]);
        let page = page(&updates, quiet);
        assert_eq!(
            (page.head, page.grant, page.visible_from),
            (1, 1, 1),
            "grant and head all the same"
        );
        let done = done(&updates);
        assert_eq!(
            (done.conversations, done.complete, done.reset),
            (3, true, false)
        );
        world.send_elsewhere(2, a);
        world.settle();
        assert_eq!(seqs(&world.take(slot), a), [11]);
    }
}

#[test]
fn who_was_made_a_member_just_now_is_told_when_the_log_has_heard_of_it() {
    let mut world = World::new();
    let (old, new) = (world.room(5, &[1, 2]), ConversationId(6));
    world.out.unheard.push((UserId(1), new));
    let slot = world.login(1, 10);
    world.sync(slot, &[(old, 1)]);
    world.settle();
    let updates = world.take(slot);
    assert_eq!(errors(&updates), [] as [&str; 0]);
    let told = done(&updates);
    assert_eq!((told.conversations, told.complete), (1, true));
    world.room(6, &[1, 2]);
    assert_eq!(seqs(&world.take(slot), new), [1]);
    world.sync(slot, &[(ConversationId(7), 1)]);
    world.settle();
    let updates = world.take(slot);
    assert_eq!(errors(&updates), ["forbidden"], "named by the client");
}

#[test]
fn nothing_is_pushed_before_the_client_has_synced() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let slot = world.login(1, 10);
    world.send_elsewhere(2, room);
    world.settle();
    assert_eq!(seqs(&world.take(slot), room), [] as [Seq; 0]);
    world.pass(20);
    world.sync(slot, &[]);
    world.settle();
    assert_eq!(seqs(&world.take(slot), room), [1, 2]);
}

#[test]
fn far_behind_the_newest_page_comes_first_and_the_rest_on_demand() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    for _ in 0..400 {
        world.send_elsewhere(2, room);
    }
    let slot = world.login(1, 10);
    world.sync(slot, &[(room, 10)]);
    world.settle();
    let updates = world.take(slot);
    let newest = page(&updates, room);
    assert_eq!((newest.missing_from, newest.head), (11, 401));
    assert_eq!(seqs(&updates, room), (302..=401).collect::<Vec<_>>());
    let mut before = 302;
    let mut older = Vec::new();
    while before > 11 {
        world.command(
            slot,
            3,
            Command::History(wire::History {
                conversation: room.0,
                before,
                after: 0,
                limit: 120,
            }),
        );
        world.settle();
        let updates = world.take(slot);
        let [Update::HistoryPage(page)] = &updates[..] else {
            panic!("{updates:?}")
        };
        assert_eq!(page.to, before - 1);
        let mut seqs: Vec<Seq> = page.events.iter().map(|e| e.seq).collect();
        assert_eq!(seqs, (page.from..=page.to).collect::<Vec<_>>());
        seqs.extend(older);
        older = seqs;
        before = page.from;
    }
    assert_eq!(older.last(), Some(&301));
}

#[test]
fn events_that_come_while_a_sync_is_read_follow_its_page() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    for _ in 0..5 {
        world.send_elsewhere(2, room);
    }
    let slot = world.login(1, 10);
    world.sync(slot, &[]);
    // The read is under way; the events overtake it.
    while world.out.reads == 0 {
        assert!(world.step());
    }
    let read = world.out.inbox.pop_front().expect("the read");
    for _ in 0..3 {
        world.send_elsewhere(2, room);
    }
    world.settle();
    world.out.inbox.push_back(read);
    world.settle();
    world.send_elsewhere(2, room);
    world.settle();
    let updates = world.take(slot);
    assert_eq!(seqs(&updates, room), (1..=10).collect::<Vec<_>>());
}

/// A conversation of 21 events of which the store has 8, and a session of a member.
fn half_stored() -> (World, ConversationId, Slot) {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    for _ in 0..20 {
        world.send_elsewhere(2, room);
    }
    world.out.rooms.get_mut(&room).expect("it").stored = 8;
    let slot = world.login(1, 10);
    (world, room, slot)
}

#[test]
fn what_the_store_does_not_have_yet_comes_from_the_logs_tail() {
    let (mut world, room, slot) = half_stored();
    world.sync(slot, &[]);
    world.settle();
    let updates = world.take(slot);
    assert_eq!(seqs(&updates, room), (1..=21).collect::<Vec<_>>());
    assert!(done(&updates).complete);
}

#[test]
fn history_looks_at_the_logs_tail_too_and_says_when_neither_side_knows() {
    let (mut world, room, slot) = half_stored();
    world.take(slot);
    let history = |after| wire::History {
        conversation: room.0,
        before: 0,
        after,
        limit: 10,
    };
    world.out.is_store_down = true;
    world.command(slot, 3, Command::History(history(8)));
    world.settle();
    assert!(
        matches!(&world.take(slot)[..], [Update::HistoryPage(p)] if (p.from, p.to, p.events.len()) == (9, 18, 10))
    );
    world.command(slot, 3, Command::History(history(3)));
    world.settle();
    assert_eq!(errors(&world.take(slot)), ["history_delayed"]);
}

#[test]
fn history_that_cannot_be_read_is_said_to_be_late_and_live_events_go_on() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    world.send_elsewhere(2, room);
    let slot = world.login(1, 10);
    world.out.is_store_down = true;
    world.out.is_router_deaf = true;
    world.sync(slot, &[(room, 1)]);
    world.pass(60);
    world.out.is_router_deaf = false;
    let updates = world.take(slot);
    let page = page(&updates, room);
    assert_eq!((page.missing_from, page.events.len()), (2, 0));
    assert!(errors(&updates).contains(&"history_delayed"), "{updates:?}");
    let is_incomplete = |u: &Update| matches!(u, Update::SyncDone(done) if !done.complete);
    assert!(updates.iter().any(is_incomplete));
    world.send_elsewhere(2, room);
    world.settle();
    assert_eq!(seqs(&world.take(slot), room), [3]);
}

#[test]
fn who_lacks_an_event_that_is_only_heard_of_is_not_told_that_it_has_all() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    world.send_elsewhere(2, room);
    let slot = world.login(1, 10);
    world.settle();
    // The router has said how it stands. The next event is lost on its way, and nobody says what it is.
    world.send_elsewhere(2, room);
    world.out.inbox.clear();
    world.out.is_store_down = true;
    world.out.is_router_deaf = true;
    world.out.digest(None);
    world.settle();
    world.sync(slot, &[(room, 2)]);
    world.settle();
    let updates = world.take(slot);
    assert_eq!(page(&updates, room).head, 3);
    assert!(!done(&updates).complete);
    world.out.is_store_down = false;
    world.out.is_router_deaf = false;
    world.pass(30);
    assert_eq!(seqs(&world.take(slot), room), [3]);
}

#[test]
fn cursors_of_a_lost_log_are_answered_with_reset() {
    let mut world = World::new();
    let room = world.room(5, &[1]);
    let slot = world.login(1, 10);
    world.take(slot);
    let cursors = vec![wire::Cursor {
        conversation: room.0,
        seq: 77,
    }];
    world.command(
        slot,
        2,
        Command::Sync(wire::Sync {
            epoch: 3,
            cursors,
            page: 0,
        }),
    );
    world.settle();
    let updates = world.take(slot);
    assert!(matches!(&updates[..], [Update::SyncDone(done)] if done.reset && done.epoch == 1));
    world.command(
        slot,
        2,
        Command::Sync(wire::Sync {
            epoch: 1,
            cursors: Vec::new(),
            page: 0,
        }),
    );
    world.settle();
    assert_eq!(seqs(&world.take(slot), room), [1]);
}

#[test]
fn who_left_gets_events_up_to_that_and_no_further() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    world.send_elsewhere(2, room);
    world.out.change(room, &[(1, Role::None)]);
    world.send_elsewhere(2, room);
    world.settle();
    let slot = world.login(1, 10);
    world.sync(slot, &[(room, 1)]);
    world.settle();
    let updates = world.take(slot);
    assert_eq!(seqs(&updates, room), [2, 3]);
    let page = page(&updates, room);
    assert_eq!(
        (page.head, page.grant, page.role()),
        (3, 0, wire::Role::None)
    );
    world.send_elsewhere(2, room);
    world.settle();
    assert_eq!(seqs(&world.take(slot), room), [] as [Seq; 0]);
    world.command(
        slot,
        3,
        Command::History(wire::History {
            conversation: room.0,
            before: 0,
            after: 0,
            limit: 9,
        }),
    );
    world.settle();
    let updates = world.take(slot);
    let [Update::HistoryPage(page)] = &updates[..] else {
        panic!("{updates:?}")
    };
    assert_eq!(
        page.events.iter().map(|e| e.seq).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    world.sync(slot, &[(room, 3)]);
    world.settle();
    assert!(matches!(&world.take(slot)[..], [Update::SyncDone(done)] if done.conversations == 0));
}

#[test]
fn a_removal_before_the_routers_answer_does_not_end_a_sync() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2, 3]);
    let _bystander = world.online(3);
    // This gateway misses that user 1 was removed and invited anew.
    world.out.change(room, &[(1, Role::None)]);
    world.out.change(room, &[(1, Role::Member)]);
    for _ in 0..3 {
        world.send_elsewhere(2, room);
    }
    world.out.inbox.clear();
    let slot = world.connect_and_auth(1);
    // It reads what it missed for itself, and then for the session.
    let reads = world.out.reads;
    while world.out.reads == reads {
        assert!(world.step());
    }
    let missed = world.out.inbox.pop_back().expect("the read");
    world.settle();
    world.sync(slot, &[(room, 1)]);
    world.out.inbox.push_front(missed);
    world.settle();
    let updates = world.take(slot);
    let page = page(&updates, room);
    assert_eq!((page.head, page.role()), (6, wire::Role::Member));
    assert_eq!(seqs(&updates, room), [3, 4, 5, 6]);
    assert!(done(&updates).complete);
    world.send_elsewhere(2, room);
    world.settle();
    assert_eq!(seqs(&world.take(slot), room), [7]);
}

#[test]
fn what_was_said_before_the_join_is_hidden_and_no_hole() {
    let mut world = World::new();
    let room = world.room(5, &[2]);
    for _ in 0..5 {
        world.send_elsewhere(2, room);
    }
    world.out.change(room, &[(1, Role::Member)]);
    world.send_elsewhere(2, room);
    world.settle();
    let slot = world.login(1, 10);
    world.sync(slot, &[]);
    world.settle();
    let updates = world.take(slot);
    assert_eq!(seqs(&updates, room), [7, 8]);
    assert_eq!(
        (
            page(&updates, room).visible_from,
            page(&updates, room).missing_from
        ),
        (7, 0)
    );
    world.command(
        slot,
        3,
        Command::History(wire::History {
            conversation: room.0,
            before: 8,
            after: 0,
            limit: 50,
        }),
    );
    world.settle();
    let updates = world.take(slot);
    let [Update::HistoryPage(page)] = &updates[..] else {
        panic!("{updates:?}")
    };
    assert_eq!((page.from, page.to, page.events.len()), (1, 7, 1));
    world.command(
        slot,
        3,
        Command::History(wire::History {
            conversation: room.0,
            before: 5,
            after: 0,
            limit: 2,
        }),
    );
    world.settle();
    assert!(
        matches!(&world.take(slot)[..], [Update::HistoryPage(p)] if (p.from, p.to, p.events.len()) == (3, 4, 0))
    );
}

#[test]
fn a_long_sync_goes_no_faster_than_the_client_reads() {
    let mut world = World::new();
    world.out.queue_max = 256 << 10;
    let rooms: Vec<ConversationId> = (100..160).map(|id| world.room(id, &[1, 2])).collect();
    for &room in &rooms {
        for _ in 0..100 {
            world.send_elsewhere(2, room);
        }
    }
    let slot = world.login(1, 10);
    world.take(slot);
    world.socket(slot).is_blocked = true;
    world.sync(slot, &[]);
    // One turn after another, as the worker would run them.
    for _ in 0..1000 {
        while world.step() {}
        world.core.turn_start(&mut world.out);
    }
    let queued = world.socket(slot).queued;
    assert!((20 << 10..160 << 10).contains(&queued), "{queued}");
    assert_eq!(world.metric(|m| &m.lagging), 0);
    world.unblock(slot);
    world.settle();
    let updates = world.take(slot);
    for &room in &rooms {
        assert_eq!(seqs(&updates, room), (2..=101).collect::<Vec<_>>());
    }
    assert!(done(&updates).complete);
}

#[test]
fn what_went_by_here_lately_is_not_read_again() {
    let mut world = World::new();
    let room = world.room(5, &[1, 2]);
    let slot = world.login(1, 10);
    world.sync(slot, &[(room, 1)]);
    world.settle();
    for _ in 0..10 {
        world.send_elsewhere(2, room);
    }
    world.settle();
    let reads = world.out.reads;
    for (device, cursor) in [(11, 1), (12, 4), (13, 11)] {
        let late = world.login(1, device);
        world.sync(late, &[(room, cursor)]);
        world.settle();
        let updates = world.take(late);
        assert_eq!(seqs(&updates, room), (cursor + 1..=11).collect::<Vec<_>>());
        assert!(done(&updates).complete);
    }
    assert_eq!(world.out.reads, reads);
    assert_eq!(world.metric(|m| &m.reads_recent), 2);
}

#[test]
fn a_storm_of_equal_syncs_reads_once() {
    let mut world = World::new();
    let room = world.room(5, &(1..=50).collect::<Vec<_>>());
    for _ in 0..10 {
        world.send_elsewhere(2, room);
    }
    let slots: Vec<_> = (1..=50).map(|user| world.connect_and_auth(user)).collect();
    world.settle();
    for &slot in &slots {
        world.sync(slot, &[]);
    }
    world.settle();
    for &slot in &slots {
        assert_eq!(seqs(&world.take(slot), room), (1..=11).collect::<Vec<_>>());
    }
    assert_eq!(world.out.reads, 1);
}

#[test]
fn without_the_directory_the_clients_cursors_say_where_to_look() {
    let mut world = World::new();
    let (room, strange) = (world.room(5, &[1, 2]), world.room(6, &[2]));
    world.send_elsewhere(2, room);
    world.out.is_directory_down = true;
    let slot = world.login(1, 10);
    world.sync(slot, &[(room, 1), (strange, 1)]);
    world.pass(30);
    let updates = world.take(slot);
    assert_eq!(seqs(&updates, room), [2]);
    assert_eq!(seqs(&updates, strange), [] as [Seq; 0]);
    assert!(
        errors(&updates).contains(&"forbidden"),
        "not a member looks like no conversation"
    );
    assert!(
        updates
            .iter()
            .any(|u| matches!(u, Update::SyncDone(done) if !done.complete))
    );
}

#[test]
fn too_many_cursors_are_refused() {
    let mut world = World::new();
    let slot = world.login(1, 10);
    world.take(slot);
    let cursors: Vec<_> = (1..=limits::SYNC_CURSORS_MAX as u64 + 1)
        .map(|c| (ConversationId(c), 1))
        .collect();
    world.sync(slot, &cursors);
    assert_eq!(errors(&world.take(slot)), ["too_long"]);
}

#[test]
fn an_answer_to_a_former_process_is_not_taken_for_one_to_this_process() {
    let mut former = World::new();
    let room = former.room(5, &[1, 2]);
    former.out.is_router_deaf = true;
    former.login(1, 10);
    let asked = std::mem::take(&mut former.out.to_router);

    let mut world = World::with(|settings| settings.session_base = 2_000);
    world.room(5, &[1, 2]);
    world.out.is_router_deaf = true;
    let stranger = world.login(3, 30);
    world.sync(stranger, &[(room, 0)]);
    let mut late = 0;
    for message in asked {
        if let ToRouter::Open { request, .. } = message {
            let states = vec![world.out.state(room, UserId(1))];
            let later = Vec::new();
            let answer = ToGateway::Opened {
                request,
                states,
                later,
            };
            world.out.inbox.push_back(Input::Router(answer));
            late += 1;
        }
    }
    assert_ne!(late, 0, "the member's conversations were asked");
    world.settle();
    assert_eq!(seqs(&world.take(stranger), room), [] as [Seq; 0]);
}
