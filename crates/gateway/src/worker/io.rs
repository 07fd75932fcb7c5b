//! A worker's sessions as its handler sees them, and the writing half of their I/O.
//!
//! Sending only notes the frame (a slab lookup and a push). The notes of a turn are written at
//! its end, so that everything due to one socket goes in one write: one `send` when the socket is
//! idle and one frame is due, one vectored write when there are more, and none at all while the
//! socket is blocked: then the frames wait, bounded, for the edge that says it takes more.
//! Nothing of this registers anything with epoll again: both edges were asked for at accept.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mio::Registry;
use slab::Slab;

use super::config::WorkerConfig;
use super::conn::{
    AGAIN, Backlog, Conn, DIRTY, OVERFLOW_UNTOLD, OVERFLOWED, PAUSED, PEER_GONE, Phase, READABLE,
    UNCOUNTED, Written,
};
use super::handler::{CloseReason, Token};
use super::pool::Pool;
use super::stats::{Stats, add};
use super::wheel::{NEVER, Wheel};
use crate::ws::{Opcode, close_frame, server_frame};

/// A frame noted for the end of the turn.
struct Due {
    frame: Bytes,
    /// The next frame of the same session.
    next: u32,
}

/// So many notes are written before the turn ends. Their memory (under 1 MB) is kept.
const DUE_MAX: usize = 16 << 10;

/// What a handler is told when no other call of it is running.
pub(super) enum Notice {
    Overflow(Token),
    Drained(Token),
    Timer(Token),
}

/// The handle of a [`super::Handler`] to its worker's sessions. Every call with a token of a
/// session that is over does nothing.
pub struct Io {
    pub(super) config: Arc<WorkerConfig>,
    pub(super) pool: Arc<Pool>,
    pub(super) stats: Arc<Stats>,
    pub(super) registry: Registry,
    pub(super) conns: Slab<Conn>,
    wheel: Wheel,
    fired: Vec<u32>,
    due: Vec<Due>,
    /// Entries with due frames; each once.
    dirty: Vec<u32>,
    /// An empty backlog for the next coalesced write.
    spare: Option<Box<Backlog>>,
    pub(super) closed: VecDeque<(Token, CloseReason)>,
    pub(super) notices: VecDeque<Notice>,
    /// Sessions to be read without an edge: more is there than one turn took, or reading resumed.
    pub(super) again: VecDeque<Token>,
    next_generation: u32,
    started: Instant,
    now_ns: u64,
    now_tick: u32,
    panics_since_ms: u64,
    panics: u32,
    /// Refused connections that are still to read why.
    pub(super) refused: usize,
    pub(super) draining: bool,
    pub(super) stopping: bool,
}

/// Panics a minute that make a process unhealthy (security checklist, row 45).
const PANICS_PER_MINUTE_MAX: u32 = 100;

impl Io {
    pub(super) fn new(config: Arc<WorkerConfig>, pool: Arc<Pool>, registry: Registry) -> Self {
        Io {
            config,
            pool,
            stats: Arc::default(),
            registry,
            conns: Slab::new(),
            wheel: Wheel::new(),
            fired: Vec::new(),
            due: Vec::new(),
            dirty: Vec::new(),
            spare: None,
            closed: VecDeque::new(),
            notices: VecDeque::new(),
            again: VecDeque::new(),
            next_generation: 0,
            started: Instant::now(),
            now_ns: 0,
            now_tick: 0,
            panics_since_ms: 0,
            panics: 0,
            refused: 0,
            draining: false,
            stopping: false,
        }
    }

    /// Sends a whole frame ([`server_frame`] or [`crate::ws::FrameBuilder`]) to a session.
    ///
    /// Written at the end of the turn, after everything that was sent to this session before.
    /// Returns whether it was taken: not when the session is over, and not when its queue is
    /// full, of which `on_overflow` tells.
    pub fn send(&mut self, token: Token, frame: Bytes) -> bool {
        if self.due.len() >= DUE_MAX {
            self.flush();
        }
        let (bytes_max, frames_max) = (self.config.queue_bytes_max, self.config.queue_frames_max);
        let Some(conn) = self.session_mut(token) else {
            return false;
        };
        if conn.has(OVERFLOW_UNTOLD) {
            return false;
        }
        let bytes = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        if conn.queued_frames > 0
            && (bytes > bytes_max.saturating_sub(conn.queued_bytes)
                || conn.queued_frames >= frames_max)
        {
            self.overflow(token);
            return false;
        }
        self.push(token.slot(), frame);
        true
    }

