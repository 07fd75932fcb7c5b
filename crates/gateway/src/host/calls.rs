//! The outside of a worker's core: its sockets, and calls of ports.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidings_core::ids::{ConversationId, GatewayId, Micros, Partition, Seq, SessionId, UserId};
use tidings_core::ports::directory::{
    Directory, DirectoryError, PAGE_MAX, Revocation, direct_conversation,
};
use tidings_core::ports::log::Append;
use tidings_core::ports::peers::ToRouter;
use tidings_core::ports::registry::{
    Mark, Presence, REGISTRY_DEADLINE, RegistryError, SessionEntry,
};
use tidings_core::ports::store::{STORE_DEADLINE, StoreError};
use tidings_core::rows::CursorRow;
use tidings_protocol::CloseCode;

use super::Ports;
use super::inbox::{Inbox, Input};
use crate::logic::{AuthFailure, Listed, Outbound, Slot};
use crate::seldom::Seldom;
use crate::worker::{Io, Token};

/// How long a token may be checked: less than a client waits for `ready`.
const AUTH_DEADLINE: Duration = Duration::from_secs(4);

/// How long the directory may take for a user's list.
const DIRECTORY_DEADLINE: Duration = Duration::from_secs(5);

/// Marks that are asked for when a session begins; the others are cleared by later ones.
const MARKS_PER_USER_MAX: usize = 1_000;

/// What a worker's calls need besides its sockets.
pub(super) struct Link {
    gateway: GatewayId,
    ports: Ports,
    pub(super) inbox: Arc<Inbox>,
    /// Answers that were ready at once.
    pub(super) ready: VecDeque<Input>,
    /// The token of each slot's session.
    tokens: Vec<Token>,
    tick_ms: u32,
}

impl Link {
    pub(super) fn new(gateway: GatewayId, ports: Ports, inbox: Arc<Inbox>, tick_ms: u32) -> Self {
        Link {
            gateway,
            ports,
            inbox,
            ready: VecDeque::new(),
            tokens: Vec::new(),
            tick_ms: tick_ms.max(1),
        }
    }

    /// Remembers a session's token by its slot.
    pub(super) fn admit(&mut self, token: Token) -> Slot {
        let slot = token.slot();
        if self.tokens.len() <= slot {
            self.tokens.resize(slot + 1, token);
        }
        self.tokens[slot] = token;
        slot as Slot
    }

    /// Tells all workers what has changed in the presence of users they watch; one worker of a
    /// process does it, once a second.
    pub(super) fn tell_presence(&mut self) {
        if !self.ports.gateways.is_first(self.gateway) {
            return;
        }
        let (registry, gateways) = (
            Arc::clone(&self.ports.registry),
            Arc::clone(&self.ports.gateways),
        );
        self.fire("tell presence", async move {
            for (gateway, users) in registry.changes().await? {
                gateways.presence_changed(gateway, users);
            }
            Ok(())
        });
    }

    /// Makes a call whose answer becomes an input: at once if it is ready, else when it comes or
    /// `late` when it doesn't.
    fn ask(
        &mut self,
        deadline: Duration,
        call: impl Future<Output = Input> + Send + 'static,
        late: impl FnOnce() -> Input + Send + 'static,
    ) {
        let mut call: Pin<Box<dyn Future<Output = Input> + Send>> = Box::pin(call);
        match self.poll_once(&mut call) {
            Poll::Ready(input) => self.ready.push_back(input),
            Poll::Pending => {
                let inbox = Arc::clone(&self.inbox);
                self.ports.runtime.spawn(async move {
                    inbox.push(
                        tokio::time::timeout(deadline, call)
                            .await
                            .unwrap_or_else(|_| late()),
                    );
                });
            }
        }
    }

    /// Another server has revoked something.
    pub(super) fn revoked(&self, revocation: &Revocation) {
        self.ports.authenticator.revoked(revocation);
    }

    /// The worker has come to a question how long that takes.
    pub(super) fn probed(&self, asked: Instant) {
        self.ports.gateways.probed(asked);
    }

    /// Makes a call of the registry that nothing waits for.
    fn fire(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<(), RegistryError>> + Send + 'static,
    ) {
        let mut call: Pin<Box<dyn Future<Output = Result<(), RegistryError>> + Send>> =
            Box::pin(call);
        let report = move |result| {
            static SELDOM: Seldom = Seldom::new();
            if let Err(error) = result
                && let Some(left_out) = SELDOM.turn()
            {
                tracing::warn!(%error, what, left_out, "the registry is passed over");
            }
        };
        match self.poll_once(&mut call) {
            Poll::Ready(result) => report(result),
            Poll::Pending => {
                self.ports.runtime.spawn(async move {
                    let late = || RegistryError("no answer in time".to_owned());
                    report(
                        tokio::time::timeout(REGISTRY_DEADLINE, call)
                            .await
                            .unwrap_or_else(|_| Err(late())),
                    );
                });
            }
        }
    }

