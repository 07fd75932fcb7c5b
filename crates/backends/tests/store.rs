//! The embedded store behind its port: the common suite, restarts, damage, full disks.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod store_rows;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use store_rows::{event, noise, run, state};
use tidings_backends::disk::{RealDisk, Rng, SimDisk};
use tidings_backends::lsm::{Codec, LsmStore, Options};
use tidings_core::conformance::store as suite;
use tidings_core::ids::{ConversationId, Partition, Position, SenderId, Seq, UserId};
use tidings_core::ports::BoxFuture;
use tidings_core::ports::disk::{Disk, DiskFile};
use tidings_core::ports::store::{Store, StoreError, StoreResult};
use tidings_core::rows::{CursorRow, EventRow, StateKey, StateRow};

const P: Partition = Partition(0);
const C: ConversationId = ConversationId(77);

/// Small blocks, and nothing happens that the test doesn't ask for.
fn quiet() -> Options {
    Options {
        codec: Codec {
            block_bytes: 2000,
            level: 1,
        },
        threads: false,
        flush_bytes: usize::MAX,
        on_fatal: Arc::new(|why| panic!("the store can't go on: {why}")),
        ..Options::default()
    }
}

fn open(disk: &SimDisk, options: Options) -> LsmStore {
    LsmStore::open(Arc::new(disk.clone()), options).unwrap()
}

fn at(offset: u64) -> Position {
    Position { epoch: 1, offset }
}

/// Puts the events of some seqs, whose positions are their seqs, and settles behind them.
fn put(store: &LsmStore, seqs: std::ops::RangeInclusive<Seq>) -> StoreResult<Position> {
    let end = *seqs.end();
    let rows: Vec<EventRow> = seqs.map(|seq| event(C, seq, at(seq))).collect();
    run(async {
        store.put_events(P, rows).await?;
        store
            .put_state(P, vec![state(C, StateKey::Head, at(end))])
            .await?;
        store.settle(P, at(end + 1)).await
    })
}

fn read(store: &LsmStore, to: Seq) -> StoreResult<Vec<EventRow>> {
    run(store.read_events(C, 1, to, usize::MAX))
}

fn expected(seqs: std::ops::RangeInclusive<Seq>) -> Vec<EventRow> {
    seqs.map(|seq| event(C, seq, at(seq))).collect()
}

/// Flushes after every put and merges after every third: nothing is read from memory.
struct Restless {
    store: LsmStore,
    puts: AtomicU64,
}

impl Restless {
    async fn after(&self, put: BoxFuture<'_, StoreResult<()>>) -> StoreResult<()> {
        put.await?;
        if self.puts.fetch_add(1, Ordering::Relaxed).is_multiple_of(3) {
            self.store.compact_all()
        } else {
            self.store.flush()
        }
    }
}

impl Store for Restless {
    fn put_events(&self, p: Partition, rows: Vec<EventRow>) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.after(self.store.put_events(p, rows)))
    }

    fn put_state(&self, p: Partition, rows: Vec<StateRow>) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.after(self.store.put_state(p, rows)))
    }

    fn put_cursors(&self, p: Partition, rows: Vec<CursorRow>) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.after(self.store.put_cursors(p, rows)))
    }

    fn settle(&self, p: Partition, position: Position) -> BoxFuture<'_, StoreResult<Position>> {
        self.store.settle(p, position)
    }

    fn read_events(
        &self,
        c: ConversationId,
        from: Seq,
        to: Seq,
        bytes_max: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<EventRow>>> {
        self.store.read_events(c, from, to, bytes_max)
    }

    fn read_events_since(
        &self,
        c: ConversationId,
        from: Position,
    ) -> BoxFuture<'_, StoreResult<Vec<EventRow>>> {
        self.store.read_events_since(c, from)
    }

    fn read_state(
        &self,
        c: ConversationId,
        keys: Vec<StateKey>,
    ) -> BoxFuture<'_, StoreResult<Vec<Option<StateRow>>>> {
        self.store.read_state(c, keys)
    }

    fn read_cursors(
        &self,
        c: ConversationId,
        users: Vec<UserId>,
    ) -> BoxFuture<'_, StoreResult<Vec<CursorRow>>> {
        self.store.read_cursors(c, users)
    }
}

