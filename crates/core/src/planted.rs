//! Mistakes that the simulation and the model plant here and in the gateway, to prove that they would find them.
//!
//! Each is one that a programmer could really make, and stands at one place as `is(Mistake::…)`.
//! Without the feature `planted`, which only those two turn on, that is a constant `false`
//! and nothing of it is in the program. With it none is made before [`plant`] is called, and then
//! only by the thread that called it: another crate's tests, built together with the simulation,
//! don't see any.

/// A mistake in the real code. Those in the models around it are listed by the simulation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// The sequencer accepts a counter though one before it is missing.
    GapAccepted,
    /// The sequencer doesn't compare the id before with the one under n.
    ForkAccepted,
    /// A sender's row counts for 35 seconds of log time: 400 days in seconds, taken for microseconds.
    SenderForgottenEarly,
    /// An event's time is the log's, though another leader's clock is behind.
    TimeRunsBack,
    /// A change of members is accepted though one before it is missing.
    VersionGapAccepted,
    /// A removal doesn't end the grant that the router remembers.
    RemovalIgnored,
    /// A row that is ahead of the record is taken as it is, not taken back to before it.
    RowsNotUndone,
    /// Rows of state are written though the event rows aren't confirmed.
    StateBeforeEvents,
    /// A write to the store that got no answer isn't sent again.
    StoreNotAskedAgain,
    /// A conversation is forgotten together with the gateways that want it.
    InterestForgotten,
    /// A router that has taken over says how conversations stand before it has caught up.
    AnsweredBeforeCaughtUp,
    /// A gateway takes every digest for the next one.
    DigestNotNumbered,
    /// Gateways aren't told which heads moved lately: a last event that was lost stays lost.
    DigestNotSent,
    /// A read's rows are believed though some between them are missing.
    HoleBelieved,
    /// Catch-up begins at the client's cursor, though its user joined later.
    ShownBeforeJoin,
    /// A session goes on getting a conversation's events when its user was removed.
    ShownAfterRemoval,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Mistake; 16] = [
        Mistake::GapAccepted,
        Mistake::ForkAccepted,
        Mistake::SenderForgottenEarly,
        Mistake::TimeRunsBack,
        Mistake::VersionGapAccepted,
        Mistake::RemovalIgnored,
        Mistake::RowsNotUndone,
        Mistake::StateBeforeEvents,
        Mistake::StoreNotAskedAgain,
        Mistake::InterestForgotten,
        Mistake::AnsweredBeforeCaughtUp,
        Mistake::DigestNotNumbered,
        Mistake::DigestNotSent,
        Mistake::HoleBelieved,
        Mistake::ShownBeforeJoin,
        Mistake::ShownAfterRemoval,
    ];
}

/// Whether this mistake is made here and now.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_: Mistake) -> bool {
    false
}

#[cfg(feature = "planted")]
pub use switch::{Planted, is, plant};

#[cfg(feature = "planted")]
mod switch {
    use std::cell::Cell;

    use super::Mistake;

    thread_local! {
        static MADE: Cell<Option<Mistake>> = const { Cell::new(None) };
    }

    /// Whether this mistake is made here and now.
    pub fn is(mistake: Mistake) -> bool {
        MADE.get() == Some(mistake)
    }

    /// Has this thread make a mistake, or none, until what is given is dropped.
    #[must_use]
    pub fn plant(mistake: Option<Mistake>) -> Planted {
        MADE.set(mistake);
        Planted(())
    }

    /// While it lives the mistake is made.
    #[derive(Debug)]
    pub struct Planted(());

    impl Drop for Planted {
        fn drop(&mut self) {
            MADE.set(None);
        }
    }
}
