//! Rows that are ahead of a record, taken back to what the log before it says.
//!
//! Pure, as `sequencer` is: what was read goes in, what stood before comes out. Reading and asking
//! again are `router/cold.rs`.

use crate::ids::{Position, Seq};
use crate::rows::{
    Before, EventRow, GrantState, HeadState, SenderState, StateKey, StateRow, StateValue,
};

/// What a row said before a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TakenBack {
    /// This; `None`: there was no row.
    Value(Option<StateValue>),
    /// The row is that of the sender's event with this seq ([`sender_after`]).
    SenderAt(Seq),
}

/// What rows said before the record at `at`.
///
/// `rows` were read first, `events` after them: those of the conversation from `at` on, in any order.
/// `None`: some that must be there are missing, so a replica was behind; both are to be read again.
pub fn take_back(
    at: Position,
    rows: impl Iterator<Item = (StateKey, Option<StateRow>)> + Clone,
    mut events: Vec<EventRow>,
) -> Option<Vec<(StateKey, TakenBack)>> {
    events.retain(|e| e.position >= at);
    events.sort_by_key(|e| e.seq);
    // Up to the row's own position every event is confirmed, so a hole there is a read that
    // missed one: asked again later. Above it an earlier router may have left holes.
    let upto = rows
        .clone()
        .filter_map(|(_, row)| Some(row?.position))
        .max()
        .unwrap_or_default();
    events.retain(|e| e.position <= upto);
    if events.windows(2).any(|pair| pair[0].seq + 1 != pair[1].seq) {
        return None;
    }
    rows.map(|(key, row)| {
        let before = match row {
            Some(row) if row.position >= at => undo(key, &row, &events)?,
            row => TakenBack::Value(row.map(|r| r.value)),
        };
        Some((key, before))
    })
    .collect()
}

/// The row of a sender whose last accepted event this is.
pub fn sender_after(event: &EventRow) -> SenderState {
    SenderState {
        grant: event.grant,
        counter: event.counter,
        id: event.id,
        seq: event.seq,
        ts: event.ts,
    }
}

/// A row as it was before the first of `events`, which are all from p on, ascending.
/// `None`: they can't be all, since the row was changed by one that isn't there.
fn undo(key: StateKey, row: &StateRow, events: &[EventRow]) -> Option<TakenBack> {
    let first = events.first()?;
    let value = match (key, row.value) {
        (StateKey::Head, StateValue::Head(head)) => {
            let (mut joined, mut left) = (0u32, 0u32);
            let mut version = None;
            // The row is of its own position: events after it haven't changed it.
            for body in events
                .iter()
                .filter(|e| e.position <= row.position)
                .filter_map(|e| e.members.as_ref())
            {
                version.get_or_insert(body.version - 1);
                for change in &body.changes {
                    match (change.before.role.is_member(), change.role.is_member()) {
                        (false, true) => joined += 1,
                        (true, false) => left += 1,
                        _ => {}
                    }
                }
            }
            let seq = first.seq - 1;
            let members = (head.members + left).saturating_sub(joined);
            let undone = HeadState {
                seq,
                ts: first.ts_before,
                version: version.unwrap_or(head.version),
                kind: head.kind,
                members,
            };
            (seq > 0).then_some(StateValue::Head(undone))
        }
        (StateKey::Sender(user, sender), _) => {
            let event = events
                .iter()
                .find(|e| e.user == user && e.sender == sender && e.counter > 0)?;
            match event.before {
                Before::Nothing => None,
                Before::Seq(seq) => return Some(TakenBack::SenderAt(seq)),
                Before::Row(state) => Some(StateValue::Sender(state)),
            }
        }
        (StateKey::Grant(user), _) => {
            let change = events
                .iter()
                .filter_map(|e| e.members.as_ref())
                .flat_map(|m| &m.changes)
                .find(|c| c.user == user)?;
            (change.before != GrantState::default()).then_some(StateValue::Grant(change.before))
        }
        _ => None,
    };
    Some(TakenBack::Value(value))
}
