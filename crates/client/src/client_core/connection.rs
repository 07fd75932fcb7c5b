//! Connecting, backoff, signing in, heartbeats.

use tidings_protocol::codes::Advice;
use tidings_protocol::limits::{HEARTBEAT_MS, STALE_AFTER_MS};
use tidings_protocol::wire::{self, command};
use tidings_protocol::{CloseCode, ErrorCode};

use super::output::Shown;
use super::{AppEvent, ClientCore, Output, SECOND};
use crate::saved::PersistOp;

/// The first step of the backoff: min(1 s · 2ⁿ, 30 s) with full jitter.
const BACKOFF_FIRST: u64 = SECOND;
/// Its last step.
const BACKOFF_LAST: u64 = 30 * SECOND;
/// A connection that was ready this long ends a series of failures.
const STABLE_AFTER: u64 = 10 * SECOND;
/// From connected to signed in.
const SIGN_IN_WITHIN: u64 = 10 * SECOND;
/// The longest delay a server's word counts for; beyond it the client tries by itself.
const TOLD_DELAY_MAX: u64 = 300 * SECOND;
/// Who has said something and hears nothing asks after this much silence.
const UNHEARD_MAX: u64 = 5 * SECOND;
/// A server that doesn't answer within this is taken for dead (docs/protocol.md, "Heartbeats").
const ANSWERS_WITHIN: u64 = 10 * SECOND;
/// A quiet client says something this often: well within the server's patience.
const PING_EVERY: u64 = STALE_AFTER_MS as u64 * 1000 * 2 / 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Not started, or given up.
    #[default]
    Idle,
    /// Connecting as soon as there is a token.
    NeedsToken,
    /// The driver was told to connect.
    Connecting,
    /// Connected, not signed in.
    SigningIn {
        since: u64,
    },
    Ready {
        since: u64,
    },
}

/// The connection as the core sees it.
#[derive(Debug, Default)]
pub(super) struct Link {
    state: State,
    failures: u32,
    not_before: u64,
    /// When the server said to come back.
    pub(super) come_back_at: Option<u64>,
    last_heard: u64,
    last_sent: u64,
    /// When the first of what was said since then went out.
    unheard: Option<u64>,
    /// When the server was asked whether it is there.
    asked: Option<u64>,
    asked_token: bool,
    heartbeat: u64,
    /// Server time less the driver's.
    clock_ahead: i64,
    pub(super) watched: Vec<u64>,
    pub(super) shown: Shown,
}

impl Link {
    pub(super) fn ready(&self) -> bool {
        matches!(self.state, State::Ready { .. })
    }

    pub(super) fn up(&self) -> bool {
        matches!(self.state, State::Ready { .. } | State::SigningIn { .. })
    }

    /// A frame came: a sign of life.
    pub(super) fn heard(&mut self, now: u64) {
        self.last_heard = now;
        self.unheard = None;
        self.asked = None;
    }

    /// Something went out.
    pub(super) fn said(&mut self, now: u64) {
        self.last_sent = now;
        self.unheard.get_or_insert(now);
    }

    /// The time by the server's clock, which a wrong clock of the device doesn't touch.
    pub(super) fn server_time(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.clock_ahead)
    }
}

impl ClientCore {
    /// Begins to connect, also after `GiveUp`.
    pub fn start(&mut self, now: u64) {
        if self.link.state == State::Idle {
            self.link.failures = 0;
            self.link.not_before = now;
            self.connect(now);
        }
    }

    /// A token to sign in with, or a fresh one.
    pub fn set_token(&mut self, now: u64, token: String) {
        self.token = Some(token);
        self.link.asked_token = false;
        match self.link.state {
            State::NeedsToken => self.connect(now),
            State::SigningIn { .. } | State::Ready { .. } => self.sign_in(),
            State::Idle | State::Connecting => {}
        }
        self.flush_commands(now);
    }

