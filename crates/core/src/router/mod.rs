//! What [`crate::path::Router`] calls by name: memory, cold reads, flights, fan-out, receipts, digests.

pub(crate) mod cold;
pub(crate) mod conversation;
pub(crate) mod digest;
pub(crate) mod fanout;
pub(crate) mod flight;
#[cfg(test)]
mod opening_tests;
pub(crate) mod receipts;
pub(crate) mod rows_map;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod unreadable;

use crate::ids::{GatewayId, Micros, Position, UserId};
use crate::record::{Committed, Content};
use crate::rows::CursorRow;
use crate::sequencer::Verdict;
use crate::varint::Malformed;

/// The router's bounds and delays. Times are microseconds.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bodies of events that the store hasn't confirmed; beyond it no records are read. 64 MiB.
    pub flight_bytes_max: usize,
    /// Records waiting for cold rows; beyond it no records are read. 65,536.
    pub waiting_max: usize,
    /// After this an event is delivered though the store hasn't answered. 500 ms.
    pub store_slow_after: Micros,
    /// After this an unanswered write or read is sent again. 5 s, the store's own deadline.
    pub store_retry_after: Micros,
    /// How often rows of state are written, and with them the position is committed. 1 s: the
    /// fewer, the more a router that takes over applies again.
    pub commit_every: Micros,
    /// How often moved cursors are stored and told. 50 ms, and one write at a time: the slower the
    /// store, the more moves a write takes along.
    pub cursor_flush_every: Micros,
    /// The same while none of them says that something was read. 500 ms: what is delivered is mostly read
    /// soon, and then one write says both.
    pub delivered_flush_every: Micros,
    /// How long, after a gateway has heard of a take-over, cursors are read back when they were
    /// stored. 60 s: ten times what it takes until a router without a sign of life has lost its
    /// partitions, twelve times how long its last write may take.
    pub cursor_check_for: Micros,
    /// How often gateways are told the heads that moved. 10 s: three in the shortest heartbeat.
    pub digest_every: Micros,
    /// Conversations with more members get no single receipts. 256 (design.md, "Receipts").
    pub receipt_members_max: u32,
    /// When a gateway hasn't said after this that it fanned an event out, it isn't waited for. 30 s.
    pub handed_max: Micros,
    /// Conversations kept in memory; quiet ones beyond it are forgotten and read again when needed.
    pub conversations_max: usize,
    /// Whether the rows of all members are read when one of them comes: [`crate::ports::store::Store::members_together`]
    /// isn't 0. No.
    pub members_together: bool,
    /// Requests kept while catching up with the log; beyond it they are answered "later".
    pub early_max: usize,
}

/// In conversations with more members nothing is done for those without a session: their cursor
/// against the head says it all (design.md, "Fan-out").
pub const INBOX_MEMBERS_MAX: u32 = 100;

impl Default for Config {
    fn default() -> Config {
        Config {
            flight_bytes_max: 64 << 20,
            waiting_max: 65_536,
            store_slow_after: 500_000,
            store_retry_after: 5_000_000,
            commit_every: 1_000_000,
            cursor_flush_every: 50_000,
            delivered_flush_every: 500_000,
            cursor_check_for: 60_000_000,
            digest_every: 10_000_000,
            receipt_members_max: 256,
            handed_max: 30_000_000,
            conversations_max: 200_000,
            members_together: false,
            early_max: 100_000,
        }
    }
}

/// What happened so far; only ever grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sends and changes that became events.
    pub accepted: u64,
    /// Those answered as duplicates.
    pub duplicates: u64,
    /// Duplicates of the last counter that came with another id.
    pub conflicts: u64,
    /// Those refused: stale, over, gap or fork.
    pub refused: u64,
    /// Records that can't be read.
    pub dead_letters: u64,
    /// Events fanned out.
    pub fanned_out: u64,
    /// Messages that every gateway concerned has handed to its sessions.
    pub delivered: u64,
    /// Messages for which some gateway never said so.
    pub undelivered: u64,
    /// Writes sent to the store again.
    pub store_retries: u64,
    /// Reads of cold rows.
    pub cold_loads: u64,
    /// Cold rows that were ahead of their record and undone.
    pub undone: u64,
    /// Cursor moves refused: not a member, or beyond the head.
    pub cursors_refused: u64,
}

impl Counters {
    /// Adds what another router did.
    pub fn add(&mut self, other: &Counters) {
        self.accepted += other.accepted;
        self.duplicates += other.duplicates;
        self.conflicts += other.conflicts;
        self.refused += other.refused;
        self.dead_letters += other.dead_letters;
        self.fanned_out += other.fanned_out;
        self.delivered += other.delivered;
        self.undelivered += other.undelivered;
        self.store_retries += other.store_retries;
        self.cold_loads += other.cold_loads;
        self.undone += other.undone;
        self.cursors_refused += other.cursors_refused;
    }

    pub(crate) fn verdict(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Accepted => self.accepted += 1,
            Verdict::Duplicate => self.duplicates += 1,
            Verdict::Stale | Verdict::Over | Verdict::Gap | Verdict::Fork => self.refused += 1,
        }
    }
}

/// What waits for a conversation's rows, in order.
#[derive(Debug)]
pub(crate) enum Work {
    /// A record, or why it can't be read.
    Record {
        record: Committed,
        content: Result<Content, Malformed>,
    },
    /// A gateway asks how the conversation stands for a user.
    Open {
        gateway: GatewayId,
        request: u64,
        user: UserId,
    },
    /// A member's cursor moved.
    Cursor(CursorRow),
    /// A gateway that knew another router may not have heard how far it came.
    Head,
}

impl Work {
    /// Where a record is in the log.
    pub fn position(&self) -> Option<Position> {
        match self {
            Work::Record { record, .. } => Some(record.position),
            _ => None,
        }
    }
}
