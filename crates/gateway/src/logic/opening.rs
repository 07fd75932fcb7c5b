//! Opening: which conversations a user has, and how each stands, asked of its router.
//!
//! The list comes from the directory, which may be a little ahead of the log or behind it; grants
//! and heads come from the routers, who know. From a router's answer on its events come here.

use std::collections::{BTreeMap, BTreeSet};

use tidings_core::ids::{ConversationId, Micros, Partition, SessionId, UserId};
use tidings_core::ports::peers::{OPEN_MAX, Opened, ToRouter};
use tidings_core::record::Role;
use tidings_protocol::Format;

use super::GatewayCore;
use super::blocks::Listed;
use super::history::HistoryAsk;
use super::index::{BLOCKING, GATED, Gap, JSON, Member};
use super::outbound::{Outbound, Slot};
use super::reads::Request;
use super::session::{COMPARE, LAGGING, OPENED, Opening, REFRESH, SYNCED, seconds};

/// Why conversations are opened.
pub(super) enum OpenFor {
    /// A session began, or syncs.
    Session,
    /// What was missed while the routers' digests didn't come.
    Refresh,
    /// A local user has become a member.
    Joined,
    /// A sync found conversations that were joined meanwhile.
    Sync,
    /// History is asked.
    History(Box<HistoryAsk>),
}

/// A user's list being loaded, for these sessions.
pub(super) struct Load {
    pub waiting: Vec<SessionId>,
    /// Blocks and unblocks heard of meanwhile.
    pub blocks_changed: Vec<(ConversationId, bool)>,
    pub until: Micros,
    pub tries: u8,
}

/// Tries of the directory, and of conversations a router couldn't read, before going on without.
const TRIES_MAX: u8 = 3;

