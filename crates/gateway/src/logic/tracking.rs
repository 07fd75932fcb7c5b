//! What was pushed and isn't confirmed: sent again, and in the end given up.
//!
//! There is no list of it: each member entry holds since when something is uncovered, and a tick
//! looks at a part of the entries. An idle conversation costs a look every few seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use tidings_core::ids::{ConversationId, Seq, SessionId, UserId};
use tidings_core::ports::registry::Mark;
use tidings_core::rows::EventRow;
use tidings_protocol::CloseCode;
use tidings_protocol::wire::{self, update};

use super::GatewayCore;
use super::index::{BLOCKING, GATED, stamp, stamp_age};
use super::metrics::add;
use super::outbound::{Outbound, Slot};
use super::reads::ReadFor;
use super::session::READY;
use super::{frames, settings};

/// Each tick looks at one part in so many of the conversations.
const PARTS: usize = 4;

/// Members handled in one tick; the others wait for the next round.
const LATE_MAX: usize = 1_000;

/// Events sent again at once.
const RESEND_EVENTS: u64 = 64;
const RESEND_BYTES: usize = 32 << 10;

/// Sessions whose conversations are opened again in one tick.
const REFRESH_PER_TICK: usize = 1_000;

/// And of those compared, for which a query of the directory each is needed: when a server is gone others
/// need it more.
const COMPARE_PER_TICK: usize = 50;

/// Where the looking around is.
#[derive(Default)]
pub(super) struct Scan {
    next: usize,
    uncovered: i64,
    /// The next slot whose conversations are opened again; none: nothing to open.
    refresh: Option<Slot>,
    /// The same for those whose lists are compared with the directory's.
    compare: Option<Slot>,
    /// Sessions for which that failed: once more with the next tick.
    again: BTreeSet<SessionId>,
}

impl Scan {
    /// All conversations of all sessions are to be opened again, in batches.
    pub(super) fn refresh_all(&mut self) {
        self.refresh = Some(0);
    }

    /// The lists of all sessions are to be compared with the directory's, in batches.
    pub(super) fn compare_all(&mut self) {
        self.compare = Some(0);
    }

    /// A router or the directory didn't answer when a session's conversations were opened again.
    pub(super) fn refresh_again(&mut self, session: SessionId) {
        self.again.insert(session);
    }
}

impl GatewayCore {
    pub(super) fn tick_tracking<O: Outbound>(&mut self, out: &mut O) {
        let (now, after) = (
            stamp(self.now),
            self.settings.resend_after / settings::SECOND,
        );
        let conversations = &self.index.conversations;
        let end = (self.tracking.next + conversations.capacity() / PARTS + 1)
            .min(conversations.capacity());
        let mut late: Vec<(ConversationId, Slot)> = Vec::new();
        for c in (self.tracking.next..end).filter_map(|at| conversations.get(at)) {
            for member in c.members.as_slice() {
                self.tracking.uncovered += i64::from(member.since != 0);
                if member.since != 0
                    && stamp_age(member.since, now) >= after
                    && late.len() < LATE_MAX
                {
                    late.push((c.id, member.slot));
                }
            }
        }
        self.tracking.next = end;
        if end == conversations.capacity() {
            self.tracking.next = 0;
            self.delays_told.clear();
            self.metrics
                .pending
                .store(self.tracking.uncovered, Ordering::Relaxed);
            self.tracking.uncovered = 0;
        }
        for (conversation, slot) in late {
            self.uncovered(out, conversation, slot, now);
        }
    }

    /// A session hasn't confirmed something for too long.
    fn uncovered<O: Outbound>(
        &mut self,
        out: &mut O,
        conversation: ConversationId,
        slot: Slot,
        now: u16,
    ) {
        let resends_max = self.settings.resends_max;
        let Some(at) = self.index.find(conversation) else {
            return;
        };
        let head = self.index.get(at).head_seen;
        let Some(session) = self.sessions.get(slot).map(|s| (s.id, s.user)) else {
            return;
        };
        let Some(member) = self.index.member_mut(&self.sessions, slot, at) else {
            return;
        };
        let first = member.covered + 1;
        if member.tries >= resends_max {
            add(&self.metrics.dead, 1);
            add(&self.metrics.stale, 1);
            // What somebody blocked writes waits for nobody, and isn't told to wait.
            let is_blocking = member.has(BLOCKING);
            if !is_blocking {
                out.put_marks(vec![Mark {
                    user: session.1,
                    conversation,
                    seq: head,
                }]);
            }
            tracing::debug!(session = %session.0, %conversation, "nothing confirmed, session given up");
            let range = (first, head.min(first + RESEND_EVENTS - 1));
            self.close(out, slot, CloseCode::Heartbeat);
            if range.0 <= range.1 && !is_blocking {
                self.read(out, conversation, range, RESEND_BYTES, ReadFor::Authors);
            }
            return;
        }
        member.tries += 1;
        member.since = now;
        let from = member.covered + 1;
        let to = head.min(member.covered + RESEND_EVENTS);
        if from <= to {
            self.read(
                out,
                conversation,
                (from, to),
                RESEND_BYTES,
                ReadFor::Resend(session.0),
            );
        } else {
            member.since = 0;
        }
    }

