//! What happens by itself, about once a second.
//!
//! Each session holds when something is due for it next, and a tick looks at all of them: ten
//! thousand sessions are a tenth of a millisecond, and no wheel has to be kept beside them.

use std::collections::HashMap;

use tidings_core::ids::Micros;
use tidings_core::ports::registry::SessionEntry;
use tidings_protocol::wire::{self, update};
use tidings_protocol::{CloseCode, Format};

use super::GatewayCore;
use super::frames::Pack;
use super::index::GATED;
use super::metrics::add;
use super::outbound::{Outbound, Slot};
use super::session::{
    AUTHENTICATING, CLOSING, LAGGING, READY, REAUTH_TOLD, SYNCED, Session, hash, seconds,
};
use super::settings::{SECOND, SIGN_IN_MAX};
use crate::ws::{Opcode, server_frame};

/// How often silence is looked for.
const STALE_CHECK: Micros = 30 * SECOND;

/// How long a draining worker waits for the answers to sends it has taken.
const DRAIN_ANSWERS: Micros = 5 * SECOND;

/// Heads told in one heartbeat; what is beyond is told by the next.
const HEADS_MAX: usize = 1_000;

impl GatewayCore {
    /// A second, or about one, has passed.
    pub fn tick<O: Outbound>(&mut self, out: &mut O) {
        self.now = out.now();
        self.rates.tick(self.now);
        self.give_up_sends(out);
        self.tick_requests(out);
        self.tick_loads(out);
        self.tick_admission(out);
        self.tick_gaps(out);
        self.tick_sessions(out);
        self.tick_tracking(out);
        self.tick_refresh(out);
        self.tick_digest(out);
        self.tick_watch(out);
        self.tick_modes(out);
        self.tick_drain(out);
        self.flush_closes(out);
        if self.opens == 0 && !self.early.is_empty() {
            self.early = HashMap::new();
        }
        self.settle_early_cursors(out, true);
        self.turn_end(out);
    }

    /// Whether a draining worker has nothing left to do. An answer may have been lost with the server
    /// that gave it: its sender asks again, elsewhere.
    pub fn is_drained(&self) -> bool {
        self.draining != 0
            && self.sessions.count == 0
            && (self.sending.is_settled() || self.now >= self.answers_until())
    }

    fn answers_until(&self) -> Micros {
        self.draining + self.served_for() + DRAIN_ANSWERS
    }

    fn tick_drain<O: Outbound>(&mut self, out: &mut O) {
        if self.draining == 0 {
            return;
        }
        let waits = !self.sending.is_settled() && self.now < self.answers_until();
        if waits && !self.leave_in_turn {
            return;
        }
        let leaves = |session: &Session| {
            !self.leave_in_turn
                || !session.is(READY)
                || self.draining + self.leaves_after(session.id) <= self.now
        };
        let leaving = self.sessions.iter().filter(|(_, s)| leaves(s));
        let slots: Vec<Slot> = leaving.map(|(slot, _)| slot).collect();
        for slot in slots {
            self.close(out, slot, CloseCode::Restart);
        }
    }

