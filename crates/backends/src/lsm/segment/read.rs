//! Reading a segment: by key through the cache, or from front to back for a merge.

use std::sync::Arc;

use bytes::Bytes;
use tidings_core::ids::{ConversationId, Position, Seq, UserId};
use tidings_core::ports::disk::{Disk, DiskFile};
use tidings_core::ports::store::{StoreError, StoreResult};
use tidings_core::rows::{CursorRow, EventRow, StateKey, StateRow};
use tidings_core::varint::{Malformed, Reader};

use super::super::cache::{Block, BlockId, Cache};
use super::super::columns::{stored_lengths, unseal};
use super::super::events;
use super::super::events::EventBlock;
use super::super::filter::{Filter, conversation_hash, state_hash, user_hash};
use super::super::rows::{self, Row, RowBlock, RowKey};
use super::*;

/// An open segment; stays readable after its file was removed.
pub struct Segment {
    /// Which one: the file's name and the key of its blocks in the cache.
    pub number: u64,
    /// The file's length.
    pub len: u64,
    /// See [`Summary`].
    pub summary: Summary,
    file: Box<dyn DiskFile>,
    event_index: Vec<EventEntry>,
    row_index: Vec<RowEntry>,
    filter: Filter,
}

impl Segment {
    /// Opens the file and loads index and filter; `len` is what the manifest says.
    pub fn open(disk: &dyn Disk, number: u64, len: u64) -> StoreResult<Segment> {
        let name = name(number);
        let fail = |what: &str| StoreError::Corrupt(format!("{name}: {what}"));
        let file = disk.open(&name).map_err(|e| unavailable(&name, e))?;
        let there = file.len().map_err(|e| unavailable(&name, e))?;
        if there != len {
            return Err(fail(&format!(
                "{there} bytes long, the manifest says {len}"
            )));
        }
        let start = len
            .checked_sub(TRAILER_LEN as u64)
            .ok_or_else(|| fail("shorter than its trailer"))?;
        let trailer = read(&*file, &name, start, TRAILER_LEN)?;
        let (fields, sum) = trailer.split_at(TRAILER_LEN - 4);
        if crc32fast::hash(fields).to_le_bytes() != sum || fields[16..] != MAGIC {
            return Err(fail("the trailer is damaged"));
        }
        let mut r = Reader::new(fields, "segment trailer");
        let trailer_fields = |r: &mut Reader<'_>| -> Result<(u64, u64), Malformed> {
            let offset = r.fixed64()?;
            let len_and_format = r.fixed64()?;
            Ok((offset, len_and_format))
        };
        let (offset, len_and_format) = trailer_fields(&mut r).map_err(|e| fail(&e.to_string()))?;
        let (footer_len, format) = (len_and_format as u32, (len_and_format >> 32) as u32);
        if format != FORMAT {
            return Err(StoreError::Newer(format!(
                "the store's segment {name} is of format {format}, this release reads {FORMAT}"
            )));
        }
        if offset.checked_add(u64::from(footer_len)) != Some(start) {
            return Err(fail("the trailer is damaged"));
        }
        let footer = read(&*file, &name, offset, footer_len as usize)?;
        let columns = unseal(&footer).map_err(|e| fail(&format!("footer: {e}")))?;
        let [events, rows, filter, summary] = columns.as_slice() else {
            return Err(fail("the footer is damaged"));
        };
        let event_index = decode_event_index(events).map_err(|e| fail(&e.to_string()))?;
        let row_index = decode_row_index(rows).map_err(|e| fail(&e.to_string()))?;
        // Whoever reads a block makes room for it first.
        let places = event_index.iter().map(|e| (e.offset, e.len));
        let mut places = places.chain(row_index.iter().map(|e| (e.offset, e.len)));
        if places.any(|(at, len)| at.checked_add(len.into()).is_none_or(|end| end > offset)) {
            return Err(fail("its index names blocks that aren't there"));
        }
        Ok(Segment {
            number,
            len,
            summary: Summary::decode(summary).map_err(|e| fail(&e.to_string()))?,
            file,
            event_index,
            row_index,
            filter: Filter::from_bytes(filter).ok_or_else(|| fail("the filter is damaged"))?,
        })
    }

    fn load<T>(
        &self,
        offset: u64,
        len: u32,
        what: &str,
        index: usize,
        decode: impl Fn(&Bytes) -> Result<T, Malformed>,
    ) -> StoreResult<T> {
        let name = name(self.number);
        let stored = read(&*self.file, &name, offset, len as usize)?;
        decode(&stored).map_err(|e| {
            StoreError::Corrupt(format!(
                "{name}, {what} block {index} at byte {offset}: {e}"
            ))
        })
    }

    fn event_block(&self, index: usize, cache: Option<&Cache>) -> StoreResult<Arc<EventBlock>> {
        let id = BlockId {
            segment: self.number,
            events: true,
            index,
        };
        if let Some(Block::Events(block)) = cache.and_then(|c| c.get(id)) {
            return Ok(block);
        }
        let entry = &self.event_index[index];
        let block =
            Arc::new(self.load(entry.offset, entry.len, "event", index, EventBlock::decode)?);
        if let Some(cache) = cache {
            cache.insert(id, Block::Events(block.clone()));
        }
        Ok(block)
    }

    fn row_block(&self, index: usize, cache: Option<&Cache>) -> StoreResult<Arc<RowBlock>> {
        let id = BlockId {
            segment: self.number,
            events: false,
            index,
        };
        if let Some(Block::Rows(block)) = cache.and_then(|c| c.get(id)) {
            return Ok(block);
        }
        let entry = &self.row_index[index];
        let block =
            Arc::new(self.load(entry.offset, entry.len, "state", index, RowBlock::decode)?);
        if let Some(cache) = cache {
            cache.insert(id, Block::Rows(block.clone()));
        }
        Ok(block)
    }

    /// A walk over the conversation's events; `None` when the filter knows there are none.
    pub fn events_of(self: &Arc<Self>, conversation: ConversationId) -> Option<Events> {
        let known =
            !self.event_index.is_empty() && self.filter.may_hold(conversation_hash(conversation));
        known.then(|| Events {
            segment: self.clone(),
            conversation,
            block: None,
        })
    }

    /// The events at or after `from` in the log, in no order; blocks that are all before it
    /// are not read.
    pub fn events_since(
        &self,
        conversation: ConversationId,
        from: Position,
        cache: &Cache,
        rows: &mut Vec<EventRow>,
    ) -> StoreResult<()> {
        if !self.filter.may_hold(conversation_hash(conversation)) {
            return Ok(());
        }
        let mut index = self
            .event_index
            .partition_point(|e| e.first.0 <= conversation);
        while index > 0 && self.event_index[index - 1].last.0 >= conversation {
            index -= 1;
            if self.event_index[index].position_max < from {
                continue;
            }
            let block = self.event_block(index, Some(cache))?;
            for i in block.run(conversation).rev() {
                if block.position(i) < from {
                    return Ok(());
                }
                rows.push(block.row(conversation, i));
            }
        }
        Ok(())
    }

    /// A row of state.
    pub fn state(
        &self,
        conversation: ConversationId,
        key: StateKey,
        cache: &Cache,
    ) -> StoreResult<Option<StateRow>> {
        match self.row(
            state_hash(conversation, key),
            RowKey::of_state(conversation, key),
            cache,
        )? {
            Some(Row::State(row)) => Ok(Some(row)),
            _ => Ok(None),
        }
    }

    /// A cursor.
    pub fn cursor(
        &self,
        conversation: ConversationId,
        user: UserId,
        cache: &Cache,
    ) -> StoreResult<Option<CursorRow>> {
        match self.row(
            user_hash(conversation, user),
            RowKey::of_cursor(conversation, user),
            cache,
        )? {
            Some(Row::Cursor(row)) => Ok(Some(row)),
            _ => Ok(None),
        }
    }

    fn row(&self, hash: u64, key: RowKey, cache: &Cache) -> StoreResult<Option<Row>> {
        if !self.filter.may_hold(hash) {
            return Ok(None);
        }
        let index = self.row_index.partition_point(|e| e.last < key);
        match self.row_index.get(index) {
            Some(entry) if entry.first <= key => Ok(self.row_block(index, Some(cache))?.get(&key)),
            _ => Ok(None),
        }
    }

    /// All state rows and cursors, sorted, past the cache.
    pub fn all_rows(self: &Arc<Self>) -> Rows {
        Rows {
            segment: self.clone(),
            block: None,
            next_block: 0,
            next: 0,
        }
    }

    /// Stored bytes by column, and of everything else.
    pub fn column_bytes(&self) -> StoreResult<Vec<(String, u64)>> {
        let names = |kind: &str, names: &[&str]| {
            names.iter().map(|n| (format!("{kind}: {n}"), 0)).collect()
        };
        let mut events: Vec<(String, u64)> = names("events", &events::COLUMN_NAMES);
        let mut rows: Vec<(String, u64)> = names("state", &rows::COLUMN_NAMES);
        let add = |sums: &mut [(String, u64)], what, index, offset, len| -> StoreResult<()> {
            let lengths = self.load(offset, len, what, index, |stored| stored_lengths(stored))?;
            sums.iter_mut()
                .zip(lengths)
                .for_each(|((_, sum), len)| *sum += len as u64);
            Ok(())
        };
        for (i, entry) in self.event_index.iter().enumerate() {
            add(&mut events, "event", i, entry.offset, entry.len)?;
        }
        for (i, entry) in self.row_index.iter().enumerate() {
            add(&mut rows, "state", i, entry.offset, entry.len)?;
        }
        events.extend(rows);
        let columns: u64 = events.iter().map(|(_, bytes)| bytes).sum();
        events.push(("indexes, filters, headers".into(), self.len - columns));
        Ok(events)
    }

    /// The number of event blocks.
    pub fn event_blocks(&self) -> usize {
        self.event_index.len()
    }

    /// One event block, past the cache.
    pub fn event_block_at(&self, index: usize) -> StoreResult<Arc<EventBlock>> {
        self.event_block(index, None)
    }
}

