//! Cold rows: what the store says, taken back to what the log before the record says.
//!
//! For a record at position p (design.md, "State"): read the rows. A row whose position
//! is before p is the answer; no row: nothing before. A row at or after p was written by
//! another router, or by this one in an earlier life; then, *after* the row, the events
//! from p on are read and undone: each carries what it changed.
//!
//! When a server is gone all members of its conversations come to one router that knows none of them. Where
//! the store reads many rows as cheaply as one, the first who comes has all members' rows read.

use std::collections::HashMap;

use crate::ids::{ConversationId, Micros, Position, Seq, UserId};
use crate::path::{Effect, Router};
use crate::planted::{self, Mistake};
use crate::rows::{CursorRow, EventRow, MemberRows, StateKey, StateRow, StateValue};
use crate::undo::{TakenBack, sender_after, take_back};

/// Rows that a piece of work needs and memory doesn't have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    pub state: Vec<StateKey>,
    pub cursors: Vec<UserId>,
}

impl Missing {
    pub fn is_empty(&self) -> bool {
        self.state.is_empty() && self.cursors.is_empty()
    }
}

/// A read under way for one conversation.
#[derive(Debug)]
struct Load {
    conversation: ConversationId,
    /// The position of the record it is for, or the next one that will come.
    at: Position,
    asked: Micros,
    stage: Stage,
    missing: Missing,
}

#[derive(Debug)]
enum Stage {
    /// All members', where some of them come.
    Members,
    State,
    /// Rows ahead of `at` are undone with the events since.
    Since {
        rows: Vec<Option<StateRow>>,
    },
    /// Senders whose row before is an event of its own.
    Events {
        values: Vec<(StateKey, Option<StateValue>)>,
        senders: Vec<(StateKey, Seq)>,
    },
    Cursors,
}

impl Stage {
    /// Where to begin with these one by one.
    fn of(missing: &Missing) -> Stage {
        if missing.state.is_empty() {
            Stage::Cursors
        } else {
            Stage::State
        }
    }
}

/// Whether somebody's grant and cursor are needed, as for all who come, and nothing that members' rows don't say.
fn is_about_members(missing: &Missing) -> bool {
    let is_sender = |key: &StateKey| matches!(key, StateKey::Sender(..));
    !missing.cursors.is_empty() && !missing.state.iter().any(is_sender)
}

#[derive(Debug, Default)]
pub(crate) struct Loads {
    under_way: HashMap<u64, Load>,
    last: u64,
}

impl Loads {
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }
}

impl Router {
    /// Starts to read what is missing; the conversation's work goes on when it is there.
    pub(crate) fn load(&mut self, id: ConversationId, missing: Missing) {
        self.counters.cold_loads += 1;
        self.loads.last += 1;
        let number = self.loads.last;
        let next = self.next;
        let together = self.config.members_together;
        let conversation = self.conversation(id);
        // What is read must say what the log before the first record that waits says. One that comes meanwhile and
        // needs none of these rows changes none of them, so they say the same of the log before the next one.
        let at = conversation.first_waiting().unwrap_or(next);
        conversation.loading = Some(number);
        let stage = if together && !conversation.members_read && is_about_members(&missing) {
            Stage::Members
        } else {
            Stage::of(&missing)
        };
        self.ask(
            number,
            Load {
                conversation: id,
                at,
                asked: self.now,
                stage,
                missing,
            },
        );
    }

    fn ask(&mut self, number: u64, mut load: Load) {
        load.asked = self.now;
        let conversation = load.conversation;
        self.out.push(match &load.stage {
            Stage::Members => Effect::ReadMembers {
                load: number,
                conversation,
            },
            Stage::State => Effect::ReadState {
                load: number,
                conversation,
                keys: load.missing.state.clone(),
            },
            Stage::Since { .. } => Effect::ReadSince {
                load: number,
                conversation,
                from: load.at,
            },
            Stage::Events { senders, .. } => Effect::ReadEvents {
                load: number,
                conversation,
                seqs: senders.iter().map(|s| s.1).collect(),
            },
            Stage::Cursors => Effect::ReadCursors {
                load: number,
                conversation,
                users: load.missing.cursors.clone(),
            },
        });
        self.loads.under_way.insert(number, load);
    }

