//! What each answer of the verdict table makes the client do.

mod common;

use common::bench::{Bench, SECOND, join, message};
use common::{CONVERSATION, ME};
use tidings_client::{AppEvent, Config, FailReason, Lane, LocalId, PersistOp, Saved};
use tidings_protocol::wire::{
    Error, Event, HistoryPage, Kind, Lagging, Limits, MemberChange, Members, Role, Status,
    SyncPage, update::Update,
};

fn page(from: u64, events: Vec<Event>, to: u64) -> Update {
    Update::HistoryPage(HistoryPage {
        conversation: CONVERSATION,
        from,
        to,
        events,
        head: to,
    })
}

fn refuse(bench: &mut Bench, counter: u64, code: &str, retry_after_ms: u32) {
    let sender = bench.sends[0].sender;
    bench.hear(Update::Error(Error {
        code: code.into(),
        retry_after_ms,
        conversation: CONVERSATION,
        sender,
        counter,
        ..Error::default()
    }));
}

#[test]
fn numbers_are_saved_before_the_first_try_and_chain_by_previous_id() {
    let bench = Bench::sending(3);
    let (first, second) = (&bench.sends[0], &bench.sends[1]);
    assert_eq!((first.counter, first.grant, first.previous), (1, 1, 0));
    assert_eq!((second.counter, second.previous), (2, first.id));
    let numbered = bench
        .persisted
        .iter()
        .filter(|op| matches!(op, PersistOp::Numbered { .. }));
    assert_eq!(numbered.count(), 3);
}

#[test]
fn sent_is_cumulative_and_fills_the_event_in_when_its_turn_comes() {
    let mut bench = Bench::sending(3);
    let id = bench.sends[1].id;
    bench.ack(Status::Sent, 2, id, 4, 4);
    assert_eq!(bench.sent(), [1, 2]);
    assert_eq!(
        bench.seen(),
        [1],
        "seqs 2 and 3 are missing before the own message"
    );
    bench.hear(Update::Event(message(2)));
    bench.hear(Update::Event(message(3)));
    assert_eq!(bench.seen(), [1, 2, 3, 4]);
    // A lower n than known says nothing, whatever id it names.
    bench.ack(Status::Sent, 1, 0xbad, 2, 2);
    assert_eq!((bench.sent().len(), bench.histories().len()), (2, 0));
}

#[test]
fn a_gap_is_sent_again_once_however_often_it_is_told() {
    let mut bench = Bench::sending(4);
    let id = bench.sends[0].id;
    for _ in 0..3 {
        bench.ack(Status::Gap, 1, id, 2, 2);
    }
    assert_eq!(bench.sent(), [1], "a gap acknowledges what is before it");
    assert_eq!(bench.counters_sent(4), [2, 3, 4]);
}

#[test]
fn over_offers_the_rest_and_numbers_it_under_the_next_grant() {
    let mut bench = Bench::sending(3);
    let id = bench.sends[0].id;
    bench.ack(Status::Over, 1, id, 2, 3);
    assert_eq!(bench.sent(), [1]);
    let offered = |e: &&AppEvent| matches!(e, AppEvent::Offered { .. });
    assert_eq!(bench.app.iter().filter(offered).count(), 2);
    assert_eq!(bench.counters_sent(3), [] as [u64; 0], "no grant is known");
    assert!(bench.core.withdraw(CONVERSATION, LocalId(3)));
    bench.synced(4, 4, 2, vec![join(4)]);
    let again = &bench.sends[3..];
    assert_eq!(again.len(), 1);
    assert_eq!(
        (again[0].grant, again[0].counter, again[0].previous),
        (4, 1, 0)
    );
    assert_eq!(
        again[0].sender, bench.sends[0].sender,
        "a new grant, the same outbox"
    );
}

