//! What a router remembers of a conversation: the rows the next decision needs.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::Work;
use super::cold::Missing;
use super::rows_map::RowsMap;
use crate::ids::{ConversationId, GatewayId, Micros, Position, Seq, UserId};
use crate::planted::{self, Mistake};
use crate::ports::peers::Opened;
use crate::record::{Content, Kind, Membership, Role};
use crate::rows::{
    CursorRow, EventRow, GrantState, HeadState, MemberChange, MembersBody, SenderState, StateKey,
    StateRow, StateValue,
};
use crate::sequencer::{self, SenderKey};

/// What is known of one user here; a part is absent until it was read or written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    grant: Option<GrantState>,
    /// Delivered and read; [`UNKNOWN`]: absent. An `Option` would make it a seventh larger.
    cursor: (Seq, Seq),
}

/// Nobody has read more than was delivered.
const UNKNOWN: (Seq, Seq) = (0, Seq::MAX);

impl Default for Member {
    fn default() -> Member {
        Member {
            grant: None,
            cursor: UNKNOWN,
        }
    }
}

impl Member {
    fn cursor(&self) -> Option<(Seq, Seq)> {
        (self.cursor != UNKNOWN).then_some(self.cursor)
    }
}

/// Most conversations in memory are at rest, and there are many: it is kept small.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    head: Option<HeadState>,
    members: RowsMap<UserId, Member>,
    senders: RowsMap<SenderKey, SenderState>,
    /// What waits for rows, mostly nothing.
    waiting: Option<Box<Waiting>>,
    /// The load under way.
    pub loading: Option<u64>,
    /// The rows of all members were read, or are too many for it.
    pub members_read: bool,
    /// Gateways that want its events.
    pub interested: Vec<GatewayId>,
    /// Events that the store hasn't confirmed together with all earlier ones, ascending.
    pub unstored: VecDeque<Arc<EventRow>>,
    /// How many flights hold rows of state of it that aren't confirmed.
    pub unsettled: u32,
    /// The last change, by the router's clock.
    pub touched: Micros,
}

/// What waits for rows that are being read.
#[derive(Debug, Default)]
struct Waiting {
    /// In the order of the log, which is the order of decisions.
    records: VecDeque<Work>,
    /// In any order, each with the last record that waited when it came.
    questions: Vec<(Option<Position>, Work)>,
}

impl Conversation {
    /// Puts aside what misses rows.
    pub fn wait(&mut self, work: Work) {
        let waiting = self.waiting.get_or_insert_default();
        match work {
            Work::Record { .. } => waiting.records.push_back(work),
            _ => {
                let before = waiting.records.back().and_then(Work::position);
                waiting.questions.push((before, work));
            }
        }
    }

    pub fn has_records_waiting(&self) -> bool {
        let waiting = self.waiting.as_ref();
        waiting.is_some_and(|waiting| !waiting.records.is_empty())
    }

    /// How many questions of gateways wait.
    pub fn questions_waiting(&self) -> usize {
        self.waiting.as_ref().map_or(0, |w| w.questions.len())
    }

    /// The position of the first record that waits.
    pub fn first_waiting(&self) -> Option<Position> {
        self.waiting.as_ref()?.records.front()?.position()
    }

    /// Takes the first record that waits, if its rows are known by now.
    pub fn next_record(&mut self) -> Option<Work> {
        let first = self.waiting.as_ref()?.records.front()?;
        if !self.missing(first).is_empty() {
            return None;
        }
        self.waiting.as_mut()?.records.pop_front()
    }

    /// Takes all questions whose rows are known by now, and before which no record waits any more.
    pub fn ready_questions(&mut self) -> Vec<Work> {
        let Some(mut waiting) = self.waiting.take() else {
            return Vec::new();
        };
        let first = waiting.records.front().and_then(Work::position);
        let is_done = |before: Position| first.is_none_or(|first| before < first);
        let (ready, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut waiting.questions)
            .into_iter()
            .partition(|(before, work)| {
                before.is_none_or(is_done) && self.missing(work).is_empty()
            });
        waiting.questions = rest;
        if !waiting.records.is_empty() || !waiting.questions.is_empty() {
            self.waiting = Some(waiting);
        }
        ready.into_iter().map(|(_, work)| work).collect()
    }

