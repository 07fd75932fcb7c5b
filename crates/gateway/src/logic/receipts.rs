//! Cursors from clients, receipts to clients, and typing.

use tidings_core::ids::{ConversationId, Micros, Seq, SessionId, UserId};
use tidings_core::ports::peers::ToRouter;
use tidings_core::rows::CursorRow;
use tidings_protocol::wire::{self, Feature, update};
use tidings_protocol::{ErrorCode, Format};

use super::index::{BLOCKING, GATED, HOLE, JSON, stamp};
use super::outbound::{Outbound, Slot};
use super::{GatewayCore, Refusal, frames};

/// Receipts in one update.
const RECEIPTS_MAX: usize = 256;

/// In conversations with more sessions here, typing isn't told: it would cost more than it is worth.
const TYPING_SESSIONS_MAX: usize = 256;

/// Cursors kept between two flushes; one more is flushed at once.
const CURSORS_MAX: usize = 64 << 10;

/// Cursors beyond the head known here that wait for it; one more is refused at once.
const EARLY_CURSORS_MAX: usize = 4096;

/// With more of them than this they wait for the next tick.
const EARLY_CURSORS_FEW: usize = 64;

/// How long they wait. An event is on its way to each gateway for itself: who has heard of a message
/// elsewhere, or has synced it, may be ahead of this one; so may its writer, while the store is slow.
const EARLY_WITHIN: Micros = 5_000_000;

/// A cursor that is ahead of what this gateway has heard.
pub(super) struct EarlyCursor {
    session: SessionId,
    r#ref: u64,
    conversation: ConversationId,
    seq: Seq,
    is_read: bool,
    until: Micros,
}

/// Cursors in one message to a router.
const CURSORS_PER_MESSAGE: usize = 1_000;

