//! The writers: one light connection a nick, on one thread that waits for all of them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use mio::{Events, Interest, Poll, Token};
use tidings_protocol::codes::Advice;
use tidings_protocol::wire::{self, Command, command, update};
use tidings_protocol::{ErrorCode, Format, VERSION, encode_command};
use tidings_verify::{body_hash, history};

use super::connection::{Connection, Rate, Stage, Writer};
use super::file::Chat;
use super::order::Order;
use super::outbox::{IN_FLIGHT_MAX, Outbox, Then};
use super::report::Played;
use super::tokens::Tokens;
use super::wire::{Heard, Wire};
use crate::witness::History;

/// Connections that may be opening at a time: a server takes 20 unauthenticated ones of an
/// address, and observers come back meanwhile.
const OPENING_MAX: usize = 8;
/// Messages ahead whose writers are connected already.
const AHEAD: usize = 512;
/// From the first byte to being able to write.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// Without an answer for so long the connection is given up and opened again.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Without any message accepted for so long the replay is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// Events are confirmed this often; the server waits 30 s.
const CONFIRM_EVERY: Duration = Duration::from_secs(10);
/// Silent connections are looked at this often.
const TIDY_EVERY: Duration = Duration::from_millis(250);
/// What an idle connection sends something after.
const PING_AFTER: Duration = Duration::from_secs(20);
/// A frame holds at most as many commands.
const COMMANDS_MAX: usize = tidings_protocol::limits::COMMANDS_PER_FRAME_MAX;
const SCRATCH_BYTES: usize = 256 * 1024;

/// How to play.
pub(super) struct Plan {
    pub address: SocketAddr,
    pub conversation: u64,
    pub users: Vec<u64>,
    pub senders: Vec<u64>,
    pub connections_max: usize,
    /// Messages without an answer at once.
    pub window: usize,
    /// Another writer's next message waits for all answers.
    pub in_order: bool,
    /// 0: as fast as possible; else so many times the speed of the log.
    pub speed: f64,
    pub frames_per_second: u32,
    pub seed: u64,
}

/// Plays the log.
pub(super) struct Senders<'a> {
    plan: Plan,
    chat: &'a Chat,
    tokens: Tokens,
    order: &'a Order,
    history: History,
    bar: ProgressBar,
    poll: Poll,
    connections: slab::Slab<Connection>,
    writers: Vec<Writer>,
    opening: usize,
    next: usize,
    in_flight: usize,
    sends_per_second: u32,
    /// Until when the next message is held by a rate.
    held_until: Option<Instant>,
    dirty: Vec<usize>,
    /// Nicks with something due at a time.
    due: Vec<usize>,
    accepted_at: Instant,
    random: u64,
    played: Played,
}