#[test]
fn it_keeps_the_promises_of_the_port_from_memory_and_from_segments() {
    run(async {
        suite::all(&open(&SimDisk::new(), quiet()), 1).await;
        let restless = Restless {
            store: open(&SimDisk::new(), quiet()),
            puts: AtomicU64::new(0),
        };
        suite::all(&restless, 1).await;
        suite::all(&restless, 2).await;
    });
}

#[test]
fn it_keeps_the_promises_while_its_threads_flush_and_merge_a_real_disk_and_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        threads: true,
        flush_bytes: 20_000,
        merge_segments: 2,
        ..quiet()
    };
    for round in 1..4 {
        let disk = Arc::new(RealDisk::open(folder.path()).unwrap());
        let store = LsmStore::open(disk, options.clone()).unwrap();
        if round > 1 {
            assert_eq!(store.settled(P), at(300));
            assert_eq!(read(&store, 999).unwrap(), expected(1..=299));
        }
        run(suite::all(&store, round));
        put(&store, 1..=299).unwrap();
        store.close().unwrap();
    }
}

#[test]
fn a_crash_loses_what_was_not_flushed_and_the_position_says_so() {
    let disk = SimDisk::new();
    let store = open(&disk, quiet());
    assert_eq!(put(&store, 1..=50).unwrap(), Position::default());
    store.flush().unwrap();
    assert_eq!(put(&store, 51..=60).unwrap(), at(51));
    drop(store);
    let store = open(&disk, quiet());
    assert_eq!(store.settled(P), at(51));
    assert_eq!(read(&store, 999).unwrap(), expected(1..=50));
    assert_eq!(
        run(store.settle(P, at(20))).unwrap(),
        at(20),
        "at most the one given"
    );
}

#[test]
fn the_position_moves_without_rows() {
    let disk = SimDisk::new();
    let store = open(&disk, quiet());
    run(store.settle(P, at(9))).unwrap();
    store.flush().unwrap();
    assert_eq!((store.settled(P), store.figures().segments), (at(9), 0));
    assert_eq!(open(&disk, quiet()).settled(P), at(9));
}

#[test]
fn threads_flush_what_grows_large_and_merge_what_grows_many() {
    let options = Options {
        threads: true,
        flush_bytes: 10_000,
        ..quiet()
    };
    let store = open(&SimDisk::new(), options);
    let mut seq = 0;
    // Ends when a merge has been seen; the test's runner bounds the time.
    loop {
        put(&store, seq + 1..=seq + 20).unwrap();
        seq += 20;
        if store.figures().merges > 0 {
            break;
        }
        std::thread::yield_now();
    }
    assert!(store.settled(P) > Position::default());
    assert_eq!(read(&store, seq).unwrap(), expected(1..=seq));
}

#[test]
fn what_a_crash_left_behind_is_removed() {
    let disk = SimDisk::new();
    let store = open(&disk, quiet());
    put(&store, 1..=5).unwrap();
    store.close().unwrap();
    for name in [
        "manifest.next",
        "0000000099.seg",
        "cursors-0000000007",
        "a-file-of-somebody-else",
    ] {
        disk.open(name).unwrap().write_all_at(b"half", 0).unwrap();
    }
    open(&disk, quiet());
    let mut names = disk.list().unwrap();
    names.sort();
    assert_eq!(
        names,
        ["0000000001.seg", "a-file-of-somebody-else", "manifest"]
    );
}

