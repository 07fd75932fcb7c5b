//! What a log says: every verdict, every row and every event, as the code makes them.
//!
//! Values of rows are numbered as they are met, so that a state of the search holds a byte for each.

use std::cell::RefCell;
use std::collections::HashMap;

use tidings_core::ids::{MessageKey, Micros, Position, SenderId, UserId};
use tidings_core::record::{Kind, Role};
use tidings_core::rows::{
    EventRow, GrantState, HeadState, MemberChange, MembersBody, SenderState, StateKey, StateRow,
    StateValue,
};
use tidings_core::sequencer::{self, Verdict};
use tidings_core::undo::{TakenBack, sender_after, take_back};

use super::Letter;
use crate::history::{CONVERSATION, Conversation, Entry, FOUNDING, Rec, Taken, change, day};

/// A row of state by number: head, the senders 0 and 1, the grant of user 0.
pub const HEAD: usize = 0;
/// See [`HEAD`].
pub const GRANT: usize = 3;
/// How many there are.
pub const ROWS: usize = 4;

/// All values, by row.
pub type Values = [StateValue; ROWS];

/// A log and what follows from it.
pub struct Truth {
    entries: Vec<(Entry, u16)>,
    taken: Vec<Taken>,
    /// The rows before each entry, and after the last.
    values: Vec<Values>,
    events: Vec<Option<EventRow>>,
    has_members: bool,
    numbered: RefCell<Vec<StateValue>>,
    decided: RefCell<HashMap<(u8, [u8; ROWS]), Decided>>,
}

/// What a router does with an entry.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The numbers of the rows' values after it.
    pub after: [u8; ROWS],
    /// How it differs from what the log says.
    pub wrong: Option<String>,
}

/// Where an entry stands; the founding event is at offset 0.
fn position(at: u8) -> Position {
    Position {
        epoch: 1,
        offset: u64::from(at) + 1,
    }
}

fn key(row: usize) -> StateKey {
    match row {
        HEAD => StateKey::Head,
        GRANT => StateKey::Grant(UserId(1)),
        sender => {
            let number = sender as u64;
            StateKey::Sender(UserId(number), SenderId(number))
        }
    }
}

fn head(value: &StateValue) -> HeadState {
    match value {
        StateValue::Head(head) => *head,
        _ => HeadState::default(),
    }
}

fn sender(value: &StateValue) -> SenderState {
    match value {
        StateValue::Sender(row) => *row,
        _ => SenderState::default(),
    }
}

fn grant(value: &StateValue) -> GrantState {
    match value {
        StateValue::Grant(row) => *row,
        _ => GrantState::default(),
    }
}

/// A router's whole work on one entry: the verdict, the event row, the rows of state.
fn step(
    entry: &Entry,
    at: u8,
    appended: Micros,
    rows: &Values,
) -> (Taken, Option<EventRow>, Values) {
    let founded = Conversation::founded();
    let mut conversation = Conversation {
        head: head(&rows[HEAD]),
        grants: [grant(&rows[GRANT]), founded.grants[1]],
        senders: vec![(0, sender(&rows[1])), (1, sender(&rows[2]))],
    };
    let before = conversation.clone();
    let taken = conversation.take(entry, appended);
    let event = match (&taken, entry) {
        (Taken::Sent(answer), Entry::Send(rec)) if answer.verdict == Verdict::Accepted => {
            let (before, send) = (before.before(rec), rec.send());
            let row = sequencer::event(CONVERSATION, position(at), &before, &send, answer);
            Some(row)
        }
        (Taken::Members(Verdict::Accepted, seq), _) => {
            let role = match entry {
                Entry::Add => Role::Member,
                _ => Role::None,
            };
            let change = change(conversation.head.version, role);
            let body = MembersBody {
                version: change.version,
                kind: change.kind,
                title: change.title,
                changes: vec![MemberChange {
                    user: UserId(1),
                    role,
                    before: before.grants[0],
                }],
            };
            let (ts, ts_before) = (conversation.head.ts, before.head.ts);
            Some(EventRow {
                user: change.by,
                kind: Kind::Members,
                members: Some(Box::new(body)),
                ..EventRow::empty(CONVERSATION, *seq, position(at), ts, ts_before)
            })
        }
        _ => None,
    };
    let after = [
        StateValue::Head(conversation.head),
        StateValue::Sender(conversation.senders[0].1),
        StateValue::Sender(conversation.senders[1].1),
        StateValue::Grant(conversation.grants[0]),
    ];
    (taken, event, after)
}