    /// The rows that must be read before this can be done.
    pub fn missing(&self, work: &Work) -> Missing {
        let mut missing = Missing::default();
        let mut need = |key: StateKey| {
            if !self.has(key) {
                missing.state.push(key);
            }
        };
        need(StateKey::Head);
        match work {
            Work::Record {
                content: Ok(Content::Send(send)),
                ..
            } => {
                need(StateKey::Grant(send.user));
                need(StateKey::Sender(send.user, send.sender));
            }
            Work::Record {
                content: Ok(Content::Membership(change)),
                ..
            } => {
                // One event may name a user twice; the row is read once.
                for (i, c) in change.changes.iter().enumerate() {
                    if !change.changes[..i].iter().any(|b| b.user == c.user) {
                        need(StateKey::Grant(c.user));
                    }
                }
            }
            Work::Record {
                content: Err(_), ..
            }
            | Work::Head => {}
            Work::Open { user, .. } | Work::Cursor(CursorRow { user, .. }) => {
                need(StateKey::Grant(*user));
                if self.members.get(*user).and_then(Member::cursor).is_none() {
                    missing.cursors.push(*user);
                }
            }
        }
        missing
    }

    /// The rows that must be read before the first so many records and questions that wait can be done: one read
    /// for all who come back at once, instead of one after the other.
    pub fn missing_together(&self, most: usize) -> Missing {
        let mut together = Missing::default();
        let Some(waiting) = &self.waiting else {
            return together;
        };
        let (mut keys, mut users) = (HashSet::new(), HashSet::new());
        let records = waiting.records.iter().take(most);
        let questions = waiting.questions.iter().map(|(_, work)| work);
        for work in records.chain(questions.take(most)) {
            let missing = self.missing(work);
            let new = missing.state.into_iter().filter(|&key| keys.insert(key));
            together.state.extend(new);
            let new = missing
                .cursors
                .into_iter()
                .filter(|&user| users.insert(user));
            together.cursors.extend(new);
        }
        together
    }

    /// How it stands for a user whose rows are known.
    pub fn opened(&self, id: ConversationId, user: UserId) -> Opened {
        let head = self.head();
        Opened {
            conversation: id,
            head: head.seq,
            kind: head.kind,
            grant: self.grant(user),
            cursor: self.cursor(id, user),
        }
    }

    /// Whether everything that [`Conversation::opened`] says is known.
    pub fn knows(&self, user: UserId) -> bool {
        let member = self.members.get(user);
        self.head.is_some() && member.is_some_and(|m| m.grant.is_some() && m.cursor().is_some())
    }

    /// The last seq, unless the head's row isn't known yet.
    pub fn known_head(&self) -> Option<Seq> {
        self.head.map(|head| head.seq)
    }

    pub fn head(&self) -> HeadState {
        self.head.unwrap_or_default()
    }

    pub fn grant(&self, user: UserId) -> GrantState {
        self.members
            .get(user)
            .and_then(|m| m.grant)
            .unwrap_or_default()
    }

    pub fn cursor(&self, id: ConversationId, user: UserId) -> CursorRow {
        let (delivered, read) = self
            .members
            .get(user)
            .and_then(Member::cursor)
            .unwrap_or_default();
        CursorRow {
            conversation: id,
            user,
            delivered,
            read,
        }
    }

    /// What the log before the next record says of this send's three rows.
    pub fn before(&self, user: UserId, sender: crate::ids::SenderId) -> sequencer::Before {
        sequencer::Before {
            head: self.head(),
            grant: self.grant(user),
            sender: self
                .senders
                .get((user, sender))
                .copied()
                .unwrap_or_default(),
        }
    }

    pub fn put_head(&mut self, head: HeadState) {
        self.head = Some(head);
    }

    pub fn put_grant(&mut self, user: UserId, grant: GrantState) {
        self.members.entry(user).grant = Some(grant);
    }

    pub fn put_cursor(&mut self, user: UserId, delivered: Seq, read: Seq) {
        self.members.entry(user).cursor = (delivered, read);
    }

    /// A cursor that is known moves at least as far as the store has it.
    pub fn raise_cursor(&mut self, row: &CursorRow) {
        if self
            .members
            .get(row.user)
            .and_then(Member::cursor)
            .is_some()
        {
            self.learn_cursor(row.user, row.delivered, row.read);
        }
    }

    /// All cursors but these are unknown again.
    pub fn forget_cursors(&mut self, keep: impl Fn(UserId) -> bool) {
        self.members_read = false;
        self.members.each(|user, member| {
            if !keep(user) {
                member.cursor = UNKNOWN;
            }
        });
    }

    /// A cursor as it was read; one that has moved since stays where it is.
    pub fn learn_cursor(&mut self, user: UserId, delivered: Seq, read: Seq) {
        let member = self.members.entry(user);
        let known = member.cursor().unwrap_or_default();
        member.cursor = (known.0.max(delivered), known.1.max(read));
    }

    pub fn put_sender(&mut self, user: UserId, sender: crate::ids::SenderId, state: SenderState) {
        *self.senders.entry((user, sender)) = state;
    }

