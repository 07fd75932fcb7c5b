//! Sync: from the client's cursors to "everything new is pushed".
//!
//! The routers have said how each conversation stands. Each becomes an item; items are read and
//! sent as pages, many small ones in one frame, as fast as the client reads and no faster. A
//! conversation's live events are held back (its member entry is gated) until its last page has
//! reached what was handed to the others meanwhile; then it is live, with nothing between.

use std::collections::{HashMap, VecDeque};

use tidings_core::ids::{ConversationId, Micros, Seq, SessionId};
use tidings_core::planted::{self, Mistake};
use tidings_core::ports::peers::Opened;
use tidings_core::record::{ConversationKind, Role};
use tidings_core::rows::EventRow;
use tidings_protocol::wire::{self, Feature, update};
use tidings_protocol::{ErrorCode, Page, encode_sync_page, limits};

use super::frames::{Pack, conversation_kind, page_events, role};
use super::index::{GATED, HOLE};
use super::metrics::add;
use super::modes::REDUCED_PAGE;
use super::opening::{OpenFor, requests_of};
use super::outbound::{Outbound, Slot};
use super::reads::ReadFor;
use super::session::{LAGGING, Opening, SYNCED};
use super::{GatewayCore, Refusal};

/// Bodies read at once for one page.
const READ_BYTES: usize = 32 << 10;

/// Bytes that may be on their way from the store to one session.
const IN_FLIGHT_MAX: usize = 64 << 10;

/// Nothing more is read for a session while so much waits for its socket: well under its queue's
/// bound, a page may still come on top.
const QUEUED_MAX: usize = 32 << 10;

/// A frame of pages is sent when it has this many bytes.
const FRAME_BYTES: usize = 32 << 10;

/// What an event costs besides its body, roughly, to judge how much is in flight.
const EVENT_BYTES: u64 = 200;

/// Failed reads of one conversation before its sync goes on without.
const TRIES_MAX: u8 = 3;

/// How often conversations that were joined meanwhile are added to one sync.
const EXTRA_ROUNDS: u8 = 4;

/// A sync under way.
pub(super) struct Syncing {
    r#ref: u64,
    queue: VecDeque<Item>,
    active: Vec<Item>,
    /// Items whose read failed, until the next tick.
    waiting: Vec<Item>,
    page: u64,
    pack: Pack,
    /// Items whose last page is in the pack.
    packed: Vec<Item>,
    conversations: u32,
    complete: bool,
    rounds: u8,
    /// Open requests for conversations joined meanwhile.
    outstanding: u32,
}

/// One conversation's part.
struct Item {
    conversation: ConversationId,
    kind: ConversationKind,
    role: Role,
    grant: Seq,
    visible_from: Seq,
    read: Seq,
    /// The next seq to send, and the last one known to be there.
    from: Seq,
    to: Seq,
    missing_from: Seq,
    /// The user's last event here; 0: the user is a member.
    end: Seq,
    /// The head when the router said who may see what.
    known: Seq,
    tries: u8,
    /// Whether a page has been sent.
    told: bool,
    /// Whether the client was told that it lacks older events.
    lacks: bool,
}

impl Item {
    fn bytes(&self) -> usize {
        (((self.to + 1).saturating_sub(self.from)) * EVENT_BYTES).min(READ_BYTES as u64) as usize
    }
}

impl Syncing {
    /// Whether the router's answer about a conversation in which the user is a member already
    /// counts what happened at `seq`.
    pub(super) fn is_member_after(&self, conversation: ConversationId, seq: Seq) -> bool {
        let mut items = (self.packed.iter())
            .chain(&self.queue)
            .chain(&self.active)
            .chain(&self.waiting);
        items.any(|item| item.conversation == conversation && item.end == 0 && item.known >= seq)
    }

