//! Every way to break a promise, planted in a small clean history and found; beside each a
//! neighbour that looks alike and is clean.

mod common;

use common::*;
use std::collections::BTreeSet;
use tidings_verify::history::{self, EventKind, Part, Status};
use tidings_verify::{Kind, Record, Report, check};

/// Checks that exactly these kinds are found, and that what is found can be printed.
fn expect(name: &str, history: &[Record], kinds: &[Kind]) -> Report {
    let report = check(history);
    let found: BTreeSet<Kind> = report.anomalies.keys().copied().collect();
    assert_eq!(found, kinds.iter().copied().collect(), "{name}:\n{report}");
    for kind in kinds {
        assert!(report.to_string().contains(kind.name()), "{name}");
        let told = report.detail.iter().find(|anomaly| anomaly.kind == *kind);
        let told = told.unwrap_or_else(|| panic!("{name}: no detail of {}", kind.name()));
        assert_eq!(told.promise, kind.promise());
        assert!(
            told.sentence.ends_with('.') && !told.records.is_empty(),
            "{name}: {told:?}"
        );
    }
    report
}

fn clean(name: &str, history: &[Record]) -> Report {
    expect(name, history, &[])
}

#[test]
fn a_faultless_run_is_clean_and_counted() {
    let report = clean("base", &base());
    let counts = (
        report.conversations,
        report.devices,
        report.messages,
        report.acked,
    );
    assert_eq!(counts, (1, 2, 3, 3));
    assert_eq!(
        (
            report.events,
            report.delivered,
            report.finals,
            report.unproven
        ),
        (4, 8, 2, 0)
    );
    assert!(clean("nothing", &[]).is_clean());
}

#[test]
fn an_acknowledged_message_that_no_event_has_is_lost() {
    let mut lost = base();
    without(&mut lost, shown_at(4));
    ends_at(&mut lost, 3);
    expect("the server forgot its tail", &lost, &[Kind::Lost]);

    let mut middle = base();
    without(&mut middle, shown_at(3));
    expect("a hole for everybody", &middle, &[Kind::Lost, Kind::Gap]);

    let mut cumulative = base();
    without(&mut cumulative, shown_at(3));
    without(&mut cumulative, ack_of(2));
    expect(
        "acknowledged by a later one",
        &cumulative,
        &[Kind::Lost, Kind::Gap],
    );

    let mut running = lost.clone();
    without(&mut running, |r| matches!(r, Record::Final(_)));
    assert_eq!(clean("nobody was complete", &running).unproven, 1);

    let mut unknown = lost.clone();
    without(&mut unknown, ack_of(3));
    without(
        &mut unknown,
        |r| matches!(r, Record::Final(end) if end.device == ALICE_PHONE),
    );
    clean("never acknowledged: either is right", &unknown);
}

#[test]
fn a_changed_body_is_found() {
    let mut changed = base();
    each_shown(&mut changed, 3, |event| event.body_hash ^= 1);
    expect("changed for all", &changed, &[Kind::Corrupt]);
    each_shown(&mut changed, 3, |event| event.kind = EventKind::Empty);
    clean("an empty event stands for it", &changed);
}

#[test]
fn a_message_with_two_seqs_is_a_duplicate() {
    let mut twice = base();
    for (user, device) in [(ALICE, ALICE_PHONE), (BOB, BOB_PHONE)] {
        twice.push(shown(user, device, 5, message(3)));
    }
    ends_at(&mut twice, 5);
    expect("accepted twice", &twice, &[Kind::Duplicate]);

    // Numbered anew after it was taken for failed, and both were accepted.
    let mut renumbered = base();
    let mut again = send(1);
    (again.sender, again.id) = (99, message(3).id);
    again.body_hash = message(3).body_hash;
    renumbered.push(again.into());
    let anew = Message {
        sender: 99,
        counter: 1,
        ..message(3)
    };
    for (user, device) in [(ALICE, ALICE_PHONE), (BOB, BOB_PHONE)] {
        renumbered.push(shown(user, device, 5, anew));
    }
    ends_at(&mut renumbered, 5);
    expect("under another sender", &renumbered, &[Kind::Duplicate]);

    let mut answered = base();
    answered.push(
        history::Ack {
            duplicate: true,
            ..ack(3)
        }
        .into(),
    );
    clean("only answered twice", &answered);
}

