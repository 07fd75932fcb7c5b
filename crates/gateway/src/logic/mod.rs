//! The gateway's logic: sessions, sends, fan-out, sync. No I/O, no clock, no random of its own.
//!
//! [`GatewayCore`] gets inputs (a message came, an append was reported, a router says something,
//! a second passed) and tells the outside what to do through [`Outbound`]. The worker's host and
//! the simulation run the same code.
//!
//! The way of a message here: [`GatewayCore::message`] → `send.rs` (check, gather) →
//! [`GatewayCore::turn_end`] (one append for all sends of a turn) → … the router … →
//! [`GatewayCore::from_router`] → `send.rs` (answer) and `fanout.rs` (event to sessions).
//! The way back in: `auth.rs` → `opening.rs` (how do the user's conversations stand?) →
//! `sync.rs` (what is missing) → live.
//!
//! Invariants:
//! 1. Nothing is kept that a reconnect can't rebuild; nothing is acknowledged here.
//! 2. A session is pushed event n + 1 of a conversation only after it was given n, or was told by
//!    a sync page what it lacks: members of the index are *gated* until then.
//! 3. Every list is bounded; what doesn't fit is refused with a code, or dropped and caught up.
//! 4. One event is encoded at most once a format, whatever the number of sessions.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use tidings_core::ids::{ConversationId, Micros, Seq, SessionId, UserId};
use tidings_core::ports::peers::{Handed, ToGateway, ToRouter};
use tidings_core::rows::{CursorRow, EventRow};
use tidings_protocol::wire::{self, update};
use tidings_protocol::{CloseCode, ErrorCode, Format};

mod admission;
mod auth;
mod awaited;
mod blocks;
mod commands;
mod digest;
mod fanout;
mod frames;
mod history;
mod index;
mod metrics;
mod modes;
mod opening;
mod outbound;
mod presence;
mod rates;
mod reads;
mod receipts;
mod recent;
mod send;
mod session;
mod settings;
mod sync;
mod tick;
mod tracking;

#[cfg(test)]
mod tests;

pub use blocks::{Listed, seen_by_blocker};
pub use frames::history_page;
pub use metrics::{GatewayMetrics, LATENCY_BOUNDS, Latency};
pub use outbound::{AuthFailure, Outbound, Principal, Slot};
pub use settings::Settings;

use index::{Held, Index};
use metrics::{add, shift};
use opening::Load;
use rates::Rates;
use reads::Request;
use send::Sending;
use session::{AUTHENTICATING, CLOSING, LAGGING, READY, Sessions};

/// Everything one worker knows.
pub struct GatewayCore {
    settings: Settings,
    metrics: Arc<GatewayMetrics>,
    now: Micros,
    sessions: Sessions,
    index: Index,
    rates: Rates,
    sending: Sending,
    admission: admission::Admission,
    /// What was asked of routers and the host and isn't answered.
    requests: HashMap<u64, Request>,
    next_request: u64,
    /// Reads under way by range, so that equal ones share.
    reading: HashMap<reads::Range, u64>,
    /// Reads whose events are here, given at the end of this turn.
    recent_reads: Vec<(u64, Vec<Arc<EventRow>>)>,
    recent: recent::Recent,
    loads: HashMap<UserId, Load>,
    /// The direct conversations with those whom users with sessions here have blocked, sorted;
    /// whoever blocks nobody isn't in it.
    blocks: HashMap<UserId, Box<[ConversationId]>>,
    /// Cursors that wait for the next flush.
    cursors: HashMap<(ConversationId, UserId), CursorRow>,
    /// Those ahead of what was heard here.
    early_cursors: Vec<receipts::EarlyCursor>,
    /// Events handed to sessions in this turn.
    handed: Vec<Handed>,
    /// Changes of members that were held back in conversations that are gone: others here may be
    /// named in them.
    orphans: Vec<Held>,
    /// Conversations that lost their last session here; the routers are told with the next tick.
    closes: Vec<ConversationId>,
    /// Requests of routers how conversations stand that aren't answered.
    opens: usize,
    /// Meanwhile: the highest seqs of conversations that aren't here (yet).
    early: HashMap<ConversationId, Seq>,
    /// The highest seqs of which authors were told lately that they wait.
    delays_told: HashMap<ConversationId, Seq>,
    /// Conversations with something missing that a tick tries to read again.
    gaps: Vec<ConversationId>,
    /// What was heard of the routers, by partition.
    digests: Box<[digest::Heard]>,
    /// Members' changes heard of lately, to see in a digest what was lost.
    changes_seen: HashSet<(ConversationId, Seq)>,
    watchers: HashMap<UserId, Vec<Slot>>,
    watch_changed: bool,
    /// What sessions that watch don't get to see; those not in it see all they watch.
    unseen: HashMap<Slot, presence::Unseen>,
    /// Sessions whose `watch` isn't registered before the next tick.
    watched_lately: Vec<SessionId>,
    /// Syncs that stopped because enough was queued, to go on in another turn.
    resumes: Vec<SessionId>,
    /// Sessions with pages of this turn that haven't been sent.
    unflushed: Vec<SessionId>,
    tracking: tracking::Scan,
    /// Since when the worker drains; 0: it doesn't.
    draining: Micros,
    /// While it drains, sessions are served until they were told to leave.
    leave_in_turn: bool,
    /// How each feature is.
    modes: modes::Modes,
    /// Heartbeats without heads, with a ping behind, by format.
    beats: [Option<Bytes>; 2],
}

