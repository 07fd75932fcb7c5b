//! History: pages on demand, and which seq a message has.
//!
//! What a user may see is asked of the router each time: its answer is of the log, not of a cache.

use tidings_core::ids::{ConversationId, Seq, SessionId};
use tidings_core::ports::peers::Opened;
use tidings_core::record::Role;
use tidings_core::rows::EventRow;
use tidings_protocol::wire::{self, Feature};
use tidings_protocol::{ErrorCode, Page, encode_history_page, limits, message_id};

use super::frames::{Pack, page_events};
use super::modes::REDUCED_PAGE;
use super::opening::OpenFor;
use super::outbound::{Outbound, Slot};
use super::reads::ReadFor;
use super::{GatewayCore, Refusal};

/// Bodies read for one page.
const READ_BYTES: usize = 64 << 10;

/// How many of the newest events are searched for a message that `read` names.
const FIND_EVENTS: Seq = 1_000;

/// Events searched at once.
const FIND_PAGE: Seq = 250;

/// A `history` command, on its way.
pub(super) struct HistoryAsk {
    r#ref: u64,
    conversation: ConversationId,
    before: Seq,
    after: Seq,
    limit: u64,
    /// Known once the router has answered.
    answer: Covered,
}

/// What a page is about.
#[derive(Clone, Copy, Default)]
struct Covered {
    /// The range answered for, both ends included.
    from: Seq,
    to: Seq,
    /// What of it this user may see.
    visible: (Seq, Seq),
    head: Seq,
}

/// A search for the message that a `read` command names.
pub(super) struct Find {
    r#ref: u64,
    message_id: [u8; 16],
    /// The lowest seq to search.
    lowest: Seq,
    /// Up to which seq the pages before this one have searched from their start on.
    page_to: Seq,
    page_from: Seq,
}

