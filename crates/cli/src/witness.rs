//! Real clients whose every act is recorded for the checker.
//!
//! A [`Witness`] is a [`Client`] in complete mode that records what it numbers, what it is
//! answered and what it is shown. It can be made to go away and come back, and is then held to
//! go on exactly behind the last event it was shown.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::FutureExt;
use tidings_client::{
    AppEvent, Client, ClientEvent, Config, EventStream, Mode, Options, Store, StoredBy, Token,
    TokenError, Traffic,
};
use tidings_protocol::wire::{
    Ack, Encoding, Event, Feature, FeatureState, Kind, Status, command, update,
};
use tidings_protocol::{Format, body, limits};
use tidings_verify::{Record, Recorder, Report, body_hash, history};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::{AccessToken, Api};

/// Events taken before the client is told that they are stored.
const STORED_EVERY: usize = 256;

/// Where records go: judged as they come, and into a file if there is one. Clones share it.
#[derive(Clone)]
pub struct History {
    checking: Recorder,
    file: Option<Recorder>,
}

impl History {
    /// Judges as it records; `file` gets every record, one JSON object a line.
    ///
    /// # Errors
    /// If the file can't be made.
    pub fn new(file: Option<&Path>) -> anyhow::Result<History> {
        let file = file
            .map(|path| {
                Recorder::to_file(path).with_context(|| format!("cannot make {}", path.display()))
            })
            .transpose()?;
        Ok(History {
            checking: Recorder::checking(tidings_verify::Options::default()),
            file,
        })
    }

    /// The time for `at`.
    pub fn now_us(&self) -> u64 {
        self.checking.now_us()
    }

    /// Appends a record.
    pub fn record(&self, record: impl Into<Record>) {
        let record = record.into();
        if let Some(file) = &self.file {
            file.record(record);
        }
        self.checking.record(record);
    }

    /// The judgement of all that was recorded.
    ///
    /// # Errors
    /// If the file couldn't be written.
    pub fn finish(&self) -> anyhow::Result<Report> {
        if let Some(file) = &self.file {
            file.flush()?;
        }
        Ok(self.checking.finish()?)
    }
}

/// Who a witness is and how it connects.
#[derive(Clone)]
pub struct Who {
    /// `ws://host:port/v1/ws`.
    pub url: String,
    /// Where its access tokens come from.
    pub token: Token,
    /// The form of its frames.
    pub format: Format,
    /// The user's id.
    pub user: u64,
    /// Tells it from all other devices of the history.
    pub device: u64,
    /// The conversation it is a member of.
    pub conversation: u64,
}

/// A token that ends sooner isn't used again.
const FRESH_FOR: Duration = Duration::from_secs(90);

/// Called with each event before it is recorded.
pub type OnEvent = Arc<dyn Fn(&Event) + Send + Sync>;

/// Sees what a witness does and is shown, as it happens: for measuring. It must not block.
pub trait Watcher: Send + Sync {
    /// A frame, about to be written or just read.
    fn traffic(&self, _traffic: &Traffic<'_>) {}

    /// An event is shown, before it is recorded.
    fn shown(&self, _event: &Event) {}

    /// The connection is gone; `code`: of the close, if it came with one.
    fn disconnected(&self, _code: Option<u16>) {}
}

/// Sees nothing but events.
struct Events(Option<OnEvent>);

impl Watcher for Events {
    fn shown(&self, event: &Event) {
        if let Some(on_event) = &self.0 {
            on_event(event);
        }
    }
}

/// A recorded client.
pub struct Witness {
    who: Who,
    history: History,
    state: Arc<State>,
    client: Client,
    task: JoinHandle<()>,
    watcher: Arc<dyn Watcher>,
}

/// What outlives a connection and a client.
struct State {
    /// The seq of the last event shown.
    have: watch::Sender<u64>,
    /// Messages of its own that are sent.
    sent: AtomicU64,
    ready: watch::Sender<u64>,
    reconnects: AtomicU64,
    member: AtomicBool,
    /// Not after any sync that isn't answered yet was asked; 0: not known.
    asked: AtomicU64,
    /// The highest head an answer named.
    head: AtomicU64,
    /// Sends refused for now, by error code.
    refused: Mutex<BTreeMap<String, u64>>,
    /// How features are that aren't as usual.
    modes: Mutex<BTreeMap<Feature, FeatureState>>,
    /// What no witness should meet.
    troubles: Mutex<Vec<String>>,
}

impl State {
    fn modes(&self) -> MutexGuard<'_, BTreeMap<Feature, FeatureState>> {
        self.modes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self, what: String) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if troubles.len() < 100 {
            troubles.push(what);
        }
    }
}