impl GatewayCore {
    /// `delivered`: this device has stored all up to a seq.
    pub(super) fn delivered<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        delivered: &wire::Delivered,
    ) {
        let conversation = ConversationId(delivered.conversation);
        self.cursor_moved(out, slot, r#ref, conversation, delivered.seq, false);
    }

    /// `read`: the user has read all up to a message, named by its seq or its id.
    pub(super) fn read_up_to<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        read: &wire::Read,
    ) {
        let conversation = ConversationId(read.conversation);
        if read.seq != 0 {
            return self.cursor_moved(out, slot, r#ref, conversation, read.seq, true);
        }
        let Ok(message_id) = <[u8; 16]>::try_from(&read.message_id[..]) else {
            let refusal = Refusal::new(
                ErrorCode::BadRequest,
                "`read` names neither a seq nor a message.",
                r#ref,
            );
            return self.refuse(out, slot, refusal);
        };
        if self.place(slot, conversation).is_none() {
            return self.forbid(out, slot, r#ref, conversation);
        }
        if self.admit_ask(out, slot, r#ref) {
            self.find(out, slot, r#ref, conversation, message_id);
        }
    }

    /// The conversation's index entry, if the session's user is a member.
    fn place(&self, slot: Slot, conversation: ConversationId) -> Option<u32> {
        let at = self.index.find(conversation)?;
        self.sessions.get(slot)?.place_in(at).map(|_| at)
    }

    pub(super) fn cursor_moved<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        conversation: ConversationId,
        seq: Seq,
        is_read: bool,
    ) {
        let Some(at) = self.place(slot, conversation) else {
            return self.forbid(out, slot, r#ref, conversation);
        };
        let c = self.index.get(at);
        let head_seen = c.head_seen;
        if seq > c.head() {
            let Some(session) = self.sessions.get(slot).map(|s| s.id) else {
                return;
            };
            if self.early_cursors.len() >= EARLY_CURSORS_MAX {
                return self.refuse_cursor(out, slot, r#ref, conversation);
            }
            return self.early_cursors.push(EarlyCursor {
                session,
                r#ref,
                conversation,
                seq,
                is_read,
                until: self.now + EARLY_WITHIN,
            });
        }
        let Some(user) = self.sessions.get(slot).map(|s| s.user) else {
            return;
        };
        if !is_read && let Some(member) = self.index.member_mut(&self.sessions, slot, at) {
            if member.has(HOLE) && seq >= member.covered {
                member.flags &= !HOLE;
            }
            member.covered = member.covered.max(seq);
            let moved = if member.covered >= head_seen {
                0
            } else {
                stamp(self.now)
            };
            if member.since != 0 {
                member.since = moved;
                member.tries = 0;
            }
        }
        if self.is_blocking(slot, conversation) {
            // The other would be told of it. What waited for the user is cleared all the same.
            let cursor = CursorRow {
                conversation,
                user,
                delivered: seq,
                read: 0,
            };
            return out.cursors_moved(&[cursor]);
        }
        if self.cursors.len() >= CURSORS_MAX {
            self.flush_cursors(out);
        }
        let cursor = self
            .cursors
            .entry((conversation, user))
            .or_insert(CursorRow {
                conversation,
                user,
                delivered: 0,
                read: 0,
            });
        let moved = if is_read {
            &mut cursor.read
        } else {
            &mut cursor.delivered
        };
        *moved = seq.max(*moved);
    }

    fn refuse_cursor<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        conversation: ConversationId,
    ) {
        let refusal = Refusal::new(
            ErrorCode::BadCursor,
            "A cursor beyond the head of its conversation.",
            r#ref,
        );
        let refusal = Refusal {
            conversation,
            ..refusal
        };
        self.refuse(out, slot, refusal);
    }

    /// Takes the early cursors whose heads have come, and refuses those that have waited long enough.
    pub(super) fn settle_early_cursors<O: Outbound>(&mut self, out: &mut O, is_tick: bool) {
        let early = self.early_cursors.len();
        if early == 0 || (early > EARLY_CURSORS_FEW && !is_tick) {
            return;
        }
        for one in std::mem::take(&mut self.early_cursors) {
            let Some(slot) = self.sessions.slot_of(one.session) else {
                continue;
            };
            let at = self.index.find(one.conversation);
            let is_here = at.is_none_or(|at| one.seq <= self.index.get(at).head());
            let (r#ref, conversation) = (one.r#ref, one.conversation);
            if is_here {
                self.cursor_moved(out, slot, r#ref, conversation, one.seq, one.is_read);
            } else if one.until <= self.now {
                self.refuse_cursor(out, slot, r#ref, conversation);
            } else {
                self.early_cursors.push(one);
            }
        }
    }

    /// All cursors that moved since the last flush go to their routers.
    pub(super) fn flush_cursors<O: Outbound>(&mut self, out: &mut O) {
        if self.cursors.is_empty() {
            return;
        }
        let mut rows: Vec<CursorRow> = self.cursors.drain().map(|(_, row)| row).collect();
        if self.cursors.capacity() > 1024 {
            self.cursors.shrink_to_fit();
        }
        out.cursors_moved(&rows);
        rows.sort_unstable_by_key(|row| {
            (
                self.settings.partition_of(row.conversation),
                row.conversation,
                row.user,
            )
        });
        for same in rows.chunk_by(|a, b| {
            self.settings.partition_of(a.conversation) == self.settings.partition_of(b.conversation)
        }) {
            for chunk in same.chunks(CURSORS_PER_MESSAGE) {
                self.to_router(
                    out,
                    chunk[0].conversation,
                    ToRouter::Cursors(chunk.to_vec()),
                );
            }
        }
    }

    /// Cursors of members moved: told to the sessions of the conversation.
    pub(super) fn receipts<O: Outbound>(
        &mut self,
        out: &mut O,
        conversation: ConversationId,
        cursors: &[CursorRow],
    ) {
        if !self.holds_receipts(conversation, cursors) {
            self.tell_receipts(out, conversation, cursors);
        }
    }

    pub(super) fn tell_receipts<O: Outbound>(
        &self,
        out: &mut O,
        conversation: ConversationId,
        cursors: &[CursorRow],
    ) {
        for chunk in cursors.chunks(RECEIPTS_MAX) {
            let receipt = |c: &CursorRow| wire::Receipt {
                user: c.user.0,
                delivered: c.delivered,
                read: c.read,
            };
            let receipts = wire::Receipts {
                conversation: conversation.0,
                receipts: chunk.iter().map(receipt).collect(),
            };
            self.tell(
                out,
                conversation,
                UserId(0),
                usize::MAX,
                &update::Update::Receipts(receipts),
            );
        }
    }

    /// `typing` of a client.
    pub(super) fn type_on<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        typing: &wire::Typing,
    ) {
        let conversation = ConversationId(typing.conversation);
        if self.place(slot, conversation).is_none() {
            return self.forbid(out, slot, r#ref, conversation);
        }
        if !self.admit_ask(out, slot, r#ref)
            || self.is_blocking(slot, conversation)
            || !self.is_normal(Feature::Typing)
        {
            return;
        }
        let Some(user) = self.sessions.get(slot).map(|s| s.user) else {
            return;
        };
        self.to_router(
            out,
            conversation,
            ToRouter::Typing {
                conversation,
                user,
                on: typing.on,
            },
        );
    }

    /// Somebody is typing: told to the others.
    pub(super) fn typing<O: Outbound>(
        &mut self,
        out: &mut O,
        conversation: ConversationId,
        user: UserId,
        on: bool,
    ) {
        if !self.is_normal(Feature::Typing) {
            return;
        }
        let typing = wire::TypingUpdate {
            conversation: conversation.0,
            user: user.0,
            on,
        };
        self.tell(
            out,
            conversation,
            user,
            TYPING_SESSIONS_MAX,
            &update::Update::Typing(typing),
        );
    }

    /// Sends an update that nothing rests on to the live sessions of a conversation, but for one
    /// user's, and for those of a user who has blocked the other.
    fn tell<O: Outbound>(
        &self,
        out: &mut O,
        conversation: ConversationId,
        but: UserId,
        sessions_max: usize,
        update: &update::Update,
    ) {
        let Some(at) = self.index.find(conversation) else {
            return;
        };
        let members = self.index.get(at).members.as_slice();
        if members.len() > sessions_max {
            return;
        }
        let mut encoded = [None, None];
        for member in members {
            if member.has(GATED)
                || member.has(BLOCKING)
                || but.0 != 0
                    && self
                        .sessions
                        .get(member.slot)
                        .is_some_and(|s| s.user == but)
            {
                continue;
            }
            let json = member.has(JSON);
            let frame = encoded[usize::from(json)].get_or_insert_with(|| {
                frames::update_frame(
                    if json { Format::Json } else { Format::Proto },
                    0,
                    update.clone(),
                )
            });
            out.send(member.slot, frame);
        }
    }
}
