//! The client as a state machine: no socket, no file, no clock, no random of its own.
//!
//! Every input carries the time in microseconds since 1970. After an input the driver
//! takes the [`Output`]s and acts on them in their order; it calls [`ClientCore::tick`]
//! when the time of [`ClientCore::next_tick`] has come.
//!
//! - `connection`: connecting, backoff, signing in, heartbeats.
//! - `outbox`: numbering messages and sending them; `answers`: what comes back.
//! - `sync`: asking for all that was missed.
//! - `history`: gaps and tails, pages; events to the app in order.
//! - `lookup`: finding out from the history what became of messages.
//! - `cursors`: delivered and read cursors, receipts.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tidings_protocol::body::{BodyError, check_body, compress_body};
use tidings_protocol::limits as published;
use tidings_protocol::wire::{
    self, ClientFrame, Command, Encoding, Feature, FeatureState, Kind, Limits, ServerFrame,
    command, update,
};
use tidings_protocol::{Format, Versions};

use crate::saved::{PersistOp, Queued, Saved};

mod answers;
mod connection;
mod cursors;
mod history;
mod lookup;
mod outbox;
mod output;
mod sync;

pub use output::{AppEvent, ConversationInfo, FailReason, LocalId, Output, SendError};

use connection::Link;
use cursors::Cursors;
use history::Inbox;
use outbox::Flow;
use sync::SyncState;

/// A second, in the core's unit of time.
pub(crate) const SECOND: u64 = 1_000_000;

/// Pages asked for by the app or by lookups that may be unanswered at a time.
const PENDING_MAX: usize = 256;

/// Where 64 random bits come from.
pub type Random = Box<dyn FnMut() -> u64 + Send>;

/// How a client far behind catches up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every event, strictly in order, fetching all older pages: for observers and archives.
    Complete,
    /// The newest page at once; what is older is a known hole until asked for: for screens.
    NewestFirst,
}

/// Who says that an event is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredBy {
    /// An event counts as stored when it has been given to the app.
    Core,
    /// The app calls [`ClientCore::stored`]; after a restart it gets again what it had not stored.
    App,
}

/// What distinguishes one client from another.
#[derive(Debug, Clone)]
pub struct Config {
    /// The form of frames; bodies are compressed only for [`Format::Proto`].
    pub format: Format,
    /// The versions of the protocol it speaks. Only tests of upgrades change them.
    pub versions: Versions,
    /// How to catch up.
    pub mode: Mode,
    /// When an event is reported as delivered.
    pub stored_by: StoredBy,
    /// The device's name, at most 64 bytes; the server ignores it when the token names a device.
    pub device: String,
    /// The most events of a conversation that a sync brings at first; 0: the server's default.
    pub page: u32,
    /// Numbered and unacknowledged messages of one conversation. 64 cover 30 ms of
    /// round trip at 2,000 messages a second.
    pub in_flight_per_conversation: usize,
    /// Unacknowledged messages of all conversations together.
    pub in_flight: usize,
    /// Messages in the outbox; a further one is refused.
    pub queued_max: usize,
    /// Bytes of bodies in the outbox; a further message is refused.
    pub queued_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            format: Format::Proto,
            versions: Versions::OURS,
            mode: Mode::NewestFirst,
            stored_by: StoredBy::Core,
            device: "tidings".into(),
            page: 0,
            in_flight_per_conversation: 64,
            in_flight: 256,
            queued_max: 10_000,
            queued_bytes_max: 32 << 20,
        }
    }
}

/// What a command that is answered by its ref was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Gap,
    Lookup,
    Older,
    Sync,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    purpose: Purpose,
    conversation: u64,
    deadline: u64,
}

/// The client without I/O; see the module's page.
pub struct ClientCore {
    config: Config,
    random: Random,
    saved: Saved,
    token: Option<String>,
    user: u64,
    limits: Limits,
    link: Link,
    sync: SyncState,
    inboxes: BTreeMap<u64, Inbox>,
    behind: BTreeSet<u64>,
    flows: BTreeMap<u64, Flow>,
    /// Conversations with something in the outbox.
    busy: BTreeSet<u64>,
    in_flight: usize,
    queued: usize,
    queued_bytes: usize,
    /// Sends that may go out now, times [`SECOND`], and when that was counted.
    allowance: u64,
    allowance_at: u64,
    cursors: Cursors,
    pending: BTreeMap<u64, Pending>,
    last_ref: u64,
    commands: Vec<Command>,
    outputs: Vec<Output>,
}