#[test]
fn a_seq_shown_twice_is_found_unless_the_device_lost_it() {
    let mut twice = base();
    twice.push(shown(BOB, BOB_PHONE, 4, message(3)));
    expect("twice", &twice, &[Kind::ShownTwice]);

    let mut reset = base();
    reset.push(
        history::DeviceReset {
            at: 500,
            device: BOB_PHONE,
        }
        .into(),
    );
    reset.push(shown(BOB, BOB_PHONE, 4, message(3)));
    clean("after a crash", &reset);
}

#[test]
fn a_reset_device_must_be_shown_again_what_it_lost() {
    let mut reset = base();
    reset.push(
        history::DeviceReset {
            at: 500,
            device: BOB_PHONE,
        }
        .into(),
    );
    reset.push(
        history::Resumed {
            at: 501,
            user: BOB,
            device: BOB_PHONE,
            conversation: ROOM,
            kept: 2,
        }
        .into(),
    );
    let mut skipped = reset.clone();
    skipped.push(shown(BOB, BOB_PHONE, 4, message(3)));
    expect("3 is gone", &skipped, &[Kind::Gap]);
    expect("3 and 4 are gone", &reset, &[Kind::TailLost]);
    reset.push(shown(BOB, BOB_PHONE, 3, message(2)));
    reset.push(shown(BOB, BOB_PHONE, 4, message(3)));
    clean("both were shown again", &reset);
}

#[test]
fn devices_that_differ_at_a_seq_are_found() {
    let bobs = |seq: u64| move |r: &Record| matches!(r, Record::Deliver(d) if d.seq == seq && d.device == BOB_PHONE);
    let mut swapped = base();
    replace(&mut swapped, bobs(3), shown(BOB, BOB_PHONE, 3, message(3)));
    replace(&mut swapped, bobs(4), shown(BOB, BOB_PHONE, 4, message(2)));
    expect(
        "another message",
        &swapped,
        &[Kind::OrderDifference, Kind::Duplicate],
    );

    let mut body = base();
    let other = Message {
        body_hash: 1,
        ..message(2)
    };
    replace(&mut body, bobs(3), shown(BOB, BOB_PHONE, 3, other));
    expect(
        "another body",
        &body,
        &[Kind::OrderDifference, Kind::Corrupt],
    );

    let mut time = base();
    let mut late = deliver(BOB, BOB_PHONE, 3, message(2));
    late.ts += 1;
    replace(&mut time, bobs(3), late.into());
    expect("another time", &time, &[Kind::OrderDifference]);
}

#[test]
fn times_that_do_not_rise_are_found() {
    let mut equal = base();
    each_shown(&mut equal, 4, |event| event.ts = ts(3));
    each_ack(&mut equal, 3, |ack| ack.ts = ts(3));
    expect("equal times", &equal, &[Kind::TimeOrder]);
    each_shown(&mut equal, 4, |event| event.ts = ts(3) + 1);
    each_ack(&mut equal, 3, |ack| ack.ts = ts(3) + 1);
    clean("a microsecond later", &equal);
}

#[test]
fn a_device_shown_a_later_seq_first_is_found() {
    let mut early = base();
    let threes = early.iter().position(|r| of_bob(r, 3)).expect("in base");
    let fours = early.iter().position(|r| of_bob(r, 4)).expect("in base");
    early.swap(threes, fours);
    expect("4 before 3", &early, &[Kind::ShownOutOfOrder]);
    early.insert(
        0,
        history::Later {
            at: 1,
            user: BOB,
            device: BOB_PHONE,
            conversation: ROOM,
            from: 2,
            to: 3,
        }
        .into(),
    );
    // 2 came in time all the same.
    clean("an older page on demand", &early);
}

