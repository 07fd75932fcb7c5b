//! Implementations of [`tidings_core::ports::disk::Disk`]: the real folder, a
//! simulated one that can crash, and a recorder of everything done to another.

mod real;
mod record;
mod sim;

pub use real::RealDisk;
pub use record::{Cut, Entry, FileNumber, RecordingDisk, Replay, Trace};
pub use sim::{Rng, SimDisk};