#[test]
fn damage_is_named_and_never_read_as_nothing() {
    let disk = SimDisk::new();
    let store = open(&disk, quiet());
    put(&store, 1..=200).unwrap();
    store.close().unwrap();
    let flip = |name: &str, offset: u64| {
        let damaged = disk.copy();
        let file = damaged.open(name).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
        damaged
    };
    let refused = |disk: SimDisk| match LsmStore::open(Arc::new(disk), quiet()) {
        Err(StoreError::Corrupt(what)) => what,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("opened"),
    };
    let name = "0000000001.seg";
    let len = disk.open(name).unwrap().len().unwrap();

    let store = open(&flip(name, 900), quiet());
    let Err(StoreError::Corrupt(what)) = read(&store, 200) else {
        panic!("damage was read")
    };
    assert!(
        what.contains("0000000001.seg, event block") && what.contains("checksum"),
        "{what}"
    );
    assert!(refused(flip(name, len - 5)).contains(name), "trailer");
    assert!(refused(flip(name, len - 40)).contains(name), "footer");
    assert!(refused(flip("manifest", 20)).contains("manifest"));
    let cut = disk.copy();
    cut.open(name).unwrap().set_len(len - 1).unwrap();
    assert!(refused(cut).contains("bytes long"));
    let without = disk.copy();
    without.remove(name).unwrap();
    assert!(refused(without).contains("missing"));
    let without = disk.copy();
    without.remove("manifest").unwrap();
    assert!(refused(without).contains("no manifest"));
}

#[test]
fn a_full_disk_keeps_rows_in_memory_and_goes_on_when_there_is_room_twenty_times() {
    let mut rng = Rng::new(8);
    let disk = SimDisk::new();
    let options = Options {
        unflushed_bytes_max: 200_000,
        ..quiet()
    };
    let store = open(&disk, options);
    let mut rows: Vec<EventRow> = Vec::new();
    let mut add = |store: &LsmStore| {
        let seq = rows.len() as Seq + 1;
        let row = EventRow {
            body: noise(1000, &mut rng),
            ..event(C, seq, at(seq))
        };
        run(store.put_events(P, vec![row.clone()]))?;
        rows.push(row);
        Ok::<Position, StoreError>(at(seq + 1))
    };
    let mut durable = Position::default();
    for round in 0..20 {
        // Room for more and more of a flush, up to all of the segment but not the manifest.
        disk.set_capacity(Some(disk.used() + round * 1000));
        let mut end = durable;
        for _ in 0..20 {
            end = add(&store).expect("memory has room");
        }
        assert_eq!(run(store.settle(P, end)).unwrap(), durable);
        assert_eq!(store.flush(), Err(StoreError::Full), "round {round}");
        assert_eq!(store.figures().full, 1);
        assert_eq!(store.settled(P), durable, "a failed flush moves nothing");
        let refused = (0..1000)
            .find_map(|_| add(&store).err())
            .expect("memory is bounded");
        assert_eq!(refused, StoreError::Full);
        assert_eq!(
            run(store.settle(P, end)).unwrap(),
            durable,
            "settling is never refused"
        );
        disk.set_capacity(None);
        if round % 4 == 3 {
            store.compact_all().unwrap()
        } else {
            store.flush().unwrap()
        }
        durable = end;
        assert_eq!(store.settled(P), durable, "round {round}");
        add(&store).expect("puts are taken again");
    }
    assert_eq!(
        run(store.read_events(C, 1, 99_999, usize::MAX)).unwrap(),
        rows
    );
    let names = disk.list().unwrap().len();
    assert_eq!(
        names,
        store.figures().segments as usize + 1,
        "no file is left of the flushes that failed"
    );
    store.flush().unwrap();
    assert_eq!(
        run(open(&disk, quiet()).read_events(C, 1, 99_999, usize::MAX)).unwrap(),
        rows
    );
}

