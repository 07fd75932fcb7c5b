//! The client's task: carries out the core's outputs in their order, and nothing else.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::{FutureExt, SinkExt, StreamExt};
use tidings_protocol::wire::ClientFrame;
use tidings_protocol::{Format, decode_server_frame, encode_client_frame};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Error as SocketError, Message, Utf8Bytes};

use super::connect::{ConnectError, Socket, connect};
use super::{BoxFuture, Call, ClientEvent, Options, TokenError, Traffic, Watch};
use crate::client_core::{ClientCore, LocalId, Output, SendError};
use crate::store::{Store, StoreError};

/// How long writing to the server may take before the connection counts as dead.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// How long the server's answer to a close is waited for.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// How long a token is waited for.
const TOKEN_WITHIN: Duration = Duration::from_secs(30);
/// After a failed try for a token, doubled up to half a minute.
const TOKEN_RETRY_FIRST: Duration = Duration::from_secs(1);
const TOKEN_RETRY_LAST: Duration = Duration::from_secs(30);
/// The core's times are finer than a timer needs to be.
const TICK_MIN: Duration = Duration::from_millis(1);
/// Calls and messages handled at a time: what they persist shares one fsync.
const BATCH: usize = 64;

enum Happened {
    Called(Option<Call>),
    Heard(Option<Result<Message, SocketError>>),
    Connected(Box<Result<Socket, ConnectError>>),
    Token(Result<String, TokenError>),
    Told,
    Time,
}

/// An answer that waits until what it promises is durable.
enum Answer {
    Sent(
        oneshot::Sender<Result<LocalId, SendError>>,
        Result<LocalId, SendError>,
    ),
    Withdrawn(oneshot::Sender<bool>, bool),
}

pub(super) struct Driver {
    clock: Clock,
    core: ClientCore,
    /// Taken while its disk is busy.
    store: Option<Store>,
    options: Dial,
    format: Format,
    socket: Option<Socket>,
    connecting: Option<BoxFuture<Result<Socket, ConnectError>>>,
    asking: Option<BoxFuture<Result<String, TokenError>>>,
    token_failures: u32,
    tell: mpsc::Sender<ClientEvent>,
    /// Events the app has no room for yet; while there are any the socket isn't read.
    untold: VecDeque<ClientEvent>,
    answers: Vec<Answer>,
    watch: Option<Watch>,
}

struct Dial {
    url: String,
    token: super::Token,
    local_address: Option<std::net::IpAddr>,
}

/// Microseconds since 1970, by a clock that never goes back.
struct Clock {
    started: Instant,
    started_at: u64,
}

impl Clock {
    fn new() -> Clock {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let started_at = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        Clock {
            started: Instant::now(),
            started_at,
        }
    }

    fn now(&self) -> u64 {
        let passed = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.started_at.saturating_add(passed)
    }
}

impl Driver {
    pub(super) fn new(
        options: Options,
        tell: mpsc::Sender<ClientEvent>,
        watch: Option<Watch>,
    ) -> Driver {
        let format = options.config.format;
        let saved = options.store.saved().clone();
        let random = || getrandom::u64().expect("the operating system has random bytes");
        Driver {
            clock: Clock::new(),
            core: ClientCore::new(options.config, saved, Box::new(random)),
            store: Some(options.store),
            options: Dial {
                url: options.url,
                token: options.token,
                local_address: options.local_address,
            },
            format,
            socket: None,
            connecting: None,
            asking: None,
            token_failures: 0,
            tell,
            untold: VecDeque::new(),
            answers: Vec::new(),
            watch,
        }
    }

    pub(super) async fn run(mut self, mut calls: mpsc::Receiver<Call>) {
        self.core.start(self.clock.now());
        loop {
            if let Err(error) = self.act().await {
                // The app may be gone; there is nobody else to tell.
                let _ = self.tell.send(ClientEvent::StoreFailed(error)).await;
                return;
            }
            match self.wait(&mut calls).await {
                Happened::Called(call) => {
                    let Some(call) = call else {
                        return self.stop(None).await;
                    };
                    let mut next = Some(call);
                    let mut left = BATCH;
                    while let Some(call) = next {
                        if let Call::Stop { reply } = call {
                            return self.stop(Some(reply)).await;
                        }
                        self.called(call);
                        left -= 1;
                        next = if left > 0 {
                            calls.try_recv().ok()
                        } else {
                            None
                        };
                    }
                }
                Happened::Heard(message) => {
                    let mut next = Some(message);
                    let mut left = BATCH;
                    while let Some(message) = next {
                        self.heard(message);
                        left -= 1;
                        next = match &mut self.socket {
                            Some(socket) if left > 0 => socket.next().now_or_never(),
                            _ => None,
                        };
                    }
                }
                Happened::Connected(result) => match *result {
                    Ok(socket) => {
                        self.socket = Some(socket);
                        self.core.connected(self.clock.now());
                    }
                    Err(error) => {
                        tracing::debug!(%error, "no connection");
                        self.core
                            .not_connected(self.clock.now(), error.retry_after());
                    }
                },
                Happened::Token(Ok(token)) => {
                    self.token_failures = 0;
                    self.core.set_token(self.clock.now(), token);
                }
                Happened::Token(Err(TokenError::Refused(reason))) => {
                    tracing::warn!(reason, "no token is given");
                    self.core.stop(self.clock.now());
                    self.untold.push_back(ClientEvent::GaveUp { code: 0 });
                }
                Happened::Token(Err(TokenError::Later(reason))) => {
                    tracing::debug!(reason, "no token now");
                    self.token_failures += 1;
                    let step = TOKEN_RETRY_FIRST * (1 << self.token_failures.min(10));
                    self.ask_token(step.min(TOKEN_RETRY_LAST));
                }
                Happened::Told => {}
                Happened::Time => self.core.tick(self.clock.now()),
            }
        }
    }