    pub(super) fn resend_read<O: Outbound>(
        &mut self,
        out: &mut O,
        session: SessionId,
        conversation: ConversationId,
        rows: &[&EventRow],
    ) {
        let Some(slot) = self.sessions.slot_of(session) else {
            return;
        };
        let Some(format) = self.sessions.get(slot).map(|s| s.format) else {
            return;
        };
        let Some(at) = self.index.find(conversation) else {
            return;
        };
        let Some(member) = self.index.member(&self.sessions, slot, at) else {
            return;
        };
        if member.flags & GATED != 0 {
            return;
        }
        let covered = member.covered;
        let seen = self.rows_for(slot, rows);
        let shown = seen.as_ref().map(|seen| seen.iter().collect::<Vec<_>>());
        let rows = shown.as_deref().unwrap_or(rows);
        for row in rows.iter().filter(|row| row.seq > covered) {
            add(&self.metrics.resent, 1);
            out.send(slot, &frames::event_frame(format, row));
        }
    }

    /// Tells the authors of events that somebody online never confirmed them.
    pub(super) fn authors_read<O: Outbound>(&mut self, out: &mut O, rows: &[&EventRow]) {
        let mut last: BTreeMap<UserId, (ConversationId, Seq)> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.members.is_none()) {
            // Once for all who didn't confirm it.
            let told = self.delays_told.entry(row.conversation).or_default();
            if row.seq > *told {
                *told = row.seq;
                last.insert(row.user, (row.conversation, row.seq));
            }
        }
        for (user, (conversation, seq)) in last {
            self.delayed(out, user, conversation, seq);
            out.delayed_elsewhere(user, conversation, seq);
        }
    }

    /// A message of `user` waits for members that were online: told to the user's sessions here.
    pub fn delayed<O: Outbound>(
        &mut self,
        out: &mut O,
        user: UserId,
        conversation: ConversationId,
        seq: Seq,
    ) {
        let slots: Vec<Slot> = self.sessions.of_user(user).collect();
        for slot in slots {
            let delayed = wire::Delayed {
                conversation: conversation.0,
                seq,
            };
            self.update(out, slot, 0, update::Update::Delayed(delayed));
        }
    }

    /// Opens the conversations of some sessions again after something may have been missed.
    pub(super) fn tick_refresh<O: Outbound>(&mut self, out: &mut O) {
        for _ in 0..REFRESH_PER_TICK {
            let Some(session) = self.tracking.again.pop_first() else {
                break;
            };
            if let Some(slot) = self.sessions.slot_of(session) {
                self.refresh(out, slot);
            }
        }
        let refresh = self.tracking.refresh.take();
        let (slots, next) = self.batch(refresh, REFRESH_PER_TICK);
        self.tracking.refresh = next;
        for slot in slots {
            self.refresh(out, slot);
        }
        let compare = self.tracking.compare.take();
        let (slots, next) = self.batch(compare, COMPARE_PER_TICK);
        self.tracking.compare = next;
        for slot in slots {
            self.compare(out, slot);
        }
    }

    /// The next sessions from a slot on, and where it goes on after them. Those that are just being
    /// opened too: it may be a router that is gone that answers them.
    fn batch(&self, first: Option<Slot>, most: usize) -> (Vec<Slot>, Option<Slot>) {
        let Some(first) = first else {
            return (Vec::new(), None);
        };
        let sessions = self.sessions.iter();
        let slots: Vec<Slot> = sessions
            .filter(|(slot, s)| *slot >= first && s.is(READY))
            .map(|(slot, _)| slot)
            .take(most)
            .collect();
        let next = slots.last().filter(|_| slots.len() == most);
        let next = next.map(|last| last + 1);
        (slots, next)
    }
}
