//! What the logic asks of whoever runs it.

use bytes::Bytes;
use tidings_core::ids::{ConversationId, DeviceId, Micros, Partition, Seq, SessionId, UserId};
use tidings_core::ports::directory::SignInId;
use tidings_core::ports::log::Append;
use tidings_core::ports::peers::ToRouter;
use tidings_core::ports::registry::{Mark, Presence, SessionEntry};
use tidings_core::rows::CursorRow;
use tidings_protocol::CloseCode;

/// Where a session sits: a small number no other open session of the worker has.
pub type Slot = u32;

/// Who a token speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: DeviceId,
    /// The sign-in the token came from; 0: of another issuer.
    pub sign_in: SignInId,
    /// When the token was issued.
    pub issued: Micros,
    /// When it ends.
    pub expires: Micros,
}

/// Why a token was not taken, sorted by what the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthFailure {
    /// It is no token of ours: 1008.
    #[error("the token is not valid")]
    Invalid,
    /// It was one once: 4001, a fresh one is needed.
    #[error("the token has expired")]
    Expired,
    /// The user, device or sign-in was revoked: 4002.
    #[error("the token was revoked")]
    Revoked,
    /// It can't be told now: 1013.
    #[error("tokens cannot be checked now")]
    Unavailable,
}

/// The outside as [`super::GatewayCore`] sees it. Nothing here waits: what has an answer gets it
/// as a later call of the core, never within the call itself.
pub trait Outbound {
    /// Microseconds since 1970.
    fn now(&self) -> Micros;

    /// Queues a WebSocket frame (or several) for a session, after all before it. Beyond the
    /// session's bound its queue is dropped and [`super::GatewayCore::overflow`] is called.
    fn send(&mut self, slot: Slot, frame: &Bytes);

    /// Closes a session after what is queued for it; [`super::GatewayCore::closed`] follows.
    fn close(&mut self, slot: Slot, code: CloseCode);

    /// The session has shown who it is: limits for strangers no longer hold.
    fn admitted(&mut self, slot: Slot);

    /// Bytes that wait for a session's socket.
    fn queued_bytes(&self, slot: Slot) -> usize;

    /// When anything at all, a WebSocket pong included, was last received from a session.
    fn heard(&self, slot: Slot) -> Micros;

    /// Takes one more send that is to be answered; false: it may not be taken, as too many wait already.
    fn take_send(&mut self) -> bool {
        true
    }

    /// So many sends that were taken are answered, or won't be.
    fn sends_ended(&mut self, _count: u64) {}

    /// Appends records in order; [`super::GatewayCore::appended`] tells how it went.
    fn append(&mut self, batch: u64, records: Vec<Append>);

    /// To the router that owns a partition; may be lost.
    fn to_router(&mut self, partition: Partition, message: ToRouter);

    /// Checks a token; [`super::GatewayCore::authenticated`] follows.
    fn authenticate(&mut self, session: SessionId, token: String, device: String);

    /// Asks for the conversations and blocks of a user; [`super::GatewayCore::user_loaded`] follows.
    fn load_user(&mut self, user: UserId);

    /// The members named have changed somewhere, or their blocks: what is remembered of their
    /// conversations is old. None named: everything remembered may be old.
    fn members_changed(&mut self, users: &mut dyn Iterator<Item = UserId>);

    /// Reads events `from..=to`; [`super::GatewayCore::events_read`] follows.
    fn read_events(
        &mut self,
        request: u64,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        bytes_max: usize,
    );

    /// Adds a session to the registry, or refreshes it. A new one takes the place of older
    /// sessions of its device on other workers, see [`super::GatewayCore::end_session`].
    fn put_session(&mut self, entry: SessionEntry, is_new: bool);

    /// Removes a session from the registry.
    fn remove_session(&mut self, user: UserId, session: SessionId, at: Micros);

    /// Says that a session is online, away or not to be seen.
    fn set_presence(&mut self, user: UserId, session: SessionId, state: Presence);

    /// Asks for users' presence, and who of them has blocked `watcher`;
    /// [`super::GatewayCore::presence_answered`] follows.
    fn presence(&mut self, request: u64, watcher: UserId, users: Vec<UserId>);

    /// All users whose changes this worker wants, replacing those before.
    fn watch(&mut self, users: Vec<UserId>);

    /// Marks that something waits for users.
    fn put_marks(&mut self, marks: Vec<Mark>);

    /// Cursors of users moved: marks up to their `delivered` are to be cleared.
    fn cursors_moved(&mut self, cursors: &[CursorRow]) {
        let _ = cursors;
    }

    /// A message of `user` waits for members that were online: to be told to the user's sessions
    /// on other workers, see [`super::GatewayCore::delayed`].
    fn delayed_elsewhere(&mut self, user: UserId, conversation: ConversationId, seq: Seq) {
        let _ = (user, conversation, seq);
    }
}