    /// Waits for the next thing to happen.
    async fn wait(&mut self, calls: &mut mpsc::Receiver<Call>) -> Happened {
        let time = self
            .core
            .next_tick()
            .map(|at| Duration::from_micros(at.saturating_sub(self.clock.now())).max(TICK_MIN));
        let hears = self.untold.is_empty();
        tokio::select! {
            call = calls.recv() => Happened::Called(call),
            permit = self.tell.reserve(), if !self.untold.is_empty() => {
                match permit {
                    Ok(permit) => {
                        if let Some(event) = self.untold.pop_front() {
                            permit.send(event);
                        }
                    }
                    // Nobody listens any more.
                    Err(_) => self.untold.clear(),
                }
                Happened::Told
            }
            message = next(&mut self.socket), if hears => Happened::Heard(message),
            result = ready(&mut self.connecting) => {
                self.connecting = None;
                Happened::Connected(Box::new(result))
            }
            result = ready(&mut self.asking) => {
                self.asking = None;
                Happened::Token(result)
            }
            () = tokio::time::sleep(time.unwrap_or_default()), if time.is_some() => Happened::Time,
        }
    }

    fn called(&mut self, call: Call) {
        let (core, now) = (&mut self.core, self.clock.now());
        match call {
            Call::Send {
                conversation,
                kind,
                body,
                reply,
            } => {
                let result = core.send(now, conversation, kind, body);
                self.answers.push(Answer::Sent(reply, result));
            }
            Call::Withdraw {
                conversation,
                local,
                reply,
            } => {
                let result = core.withdraw(conversation, local);
                self.answers.push(Answer::Withdrawn(reply, result));
            }
            Call::Stored { conversation, seq } => core.stored(now, conversation, seq),
            Call::MarkRead { conversation, seq } => core.mark_read(now, conversation, seq),
            Call::Typing { conversation, on } => core.typing(now, conversation, on),
            Call::Watch { users } => core.watch(now, users),
            Call::Presence { state } => core.set_presence(now, state),
            // Whoever asked and went away needs no answer.
            Call::FetchOlder {
                conversation,
                before,
                reply,
            } => {
                let _ = reply.send(core.fetch_older(now, conversation, before));
            }
            Call::Snapshot { reply } => {
                let _ = reply.send(core.snapshot());
            }
            Call::Reconnect => core.start(now),
            Call::Stop { .. } => {}
        }
    }

    fn heard(&mut self, message: Option<Result<Message, SocketError>>) {
        let code = match message {
            Some(Ok(Message::Binary(payload))) => return self.frame(Format::Proto, &payload),
            Some(Ok(Message::Text(text))) => return self.frame(Format::Json, text.as_bytes()),
            Some(Ok(Message::Close(frame))) => frame.map(|f| f.code.into()),
            // Pings are answered by the library with the next write or flush.
            Some(Ok(_)) => return,
            Some(Err(error)) => {
                tracing::debug!(%error, "the connection broke");
                None
            }
            None => None,
        };
        self.socket = None;
        self.core.disconnected(self.clock.now(), code);
    }

    fn frame(&mut self, format: Format, payload: &[u8]) {
        if format != self.format {
            tracing::warn!("a message of the other format");
        } else {
            match decode_server_frame(format, payload) {
                Ok(frame) => {
                    if let Some(watch) = &mut self.watch {
                        watch(Traffic::In(&frame));
                    }
                    return self.core.frame(self.clock.now(), frame);
                }
                Err(error) => tracing::warn!(%error, "a frame that can't be read"),
            }
        }
        self.socket = None;
        self.core.disconnected(self.clock.now(), None);
    }

