//! What other threads tell a worker.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tidings_core::ids::{ConversationId, Seq, SessionId, UserId};
use tidings_core::ports::directory::Revocation;
use tidings_core::ports::log::LogError;
use tidings_core::ports::registry::UserPresence;
use tidings_core::ports::store::StoreError;
use tidings_core::rows::EventRow;
use tidings_protocol::CloseCode;
use tidings_protocol::wire::Mode;

use crate::logic::{AuthFailure, Listed, Principal};
use crate::worker::Waker;

/// An answer to a call of the core, or news from the rest of the process.
pub(super) enum Input {
    Appended(u64, Result<(), LogError>),
    Authenticated(SessionId, Result<Principal, AuthFailure>),
    UserLoaded(UserId, Option<Listed>),
    EventsRead(u64, Result<Vec<EventRow>, StoreError>),
    /// The answer to a request, and who of those asked for has blocked the asker, if it is known.
    PresenceAnswered(u64, Vec<UserPresence>, Option<Vec<UserId>>),
    PresenceChanged(Vec<UserPresence>),
    /// The first user has blocked the second, or no longer does.
    BlockChanged(UserId, UserId, bool),
    Revoked(Revocation),
    /// A feature is otherwise from now on.
    Mode(Mode),
    /// Asked by somebody who wants to know how long a worker's inbox takes.
    Probe(Instant),
    End(SessionId, CloseCode),
    /// A message of this user waits.
    Delayed(UserId, ConversationId, Seq),
    /// Whether sessions are served until they were told to leave.
    Drain(bool),
}

/// A worker's inbox. Answers are bounded by the calls under way, which the core and the ports
/// bound; news are few.
#[derive(Default)]
pub struct Inbox {
    queue: Mutex<Vec<Input>>,
    waker: OnceLock<Waker>,
}

impl Inbox {
    /// Whom to wake. What came before is seen by the first turn.
    pub(super) fn attach(&self, waker: Waker) {
        if self.waker.set(waker).is_ok() {
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    pub(super) fn push(&self, input: Input) {
        let was_empty = {
            let mut queue = self.queue();
            queue.push(input);
            queue.len() == 1
        };
        if was_empty {
            self.wake();
        }
    }

    /// For what may wait until the worker turns for another reason, or a second.
    pub(super) fn push_quietly(&self, input: Input) {
        self.queue().push(input);
    }

    pub(super) fn take(&self, into: &mut Vec<Input>) {
        std::mem::swap(&mut *self.queue(), into);
    }

    fn queue(&self) -> MutexGuard<'_, Vec<Input>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
