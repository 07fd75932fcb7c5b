//! Blocks whose columns are wrong although their checksum is right: a fault of ours, or malice.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use tidings_core::ids::{ConversationId, MessageKey, Position, SenderId, UserId};
use tidings_core::record::{ConversationKind, Encoding, Kind, Role};
use tidings_core::rows::{
    Before, CursorRow, EventRow, GrantState, MemberChange, MembersBody, SenderState, StateKey,
    StateRow, StateValue,
};

use super::cache::{Block, BlockId, Cache};
use super::columns::{ROWS_MAX, Sealer, unseal};
use super::events::{self, EventBlock};
use super::rows::{self, Row, RowBlock};
use super::{LsmStore, Options};

fn event(conversation: u64, seq: u64) -> EventRow {
    let sender = SenderState {
        grant: 1,
        counter: seq,
        id: MessageKey(seq),
        seq,
        ts: seq,
    };
    let change = MemberChange {
        user: UserId(8),
        role: Role::Member,
        before: GrantState {
            grant: 3,
            ..GrantState::default()
        },
    };
    let members = MembersBody {
        version: seq,
        kind: ConversationKind::Group,
        title: "title".into(),
        changes: vec![change],
    };
    EventRow {
        conversation: ConversationId(conversation),
        seq,
        position: Position {
            epoch: seq as u32 / 9,
            offset: seq * 3,
        },
        ts: seq * 700,
        ts_before: (seq - 1) * 700,
        user: UserId(seq % 3),
        sender: SenderId(seq % 3),
        grant: 1,
        counter: seq / 3,
        id: MessageKey(seq << 30),
        before: if seq.is_multiple_of(5) {
            Before::Row(sender)
        } else {
            Before::Seq(seq.saturating_sub(3))
        },
        kind: Kind::Text,
        encoding: Encoding::Identity,
        body: Bytes::from(vec![b'x'; seq as usize % 7]),
        members: seq.is_multiple_of(6).then(|| Box::new(members)),
    }
}

fn row(user: u64, which: u64) -> Row {
    let conversation = ConversationId(4);
    let user = UserId(user);
    let position = Position {
        epoch: 1,
        offset: 90,
    };
    let state = |key, value| {
        Row::State(StateRow {
            conversation,
            key,
            position,
            ts: 5,
            value,
        })
    };
    match which {
        0 => state(
            StateKey::Grant(user),
            StateValue::Grant(GrantState::default()),
        ),
        1 => state(
            StateKey::Sender(user, SenderId(3)),
            StateValue::Sender(SenderState::default()),
        ),
        _ => Row::Cursor(CursorRow {
            conversation,
            user,
            delivered: 7,
            read: 5,
        }),
    }
}

/// The block with one byte of one column changed, removed or added, under a right checksum.
fn spoil(stored: Vec<u8>, column: usize, at: usize, byte: u8) -> Bytes {
    let mut columns: Vec<Vec<u8>> = unseal(&stored.into())
        .unwrap()
        .iter()
        .map(|c| c.to_vec())
        .collect();
    let count = columns.len();
    let column = &mut columns[column % count];
    match column.len() {
        0 => column.push(byte),
        len if byte.is_multiple_of(3) => drop(column.remove(at % len)),
        len => column[at % len] ^= byte,
    }
    let slices: Vec<&[u8]> = columns.iter().map(Vec::as_slice).collect();
    let mut out = Vec::new();
    Sealer::new(1).unwrap().seal(&slices, &mut out).unwrap();
    out.into()
}

fn block(rows: &[Row]) -> Block {
    let mut stored = Vec::new();
    rows::encode(rows, &mut Sealer::new(1).unwrap(), &mut stored).unwrap();
    Block::Rows(Arc::new(RowBlock::decode(&stored.into()).unwrap()))
}

#[test]
fn blocks_stay_in_memory_while_they_are_used_and_there_is_room() {
    let id = |index| BlockId {
        segment: 1,
        events: false,
        index,
    };
    let block = block(&[row(1, 0), row(1, 1)]);
    let cache = Cache::new(2 * 2 * size_of::<Row>());
    let kept = |cache: &Cache| [0, 1, 2].map(|index| cache.get(id(index)).is_some());
    for index in 0..3 {
        cache.insert(id(index), block.clone());
    }
    assert_eq!(kept(&cache), [false, true, true], "no room for three");
    cache.age();
    assert!(cache.get(id(2)).is_some());
    cache.age();
    assert_eq!(kept(&cache), [false, false, true], "only 2 was used since");
    cache.insert(id(0), block.clone());
    cache.insert(id(1), block);
    assert_eq!(kept(&cache), [true, true, false], "what went left room");
}

