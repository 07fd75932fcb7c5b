//! Seeded simulation of a whole cluster on virtual time.
//!
//! The real router (`tidings_core::path`), gateway logic and client core run in one process and
//! one thread; log, store, directory, registry, disks of devices and the network between all of
//! them are models with the ports' semantics and every fault those allow. A history is a function
//! of its seed: [`run`] twice gives the same [`Outcome::trace`].
//!
//! - `world`: the scheduler, a heap of events by (virtual time, a number drawn from the seed).
//! - `log`, `store`, `directory`, `registry`: the models of ports; [`ports`]: most of them behind the ports'
//!   traits, for the scenarios that real engines run as well. `reference`: what the log says, decided anew.
//! - `routers`, `gateways`, `devices`: drivers of the real machines, as servers and apps have them;
//!   `recorded`: what devices do and see, for the checker.
//! - `net`: connections and the messages between gateways and routers. `faults`: what goes wrong.
//! - `bugs`: mistakes that can be planted, to see that they are found.
//! - `end`: after the faults everything heals, settles and is judged by `tidings_verify`.
//!
//! What is small enough to be searched in full is `crates/model`'s (`docs/model.md`).
//!
//! ```
//! let outcome = tidings_sim::run(7, &tidings_sim::Options::default());
//! assert!(outcome.is_clean(), "{outcome}");
//! ```

mod bugs;
mod devices;
mod directory;
mod end;
mod faults;
mod gateways;
mod log;
mod net;
pub mod ports;
mod random;
mod recorded;
mod reference;
mod registry;
mod routers;
mod setup;
mod store;
mod world;

use std::fmt;

pub use bugs::Bug;
use tidings_verify::{Record, Report};

/// What distinguishes a run from the plain one of its seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A planted mistake.
    pub bug: Option<Bug>,
    /// Whether [`Outcome::records`] and [`Outcome::log`] are kept.
    pub keeps_records: bool,
}

/// What came of a history.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// A hash over everything that happened, in order.
    pub trace: u64,
    /// The checker's judgement.
    pub report: Report,
    /// What the simulation itself saw broken, one sentence each: rows that contradict the log,
    /// devices that didn't settle.
    pub broken: Vec<String>,
    /// Faults injected.
    pub faults: usize,
    /// Conversations there were.
    pub conversations: usize,
    /// Virtual microseconds until everything had settled.
    pub time: u64,
    /// Everything recorded, if asked for.
    pub records: Vec<Record>,
    /// What was injected and when, if asked for.
    pub log: Vec<String>,
}

impl Outcome {
    /// Whether no promise was broken and everything acknowledged was proven to be there.
    pub fn is_clean(&self) -> bool {
        self.report.is_clean() && self.report.unproven == 0 && self.broken.is_empty()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} messages, {} faults, {} conversations, {} s of virtual time",
            self.seed,
            self.report.messages,
            self.faults,
            self.conversations,
            self.time / 1_000_000
        )?;
        for line in self.log.iter().chain(&self.broken) {
            writeln!(f, "{line}")?;
        }
        write!(f, "{}", self.report)
    }
}

/// Runs the history of a seed to its end and judges it.
pub fn run(seed: u64, options: &Options) -> Outcome {
    let mistake = options.bug.and_then(Bug::in_core);
    let _planted = tidings_core::planted::plant(mistake);
    let mut world = world::World::new(seed, options);
    world.play();
    world.judge()
}