    /// Carries out everything the core wants done.
    async fn act(&mut self) -> Result<(), StoreError> {
        loop {
            let outputs = self.core.outputs();
            if outputs.is_empty() {
                break;
            }
            let mut ops = Vec::new();
            let mut written = false;
            for output in outputs {
                if let Output::Persist(op) = output {
                    ops.push(op);
                    continue;
                }
                self.persist(std::mem::take(&mut ops)).await?;
                match output {
                    Output::Frame(frame) => {
                        written = true;
                        self.write(&frame).await;
                    }
                    Output::App(event) => self.untold.push_back(ClientEvent::App(event)),
                    Output::Connect { after } => {
                        let after = Duration::from_micros(after);
                        let dial = &self.options;
                        let attempt = connect(dial.url.clone(), self.format, dial.local_address);
                        self.connecting = Some(Box::pin(async move {
                            tokio::time::sleep(after).await;
                            attempt.await
                        }));
                    }
                    Output::Disconnect => self.close().await,
                    Output::NeedToken => self.ask_token(Duration::ZERO),
                    Output::GiveUp { code } => {
                        self.socket = None;
                        self.untold.push_back(ClientEvent::GaveUp { code });
                    }
                    Output::Persist(_) => {}
                }
            }
            self.persist(ops).await?;
            if written {
                self.flush().await;
            }
        }
        for answer in self.answers.drain(..) {
            // Whoever asked and went away needs no answer.
            let _ = match answer {
                Answer::Sent(reply, result) => reply.send(result).is_ok(),
                Answer::Withdrawn(reply, result) => reply.send(result).is_ok(),
            };
        }
        Ok(())
    }

    async fn persist(&mut self, ops: Vec<crate::PersistOp>) -> Result<(), StoreError> {
        if ops.is_empty() {
            return Ok(());
        }
        // Gone only when a runtime that shuts down took it along.
        let mut store = self.store.take().ok_or(StoreError::Failed)?;
        let (store, result) = if store.is_durable() {
            let work = move || {
                let result = store.append(&ops);
                (store, result)
            };
            let done = tokio::task::spawn_blocking(work).await;
            // A runtime that shuts down drops the work; then nothing is acted upon either.
            done.map_err(|_| StoreError::Failed)?
        } else {
            let result = store.append(&ops);
            (store, result)
        };
        self.store = Some(store);
        result
    }

    async fn write(&mut self, frame: &ClientFrame) {
        let Some(socket) = &mut self.socket else {
            return;
        };
        if let Some(watch) = &mut self.watch {
            watch(Traffic::Out(frame));
        }
        let mut bytes = Vec::new();
        encode_client_frame(self.format, frame, &mut bytes);
        let message = match self.format {
            Format::Proto => Message::Binary(Bytes::from(bytes)),
            Format::Json => match Utf8Bytes::try_from(bytes) {
                Ok(text) => Message::Text(text),
                Err(_) => return tracing::error!("JSON that isn't UTF-8 was not sent"),
            },
        };
        let done = tokio::time::timeout(WRITE_WITHIN, socket.feed(message)).await;
        self.written(done);
    }

    async fn flush(&mut self) {
        let Some(socket) = &mut self.socket else {
            return;
        };
        let done = tokio::time::timeout(WRITE_WITHIN, socket.flush()).await;
        self.written(done);
    }

    fn written(&mut self, done: Result<Result<(), SocketError>, tokio::time::error::Elapsed>) {
        let Ok(Ok(())) = done else {
            tracing::debug!("the connection takes nothing more");
            self.socket = None;
            self.core.disconnected(self.clock.now(), None);
            return;
        };
    }

    /// Writes what is buffered and a close, and lets go of the connection.
    async fn close(&mut self) {
        if let Some(mut socket) = self.socket.take() {
            let frame = CloseFrame {
                code: CloseCode::Normal,
                reason: Utf8Bytes::default(),
            };
            // A connection that takes nothing more is dropped all the same.
            let _ = tokio::time::timeout(CLOSE_WITHIN, socket.close(Some(frame))).await;
        }
    }

    fn ask_token(&mut self, after: Duration) {
        let token = self.options.token.clone();
        self.asking = Some(Box::pin(async move {
            tokio::time::sleep(after).await;
            let late = || Err(TokenError::Later("no answer in time".into()));
            tokio::time::timeout(TOKEN_WITHIN, (token.0)())
                .await
                .unwrap_or_else(|_| late())
        }));
    }

    async fn stop(mut self, reply: Option<oneshot::Sender<()>>) {
        self.core.stop(self.clock.now());
        // Without them the last events come once more after the next start.
        if let Err(error) = self.act().await {
            tracing::warn!(%error, "the last cursors aren't saved");
        }
        drop(self);
        if let Some(reply) = reply {
            let _ = reply.send(());
        }
    }
}

async fn next(socket: &mut Option<Socket>) -> Option<Result<Message, SocketError>> {
    match socket {
        Some(socket) => socket.next().await,
        None => std::future::pending().await,
    }
}

async fn ready<T>(future: &mut Option<BoxFuture<T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
