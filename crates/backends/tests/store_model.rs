//! Random puts, flushes, merges and restarts against a model that keeps everything in maps.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod store_rows;

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use store_rows::{event, run, state};
use tidings_backends::disk::SimDisk;
use tidings_backends::lsm::{Codec, LsmStore, Options};
use tidings_core::ids::{ConversationId, Partition, Position, SenderId, Seq, UserId};
use tidings_core::ports::store::Store;
use tidings_core::rows::{CursorRow, EventRow, StateKey, StateRow};

const P: Partition = Partition(3);
const SEQS: Seq = 200;

#[derive(Clone, Debug)]
enum Op {
    Events(Vec<(ConversationId, Seq)>),
    State(Vec<(ConversationId, StateKey, u64)>),
    Cursors(Vec<(ConversationId, UserId, Seq, Seq)>),
    Settle(u64),
    Flush,
    Merge,
    Restart,
    Read(ConversationId, Seq, Seq, usize),
    ReadSince(ConversationId, u64),
}

fn conversation() -> impl Strategy<Value = ConversationId> {
    // Neighbours and far ones.
    prop_oneof![Just(1), Just(2), Just(u64::MAX), Just(0)].prop_map(ConversationId)
}

fn key() -> impl Strategy<Value = StateKey> {
    let user = || (0..3u64).prop_map(UserId);
    prop_oneof![
        Just(StateKey::Head),
        user().prop_map(StateKey::Grant),
        (user(), 0..2u64).prop_map(|(user, sender)| StateKey::Sender(user, SenderId(sender))),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let seq = || 0..SEQS;
    let run = (conversation(), seq(), 1..40u64)
        .prop_map(|(c, from, len)| (from..from + len).map(|seq| (c, seq)).collect());
    let any = prop::collection::vec((conversation(), seq()), 1..10);
    prop_oneof![
        3 => run.prop_map(Op::Events),
        2 => any.prop_map(Op::Events),
        3 => prop::collection::vec((conversation(), key(), 0..300u64), 1..20).prop_map(Op::State),
        1 => prop::collection::vec((conversation(), (0..3u64).prop_map(UserId), seq(), seq()), 1..5).prop_map(Op::Cursors),
        1 => (0..300u64).prop_map(Op::Settle),
        2 => Just(Op::Flush),
        1 => Just(Op::Merge),
        1 => Just(Op::Restart),
        2 => (conversation(), seq(), seq(), 0..3000usize).prop_map(|(c, from, to, bytes)| Op::Read(c, from, to, bytes)),
        1 => (conversation(), 0..SEQS * 2).prop_map(|(c, from)| Op::ReadSince(c, from)),
    ]
}

/// The naive store: maps, and a copy of them that is durable; cursors are so at once.
#[derive(Clone, Default)]
struct Model {
    events: BTreeMap<(ConversationId, Seq), EventRow>,
    state: BTreeMap<(ConversationId, StateKey), StateRow>,
    cursors: BTreeMap<(ConversationId, UserId), CursorRow>,
    settled: Position,
}

/// Positions grow with the seq, in two epochs.
fn at(seq: u64) -> Position {
    Position {
        epoch: (seq / 150) as u32,
        offset: seq % 150 * 2,
    }
}

fn open(disk: &SimDisk) -> LsmStore {
    let options = Options {
        codec: Codec {
            block_bytes: 300,
            level: 1,
        },
        threads: false,
        flush_bytes: usize::MAX,
        cache_bytes: 30_000,
        on_fatal: Arc::new(|why| panic!("{why}")),
        ..Options::default()
    };
    LsmStore::open(Arc::new(disk.clone()), options).unwrap()
}

fn compare(store: &LsmStore, model: &Model) {
    assert_eq!(store.settled(P), model.settled);
    for c in [0, 1, 2, 3, u64::MAX].map(ConversationId) {
        let rows = run(store.read_events(c, 0, Seq::MAX, usize::MAX)).unwrap();
        let expected: Vec<_> = model
            .events
            .range((c, 0)..=(c, Seq::MAX))
            .map(|(_, row)| row.clone())
            .collect();
        assert_eq!(rows, expected);
        for user in (0..4).map(UserId) {
            let keys = vec![
                StateKey::Head,
                StateKey::Grant(user),
                StateKey::Sender(user, SenderId(0)),
                StateKey::Sender(user, SenderId(1)),
            ];
            let expected: Vec<_> = keys
                .iter()
                .map(|key| model.state.get(&(c, *key)).copied())
                .collect();
            assert_eq!(run(store.read_state(c, keys)).unwrap(), expected);
            let cursor: Vec<_> = model.cursors.get(&(c, user)).copied().into_iter().collect();
            assert_eq!(run(store.read_cursors(c, vec![user])).unwrap(), cursor);
        }
    }
}

fn apply(op: Op, disk: &SimDisk, store: &mut LsmStore, model: &mut Model, durable: &mut Model) {
    match op {
        Op::Events(keys) => {
            let rows: Vec<_> = keys
                .into_iter()
                .map(|(c, seq)| event(c, seq, at(seq)))
                .collect();
            model.events.extend(
                rows.iter()
                    .map(|row| ((row.conversation, row.seq), row.clone())),
            );
            run(store.put_events(P, rows)).unwrap();
        }
        Op::State(keys) => {
            let rows: Vec<_> = keys
                .into_iter()
                .map(|(c, key, seq)| state(c, key, at(seq)))
                .collect();
            for row in &rows {
                let there = model
                    .state
                    .entry((row.conversation, row.key))
                    .or_insert(*row);
                if row.position > there.position {
                    *there = *row;
                }
            }
            run(store.put_state(P, rows)).unwrap();
        }
        Op::Cursors(cursors) => {
            let rows: Vec<_> = cursors
                .into_iter()
                .map(|(conversation, user, delivered, read)| CursorRow {
                    conversation,
                    user,
                    delivered,
                    read,
                })
                .collect();
            for row in &rows {
                let there = model
                    .cursors
                    .entry((row.conversation, row.user))
                    .or_insert(*row);
                there.delivered = there.delivered.max(row.delivered);
                there.read = there.read.max(row.read);
            }
            run(store.put_cursors(P, rows)).unwrap();
            durable.cursors = model.cursors.clone();
        }
        Op::Settle(seq) => {
            let given = at(seq);
            assert_eq!(
                run(store.settle(P, given)).unwrap(),
                durable.settled.min(given)
            );
            model.settled = model.settled.max(given);
        }
        Op::Flush | Op::Merge => {
            if matches!(op, Op::Merge) {
                store.compact_all()
            } else {
                store.flush()
            }
            .unwrap();
            *durable = model.clone();
        }
        Op::Restart => {
            *store = open(disk);
            *model = durable.clone();
            compare(store, model);
        }
        Op::Read(c, from, to, bytes_max) => {
            let mut bytes = 0;
            let mut expected = Vec::new();
            for (_, row) in model
                .events
                .range((c, from)..=(c, to.max(from)))
                .filter(|_| from <= to)
            {
                bytes += row.body.len();
                expected.push(row.clone());
                if bytes >= bytes_max {
                    break;
                }
            }
            assert_eq!(
                run(store.read_events(c, from, to, bytes_max)).unwrap(),
                expected
            );
        }
        Op::ReadSince(c, seq) => {
            let rows = model
                .events
                .range((c, 0)..=(c, Seq::MAX))
                .map(|(_, row)| row.clone());
            let expected: Vec<_> = rows.filter(|row| row.position >= at(seq)).collect();
            assert_eq!(run(store.read_events_since(c, at(seq))).unwrap(), expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_says_what_the_model_says(ops in prop::collection::vec(op(), 1..60)) {
        let disk = SimDisk::new();
        let mut store = open(&disk);
        let mut model = Model::default();
        let mut durable = Model::default();
        for op in ops {
            apply(op, &disk, &mut store, &mut model, &mut durable);
        }
        store.flush().unwrap();
        compare(&store, &model);
        store.compact_all().unwrap();
        compare(&store, &model);
        drop(store);
        compare(&open(&disk), &model);
    }
}