impl GatewayCore {
    /// Starts asking how a session's conversations stand.
    pub(super) fn begin_opening<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        session.rare().opening = Some(Opening::default());
        session.due = 0;
        let (id, user) = (session.id, session.user);
        self.load(out, user, id);
    }

    /// Asks for a user's list again, as events may have been missed.
    pub(super) fn refresh<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        session.set(REFRESH, true);
        let (id, user) = (session.id, session.user);
        self.load(out, user, id);
    }

    /// Asks for a user's list to see what has changed of it unheard: a join that a router told before
    /// another took over may be lost, and nobody tells it again.
    pub(super) fn compare<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        session.set(COMPARE, true);
        let (id, user) = (session.id, session.user);
        out.members_changed(&mut std::iter::once(user));
        self.load(out, user, id);
    }

    fn load<O: Outbound>(&mut self, out: &mut O, user: UserId, session: SessionId) {
        let until = self.now + 5 * self.settings.answer_within;
        let load = self.loads.entry(user).or_insert(Load {
            waiting: Vec::new(),
            blocks_changed: Vec::new(),
            until,
            tries: 0,
        });
        if !load.waiting.contains(&session) {
            load.waiting.push(session);
        }
        if load.waiting.len() == 1 && load.tries == 0 {
            load.tries = 1;
            out.load_user(user);
        }
    }

    /// The directory said which conversations a user has and whom it blocks, or nothing in time
    /// (`None`).
    pub fn user_loaded<O: Outbound>(&mut self, out: &mut O, user: UserId, listed: Option<Listed>) {
        self.now = out.now();
        let now = self.now;
        let Some(load) = self.loads.get_mut(&user) else {
            return;
        };
        if listed.is_none() && load.tries < TRIES_MAX {
            // Asked again with a tick, a little later each time.
            load.until = now + 500_000 * Micros::from(load.tries);
            return;
        }
        let Some(load) = self.loads.remove(&user) else {
            return;
        };
        let list = listed.map(|listed| {
            self.blocks_listed(user, listed.blocked, &load.blocks_changed);
            listed.conversations
        });
        for session in load.waiting {
            let Some(slot) = self.sessions.slot_of(session) else {
                continue;
            };
            self.listed(out, slot, list.as_deref());
        }
    }

    fn listed<O: Outbound>(&mut self, out: &mut O, slot: Slot, list: Option<&[ConversationId]>) {
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let is_whole = session.is(REFRESH);
        if is_whole || session.is(COMPARE) {
            session.set(REFRESH, false);
            session.set(COMPARE, false);
            // Where the session is a member too: a removal that the directory knows may be what was
            // missed, and until then the router must know who wants the events.
            let joined = session.joined.iter();
            let joined = joined.map(|j| self.index.get(j.conversation).id);
            let mut all: BTreeSet<ConversationId> = joined.collect();
            let listed = list.unwrap_or_default().iter().copied();
            match is_whole {
                true => all.extend(listed),
                false => all = &all ^ &listed.collect(),
            }
            match list {
                None if is_whole => self.tracking.refresh_again(session.id),
                None => {
                    self.tracking.refresh_again(session.id);
                    all.clear();
                }
                Some(_) => {}
            }
            self.ask_open(out, slot, all.into_iter().collect(), || OpenFor::Refresh);
        }
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let Some(opening) = session.opening().filter(|o| !o.loaded) else {
            return;
        };
        opening.loaded = true;
        // With the directory away the client's own cursors say where to look; the routers judge.
        opening.partial = list.is_none();
        let mut list = list.unwrap_or_default().to_vec();
        list.sort_unstable();
        list.dedup();
        opening.list = list.clone();
        opening.outstanding += requests_of(&self.settings, &list);
        self.ask_open(out, slot, list, || OpenFor::Session);
        self.check_opening(out, slot);
        self.signed_in(out, slot);
    }

    /// Asks routers how conversations stand for a session's user, a request for each thousand of a
    /// partition.
    pub(super) fn ask_open<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        conversations: Vec<ConversationId>,
        why: impl Fn() -> OpenFor,
    ) {
        let Some((session, user)) = self.sessions.get(slot).map(|s| (s.id, s.user)) else {
            return;
        };
        let until = self.now + self.settings.answer_within;
        for (partition, chunk) in chunks(&self.settings, &conversations) {
            let request = self.request_id();
            let open = Request::Open {
                session,
                conversations: chunk.clone(),
                why: why(),
                until,
            };
            self.requests.insert(request, open);
            self.opens += 1;
            out.to_router(
                partition,
                ToRouter::Open {
                    request,
                    user,
                    conversations: chunk,
                },
            );
        }
    }

    /// A router says how conversations stand.
    pub(super) fn states<O: Outbound>(
        &mut self,
        out: &mut O,
        request: u64,
        mut states: Vec<Opened>,
        mut later: Vec<ConversationId>,
    ) {
        let Some(Request::Open { session, why, .. }) = self.requests.remove(&request) else {
            return;
        };
        self.opens -= 1;
        let Some(slot) = self.sessions.slot_of(session) else {
            self.closes.extend(states.iter().map(|s| s.conversation));
            return;
        };
        self.withhold(slot, &mut states, &mut later);
        for state in &states {
            let is_new = self.adopt(out, slot, state);
            // A session that is live can't be given a conversation's past by pushes: not when it has joined,
            // either, if it was removed and invited anew before this answer.
            if is_new {
                self.resync(out, slot);
            }
        }
        self.opened_for(out, slot, why, states, later);
    }

    /// A router didn't answer: its conversations are asked later.
    pub(super) fn open_lost<O: Outbound>(&mut self, out: &mut O, request: u64) {
        let Some(Request::Open {
            session,
            conversations,
            why,
            ..
        }) = self.requests.remove(&request)
        else {
            return;
        };
        self.opens -= 1;
        if let Some(slot) = self.sessions.slot_of(session) {
            self.opened_for(out, slot, why, Vec::new(), conversations);
        }
    }

    fn opened_for<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        why: OpenFor,
        states: Vec<Opened>,
        later: Vec<ConversationId>,
    ) {
        match why {
            OpenFor::Session => {
                let Some(opening) = self.sessions.get_mut(slot).and_then(|s| s.opening()) else {
                    return;
                };
                opening.outstanding = opening.outstanding.saturating_sub(1);
                opening.states.extend(states);
                opening.later.extend(later);
                self.check_opening(out, slot);
            }
            OpenFor::Sync => self.sync_states(out, slot, states, &later),
            OpenFor::History(ask) => self.history_state(out, slot, *ask, states.first()),
            // Nothing else would show that the router doesn't know who wants these.
            OpenFor::Refresh | OpenFor::Joined => {
                if !later.is_empty()
                    && let Some(session) = self.sessions.get(slot)
                {
                    self.tracking.refresh_again(session.id);
                }
            }
        }
    }

    /// Puts a session into the index where its user is a member; whether it wasn't there.
    fn adopt<O: Outbound>(&mut self, out: &mut O, slot: Slot, state: &Opened) -> bool {
        let now_s = seconds(self.now);
        if state.grant.role == Role::None {
            match self.index.find(state.conversation) {
                None => self.closes.push(state.conversation),
                Some(at) if state.grant.visible_to <= self.index.get(at).head_seen => {
                    self.left_unheard(out, slot, at, state.grant.visible_to);
                }
                // The event that ended the membership is still to come, or missing.
                Some(_) => self.head_heard(out, state.conversation, state.grant.visible_to),
            }
            return false;
        }
        let at = self
            .index
            .find_or_add(state.conversation, state.head, now_s);
        let is_new = self
            .sessions
            .get(slot)
            .is_some_and(|s| s.place_in(at).is_none());
        if is_new {
            self.join(slot, at, GATED, 0);
        }
        // What came between the router's look and its answer.
        let early = self.early.get(&state.conversation).copied().unwrap_or(0);
        self.head_heard(out, state.conversation, state.head.max(early));
        is_new
    }

    /// A removal that went by unheard: who was pushed to until now is told by another sync.
    fn left_unheard<O: Outbound>(&mut self, out: &mut O, slot: Slot, at: u32, seq: u64) {
        let conversation = self.index.get(at).id;
        let Some(member) = self.leave(slot, at) else {
            return;
        };
        if !member.has(GATED) {
            self.resync(out, slot);
        } else if let Some(syncing) = self.sessions.get_mut(slot).and_then(|s| s.syncing()) {
            syncing.member_left(conversation, seq);
        }
    }

    /// Makes a session a member in the index.
    pub(super) fn join(&mut self, slot: Slot, at: u32, flags: u8, covered: u64) {
        let Some(session) = self.sessions.get(slot) else {
            return;
        };
        let json = if session.format == Format::Json {
            JSON
        } else {
            0
        };
        let blocking = if self.is_blocking(slot, self.index.get(at).id) {
            BLOCKING
        } else {
            0
        };
        let member = Member {
            covered,
            slot,
            since: 0,
            tries: 0,
            flags: flags | json | blocking,
        };
        self.index.join(&mut self.sessions, at, member);
    }

    /// Somebody said that a conversation's head is at least `seq`.
    pub(super) fn head_heard<O: Outbound>(
        &mut self,
        out: &mut O,
        conversation: ConversationId,
        seq: u64,
    ) {
        let Some(at) = self.index.find(conversation) else {
            return;
        };
        let c = self.index.get_mut(at);
        if seq > c.head() {
            c.gap.get_or_insert_with(Box::<Gap>::default).known = seq;
            self.fetch_gap(out, conversation);
        }
    }

    /// Goes on when all routers have answered: retries, waiting commands, a waiting sync.
    pub(super) fn check_opening<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let Some(opening) = session.opening() else {
            return;
        };
        if !opening.loaded || opening.outstanding > 0 || opening.retry_at != 0 {
            return;
        }
        if !opening.later.is_empty() && opening.tries < TRIES_MAX {
            opening.retry_at = now + (300_000 << opening.tries);
            opening.tries += 1;
            session.due = 0;
            return;
        }
        if opening.done_at == 0 {
            opening.done_at = now;
        }
        if !session.is(OPENED) {
            session.set(OPENED, true);
            for (r#ref, command) in std::mem::take(&mut session.rare().waiting) {
                self.command(out, slot, r#ref, command);
            }
        }
        self.start_sync(out, slot);
    }

    /// A partition has a router again: what it was asked meanwhile nobody may have heard.
    pub(super) fn open_again<O: Outbound>(&mut self, out: &mut O, partition: Partition) {
        let until = self.now + self.settings.answer_within;
        let mut lost = Vec::new();
        for (&request, asked) in &mut self.requests {
            let Request::Open {
                session,
                conversations,
                until: deadline,
                ..
            } = asked
            else {
                continue;
            };
            let first = conversations.first().copied();
            if first.is_some_and(|first| self.settings.partition_of(first) == partition) {
                *deadline = until;
                lost.push((request, *session, conversations.clone()));
            }
        }
        lost.sort_unstable_by_key(|(request, ..)| *request);
        for (request, session, conversations) in lost {
            let Some(user) = self
                .sessions
                .slot_of(session)
                .and_then(|s| self.sessions.get(s))
            else {
                continue;
            };
            let user = user.user;
            let open = ToRouter::Open {
                request,
                user,
                conversations,
            };
            out.to_router(partition, open);
        }
        // And what was given up for now is asked with the next tick.
        let waiting: Vec<Slot> = self.sessions.iter().map(|(slot, _)| slot).collect();
        for slot in waiting {
            let (now, settings) = (self.now, &self.settings);
            let Some(session) = self.sessions.get_mut(slot) else {
                continue;
            };
            let Some(opening) = session.rare.as_mut().and_then(|rare| rare.opening.as_mut()) else {
                continue;
            };
            let is_of_it = |&c: &ConversationId| settings.partition_of(c) == partition;
            if opening.retry_at > now && opening.later.iter().any(is_of_it) {
                opening.retry_at = now;
                session.due = 0;
            }
        }
    }

    /// What a tick has to do for an opening under way.
    pub(super) fn tick_opening<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        /// How long the states are kept for the first sync.
        const KEEP: Micros = 10_000_000;
        let now = self.now;
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let is_synced = session.is(SYNCED) || session.is(LAGGING);
        let Some(opening) = session.opening() else {
            return;
        };
        if opening.retry_at != 0 && opening.retry_at <= now {
            opening.retry_at = 0;
            let later = std::mem::take(&mut opening.later);
            opening.outstanding += requests_of(&self.settings, &later);
            self.ask_open(out, slot, later, || OpenFor::Session);
        } else if opening.done_at != 0 && (is_synced || opening.done_at + KEEP <= now) {
            session.rare().opening = None;
        }
    }

    /// Lists that didn't come.
    pub(super) fn tick_loads<O: Outbound>(&mut self, out: &mut O) {
        let now = self.now;
        let mut late: Vec<UserId> = self
            .loads
            .iter()
            .filter(|(_, load)| load.until <= now)
            .map(|(&user, _)| user)
            .collect();
        late.sort_unstable();
        for user in late {
            let Some(load) = self.loads.get_mut(&user) else {
                continue;
            };
            if load.tries >= TRIES_MAX {
                self.user_loaded(out, user, None);
                continue;
            }
            load.tries += 1;
            load.until = now + 5 * self.settings.answer_within;
            out.load_user(user);
        }
    }
}

