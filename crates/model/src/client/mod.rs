//! Devices, their connections and the log, sequenced by the code: what does a device believe?
//!
//! A connection is a list of records of which a prefix is appended, at any time, also long after the
//! device has reconnected. The device may receive the answer to any record at any time, in any order,
//! again, or never; one life never gets those of another. That routers answer as the log says is the other half's matter (module `store`).
//!
//! Checked in every state: what was told sent is accepted, what was told failed never is; no message
//! has two seqs and no seq two messages; seqs are gapless; and if the faults ended here, all that is
//! numbered would be decided.

mod device;
mod world;

use tidings_core::planted::{self, Mistake};
use tidings_core::sequencer::Answer;

pub use device::{Device, Fate, MESSAGES, Message};
pub use world::World;

use crate::history::Rec;
use crate::search::{Outcome, search};

/// What a backup of the outbox becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Copies {
    /// There is none.
    None,
    /// It is put back in place of the device.
    Restored,
    /// It lives beside the device.
    Live,
}

/// What a device does when it hears of another epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NewEpoch {
    /// Nothing: it goes on counting.
    Ignored,
    /// It numbers all anew at once.
    Numbered,
    /// It looks through the history for what waits, then numbers the rest anew.
    LookedUp,
}

/// A case: how large the world is, and which safeguards there are.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Messages that each life may write, at most [`MESSAGES`].
    pub messages: usize,
    /// Connections of each device.
    pub connections: usize,
    /// Entries of the log.
    pub log: usize,
    /// The user may be removed and come back, once.
    pub members: bool,
    /// What an ended grant left goes out under the next one; else it has failed.
    pub again: bool,
    /// What one connection appends is a prefix of what it was given; else any record may be lost.
    pub prefix: bool,
    /// Safeguard: a device compares the id under n with its own.
    pub lineage: bool,
    /// Whether the outbox is copied.
    pub copies: Copies,
    /// A copy reads the history only up to the answer's head, not to the present end.
    pub found_to_answer: bool,
    /// The days on which anything happens, ascending, the first one 0.
    pub days: &'static [u16],
    /// Records are appended, and answers heard, at most this many days late.
    pub late_days: u16,
    /// Safeguard: without news for longer a device takes a fresh sender id.
    pub sender_days: u16,
    /// Safeguard: news is as old as the message it is of, not as its arrival.
    pub known_by_ts: bool,
    /// Safeguard: a device whose sender id is too old looks into the history only when nothing of it can
    /// be under way any more.
    pub waits: bool,
    /// The log may be lost once, from any entry on that isn't stored.
    pub loses_log: bool,
    /// What a device makes of that.
    pub new_epoch: NewEpoch,
    /// Safeguard: who is connected to the old log doesn't append to the new one.
    pub epoch_ends_connections: bool,
    /// A mistake in the code itself.
    pub planted: Option<Mistake>,
    /// Only violations that say this count.
    pub only: &'static str,
}

impl Default for Rules {
    /// All safeguards, as the code has them; 2 messages, 2 connections, no copies, one day, one log.
    fn default() -> Rules {
        Rules {
            messages: 2,
            connections: 2,
            log: 5,
            members: false,
            again: true,
            prefix: true,
            lineage: true,
            copies: Copies::None,
            found_to_answer: false,
            days: &[0],
            late_days: 0,
            sender_days: 365,
            known_by_ts: true,
            waits: true,
            loses_log: false,
            new_epoch: NewEpoch::LookedUp,
            epoch_ends_connections: true,
            planted: None,
            only: "",
        }
    }
}

/// An answer as a device gets it.
pub struct Answered {
    /// To which record.
    rec: Rec,
    /// The code's answer.
    answer: Answer,
    /// The day of the message under n.
    day_of_n: u16,
    /// Messages in the history up to the answer's head.
    found_to_answer: Vec<u8>,
    /// Messages in the history as it is now.
    found: Vec<u8>,
}

impl Answered {
    fn found(&self, rules: &Rules) -> &[u8] {
        if rules.found_to_answer {
            &self.found_to_answer
        } else {
            &self.found
        }
    }
}

/// Searches a case.
pub fn run(rules: &Rules, limit: usize) -> Outcome {
    let _made = planted::plant(rules.planted);
    search(
        &World::new(),
        &|world| world::next(world, rules),
        &|world| world::check(world, rules),
        limit,
    )
}