impl Truth {
    /// What these letters, appended on these days, come to.
    pub fn new(log: &[(Letter, u16)]) -> Truth {
        let founded = Conversation::founded();
        let first = [
            StateValue::Head(founded.head),
            StateValue::Sender(SenderState::default()),
            StateValue::Sender(SenderState::default()),
            StateValue::Grant(founded.grants[0]),
        ];
        let mut truth = Truth {
            entries: vec![],
            taken: vec![],
            values: vec![first],
            events: vec![],
            has_members: log.iter().any(|l| !matches!(l.0, Letter::Send(..))),
            numbered: RefCell::default(),
            decided: RefCell::default(),
        };
        // The seq of the event that brings the user back is the second grant.
        let mut second = 0;
        for (at, (letter, on)) in log.iter().enumerate() {
            let entry = match *letter {
                Letter::Remove => Entry::Remove,
                Letter::Add => Entry::Add,
                Letter::Send(device, which, counter) => {
                    let id = |counter: u8| match counter {
                        0 => 0,
                        _ => (device * 4 + which) * 8 + counter,
                    };
                    Entry::Send(Rec {
                        user: device,
                        sender: device,
                        grant: if which == 1 { FOUNDING } else { second },
                        counter,
                        id: id(counter),
                        previous: id(counter - 1),
                        once: false,
                    })
                }
            };
            let before = truth.values[at];
            let (taken, event, after) = step(&entry, at as u8, day(*on), &before);
            if let (Entry::Add, Taken::Members(_, seq)) = (entry, taken) {
                second = seq as u8;
            }
            truth.entries.push((entry, *on));
            truth.taken.push(taken);
            truth.events.push(event);
            truth.values.push(after);
        }
        truth
    }

    /// How many entries the log has.
    pub fn length(&self) -> u8 {
        self.entries.len() as u8
    }

