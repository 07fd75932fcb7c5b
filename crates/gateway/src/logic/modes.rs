//! How each feature is: told to clients, and what a reduced one leaves out here.
//!
//! What is left out is only what nothing rests on. Events, acks and heads are never among it.

use std::collections::HashMap;

use tidings_core::ids::{ConversationId, Micros, UserId};
use tidings_core::rows::CursorRow;
use tidings_protocol::Format;
use tidings_protocol::wire::{Feature, FeatureState, Mode, update};

use super::GatewayCore;
use super::frames::update_frame;
use super::outbound::{Outbound, Slot};
use super::session::{CLOSING, LAGGING, READY};
use super::settings::SECOND;

/// Features there are.
const FEATURES: usize = 5;

/// How often receipts that are held back are told.
const RECEIPTS_EVERY: Micros = 10 * SECOND;

/// Receipts held back; what is beyond is covered by the member's next one, as they are cumulative.
const RECEIPTS_MAX: usize = 16 << 10;

/// Events of one page while history is reduced.
pub(super) const REDUCED_PAGE: u32 = 20;

/// How the features are.
#[derive(Default)]
pub(super) struct Modes {
    /// State and since when, by feature; what was never told is normal.
    states: [(i32, Micros); FEATURES],
    held: HashMap<(ConversationId, UserId), CursorRow>,
    held_until: Micros,
}

impl Modes {
    fn is_normal(&self, feature: Feature) -> bool {
        self.states[feature as usize].0 == i32::from(FeatureState::Normal)
    }
}

impl GatewayCore {
    /// A feature is otherwise from now on: all sessions are told.
    pub fn mode_changed<O: Outbound>(&mut self, out: &mut O, mode: Mode) {
        self.now = out.now();
        let Ok(feature) = Feature::try_from(mode.feature) else {
            return;
        };
        let before = &mut self.modes.states[feature as usize];
        if before.0 == mode.state {
            return;
        }
        *before = (mode.state, mode.since);
        let frames = Format::ALL.map(|format| update_frame(format, 0, update::Update::Mode(mode)));
        for (slot, session) in self.sessions.iter() {
            if session.is(READY) && !session.is(LAGGING) && !session.is(CLOSING) {
                let format = Format::ALL.iter().position(|&f| f == session.format);
                out.send(slot, &frames[format.unwrap_or(0)]);
            }
        }
        match feature {
            Feature::Receipts if self.is_normal(feature) => self.tell_held_receipts(out),
            // What changed meanwhile was told to nobody.
            Feature::Presence if self.is_normal(feature) => self.watch_anew(),
            _ => {}
        }
    }

    /// Tells a session that came, or that could not be told meanwhile, what isn't normal.
    pub(super) fn tell_modes<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        for (feature, (state, since)) in (0..).zip(self.modes.states) {
            if state != i32::from(FeatureState::Normal) {
                let mode = Mode {
                    feature,
                    state,
                    since,
                };
                self.update(out, slot, 0, update::Update::Mode(mode));
            }
        }
    }

    pub(super) fn is_normal(&self, feature: Feature) -> bool {
        self.modes.is_normal(feature)
    }

    /// Keeps receipts for later; false: they are to be told now.
    pub(super) fn holds_receipts(
        &mut self,
        conversation: ConversationId,
        cursors: &[CursorRow],
    ) -> bool {
        if self.is_normal(Feature::Receipts) {
            return false;
        }
        let held = &mut self.modes.held;
        if held.is_empty() {
            self.modes.held_until = self.now + RECEIPTS_EVERY;
        }
        for &cursor in cursors {
            let key = (conversation, cursor.user);
            if held.len() < RECEIPTS_MAX || held.contains_key(&key) {
                let row = held.entry(key).or_insert(cursor);
                row.delivered = row.delivered.max(cursor.delivered);
                row.read = row.read.max(cursor.read);
            }
        }
        true
    }

    pub(super) fn tick_modes<O: Outbound>(&mut self, out: &mut O) {
        if !self.modes.held.is_empty() && self.modes.held_until <= self.now {
            self.tell_held_receipts(out);
        }
    }

    fn tell_held_receipts<O: Outbound>(&mut self, out: &mut O) {
        let held = std::mem::take(&mut self.modes.held);
        let mut rows: Vec<CursorRow> = held.into_values().collect();
        rows.sort_unstable_by_key(|row| (row.conversation, row.user));
        for same in rows.chunk_by(|a, b| a.conversation == b.conversation) {
            self.tell_receipts(out, same[0].conversation, same);
        }
    }
}