    /// The connection the driver was told to make is there.
    pub fn connected(&mut self, now: u64) {
        if self.link.state != State::Connecting {
            return;
        }
        self.link.state = State::SigningIn { since: now };
        self.link.heard(now);
        self.link.come_back_at = None;
        self.sign_in();
        self.flush_commands(now);
    }

    /// The connection could not be made; `retry_after`: the seconds after which the server wants the client back, if
    /// it answered so. Up to a second is added: others were told the same.
    pub fn not_connected(&mut self, now: u64, retry_after: Option<u32>) {
        if let Some(seconds) = retry_after {
            let jitter = ((self.random)() % 1000) as u32;
            self.told_to_come_back(now, seconds.saturating_mul(1000).saturating_add(jitter));
        }
        self.disconnected(now, None);
    }

    /// The connection ended, or could not be made; `code`: of the close frame, if there was one.
    pub fn disconnected(&mut self, now: u64, code: Option<u16>) {
        if !self.link.up() && self.link.state != State::Connecting {
            return;
        }
        self.down(now, code);
        let advice = code.map_or(Advice::ReconnectLater, Advice::of_code);
        match (code, advice) {
            (Some(code), Advice::GiveUp) => {
                self.link.state = State::Idle;
                self.outputs.push(Output::GiveUp { code });
            }
            _ => {
                if code == Some(CloseCode::TokenExpired.code()) {
                    self.token = None;
                }
                self.back_off(now, advice);
            }
        }
    }

    /// Ends the connection on the client's side; [`start`](Self::start) begins anew.
    pub fn stop(&mut self, now: u64) {
        self.flush_cursors_now(now);
        self.flush_commands(now);
        if self.link.up() {
            self.down(now, None);
            self.outputs.push(Output::Disconnect);
        }
        self.link.state = State::Idle;
    }

    fn sign_in(&mut self) {
        if let Some(token) = self.token.clone() {
            let device = self.config.device.clone();
            self.command(command::Command::Auth(wire::Auth {
                token,
                device,
                version: self.config.versions.newest,
                oldest: self.config.versions.oldest_said(),
            }));
        } else {
            self.need_token();
        }
    }

    pub(super) fn need_token(&mut self) {
        if !self.link.asked_token {
            self.link.asked_token = true;
            self.outputs.push(Output::NeedToken);
        }
    }

    /// The server says after which time to come back.
    pub(super) fn told_to_come_back(&mut self, now: u64, after_ms: u32) {
        let after = (u64::from(after_ms) * 1000).min(TOLD_DELAY_MAX);
        self.link.come_back_at = Some(now + after);
    }

    pub(super) fn sign_in_refused(&mut self, now: u64, error: &wire::Error) {
        if error.code == ErrorCode::Unauthorized.as_str() {
            // The server closes now; without a token the client waits for one.
            self.token = None;
        }
        if error.retry_after_ms > 0 {
            self.told_to_come_back(now, error.retry_after_ms);
        }
    }

    pub(super) fn hello(&mut self, now: u64, hello: wire::Hello) {
        self.link.heartbeat = u64::from(hello.heartbeat_ms) * 1000;
        if hello.server_time != 0 {
            self.link.clock_ahead = hello
                .server_time
                .cast_signed()
                .wrapping_sub(now.cast_signed());
        }
        self.limits = hello.limits.unwrap_or_default();
        self.allowance = u64::from(self.limits.sends_per_second) * SECOND;
        self.allowance_at = now;
    }

    pub(super) fn ready(&mut self, now: u64, ready: &wire::Ready) {
        if self.link.ready() {
            return; // The answer to a fresh token on a live connection.
        }
        self.link.state = State::Ready { since: now };
        self.user = ready.user;
        if ready.epoch != 0 && ready.epoch != self.saved.epoch {
            if self.saved.epoch == 0 {
                self.persist(PersistOp::Epoch { epoch: ready.epoch });
            } else {
                self.reset(ready.epoch);
            }
        }
        self.app(AppEvent::Ready {
            user: ready.user,
            device: ready.device,
            session: ready.session,
        });
        self.send_watch();
        self.want_sync(now);
        self.pump_all(now);
    }

