//! The workers of a process, for whoever has something to tell all of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tidings_core::ids::{ConversationId, GatewayId, Seq, SessionId, UserId};
use tidings_core::ports::directory::Revocation;
use tidings_core::ports::peers::{Peers, ToGateway};
use tidings_core::ports::registry::{Mark, UserPresence};
use tidings_core::rows::CursorRow;
use tidings_protocol::CloseCode;
use tidings_protocol::wire::Mode;

use super::inbox::{Inbox, Input};
use super::probe::Probe;

/// So many marks are remembered, about 3 MiB; those beyond stay in the registry until somebody
/// else clears them.
const MARKS_MAX: usize = 64 << 10;

/// The workers of this process.
pub struct Gateways {
    /// The way to those of other servers.
    peers: Arc<dyn Peers>,
    inboxes: RwLock<Vec<(GatewayId, Arc<Inbox>)>>,
    /// The marks of users that have a session here, and those that workers put: the user may come back
    /// to another worker.
    marks: Mutex<Marks>,
    /// There are some: saves the lock on the way of cursors.
    is_marked: AtomicBool,
    probe: Probe,
    waiting: Waiting,
    /// Marks that a cursor has reached.
    pub marks_cleared: AtomicU64,
}

/// Sends of all workers that wait for their answer.
struct Waiting {
    count: AtomicI64,
    most: AtomicI64,
    refused: AtomicU64,
}

impl Default for Waiting {
    /// Any number may wait until [`Gateways::limit_sends`] says otherwise.
    fn default() -> Waiting {
        Waiting {
            count: AtomicI64::new(0),
            most: AtomicI64::new(i64::MAX),
            refused: AtomicU64::new(0),
        }
    }
}

#[derive(Default)]
struct Marks {
    of_users: HashMap<UserId, HashMap<ConversationId, Seq>>,
    count: usize,
}

impl Gateways {
    /// None yet.
    pub fn new(peers: Arc<dyn Peers>) -> Gateways {
        Gateways {
            peers,
            inboxes: RwLock::default(),
            marks: Mutex::default(),
            is_marked: AtomicBool::new(false),
            probe: Probe::default(),
            waiting: Waiting::default(),
            marks_cleared: AtomicU64::new(0),
        }
    }

    /// Closes the sessions that a revocation names, here and on other servers (4002).
    pub fn revoke(&self, revocation: &Revocation) {
        self.peers.to_others(ToGateway::Revoked(*revocation));
        self.revoked(revocation);
    }

    /// Closes the sessions that a revocation names, here, where it may be known already.
    pub fn revoked(&self, revocation: &Revocation) {
        self.all(|inbox| inbox.push(Input::Revoked(*revocation)));
    }

    /// Tells all workers that a user has blocked another or no longer does. Called behind the
    /// directory's commit, for one pair in the order of the commits: then it holds for all that
    /// happens here after this call, and on other servers as soon as they hear of it.
    pub fn block_changed(&self, user: UserId, other: UserId, is_blocked: bool) {
        self.peers.to_others(ToGateway::BlockChanged {
            user,
            other,
            is_blocked,
        });
        self.all(|inbox| inbox.push(Input::BlockChanged(user, other, is_blocked)));
    }

    /// Tells all workers, and through them all clients, that a feature is otherwise from now on.
    pub fn mode_changed(&self, mode: Mode) {
        self.all(|inbox| inbox.push(Input::Mode(mode)));
    }

    /// Asks all workers how long they take to come to what they are told, unless one still has to answer.
    /// Answers what the slowest took last time, or takes already.
    pub fn probe(&self) -> Duration {
        let worst = self.probe.worst();
        let inboxes = self.inboxes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = self.probe.begin(inboxes.len()) {
            for (_, inbox) in inboxes.iter() {
                inbox.push(Input::Probe(asked));
            }
        }
        worst
    }

    /// How many sends of all workers together may wait for their answer from now on.
    pub fn limit_sends(&self, waiting_max: u32) {
        self.waiting
            .most
            .store(waiting_max.into(), Ordering::Relaxed);
    }

