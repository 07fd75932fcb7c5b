//! The log as a model: group commit, an unsynced tail that a crash cuts anywhere, and what may become of a
//! batch whose answer is lost.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tidings_core::ids::{Micros, Position};
use tidings_core::ports::log::Append;
use tidings_core::record::Committed;

use crate::random::Random;

/// Who is told of a batch: gateway, its life, the batch's number.
pub(crate) type Report = (usize, u64, u64);

/// What became of a batch whose answer nobody gets, so that its fate is [`Unknown`](tidings_core::ports::log::LogError).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost {
    /// So many of its records are appended.
    pub part: usize,
    /// They come when the caller has long given up: what a cut connection held is delivered then.
    pub is_late: bool,
}

impl Lost {
    /// For a batch of so many records.
    pub fn draw(len: usize, random: &mut Random) -> Lost {
        Lost {
            part: random.below(len as u64 + 1) as usize,
            is_late: random.permille(500),
        }
    }
}

/// The log of one partition.
#[derive(Default)]
pub(crate) struct SimLog {
    /// All records, synced or not.
    entries: Vec<Committed>,
    /// How many of them are synced: what a reader is given.
    synced: usize,
    /// Up to where each queued batch goes, and who is told.
    queued: VecDeque<(usize, Option<Report>)>,
    /// How many batches the sync under way covers; 0: none is under way.
    syncing: usize,
    committed: Position,
    /// What is left of `committed` after a crash.
    committed_kept: Position,
    /// The last batch taken of each caller's life.
    taken: BTreeMap<(usize, u64), u64>,
    /// Goes up with each crash: what was under way before it is void.
    pub life: u64,
    /// How far the clock of the present leader is off.
    pub skew: i64,
    /// Planted: readers are given records before they are synced.
    pub reads_unsynced: bool,
}

impl SimLog {
    /// Queues a batch.
    pub fn append(
        &mut self,
        records: &[Append],
        report: Option<Report>,
        now: Micros,
        random: &mut Random,
    ) {
        let now = now.saturating_add_signed(self.skew);
        for record in records {
            let last = self.entries.last();
            // Holes are allowed (ports::log): some positions stay empty.
            let hole = u64::from(random.permille(30));
            let offset = last.map_or(0, |last| last.position.offset + 1) + hole;
            self.entries.push(Committed {
                position: Position { epoch: 0, offset },
                // Another leader's clock may be behind: it runs back then.
                appended: now,
                payload: record.payload.clone(),
            });
        }
        self.queued.push_back((self.entries.len(), report));
    }

    /// Notes that a batch, or a later part of one, was taken from a caller.
    pub fn takes(&mut self, (caller, life, batch): Report) {
        let last = self.taken.entry((caller, life)).or_default();
        *last = batch.max(*last);
    }

    /// Whether a batch that comes late still counts: none that its caller made later was taken. The
    /// calls of one caller keep their order, so what was overtaken is refused.
    pub fn still_takes(&self, (caller, life, batch): Report) -> bool {
        let last = self.taken.get(&(caller, life));
        last.is_none_or(|&last| last < batch)
    }

    /// Begins to sync all that is queued; false: there is nothing to begin.
    pub fn begin_sync(&mut self) -> bool {
        if self.syncing > 0 || self.queued.is_empty() {
            return false;
        }
        self.syncing = self.queued.len();
        true
    }

    /// The sync is done: who is to be told.
    pub fn synced(&mut self) -> Vec<Report> {
        let mut reports = Vec::new();
        for (upto, report) in self.queued.drain(..self.syncing) {
            self.synced = self.synced.max(upto);
            reports.extend(report);
        }
        self.syncing = 0;
        reports
    }

    /// Power is lost: of what isn't synced a part from its beginning is left. Answers the batches
    /// whose fate nobody knows.
    pub fn crash(&mut self, random: &mut Random) -> Vec<Report> {
        self.life += 1;
        let unsynced = (self.entries.len() - self.synced) as u64;
        let kept = match random.below(3) {
            0 => 0,
            1 => unsynced,
            _ => random.below(unsynced + 1),
        };
        self.entries.truncate(self.synced + kept as usize);
        self.synced = self.entries.len();
        self.syncing = 0;
        self.committed = self.committed_kept;
        self.queued
            .drain(..)
            .filter_map(|(_, report)| report)
            .collect()
    }

    fn readable(&self) -> &[Committed] {
        if self.reads_unsynced {
            &self.entries
        } else {
            &self.entries[..self.synced]
        }
    }

    /// At most `most` records from a position on.
    pub fn read(&self, from: Position, most: usize) -> Vec<Committed> {
        let readable = self.readable();
        let at = readable.partition_point(|entry| entry.position < from);
        readable[at..].iter().take(most).cloned().collect()
    }

    /// The position behind the last record that can be read.
    pub fn end(&self) -> Position {
        self.readable()
            .last()
            .map_or(Position::default(), |last| last.position.next())
    }

    /// Where a router goes on.
    pub fn committed(&self) -> Position {
        self.committed
    }

    /// Everything before a position is stored; `is_kept`: this survives a crash already.
    pub fn commit(&mut self, position: Position, is_kept: bool) {
        self.committed = self.committed.max(position);
        if is_kept {
            self.committed_kept = self.committed_kept.max(self.committed);
        }
    }

    /// A router that was replaced says the same: what it knew of its successor's time counts or, where the
    /// log knows who owns it, not.
    pub fn commit_of_former(&mut self, position: Position, random: &mut Random) {
        if random.permille(500) {
            self.commit(position, random.permille(500));
        }
    }

    /// Everything that was ever synced.
    pub fn history(&self) -> impl Iterator<Item = (Position, Micros, &Bytes)> {
        self.entries[..self.synced]
            .iter()
            .map(|entry| (entry.position, entry.appended, &entry.payload))
    }
}