impl<'a> Senders<'a> {
    pub fn new(
        plan: Plan,
        chat: &'a Chat,
        tokens: Tokens,
        order: &'a Order,
        history: History,
        bar: ProgressBar,
    ) -> anyhow::Result<Senders<'a>> {
        let now = Instant::now();
        let writer = |&sender: &u64| Writer {
            outbox: Outbox::new(sender),
            connection: None,
            again_at: None,
            sent_again: None,
            connect_after: None,
            failures: 0,
            rate: Rate(now),
        };
        let writers = plan.senders.iter().map(writer).collect();
        let played = Played {
            acked: 0,
            seconds: 0.0,
            opened: 0,
            lost: 0,
            evicted: 0,
            most_open: 0,
            gaps: 0,
            refusals: BTreeMap::new(),
            held: 0.0,
            latency: Histogram::new_with_bounds(1, 600_000_000, 3)?,
            head: 0,
        };
        Ok(Senders {
            random: plan.seed,
            plan,
            chat,
            tokens,
            order,
            history,
            bar,
            poll: Poll::new().context("cannot wait for sockets")?,
            connections: slab::Slab::new(),
            writers,
            opening: 0,
            next: 0,
            in_flight: 0,
            sends_per_second: 0,
            held_until: None,
            dirty: Vec::new(),
            due: Vec::new(),
            accepted_at: now,
            played,
        })
    }

    /// Plays all messages and waits for their answers.
    pub fn run(mut self) -> anyhow::Result<Played> {
        let start = Instant::now();
        let mut events = Events::with_capacity(1024);
        let mut scratch = vec![0; SCRATCH_BYTES];
        let mut heard = Vec::new();
        let mut tidied = start;
        self.accepted_at = start;
        while self.next < self.chat.messages.len() || self.in_flight > 0 {
            let now = Instant::now();
            let until = self.issue(start, now)?;
            self.open_ahead(now)?;
            self.write_dirty(now);
            let wait = until
                .map_or(TIDY_EVERY, |at| at.saturating_duration_since(now))
                .min(TIDY_EVERY);
            // Rounded up by mio to a millisecond, and never negative.
            match self.poll.poll(&mut events, Some(wait)) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e.into()),
                _ => {}
            }
            let now = Instant::now();
            for event in &events {
                let Token(key) = event.token();
                self.happened(key, now, event.is_writable(), &mut scratch, &mut heard)?;
            }
            self.again(now);
            if tidied + TIDY_EVERY <= now {
                tidied = now;
                self.tidy(now)?;
            }
        }
        self.played.seconds = start.elapsed().as_secs_f64();
        self.close_all();
        Ok(self.played)
    }

    /// Sends what may be sent now; answers when the next message is due, if that is known.
    fn issue(&mut self, start: Instant, now: Instant) -> anyhow::Result<Option<Instant>> {
        while let Some(message) = self.chat.messages.get(self.next) {
            let nick = message.nick as usize;
            if self.plan.speed > 0.0 {
                let due = start + Duration::from_secs_f64(message.at / self.plan.speed);
                if due > now {
                    return Ok(Some(due));
                }
            }
            let writer = &mut self.writers[nick];
            let waits = writer.outbox.waiting().len();
            // In order: only the writer's own messages may be on their way before this one.
            let is_turn = waits == self.in_flight || !self.plan.in_order;
            let is_full = self.in_flight >= self.plan.window || waits >= IN_FLIGHT_MAX;
            if !is_turn || is_full || writer.again_at.is_some() {
                return Ok(None);
            }
            let Some(key) = writer.connection else {
                return Ok(None);
            };
            let connection = &mut self.connections[key];
            if connection.stage != Stage::Ready || connection.commands >= COMMANDS_MAX {
                return Ok(None);
            }
            if let Err(at) = writer.rate.take(now, self.sends_per_second) {
                if self.held_until.is_none_or(|until| until < now) {
                    self.played.held += at.duration_since(now).as_secs_f64();
                    self.held_until = Some(at);
                }
                return Ok(Some(at));
            }
            let id = loop {
                match random(&mut self.random) {
                    0 => {}
                    id => break id,
                }
            };
            let counter = writer.outbox.number(self.next as u32, id, now);
            self.history.record(history::Send {
                at: self.history.now_us(),
                user: self.plan.users[nick],
                device: connection.device,
                conversation: self.plan.conversation,
                sender: self.plan.senders[nick],
                grant: writer.outbox.grant,
                counter,
                id,
                body_hash: body_hash(message.text.as_bytes()),
            });
            self.put_send(nick, key, writer_last(&self.writers[nick]));
            self.next += 1;
            self.in_flight += 1;
        }
        Ok(None)
    }

    fn put_send(&mut self, nick: usize, key: usize, place: usize) {
        let outbox = &self.writers[nick].outbox;
        let numbered = &outbox.waiting()[place];
        let text = &self.chat.messages[numbered.message as usize].text;
        let send = outbox.send(numbered, self.plan.conversation, text);
        self.put(key, command::Command::Send(send));
    }

    fn put(&mut self, key: usize, command: command::Command) {
        let connection = &mut self.connections[key];
        let command = Command {
            r#ref: 0,
            command: Some(command),
        };
        encode_command(Format::Proto, &command, &mut connection.items);
        connection.commands += 1;
        if !std::mem::replace(&mut connection.is_dirty, true) {
            self.dirty.push(key);
        }
    }

    /// Connects the writers of the next messages, the nearest first.
    fn open_ahead(&mut self, now: Instant) -> anyhow::Result<()> {
        if self.opening >= OPENING_MAX {
            return Ok(());
        }
        let end = (self.next + AHEAD).min(self.chat.messages.len());
        for place in self.next..end {
            let nick = self.chat.messages[place].nick as usize;
            if let Some(key) = self.writers[nick].connection {
                let needed = &mut self.connections[key].needed;
                *needed = place.max(*needed);
                continue;
            }
            if self.opening >= OPENING_MAX || !self.make_room(place) {
                break;
            }
            if self.writers[nick].connect_after.is_none_or(|at| at <= now) {
                self.open(nick, place, now)?;
            }
        }
        Ok(())
    }

    /// Closes the connection that is needed the least, if all are in use.
    fn make_room(&mut self, place: usize) -> bool {
        if self.connections.len() < self.plan.connections_max {
            return true;
        }
        let idle = self.connections.iter().filter(|(_, c)| {
            let writer = &self.writers[c.nick];
            c.needed < place && c.stage == Stage::Ready && writer.outbox.waiting().is_empty()
        });
        let Some((key, _)) = idle.min_by_key(|(_, c)| c.needed) else {
            return false;
        };
        let mut connection = self.forget(key);
        connection.wire.put_close(1000);
        // It goes whether or not the server hears why.
        let _ = connection.wire.flush();
        self.played.evicted += 1;
        true
    }

    fn open(&mut self, nick: usize, place: usize, now: Instant) -> anyhow::Result<()> {
        let mask = random(&mut self.random) as u32;
        let mut wire = Wire::connect(self.plan.address, self.plan.users[nick], mask)
            .context("cannot open a socket")?;
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut wire.stream, Token(key), interest)?;
        entry.insert(Connection {
            nick,
            wire,
            stage: Stage::Upgrading,
            since: now,
            sync_at: None,
            device: 0,
            items: Vec::new(),
            commands: 0,
            is_dirty: false,
            needed: place,
            seen: 0,
            confirmed: 0,
            confirmed_at: now,
            wrote_at: now,
            frames: Rate(now),
        });
        self.writers[nick].connection = Some(key);
        self.opening += 1;
        self.played.opened += 1;
        self.played.most_open = self.played.most_open.max(self.connections.len());
        Ok(())
    }

    /// Takes a connection out; the writer opens another one when it must.
    fn forget(&mut self, key: usize) -> Connection {
        let mut connection = self.connections.remove(key);
        if connection.stage != Stage::Ready {
            self.opening -= 1;
        }
        self.writers[connection.nick].connection = None;
        // Closing the socket deregisters it; this only spares a call later.
        let _ = self.poll.registry().deregister(&mut connection.wire.stream);
        connection
    }

    /// The connection has ended, by the server or by a fault.
    fn lost(&mut self, key: usize, code: Option<u16>, now: Instant) -> anyhow::Result<()> {
        let connection = self.forget(key);
        let writer = &mut self.writers[connection.nick];
        if let Some(code) = code {
            if Advice::of_code(code) == Advice::GiveUp {
                bail!("the server closed a connection with {code}, for good");
            }
            if code == 4001 {
                self.tokens.refused(connection.nick);
            }
            *self
                .played
                .refusals
                .entry(format!("closed with {code}"))
                .or_default() += 1;
        }
        self.played.lost += 1;
        writer.failures += 1;
        let most = Duration::from_secs(1 << writer.failures.min(5)).min(Duration::from_secs(30));
        let jitter = random(&mut self.random) as f64 / u64::MAX as f64;
        writer.connect_after = Some(now + most.mul_f64(jitter));
        // What waits must be sent again, though its message may lie behind: nobody else opens it.
        if !writer.outbox.waiting().is_empty() {
            self.due.push(connection.nick);
        }
        Ok(())
    }

    fn write_dirty(&mut self, now: Instant) {
        let mut later = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            if !connection.is_dirty {
                continue;
            }
            if connection
                .frames
                .take(now, self.plan.frames_per_second)
                .is_err()
            {
                later.push(key);
                continue;
            }
            connection.is_dirty = false;
            connection.commands = 0;
            let items = std::mem::take(&mut connection.items);
            connection.wire.put(&items);
            connection.wrote_at = now;
            // A broken connection shows itself by reading, too.
            let _ = connection.wire.flush();
        }
        self.dirty = later;
    }

    fn happened(
        &mut self,
        key: usize,
        now: Instant,
        is_writable: bool,
        scratch: &mut [u8],
        heard: &mut Vec<Heard>,
    ) -> anyhow::Result<()> {
        let Some(connection) = self.connections.get_mut(key) else {
            return Ok(());
        };
        let mut result = Ok(());
        if is_writable {
            result = connection.wire.flush();
        }
        let result = result.and_then(|()| connection.wire.read(scratch, heard));
        let nick = connection.nick;
        for heard in heard.drain(..) {
            // An update may have ended the connection, and another may have its place.
            if self.connections.get(key).is_none_or(|c| c.nick != nick) {
                continue;
            }
            match heard {
                Heard::Event(seq) => {
                    let connection = &mut self.connections[key];
                    connection.seen = connection.seen.max(seq);
                }
                Heard::Update(update) => self.update(key, *update, now)?,
                Heard::Closed(code) => self.lost(key, code, now)?,
            }
        }
        if let Err(error) = result
            && self.connections.get(key).is_some_and(|c| c.nick == nick)
        {
            *self
                .played
                .refusals
                .entry(format!("broken: {}", error.kind()))
                .or_default() += 1;
            self.lost(key, None, now)?;
        }
        // A pong may have been queued by reading.
        if let Some(connection) = self.connections.get_mut(key) {
            let _ = connection.wire.flush();
        }
        Ok(())
    }

    fn update(&mut self, key: usize, update: wire::Update, now: Instant) -> anyhow::Result<()> {
        use update::Update;
        let conversation = self.plan.conversation;
        let connection = &mut self.connections[key];
        let nick = connection.nick;
        match update.update {
            Some(Update::Hello(hello)) => {
                if let Some(limits) = hello.limits {
                    self.sends_per_second = limits.sends_per_second;
                }
                connection.stage = Stage::Authenticating;
                self.authenticate(key)?;
            }
            Some(Update::Ready(ready)) => {
                connection.device = ready.device;
                if connection.stage < Stage::Syncing {
                    connection.stage = Stage::Syncing;
                    self.sync(key);
                }
            }
            Some(Update::SyncPage(page)) if page.conversation == conversation => {
                self.writers[nick].outbox.grant = page.grant;
                connection.seen = connection.seen.max(page.head);
            }
            Some(Update::SyncDone(_)) if connection.stage == Stage::Syncing => {
                if self.writers[nick].outbox.grant == 0 {
                    // The event that makes it a member is on its way.
                    connection.sync_at = Some(now + Duration::from_millis(200));
                    return Ok(());
                }
                connection.stage = Stage::Ready;
                connection.since = now;
                connection.confirmed_at = now;
                self.opening -= 1;
                let writer = &mut self.writers[nick];
                writer.failures = 0;
                writer.connect_after = None;
                self.send_again(nick);
            }
            Some(Update::Event(event)) => connection.seen = connection.seen.max(event.seq),
            Some(Update::Ack(ack)) => self.acked(nick, &ack, now)?,
            Some(Update::Error(error)) => self.refused(key, &error, now)?,
            Some(Update::Lagging(_)) => self.sync(key),
            Some(Update::ReauthRequired(_)) => self.authenticate(key)?,
            // The close that follows it is enough: `lost` waits with jitter.
            _ => {}
        }
        Ok(())
    }

    fn authenticate(&mut self, key: usize) -> anyhow::Result<()> {
        let nick = self.connections[key].nick;
        let messages = self.chat.messages[self.next..].iter();
        let soon = messages.map(|message| message.nick as usize);
        let soon = soon.chain(self.connections.iter().map(|(_, c)| c.nick));
        let auth = wire::Auth {
            token: self.tokens.get(nick, soon)?.to_owned(),
            device: "replay".to_owned(),
            version: VERSION,
            oldest: 0,
        };
        self.put(key, command::Command::Auth(auth));
        Ok(())
    }

    /// Only the newest event is asked for: nobody reads on this connection.
    fn sync(&mut self, key: usize) {
        let sync = wire::Sync {
            page: 1,
            ..wire::Sync::default()
        };
        self.connections[key].sync_at = None;
        self.put(key, command::Command::Sync(sync));
    }

    fn acked(&mut self, nick: usize, ack: &wire::Ack, now: Instant) -> anyhow::Result<()> {
        let writer = &mut self.writers[nick];
        if ack.conversation != self.plan.conversation || ack.sender != writer.outbox.sender {
            bail!("an answer to somebody else: {ack:?}");
        }
        let status = match wire::Status::try_from(ack.status) {
            Ok(wire::Status::Sent) => history::Status::Sent,
            Ok(wire::Status::Gap) => history::Status::Gap,
            Ok(wire::Status::Over) => history::Status::Over,
            Ok(wire::Status::Fork) => history::Status::Fork,
            Ok(wire::Status::Stale) => history::Status::Stale,
            Err(_) => bail!("an answer of an unknown status: {ack:?}"),
        };
        self.history.record(history::Ack {
            at: self.history.now_us(),
            user: self.plan.users[nick],
            device: writer
                .connection
                .map_or(0, |key| self.connections[key].device),
            conversation: ack.conversation,
            sender: ack.sender,
            grant: ack.grant,
            counter: ack.counter,
            id: ack.id,
            seq: ack.seq,
            ts: ack.ts,
            duplicate: ack.duplicate,
            status,
        });
        if ack.counter > 0 {
            self.order.told(ack.sender, ack.counter, ack.seq);
        }
        self.played.head = self.played.head.max(ack.head);
        let (played, in_flight) = (&mut self.played, &mut self.in_flight);
        let mut is_news = false;
        let then = writer.outbox.answer(ack, |numbered| {
            is_news = true;
            *in_flight -= 1;
            played.acked += 1;
            let micros = now.duration_since(numbered.since).as_micros();
            played.latency.saturating_record(micros as u64);
        })?;
        if is_news {
            self.accepted_at = now;
        }
        if then == Then::Again {
            self.played.gaps += 1;
            let writer = &mut self.writers[nick];
            // One refused message makes a gap answer of each behind it: once is enough.
            let is_lately = writer
                .sent_again
                .is_some_and(|(n, at)| n == ack.counter && at + Duration::from_secs(1) > now);
            if !is_lately && writer.again_at.is_none() {
                writer.sent_again = Some((ack.counter, now));
                self.send_again(nick);
            }
        }
        Ok(())
    }

    fn send_again(&mut self, nick: usize) {
        let Some(key) = self.writers[nick].connection else {
            return;
        };
        for place in 0..self.writers[nick].outbox.waiting().len() {
            self.put_send(nick, key, place);
        }
    }

    fn refused(&mut self, key: usize, error: &wire::Error, now: Instant) -> anyhow::Result<()> {
        let nick = self.connections[key].nick;
        *self.played.refusals.entry(error.code.clone()).or_default() += 1;
        if error.code == ErrorCode::Unauthorized.as_str() {
            self.tokens.refused(nick);
            return Ok(());
        }
        if error.retry_after_ms == 0 {
            bail!(
                "the server refuses for good: {}: {}",
                error.code,
                error.message
            );
        }
        let at = now + Duration::from_millis(u64::from(error.retry_after_ms));
        if error.counter != 0 {
            let writer = &mut self.writers[nick];
            writer.again_at = Some(writer.again_at.map_or(at, |known| known.max(at)));
            self.due.push(nick);
        } else if self.connections[key].stage == Stage::Syncing {
            self.connections[key].sync_at = Some(at);
        }
        Ok(())
    }

    /// What was to be done at a time that has come.
    fn again(&mut self, now: Instant) {
        let mut due = std::mem::take(&mut self.due);
        due.retain(|&nick| {
            let writer = &mut self.writers[nick];
            match writer.again_at {
                Some(at) if at > now => true,
                Some(_) => {
                    writer.again_at = None;
                    self.send_again(nick);
                    false
                }
                None => writer.connection.is_none(),
            }
        });
        due.sort_unstable();
        due.dedup();
        self.due = due;
    }

    /// Deadlines, confirmations, writers whose connection is gone with messages on their way.
    fn tidy(&mut self, now: Instant) -> anyhow::Result<()> {
        self.bar.set_position(self.played.acked);
        let is_held = self.plan.speed > 0.0 && self.in_flight == 0;
        if !is_held && now.duration_since(self.accepted_at) > PATIENCE {
            bail!(
                "no message was accepted for {} s: {} of {} are, {} are on their way; refusals: {:?}",
                PATIENCE.as_secs(),
                self.played.acked,
                self.chat.messages.len(),
                self.in_flight,
                self.played.refusals,
            );
        }
        if is_held {
            self.accepted_at = now;
        }
        for nick in self.due.clone() {
            let writer = &self.writers[nick];
            let may = writer.connect_after.is_none_or(|at| at <= now);
            if writer.connection.is_none() && may && self.make_room(usize::MAX) {
                self.open(nick, self.next, now)?;
            }
        }
        let keys: Vec<usize> = self.connections.iter().map(|(key, _)| key).collect();
        for key in keys {
            let connection = &self.connections[key];
            let waiting = self.writers[connection.nick].outbox.waiting();
            let is_late = match connection.stage {
                Stage::Ready => waiting.front().is_some_and(|first| {
                    now.duration_since(first.since.max(connection.since)) > ANSWER_WITHIN
                }),
                _ => now.duration_since(connection.since) > OPEN_WITHIN,
            };
            if is_late {
                *self
                    .played
                    .refusals
                    .entry("no answer in time".into())
                    .or_default() += 1;
                self.lost(key, None, now)?;
                continue;
            }
            if connection.stage == Stage::Syncing && connection.sync_at.is_some_and(|at| at <= now)
            {
                self.sync(key);
            } else if connection.stage == Stage::Ready {
                self.confirm(key, now);
            }
        }
        Ok(())
    }

    fn confirm(&mut self, key: usize, now: Instant) {
        let connection = &mut self.connections[key];
        let is_due = now.duration_since(connection.confirmed_at) > CONFIRM_EVERY;
        if is_due && connection.seen > connection.confirmed {
            connection.confirmed = connection.seen;
            connection.confirmed_at = now;
            let delivered = wire::Delivered {
                conversation: self.plan.conversation,
                seq: connection.seen,
            };
            self.put(key, command::Command::Delivered(delivered));
        } else if now.duration_since(connection.wrote_at) > PING_AFTER {
            self.put(key, command::Command::Ping(wire::Ping {}));
        }
    }

    fn close_all(&mut self) {
        let keys: Vec<usize> = self.connections.iter().map(|(key, _)| key).collect();
        for key in keys {
            let mut connection = self.forget(key);
            connection.wire.put_close(1000);
            // It goes whether or not the server hears why.
            let _ = connection.wire.flush();
        }
    }
}

fn writer_last(writer: &Writer) -> usize {
    writer.outbox.waiting().len() - 1
}

/// The next number after a seed (splitmix64).
pub(crate) fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
