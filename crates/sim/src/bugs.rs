//! The mistakes that can be planted, to prove that each would be found.

use std::fmt;

use tidings_core::planted::Mistake;

/// A mistake to plant: in the drivers and models here, where it can be made there, else in the real
/// code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// Routers are given records before the log has synced them.
    AckBeforeDurable,
    /// The log position is committed when records are read, not when their rows are stored.
    CommitBeforeStore,
    /// A router that takes over begins at the log's end, not at the committed position.
    SkipAfterTakeover,
    /// A read of the log that was full goes on behind the record after its last one.
    RecordSkippedBetweenReads,
    /// A server that gets a partition back goes on with the state it had when it lost it.
    StateKeptAfterLoss,
    /// Records get the router's time, not the log's.
    RoutersClock,
    /// Heads are read from one replica, which may be behind.
    HeadReadAtOne,
    /// Heads are read from the cache of recent ones, in which some writes are missing.
    HeadFromCache,
    /// Heads are told from the store, where the last events may not be yet.
    HeadToldFromStore,
    /// A router that takes over doesn't read the senders' rows.
    SendersForgotten,
    /// The row of state written last stays, whatever its position: that of an old router.
    LateWriteWins,
    /// The cursor written last stays, and cursors aren't read back.
    ReceiptGoingBack,
    /// A write of which the store did a part is taken as done.
    PartIsDone,
    /// An error of the store is taken as done.
    ErrorIsDone,
    /// A store that gathers rows in memory says they are settled before they are flushed.
    SettledBeforeFlush,
    /// A router that has lost its partition, and is cut off from the log, is asked how conversations stand.
    AnswersOfZombie,
    /// The directory's changes are carried into the log once, whether it took them or not.
    RelayedOnce,
    /// When a session ends its device's entry is removed, which may be that of a newer session.
    LateOffline,
    /// A device forgets a message when it is sent, not when it is acknowledged.
    ForgottenWhenSent,
    /// A device gives a message another id each time it sends it.
    NewIdEachTime,
    /// A device sends a message once, whether it is answered or not.
    NeverSentAgain,
    /// A device sends messages before their numbers are on its disk.
    SentBeforeSaved,
    /// A device shows events as they arrive.
    ShownAsTheyArrive,
    /// A device saves how far it has come before it has shown it.
    SavedBeforeShown,
    /// A device takes what was left out as had.
    HoleIsComplete,
    /// One in the real code.
    InCore(Mistake),
}

impl Bug {
    /// Those in drivers and models.
    const HERE: [Bug; 25] = [
        Bug::AckBeforeDurable,
        Bug::CommitBeforeStore,
        Bug::SkipAfterTakeover,
        Bug::RecordSkippedBetweenReads,
        Bug::StateKeptAfterLoss,
        Bug::RoutersClock,
        Bug::HeadReadAtOne,
        Bug::HeadFromCache,
        Bug::HeadToldFromStore,
        Bug::SendersForgotten,
        Bug::LateWriteWins,
        Bug::ReceiptGoingBack,
        Bug::PartIsDone,
        Bug::ErrorIsDone,
        Bug::SettledBeforeFlush,
        Bug::AnswersOfZombie,
        Bug::RelayedOnce,
        Bug::LateOffline,
        Bug::ForgottenWhenSent,
        Bug::NewIdEachTime,
        Bug::NeverSentAgain,
        Bug::SentBeforeSaved,
        Bug::ShownAsTheyArrive,
        Bug::SavedBeforeShown,
        Bug::HoleIsComplete,
    ];

    /// All of them.
    pub fn all() -> impl Iterator<Item = Bug> {
        let in_core = Mistake::ALL.into_iter().map(Bug::InCore);
        Bug::HERE.into_iter().chain(in_core)
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Bug> {
        Bug::all().find(|bug| bug.to_string() == name)
    }

    /// Which one it is of the real code.
    pub(crate) fn in_core(self) -> Option<Mistake> {
        match self {
            Bug::InCore(mistake) => Some(mistake),
            _ => None,
        }
    }
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bug::InCore(mistake) => write!(f, "{mistake:?}"),
            here => write!(f, "{here:?}"),
        }
    }
}
