//! A worker's sessions as its handler sees them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mio::Registry;
use slab::Slab;

use super::config::WorkerConfig;
use super::conn::{AGAIN, Backlog, Conn, OVERFLOW_UNTOLD, PAUSED, Phase};
use super::handler::{CloseReason, Token};
use super::pool::Pool;
use super::stats::Stats;
use super::wheel::{NEVER, Wheel};
use super::write::{DUE_MAX, Due};

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
    pub(super) wheel: Wheel,
    pub(super) fired: Vec<u32>,
    pub(super) due: Vec<Due>,
    /// Entries with due frames; each once.
    pub(super) dirty: Vec<u32>,
    /// An empty backlog for the next coalesced write.
    pub(super) spare: Option<Box<Backlog>>,
    pub(super) closed: VecDeque<(Token, CloseReason)>,
    pub(super) notices: VecDeque<Notice>,
    /// Sessions to be read without an edge: more is there than one turn took, or reading resumed.
    pub(super) again: VecDeque<Token>,
    next_generation: u32,
    started: Instant,
    pub(super) now_ns: u64,
    pub(super) now_tick: u32,
    pub(super) panics_since_ms: u64,
    pub(super) panics: u32,
    pub(super) draining: bool,
    pub(super) stopping: bool,
}

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
            draining: false,
            stopping: false,
        }
    }

    /// Sends a whole frame ([`crate::ws::server_frame`] or [`crate::ws::FrameBuilder`]) to a session.
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

    pub(super) fn session(&self, token: Token) -> Option<&Conn> {
        self.conns
            .get(token.slot())
            .filter(|conn| conn.generation == token.generation() && conn.phase == Phase::Open)
    }

    pub(super) fn token_of(&self, slot: usize) -> Token {
        Token::new(slot, self.conns[slot].generation)
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
}
