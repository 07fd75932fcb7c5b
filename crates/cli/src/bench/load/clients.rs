//! The process of the clients: one thread, one epoll loop, thousands of sessions.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use tidings_protocol::wire::command::Command;
use tidings_protocol::wire::{Delivered, Ping};

use super::ledger::Ledger;
use super::sending::{Sending, histogram};
use super::session::{Session, State};
use super::sockets::{self, Timer};
use super::{answer, orders};
use crate::bench::order::{Done, Order, Quantiles};
use crate::bench::tokens::Signer;

const WAKE: Token = Token(usize::MAX);
const TIMER: Token = Token(usize::MAX - 1);
/// Tokens of bare sockets begin here.
const RAW: usize = 1 << 32;

/// Every session is looked at once in this many ticks of `TICK`: cursors are confirmed every 5 s.
const TICKS: usize = 100;
const TICK: Duration = Duration::from_millis(50);
/// The server's heartbeat at its default: who said nothing for so long pings.
const PING_NS: u64 = 30_000_000_000;
const PROBLEMS_MAX: usize = 10;

/// Sessions being opened.
pub struct Opening {
    pub next: usize,
    pub end: usize,
    pub under_way: usize,
    pub complete: usize,
    pub count: usize,
    pub window: usize,
    pub again: Vec<usize>,
    pub deadline: u64,
}

/// Sessions that come back by themselves.
pub struct Returning {
    pub first: usize,
    pub count: usize,
    pub deadline: u64,
    /// How many have been cut off and are back.
    pub back: usize,
    pub away: Histogram<u64>,
    /// Of that until the attempt that succeeded began, from there until it was signed in, and from there on.
    pub stages: [Histogram<u64>; 3],
    /// Attempts, also those that failed.
    pub attempts: u64,
}

/// The order under way.
pub enum Job {
    Nothing,
    Opening(Opening),
    OpeningRaw {
        address: SocketAddr,
        next: usize,
        ready: usize,
        window: usize,
        upgrade: bool,
        deadline: u64,
    },
    Sending(Box<Sending>),
    Resuming {
        deadline: u64,
    },
    Returning(Box<Returning>),
    AwaitRaw {
        bytes: u64,
        deadline: u64,
    },
    Resting {
        until: u64,
    },
}

#[derive(PartialEq, Eq)]
enum RawState {
    Connecting,
    Upgrading,
    Ready,
}

struct RawSocket {
    stream: TcpStream,
    state: RawState,
}

/// Everything of this process.
pub struct Clients {
    /// Session n is with number n modulo their count, so neighbours meet through the cluster.
    servers: Vec<SocketAddr>,
    addresses: u16,
    signer: Signer,
    poll: Poll,
    timer: Timer,
    pub clock: Instant,
    pub sessions: Vec<Session>,
    raw: Vec<RawSocket>,
    raw_bytes: u64,
    pub ledger: Ledger,
    pub job: Job,
    began: u64,
    pub done: Done,
    pub scratch: Vec<u8>,
    pub frame: Vec<u8>,
    pub filler: Vec<u8>,
    pub nonce: u64,
    /// What is drawn from next.
    chance: u64,
    /// What each session tells a balancer in place of its user, in turn; none: nothing.
    hints: Vec<String>,
    /// Asks of a session for a conversation, at their times.
    pub asks: Vec<(u64, usize, u64)>,
    /// Sessions to open again, at their times.
    pub again: BinaryHeap<Reverse<(u64, usize)>>,
    hand: usize,
    ticked: u64,
}

/// Serves orders until there are no more.
pub fn run(
    servers: Vec<SocketAddr>,
    key: &Path,
    addresses: u16,
    hints: Vec<String>,
) -> anyhow::Result<()> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
    let orders = orders::<Order>(move || drop(waker.wake()));
    let timer = Timer::new()?;
    poll.registry()
        .register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
    // Letters in no order that repeats soon; what they say doesn't matter.
    let filler = (0..4096u64)
        .map(|i| {
            b"etaoin shrdlu etaoin "
                [(i.wrapping_mul(i).wrapping_mul(0x9e37_79b9) >> 11) as usize % 21]
        })
        .collect();
    let nonce = std::time::UNIX_EPOCH
        .elapsed()
        .map_or(1, |d| d.as_nanos() as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut clients = Clients {
        servers,
        addresses,
        signer: Signer::read(key)?,
        poll,
        timer,
        clock: Instant::now(),
        sessions: Vec::new(),
        raw: Vec::new(),
        raw_bytes: 0,
        ledger: Ledger::default(),
        job: Job::Nothing,
        began: 0,
        done: Done::default(),
        scratch: vec![0; 256 << 10],
        frame: Vec::new(),
        filler,
        nonce: nonce & !0xff_ffff,
        chance: nonce,
        hints,
        asks: Vec::new(),
        again: BinaryHeap::new(),
        hand: 0,
        ticked: 0,
    };
    clients.serve(&orders)
}

