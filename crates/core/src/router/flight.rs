//! Flights: event rows on their way to the store, and what follows when they are there.
//!
//! A flight is what one call of `Router::records` accepted. In order of their launch:
//!
//! ```text
//! launched ─ events confirmed ──▶ fanned out ─ all earlier confirmed ─▶ state written ─▶ landed
//!         └─ 500 ms, no answer ─▶ fanned out, still flying
//! ```
//!
//! Rows of state are the same few rows again and again, so those of many flights are written
//! at once, the last of each key, every `commit_every`.
//!
//! Invariants: 1 fan-out keeps the order of launch. 2 A flight's rows of state are
//! written only when its event rows and those of all earlier flights are confirmed.
//! 3 The position is settled only before the first flight that hasn't landed.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::ids::{Micros, Position, SessionId};
use crate::planted::{self, Mistake};
use crate::rows::{EventRow, StateKey, StateRow};

/// An accepted event on its way.
#[derive(Clone, Debug)]
pub(crate) struct Cargo {
    pub row: Arc<EventRow>,
    pub except: SessionId,
    pub taken: Micros,
}

#[derive(Debug)]
struct Flight {
    number: u64,
    /// The lowest position in it.
    low: Position,
    cargo: Vec<Cargo>,
    state: Vec<StateRow>,
    bytes: usize,
    launched: Micros,
    asked: Micros,
    confirmed: bool,
    fanned_out: bool,
    /// Its events were given to `take_confirmed`.
    released: bool,
    state_asked: Option<Micros>,
}

/// All flights that haven't landed, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    flying: VecDeque<Flight>,
    gathering: Option<Flight>,
    last: u64,
    bytes: usize,
    /// When rows of state were last written.
    committed: Option<Micros>,
    /// Conversations whose rows of state landed and are not yet collected.
    landed: Vec<StateRow>,
}

/// What one event costs beside its body until its rows of state have landed, about.
const ROW_BYTES: usize = 256;

impl Flights {
    /// Adds an accepted event to the flight being gathered.
    pub fn load(
        &mut self,
        position: Position,
        row: Arc<EventRow>,
        state: impl Iterator<Item = StateRow>,
        except: SessionId,
        taken: Micros,
    ) {
        let flight = self.gathering.get_or_insert_with(|| {
            self.last += 1;
            Flight {
                number: self.last,
                low: position,
                cargo: Vec::new(),
                state: Vec::new(),
                bytes: 0,
                launched: 0,
                asked: 0,
                confirmed: false,
                fanned_out: false,
                released: false,
                state_asked: None,
            }
        });
        flight.low = flight.low.min(position);
        let bytes = row.body.len() + ROW_BYTES;
        flight.bytes += bytes;
        self.bytes += bytes;
        flight.state.extend(state);
        flight.cargo.push(Cargo { row, except, taken });
    }

    /// Bytes of all rows not landed.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sends off what was gathered.
    pub fn launch(&mut self, now: Micros) -> Option<(u64, Vec<EventRow>)> {
        let mut flight = self.gathering.take()?;
        (flight.launched, flight.asked) = (now, now);
        let rows = flight.rows();
        let number = flight.number;
        self.flying.push_back(flight);
        Some((number, rows))
    }

    /// Flights whose event rows nobody confirmed in time, to be sent again.
    pub fn overdue(&mut self, now: Micros, after: Micros) -> Vec<(u64, Vec<EventRow>)> {
        let mut again = Vec::new();
        for flight in &mut self.flying {
            let is_late = now.saturating_sub(flight.asked) >= after;
            if !flight.confirmed && is_late && !planted::is(Mistake::StoreNotAskedAgain) {
                flight.asked = now;
                again.push((flight.number, flight.rows()));
            }
            if flight
                .state_asked
                .is_some_and(|at| now.saturating_sub(at) >= after)
            {
                flight.state_asked = None;
            }
        }
        again
    }

    pub fn events_stored(&mut self, number: u64, ok: bool) {
        if let Some(flight) = self.flying.iter_mut().find(|f| f.number == number) {
            flight.confirmed |= ok;
        }
    }

    /// The oldest flight not fanned out, if it may be: confirmed, or the store is slow.
    pub fn next_to_fan_out(&mut self, now: Micros, slow_after: Micros) -> Option<Vec<Cargo>> {
        // Not the oldest flight: that one may be confirmed, and only wait for its rows of state.
        let unanswered = self.flying.iter().find(|f| !f.confirmed);
        let slow = unanswered.is_some_and(|f| now.saturating_sub(f.launched) >= slow_after);
        let flight = self.flying.iter_mut().find(|f| !f.fanned_out)?;
        if !flight.confirmed && !slow {
            return None;
        }
        flight.fanned_out = true;
        Some(flight.cargo.clone())
    }