    fn tick_sessions<O: Outbound>(&mut self, out: &mut O) {
        let now_s = seconds(self.now);
        let due: Vec<Slot> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.due <= now_s && !s.is(CLOSING))
            .map(|(slot, _)| slot)
            .collect();
        for slot in due {
            self.tick_session(out, slot);
        }
    }

    fn tick_session<O: Outbound>(&mut self, out: &mut O, slot: Slot) {
        let now = self.now;
        let Some(session) = self.sessions.get(slot) else {
            return;
        };
        if !session.is(READY) {
            let until = Micros::from(session.opened_at) * SECOND + self.settings.auth_within;
            // Whoever said `auth` in time waits for us.
            let (until, code) = match session.is(AUTHENTICATING) {
                true => (until + SIGN_IN_MAX, CloseCode::TryLater),
                false => (until, CloseCode::Policy),
            };
            if until <= now {
                return self.close(out, slot, code);
            }
            return self.due(slot, until);
        }
        let expires = Micros::from(session.expires) * SECOND;
        if expires <= now {
            return self.close(out, slot, CloseCode::TokenExpired);
        }
        let stale_at = out.heard(slot) + self.settings.stale_after;
        if stale_at <= now {
            add(&self.metrics.stale, 1);
            return self.close(out, slot, CloseCode::Heartbeat);
        }
        let lagging_since = session.rare.as_ref().map_or(0, |rare| rare.lagging_since);
        if session.is(LAGGING) && lagging_since + self.settings.lag_max <= now {
            return self.close(out, slot, CloseCode::TooSlow);
        }
        let reauth_at = expires.saturating_sub(self.settings.reauth_before);
        let mut next = expires.min(stale_at.max(now + STALE_CHECK));
        if reauth_at > now {
            next = next.min(reauth_at);
        } else if !session.is(REAUTH_TOLD) {
            if let Some(session) = self.sessions.get_mut(slot) {
                session.set(REAUTH_TOLD, true);
            }
            self.update(
                out,
                slot,
                0,
                update::Update::ReauthRequired(wire::ReauthRequired { expires }),
            );
        }
        next = next.min(self.heartbeat(out, slot));
        self.tick_opening(out, slot);
        self.check_opening(out, slot);
        self.tick_sync(out, slot, now);
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        session.shrink(now);
        if session
            .rare
            .as_ref()
            .is_some_and(|r| r.opening.is_some() || r.sync.is_some() || r.lagging_since != 0)
        {
            next = now;
        }
        self.due(slot, next);
    }

    fn due(&mut self, slot: Slot, at: Micros) {
        if let Some(session) = self.sessions.get_mut(slot) {
            // Rounded up: never early.
            session.due = seconds(at + SECOND - 1).max(seconds(self.now) + 1);
        }
    }

    /// Sends the heartbeat if it is due and there is a need for it; answers when the next one is.
    fn heartbeat<O: Outbound>(&mut self, out: &mut O, slot: Slot) -> Micros {
        let Some(session) = self.sessions.get(slot) else {
            return Micros::MAX;
        };
        // By the id, so that sessions that came at once don't beat at once.
        let jitter = hash(1, session.id.0) % (self.settings.heartbeat / 5).max(1);
        let beat = Micros::from(session.beat) * SECOND;
        let next = beat + self.settings.heartbeat + jitter;
        if next > self.now + SECOND / 2 {
            return next;
        }
        let (format, since, id) = (session.format, session.beat, session.id);
        // A client that was heard of hears of us too: what it says is answered, and it asks by itself
        // when it is in doubt. Only a silent one needs to be told, and asked, that all is well.
        let is_silent = out.heard(slot) <= beat + SECOND;
        let mut heads = Vec::new();
        if session.is(SYNCED) && !session.is(LAGGING) {
            for joined in &session.joined {
                let c = self.index.get(joined.conversation);
                let Some(member) = c.members.as_slice().get(joined.place as usize) else {
                    continue;
                };
                let is_news =
                    c.moved >= since && member.covered < c.head_seen && !member.has(GATED);
                if is_news && heads.len() < HEADS_MAX {
                    heads.push(wire::Cursor {
                        conversation: c.id.0,
                        seq: c.head_seen,
                    });
                }
            }
        }
        let entry = SessionEntry {
            user: session.user,
            device: session.device,
            session: id,
            gateway: self.settings.gateway,
        };
        if !session.is(LAGGING) && !heads.is_empty() {
            out.send(slot, &beat_frame(format, heads, is_silent));
        } else if !session.is(LAGGING) && is_silent {
            let frame = self.beats[usize::from(format == Format::Json)]
                .get_or_insert_with(|| beat_frame(format, Vec::new(), true))
                .clone();
            out.send(slot, &frame);
        }
        out.put_session(entry, false);
        if let Some(session) = self.sessions.get_mut(slot) {
            session.beat = seconds(self.now);
        }
        self.now + self.settings.heartbeat + jitter
    }
}

/// A heartbeat, with a WebSocket ping behind it in the same bytes when the client was silent.
fn beat_frame(format: Format, heads: Vec<wire::Cursor>, with_ping: bool) -> bytes::Bytes {
    let mut pack = Pack::default();
    pack.update(format, 0, update::Update::Heads(wire::Heads { heads }));
    let frame = pack.take(format).unwrap_or_default();
    if !with_ping {
        return frame;
    }
    let mut both = Vec::with_capacity(frame.len() + 2);
    both.extend_from_slice(&frame);
    both.extend_from_slice(&server_frame(Opcode::Ping, b""));
    both.into()
}
