//! Every moment at which the power may fail: cuts of a recorded trace, with what wasn't synced
//! kept, dropped, torn or reordered. The store opens, and all before the position that it
//! reports is there, and every cursor whose put returned. The same check must find a store that
//! doesn't sync.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod store_rows;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex};

use store_rows::{event, run, state};
use tidings_backends::disk::{Cut, RecordingDisk, Rng, SimDisk, Trace};
use tidings_backends::lsm::{Codec, LsmStore, Options};
use tidings_core::ids::{ConversationId, Partition, Position, SenderId, Seq, UserId};
use tidings_core::ports::disk::{Disk, DiskFile};
use tidings_core::ports::store::Store;
use tidings_core::rows::{CursorRow, StateKey};

const P: Partition = Partition(0);
const CONVERSATIONS: u64 = 3;
const RECORDS: u64 = 120;
/// What a crash may leave is drawn so many times at each cut.
const SEEDS: u64 = 4;
/// Marks are positions; those with this bit count the puts of cursors that returned.
const CURSORS: u64 = 1 << 32;

fn options() -> Options {
    Options {
        codec: Codec {
            block_bytes: 600,
            level: 1,
        },
        // A flush at about every tenth record, merges of three.
        flush_bytes: 6_000,
        merge_segments: 3,
        // And now and then because of cursors.
        cursor_journal_bytes: 200,
        threads: false,
        on_fatal: Arc::new(|why| panic!("the store can't go on: {why}")),
        ..Options::default()
    }
}

/// One record of the log: an event and the state after it.
struct Step {
    conversation: ConversationId,
    seq: Seq,
    position: Position,
    keys: [StateKey; 2],
}

fn steps() -> Vec<Step> {
    let mut rng = Rng::new(11);
    let mut heads: HashMap<u64, Seq> = HashMap::new();
    let step = |offset| {
        let conversation = rng.below(CONVERSATIONS);
        let seq = heads
            .entry(conversation)
            .and_modify(|s| *s += 1)
            .or_insert(1);
        let user = UserId(rng.below(5));
        Step {
            conversation: ConversationId(conversation),
            seq: *seq,
            position: Position { epoch: 0, offset },
            keys: [StateKey::Head, StateKey::Sender(user, SenderId(user.0))],
        }
    };
    (0..RECORDS).map(step).collect()
}

/// The rows of one put of cursors, by its number.
fn cursors(put: u64) -> Vec<CursorRow> {
    let mut rng = Rng::new(put);
    let row = |_| CursorRow {
        conversation: ConversationId(rng.below(CONVERSATIONS)),
        user: UserId(rng.below(5)),
        delivered: put + rng.below(9),
        read: put.saturating_sub(rng.below(9)),
    };
    (0..put % 4 + 1).map(row).collect()
}

/// What is there after so many puts of cursors.
fn cursors_after(puts: u64) -> BTreeMap<(ConversationId, UserId), CursorRow> {
    let mut all = BTreeMap::new();
    for row in (0..puts).flat_map(cursors) {
        let there: &mut CursorRow = all.entry((row.conversation, row.user)).or_insert(row);
        there.delivered = there.delivered.max(row.delivered);
        there.read = there.read.max(row.read);
    }
    all
}

/// What was promised before a cut.
struct Promised {
    position: u64,
    cursor_puts: u64,
}

fn promised(trace: &Trace, cut: Cut) -> Promised {
    let most = |marks: &mut dyn Iterator<Item = u64>| marks.max().unwrap_or(0);
    Promised {
        position: most(&mut trace.marks_before(cut).filter(|n| n & CURSORS == 0)),
        cursor_puts: most(&mut trace.marks_before(cut).filter(|n| n & CURSORS != 0)) & !CURSORS,
    }
}

/// Plays the records, with state a few records behind the events as a router writes it, and
/// cursors between them; marks each position that the store called durable, and each put of
/// cursors.
fn play(disk: Arc<dyn Disk>, mark: impl Fn(u64)) {
    let store = LsmStore::open(disk, options()).unwrap();
    let steps = steps();
    let mut rng = Rng::new(5);
    let mut next = 0;
    let mut cursor_puts = 0;
    while next < steps.len() {
        let batch = &steps[next..(next + 1 + rng.below(4) as usize).min(steps.len())];
        next += batch.len();
        let events = batch
            .iter()
            .map(|s| event(s.conversation, s.seq, s.position))
            .collect();
        let rows = batch
            .iter()
            .flat_map(|s| s.keys.map(|key| state(s.conversation, key, s.position)));
        let rows = rows.collect();
        let settled = run(async {
            store.put_events(P, events).await?;
            if rng.chance(1, 10) {
                // Frozen between the events and their state.
                store.flush()?;
            }
            store.put_state(P, rows).await?;
            store.settle(P, steps[next - 1].position.next()).await
        });
        mark(settled.unwrap().offset);
        if rng.chance(2, 3) {
            run(store.put_cursors(P, cursors(cursor_puts))).unwrap();
            cursor_puts += 1;
            mark(CURSORS | cursor_puts);
        }
    }
    store.compact_all().unwrap();
    mark(store.settled(P).offset);
    store.close().unwrap();
}

