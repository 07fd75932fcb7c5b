//! Ownership: which partitions of the log this process routes now.

use super::BoxFuture;
use crate::ids::Partition;

/// What happened to a partition.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// It is this process's: begin at [`super::log::Log::committed`] and apply every record from there, in full.
    Gained(Partition),
    /// It is, or soon will be, somebody else's: stop deciding for it, forget all that was known of it, give
    /// what is stored by now to [`super::log::Log::commit`], then call [`Ownership::released`].
    Lost(Partition),
}

/// Which partitions are this process's to route; one owner each in a steady state.
///
/// - **Ordered**: the changes of one partition come in turn, beginning with `Gained`: never two of a kind
///   running. What this process is told last is how it stands.
/// - **Handed over**: after an announced `Lost` the next owner gets the partition when `released` was
///   called, or when that took longer than the implementation's bound (some seconds): a slow store delays
///   the next owner by no more than that. What wasn't committed by then the next owner applies again.
/// - **Not exclusive**: a process that is cut off or frozen is told `Lost` late, when the next owner has
///   long begun, or never. So at times two decide for one partition. That is harmless, because a decision
///   is a function of the log before the record: the one left behind can only answer and store what the
///   other one does, too, and a lower commit changes nothing.
/// - Membership doesn't rest on how fast changes are taken: a router whose store is slow stays a member.
pub trait Ownership: Send + Sync {
    /// The next change; waits until there is one. Dropping the future loses none. Changes are given once, so
    /// one caller at a time. After a shutdown it waits for ever, once every partition was told `Lost`.
    fn next(&self) -> BoxFuture<'_, Change>;

    /// The answer to [`Change::Lost`]: nothing is decided for the partition any more, and all commits that
    /// shall count were made. Without a `Lost` that waits for it, it changes nothing.
    fn released(&self, partition: Partition);
}
