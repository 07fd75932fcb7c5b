//! Flights: event rows on their way to the store, and what follows when they are there.
//!
//! A flight is what one call of `Router::records` accepted, at most [`FLIGHT_ROWS_MAX`] rows of [`FLIGHT_REQUESTS_MAX`]
//! conversations. In order of their launch:
//!
//! ```text
//! launched ─▶ asked ─ events confirmed ──▶ fanned out ─ all earlier confirmed ─▶ state written ─▶ landed
//!         └─ 500 ms, no answer ──────────▶ fanned out, still flying
//! ```
//!
//! So much is asked of the store at a time as it answers within [`WANTED`] ([`Window`]). What is accepted meanwhile
//! goes together in the next flight, so a slow store gets fewer and larger writes, never more than it answers in time:
//! a write that takes longer than its deadline would be asked again, and all of it for nothing. What a write costs is
//! counted by its conversations: a store takes rows of one together.
//!
//! Rows of state are the same few rows again and again, so those of many flights are written
//! at once, the last of each key, every `commit_every`.
//!
//! Invariants: 1 fan-out keeps each conversation's order; a flight that the store takes long to confirm holds
//! up only those that share a conversation with it. 2 A flight's rows of state are
//! written only when its event rows and those of all earlier flights are confirmed.
//! 3 The position is settled only before the first flight that hasn't landed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::ids::{ConversationId, Micros, Position, SessionId};
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
    /// Whose events they are: about as many requests the store makes of it.
    conversations: HashSet<ConversationId>,
    state: Vec<StateRow>,
    bytes: usize,
    launched: Micros,
    /// When the store was asked to write its rows, if it was.
    asked: Option<Micros>,
    /// When it refused, if it did and wasn't asked again since.
    refused: Option<Micros>,
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
    gathering: VecDeque<Flight>,
    last: u64,
    bytes: usize,
    window: Window,
    /// When rows of state were last written.
    committed: Option<Micros>,
    /// There were more than one write takes.
    more_state: bool,
    /// Conversations whose rows of state landed and are not yet collected.
    landed: Vec<StateRow>,
}

/// So many flights that wait are looked at for one that may be fanned out before others.
const LOOK_AHEAD: usize = 32;

/// What one event costs beside its body until its rows of state have landed, about: itself, its rows of state, and
/// what other places keep of it.
const ROW_BYTES: usize = 1024;

/// Conversations in one flight: a call of the store that ends well before its deadline.
const FLIGHT_REQUESTS_MAX: usize = 512;

/// Rows in one flight: eight of each conversation, so that a backlog goes in few large requests.
const FLIGHT_ROWS_MAX: usize = 8 * FLIGHT_REQUESTS_MAX;

/// Bytes of one flight, with [`ROW_BYTES`] for each row: long bodies make fewer rows.
const FLIGHT_BYTES_MAX: usize = 8 << 20;

/// With so many rows of state a write takes those of no further flight.
const STATE_ROWS_MAX: usize = 2_000;

/// A store that answers within this may be asked for more at a time.
const WANTED: Micros = 250_000;

/// After a refusal a flight waits so long, or until the answer is overdue.
const REFUSED_WAITS: Micros = 1_000_000;

/// How many requests may be on their way to the store: grows by what was answered quickly, shrinks by half of what
/// wasn't, so it settles where the store answers in [`WANTED`] to twice that.
#[derive(Debug)]
struct Window {
    requests: usize,
    out: usize,
}

impl Default for Window {
    fn default() -> Window {
        Window {
            requests: 512,
            out: 0,
        }
    }
}

impl Window {
    const LEAST: usize = 64;
    const MOST: usize = 16_384;

    fn fits(&self, requests: usize) -> bool {
        self.out == 0 || self.out + requests <= self.requests
    }

    fn answered(&mut self, requests: usize, took: Micros) {
        self.out = self.out.saturating_sub(requests);
        if took <= WANTED {
            self.requests = (self.requests + requests).min(Window::MOST);
        } else if took > 2 * WANTED {
            self.shrink(requests / 2);
        }
    }