    /// The user is no longer a member of a conversation that hasn't been sent whole: the event at
    /// `seq` is the last to send.
    pub(super) fn member_left(&mut self, conversation: ConversationId, seq: Seq) {
        let items = self
            .packed
            .iter_mut()
            .chain(&mut self.queue)
            .chain(&mut self.active)
            .chain(&mut self.waiting);
        for item in items.filter(|item| item.conversation == conversation && item.end == 0) {
            item.end = seq;
            item.to = item.to.min(seq);
            item.role = Role::None;
            item.grant = 0;
        }
    }
}

impl GatewayCore {
    /// `sync`: what is missing behind these cursors?
    pub(super) fn sync<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        sync: wire::Sync,
    ) {
        if !self.admit_ask(out, slot, r#ref) {
            return;
        }
        if sync.cursors.len() > limits::SYNC_CURSORS_MAX {
            let refusal = Refusal::new(
                ErrorCode::TooLong,
                "More cursors than a sync may have.",
                r#ref,
            );
            return self.refuse(out, slot, refusal);
        }
        if sync.epoch != self.settings.epoch && !sync.cursors.is_empty() {
            // The cursors are of a log that is lost: the client forgets them and asks again.
            let done = wire::SyncDone {
                epoch: self.settings.epoch,
                conversations: 0,
                complete: false,
                reset: true,
            };
            return self.update(out, slot, r#ref, update::Update::SyncDone(done));
        }
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        if session.is(LAGGING) {
            // Told to sync when it has drained.
            return;
        }
        if session.is(SYNCED) || session.syncing().is_some() {
            // Asked again: these cursors count, whatever was on its way.
            self.gate_all(slot);
        }
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        session.rare().sync_asked = Some((r#ref, sync));
        session.due = 0;
        if session.opening().is_none() {
            return self.begin_opening(out, slot);
        }
        self.check_opening(out, slot);
    }

    /// Starts the sync that was asked, if there is one and the routers have answered.
    pub(super) fn start_sync<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let Some(rare) = &mut session.rare else {
            return;
        };
        let (Some(opening), Some((_, sync))) = (&mut rare.opening, &rare.sync_asked) else {
            return;
        };
        if opening.stale && opening.tries < TRIES_MAX {
            let (tries, left) = (opening.tries + 1, std::mem::take(&mut opening.left));
            rare.opening = None;
            self.begin_opening(out, slot);
            if let Some(opening) = self.sessions.get_mut(slot).and_then(|s| s.opening()) {
                opening.tries = tries;
                opening.left = left;
            }
            return;
        }
        // Conversations that only the client names: it was a member once, or the list was late. It doesn't
        // name what came in a sync before this one after it had asked for this one.
        let named = sync.cursors.iter().map(|c| ConversationId(c.conversation));
        let named = named.chain(opening.left.keys().copied());
        let mut extra: Vec<ConversationId> = named
            .filter(|c| opening.list.binary_search(c).is_err())
            .collect();
        if !extra.is_empty() {
            extra.sort_unstable();
            extra.dedup();
            opening.list.extend(&extra);
            opening.list.sort_unstable();
            opening.outstanding += requests_of(&self.settings, &extra);
            return self.ask_open(out, slot, extra, || OpenFor::Session);
        }
        let (Some(opening), Some((r#ref, sync))) = (rare.opening.take(), rare.sync_asked.take())
        else {
            return;
        };
        self.begin_pages(out, slot, r#ref, &sync, opening);
    }

    fn begin_pages<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        sync: &wire::Sync,
        mut opening: Opening,
    ) {
        opening.apply_removals();
        let cursors: HashMap<ConversationId, Seq> = sync
            .cursors
            .iter()
            .map(|c| (ConversationId(c.conversation), c.seq))
            .collect();
        let page = match sync.page {
            0 => limits::PAGE_DEFAULT,
            page => page.min(limits::PAGE_MAX),
        };
        let page = match self.is_normal(Feature::History) {
            true => page,
            false => page.min(REDUCED_PAGE),
        };
        let mut syncing = Syncing {
            r#ref,
            queue: VecDeque::with_capacity(opening.states.len()),
            active: Vec::new(),
            waiting: Vec::new(),
            page: u64::from(page),
            pack: Pack::default(),
            packed: Vec::new(),
            conversations: 0,
            complete: opening.later.is_empty() && !opening.partial,
            rounds: 0,
            outstanding: 0,
        };
        add(&self.metrics.syncs, 1);
        for &conversation in &opening.later {
            self.refuse_item(out, slot, r#ref, conversation, ErrorCode::Unavailable);
        }
        for state in &opening.states {
            let given = opening
                .left
                .get(&state.conversation)
                .map(|left| left.covered);
            let cursor = cursors.get(&state.conversation).copied();
            let cursor = cursor.or(given.filter(|&covered| covered > 0));
            if let Some(item) = self.item(out, slot, &syncing, state, cursor) {
                syncing.queue.push_back(item);
            }
        }
        if let Some(session) = self.sessions.get_mut(slot) {
            session.rare().sync = Some(syncing);
        }
        self.pump(out, slot);
    }

    fn refuse_item<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        conversation: ConversationId,
        code: ErrorCode,
    ) {
        let refusal = Refusal::new(code, "This conversation cannot be synced now.", r#ref);
        let retry_after_ms = if code.retry() { 1000 } else { 0 };
        self.refuse(
            out,
            slot,
            Refusal {
                conversation,
                retry_after_ms,
                ..refusal
            },
        );
    }

    /// What one conversation's state and the client's cursor leave to send.
    fn item<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        syncing: &Syncing,
        state: &Opened,
        cursor: Option<Seq>,
    ) -> Option<Item> {
        let grant = &state.grant;
        let visible_from = match planted::is(Mistake::ShownBeforeJoin) {
            true => 1,
            false => grant.visible_from,
        };
        let at = self.index.find(state.conversation);
        let (to, end) = match grant.role {
            // Never a member: the same as no such conversation. Whoever didn't name it was made a member just now
            // and is told when the log has heard of it.
            Role::None if grant.visible_to == 0 => {
                if cursor.is_some() {
                    self.refuse_item(
                        out,
                        slot,
                        syncing.r#ref,
                        state.conversation,
                        ErrorCode::Forbidden,
                    );
                }
                return None;
            }
            // Known to be over by the client's cursor, or not known at all: nothing to tell.
            Role::None if cursor.is_none_or(|c| c >= grant.visible_to) => return None,
            Role::None => (grant.visible_to, grant.visible_to),
            _ => (
                at.map_or(state.head, |at| {
                    self.index.get(at).head_seen.max(state.head)
                }),
                0,
            ),
        };
        if cursor.is_some_and(|c| c > to) {
            self.refuse_item(
                out,
                slot,
                syncing.r#ref,
                state.conversation,
                ErrorCode::BadCursor,
            );
        }
        // A client may know more than a router that is behind: the user's removal may be among that,
        // and is met only by reading on from the router's answer. What it repeats is dropped.
        let certain = if end == 0 { state.head } else { to };
        let first = cursor.unwrap_or(0).min(certain).min(to) + 1;
        let first = first.max(visible_from);
        // What came after the router's answer may hold the user's removal: it is read through, not
        // left out, so that nothing behind a removal is shown.
        let certain = to.min(state.head.max(end));
        let newest = (certain + 1).saturating_sub(syncing.page).max(first);
        Some(Item {
            conversation: state.conversation,
            kind: state.kind,
            role: grant.role,
            grant: if grant.role.may_write() {
                grant.grant
            } else {
                0
            },
            visible_from,
            read: state.cursor.read,
            from: newest,
            to,
            missing_from: if newest > first { first } else { 0 },
            end,
            known: state.head,
            tries: 0,
            told: false,
            lacks: false,
        })
    }

    /// Sends and reads as much as the session takes now.
    pub(super) fn pump<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        loop {
            let Some(session) = self.sessions.get_mut(slot) else {
                return;
            };
            let (id, lagging) = (session.id, session.is(LAGGING));
            let Some(syncing) = session.syncing() else {
                return;
            };
            if lagging {
                return;
            }
            let queued = out.queued_bytes(slot) + syncing.pack.bytes();
            let in_flight: usize = syncing.active.iter().map(Item::bytes).sum();
            let Some(next) = syncing.queue.front() else {
                if !syncing.active.is_empty() || syncing.outstanding > 0 {
                    return;
                }
                if syncing.pack.bytes() > 0 {
                    self.flush_pack(out, slot);
                    continue;
                }
                return self.finish_sync(out, slot);
            };
            if queued > QUEUED_MAX {
                // Another turn, or the socket's word that it took all, goes on from here.
                self.resumes.push(id);
                return;
            }
            let bytes = next.bytes();
            if bytes > 0 && !syncing.active.is_empty() && in_flight + bytes > IN_FLIGHT_MAX {
                return;
            }
            let Some(item) = syncing.queue.pop_front() else {
                return;
            };
            if bytes == 0 {
                self.page(out, slot, item, &[]);
                continue;
            }
            let (conversation, range) = (item.conversation, (item.from, item.to));
            syncing.active.push(item);
            self.read(out, conversation, range, READ_BYTES, ReadFor::Sync(id));
        }
    }

    /// Sends the pages packed in this turn, so that none waits for a slow read of another.
    pub(super) fn flush_packs<O: Outbound>(&mut self, out: &mut O) {
        for session in std::mem::take(&mut self.unflushed) {
            if let Some(slot) = self.sessions.slot_of(session) {
                self.flush_pack(out, slot);
                self.pump(out, slot);
            }
        }
    }

    /// Sends the frame of pages under way. Only then are their conversations live: an event pushed
    /// before would overtake its page.
    fn flush_pack<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let format = session.format;
        let Some(syncing) = session.syncing() else {
            return;
        };
        let Some(frame) = syncing.pack.take(format) else {
            return;
        };
        let packed = std::mem::take(&mut syncing.packed);
        out.send(slot, &frame);
        for item in packed {
            self.go_live(slot, item);
        }
    }

    /// The item's conversation goes live for the session, or, if something came meanwhile, its
    /// item goes on.
    fn go_live(&mut self, slot: Slot, mut item: Item) {
        let at = self.live_place(slot, &item);
        let target = match at {
            Some(at) => self.index.get(at).head_seen,
            None => item.end,
        };
        if item.from <= target {
            item.to = target;
            if let Some(syncing) = self.sessions.get_mut(slot).and_then(|s| s.syncing()) {
                syncing.queue.push_front(item);
            }
        } else if let Some(at) = at
            && let Some(member) = self.index.member_mut(&self.sessions, slot, at)
        {
            member.flags &= !GATED;
            tracing::trace!(slot, conversation = %item.conversation, "live");
        }
    }

    /// Where the session is a member by the item's own membership. Of one that has ended only the
    /// past is owed: who has joined again meanwhile is given the rest by another item.
    fn live_place(&self, slot: Slot, item: &Item) -> Option<u32> {
        let at = self.index.find(item.conversation)?;
        let session = self.sessions.get(slot)?;
        (item.end == 0 && session.place_in(at).is_some()).then_some(at)
    }

    /// Events of one conversation were read.
    pub(super) fn sync_read<O: Outbound>(
        &mut self,
        out: &mut O,
        session: SessionId,
        conversation: ConversationId,
        from: Seq,
        rows: &[&EventRow],
    ) {
        let Some(slot) = self.sessions.slot_of(session) else {
            return;
        };
        let Some(syncing) = self.sessions.get_mut(slot).and_then(|s| s.syncing()) else {
            return;
        };
        let Some(found) = syncing
            .active
            .iter()
            .position(|i| i.conversation == conversation && i.from == from)
        else {
            return;
        };
        let mut item = syncing.active.swap_remove(found);
        if !rows.is_empty() {
            item.tries = 0;
            self.leaves_in_page(out, slot, &mut item, rows);
            // The user may have left meanwhile.
            let visible = rows.partition_point(|row| row.seq <= item.to);
            self.page(out, slot, item, &rows[..visible]);
        } else if item.tries + 1 < TRIES_MAX {
            item.tries += 1;
            syncing.waiting.push(item);
        } else {
            // The client learns what it lacks and asks for it later; live events go on.
            let r#ref = syncing.r#ref;
            syncing.complete = false;
            if item.missing_from == 0 {
                item.missing_from = item.from;
            }
            item.from = item.to + 1;
            self.refuse_item(out, slot, r#ref, conversation, ErrorCode::HistoryDelayed);
            self.page(out, slot, item, &[]);
        }
        self.pump(out, slot);
    }

    /// The user's removal may be heard of first in a page, when the event itself was lost: nothing
    /// behind it is the user's to see.
    fn leaves_in_page<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        item: &mut Item,
        rows: &[&EventRow],
    ) {
        let Some(user) = self.sessions.get(slot).map(|s| s.user) else {
            return;
        };
        let removes = |row: &&&EventRow| {
            let members = row.members.as_deref().filter(|_| row.seq > item.known);
            let mut changes = members.into_iter().flat_map(|m| &m.changes);
            changes.any(|c| c.user == user && c.role == Role::None)
        };
        let Some(seq) = rows.iter().find(removes).map(|row| row.seq) else {
            return;
        };
        if item.end != 0 {
            return;
        }
        item.end = seq;
        item.to = item.to.min(seq);
        item.role = Role::None;
        item.grant = 0;
        if let Some(at) = self.index.find(item.conversation) {
            self.leave(slot, at);
        }
        // The user may be a member again by now.
        out.members_changed(&mut std::iter::once(user));
        self.refresh(out, slot);
    }

    /// Adds a page to the frame under way, and goes on with what came meanwhile.
    fn page<O: Outbound>(&mut self, out: &mut O, slot: Slot, mut item: Item, rows: &[&EventRow]) {
        let Some(session) = self.sessions.get(slot) else {
            return;
        };
        let format = session.format;
        let at = self.live_place(slot, &item);
        // The last one that can be sent, and the last one heard of: the client has all only with that one, which is
        // on its way to all sessions here, or its store is away.
        let (target, head) = match at {
            Some(at) => {
                let conversation = self.index.get(at);
                let target = conversation.head_seen.max(item.to);
                (target, conversation.head().max(target))
            }
            None => (item.to, item.to),
        };
        let seen = self.rows_for(slot, rows);
        let shown = seen.as_ref().map(|seen| seen.iter().collect::<Vec<_>>());
        let (events, last) = page_events(format, Page::Sync, shown.as_deref().unwrap_or(rows));
        if let Some(last) = last {
            item.from = last + 1;
        }
        let page = wire::SyncPage {
            conversation: item.conversation.0,
            kind: conversation_kind(item.kind).into(),
            title: rows
                .iter()
                .rev()
                .find_map(|r| r.members.as_ref())
                .map_or(String::new(), |m| m.title.clone()),
            head,
            grant: item.grant,
            role: role(item.role).into(),
            visible_from: item.visible_from,
            read: item.read,
            events: Vec::new(),
            missing_from: std::mem::take(&mut item.missing_from),
        };
        item.lacks |= page.missing_from != 0;
        if let Some(at) = at
            && let Some(member) = self.index.member_mut(&self.sessions, slot, at)
        {
            member.covered = member.covered.max(item.from - 1);
            // What the client was told it lacks stays lacking, whatever it confirms from now on.
            member.flags = if item.lacks {
                member.flags | HOLE
            } else {
                member.flags & !HOLE
            };
        }
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let id = session.id;
        let Some(syncing) = session.syncing() else {
            return;
        };
        let r#ref = syncing.r#ref;
        syncing.conversations += u32::from(!item.told);
        item.told = true;
        if syncing.pack.bytes() == 0 {
            self.unflushed.push(id);
        }
        syncing.pack.push(format, |out| {
            encode_sync_page(format, r#ref, page, &events, out)
        });
        let target = if item.end != 0 { item.end } else { target };
        if item.from <= target {
            item.to = target;
            syncing.queue.push_front(item);
        } else {
            syncing.packed.push(item);
        }
        if syncing.pack.bytes() >= FRAME_BYTES {
            self.flush_pack(out, slot);
        }
    }

    /// Ends the sync when nothing is left to send.
    fn finish_sync<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let Some(syncing) = session.syncing() else {
            return;
        };
        if !syncing.waiting.is_empty() {
            return;
        }
        // Conversations joined since the routers were asked are still gated.
        let rounds = syncing.rounds;
        let gated: Vec<u32> = session
            .joined
            .iter()
            .filter(|j| {
                let members = self.index.get(j.conversation).members.as_slice();
                members.get(j.place as usize).is_some_and(|m| m.has(GATED))
            })
            .map(|j| j.conversation)
            .collect();
        if !gated.is_empty() && rounds < EXTRA_ROUNDS {
            let extra: Vec<ConversationId> =
                gated.iter().map(|&at| self.index.get(at).id).collect();
            if let Some(syncing) = session.syncing() {
                syncing.rounds += 1;
                syncing.outstanding = requests_of(&self.settings, &extra);
            }
            return self.ask_open(out, slot, extra, || OpenFor::Sync);
        }
        let Some(syncing) = session.rare.as_mut().and_then(|rare| rare.sync.take()) else {
            return;
        };
        for at in &gated {
            // The client will see a hole, and asks for it.
            if let Some(member) = self.index.member_mut(&self.sessions, slot, *at) {
                member.flags &= !GATED;
            }
        }
        // Of what is only heard of (an event lost on its way, its store away) the client has nothing yet.
        let session = self.sessions.get(slot);
        let mut joined = session.iter().flat_map(|session| &session.joined);
        let lacks = joined.any(|j| {
            let conversation = self.index.get(j.conversation);
            conversation.head() > conversation.head_seen
        });
        let complete = syncing.complete && gated.is_empty() && !lacks;
        add(&self.metrics.syncs_incomplete, u64::from(!complete));
        let done = wire::SyncDone {
            epoch: self.settings.epoch,
            conversations: syncing.conversations,
            complete,
            reset: false,
        };
        if let Some(session) = self.sessions.get_mut(slot) {
            session.set(SYNCED, true);
        }
        self.update(out, slot, syncing.r#ref, update::Update::SyncDone(done));
    }

    /// Routers answered about conversations joined during a sync.
    pub(super) fn sync_states<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        states: Vec<Opened>,
        later: &[ConversationId],
    ) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let Some(mut syncing) = session.rare.as_mut().and_then(|rare| rare.sync.take()) else {
            return;
        };
        syncing.outstanding = syncing.outstanding.saturating_sub(1);
        syncing.complete &= later.is_empty() || syncing.rounds < EXTRA_ROUNDS;
        for state in states.iter().filter(|s| s.grant.role != Role::None) {
            if let Some(item) = self.item(out, slot, &syncing, state, None) {
                syncing.queue.push_back(item);
            }
        }
        if let Some(session) = self.sessions.get_mut(slot) {
            session.rare().sync = Some(syncing);
        }
        self.pump(out, slot);
    }

    /// Reads that failed are tried again; stopped syncs go on.
    pub(super) fn tick_sync<O: Outbound>(&mut self, out: &mut O, slot: Slot, _now: Micros) {
        let Some(syncing) = self.sessions.get_mut(slot).and_then(|s| s.syncing()) else {
            return;
        };
        let waiting = std::mem::take(&mut syncing.waiting);
        syncing.queue.extend(waiting);
        self.pump(out, slot);
    }
}
