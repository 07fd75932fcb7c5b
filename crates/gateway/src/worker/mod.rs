//! One thread, one epoll, one listener, a slab of sessions.
//!
//! A turn: wait for readiness; read and decode what came, calling the handler; accept; go on with
//! sessions that had more than their share; tell the handler of wakes, ticks, ends and overflows;
//! write everything due. Nothing in it blocks and every step is bounded, so the turn is short and
//! what comes at its end (the writes) is soon.
//!
//! Invariants:
//! 1. A session holds a buffer only while a frame is incomplete, a request head is, its socket
//!    takes no more, or its reading is paused.
//! 2. A slot is given to another connection only after the handler's `on_close` for the last.
//! 3. Epoll is told of a socket once; both its edges are remembered, not asked for again.
//! 4. What ends a session at once is the handler's call, the client's bytes, a limit or a panic:
//!    never another session.

mod config;
mod conn;
mod handler;
mod io;
mod life;
mod listener;
mod pool;
mod read;
mod stats;
mod wheel;
mod write;

use std::io::{ErrorKind, Result};
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mio::{Events, Interest, Poll};

pub use config::{PoolLimits, WorkerConfig};
pub use handler::{CloseReason, HandedOver, Handler, HttpHandoff, OpenInfo, Token};
pub use io::Io;
pub use listener::bind;
pub use pool::Pool;
pub use stats::Stats;

use conn::{Phase, Rare, UNCOUNTED};
use io::Notice;
use listener::{Accepted, Acceptor};
use stats::add;

use crate::http_head::{refusal, unavailable};
use crate::tls::Tls;

/// The size of the buffer that every session of a worker is read into.
const SCRATCH_BYTES: usize = 64 << 10;
/// Events taken from epoll per turn: some hundred reads are about a millisecond, which is how
/// long a write may have to wait for the turn's end.
const EVENTS_PER_TURN: usize = 256;
/// How long a refused connection is kept for its client to read why.
const REFUSED_LINGER_MS: u32 = 2_000;
/// Rounds of notices and writes before the turn ends: an answer to a notice may cause another.
const NOTICE_ROUNDS: usize = 4;

const LISTENER: mio::Token = mio::Token(usize::MAX);
const WAKER: mio::Token = mio::Token(usize::MAX - 1);

/// Wakes a worker from another thread. Many wakes before the worker comes to it are one.
#[derive(Clone, Debug)]
pub struct Waker {
    inner: Arc<WakerInner>,
}

#[derive(Debug)]
struct WakerInner {
    waker: mio::Waker,
    pending: AtomicBool,
}

impl Waker {
    /// Makes the worker call `on_wake` soon. Put what it shall find there before.
    pub fn wake(&self) {
        if !self.inner.pending.swap(true, Ordering::AcqRel)
            && let Err(error) = self.inner.waker.wake()
        {
            self.inner.pending.store(false, Ordering::Release);
            tracing::error!(%error, "wake a worker");
        }
    }
}

/// What a worker is made of, besides its handler.
pub struct Parts {
    /// Limits and times.
    pub config: WorkerConfig,
    /// Shared by all workers of the process.
    pub pool: Arc<Pool>,
    /// Of [`bind`].
    pub listener: TcpListener,
    /// For a listener that speaks TLS.
    pub tls: Option<Tls>,
    /// Takes requests for anything but the WebSocket path.
    pub http: HttpHandoff,
}

/// One worker. Make it anywhere, then [`Worker::run`] it on a thread of its own.
pub struct Worker<H> {
    io: Io,
    handler: H,
    poll: Poll,
    acceptor: Option<Acceptor>,
    waker: Waker,
    tls: Option<Tls>,
    http: HttpHandoff,
    /// Where sockets are read into.
    scratch: Box<[u8]>,
    /// Where TLS plaintext is read into; empty without TLS.
    plain: Box<[u8]>,
}

