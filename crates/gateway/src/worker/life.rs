//! How long a connection may stay as it is, and how it ends.

use bytes::Bytes;

use super::conn::{
    Conn, OVERFLOW_UNTOLD, OVERFLOWED, PAUSED, PEER_GONE, Phase, READABLE, UNCOUNTED,
};
use super::handler::{CloseReason, Token};
use super::io::{Io, Notice};
use super::stats::add;
use super::wheel::NEVER;
use crate::ws::{Decoder, Opcode, close_frame, server_frame};

/// Panics a minute that make a process unhealthy (security checklist, row 45).
const PANICS_PER_MINUTE_MAX: u32 = 100;

impl Io {
    /// Moves on to the tick of the clock, and says whether that is a later one.
    pub(super) fn advance_tick(&mut self) -> bool {
        let tick = (self.now_ms() / u64::from(self.config.tick_ms)) as u32;
        if tick <= self.now_tick {
            return false;
        }
        self.now_tick = tick;
        let mut fired = std::mem::take(&mut self.fired);
        self.wheel.advance(&mut self.conns, tick, &mut fired);
        for slot in fired.drain(..) {
            self.expire(slot as usize);
        }
        self.fired = fired;
        true
    }

    /// Sets when the phase must be over.
    pub(super) fn set_phase_deadline(&mut self, slot: usize, ms: u32) {
        let at = self.tick_after(u64::from(ms));
        self.conns[slot].phase_deadline = at;
        self.arm(slot, at);
    }

    pub(super) fn arm(&mut self, slot: usize, at: u32) {
        self.wheel.arm(&mut self.conns, slot, at);
    }

    /// The tick by which `ms` have surely passed since tick `since` began.
    pub(super) fn tick_since(&self, since: u32, ms: u32) -> u32 {
        since
            .saturating_add(ms.div_ceil(self.config.tick_ms))
            .saturating_add(1)
    }

    /// A frame is incomplete: see to it that it doesn't stay so.
    pub(super) fn watch_incomplete(&mut self, slot: usize) {
        let at = self.tick_since(self.conns[slot].last_read_tick, self.config.slow_frame_ms);
        self.arm(slot, at);
    }

    /// Looks at a connection whose tick came, which may be earlier than any of its deadlines.
    pub(super) fn expire(&mut self, slot: usize) {
        let Some(conn) = self.conns.get(slot) else {
            return;
        };
        let token = self.token_of(slot);
        let now = self.now_tick;
        if conn.phase_deadline <= now {
            return match conn.phase {
                Phase::Open => {
                    self.end(token, 1008, "not authenticated", CloseReason::Policy(1008))
                }
                _ => {
                    if matches!(conn.phase, Phase::Head | Phase::Handover) {
                        add(&self.stats.handshake_failures, 1);
                    }
                    self.remove(slot);
                }
            };
        }
        let mut next = conn.phase_deadline;
        if conn.phase == Phase::Open {
            if !conn.decoder.is_idle() && !conn.has(PAUSED) {
                let at = self.tick_since(conn.last_read_tick, self.config.slow_frame_ms);
                if at <= now {
                    return self.end(token, 1008, "frame too slow", CloseReason::Policy(1008));
                }
                next = next.min(at);
            }
            if let Some(backlog) = &conn.backlog {
                let stall = self.tick_since(backlog.progress_tick, self.config.write_stall_ms);
                let at = stall.min(backlog.overflow_deadline.unwrap_or(NEVER));
                if at <= now {
                    add(&self.stats.closed_slow, 1);
                    self.drop_queue(slot);
                    return self.end(token, 4004, "reads too slowly", CloseReason::Policy(4004));
                }
                next = next.min(at);
            }
            if conn.timer_deadline <= now {
                self.conns[slot].timer_deadline = NEVER;
                self.notices.push_back(Notice::Timer(token));
            } else {
                next = next.min(conn.timer_deadline);
            }
        }
        if next != NEVER {
            self.arm(slot, next);
        }
    }

