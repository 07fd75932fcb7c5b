//! What may become of a call that fails, stated once for the engines and for their models.
//!
//! The simulation rests on models of log, store and registry. The drivers don't run in it, so these
//! scenarios run on both: on the models in `crates/sim/tests`, on real engines behind a proxy in
//! `crates/engines/tests`. A scenario panics where something happened that no engine may do, and names
//! which of the allowed things it saw. A real engine may show any of them; the models must show each
//! over some seeds, since what they never do the simulation doesn't test.
//!
//! Nothing here is bounded in time: the caller puts a deadline around it.

use crate::ports::BoxFuture;

pub mod log;
pub mod registry;
pub mod store;

/// How it stands between a caller and its engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Calls arrive, and answers come.
    Open,
    /// Calls arrive. Their answers are lost for good.
    AnswersLost,
    /// Nothing arrives. What waits on its way may arrive once it is open again.
    Held,
    /// One node of several doesn't answer this caller; the same as open where there is one.
    OneNodeAway,
}

/// An engine as two servers see it, one of them over a way that can fail.
pub trait Subject<Port: ?Sized>: Send + Sync {
    /// The engine over that way.
    fn here(&self) -> &Port;

    /// The same engine over one that is always open.
    fn there(&self) -> &Port;

    /// Changes the way.
    fn set(&self, way: Way);

    /// Gives what is on its way a moment to arrive: of some ten of them, at least one is enough.
    fn pause(&self) -> BoxFuture<'_, ()>;
}

/// What a scenario saw.
pub type Seen = &'static str;

/// A scenario's name and the things that it may see.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What it is about.
    pub name: &'static str,
    /// All that an engine may show, each one sight of the scenario.
    pub allowed: &'static [Seen],
}

impl Scenario {
    /// Says what was seen; panics if no engine may show that.
    pub fn check(&self, seen: Seen) {
        assert!(self.allowed.contains(&seen), "{}: {seen}", self.name);
        eprintln!("{}: {seen}", self.name);
    }
}

/// How many pauses are enough for what is late.
const PAUSES: usize = 12;

/// Waits until nothing that was late is on its way any more.
async fn calm<Port: ?Sized>(subject: &dyn Subject<Port>) {
    for _ in 0..PAUSES {
        subject.pause().await;
    }
}

/// When something written over a failing way appeared.
fn when(at_once: bool, later: bool) -> Seen {
    match (at_once, later) {
        (true, _) => "at once",
        (false, true) => "late",
        (false, false) => "never",
    }
}

/// How much of what was written is there.
fn how_much(found: usize, of: usize) -> Seen {
    match found {
        0 => "nothing",
        found if found == of => "all",
        _ => "a part",
    }
}
