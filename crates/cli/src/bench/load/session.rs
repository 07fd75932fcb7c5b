//! One session: its socket, where it stands, and what came of its bytes.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};

use mio::net::TcpStream;
use tidings_protocol::VERSION;
use tidings_protocol::wire::command::Command;
use tidings_protocol::wire::{Auth, Cursor, Sync, update};

use super::clients::{Clients, Job};
use super::ledger::{Membership, Way};
use super::wire::{self, Item};

/// How far a session has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Off,
    Connecting,
    Upgrading,
    SigningIn,
    Syncing,
    Live,
}

/// A send without an answer.
#[derive(Clone, Copy)]
pub struct Pending {
    pub conversation: u64,
    pub counter: u64,
    /// The id of the message numbered before it.
    pub previous: u64,
    /// When it was to be sent.
    pub intended: u64,
}

/// A user's one device.
pub struct Session {
    pub stream: Option<TcpStream>,
    pub state: State,
    /// An incomplete frame, and what the socket hasn't taken.
    partial: Vec<u8>,
    out: Vec<u8>,
    pub memberships: Vec<Membership>,
    /// Sends without an answer, in order.
    pub pending: VecDeque<Pending>,
    /// How many outboxes it has left, as it couldn't know what of them is in the log.
    pub outbox: u64,
    /// Until when the server wants no more sends.
    pub paused_until: u64,
    pub stalled: bool,
    /// The first sync hasn't ended; conversations met in it begin at their newest event, unless `whole`.
    pub fresh: bool,
    pub whole: bool,
    /// `sync_done` came.
    pub synced: bool,
    pub asked_ns: u64,
    pub sent_ns: u64,
    pub epoch: u32,
    pub token: String,
    /// When it was cut off, if it isn't back; 0: it is.
    pub cut_off: u64,
    /// When the last attempt began, and when it was signed in.
    pub began: u64,
    pub signed_in: u64,
    /// Attempts to come back that failed.
    pub failures: u8,
    /// When the server wants it back, if it has said so.
    pub come_back_at: u64,
}

impl Session {
    pub fn new() -> Session {
        Session {
            stream: None,
            state: State::Off,
            partial: Vec::new(),
            out: Vec::new(),
            memberships: Vec::new(),
            pending: VecDeque::new(),
            outbox: 0,
            paused_until: 0,
            stalled: false,
            fresh: true,
            whole: false,
            synced: false,
            asked_ns: 0,
            sent_ns: 0,
            epoch: 0,
            token: String::new(),
            cut_off: 0,
            began: 0,
            signed_in: 0,
            failures: 0,
            come_back_at: 0,
        }
    }

    pub fn forget_socket(&mut self) {
        self.stream = None;
        self.state = State::Off;
        self.partial = Vec::new();
        self.out = Vec::new();
        self.pending.clear();
    }

    /// The place of a conversation among this session's.
    pub fn find(&self, conversation: u64) -> Option<usize> {
        self.memberships
            .iter()
            .position(|m| m.conversation == conversation)
    }

    /// Writes at once, or keeps what the socket doesn't take.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        let mut rest = bytes;
        while self.out.is_empty() && !rest.is_empty() {
            match stream.write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.out.extend_from_slice(rest);
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let kept = std::mem::take(&mut self.out);
        self.write(&kept)
    }
}

impl Clients {
    /// Sends commands in one frame.
    pub fn command(&mut self, at: usize, commands: Vec<Command>) {
        let mut out = std::mem::take(&mut self.frame);
        out.clear();
        wire::commands(commands, &mut out);
        self.write(at, &out);
        self.frame = out;
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.sessions[at].sent_ns = self.now();
        if let Err(error) = self.sessions[at].write(bytes) {
            self.problem(format!("write: {error}"));
            self.closed(at);
        }
    }

    /// The socket can take more: at first, that it is connected.
    pub fn writable(&mut self, at: usize) {
        let session = &mut self.sessions[at];
        let Some(stream) = &session.stream else {
            return;
        };
        if session.state == State::Connecting {
            if let Ok(Some(error)) = stream.take_error() {
                self.problem(format!("connect: {error}"));
                return self.closed(at);
            }
            if stream.peer_addr().is_err() {
                return;
            }
            session.state = State::Upgrading;
            let hint = self.hint(at);
            let hint = hint.map_or(String::new(), |hint| format!("X-Tidings-User: {hint}\r\n"));
            let head = format!(
                "GET /v1/ws HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: tidings.v1.proto\r\n{hint}\r\n",
                self.server(at)
            );
            self.write(at, head.as_bytes());
        } else if !session.out.is_empty() && session.flush().is_err() {
            self.closed(at);
        }
    }

    /// Reads what there is. A short read means that there is no more: the next edge comes with more.
    pub fn readable(&mut self, at: usize) {
        let mut scratch = std::mem::take(&mut self.scratch);
        loop {
            let session = &mut self.sessions[at];
            let Some(stream) = session.stream.as_mut().filter(|_| !session.stalled) else {
                break;
            };
            match stream.read(&mut scratch) {
                Ok(0) => {
                    self.closed(at);
                    break;
                }
                Ok(n) => {
                    self.done.reads += 1;
                    self.done.bytes += n as u64;
                    let mut kept = std::mem::take(&mut session.partial);
                    if kept.is_empty() {
                        let used = self.feed(at, &scratch[..n]);
                        kept.extend_from_slice(&scratch[used..n]);
                    } else {
                        kept.extend_from_slice(&scratch[..n]);
                        let used = self.feed(at, &kept);
                        kept.drain(..used);
                    }
                    if !kept.is_empty() && self.sessions[at].stream.is_some() {
                        self.sessions[at].partial = kept;
                    }
                    if n < scratch.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.problem(format!("read: {error}"));
                    self.closed(at);
                    break;
                }
            }
        }
        self.scratch = scratch;
    }