    pub(super) fn pong(&mut self, token: Token, payload: &[u8]) {
        // A client that doesn't read its pongs gets no more of them (RFC 6455 section 5.5.3 lets
        // a server answer the latest ping only).
        let bytes_max = self.config.queue_bytes_max;
        if let Some(conn) = self.session_mut(token)
            && conn.queued_bytes < bytes_max
        {
            self.push(token.slot(), server_frame(Opcode::Pong, payload));
        }
    }

    /// The client said goodbye.
    pub(super) fn peer_closed(&mut self, token: Token, code: Option<u16>) {
        let frame = match code {
            Some(code) => close_frame(code, ""),
            None => server_frame(Opcode::Close, b""),
        };
        self.end_with(token, frame, CloseReason::Peer(code));
    }

    /// Ends a session with a close frame of ours.
    pub(super) fn end(&mut self, token: Token, code: u16, text: &str, reason: CloseReason) {
        self.end_with(token, close_frame(code, text), reason);
    }

    pub(super) fn end_with(&mut self, token: Token, frame: Bytes, reason: CloseReason) {
        if self.session_mut(token).is_none() {
            return;
        }
        add(&self.stats.closed, 1);
        self.closed.push_back((token, reason));
        self.finish(token.slot(), frame);
    }

    /// Makes `last` the last thing a connection is sent.
    pub(super) fn finish(&mut self, slot: usize, last: Bytes) {
        self.push(slot, last);
        let conn = &mut self.conns[slot];
        conn.phase = Phase::Closing;
        conn.decoder = Decoder::default();
        conn.set(OVERFLOWED | OVERFLOW_UNTOLD, false);
        // What comes from now on is read, so that closing doesn't reset, and thrown away.
        let unread = conn.has(PAUSED);
        conn.set(PAUSED | READABLE, false);
        if let Some(rare) = &mut conn.rare {
            rare.received = Vec::new();
        }
        if unread {
            let token = self.token_of(slot);
            self.read_again(token);
        }
        self.set_phase_deadline(slot, self.config.linger_ms);
    }

    /// The client shut its end. Unless an answer to its last words is due, that is the end.
    pub(super) fn hung_up(&mut self, slot: usize) {
        let conn = &mut self.conns[slot];
        if conn.phase == Phase::Closing {
            conn.set(PEER_GONE, true);
        } else {
            self.lost(slot);
        }
    }

    /// The connection broke.
    pub(super) fn lost(&mut self, slot: usize) {
        match self.conns[slot].phase {
            Phase::Open => {
                add(&self.stats.closed, 1);
                self.closed
                    .push_back((self.token_of(slot), CloseReason::Lost));
            }
            Phase::Head | Phase::Handover => add(&self.stats.handshake_failures, 1),
            Phase::Closing | Phase::Lingering => {}
        }
        self.remove(slot);
    }

    /// Takes a connection out; its socket closes when the entry is dropped.
    pub(super) fn remove(&mut self, slot: usize) -> Conn {
        self.wheel.disarm(&mut self.conns, slot);
        let mut conn = self.conns.remove(slot);
        if conn.has(UNCOUNTED) {
            self.pool.lingered();
            return conn;
        }
        self.pool.leave();
        if let Some(unproven) = conn.rare.as_mut().and_then(|rare| rare.unproven.take()) {
            self.pool.proven(unproven);
        }
        conn
    }

    /// Whether a session may send one more frame now.
    pub(super) fn admit_frame(&mut self, token: Token) -> bool {
        let (rate, burst) = (self.config.frames_per_second, self.config.frame_burst);
        let now = self.now_ns;
        let Some(conn) = self.session_mut(token) else {
            return false;
        };
        if rate == 0 {
            return true;
        }
        let interval = 1_000_000_000 / u64::from(rate);
        let at = conn.rate_at_ns.max(now);
        if at - now > interval * u64::from(burst.saturating_sub(1)) {
            return false;
        }
        conn.rate_at_ns = at + interval;
        true
    }

    pub(super) fn note_panic(&mut self) {
        add(&self.stats.panics, 1);
        if self.now_ms() - self.panics_since_ms > 60_000 {
            (self.panics_since_ms, self.panics) = (self.now_ms(), 0);
        }
        self.panics += 1;
        if self.panics > PANICS_PER_MINUTE_MAX {
            self.pool.set_unhealthy();
        }
    }
}