#[test]
fn wherever_the_room_ends_nothing_is_lost_or_left_behind() {
    let disk = SimDisk::new();
    let store = open(&disk, quiet());
    let mut failures = 0;
    for round in 0..4 {
        let last = 30 * (round + 1);
        put(&store, last - 29..=last).unwrap();
        let change = |store: &LsmStore| {
            if round == 3 {
                store.compact_all()
            } else {
                store.flush()
            }
        };
        let mut room = 0;
        loop {
            disk.set_capacity(Some(disk.used() + room));
            let done = change(&store);
            assert_eq!(read(&store, 999).unwrap(), expected(1..=last));
            if done.is_ok() {
                break;
            }
            assert_eq!(done, Err(StoreError::Full));
            let left = open(&disk.copy(), quiet());
            assert_eq!(
                left.settled(P),
                store.settled(P),
                "with room for {room} bytes"
            );
            failures += 1;
            room += 23;
        }
        assert_eq!(store.settled(P), at(last + 1));
        disk.set_capacity(None);
    }
    assert!(failures > 100, "{failures}");
    assert_eq!(disk.list().unwrap().len(), 2, "a segment and the manifest");
}

#[test]
fn a_failed_sync_is_fatal_and_never_tried_again() {
    let disk = SimDisk::new();
    let told = Arc::new(AtomicU64::new(0));
    let count = told.clone();
    let on_fatal = Arc::new(move |_: &str| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let store = open(
        &disk,
        Options {
            on_fatal,
            ..quiet()
        },
    );
    put(&store, 1..=5).unwrap();
    let syncs = Arc::new(AtomicU64::new(0));
    let count = syncs.clone();
    disk.on_sync(move || {
        count.fetch_add(1, Ordering::Relaxed);
        Err(io::Error::other("input/output error"))
    });
    store.flush().unwrap_err();
    store.flush().unwrap_err();
    assert_eq!(
        (told.load(Ordering::Relaxed), syncs.load(Ordering::Relaxed)),
        (1, 1)
    );
    assert!(matches!(
        put(&store, 6..=6),
        Err(StoreError::Unavailable(_))
    ));
    assert_eq!(store.settled(P), Position::default());
}

#[test]
fn keys_that_were_never_put_cost_no_read_and_the_cache_saves_the_others() {
    let reads = Arc::new(AtomicU64::new(0));
    let disk = Counting {
        inner: SimDisk::new(),
        reads: reads.clone(),
    };
    let store = LsmStore::open(Arc::new(disk), quiet()).unwrap();
    for start in [1, 101, 201] {
        put(&store, start..=start + 99).unwrap();
        store.flush().unwrap();
    }
    let cost = |ask: &dyn Fn()| {
        let before = reads.load(Ordering::Relaxed);
        ask();
        reads.load(Ordering::Relaxed) - before
    };
    let unknown = cost(&|| {
        for user in 0..50 {
            let key = StateKey::Sender(UserId(user), SenderId(user + 1));
            assert_eq!(run(store.read_state(C, vec![key])).unwrap(), [None]);
            assert_eq!(
                run(store.read_events(ConversationId(user), 1, 9, 999)).unwrap(),
                []
            );
        }
    });
    assert!(
        unknown <= 12,
        "{unknown} reads for 100 unknown keys in three segments"
    );
    let one = || drop(run(store.read_events(C, 150, 150, 999)).unwrap());
    assert_eq!(
        (cost(&one), cost(&one)),
        (1, 0),
        "one block, then the cache"
    );
    let head = || drop(run(store.read_state(C, vec![StateKey::Head])).unwrap());
    assert_eq!(cost(&head), 1, "older segments can't hold a later head");
    let since = || drop(run(store.read_events_since(C, at(301))).unwrap());
    assert_eq!(cost(&since), 0, "the index tells that nothing is so new");
}

/// Counts the reads.
struct Counting {
    inner: SimDisk,
    reads: Arc<AtomicU64>,
}

struct CountingFile {
    inner: Box<dyn DiskFile>,
    reads: Arc<AtomicU64>,
}

impl Disk for Counting {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(CountingFile {
            inner: self.inner.open(name)?,
            reads: self.reads.clone(),
        }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.inner.sync_names()
    }
}

impl DiskFile for CountingFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
}