    /// Ends a session: what was sent before, then a close frame. `on_close` follows in this turn
    /// with [`CloseReason::Local`].
    pub fn close(&mut self, token: Token, code: u16, reason: &str) {
        self.end(token, code, reason, CloseReason::Local(code));
    }

    /// Stops reading from a session: the client's bytes wait in the kernel.
    pub fn pause_reading(&mut self, token: Token) {
        if let Some(conn) = self.session_mut(token) {
            conn.set(PAUSED, true);
        }
    }

    /// Reads from a session again.
    pub fn resume_reading(&mut self, token: Token) {
        if let Some(conn) = self.session_mut(token)
            && conn.has(PAUSED)
        {
            conn.set(PAUSED, false);
            self.read_again(token);
        }
    }

    /// Bytes that were sent to a session and that the kernel hasn't taken.
    pub fn queued_bytes(&self, token: Token) -> usize {
        self.session(token)
            .map_or(0, |conn| conn.queued_bytes as usize)
    }

    /// Asks for `on_timer` at a tick ([`Io::tick_after`]), in place of an earlier wish.
    pub fn arm_timer(&mut self, token: Token, deadline_tick: u32) {
        if let Some(conn) = self.session_mut(token) {
            conn.timer_deadline = deadline_tick;
            self.arm(token.slot(), deadline_tick);
        }
    }

    /// Takes back the wish for `on_timer`.
    pub fn disarm_timer(&mut self, token: Token) {
        if let Some(conn) = self.session_mut(token) {
            conn.timer_deadline = NEVER;
        }
    }

    /// The session has shown who it is: it no longer counts as unauthenticated, and stays open.
    pub fn authenticated(&mut self, token: Token) {
        let Some(conn) = self.session_mut(token) else {
            return;
        };
        conn.phase_deadline = NEVER;
        let Some(rare) = &mut conn.rare else { return };
        let unproven = rare.unproven.take();
        if rare.received.is_empty() {
            conn.rare = None;
        }
        if let Some(unproven) = unproven {
            self.pool.proven(unproven);
        }
    }

    /// Whether a session is open.
    pub fn is_open(&self, token: Token) -> bool {
        self.session(token).is_some()
    }

    /// The tick in which the last byte of a session came: any of them shows it is alive.
    pub fn last_read_tick(&self, token: Token) -> Option<u32> {
        self.session(token).map(|conn| conn.last_read_tick)
    }

    /// Milliseconds since the worker started, as of this turn; never runs back.
    pub fn now_ms(&self) -> u64 {
        self.now_ns / 1_000_000
    }

    /// Microseconds since the worker started, as of this turn; never runs back.
    pub fn now_us(&self) -> u64 {
        self.now_ns / 1_000
    }

    /// The present tick.
    pub fn now_tick(&self) -> u32 {
        self.now_tick
    }

    /// The first tick that is at least `ms` milliseconds away.
    pub fn tick_after(&self, ms: u64) -> u32 {
        let tick_ns = u64::from(self.config.tick_ms) * 1_000_000;
        let at = self
            .now_ns
            .saturating_add(ms.saturating_mul(1_000_000))
            .div_ceil(tick_ns);
        u32::try_from(at).unwrap_or(NEVER).min(NEVER - 1)
    }