type Chunk = (Partition, Vec<ConversationId>);

/// Conversations grouped by partition, at most [`OPEN_MAX`] together.
fn chunks(settings: &super::Settings, conversations: &[ConversationId]) -> Vec<Chunk> {
    let mut by_partition: BTreeMap<_, Vec<ConversationId>> = BTreeMap::new();
    for &conversation in conversations {
        by_partition
            .entry(settings.partition_of(conversation))
            .or_default()
            .push(conversation);
    }
    by_partition
        .into_iter()
        .flat_map(|(partition, list)| {
            let chunks: Vec<Chunk> = list
                .chunks(OPEN_MAX)
                .map(|chunk| (partition, chunk.to_vec()))
                .collect();
            chunks
        })
        .collect()
}

/// How many requests [`chunks`] makes.
pub(super) fn requests_of(settings: &super::Settings, conversations: &[ConversationId]) -> u32 {
    chunks(settings, conversations).len() as u32
}

impl GatewayCore {
    /// The conversations that routers were asked of and haven't answered.
    pub(super) fn being_opened(&self) -> impl Iterator<Item = ConversationId> {
        let opening = self.requests.values().filter_map(|request| match request {
            Request::Open { conversations, .. } => Some(conversations),
            _ => None,
        });
        opening.flatten().copied()
    }

    /// Tells the routers of conversations nobody here wants any more, unless somebody is just
    /// opening them: that answer would be the last thing heard.
    pub(super) fn flush_closes<O: Outbound>(&mut self, out: &mut O) {
        if self.closes.is_empty() {
            return;
        }
        let opening: BTreeSet<ConversationId> = self.being_opened().collect();
        let mut closes = std::mem::take(&mut self.closes);
        closes.sort_unstable();
        closes.dedup();
        closes.retain(|&c| self.index.find(c).is_none());
        let (kept, closes): (Vec<_>, Vec<_>) =
            closes.into_iter().partition(|c| opening.contains(c));
        self.closes = kept;
        for (partition, chunk) in chunks(&self.settings, &closes) {
            out.to_router(partition, ToRouter::Close(chunk));
        }
    }
}
