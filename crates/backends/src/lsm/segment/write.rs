//! Writing a segment in one pass over sorted rows, with one block in memory.

use std::io;

use tidings_core::ids::{ConversationId, Position};
use tidings_core::ports::disk::{Disk, DiskFile};
use tidings_core::rows::EventRow;

use super::super::columns::{ROWS_MAX, Sealer};
use super::super::filter::{Filter, conversation_hash, state_hash, user_hash};
use super::super::rows::{self, Row};
use super::super::{Trouble, events};
use super::*;

/// How blocks are made.
#[derive(Clone, Copy, Debug)]
pub struct Codec {
    /// About how many bytes a block holds before compression.
    pub block_bytes: usize,
    /// The zstd level.
    pub level: i32,
}

/// Written in pieces of this size.
const WRITE_BYTES: usize = 256 << 10;

/// Synced each so many bytes, so that one long flush at the end doesn't hold up the log's.
const SYNC_BYTES: u64 = 8 << 20;

/// What an event, a change of members in one or a row of state takes before compression, beside the body.
const EVENT_BYTES: usize = 24;
const CHANGE_BYTES: usize = 10;
const ROW_BYTES: usize = 40;

/// See the module.
pub struct SegmentWriter {
    file: Box<dyn DiskFile>,
    codec: Codec,
    sealer: Sealer,
    /// Sealed bytes that are not written yet.
    pending: Vec<u8>,
    /// How much is written, and how much of that synced.
    written: u64,
    synced: u64,
    events: Vec<EventRow>,
    rows: Vec<Row>,
    /// Bytes gathered in the open block.
    gathered: usize,
    event_index: Vec<EventEntry>,
    row_index: Vec<RowEntry>,
    filter: Filter,
    last_conversation: Option<ConversationId>,
    summary: Summary,
}

impl SegmentWriter {
    /// Starts a file; `keys_max`: at least the number of conversations, state rows and cursors.
    pub fn create(
        disk: &dyn Disk,
        name: &str,
        codec: Codec,
        keys_max: u64,
    ) -> io::Result<SegmentWriter> {
        let file = disk.open(name)?;
        file.set_len(0)?;
        Ok(SegmentWriter {
            file,
            codec,
            sealer: Sealer::new(codec.level)?,
            pending: Vec::new(),
            written: 0,
            synced: 0,
            events: Vec::new(),
            rows: Vec::new(),
            gathered: 0,
            event_index: Vec::new(),
            row_index: Vec::new(),
            filter: Filter::for_keys(keys_max),
            last_conversation: None,
            summary: Summary::default(),
        })
    }

    /// Adds an event; they come sorted by (conversation, seq), before all rows of state.
    pub fn event(&mut self, row: EventRow) -> Result<(), Trouble> {
        self.add_conversation(row.conversation);
        let changes = row.members.as_ref().map_or(0, |m| m.changes.len());
        self.gathered += EVENT_BYTES + row.body.len() + CHANGE_BYTES * changes;
        self.summary.events += 1;
        self.events.push(row);
        if self.gathered >= self.codec.block_bytes || self.events.len() == ROWS_MAX {
            self.end_event_block()
        } else {
            Ok(())
        }
    }

    /// Adds a row of state or a cursor; they come sorted by key.
    pub fn row(&mut self, row: Row) -> Result<(), Trouble> {
        self.end_event_block()?;
        match row {
            Row::State(state) => {
                self.add_conversation(state.conversation);
                self.add_key(state_hash(state.conversation, state.key));
                self.summary.state_position_max =
                    self.summary.state_position_max.max(state.position);
            }
            Row::Cursor(cursor) => self.add_key(user_hash(cursor.conversation, cursor.user)),
        }
        self.gathered += ROW_BYTES;
        self.summary.rows += 1;
        self.rows.push(row);
        if self.gathered >= self.codec.block_bytes || self.rows.len() == ROWS_MAX {
            self.end_row_block()
        } else {
            Ok(())
        }
    }

    fn add_conversation(&mut self, conversation: ConversationId) {
        if self.last_conversation.replace(conversation) != Some(conversation) {
            self.add_key(conversation_hash(conversation));
        }
    }

    fn add_key(&mut self, hash: u64) {
        self.filter.insert(hash);
        self.summary.keys += 1;
    }

    fn end_event_block(&mut self) -> Result<(), Trouble> {
        let (Some(first), Some(last)) = (self.events.first(), self.events.last()) else {
            return Ok(());
        };
        let entry = EventEntry {
            first: (first.conversation, first.seq),
            last: (last.conversation, last.seq),
            position_max: self
                .events
                .iter()
                .map(|row| row.position)
                .fold(Position::default(), Position::max),
            offset: self.written + self.pending.len() as u64,
            len: 0,
        };
        let len = events::encode(&self.events, &mut self.sealer, &mut self.pending)?;
        self.event_index.push(EventEntry {
            len: len as u32,
            ..entry
        });
        self.events.clear();
        self.gathered = 0;
        self.write_pending(WRITE_BYTES)
    }

    fn end_row_block(&mut self) -> Result<(), Trouble> {
        let (Some(first), Some(last)) = (self.rows.first(), self.rows.last()) else {
            return Ok(());
        };
        let entry = RowEntry {
            first: first.key(),
            last: last.key(),
            offset: self.written + self.pending.len() as u64,
            len: 0,
        };
        let len = rows::encode(&self.rows, &mut self.sealer, &mut self.pending)?;
        self.row_index.push(RowEntry {
            len: len as u32,
            ..entry
        });
        self.rows.clear();
        self.gathered = 0;
        self.write_pending(WRITE_BYTES)
    }

    fn write_pending(&mut self, at_least: usize) -> Result<(), Trouble> {
        if self.pending.len() < at_least {
            return Ok(());
        }
        self.file.write_all_at(&self.pending, self.written)?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        if self.written - self.synced >= SYNC_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Trouble> {
        self.file
            .sync()
            .map_err(|e| Trouble::Sync(format!("syncing a segment: {e}")))?;
        self.synced = self.written;
        Ok(())
    }

    /// Writes what is left and makes the bytes durable; the name is the caller's matter. Returns
    /// the file's length.
    pub fn finish(mut self) -> Result<u64, Trouble> {
        self.end_event_block()?;
        self.end_row_block()?;
        self.filter.fold(self.summary.keys);
        let offset = self.written + self.pending.len() as u64;
        let columns = [
            encode_event_index(&self.event_index),
            encode_row_index(&self.row_index),
            self.filter.to_bytes(),
            self.summary.encode(),
        ];
        let columns: [&[u8]; 4] = std::array::from_fn(|i| columns[i].as_slice());
        let len = self.sealer.seal(&columns, &mut self.pending)?;
        let start = self.pending.len();
        self.pending.extend_from_slice(&offset.to_le_bytes());
        self.pending.extend_from_slice(&(len as u32).to_le_bytes());
        self.pending.extend_from_slice(&FORMAT.to_le_bytes());
        self.pending.extend_from_slice(&MAGIC);
        let sum = crc32fast::hash(&self.pending[start..]);
        self.pending.extend_from_slice(&sum.to_le_bytes());
        self.write_pending(0)?;
        self.sync()?;
        Ok(self.written)
    }
}