    fn shrink(&mut self, by: usize) {
        self.requests = self.requests.saturating_sub(by).max(Window::LEAST);
    }
}

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
        let has_room = |flight: &Flight| {
            flight.cargo.len() < FLIGHT_ROWS_MAX
                && flight.conversations.len() < FLIGHT_REQUESTS_MAX
                && flight.bytes < FLIGHT_BYTES_MAX
        };
        if !self.gathering.back().is_some_and(has_room) {
            self.last += 1;
            self.gathering.push_back(Flight {
                number: self.last,
                low: position,
                cargo: Vec::new(),
                conversations: HashSet::new(),
                state: Vec::new(),
                bytes: 0,
                launched: 0,
                asked: None,
                refused: None,
                confirmed: false,
                fanned_out: false,
                released: false,
                state_asked: None,
            });
        }
        let flight = self.gathering.back_mut().expect("it was just added");
        flight.low = flight.low.min(position);
        let bytes = row.body.len() + ROW_BYTES;
        flight.bytes += bytes;
        self.bytes += bytes;
        flight.state.extend(state);
        flight.conversations.insert(row.conversation);
        flight.cargo.push(Cargo { row, except, taken });
    }

    /// Bytes of all rows not landed.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Closes what was gathered: behind what the store is still to be asked for, or as flights of their own.
    pub fn launch(&mut self, now: Micros) {
        for mut flight in self.gathering.drain(..) {
            flight.launched = now;
            match self.flying.back_mut().filter(|last| last.takes(&flight)) {
                Some(last) => last.take(flight),
                None => self.flying.push_back(flight),
            }
        }
    }

    /// The next flight whose event rows the store is to write, if it answers what it was asked. It takes along those behind
    /// it: while the store was slow they were fanned out, each for itself.
    pub fn next_to_ask(&mut self, now: Micros) -> Option<(u64, Vec<EventRow>)> {
        let at = self.flying.iter().position(|f| f.asked.is_none())?;
        while let Some(next) = self.flying.get(at + 1)
            && self.flying[at].takes(next)
            && let Some(next) = self.flying.remove(at + 1)
        {
            self.flying[at].take(next);
        }
        let flight = &mut self.flying[at];
        if !self.window.fits(flight.conversations.len()) {
            return None;
        }
        self.window.out += flight.conversations.len();
        flight.asked = Some(now);
        Some((flight.number, flight.rows()))
    }

    /// Flights whose event rows nobody confirmed in time, to be sent again.
    pub fn overdue(&mut self, now: Micros, after: Micros) -> Vec<(u64, Vec<EventRow>)> {
        let mut again = Vec::new();
        let since = |at: Option<Micros>| at.map(|at| now.saturating_sub(at));
        for flight in &mut self.flying {
            let is_late = since(flight.asked).is_some_and(|since| since >= after)
                || since(flight.refused).is_some_and(|since| since >= REFUSED_WAITS.min(after));
            if !flight.confirmed && is_late && !planted::is(Mistake::StoreNotAskedAgain) {
                (flight.asked, flight.refused) = (Some(now), None);
                again.push((flight.number, flight.rows()));
            }
            if since(flight.state_asked).is_some_and(|since| since >= after) {
                flight.state_asked = None;
            }
        }
        again
    }

    pub fn events_stored(&mut self, number: u64, ok: bool, now: Micros) {
        let is_it = |f: &&mut Flight| f.number == number && !f.confirmed;
        let Some(flight) = self.flying.iter_mut().find(is_it) else {
            return;
        };
        if ok {
            flight.confirmed = true;
            let took = flight.asked.map_or(0, |at| now.saturating_sub(at));
            self.window.answered(flight.conversations.len(), took);
        } else {
            flight.refused = Some(now);
            self.window.shrink(flight.conversations.len() / 2);
        }
    }

    /// The oldest flight not fanned out that may be: confirmed, or the store is slow, and no earlier one of its
    /// conversations is held up.
    pub fn next_to_fan_out(&mut self, now: Micros, slow_after: Micros) -> Option<Vec<Cargo>> {
        // Not the oldest flight: that one may be confirmed, and only wait for its rows of state.
        let unanswered = self.flying.iter().find(|f| !f.confirmed);
        let slow = unanswered.is_some_and(|f| now.saturating_sub(f.launched) >= slow_after);
        let mut held_up = HashSet::<ConversationId>::new();
        let waiting = self.flying.iter_mut().filter(|f| !f.fanned_out);
        for flight in waiting.take(LOOK_AHEAD) {
            if (flight.confirmed || slow) && flight.conversations.is_disjoint(&held_up) {
                flight.fanned_out = true;
                return Some(flight.cargo.clone());
            }
            held_up.extend(&flight.conversations);
        }
        None
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
        let since = self.committed.map(|at| now.saturating_sub(at));
        let early = since.is_some_and(|since| since < every) && !self.more_state;
        if early || self.flying.iter().any(|f| f.state_asked.is_some()) {
            return None; // One write at a time; it covers more of them.
        }
        let mut latest = HashMap::<(ConversationId, StateKey), StateRow>::new();
        let mut ready = 0_usize;
        self.more_state = false;
        for flight in &self.flying {
            if !(flight.confirmed && flight.fanned_out || planted::is(Mistake::StateBeforeEvents)) {
                break;
            }
            if latest.len() >= STATE_ROWS_MAX {
                self.more_state = true;
                break;
            }
            let rows = flight.state.iter();
            latest.extend(rows.map(|row| ((row.conversation, row.key), *row)));
            ready += 1;
        }
        let last = ready.checked_sub(1)?;
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
    /// Whether the one behind it may go with it.
    fn takes(&self, next: &Flight) -> bool {
        let new = next.conversations.difference(&self.conversations).count();
        self.asked.is_none()
            && next.asked.is_none()
            && self.fanned_out == next.fanned_out
            && self.cargo.len() + next.cargo.len() <= FLIGHT_ROWS_MAX
            && self.conversations.len() + new <= FLIGHT_REQUESTS_MAX
            && self.bytes + next.bytes <= FLIGHT_BYTES_MAX
    }

    fn take(&mut self, mut next: Flight) {
        self.low = self.low.min(next.low);
        self.bytes += next.bytes;
        self.cargo.append(&mut next.cargo);
        self.conversations.extend(next.conversations);
        self.state.append(&mut next.state);
    }

    fn rows(&self) -> Vec<EventRow> {
        self.cargo.iter().map(|c| (*c.row).clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{HeadState, StateValue};

    const SLOW: Micros = 500;

    fn launched(flights: &mut Flights, offset: u64, now: Micros) -> u64 {
        launched_in(flights, ConversationId(1), offset, now)
    }

    fn launched_in(
        flights: &mut Flights,
        conversation: ConversationId,
        offset: u64,
        now: Micros,
    ) -> u64 {
        let position = Position { epoch: 1, offset };
        let row = EventRow::empty(conversation, offset, position, offset, 0);
        let state = StateRow {
            conversation,
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
        flights.launch(now);
        flights.next_to_ask(now).map_or(0, |(number, _)| number)
    }

    #[test]
    fn a_store_that_stops_answering_holds_up_nobody_for_longer_than_the_limit() {
        let mut flights = Flights::default();
        let first = launched(&mut flights, 1, 0);
        flights.events_stored(first, true, 0);
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
    #[test]
    fn a_write_that_takes_long_holds_up_its_own_conversation_only() {
        let mut flights = Flights::default();
        let [slow, other] = [ConversationId(1), ConversationId(2)];
        launched_in(&mut flights, slow, 1, 0);
        let second = launched_in(&mut flights, other, 2, 0);
        let third = launched_in(&mut flights, slow, 3, 0);
        flights.events_stored(second, true, 0);
        flights.events_stored(third, true, 0);
        let told = |cargo: Vec<Cargo>| cargo.iter().map(|c| c.row.seq).collect::<Vec<_>>();
        assert_eq!(flights.next_to_fan_out(0, SLOW).map(told), Some(vec![2]));
        assert!(
            flights.next_to_fan_out(0, SLOW).is_none(),
            "3 comes after 1"
        );
        assert!(
            flights.next_state(0, 0).is_none(),
            "nothing before 1 is settled"
        );
        assert_eq!(flights.next_to_fan_out(500, SLOW).map(told), Some(vec![1]));
        assert_eq!(flights.next_to_fan_out(500, SLOW).map(told), Some(vec![3]));
    }

    #[test]
    fn a_store_is_asked_for_what_it_answers_in_time() {
        let mut flights = Flights::default();
        let mut asked = 0;
        for offset in 0..2_000 {
            let number = launched_in(&mut flights, ConversationId(offset), offset, 0);
            asked += u32::from(number > 0);
        }
        assert_eq!(asked, 512, "one row each until the window is full");
        let held = |flights: &Flights| {
            let waiting = flights.flying.iter().filter(|f| f.asked.is_none());
            waiting.map(|f| f.cargo.len()).collect::<Vec<_>>()
        };
        assert_eq!(
            held(&flights),
            [512, 512, 2_000 - 3 * 512],
            "what waits goes together"
        );

        // Quick answers let more out; slow ones, and refusals, fewer.
        for number in 1..=512 {
            flights.events_stored(number, true, WANTED);
        }
        assert_eq!(flights.window.requests, 1_024);
        let mut next = Vec::new();
        while let Some((number, _)) = flights.next_to_ask(WANTED) {
            next.push(number);
        }
        assert_eq!(next.len(), 2);
        flights.events_stored(next[0], true, 4 * WANTED);
        assert_eq!(flights.window.requests, 1_024 - 512 / 2);
        flights.events_stored(next[1], false, 4 * WANTED);
        assert_eq!(flights.window.requests, 512);
        assert_eq!(
            flights
                .overdue(4 * WANTED + REFUSED_WAITS, Micros::MAX)
                .len(),
            1,
            "the refused one"
        );
    }

    #[test]
    fn rows_of_a_conversation_that_wait_go_together_whatever_lies_between_them() {
        let mut flights = Flights::default();
        let first = (0..512).map(ConversationId);
        for (offset, conversation) in (0..).zip(first.cycle().take(512 + FLIGHT_ROWS_MAX + 1)) {
            launched_in(&mut flights, conversation, offset, 0);
        }
        let sizes = |flights: &Flights| {
            let waiting = flights.flying.iter().filter(|f| f.asked.is_none());
            waiting
                .map(|f| (f.cargo.len(), f.conversations.len()))
                .collect::<Vec<_>>()
        };
        assert_eq!(sizes(&flights), [(FLIGHT_ROWS_MAX, 512), (1, 1)]);

        // So do those that were fanned out meanwhile.
        let mut slow = Flights::default();
        for offset in 0..512 + 10 {
            launched_in(&mut slow, ConversationId(offset % 512), offset, offset);
            while slow.next_to_fan_out(offset + SLOW, SLOW).is_some() {}
        }
        assert!(sizes(&slow).len() > 1, "the last isn't slow yet");
        for number in 1..=10 {
            slow.events_stored(number, true, 600);
        }
        let (number, rows) = slow.next_to_ask(600).expect("there is room for them");
        let seqs: Vec<u64> = rows.iter().map(|row| row.seq).collect();
        assert_eq!((number, seqs), (513, (512..522).collect()));
        assert!(slow.flying.iter().all(|f| f.fanned_out));
    }

    #[test]
    fn a_flight_of_long_bodies_has_fewer_rows() {
        const BODY: usize = 64 << 10;
        let mut flights = Flights::default();
        let position = Position {
            epoch: 1,
            offset: 1,
        };
        for offset in 0..1_000 {
            let mut row = EventRow::empty(ConversationId(1), offset, position, offset, 0);
            row.body = vec![0; BODY].into();
            let row = Arc::new(row);
            flights.load(position, row, std::iter::empty(), SessionId(0), 0);
        }
        flights.launch(0);
        while flights.next_to_ask(0).is_some() {}
        assert_eq!(
            flights.flying[0].cargo.len(),
            FLIGHT_BYTES_MAX / (BODY + ROW_BYTES) + 1
        );
        assert_eq!(flights.flying.len(), 8);
    }

    #[test]
    fn many_rows_of_state_are_written_in_parts_one_behind_the_other() {
        let mut flights = Flights::default();
        for offset in 0..3_000 {
            let number = launched_in(&mut flights, ConversationId(offset), offset, 0);
            flights.events_stored(number, true, 0);
            assert!(flights.next_to_fan_out(0, SLOW).is_some());
        }
        let (first, _) = flights.next_state(0, 1_000).expect("state is ready");
        assert_eq!(first as usize, STATE_ROWS_MAX);
        flights.state_stored(first, true);
        let (second, _) = flights.next_state(0, 1_000).expect("the rest doesn't wait");
        assert_eq!(second, 3_000);

        let mut same = Flights::default();
        for offset in 0..3_000 {
            let number = launched(&mut same, offset, 0);
            same.events_stored(number, true, 0);
            assert!(same.next_to_fan_out(0, SLOW).is_some());
        }
        let (all, rows) = same.next_state(0, 1_000).expect("state is ready");
        assert_eq!((all, rows.len()), (3_000, 1), "the last of each key");
    }
}
