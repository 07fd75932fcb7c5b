//! A client on tokio: a [`ClientCore`] over a WebSocket, reconnecting by itself.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidings_protocol::wire::{ClientFrame, Kind, Presence, ServerFrame};
use tokio::sync::{mpsc, oneshot};

use crate::client_core::{AppEvent, Config, LocalId, SendError};
use crate::saved::Saved;
use crate::store::{Store, StoreError};

mod connect;
mod driver;

use driver::Driver;

/// Calls that may wait for the client's task; a further one waits itself, up to [`CALL_WITHIN`].
const CALLS_MAX: usize = 256;
/// Events that may wait for the app. While they do, nothing is read from the server, which
/// then tells the client to catch up later.
const EVENTS_MAX: usize = 1024;
/// How long a call waits for the client's task and its disk.
const CALL_WITHIN: Duration = Duration::from_secs(10);

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// None will be given: the user must sign in again. The client gives up.
    #[error("no token is given: {0}")]
    Refused(String),
    /// Not now; the client asks again, with backoff.
    #[error("no token now: {0}")]
    Later(String),
}

/// Where access tokens come from.
#[derive(Clone)]
pub struct Token(Arc<dyn Fn() -> BoxFuture<Result<String, TokenError>> + Send + Sync>);

impl Token {
    /// The same token each time: for load tools and tests.
    pub fn fixed(token: impl Into<String>) -> Token {
        let token = token.into();
        Token::from_fn(move || std::future::ready(Ok(token.clone())))
    }

