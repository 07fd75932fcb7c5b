//! Requests under way, and reads of events: the store first, then the log's tail.
//!
//! A read is checked before it is believed: only rows without a hole from the first seq asked
//! count; if there are none the router is asked, who has what the store doesn't have yet
//! (design.md, "Gaps and tails"). Equal reads under way share one answer.

use std::sync::Arc;

use tidings_core::ids::{ConversationId, Micros, Partition, Seq, SessionId};
use tidings_core::planted::{self, Mistake};
use tidings_core::ports::peers::ToRouter;
use tidings_core::ports::store::StoreError;
use tidings_core::rows::EventRow;

use super::GatewayCore;
use super::history::{Find, HistoryAsk};
use super::metrics::add;
use super::opening::OpenFor;
use super::outbound::Outbound;

/// What identifies a read: conversation, first and last seq.
pub(super) type Range = (ConversationId, Seq, Seq);

/// Something asked of a router or the host.
pub(super) enum Request {
    /// How conversations stand for a session's user.
    Open {
        session: SessionId,
        conversations: Vec<ConversationId>,
        why: OpenFor,
        until: Micros,
    },
    /// That a router which has taken over knows what is wanted here.
    Interest {
        partition: Partition,
        conversations: Vec<ConversationId>,
        tries: u8,
        until: Micros,
    },
    /// Events.
    Read(Read),
    /// Presence of users a session has begun to watch.
    Presence {
        session: SessionId,
        r#ref: u64,
        until: Micros,
    },
}

/// A read and who waits for it.
pub(super) struct Read {
    conversation: ConversationId,
    from: Seq,
    to: Seq,
    bytes_max: usize,
    waiters: Vec<ReadFor>,
    /// What the store had of it, while the router is asked for the rest.
    had: Vec<EventRow>,
    stage: Stage,
    until: Micros,
}

/// Who is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody: the events are here.
    Recent,
    Store,
    /// The router, as the store had nothing, or not all.
    Tail,
    /// The store once more: what it had not may have been put there before the router was asked.
    Again,
}

/// Why events are read.
pub(super) enum ReadFor {
    /// What is missing between the events that came.
    Gap,
    /// A page of a sync.
    Sync(SessionId),
    /// A page of history.
    History(SessionId, Box<HistoryAsk>),
    /// The seq of a message.
    Find(SessionId, Box<Find>),
    /// What a session hasn't confirmed.
    Resend(SessionId),
    /// Who wrote what a session never confirmed.
    Authors,
    /// A change of members that didn't come.
    Change,
}

/// A store has its own deadline; this one is for answers that got lost.
const READ_WITHIN: Micros = 10_000_000;

/// Reads of one worker under way; beyond it reads fail as if the store were down.
const READS_MAX: usize = 16 << 10;

impl GatewayCore {
    /// Reads `from..=to` of a conversation, or a part that begins with `from`; about `bytes_max`
    /// bytes of bodies.
    pub(super) fn read<O: Outbound>(
        &mut self,
        out: &mut O,
        conversation: ConversationId,
        (from, to): (Seq, Seq),
        bytes_max: usize,
        why: ReadFor,
    ) {
        let range = (conversation, from, to);
        if let Some(id) = self.reading.get(&range)
            && let Some(Request::Read(read)) = self.requests.get_mut(id)
        {
            add(&self.metrics.reads_shared, 1);
            read.waiters.push(why);
            return;
        }
        if self.reading.len() >= READS_MAX {
            return self.give(out, conversation, vec![why], from, to, &[]);
        }
        let id = self.request_id();
        let until = self.now + READ_WITHIN;
        let recent = self.recent.get(conversation, (from, to), bytes_max);
        let is_here = !recent.is_empty();
        let read = Read {
            conversation,
            from,
            to,
            bytes_max,
            waiters: vec![why],
            had: Vec::new(),
            stage: if is_here { Stage::Recent } else { Stage::Store },
            until,
        };
        self.requests.insert(id, Request::Read(read));
        self.reading.insert(range, id);
        if is_here {
            add(&self.metrics.reads_recent, 1);
            return self.recent_reads.push((id, recent));
        }
        out.read_events(id, conversation, from, to, bytes_max);
    }

    /// The host has read events.
    pub fn events_read<O: Outbound>(
        &mut self,
        out: &mut O,
        request: u64,
        result: Result<Vec<EventRow>, StoreError>,
    ) {
        self.now = out.now();
        let Some(Request::Read(read)) = self.requests.get_mut(&request) else {
            return;
        };
        if read.stage == Stage::Tail {
            return;
        }
        let rows = result.unwrap_or_else(|error| {
            tracing::debug!(%error, conversation = %read.conversation, "events not read");
            Vec::new()
        });
        let kept = contiguous(rows.iter(), read.from, read.to);
        let bytes: usize = kept.iter().map(|row| row.body.len()).sum();
        // Short of bytes and of events: what is missing at the end may not be stored yet, though its author
        // has the answer.
        let is_whole =
            kept.last().is_some_and(|last| last.seq == read.to) || bytes >= read.bytes_max;
        if is_whole || read.stage == Stage::Again {
            return self.read_done(out, request, &kept);
        }
        read.had = kept.into_iter().cloned().collect();
        read.stage = Stage::Tail;
        read.until = self.now + self.settings.answer_within;
        let (conversation, from) = (read.conversation, read.from + read.had.len() as Seq);
        self.to_router(
            out,
            conversation,
            ToRouter::Tail {
                request,
                conversation,
                from,
            },
        );
    }