#[test]
fn readers_and_a_writer_meet_while_tables_are_flushed_and_merged() {
    let options = Options {
        threads: true,
        flush_bytes: 30_000,
        merge_segments: 2,
        ..quiet()
    };
    let store = open(&SimDisk::new(), options);
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (store, done) = (&store, &done);
            scope.spawn(move || {
                let mut rng = Rng::new(reader);
                while done.load(Ordering::Acquire) < 2000 {
                    let seen = done.load(Ordering::Acquire);
                    let from = 1 + rng.below(seen.max(1));
                    let to = (from + 30).min(seen);
                    let rows = run(store.read_events(C, from, to, usize::MAX)).unwrap();
                    assert_eq!(
                        rows,
                        (from..=to)
                            .map(|seq| event(C, seq, at(seq)))
                            .collect::<Vec<_>>()
                    );
                    let head = run(store.read_state(C, vec![StateKey::Head])).unwrap()[0];
                    assert!(
                        head.map_or(0, |row| row.position.offset) >= seen,
                        "a put is readable"
                    );
                }
            });
        }
        for start in (1..=2000).step_by(10) {
            put(&store, start..=start + 9).unwrap();
            done.store(start + 9, Ordering::Release);
        }
    });
    store.close().unwrap();
}

#[test]
fn an_old_table_is_flushed_by_itself() {
    let options = Options {
        threads: true,
        flush_after: Duration::from_millis(1),
        ..quiet()
    };
    let store = open(&SimDisk::new(), options);
    while put(&store, 1..=3).unwrap() < at(4) {
        std::thread::yield_now();
    }
}

/// The rows of the folder `fixtures/store-1`, which a store of format 1 wrote.
fn fixture(conversation: u64) -> (Vec<EventRow>, Vec<StateRow>, CursorRow) {
    let c = ConversationId(conversation);
    let events = (1..=60).map(|seq| event(c, seq, at(seq))).collect();
    let (user, sender) = (UserId(2), SenderId(11));
    let keys = [
        StateKey::Head,
        StateKey::Grant(user),
        StateKey::Sender(user, sender),
    ];
    let rows = keys.map(|key| state(c, key, at(60))).to_vec();
    (
        events,
        rows,
        CursorRow {
            conversation: c,
            user,
            delivered: 60,
            read: 44,
        },
    )
}

#[test]
#[ignore = "writes the fixture, once for each format"]
fn write_the_fixture() {
    let folder = std::path::Path::new(FIXTURE);
    std::fs::create_dir_all(folder).unwrap();
    let disk = Arc::new(RealDisk::open(folder).unwrap());
    let store = LsmStore::open(disk, quiet()).unwrap();
    for conversation in [5, u64::MAX] {
        let (events, rows, cursor) = fixture(conversation);
        run(async {
            store.put_events(P, events).await.unwrap();
            store.put_state(P, rows).await.unwrap();
            store.put_cursors(P, vec![cursor]).await.unwrap();
            store.settle(P, at(61)).await.unwrap();
        });
        store.flush().unwrap();
    }
}

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/store-1");

#[test]
fn files_of_format_1_are_read() {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(FIXTURE).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let disk = Arc::new(RealDisk::open(copy.path()).unwrap());
    let store = LsmStore::open(disk, quiet()).unwrap();
    assert_eq!((store.settled(P), store.figures().segments), (at(61), 2));
    for conversation in [5, u64::MAX] {
        let (events, rows, cursor) = fixture(conversation);
        let c = ConversationId(conversation);
        assert_eq!(
            run(store.read_events(c, 1, 99, usize::MAX)).unwrap(),
            events
        );
        let keys = rows.iter().map(|row| row.key).collect();
        assert_eq!(
            run(store.read_state(c, keys)).unwrap(),
            rows.into_iter().map(Some).collect::<Vec<_>>()
        );
        assert_eq!(
            run(store.read_cursors(c, vec![cursor.user])).unwrap(),
            [cursor]
        );
    }
}
