//! The store as a model: rows where the later position wins, cursors that only grow, and for the
//! kind that gathers rows in memory a crash that falls back to what was flushed.

use std::collections::BTreeMap;

use tidings_core::ids::{ConversationId, Position, Seq, UserId};
use tidings_core::rows::{CursorRow, EventRow, MemberRows, StateKey, StateRow};

use crate::Bug;
use crate::random::Random;

/// So few that some of the conversations have more members.
pub(crate) const MEMBERS_TOGETHER: usize = 5;

/// A call of the store's port.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    PutEvents(Vec<EventRow>),
    PutState(Vec<StateRow>),
    /// Answered with what is there then if `check` says so, else with the same.
    PutCursors {
        rows: Vec<CursorRow>,
        check: bool,
    },
    Settle(Position),
    ReadState(ConversationId, Vec<StateKey>),
    ReadSince(ConversationId, Position),
    ReadEvents(ConversationId, Vec<Seq>),
    ReadRange(ConversationId, Seq, Seq, usize),
    ReadCursors(ConversationId, Vec<UserId>),
    ReadMembers(ConversationId),
}

/// Its answer.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Done,
    Settled(Position),
    State(Vec<Option<StateRow>>),
    Events(Vec<EventRow>),
    Cursors(Vec<CursorRow>),
    Members(Option<MemberRows>),
}

/// What a call has done whose answer is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Loss {
    /// Some rows of a write.
    Part,
    /// All of it.
    Whole,
    /// Nothing yet: it comes when the caller was told that it failed.
    Late,
    /// Nothing.
    Never,
}

impl Loss {
    /// All of them.
    pub const ALL: [Loss; 4] = [Loss::Part, Loss::Whole, Loss::Late, Loss::Never];
}

#[derive(Clone, Debug)]
enum Write {
    Event(EventRow),
    State(StateRow),
    Cursor(CursorRow),
}

#[derive(Clone, Debug, Default)]
struct Tables {
    events: BTreeMap<(ConversationId, Seq), EventRow>,
    state: BTreeMap<(ConversationId, StateKey), StateRow>,
    cursors: BTreeMap<(ConversationId, UserId), CursorRow>,
}

impl Tables {
    fn apply(&mut self, write: Write, bug: Option<Bug>) {
        match write {
            Write::Event(row) => _ = self.events.insert((row.conversation, row.seq), row),
            Write::State(row) => {
                let kept = self.state.entry((row.conversation, row.key)).or_insert(row);
                if row.position >= kept.position || bug == Some(Bug::LateWriteWins) {
                    *kept = row;
                }
            }
            Write::Cursor(row) => {
                let kept = self
                    .cursors
                    .entry((row.conversation, row.user))
                    .or_insert(row);
                if bug == Some(Bug::ReceiptGoingBack) {
                    *kept = row;
                }
                kept.delivered = kept.delivered.max(row.delivered);
                kept.read = kept.read.max(row.read);
            }
        }
    }
}

/// The store.
pub(crate) struct SimStore {
    tables: Tables,
    /// What a crash leaves.
    kept: Tables,
    /// Writes since the last flush.
    unflushed: Vec<Write>,
    flushed: Position,
    settled: Position,
    /// Whether rows are gathered in memory, leaning on the log, as the embedded store does.
    pub gathers: bool,
    /// What is planted.
    pub bug: Option<Bug>,
    /// Planted: rows of state as they were before their last write.
    replica: BTreeMap<(ConversationId, StateKey), StateRow>,
    /// Planted: some of the rows written.
    cache: BTreeMap<(ConversationId, StateKey), StateRow>,
}

impl SimStore {
    pub fn new(gathers: bool) -> SimStore {
        SimStore {
            tables: Tables::default(),
            kept: Tables::default(),
            unflushed: Vec::new(),
            flushed: Position::default(),
            settled: Position::default(),
            gathers,
            bug: None,
            replica: BTreeMap::new(),
            cache: BTreeMap::new(),
        }
    }

    /// Does what is asked.
    pub fn execute(&mut self, call: &Call, random: &mut Random) -> Reply {
        match call {
            Call::PutEvents(rows) => self.write(rows.iter().cloned().map(Write::Event)),
            Call::PutState(rows) => {
                self.copy(rows, random);
                self.write(rows.iter().copied().map(Write::State))
            }
            Call::PutCursors { rows, check } => {
                // Durable on return, in every kind of store.
                for &row in rows {
                    self.tables.apply(Write::Cursor(row), self.bug);
                    self.kept.apply(Write::Cursor(row), self.bug);
                }
                let now = |row: &CursorRow| match check {
                    true => self.tables.cursors[&(row.conversation, row.user)],
                    false => *row,
                };
                Reply::Cursors(rows.iter().map(now).collect())
            }
            Call::Settle(position) => self.settle(*position, random),
            Call::ReadState(conversation, keys) => {
                let row = |&key: &StateKey| self.state_row(*conversation, key);
                Reply::State(keys.iter().map(row).collect())
            }
            Call::ReadMembers(conversation) => {
                let of_it = (*conversation, StateKey::Head)..;
                let keys = self.tables.state.range(of_it).map(|(key, _)| key);
                let keys = keys.take_while(|key| {
                    key.0 == *conversation && !matches!(key.1, StateKey::Sender(..))
                });
                let state: Vec<StateRow> = keys
                    .filter_map(|key| self.state_row(key.0, key.1))
                    .collect();
                let cursors = self.tables.cursors.range((*conversation, UserId(0))..);
                let cursors = cursors.take_while(|(key, _)| key.0 == *conversation);
                let found = MemberRows {
                    cursors: cursors.map(|(_, row)| *row).collect(),
                    state,
                };
                Reply::Members((found.state.len() <= MEMBERS_TOGETHER + 1).then_some(found))
            }
            Call::ReadSince(conversation, from) => {
                let mut rows: Vec<EventRow> = self
                    .range(*conversation, 1, Seq::MAX)
                    .rev()
                    .take_while(|row| row.position >= *from)
                    .cloned()
                    .collect();
                rows.reverse();
                Reply::Events(rows)
            }
            Call::ReadEvents(conversation, seqs) => {
                let row = |&seq: &Seq| self.tables.events.get(&(*conversation, seq)).cloned();
                Reply::Events(seqs.iter().filter_map(row).collect())
            }
            Call::ReadRange(conversation, from, to, bytes_max) => {
                let mut bytes = 0;
                let fits = |row: &&EventRow| {
                    let is_first = bytes == 0;
                    bytes += row.body.len() + 1;
                    is_first || bytes <= *bytes_max
                };
                let rows = self.range(*conversation, *from, *to).take_while(fits);
                Reply::Events(rows.cloned().collect())
            }
            Call::ReadCursors(conversation, users) => {
                let row = |&user: &UserId| self.tables.cursors.get(&(*conversation, user)).copied();
                Reply::Cursors(users.iter().filter_map(row).collect())
            }
        }
    }

