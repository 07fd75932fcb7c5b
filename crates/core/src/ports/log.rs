//! The log: durable, ordered records, the source of every decision.

use bytes::Bytes;

use super::BoxFuture;
use crate::ids::{ConversationId, Partition, Position};
use crate::record::Committed;

/// A record to append.
#[derive(Clone, Debug)]
pub struct Append {
    /// The key: its slot chooses the partition.
    pub conversation: ConversationId,
    /// [`crate::record::Record::encode`]'s bytes.
    pub payload: Bytes,
}

/// Why an append or a read was refused, sorted by remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Nothing was appended: the queue is full or the log away; try again after a while.
    #[error("the log takes no records now: {0}")]
    Unavailable(String),
    /// Nothing was appended: the disk is full; try again when somebody made room.
    #[error("the log's disk is full")]
    Full,
    /// Nobody knows whether it was appended; a resend is judged by its counter.
    #[error("whether the records were appended is not known: {0}")]
    Unknown(String),
    /// The position asked for is no longer, or not yet, in the log: an operator must look.
    #[error("position {asked:?} is not in the log, which holds {first:?} to {end:?}")]
    Gone {
        /// What was asked for.
        asked: Position,
        /// The first position there is.
        first: Position,
        /// The position of the next record.
        end: Position,
    },
}

/// Called once for each call of [`Log::append`], from any thread, soon: it must not block.
pub type AppendReport = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Durable, ordered records in partitions.
///
/// - **Durable**: a record is given out by [`Log::read`] only when it would survive
///   what the deployment promises (embedded: it is fsynced). A report of `Ok` says the
///   same, but an acknowledgement is made only from a record that was read.
/// - **Ordered**: per partition one order, the same for every reader for ever. Records
///   of one call keep their order, and calls of one thread keep theirs.
/// - **All or nothing**: of the records of one call, all or a prefix (of those of each partition) are
///   appended when the result is `Unknown`, none when it is another error.
/// - Positions grow by one or more a record.
pub trait Log: Send + Sync {
    /// How many partitions there are; never changes.
    fn partitions(&self) -> u32;

    /// The partition of a conversation: its slot modulo the partitions.
    fn partition_of(&self, conversation: ConversationId) -> Partition {
        Partition(conversation.slot() % self.partitions())
    }

    /// Queues records; returns at once, reports later. Refused with `Unavailable`
    /// when the bounded queue is full, which a call larger than the whole queue finds always.
    ///
    /// `Full` refuses everything queued behind it as well. Still, a call made before the report of
    /// a refused one arrived may be appended: who needs order looks at the counters of the records.
    fn append(&self, records: Vec<Append>, report: AppendReport);

    /// The committed records from `from` on, at least one and about `bytes_max` at most
    /// (a single larger record is given alone). Waits until there is one; dropping the
    /// future loses nothing. `from` may name a hole: the next record is given.
    /// `Unavailable` when the log was shut down and there won't be one.
    fn read(
        &self,
        partition: Partition,
        from: Position,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<Vec<Committed>, LogError>>;

    /// Where routing goes on after a restart: the last position given to [`Log::commit`],
    /// or the first of a new log.
    fn committed(&self, partition: Partition) -> BoxFuture<'_, Result<Position, LogError>>;

    /// Says that everything before `position` is stored durably: it may be trimmed.
    /// A lower position than before changes nothing. Durable some time after return:
    /// after a crash [`Log::committed`] may give an earlier one.
    fn commit(
        &self,
        partition: Partition,
        position: Position,
    ) -> BoxFuture<'_, Result<(), LogError>>;

    /// The position behind the last committed record: everything before it can be read, and a
    /// read from it waits. A log in another process may know it late: it covers what this process
    /// has read and, once [`Log::committed`] has answered, all that anybody could read before that call.
    fn end(&self, partition: Partition) -> Position;
}