#[test]
fn a_sender_out_of_its_order_is_found() {
    let mut swapped = base();
    each_shown(&mut swapped, 3, |event| {
        (event.counter, event.id) = (3, message(3).id)
    });
    each_shown(&mut swapped, 3, |event| {
        event.body_hash = message(3).body_hash
    });
    each_shown(&mut swapped, 4, |event| {
        (event.counter, event.id) = (2, message(2).id)
    });
    each_shown(&mut swapped, 4, |event| {
        event.body_hash = message(2).body_hash
    });
    each_ack(&mut swapped, 2, |ack| (ack.seq, ack.ts) = (4, ts(4)));
    each_ack(&mut swapped, 3, |ack| (ack.seq, ack.ts) = (3, ts(3)));
    expect("3 before 2", &swapped, &[Kind::SenderOrder]);

    let mut jumped = base();
    without(&mut jumped, |r| {
        matches!(r, Record::Ack(_)) || shown_at(2)(r)
    });
    each_shown(&mut jumped, 3, |event| event.seq = 2);
    each_shown(&mut jumped, 4, |event| event.seq = 3);
    ends_at(&mut jumped, 3);
    jumped.push(failed(1).into());
    expect("begins at 2", &jumped, &[Kind::SenderOrder]);

    // Nobody saw what is between: it may have been the missing counter.
    let mut unseen = base();
    without(&mut unseen, shown_at(3));
    without(&mut unseen, |r| {
        matches!(r, Record::Ack(_) | Record::Final(_))
    });
    expect("unseen between", &unseen, &[Kind::Gap]);
}

#[test]
fn what_was_numbered_after_an_ack_comes_after_it() {
    let bobs = |at: u64| {
        let mut history = base();
        each_shown(&mut history, 4, |event| event.seq = 5);
        each_ack(&mut history, 3, |ack| ack.seq = 5);
        let own = Message {
            author: BOB,
            sender: 60,
            counter: 1,
            id: 600,
            ..message(1)
        };
        let numbered = history::Send {
            user: BOB,
            device: BOB_PHONE,
            sender: 60,
            id: 600,
            at,
            ..send(1)
        };
        history.push(numbered.into());
        for (user, device) in [(ALICE, ALICE_PHONE), (BOB, BOB_PHONE)] {
            let last = |r: &Record| shown_at(5)(r) && r.device() == device;
            let place = history.iter().position(last).expect("in base");
            history.insert(place, shown(user, device, 4, own));
        }
        each_shown(&mut history, 5, |event| event.ts = ts(5));
        each_ack(&mut history, 3, |ack| ack.ts = ts(5));
        ends_at(&mut history, 5);
        history
    };
    let acked = base().iter().find(|r| ack_of(3)(r)).map_or(0, Record::at);
    expect("numbered after", &bobs(acked + 1), &[Kind::AckOrder]);
    clean("numbered at the same time", &bobs(acked));
}

#[test]
fn answers_that_contradict_are_found() {
    let mismatch = [Kind::AckMismatch];
    let mut seq = base();
    each_ack(&mut seq, 2, |ack| ack.seq = 9);
    expect("another seq", &seq, &mismatch);
    let mut time = base();
    each_ack(&mut time, 2, |ack| ack.ts += 1);
    expect("another time", &time, &mismatch);
    let mut two = base();
    two.push(history::Ack { seq: 8, ..ack(2) }.into());
    expect("two answers", &two, &mismatch);
    let mut id = base();
    each_ack(&mut id, 3, |ack| ack.id = 12345);
    expect("an id of nobody", &id, &[Kind::AckMismatch, Kind::Lost]);
    let mut more = base();
    more.push(
        history::Ack {
            counter: 4,
            id: 44,
            seq: 5,
            ..ack(3)
        }
        .into(),
    );
    expect("a counter of nobody", &more, &mismatch);
    let mut over = base();
    over.push(
        history::Ack {
            counter: 2,
            id: message(2).id,
            status: Status::Over,
            seq: 3,
            ts: ts(3),
            ..ack(2)
        }
        .into(),
    );
    expect(
        "over below what was accepted",
        &over,
        &[Kind::AckMismatch, Kind::AbortedRead],
    );

    let mut low = base();
    low.push(
        history::Ack {
            duplicate: true,
            at: 900,
            ..ack(1)
        }
        .into(),
    );
    low.push(
        history::Ack {
            counter: 0,
            id: 0,
            seq: 0,
            ts: 0,
            status: Status::Stale,
            ..ack(1)
        }
        .into(),
    );
    clean("a lower answer comes late", &low);
}