    pub(super) fn send_watch(&mut self) {
        if !self.link.ready() {
            return;
        }
        if let Some(state) = self.link.shown {
            let state = state.into();
            self.command(command::Command::Presence(wire::SetPresence { state }));
        }
        if !self.link.watched.is_empty() {
            let users = self.link.watched.clone();
            self.command(command::Command::Watch(wire::Watch { users }));
        }
    }

    /// What a connection's end means for everything that rested on it.
    fn down(&mut self, now: u64, code: Option<u16>) {
        if let State::Ready { since } = self.link.state
            && now.saturating_sub(since) >= STABLE_AFTER
        {
            self.link.failures = 0;
        }
        if self.link.up() {
            self.app(AppEvent::Disconnected { code });
        }
        self.link.state = State::Idle;
        self.link.asked_token = false;
        self.pending.clear();
        self.commands.clear();
        self.history_down();
        self.outbox_down();
        self.cursors_down();
    }

    fn back_off(&mut self, now: u64, advice: Advice) {
        let delay = match self.link.come_back_at.take() {
            Some(at) => at.saturating_sub(now),
            None => {
                let step = match advice {
                    Advice::Reconnect => self.link.failures,
                    Advice::ReconnectLater | Advice::GiveUp => self.link.failures + 1,
                };
                let most = BACKOFF_FIRST
                    .saturating_mul(1 << step.min(10))
                    .min(BACKOFF_LAST);
                (self.random)() % (most + 1)
            }
        };
        self.link.failures = (self.link.failures + 1).min(30);
        self.link.not_before = now + delay;
        self.connect(now);
    }

    fn connect(&mut self, now: u64) {
        if self.token.is_none() {
            self.link.state = State::NeedsToken;
            self.need_token();
            return;
        }
        self.link.state = State::Connecting;
        self.outputs.push(Output::Connect {
            after: self.link.not_before.saturating_sub(now),
        });
    }

    fn heartbeat(&self) -> u64 {
        match self.link.heartbeat {
            0 => u64::from(HEARTBEAT_MS) * 1000,
            told => told,
        }
    }

    /// When the server is asked whether it is there: sooner by who waits for an answer.
    fn asks_at(&self) -> u64 {
        let silent = self.link.last_heard + self.heartbeat() * 3 / 2;
        let unheard = self.link.unheard.map_or(silent, |at| at + UNHEARD_MAX);
        silent.min(unheard)
    }

    pub(super) fn tick_link(&mut self, now: u64) {
        let dead = match (self.link.state, self.link.asked) {
            (State::SigningIn { since }, _) => now >= since + SIGN_IN_WITHIN,
            (State::Ready { .. }, Some(asked)) => now >= asked + ANSWERS_WITHIN,
            (State::Ready { .. }, None) => false,
            _ => return,
        };
        if dead {
            self.down(now, None);
            self.outputs.push(Output::Disconnect);
            self.back_off(now, Advice::ReconnectLater);
            return;
        }
        if !self.link.ready() {
            return;
        }
        if self.link.asked.is_none() && now >= self.asks_at() {
            self.link.asked = Some(now);
            self.command(command::Command::Ping(wire::Ping {}));
        }
        if now >= self.link.last_sent + PING_EVERY && self.commands.is_empty() {
            self.command(command::Command::Ping(wire::Ping {}));
        }
    }

    pub(super) fn next_link(&self) -> Option<u64> {
        match self.link.state {
            State::SigningIn { since } => Some(since + SIGN_IN_WITHIN),
            State::Ready { .. } => {
                let asked = self.link.asked.map(|asked| asked + ANSWERS_WITHIN);
                let next = asked.unwrap_or_else(|| self.asks_at());
                Some(next.min(self.link.last_sent + PING_EVERY))
            }
            _ => None,
        }
    }
}