/// A walk over the events of one conversation in one segment.
pub struct Events {
    segment: Arc<Segment>,
    conversation: ConversationId,
    /// The block last read, by its index.
    block: Option<(usize, Arc<EventBlock>)>,
}

impl Events {
    /// The first seq in `from..=to`.
    pub fn first(&mut self, from: Seq, to: Seq, cache: &Cache) -> StoreResult<Option<Seq>> {
        let mut index = self
            .segment
            .event_index
            .partition_point(|e| e.last < (self.conversation, from));
        while let Some(entry) = self.segment.event_index.get(index) {
            if entry.first > (self.conversation, to) {
                break;
            }
            // The index alone tells where the block begins.
            if entry.first >= (self.conversation, from) {
                return Ok(Some(entry.first.1));
            }
            let block = self.at(index, cache)?;
            let run = block.run(self.conversation);
            let i = block.find(run.clone(), from);
            if i < run.end {
                let seq = block.seq(i);
                return Ok((seq <= to).then_some(seq));
            }
            index += 1;
        }
        Ok(None)
    }

    /// Gives the rows in `from..=to` of the block that holds `from`, ascending, until `take`
    /// says enough.
    pub fn rows(
        &mut self,
        from: Seq,
        to: Seq,
        cache: &Cache,
        mut take: impl FnMut(EventRow) -> bool,
    ) -> StoreResult<()> {
        let index = self
            .segment
            .event_index
            .partition_point(|e| e.last < (self.conversation, from));
        if index == self.segment.event_index.len() {
            return Ok(());
        }
        let conversation = self.conversation;
        let block = self.at(index, cache)?;
        let run = block.run(conversation);
        for i in block.find(run.clone(), from)..run.end {
            if block.seq(i) > to || !take(block.row(conversation, i)) {
                break;
            }
        }
        Ok(())
    }

