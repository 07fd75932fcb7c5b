//! The store: event rows, the rows of state that decisions need, and cursors.

use std::future::ready;
use std::time::Duration;

use super::BoxFuture;
use crate::ids::{ConversationId, Partition, Position, Seq, UserId};
use crate::rows::{CursorRow, EventRow, MemberRows, StateKey, StateRow};

/// Why a call failed, sorted by remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Whether it was done is not known; writes are harmless to repeat: try again after a while.
    #[error("the store did not answer: {0}")]
    Unavailable(String),
    /// The disk is full: nothing more can be stored until somebody makes room.
    #[error("the store's disk is full")]
    Full,
    /// What was read contradicts its checksum or layout: an operator must look.
    #[error("stored bytes are damaged: {0}")]
    Corrupt(String),
    /// A later release wrote it, and this one has changed nothing: start that release again, or
    /// restore a backup from before it.
    #[error("{0}: a later release wrote it; start that one, or restore a backup from before it")]
    Newer(String),
}

/// The result of a store call.
pub type StoreResult<T> = Result<T, StoreError>;

/// Every call answers within this time or fails with [`StoreError::Unavailable`].
pub const STORE_DEADLINE: Duration = Duration::from_secs(5);

/// Events, state and cursors, written by the routers.
///
/// - A put is **readable** by everyone once it has returned `Ok`. What survives a crash
///   is everything before the position that [`Store::settle`] gave back.
/// - **Repeats are harmless**: an event row written twice is the same row; of two state
///   rows of one key the one with the later position stays, in whatever order they come;
///   cursors only grow.
/// - A put that failed or whose future was dropped may have happened, whole or in part.
pub trait Store: Send + Sync {
    /// Writes event rows, in any order, of any conversations of the partition.
    fn put_events(
        &self,
        partition: Partition,
        rows: Vec<EventRow>,
    ) -> BoxFuture<'_, StoreResult<()>>;

    /// Writes rows of state.
    fn put_state(
        &self,
        partition: Partition,
        rows: Vec<StateRow>,
    ) -> BoxFuture<'_, StoreResult<()>>;

    /// Moves cursors forward: each number becomes the greater of what is there and what is given.
    /// On return they are durable, since they are told then and the log doesn't hold them.
    /// Who has read a message has got it: a store may answer what was read as delivered.
    fn put_cursors(
        &self,
        partition: Partition,
        rows: Vec<CursorRow>,
    ) -> BoxFuture<'_, StoreResult<()>>;

    /// Says that all rows of the records before `position` have been put; answers the position
    /// up to which rows survive a crash, at most the one given: that one may be committed in
    /// the log. A store that is durable on return gives the position back; one that gathers
    /// rows in memory, leaning on the log, gives the last one it flushed.
    fn settle(
        &self,
        partition: Partition,
        position: Position,
    ) -> BoxFuture<'_, StoreResult<Position>>;

    /// The events `from..=to` that exist, ascending. Stops early, but not before the first,
    /// when about `bytes_max` bytes of bodies were gathered. Only bodies count: bound the range
    /// as well.
    fn read_events(
        &self,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        bytes_max: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<EventRow>>>;

    /// The events at or after `from` in the log, ascending by seq. They are found reading
    /// downwards from the highest seq until a position before `from`.
    fn read_events_since(
        &self,
        conversation: ConversationId,
        from: Position,
    ) -> BoxFuture<'_, StoreResult<Vec<EventRow>>>;

    /// The rows of state named, in the order asked, `None` where there is none. Sees every
    /// put that returned `Ok` before the call, from any router.
    fn read_state(
        &self,
        conversation: ConversationId,
        keys: Vec<StateKey>,
    ) -> BoxFuture<'_, StoreResult<Vec<Option<StateRow>>>>;

    /// The cursors of these users; users without one are left out.
    fn read_cursors(
        &self,
        conversation: ConversationId,
        users: Vec<UserId>,
    ) -> BoxFuture<'_, StoreResult<Vec<CursorRow>>>;

    /// Up to how many members of a conversation [`Store::read_members`] reads. 0: it isn't worth a question of its
    /// own, as a row costs next to nothing.
    fn members_together(&self) -> usize {
        0
    }

    /// What [`Store::read_state`] and [`Store::read_cursors`] say of all members of a conversation and of its head;
    /// `None` if these are more than [`Store::members_together`].
    fn read_members(
        &self,
        _conversation: ConversationId,
    ) -> BoxFuture<'_, StoreResult<Option<MemberRows>>> {
        Box::pin(ready(Ok(None)))
    }
}
