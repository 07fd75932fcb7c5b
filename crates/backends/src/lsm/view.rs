//! What the store consists of at one moment, and reading it.
//!
//! A view never changes: flushes and merges put another one in its place, and a read that holds
//! the old one goes on with the same rows.

use std::sync::Arc;

use tidings_core::ids::{ConversationId, Position, Seq, UserId};
use tidings_core::ports::store::StoreResult;
use tidings_core::rows::{CursorRow, EventRow, StateKey, StateRow};

use super::cache::Cache;
use super::memtable::Memtable;
use super::rows::{greater, later};
use super::segment::{Events, Segment};

/// See the module.
#[derive(Clone)]
pub struct View {
    /// Takes all puts.
    pub active: Arc<Memtable>,
    /// The table that is being flushed.
    pub frozen: Option<Arc<Memtable>>,
    /// The segments that the manifest names, those with the latest rows of state first.
    pub segments: Vec<Arc<Segment>>,
}

/// One of the places that hold events of a conversation.
enum Source<'a> {
    Table(&'a Memtable),
    Segment(Events),
}

impl Source<'_> {
    fn first(
        &mut self,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        cache: &Cache,
    ) -> StoreResult<Option<Seq>> {
        match self {
            Source::Table(table) => Ok(table.first_event(conversation, from, to)),
            Source::Segment(events) => events.first(from, to, cache),
        }
    }
}

/// What a page gathered so far.
struct Page {
    rows: Vec<EventRow>,
    bytes: usize,
    bytes_max: usize,
}

impl Page {
    /// Whether there is room for more.
    fn push(&mut self, row: EventRow) -> bool {
        self.bytes += row.body.len();
        self.rows.push(row);
        self.bytes < self.bytes_max
    }
}

impl View {
    /// The rows in memory.
    pub fn tables(&self) -> impl Iterator<Item = &Memtable> {
        std::iter::once(&*self.active).chain(self.frozen.as_deref())
    }

    /// Puts the segments in the order in which [`View::state`] wants them.
    pub fn sort_segments(&mut self) {
        self.segments
            .sort_by_key(|s| std::cmp::Reverse((s.summary.state_position_max, s.number)));
    }

    /// As the port says. The sources usually hold different stretches of seqs: each in turn gives
    /// a stretch up to where another begins.
    pub fn read_events(
        &self,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        bytes_max: usize,
        cache: &Cache,
    ) -> StoreResult<Vec<EventRow>> {
        let mut sources: Vec<Source<'_>> = self.tables().map(Source::Table).collect();
        sources.extend(
            self.segments
                .iter()
                .filter_map(|s| s.events_of(conversation))
                .map(Source::Segment),
        );
        let mut page = Page {
            rows: Vec::new(),
            bytes: 0,
            bytes_max,
        };
        let mut next = from;
        // Where each source goes on; known again only for the one that was read.
        let mut firsts = vec![None; sources.len()];
        for (first, source) in firsts.iter_mut().zip(&mut sources) {
            *first = source.first(conversation, next, to, cache)?;
        }
        while let Some((chosen, first)) = firsts
            .iter()
            .enumerate()
            .filter_map(|(i, f)| Some((i, (*f)?)))
            .min_by_key(|(_, f)| *f)
        {
            let other = firsts
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != chosen)
                .filter_map(|(_, f)| *f)
                .min();
            let until = other.map_or(to, |other| first.max(other.saturating_sub(1)).min(to));
            let mut room = true;
            let mut last = first;
            let take = |row: EventRow| {
                last = row.seq;
                room = page.push(row);
                room
            };
            match &mut sources[chosen] {
                Source::Table(table) => table.events(conversation, first, until, take),
                Source::Segment(events) => events.rows(first, until, cache, take)?,
            }
            if !room || last == Seq::MAX {
                break;
            }
            next = last + 1;
            for (first, source) in firsts.iter_mut().zip(&mut sources) {
                if first.is_some_and(|f| f < next) {
                    *first = source.first(conversation, next, to, cache)?;
                }
            }
        }
        Ok(page.rows)
    }

    /// As the port says.
    pub fn read_events_since(
        &self,
        conversation: ConversationId,
        from: Position,
        cache: &Cache,
    ) -> StoreResult<Vec<EventRow>> {
        let mut rows: Vec<EventRow> = self
            .tables()
            .flat_map(|t| t.events_since(conversation, from))
            .collect();
        for segment in &self.segments {
            segment.events_since(conversation, from, cache, &mut rows)?;
        }
        rows.sort_unstable_by_key(|row| row.seq);
        rows.dedup_by_key(|row| row.seq);
        Ok(rows)
    }

    /// The row of the latest position, wherever it is.
    pub fn state(
        &self,
        conversation: ConversationId,
        key: StateKey,
        cache: &Cache,
    ) -> StoreResult<Option<StateRow>> {
        let mut found = self
            .tables()
            .filter_map(|t| t.state(conversation, key))
            .reduce(later);
        for segment in &self.segments {
            // Sorted: this segment and all behind it hold only earlier rows.
            if found.is_some_and(|row| row.position >= segment.summary.state_position_max) {
                break;
            }
            if let Some(row) = segment.state(conversation, key, cache)? {
                found = Some(found.map_or(row, |there| later(there, row)));
            }
        }
        Ok(found)
    }

    /// The greatest numbers of all places.
    pub fn cursor(
        &self,
        conversation: ConversationId,
        user: UserId,
        cache: &Cache,
    ) -> StoreResult<Option<CursorRow>> {
        let mut found = self
            .tables()
            .filter_map(|t| t.cursor(conversation, user))
            .reduce(greater);
        for segment in &self.segments {
            if let Some(row) = segment.cursor(conversation, user, cache)? {
                found = Some(found.map_or(row, |there| greater(there, row)));
            }
        }
        Ok(found)
    }
}
