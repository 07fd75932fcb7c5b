//! The way of a message without a session: what the HTTP API asks of routers.
//!
//! It is a gateway of its own to them: sends are appended with its id as their origin, and
//! answers come back to it. A send waits for its verdict; nobody is told "sent" before.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tidings_core::ids::{
    ConversationId, GatewayId, MessageKey, Micros, SenderId, Seq, SessionId, UserId,
};
use tidings_core::in_process::{GatewayInbox, InProcessPeers};
use tidings_core::path;
use tidings_core::ports::directory::Directory;
use tidings_core::ports::log::{Log, LogError};
use tidings_core::ports::peers::{Handed, Opened, Peers, ToGateway, ToRouter};
use tidings_core::ports::store::{STORE_DEADLINE, Store};
use tidings_core::record::{ConversationKind, Encoding, Kind, Origin, Role, Send};
use tidings_core::rows::EventRow;
use tidings_core::sequencer::{Answer, Verdict};
use tidings_gateway::logic::{history_page, seen_by_blocker};
use tidings_protocol::{Format, wire};
use tokio::sync::{Notify, oneshot};

/// How long a router may take; a send not answered by then may still be accepted.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A question that isn't answered by then is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Questions under way at once; beyond it new ones are refused.
const WAITING_MAX: usize = 16 << 10;

/// Bodies read for one page.
const PAGE_BYTES: usize = 1 << 20;

/// Why something was not done, sorted by remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoutedError {
    /// The user may not write, or read, here; or there is no such conversation.
    #[error("not a member")]
    Forbidden,
    /// The verdict was against it.
    #[error("refused")]
    Refused,
    /// The disk is full.
    #[error("storage full")]
    Full,
    /// Not now, or nobody knows: the same request again is harmless under its key.
    #[error("unavailable")]
    Unavailable,
}

/// A message of a user without a session.
#[derive(Clone, Debug)]
pub struct Message {
    /// Who sends.
    pub user: UserId,
    /// Where.
    pub conversation: ConversationId,
    /// What the body is.
    pub kind: Kind,
    /// The body.
    pub body: Bytes,
}

#[derive(Default)]
struct Waiting {
    answers: HashMap<SessionId, oneshot::Sender<Answer>>,
    opened: HashMap<u64, oneshot::Sender<Option<Opened>>>,
    tails: HashMap<u64, oneshot::Sender<Vec<Arc<EventRow>>>>,
    last: u64,
}

/// Sends and reads through the routers.
pub struct Routed {
    id: GatewayId,
    log: Arc<dyn Log>,
    store: Arc<dyn Store>,
    directory: Arc<dyn Directory>,
    peers: Arc<dyn Peers>,
    clock: fn() -> Micros,
    waiting: Mutex<Waiting>,
    random: fn() -> u64,
    taken: [AtomicU64; 3],
}

impl Routed {
    #[allow(clippy::too_many_arguments)]
    /// Joins the peers as `id`; the future must run for answers to arrive.
    pub fn new(
        id: GatewayId,
        log: Arc<dyn Log>,
        store: Arc<dyn Store>,
        directory: Arc<dyn Directory>,
        peers: Arc<dyn Peers>,
        local: &Arc<InProcessPeers>,
        clock: fn() -> Micros,
        random: fn() -> u64,
    ) -> (Arc<Routed>, impl Future<Output = ()> + use<>) {
        let notify = Arc::new(Notify::new());
        let wake = notify.clone();
        let inbox = local.add_gateway(id, Box::new(move || wake.notify_one()));
        let routed = Arc::new(Routed {
            taken: Default::default(),
            id,
            log,
            store,
            directory,
            peers,
            clock,
            waiting: Mutex::default(),
            random,
        });
        (routed.clone(), take(routed, inbox, notify))
    }