#[test]
fn an_event_of_nobody_is_a_ghost() {
    let sent = |r: &Record| matches!(r, Record::Send(send) if send.counter == 3);
    let mut ghost = base();
    without(&mut ghost, sent);
    without(&mut ghost, ack_of(3));
    expect("never sent", &ghost, &[Kind::Ghost]);
    each_shown(&mut ghost, 4, |event| {
        (event.id, event.author, event.sender) = (0, 0, 0)
    });
    clean("the server's own", &ghost);

    let mut forged = base();
    each_shown(&mut forged, 4, |event| event.author = BOB);
    without(&mut forged, ack_of(3));
    forged.push(failed(3).into());
    expect("another author", &forged, &[Kind::Ghost, Kind::SenderOrder]);

    let mut zero = base();
    zero.push(shown(BOB, BOB_PHONE, 0, message(3)));
    expect("seq 0", &zero, &[Kind::Ghost]);
}

#[test]
fn an_event_whose_sender_was_told_otherwise_is_found() {
    let mut aborted = base();
    without(&mut aborted, ack_of(3));
    let mut over = aborted.clone();
    over.push(
        history::Ack {
            status: Status::Over,
            ..ack(2)
        }
        .into(),
    );
    expect("over", &over, &[Kind::AbortedRead]);
    let mut replaced = aborted.clone();
    replaced.push(
        history::Failed {
            id: 777,
            ..failed(3)
        }
        .into(),
    );
    clean("the other id of a replaced message was given up", &replaced);
    aborted.push(failed(3).into());
    expect("given up", &aborted, &[Kind::AbortedRead]);
}

#[test]
fn either_id_of_a_replaced_message_may_be_accepted() {
    let mut replaced = base();
    replaced.push(
        history::Send {
            id: 777,
            body_hash: 0,
            ..send(3)
        }
        .into(),
    );
    clean("the first", &replaced);
    each_shown(&mut replaced, 4, |event| {
        (event.id, event.body_hash, event.kind) = (777, 0, EventKind::Empty);
    });
    each_ack(&mut replaced, 3, |ack| ack.id = 777);
    clean("the second", &replaced);
}

#[test]
fn a_message_in_another_conversation_is_found() {
    let mut wrong = base();
    let sent = history::Send {
        conversation: 8,
        sender: 51,
        id: 800,
        ..send(1)
    };
    let acked = history::Ack {
        conversation: 8,
        sender: 51,
        id: 800,
        seq: 2,
        ..ack(1)
    };
    wrong.extend([Record::from(sent), Record::from(acked)]);
    let stray = Message {
        sender: 51,
        counter: 1,
        id: 800,
        ..message(1)
    };
    wrong.push(shown(BOB, BOB_PHONE, 5, stray));
    wrong.push(shown(ALICE, ALICE_PHONE, 5, stray));
    ends_at(&mut wrong, 5);
    let report = expect("in the wrong one", &wrong, &[Kind::WrongConversation]);
    assert_eq!((report.conversations, report.unproven), (2, 1));
}

#[test]
fn a_hole_on_one_device_is_a_gap() {
    let mut gap = base();
    without(&mut gap, |r| of_bob(r, 3));
    let report = expect("without 3", &gap, &[Kind::Gap]);
    assert_eq!(report.detail[0].seqs, [3, 3]);

    let range = |from, to| history::Hidden {
        at: 2,
        user: BOB,
        device: BOB_PHONE,
        conversation: ROOM,
        from,
        to,
    };
    let mut hidden = gap.clone();
    hidden.push(range(3, 3).into());
    clean("hidden", &hidden);

    let mut later = gap.clone();
    let history::Hidden {
        at,
        user,
        device,
        conversation,
        from,
        to,
    } = range(2, 3);
    later.push(
        history::Later {
            at,
            user,
            device,
            conversation,
            from,
            to,
        }
        .into(),
    );
    expect("left for later and never shown", &later, &[Kind::Gap]);
    without(
        &mut later,
        |r| matches!(r, Record::Final(end) if end.device == BOB_PHONE),
    );
    clean("left for later, still running", &later);

    let mut joined = base();
    without(&mut joined, |r| of_bob(r, 1) || of_bob(r, 2));
    expect("begins at 3", &joined, &[Kind::Gap]);
    joined.push(member(BOB, 3, 0));
    clean("joined at 3", &joined);
}

