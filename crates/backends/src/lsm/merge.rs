//! Merging segments: many sorted walks into one, with one block of each in memory.

use std::sync::Arc;

use tidings_core::ids::{ConversationId, Seq};
use tidings_core::ports::store::StoreResult;
use tidings_core::rows::EventRow;

use super::Trouble;
use super::events::EventBlock;
use super::rows::{Row, RowKey};
use super::segment::{Rows, Segment, SegmentWriter};

/// Writes all rows of the inputs, each key once. `go_on` is asked now and then.
pub fn merge(
    inputs: &[Arc<Segment>],
    writer: &mut SegmentWriter,
    go_on: impl Fn() -> bool,
) -> Result<bool, Trouble> {
    let mut events = Vec::new();
    for segment in inputs {
        events.push(EventWalk::start(segment.clone())?);
    }
    let mut count = 0u64;
    while let Some(key) = events.iter().filter_map(|w| w.key).min() {
        let mut row = None;
        for walk in events.iter_mut().filter(|w| w.key == Some(key)) {
            if row.is_none() {
                row = walk.row();
            }
            walk.advance()?;
        }
        if let Some(row) = row {
            writer.event(row)?;
        }
        count += 1;
        if count.is_multiple_of(1024) && !go_on() {
            return Ok(false);
        }
    }

    let mut rows = Vec::new();
    for segment in inputs {
        let mut walk = segment.all_rows();
        let head = next_row(&mut walk)?;
        rows.push((walk, head));
    }
    while let Some(key) = rows
        .iter()
        .filter_map(|(_, head)| head.map(|(key, _)| key))
        .min()
    {
        let mut merged: Option<Row> = None;
        for (walk, head) in &mut rows {
            if let Some((k, row)) = *head
                && k == key
            {
                merged = Some(merged.map_or(row, |there| there.merge(row)));
                *head = next_row(walk)?;
            }
        }
        if let Some(row) = merged {
            writer.row(row)?;
        }
        count += 1;
        if count.is_multiple_of(1024) && !go_on() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn next_row(walk: &mut Rows) -> Result<Option<(RowKey, Row)>, Trouble> {
    Ok(walk
        .next()
        .map_err(Trouble::Store)?
        .map(|row| (row.key(), row)))
}

/// A walk over all events of a segment.
struct EventWalk {
    segment: Arc<Segment>,
    block: Option<Arc<EventBlock>>,
    next_block: usize,
    index: usize,
    /// The key of the row at `index`; `None` at the end.
    key: Option<(ConversationId, Seq)>,
}

impl EventWalk {
    fn start(segment: Arc<Segment>) -> Result<EventWalk, Trouble> {
        let mut walk = EventWalk {
            segment,
            block: None,
            next_block: 0,
            index: 0,
            key: None,
        };
        walk.load().map_err(Trouble::Store)?;
        Ok(walk)
    }

    fn row(&self) -> Option<EventRow> {
        let (conversation, _) = self.key?;
        Some(self.block.as_ref()?.row(conversation, self.index))
    }

    fn advance(&mut self) -> Result<(), Trouble> {
        self.index += 1;
        self.load().map_err(Trouble::Store)
    }

    /// Sets the key, reading the next block where the present one has ended.
    fn load(&mut self) -> StoreResult<()> {
        loop {
            if let Some(block) = self.block.as_ref().filter(|b| self.index < b.len()) {
                self.key = Some((block.conversation(self.index), block.seq(self.index)));
                return Ok(());
            }
            if self.next_block == self.segment.event_blocks() {
                self.key = None;
                return Ok(());
            }
            self.block = Some(self.segment.event_block_at(self.next_block)?);
            self.next_block += 1;
            self.index = 0;
        }
    }
}