    fn state_row(&self, conversation: ConversationId, key: StateKey) -> Option<StateRow> {
        let key = (conversation, key);
        let copies = match self.bug {
            Some(Bug::HeadReadAtOne) if key.1 == StateKey::Head => &self.replica,
            Some(Bug::HeadFromCache) if key.1 == StateKey::Head => &self.cache,
            _ => &self.tables.state,
        };
        let row = copies.get(&key).or_else(|| self.tables.state.get(&key));
        row.copied()
    }

    /// Does what a call may have done whose answer is lost. What is left is to be done late.
    pub fn lose(&mut self, call: &Call, loss: Loss, random: &mut Random) -> Option<Call> {
        match loss {
            Loss::Part => self.execute_part(call, random),
            Loss::Whole => _ = self.execute(call, random),
            Loss::Late => return Some(call.clone()),
            Loss::Never => {}
        }
        None
    }

    /// Does a part of a write: any rows of it, as they are written side by side.
    fn execute_part(&mut self, call: &Call, random: &mut Random) {
        fn part<T: Clone>(rows: &[T], random: &mut Random) -> Vec<T> {
            if random.permille(500) {
                // Most often it just ends somewhere.
                return rows[..random.below(rows.len() as u64 + 1) as usize].to_vec();
            }
            let some = rows.iter().filter(|_| random.permille(500));
            some.cloned().collect()
        }
        let call = match call {
            Call::PutEvents(rows) => Call::PutEvents(part(rows, random)),
            Call::PutState(rows) => Call::PutState(part(rows, random)),
            Call::PutCursors { rows, check } => Call::PutCursors {
                rows: part(rows, random),
                check: *check,
            },
            _ => return,
        };
        self.execute(&call, random);
    }

    fn range(
        &self,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
    ) -> impl DoubleEndedIterator<Item = &EventRow> {
        let rows = (from <= to).then(|| {
            let range = (conversation, from)..=(conversation, to);
            self.tables.events.range(range)
        });
        rows.into_iter().flatten().map(|(_, row)| row)
    }

    fn write(&mut self, writes: impl Iterator<Item = Write>) -> Reply {
        for write in writes {
            self.tables.apply(write.clone(), self.bug);
            self.unflushed.push(write);
        }
        if !self.gathers {
            self.flush();
        }
        Reply::Done
    }

    /// Keeps what a replica that is one write behind has, and a cache that doesn't get every write.
    fn copy(&mut self, rows: &[StateRow], random: &mut Random) {
        match self.bug {
            Some(Bug::HeadReadAtOne) => {
                for row in rows {
                    let key = (row.conversation, row.key);
                    if let Some(before) = self.tables.state.get(&key) {
                        self.replica.insert(key, *before);
                    }
                }
            }
            Some(Bug::HeadFromCache) if random.permille(900) => {
                let keyed = |row: &StateRow| ((row.conversation, row.key), *row);
                self.cache.extend(rows.iter().map(keyed));
            }
            _ => {}
        }
    }

    fn settle(&mut self, position: Position, random: &mut Random) -> Reply {
        self.settled = self.settled.max(position);
        if !self.gathers || self.bug == Some(Bug::SettledBeforeFlush) {
            return Reply::Settled(position);
        }
        if random.permille(150) {
            self.flush();
            self.flushed = self.settled;
        }
        Reply::Settled(self.flushed.min(position))
    }

    fn flush(&mut self) {
        for write in self.unflushed.drain(..) {
            self.kept.apply(write, self.bug);
        }
    }

    /// Power is lost: of what wasn't flushed a part from its beginning may be left.
    pub fn crash(&mut self, random: &mut Random) {
        let unflushed = self.unflushed.len() as u64;
        let left = match random.below(3) {
            0 => 0,
            1 => unflushed,
            _ => random.below(unflushed + 1),
        };
        self.unflushed.truncate(left as usize);
        self.flush();
        self.tables = self.kept.clone();
        self.settled = self.flushed;
    }

    /// The events of a conversation, for the comparison at the end.
    pub fn events(&self, conversation: ConversationId) -> impl Iterator<Item = &EventRow> {
        self.range(conversation, 1, Seq::MAX)
    }
}