impl ClientCore {
    /// A client that goes on from what was saved ([`Saved::default`]: a new one).
    /// It does nothing until [`start`](Self::start).
    pub fn new(config: Config, saved: Saved, random: Random) -> Self {
        let mut core = ClientCore {
            config,
            random,
            token: None,
            user: 0,
            limits: Limits::default(),
            link: Link::default(),
            sync: SyncState::default(),
            inboxes: BTreeMap::new(),
            behind: BTreeSet::new(),
            flows: BTreeMap::new(),
            busy: BTreeSet::new(),
            in_flight: 0,
            queued: 0,
            queued_bytes: 0,
            allowance: 0,
            allowance_at: 0,
            cursors: Cursors::default(),
            pending: BTreeMap::new(),
            last_ref: 0,
            commands: Vec::new(),
            outputs: Vec::new(),
            saved,
        };
        for (&conversation, cursor) in &core.saved.cursors {
            core.inboxes.insert(conversation, Inbox::new(cursor));
        }
        for (&conversation, lane) in &core.saved.lanes {
            core.flows.insert(conversation, Flow::new(lane));
            core.queued += lane.queue.len();
            core.queued_bytes += lane.queue.iter().map(|m| m.body.len()).sum::<usize>();
            if !lane.queue.is_empty() {
                core.busy.insert(conversation);
            }
        }
        for (conversation, inbox) in &mut core.inboxes {
            // Where nothing waits there is nothing to look for.
            if !core
                .flows
                .get(conversation)
                .is_some_and(|flow| flow.restored)
            {
                inbox.looked = inbox.have;
            }
        }
        core
    }

    /// What is kept: the state after all [`Output::Persist`] given out so far.
    pub fn snapshot(&self) -> Saved {
        self.saved.clone()
    }

    /// The user; 0: not signed in yet.
    pub fn user(&self) -> u64 {
        self.user
    }

    /// All up to this seq was given to the app, but for holes.
    pub fn have(&self, conversation: u64) -> u64 {
        self.inboxes.get(&conversation).map_or(0, |i| i.have)
    }

    /// Messages neither sent nor failed yet.
    pub fn outbox_len(&self) -> usize {
        self.queued
    }

    /// Whether the client is signed in on a live connection.
    pub fn is_ready(&self) -> bool {
        self.link.ready()
    }

    /// Takes what there is to do, in order.
    pub fn outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Puts a message into the outbox. When the outputs are done it survives a crash.
    pub fn send(
        &mut self,
        now: u64,
        conversation: u64,
        kind: Kind,
        body: Bytes,
    ) -> Result<LocalId, SendError> {
        let most = self.text_bytes_max();
        match check_body(kind, Encoding::Identity, &body, most) {
            Ok(_) => {}
            Err(BodyError::TooLong) => return Err(SendError::TooLong(most)),
            Err(error) => return Err(error.into()),
        }
        if self.queued >= self.config.queued_max
            || self.queued_bytes + body.len() > self.config.queued_bytes_max
        {
            return Err(SendError::OutboxFull);
        }
        if self.saved.sender == 0 {
            let sender = self.random_id();
            self.persist(PersistOp::Sender { sender });
        }
        let plain_bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let packed = match self.config.format {
            Format::Proto => compress_body(&body),
            Format::Json => None,
        };
        let (encoding, body) = match packed {
            Some(packed) => (Encoding::Zstd, packed),
            None => (Encoding::Identity, body),
        };
        let local = self.saved.last_local + 1;
        let id = self.random_id();
        self.queued += 1;
        self.queued_bytes += body.len();
        let message = Queued {
            local,
            id,
            kind,
            encoding,
            plain_bytes,
            body,
            chained: 0,
            refused: None,
        };
        self.persist(PersistOp::Queued {
            conversation,
            message,
        });
        self.busy.insert(conversation);
        self.pump(now, conversation);
        self.flush_commands(now);
        Ok(LocalId(local))
    }

    /// Takes a message back that has no counter yet; false: it may be on its way, or is decided.
    pub fn withdraw(&mut self, conversation: u64, local: LocalId) -> bool {
        let waits = self.saved.lanes.get(&conversation).is_some_and(|lane| {
            lane.queue
                .iter()
                .skip(lane.numbered)
                .any(|m| m.local == local.0)
        });
        if waits {
            self.settle(conversation, local.0);
            self.fail(conversation, local.0, FailReason::Withdrawn);
        }
        waits
    }

