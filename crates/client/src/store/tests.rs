use bytes::Bytes;
use proptest::prelude::*;
use tidings_protocol::wire::{Encoding, Kind};

use super::*;
use crate::saved::{Cursor, Queued, Refused};

fn message(local: u64, body: Vec<u8>) -> Queued {
    let (kind, encoding) = (Kind::Json, Encoding::Zstd);
    let plain_bytes = body.len() as u32;
    let body = Bytes::from(body);
    Queued {
        local,
        id: local * 7 + 1,
        kind,
        encoding,
        plain_bytes,
        body,
        chained: 0,
        refused: None,
    }
}

/// Every operation, in an order that leaves something of each in the state.
fn every_op() -> Vec<PersistOp> {
    let conversation = 0x00f3;
    let refused = Refused {
        id: 99,
        chained: 4,
        code: "too_long".into(),
    };
    let cursor = Cursor {
        have: 40,
        read: 39,
        looked: 38,
        holes: vec![(2, 9), (20, 21)],
    };
    let mut ops = vec![
        PersistOp::Sender { sender: 5 },
        PersistOp::Epoch { epoch: 1 },
        PersistOp::Under {
            conversation,
            sender: 5,
            grant: 1,
            at: 1_700_000_000_000_000,
        },
    ];
    ops.extend((1..=6).map(|n| PersistOp::Queued {
        conversation,
        message: message(n, vec![n as u8; 9]),
    }));
    ops.extend([
        PersistOp::Numbered {
            conversation,
            count: 4,
        },
        PersistOp::Replaced {
            conversation,
            counter: 1,
            refused: refused.clone(),
        },
        PersistOp::Acked {
            conversation,
            counter: 3,
            id: 22,
            seq: 12,
            at: 1,
        },
        PersistOp::Settled {
            conversation,
            local: 6,
        },
        PersistOp::Replaced {
            conversation,
            counter: 4,
            refused,
        },
        PersistOp::Cursors {
            rows: vec![(conversation, cursor), (7, Cursor::default())],
        },
        PersistOp::Queued {
            conversation: 7,
            message: message(7, Vec::new()),
        },
        PersistOp::Fresh {
            conversation: 7,
            sender: 6,
            decided: vec![1, 2],
        },
        PersistOp::Over { conversation: 7 },
    ]);
    ops
}

fn only_file(folder: &Path) -> PathBuf {
    let found = generations(folder).expect("a readable folder");
    assert_eq!(found.len(), 1, "one generation at rest");
    folder.join(name(found[0]))
}

/// What a release wrote, once for each format: see docs/upgrades.md.
const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/outbox-1");
/// A file of every operation, and one that begins with the state they leave.
const FIXTURES: [&str; 2] = ["operations", "state"];

fn state_left() -> Saved {
    let mut saved = Saved::default();
    every_op().iter().for_each(|op| saved.apply(op));
    saved
}

/// A folder with a fixture as its only file.
fn folder_of(fixture: &str, change: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut content = fs::read(Path::new(FIXTURE).join(fixture)).expect("the fixture");
    change(&mut content);
    let path = folder.path().join(name(1));
    fs::write(&path, content).expect("written");
    (folder, path)
}

#[test]
#[ignore = "writes the fixture, once for each format"]
fn write_the_fixture() {
    let out = Path::new(FIXTURE);
    fs::create_dir_all(out.parent().expect("it has one")).expect("made");
    fs::create_dir(out).expect("remove the folder first, if no release has written it");
    let folder = tempfile::tempdir().expect("a folder");
    let mut store = Store::open(folder.path()).expect("a new store");
    store.append(&every_op()).expect("room");
    drop(store);
    fs::copy(only_file(folder.path()), out.join(FIXTURES[0])).expect("copied");
    begin(folder.path(), 2, &state_left()).expect("written");
    fs::copy(folder.path().join(name(2)), out.join(FIXTURES[1])).expect("copied");
}

#[test]
fn an_outbox_of_format_1_is_read_and_written_on() {
    for fixture in FIXTURES {
        let (folder, _) = folder_of(fixture, |_| ());
        let mut store = Store::open(folder.path()).expect("it opens");
        assert_eq!(
            (store.saved(), store.cut_bytes()),
            (&state_left(), 0),
            "{fixture}"
        );
        let more = PersistOp::Epoch { epoch: 9 };
        store.append(std::slice::from_ref(&more)).expect("room");
        let mut expected = state_left();
        expected.apply(&more);
        drop(store);
        let store = Store::open(folder.path()).expect("it opens again");
        assert_eq!(store.saved(), &expected, "{fixture}");
    }
}