/// Opens what a crash left and holds it against what was promised.
fn check(disk: SimDisk, promised: &Promised) -> Result<(), String> {
    let store =
        LsmStore::open(Arc::new(disk), options()).map_err(|e| format!("doesn't open: {e}"))?;
    let settled = store.settled(P);
    if settled.offset < promised.position {
        return Err(format!(
            "was durable up to {}, is now up to {}",
            promised.position, settled.offset
        ));
    }
    check_cursors(&store, promised.cursor_puts)?;
    let steps = steps();
    let fail = |step: &Step, what: &str| {
        Err(format!(
            "settled at {}: {what} of {}",
            settled.offset, step.position.offset
        ))
    };
    let mut events = Vec::new();
    for step in &steps {
        let rows = run(store.read_events(step.conversation, step.seq, step.seq, 9999))
            .map_err(|e| e.to_string())?;
        events.push(rows == [event(step.conversation, step.seq, step.position)]);
    }
    for (i, step) in steps
        .iter()
        .enumerate()
        .take_while(|(_, s)| s.position < settled)
    {
        if !events[i] {
            return fail(step, "the event is missing or another");
        }
        let found = run(store.read_state(step.conversation, step.keys.to_vec()))
            .map_err(|e| e.to_string())?;
        for (key, found) in step.keys.into_iter().zip(found) {
            let Some(found) = found.filter(|row| row.position >= step.position) else {
                return fail(step, "the state is missing or older");
            };
            if found != state(step.conversation, key, found.position) {
                return fail(step, "the state is another");
            }
            // State that is ahead of the position is undone with the events up to it.
            let ahead = steps
                .iter()
                .zip(&events)
                .take_while(|(s, _)| s.position <= found.position);
            if let Some((earlier, _)) = ahead
                .filter(|(s, _)| s.conversation == step.conversation)
                .find(|(_, there)| !**there)
            {
                return fail(earlier, "there is later state, but no event");
            }
        }
    }
    Ok(())
}

fn check_cursors(store: &LsmStore, puts: u64) -> Result<(), String> {
    let possible = cursors_after(RECORDS);
    for ((conversation, user), least) in cursors_after(puts) {
        let found = run(store.read_cursors(conversation, vec![user])).map_err(|e| e.to_string())?;
        let most = possible[&(conversation, user)];
        let kept = |c: &CursorRow| {
            (least.delivered..=most.delivered).contains(&c.delivered)
                && (least.read..=most.read).contains(&c.read)
        };
        if !found.first().is_some_and(kept) {
            return Err(format!(
                "after {puts} puts of cursors: {found:?}, not {least:?}"
            ));
        }
    }
    Ok(())
}

/// The first violation over all cuts.
fn violation(trace: &Trace) -> Option<String> {
    for seed in 0..SEEDS {
        let mut replay = trace.replay();
        for cut in trace.cuts(seed) {
            let promised = promised(trace, cut);
            let disk = replay.crash(cut, seed * 1000 + cut.entries as u64);
            if let Err(what) = check(disk, &promised) {
                return Some(format!("{cut:?}, seed {seed}: {what}"));
            }
        }
    }
    None
}

#[test]
fn whatever_a_crash_leaves_opens_and_holds_all_before_its_position() {
    let disk = RecordingDisk::new(Arc::new(SimDisk::new()));
    play(Arc::new(disk.clone()), |n| disk.mark(n));
    let trace = disk.trace();
    let last = promised(&trace, *trace.cuts(0).last().unwrap());
    assert_eq!(
        last.position, RECORDS,
        "the play ends with everything durable"
    );
    assert!(last.cursor_puts > 10, "{}", last.cursor_puts);
    assert_eq!(violation(&trace), None);
}

#[test]
fn the_same_calls_do_the_same_to_the_disk() {
    let [first, second] = [(), ()].map(|()| {
        let disk = RecordingDisk::new(Arc::new(SimDisk::new()));
        play(Arc::new(disk.clone()), |n| disk.mark(n));
        disk.trace()
    });
    assert!(first.entries == second.entries);
}

#[test]
fn the_check_finds_a_store_that_syncs_no_files() {
    for prefix in ["", "cursors-"] {
        assert_ne!(lazy_violation(true, false, prefix), None, "{prefix}");
    }
}

#[test]
fn the_check_finds_a_store_that_syncs_no_names() {
    for prefix in ["", "cursors-"] {
        assert_ne!(lazy_violation(false, true, prefix), None, "{prefix}");
    }
}

fn lazy_violation(files: bool, names: bool, prefix: &'static str) -> Option<String> {
    let disk = RecordingDisk::new(Arc::new(SimDisk::new()));
    let lazy = Lazy {
        inner: disk.clone(),
        files,
        names,
        prefix,
        opened: Mutex::default(),
    };
    play(Arc::new(lazy), |n| disk.mark(n));
    violation(&disk.trace())
}

/// Says that it synced, without doing it for files or for names.
struct Lazy {
    inner: RecordingDisk,
    files: bool,
    names: bool,
    /// Only for files with such a name, or while such a file is the last that was opened.
    prefix: &'static str,
    opened: Mutex<String>,
}

struct LazyFile {
    inner: Box<dyn DiskFile>,
    syncs: bool,
}

impl Disk for Lazy {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        *self.opened.lock().unwrap() = name.to_owned();
        Ok(Box::new(LazyFile {
            inner: self.inner.open(name)?,
            syncs: !(self.files && name.starts_with(self.prefix)),
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
        if self.names && self.opened.lock().unwrap().starts_with(self.prefix) {
            Ok(())
        } else {
            self.inner.sync_names()
        }
    }
}

impl DiskFile for LazyFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        if self.syncs {
            self.inner.sync()
        } else {
            Ok(())
        }
    }
}