    /// Whether this row is in memory.
    pub fn has(&self, key: StateKey) -> bool {
        match key {
            StateKey::Head => self.head.is_some(),
            StateKey::Grant(user) => self.members.get(user).is_some_and(|m| m.grant.is_some()),
            StateKey::Sender(user, sender) => self.senders.get((user, sender)).is_some(),
        }
    }

    /// Takes a row that was read, unless a record has changed it since.
    pub fn learn(&mut self, key: StateKey, value: Option<StateValue>) {
        match (key, value) {
            (StateKey::Head, Some(StateValue::Head(head))) => _ = self.head.get_or_insert(head),
            (StateKey::Head, _) => _ = self.head.get_or_insert_default(),
            (StateKey::Grant(user), value) => {
                let state = if let Some(StateValue::Grant(grant)) = value {
                    grant
                } else {
                    GrantState::default()
                };
                self.members.entry(user).grant.get_or_insert(state);
            }
            (StateKey::Sender(user, sender), value) => {
                if self.senders.get((user, sender)).is_none() {
                    *self.senders.entry((user, sender)) = match value {
                        Some(StateValue::Sender(row)) => row,
                        _ => SenderState::default(),
                    };
                }
            }
        }
    }

    /// The row of state as it stands now, for the store.
    pub fn state_row(
        &self,
        id: ConversationId,
        key: StateKey,
        position: Position,
        ts: Micros,
    ) -> StateRow {
        let value = match key {
            StateKey::Head => StateValue::Head(self.head()),
            StateKey::Grant(user) => StateValue::Grant(self.grant(user)),
            StateKey::Sender(user, sender) => StateValue::Sender(
                self.senders
                    .get((user, sender))
                    .copied()
                    .unwrap_or_default(),
            ),
        };
        StateRow {
            conversation: id,
            key,
            position,
            ts,
            value,
        }
    }

    /// Applies an accepted change; returns its event and the rows it changed.
    pub fn apply_membership(
        &mut self,
        id: ConversationId,
        position: Position,
        appended: Micros,
        change: &Membership,
    ) -> (EventRow, Vec<StateKey>) {
        let before = self.head();
        let seq = before.seq + 1;
        let (mut joined, mut left) = (0, 0);
        let mut changes = Vec::with_capacity(change.changes.len());
        let mut keys = vec![StateKey::Head];
        for c in &change.changes {
            let grant = self.grant(c.user);
            match (grant.role == Role::None, c.role == Role::None) {
                (true, false) => joined += 1,
                (false, true) => left += 1,
                _ => {}
            }
            changes.push(MemberChange {
                user: c.user,
                role: c.role,
                before: grant,
            });
            if c.role != Role::None || !planted::is(Mistake::RemovalIgnored) {
                self.put_grant(c.user, sequencer::grant_after(&grant, change, c.role, seq));
            }
            if !keys.contains(&StateKey::Grant(c.user)) || change.changes.len() > 64 {
                keys.push(StateKey::Grant(c.user));
            }
        }
        let head = sequencer::accept_membership(&before, change, appended, joined, left);
        self.put_head(head);
        let body = MembersBody {
            version: change.version,
            kind: change.kind,
            title: change.title.clone(),
            changes,
        };
        let row = EventRow {
            user: change.by,
            kind: Kind::Members,
            members: Some(Box::new(body)),
            ..EventRow::empty(id, head.seq, position, head.ts, before.ts)
        };
        (row, keys)
    }

    /// Applies a record nobody can read: only the head moves.
    pub fn apply_unreadable(
        &mut self,
        id: ConversationId,
        position: Position,
        appended: Micros,
    ) -> EventRow {
        let before = self.head();
        let head = HeadState {
            seq: before.seq + 1,
            ts: sequencer::log_time(appended, &before),
            ..before
        };
        self.put_head(head);
        EventRow::empty(id, head.seq, position, head.ts, before.ts)
    }

    /// All events up to `seq` are in the store.
    pub fn confirmed(&mut self, seq: Seq) {
        while self.unstored.front().is_some_and(|row| row.seq <= seq) {
            self.unstored.pop_front();
        }
        if self.unstored.is_empty() {
            self.unstored = VecDeque::new();
        }
    }

    /// Whether everything it knows can be read again from the store.
    pub fn is_clean(&self) -> bool {
        self.waiting.is_none()
            && self.loading.is_none()
            && self.unstored.is_empty()
            && self.unsettled == 0
    }

    /// Drops what can be read again; the interest of gateways stays.
    pub fn forget(&mut self) {
        debug_assert!(
            self.is_clean(),
            "a changed row is forgotten only once it is stored"
        );
        self.head = None;
        self.members_read = false;
        self.members = RowsMap::default();
        self.senders = RowsMap::default();
    }

    /// How many rows it holds.
    pub fn rows(&self) -> usize {
        self.members.len() + self.senders.len()
    }
}