    fn at(&mut self, index: usize, cache: &Cache) -> StoreResult<Arc<EventBlock>> {
        if let Some((i, block)) = &self.block
            && *i == index
        {
            return Ok(block.clone());
        }
        let block = self.segment.event_block(index, Some(cache))?;
        self.block = Some((index, block.clone()));
        Ok(block)
    }
}

/// A walk over all state rows and cursors.
pub struct Rows {
    segment: Arc<Segment>,
    block: Option<Arc<RowBlock>>,
    next_block: usize,
    next: usize,
}

impl Rows {
    /// The next row.
    pub fn next(&mut self) -> StoreResult<Option<Row>> {
        loop {
            if let Some(row) = self.block.as_ref().and_then(|b| b.rows().get(self.next)) {
                self.next += 1;
                return Ok(Some(*row));
            }
            if self.next_block == self.segment.row_index.len() {
                return Ok(None);
            }
            self.block = Some(self.segment.row_block(self.next_block, None)?);
            self.next_block += 1;
            self.next = 0;
        }
    }
}

fn read(file: &dyn DiskFile, name: &str, offset: u64, len: usize) -> StoreResult<Bytes> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|e| unavailable(name, e))?;
    Ok(bytes.into())
}

fn unavailable(name: &str, error: std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            StoreError::Corrupt(format!("{name}: shorter than its index says"))
        }
        _ => StoreError::Unavailable(format!("reading {name}: {error}")),
    }
}
