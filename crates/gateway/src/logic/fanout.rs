//! Events to sessions: one encoding a format, one compare and one send a session.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tidings_core::ids::{ConversationId, Seq, SessionId, UserId};
use tidings_core::planted::{self, Mistake};
use tidings_core::ports::peers::Handed;
use tidings_core::record::Role;
use tidings_core::rows::EventRow;
use tidings_protocol::Format;

use super::blocks::{is_hidden, seen_by_blocker};
use super::index::{BLOCKING, GATED, Gap, HELD_MAX, HOLE, Held, JSON, stamp};
use super::metrics::add;
use super::opening::OpenFor;
use super::outbound::{Outbound, Slot};
use super::reads::ReadFor;
use super::session::{NOBODY, READY, SYNCED, seconds};
use super::{GatewayCore, frames};

/// A gap up to here is read and pushed; behind a larger one the sessions sync, which gives each
/// the newest page first.
const GAP_READ_MAX: Seq = 2_000;

/// Events of a gap read at once.
const GAP_PAGE: Seq = 500;
const GAP_BYTES: usize = 256 << 10;

impl GatewayCore {
    /// A committed event came from a router: once, twice, or after a later one.
    pub(super) fn event<O: Outbound>(
        &mut self,
        out: &mut O,
        row: Arc<EventRow>,
        except: SessionId,
    ) {
        if let Some(members) = &row.members {
            out.members_changed(&mut members.changes.iter().map(|change| change.user));
        }
        let (conversation, seq) = (row.conversation, row.seq);
        let Some(at) = self.index.find(conversation) else {
            self.handed.push(Handed { conversation, seq });
            if self.opens > 0 {
                self.came_early(conversation, seq);
            }
            return self.members_event(out, &row);
        };
        let c = self.index.get_mut(at);
        if seq <= c.head_seen {
            self.handed.push(Handed { conversation, seq });
            self.late_members_event(out, at, &row);
        } else if seq == c.head_seen + 1 {
            self.deliver(out, at, &row, except);
            self.go_on(out, conversation);
        } else {
            add(&self.metrics.gaps, u64::from(c.gap.is_none()));
            let gap = c.gap.get_or_insert_with(Box::<Gap>::default);
            gap.known = gap.known.max(seq);
            hold(&mut gap.held, Held { row, except });
            self.fetch_gap(out, conversation);
        }
    }

    /// Notes an event of a conversation that may be on its way to be opened: a router's answer about
    /// many conversations may be older than the events that overtook it.
    pub(super) fn came_early(&mut self, conversation: ConversationId, seq: Seq) {
        /// What is beyond is shown by the next digest.
        const EARLY_MAX: usize = 16 << 10;
        if self.early.len() < EARLY_MAX || self.early.contains_key(&conversation) {
            let highest = self.early.entry(conversation).or_default();
            *highest = seq.max(*highest);
        }
    }

    /// Hands the next event to the sessions of its conversation.
    fn deliver<O: Outbound>(
        &mut self,
        out: &mut O,
        at: u32,
        row: &Arc<EventRow>,
        except: SessionId,
    ) {
        let _span =
            tracing::debug_span!("fan_out", conversation = row.conversation.0, seq = row.seq)
                .entered();
        self.recent.push(row);
        let except = self.sessions.slot_of(except).unwrap_or(NOBODY);
        let (seq, stamp) = (row.seq, stamp(self.now));
        let conversation = self.index.get_mut(at);
        conversation.head_seen = seq;
        conversation.moved = seconds(self.now);
        // By format, and behind them as blockers see it.
        let mut frames: [Option<Bytes>; 4] = Default::default();
        let mut sent = 0;
        for member in conversation.members.as_mut_slice() {
            if member.flags & GATED != 0 || member.slot == except || member.covered >= seq {
                continue;
            }
            if member.since == 0 && member.flags & HOLE == 0 {
                member.since = stamp;
            }
            let json = member.flags & JSON != 0;
            let reader = (member.flags & BLOCKING != 0)
                .then(|| self.sessions.get(member.slot).map(|s| s.user))
                .flatten()
                .filter(|reader| is_hidden(*reader, row));
            let frame = match &mut frames[usize::from(json) + 2 * usize::from(reader.is_some())] {
                Some(frame) => frame,
                empty => {
                    let format = if json { Format::Json } else { Format::Proto };
                    empty.insert(match reader {
                        None => frames::event_frame(format, row),
                        Some(reader) => frames::event_frame(format, &seen_by_blocker(reader, row)),
                    })
                }
            };
            out.send(member.slot, frame);
            sent += 1;
        }
        add(&self.metrics.deliveries, sent);
        add(&self.metrics.fanned_out, 1);
        add(
            &self.metrics.encoded,
            frames.iter().flatten().count() as u64,
        );
        self.handed.push(Handed {
            conversation: row.conversation,
            seq,
        });
        tracing::debug!(conversation = %row.conversation, seq, sessions = sent, "event fanned out");
        self.members_event(out, row);
    }

