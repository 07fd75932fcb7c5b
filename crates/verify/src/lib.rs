//! A checker of recorded histories for every promise.
//!
//! Clients (real or simulated) record what they did and saw as [`Record`]s: messages numbered,
//! answers received, events handed to the application, receipts, what the server called complete.
//! The checker judges such a history against the promises of the design:
//!
//! 1. an acknowledged message is never lost,
//! 2. one order per conversation,
//! 3. exactly once to the user,
//! 4. catch-up is complete and provable,
//! 5. degrade, don't fail: a sender is always told what became of a message.
//!
//! The sixth (cost follows activity) is judged by the bench, not by histories.
//!
//! A message with neither answer nor failure is of unknown outcome and may appear or not. What a
//! history can't show either way is counted as [`Report::unproven`], never called clean silently.
//!
//! ```
//! use tidings_verify::{check, history};
//! let send = history::Send { at: 1, user: 1, device: 1, conversation: 7, sender: 5, grant: 1,
//!     counter: 1, id: 9, body_hash: tidings_verify::body_hash(b"hello") };
//! assert!(check(&[send.into()]).is_clean());
//! ```

pub mod history;
mod judge;
mod ranges;
mod read;
mod recorder;
mod report;
mod run;
mod state;

mod checker;

pub use checker::{Checker, Options, check};
pub use history::Record;
pub use read::{HistoryError, Merge, Reader};
pub use recorder::{RecordError, Recorder};
pub use report::{Anomaly, Kind, Report};
pub use run::{Format, run, run_to};

/// The hash of a body as records carry it, so that histories hold no text of users.
///
/// For compressed bodies hash the inflated bytes: those are what the user reads.
pub fn body_hash(body: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(body)
}
