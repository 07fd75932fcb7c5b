//! The newest rows, in memory, as they are: what was put since the last freeze.
//!
//! One router writes, several threads read. Conversations are spread over shards, so that
//! a reader who copies a page holds up few writes.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tidings_core::ids::{ConversationId, Partition, Position, Seq, UserId};
use tidings_core::rows::{CursorRow, EventRow, MemberChange, StateKey, StateRow};

use super::rows::{Row, RowKey, greater, later};

const SHARDS: usize = 16;

/// Events are kept in chunks of so many seqs: appending at the end is a push, and a late event
/// moves at most a chunk.
const CHUNK: u64 = 64;

/// What a row takes beside its own size: its share of tables and half-empty chunks.
const ROW_OVERHEAD: usize = 64;

#[derive(Default)]
struct Conversation {
    /// Sorted by seq within a chunk; the key is seq / [`CHUNK`].
    events: BTreeMap<u64, Vec<EventRow>>,
    head: Option<StateRow>,
    state: HashMap<StateKey, StateRow>,
    cursors: HashMap<UserId, CursorRow>,
}

type Shard = HashMap<ConversationId, Conversation>;

/// See the module.
#[derive(Default)]
pub struct Memtable {
    shards: [RwLock<Shard>; SHARDS],
    /// What [`settle`](Memtable::settle) was told since the table was made.
    settled: RwLock<HashMap<Partition, Position>>,
    bytes: AtomicUsize,
}

/// Nothing here panics while it holds a lock, and if it did, each row is whole.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Conversation ids are made by the server and mixed well: their top bits will do.
fn shard_of(conversation: ConversationId) -> usize {
    (conversation.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as usize
}

impl Memtable {
    /// About how many bytes of memory the rows take.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether there is nothing that a flush would change.
    pub fn is_empty(&self) -> bool {
        self.bytes() == 0 && read(&self.settled).is_empty()
    }

    /// Puts event rows; one that is there stays.
    pub fn put_events(&self, rows: Vec<EventRow>) {
        let mut added = 0;
        let mut held: Option<(usize, RwLockWriteGuard<'_, Shard>)> = None;
        for row in rows {
            let weight = weight(&row);
            let shard = self.hold(&mut held, row.conversation);
            if shard.entry(row.conversation).or_default().put_event(row) {
                added += weight;
            }
        }
        self.bytes.fetch_add(added, Ordering::Relaxed);
    }

    /// Puts rows of state; the later position stays.
    pub fn put_state(&self, rows: Vec<StateRow>) {
        let mut added = 0;
        let mut held = None;
        for row in rows {
            let conversation = self
                .hold(&mut held, row.conversation)
                .entry(row.conversation)
                .or_default();
            added += conversation.put_state(row);
        }
        self.bytes.fetch_add(added, Ordering::Relaxed);
    }

    /// Moves cursors forward.
    pub fn put_cursors(&self, rows: Vec<CursorRow>) {
        let mut added = 0;
        let mut held = None;
        for row in rows {
            let conversation = self
                .hold(&mut held, row.conversation)
                .entry(row.conversation)
                .or_default();
            conversation
                .cursors
                .entry(row.user)
                .and_modify(|there| *there = greater(*there, row))
                .or_insert_with(|| {
                    added += size_of::<CursorRow>() + ROW_OVERHEAD;
                    row
                });
        }
        self.bytes.fetch_add(added, Ordering::Relaxed);
    }

    /// The conversation's shard, locked; the lock is kept over rows that share it.
    fn hold<'a, 'h>(
        &'a self,
        held: &'h mut Option<(usize, RwLockWriteGuard<'a, Shard>)>,
        conversation: ConversationId,
    ) -> &'h mut Shard {
        let wanted = shard_of(conversation);
        if held.as_ref().is_none_or(|(i, _)| *i != wanted) {
            // First let go of the other one, or two writers could wait for each other.
            *held = None;
            *held = Some((wanted, write(&self.shards[wanted])));
        }
        &mut held.as_mut().expect("set above").1
    }

    /// Notes that all rows before `position` have been put, here or in older tables.
    pub fn settle(&self, partition: Partition, position: Position) {
        let mut settled = write(&self.settled);
        let there = settled.entry(partition).or_default();
        *there = position.max(*there);
    }

    /// The positions noted.
    pub fn settled(&self) -> Vec<(Partition, Position)> {
        read(&self.settled)
            .iter()
            .map(|(p, at)| (*p, *at))
            .collect()
    }

    /// The first seq in `from..=to`.
    pub fn first_event(&self, conversation: ConversationId, from: Seq, to: Seq) -> Option<Seq> {
        let shard = read(&self.shards[shard_of(conversation)]);
        shard
            .get(&conversation)?
            .events_between(from, to)
            .next()
            .map(|row| row.seq)
    }

    /// Gives the rows in `from..=to`, ascending, until `take` says enough.
    pub fn events(
        &self,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        mut take: impl FnMut(EventRow) -> bool,
    ) {
        let shard = read(&self.shards[shard_of(conversation)]);
        let Some(conversation) = shard.get(&conversation) else {
            return;
        };
        for row in conversation.events_between(from, to) {
            if !take(row.clone()) {
                return;
            }
        }
    }

    /// The rows from the highest seq down to the first before `from` in the log.
    pub fn events_since(&self, conversation: ConversationId, from: Position) -> Vec<EventRow> {
        let shard = read(&self.shards[shard_of(conversation)]);
        let Some(conversation) = shard.get(&conversation) else {
            return Vec::new();
        };
        let down = conversation
            .events
            .values()
            .rev()
            .flat_map(|chunk| chunk.iter().rev());
        down.take_while(|row| row.position >= from)
            .cloned()
            .collect()
    }

    /// A row of state.
    pub fn state(&self, conversation: ConversationId, key: StateKey) -> Option<StateRow> {
        let shard = read(&self.shards[shard_of(conversation)]);
        let conversation = shard.get(&conversation)?;
        match key {
            StateKey::Head => conversation.head,
            key => conversation.state.get(&key).copied(),
        }
    }

    /// A cursor.
    pub fn cursor(&self, conversation: ConversationId, user: UserId) -> Option<CursorRow> {
        let shard = read(&self.shards[shard_of(conversation)]);
        shard.get(&conversation)?.cursors.get(&user).copied()
    }

    /// All conversations, ascending, as a segment wants them.
    pub fn conversations(&self) -> Vec<ConversationId> {
        let mut all: Vec<_> = self
            .shards
            .iter()
            .flat_map(|s| read(s).keys().copied().collect::<Vec<_>>())
            .collect();
        all.sort_unstable();
        all
    }

    /// State rows and cursors of a conversation, sorted by key.
    pub fn rows(&self, conversation: ConversationId) -> Vec<Row> {
        let shard = read(&self.shards[shard_of(conversation)]);
        let Some(conversation) = shard.get(&conversation) else {
            return Vec::new();
        };
        let state = conversation
            .head
            .iter()
            .chain(conversation.state.values())
            .map(|row| Row::State(*row));
        let mut rows: Vec<(RowKey, Row)> = state
            .chain(conversation.cursors.values().map(|row| Row::Cursor(*row)))
            .map(|row| (row.key(), row))
            .collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        rows.into_iter().map(|(_, row)| row).collect()
    }

    /// How many state rows and cursors there are.
    pub fn row_count(&self) -> usize {
        let count =
            |c: &Conversation| c.state.len() + c.cursors.len() + usize::from(c.head.is_some());
        self.shards
            .iter()
            .map(|s| read(s).values().map(count).sum::<usize>())
            .sum()
    }
}