impl GatewayCore {
    /// `history`: a page of events.
    pub(super) fn history<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        ask: &wire::History,
    ) {
        if !self.admit_ask(out, slot, r#ref) {
            return;
        }
        let problem = match ask {
            ask if ask.conversation == 0 => Some("`conversation` of `history` is missing or 0."),
            ask if ask.before > limits::NUMBER_MAX || ask.after > limits::NUMBER_MAX => {
                Some("`before` or `after` of `history` is beyond 2^53 - 1.")
            }
            _ => None,
        };
        if let Some(problem) = problem {
            return self.refuse(
                out,
                slot,
                Refusal::new(ErrorCode::BadRequest, problem, r#ref),
            );
        }
        let conversation = ConversationId(ask.conversation);
        let limit = match ask.limit {
            0 => limits::PAGE_DEFAULT,
            limit => limit.min(limits::PAGE_MAX),
        };
        let limit = match self.is_normal(Feature::History) {
            true => limit,
            false => limit.min(REDUCED_PAGE),
        };
        let (before, after, limit) = (ask.before, ask.after, u64::from(limit));
        self.ask_open(out, slot, vec![conversation], || {
            let answer = Covered::default();
            OpenFor::History(Box::new(HistoryAsk {
                r#ref,
                conversation,
                before,
                after,
                limit,
                answer,
            }))
        });
    }

    /// The router said what the user may see.
    pub(super) fn history_state<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        mut ask: HistoryAsk,
        state: Option<&Opened>,
    ) {
        let Some(id) = self.sessions.get(slot).map(|s| s.id) else {
            return;
        };
        let Some(state) = state else {
            return self.history_delayed(out, slot, &ask);
        };
        let grant = &state.grant;
        if grant.role == Role::None && grant.visible_to == 0 {
            return self.forbid(out, slot, ask.r#ref, ask.conversation);
        }
        let last = if grant.role == Role::None {
            grant.visible_to
        } else {
            state.head
        };
        let (from, to) = match ask.before {
            0 => (ask.after + 1, (ask.after + ask.limit).min(state.head)),
            before => {
                let to = (before - 1).min(state.head);
                ((to + 1).saturating_sub(ask.limit).max(1), to)
            }
        };
        let visible = (from.max(grant.visible_from), to.min(last));
        ask.answer = Covered {
            from,
            to,
            visible,
            head: last,
        };
        if visible.0 > visible.1 {
            return self.history_page(out, slot, &ask, &[]);
        }
        let conversation = ask.conversation;
        self.read(
            out,
            conversation,
            visible,
            READ_BYTES,
            ReadFor::History(id, Box::new(ask)),
        );
    }

    /// A part of the page was read, from its first visible seq on.
    pub(super) fn history_read<O: Outbound>(
        &mut self,
        out: &mut O,
        session: SessionId,
        mut ask: HistoryAsk,
        (from, to): (Seq, Seq),
        rows: &[&EventRow],
    ) {
        let Some(slot) = self.sessions.slot_of(session) else {
            return;
        };
        let Some(last) = rows.last() else {
            return self.history_delayed(out, slot, &ask);
        };
        if last.seq < to && ask.before != 0 {
            // The newest below `before` are wanted, and not all fit: about as many as did, from the
            // end of the range.
            let fitted = last.seq + 1 - from;
            let from = (to + 1 - (fitted * 3 / 4).max(1)).max(from + 1);
            ask.answer.from = from;
            ask.answer.visible.0 = from;
            let conversation = ask.conversation;
            return self.read(
                out,
                conversation,
                (from, to),
                READ_BYTES,
                ReadFor::History(session, Box::new(ask)),
            );
        }
        if last.seq < to {
            ask.answer.to = last.seq;
        }
        self.history_page(out, slot, &ask, rows);
    }

    fn history_page<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        ask: &HistoryAsk,
        rows: &[&EventRow],
    ) {
        let Some(format) = self.sessions.get(slot).map(|s| s.format) else {
            return;
        };
        let seen = self.rows_for(slot, rows);
        let shown = seen.as_ref().map(|seen| seen.iter().collect::<Vec<_>>());
        let mut rows = shown.as_deref().unwrap_or(rows);
        let Covered {
            mut from,
            mut to,
            head,
            ..
        } = ask.answer;
        let events = loop {
            let (events, last) = page_events(format, Page::History, rows);
            if last == rows.last().map(|row| row.seq) {
                break events;
            }
            // Inflated for JSON the page outgrew a frame.
            if ask.before == 0 {
                to = last.unwrap_or(to);
                break events;
            }
            rows = &rows[rows.len() / 2..];
            from = rows.first().map_or(from, |row| row.seq);
        };
        let page = wire::HistoryPage {
            conversation: ask.conversation.0,
            from,
            to,
            events: Vec::new(),
            head,
        };
        let mut pack = Pack::default();
        pack.push(format, |out| {
            encode_history_page(format, ask.r#ref, page, &events, out)
        });
        if let Some(frame) = pack.take(format)
            && self
                .sessions
                .get(slot)
                .is_some_and(|s| !s.is(super::session::LAGGING))
        {
            out.send(slot, &frame);
        }
    }

    fn history_delayed<O: Outbound>(&mut self, out: &mut O, slot: Slot, ask: &HistoryAsk) {
        let refusal = Refusal::new(
            ErrorCode::HistoryDelayed,
            "This part cannot be read now.",
            ask.r#ref,
        );
        self.refuse(
            out,
            slot,
            Refusal {
                conversation: ask.conversation,
                retry_after_ms: 1000,
                ..refusal
            },
        );
    }

    /// Starts searching the newest events for a message.
    pub(super) fn find<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        conversation: ConversationId,
        message_id: [u8; 16],
    ) {
        let Some(id) = self.sessions.get(slot).map(|s| s.id) else {
            return;
        };
        let Some(at) = self.index.find(conversation) else {
            return;
        };
        let head = self.index.get(at).head_seen;
        let lowest = (head + 1).saturating_sub(FIND_EVENTS).max(1);
        self.find_page(
            out,
            id,
            conversation,
            Find {
                r#ref,
                message_id,
                lowest,
                page_to: head,
                page_from: 0,
            },
        );
    }

    fn find_page<O: Outbound>(
        &mut self,
        out: &mut O,
        session: SessionId,
        conversation: ConversationId,
        find: Find,
    ) {
        let to = find.page_to;
        let from = (to + 1).saturating_sub(FIND_PAGE).max(find.lowest);
        if to < find.lowest {
            return self.not_found(out, session, conversation, find.r#ref);
        }
        let find = Box::new(Find {
            page_from: from,
            ..find
        });
        self.read(
            out,
            conversation,
            (from, to),
            READ_BYTES,
            ReadFor::Find(session, find),
        );
    }

    fn not_found<O: Outbound>(
        &mut self,
        out: &mut O,
        session: SessionId,
        conversation: ConversationId,
        r#ref: u64,
    ) {
        let Some(slot) = self.sessions.slot_of(session) else {
            return;
        };
        let refusal = Refusal::new(
            ErrorCode::BadCursor,
            "No such message among the newest 1,000.",
            r#ref,
        );
        self.refuse(
            out,
            slot,
            Refusal {
                conversation,
                ..refusal
            },
        );
    }

    /// Events were searched.
    pub(super) fn find_read<O: Outbound>(
        &mut self,
        out: &mut O,
        session: SessionId,
        find: Find,
        (_, to): (Seq, Seq),
        rows: &[&EventRow],
    ) {
        let Some(slot) = self.sessions.slot_of(session) else {
            return;
        };
        let is_it = |row: &&&EventRow| {
            message_id(row.conversation.0, row.sender.0, row.grant, row.counter) == find.message_id
        };
        let Some(last) = rows.last() else {
            let refusal = Refusal::new(
                ErrorCode::HistoryDelayed,
                "This part cannot be read now.",
                find.r#ref,
            );
            return self.refuse(
                out,
                slot,
                Refusal {
                    retry_after_ms: 1000,
                    ..refusal
                },
            );
        };
        let conversation = last.conversation;
        if let Some(row) = rows.iter().find(is_it) {
            return self.cursor_moved(out, slot, find.r#ref, conversation, row.seq, true);
        }
        if last.seq < to {
            let find_rest = Box::new(Find { ..find });
            return self.read(
                out,
                conversation,
                (last.seq + 1, to),
                READ_BYTES,
                ReadFor::Find(session, find_rest),
            );
        }
        let page_to = find.page_from - 1;
        self.find_page(out, session, conversation, Find { page_to, ..find });
    }
}