    /// Milliseconds since 1970 by the system's clock, which may be set.
    pub fn unix_ms(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64)
    }

    /// Connections of this worker, those not yet or no longer sessions included.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Stops accepting: what waits at the listener is still served, then it is closed.
    pub fn begin_drain(&mut self) {
        self.draining = true;
    }

    /// Ends the worker after this turn. What is queued and not taken by the kernel is lost.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// What this worker has counted.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    // From here on: what the worker's loop uses.

    pub(super) fn read_clock(&mut self) {
        self.now_ns = self.started.elapsed().as_nanos() as u64;
    }

    /// Milliseconds until the next tick.
    pub(super) fn until_tick_ms(&self) -> u64 {
        let next = u64::from(self.now_tick + 1) * u64::from(self.config.tick_ms);
        next.saturating_sub(self.now_ms())
    }

    /// Whether the next turn must not wait for an edge.
    pub(super) fn has_work(&self) -> bool {
        !(self.again.is_empty() && self.notices.is_empty() && self.dirty.is_empty())
    }

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

    pub(super) fn insert(&mut self, stream: mio::net::TcpStream, phase: Phase) -> Token {
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        let mut conn = Conn::new(stream, generation, phase);
        conn.last_read_tick = self.now_tick;
        Token::new(self.conns.insert(conn), generation)
    }

    /// A connection in any phase.
    pub(super) fn conn_mut(&mut self, token: Token) -> Option<&mut Conn> {
        self.conns
            .get_mut(token.slot())
            .filter(|conn| conn.generation == token.generation())
    }

    pub(super) fn session_mut(&mut self, token: Token) -> Option<&mut Conn> {
        self.conn_mut(token)
            .filter(|conn| conn.phase == Phase::Open)
    }

    fn session(&self, token: Token) -> Option<&Conn> {
        self.conns
            .get(token.slot())
            .filter(|conn| conn.generation == token.generation() && conn.phase == Phase::Open)
    }

    fn token_of(&self, slot: usize) -> Token {
        Token::new(slot, self.conns[slot].generation)
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
    fn tick_since(&self, since: u32, ms: u32) -> u32 {
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
    fn expire(&mut self, slot: usize) {
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

    /// Notes a frame without looking at bounds.
    pub(super) fn push(&mut self, slot: usize, frame: Bytes) {
        let conn = &mut self.conns[slot];
        add(&self.stats.frames_out, 1);
        conn.queued_bytes += frame.len() as u32;
        conn.queued_frames += 1;
        let index = self.due.len() as u32;
        self.due.push(Due { frame, next: NEVER });
        match conn.due_first {
            NEVER => conn.due_first = index,
            _ => self.due[conn.due_last as usize].next = index,
        }
        conn.due_last = index;
        if !conn.has(DIRTY) {
            conn.set(DIRTY, true);
            self.dirty.push(slot as u32);
        }
    }

    /// Puts a connection on the list of those to be read without an edge, once.
    pub(super) fn read_again(&mut self, token: Token) {
        if let Some(conn) = self.conn_mut(token)
            && !conn.has(AGAIN)
        {
            conn.set(AGAIN, true);
            self.again.push_back(token);
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

    fn end_with(&mut self, token: Token, frame: Bytes, reason: CloseReason) {
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
        conn.decoder = crate::ws::Decoder::default();
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
            self.refused -= 1;
            return conn;
        }
        self.pool.leave();
        if let Some(unproven) = conn.rare.as_mut().and_then(|rare| rare.unproven.take()) {
            self.pool.proven(unproven);
        }
        conn
    }

    /// Drops what waits for a socket, but for the rest of a frame that is partly written: without
    /// it the stream would make no sense to the client.
    fn drop_queue(&mut self, slot: usize) {
        let conn = &mut self.conns[slot];
        let mut at = std::mem::replace(&mut conn.due_first, NEVER);
        while at != NEVER {
            let due = &mut self.due[at as usize];
            due.frame = Bytes::new();
            at = due.next;
        }
        (conn.queued_bytes, conn.queued_frames) = (0, 0);
        if let Some(backlog) = &mut conn.backlog {
            backlog.frames.truncate(usize::from(backlog.head_is_cut));
            for frame in &backlog.frames {
                conn.queued_bytes += frame.len() as u32;
                conn.queued_frames += 1;
            }
        }
    }

    fn overflow(&mut self, token: Token) {
        let slot = token.slot();
        add(&self.stats.overflows, 1);
        self.drop_queue(slot);
        let deadline = self.tick_after(u64::from(self.config.overflow_ms));
        let conn = &mut self.conns[slot];
        conn.set(OVERFLOWED | OVERFLOW_UNTOLD, true);
        // A second overflow doesn't give a slow client more time.
        if let Some(backlog) = &mut conn.backlog
            && backlog.overflow_deadline.is_none()
        {
            backlog.overflow_deadline = Some(deadline);
            self.arm(slot, deadline);
        }
        self.notices.push_back(Notice::Overflow(token));
    }

    /// Writes what is due.
    pub(super) fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for slot in dirty.drain(..) {
            self.flush_one(slot as usize);
        }
        self.dirty = dirty;
        self.due.clear();
    }

    fn flush_one(&mut self, slot: usize) {
        // The entry may be gone, or be another's by now: then it has nothing due.
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        conn.set(DIRTY, false);
        let first = std::mem::replace(&mut conn.due_first, NEVER);
        if first == NEVER {
            return self.written(slot, false);
        }
        if let Some(backlog) = &mut conn.backlog {
            append(&mut self.due, first, backlog);
            return;
        }
        let due = &mut self.due[first as usize];
        if due.next == NEVER && conn.tls.is_none() {
            add(&self.stats.writes, 1);
            let len = due.frame.len();
            match conn.send(&due.frame) {
                Ok(taken) if taken == len => {
                    add(&self.stats.bytes_out, len as u64);
                    conn.queued_bytes -= len as u32;
                    conn.queued_frames -= 1;
                    if conn.phase != Phase::Open || conn.has(OVERFLOWED) {
                        self.written(slot, false);
                    }
                    return;
                }
                Ok(taken) => {
                    add(&self.stats.bytes_out, taken as u64);
                    conn.queued_bytes -= taken as u32;
                    let mut frame = std::mem::take(&mut due.frame);
                    bytes::Buf::advance(&mut frame, taken);
                    let mut backlog = Box::new(Backlog::default());
                    backlog.head_is_cut = taken > 0;
                    backlog.frames.push_back(frame);
                    // Once more until the socket says it is full: only then an edge follows.
                    return self.write_backlog(slot, backlog, false);
                }
                Err(_) => return self.lost(slot),
            }
        }
        let mut backlog = self.spare.take().unwrap_or_default();
        append(&mut self.due, first, &mut backlog);
        self.write_backlog(slot, backlog, false);
    }

    /// The socket takes more.
    pub(super) fn writable(&mut self, slot: usize) {
        if let Some(backlog) = self.conns[slot].backlog.take() {
            self.write_backlog(slot, backlog, true);
        }
    }

    /// Writes what a TLS state has to say by itself: handshake answers, tickets, alerts.
    pub(super) fn pump_tls(&mut self, slot: usize) {
        let conn = &self.conns[slot];
        if conn.backlog.is_none() && conn.tls.as_ref().is_some_and(|tls| tls.wants_write()) {
            let backlog = self.spare.take().unwrap_or_default();
            self.write_backlog(slot, backlog, false);
        }
    }

    fn write_backlog(&mut self, slot: usize, mut backlog: Box<Backlog>, was_blocked: bool) {
        let tick = self.now_tick;
        let conn = &mut self.conns[slot];
        let before = conn.queued_bytes;
        let result = conn.write(&mut backlog, tick);
        add(&self.stats.bytes_out, u64::from(before - conn.queued_bytes));
        match result {
            Ok((Written::All, writes)) => {
                add(&self.stats.writes, writes);
                backlog.head_is_cut = false;
                backlog.overflow_deadline = None;
                // A queue that grew large under load isn't kept.
                if backlog.frames.capacity() <= 256 {
                    self.spare = Some(backlog);
                }
                self.written(slot, was_blocked);
            }
            Ok((Written::Blocked, writes)) => {
                add(&self.stats.writes, writes);
                if !was_blocked {
                    backlog.progress_tick = tick;
                    let at = self.tick_since(tick, self.config.write_stall_ms);
                    self.conns[slot].backlog = Some(backlog);
                    self.arm(slot, at);
                } else {
                    conn.backlog = Some(backlog);
                }
            }
            Err(_) => self.lost(slot),
        }
    }

    /// The kernel has everything that a connection was sent.
    fn written(&mut self, slot: usize, was_blocked: bool) {
        let conn = &mut self.conns[slot];
        match conn.phase {
            Phase::Open if conn.backlog.is_none() && (was_blocked || conn.has(OVERFLOWED)) => {
                conn.set(OVERFLOWED, false);
                let token = self.token_of(slot);
                self.notices.push_back(Notice::Drained(token));
            }
            Phase::Closing if conn.backlog.is_none() => {
                conn.phase = Phase::Lingering;
                if let Some(tls) = conn.tls.as_deref_mut() {
                    tls.send_close_notify();
                    // Best effort: a peer that doesn't get it sees the end of the stream.
                    let _ = tls.write_tls(&mut &conn.stream);
                }
                if conn.stream.shutdown(Shutdown::Write).is_err() || conn.has(PEER_GONE) {
                    self.remove(slot);
                }
            }
            _ => {}
        }
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

/// Moves the list of due frames that starts at `first` to the end of a backlog.
fn append(due: &mut [Due], first: u32, backlog: &mut Backlog) {
    let mut at = first;
    while at != NEVER {
        let entry = &mut due[at as usize];
        backlog.frames.push_back(std::mem::take(&mut entry.frame));
        at = entry.next;
    }
}