    /// After a delivery: events that waited for it, and what is still missing.
    fn go_on<O: Outbound>(&mut self, out: &mut O, conversation: ConversationId) {
        loop {
            // Each delivery may have taken the last session out.
            let Some(at) = self.index.find(conversation) else {
                return;
            };
            let c = self.index.get_mut(at);
            let Some(gap) = &mut c.gap else { return };
            while gap
                .held
                .front()
                .is_some_and(|held| held.row.seq <= c.head_seen)
            {
                gap.held.pop_front();
            }
            if gap
                .held
                .front()
                .is_some_and(|held| held.row.seq == c.head_seen + 1)
            {
                if let Some(held) = gap.held.pop_front() {
                    self.deliver(out, at, &held.row, held.except);
                }
                continue;
            }
            if gap.held.is_empty() && gap.known <= c.head_seen {
                c.gap = None;
                return;
            }
            return self.fetch_gap(out, conversation);
        }
    }

    /// Reads what is missing, unless that is under way.
    pub(super) fn fetch_gap<O: Outbound>(&mut self, out: &mut O, conversation: ConversationId) {
        let now = self.now;
        let Some(at) = self.index.find(conversation) else {
            return;
        };
        let c = self.index.get_mut(at);
        let head_seen = c.head_seen;
        let Some(gap) = &mut c.gap else { return };
        if gap.reading || gap.retry_at > now {
            return;
        }
        let to = gap.held.front().map_or(gap.known, |held| held.row.seq - 1);
        if to - head_seen > GAP_READ_MAX {
            // Nobody is given so much by pushes.
            c.head_seen = to;
            let members: Vec<Slot> = c.members.as_slice().iter().map(|m| m.slot).collect();
            for slot in members {
                self.resync(out, slot);
            }
            return self.go_on(out, conversation);
        }
        gap.reading = true;
        let range = (head_seen + 1, to.min(head_seen + GAP_PAGE));
        self.read(out, conversation, range, GAP_BYTES, ReadFor::Gap);
    }

    /// Missing events were read; none: neither store nor router has them now.
    pub(super) fn gap_read<O: Outbound>(
        &mut self,
        out: &mut O,
        conversation: ConversationId,
        rows: &[&EventRow],
    ) {
        let Some(at) = self.index.find(conversation) else {
            return;
        };
        let now = self.now;
        let Some(gap) = &mut self.index.get_mut(at).gap else {
            return;
        };
        gap.reading = false;
        if rows.is_empty() {
            gap.tries += 1;
            gap.retry_at = now + (500_000 << gap.tries.min(6));
            self.gaps.push(conversation);
            return;
        }
        gap.tries = 0;
        gap.retry_at = 0;
        for row in rows {
            match self.index.find(conversation) {
                Some(at) if self.index.get(at).head_seen + 1 == row.seq => {
                    let row = Arc::new((*row).clone());
                    self.deliver(out, at, &row, SessionId(0));
                }
                Some(_) => {}
                // The last one here has left; somebody may join.
                None => self.members_event(out, row),
            }
        }
        self.go_on(out, conversation);
    }

    pub(super) fn tick_gaps<O: Outbound>(&mut self, out: &mut O) {
        for conversation in std::mem::take(&mut self.gaps) {
            let retry_at = self
                .index
                .find(conversation)
                .and_then(|at| Some(self.index.get(at).gap.as_ref()?.retry_at));
            match retry_at {
                Some(at) if at > self.now => self.gaps.push(conversation),
                Some(_) => self.fetch_gap(out, conversation),
                None => {}
            }
        }
    }

    /// What a membership event means for the sessions here; it has been sent to those who were
    /// members before it.
    fn members_event<O: Outbound>(&mut self, out: &mut O, row: &EventRow) {
        let Some(members) = &row.members else { return };
        self.change_seen(row.conversation, row.seq);
        for change in &members.changes {
            let slots: Vec<Slot> = self.sessions.of_user(change.user).collect();
            if slots.is_empty() {
                continue;
            }
            for &slot in &slots {
                // What routers said before this event is old now.
                if let Some(opening) = self.sessions.get_mut(slot).and_then(|s| s.opening()) {
                    opening.stale = true;
                    if change.role == Role::None {
                        opening.left.entry(row.conversation).or_default().seq = row.seq;
                    }
                }
            }
            match change.role {
                Role::None => self.member_left(out, row, &slots),
                _ => self.member_joined(out, row, change.user, &slots),
            }
        }
    }

