//! Where two rules meet: hidden ranges, resets, later records about the same thing, ended grants.

mod common;

use common::*;
use tidings_verify::history::{self, EventKind};
use tidings_verify::{Kind, Record, check};

fn found(history: &[Record]) -> Vec<Kind> {
    check(history).anomalies.into_keys().collect()
}

fn hidden(from: u64, to: u64) -> Record {
    let (user, device, conversation) = (BOB, BOB_PHONE, ROOM);
    history::Hidden {
        at: 2,
        user,
        device,
        conversation,
        from,
        to,
    }
    .into()
}

fn synced(head: u64) -> Record {
    let (user, device, conversation) = (BOB, BOB_PHONE, ROOM);
    history::Synced {
        at: 650,
        asked: 0,
        user,
        device,
        conversation,
        head,
        complete: true,
    }
    .into()
}

fn resumed(kept: u64) -> [Record; 2] {
    let (user, device, conversation) = (BOB, BOB_PHONE, ROOM);
    [
        history::DeviceReset { at: 660, device }.into(),
        history::Resumed {
            at: 661,
            user,
            device,
            conversation,
            kept,
        }
        .into(),
    ]
}

/// Bob's device was switched off before the run ended, after it was shown up to `last`.
fn bob_off_at(last: u64) -> Vec<Record> {
    let mut history = base();
    without(
        &mut history,
        |r| matches!(r, Record::Final(end) if end.device == BOB_PHONE),
    );
    history.retain(|r| r.device() != BOB_PHONE || !(last + 1..).take(4).any(|s| shown_at(s)(r)));
    history
}

#[test]
fn cursors_and_unread_counts_pass_over_hidden_ranges() {
    let (user, device, conversation) = (BOB, BOB_PHONE, ROOM);
    let unread = history::Unread {
        at: 9,
        user,
        device,
        conversation,
        read: 1,
        head: 4,
        count: 1,
    };
    let cursor = history::Cursor {
        at: 9,
        user,
        device,
        conversation,
        seq: 4,
    };
    let told: [Record; 2] = [unread.into(), cursor.into()];
    let mut history = bob_off_at(2);
    history.extend(told);
    assert_eq!(found(&history), [Kind::ReceiptBeyond, Kind::UnreadMismatch]);
    history.push(hidden(3, 4));
    assert_eq!(found(&history), []);
}

#[test]
fn a_reset_takes_back_what_was_called_complete() {
    let mut history = bob_off_at(4);
    history.push(synced(4));
    history.extend(resumed(2));
    assert_eq!(found(&history), [], "it has 2, and was told nothing since");
    history.push(synced(4));
    assert_eq!(found(&history), [Kind::TailLost, Kind::CompleteLie]);
}

#[test]
fn a_hole_shown_after_a_reset_was_a_hole_before_it() {
    let mut history = base();
    let three = history.iter().position(|r| of_bob(r, 3)).expect("in base");
    let three = history.remove(three);
    let end = history.pop().expect("Bob's");
    history.push(
        history::DeviceReset {
            at: 660,
            device: BOB_PHONE,
        }
        .into(),
    );
    history.extend([three, shown(BOB, BOB_PHONE, 4, message(3)), end]);
    assert_eq!(found(&history), [Kind::Gap]);
}

#[test]
fn an_earlier_answer_counts_even_if_it_is_read_later() {
    // Bob's message comes before Alice's last, and was numbered between two answers to that.
    let mut history = base();
    let answered = history.iter().position(ack_of(3)).expect("in base");
    let Record::Ack(early) = history[answered] else {
        unreachable!("just found")
    };
    each_ack(&mut history, 3, |ack| (ack.at, ack.duplicate) = (200, true));
    let own = Message {
        author: BOB,
        sender: 60,
        counter: 1,
        id: 600,
        body_hash: 1,
    };
    let numbered = history::Send {
        at: 100,
        user: BOB,
        device: BOB_PHONE,
        sender: 60,
        id: 600,
        body_hash: 1,
        ..send(1)
    };
    history.push(numbered.into());
    for record in &mut history {
        match record {
            Record::Deliver(deliver) if deliver.seq == 3 => {
                let (user, device) = (deliver.user, deliver.device);
                *deliver = common::deliver(user, device, 3, own);
            }
            _ => {}
        }
    }
    // What seq 3 held is Bob's now; Alice's own second message is out of this history.
    without(&mut history, ack_of(2));
    without(
        &mut history,
        |r| matches!(r, Record::Send(send) if send.counter == 2),
    );
    each_shown(&mut history, 4, |event| event.counter = 2);
    each_ack(&mut history, 3, |ack| ack.counter = 2);
    for record in &mut history {
        if let Record::Send(send) = record
            && send.counter == 3
        {
            send.counter = 2;
        }
    }
    history.push(end(BOB, BOB_PHONE, 4));
    assert_eq!(
        found(&history),
        [],
        "Bob numbered his before the only answer came"
    );
    history.push(
        history::Ack {
            counter: 2,
            ..early
        }
        .into(),
    );
    assert_eq!(found(&history), [Kind::AckOrder]);
}

#[test]
fn a_range_ends_when_a_later_record_says_so() {
    let mut history = bob_off_at(3);
    history.insert(0, member(BOB, 1, 0));
    history.push(end(BOB, BOB_PHONE, 4));
    assert_eq!(found(&history), [Kind::TailLost]);
    history.push(member(BOB, 1, 3));
    assert_eq!(found(&history), [], "removed at 3");
}

#[test]
fn a_later_grant_comes_after_an_earlier_one() {
    let with_grants = |grants: [u64; 3]| {
        let mut history = base();
        let mut numbers = [0u64; 3];
        for (index, grant) in grants.into_iter().enumerate() {
            let same = grants[..index]
                .iter()
                .filter(|before| **before == grant)
                .count();
            numbers[index] = same as u64 + 1;
        }
        for record in &mut history {
            let (grant, counter) = match record {
                Record::Send(send) => (&mut send.grant, &mut send.counter),
                Record::Ack(ack) => (&mut ack.grant, &mut ack.counter),
                Record::Deliver(deliver) if deliver.kind == EventKind::Text => {
                    (&mut deliver.grant, &mut deliver.counter)
                }
                _ => continue,
            };
            let index = (*counter - 1) as usize;
            (*grant, *counter) = (grants[index], numbers[index]);
        }
        history
    };
    assert_eq!(found(&with_grants([1, 2, 2])), []);
    assert_eq!(found(&with_grants([1, 2, 1])), [Kind::SenderOrder]);
}

#[test]
fn a_sender_who_was_shown_its_message_knows_what_became_of_it() {
    let mut history = base();
    without(&mut history, ack_of(3));
    assert_eq!(found(&history), []);
    without(&mut history, |r| {
        shown_at(4)(r) && r.device() == ALICE_PHONE
    });
    assert_eq!(found(&history), [Kind::TailLost, Kind::Stuck]);
}