impl Clients {
    /// Nanoseconds since the process began.
    pub fn now(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    pub fn problem(&mut self, text: String) {
        let problems = &mut self.done.problems;
        if problems.len() < PROBLEMS_MAX || problems.contains_key(&text) {
            *problems.entry(text).or_default() += 1;
        }
    }

    fn serve(&mut self, orders: &Receiver<Order>) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(2048);
        loop {
            if let Job::Sending(sending) = &self.job
                && let Some(due) = sending.due(self.now())
            {
                self.timer.set(due.saturating_sub(self.now()));
            }
            match self.poll.poll(&mut events, Some(TICK)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
            for event in &events {
                match event.token().0 {
                    at if at >= TIMER.0 => {}
                    at if at >= RAW => self.raw_event(at - RAW),
                    at => {
                        if event.is_writable() {
                            self.writable(at);
                        }
                        self.readable(at);
                    }
                }
            }
            self.send_due();
            self.tick();
            self.advance()?;
            if matches!(self.job, Job::Nothing) {
                match orders.try_recv() {
                    Ok(order) => self.begin(order)?,
                    Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
        }
    }

    fn begin(&mut self, order: Order) -> anyhow::Result<()> {
        self.began = self.now();
        self.done = Done::default();
        let until = |seconds: f64| self.began + (seconds * 1e9) as u64;
        match order {
            Order::Open {
                first,
                count,
                window,
                whole,
                seconds,
            } => {
                let deadline = until(seconds);
                while self.sessions.len() < first + count {
                    self.sessions.push(Session::new());
                }
                for at in first..first + count {
                    self.sessions[at].whole = whole;
                    if self.sessions[at].token.is_empty() {
                        self.sessions[at].token = self.signer.token(at);
                    }
                }
                // Signing is not the server's time.
                self.began = self.now();
                self.job = Job::Opening(Opening {
                    next: first,
                    end: first + count,
                    under_way: 0,
                    complete: 0,
                    count,
                    window,
                    again: Vec::new(),
                    deadline,
                });
            }
            Order::OpenRaw {
                address,
                count,
                window,
                upgrade,
                seconds,
            } => {
                self.raw.reserve(count);
                self.job = Job::OpeningRaw {
                    address,
                    next: count,
                    ready: 0,
                    window,
                    upgrade,
                    deadline: until(seconds),
                };
            }
            Order::CutOff { first, count } => {
                for session in &mut self.sessions[first..first + count] {
                    session.forget_socket();
                }
                self.job = Job::Resting { until: until(0.0) };
            }
            Order::CloseRaw => {
                self.raw = Vec::new();
                self.job = Job::Resting { until: until(0.0) };
            }
            Order::Send(plan) => self.begin_sending(plan),
            Order::Stall { first, count } => {
                for session in &mut self.sessions[first..first + count] {
                    session.stalled = true;
                    if let Some(stream) = &session.stream {
                        sockets::shrink_receive_buffer(stream)?;
                    }
                }
                self.job = Job::Resting { until: until(0.0) };
            }
            Order::Resume { seconds } => {
                self.job = Job::Resuming {
                    deadline: until(seconds),
                };
                for at in 0..self.sessions.len() {
                    if std::mem::take(&mut self.sessions[at].stalled) {
                        self.readable(at);
                    }
                }
                // Whoever was cut off and isn't on its way back comes now.
                let now = self.now();
                self.again.clear();
                let away = |&at: &usize| {
                    let session = &self.sessions[at];
                    session.stream.is_none() && !session.token.is_empty()
                };
                let away = (0..self.sessions.len()).filter(away);
                self.again.extend(away.map(|at| Reverse((now, at))));
            }
            Order::Return {
                first,
                count,
                seconds,
            } => {
                self.job = Job::Returning(Box::new(Returning {
                    first,
                    count,
                    deadline: until(seconds),
                    back: 0,
                    away: histogram(),
                    stages: [histogram(), histogram(), histogram()],
                    attempts: 0,
                }));
            }
            Order::AwaitRaw { bytes, seconds } => {
                self.job = Job::AwaitRaw {
                    bytes,
                    deadline: until(seconds),
                }
            }
            Order::Rest { seconds } => {
                self.job = Job::Resting {
                    until: until(seconds),
                }
            }
            Order::Check => {
                let live = self.sessions.iter().filter(|s| s.state == State::Live);
                self.done.opened = live.count() as u64;
                self.done.lost = self
                    .ledger
                    .lost(self.sessions.iter().flat_map(|s| &s.memberships));
                self.done.duplicated = self.ledger.duplicated;
                self.done.reordered = self.ledger.reordered;
                self.job = Job::Resting { until: until(0.0) };
                if self.done.lost > 0 {
                    self.name_the_behind();
                }
            }
        }
        self.advance()
    }

    /// Where those who lack something stand: it tells a session that is still on its way back from one that was forgotten.
    fn name_the_behind(&mut self) {
        for at in 0..self.sessions.len() {
            let session = &self.sessions[at];
            let behind = self.ledger.behind(at as u32, &session.memberships);
            if behind == 0 {
                continue;
            }
            let state = match session.state {
                State::Off => "off",
                State::Connecting | State::Upgrading => "connecting",
                State::SigningIn => "signing in",
                State::Syncing => "syncing",
                State::Live => "live",
            };
            let text = format!(
                "{behind} events behind, {state}, failed {} times",
                session.failures
            );
            self.problem(text);
        }
    }

    /// Goes on with the order, and answers when it is done.
    fn advance(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        let (over, deadline) = match &self.job {
            Job::Nothing => return Ok(()),
            Job::Opening(opening) => {
                self.done.opened = opening.complete as u64;
                (opening.complete == opening.count, opening.deadline)
            }
            Job::OpeningRaw {
                next,
                ready,
                deadline,
                ..
            } => {
                self.done.opened = *ready as u64;
                (*next == 0 && *ready == self.raw.len(), *deadline)
            }
            Job::Sending(sending) => {
                let complete = sending.plan.gives_up
                    || self.done.acked >= self.done.sent && self.done.delivered >= self.done.due;
                (sending.is_over(now) && complete, sending.deadline)
            }
            Job::Resuming { deadline } => {
                let mut opened = self.sessions.iter().filter(|s| !s.token.is_empty());
                let live = opened.all(|s| s.state == State::Live);
                (
                    live && self
                        .ledger
                        .lost(self.sessions.iter().flat_map(|s| &s.memberships))
                        == 0,
                    *deadline,
                )
            }
            Job::Returning(returning) => {
                self.done.opened = returning.back as u64;
                // Some may have been cut off more than once.
                let mut all = self.sessions[returning.first..]
                    .iter()
                    .take(returning.count);
                let is_over =
                    returning.back >= returning.count && all.all(|s| s.state == State::Live);
                (is_over, returning.deadline)
            }
            Job::AwaitRaw { bytes, deadline } => (self.raw_bytes >= *bytes, *deadline),
            Job::Resting { until } => (now >= *until, u64::MAX),
        };
        if !over && now < deadline {
            return self.open_more(now);
        }
        self.done.seconds = (now - self.began) as f64 / 1e9;
        match std::mem::replace(&mut self.job, Job::Nothing) {
            Job::Sending(sending) => {
                self.done.seconds = (sending.last - sending.started) as f64 / 1e9;
                self.done.ack = Quantiles::of(&sending.ack);
                self.done.deliver = Quantiles::of(&sending.deliver);
                self.done.by_second = sending.by_second;
            }
            Job::Returning(returning) => {
                self.done.away = Quantiles::of(&returning.away);
                self.done.stages = returning.stages.each_ref().map(Quantiles::of);
                self.done.attempts = returning.attempts;
            }
            Job::AwaitRaw { .. } => {
                self.done.bytes = self.raw_bytes;
                self.raw_bytes = 0;
            }
            _ => {}
        }
        self.done.late = !over;
        answer(&self.done)
    }

    fn open_more(&mut self, now: u64) -> anyhow::Result<()> {
        if let Job::Opening(opening) = &mut self.job {
            let mut begin = Vec::new();
            while opening.under_way < opening.window {
                let at = if opening.next < opening.end {
                    opening.next += 1;
                    opening.next - 1
                } else if let Some(at) = opening.again.pop() {
                    at
                } else {
                    break;
                };
                opening.under_way += 1;
                begin.push(at);
            }
            for at in begin {
                self.connect(at)?;
            }
        }
        while let Job::OpeningRaw {
            address,
            next,
            ready,
            window,
            ..
        } = &mut self.job
            && *next > 0
            && self.raw.len() - *ready < *window
        {
            *next -= 1;
            let at = self.raw.len();
            let mut stream = sockets::connect(*address, at, self.addresses)?;
            self.poll.registry().register(
                &mut stream,
                Token(RAW + at),
                Interest::READABLE | Interest::WRITABLE,
            )?;
            self.raw.push(RawSocket {
                stream,
                state: RawState::Connecting,
            });
        }
        while let Some(&Reverse((due, at))) = self.again.peek()
            && due <= now
        {
            self.again.pop();
            self.connect(at)?;
        }
        Ok(())
    }

    /// Where this session connects.
    pub fn server(&self, at: usize) -> SocketAddr {
        self.servers[at % self.servers.len()]
    }

    /// What the session tells a balancer.
    pub fn hint(&self, at: usize) -> Option<&str> {
        let place = at.checked_rem(self.hints.len())?;
        Some(&self.hints[place])
    }

    fn connect(&mut self, at: usize) -> anyhow::Result<()> {
        let mut stream = sockets::connect(self.server(at), at, self.addresses)?;
        self.poll.registry().register(
            &mut stream,
            Token(at),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        let now = self.now();
        let session = &mut self.sessions[at];
        session.stream = Some(stream);
        session.state = State::Connecting;
        session.began = now;
        if let Job::Returning(returning) = &mut self.job {
            returning.attempts += 1;
        }
        Ok(())
    }

    /// A session has all there is.
    pub fn is_live(&mut self, at: usize) {
        let now = self.now();
        let session = &mut self.sessions[at];
        session.failures = 0;
        let cut_off = std::mem::take(&mut session.cut_off);
        let (began, signed_in) = (session.began, session.signed_in);
        match &mut self.job {
            Job::Opening(opening) => {
                opening.under_way = opening.under_way.saturating_sub(1);
                opening.complete += 1;
            }
            Job::Returning(returning) if cut_off > 0 => {
                returning.back += 1;
                returning.away.saturating_record(now - cut_off);
                let stages = [began - cut_off, signed_in - began, now - signed_in];
                for (stage, seen) in returning.stages.iter_mut().zip(stages) {
                    stage.saturating_record(seen);
                }
            }
            _ => {}
        }
    }

    /// A session was cut off and comes back as the client's library does: when the server has said, else after a
    /// while between nothing and a second, twice that with each failure, at most 30 s.
    pub fn come_back(&mut self, at: usize) {
        let now = self.now();
        let session = &mut self.sessions[at];
        if session.cut_off == 0 {
            session.cut_off = now;
        }
        let most = 1_000_000_000u64 << session.failures.min(5);
        session.failures += 1;
        let told = std::mem::take(&mut session.come_back_at);
        if told > 0 {
            return self.again.push(Reverse((told, at)));
        }
        let after = self.chance(most.min(30_000_000_000));
        self.again.push(Reverse((now + after, at)));
    }

    /// A number below `most`, of no particular quality.
    pub fn chance(&mut self, most: u64) -> u64 {
        self.chance = self
            .chance
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(1);
        (self.chance >> 16) % most
    }

    fn raw_event(&mut self, at: usize) {
        let Some(socket) = self.raw.get_mut(at) else {
            return;
        };
        if socket.state == RawState::Connecting && socket.stream.peer_addr().is_ok() {
            socket.state = RawState::Ready;
            if let Job::OpeningRaw { upgrade, ready, .. } = &mut self.job {
                if *upgrade {
                    let head = format!(
                        "GET /v1/ws HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
                        self.servers[0]
                    );
                    // A fresh socket takes a few hundred bytes.
                    let _ = socket.stream.write(head.as_bytes());
                    socket.state = RawState::Upgrading;
                } else {
                    *ready += 1;
                }
            }
        }
        let mut got = 0;
        while let Ok(n @ 1..) = socket.stream.read(&mut self.scratch) {
            got += n as u64;
            self.done.reads += 1;
            if n < self.scratch.len() {
                break;
            }
        }
        if socket.state != RawState::Upgrading {
            self.raw_bytes += got;
        } else if got > 0 {
            socket.state = RawState::Ready;
            if let Job::OpeningRaw { ready, .. } = &mut self.job {
                *ready += 1;
            }
        }
    }

    /// What comes round: asks, cursors to confirm, pings.
    fn tick(&mut self) {
        let now = self.now();
        if !self.asks.is_empty() {
            self.ask();
        }
        let due = (now - self.ticked) / TICK.as_nanos() as u64;
        if due == 0 {
            return;
        }
        self.ticked = now;
        let step = (self.sessions.len().div_ceil(TICKS) * due as usize).min(self.sessions.len());
        for _ in 0..step {
            self.hand = (self.hand + 1) % self.sessions.len();
            let at = self.hand;
            let session = &mut self.sessions[at];
            if session.state != State::Live || session.stalled {
                continue;
            }
            let mut commands = Vec::new();
            for m in session
                .memberships
                .iter_mut()
                .filter(|m| m.cursor > m.confirmed && m.fetch.is_none())
            {
                m.confirmed = m.cursor;
                commands.push(Command::Delivered(Delivered {
                    conversation: m.conversation,
                    seq: m.cursor,
                }));
            }
            if commands.is_empty() && now - session.sent_ns > PING_NS {
                commands.push(Command::Ping(Ping {}));
            }
            if !commands.is_empty() {
                self.command(at, commands);
            }
        }
    }
}
