//! Cursors of the embedded store, which the log can't give again: durable when the put returns.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod store_rows;

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;

use store_rows::{event, run};
use tidings_backends::disk::SimDisk;
use tidings_backends::lsm::{JOURNAL_REFUSED_FACTOR, LsmStore, Options};
use tidings_core::ids::{ConversationId, Partition, Position, Seq, UserId};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::disk::Disk;
use tidings_core::ports::store::{Store, StoreError, StoreResult};
use tidings_core::rows::CursorRow;

const P: Partition = Partition(0);
const C: ConversationId = ConversationId(77);

fn quiet() -> Options {
    Options {
        threads: false,
        flush_bytes: usize::MAX,
        on_fatal: Arc::new(|why| panic!("the store can't go on: {why}")),
        ..Options::default()
    }
}

fn open(disk: &SimDisk) -> LsmStore {
    LsmStore::open(Arc::new(disk.clone()), quiet()).unwrap()
}

fn cursor(user: u64, delivered: Seq) -> CursorRow {
    CursorRow {
        conversation: C,
        user: UserId(user),
        delivered,
        read: delivered / 2,
    }
}

fn put(store: &LsmStore, user: u64, delivered: Seq) -> StoreResult<()> {
    run(store.put_cursors(P, vec![cursor(user, delivered)]))
}

/// How far the first users have come, 0 for those without a cursor.
fn delivered(store: &LsmStore) -> [Seq; 3] {
    [0, 1, 2].map(|user| {
        let found = run(store.read_cursors(C, vec![UserId(user)])).unwrap();
        found.first().map_or(0, |row| {
            assert_eq!(*row, cursor(user, row.delivered));
            row.delivered
        })
    })
}

fn journals(disk: &SimDisk) -> Vec<String> {
    let mut names = disk.list().unwrap();
    names.retain(|name| name.starts_with("cursors-"));
    names.sort();
    names
}

#[test]
fn they_survive_crashes_without_a_flush_and_leave_no_file_after_one() {
    let disk = SimDisk::new();
    for round in 1..=3 {
        let store = open(&disk);
        put(&store, 0, round * 10).unwrap();
        put(&store, 1, 40 - round * 10).unwrap();
        assert_eq!(delivered(&store), [round * 10, 30, 0]);
    }
    assert_eq!(journals(&disk).len(), 3);
    let crashed = disk.crash(1);
    assert_eq!(delivered(&open(&crashed)), [30, 30, 0]);

    let store = open(&disk);
    store.flush().unwrap();
    assert_eq!(journals(&disk), [""; 0]);
    assert_eq!(store.figures().cursor_journal_bytes, 0);
    put(&store, 2, 5).unwrap();
    assert_eq!(journals(&disk).len(), 1);
    store.close().unwrap();
    assert_eq!(journals(&disk), [""; 0]);
    assert_eq!(delivered(&open(&disk)), [30, 30, 5]);
}

#[test]
fn the_order_in_which_journals_are_read_means_nothing() {
    let disk = SimDisk::new();
    for (user, to) in [(0, 9), (0, 4), (1, 7), (0, 12), (1, 2)] {
        put(&open(&disk), user, to).unwrap();
    }
    let names = journals(&disk);
    assert_eq!(names.len(), 5);
    let turned = disk.copy();
    for (name, reversed) in names.iter().zip(names.iter().rev()) {
        let mut bytes = vec![0; disk.open(reversed).unwrap().len().unwrap() as usize];
        let from = disk.open(reversed).unwrap();
        from.read_exact_at(&mut bytes, 0).unwrap();
        let file = turned.open(name).unwrap();
        file.set_len(0).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
    }
    assert_eq!(delivered(&open(&disk)), [12, 7, 0]);
    assert_eq!(delivered(&open(&turned)), [12, 7, 0]);
}

#[test]
fn a_torn_end_is_cut_off_and_other_damage_is_named() {
    let disk = SimDisk::new();
    let store = open(&disk);
    for to in 1..=3 {
        put(&store, to % 2, to).unwrap();
    }
    let [name] = &journals(&disk)[..] else {
        panic!("one journal")
    };
    let len = disk.open(name).unwrap().len().unwrap();
    let torn = disk.copy();
    torn.open(name).unwrap().set_len(len - 1).unwrap();
    assert_eq!(delivered(&open(&torn)), [2, 1, 0]);
    assert_eq!(
        torn.open(name).unwrap().len().unwrap(),
        len - (len - 16) / 3
    );
    assert_eq!(delivered(&open(&torn.crash(1))), [2, 1, 0]);

    let damaged = disk.copy();
    damaged.open(name).unwrap().write_all_at(b"?", 26).unwrap();
    let Err(StoreError::Corrupt(what)) = LsmStore::open(Arc::new(damaged), quiet()) else {
        panic!("damage was read")
    };
    assert!(what.contains(name.as_str()), "{what}");
    disk.remove("manifest").unwrap();
    let Err(StoreError::Corrupt(what)) = LsmStore::open(Arc::new(disk), quiet()) else {
        panic!("a store without a manifest opened")
    };
    assert!(what.contains("no manifest"), "{what}");
}