impl Witness {
    /// Starts it on the current tokio runtime.
    pub fn start(who: Who, store: Store, history: History, on_event: Option<OnEvent>) -> Witness {
        Witness::watched(who, store, history, Arc::new(Events(on_event)))
    }

    /// As [`Witness::start`], with somebody who sees more than events.
    pub fn watched(who: Who, store: Store, history: History, watcher: Arc<dyn Watcher>) -> Witness {
        let state = Arc::new(State {
            have: watch::Sender::new(0),
            sent: AtomicU64::new(0),
            ready: watch::Sender::new(0),
            reconnects: AtomicU64::new(0),
            member: AtomicBool::new(false),
            asked: AtomicU64::new(history.now_us()),
            head: AtomicU64::new(0),
            refused: Mutex::new(BTreeMap::new()),
            modes: Mutex::new(BTreeMap::new()),
            troubles: Mutex::new(Vec::new()),
        });
        let (client, task) = begin(&who, store, &history, &state, watcher.clone());
        Witness {
            who,
            history,
            state,
            client,
            task,
            watcher,
        }
    }

    /// Puts a message into the outbox.
    ///
    /// # Errors
    /// If the outbox is full or the client has ended.
    pub async fn send(&self, text: String) -> Result<(), tidings_client::ClientError> {
        let sent = self.client.send(self.who.conversation, Kind::Text, text);
        sent.await.map(|_| ())
    }

    /// The user has read all up to this seq.
    ///
    /// # Errors
    /// If the client has ended, or is too busy.
    pub async fn mark_read(&self, seq: u64) -> Result<(), tidings_client::ClientError> {
        self.client.mark_read(self.who.conversation, seq).await
    }

    /// Who it is.
    pub fn who(&self) -> &Who {
        &self.who
    }

    /// The seq of the last event it was shown, without a gap below.
    pub fn have(&self) -> u64 {
        *self.state.have.borrow()
    }

