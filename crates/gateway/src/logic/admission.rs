//! How many sessions sign in at once. After a server or a network was away thousands come back
//! together: each needs the directory a few times, and if all ask at once all wait, and many give
//! up and come once more. So a few are looked up at a time and the others wait for their turn, for
//! as long as their clients do; whoever would wait longer is told when to come back.

use std::collections::VecDeque;

use tidings_core::ids::{Micros, SessionId};
use tidings_protocol::CloseCode;
use tidings_protocol::wire::{self, update};

use super::GatewayCore;
use super::outbound::{Outbound, Slot};
use super::session::{ADMITTING, hash};
use super::settings::SIGN_IN_MAX;
use crate::turns::Turns;

/// Who has to wait longer is told to come back: half of [`SIGN_IN_MAX`], as turns may come slower than expected.
const WAIT_MAX: Micros = SIGN_IN_MAX / 2;

/// Sessions that wait at most, each with its token.
const WAITING_MAX: usize = 8_192;

/// Sessions that sign in, and those that wait for it.
#[derive(Default)]
pub(super) struct Admission {
    under_way: usize,
    waiting: VecDeque<Waiting>,
    /// Admitted since the last tick, and whether some waited at that.
    admitted: usize,
    was_waiting: bool,
    turns: Turns,
}

struct Waiting {
    session: SessionId,
    token: String,
    device: String,
}

impl GatewayCore {
    /// A session's first `auth`: at once, in its turn, or another time.
    pub(super) fn sign_in<O: Outbound>(
        &mut self,
        out: &mut O,
        slot: Slot,
        token: String,
        device: String,
    ) {
        let Some(id) = self.sessions.get(slot).map(|session| session.id) else {
            return;
        };
        let admission = &mut self.admission;
        if admission.under_way < self.settings.sign_ins_at_once {
            admission.under_way += 1;
            if let Some(session) = self.sessions.get_mut(slot) {
                session.set(ADMITTING, true);
            }
            return out.authenticate(id, token, device);
        }
        let wait = admission.turns.of(admission.waiting.len());
        if wait <= WAIT_MAX && admission.waiting.len() < WAITING_MAX {
            admission.waiting.push_back(Waiting {
                session: id,
                token,
                device,
            });
            return;
        }
        self.send_away(out, slot, wait);
    }

    /// Tells a session when it should come back, not before `wait` has passed.
    fn send_away<O: Outbound>(&mut self, out: &mut O, slot: Slot, wait: Micros) {
        let Some(id) = self.sessions.get(slot).map(|session| session.id) else {
            return;
        };
        let admission = &mut self.admission;
        super::metrics::add(&self.metrics.sent_away, 1);
        let after = admission.turns.give(self.now, wait, hash(3, id.0));
        let after_ms = (after / 1000) as u32;
        let reconnect = update::Update::Reconnect(wire::Reconnect { after_ms });
        self.update(out, slot, 0, reconnect);
        self.close(out, slot, CloseCode::TryLater);
    }

    /// A session needs the directory no more: it has what it wanted, or is gone.
    pub(super) fn signed_in<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        let Some(session) = self.sessions.get_mut(slot).filter(|s| s.is(ADMITTING)) else {
            return;
        };
        session.set(ADMITTING, false);
        self.admission.under_way -= 1;
        self.admission.admitted += 1;
        self.admit_next(out);
    }

    fn admit_next<O: Outbound>(&mut self, out: &mut O) {
        while self.admission.under_way < self.settings.sign_ins_at_once
            && let Some(next) = self.admission.waiting.pop_front()
        {
            // Whoever gave up meanwhile has made room for others.
            if let Some(slot) = self.sessions.slot_of(next.session) {
                self.sign_in(out, slot, next.token, next.device);
            }
        }
    }

    /// A second has passed.
    pub(super) fn tick_admission<O: Outbound>(&mut self, out: &mut O) {
        let admission = &mut self.admission;
        let admitted = std::mem::take(&mut admission.admitted);
        let is_waiting = !admission.waiting.is_empty();
        match (admission.was_waiting, is_waiting) {
            (true, true) => admission.turns.measured(admitted),
            (_, true) => {}
            (_, false) => admission.turns.rest(),
        }
        admission.was_waiting = is_waiting;
        if !is_waiting {
            admission.waiting = VecDeque::new();
        }
        // It is slower than it was when they came: whose turn can't come in time any more needn't wait for that.
        while self.admission.turns.of(self.admission.waiting.len()) > SIGN_IN_MAX
            && let Some(last) = self.admission.waiting.pop_back()
        {
            if let Some(slot) = self.sessions.slot_of(last.session) {
                self.send_away(out, slot, SIGN_IN_MAX);
            }
        }
    }
}