    /// Asks again what nobody answered.
    pub(crate) fn retry_loads(&mut self) {
        let (now, after) = (self.now, self.config.store_retry_after);
        let mut late: Vec<u64> = self
            .loads
            .under_way
            .iter()
            .filter(|(_, l)| now.saturating_sub(l.asked) >= after)
            .map(|(&n, _)| n)
            .collect();
        late.sort_unstable();
        for number in late {
            let mut load = self.loads.under_way.remove(&number).expect("just listed");
            // An answer to the old question may still come; only the new number counts.
            self.loads.last += 1;
            let again = self.loads.last;
            // Rows may have moved since: the question starts from its beginning.
            if !matches!(load.stage, Stage::Members | Stage::Cursors) {
                load.stage = Stage::State;
            }
            self.conversation(load.conversation).loading = Some(again);
            self.ask(again, load);
        }
    }

    /// The answer to [`Effect::ReadMembers`]; `None`: the store couldn't say.
    pub fn members_read(&mut self, number: u64, found: Option<Option<MemberRows>>, now: Micros) {
        self.now = now;
        let Some(load) = self.loads.under_way.get(&number) else {
            return;
        };
        let (Stage::Members, Some(found)) = (&load.stage, found) else {
            return;
        };
        let mut load = self.loads.under_way.remove(&number).expect("just found");
        let conversation = self.conversation(load.conversation);
        conversation.members_read = true;
        let Some(found) = found else {
            load.stage = Stage::of(&load.missing);
            return self.ask(number, load);
        };
        let rows: HashMap<StateKey, StateRow> =
            found.state.into_iter().map(|row| (row.key, row)).collect();
        let asked = std::mem::take(&mut load.missing.cursors);
        let members = rows.keys().filter_map(|key| match key {
            StateKey::Grant(user) => Some(*user),
            _ => None,
        });
        // Whoever has no row has got nothing yet.
        for user in asked.into_iter().chain(members) {
            conversation.learn_cursor(user, 0, 0);
        }
        for row in found.cursors {
            conversation.learn_cursor(row.user, row.delivered, row.read);
        }
        // Only what isn't known: the rest may have been changed by records since, and would be taken back for nothing.
        let keys = &mut load.missing.state;
        let is_wanted = |key: &StateKey| !conversation.has(*key) && !keys.contains(key);
        let mut others: Vec<StateKey> = rows.keys().copied().filter(is_wanted).collect();
        others.sort_unstable();
        keys.extend(others);
        let rows = keys.iter().map(|key| rows.get(key).copied()).collect();
        self.rows_read(number, load, rows);
    }

    /// The answer to [`Effect::ReadState`]; `None`: the store couldn't say.
    pub fn state_read(&mut self, number: u64, rows: Option<Vec<Option<StateRow>>>, now: Micros) {
        self.now = now;
        let Some(load) = self.loads.under_way.get(&number) else {
            return;
        };
        let (Stage::State, Some(rows)) = (&load.stage, rows) else {
            return;
        };
        if rows.len() != load.missing.state.len() {
            return;
        }
        let load = self.loads.under_way.remove(&number).expect("just found");
        self.rows_read(number, load, rows);
    }

    fn rows_read(&mut self, number: u64, mut load: Load, rows: Vec<Option<StateRow>>) {
        let is_ahead = rows.iter().flatten().any(|row| row.position >= load.at);
        if is_ahead && !planted::is(Mistake::RowsNotUndone) {
            self.counters.undone += 1;
            load.stage = Stage::Since { rows };
            return self.ask(number, load);
        }
        let values = load
            .missing
            .state
            .iter()
            .copied()
            .zip(rows.iter().map(|r| r.map(|r| r.value)))
            .collect();
        self.state_known(number, load, values);
    }