    /// How many of its own messages are sent.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Acquire)
    }

    /// The highest head that an answer to a send named.
    pub fn head(&self) -> u64 {
        self.state.head.load(Ordering::Acquire)
    }

    /// How many of its sends were refused with this error code.
    pub fn refused(&self, code: &str) -> u64 {
        let refused = self.state.refused.lock();
        let refused = refused.unwrap_or_else(PoisonError::into_inner);
        refused.get(code).copied().unwrap_or(0)
    }

    /// How a feature is, as it was told last.
    pub fn mode(&self, feature: Feature) -> FeatureState {
        let modes = self.state.modes();
        modes.get(&feature).copied().unwrap_or_default()
    }

    /// How often it signed in on a new connection.
    pub fn connections(&self) -> u64 {
        *self.state.ready.borrow()
    }

    /// How often it went away or lost its connection.
    pub fn disconnections(&self) -> u64 {
        self.state.reconnects.load(Ordering::Relaxed)
    }

    /// What it met that it never should: sentences.
    pub fn troubles(&self) -> Vec<String> {
        let troubles = self.state.troubles.lock();
        troubles.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has been shown all up to `head`. Give it a deadline.
    pub async fn until(&self, head: u64) {
        let mut have = self.state.have.subscribe();
        // The sender lives as long as this does.
        let _ = have.wait_for(|&have| have >= head).await;
    }

    /// Waits until it has signed in at least once. Give it a deadline.
    pub async fn until_ready(&self) {
        let mut ready = self.state.ready.subscribe();
        let _ = ready.wait_for(|&ready| ready > 0).await;
    }

    /// Goes away, keeping in memory what its client had saved, and comes back when `back` is ready.
    ///
    /// # Errors
    /// If the client doesn't answer within its own deadline.
    pub async fn drop_and_come_back(
        &mut self,
        back: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        // Nothing more is shown from here on, so that what is saved is what was shown.
        self.task.abort();
        let _ = (&mut self.task).await;
        let have = self.have();
        if have > 0 {
            self.client.stored(self.who.conversation, have).await?;
        }
        let mut saved = self.client.snapshot().await?;
        if have > 0 {
            // The client saves cursors once a second; this one says no more than was shown.
            let cursor = saved.cursors.entry(self.who.conversation).or_default();
            cursor.have = have;
        }
        self.client.stop().await?;
        self.state.reconnects.fetch_add(1, Ordering::Relaxed);
        back.await;
        self.state
            .asked
            .store(self.history.now_us(), Ordering::Relaxed);
        let store = Store::volatile_from(saved);
        let watcher = self.watcher.clone();
        (self.client, self.task) = begin(&self.who, store, &self.history, &self.state, watcher);
        Ok(())
    }

    /// Says to the checker that it is expected to have everything up to `head`.
    pub fn record_final(&self, head: u64) {
        self.history.record(history::Final {
            at: self.history.now_us(),
            user: self.who.user,
            device: self.who.device,
            conversation: self.who.conversation,
            head,
        });
    }

    /// Ends it, saving what its store keeps.
    pub async fn stop(self) {
        // A client that has ended, or is too busy, says the same: it is of no use any more.
        let _ = self.client.stop().await;
        self.task.abort();
    }
}