    /// Messages appended so far, by kind: text, JSON, empty.
    pub fn taken(&self, kind: Kind) -> u64 {
        self.taken[kind as usize % 3].load(Ordering::Relaxed)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message; with a key, a repeat within 7 days is answered with the first one.
    ///
    /// # Errors
    /// See [`RoutedError`].
    pub async fn send(&self, message: Message, key: Option<&[u8]>) -> Result<Answer, RoutedError> {
        let sender = SenderId(match key {
            Some(key) => {
                let mut hash = Sha256::new();
                hash.update(b"tidings idempotency 1");
                hash.update(message.user.0.to_be_bytes());
                hash.update(key);
                u64::from_be_bytes(
                    hash.finalize()[..8]
                        .try_into()
                        .expect("a digest has 32 bytes"),
                )
            }
            None => (self.random)(),
        });
        let mut tried = 0;
        loop {
            let state = self.open(message.user, message.conversation).await?;
            if !state.grant.role.may_write() {
                return Err(RoutedError::Forbidden);
            }
            let answer = self.append(&message, sender, state.grant.grant).await?;
            tried += 1;
            if answer.verdict == Verdict::Accepted {
                self.taken[message.kind as usize % 3].fetch_add(1, Ordering::Relaxed);
            }
            match answer.verdict {
                Verdict::Accepted | Verdict::Duplicate => return Ok(answer),
                // The grant ended between the question and the record: once more with a fresh one.
                Verdict::Over if tried == 1 => {}
                _ => return Err(RoutedError::Refused),
            }
        }
    }

    async fn append(
        &self,
        message: &Message,
        sender: SenderId,
        grant: Seq,
    ) -> Result<Answer, RoutedError> {
        let (tell, answered) = oneshot::channel();
        let session = {
            let mut waiting = self.waiting();
            if waiting.answers.len() >= WAITING_MAX {
                return Err(RoutedError::Unavailable);
            }
            waiting.last += 1;
            let session = SessionId(waiting.last);
            waiting.answers.insert(session, tell);
            session
        };
        let send = Send {
            user: message.user,
            sender,
            grant,
            counter: 1,
            id: MessageKey((self.random)()),
            previous: MessageKey(0),
            once: true,
            kind: message.kind,
            encoding: Encoding::Identity,
            body: message.body.clone(),
            origin: Origin {
                gateway: self.id,
                session,
            },
            taken: (self.clock)(),
        };
        let (report, appended) = oneshot::channel();
        self.log.append(
            vec![path::accept(message.conversation, send)],
            Box::new(move |result| _ = report.send(result)),
        );
        let refused = async {
            match appended.await {
                // The answer says more, and often comes first.
                Ok(Ok(()) | Err(LogError::Unknown(_))) => std::future::pending().await,
                Ok(Err(LogError::Full)) => RoutedError::Full,
                _ => RoutedError::Unavailable,
            }
        };
        let answer = async {
            tokio::select! {
                answer = answered => answer.map_err(|_| RoutedError::Unavailable),
                error = refused => Err(error),
            }
        };
        let result = tokio::time::timeout(ANSWER_MAX, answer)
            .await
            .unwrap_or(Err(RoutedError::Unavailable));
        self.waiting().answers.remove(&session);
        result
    }

    /// How a conversation stands for a user, by its router.
    async fn open(
        &self,
        user: UserId,
        conversation: ConversationId,
    ) -> Result<Opened, RoutedError> {
        let (tell, opened) = oneshot::channel();
        let request = {
            let mut waiting = self.waiting();
            if waiting.opened.len() >= WAITING_MAX {
                return Err(RoutedError::Unavailable);
            }
            waiting.last += 1;
            let request = waiting.last;
            waiting.opened.insert(request, tell);
            request
        };
        let partition = self.log.partition_of(conversation);
        // Asked again: while a partition moves nobody owns it, and what is asked then is lost.
        let ask_again = async {
            loop {
                self.peers.to_router(
                    self.id,
                    partition,
                    ToRouter::Open {
                        request,
                        user,
                        conversations: vec![conversation],
                    },
                );
                tokio::time::sleep(ASK_AGAIN_AFTER).await;
            }
        };
        let state = tokio::time::timeout(ANSWER_MAX, async {
            tokio::select! {
                state = opened => state,
                () = ask_again => unreachable!("it asks until there is an answer"),
            }
        })
        .await;
        // Its events aren't wanted, only the answer.
        self.peers
            .to_router(self.id, partition, ToRouter::Close(vec![conversation]));
        self.waiting().opened.remove(&request);
        match state {
            Ok(Ok(Some(state))) => Ok(state),
            _ => Err(RoutedError::Unavailable),
        }
    }

    /// A page of history as JSON: above `after`, below `before`, or the newest when both are 0.
    ///
    /// # Errors
    /// `Forbidden` for who was never a member; `Unavailable` when the store or router doesn't answer.
    pub async fn page(
        &self,
        user: UserId,
        conversation: ConversationId,
        before: Seq,
        after: Seq,
        limit: u64,
    ) -> Result<Vec<u8>, RoutedError> {
        let state = self.open(user, conversation).await?;
        let grant = state.grant;
        if grant.role == Role::None && grant.visible_to == 0 {
            return Err(RoutedError::Forbidden);
        }
        let last = if grant.role == Role::None {
            grant.visible_to
        } else {
            state.head
        };
        let (from, to) = match (before, after) {
            (0, 0) => (last.saturating_sub(limit - 1).max(1), last),
            (0, after) => (
                after.saturating_add(1),
                after.saturating_add(limit).min(last),
            ),
            (before, _) => {
                let to = (before - 1).min(last);
                (to.saturating_sub(limit - 1).max(1), to)
            }
        };
        let (low, high) = (from.max(grant.visible_from), to.min(last));
        let mut rows = Vec::new();
        let mut empty_tails = 0;
        while low + rows.len() as u64 <= high {
            let next = low + rows.len() as u64;
            let read = tokio::time::timeout(
                STORE_DEADLINE,
                self.store.read_events(conversation, next, high, PAGE_BYTES),
            )
            .await;
            let Ok(Ok(more)) = read else {
                return Err(RoutedError::Unavailable);
            };
            let known = rows.len();
            rows.extend(
                (next..)
                    .zip(more)
                    .take_while(|(seq, row)| *seq == row.seq)
                    .map(|(_, row)| row),
            );
            if rows.len() == known {
                let tail = self.tail(conversation, next).await?;
                rows.extend(
                    tail.iter()
                        .filter(|row| row.seq <= high)
                        .map(|row| (**row).clone()),
                );
                // What neither had may have been stored between the two questions: once more.
                empty_tails = match rows.len() == known {
                    true => empty_tails + 1,
                    false => 0,
                };
                if empty_tails > 1 {
                    return Err(RoutedError::Unavailable);
                }
            }
        }
        if state.kind == ConversationKind::Direct {
            self.hide_blocked(user, &mut rows).await?;
        }
        let page = wire::HistoryPage {
            conversation: conversation.0,
            from,
            to,
            events: Vec::new(),
            head: last,
        };
        Ok(history_page(Format::Json, page, &rows))
    }

    /// Empties what the other one of a direct conversation wrote, if the user has blocked them.
    async fn hide_blocked(&self, user: UserId, rows: &mut [EventRow]) -> Result<(), RoutedError> {
        let is_others = |row: &&EventRow| row.members.is_none() && row.user != user;
        let Some(other) = rows.iter().find(is_others).map(|row| row.user) else {
            return Ok(());
        };
        let is_blocked = self.directory.has_blocked(user, other).await;
        if is_blocked.map_err(|_| RoutedError::Unavailable)? {
            for row in rows {
                *row = seen_by_blocker(user, row);
            }
        }
        Ok(())
    }

    /// Committed events that the store doesn't have yet.
    async fn tail(
        &self,
        conversation: ConversationId,
        from: Seq,
    ) -> Result<Vec<Arc<EventRow>>, RoutedError> {
        let (tell, tail) = oneshot::channel();
        let request = {
            let mut waiting = self.waiting();
            waiting.last += 1;
            let request = waiting.last;
            waiting.tails.insert(request, tell);
            request
        };
        let message = ToRouter::Tail {
            request,
            conversation,
            from,
        };
        self.peers
            .to_router(self.id, self.log.partition_of(conversation), message);
        let rows = tokio::time::timeout(ANSWER_MAX, tail).await;
        self.waiting().tails.remove(&request);
        rows.ok()
            .and_then(Result::ok)
            .ok_or(RoutedError::Unavailable)
    }
}

/// Takes what routers say, for as long as the process lives.
async fn take(routed: Arc<Routed>, inbox: GatewayInbox, notify: Arc<Notify>) {
    let mut messages = Vec::new();
    loop {
        notify.notified().await;
        inbox.take(&mut messages);
        let mut waiting = routed.waiting();
        for message in messages.drain(..) {
            match message {
                ToGateway::Answer {
                    session, answer, ..
                } => {
                    _ = waiting
                        .answers
                        .remove(&session)
                        .map(|tell| tell.send(answer))
                }
                ToGateway::Opened {
                    request, states, ..
                } => {
                    _ = waiting
                        .opened
                        .remove(&request)
                        .map(|tell| tell.send(states.first().copied()));
                }
                ToGateway::Tail { request, rows } => {
                    _ = waiting.tails.remove(&request).map(|tell| tell.send(rows))
                }
                ToGateway::Event { row, .. } => {
                    // Nobody is waited for here.
                    let handed = Handed {
                        conversation: row.conversation,
                        seq: row.seq,
                    };
                    let partition = routed.log.partition_of(row.conversation);
                    routed
                        .peers
                        .to_router(routed.id, partition, ToRouter::FannedOut(vec![handed]));
                }
                _ => {}
            }
        }
    }
}