#[test]
fn wherever_the_room_ends_the_put_fails_as_full_and_the_next_one_is_taken() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let mut to = 0;
    for free in 0..40 {
        let before = delivered(&open(&disk.copy()));
        let used = disk.used();
        disk.set_capacity(Some(used + free));
        to += 1;
        let done = put(&store, 0, to);
        disk.set_capacity(None);
        let left = delivered(&open(&disk.crash(free)));
        match done {
            Ok(()) => assert_eq!(left, [to, before[1], 0]),
            Err(StoreError::Full) => {
                assert_eq!(left, before, "with room for {free} bytes");
                assert_eq!(disk.used(), used, "half a frame takes no room");
            }
            Err(other) => panic!("{other}"),
        }
        put(&store, 1, to).unwrap();
        assert_eq!(delivered(&open(&disk.crash(free)))[1], to);
    }
    assert!(store.figures().failures > 5);
    assert_eq!(delivered(&store), [to, to, 0]);
}

#[test]
fn a_failed_sync_is_fatal_and_never_tried_again() {
    let (told, syncs) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (count_told, count_sync) = (told.clone(), syncs.clone());
    let disk = SimDisk::new();
    let options = Options {
        on_fatal: Arc::new(move |_| {
            count_told.fetch_add(1, Ordering::Relaxed);
        }),
        ..quiet()
    };
    let store = LsmStore::open(Arc::new(disk.clone()), options).unwrap();
    disk.on_sync(move || {
        count_sync.fetch_add(1, Ordering::Relaxed);
        Err(io::Error::other("input/output error"))
    });
    for _ in 0..2 {
        assert!(matches!(put(&store, 0, 1), Err(StoreError::Unavailable(_))));
        store.flush().unwrap_err();
    }
    let counts = [told, syncs].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(counts, [1, 1]);
}

#[test]
fn a_journal_that_grows_long_is_flushed_away_and_refused_when_it_cannot_be() {
    let options = Options {
        cursor_journal_bytes: 500,
        ..quiet()
    };
    let disk = SimDisk::new();
    let store = LsmStore::open(Arc::new(disk.clone()), options).unwrap();
    let settle = || run(store.settle(P, Position::default())).unwrap();
    for to in 1..=1000 {
        put(&store, 0, to).unwrap();
        settle();
        assert!(disk.used() < 2500, "the same cursor over and over");
    }
    assert!(store.figures().flushes > 5);

    // A flush needs more room than a cursor: this one never finds enough.
    let rows = (1..=600).map(|seq| event(C, seq, Position::default()));
    run(store.put_events(P, rows.collect())).unwrap();
    let limit = 500 * JOURNAL_REFUSED_FACTOR;
    disk.set_capacity(Some(disk.used() + limit + 500));
    let refused = (1001..3000).find_map(|to| {
        settle();
        put(&store, 0, to).err()
    });
    assert_eq!(refused, Some(StoreError::Full));
    assert!(store.figures().cursor_journal_bytes > limit);
    disk.set_capacity(None);
    settle();
    put(&store, 0, 5000).unwrap();
    assert_eq!(delivered(&open(&disk)), [5000, 0, 0]);
}

async fn done(put: &mut BoxFuture<'_, StoreResult<()>>) -> bool {
    poll_fn(|context| Poll::Ready(put.as_mut().poll(context).is_ready())).await
}

#[test]
fn the_caller_is_not_held_up_and_puts_that_wait_share_a_sync() {
    let disk = SimDisk::new();
    let options = Options {
        threads: true,
        ..quiet()
    };
    let store = LsmStore::open(Arc::new(disk.clone()), options).unwrap();
    let (entered, syncing) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let syncs = Arc::new(AtomicU64::new(0));
    let count = syncs.clone();
    disk.on_sync(move || {
        count.fetch_add(1, Ordering::Relaxed);
        entered.send(()).unwrap();
        // Ends once nobody holds the other end.
        let _ = released.lock().unwrap().recv();
        Ok(())
    });
    run(async {
        let mut puts = [1, 2, 3].map(|to| store.put_cursors(P, vec![cursor(to - 1, to)]));
        assert!(!done(&mut puts[0]).await);
        syncing.recv().unwrap();
        assert!(!done(&mut puts[1]).await);
        assert!(!done(&mut puts[2]).await);
        assert!(!done(&mut puts[0]).await, "it isn't synced yet");
        drop(release);
        for put in puts {
            put.await.unwrap();
        }
    });
    let syncs = syncs.load(Ordering::Relaxed);
    assert_eq!(syncs, 3, "file and name, and once for the two that waited");
    assert_eq!(delivered(&open(&disk.crash(3))), [1, 2, 3]);
}

#[test]
fn what_waits_for_the_disk_is_bounded() {
    let disk = SimDisk::new();
    let options = Options {
        threads: true,
        ..quiet()
    };
    let store = LsmStore::open(Arc::new(disk.clone()), options).unwrap();
    let (entered, syncing) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    disk.on_sync(move || {
        entered.send(()).unwrap();
        let _ = released.lock().unwrap().recv();
        Ok(())
    });
    let many = |n: u64| (0..n).map(|user| cursor(user, 1)).collect::<Vec<_>>();
    run(async {
        let mut first = store.put_cursors(P, many(1));
        assert!(!done(&mut first).await);
        syncing.recv().unwrap();
        // Larger than the queue: taken since nothing else waits, and written in two frames.
        let mut large = store.put_cursors(P, many(70_000));
        assert!(!done(&mut large).await);
        let refused = store.put_cursors(P, many(1)).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))));
        drop(release);
        first.await.unwrap();
        large.await.unwrap();
    });
    let store = open(&disk.crash(1));
    let last = run(store.read_cursors(C, vec![UserId(69_999)])).unwrap();
    assert_eq!(last, [cursor(69_999, 1)]);
}
