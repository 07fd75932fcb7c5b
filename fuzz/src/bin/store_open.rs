//! A folder that may hold a store: it opens or it is refused, gives the same each time, merges, and goes on.

#![no_main]

use std::sync::Arc;

use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;
use tidings_backends::disk::SimDisk;
use tidings_backends::lsm::{Codec, LsmStore, Options};
use tidings_core::ids::{ConversationId, Partition, Position, UserId};
use tidings_core::ports::store::{Store, StoreError, StoreResult};
use tidings_core::rows::{CursorRow, EventRow, StateKey, StateRow};
use tidings_fuzz::{Input, store_files, within};

const P: Partition = Partition(0);

fn open(disk: &SimDisk) -> StoreResult<LsmStore> {
    let options = Options {
        cache_bytes: 1 << 20,
        codec: Codec {
            block_bytes: 600,
            level: 1,
        },
        threads: false,
        on_fatal: Arc::new(|why| panic!("the store can't go on: {why}")),
        ..Options::default()
    };
    LsmStore::open(Arc::new(disk.clone()), options)
}

#[derive(Debug, PartialEq)]
struct Found {
    events: StoreResult<Vec<EventRow>>,
    since: StoreResult<Vec<EventRow>>,
    state: StoreResult<Vec<Option<StateRow>>>,
    cursors: StoreResult<Vec<CursorRow>>,
}

/// Without threads nothing has to be waited for.
fn now<T>(future: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
    future.now_or_never().expect("nothing has to be waited for")
}

fn read(store: &LsmStore, conversation: ConversationId) -> Found {
    let all = 1 << 20;
    let events = now(store.read_events(conversation, 0, u64::MAX, all));
    let mut users: Vec<UserId> = (0..4).map(UserId).collect();
    let since = now(store.read_events_since(conversation, Position::default()));
    let mut keys = vec![StateKey::Head];
    for event in events.iter().flatten().take(20) {
        assert_eq!(event.conversation, conversation);
        users.push(event.user);
        keys.push(StateKey::Sender(event.user, event.sender));
    }
    if let Ok(events) = &events {
        assert!(
            events.is_sorted_by(|a, b| a.seq < b.seq),
            "rising, each once"
        );
    }
    keys.extend(users.iter().map(|user| StateKey::Grant(*user)));
    let state = now(store.read_state(conversation, keys.clone()));
    for (key, row) in keys.iter().zip(state.iter().flatten()) {
        let asked = (conversation, *key);
        assert!(row.is_none_or(|row| (row.conversation, row.key) == asked));
    }
    Found {
        events,
        since,
        state,
        cursors: now(store.read_cursors(conversation, users)),
    }
}

fn read_all(store: &LsmStore, conversations: &[ConversationId]) -> Vec<Found> {
    conversations.iter().map(|c| read(store, *c)).collect()
}

/// One more event of a conversation that nothing is known of, there after the next start.
fn go_on(store: LsmStore, disk: &SimDisk, conversations: &[ConversationId]) {
    let unknown = (1..)
        .map(ConversationId)
        .find(|c| !conversations.contains(c));
    let conversation = unknown.expect("there are more ids than conversations");
    // The index can lie: a block of these bytes may hold it all the same.
    if read(&store, conversation).events != Ok(Vec::new()) {
        return;
    }
    let position = Position {
        epoch: u32::MAX,
        offset: 1,
    };
    let event = EventRow::empty(conversation, 1, position, 1, 0);
    now(store.put_events(P, vec![event.clone()])).expect("there is room");
    store.close().expect("there is room");
    let again = open(disk).expect("it opened before");
    let events = now(again.read_events(conversation, 1, 1, 1000));
    assert_eq!(events, Ok(vec![event]));
}

fuzz_target!(|bytes: &[u8]| {
    let disk = SimDisk::new();
    let conversations = store_files::write(&disk, &mut Input::new(bytes));
    let mut conversations = conversations.expect("the simulated disk has room");
    conversations.push(ConversationId(1));
    conversations.sort_unstable();
    conversations.dedup();
    let copy = disk.copy();
    // A block may be inflated to so much, and two may be looked at together.
    within(1 << 30, || {
        let first = match open(&disk) {
            Ok(store) => store,
            Err(error) => {
                assert!(
                    matches!(error, StoreError::Corrupt(_) | StoreError::Newer(_)),
                    "{error}"
                );
                return assert_eq!(open(&copy).err(), Some(error), "of the same files");
            }
        };
        let found = read_all(&first, &conversations);
        let second = open(&copy).expect("of the same files");
        assert_eq!(
            read_all(&second, &conversations),
            found,
            "of the same files"
        );
        let _ = second.column_bytes();
        // Merging reads all there is, and loses nothing of what could be read.
        if second.compact_all().is_ok() {
            read_all(&second, &conversations);
        }
        drop(second);
        go_on(first, &disk, &conversations);
    });
});