fn begin(
    who: &Who,
    store: Store,
    history: &History,
    state: &Arc<State>,
    watcher: Arc<dyn Watcher>,
) -> (Client, JoinHandle<()>) {
    let config = Config {
        format: who.format,
        mode: Mode::Complete,
        stored_by: StoredBy::App,
        device: format!("witness-{:x}", who.device),
        page: limits::PAGE_MAX,
        ..Config::default()
    };
    let options = Options {
        url: who.url.clone(),
        token: who.token.clone(),
        store,
        config,
        local_address: None,
    };
    let mut traffic = Watching {
        who: who.clone(),
        history: history.clone(),
        numbered: HashSet::new(),
        state: state.clone(),
        watcher: watcher.clone(),
    };
    let watch = Box::new(move |seen: Traffic<'_>| traffic.saw(seen));
    let (client, events) = Client::connect_watched(options, watch);
    let showing = Showing {
        who: who.clone(),
        history: history.clone(),
        state: state.clone(),
        client: client.clone(),
        watcher,
    };
    (client, tokio::spawn(showing.run(events)))
}

/// Records what is numbered and answered, from the frames themselves.
struct Watching {
    who: Who,
    history: History,
    /// Ids of messages recorded as numbered: a message is sent again with the same.
    numbered: HashSet<u64>,
    state: Arc<State>,
    watcher: Arc<dyn Watcher>,
}

impl Watching {
    fn saw(&mut self, traffic: Traffic<'_>) {
        self.watcher.traffic(&traffic);
        match traffic {
            Traffic::Out(frame) => {
                for command in &frame.commands {
                    if let Some(command::Command::Send(send)) = &command.command
                        && self.numbered.insert(send.id)
                    {
                        self.history.record(history::Send {
                            at: self.history.now_us(),
                            user: self.who.user,
                            device: self.who.device,
                            conversation: send.conversation,
                            sender: send.sender,
                            grant: send.grant,
                            counter: send.counter,
                            id: send.id,
                            body_hash: hash(send.encoding, &send.body),
                        });
                    }
                }
            }
            Traffic::In(frame) => {
                for update in &frame.updates {
                    match &update.update {
                        Some(update::Update::Ack(ack)) => self.answered(ack),
                        Some(update::Update::Error(error)) if error.counter != 0 => {
                            let refused = self.state.refused.lock();
                            let mut refused = refused.unwrap_or_else(PoisonError::into_inner);
                            *refused.entry(error.code.clone()).or_default() += 1;
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn answered(&self, ack: &Ack) {
        self.state.head.fetch_max(ack.head, Ordering::AcqRel);
        self.history.record(history::Ack {
            at: self.history.now_us(),
            user: self.who.user,
            device: self.who.device,
            conversation: ack.conversation,
            sender: ack.sender,
            grant: ack.grant,
            counter: ack.counter,
            id: ack.id,
            seq: ack.seq,
            ts: ack.ts,
            duplicate: ack.duplicate,
            status: match Status::try_from(ack.status) {
                Ok(Status::Gap) => history::Status::Gap,
                Ok(Status::Over) => history::Status::Over,
                Ok(Status::Fork) => history::Status::Fork,
                Ok(Status::Stale) => history::Status::Stale,
                // An unknown status is none that takes anything back.
                Ok(Status::Sent) | Err(_) => history::Status::Sent,
            },
        });
    }
}

/// The hash of a body as its reader sees it.
fn hash(encoding: i32, bytes: &[u8]) -> u64 {
    let encoding = Encoding::try_from(encoding).unwrap_or_default();
    match body::inflate(encoding, bytes, limits::INFLATED_BYTES_MAX) {
        Ok(plain) => body_hash(&plain),
        // Another hash than any sender's: the checker says `corrupt`.
        Err(_) => !body_hash(bytes),
    }
}

/// The application: takes the events, records them, then says that they are stored.
struct Showing {
    who: Who,
    history: History,
    state: Arc<State>,
    client: Client,
    watcher: Arc<dyn Watcher>,
}

impl Showing {
    async fn run(self, mut events: EventStream) {
        let mut reported = 0;
        while let Some(event) = events.next().await {
            let mut next = Some(event);
            let mut left = STORED_EVERY;
            while let Some(event) = next {
                self.happened(event);
                left -= 1;
                next = match left {
                    0 => None,
                    _ => events.next().now_or_never().flatten(),
                };
            }
            let have = *self.state.have.borrow();
            if have > reported {
                reported = have;
                if self
                    .client
                    .stored(self.who.conversation, have)
                    .await
                    .is_err()
                {
                    self.state.trouble("the client takes no calls".into());
                }
            }
        }
    }

    fn happened(&self, event: ClientEvent) {
        let (device, user) = (self.who.device, self.who.user);
        let at = self.history.now_us();
        match event {
            ClientEvent::App(AppEvent::Ready {
                user: signed_in, ..
            }) => {
                // What isn't normal is told anew.
                self.state.modes().clear();
                if signed_in != user {
                    self.state.trouble(format!("signed in as {signed_in:x}"));
                }
                self.state.ready.send_modify(|ready| *ready += 1);
            }
            ClientEvent::App(AppEvent::Disconnected { code }) => {
                self.watcher.disconnected(code);
                self.state.reconnects.fetch_add(1, Ordering::Relaxed);
            }
            ClientEvent::App(AppEvent::Conversation(info)) => {
                if info.conversation == self.who.conversation
                    && !self.state.member.swap(true, Ordering::Relaxed)
                {
                    self.history.record(history::Member {
                        at,
                        conversation: info.conversation,
                        user,
                        from_seq: info.visible_from,
                        to_seq: 0,
                    });
                }
            }
            ClientEvent::App(AppEvent::Message(event) | AppEvent::Members(event)) => {
                self.shown(&event);
                self.state.have.send_modify(|have| {
                    if event.conversation == self.who.conversation {
                        *have = event.seq;
                    }
                });
            }
            ClientEvent::App(AppEvent::Hole {
                conversation,
                from,
                to,
            }) => self.history.record(history::Later {
                at,
                user,
                device,
                conversation,
                from,
                to,
            }),
            ClientEvent::App(AppEvent::Older {
                conversation,
                from,
                to,
                events,
            }) => {
                let mut next = from;
                for event in &events {
                    self.hidden(conversation, next, event.seq.saturating_sub(1));
                    self.shown(event);
                    next = event.seq + 1;
                }
                self.hidden(conversation, next, to);
            }
            ClientEvent::App(AppEvent::Synced { conversation, head }) => {
                let asked = self.state.asked.swap(0, Ordering::Relaxed);
                self.history.record(history::Synced {
                    at,
                    asked,
                    user,
                    device,
                    conversation,
                    head,
                    complete: true,
                });
            }
            ClientEvent::App(AppEvent::Receipt {
                conversation,
                user: of,
                delivered,
                read,
            }) => self.history.record(history::Receipt {
                at,
                device,
                conversation,
                user: of,
                delivered,
                read,
            }),
            ClientEvent::App(AppEvent::Mode { feature, state, .. }) => {
                self.state.modes().insert(feature, state);
            }
            ClientEvent::App(AppEvent::Sent { .. }) => {
                self.state.sent.fetch_add(1, Ordering::Release);
            }
            ClientEvent::App(
                event @ (AppEvent::Reset
                | AppEvent::Failed { .. }
                | AppEvent::Offered { .. }
                | AppEvent::Unknown { .. }
                | AppEvent::CopyNoticed { .. }),
            ) => self.state.trouble(format!("{event:?}")),
            ClientEvent::App(_) => {}
            ClientEvent::GaveUp { code } => self.state.trouble(format!("gave up, code {code}")),
            ClientEvent::StoreFailed(error) => self.state.trouble(format!("store: {error}")),
        }
    }

    fn shown(&self, event: &Event) {
        self.watcher.shown(event);
        let kind = match Kind::try_from(event.kind) {
            Ok(Kind::Text) => history::EventKind::Text,
            Ok(Kind::Json) => history::EventKind::Json,
            Ok(Kind::Members) => history::EventKind::Members,
            Ok(Kind::Empty) | Err(_) => history::EventKind::Empty,
        };
        self.history.record(history::Deliver {
            at: self.history.now_us(),
            user: self.who.user,
            device: self.who.device,
            conversation: event.conversation,
            seq: event.seq,
            ts: event.ts,
            author: event.user,
            sender: event.sender,
            grant: event.grant,
            counter: event.counter,
            id: event.id,
            kind,
            body_hash: hash(event.encoding, &event.body),
        });
    }

    fn hidden(&self, conversation: u64, from: u64, to: u64) {
        if from <= to {
            self.history.record(history::Hidden {
                at: self.history.now_us(),
                user: self.who.user,
                device: self.who.device,
                conversation,
                from,
                to,
            });
        }
    }
}

/// Uses the first token while it lasts, then fetches others.
pub fn token_source(
    api: Api,
    user: u64,
    device: &'static str,
    first: Option<AccessToken>,
) -> Token {
    Token::from_fn(move || {
        let (api, first) = (api.clone(), first.clone());
        async move {
            if let Some(first) = first
                && first.expires > Instant::now() + FRESH_FOR
            {
                return Ok(first.token);
            }
            let fetch = move || api.tokens(&[user], device);
            let fetched = tokio::task::spawn_blocking(fetch).await;
            match fetched {
                Ok(Ok(mut tokens)) if !tokens.is_empty() => Ok(tokens.remove(0).token),
                Ok(Ok(_)) => Err(TokenError::Later("no token in the answer".into())),
                Ok(Err(error)) => Err(TokenError::Later(format!("{error:#}"))),
                Err(_) => Err(TokenError::Later("the runtime ends".into())),
            }
        }
    })
}
