//! Records of the log and rows in Cassandra's columns: what is read is written the same again.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidings_core::ids::ConversationId;
use tidings_core::record::{Content, MEMBERS_PER_EVENT_MAX, Record};
use tidings_fuzz::{Input, within};

/// The file alone: the whole crate would bring the engines' drivers, which are built in C for minutes.
#[allow(dead_code)]
#[path = "../../../crates/engines/src/cassandra/rows.rs"]
mod rows;

fn record(stored: &Bytes) {
    let Ok(record) = Record::decode(stored) else {
        return;
    };
    assert_eq!(Record::conversation_of(stored), Some(record.conversation));
    if let Content::Membership(membership) = &record.content {
        assert!(membership.changes.len() <= MEMBERS_PER_EVENT_MAX);
    }
    let mut again = Vec::new();
    record.encode(&mut again);
    assert_eq!(Record::decode(&again.into()).as_ref(), Ok(&record));
}

fn event(input: &mut Input<'_>) {
    let (conversation, seq, ts) = (ConversationId(input.u64()), input.u64(), input.u64());
    let (meta, body) = (input.piece(), input.rest());
    if let Ok(row) = rows::decode_event(conversation, seq, ts, meta, body) {
        let again = rows::encode_event(&row);
        let read = rows::decode_event(conversation, seq, ts, &again, body);
        assert_eq!(read.as_ref(), Ok(&row));
    }
}

fn state(input: &mut Input<'_>) {
    let (conversation, ts, key) = (ConversationId(input.u64()), input.u64(), input.piece());
    let Ok(key) = rows::decode_key(key) else {
        return;
    };
    let again = rows::encode_key(key);
    assert_eq!(rows::decode_key(&again), Ok(key));
    if let Ok(row) = rows::decode_state(conversation, key, ts, input.rest()) {
        let again = rows::encode_state(&row);
        let read = rows::decode_state(conversation, key, ts, &again);
        assert_eq!(read.as_ref(), Ok(&row));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    // A membership event makes room for the 1,000 changes that it may claim.
    within(64 * bytes.len() + (32 << 10), || match input.byte() {
        0 => record(&Bytes::copy_from_slice(input.rest())),
        1 => event(&mut input),
        _ => state(&mut input),
    });
});
