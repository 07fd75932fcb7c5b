//! What is checked when a server starts, and how it is said.

/// Why an engine can't be used, in one line for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct StartError {
    /// The setting to look at, with its section, e.g. `kafka.brokers`.
    pub setting: &'static str,
    /// What is wrong, and what to do.
    pub reason: String,
    /// Whether it may go away by itself (no answer yet), so that `--wait` tries again; a wrong
    /// password or a missing table doesn't.
    pub may_pass: bool,
}

impl StartError {
    /// It didn't answer: perhaps it isn't up yet.
    pub fn away(setting: &'static str, reason: impl Into<String>) -> StartError {
        StartError {
            setting,
            reason: reason.into(),
            may_pass: true,
        }
    }

    /// Waiting won't help: somebody has to change something.
    pub fn wrong(setting: &'static str, reason: impl Into<String>) -> StartError {
        StartError {
            setting,
            reason: reason.into(),
            may_pass: false,
        }
    }
}