#[test]
fn an_outbox_of_a_later_format_is_refused_and_left_as_it_is() {
    for fixture in FIXTURES {
        let (folder, path) = folder_of(fixture, |content| content[7] = b'2');
        let before = fs::read(&path).expect("the file");
        let error = Store::open(folder.path()).expect_err("it is refused");
        assert!(
            matches!(&error, StoreError::Newer { format: 2, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("use that one"), "{error}");
        assert_eq!(only_file(folder.path()), path);
        assert!(
            fs::read(&path).expect("the file") == before,
            "something was written"
        );
    }
}

#[test]
fn a_file_torn_at_any_byte_opens_with_what_was_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut store = Store::open(folder.path()).expect("a new store");
    let path = only_file(folder.path());
    let length = || fs::metadata(&path).expect("the file").len() as usize;
    let mut states = vec![(length(), store.saved().clone())];
    for op in every_op() {
        store.append(&[op]).expect("room");
        states.push((length(), store.saved().clone()));
    }
    drop(store);
    let whole = fs::read(&path).expect("the file");
    for cut in 0..=whole.len() {
        for flip in [false, true] {
            let mut torn = whole[..cut].to_vec();
            if flip {
                // A sector written in part holds other bytes, too.
                torn.extend(whole[cut..].iter().map(|b| b ^ 0x5a).take(20));
            }
            fs::write(&path, &torn).expect("written");
            let opened = Store::open(folder.path());
            let Some((good, state)) = states.iter().rev().find(|(length, _)| *length <= cut) else {
                assert!(
                    matches!(opened, Err(StoreError::Corrupt(_))),
                    "no state to go on from"
                );
                continue;
            };
            let mut store = opened.expect("a torn tail is cut");
            assert_eq!(store.saved(), state, "cut at {cut}");
            assert_eq!(store.cut_bytes() as usize, torn.len() - good);
            // And it goes on from there.
            store
                .append(&[PersistOp::Sender { sender: 77 }])
                .expect("room");
            drop(store);
            let store = Store::open(folder.path()).expect("opens again");
            assert_eq!((store.saved().sender, store.cut_bytes()), (77, 0));
        }
    }
}

#[test]
fn a_grown_file_is_replaced_and_a_crash_in_between_is_tidied() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut store = Store::open(folder.path()).expect("a new store");
    let first = fs::read(only_file(folder.path())).expect("the file");
    for round in 0..40 {
        let body = vec![1; 20_000];
        let queued = PersistOp::Queued {
            conversation: 1,
            message: message(round + 1, body),
        };
        let settled = PersistOp::Settled {
            conversation: 1,
            local: round + 1,
        };
        store.append(&[queued, settled]).expect("room");
    }
    let state = store.saved().clone();
    drop(store);
    let path = only_file(folder.path());
    assert!(fs::metadata(&path).expect("the file").len() < COMPACT_BYTES_MIN + 50_000);
    // Killed after the rename and before the old one was removed, and while writing the next.
    fs::write(folder.path().join(name(1)), first).expect("written");
    fs::write(folder.path().join(TEMPORARY), b"half").expect("written");
    let store = Store::open(folder.path()).expect("opens");
    assert_eq!(*store.saved(), state);
    assert_eq!(only_file(folder.path()), path);
}

#[test]
fn a_folder_has_one_client_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path()).expect("a new store");
    assert!(matches!(
        Store::open(folder.path()),
        Err(StoreError::Locked)
    ));
    drop(store);
    Store::open(folder.path()).expect("free again");
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8),
        numbers in any::<[u64; 5]>(),
        holes in prop::collection::vec(any::<(u64, u64)>(), 0..4),
        code in ".{0,12}",
    ) {
        let [conversation, counter, id, seq, at] = numbers;
        let mut ops = every_op();
        ops.extend(bodies.into_iter().map(|b| PersistOp::Queued { conversation, message: message(seq % 1000, b) }));
        ops.push(PersistOp::Acked { conversation, counter, id, seq, at });
        ops.push(PersistOp::Replaced { conversation, counter: 1, refused: Refused { id, chained: seq, code } });
        ops.push(PersistOp::Cursors { rows: vec![(id, Cursor { have: seq, read: at, looked: id, holes })] });
        ops.push(PersistOp::Reset { epoch: at as u32, sender: id });
        let mut state = Saved::default();
        for op in &ops {
            let mut bytes = Vec::new();
            format::put_op(&mut bytes, op);
            let read = format::op(&bytes);
            prop_assert_eq!(read.as_ref(), Some(op));
            state.apply(op);
            bytes.clear();
            format::put_saved(&mut bytes, &state);
            let read = format::saved(&bytes);
            prop_assert_eq!(read.as_ref(), Some(&state));
        }
    }

    #[test]
    fn foreign_bytes_are_refused_without_panic(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut state = Saved::default();
        if let Some(op) = format::op(&payload) {
            state.apply(&op);
        }
        if let Some(mut state) = format::saved(&payload) {
            every_op().iter().for_each(|op| state.apply(op));
        }
    }
}