    /// The app has stored all events up to this seq (with [`StoredBy::App`]).
    pub fn stored(&mut self, now: u64, conversation: u64, seq: u64) {
        if let Some(inbox) = self.inboxes.get_mut(&conversation) {
            let seq = seq.min(inbox.have);
            if seq > inbox.stored {
                inbox.stored = seq;
                self.cursors.moved(conversation);
            }
        }
        self.flush_cursors(now);
        self.flush_commands(now);
    }

    /// The user has read all up to this seq, on this device. Never goes back.
    pub fn mark_read(&mut self, now: u64, conversation: u64, seq: u64) {
        if let Some(inbox) = self.inboxes.get_mut(&conversation) {
            let seq = seq.min(inbox.have);
            if seq > inbox.read {
                inbox.read = seq;
                self.cursors.read(conversation);
            }
        }
        self.flush_cursors(now);
        self.flush_commands(now);
    }

    /// The user types, or stopped; dropped while there is no connection.
    pub fn typing(&mut self, now: u64, conversation: u64, on: bool) {
        if self.link.ready() {
            self.command(command::Command::Typing(wire::Typing { conversation, on }));
            self.flush_commands(now);
        }
    }

    /// The users whose presence is of interest; kept across reconnects. At most 1,000 count.
    pub fn watch(&mut self, now: u64, mut users: Vec<u64>) {
        users.truncate(published::WATCH_MAX);
        self.link.watched = users;
        self.send_watch();
        self.flush_commands(now);
    }

    /// The presence to show; kept across reconnects.
    pub fn set_presence(&mut self, now: u64, state: wire::Presence) {
        self.link.shown = Some(state);
        self.send_watch();
        self.flush_commands(now);
    }