#[test]
fn a_store_at_rest_has_its_rows_flushed_once_they_are_many() {
    let options = Options {
        threads: false,
        quiet_flush_bytes: 10_000,
        ..Options::default()
    };
    let store = LsmStore::open(Arc::new(crate::disk::SimDisk::new()), options).unwrap();
    let mut puts = 0;
    let put = |from: u64, to: u64| {
        let rows = (from..to).map(|seq| event(1, seq)).collect();
        store.inner.put(|table| table.put_events(rows)).unwrap();
    };
    put(1, 10);
    assert!(!store.inner.is_quiet(&mut puts));
    assert!(!store.inner.is_quiet(&mut puts), "few rows");
    put(10, 100);
    assert!(!store.inner.is_quiet(&mut puts), "put since the last call");
    assert!(store.inner.is_quiet(&mut puts));
    store.flush().unwrap();
    assert!(!store.inner.is_quiet(&mut puts), "nothing more to flush");
}

#[test]
fn a_block_with_more_rows_than_any_has_is_refused() {
    for (rows, is_good) in [(ROWS_MAX as u64, true), (ROWS_MAX as u64 + 1, false)] {
        let mut sealer = Sealer::new(1).unwrap();
        let mut stored = Vec::new();
        let empty = |seq| {
            let position = Position::default();
            EventRow::empty(ConversationId(3), seq, position, seq, seq - 1)
        };
        let all: Vec<EventRow> = (1..=rows).map(empty).collect();
        events::encode(&all, &mut sealer, &mut stored).unwrap();
        let block = EventBlock::decode(&stored.into());
        assert_eq!(block.is_ok(), is_good, "{rows} events");
        let mut stored = Vec::new();
        let all: Vec<Row> = (1..=rows).map(|user| row(user, 2)).collect();
        rows::encode(&all, &mut sealer, &mut stored).unwrap();
        let block = RowBlock::decode(&stored.into());
        assert_eq!(block.is_ok(), is_good, "{rows} rows");
    }
}

/// 2^22 changes in 4 MiB of which all but one byte could be left out: 200 bytes on the disk.
#[test]
fn a_block_with_more_changes_of_members_than_any_has_is_refused() {
    let change = MemberChange {
        user: UserId(0),
        role: Role::Member,
        before: GrantState::default(),
    };
    for (changes, is_good) in [(1 << 22, true), ((1 << 22) + 1, false)] {
        let mut event = event(4, 6);
        event.user = change.user;
        event.members.as_mut().unwrap().changes = vec![change; changes];
        let mut stored = Vec::new();
        let all = [event];
        events::encode(&all, &mut Sealer::new(1).unwrap(), &mut stored).unwrap();
        let block = EventBlock::decode(&stored.into());
        assert_eq!(block.is_ok(), is_good, "{changes} changes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_wrong_column_is_an_error_or_other_rows_but_never_a_panic(
        column in 0..64usize,
        at in 0..5000usize,
        byte in 1..=255u8,
    ) {
        let mut sealer = Sealer::new(1).unwrap();
        let mut stored = Vec::new();
        let all: Vec<EventRow> = [3, 9].iter().flat_map(|c| (1..40).map(|seq| event(*c, seq))).collect();
        events::encode(&all, &mut sealer, &mut stored).unwrap();
        if let Ok(block) = EventBlock::decode(&spoil(stored, column, at, byte)) {
            for i in 0..block.len() {
                let row = block.row(block.conversation(i), i);
                prop_assert!(row.body.len() < 10_000);
            }
        }
        let mut stored = Vec::new();
        let all: Vec<Row> = (1..30).flat_map(|user| (0..3).map(move |which| row(user, which))).collect();
        rows::encode(&all, &mut sealer, &mut stored).unwrap();
        if let Ok(block) = RowBlock::decode(&spoil(stored, column, at, byte)) {
            prop_assert!(block.rows().len() < 1000);
        }
    }
}