impl GatewayCore {
    /// A worker without sessions.
    pub fn new(settings: Settings, metrics: Arc<GatewayMetrics>) -> Self {
        let digests = vec![digest::Heard::default(); settings.partitions as usize].into();
        GatewayCore {
            sessions: Sessions::new(settings.session_base, settings.hash_seed),
            index: Index::new(settings.hash_seed),
            // An answer to a former process of this name isn't taken for one to this process: it
            // would tell how conversations stand for another user.
            next_request: settings.session_base,
            settings,
            metrics,
            now: 0,
            rates: Rates::default(),
            sending: Sending::default(),
            admission: admission::Admission::default(),
            requests: HashMap::new(),
            reading: HashMap::new(),
            recent_reads: Vec::new(),
            recent: recent::Recent::default(),
            loads: HashMap::new(),
            blocks: HashMap::new(),
            cursors: HashMap::new(),
            early_cursors: Vec::new(),
            handed: Vec::new(),
            orphans: Vec::new(),
            closes: Vec::new(),
            opens: 0,
            early: HashMap::new(),
            delays_told: HashMap::new(),
            gaps: Vec::new(),
            digests,
            changes_seen: HashSet::new(),
            watchers: HashMap::new(),
            watch_changed: false,
            unseen: HashMap::new(),
            watched_lately: Vec::new(),
            resumes: Vec::new(),
            unflushed: Vec::new(),
            tracking: tracking::Scan::default(),
            draining: 0,
            leave_in_turn: false,
            modes: modes::Modes::default(),
            beats: Default::default(),
        }
    }

    /// Sessions there are now, closing ones included.
    pub fn sessions(&self) -> usize {
        self.sessions.count
    }

    /// A session opened in a slot; its format was chosen at the upgrade.
    pub fn opened<O: Outbound>(&mut self, out: &mut O, slot: Slot, format: Format) -> SessionId {
        self.now = out.now();
        let id = self.sessions.open(slot, format, self.now);
        add(&self.metrics.attempts, 1);
        shift(&self.metrics.connections, 1);
        if self.draining != 0 {
            self.close(out, slot, CloseCode::Restart);
            return id;
        }
        self.hello(out, slot);
        id
    }