    /// A frame came from the server.
    pub fn frame(&mut self, now: u64, frame: ServerFrame) {
        if !self.link.up() {
            return;
        }
        self.link.heard(now);
        for update in frame.updates {
            let Some(content) = update.update else {
                continue;
            };
            self.update(now, update.r#ref, content);
            if !self.link.up() {
                break;
            }
        }
        self.flush_cursors(now);
        self.service_behind(now);
        self.flush_commands(now);
    }

    fn update(&mut self, now: u64, r#ref: u64, update: update::Update) {
        use update::Update;
        match update {
            Update::Hello(hello) => self.hello(now, hello),
            Update::Ready(ready) => self.ready(now, &ready),
            Update::Ack(ack) => self.answer(now, &ack),
            Update::Event(event) => self.event(now, event),
            Update::SyncPage(page) => self.sync_page(now, page),
            Update::SyncDone(done) => self.sync_done(now, &done),
            Update::HistoryPage(page) => self.history_page(now, r#ref, page),
            Update::Heads(heads) => {
                for cursor in heads.heads {
                    self.note_head(now, cursor.conversation, cursor.seq);
                }
            }
            Update::Receipts(receipts) => self.receipts(receipts),
            Update::Typing(t) => self.app(AppEvent::Typing {
                conversation: t.conversation,
                user: t.user,
                on: t.on,
            }),
            Update::Presence(p) => self.app(AppEvent::Presence(p.users)),
            Update::Error(error) => self.error(now, r#ref, error),
            Update::Reconnect(r) => self.told_to_come_back(now, r.after_ms),
            Update::ReauthRequired(_) => self.need_token(),
            Update::Pong(_) => {}
            Update::Delayed(d) => {
                self.app(AppEvent::Delayed {
                    conversation: d.conversation,
                    seq: d.seq,
                });
            }
            Update::Mode(mode) => {
                // What a later server can say more, this client has no words for.
                if let (Ok(feature), Ok(state)) = (
                    Feature::try_from(mode.feature),
                    FeatureState::try_from(mode.state),
                ) {
                    self.app(AppEvent::Mode {
                        feature,
                        state,
                        since: mode.since,
                    });
                }
            }
            Update::Lagging(_) => {
                self.app(AppEvent::Lagging);
                self.want_sync(now);
            }
        }
    }

    fn error(&mut self, now: u64, r#ref: u64, error: wire::Error) {
        let pending = self.pending.remove(&r#ref);
        if error.sender != 0 && error.counter != 0 {
            self.refused(now, &error);
            return;
        }
        let retry_after = u64::from(error.retry_after_ms) * 1000;
        match pending {
            Some(p) if p.purpose == Purpose::Sync => self.sync_failed(now, retry_after),
            Some(p) => self.page_failed(now, p, retry_after),
            None if !self.link.ready() => self.sign_in_refused(now, &error),
            None => {}
        }
        self.app(AppEvent::Error {
            code: error.code,
            message: error.message,
            conversation: error.conversation,
        });
    }

    /// Time has come to `now`.
    pub fn tick(&mut self, now: u64) {
        self.tick_link(now);
        if self.link.ready() {
            self.expire_pending(now);
            self.tick_sync(now);
            self.service_behind(now);
            self.tick_outbox(now);
        }
        self.flush_cursors(now);
        self.flush_commands(now);
    }

    /// When [`tick`](Self::tick) has something to do next; `None`: not before another input.
    pub fn next_tick(&self) -> Option<u64> {
        let mut times = vec![self.next_link(), self.next_cursors()];
        if self.link.ready() {
            times.push(self.pending.values().map(|p| p.deadline).min());
            times.push(self.next_sync());
            times.push(self.next_behind());
            times.push(self.next_outbox());
        }
        times.into_iter().flatten().min()
    }

    // What all parts use.

    fn persist(&mut self, op: PersistOp) {
        self.saved.apply(&op);
        self.outputs.push(Output::Persist(op));
    }

    fn app(&mut self, event: AppEvent) {
        self.outputs.push(Output::App(event));
    }

    /// Never 0, since 0 means "none" wherever ids are written.
    fn random_id(&mut self) -> u64 {
        loop {
            let id = (self.random)();
            if id != 0 {
                return id;
            }
        }
    }

    fn command(&mut self, command: command::Command) {
        self.commands.push(Command {
            r#ref: 0,
            command: Some(command),
        });
    }

    /// A command whose answer names it.
    fn ask(&mut self, purpose: Purpose, conversation: u64, deadline: u64, what: command::Command) {
        self.last_ref += 1;
        self.pending.insert(
            self.last_ref,
            Pending {
                purpose,
                conversation,
                deadline,
            },
        );
        self.commands.push(Command {
            r#ref: self.last_ref,
            command: Some(what),
        });
    }

    /// Gives out the commands collected, in frames within the published limits.
    fn flush_commands(&mut self, now: u64) {
        if self.commands.is_empty() {
            return;
        }
        let count_max = match self.limits.commands_per_frame_max {
            0 => published::COMMANDS_PER_FRAME_MAX,
            max => max as usize,
        };
        let bytes_max = match self.limits.frame_bytes_max {
            0 => published::FRAME_BYTES_MAX,
            max => max as usize,
        };
        let (mut frame, mut bytes) = (ClientFrame::default(), 0);
        for command in std::mem::take(&mut self.commands) {
            let size = self.size(&command);
            if !frame.commands.is_empty()
                && (frame.commands.len() >= count_max || bytes + size > bytes_max)
            {
                self.outputs.push(Output::Frame(std::mem::take(&mut frame)));
                bytes = 0;
            }
            bytes += size;
            frame.commands.push(command);
        }
        self.outputs.push(Output::Frame(frame));
        self.link.said(now);
    }

    /// The most bytes a command takes in a frame; JSON may write one byte of a body as six.
    fn size(&self, command: &Command) -> usize {
        let body_factor = match self.config.format {
            Format::Proto => 1,
            Format::Json => 6,
        };
        match &command.command {
            Some(command::Command::Send(send)) => 320 + send.body.len() * body_factor,
            Some(command::Command::Sync(sync)) => 64 + sync.cursors.len() * 60,
            Some(command::Command::Watch(watch)) => 64 + watch.users.len() * 20,
            Some(command::Command::Auth(auth)) => 128 + auth.token.len() + auth.device.len(),
            _ => 160,
        }
    }

    fn text_bytes_max(&self) -> usize {
        match self.limits.text_bytes_max {
            0 => published::INFLATED_BYTES_MAX,
            max => (max as usize).min(published::INFLATED_BYTES_MAX),
        }
    }
}

impl std::fmt::Debug for ClientCore {
    // The token is a secret, so the fields aren't shown one by one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCore")
            .field("user", &self.user)
            .field("ready", &self.link.ready())
            .field("outbox", &self.queued)
            .finish_non_exhaustive()
    }
}