    /// Answers the reads of this turn whose events were here, and those that follow from them. Not where they
    /// are asked: a sync of thousands of conversations would go as deep.
    pub(super) fn give_recent<O: Outbound>(&mut self, out: &mut O) {
        while let Some((request, rows)) = self.recent_reads.pop() {
            let rows: Vec<&EventRow> = rows.iter().map(|row| &**row).collect();
            self.read_done(out, request, &rows);
        }
    }

    /// A router gave events the store doesn't have yet.
    pub(super) fn tail<O: Outbound>(&mut self, out: &mut O, request: u64, rows: &[Arc<EventRow>]) {
        let Some(Request::Read(read)) = self.requests.get_mut(&request) else {
            return;
        };
        if read.stage != Stage::Tail {
            return;
        }
        let had = std::mem::take(&mut read.had);
        let rows = had.iter().chain(rows.iter().map(|row| &**row));
        let rows = contiguous(rows, read.from, read.to);
        if rows.last().is_some_and(|last| last.seq == read.to) {
            return self.read_done(out, request, &rows);
        }
        read.had = rows.into_iter().cloned().collect();
        read.stage = Stage::Again;
        read.until = self.now + READ_WITHIN;
        out.read_events(
            request,
            read.conversation,
            read.from,
            read.to,
            read.bytes_max,
        );
    }

    /// Gives these rows, or those known before where they are more.
    fn read_done<O: Outbound>(&mut self, out: &mut O, request: u64, rows: &[&EventRow]) {
        let Some(Request::Read(read)) = self.requests.remove(&request) else {
            return;
        };
        self.reading
            .remove(&(read.conversation, read.from, read.to));
        let had: Vec<&EventRow> = read.had.iter().collect();
        let rows = if had.len() > rows.len() { &had } else { rows };
        // What one misses who comes back others miss too.
        if read.stage != Stage::Recent && read.waiters.iter().any(|w| matches!(w, ReadFor::Sync(_)))
        {
            for row in rows {
                self.recent.push(&Arc::new((*row).clone()));
            }
        }
        self.give(
            out,
            read.conversation,
            read.waiters,
            read.from,
            read.to,
            rows,
        );
    }

    fn give<O: Outbound>(
        &mut self,
        out: &mut O,
        conversation: ConversationId,
        waiters: Vec<ReadFor>,
        from: Seq,
        to: Seq,
        rows: &[&EventRow],
    ) {
        for waiter in waiters {
            match waiter {
                ReadFor::Gap => self.gap_read(out, conversation, rows),
                ReadFor::Sync(session) => self.sync_read(out, session, conversation, from, rows),
                ReadFor::History(session, ask) => {
                    self.history_read(out, session, *ask, (from, to), rows)
                }
                ReadFor::Find(session, find) => {
                    self.find_read(out, session, *find, (from, to), rows)
                }
                ReadFor::Authors => self.authors_read(out, rows),
                ReadFor::Change => self.change_read(out, rows),
                ReadFor::Resend(session) => self.resend_read(out, session, conversation, rows),
            }
        }
    }

    /// Requests that weren't answered in time: reads go on to the tail or fail, openings are
    /// asked again.
    pub(super) fn tick_requests<O: Outbound>(&mut self, out: &mut O) {
        let now = self.now;
        let mut late: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, request)| match request {
                Request::Open { until, .. }
                | Request::Interest { until, .. }
                | Request::Presence { until, .. } => *until <= now,
                Request::Read(read) => read.until <= now,
            })
            .map(|(&id, _)| id)
            .collect();
        late.sort_unstable();
        for id in late {
            add(&self.metrics.requests_lost, 1);
            match self.requests.get(&id) {
                Some(Request::Read(read)) if read.stage == Stage::Store => {
                    let lost = StoreError::Unavailable("no answer in time".to_owned());
                    self.events_read(out, id, Err(lost));
                }
                Some(Request::Read(_)) => self.read_done(out, id, &[]),
                Some(Request::Open { .. }) => self.open_lost(out, id),
                Some(Request::Interest { .. }) => self.interest_lost(out, id),
                Some(Request::Presence { .. }) => self.presence_lost(id),
                None => {}
            }
        }
        if self.requests.capacity() > 4 * self.requests.len() + 256 {
            self.requests.shrink_to_fit();
            self.reading.shrink_to_fit();
        }
    }
}

/// The rows from `from` on that have no hole between them.
fn contiguous<'a>(
    rows: impl Iterator<Item = &'a EventRow>,
    from: Seq,
    to: Seq,
) -> Vec<&'a EventRow> {
    let mut next = from;
    let mut kept = Vec::new();
    for row in rows {
        let is_next = row.seq == next || row.seq > next && planted::is(Mistake::HoleBelieved);
        if is_next && row.seq <= to {
            kept.push(row);
            next = row.seq + 1;
        } else if row.seq >= next {
            break;
        }
    }
    kept
}
