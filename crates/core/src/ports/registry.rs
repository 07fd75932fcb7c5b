//! The registry: who is connected where, presence, and marks of what waits.
//!
//! It may be stale or lost, never wrong for good: everything in it can be rebuilt from
//! live sessions and the store, and nothing is decided by it.

use std::time::Duration;

use super::BoxFuture;
use crate::ids::{ConversationId, DeviceId, GatewayId, Micros, Seq, SessionId, UserId};

/// The registry did not answer in [`REGISTRY_DEADLINE`]: go on without it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the registry did not answer: {0}")]
pub struct RegistryError(pub String);

/// The longest a caller waits for the registry (reliability.md, 2.3: > 100 ms hurts the send path).
pub const REGISTRY_DEADLINE: Duration = Duration::from_millis(100);

/// A live session of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionEntry {
    /// Whose.
    pub user: UserId,
    /// Of which device.
    pub device: DeviceId,
    /// The session; its id is unique for ever, so it also is the entry's epoch.
    pub session: SessionId,
    /// Where its socket is.
    pub gateway: GatewayId,
}

/// Whether somebody is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Presence {
    /// No live session.
    #[default]
    Offline,
    /// A live session.
    Online,
    /// A live session whose user said so.
    Away,
}

/// A user's presence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserPresence {
    /// Whose.
    pub user: UserId,
    /// The best of the user's sessions.
    pub state: Presence,
    /// When the last session ended; 0: not known or not ended.
    pub last_seen: Micros,
}

/// A conversation in which something waits for a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// For whom.
    pub user: UserId,
    /// Where.
    pub conversation: ConversationId,
    /// The last seq that waits.
    pub seq: Seq,
}

/// For each watching gateway, the watched users that changed.
pub type PresenceChanges = Vec<(GatewayId, Vec<UserPresence>)>;

/// Sessions, presence and inbox marks.
///
/// - An entry is removed only by its own session id: a late "offline" of an old session
///   never removes a newer one.
/// - Repeats are harmless. Reads may be as old as the registry's propagation, about 1 s.
pub trait Registry: Send + Sync {
    /// Adds a session, or refreshes it; without a refresh it is forgotten after its time to live.
    fn put_session(&self, entry: SessionEntry) -> BoxFuture<'_, Result<(), RegistryError>>;

    /// Removes exactly this session; `at` becomes the user's last-seen when it was the last one.
    fn remove_session(
        &self,
        user: UserId,
        session: SessionId,
        at: Micros,
    ) -> BoxFuture<'_, Result<(), RegistryError>>;

    /// All live sessions of a user.
    fn sessions_of(&self, user: UserId) -> BoxFuture<'_, Result<Vec<SessionEntry>, RegistryError>>;

    /// Says that a session is online or away.
    fn set_presence(
        &self,
        user: UserId,
        session: SessionId,
        state: Presence,
    ) -> BoxFuture<'_, Result<(), RegistryError>>;

    /// The presence of these users, in the order asked.
    fn presence(
        &self,
        users: Vec<UserId>,
    ) -> BoxFuture<'_, Result<Vec<UserPresence>, RegistryError>>;

    /// Which users' changes a gateway wants; replaces what it said before.
    fn watch(
        &self,
        gateway: GatewayId,
        users: Vec<UserId>,
    ) -> BoxFuture<'_, Result<(), RegistryError>>;

    /// The watched users that changed since the last call, for each watching gateway. Called
    /// about once a second, so that a storm of changes costs one frame a user and second.
    fn changes(&self) -> BoxFuture<'_, Result<PresenceChanges, RegistryError>>;

    /// Marks that something waits; of two marks of one user and conversation the greater seq stays.
    fn put_marks(&self, marks: Vec<Mark>) -> BoxFuture<'_, Result<(), RegistryError>>;

    /// Removes a user's mark of a conversation when its seq is at most `seq`.
    fn clear_mark(&self, mark: Mark) -> BoxFuture<'_, Result<(), RegistryError>>;

    /// Whether nobody has claimed this `key` before: of all who ask within `life`, on whatever server, one is
    /// told so. What makes something good once; keys are random, and never told to others.
    fn claim(&self, key: u128, life: Duration) -> BoxFuture<'_, Result<bool, RegistryError>>;

    /// All marks of a user, at most `limit`, in no order.
    fn marks_of(
        &self,
        user: UserId,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Mark>, RegistryError>>;
}