impl Conversation {
    /// Whether it was new.
    fn put_event(&mut self, row: EventRow) -> bool {
        let chunk = self
            .events
            .entry(row.seq / CHUNK)
            .or_insert_with(|| Vec::with_capacity(1));
        if chunk.last().is_none_or(|last| last.seq < row.seq) {
            chunk.push(row);
            return true;
        }
        match chunk.binary_search_by_key(&row.seq, |r| r.seq) {
            Ok(_) => false,
            Err(at) => {
                chunk.insert(at, row);
                true
            }
        }
    }

    /// The bytes added.
    fn put_state(&mut self, row: StateRow) -> usize {
        let there = match row.key {
            StateKey::Head => &mut self.head,
            key => {
                let mut new = 0;
                let there = self.state.entry(key).or_insert_with(|| {
                    new = size_of::<StateRow>() + ROW_OVERHEAD;
                    row
                });
                *there = later(*there, row);
                return new;
            }
        };
        let new = if there.is_none() {
            size_of::<Conversation>() + ROW_OVERHEAD
        } else {
            0
        };
        *there = Some(there.map_or(row, |old| later(old, row)));
        new
    }

    fn events_between(&self, from: Seq, to: Seq) -> impl Iterator<Item = &EventRow> {
        let chunks = if from <= to {
            Some(self.events.range(from / CHUNK..=to / CHUNK))
        } else {
            None
        };
        let rows = chunks
            .into_iter()
            .flatten()
            .flat_map(move |(_, chunk)| &chunk[chunk.partition_point(|r| r.seq < from)..]);
        rows.take_while(move |row| row.seq <= to)
    }
}

fn weight(row: &EventRow) -> usize {
    let members = row.members.as_ref().map_or(0, |m| {
        m.title.len() + m.changes.len() * size_of::<MemberChange>()
    });
    size_of::<EventRow>() + row.body.len() + members + ROW_OVERHEAD
}
