//! A small clean history and ways to change it.
#![allow(dead_code, reason = "each test binary uses its part")]

use tidings_verify::Record;
use tidings_verify::history::{self, EventKind, Status};

pub const ROOM: u64 = 7;
pub const ALICE: u64 = 1;
pub const ALICE_PHONE: u64 = 11;
pub const BOB: u64 = 2;
pub const BOB_PHONE: u64 = 21;

#[derive(Clone, Copy)]
pub struct Message {
    pub author: u64,
    pub sender: u64,
    pub counter: u64,
    pub id: u64,
    pub body_hash: u64,
}

/// Alice's message of this counter; 0: the event that made the conversation.
pub fn message(counter: u64) -> Message {
    if counter == 0 {
        return Message {
            author: 0,
            sender: 0,
            counter: 0,
            id: 0,
            body_hash: 0,
        };
    }
    let (id, body_hash) = (100 + counter, 1000 + counter);
    Message {
        author: ALICE,
        sender: 50,
        counter,
        id,
        body_hash,
    }
}

/// The time of the event at a seq.
pub fn ts(seq: u64) -> u64 {
    1_000_000 + 10 * seq
}

pub fn send(counter: u64) -> history::Send {
    let message = message(counter);
    history::Send {
        at: 10 + counter,
        user: ALICE,
        device: ALICE_PHONE,
        conversation: ROOM,
        sender: message.sender,
        grant: 1,
        counter,
        id: message.id,
        body_hash: message.body_hash,
    }
}

pub fn ack(counter: u64) -> history::Ack {
    let message = message(counter);
    history::Ack {
        at: 20 + counter,
        user: ALICE,
        device: ALICE_PHONE,
        conversation: ROOM,
        sender: message.sender,
        grant: 1,
        counter,
        id: message.id,
        seq: counter + 1,
        ts: ts(counter + 1),
        duplicate: false,
        status: Status::Sent,
    }
}

pub fn failed(counter: u64) -> history::Failed {
    let message = message(counter);
    history::Failed {
        at: 600,
        user: ALICE,
        device: ALICE_PHONE,
        conversation: ROOM,
        sender: message.sender,
        grant: 1,
        counter,
        id: message.id,
    }
}

pub fn deliver(user: u64, device: u64, seq: u64, message: Message) -> history::Deliver {
    let server = message.id == 0;
    history::Deliver {
        at: 30 + seq,
        user,
        device,
        conversation: ROOM,
        seq,
        ts: ts(seq),
        author: message.author,
        sender: message.sender,
        grant: if server { 0 } else { 1 },
        counter: message.counter,
        id: message.id,
        kind: if server {
            EventKind::Members
        } else {
            EventKind::Text
        },
        body_hash: message.body_hash,
    }
}

pub fn shown(user: u64, device: u64, seq: u64, message: Message) -> Record {
    deliver(user, device, seq, message).into()
}

pub fn member(user: u64, from_seq: u64, to_seq: u64) -> Record {
    history::Member {
        at: 3,
        conversation: ROOM,
        user,
        from_seq,
        to_seq,
    }
    .into()
}

pub fn end(user: u64, device: u64, head: u64) -> Record {
    history::Final {
        at: 999,
        user,
        device,
        conversation: ROOM,
        head,
    }
    .into()
}

/// Alice sends 1, 2, 3 to Bob; both are shown seqs 1 to 4 and end complete.
pub fn base() -> Vec<Record> {
    let mut history: Vec<Record> = vec![member(ALICE, 1, 0)];
    history.extend((1..=3).map(|counter| Record::from(send(counter))));
    history.extend((1..=3).map(|counter| Record::from(ack(counter))));
    for (user, device) in [(ALICE, ALICE_PHONE), (BOB, BOB_PHONE)] {
        history.extend((1..=4).map(|seq| shown(user, device, seq, message(seq - 1))));
    }
    history.extend([end(ALICE, ALICE_PHONE, 4), end(BOB, BOB_PHONE, 4)]);
    history
}

pub fn shown_at(seq: u64) -> impl Fn(&Record) -> bool {
    move |record| matches!(record, Record::Deliver(deliver) if deliver.seq == seq)
}

pub fn of_bob(record: &Record, seq: u64) -> bool {
    shown_at(seq)(record) && record.device() == BOB_PHONE
}

pub fn ack_of(counter: u64) -> impl Fn(&Record) -> bool {
    move |record| matches!(record, Record::Ack(ack) if ack.counter == counter)
}

pub fn without(history: &mut Vec<Record>, which: impl Fn(&Record) -> bool) {
    let before = history.len();
    history.retain(|record| !which(record));
    assert!(
        history.len() < before,
        "the test takes away what isn't there"
    );
}

pub fn replace(history: &mut [Record], which: impl Fn(&Record) -> bool, by: Record) {
    let place = history.iter_mut().find(|record| which(record));
    *place.expect("the test replaces what isn't there") = by;
}

pub fn each_shown(history: &mut [Record], seq: u64, change: impl Fn(&mut history::Deliver)) {
    for record in history {
        if let Record::Deliver(deliver) = record
            && deliver.seq == seq
        {
            change(deliver);
        }
    }
}

pub fn each_ack(history: &mut [Record], counter: u64, change: impl Fn(&mut history::Ack)) {
    for record in history {
        if let Record::Ack(ack) = record
            && ack.counter == counter
        {
            change(ack);
        }
    }
}

pub fn ends_at(history: &mut [Record], head: u64) {
    for record in history {
        if let Record::Final(end) = record {
            end.head = head;
        }
    }
}