    /// A session ended, whoever ended it.
    pub fn closed<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        self.now = out.now();
        let Some(session) = self.sessions.get(slot) else {
            return;
        };
        let (id, user, ready) = (session.id, session.user, session.is(READY));
        // Who left without a word, as a balancer's check does, has failed at nothing.
        let failed = session.is(CLOSING) || session.is(AUTHENTICATING);
        let joined: Vec<u32> = session.joined.iter().map(|j| j.conversation).collect();
        shift(&self.metrics.connections, -1);
        self.signed_in(out, slot);
        if ready {
            shift(&self.metrics.sessions, -1);
            out.remove_session(user, id, self.now);
        } else if failed {
            add(&self.metrics.failures, 1);
        }
        self.unwatch(slot);
        for at in joined {
            self.leave(slot, at);
        }
        self.sessions.remove(slot);
        if ready {
            self.forget_blocks(user);
        }
    }

    /// A router says something.
    pub fn from_router<O: Outbound>(&mut self, out: &mut O, message: ToGateway) {
        self.now = out.now();
        match message {
            ToGateway::Answer {
                session,
                answer,
                taken,
            } => self.answered(out, session, &answer, taken),
            ToGateway::Event {
                row,
                except,
                taken: _,
            } => self.event(out, row, except),
            ToGateway::Opened {
                request,
                states,
                later,
            } => self.states(out, request, states, later),
            ToGateway::Tail { request, rows } => self.tail(out, request, &rows),
            ToGateway::Receipts {
                conversation,
                cursors,
            } => self.receipts(out, conversation, &cursors),
            ToGateway::Typing {
                conversation,
                user,
                on,
            } => self.typing(out, conversation, user, on),
            ToGateway::BlockChanged {
                user,
                other,
                is_blocked,
            } => self.block_changed(out, user, other, is_blocked),
            ToGateway::Delayed {
                user,
                conversation,
                seq,
            } => self.delayed(out, user, conversation, seq),
            ToGateway::Replaced { session } => {
                self.end_session(out, session, CloseCode::Replaced);
            }
            ToGateway::Revoked(revocation) => self.revoked(out, &revocation),
            ToGateway::TookOver { partition } => self.took_over(out, partition),
            ToGateway::Interested {
                request,
                digest,
                heads,
            } => self.interested(out, request, digest, &heads),
            ToGateway::Digest {
                partition,
                number,
                heads,
                changes,
            } => self.digest(out, partition, number, &heads, &changes),
        }
    }

    /// Messages of a router were lost on the way here: what they said is asked again.
    pub fn messages_lost<O: Outbound>(&mut self, out: &mut O) {
        self.now = out.now();
        out.members_changed(&mut std::iter::empty());
        self.tracking.refresh_all();
    }

    /// The session's queue was dropped: nothing is pushed until it has drained.
    pub fn overflow<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        self.now = out.now();
        if self
            .sessions
            .get(slot)
            .is_some_and(|s| !s.is(LAGGING) && !s.is(CLOSING))
        {
            add(&self.metrics.lagging, 1);
            self.lag(slot);
        }
    }

    /// The session's queue is empty again.
    pub fn drained<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        self.now = out.now();
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        if session.is(LAGGING) {
            session.set(LAGGING, false);
            session.rare().lagging_since = 0;
            self.update(out, slot, 0, update::Update::Lagging(wire::Lagging {}));
            self.tell_modes(out, slot);
        }
        self.pump(out, slot);
    }

    /// The end of a turn of the worker's loop: what was gathered goes out together.
    pub fn turn_end<O: Outbound>(&mut self, out: &mut O) {
        for held in std::mem::take(&mut self.orphans) {
            self.event(out, held.row, held.except);
        }
        loop {
            self.give_recent(out);
            self.flush_packs(out);
            // A page that was sent may be followed by one that is here too.
            if self.recent_reads.is_empty() {
                break;
            }
        }
        self.flush_sends(out);
        self.flush_handed(out);
        self.settle_early_cursors(out, false);
        // A turn takes along what came at the same time; the router gathers over time.
        self.flush_cursors(out);
    }

    /// Whether [`GatewayCore::turn_start`] has something to do soon even if nothing comes in.
    pub fn wants_turn(&self) -> bool {
        !self.resumes.is_empty()
    }

    /// Another turn of the worker's loop: syncs that had enough queued go on.
    pub fn turn_start<O: Outbound>(&mut self, out: &mut O) {
        self.now = out.now();
        for session in std::mem::take(&mut self.resumes) {
            if let Some(slot) = self.sessions.slot_of(session) {
                self.pump(out, slot);
            }
        }
    }

    /// Tells every client to come back elsewhere, spread over time. [`GatewayCore::tick`] closes
    /// the sessions once the sends that were taken are answered.
    /// With `in_turn` they are served until then, since they have another server to go to: answers
    /// for how long.
    pub fn drain_begin<O: Outbound>(&mut self, out: &mut O, in_turn: bool) -> Micros {
        self.now = out.now();
        if self.draining != 0 {
            return self.served_for();
        }
        self.draining = self.now.max(1);
        self.leave_in_turn = in_turn;
        let slots: Vec<(Slot, SessionId)> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.is(READY))
            .map(|(slot, s)| (slot, s.id))
            .collect();
        for (slot, id) in slots {
            let after_ms = (self.leaves_after(id) / 1000) as u32;
            self.update(
                out,
                slot,
                0,
                update::Update::Reconnect(wire::Reconnect { after_ms }),
            );
        }
        self.served_for()
    }

    /// How long after the drain began sessions are served.
    fn served_for(&self) -> Micros {
        match self.leave_in_turn {
            true => self.settings.drain_spread,
            false => 0,
        }
    }

    /// How long after the drain began a session is to leave.
    fn leaves_after(&self, session: SessionId) -> Micros {
        session::hash(0, session.0) % self.settings.drain_spread.max(1)
    }

    // What all parts use.

    /// Begins with the clock: an answer to a worker before this one isn't for any request of this.
    fn request_id(&mut self) -> u64 {
        if self.next_request == 0 {
            self.next_request = self.now;
        }
        self.next_request += 1;
        self.next_request
    }

    /// Sends one update to one session, unless nothing may be pushed to it.
    fn update<O: Outbound>(&mut self, out: &mut O, slot: Slot, r#ref: u64, update: update::Update) {
        if let Some(session) = self.sessions.get(slot)
            && !session.is(LAGGING)
            && !session.is(CLOSING)
        {
            out.send(slot, &frames::update_frame(session.format, r#ref, update));
        }
    }

    fn refuse<O: Outbound>(&mut self, out: &mut O, slot: Slot, refusal: Refusal) {
        self.metrics.refused(refusal.code);
        tracing::debug!(slot, code = refusal.code.as_str(), "refused");
        let error = wire::Error {
            code: refusal.code.as_str().to_owned(),
            message: refusal.message.to_owned(),
            retry_after_ms: refusal.retry_after_ms,
            conversation: refusal.conversation.0,
            sender: refusal.sender,
            counter: refusal.counter,
        };
        self.update(out, slot, refusal.r#ref, update::Update::Error(error));
    }

    /// Refuses what isn't the user's; who asks for such things again and again is closed.
    fn forbid<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        r#ref: u64,
        conversation: ConversationId,
    ) {
        const FORBIDDEN_MAX: u32 = 64;
        let refusal = Refusal::new(
            ErrorCode::Forbidden,
            "Not allowed, or no such conversation.",
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
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        session.rare().forbidden += 1;
        if session.rare().forbidden > FORBIDDEN_MAX {
            self.close(out, slot, CloseCode::Forbidden);
        }
    }

    fn close<O: Outbound>(&mut self, out: &mut O, slot: Slot, code: CloseCode) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        if session.is(CLOSING) {
            return;
        }
        session.set(CLOSING, true);
        self.metrics.closed(code);
        tracing::debug!(slot, session = %session.id, code = code.code(), reason = code.reason(), "session closed");
        out.close(slot, code);
        // A closing session gets nothing more, and what it still lacks is no longer pending.
        self.gate_all(slot);
    }

    /// Stops pushing to a session in all its conversations.
    fn gate_all(&mut self, slot: Slot) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        session.set(session::SYNCED, false);
        if let Some(rare) = &mut session.rare {
            rare.sync = None;
            rare.sync_asked = None;
            rare.opening = None;
        }
        for joined in std::mem::take(&mut session.joined) {
            let members = self
                .index
                .get_mut(joined.conversation)
                .members
                .as_mut_slice();
            if let Some(member) = members.get_mut(joined.place as usize) {
                member.flags |= index::GATED;
                member.since = 0;
                member.tries = 0;
            }
            session.joined.push(joined);
        }
    }

    /// The session has lost what was queued: it must sync again, and first drain.
    fn lag(&mut self, slot: Slot) {
        self.gate_all(slot);
        let now = self.now;
        if let Some(session) = self.sessions.get_mut(slot) {
            session.set(LAGGING, true);
            session.due = 0;
            session.rare().lagging_since = now;
        }
    }

    /// The session must sync again, as something can't be pushed to it in order; it isn't slow.
    fn resync<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        if self
            .sessions
            .get(slot)
            .is_some_and(|s| s.is(session::SYNCED))
        {
            self.gate_all(slot);
            self.update(out, slot, 0, update::Update::Lagging(wire::Lagging {}));
        }
    }

    /// Takes a session out of a conversation; the router is told when it was the last.
    fn leave(&mut self, slot: Slot, at: u32) -> Option<index::Member> {
        let (member, emptied) = self.index.leave(&mut self.sessions, slot, at)?;
        if let Some(emptied) = emptied {
            self.closes.push(emptied.id);
            let held = emptied.gap.into_iter().flat_map(|gap| gap.held);
            self.orphans
                .extend(held.filter(|held| held.row.members.is_some()));
        }
        Some(member)
    }

    fn to_router<O: Outbound>(&self, out: &mut O, conversation: ConversationId, message: ToRouter) {
        out.to_router(self.settings.partition_of(conversation), message);
    }

    /// Counts a command that costs more than a message; false: the session asks too often.
    fn admit_ask<O: Outbound>(&mut self, out: &mut O, slot: Slot, r#ref: u64) -> bool {
        let (now, rate) = (self.now, self.settings.asks_per_second);
        let Some(session) = self.sessions.get_mut(slot) else {
            return false;
        };
        if rate == 0 {
            return true;
        }
        let cost = settings::SECOND / Micros::from(rate);
        match session.rare().asks.take(now, cost, 2 * settings::SECOND) {
            Ok(()) => true,
            Err(wait) => {
                let refusal = Refusal::new(
                    ErrorCode::RateLimited,
                    "Too many requests for one session.",
                    r#ref,
                );
                self.refuse(
                    out,
                    slot,
                    Refusal {
                        retry_after_ms: (wait / 1000 + 1) as u32,
                        ..refusal
                    },
                );
                false
            }
        }
    }

    fn flush_handed<O: Outbound>(&mut self, out: &mut O) {
        if self.handed.is_empty() {
            return;
        }
        let mut by_partition: HashMap<_, Vec<Handed>> = HashMap::new();
        for handed in self.handed.drain(..) {
            by_partition
                .entry(self.settings.partition_of(handed.conversation))
                .or_default()
                .push(handed);
        }
        let mut partitions: Vec<_> = by_partition.into_iter().collect();
        partitions.sort_unstable_by_key(|(partition, _)| *partition);
        for (partition, handed) in partitions {
            out.to_router(partition, ToRouter::FannedOut(handed));
        }
        if self.handed.capacity() > 4096 {
            self.handed = Vec::new();
        }
    }

    /// The counters, for tests and the host.
    pub fn metrics(&self) -> &Arc<GatewayMetrics> {
        &self.metrics
    }
}

/// A command that is refused, as the client is told.
struct Refusal {
    code: ErrorCode,
    message: &'static str,
    r#ref: u64,
    retry_after_ms: u32,
    conversation: ConversationId,
    sender: u64,
    counter: u64,
}

impl Refusal {
    fn new(code: ErrorCode, message: &'static str, r#ref: u64) -> Self {
        Refusal {
            code,
            message,
            r#ref,
            retry_after_ms: 0,
            conversation: ConversationId(0),
            sender: 0,
            counter: 0,
        }
    }
}