impl<H: Handler> Worker<H> {
    /// A worker that accepts as soon as it runs. Fails if epoll or a descriptor isn't to be had.
    pub fn new(parts: Parts, handler: H) -> Result<Self> {
        let poll = Poll::new()?;
        let mut acceptor = Acceptor::new(parts.listener)?;
        poll.registry()
            .register(&mut acceptor.listener, LISTENER, Interest::READABLE)?;
        let waker = mio::Waker::new(poll.registry(), WAKER)?;
        let inner = WakerInner {
            waker,
            pending: AtomicBool::new(false),
        };
        let mut config = parts.config;
        config.tick_ms = config.tick_ms.max(1);
        let plain = if parts.tls.is_some() {
            SCRATCH_BYTES
        } else {
            0
        };
        Ok(Worker {
            io: Io::new(Arc::new(config), parts.pool, poll.registry().try_clone()?),
            handler,
            poll,
            acceptor: Some(acceptor),
            waker: Waker {
                inner: Arc::new(inner),
            },
            tls: parts.tls,
            http: parts.http,
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            plain: vec![0; plain].into_boxed_slice(),
        })
    }

    /// For the threads that put something into the handler's inbox.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// What the worker counts.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(self.io.stats())
    }

    /// Runs until the handler calls [`Io::stop`]; then closes everything and gives the handler
    /// back. Fails only if epoll does.
    pub fn run(mut self) -> Result<H> {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        while !self.io.stopping {
            let timeout = Duration::from_millis(self.sleep_ms());
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            self.io.read_clock();
            self.turn(&events);
        }
        Ok(self.handler)
    }

    fn sleep_ms(&self) -> u64 {
        if self.io.has_work() {
            return 0;
        }
        let accept = self
            .acceptor
            .as_ref()
            .map_or(u64::MAX, |a| a.wait_ms(self.io.now_ms()));
        self.io.until_tick_ms().min(accept)
    }

    fn turn(&mut self, events: &Events) {
        // Taken before reading: what reading puts on the list is for the next turn.
        let again = self.io.again.len();
        for event in events {
            match event.token() {
                LISTENER => {
                    if let Some(acceptor) = &mut self.acceptor {
                        acceptor.is_ready = true;
                    }
                }
                WAKER => {
                    // A swap, so that what was put into the inbox before a wake that found this
                    // one pending is seen from here on.
                    self.waker.inner.pending.swap(false, Ordering::AcqRel);
                    self.guarded(None, |handler, io| handler.on_wake(io));
                }
                mio::Token(slot) => self.ready(slot, event),
            }
        }
        for _ in 0..again {
            let Some(token) = self.io.again.pop_front() else {
                break;
            };
            self.go_on(token);
        }
        if self.io.advance_tick() {
            self.guarded(None, |handler, io| handler.on_tick(io));
        }
        for _ in 0..NOTICE_ROUNDS {
            self.notify();
            self.guarded(None, |handler, io| handler.on_turn_end(io));
            self.io.flush();
            if self.io.closed.is_empty() && self.io.notices.is_empty() {
                break;
            }
        }
        // The last flush may have ended sessions; only then may their slots go to others.
        self.notify_closed();
        self.accept();
    }

    /// Calls the handler for what ended or happened while it or the loop was busy.
    fn notify(&mut self) {
        self.notify_closed();
        for _ in 0..self.io.notices.len() {
            let Some(notice) = self.io.notices.pop_front() else {
                break;
            };
            match notice {
                Notice::Overflow(token) => {
                    if let Some(conn) = self.io.session_mut(token) {
                        conn.set(conn::OVERFLOW_UNTOLD, false);
                        self.guarded(Some(token), |handler, io| handler.on_overflow(io, token));
                    }
                }
                Notice::Drained(token) => {
                    if self.io.is_open(token) {
                        self.guarded(Some(token), |handler, io| handler.on_drained(io, token));
                    }
                }
                Notice::Timer(token) => {
                    if self.io.is_open(token) {
                        self.guarded(Some(token), |handler, io| handler.on_timer(io, token));
                    }
                }
            }
        }
        self.notify_closed();
    }

    fn notify_closed(&mut self) {
        while let Some((token, reason)) = self.io.closed.pop_front() {
            self.guarded(None, |handler, io| handler.on_close(io, token, reason));
        }
    }

    /// Calls the handler so that a panic ends the session it was called for and nothing else.
    fn guarded(&mut self, token: Option<Token>, call: impl FnOnce(&mut H, &mut Io)) {
        let (handler, io) = (&mut self.handler, &mut self.io);
        // The handler may be left in a state it didn't intend. It is told that the session is
        // over, and too many panics make the process unhealthy.
        if catch_unwind(AssertUnwindSafe(|| call(handler, io))).is_err() {
            self.io.note_panic();
            tracing::error!(session = ?token, "a callback panicked");
            if let Some(token) = token {
                self.io
                    .end(token, 1011, "internal error", CloseReason::Panicked);
            }
        }
    }

    fn accept(&mut self) {
        let mut left = self.io.config.accepts_turn_max;
        if self.io.draining {
            // What the kernel has queued would be reset when the listener closes.
            left = usize::MAX;
        }
        while left > 0 {
            let Some(acceptor) = &mut self.acceptor else {
                return;
            };
            left -= 1;
            match acceptor.accept(self.io.now_ms()) {
                Accepted::Connection(stream, peer) => self.accepted(stream, peer),
                Accepted::Nothing => break,
                Accepted::Failed => add(&self.io.stats.accept_errors, 1),
            }
        }
        if self.io.draining {
            self.acceptor = None;
        }
    }

    fn accepted(&mut self, stream: mio::net::TcpStream, peer: std::net::SocketAddr) {
        add(&self.io.stats.accepted, 1);
        if !self.io.config.admits(self.tls.is_some(), peer.ip()) {
            return self.refuse(stream, 403);
        }
        let is_proxy = self.io.config.is_proxy(peer.ip());
        let unproven = match self.io.pool.admit(peer.ip(), is_proxy) {
            Ok(unproven) => unproven,
            Err(status) => return self.refuse(stream, status),
        };
        let token = self.io.insert(stream, Phase::Head);
        let slot = token.slot();
        let conn = &mut self.io.conns[slot];
        conn.rare = Some(Box::new(Rare {
            peer,
            unproven: Some(unproven),
            received: Vec::new(),
        }));
        if let Some(tls) = &self.tls {
            match tls.accept() {
                Ok(state) => conn.tls = Some(state),
                Err(error) => {
                    tracing::error!(%error, "begin a TLS session");
                    return self.io.lost(slot);
                }
            }
        }
        self.io
            .set_phase_deadline(slot, self.io.config.handshake_ms);
        self.register(slot);
    }

    /// Asks for both edges, once and for all. Not asking for writability until it is needed would
    /// cost a call each time a socket is full, and nothing is gained: an edge that comes with a
    /// readable one is free.
    fn register(&mut self, slot: usize) {
        let interest = Interest::READABLE | Interest::WRITABLE;
        let stream = &mut self.io.conns[slot].stream;
        if let Err(error) = self
            .io
            .registry
            .register(stream, mio::Token(slot), interest)
        {
            tracing::error!(%error, "watch a connection");
            self.io.lost(slot);
        }
    }

    /// Says why and closes, before any other work. Over TLS there is nothing to say it in.
    fn refuse(&mut self, stream: mio::net::TcpStream, status: u16) {
        add(&self.io.stats.refused, 1);
        if self.tls.is_some() || !self.io.pool.linger() {
            return;
        }
        let token = self.io.insert(stream, Phase::Head);
        let slot = token.slot();
        self.io.conns[slot].set(UNCOUNTED, true);
        let answer = match status {
            // Each has a turn of its own: thousands may come at once.
            503 => unavailable(self.io.pool.retry_after()),
            status => Bytes::from_static(refusal(status)),
        };
        self.io.finish(slot, answer);
        self.io.set_phase_deadline(slot, REFUSED_LINGER_MS);
        self.register(slot);
    }
}