#[test]
fn a_later_grant_waits_until_the_old_ones_messages_are_decided() {
    let mut bench = Bench::sending(1);
    let change = MemberChange {
        user: ME,
        role: Role::Member.into(),
        ended: 1,
    };
    let members = Some(Members {
        version: 2,
        changes: vec![change],
        ..Members::default()
    });
    let kind = Kind::Members.into();
    let (conversation, seq) = (CONVERSATION, 2);
    bench.hear(Update::Event(Event {
        conversation,
        seq,
        kind,
        members,
        ..Event::default()
    }));
    bench.write();
    assert_eq!(
        bench.sends.len(),
        1,
        "counter 1 of the old grant isn't decided"
    );
    bench.ack(Status::Over, 0, 0, 0, 2);
    let grants: Vec<_> = bench.sends[1..]
        .iter()
        .map(|s| (s.grant, s.counter))
        .collect();
    assert_eq!(grants, [(2, 1), (2, 2)]);
}

/// The server's message 1 isn't ours: what the history shows is sent, the rest goes out
/// under a fresh sender id.
fn ends_as_a_copy(mut bench: Bench) {
    let old = bench.sends[0].clone();
    assert_eq!(
        bench.sends.len(),
        2,
        "nothing goes out while the history is read"
    );
    let (r#ref, asked) = bench.histories()[0];
    assert_eq!(asked.after, 1, "from behind the grant on");
    let found = Event {
        user: ME,
        id: bench.sends[1].id,
        sender: old.sender,
        grant: 1,
        counter: 1,
        ..message(2)
    };
    bench.answer(r#ref, page(2, vec![found, message(3)], 3));
    assert_eq!(bench.sent(), [2]);
    let new = bench.sends[2].clone();
    assert_eq!((new.counter, new.id, new.previous), (1, old.id, 0));
    assert_ne!(new.sender, old.sender);
    let noticed = AppEvent::CopyNoticed {
        conversation: CONVERSATION,
        old: old.sender,
        new: new.sender,
    };
    assert!(bench.app.contains(&noticed));
}

#[test]
fn another_id_under_n_shows_that_the_outbox_is_a_copy() {
    let mut bench = Bench::sending(2);
    bench.ack(Status::Sent, 1, 0xf0e, 2, 3);
    ends_as_a_copy(bench);
}

#[test]
fn a_fork_naming_a_foreign_id_shows_a_copy() {
    let mut bench = Bench::sending(2);
    bench.ack(Status::Fork, 1, 0xf0e, 2, 3);
    ends_as_a_copy(bench);
}

#[test]
fn a_foreign_event_under_the_own_sender_waits_for_the_answer_that_shows_a_copy() {
    let mut bench = Bench::sending(2);
    let sender = bench.sends[0].sender;
    let foreign = Event {
        user: ME,
        sender,
        grant: 1,
        counter: 5,
        id: 0xf0e,
        ..message(2)
    };
    // The other life may have sent more that isn't decided yet: up to where to look the answer says.
    bench.hear(Update::Event(foreign));
    assert!(bench.histories().is_empty());
    bench.ack(Status::Sent, 5, 0xf0e, 2, 3);
    ends_as_a_copy(bench);
}

#[test]
fn stale_for_the_grant_in_use_shows_a_copy_and_waits_for_the_later_grant() {
    let mut bench = Bench::sending(1);
    let old = bench.sends[0].clone();
    bench.ack(Status::Stale, 0, 0, 0, 4);
    bench.synced(4, 4, 2, vec![]);
    let (r#ref, _) = bench.histories()[0];
    bench.answer(r#ref, page(2, vec![message(2), message(3), join(4)], 4));
    let new = &bench.sends[1];
    assert_eq!((new.grant, new.counter, new.id), (4, 1, old.id));
    assert_ne!(new.sender, old.sender);
}

#[test]
fn stale_for_an_older_grant_says_nothing() {
    let mut bench = Bench::sending(1);
    bench.ack(Status::Over, 0, 0, 0, 2);
    bench.synced(3, 3, 0, vec![message(2), join(3)]);
    assert_eq!(bench.sends[1].grant, 3);
    // For grant 1, which is left behind.
    bench.ack(Status::Stale, 0, 0, 0, 3);
    assert!(bench.histories().is_empty());
}

/// A change of the user's role at seq 2.
fn change(role: Role, ended: u64) -> Update {
    let changes = vec![MemberChange {
        user: ME,
        role: role.into(),
        ended,
    }];
    let members = Some(Members {
        version: 2,
        changes,
        ..Members::default()
    });
    Update::Event(Event {
        seq: 2,
        members,
        ..join(2)
    })
}

#[test]
fn a_grant_ends_with_its_event_even_when_a_page_with_a_later_head_still_names_it() {
    let mut bench = Bench::new(Config::default(), Saved::default());
    bench.sign_in(Limits::default());
    bench.synced(2, 1, 0, vec![join(1)]);
    bench.hear(change(Role::Member, 1));
    bench.write();
    assert_eq!(bench.sends[0].grant, 2);
}

#[test]
fn a_role_to_write_without_a_known_grant_asks_for_it_instead_of_guessing() {
    let mut bench = Bench::new(Config::default(), Saved::default());
    bench.sign_in(Limits::default());
    bench.synced(2, 0, 0, vec![join(1)]);
    bench.hear(change(Role::Admin, 0));
    bench.write();
    assert!(bench.sends.is_empty(), "nobody said which grant it is");
    bench.synced(2, 1, 0, vec![]);
    assert_eq!(bench.sends[0].grant, 1);
}

#[test]
fn a_lane_under_a_grant_that_never_was_goes_on_under_the_present_one() {
    let mistaken = Lane {
        sender: 9,
        grant: 5,
        over: true,
        answered_at: 1_800_000_000 * SECOND,
        ..Lane::default()
    };
    let saved = Saved {
        sender: 9,
        lanes: [(CONVERSATION, mistaken)].into(),
        ..Saved::default()
    };
    let mut bench = Bench::new(Config::default(), saved);
    bench.sign_in(Limits::default());
    bench.synced(6, 1, 0, vec![]);
    bench.write();
    let send = &bench.sends[0];
    assert_eq!((send.grant, send.counter), (1, 1));
    assert_ne!(send.sender, 9, "its counters under the grant are forgotten");
}

#[test]
fn a_refused_message_is_replaced_and_those_behind_name_the_empty_one() {
    let mut bench = Bench::sending(2);
    let (first, second) = (bench.sends[0].clone(), bench.sends[1].clone());
    refuse(&mut bench, 1, "too_long", 0);
    let (empty, behind) = (bench.sends[2].clone(), bench.sends[3].clone());
    assert_eq!(
        (empty.counter, empty.kind, empty.body.len()),
        (1, i32::from(Kind::Empty), 0)
    );
    assert_ne!(empty.id, first.id);
    assert_eq!((behind.counter, behind.previous), (2, empty.id));
    assert_eq!(behind.body, second.body);
    assert_ne!(behind.id, second.id, "an id stands for all before it");
    assert!(bench.sent().is_empty(), "its fate is told when it is known");
    bench.ack(Status::Sent, 1, empty.id, 2, 2);
    let reason = FailReason::Refused("too_long".into());
    let failed = AppEvent::Failed {
        conversation: CONVERSATION,
        local: LocalId(1),
        reason,
    };
    assert!(bench.app.contains(&failed));
}

#[test]
fn a_fork_naming_the_replaced_message_means_exactly_that() {
    let mut bench = Bench::sending(2);
    let (first, second) = (bench.sends[0].clone(), bench.sends[1].clone());
    refuse(&mut bench, 1, "refused", 0);
    // An earlier connection had got it through after all.
    bench.ack(Status::Fork, 1, first.id, 2, 2);
    assert_eq!(bench.sent(), [1]);
    let again = bench.sends.last().expect("sent again").clone();
    assert_eq!(
        (again.counter, again.previous, again.id),
        (2, first.id, second.id)
    );
    assert!(bench.histories().is_empty(), "no copy");
}

#[test]
fn the_id_of_a_later_message_tells_which_form_of_a_replaced_one_was_accepted() {
    for itself in [true, false] {
        let mut bench = Bench::sending(3);
        refuse(&mut bench, 1, "refused", 0);
        // Third as it was first sent, or third behind the empty message.
        let third = if itself {
            bench.sends[2].id
        } else {
            bench.sends[5].id
        };
        bench.ack(Status::Sent, 3, third, 4, 4);
        let failed = bench
            .app
            .iter()
            .any(|e| matches!(e, AppEvent::Failed { .. }));
        let sent: &[u64] = if itself { &[1, 2, 3] } else { &[2, 3] };
        assert_eq!((bench.sent().as_slice(), failed), (sent, !itself));
        assert!(bench.histories().is_empty(), "no copy");
    }
}

#[test]
fn a_second_refused_message_waits_until_the_first_is_decided() {
    let mut bench = Bench::sending(2);
    refuse(&mut bench, 1, "refused", 0);
    refuse(&mut bench, 2, "too_long", 0);
    let empty = bench.sends[2].clone();
    bench.pass(SECOND);
    assert_eq!(bench.counters_sent(2), [1, 2]);
    bench.ack(Status::Sent, 1, empty.id, 2, 2);
    refuse(&mut bench, 2, "too_long", 0);
    let last = bench.sends.last().expect("replaced").clone();
    assert_eq!(
        (last.counter, last.kind, last.previous),
        (2, i32::from(Kind::Empty), empty.id)
    );
}

#[test]
fn a_refusal_that_may_pass_is_waited_out_in_order() {
    let mut bench = Bench::sending(3);
    refuse(&mut bench, 2, "rate_limited", 2_000);
    bench.pass(SECOND);
    assert_eq!(bench.sends.len(), 3);
    bench.pass(2 * SECOND);
    assert_eq!(bench.counters_sent(3), [2, 3]);
}

#[test]
fn a_gateway_that_forbids_is_overruled_by_the_history() {
    let mut bench = Bench::sending(2);
    let first = bench.sends[0].clone();
    refuse(&mut bench, 1, "forbidden", 0);
    bench.synced(3, 0, 2, vec![]);
    let (r#ref, _) = bench.histories()[0];
    let own = Event {
        user: ME,
        sender: first.sender,
        grant: 1,
        counter: 1,
        id: first.id,
        ..message(2)
    };
    let change = MemberChange {
        user: ME,
        role: Role::None.into(),
        ended: 1,
    };
    let members = Some(Members {
        version: 2,
        changes: vec![change],
        ..Members::default()
    });
    let removal = Event { members, ..join(3) };
    bench.answer(r#ref, page(2, vec![own, removal], 3));
    assert_eq!(bench.sent(), [1]);
    let offered = AppEvent::Offered {
        conversation: CONVERSATION,
        local: LocalId(2),
    };
    assert!(bench.app.contains(&offered));
}

#[test]
fn what_is_above_the_limit_fails_without_a_counter() {
    let mut bench = Bench::new(Config::default(), Saved::default());
    bench
        .core
        .send(
            bench.now,
            CONVERSATION,
            Kind::Text,
            "too long by one".into(),
        )
        .expect("taken");
    bench
        .core
        .send(bench.now, CONVERSATION, Kind::Text, "fits".into())
        .expect("taken");
    bench.sign_in(Limits {
        text_bytes_max: 14,
        ..Limits::default()
    });
    bench.synced(1, 1, 0, vec![join(1)]);
    let (local, reason) = (LocalId(1), FailReason::TooLong);
    assert!(bench.app.contains(&AppEvent::Failed {
        conversation: CONVERSATION,
        local,
        reason
    }));
    assert_eq!(bench.sends.len(), 1);
    assert_eq!(
        (bench.sends[0].counter, &bench.sends[0].body[..]),
        (1, &b"fits"[..])
    );
}

#[test]
fn a_sender_unanswered_for_a_year_is_left_for_a_fresh_one() {
    let before = Bench::sending(2);
    let old = before.sends[0].clone();
    let mut bench = Bench::new(Config::default(), before.core.snapshot());
    bench.now = before.now + 366 * 86_400 * SECOND;
    bench.sign_in(Limits::default());
    assert!(bench.sends.is_empty(), "nothing under the old sender id");
    bench.synced(2, 1, 0, vec![join(1), message(2)]);
    for _ in 0..30 {
        assert!(bench.histories().is_empty(), "its record may be on its way");
        bench.pass(20 * SECOND);
        bench.hear(Update::Pong(tidings_protocol::wire::Pong::default()));
    }
    let (r#ref, _) = bench.histories()[0];
    bench.answer(r#ref, page(2, vec![message(2)], 2));
    assert_eq!(bench.counters_sent(0), [1, 2]);
    assert_ne!(bench.sends[0].sender, old.sender);
    assert!(
        !bench
            .app
            .iter()
            .any(|e| matches!(e, AppEvent::CopyNoticed { .. }))
    );
}

#[test]
fn hidden_history_makes_a_copys_messages_unknown_instead_of_sending_them_twice() {
    let mut bench = Bench::sending(1);
    bench.ack(Status::Sent, 1, 0xf0e, 2, 3);
    let (r#ref, _) = bench.histories()[0];
    bench.answer(r#ref, page(2, vec![], 3));
    let unknown = AppEvent::Unknown {
        conversation: CONVERSATION,
        local: LocalId(1),
    };
    assert!(bench.app.contains(&unknown));
    assert_eq!(bench.sends.len(), 1);
}

/// Back in the conversation at `seq`: what was before is hidden.
fn back_at(bench: &mut Bench, seq: u64) {
    bench.synced_to(SyncPage {
        conversation: CONVERSATION,
        head: seq,
        grant: seq,
        visible_from: seq,
        events: vec![join(seq)],
        ..SyncPage::default()
    });
}

#[test]
fn hidden_history_makes_messages_that_waited_at_the_start_unknown() {
    let mut before = Bench::new(Config::default(), Saved::default());
    before.write();
    // As far as can be told, a backup: another life may have sent message 1 before the removal.
    let mut bench = Bench::new(Config::default(), before.core.snapshot());
    bench.write();
    bench.sign_in(Limits::default());
    back_at(&mut bench, 9);
    for (r#ref, asked) in bench.histories() {
        bench.answer(r#ref, page(asked.after + 1, vec![join(9)], 9));
    }
    let unknown =
        |e: &&AppEvent| matches!(e, AppEvent::Unknown { local, .. } if *local == LocalId(1));
    assert_eq!(bench.app.iter().filter(unknown).count(), 1);
    assert_eq!(bench.counters_sent(0), [1], "only what was written since");
    assert_eq!(bench.sends[0].grant, 9);
    let left = bench.core.snapshot().lanes[&CONVERSATION].queue.clone();
    assert_eq!(left.iter().map(|m| m.local).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_restart_while_removed_keeps_what_waits_for_the_return() {
    let mut before = Bench::sending(1);
    let removal = change(Role::None, 1);
    before.hear(removal.clone());
    before.ack(Status::Over, 0, 0, 0, 2);
    assert_eq!(before.seen(), [1, 2]);
    before.pass(2 * SECOND); // The cursor is saved.
    let mut bench = Bench::new(Config::default(), before.core.snapshot());
    bench.sign_in(Limits::default());
    // Nothing to tell: the user saw all there was.
    bench.sync_ends(0);
    let Update::Event(removal) = removal else {
        unreachable!("change() makes an event")
    };
    for (r#ref, asked) in bench.histories() {
        bench.answer(r#ref, page(asked.after + 1, vec![removal.clone()], 2));
    }
    bench.hear(Update::Lagging(Lagging::default()));
    back_at(&mut bench, 9);
    assert_eq!(bench.counters_sent(0), [1]);
    assert_eq!(
        (bench.sends[0].grant, bench.sends[0].id),
        (9, before.sends[0].id)
    );
}