    /// The answer to [`Effect::ReadSince`].
    pub fn since_read(&mut self, number: u64, events: Option<Vec<EventRow>>, now: Micros) {
        self.now = now;
        let Some(load) = self.loads.under_way.get(&number) else {
            return;
        };
        let (Stage::Since { rows }, Some(events)) = (&load.stage, events) else {
            return;
        };
        let keys = load.missing.state.iter().copied();
        let Some(before) = take_back(load.at, keys.zip(rows.iter().copied()), events) else {
            return; // Not all there (a stale replica): asked again later.
        };
        let mut values = Vec::new();
        let mut senders = Vec::new();
        for (key, row) in before {
            match row {
                TakenBack::Value(value) => values.push((key, value)),
                TakenBack::SenderAt(seq) => senders.push((key, seq)),
            }
        }
        let mut load = self.loads.under_way.remove(&number).expect("just found");
        if senders.is_empty() {
            return self.state_known(number, load, values);
        }
        load.stage = Stage::Events { values, senders };
        self.ask(number, load);
    }

    /// The answer to [`Effect::ReadEvents`]: the events that exist, in any order.
    pub fn events_read(&mut self, number: u64, events: Option<Vec<EventRow>>, now: Micros) {
        self.now = now;
        let Some(load) = self.loads.under_way.get(&number) else {
            return;
        };
        let (Stage::Events { values, senders }, Some(events)) = (&load.stage, events) else {
            return;
        };
        let mut values = values.clone();
        for &(key, seq) in senders {
            let Some(event) = events.iter().find(|e| e.seq == seq) else {
                return;
            };
            let state = sender_after(event);
            values.push((key, Some(StateValue::Sender(state))));
        }
        let load = self.loads.under_way.remove(&number).expect("just found");
        self.state_known(number, load, values);
    }

    fn state_known(
        &mut self,
        number: u64,
        mut load: Load,
        values: Vec<(StateKey, Option<StateValue>)>,
    ) {
        let conversation = self.conversation(load.conversation);
        for (key, value) in values {
            conversation.learn(key, value);
        }
        load.missing.state.clear();
        if load.missing.cursors.is_empty() {
            return self.loaded(load.conversation);
        }
        load.stage = Stage::Cursors;
        self.ask(number, load);
    }

    /// The answer to [`Effect::ReadCursors`].
    pub fn cursors_read(&mut self, number: u64, rows: Option<Vec<CursorRow>>, now: Micros) {
        self.now = now;
        let Some(load) = self.loads.under_way.get(&number) else {
            return;
        };
        let (Stage::Cursors, Some(rows)) = (&load.stage, rows) else {
            return;
        };
        let load = self.loads.under_way.remove(&number).expect("just found");
        let conversation = self.conversation(load.conversation);
        for user in load.missing.cursors {
            let row = rows
                .iter()
                .find(|r| r.user == user)
                .copied()
                .unwrap_or_default();
            conversation.learn_cursor(user, row.delivered, row.read);
        }
        self.loaded(load.conversation);
    }

    fn loaded(&mut self, id: ConversationId) {
        self.conversation(id).loading = None;
        self.work(id);
        self.launch();
    }

    /// Forgets quiet conversations when there are too many rows in memory.
    pub(crate) fn forget_quiet(&mut self) {
        for row in self.flights.take_landed() {
            if let Some(conversation) = self.conversations.get_mut(&row.conversation) {
                conversation.unsettled = conversation.unsettled.saturating_sub(1);
            }
        }
        if self.conversations.len() <= self.config.conversations_max {
            return;
        }
        let mut quiet: Vec<(Micros, ConversationId)> = self
            .conversations
            .iter()
            .filter(|(_, c)| c.is_clean() && c.rows() > 0)
            .map(|(&id, c)| (c.touched, id))
            .collect();
        quiet.sort_unstable();
        let excess = self.conversations.len() - self.config.conversations_max * 9 / 10;
        for (_, id) in quiet.into_iter().take(excess) {
            if self.receipts.holds(id) {
                continue;
            }
            let conversation = self.conversation(id);
            conversation.forget();
            if conversation.interested.is_empty() || planted::is(Mistake::InterestForgotten) {
                self.conversations.remove(&id);
            }
        }
    }
}