    /// The events that, with all earlier ones, the store has confirmed since the last call.
    pub fn take_confirmed(&mut self) -> Vec<Arc<EventRow>> {
        let mut rows = Vec::new();
        for flight in self.flying.iter_mut().take_while(|f| f.confirmed) {
            if !flight.released {
                flight.released = true;
                rows.extend(flight.cargo.iter().map(|c| c.row.clone()));
            }
            if flight.fanned_out {
                // Only its rows of state are needed now.
                let bodies: usize = flight.cargo.drain(..).map(|c| c.row.body.len()).sum();
                flight.bytes -= bodies;
                self.bytes -= bodies;
            }
        }
        rows
    }

    /// The rows of state that may be written now: the last of each key up to the last confirmed
    /// flight, unless the last ones were written less than `every` ago.
    pub fn next_state(&mut self, now: Micros, every: Micros) -> Option<(u64, Vec<StateRow>)> {
        let early = self
            .committed
            .is_some_and(|at| now.saturating_sub(at) < every);
        if early || self.flying.iter().any(|f| f.state_asked.is_some()) {
            return None; // One write at a time; it covers more of them.
        }
        let ready = self
            .flying
            .iter()
            .take_while(|f| f.confirmed && f.fanned_out || planted::is(Mistake::StateBeforeEvents))
            .count();
        let last = ready.checked_sub(1)?;
        let mut latest =
            std::collections::HashMap::<(crate::ids::ConversationId, StateKey), StateRow>::new();
        for row in self.flying.iter().take(ready).flat_map(|f| &f.state) {
            latest.insert((row.conversation, row.key), *row);
        }
        let mut rows: Vec<StateRow> = latest.into_values().collect();
        rows.sort_unstable_by_key(|row| (row.conversation, row.key));
        let flight = &mut self.flying[last];
        flight.state_asked = Some(now);
        self.committed = Some(now);
        Some((flight.number, rows))
    }

    /// Lands all flights up to this one, or has their rows written again.
    pub fn state_stored(&mut self, number: u64, ok: bool) {
        let Some(at) = self
            .flying
            .iter()
            .position(|f| f.number == number && f.state_asked.is_some())
        else {
            return;
        };
        if !ok {
            return; // Written again when it is overdue, so that a failing store isn't hammered.
        }
        for flight in self.flying.drain(..=at) {
            self.bytes -= flight.bytes;
            self.landed.extend(flight.state);
        }
    }

    /// The rows of state that landed since the last call.
    pub fn take_landed(&mut self) -> Vec<StateRow> {
        std::mem::take(&mut self.landed)
    }

    /// The lowest position that hasn't landed.
    pub fn lowest(&self) -> Option<Position> {
        self.flying
            .iter()
            .chain(&self.gathering)
            .map(|f| f.low)
            .min()
    }
}

impl Flight {
    fn rows(&self) -> Vec<EventRow> {
        self.cargo.iter().map(|c| (*c.row).clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ConversationId;
    use crate::rows::{HeadState, StateValue};

    const SLOW: Micros = 500;

    fn launched(flights: &mut Flights, offset: u64, now: Micros) -> u64 {
        let position = Position { epoch: 1, offset };
        let row = EventRow::empty(ConversationId(1), offset, position, offset, 0);
        let state = StateRow {
            conversation: ConversationId(1),
            key: StateKey::Head,
            position,
            ts: offset,
            value: StateValue::Head(HeadState::default()),
        };
        flights.load(
            position,
            Arc::new(row),
            [state].into_iter(),
            SessionId(0),
            0,
        );
        flights.launch(now).expect("something was loaded").0
    }

    #[test]
    fn a_store_that_stops_answering_holds_up_nobody_for_longer_than_the_limit() {
        let mut flights = Flights::default();
        let first = launched(&mut flights, 1, 0);
        flights.events_stored(first, true);
        assert!(flights.next_to_fan_out(0, SLOW).is_some());
        // Its rows of state are asked to be written, and nothing is answered any more.
        assert!(flights.next_state(0, 0).is_some());
        launched(&mut flights, 2, 10);
        assert!(flights.next_to_fan_out(509, SLOW).is_none(), "stored first");
        assert!(flights.next_to_fan_out(510, SLOW).is_some());
        launched(&mut flights, 3, 600);
        assert!(flights.next_to_fan_out(600, SLOW).is_some(), "at once now");
        assert!(flights.next_to_fan_out(600, SLOW).is_none());
    }
}