    /// A membership event from below the head, where this worker began after it. By now it may be
    /// old: whoever it doesn't fit has their conversations asked for again, and whoever was a member
    /// unheard is owed that and syncs.
    fn late_members_event<O: Outbound>(&mut self, out: &mut O, at: u32, row: &EventRow) {
        let Some(members) = &row.members else { return };
        self.change_seen(row.conversation, row.seq);
        for change in &members.changes {
            let slots: Vec<Slot> = self.sessions.of_user(change.user).collect();
            for slot in slots {
                let is_unlike = self.sessions.get(slot).is_some_and(|s| {
                    s.is(READY) && s.place_in(at).is_some() != change.role.is_member()
                });
                if !is_unlike {
                    continue;
                }
                self.refresh(out, slot);
                if change.role.is_member() {
                    // It may be over again, so that nothing names the conversation but the client's own cursor.
                    self.resync(out, slot);
                }
            }
        }
    }

    /// A membership event that was lost on its way, of a conversation that isn't here or has gone on since.
    /// Those it names sync again: they may have been members meanwhile and are owed that.
    pub(super) fn missed_members_event<O: Outbound>(&mut self, out: &mut O, row: &EventRow) {
        let changes = row.members.iter().flat_map(|members| &members.changes);
        for change in changes {
            for slot in self.sessions.of_user(change.user).collect::<Vec<_>>() {
                if let Some(opening) = self.sessions.get_mut(slot).and_then(|s| s.opening()) {
                    opening.stale = true;
                }
                self.refresh(out, slot);
                self.resync(out, slot);
            }
        }
    }

    fn member_left<O: Outbound>(&mut self, out: &mut O, row: &EventRow, slots: &[Slot]) {
        if planted::is(Mistake::ShownAfterRemoval) {
            return;
        }
        for &slot in slots {
            let Some(at) = self.index.find(row.conversation) else {
                return;
            };
            let is_behind = self.index.get(at).head() > row.seq;
            // This worker may be catching up past a removal after which the user was invited anew.
            let syncing = self.sessions.get_mut(slot).and_then(|s| s.syncing());
            if syncing.is_some_and(|s| s.is_member_after(row.conversation, row.seq)) {
                continue;
            }
            let Some(member) = self.leave(slot, at) else {
                continue;
            };
            let opening = self.sessions.get_mut(slot).and_then(|s| s.opening());
            if let Some(left) = opening.and_then(|o| o.left.get_mut(&row.conversation)) {
                left.covered = left.covered.max(member.covered);
            }
            // A sync under way still owes the events up to this one.
            if member.has(GATED)
                && let Some(syncing) = self.sessions.get_mut(slot).and_then(|s| s.syncing())
            {
                syncing.member_left(row.conversation, row.seq);
            }
            // More has happened than is known here: the user may be a member again.
            if is_behind && let Some(session) = self.sessions.get(slot) {
                out.members_changed(&mut std::iter::once(session.user));
                self.refresh(out, slot);
            }
        }
    }

    fn member_joined<O: Outbound>(
        &mut self,
        out: &mut O,
        row: &EventRow,
        user: UserId,
        slots: &[Slot],
    ) {
        let (now_s, stamp) = (seconds(self.now), stamp(self.now));
        let mut is_news = false;
        let kind = row.members.as_ref().map(|members| members.kind);
        for &slot in slots {
            if kind.is_some_and(|kind| self.is_withheld(slot, kind)) {
                // Opened again until the directory has said whom the user blocks.
                self.refresh(out, slot);
                continue;
            }
            let Some(session) = self.sessions.get(slot).filter(|s| s.is(READY)) else {
                continue;
            };
            let (is_synced, format) = (session.is(SYNCED), session.format);
            let at = self.index.find_or_add(row.conversation, row.seq, now_s);
            if self
                .sessions
                .get(slot)
                .is_some_and(|s| s.place_in(at).is_some())
            {
                continue;
            }
            is_news = true;
            // Its seq may be behind the head if a new router tells old events again.
            if !is_synced || self.index.get(at).head_seen != row.seq {
                self.join(slot, at, GATED, 0);
                self.resync(out, slot);
                continue;
            }
            self.join(slot, at, 0, row.seq - 1);
            if let Some(member) = self.index.member_mut(&self.sessions, slot, at) {
                member.since = stamp;
            }
            out.send(slot, &frames::event_frame(format, row));
            add(&self.metrics.deliveries, 1);
        }
        if is_news && let Some(&slot) = slots.first() {
            tracing::debug!(%user, conversation = %row.conversation, "a local user has joined");
            self.ask_open(out, slot, vec![row.conversation], || OpenFor::Joined);
        }
    }
}

/// Puts an event among those held back: ascending, without repeats, bounded. What doesn't fit is
/// read again, since the gap knows the highest seq.
fn hold(held: &mut VecDeque<Held>, event: Held) {
    let place = held.partition_point(|h| h.row.seq < event.row.seq);
    if held.get(place).is_some_and(|h| h.row.seq == event.row.seq) {
        return;
    }
    held.insert(place, event);
    held.truncate(HELD_MAX);
}