    fn poll_once<T>(&self, call: &mut Pin<Box<dyn Future<Output = T> + Send>>) -> Poll<T> {
        // Ports may use the runtime's timers and tasks already in their first poll.
        let _within = self.ports.runtime.enter();
        call.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }
}

/// [`Outbound`] for the length of one call of the core.
pub(super) struct Out<'a> {
    pub(super) link: &'a mut Link,
    pub(super) io: &'a mut Io,
}

impl Out<'_> {
    fn token(&self, slot: Slot) -> Option<Token> {
        self.link.tokens.get(slot as usize).copied()
    }
}

impl Outbound for Out<'_> {
    fn now(&self) -> Micros {
        (self.link.ports.clock)()
    }

    #[inline]
    fn send(&mut self, slot: Slot, frame: &Bytes) {
        if let Some(&token) = self.link.tokens.get(slot as usize) {
            self.io.send(token, frame.clone());
        }
    }

    fn close(&mut self, slot: Slot, code: CloseCode) {
        if let Some(token) = self.token(slot) {
            self.io.close(token, code.code(), code.reason());
        }
    }

    fn admitted(&mut self, slot: Slot) {
        if let Some(token) = self.token(slot) {
            self.io.authenticated(token);
        }
    }

    fn queued_bytes(&self, slot: Slot) -> usize {
        self.token(slot)
            .map_or(0, |token| self.io.queued_bytes(token))
    }

    fn heard(&self, slot: Slot) -> Micros {
        let last = self
            .token(slot)
            .and_then(|token| self.io.last_read_tick(token))
            .unwrap_or(0);
        let ticks = self.io.now_tick().saturating_sub(last);
        self.now()
            .saturating_sub(Micros::from(ticks) * Micros::from(self.link.tick_ms) * 1_000)
    }

    fn take_send(&mut self) -> bool {
        self.link.ports.gateways.take_send()
    }

    fn sends_ended(&mut self, count: u64) {
        self.link.ports.gateways.sends_ended(count);
    }

    fn append(&mut self, batch: u64, records: Vec<Append>) {
        let inbox = Arc::clone(&self.link.inbox);
        let report = move |result: Result<(), _>| match result {
            // The answers are what matters; the batch is forgotten with the next turn.
            Ok(()) => inbox.push_quietly(Input::Appended(batch, Ok(()))),
            Err(error) => inbox.push(Input::Appended(batch, Err(error))),
        };
        self.link.ports.log.append(records, Box::new(report));
    }

    fn to_router(&mut self, partition: Partition, message: ToRouter) {
        self.link
            .ports
            .peers
            .to_router(self.link.gateway, partition, message);
    }

    fn authenticate(&mut self, session: SessionId, token: String, device: String) {
        if let Some(result) = self.link.ports.authenticator.verify_now(&token, &device) {
            return self
                .link
                .ready
                .push_back(Input::Authenticated(session, result));
        }
        let authenticator = Arc::clone(&self.link.ports.authenticator);
        let call =
            async move { Input::Authenticated(session, authenticator.verify(token, device).await) };
        let late = move || Input::Authenticated(session, Err(AuthFailure::Unavailable));
        self.link.ask(AUTH_DEADLINE, call, late);
    }

    fn load_user(&mut self, user: UserId) {
        let users = Arc::clone(&self.link.ports.users);
        let generation = match users.get(user) {
            Ok(listed) => {
                return self
                    .link
                    .ready
                    .push_back(Input::UserLoaded(user, Some(listed)));
            }
            Err(generation) => generation,
        };
        let directory = Arc::clone(&self.link.ports.directory);
        let call = async move {
            let listed = listed(&*directory, user).await;
            if let Ok(listed) = &listed {
                users.put(user, listed, generation);
            }
            Input::UserLoaded(
                user,
                listed
                    .inspect_err(|error| tracing::warn!(%error, "a user's list"))
                    .ok(),
            )
        };
        self.link.ask(DIRECTORY_DEADLINE, call, move || {
            Input::UserLoaded(user, None)
        });
    }

    fn members_changed(&mut self, users: &mut dyn Iterator<Item = UserId>) {
        let mut users = users.peekable();
        match users.peek() {
            Some(_) => self.link.ports.users.forget(users),
            None => self.link.ports.users.forget_all(),
        }
    }

    fn read_events(
        &mut self,
        request: u64,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        bytes_max: usize,
    ) {
        let store = Arc::clone(&self.link.ports.store);
        let call = async move {
            Input::EventsRead(
                request,
                store.read_events(conversation, from, to, bytes_max).await,
            )
        };
        let late = move || {
            Input::EventsRead(
                request,
                Err(StoreError::Unavailable("no answer in time".to_owned())),
            )
        };
        self.link.ask(STORE_DEADLINE, call, late);
    }

    fn put_session(&mut self, entry: SessionEntry, is_new: bool) {
        let (registry, gateways) = (
            Arc::clone(&self.link.ports.registry),
            Arc::clone(&self.link.ports.gateways),
        );
        self.link.fire("put session", async move {
            registry.put_session(entry).await?;
            if is_new {
                // Of two that come at once each sees who came before it, so the newer stays.
                let sessions = registry.sessions_of(entry.user).await?;
                for old in sessions.iter().take_while(|s| s.session != entry.session) {
                    if old.device == entry.device {
                        gateways.replace_session(old.gateway, old.session);
                    }
                }
            }
            Ok(())
        });
        if is_new {
            // What waits for the user was marked by others; the cursors of this session clear it.
            let ports = &self.link.ports;
            let (registry, gateways) = (Arc::clone(&ports.registry), Arc::clone(&ports.gateways));
            self.link.fire("marks", async move {
                gateways.marked(&registry.marks_of(entry.user, MARKS_PER_USER_MAX).await?);
                Ok(())
            });
        }
    }

    fn remove_session(&mut self, user: UserId, session: SessionId, at: Micros) {
        let registry = Arc::clone(&self.link.ports.registry);
        self.link.ports.gateways.forget_marks(user);
        self.link.fire("remove session", async move {
            registry.remove_session(user, session, at).await
        });
    }

    fn set_presence(&mut self, user: UserId, session: SessionId, state: Presence) {
        let registry = Arc::clone(&self.link.ports.registry);
        self.link.fire("set presence", async move {
            registry.set_presence(user, session, state).await
        });
    }

    fn presence(&mut self, request: u64, watcher: UserId, mut users: Vec<UserId>) {
        let registry = Arc::clone(&self.link.ports.registry);
        let directory = Arc::clone(&self.link.ports.directory);
        let unknown = move || Input::PresenceAnswered(request, Vec::new(), None);
        let call = async move {
            let mut blockers = Vec::new();
            for chunk in users.chunks(PAGE_MAX) {
                match directory.blockers_among(watcher, chunk.to_vec()).await {
                    Ok(more) => blockers.extend(more),
                    Err(error) => {
                        tracing::warn!(%error, "who has blocked a watcher");
                        return unknown();
                    }
                }
            }
            users.retain(|user| !blockers.contains(user));
            // Without an answer presence is not known, which is what an empty one says.
            let known = tokio::time::timeout(REGISTRY_DEADLINE, registry.presence(users)).await;
            let known = known.unwrap_or(Ok(Vec::new())).unwrap_or_default();
            Input::PresenceAnswered(request, known, Some(blockers))
        };
        self.link.ask(DIRECTORY_DEADLINE, call, unknown);
    }

    fn watch(&mut self, users: Vec<UserId>) {
        let (registry, gateway) = (Arc::clone(&self.link.ports.registry), self.link.gateway);
        self.link
            .fire("watch", async move { registry.watch(gateway, users).await });
    }

    fn put_marks(&mut self, marks: Vec<Mark>) {
        self.link.ports.gateways.marked(&marks);
        let registry = Arc::clone(&self.link.ports.registry);
        self.link
            .fire("put marks", async move { registry.put_marks(marks).await });
    }

    fn cursors_moved(&mut self, cursors: &[CursorRow]) {
        for mark in self.link.ports.gateways.reached(cursors) {
            let registry = Arc::clone(&self.link.ports.registry);
            self.link
                .fire("clear mark", async move { registry.clear_mark(mark).await });
        }
    }

    fn delayed_elsewhere(&mut self, user: UserId, conversation: ConversationId, seq: Seq) {
        let gateway = self.link.gateway;
        self.link
            .ports
            .gateways
            .delayed(gateway, user, conversation, seq);
    }
}

/// What the gateway is to know of a user; more than a page of conversations comes page by page.
async fn listed(directory: &dyn Directory, user: UserId) -> Result<Listed, DirectoryError> {
    let lists = directory.lists_of(user).await?;
    let mut conversations = lists.conversations;
    let mut is_last = conversations.len() < PAGE_MAX;
    while !is_last {
        let after = conversations.last().copied().unwrap_or_default();
        let page = directory.conversations_of(user, after, PAGE_MAX).await?;
        is_last = page.len() < PAGE_MAX;
        conversations.extend(page.iter().map(|membership| membership.conversation.id));
    }
    let blocked = lists.blocked.into_iter();
    let blocked = blocked.map(|other| direct_conversation(user, other).conversation);
    Ok(Listed {
        conversations,
        blocked: blocked.collect(),
    })
}