    /// Sends that wait for their answer now.
    pub fn sends_waiting(&self) -> u64 {
        u64::try_from(self.waiting.count.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// How many may.
    pub fn sends_waiting_max(&self) -> u64 {
        u64::try_from(self.waiting.most.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Sends that weren't taken since the last call, as too many waited.
    pub fn sends_refused(&self) -> u64 {
        self.waiting.refused.swap(0, Ordering::Relaxed)
    }

    pub(super) fn take_send(&self) -> bool {
        let waiting = &self.waiting;
        let is_taken =
            waiting.count.fetch_add(1, Ordering::Relaxed) < waiting.most.load(Ordering::Relaxed);
        if !is_taken {
            waiting.count.fetch_sub(1, Ordering::Relaxed);
            waiting.refused.fetch_add(1, Ordering::Relaxed);
        }
        is_taken
    }

    pub(super) fn sends_ended(&self, count: u64) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.waiting.count.fetch_sub(count, Ordering::Relaxed);
    }

    /// A worker has come to a question of [`Gateways::probe`].
    pub(super) fn probed(&self, asked: Instant) {
        self.probe.answered(asked);
    }

    /// Drains all workers: clients are told to come back, taken sends are answered, sessions close,
    /// and within 10 s each worker's `run` returns. Where there are other servers each session is
    /// served until it was told to leave, which takes so much longer: answers whether it is so.
    pub fn drain(&self) -> bool {
        let in_turn = self.peers.has_others();
        self.all(|inbox| inbox.push(Input::Drain(in_turn)));
        in_turn
    }

    /// Ends a session, wherever it is, since its device has a newer one (4005).
    pub fn replace_session(&self, gateway: GatewayId, session: SessionId) {
        let ended = self.one(gateway, |inbox| {
            inbox.push(Input::End(session, CloseCode::Replaced));
        });
        if !ended {
            self.peers
                .to_other(gateway, ToGateway::Replaced { session });
        }
    }

    /// Tells a worker of changes in the presence of users it watches.
    pub fn presence_changed(&self, gateway: GatewayId, users: Vec<UserPresence>) {
        self.one(gateway, |inbox| inbox.push(Input::PresenceChanged(users)));
    }

    /// Tells all workers but one that a message waits, those of other servers too.
    pub(super) fn delayed(
        &self,
        but: GatewayId,
        user: UserId,
        conversation: ConversationId,
        seq: Seq,
    ) {
        self.peers.to_others(ToGateway::Delayed {
            user,
            conversation,
            seq,
        });
        let inboxes = self.inboxes.read().unwrap_or_else(PoisonError::into_inner);
        for (_, inbox) in inboxes.iter().filter(|(id, _)| *id != but) {
            inbox.push(Input::Delayed(user, conversation, seq));
        }
    }

    /// Remembers marks that are in the registry.
    pub(super) fn marked(&self, put: &[Mark]) {
        let mut marks = self.marks();
        for mark in put {
            let is_full = marks.count >= MARKS_MAX;
            let of_user = marks.of_users.entry(mark.user).or_default();
            let before = of_user.len();
            if !is_full || of_user.contains_key(&mark.conversation) {
                let seq = of_user.entry(mark.conversation).or_default();
                *seq = mark.seq.max(*seq);
            }
            let added = of_user.len() - before;
            if of_user.is_empty() {
                marks.of_users.remove(&mark.user);
            }
            marks.count += added;
        }
        self.is_marked.store(marks.count > 0, Ordering::Relaxed);
    }

    /// Forgets a user's marks: the registry has them for the next session.
    pub(super) fn forget_marks(&self, user: UserId) {
        if !self.is_marked.load(Ordering::Relaxed) {
            return;
        }
        let mut marks = self.marks();
        let forgotten = marks.of_users.remove(&user).map_or(0, |of| of.len());
        marks.count -= forgotten;
        self.is_marked.store(marks.count > 0, Ordering::Relaxed);
    }

    /// Forgets the marks that the delivered cursors have reached, and gives them to be cleared.
    pub(super) fn reached(&self, cursors: &[CursorRow]) -> Vec<Mark> {
        if !self.is_marked.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut marks = self.marks();
        let mut reached = Vec::new();
        for cursor in cursors {
            let Some(of_user) = marks.of_users.get_mut(&cursor.user) else {
                continue;
            };
            let mark = of_user.get(&cursor.conversation);
            if mark.is_some_and(|&seq| seq <= cursor.delivered) {
                of_user.remove(&cursor.conversation);
                if of_user.is_empty() {
                    marks.of_users.remove(&cursor.user);
                }
                marks.count -= 1;
                reached.push(Mark {
                    user: cursor.user,
                    conversation: cursor.conversation,
                    seq: cursor.delivered,
                });
            }
        }
        self.is_marked.store(marks.count > 0, Ordering::Relaxed);
        self.marks_cleared
            .fetch_add(reached.len() as u64, Ordering::Relaxed);
        reached
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, gateway: GatewayId, inbox: Arc<Inbox>) {
        let mut inboxes = self.inboxes.write().unwrap_or_else(PoisonError::into_inner);
        inboxes.retain(|(id, _)| *id != gateway);
        inboxes.push((gateway, inbox));
    }

    /// Whether a worker is the one that does what one worker of a process must do.
    pub(super) fn is_first(&self, gateway: GatewayId) -> bool {
        let inboxes = self.inboxes.read().unwrap_or_else(PoisonError::into_inner);
        inboxes.iter().map(|(id, _)| *id).min() == Some(gateway)
    }

    fn all(&self, tell: impl Fn(&Inbox)) {
        for (_, inbox) in self
            .inboxes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            tell(inbox);
        }
    }

    /// False: there is no such worker here.
    fn one(&self, gateway: GatewayId, tell: impl FnOnce(&Inbox)) -> bool {
        let inboxes = self.inboxes.read().unwrap_or_else(PoisonError::into_inner);
        let Some((_, inbox)) = inboxes.iter().find(|(id, _)| *id == gateway) else {
            return false;
        };
        tell(inbox);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidings_core::in_process::InProcessPeers;

    #[test]
    fn a_mark_is_given_once_when_the_delivered_cursor_has_reached_it() {
        let gateways = Gateways::new(Arc::new(InProcessPeers::new(1)));
        let (user, conversation) = (UserId(1), ConversationId(2));
        let mark = |seq| Mark {
            user,
            conversation,
            seq,
        };
        let cursor = |user, delivered| CursorRow {
            conversation,
            user: UserId(user),
            delivered,
            read: 99,
        };
        assert_eq!(gateways.reached(&[cursor(1, 9)]), []);
        gateways.marked(&[mark(7)]);
        gateways.marked(&[mark(5)]);
        assert_eq!(gateways.reached(&[cursor(1, 6), cursor(3, 9)]), []);
        assert_eq!(gateways.reached(&[cursor(1, 8)]), [mark(8)]);
        assert_eq!(gateways.reached(&[cursor(1, 9)]), []);
        gateways.marked(&[mark(10)]);
        gateways.forget_marks(user);
        assert_eq!(gateways.reached(&[cursor(1, 11)]), []);
        assert_eq!(gateways.marks().count, 0);
        assert_eq!(gateways.marks_cleared.load(Ordering::Relaxed), 1);
    }
}