    /// The verdicts, for a report.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let verdict = |t: &Taken| match t {
            Taken::Sent(answer) => answer.verdict,
            Taken::Members(verdict, _) => *verdict,
        };
        self.taken.iter().map(verdict).collect()
    }

    /// Whether the entry has an event row.
    pub fn is_accepted(&self, at: u8) -> bool {
        self.events[usize::from(at)].is_some()
    }

    /// Whether the entry changes a row.
    pub fn changes(&self, at: u8, row: usize) -> bool {
        self.is_accepted(at) && self.rows_of(at).contains(&row)
    }

    /// The rows that an accepted entry changes.
    pub fn rows_of(&self, at: u8) -> [usize; 2] {
        match self.entries[usize::from(at)].0 {
            Entry::Send(rec) => [HEAD, 1 + usize::from(rec.sender)],
            _ => [HEAD, GRANT],
        }
    }

    /// The rows that the verdict on an entry needs. A grant that nothing changes is left out.
    pub fn needs(&self, at: u8) -> &'static [usize] {
        match self.entries[usize::from(at)].0 {
            Entry::Send(rec) if rec.user == 1 => &[HEAD, 2],
            Entry::Send(_) if self.has_members => &[HEAD, 1, GRANT],
            Entry::Send(_) => &[HEAD, 1],
            _ => &[HEAD, GRANT],
        }
    }

    /// The version of a row after the entries from `from` up to `to`: 1 + the entry that changed it last.
    pub fn version(&self, row: usize, from: u8, to: u8) -> u8 {
        let last = (from..to).rev().find(|&at| self.changes(at, row));
        last.map_or(0, |at| at + 1)
    }

    /// What a version of a row is stamped with.
    pub fn stamp(&self, version: u8) -> Micros {
        match version.checked_sub(1) {
            None => day(0),
            Some(at) => self.events[usize::from(at)].as_ref().map_or(0, |e| e.ts),
        }
    }

    fn number(&self, value: StateValue) -> u8 {
        let mut numbered = self.numbered.borrow_mut();
        let known = numbered.iter().position(|&v| v == value);
        let at = known.unwrap_or_else(|| {
            numbered.push(value);
            numbered.len() - 1
        });
        u8::try_from(at)
            .ok()
            .filter(|&n| n != super::NO)
            .expect("a short log has few values")
    }

    fn value(&self, number: u8) -> StateValue {
        self.numbered.borrow()[usize::from(number)]
    }

    /// The number of what a version of a row says.
    pub fn number_of(&self, row: usize, version: u8) -> u8 {
        self.number(self.values[usize::from(version)][row])
    }

    /// A router's work on an entry, from the values it knows.
    pub fn decide(&self, at: u8, known: [u8; ROWS]) -> Decided {
        if let Some(done) = self.decided.borrow().get(&(at, known)) {
            return done.clone();
        }
        let mut rows = self.values[0];
        for (row, &number) in known.iter().enumerate().filter(|k| *k.1 != super::NO) {
            rows[row] = self.value(number);
        }
        let (entry, on) = &self.entries[usize::from(at)];
        let (taken, event, values) = step(entry, at, day(*on), &rows);
        let mut after = known;
        if event.is_some() {
            for row in self.rows_of(at) {
                after[row] = self.number(values[row]);
            }
        }
        let (want, row) = (&self.taken[usize::from(at)], &self.events[usize::from(at)]);
        let wrong = if taken != *want {
            Some(format!(
                "says {taken:?} to entry {at}, the log says {want:?}"
            ))
        } else if event != *row {
            Some(format!(
                "makes {event:?} of entry {at}, the log says {row:?}"
            ))
        } else {
            None
        };
        let done = Decided { after, wrong };
        self.decided.borrow_mut().insert((at, known), done.clone());
        done
    }

    /// The rows before an entry, from versions that were read and then the events that were:
    /// the code's own undoing. `None`: it would ask again.
    pub fn before(
        &self,
        at: u8,
        rows: &[usize],
        versions: [u8; ROWS],
        events: u16,
        exactly: bool,
    ) -> Option<Vec<(usize, u8)>> {
        let read = |&row: &usize| {
            let version = versions[row];
            let absent = version == 0 && (row == 1 || row == 2);
            let state = (!absent).then(|| StateRow {
                conversation: CONVERSATION,
                key: key(row),
                position: version.checked_sub(1).map_or(
                    Position {
                        epoch: 1,
                        offset: 0,
                    },
                    position,
                ),
                ts: self.stamp(version),
                value: self.values[usize::from(version)][row],
            });
            (key(row), state)
        };
        let is_seen = |at: &u8| events & (1 << at) != 0;
        let seen: Vec<EventRow> = (0..self.length())
            .filter(is_seen)
            .filter_map(|at| self.events[usize::from(at)].clone())
            .collect();
        let states: Vec<(StateKey, Option<StateRow>)> = rows.iter().map(read).collect();
        let ahead = take_back(position(at), states.iter().copied(), seen.clone())?;
        let mut out = vec![];
        for (&row, (_, back)) in rows.iter().zip(ahead) {
            let is_sender = row == 1 || row == 2;
            let value = match back {
                _ if !exactly && is_sender && versions[row] > at => {
                    let mut after = (at..self.length()).filter(is_seen);
                    let first = after.find(|&q| self.changes(q, row))?;
                    self.counted_back(first)
                }
                TakenBack::Value(Some(value)) => value,
                TakenBack::Value(None) if is_sender => StateValue::Sender(SenderState::default()),
                TakenBack::Value(None) if row == HEAD => StateValue::Head(HeadState::default()),
                TakenBack::Value(None) => StateValue::Grant(GrantState::default()),
                TakenBack::SenderAt(seq) => {
                    let event = seen.iter().find(|e| e.seq == seq)?;
                    StateValue::Sender(sender_after(event))
                }
            };
            out.push((row, self.number(value)));
        }
        Some(out)
    }

    /// The sender's row before an event, had the event only its counter and the id before.
    fn counted_back(&self, at: u8) -> StateValue {
        let Entry::Send(rec) = self.entries[usize::from(at)].0 else {
            return StateValue::Sender(SenderState::default());
        };
        StateValue::Sender(SenderState {
            grant: u64::from(rec.grant),
            counter: u64::from(rec.counter) - 1,
            id: MessageKey(u64::from(rec.previous)),
            ..SenderState::default()
        })
    }
}