#[test]
fn a_device_without_the_last_events_is_found() {
    let mut tail = base();
    without(&mut tail, |r| of_bob(r, 3) || of_bob(r, 4));
    let report = expect("without 3 and 4", &tail, &[Kind::TailLost]);
    assert_eq!(report.detail[0].seqs, [3, 4]);
    let mut left = tail.clone();
    left.push(member(BOB, 1, 2));
    clean("left at 2", &left);
    without(
        &mut tail,
        |r| matches!(r, Record::Final(end) if end.device == BOB_PHONE),
    );
    clean("was switched off", &tail);
}

#[test]
fn a_false_claim_of_completeness_is_found() {
    let claim = |asked, head, complete| {
        let (user, device, conversation) = (BOB, BOB_PHONE, ROOM);
        history::Synced {
            at: 800,
            asked,
            user,
            device,
            conversation,
            head,
            complete,
        }
    };
    let mut lie = base();
    without(&mut lie, |r| {
        of_bob(r, 4) || matches!(r, Record::Final(end) if end.device == BOB_PHONE)
    });
    let mut honest = lie.clone();
    lie.push(claim(0, 4, true).into());
    expect("4 exists", &lie, &[Kind::TailLost, Kind::CompleteLie]);
    honest.push(claim(0, 4, false).into());
    honest.push(claim(0, 3, true).into());
    clean("incomplete up to 4, complete up to 3", &honest);

    let acked = base().iter().find(|r| ack_of(3)(r)).map_or(0, Record::at);
    let mut stale = honest.clone();
    stale.push(claim(acked + 1, 3, true).into());
    expect("asked after the ack of 4", &stale, &[Kind::CompleteLie]);
    honest.push(claim(acked, 3, true).into());
    clean("asked while 4 was on its way", &honest);
}

#[test]
fn an_event_outside_of_what_a_user_may_see_is_found() {
    let mut shown = base();
    shown.push(member(BOB, 1, 3));
    expect("after leaving", &shown, &[Kind::NotVisible]);
    shown.push(member(BOB, 4, 0));
    clean("joined again", &shown);
}

#[test]
fn a_sender_that_is_told_nothing_is_stuck() {
    let mut stuck = base();
    without(&mut stuck, |r| ack_of(3)(r) || shown_at(4)(r));
    ends_at(&mut stuck, 3);
    expect("neither acknowledged nor failed", &stuck, &[Kind::Stuck]);
    // What was sent before it, and is hidden from the sender, follows from it.
    let mut follows = base();
    without(&mut follows, |r| {
        let is_hers =
            |seq| matches!(r, Record::Deliver(d) if d.device == ALICE_PHONE && d.seq == seq);
        ack_of(2)(r) || ack_of(3)(r) || is_hers(3)
    });
    let hidden = |from, to| history::Hidden {
        at: 500,
        user: ALICE,
        device: ALICE_PHONE,
        conversation: ROOM,
        from,
        to,
    };
    follows.push(hidden(3, 3).into());
    clean("a later one of the sender was shown to it", &follows);
    let history::Failed {
        at,
        user,
        device,
        conversation,
        sender,
        grant,
        counter,
        id,
    } = failed(3);
    let unknown = history::Unknown {
        at,
        user,
        device,
        conversation,
        sender,
        grant,
        counter,
        id,
    };
    stuck.push(unknown.into());
    clean("told that nothing can be known", &stuck);
    let mut told = stuck.clone();
    told.push(failed(3).into());
    clean("given up", &told);
    let mut over = stuck.clone();
    over.push(
        history::Ack {
            status: Status::Over,
            ..ack(2)
        }
        .into(),
    );
    clean("over", &over);
    without(
        &mut stuck,
        |r| matches!(r, Record::Final(end) if end.device == ALICE_PHONE),
    );
    clean("still trying", &stuck);
}