    /// Calls this for a token, at the start and whenever a fresh one is needed. A call that
    /// takes longer than 30 s counts as [`TokenError::Later`].
    pub fn from_fn<F, R>(provide: F) -> Token
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<String, TokenError>> + Send + 'static,
    {
        Token(Arc::new(move || Box::pin(provide())))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// How to connect, and as what.
#[derive(Debug)]
pub struct Options {
    /// `ws://host:port/path`. TLS is left to a proxy on the same machine.
    pub url: String,
    /// Where access tokens come from.
    pub token: Token,
    /// The outbox and the cursors.
    pub store: Store,
    /// Format, mode and limits.
    pub config: Config,
    /// The address to connect from; `None`: the system's choice. Load tools need several,
    /// since one address has some 28,000 ports.
    pub local_address: Option<IpAddr>,
}

/// What a client's event stream brings.
#[derive(Debug)]
pub enum ClientEvent {
    /// News of the core.
    App(AppEvent),
    /// The server, or the token's provider, said not to come back by itself. Sends go on
    /// into the outbox; [`Client::reconnect`] tries again.
    GaveUp {
        /// The close code; 0: no token is given.
        code: u16,
    },
    /// The outbox's disk failed; the client has ended.
    StoreFailed(StoreError),
}

/// Why a call of a client wasn't carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The message isn't taken.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The client's task or its disk is busy: try again. A send may have been taken.
    #[error("the client is busy")]
    Busy,
    /// The client has ended.
    #[error("the client has ended")]
    Ended,
}

/// What goes over a client's connection.
#[derive(Debug, Clone, Copy)]
pub enum Traffic<'a> {
    /// About to be written. What it numbers is in the outbox already.
    Out(&'a ClientFrame),
    /// Just read, before the client acts on it.
    In(&'a ServerFrame),
}

/// Sees all [`Traffic`] of a client, on its task: for checkers and tracing. It must not block.
pub type Watch = Box<dyn FnMut(Traffic<'_>) + Send>;

type Reply<T> = oneshot::Sender<T>;

enum Call {
    Send {
        conversation: u64,
        kind: Kind,
        body: Bytes,
        reply: Reply<Result<LocalId, SendError>>,
    },
    Withdraw {
        conversation: u64,
        local: LocalId,
        reply: Reply<bool>,
    },
    Stored {
        conversation: u64,
        seq: u64,
    },
    MarkRead {
        conversation: u64,
        seq: u64,
    },
    Typing {
        conversation: u64,
        on: bool,
    },
    Watch {
        users: Vec<u64>,
    },
    Presence {
        state: Presence,
    },
    FetchOlder {
        conversation: u64,
        before: u64,
        reply: Reply<bool>,
    },
    Snapshot {
        reply: Reply<Saved>,
    },
    Reconnect,
    Stop {
        reply: Reply<()>,
    },
}

/// A handle on a running client; clones share it. The client ends when all are dropped.
#[derive(Clone)]
pub struct Client {
    calls: mpsc::Sender<Call>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client(..)")
    }
}

/// The events of a client, in order. Dropping it lets the client run on unheard.
#[derive(Debug)]
pub struct EventStream {
    events: mpsc::Receiver<ClientEvent>,
}

impl EventStream {
    /// The next event; `None`: the client has ended. Losing the future loses no event.
    pub async fn next(&mut self) -> Option<ClientEvent> {
        self.events.recv().await
    }
}

impl Client {
    /// Starts a client on the current tokio runtime; it connects in the background, again
    /// and again with backoff. Everything that happens comes through the stream.
    pub fn connect(options: Options) -> (Client, EventStream) {
        Client::start(options, None)
    }

    /// As [`Client::connect`], with somebody who sees every frame.
    pub fn connect_watched(options: Options, watch: Watch) -> (Client, EventStream) {
        Client::start(options, Some(watch))
    }

    fn start(options: Options, watch: Option<Watch>) -> (Client, EventStream) {
        let (calls, called) = mpsc::channel(CALLS_MAX);
        let (tell, events) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(Driver::new(options, tell, watch).run(called));
        (Client { calls }, EventStream { events })
    }

    /// Puts a message into the outbox; on return it survives a crash, and its fate comes
    /// as an event. On [`ClientError::Busy`] it may have been taken.
    pub async fn send(
        &self,
        conversation: u64,
        kind: Kind,
        body: impl Into<Bytes>,
    ) -> Result<LocalId, ClientError> {
        let body = body.into();
        self.ask(|reply| Call::Send {
            conversation,
            kind,
            body,
            reply,
        })
        .await?
        .map_err(Into::into)
    }

    /// Takes a message back that isn't numbered yet; false: too late.
    pub async fn withdraw(&self, conversation: u64, local: LocalId) -> Result<bool, ClientError> {
        self.ask(|reply| Call::Withdraw {
            conversation,
            local,
            reply,
        })
        .await
    }

    /// The app has stored all events up to this seq (see [`crate::StoredBy::App`]).
    pub async fn stored(&self, conversation: u64, seq: u64) -> Result<(), ClientError> {
        self.tell(Call::Stored { conversation, seq }).await
    }

    /// The user has read all up to this seq.
    pub async fn mark_read(&self, conversation: u64, seq: u64) -> Result<(), ClientError> {
        self.tell(Call::MarkRead { conversation, seq }).await
    }

    /// The user types, or stopped.
    pub async fn typing(&self, conversation: u64, on: bool) -> Result<(), ClientError> {
        self.tell(Call::Typing { conversation, on }).await
    }

    /// The users whose presence is of interest.
    pub async fn watch(&self, users: Vec<u64>) -> Result<(), ClientError> {
        self.tell(Call::Watch { users }).await
    }

    /// The presence to show.
    pub async fn set_presence(&self, state: Presence) -> Result<(), ClientError> {
        self.tell(Call::Presence { state }).await
    }

    /// Asks for the newest page below `before`; it comes as [`AppEvent::Older`]. False: there
    /// is no connection now. An answer may be lost with the connection; ask again then.
    pub async fn fetch_older(&self, conversation: u64, before: u64) -> Result<bool, ClientError> {
        self.ask(|reply| Call::FetchOlder {
            conversation,
            before,
            reply,
        })
        .await
    }

    /// What is saved now: the outbox and the cursors.
    pub async fn snapshot(&self) -> Result<Saved, ClientError> {
        self.ask(|reply| Call::Snapshot { reply }).await
    }

    /// Connects again after [`ClientEvent::GaveUp`]; nothing otherwise.
    pub async fn reconnect(&self) -> Result<(), ClientError> {
        self.tell(Call::Reconnect).await
    }

    /// Saves the cursors, closes the connection and ends the client.
    pub async fn stop(&self) -> Result<(), ClientError> {
        self.ask(|reply| Call::Stop { reply }).await
    }

    async fn tell(&self, call: Call) -> Result<(), ClientError> {
        match tokio::time::timeout(CALL_WITHIN, self.calls.send(call)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ClientError::Ended),
            Err(_) => Err(ClientError::Busy),
        }
    }

    async fn ask<T>(&self, call: impl FnOnce(Reply<T>) -> Call) -> Result<T, ClientError> {
        let (reply, answer) = oneshot::channel();
        self.tell(call(reply)).await?;
        match tokio::time::timeout(CALL_WITHIN, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(ClientError::Ended),
            Err(_) => Err(ClientError::Busy),
        }
    }
}