    /// Takes whole frames; how many bytes that were.
    fn feed(&mut self, at: usize, bytes: &[u8]) -> usize {
        let (now, mut used) = (self.now(), 0);
        if self.sessions[at].state == State::Upgrading {
            let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
                return 0;
            };
            if !bytes.starts_with(b"HTTP/1.1 101") {
                let head = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
                let status = head.lines().next().unwrap_or_default();
                self.problem(format!("no upgrade: {status}"));
                let mut lines = head.lines().filter_map(|line| line.split_once(": "));
                let retry = lines.find(|(name, _)| name.eq_ignore_ascii_case("retry-after"));
                if let Some(seconds) = retry.and_then(|(_, value)| value.parse::<u64>().ok()) {
                    let after = seconds * 1_000_000_000 + self.chance(1_000_000_000);
                    self.sessions[at].come_back_at = now + after;
                }
                self.closed(at);
                return bytes.len();
            }
            self.sessions[at].state = State::SigningIn;
            used = end + 4;
        }
        while let Some(frame) = wire::frame(&bytes[used..]) {
            used += frame.whole;
            match frame.opcode {
                2 if wire::items(frame.payload, |item| self.item(at, item, now)).is_none() => {
                    self.problem("a malformed frame from the server".into());
                }
                8 => {
                    let code = frame
                        .payload
                        .first_chunk()
                        .map_or(0, |c| u16::from_be_bytes(*c));
                    self.problem(format!("closed by the server with {code}"));
                    self.closed(at);
                    return bytes.len();
                }
                9 => {
                    let mut pong = Vec::new();
                    wire::client_frame(10, frame.payload, &mut pong);
                    self.write(at, &pong);
                }
                _ => {}
            }
        }
        used
    }

    fn item(&mut self, at: usize, item: Item<'_>, now: u64) {
        let update = match item {
            Item::Event {
                conversation,
                seq,
                body,
            } => return self.pushed(at, conversation, seq, body, now),
            Item::Other(update) => update,
        };
        match update.update {
            Some(update::Update::Hello(_)) => {
                let auth = Auth {
                    token: self.sessions[at].token.clone(),
                    device: "bench".into(),
                    version: VERSION,
                    oldest: 0,
                };
                self.command(at, vec![Command::Auth(auth)]);
            }
            Some(update::Update::Ready(ready)) => {
                self.sessions[at].epoch = ready.epoch;
                self.sessions[at].signed_in = now;
                self.sync(at);
            }
            Some(update::Update::Ack(ack)) => self.acked(at, &ack, now),
            Some(update::Update::SyncPage(page)) => self.sync_page(at, page, now),
            Some(update::Update::SyncDone(done)) => self.sync_done(at, &done),
            Some(update::Update::HistoryPage(page)) => self.history_page(at, page),
            Some(update::Update::Heads(heads)) => {
                for head in heads.heads {
                    self.ledger.head(head.conversation, head.seq);
                }
            }
            Some(update::Update::Lagging(_)) => {
                self.done.lagging += 1;
                self.sync(at);
            }
            Some(update::Update::Error(error)) => self.refused(at, &error),
            Some(update::Update::Reconnect(told)) => {
                self.problem("the server says reconnect".into());
                self.sessions[at].come_back_at = now + u64::from(told.after_ms) * 1_000_000;
            }
            _ => {}
        }
    }

    /// Asks for all after the cursors.
    pub fn sync(&mut self, at: usize) {
        let now = self.now();
        let session = &mut self.sessions[at];
        session.state = State::Syncing;
        session.synced = false;
        session.asked_ns = now;
        let cursors: Vec<_> = session
            .memberships
            .iter()
            .map(|m| Cursor {
                conversation: m.conversation,
                seq: m.cursor,
            })
            .collect();
        let epoch = if cursors.is_empty() { 0 } else { session.epoch };
        // A new device of a user who doesn't care for what was needs one event to find its place.
        let page = if session.fresh && !session.whole {
            1
        } else {
            100
        };
        self.command(
            at,
            vec![Command::Sync(Sync {
                epoch,
                cursors,
                page,
            })],
        );
    }

    fn pushed(&mut self, at: usize, conversation: u64, seq: u64, body: &[u8], now: u64) {
        let session = &mut self.sessions[at];
        let way = if session.state == State::Live {
            Way::Pushed
        } else {
            Way::PushedEarly
        };
        let place = session.find(conversation).unwrap_or_else(|| {
            session
                .memberships
                .push(Membership::new(conversation, seq - 1));
            // What the user may write there a page says.
            self.asks.push((now, at, 0));
            session.memberships.len() - 1
        });
        if self
            .ledger
            .take(at as u32, &mut session.memberships[place], seq, way)
        {
            self.done.delivered += 1;
            self.delivered(body, now);
        }
    }

    /// The connection is gone.
    pub fn closed(&mut self, at: usize) {
        if self.sessions[at].stream.is_none() {
            return;
        }
        let was = self.sessions[at].state;
        self.sessions[at].forget_socket();
        self.done.closed += 1;
        match &mut self.job {
            Job::Opening(opening) if was != State::Live => {
                opening.under_way = opening.under_way.saturating_sub(1);
                opening.again.push(at);
            }
            Job::Resuming { .. } => {
                let due = self.clock.elapsed().as_nanos() as u64 + 500_000_000;
                self.again.push(Reverse((due, at)));
            }
            Job::Returning(returning)
                if (returning.first..returning.first + returning.count).contains(&at) =>
            {
                self.come_back(at);
            }
            _ => {}
        }
    }
}