#[test]
fn receipts_never_go_back_nor_ahead() {
    let cursor = |seq| {
        let (user, device, conversation) = (BOB, BOB_PHONE, ROOM);
        Record::from(history::Cursor {
            at: 700,
            user,
            device,
            conversation,
            seq,
        })
    };
    let receipt = |delivered, read| {
        let (device, conversation, user) = (ALICE_PHONE, ROOM, BOB);
        Record::from(history::Receipt {
            at: 700,
            device,
            conversation,
            user,
            delivered,
            read,
        })
    };
    let with = |records: &[Record]| [&base(), records].concat();
    let back = [Kind::ReceiptRegress];
    expect("cursor back", &with(&[cursor(4), cursor(3)]), &back);
    expect(
        "delivered back",
        &with(&[receipt(4, 1), receipt(3, 2)]),
        &back,
    );
    expect("read back", &with(&[receipt(4, 3), receipt(4, 2)]), &back);
    clean(
        "forth",
        &with(&[
            cursor(2),
            cursor(2),
            cursor(4),
            receipt(2, 0),
            receipt(4, 3),
        ]),
    );

    let reset = Record::from(history::DeviceReset {
        at: 700,
        device: ALICE_PHONE,
    });
    let again = [receipt(4, 3), reset, receipt(4, 2)];
    expect(
        "back in a new life of the device, for good",
        &with(&again),
        &back,
    );
    let meanwhile = [&again[..], &[receipt(4, 3)]].concat();
    clean("less at first", &with(&meanwhile));

    let beyond = [Kind::ReceiptBeyond];
    expect("beyond the head", &with(&[cursor(5)]), &beyond);
    expect("read beyond the head", &with(&[receipt(4, 5)]), &beyond);
    let mut ahead = with(&[receipt(4, 0)]);
    without(&mut ahead, |r| {
        of_bob(r, 4) || matches!(r, Record::Final(end) if end.device == BOB_PHONE)
    });
    expect("delivered what was never shown", &ahead, &beyond);
}

#[test]
fn a_wrong_unread_count_is_found() {
    let told = |count| {
        let (user, device, conversation) = (BOB, BOB_PHONE, ROOM);
        let unread = history::Unread {
            at: 700,
            user,
            device,
            conversation,
            read: 2,
            head: 4,
            count,
        };
        [base(), vec![unread.into()]].concat()
    };
    expect("one of two", &told(1), &[Kind::UnreadMismatch]);
    clean("two of two", &told(2));
}

#[test]
fn a_new_epoch_forgives_what_the_log_lost() {
    let mut anew = base();
    without(&mut anew, |r| {
        shown_at(4)(r) || matches!(r, Record::Final(_))
    });
    anew.push(
        history::Restart {
            at: 600,
            part: Part::Log,
        }
        .into(),
    );
    anew.push(history::Epoch { at: 600, epoch: 2 }.into());
    let mut again = base();
    each_shown(&mut again, 4, |event| event.ts += 1000);
    each_ack(&mut again, 3, |ack| ack.ts += 1000);
    let mut silent = anew.clone();
    silent.extend(again.iter().copied());
    let report = clean("all again", &silent);
    assert_eq!((report.epochs, report.restarts, report.messages), (1, 1, 6));
    without(&mut anew, |r| matches!(r, Record::Epoch(_)));
    anew.extend(again);
    assert!(
        !check(&anew).is_clean(),
        "without the epoch it is all shown twice"
    );
}

#[test]
fn every_kind_has_its_own_name_and_promise() {
    let names: BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(names.len(), Kind::ALL.len());
    for kind in Kind::ALL {
        let json = serde_json::to_value(kind).expect("a plain name");
        assert_eq!(json, kind.name());
        assert!((1..=5).contains(&kind.promise()));
    }
}
